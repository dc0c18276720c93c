//! Integration tests of the binary `bitcoind-usdt-exporter` on the running kernel, with the program `fixture.c`, which
//! has FIBRE's tracepoints, and with a real node, which has Bitcoin Core's tracepoints.
//!
//! The tests need root, or the same capabilities as the exporter. On a machine that cannot run BPF programs, the tests
//! are skipped with a message.

mod block_log;
mod block_store;
mod blocks;
mod connections;
mod core_tracepoints;
mod fast_paths;
mod fibre;
#[path = "../harness/mod.rs"]
mod harness;
mod lifecycle;
mod p2p_scenario;
mod restarts;
mod settings;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use tempfile::TempDir;

use harness::exporter::Exporter;
use harness::fixture::{Fixture, cannot_bpf, command, compile, exporter};
use harness::skip::skip;

fn main() -> ExitCode {
    let cannot = cannot_bpf();
    macro_rules! tests {
        ($($module:ident::$test:ident),* $(,)?) => {
            vec![$(Trial::test(concat!(stringify!($module), "::", stringify!($test)), || {
                $module::$test();
                Ok(())
            })),*]
        };
    }
    let with_bpf = tests![
        fast_paths::fast_paths_read_what_libbpfs_helpers_read,
        fibre::every_fibre_metric_is_what_was_fired,
        fibre::node_without_reconstruction_detail_lacks_its_metrics,
        fibre::newest_fibre_tracepoint_arguments_are_read,
        fibre::last_block_is_the_last_seen_by_any_tracepoint,
        fibre::log_writer_thread_is_traced,
        fibre::restarted_node_does_not_finish_what_the_last_one_queued,
        fibre::negative_durations_are_not_observed,
        fibre::million_events_from_four_threads_are_counted,
        fibre::labels_from_peers_are_bounded,
        fibre::probe_with_unreadable_argument_costs_only_itself,
        fibre::binary_without_probes_is_rejected_with_a_hint,
        lifecycle::restarted_node_is_attached_again_and_keeps_counts,
        lifecycle::another_node_of_the_same_binary_is_not_the_next_one,
        lifecycle::exporter_started_first_waits_for_the_node,
        lifecycle::killed_exporter_leaves_the_node_untraced,
        lifecycle::two_exporters_on_one_node_count_each_for_itself,
        lifecycle::several_nodes_are_waited_for_until_one_is_left,
        restarts::stopped_node_is_attached_again,
        restarts::killed_node_is_attached_again,
        restarts::upgraded_node_is_attached_again,
        restarts::daemonized_node_is_attached_not_its_parent,
        restarts::child_that_runs_a_command_is_not_the_node,
        restarts::processes_that_end_at_once_are_not_the_node,
        restarts::two_nodes_named_by_process_never_swap_names,
        restarts::two_nodes_named_by_data_directory_never_swap_names,
        lifecycle::old_options_protect_metrics_but_not_health,
        settings::each_source_of_settings_comes_before_the_next,
        settings::fibre_exporter_settings_keep_its_port,
        settings::log_file_is_written_at_the_log_level,
        core_tracepoints::counts_agree_with_a_real_node_and_its_peer,
        core_tracepoints::rejected_transactions_are_counted_by_reason,
        core_tracepoints::long_rejection_reasons_are_distinguished,
        core_tracepoints::full_table_of_rejections_removes_the_least_recent,
        core_tracepoints::peers_that_reconnect_at_once_are_counted_as_the_node_does,
        core_tracepoints::connections_from_before_the_exporter_are_counted,
        core_tracepoints::probe_table_lists_the_binarys_probes,
        connections::reasons_of_misbehaving_peers_are_those_in_the_log,
        connections::misbehaving_reasons_are_bounded,
        connections::connections_are_counted_by_type,
        connections::age_of_a_connection_is_counted_at_its_end,
        connections::evicted_connections_end_once,
        connections::inv_entries_are_counted_as_the_node_logs_their_size,
        connections::addr_entries_are_counted_as_the_nodes_log_them,
        blocks::check_of_the_database_counts_no_block,
        blocks::check_at_startup_and_background_validation_count_no_block,
        blocks::compact_blocks_are_counted_as_the_node_logs_them,
        blocks::three_announcing_peers_are_distinguished,
        blocks::block_by_another_message_is_no_compact_block,
        blocks::header_sync_announces_nothing,
        blocks::peer_with_invented_blocks_evicts_no_other_blocks,
        blocks::node_reports_are_counted,
        blocks::report_has_the_utxo_flush_a_block_waited_for,
        block_log::rows_can_be_read_while_others_are_written,
        block_log::corrupt_file_is_logged_once_and_replaced,
        block_log::foreign_block_log_file_is_rejected_at_startup,
    ];
    let with_postgres = tests![
        block_store::rows_of_two_nodes_arrive_once_through_outages,
        block_store::wrong_settings_are_logged_and_lose_no_row,
        block_store::outbox_is_bounded_and_drops_are_counted,
        block_store::unsent_rows_of_a_moved_block_log_are_counted,
        block_store::command_changes_nothing_in_the_store,
    ];
    let without = tests![
        lifecycle::several_nodes_are_listed_and_none_is_guessed,
        lifecycle::wrong_input_is_explained,
        lifecycle::failed_output_does_not_end_the_exporter,
        lifecycle::closed_stderr_causes_no_panic,
        settings::wrong_settings_are_explained_with_their_names,
        block_store::block_store_needs_are_explained,
    ];
    // These tests need root, because they start processes as another user, create namespaces or mount file systems.
    let as_root = tests![
        lifecycle::missing_privileges_are_reported,
        lifecycle::node_is_selected_by_its_unit,
        lifecycle::unread_journal_stops_nothing,
        block_log::another_user_reads_the_block_log_without_write_access,
        block_log::times_are_right_in_a_time_namespace,
        block_log::full_disk_is_logged_once_and_costs_no_row,
    ];
    let as_root_with_postgres = tests![block_store::full_disk_of_the_outbox_costs_no_row];
    let no_postgres = harness::postgres::programs().is_none();
    if no_postgres {
        skip("the tests that need PostgreSQL (integration-tests/debian-packages postgresql)", true);
    }
    let is_root = nix::unistd::Uid::effective().is_root();
    let with_postgres =
        with_postgres.into_iter().map(|test| test.with_ignored_flag(cannot || no_postgres)).chain(
            as_root_with_postgres
                .into_iter()
                .map(|test| test.with_ignored_flag(cannot || no_postgres || !is_root)),
        );
    let as_root = as_root.into_iter().map(|test| test.with_ignored_flag(cannot || !is_root));
    let with_bpf = with_bpf.into_iter().map(|test| test.with_ignored_flag(cannot));
    libtest_mimic::run(
        &Arguments::from_args(),
        with_bpf.chain(as_root).chain(with_postgres).chain(without).collect(),
    )
    .exit_code()
}

