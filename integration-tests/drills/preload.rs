//! Starts nodes with the library `preload.c` in LD_PRELOAD, which injects a fault into the node.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::node::bitcoin_node;

/// A script that starts `bitcoin-node` with the library `preload.c` in LD_PRELOAD, and with the environment variable
/// that selects a fault.
pub struct Faulty {
    dir: TempDir,
}

impl Faulty {
    /// A script for a node that reads files at this rate in bytes per second.
    pub fn slow_disk(bytes_per_second: u64) -> Self {
        Self::with(&format!("PRELOAD_BYTES_PER_SECOND={bytes_per_second}"))
    }

    /// A script for a node in which the thread with this name hangs.
    pub fn hanging_thread(name: &str) -> Self {
        Self::with(&format!("PRELOAD_HANGS={name}"))
    }

    fn with(setting: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let (source, library) = (dir.path().join("preload.c"), dir.path().join("preload.so"));
        std::fs::write(&source, include_str!("preload.c")).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-shared", "-fPIC", "-o"]).args([&library, &source]);
        assert!(compiler.status().expect("a C compiler").success());
        // With `exec`, the node has the PID of the process that the test has started.
        let script = format!(
            "#!/bin/sh\nLD_PRELOAD={} {setting} exec {} \"$@\"\n",
            library.display(),
            bitcoin_node().display()
        );
        let faulty = Faulty { dir };
        std::fs::write(faulty.program(), script).unwrap();
        std::fs::set_permissions(faulty.program(), PermissionsExt::from_mode(0o755)).unwrap();
        faulty
    }

    pub fn program(&self) -> PathBuf {
        self.dir.path().join("bitcoin-node")
    }
}
