//! Which node is traced, and where it comes from again when it has ended.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::candidates::{Candidate, Scanner};
use super::choice::{Choice, KnownNode, OtherNodes, UserSelection, choose, successor};
use super::{file_locks, privileges};
use crate::node_process::NodeProcess;

/// Which node to trace, as the user named it. Without anything, the only one that runs.
#[derive(Clone, Debug, Default)]
pub struct NodeSelector {
    /// The binary with the tracepoints.
    pub binary: Option<PathBuf>,
    /// The process. When it has ended, its successor is traced: the one with the same data directory.
    pub pid: Option<i32>,
    /// The data directory.
    pub datadir: Option<PathBuf>,
    /// The systemd unit, `bitcoind.service`.
    pub unit: Option<String>,
}

/// The result of a search.
pub enum SearchResult {
    /// The node.
    Node(NodeProcess),
    /// A process that may be the node, but has just been started.
    Soon,
    /// None, and why. It is ambiguous if there are processes that may be it.
    None {
        /// To be shown.
        why: String,
        /// Whether there are.
        is_ambiguous: bool,
    },
}

/// Searches for the node, and keeps what distinguishes it from others.
pub struct NodeSearch {
    selector: NodeSelector,
    scanner: Scanner,
    present: Option<KnownNode>,
    last: Option<KnownNode>,
    others: OtherNodes,
}

impl NodeSearch {
    /// Of this node.
    pub fn new(selector: NodeSelector) -> Self {
        let others = OtherNodes { exist: selector.pid.is_some(), ..OtherNodes::default() };
        NodeSearch { selector, scanner: Scanner::default(), present: None, last: None, others }
    }

    /// The binary that the user named.
    pub fn binary(&self) -> Option<&PathBuf> {
        self.selector.binary.as_ref()
    }

    /// The node for a command that does not wait for one; `None` if none runs. Several are an error that lists them.
    ///
    /// # Errors
    /// The named process does not exist, or there are several.
    pub fn find_now(&mut self) -> Result<Option<NodeProcess>> {
        const FIND_TIMEOUT: Duration = Duration::from_secs(3);
        let end = Instant::now() + FIND_TIMEOUT;
        loop {
            match self.find()? {
                SearchResult::Node(node) => return Ok(Some(node)),
                SearchResult::Soon if Instant::now() < end => thread::sleep(Duration::from_millis(50)),
                SearchResult::Soon => return Ok(None),
                SearchResult::None { is_ambiguous: true, why } => bail!("{why}"),
                SearchResult::None { .. } => return Ok(None),
            }
        }
    }

    /// The node, if it runs. An error if the user named a process and there is none.
    ///
    /// # Errors
    /// The named process does not exist.
    pub fn find(&mut self) -> Result<SearchResult> {
        if let (Some(pid), None) = (self.selector.pid, &self.last) {
            return NodeProcess::from_pid(pid, self.selector.binary.as_deref()).map(SearchResult::Node);
        }
        let last = self.last.as_ref().map(|it| it.candidate.node.binary.as_path());
        let all = self.scanner.scan(self.selector.binary.as_deref(), last)?;
        Ok(match self.decide(|named, others| choose(&all, named, self.last.as_ref(), others)) {
            (Choice::Node(candidate), _) => SearchResult::Node(candidate.node),
            (Choice::Soon, _) => SearchResult::Soon,
            (Choice::None(Some(why)), _) => SearchResult::None { why, is_ambiguous: true },
            (Choice::None(None), hidden) => {
                SearchResult::None { why: self.not_found_message(hidden), is_ambiguous: false }
            }
        })
    }

    /// Looks at what runs beside the node that is traced. Returns the process that is the node instead of it, if there is one.
    ///
    /// # Errors
    /// The processes cannot be listed.
    pub fn check_other_processes(&mut self, node: &NodeProcess) -> Result<Option<NodeProcess>> {
        let all = self.scanner.scan(self.selector.binary.as_deref(), Some(&node.binary))?;
        let id = (node.pid, node.started);
        // It is another one's name while it shuts down.
        let unseen = || Candidate::from_process(node).filter(|it| it.id() == id);
        let Some(now) = all.iter().find(|it| it.id() == id).cloned().or_else(unseen) else { return Ok(None) };
        let mut present = match self.present.take().filter(|it| it.candidate.id() == id) {
            Some(evidence) => evidence,
            None => KnownNode { candidate: now.clone(), beside: BTreeSet::new(), children: BTreeSet::new() },
        };
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
        let last = self.last.as_ref();
        let (next, _) = self.decide(|named, others| successor(&all, named, &present, last, others));
        self.present = Some(present);
        Ok(next.map(|candidate| candidate.node))
    }

    /// Whether it is known by its data directory's lock that this is the node.
    pub fn is_certain(&self) -> bool {
        self.present.as_ref().is_some_and(|present| !present.candidate.locks.is_empty())
    }

    /// The node that was traced has ended, or another one is it.
    pub fn ended(&mut self, node: &NodeProcess) {
        let id = (node.pid, node.started);
        let evidence = self.present.take().filter(|it| it.candidate.id() == id);
        let evidence = evidence.unwrap_or_else(|| KnownNode::without_evidence(node.clone()));
        self.last = match self.last.take() {
            // A process without locks does not replace the evidence of the node.
            Some(mut last) if evidence.candidate.locks.is_empty() && !last.candidate.locks.is_empty() => {
                last.beside.extend(evidence.beside);
                last.beside.insert(id);
                last.children.extend(evidence.children);
                Some(last)
            }
            _ => Some(evidence),
        };
    }

    /// Decides with what the user named; besides, why the lock of the data directory cannot be seen.
    fn decide<T>(&self, decide: impl FnOnce(UserSelection, &OtherNodes) -> T) -> (T, Option<io::Error>) {
        let locks = self.selector.datadir.as_deref().map(file_locks::datadir_lock_files);
        let (locks, hidden) = match locks.transpose() {
            Ok(locks) => (locks, None),
            Err(error) => (None, Some(error)),
        };
        let named = UserSelection {
            binary: self.selector.binary.is_some(),
            datadir: self.selector.datadir.as_deref(),
            datadir_locks: locks.as_deref(),
            unit: self.selector.unit.as_deref(),
        };
        (decide(named, &self.others), hidden)
    }

    /// The message when there is no node.
    fn not_found_message(&self, hidden: Option<io::Error>) -> String {
        let NodeSelector { binary, datadir, unit, .. } = &self.selector;
        let binary = binary.as_ref().or(self.last.as_ref().map(|it| &it.candidate.node.binary));
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
        match (datadir, hidden) {
            (Some(datadir), None) => why += &format!(" with data directory {}", datadir.display()),
            (Some(datadir), Some(error)) => {
                why += &format!(
                    " with -datadir={0} on its command line, and the lock in {0} cannot be read ({error}): run as the \
                     node's user, or select the node with --unit",
                    datadir.display()
                );
            }
            (None, _) => {}
        }
        why
    }
}

impl KnownNode {
    /// A node that has ended before it was looked at.
    fn without_evidence(node: NodeProcess) -> Self {
        KnownNode {
            candidate: Candidate {
                node,
                parent: 0,
                age: Duration::ZERO,
                locks: BTreeSet::new(),
                command: Vec::new(),
                cgroups: Vec::new(),
            },
            beside: BTreeSet::new(),
            children: BTreeSet::new(),
        }
    }
}
