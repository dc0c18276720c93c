//! The permissions of each process once it runs: a filter of system calls (seccomp) and rules for files and ports (Landlock).
//!
//! Both need no privilege. A call that is not on the list fails with EPERM: an oversight costs a feature and not the
//! process. A kernel or a container without one of the parts costs one log line.
//!
//! `calls` has the lists with their reasons, `files` the rules for files and ports.

mod calls;
mod files;

use std::sync::Mutex;

use tracing::{debug, warn};

pub use files::AllowedFiles;

/// Whether to confine the process.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum SandboxMode {
    /// With what the kernel has.
    On,
    /// Not at all, to debug the exporter.
    Off,
}

/// Whether each part is in force.
static PARTS: Mutex<Vec<(&str, bool)>> = Mutex::new(Vec::new());

/// Each part of the sandbox, and whether it is in force; nothing before [`Confinement::filter`].
pub fn parts() -> Vec<(&'static str, bool)> {
    PARTS.lock().expect("nobody panics holding it").clone()
}

/// A process that is being confined: files first, before it has threads, calls last, when it serves.
pub struct Confinement {
    sandbox: SandboxMode,
    /// The missing parts, and why.
    missing: Vec<String>,
    parts: Vec<(&'static str, bool)>,
}

impl Confinement {
    /// Nothing is confined yet.
    pub fn new(sandbox: SandboxMode) -> Self {
        Confinement { sandbox, missing: Vec::new(), parts: Vec::new() }
    }

    /// Confines this thread and those that it starts to these files and ports.
    pub fn files(mut self, files: &AllowedFiles) -> Self {
        if self.sandbox == SandboxMode::On {
            let confined = files.confine();
            self.add("landlock", confined);
        }
        self
    }

    /// Confines all threads to the system calls of an exporter that asks nodes over IPC and HTTP.
    pub fn ipc_exporter(self) {
        self.filter(calls::ipc_exporter);
    }

    /// Confines all threads to the system calls of the exporter of tracepoints, which may write a block log, and remove the file of
    /// its own Unix socket.
    #[cfg(feature = "usdt")]
    pub fn usdt_exporter(self, writes_block_log: bool, removes_socket: bool) {
        self.filter(|| calls::usdt_exporter(writes_block_log, removes_socket));
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

/// Confines a guard, which reads and writes on the sockets that it has. Nothing is logged: the exporter logs the same.
pub fn confine_guard() {
    let _ = calls::guard().and_then(calls::SyscallList::apply);
}
