//! One test for each rule that the guard applies to messages, and for each misbehavior of a real node that earlier
//! tests have found.

mod templates;

use capnp::any_pointer;
use capnp::message::Builder;
use capnp::serialize::write_message_to_words;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp as rpc;

use super::on_exporter_message::{MAX_CALLS, MAX_REFERENCES, MAX_REJECTED, MAX_THREADS};
use super::own_calls::{MAX_HANDSHAKE_WAIT, MAX_QUIET_WAIT, QUIET_TIME, SETTLE_TIME, SILENCE_TIMEOUT};
use super::shutdown_watch::{MIN_POLL_INTERVAL, MIN_SUBSCRIBED_POLL_INTERVAL, TAKEOVER_DELAY};
use super::*;
use crate::ipc::guard::message::{self, Message, Method};
use crate::ipc::guard::outgoing::capability;
use crate::ipc::mining::LONG_POLL;
use crate::schema::chain_capnp::chain;
use crate::schema::init_capnp::init;
use crate::schema::mining_capnp::mining;

const THREAD_MAP: u32 = 1;
const THREAD: u32 = 2;
const MINING: u32 = 3;
const CHAIN: u32 = 4;
const HANDLER: u32 = 5;
const TRACE_HANDLER: u32 = 6;
const CALLBACK: u32 = 70;
const TRACE_CALLBACK: u32 = 71;
const OWN_THREAD: u32 = 8;
/// A method on the allow-list to which no special rule of the guard applies.
const GET_HEIGHT: Method = (chain::Client::TYPE_ID, 1);
const TIP: [u8; 32] = [9; 32];
const OTHER_TIP: [u8; 32] = [8; 32];

fn message(build: impl FnOnce(rpc::message::Builder)) -> Vec<u8> {
    let mut message = Builder::new_default();
    build(message.init_root());
    write_message_to_words(&message)
}

fn bootstrap(question: u32) -> Vec<u8> {
    message(|it| it.init_bootstrap().set_question_id(question))
}

fn call(
    question: u32,
    target: u32,
    (interface, method): Method,
    hosted: &[u32],
    imported: &[u32],
) -> Vec<u8> {
    message(|it| {
        let mut call = it.init_call();
        call.set_question_id(question);
        call.set_interface_id(interface);
        call.set_method_id(method);
        call.reborrow().init_target().set_imported_cap(target);
        let mut params = call.init_params();
        let mut table = params.reborrow().init_cap_table((hosted.len() + imported.len()) as u32);
        for (i, id) in hosted.iter().enumerate() {
            table.reborrow().get(i as u32).set_sender_hosted(*id);
        }
        for (i, id) in imported.iter().enumerate() {
            table.reborrow().get((hosted.len() + i) as u32).set_receiver_hosted(*id);
        }
        // `set_parameters` requires that a hosted capability (a callback or the thread map) precedes the thread in the
        // message's table of capabilities.
        set_parameters(params.get_content(), (interface, method), !hosted.is_empty(), !imported.is_empty());
    })
}

/// Sets the parameters of a call: with `has_thread`, the first thread in the message's capability table, and with
/// `hosts`, the first capability in the message's table of capabilities.
fn set_parameters(mut content: any_pointer::Builder, method: Method, hosts: bool, has_thread: bool) {
    let mut table = Vec::new();
    let mut content = content.reborrow();
    content.imbue_mut(&mut table);
    let context = match method {
        message::CONSTRUCT => {
            let mut params = content.init_as::<init::construct_params::Builder>();
            return if hosts {
                params.set_thread_map(capability())
            };
        }
        message::WAIT_TIP_CHANGED => {
            let mut params = content.init_as::<mining::wait_tip_changed_params::Builder>();
            params.set_timeout(LONG_POLL.as_secs_f64() * 1000.0);
            params.init_context()
        }
        _ => {
            let mut params = content.init_as::<chain::handle_notifications_params::Builder>();
            if hosts {
                params.set_notifications(capability());
            }
            params.init_context()
        }
    };
    if has_thread {
        { context }.set_thread(capability());
    }
}

fn results(question: u32, hosted: &[u32]) -> Vec<u8> {
    message(|it| {
        let mut answer = it.init_return();
        answer.set_answer_id(question);
        let mut table = answer.init_results().init_cap_table(hosted.len() as u32);
        for (i, id) in hosted.iter().enumerate() {
            table.reborrow().get(i as u32).set_sender_hosted(*id);
        }
    })
}

fn tip_results(question: u32, tip: Option<[u8; 32]>) -> Vec<u8> {
    message(|it| {
        let mut answer = it.init_return();
        answer.set_answer_id(question);
        let content = answer.init_results().get_content();
        let results = content.init_as::<mining::wait_tip_changed_results::Builder>();
        if let Some(tip) = tip {
            results.init_result().set_hash(&tip);
        }
    })
}

fn failure(question: u32, why: &str) -> Vec<u8> {
    message(|it| {
        let mut answer = it.init_return();
        answer.set_answer_id(question);
        answer.init_exception().set_reason(why);
    })
}

fn finish(question: u32, releases: bool) -> Vec<u8> {
    GuardMessage::Finish { question, releases }.encode()
}

fn release(export: u32, count: u32) -> Vec<u8> {
    message(|it| {
        let mut release = it.init_release();
        release.set_id(export);
        release.set_reference_count(count);
    })
}

/// The protocol state of a guard without sockets, and the current time, which the test sets.
struct TestGuard {
    protocol: ProtocolState,
    now: Duration,
}

impl TestGuard {
    fn new() -> Self {
        TestGuard {
            protocol: ProtocolState::new(TraceBudget::new(None), Duration::from_secs(1)),
            now: Duration::from_secs(1),
        }
    }

    fn with_budget(budget: Duration) -> Self {
        let mut guard = TestGuard::new();
        guard.protocol = ProtocolState::new(TraceBudget::new(Some(budget)), guard.now);
        guard
    }

    fn passes(&mut self, time: Duration) {
        self.now += time;
    }

