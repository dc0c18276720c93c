//! Opens connections to a node: uses a connection that was inherited at the exporter's start (for example from
//! systemd), or connects to a socket path. The supervisor, the exporter's parent process, opens each connection, and
//! starts a guard for it: a process that relays messages between the exporter and the node.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::unistd::{Uid, User};

use crate::bitcoin_core::{ChainParams, default_datadir};
use crate::supervisor::{ConnectFailure, GuardedSockets, InheritedConnection, SupervisorClient};

/// Returns the path of the node's socket to which the exporter connects: `socket_path`, or the default path in
/// `datadir`. If neither is set, returns the default path in the default data directory, or `None` if a connection was
/// inherited.
pub fn socket_path(
    has_inherited: bool,
    socket_path: Option<PathBuf>,
    datadir: Option<&Path>,
    chain: &str,
) -> Option<PathBuf> {
    if socket_path.is_some() || datadir.is_none() && has_inherited {
        return socket_path;
    }
    let datadir = datadir.map_or_else(default_datadir, PathBuf::from);
    // The default path of the socket on which `bitcoin-node -ipcbind=unix` listens.
    Some(ChainParams::from_name(chain).folder(&datadir).join("node.sock"))
}

/// The configured way to reach a node: a connection that the exporter inherited at its start (for example from
/// systemd), a socket path, or both. If both are configured, the inherited connection is used first, and the socket
/// path for every later connection. The supervisor process owns the inherited connection and opens new connections.
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

    /// Path of the node's socket; `None` if no path is configured and the path of the inherited connection is unknown.
    pub fn socket(&self) -> Option<PathBuf> {
        self.path.clone().or_else(|| self.inherited.as_ref()?.path.clone())
    }

    /// Text for log messages that names the connection: the socket path, or `the inherited connection`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// Inode and change time (seconds, nanoseconds) of the node's socket file, if the path is configured and the file
    /// exists. A restarted node creates a new socket file, so these values change.
    pub fn file(&self) -> Option<(u64, i64, i64)> {
        let file = self.path.as_ref()?.metadata().ok()?;
        Some((file.ino(), file.ctime(), file.ctime_nsec()))
    }

    /// The client that sends the exporter's requests to the supervisor process, which opens connections and starts
    /// guards.
    pub fn supervisor(&self) -> Rc<SupervisorClient> {
        self.supervisor.clone()
    }

    /// Starts a guard on a connection to the node: on the inherited connection if it was not used yet, otherwise on a
    /// new connection to the socket path. `trace_budget` is the time for which the UTXO cache trace may delay the node
    /// in a period of ten minutes; `None` sets no limit.
    ///
    /// # Errors
    /// No process listens at the socket path, the inherited connection was already used and there is no socket path, or
    /// the supervisor could not start a guard.
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
