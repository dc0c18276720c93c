//! A connection to the node and the connection's guard, the process that relays messages between the node and the
//! exporter. The supervisor (the parent process of the exporter and of the guard) keeps a descriptor of the node's
//! socket until the guard has exited. If a guard is killed, the connection therefore stays open, and the supervisor
//! starts a replacement guard on the connection.

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

/// Interval between attempts to start a replacement guard, if an attempt fails because memory or descriptors are short.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Notice (a byte that the supervisor sends to the exporter) that the replacement of a killed guard is running. Any
/// other notice contains the number of the signal that killed or stopped the guard.
pub const REPLACED: u8 = 0;
/// Bit that is set in a notice if the signal stopped the guard. The supervisor has then resumed the guard.
pub const STOPPED: u8 = 0x80;

/// A connection to the node, its current guard, and the subscription list for a replacement guard.
pub struct GuardedConnection {
    node: OwnedFd,
    store: SubscriptionStore,
    /// The socket on which the supervisor sends notices about the guard to the exporter, of one byte each.
    notices: OwnedFd,
    /// PID of the guard; `None` while a killed guard has no replacement.
    guard: Option<Pid>,
    retry_at: Instant,
    logged: bool,
}

impl GuardedConnection {
    /// Starts a guard for the node's socket. Returns the reply to the exporter, and the descriptors to pass with the
    /// reply.
    ///
    /// # Errors
    /// The guard cannot be started, because memory, processes or file descriptors are short.
    pub fn start(
        node: OwnedFd,
        inherited: bool,
        trace_budget: Option<Duration>,
    ) -> Result<(Self, SupervisorReply, [OwnedFd; CONNECTION_FDS])> {
        let store = SubscriptionStore::new()?;
        let (notices, theirs) = std::os::unix::net::UnixStream::pair()?;
        let (guard, [exporter, events]) = guard::start(&node, &store, trace_budget, false)?;
        let reply = SupervisorReply::Connected { guard: guard.as_raw(), node: peer_pid(&node), inherited };
        let connection = GuardedConnection {
            node,
            store,
            notices: notices.into(),
            guard: Some(guard),
            retry_at: Instant::now(),
            logged: false,
        };
        Ok((connection, reply, [exporter, events, theirs.into()]))
    }

    fn notify(&self, notice: u8) {
        let _ = send(self.notices.as_raw_fd(), &[notice], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }

    /// PID of the process at the other end of the node's socket; 0 if that process is in another PID namespace.
    pub fn node(&self) -> i32 {
        peer_pid(&self.node)
    }

    /// Whether the process `pid` is the guard of the connection.
    pub fn is_guarded_by(&self, pid: Pid) -> bool {
        self.guard == Some(pid)
    }

    /// Whether a killed guard has no replacement yet.
    pub fn is_unguarded(&self) -> bool {
        self.guard.is_none()
    }

    /// Records that a signal killed the guard, and sends a notice to the exporter. If the exporter has exited
    /// (`has_exporter` is false), the supervisor logs the event instead of the exporter.
    pub fn was_killed(&mut self, signal: Signal, has_exporter: bool) {
        self.notify(signal as u8);
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

    /// Resumes a guard that a signal has stopped, because the node waits for the guard's responses, and sends a notice
    /// to the exporter.
    pub fn was_stopped(&self, signal: Signal) {
        if let Some(guard) = self.guard {
            let _ = kill(guard, Signal::SIGCONT);
            self.notify(STOPPED | signal as u8);
        }
    }

    /// Starts a replacement guard if the guard was killed and the time for the next attempt has come. Returns the time
    /// of the next attempt if there is still no guard.
    pub fn replace(&mut self) -> Option<Instant> {
        if self.guard.is_some() {
            return None;
        }
        if self.retry_at > Instant::now() {
            return Some(self.retry_at);
        }
        // The replacement guard only ends the killed guard's subscriptions and disconnects from the node. It serves no
        // exporter, so the exporter's ends of its sockets are dropped and thereby closed.
        match guard::start(&self.node, &self.store, None, true) {
            Ok((guard, _)) => {
                self.guard = Some(guard);
                self.notify(REPLACED);
                None
            }
            Err(error) => {
                if !std::mem::replace(&mut self.logged, true) {
                    cli::print_error(format_args!(
                        "bitcoind-ipc-exporter: {error:#}; retrying, because the node can abort without a guard"
                    ));
                }
                self.retry_at = Instant::now() + RETRY_INTERVAL;
                Some(self.retry_at)
            }
        }
    }
}
