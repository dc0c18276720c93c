//! Tests of notifications from a fake node, and of the metrics with each combination of IPC interfaces.

use std::time::{Duration, Instant};

use bitcoin::consensus::serialize;
use bitcoin::{Amount, Network, ScriptBuf, TxOut, blockdata::constants::genesis_block};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::fake::{Event, FakeNode, Offers};

/// The interfaces of Bitcoin Core's development branch with the Tracing interface.
const TRACING: Offers = Offers { mining: true, chain: true, node: true, tracing: true, ..Offers::NOTHING };

fn subscribed(node: &FakeNode, arguments: &[&str]) -> Exporter {
    let exporter = Exporter::start(&node.socket(), arguments).ready();
    exporter.wait_for("bitcoin_mempool_tx_added_total", 0.0);
    exporter
}

#[test]
fn every_callback_counts_what_it_must() {
    let node = FakeNode::start(TRACING);
    let mut exporter = subscribed(&node, &["--utxo-trace", "on"]);
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"active\"}", 1.0);
    let block = serialize(&genesis_block(Network::Bitcoin));
    let mut events = vec![Event::Added; 5];
    events.extend([0, 1, 2, 3, 4, 5, 5, 6, -1, i32::MAX].map(Event::Removed));
    events.extend((100..103).map(|height| Event::Connected { height, data: block.clone() }));
    events.push(Event::Connected { height: 103, data: Vec::new() });
    events.extend([Event::Disconnected(103), Event::Tip, Event::Tip, Event::Flushed]);
    events.extend([
        Event::Add(1),
        Event::Add(2_100_000_000_000_000),
        Event::Spend(7),
        Event::Uncache(0),
        Event::Uncache(-5),
    ]);
    let count = events.len();
    assert_eq!(node.fire(events), count);
    for (sample, expected) in [
        ("bitcoin_mempool_tx_added_total", 5.0),
        ("bitcoin_mempool_tx_removed_total{reason=\"expiry\"}", 1.0),
        ("bitcoin_mempool_tx_removed_total{reason=\"replaced\"}", 2.0),
        ("bitcoin_mempool_tx_removed_total{reason=\"other\"}", 3.0),
        ("bitcoin_blocks_connected_total", 4.0),
        ("bitcoin_blocks_disconnected_total", 1.0),
        ("bitcoin_block_height", 103.0),
        ("bitcoin_tip_updates_total", 2.0),
        ("bitcoin_chain_state_flushes_total", 1.0),
        ("bitcoin_connected_transactions_total", 3.0),
        ("bitcoin_connected_inputs_total", 0.0),
        ("bitcoin_connected_outputs_total", 3.0),
        ("bitcoin_connected_output_value_satoshis_total", 0.0),
        ("bitcoin_connected_weight_total", 0.0),
        ("bitcoin_connected_bytes_total", 0.0),
        ("bitcoin_utxo_cache_add_total", 2.0),
        ("bitcoin_utxo_cache_add_value_total", 2_100_000_000_000_001.0),
        ("bitcoin_utxo_cache_spend_total", 1.0),
        ("bitcoin_utxo_cache_spend_value_total", 7.0),
        ("bitcoin_utxo_cache_uncache_total", 2.0),
        ("bitcoin_utxo_cache_uncache_value_total", 0.0),
        ("bitcoin_exporter_callbacks_total{callback=\"blockConnected\"}", 4.0),
        ("bitcoin_exporter_callbacks_total{callback=\"utxoCacheAdd\"}", 2.0),
        ("bitcoin_exporter_callback_duration_seconds_count", count as f64),
    ] {
        exporter.wait_for(sample, expected);
    }
    assert!(exporter.terminate().success());
    eventually("both subscriptions ended", || (node.unsubscribed() == 2).then_some(()));
}

#[test]
fn block_of_four_megabytes_is_counted() {
    let node = FakeNode::start(TRACING);
    let exporter = subscribed(&node, &[]);
    let mut block = genesis_block(Network::Bitcoin);
    let filler =
        TxOut { value: Amount::from_sat(3), script_pubkey: ScriptBuf::from_bytes(vec![0x6a; 9_990]) };
    let mut transaction = block.txdata[0].clone();
    transaction.output.extend(vec![filler; 399]);
    let (bytes, weight) = (transaction.total_size() as f64, transaction.weight().to_wu() as f64);
    block.txdata.push(transaction);
    let data = serialize(&block);
    assert!((3_900_000..4_000_000).contains(&data.len()), "{}", data.len());
    assert_eq!(node.fire(vec![Event::Connected { height: 1, data: data.clone() }]), 1);
    exporter.wait_for("bitcoin_connected_bytes_total", bytes);
    exporter.wait_for("bitcoin_connected_weight_total", weight);
    exporter.wait_for("bitcoin_connected_outputs_total", 401.0);
    exporter.wait_for("bitcoin_connected_output_value_satoshis_total", 5_000_000_000.0 + 3.0 * 399.0);
}

