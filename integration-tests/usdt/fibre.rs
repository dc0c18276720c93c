//! Tests of every metric from FIBRE's tracepoints, which the program `fixture.c` fires with known values.

use tempfile::TempDir;

use crate::harness::eventually;
use crate::{assert_samples, compile, fibre};

const NAME_A: &str = "10.0.0.1:8334";

pub fn every_fibre_metric_is_what_was_fired() {
    let (_dir, mut fixture, exporter) = fibre(&["-DDETAIL"]);
    fixture.fire(&format!("reconstructed {NAME_A} 5 7 2 1000")); // The duration is a bound of a histogram bucket.
    fixture.fire(&format!("reconstructed {NAME_A} 6000 7000 2 1001"));
    fixture.fire("reconstructed b 1 1 1 20000000");
    fixture.fire("send");
    fixture.fire(&format!("winner 800000 FIBRE/UDP {NAME_A}"));
    fixture.fire(&format!("winner 800001 BIP152/CMPCTBLOCK {NAME_A}"));
    fixture.fire("winner 800002 CARRIER/PIGEON n/a");
    fixture.fire("winner 800003 FIBRE/UDPX n/a");
    fixture.fire("time 800000 1000000 a 26000000 b"); // FIBRE/UDP has the time that is shorter by 25 ms.
    fixture.fire("time 800001 30000000000 a 29000000000 b"); // The compact block has the time that is shorter by 1 s.
    fixture.fire("time 800002 -1 n/a 5000000 b");
    fixture.fire("time 799999 5000001 a -1 n/a");
    fixture.fire("detail 0 0 2500 2500 1");
    fixture.fire("detail 3 1234 2497 2500 0");
    assert_samples(
        &exporter,
        r#"
        fibre_blocks_reconstructed_total 3
        fibre_chunks_used_total 6006
        fibre_chunks_received_total 7008
        fibre_block_reconstruction_duration_seconds_sum 20.002001
        fibre_block_reconstruction_duration_seconds_count 3
        fibre_block_reconstruction_duration_seconds_bucket{le="0.001"} 1
        fibre_block_reconstruction_duration_seconds_bucket{le="0.005"} 2
        fibre_block_reconstruction_duration_seconds_bucket{le="10.0"} 2
        fibre_block_reconstruction_duration_seconds_bucket{le="+Inf"} 3
        fibre_block_chunks_used_sum 6006.0
        fibre_block_chunks_used_bucket{le="1.0"} 1
        fibre_block_chunks_used_bucket{le="2.0"} 1
        fibre_block_chunks_used_bucket{le="5.0"} 2
        fibre_block_chunks_used_bucket{le="5000.0"} 2
        fibre_block_chunks_used_bucket{le="+Inf"} 3
        fibre_blocks_sent_total 1
        fibre_block_race_wins_total{mechanism="fibre_udp"} 1
        fibre_block_race_wins_total{mechanism="bip152_cmpct"} 1
        fibre_block_race_wins_total{mechanism="other"} 2
        fibre_block_deliveries_total{mechanism="fibre_udp",peer="10.0.0.1:8334"} 1
        fibre_block_deliveries_total{mechanism="bip152_cmpct",peer="10.0.0.1:8334"} 1
        fibre_block_deliveries_total{mechanism="other",peer="n/a"} 2
        fibre_block_race_latency_seconds_count{mechanism="fibre_udp"} 3
        fibre_block_race_latency_seconds_sum{mechanism="fibre_udp"} 30.006000001
        fibre_block_race_latency_seconds_bucket{le="0.001",mechanism="fibre_udp"} 1
        fibre_block_race_latency_seconds_bucket{le="0.005",mechanism="fibre_udp"} 1
        fibre_block_race_latency_seconds_bucket{le="0.01",mechanism="fibre_udp"} 2
        fibre_block_race_latency_seconds_count{mechanism="bip152_cmpct"} 3
        fibre_block_race_latency_seconds_sum{mechanism="bip152_cmpct"} 29.031
        fibre_races_with_both_total 2
        fibre_race_margin_seconds_sum{winner="fibre_udp"} 0.025
        fibre_race_margin_seconds_bucket{le="0.01",winner="fibre_udp"} 0
        fibre_race_margin_seconds_bucket{le="0.025",winner="fibre_udp"} 1
        fibre_race_margin_seconds_sum{winner="bip152_cmpct"} 1.0
        fibre_race_margin_seconds_bucket{le="0.5",winner="bip152_cmpct"} 0
        fibre_race_margin_seconds_bucket{le="1.0",winner="bip152_cmpct"} 1
        fibre_last_block_height 799999
        fibre_block_missing_tx_count_sum 3.0
        fibre_block_missing_tx_count_bucket{le="0.0"} 1
        fibre_block_missing_tx_count_bucket{le="1.0"} 1
        fibre_block_missing_tx_count_bucket{le="2.0"} 1
        fibre_block_missing_tx_count_bucket{le="5.0"} 2
        fibre_block_missing_tx_bytes_bucket{le="500.0"} 1
        fibre_block_missing_tx_bytes_bucket{le="5000.0"} 2
        fibre_block_missing_tx_bytes_sum 1234.0
        fibre_block_mempool_tx_count_sum 4997.0
        fibre_block_all_tx_from_mempool_total 1
        fibre_exporter_up 1
        fibre_exporter_probes_attached 5
        fibre_exporter_events_processed_total{event_type="block_reconstructed"} 3
        fibre_exporter_events_processed_total{event_type="block_send_start"} 1
        fibre_exporter_events_processed_total{event_type="block_race_winner"} 4
        fibre_exporter_events_processed_total{event_type="block_race_time"} 4
        fibre_exporter_events_processed_total{event_type="block_reconstruction_detail"} 2
        fibre_exporter_errors_total{error_type="argument"} 0
        fibre_exporter_errors_total{error_type="unreadable"} 0
        fibre_exporter_errors_total{error_type="lost"} 0
        "#,
    );
    let hash = fixture_hash();
    for line in [
        format!("block reconstructed from FIBRE/UDP block_hash=\"{hash}\" source=\"{NAME_A}\" chunks_used=5"),
        format!(
            "block race won block_height=800000 block_hash=\"{hash}\" mechanism=\"fibre_udp\" peer=\"{NAME_A}\""
        ),
        format!("block race block_height=800002 block_hash=\"{hash}\" udp_ns=-1"),
        format!(
            "where a block's transactions came from block_hash=\"{hash}\" transactions=2500 from_mempool=2497 missing=3 \
             missing_bytes=1234"
        ),
    ] {
        eventually(&line, || exporter.log().contains(&line).then_some(()));
    }
}

