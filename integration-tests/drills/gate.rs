//! A TCP port in front of a node's JSON-RPC, which can be closed or respond itself.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::harness::node::Node;

#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Open,
    /// Connections end at once.
    Closed,
    /// Each request gets this status.
    Status(&'static str),
    /// As closed, and the port is given up.
    Ended,
}

pub struct Gate {
    port: u16,
    state: Arc<Mutex<State>>,
}

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

    /// Ends the present connections; new ones are treated like this.
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
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // so that accept returns
    }
}

/// False when the gate has ended.
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
            // Of those that ended nothing is left but the descriptor.
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