#[test]
fn each_subset_of_interfaces_gives_what_it_can_and_nothing_else() {
    let none = Offers { ibd: true, ..Offers::default() };
    for (offers, present, absent) in [
        (
            Offers { core30: true, ..none },
            "bitcoin_chain_height 42|bitcoin_ibd 1|bitcoin_tip_updates_total 0",
            "bitcoin_mempool|bitcoin_blocks_connected",
        ),
        (
            Offers { mining: true, ..none },
            "bitcoin_chain_height 42|bitcoin_ibd 1",
            "bitcoin_mempool|bitcoin_peers",
        ),
        (
            Offers { rpc: true, ..none },
            "bitcoin_chain_height 42|bitcoin_mempool_size 3|bitcoin_ibd 1",
            "bitcoin_header_height|bitcoin_difficulty|bitcoin_verification_progress|bitcoin_mempool_fees|bitcoin_peers|bitcoin_tip_updates",
        ),
        (
            Offers { mining: true, rpc: true, ..none },
            "bitcoin_chain_height 42|bitcoin_blocks_connected_total 0",
            "bitcoin_mempool_tx_added",
        ),
        (
            Offers { chain: true, ..none },
            "bitcoin_chain_height 42|bitcoin_ibd 1|bitcoin_pruned 1|bitcoin_prune_height 10",
            "bitcoin_mempool",
        ),
        (
            Offers { mining: true, chain: true, ..none },
            "bitcoin_chain_height 42|bitcoin_mempool_tx_added_total 0",
            "bitcoin_peers|bitcoin_utxo",
        ),
        (
            Offers { mining: true, node: true, ..none },
            "bitcoin_header_height 44|bitcoin_peers 3|bitcoin_connections{direction=\"out\"} 2|bitcoin_mempool_size 17",
            "bitcoin_mempool_tx_added|bitcoin_mempool_bytes",
        ),
        (
            Offers { ibd: true, ..TRACING },
            "bitcoin_exporter_utxo_trace{state=\"ibd\"} 1|bitcoin_mempool_tx_added_total 0",
            "bitcoin_utxo_cache",
        ),
        (
            TRACING,
            "bitcoin_exporter_utxo_trace{state=\"active\"} 1|bitcoin_utxo_cache_add_total 0|bitcoin_peer_ping_seconds{percentile=\"50\"} 0.25\
            |bitcoin_peers_by{network=\"ipv6\",connection_type=\"block-relay-only\",transport=\"v2\"} 1|bitcoin_blocks_in_flight 2\
            |bitcoin_peers_largest_group{by=\"netgroup\",direction=\"out\"} 1|bitcoin_peers_largest_group{by=\"as\",direction=\"out\"} 1\
            |bitcoin_peers_groups{by=\"netgroup\",direction=\"out\"} 1|bitcoin_peers_addr_rate_limited 1\
            |bitcoin_p2p_message_bytes_total{direction=\"in\",type=\"block\"} 0|bitcoin_peers_clock_off{direction=\"ahead\"} 1|bitcoin_peers_clock_off{direction=\"behind\"} 0\
            |bitcoin_peers_ping_overdue 1|bitcoin_peers_ahead 1|bitcoin_peers_by_client{client=\"knots\",version=\"\"} 1\
            |bitcoin_peers_by_service{service=\"network\"} 1|bitcoin_peers_by_service{service=\"p2p_v2\"} 0\
            |bitcoin_addresses_rate_limited_total 0",
            "bitcoin_peer_min_ping|bitcoin_peers_low_fee_relay|bitcoin_peers_inv_to_send",
        ),
    ] {
        let node = FakeNode::start(offers);
        let exporter = Exporter::start(&node.socket(), &["--poll-interval", "100ms"]).ready();
        for line in present.split('|').map(str::trim) {
            eventually(line, || exporter.metrics().lines().any(|present| present == line).then_some(()));
        }
        let text = exporter.metrics();
        for name in absent.split('|') {
            assert!(!text.lines().any(|line| line.starts_with(name)), "{name} in {text}");
        }
    }
}

