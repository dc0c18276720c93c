//! Descriptors that the service manager (systemd) passes to this process, and notifications to the service manager. In
//! bitcoind-ipc-exporter, the supervisor (the process that the user starts) receives the exporter process's
//! notifications and forwards them.

use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use crate::supervisor::SupervisorRequest;
pub use crate::sys::take_over;
use crate::sys::taken_over;

/// The descriptors that systemd passed to this process, keyed by their names in LISTEN_FDNAMES.
#[derive(Default)]
pub struct InheritedFds(BTreeMap<String, Vec<OwnedFd>>);

impl InheritedFds {
    /// Takes ownership of the descriptors that the variable LISTEN_FDS announces. Takes no descriptors if LISTEN_PID
    /// is the PID of another process.
    ///
    /// # Errors
    /// LISTEN_FDS is invalid, or one of the descriptors is not open.
    pub fn take() -> Result<Self> {
        let mut inherited = InheritedFds::default();
        const FAILED: &str = "cannot read LISTEN_FDS";
        // `listen_fds_with_names` is called only if there are descriptors, because it returns an error for
        // LISTEN_FDNAMES without descriptors.
        if sd_notify::listen_fds().context(FAILED)?.len() == 0 {
            return Ok(inherited);
        }
        for (fd, name) in sd_notify::listen_fds_with_names().context(FAILED)? {
            let fd = take_over(fd).with_context(|| format!("LISTEN_FDS names descriptor {fd} ({name})"))?;
            inherited.0.entry(name).or_default().push(fd);
        }
        Ok(inherited)
    }

    /// Takes the connection to the node's IPC socket, which the systemd unit passes with
    /// `OpenFile=/path/node.sock:ipc`.
    pub fn ipc(&mut self) -> Option<OwnedFd> {
        self.0.get_mut("ipc")?.pop()
    }

    /// Takes the listening socket for HTTP: the descriptor named `http`, or, if there is none, the only listening
    /// socket among the descriptors.
    pub fn http(&mut self) -> Option<OwnedFd> {
        if let Some(fd) = self.0.get_mut("http").and_then(Vec::pop) {
            return Some(fd);
        }
        let listens = |fd: &OwnedFd| getsockopt(fd, sockopt::AcceptConn).unwrap_or(false);
        let mut listening = self.0.values_mut().filter(|fds| fds.iter().any(listens));
        match (listening.next(), listening.next()) {
            (Some(fds), None) if fds.len() == 1 => fds.pop(),
            _ => None,
        }
    }
}

/// Closes every inherited descriptor of which this process has not taken ownership (see [`take_over`]), except 0, 1 and
/// 2. A node that starts the exporter passes all descriptors of the node to the exporter. If these descriptors stayed
/// open in the exporter, the node's listening sockets would stay in use after the node has exited.
pub fn close_inherited() {
    let taken = taken_over();
    let open: Vec<RawFd> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok()).collect(),
        Err(_) => (3..1024).collect(), // /proc cannot be read: all descriptors up to the usual limit
    };
    for fd in open.into_iter().filter(|fd| *fd > 2 && !taken.contains(fd)) {
        // An error is ignored, because the list includes the descriptor with which `read_dir` read /proc/self/fd, and
        // this descriptor is closed already.
        let _ = nix::unistd::close(fd);
    }
}

/// A state of this process that the process reports to the service manager.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Notification {
    /// The process has started and serves HTTP requests (READY=1).
    Ready,
    /// The event loops of the process do not hang (WATCHDOG=1).
    Watchdog,
    /// The process is stopping (STOPPING=1).
    Stopping,
}

impl Notification {
    fn text(self) -> &'static str {
        match self {
            Notification::Ready => "READY=1",
            Notification::Watchdog => "WATCHDOG=1",
            Notification::Stopping => "STOPPING=1",
        }
    }
}

/// The channel to the supervisor, which forwards this process's notifications to the service manager. Unset in a
/// process without a supervisor, which sends its notifications to the service manager itself.
static SUPERVISOR: OnceLock<OwnedFd> = OnceLock::new();

/// The socket to the service manager; `None` if there is no service manager. The socket is connected before the
/// sandbox is applied, because the sandbox forbids new Unix sockets.
static MANAGER: LazyLock<Option<UnixDatagram>> = LazyLock::new(|| {
    let address = std::env::var_os("NOTIFY_SOCKET")?;
    let address = match address.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&address),
    };
    let connected = || {
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address?)?;
        Ok(socket)
    };
    connected().inspect_err(log_failure).ok()
});

/// Makes [`notify`] send notifications over this channel to the supervisor, which forwards them to the service manager.
pub fn notify_through(channel: OwnedFd) {
    let _ = SUPERVISOR.set(channel);
}

/// Opens the socket to the service manager that [`notify`] uses. A process with a system call filter cannot open this
/// socket.
pub fn connect_to_manager() {
    LazyLock::force(&MANAGER);
}

/// Notifies the service manager, if there is one, of this state. A separate thread sends the notification, because a
/// service manager that does not read its socket would block the caller. If the thread's queue is full, the
/// notification is dropped.
pub fn notify(state: Notification) {
    static MESSAGES: LazyLock<Option<SyncSender<Notification>>> = LazyLock::new(start_notifying);
    if let Some(supervisor) = SUPERVISOR.get() {
        let _ = SupervisorRequest::Notify(state).send(supervisor).inspect_err(log_failure);
    } else if MANAGER.is_some()
        && let Some(messages) = &*MESSAGES
    {
        let _ = messages.try_send(state);
    }
}

fn start_notifying() -> Option<SyncSender<Notification>> {
    const MAX_WAITING: usize = 4;
    let manager = MANAGER.as_ref()?;
    let (sender, messages) = sync_channel(MAX_WAITING);
    let send = move || {
        for state in messages {
            let _ = manager.send(Notification::text(state).as_bytes()).inspect_err(log_failure);
        }
    };
    let started = thread::Builder::new().name("notify".into()).spawn(send);
    started.inspect_err(log_failure).ok().map(|_| sender)
}

fn log_failure(error: &std::io::Error) {
    tracing::warn!("cannot notify the service manager: {error}");
}

/// A counter that the event loop of one thread, for example the HTTP server's thread, increments periodically. The
/// increments show that the event loop does not hang.
#[derive(Clone, Default)]
pub struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    /// Interval at which [`beat`](Self::beat) increments the counter.
    const BEAT_INTERVAL: Duration = Duration::from_millis(500);

    /// Increments the counter periodically, in a loop that never returns. The counter stops if the runtime that runs
    /// this future hangs.
    pub async fn beat(self) {
        loop {
            self.0.fetch_add(1, Relaxed);
            tokio::time::sleep(Self::BEAT_INTERVAL).await;
        }
    }
}

/// Sends WATCHDOG=1 to the service manager at twice the rate that the service manager requires. Sends WATCHDOG=1 only
/// while neither the tokio runtime that runs this future nor the runtime that increments `other` hangs. Returns
/// immediately if the service manager requires no watchdog.
pub async fn watchdog(other: Heartbeat) {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    let mut seen = 0;
    loop {
        tokio::time::sleep((within / 2).max(2 * Heartbeat::BEAT_INTERVAL)).await;
        let beats = other.0.load(Relaxed);
        if seen != beats {
            seen = beats;
            notify(Notification::Watchdog);
        }
    }
}
