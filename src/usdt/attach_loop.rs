//! Finds the node, attaches the BPF programs to its tracepoints, waits until the node exits, and then searches for the
//! next node.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::choice::Choice;
use super::events::EventReader;
use super::target::NodeSearch;
use super::{AttachResult, Programs, probes};
use crate::node_process::NodeProcess;
use crate::sys::watched;

/// Channel that passes the result of the health check to the HTTP server: `Ok` if a node is traced, otherwise the
/// reason why no node is traced.
pub type HealthSender = watch::Sender<Result<(), String>>;

/// Interval at which the exporter reads the ring buffers of the BPF programs if no event wakes it up. Events of P2P
/// messages wake up the exporter only once per 256 events: each event contains its time, and can therefore be read
/// late. At the same interval, the exporter passes the time of the wall clock to the BPF programs.
const CONSUME_INTERVAL: Duration = Duration::from_secs(5);

/// Interval at which the exporter checks whether another process than the traced process is the node to trace, for
/// example a child process.
const OTHERS_INTERVAL: Duration = Duration::from_secs(5);
/// Interval that replaces [`OTHERS_INTERVAL`] in the first seconds of tracing, until the node has locked its data
/// directory. If the node's pidfd cannot be polled, the exporter also checks at this interval whether the node still
/// runs.
const EARLY_INTERVAL: Duration = Duration::from_millis(500);
/// Number of checks at [`EARLY_INTERVAL`] after which the interval is [`OTHERS_INTERVAL`].
const MAX_EARLY_CHECKS: u32 = 20;

/// Minimum time between two searches for the node. While no node is found, the time between two searches grows up to
/// [`MAX_RETRY_INTERVAL`]. With a thousand processes on the machine, a search takes 4 ms. If the exporter has no
/// permission to read the links to the binaries of other users' processes, a search takes 9 ms.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Maximum time between two searches for the node.
const MAX_RETRY_INTERVAL: Duration = Duration::from_millis(1500);
/// Minimum and maximum delay between a failure to attach to a process and the next attempt. The delay doubles with each
/// failure.
const REATTACH_INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A node to whose tracepoints the BPF programs are attached.
pub struct TracedNode {
    /// The process of the node.
    pub node: NodeProcess,
    /// The result of attaching to each tracepoint.
    pub attached: Vec<AttachResult>,
    /// The pidfd of the process, which becomes readable when the process ends.
    end: OwnedFd,
}

