//! Metrics of the file system that contains the node's data directory: size and free space.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use serde_json::Value;
use tracing::debug;

use super::RateLimitedCalls;
use crate::files;
use crate::ipc::Interfaces;
use crate::json_rpc::http::Credentials;

/// Timeout for reading the size and free space of a file system. For a local file system statvfs(2) takes microseconds;
/// for a network file system whose server does not respond, statvfs(2) never returns.
const READ_TIMEOUT: Duration = Duration::from_millis(100);

/// Size and free space of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct DiskSpace {
    /// Free space that unprivileged users can use.
    free: f64,
    size: f64,
}

/// Paths that may be the directory of the node's chain, which contains the directory `blocks`. The directory of mainnet
/// is the data directory, and the directories of other chains are in the data directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatadirCandidates {
    /// The directory that the user configured.
    pub named: Option<PathBuf>,
    /// Directories in which the exporter has found a file of the node: the IPC socket, the cookie, or, if JSON-RPC
    /// calls go over HTTP, the log file.
    pub found: Vec<PathBuf>,
    /// Directory of the node's log file, which the node has returned in getrpcinfo over IPC; `None` before this
    /// response, and if JSON-RPC calls go over HTTP.
    pub of_log: Option<PathBuf>,
}

impl DatadirCandidates {
    /// Returns the directory of the log file whose path is `logpath` in the response to getrpcinfo. `None` if the path
    /// is not absolute.
    fn directory_of_log(path: &str) -> Option<PathBuf> {
        Path::new(path).parent().filter(|path| path.is_absolute()).map(PathBuf::from)
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        self.named.iter().chain(&self.found).chain(&self.of_log).map(PathBuf::as_path)
    }

    /// Returns the first candidate that contains the directory `blocks`. A candidate that the exporter has no
    /// permission to check is accepted if the user configured it, or if it is the directory of the log file and no part
    /// of its path is `log` or `logs` (`-debuglogfile`). Because of these candidates, the exporter can export the free
    /// space even without permission to access the data directory.
    fn data_directory(&self) -> Option<&Path> {
        let is_of_logs = |path: &Path| path.iter().any(|part| part == "log" || part == "logs");
        let log = self.of_log.as_deref();
        let found = self.all().find(|path| has_blocks(path) == Ok(true));
        let unseen = self.named.as_deref().into_iter().chain(log.filter(|path| !is_of_logs(path)));
        found.or(unseen.into_iter().find(|path| has_blocks(path) == Err(ErrorKind::PermissionDenied)))
    }
}

fn has_blocks(path: &Path) -> Result<bool, ErrorKind> {
    path.join("blocks").metadata().map(|blocks| blocks.is_dir()).map_err(|error| error.kind())
}

/// Reads the size and free space of the file system that contains `path`. If the exporter lacks permission to access
/// `path`, reads the file system of the nearest accessible parent directory instead.
fn space(path: &Path) -> Option<DiskSpace> {
    let mut reads = path.ancestors().map(|path| (path, statvfs(path)));
    let (path, read) = reads.find(|(_, read)| !matches!(read, Err(Errno::EACCES)))?;
    let log = |error: &Errno| debug!("cannot read the free disk space at {}: {error}", path.display());
    let found = read.inspect_err(log).ok()?;
    let bytes = |blocks| blocks as f64 * found.fragment_size() as f64;
    Some(DiskSpace { free: bytes(found.blocks_available()), size: bytes(found.blocks()) })
}

/// Reads the size and free space of the data directory's file system. Returns `None` if no candidate is a data
/// directory, or if the file system does not respond.
async fn read(candidates: DatadirCandidates) -> Option<DiskSpace> {
    let first = candidates.all().next()?.to_path_buf();
    let read = files::on_thread(&first, move |_| space(candidates.data_directory()?));
    tokio::time::timeout(READ_TIMEOUT, read).await.ok()?.ok()?
}

/// Poller of the size and free space of the file system that contains the connected node's data directory.
pub struct DatadirPoller {
    candidates: DatadirCandidates,
    log_known: bool,
}

impl DatadirPoller {
    /// Creates a poller of the data directory's file system. If the node is polled only over HTTP, removes the
    /// directory of the configured IPC socket from the candidates, because this socket may belong to another node.
    pub fn new(mut candidates: DatadirCandidates, interfaces: &Interfaces) -> Self {
        if interfaces.is_http_only() {
            candidates.found.clear();
        }
        DatadirPoller { candidates, log_known: false }
    }

