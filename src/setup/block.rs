//! Adds the lines of the subcommand `setup` to configuration files, and removes these lines for `setup --undo`. Before
//! setup replaces the first file, it checks every file, and writes every new text to a temporary file on disk. An error
//! before the first replacement therefore leaves all files unchanged.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::{AccessFlags, Gid, Uid, access, setfsgid, setfsuid};
use tempfile::NamedTempFile;

const BEGIN: &str =
    "# BEGIN bitcoind-ipc-exporter setup (`bitcoind-ipc-exporter setup --undo` removes these lines)\n";
const END: &str = "# END bitcoind-ipc-exporter setup\n";
/// Path of the manifest, relative to the root directory. The manifest lists the files that setup has changed, for
/// `setup --undo`.
const MANIFEST: &str = "etc/bitcoind-ipc-exporter/setup";
/// Maximum size of a file that setup changes, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Lines that setup adds at the beginning of one file, between two comments. It is not a block of a chain. The position
/// matters in `bitcoin.conf`, where lines at the beginning belong to no section (`[main]`, `[test]`).
#[derive(Debug, PartialEq)]
pub struct Block {
    /// Path of the file, which need not exist yet.
    pub path: PathBuf,
    /// The lines to add, each with its line break.
    pub text: String,
    /// If the file is the node's `bitcoin.conf`: UID and GID of the node's process, which become the owner and group of
    /// the file if setup creates it. Otherwise `None`.
    pub node: Option<(u32, u32)>,
    /// Whether the lines contain a password, which other users must not read.
    pub is_secret: bool,
}

/// Divides the text of a file into the lines of the operator and the block of lines that an earlier setup added.
///
/// # Errors
/// One of the two comments around the block is missing.
pub fn split(text: &str) -> Result<(String, Option<String>)> {
    match (text.split_once(BEGIN), text.contains(END)) {
        (None, false) => Ok((text.into(), None)),
        (Some((before, rest)), true) if rest.contains(END) => {
            let (block, after) = rest.split_once(END).unwrap_or_default();
            Ok((format!("{before}{after}"), Some(block.into())))
        }
        _ => bail!(
            "one of the comments `{}` and `{}` is missing; remove the lines by hand",
            BEGIN.trim(),
            END.trim()
        ),
    }
}