#[test]
fn chain_with_other_ordinals_is_not_used() {
    let node = FakeNode::start(Offers { other_chain: true, ..TRACING });
    let output = command().args(["--check"]).arg(node.socket()).output().unwrap();
    let described = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{described}");
    assert!(
        described.contains("schema of chain: unknown ordinals, so the interface is not used"),
        "{described}"
    );
    assert!(described.contains("interface chain    no"), "{described}");
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    assert_eq!(exporter.value("bitcoin_exporter_interface{interface=\"chain\"}"), None);
    assert_eq!(exporter.value("bitcoin_exporter_interface{interface=\"node\"}"), Some(1.0));
    let known = FakeNode::start(TRACING);
    let output = command().args(["--check"]).arg(known.socket()).output().unwrap();
    let described = String::from_utf8(output.stdout).unwrap();
    assert!(described.contains("schema of chain: ordinals of branch pr/trace"), "{described}");
}

#[test]
fn node_without_interfaces_is_rejected() {
    let node = FakeNode::start(Offers::default());
    let output = command().args(["--check"]).arg(node.socket()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("has none of the interfaces"), "{message}");
}

#[test]
fn absurd_values_are_shown_or_absent_and_never_wrap() {
    let node = FakeNode::start(Offers { absurd: true, ..TRACING });
    let exporter = subscribed(&node, &[]);
    for (sample, expected) in [
        ("bitcoin_chain_height", Some(f64::from(i32::MIN))),
        ("bitcoin_mempool_size", Some(u64::MAX as f64)),
        ("bitcoin_bytes_recv_total", None),
        ("bitcoin_bytes_sent_total", Some(i64::MAX as f64)),
        ("bitcoin_peers_by{network=\"other\",connection_type=\"other\",transport=\"other\"}", Some(1.0)),
        ("bitcoin_peers_by_version{version=\"other\"}", Some(1.0)),
        ("bitcoin_peer_ping_seconds{percentile=\"50\"}", None),
        ("bitcoin_peers_clock_off{direction=\"behind\"}", Some(1.0)),
        ("bitcoin_peers_ping_overdue", Some(0.0)),
        ("bitcoin_peers_largest_group{by=\"netgroup\",direction=\"out\"}", Some(0.0)),
    ] {
        assert_eq!(exporter.value(sample), expected, "{sample}");
    }
    assert_eq!(exporter.value("bitcoin_verification_progress"), None);
}

#[test]
fn one_failing_call_costs_only_its_own_metrics() {
    let node = FakeNode::start(TRACING);
    let exporter = subscribed(&node, &[]);
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
    assert_eq!(exporter.value("bitcoin_exporter_poll_failures_total{call=\"uptime\"}"), Some(0.0));
    for call in ["listbanned", "getnetworkinfo", "Node.getMempoolDynamicUsage"] {
        let failures = exporter.value(&format!("bitcoin_exporter_poll_failures_total{{call=\"{call}\"}}"));
        assert!(failures >= Some(1.0), "{call}: {failures:?}");
    }
    for (sample, expected) in [
        ("bitcoin_chain_height", 42.0),
        ("bitcoin_header_height", 44.0),
        ("bitcoin_mempool_size", 17.0),
        ("bitcoin_peers", 3.0),
        ("bitcoin_bytes_recv_total", 1234.0),
        ("bitcoin_peers_by_version{version=\"70016\"}", 1.0),
        ("bitcoin_blocks_connected_total", 0.0),
    ] {
        assert_eq!(exporter.value(sample), Some(expected), "{sample}");
    }
    for gone in ["bitcoin_banned", "bitcoin_warnings{kind=\"other\"}", "bitcoin_mempool_bytes"] {
        assert_eq!(exporter.value(gone), None, "{gone}");
    }
    // The node lacks the method getmempoolfeeratediagram, which the exporter must not count as a failure.
    let diagram = "bitcoin_exporter_poll_failures_total{call=\"getmempoolfeeratediagram\"}";
    assert_eq!(exporter.value(diagram), Some(0.0));
    assert!(!exporter.metrics().contains("bitcoin_mempool_feerate_"), "but its metrics are absent");
}

