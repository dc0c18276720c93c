//! Finds the node to trace and, after the exit of that node, the next node.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, value_parser};

use super::candidates::{self, Candidate};
use super::choice::{Choice, KnownNode, OtherNodes, UserSelection, choose, successor};
use super::file_locks::{self, FileId};
use super::privileges;
use crate::node_process::NodeProcess;

/// The command line arguments that select the node to trace. Without them, the only running node is traced.
#[derive(Args, Clone, Debug)]
pub struct NodeSelector {
    /// Path of the binary with the tracepoints [default: the binary of the node's process]
    #[arg(short, long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_BITCOIND")]
    pub bitcoind: Option<PathBuf>,

    /// PID of the node [default: the process that runs the binary]. After that process has ended, the next process
    /// with the same data directory is traced
    #[arg(short, long, env = "BITCOIND_USDT_EXPORTER_PID", value_parser = value_parser!(i32).range(1..))]
    pub pid: Option<i32>,

    /// Node's data directory, or a network's folder in it. Selects one of several nodes: the node that holds the lock
    /// of the directory or, if the exporter cannot read the directory, the node with this -datadir on its command line
    #[arg(long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_DATADIR")]
    pub datadir: Option<PathBuf>,

    /// Node's systemd unit, e.g. bitcoind.service. Selects one of several nodes by the unit that the node runs in
    #[arg(
        long,
        value_name = "NAME",
        env = "BITCOIND_USDT_EXPORTER_UNIT",
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub unit: Option<String>,
}

/// Searches for the node to trace, and keeps the evidence that distinguishes this node from other nodes.
pub struct NodeSearch {
    selector: NodeSelector,
    /// Evidence about the node that is traced now.
    present: Option<KnownNode>,
    /// Evidence about the last node whose tracing has ended.
    last: Option<KnownNode>,
    others: OtherNodes,
}

impl NodeSearch {
    /// A search with the user's selection, and without evidence about any node.
    pub fn new(selector: NodeSelector) -> Self {
        let others = OtherNodes { exist: selector.pid.is_some(), ..OtherNodes::default() };
        NodeSearch { selector, present: None, last: None, others }
    }

    /// Path of the binary that the user named.
    pub fn binary(&self) -> Option<&PathBuf> {
        self.selector.bitcoind.as_ref()
    }

    /// The running node; `None` if no node is running. Waits at most three seconds if a process that was just started
    /// may become the node. Used by `--once` and `--list-probes`, which do not wait for a node to start.
    ///
    /// # Errors
    /// The process that the user selected with `--pid` does not exist, the processes cannot be listed, or several
    /// processes may be the node; in the last case, the error lists them.
    pub fn find_now(&mut self) -> Result<Option<NodeProcess>> {
        const FIND_TIMEOUT: Duration = Duration::from_secs(3);
        let end = Instant::now() + FIND_TIMEOUT;
        loop {
            match self.find()? {
                Choice::Node(node) => return Ok(Some(node)),
                Choice::Soon if Instant::now() < end => thread::sleep(Duration::from_millis(50)),
                Choice::None(Some(why)) => bail!("{why}"),
                Choice::Soon | Choice::None(None) => return Ok(None),
            }
        }
    }

    /// Searches for the node once.
    ///
    /// # Errors
    /// The process that the user selected with `--pid` does not exist, or the processes cannot be listed.
    pub(super) fn find(&mut self) -> Result<Choice> {
        if let (Some(pid), None) = (self.selector.pid, &self.last) {
            return NodeProcess::from_pid(pid, self.selector.bitcoind.as_deref()).map(Choice::Node);
        }
        let last = self.last.as_ref().map(|it| it.candidate.node.binary.as_path());
        let all = candidates::scan(self.selector.bitcoind.as_deref(), last)?;
        let locks = self.datadir_locks();
        Ok(choose(&all, self.selection(locks.as_deref()), self.last.as_ref(), &self.others))
    }

