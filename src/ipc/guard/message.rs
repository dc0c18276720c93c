//! Parses the parts of Cap'n Proto RPC messages that the guard, the process that relays messages between the node
//! and the exporter, needs. In Cap'n Proto, a *question ID* identifies a call, and an *export ID* identifies an object
//! that one side of the connection hosts for the other side.

use capnp::message::ReaderOptions;
use capnp::private::capability::ClientHook;
use capnp::serialize::{NoAllocSliceSegments, read_message_from_flat_slice_no_alloc};
use capnp::traits::{HasTypeId, Imbue};
use capnp::{any_pointer, message};
use capnp_rpc::rpc_capnp::{self as rpc, call, cap_descriptor, message_target, return_};

use super::frame::MAX_MESSAGE_BYTES;
use crate::schema::chain_capnp::{chain, chain_notifications};
use crate::schema::handler_capnp::handler;
use crate::schema::init_capnp::init;
use crate::schema::mining_capnp::{block_template, mining};
use crate::schema::proxy_capnp::thread_map;
use crate::schema::tracing_capnp::{tracing, utxo_cache_trace};

/// A method, identified by its interface ID and its ordinal in the schema.
pub type Method = (u64, u16);

// Methods of the node to which the guard applies special rules.
pub const CONSTRUCT: Method = (init::Client::TYPE_ID, 0);
pub const MAKE_THREAD: Method = (thread_map::Client::TYPE_ID, 0);
pub const WAIT_TIP_CHANGED: Method = (mining::Client::TYPE_ID, 3);
pub const CREATE_NEW_BLOCK: Method = (mining::Client::TYPE_ID, 4);
pub const DESTROY_TEMPLATE: Method = (block_template::Client::TYPE_ID, 0);
pub const HANDLE_NOTIFICATIONS: Method = (chain::Client::TYPE_ID, 39);
pub const TRACE_UTXO_CACHE: Method = (tracing::Client::TYPE_ID, 0);
pub const DISCONNECT: Method = (handler::Client::TYPE_ID, 1);

// Methods of the exporter's callback objects that the node calls.
pub const ADDED_TO_MEMPOOL: Method = (chain_notifications::Client::TYPE_ID, 1);
pub const REMOVED_FROM_MEMPOOL: Method = (chain_notifications::Client::TYPE_ID, 2);
pub const BLOCK_CONNECTED: Method = (chain_notifications::Client::TYPE_ID, 3);
pub const BLOCK_DISCONNECTED: Method = (chain_notifications::Client::TYPE_ID, 4);
pub const UPDATED_TIP: Method = (chain_notifications::Client::TYPE_ID, 5);
pub const FLUSHED: Method = (chain_notifications::Client::TYPE_ID, 6);
pub const COIN_ADDED: Method = (utxo_cache_trace::Client::TYPE_ID, 1);
pub const COIN_SPENT: Method = (utxo_cache_trace::Client::TYPE_ID, 2);
pub const COIN_UNCACHED: Method = (utxo_cache_trace::Client::TYPE_ID, 3);

/// Whether the method reads the block, the fees, or the signature operations of a block template. The ordinals of the
/// other template methods differ between versions of the node, and some of these methods submit a block or wait for a
/// new template.
pub fn reads_template((interface, ordinal): Method) -> bool {
    is_of_template((interface, ordinal)) && (2..=4).contains(&ordinal)
}

/// Whether the method belongs to a block template.
pub fn is_of_template((interface, _): Method) -> bool {
    interface == block_template::Client::TYPE_ID
}

/// Whether the method is a callback of a subscription. The method `destroy` of a callback object also counts as a
/// callback.
pub fn is_callback((interface, _): Method) -> bool {
    interface == chain_notifications::Client::TYPE_ID || is_of_trace((interface, 0))
}

/// Whether the method is a callback of the UTXO cache trace.
pub fn is_of_trace((interface, _): Method) -> bool {
    interface == utxo_cache_trace::Client::TYPE_ID
}

/// Reader of a Cap'n Proto message, which borrows the message's bytes without copying them.
pub type Frame<'a> = message::Reader<NoAllocSliceSegments<'a>>;

/// Parses the segment table of a complete message, and returns a reader of the message.
///
/// # Errors
/// The bytes are not a complete message with a valid segment table.
pub fn open(mut frame: &[u8]) -> capnp::Result<Frame<'_>> {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(2 * MAX_MESSAGE_BYTES / 8));
    read_message_from_flat_slice_no_alloc(&mut frame, options)
}

