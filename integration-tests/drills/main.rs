//! Drills (fault injection tests) of the alerts: each drill injects a fault, and compares the alerts that a webhook
//! receives with the alerts in the table of drills in docs/alerts.md. A drill runs nodes, both exporters, Prometheus
//! with the shipped rules, and Alertmanager with the shipped routes. All durations of rules and routes are divided by a
//! factor ([`scale`]).
//!
//! With DRILLS_REPORT=FILE, the drills write the table of alerts and their times to FILE. With DRILLS=all, the drills
//! that take more than two minutes also run.

mod background;
mod chain;
mod dashboards;
mod disk;
mod exporters;
mod fibre;
mod fleet;
mod gate;
#[path = "../harness/mod.rs"]
mod harness;
mod hidden_rpc;
mod internals;
mod labels;
mod network;
mod nodes;
mod peers;
mod preload;
mod quiet;
mod relay;
mod report;
mod scale;
mod snapshot;
mod stack;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    hidden_rpc::serve_if_asked();
    let _priority = Priority::raise();
    let mut arguments = Arguments::from_args();
    // Number of drills that run at the same time, also on machines with fewer processors, because a drill waits most of
    // the time.
    const AT_A_TIME: usize = 4;
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(AT_A_TIME));
    let trials = vec![
        trial("durations_of_all_places_are_scaled", scale::durations_of_all_places_are_scaled),
        trial("only_spans_of_the_drills_time_are_scaled", scale::only_spans_of_the_drills_time_are_scaled),
        trial("nodes_on_main_are_quiet", quiet::nodes_on_main_are_quiet),
        trial("nodes_on_signets_are_quiet", quiet::nodes_on_signets_are_quiet),
        trial("nodes_without_peers_are_quiet", quiet::nodes_without_peers_are_quiet),
        trial("download_is_quiet", quiet::download_is_quiet),
        long_trial("reindex_and_late_nodes_are_quiet", quiet::reindex_and_late_nodes_are_quiet),
        long_trial("background_validation_is_quiet", quiet::background_validation_is_quiet),
        long_trial("fibre_that_catches_up_is_quiet", quiet::fibre_that_catches_up_is_quiet),
        trial("reorganization_of_four_blocks_is_deep", chain::reorganization_of_four_blocks_is_deep),
        trial(
            "branch_with_more_work_that_the_node_rejects_is_critical",
            chain::branch_with_more_work_that_the_node_rejects_is_critical,
        ),
        long_trial("two_tips_of_equal_height_are_a_split", chain::two_tips_of_equal_height_are_a_split),
        trial("two_tips_of_different_heights_are_a_split", chain::two_tips_of_different_heights_are_a_split),
        trial("tip_of_three_hours_ago_is_stale", chain::tip_of_three_hours_ago_is_stale),
        trial("no_new_block_for_two_hours_is_an_alert", chain::no_new_block_for_two_hours_is_an_alert),
        trial("conditions_alert_though_polls_fail", chain::conditions_alert_though_polls_fail),
        trial("download_without_blocks_is_stuck", chain::download_without_blocks_is_stuck),
        trial("exporter_that_does_not_answer_is_down", exporters::exporter_that_does_not_answer_is_down),
        trial("json_rpc_lost_beside_ipc_is_an_alert", exporters::json_rpc_lost_beside_ipc_is_an_alert),
        trial(
            "usdt_exporter_without_tracepoints_is_an_alert",
            exporters::usdt_exporter_without_tracepoints_is_an_alert,
        ),
        trial("job_without_targets_is_an_alert", exporters::job_without_targets_is_an_alert),
        trial("monitoring_watches_itself", exporters::monitoring_watches_itself),
        trial("upgrade_of_the_exporters_is_no_alert", exporters::upgrade_of_the_exporters_is_no_alert),
        trial("changed_labels_disturb_no_rule", labels::changed_labels_disturb_no_rule),
        trial("targets_without_names_are_told_apart", labels::targets_without_names_are_told_apart),
        trial("killed_node_is_down", nodes::killed_node_is_down),
        trial("hanging_node_is_down", nodes::hanging_node_is_down),
        trial("planned_restart_is_no_alert", nodes::planned_restart_is_no_alert),
        long_trial("crash_loop_is_critical", nodes::crash_loop_is_critical),
        trial("node_without_templates_is_an_alert", nodes::node_without_templates_is_an_alert),
        long_trial(
            "version_with_a_safety_fix_is_read_within_a_day",
            nodes::version_with_a_safety_fix_is_read_within_a_day,
        ),
        trial("full_disk_is_an_alert", nodes::full_disk_is_an_alert),
        trial("unknown_rules_are_a_warning", nodes::unknown_rules_are_a_warning),
        trial("warnings_alert_by_kind", nodes::warnings_alert_by_kind),
        trial("node_without_outbound_peers_is_an_alert", peers::node_without_outbound_peers_is_an_alert),
        trial("outbound_peers_of_one_group_are_an_alert", peers::outbound_peers_of_one_group_are_an_alert),
        trial("peers_without_transactions_are_an_alert", peers::peers_without_transactions_are_an_alert),
        trial(
            "clock_that_differs_from_most_peers_is_an_alert",
            peers::clock_that_differs_from_most_peers_is_an_alert,
        ),
        trial("peers_that_misbehave_are_an_alert", peers::peers_that_misbehave_are_an_alert),
        trial("flood_of_addresses_is_an_alert", peers::flood_of_addresses_is_an_alert),
        trial("index_that_stands_still_is_stuck", internals::index_that_stands_still_is_stuck),
        trial(
            "background_validation_without_blocks_is_stuck",
            internals::background_validation_without_blocks_is_stuck,
        ),
        long_trial(
            "compact_blocks_without_transactions_are_an_alert",
            relay::compact_blocks_without_transactions_are_an_alert,
        ),
        long_trial("blocks_that_come_slowly_are_an_alert", relay::blocks_that_come_slowly_are_an_alert),
        long_trial("fibre_without_blocks_is_silent", fibre::fibre_without_blocks_is_silent),
        trial("fibre_peers_that_are_silent_are_an_alert", fibre::fibre_peers_that_are_silent_are_an_alert),
        trial("others_alerts_are_not_counted", dashboards::others_alerts_are_not_counted),
        trial("upgrade_of_the_node_is_no_alert", nodes::upgrade_of_the_node_is_no_alert),
        trial("backlog_of_announcements_is_an_alert", peers::backlog_of_announcements_is_an_alert),
        trial(
            "message_handler_without_time_left_is_an_alert",
            peers::message_handler_without_time_left_is_an_alert,
        ),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    let tables = report::tables();
    eprint!("{tables}");
    if let Some(file) = std::env::var_os("DRILLS_REPORT") {
        std::fs::write(file, tables).unwrap();
    }
    conclusion.exit_code()
}

