//! Tests that the node neither crashes nor hangs when the exporter exits or when the node shuts down. The tests run
//! with a real node, and with a fake node that has interfaces which the real node lacks.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bitcoind_exporter::supervisor::{EXPORTER, IN_CONTAINER};
use bitcoind_exporter::testing::{OpenFiles, relay};
use capnp::serialize::write_message_to_words;
use capnp_rpc::rpc_capnp::message;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, child_of, command};
use crate::fake::{Event, FakeNode, Offers};
use crate::node::Node;

const TRACING: Offers = Offers { mining: true, chain: true, node: true, tracing: true, ..Offers::NOTHING };

fn assert_stops_in_order(mut node: Node) {
    assert!(node.stop().success(), "{}", node.stderr());
    assert_eq!(node.stderr(), "");
}

#[test]
fn ends_in_the_middle_of_polls_harm_no_node() {
    let node = Node::start(&[]);
    node.mine(3);
    for i in 0..30 {
        let mut exporter = Exporter::start(&node.socket(), &["--poll-interval", "1ms"]);
        // Depending on the delay, the exporter is still starting, is making its first poll, or is making a later poll.
        std::thread::sleep(Duration::from_millis(5 * (i % 10)));
        match i % 3 {
            0 => drop(exporter.terminate()),
            1 => exporter.signal(Signal::SIGKILL),
            _ => kill(exporter.supervisor(), Signal::SIGKILL).unwrap(),
        }
        exporter.ended();
    }
    node.mine(1);
    assert_stops_in_order(node);
}

#[test]
fn node_stops_cleanly_while_exporter_is_stopped() {
    let node = Node::start(&[]);
    // The node's threads that run the calls of clients have names that end in `capnp-loop`. While the node starts,
    // threads for other purposes have such names, too.
    let threads = || {
        let tasks = Process::new(node.pid() as i32).unwrap().tasks().unwrap().flatten();
        tasks.filter_map(|task| task.stat().ok()).filter(|stat| stat.comm.ends_with("capnp-loop")).count()
    };
    let before = eventually("the node has started", || {
        let before = threads();
        let stays = (0..25).all(|_| {
            std::thread::sleep(Duration::from_millis(20));
            threads() == before
        });
        stays.then_some(before)
    });
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "10ms"]).ready();
    exporter.signal(Signal::SIGSTOP);
    // Four threads of the node run the exporter's calls. A fifth thread runs the guard's long poll, by which the guard
    // learns that the node is shutting down.
    eventually("the guard makes its own long poll", || (threads() >= before + 5).then_some(()));
    assert_stops_in_order(node);
    exporter.signal(Signal::SIGCONT);
    exporter.wait_for("bitcoin_exporter_disconnects_total{reason=\"shutdown\"}", 1.0);
}

#[test]
fn subscriptions_end_with_the_node_if_exporter_is_stopped() {
    let node = FakeNode::start(TRACING);
    let exporter = Exporter::start(&node.socket(), &["--utxo-trace", "on"]).ready();
    eventually("the exporter has both subscriptions", || {
        (node.fire(vec![Event::Added, Event::Add(1)]) == 2).then_some(())
    });
    exporter.signal(Signal::SIGSTOP);
    let polled = node.long_polls();
    eventually("the guard polls for the tip", || (node.long_polls() >= polled + 2).then_some(()));
    node.shut_down();
    eventually("both subscriptions ended", || (node.unsubscribed() == 2).then_some(()));
    eventually("the connection is closed", || (node.connections() == 0).then_some(()));
    exporter.signal(Signal::SIGCONT);
    exporter.wait_for("bitcoin_exporter_disconnects_total{reason=\"shutdown\"}", 1.0);
}

#[test]
fn killed_guards_are_replaced_without_subscriptions_too() {
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "1ms"]).ready();
    for kills in 1..=3 {
        kill(exporter.guard().unwrap(), Signal::SIGKILL).unwrap();
        eventually("the replacement guard disconnects", || {
            (exporter.log().matches("starting a replacement to disconnect cleanly").count() == kills)
                .then_some(())
        });
        exporter.wait_for("bitcoin_exporter_connects_total", 1.0 + kills as f64);
        exporter.wait_for("bitcoin_up", 1.0);
    }
    assert_stops_in_order(node);
}

