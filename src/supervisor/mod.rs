//! The supervisor: the process that the user starts. The supervisor opens the connections to the node, and starts the
//! exporter process and, for each connection, a guard: a process that relays the messages between the exporter and the
//! node. The supervisor parses no data from the node, and only requests of limited size from the exporter.
//!
//! The exporter process serves HTTP and parses the node's responses. Because both tasks are risky, the exporter has no
//! descriptor of the node's socket. The exporter requests a connection over a [`channel`], and receives sockets to a
//! new guard. The supervisor keeps a descriptor of the node's socket until the guard has exited, and replaces a guard
//! that was killed. The supervisor also forwards signals to the exporter, forwards the exporter's notifications to the
//! service manager, and reads the resource usage of the node's process.
//!
//! The supervisor exits after the exporter, with the same exit code or signal. In a container, the supervisor first
//! waits until all guards have exited, because the supervisor's exit kills all other processes of the container. As PID
//! 1, the supervisor also waits for other exporters in the container, which were started with `docker exec`.
//!
//! `client` is the exporter's side of the channel, `process` the supervisor's main loop, and `connection` a connection
//! with its guard. `node_socket` opens connections to the node. `container` contains the code that is needed only in
//! containers.

mod channel;
mod client;
mod connection;
mod container;
mod node_socket;
mod process;

pub use channel::{ConnectFailure, PrivateUsage, SupervisorRequest};
pub use client::{ExporterStart, GuardedSockets, InheritedConnection, SupervisorClient};
pub use connection::{REPLACED, STOPPED};
pub use container::IN_CONTAINER;
pub use node_socket::NodeSocket;
pub use process::run;

/// The first argument of the exporter process. The next arguments are the supervisor's PID, the descriptor of the
/// channel, the descriptor of the HTTP listener (`-` if there is none), the description of the inherited connection
/// (see [`NodeSocket::describe_inherited`]), and the user's arguments.
pub const EXPORTER: &str = "--exporter";

/// The exporter's process name in `ps` and `top`. The exporter's name differs from the supervisor's name, so `pkill`
/// and `pidof` with the supervisor's name match only the supervisor, which forwards signals to the exporter.
const EXPORTER_NAME: &std::ffi::CStr = c"bitcoind-exporter";
