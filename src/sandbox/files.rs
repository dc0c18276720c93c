//! Landlock rules of the IPC exporter: the files that the exporter may read and write, and the TCP ports to which it
//! may connect.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The Landlock ABI for which the rules are built: the ABI of Linux 6.12. This ABI can restrict access to files and TCP
/// ports, signals to processes outside of the sandbox, and connections to abstract Unix sockets of such processes.
const LANDLOCK_ABI: ABI = ABI::V6;

/// The files that a process may read, the files that it may write, and the TCP ports to which it may connect. Reading
/// and writing other files, executing files, and listening on further TCP ports are denied.
#[derive(Debug, Default)]
pub struct AllowedFiles {
    /// Files that the process reads repeatedly: certificates, keys, passwords, cookies. The process may read all files
    /// in the directories of these files. Landlock rules apply to inodes, and a renewed file has a new inode, which a
    /// rule for the old file would not cover.
    pub read: Vec<PathBuf>,
    /// Files that the process reads only once, after the rules are applied. The process may not read other files in
    /// their directories.
    pub read_once: Vec<PathBuf>,
    /// Files that the process writes: the block log. The process may write, create and remove all files in their
    /// directories, for example the journal of the block log.
    pub write: Vec<PathBuf>,
    /// TCP ports to which the process may connect.
    pub connect: Vec<u16>,
    /// Whether the process resolves host names, for which it needs the resolver's configuration files and the DNS port.
    pub resolves_names: bool,
}

/// Files that the C library reads to resolve host names.
const NAME_FILES: [&str; 5] =
    ["/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/gai.conf"];
/// Paths that a process with these rules may always read. The exporter uses `/etc/passwd`, through the C library, to
/// log the name of a file's owner.
const ALWAYS: [&str; 2] = ["/proc", "/etc/passwd"];
const DNS_PORT: u16 = 53;

impl AllowedFiles {
    /// Applies the rules to the calling thread and to threads that it starts later. Returns a description of the
    /// restrictions that the kernel does not support, or `None` if the kernel supports all restrictions. The error is
    /// the reason why no rule could be applied.
    pub(super) fn confine(&self) -> Result<Option<String>, String> {
        let status = self.apply().map_err(|error| error.to_string())?;
        match (status.ruleset, status.landlock) {
            (RulesetStatus::NotEnforced, LandlockStatus::NotImplemented) => {
                Err("not supported by the kernel (Linux 5.13 or later supports it), or forbidden by the container".into())
            }
            (RulesetStatus::NotEnforced, _) => {
                Err("not enabled among the kernel's security modules; see the boot parameter lsm=".into())
            }
            (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
                Ok(Some(format!(
                    "Landlock of this kernel (ABI {}) confines only {}",
                    effective_abi as i32,
                    if effective_abi < ABI::V4 { "files" } else { "files and TCP" }
                )))
            }
            _ => Ok(None),
        }
    }

    fn apply(&self) -> Result<landlock::RestrictionStatus, RulesetError> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?;
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        for path in self.paths() {
            // A file that does not exist gets no rule, because a rule needs a descriptor of the file.
            let Ok(fd) = PathFd::new(&path) else { continue };
            let rights = if path.is_dir() { read } else { AccessFs::ReadFile.into() };
            ruleset = ruleset.add_rule(PathBeneath::new(fd, rights))?;
        }
        let write =
            read | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate;
        for folder in
            self.write.iter().filter_map(|path| std::path::absolute(path).ok()?.parent().map(PathBuf::from))
        {
            let Ok(fd) = PathFd::new(&folder) else { continue };
            ruleset = ruleset.add_rule(PathBeneath::new(fd, write))?;
        }
        let dns = self.resolves_names.then_some(DNS_PORT);
        for &port in self.connect.iter().chain(&dns) {
            ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
        ruleset.restrict_self()
    }

    fn paths(&self) -> BTreeSet<PathBuf> {
        let names = self.resolves_names.then_some(NAME_FILES).into_iter().flatten();
        let fixed = ALWAYS.into_iter().chain(names).map(PathBuf::from);
        let folders = self.read.iter().flat_map(|path| folders(path));
        fixed.chain(self.read_once.iter().cloned()).chain(folders).collect()
    }
}

/// The directories in which a renewed version of a file may appear: the directory of the file, and the directories of
/// the targets of all symbolic links in its path.
fn folders(path: &Path) -> Vec<PathBuf> {
    let Ok(path) = std::path::absolute(path) else { return Vec::new() };
    let mut folders = Vec::from_iter(path.parent().map(PathBuf::from));
    for part in path.ancestors() {
        // For example, the directory /run/secrets is a link to /run/secrets.d/1, and after a renewal of the secrets, a
        // link to /run/secrets.d/2.
        if part.is_symlink()
            && let Ok(target) = part.canonicalize()
        {
            let beside = target.parent().filter(|parent| *parent != Path::new("/"));
            folders.push(beside.unwrap_or(&target).to_path_buf());
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn replaced_files_stay_readable() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        // The directory layouts in which certbot, sops-nix and Kubernetes replace a renewed file through a symbolic
        // link.
        for folder in ["live/x", "archive/x", "secrets.d/1", "k8s/..2026"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["archive/x/c1.pem", "secrets.d/1/password", "k8s/..2026/c.pem"] {
            std::fs::write(at(file), "").unwrap();
        }
        symlink("../../archive/x/c1.pem", at("live/x/c.pem")).unwrap();
        symlink(at("secrets.d/1"), at("secrets")).unwrap();
        symlink("..2026", at("k8s/..data")).unwrap();
        symlink("..data/c.pem", at("k8s/c.pem")).unwrap();
        assert_eq!(folders(&at("live/x/c.pem")), [at("live/x"), at("archive/x")]);
        assert_eq!(folders(&at("secrets/password")), [at("secrets"), at("secrets.d")]);
        assert_eq!(folders(&at("k8s/c.pem")), [at("k8s"), at("k8s/..2026")]);
        assert_eq!(folders(&at("none/c.pem")), [at("none")]);
    }
}
