//! A TCP proxy in front of a node's JSON-RPC port. A drill can make the proxy close connections or respond with an
//! error status.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::harness::node::Node;

/// The behavior of a [`Gate`] for new connections.
#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    /// The gate forwards connections to the node.
    Open,
    /// The gate closes new connections at once.
    Closed,
    /// The gate responds to each request with this HTTP status.
    Status(&'static str),
    /// The gate closes all connections and its listening port.
    Ended,
}

/// A TCP proxy in front of a node's JSON-RPC port, which stops when this value is dropped.
pub struct Gate {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// The state of a [`Gate`], shared with its threads: how it handles new connections, and its open connections.
struct State {
    mode: Mode,
    open: Vec<TcpStream>,
}

impl Gate {
    pub fn start(node: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { mode: Mode::Open, open: Vec::new() }));
        let target: u16 = node.rpc_url().rsplit(':').next().unwrap().parse().unwrap();
        let shared = state.clone();
        std::thread::spawn(move || {
            listener.incoming().flatten().all(|client| accept(client, target, &shared))
        });
        Gate { port, state }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Closes all open connections, and sets the behavior for new connections.
    pub fn set(&self, mode: Mode) {
        let mut state = self.state.lock().unwrap();
        state.mode = mode;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.set(Mode::Ended);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // a connection makes the blocking accept return
    }
}

/// Handles a new connection to the gate. Returns false if the mode is `Ended`.
fn accept(client: TcpStream, target: u16, state: &Mutex<State>) -> bool {
    let mut state = state.lock().unwrap();
    match state.mode {
        Mode::Ended => return false,
        Mode::Closed => {}
        Mode::Status(status) => {
            std::thread::spawn(move || refuse(client, status));
        }
        Mode::Open => {
            let Ok(node) = TcpStream::connect(("127.0.0.1", target)) else { return true };
            // Drop the sockets of closed connections.
            state.open.retain(|it| it.peer_addr().is_ok());
            state.open.extend([client.try_clone().unwrap(), node.try_clone().unwrap()]);
            pass(client, node);
        }
    }
    true
}

fn pass(client: TcpStream, node: TcpStream) {
    let ends = [(client.try_clone().unwrap(), node.try_clone().unwrap()), (node, client)];
    for (mut from, mut to) in ends {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

fn refuse(mut client: TcpStream, status: &str) {
    let mut request = [0; 65536];
    let _ = client.read(&mut request);
    let _ = write!(client, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}