/// Starts the program `fixture.c`, compiled with these options, and an exporter that is attached to it.
fn fibre(options: &[&str]) -> (TempDir, Fixture, Exporter) {
    let dir = TempDir::new().unwrap();
    let fixture = Fixture::start(&compile(dir.path(), options));
    let exporter = exporter(fixture.pid(), &["--node-name", "relay"]);
    (dir, fixture, exporter)
}

/// Waits until the exporter exports these samples, one per line and without the label `node`, for example `name{a="b"}
/// 1`. Panics after ten seconds.
fn assert_samples(exporter: &Exporter, expected: &str) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let text = exporter.metrics();
        let missing = missing_sample(&text, expected);
        match missing {
            None => return,
            Some(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Some(missing) => panic!("{missing} in:\n{text}\nlog:\n{}", exporter.log()),
        }
    }
}

/// The first sample in `expected` that is not in the metrics `text`.
fn missing_sample(text: &str, expected: &str) -> Option<String> {
    let expected = expected.lines().map(str::trim).filter(|line| !line.is_empty());
    let labelled = expected.map(|line| {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        match sample.split_once('{') {
            Some((name, labels)) => format!("{name}{{node=\"relay\",{labels} {value}"),
            None => format!("{sample}{{node=\"relay\"}} {value}"),
        }
    });
    labelled.into_iter().find(|sample| !text.lines().any(|line| line == sample))
}
