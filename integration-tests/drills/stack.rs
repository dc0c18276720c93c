//! The monitoring programs of a drill (a fault injection test of the alerts): Prometheus with the shipped rules,
//! Alertmanager with the shipped routes, and a webhook that receives the alerts. The durations of rules and routes are
//! divided by the drill's factor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::eventually;
use crate::harness::peer::unix_time;
use crate::harness::prometheus::{Alertmanager, Prometheus};
use crate::harness::webhook::webhook;
use crate::scale;

/// Name of the shipped alert that always fires.
const WATCHDOG: &str = "BitcoinWatchdog";

/// Interval of Prometheus' scrapes and rule evaluations, and of the exporters' polls.
pub const INTERVAL: &str = "250ms";

fn contrib() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib")
}

fn yaml(path: &Path) -> Value {
    serde_yaml_ng::from_slice(&std::fs::read(path).unwrap())
        .unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// A target that Prometheus scrapes.
#[derive(Clone)]
pub struct Target {
    pub job: &'static str,
    pub address: String,
    pub labels: BTreeMap<String, String>,
}

impl Target {
    pub fn new(job: &'static str, address: &str, node: &str) -> Self {
        Target { job, address: address.into(), labels: [("node".into(), node.into())].into() }
    }

    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }
}

/// An alert in a notification to the webhook.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alert {
    pub name: String,
    pub severity: String,
    /// Name of the Alertmanager receiver that the routes select for the alert.
    pub receiver: String,
    /// Value of the label `node`. Empty if the alert lacks the label.
    pub node: String,
}

impl fmt::Debug for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, to {}) of {:?}", self.name, self.severity, self.receiver, self.node)
    }
}

/// An alert that the webhook has received, with the time and the contents of the first notification about this alert.
#[derive(Clone)]
pub struct Received {
    pub alert: Alert,
    pub at: Instant,
    pub labels: Value,
    pub annotations: Value,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {} {}", self.alert, self.annotations["summary"], self.labels)
    }
}

/// The monitoring programs of a drill, and the alerts that the webhook has received.
pub struct Stack {
    pub prometheus: Prometheus,
    pub alertmanager: Alertmanager,
    messages: Mutex<Receiver<Value>>,
    received: Mutex<Vec<Received>>,
    watchdog: AtomicBool,
    factor: u32,
    dir: TempDir,
}

impl Stack {
    /// Starts the monitoring programs. `relabeling` are Prometheus' relabel rules for samples. `authority` is the file
    /// with the certificate of the authority that signed the exporters' certificates.
    pub fn start(factor: u32, targets: &[Target], relabeling: &[Value], authority: Option<&Path>) -> Self {
        let (url, messages) = webhook();
        let dir = TempDir::new().unwrap();
        for file in std::fs::read_dir(contrib().join("prometheus/rules")).unwrap() {
            let path = file.unwrap().path();
            let rules = scale::rules(yaml(&path), factor).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            std::fs::write(dir.path().join(path.file_name().unwrap()), rules.to_string()).unwrap();
        }
        write_targets(dir.path(), targets);
        let alertmanager = Alertmanager::start(&alertmanager_config(&url, factor).to_string());
        let mut config = prometheus_config(dir.path(), &alertmanager.address(), relabeling);
        if let Some(authority) = authority {
            config["scrape_configs"][0]["tls_config"] = json!({"ca_file": authority});
        }
        // The durations in Prometheus' command-line options are also divided by the drill's factor.
        let scaled = |text: &str| scale::duration(text, factor).unwrap();
        let prometheus = Prometheus::start_with(
            &config.to_string(),
            &[
                &format!("--query.lookback-delta={}", scaled("5m")),
                &format!("--rules.alert.for-outage-tolerance={}", scaled("1h")),
                &format!("--rules.alert.for-grace-period={}", scaled("10m")),
                &format!("--rules.alert.resend-delay={}", scaled("1m")),
            ],
        );
        let (messages, received) = (Mutex::new(messages), Mutex::default());
        Stack { prometheus, alertmanager, messages, received, watchdog: false.into(), factor, dir }
    }