#[test]
fn failing_long_poll_is_retried_at_an_interval() {
    let node = FakeNode::start(Offers { tip_fails: true, ..TRACING });
    let exporter = subscribed(&node, &[]);
    eventually("the exporter retries", || (node.long_polls() >= 3).then_some(()));
    let (before, since) = (node.long_polls(), Instant::now());
    eventually("the exporter retries again", || (node.long_polls() >= before + 3).then_some(()));
    assert!(since.elapsed() > Duration::from_secs(2), "one a second: three in {:?}", since.elapsed());
    assert_eq!(exporter.log().matches("cannot wait for a new tip").count(), 1);
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
}

#[test]
fn trace_runs_only_outside_initial_block_download() {
    let node = FakeNode::start(Offers { ibd: true, ..TRACING });
    let exporter = subscribed(&node, &["--poll-interval", "50ms"]);
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"ibd\"}", 1.0);
    assert_eq!(node.fire(vec![Event::Add(1)]), 0);
    node.set_ibd(false);
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"active\"}", 1.0);
    assert_eq!(node.fire(vec![Event::Add(1)]), 1);
    exporter.wait_for("bitcoin_utxo_cache_add_total", 1.0);
    node.set_ibd(true);
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"ibd\"}", 1.0);
    eventually("the trace was unsubscribed", || (node.unsubscribed() == 1).then_some(()));
    assert_eq!(node.fire(vec![Event::Add(1)]), 0);
}

#[test]
fn trace_over_budget_stays_off() {
    let node = FakeNode::start(TRACING);
    let exporter = subscribed(&node, &["--utxo-trace-budget", "1ms", "--poll-interval", "50ms"]);
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"active\"}", 1.0);
    node.fire(vec![Event::Add(1); 2000]);
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"over_budget\"}", 1.0);
    eventually("the trace was unsubscribed", || (node.unsubscribed() == 1).then_some(()));
    assert_eq!(exporter.value("bitcoin_utxo_cache_add_total"), None);
    exporter.wait_for_polls(3.0);
    assert_eq!(node.fire(vec![Event::Add(1), Event::Added]), 1, "only the chain's notifications are left");
    assert_eq!(exporter.log().matches("is now disabled").count(), 1);
}

#[test]
fn node_shutdown_ends_subscriptions_first() {
    let node = FakeNode::start(TRACING);
    let mut exporter = subscribed(&node, &["--exit-with-node"]);
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"active\"}", 1.0);
    node.shut_down();
    assert!(exporter.ended().success());
    eventually("both subscriptions ended", || (node.unsubscribed() == 2).then_some(()));
}

#[test]
fn sigterm_during_callbacks_never_leaves_a_callback_behind() {
    let node = FakeNode::start(TRACING);
    for _ in 0..10 {
        let mut exporter = subscribed(&node, &["--utxo-trace", "on"]);
        std::thread::scope(|scope| {
            scope.spawn(|| node.fire(vec![Event::Added; 3000]));
            std::thread::sleep(Duration::from_millis(30));
            assert!(exporter.terminate().success());
        });
    }
}

/// Kills the exporter after random delays, so short that some exporters are still starting. The delays are pseudorandom
/// numbers with a fixed seed, and therefore the same in each run of the test.
#[test]
fn sudden_death_of_the_exporter_never_harms_the_node() {
    let node = FakeNode::start(TRACING);
    let mut random = 0x5eed_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                node.fire(vec![Event::Added, Event::Add(1), Event::Tip]);
            }
        });
        for run in 0..100 {
            let exporter = Exporter::start(&node.socket(), &["--utxo-trace", "on", "--poll-interval", "5ms"]);
            let signals = [Signal::SIGKILL, Signal::SIGABRT];
            if run % 2 == 0 {
                eventually("the exporter is subscribed", || exporter.value("bitcoin_mempool_tx_added_total"));
            }
            std::thread::sleep(Duration::from_micros(next(120_000)));
            exporter.signal(signals[next(2) as usize]);
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    eventually("the node is unsubscribed", || {
        (node.fire(vec![Event::Added, Event::Add(1)]) == 0).then_some(())
    });
    assert!(
        node.unsubscribed() >= 50,
        "half of them lived long enough to subscribe: {}",
        node.unsubscribed()
    );
}

