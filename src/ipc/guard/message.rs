//! The parts of a Cap'n Proto RPC message that the guard needs.

use capnp::message::ReaderOptions;
use capnp::serialize::{NoAllocSliceSegments, read_message_from_flat_slice_no_alloc};
use capnp::traits::HasTypeId;
use capnp::{any_pointer, message};
use capnp_rpc::rpc_capnp::{self as rpc, cap_descriptor, message_target, payload, return_};

use super::frame::MAX_MESSAGE_BYTES;
use crate::schema::chain_capnp::{chain, chain_notifications};
use crate::schema::handler_capnp::handler;
use crate::schema::init_capnp::init;
use crate::schema::mining_capnp::{block_template, mining};
use crate::schema::proxy_capnp::thread_map;
use crate::schema::tracing_capnp::{tracing, utxo_cache_trace};

/// A method: its interface's id and its ordinal in the schema.
pub type Method = (u64, u16);

// Calls of the exporter.
pub const CONSTRUCT: Method = (init::Client::TYPE_ID, 0);
pub const MAKE_THREAD: Method = (thread_map::Client::TYPE_ID, 0);
pub const WAIT_TIP_CHANGED: Method = (mining::Client::TYPE_ID, 3);
pub const CREATE_NEW_BLOCK: Method = (mining::Client::TYPE_ID, 4);
pub const DESTROY_TEMPLATE: Method = (block_template::Client::TYPE_ID, 0);
pub const HANDLE_NOTIFICATIONS: Method = (chain::Client::TYPE_ID, 39);
pub const TRACE_UTXO_CACHE: Method = (tracing::Client::TYPE_ID, 0);
pub const DISCONNECT: Method = (handler::Client::TYPE_ID, 1);

// Calls of the node.
pub const ADDED_TO_MEMPOOL: Method = (chain_notifications::Client::TYPE_ID, 1);
pub const REMOVED_FROM_MEMPOOL: Method = (chain_notifications::Client::TYPE_ID, 2);
pub const BLOCK_CONNECTED: Method = (chain_notifications::Client::TYPE_ID, 3);
pub const BLOCK_DISCONNECTED: Method = (chain_notifications::Client::TYPE_ID, 4);
pub const UPDATED_TIP: Method = (chain_notifications::Client::TYPE_ID, 5);
pub const FLUSHED: Method = (chain_notifications::Client::TYPE_ID, 6);
pub const COIN_ADDED: Method = (utxo_cache_trace::Client::TYPE_ID, 1);
pub const COIN_SPENT: Method = (utxo_cache_trace::Client::TYPE_ID, 2);
pub const COIN_UNCACHED: Method = (utxo_cache_trace::Client::TYPE_ID, 3);

