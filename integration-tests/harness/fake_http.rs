//! A fake of a node's JSON-RPC server over HTTP, which sends correct or incorrect responses.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::exporter::{Exporter, command};
use super::fake::FakeNode;

/// How the fake server responds to a request.
#[derive(Clone)]
pub enum Mode {
    /// Responds with the result of a correct node if the request has the cookie, and otherwise with the status 401.
    Works,
    /// Responds with the results in this JSON object. A key of the object is a method, or a method and its first
    /// parameter. The response for other methods is the error "Method not found".
    Answers(Arc<Value>),
    /// Responds to each call with this error message.
    Error(Arc<str>),
    /// Responds to each call with this HTTP status.
    Status(&'static str),
    /// Responds to the given number of requests with this HTTP status, and to later requests like `Works`.
    StatusOf(usize, &'static str),
    /// Responds to the first request on a connection, and closes the connection at the second request without a
    /// response.
    Closes,
    /// Responds with an HTML page instead of JSON.
    Html,
    /// Responds with a redirect to another port.
    Redirects,
    /// Responds with the warmup error (-28), with a different message each time.
    Starts,
    /// Sends a response of 1,000 bytes in 50 seconds, one byte at a time.
    NeverEnds,
    /// Sends a response of 100 MB.
    TooLarge,
    /// Does not respond for 60 seconds.
    Hangs,
}

/// A running fake JSON-RPC server over HTTP, with its cookie in a temporary directory. The test selects the [`Mode`].
pub struct FakeHttp {
    dir: TempDir,
    address: String,
    mode: Arc<Mutex<Mode>>,
    /// How the server responds to individual JSON-RPC methods. These modes override `mode`.
    of_methods: Arc<Mutex<BTreeMap<String, Mode>>>,
    /// The valid cookie, in Base64.
    cookie: Arc<Mutex<String>>,
    /// The JSON-RPC methods of all requests that the server has received so far.
    pub seen: Arc<Mutex<Vec<String>>>,
}

impl FakeHttp {
    /// Starts a server with this mode on a free port.
    pub fn start(mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = FakeHttp {
            dir: TempDir::new().unwrap(),
            address: listener.local_addr().unwrap().to_string(),
            mode: Arc::new(Mutex::new(mode)),
            of_methods: Arc::default(),
            cookie: Arc::default(),
            seen: Arc::default(),
        };
        http.change_cookie("__cookie__:1");
        let (mode, of_methods, cookie, seen) =
            (http.mode.clone(), http.of_methods.clone(), http.cookie.clone(), http.seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mode, of_methods) = (mode.clone(), of_methods.clone());
                let (cookie, seen) = (cookie.clone(), seen.clone());
                std::thread::spawn(move || answer(stream, &mode, &of_methods, &cookie, &seen));
            }
        });
        http
    }

    /// Writes a new cookie to the cookie file. The server no longer accepts the old cookie.
    pub fn change_cookie(&self, cookie: &str) {
        std::fs::write(self.dir.path().join("cookie"), cookie).unwrap();
        *self.cookie.lock().unwrap() = STANDARD.encode(cookie);
    }

    /// Sets the mode for all methods that have no mode of their own.
    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// Sets the mode for one method. `None` removes the mode of the method.
    pub fn set_method(&self, method: &str, mode: Option<Mode>) {
        let mut of_methods = self.of_methods.lock().unwrap();
        match mode {
            Some(mode) => of_methods.insert(method.into(), mode),
            None => of_methods.remove(method),
        };
    }

    /// Number of calls of this method that the server has received so far.
    pub fn calls_of(&self, method: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| *seen == method).count()
    }

    /// Starts an exporter that polls this server over HTTP and has no IPC connection. Waits until the exporter is
    /// ready.
    pub fn only_exporter(&self, more: &[&str]) -> Exporter {
        let datadir = self.dir.path().to_str().unwrap();
        let mut command = command();
        command.args(["--datadir", datadir, "--chain", "regtest"]).args(self.arguments()).args(more);
        Exporter::spawn(&mut command).ready()
    }

    /// The exporter's arguments with the URL and the cookie file of this server.
    pub fn arguments(&self) -> [String; 4] {
        let (url, cookie) = (format!("http://{}", self.address), self.dir.path().join("cookie"));
        ["--rpc-url".into(), url, "--rpc-cookie-file".into(), cookie.display().to_string()]
    }

    /// Starts an exporter that polls `node` over IPC and this server over HTTP. Waits until the exporter is ready.
    pub fn exporter(&self, node: &FakeNode, more: &[&str]) -> Exporter {
        let arguments = self.arguments();
        let arguments: Vec<_> =
            arguments.iter().map(String::as_str).chain(["--poll-interval", "100ms"]).collect();
        Exporter::start(&node.socket(), &[&arguments[..], more].concat()).ready()
    }
}