/// A planned change of one file, which is created, replaced or removed. The old or the new text is `None` if the file
/// does not exist before or after the change.
#[derive(Debug)]
pub struct Change {
    /// Path of the file.
    pub path: PathBuf,
    old: Option<String>,
    new: Option<String>,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Change {
    /// The change that adds this block to its file, or replaces the block of an earlier setup; `None` if the file
    /// already has this block.
    ///
    /// # Errors
    /// The file cannot be changed; the error states the reason.
    pub fn add(block: &Block) -> Result<Option<Self>> {
        let path = &block.path;
        let mut change = Change::read(path)?;
        let (rest, _) =
            split(change.old.as_deref().unwrap_or_default()).with_context(|| path.display().to_string())?;
        if block.node.is_some() && !path.ends_with("bitcoin.conf") {
            bail!("{} is not named bitcoin.conf; add the lines by hand", path.display());
        }
        if change.old.is_none() {
            if block.node.is_some_and(|(uid, _)| uid != 0) && Uid::effective().is_root() && is_of_root(path) {
                bail!(
                    "{} does not exist, and its directory belongs to root, not to the node's user; create it first",
                    path.display()
                );
            }
            (change.owner, change.mode) =
                (block.node, if block.is_secret || block.node.is_some() { 0o600 } else { 0o644 });
        } else if block.is_secret && change.mode & 0o077 != 0 {
            bail!(
                "{0} would get a password, and other users can read it; run: chmod 600 {0}",
                path.display()
            );
        }
        // Add a line break after the block in a file that was empty. Without the line break, `undo` would remove the
        // file, as it removes every file that contains only the block, and a node does not start without the file that
        // `-conf` names.
        let rest = if change.old.as_deref() == Some("") { "\n" } else { &rest };
        change.new = Some(format!("{BEGIN}{}{END}{rest}", block.text));
        Ok(Some(change).filter(|change| change.old != change.new))
    }

    /// The change that removes the block of an earlier setup from a file; `None` if the file has no such block.
    fn remove(path: &Path) -> Result<Option<Self>> {
        let mut change = Change::read(path)?;
        let (rest, block) =
            split(change.old.as_deref().unwrap_or_default()).with_context(|| path.display().to_string())?;
        change.new = Some(rest).filter(|rest| !rest.is_empty());
        Ok(block.map(|_| change))
    }

    /// Reads a file, which need not exist, and checks that it can be replaced. The returned change has the current text
    /// of the file as its old and new text.
    fn read(path: &Path) -> Result<Self> {
        let at = || path.display().to_string();
        check_writable(path)?;
        let mut change = Change { path: path.into(), old: None, new: None, mode: 0o644, owner: None };
        // The type is checked on the open file and not on the path, because a user who owns the directory can replace
        // the file between a check of the path and the opening.
        let file = match File::options().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(change),
            Err(error) if path.is_symlink() => {
                bail!("{} is a symbolic link ({error}); add the lines to its target by hand", at())
            }
            Err(error) => return Err(error).with_context(at),
        };
        let metadata = file.metadata().with_context(at)?;
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            bail!("{} is not a regular file of at most {MAX_BYTES} bytes", at());
        }
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).with_context(at)?;
        (change.mode, change.owner) = (metadata.mode() & 0o7777, Some((metadata.uid(), metadata.gid())));
        (change.old, change.new) = (Some(text.clone()), Some(text));
        Ok(change)
    }

    /// The verb that describes the change in messages: create, remove or change.
    pub fn verb(&self) -> &'static str {
        match (&self.old, &self.new) {
            (None, _) => "create",
            (_, None) => "remove",
            _ => "change",
        }
    }

    /// Writes the new text to a temporary file in the directory of the file to replace; `None` if the change removes
    /// the file. Creates missing directories, and adds them to `made`.
    fn stage(&self, made: &mut Vec<PathBuf>) -> Result<Option<NamedTempFile>> {
        let Some(new) = &self.new else { return Ok(None) };
        let at = || format!("cannot write {}", self.path.display());
        let _rights = self.rights().with_context(at)?;
        let dir = self.path.parent().expect("a file is in a directory");
        let missing: Vec<_> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            fs::create_dir(dir).with_context(at)?;
            made.push(dir.into());
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).with_context(at)?;
        }
        let mut file = NamedTempFile::new_in(dir).with_context(at)?;
        file.write_all(new.as_bytes()).with_context(at)?;
        if let Some((uid, gid)) = self.owner {
            fchown(file.as_file(), Some(uid), Some(gid)).with_context(at)?;
        }
        file.as_file().set_permissions(fs::Permissions::from_mode(self.mode)).with_context(at)?;
        file.as_file().sync_all().with_context(at)?;
        Ok(Some(file))
    }

    fn finish(&self, staged: Option<NamedTempFile>) -> Result<()> {
        let _rights = self.rights().with_context(|| self.path.display().to_string())?;
        let done = match staged {
            Some(file) => file.persist(&self.path).map(drop).map_err(|error| error.error),
            None => fs::remove_file(&self.path),
        };
        done.with_context(|| format!("cannot {} {}", self.verb(), self.path.display()))
    }

    /// Sets the thread's file access rights to the rights of the file's owner, unless only root can change the path. A
    /// user who owns a directory of the path can replace the directory with a link at any time. With root's rights,
    /// setup would follow the link, and create a file of this user in a directory that the user cannot write to.
    fn rights(&self) -> Result<Option<FileRights>> {
        let owner = self.owner.filter(|(uid, _)| *uid != 0);
        let user = owner.filter(|_| Uid::effective().is_root() && !is_of_root(&self.path));
        user.map(|(uid, gid)| FileRights::of(uid, gid)).transpose()
    }

    fn reversed(&self) -> Self {
        let (old, new) = (self.new.clone(), self.old.clone());
        Change { path: self.path.clone(), old, new, mode: self.mode, owner: self.owner }
    }
}

/// The file access rights of another user. The thread that created the value has these rights until the value is
/// dropped.
struct FileRights;

impl FileRights {
    fn of(uid: u32, gid: u32) -> Result<Self> {
        let rights = FileRights;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setfsgid(gid);
        setfsuid(uid);
        // setfsgid and setfsuid return no error, but the previous ID. The second calls show whether the first calls
        // succeeded.
        if setfsgid(gid) != gid || setfsuid(uid) != uid {
            bail!("cannot use the rights of user {uid}");
        }
        Ok(rights)
    }
}

impl Drop for FileRights {
    fn drop(&mut self) {
        setfsuid(Uid::effective());
        setfsgid(Gid::effective());
    }
}

