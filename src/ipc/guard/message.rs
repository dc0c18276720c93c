//! A Cap'n Proto RPC message as what matters to the guard, and the messages that the guard writes itself.

use capnp::capability::FromClientHook;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::serialize::{NoAllocSliceSegments, read_message_from_flat_slice_no_alloc, write_message_to_words};
use capnp::traits::{HasTypeId, ImbueMut};
use capnp::{any_pointer, message};
use capnp_rpc::rpc_capnp::{self as rpc, cap_descriptor, message_target, payload, return_};

use super::frame::MAX_MESSAGE_BYTES;
use crate::schema::chain_capnp::{chain, chain_notifications};
use crate::schema::handler_capnp::handler;
use crate::schema::init_capnp::init;
use crate::schema::mining_capnp::mining;
use crate::schema::proxy_capnp::thread_map;
use crate::schema::tracing_capnp::{tracing, utxo_cache_trace};

/// A method: its interface's id and its ordinal in the schema.
pub type Method = (u64, u16);

// What the exporter asks of the node.
pub const CONSTRUCT: Method = (init::Client::TYPE_ID, 0);
pub const MAKE_THREAD: Method = (thread_map::Client::TYPE_ID, 0);
pub const WAIT_TIP_CHANGED: Method = (mining::Client::TYPE_ID, 3);
pub const HANDLE_NOTIFICATIONS: Method = (chain::Client::TYPE_ID, 39);
pub const TRACE_UTXO_CACHE: Method = (tracing::Client::TYPE_ID, 0);
pub const DISCONNECT: Method = (handler::Client::TYPE_ID, 1);

// What the node asks of us.
pub const ADDED_TO_MEMPOOL: Method = (chain_notifications::Client::TYPE_ID, 1);
pub const REMOVED_FROM_MEMPOOL: Method = (chain_notifications::Client::TYPE_ID, 2);
pub const BLOCK_CONNECTED: Method = (chain_notifications::Client::TYPE_ID, 3);
pub const BLOCK_DISCONNECTED: Method = (chain_notifications::Client::TYPE_ID, 4);
pub const UPDATED_TIP: Method = (chain_notifications::Client::TYPE_ID, 5);
pub const FLUSHED: Method = (chain_notifications::Client::TYPE_ID, 6);
pub const COIN_ADDED: Method = (utxo_cache_trace::Client::TYPE_ID, 1);
pub const COIN_SPENT: Method = (utxo_cache_trace::Client::TYPE_ID, 2);
pub const COIN_UNCACHED: Method = (utxo_cache_trace::Client::TYPE_ID, 3);

/// Whether the node calls a callback of a subscription; `destroy` is one.
pub fn is_callback((interface, _): Method) -> bool {
    interface == chain_notifications::Client::TYPE_ID || is_of_trace((interface, 0))
}

/// Whether it is a callback of the UTXO cache trace.
pub fn is_of_trace((interface, _): Method) -> bool {
    interface == utxo_cache_trace::Client::TYPE_ID
}

/// A frame whose segments were found.
pub type Frame<'a> = message::Reader<NoAllocSliceSegments<'a>>;

/// Finds the segments of a frame.
pub fn open(mut frame: &[u8]) -> capnp::Result<Frame<'_>> {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(2 * MAX_MESSAGE_BYTES / 8));
    read_message_from_flat_slice_no_alloc(&mut frame, options)
}

