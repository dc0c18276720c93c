//! Tests that all samples that Prometheus scrapes arrive in VictoriaMetrics by remote write, also if VictoriaMetrics is
//! stopped for a time.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::node::Node;
use crate::harness::prometheus::{Prometheus, VictoriaMetrics};
use crate::{contrib, yaml};

/// The section `remote_write` of contrib/prometheus/remote-write.yml, with the URL of this VictoriaMetrics server and
/// without a password.
pub fn remote_write(store: &VictoriaMetrics) -> Value {
    let mut section = yaml(&contrib().join("prometheus/remote-write.yml"))["remote_write"].take();
    let settings = section[0].as_object_mut().unwrap();
    let (_, path) = settings["url"].as_str().unwrap().split_once(".org/").unwrap();
    settings["url"] = format!("http://{}/{path}", store.address()).into();
    settings.remove("basic_auth");
    section
}

/// The values of samples, by the labels of the series and the time in milliseconds since the Unix epoch.
type Samples = BTreeMap<(BTreeMap<String, String>, u64), f64>;

fn samples(answer: &Value) -> Samples {
    let mut all = Samples::new();
    for series in answer.as_array().unwrap() {
        let metric = series["metric"].as_object().unwrap().iter();
        let mut labels: BTreeMap<_, _> =
            metric.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_string())).collect();
        // Only the samples in VictoriaMetrics have this label, which is an external label of Prometheus.
        labels.remove("fleet");
        for sample in series["values"].as_array().unwrap() {
            let milliseconds = (sample[0].as_f64().unwrap() * 1000.0).round() as u64;
            let value: f64 = sample[1].as_str().unwrap().parse().unwrap();
            all.insert((labels.clone(), milliseconds), value);
        }
    }
    all
}

pub fn store_gets_all_samples_after_an_outage() {
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "1s"]).ready();
    let mut store = VictoriaMetrics::start();
    let mut config = yaml(&contrib().join("prometheus/remote-write.yml"));
    config["remote_write"] = remote_write(&store);
    config["global"]["scrape_interval"] = "1s".into();
    config.as_object_mut().unwrap().remove("rule_files");
    config.as_object_mut().unwrap().remove("alerting");
    config["scrape_configs"] = json!([{"job_name": "bitcoind-ipc", "static_configs": [
        {"targets": [exporter.address()], "labels": {"node": "mynode"}},
    ]}]);
    let prometheus = Prometheus::start(&config.to_string());
    let height = |answer: Value| answer[0]["value"][1].as_str().and_then(|value| value.parse::<u32>().ok());
    eventually("the store has the first samples", || {
        (height(store.query("bitcoin_chain_height")) == Some(0)).then_some(())
    });

    store.stop();
    for blocks in 1..=5 {
        node.mine(1);
        eventually("Prometheus has the next height", || {
            (height(prometheus.query("bitcoin_chain_height")) == Some(blocks)).then_some(())
        });
    }
    // This query returns all samples that Prometheus has scraped from the exporter, before and while VictoriaMetrics
    // was stopped.
    let ours = "{job=\"bitcoind-ipc\",__name__=~\"bitcoin_.*\"}[10m]";
    let scraped = samples(&prometheus.query(ours));
    store.start_again();
    // The comparison has a tolerance, because VictoriaMetrics stores fewer digits of a value than an f64 has.
    let is_close = |value: f64, stored: &f64| (value - stored).abs() <= 1e-9 * value.abs();
    let missing = |stored: &Samples| {
        let has = |at: &_, value: f64| stored.get(at).is_some_and(|stored| is_close(value, stored));
        scraped.iter().filter(|(at, value)| !has(at, **value)).count()
    };
    let mut last = 0;
    let arrived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("everything has arrived", || {
            last = missing(&samples(&store.query(ours)));
            (last == 0).then_some(())
        });
    }));
    assert!(arrived.is_ok(), "{last} of {} samples are missing", scraped.len());
    let heights: Vec<_> = scraped
        .iter()
        .filter(|((labels, _), _)| labels["__name__"] == "bitcoin_chain_height")
        .map(|(_, value)| *value as u32)
        .collect();
    assert!((0..=5).all(|height| heights.contains(&height)), "{heights:?}");
    // The samples in VictoriaMetrics must have Prometheus' external label `fleet`.
    assert_eq!(store.query("bitcoin_up")[0]["metric"]["fleet"], "bitcoin");
}
