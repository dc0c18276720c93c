//! A small file system for the data directory of one node, which a drill can fill.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::statvfs::statvfs;

/// Size of the file system in bytes. Bitcoin Core does not start with less than 50 MiB of free space.
const SIZE: u64 = 200 << 20;

/// A mounted tmpfs of [`SIZE`] bytes. Only root can mount a tmpfs.
pub struct Disk {
    place: PathBuf,
}

impl Disk {
    pub fn mount(place: &Path) -> Self {
        let options = format!("size={SIZE}");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(place).status().unwrap();
        assert!(status.success(), "mount: {status}");
        Disk { place: place.into() }
    }

    /// Fills the file system until this fraction (0 to 1) of it is free.
    pub fn fill(&self, free: f64) {
        let state = statvfs(&self.place).unwrap();
        let available = state.blocks_available() as f64 * state.fragment_size() as f64;
        let size = state.blocks() as f64 * state.fragment_size() as f64;
        std::fs::write(self.place.join("other"), vec![1; (available - free * size) as usize]).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.place).status();
        let _ = std::fs::remove_dir(&self.place);
    }
}
