//! The metrics endpoint.
//!
//! It has a thread of its own: neither a slow or hostile scraper nor rendering a large page can delay an answer to
//! the node.
//!
//! - `address` and `listener` are where to listen.
//! - `server` accepts connections and answers requests; `connections` is how many there may be, `deadline` how long an
//!   answer may take.
//! - `routes` is what there is to ask for, and for whom; `host` under which names, `negotiate` what answers look like.
//! - `web_config` is `--web.config.file`: TLS and passwords.

mod address;
mod connections;
mod deadline;
mod host;
mod listener;
mod negotiate;
mod routes;
mod server;
mod web_config;

pub use address::Address;
pub use connections::{Connections, Place};
pub use host::HostName;
pub use hyper_util::server::graceful::GracefulShutdown;
pub use listener::{Listener, remove_stale_socket};
pub use routes::Pages;
pub use server::{Endpoint, Serving, serve_connection, serve_on_thread};
pub use web_config::WebConfig;