    fn exporter(&mut self, frame: Vec<u8>) -> ExporterMessageAction {
        let frame = message::open(&frame).unwrap();
        self.protocol.on_exporter(&Message::parse(&frame, false).unwrap(), self.now)
    }

    fn node(&mut self, frame: Vec<u8>) -> NodeMessageAction {
        let frame = message::open(&frame).unwrap();
        self.protocol.on_node(&Message::parse(&frame, false).unwrap(), self.now).unwrap()
    }

    fn calls(&mut self) -> Vec<GuardMessage> {
        std::iter::from_fn(|| self.protocol.next_call(self.now)).take(10).collect()
    }

    fn events(&mut self) -> Vec<GuardEvent> {
        std::iter::from_fn(|| self.protocol.next_event()).collect()
    }

    fn may_close(&self) -> bool {
        self.protocol.may_close(self.now)
    }

    /// Asserts that the guard may not close the connection yet. Returns whether the guard may close the connection
    /// after `SETTLE_TIME` without a message from the node.
    fn may_close_soon(&mut self) -> bool {
        assert!(!self.may_close(), "the node's thread may still be busy with the last call");
        self.passes(SETTLE_TIME);
        self.may_close()
    }

    /// Passes three messages to the guard: a call of the exporter, the node's response, and the exporter's `Finish`.
    fn asks(&mut self, frame: Vec<u8>, answer: Vec<u8>) {
        let question = match Message::parse(&message::open(&frame).unwrap(), false).unwrap() {
            Message::Bootstrap { question } => question,
            Message::Call(call) => call.question,
            _ => panic!("no question"),
        };
        assert_eq!(self.exporter(frame), ExporterMessageAction::Forward);
        assert_eq!(self.node(answer), NodeMessageAction::Forward);
        assert_eq!(self.exporter(finish(question, false)), ExporterMessageAction::Forward);
    }

    /// A guard whose exporter has completed the handshake, created a thread of the node, and requested the Mining and
    /// Chain interfaces.
    fn connected() -> Self {
        let mut guard = TestGuard::new();
        guard.connect();
        guard
    }

    fn connect(&mut self) {
        self.asks(bootstrap(0), results(0, &[0]));
        self.asks(call(1, 0, message::CONSTRUCT, &[50], &[]), results(1, &[THREAD_MAP]));
        self.asks(call(2, THREAD_MAP, message::MAKE_THREAD, &[], &[]), results(2, &[THREAD]));
        let make = |method| (crate::schema::init_capnp::init::Client::TYPE_ID, method);
        self.asks(call(3, 0, make(3), &[], &[THREAD]), results(3, &[MINING]));
        self.asks(call(4, 0, make(4), &[], &[THREAD]), results(4, &[CHAIN]));
        assert_eq!(self.calls(), []);
    }

    /// A guard that has sent its own long poll to the node, and the question ID of this long poll.
    fn watching() -> (Self, u32) {
        let mut guard = TestGuard::connected();
        let question = guard.watch();
        (guard, question)
    }

    fn watch(&mut self) -> u32 {
        self.asks(call(10, MINING, message::WAIT_TIP_CHANGED, &[], &[THREAD]), tip_results(10, Some(TIP)));
        self.passes(TAKEOVER_DELAY);
        let [GuardMessage::MakeThread { question, thread_map: THREAD_MAP }] = self.calls()[..] else {
            panic!()
        };
        assert_eq!(self.node(results(question, &[OWN_THREAD])), NodeMessageAction::Keep);
        let [
            finished,
            GuardMessage::WaitTipChanged { question: watch, mining: MINING, thread: OWN_THREAD, tip, .. },
        ] = &self.calls()[..]
        else {
            panic!()
        };
        assert_eq!(tip, &TIP, "the tip that the node returned to the exporter");
        assert_eq!(*finished, GuardMessage::Finish { question, releases: false });
        *watch
    }

    fn subscribed() -> Self {
        let mut guard = TestGuard::connected();
        guard.subscribe();
        guard
    }

    fn subscribe(&mut self) {
        let subscribes = call(11, CHAIN, message::HANDLE_NOTIFICATIONS, &[CALLBACK], &[THREAD]);
        self.asks(subscribes, results(11, &[HANDLER]));
        let ids = SubscriptionIds { callback: CALLBACK, handler: HANDLER, thread: THREAD };
        assert!(self.protocol.active_subscriptions().any(|active| active == ids));
    }

    fn subscribe_to_trace(&mut self) {
        let subscribes = call(12, CHAIN, message::TRACE_UTXO_CACHE, &[TRACE_CALLBACK], &[THREAD]);
        self.asks(subscribes, results(12, &[TRACE_HANDLER]));
    }

    fn is_called_back(&mut self, method: Method) {
        assert_eq!(self.node(call(1000, CALLBACK, method, &[], &[])), NodeMessageAction::AnswerCallback);
    }

    /// Asserts that the guard now makes one call, a `disconnect` of the handler `expected`. Returns the question ID of
    /// the call.
    fn disconnects(&mut self, expected: u32) -> u32 {
        let [GuardMessage::Disconnect { question, handler, thread: THREAD }] = self.calls()[..] else {
            panic!("no disconnect")
        };
        assert_eq!(handler, expected);
        question
    }
}

const DESTROY: Method = (crate::schema::chain_capnp::chain_notifications::Client::TYPE_ID, 0);

#[test]
fn connection_stays_open_until_every_call_is_answered() {
    let mut guard = TestGuard::connected();
    assert_eq!(guard.exporter(call(5, CHAIN, GET_HEIGHT, &[], &[THREAD])), ExporterMessageAction::Forward);
    guard.protocol.drain(guard.now);
    guard.passes(Duration::from_secs(3600));
    assert!(!guard.may_close(), "a call is under way");
    assert_eq!(guard.node(results(5, &[])), NodeMessageAction::Forward);
    assert_eq!(guard.calls(), [GuardMessage::Finish { question: 5, releases: false }]);
    assert!(guard.may_close_soon());
}

