//! The life of the node: finding it, attaching, noticing its end, and again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::events::EventReader;
use super::target::{NodeSearch, SearchResult};
use super::{AttachResult, Programs, probes};
use crate::node_process::NodeProcess;
use crate::sys::watched;

/// For health checks: attached to a node, or why not.
pub type HealthSender = watch::Sender<Result<(), String>>;

/// How often events are read that can wait: those of messages, which cause no wake-up.
const CONSUME_INTERVAL: Duration = Duration::from_secs(5);

/// How often to check the processes beside the node.
const OTHERS_INTERVAL: Duration = Duration::from_secs(5);
/// The same in the first seconds, until the node has locked its data directory.
const EARLY_INTERVAL: Duration = Duration::from_millis(500);
const MAX_EARLY_CHECKS: u32 = 20;

/// How long to wait before the node is looked for again: at first, and at most. An idle exporter uses less than 0.2 % of a core with a
/// thousand processes.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
const MAX_RETRY_INTERVAL: Duration = Duration::from_millis(1500);
/// A process that could not be attached to is tried again so much later, twice as late each time up to the second.
const REATTACH_INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Why nothing is attached.
pub enum AttachError {
    /// The process has ended, at whatever step.
    ProcessEnded,
    /// Anything else.
    Other(anyhow::Error),
}

impl From<anyhow::Error> for AttachError {
    fn from(error: anyhow::Error) -> Self {
        AttachError::Other(error)
    }
}

/// A node whose tracepoints are attached.
pub struct TracedNode {
    /// The process.
    pub node: NodeProcess,
    /// The result for each tracepoint.
    pub attached: Vec<AttachResult>,
    /// Readable when the process has ended.
    end: OwnedFd,
}

