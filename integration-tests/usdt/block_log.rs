//! Tests of the block log (the exporter's SQLite file with a row for each block) with a real node: that the exporter
//! writes blocks, that the subcommand `blocks` prints them, and how the exporter handles a full disk and a corrupt
//! file.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::fixture::command;
use crate::harness::node::Node;

/// A node, and an exporter that writes the node's blocks to a block log.
struct Scene {
    node: Node,
    exporter: Exporter,
    file: PathBuf,
}

impl Scene {
    fn new(folder: &Path, arguments: &[&str]) -> Self {
        let node = Node::start(&[]);
        let file = folder.join("blocks.sqlite");
        let arguments = [&["--block-log", file.to_str().unwrap()], arguments].concat();
        let exporter = crate::exporter(node.pid(), &arguments);
        Scene { node, exporter, file }
    }

    fn heights(&self) -> Vec<i64> {
        heights(&self.file)
    }

    fn until(&self, heights: impl IntoIterator<Item = i64>) {
        let heights: Vec<_> = heights.into_iter().collect();
        eventually("the blocks are in the record", || (self.heights() == heights).then_some(()));
    }

    fn logged(&self, what: &str) -> usize {
        self.exporter.log().lines().filter(|line| line.contains(what)).count()
    }
}

fn blocks(file: &Path, arguments: &[&str]) -> Output {
    let mut command = command();
    command.arg("blocks").arg("--block-log").arg(file).args(arguments);
    command.stdout(Stdio::piped()).output().unwrap()
}

fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn objects(file: &Path, arguments: &[&str]) -> Vec<Value> {
    let printed = text(blocks(file, &[&["--format", "json"], arguments].concat()));
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn heights(file: &Path) -> Vec<i64> {
    objects(file, &[]).iter().map(|block| block["block_height"].as_i64().unwrap()).collect()
}

pub fn rows_can_be_read_while_others_are_written() {
    let dir = TempDir::new().unwrap();
    let mut scene = Scene::new(dir.path(), &["--block-log-keep", "100"]);
    let mined = scene.node.mine(3);
    scene.until(1..=3);
    let rows = objects(&scene.file, &[]);
    let column = |name: &str| rows.iter().map(|row| row[name].clone()).collect::<Vec<_>>();
    assert_eq!(column("block_hash"), mined);
    assert_eq!(column("transactions"), [1, 1, 1]);
    assert_eq!(column("arrival"), ["other"; 3]);
    assert!(rows.iter().all(|row| row.get("announced_by").is_none()), "{rows:?}");
    assert_eq!(objects(&scene.file, &["--height", "2", "--since", "1h"])[0]["block_hash"], mined[1]);
    assert!(objects(&scene.file, &["--slow", "1h"]).is_empty());
    assert!(text(blocks(&scene.file, &[])).lines().nth(3).unwrap().ends_with(&mined[2]));
    assert!(text(blocks(&scene.file, &["--format", "csv"])).contains(&format!(",3,{},1,", mined[2])));

    // The block log must be readable while the exporter writes to it, and must not exceed its limit of 100 blocks.
    std::thread::scope(|scope| {
        scope.spawn(|| (0..40).for_each(|_| drop(scene.node.mine(5))));
        for _ in 0..40 {
            let found = scene.heights();
            assert!(found.windows(2).all(|two| two[0] + 1 == two[1]) && found.len() <= 100, "{found:?}");
        }
    });
    scene.until(104..=203);
    assert_eq!(scene.logged("block log"), 0, "{}", scene.exporter.log());

    // Before it exits, the exporter must write the last block, which it has not yet written, to the block log.
    scene.node.mine(1);
    eventually("the block is known", || {
        let status: Value = serde_json::from_str(&scene.exporter.get("/status.json").1).unwrap();
        (status["blocks"][0]["block_height"] == 204).then_some(())
    });
    scene.exporter.terminate();
    assert_eq!(scene.heights(), (105..=204).collect::<Vec<_>>());
}

/// The exporter runs in a time namespace, in which the monotonic clock has an offset of a day. Only root can create a
/// time namespace.
pub fn times_are_right_in_a_time_namespace() {
    let dir = TempDir::new().unwrap();
    let node = Node::start(&[]);
    let file = dir.path().join("blocks.sqlite");
    let pid = node.pid().to_string();
    let mut exporter = Command::new("unshare");
    exporter.args(["--time", "--monotonic", "86400", "--boottime", "86400", "--fork", "--kill-child"]);
    exporter
        .arg(command().get_program())
        .args(["--pid", &pid, "--health-port", "0", "--block-log"])
        .arg(&file);
    let _exporter = Exporter::spawn(&mut exporter).ready();
    node.mine(1);
    let row = eventually("the block is in the record", || objects_if_any(&file).pop());
    let time = row["time"].as_f64().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 600.0..=now).contains(&time), "{time} is not within the ten minutes before {now}");
}

/// The rows of a block log as JSON objects. The list is empty if the block log does not exist yet.
fn objects_if_any(file: &Path) -> Vec<Value> {
    if file.exists() { objects(file, &[]) } else { Vec::new() }
}

