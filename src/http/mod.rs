//! The exporter's HTTP endpoint, which serves the metrics, the status page and the health checks.
//!
//! The endpoint runs on its own thread, so a slow or hostile client, or the rendering of a large page, cannot delay the
//! thread that communicates with the node.
//!
//! - `address` parses addresses, and `listener` opens the listening sockets.
//! - `server` accepts connections and handles requests; `routes` builds the response for each path and compresses it;
//!   `negotiate` selects the exposition format and the compression of a response.
//! - `web_config` reads `--web.config.file`: TLS and passwords.
//!
//! The endpoint defends against the following attacks. Each entry names the code that prevents the attack, and the test
//! of that code:
//!
//! - Many connections: above the limit of `connections`, a new connection replaces the oldest connection on which no
//!   client sent a correct password. Tests: `connections::tests`, `http_abuse.rs`.
//! - Many health checks, which need no password: `server::connection_limit` is a separate limit for connections to the
//!   health port. Test: `server::tests`.
//! - A request, a handshake or an idle connection that never ends: `server` has timeouts and a size limit
//!   (`HEADER_TIMEOUT`, `HANDSHAKE_TIMEOUT`, `MAX_HEADER_BYTES`). Test: `fuzz/targets/http.rs`, which runs on a paused
//!   clock.
//! - Clients that do not read their responses, or read them byte by byte: `deadline` is a time limit for each response,
//!   and `server::SOCKET_BYTES` makes the socket buffers small. Tests: `deadline::tests`, `http_abuse.rs`.
//! - A web page whose host name resolves to loopback (DNS rebinding): `host` rejects requests for other host names.
//!   Tests: `host::tests`, `http_abuse.rs`.
//! - Many wrong passwords, each of which costs the CPU time of a bcrypt check: `web_config::basic_auth` makes one
//!   bcrypt check at a time, has a short queue of requests, and does not check a verified password again. Tests:
//!   `basic_auth::tests`, `http_abuse.rs`.
//! - Finding valid user names by the response time: `web_config::basic_auth` checks the passwords of unknown users
//!   against another user's hash. Test: `basic_auth::tests`.

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
