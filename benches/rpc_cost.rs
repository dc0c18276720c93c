//! Measures the cost of each JSON-RPC call that the exporter makes: `cargo bench --bench rpc_cost -- SOCKET`, with a
//! node that has JSON-RPC over IPC. The duration of a call is an upper bound for the time that the call holds the
//! node's main lock. The call `uptime` takes no lock, and its duration is therefore the minimum for any call.
//!
//! Can also measure how long the JSON-RPC calls of another HTTP client take while an exporter polls the node over HTTP
//! only: `cargo bench --bench rpc_cost -- http://127.0.0.1:PORT COOKIE-FILE`, with a node that runs with
//! `-rpcthreads=1`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bitcoind_exporter::testing::{Interfaces, IpcConnection, Method};
use nix::sys::socket::{getsockopt, sockopt};
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// Number of times that each JSON-RPC call is made.
const CALLS: usize = 300;

fn main() {
    // Skip the option --bench, which cargo adds.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let Some(socket) = arguments.next() else {
        return println!("rpc_cost: SKIPPED, no socket was given: cargo bench --bench rpc_cost -- SOCKET");
    };
    if let Some(address) = socket.strip_prefix("http://") {
        return measure_other_callers(address, &arguments.next().expect("the node's cookie file"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, measure(Path::new(&socket)));
}

/// Measures each JSON-RPC call over IPC. For each call, prints the median duration, the maximum duration, and the mean
/// CPU time that the node used.
async fn measure(socket: &Path) {
    let stream = UnixStream::connect(socket).await.expect("the socket of a node");
    let node = getsockopt(&stream, sockopt::PeerCredentials).unwrap().pid();
    let connection = IpcConnection::new(stream, Duration::from_secs(60)).await.unwrap();
    let thread = connection.thread("bench").await.unwrap();
    let interfaces = Interfaces::discover(&connection, &thread).await.unwrap();
    let json_rpc = interfaces.expect("a node that is not shutting down").json_rpc().expect("JSON-RPC");
    let tip = json_rpc.call(Method::GetBestBlockHash, json!([])).await.unwrap();
    let stats = ["txs", "total_weight", "total_size", "totalfee", "ins", "outs"];
    let calls: [(Method, Value); 23] = [
        (Method::Uptime, json!([])),
        (Method::GetBlockchainInfo, json!([])),
        (Method::GetChainstates, json!([])),
        (Method::GetIndexInfo, json!([])),
        (Method::GetDeploymentInfo, json!([])),
        (Method::GetAddrmanInfo, json!([])),
        (Method::GetMempoolInfo, json!([])),
        (Method::GetMempoolFeerateDiagram, json!([])),
        (Method::GetOrphanTxs, json!([1])),
        (Method::GetPrivateBroadcastInfo, json!([])),
        (Method::GetNetworkInfo, json!([])),
        (Method::GetNetTotals, json!([])),
        (Method::GetPeerInfo, json!([])),
        (Method::GetMemoryInfo, json!([])),
        (Method::ListBanned, json!([])),
        (Method::EstimateSmartFee, json!([1])),
        (Method::EstimateSmartFee, json!([144])),
        (Method::GetNetworkHashps, json!([144])),
        (Method::GetNetworkHashps, json!([2016])),
        (Method::GetBlockStats, json!([tip, stats])),
        (Method::GetBlockHeader, json!([tip])),
        (Method::GetBlockHash, json!([1])),
        (Method::GetChainTips, json!([])),
    ];
    println!("call, median ms, longest ms, CPU time of the node in ms");
    for (method, params) in calls {
        let before = cpu(node);
        let mut took = Vec::new();
        for _ in 0..CALLS {
            let asked = Instant::now();
            match json_rpc.call(method, params.clone()).await {
                Err(error) if error.is_unknown_method() => break, // The node's version lacks the method, or its feature is not enabled.
                answer => drop(answer.unwrap_or_else(|error| panic!("{}: {error}", method.name()))),
            }
            took.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        if took.is_empty() {
            println!("{}: unknown to this node", method.name());
            continue;
        }
        let cpu = (cpu(node) - before).as_secs_f64() * 1e3 / CALLS as f64;
        took.sort_by(f64::total_cmp);
        let arguments = if method == Method::GetBlockStats { "tip".into() } else { params.to_string() };
        println!("{} {arguments}, {:.2}, {:.2}, {cpu:.2}", method.name(), took[CALLS / 2], took[CALLS - 1]);
    }
    // Before this client disconnects, the node's worker thread gets time to clean up after the last call.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Measures the duration of a client's calls over HTTP, alternately with and without a running exporter, because other
/// load on the machine must affect both durations equally.
fn measure_other_callers(address: &str, cookie: &str) {
    const ROUNDS: usize = 10;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.extend(time_of_calls(address, cookie));
        let mut exporter = Command::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"))
            .args(["--datadir", "/nonexistent", "--metrics-addr", "127.0.0.1:0"])
            .args(["--rpc-url", &format!("http://{address}"), "--rpc-cookie-file", cookie])
            .stderr(Stdio::null())
            .spawn()
            .expect("the exporter starts");
        std::thread::sleep(Duration::from_secs(1)); // The exporter makes its first poll, with every call.
        beside.extend(time_of_calls(address, cookie));
        exporter.kill().expect("the exporter still runs");
        exporter.wait().expect("the exporter has exited");
    }
    let [alone, beside] = [&mut alone, &mut beside].map(|times| {
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[times.len() * 99 / 100], times[times.len() - 1])
    });
    println!("getblockcount over HTTP, another client: median, 99 %, longest, in ms");
    println!("without an exporter: {:.2}, {:.2}, {:.2}", alone.0, alone.1, alone.2);
    println!("beside an exporter:  {:.2}, {:.2}, {:.2}", beside.0, beside.1, beside.2);
    println!("ratio of the medians: {:.2}", beside.0 / alone.0);
}

/// Makes 300 JSON-RPC calls over HTTP in three seconds. Returns the durations of the calls in milliseconds.
fn time_of_calls(address: &str, cookie: &str) -> Vec<f64> {
    const CALLS: usize = 300;
    let authorization = STANDARD.encode(fs::read_to_string(cookie).expect("the node's cookie").trim());
    let mut output = TcpStream::connect(address).expect("a node listens");
    output.set_nodelay(true).unwrap();
    let mut input = BufReader::new(output.try_clone().unwrap());
    let body = json!({"method": "getblockcount", "params": [], "id": 1}).to_string();
    let call = || {
        let asked = Instant::now();
        let length = body.len();
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {authorization}");
        write!(output, "{head}\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        let (mut length, mut line) = (0, String::new());
        while input.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        input.read_exact(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("result"), "an answer");
        let took = asked.elapsed().as_secs_f64() * 1e3;
        std::thread::sleep(Duration::from_millis(10));
        took
    };
    std::iter::repeat_with(call).take(CALLS).collect()
}

/// The user and system CPU time of all threads of a process.
fn cpu(process: i32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let spent = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    Duration::from_nanos(spent.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum())
}
