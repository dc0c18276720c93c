//! Drill 30 in docs/alerts.md, the quiet day: situations in which no alert may fire. By default, a situation lasts 75
//! simulated minutes. With DRILLS_QUIET_MINUTES=1440, a situation lasts a simulated day, which takes 24 minutes of real
//! time.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::script::ScriptBuf;
use bitcoin::{Amount, TxOut};
use serde_json::json;

use crate::fibre::FibreNode;
use crate::fleet::{FACTOR, Fleet, Kind, Plan};
use crate::harness::fixture::cannot_bpf;
use crate::harness::node::Node;
use crate::internals::{fleet_from_a_snapshot, network_above_a_snapshot};
use crate::network::Network;
use crate::preload::Faulty;
use crate::report;
use crate::snapshot::Snapshot;

/// Number of simulated minutes that a situation without alerts lasts. The default is 75, longer than the time windows
/// of most alert rules, which are at most an hour.
fn minutes() -> f64 {
    let given = std::env::var("DRILLS_QUIET_MINUTES").ok();
    given.map_or(75.0, |it| it.parse().expect("DRILLS_QUIET_MINUTES is a number"))
}

fn passes(fleet: &Fleet) {
    let since = Instant::now();
    fleet.stack.wait(fleet.stack.minutes(minutes()));
    assert_quiet(fleet, since);
}

/// Checks that the webhook has received no alert, that no alert is firing, and that no evaluation of a rule has failed.
fn assert_quiet(fleet: &Fleet, since: Instant) {
    fleet.expect(since, &[], &[], minutes());
    assert_eq!(fleet.stack.alerts("firing"), BTreeSet::new(), "firing, and not sent yet or held back");
    // The query reads the last hour: after a failed scrape of Prometheus' own metrics, the series have no current
    // sample.
    let number = |series: &str| -> f64 {
        let query = format!("sum(last_over_time({series}[1h]))");
        fleet.stack.prometheus.query(&query)[0]["value"][1].as_str().unwrap().parse().unwrap()
    };
    let evaluations = number("prometheus_rule_evaluations_total");
    assert!(evaluations > 1000.0, "{evaluations} evaluations of rules");
    assert_eq!(number("prometheus_rule_evaluation_failures_total"), 0.0, "evaluations failed");
    report::add_quiet_day(report::QuietDay {
        situation: fleet.drill(),
        minutes: fleet.stack.in_minutes(since.elapsed()),
        targets: number("prometheus_target_scrape_pool_targets{scrape_job=~\"bitcoind-.*\"}"),
        series: number("prometheus_tsdb_head_series"),
        samples: number("prometheus_tsdb_head_samples_appended_total{type=\"float\"}"),
        evaluations,
    });
}

/// No alert may fire for nodes with different indexes, a pruned node and a node with `-blocksonly`, each of which is
/// connected to all other nodes.
pub fn nodes_on_main_are_quiet() {
    let plans = vec![
        Plan::new(Kind::Rpc).node(&["-txindex"]),
        Plan::new(Kind::RpcOverHttp).node(&["-coinstatsindex"]),
        Plan::new(Kind::HttpOnly).node(&["-txindex", "-blockfilterindex"]),
        Plan::new(Kind::Rpc).named("pruned").without_usdt().node(&["-prune=1"]),
        Plan::new(Kind::Rpc).named("blocksonly").node(&["-blocksonly"]),
    ];
    let fleet = Fleet::start_scaled("30 main, pruned, -blocksonly", FACTOR, plans);
    for node in &fleet.members {
        for peer in fleet.members.iter().filter(|it| it.name() != node.name()) {
            let address = format!("127.0.0.1:{}", peer.real().p2p_port);
            node.real().cli(&["addnode", &address, "add"]);
        }
    }
    passes(&fleet);
    for node in &fleet.members {
        let peers: u32 = node.real().cli(&["getconnectioncount"]).parse().unwrap();
        assert!(peers > fleet.members.len() as u32, "{} has {peers} peers", node.name());
    }
}

