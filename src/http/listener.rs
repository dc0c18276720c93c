//! The listening sockets of the exporter's HTTP endpoint, which the exporter opens itself or inherits from systemd.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};

use super::{Address, WebConfig};

/// Removes the file at `path` if it is a Unix socket on which no process listens.
///
/// # Errors
/// The file cannot be removed.
pub fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let is_stale = path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_stale { std::fs::remove_file(path) } else { Ok(()) }
}

/// A listening socket of the exporter's HTTP endpoint.
pub enum Listener {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix socket, and if this process created the socket's file, the path and the [`identity`] of the file.
    Unix(UnixListener, Option<(PathBuf, (u64, u64))>),
}

/// Returns the device number and the inode number of the file at `path`, which together identify the file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|file| (file.dev(), file.ino()))
}

impl Listener {
    /// Opens a socket that listens on `address`. Replaces the file of a Unix socket on which no process listens.
    ///
    /// # Errors
    /// The process cannot listen on the address, for example because another process listens on it.
    pub fn bind(address: &Address) -> Result<Self> {
        const ADVICE: &str = "choose another address with --metrics-addr";
        match address {
            Address::Tcp(address) => TcpListener::bind(address)
                .map(Listener::Tcp)
                .with_context(|| format!("cannot listen on {address} ({ADVICE} HOST:PORT)")),
            Address::Unix(path) => {
                remove_stale_socket(path)?;
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("cannot listen on {} ({ADVICE})", path.display()))?;
                Ok(Listener::Unix(listener, Some((path.clone(), identity(path)?))))
            }
        }
    }

    /// Creates a listener from a listening socket that the service manager (systemd) passed to the exporter.
    ///
    /// # Errors
    /// The descriptor is not a listening socket.
    pub fn inherited(fd: OwnedFd) -> Result<Self> {
        if !getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false) {
            bail!("the inherited HTTP file descriptor is not a listening socket");
        }
        let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
        Ok(match name.family() {
            Some(AddressFamily::Unix) => Listener::Unix(fd.into(), None),
            _ => Listener::Tcp(fd.into()),
        })
    }

    /// Returns a warning that `address` has no effect, because this socket was inherited; `None` if `address` is the
    /// socket's own address or the default.
    pub fn unused_address(&self, address: &Address, default: &str) -> Option<String> {
        let is_used = match (self, address) {
            (Listener::Tcp(listener), Address::Tcp(address)) => {
                listener.local_addr().is_ok_and(|local| address.parse() == Ok(local))
            }
            (Listener::Unix(..), _) => self.describe() == address.to_string(),
            _ => false,
        };
        (!is_used && default.parse().as_ref() != Ok(address)).then(|| {
            format!(
                "--metrics-addr {address} has no effect, because systemd passed the socket {}; to change its address, set \
                 ListenStream= with `systemctl edit` in the socket unit (docs/systemd.md)",
                self.describe()
            )
        })
    }

    /// Removes the file of a Unix socket if this process created the file, and no other file has replaced the file.
    pub fn remove_file(&self) {
        if let Listener::Unix(_, Some((path, created))) = self
            && identity(path).is_ok_and(|present| present == *created)
        {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether the listener has a loopback TCP address. Browsers on this machine can connect to such a listener, but
    /// other machines cannot.
    pub(super) fn is_on_loopback(&self) -> bool {
        match self {
            Listener::Tcp(listener) => {
                listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback())
            }
            Listener::Unix(..) => false,
        }
    }

    /// Whether only processes on this machine can connect to the listener.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Listener::Unix(..)) || self.is_on_loopback()
    }

    /// Returns the listener's URL for log messages, with the scheme `https` if the web configuration has TLS.
    pub fn describe_with(&self, web_config: &WebConfig) -> String {
        match web_config.tls() {
            Some(_) => self.describe().replacen("http://", "https://", 1),
            None => self.describe(),
        }
    }

    /// Returns the listener's URL for log messages: `http://ADDRESS:PORT` or `unix:PATH`.
    pub fn describe(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_or("an unknown address".into(), |address| format!("http://{address}")),
            Listener::Unix(listener, _) => {
                let path =
                    listener.local_addr().ok().and_then(|address| address.as_pathname().map(PathBuf::from));
                format!("unix:{}", path.unwrap_or_default().display())
            }
        }
    }
}

#[cfg(test)]
#[test]
fn ignored_address_is_reported() {
    const DEFAULT: &str = "127.0.0.1:9332";
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = tcp.local_addr().unwrap().to_string();
    let inherited = Listener::inherited(tcp.into()).unwrap();
    let unused =
        |listener: &Listener, address: &str| listener.unused_address(&address.parse().unwrap(), DEFAULT);
    assert_eq!((unused(&inherited, DEFAULT), unused(&inherited, &own)), (None, None));
    let message = unused(&inherited, "0.0.0.0:9332").unwrap();
    assert!(
        message.starts_with("--metrics-addr 0.0.0.0:9332 has no effect") && message.contains(&own),
        "{message}"
    );
    assert!(unused(&inherited, "unix:/run/x").is_some());
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let unix = Listener::bind(&Address::Unix(path.clone())).unwrap();
    assert_eq!(unused(&unix, &format!("unix:{}", path.display())), None);
    assert!(unused(&unix, "unix:/run/x").is_some());
}

#[cfg(test)]
#[test]
fn only_its_own_socket_file_is_removed() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("metrics.sock");
    let bind = || Listener::bind(&Address::Unix(path.clone())).unwrap();
    let first = bind();
    std::fs::rename(&path, dir.path().join("moved")).unwrap();
    let second = bind();
    first.remove_file();
    assert!(path.exists());
    second.remove_file();
    assert!(!path.exists());
}
