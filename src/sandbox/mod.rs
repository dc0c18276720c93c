//! The sandbox of each process: a system call filter (seccomp), and rules for files and ports (Landlock).
//!
//! Neither needs privileges. A call that is not on the list fails with EPERM, so that a missing entry breaks one feature and does not kill
//! the process. If the kernel or the container lacks one of the two, it is logged once.
//!
//! `calls` has the system call lists with their reasons, `files` the rules for files and ports.

mod calls;
mod files;

use std::sync::Mutex;

use tracing::{debug, warn};

#[cfg(feature = "usdt")]
pub use calls::UsdtNeeds;
pub use files::AllowedFiles;

/// Option that turns the sandbox of a process on or off.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum SandboxMode {
    /// Use all parts that the kernel supports.
    On,
    /// No sandbox, to debug the exporter.
    Off,
}

/// The parts of the sandbox, and whether each one is active.
static PARTS: Mutex<Vec<(&str, bool)>> = Mutex::new(Vec::new());

/// The parts of the sandbox, and whether each one is active; empty before [`Confinement::filter`].
pub fn parts() -> Vec<(&'static str, bool)> {
    PARTS.lock().expect("nobody panics holding it").clone()
}

/// Builder that applies the sandbox in two steps. File rules come first, before the process has threads. The system call filter comes last,
/// when the process serves requests.
pub struct Confinement {
    sandbox: SandboxMode,
    /// The parts that could not be applied, with the reasons.
    missing: Vec<String>,
    parts: Vec<(&'static str, bool)>,
}

impl Confinement {
    /// Starts without any restriction.
    pub fn new(sandbox: SandboxMode) -> Self {
        Confinement { sandbox, missing: Vec::new(), parts: Vec::new() }
    }

    /// Restricts this thread, and threads that it starts later, to these files and ports.
    pub fn files(mut self, files: &AllowedFiles) -> Self {
        if self.sandbox == SandboxMode::On {
            let confined = files.confine();
            self.add("landlock", confined);
        }
        self
    }

    /// Restricts all threads to the system calls of the IPC exporter, which may write a block log.
    pub fn ipc_exporter(self, writes_block_log: bool) {
        self.filter(|| calls::ipc_exporter(writes_block_log));
    }

    /// Restricts all threads to the system calls of the USDT exporter.
    #[cfg(feature = "usdt")]
    pub fn usdt_exporter(self, needs: UsdtNeeds) {
        self.filter(|| calls::usdt_exporter(needs));
    }

    fn filter(mut self, list: impl FnOnce() -> calls::Result<calls::SyscallList>) {
        if self.sandbox == SandboxMode::Off {
            warn!("the sandbox is off (--sandbox off)");
            self.parts = vec![("seccomp", false), ("landlock", false)];
        } else {
            let filtered = list().and_then(calls::SyscallList::apply).map(|()| None);
            self.add("seccomp", filtered.map_err(|error| error.to_string()));
            match self.missing.is_empty() {
                true => debug!("the sandbox is on"),
                false => {
                    warn!("the sandbox is incomplete: {}; continuing without", self.missing.join("; "))
                }
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

/// Restricts a guard to reading and writing its open sockets. Nothing is logged, because the exporter logs the same.
pub fn confine_guard() {
    let _ = calls::guard().and_then(calls::SyscallList::apply);
}
