//! Selects the node to trace among several processes, from evidence that the caller has collected, for example file
//! locks. This module does no I/O.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::candidates::Candidate;
use super::file_locks::FileId;
use crate::node_process::NodeProcess;

/// Minimum age at which a process that holds no file lock counts as a node. A younger process may be `bitcoind
/// -version`, a child that is about to run the command of `-blocknotify`, or a node that has not locked its data
/// directory yet.
const MIN_NODE_AGE: Duration = Duration::from_secs(1);
/// Minimum age at which a process is traced if its file locks, command line and systemd unit all differ from those of
/// the node that was traced before and has ended.
const DIFFERENT_NODE_DELAY: Duration = Duration::from_secs(10);

/// The command line options by which the user selects the node to trace among several nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserSelection<'a> {
    /// Whether the user named a binary. All candidates then run that binary.
    pub binary: bool,
    pub datadir: Option<&'a Path>,
    /// Lock files of the data directory; `None` if the exporter cannot access them.
    pub datadir_locks: Option<&'a [FileId]>,
    pub unit: Option<&'a str>,
}

/// Evidence about the traced node, or about the last node that was traced. By this evidence the exporter recognizes the
/// node's next process after a restart.
#[derive(Clone, Debug)]
pub struct KnownNode {
    pub candidate: Candidate,
    /// Candidates that ran at the same time as this node, each as PID and start time.
    pub beside: BTreeSet<(i32, u64)>,
    /// Child processes of this node, each as PID and start time. With `-daemon` and `-daemonwait`, one of the child
    /// processes is the node.
    pub children: BTreeSet<(i32, u64)>,
}

impl KnownNode {
    /// Evidence about this candidate, without evidence about other processes.
    pub fn new(candidate: Candidate) -> Self {
        KnownNode { candidate, beside: BTreeSet::new(), children: BTreeSet::new() }
    }

    /// Replaces the known locks of this node with its current locks, because another node can lock a file that this
    /// node has released. If this node holds no locks any more, because it shuts down, the last known locks are kept to
    /// identify it.
    pub fn update_locks(&mut self, now: &BTreeSet<FileId>) {
        if !now.is_empty() {
            self.candidate.locks.clone_from(now);
        }
    }
}

/// Facts that identify other nodes on the same machine, whose processes are therefore not traced. The exporter keeps
/// these facts as long as it runs.
#[derive(Clone, Debug, Default)]
pub struct OtherNodes {
    /// Whether other nodes exist, or the user selected the node by its PID. In both cases, a process whose file locks,
    /// command line and systemd unit all differ from those of the last traced node is never selected.
    pub exist: bool,
    pub commands: BTreeSet<Vec<Vec<u8>>>,
    pub services: BTreeSet<String>,
}

/// The result of a search: the process of the node, or the reason why no process is the node.
#[derive(Debug, PartialEq)]
pub enum Choice {
    /// This process is the node.
    Node(NodeProcess),
    /// No candidate is the node yet, but a candidate that was just started may become the node. The caller should
    /// search again soon.
    Soon,
    /// No candidate is the node. If several candidates may be the node, or the only candidate is a different node, the
    /// text explains this to the user.
    None(Option<String>),
}

