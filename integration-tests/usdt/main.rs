//! The USDT exporter as a user runs it: the binary, on the real kernel, beside a program with FIBRE's tracepoints and
//! beside a real bitcoin-node with the standard ones.
//!
//! Needs root, or the capabilities that the exporter needs. A machine that cannot do BPF skips these tests and says so.

mod block_log;
mod blocks;
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
        fibre::a_node_without_reconstruction_detail_has_no_metrics_of_it,
        fibre::the_newest_form_of_fibres_tracepoints_is_read,
        fibre::the_last_block_is_the_one_that_was_seen_last_whatever_saw_it,
        fibre::the_thread_that_writes_the_log_is_watched,
        fibre::restarted_node_does_not_finish_what_the_last_one_queued,
        fibre::negative_durations_are_not_observed,
        fibre::a_million_events_from_four_threads_are_counted_exactly,
        fibre::what_peers_choose_does_not_grow_the_page,
        fibre::a_probe_with_an_argument_that_cannot_be_read_costs_only_itself,
        fibre::a_binary_without_probes_is_refused_with_a_hint,
        lifecycle::a_node_that_restarts_is_attached_again_and_the_counts_go_on,
        lifecycle::another_node_of_the_same_binary_is_not_taken_for_the_next_one,
        lifecycle::an_exporter_that_was_started_first_waits_for_the_node,
        lifecycle::an_exporter_that_is_killed_leaves_the_node_running_and_untraced,
        lifecycle::two_exporters_on_one_node_count_each_for_itself,
        lifecycle::several_nodes_are_waited_for_until_one_is_left,
        restarts::a_stopped_node_is_attached_again,
        restarts::a_killed_node_is_attached_again,
        restarts::an_upgraded_node_is_attached_again,
        restarts::a_node_that_daemonizes_is_attached_and_not_its_parent,
        restarts::a_child_that_runs_a_command_is_not_the_node,
        restarts::processes_that_end_at_once_are_not_the_node,
        restarts::two_nodes_named_by_process_never_swap_names,
        restarts::two_nodes_named_by_data_directory_never_swap_names,
        lifecycle::the_old_options_ask_for_a_password_and_the_health_port_does_not,
        settings::each_source_of_settings_comes_before_the_next,
        settings::who_configures_it_as_fibre_exporter_is_found_where_that_was,
        settings::the_log_is_written_to_a_file_too_and_is_as_quiet_as_asked,
        core_tracepoints::a_real_node_with_a_peer_is_counted_as_it_counts_itself,
        core_tracepoints::rejected_transactions_are_counted_by_reason,
        core_tracepoints::long_rejections_are_told_apart,
        core_tracepoints::full_table_of_rejections_removes_the_least_recent,
        core_tracepoints::peers_that_reconnect_at_once_are_counted_as_the_node_does,
        core_tracepoints::connections_from_before_the_exporter_are_counted,
        core_tracepoints::the_table_of_probes_says_what_the_binary_has,
        blocks::check_of_the_database_counts_no_block,
        blocks::check_at_startup_and_background_validation_count_no_block,
        blocks::compact_blocks_are_counted_as_the_node_logs_them,
        blocks::three_peers_that_announce_one_block_are_told_apart,
        blocks::a_block_that_came_otherwise_is_no_compact_block,
        blocks::a_sync_of_two_thousand_headers_announces_nothing,
        blocks::a_peer_that_invents_blocks_displaces_nobody_elses,
        blocks::what_the_node_itself_says_of_a_block_is_what_is_counted,
        blocks::a_flush_of_the_utxo_cache_that_a_block_waits_for_is_told,
        block_log::each_block_is_a_row_that_can_be_read_while_others_are_written,
        block_log::a_broken_file_is_said_once_and_another_one_is_begun_in_its_place,
        block_log::a_file_that_is_no_block_log_is_refused_at_the_start,
    ];
    let without = tests![
        lifecycle::several_nodes_are_listed_and_none_is_guessed,
        lifecycle::wrong_input_is_explained,
        lifecycle::what_cannot_be_printed_ends_no_exporter,
        lifecycle::a_closed_stderr_is_no_panic,
        settings::wrong_settings_are_explained_with_their_names,
    ];
    // Only root can start a process without privileges, or mount.
    let as_root = tests![
        lifecycle::without_privilege_it_says_which_are_missing,
        lifecycle::a_node_is_named_by_its_unit,
        lifecycle::a_journal_that_is_not_read_stops_nothing,
        block_log::another_user_reads_it_without_the_right_to_write,
        block_log::times_are_right_in_a_time_namespace,
        block_log::a_full_disk_is_said_once_and_costs_no_row,
    ];
    let as_root = as_root
        .into_iter()
        .map(|test| test.with_ignored_flag(cannot || !nix::unistd::Uid::effective().is_root()));
    let with_bpf = with_bpf.into_iter().map(|test| test.with_ignored_flag(cannot));
    libtest_mimic::run(&Arguments::from_args(), with_bpf.chain(as_root).chain(without).collect()).exit_code()
}

/// A fixture with or without `udp:block_reconstruction_detail`, and an exporter beside it.
fn fibre(options: &[&str]) -> (TempDir, Fixture, Exporter) {
    let dir = TempDir::new().unwrap();
    let fixture = Fixture::start(&compile(dir.path(), options));
    let exporter = exporter(fixture.pid(), &["--node-name", "relay"]);
    (dir, fixture, exporter)
}

/// Waits for these samples, given without the `node` label: `name{a="b"} 1`. What is counted from events follows them.
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

/// The first of these samples that is not in the text.
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
