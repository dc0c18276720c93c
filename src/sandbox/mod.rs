//! The sandbox: restrictions that a process applies to itself, to limit the damage if an attacker takes over the
//! process. It consists of a filter of system calls (seccomp), and in the IPC exporter also of rules for files and TCP
//! ports (Landlock).
//!
//! A process needs no privileges to apply the sandbox. A system call that is not on the allow-list fails with EPERM
//! instead of killing the process, so an entry that is missing by mistake breaks only one feature. If the kernel or the
//! container does not support seccomp or Landlock, the exporter logs the missing restrictions once. The sandboxed
//! processes are the two exporters and the guard, a separate process of the IPC exporter that has the connection to the
//! node and relays the exporter's calls.
//!
//! `calls` contains the lists of system calls with the reason for each entry, `files` the rules for files and TCP
//! ports.

mod calls;
mod files;

use std::sync::Mutex;

use tracing::{debug, warn};

pub use calls::{SyscallList, ipc_exporter};
#[cfg(feature = "usdt")]
pub use calls::{UsdtNeeds, usdt_exporter};
pub use files::AllowedFiles;

/// Value of the option `--sandbox`, which turns the sandbox on or off.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum SandboxMode {
    /// Use all parts that the kernel supports.
    On,
    /// No sandbox, to debug the exporter.
    Off,
}

/// The value that [`parts`] returns.
static PARTS: Mutex<Vec<(&str, bool)>> = Mutex::new(Vec::new());

/// Names of the parts of the sandbox (`seccomp`, `landlock`), and whether each part is active in this process, for the
/// metric `bitcoin_exporter_sandbox`. Empty until the system call filter has been applied.
pub fn parts() -> Vec<(&'static str, bool)> {
    PARTS.lock().expect("nobody panics holding it").clone()
}

/// Builder that applies the sandbox to an exporter's process in two steps. The first step, which the USDT exporter
/// omits, applies the rules for files and ports, before the process starts threads, because the rules apply only to the
/// calling thread and to threads that it starts later. The second step applies the system call filter, when the process
/// is ready to serve requests.
pub struct Confinement {
    sandbox: SandboxMode,
    /// Descriptions of the restrictions that could not be applied, with the reasons.
    missing: Vec<String>,
    parts: Vec<(&'static str, bool)>,
}

impl Confinement {
    /// Creates a builder without restricting the process.
    pub fn new(sandbox: SandboxMode) -> Self {
        Confinement { sandbox, missing: Vec::new(), parts: Vec::new() }
    }

    /// Restricts the calling thread, and threads that it starts later, to these files and ports.
    pub fn files(mut self, files: &AllowedFiles) -> Self {
        if self.sandbox == SandboxMode::On {
            let confined = files.confine();
            self.add("landlock", confined);
        }
        self
    }

    /// Restricts all threads of the process to the system calls of the list.
    pub fn filter(mut self, list: SyscallList) {
        if self.sandbox == SandboxMode::Off {
            warn!("the sandbox is off (--sandbox off)");
            self.parts = vec![("seccomp", false), ("landlock", false)];
        } else {
            let filtered = list.apply().map(|()| None);
            self.add("seccomp", filtered.map_err(|error| error.to_string()));
            if self.missing.is_empty() {
                debug!("the sandbox is on");
            } else {
                warn!(
                    "the sandbox is incomplete: {}; continuing without these restrictions",
                    self.missing.join("; ")
                );
            }
        }
        *PARTS.lock().expect("nobody panics holding it") = self.parts;
    }

    fn add(&mut self, part: &'static str, confined: Result<Option<String>, String>) {
        self.parts.push((part, confined.is_ok()));
        match confined {
            Ok(missing) => self.missing.extend(missing),
            Err(why) => self.missing.push(format!("no {part} ({why})")),
        }
    }
}

/// Restricts this process, a guard, to the system calls for its open sockets. If the kernel rejects the filter, the
/// guard does not log the error, because the kernel also rejects the exporter's filter for the same reason, and the
/// exporter logs this reason.
pub fn confine_guard() {
    let _ = calls::guard().apply();
}
