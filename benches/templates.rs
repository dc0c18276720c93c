//! Measures how much the exporter slows down a miner's block templates: `cargo bench --bench templates -- SOCKET
//! [SECONDS [ROUNDS]]`, with a node that has transactions in its mempool.
//!
//! A client requests each block template as soon as it has the previous one, more often than a miner would. Turns of
//! SECONDS without an exporter alternate with turns in which an exporter with default options is connected to the node.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bitcoind_exporter::testing::{IpcConnection, Mining, MiningSchema};
use tokio::net::UnixStream;

fn main() {
    // Skip the option --bench, which cargo adds.
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let Some(socket) = arguments.first() else {
        return println!("templates: SKIPPED, no socket was given: cargo bench --bench templates -- SOCKET");
    };
    let number =
        |at: usize, default: u64| arguments.get(at).map_or(default, |it| it.parse().expect("a number"));
    let (seconds, rounds) = (number(1, 30), number(2, 8));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let measured = measure(Path::new(socket), Duration::from_secs(seconds), rounds);
    tokio::task::LocalSet::new().block_on(&runtime, measured);
}

/// The result of a turn: the number of templates, and the mean, the median and the 99th percentile (`tail`) of the time
/// for a template in milliseconds.
struct Turn {
    templates: usize,
    mean: f64,
    median: f64,
    tail: f64,
}

/// Runs the turns. Prints the result of each turn, and the ratios of the results with an exporter to the results
/// without an exporter.
async fn measure(socket: &Path, time: Duration, rounds: u64) {
    let stream = UnixStream::connect(socket).await.expect("the socket of a node");
    let connection = IpcConnection::new(stream, Duration::from_secs(60)).await.unwrap();
    let thread = connection.thread("bench").await.unwrap();
    let mut mining = Mining::discover(&connection, &thread, MiningSchema::Core31).await.unwrap();
    if mining.is_none() {
        mining = Mining::discover(&connection, &thread, MiningSchema::Core30).await.unwrap();
    }
    let mining = mining.expect("Mining");
    let mut turns = [vec![], vec![]];
    println!("exporter, templates, mean, median, 99th percentile in ms");
    for _ in 0..rounds {
        for with in [false, true] {
            let exporter = with.then(|| start(socket));
            if with {
                tokio::time::sleep(Duration::from_secs(1)).await; // The exporter connects to the node.
            }
            let turn = turn(&mining, time).await;
            println!("{with}, {}, {:.3}, {:.3}, {:.3}", turn.templates, turn.mean, turn.median, turn.tail);
            turns[usize::from(with)].push(turn);
            if let Some(exporter) = exporter {
                end(exporter);
            }
        }
    }
    let ratio = |of: fn(&Turn) -> f64| {
        let sum = |turns: &[Turn]| turns.iter().map(of).sum::<f64>();
        sum(&turns[1]) / sum(&turns[0])
    };
    println!(
        "with the exporter to without: mean {:.3}, median {:.3}, 99th percentile {:.3}",
        ratio(|it| it.mean),
        ratio(|it| it.median),
        ratio(|it| it.tail)
    );
    // Before this client disconnects, the node's worker thread gets time to clean up after the last call.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Requests block templates without pauses for the duration `time`. Returns the number of templates and the statistics
/// of the time for a template.
async fn turn(mining: &Mining, time: Duration) -> Turn {
    let since = Instant::now();
    let mut took = Vec::new();
    while since.elapsed() < time {
        let asked = Instant::now();
        let template = mining.create_new_block().await.unwrap().expect("the node is not shutting down");
        took.push(asked.elapsed().as_secs_f64() * 1e3);
        template.destroy().await.unwrap();
    }
    took.sort_by(f64::total_cmp);
    let templates = took.len();
    let mean = took.iter().sum::<f64>() / templates as f64;
    Turn { templates, mean, median: took[templates / 2], tail: took[templates * 99 / 100] }
}

/// Starts an exporter with default options, except for its port.
fn start(socket: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"));
    command
        .arg(socket)
        .args(["--metrics-addr", "127.0.0.1:0"])
        .env(bitcoind_exporter::supervisor::IN_CONTAINER, "0");
    command.stderr(Stdio::null()).spawn().expect("the exporter starts")
}

/// Stops an exporter with SIGTERM, and waits until it has exited.
fn end(mut exporter: Child) {
    let pid = nix::unistd::Pid::from_raw(exporter.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    exporter.wait().unwrap();
}