pub fn node_without_reconstruction_detail_lacks_its_metrics() {
    let (_dir, mut fixture, exporter) = fibre(&[]);
    fixture.fire("send");
    assert_samples(
        &exporter,
        "fibre_blocks_sent_total 1\nfibre_exporter_probes_attached 4\nfibre_blocks_reconstructed_total 0",
    );
    let text = exporter.metrics();
    for absent in
        ["fibre_block_missing", "fibre_block_all_tx", "bitcoin_blocks_connected", "fibre_last_block_height"]
    {
        assert!(!text.contains(&format!("\n{absent}")), "{absent} in {text}");
    }
}

pub fn newest_fibre_tracepoint_arguments_are_read() {
    let (_dir, mut fixture, exporter) = fibre(&["-DDETAIL", "-DNEWEST"]);
    fixture.fire("reconstructed a 5 7 2 1000 800003");
    assert_samples(&exporter, "fibre_last_block_height 800003\nfibre_block_chunks_used_sum 5.0");
    fixture.fire("header_chunk 10 30 2000 2000000"); // The arguments are in microseconds.
    fixture.fire("header_chunk 11 0 0 0");
    assert_samples(
        &exporter,
        r#"
        fibre_exporter_probes_attached 9
        fibre_block_header_chunk_duration_seconds_bucket{le="0.00001",stage="queue"} 1
        fibre_block_header_chunk_duration_seconds_bucket{le="0.000025",stage="queue"} 2
        fibre_block_header_chunk_duration_seconds_sum{stage="queue"} 0.000021
        fibre_block_header_chunk_duration_seconds_sum{stage="maps"} 0.00003
        fibre_block_header_chunk_duration_seconds_sum{stage="chunks"} 0.002
        fibre_block_header_chunk_duration_seconds_sum{stage="finish"} 2.0
        fibre_block_header_chunk_duration_seconds_bucket{le="1.0",stage="finish"} 1
        fibre_block_header_chunk_duration_seconds_count{stage="finish"} 2
        fibre_exporter_events_processed_total{event_type="block_header_chunk"} 2
        fibre_exporter_errors_total{error_type="argument"} 0
        fibre_exporter_errors_total{error_type="unreadable"} 0
        "#,
    );
    let line = format!(
        "block reconstructed from FIBRE/UDP block_height=800003 block_hash=\"{}\" source=\"a\"",
        fixture_hash()
    );
    eventually(&line, || exporter.log().contains(&line).then_some(()));

    let mut list = crate::command();
    list.args(["--tracepoints", "fibre,net", "--list-probes", "--pid", &fixture.pid().to_string()]);
    let output = list.stdout(std::process::Stdio::piped()).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let not_read: Vec<_> = table.lines().filter(|line| line.ends_with(" not supported")).collect();
    assert_eq!(not_read.len(), 1, "{table}");
    let words: Vec<_> = not_read[0].split_whitespace().take(3).collect();
    assert_eq!(words, ["udp:block_coinbase", "yes", "no"], "{table}");
}

