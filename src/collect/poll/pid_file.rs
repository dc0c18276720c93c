//! Finds the process of a node that is polled over HTTP only, by the PID file in its data directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::debug;

use super::RateLimitedCalls;
use super::file_system::directory_of_cookie;
use crate::files;
use crate::node_process::ProcessUsage;

/// Default name of the PID file in all programs of Bitcoin Core. The option `-pid` changes the name.
const FILE: &str = "bitcoind.pid";
/// Maximum size of the PID file that the exporter reads, in bytes.
const MAX_BYTES: u64 = 32;
/// Timeout for reading the PID file, which can be on a network mount that does not respond. A local file system
/// responds within microseconds.
const READ_TIMEOUT: Duration = Duration::from_millis(100);

/// Returns the process whose PID is in the PID file, if the age of the process matches `uptime`, which is the uptime of
/// the node in seconds. Returns `None` over IPC, because the process behind the socket is already known, and if the URL
/// for JSON-RPC over HTTP is not local.
pub async fn find(calls: &RateLimitedCalls, uptime: f64) -> Option<ProcessUsage> {
    if !calls.interfaces.is_http_only() || !calls.context.http_rpc.as_ref()?.config().url.is_local() {
        return None;
    }
    let named = calls.context.config.data_directory.named.clone();
    for directory in named.into_iter().chain(directory_of_cookie(calls)) {
        let found = read(directory.join(FILE)).await.and_then(|pid| ProcessUsage::of_node(pid, uptime));
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Reads the PID in a PID file; `None` if the exporter may not read the file, or if there is no file because the node
/// is not running.
async fn read(path: PathBuf) -> Option<i32> {
    let reading = files::on_thread(&path, |path: &Path| files::read_regular(path, MAX_BYTES));
    match tokio::time::timeout(READ_TIMEOUT, reading).await {
        Ok(Ok(Ok(bytes))) => std::str::from_utf8(&bytes).ok()?.trim().parse().ok().filter(|pid| *pid > 0),
        Ok(Ok(Err(error)) | Err(error)) => {
            debug!("cannot read {}: {error}", path.display());
            None
        }
        Err(_) => None,
    }
}
