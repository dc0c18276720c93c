//! The allow-list of the calls that the guard, the process that relays the exporter's calls, forwards to the node. The
//! guard rejects all other calls, so no bug in the exporter can change the node's state.
//!
//! A client of the node's IPC socket may make any call, including `stop`, wallet calls, submitting blocks and
//! disconnecting peers. The node selects the method by the interface ID and the method ordinal in a call. The
//! allow-list checks these two values, regardless of the capability that is called.

use std::borrow::Cow;
use std::fmt;

use capnp::traits::HasTypeId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::message::{self, Call, Method};
use crate::ipc::mining::{LONG_POLL, MiningSchema};
use crate::json_rpc::{methods, request as request_text};
use crate::schema::chain_capnp::chain;
use crate::schema::init_capnp::init;
use crate::schema::mining_capnp::{block_template, mining};
use crate::schema::node_capnp::node;
use crate::schema::rpc_capnp::rpc;

/// Maximum size of a JSON-RPC request in bytes. The exporter's longest request has 400 bytes.
const MAX_REQUEST_BYTES: usize = 4096;

const RPC_EXECUTE: Method = (rpc::Client::TYPE_ID, 0);
const NODE_EXECUTE: Method = (node::Client::TYPE_ID, 42);

/// The methods that the guard forwards: interface ID and ordinal, name of the interface, and name of the method. A
/// comment describes the purpose of each method whose name does not state which value the exporter polls.
const ALLOWED: &[(Method, &str, &str)] = &[
    (message::CONSTRUCT, "Init", "construct"),           // handshake
    ((init::Client::TYPE_ID, 2), "Init", "makeMining"),  // Mining of Core 30
    ((init::Client::TYPE_ID, 3), "Init", "makeMining"),  // Mining
    ((init::Client::TYPE_ID, 4), "Init", "makeRpc"),     // Rpc, or Chain on development branches
    ((init::Client::TYPE_ID, 5), "Init", "makeNode"),    // Node
    ((init::Client::TYPE_ID, 7), "Init", "makeTracing"), // Tracing
    (message::MAKE_THREAD, "ThreadMap", "makeThread"), // creates a thread of the node for the exporter's calls
    ((mining::Client::TYPE_ID, 1), "Mining", "isInitialBlockDownload"),
    ((mining::Client::TYPE_ID, 2), "Mining", "getTip"),
    (message::WAIT_TIP_CHANGED, "Mining", "waitTipChanged"), // waits for a new tip or the node's shutdown
    (message::CREATE_NEW_BLOCK, "Mining", "createNewBlock"), // contents of the next block
    (message::DESTROY_TEMPLATE, "BlockTemplate", "destroy"), // free the template
    ((block_template::Client::TYPE_ID, 2), "BlockTemplate", "getBlock"), // weight and transactions
    ((block_template::Client::TYPE_ID, 3), "BlockTemplate", "getTxFees"), // fees
    ((block_template::Client::TYPE_ID, 4), "BlockTemplate", "getTxSigops"), // signature operations
    (RPC_EXECUTE, "Rpc", "executeRpc"), // JSON-RPC, the methods of the list in json_rpc/methods.rs
    ((chain::Client::TYPE_ID, 1), "Chain", "getHeight"),
    ((chain::Client::TYPE_ID, 27), "Chain", "relayMinFee"), // tests whether the node has our schema's ordinals
    ((chain::Client::TYPE_ID, 30), "Chain", "havePruned"),
    ((chain::Client::TYPE_ID, 31), "Chain", "getPruneHeight"),
    ((chain::Client::TYPE_ID, 33), "Chain", "isInitialBlockDownload"),
    ((chain::Client::TYPE_ID, 34), "Chain", "shutdownRequested"), // whether the node is shutting down
    (message::HANDLE_NOTIFICATIONS, "Chain", "handleNotifications"), // subscription
    ((node::Client::TYPE_ID, 18), "Node", "getNodeCount"),
    ((node::Client::TYPE_ID, 19), "Node", "getNodesStats"),
    ((node::Client::TYPE_ID, 26), "Node", "getTotalBytesRecv"),
    ((node::Client::TYPE_ID, 27), "Node", "getTotalBytesSent"),
    ((node::Client::TYPE_ID, 28), "Node", "getMempoolSize"),
    ((node::Client::TYPE_ID, 29), "Node", "getMempoolDynamicUsage"),
    ((node::Client::TYPE_ID, 30), "Node", "getMempoolMaxUsage"),
    ((node::Client::TYPE_ID, 31), "Node", "getHeaderTip"),
    ((node::Client::TYPE_ID, 34), "Node", "getBestBlockHash"), // tip, if JSON-RPC and Mining return none
    ((node::Client::TYPE_ID, 35), "Node", "getLastBlockTime"),
    ((node::Client::TYPE_ID, 36), "Node", "getVerificationProgress"),
    ((node::Client::TYPE_ID, 37), "Node", "isInitialBlockDownload"),
    (NODE_EXECUTE, "Node", "executeRpc"), // JSON-RPC, the methods of the list in json_rpc/methods.rs
    (message::TRACE_UTXO_CACHE, "Tracing", "traceUtxoCache"), // subscription
    (message::DISCONNECT, "Handler", "disconnect"), // end of a subscription
];