    /// Collects evidence about the traced process `node` and about all other processes that run a node's binary.
    /// Returns another process if the evidence shows that the other process is the node.
    ///
    /// # Errors
    /// The processes cannot be listed.
    pub fn check_other_processes(&mut self, node: &NodeProcess) -> Result<Option<NodeProcess>> {
        let all = candidates::scan(self.selector.bitcoind.as_deref(), Some(&node.binary))?;
        let id = (node.pid, node.started);
        // A node that shuts down renames its main thread, and thereby its process. A scan that compares process names
        // then does not list the node.
        let unseen = || Candidate::from_process(node).filter(|it| it.id() == id);
        let Some(now) = all.iter().find(|it| it.id() == id).cloned().or_else(unseen) else { return Ok(None) };
        let present = self.present.take().filter(|it| it.candidate.id() == id);
        let mut present = present.unwrap_or_else(|| KnownNode::new(now.clone()));
        present.update_locks(&now.locks);
        for other in all.iter().filter(|it| it.id() != id) {
            if other.parent == node.pid {
                present.children.insert(other.id());
                continue;
            }
            present.beside.insert(other.id());
            if !other.locks.is_empty() && !present.candidate.locks.is_empty() {
                self.others.exist = true;
                self.others.commands.insert(other.command.clone());
                self.others.services.extend(other.service().map(String::from));
            }
        }
        let locks = self.datadir_locks();
        let named = self.selection(locks.as_deref());
        let next = successor(&all, named, &present, self.last.as_ref(), &self.others);
        self.present = Some(present);
        Ok(next)
    }

    /// Whether the traced process has locked a file, which proves that the process is the node.
    pub fn is_certain(&self) -> bool {
        self.present.as_ref().is_some_and(|present| !present.candidate.locks.is_empty())
    }

    /// Records that `node` is no longer traced, because the process has ended or another process is the node.
    pub fn ended(&mut self, node: &NodeProcess) {
        let id = (node.pid, node.started);
        let evidence = self.present.take().filter(|it| it.candidate.id() == id);
        let evidence = evidence.unwrap_or_else(|| KnownNode::new(Candidate::without_evidence(node.clone())));
        self.last = match self.last.take() {
            // A process without locks may not have been a node. The evidence about the node that was traced before is
            // therefore kept.
            Some(mut last) if evidence.candidate.locks.is_empty() && !last.candidate.locks.is_empty() => {
                last.beside.extend(evidence.beside);
                last.beside.insert(id);
                last.children.extend(evidence.children);
                Some(last)
            }
            _ => Some(evidence),
        };
    }

    /// The lock files of the data directory that the user selected; `None` if they cannot be accessed.
    fn datadir_locks(&self) -> Option<Vec<FileId>> {
        file_locks::datadir_lock_files(self.selector.datadir.as_deref()?).ok()
    }

    /// The user's selection, with the lock files of the data directory.
    fn selection<'a>(&'a self, datadir_locks: Option<&'a [FileId]>) -> UserSelection<'a> {
        UserSelection {
            binary: self.selector.bitcoind.is_some(),
            datadir: self.selector.datadir.as_deref(),
            datadir_locks,
            unit: self.selector.unit.as_deref(),
        }
    }

    /// The message for the user if no node was found.
    pub(super) fn not_found_message(&self) -> String {
        let NodeSelector { bitcoind, datadir, unit, .. } = &self.selector;
        let binary = bitcoind.as_ref().or(self.last.as_ref().map(|it| &it.candidate.node.binary));
        let mut why = match binary {
            Some(binary) => {
                let new = if self.last.is_some() { "new " } else { "" };
                format!("no {new}process of {} is running", binary.display())
            }
            None if privileges::sees_other_users() => "no node is running".to_string(),
            None => "no node of this user is running; without CAP_SYS_PTRACE, a node of another user is found only with \
                 --bitcoind".to_string(),
        };
        if let Some(unit) = unit {
            why += &format!(" in unit {unit}");
        }
        if let Some(datadir) = datadir {
            let at = datadir.display();
            why += &match file_locks::datadir_lock_files(datadir) {
                Ok(_) => format!(" with data directory {at}"),
                Err(error) => format!(
                    " with -datadir={at} on its command line, and the lock in {at} cannot be read ({error}): run as the \
                     node's user, or select the node with --unit"
                ),
            };
        }
        why
    }
}
