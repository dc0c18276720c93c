//! Measures the time from a node's callback to the response of three processes: the guard (the exporter's process that
//! is connected to the node), a subscriber that uses only capnp-rpc, and a process that only sends a message of the
//! same size over a socket (ping-pong). One run measures the three processes alternately. Prints the median time of
//! each process, and the ratios of these medians.
//!
//!     cargo bench --bench callback

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bitcoind_exporter::GUARD_ARGUMENT;
use bitcoind_exporter::testing::schema::chain_capnp::chain_notifications;
use bitcoind_exporter::testing::schema::tracing_capnp::utxo_cache_trace;
use capnp::serialize::write_message_to_words;
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::message;
use capnp_rpc::{RpcSystem, new_client, rpc_twoparty_capnp::Side, twoparty};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

/// First argument of this program when it runs as the ping-pong process.
const ECHO: &str = "--echo";
/// First argument of this program when it runs as the subscriber that uses only capnp-rpc.
const SUBSCRIBER: &str = "--subscriber";
const ROUNDS: usize = 20;

/// A callback whose response time is measured, with the number of calls to each process in a round.
struct Callback {
    name: &'static str,
    /// Encodes the node's call to the callback object with this export ID.
    build: fn(u32) -> Vec<u8>,
    calls: usize,
}

const CALLBACKS: [Callback; 3] = [
    Callback { name: "UtxoCacheTrace.add", build: coin, calls: 2_000 },
    Callback { name: "transactionAddedToMempool (300 bytes)", build: transaction, calls: 2_000 },
    Callback { name: "blockConnected (4 MB)", build: block, calls: 20 },
];

/// Encodes a call of the node to the object with the export ID `target`.
fn call(target: u32, interface: u64, method: u16, fill: impl FnOnce(capnp::any_pointer::Builder)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut call = message.init_root::<message::Builder>().init_call();
    call.set_question_id(7);
    call.set_interface_id(interface);
    call.set_method_id(method);
    call.reborrow().init_target().set_imported_cap(target);
    fill(call.init_params().get_content());
    write_message_to_words(&message)
}

/// The encoded call of `UtxoCacheTrace.add`.
fn coin(target: u32) -> Vec<u8> {
    call(target, utxo_cache_trace::Client::TYPE_ID, 1, |content| {
        let mut coin = content.init_as::<utxo_cache_trace::add_params::Builder>().init_utxo_info();
        coin.set_outpoint_hash(&[7; 32]);
        coin.set_value(5_000_000_000);
    })
}

/// The encoded call of `transactionAddedToMempool`, with a transaction of 300 bytes.
fn transaction(target: u32) -> Vec<u8> {
    call(target, chain_notifications::Client::TYPE_ID, 1, |content| {
        content
            .init_as::<chain_notifications::transaction_added_to_mempool_params::Builder>()
            .set_tx(&[7; 300]);
    })
}

/// The encoded call of `blockConnected`, with a block of 4 MB.
fn block(target: u32) -> Vec<u8> {
    call(target, chain_notifications::Client::TYPE_ID, 3, |content| {
        let params = content.init_as::<chain_notifications::block_connected_params::Builder>();
        params.init_block().set_data(&block_data());
    })
}

/// A serialized block of 4 MB with 10,000 transactions, more than a real block has. The number of transactions matters,
/// because the guard parses each transaction of a connected block.
fn block_data() -> Vec<u8> {
    let mut block = bitcoin::constants::genesis_block(bitcoin::Network::Regtest);
    let mut transaction = block.txdata[0].clone();
    transaction.input[0].witness.push([7; 190]);
    block.txdata.extend(vec![transaction; 10_000]);
    bitcoin::consensus::serialize(&block)
}

/// The encoded `Finish` message that the node sends after the response to a callback.
fn finish() -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    message.init_root::<message::Builder>().init_finish().set_question_id(7);
    write_message_to_words(&message)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A function that reads the response to a callback from a socket into a buffer.
