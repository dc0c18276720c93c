//! Tests of the shipped dashboards, rules and configurations, and of the exporters' status pages. A real Prometheus
//! server scrapes both exporters of real nodes.
//!
//! On a machine without BPF, or without the Python package for the dashboards, the tests that need it are skipped with
//! a message.

mod alerting;
mod blocks_page;
mod compose;
mod exemplars;
mod expressions;
#[path = "../harness/mod.rs"]
mod harness;
mod kubernetes;
mod propagation;
mod rendering;
mod status_page;
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;

use expressions::series;
use harness::fixture::cannot_bpf;
use harness::prometheus::promtool;
use harness::skip::skip;

fn main() -> ExitCode {
    let cannot = cannot_bpf();
    let sdk = std::env::var_os("GRAFANA_SDK");
    if sdk.is_none() {
        skip("the tests that need GRAFANA_SDK (integration-tests/python-packages)", true);
    }
    let schemas = std::env::var_os("KUBERNETES_SCHEMAS");
    if schemas.is_none() {
        skip("the tests that need KUBERNETES_SCHEMAS (integration-tests/python-packages)", true);
    }
    let (no_sdk, no_schemas) = (sdk.is_none(), schemas.is_none());
    let mut trials = vec![
        trial("dashboards_are_up_to_date", move || dashboards_are_up_to_date(&sdk.unwrap()))
            .with_ignored_flag(no_sdk),
        trial("dashboards_are_complete", dashboards_are_complete),
        trial("panels_do_not_overlap", panels_do_not_overlap),
        trial("panels_of_logs_ask_for_labels_that_alloy_sets", panels_of_logs_ask_for_labels_that_alloy_sets),
        trial("promtool_accepts_rules_and_configurations", promtool_accepts_rules_and_configurations),
        trial("kubernetes_files_match_the_schemas", move || {
            kubernetes::kubernetes_files_match_the_schemas(&schemas.unwrap())
        })
        .with_ignored_flag(no_schemas),
        trial("prometheus_rules_are_up_to_date", kubernetes::prometheus_rules_are_up_to_date),
        trial("each_alert_has_its_tests_and_its_section", alerting::each_alert_has_its_tests_and_its_section),
        trial(
            "block_gap_alert_fires_less_than_once_in_four_years",
            alerting::block_gap_alert_fires_less_than_once_in_four_years,
        ),
        trial("unchanged_win_rate_causes_no_alert", alerting::unchanged_win_rate_causes_no_alert),
        trial("operator_is_notified_of_node_down_and_up", alerting::operator_is_notified_of_node_down_and_up),
        trial(
            "alerts_caused_by_a_down_node_are_inhibited",
            alerting::alerts_caused_by_a_down_node_are_inhibited,
        ),
        trial("the_compose_stack_is_pinned_and_hardened", compose::compose_images_are_pinned_and_hardened),
        trial(
            "alloy_may_keep_its_positions_and_read_what_belongs_to_others",
            compose::alloy_may_keep_its_positions_and_read_what_belongs_to_others,
        )
        .with_ignored_flag(!nix::unistd::geteuid().is_root()),
        trial("secrets_stay_out_of_git_and_images", compose::secrets_stay_out_of_git_and_images),
        trial("lines_of_the_journal_have_their_labels", compose::lines_of_the_journal_have_their_labels),
        trial("store_gets_all_samples_after_an_outage", store::store_gets_all_samples_after_an_outage),
        trial(
            "numbers_equal_the_metrics_and_follow_the_node",
            status_page::numbers_equal_the_metrics_and_follow_the_node,
        ),
        trial("status_page_fits_a_phone_in_dark_mode", status_page::status_page_fits_a_phone_in_dark_mode),
        trial("page_shows_blocks_as_the_log_has_them", blocks_page::page_shows_blocks_as_the_log_has_them)
            .with_ignored_flag(cannot),
        trial("blocks_page_fits_a_phone_in_dark_mode", blocks_page::blocks_page_fits_a_phone_in_dark_mode)
            .with_ignored_flag(cannot),
        trial("races_of_fibre_are_shown", blocks_page::races_of_fibre_are_shown).with_ignored_flag(cannot),
        trial("exemplar_of_a_bucket_is_its_last_block", exemplars::exemplar_of_a_bucket_is_its_last_block)
            .with_ignored_flag(cannot),
        trial("every_expression_returns_data", expressions::every_expression_returns_data)
            .with_ignored_flag(cannot),
    ];
    let no_postgres = harness::postgres::programs().is_none();
    if no_postgres {
        skip("the tests that need PostgreSQL (integration-tests/debian-packages postgresql)", true);
    }
    let of_store = [
        trial("propagation_queries_return_data", propagation::every_query_returns_data),
        trial(
            "views_show_no_difference_without_its_error",
            propagation::views_show_no_difference_without_its_error,
        ),
        trial("postgres_trusts_no_user_of_the_machine", compose::postgres_trusts_no_user_of_the_machine),
    ];
    trials.extend(of_store.map(|trial| trial.with_ignored_flag(no_postgres)));
    // The script `docs/picture` sets SCREENSHOTS, and then creates the README's picture of the status page with this
    // test.
    if std::env::var_os("SCREENSHOTS").is_some() {
        trials.push(trial("picture_of_the_page", status_page::picture_of_the_page));
    }
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
    let message = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&message));
}

