//! Fuzzes the guard (the process between a node and an exporter) with an exporter that sends arbitrary messages, and
//! with a fake node that behaves correctly. The input selects the messages of the exporter and of the node.
//!
//! The fake node panics if the guard forwards a call that would change the state of a real node, or if the guard does
//! something that would make a real node disconnect, abort or hang: a protocol violation, a cancelled call, a second
//! disconnect of a handler, two concurrent calls on a block template, a call on a template after its destroy, a
//! template that is not released, or a close during a call or with a subscription. The guard must respond to each of
//! the node's calls exactly once.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bitcoind_exporter::testing::schema::chain_capnp::{chain, chain_notifications};
use bitcoind_exporter::testing::schema::handler_capnp::handler;
use bitcoind_exporter::testing::schema::init_capnp::init;
use bitcoind_exporter::testing::schema::mining_capnp::{block_template, mining};
use bitcoind_exporter::testing::schema::node_capnp::node;
use bitcoind_exporter::testing::schema::proxy_capnp::thread_map;
use bitcoind_exporter::testing::schema::rpc_capnp::rpc;
use bitcoind_exporter::testing::schema::tracing_capnp::{tracing, utxo_cache_trace};
use bitcoind_exporter::testing::{OpenFiles, relay};
use capnp::message::{Builder, ReaderOptions};
use capnp::serialize::{read_message_from_flat_slice, write_message_to_words};
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::{cap_descriptor, message, message_target, return_};
use libfuzzer_sys::fuzz_target;

const METHODS: [(u64, u16); 19] = [
    (init::Client::TYPE_ID, 0),
    (thread_map::Client::TYPE_ID, 0),
    (mining::Client::TYPE_ID, 3),
    (chain::Client::TYPE_ID, 39),
    (tracing::Client::TYPE_ID, 0),
    (handler::Client::TYPE_ID, 1),
    (init::Client::TYPE_ID, 3),
    (chain::Client::TYPE_ID, 1),
    (mining::Client::TYPE_ID, 4),
    (block_template::Client::TYPE_ID, 3),
    (block_template::Client::TYPE_ID, 2),
    (block_template::Client::TYPE_ID, 0),
    (block_template::Client::TYPE_ID, 7),
    (init::Client::TYPE_ID, 6),
    (mining::Client::TYPE_ID, 9),
    (node::Client::TYPE_ID, 12),
    (node::Client::TYPE_ID, 23),
    (rpc::Client::TYPE_ID, 0),
    (0, 0),
];
/// Calls that the guard must reject: they load wallets, submit a solution or a block, shut down the node, disconnect
/// peers, are JSON-RPC without a method, or belong to an unknown interface.
const FORBIDDEN: &[(u64, u16)] = METHODS.split_at(12).1;
const MAKE_THREAD: (u64, u16) = METHODS[1];
const WAIT_TIP_CHANGED: (u64, u16) = METHODS[2];
const DISCONNECT: (u64, u16) = METHODS[5];
const CREATE_NEW_BLOCK: (u64, u16) = METHODS[8];
const TEMPLATE_READS: [(u64, u16); 2] = [METHODS[9], METHODS[10]];
const DESTROY_TEMPLATE: (u64, u16) = METHODS[11];

/// A call that the fake node has received from the guard, and for which the guard has not sent a `Finish` message.
struct ReceivedCall {
    method: Option<(u64, u16)>,
    target: u32,
    callback: Option<u32>,
    answered: bool,
    results: Vec<u32>,
}

/// A fake node that panics if a message of the guard would make a real node disconnect, abort or hang, or would change
/// the state of a real node.
struct Node {
    socket: UnixStream,
    buffer: Vec<u8>,
    closed: bool,
    questions: BTreeMap<u32, ReceivedCall>,
    exports: BTreeMap<u32, u32>,
    /// Export ID of the callback of each subscription, by the export ID of the subscription's handler.
    subscriptions: BTreeMap<u32, u32>,
    disconnected: BTreeSet<u32>,
    /// For each block template, by its export ID: whether the guard has called `destroy` on the template.
    templates: BTreeMap<u32, bool>,
    /// Question IDs of the node's calls to which the guard has not responded.
    unanswered_calls: BTreeSet<u32>,
    next: u32,
}

