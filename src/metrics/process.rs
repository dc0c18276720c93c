//! The exporter's own process: the metrics that Prometheus client libraries share, from `/proc/self`, its log, and the
//! certificate that it serves.

use std::sync::LazyLock;

use procfs::WithCurrentSystemInfo;
use procfs::process::Process;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::declare::Declare;
use super::now;
use crate::node_process::cpu_seconds;
use crate::{logging, sandbox, tls};

const CPU: (&str, &str) = ("process_cpu_seconds_total", "CPU time of the exporter, user and system");
const RESIDENT: (&str, &str) = ("process_resident_memory_bytes", "Resident memory of the exporter");
const OPEN_FDS: (&str, &str) = ("process_open_fds", "Open file descriptors of the exporter");
const START: (&str, &str) = ("process_start_time_seconds", "Start of the exporter, Unix seconds");
const LOG_DROPPED: (&str, &str) = (
    "bitcoin_exporter_log_lines_dropped_total",
    "Log lines that were not written because stderr, the journal or the log file took them too slowly or failed",
);

const CERTIFICATE_EXPIRY: (&str, &str) = (
    "bitcoin_exporter_certificate_expiry_timestamp_seconds",
    "When the certificate that the exporter serves expires, Unix seconds; absent without TLS",
);
const SANDBOX: (&str, &str) = (
    "bitcoin_exporter_sandbox",
    "1 if this part of the exporter's sandbox is in force, else 0: `seccomp`, `landlock`",
);

/// When the metrics were declared, which a process does first. `/proc/stat` has the time of boot, from which the start
/// of each process counts, but a service does not see it (`ProcSubset=pid`).
static STARTED: LazyLock<f64> = LazyLock::new(now);

pub(super) fn declare(d: &mut Declare) {
    LazyLock::force(&STARTED);
    for (kind, (name, help)) in [("counter", CPU), ("gauge", RESIDENT), ("gauge", OPEN_FDS)] {
        d.row(name, kind, &[], help, "/proc/self");
    }
    d.row(START.0, "gauge", &[], START.1, "the exporter");
    d.row(LOG_DROPPED.0, "counter", &[], LOG_DROPPED.1, "the exporter");
    d.row(CERTIFICATE_EXPIRY.0, "gauge", &[], CERTIFICATE_EXPIRY.1, "the exporter");
    d.row(SANDBOX.0, "gauge", &["part"], SANDBOX.1, "the exporter");
    d.registry.register_collector(Box::new(ProcSelf));
}

#[derive(Debug)]
struct ProcSelf;

impl Collector for ProcSelf {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let parts = sandbox::parts();
        if !parts.is_empty() {
            let help = format!("{}.", SANDBOX.1);
            let mut family = encoder.encode_descriptor(SANDBOX.0, &help, None, MetricType::Gauge)?;
            for (part, is_in_force) in parts {
                let gauge = ConstGauge::new(i64::from(is_in_force));
                gauge.encode(family.encode_family(&[("part", part)])?)?;
            }
        }
        let mut show = |(name, help): (&str, &str), metric: &dyn EncodeMetric| {
            let stem = name.strip_suffix("_total").unwrap_or(name);
            metric.encode(encoder.encode_descriptor(stem, &format!("{help}."), None, metric.metric_type())?)
        };
        show(LOG_DROPPED, &ConstCounter::new(logging::dropped_lines()))?;
        show(START, &ConstGauge::new(*STARTED))?;
        if let Some(expires) = tls::first_expiry() {
            show(CERTIFICATE_EXPIRY, &ConstGauge::new(expires))?;
        }
        // Without /proc (a hidepid mount, say) there is nothing more to show.
        let Ok(process) = Process::myself() else { return Ok(()) };
        if let Ok(stat) = process.stat() {
            show(CPU, &ConstCounter::new(cpu_seconds(&stat)))?;
            show(RESIDENT, &ConstGauge::new(stat.rss_bytes().get() as i64))?;
        }
        if let Ok(fds) = process.fd_count() {
            show(OPEN_FDS, &ConstGauge::new(fds as i64))?;
        }
        Ok(())
    }
}