/// Selects the node's process among these candidates. `last` has the evidence about the node process that the exporter
/// traced last, and that has exited. `others` has the known facts about other nodes.
pub fn choose(
    all: &[Candidate],
    named: UserSelection,
    last: Option<&KnownNode>,
    others: &OtherNodes,
) -> Choice {
    let mut rest: Vec<&Candidate> = all.iter().collect();
    if let Some(last) = last {
        rest.retain(|it| it.id() != last.candidate.id());
    }
    if let Some(datadir) = named.datadir {
        rest = with_datadir(&rest, datadir, named.datadir_locks);
    }
    if let Some(unit) = named.unit {
        rest.retain(|it| it.is_in_unit(unit));
    }
    let is_named = named.datadir.is_some() || named.unit.is_some();
    let (mut different, mut waits) = (None, false);
    if let (Some(last), false) = (last, is_named) {
        let shares_lock = |it: &&&Candidate| shares_locks(it, last) && !is_another(it, last, others);
        let likeness = |it: &&&Candidate| (shared_locks(it, last), it.command == last.candidate.command);
        if let Some(same) = rest.iter().filter(shares_lock).max_by_key(likeness) {
            return Choice::Node(same.node.clone());
        }
        (rest, different, waits) = after(rest, named, last, others);
    }
    if rest.iter().any(|it| !it.locks.is_empty()) {
        rest.retain(|it| !it.locks.is_empty());
    } else {
        let parents: Vec<_> = rest.iter().map(|it| it.parent).collect();
        rest.retain(|it| !parents.contains(&it.node.pid));
        // Wait until all processes are older than `MIN_NODE_AGE`, because a younger process may be a second node.
        if rest.iter().any(|it| it.age <= MIN_NODE_AGE) {
            return Choice::Soon;
        }
    }
    match (&rest[..], different) {
        ([one], _) => Choice::Node(one.node.clone()),
        ([], Some(different)) => Choice::None(Some(format!(
            "{} is not the node that was traced: it has another data directory. To trace it, select it with --datadir or \
             --unit",
            different.node
        ))),
        ([], None) if waits => Choice::Soon,
        ([], None) => Choice::None(None),
        (several, _) => Choice::None(Some(format!(
            "several nodes are running; select one with --datadir, --unit or --pid:{}",
            several.iter().map(|it| format!("\n  {}", it.node)).collect::<String>()
        ))),
    }
}

/// Applies the evidence about the node that has ended, `last`. Returns three values: the candidates that may be this
/// node after its restart; a candidate that the evidence shows to be a different node, if there is one; and whether a
/// candidate was left out only because its process has not run for long enough.
fn after<'a>(
    mut rest: Vec<&'a Candidate>,
    named: UserSelection,
    last: &KnownNode,
    others: &OtherNodes,
) -> (Vec<&'a Candidate>, Option<&'a Candidate>, bool) {
    // If the traced process had no locks, it may not have been the node, but for example `bitcoind -help`. The node may
    // then have run at the same time as the traced process.
    let may_be_next = |it: &Candidate| last.candidate.locks.is_empty() && !it.locks.is_empty();
    rest.retain(|it| !last.beside.contains(&it.id()) || may_be_next(it));
    // A process of another binary is another node, unless it has the command line or the unit of the last node.
    let is_same_binary = |it: &Candidate| named.binary || it.node.binary == last.candidate.node.binary;
    rest.retain(|it| is_same_binary(it) || is_alike(it, last, others));
    let children: Vec<_> = rest.iter().copied().filter(|it| last.children.contains(&it.id())).collect();
    if !children.is_empty() {
        return (children, None, false);
    }
    if last.candidate.locks.is_empty() {
        return (rest, None, false);
    }
    let (mut next, unlike): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|it| !it.locks.is_empty() && is_alike(it, last, others));
    let (mut different, mut waits) = (None, false);
    for it in unlike {
        match (others.exist, it.age > DIFFERENT_NODE_DELAY) {
            (true, _) if it.locks.is_empty() => waits = true,
            (true, _) => different = Some(it),
            (false, true) => next.push(it),
            (false, false) => waits = true,
        }
    }
    (next, different, waits)
}

/// The candidates that hold the lock of this data directory. If the exporter cannot access the lock files of the
/// directory, the result is the candidates whose command line contains the directory.
fn with_datadir<'a>(all: &[&'a Candidate], datadir: &Path, locks: Option<&[FileId]>) -> Vec<&'a Candidate> {
    let Some(files) = locks else {
        return all.iter().copied().filter(|it| it.names_datadir(datadir)).collect();
    };
    let holders = |is_same: fn(&FileId, &FileId) -> bool| {
        let holds =
            |it: &&&Candidate| it.locks.iter().any(|lock| files.iter().any(|file| is_same(lock, file)));
        all.iter().filter(holds).copied().collect::<Vec<_>>()
    };
    let exact = holders(|lock, file| lock == file);
    // On btrfs and overlayfs, the device number in `stat` differs from the device number in `/proc/locks`, so if no
    // lock matches, only the inode numbers are compared.
    if exact.is_empty() { holders(|lock, file| lock.inode == file.inode) } else { exact }
}

