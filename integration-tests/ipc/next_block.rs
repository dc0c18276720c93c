//! Tests of the metrics about the next block, which describe the block template that the node has built. The tests also
//! check that the node has no block template and no unfinished call of the exporter after the exporter's exit.

use std::time::Duration;

use nix::sys::signal::Signal;
use procfs::process::Process;
use serde_json::Value;

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::fake::{FakeNode, Offers};
use crate::harness::templates::{Outcome, Step};
use crate::node::Node;

const TEMPLATES: Offers = Offers { mining: true, rpc: true, templates: true, ..Offers::NOTHING };
const OFTEN: [&str; 4] = ["--next-block", "on", "--poll-interval", "1ms"];
const NEXT_BLOCK: [&str; 4] = [
    "bitcoin_next_block_transactions",
    "bitcoin_next_block_weight",
    "bitcoin_next_block_fees_satoshis",
    "bitcoin_next_block_sigops",
];

fn next_block(exporter: &Exporter) -> [Option<f64>; 4] {
    NEXT_BLOCK.map(|name| exporter.value(name))
}

fn is_shown(exporter: &Exporter) {
    eventually("the next block is shown", || next_block(exporter)[3]);
}

fn is_not_shown(exporter: &Exporter) {
    eventually("no next block is shown", || (next_block(exporter) == [None; 4]).then_some(()));
}

fn left(node: &FakeNode) {
    eventually("the connection is closed", || (node.connections() == 0).then_some(()));
}

/// The values that [`next_block`] must return, computed from the node's response to getblocktemplate.
fn block_template(node: &Node) -> [Option<f64>; 4] {
    let template = node.json(&["getblocktemplate", r#"{"rules":["segwit"]}"#]);
    let transactions = template["transactions"].as_array().unwrap();
    let sum = |field: &str| {
        Some(transactions.iter().map(|it: &Value| it[field].as_u64().unwrap()).sum::<u64>() as f64)
    };
    [Some(transactions.len() as f64), sum("weight"), sum("fee"), sum("sigops")]
}

#[test]
fn next_block_agrees_with_getblocktemplate() {
    let node = Node::start(&[]);
    let blocks = node.mine(101);
    node.fan_out(&blocks[0], 5000);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "500ms"]).ready();
    let expected = block_template(&node);
    assert_eq!(expected[0], Some(5000.0));
    eventually("the exporter's values equal the node's", || {
        (next_block(&exporter) == expected).then_some(())
    });
    let templates = || exporter.value("bitcoin_template_duration_seconds_count").unwrap();
    let after_tip = || exporter.value("bitcoin_template_after_tip_seconds_count").unwrap();
    assert!(templates() >= 1.0 && after_tip() == 0.0);
    node.mine(1);
    eventually("there is a template on the new tip", || (after_tip() == 1.0).then_some(()));
    eventually("the template is empty", || (next_block(&exporter) == [Some(0.0); 4]).then_some(()));
}

#[test]
fn once_and_check_print_the_next_block() {
    let node = Node::start(&[]);
    node.mine(1);
    let output = command().arg(node.socket()).arg("--once").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(NEXT_BLOCK.iter().all(|name| text.contains(&format!("\n{name} 0\n"))), "{text}");
    let output = command().arg(node.socket()).arg("--check").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("  bitcoin_next_block_fees_satoshis\n"), "{text}");
}

/// If the exporter polls the node only over HTTP, it exports the last block template that the node built, no matter for
/// which client.
#[test]
fn without_mining_the_block_that_was_assembled_last_is_shown() {
    let node = Node::start(&[]);
    node.mine(1);
    let (url, dir) = (node.rpc_url(), node.dir().to_str().unwrap().to_string());
    let exporter = Exporter::spawn(
        command()
            .args(["--rpc-url", &url, "--datadir", &format!("{dir}/none"), "--chain", "regtest"])
            .args(["--rpc-cookie-file", &format!("{dir}/regtest/.cookie"), "--poll-interval", "100ms"]),
    )
    .ready();
    exporter.wait_for("bitcoin_assembled_block_transactions", 0.0);
    let info = node.json(&["getmininginfo"]);
    exporter.wait_for("bitcoin_assembled_block_weight", info["currentblockweight"].as_f64().unwrap());
    assert_eq!(next_block(&exporter), [None; 4]);
}