/// Whether only root can change the directories of the path.
fn is_of_root(path: &Path) -> bool {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    path.ancestors().skip(1).all(|dir| {
        let is_of_root =
            |it: fs::Metadata| it.is_dir() && it.uid() == 0 && it.mode() & WRITABLE_BY_OTHERS == 0;
        dir.symlink_metadata().is_ok_and(is_of_root)
    })
}

/// Checks that this process can create or replace the file.
fn check_writable(path: &Path) -> Result<()> {
    let existing = path.ancestors().skip(1).find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let writable = access(existing, AccessFlags::W_OK | AccessFlags::X_OK).map_err(Error::from);
    let writable =
        writable.and_then(|()| if existing.is_dir() { Ok(()) } else { Err(ErrorKind::NotADirectory.into()) });
    writable.with_context(|| {
        format!("cannot write to {}; run as root, on a writable file system", existing.display())
    })
}

/// Adds the files of these changes to the manifest for `undo`, and makes the changes. If a change fails, reverts the
/// earlier changes.
///
/// # Errors
/// A file cannot be written. All files are unchanged, except a file that the error describes as changed already.
pub fn write(root: &Path, mut changes: Vec<Change>) -> Result<()> {
    let mut manifest = Change::read(&root.join(MANIFEST))?;
    let mut paths: Vec<_> = manifest.old.iter().flat_map(|text| text.lines()).map(String::from).collect();
    paths.extend(changes.iter().map(|change| change.path.display().to_string()));
    paths.sort();
    paths.dedup();
    manifest.new = Some(paths.join("\n") + "\n");
    changes.insert(0, manifest);
    commit(&changes)
}

/// Removes the lines that earlier setups have added. Returns the changes; the last change removes the manifest (the
/// list of changed files).
///
/// # Errors
/// A file cannot be changed. All files are unchanged, except a file that the error describes as changed already.
pub fn undo(root: &Path) -> Result<Vec<Change>> {
    let mut manifest = Change::read(&root.join(MANIFEST))?;
    let Some(paths) = manifest.old.clone() else { return Ok(Vec::new()) };
    let changes: Result<Vec<_>> = paths.lines().map(|path| Change::remove(Path::new(path))).collect();
    let mut changes: Vec<_> = changes?.into_iter().flatten().collect();
    manifest.new = None;
    changes.push(manifest);
    commit(&changes)?;
    let removed = changes.iter().filter(|change| change.new.is_none());
    for dir in removed.filter_map(|change| change.path.parent()) {
        let ends = ["service.d", "bitcoind-ipc-exporter", "targets"];
        if ends.iter().any(|end| dir.to_string_lossy().ends_with(end)) {
            let _ = fs::remove_dir(dir); // fails if it is not empty
        }
    }
    Ok(changes)
}

fn commit(changes: &[Change]) -> Result<()> {
    let mut made = Vec::new();
    let result = commit_all(changes, &mut made);
    if result.is_err() {
        made.iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
    }
    result
}

