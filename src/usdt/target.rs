//! Which node is traced, and where it comes from again when it has ended.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::candidates::{Candidate, Scanner};
use super::choice::{Choice, Known, Named, Others, choose, successor};
use super::{file_locks, privileges};
use crate::node_process::NodeProcess;

/// Which node to trace, as the user named it. Without anything, the only one that runs.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// The binary with the tracepoints.
    pub binary: Option<PathBuf>,
    /// The process. When it has ended, its successor is traced: the one with the same data directory.
    pub pid: Option<i32>,
    /// The data directory.
    pub datadir: Option<PathBuf>,
    /// The systemd unit, `bitcoind.service`.
    pub unit: Option<String>,
}

/// What was found.
pub enum Found {
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

/// Looks for the node, and remembers what distinguishes it from others.
pub struct Search {
    target: Target,
    scanner: Scanner,
    present: Option<Known>,
    last: Option<Known>,
    others: Others,
}

impl Search {
    /// Of this node.
    pub fn new(target: Target) -> Self {
        let others = Others { exist: target.pid.is_some(), ..Others::default() };
        Search { target, scanner: Scanner::default(), present: None, last: None, others }
    }

    /// The binary that the user named.
    pub fn binary(&self) -> Option<&PathBuf> {
        self.target.binary.as_ref()
    }

    /// The node for a command that does not wait for one; `None` if none runs. Several are an error that lists them.
    ///
    /// # Errors
    /// The named process does not exist, or there are several.
    pub fn find_now(&mut self) -> Result<Option<NodeProcess>> {
        const PATIENCE: Duration = Duration::from_secs(3);
        let end = Instant::now() + PATIENCE;
        loop {
            match self.find()? {
                Found::Node(node) => return Ok(Some(node)),
                Found::Soon if Instant::now() < end => thread::sleep(Duration::from_millis(50)),
                Found::Soon => return Ok(None),
                Found::None { is_ambiguous: true, why } => bail!("{why}"),
                Found::None { .. } => return Ok(None),
            }
        }
    }

    /// The node, if it runs. An error if the user named a process and there is none.
    ///
    /// # Errors
    /// The named process does not exist.
    pub fn find(&mut self) -> Result<Found> {
        if let (Some(pid), None) = (self.target.pid, &self.last) {
            return NodeProcess::from_pid(pid, self.target.binary.as_deref()).map(Found::Node);
        }
        let last = self.last.as_ref().map(|it| it.candidate.node.binary.as_path());
        let all = self.scanner.scan(self.target.binary.as_deref(), last)?;
        Ok(match self.decide(|named, others| choose(&all, named, self.last.as_ref(), others)) {
            (Choice::Node(candidate), _) => Found::Node(candidate.node),
            (Choice::Soon, _) => Found::Soon,
            (Choice::None(Some(why)), _) => Found::None { why, is_ambiguous: true },
            (Choice::None(None), hidden) => Found::None { why: self.none(hidden), is_ambiguous: false },
        })
    }

    /// Looks at what runs beside the node that is traced. Returns the process that is the node instead of it, if there is one.
    ///
    /// # Errors
    /// The processes cannot be listed.
    pub fn look_beside(&mut self, node: &NodeProcess) -> Result<Option<NodeProcess>> {
        let all = self.scanner.scan(self.target.binary.as_deref(), Some(&node.binary))?;
        let id = (node.pid, node.started);
        // It is another one's name while it shuts down.
        let unseen = || Candidate::of(node).filter(|it| it.id() == id);
        let Some(now) = all.iter().find(|it| it.id() == id).cloned().or_else(unseen) else { return Ok(None) };
        let mut present = match self.present.take().filter(|it| it.candidate.id() == id) {
            Some(known) => known,
            None => Known { candidate: now.clone(), beside: BTreeSet::new(), children: BTreeSet::new() },
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
        let known = self.present.take().filter(|it| it.candidate.id() == id);
        let known = known.unwrap_or_else(|| Known::unseen(node.clone()));
        self.last = match self.last.take() {
            // What had nothing locked does not displace what is known of the node.
            Some(mut last) if known.candidate.locks.is_empty() && !last.candidate.locks.is_empty() => {
                last.beside.extend(known.beside);
                last.beside.insert(id);
                last.children.extend(known.children);
                Some(last)
            }
            _ => Some(known),
        };
    }

    /// Decides with what the user named; besides, why the lock of the data directory cannot be seen.
    fn decide<T>(&self, decide: impl FnOnce(Named, &Others) -> T) -> (T, Option<io::Error>) {
        let locks = self.target.datadir.as_deref().map(file_locks::of_datadir);
        let (locks, hidden) = match locks.transpose() {
            Ok(locks) => (locks, None),
            Err(error) => (None, Some(error)),
        };
        let named = Named {
            binary: self.target.binary.is_some(),
            datadir: self.target.datadir.as_deref(),
            datadir_locks: locks.as_deref(),
            unit: self.target.unit.as_deref(),
        };
        (decide(named, &self.others), hidden)
    }

    /// The message when there is no node.
    fn none(&self, hidden: Option<io::Error>) -> String {
        let Target { binary, datadir, unit, .. } = &self.target;
        let binary = binary.as_ref().or(self.last.as_ref().map(|it| &it.candidate.node.binary));
        let mut why = match binary {
            Some(binary) => {
                let new = if self.last.is_some() { "new " } else { "" };
                format!("no {new}process of {} runs", binary.display())
            }
            None if privileges::sees_other_users() => "no node runs".to_string(),
            None => "no node of this user runs, and without CAP_SYS_PTRACE another user's is seen only with --bitcoind".to_string(),
        };
        if let Some(unit) = unit {
            why += &format!(" in unit {unit}");
        }
        match (datadir, hidden) {
            (Some(datadir), None) => why += &format!(" with data directory {}", datadir.display()),
            (Some(datadir), Some(error)) => {
                why += &format!(
                    " with -datadir={0} on its command line, and the lock in {0} cannot be seen ({error}): run as the node's user or \
                     name the node with --unit",
                    datadir.display()
                );
            }
            (None, _) => {}
        }
        why
    }
}

impl Known {
    /// A node that has ended before it was looked at.
    fn unseen(node: NodeProcess) -> Self {
        Known {
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
