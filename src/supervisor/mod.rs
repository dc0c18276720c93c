//! The process that is started: it holds the node's connection, starts the guards and the exporter, and parses nothing from
//! either.
//!
//! The exporter serves HTTP and parses the node's answers, so it holds no descriptor of the node's socket. It requests a
//! connection over a [`channel`] and gets its ends of a new guard's sockets. This process keeps the node's descriptor until the
//! guard has closed the connection, and replaces a guard that was killed. Besides, it forwards signals to the exporter and
//! notifications to the service manager, and reports what the node's process uses.
//!
//! It ends after the exporter, as the exporter ended. In a container, where the end of this process is the end of all others, it
//! first waits for the guards; as PID 1 also for exporters that were started beside it (`docker exec`).
//!
//! `client` is the exporter's side, `process` this process, `connection` one guarded connection, `node_socket` where it comes
//! from, `container` what is different in a container.

mod channel;
mod client;
mod connection;
mod container;
mod node_socket;
mod process;

pub use channel::{ConnectFailure, SupervisorRequest};
pub use client::{ExporterStart, GuardedSockets, InheritedConnection, SupervisorClient};
pub use connection::{REPLACED, STOPPED};
pub use container::IN_CONTAINER;
pub use node_socket::NodeSocket;
pub use process::{SupervisorConfig, run};

/// The first argument of the exporter's process. It is followed by the supervising process's id, the descriptors of the channel
/// and of the HTTP listener (`-`: none), how the inherited connection is described, and the arguments of the user.
pub const EXPORTER: &str = "--exporter";

/// The name that `ps` and `top` show for the exporter's process. It is not that of the supervising process, and `pkill` and
/// `pidof` with its name find the process to signal, once.
const EXPORTER_NAME: &std::ffi::CStr = c"bitcoind-exporter";