#[test]
fn silent_peer_is_awaited_for_a_limited_time() {
    let mut guard = TestGuard::new();
    guard.exporter(bootstrap(0));
    guard.protocol.drain(guard.now);
    guard.passes(MAX_HANDSHAKE_WAIT - Duration::from_millis(1));
    assert!(!guard.may_close());
    guard.passes(Duration::from_millis(1));
    assert!(guard.may_close());
}

#[test]
fn unused_connection_is_closed_at_once() {
    let mut guard = TestGuard::new();
    guard.protocol.drain(guard.now);
    assert!(guard.may_close_soon());
}

#[test]
fn guard_finishes_unfinished_questions() {
    let mut guard = TestGuard::connected();
    guard.exporter(call(11, CHAIN, message::HANDLE_NOTIFICATIONS, &[CALLBACK], &[THREAD]));
    guard.node(results(11, &[HANDLER]));
    assert_eq!(guard.exporter(call(5, CHAIN, GET_HEIGHT, &[], &[THREAD])), ExporterMessageAction::Forward);
    guard.protocol.drain(guard.now);
    let finish = |question| GuardMessage::Finish { question, releases: false };
    let [subscribed, GuardMessage::Disconnect { .. }] = &guard.calls()[..] else { panic!("not finished") };
    assert_eq!(*subscribed, finish(11), "until then the node holds the callback");
    guard.node(results(5, &[]));
    assert_eq!(guard.calls(), [finish(5)]);
}

#[test]
fn running_exporter_keeps_the_connection() {
    let mut guard = TestGuard::subscribed();
    guard.passes(Duration::from_secs(3600));
    assert!(!guard.may_close() && guard.protocol.reads_exporter());
    assert_eq!(guard.calls(), []);
}

#[test]
fn drain_is_disconnect_then_destroy_then_release() {
    let mut guard = TestGuard::subscribed();
    guard.protocol.drain(guard.now);
    let question = guard.disconnects(HANDLER);
    assert_eq!(guard.calls(), [], "one at a time");
    guard.is_called_back(DESTROY);
    guard.passes(SETTLE_TIME);
    assert!(!guard.may_close());
    guard.node(results(question, &[]));
    assert_eq!(guard.calls(), [GuardMessage::Finish { question, releases: false }]);
    guard.passes(SETTLE_TIME);
    assert!(!guard.may_close(), "the callback was not released");
    guard.node(release(CALLBACK, 1));
    assert_eq!(guard.protocol.active_subscriptions().next(), None);
    assert!(guard.may_close_soon());
}

#[test]
fn early_release_ends_subscription_at_the_answer() {
    let mut guard = TestGuard::subscribed();
    guard.protocol.drain(guard.now);
    let question = guard.disconnects(HANDLER);
    guard.node(release(CALLBACK, 1));
    guard.passes(SETTLE_TIME);
    assert!(!guard.may_close());
    guard.node(results(question, &[]));
    guard.calls();
    assert!(guard.may_close_soon());
}

#[test]
fn callback_is_subscribed_once() {
    let subscribes = |question| call(question, CHAIN, message::TRACE_UTXO_CACHE, &[CALLBACK], &[THREAD]);
    let mut guard = TestGuard::subscribed();
    assert!(matches!(guard.exporter(subscribes(12)), ExporterMessageAction::Violation(_)));
    let mut guard = TestGuard::connected();
    assert_eq!(guard.exporter(subscribes(12)), ExporterMessageAction::Forward);
    assert!(
        matches!(guard.exporter(subscribes(13)), ExporterMessageAction::Violation(_)),
        "not answered yet"
    );
}

#[test]
fn subscriptions_are_disconnected_one_after_the_other() {
    let mut guard = TestGuard::subscribed();
    guard.subscribe_to_trace();
    guard.protocol.drain(guard.now);
    let first = guard.disconnects(HANDLER);
    guard.passes(Duration::from_secs(5));
    assert_eq!(guard.calls(), [], "two disconnects at once on one thread are refused");
    guard.node(results(first, &[]));
    let second = guard.calls();
    assert!(
        matches!(
            second[..],
            [GuardMessage::Finish { .. }, GuardMessage::Disconnect { handler: TRACE_HANDLER, .. }]
        ),
        "{second:?}"
    );
}

#[test]
fn failed_disconnect_is_retried_sooner_if_thread_was_busy() {
    for (why, pause) in [("std::exception: thread busy", BUSY_RETRY_INTERVAL), ("other", RETRY_INTERVAL)] {
        let mut guard = TestGuard::subscribed();
        guard.protocol.drain(guard.now);
        let question = guard.disconnects(HANDLER);
        guard.node(failure(question, why));
        assert_eq!(guard.calls(), [GuardMessage::Finish { question, releases: false }]);
        guard.passes(pause - Duration::from_micros(1));
        assert_eq!(guard.calls(), [], "{why}");
        guard.passes(Duration::from_micros(1));
        guard.disconnects(HANDLER);
    }
}

#[test]
fn unanswered_subscription_ends_after_its_answer() {
    let mut guard = TestGuard::connected();
    guard.exporter(call(11, CHAIN, message::HANDLE_NOTIFICATIONS, &[CALLBACK], &[THREAD]));
    guard.protocol.drain(guard.now);
    guard.passes(Duration::from_secs(60));
    assert!(!guard.may_close());
    guard.node(results(11, &[HANDLER]));
    let calls = guard.calls();
    assert!(
        matches!(calls[..], [GuardMessage::Finish { question: 11, .. }, GuardMessage::Disconnect { .. }]),
        "{calls:?}"
    );
}

/// An exporter that exits before the node has responded to its request for a subscription sends `Finish` for the
/// request. The guard still needs the handler in the node's response to end the subscription.
#[test]
fn cancelled_subscription_keeps_its_handler() {
    let mut guard = TestGuard::connected();
    guard.exporter(call(11, CHAIN, message::HANDLE_NOTIFICATIONS, &[CALLBACK], &[THREAD]));
    assert_eq!(guard.exporter(finish(11, true)), ExporterMessageAction::Keep);
    assert_eq!(guard.exporter(release(THREAD, 1)), ExporterMessageAction::Keep);
    guard.protocol.drain(guard.now);
    guard.node(results(11, &[HANDLER]));
    let calls = guard.calls();
    assert!(
        matches!(
            calls[..],
            [
                GuardMessage::Finish { question: 11, releases: false },
                GuardMessage::Disconnect { handler: HANDLER, .. }
            ]
        ),
        "{calls:?}"
    );
}

