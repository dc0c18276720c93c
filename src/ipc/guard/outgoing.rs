//! Encodes the messages that the guard, the process between the node and the exporter, itself creates for the node and
//! for the exporter.

use capnp::any_pointer;
use capnp::capability::FromClientHook;
use capnp::message::{Builder, HeapAllocator};
use capnp::serialize::write_message_to_words;
use capnp::traits::ImbueMut;
use capnp_rpc::rpc_capnp::{self as rpc, return_};

use super::message::{DISCONNECT, MAKE_THREAD, Method, WAIT_TIP_CHANGED};
use crate::schema::handler_capnp::handler;
use crate::schema::mining_capnp::mining;
use crate::schema::proxy_capnp::thread_map;

/// A message to the node that originates in the guard, not in the exporter.
#[derive(Clone, Debug, PartialEq)]
pub enum GuardMessage {
    /// A call of `ThreadMap.makeThread`, which creates a thread of the node for the guard's long polls (calls of
    /// `waitTipChanged`).
    MakeThread { question: u32, thread_map: u32 },
    /// A call of `Mining.waitTipChanged`, with the timeout of the exporter's last call of this method to which the node
    /// responded with a tip.
    WaitTipChanged { question: u32, mining: u32, thread: u32, tip: Vec<u8>, timeout: f64 },
    /// A call of `Handler.disconnect`, which ends a subscription.
    Disconnect { question: u32, handler: u32, thread: u32 },
    /// Cap'n Proto `Finish`: the node may discard the results of the call with the ID `question`.
    Finish { question: u32, releases: bool },
    /// Cap'n Proto `Release`: drops `count` references to a block template of the node.
    Release { export: u32, count: u32 },
}

impl GuardMessage {
    /// Encodes the message, including its segment table.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Builder::new_default();
        match *self {
            GuardMessage::MakeThread { question, thread_map } => {
                let params = init_call(&mut message, question, MAKE_THREAD, thread_map).init_params();
                let params = params.get_content().init_as::<thread_map::make_thread_params::Builder>();
                { params }.set_name("exporter-guard");
            }
            GuardMessage::WaitTipChanged { question, mining, thread, ref tip, timeout } => {
                let call = init_call(&mut message, question, WAIT_TIP_CHANGED, mining);
                let mut table = Vec::new();
                let mut content = on_thread(call, thread, &mut table);
                let mut params = content.reborrow().init_as::<mining::wait_tip_changed_params::Builder>();
                params.reborrow().init_context().set_thread(capability());
                params.set_current_tip(tip);
                params.set_timeout(timeout);
            }
            GuardMessage::Disconnect { question, handler, thread } => {
                let call = init_call(&mut message, question, DISCONNECT, handler);
                let mut table = Vec::new();
                let mut content = on_thread(call, thread, &mut table);
                let params = content.reborrow().init_as::<handler::disconnect_params::Builder>();
                params.init_context().set_thread(capability());
            }
            GuardMessage::Finish { question, releases } => {
                let mut finish = message.init_root::<rpc::message::Builder>().init_finish();
                finish.set_question_id(question);
                finish.set_release_result_caps(releases);
            }
            GuardMessage::Release { export, count } => {
                let mut release = message.init_root::<rpc::message::Builder>().init_release();
                release.set_id(export);
                release.set_reference_count(count);
            }
        }
        write_message_to_words(&message)
    }
}

fn init_call(
    message: &mut Builder<HeapAllocator>,
    question: u32,
    method: Method,
    target: u32,
) -> rpc::call::Builder<'_> {
    let mut call = message.init_root::<rpc::message::Builder>().init_call();
    call.set_question_id(question);
    call.set_interface_id(method.0);
    call.set_method_id(method.1);
    call.reborrow().init_target().set_imported_cap(target);
    call
}

/// Initializes the parameters of a call. The call's capability table contains one entry, the node's thread that runs
/// the call.
fn on_thread<'a>(
    call: rpc::call::Builder<'a>,
    thread: u32,
    table: &'a mut Vec<Option<Box<dyn capnp::private::capability::ClientHook>>>,
) -> any_pointer::Builder<'a> {
    let mut params = call.init_params();
    params.reborrow().init_cap_table(1).get(0).set_receiver_hosted(thread);
    let mut content = params.get_content();
    content.imbue_mut(table);
    content
}

