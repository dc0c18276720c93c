//! File descriptors that we inherit, and what the service manager wants to hear.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{getsockopt, sockopt};

/// Descriptors that systemd passed, by their names in LISTEN_FDNAMES.
#[derive(Default)]
pub struct Inherited(BTreeMap<String, Vec<OwnedFd>>);

impl Inherited {
    /// Takes over what LISTEN_FDS says; nothing if the variables are meant for another process.
    pub fn take() -> Result<Self> {
        let mut inherited = Inherited::default();
        for (fd, name) in sd_notify::listen_fds_with_names().context("cannot read LISTEN_FDS")? {
            let fd = take_over(fd).with_context(|| format!("LISTEN_FDS names descriptor {fd} ({name})"))?;
            inherited.0.entry(name).or_default().push(fd);
        }
        Ok(inherited)
    }

    /// The connection to the node: `OpenFile=/path/node.sock:ipc`.
    pub fn ipc(&mut self) -> Option<OwnedFd> {
        self.0.get_mut("ipc")?.pop()
    }

    /// The listening socket for HTTP: the one named `http`, else the only listening one.
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

/// Takes over a descriptor that this process inherited, and makes it close-on-exec. Each may be taken over once.
pub fn take_over(fd: RawFd) -> Result<OwnedFd> {
    use std::sync::Mutex;
    static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().expect("nobody panics holding it");
    if fd <= 2 {
        bail!(
            "file descriptor {fd} is not an inherited connection (0, 1 and 2 are standard input, output and error)"
        );
    }
    if taken.contains(&fd) {
        bail!("file descriptor {fd} is named twice");
    }
    if std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err() {
        bail!("file descriptor {fd} is not open; whoever started us must pass it without close-on-exec");
    }
    taken.push(fd);
    // SAFETY: the descriptor is open, and nothing else in this process owns it: it was inherited (we are called
    // before anything else opens descriptors), and the list above hands each number out once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Tells the service manager, if there is one.
pub fn notify(state: sd_notify::NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot notify the service manager: {error}");
    }
}

/// Shows that a thread's loop turns over.
#[derive(Clone, Default)]
pub struct Pulse(std::sync::Arc<std::sync::atomic::AtomicU64>);

impl Pulse {
    /// How often each pulse beats.
    const INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

    /// Beats as long as the runtime that polls this turns over.
    pub async fn beat(self) {
        loop {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::time::sleep(Self::INTERVAL).await;
        }
    }

    fn count(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Sends WATCHDOG=1 at twice the rate that the service manager wants, if it wants any, as long as this runtime and the
/// other thread's turn over.
pub async fn watchdog(other: Pulse) {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    let mut seen = 0;
    loop {
        tokio::time::sleep((within / 2).max(2 * Pulse::INTERVAL)).await;
        if seen != other.count() {
            seen = other.count();
            notify(sd_notify::NotifyState::Watchdog);
        }
    }
}