#[test]
fn rejected_subscription_is_none() {
    let mut guard = TestGuard::connected();
    guard.exporter(call(11, CHAIN, message::HANDLE_NOTIFICATIONS, &[CALLBACK], &[THREAD]));
    guard.node(release(CALLBACK, 1));
    guard.node(failure(11, "no"));
    guard.protocol.drain(guard.now);
    assert_eq!(guard.calls(), [GuardMessage::Finish { question: 11, releases: false }]);
    assert!(guard.may_close_soon());
}

#[test]
fn exporter_is_not_read_during_the_guards_disconnect() {
    let mut guard = TestGuard::with_budget(Duration::ZERO);
    guard.connect();
    guard.subscribe();
    guard.subscribe_to_trace();
    guard.passes(Duration::from_secs(1));
    guard.is_called_back(message::COIN_ADDED);
    guard.passes(Duration::from_micros(50));
    guard.is_called_back(message::COIN_ADDED);
    assert_eq!(guard.events(), [GuardEvent::OverBudget]);
    guard.passes(Duration::from_micros(50));
    guard.is_called_back(message::COIN_ADDED);
    assert_eq!(guard.events(), [], "reported once");
    let question = guard.disconnects(TRACE_HANDLER);
    assert!(!guard.protocol.reads_exporter(), "a nested disconnect would hang the node");
    guard.node(results(question, &[]));
    assert!(guard.protocol.reads_exporter());
    // The guard responds to the exporter's `disconnect` itself, because it has already sent a `disconnect` of this
    // handler to the node.
    assert_eq!(
        guard.exporter(call(20, TRACE_HANDLER, message::DISCONNECT, &[], &[THREAD])),
        ExporterMessageAction::Answer(20)
    );
    assert_eq!(guard.calls(), [GuardMessage::Finish { question, releases: false }], "the notifications stay");
}

#[test]
fn exporters_disconnect_is_forwarded_once() {
    let mut guard = TestGuard::subscribed();
    let disconnect = |question| call(question, HANDLER, message::DISCONNECT, &[], &[THREAD]);
    assert_eq!(guard.exporter(disconnect(20)), ExporterMessageAction::Forward);
    assert_eq!(guard.exporter(disconnect(21)), ExporterMessageAction::Answer(21));
    guard.protocol.drain(guard.now);
    assert_eq!(guard.calls(), [], "it is under way");
    guard.node(results(20, &[]));
    assert_eq!(guard.calls(), [GuardMessage::Finish { question: 20, releases: false }], "it is done");
}

/// The exporter must not end a subscription before the node has responded to the request for the subscription.
/// Otherwise the guard would have no record of the exporter's `disconnect`, and would send a second `disconnect`, which
/// makes a node hang.
#[test]
fn subscription_cannot_end_before_it_begins() {
    let mut guard = TestGuard::connected();
    guard.exporter(call(11, CHAIN, message::HANDLE_NOTIFICATIONS, &[CALLBACK], &[THREAD]));
    let disconnect = message(|it| {
        let mut call = it.init_call();
        call.set_question_id(12);
        call.set_interface_id(message::DISCONNECT.0);
        call.set_method_id(message::DISCONNECT.1);
        call.reborrow().init_target().init_promised_answer().set_question_id(11);
        call.init_params();
    });
    let verdict = guard.exporter(disconnect);
    assert_eq!(verdict, ExporterMessageAction::Violation("end of a subscription before its beginning"));
}

#[test]
fn calls_are_never_cancelled() {
    let mut guard = TestGuard::connected();
    guard.exporter(call(5, CHAIN, GET_HEIGHT, &[], &[THREAD]));
    assert_eq!(guard.exporter(finish(5, true)), ExporterMessageAction::Keep);
    assert_eq!(guard.calls(), []);
    assert_eq!(guard.node(results(5, &[9])), NodeMessageAction::Forward);
    assert_eq!(guard.calls(), [GuardMessage::Finish { question: 5, releases: true }]);
    assert_eq!(
        guard.exporter(release(9, 1)),
        ExporterMessageAction::Violation("release of a capability that the exporter does not have"),
        "the capability went with the answer"
    );
}

#[test]
fn question_number_is_finished_before_reuse() {
    let mut guard = TestGuard::connected();
    let asked = || call(5, CHAIN, GET_HEIGHT, &[], &[THREAD]);
    guard.exporter(asked());
    guard.exporter(finish(5, true));
    guard.node(results(5, &[9]));
    assert_eq!(guard.exporter(asked()), ExporterMessageAction::Forward);
    assert_eq!(guard.protocol.next_finish(), Some(GuardMessage::Finish { question: 5, releases: true }));
    assert_eq!(guard.protocol.next_finish(), None);
}

#[test]
fn long_poll_reports_the_shutdown() {
    let (mut guard, watch) = TestGuard::watching();
    guard.subscribe();
    guard.node(tip_results(watch, None));
    assert_eq!(guard.events(), [GuardEvent::NodeShutsDown]);
    assert!(guard.protocol.is_draining() && !guard.protocol.reads_exporter());
    let calls = guard.calls();
    assert!(
        matches!(calls[..], [GuardMessage::Finish { .. }, GuardMessage::Disconnect { handler: HANDLER, .. }]),
        "{calls:?}"
    );
}

#[test]
fn exporters_long_poll_reports_the_shutdown() {
    let mut guard = TestGuard::subscribed();
    guard.exporter(call(20, MINING, message::WAIT_TIP_CHANGED, &[], &[THREAD]));
    assert_eq!(guard.node(tip_results(20, None)), NodeMessageAction::Forward);
    assert_eq!(guard.events(), [GuardEvent::NodeShutsDown]);
    let calls = guard.calls();
    assert!(
        matches!(calls[..], [GuardMessage::Finish { question: 20, .. }, GuardMessage::Disconnect { .. }]),
        "{calls:?}"
    );
}

