//! The exporter's side of the supervisor channel: its start parameters and its requests.

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
    /// The HTTP socket that the service manager passed.
    pub listener: Option<OwnedFd>,
    /// The inherited connection to the node, if there is one.
    pub inherited: Option<InheritedConnection>,
}

/// The inherited connection to the node, as the supervisor describes it to the exporter.
#[derive(Clone, Debug)]
pub struct InheritedConnection {
    /// Path of the socket on which the node listens, if the path is absolute.
    pub path: Option<PathBuf>,
}

impl ExporterStart {
    /// Reads the arguments after [`EXPORTER`](super::EXPORTER), except those of the user. Must be called before anything else opens
    /// descriptors.
    pub fn take(arguments: &mut impl Iterator<Item = OsString>) -> Result<Self> {
        let (parent, channel, listener, inherited) = process::arguments(arguments)
            .context("this argument is for the process that supervises the exporter")?;
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

/// Sends requests to the supervisor, one at a time.
pub struct SupervisorClient(Mutex<OwnedFd>);

/// The exporter's sockets of a connection to the node through a guard, with the PIDs of both.
pub struct GuardedSockets {
    /// Socket for requests to the node.
    pub stream: UnixStream,
    /// Socket for the guard's [events](crate::ipc::guard::TimedEvent).
    pub events: UnixStream,
    /// Socket for notices about the guard, one byte each. It is closed when the connection to the node is closed.
    pub notices: UnixStream,
    /// PID of the guard.
    pub guard: i32,
    /// PID of the node; 0 if it is in another PID namespace.
    pub node: i32,
    /// Whether this is the inherited connection.
    pub inherited: bool,
}

impl SupervisorClient {
    /// Requests a connection to the node.
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

    /// Resource usage of the node's process.
    pub async fn usage(&self) -> PrivateUsage {
        match self.request(SupervisorRequest::Usage).await {
            Ok((SupervisorReply::Usage(usage), _)) => usage,
            _ => PrivateUsage::default(),
        }
    }

    async fn request(&self, request: SupervisorRequest) -> io::Result<(SupervisorReply, Vec<OwnedFd>)> {
        let channel = self.0.lock().await;
        // Discards the reply to an earlier request whose caller no longer waits.
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