/// The subcommand `blocks` runs as the user nobody. Only root can start a process as another user.
pub fn another_user_reads_the_block_log_without_write_access() {
    const NOBODY: u32 = 65534;
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let scene = Scene::new(dir.path(), &[]);
    scene.node.mine(2);
    scene.until(1..=2);
    let binary = dir.path().join("exporter");
    std::fs::copy(command().get_program(), &binary).unwrap();
    let as_nobody = || {
        let mut reader = Command::new(&binary);
        reader.args(["blocks", "--format", "json", "--block-log"]).arg(&scene.file).uid(NOBODY).gid(NOBODY);
        reader.output().unwrap()
    };
    assert_eq!(text(as_nobody()).lines().count(), 2);
    std::fs::set_permissions(&scene.file, PermissionsExt::from_mode(0o600)).unwrap();
    let refused = as_nobody();
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && message.contains("blocks.sqlite: unable to open database file"),
        "{message}"
    );
    scene.node.mine(1);
    scene.until(1..=3);
}

/// The block log is on a file system of 1 MB, which only root can mount.
pub fn full_disk_is_logged_once_and_costs_no_row() {
    let dir = TempDir::new().unwrap();
    let disk = Disk::mount(dir.path());
    let scene = Scene::new(&disk.0, &[]);
    scene.node.mine(2);
    scene.until(1..=2);
    let filler = disk.0.join("filler");
    // The write of 2 MB fails, because it fills the file system of 1 MB.
    std::fs::write(&filler, vec![0; 2 << 20]).unwrap_err();
    // The SQLite file must grow, because 60 rows do not fit into the free space of its last page.
    scene.node.mine(60);
    eventually("the exporter logs that the disk is full", || {
        (scene.logged("cannot write") == 1).then_some(())
    });
    assert!(scene.exporter.log().contains("database or disk is full"), "{}", scene.exporter.log());
    scene.exporter.wait_for("bitcoin_blocks_connected_total{node=\"localhost\"}", 62.0);
    std::fs::remove_file(&filler).unwrap();
    scene.until(1..=62);
    eventually("the exporter logs that it writes again", || {
        (scene.logged("writing to the block log") == 1).then_some(())
    });
    assert_eq!(scene.logged("cannot write"), 1, "{}", scene.exporter.log());
}

pub fn corrupt_file_is_logged_once_and_replaced() {
    let dir = TempDir::new().unwrap();
    let scene = Scene::new(dir.path(), &[]);
    scene.node.mine(1);
    scene.until([1]);
    let length = std::fs::metadata(&scene.file).unwrap().len() as usize;
    std::fs::write(&scene.file, vec![b'x'; length]).unwrap();
    scene.node.mine(2);
    eventually("the exporter logs that the file is corrupt", || {
        (scene.logged("cannot write") == 1).then_some(())
    });
    let message = String::from_utf8(blocks(&scene.file, &[]).stderr).unwrap();
    assert!(message.contains("file is not a database") && message.contains("move it away"), "{message}");
    std::fs::rename(&scene.file, dir.path().join("broken")).unwrap();
    eventually("the file exists again", || scene.file.exists().then_some(()));
    scene.until(2..=3);
    eventually("the exporter logs that it writes again", || {
        (scene.logged("writing to the block log") == 1).then_some(())
    });

    // If the file is removed while the exporter has it open, the exporter must create a new file.
    std::fs::remove_file(&scene.file).unwrap();
    scene.node.mine(1);
    eventually("the file exists again", || scene.file.exists().then_some(()));
    scene.until([4]);
    assert_eq!(scene.logged("cannot write"), 1, "{}", scene.exporter.log());
}

pub fn foreign_block_log_file_is_rejected_at_startup() {
    let dir = TempDir::new().unwrap();
    let node = Node::start(&[]);
    let file = dir.path().join("notes.txt");
    std::fs::write(&file, "of an operator who mixed up two paths. ".repeat(50)).unwrap();
    let pid = node.pid().to_string();
    let mut exporter = command();
    exporter.args(["--health-port", "0", "--metrics-addr", "127.0.0.1:0", "--pid", &pid, "--block-log"]);
    let refused = exporter.arg(&file).output().unwrap();
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(
        message.contains("cannot open the block log (--block-log)") && message.contains("not a database"),
        "{message}"
    );
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("of an operator"));
    let none = blocks(&dir.path().join("none"), &[]);
    let message = String::from_utf8(none.stderr).unwrap();
    assert!(!none.status.success() && message.contains("start the exporter with --block-log"), "{message}");
}

/// A mounted tmpfs of 1 MB, which is unmounted when this value is dropped.
pub struct Disk(PathBuf);

impl Disk {
    pub fn mount(at: &Path) -> Self {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1M", "tmpfs"]).arg(at).status().unwrap();
        assert!(mounted.success(), "mount");
        Disk(at.into())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A lazy unmount succeeds also if the exporter has a file open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
