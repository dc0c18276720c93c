//! The main loop of the supervisor, the parent process of the exporter and of the guards (processes that relay messages
//! between the node and the exporter). The supervisor's only thread waits for signals and for requests of the exporter.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio, exit};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use procfs::process::Process;

use super::channel::{self, ConnectFailure, PrivateUsage, SupervisorReply, SupervisorRequest};
use super::connection::GuardedConnection;
use super::node_socket::{NodeSocket, errno};
use super::{EXPORTER, EXPORTER_NAME, container};
use crate::{cli, http, scheduling, sys, systemd};

/// Interval at which the supervisor checks, after the exporter has exited, whether guards or other exporters are still
/// running.
const REAP_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum time for which the supervisor waits for the guards after the exporter has exited, if the guards survive the
/// supervisor's exit.
const GUARD_EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of concurrent connections to the node. More than one connection is needed, because a connection that
/// the exporter no longer uses stays open until the node has responded to all calls.
const MAX_CONNECTIONS: usize = 4;

/// Runs the exporter process with the arguments of this process. Returns the exporter's exit code when the exporter has
/// exited; in a container, only when the guards have exited, too. If a signal ended the exporter, the same signal ends
/// this process.
///
/// `node` has the inherited connection to the node and the socket path for new connections, and `listener` is the
/// listening HTTP socket that the service manager passed. `socket_file` is the path of the Unix socket on which the
/// exporter serves HTTP; the supervisor removes the file when the exporter has exited.
///
/// # Errors
/// The exporter process cannot be started, or a system call of the supervisor fails.
pub fn run(node: NodeSocket, listener: Option<OwnedFd>, socket_file: Option<PathBuf>) -> Result<ExitCode> {
    let waits_for_guards = container::ends_all()?;
    sys::reset_signal(Signal::SIGCHLD)?;
    // The exporter and the guards inherit the flag `no_new_privs`. The flag prevents these processes from gaining
    // privileges by executing a set-user-ID program.
    let _ = prctl::set_no_new_privs();
    if waits_for_guards {
        // When another supervisor in the container exits, its guards become children of this process, which then waits
        // for them.
        prctl::set_child_subreaper(true)?;
    }
    let signals = SigSet::all();
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let (channel, theirs) = channel::pair()?;
    let exporter = spawn(&node, listener.as_ref(), &theirs)?;
    drop(theirs);
    drop(listener);
    scheduling::protect_from_oom_kill();
    // Prevents other processes of the same user from accessing the memory and descriptors of this process.
    let _ = prctl::set_dumpable(false);
    let mut supervisor =
        Supervisor { exporter, channel: Some(channel), node, connections: Vec::new(), ended: None };
    let status = supervisor.wait_for_exporter(&signals)?;
    supervisor.channel = None;
    if let Some(path) = socket_file {
        let _ = http::remove_stale_socket(&path);
    }
    supervisor.wait_for_guards(waits_for_guards)?;
    exit_like(status)
}

