//! File descriptors that we inherit, and what the service manager wants to hear.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{getsockopt, sockopt};

use crate::init::CHILD_OF_INIT;

/// Descriptors that systemd passed, by their names in LISTEN_FDNAMES.
#[derive(Default)]
pub struct Inherited(BTreeMap<String, Vec<OwnedFd>>);

impl Inherited {
    /// Takes over what LISTEN_FDS says; nothing if the variables are meant for another process.
    pub fn take() -> Result<Self> {
        let mut inherited = Inherited::default();
        if std::env::var_os(CHILD_OF_INIT).is_some() && std::env::var("LISTEN_PID").as_deref() == Ok("1") {
            // SAFETY: nothing else runs in this process yet that could read the environment.
            unsafe { std::env::set_var("LISTEN_PID", std::process::id().to_string()) };
        }
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

/// The descriptors that were taken over.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Closes every inherited descriptor that was not taken over, but 0, 1 and 2. A node that launches us does not close its
/// own: its listening sockets and its lock would stay in use when it is gone.
pub fn close_inherited() {
    let taken = TAKEN.lock().expect("nobody panics holding it");
    let open: Vec<RawFd> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok()).collect(),
        Err(_) => (3..1024).collect(), // no /proc: what a process usually may have
    };
    for fd in open.into_iter().filter(|fd| *fd > 2 && !taken.contains(fd)) {
        // The directory that was just read is among them, and closed already.
        let _ = nix::unistd::close(fd);
    }
}

/// Takes over a descriptor that this process inherited, and makes it close-on-exec. Each may be taken over once.
pub fn take_over(fd: RawFd) -> Result<OwnedFd> {
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
