//! Tests of the file descriptors and the sandbox of the exporter's three processes: supervisor, exporter and guard. The
//! exporter must not be able to reach the node except through its guard.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bitcoind_exporter::sandbox::{self, AllowedFiles, Confinement, SandboxMode};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use procfs::process::{FDTarget, Process};
use seccompiler::{SeccompAction, SeccompFilter, TargetArch};
use tempfile::TempDir;

use crate::exporter::{Exporter, command};
use crate::node::Node;

/// Makes a system call for which no crate has a function, and returns the call's result.
#[allow(unsafe_code, reason = "no crate wraps them")]
fn call(number: i64, arguments: [i64; 4]) -> io::Result<i64> {
    let [a, b, c, d] = arguments;
    // SAFETY: the callers pass only numbers and null pointers.
    match unsafe { libc::syscall(number, a, b, c, d, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Number of sockets of the process `holder` that are connected to the process `peer`.
fn sockets_of(holder: Pid, peer: u32) -> usize {
    let pidfd = call(libc::SYS_pidfd_open, [holder.as_raw().into(), 0, 0, 0]).unwrap();
    let is_connected_to_peer = |fd: i32| {
        let ours =
            call(libc::SYS_pidfd_getfd, [pidfd, fd.into(), 0, 0]).expect("descriptors can be duplicated");
        #[allow(unsafe_code, reason = "it comes from a system call that no crate wraps")]
        // SAFETY: the system call has just created this descriptor.
        let ours = unsafe { OwnedFd::from_raw_fd(ours as i32) };
        getsockopt(&ours, sockopt::PeerCredentials).is_ok_and(|credentials| credentials.pid() as u32 == peer)
    };
    let fds = Process::new(holder.as_raw()).unwrap().fd().unwrap().flatten();
    fds.filter(|fd| matches!(fd.target, FDTarget::Socket(_)) && is_connected_to_peer(fd.fd)).count()
}

#[test]
fn only_supervisor_and_guard_have_the_nodes_socket() {
    let node = Node::start(&[]);
    node.mine(1);
    // The exporter must not inherit a socket of the node on standard input.
    let input = OwnedFd::from(UnixStream::connect(node.socket()).unwrap());
    let mut command = command();
    command.arg(node.socket()).args(["--poll-interval", "50ms"]).stdin(input);
    let exporter = Exporter::spawn(&mut command).ready();
    drop(command);
    let guard = exporter.guard().unwrap();
    assert_eq!(sockets_of(exporter.pid(), node.pid()), 0);
    assert!(sockets_of(guard, node.pid()) >= 1 && sockets_of(exporter.supervisor(), node.pid()) >= 1);
    // The exporter must have no socket of the node after a reconnect.
    nix::sys::signal::kill(guard, Signal::SIGKILL).unwrap();
    exporter.wait_for("bitcoin_exporter_connects_total", 2.0);
    exporter.wait_for("bitcoin_up", 1.0);
    assert_eq!(sockets_of(exporter.pid(), node.pid()), 0);
}

#[test]
fn each_process_is_confined() {
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let status = |pid: Pid| Process::new(pid.as_raw()).unwrap().status().unwrap();
    for (pid, filter) in [(exporter.supervisor(), 0), (exporter.pid(), 2), (exporter.guard().unwrap(), 2)] {
        let status = status(pid);
        let expected = (Some(1), Some(filter));
        // In a container, all processes have the seccomp filter of the container, also the supervisor.
        let own = Process::myself().unwrap().status().unwrap().seccomp;
        assert!((status.nonewprivs, status.seccomp) == expected || own == Some(2), "{pid}: {status:?}");
    }
    exporter.wait_for("bitcoin_exporter_sandbox{part=\"seccomp\"}", 1.0);
    assert!(exporter.value("bitcoin_exporter_sandbox{part=\"landlock\"}").is_some());
    assert!(!exporter.log().contains("sandbox is incomplete") || !has_landlock_6(), "{}", exporter.log());
}

/// Whether the kernel has Landlock ABI 6 or later, which restricts files, TCP ports and signals.
fn has_landlock_6() -> bool {
    call(libc::SYS_landlock_create_ruleset, [0, 0, 1, 0]).is_ok_and(|abi| abi >= 6)
}

#[test]
fn sandbox_off_is_logged_and_exported() {
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &["--sandbox", "off"]).ready();
    assert_eq!(exporter.value("bitcoin_exporter_sandbox{part=\"seccomp\"}"), Some(0.0));
    assert_eq!(exporter.value("bitcoin_exporter_sandbox{part=\"landlock\"}"), Some(0.0));
    assert!(exporter.log().contains("the sandbox is off"), "{}", exporter.log());
}

const ROLE: &str = "TEST_RUNS_IN_SANDBOX";

/// Runs the test with this name in a new process with the environment variable [`ROLE`] set to `role`. Returns the
/// output of the process.
fn again(test: &str, role: &str, dir: &TempDir) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("sandbox::{test}"), "--nocapture"])
        .env(ROLE, role)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Prints whether the sandbox denied the system call that `what` describes.
