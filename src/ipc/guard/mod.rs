//! The guard: a small process of the same binary that faces a node with callbacks.
//!
//! Such a node aborts when a client with live subscriptions, or one in the middle of a call, is gone; and it waits for
//! a client that hangs. So the exporter, which can be killed, stopped or out of memory, is never that client. The guard
//! sits on the node's socket, answers each callback itself the moment it arrives, hands it on as an event over a
//! bounded queue, and passes the exporter's own calls through. When the exporter goes away for whatever reason, it
//! unsubscribes, waits for the answers of calls under way, and closes.

mod budget;
mod event;
mod frame;
mod relay;

use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tracing::{error, warn};

pub use event::{Event, Held, Notice};
pub use relay::{main, relay};

/// The first argument of a guard. The second is the descriptor that events go to, the third the budget of the UTXO cache
/// trace in microseconds or `-`, the others callbacks that an earlier guard has left behind.
pub const ARGUMENT: &str = "--guard";

/// A guard that was placed on a connection.
pub struct Guard {
    child: Child,
    /// The connection stays open when the guard is killed, and the node does not notice.
    node: OwnedFd,
    /// The notices, until [`read`](Self::read) takes them.
    events: Option<UnixStream>,
    reader: Option<JoinHandle<()>>,
    /// What the node holds at present.
    held: Rc<RefCell<Vec<Held>>>,
}

impl Guard {
    /// Hands the connection to a guard; returns what to speak to instead. `trace_budget` is how long the node may wait for
    /// the UTXO cache trace in ten minutes.
    pub fn place(node: UnixStream, trace_budget: Option<Duration>) -> Result<(UnixStream, Self)> {
        let node: OwnedFd = node.into_std()?.into();
        let (child, ours, events) = start(&node, trace_budget, &[])?;
        // When memory runs out, rather we than the guard.
        let _ = std::fs::write("/proc/self/oom_score_adj", "500");
        ours.set_nonblocking(true)?;
        events.set_nonblocking(true)?;
        let events = Some(UnixStream::from_std(events)?);
        let guard = Guard { child, node, events, reader: None, held: Rc::default() };
        Ok((UnixStream::from_std(ours)?, guard))
    }

    /// Gives each notice to `sink`, from here to the end of the connection.
    pub fn read(&mut self, mut sink: impl FnMut(Notice) + 'static) {
        let Some(mut events) = self.events.take() else { return };
        let held = self.held.clone();
        self.reader = Some(tokio::task::spawn_local(async move {
            let mut buffer = Vec::with_capacity(64 * 1024);
            // The guard is us: what it writes is well-formed, and what does not decode ends the reading.
            while events.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                let mut decoded = 0;
                while let Some((notice, length)) = Notice::decode(&buffer[decoded..]) {
                    decoded += length;
                    match notice.event {
                        Event::Held(it) => held.borrow_mut().push(it),
                        Event::Released(callback) => held.borrow_mut().retain(|it| it.callback != callback),
                        _ => sink(notice),
                    }
                }
                buffer.drain(..decoded);
            }
        }));
    }

    /// After the connection was closed: takes the last notices and waits for the guard, which may still be taking
    /// leave of the node. If it was killed, another takes leave in its place.
    pub async fn leave(mut self) {
        const AT_MOST: Duration = Duration::from_secs(2);
        if let Some(reader) = self.reader.take() {
            let _ = tokio::time::timeout(AT_MOST, reader).await;
        }
        let killed = wait(self.child, AT_MOST).await.and_then(|status| status.signal());
        let Some(killed) = killed else { return };
        let held = self.held.take();
        error!(
            "the guard was killed by signal {killed}: do not kill it, the node would abort; another takes leave of the node"
        );
        if held.is_empty() {
            return;
        }
        // Our ends of its connections are closed at once: it takes leave.
        match start(&self.node, None, &held).map(|(child, ..)| child) {
            Ok(child) => {
                wait(child, AT_MOST * 5).await;
            }
            Err(error) => {
                error!("{error:#}; the connection stays open, because closing it would make the node abort");
                std::mem::forget(self.node);
            }
        }
    }
}

/// A guard's process, and our ends of its two connections to us.
fn start(
    node: &OwnedFd,
    trace_budget: Option<Duration>,
    held: &[Held],
) -> Result<(Child, StdUnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    let (events, events_theirs) = StdUnixStream::pair()?;
    // The one descriptor that has no standard place; the child inherits it, and nothing else is started meanwhile.
    fcntl(&events_theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let child = Command::new("/proc/self/exe")
        .arg0("bitcoind-ipc-guard")
        .args([ARGUMENT, &events_theirs.as_raw_fd().to_string()])
        .arg(trace_budget.map_or("-".to_string(), |budget| budget.as_micros().to_string()))
        .args(held.iter().map(Held::to_string))
        .env_clear()
        .stdin(Stdio::from(node.try_clone()?))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .process_group(0) // a terminal's Ctrl-C is for the exporter, which then takes leave in order
        .spawn()
        .context("cannot start the guard process from /proc/self/exe")?;
    Ok((child, ours, events))
}

/// How a guard ended; `None` if it did not within this time. Then a thread waits for it.
async fn wait(mut child: Child, at_most: Duration) -> Option<ExitStatus> {
    const AGAIN: Duration = Duration::from_millis(5);
    let ended = async {
        loop {
            match child.try_wait() {
                Ok(None) => tokio::time::sleep(AGAIN).await,
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
    };
    let ended = tokio::time::timeout(at_most, ended).await;
    if ended.is_err() {
        warn!("the guard is still taking leave of the node; it ends by itself");
        let _ = std::thread::Builder::new().spawn(move || child.wait());
    }
    ended.ok().flatten()
}