/// The connection between the guard and the node must survive messages that only a faulty exporter sends, such as
/// `abort`.
#[test]
fn exporter_messages_never_end_the_connection() {
    let abort = {
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<message::Builder>().init_abort().set_reason("bye");
        write_message_to_words(&message)
    };
    let release = {
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<message::Builder>().init_release().set_id(77);
        write_message_to_words(&message)
    };
    for (what, bytes) in [
        ("an abort", abort),
        ("a release of what it does not have", release),
        ("no frame", b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        ("a frame that is too large", b"\0\0\0\0\0\0\0\x01".to_vec()),
        ("a frame of garbage", b"\0\0\0\0\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()),
    ] {
        let node = FakeNode::start(TRACING);
        let (mut exporter, theirs) = UnixStream::pair().unwrap();
        let (events, events_theirs) = UnixStream::pair().unwrap();
        let socket = UnixStream::connect(node.socket()).unwrap();
        let guard = std::thread::spawn(move || {
            relay(socket, theirs, events_theirs, None, OpenFiles::default(), |_| ())
        });
        let mut bootstrap = capnp::message::Builder::new_default();
        bootstrap.init_root::<message::Builder>().init_bootstrap().set_question_id(0);
        exporter.write_all(&write_message_to_words(&bootstrap)).unwrap();
        assert!(exporter.read(&mut [0; 4096]).unwrap() > 0);
        exporter.write_all(&bytes).unwrap();
        guard.join().unwrap().unwrap_or_else(|error| panic!("{what}: {error}"));
        eventually("the connection is closed", || (node.connections() == 0).then_some(()));
        assert!(node.faults().is_empty(), "{what}: {:?}", node.faults());
        drop((exporter, events));
    }
}

#[test]
fn second_signal_ends_the_exporter_at_once() {
    let node = FakeNode::start(TRACING);
    let mut exporter =
        Exporter::start(&node.socket(), &["--poll-interval", "50ms", "--call-timeout", "100ms"]).ready();
    node.hang(true);
    exporter.wait_for("bitcoin_up", 0.0);
    kill(exporter.supervisor(), Signal::SIGTERM).unwrap();
    eventually("the process exits", || exporter.log().contains("received SIGTERM, exiting").then_some(()));
    kill(exporter.supervisor(), Signal::SIGINT).unwrap();
    assert_eq!(exporter.ended().code(), Some(128 + Signal::SIGINT as i32));
    node.hang(false);
    eventually("the guard has disconnected", || (node.connections() == 0).then_some(()));
}

#[test]
fn descriptors_of_the_parent_are_closed() {
    let node = Node::start(&[]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let inode = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
    for process in [exporter.supervisor(), exporter.pid(), exporter.guard().unwrap()] {
        for fd in std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten() {
            assert_ne!(std::fs::read_link(fd.path()).ok().as_ref(), Some(&inode), "{fd:?}");
        }
    }
}

#[test]
fn crashed_node_can_restart_beside_its_launched_exporter() {
    let dir = TempDir::new().unwrap();
    let (socket, log) = (dir.path().join("node.sock"), dir.path().join("log"));
    let pid = dir.path().join("pid");
    let notify = format!(
        "-startupnotify=echo $$ >{}; exec {} --metrics-addr 127.0.0.1:0 {} 2>>{}",
        pid.display(),
        env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"),
        socket.display(),
        log.display()
    );
    let mut node = Node::start(&[&format!("-ipcbind=unix:{}", socket.display()), &notify]);
    let connected = |times| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        (text.matches("the node's interfaces").count() >= times).then_some(())
    };
    eventually("the launched exporter is connected", || connected(1));
    let launched: i32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    node.remove_argument(&notify); // The restarted node must not launch a second exporter.
    node.restart();
    eventually("the first node's exporter is connected to the second", || connected(2));
    kill(Pid::from_raw(launched), Signal::SIGTERM).unwrap();
    eventually("the process exits", || Process::new(launched).is_err().then_some(()));
}

/// An exporter that runs as in a container in which another process is PID 1.
struct Supervised {
    supervisor: Exporter,
    exporter: Pid,
    guard: Pid,
}

impl Supervised {
    /// Starts the exporter, and waits until it has subscribed to the chain notifications and to the UTXO cache trace.
    fn start(node: &FakeNode) -> Self {
        let mut command = command();
        command
            .arg(node.socket())
            .args(["--utxo-trace", "on", "--poll-interval", "1ms"])
            .env(IN_CONTAINER, "1");
        let supervisor = Exporter::spawn(&mut command).ready();
        eventually("the exporter has both subscriptions", || {
            (node.fire(vec![Event::Added, Event::Add(1)]) == 2).then_some(())
        });
        let (exporter, guard) = (supervisor.pid(), supervisor.guard().expect("the exporter has a guard"));
        Supervised { supervisor, exporter, guard }
    }
}

fn is_gone(process: Pid) -> bool {
    Process::new(process.as_raw()).and_then(|it| it.stat()).map_or(true, |stat| stat.state == 'Z')
}

#[test]
fn supervisor_outlives_the_guard_of_a_killed_exporter() {
    let node = FakeNode::start(TRACING);
    let mut supervised = Supervised::start(&node);
    node.hang(true);
    // If no call to the node were under way, the guard could exit at once, and the supervisor would have nothing to
    // wait for.
    eventually("a call is under way", || node.hangs().then_some(()));
    kill(supervised.exporter, Signal::SIGKILL).unwrap();
    eventually("the exporter has exited", || is_gone(supervised.exporter).then_some(()));
    std::thread::sleep(Duration::from_millis(300)); // A supervisor that does not wait for the guard would have exited.
    assert!(
        !is_gone(supervised.supervisor.supervisor()),
        "the supervisor exited before the guard, which the end of a container would kill"
    );
    assert!(!is_gone(supervised.guard));
    node.hang(false);
    assert_eq!(supervised.supervisor.ended().signal(), Some(Signal::SIGKILL as i32));
    assert!(is_gone(supervised.guard));
    assert_eq!(node.unsubscribed(), 2);
    eventually("the connection is closed", || (node.connections() == 0).then_some(()));
}

#[test]
fn supervisor_forwards_sigterm() {
    let node = FakeNode::start(TRACING);
    let mut supervised = Supervised::start(&node);
    // A real-time signal must not end the exporter's supervisor process. Some container images are configured to be
    // stopped with such a signal.
    let supervisor = supervised.supervisor.supervisor();
    assert!(Command::new("sh").args(["-c", &format!("kill -37 {supervisor}")]).status().unwrap().success());
    let pending = || Process::new(supervisor.as_raw()).and_then(|it| it.status()).map(|it| it.shdpnd);
    eventually("the supervisor has read the signal", || pending().map_or(true, |it| it == 0).then_some(()));
    assert_eq!(supervised.supervisor.terminate().code(), Some(0), "{}", supervised.supervisor.log());
    assert_eq!(supervised.supervisor.log().matches("received SIGTERM, exiting").count(), 1);
    assert!(is_gone(supervised.exporter) && is_gone(supervised.guard));
    assert_eq!(node.unsubscribed(), 2);
    eventually("the connection is closed", || (node.connections() == 0).then_some(()));
}

#[test]
fn exporter_exits_cleanly_if_its_supervisor_is_killed() {
    let node = FakeNode::start(TRACING);
    let supervised = Supervised::start(&node);
    kill(supervised.supervisor.supervisor(), Signal::SIGKILL).unwrap();
    eventually("the exporter has exited", || is_gone(supervised.exporter).then_some(()));
    assert!(
        supervised.supervisor.log().contains("received SIGTERM, exiting"),
        "{}",
        supervised.supervisor.log()
    );
    eventually("the guard has exited", || is_gone(supervised.guard).then_some(()));
    assert_eq!(node.unsubscribed(), 2);
    eventually("the connection is closed", || (node.connections() == 0).then_some(()));
}

#[test]
fn exporter_does_not_start_without_its_supervisor() {
    let (channel, _theirs) = UnixStream::pair().unwrap();
    fcntl(&channel, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let arguments = [EXPORTER, "1", &channel.as_raw_fd().to_string(), "-", "-", "/nonexistent"];
    let output = command().args(arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("the supervisor (process 1) has exited"), "{stderr}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn container_variable_is_1_or_0() {
    let output = command().env(IN_CONTAINER, "maybe").arg("/nonexistent").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("BITCOIND_IPC_EXPORTER_IN_CONTAINER must be 1 or 0"), "{stderr}");
    assert_eq!(output.status.code(), Some(1));
}

/// A PID namespace in which an exporter runs, as in a container. The value is the process `unshare`, which is outside
/// the namespace and exits when the namespace ends.
struct Container(Child);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Container {
    /// Starts the exporter in a new PID namespace. PID 1 is the exporter or, if `program` is not empty, the command
    /// `program`, which starts the exporter. Returns `None` if this machine cannot create a PID namespace.
    fn start(socket: &Path, program: &[&str]) -> Option<Self> {
        let unshare = |arguments: &[&str]| {
            let mut unshare = Command::new("unshare");
            unshare.args(["--user", "--map-current-user", "--pid", "--fork", "--kill-child", "--mount-proc"]);
            unshare.args(arguments).stdin(Stdio::null());
            unshare
        };
        if !unshare(&["true"]).output().is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: user and PID namespaces cannot be created on this machine");
            return None;
        }
        let child = unshare(program)
            .arg(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"))
            .arg(socket)
            .args(["--poll-interval", "1ms", "--metrics-addr", "127.0.0.1:0"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Container(child))
    }

    fn init(&self) -> Pid {
        let unshare = Pid::from_raw(self.0.id() as i32);
        eventually("PID 1 runs", || child_of(unshare, "bitcoind-ipc-ex"))
    }

    fn exporter(&self) -> Pid {
        let init = self.init();
        eventually("the supervisor has started the exporter", || child_of(init, "bitcoind-export"))
    }
}

#[test]
fn pid_1_disconnects_cleanly() {
    let node = Node::start(&[]);
    for (signal, to_init, code) in [(Signal::SIGTERM, true, 0), (Signal::SIGKILL, false, 128 + 9)] {
        for _ in 0..3 {
            let Some(mut container) = Container::start(&node.socket(), &[]) else { return };
            let exporter = container.exporter();
            eventually("the exporter has a guard", || child_of(container.init(), "bitcoind-guard"));
            std::thread::sleep(Duration::from_millis(50)); // time in which the exporter polls the node
            kill(if to_init { container.init() } else { exporter }, signal).unwrap();
            let ended = eventually("the container exits", || container.0.try_wait().unwrap());
            assert_eq!(ended.code(), Some(code), "{signal}");
        }
    }
    assert_stops_in_order(node);
}

#[test]
fn pid_1_exits_although_sigchld_was_ignored() {
    let node = FakeNode::start(TRACING);
    let ignored = ["env", "--ignore-signal=CHLD"];
    let Some(mut container) = Container::start(&node.socket(), &ignored) else { return };
    container.exporter();
    eventually("the exporter has a guard", || child_of(container.init(), "bitcoind-guard"));
    kill(container.init(), Signal::SIGTERM).unwrap();
    let ended = eventually("the container exits", || container.0.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
}

/// The test starts a second exporter in the PID namespace of the first exporter, as `docker exec` would do.
#[test]
fn pid_1_waits_for_other_exporters_in_its_container() {
    let node = FakeNode::start(TRACING);
    for in_container in ["0", "1"] {
        let Some(mut container) = Container::start(&node.socket(), &[]) else { return };
        container.exporter();
        let init = container.init();
        let mut beside = Command::new("nsenter");
        beside.args(["--user", "--preserve-credentials", "--pid", "--mount", "--target", &init.to_string()]);
        beside
            .arg(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"))
            .arg(node.socket())
            .env(IN_CONTAINER, in_container);
        let mut beside = Exporter::spawn(&mut beside).ready();
        eventually("both are subscribed", || (node.fire(vec![Event::Added]) == 2).then_some(()));
        kill(init, Signal::SIGTERM).unwrap();
        let ended = eventually("the container exits", || container.0.try_wait().unwrap());
        assert_eq!(ended.code(), Some(0));
        assert_eq!(beside.ended().code(), Some(0), "{}", beside.log());
        assert_eq!(beside.log().matches("received SIGTERM, exiting").count(), 1, "{}", beside.log());
        eventually("the connections are closed", || (node.connections() == 0).then_some(()));
        assert!(node.faults().is_empty(), "{:?}", node.faults());
    }
}

/// The exporter reads the names of all threads of the node's process. The fake node therefore runs in a separate
/// process: this test with the environment variable in AS_NODE.
#[test]
fn core_30_is_not_queried_before_its_chain_is_loaded() {
    const AS_NODE: &str = "TEST_IS_A_LOADING_NODE";
    if std::env::var_os(AS_NODE).is_some() {
        let node = FakeNode::start(Offers { core30: true, loading: true, ..Offers::NOTHING });
        println!("socket: {}", node.socket().display());
        let _ = std::io::stdin().read(&mut [0]);
        node.load();
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "shutdown::core_30_is_not_queried_before_its_chain_is_loaded", "--nocapture"])
        .env(AS_NODE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(process.stdout.take().unwrap()));
    let socket = lines.find_map(|line| Some(line.unwrap().split_once("socket: ")?.1.to_string())).unwrap();
    let exporter = Exporter::spawn(command().arg(&socket));
    eventually("the exporter waits for the node", || {
        exporter.log().contains("the node is starting").then_some(())
    });
    std::thread::sleep(Duration::from_millis(600)); // The exporter reads the thread names several times.
    assert_eq!(exporter.value("bitcoin_up"), Some(0.0));
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(b"x").unwrap();
    exporter.wait_for("bitcoin_up", 1.0);
    drop((exporter, stdin));
    assert!(process.wait().unwrap().success(), "the fake node was asked too early");
}
