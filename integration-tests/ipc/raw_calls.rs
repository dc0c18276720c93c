//! Tests that a guard (the exporter's process that is connected to the node) does not forward messages that make a real
//! node crash, or make the node close the connection during other calls. The exporter never sends such messages.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bitcoind_exporter::testing::schema::init_capnp::init;
use bitcoind_exporter::testing::schema::mining_capnp::{block_template, mining};
use bitcoind_exporter::testing::schema::proxy_capnp::thread_map;
use bitcoind_exporter::testing::{OpenFiles, relay};
use capnp::capability::FromClientHook;
use capnp::message::{Builder, ReaderOptions};
use capnp::traits::{HasTypeId, ImbueMut};
use capnp::{any_pointer, serialize};
use capnp_rpc::rpc_capnp::{self as rpc, cap_descriptor, message_target, return_};

use crate::node::Node;

/// A placeholder for a capability in the parameters of a call. Cap'n Proto encodes a capability as a position in the
/// message's table of capabilities. The test never calls the placeholder.
fn reference<C: FromClientHook>() -> C {
    let broken = capnp_rpc::new_broken_cap(capnp::Error::failed("never called".into()));
    C::new(broken.hook)
}

/// Makes the only parameter of a call a `Context`, whose `thread` is the capability at `position` in the message's
/// table.
fn run_on(mut content: any_pointer::Builder, position: usize) {
    let mut table = Vec::new();
    table.resize_with(position, || None);
    let mut content = content.reborrow();
    content.imbue_mut(&mut table);
    let params = content.init_as::<init::make_mining_params::Builder>();
    params.init_context().set_thread(reference());
}

/// The target of a call on the node.
#[derive(Clone, Copy)]
enum Target {
    Capability(u32),
    /// The first capability in the response to the call with this question ID.
    Answer(u32),
}

impl Target {
    fn set(self, mut target: message_target::Builder) {
        match self {
            Target::Capability(id) => target.set_imported_cap(id),
            Target::Answer(question) => {
                let mut answer = target.init_promised_answer();
                answer.set_question_id(question);
                answer.init_transform(1).get(0).set_get_pointer_field(0);
            }
        }
    }
}

/// A client that writes each Cap'n Proto message itself, and can therefore send messages that the exporter never sends.
struct RawClient {
    stream: UnixStream,
    question: u32,
    init: u32,
    thread_map: u32,
}

impl RawClient {
    fn behind_guard(node: &Node) -> Self {
        let (ours, exporter) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (mut events, written) = UnixStream::pair().unwrap();
        let node = UnixStream::connect(node.socket()).unwrap();
        std::thread::spawn(move || relay(node, exporter, written, None, OpenFiles::default(), |_| ()));
        std::thread::spawn(move || std::io::copy(&mut events, &mut std::io::sink()));
        let mut client = RawClient { stream: ours, question: 0, init: 0, thread_map: 0 };
        client.send(|message| message.init_bootstrap().set_question_id(0));
        client.init = client.answer().expect("Init");
        client.thread_map = client.construct();
        client
    }

    fn construct(&mut self) -> u32 {
        let init = Target::Capability(self.init);
        self.call(init, (init::Client::TYPE_ID, 0), |call| {
            let mut params = call.init_params();
            params.reborrow().init_cap_table(1).get(0).set_sender_hosted(1);
            let mut table = Vec::new();
            let mut content = params.get_content();
            let mut content = content.reborrow();
            content.imbue_mut(&mut table);
            content.init_as::<init::construct_params::Builder>().set_thread_map(reference());
        });
        self.answer().expect("a thread map")
    }

    fn thread(&mut self) -> u32 {
        let map = Target::Capability(self.thread_map);
        self.call(map, (thread_map::Client::TYPE_ID, 0), |call| {
            call.init_params().get_content().init_as::<thread_map::make_thread_params::Builder>();
        });
        self.answer().expect("a thread")
    }

    fn mining(&mut self, thread: u32) -> u32 {
        let init = Target::Capability(self.init);
        self.call_on(thread, init, (init::Client::TYPE_ID, 3));
        self.answer().expect("Mining")
    }

    fn send(&mut self, build: impl FnOnce(rpc::message::Builder)) {
        let mut message = Builder::new_default();
        build(message.init_root());
        // The write fails if the guard has disconnected. The tests check at their end whether the guard has
        // disconnected.
        let _ = serialize::write_message(&mut self.stream, &message);
    }

    /// Sends a call, and returns the question ID of the call.
    fn call(&mut self, target: Target, method: (u64, u16), set: impl FnOnce(rpc::call::Builder)) -> u32 {
        self.question += 1;
        let question = self.question;
        self.send(|message| {
            let mut call = message.init_call();
            call.set_question_id(question);
            call.set_interface_id(method.0);
            call.set_method_id(method.1);
            target.set(call.reborrow().init_target());
            set(call);
        });
        question
    }

