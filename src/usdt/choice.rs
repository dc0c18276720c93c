//! Which of several processes is the node. Decides by evidence, without I/O.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::candidates::Candidate;
use super::file_locks::FileId;

/// A process without a lock is a node only when it is older than this: `-version`, a child that runs the command of `-blocknotify` next, and a
/// node that has not come to its data directory yet.
const SETTLED: Duration = Duration::from_secs(1);
/// A node that looks like another one than that which has ended is traced only when it is older than this.
const LOOKS_DIFFERENT: Duration = Duration::from_secs(10);

/// What a user names besides the binary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Named<'a> {
    pub datadir: Option<&'a Path>,
    /// Its lock files, if they can be seen.
    pub datadir_locks: Option<&'a [FileId]>,
    pub unit: Option<&'a str>,
}

/// What is known of the node that ended, or is traced.
#[derive(Clone, Debug)]
pub struct Known {
    pub candidate: Candidate,
    /// Processes of its binary that ran beside it: pid and start.
    pub beside: BTreeSet<(i32, u64)>,
    /// Its children, likewise. After `-daemon` and `-daemonwait` one of them is the node.
    pub children: BTreeSet<(i32, u64)>,
}

/// What is known of other nodes, as long as the exporter runs.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// There are some, or the user named a process: a node that looks different is another one.
    pub exist: bool,
    pub commands: BTreeSet<Vec<Vec<u8>>>,
    pub services: BTreeSet<String>,
}

/// What was decided.
#[derive(Debug, PartialEq)]
pub enum Choice {
    /// This is the node.
    Node(Candidate),
    /// There is one that may become it soon.
    Soon,
    /// There is none; why, if there is more to say than that.
    None(Option<String>),
}

/// The node among these processes. `last` is the one that has ended.
pub fn choose(all: &[Candidate], named: Named, last: Option<&Known>, others: &Others) -> Choice {
    let mut rest: Vec<&Candidate> = all.iter().collect();
    if let Some(last) = last {
        rest.retain(|it| it.id() != last.candidate.id());
    }
    if let Some(datadir) = named.datadir {
        rest = of_datadir(&rest, datadir, named.datadir_locks);
    }
    if let Some(unit) = named.unit {
        rest.retain(|it| it.is_in_unit(unit));
    }
    let is_named = named.datadir.is_some() || named.unit.is_some();
    let mut different = None;
    let mut waits = false;
    if let (Some(last), false) = (last, is_named) {
        let shares_lock = |it: &&&Candidate| !it.locks.is_disjoint(&last.candidate.locks);
        if let Some(same) = rest.iter().find(shares_lock) {
            return Choice::Node((*same).clone());
        }
        rest.retain(|it| !last.beside.contains(&it.id()));
        let children: Vec<_> = rest.iter().copied().filter(|it| last.children.contains(&it.id())).collect();
        if !children.is_empty() {
            rest = children;
        } else if !last.candidate.locks.is_empty() {
            let (alike, unlike): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|it| !it.locks.is_empty() && is_alike(it, last, others));
            rest = alike;
            for it in unlike {
                match (others.exist, it.age > LOOKS_DIFFERENT) {
                    (true, _) if it.locks.is_empty() => waits = true,
                    (true, _) => different = Some(it),
                    (false, true) => rest.push(it),
                    (false, false) => waits = true,
                }
            }
        }
    }
    if rest.iter().any(|it| !it.locks.is_empty()) {
        rest.retain(|it| !it.locks.is_empty());
    } else {
        let parents: Vec<_> = rest.iter().map(|it| it.parent).collect();
        rest.retain(|it| !parents.contains(&it.node.pid));
        waits |= rest.iter().any(|it| it.age <= SETTLED);
        rest.retain(|it| it.age > SETTLED);
    }
    match (&rest[..], different) {
        ([one], _) => Choice::Node((*one).clone()),
        ([], Some(different)) => Choice::None(Some(format!(
            "{} is not the node that was traced: it has another data directory. To trace it, name it with --datadir or --unit",
            different.node
        ))),
        ([], None) if waits => Choice::Soon,
        ([], None) => Choice::None(None),
        (several, _) => Choice::None(Some(format!(
            "several nodes run; name one with --datadir, --unit or --pid:{}",
            several.iter().map(|it| format!("\n  {}", it.node)).collect::<String>()
        ))),
    }
}

/// A process that holds the lock of this data directory; where its lock cannot be seen, one whose command line names it.
fn of_datadir<'a>(all: &[&'a Candidate], datadir: &Path, locks: Option<&[FileId]>) -> Vec<&'a Candidate> {
    let Some(files) = locks else {
        return all.iter().copied().filter(|it| it.names_datadir(datadir)).collect();
    };
    let holders = |is_same: fn(&FileId, &FileId) -> bool| {
        let holds =
            |it: &&&Candidate| it.locks.iter().any(|lock| files.iter().any(|file| is_same(lock, file)));
        all.iter().filter(holds).copied().collect::<Vec<_>>()
    };
    let exact = holders(|lock, file| lock == file);
    // Of btrfs and overlayfs, `stat` tells another device than `/proc/locks`.
    if exact.is_empty() { holders(|lock, file| lock.inode == file.inode) } else { exact }
}

/// Whether it was started as the node that has ended, and no other node is: its data directory was made anew, say.
fn is_alike(it: &Candidate, last: &Known, others: &Others) -> bool {
    let same_service = it.service().is_some_and(|service| {
        last.candidate.service() == Some(service) && !others.services.contains(service)
    });
    same_service || (it.command == last.candidate.command && !others.commands.contains(&it.command))
}

/// The process that is the node instead of the one that is traced, `present`, which has nothing locked: its child after `-daemonwait`, or
/// the node that was started beside `bitcoind -help | less`.
pub fn successor(
    all: &[Candidate],
    named: Named,
    present: &Known,
    last: Option<&Known>,
    others: &Others,
) -> Option<Candidate> {
    if !present.candidate.locks.is_empty() {
        return None;
    }
    let is_child = |it: &&Candidate| it.parent == present.candidate.node.pid && !it.locks.is_empty();
    if let Some(child) = all.iter().find(is_child) {
        return Some(child.clone());
    }
    if others.exist && last.is_none() {
        return None;
    }
    let rest: Vec<_> = all.iter().filter(|it| it.id() != present.candidate.id()).cloned().collect();
    match choose(&rest, named, last, others) {
        Choice::Node(node) if !node.locks.is_empty() => Some(node),
        _ => None,
    }
}