/// A message, whoever sent it.
pub enum Message<'a> {
    /// Asks for the other side's first capability.
    Bootstrap {
        /// The number that the answer will have.
        question: u32,
    },
    /// Calls a method of a capability.
    Call(Call<'a>),
    /// Answers a call or a bootstrap.
    Return(Return<'a>),
    /// The sender has no more use for the answer; before the answer, this cancels the call.
    Finish {
        /// The call's number.
        question: u32,
        /// Whether the capabilities of the answer are released with it.
        releases: bool,
    },
    /// The sender drops references to a capability of the receiver.
    Release {
        /// The receiver's number for it.
        export: u32,
        /// How many references.
        count: u32,
    },
    /// A promised capability became another one.
    Resolve(Capabilities),
    /// The sender gives the connection up.
    Abort,
    /// Any other kind. No node and no exporter of ours has a use for one.
    Other,
}

impl<'a> Message<'a> {
    /// Reads what the guard needs to know of a message.
    pub fn of<'b: 'a>(frame: &'a Frame<'b>) -> capnp::Result<Self> {
        Ok(match frame.get_root::<rpc::message::Reader>()?.which()? {
            rpc::message::Bootstrap(it) => Message::Bootstrap { question: it?.get_question_id() },
            rpc::message::Call(it) => Message::Call(Call::of(it?)?),
            rpc::message::Return(it) => Message::Return(Return::of(it?)?),
            rpc::message::Finish(it) => {
                let it = it?;
                Message::Finish { question: it.get_question_id(), releases: it.get_release_result_caps() }
            }
            rpc::message::Release(it) => {
                let it = it?;
                Message::Release { export: it.get_id(), count: it.get_reference_count() }
            }
            rpc::message::Resolve(it) => {
                let mut capabilities = Capabilities::default();
                if let rpc::resolve::Cap(descriptor) = it?.which()? {
                    capabilities.add(descriptor?)?;
                }
                Message::Resolve(capabilities)
            }
            rpc::message::Abort(_) => Message::Abort,
            _ => Message::Other,
        })
    }
}

/// What a call is made on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// A capability of the receiver's, by its number.
    Export(u32),
    /// A capability in the answer to another call of the sender's.
    Answer(u32),
}

/// A call of a method.
pub struct Call<'a> {
    /// The sender's number for it.
    pub question: u32,
    pub method: Method,
    pub target: Target,
    reader: rpc::call::Reader<'a>,
}

impl<'a> Call<'a> {
    fn of(reader: rpc::call::Reader<'a>) -> capnp::Result<Self> {
        let target = match reader.get_target()?.which()? {
            message_target::ImportedCap(id) => Target::Export(id),
            message_target::PromisedAnswer(answer) => Target::Answer(answer?.get_question_id()),
        };
        let method = (reader.get_interface_id(), reader.get_method_id());
        Ok(Call { question: reader.get_question_id(), method, target, reader })
    }

    /// The parameters. Capabilities in them cannot be used.
    pub fn parameters(&self) -> capnp::Result<any_pointer::Reader<'a>> {
        Ok(self.reader.get_params()?.get_content())
    }

    /// The capabilities that go with the parameters.
    pub fn capabilities(&self) -> capnp::Result<Capabilities> {
        Capabilities::of(self.reader.get_params()?)
    }
}

/// The answer to a call.
pub struct Return<'a> {
    pub question: u32,
    /// The sender has forgotten the call already and wants no `Finish`.
    pub no_finish_needed: bool,
    pub outcome: Outcome<'a>,
}

/// How a call ended.
pub enum Outcome<'a> {
    Results(Capabilities, any_pointer::Reader<'a>),
    /// It failed. The node's words, empty if they are not text.
    Exception(&'a str),
    /// Anything else: cancelled, or sent elsewhere.
    Other,
}

impl<'a> Return<'a> {
    fn of(reader: return_::Reader<'a>) -> capnp::Result<Self> {
        let outcome = match reader.which()? {
            return_::Results(results) => {
                let results = results?;
                Outcome::Results(Capabilities::of(results)?, results.get_content())
            }
            return_::Exception(exception) => {
                Outcome::Exception(exception?.get_reason()?.to_str().unwrap_or_default())
            }
            _ => Outcome::Other,
        };
        let no_finish_needed = reader.get_no_finish_needed();
        Ok(Return { question: reader.get_answer_id(), no_finish_needed, outcome })
    }
}

/// The capabilities that go with a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capabilities {
    /// Those that the sender hosts, by its numbers: each is one more reference that the receiver has.
    pub hosted: Vec<u32>,
    /// Those that the receiver hosts, by its numbers.
    pub imported: Vec<u32>,
    /// Those in answers that the receiver gives, by the questions' numbers.
    pub promised: Vec<u32>,
}

impl Capabilities {
    fn of(payload: payload::Reader) -> capnp::Result<Self> {
        let mut capabilities = Capabilities::default();
        for descriptor in payload.get_cap_table()? {
            capabilities.add(descriptor)?;
        }
        Ok(capabilities)
    }

    fn add(&mut self, descriptor: cap_descriptor::Reader) -> capnp::Result<()> {
        match descriptor.which()? {
            cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => self.hosted.push(id),
            cap_descriptor::ReceiverHosted(id) => self.imported.push(id),
            cap_descriptor::ReceiverAnswer(answer) => self.promised.push(answer?.get_question_id()),
            cap_descriptor::None(()) | cap_descriptor::ThirdPartyHosted(_) => {}
        }
        Ok(())
    }
}

