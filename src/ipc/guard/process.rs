//! The guard as a process: its arguments both ways, its name, its signals, what happens when memory runs out.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use tokio::process::{Child, Command};

use super::events::SubscriptionIds;
use super::relay::relay;
use crate::{priority, systemd};

/// The first argument of a guard. The second is the descriptor that events go to, the third the budget of the UTXO cache
/// trace in microseconds or `-`. A fourth, `--replace`, is followed by the subscriptions that a killed guard left behind.
pub const ARGUMENT: &str = "--guard";
const REPLACE: &str = "--replace";

/// The name that `ps` and `top` show, and the first word of its command line. Not the exporter's, so that what ends the
/// exporter by name does not end the guard.
const NAME: &std::ffi::CStr = c"bitcoind-guard";

/// A guard that was started, and the exporter's ends of its two connections.
pub struct Started {
    pub child: Child,
    pub exporter: StdUnixStream,
    pub events: StdUnixStream,
}

/// Starts a guard on the connection `node`; one with `replaces` takes leave of the node at once.
pub fn start(
    node: &OwnedFd,
    trace_budget: Option<Duration>,
    replaces: Option<&[SubscriptionIds]>,
) -> Result<Started> {
    let (exporter, exporter_theirs) = StdUnixStream::pair()?;
    let (events, events_theirs) = StdUnixStream::pair()?;
    // The one descriptor that has no standard place; the child inherits it, and nothing else is started meanwhile.
    fcntl(&events_theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(NAME.to_str().expect("ASCII"))
        .args([ARGUMENT, &events_theirs.as_raw_fd().to_string()])
        .arg(trace_budget.map_or("-".to_string(), |budget| budget.as_micros().to_string()))
        .env_clear()
        .stdin(Stdio::from(node.try_clone()?))
        .stdout(Stdio::from(OwnedFd::from(exporter_theirs)))
        .process_group(0); // a terminal's Ctrl-C is for the exporter
    if let Some(subscriptions) = replaces {
        command.arg(REPLACE).args(subscriptions.iter().map(SubscriptionIds::to_string));
    }
    let child = command.spawn().context("cannot start the guard process from /proc/self/exe")?;
    // When memory runs out, rather the exporter than the guard, and both rather late.
    static WEAKER: Once = Once::new();
    WEAKER.call_once(|| {
        let _ = oom_score_adj().and_then(|own| set_oom_score_adj(own.saturating_add(1)));
    });
    Ok(Started { child, exporter, events })
}

/// Runs a guard with the arguments behind [`ARGUMENT`]: the node on descriptor 0, the exporter on 1. Returns when leave
/// was taken of the node.
///
/// # Errors
/// The arguments or descriptors are not those that an exporter gives, or the peer is no node.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let mut argument = || arguments.next().and_then(|it| it.into_string().ok());
    let events: RawFd =
        argument().and_then(|fd| fd.parse().ok()).context("a guard is started by the exporter")?;
    let budget = argument().and_then(|budget| budget.parse().ok()).map(Duration::from_micros);
    let replaces = match argument().as_deref() {
        None => None,
        Some(REPLACE) => Some(
            std::iter::from_fn(argument).map(|ids| ids.parse()).collect::<Result<Vec<SubscriptionIds>>>()?,
        ),
        Some(other) => bail!("a guard has no argument {other:?}"),
    };
    // It ends after the exporter, which is the one to be told to end.
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2]
        .into_iter()
        .collect::<SigSet>()
        .thread_block()?;
    let _ = prctl::set_name(NAME);
    // The lowest score that it may have: with a privilege the kernel's lowest, else what the service was given.
    let _ = set_oom_score_adj(-1000).or_else(|_| set_oom_score_adj(oom_score_adj()? - 1));
    priority::answer_soon();
    let events = systemd::take_over(events)?;
    let node = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let exporter = StdUnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    // 0 and 1 stay open as duplicates: shutting down, not closing, is what tells the others.
    Ok(relay(node, exporter, events.into(), budget, replaces.as_deref())?)
}

/// How soon the kernel kills this process when memory runs out: -1000 (never) to 1000 (first).
fn oom_score_adj() -> io::Result<i32> {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj")?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn set_oom_score_adj(score: i32) -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
}
