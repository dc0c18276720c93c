//! Tests that a guard (the exporter's process that is connected to a real node) forwards only calls that do not change
//! the node, also if an attacker sends messages in place of the exporter.

use std::os::unix::net::UnixStream as Stream;
use std::path::Path;

use bitcoind_exporter::testing::schema::init_capnp::init;
use bitcoind_exporter::testing::schema::mining_capnp::mining;
use bitcoind_exporter::testing::schema::node_capnp::node;
use bitcoind_exporter::testing::schema::proxy_capnp::{thread, thread_map};
use bitcoind_exporter::testing::schema::rpc_capnp::rpc;
use bitcoind_exporter::testing::{OpenFiles, relay};
use capnp::capability::{Client, FromClientHook};
use capnp::traits::HasTypeId;
use capnp_rpc::{RpcSystem, new_client, rpc_twoparty_capnp::Side, twoparty};
use tokio::net::UnixStream;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::node::Node;

/// The client's thread map, which creates no threads.
struct NoThreads;

impl thread_map::Server for NoThreads {}

/// A client in place of the exporter, which sends arbitrary calls to the guard.
struct Attacker {
    init: init::Client,
    thread: thread::Client,
}

impl Attacker {
    async fn behind_guard(socket: &Path) -> Self {
        let node = Stream::connect(socket).unwrap();
        let (ours, exporter) = Stream::pair().unwrap();
        let (mut events, written) = Stream::pair().unwrap();
        std::thread::spawn(move || relay(node, exporter, written, None, OpenFiles::default(), |_| ()));
        std::thread::spawn(move || std::io::copy(&mut events, &mut std::io::sink()));
        ours.set_nonblocking(true).unwrap();
        let (read, write) = UnixStream::from_std(ours).unwrap().into_split();
        let (read, write) = (read.compat(), write.compat_write());
        let network = twoparty::VatNetwork::new(read, write, Side::Client, Default::default());
        let mut system = RpcSystem::new(Box::new(network), None);
        let init: init::Client = system.bootstrap(Side::Server);
        tokio::task::spawn_local(system);
        let mut construct = init.construct_request();
        construct.get().set_thread_map(new_client(NoThreads));
        let threads = construct.send().promise.await.unwrap().get().unwrap().get_thread_map().unwrap();
        let made = threads.make_thread_request().send().promise.await.unwrap();
        Attacker { init, thread: made.get().unwrap().get_result().unwrap() }
    }

    async fn execute(&self, request: &str, uri: &str) -> Result<String, String> {
        let mut make = self.init.make_rpc_or_chain_request();
        make.get().init_context().set_thread(self.thread.clone());
        let made = make.send().promise.await.map_err(|error| error.to_string())?;
        let capability = made.get().unwrap().get_result().get_as_capability::<Client>().unwrap();
        let rpc: rpc::Client = FromClientHook::new(capability.hook);
        let mut call = rpc.execute_rpc_request();
        call.get().init_context().set_thread(self.thread.clone());
        call.get().set_request(request);
        call.get().set_uri(uri);
        let answer = call.send().promise.await.map_err(|error| error.to_string())?;
        Ok(answer.get().unwrap().get_result().unwrap().to_string().unwrap())
    }

    /// Calls the method of Init with this ordinal, which returns an interface, and a method of that interface. The
    /// second call is sent before the response to the first call.
    async fn call(&self, ordinal_of_init: u16, method: (u64, u16)) -> Result<(), String> {
        let client = &self.init.client;
        let make = client.new_call::<init::make_mining_params::Owned, init::make_mining_results::Owned>(
            init::Client::TYPE_ID,
            ordinal_of_init,
            None,
        );
        let mut make = make;
        make.get().init_context().set_thread(self.thread.clone());
        let made = make.send();
        let mut call = made
            .pipeline
            .get_result()
            .client
            .new_call::<init::make_mining_params::Owned, init::make_mining_results::Owned>(
                method.0, method.1, None,
            );
        call.get().init_context().set_thread(self.thread.clone());
        let outcome = call.send().promise.await.map(drop).map_err(|error| error.to_string());
        made.promise.await.unwrap(); // A thread of the node may have only one call at a time.
        outcome
    }
}