fn dashboards_are_up_to_date(python: &std::ffi::OsStr) {
    succeeds(Command::new(python).arg("-B").arg(contrib().join("grafana/dashboards.py")).arg("--check"));
}

/// The shipped dashboards whose data source is Prometheus.
fn dashboards() -> Vec<Value> {
    all_dashboards().into_iter().filter(|board| board["uid"] != propagation::UID).collect()
}

fn all_dashboards() -> Vec<Value> {
    let files = std::fs::read_dir(contrib().join("grafana/dashboards")).unwrap();
    files.map(|file| serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap()).collect()
}

/// The panels of a dashboard, including the panels in collapsed rows, but without the rows themselves.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let all = dashboard["panels"].as_array().unwrap().iter();
    let all =
        all.flat_map(|panel| std::iter::once(panel).chain(panel["panels"].as_array().into_iter().flatten()));
    all.filter(|panel| panel["type"] != "row")
}

fn is_of_loki(panel: &Value) -> bool {
    panel["datasource"]["type"] == "loki"
}

fn dashboards_are_complete() {
    let mut identities = BTreeSet::new();
    for dashboard in dashboards() {
        let uid = dashboard["uid"].as_str().unwrap();
        assert!(identities.insert(uid.to_string()), "{uid} twice");
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let named = |name: &str| variables.iter().find(|variable| variable["name"] == name).unwrap();
        // A dashboard must show the data of only one of the two exporters, because some metrics have the same name in
        // both. The dashboard variables must get their values from the series `up`, which also exists while the
        // exporter is down.
        let job = named("job")["allValue"].as_str().unwrap();
        assert!(["bitcoind-ipc", "bitcoind-usdt|fibre"].contains(&job), "{uid}: {job}");
        for name in ["job", "instance", "node"] {
            let query = named(name)["query"]["query"].as_str().unwrap();
            assert!(query.starts_with(&format!("label_values(up{{job=~\"{job}\"")), "{uid}: {query}");
            let is_one = name == "node" && ["bitcoin-node", "bitcoin-mining"].contains(&uid);
            assert_eq!(named(name)["allValue"].is_null(), is_one, "{uid}: {name}");
        }
        // Links between dashboards must pass only the selected node, because the two exporters of a node have different
        // jobs and addresses.
        for link in dashboard["links"].as_array().unwrap() {
            assert_eq!((&link["type"], &link["includeVars"]), (&"link".into(), &false.into()), "{uid}");
            assert!(link["url"].as_str().unwrap().ends_with("?${node:queryparam}"), "{uid}: {link}");
        }
        assert_eq!(dashboard["annotations"]["list"].as_array().unwrap().len(), 4, "{uid}");

        let rows = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] == "row");
        let unfolded = if uid == "bitcoin-node" { 5 } else { 2 };
        for (place, row) in rows.enumerate() {
            assert_eq!(row["collapsed"], place >= unfolded, "{uid}: {}", row["title"]);
        }
        let mut titles = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            titles.insert(title);
            let description = panel["description"].as_str().unwrap();
            let vague = ["Of ", "In ", "Within ", "By ", "From ", "Since ", "That ", "To ", "Mean over"];
            assert!(description.len() > 20, "{title}: no description");
            assert!(!vague.iter().any(|start| description.starts_with(start)), "{title}: {description}");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
            assert!(
                unit.is_some_and(|unit| !unit.starts_with("suffix: sat") || unit == "suffix: sat/vB"),
                "{title}"
            );
            let targets = panel["targets"].as_array().unwrap();
            let references: BTreeSet<_> =
                targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
            assert!(!targets.is_empty() && references.len() == targets.len(), "{title}: {references:?}");
            for target in targets {
                let expression = target["expr"].as_str().unwrap();
                let legend = target["legendFormat"].as_str().unwrap_or_default();
                assert!(!legend.contains("instance"), "{title}: {legend}");
                // Graphs must not use `topk`, because the largest series can change from step to step.
                assert!(target["range"] != true || !expression.contains("topk"), "{title}: {expression}");
                if expression.contains("ALERTS{") {
                    assert!(
                        expression.contains("alertname=~\"Bitcoin.+|Fibre.+\""),
                        "{title}: others' alerts"
                    );
                }
                let is_graph_of_buckets = target["range"] == true && expression.contains("_bucket");
                assert_eq!(target["exemplar"] == true, is_graph_of_buckets, "{title}: exemplars");
                let is_heatmap = panel["type"] == "heatmap";
                // The function increase() extrapolates, and can return 7.1 blocks. Expressions of counts must therefore
                // use round().
                if !is_heatmap && (expression.starts_with("increase(") || expression.starts_with("sum by")) {
                    let is_share = expression.contains(" / ");
                    assert!(is_share || !expression.contains("increase("), "{title}: {expression}");
                }
                if expression.contains("histogram_quantile") {
                    assert!(expression.contains("(le,node,instance"), "{title}: {expression}");
                }
                // A graph about blocks must not use `$__rate_interval`, because there is rarely a block in such a
                // window of some minutes.
                let of_blocks = ["block", "race", "reconstruct", "chunks", "connected_", "flush"];
                if series(expression).iter().any(|name| of_blocks.iter().any(|part| name.contains(part))) {
                    assert!(!expression.contains("$__rate_interval"), "{title}: {expression}");
                }
            }
        }
        assert!(titles.len() > 10, "{titles:?}");
    }
    assert_eq!(
        identities.iter().map(String::as_str).collect::<Vec<_>>(),
        [
            "bitcoin-fibre",
            "bitcoin-fleet",
            "bitcoin-internals",
            "bitcoin-mining",
            "bitcoin-node",
            "bitcoin-relay"
        ]
    );
}

