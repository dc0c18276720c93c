//! Landlock rules: the files that a process may read and the TCP ports to which it may connect.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The Landlock ABI of Linux 6.12. It restricts files, TCP ports, and signals and abstract sockets to processes outside the sandbox.
const LANDLOCK_ABI: ABI = ABI::V6;

/// Files and ports that a process may use. Writing other files, executing, and listening on other ports are denied.
#[derive(Debug, Default)]
pub struct AllowedFiles {
    /// Files that are read again while the process runs: certificates, keys, passwords, cookies. Their directories may be read, too,
    /// because a renewed file is a new inode.
    pub read: Vec<PathBuf>,
    /// Files that are read once, after the process was confined. Files beside them may not be read.
    pub read_once: Vec<PathBuf>,
    /// Files that are written, created and replaced, with the files beside them: the block log and its journal.
    pub write: Vec<PathBuf>,
    /// TCP ports to which the process may connect.
    pub connect: Vec<u16>,
    /// Whether the process resolves host names.
    pub resolves_names: bool,
}

/// Files that the C library reads to resolve names.
const NAME_FILES: [&str; 5] =
    ["/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/gai.conf"];
/// Paths that every process may read. The C library reads /etc/passwd to find the user name of a socket's owner.
const ALWAYS: [&str; 2] = ["/proc", "/etc/passwd"];
const DNS_PORT: u16 = 53;

impl AllowedFiles {
    /// Applies the rules to the calling thread and to threads that it starts later. Returns a description of the restrictions that the
    /// kernel lacks. An error is the reason why nothing is restricted.
    pub(super) fn confine(&self) -> Result<Option<String>, String> {
        let status = self.apply().map_err(|error| error.to_string())?;
        match (status.ruleset, status.landlock) {
            (RulesetStatus::NotEnforced, LandlockStatus::NotImplemented) => {
                Err("the kernel has none, Linux 5.13 or later has, or a container forbids it".into())
            }
            (RulesetStatus::NotEnforced, _) => {
                Err("it is not among the kernel's security modules (lsm=)".into())
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
            // No rule for a missing file: it could not be read anyway.
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

/// The directories in which a replaced file may be found: its own directory, and the target directories of symbolic links in its path.
fn folders(path: &Path) -> Vec<PathBuf> {
    let Ok(path) = std::path::absolute(path) else { return Vec::new() };
    let mut folders = Vec::from_iter(path.parent().map(PathBuf::from));
    for part in path.ancestors() {
        // For example, /run/secrets links to /run/secrets.d/1, and later to /run/secrets.d/2.
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
        // The directory layouts of certbot, sops-nix and Kubernetes.
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
