//! Checks whether this process has the capabilities and this kernel has the features that tracing needs. The errors
//! name the remedy.

use anyhow::{Context, Result, anyhow};

/// Linux capabilities that a process needs to attach BPF programs to tracepoints, each with its bit number.
const CAPABILITIES: [(&str, u32); 2] = [("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// An error that names the missing capabilities and the remedy; `None` if no capability is missing.
pub(super) fn missing() -> Option<anyhow::Error> {
    let have = effective();
    let missing: Vec<_> =
        CAPABILITIES.iter().filter(|(_, bit)| have >> bit & 1 == 0).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return None;
    }
    Some(anyhow!(
        "{} missing. Run as root, or set AmbientCapabilities={} with systemd, or run setcap {}=ep once on this binary",
        missing.join(" and "),
        CAPABILITIES.map(|(name, _)| name).join(" "),
        CAPABILITIES.map(|(name, _)| name.to_lowercase()).join(",")
    ))
}

/// Whether this process can read the binary paths of other users' processes, which requires `CAP_SYS_PTRACE`.
pub(super) fn sees_other_users() -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    effective() >> CAP_SYS_PTRACE & 1 == 1
}

/// The effective capabilities of this process, one bit for each.
fn effective() -> u64 {
    let status = procfs::process::Process::myself().and_then(|it| it.status());
    status.map_or(0, |status| status.capeff)
}

/// Checks that this kernel has the features that tracing needs.
///
/// # Errors
/// The kernel lacks a feature; the error names it.
pub fn check_kernel() -> Result<()> {
    const UPROBES: &str = "/sys/bus/event_source/devices/uprobe/type";
    std::fs::metadata(UPROBES).with_context(|| {
        format!("this kernel has no uprobes (CONFIG_UPROBE_EVENTS); use Linux 5.10 or later with uprobes ({UPROBES})")
    })?;
    Ok(())
}
