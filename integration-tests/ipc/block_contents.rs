//! Tests that the metrics about connected blocks and about the tip's block agree with getblockstats of a real node:
//! over IPC, over HTTP beside IPC, and over HTTP only.

use std::os::unix::fs::FileExt;

use bitcoin::hex::FromHex;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::exporter::{Exporter, command};
use crate::harness::without_rpc::WithoutRpc;
use crate::node::Node;

/// Counters of connected blocks, each with the field of getblockstats whose values the counter adds up.
const COUNTED: [(&str, &str); 7] = [
    ("bitcoin_connected_transactions_total", "txs"),
    ("bitcoin_connected_inputs_total", "ins"),
    ("bitcoin_connected_outputs_total", "outs"),
    ("bitcoin_connected_weight_total", "total_weight"),
    ("bitcoin_connected_bytes_total", "total_size"),
    ("bitcoin_connected_fees_satoshis_total", "totalfee"),
    ("bitcoin_connected_output_value_satoshis_total", "total_out"),
];

/// Gauges of the tip's block, each with the field of getblockstats that is the gauge's value.
const SHOWN: [(&str, &str); 10] = [
    ("bitcoin_last_block_transactions", "txs"),
    ("bitcoin_last_block_inputs", "ins"),
    ("bitcoin_last_block_outputs", "outs"),
    ("bitcoin_last_block_weight", "total_weight"),
    ("bitcoin_last_block_size_bytes", "total_size"),
    ("bitcoin_last_block_fees_satoshis", "totalfee"),
    ("bitcoin_last_block_output_value_satoshis", "total_out"),
    ("bitcoin_last_block_subsidy_satoshis", "subsidy"),
    ("bitcoin_last_block_segwit_transactions", "swtxs"),
    ("bitcoin_last_block_utxo_increase", "utxo_increase"),
];

fn stats(node: &Node, block: &str) -> Value {
    node.json(&["getblockstats", &format!("\"{block}\"")])
}

/// Waits until each counter is the sum over the blocks in `connected`, and each gauge is the value of the last block.
fn expect(node: &Node, exporter: &Exporter, connected: &[String]) {
    let all: Vec<_> = connected.iter().map(|block| stats(node, block)).collect();
    for (counter, field) in COUNTED {
        exporter.wait_for(counter, all.iter().map(|stats| stats[field].as_f64().unwrap()).sum());
    }
    let last = all.last().unwrap();
    for (gauge, field) in SHOWN {
        exporter.wait_for(gauge, last[field].as_f64().unwrap());
    }
    for (percentile, rate) in
        ["10", "25", "50", "75", "90"].iter().zip(last["feerate_percentiles"].as_array().unwrap())
    {
        let sample = format!("bitcoin_last_block_feerate_sat_per_vbyte{{percentile=\"{percentile}\"}}");
        match last["txs"].as_u64() {
            Some(1) => assert_eq!(exporter.value(&sample), None),
            _ => exporter.wait_for(&sample, rate.as_f64().unwrap()),
        }
    }
    assert_eq!(exporter.value("bitcoin_exporter_uncounted_blocks_total"), Some(0.0));
}

/// Mines blocks with transactions and causes a reorg, and checks the metrics after each step.
fn contents_are_those_of_getblockstats(node: &Node, old: &[String], exporter: &Exporter) {
    exporter.wait_for("bitcoin_blocks_connected_total", 0.0);
    assert_eq!(exporter.value("bitcoin_connected_fees_satoshis_total"), Some(0.0));
    for (block, fee) in old.iter().zip([1000, 5_000, 20_000, 70_000]) {
        node.spend_coinbase_of(block, fee);
    }
    let mut connected = node.mine(1);
    expect(node, exporter, &connected);
    // The node connects three blocks while the exporter is stopped. The exporter then learns only of the new tip, and
    // finds the two blocks below the tip by their hashes in the headers.
    exporter.signal(Signal::SIGSTOP);
    node.spend_coinbase_of(&old[4], 3_000);
    connected.extend(node.mine(3));
    exporter.signal(Signal::SIGCONT);
    expect(node, exporter, &connected);
    // The counters include the blocks of both branches, because all of these blocks were connected.
    exporter.signal(Signal::SIGSTOP);
    node.cli(&["invalidateblock", &connected[2]]);
    let branch = node.json(&["generatetodescriptor", "3", "raw(52)"]);
    connected.extend(branch.as_array().unwrap().iter().map(|block| block.as_str().unwrap().to_string()));
    exporter.signal(Signal::SIGCONT);
    expect(node, exporter, &connected);
    exporter.wait_for("bitcoin_blocks_disconnected_total", 2.0);
    let failures = "bitcoin_exporter_poll_failures_total{call=\"getblockstats\"}";
    assert_eq!(exporter.value(failures), Some(0.0));
}

