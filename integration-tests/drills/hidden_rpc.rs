//! Runs the proxy of [`without_rpc`](crate::harness::without_rpc) in a separate process, not in the process of the
//! drill. When a node shuts down, its exporter waits for the exit of the process that listens on the node's socket.
//! This process is the proxy's process, which a drill can kill.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::harness::eventually;
use crate::harness::without_rpc::serve_forever;

const VARIABLE: &str = "DRILLS_HIDE_RPC_OF";

/// Runs the proxy and does not return if [`HiddenRpc`] has started this process as a proxy. Otherwise does nothing.
pub fn serve_if_asked() {
    if let Some(node) = std::env::var_os(VARIABLE) {
        let socket = std::env::args_os().nth(1).expect("the socket");
        serve_forever(Path::new(&socket), Path::new(&node));
    }
}

/// A process with a proxy that hides the Rpc interface of a node.
pub struct HiddenRpc {
    dir: TempDir,
    node: PathBuf,
    child: Child,
}

impl HiddenRpc {
    pub fn start(node: &Path) -> Self {
        let dir = TempDir::new().unwrap();
        let child = Self::launch(&dir.path().join("node.sock"), node);
        HiddenRpc { dir, node: node.into(), child }
    }

    fn launch(socket: &Path, node: &Path) -> Child {
        let child = Command::new(std::env::current_exe().unwrap())
            .arg(socket)
            .env(VARIABLE, node)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the proxy listens", || std::os::unix::net::UnixStream::connect(socket).ok());
        child
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("node.sock")
    }

    /// Kills the proxy's process. A drill calls this function when the node behind the proxy has exited.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(self.socket());
    }

    pub fn start_again(&mut self) {
        self.child = Self::launch(&self.socket(), &self.node);
    }
}

impl Drop for HiddenRpc {
    fn drop(&mut self) {
        self.stop();
    }
}
