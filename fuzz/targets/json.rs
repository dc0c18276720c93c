//! Fuzzes the parsers of JSON-RPC results. A fake node responds to each request with the next line of the input.
#![no_main]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bitcoind_exporter::metrics::{Format, Metrics, render};
use bitcoind_exporter::status::Status;
use bitcoind_exporter::testing::SocketPeer;
use bitcoind_exporter::testing::open;
use bitcoind_exporter::testing::schema::init_capnp::init;
use bitcoind_exporter::testing::schema::proxy_capnp::{thread, thread_map};
use bitcoind_exporter::testing::schema::rpc_capnp::rpc;
use bitcoind_exporter::{Config, Context, NextBlockMode, UtxoTraceMode};
use capnp::Error;
use capnp::capability::FromClientHook;
use capnp_rpc::{RpcSystem, new_client, rpc_twoparty_capnp::Side, twoparty};
use libfuzzer_sys::fuzz_target;
use tokio::net::UnixStream;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::sync::CancellationToken;

static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(Metrics::new);

/// A fake node whose JSON-RPC results are the lines of the input.
#[derive(Clone)]
struct Node {
    answers: Rc<Vec<String>>,
    next: Rc<Cell<usize>>,
}

impl thread_map::Server for Node {
    async fn make_thread(
        self: Rc<Self>,
        _: thread_map::MakeThreadParams,
        mut results: thread_map::MakeThreadResults,
    ) -> Result<(), Error> {
        results.get().set_result(new_client((*self).clone()));
        Ok(())
    }
}

impl thread::Server for Node {}

impl init::Server for Node {
    async fn construct(
        self: Rc<Self>,
        _: init::ConstructParams,
        mut results: init::ConstructResults,
    ) -> Result<(), Error> {
        results.get().set_thread_map(new_client((*self).clone()));
        Ok(())
    }

    async fn make_rpc_or_chain(
        self: Rc<Self>,
        _: init::MakeRpcOrChainParams,
        mut results: init::MakeRpcOrChainResults,
    ) -> Result<(), Error> {
        let rpc: rpc::Client = new_client((*self).clone());
        results.get().init_result().set_as_capability(rpc.into_client_hook());
        Ok(())
    }
}

impl rpc::Server for Node {
    async fn execute_rpc(
        self: Rc<Self>,
        _: rpc::ExecuteRpcParams,
        mut results: rpc::ExecuteRpcResults,
    ) -> Result<(), Error> {
        let next = self.next.replace(self.next.get() + 1);
        results.get().set_result(&self.answers[next % self.answers.len()]);
        Ok(())
    }
}

fuzz_target!(|text: &str| {
    let mut answers = vec![r#"{"id":1,"result":1}"#.to_string(); 2]; // the exporter calls uptime twice before the first poll
    answers.extend(text.lines().map(|line| format!(r#"{{"id":1,"result":{line}}}"#)));
    let node = Node { answers: answers.into(), next: Rc::default() };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = SocketPeer::from_pid(std::process::id() as i32, None);
        let (read, write) = theirs.into_split();
        let network =
            twoparty::VatNetwork::new(read.compat(), write.compat_write(), Side::Server, Default::default());
        let init: init::Client = new_client(node);
        let server = tokio::task::spawn_local(RpcSystem::new(Box::new(network), Some(init.client)));
        let config = Config {
            poll_interval: Duration::from_secs(15),
            call_timeout: Duration::from_secs(10),
            utxo_trace: UtxoTraceMode::Off,
            utxo_trace_budget: Duration::ZERO,
            next_block: NextBlockMode::Off,
            exit_with_node: false,
            http_rpc: None,
            data_directory: Default::default(),
        };
        let status = Arc::new(Status::new(METRICS.clone()));
        let context = Rc::new(Context::new(config, METRICS.clone(), status, CancellationToken::new()));
        if let Ok(mut session) = open(ours, None, &process, &context).await {
            assert_eq!(session.interfaces.names(), ["rpc"]);
            let mut poller = session.poller();
            for _ in 0..2 {
                let _ = poller.poll().await;
                let page = render(&METRICS.families(), &[], Format::OpenMetrics);
                assert!(page.len() < 200_000, "the page grows: {} bytes", page.len());
                for line in page.lines().filter(|line| !line.starts_with('#')) {
                    let value = line.rsplit(' ').next().unwrap();
                    let number: f64 = value.parse().expect(line);
                    assert!(!number.is_nan() && number.is_finite(), "{line}");
                }
            }
            session.close().await;
        }
        METRICS.clear_node_values();
        server.abort();
    });
});
