//! The guard as a process: its arguments both ways, its name, its signals, what happens when memory runs out.

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

use super::relay::{OpenFiles, relay_with_files};
use super::subscription_store::SubscriptionStore;
use crate::scheduling::RunDelayFile;
use crate::{sandbox, scheduling, systemd};

/// The first argument of a guard. The second is the descriptor that events go to, the third the budget of the UTXO cache
/// trace in microseconds or `-`, the fourth the descriptor of its [`SubscriptionStore`] or `-`. A fifth, `--replace`, makes it end the
/// subscriptions in the record, which a killed guard left behind.
pub const ARGUMENT: &str = "--guard";
const REPLACE: &str = "--replace";

/// The name that `ps` and `top` show, and the first word of its command line. Not the exporter's: a command that
/// ends the exporter by name does not end the guard.
const NAME: &std::ffi::CStr = c"bitcoind-guard";

/// A guard that was started, and the exporter's ends of its two connections.
pub struct StartedGuard {
    /// Its process, a child of this one.
    pub pid: Pid,
    /// Takes calls, returns answers.
    pub exporter: StdUnixStream,
    /// Sends [events](super::TimedEvent).
    pub events: StdUnixStream,
}

/// Starts a guard on the connection `node`. One that `replaces` another disconnects at once. For a process with one thread: a
/// child that is started meanwhile would inherit descriptors.
pub fn start(
    node: &OwnedFd,
    store: &SubscriptionStore,
    trace_budget: Option<Duration>,
    replaces: bool,
) -> Result<StartedGuard> {
    let (exporter, exporter_theirs) = StdUnixStream::pair()?;
    let (events, events_theirs) = StdUnixStream::pair()?;
    // Those that have no standard place.
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

/// Runs a guard with the arguments behind [`ARGUMENT`]: the node on descriptor 0, the exporter on 1. Returns when it has
/// disconnected from the node.
///
/// # Errors
/// The arguments or descriptors are not those that an exporter gives, or the peer is no node.
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
    // It exits after the exporter, which handles these signals.
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
    let files = OpenFiles { store, run_delay: RunDelayFile::open() };
    // Its memory is not for other processes of its user, the exporter's among them.
    let _ = prctl::set_dumpable(false);
    sandbox::confine_guard();
    // 0 and 1 stay open as duplicates: the other sides notice the shutdown, not the close.
    Ok(relay_with_files(node, exporter, events.into(), budget, files, replaces)?)
}
