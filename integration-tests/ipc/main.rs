//! The IPC exporter as a user runs it: the binary, beside a real bitcoin-node on regtest, and beside a fake node for
//! what the real one does not offer or will not do.

mod bad_input;
mod block_store;
mod failing_calls;
mod fibre;
#[path = "../harness/mod.rs"]
mod harness;
mod hostile;
mod http_abuse;
mod http_rpc;
mod next_block;
mod notifications;
mod read_only;
mod real_node;
mod reconnect;
mod relay;
mod reorgs;
mod sandbox;
mod shutdown;
mod socket_proxy;
mod versions;
mod web_config;
mod without_ipc;

use harness::{eventually, exporter, fake, node};
