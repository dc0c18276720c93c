//! Drills (fault injection tests of the alerts) with labels of scrape targets that change, that are the same for two
//! nodes, or that are missing.

use std::time::Instant;

use serde_json::Value;

use crate::fleet::{Fleet, Kind, Plan, critical};
use crate::harness::eventually;

/// Series of recording rules that must exist for each node, because the fleet dashboard and the fleet's alert rules
/// need them.
const RECORDS: [&str; 4] = [
    "instance:bitcoin_chain:info",
    "instance:bitcoin_chain_height:value",
    "instance:bitcoin_blocks_behind:value",
    "instance:bitcoin_tip_hash:value",
];

fn has_records(fleet: &Fleet, nodes: &[&str]) {
    for record in RECORDS {
        eventually(record, || {
            nodes
                .iter()
                .all(|node| {
                    let found = fleet.stack.prometheus.query(&format!("{record}{{node=\"{node}\"}}"));
                    found.as_array().unwrap().len() == 1
                })
                .then_some(())
        });
    }
    let failures = fleet.stack.prometheus.query("sum(prometheus_rule_evaluation_failures_total)");
    assert_eq!(failures[0]["value"][1], "0", "rules failed");
}

/// Drill 23 in docs/alerts.md: the label `node` of one node changes, another node gets an empty chain, and two nodes at
/// different sites have the same address.
pub fn changed_labels_disturb_no_rule() {
    let plans = vec![
        Plan::new(Kind::Rpc).named("renamed").later_named("new-name"),
        Plan::new(Kind::HttpOnly).named("site-a"),
        Plan::new(Kind::RpcOverHttp).named("site-b"),
        Plan::new(Kind::Rpc).named("replaced").without_usdt(),
    ];
    let mut fleet = Fleet::start("23 labels", plans);
    fleet.quiet(2.0);
    let since = Instant::now();
    let targets: Vec<_> = fleet
        .members
        .iter()
        .flat_map(|it| it.targets())
        .map(|target| match target.labels["node"].as_str() {
            "renamed" => target.label("node", "new-name"),
            // Two machines in the networks of different sites can have the same private address.
            "site-a" | "site-b" => target.label("instance", "10.0.0.1:9332"),
            _ => target,
        })
        .collect();
    fleet.stack.set_targets(&targets);
    fleet.member("replaced").replace_chain();
    std::thread::sleep(fleet.stack.minutes(45.0));
    has_records(&fleet, &["new-name", "site-a", "site-b", "replaced"]);
    fleet.expect(since, &[], &[], 45.0);
    // Check that an alert fires for the renamed node, for the node with the empty chain and for a node that shares its
    // address with another node.
    let since = Instant::now();
    for name in ["renamed", "site-a", "replaced"] {
        fleet.member(name).kill();
    }
    let down = ["new-name", "site-a", "replaced"].map(String::from);
    fleet.expect(since, &down, &[critical("BitcoinNodeDown")], 12.0);
}

/// Drill 24 in docs/alerts.md: targets without the label `node`.
pub fn targets_without_names_are_told_apart() {
    let plans = ["one", "two"].map(|name| Plan::new(Kind::Rpc).named(name).without_usdt());
    let mut fleet = Fleet::start("24 no node label", plans.into());
    let targets: Vec<_> = fleet
        .members
        .iter()
        .flat_map(|it| it.targets())
        .map(|mut target| {
            target.labels.remove("node");
            target
        })
        .collect();
    fleet.stack.set_targets(&targets);
    fleet.quiet(2.0);
    let since = Instant::now();
    let down = targets[0].address.clone();
    fleet.member("one").kill();
    fleet.network.hub.cli(&["setnetworkactive", "false"]);
    // The alerts must name the addresses of the targets. BitcoinNodeDown of the first target must not suppress
    // BitcoinNoOutboundPeers of the second target.
    let wanted = [(down, "BitcoinNodeDown"), (targets[1].address.clone(), "BitcoinNoOutboundPeers")];
    let end = Instant::now() + fleet.stack.minutes(60.0);
    let has = |instance: &str, name: &str| {
        fleet.stack.received().iter().any(|it| {
            let text =
                |value: &Value| value.as_str().unwrap_or_default().starts_with(&format!("{instance}: "));
            it.alert.name == name && it.labels["instance"] == instance && text(&it.annotations["summary"])
        })
    };
    while !wanted.iter().all(|(instance, name)| has(instance, name)) {
        assert!(Instant::now() < end, "received {:#?}", fleet.stack.received());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let each = [(String::new(), vec![critical("BitcoinNodeDown"), critical("BitcoinNoOutboundPeers")])];
    fleet.expect_each(since, &each, 15.0);
}
