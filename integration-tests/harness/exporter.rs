//! The exporter's process and its endpoint.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoind_exporter::init::SUPERVISE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"));
    // Where tests run in a container, too, the process that they start is the exporter.
    command.stdin(Stdio::null()).env_remove("RUST_LOG").env(SUPERVISE, "0");
    command
}

/// A running exporter; killed at the end of its test if it still runs.
pub struct Exporter {
    child: Child,
    log: Arc<Mutex<String>>,
    address: String,
}

impl Exporter {
    /// Beside the node whose socket this is, listening on a port of its own.
    pub fn start(socket: &Path, arguments: &[&str]) -> Self {
        Self::spawn(command().arg(socket).args(arguments))
    }

    /// With any arguments; waits until it says where it serves.
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_and_read(command, usize::MAX)
    }

    /// Where its arguments, or the lack of them, say.
    pub fn spawn_where_it_listens(command: &mut Command) -> Self {
        Self::spawn_as_it_is(command, usize::MAX)
    }

    /// Reads only so much of its log, and leaves the rest in the pipe.
    pub fn spawn_and_read(command: &mut Command, at_most: usize) -> Self {
        Self::spawn_as_it_is(command.args(["--metrics-addr", "127.0.0.1:0"]), at_most)
    }

    /// Without a word on stderr; it serves at this address.
    pub fn spawn_at(command: &mut Command, address: &str) -> Self {
        let child = command.stderr(Stdio::inherit()).spawn().expect("the exporter starts");
        let exporter = Exporter { child, log: Arc::default(), address: address.into() };
        eventually("the exporter serves", || TcpStream::connect(address).ok());
        exporter
    }

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
            std::mem::forget(stderr); // open, and full
        });
        let address = eventually("the exporter says where it serves", || {
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

    pub fn ready(self) -> Self {
        eventually("the exporter is ready", || (self.get("/readyz").0 == 200).then_some(()));
        self
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The status, unless it hangs up.
    pub fn try_request(&self, request: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }

    /// Status, headers and body.
    pub fn request(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.address).expect("the exporter listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_string())
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) =
            self.request(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        (status, body)
    }

    pub fn metrics(&self) -> String {
        self.get("/metrics").1
    }

    /// The sample's value; the name with its labels as printed.
    pub fn value(&self, sample: &str) -> Option<f64> {
        let text = self.metrics();
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
    }

    pub fn wait_for(&self, sample: &str, value: f64) {
        let mut last = None;
        let what = || {
            last = self.value(sample);
            (last == Some(value)).then_some(())
        };
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually(sample, what)));
        assert!(found.is_ok(), "{sample} is {last:?}, expected {value}; log:\n{}", self.log());
    }

    /// How often it has polled.
    pub fn polls(&self) -> f64 {
        self.value("bitcoin_exporter_poll_duration_seconds_count").unwrap()
    }

    pub fn wait_for_polls(&self, more: f64) {
        let before = self.polls();
        eventually("polls go on", || (self.polls() >= before + more).then_some(()));
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the exporter runs");
    }

    /// The process that faces the node, if there is one.
    pub fn guard(&self) -> Option<Pid> {
        let ours = |process: &procfs::process::Process| {
            let stat = process.stat().ok()?;
            let replaces = process.cmdline().ok()?.iter().any(|argument| argument == "--replace");
            (stat.ppid == self.pid().as_raw() && stat.state != 'Z' && !replaces).then_some(())
        };
        let mut processes = procfs::process::all_processes().unwrap().flatten();
        processes.find(|process| ours(process).is_some()).map(|process| Pid::from_raw(process.pid))
    }

    /// The exit status, when it ends by itself.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the exporter ends", || self.child.try_wait().unwrap())
    }

    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended()
    }
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