/// A call of the exporter that the guard rejected, and the reason. The exporter logs both, and the guard's error
/// response to the exporter contains both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    /// The rejected method, for example `Mining.9` or `Rpc.executeRpc`; `other` for unknown interfaces and for ordinals
    /// above 63. The text becomes a label value of a metric, so the number of possible texts is limited to a few
    /// hundred.
    pub call: String,
    /// The part of the call that the allow-list does not permit; at most 200 bytes.
    pub reason: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is not permitted", self.call, self.reason)
    }
}

/// Checks the method of a call of the exporter against the allow-list. Also checks the method and the parameters of a
/// JSON-RPC request, and the timeout of `waitTipChanged` (a long poll: the node responds when the tip changes or the
/// timeout passes).
///
/// # Errors
/// The parameters are not a valid Cap'n Proto struct of the method's parameter type.
pub fn check(call: &Call) -> capnp::Result<Result<(), Rejection>> {
    let (id, ordinal) = call.method;
    let Some((_, interface, _)) = ALLOWED.iter().find(|(method, ..)| method.0 == id) else {
        let reason = format!("interface {id:#x}");
        return Ok(Err(Rejection { call: "other".into(), reason }));
    };
    let Some((_, _, name)) = ALLOWED.iter().find(|(method, ..)| *method == call.method) else {
        /// Upper bound of the method ordinals in the IPC schemas of all known versions of the node.
        const MAX_ORDINAL: u16 = 63;
        let call = match ordinal {
            0..=MAX_ORDINAL => format!("{interface}.{ordinal}"),
            _ => "other".into(),
        };
        return Ok(Err(Rejection { call, reason: format!("method {ordinal} of {interface}") }));
    };
    let checked = match call.method {
        RPC_EXECUTE => {
            let parameters: rpc::execute_rpc_params::Reader = call.parameters()?.get_as()?;
            check_request(text(parameters.get_request()?)?, text(parameters.get_uri()?)?)
        }
        NODE_EXECUTE => {
            let parameters: node::execute_rpc_params::Reader = call.parameters()?.get_as()?;
            let (command, json) = (text(parameters.get_command()?)?, text(parameters.get_params()?)?);
            check_command(command, json, text(parameters.get_uri()?)?)
        }
        message::WAIT_TIP_CHANGED => {
            let parameters: mining::wait_tip_changed_params::Reader = call.parameters()?.get_as()?;
            let timeouts = [MiningSchema::Core30, MiningSchema::Core31]
                .map(|schema| schema.encode_timeout(LONG_POLL).to_bits());
            // Both encodings are permitted on every node, because a node with the other schema decodes the number as a
            // timeout that is shorter than `LONG_POLL`.
            let is_permitted = timeouts.contains(&parameters.get_timeout().to_bits());
            if is_permitted { Ok(()) } else { Err("another timeout".into()) }
        }
        _ => Ok(()),
    };
    Ok(checked.map_err(|reason| Rejection { call: format!("{interface}.{name}"), reason }))
}

fn text(reader: capnp::text::Reader<'_>) -> capnp::Result<&str> {
    Ok(reader.to_str()?)
}

/// Method and parameters of a JSON-RPC request from the exporter.
#[derive(Deserialize)]
struct JsonRpcRequest<'a> {
    method: Cow<'a, str>,
    params: Value,
}