/// Whether it is a method of a block template that reads: the block, the fees, the signature operations. Later ones
/// submit a block, or wait, under ordinals that differ between nodes.
pub fn reads_template((interface, ordinal): Method) -> bool {
    interface == block_template::Client::TYPE_ID && (2..=4).contains(&ordinal)
}

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
    /// Requests the other side's first capability.
    Bootstrap {
        /// The number that the answer will have.
        question: u32,
    },
    /// Calls a method of a capability.
    Call(Call<'a>),
    /// Answers a call or a bootstrap.
    Return(Return<'a>),
    /// The sender is done with the answer; before the answer, this cancels the call.
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
    Resolve(MessageCapabilities),
    /// The sender aborts the connection.
    Abort,
    /// Any other kind. No node and no exporter of ours uses one.
    Other,
}

impl<'a> Message<'a> {
    /// The same for a truncated message: the results of an answer are not read.
    pub fn parse_truncated<'b: 'a>(frame: &'a Frame<'b>) -> capnp::Result<Self> {
        match frame.get_root::<rpc::message::Reader>()?.which()? {
            rpc::message::Return(reader) => {
                let reader = reader?;
                let no_finish_needed = reader.get_no_finish_needed();
                let question = reader.get_answer_id();
                Ok(Message::Return(Return { question, no_finish_needed, outcome: Outcome::Other }))
            }
            _ => Message::parse(frame),
        }
    }

    /// Reads what the guard needs to know of a message.
    pub fn parse<'b: 'a>(frame: &'a Frame<'b>) -> capnp::Result<Self> {
        Ok(match frame.get_root::<rpc::message::Reader>()?.which()? {
            rpc::message::Bootstrap(reader) => Message::Bootstrap { question: reader?.get_question_id() },
            rpc::message::Call(reader) => Message::Call(Call::parse(reader?)?),
            rpc::message::Return(reader) => Message::Return(Return::parse(reader?)?),
            rpc::message::Finish(reader) => {
                let reader = reader?;
                Message::Finish {
                    question: reader.get_question_id(),
                    releases: reader.get_release_result_caps(),
                }
            }
            rpc::message::Release(reader) => {
                let reader = reader?;
                Message::Release { export: reader.get_id(), count: reader.get_reference_count() }
            }
            rpc::message::Resolve(reader) => {
                let mut capabilities = MessageCapabilities::default();
                if let rpc::resolve::Cap(descriptor) = reader?.which()? {
                    capabilities.add(descriptor?)?;
                }
                Message::Resolve(capabilities)
            }
            rpc::message::Abort(_) => Message::Abort,
            _ => Message::Other,
        })
    }
}

/// The target of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CallTarget {
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
    pub target: CallTarget,
    reader: rpc::call::Reader<'a>,
}

impl<'a> Call<'a> {
    fn parse(reader: rpc::call::Reader<'a>) -> capnp::Result<Self> {
        let target = match reader.get_target()?.which()? {
            message_target::ImportedCap(id) => CallTarget::Export(id),
            message_target::PromisedAnswer(answer) => CallTarget::Answer(answer?.get_question_id()),
        };
        let method = (reader.get_interface_id(), reader.get_method_id());
        Ok(Call { question: reader.get_question_id(), method, target, reader })
    }

    /// The parameters. Capabilities in them cannot be used.
    pub fn parameters(&self) -> capnp::Result<any_pointer::Reader<'a>> {
        Ok(self.reader.get_params()?.get_content())
    }

    /// The capabilities that go with the parameters.
    pub fn capabilities(&self) -> capnp::Result<MessageCapabilities> {
        MessageCapabilities::from_payload(self.reader.get_params()?)
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
    Results(MessageCapabilities, any_pointer::Reader<'a>),
    /// It failed. The node's reason, empty if it is not text.
    Exception(&'a str),
    /// Anything else: cancelled, sent elsewhere, or too large.
    Other,
}

impl<'a> Return<'a> {
    fn parse(reader: return_::Reader<'a>) -> capnp::Result<Self> {
        let outcome = match reader.which()? {
            return_::Results(results) => {
                let results = results?;
                Outcome::Results(MessageCapabilities::from_payload(results)?, results.get_content())
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

impl Outcome<'_> {
    /// The capabilities of the sender that came with the answer.
    pub fn hosted(&self) -> &[u32] {
        match self {
            Outcome::Results(capabilities, _) => &capabilities.hosted,
            Outcome::Exception(_) | Outcome::Other => &[],
        }
    }
}

/// The capabilities that go with a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MessageCapabilities {
    /// Those that the sender hosts, by its numbers: each is one more reference that the receiver has.
    pub hosted: Vec<u32>,
    /// Those that the receiver hosts, by its numbers.
    pub imported: Vec<u32>,
    /// Those in answers that the receiver gives, by the questions' numbers.
    pub promised: Vec<u32>,
}

impl MessageCapabilities {
    fn from_payload(payload: payload::Reader) -> capnp::Result<Self> {
        let mut capabilities = MessageCapabilities::default();
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
