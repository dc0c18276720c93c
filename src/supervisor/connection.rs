//! A connection to the node and its guard. The supervisor keeps the node's descriptor until the guard has closed the connection. If a guard
//! is killed, the connection stays open and a replacement can use it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::Pid;

use super::channel::{CONNECTION_FDS, SupervisorReply};
use super::node_socket::peer_pid;
use crate::cli;
use crate::ipc::guard::{self, SubscriptionStore};

/// Interval between attempts to start a replacement guard while memory or descriptors are short.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The socket for notices to the exporter about its guard, one byte each.
pub struct GuardNotices(OwnedFd);

/// Notice that the replacement of a killed guard is running. Other values are the signal that killed or stopped a guard.
pub const REPLACED: u8 = 0;
/// Flag in a notice: the signal stopped the guard, which has been resumed.
pub const STOPPED: u8 = 0x80;

impl GuardNotices {
    fn send(&self, notice: u8) {
        let _ = send(self.0.as_raw_fd(), &[notice], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}

/// A connection to the node with its guard, and the state that a replacement guard needs.
pub struct GuardedConnection {
    node: OwnedFd,
    store: SubscriptionStore,
    notices: GuardNotices,
    /// `None` while a killed guard has no replacement.
    guard: Option<Pid>,
    retry_at: Instant,
    logged: bool,
}

impl GuardedConnection {
    /// Starts a guard for the node's socket. Returns the reply to the exporter, and the descriptors to pass with it.
    pub fn start(
        node: OwnedFd,
        inherited: bool,
        trace_budget: Option<Duration>,
    ) -> Result<(Self, SupervisorReply, [OwnedFd; CONNECTION_FDS])> {
        let store = SubscriptionStore::new()?;
        let (notices, theirs) = std::os::unix::net::UnixStream::pair()?;
        let started = guard::start(&node, &store, trace_budget, false)?;
        let reply =
            SupervisorReply::Connected { guard: started.pid.as_raw(), node: peer_pid(&node), inherited };
        let connection = GuardedConnection {
            node,
            store,
            notices: GuardNotices(notices.into()),
            guard: Some(started.pid),
            retry_at: Instant::now(),
            logged: false,
        };
        Ok((connection, reply, [started.exporter.into(), started.events.into(), theirs.into()]))
    }

    /// PID of the process at the other end; 0 if it is in another PID namespace.
    pub fn node(&self) -> i32 {
        peer_pid(&self.node)
    }

    /// Whether this process is the guard of the connection.
    pub fn is_guarded_by(&self, pid: Pid) -> bool {
        self.guard == Some(pid)
    }

    /// Whether a killed guard has no replacement yet.
    pub fn is_unguarded(&self) -> bool {
        self.guard.is_none()
    }

    /// Records that the guard was killed. `has_exporter` is whether an exporter is running, which logs it.
    pub fn was_killed(&mut self, signal: Signal, has_exporter: bool) {
        self.notices.send(signal as u8);
        if !has_exporter {
            cli::print_error(format_args!(
                "bitcoind-ipc-exporter: guard killed by signal {}, which can crash the node; starting a replacement to \
                 disconnect cleanly",
                signal as i32
            ));
        }
        self.guard = None;
        self.retry_at = Instant::now();
        self.logged = false;
    }

    /// Resumes a guard that was stopped, because the node waits for it.
    pub fn was_stopped(&self, signal: Signal) {
        if let Some(guard) = self.guard {
            let _ = kill(guard, Signal::SIGCONT);
            self.notices.send(STOPPED | signal as u8);
        }
    }

    /// Starts a replacement guard if one is due. Returns the time of the next attempt, if another one is needed.
    pub fn replace(&mut self) -> Option<Instant> {
        if self.guard.is_some() {
            return None;
        }
        if self.retry_at > Instant::now() {
            return Some(self.retry_at);
        }
        // The replacement serves no exporter: its exporter sockets are closed at once.
        match guard::start(&self.node, &self.store, None, true) {
            Ok(started) => {
                self.guard = Some(started.pid);
                self.notices.send(REPLACED);
                None
            }
            Err(error) => {
                if !std::mem::replace(&mut self.logged, true) {
                    cli::print_error(format_args!(
                        "bitcoind-ipc-exporter: {error:#}; retrying: without a guard the node can abort"
                    ));
                }
                self.retry_at = Instant::now() + RETRY_INTERVAL;
                Some(self.retry_at)
            }
        }
    }
}
