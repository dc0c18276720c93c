//! Tests of the shipped alert rules and Alertmanager routes, up to the notification that a webhook receives.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::Receiver;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::node::Node;
use crate::harness::prometheus::{Alertmanager, Prometheus, promtool};
use crate::harness::webhook::webhook;
use crate::{contrib, succeeds, yaml};

fn alerts() -> Vec<Value> {
    let file = yaml(&contrib().join("prometheus/rules/alerts.yml"));
    let groups = file["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The template with which each `runbook_url` begins: the value of the external label `runbooks`, or the path of
/// docs/alerts.md in the Debian package if this label does not exist.
const RUNBOOKS: &str =
    "{{ or $externalLabels.runbooks `file:///usr/share/doc/bitcoind-exporter/docs/alerts.md` }}";

/// The files in contrib/prometheus/tests, which contain unit tests of the shipped rules for promtool.
fn tests() -> Vec<PathBuf> {
    let files = std::fs::read_dir(contrib().join("prometheus/tests")).unwrap();
    files
        .map(|file| file.unwrap().path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "yml"))
        .collect()
}

pub fn each_alert_has_its_tests_and_its_section() {
    let text = std::fs::read_to_string(contrib().with_file_name("docs/alerts.md")).unwrap();
    let sections: Vec<_> = text.split("\n## ").skip(1).filter_map(|part| part.split_once('\n')).collect();
    let tests: Vec<_> = tests().iter().map(|file| yaml(file)).collect();
    let (mut fires, mut does_not) = (BTreeSet::new(), BTreeSet::new());
    let tests = tests.iter().flat_map(|file| file["tests"].as_array().unwrap());
    for test in tests.filter_map(|test| test["alert_rule_test"].as_array()).flatten() {
        let alert = test["alertname"].as_str().unwrap();
        let fires_now = !test["exp_alerts"].as_array().unwrap().is_empty();
        let alerts = if fires_now { &mut fires } else { &mut does_not };
        alerts.insert(alert);
    }
    let alerts = alerts();
    for rule in &alerts {
        let alert = rule["alert"].as_str().unwrap();
        let severity = rule["labels"]["severity"].as_str().unwrap();
        let annotation = |name: &str| {
            rule["annotations"][name].as_str().unwrap_or_else(|| panic!("{alert} has no {name}")).to_string()
        };
        let (_, section) =
            sections.iter().find(|(name, _)| *name == alert).expect("a section in docs/alerts.md");
        assert!(section.contains("\nFalse alarms: "), "{alert}: how often?");
        let on_one_line = section.replace('\n', " ");
        assert!(
            section.contains("\nNode kinds: ") && on_one_line.contains(" Drills passed: "),
            "{alert}: which drills?"
        );
        assert!(fires.contains(alert), "no test makes {alert} fire");
        assert_eq!(annotation("runbook_url"), format!("{RUNBOOKS}#{}", alert.to_lowercase()));
        assert!(annotation("description").len() > 20, "{alert}");
        let is_watchdog = alert == "BitcoinWatchdog";
        assert!(is_watchdog || does_not.contains(alert), "no test leaves {alert} silent");
        assert!(is_watchdog || ["critical", "warning", "info"].contains(&severity), "{alert}: {severity}");
        // The summary of each alert begins with the node's name, or with its address if the label `node` does not
        // exist. Alerts about Prometheus and Alertmanager have no node.
        let of_no_node =
            ["BitcoinWatchdog", "BitcoinNothingScraped", "BitcoinRuleFailures", "BitcoinAlertsNotDelivered"];
        let is_named = annotation("summary").starts_with("{{ or $labels.node $labels.instance }}: ");
        assert_eq!(is_named, !of_no_node.contains(&alert), "{alert}");
    }
    let results = ["Drills", "Quiet day"];
    for (section, _) in sections[3..].iter().filter(|(section, _)| !results.contains(section)) {
        assert!(alerts.iter().any(|rule| rule["alert"] == **section), "{section} is no alert");
    }
}

/// Computes how often the alerts about missing blocks fire although nothing is wrong. The times between blocks are
/// exponentially distributed with a mean of ten minutes.
pub fn block_gap_alert_fires_less_than_once_in_four_years() {
    let minutes =
        |rule: &Value| -> f64 { rule["for"].as_str().unwrap().strip_suffix('m').unwrap().parse().unwrap() };
    let rules = alerts();
    let rule = |name: &str| rules.iter().find(|rule| rule["alert"] == name).unwrap();
    let (tip, height) = (rule("BitcoinTipStale"), rule("BitcoinNoNewBlock"));
    let (_, seconds) = tip["expr"].as_str().unwrap().split_once("bitcoin_tip_age_seconds:value > ").unwrap();
    let seconds: f64 = seconds.split_once(' ').unwrap().0.parse().unwrap();
    let (_, hours) = height["expr"].as_str().unwrap().split_once("changes(bitcoin_chain_height[").unwrap();
    let hours: f64 = hours.split_once("h]").unwrap().0.parse().unwrap();
    for gap in [seconds / 60.0 + minutes(tip), hours * 60.0 + minutes(height)] {
        let times_a_year = 365.25 * 144.0 * (-gap / 10.0).exp();
        assert!(times_a_year < 0.25, "{gap} minutes: {times_a_year} times a year");
    }
}

/// Simulates 30 days of races between FIBRE and compact blocks on 15 nodes with constant win rates. The alert
/// FibreWinRateFalling must not fire.
pub fn unchanged_win_rate_causes_no_alert() {
    let mut state = 20_090_103_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1_u64 << 31) as f64
    };
    let mut series = Vec::new();
    for (node, rate) in [0.1, 0.3, 0.5, 0.8, 0.95].into_iter().cycle().take(15).enumerate() {
        let (mut udp, mut compact) = (vec![0], vec![0]);
        // Each node has a race between FIBRE and compact blocks every ten minutes on average.
        for _ in 0..30 * 144 {
            let mut wins = [udp[udp.len() - 1], compact[compact.len() - 1]];
            let mut minutes = -10.0 * (1.0 - random()).ln();
            while minutes < 10.0 {
                wins[usize::from(random() >= rate)] += 1;
                minutes -= 10.0 * (1.0 - random()).ln();
            }
            udp.push(wins[0]);
            compact.push(wins[1]);
        }
        for (mechanism, wins) in [("fibre_udp", udp), ("bip152_cmpct", compact)] {
            let values: Vec<_> = wins.iter().map(u32::to_string).collect();
            series.push(json!({
                "series": format!("fibre_block_race_wins_total{{job=\"u\",instance=\"{node}\",mechanism=\"{mechanism}\"}}"),
                "values": values.join(" "),
            }));
        }
    }
    let folder = contrib().join("prometheus/rules");
    let fired = "count_over_time(ALERTS{alertname=\"FibreWinRateFalling\",alertstate=\"firing\"}[30d])";
    let test = json!({
        "rule_files": [folder.join("recording.yml"), folder.join("alerts.yml")],
        "evaluation_interval": "10m",
        "group_eval_order": ["bitcoin-fibre-records", "bitcoin-fibre"],
        "tests": [{
            "interval": "10m",
            "input_series": series,
            "promql_expr_test": [{"expr": fired, "eval_time": "30d", "exp_samples": []}],
        }],
    });
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("test.yml");
    std::fs::write(&file, test.to_string()).unwrap();
    succeeds(Command::new(promtool()).args(["test", "rules"]).arg(file));
}