pub fn log_writer_thread_is_traced() {
    let (_dir, mut fixture, exporter) = fibre(&["-DNEWEST"]);
    // Two writes to debug.log and a request to reopen it are queued and executed. Then two writes are executed that
    // were queued before the exporter attached to the node.
    for line in [
        "log_queued 254 1",
        "log_queued 255 2",
        "log_queued 256 127",
        "log_started 254 1",
        "log_completed 254 1 2",
        "log_started 255 2",
        "log_completed 255 2 1",
        "log_started 256 7",
        "log_completed 256 7 0",
        "log_started 3 1",
        "log_completed 3 1 0",
        "log_completed 4 1 0",
    ] {
        fixture.fire(line);
    }
    assert_samples(
        &exporter,
        r#"
        bitcoin_log_queued_total 3
        bitcoin_log_queue_depth_sum 130.0
        bitcoin_log_queue_depth_bucket{le="1.0"} 1
        bitcoin_log_queue_depth_bucket{le="126.0"} 2
        bitcoin_log_queue_depth_bucket{le="127.0"} 3
        bitcoin_log_queue_wait_seconds_count 3
        bitcoin_log_operations_total{kind="write"} 3
        bitcoin_log_operations_total{kind="reopen"} 1
        bitcoin_log_operations_total{kind="other"} 1
        bitcoin_log_operation_duration_seconds_count{kind="write"} 2
        bitcoin_log_operation_duration_seconds_count{kind="reopen"} 1
        fibre_exporter_errors_total{error_type="argument"} 0
        "#,
    );
}

pub fn last_block_is_the_last_seen_by_any_tracepoint() {
    let (_dir, mut fixture, exporter) = fibre(&["-DNEWEST", "-DSTANDARD"]);
    fixture.fire("block 800000 1 1000");
    assert_samples(&exporter, "fibre_last_block_height 800000");
    fixture.fire("reconstructed a 5 7 2 1000 800001");
    fixture.fire("reconstructed a 5 7 2 1000 -1"); // The height is -1 if the node does not have the parent block.
    assert_samples(&exporter, "fibre_last_block_height 800001");
    fixture.fire("block 800001 2 1000");
    fixture.fire("winner 800002 FIBRE/UDP a");
    assert_samples(&exporter, "fibre_last_block_height 800002");
    fixture.fire("time 800003 1 a 2 b");
    assert_samples(&exporter, "fibre_last_block_height 800003");
    // A reorg to a lower height must decrease the gauge of the last block's height.
    fixture.fire("block 800001 3 1000");
    assert_samples(
        &exporter,
        "fibre_last_block_height 800001\nfibre_exporter_events_processed_total{event_type=\"block_connected\"} 3",
    );
}

pub fn restarted_node_does_not_finish_what_the_last_one_queued() {
    let (dir, mut fixture, exporter) = fibre(&["-DNEWEST"]);
    fixture.fire("log_queued 1 1");
    fixture.fire("log_queued 2 1");
    fixture.fire("log_started 1 1");
    assert_samples(&exporter, "bitcoin_log_queue_wait_seconds_count 1");
    drop(fixture);
    eventually("the exporter notices the exit of the node", || {
        (exporter.get("/ready").0 == 503).then_some(())
    });
    let mut fixture = crate::Fixture::start(&compile(dir.path(), &["-DNEWEST"]));
    eventually("the exporter attaches to the new node", || (exporter.get("/ready").0 == 200).then_some(()));
    // For writes to debug.log that the node queued before the exporter attached to the node, the exporter does not know
    // when the wait began, and must not export a waiting time.
    fixture.fire("log_completed 1 1 0");
    fixture.fire("log_started 2 1");
    fixture.fire("log_completed 2 1 0");
    assert_samples(
        &exporter,
        "bitcoin_log_operations_total{kind=\"write\"} 2\nbitcoin_log_queue_wait_seconds_count 1\n\
         bitcoin_log_operation_duration_seconds_count{kind=\"write\"} 1",
    );
}

pub fn negative_durations_are_not_observed() {
    let (_dir, mut fixture, exporter) = fibre(&["-DDETAIL", "-DSTANDARD"]);
    fixture.fire("reconstructed a 5 7 2 1000");
    fixture.fire("reconstructed a 5 7 2 -1000");
    fixture.fire("standard 1 2 3 4 5000000 inv text");
    fixture.fire("standard 2 2 -1 4 -3600000000 inv text"); // -1: value of a coin that is already spent
    assert_samples(
        &exporter,
        r#"
        fibre_blocks_reconstructed_total 2
        fibre_block_reconstruction_duration_seconds_count 1
        fibre_block_reconstruction_duration_seconds_sum 0.001
        bitcoin_utxo_cache_flush_duration_seconds_count 1
        bitcoin_utxo_cache_flush_duration_seconds_sum 5.0
        bitcoin_utxo_cache_add_total 2
        bitcoin_utxo_cache_add_value_total 3
        bitcoin_utxo_cache_spend_value_total 3
        bitcoin_utxo_cache_uncache_value_total 3
        bitcoin_blocks_connected_total 2
        bitcoin_block_inputs_count 1
        bitcoin_block_inputs_sum 3.0
        "#,
    );
}