fn build(fill: impl FnOnce(message::Builder)) -> Vec<u8> {
    let mut message = Builder::new_default();
    fill(message.init_root());
    write_message_to_words(&message)
}

fn call(question: u32, target: u32, (interface, method): (u64, u16), caps: &[(bool, u32)]) -> Vec<u8> {
    build(|it| {
        let mut call = it.init_call();
        call.set_question_id(question);
        call.set_interface_id(interface);
        call.set_method_id(method);
        call.reborrow().init_target().set_imported_cap(target);
        let mut table = call.init_params().init_cap_table(caps.len() as u32);
        for (i, &(hosted, id)) in caps.iter().enumerate() {
            let mut descriptor = table.reborrow().get(i as u32);
            if hosted { descriptor.set_sender_hosted(id) } else { descriptor.set_receiver_hosted(id) }
        }
    })
}

impl Node {
    fn send(&mut self, frame: &[u8]) {
        let _ = self.socket.write_all(frame);
    }

    /// Reads the messages that the guard has sent so far, and handles them.
    fn read_messages(&mut self) {
        let mut chunk = [0; 65_536];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => {
                    self.closed = true;
                    break;
                }
                Ok(read) => self.buffer.extend(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.closed = true;
                    break;
                }
            }
        }
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[..];
        loop {
            let mut next = rest;
            let Ok(frame) = read_message_from_flat_slice(&mut next, ReaderOptions::new()) else { break };
            self.handle_message(frame.get_root().expect("the guard sends messages"));
            rest = next;
        }
        self.buffer = rest.to_vec();
    }

    fn handle_message(&mut self, message: message::Reader) {
        match message.which().expect("a known type of message") {
            message::Bootstrap(it) => self.record_call(it.unwrap().get_question_id(), None, 0, None),
            message::Call(it) => {
                let it = it.unwrap();
                let method = (it.get_interface_id(), it.get_method_id());
                assert!(!FORBIDDEN.contains(&method), "the guard forwarded a forbidden call");
                let target = match it.get_target().unwrap().which().unwrap() {
                    message_target::ImportedCap(id) => {
                        assert!(self.exports.contains_key(&id), "a call on an unknown export");
                        id
                    }
                    message_target::PromisedAnswer(it) => {
                        let asked = self
                            .questions
                            .get(&it.unwrap().get_question_id())
                            .expect("a call pipelined on an unknown question");
                        assert!(
                            asked.method != Some(CREATE_NEW_BLOCK),
                            "a call pipelined on a template that was not returned yet"
                        );
                        u32::MAX
                    }
                };
                let mut callback = None;
                for descriptor in it.get_params().unwrap().get_cap_table().unwrap() {
                    match descriptor.which().unwrap() {
                        cap_descriptor::ReceiverHosted(id) => {
                            assert!(self.exports.contains_key(&id), "an unknown export as a parameter")
                        }
                        cap_descriptor::SenderHosted(id) => callback = callback.or(Some(id)),
                        _ => {}
                    }
                }
                if method == DISCONNECT && self.subscriptions.contains_key(&target) {
                    assert!(self.disconnected.insert(target), "a second disconnect of a handler");
                }
                if method == CREATE_NEW_BLOCK {
                    let asked = |it: &ReceivedCall| it.method == Some(method) && !it.answered;
                    let busy = self.questions.values().any(asked) || !self.templates.is_empty();
                    assert!(!busy, "a second template before the first was released");
                }
                if let Some(destroyed) = self.templates.get(&target) {
                    assert!(!destroyed, "a call on a destroyed template");
                    assert!(!self.is_called(target), "two concurrent calls on a template");
                    let destroys = method == DESTROY_TEMPLATE;
                    assert!(
                        destroys || TEMPLATE_READS.contains(&method),
                        "a call on a template that does not only read"
                    );
                    self.templates.insert(target, destroys);
                }
                self.record_call(it.get_question_id(), Some(method), target, callback);
            }
            message::Finish(it) => {
                let it = it.unwrap();
                let asked =
                    self.questions.remove(&it.get_question_id()).expect("a finish of an unknown question");
                assert!(asked.answered, "a finish before the response, which cancels the call");
                if it.get_release_result_caps() {
                    asked.results.iter().for_each(|&id| self.release(id, 1));
                }
            }
            message::Release(it) => {
                let it = it.unwrap();
                self.release(it.get_id(), it.get_reference_count());
            }
            message::Return(it) => {
                assert!(
                    self.unanswered_calls.remove(&it.unwrap().get_answer_id()),
                    "a response to an unknown or already answered call"
                );
            }
            _ => panic!("a message that would end the connection"),
        }
    }

    fn record_call(&mut self, number: u32, method: Option<(u64, u16)>, target: u32, callback: Option<u32>) {
        let asked = ReceivedCall { method, target, callback, answered: false, results: Vec::new() };
        assert!(self.questions.insert(number, asked).is_none(), "a question ID that is in use");
    }

    fn release(&mut self, id: u32, count: u32) {
        let Some(held) = self.exports.get_mut(&id) else {
            return assert_eq!(count, 0, "a release of an unknown export");
        };
        assert!(*held >= count, "more references released than held");
        *held -= count;
        if *held == 0 {
            assert!(
                !self.subscriptions.contains_key(&id),
                "a handler released before its subscription has ended"
            );
            assert!(
                !self.is_called(id) || !self.templates.contains_key(&id),
                "a template released during a call on it"
            );
            self.templates.remove(&id);
            self.exports.remove(&id);
        }
    }

    fn is_called(&self, id: u32) -> bool {
        self.questions.values().any(|it| it.target == id && !it.answered)
    }

    /// Responds to one of the guard's calls, with results or with an error. `which` selects the call, and `how` selects
    /// the response.
    fn respond(&mut self, which: u8, how: u8) {
        let open: Vec<u32> =
            self.questions.iter().filter(|(_, it)| !it.answered).map(|(id, _)| *id).collect();
        let Some(&number) = open.get(usize::from(which) % open.len().max(1)) else { return };
        self.next += 1;
        let new = self.next;
        let asked = self.questions.get_mut(&number).unwrap();
        asked.answered = true;
        let fails = how % 5 == 4;
        let on_template = self.templates.contains_key(&asked.target);
        let returns_nothing =
            [Some(WAIT_TIP_CHANGED), Some(DISCONNECT)].contains(&asked.method) || on_template;
        let returns_capability = !fails && !returns_nothing;
        if returns_capability {
            asked.results.push(new);
        }
        let (method, target, callback) = (asked.method, asked.target, asked.callback);
        let subscribes = [Some(METHODS[3]), Some(METHODS[4])].contains(&method);
        if returns_capability {
            self.exports.insert(new, 1);
            if method == Some(CREATE_NEW_BLOCK) {
                self.templates.insert(new, false);
            }
            if let (true, Some(callback)) = (subscribes, callback) {
                self.subscriptions.insert(new, callback);
            }
        }
        if fails && method == Some(DISCONNECT) {
            self.disconnected.remove(&target); // After an error, the guard may call disconnect again.
        }
        let frame = build(|it| {
            let mut answer: return_::Builder = it.init_return();
            answer.set_answer_id(number);
            if fails {
                answer.init_exception().set_reason("thread busy");
                return;
            }
            let mut payload = answer.init_results();
            if returns_capability {
                payload.reborrow().init_cap_table(1).get(0).set_sender_hosted(new);
            }
            if method == Some(WAIT_TIP_CHANGED) {
                let results = payload.get_content().init_as::<mining::wait_tip_changed_results::Builder>();
                if how % 5 != 3 {
                    results.init_result().set_hash(&[how; 32]);
                }
            }
        });
        self.send(&frame);
    }

    /// Calls the callback of a subscription with a notification, with a request for a thread, or with an unknown
    /// method. Does nothing if the node has no subscription.
    fn make_callback(&mut self, what: u8) {
        let Some(&target) = self.subscriptions.values().next() else { return };
        self.next += 1;
        let question = self.next;
        let method = match what % 4 {
            0 => (chain_notifications::Client::TYPE_ID, u16::from(what / 4) % 7),
            1 => (utxo_cache_trace::Client::TYPE_ID, u16::from(what / 4) % 4),
            2 => MAKE_THREAD,
            _ => (7, 7),
        };
        self.unanswered_calls.insert(question);
        self.send(&call(question, target, method, &[]));
    }

    /// Releases the callback of a subscription whose handler was disconnected, if the call that made the subscription
    /// is finished, as a real node does.
    fn release_callback(&mut self) {
        let settled = |handler: &&u32| {
            let ends =
                |it: &ReceivedCall| it.method == Some(DISCONNECT) && it.target == **handler && !it.answered;
            let callback = self.subscriptions[handler];
            let subscribes = |it: &ReceivedCall| it.callback == Some(callback);
            !self.questions.values().any(|it| ends(it) || subscribes(it))
        };
        let Some(&handler) = self.disconnected.iter().find(settled) else { return };
        self.disconnected.remove(&handler);
        let callback = self.subscriptions.remove(&handler).expect("disconnected");
        self.send(&build(|it| {
            let mut release = it.init_release();
            release.set_id(callback);
            release.set_reference_count(1);
        }));
    }

    fn is_idle(&self) -> bool {
        self.subscriptions.is_empty()
            && self.templates.is_empty()
            && self.questions.values().all(|it| it.answered)
            && self.unanswered_calls.is_empty()
    }
}