/// A parsed Cap'n Proto RPC message from the node or from the exporter.
pub enum Message<'a> {
    /// The sender requests the receiver's bootstrap capability.
    Bootstrap {
        /// The sender's question ID, which the response repeats.
        question: u32,
    },
    /// The sender calls a method of one of the receiver's capabilities.
    Call(Call<'a>),
    /// The sender responds to a call or a bootstrap request.
    Return(Return<'a>),
    /// The sender no longer needs the response to a call. A `Finish` that arrives before the response cancels the call.
    Finish {
        /// The question ID of the call.
        question: u32,
        /// Whether this message also releases the capabilities in the response.
        releases: bool,
    },
    /// The sender drops references to a capability that the receiver hosts.
    Release {
        /// The receiver's export ID for the capability.
        export: u32,
        /// Number of references to drop.
        count: u32,
    },
    /// The sender has resolved a promised capability to another capability, which has this export ID if the sender
    /// hosts it. The receiver gets one more reference to the capability.
    Resolve(Option<u32>),
    /// The sender aborts the connection.
    Abort,
    /// Any other message type. Bitcoin Core and the exporter send no messages of other types.
    Other,
}

impl<'a> Message<'a> {
    /// Parses the parts of a message that the guard needs. The results of a response that was truncated because of its
    /// size (`is_truncated`) are not parsed, because they are incomplete.
    ///
    /// # Errors
    /// The message has an invalid encoding, or a value that is not in Cap'n Proto's RPC schema.
    pub fn parse<'b: 'a>(frame: &'a Frame<'b>, is_truncated: bool) -> capnp::Result<Self> {
        Ok(match frame.get_root::<rpc::message::Reader>()?.which()? {
            rpc::message::Bootstrap(reader) => match reader? {
                reader if reader.has_deprecated_object_id() => Message::Other,
                reader => Message::Bootstrap { question: reader.get_question_id() },
            },
            rpc::message::Call(reader) => Message::Call(Call::parse(reader?)?),
            rpc::message::Return(reader) => Message::Return(Return::parse(reader?, is_truncated)?),
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
            rpc::message::Resolve(reader) => Message::Resolve(match reader?.which()? {
                rpc::resolve::Cap(descriptor) => hosted(descriptor?)?,
                rpc::resolve::Exception(_) => None,
            }),
            rpc::message::Abort(_) => Message::Abort,
            _ => Message::Other,
        })
    }
}

/// The capability on which a call is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CallTarget {
    /// A capability that the receiver hosts, identified by the receiver's export ID.
    Export(u32),
    /// A capability in the response to an earlier call of the sender, identified by the question ID of the earlier call
    /// (promise pipelining).
    Answer(u32),
}

/// A `Call` message, which calls a method of a capability.
pub struct Call<'a> {
    /// The sender's question ID, which the response repeats.
    pub question: u32,
    pub method: Method,
    pub target: CallTarget,
    reader: rpc::call::Reader<'a>,
}

impl<'a> Call<'a> {
    fn parse(reader: rpc::call::Reader<'a>) -> capnp::Result<Self> {
        let target = match reader.get_target()?.which()? {
            message_target::ImportedCap(id) => CallTarget::Export(id),
            message_target::PromisedAnswer(answer) => {
                /// Maximum number of pointers in the path from the root of a response to a capability in the response.
                const MAX_STEPS: u32 = 4;
                let answer = answer?;
                let steps = answer.get_transform()?;
                // The node closes the connection if the type of a step is not in the node's RPC schema.
                if steps.len() > MAX_STEPS || steps.iter().any(|step| step.which().is_err()) {
                    return Err(capnp::Error::failed("unknown path to a capability in a response".into()));
                }
                CallTarget::Answer(answer.get_question_id())
            }
        };
        let method = (reader.get_interface_id(), reader.get_method_id());
        Ok(Call { question: reader.get_question_id(), method, target, reader })
    }