    /// Sends a call that runs on this thread of the node.
    fn call_on(&mut self, thread: u32, target: Target, method: (u64, u16)) -> u32 {
        self.call(target, method, |call| {
            let mut params = call.init_params();
            params.reborrow().init_cap_table(1).get(0).set_receiver_hosted(thread);
            run_on(params.get_content(), 0);
        })
    }

    /// Reads the next response. Returns the first capability in the response, or an error if the connection is closed.
    fn response(&mut self) -> Result<Option<u32>, capnp::Error> {
        loop {
            let message = serialize::read_message(&mut self.stream, ReaderOptions::new())?;
            let answer = match message.get_root::<rpc::message::Reader>()?.which()? {
                rpc::message::Return(answer) => answer,
                rpc::message::Abort(_) => panic!("the node has aborted the connection"),
                _ => continue,
            };
            let return_::Results(results) = answer?.which()? else { return Ok(None) };
            let table = results?.get_cap_table()?;
            return Ok(table.iter().find_map(|descriptor| match descriptor.which() {
                Ok(cap_descriptor::SenderHosted(id)) => Some(id),
                _ => None,
            }));
        }
    }

    fn answer(&mut self) -> Option<u32> {
        self.response().expect("a response")
    }

    /// Reads responses until the guard disconnects. Panics if the guard stays connected.
    fn assert_disconnected(mut self) {
        while self.response().is_ok() {}
        let read = self.stream.read(&mut [0]);
        assert!(
            !read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
            "the guard is still connected"
        );
    }
}

fn lives(mut node: Node) {
    assert_eq!(node.cli(&["getblockcount"]), "1");
    assert!(node.stop().success(), "{}", node.stderr());
}

#[test]
fn released_template_is_not_destroyed_and_read() {
    const CREATE: (u64, u16) = (mining::Client::TYPE_ID, 4);
    const DESTROY: (u64, u16) = (block_template::Client::TYPE_ID, 0);
    const GET_BLOCK: (u64, u16) = (block_template::Client::TYPE_ID, 2);
    let node = Node::start(&[]);
    node.mine(1);
    let mut client = RawClient::behind_guard(&node);
    let thread = client.thread();
    let mining = client.mining(thread);
    let created = client.call(Target::Capability(mining), CREATE, |call| {
        let mut params = call.init_params();
        params.reborrow().init_cap_table(1).get(0).set_receiver_hosted(thread);
        let mut table = Vec::new();
        let mut content = params.get_content();
        let mut content = content.reborrow();
        content.imbue_mut(&mut table);
        let mut params = content.init_as::<mining::create_new_block_params::Builder>();
        params.set_cooldown(false);
        params.reborrow().init_options();
        params.init_context().set_thread(reference());
    });
    let template = client.answer().expect("a template");
    client.send(|message| {
        let mut release = message.init_release();
        release.set_id(template);
        release.set_reference_count(1);
    });
    // The template was released, but the target of a call can still be the response to `createNewBlock`, which has the
    // template.
    for method in [DESTROY, GET_BLOCK, GET_BLOCK] {
        client.call_on(thread, Target::Answer(created), method);
        let _ = client.response();
    }
    client.assert_disconnected();
    lives(node);
}

#[test]
fn hidden_thread_does_not_run_two_calls() {
    const GET_TIP: (u64, u16) = (mining::Client::TYPE_ID, 2);
    let node = Node::start(&[]);
    node.mine(1);
    let mut client = RawClient::behind_guard(&node);
    let (thread, other) = (client.thread(), client.thread());
    let mining = Target::Capability(client.mining(thread));
    for _ in 0..100 {
        // The message's table of capabilities contains two threads, and the parameters refer to the second thread.
        client.call(mining, GET_TIP, |call| {
            let mut params = call.init_params();
            let mut table = params.reborrow().init_cap_table(2);
            table.reborrow().get(0).set_receiver_hosted(other);
            table.get(1).set_receiver_hosted(thread);
            run_on(params.get_content(), 1);
        });
        client.call_on(thread, mining, GET_TIP);
    }
    client.assert_disconnected();
    lives(node);
}

#[test]
fn call_with_an_unknown_recipient_disconnects_no_node() {
    const GET_TIP: (u64, u16) = (mining::Client::TYPE_ID, 2);
    let node = Node::start(&[]);
    node.mine(1);
    let mut client = RawClient::behind_guard(&node);
    let thread = client.thread();
    let mining = Target::Capability(client.mining(thread));
    client.call(mining, GET_TIP, |mut call| {
        call.reborrow().init_send_results_to().init_third_party();
        let mut params = call.init_params();
        params.reborrow().init_cap_table(1).get(0).set_receiver_hosted(thread);
        run_on(params.get_content(), 0);
    });
    client.assert_disconnected();
    lives(node);
}