    /// Reads and exports the size and free space of the data directory's file system, at each poll of the node.
    /// `rpc_info` is the response to getrpcinfo.
    pub async fn poll(&mut self, calls: &mut RateLimitedCalls, rpc_info: &Value) {
        self.add_log(calls, rpc_info);
        let mut candidates = self.candidates.clone();
        candidates.found.extend(directory_of_cookie(calls));
        let space = read(candidates).await;
        let metrics = &calls.metrics().node;
        metrics.file_system_free.set(space.map(|space| space.free));
        metrics.file_system_size.set(space.map(|space| space.size));
    }

    /// Adds the directory of the node's log file, whose path getrpcinfo returns, to the candidates, once per
    /// connection. If JSON-RPC calls go over IPC, the directory is always added, because the node runs on this machine.
    /// If the calls go over HTTP, the node can run on another machine; the directory is then added only if the host in
    /// the URL is local and no other candidate is known.
    fn add_log(&mut self, calls: &RateLimitedCalls, rpc_info: &Value) {
        let over_http = calls.interfaces.uses_http();
        let is_needed = || {
            let is_local = calls.context.http_rpc.as_ref().is_some_and(|http| http.config().url.is_local());
            is_local
                && self.candidates == DatadirCandidates::default()
                && directory_of_cookie(calls).is_none()
        };
        if self.log_known || rpc_info.is_null() || (over_http && !is_needed()) {
            return;
        }
        self.log_known = true;
        let directory = rpc_info["logpath"].as_str().and_then(DatadirCandidates::directory_of_log);
        if over_http {
            self.candidates.found.extend(directory);
        } else {
            self.candidates.of_log = directory;
        }
    }
}

/// Returns the directory of the cookie file, if the node has accepted the cookie in that file.
pub(super) fn directory_of_cookie(calls: &RateLimitedCalls) -> Option<PathBuf> {
    let http = calls.context.http_rpc.as_ref()?;
    match &http.config().credentials {
        Credentials::Cookie(path) if http.is_usable() && calls.interfaces.uses_http() => {
            Some(path.parent()?.to_path_buf())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn data_directory_is_the_one_with_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        create_dir_all(at("node/blocks")).unwrap();
        create_dir_all(at("run")).unwrap();
        let candidates = |found: &[&str], log: &str| DatadirCandidates {
            found: found.iter().map(|name| at(name)).collect(),
            of_log: Some(at(log)),
            named: None,
        };
        for (found, log, expected) in [
            (&["node"][..], "logs", Some("node")),
            (&["run"], "node", Some("node")),
            (&["run", "node"], "logs", Some("node")),
            (&["run"], "run", None),
            (&["missing"], "missing", None),
            (&[], "node", Some("node")),
        ] {
            let candidates = candidates(found, log);
            assert_eq!(candidates.data_directory(), expected.map(at).as_deref(), "{found:?} {log}");
        }
        let space = space(&at("node")).unwrap();
        assert!(space.size >= space.free && space.free > 0.0, "{space:?}");
        assert_eq!(super::space(&at("missing")), None);
    }

    #[test]
    fn closed_directory_counts_if_named_or_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join("closed").join(name);
        create_dir_all(at("node/blocks")).unwrap();
        create_dir_all(at("log/blocks")).unwrap();
        set_permissions(folder.path().join("closed"), PermissionsExt::from_mode(0o000)).unwrap();
        let is_root = has_blocks(&at("node")).is_ok(); // root may access every directory
        let found = DatadirCandidates { found: vec![at("node")], ..DatadirCandidates::default() };
        assert_eq!(found.data_directory().is_some(), is_root);
        let log = DatadirCandidates { of_log: Some(at("log")), ..DatadirCandidates::default() };
        assert_eq!(log.data_directory().is_some(), is_root);
        let log = DatadirCandidates { of_log: Some(at("node")), ..DatadirCandidates::default() };
        assert_eq!(log.data_directory(), Some(&*at("node")));
        let named = DatadirCandidates { named: Some(at("log")), ..log };
        assert_eq!(named.data_directory(), Some(&*at("log")));
        assert_eq!(space(&at("log")).map(|space| space.size), space(folder.path()).map(|space| space.size));
        set_permissions(folder.path().join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    }

    #[test]
    fn log_has_a_directory_if_its_path_is_absolute() {
        let directory = |path| DatadirCandidates::directory_of_log(path);
        assert_eq!(directory("/d/regtest/debug.log"), Some("/d/regtest".into()));
        assert_eq!((directory("debug.log"), directory("/"), directory("")), (None, None, None));
    }
}