/// A message of the guard's own to the node.
#[derive(Clone, Debug, PartialEq)]
pub enum Own {
    /// `ThreadMap.makeThread`
    MakeThread { question: u32, thread_map: u32 },
    /// `Mining.waitTipChanged`. The timeout is written as the exporter's own call had it.
    WaitTipChanged { question: u32, mining: u32, thread: u32, tip: Vec<u8>, timeout: f64 },
    /// `Handler.disconnect`
    Disconnect { question: u32, handler: u32, thread: u32 },
    /// An answer was taken in.
    Finish { question: u32, releases: bool },
}

impl Own {
    /// The message with its frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Builder::new_default();
        match *self {
            Own::MakeThread { question, thread_map } => {
                let params = init_call(&mut message, question, MAKE_THREAD, thread_map).init_params();
                let params = params.get_content().init_as::<thread_map::make_thread_params::Builder>();
                { params }.set_name("exporter-guard");
            }
            Own::WaitTipChanged { question, mining, thread, ref tip, timeout } => {
                let call = init_call(&mut message, question, WAIT_TIP_CHANGED, mining);
                let mut table = Vec::new();
                let mut content = on_thread(call, thread, &mut table);
                let mut params = content.reborrow().init_as::<mining::wait_tip_changed_params::Builder>();
                params.reborrow().init_context().set_thread(capability());
                params.set_current_tip(tip);
                params.set_timeout(timeout);
            }
            Own::Disconnect { question, handler, thread } => {
                let call = init_call(&mut message, question, DISCONNECT, handler);
                let mut table = Vec::new();
                let mut content = on_thread(call, thread, &mut table);
                let params = content.reborrow().init_as::<handler::disconnect_params::Builder>();
                params.init_context().set_thread(capability());
            }
            Own::Finish { question, releases } => {
                let mut finish = message.init_root::<rpc::message::Builder>().init_finish();
                finish.set_question_id(question);
                finish.set_release_result_caps(releases);
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

/// The place for the parameters of a call whose first and only capability is a thread of the node's.
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

/// A capability is written as its place in the message's table; which one it is, the table says.
fn capability<C: FromClientHook>() -> C {
    let broken = capnp_rpc::new_broken_cap(capnp::Error::failed("never called".into()));
    C::new(broken.hook)
}

/// An answer without results, as callbacks have. Built once; only the question's number differs.
pub struct EmptyAnswer {
    bytes: Vec<u8>,
    /// Where the question's number is.
    at: usize,
}

impl EmptyAnswer {
    pub fn new() -> Self {
        let build = |question| {
            let mut message = Builder::new_default();
            init_return(&mut message, question).init_results();
            write_message_to_words(&message)
        };
        let (bytes, other) = (build(0), build(u32::MAX));
        let differing: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at] != other[at]).collect();
        assert!(
            differing.len() == 4 && differing[3] == differing[0] + 3,
            "the number is four bytes in a row"
        );
        EmptyAnswer { bytes, at: differing[0] }
    }

    /// The answer to this question, with its frame.
    pub fn to(&mut self, question: u32) -> &[u8] {
        self.bytes[self.at..self.at + 4].copy_from_slice(&question.to_le_bytes());
        &self.bytes
    }
}

/// The answer to `makeThread`: a thread of ours, by our number for it.
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

/// The answer to a call of what we do not have.
pub fn unimplemented(question: u32) -> Vec<u8> {
    let mut message = Builder::new_default();
    let mut exception = init_return(&mut message, question).init_exception();
    exception.set_reason("Method not implemented.");
    exception.set_type(rpc::exception::Type::Unimplemented);
    write_message_to_words(&message)
}

fn init_return(message: &mut Builder<HeapAllocator>, question: u32) -> return_::Builder<'_> {
    let mut answer = message.init_root::<rpc::message::Builder>().init_return();
    answer.set_answer_id(question);
    // The receiver may let go of what it passed along.
    answer.set_release_param_caps(true);
    // Nor need it say that it has the answer. One built with a Cap'n Proto before 1.1 does all the same.
    answer.set_no_finish_needed(true);
    answer
}