/// The node fails to build a template, because the timestamps of the last blocks are three hours ahead of its clock.
#[test]
fn real_node_survives_a_failed_template() {
    let mut node = Node::start(&[]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    node.cli(&["setmocktime", &(now + 3 * 3600).to_string()]);
    node.mine(13);
    node.cli(&["setmocktime", &now.to_string()]);
    assert!(
        node.try_cli(&["getblocktemplate", r#"{"rules":["segwit"]}"#]).unwrap_err().contains("time-too-new")
    );
    let exporter = Exporter::start(&node.socket(), &OFTEN).ready();
    eventually("the call fails", || exporter.log().contains("time-too-new").then_some(()));
    assert_eq!((exporter.value("bitcoin_up"), next_block(&exporter)), (Some(1.0), [None; 4]));
    drop(exporter);
    assert!(node.stop().success(), "{}", node.stderr());
    assert_eq!(node.stderr(), "");
}

#[test]
fn ends_in_the_middle_of_templates_harm_no_node() {
    let mut node = Node::start(&[]);
    let blocks = node.mine(101);
    node.fan_out(&blocks[0], 300);
    for i in 0..30 {
        let mut exporter = Exporter::start(&node.socket(), &OFTEN);
        if i % 3 == 0 {
            is_shown(&exporter);
        }
        std::thread::sleep(Duration::from_millis(3 * (i % 10)));
        exporter.signal(if i % 2 == 0 { Signal::SIGTERM } else { Signal::SIGKILL });
        exporter.ended();
    }
    let exporter = Exporter::start(&node.socket(), &OFTEN);
    is_shown(&exporter);
    assert!(node.stop().success(), "{}", node.stderr());
    assert_eq!(node.stderr(), "");
    is_not_shown(&exporter);
}

#[test]
fn exit_at_each_step_of_a_template_releases_it() {
    for (core30, step) in [
        (false, Step::Create),
        (false, Step::Read),
        (false, Step::Destroy),
        (true, Step::Create),
        (true, Step::Read),
        (true, Step::Destroy),
    ] {
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            let offers =
                if core30 { Offers { core30, mining: false, rpc: false, ..TEMPLATES } } else { TEMPLATES };
            let node = FakeNode::start(offers);
            let mut exporter = Exporter::start(&node.socket(), &OFTEN);
            is_shown(&exporter);
            node.hang_at(Some(step));
            eventually("the call hangs", || node.hangs().then_some(()));
            exporter.signal(signal);
            exporter.ended();
            std::thread::sleep(Duration::from_millis(200)); // A guard that does not wait would have disconnected.
            assert_eq!(node.connections(), 1, "{step:?}: the guard waits for the answer");
            node.hang_at(None);
            left(&node);
            assert!(node.faults().is_empty(), "core30 {core30}, {step:?}, {signal}: {:?}", node.faults());
        }
    }
}

#[test]
fn endless_template_build_delays_nothing() {
    let node = FakeNode::start(TEMPLATES);
    let arguments = [&OFTEN[..2], &["--poll-interval", "50ms", "--call-timeout", "200ms"]].concat();
    let mut exporter = Exporter::start(&node.socket(), &arguments);
    is_shown(&exporter);
    node.hang_at(Some(Step::Create));
    is_not_shown(&exporter);
    let asked = node.templates();
    let polls = || exporter.value("bitcoin_exporter_poll_duration_seconds_count").unwrap();
    let before = polls();
    eventually("polls continue", || (polls() >= before + 5.0).then_some(()));
    let long_polls = node.long_polls();
    eventually("the long poll continues", || (node.long_polls() > long_polls + 1).then_some(()));
    assert_eq!(
        (exporter.value("bitcoin_up"), node.templates()),
        (Some(1.0), asked),
        "and no other template is requested"
    );
    assert_eq!(exporter.log().matches("has not built a block template").count(), 1);
    // A node that shuts down stops building the template and returns no template. The guard must wait for this
    // response.
    node.set_outcome(Outcome::Nothing);
    node.shut_down();
    node.hang_at(None);
    left(&node);
    exporter.wait_for("bitcoin_exporter_disconnects_total{reason=\"shutdown\"}", 1.0);
    assert!(exporter.terminate().success());
}

#[test]
fn failed_template_is_absent_and_retried() {
    let node = FakeNode::start(TEMPLATES);
    let exporter = Exporter::start(&node.socket(), &OFTEN);
    is_shown(&exporter);
    node.set_outcome(Outcome::Failure);
    is_not_shown(&exporter);
    let failures =
        || exporter.value("bitcoin_exporter_poll_failures_total{call=\"Mining.createNewBlock\"}").unwrap();
    eventually("the exporter repeats the request", || (failures() >= 3.0).then_some(()));
    assert_eq!(exporter.log().matches("returned no block template").count(), 1, "{}", exporter.log());
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
    node.set_outcome(Outcome::Transactions(3));
    is_shown(&exporter);
    assert_eq!(next_block(&exporter), [Some(3.0), Some(3.0 * 816.0), Some(3000.0), Some(12.0)]);
}

/// The fake node returns a template with 20,000 transactions and 4.1 MB, more than a valid block can have.
#[test]
fn huge_template_is_read() {
    let node = FakeNode::start(TEMPLATES);
    let exporter = Exporter::start(&node.socket(), &OFTEN[..2]);
    is_shown(&exporter);
    node.set_outcome(Outcome::Transactions(20_000));
    let exporter = {
        drop(exporter);
        Exporter::start(&node.socket(), &OFTEN)
    };
    eventually("the template is read", || (next_block(&exporter)[0] == Some(20_000.0)).then_some(()));
    assert_eq!(next_block(&exporter)[2], Some(20_000_000.0));
}

#[test]
fn templates_are_not_requested_from_branch_nodes() {
    let asked = |offers: Offers, arguments: &[&str]| {
        let node = FakeNode::start(Offers { templates: true, ..offers });
        let exporter =
            Exporter::start(&node.socket(), &[arguments, &["--poll-interval", "10ms"]].concat()).ready();
        let polls = || exporter.value("bitcoin_exporter_poll_duration_seconds_count").unwrap();
        eventually("the node was polled several times", || (polls() >= 5.0).then_some(()));
        let timed = exporter.value("bitcoin_template_duration_seconds_count").is_some();
        assert_eq!(next_block(&exporter)[0].is_some(), node.templates() > 0);
        assert_eq!(timed, node.templates() > 0 || offers.ibd);
        node.templates() > 0
    };
    let mining = Offers { mining: true, rpc: true, ..Offers::NOTHING };
    assert!(asked(mining, &[]));
    assert!(!asked(mining, &["--next-block", "off"]));
    assert!(!asked(Offers { ibd: true, ..mining }, &[]), "initial block download");
    assert!(asked(Offers { ibd: true, ..mining }, &["--next-block", "on"]));
    for on in [&[][..], &["--next-block", "on"]] {
        assert!(!asked(Offers { chain: true, rpc: false, ..mining }, on), "a development branch");
        assert!(!asked(Offers { node: true, ..mining }, on), "another");
    }
}

/// The node's memory must not grow between the 30th and the 150th template.
#[test]
fn templates_do_not_stay_in_the_node() {
    let node = Node::start(&[]);
    let blocks = node.mine(101);
    node.fan_out(&blocks[0], 2000);
    let exporter = Exporter::start(&node.socket(), &OFTEN);
    let until = |templates: f64| {
        let built = || exporter.value("bitcoin_template_duration_seconds_count").unwrap_or(0.0);
        eventually("templates are built", || (built() >= templates).then_some(()));
        Process::new(node.pid() as i32).unwrap().status().unwrap().rssanon.unwrap()
    };
    let before = until(30.0);
    let after = until(150.0);
    assert_eq!(exporter.value("bitcoin_exporter_connects_total"), Some(1.0), "all over one connection");
    // A template shares its transactions with the mempool. A template of 2,000 transactions takes 100 kB of additional
    // memory, and 120 templates that are not freed would take 12 MB.
    assert!(after < before + 6 * 1024, "{before} kB after 30 templates, {after} kB after 150");
}
