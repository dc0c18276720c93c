//! Drills (fault injection tests of the alerts) with nodes that exit, hang, restart, report warnings, have a full disk
//! or cannot build block templates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fleet::{FACTOR, Fleet, Kind, Member, Plan, critical, info, warning};
use crate::harness::exporter::{Exporter, command};
use crate::harness::fake_http::{FakeHttp, Mode};
use crate::harness::node::bitcoin_node;
use crate::harness::peer::unix_time;
use crate::network::Network;
use crate::stack::{INTERVAL, Target};

fn of_all_kinds() -> Vec<Plan> {
    Kind::ALL.map(Plan::new).into()
}

/// Drill 1 in docs/alerts.md: nodes are killed and stay down.
pub fn killed_node_is_down() {
    let mut fleet = Fleet::start("1 node killed", of_all_kinds());
    fleet.quiet(2.0);
    let since = Instant::now();
    for member in &mut fleet.members {
        member.kill();
    }
    fleet.expect(since, &fleet.names(), &[critical("BitcoinNodeDown")], 12.0);
}

/// Drill 3 in docs/alerts.md: nodes hang (SIGSTOP).
pub fn hanging_node_is_down() {
    let fleet = Fleet::start("3 node hangs", of_all_kinds());
    fleet.quiet(2.0);
    let since = Instant::now();
    for member in &fleet.members {
        member.hang(true);
    }
    fleet.expect(since, &fleet.names(), &[critical("BitcoinNodeDown")], 12.0);
    for member in &fleet.members {
        member.hang(false);
    }
}

/// Drill 28 in docs/alerts.md: a planned restart of each node must cause no alert.
pub fn planned_restart_is_no_alert() {
    let plans = Kind::REAL.into_iter().chain([Kind::MiningOnly]).map(Plan::new);
    let mut fleet = Fleet::start("28 planned restart", plans.collect());
    fleet.quiet(2.0);
    let since = Instant::now();
    for member in &mut fleet.members {
        member.stop();
        member.start_again();
    }
    std::thread::sleep(fleet.stack.minutes(30.0));
    fleet.expect(since, &[], &[], 30.0);
}

/// Drill 28 in docs/alerts.md: an upgrade, in which each node is stopped and its program is replaced with another
/// version, must cause no alert. The old version is Core 31 if CORE31_NODE is set.
pub fn upgrade_of_the_node_is_no_alert() {
    let dir = tempfile::TempDir::new().unwrap();
    let before = std::env::var_os("CORE31_NODE").map_or_else(bitcoin_node, PathBuf::from);
    let install = |program: &Path, at: &Path| {
        let new = at.with_extension("new");
        std::fs::copy(program, &new).unwrap();
        std::fs::rename(new, at).unwrap();
    };
    let place = |kind: Kind| dir.path().join(kind.name());
    let plans = Kind::REAL.map(|kind| {
        install(&before, &place(kind));
        Plan::new(kind).program(&place(kind)).node(&["-uacomment=before"])
    });
    let mut fleet = Fleet::start("28 upgrade of node", plans.into());
    fleet.quiet(2.0);
    let since = Instant::now();
    for member in &mut fleet.members {
        install(&bitcoin_node(), &place(member.plan.kind));
        member.stop();
        member.real_mut().remove_argument("-uacomment=before");
        member.start_again();
    }
    std::thread::sleep(fleet.stack.minutes(30.0));
    fleet.expect(since, &[], &[], 30.0);
    let versions =
        fleet.stack.prometheus.query("count by (node) (bitcoin_node_info{subversion!~\".*before.*\"})");
    assert_eq!(versions.as_array().unwrap().len(), 3, "{versions}");
}

/// Drill 2 in docs/alerts.md: four times, the nodes are killed, are down for seven minutes, and run for one minute.
pub fn crash_loop_is_critical() {
    const FACTOR: u32 = 20;
    let plans = Kind::REAL.into_iter().chain([Kind::MiningOnly]).map(Plan::new);
    let mut fleet = Fleet::start_scaled("2 crash loop", FACTOR, plans.collect());
    fleet.quiet(1.0);
    let (up, down) = (fleet.stack.minutes(1.0), fleet.stack.minutes(7.0));
    let since = Instant::now();
    for _ in 0..4 {
        fleet.members.iter_mut().for_each(Member::kill);
        fleet.stack.wait(down);
        fleet.members.iter_mut().for_each(Member::start_again);
        fleet.stack.wait(up);
    }
    fleet.expect(since, &fleet.names(), &[critical("BitcoinNodeRestarts")], 30.0);
}

