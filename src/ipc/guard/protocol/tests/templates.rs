//! One test for each of the guard's rules about block templates.

use super::*;
use crate::schema::mining_capnp::block_template;

const TEMPLATE: u32 = 90;
const GET_BLOCK: Method = (block_template::Client::TYPE_ID, 2);
const GET_TX_FEES: Method = (block_template::Client::TYPE_ID, 3);
const SUBMIT_SOLUTION: Method = (block_template::Client::TYPE_ID, 7);
const RELEASED: [GuardMessage; 1] = [GuardMessage::Release { export: TEMPLATE, count: 1 }];

fn create(question: u32) -> Vec<u8> {
    call(question, MINING, message::CREATE_NEW_BLOCK, &[], &[THREAD])
}

fn on_template(question: u32, method: Method) -> Vec<u8> {
    call(question, TEMPLATE, method, &[], &[THREAD])
}

impl TestGuard {
    /// A guard whose exporter has a block template and has made no call on the template.
    fn with_template() -> Self {
        let mut guard = TestGuard::connected();
        guard.asks(create(30), results(30, &[TEMPLATE]));
        guard
    }

    fn is_refused(&mut self, frame: Vec<u8>, why: &'static str) {
        assert_eq!(self.exporter(frame), ExporterMessageAction::Violation(why));
    }
}

#[test]
fn guard_releases_a_dropped_template() {
    let mut guard = TestGuard::with_template();
    assert_eq!(guard.calls(), []);
    assert_eq!(guard.exporter(release(TEMPLATE, 1)), ExporterMessageAction::Keep);
    assert_eq!(guard.calls(), RELEASED);
    guard.asks(create(31), results(31, &[TEMPLATE])); // The node uses the export ID again for a new template.
    assert_eq!(guard.calls(), []);
}

#[test]
fn guard_releases_a_template_dropped_with_its_answer() {
    let mut guard = TestGuard::connected();
    guard.exporter(create(30));
    guard.node(results(30, &[TEMPLATE]));
    assert_eq!(guard.exporter(finish(30, true)), ExporterMessageAction::Keep);
    let [finished, released] = &guard.calls()[..] else { panic!() };
    assert_eq!(*finished, GuardMessage::Finish { question: 30, releases: false });
    assert_eq!(*released, RELEASED[0]);
}

#[test]
fn unwanted_template_is_released_with_its_answer() {
    let mut guard = TestGuard::connected();
    guard.exporter(create(30));
    guard.exporter(finish(30, true));
    guard.node(results(30, &[TEMPLATE]));
    assert_eq!(guard.calls(), [GuardMessage::Finish { question: 30, releases: true }]);
    assert_eq!(guard.exporter(create(31)), ExporterMessageAction::Forward);
}

#[test]
fn template_is_released_before_the_close() {
    let mut guard = TestGuard::with_template();
    guard.protocol.drain(guard.now);
    assert!(!guard.may_close());
    assert_eq!(guard.calls(), RELEASED);
    assert!(guard.may_close_soon());
}

#[test]
fn drain_waits_for_a_template_and_releases_it() {
    let mut guard = TestGuard::connected();
    guard.exporter(create(30));
    guard.protocol.drain(guard.now);
    guard.passes(Duration::from_secs(3600));
    assert_eq!((guard.calls(), guard.may_close()), (vec![], false));
    guard.node(results(30, &[TEMPLATE]));
    let calls = guard.calls();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(
        calls.contains(&GuardMessage::Finish { question: 30, releases: false })
            && calls.contains(&RELEASED[0])
    );
    assert!(guard.may_close_soon());
}

#[test]
fn failed_template_is_none() {
    for answer in [failure(30, "TestBlockValidity failed"), results(30, &[])] {
        let mut guard = TestGuard::connected();
        guard.asks(create(30), answer);
        guard.protocol.drain(guard.now);
        assert_eq!(guard.calls(), []);
        assert!(guard.may_close_soon());
    }
}

#[test]
fn template_is_released_after_its_last_answer() {
    for (method, drops) in [(GET_BLOCK, true), (message::DESTROY_TEMPLATE, true), (GET_BLOCK, false)] {
        let mut guard = TestGuard::with_template();
        assert_eq!(guard.exporter(on_template(31, method)), ExporterMessageAction::Forward);
        match drops {
            true => assert_eq!(guard.exporter(release(TEMPLATE, 1)), ExporterMessageAction::Keep),
            false => guard.protocol.drain(guard.now),
        }
        guard.passes(Duration::from_secs(60));
        assert_eq!((guard.calls(), guard.may_close()), (vec![], false), "the node reads it");
        guard.node(results(31, &[]));
        assert!(guard.calls().contains(&RELEASED[0]));
    }
}