impl TracedNode {
    fn has_ended(&self) -> bool {
        let mut end = [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)];
        poll(&mut end, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// A file as it is now: device, inode, time of its last change.
type FileVersion = (u64, u64, i64, i64);

/// Finds the node and attaches to it.
pub struct Tracer {
    programs: Programs,
    search: NodeSearch,
    /// Binaries without tracepoints, each with its message.
    without_probes: BTreeMap<FileVersion, String>,
}

impl Tracer {
    /// Nothing is attached yet.
    pub fn new(programs: Programs, search: NodeSearch) -> Self {
        Tracer { programs, search, without_probes: BTreeMap::new() }
    }

    /// The programs, with their attachments.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Attaches to the node that runs for a command that does not wait for one. An error if there is none, or several.
    ///
    /// # Errors
    /// There is no node, there are several, or it cannot be attached to.
    pub fn attach_now(&mut self) -> Result<TracedNode> {
        let node = self
            .search
            .find_now()?
            .context("no node is running; start it, or select it with --bitcoind or --pid")?;
        self.attach(&node).map_err(|failure| match failure {
            AttachError::ProcessEnded => anyhow!("{node} has exited"),
            AttachError::Other(error) => error,
        })
    }

    /// Attaches to the node if one runs and it is clear which. An error if the user named a process that there is not, and if the node
    /// cannot be attached to.
    ///
    /// # Errors
    /// The named process does not exist, or the node cannot be attached to.
    pub fn start(&mut self) -> Result<Option<TracedNode>> {
        let SearchResult::Node(node) = self.search.find()? else { return Ok(None) };
        match self.attach(&node) {
            Ok(traced) => Ok(Some(traced)),
            Err(AttachError::ProcessEnded) => Ok(None),
            Err(AttachError::Other(error)) => Err(error),
        }
    }

    /// Attaches to a process; no tracepoint at all is an error. Afterwards it runs and is watched, or nothing is attached.
    fn attach(&mut self, node: &NodeProcess) -> Result<TracedNode, AttachError> {
        // Before anything is attached: later it might be the end of another process.
        let end = node.end()?;
        self.search.check_other_processes(node)?;
        let result = match end {
            None => Err(AttachError::ProcessEnded),
            Some(end) => self.attach_probes(node).map_err(AttachError::from).map(|attached| TracedNode {
                node: node.clone(),
                attached,
                end,
            }),
        };
        let result = match result {
            Ok(traced) if traced.has_ended() => Err(AttachError::ProcessEnded),
            Err(AttachError::Other(_)) if !node.is_running() => Err(AttachError::ProcessEnded),
            result => result,
        };
        if result.is_err() {
            self.programs.detach();
        }
        if matches!(result, Err(AttachError::ProcessEnded)) {
            self.search.ended(node);
        }
        result
    }

    fn attach_probes(&mut self, node: &NodeProcess) -> Result<Vec<AttachResult>> {
        let binary = readable_binary(node);
        let version = version(&binary);
        if let Some(why) = version.as_ref().and_then(|version| self.without_probes.get(version)) {
            return Err(anyhow!("{why}"));
        }
        let attached = self.programs.attach(node.pid, &binary);
        let Some(AttachResult { name, result: Err(error) }) =
            attached.first().filter(|_| attached.iter().all(|it| it.result.is_err()))
        else {
            return Ok(attached);
        };
        let has = |site: &probes::Site| attached.iter().any(|it| it.name == site.probe());
        if probes::sites(&binary)?.iter().any(has) {
            return Err(anyhow!("No USDT probes could be attached. {name}: {error:#}"));
        }
        let why = format!(
            "No USDT probes could be attached. {0} has none of the requested probes; it must be built with USDT support \
             (-DWITH_USDT=ON, or --enable-usdt). See: readelf -n {0} | grep -A4 stapsdt",
            node.binary.display()
        );
        if self.without_probes.len() > 100 {
            self.without_probes.clear();
        }
        self.without_probes.extend(version.map(|version| (version, why.clone())));
        Err(anyhow!(why))
    }

    /// Waits for the node and attaches. Logs the reason when it changes.
    async fn find_and_attach(&mut self, health: &HealthSender) -> TracedNode {
        let mut last_logged = String::new();
        let since = Instant::now();
        let mut failed: Option<(NodeProcess, Duration, Instant)> = None;
        loop {
            let why = match self.search.find() {
                Ok(SearchResult::Node(node)) => match &failed {
                    Some((same, _, next)) if *same == node && Instant::now() < *next => None,
                    _ => match self.attach(&node) {
                        Ok(traced) => {
                            let good = traced.attached.iter().filter(|it| it.result.is_ok()).count();
                            info!("attached {good} tracepoints of {node}");
                            return traced;
                        }
                        Err(AttachError::ProcessEnded) => continue,
                        Err(AttachError::Other(error)) => {
                            let before = failed.take().filter(|(same, ..)| *same == node);
                            let (first, longest) = REATTACH_INTERVAL;
                            let delay = before.map_or(first, |(_, delay, _)| (2 * delay).min(longest));
                            failed = Some((node, delay, Instant::now() + delay));
                            Some(format!("{error:#}"))
                        }
                    },
                },
                Ok(SearchResult::Soon) => None,
                Ok(SearchResult::None { why, .. }) => Some(why),
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(why) = why.filter(|why| *why != last_logged) {
                warn!("{why}; searching until a node is found");
                let _ = health.send_replace(Err(why.clone()));
                last_logged = why;
            }
            // Soon after the end of a node its next one is likely.
            let interval = (since.elapsed() / 20).clamp(RETRY_INTERVAL, MAX_RETRY_INTERVAL);
            tokio::time::sleep(interval).await;
        }
    }

    /// Waits until the node has ended, or another process is the node, and returns that one.
    async fn wait_for_end(&mut self, traced: &TracedNode) -> Option<NodeProcess> {
        let end = traced.end.try_clone().and_then(watched);
        if let Err(error) = &end {
            warn!("cannot watch {}, checking it every {EARLY_INTERVAL:?} instead: {error}", traced.node);
        }
        let mut checks = 0;
        loop {
            let is_early = end.is_err() || (!self.search.is_certain() && checks < MAX_EARLY_CHECKS);
            let interval = if is_early { EARLY_INTERVAL } else { OTHERS_INTERVAL };
            let ended = async {
                match &end {
                    Ok(end) => drop(end.readable().await),
                    Err(_) => std::future::pending().await,
                }
            };
            let _ = tokio::time::timeout(interval, ended).await;
            if traced.has_ended() {
                return None;
            }
            checks += 1;
            match self.search.check_other_processes(&traced.node) {
                Ok(Some(next)) => return Some(next),
                Ok(None) => {}
                Err(error) => debug!("{error:#}"),
            }
        }
    }

    /// Follows the node for ever.
    async fn run(
        &mut self,
        mut first: Option<TracedNode>,
        reader: Option<&EventReader>,
        health: &HealthSender,
    ) -> Infallible {
        loop {
            let traced = match first.take() {
                Some(traced) => traced,
                None => self.find_and_attach(health).await,
            };
            let _ = health.send_replace(Ok(()));
            let next = self.wait_for_end(&traced).await;
            // Events of this node are not the next one's.
            let _ = reader.map(EventReader::consume);
            self.programs.detach();
            self.search.ended(&traced.node);
            match next {
                None => {
                    info!("{} has exited; keeping its counts and waiting for the next node", traced.node);
                    let _ = health.send_replace(Err(format!("{} has exited", traced.node)));
                }
                Some(next) => {
                    info!("tracing {next} instead of {}", traced.node);
                    first = self.attach(&next).ok();
                }
            }
        }
    }
}

/// A path to the node's binary that can be read.
pub(super) fn readable_binary(node: &NodeProcess) -> PathBuf {
    Some(node.running_binary()).filter(|path| path.metadata().is_ok()).unwrap_or(node.binary.clone())
}

fn version(binary: &Path) -> Option<FileVersion> {
    let file = binary.metadata().ok()?;
    Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec()))
}

/// Logs events and follows the node for ever. `first` is attached already.
///
/// # Errors
/// Events cannot be read.
pub async fn follow(mut tracer: Tracer, first: Option<TracedNode>, health: HealthSender) -> Result<()> {
    let reader = EventReader::from_programs(&tracer.programs)?;
    let reader = reader.as_ref();
    let log = async {
        let Some(reader) = reader else { return std::future::pending::<std::io::Result<Infallible>>().await };
        // SAFETY: the reader lives to the end of this block and keeps its descriptor open.
        let epoll = unsafe { BorrowedFd::borrow_raw(reader.epoll_fd()) };
        let events = watched(epoll.try_clone_to_owned()?)?;
        let mut ticks = tokio::time::interval(CONSUME_INTERVAL);
        loop {
            tokio::select! {
                ready = events.readable() => {
                    let mut ready = ready?;
                    let _ = reader.consume();
                    ready.clear_ready();
                }
                _ = ticks.tick() => drop(reader.consume()),
            }
        }
    };
    tokio::select! {
        Err(error) = log => Err(error).context("cannot read events"),
        never = tracer.run(first, reader, &health) => match never {},
    }
}
