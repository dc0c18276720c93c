//! Opens connections to a node, from an inherited connection, a socket path, or both.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::unistd::{Uid, User};

use crate::supervisor::{ConnectFailure, GuardedSockets, InheritedConnection, SupervisorClient};

/// Parameters of one of Bitcoin Core's chains: its name, its directory, and its default RPC port.
pub struct ChainParams {
    /// Name of the chain in `-chain` and in getblockchaininfo.
    pub name: &'static str,
    /// Directory of the chain below the data directory; empty for mainnet.
    folder: &'static str,
    /// Default port of JSON-RPC over HTTP.
    pub rpc_port: u16,
}

impl ChainParams {
    const fn new(name: &'static str, folder: &'static str, rpc_port: u16) -> Self {
        ChainParams { name, folder, rpc_port }
    }

    /// The chain with this name; mainnet if no chain has this name.
    pub fn from_name(name: &str) -> &'static Self {
        CHAINS.iter().find(|chain| chain.name == name).unwrap_or(&CHAINS[0])
    }

    /// The chain whose directory contains this file. Never returns mainnet, because mainnet's files are directly in the
    /// data directory.
    pub fn from_path(path: &Path) -> Option<&'static Self> {
        let folder = path.parent()?.file_name()?;
        CHAINS.iter().find(|chain| folder == chain.folder)
    }

    /// The directory in which a node on this chain creates its IPC socket and its RPC cookie.
    pub fn folder(&self, datadir: &Path) -> PathBuf {
        datadir.join(self.folder)
    }
}

/// The chains of Bitcoin Core; mainnet is first.
pub static CHAINS: [ChainParams; 5] = [
    ChainParams::new("main", "", 8332),
    ChainParams::new("test", "testnet3", 18332),
    ChainParams::new("testnet4", "testnet4", 48332),
    ChainParams::new("signet", "signet", 38332),
    ChainParams::new("regtest", "regtest", 18443),
];

/// The default data directory of a node: `~/.bitcoin`.
pub fn default_datadir() -> PathBuf {
    std::env::home_dir().unwrap_or("/".into()).join(".bitcoin")
}

/// Default path of the socket of `bitcoin-node -ipcbind=unix`.
fn default_socket(datadir: &Path, chain: &str) -> PathBuf {
    ChainParams::from_name(chain).folder(datadir).join("node.sock")
}

/// Returns the socket path to connect to: `socket_path`, or the default path in `datadir`. If neither is set, returns
/// the default path in the default data directory, or `None` if a connection was inherited.
pub fn socket_path(
    has_inherited: bool,
    socket_path: Option<PathBuf>,
    datadir: Option<&Path>,
    chain: &str,
) -> Option<PathBuf> {
    match (socket_path, datadir) {
        (Some(path), _) => Some(path),
        (None, Some(datadir)) => Some(default_socket(datadir, chain)),
        (None, None) if has_inherited => None,
        (None, None) => Some(default_socket(&default_datadir(), chain)),
    }
}

/// The configured way to reach a node: an inherited connection, a socket path, or both. If both are configured, the
/// inherited connection is used first, and the socket path for every later connection. The supervisor process owns the
/// inherited connection and opens new connections.
pub struct NodeEndpoint {
    supervisor: Rc<SupervisorClient>,
    inherited: Option<InheritedConnection>,
    path: Option<PathBuf>,
    description: String,
}

impl NodeEndpoint {
    /// Stores the configuration without opening a connection.
    pub fn new(
        supervisor: Rc<SupervisorClient>,
        inherited: Option<InheritedConnection>,
        path: Option<PathBuf>,
    ) -> Self {
        let description = match (&inherited, &path) {
            (None, Some(path)) => path.display().to_string(),
            _ => "the inherited connection".to_string(),
        };
        NodeEndpoint { supervisor, inherited, path, description }
    }

    /// Whether [`open`](Self::open) can succeed again after the current connection is closed.
    pub fn can_reopen(&self) -> bool {
        self.path.is_some()
    }

    /// Path of the node's socket, if it is known.
    pub fn socket(&self) -> Option<PathBuf> {
        self.path.clone().or_else(|| self.inherited.as_ref()?.path.clone())
    }

    /// Text for log messages that names the connection: the socket path, or `the inherited connection`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// Inode and change time (seconds, nanoseconds) of the socket file, if the path is known and the file exists. A
    /// restarted node creates a new file, so these values change.
    pub fn file(&self) -> Option<(u64, i64, i64)> {
        let file = self.path.as_ref()?.metadata().ok()?;
        Some((file.ino(), file.ctime(), file.ctime_nsec()))
    }

    /// The client of the supervisor, which sends it requests about the node's process.
    pub fn supervisor(&self) -> Rc<SupervisorClient> {
        self.supervisor.clone()
    }

    /// Starts a guard on a connection to the node: on the inherited connection if it was not used yet, otherwise on a
    /// new connection to the socket path. `trace_budget` is the time for which the UTXO cache trace may delay the node
    /// in ten minutes; `None` sets no limit.
    ///
    /// # Errors
    /// Nothing listens at the path, the inherited connection was already used, or no guard could be started.
    pub async fn open(&mut self, trace_budget: Option<Duration>) -> Result<GuardedSockets> {
        let opened = self.supervisor.connect(trace_budget).await.context("the supervisor did not reply")?;
        if let (Some(path), false) = (&self.path, matches!(&opened, Ok(guarded) if guarded.inherited)) {
            self.description = path.display().to_string();
        }
        opened.map_err(|failure| match (failure, &self.path) {
            (ConnectFailure::Connect(errno), Some(path)) => explain(path, Error::from_raw_os_error(errno)),
            (ConnectFailure::NoPath | ConnectFailure::Connect(_), _) => {
                anyhow!("the inherited connection is closed, and there is no socket path to reconnect to; pass a socket path, or restart the exporter together with the node")
            }
            (ConnectFailure::Guard(errno), _) => anyhow!(Error::from_raw_os_error(errno))
                .context("cannot start the guard process from /proc/self/exe"),
            (ConnectFailure::Busy, _) => anyhow!("too many guards are waiting for responses of the node"),
        })
    }
}

/// Converts the I/O error of a failed connection attempt to an error message with the cause and a remedy.
fn explain(path: &Path, error: Error) -> anyhow::Error {
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
        let chain_of = |path: &str| ChainParams::from_path(Path::new(path)).map(|chain| chain.name);
        assert_eq!(chain_of("/d/testnet3/node.sock"), Some("test"));
        assert_eq!(
            (chain_of("/d/node.sock"), chain_of("/node.sock"), chain_of("node.sock")),
            (None, None, None)
        );
    }
}
