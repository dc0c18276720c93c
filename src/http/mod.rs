//! The HTTP endpoint that serves the metrics, the status page and the health checks.
//!
//! The endpoint runs on its own thread, so a slow or hostile client, or the rendering of a large page, cannot delay a
//! response to the node.
//!
//! - `address` parses addresses, and `listener` opens the listening sockets.
//! - `server` accepts connections and handles requests; `routes` builds the response for each path and compresses it;
//!   `negotiate` selects the exposition format and compression.
//! - `web_config` reads `--web.config.file`: TLS and passwords.
//!
//! The table lists the attacks that the endpoint defends against, the code that prevents each attack, and the test of
//! that code:
//!
//! | attack | code that prevents the attack | test |
//! |---|---|---|
//! | many connections | `connections`: above the limit, a new connection replaces the oldest connection on which no client sent a correct password | `connections::tests`, `http_abuse.rs` |
//! | many health checks, which need no password | `server::connection_limit`: a separate limit for connections to the health port | `server::tests` |
//! | a request, a handshake or an idle connection that never ends | timeouts and a size limit in `server` (`HEADER_TIMEOUT`, `HANDSHAKE_TIMEOUT`, `MAX_HEADER_BYTES`) | `fuzz/targets/http.rs`, which runs on a paused clock |
//! | clients that do not read their responses, or read them byte by byte | `deadline`: a time limit for each response; `server::SOCKET_BYTES`: small socket buffers | `deadline::tests`, `http_abuse.rs` |
//! | a web page whose host name resolves to loopback (DNS rebinding) | `host`: requests for other host names are rejected | `host::tests`, `http_abuse.rs` |
//! | many wrong passwords, each of which costs the CPU time of a bcrypt check | `web_config::basic_auth`: one bcrypt check at a time, a short queue of requests, no second check of a verified password | `basic_auth::tests`, `http_abuse.rs` |
//! | finding valid user names by the response time | `web_config::basic_auth`: passwords of unknown users are checked against another user's hash | `basic_auth::tests` |

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
pub use host::host_name;
pub use listener::Listener;
pub(crate) use listener::remove_stale_socket;
pub use routes::{EndpointScope, Pages};
pub use server::{Endpoint, HttpServerHandle, max_connections, serve_on_thread};
pub use web_config::WebConfig;