/// Checks a request's method and parameters, and that the request equals, byte for byte, the exporter's own encoding of
/// the method and the parameters. The request then contains no batch, duplicate key or escape, which the node's JSON
/// parser and the guard's JSON parser could interpret differently.
fn check_request(request: &str, uri: &str) -> Result<(), String> {
    check_size(request, uri)?;
    let parsed: JsonRpcRequest =
        serde_json::from_str(request).map_err(|_| "a request that is not JSON-RPC".to_string())?;
    methods::check(&parsed.method, &parsed.params)?;
    if request_text(&parsed.method, &parsed.params) != request {
        return Err("a request in an unexpected form".into());
    }
    Ok(())
}

/// Like [`check_request`], for a call of `Node.executeRpc`, whose JSON-RPC method and parameters are separate
/// arguments.
fn check_command(method: &str, parameters: &str, uri: &str) -> Result<(), String> {
    check_size(parameters, uri)?;
    let parsed: Value =
        serde_json::from_str(parameters).map_err(|_| "parameters that are not JSON".to_string())?;
    methods::check(method, &parsed)?;
    // The exporter's own encoding of the parameters.
    let written = parsed.to_string();
    if written == parameters { Ok(()) } else { Err("parameters in an unexpected form".into()) }
}

/// Checks the size of the JSON text, and that the URI is empty, because a URI could select a wallet.
fn check_size(json: &str, uri: &str) -> Result<(), String> {
    if !uri.is_empty() {
        return Err("a URI".into());
    }
    if json.len() > MAX_REQUEST_BYTES {
        return Err(format!("a request of more than {MAX_REQUEST_BYTES} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use capnp::message::Builder;
    use capnp::serialize::write_message_to_words;
    use capnp_rpc::rpc_capnp as protocol;
    use serde_json::json;

    use super::*;
    use std::time::Duration;

    use crate::ipc::guard::message::Message;
    use crate::schema::handler_capnp::handler;

    fn verdict(frame: &[u8]) -> Result<(), Rejection> {
        let frame = message::open(frame).unwrap();
        let Message::Call(call) = Message::parse(&frame, false).unwrap() else { panic!("no call") };
        check(&call).unwrap()
    }

    fn call(
        (interface, ordinal): Method,
        set: impl FnOnce(capnp::any_pointer::Builder),
    ) -> Result<(), Rejection> {
        let mut message = Builder::new_default();
        let mut call = message.init_root::<protocol::message::Builder>().init_call();
        call.set_interface_id(interface);
        call.set_method_id(ordinal);
        call.reborrow().init_target().set_imported_cap(1);
        set(call.init_params().get_content());
        verdict(&write_message_to_words(&message))
    }

    fn rpc_call(request: &str, uri: &str) -> Result<(), Rejection> {
        call(RPC_EXECUTE, |content| {
            let mut parameters = content.init_as::<rpc::execute_rpc_params::Builder>();
            parameters.set_request(request);
            parameters.set_uri(uri);
        })
    }

    fn node_call(command: &str, parameters: &str, uri: &str) -> Result<(), Rejection> {
        call(NODE_EXECUTE, |content| {
            let mut params = content.init_as::<node::execute_rpc_params::Builder>();
            params.set_command(command);
            params.set_params(parameters);
            params.set_uri(uri);
        })
    }

    /// The comment at the end of a line is the name of the node's method that has the ordinal in this line.
    #[test]
    fn methods_that_change_the_node_are_rejected() {
        for (method, call_name) in [
            ((init::Client::TYPE_ID, 6), "Init.6"),     // makeWalletLoader
            ((mining::Client::TYPE_ID, 5), "Mining.5"), // checkBlock
            ((mining::Client::TYPE_ID, 9), "Mining.9"),
            ((block_template::Client::TYPE_ID, 7), "BlockTemplate.7"), // submitSolution
            ((block_template::Client::TYPE_ID, 10), "BlockTemplate.10"), // submitSolution
            ((chain::Client::TYPE_ID, 22), "Chain.22"),                // broadcastTransaction
            ((node::Client::TYPE_ID, 23), "Node.23"),                  // disconnectByAddress
            ((node::Client::TYPE_ID, 12), "Node.12"),                  // startShutdown
            ((node::Client::TYPE_ID, u16::MAX), "other"),
            ((handler::Client::TYPE_ID, 0), "Handler.0"), // destroy
            ((0x1234, 0), "other"),
        ] {
            let rejection = call(method, |_| {}).unwrap_err();
            assert_eq!(rejection.call, call_name);
            assert!(rejection.to_string().len() < 200, "{rejection}");
        }
    }

    #[test]
    fn every_listed_method_is_forwarded() {
        for (method, interface, name) in ALLOWED {
            if ![RPC_EXECUTE, NODE_EXECUTE, message::WAIT_TIP_CHANGED].contains(method) {
                assert_eq!(call(*method, |_| {}), Ok(()), "{interface}.{name}");
            }
        }
        assert_eq!(rpc_call(&request_text("uptime", &json!([])), ""), Ok(()));
        assert_eq!(node_call("getblockhash", "[7]", ""), Ok(()));
    }

    /// A long poll with a longer timeout would delay the shutdown of Core 30, which does not shut down during a long
    /// poll.
    #[test]
    fn long_polls_have_the_exporters_timeout() {
        let wait = |timeout: f64| {
            call(message::WAIT_TIP_CHANGED, |content| {
                content.init_as::<mining::wait_tip_changed_params::Builder>().set_timeout(timeout);
            })
        };
        for schema in [MiningSchema::Core30, MiningSchema::Core31] {
            assert_eq!(wait(schema.encode_timeout(LONG_POLL)), Ok(()));
            for timeout in [Duration::ZERO, 2 * LONG_POLL, Duration::from_secs(86_400)] {
                assert_eq!(wait(schema.encode_timeout(timeout)).unwrap_err().reason, "another timeout");
            }
        }
        for timeout in [f64::MAX, f64::NAN, f64::INFINITY, -1.0] {
            assert!(wait(timeout).is_err());
        }
    }

    /// Compares the allow-list with the method names in the source files of the interfaces, because no test node has
    /// all interfaces and the exporter therefore never makes all calls in the tests.
    #[test]
    fn every_call_of_the_exporter_is_listed() {
        for (interface, source) in [
            ("Chain", include_str!("../chain.rs")),
            ("Node", include_str!("../node.rs")),
            ("BlockTemplate", include_str!("../template.rs")),
            ("Tracing", include_str!("../tracing.rs")),
        ] {
            let words = source.split(|character: char| !(character.is_alphanumeric() || character == '_'));
            let called: Vec<_> = words
                .filter_map(|word| word.strip_suffix("_request"))
                .filter(|call| *call != "create_new_block") // is a method of Mining, not of BlockTemplate
                .map(|call| call.replace('_', "").to_lowercase())
                .collect();
            assert!(!called.is_empty(), "{interface}");
            for call in called {
                let is_listed = ALLOWED
                    .iter()
                    .any(|(_, listed, name)| *listed == interface && name.to_lowercase() == call);
                assert!(is_listed, "{interface}.{call} is called, and the guard rejects it");
            }
        }
    }

    #[test]
    fn json_rpc_in_any_other_form_is_rejected() {
        let uptime = request_text("uptime", &json!([]));
        let wrong = [
            request_text("stop", &json!([])),
            request_text("sendtoaddress", &json!(["a", 1])),
            request_text("uptime", &json!([0])),
            format!("[{uptime}]"),
            format!("[{uptime},{}]", request_text("stop", &json!([]))),
            format!("{uptime}{}", request_text("stop", &json!([]))),
            format!(" {uptime}"),
            uptime.replace("\"id\":1", "\"id\":2"),
            uptime.replace("\"uptime\"", "\"uptime\",\"method\":\"stop\""),
            uptime.replace("\"uptime\"", "\"stop\",\"method\":\"uptime\""),
            uptime.replace("uptime", "upt\\u0069me"),
            uptime.replace("{\"id\"", "{\"x\":0,\"id\""),
            uptime.replace("[]", "{}"),
            uptime.replace("[]", "null"),
            uptime.replace("[]", "[[]]"),
            uptime[..uptime.len() - 1].to_string(),
            format!("{uptime}{}", " ".repeat(MAX_REQUEST_BYTES)),
            String::new(),
            "\"uptime\"".into(),
        ];
        for request in wrong {
            let rejection = rpc_call(&request, "").expect_err(&request);
            assert_eq!(rejection.call, "Rpc.executeRpc");
        }
        for uri in ["/wallet/hot", "/", " "] {
            assert!(rpc_call(&uptime, uri).is_err(), "{uri}");
            assert!(node_call("uptime", "[]", uri).is_err(), "{uri}");
        }
        for (command, parameters) in [
            ("stop", "[]"),
            ("uptime", "[ ]"),
            ("uptime", "{}"),
            ("uptime", "[],[]"),
            ("uptime", ""),
            ("setban", "[\"::/0\",\"add\"]"),
        ] {
            let rejection = node_call(command, parameters, "").unwrap_err();
            assert_eq!(rejection.call, "Node.executeRpc");
        }
    }
}