/// Whether a process has the unit or the command line of the node that has ended, and no other known node has the same
/// unit or command line. Such a process can be the same node with, for example, a new data directory.
fn is_alike(it: &Candidate, last: &KnownNode, others: &OtherNodes) -> bool {
    let same_service = it.service().is_some_and(|service| {
        last.candidate.service() == Some(service) && !others.services.contains(service)
    });
    same_service || (it.command == last.candidate.command && !others.commands.contains(&it.command))
}

/// Number of files that this process has locked, and that the node that has ended had locked too.
fn shared_locks(it: &Candidate, last: &KnownNode) -> usize {
    it.locks.intersection(&last.candidate.locks).count()
}

/// Whether a process holds enough locks of the node that has ended to be that node. A node locks its data directory,
/// its blocks and its databases. With -reindex, a node deletes its databases and creates them again. Another node can
/// then create a file with the inode number of a deleted database. If both processes hold several locks and have
/// different command lines, one common lock is therefore no evidence.
fn shares_locks(it: &Candidate, last: &KnownNode) -> bool {
    let by_chance =
        it.locks.len().min(last.candidate.locks.len()) > 1 && it.command != last.candidate.command;
    shared_locks(it, last) > usize::from(by_chance)
}

/// Whether a process has the command line of a known other node, and not the command line of the node that has ended.
/// Equal locks do not prove that the process is the ended node, because a file system reuses the inode numbers of
/// deleted files. If the data directories of both nodes were deleted and created again, the other node can hold a lock
/// with an inode number of the ended node.
fn is_another(it: &Candidate, last: &KnownNode, others: &OtherNodes) -> bool {
    it.command != last.candidate.command && others.commands.contains(&it.command)
}