fn report<T>(what: &str, result: io::Result<T>) {
    let denied = result.err().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    println!("\n{what}: {}", if denied { "denied" } else { "not denied" });
}

/// Makes all system calls that the sandboxes of the exporter and of the guard must deny. Prints for each call whether
/// it was denied.
fn attempt_everything() {
    report("execve", Err::<(), _>(Command::new("/bin/true").exec()));
    report("fork", call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]));
    let parent = i64::from(nix::unistd::getppid().as_raw());
    report("ptrace", call(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), parent, 0, 0]));
    report("process_vm_readv", call(libc::SYS_process_vm_readv, [parent, 0, 0, 0]));
    report("pidfd_getfd", call(libc::SYS_pidfd_getfd, [0, 0, 0, 0]));
    report("kill", call(libc::SYS_kill, [parent, 0, 0, 0]));
    report("connect", UnixStream::connect("node.sock"));
    report("socketpair", UnixStream::pair());
    report("listen", TcpListener::bind("127.0.0.1:0"));
    report("create", File::create("new"));
    report("write", File::options().write(true).open("read/file"));
    report("truncate", call(libc::SYS_truncate, [0, 0, 0, 0]));
    report("unlink", std::fs::remove_file("read/file"));
    report("rename", std::fs::rename("read/file", "read/other"));
    let executable = i64::from(libc::PROT_READ | libc::PROT_EXEC);
    report(
        "mmap",
        call(libc::SYS_mmap, [0, 4096, executable, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into()]),
    );
    report("io_uring", call(libc::SYS_io_uring_setup, [1, 0, 0, 0]));
    report("bpf", call(libc::SYS_bpf, [0, 0, 0, 0]));
    report("setpriority", call(libc::SYS_setpriority, [libc::PRIO_PROCESS.into(), parent, 0, 0]));
    report("setpriority of the user", call(libc::SYS_setpriority, [libc::PRIO_USER.into(), 0, 0, 0]));
    let (family, stream) = (libc::AF_INET.into(), libc::SOCK_STREAM.into());
    report("MPTCP", call(libc::SYS_socket, [family, stream, libc::IPPROTO_MPTCP.into(), 0]));
    report("SCTP", call(libc::SYS_socket, [family, stream, libc::IPPROTO_SCTP.into(), 0]));
    report(
        "raw socket",
        call(libc::SYS_socket, [family, libc::SOCK_RAW.into(), libc::IPPROTO_UDP.into(), 0]),
    );
    for (name, number, flags_at) in [
        ("sendto", libc::SYS_sendto, 3),
        ("sendmsg", libc::SYS_sendmsg, 2),
        ("sendmmsg", libc::SYS_sendmmsg, 3),
    ] {
        let mut arguments = [-1, 0, 0, 0];
        arguments[flags_at] = libc::MSG_FASTOPEN.into();
        report(&format!("{name} that connects"), call(number, arguments));
    }
    report("unshare", call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0]));
    report("seccomp", call(libc::SYS_seccomp, [0, 0, 0, 0]));
}

const DENIED: [&str; 27] = [
    "execve",
    "fork",
    "ptrace",
    "process_vm_readv",
    "pidfd_getfd",
    "kill",
    "connect",
    "socketpair",
    "listen",
    "create",
    "write",
    "truncate",
    "unlink",
    "rename",
    "mmap",
    "io_uring",
    "bpf",
    "setpriority",
    "setpriority of the user",
    "MPTCP",
    "SCTP",
    "raw socket",
    "sendto that connects",
    "sendmsg that connects",
    "sendmmsg that connects",
    "unshare",
    "seccomp",
];

fn prepare(dir: &TempDir) -> UnixListener {
    std::fs::create_dir(dir.path().join("read")).unwrap();
    std::fs::write(dir.path().join("read/file"), "").unwrap();
    std::fs::write(dir.path().join("other"), "").unwrap();
    UnixListener::bind(dir.path().join("node.sock")).unwrap()
}

