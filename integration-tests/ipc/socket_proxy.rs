//! Tests with a proxy between the exporter and the node's socket. The proxy is a separate process, which keeps running
//! when the node exits.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::Exporter;
use crate::harness::proxy::Proxy;
use crate::node::Node;

const NODE: &str = "TEST_IS_A_SOCKET_PROXY_OF";

/// The process of a proxy: this test binary with the environment variable [`NODE`].
struct ProxyProcess {
    child: Child,
    /// The reading end of the pipe from the proxy's stdout. The reading end must stay open, because Rust's test harness
    /// in the proxy's process writes to stdout after the test.
    _output: BufReader<ChildStdout>,
    socket: PathBuf,
    dir: TempDir,
}

impl ProxyProcess {
    fn start(node: &Path) -> Self {
        let dir = TempDir::new().unwrap();
        symlink(node, dir.path().join("node")).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "socket_proxy::process_of_a_proxy_is_not_the_node", "--nocapture"])
            .env(NODE, dir.path().join("node"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut lines = output.by_ref().lines();
        let socket = lines.find_map(|line| Some(line.unwrap().split_once("socket: ")?.1.into())).unwrap();
        ProxyProcess { child, _output: output, socket, dir }
    }

    /// Makes the proxy forward new connections to the node's socket `node`.
    fn forward_to(&self, node: &Path) {
        let (new, link) = (self.dir.path().join("new"), self.dir.path().join("node"));
        symlink(node, &new).unwrap();
        std::fs::rename(new, link).unwrap();
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn process_of_a_proxy_is_not_the_node() {
    if let Some(node) = std::env::var_os(NODE) {
        let proxy = Proxy::start(Path::new(&node));
        println!("socket: {}", proxy.socket().display());
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let mut node = Node::start(&[]);
    node.mine(3);
    let age = || node.json(&["uptime"]).as_f64().unwrap();
    eventually("the node is older than the proxy", || (age() >= 8.0).then_some(()));
    let proxy = ProxyProcess::start(&node.socket());
    let exporter = Exporter::start(&proxy.socket, &[]).ready();
    exporter.wait_for("bitcoin_chain_height", 3.0);
    let direct = Exporter::start(&node.socket(), &[]).ready();
    let of_process = "bitcoin_node_process_threads";
    eventually("the node's own process is shown", || direct.value(of_process));
    assert_eq!(exporter.value(of_process), None);
    let start = |exporter: &Exporter| exporter.value("bitcoin_node_start_time_seconds").unwrap();
    assert!((start(&exporter) - start(&direct)).abs() <= 3.0, "{} {}", start(&exporter), start(&direct));
    drop(direct);
    // When the node exits, the exporter must not wait for the exit of the proxy, which listens on the socket.
    node.stop();
    exporter.wait_for("bitcoin_up", 0.0);
    node.restart();
    exporter.wait_for("bitcoin_up", 1.0);
}

/// Number of bytes of P2P messages that the exporter has counted.
fn counted(exporter: &Exporter) -> f64 {
    let text = exporter.metrics();
    let samples = text.lines().filter(|line| line.starts_with("bitcoin_p2p_message_bytes_total{"));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Number of bytes that a node has exchanged with its only peer, according to getpeerinfo.
fn moved(node: &Node) -> f64 {
    let totals = |field: &str| -> f64 {
        let peers: Value = node.json(&["getpeerinfo"]);
        peers[0][field].as_f64().unwrap_or(0.0)
    };
    totals("bytessent") + totals("bytesrecv")
}

#[test]
fn traffic_of_another_long_running_node_is_not_counted() {
    let mut node = Node::start(&[]);
    let other = Node::start(&[]);
    other.mine(120);
    let peer = Node::start(&[]);
    other.cli(&["addnode", &format!("127.0.0.1:{}", peer.p2p_port), "onetry"]);
    eventually("the other node's peer has its blocks", || {
        (peer.cli(&["getblockcount"]) == "120").then_some(())
    });
    let proxy = ProxyProcess::start(&node.socket());
    let exporter = Exporter::start(&proxy.socket, &["--poll-interval", "500ms"]).ready();
    exporter.wait_for("bitcoin_peers", 0.0);
    let polls = || exporter.value("bitcoin_exporter_poll_duration_seconds_count").unwrap();
    // The exporter must not count the previous traffic of a peer that connected before the exporter's last poll. The
    // node reports connection times in whole seconds, and the test therefore waits for four polls (two seconds) after
    // the peer of `other` connected.
    let before = polls();
    eventually("polls continue", || (polls() >= before + 4.0).then_some(()));
    proxy.forward_to(&other.socket());
    node.stop();
    exporter.wait_for("bitcoin_peers", 1.0);
    let (counted, moved) = (counted(&exporter), moved(&other));
    assert!(moved > 20_000.0 && counted < moved / 4.0, "{counted} of {moved}");
}
