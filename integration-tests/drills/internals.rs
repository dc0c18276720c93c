//! Faults inside a node: an index, background validation, the message handler.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use bitcoin::hashes::Hash;
use bitcoin::p2p::message::NetworkMessage;
use bitcoin::p2p::message_blockdata::Inventory;

use crate::fleet::{Fleet, Kind, Plan, warning};
use crate::harness::eventually;
use crate::harness::node::Node;
use crate::harness::peer::Peer;
use crate::network::Network;
use crate::slow_disk::SlowDisk;
use crate::snapshot::Snapshot;

/// Drill 16: the thread that builds an index waits for the disk.
pub fn index_that_stands_still_is_stuck() {
    const FACTOR: u32 = 120;
    let disk = SlowDisk::new(1, Some("b-txindex"));
    let plans = Kind::REAL.map(|kind| Plan::new(kind).without_usdt().program(&disk.program()));
    let mut fleet = Fleet::start_scaled("16 index stuck", FACTOR, plans.into());
    for member in &mut fleet.members {
        member.stop();
        member.real_mut().add_argument("-txindex");
        member.start_again();
    }
    let since = Instant::now();
    fleet.expect(since, &fleet.names(), &[warning("BitcoinIndexStuck")], 75.0);
}

/// A network on the chain of a snapshot, whose blocks nobody sends: its node is pruned.
pub fn network_above_a_snapshot(factor: u32) -> (Network, Snapshot) {
    let mut snapshot = None;
    let prepare = |hub: &Node| snapshot = Some(Snapshot::write(hub));
    let network = Network::start_prepared(factor, &["-prune=1"], prepare);
    (network, snapshot.unwrap())
}

/// Nodes that start from the snapshot, as an operator would.
pub fn fleet_from_a_snapshot(
    drill: &'static str,
    factor: u32,
    network: Network,
    snapshot: &Snapshot,
) -> Fleet {
    let plans = Kind::REAL.map(|kind| Plan::new(kind).alone().node(&["-connect=0"]));
    let fleet = Fleet::start_on(drill, factor, network, plans.into());
    for member in &fleet.members {
        let node = member.real();
        snapshot.load(node);
        // In initial block download it takes nothing from a pruned node.
        Snapshot::give_those_above(&fleet.network.hub, node);
        node.cli(&["addnode", &fleet.network.address(), "onetry"]);
    }
    let hub = &fleet.network.hub;
    eventually("the nodes have the tip", || {
        let tip = hub.cli(&["getbestblockhash"]);
        fleet.members.iter().all(|it| it.real().cli(&["getbestblockhash"]) == tip).then_some(())
    });
    for member in &fleet.members {
        let states = member.real().json(&["getchainstates"]);
        assert_eq!(states["chainstates"].as_array().unwrap().len(), 2, "{states}");
    }
    fleet
}

/// Drill 16: no peer has the blocks below the snapshot.
pub fn background_validation_without_blocks_is_stuck() {
    const FACTOR: u32 = 120;
    let (network, snapshot) = network_above_a_snapshot(FACTOR);
    let fleet = fleet_from_a_snapshot("16 background validation stuck", FACTOR, network, &snapshot);
    // Some of them came.
    for member in &fleet.members {
        (1..=10).for_each(|height| snapshot.give(member.real(), height));
    }
    let since = Instant::now();
    fleet.expect(since, &fleet.names(), &[warning("BitcoinBackgroundValidationStuck")], 135.0);
}

/// Drill 27. The thread gets a processor though the machine is busy, which needs root.
pub fn message_handler_without_time_left_is_an_alert() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("drill 27, message handler, needs root to raise a priority");
    }
    let fleet = Fleet::start("27 message handler", vec![Plan::new(Kind::Rpc)]);
    fleet.quiet(2.0);
    let node = fleet.members[0].real();
    raise_priority(node, "b-msghand");
    let port = node.p2p_port;
    let since = Instant::now();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| announce_without_end(port, &ended));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fleet.expect(since, &fleet.names(), &[warning("BitcoinMessageHandlerBusy")], 30.0);
        }));
        ended.store(true, Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn raise_priority(node: &Node, thread: &str) {
    let process = procfs::process::Process::new(node.pid().cast_signed()).unwrap();
    let mut tasks = process.tasks().unwrap().flatten();
    let task = tasks.find(|it| it.stat().is_ok_and(|it| it.comm == thread)).expect("the thread");
    let mut renice = Command::new("renice");
    assert!(renice.args(["-n", "-20", "-p", &task.tid.to_string()]).output().unwrap().status.success());
}

/// A peer that announces as many transactions as fit into a message, again and again.
fn announce_without_end(port: u16, ended: &AtomicBool) {
    let mut peer = Peer::connect(port);
    let mut next = 0_u64;
    while !ended.load(Relaxed) {
        let announced = (0..50_000).map(|at: u64| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(next + at).to_le_bytes());
            Inventory::WTx(bitcoin::Wtxid::from_byte_array(id))
        });
        peer.say(NetworkMessage::Inv(announced.collect()));
        next += 50_000;
    }
}