type Reads = fn(&mut UnixStream, &mut Vec<u8>);

/// Sends an encoded callback (`request`), reads the response, and then sends the `Finish` message `after`. Returns the
/// time from the first byte of the request to the last byte of the response.
fn ask(socket: &mut UnixStream, read: Reads, request: &[u8], answer: &mut Vec<u8>, after: &[u8]) -> Duration {
    let asked = Instant::now();
    socket.write_all(request).unwrap();
    read(socket, answer);
    let took = asked.elapsed();
    socket.write_all(after).unwrap();
    took
}

/// Reads the next Cap'n Proto message into `frame`.
fn read_frame(socket: &mut UnixStream, frame: &mut Vec<u8>) {
    frame.resize(8, 0);
    socket.read_exact(frame).unwrap();
    let word =
        |frame: &[u8], at: usize| u32::from_le_bytes(frame[at * 4..][..4].try_into().unwrap()) as usize;
    let segments = word(frame, 0) + 1;
    let header = (segments + 2) / 2 * 8;
    frame.resize(header, 0);
    socket.read_exact(&mut frame[8..]).unwrap();
    let words: usize = (1..=segments).map(|segment| word(frame, segment)).sum();
    frame.resize(header + words * 8, 0);
    socket.read_exact(&mut frame[header..]).unwrap();
}

/// Reads Cap'n Proto messages up to the first response (`Return`).
fn read_answer(socket: &mut UnixStream, frame: &mut Vec<u8>) {
    loop {
        read_frame(socket, frame);
        let message = capnp::serialize::read_message(&frame[..], Default::default()).unwrap();
        if matches!(message.get_root::<message::Reader>().unwrap().which(), Ok(message::Return(_))) {
            return;
        }
    }
}

/// Starts this program as a child process with a connected socket as descriptor 0. Returns the other end of the socket,
/// and the child process.
fn start(arguments: &[String]) -> (UnixStream, Child) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .expect("this program starts again");
    (ours, child)
}

/// Runs the ping-pong process, whose socket is descriptor 0. `sizes` are the sizes in bytes of a request, of a
/// response, and of the message that follows the response.
fn echo(mut sizes: impl Iterator<Item = String>) {
    let mut size = || sizes.next().unwrap().parse::<usize>().unwrap();
    let mut socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let (mut request, mut answer, mut after) = (vec![0; size()], vec![0; size()], vec![0; size()]);
    // Set the Cap'n Proto segment table of the response: one segment with this number of 8-byte words.
    let words = (answer.len() / 8 - 1) as u32;
    answer[4..8].copy_from_slice(&words.to_le_bytes());
    while socket.read_exact(&mut request).is_ok() {
        socket.write_all(&answer).unwrap();
        if socket.read_exact(&mut after).is_err() {
            return;
        }
    }
}

/// The callback object of a minimal client, which uses only capnp-rpc.
struct Subscriber;

impl chain_notifications::Server for Subscriber {
    async fn transaction_added_to_mempool(
        self: Rc<Self>,
        params: chain_notifications::TransactionAddedToMempoolParams,
        _: chain_notifications::TransactionAddedToMempoolResults,
    ) -> Result<(), capnp::Error> {
        std::hint::black_box(params.get()?.get_tx()?.len());
        Ok(())
    }

    async fn block_connected(
        self: Rc<Self>,
        params: chain_notifications::BlockConnectedParams,
        _: chain_notifications::BlockConnectedResults,
    ) -> Result<(), capnp::Error> {
        std::hint::black_box(params.get()?.get_block()?.get_data()?.len());
        Ok(())
    }
}

impl utxo_cache_trace::Server for Subscriber {
    async fn add(
        self: Rc<Self>,
        params: utxo_cache_trace::AddParams,
        _: utxo_cache_trace::AddResults,
    ) -> Result<(), capnp::Error> {
        std::hint::black_box(params.get()?.get_utxo_info()?.get_value());
        Ok(())
    }
}

