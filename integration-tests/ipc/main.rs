//! The IPC exporter as a user runs it: the binary, beside a real bitcoin-node on regtest, and beside a fake node for
//! what the real one does not offer or will not do.

mod bad_input;
#[path = "../common/mod.rs"]
mod common;
mod fake;
mod hostile;
mod notifications;
mod real_node;

use common::temp_dir::TempDir;
use common::{eventually, exporter, node, temp_dir};
