//! Fuzzes the exporter's HTTP endpoint with arbitrary bytes from a client.
#![no_main]

use std::time::Duration;

use bitcoind_exporter::http::{Endpoint, EndpointScope, Pages, WebConfig};
use bitcoind_exporter::metrics::Format;
use bitcoind_exporter::testing::{Authenticated, GracefulShutdown, serve_connection};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The pages that the fuzzed endpoint serves, with fixed contents.
struct FixedPages;

impl Pages for FixedPages {
    fn metrics(&self, _: Format) -> String {
        "bitcoin_up 1\n".repeat(100)
    }
    fn ready(&self) -> Result<(), String> {
        Err("not ready".into())
    }
    fn index(&self) -> String {
        "index".into()
    }
    fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

fuzz_target!(|data: &[u8]| {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (mut read, mut write) = tokio::io::split(theirs);
        // The first byte of the input selects the client's behavior. If the lowest bit is set, the client does not read
        // for a minute. If the second lowest bit is set, the client does not close the connection.
        let (first, requests) = data.split_first().map_or((0, data), |(first, rest)| (*first, rest));
        let reader = async {
            if first & 1 == 1 {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            let mut answers = Vec::new();
            read.read_to_end(&mut answers).await.unwrap();
            answers
        };
        let writer = async {
            let _ = write.write_all(requests).await;
            if first & 2 == 0 {
                let _ = write.shutdown().await;
            }
        };
        let open = Endpoint::new(EndpointScope::Everything, WebConfig::default(), &[]);
        let graceful = GracefulShutdown::new();
        let served = async {
            // Tokio's clock is paused, and jumps to the next timeout when all tasks wait. A timeout here means that a
            // client can keep a connection open for as long as it likes.
            tokio::time::timeout(
                Duration::from_secs(3600),
                serve_connection(ours, &open, &FixedPages, &Authenticated::default(), graceful.watcher()),
            )
            .await
            .expect("ends")
        };
        let (_, (), answers) = tokio::join!(served, writer, reader);
        assert!(
            answers.is_empty() || answers.starts_with(b"HTTP/1."),
            "the endpoint sends only HTTP responses"
        );
    });
});