impl TracedNode {
    fn has_ended(&self) -> bool {
        let mut end = [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)];
        poll(&mut end, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// Keeps the BPF programs attached to a node: attaches them to the node that the search finds and, after the exit of
/// that node, to the next node.
pub struct Tracer {
    programs: Programs,
    search: NodeSearch,
}

impl Tracer {
    /// A tracer with loaded BPF programs that are not attached to a node yet.
    pub fn new(programs: Programs, search: NodeSearch) -> Self {
        Tracer { programs, search }
    }

    /// Attaches to the running node. Used by `--once`, which fails if no node is running, instead of waiting for a node
    /// to start.
    ///
    /// # Errors
    /// No node is running, several are running, or the exporter cannot attach to the node.
    pub fn attach_now(&mut self) -> Result<TracedNode> {
        let node = self
            .search
            .find_now()?
            .context("no node is running; start it, or select it with --bitcoind or --pid")?;
        self.attach(&node)?.with_context(|| format!("{node} has exited"))
    }

    /// Attaches to the node. Returns `None` if no process is the node yet, if several processes may be the node, or if
    /// the node has just exited.
    ///
    /// # Errors
    /// The process that the user selected with `--pid` does not exist, the processes cannot be listed, or the exporter
    /// cannot attach to the node.
    pub fn start(&mut self) -> Result<Option<TracedNode>> {
        let Choice::Node(node) = self.search.find()? else { return Ok(None) };
        self.attach(&node)
    }

    /// Attaches to a process. Returns `None` if the process ended before or while the BPF programs were attached, or
    /// immediately afterwards, and an error if no tracepoint can be attached. In both cases, no program is attached.
    fn attach(&mut self, node: &NodeProcess) -> Result<Option<TracedNode>> {
        // Open the pidfd before any program is attached, because the kernel may later assign the PID to another
        // process.
        let end = node.end()?;
        self.search.check_other_processes(node)?;
        let attach = |end| {
            let attached = self.attach_probes(node)?;
            Ok(TracedNode { node: node.clone(), attached, end })
        };
        let result = match end.map(attach).transpose() {
            Ok(traced) => Ok(traced.filter(|traced| !traced.has_ended())),
            Err(_) if !node.is_running() => Ok(None),
            Err(error) => Err(error),
        };
        if !matches!(result, Ok(Some(_))) {
            self.programs.detach();
        }
        if matches!(result, Ok(None)) {
            self.search.ended(node);
        }
        result
    }

    /// Attaches the programs to the tracepoints of a process. If no tracepoint could be attached, the error has the
    /// reason why the first tracepoint could not be attached.
    fn attach_probes(&mut self, node: &NodeProcess) -> Result<Vec<AttachResult>> {
        let binary = readable_binary(node);
        let attached = self.programs.attach(node.pid, &binary);
        let Some(AttachResult { name, result: Err(error) }) =
            attached.first().filter(|_| attached.iter().all(|it| it.result.is_err()))
        else {
            return Ok(attached);
        };
        let has = |site: &probes::Site| attached.iter().any(|it| it.name == site.probe());
        if probes::sites(&binary)?.iter().any(has) {
            bail!("No USDT probes could be attached. {name}: {error:#}");
        }
        bail!(
            "No USDT probes could be attached. {0} has none of the requested probes; it must be built with USDT support \
             (-DWITH_USDT=ON, or --enable-usdt). See: readelf -n {0} | grep -A4 stapsdt",
            node.binary.display()
        )
    }

    /// Searches until a node is found and the BPF programs are attached to it. After a failed attempt, logs the reason
    /// of the failure if it differs from the reason that was logged last.
    async fn find_and_attach(&mut self, health: &HealthSender) -> TracedNode {
        let mut last_logged = String::new();
        let since = Instant::now();
        let mut failed: Option<(NodeProcess, Duration, Instant)> = None;
        loop {
            let why = match self.search.find() {
                Ok(Choice::Node(node)) => match &failed {
                    Some((same, _, next)) if *same == node && Instant::now() < *next => None,
                    _ => match self.attach(&node) {
                        Ok(Some(traced)) => {
                            let good = traced.attached.iter().filter(|it| it.result.is_ok()).count();
                            info!("attached {good} tracepoints of {node}");
                            return traced;
                        }
                        Ok(None) => continue,
                        Err(error) => {
                            let before = failed.take().filter(|(same, ..)| *same == node);
                            let (first, longest) = REATTACH_INTERVAL;
                            let delay = before.map_or(first, |(_, delay, _)| (2 * delay).min(longest));
                            failed = Some((node, delay, Instant::now() + delay));
                            Some(format!("{error:#}"))
                        }
                    },
                },
                Ok(Choice::Soon) => None,
                Ok(Choice::None(why)) => Some(why.unwrap_or_else(|| self.search.not_found_message())),
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(why) = why.filter(|why| *why != last_logged) {
                warn!("{why}; searching until a node is found");
                let _ = health.send_replace(Err(why.clone()));
                last_logged = why;
            }
            // Search more often at first, because a node that has exited is usually restarted soon.
            let interval = (since.elapsed() / 20).clamp(RETRY_INTERVAL, MAX_RETRY_INTERVAL);
            tokio::time::sleep(interval).await;
        }
    }

    /// Waits until the traced process has exited, or until evidence shows that another process is the node. Returns the
    /// other process, or `None` after an exit.
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

    /// Traces one node after the other, in a loop that never returns. `first` is a node that is already attached.
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
            // Read the remaining events of this node now, because later they would be attributed to the next node.
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
                    first = self.attach(&next).ok().flatten();
                }
            }
        }
    }
}

/// A readable path to the node's binary: `/proc/PID/exe` of the running process if that path can be read, otherwise the
/// path that the binary had when the process was started.
pub(super) fn readable_binary(node: &NodeProcess) -> PathBuf {
    Some(node.running_binary()).filter(|path| path.metadata().is_ok()).unwrap_or(node.binary.clone())
}

/// Reads and logs the events of the BPF programs, and traces one node after the other, in a loop that ends only with an
/// error. `first` is a node that is already attached.
///
/// # Errors
/// Events cannot be read.
pub async fn follow(mut tracer: Tracer, first: Option<TracedNode>, health: HealthSender) -> Result<()> {
    let reader = EventReader::from_programs(&tracer.programs)?;
    let reader = reader.as_ref();
    let log = async {
        let Some(reader) = reader else { return std::future::pending::<std::io::Result<Infallible>>().await };
        // SAFETY: the reader lives until the end of this block, and keeps its descriptor open.
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
                _ = ticks.tick() => {
                    reader.update_clock();
                    let _ = reader.consume();
                }
            }
        }
    };
    tokio::select! {
        Err(error) = log => Err(error).context("cannot read events"),
        never = tracer.run(first, reader, &health) => match never {},
    }
}
