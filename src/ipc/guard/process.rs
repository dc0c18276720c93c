//! The guard as a process: its start, arguments, name, signal mask and protection from the OOM killer.

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
use crate::{sandbox, scheduling, systemd};

/// The first argument of a guard process. The second is the descriptor of the event socket. The third is the time budget of the UTXO cache
/// trace in microseconds, or `-`. The fourth is the descriptor of its [`SubscriptionStore`], or `-`. A fifth, `--replace`, makes it end the
/// subscriptions in that store, which a killed guard left behind.
pub const ARGUMENT: &str = "--guard";
const REPLACE: &str = "--replace";

/// The process name that `ps` and `top` show, and the first word of the command line. It differs from the exporter's name: a command that
/// kills the exporter by name does not kill the guard.
const NAME: &std::ffi::CStr = c"bitcoind-guard";

/// A guard process that was started, with the exporter's ends of its two sockets.
pub struct StartedGuard {
    /// PID of the guard, a child of this process.
    pub pid: Pid,
    /// Socket for the exporter's calls and the node's responses.
    pub exporter: StdUnixStream,
    /// Socket that sends [events](super::TimedEvent).
    pub events: StdUnixStream,
}

/// Starts a guard for the connection `node`. A guard that `replaces` another one only disconnects. Only for a process with one thread: a
/// child that another thread starts at the same time would inherit the descriptors.
pub fn start(
    node: &OwnedFd,
    store: &SubscriptionStore,
    trace_budget: Option<Duration>,
    replaces: bool,
) -> Result<StartedGuard> {
    let (exporter, exporter_theirs) = StdUnixStream::pair()?;
    let (events, events_theirs) = StdUnixStream::pair()?;
    // These two descriptors have no fixed number, so the guard inherits them under their present numbers.
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
        .process_group(0); // a terminal's Ctrl-C is for the exporter
    if replaces {
        command.arg(REPLACE);
    }
    let child = command.spawn().context("cannot start the guard process from /proc/self/exe")?;
    Ok(StartedGuard { pid: Pid::from_raw(child.id() as i32), exporter, events })
}

/// Runs a guard process with the arguments after [`ARGUMENT`]. The node is on descriptor 0, the exporter on 1. Returns when the guard has
/// disconnected from the node.
///
/// # Errors
/// The arguments or descriptors are not those that the supervisor passes, or the peer is not a node.
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
    // The guard exits after the exporter, which handles these signals.
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
    // Other processes of the same user, for example the exporter, must not read the guard's memory.
    let _ = prctl::set_dumpable(false);
    sandbox::confine_guard();
    // Descriptors 0 and 1 stay open as duplicates: the other sides are notified by the shutdown of the sockets, not by the close.
    Ok(relay(node, exporter, events.into(), budget, files)?)
}