#[test]
fn confined_exporter_is_denied_unneeded_calls() {
    if let Some(port) = role() {
        let port = port.parse().unwrap();
        let files = AllowedFiles {
            read: vec![PathBuf::from("read/file")],
            connect: vec![port],
            ..AllowedFiles::default()
        };
        Confinement::new(SandboxMode::On).files(&files).filter(sandbox::ipc_exporter(false));
        attempt_everything();
        println!("\nparts: {:?}", sandbox::parts());
        report("open", File::open("other"));
        report("open certificate", File::open("read/file"));
        report("open /proc", File::open("/proc/self/stat"));
        report("connect JSON-RPC", TcpStream::connect(("127.0.0.1", port)));
        report("connect TCP", TcpStream::connect(("127.0.0.1", port - 1)));
        report("thread", std::thread::Builder::new().spawn(|| ()).map(|thread| thread.join().unwrap()));
        report("own priority", call(libc::SYS_setpriority, [libc::PRIO_PROCESS.into(), 0, 19, 0]));
        let datagrams = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC).into();
        report("UDP", call(libc::SYS_socket, [libc::AF_INET.into(), datagrams, 0, 0]));
        std::process::exit(0); // The test harness does not work in the sandbox.
    }
    let dir = TempDir::new().unwrap();
    let (_node, json_rpc) = (prepare(&dir), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = json_rpc.local_addr().unwrap().port().to_string();
    let message = again("confined_exporter_is_denied_unneeded_calls", &port, &dir);
    for what in DENIED {
        assert!(message.contains(&format!("\n{what}: denied")), "{what}\n{message}");
    }
    for what in ["open certificate", "open /proc", "connect JSON-RPC", "thread", "own priority", "UDP"] {
        assert!(message.contains(&format!("\n{what}: not denied")), "{what}\n{message}");
    }
    match has_landlock_6() {
        true => {
            assert!(message.contains("(\"landlock\", true)"), "{message}");
            assert!(
                message.contains("\nopen: denied") && message.contains("\nconnect TCP: denied"),
                "{message}"
            );
        }
        false => eprintln!("SKIPPED: Landlock of this kernel does not confine files, ports and signals"),
    }
}

#[test]
fn confined_guard_is_denied_all_but_its_sockets() {
    if role().is_some() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let record = File::create("record").unwrap();
        sandbox::confine_guard();
        attempt_everything();
        report("open", File::open("read/file"));
        report("socket", TcpStream::connect("127.0.0.1:1"));
        report("thread", std::thread::Builder::new().spawn(|| ()).map(drop));
        let mut byte = [0];
        report("sockets", ours.write_all(b"x").and_then(|()| theirs.read_exact(&mut byte)));
        report("record", std::os::unix::fs::FileExt::write_all_at(&record, b"1,2,3\n", 0));
        report("not waiting", ours.set_nonblocking(true));
        std::process::exit(0);
    }
    let dir = TempDir::new().unwrap();
    let _node = prepare(&dir);
    let message = again("confined_guard_is_denied_all_but_its_sockets", "guard", &dir);
    for what in DENIED.iter().chain(&["open", "socket", "thread"]) {
        assert!(message.contains(&format!("\n{what}: denied")), "{what}\n{message}");
    }
    for what in ["sockets", "record", "not waiting"] {
        assert!(message.contains(&format!("\n{what}: not denied")), "{what}\n{message}");
    }
}

/// Simulates a container whose seccomp filter denies the system calls that install the exporter's sandbox.
#[test]
fn forbidden_sandbox_costs_one_log_line() {
    const TEST: &str = "sandbox::forbidden_sandbox_costs_one_log_line";
    if let Some(socket) = role() {
        let forbidden = [libc::SYS_seccomp, libc::SYS_landlock_create_ruleset].map(|call| (call, Vec::new()));
        let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        let denied = SeccompAction::Errno(libc::EPERM as u32);
        let filter =
            SeccompFilter::new(forbidden.into_iter().collect(), SeccompAction::Allow, denied, arch).unwrap();
        let program: seccompiler::BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        let error = command().arg(socket).args(["--metrics-addr", "127.0.0.1:0"]).exec();
        panic!("{error}");
    }
    let node = Node::start(&[]);
    let mut wrapped = Command::new(std::env::current_exe().unwrap());
    wrapped.args(["--exact", TEST, "--nocapture"]).env(ROLE, node.socket()).stdin(Stdio::null());
    let exporter = Exporter::spawn_without_address(&mut wrapped).ready();
    let log = exporter.log();
    assert_eq!(log.matches("sandbox").count(), 1, "{log}");
    assert!(log.contains("the sandbox is incomplete: no landlock") && log.contains("; no seccomp"), "{log}");
    assert_eq!(exporter.value("bitcoin_exporter_sandbox{part=\"seccomp\"}"), Some(0.0));
    exporter.wait_for("bitcoin_up", 1.0);
    assert!(exporter.guard().is_some());
}
