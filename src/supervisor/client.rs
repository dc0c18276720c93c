//! The exporter's side of the channel to the supervisor: the start parameters of the exporter process, and its requests
//! to the supervisor. The supervisor is the parent process, which connects to the node and starts the guards, processes
//! that relay messages between the node and the exporter.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::channel::{CONNECTION_FDS, ConnectFailure, PrivateUsage, SupervisorReply, SupervisorRequest};
use super::process;
use crate::{sys, systemd};

/// The parameters that the supervisor passes to the exporter process.
pub struct ExporterStart {
    /// The client for requests to the supervisor.
    pub client: Rc<SupervisorClient>,
    /// The listening HTTP socket that the service manager passed, if any.
    pub listener: Option<OwnedFd>,
    /// Description of the inherited connection to the node, if there is one.
    pub inherited: Option<InheritedConnection>,
}

/// What the exporter process knows about a connection to the node that was already open when systemd or the node started
/// the supervisor. Only the supervisor has the connection itself.
#[derive(Clone, Debug)]
pub struct InheritedConnection {
    /// Path on which the node's socket listens, if the kernel reports an absolute path.
    pub path: Option<PathBuf>,
}

impl ExporterStart {
    /// Reads the supervisor's arguments after [`EXPORTER`](super::EXPORTER), and leaves the user's arguments in
    /// `arguments`. The process must call this function before it opens any descriptor, because the function closes all
    /// inherited descriptors except 0 to 2 and the descriptors in the arguments.
    ///
    /// # Errors
    /// The arguments are not the arguments that a supervisor passes, or the supervisor has exited.
    pub fn take(arguments: &mut impl Iterator<Item = OsString>) -> Result<Self> {
        let (parent, channel, listener, inherited) = process::arguments(arguments)
            .context("invalid arguments after --exporter, which only the supervisor may pass")?;
        let channel = systemd::take_over(channel)?;
        let listener = listener.map(systemd::take_over).transpose()?;
        process::end_with_parent(parent)?;
        systemd::notify_through(channel.try_clone()?);
        let inherited = inherited.into_vec().strip_prefix(b"=").map(|path| InheritedConnection {
            path: (!path.is_empty()).then(|| OsString::from_vec(path.to_vec()).into()),
        });
        Ok(ExporterStart { client: Rc::new(SupervisorClient(Mutex::new(channel))), listener, inherited })
    }
}

/// Client of the supervisor, which sends one request at a time over the channel.
pub struct SupervisorClient(Mutex<OwnedFd>);

/// The exporter's sockets for one connection to the node: two sockets to the connection's guard and one socket to the
/// supervisor, with the PIDs of the guard and of the node.
pub struct GuardedSockets {
    /// Socket for Cap'n Proto messages to and from the node, which the guard relays.
    pub stream: UnixStream,
    /// Socket on which the guard sends [events](crate::ipc::guard::TimedEvent).
    pub events: UnixStream,
    /// Socket on which the supervisor sends notices about the guard, of one byte each. The supervisor closes this
    /// socket when the connection to the node is closed.
    pub notices: UnixStream,
    /// PID of the guard.
    pub guard: i32,
    /// PID of the node; 0 if the node is in another PID namespace.
    pub node: i32,
    /// Whether the guard uses the connection to the node that the supervisor inherited.
    pub inherited: bool,
}

impl SupervisorClient {
    /// Requests a connection to the node through a new guard. The inner result is the supervisor's reply: the sockets,
    /// or the reason why it could not connect.
    ///
    /// # Errors
    /// The supervisor has exited, or the exporter has too few file descriptors for the connection.
    pub async fn connect(
        &self,
        trace_budget: Option<Duration>,
    ) -> Result<Result<GuardedSockets, ConnectFailure>> {
        let (reply, fds) = self.request(SupervisorRequest::Connect { trace_budget }).await?;
        let (guard, node, inherited) = match reply {
            SupervisorReply::Connected { guard, node, inherited } => (guard, node, inherited),
            SupervisorReply::Failed(failure) => return Ok(Err(failure)),
            SupervisorReply::Usage(_) => bail!("the supervisor replied to another request"),
        };
        let fds: [OwnedFd; CONNECTION_FDS] =
            fds.try_into().map_err(|_| anyhow!("no descriptor is left for a connection to the node"))?;
        let stream = |fd: OwnedFd| -> io::Result<UnixStream> {
            let stream = StdUnixStream::from(fd);
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        let [connection, events, notices] = fds;
        Ok(Ok(GuardedSockets {
            stream: stream(connection)?,
            events: stream(events)?,
            notices: stream(notices)?,
            guard,
            node,
            inherited,
        }))
    }

    /// Requests the resource usage of the node's process. All values are `None` if the request fails.
    pub async fn usage(&self) -> PrivateUsage {
        match self.request(SupervisorRequest::Usage).await {
            Ok((SupervisorReply::Usage(usage), _)) => usage,
            _ => PrivateUsage::default(),
        }
    }

    async fn request(&self, request: SupervisorRequest) -> io::Result<(SupervisorReply, Vec<OwnedFd>)> {
        let channel = self.0.lock().await;
        // If the caller of an earlier request was cancelled, the reply to that request may still be in the channel. The
        // loop discards such replies.
        while SupervisorReply::receive(&channel).is_ok() {}
        request.send(&channel)?;
        let watched = sys::watched(channel.try_clone()?)?;
        loop {
            let mut ready = watched.readable().await?;
            match SupervisorReply::receive(&channel) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                received => return received,
            }
        }
    }
}
