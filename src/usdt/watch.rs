//! The life of the node: finding it, attaching, noticing its end, and again.

use std::convert::Infallible;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tracing::{info, warn};

use super::events::Events;
use super::target::Target;
use super::{Attached, Programs, probes};
use crate::node_process::Node;
use crate::sys::watched;

/// For health checks: attached to a node, or why not.
pub type Health = watch::Sender<Result<(), String>>;

/// How often events are read that can wait: those of messages, which wake nobody up.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How long to wait before the node is looked for again.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Attaches to a node; no tracepoint at all is an error.
pub fn attach(programs: &mut Programs, node: &Node) -> Result<Vec<Attached>> {
    let binary =
        Some(node.running_binary()).filter(|path| path.metadata().is_ok()).unwrap_or(node.binary.clone());
    let attached = programs.attach(node.pid, &binary);
    if let Some(Attached { name, result: Err(error) }) =
        attached.first().filter(|_| attached.iter().all(|it| it.result.is_err()))
    {
        if probes::sites(&binary)?.iter().any(|site| attached.iter().any(|it| it.name == site.probe())) {
            bail!("No USDT probes could be attached. {name}: {error:#}");
        }
        bail!(
            "No USDT probes could be attached. {} has none of those that are asked for; it must be built with USDT support \
             (-DWITH_USDT=ON, or --enable-usdt). See: readelf -n {} | grep -A4 stapsdt",
            node.binary.display(),
            node.binary.display()
        );
    }
    Ok(attached)
}

/// Logs events and follows the node for ever. `first` is attached already.
pub async fn follow(
    mut programs: Programs,
    target: Target,
    first: Option<Node>,
    health: Health,
) -> Result<()> {
    let reader = Events::of(&programs)?;
    let reader = reader.as_ref();
    let log = async {
        let Some(reader) = reader else { return std::future::pending::<std::io::Result<Infallible>>().await };
        // SAFETY: the reader lives to the end of this block and keeps its descriptor open.
        let epoll = unsafe { BorrowedFd::borrow_raw(reader.epoll_fd()) };
        let events = watched(epoll.try_clone_to_owned()?)?;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                ready = events.readable() => {
                    let mut ready = ready?;
                    let _ = reader.consume();
                    ready.clear_ready();
                }
                _ = look.tick() => drop(reader.consume()),
            }
        }
    };
    let watch = async {
        let (mut target, mut node) = (target, first);
        loop {
            let present = match node.take() {
                Some(node) => node,
                None => find_and_attach(&mut programs, &target, &health).await,
            };
            let _ = health.send_replace(Ok(()));
            match watched(present.end()?) {
                Ok(end) => drop(end.readable().await?),
                Err(error) => warn!("cannot watch {present}: {error}"),
            }
            // What this node did is not the next one's.
            let _ = reader.map(Events::consume);
            programs.detach();
            info!("{present} has ended; its counts stay, waiting for the next one");
            let _ = health.send_replace(Err(format!("{present} has ended")));
            target = target.next(&present);
        }
    };
    tokio::select! {
        Err(error) = log => Err(error).context("cannot read events"),
        ended = watch => ended,
    }
}

/// Waits for the node and attaches. Says why it waits when the reason changes.
async fn find_and_attach(programs: &mut Programs, target: &Target, health: &Health) -> Node {
    let mut said = String::new();
    loop {
        let why = match target.find() {
            Ok(Some(node)) => match attach(programs, &node) {
                Ok(attached) => {
                    let good = attached.iter().filter(|it| it.result.is_ok()).count();
                    info!("attached {good} tracepoints of {node}");
                    return node;
                }
                Err(error) => format!("{error:#}"),
            },
            Ok(None) => match &target.binary {
                Some(binary) => {
                    let new = if target.after.is_some() { "new " } else { "" };
                    format!("no {new}process of {} runs", binary.display())
                }
                None => "no node runs".to_string(),
            },
            Err(error) => format!("{error:#}"),
        };
        if why != said {
            warn!("{why}; looking again until there is one");
            let _ = health.send_replace(Err(why.clone()));
            said = why;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}