#[test]
fn long_poll_continues_at_an_interval() {
    let (mut guard, watch) = TestGuard::watching();
    // The node returns another tip. After `MIN_POLL_INTERVAL` the guard starts its next long poll, with the new tip.
    guard.node(tip_results(watch, Some(OTHER_TIP)));
    assert_eq!(guard.calls(), [GuardMessage::Finish { question: watch, releases: false }]);
    guard.passes(MIN_POLL_INTERVAL);
    let [GuardMessage::WaitTipChanged { question, tip, .. }] = &guard.calls()[..] else { panic!() };
    assert_eq!(tip, &OTHER_TIP);
    let question = *question;
    // The node returns the same tip immediately, as during a reorg. The guard starts its next long poll after
    // `MIN_POLL_INTERVAL`, because without a long poll it could miss a shutdown of the node.
    guard.node(tip_results(question, Some(OTHER_TIP)));
    guard.calls();
    guard.passes(MIN_POLL_INTERVAL - Duration::from_millis(1));
    assert_eq!(guard.calls(), []);
    assert_eq!(guard.protocol.next_wakeup(guard.now), Some(Duration::from_millis(1)));
    guard.passes(Duration::from_millis(1));
    let [GuardMessage::WaitTipChanged { question, .. }] = guard.calls()[..] else { panic!() };
    // If the exporter has a subscription, the guard's interval between long polls is `MIN_SUBSCRIBED_POLL_INTERVAL`.
    guard.subscribe();
    guard.node(tip_results(question, Some(OTHER_TIP)));
    guard.calls();
    guard.passes(MIN_SUBSCRIBED_POLL_INTERVAL);
    let [GuardMessage::WaitTipChanged { question, .. }] = guard.calls()[..] else { panic!() };
    // The node responds to the guard's long poll with an error.
    guard.node(failure(question, "no"));
    guard.calls();
    guard.passes(RETRY_INTERVAL - Duration::from_millis(1));
    assert_eq!(guard.calls(), []);
    guard.passes(Duration::from_millis(1));
    assert!(matches!(guard.calls()[..], [GuardMessage::WaitTipChanged { .. }]));
}

#[test]
fn guard_polls_only_without_the_exporters_long_poll() {
    let (mut guard, watch) = TestGuard::watching();
    guard.exporter(call(20, MINING, message::WAIT_TIP_CHANGED, &[], &[THREAD]));
    guard.node(tip_results(watch, Some(TIP)));
    guard.calls();
    guard.passes(Duration::from_secs(3600));
    assert_eq!((guard.calls(), guard.protocol.next_wakeup(guard.now)), (vec![], None));
    // After the node's response to the exporter's long poll, the exporter starts another long poll within
    // `TAKEOVER_DELAY`, so the guard starts no long poll.
    guard.node(tip_results(20, Some(TIP)));
    guard.passes(TAKEOVER_DELAY - Duration::from_millis(1));
    assert_eq!(guard.calls(), []);
    guard.exporter(call(21, MINING, message::WAIT_TIP_CHANGED, &[], &[THREAD]));
    guard.passes(Duration::from_secs(3600));
    assert_eq!(guard.calls(), []);
    // After the node's response to the exporter's long poll, the exporter does not start another long poll, so the
    // guard starts a long poll after `TAKEOVER_DELAY`.
    guard.node(failure(21, "no"));
    assert_eq!(guard.protocol.next_wakeup(guard.now), Some(TAKEOVER_DELAY));
    guard.passes(TAKEOVER_DELAY);
    assert!(matches!(guard.calls()[..], [GuardMessage::WaitTipChanged { .. }]));
}

#[test]
fn drain_waits_for_a_long_poll_and_starts_none() {
    let (mut guard, watch) = TestGuard::watching();
    guard.protocol.drain(guard.now);
    guard.passes(Duration::from_secs(1));
    assert!(!guard.may_close());
    guard.node(tip_results(watch, Some(TIP)));
    assert_eq!(guard.calls(), [GuardMessage::Finish { question: watch, releases: false }]);
    guard.passes(Duration::from_secs(1));
    assert_eq!(guard.calls(), []);
    assert!(guard.may_close());
}

#[test]
fn node_without_a_long_poll_is_not_watched() {
    let mut guard = TestGuard::connected();
    guard.passes(Duration::from_secs(60));
    assert_eq!((guard.calls(), guard.protocol.next_wakeup(guard.now)), (vec![], None));
}

#[test]
fn protocol_violations_are_rejected() {
    let abort = || message(|it| it.init_abort().set_reason("bye"));
    let unknown = || message(|it| it.init_disembargo().init_context().set_sender_loopback(1));
    let pipelined = |question| {
        message(|it| {
            let mut call = it.init_call();
            call.set_question_id(20);
            call.reborrow().init_target().init_promised_answer().set_question_id(question);
            call.init_params();
        })
    };
    for (what, frame, accepted) in [
        ("an abort", abort(), false),
        ("a kind of message that it has no use for", unknown(), false),
        ("an answer", results(5, &[]), false),
        ("an unknown capability", call(20, 99, GET_HEIGHT, &[], &[THREAD]), false),
        ("an unknown thread", call(20, CHAIN, GET_HEIGHT, &[], &[99]), false),
        ("a known one", call(20, CHAIN, GET_HEIGHT, &[], &[THREAD]), true),
        ("an unknown question's answer", pipelined(77), false),
        ("a finished question's answer", pipelined(0), false),
        ("a guard's question's answer", pipelined(FIRST_GUARD_ID), false),
        ("a question's number in use", bootstrap(30), false),
        ("a guard's number", bootstrap(FIRST_GUARD_ID), false),
        ("one that was finished", bootstrap(0), true),
        ("a finish of nothing", finish(99, false), false),
        ("a finish of a guard's", finish(FIRST_GUARD_ID, false), false),
        ("a second finish", finish(1, false), false),
        ("too many releases", release(CHAIN, 2), false),
        ("a release of nothing", release(99, 1), false),
        ("a release", release(CHAIN, 1), true),
    ] {
        let (mut guard, _) = TestGuard::watching();
        guard.exporter(call(30, CHAIN, GET_HEIGHT, &[], &[]));
        let verdict = guard.exporter(frame);
        assert_eq!(matches!(verdict, ExporterMessageAction::Forward), accepted, "{what}: {verdict:?}");
        assert_eq!(matches!(verdict, ExporterMessageAction::Violation(_)), !accepted, "{what}: {verdict:?}");
    }
}