fn request(method: &str, params: &str) -> String {
    format!(r#"{{"id":1,"jsonrpc":"2.0","method":"{method}","params":{params}}}"#)
}

fn attack<F: Future<Output = ()>>(node: &Node, attack: impl FnOnce(Attacker) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        attack(Attacker::behind_guard(&node.socket()).await).await;
    });
}

#[test]
fn guard_forwards_no_json_rpc_that_changes_the_node() {
    let node = Node::start(&[]);
    node.mine(101);
    // If the node was built with wallet support, the test also checks that the attacker cannot send coins from a
    // wallet.
    let has_wallet = node.try_cli(&["createwallet", "hot"]).is_ok();
    let address = if has_wallet {
        node.cli(&["getnewaddress"])
    } else {
        "bcrt1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqdku202".into()
    };
    if has_wallet {
        node.cli(&["generatetoaddress", "101", &address]);
    }
    let state = || {
        let balance = node.try_cli(&["getbalance"]).ok();
        (node.cli(&["getbestblockhash"]), node.cli(&["listbanned"]), node.cli(&["getaddednodeinfo"]), balance)
    };
    let before = state();
    attack(&node, async |attacker| {
        let answer = attacker.execute(&request("uptime", "[]"), "").await.unwrap();
        assert!(answer.contains("result"), "the node responds to a reading call: {answer}");
        for (method, params, uri) in [
            ("stop", "[]".to_string(), ""),
            ("sendtoaddress", format!("[\"{address}\",1]"), ""),
            ("getbalance", "[]".into(), ""),
            ("uptime", "[]".into(), "/wallet/hot"),
            ("setban", "[\"198.51.100.7\",\"add\"]".into(), ""),
            ("addnode", "[\"127.0.0.1:1\",\"add\"]".into(), ""),
            ("generatetodescriptor", "[1,\"raw(51)\"]".into(), ""),
            ("dumptxoutset", "[\"dump\",\"latest\"]".into(), ""),
            ("setnetworkactive", "[false]".into(), ""),
            ("logging", "[[\"all\"]]".into(), ""),
        ] {
            let error = attacker.execute(&request(method, &params), uri).await.unwrap_err();
            assert!(error.contains("not permitted"), "{method}: {error}");
        }
        let batch = format!("[{},{}]", request("uptime", "[]"), request("stop", "[]"));
        let twice = request("uptime", "[]").replace("\"params\"", "\"method\":\"stop\",\"params\"");
        for request in [batch, twice, format!("{} ", request("uptime", "[]"))] {
            let error = attacker.execute(&request, "").await.unwrap_err();
            assert!(error.contains("not permitted"), "{request}: {error}");
        }
    });
    assert_eq!(state(), before);
}

#[test]
fn guard_forwards_no_method_that_changes_the_node() {
    let mut node = Node::start(&[]);
    let tip = node.mine(1);
    attack(&node, async |attacker| {
        const MINING: u16 = 3;
        for method in [
            (mining::Client::TYPE_ID, 5),
            (mining::Client::TYPE_ID, 6),
            (mining::Client::TYPE_ID, 9),
            (node::Client::TYPE_ID, 12),
            (node::Client::TYPE_ID, 23),
            (0x94f2_1a48_64bd_2c65, 0),
        ] {
            let error = attacker.call(MINING, method).await.unwrap_err();
            assert!(error.contains("not permitted"), "{method:?}: {error}");
        }
        attacker.execute(&request("uptime", "[]"), "").await.expect("a response to a reading call");
    });
    assert_eq!(node.cli(&["getbestblockhash"]), tip[0]);
    assert!(node.stop().success(), "{}", node.stderr());
    assert_eq!(node.stderr(), "");
}
