//! The monitoring stack as an operator gets it: dashboards and rules, against a real Prometheus that scrapes both exporters
//! beside real nodes.
//!
//! What needs BPF, or the Python package that the dashboards are made with, is skipped where there is none, and it says so.

mod expressions;
#[path = "../harness/mod.rs"]
mod harness;
mod status_page;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;

use harness::fixture::cannot_bpf;
use harness::prometheus::promtool;

fn main() -> ExitCode {
    let cannot = cannot_bpf();
    if let Some(why) = &cannot {
        eprintln!(
            "\nSKIPPED, and counted as ignored: what needs BPF, because this machine cannot do it: {why:#}\n"
        );
    }
    let sdk = std::env::var_os("GRAFANA_SDK");
    if sdk.is_none() {
        eprintln!(
            "\nSKIPPED, and counted as ignored: what needs GRAFANA_SDK (integration-tests/grafana-sdk)\n"
        );
    }
    let no_sdk = sdk.is_none();
    let trials = vec![
        trial("dashboards_are_up_to_date", move || dashboards_are_up_to_date(&sdk.unwrap()))
            .with_ignored_flag(no_sdk),
        trial("dashboards_are_complete", dashboards_are_complete),
        trial("promtool_accepts_rules_and_configurations", promtool_accepts_rules_and_configurations),
        trial("each_alert_has_its_tests_and_its_section", each_alert_has_its_tests_and_its_section),
        trial("the_compose_stack_is_pinned_and_hardened", the_compose_stack_is_pinned_and_hardened),
        trial(
            "numbers_equal_the_metrics_and_follow_the_node",
            status_page::numbers_equal_the_metrics_and_follow_the_node,
        ),
        trial("it_fits_a_phone_in_the_dark", status_page::it_fits_a_phone_in_the_dark),
        trial("every_expression_returns_data", expressions::every_expression_returns_data)
            .with_ignored_flag(cannot.is_some()),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, || {
        test();
        Ok(())
    })
}

fn contrib() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib")
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&said));
}

fn dashboards_are_up_to_date(python: &std::ffi::OsStr) {
    succeeds(Command::new(python).arg("-B").arg(contrib().join("grafana/dashboards.py")).arg("--check"));
}

fn dashboards() -> Vec<Value> {
    let files = std::fs::read_dir(contrib().join("grafana/dashboards")).unwrap();
    files.map(|file| serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap()).collect()
}

/// The panels that show something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

fn dashboards_are_complete() {
    let mut identities = BTreeSet::new();
    for dashboard in dashboards() {
        assert!(identities.insert(dashboard["uid"].to_string()), "{} twice", dashboard["uid"]);
        let variables: Vec<_> = dashboard["templating"]["list"].as_array().unwrap().iter().collect();
        let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["datasource", "job", "instance", "node"]);
        let mut titles = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            titles.insert(title);
            assert!(
                panel["description"].as_str().is_some_and(|text| text.len() > 10),
                "{title}: no description"
            );
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: no unit");
            let targets = panel["targets"].as_array().unwrap();
            let references: BTreeSet<_> =
                targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
            assert!(!targets.is_empty() && references.len() == targets.len(), "{title}: {references:?}");
        }
        assert!(titles.len() > 15, "{titles:?}");
    }
    assert_eq!(identities.len(), 3);
}

fn promtool_accepts_rules_and_configurations() {
    let folder = contrib().join("prometheus");
    let files = |part: &str| -> Vec<PathBuf> {
        std::fs::read_dir(folder.join(part)).unwrap().map(|file| file.unwrap().path()).collect()
    };
    for config in ["prometheus.yml", "remote-write.yml"] {
        succeeds(Command::new(promtool()).args(["check", "config"]).arg(folder.join(config)));
    }
    succeeds(Command::new(promtool()).args(["check", "rules"]).args(files("rules")).args(files("old-names")));
    succeeds(Command::new(promtool()).args(["test", "rules"]).args(files("tests")));
}

fn yaml(path: &Path) -> Value {
    serde_yaml_ng::from_slice(&std::fs::read(path).unwrap())
        .unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// The rules of a file: (what it records or alerts, expression).
fn rules(file: &str) -> Vec<(String, String)> {
    let parsed = yaml(&contrib().join("prometheus").join(file));
    let groups = parsed["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    rules
        .map(|rule| {
            let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap();
            (name.to_string(), rule["expr"].as_str().unwrap().to_string())
        })
        .collect()
}

fn each_alert_has_its_tests_and_its_section() {
    let text = std::fs::read_to_string(contrib().with_file_name("docs/alerts.md")).unwrap();
    let sections: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let alerts: BTreeSet<_> = rules("rules/alerts.yml").into_iter().map(|(alert, _)| alert).collect();
    let tests = yaml(&contrib().join("prometheus/tests/alerts.yml"));
    let (mut fires, mut does_not) = (BTreeSet::new(), BTreeSet::new());
    for test in
        tests["tests"].as_array().unwrap().iter().flat_map(|test| test["alert_rule_test"].as_array().unwrap())
    {
        let alert = test["alertname"].as_str().unwrap();
        match test["exp_alerts"].as_array().unwrap().is_empty() {
            true => does_not.insert(alert),
            false => fires.insert(alert),
        };
    }
    for alert in &alerts {
        assert!(sections.contains(alert.as_str()), "docs/alerts.md says nothing of {alert}");
        assert!(fires.contains(alert.as_str()), "no test makes {alert} fire");
        assert!(does_not.contains(alert.as_str()), "no test leaves {alert} silent");
    }
    for section in sections {
        assert!(alerts.contains(section), "docs/alerts.md speaks of {section}, which is no alert");
    }
}

fn the_compose_stack_is_pinned_and_hardened() {
    let folder = contrib().join("compose");
    let compose = yaml(&folder.join("compose.yaml"));
    let services = compose["services"].as_object().unwrap();
    assert_eq!(services.keys().collect::<Vec<_>>(), ["alloy", "grafana", "loki", "prometheus"]);
    for (name, service) in services {
        let (image, tag) = service["image"].as_str().unwrap().rsplit_once(':').expect("a tag");
        assert!(tag.split('.').count() == 3, "{image}: {tag} is not one version");
        // `<<: *hardened`
        let hardened = &service["<<"];
        assert_eq!(hardened["read_only"], true, "{name}");
        assert_eq!(hardened["security_opt"][0], "no-new-privileges:true", "{name}");
        assert_eq!(hardened["cap_drop"][0], "ALL", "{name}");
        assert!(service["healthcheck"]["test"].is_array(), "{name}");
        // What it mounts of ours is there.
        for volume in service["volumes"].as_array().unwrap() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            assert!(!source.starts_with('.') || folder.join(source).exists(), "{name}: {source}");
        }
    }
    for file in ["loki.yml", "grafana/datasources/datasources.yml", "grafana/dashboards/dashboards.yml"] {
        assert!(yaml(&folder.join(file)).is_object(), "{file}");
    }
    let example = std::fs::read_to_string(folder.join(".env.example")).unwrap();
    for variable in
        ["GRAFANA_ADMIN_PASSWORD=\n", "GRAFANA_ADMIN_USER=admin\n", "BITCOIN_DATA_DIR=/home/node/.bitcoin\n"]
    {
        assert!(example.contains(variable), "{variable}");
    }
}