#[test]
fn one_call_at_a_time_is_made_on_a_template() {
    for (first, second) in [(GET_TX_FEES, message::DESTROY_TEMPLATE), (GET_TX_FEES, GET_BLOCK)] {
        let mut guard = TestGuard::with_template();
        assert_eq!(guard.exporter(on_template(31, first)), ExporterMessageAction::Forward);
        guard.is_refused(on_template(32, second), "two concurrent calls on a block template");
        guard.node(results(31, &[]));
        assert_eq!(guard.exporter(on_template(33, second)), ExporterMessageAction::Forward);
    }
}

#[test]
fn template_calls_after_destroy_are_rejected() {
    for method in [GET_TX_FEES, message::DESTROY_TEMPLATE] {
        let mut guard = TestGuard::with_template();
        guard.asks(on_template(31, message::DESTROY_TEMPLATE), results(31, &[]));
        guard.is_refused(on_template(32, method), "call on a destroyed block template");
    }
}

#[test]
fn template_allows_only_reads() {
    let mut guard = TestGuard::with_template();
    let why = "call on a block template that does not read it";
    guard.is_refused(on_template(31, SUBMIT_SOLUTION), why);
    guard.is_refused(on_template(31, (block_template::Client::TYPE_ID, 8)), why); // waitNext of Core 31
    // Methods of an unknown interface and of interfaces other than BlockTemplate.
    for other in [(7, 7), message::MAKE_THREAD, message::WAIT_TIP_CHANGED, message::CREATE_NEW_BLOCK] {
        guard.is_refused(on_template(31, other), why);
    }
    assert_eq!(guard.exporter(on_template(31, GET_TX_FEES)), ExporterMessageAction::Forward);
}

#[test]
fn one_template_at_a_time() {
    let why = "request for a second block template";
    let mut guard = TestGuard::connected();
    guard.exporter(create(30));
    guard.is_refused(create(31), why);
    guard.node(results(30, &[TEMPLATE]));
    guard.is_refused(create(31), why);
    guard.asks(on_template(32, message::DESTROY_TEMPLATE), results(32, &[]));
    guard.is_refused(create(31), why);
    guard.exporter(release(TEMPLATE, 1));
    assert_eq!(guard.exporter(create(31)), ExporterMessageAction::Forward);
}

#[test]
fn template_calls_before_its_answer_are_rejected() {
    let pipelined = || {
        message(|it| {
            let mut call = it.init_call();
            call.set_question_id(31);
            call.set_interface_id(GET_TX_FEES.0);
            call.set_method_id(GET_TX_FEES.1);
            call.reborrow().init_target().init_promised_answer().set_question_id(30);
            call.init_params();
        })
    };
    let why = "call on an unknown block template";
    let mut guard = TestGuard::connected();
    guard.exporter(create(30));
    guard.is_refused(pipelined(), why);
    guard.node(results(30, &[TEMPLATE]));
    guard.is_refused(pipelined(), why);
    // After the guard has released the template, the node keeps the template until it receives the `Finish` for the
    // `createNewBlock` call.
    guard.exporter(release(TEMPLATE, 1));
    assert_eq!(guard.calls(), RELEASED);
    guard.is_refused(pipelined(), why);
}

#[test]
fn endless_build_delays_no_shutdown_or_unsubscribe() {
    let (mut guard, watch) = TestGuard::watching();
    guard.subscribe();
    guard.exporter(create(30));
    guard.passes(Duration::from_secs(3600));
    guard.node(tip_results(watch, None));
    assert_eq!(guard.events(), [GuardEvent::NodeShutsDown]);
    let calls = guard.calls();
    assert!(
        matches!(calls[..], [GuardMessage::Finish { .. }, GuardMessage::Disconnect { handler: HANDLER, .. }]),
        "{calls:?}"
    );
    let GuardMessage::Disconnect { question, .. } = calls[1] else { panic!() };
    guard.node(results(question, &[]));
    guard.node(release(CALLBACK, 1));
    guard.calls();
    guard.passes(Duration::from_secs(60));
    assert!(!guard.may_close(), "the guard waits for the build, as for every call");
    guard.node(results(30, &[])); // The node is shutting down, stops the build and returns no template.
    guard.calls();
    assert!(guard.may_close_soon());
}

/// The exporter had a template when its guard was killed. The replacement guard does not release the template, because
/// the node frees it when the connection is closed. After a late response of the node, the replacement guard waits for
/// another `SILENCE_TIMEOUT` before it may close the connection.
#[test]
fn replacement_has_no_template() {
    let now = Duration::from_secs(1);
    let mut guard = TestGuard { protocol: ProtocolState::replacement(&[], now), now };
    guard.protocol.drain(now);
    guard.passes(SILENCE_TIMEOUT - Duration::from_millis(1));
    assert_eq!(guard.node(results(30, &[TEMPLATE])), NodeMessageAction::Keep);
    guard.passes(SILENCE_TIMEOUT - Duration::from_millis(1));
    assert_eq!((guard.calls(), guard.may_close()), (vec![], false));
    guard.passes(Duration::from_millis(1));
    assert_eq!((guard.calls(), guard.may_close()), (vec![], true));
}
