//! Tests with a real `bitcoind`, which has no IPC and which the exporter polls over HTTP only.

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::node::Node;

const USED: &str = "bitcoin_exporter_interface{interface=\"http-rpc\"}";

fn beside(node: &Node, more: &[&str]) -> Exporter {
    Exporter::spawn(command().args(node.over_http()).args(more)).ready()
}

#[test]
fn blocks_and_reorganizations_are_counted_without_ipc() {
    let mut node = Node::start_bitcoind(&[]);
    let blocks = node.mine(10);
    let exporter = beside(&node, &[]);
    exporter.wait_for(USED, 1.0);
    exporter.wait_for("bitcoin_chain_height", 10.0);
    exporter.wait_for("bitcoin_blocks_connected_total", 0.0);
    node.mine(30);
    exporter.wait_for("bitcoin_blocks_connected_total", 30.0);
    exporter.wait_for("bitcoin_block_height", 40.0);
    assert!(exporter.value("bitcoin_tip_updates_total").unwrap() >= 1.0);
    // This reorg disconnects 33 blocks and connects 35 blocks within one interval of the exporter's checks of the tip.
    node.cli(&["invalidateblock", &blocks[7]]);
    node.cli(&["generatetodescriptor", "35", "raw(52)"]);
    exporter.wait_for("bitcoin_chain_height", 42.0);
    exporter.wait_for("bitcoin_block_height", 42.0);
    let counted = |name: &str| exporter.value(name).unwrap();
    assert_eq!(
        counted("bitcoin_blocks_connected_total") - counted("bitcoin_blocks_disconnected_total"),
        32.0
    );
    assert_eq!(counted("bitcoin_blocks_disconnected_total"), 33.0);

    // While the node is down, the exporter exports no metrics about the node. The restarted node has a new cookie, and
    // the exporter counts the blocks that the node connected before the exporter reconnected.
    node.stop();
    exporter.wait_for("bitcoin_up", 0.0);
    exporter.wait_for("bitcoin_exporter_disconnects_total{reason=\"lost\"}", 1.0);
    assert_eq!(exporter.value("bitcoin_chain_height"), None);
    let connected = counted("bitcoin_blocks_connected_total");
    node.restart();
    node.mine(3);
    exporter.wait_for("bitcoin_blocks_connected_total", connected + 3.0);
    exporter.wait_for("bitcoin_up", 1.0);
    assert_eq!(exporter.log().matches("polling the node over HTTP only").count(), 2, "{}", exporter.log());
}

/// Simulates a node's restart after a crash, in which the node starts at an earlier tip and connects later blocks
/// again.
#[test]
fn rollback_between_two_calls_is_no_reorg() {
    let mut node = Node::start_bitcoind(&[]);
    let blocks = node.mine(20);
    let exporter = beside(&node, &[]);
    exporter.wait_for("bitcoin_blocks_connected_total", 0.0);
    let uptime = || node.cli(&["uptime"]).parse::<u64>().unwrap();
    let began = uptime();
    eventually("the exporter has run long enough to detect a restart", || {
        (uptime() > began + 3).then_some(())
    });
    exporter.signal(Signal::SIGSTOP);
    node.stop();
    node.restart();
    node.cli(&["invalidateblock", &blocks[14]]);
    exporter.signal(Signal::SIGCONT);
    exporter.wait_for("bitcoin_chain_height", 14.0);
    node.cli(&["reconsiderblock", &blocks[14]]);
    node.mine(3);
    exporter.wait_for("bitcoin_blocks_connected_total", 3.0);
    assert_eq!(exporter.value("bitcoin_blocks_disconnected_total"), Some(0.0));
    // If the node was not restarted, the exporter counts the same change of the tip as a reorg.
    node.cli(&["invalidateblock", &blocks[17]]);
    exporter.wait_for("bitcoin_blocks_disconnected_total", 6.0);
    assert_eq!(exporter.value("bitcoin_exporter_uncounted_tip_changes_total"), Some(0.0));
}

#[test]
fn node_restarted_with_ipc_is_polled_over_ipc() {
    let mut node = Node::start(&["-noipcbind"]);
    node.mine(3);
    let exporter = beside(&node, &["--poll-interval", "500ms"]);
    exporter.wait_for(USED, 1.0);
    node.stop();
    node.remove_argument("-noipcbind");
    node.restart();
    exporter.wait_for("bitcoin_exporter_interface{interface=\"rpc\"}", 1.0);
    assert_eq!(exporter.value(USED), None);
    node.mine(2);
    exporter.wait_for("bitcoin_chain_height", 5.0);
}

