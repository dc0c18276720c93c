//! Metrics about the exporter's own process, whose values are read at the scrape: the `process_*` metrics of Prometheus
//! client libraries, from `/proc/self`, and metrics about the exporter's log, TLS certificate, sandbox (the limits on
//! its system calls and files) and block store (the PostgreSQL database to which the exporter forwards rows).

use std::sync::LazyLock;

use procfs::WithCurrentSystemInfo;
use procfs::process::Process;

use crate::metrics::{Family, counter, gauge, now};
use crate::node_process::cpu_seconds;
use crate::{block_store, logging, sandbox, tls};

const PROC: &[&str] = &["/proc/self"];
const EXPORTER: &[&str] = &["the exporter"];

/// Time of the first use of this variable, in Unix seconds. Both exporters use this variable at startup, and its value
/// is therefore exported as the start time. The start time in `/proc/self/stat` is not used, because it is relative to
/// the boot time in `/proc/stat`, which a service with `ProcSubset=pid` cannot read.
pub static STARTED: LazyLock<f64> = LazyLock::new(now);

/// The metric families about the exporter's own process. Families whose values come from `/proc/self` have no samples
/// if `/proc` cannot be read.
#[rustfmt::skip]
pub fn families() -> Vec<Family> {
    let process = Process::myself().ok();
    let stat = process.as_ref().and_then(|process| process.stat().ok());
    let open_fds = process.as_ref().and_then(|process| process.fd_count().ok());
    let mut families = vec![
        counter("process_cpu_seconds_total", "CPU time of the exporter, user and system", PROC)
            .value_if_known(stat.as_ref().map(cpu_seconds)),
        gauge("process_resident_memory_bytes", "Resident memory of the exporter", PROC)
            .value_if_known(stat.as_ref().map(|stat| stat.rss_bytes().get() as f64)),
        gauge("process_open_fds", "Open file descriptors of the exporter", PROC).value_if_known(open_fds.map(|fds| fds as f64)),
        gauge("process_start_time_seconds", "Start time of the exporter, Unix seconds", EXPORTER).value(*STARTED),
        counter("bitcoin_exporter_log_lines_dropped_total",
            "Log lines not written because stderr, the journal or the log file was too slow or failed", EXPORTER)
            .value(logging::dropped_lines()),
        gauge("bitcoin_exporter_certificate_expiry_timestamp_seconds",
            "Expiry time of the certificate that the exporter serves, Unix seconds; absent without TLS", EXPORTER)
            .value_if_known(tls::first_expiry()),
        gauge("bitcoin_exporter_sandbox",
            "1 if this part of the sandbox, `seccomp` or `landlock`, is in force, otherwise 0", EXPORTER)
            .by(&["part"]).samples(sandbox::parts().into_iter().map(|(part, on)| ([part], f64::from(u8::from(on))))),
    ];
    families.extend(block_store::families());
    families
}