/// Starts the exporter process, which inherits the descriptors of the channel and of the listener.
fn spawn(node: &NodeSocket, listener: Option<&OwnedFd>, channel: &OwnedFd) -> Result<Pid> {
    let inherits = |fd: &OwnedFd| -> Result<String> {
        fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(fd.as_raw_fd().to_string())
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(EXPORTER_NAME.to_str().expect("ASCII"))
        .arg(EXPORTER)
        .arg(getpid().to_string())
        .arg(inherits(channel)?)
        .arg(listener.map_or(Ok("-".into()), inherits)?)
        .arg(node.describe_inherited())
        .args(std::env::args_os().skip(1))
        .env_remove("NOTIFY_SOCKET")
        // The exporter gets an empty standard input, because the supervisor's standard input may be the node's socket
        // or the terminal.
        .stdin(Stdio::null())
        // The exporter has its own process group. In the supervisor's process group, Ctrl-C in a terminal would signal
        // the exporter twice: from the terminal, and from the supervisor, which forwards the signal.
        .process_group(0);
    if sd_notify::watchdog_enabled().is_some() {
        // WATCHDOG_PID is the PID of the supervisor, so sd_notify in the exporter would ignore WATCHDOG_USEC.
        command.env_remove("WATCHDOG_PID");
    }
    let child = command.spawn().context("cannot start the exporter's process from /proc/self/exe")?;
    Ok(Pid::from_raw(child.id() as i32))
}

/// State of the supervisor's main loop: the exporter process, and the open connections with their guards.
struct Supervisor {
    exporter: Pid,
    /// The channel to the exporter; `None` after the exporter has closed its end or has sent an invalid request.
    channel: Option<OwnedFd>,
    node: NodeSocket,
    connections: Vec<GuardedConnection>,
    /// Wait status of the exporter; `None` while the exporter is running.
    ended: Option<WaitStatus>,
}

impl Supervisor {
    /// Forwards signals and handles requests until the exporter has exited. Returns the exporter's wait status.
    fn wait_for_exporter(&mut self, signals: &SignalFd) -> Result<WaitStatus> {
        loop {
            self.reap()?;
            if let Some(status) = self.ended {
                return Ok(status);
            }
            let retry_at = self.connections.iter_mut().filter_map(GuardedConnection::replace).min();
            let timeout = retry_at.map_or(PollTimeout::NONE, |at| {
                PollTimeout::try_from(at.saturating_duration_since(Instant::now()))
                    .unwrap_or(PollTimeout::MAX)
            });
            let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.channel.iter().map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let has_request = fds.get(1).and_then(PollFd::any).unwrap_or(false);
            self.forward(signals);
            if has_request {
                self.answer();
            }
        }
    }

    /// Forwards all pending signals to the exporter, except SIGCHLD.
    fn forward(&self, signals: &SignalFd) {
        // `Signal::try_from` fails for real-time signals, which the exporter does not use.
        while let Ok(Some(info)) = signals.read_signal() {
            if let Ok(signal) = Signal::try_from(info.ssi_signo as i32)
                && signal != Signal::SIGCHLD
            {
                // An error means that the exporter has already exited, so the error is ignored.
                let _ = kill(self.exporter, signal);
            }
        }
    }

    /// Handles one request of the exporter. After an invalid request, closes the channel, and therefore ignores all
    /// further requests.
    fn answer(&mut self) {
        let Some(channel) = self.channel.take() else { return };
        let answered = match SupervisorRequest::receive(&channel) {
            Ok(Some(SupervisorRequest::Connect { trace_budget })) => self.connect(&channel, trace_budget),
            Ok(Some(SupervisorRequest::Usage)) => self.usage().send(&channel, &[]),
            Ok(Some(SupervisorRequest::Notify(state))) => {
                systemd::notify(state);
                Ok(())
            }
            Ok(None) => Err(std::io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => return,
        };
        match answered {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => cli::print_error(
                "bitcoind-ipc-exporter: the exporter process sent an invalid request; the supervisor ignores it from now on. Restart the exporter",
            ),
            // Other errors mean that the exporter does not read its replies or has exited.
            _ => self.channel = Some(channel),
        }
    }

    fn connect(&mut self, channel: &OwnedFd, trace_budget: Option<Duration>) -> std::io::Result<()> {
        if self.connections.len() >= MAX_CONNECTIONS {
            return SupervisorReply::Failed(ConnectFailure::Busy).send(channel, &[]);
        }
        let (node, inherited) = match self.node.open() {
            Ok(opened) => opened,
            Err(failure) => return SupervisorReply::Failed(failure).send(channel, &[]),
        };
        match GuardedConnection::start(node, inherited, trace_budget) {
            Ok((connection, reply, fds)) => {
                self.connections.push(connection);
                reply.send(channel, &fds.each_ref().map(OwnedFd::as_fd))
            }
            Err(error) => SupervisorReply::Failed(ConnectFailure::Guard(errno(&error))).send(channel, &[]),
        }
    }

    /// Reads the resource usage of the node's process, which is at the other end of the newest connection.
    fn usage(&self) -> SupervisorReply {
        let pid = self.connections.last().map_or(0, GuardedConnection::node);
        let process = Some(pid).filter(|&pid| pid > 0).and_then(|pid| Process::new(pid).ok());
        SupervisorReply::Usage(process.map_or(PrivateUsage::default(), |process| PrivateUsage {
            open_fds: process.fd_count().ok().map(|fds| fds as u64),
            io: process.io().ok().map(|io| (io.read_bytes, io.write_bytes)),
        }))
    }

    /// Reaps the supervisor's child processes (the exporter and the guards) that have exited. Records each guard that a
    /// signal killed, for its later replacement, and resumes each guard that a signal stopped. Returns whether there
    /// are still child processes.
    fn reap(&mut self) -> Result<bool> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::StillAlive) => return Ok(true),
                Ok(status) => status,
                Err(Errno::ECHILD) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let (Some(pid), has_exporter) = (status.pid(), self.ended.is_none()) else { continue };
            let connection = self.connections.iter_mut().find(|connection| connection.is_guarded_by(pid));
            match (status, connection) {
                (WaitStatus::Stopped(_, signal), Some(connection)) => connection.was_stopped(signal),
                (WaitStatus::Signaled(_, signal, _), Some(connection)) => {
                    connection.was_killed(signal, has_exporter);
                }
                (WaitStatus::Exited(..), Some(_)) => {
                    self.connections.retain(|connection| !connection.is_guarded_by(pid));
                }
                (WaitStatus::Exited(..) | WaitStatus::Signaled(..), None) if pid == self.exporter => {
                    self.ended = Some(status);
                }
                _ => {}
            }
        }
    }

    /// Waits until the guards have exited. If no guard would survive the exit of this process (`survives_none`), the
    /// wait has no time limit, and PID 1 also waits until all other exporters of the container have exited. If the
    /// guards would survive, the wait ends after [`GUARD_EXIT_TIMEOUT`]. In both cases, the wait continues while a
    /// guard that was killed by a signal (for example by the OOM killer) has no replacement.
    fn wait_for_guards(&mut self, survives_none: bool) -> Result<()> {
        let deadline = Instant::now() + GUARD_EXIT_TIMEOUT;
        let mut signaled = HashSet::new();
        loop {
            let others = container::is_pid_1() && container::end_others(&mut signaled);
            let has_children = self.reap()?;
            let _ = self.connections.iter_mut().filter_map(GuardedConnection::replace).count();
            let is_unguarded = self.connections.iter().any(GuardedConnection::is_unguarded);
            let is_done = if survives_none {
                !has_children && !others
            } else {
                self.connections.is_empty() || Instant::now() > deadline
            };
            if is_done && !is_unguarded {
                return Ok(());
            }
            std::thread::sleep(REAP_INTERVAL);
        }
    }
}

