//! Starts the USDT exporter, and compiles and runs the program `fixture.c`, which has FIBRE's tracepoints.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use bitcoind_exporter::usdt;

use super::exporter::Exporter;
use super::skip::skip;

/// Returns true if this machine cannot load the BPF programs of this project, and prints that the tests that need BPF
/// are skipped.
pub fn cannot_bpf() -> bool {
    const CAP_SYS_ADMIN: u64 = 21;
    const CAP_BPF: u64 = 39;
    let kernel = usdt::check_kernel();
    let status = procfs::process::Process::myself().and_then(|own| own.status()).unwrap();
    let is_privileged = status.capeff & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN) != 0;
    let machine_can = kernel.is_ok() && is_privileged;
    let loaded = kernel.and_then(|()| usdt::Programs::load(&[usdt::TracepointGroup::Validation]));
    let Err(why) = loaded else { return false };
    skip(&format!("the tests that need BPF, which does not work on this machine: {why:#}"), machine_can);
    true
}

/// A command that runs the USDT exporter without arguments.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitcoind-usdt-exporter"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// Starts the USDT exporter for the process with this PID, and waits until it is ready.
pub fn exporter(pid: u32, arguments: &[&str]) -> Exporter {
    let pid = pid.to_string();
    Exporter::spawn(command().args(["--pid", &pid, "--health-port", "0"]).args(arguments)).ready()
}

/// Compiles `fixture.c` with these options of the C compiler. Returns the path of the binary.
pub fn compile(dir: &Path, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration-tests/usdt/fixture.c");
    let binary = dir.join(format!("fixture{}", options.concat()));
    let status =
        Command::new("cc").args(["-O2", "-pthread", "-o"]).arg(&binary).arg(source).args(options).status();
    assert!(status.expect("a C compiler").success(), "the fixture compiles (Debian: systemtap-sdt-dev)");
    binary
}

/// A running process of the program `fixture.c`. The process is killed when this value is dropped.
pub struct Fixture {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Fixture {
    /// Runs this binary, and waits until it prints that it is ready.
    pub fn start(binary: &Path) -> Self {
        let mut child = Command::new(binary).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut fixture = Fixture { child, input, output };
        fixture.says("ready");
        fixture
    }

    /// Reads a line of the program's output, which must be `what`.
    fn says(&mut self, what: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), what);
    }

    /// PID of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes the program fire the tracepoints of this event, and waits until it has done so.
    pub fn fire(&mut self, event: &str) {
        writeln!(self.input, "{event}").unwrap();
        self.says("fired");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
