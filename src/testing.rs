//! Re-exports for tests, benches and fuzz targets. The binaries do not use this module.

pub use crate::collect::{SessionEnd, open};
pub use crate::http::connections::Authenticated;
pub use crate::http::server::serve_connection;
pub use crate::ipc::guard::{OpenFiles, TimedEvent, relay};
pub use crate::ipc::{Interfaces, IpcConnection, Mining, MiningSchema};
pub use crate::json_rpc::{method_names, whitelist_line};
pub use crate::node_process::SocketPeer;
#[cfg(feature = "usdt")]
pub use crate::usdt::events::EventReader;
pub use hyper_util::server::graceful::GracefulShutdown;

/// The modules generated from the Cap'n Proto schemas of the node's IPC interfaces.
pub mod schema {
    pub use crate::schema::{
        chain_capnp, common_capnp, handler_capnp, init_capnp, mining_capnp, node_capnp, proxy_capnp,
        rpc_capnp, tracing_capnp,
    };
}
