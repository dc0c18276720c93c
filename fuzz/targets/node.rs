//! Fuzzes a connection of the exporter, with polls and long polls, to a fake node that sends the messages in the input.
#![no_main]

use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bitcoind_exporter::metrics::{Format, Metrics, render};
use bitcoind_exporter::status::Status;
use bitcoind_exporter::testing::SocketPeer;
use bitcoind_exporter::testing::{SessionEnd, open};
use bitcoind_exporter::{Config, Context, NextBlockMode, UtxoTraceMode};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(Metrics::new);

/// The length in bytes of the Cap'n Proto message with which `data` begins, according to the message's segment table.
/// Returns the length of `data` if the message is not complete.
fn message(data: &[u8]) -> usize {
    let number = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().unwrap()) as usize);
    let length = || {
        let segments = number(0)?.checked_add(1).filter(|&segments| segments <= 16)?;
        let words = (1..=segments).map(|segment| number(4 * segment)).sum::<Option<usize>>()?;
        Some((4 + 4 * segments).next_multiple_of(8) + words * 8)
    };
    length().unwrap_or(data.len()).min(data.len())
}

fuzz_target!(|data: &[u8]| {
    // Tokio's clock is paused, and jumps to the next timeout when all tasks wait. Timeouts therefore take no real time.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let config = Config {
            poll_interval: Duration::from_millis(5),
            call_timeout: Duration::from_secs(10),
            utxo_trace: UtxoTraceMode::Auto,
            utxo_trace_budget: Duration::from_millis(50),
            next_block: NextBlockMode::Auto,
            exit_with_node: false,
            http_rpc: None,
            data_directory: Default::default(),
        };
        let status = Arc::new(Status::new(METRICS.clone()));
        let context = Rc::new(Context::new(config, METRICS.clone(), status, CancellationToken::new()));
        let node = SocketPeer::from_pid(std::process::id() as i32, None);
        let exporter = async {
            match open(ours, None, &node, &context).await {
                Ok(session) => session.run(|| false).await,
                Err(end) => end,
            }
        };
        // The fake node sends a message only after the exporter has processed the previous message.
        let peer = async {
            let mut rest = data;
            let mut sink = vec![0; 65_536];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(message(rest).max(1));
                rest = later;
                if theirs.write_all(now).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                while theirs.try_read(&mut sink).is_ok_and(|read| read > 0) {}
            }
            theirs.shutdown().await.ok();
            while theirs.read(&mut sink).await.is_ok_and(|read| read > 0) {}
        };
        let (end, ()) = tokio::join!(exporter, peer);
        assert!(!matches!(end, SessionEnd::ShutdownRequested));
        METRICS.clear_node_values();
    });
    // The exporter's metrics page must stay small, whatever values the node has sent.
    let page = render(&METRICS.families(), &[], Format::OpenMetrics);
    assert!(page.len() < 200_000 && page.ends_with("# EOF\n"));
});
