//! The harness of the integration tests: starts fake and real nodes, exporters, proxies, P2P peers and monitoring
//! programs.
#![allow(dead_code, reason = "each test binary uses a part of the harness")]

pub mod browser;
pub mod exporter;
pub mod fake;
pub mod fake_http;
#[cfg(feature = "usdt")]
pub mod fixture;
pub mod node;
pub mod peer;
pub mod postgres;
pub mod prometheus;
pub mod proxy;
pub mod skip;
pub mod templates;
pub mod webhook;
pub mod without_rpc;

use std::time::{Duration, Instant};

/// Calls `found` repeatedly until it returns a value, and returns the value. Panics with `what` after 30 seconds.
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        if let Some(found) = found() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("did not happen: {what}");
}