/// The hash that the program `fixture.c` passes to the tracepoints, as Bitcoin Core prints it.
fn fixture_hash() -> String {
    (0..32u8).rev().map(|byte| format!("{byte:02x}")).collect()
}

pub fn million_events_from_four_threads_are_counted() {
    let (_dir, mut fixture, exporter) = fibre(&[]);
    fixture.fire("repeat 4 250000 send");
    fixture.fire("repeat 4 25000 winner 7 FIBRE/UDP somebody");
    fixture.fire("repeat 4 25000 reconstructed somebody 3 4 1 2000");
    assert_samples(
        &exporter,
        r#"
        fibre_blocks_sent_total 1000000
        fibre_block_race_wins_total{mechanism="fibre_udp"} 100000
        fibre_block_deliveries_total{mechanism="fibre_udp",peer="somebody"} 100000
        fibre_blocks_reconstructed_total 100000
        fibre_chunks_used_total 300000
        fibre_chunks_received_total 400000
        fibre_block_reconstruction_duration_seconds_sum 200.0
        fibre_block_reconstruction_duration_seconds_bucket{le="0.005"} 100000
        "#,
    );
}

pub fn labels_from_peers_are_bounded() {
    let (_dir, mut fixture, exporter) = fibre(&[]);
    for peer in 0..300 {
        fixture.fire(&format!("winner 1 FIBRE/UDP peer-{peer}"));
    }
    fixture.fire(&format!("winner 1 BIP152/CMPCTBLOCK {}", "x".repeat(120)));
    let deliveries = |sample: &str, number| {
        assert_samples(&exporter, &format!("fibre_block_deliveries_total{{mechanism={sample}}} {number}"));
    };
    assert_samples(&exporter, "fibre_block_race_wins_total{mechanism=\"fibre_udp\"} 300");
    deliveries("\"fibre_udp\",peer=\"other\"", 45);
    deliveries("\"fibre_udp\",peer=\"peer-299\"", 1);
    let (onion, next) = (format!("{}.onion:18333", "o".repeat(56)), "peer-300");
    for peer in [&onion, next, next] {
        fixture.fire(&format!("winner 1 FIBRE/UDP {peer}"));
    }
    deliveries("\"fibre_udp\",peer=\"other\"", 47);
    deliveries("\"fibre_udp\",peer=\"peer-300\"", 2);
    deliveries(&format!("\"fibre_udp\",peer=\"{onion}\""), 1);
    assert_eq!(exporter.metrics().matches("\nfibre_block_deliveries_total{").count(), 256 + 1);
}

pub fn binary_without_probes_is_rejected_with_a_hint() {
    let dir = TempDir::new().unwrap();
    let fixture = crate::Fixture::start(&compile(dir.path(), &["-DNONE"]));
    let pid = fixture.pid().to_string();
    let output = crate::command()
        .args(["--health-port", "0", "--metrics-addr", "127.0.0.1:0", "--pid", &pid])
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        message.contains("ERROR: No USDT probes could be attached.") && message.contains("readelf -n"),
        "{message}"
    );
}

pub fn probe_with_unreadable_argument_costs_only_itself() {
    let (_dir, mut fixture, exporter) = fibre(&["-DUNREADABLE"]);
    fixture.fire("send");
    fixture.fire("winner 1 FIBRE/UDP somebody");
    assert_samples(
        &exporter,
        "fibre_exporter_probes_attached 3\nfibre_block_race_wins_total{mechanism=\"fibre_udp\"} 1",
    );
    assert!(!exporter.metrics().contains("fibre_blocks_sent_total"));
    let pid = fixture.pid().to_string();
    let mut list = crate::command();
    list.args(["--tracepoints", "fibre", "--list-probes", "--pid", &pid]);
    let output = list.stdout(std::process::Stdio::piped()).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let mut lines = table.lines().skip_while(|line| !line.starts_with("udp:block_send_start"));
    let sent: Vec<_> = lines.next().unwrap().split_whitespace().take(3).collect();
    assert_eq!(sent, ["udp:block_send_start", "yes", "no"], "{table}");
    let reason = lines.next().unwrap().trim();
    assert!(
        reason.contains("@sent(%rip) cannot be read") || reason.contains("sent] cannot be read"),
        "{table}"
    );
    assert_eq!(table.matches("cannot be read").count(), 1, "{table}");
}
