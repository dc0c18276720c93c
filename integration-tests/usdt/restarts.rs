//! Tests with a real node that is stopped or killed and then restarted, also as a daemon and with another binary.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::command;
use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::node::{bitcoin_cli, bitcoin_node, free_port};

/// A node with its own data directory, which the test restarts. With the argument `-daemonwait`, the node is a daemon.
struct Restarted {
    dir: TempDir,
    program: PathBuf,
    rpc_port: u16,
    arguments: &'static [&'static str],
    starter: Option<Child>,
}

impl Restarted {
    fn new(program: &Path, arguments: &'static [&'static str]) -> Self {
        let dir = TempDir::new().unwrap();
        Restarted { dir, program: program.into(), rpc_port: free_port(), arguments, starter: None }
    }

    fn start(&mut self) {
        let mut node = Command::new(&self.program);
        node.args(["-regtest", "-server", "-listen=0", "-listenonion=0", "-printtoconsole=0"])
            .args([format!("-datadir={}", self.dir.path().display()), format!("-rpcport={}", self.rpc_port)])
            .args(self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // The start can fail for a short time, if a process that another test has forked has the copied binary open for
        // writing.
        self.starter = Some(eventually("the node starts", || node.spawn().ok()));
    }

    fn wait(&self) {
        eventually("the node responds", || self.cli(&["getblockcount"]));
    }

    fn cli(&self, arguments: &[&str]) -> Option<String> {
        let mut cli = Command::new(bitcoin_cli());
        cli.args([format!("-datadir={}", self.dir.path().display()), format!("-rpcport={}", self.rpc_port)]);
        let output = cli.args(["-regtest", "-rpcclienttimeout=30"]).args(arguments).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn mine(&self, blocks: u32) -> Vec<String> {
        let mined = self.cli(&["generatetodescriptor", &blocks.to_string(), "raw(51)"]).expect("blocks");
        serde_json::from_str(&mined).unwrap()
    }

    /// PID of the node's process, from the node's PID file. `None` if no process has this PID.
    fn pid(&self) -> Option<Pid> {
        let pid = std::fs::read_to_string(self.dir.path().join("regtest/bitcoind.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then(|| Pid::from_raw(pid))
    }

    fn end(&mut self, signal: Signal) {
        let pid = self.pid().expect("the node runs");
        kill(pid, signal).unwrap();
        eventually("the node exits", || {
            let _ = self.starter.as_mut()?.try_wait();
            (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
        let _ = self.starter.take().unwrap().wait();
    }
}

impl Drop for Restarted {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        if let Some(mut starter) = self.starter.take() {
            let _ = starter.kill();
            let _ = starter.wait();
        }
    }
}

fn exporter(name: &str, arguments: &[&OsStr]) -> Exporter {
    let mut command = command();
    command.args(["--health-port", "0", "--tracepoints", "validation", "--node-name", name]).args(arguments);
    Exporter::spawn(&mut command)
}

fn connected(exporter: &Exporter, name: &str) -> f64 {
    exporter.value(&format!("bitcoin_blocks_connected_total{{node=\"{name}\"}}")).unwrap_or(0.0)
}

fn is_attached_to(exporter: &Exporter, node: &Restarted) {
    eventually("the node is attached", || {
        let attached = format!("tracepoints of process {} (", node.pid()?);
        let printed = format!("of process {}", node.pid()?);
        let log = exporter.log();
        let is_last = log.rfind(&attached).or(log.rfind(&printed));
        (is_last.is_some() && exporter.get("/ready").0 == 200).then_some(())
    });
}

/// Mines blocks, and checks that the exporter counts each block once.
fn counts_each_block(exporter: &Exporter, node: &Restarted, name: &str) {
    // The exporter's log is searched from here on, because a killed node that has lost its last blocks can mine
    // identical blocks again.
    let start = exporter.log().len();
    let logged = |hash: &str| exporter.log()[start..].matches(&format!("block_hash=\"{hash}\"")).count();
    let all_logged = |hashes: &[String]| {
        eventually("each block is logged", || hashes.iter().all(|hash| logged(hash) > 0).then_some(()));
    };
    // When the exporter has logged a new block, it has also counted the blocks that the node connected during its
    // start.
    all_logged(&node.mine(1));
    let before = connected(exporter, name);
    let mined = node.mine(3);
    all_logged(&mined);
    assert_eq!(connected(exporter, name) - before, 3.0, "{}", exporter.log());
    assert!(mined.iter().all(|hash| logged(hash) == 1), "{}", exporter.log());
}

/// Starts a node with these arguments. Three times, ends the node with this signal and restarts it. During the second
/// restart, the exporter is stopped (SIGSTOP). If `upgrade` is true, the node's binary is replaced before each restart.
fn restarts(arguments: &'static [&'static str], signal: Signal, upgrade: bool) {
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("bitcoin-node");
    std::fs::copy(bitcoin_node(), &program).unwrap();
    let mut node = Restarted::new(&program, arguments);
    let exporter = exporter("relay", &["--bitcoind".as_ref(), program.as_ref()]);
    node.start();
    node.wait();
    is_attached_to(&exporter, &node);
    counts_each_block(&exporter, &node, "relay");
    for is_stopped in [false, true, false] {
        if is_stopped {
            exporter.signal(Signal::SIGSTOP);
        }
        node.end(signal);
        if upgrade {
            let new = dir.path().join("new");
            std::fs::copy(bitcoin_node(), &new).unwrap();
            std::fs::rename(new, &program).unwrap();
        }
        node.start();
        node.wait();
        if is_stopped {
            // Resume the exporter when the new process is three seconds old. Only then does the exporter notice the
            // exit of the old process.
            std::thread::sleep(std::time::Duration::from_secs(3));
            exporter.signal(Signal::SIGCONT);
        }
        is_attached_to(&exporter, &node);
        counts_each_block(&exporter, &node, "relay");
    }
}

pub fn stopped_node_is_attached_again() {
    restarts(&[], Signal::SIGTERM, false);
}

pub fn killed_node_is_attached_again() {
    restarts(&[], Signal::SIGKILL, false);
}

pub fn upgraded_node_is_attached_again() {
    restarts(&[], Signal::SIGTERM, true);
}

pub fn daemonized_node_is_attached_not_its_parent() {
    restarts(&["-daemonwait"], Signal::SIGTERM, false);
}

pub fn child_that_runs_a_command_is_not_the_node() {
    restarts(&["-blocknotify=true", "-startupnotify=true"], Signal::SIGTERM, false);
}

pub fn processes_that_end_at_once_are_not_the_node() {
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("bitcoin-node");
    std::fs::copy(bitcoin_node(), &program).unwrap();
    let exporter = exporter("relay", &["--bitcoind".as_ref(), program.as_ref()]);
    for _ in 0..50 {
        let mut version = Command::new(&program);
        version.arg("-version").stdout(Stdio::null());
        assert!(eventually("the copied program starts", || version.status().ok()).success());
    }
    let mut node = Restarted::new(&program, &[]);
    node.start();
    node.wait();
    is_attached_to(&exporter, &node);
    counts_each_block(&exporter, &node, "relay");
}

/// Stops two nodes with the same binary, and restarts the second node before the first node.
fn two_nodes(name: impl Fn(&Restarted) -> [String; 2]) {
    let (mut first, mut second) =
        (Restarted::new(&bitcoin_node(), &[]), Restarted::new(&bitcoin_node(), &[]));
    let exporters = [(&mut first, "t1"), (&mut second, "t2")].map(|(node, label)| {
        node.start();
        node.wait();
        let [option, value] = name(node);
        let exporter = exporter(label, &[option.as_ref(), value.as_ref()]);
        eventually("the node is attached", || (exporter.get("/ready").0 == 200).then_some(()));
        exporter
    });
    for _ in 0..2 {
        first.end(Signal::SIGTERM);
        second.end(Signal::SIGTERM);
        second.start();
        second.wait();
        is_attached_to(&exporters[1], &second);
        let before = connected(&exporters[0], "t1");
        counts_each_block(&exporters[1], &second, "t2");
        // The exporter of the first node must not trace the second node, also when the second node's process is
        // older than ten seconds (`DIFFERENT_NODE_DELAY`).
        std::thread::sleep(std::time::Duration::from_secs(11));
        assert_eq!(exporters[0].get("/ready").0, 503, "{}", exporters[0].log());
        first.start();
        first.wait();
        is_attached_to(&exporters[0], &first);
        assert_eq!(connected(&exporters[0], "t1"), before);
        counts_each_block(&exporters[0], &first, "t1");
    }
}

pub fn two_nodes_named_by_process_never_swap_names() {
    two_nodes(|node| ["--pid".into(), node.pid().unwrap().to_string()]);
}

pub fn two_nodes_named_by_data_directory_never_swap_names() {
    two_nodes(|node| ["--datadir".into(), node.dir.path().display().to_string()]);
}
