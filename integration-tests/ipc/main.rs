//! Integration tests of the binary `bitcoind-ipc-exporter`, with a real node on regtest, and with a fake node for
//! interfaces and faults that the real node does not have.

mod bad_input;
mod block_contents;
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
mod raw_calls;
mod read_only;
mod real_node;
mod reconnect;
mod relay;
mod reorgs;
mod sandbox;
mod setup;
mod shutdown;
mod socket_proxy;
mod versions;
mod web_config;
mod without_ipc;

use harness::{eventually, exporter, fake, node};
