//! Drills (fault injection tests of the alerts) with faults of the chain: reorganizations, chain splits, missing
//! blocks, and nodes that are behind.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::background::beside;
use crate::fleet::{FACTOR, Fleet, Kind, Plan, critical, warning};
use crate::harness::eventually;
use crate::harness::fake::Event;
use crate::harness::node::{Node, rpcauth};
use crate::network::Network;

fn height(node: &Node) -> u32 {
    node.cli(&["getblockcount"]).parse().unwrap()
}

fn mines_no_blocks(fleet: &Fleet) {
    fleet.network.pace.blocks.store(0, Relaxed);
}

/// Drill 10 in docs/alerts.md: a reorganization of four blocks. Nodes with only the Mining interface are excluded,
/// because an exporter that gets only the tip's hash and height cannot distinguish this reorganization from a new
/// block.
pub fn reorganization_of_four_blocks_is_deep() {
    let kinds = [Kind::Rpc, Kind::RpcOverHttp, Kind::HttpOnly, Kind::Subscribed];
    let fleet = Fleet::start("10 reorg of 4 blocks", kinds.map(Plan::new).into());
    fleet.quiet(2.0);
    let since = Instant::now();
    let hub = &fleet.network.hub;
    let tip = height(hub);
    let fork = hub.cli(&["getblockhash", &(tip - 3).to_string()]);
    hub.cli(&["invalidateblock", &fork]);
    // The coinbases of the new blocks pay to another script (52 instead of 51), because blocks with the same script
    // could be identical to the invalidated blocks.
    hub.cli(&["generatetodescriptor", "5", "raw(52)"]);
    let hash = hub.cli(&["getblockhash", &(tip + 1).to_string()]);
    for member in &fleet.members {
        match &member.fake {
            Some(fake) => {
                fake.fire((39..=42).rev().map(Event::Disconnected).collect());
            }
            None => eventually("the node follows", || {
                member.real().try_cli(&["getblockheader", &hash]).is_ok().then_some(())
            }),
        }
    }
    fleet.expect(since, &fleet.names(), &[critical("BitcoinDeepReorg")], 5.0);
}

/// Drill 8 in docs/alerts.md: the hub, the peer of the monitored nodes, mines a block that violates BIP 68. The
/// monitored nodes enforce BIP 68, and the hub does not. A simulated minute of this drill takes ten seconds of real
/// time, because the exporter calls getchaintips only once a minute of real time.
pub fn branch_with_more_work_that_the_node_rejects_is_critical() {
    const FACTOR: u32 = 6;
    let network = Network::start_with(FACTOR, Duration::ZERO, &["-testactivationheight=csv@100000"]);
    network.pace.blocks.store(0, Relaxed);
    network.pace.transactions.store(false, Relaxed);
    let fleet = Fleet::start_on("8 invalid branch", FACTOR, network, Kind::REAL.map(Plan::new).into());
    let hub = &fleet.network.hub;
    let shared = hub.cli(&["getbestblockhash"]);
    fleet.quiet(1.0);
    let since = Instant::now();
    let mut locked = hub.spending_coinbase_of(&hub.cli(&["getblockhash", "61"]), 10_000);
    locked.input[0].sequence = bitcoin::Sequence::from_height(u16::MAX);
    let transaction = bitcoin::consensus::encode::serialize_hex(&locked);
    hub.cli(&["generateblock", "raw(51)", &format!("[\"{transaction}\"]")]);
    hub.mine(3);
    fleet.expect(since, &fleet.names(), &[critical("BitcoinInvalidBranch")], 10.0);
    for member in &fleet.members {
        assert_eq!(member.real().cli(&["getbestblockhash"]), shared, "it has not followed");
    }
}