/// The process to trace instead of `present`, the traced process, if the evidence shows that `present` is not the node.
/// `None` if `present` holds a file lock, because it is then the node. The result is for example the child process of a
/// node that was started with `-daemonwait`, or a node that was started while `bitcoind -help | less` ran.
pub fn successor(
    all: &[Candidate],
    named: UserSelection,
    present: &KnownNode,
    last: Option<&KnownNode>,
    others: &OtherNodes,
) -> Option<NodeProcess> {
    if !present.candidate.locks.is_empty() {
        return None;
    }
    let is_child = |it: &&Candidate| it.parent == present.candidate.node.pid && !it.locks.is_empty();
    if let Some(child) = all.iter().find(is_child) {
        return Some(child.node.clone());
    }
    if others.exist && last.is_none() {
        return None;
    }
    let rest: Vec<_> = all.iter().filter(|it| it.id() != present.candidate.id()).cloned().collect();
    let Choice::Node(node) = choose(&rest, named, last, others) else { return None };
    rest.iter().any(|it| it.node == node && !it.locks.is_empty()).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATADIR: u64 = 7;
    const ANOTHER: u64 = 8;

    fn lock(inode: u64) -> FileId {
        FileId { device: (8, 1), inode }
    }

    /// An hour-old process that has locked the files with these inode numbers.
    fn process(pid: i32, locks: &[u64]) -> Candidate {
        Candidate {
            node: NodeProcess { pid, started: 1, binary: "/usr/bin/bitcoin-node".into() },
            parent: 0,
            age: Duration::from_secs(3600),
            locks: locks.iter().copied().map(lock).collect(),
            command: vec![b"bitcoin-node".to_vec(), pid.to_string().into_bytes()],
            cgroups: vec!["/user.slice/session-1.scope".into()],
        }
    }

    /// A 100 ms old process that has locked the files with these inode numbers.
    fn young(pid: i32, locks: &[u64]) -> Candidate {
        Candidate { age: Duration::from_millis(100), ..process(pid, locks) }
    }

    fn child(pid: i32, parent: i32, locks: &[u64]) -> Candidate {
        Candidate { parent, ..young(pid, locks) }
    }

    fn known(candidate: Candidate) -> KnownNode {
        KnownNode::new(candidate)
    }

    fn others() -> OtherNodes {
        OtherNodes { exist: true, ..OtherNodes::default() }
    }

    /// PID of the process that `choose` selects after the node `last` has ended; `None` if it selects no process.
    fn chosen(all: &[Candidate], last: Option<&KnownNode>, others: &OtherNodes) -> Option<i32> {
        match choose(all, UserSelection::default(), last, others) {
            Choice::Node(node) => Some(node.pid),
            _ => None,
        }
    }

    /// PID of the process that `choose` selects if no node was traced before.
    fn alone(all: &[Candidate]) -> Option<i32> {
        chosen(all, None, &OtherNodes::default())
    }

    #[test]
    fn settled_or_locking_process_is_the_node() {
        assert_eq!(alone(&[process(1, &[])]), Some(1));
        assert_eq!(alone(&[young(1, &[DATADIR])]), Some(1));
        assert_eq!(
            choose(&[young(1, &[])], UserSelection::default(), None, &OtherNodes::default()),
            Choice::Soon
        );
        assert_eq!(alone(&[]), None);
    }

    #[test]
    fn several_candidates_are_ambiguous() {
        let all = [process(1, &[DATADIR]), process(2, &[ANOTHER])];
        let Choice::None(Some(why)) = choose(&all, UserSelection::default(), None, &OtherNodes::default())
        else {
            panic!()
        };
        assert!(why.contains("--datadir, --unit or --pid") && why.contains("process 2 ("), "{why}");
        assert_eq!(alone(&[process(1, &[]), process(2, &[])]), None);
        assert_eq!(alone(&[process(1, &[]), young(2, &[])]), None);
    }

    #[test]
    fn daemon_parent_and_command_child_are_not_the_node() {
        // With `-daemonwait`, the child process holds the lock of the data directory, or will lock it soon.
        assert_eq!(alone(&[process(1, &[]), child(2, 1, &[DATADIR])]), Some(2));
        assert_eq!(alone(&[process(1, &[]), child(2, 1, &[])]), None);
        assert_eq!(alone(&[process(1, &[]), Candidate { parent: 1, ..process(2, &[]) }]), Some(2));
        // A child process that runs the command of `-blocknotify` never holds the lock of the node.
        assert_eq!(alone(&[process(1, &[DATADIR]), child(2, 1, &[])]), Some(1));
    }

    #[test]
    fn process_with_the_same_lock_is_the_next_node() {
        let mut last = known(process(1, &[DATADIR]));
        last.beside.insert((3, 1));
        let all = [process(2, &[ANOTHER]), process(3, &[DATADIR]), young(4, &[])];
        assert_eq!(chosen(&all, Some(&last), &others()), Some(3));
    }

    #[test]
    fn reused_inode_does_not_match_a_known_other_node() {
        let last = known(process(1, &[DATADIR]));
        let other = process(2, &[DATADIR]);
        let commands = BTreeSet::from([other.command.clone()]);
        let others = OtherNodes { commands, ..others() };
        assert_eq!(chosen(std::slice::from_ref(&other), Some(&last), &others), None);
        let again = Candidate { command: last.candidate.command.clone(), ..process(3, &[ANOTHER]) };
        assert_eq!(chosen(&[other, again], Some(&last), &others), Some(3));
    }

    #[test]
    fn one_shared_lock_does_not_match_another_command_line() {
        let last = known(process(1, &[DATADIR, 11, 12, 13]));
        // The node was restarted with -reindex and created the files with inode numbers 12 and 13 again. Another node
        // now has a file with inode number 12.
        let (node, other) = (process(2, &[DATADIR, 11, 14, 15]), process(3, &[ANOTHER, 12, 16, 17]));
        for all in [[node.clone(), other.clone()], [other.clone(), node.clone()]] {
            assert_eq!(chosen(&all, Some(&last), &others()), Some(2));
        }
        assert_eq!(chosen(std::slice::from_ref(&other), Some(&last), &others()), None);
        // The restarted node has locked only its data directory so far, and not its databases.
        let early = process(2, &[DATADIR]);
        assert_eq!(chosen(&[other.clone(), early.clone()], Some(&last), &others()), Some(2));
        assert_eq!(chosen(&[early], Some(&last), &others()), Some(2));
        let again = Candidate { command: last.candidate.command.clone(), ..process(4, &[DATADIR, 18, 19]) };
        assert_eq!(chosen(&[again, other], Some(&last), &others()), Some(4));
    }

    #[test]
    fn process_beside_the_node_is_not_the_next_node() {
        let mut last = known(process(1, &[]));
        last.beside.insert((2, 1));
        assert_eq!(chosen(&[process(1, &[]), process(2, &[])], Some(&last), &OtherNodes::default()), None);
        assert_eq!(chosen(&[process(2, &[]), process(3, &[])], Some(&last), &OtherNodes::default()), Some(3));
        // The process that was traced before was a slow `bitcoind -version`.
        assert_eq!(chosen(&[process(2, &[DATADIR])], Some(&last), &OtherNodes::default()), Some(2));
    }

    #[test]
    fn another_binary_needs_the_lock_or_the_unit() {
        let last =
            known(Candidate { cgroups: vec!["/system.slice/a.service".into()], ..process(1, &[DATADIR]) });
        let moved = |mut candidate: Candidate| {
            candidate.node.binary = "/opt/bitcoin-node".into();
            candidate
        };
        let none = OtherNodes::default();
        assert_eq!(chosen(&[moved(process(2, &[ANOTHER]))], Some(&last), &none), None);
        assert_eq!(chosen(&[moved(process(2, &[DATADIR]))], Some(&last), &none), Some(2));
        let unit = Candidate { cgroups: last.candidate.cgroups.clone(), ..moved(process(2, &[ANOTHER])) };
        assert_eq!(chosen(&[unit], Some(&last), &none), Some(2));
        let named = UserSelection { binary: true, ..UserSelection::default() };
        let all = [moved(process(2, &[ANOTHER]))];
        assert_eq!(choose(&all, named, Some(&last), &none), Choice::Node(all[0].node.clone()));
    }

    #[test]
    fn released_lock_identifies_no_node() {
        let mut last = known(process(1, &[DATADIR, ANOTHER]));
        last.update_locks(&process(1, &[DATADIR]).locks);
        last.update_locks(&BTreeSet::new());
        assert_eq!(last.candidate.locks, BTreeSet::from([lock(DATADIR)]), "it shuts down");
        // `ANOTHER` may be the lock of a wallet that the traced node has unloaded and that another node has loaded.
        assert_eq!(chosen(&[process(2, &[ANOTHER])], Some(&last), &others()), None);
        assert_eq!(chosen(&[process(2, &[DATADIR])], Some(&last), &others()), Some(2));
    }

    #[test]
    fn child_of_the_ended_process_is_the_next_node() {
        let mut last = known(process(1, &[]));
        last.children.insert((2, 1));
        assert_eq!(chosen(&[process(2, &[]), process(3, &[])], Some(&last), &OtherNodes::default()), Some(2));
    }

    #[test]
    fn another_datadir_is_another_node_among_several() {
        let last = known(process(1, &[DATADIR]));
        let all = [process(2, &[ANOTHER])];
        let Choice::None(Some(why)) = choose(&all, UserSelection::default(), Some(&last), &others()) else {
            panic!()
        };
        assert!(why.contains("process 2 (") && why.contains("--datadir"), "{why}");
        // If no other node is known, a process with another data directory is the same node, whose data directory was
        // moved.
        assert_eq!(chosen(&all, Some(&last), &OtherNodes::default()), Some(2));
        assert_eq!(chosen(&[young(2, &[ANOTHER])], Some(&last), &OtherNodes::default()), None);
        // The data directory was deleted and created again, and the node was started with the same command line.
        let again = Candidate { command: last.candidate.command.clone(), ..young(2, &[ANOTHER]) };
        assert_eq!(chosen(std::slice::from_ref(&again), Some(&last), &others()), Some(2));
        let commands = BTreeSet::from([again.command.clone()]);
        assert_eq!(chosen(&[again], Some(&last), &OtherNodes { commands, ..others() }), None);
    }

    #[test]
    fn node_without_lock_is_awaited() {
        let last = known(process(1, &[DATADIR]));
        let settled = Candidate { age: 2 * MIN_NODE_AGE, ..process(2, &[]) };
        assert_eq!(
            choose(&[settled], UserSelection::default(), Some(&last), &OtherNodes::default()),
            Choice::Soon
        );
    }

    #[test]
    fn data_directory_is_matched_by_lock_then_command_line() {
        let datadir = Path::new("/data");
        let chosen = |all: &[Candidate], locks: Option<&[FileId]>| {
            let named =
                UserSelection { datadir: Some(datadir), datadir_locks: locks, ..UserSelection::default() };
            match choose(all, named, None, &OtherNodes::default()) {
                Choice::Node(node) => Some(node.pid),
                _ => None,
            }
        };
        let all = [process(1, &[ANOTHER]), process(2, &[DATADIR])];
        assert_eq!(chosen(&all, Some(&[lock(DATADIR)])), Some(2));
        assert_eq!(chosen(&all, Some(&[lock(9)])), None);
        // On btrfs, the device number in `stat` differs from the device number in `/proc/locks`.
        assert_eq!(chosen(&all, Some(&[FileId { device: (0, 30), inode: DATADIR }])), Some(2));
        assert_eq!(chosen(&all, None), None);
        let command = |argument: &str| vec![b"bitcoin-node".to_vec(), argument.into()];
        let all = [
            Candidate { command: command("-datadir=/data2"), ..process(1, &[ANOTHER]) },
            Candidate { command: command("--datadir=/data/"), ..process(2, &[DATADIR]) },
        ];
        assert_eq!(chosen(&all, None), Some(2));
    }

    #[test]
    fn unit_is_matched_by_its_control_group() {
        let in_group = |pid, group: &str| Candidate { cgroups: vec![group.into()], ..process(pid, &[]) };
        let all = [
            in_group(1, "/system.slice/bitcoind.service"),
            in_group(2, "/system.slice/bitcoind-test.service/payload"),
        ];
        for (unit, pid) in [("bitcoind", 1), ("bitcoind.service", 1), ("bitcoind-test.service", 2)] {
            let named = UserSelection { unit: Some(unit), ..UserSelection::default() };
            let choice = choose(&all, named, None, &OtherNodes::default());
            assert_eq!(choice, Choice::Node(all[pid as usize - 1].node.clone()), "{unit}");
        }
    }

    #[test]
    fn node_is_followed_from_another_process() {
        let next = |all: &[Candidate], present: Candidate, others: &OtherNodes| {
            let next = successor(all, UserSelection::default(), &known(present), None, others);
            next.map(|it| it.pid)
        };
        let waits = process(1, &[]);
        let all = [waits.clone(), child(2, 1, &[DATADIR])];
        assert_eq!(next(&all, waits.clone(), &others()), Some(2));
        // The traced process is a `bitcoind -help` that waits until its output is read. A node runs at the same time.
        let all = [waits.clone(), process(3, &[DATADIR])];
        assert_eq!(next(&all, waits.clone(), &OtherNodes::default()), Some(3));
        assert_eq!(next(&all, waits.clone(), &others()), None);
        assert_eq!(next(&all, process(3, &[DATADIR]), &OtherNodes::default()), None);
        assert_eq!(next(&[waits.clone(), process(3, &[])], waits, &OtherNodes::default()), None);
    }
}