    /// Replaces the targets that Prometheus scrapes.
    pub fn set_targets(&self, targets: &[Target]) {
        write_targets(self.dir.path(), targets);
    }

    /// The real time that this number of simulated minutes takes.
    pub fn minutes(&self, minutes: f64) -> Duration {
        Duration::from_secs_f64(minutes * 60.0 / f64::from(self.factor))
    }

    /// Converts a duration of real time into simulated minutes.
    pub fn in_minutes(&self, span: Duration) -> f64 {
        span.as_secs_f64() * f64::from(self.factor) / 60.0
    }

    /// Waits for this duration of real time, and records the arrival times of alerts at the webhook.
    pub fn wait(&self, span: Duration) {
        let end = Instant::now() + span;
        while Instant::now() < end {
            self.received();
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// All alerts that the webhook has received, including the alerts of the receiver `nobody`, for which the shipped
    /// configuration sends no notifications.
    pub fn received(&self) -> Vec<Received> {
        let mut received = self.received.lock().unwrap();
        for message in self.messages.lock().unwrap().try_iter() {
            for alert in message["alerts"].as_array().unwrap() {
                let label = |name: &str| alert["labels"][name].as_str().unwrap_or_default().to_string();
                let new = Alert {
                    name: label("alertname"),
                    severity: label("severity"),
                    receiver: message["receiver"].as_str().unwrap().into(),
                    node: label("node"),
                };
                if new.name == WATCHDOG {
                    self.watchdog.store(true, Relaxed);
                    continue;
                }
                if alert["status"] == "firing" && !received.iter().any(|it| it.alert == new) {
                    let (labels, annotations) = (alert["labels"].clone(), alert["annotations"].clone());
                    received.push(Received { alert: new, at: Instant::now(), labels, annotations });
                }
            }
        }
        received.clone()
    }

    /// Whether the webhook has received the watchdog alert since the last call of this function.
    pub fn watchdog_arrived(&self) -> bool {
        self.received();
        self.watchdog.swap(false, Relaxed)
    }

    /// Discards the alert about missing scrape targets. This alert fires at the start of each drill, because Prometheus
    /// reads its targets only five seconds of real time after its start.
    pub fn discard_startup_alert(&self) {
        const ALERT: &str = "BitcoinNothingScraped";
        eventually("the alert about missing targets has ended", || {
            (!self.alerts("firing").iter().any(|it| it.starts_with(ALERT))).then_some(())
        });
        // Wait a simulated minute, because Alertmanager may send a notification about the alert after the alert has
        // ended in Prometheus.
        std::thread::sleep(self.minutes(1.0));
        self.received();
        self.received.lock().unwrap().retain(|it| it.alert.name != ALERT);
    }

    /// Adds alert or recording rules to Prometheus without dividing the durations in them by the drill's factor, and
    /// restarts Prometheus.
    pub fn add_rules(&mut self, rules: &str) {
        std::fs::write(self.dir.path().join("more.yml"), rules).unwrap();
        self.prometheus.stop();
        let restarted = unix_time() + 1;
        self.prometheus.start_again();
        // Prometheus reads its targets some seconds of real time after its start.
        eventually("targets are scraped again", || {
            let scraped =
                self.prometheus.query(&format!("timestamp(up{{job=~\"bitcoind-.*\"}}) > {restarted}"));
            (scraped != json!([])).then_some(())
        });
    }

    /// The names and nodes of the alerts that have this state (`firing` or `pending`) in Prometheus.
    pub fn alerts(&self, state: &str) -> BTreeSet<String> {
        let alerts = self.prometheus.query(&format!("ALERTS{{alertstate=\"{state}\"}}"));
        let label = |it: &Value, name: &str| it["metric"][name].as_str().unwrap_or_default().to_string();
        let text = |it| format!("{} {}", label(it, "alertname"), label(it, "node"));
        let texts = alerts.as_array().unwrap().iter().map(text);
        texts.filter(|it| !it.starts_with(WATCHDOG)).collect()
    }

    /// A text with the failed scrapes, the slowest scrapes and the last error of each target, for a failed test.
    pub fn failed_scrapes(&self) -> String {
        let failed = self.prometheus.query("count_over_time((up == 0)[1h:250ms]) > 0");
        let slowest = self.prometheus.query("topk(3, max_over_time(scrape_duration_seconds[1h]))");
        let targets = self.prometheus.api("targets").unwrap();
        let errors: Vec<_> = targets["activeTargets"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|it| it["lastError"] != "")
            .map(|it| format!("{}: {}", it["scrapeUrl"], it["lastError"]))
            .collect();
        format!("failed {failed}, slowest {slowest}, last errors {errors:#?}")
    }

    /// Waits until Prometheus has scraped each target successfully at least once. The targets need not be up at the
    /// same time, because on a busy machine some scrapes fail.
    pub fn wait_for_targets(&self, number: usize) {
        eventually("every target is scraped", || {
            let up = self.prometheus.query("count(max_over_time(up{job=~\"bitcoind-.*\"}[1m]) == 1)");
            (up[0]["value"][1].as_str() == Some(number.to_string().as_str())).then_some(())
        });
    }
}

/// The shipped configuration of Alertmanager, with all durations divided by the drill's factor. Each receiver sends its
/// notifications to the webhook.
fn alertmanager_config(webhook: &str, factor: u32) -> Value {
    let mut config = scale::routes(yaml(&contrib().join("alertmanager/alertmanager.yml")), factor).unwrap();
    for receiver in config["receivers"].as_array_mut().unwrap() {
        receiver["webhook_configs"] = json!([{"url": webhook, "send_resolved": false}]);
    }
    config
}

/// The shipped configuration of Prometheus with the rules and targets in the folder `dir`.
fn prometheus_config(dir: &Path, alertmanager: &str, relabeling: &[Value]) -> Value {
    let mut config = yaml(&contrib().join("prometheus/prometheus.yml"));
    config["global"]["scrape_interval"] = INTERVAL.into();
    config["global"]["scrape_timeout"] = INTERVAL.into();
    config["global"]["evaluation_interval"] = INTERVAL.into();
    config["rule_files"] = json!([dir.join("*.yml")]);
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"][0] = alertmanager.into();
    for job in config["scrape_configs"].as_array_mut().unwrap() {
        for key in ["scrape_interval", "scrape_timeout"] {
            job.as_object_mut().unwrap().remove(key);
        }
        if job.get("file_sd_configs").is_some() {
            let file = dir.join(format!("{}.json", job["job_name"].as_str().unwrap()));
            job["file_sd_configs"] = json!([{"files": [file]}]);
        }
        // The jobs with static targets scrape Prometheus and Alertmanager.
        let own = job.get_mut("static_configs").and_then(Value::as_array_mut);
        for target in own.into_iter().flatten() {
            for address in target["targets"].as_array_mut().unwrap() {
                let port = address.as_str().unwrap().rsplit(':').next().unwrap();
                *address = if port == "9093" { alertmanager.into() } else { "{address}".into() };
            }
        }
        let own = job["metric_relabel_configs"].as_array().cloned().unwrap_or_default();
        job["metric_relabel_configs"] = own.into_iter().chain(relabeling.iter().cloned()).collect();
    }
    config
}

fn write_targets(dir: &Path, targets: &[Target]) {
    for job in ["bitcoind-ipc", "bitcoind-usdt"] {
        let of_job = targets.iter().filter(|it| it.job == job);
        let entries: Vec<_> =
            of_job.map(|it| json!({"targets": [it.address], "labels": it.labels})).collect();
        // The file is written under another name and then renamed, because Prometheus must not read an incomplete file.
        let (new, file) = (dir.join(format!("{job}.new")), dir.join(format!("{job}.json")));
        std::fs::write(&new, Value::from(entries).to_string()).unwrap();
        std::fs::rename(new, file).unwrap();
    }
}
