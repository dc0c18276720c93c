//! The IPC exporter as a user runs it: the binary, beside a real bitcoin-node on regtest, and beside a fake node for
//! what the real one does not offer or will not do.

mod bad_input;
mod exporter;
mod fake;
mod hostile;
mod node;
mod notifications;
mod real_node;

use std::time::{Duration, Instant};

/// Waits until `found` gives something; panics with `what` after a generous while.
fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        if let Some(found) = found() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("did not happen: {what}");
}

/// A directory of this test's own, removed at its end.
struct TempDir(std::path::PathBuf);

impl TempDir {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bitcoind-exporter-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a temporary directory");
        TempDir(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
