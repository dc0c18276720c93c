//! A disk that reads slowly, for one node.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::node::bitcoin_node;

pub struct SlowDisk {
    dir: TempDir,
}

impl SlowDisk {
    /// Files are read at this rate, or only by the node's thread of this name.
    pub fn new(bytes_per_second: u64, thread: Option<&str>) -> Self {
        let dir = TempDir::new().unwrap();
        let (source, library) = (dir.path().join("slow_disk.c"), dir.path().join("slow_disk.so"));
        std::fs::write(&source, include_str!("slow_disk.c")).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-shared", "-fPIC", "-o"]).args([&library, &source]);
        assert!(compiler.status().expect("a C compiler").success());
        let only = thread.map(|it| format!("SLOW_DISK_THREAD={it} ")).unwrap_or_default();
        // The node is this process, so that it has its id.
        let script = format!(
            "#!/bin/sh\nLD_PRELOAD={} SLOW_DISK_BYTES_PER_SECOND={bytes_per_second} {only}exec {} \"$@\"\n",
            library.display(),
            bitcoin_node().display()
        );
        let disk = SlowDisk { dir };
        std::fs::write(disk.program(), script).unwrap();
        std::fs::set_permissions(disk.program(), PermissionsExt::from_mode(0o755)).unwrap();
        disk
    }

    /// The node on this disk.
    pub fn program(&self) -> PathBuf {
        self.dir.path().join("bitcoin-node")
    }
}