#[test]
fn kept_finish_may_not_be_repeated() {
    let mut guard = TestGuard::connected();
    guard.exporter(call(5, CHAIN, GET_HEIGHT, &[], &[THREAD]));
    guard.exporter(finish(5, false));
    assert!(matches!(guard.exporter(finish(5, false)), ExporterMessageAction::Violation(_)));
}

#[test]
fn question_number_is_free_if_no_finish_is_needed() {
    let mut guard = TestGuard::connected();
    guard.exporter(call(5, CHAIN, GET_HEIGHT, &[], &[THREAD]));
    guard.node(message(|it| {
        let mut answer = it.init_return();
        answer.set_answer_id(5);
        answer.set_no_finish_needed(true);
        answer.init_results();
    }));
    assert_eq!(guard.exporter(call(5, CHAIN, GET_HEIGHT, &[], &[THREAD])), ExporterMessageAction::Forward);
}

/// The exporter sends `Finish` for a call, and the node at the same time sends a response that needs no `Finish`. The
/// guard must not treat the `Finish` as a violation of the protocol.
#[test]
fn finish_that_crosses_an_answer_is_tolerated() {
    let mut guard = TestGuard::connected();
    guard.exporter(call(5, CHAIN, GET_HEIGHT, &[], &[THREAD]));
    guard.node(message(|it| {
        let mut answer = it.init_return();
        answer.set_answer_id(5);
        answer.set_no_finish_needed(true);
        answer.init_results();
    }));
    assert_eq!(guard.exporter(finish(5, true)), ExporterMessageAction::Keep);
    assert!(matches!(guard.exporter(finish(5, true)), ExporterMessageAction::Violation(_)), "but once");
}

#[test]
fn pinned_capabilities_are_not_released() {
    let (mut guard, _) = TestGuard::watching();
    guard.subscribe();
    for needed in [THREAD_MAP, MINING, THREAD, HANDLER] {
        assert_eq!(guard.exporter(release(needed, 1)), ExporterMessageAction::Keep, "{needed}");
        assert!(
            matches!(guard.exporter(release(needed, 1)), ExporterMessageAction::Violation(_)),
            "{needed}"
        );
    }
    // The guard also does not forward a release in a `Finish` message if the capability is pinned (if the guard itself
    // needs the capability).
    guard.exporter(call(20, CHAIN, GET_HEIGHT, &[], &[]));
    guard.node(results(20, &[MINING]));
    assert_eq!(guard.exporter(finish(20, true)), ExporterMessageAction::Keep);
    assert_eq!(guard.calls(), [GuardMessage::Finish { question: 20, releases: false }]);
    assert_eq!(guard.exporter(release(CHAIN, 1)), ExporterMessageAction::Forward);
}

#[test]
fn node_is_answered_with_and_without_the_exporter() {
    for lives in [true, false] {
        let mut guard = TestGuard::subscribed();
        if !lives {
            guard.protocol.drain(guard.now);
        }
        guard.is_called_back(message::ADDED_TO_MEMPOOL);
        guard.is_called_back(DESTROY);
        let thread = guard.node(call(1001, 50, message::MAKE_THREAD, &[], &[]));
        let NodeMessageAction::AnswerThread(1001, thread) = thread else { panic!("{thread:?}") };
        assert!(thread >= FIRST_GUARD_ID, "not an export ID of the exporter");
        assert_eq!(guard.node(release(thread, 1)), NodeMessageAction::Keep);
        assert_eq!(
            guard.node(call(1002, 50, (1, 1), &[], &[])),
            NodeMessageAction::AnswerUnimplemented(1002)
        );
        assert_eq!(guard.node(bootstrap(1003)), NodeMessageAction::AnswerUnimplemented(1003));
        assert_eq!(guard.node(finish(1000, false)), NodeMessageAction::Keep);
    }
}

#[test]
fn unexpected_answer_is_not_forwarded() {
    let mut guard = TestGuard::connected();
    assert_eq!(guard.node(results(99, &[1])), NodeMessageAction::Keep);
    guard.asks(call(5, CHAIN, GET_HEIGHT, &[], &[]), results(5, &[]));
    assert_eq!(guard.node(results(5, &[])), NodeMessageAction::Keep, "a second response to the same call");
}

#[test]
fn replacement_waits_until_the_node_is_silent() {
    let ids = SubscriptionIds { callback: CALLBACK, handler: HANDLER, thread: THREAD };
    let now = Duration::from_secs(1);
    let start = || {
        let mut guard = TestGuard { protocol: ProtocolState::replacement(&[ids], now), now };
        guard.protocol.drain(now);
        guard
    };
    // Case 1: the node is handling a `disconnect` of the killed guard. The replacement guard does not repeat the call.
    let mut guard = start();
    guard.passes(QUIET_TIME - Duration::from_millis(1));
    guard.is_called_back(DESTROY);
    guard.passes(QUIET_TIME - Duration::from_millis(1));
    assert_eq!(guard.calls(), []);
    guard.node(release(CALLBACK, 1));
    guard.passes(SILENCE_TIMEOUT - Duration::from_millis(1));
    assert_eq!((guard.calls(), guard.may_close()), (vec![], false));
    guard.passes(Duration::from_millis(1));
    assert!(guard.may_close());

    // Case 2: the killed guard has not sent the `disconnect`. The replacement guard sends the `disconnect`.
    let mut guard = start();
    guard.passes(QUIET_TIME);
    let question = guard.disconnects(HANDLER);
    guard.passes(SILENCE_TIMEOUT);
    assert!(!guard.may_close());
    guard.node(results(question, &[]));
    guard.calls();
    guard.passes(SILENCE_TIMEOUT);
    assert!(guard.may_close(), "the node may have released the callback before");

    // Case 3: the node keeps making callbacks. The replacement guard waits for silence for at most `MAX_QUIET_WAIT`,
    // and then sends the `disconnect`.
    let mut guard = start();
    let mut waited = Duration::ZERO;
    while guard.calls().is_empty() {
        guard.is_called_back(message::ADDED_TO_MEMPOOL);
        guard.passes(Duration::from_millis(100));
        waited += Duration::from_millis(100);
    }
    assert_eq!(waited, MAX_QUIET_WAIT);
}