    /// Reader of the call's parameters. The reader cannot resolve the capabilities in the parameters; see
    /// [`passed`](Self::passed).
    ///
    /// # Errors
    /// The message has an invalid encoding.
    pub fn parameters(&self) -> capnp::Result<any_pointer::Reader<'a>> {
        Ok(self.reader.get_params()?.get_content())
    }

    /// Whether the call has an option of Cap'n Proto that the exporter never uses. Because of such an option, a node
    /// closes the connection or does not send the results.
    ///
    /// # Errors
    /// The message has an invalid encoding, or a value of `sendResultsTo` that is not in Cap'n Proto's RPC schema.
    pub fn has_options(&self) -> capnp::Result<bool> {
        Ok(!matches!(self.reader.get_send_results_to().which()?, call::send_results_to::Caller(()))
            || self.reader.get_allow_third_party_tail_call()
            || self.reader.get_no_promise_pipelining()
            || self.reader.get_only_promise_pipeline())
    }

    /// The capabilities to which the parameters of the call refer. `None` if the message contains a capability to which
    /// the parameters do not refer, or a capability of a kind that the exporter never passes. The node uses only the
    /// capabilities to which the parameters refer.
    ///
    /// # Errors
    /// The parameters or the capability table of the message have an invalid encoding.
    pub fn passed(&self) -> capnp::Result<Option<PassedCapabilities>> {
        let payload = self.reader.get_params()?;
        let descriptors = payload.get_cap_table()?;
        match descriptors.len() {
            0 => return Ok(Some(PassedCapabilities::default())),
            1 | 2 => {}
            _ => return Ok(None),
        }
        // Placeholders for the capabilities in the message. The placeholders are never called. The address of a
        // placeholder identifies the capability.
        let stand_in = |_| Some(capnp_rpc::new_broken_cap(capnp::Error::failed("never called".into())).hook);
        let table: Vec<_> = descriptors.iter().map(stand_in).collect();
        let mut content = payload.get_content();
        content.imbue(&table);
        let [thread, hosted] = self.references(content)?;
        let descriptor = |stand_in: &dyn ClientHook| {
            let at = table.iter().flatten().position(|entry| entry.get_ptr() == stand_in.get_ptr())?;
            descriptors.get(at as u32).which().ok()
        };
        let mut passed = PassedCapabilities::default();
        if let Some(cap_descriptor::ReceiverHosted(id)) = thread.as_deref().and_then(descriptor) {
            passed.thread = Some(id);
        }
        if let Some(cap_descriptor::SenderHosted(id)) = hosted.as_deref().and_then(descriptor) {
            passed.hosted = Some(id);
        }
        let count = passed.thread.iter().chain(&passed.hosted).count();
        Ok((count == table.len()).then_some(passed))
    }

    /// Returns the two capabilities to which the parameters can refer: a thread of the node, and a thread map or
    /// callback of the exporter.
    fn references(&self, parameters: any_pointer::Reader) -> capnp::Result<[Option<Reference>; 2]> {
        if self.method == CONSTRUCT {
            let parameters: init::construct_params::Reader = parameters.get_as()?;
            let thread_map = parameters.has_thread_map().then(|| parameters.get_thread_map()).transpose()?;
            return Ok([None, thread_map.map(|client| client.client.hook)]);
        }
        // All other methods have the context, and the callback if the method takes one, at the same positions in the
        // parameters as `handleNotifications`.
        let parameters: chain::handle_notifications_params::Reader = parameters.get_as()?;
        let context = parameters.get_context()?;
        let takes_callback = [HANDLE_NOTIFICATIONS, TRACE_UTXO_CACHE].contains(&self.method);
        let has_callback = takes_callback && parameters.has_notifications();
        let thread = context.has_thread().then(|| context.get_thread()).transpose()?;
        let callback = has_callback.then(|| parameters.get_notifications()).transpose()?;
        Ok([thread.map(|client| client.client.hook), callback.map(|client| client.client.hook)])
    }
}

/// The placeholder of a capability to which the parameters of a call refer.
type Reference = Box<dyn ClientHook>;

/// The capabilities that a call of the exporter passes to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassedCapabilities {
    /// The node's export ID of the thread that is to run the call.
    pub thread: Option<u32>,
    /// The exporter's export ID of the exporter's thread map, or of a callback object.
    pub hosted: Option<u32>,
}

/// A `Return` message: the response to a call or to a bootstrap request.
pub struct Return<'a> {
    pub question: u32,
    /// Whether the sender of the response needs no `Finish` for this call, because it has already discarded the call's
    /// state.
    pub no_finish_needed: bool,
    pub outcome: Outcome<'a>,
}

/// The outcome of a call, which the response reports.
pub enum Outcome<'a> {
    /// The export IDs of the capabilities in the response that the sender of the response hosts, and the results. Each
    /// ID in the list gives the receiver one more reference to the capability.
    Results(Vec<u32>, any_pointer::Reader<'a>),
    /// The call failed. The text is the reason in the node's response, or empty if the reason is not valid UTF-8.
    Exception(&'a str),
    /// Any other outcome: the call was cancelled, the results were redirected, or the response was too large to parse.
    Other,
}

impl<'a> Return<'a> {
    fn parse(reader: return_::Reader<'a>, is_truncated: bool) -> capnp::Result<Self> {
        let outcome = match reader.which()? {
            _ if is_truncated => Outcome::Other,
            return_::Results(results) => {
                let results = results?;
                let capabilities = results.get_cap_table()?.iter();
                let hosted = capabilities.filter_map(|descriptor| hosted(descriptor).transpose());
                Outcome::Results(hosted.collect::<capnp::Result<_>>()?, results.get_content())
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
    /// The export IDs of the capabilities in the response that the sender of the response hosts.
    pub fn hosted(&self) -> &[u32] {
        match self {
            Outcome::Results(hosted, _) => hosted,
            Outcome::Exception(_) | Outcome::Other => &[],
        }
    }
}

/// The export ID of a capability that the sender of a message hosts and passes to the receiver; `None` for a capability
/// that the sender does not host.
fn hosted(descriptor: cap_descriptor::Reader) -> capnp::Result<Option<u32>> {
    Ok(match descriptor.which()? {
        cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => Some(id),
        _ => None,
    })
}