/// No alert may fire for nodes on three different chains that all have the chain name `signet`, as nodes on signet and
/// on private signets.
pub fn nodes_on_signets_are_quiet() {
    let miner = |blocks: u32| {
        let miner = Node::start(&["-whitelist=noban,in,out@127.0.0.1"]);
        miner.mine(blocks);
        miner
    };
    let miners = [miner(30), miner(50)];
    let connect = miners.each_ref().map(|it| format!("-connect=127.0.0.1:{}", it.p2p_port));
    let private = |kind: Kind, name: &str, connect: &str| {
        Plan::new(kind).named(name).chain("signet").alone().node(&[connect])
    };
    let plans = vec![
        Plan::new(Kind::Rpc).named("signet").chain("signet"),
        private(Kind::HttpOnly, "private-a", &connect[0]),
        private(Kind::RpcOverHttp, "private-b", &connect[1]),
    ];
    let fleet = Fleet::start_scaled("30 signet, two private signets", FACTOR, plans);
    let end = Instant::now() + fleet.stack.minutes(minutes());
    let since = Instant::now();
    while Instant::now() < end {
        miners.iter().for_each(|it| drop(it.mine(1)));
        fleet.stack.wait(fleet.stack.minutes(10.0));
    }
    assert_quiet(&fleet, since);
}

/// No alert may fire for nodes on regtest without peers and without blocks, or for nodes with `-networkactive=0`.
pub fn nodes_without_peers_are_quiet() {
    let alone = |kind: Kind, name: &str| Plan::new(kind).named(name).alone().node(&["-connect=0"]);
    let plans = vec![
        alone(Kind::Rpc, "regtest-rpc").chain("regtest"),
        alone(Kind::RpcOverHttp, "regtest-rpc-over-http").chain("regtest"),
        alone(Kind::HttpOnly, "regtest-http-only").chain("regtest"),
        // A node without JSON-RPC does not report its chain, and its target therefore needs the label `chain_id`
        // (docs/alerts.md).
        alone(Kind::MiningOnly, "regtest-mining-only").target_label("chain_id", "regtest"),
        alone(Kind::Rpc, "offline-rpc").without_usdt().node(&["-networkactive=0"]),
        alone(Kind::HttpOnly, "offline-http-only").node(&["-networkactive=0"]),
    ];
    passes(&Fleet::start_scaled("30 regtest, -networkactive=0", FACTOR, plans));
}

/// No alert may fire while nodes in initial block download receive blocks, or after the download.
pub fn download_is_quiet() {
    let network = Network::start_with(FACTOR, Duration::from_secs(72 * 3600), &[]);
    let kinds = [Kind::Rpc, Kind::RpcOverHttp, Kind::HttpOnly];
    let fleet = Fleet::start_on("30 IBD and the hour after it", FACTOR, network, kinds.map(Plan::new).into());
    // With a block every 500 ms of real time, the hub mines about a hundred blocks per simulated hour.
    fleet.network.pace.blocks.store(500, Relaxed);
    let since = Instant::now();
    fleet.stack.wait(fleet.stack.minutes(minutes()));
    in_download(&fleet, true);
    fleet.network.hub.cli(&["setmocktime", "0"]);
    fleet.network.pace.blocks.store(600_000 / FACTOR, Relaxed);
    fleet.stack.wait(fleet.stack.minutes((minutes() / 4.0).max(60.0)));
    in_download(&fleet, false);
    assert_quiet(&fleet, since);
}

fn in_download(fleet: &Fleet, expected: bool) {
    for member in &fleet.members {
        let state = member.real().json(&["getblockchaininfo"]);
        assert_eq!(state["initialblockdownload"], expected, "{}: {state}", member.name());
    }
}

/// No alert may fire for nodes that have loaded an assumeutxo snapshot, and validate the blocks below the snapshot in
/// the background.
pub fn background_validation_is_quiet() {
    let (network, snapshot) = network_above_a_snapshot(FACTOR);
    let fleet = fleet_from_a_snapshot("30 assumeutxo", FACTOR, network, &snapshot);
    let since = Instant::now();
    let between = fleet.stack.minutes(minutes() / f64::from(Snapshot::below()));
    for height in 1..=Snapshot::below() {
        fleet.members.iter().for_each(|it| snapshot.give(it.real(), height));
        fleet.stack.wait(between);
    }
    for member in &fleet.members {
        let states = member.real().json(&["getchainstates"]);
        assert_eq!(states["chainstates"][0]["blocks"], Snapshot::below(), "{states}");
    }
    assert_quiet(&fleet, since);
}

