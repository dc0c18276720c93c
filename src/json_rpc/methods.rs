//! The JSON-RPC methods that the exporter calls, with the permitted parameters of each method. No method in the list
//! changes the node's state.
//!
//! The exporter checks each call against this list and rejects all other calls. The guard, the process that relays the
//! exporter's IPC messages to the node, makes the same check.

use serde_json::Value;

/// The permitted values of one parameter of a method.
enum Parameter {
    /// An integer between the two numbers, inclusive.
    Integer(i64, i64),
    /// A block hash: 64 lower-case hex digits.
    Hash,
    /// An array of names of response fields, for getblockstats.
    Names,
}
use Parameter::{Hash, Integer, Names};

/// Name and parameters of each method, in alphabetical order.
const METHODS: &[(&str, &[Parameter])] = &[
    ("estimatesmartfee", &[Integer(1, 1008)]),
    ("getaddednodeinfo", &[]),
    ("getaddrmaninfo", &[]),
    ("getbestblockhash", &[]),
    ("getblockchaininfo", &[]),
    ("getblockhash", &[Integer(0, i32::MAX as i64)]),
    ("getblockheader", &[Hash]),
    ("getblockstats", &[Hash, Names]),
    ("getchainstates", &[]),
    ("getchaintips", &[]),
    ("getdeploymentinfo", &[]),
    ("getindexinfo", &[]),
    ("getmemoryinfo", &[]),
    ("getmempoolfeeratediagram", &[]),
    ("getmempoolinfo", &[]),
    ("getmininginfo", &[]),
    ("getnettotals", &[]),
    ("getnetworkhashps", &[Integer(1, 2016)]),
    ("getnetworkinfo", &[]),
    ("getorphantxs", &[Integer(0, 1)]),
    ("getpeerinfo", &[]),
    ("getprivatebroadcastinfo", &[]),
    ("getrpcinfo", &[]),
    ("getudppeerinfo", &[]),
    ("getzmqnotifications", &[]),
    ("listbanned", &[]),
    ("uptime", &[]),
];

/// Checks that the list permits a call of the method `name` with these parameters.
///
/// # Errors
/// The method is not in the list, or its parameters are not permitted. The error text names the method and has a
/// bounded length.
pub(crate) fn check(name: &str, parameters: &Value) -> Result<(), String> {
    /// Maximum number of characters of an unknown method name in the error text.
    const SHOWN: usize = 40;
    let Some((_, permitted)) = METHODS.iter().find(|(listed, _)| *listed == name) else {
        return Err(format!("method {:?}", name.chars().take(SHOWN).collect::<String>()));
    };
    let parameters = parameters.as_array().filter(|list| list.len() == permitted.len());
    let is_permitted = parameters
        .is_some_and(|list| permitted.iter().zip(list).all(|(parameter, value)| parameter.permits(value)));
    if is_permitted { Ok(()) } else { Err(format!("parameters of {name}")) }
}

impl Parameter {
    fn permits(&self, value: &Value) -> bool {
        const MAX_NAMES: usize = 32;
        const MAX_NAME_LENGTH: usize = 32;
        let is_name = |name: &Value| {
            name.as_str().is_some_and(|name| {
                (1..=MAX_NAME_LENGTH).contains(&name.len())
                    && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            })
        };
        match self {
            Integer(min, max) => value.as_i64().is_some_and(|number| (*min..=*max).contains(&number)),
            Hash => value.as_str().is_some_and(|hash| {
                hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            }),
            Names => {
                value.as_array().is_some_and(|names| names.len() <= MAX_NAMES && names.iter().all(is_name))
            }
        }
    }
}

/// The names of all methods that the exporter may call.
pub fn method_names() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|(name, _)| *name)
}

/// Returns the line for `bitcoin.conf` that restricts the RPC user `user` to the methods that the exporter calls.
pub fn whitelist_line(user: &str) -> String {
    format!("rpcwhitelist={user}:{}", method_names().collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn known_methods_are_permitted_with_their_parameters() {
        let hash = "0".repeat(64);
        for (name, parameters) in [
            ("uptime", json!([])),
            ("estimatesmartfee", json!([144])),
            ("getblockhash", json!([0])),
            ("getblockheader", json!([hash])),
            ("getblockstats", json!([hash, ["txs", "total_weight"]])),
        ] {
            assert_eq!(check(name, &parameters), Ok(()), "{name}");
        }
        for (name, parameters) in [
            ("stop", json!([])),
            ("uptime", json!([1])),
            ("uptime", json!({})),
            ("uptime", Value::Null),
            ("estimatesmartfee", json!([0])),
            ("estimatesmartfee", json!([1009])),
            ("estimatesmartfee", json!(["6"])),
            ("getblockhash", json!([-1])),
            ("getblockheader", json!(["x".repeat(64)])),
            ("getblockheader", json!([hash, false])),
            ("getblockstats", json!([hash, ["txs\""]])),
            ("getblockstats", json!([hash, vec!["txs"; 33]])),
        ] {
            assert!(check(name, &parameters).is_err(), "{name} {parameters}");
        }
        let long = check(&"é".repeat(1000), &json!([])).unwrap_err();
        assert!(long.chars().count() < 60, "{long}");
    }

    #[test]
    fn docs_list_the_whitelist() {
        let page = include_str!("../../docs/json-rpc.md");
        let line = whitelist_line("exporter");
        assert!(page.lines().any(|found| found.trim() == line), "docs/json-rpc.md lacks this line: {line}");
    }
}