/// Checks that no two panels of a dashboard overlap.
fn panels_do_not_overlap() {
    for dashboard in all_dashboards() {
        let mut groups = vec![dashboard["panels"].as_array().unwrap().clone()];
        groups
            .extend(groups[0].iter().filter_map(|row| row["panels"].as_array().cloned()).collect::<Vec<_>>());
        for group in groups {
            let mut taken = BTreeSet::new();
            for panel in group {
                let side = |name: &str| panel["gridPos"][name].as_u64().unwrap_or(0);
                assert!(side("x") + side("w") <= 24, "{}", panel["title"]);
                for cell in (side("y")..side("y") + side("h"))
                    .flat_map(|y| (side("x")..side("x") + side("w")).map(move |x| (x, y)))
                {
                    assert!(taken.insert(cell), "{} lies on another panel", panel["title"]);
                }
            }
        }
    }
}

/// Checks that the queries of log panels use only labels that config.alloy sets.
fn panels_of_logs_ask_for_labels_that_alloy_sets() {
    let alloy = std::fs::read_to_string(contrib().join("compose/config.alloy")).unwrap();
    let boards = dashboards();
    let logs: Vec<_> = boards.iter().flat_map(panels).filter(|panel| is_of_loki(panel)).collect();
    assert!(!logs.is_empty());
    for panel in logs {
        let expression = panel["targets"][0]["expr"].as_str().unwrap();
        let (_, jobs) = expression.split_once("job=~\"").unwrap();
        for job in jobs.split('"').next().unwrap().split('|') {
            assert!(alloy.contains(&format!("= \"{job}\"")), "Alloy has no job {job}");
        }
        let labels =
            expression.trim_matches(['{', '}']).split("\",").map(|it| it.split(['=', '!']).next().unwrap());
        for label in labels {
            assert!(["job", "node", "unit", "level"].contains(&label), "{label} is no label of a stream");
        }
    }
}

fn promtool_accepts_rules_and_configurations() {
    let folder = contrib().join("prometheus");
    let files = |part: &str| -> Vec<PathBuf> {
        std::fs::read_dir(folder.join(part)).unwrap().map(|file| file.unwrap().path()).collect()
    };
    // The only shipped target file is that of bitcoind-ipc-exporter, because a target without a running exporter would
    // fire an alert permanently.
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

/// The rules of a file in contrib/prometheus: the name of each record or alert, and its expression.
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
