//! Starts and sets up the guard, the process that relays messages between the node and the exporter: arguments,
//! process name, signal mask, OOM preference and sandbox. The supervisor, the exporter's parent process, starts the
//! guard.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::relay::{OpenFiles, relay};
use super::subscription_store::SubscriptionStore;
use crate::scheduling::RunDelayFile;
use crate::{cli, sandbox, scheduling, systemd};

/// The first argument of a guard process. The second argument is the descriptor of the event socket. The third argument
/// is the time budget of the UTXO cache trace in microseconds, or `-` for no limit. The fourth argument is the
/// descriptor of the guard's [`SubscriptionStore`]. The optional fifth argument, `--replace`, starts a replacement
/// guard, which ends the subscriptions in that store and disconnects.
pub const ARGUMENT: &str = "--guard";
const REPLACE: &str = "--replace";

/// The guard's process name in `ps` and `top`, and the first word of its command line. The guard's name differs from
/// the exporter's name, so a command that kills the exporter by name does not kill the guard.
const NAME: &std::ffi::CStr = c"bitcoind-guard";

/// Starts a guard for the connection `node`. If `replaces` is true, the new guard replaces a killed guard: it only ends
/// the killed guard's subscriptions and disconnects. The calling process must have one thread, because a child process
/// that another thread starts at the same time would inherit the guard's descriptors.
///
/// Returns the PID of the guard, a child of the calling process, and the exporter's ends of the guard's two sockets:
/// for the Cap'n Proto messages that the guard relays, and for the guard's [events](super::TimedEvent).
///
/// # Errors
/// A socket pair cannot be created, or the process cannot be started.
pub fn start(
    node: &OwnedFd,
    store: &SubscriptionStore,
    trace_budget: Option<Duration>,
    replaces: bool,
) -> Result<(Pid, [OwnedFd; 2])> {
    let (exporter, exporter_theirs) = StdUnixStream::pair()?;
    let (events, events_theirs) = StdUnixStream::pair()?;
    // The guard inherits these two descriptors with their current numbers, which are passed as arguments.
    let store = store.as_fd().try_clone_to_owned()?;
    for fd in [events_theirs.as_fd(), store.as_fd()] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(NAME.to_str().expect("ASCII"))
        .args([ARGUMENT, &events_theirs.as_raw_fd().to_string()])
        .arg(trace_budget.map_or("-".to_string(), |budget| budget.as_micros().to_string()))
        .arg(store.as_raw_fd().to_string())
        .env_clear()
        .stdin(Stdio::from(node.try_clone()?))
        .stdout(Stdio::from(OwnedFd::from(exporter_theirs)))
        .process_group(0); // Ctrl-C in a terminal must not signal the guard
    if replaces {
        command.arg(REPLACE);
    }
    let child = command.spawn().context("cannot start the guard process from /proc/self/exe")?;
    Ok((Pid::from_raw(child.id() as i32), [exporter.into(), events.into()]))
}

/// Runs a guard process with the arguments after [`ARGUMENT`]. The node's socket must be descriptor 0, and the
/// exporter's socket descriptor 1. Returns when the guard has disconnected from the node.
///
/// # Errors
/// The process was not started by the supervisor (other arguments or descriptors), or the process at the other end of
/// the node's socket is not a node.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let mut argument = || arguments.next().and_then(|it| it.into_string().ok());
    let events: RawFd = argument()
        .and_then(|fd| fd.parse().ok())
        .context("a guard process can only be started by the supervisor")?;
    let budget = argument().and_then(|budget| budget.parse().ok()).map(Duration::from_micros);
    let store: Option<RawFd> = argument().and_then(|fd| fd.parse().ok());
    let replaces = match argument().as_deref() {
        None => false,
        Some(REPLACE) => true,
        Some(other) => bail!("unknown argument of the guard: {other:?}"),
    };
    // The guard blocks these signals, because the guard must not exit before the exporter, which handles the signals.
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2]
        .into_iter()
        .collect::<SigSet>()
        .thread_block()?;
    let _ = prctl::set_name(NAME);
    scheduling::protect_from_oom_kill();
    scheduling::shorten_timeslice();
    let events = systemd::take_over(events)?;
    let store = store.map(systemd::take_over).transpose()?.map(SubscriptionStore::inherited);
    let node = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let exporter = StdUnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let files = OpenFiles { store, run_delay: RunDelayFile::open(), replaces };
    // Prevents other processes of the same user, for example the exporter, from reading the guard's memory.
    let _ = prctl::set_dumpable(false);
    sandbox::confine_guard();
    // Descriptors 0 and 1 stay open as duplicates of `node` and `exporter`, so closing `node` or `exporter` does not
    // close the connection. The relay therefore calls shutdown(2).
    Ok(relay(node, exporter, events.into(), budget, files, |line| cli::print_error(line))?)
}
