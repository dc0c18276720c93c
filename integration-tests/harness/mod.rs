//! The test harness that the tests of both exporters share.
#![allow(dead_code, reason = "each uses a part of it")]

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

/// Waits until `found` returns a value; panics with `what` after 30 seconds.
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
