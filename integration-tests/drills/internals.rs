//! Drills (fault injection tests of the alerts) with faults inside a node: the building of an index or background
//! validation makes no progress.

use std::time::Instant;

use crate::fleet::{Fleet, Kind, Plan, warning};
use crate::harness::eventually;
use crate::harness::node::Node;
use crate::network::Network;
use crate::preload::Faulty;
use crate::snapshot::Snapshot;

/// Drill 16 in docs/alerts.md: the thread that builds an index hangs.
pub fn index_that_stands_still_is_stuck() {
    const FACTOR: u32 = 120;
    let faulty = Faulty::hanging_thread("b-txidx");
    let plans = Kind::REAL.map(|kind| Plan::new(kind).without_usdt().program(&faulty.program()));
    let mut fleet = Fleet::start_scaled("16 index stuck", FACTOR, plans.into());
    for member in &mut fleet.members {
        member.stop();
        member.real_mut().add_argument("-txindex");
        member.start_again();
    }
    let since = Instant::now();
    fleet.expect(since, &fleet.names(), &[warning("BitcoinIndexStuck")], 75.0);
}

/// Starts a network whose hub has mined blocks above an assumeutxo snapshot. The hub runs with `-prune=1`, and other
/// nodes therefore do not request the blocks below the snapshot from it.
pub fn network_above_a_snapshot(factor: u32) -> (Network, Snapshot) {
    let mut snapshot = None;
    let prepare = |hub: &Node| snapshot = Some(Snapshot::write(hub));
    let network = Network::start_prepared(factor, &["-prune=1"], prepare);
    (network, snapshot.unwrap())
}

/// Starts nodes, and loads the snapshot into each node with `loadtxoutset`.
pub fn fleet_from_a_snapshot(
    drill: &'static str,
    factor: u32,
    network: Network,
    snapshot: &Snapshot,
) -> Fleet {
    let connect = format!("-connect={}", network.address());
    let plans = Kind::REAL.map(|kind| Plan::new(kind).alone().node(&[&connect]));
    let fleet = Fleet::start_on(drill, factor, network, plans.into());
    for member in &fleet.members {
        let node = member.real();
        snapshot.load(node);
        // The test submits the blocks above the snapshot over JSON-RPC, because a node in initial block download does
        // not request blocks from a pruned peer.
        Snapshot::submit_blocks_above(&fleet.network.hub, node);
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

/// Drill 16 in docs/alerts.md: no peer has the blocks below the snapshot.
pub fn background_validation_without_blocks_is_stuck() {
    const FACTOR: u32 = 120;
    let (network, snapshot) = network_above_a_snapshot(FACTOR);
    let fleet = fleet_from_a_snapshot("16 background validation stuck", FACTOR, network, &snapshot);
    // Background validation gets the first ten blocks and then no further blocks.
    for member in &fleet.members {
        (1..=10).for_each(|height| snapshot.give(member.real(), height));
    }
    let since = Instant::now();
    fleet.expect(since, &fleet.names(), &[warning("BitcoinBackgroundValidationStuck")], 135.0);
}
