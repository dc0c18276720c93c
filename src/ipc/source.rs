//! Where the connection to a node comes from.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{SockType, SockaddrStorage, getpeername, getsockopt, sockopt};
use nix::unistd::{Uid, User};
use tokio::net::UnixStream;

/// A chain that Bitcoin Core knows.
pub struct KnownChain {
    /// As `-chain` and getblockchaininfo name it.
    pub name: &'static str,
    /// Below the data directory.
    folder: &'static str,
    /// Of JSON-RPC over HTTP.
    pub rpc_port: u16,
}

impl KnownChain {
    const fn new(name: &'static str, folder: &'static str, rpc_port: u16) -> Self {
        KnownChain { name, folder, rpc_port }
    }

    /// The chain of this name.
    pub fn named(name: &str) -> &'static Self {
        CHAINS.iter().find(|chain| chain.name == name).unwrap_or(&CHAINS[0])
    }

    /// The chain in whose folder below a data directory this file is; never mainnet, which has no folder of its own.
    pub fn of_file(path: &Path) -> Option<&'static Self> {
        let folder = path.parent()?.file_name()?;
        CHAINS.iter().find(|chain| folder == chain.folder)
    }

    /// Where a node on this chain has its socket and its cookie.
    pub fn folder(&self, datadir: &Path) -> PathBuf {
        datadir.join(self.folder)
    }
}

/// The chains that Bitcoin Core knows; mainnet is first.
pub static CHAINS: [KnownChain; 5] = [
    KnownChain::new("main", "", 8332),
    KnownChain::new("test", "testnet3", 18332),
    KnownChain::new("testnet4", "testnet4", 48332),
    KnownChain::new("signet", "signet", 38332),
    KnownChain::new("regtest", "regtest", 18443),
];

/// Where a node keeps its data unless it is told otherwise.
pub fn default_datadir() -> PathBuf {
    std::env::home_dir().unwrap_or("/".into()).join(".bitcoin")
}

/// Where `bitcoin-node -ipcbind=unix` puts its socket.
fn default_socket(datadir: &Path, chain: &str) -> PathBuf {
    KnownChain::named(chain).folder(datadir).join("node.sock")
}

/// A connection that was handed to us, a path to connect to, or both: the first once, then the path.
pub struct Source {
    inherited: Option<StdUnixStream>,
    path: Option<PathBuf>,
    what: String,
}

impl Source {
    /// The connection that was inherited, then this path, or that of a node with this data directory. Where nothing is
    /// said, a mainnet node with the usual one.
    ///
    /// # Errors
    /// The inherited descriptor is not a connected stream socket.
    pub fn of(
        inherited: Option<OwnedFd>,
        socket_path: Option<PathBuf>,
        datadir: Option<&Path>,
        chain: &str,
    ) -> Result<Self> {
        let path = match (socket_path, datadir) {
            (Some(path), _) => Some(path),
            (None, Some(datadir)) => Some(default_socket(datadir, chain)),
            (None, None) if inherited.is_some() => None,
            (None, None) => Some(default_socket(&default_datadir(), chain)),
        };
        Self::new(inherited, path)
    }

