//! The supervisor: the process that the user starts. It holds the node's connection, and starts the guards and the exporter. It parses no
//! data of the node or of the exporter, except the exporter's fixed-size requests.
//!
//! The exporter serves HTTP and parses the node's responses, and therefore holds no descriptor of the node's socket. It requests a
//! connection over a [`channel`], and gets the sockets of a new guard. The supervisor keeps the node's descriptor until the guard has
//! closed the connection, and replaces a guard that was killed. It also forwards signals to the exporter and notifications to the service
//! manager, and reads the resource usage of the node's process.
//!
//! The supervisor exits after the exporter, with the same exit code or signal. In a container, where its exit kills all other processes, it
//! first waits for the guards. As PID 1 it also waits for other exporters in the container (started with `docker exec`).
//!
//! `client` is the exporter's side of the channel, `process` the supervisor's main loop, `connection` one connection with its guard,
//! `node_socket` the source of connections, and `container` the differences in a container.

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
pub use process::{SupervisorConfig, run};

/// The first argument of the exporter process. The next arguments are the supervisor's PID, the descriptors of the channel and of the HTTP
/// listener (`-`: none), the description of the inherited connection, and the arguments of the user.
pub const EXPORTER: &str = "--exporter";

/// The process name that `ps` and `top` show for the exporter. It differs from the supervisor's name, so that `pkill` and `pidof` with the
/// supervisor's name find only the supervisor, which forwards signals.
const EXPORTER_NAME: &std::ffi::CStr = c"bitcoind-exporter";