/// Drill 28 in docs/alerts.md: the nodes cannot build block templates, because their clocks are three hours behind the
/// timestamps of the last blocks.
pub fn node_without_templates_is_an_alert() {
    let kinds = [Kind::Rpc, Kind::RpcOverHttp, Kind::MiningOnly];
    let fleet = Fleet::start("28 templates fail", kinds.map(Plan::new).into());
    fleet.quiet(2.0);
    fleet.network.pace.blocks.store(0, Relaxed);
    let since = Instant::now();
    for member in &fleet.members {
        member.real().cli(&["setmocktime", &(unix_time() - 3 * 3600).to_string()]);
    }
    fleet.expect(since, &fleet.names(), &[warning("BitcoinNoTemplate")], 45.0);
}

/// Drill 29 in docs/alerts.md: a relabel rule of Prometheus replaces the version of two nodes with a version that lacks
/// a safety fix.
pub fn version_with_a_safety_fix_is_read_within_a_day() {
    const FACTOR: u32 = 240;
    let old = |kind: Kind| Plan::new(kind).label("version", "[0-9]+", "300100");
    let plans = vec![old(Kind::Rpc), old(Kind::HttpOnly), Plan::new(Kind::RpcOverHttp)];
    let fleet = Fleet::start_scaled("29 safety fix", FACTOR, plans);
    fleet.expect(fleet.since, &["rpc".into(), "http-only".into()], &[info("BitcoinSafetyFix")], 1440.0);
}

/// Drill 14 in docs/alerts.md: the data directory's file system is nearly full. No blocks are mined, because a node
/// without space for a block shuts down.
pub fn full_disk_is_an_alert() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("drill 14 needs root, to mount a file system");
    }
    let plans = Kind::REAL.map(|kind| Plan::new(kind).on_own_disk());
    let fleet = Fleet::start("14 full disk", plans.into());
    fleet.network.pace.blocks.store(0, Relaxed);
    fleet.quiet(12.0);
    let since = Instant::now();
    for member in &fleet.members {
        member.disk.as_ref().unwrap().fill(0.03);
    }
    fleet.expect(since, &fleet.names(), &[warning("BitcoinDiskFull")], 30.0);
}

/// Drill 26 in docs/alerts.md: blocks signal a soft fork that the node does not support, and the node warns about it.
pub fn unknown_rules_are_a_warning() {
    // The blocks of four periods of 144 blocks signal with version bit 4, the highest bit for which the node warns.
    let network = Network::start_with(FACTOR, Duration::ZERO, &["-blockversion=536870928"]);
    network.hub.mine(4 * 144);
    let fleet = Fleet::start_on("26 unknown rules", FACTOR, network, Kind::REAL.map(Plan::new).into());
    fleet.expect(fleet.since, &fleet.names(), &[warning("BitcoinNodeWarns")], 15.0);
}

/// Drill 26 in docs/alerts.md: the text of a node's warning determines the alert. Because a real node exits after a
/// fatal error, a fake JSON-RPC server sends recorded responses with the texts of Bitcoin Core's warnings.
pub fn warnings_alert_by_kind() {
    let answers: Value = serde_json::from_str(include_str!("../answers/core-28.json")).unwrap();
    let with = |text: &str| {
        let mut answers = answers["answers"].clone();
        answers["getnetworkinfo"]["warnings"] = json!([text]);
        answers["getnetworkinfo"]["version"] = json!(319_900);
        answers["getblockchaininfo"]["time"] = json!(unix_time());
        FakeHttp::start(Mode::Answers(Arc::new(answers)))
    };
    let texts = [
        ("fatal", "A fatal internal error occurred, see debug.log for details: Disk space is too low!"),
        (
            "branch",
            "Warning: Found invalid chain more than 6 blocks longer than our best chain. This could be due to database corruption or consensus incompatibility with peers.",
        ),
        (
            "clock",
            "Your computer's date and time appear to be more than 10 minutes out of sync with the network, this may lead to consensus failure. Please ensure it is correct.",
        ),
        ("rules", "Unknown new rules activated (versionbit 5)"),
        (
            "pre-release",
            "This is a pre-release test build - use at your own risk - do not use for mining or merchant applications",
        ),
    ];
    let fakes: Vec<_> = texts.iter().map(|(name, text)| (*name, with(text))).collect();
    let exporters: Vec<_> = fakes
        .iter()
        .map(|(name, fake)| {
            let exporter = Exporter::spawn(command().args(fake.arguments()).args([
                "--poll-interval",
                INTERVAL,
                "--chain",
                "main",
            ]));
            (*name, exporter)
        })
        .collect();
    let targets: Vec<_> =
        exporters.iter().map(|(name, it)| Target::new("bitcoind-ipc", it.address(), name)).collect();
    let fleet = Fleet::of_targets("26 warnings", FACTOR, &targets);
    let each = [
        ("fatal", critical("BitcoinNodeError")),
        ("branch", critical("BitcoinInvalidBranch")),
        ("clock", warning("BitcoinNodeWarns")),
        ("rules", warning("BitcoinNodeWarns")),
    ];
    let each = each.map(|(node, expected)| (node.to_string(), vec![expected]));
    fleet.expect_each(fleet.since, &each, 15.0);
}