#[test]
fn forbidden_calls_get_an_error_and_are_not_forwarded() {
    let mut guard = TestGuard::connected();
    let submit_block = (mining::Client::TYPE_ID, 9);
    let ExporterMessageAction::Reject(20, rejection) =
        guard.exporter(call(20, MINING, submit_block, &[], &[THREAD]))
    else {
        panic!()
    };
    assert_eq!(rejection.call, "Mining.9");
    assert!(matches!(&guard.events()[..], [GuardEvent::Rejected(_)]));
    // After a rejected call the connection stays open, and the exporter may reuse the question ID.
    guard.asks(call(20, MINING, message::WAIT_TIP_CHANGED, &[], &[THREAD]), tip_results(20, Some(TIP)));
    for question in 21..20 + MAX_REJECTED {
        let verdict = guard.exporter(call(question, MINING, submit_block, &[], &[THREAD]));
        let ends = question == 19 + MAX_REJECTED;
        assert_eq!(matches!(verdict, ExporterMessageAction::Violation(_)), ends, "{question}: {verdict:?}");
    }
}

#[test]
fn only_threads_and_callbacks_are_passed_to_the_node() {
    let make = |method| (crate::schema::init_capnp::init::Client::TYPE_ID, method);
    for frame in [
        call(20, MINING, message::WAIT_TIP_CHANGED, &[], &[MINING]),
        call(20, MINING, message::WAIT_TIP_CHANGED, &[50], &[THREAD]),
        call(20, 0, make(4), &[], &[CHAIN]),
        call(20, CHAIN, message::HANDLE_NOTIFICATIONS, &[CALLBACK, TRACE_CALLBACK], &[THREAD]),
    ] {
        let mut guard = TestGuard::connected();
        let verdict = guard.exporter(frame);
        assert_eq!(verdict, ExporterMessageAction::Violation("unexpected capability in a call"));
    }
}

/// A call of `handleNotifications`. `describe` sets the message's table of capabilities, and `thread` and `callback`
/// are positions in this table.
fn subscribes_with(
    describe: impl FnOnce(rpc::payload::Builder),
    thread: Option<usize>,
    callback: Option<usize>,
) -> Vec<u8> {
    message(|it| {
        let mut call = it.init_call();
        call.set_question_id(20);
        call.set_interface_id(message::HANDLE_NOTIFICATIONS.0);
        call.set_method_id(message::HANDLE_NOTIFICATIONS.1);
        call.reborrow().init_target().set_imported_cap(CHAIN);
        let mut params = call.init_params();
        describe(params.reborrow());
        let (mut threads, mut callbacks) = (Vec::new(), Vec::new());
        let mut content = params.get_content();
        content.reborrow().init_as::<chain::handle_notifications_params::Builder>();
        if let Some(at) = thread {
            threads.resize_with(at, || None);
            let mut content = content.reborrow();
            content.imbue_mut(&mut threads);
            let params = content.get_as::<chain::handle_notifications_params::Builder>().unwrap();
            params.init_context().set_thread(capability());
        }
        if let Some(at) = callback {
            callbacks.resize_with(at, || None);
            let mut content = content.reborrow();
            content.imbue_mut(&mut callbacks);
            let params = content.get_as::<chain::handle_notifications_params::Builder>().unwrap();
            { params }.set_notifications(capability());
        }
    })
}

/// The guard must find the same callback and thread in the parameters of a subscription as the node finds. Otherwise
/// the guard could forward a subscription without a callback, and the node would then crash at the next block.
#[test]
fn parameters_refer_to_the_capabilities_of_the_message() {
    const OTHER_THREAD: u32 = 99;
    let usual = |params: rpc::payload::Builder| {
        let mut table = params.init_cap_table(2);
        table.reborrow().get(0).set_receiver_hosted(THREAD);
        table.get(1).set_sender_hosted(CALLBACK);
    };
    let promise = |params: rpc::payload::Builder| {
        let mut table = params.init_cap_table(2);
        table.reborrow().get(0).set_receiver_hosted(THREAD);
        table.get(1).set_sender_promise(CALLBACK);
    };
    let third_party = |params: rpc::payload::Builder| {
        let mut table = params.init_cap_table(2);
        table.reborrow().get(0).set_receiver_hosted(THREAD);
        table.get(1).init_third_party_hosted().set_vine_id(CALLBACK);
    };
    let promised_thread = |params: rpc::payload::Builder| {
        let mut table = params.init_cap_table(2);
        table.reborrow().get(0).init_receiver_answer().set_question_id(19);
        table.get(1).set_sender_hosted(CALLBACK);
    };
    let two_threads = |params: rpc::payload::Builder| {
        let mut table = params.init_cap_table(3);
        table.reborrow().get(0).set_receiver_hosted(THREAD);
        table.reborrow().get(1).set_sender_hosted(CALLBACK);
        table.get(2).set_receiver_hosted(OTHER_THREAD);
    };
    let mut guard = TestGuard::connected();
    assert_eq!(guard.exporter(subscribes_with(usual, Some(0), Some(1))), ExporterMessageAction::Forward);
    for (what, frame) in [
        ("no callback", subscribes_with(usual, Some(0), None)),
        ("a thread as callback", subscribes_with(usual, Some(0), Some(0))),
        ("a callback as thread", subscribes_with(usual, Some(1), Some(1))),
        ("no thread", subscribes_with(usual, None, Some(1))),
        ("a promise", subscribes_with(promise, Some(0), Some(1))),
        ("a third party's", subscribes_with(third_party, Some(0), Some(1))),
        ("a promised thread", subscribes_with(promised_thread, Some(0), Some(1))),
        ("another thread", subscribes_with(two_threads, Some(2), Some(1))),
    ] {
        let mut guard = TestGuard::connected();
        guard.exporter(call(19, THREAD_MAP, message::MAKE_THREAD, &[], &[]));
        let unexpected = ExporterMessageAction::Violation("unexpected capability in a call");
        assert_eq!(guard.exporter(frame), unexpected, "{what}");
    }
    let mut guard = TestGuard::new();
    guard.asks(bootstrap(0), results(0, &[0]));
    let verdict = guard.exporter(call(1, 0, message::CONSTRUCT, &[], &[]));
    assert_eq!(verdict, ExporterMessageAction::Violation("handshake without a thread map"));
}

