//! Tests of all metrics that the exporter derives from the JSON-RPC results of each version of Bitcoin Core.
//!
//! The file `integration-tests/answers/core-28.json` has the JSON-RPC results of Bitcoin Core 28 and the expected
//! metrics. The file of each later version is a merge patch (RFC 7396) for the file of the previous version. Unlike in
//! RFC 7396, an object in a patch is applied to each element if the patched value is an array. The fields of the
//! results are those in `src/rpc/*.cpp` at the commits where the release branches began, and the values are invented.
//! The file `knots-29.json` has the user agent and the service bit 26 of Bitcoin Knots 29.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::exporter::command;
use crate::harness::fake_http::{FakeHttp, Mode};

const VERSIONS: [&str; 5] = [
    include_str!("../answers/core-28.json"),
    include_str!("../answers/core-29.json"),
    include_str!("../answers/core-30.json"),
    include_str!("../answers/core-31.json"),
    include_str!("../answers/core-32.json"),
];

const KNOTS_29: &str = include_str!("../answers/knots-29.json");

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Array(elements), Value::Object(_)) => {
            elements.iter_mut().for_each(|element| merge(element, patch));
        }
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                match change {
                    Value::Null => assert!(fields.remove(name).is_some(), "there is no {name} to remove"),
                    _ => merge(fields.entry(name).or_insert(Value::Null), change),
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// The samples about the node that the exporter prints with `--once`, by sample name.
fn polled(http: &FakeHttp) -> BTreeMap<String, f64> {
    let output = command().args(http.arguments()).arg("--once").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let samples =
        text.lines().filter(|line| line.starts_with("bitcoin_") && !line.starts_with("bitcoin_exporter_"));
    let samples = samples.map(|line| line.rsplit_once(' ').unwrap());
    let mut samples: BTreeMap<_, f64> =
        samples.map(|(name, value)| (name.to_string(), value.parse().unwrap())).collect();
    // The node's start time depends on the current time, and is therefore compared with it here.
    let start = samples.remove("bitcoin_node_start_time_seconds").unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let uptime = samples["bitcoin_node_uptime_seconds"];
    assert!((now - 3600.0..=now).contains(&(start + uptime)), "{start}");
    samples
}

#[test]
fn each_version_exports_its_metrics_only() {
    let mut version = Value::Object(Default::default());
    for (changes, number) in VERSIONS.into_iter().zip(28..) {
        merge(&mut version, &serde_json::from_str(changes).unwrap());
        exports_its_metrics_only(&version, &format!("Core {number}"));
        if number == 29 {
            let mut knots = version.clone();
            merge(&mut knots, &serde_json::from_str(KNOTS_29).unwrap());
            exports_its_metrics_only(&knots, "Knots 29");
        }
    }
}

fn exports_its_metrics_only(version: &Value, name: &str) {
    let http = FakeHttp::start(Mode::Answers(version["answers"].clone().into()));
    let shown = polled(&http);
    let expected = version["metrics"].as_object().unwrap().iter();
    let expected: BTreeMap<_, _> =
        expected.map(|(name, value)| (name.clone(), value.as_f64().unwrap())).collect();
    let differs = |one: &BTreeMap<String, f64>, other: &BTreeMap<String, f64>| {
        let differs = one.iter().filter(|(name, value)| other.get(*name) != Some(value));
        differs.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>()
    };
    let (wrong, missing) = (differs(&shown, &expected), differs(&expected, &shown));
    assert!(
        wrong.is_empty() && missing.is_empty(),
        "{name} shows\n{}\nand not\n{}",
        wrong.join("\n"),
        missing.join("\n")
    );
}
