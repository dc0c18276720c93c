//! How long a node waits for the answer to a callback: the guard against a bare socket ping-pong of the same sizes, in
//! one run, alternating. Prints medians and their ratio.
//!
//!     cargo bench --bench callback

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bitcoind_exporter::ipc::guard;
use bitcoind_exporter::schema::tracing_capnp::utxo_cache_trace;
use capnp::serialize::write_message_to_words;
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::message;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The first argument of the process at the other end of the bare ping-pong.
const ECHO: &str = "--echo";
const ROUNDS: usize = 20;
const CALLS: usize = 5_000;

/// `UtxoCacheTrace.add`, as the node sends it.
fn callback() -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut call = message.init_root::<message::Builder>().init_call();
    call.set_question_id(7);
    call.set_interface_id(utxo_cache_trace::Client::TYPE_ID);
    call.set_method_id(1);
    call.reborrow().init_target().set_imported_cap(3);
    let params = call.init_params().get_content().init_as::<utxo_cache_trace::add_params::Builder>();
    let mut coin = params.init_utxo_info();
    coin.set_outpoint_hash(&[7; 32]);
    coin.set_value(5_000_000_000);
    write_message_to_words(&message)
}

fn finish() -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    message.init_root::<message::Builder>().init_finish().set_question_id(7);
    write_message_to_words(&message)
}

/// Medians of the time from the last byte of the request to the last of the answer.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ask(socket: &mut UnixStream, request: &[u8], answer: &mut [u8], after: &[u8]) -> Duration {
    let asked = Instant::now();
    socket.write_all(request).unwrap();
    socket.read_exact(answer).unwrap();
    let took = asked.elapsed();
    socket.write_all(after).unwrap();
    took
}

/// The other end of the bare ping-pong, on descriptor 0.
fn echo(sizes: impl Iterator<Item = String>) {
    let sizes: Vec<usize> = sizes.map(|size| size.parse().unwrap()).collect();
    let mut socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let (mut request, answer, mut after) = (vec![0; sizes[0]], vec![0; sizes[1]], vec![0; sizes[2]]);
    while socket.read_exact(&mut request).is_ok() {
        socket.write_all(&answer).unwrap();
        if socket.read_exact(&mut after).is_err() {
            return;
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(ECHO) {
        return echo(arguments);
    }
    let (request, after) = (callback(), finish());

    let (mut node, guarded) = UnixStream::pair().unwrap();
    let (exporter, exporter_theirs) = UnixStream::pair().unwrap();
    let (mut events, events_theirs) = UnixStream::pair().unwrap();
    fcntl(&events_theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut guard = Command::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"))
        .args([guard::ARGUMENT, &events_theirs.as_raw_fd().to_string()])
        .stdin(Stdio::from(OwnedFd::from(guarded)))
        .stdout(Stdio::from(OwnedFd::from(exporter_theirs)))
        .spawn()
        .expect("the guard starts");
    drop(events_theirs);
    std::thread::spawn(move || while events.read(&mut [0; 65_536]).is_ok_and(|read| read > 0) {});
    // The length of an answer, from the first.
    node.write_all(&request).unwrap();
    let mut answer = vec![0; 4096];
    let length = node.read(&mut answer).unwrap();
    node.write_all(&after).unwrap();
    let mut answer = vec![0; length];

    // The same sizes, read and answered by a process that does nothing else.
    let (mut bare, theirs) = UnixStream::pair().unwrap();
    let sizes = [request.len(), length, after.len()].map(|size| size.to_string());
    let mut echo = Command::new(std::env::current_exe().unwrap())
        .arg(ECHO)
        .args(sizes)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .expect("this program starts again");

    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.extend((0..CALLS).map(|_| ask(&mut node, &request, &mut answer, &after)));
        baseline.extend((0..CALLS).map(|_| ask(&mut bare, &request, &mut answer, &after)));
    }
    let (ours, baseline) = (median(ours), median(baseline));
    println!(
        "bare ping-pong {baseline:?}, guard {ours:?}, ratio {:.2}",
        ours.as_secs_f64() / baseline.as_secs_f64()
    );
    drop((node, exporter, bare));
    guard.wait().unwrap();
    echo.wait().unwrap();
}
