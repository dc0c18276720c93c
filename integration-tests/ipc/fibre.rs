//! Tests of the metrics about FIBRE's UDP peers, with a fake node that has FIBRE and with nodes without FIBRE.

use crate::exporter::Exporter;
use crate::fake::{FakeNode, Offers};
use crate::{eventually, node};

const FAST: [&str; 2] = ["--poll-interval", "50ms"];
const POLLS: &str = "bitcoin_exporter_poll_duration_seconds_count";

fn polled_often(exporter: &Exporter) {
    eventually("ten polls", || exporter.value(POLLS).filter(|polls| *polls >= 10.0));
}

#[test]
fn peers_are_shown_by_group_and_without_their_addresses() {
    let offers = Offers { mining: true, chain: true, node: true, fibre: true, ..Offers::NOTHING };
    let node = FakeNode::start(offers);
    let exporter = Exporter::start(&node.socket(), &FAST).ready();
    for (sample, value) in [
        ("bitcoin_fibre_peers{group=\"0\"}", 0.0),
        ("bitcoin_fibre_peers{group=\"2\"}", 1.0),
        ("bitcoin_fibre_peers_connected{group=\"2\"}", 1.0),
        ("bitcoin_fibre_peers_trusted{group=\"2\"}", 1.0),
        ("bitcoin_fibre_peer_round_trip_seconds{group=\"2\",statistic=\"minimum\"}", 0.0105),
        ("bitcoin_fibre_peer_round_trip_seconds{group=\"2\",statistic=\"mean\"}", 0.015125),
        ("bitcoin_fibre_peer_round_trip_seconds{group=\"2\",statistic=\"maximum\"}", 0.02025),
    ] {
        exporter.wait_for(sample, value);
    }
    let silence = exporter.value("bitcoin_fibre_peer_silence_seconds{group=\"2\"}").unwrap();
    assert!((0.0..60.0).contains(&silence), "{silence}: milliseconds are not taken for seconds");
    polled_often(&exporter);
    assert!(node.getudppeerinfo_calls() >= 10, "{}", node.getudppeerinfo_calls());
    let text = exporter.metrics();
    assert!(!text.contains("192.0.2.1"), "{text}");
    node.shut_down();
    eventually("the metrics of the peers are removed with the node", || {
        (!exporter.metrics().contains("\nbitcoin_fibre_peer")).then_some(())
    });
}

#[test]
fn unknown_method_is_called_once() {
    let offers = Offers { mining: true, chain: true, node: true, ..Offers::NOTHING };
    let fake = FakeNode::start(offers);
    let real = node::Node::start(&[]);
    let [of_fake, of_real] =
        [fake.socket(), real.socket()].map(|socket| Exporter::start(&socket, &FAST).ready());
    for exporter in [&of_fake, &of_real] {
        polled_often(exporter);
        assert!(!exporter.metrics().contains("\nbitcoin_fibre_peer"), "{}", exporter.metrics());
        let failures = "bitcoin_exporter_poll_failures_total{call=\"getudppeerinfo\"}";
        assert_eq!(exporter.value(failures), Some(0.0));
    }
    assert_eq!(fake.getudppeerinfo_calls(), 1);
}
