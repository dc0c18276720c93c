//! The IPC exporter as a user runs it: the binary, beside a real bitcoin-node on regtest, and beside a fake node for
//! what the real one does not offer or will not do.

mod bad_input;
mod exporter;
mod fake;
mod hostile;
mod node;
mod notifications;
mod real_node;
mod temp_dir;

use std::time::{Duration, Instant};

use temp_dir::TempDir;

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