/// Starts Alertmanager with the shipped configuration, but with waits of a second, and with the webhook as the receiver
/// of all notifications.
fn alertmanager(webhook: &str) -> Alertmanager {
    let mut config = yaml(&contrib().join("alertmanager/alertmanager.yml"));
    config["route"]["group_wait"] = "1s".into();
    config["route"]["group_interval"] = "1s".into();
    for route in config["route"]["routes"].as_array_mut().unwrap() {
        let route = route.as_object_mut().unwrap();
        route.insert("group_wait".into(), "1s".into());
        route.insert("group_interval".into(), "1s".into());
    }
    let receivers = config["receivers"].as_array_mut().unwrap();
    let operator = receivers.iter_mut().find(|receiver| receiver["name"] == "operator").unwrap();
    operator["webhook_configs"] = json!([{"url": webhook}]);
    Alertmanager::start(&config.to_string())
}

/// Waits for the next notification in which this alert has this status, and returns the alert.
fn message(messages: &Receiver<Value>, alert: &str, status: &str) -> Value {
    eventually(&format!("a message that {alert} is {status}"), || {
        messages.try_iter().find_map(|message| {
            let alerts = message["alerts"].as_array().unwrap();
            let ours = |it: &&Value| it["labels"]["alertname"] == alert && it["status"] == status;
            alerts.iter().find(ours).cloned()
        })
    })
}