/// Raised CPU priority of the drills' processes, if the user is allowed to raise it. Drills are sensitive to delays:
/// for example, a scrape has a timeout of 250 ms instead of 10 s. Linux distributes CPU time between sessions by their
/// nice values, and then between the processes of a session by their nice values (sched(7), autogroup). [`Priority`]
/// therefore sets both nice values to -20. The session's nice value is restored when this value is dropped.
struct Priority {
    session_before: Option<String>,
}

impl Priority {
    const SESSION: &str = "/proc/self/autogroup";

    fn raise() -> Self {
        let mut renice = std::process::Command::new("renice");
        let _ = renice.args(["-n", "-20", "-p", &std::process::id().to_string()]).output();
        // /proc/self/autogroup contains for example "/autogroup-25 nice 0".
        let before = std::fs::read_to_string(Self::SESSION).ok();
        let session_before = before.and_then(|it| Some(it.split_whitespace().last()?.to_string()));
        let _ = std::fs::write(Self::SESSION, "-20");
        Priority { session_before }
    }
}

impl Drop for Priority {
    fn drop(&mut self) {
        if let Some(before) = &self.session_before {
            let _ = std::fs::write(Self::SESSION, before);
        }
    }
}

/// A libtest-mimic test for a drill that takes more than two minutes. Without DRILLS=all, the test is ignored.
fn long_trial(name: &str, drill: impl FnOnce() + Send + 'static) -> Trial {
    trial(name, drill).with_ignored_flag(std::env::var_os("DRILLS").is_none_or(|it| it != "all"))
}

fn trial(name: &str, drill: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, || {
        drill();
        Ok(())
    })
}
