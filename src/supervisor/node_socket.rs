//! Opens the supervisor's connections to the node: uses a descriptor that the supervisor inherited at its start (for
//! example from systemd), or connects to a socket path.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, getpeername, getsockopt, socket,
    sockopt,
};

use super::channel::ConnectFailure;

/// The configured way to reach the node: an inherited connection, which can be used once, and a socket path for new
/// connections.
pub struct NodeSocket {
    inherited: Option<OwnedFd>,
    path: Option<PathBuf>,
}

impl NodeSocket {
    /// Stores the inherited connection and the path of the node's socket.
    ///
    /// # Errors
    /// The inherited descriptor is not a connected stream socket.
    pub fn new(inherited: Option<OwnedFd>, path: Option<PathBuf>) -> Result<Self> {
        let inherited = inherited.map(check_stream_socket).transpose()?;
        Ok(NodeSocket { inherited, path })
    }

    /// Encodes the description of the inherited connection that is passed to the exporter: `-` if there is none,
    /// otherwise `=` followed by the path to which the node has bound its socket. The path is omitted if it is unknown
    /// or not absolute.
    pub fn describe_inherited(&self) -> std::ffi::OsString {
        let Some(fd) = &self.inherited else { return "-".into() };
        let peer: Option<UnixAddr> = getpeername(fd.as_raw_fd()).ok();
        let path = peer.as_ref().and_then(UnixAddr::path).filter(|path| path.is_absolute());
        let mut described = std::ffi::OsString::from("=");
        path.into_iter().for_each(|path| described.push(path));
        described
    }

    /// Opens a connection to the node. The flag in the result is true for the inherited connection. Connecting never
    /// blocks.
    ///
    /// # Errors
    /// The inherited connection was already used and no socket path is configured, no process listens at the path, or
    /// the node hangs and its queue of pending connections is full.
    pub fn open(&mut self) -> Result<(OwnedFd, bool), ConnectFailure> {
        if let Some(fd) = self.inherited.take() {
            return Ok((fd, true));
        }
        let path = self.path.as_ref().ok_or(ConnectFailure::NoPath)?;
        let connected = || -> nix::Result<OwnedFd> {
            let address = UnixAddr::new(path)?;
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            connect(fd.as_raw_fd(), &address)?;
            Ok(fd)
        };
        connected().map(|fd| (fd, false)).map_err(|error| ConnectFailure::Connect(error as i32))
    }
}

/// PID of the process at the other end of the socket; 0 if that process is in another PID namespace.
pub fn peer_pid(fd: &OwnedFd) -> i32 {
    getsockopt(fd, sockopt::PeerCredentials).map_or(0, |peer| peer.pid())
}

/// Returns the errno of an I/O error, or EIO for an error without an errno.
pub fn errno(error: &anyhow::Error) -> i32 {
    let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    io.or_else(|| error.downcast_ref::<Errno>().map(|errno| *errno as i32)).unwrap_or(Errno::EIO as i32)
}

fn check_stream_socket(fd: OwnedFd) -> Result<OwnedFd> {
    let wants = "it must be a connected stream socket";
    let kind = getsockopt(&fd, sockopt::SockType)
        .map_err(|_| anyhow!("the inherited file descriptor is not a socket; {wants}"))?;
    if kind != SockType::Stream {
        bail!("the inherited socket is not a stream socket ({kind:?}); {wants}");
    }
    getpeername::<SockaddrStorage>(fd.as_raw_fd())
        .map_err(|_| anyhow!("the inherited socket is not connected; {wants}"))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn inherited_descriptors_must_be_connected_streams() {
        let message = |fd: OwnedFd| NodeSocket::new(Some(fd), None).err().unwrap().to_string();
        assert!(message(std::fs::File::open("/dev/null").unwrap().into()).contains("not a socket"));
        assert!(
            message(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()).contains("not a stream socket")
        );
        assert!(
            message(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()).contains("not connected")
        );
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut socket = NodeSocket::new(Some(ours.into()), None).unwrap();
        assert!(socket.open().unwrap().1, "the inherited one");
        assert_eq!(socket.open().unwrap_err(), ConnectFailure::NoPath);
    }

    #[test]
    fn connecting_reports_the_error_number() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("node.sock");
        let mut socket = NodeSocket::new(None, Some(path.clone())).unwrap();
        assert_eq!(socket.open().unwrap_err(), ConnectFailure::Connect(Errno::ENOENT as i32));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (connected, inherited) = socket.open().unwrap();
        assert_eq!((peer_pid(&connected), inherited), (std::process::id() as i32, false));
        drop(listener);
        assert_eq!(socket.open().unwrap_err(), ConnectFailure::Connect(Errno::ECONNREFUSED as i32));
    }
}
