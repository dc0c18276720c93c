//! Tests that the IPC exporter, with its sandbox, writes a row for each new block to the block store, a database on a
//! real PostgreSQL server.

use serde_json::Value;
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::harness::postgres::{self, Postgres};
use crate::harness::skip::skip;
use crate::node::Node;

fn number(rows: &[Vec<String>], column: usize) -> f64 {
    rows[0][column].parse().unwrap()
}

#[test]
fn tips_are_stored_with_their_resolution_and_the_rank_is_shown() {
    if postgres::programs().is_none() {
        return skip("the tests that need PostgreSQL (integration-tests/debian-packages postgresql)", true);
    }
    let dir = TempDir::new().unwrap();
    let mut postgres = Postgres::start();
    let node = Node::start(&["-logtimemicros"]);
    node.mine(1); // Initial block download, in which the exporter stores no blocks, ends.
    let (file, password) = (dir.path().join("blocks.sqlite"), postgres.password_file());
    let url = postgres.url("sslmode=prefer");
    let arguments = ["--chain", "regtest", "--node-name", "ipc-node", "--block-log", file.to_str().unwrap()];
    let arguments =
        [&arguments[..], &["--block-store", &url, "--block-store-password-file", password.to_str().unwrap()]];
    let start = || Exporter::start(&node.socket(), &arguments.concat()).ready();
    let mut exporter = start();
    let first = node.mine(1).remove(0);
    let times = "SELECT encode(block_hash, 'hex'), extract(epoch FROM connected_at), resolution_us, source, chain, \
                 transactions, complete_at FROM propagation.blocks ORDER BY block_height";
    let rows = eventually("the row arrives", || postgres.try_rows(times).filter(|rows| !rows.is_empty()));
    assert_eq!(
        (rows[0][0].as_str(), &rows[0][2..]),
        (first.as_str(), &["50000", "ipc", "regtest", "", ""].map(String::from)[..])
    );
    let log = std::fs::read_to_string(node.dir().join("regtest/debug.log")).unwrap();
    let tip = log.lines().find(|line| line.contains("UpdateTip") && line.contains(&first)).unwrap();
    let tip = humantime::parse_rfc3339(tip.split(' ').next().unwrap()).unwrap();
    let tip = tip.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(number(&rows, 1) >= tip - 0.001, "a tip cannot be seen before it is one: {rows:?}, {tip}");

    // While PostgreSQL is stopped, the row of the new block waits in the block log (the exporter's SQLite file), also
    // after the exporter has exited.
    postgres.stop();
    let second = node.mine(1).remove(0);
    eventually("the row waits", || {
        (exporter.value("bitcoin_block_store_rows_waiting")? == 1.0).then_some(())
    });
    exporter.terminate();
    postgres.start_again();
    exporter = start();
    let rows = eventually("the row arrives", || postgres.try_rows(times).filter(|rows| rows.len() == 2));
    assert_eq!(rows[1][0], second);

    // The node's rank (its place among all nodes by the time at which they connected the block) is missing if the clock
    // of this machine is not synchronized, and the test therefore checks only the hash.
    let third = node.mine(1).remove(0);
    eventually("the page has the block", || {
        let status: Value = serde_json::from_str(&exporter.get("/status.json").1).unwrap();
        (status["ranks"][0]["block_hash"] == third.as_str()).then_some(())
    });
    assert_eq!(exporter.value("bitcoin_exporter_sandbox{part=\"seccomp\"}"), Some(1.0));
    assert_eq!(exporter.value("bitcoin_block_store_rows_dropped_total"), Some(0.0));
}

#[test]
fn unix_socket_of_the_store_is_rejected() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("blocks.sqlite");
    let mut exporter = command();
    exporter.arg(dir.path().join("node.sock")).args(["--node-name", "a", "--block-log"]).arg(&file);
    let refused = exporter.args(["--block-store", "postgres://u@%2Frun%2Fpostgresql/d"]).output().unwrap();
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && message.contains("allows no Unix sockets"), "{message}");
}