const OFTEN: [&str; 2] = ["--poll-interval", "200ms"];

#[test]
fn block_contents_are_counted_over_ipc() {
    let node = Node::start(&[]);
    let old = node.mine(110);
    let exporter = Exporter::start(&node.socket(), &OFTEN).ready();
    contents_are_those_of_getblockstats(&node, &old, &exporter);
}

#[test]
fn block_contents_are_counted_over_http_beside_ipc() {
    let node = Node::start(&[]);
    let old = node.mine(110);
    let without = WithoutRpc::start(&node.socket());
    let cookie = node.dir().join("regtest/.cookie").display().to_string();
    let url = node.rpc_url();
    let arguments = [&OFTEN[..], &["--rpc-url", &url, "--rpc-cookie-file", &cookie]].concat();
    let exporter = Exporter::start(&without.socket(), &arguments).ready();
    contents_are_those_of_getblockstats(&node, &old, &exporter);
}

#[test]
fn block_contents_are_counted_without_ipc() {
    let node = Node::start_bitcoind(&[]);
    let old = node.mine(110);
    let exporter = Exporter::spawn(command().args(node.over_http()).args(OFTEN)).ready();
    contents_are_those_of_getblockstats(&node, &old, &exporter);
}

#[test]
fn only_the_block_that_cannot_be_read_is_not_counted() {
    let node = Node::start(&["-blocksxor=0"]);
    node.mine(1);
    let exporter = Exporter::start(&node.socket(), &OFTEN).ready();
    exporter.wait_for("bitcoin_exporter_uncounted_blocks_total", 0.0);
    exporter.signal(Signal::SIGSTOP);
    let blocks = node.mine(5);
    // Overwrite the header of the fourth block in the node's block file. The node then responds to getblockstats for
    // this block with the error code -1.
    let path = node.dir().join("regtest/blocks/blk00000.dat");
    let header = Vec::from_hex(&node.cli(&["getblockheader", &blocks[3], "false"])).unwrap();
    let blocks = std::fs::read(&path).unwrap();
    let position = blocks.windows(header.len()).position(|bytes| bytes == header).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0; header.len()], position as u64).unwrap();
    exporter.signal(Signal::SIGCONT);
    exporter.wait_for("bitcoin_blocks_connected_total", 5.0);
    exporter.wait_for("bitcoin_connected_transactions_total", 4.0);
    exporter.wait_for("bitcoin_exporter_uncounted_blocks_total", 1.0);
}

#[test]
fn blocks_that_the_node_lacks_are_no_failures() {
    let node = Node::start(&[]);
    let old = node.mine(101);
    let exporter = Exporter::start(&node.socket(), &OFTEN).ready();
    exporter.wait_for("bitcoin_exporter_uncounted_blocks_total", 0.0);
    exporter.signal(Signal::SIGSTOP);
    node.spend_coinbase_of(&old[0], 1000);
    node.mine(3);
    // The test deletes the block files and does not prune the node, because a pruned node would keep its last 288
    // blocks.
    for file in ["blk00000.dat", "rev00000.dat"] {
        std::fs::remove_file(node.dir().join("regtest/blocks").join(file)).unwrap();
    }
    exporter.signal(Signal::SIGCONT);
    exporter.wait_for("bitcoin_blocks_connected_total", 3.0);
    exporter.wait_for("bitcoin_exporter_uncounted_blocks_total", 3.0);
    assert_eq!(exporter.value("bitcoin_connected_transactions_total"), Some(0.0));
    assert_eq!(exporter.value("bitcoin_last_block_transactions"), None);
    let failures = "bitcoin_exporter_poll_failures_total{call=\"getblockstats\"}";
    assert_eq!(exporter.value(failures), Some(0.0));
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
}
