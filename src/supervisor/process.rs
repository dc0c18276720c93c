//! The supervising process. It has one thread, which waits for signals and for requests of the exporter.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, exit};
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
use sd_notify::NotifyState;

use super::channel::{self, ConnectFailure, SupervisorReply, SupervisorRequest};
use super::connection::{self, GuardedConnection};
use super::node_socket::NodeSocket;
use super::{EXPORTER, EXPORTER_NAME, container};
use crate::{cli, http, scheduling, sys, systemd};

/// How often the last processes are checked, after the exporter has ended.
const REAP_INTERVAL: Duration = Duration::from_millis(20);
/// How long guards are waited for after the exporter's end, where they survive the end of this process.
const GUARD_EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections to the node at once. The exporter keeps to fewer.
const MAX_CONNECTIONS: usize = 8;

/// The configuration of the supervising process.
pub struct SupervisorConfig {
    /// Where the node is.
    pub node: NodeSocket,
    /// The HTTP socket that the service manager passed.
    pub listener: Option<OwnedFd>,
    /// The path of the Unix socket that the exporter listens on, to remove it at the end.
    pub socket_file: Option<PathBuf>,
}

/// Runs the exporter with the arguments of this process. Returns when it and, where they would not survive, its guards have
/// ended: with the exporter's exit code, or as the signal does that ended it.
pub fn run(supervised: SupervisorConfig) -> Result<ExitCode> {
    let waits_for_guards = container::ends_all()?;
    sys::reset_signal(Signal::SIGCHLD)?;
    // The exporter and the guards inherit it: no set-user-ID program gives them privileges.
    let _ = prctl::set_no_new_privs();
    if waits_for_guards {
        // Guards of an exporter beside this one become children of this process.
        prctl::set_child_subreaper(true)?;
    }
    let signals = SigSet::all();
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let (channel, theirs) = channel::pair()?;
    let exporter = spawn(&supervised, &theirs)?;
    drop(theirs);
    let SupervisorConfig { node, socket_file, listener } = supervised;
    drop(listener);
    scheduling::protect_from_oom_kill();
    // Its memory and its descriptors are not for other processes of its user.
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

/// Starts the exporter's process, which inherits the channel and the listener.
fn spawn(supervised: &SupervisorConfig, channel: &OwnedFd) -> Result<Pid> {
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
        .arg(supervised.listener.as_ref().map_or(Ok("-".into()), inherits)?)
        .arg(supervised.node.describe_inherited())
        .args(std::env::args_os().skip(1))
        .env_remove("NOTIFY_SOCKET")
        // In a process group of its own it gets a terminal's Ctrl-C from us, and once.
        .process_group(0);
    if sd_notify::watchdog_enabled().is_some() {
        command.env_remove("WATCHDOG_PID"); // it is meant for this process, which passes notifications on
    }
    let child = command.spawn().context("cannot start the exporter's process from /proc/self/exe")?;
    Ok(Pid::from_raw(child.id() as i32))
}

struct Supervisor {
    exporter: Pid,
    /// `None` after the exporter has closed its end.
    channel: Option<OwnedFd>,
    node: NodeSocket,
    connections: Vec<GuardedConnection>,
    /// How the exporter ended.
    ended: Option<WaitStatus>,
}

impl Supervisor {
    /// Forwards signals and answers requests until the exporter has ended; returns how.
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

    /// Forwards the signals that arrived.
    fn forward(&self, signals: &SignalFd) {
        // Real-time signals have no name and mean nothing to the exporter.
        while let Ok(Some(info)) = signals.read_signal() {
            if let Ok(signal) = Signal::try_from(info.ssi_signo as i32)
                && signal != Signal::SIGCHLD
            {
                // An error means that the exporter has ended already.
                let _ = kill(self.exporter, signal);
            }
        }
    }

    /// Answers one request. Requests of an exporter that violates the format are ignored from then on.
    fn answer(&mut self) {
        let Some(channel) = self.channel.take() else { return };
        let answered = match SupervisorRequest::receive(&channel) {
            Ok(Some(SupervisorRequest::Connect { trace_budget })) => self.connect(&channel, trace_budget),
            Ok(Some(SupervisorRequest::Usage)) => self.usage().send(&channel, &[]),
            Ok(Some(SupervisorRequest::Ready)) => {
                systemd::notify(NotifyState::Ready);
                Ok(())
            }
            Ok(Some(SupervisorRequest::Watchdog)) => {
                systemd::notify(NotifyState::Watchdog);
                Ok(())
            }
            Ok(Some(SupervisorRequest::Stopping)) => {
                systemd::notify(NotifyState::Stopping);
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
            // Others are the exporter's, which does not read or has ended.
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
        let started =
            GuardedConnection::start(node, inherited, trace_budget).map(|(connection, reply, fds)| {
                self.connections.push(connection);
                (reply, fds)
            });
        connection::answer(channel, started)
    }

    /// Of the process at the other end of the newest connection.
    fn usage(&self) -> SupervisorReply {
        let pid = self.connections.last().map_or(0, GuardedConnection::node);
        let process = Some(pid).filter(|&pid| pid > 0).and_then(|pid| Process::new(pid).ok());
        let fds = process.as_ref().and_then(|process| process.fd_count().ok());
        let io = process.as_ref().and_then(|process| process.io().ok());
        let number = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok()).unwrap_or(-1);
        SupervisorReply::Usage {
            fds: number(fds.map(|fds| fds as u64)),
            read_bytes: number(io.as_ref().map(|io| io.read_bytes)),
            write_bytes: number(io.as_ref().map(|io| io.write_bytes)),
        }
    }

    /// Takes what has happened to children. A guard that was killed is replaced, one that was stopped resumed.
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

    /// Waits for guards, and as PID 1 for all other exporters of the container. Where they survive this process, it waits for
    /// a second, and longer only for the replacement of a killed one.
    fn wait_for_guards(&mut self, survives_none: bool) -> Result<()> {
        let deadline = Instant::now() + GUARD_EXIT_TIMEOUT;
        let mut signaled = HashSet::new();
        loop {
            let others = container::is_pid_1() && container::end_others(&mut signaled);
            let has_children = self.reap()?;
            let _ = self.connections.iter_mut().filter_map(GuardedConnection::replace).count();
            let is_unguarded = self.connections.iter().any(GuardedConnection::is_unguarded);
            let is_done = match survives_none {
                true => !has_children && !others,
                false => self.connections.is_empty() || Instant::now() > deadline,
            };
            if is_done && !is_unguarded {
                return Ok(());
            }
            std::thread::sleep(REAP_INTERVAL);
        }
    }
}

/// Ends this process as the exporter has ended.
fn exit_like(status: WaitStatus) -> Result<ExitCode> {
    match status {
        WaitStatus::Exited(_, code) => exit(code),
        WaitStatus::Signaled(_, signal, _) => {
            // One core is enough.
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            let _ = sys::reset_signal(signal); // an error for SIGKILL, whose effect is always the default
            raise(signal)?;
            SigSet::all().thread_unblock()?;
            // PID 1 does not end by a signal of its own.
            Ok(ExitCode::from(128 + signal as u8))
        }
        _ => Ok(ExitCode::FAILURE),
    }
}

/// The arguments behind [`EXPORTER`], as [`spawn`] passes them.
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

/// Only for the exporter's process, which must not be without the one that supervises it.
pub(super) fn end_with_parent(parent: Pid) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // It may have died before this could be set.
    if parent != getppid() {
        bail!("the supervisor (process {parent}) has exited");
    }
    let _ = prctl::set_name(EXPORTER_NAME);
    SigSet::all().thread_unblock()?;
    scheduling::prefer_for_oom_kill();
    systemd::close_inherited();
    Ok(())
}