    /// The inherited descriptor must be a connected stream socket.
    fn new(inherited: Option<OwnedFd>, path: Option<PathBuf>) -> Result<Self> {
        let what = match (&inherited, &path) {
            (Some(_), _) => "the inherited connection".to_string(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => bail!("neither a connection nor a socket path"),
        };
        let inherited = inherited.map(checked).transpose()?;
        Ok(Source { inherited, path, what })
    }

    /// Whether [`open`](Self::open) can succeed again after the present connection ends.
    pub fn can_reopen(&self) -> bool {
        self.path.is_some()
    }

    /// Where the node's socket is, if that is known.
    pub fn socket(&self) -> Option<PathBuf> {
        let inherited = || {
            let peer = self.inherited.as_ref()?.peer_addr().ok()?;
            peer.as_pathname().filter(|path| path.is_absolute()).map(PathBuf::from)
        };
        self.path.clone().or_else(inherited)
    }

    /// For messages.
    pub fn describe(&self) -> &str {
        &self.what
    }

    /// The file at the path, if there is one: another node makes another.
    pub fn file(&self) -> Option<(u64, i64, i64)> {
        let file = self.path.as_ref()?.metadata().ok()?;
        Some((file.ino(), file.ctime(), file.ctime_nsec()))
    }

    /// The inherited connection if it was not used yet, else a new connection to the path.
    ///
    /// # Errors
    /// Nothing listens at the path, or the inherited connection was used up.
    pub async fn open(&mut self) -> Result<UnixStream> {
        if let Some(stream) = self.inherited.take() {
            return Ok(UnixStream::from_std(stream)?);
        }
        let path =
            self.path.as_ref().context("the inherited connection has ended and no socket path was given")?;
        self.what = path.display().to_string();
        UnixStream::connect(path).await.map_err(|error| explain(path, error))
    }
}

fn checked(fd: OwnedFd) -> Result<StdUnixStream> {
    let wants = "it must be a connected stream socket";
    let kind = getsockopt(&fd, sockopt::SockType)
        .map_err(|_| anyhow!("the inherited file descriptor is not a socket; {wants}"))?;
    if kind != SockType::Stream {
        bail!("the inherited socket is not a stream socket ({kind:?}); {wants}");
    }
    getpeername::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&fd))
        .map_err(|_| anyhow!("the inherited socket is not connected; {wants}"))?;
    let stream = StdUnixStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// What failed, and what to do about it.
fn explain(path: &Path, error: std::io::Error) -> anyhow::Error {
    let at = path.display();
    let metadata = path.metadata();
    if metadata.as_ref().is_ok_and(|metadata| !metadata.file_type().is_socket()) {
        return anyhow!(
            "cannot connect to {at}: it is not a socket; pass the socket of bitcoin-node -ipcbind=unix"
        );
    }
    match error.kind() {
        ErrorKind::NotADirectory => {
            anyhow!("cannot connect to {at}: a part of the path is a file, not a directory; correct the path")
        }
        ErrorKind::NotFound => {
            anyhow!(
                "cannot connect to {at}: no such socket; start the node with -ipcbind=unix, or pass the path of its socket"
            )
        }
        ErrorKind::ConnectionRefused => {
            anyhow!("cannot connect to {at}: connection refused; the node has exited or is starting")
        }
        ErrorKind::PermissionDenied => {
            let owner = metadata.ok().and_then(|metadata| {
                User::from_uid(Uid::from_raw(metadata.uid())).ok().flatten().map(|user| user.name)
            });
            let owner = owner.map_or("another user".to_string(), |name| format!("user {name}"));
            anyhow!(
                "cannot connect to {at}: permission denied (the socket belongs to {owner}; run as that user or let \
                 systemd open it with OpenFile={at}:ipc)"
            )
        }
        _ => anyhow!("cannot connect to {at}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chain_has_its_folder() {
        let datadir = Path::new("/d");
        assert_eq!(default_socket(datadir, "main"), Path::new("/d/node.sock"));
        assert_eq!(default_socket(datadir, "test"), Path::new("/d/testnet3/node.sock"));
        assert_eq!(default_socket(datadir, "regtest"), Path::new("/d/regtest/node.sock"));
        let chain_of = |path: &str| KnownChain::of_file(Path::new(path)).map(|chain| chain.name);
        assert_eq!(chain_of("/d/testnet3/node.sock"), Some("test"));
        assert_eq!(
            (chain_of("/d/node.sock"), chain_of("/node.sock"), chain_of("node.sock")),
            (None, None, None)
        );
    }

    #[test]
    fn an_inherited_descriptor_is_checked_for_what_it_is() {
        let message = |fd: OwnedFd| Source::new(Some(fd), None).err().unwrap().to_string();
        assert!(message(std::fs::File::open("/dev/null").unwrap().into()).contains("not a socket"));
        assert!(
            message(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()).contains("not a stream socket")
        );
        assert!(
            message(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()).contains("not connected")
        );
        let (ours, _theirs) = StdUnixStream::pair().unwrap();
        assert!(Source::new(Some(ours.into()), None).is_ok());
    }
}