/// No alert may fire for a FIBRE node that repeatedly gets no blocks for hours, and then connects the missed blocks
/// without FIBRE.
pub fn fibre_that_catches_up_is_quiet() {
    if cannot_bpf() {
        return eprintln!("FIBRE needs BPF");
    }
    const FACTOR: u32 = 120;
    let mut node = FibreNode::start();
    let fleet = Fleet::of_targets("30 FIBRE catches up", FACTOR, &[node.target()]);
    let since = Instant::now();
    // Pairs of durations in hours: with blocks that FIBRE reconstructs, and without blocks.
    for (works, away) in [(1.0, 6.5), (2.0, 5.5), (0.5, 3.0), (1.5, 2.5)] {
        for _ in 0..(works * 6.0) as u32 {
            node.block(true);
            fleet.stack.wait(fleet.stack.minutes(10.0));
        }
        fleet.stack.wait(fleet.stack.minutes(60.0 * away));
        (0..(away * 6.0) as u32).for_each(|_| node.block(false));
    }
    // The node connects 20 blocks a minute, as in initial block download.
    for _ in 0..90 {
        (0..20).for_each(|_| node.block(false));
        fleet.stack.wait(fleet.stack.minutes(1.0));
    }
    assert_quiet(&fleet, since);
}

/// No alert may fire for nodes that are restarted with -reindex, or for exporters that are started before their node.
pub fn reindex_and_late_nodes_are_quiet() {
    // With 60 large blocks, each of the two phases of -reindex takes one and a half simulated hours. In the first phase
    // the node's header height grows, but not its block height.
    const BLOCKS: u32 = 60;
    let faulty = Faulty::slow_disk(650_000);
    let reindex =
        |kind: Kind, name: &str| Plan::new(kind).named(name).program(&faulty.program()).node(&["-txindex"]);
    let plans = vec![
        reindex(Kind::Rpc, "reindex"),
        reindex(Kind::HttpOnly, "reindex-http-only"),
        Plan::new(Kind::HttpOnly).named("late"),
        Plan::new(Kind::Rpc).named("late-rpc").without_usdt(),
    ];
    let network = Network::start_prepared(FACTOR, &[], |hub| fill_blocks(hub, BLOCKS));
    let mut fleet = Fleet::start_on("30 -reindex, late node", FACTOR, network, plans);
    let minute = fleet.stack.minutes(1.0);
    let since = Instant::now();
    for name in ["reindex", "reindex-http-only"] {
        let reindex = fleet.member(name);
        reindex.stop();
        reindex.real_mut().add_argument("-reindex");
        reindex.start_again();
        let state = reindex.real().json(&["getblockchaininfo"]);
        assert_eq!(state["blocks"], 0, "{state}");
    }
    for name in ["late", "late-rpc"] {
        let late = fleet.member(name);
        late.stop();
        late.restart_exporter();
        std::thread::sleep(minute);
        fleet.member(name).start_again();
    }
    fleet.stack.wait(fleet.stack.minutes(minutes()));
    assert_quiet(&fleet, since);
}

/// Makes the hub mine this number of blocks of 0.95 MB.
fn fill_blocks(hub: &Node, number: u32) {
    let mature = hub.mine(number + 100);
    let large = ScriptBuf::from_bytes(vec![0x51; 10_000]);
    for block in &mature[..number as usize] {
        let mut transaction = hub.spending_coinbase_of(block, 10_000);
        transaction.output = vec![TxOut { value: Amount::from_sat(1_000), script_pubkey: large.clone() }; 94];
        hub.batch(&[("generateblock", json!(["raw(51)", [serialize_hex(&transaction)]]))]);
    }
}
