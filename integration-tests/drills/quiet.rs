//! Drill 30, the quiet day: situations in which no alert may come. In the suite a shorter part of it;
//! DRILLS_QUIET_MINUTES=1440 is the whole day, in 24 minutes.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::fleet::{FACTOR, Fleet, Kind, Plan};
use crate::harness::node::Node;
use crate::network::Network;

/// Minutes of the operator's time. Longer than an hour, the window of most rules.
fn minutes() -> f64 {
    let given = std::env::var("DRILLS_QUIET_MINUTES").ok();
    given.map_or(75.0, |it| it.parse().expect("DRILLS_QUIET_MINUTES is a number"))
}

fn passes(fleet: &Fleet) {
    let since = Instant::now();
    std::thread::sleep(fleet.stack.minutes(minutes()));
    fleet.expect(since, &[], &[], minutes());
    assert_eq!(
        fleet.stack.alerts("firing"),
        std::collections::BTreeSet::new(),
        "firing, and not sent yet or held back"
    );
}

/// Nodes with peers, blocks and transactions.
pub fn nodes_on_main_are_quiet() {
    let plans = vec![
        Plan::new(Kind::Rpc),
        Plan::new(Kind::RpcOverHttp),
        Plan::new(Kind::HttpOnly),
        Plan::new(Kind::Rpc).named("pruned").without_usdt().node(&["-prune=1"]),
        Plan::new(Kind::Rpc).named("blocksonly").node(&["-blocksonly"]),
    ];
    passes(&Fleet::start("30 main, pruned, -blocksonly", plans));
}

/// Signet, and two private signets, which have one name and different blocks.
pub fn nodes_on_signets_are_quiet() {
    let other = Node::start(&["-whitelist=noban,in,out@127.0.0.1"]);
    other.mine(30);
    let connect = format!("-connect=127.0.0.1:{}", other.p2p_port);
    let plans = vec![
        Plan::new(Kind::Rpc).named("signet").chain("signet"),
        Plan::new(Kind::HttpOnly).named("private-a").chain("signet"),
        Plan::new(Kind::RpcOverHttp).named("private-b").chain("signet").alone().node(&[&connect]),
    ];
    let fleet = Fleet::start("30 signet, two private signets", plans);
    let end = Instant::now() + fleet.stack.minutes(minutes());
    let since = Instant::now();
    while Instant::now() < end {
        other.mine(1);
        std::thread::sleep(fleet.stack.minutes(10.0));
    }
    fleet.expect(since, &[], &[], minutes());
}

/// Regtest as it is, without peers and without blocks; and nodes without a network.
pub fn nodes_without_peers_are_quiet() {
    let alone = |kind: Kind, name: &str| Plan::new(kind).named(name).alone().node(&["-connect=0"]);
    let plans = vec![
        alone(Kind::Rpc, "regtest-rpc").chain("regtest"),
        alone(Kind::RpcOverHttp, "regtest-rpc-over-http").chain("regtest"),
        alone(Kind::HttpOnly, "regtest-http-only").chain("regtest"),
        alone(Kind::MiningOnly, "regtest-mining-only").chain("regtest"),
        alone(Kind::Rpc, "offline-rpc").without_usdt().node(&["-networkactive=0"]),
        alone(Kind::HttpOnly, "offline-http-only").node(&["-networkactive=0"]),
    ];
    passes(&Fleet::start("30 regtest, -networkactive=0", plans));
}

/// Initial block download that goes on, and the hour after it.
pub fn download_is_quiet() {
    let network = Network::start_with(FACTOR, Duration::from_secs(72 * 3600), &[]);
    let kinds = [Kind::Rpc, Kind::RpcOverHttp, Kind::HttpOnly];
    let fleet = Fleet::start_on("30 IBD and the hour after it", FACTOR, network, kinds.map(Plan::new).into());
    fleet.network.pace.blocks.store(500, Relaxed);
    let since = Instant::now();
    std::thread::sleep(fleet.stack.minutes(minutes() / 2.0));
    fleet.network.hub.cli(&["setmocktime", "0"]);
    fleet.network.pace.blocks.store(600_000 / FACTOR, Relaxed);
    std::thread::sleep(fleet.stack.minutes(minutes().max(60.0)));
    fleet.expect(since, &[], &[], minutes());
}

/// -reindex, and exporters that start before their node.
pub fn reindex_and_late_nodes_are_quiet() {
    let plans = vec![
        Plan::new(Kind::Rpc).named("reindex"),
        Plan::new(Kind::HttpOnly).named("late"),
        Plan::new(Kind::Rpc).named("late-rpc").without_usdt(),
    ];
    let mut fleet = Fleet::start("30 -reindex, late node", plans);
    let since = Instant::now();
    for name in ["late", "late-rpc"] {
        fleet.member(name).stop();
        fleet.member(name).restart_exporter();
    }
    let reindex = fleet.member("reindex");
    reindex.stop();
    reindex.real_mut().add_argument("-reindex");
    reindex.start_again();
    std::thread::sleep(fleet.stack.minutes(3.0));
    for name in ["late", "late-rpc"] {
        fleet.member(name).start_again();
    }
    std::thread::sleep(fleet.stack.minutes(minutes()));
    fleet.expect(since, &[], &[], minutes());
}