#[test]
fn check_and_once_need_no_ipc_and_report_errors() {
    let node = Node::start_bitcoind(&[]);
    node.mine(3);
    let run = |arguments: &[&str]| {
        let output = command().args(arguments).output().unwrap();
        let message = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(message).unwrap())
    };
    let arguments = node.over_http();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (good, message) = run(&[&arguments[..], &["--check"]].concat());
    assert!(good && message.contains("connection: HTTP only ("), "{message}");
    assert!(message.contains(&format!("JSON-RPC over HTTP: {}", node.rpc_url())), "{message}");
    assert!(message.contains("  bitcoin_difficulty\n"), "{message}");
    assert!(
        message.contains("\nto get more metrics: run bitcoin-node with -ipcbind=unix")
            && !message.contains("(--rpc on)"),
        "{message}"
    );
    let (good, message) = run(&[&arguments[..], &["--once"]].concat());
    assert!(
        good && message.contains("\nbitcoin_chain_height 3\n") && message.contains("\nbitcoin_up 1\n"),
        "{message}"
    );

    // If neither IPC nor HTTP works, the exporter's error message contains the reasons for both failures. If the
    // arguments contain a socket path, the exporter does not fall back to HTTP only.
    let (good, message) = run(&[&arguments[..4], &["--rpc-url", "http://127.0.0.1:1", "--check"]].concat());
    assert!(
        !good && message.contains("no such socket") && message.contains("connection refused"),
        "{message}"
    );
    let socket = node.socket();
    let (good, message) = run(&[&arguments[..], &["--check", socket.to_str().unwrap()]].concat());
    assert!(!good && message.contains("no such socket") && !message.contains("HTTP"), "{message}");
    let (good, message) =
        run(&[&arguments[..2], &arguments[4..], &["--chain", "signet", "--check"]].concat());
    assert!(!good && message.contains("cookie"), "{message}");
}

#[test]
fn missing_node_is_awaited() {
    let dir = TempDir::new().unwrap();
    let datadir = dir.path().to_str().unwrap();
    let exporter = Exporter::spawn(command().args(["--datadir", datadir, "--rpc-url", "http://127.0.0.1:1"]));
    eventually("the exporter logs both reasons", || {
        let log = exporter.log();
        (log.contains("no such socket") && log.contains("there is no cookie at")).then_some(())
    });
    std::fs::write(dir.path().join(".cookie"), "__cookie__:1").unwrap();
    eventually("the exporter logs the new reason", || {
        exporter.log().contains("connection refused").then_some(())
    });
    assert_eq!(exporter.log().matches("cannot connect").count(), 2, "{}", exporter.log());
    assert_eq!(exporter.value("bitcoin_up"), Some(0.0));
}

#[test]
fn process_of_a_node_without_ipc_is_found_by_its_pid_file() {
    let mut node = Node::start_bitcoind(&[]);
    let exporter = beside(&node, &["--poll-interval", "200ms"]);
    exporter.wait_for("bitcoin_exporter_interface{interface=\"http-rpc\"}", 1.0);
    let threads = "bitcoin_node_process_threads";
    eventually("the process is found", || exporter.value(threads).filter(|threads| *threads > 5.0));
    assert!(exporter.value("bitcoin_node_process_resident_memory_bytes") > Some(1e6));
    eventually("the threads have used time", || {
        exporter
            .value("bitcoin_node_process_cpu_seconds_total{thread=\"msghand\"}")
            .filter(|seconds| *seconds > 0.0)
    });
    let started = exporter.value("bitcoin_node_start_time_seconds");
    // The restarted node is another process with another PID.
    node.stop();
    exporter.wait_for("bitcoin_exporter_disconnects_total{reason=\"lost\"}", 1.0);
    assert_eq!(exporter.value(threads), None);
    node.restart();
    exporter.wait_for("bitcoin_up", 1.0);
    eventually("the next process is found", || exporter.value(threads).filter(|threads| *threads > 5.0));
    assert!(exporter.value("bitcoin_node_start_time_seconds") >= started);
    // The node's PID file contains the PID of a process that is not a node.
    node.stop();
    node.restart();
    std::fs::write(node.dir().join("regtest/bitcoind.pid"), "1\n").unwrap();
    let other = beside(&node, &["--poll-interval", "200ms"]);
    other.wait_for_polls(3.0);
    assert_eq!(other.value(threads), None);
}
