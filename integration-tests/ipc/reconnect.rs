//! Tests that the exporter's counters remain correct when it reconnects to the node and when calls to the node fail.

use std::process::Command;

use serde_json::{Value, json};

use crate::eventually;
use crate::exporter::Exporter;
use crate::fake::{Event, FakeNode, Offers};
use crate::harness::proxy::Proxy;
use crate::node::Node;

/// The sum of the values of all samples whose line begins with `family`.
fn sum(exporter: &Exporter, family: &str) -> f64 {
    let text = exporter.metrics();
    let samples = text.lines().filter(|line| line.starts_with(family));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Number of bytes of all messages that the node has exchanged with its current peers, according to getpeerinfo.
fn message_bytes(node: &Node) -> f64 {
    let peers = node.json(&["getpeerinfo"]);
    let totals = |peer: &Value, field: &str| -> f64 {
        peer[field].as_object().unwrap().values().map(|total| total.as_f64().unwrap()).sum()
    };
    peers
        .as_array()
        .unwrap()
        .iter()
        .map(|peer| totals(peer, "bytesrecv_per_msg") + totals(peer, "bytessent_per_msg"))
        .sum()
}

#[test]
fn traffic_is_counted_once_over_a_reconnect_to_the_same_node() {
    let listening = Node::start(&[]);
    let node = Node::start(&[&format!("-connect=127.0.0.1:{}", listening.p2p_port)]);
    listening.mine(20);
    eventually("the blocks are relayed", || (node.cli(&["getblockcount"]) == "20").then_some(()));
    let proxy = Proxy::start(&node.socket());
    let exporter = Exporter::start(&proxy.socket(), &["--poll-interval", "100ms"]).ready();
    // The exporter's count is lower than the node's count by the bytes before the exporter's start, a constant
    // difference.
    let counted = || sum(&exporter, "bitcoin_p2p_message_bytes_total{");
    let before = eventually("no messages are on their way", || {
        let difference = || message_bytes(&node) - counted();
        let first = difference();
        exporter.wait_for_polls(3.0);
        (first > 0.0 && first == difference()).then_some(first)
    });
    let agrees = |when: &str| eventually(when, || (before + counted() == message_bytes(&node)).then_some(()));
    listening.mine(1);
    eventually("a block is relayed", || (node.cli(&["getblockcount"]) == "21").then_some(()));
    agrees("it counts what the node counts");
    assert!(counted() > 0.0);
    proxy.cut();
    listening.mine(1);
    proxy.resume(&node.socket());
    exporter.wait_for("bitcoin_exporter_connects_total", 2.0);
    exporter.wait_for("bitcoin_up", 1.0);
    agrees("it still does");
}

#[test]
fn blocks_that_come_during_a_reconnect_are_counted() {
    let node = Node::start(&[]);
    node.mine(10);
    let proxy = Proxy::start(&node.socket());
    let exporter = Exporter::start(&proxy.socket(), &[]).ready();
    node.mine(1);
    exporter.wait_for("bitcoin_blocks_connected_total", 1.0);
    proxy.cut();
    node.mine(4);
    let tip = node.cli(&["getbestblockhash"]);
    node.cli(&["invalidateblock", &tip]);
    // The coinbases of the new blocks pay to another script (52 instead of 51). With the same script, the first new
    // block would be identical to the invalidated block.
    node.cli(&["generatetodescriptor", "30", "raw(52)"]);
    proxy.resume(&node.socket());
    // The exporter counts the blocks at the heights 11 to 44. The invalidated block is not counted, because it was
    // connected and disconnected while the exporter was disconnected.
    exporter.wait_for("bitcoin_blocks_connected_total", 34.0);
    assert_eq!(exporter.value("bitcoin_blocks_disconnected_total"), Some(0.0));
    assert_eq!(exporter.value("bitcoin_block_height"), Some(44.0));

    // A reorg of two blocks happens while the exporter is disconnected.
    proxy.cut();
    node.cli(&["invalidateblock", &node.cli(&["getblockhash", "43"])]);
    node.mine(5);
    proxy.resume(&node.socket());
    exporter.wait_for("bitcoin_blocks_connected_total", 39.0);
    assert_eq!(exporter.value("bitcoin_blocks_disconnected_total"), Some(2.0));
    assert_eq!(exporter.value("bitcoin_exporter_uncounted_tip_changes_total"), Some(0.0));
}

/// After a crash, a node starts at its last flushed tip and connects the blocks above it again, which is no reorg.
#[test]
fn node_back_at_a_lower_height_has_not_reorganized() {
    let node = Node::start(&[]);
    node.mine(30);
    let proxy = Proxy::start(&node.socket());
    let exporter = Exporter::start(&proxy.socket(), &[]).ready();
    exporter.wait_for("bitcoin_blocks_connected_total", 0.0);
    let block = node.cli(&["getblockhash", "21"]);
    proxy.cut();
    node.cli(&["invalidateblock", &block]);
    proxy.resume(&node.socket());
    exporter.wait_for("bitcoin_chain_height", 20.0);
    exporter.wait_for("bitcoin_up", 1.0);
    node.cli(&["reconsiderblock", &block]);
    node.mine(1);
    exporter.wait_for("bitcoin_blocks_connected_total", 1.0);
    assert_eq!(exporter.value("bitcoin_blocks_disconnected_total"), Some(0.0));
    node.cli(&["invalidateblock", &node.cli(&["getbestblockhash"])]);
    exporter.wait_for("bitcoin_blocks_disconnected_total", 1.0);
}

#[test]
fn another_chain_is_an_uncounted_tip_change() {
    let (node, other) = (Node::start(&[]), Node::start(&[]));
    node.mine(5);
    other.cli(&["generatetodescriptor", "7", "raw(52)"]);
    let proxy = Proxy::start(&node.socket());
    let exporter = Exporter::start(&proxy.socket(), &[]).ready();
    exporter.wait_for("bitcoin_exporter_uncounted_tip_changes_total", 0.0);
    proxy.cut();
    proxy.resume(&other.socket());
    exporter.wait_for("bitcoin_exporter_uncounted_tip_changes_total", 1.0);
    other.mine(3);
    exporter.wait_for("bitcoin_blocks_connected_total", 3.0);
    assert_eq!(exporter.value("bitcoin_exporter_uncounted_tip_changes_total"), Some(1.0), "once");
    assert_eq!(exporter.value("bitcoin_blocks_disconnected_total"), Some(0.0));
}

/// The node responds to getblockheader with an error or with a malformed result.
#[test]
fn failed_and_malformed_answers_lose_no_block() {
    let error = json!({"error": {"code": -32603, "message": "Internal error"}});
    for answer in [error, json!({"result": null}), json!({"result": {"confirmations": 1}})] {
        blocks_after(&answer);
    }
}

fn blocks_after(answer: &Value) {
    let node = FakeNode::start(Offers { mining: true, rpc: true, ..Offers::default() });
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    exporter.wait_for("bitcoin_blocks_connected_total", 0.0);
    node.answer_headers(Some(answer.clone()));
    node.set_tip(9);
    let failures = "bitcoin_exporter_poll_failures_total{call=\"getblockheader\"}";
    eventually("the exporter retries", || exporter.value(failures).filter(|&failures| failures >= 2.0));
    node.set_tip(12);
    eventually("the exporter retries again", || exporter.value(failures).filter(|&failures| failures >= 4.0));
    assert_eq!(exporter.value("bitcoin_blocks_connected_total"), Some(0.0));
    node.answer_headers(None);
    exporter.wait_for("bitcoin_blocks_connected_total", 5.0);
    exporter.wait_for("bitcoin_block_height", 47.0);
    assert_eq!(exporter.value("bitcoin_tip_updates_total"), Some(2.0));
    assert_eq!(exporter.value("bitcoin_blocks_disconnected_total"), Some(0.0));
    assert_eq!(exporter.log().matches("cannot count the blocks").count(), 1, "{}", exporter.log());
}

#[test]
fn reconnect_blocks_are_counted_beside_notifications() {
    let node = FakeNode::start(Offers { mining: true, chain: true, node: true, ..Offers::default() });
    let proxy = Proxy::start(&node.socket());
    let mut exporter = Exporter::start(&proxy.socket(), &[]).ready();
    eventually("the exporter is subscribed", || (node.fire(vec![Event::Added]) == 1).then_some(()));
    node.set_tip(8);
    node.fire(vec![Event::Connected { height: 43, data: Vec::new() }]);
    exporter.wait_for("bitcoin_blocks_connected_total", 1.0);
    eventually("the long poll waits for the next tip", || (node.last_awaited_tip() == 8).then_some(()));
    proxy.cut();
    exporter.wait_for("bitcoin_up", 0.0);
    eventually("the node has seen the end of the connection", || (node.connections() == 0).then_some(()));
    node.clear_faults();
    node.set_tip(12);
    node.answer_headers(Some(json!({"result": null})));
    proxy.resume(&node.socket());
    let failures = "bitcoin_exporter_poll_failures_total{call=\"getblockheader\"}";
    eventually("the exporter retries", || exporter.value(failures).filter(|&failures| failures >= 2.0));
    node.answer_headers(None);
    exporter.wait_for("bitcoin_blocks_connected_total", 5.0);
    assert_eq!(exporter.value("bitcoin_exporter_uncounted_tip_changes_total"), Some(0.0));
    eventually("the exporter is subscribed again", || (node.fire(vec![Event::Added]) == 1).then_some(()));
    node.set_tip(13);
    node.fire(vec![Event::Connected { height: 48, data: Vec::new() }]);
    exporter.wait_for("bitcoin_blocks_connected_total", 6.0);
    exporter.wait_for("bitcoin_block_height", 48.0);
    // The exporter must disconnect cleanly before the proxy is dropped, because the proxy closes the connection.
    assert!(exporter.terminate().success());
    eventually("the guard has disconnected", || (node.connections() == 0).then_some(()));
}

#[test]
fn counts_stay_when_a_poll_fails() {
    let node = FakeNode::start(Offers { mining: true, chain: true, node: true, ..Offers::default() });
    let options = ["--call-timeout", "200ms", "--poll-interval", "50ms"];
    let exporter = Exporter::start(&node.socket(), &options).ready();
    eventually("the exporter is subscribed", || (node.fire(vec![Event::Added]) == 1).then_some(()));
    node.fire(vec![Event::Connected { height: 100, data: Vec::new() }]);
    exporter.wait_for("bitcoin_block_height", 100.0);
    node.hang(true);
    exporter.wait_for("bitcoin_up", 0.0);
    eventually("values read from the node are removed", || {
        exporter.value("bitcoin_chain_height").is_none().then_some(())
    });
    assert_eq!(exporter.value("bitcoin_block_height"), Some(100.0), "what was counted stays");
    node.hang(false);
    exporter.wait_for("bitcoin_up", 1.0);
    assert_eq!(exporter.value("bitcoin_block_height"), Some(100.0));
}

#[test]
fn historical_blocks_are_no_blocks_of_the_active_chain() {
    let node = FakeNode::start(Offers { mining: true, chain: true, node: true, ..Offers::default() });
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    eventually("the exporter is subscribed", || (node.fire(vec![Event::Added]) == 1).then_some(()));
    let data = bitcoin::consensus::serialize(&bitcoin::blockdata::constants::genesis_block(
        bitcoin::Network::Bitcoin,
    ));
    node.fire(vec![
        Event::Connected { height: 100, data: data.clone() },
        Event::Historical { height: 3, data: data.clone() },
        Event::Historical { height: 4, data },
        Event::Tip,
    ]);
    exporter.wait_for("bitcoin_tip_updates_total", 1.0);
    exporter.wait_for("bitcoin_historical_blocks_connected_total", 2.0);
    exporter.wait_for("bitcoin_connected_transactions_total", 1.0);
    assert_eq!(exporter.value("bitcoin_blocks_connected_total"), Some(1.0));
    assert_eq!(exporter.value("bitcoin_connected_outputs_total"), Some(1.0));
    assert_eq!(exporter.value("bitcoin_block_height"), Some(100.0));
}

/// The systemd units set `ProcSubset=pid`, which leaves only the folders of processes visible in /proc.
#[test]
fn exporter_start_time_needs_no_proc_stat() {
    let script = "mount -t proc -o subset=pid proc /proc && test ! -e /proc/stat && exec \"$@\"";
    let isolated = |program: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args([
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
            "sh",
        ]);
        unshare.arg(program);
        unshare
    };
    if !isolated("true").status().is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: /proc cannot be mounted on this machine");
    }
    let before = bitcoind_exporter::metrics::now();
    let mut command_in_namespace = isolated(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"));
    let exporter = Exporter::spawn(command_in_namespace.arg("/nonexistent/node.sock"));
    let started = exporter.value("process_start_time_seconds");
    let now = bitcoind_exporter::metrics::now();
    assert!(started.is_some_and(|started| (before..=now).contains(&started)), "{before} {started:?} {now}");
}