pub fn operator_is_notified_of_node_down_and_up() {
    let mut node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "1s"]).ready();
    let (url, messages) = webhook();
    let alertmanager = alertmanager(&url);
    // Prometheus gets the shipped rules, with `for` of a second and windows of 3 seconds instead of 2 minutes.
    let dir = TempDir::new().unwrap();
    let mut alerts = yaml(&contrib().join("prometheus/rules/alerts.yml"));
    for group in alerts["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().unwrap() {
            rule["for"] = "1s".into();
            rule["expr"] = rule["expr"].as_str().unwrap().replace("[2m]", "[3s]").into();
        }
    }
    std::fs::write(dir.path().join("alerts.yml"), alerts.to_string()).unwrap();
    let mut config = yaml(&contrib().join("prometheus/prometheus.yml"));
    let address = &mut config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"][0];
    assert_eq!(*address, "127.0.0.1:9093");
    *address = alertmanager.address().into();
    config["global"] = json!({"scrape_interval": "1s", "evaluation_interval": "1s"});
    config["rule_files"] =
        json!([dir.path().join("alerts.yml"), contrib().join("prometheus/rules/recording.yml")]);
    config["scrape_configs"] = json!([{"job_name": "bitcoind-ipc", "static_configs": [
        {"targets": [exporter.address()], "labels": {"node": "mynode"}},
    ]}]);
    let prometheus = Prometheus::start(&config.to_string());
    eventually("Prometheus has scraped the node", || {
        (prometheus.query("bitcoin_up")[0]["value"][1] == "1").then_some(())
    });

    node.stop();
    let fired = message(&messages, "BitcoinNodeDown", "firing");
    assert_eq!(fired["annotations"]["summary"], "mynode: the node is down");
    assert_eq!(fired["labels"]["severity"], "critical");
    node.restart();
    let resolved = message(&messages, "BitcoinNodeDown", "resolved");
    assert_eq!(resolved["labels"]["node"], "mynode");
}

pub fn alerts_caused_by_a_down_node_are_inhibited() {
    let (url, messages) = webhook();
    let alertmanager = alertmanager(&url);
    let alert = |name: &str, node: &str, severity: &str| json!({"labels": {"alertname": name, "node": node, "instance": node, "severity": severity}});
    // An alert about a target without the label `node`.
    let nameless = |name: &str, instance: &str, severity: &str| json!({"labels": {"alertname": name, "instance": instance, "severity": severity}});
    alertmanager.send(&json!([
        alert("BitcoinNodeDown", "one", "critical"),
        alert("BitcoinExporterDown", "one", "critical"),
        alert("BitcoinNoProbes", "one", "warning"),
        alert("FibreSilent", "one", "warning"),
        alert("BitcoinNoProbes", "two", "warning"),
        alert("BitcoinMempoolFull", "two", "info"),
        nameless("BitcoinNodeDown", "host-a", "critical"),
        nameless("BitcoinTipStale", "host-a", "warning"),
        nameless("BitcoinTipStale", "host-b", "warning"),
        nameless("BitcoinNoOutboundPeers", "host-b", "critical"),
    ]));
    let kept_back = || -> BTreeSet<(String, String)> {
        let alerts = alertmanager.alerts();
        let kept = alerts.as_array().unwrap().iter().filter(|alert| alert["status"]["state"] == "suppressed");
        let text = |alert: &Value, label: &str| alert["labels"][label].as_str().unwrap().to_string();
        kept.map(|alert| (text(alert, "alertname"), text(alert, "instance"))).collect()
    };
    let expected = [("BitcoinNoProbes", "one"), ("FibreSilent", "one"), ("BitcoinTipStale", "host-a")]
        .map(|(name, node)| (name.to_string(), node.to_string()));
    eventually("the node's other alerts are suppressed", || {
        (kept_back() == expected.clone().into()).then_some(())
    });
    // Each notification must be about one node, and must contain all alerts about this node that are not suppressed.
    let mut told = BTreeSet::new();
    eventually("all nodes are in messages", || {
        for message in messages.try_iter() {
            let alerts = message["alerts"].as_array().unwrap();
            let text = |alert: &Value, label: &str| alert["labels"][label].as_str().unwrap().to_string();
            let nodes: BTreeSet<_> = alerts.iter().map(|alert| text(alert, "instance")).collect();
            assert_eq!(nodes.len(), 1, "{message}");
            told.extend(alerts.iter().map(|alert| (text(alert, "instance"), text(alert, "alertname"))));
        }
        (told.len() >= 6).then_some(())
    });
    let told: Vec<_> = told.iter().map(|(node, alert)| format!("{node} {alert}")).collect();
    let expected = [
        "host-a BitcoinNodeDown",
        "host-b BitcoinNoOutboundPeers",
        "host-b BitcoinTipStale",
        "one BitcoinExporterDown",
        "one BitcoinNodeDown",
        "two BitcoinNoProbes",
    ];
    assert_eq!(told, expected);
}
