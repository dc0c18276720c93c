//! Which node is traced.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::time::{ClockId, clock_gettime};
use procfs::process::Process;

use crate::node_process::{Node, candidates};

/// Which node to trace.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// The binary with the tracepoints.
    pub binary: Option<PathBuf>,
    /// The process. When it ends, the next one of the same binary is traced.
    pub pid: Option<i32>,
    /// Only a process that started later, in seconds since the machine booted: one that ran beside the node which has ended is another
    /// node.
    pub after: Option<f64>,
}

/// How late it may be noticed that a node has ended. The next one may be running by then.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

impl Target {
    /// The node, if it runs. Several candidates are an error that lists them.
    pub fn find(&self) -> Result<Option<Node>> {
        if let Some(pid) = self.pid {
            return match &self.binary {
                Some(binary) if Process::new(pid).is_ok() => Ok(Some(Node { pid, binary: binary.clone() })),
                _ => Node::of(pid).map(Some),
            };
        }
        let mut nodes = candidates(self.binary.as_deref())?;
        nodes.retain(|node| {
            self.after.is_none_or(|after| started(node.pid).is_none_or(|start| start > after))
        });
        if nodes.len() > 1 {
            let listed: String = nodes.iter().map(|node| format!("\n  {node}")).collect();
            bail!("several nodes run; choose one with --pid:{listed}");
        }
        Ok(nodes.pop())
    }

    /// Where a node that has ended will come from again.
    pub fn next(&self, ended: &Node) -> Target {
        let booted = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).ok();
        Target {
            binary: self.binary.clone().or_else(|| Some(ended.binary.clone())),
            pid: None,
            after: booted.map(|booted| booted.saturating_sub(NOTICED_WITHIN).as_secs_f64()),
        }
    }
}

/// When a process started, in seconds since the machine booted.
fn started(pid: i32) -> Option<f64> {
    let ticks = Process::new(pid).ok()?.stat().ok()?.starttime;
    Some(ticks as f64 / procfs::ticks_per_second() as f64)
}
