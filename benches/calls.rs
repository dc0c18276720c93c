//! What each call that the exporter makes costs a node: `cargo bench --bench calls -- SOCKET`, beside a node with JSON-RPC
//! over IPC.
//!
//! A call cannot hold the node's main lock for longer than it takes. `uptime`, which takes no lock, is what a call takes at least.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bitcoind_exporter::ipc::{Connection, Interfaces};
use nix::sys::socket::{getsockopt, sockopt};
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// Of each call.
const CALLS: usize = 300;

fn main() {
    // cargo adds --bench.
    let Some(socket) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) else {
        return println!("calls: SKIPPED, no socket was given: cargo bench --bench calls -- SOCKET");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, measure(Path::new(&socket)));
}

async fn measure(socket: &Path) {
    let stream = UnixStream::connect(socket).await.expect("the socket of a node");
    let node = getsockopt(&stream, sockopt::PeerCredentials).unwrap().pid();
    let connection = Connection::new(stream, Duration::from_secs(60)).await.unwrap();
    let thread = connection.thread("bench").await.unwrap();
    let interfaces = Interfaces::discover(&connection, &thread).await.unwrap();
    let json_rpc = interfaces.expect("a node that is not shutting down").json_rpc.expect("JSON-RPC");
    let tip = json_rpc.call("getbestblockhash", json!([])).await.unwrap();
    let stats = ["txs", "total_weight", "total_size", "totalfee", "ins", "outs"];
    let calls: [(&str, Value); 23] = [
        ("uptime", json!([])),
        ("getblockchaininfo", json!([])),
        ("getchainstates", json!([])),
        ("getindexinfo", json!([])),
        ("getdeploymentinfo", json!([])),
        ("getaddrmaninfo", json!([])),
        ("getmempoolinfo", json!([])),
        ("getmempoolfeeratediagram", json!([])),
        ("getorphantxs", json!([1])),
        ("getprivatebroadcastinfo", json!([])),
        ("getnetworkinfo", json!([])),
        ("getnettotals", json!([])),
        ("getpeerinfo", json!([])),
        ("getmemoryinfo", json!([])),
        ("listbanned", json!([])),
        ("estimatesmartfee", json!([1])),
        ("estimatesmartfee", json!([144])),
        ("getnetworkhashps", json!([144])),
        ("getnetworkhashps", json!([2016])),
        ("getblockstats", json!([tip, stats])),
        ("getblockheader", json!([tip])),
        ("getblockhash", json!([1])),
        ("getchaintips", json!([])),
    ];
    println!("call, median ms, longest ms, CPU time of the node in ms");
    for (method, params) in calls {
        let before = cpu(node);
        let mut took = Vec::new();
        for _ in 0..CALLS {
            let asked = Instant::now();
            match json_rpc.call(method, params.clone()).await {
                Err(error) if error.is_unknown_method() => break, // of this version, or not switched on
                answer => drop(answer.unwrap_or_else(|error| panic!("{method}: {error}"))),
            }
            took.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        if took.is_empty() {
            println!("{method}: unknown to this node");
            continue;
        }
        let cpu = (cpu(node) - before).as_secs_f64() * 1e3 / CALLS as f64;
        took.sort_by(f64::total_cmp);
        let arguments = if method == "getblockstats" { "tip".into() } else { params.to_string() };
        println!("{method} {arguments}, {:.2}, {:.2}, {cpu:.2}", took[CALLS / 2], took[CALLS - 1]);
    }
    // Each call was answered; the thread that ran the last one may still be at it.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// CPU time of all threads of a process.
fn cpu(process: i32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let spent = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    Duration::from_nanos(spent.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum())
}
