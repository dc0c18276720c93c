//! The exporter's side: its start parameters, and its requests.

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

use super::channel::{CONNECTION_FDS, ConnectFailure, SupervisorReply, SupervisorRequest};
use super::process;
use crate::{sys, systemd};

/// The start parameters of the exporter's process.
pub struct ExporterStart {
    /// For requests.
    pub client: Rc<SupervisorClient>,
    /// The HTTP socket that the service manager passed.
    pub listener: Option<OwnedFd>,
    /// The connection to the node that was inherited, if there is one.
    pub inherited: Option<InheritedConnection>,
}

/// A connection to the node that the supervising process inherited.
#[derive(Clone, Debug)]
pub struct InheritedConnection {
    /// The path of the socket on which the node listens, if it is absolute.
    pub path: Option<PathBuf>,
}

impl ExporterStart {
    /// Reads the arguments behind [`EXPORTER`](super::EXPORTER), except those of the user. Before anything else opens
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

/// Requests to the supervising process, one at a time.
pub struct SupervisorClient(Mutex<OwnedFd>);

/// A connection to the node behind a guard.
pub struct GuardedSockets {
    /// For requests to the node.
    pub stream: UnixStream,
    /// The guard's [notices](crate::ipc::guard::TimedEvent).
    pub events: UnixStream,
    /// Notices about the guard: a byte each, and the end when the connection is closed.
    pub notices: UnixStream,
    /// The guard's process.
    pub guard: i32,
    /// The node's process; 0 if it is in another PID namespace.
    pub node: i32,
    /// Whether this is the inherited connection.
    pub inherited: bool,
}

impl SupervisorClient {
    /// Connects to the node.
    pub async fn connect(
        &self,
        trace_budget: Option<Duration>,
    ) -> Result<Result<GuardedSockets, ConnectFailure>> {
        let (reply, fds) = self.request(SupervisorRequest::Connect { trace_budget }).await?;
        let (guard, node, inherited) = match reply {
            SupervisorReply::Connected { guard, node, inherited } => (guard, node, inherited),
            SupervisorReply::Failed(failure) => return Ok(Err(failure)),
            SupervisorReply::Usage { .. } => bail!("the supervisor replied to another request"),
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

    /// Open descriptors of the node's process, and the bytes that it read from and wrote to disks; `None` for what cannot be
    /// seen.
    pub async fn usage(&self) -> (Option<u64>, Option<(u64, u64)>) {
        let Ok((SupervisorReply::Usage { fds, read_bytes, write_bytes }, _)) =
            self.request(SupervisorRequest::Usage).await
        else {
            return (None, None);
        };
        let number = |value: i64| u64::try_from(value).ok();
        (number(fds), number(read_bytes).zip(number(write_bytes)))
    }

    async fn request(&self, request: SupervisorRequest) -> io::Result<(SupervisorReply, Vec<OwnedFd>)> {
        let channel = self.0.lock().await;
        // The reply to a request that was given up.
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
