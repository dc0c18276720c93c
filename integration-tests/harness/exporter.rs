//! Starts an exporter, reads its log, and sends requests to its HTTP endpoint.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoind_exporter::supervisor::IN_CONTAINER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::{Process, Stat, all_processes};

use super::eventually;

/// A command that runs the IPC exporter without arguments.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"));
    // Without this variable, an exporter that is tested in a container would detect the container, and its supervisor
    // would wait for the guards before it exits.
    command.stdin(Stdio::null()).env_remove("RUST_LOG").env(IN_CONTAINER, "0");
    command
}

/// An IPC or USDT exporter that a test has started. When this value is dropped, the process is killed.
pub struct Exporter {
    child: Child,
    log: Arc<Mutex<String>>,
    address: String,
}

impl Exporter {
    /// Starts an IPC exporter on a free port for the node with this socket, and waits until it logs its address.
    pub fn start(socket: &Path, arguments: &[&str]) -> Self {
        Self::spawn(command().arg(socket).args(arguments))
    }

    /// Runs the exporter `command` on a free port, and waits until the exporter logs the address of its HTTP endpoint.
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_and_read(command, usize::MAX)
    }

    /// Runs the exporter `command` without adding `--metrics-addr`, and waits until the exporter logs the address of
    /// its HTTP endpoint.
    pub fn spawn_without_address(command: &mut Command) -> Self {
        Self::spawn_as_it_is(command, usize::MAX)
    }

    /// Like [`Self::spawn`], but stops reading the log after about `at_most` bytes: the pipe of the log then fills up.
    pub fn spawn_and_read(command: &mut Command, at_most: usize) -> Self {
        Self::spawn_as_it_is(command.args(["--metrics-addr", "127.0.0.1:0"]), at_most)
    }

    /// Runs `command`, whose arguments make the exporter serve at this address. The exporter inherits stderr, and its
    /// log is not read.
    pub fn spawn_at(command: &mut Command, address: &str) -> Self {
        let child = command.stderr(Stdio::inherit()).spawn().expect("the exporter starts");
        let exporter = Exporter { child, log: Arc::default(), address: address.into() };
        eventually("the exporter serves", || TcpStream::connect(address).ok());
        exporter
    }

    /// Runs the exporter `command`, reads about `at_most` bytes of the exporter's log, and waits until the exporter
    /// logs the address of its HTTP endpoint.
    fn spawn_as_it_is(command: &mut Command, at_most: usize) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the exporter starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (mut stderr, lines) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while lines.lock().unwrap().len() < at_most
                && let Ok(read @ 1..) = stderr.read(&mut buffer)
            {
                lines.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
            std::mem::forget(stderr); // keeps the pipe open, which then fills up
        });
        let address = eventually("the exporter logs its address", || {
            let log = log.lock().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the exporter ended with {status}: {log}");
            }
            let (_, rest) = log.split_once("serving metrics on http")?;
            let (_, rest) = rest.split_once("://")?;
            Some(rest.split_once("/metrics")?.0.to_string())
        });
        Exporter { child, log, address }
    }

    /// Waits until `/readyz` returns status 200.
    pub fn ready(self) -> Self {
        eventually("the exporter is ready", || (self.get("/readyz").0 == 200).then_some(()));
        self
    }

    /// The host and port of the exporter's endpoint.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The exporter's log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends a raw HTTP request. Returns the status code, or `None` if the exporter closes the connection without a
    /// response.
    pub fn try_request(&self, request: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }

    /// Sends a raw HTTP request. Returns the bytes of the whole response.
    pub fn request_bytes(&self, request: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.address).expect("the exporter listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("a response");
        answer
    }

    /// Sends a raw HTTP request. Returns the status code, the headers in lower case, and the body of the response.
    pub fn request(&self, request: &str) -> (u16, String, String) {
        let answer = String::from_utf8(self.request_bytes(request)).expect("UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_string())
    }

    /// Requests a page of the endpoint. Returns the status code and the body of the response.
    pub fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) =
            self.request(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        (status, body)
    }

    /// The response of `/metrics` in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.get("/metrics").1
    }

    /// The current value of a sample. `sample` is the metric's name with its labels, as in Prometheus' text format.
    pub fn value(&self, sample: &str) -> Option<f64> {
        let text = self.metrics();
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
    }

    /// Waits until a sample has this value. Panics after 30 seconds.
    pub fn wait_for(&self, sample: &str, value: f64) {
        let mut last = None;
        let what = || {
            last = self.value(sample);
            (last == Some(value)).then_some(())
        };
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually(sample, what)));
        assert!(found.is_ok(), "{sample} is {last:?}, expected {value}; log:\n{}", self.log());
    }

    /// Number of polls of the node that the exporter has completed.
    pub fn polls(&self) -> f64 {
        self.value("bitcoin_exporter_poll_duration_seconds_count").unwrap()
    }

    /// Waits until the exporter has completed this number of additional polls.
    pub fn wait_for_polls(&self, more: f64) {
        let before = self.polls();
        eventually("polls continue", || (self.polls() >= before + more).then_some(()));
    }

    /// PID of the process that the test started: the supervisor of an IPC exporter, or a USDT exporter.
    pub fn supervisor(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// PID of the process that serves the metrics: the child process of an IPC exporter's supervisor, or a USDT
    /// exporter, which has no supervisor.
    pub fn pid(&self) -> Pid {
        eventually("the exporter's process runs", || {
            let started = self.supervisor();
            let name = Process::new(started.as_raw()).and_then(|process| process.stat()).ok()?.comm;
            if name == "bitcoind-usdt-e" { Some(started) } else { child_of(started, "bitcoind-export") }
        })
    }

    /// Sends a signal to the process that serves the metrics.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the exporter runs");
    }

    /// PID of the guard, the exporter's process that is connected to the node. `None` if no guard is running.
    pub fn guard(&self) -> Option<Pid> {
        child_of(self.supervisor(), "bitcoind-guard")
    }

    /// Waits until the exporter exits, and returns its exit status.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the exporter exits", || self.child.try_wait().unwrap())
    }

    /// Sends SIGTERM to the process that the test started, and returns its exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        kill(self.supervisor(), Signal::SIGTERM).expect("the exporter runs");
        self.ended()
    }
}

/// PID of the child process of `parent` with this name. Replacement guards and zombies are ignored.
pub fn child_of(parent: Pid, name: &str) -> Option<Pid> {
    let processes =
        all_processes().unwrap().flatten().filter_map(|process| Some((process.stat().ok()?, process)));
    let is_ours = |(stat, process): &(Stat, Process)| {
        let replaces = || process.cmdline().is_ok_and(|it| it.iter().any(|argument| argument == "--replace"));
        stat.ppid == parent.as_raw() && stat.comm == name && stat.state != 'Z' && !replaces()
    };
    let mut ours = processes.filter(is_ours);
    ours.next().map(|(stat, _)| Pid::from_raw(stat.pid))
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the exporter's log:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