/// Starts two nodes on the same chain. The first node is a peer of the hub. The second node is a peer of a third
/// node, with which the test mines blocks that the hub does not have. Returns the fleet of the two nodes, and the third
/// node.
fn two_sides(drill: &'static str, kind: Kind) -> (Fleet, Node) {
    let network = Network::start(FACTOR);
    network.pace.blocks.store(0, Relaxed);
    let other = Node::start(&["-whitelist=noban,in,out@127.0.0.1"]);
    other.cli(&["addnode", &network.address(), "onetry"]);
    eventually("the other side has the chain", || (height(&other) == height(&network.hub)).then_some(()));
    let connect = format!("-connect=127.0.0.1:{}", other.p2p_port);
    let plans = vec![
        Plan::new(kind).named("one"),
        Plan::new(kind)
            .named("two")
            .alone()
            .without_usdt()
            .node(&[&connect, "-whitelist=noban,in,out@127.0.0.1"]),
    ];
    let fleet = Fleet::start_on(drill, FACTOR, network, plans);
    eventually("both nodes have the chain", || {
        let hub = height(&fleet.network.hub);
        fleet.members.iter().all(|it| height(it.real()) == hub).then_some(())
    });
    (fleet, other)
}

fn divide(fleet: &Fleet, other: &Node) {
    let peers = other.json(&["getpeerinfo"]);
    for peer in peers.as_array().unwrap().iter().filter(|it| it["inbound"] == false) {
        other.cli(&["disconnectnode", "", &peer["id"].to_string()]);
    }
    eventually("the two sides are disconnected", || {
        let peers = other.json(&["getpeerinfo"]);
        peers.as_array().unwrap().iter().all(|it| it["inbound"] == true).then_some(())
    });
    fleet.network.pace.transactions.store(true, Relaxed);
}

/// Drill 9 in docs/alerts.md, tips of equal height: the alert BitcoinChainSplit fires for one of the two nodes.
pub fn two_tips_of_equal_height_are_a_split() {
    for (drill, kind) in [("9 equal heights, IPC", Kind::Rpc), ("9 equal heights, HTTP only", Kind::HttpOnly)]
    {
        let (fleet, other) = two_sides(drill, kind);
        fleet.quiet(2.0);
        divide(&fleet, &other);
        let since = Instant::now();
        fleet.network.hub.mine(1);
        other.cli(&["generatetodescriptor", "1", "raw(52)"]);
        // BitcoinChainSplit fires only for the node whose tip hash ends in the lower 13-digit hexadecimal number.
        let suffix = |node: &Node| {
            let hash = node.cli(&["getbestblockhash"]);
            u64::from_str_radix(&hash[hash.len() - 13..], 16).unwrap()
        };
        let lower = if suffix(&fleet.network.hub) < suffix(&other) { "one" } else { "two" };
        fleet.expect(since, &[lower.into()], &[critical("BitcoinChainSplit")], 40.0);
    }
}

/// Drill 9 in docs/alerts.md, tips of different heights: the alert BitcoinChainSplit fires for the node with the lower
/// height.
pub fn two_tips_of_different_heights_are_a_split() {
    let (fleet, other) = two_sides("9 different heights", Kind::RpcOverHttp);
    fleet.quiet(2.0);
    divide(&fleet, &other);
    let since = Instant::now();
    fleet.network.hub.mine(1);
    other.cli(&["generatetodescriptor", "3", "raw(52)"]);
    fleet.expect(since, &["one".into()], &[critical("BitcoinChainSplit")], 40.0);
}

const HOUR: Duration = Duration::from_secs(3600);

/// Drills 6 and 7 in docs/alerts.md: the tip is three hours old, and the exporters can read its timestamp. For the
/// nodes of drill 6, the RPC whitelist of the exporters' user lacks getnetworkinfo.
pub fn tip_of_three_hours_ago_is_stale() {
    let methods: Vec<_> =
        bitcoind_exporter::testing::method_names().filter(|it| *it != "getnetworkinfo").collect();
    let whitelist = format!("-rpcwhitelist=exporter:{}", methods.join(","));
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "secret").unwrap();
    let password = secret.path().display().to_string();
    let auth = rpcauth("exporter", "secret");
    let whitelisted = |plan: Plan| {
        plan.node(&[&auth, &whitelist, "-rpcwhitelistdefault=0"]).exporter(&[
            "--rpc-user",
            "exporter",
            "--rpc-password-file",
            &password,
        ])
    };
    let plans = vec![
        Plan::new(Kind::Rpc).named("main-rpc"),
        Plan::new(Kind::RpcOverHttp).named("main-rpc-over-http"),
        Plan::new(Kind::HttpOnly).named("main-http-only"),
        Plan::new(Kind::Rpc).named("signet-rpc").chain("signet").without_usdt(),
        Plan::new(Kind::HttpOnly).named("signet-http-only").chain("signet"),
        whitelisted(Plan::new(Kind::RpcOverHttp).named("whitelist-rpc-over-http")),
        whitelisted(Plan::new(Kind::HttpOnly).named("whitelist-http-only")),
    ];
    let network = Network::start_with(FACTOR, 3 * HOUR, &[]);
    network.pace.blocks.store(0, Relaxed);
    let fleet = Fleet::start_on("6, 7 tip 3 h old", FACTOR, network, plans);
    fleet.expect(fleet.since, &fleet.names(), &[warning("BitcoinTipStale")], 15.0);
}

