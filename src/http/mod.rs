//! The metrics endpoint.
//!
//! It has a thread of its own: neither a slow or hostile scraper nor rendering a large page can delay an answer to
//! the node.
//!
//! - `address` and `listener` are where to listen.
//! - `server` accepts connections and answers requests; `routes` are the pages and who may read them, `negotiate` selects the
//!   format.
//! - `web_config` is `--web.config.file`: TLS and passwords.
//!
//! Each attack that is defended against, the part that prevents it, and its test:
//!
//! | attack | part | test |
//! |---|---|---|
//! | many connections | `connections`: the oldest is closed for a new one, those with a password last | `connections::tests`, `http_abuse.rs` |
//! | many health checks, which need no password | `server::connection_limit`: connections of their own | `server::tests` |
//! | a request, a handshake or an idle connection without an end | `HEADER_TIMEOUT`, `HANDSHAKE_TIMEOUT`, `MAX_HEADER_BYTES` | `fuzz/targets/http.rs`, on a paused clock |
//! | answers that are not read, or byte by byte | `deadline`, `SOCKET_BYTES` | `deadline::tests`, `http_abuse.rs` |
//! | a web page under a name that resolves to loopback (DNS rebinding) | `host` | `host::tests`, `http_abuse.rs` |
//! | guessed passwords, each of which costs bcrypt's time | `web_config::basic_auth`: one check at a time, a short queue, correct passwords remembered | `basic_auth::tests`, `http_abuse.rs` |
//! | user names, revealed by the time of an answer | `web_config::basic_auth`: unknown names are checked against another user's hash | `basic_auth::tests` |

mod address;
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
