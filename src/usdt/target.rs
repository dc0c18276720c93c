//! Which node is traced.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::node_process::{Node, candidates};

/// Which node to trace.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// The binary with the tracepoints.
    pub binary: Option<PathBuf>,
    /// The process. When it ends, the next one of the same binary is traced.
    pub pid: Option<i32>,
}

impl Target {
    /// The node, if it runs. Several candidates are an error that lists them.
    pub fn find(&self) -> Result<Option<Node>> {
        if let Some(pid) = self.pid {
            return match &self.binary {
                Some(binary) if procfs::process::Process::new(pid).is_ok() => {
                    Ok(Some(Node { pid, binary: binary.clone() }))
                }
                _ => Node::of(pid).map(Some),
            };
        }
        let mut nodes = candidates(self.binary.as_deref())?;
        if nodes.len() > 1 {
            let listed: String = nodes.iter().map(|node| format!("\n  {node}")).collect();
            bail!("several nodes run; choose one with --pid:{listed}");
        }
        Ok(nodes.pop())
    }

    /// Where a node that has ended will come from again.
    pub fn next(&self, ended: &Node) -> Target {
        Target { binary: self.binary.clone().or_else(|| Some(ended.binary.clone())), pid: None }
    }
}