/// Drill 7 in docs/alerts.md: the height does not change for two hours, and the exporters cannot read the timestamp of
/// the tip.
pub fn no_new_block_for_two_hours_is_an_alert() {
    const FACTOR: u32 = 120;
    // This node has no JSON-RPC and therefore does not report its chain. The alert rules detect by the block difficulty
    // that the node is on regtest.
    let plan = Plan::new(Kind::MiningOnly);
    let fleet = Fleet::start_scaled("7 no block for 2 h", FACTOR, vec![plan, Plan::new(Kind::Subscribed)]);
    let since = Instant::now();
    mines_no_blocks(&fleet);
    fleet.expect(since, &fleet.names(), &[warning("BitcoinNoNewBlock")], 135.0);
}

/// Drill 4 in docs/alerts.md: the alerts about missing outbound peers and missing blocks must fire although one poll in
/// nine fails.
pub fn conditions_alert_though_polls_fail() {
    let kinds = [Kind::Rpc, Kind::RpcOverHttp, Kind::HttpOnly];
    let behind = kinds.map(|kind| Plan::new(kind).alone().without_usdt().node(&["-connect=0"]));
    let plans = [Plan::new(Kind::Rpc).named("well").without_usdt()].into_iter().chain(behind).collect();
    let network = Network::start(FACTOR);
    let fleet = Fleet::start_on("4 polls fail", FACTOR, network, plans);
    let since = Instant::now();
    let behind: Vec<_> = fleet.members[1..].iter().collect();
    for member in &behind {
        // The node has no peer, and therefore gets the hub's first ten blocks over JSON-RPC.
        let (node, hub) = (member.real(), &fleet.network.hub);
        for at in 1..=10 {
            let hash = hub.cli(&["getblockhash", &at.to_string()]);
            node.cli(&["submitblock", &hub.cli(&["getblock", &hash, "0"])]);
        }
        let tip = hub.cli(&["getblockhash", "10"]);
        assert_eq!(node.cli(&["getbestblockhash"]), tip);
    }
    fleet.network.hub.mine(500);
    let names: Vec<_> = behind.iter().map(|it| it.name().to_string()).collect();
    let expected = [critical("BitcoinNoOutboundPeers"), warning("BitcoinBehindFleet")];
    let nodes: Vec<_> = behind.iter().map(|it| it.real()).collect();
    let hang = || hang_each_ninth_poll(&nodes);
    beside(hang, || fleet.expect(since, &names, &expected, 30.0));
}

/// Stops the nodes after every eight polls for 600 ms, a time longer than the exporter's timeout for a call and shorter
/// than three poll intervals.
fn hang_each_ninth_poll(nodes: &[&Node]) {
    use nix::sys::signal::Signal;
    std::thread::sleep(Duration::from_millis(8 * 250));
    nodes.iter().for_each(|node| node.signal(Signal::SIGSTOP));
    std::thread::sleep(Duration::from_millis(600));
    nodes.iter().for_each(|node| node.signal(Signal::SIGCONT));
}

/// Drill 17 in docs/alerts.md: the nodes are in initial block download, and their peer has no further blocks.
pub fn download_without_blocks_is_stuck() {
    const FACTOR: u32 = 120;
    let network = Network::start_with(FACTOR, 72 * HOUR, &[]);
    network.pace.blocks.store(0, Relaxed);
    let kinds = [Kind::Rpc, Kind::RpcOverHttp, Kind::HttpOnly, Kind::MiningOnly];
    let fleet = Fleet::start_on("17 IBD stuck", FACTOR, network, kinds.map(Plan::new).into());
    fleet.expect(fleet.since, &fleet.names(), &[warning("BitcoinStuckInIBD")], 75.0);
}
