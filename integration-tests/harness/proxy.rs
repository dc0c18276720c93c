//! Proxies between an exporter and a node. A test can make a proxy close the connections while the node keeps running.

use std::io::copy;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

/// A proxy that listens on a Unix socket and forwards connections to a node's socket.
pub struct Proxy {
    dir: TempDir,
    state: Arc<Mutex<State>>,
}

/// The state of a [`Proxy`], shared with its threads: the socket to which it forwards connections, and its open
/// connections.
#[derive(Default)]
struct State {
    /// Path of the node's socket. While the value is `None`, the proxy does not forward new connections.
    node: Option<PathBuf>,
    /// The client's and the node's sockets of all forwarded connections.
    open: Vec<UnixStream>,
    ended: bool,
}

impl Proxy {
    /// Starts a proxy that forwards connections to the node's socket `node`.
    pub fn start(node: &Path) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("node.sock")).unwrap();
        let state = Arc::new(Mutex::new(State { node: Some(node.into()), ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || listener.incoming().flatten().all(|stream| forward(stream, &shared)));
        Proxy { dir, state }
    }

    /// Path of the socket on which the proxy listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("node.sock")
    }

    /// Closes all connections. The proxy accepts new connections but forwards them only after a call of
    /// [`resume`](Self::resume).
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.node = None;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Forwards new connections, and the connections that were accepted since [`cut`](Self::cut), to the node's socket
    /// `node`.
    pub fn resume(&self, node: &Path) {
        self.state.lock().unwrap().node = Some(node.into());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.state.lock().unwrap().ended = true;
        let _ = UnixStream::connect(self.socket()); // this connection makes the blocking accept return
    }
}

/// Forwards one connection to the node, as soon as the proxy's state has the path of a node. Returns false if the proxy
/// was dropped.
fn forward(client: UnixStream, state: &Mutex<State>) -> bool {
    let node = loop {
        let mut state = state.lock().unwrap();
        if state.ended {
            return false;
        }
        if let Some(path) = &state.node {
            let Ok(node) = UnixStream::connect(path) else { return true };
            state.open.extend([client.try_clone().unwrap(), node.try_clone().unwrap()]);
            break node;
        }
        drop(state);
        std::thread::sleep(Duration::from_millis(5));
    };
    let ends = [(client.try_clone().unwrap(), node.try_clone().unwrap()), (node, client)];
    for (mut from, mut to) in ends {
        std::thread::spawn(move || {
            let _ = copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    true
}

/// A proxy that listens on a TCP port of 127.0.0.1 and forwards connections to another address. The proxy closes its
/// port and all connections when this value is dropped.
pub struct TcpProxy {
    port: u16,
    ended: Arc<Mutex<bool>>,
}

impl TcpProxy {
    /// Starts a proxy that forwards to `target`, given as HOST:PORT.
    pub fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (ended, target) = (Arc::<Mutex<bool>>::default(), target.to_string());
        let shared = ended.clone();
        std::thread::spawn(move || {
            let mut open: Vec<TcpStream> = Vec::new();
            while !*shared.lock().unwrap() {
                let Ok((client, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                client.set_nonblocking(false).unwrap();
                let Ok(server) = TcpStream::connect(&target) else { continue };
                open.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let ends = [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
                for (mut from, mut to) in ends {
                    std::thread::spawn(move || {
                        let _ = copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
            open.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        });
        TcpProxy { port, ended }
    }

    /// The `http://` URL of the proxy's port.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        *self.ended.lock().unwrap() = true;
    }
}