fuzz_target!(|data: &[u8]| {
    let [(node, node_theirs), (mut exporter, exporter_theirs), (events, events_theirs)] =
        [(); 3].map(|()| UnixStream::pair().unwrap());
    for socket in [&node, &exporter] {
        socket.set_nonblocking(true).unwrap();
    }
    let guard = std::thread::spawn(move || {
        relay(
            node_theirs,
            exporter_theirs,
            events_theirs,
            Some(Duration::from_micros(1)),
            OpenFiles::default(),
            |_| (),
        )
    });
    let mut node = Node {
        socket: node,
        buffer: Vec::new(),
        closed: false,
        questions: BTreeMap::new(),
        exports: BTreeMap::new(),
        subscriptions: BTreeMap::new(),
        disconnected: BTreeSet::new(),
        templates: BTreeMap::new(),
        unanswered_calls: BTreeSet::new(),
        next: 0,
    };
    let mut sink = [0; 65_536];
    let mut steps = data.chunks_exact(4).take(400);
    for step in &mut steps {
        let [what, a, b, c] = *step else { unreachable!() };
        let (question, id) = (u32::from(a) % 16, u32::from(b) % 16);
        let exporter_frame = match what % 12 {
            0 => Some(build(|it| it.init_bootstrap().set_question_id(question))),
            1..=4 => {
                let thread = u32::from(c) % 8 + 1;
                let caps = [(true, u32::from(c) % 3), (false, thread)];
                let caps = if c > 200 { &caps[..1] } else { &caps[..] };
                Some(call(question, id, METHODS[usize::from(what / 12) % METHODS.len()], caps))
            }
            5 => Some(build(|it| {
                let mut finish = it.init_finish();
                finish.set_question_id(question);
                finish.set_release_result_caps(c & 1 == 1);
            })),
            6 if c > 128 => Some(build(|it| {
                let mut release = it.init_release();
                release.set_id(id);
                release.set_reference_count(u32::from(c) % 3);
            })),
            6 if c > 120 => Some(build(|it| it.init_abort().set_reason("bye"))),
            6 if c > 112 => Some(step.to_vec()),
            7 => {
                node.make_callback(a);
                None
            }
            8 => {
                node.release_callback();
                None
            }
            _ => {
                node.respond(a, b);
                None
            }
        };
        if let Some(frame) = exporter_frame {
            let _ = exporter.write_all(&frame);
        }
        // The input selects the steps after which the guard, which runs on another thread, gets time to handle the
        // message.
        if c & 3 == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
        node.read_messages();
        while exporter.read(&mut sink).is_ok_and(|read| read > 0) {}
        if node.closed {
            break;
        }
    }
    // The exporter exits, and the node responds to all calls. The guard must disconnect after these responses.
    drop(exporter);
    let since = Instant::now();
    while !node.closed {
        assert!(since.elapsed() < Duration::from_secs(20), "the guard does not disconnect");
        node.respond(0, 0);
        node.release_callback();
        std::thread::sleep(Duration::from_micros(200));
        node.read_messages();
    }
    guard.join().expect("the guard does not panic").expect("the node behaved");
    let unanswered: Vec<_> = node.questions.iter().filter(|(_, it)| !it.answered).map(|(id, _)| id).collect();
    assert!(
        node.is_idle(),
        "the guard disconnected with unfinished work: subscriptions {:?}, templates {:?}, questions {unanswered:?}, \
         calls {:?}",
        node.subscriptions,
        node.templates,
        node.unanswered_calls
    );
    drop(events);
});
