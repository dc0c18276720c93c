//! Tests of exemplars, with a real node and a real Prometheus server.

use std::collections::BTreeSet;

use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::fixture::exporter as usdt_exporter;
use crate::harness::node::Node;
use crate::harness::prometheus::Prometheus;

fn open_metrics(exporter: &Exporter) -> String {
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\
                   Connection: close\r\n\r\n";
    exporter.request(request).2
}

pub fn exemplar_of_a_bucket_is_its_last_block() {
    let miner = Node::start(&[]);
    miner.mine(1);
    let node = Node::start(&[&format!("-addnode=127.0.0.1:{}", miner.p2p_port)]);
    eventually("the node follows", || (node.cli(&["getblockcount"]) == "1").then_some(()));
    let exporter = usdt_exporter(node.pid(), &["--node-name", "follower"]);
    let mined: Vec<_> = (0..3)
        .map(|_| {
            let hash = miner.mine(1).remove(0);
            eventually("the block is followed", || exporter.log().contains(&hash).then_some(()));
            hash
        })
        .collect();

    let text = open_metrics(&exporter);
    let exemplars: Vec<_> = text.lines().filter_map(|line| line.split_once(" # {")).collect();
    for (sample, exemplar) in &exemplars {
        assert!(sample.contains("_bucket{"), "{sample}");
        let (labels, value) = exemplar.split_once("} ").unwrap();
        // OpenMetrics limits the label names and values of an exemplar to 128 characters in total.
        assert!(labels.chars().filter(|it| !"=\",".contains(*it)).count() <= 128, "{labels}");
        let value: f64 = value.split(' ').next().unwrap().parse().unwrap();
        let (_, bound) = sample.split_once("le=\"").unwrap();
        let bound = bound.split('"').next().unwrap();
        assert!(bound == "+Inf" || value <= bound.parse().unwrap(), "{sample} {exemplar}");
    }
    let families: BTreeSet<_> =
        exemplars.iter().map(|(sample, _)| sample.split_once("_bucket").unwrap().0).collect();
    for family in ["bitcoin_block_arrival_seconds", "bitcoin_block_tx_count", "bitcoin_block_sigops"] {
        assert!(families.contains(family), "{families:?}");
    }
    // All blocks have one transaction and are therefore in one bucket, whose exemplar must be the last block.
    let of_tx_count =
        exemplars.iter().find(|(sample, _)| sample.starts_with("bitcoin_block_tx_count")).unwrap();
    let labels = format!("block_height=\"4\",block_hash=\"{}\"}} 1 ", mined[2]);
    assert!(of_tx_count.1.starts_with(&labels), "{of_tx_count:?}");
    assert!(!exporter.metrics().contains(" # {"), "the older format has none");

    let prometheus = Prometheus::start(&format!(
        "scrape_configs: [{{job_name: usdt, scrape_interval: 1s, static_configs: [{{targets: ['{}']}}]}}]",
        exporter.address()
    ));
    let found = eventually("Prometheus has the exemplar", || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let query = format!(
            "query_exemplars?query=bitcoin_block_tx_count_bucket&start={}&end={}",
            now - 3600,
            now + 60
        );
        let series = prometheus.api(&query).unwrap();
        series.as_array()?.first()?["exemplars"].as_array()?.last().cloned()
    });
    assert_eq!(found["labels"]["block_hash"], mined[2].as_str());
    assert_eq!((&found["labels"]["block_height"], &found["value"]), (&"4".into(), &"1".into()));
}