/// The guard rejects calls with options of Cap'n Proto, because some options make a node close the connection while
/// other calls are under way.
#[test]
fn calls_have_no_options() {
    let with = |set: fn(rpc::call::Builder)| {
        message(|it| {
            let mut call = it.init_call();
            call.set_question_id(20);
            call.set_interface_id(GET_HEIGHT.0);
            call.set_method_id(GET_HEIGHT.1);
            call.reborrow().init_target().set_imported_cap(CHAIN);
            call.reborrow().init_params();
            set(call);
        })
    };
    for (set, forwards) in [
        ((|_| {}) as fn(rpc::call::Builder), true),
        (|call| call.init_send_results_to().set_yourself(()), false),
        (
            |call| {
                call.init_send_results_to().init_third_party();
            },
            false,
        ),
        (|mut call| call.set_allow_third_party_tail_call(true), false),
        (|mut call| call.set_no_promise_pipelining(true), false),
        (|mut call| call.set_only_promise_pipeline(true), false),
    ] {
        let verdict = TestGuard::connected().exporter(with(set));
        assert_eq!(verdict == ExporterMessageAction::Forward, forwards, "{verdict:?}");
        assert_eq!(verdict == ExporterMessageAction::Violation("call with an option"), !forwards);
    }
    let named = message(|it| {
        let mut bootstrap = it.init_bootstrap();
        bootstrap.set_question_id(20);
        bootstrap.get_deprecated_object_id().set_as("an object").unwrap();
    });
    let verdict = TestGuard::connected().exporter(named);
    assert_eq!(verdict, ExporterMessageAction::Violation("unsupported message"));
}

/// The guard limits the number of unfinished calls and unreleased capabilities, because they take memory in the node.
#[test]
fn calls_and_capabilities_of_the_node_are_limited() {
    let too_many = ExporterMessageAction::Violation("too many unfinished calls or unreleased capabilities");
    let mut guard = TestGuard::connected();
    for question in 20..20 + MAX_CALLS as u32 {
        assert_eq!(guard.exporter(bootstrap(question)), ExporterMessageAction::Forward);
        guard.node(results(question, &[]));
    }
    assert_eq!(guard.exporter(bootstrap(10)), too_many);
    let mut guard = TestGuard::connected();
    let verdicts = (0..MAX_REFERENCES).map(|_| {
        let verdict = guard.exporter(bootstrap(20));
        guard.node(results(20, &[CHAIN]));
        guard.exporter(finish(20, false));
        verdict
    });
    let verdicts: Vec<_> = verdicts.collect();
    assert!(verdicts[..MAX_REFERENCES / 2].iter().all(|it| *it == ExporterMessageAction::Forward));
    assert_eq!(verdicts.last(), Some(&too_many));
}

#[test]
fn reused_number_of_a_released_thread_permits_nothing() {
    let mut guard = TestGuard::connected();
    assert_eq!(guard.exporter(release(THREAD, 1)), ExporterMessageAction::Forward);
    let make = (crate::schema::init_capnp::init::Client::TYPE_ID, 5);
    guard.asks(call(20, 0, make, &[], &[]), results(20, &[THREAD]));
    let verdict = guard.exporter(call(21, MINING, message::WAIT_TIP_CHANGED, &[], &[THREAD]));
    assert_eq!(verdict, ExporterMessageAction::Violation("unexpected capability in a call"));
}

#[test]
fn threads_of_the_node_are_limited() {
    let mut guard = TestGuard::connected();
    for question in 20..20 + MAX_THREADS {
        let verdict = guard.exporter(call(question, THREAD_MAP, message::MAKE_THREAD, &[], &[]));
        // `TestGuard::connected` has already requested one of the `MAX_THREADS` threads.
        let ends = question == 19 + MAX_THREADS;
        assert_eq!(
            verdict == ExporterMessageAction::Violation("request for too many threads"),
            ends,
            "{question}"
        );
    }
}

/// Bitcoin Core 30 aborts when a client makes a second call on a thread whose first call is unfinished.
#[test]
fn node_thread_has_one_call_at_a_time() {
    let mut guard = TestGuard::connected();
    let asked = |question| call(question, CHAIN, GET_HEIGHT, &[], &[THREAD]);
    assert_eq!(guard.exporter(asked(20)), ExporterMessageAction::Forward);
    let verdict = guard.exporter(asked(21));
    assert_eq!(verdict, ExporterMessageAction::Violation("two concurrent calls on one thread"));
    // After the exporter's `Finish` for the first call, the node still runs the call until it responds.
    guard.exporter(finish(20, true));
    assert!(matches!(guard.exporter(asked(22)), ExporterMessageAction::Violation(_)));
    guard.node(results(20, &[]));
    assert_eq!(guard.exporter(asked(22)), ExporterMessageAction::Forward);
}
