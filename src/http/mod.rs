//! The HTTP endpoint with the metrics.
//!
//! It has a thread of its own: a slow or hostile scraper, or rendering a large page, cannot delay a response to the node.
//!
//! - `address` and `listener` have the addresses and sockets to listen on.
//! - `server` accepts connections and handles requests; `routes` has the paths and their responses; `negotiate` selects the format, and
//!   `compression` compresses.
//! - `web_config` is `--web.config.file`: TLS and passwords.
//!
//! The table lists the attacks that the endpoint defends against, the part that prevents each one, and its test:
//!
//! | attack | part | test |
//! |---|---|---|
//! | many connections | `connections`: the oldest one is closed for a new one, those with a password last | `connections::tests`, `http_abuse.rs` |
//! | many health checks, which need no password | `server::connection_limit`: connections of their own | `server::tests` |
//! | a request, a handshake or an idle connection that never ends | `HEADER_TIMEOUT`, `HANDSHAKE_TIMEOUT`, `MAX_HEADER_BYTES` | `fuzz/targets/http.rs`, on a paused clock |
//! | responses that the client does not read, or reads byte by byte | `deadline`, `SOCKET_BYTES` | `deadline::tests`, `http_abuse.rs` |
//! | a web page whose host name resolves to loopback (DNS rebinding) | `host` | `host::tests`, `http_abuse.rs` |
//! | password guesses, each of which costs the time of a bcrypt check | `web_config::basic_auth`: one check at a time, a short queue, verified passwords are remembered | `basic_auth::tests`, `http_abuse.rs` |
//! | user names, revealed by the response time | `web_config::basic_auth`: unknown names are checked against another user's hash | `basic_auth::tests` |

mod address;
mod compression;
pub(crate) mod connections;
mod deadline;
mod host;
mod listener;
mod negotiate;
mod routes;
pub(crate) mod server;
mod web_config;

pub use address::Address;
pub use host::HostName;
pub use listener::Listener;
pub(crate) use listener::remove_stale_socket;
pub use routes::Pages;
pub use server::{Endpoint, HttpServerHandle, serve_on_thread};
pub use web_config::WebConfig;