#[test]
fn stopped_exporter_does_not_block_the_node() {
    let node = FakeNode::start(TRACING);
    let exporter = subscribed(&node, &[]);
    exporter.signal(Signal::SIGSTOP);
    let (transactions, blocks) = (10_000, 100);
    let data = serialize(&genesis_block(Network::Bitcoin));
    let mut events = vec![Event::Added; transactions];
    events.extend((0..blocks).map(|height| Event::Connected { height, data: data.clone() }));
    // The fake node makes each callback after the response to the previous callback. The exporter is stopped, and all
    // responses therefore come from its guard process.
    let count = events.len();
    assert_eq!(node.fire(events), count);
    exporter.signal(Signal::SIGCONT);
    exporter.wait_for("bitcoin_mempool_tx_added_total", transactions as f64);
    exporter.wait_for("bitcoin_blocks_connected_total", f64::from(blocks));
    exporter.wait_for("bitcoin_connected_transactions_total", f64::from(blocks));
    for event in ["callback", "block_contents"] {
        let dropped = format!("bitcoin_exporter_events_dropped_total{{event=\"{event}\"}}");
        assert_eq!(exporter.value(&dropped), Some(0.0));
    }
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
}

#[test]
fn trace_budget_holds_for_a_stopped_exporter() {
    let node = FakeNode::start(TRACING);
    let exporter = subscribed(&node, &["--utxo-trace-budget", "1ms"]);
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"active\"}", 1.0);
    exporter.signal(Signal::SIGSTOP);
    assert!(node.fire(vec![Event::Add(1); 5000]) < 5000);
    assert_eq!(node.fire(vec![Event::Add(1), Event::Added]), 1);
    exporter.signal(Signal::SIGCONT);
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"over_budget\"}", 1.0);
    exporter.wait_for("bitcoin_mempool_tx_added_total", 1.0);
}

#[test]
fn unread_log_lines_are_dropped_and_counted() {
    let node = FakeNode::start(TRACING);
    let mut command = command();
    command.arg(node.socket()).args(["--debug", "--log", "text", "--utxo-trace", "on"]);
    let exporter = Exporter::spawn_and_read(&mut command, 1000).ready();
    exporter.wait_for("bitcoin_exporter_utxo_trace{state=\"active\"}", 1.0);
    let events = 30_000;
    assert_eq!(node.fire(vec![Event::Add(1); events]), events);
    exporter.wait_for("bitcoin_utxo_cache_add_total", events as f64);
    let dropped = exporter.value("bitcoin_exporter_log_lines_dropped_total").unwrap();
    assert!((1.0..=events as f64).contains(&dropped), "{dropped}");
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
}

#[test]
fn replacement_guard_disconnects_for_a_killed_one() {
    let node = FakeNode::start(TRACING);
    let exporter = subscribed(&node, &["--utxo-trace", "on"]);
    for kills in 1..=3 {
        eventually("the exporter has both subscriptions", || {
            (node.fire(vec![Event::Added, Event::Add(1)]) == 2).then_some(())
        });
        kill(exporter.guard().unwrap(), Signal::SIGKILL).unwrap();
        eventually("the node is unsubscribed", || (node.unsubscribed() == 2 * kills).then_some(()));
    }
    exporter.wait_for("bitcoin_up", 1.0);
    assert!(exporter.log().contains("guard killed by signal 9"), "{}", exporter.log());
}

#[test]
fn http_has_low_priority_and_guard_short_timeslices() {
    let node = FakeNode::start(TRACING);
    let exporter = subscribed(&node, &[]);
    let process = |pid: Pid| procfs::process::Process::new(pid.as_raw()).unwrap();
    let nice = |pid| {
        let threads = process(pid).tasks().unwrap().flatten();
        threads.map(|thread| thread.stat().unwrap()).map(|it| (it.comm, it.nice)).collect::<Vec<_>>()
    };
    let usual = process(getpid()).stat().unwrap().nice;
    for (thread, nice) in nice(exporter.pid()) {
        assert_eq!(nice, if thread == "http" { (usual + 10).min(19) } else { usual }, "{thread}");
    }
    let guard = exporter.guard().unwrap();
    assert_eq!(nice(guard)[0].1, usual);
    // Since Linux 6.12, a process can set the length of its CPU time slice. The guard must have a time slice of 100 µs.
    let slice = |pid: Pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/sched")).ok()?;
        text.lines().find(|line| line.starts_with("se.slice"))?.rsplit(' ').next()?.parse::<u64>().ok()
    };
    if procfs::KernelVersion::current().unwrap() >= procfs::KernelVersion::new(6, 12, 0) {
        assert!(slice(guard).is_none_or(|it| it == 100_000), "{:?}", slice(guard));
    } else {
        eprintln!("SKIPPED: this kernel does not support setting the time slice of a process");
    }
}