fn commit_all(changes: &[Change], made: &mut Vec<PathBuf>) -> Result<()> {
    let staged = changes.iter().map(|change| change.stage(made)).collect::<Result<Vec<_>>>()?;
    for (index, (change, staged)) in changes.iter().zip(staged).enumerate() {
        let Err(error) = change.finish(staged) else { continue };
        for earlier in changes[..index].iter().rev().map(Change::reversed) {
            let reverted = earlier.stage(&mut Vec::new()).and_then(|staged| earlier.finish(staged));
            reverted.with_context(|| format!("{error:#}; {} has changed already", earlier.path.display()))?;
        }
        return Err(error);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn block(path: PathBuf, text: &str) -> Block {
        Block { path, text: text.into(), node: None, is_secret: false }
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() {
                found.extend(files(&entry.path()));
            }
            found.push(entry.path().display().to_string());
        }
        found.sort();
        found
    }

    #[test]
    fn block_is_added_replaced_and_removed() {
        let dir = tempfile::TempDir::new().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("etc/x.service.d/new"));
        fs::write(&old, "[main]\na=1").unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
        let before = files(dir.path());
        for text in ["b=2\n", "b=3\n"] {
            let changes = [&old, &new].map(|path| Change::add(&block(path.clone(), text)).unwrap().unwrap());
            write(dir.path(), changes.into()).unwrap();
            assert_eq!(fs::read_to_string(&old).unwrap(), format!("{BEGIN}{text}{END}[main]\na=1"));
            assert_eq!(fs::read_to_string(&new).unwrap(), format!("{BEGIN}{text}{END}"));
        }
        assert_eq!(old.metadata().unwrap().mode() & 0o777, 0o640);
        assert!(Change::add(&block(old.clone(), "b=3\n")).unwrap().is_none(), "the file has this block");
        fs::write(&new, fs::read_to_string(&new).unwrap() + "c=4\n").unwrap();
        assert_eq!(
            undo(dir.path()).unwrap().iter().map(Change::verb).collect::<Vec<_>>(),
            ["change", "change", "remove"]
        );
        assert_eq!(fs::read_to_string(&old).unwrap(), "[main]\na=1");
        assert_eq!(fs::read_to_string(&new).unwrap(), "c=4\n", "lines of the operator remain");
        assert!(undo(dir.path()).unwrap().is_empty());
        fs::remove_dir_all(dir.path().join("etc/x.service.d")).unwrap();
        fs::remove_dir(dir.path().join("etc")).unwrap();
        assert_eq!(files(dir.path()), before);
    }

    #[test]
    fn empty_file_of_the_operator_is_not_removed() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("bitcoin.conf");
        fs::write(&path, "").unwrap();
        for is_first in [true, false] {
            let change = Change::add(&block(path.clone(), "a=1\n")).unwrap();
            assert_eq!(change.is_some(), is_first);
            change.into_iter().for_each(|change| write(dir.path(), vec![change]).unwrap());
        }
        undo(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "\n");
    }

    #[test]
    fn file_of_a_user_is_written_with_the_rights_of_this_user() {
        const NOBODY: u32 = 65534;
        if !Uid::effective().is_root() {
            return; // only root can give a file to another user
        }
        let dir = tempfile::TempDir::new().unwrap();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        let conf = Block { node: Some((NOBODY, NOBODY)), ..block(own.join("bitcoin.conf"), "a=1\n") };
        // The directory `own` belongs to root, and the owner of the file will be another user, who cannot write to
        // `own`. Setup must not write the file with root's rights, because a user could redirect the path of the user's
        // own file to such a directory with a link.
        let change = Change::add(&conf).unwrap().unwrap();
        assert!(format!("{:#}", write(dir.path(), vec![change]).unwrap_err()).contains("Permission denied"));
        assert!(!conf.path.exists());
        std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
        let change = Change::add(&conf).unwrap().unwrap();
        write(dir.path(), vec![change]).unwrap();
        let metadata = conf.path.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (NOBODY, 0o600));
        undo(dir.path()).unwrap();
        assert!(!conf.path.exists());
    }

    #[test]
    fn unsuitable_files_are_rejected() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        let error = |block: &Block| format!("{:#}", Change::add(block).unwrap_err());
        fs::write(path("file"), "x").unwrap();
        symlink(path("file"), path("link")).unwrap();
        assert!(error(&block(path("link"), "")).contains("symbolic link"));
        assert!(error(&block(path("file/below"), "")).contains("cannot write to"));
        assert!(error(&block(dir.path().into(), "")).contains("not a regular file"));
        fs::write(path("half"), format!("{BEGIN}a=1\n")).unwrap();
        assert!(error(&block(path("half"), "")).contains("is missing; remove the lines by hand"));
        fs::write(path("reversed"), format!("{END}{BEGIN}")).unwrap();
        assert!(error(&block(path("reversed"), "")).contains("is missing"));
        assert!(error(&Block { is_secret: true, ..block(path("file"), "") }).contains("chmod 600"));
        let of_node = Block { node: Some((0, 0)), ..block(path("shadow"), "") };
        assert!(error(&of_node).contains("not named bitcoin.conf"));
    }

    #[test]
    fn failed_write_changes_nothing() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("first"), "a").unwrap();
        let before = files(dir.path());
        let changes = ["first", "new/second", "third"]
            .map(|name| Change::add(&block(path(name), "b\n")).unwrap().unwrap());
        // The last file can no longer be created, because a directory now has its path.
        fs::create_dir(path("third")).unwrap();
        let error = format!("{:#}", write(dir.path(), changes.into()).unwrap_err());
        assert!(error.contains("cannot create") && error.contains("third"), "{error}");
        fs::remove_dir(path("third")).unwrap();
        assert_eq!(files(dir.path()), before);
        assert_eq!(fs::read_to_string(path("first")).unwrap(), "a");
    }
}