/// Ends this process with the exporter's exit code or signal.
fn exit_like(status: WaitStatus) -> Result<ExitCode> {
    match status {
        WaitStatus::Exited(_, code) => exit(code),
        WaitStatus::Signaled(_, signal, _) => {
            // If the signal causes a core dump, the exporter has already written a core dump, and this process must not
            // write a second core dump.
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            let _ = sys::reset_signal(signal); // fails for SIGKILL, which always has its default effect
            raise(signal)?;
            SigSet::all().thread_unblock()?;
            // Only PID 1 reaches this line, because a signal that PID 1 sends to itself does not end PID 1.
            Ok(ExitCode::from(128 + signal as u8))
        }
        _ => Ok(ExitCode::FAILURE),
    }
}

/// Parses the arguments after [`EXPORTER`] that [`spawn`] passes: the supervisor's PID, the channel's descriptor, the
/// listener's descriptor, and the description of the inherited connection.
pub(super) fn arguments(
    mut arguments: impl Iterator<Item = OsString>,
) -> Option<(Pid, i32, Option<i32>, OsString)> {
    let number = |text: OsString| text.to_str()?.parse::<i32>().ok();
    let parent = number(arguments.next()?)?;
    let channel = number(arguments.next()?)?;
    let listener = arguments.next()?;
    let listener = if listener == "-" { None } else { Some(number(listener)?) };
    Some((Pid::from_raw(parent), channel, listener, arguments.next()?))
}

/// Sets up the exporter process: SIGTERM when its supervisor exits, process name, signal mask, OOM preference, and no
/// inherited descriptors.
pub(super) fn end_with_parent(parent: Pid) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // The supervisor may have exited before `set_pdeathsig` was called.
    if parent != getppid() {
        bail!("the supervisor (process {parent}) has exited");
    }
    let _ = prctl::set_name(EXPORTER_NAME);
    SigSet::all().thread_unblock()?;
    scheduling::prefer_for_oom_kill();
    systemd::close_inherited();
    Ok(())
}
