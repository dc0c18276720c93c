//! A drill (a fault injection test of the alerts) of the dashboards: they must count the alerts of this project, and no
//! alerts of other projects.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::fleet::{Expected, Fleet, Kind, Plan, critical, warning};

/// The PromQL expressions of the dashboards that count alerts, with all nodes selected.
fn expressions() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/grafana/dashboards");
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let board: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        collect(&board, &mut found);
    }
    found.sort();
    found.dedup();
    found
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(expression) = fields.get("expr").and_then(Value::as_str)
                && expression.contains("ALERTS")
            {
                found.push(expression.replace("$node", ".*"));
            }
            fields.values().for_each(|it| collect(it, found));
        }
        Value::Array(values) => values.iter().for_each(|it| collect(it, found)),
        _ => {}
    }
}

/// Drill 25 in docs/alerts.md: Prometheus also evaluates alert rules of another project, one of which has alerts with
/// the label `node`.
pub fn others_alerts_are_not_counted() {
    let mut fleet =
        Fleet::start("25 unrelated alerts", vec![Plan::new(Kind::Rpc), Plan::new(Kind::HttpOnly)]);
    fleet.quiet(2.0);
    fleet.stack.add_rules(
        "groups: [{name: others, rules: [
            {alert: Watchdog, expr: vector(1), labels: {severity: none}},
            {alert: NodeFilesystemSpaceFillingUp, expr: 'up{job=~\"bitcoind-.*\"} * 0 + 1', labels: {severity: warning}}]}]",
    );
    crate::harness::eventually("the alerts of the other project fire", || {
        let others = fleet.stack.alerts("firing");
        others.iter().any(|it| it.starts_with("NodeFilesystemSpaceFillingUp")).then_some(())
    });
    let expressions = expressions();
    assert!(expressions.len() > 1, "{expressions:?}");
    let sum = |fleet: &Fleet, expression: &str| {
        let found = fleet.stack.prometheus.query(&format!("sum({expression})"));
        found[0]["value"][1].as_str().map_or(0.0, |it| it.parse::<f64>().unwrap())
    };
    for expression in &expressions {
        assert_eq!(sum(&fleet, expression), 0.0, "{expression}");
    }
    // Kill a node, which makes an alert of this project fire. The dashboards must count this alert.
    let since = Instant::now();
    fleet.member("rpc").kill();
    let name = "NodeFilesystemSpaceFillingUp";
    let others = |node: &str| (node.to_string(), vec![warning(name)]);
    let watchdog = Expected { name: "Watchdog", severity: "none" };
    let mut each = vec![others("rpc"), others("http-only"), (String::new(), vec![watchdog])];
    each[0].1.push(critical("BitcoinNodeDown"));
    fleet.expect_each(since, &each, 12.0);
    let firing: Vec<_> = expressions.iter().filter(|it| it.contains("alertstate=\"firing\"")).collect();
    assert!(!firing.is_empty());
    for expression in firing {
        assert!(sum(&fleet, expression) >= 1.0, "{expression}");
    }
}
