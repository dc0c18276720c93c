//! The monitoring stack as an operator gets it: dashboards and rules, against a real Prometheus that scrapes both exporters
//! beside real nodes.
//!
//! What needs BPF, or the Python package that the dashboards are made with, is skipped where there is none, and it says so.

mod alerting;
mod compose;
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
        trial("each_alert_has_its_tests_and_its_section", alerting::each_alert_has_its_tests_and_its_section),
        trial(
            "a_gap_between_blocks_is_an_alert_less_than_once_in_four_years",
            alerting::a_gap_between_blocks_is_an_alert_less_than_once_in_four_years,
        ),
        trial("an_unchanged_win_rate_is_no_alert", alerting::an_unchanged_win_rate_is_no_alert),
        trial(
            "the_operator_is_told_that_a_node_is_down_and_that_it_is_up_again",
            alerting::the_operator_is_told_that_a_node_is_down_and_that_it_is_up_again,
        ),
        trial(
            "what_follows_from_a_node_that_is_down_is_kept_back",
            alerting::what_follows_from_a_node_that_is_down_is_kept_back,
        ),
        trial("the_compose_stack_is_pinned_and_hardened", compose::it_is_pinned_and_hardened),
        trial(
            "alloy_may_keep_its_positions_and_read_what_belongs_to_others",
            compose::alloy_may_keep_its_positions_and_read_what_belongs_to_others,
        )
        .with_ignored_flag(!nix::unistd::geteuid().is_root()),
        trial("lines_of_the_journal_have_their_labels", compose::lines_of_the_journal_have_their_labels),
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
    // A target that does not exist is an alert without end: only the exporter that everybody has.
    let targets = files("targets").into_iter().filter(|file| file.extension().unwrap() == "yml");
    assert_eq!(targets.collect::<Vec<_>>(), [folder.join("targets/ipc.yml")]);
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
