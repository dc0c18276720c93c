//! Drills (fault injection tests) of the alerts about FIBRE. Instead of a FIBRE node, the drills use a program with
//! FIBRE's tracepoints, and a fake JSON-RPC server with the responses of a FIBRE node.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::background::beside;
use crate::fleet::{Fleet, warning};
use crate::harness::exporter::{Exporter, command};
use crate::harness::fake_http::{FakeHttp, Mode};
use crate::harness::fixture::{self, Fixture, cannot_bpf, compile};
use crate::harness::peer::unix_time;
use crate::stack::{INTERVAL, Target};

/// A process of the program `fixture.c`, which fires FIBRE's tracepoints, and the USDT exporter that traces it.
pub struct FibreNode {
    _dir: TempDir,
    fixture: Fixture,
    exporter: Exporter,
    height: u64,
}

impl FibreNode {
    pub fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let fixture = Fixture::start(&compile(dir.path(), &["-DSTANDARD"]));
        let exporter = fixture::exporter(fixture.pid(), &["--node-name", "fibre"]);
        FibreNode { _dir: dir, fixture, exporter, height: 1000 }
    }

    pub fn target(&self) -> Target {
        Target::new("bitcoind-usdt", self.exporter.address(), "fibre")
    }

    /// Fires the tracepoint of a connected block. If `reconstructed` is true, first fires the tracepoint of the block's
    /// reconstruction by FIBRE.
    pub fn block(&mut self, reconstructed: bool) {
        self.height += 1;
        if reconstructed {
            self.fixture.fire("reconstructed a 2500 2600 2 20000");
        }
        // The arguments of the command `block` are the height, the byte that fills the block's hash, and the duration.
        self.fixture.fire(&format!("named b-msghand block {} {} 1000", self.height, self.height % 251));
    }
}

/// Drill 20 in docs/alerts.md: blocks are connected, and FIBRE reconstructs none of them.
pub fn fibre_without_blocks_is_silent() {
    const FACTOR: u32 = 120;
    if cannot_bpf() {
        return eprintln!("drill 20 needs BPF");
    }
    let mut node = FibreNode::start();
    let fleet = Fleet::of_targets("20 FIBRE silent", FACTOR, &[node.target()]);
    let mut blocks = |number: u32, reconstructed| {
        for _ in 0..number {
            node.block(reconstructed);
            fleet.stack.wait(fleet.stack.minutes(10.0));
        }
    };
    blocks(6, true);
    let since = Instant::now();
    blocks(34, false);
    fleet.expect(since, &["fibre".into()], &[warning("FibreSilent")], 360.0);
}

/// Drill 20 in docs/alerts.md: one of two FIBRE peers, the only peer in its group (`group` in getudppeerinfo), sends no
/// packets. The alert's limit of two minutes is real time. To shorten the drill, the last packet of this peer is
/// already 100 seconds old when the drill starts.
pub fn fibre_peers_that_are_silent_are_an_alert() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let peer = |group: u32, heard: Duration| {
        json!({
            "addr": format!("192.0.2.{group}:8336"), "group": group, "lastrecv": heard.as_millis() as u64, "ultimatetrust": true,
            "min_recent_rtt": 10.5, "max_recent_rtt": 20.25, "avg_recent_rtt": 15.125,
        })
    };
    let answers: Value = serde_json::from_str(include_str!("../answers/core-28.json")).unwrap();
    let mut answers = answers["answers"].clone();
    answers["getblockchaininfo"]["time"] = json!(unix_time());
    answers["getnetworkinfo"]["version"] = json!(319_900);
    let fake = FakeHttp::start(Mode::Answers(Arc::new(answers.clone())));
    let respond = |heard: [Duration; 2]| {
        let peers = json!([peer(1, heard[0]), peer(2, heard[1])]);
        let mut answers = answers.clone();
        answers["getudppeerinfo"] = peers;
        fake.set(Mode::Answers(Arc::new(answers)));
    };
    let start = now() - Duration::from_secs(100);
    respond([now(), start]);
    let poll = ["--poll-interval", INTERVAL, "--chain", "main"];
    let exporter = Exporter::spawn(command().args(fake.arguments()).args(poll)).ready();
    let fleet = Fleet::of_targets(
        "20 FIBRE peers silent",
        crate::fleet::FACTOR,
        &[Target::new("bitcoind-ipc", exporter.address(), "fibre")],
    );
    let since = Instant::now();
    let expected = [warning("FibrePeerSilent")];
    // The peer of group 1 keeps sending packets, and the peer of group 2 does not.
    let sends = || {
        respond([now(), start]);
        std::thread::sleep(Duration::from_millis(500));
    };
    beside(sends, || {
        fleet.expect(since, &["fibre".into()], &expected, 360.0);
        let received = fleet.stack.received();
        assert!(received.iter().all(|it| it.labels["group"] == "2"), "{received:#?}");
    });
}