/// Responds to the requests of a connection until the connection is closed.
fn answer(
    stream: TcpStream,
    mode: &Mutex<Mode>,
    of_methods: &Mutex<BTreeMap<String, Mode>>,
    cookie: &Mutex<String>,
    seen: &Mutex<Vec<String>>,
) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let mut output = stream.try_clone().ok()?;
    let mut input = BufReader::new(stream);
    for request_number in 0.. {
        let (request, is_authorized) = read_request(&mut input, cookie)?;
        let method = request["method"].as_str()?;
        let requests = {
            let mut seen = seen.lock().unwrap();
            seen.push(method.to_string());
            seen.len()
        };
        let of_method = of_methods.lock().unwrap().get(method).cloned();
        let mut present = of_method.unwrap_or_else(|| mode.lock().unwrap().clone());
        if let Mode::StatusOf(left, status) = present {
            let mut mode = mode.lock().unwrap();
            *mode = if left > 1 { Mode::StatusOf(left - 1, status) } else { Mode::Works };
            present = Mode::Status(status);
        }
        match present {
            Mode::Closes if request_number % 2 == 1 => return None,
            Mode::Works | Mode::Answers(_) | Mode::Closes if !is_authorized => {
                send(&mut output, "401 Unauthorized", "", "")?;
            }
            present => respond(&mut output, &present, &request, requests)?,
        }
    }
    None
}

/// Reads an HTTP request. Returns the request's JSON body, and whether the request has the valid cookie.
fn read_request(input: &mut impl BufRead, cookie: &Mutex<String>) -> Option<(Value, bool)> {
    let (mut length, mut is_authorized) = (0, false);
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.parse().ok()?;
        }
        is_authorized |= line.ends_with(&*cookie.lock().unwrap());
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    Some((serde_json::from_slice(&body).ok()?, is_authorized))
}

/// Sends an HTTP response.
fn send(output: &mut TcpStream, status: &str, headers: &str, body: &str) -> Option<()> {
    write!(output, "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).ok()
}

/// Sends the response of this mode to a request. `requests` is the number of all requests so far.
fn respond(output: &mut TcpStream, mode: &Mode, request: &Value, requests: usize) -> Option<()> {
    const JSON: &str = "Content-Type: application/json\r\n";
    let method = request["method"].as_str()?;
    match mode {
        Mode::StatusOf(..) => unreachable!("it was replaced by a status"),
        Mode::Works | Mode::Closes => {
            send(output, "200 OK", JSON, &json!({"result": works(method), "id": 1}).to_string())
        }
        Mode::Answers(answers) => {
            let by_parameter = answers.get(format!("{method} {}", request["params"][0]));
            let answer = match by_parameter.or(answers.get(method)) {
                Some(result) => json!({"jsonrpc": "2.0", "result": result, "id": 1}),
                None => {
                    json!({"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": 1})
                }
            };
            send(output, "200 OK", JSON, &answer.to_string())
        }
        Mode::Error(message) => {
            let answer = json!({"jsonrpc": "2.0", "error": {"code": -1, "message": **message}, "id": 1});
            send(output, "200 OK", JSON, &answer.to_string())
        }
        Mode::Status(status) => send(output, status, "", "Work queue depth exceeded"),
        Mode::Html => send(output, "200 OK", "Content-Type: text/html\r\n", "<html>Sign in</html>"),
        Mode::Redirects => send(output, "302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
        Mode::Starts => {
            let error = json!({"code": -28, "message": format!("Verifying blocks… {requests}%")});
            let answer = json!({"result": null, "error": error, "id": 1});
            send(output, "500 Internal Server Error", "", &answer.to_string())
        }
        Mode::TooLarge => {
            write!(output, "HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").ok()?;
            let zeros = vec![b' '; 1 << 20];
            (0..100).try_for_each(|_| output.write_all(&zeros)).ok()
        }
        Mode::NeverEnds => {
            write!(output, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").ok()?;
            (0..1000).try_for_each(|_| {
                std::thread::sleep(Duration::from_millis(50));
                output.write_all(b" ").ok()
            })
        }
        Mode::Hangs => {
            std::thread::sleep(Duration::from_secs(60));
            Some(())
        }
    }
}

/// The result that a correct node returns for this method.
fn works(method: &str) -> Value {
    match method {
        "getblockchaininfo" => {
            json!({"chain": "regtest", "blocks": 42, "bestblockhash": "07".repeat(32), "difficulty": 7,
                   "initialblockdownload": false})
        }
        "getblockhash" | "getbestblockhash" => json!("07".repeat(32)),
        "getorphantxs" => json!([{"bytes": 100}]),
        "getmempoolinfo" => json!({"size": 5}),
        "getpeerinfo" => json!([]),
        _ => Value::Null,
    }
}