/// Runs the subscriber that uses only capnp-rpc, whose socket is descriptor 0. The callback object is the bootstrap
/// capability of the connection.
fn subscriber(traces: bool) {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    socket.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (read, write) = tokio::net::UnixStream::from_std(socket).unwrap().into_split();
        let network =
            twoparty::VatNetwork::new(read.compat(), write.compat_write(), Side::Server, Default::default());
        let callback = if traces {
            new_client::<utxo_cache_trace::Client, _>(Subscriber).client
        } else {
            new_client::<chain_notifications::Client, _>(Subscriber).client
        };
        let _ = RpcSystem::new(Box::new(network), Some(callback)).await;
    });
}

/// Requests the subscriber's callback object. Returns the export ID of the object.
fn bootstrap(socket: &mut UnixStream) -> u32 {
    let mut message = capnp::message::Builder::new_default();
    message.init_root::<message::Builder>().init_bootstrap().set_question_id(0);
    socket.write_all(&write_message_to_words(&message)).unwrap();
    read_answer(socket, &mut Vec::new());
    0 // the ID of the first capability that the subscriber exports
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(ECHO) => return echo(arguments),
        Some(SUBSCRIBER) => return subscriber(arguments.next().is_some()),
        _ => {}
    }
    CALLBACKS.iter().for_each(measure);
}

/// Measures one callback with the three processes, and prints the median response time of each process and the ratios
/// of these medians.
fn measure(callback: &Callback) {
    let (mut node, guarded) = UnixStream::pair().unwrap();
    let (exporter, exporter_theirs) = UnixStream::pair().unwrap();
    let (mut events, events_theirs) = UnixStream::pair().unwrap();
    fcntl(&events_theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut guard = Command::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"))
        .args([GUARD_ARGUMENT, &events_theirs.as_raw_fd().to_string(), "-", "-"])
        .stdin(Stdio::from(OwnedFd::from(guarded)))
        .stdout(Stdio::from(OwnedFd::from(exporter_theirs)))
        .spawn()
        .expect("the guard starts");
    drop(events_theirs);
    std::thread::spawn(move || while events.read(&mut [0; 65_536]).is_ok_and(|read| read > 0) {});

    let traces = callback.name.starts_with("Utxo").then(|| "traces".to_string());
    let (mut bare, mut subscriber) =
        start(&[SUBSCRIBER.to_string()].into_iter().chain(traces).collect::<Vec<_>>());
    let target = bootstrap(&mut bare);

    let (request, after) = ((callback.build)(target), finish());
    let mut answer = Vec::new();
    ask(&mut node, read_answer, &request, &mut answer, &after);
    let sizes = [request.len(), answer.len(), after.len()].map(|size| size.to_string());
    let (mut ping, mut echo) = start(&[&[ECHO.to_string()], &sizes[..]].concat());

    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let ends: [(_, Reads); 3] =
            [(&mut node, read_answer), (&mut bare, read_answer), (&mut ping, read_frame)];
        for ((socket, read), times) in ends.into_iter().zip(&mut times) {
            times.extend((0..callback.calls).map(|_| ask(socket, read, &request, &mut answer, &after)));
        }
    }
    let [ours, bare_rpc, pong] = times.map(median);
    let ratio = |to: Duration| ours.as_secs_f64() / to.as_secs_f64();
    println!(
        "{}: guard {ours:?}, capnp-rpc {bare_rpc:?} (ratio {:.2}), bare ping-pong {pong:?} (ratio {:.2})",
        callback.name,
        ratio(bare_rpc),
        ratio(pong)
    );
    drop((node, exporter, bare, ping));
    for child in [&mut guard, &mut subscriber, &mut echo] {
        child.wait().unwrap();
    }
}