/// Returns a placeholder for the only capability of a message. The message refers to the capability by an index into
/// the message's capability table, which contains the capability's ID. The placeholder is never called.
pub(super) fn capability<C: FromClientHook>() -> C {
    let broken = capnp_rpc::new_broken_cap(capnp::Error::failed("never called".into()));
    C::new(broken.hook)
}

/// The encoded response without results that the guard sends to each callback. The message is encoded once, and only
/// the question ID is replaced for each response.
pub struct EmptyAnswer {
    bytes: Vec<u8>,
    /// Byte offset of the question ID in `bytes`.
    at: usize,
}

impl EmptyAnswer {
    pub fn new() -> Self {
        /// A question ID whose bytes occur nowhere else in the message.
        const PLACEHOLDER: u32 = 0xa5a5_a5a5;
        let mut message = Builder::new_default();
        init_return(&mut message, PLACEHOLDER).init_results();
        let bytes = write_message_to_words(&message);
        let at = bytes.windows(4).position(|bytes| bytes == PLACEHOLDER.to_le_bytes());
        EmptyAnswer { at: at.expect("the question ID is four bytes"), bytes }
    }

    /// The encoded response to the call with this question ID.
    pub fn for_question(&mut self, question: u32) -> &[u8] {
        self.bytes[self.at..self.at + 4].copy_from_slice(&question.to_le_bytes());
        &self.bytes
    }
}

/// Encodes the response to a `makeThread` call of the node. `thread` is the export ID of the thread object that the
/// guard hosts.
pub fn thread_answer(question: u32, thread: u32) -> Vec<u8> {
    let mut message = Builder::new_default();
    let mut payload = init_return(&mut message, question).init_results();
    payload.reborrow().init_cap_table(1).get(0).set_sender_hosted(thread);
    let mut table = Vec::new();
    let mut content = payload.get_content();
    content.imbue_mut(&mut table);
    content.init_as::<thread_map::make_thread_results::Builder>().set_result(capability());
    drop(table);
    write_message_to_words(&message)
}

/// Error text of the guard's response to the exporter if the guard cannot forward the node's response.
pub const TOO_LARGE: &str =
    "the node's response is larger than 64 MiB, or the guard has too little memory for it";

/// Encodes an error response to the exporter, which replaces a node's response that is too large. The flag
/// `no_finish_needed` of the node's response is kept, so the exporter sends a `Finish` if the node needs a `Finish`.
pub fn too_large(question: u32, no_finish_needed: bool) -> Vec<u8> {
    let mut message = Builder::new_default();
    let mut answer = init_return(&mut message, question);
    answer.set_release_param_caps(false);
    answer.set_no_finish_needed(no_finish_needed);
    let mut exception = answer.init_exception();
    exception.set_reason(TOO_LARGE);
    exception.set_type(rpc::exception::Type::Overloaded);
    write_message_to_words(&message)
}

/// Encodes the error response to a call of a method that the guard does not implement.
pub fn unimplemented(question: u32) -> Vec<u8> {
    exception(question, rpc::exception::Type::Unimplemented, "Method not implemented.")
}

/// Encodes the error response to a call of the exporter that the guard rejected, with the reason.
pub fn failed(question: u32, reason: &str) -> Vec<u8> {
    exception(question, rpc::exception::Type::Failed, reason)
}

fn exception(question: u32, kind: rpc::exception::Type, reason: &str) -> Vec<u8> {
    let mut message = Builder::new_default();
    let mut exception = init_return(&mut message, question).init_exception();
    exception.set_reason(reason);
    exception.set_type(kind);
    write_message_to_words(&message)
}

fn init_return(message: &mut Builder<HeapAllocator>, question: u32) -> return_::Builder<'_> {
    let mut answer = message.init_root::<rpc::message::Builder>().init_return();
    answer.set_answer_id(question);
    // The sender drops its references to the capabilities in the call's parameters, so the receiver need not wait for
    // `Release` messages.
    answer.set_release_param_caps(true);
    // The receiver need not send `Finish` for this call. Cap'n Proto versions before 1.1 ignore this flag and send
    // `Finish`.
    answer.set_no_finish_needed(true);
    answer
}
