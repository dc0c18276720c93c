//! Metrics of the file system that contains the node's data directory: size and free space.

use std::path::PathBuf;

use serde_json::Value;

use super::RateLimitedCalls;
use crate::collect::file_system::{self, DatadirCandidates};
use crate::ipc::Interfaces;
use crate::json_rpc::http::Credentials;

/// Poller of the size and free space of the file system that contains the connected node's data directory.
pub struct DatadirPoller {
    candidates: DatadirCandidates,
    log_known: bool,
}

impl DatadirPoller {
    /// Creates a poller of the data directory's file system. If the node is polled only over HTTP, removes the
    /// directory of the IPC socket from the candidates, because that directory need not belong to this node.
    pub fn new(mut candidates: DatadirCandidates, interfaces: &Interfaces) -> Self {
        if interfaces.is_http_only() {
            candidates.found.clear();
        }
        DatadirPoller { candidates, log_known: false }
    }

    /// Reads and exports the size and free space of the data directory's file system. This function is called at each
    /// poll.
    pub async fn poll(&mut self, calls: &mut RateLimitedCalls, rpc_info: &Value) {
        self.add_log(calls, rpc_info);
        let mut candidates = self.candidates.clone();
        candidates.found.extend(directory_of_cookie(calls));
        let space = file_system::read(candidates).await;
        let metrics = &calls.metrics().node;
        metrics.file_system_free.set(space.map(|space| space.free));
        metrics.file_system_size.set(space.map(|space| space.size));
    }

    /// Adds the directory of the node's log file, which getrpcinfo returns, to the candidates once per connection. Over
    /// IPC the directory is always added, because the node runs on this machine. Over HTTP the node can run on another
    /// machine; the directory is then added only if the URL is local and no other candidate is known.
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
