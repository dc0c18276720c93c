//! Tests that every PromQL expression of the shipped dashboards, rules and alerts returns data.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bitcoin::Network;
use bitcoin::blockdata::constants::genesis_block;
use bitcoin::consensus::serialize;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::fake::{Event, FakeNode, Offers};
use crate::harness::fixture::{Fixture, compile, exporter as usdt_exporter};
use crate::harness::node::Node;
use crate::harness::prometheus::{Prometheus, VictoriaMetrics};
use crate::rendering;
use crate::store::remote_write;
use crate::{dashboards, is_of_loki, panels, rules};

/// Texts that identify expressions without data in this test, each with the reason.
const WITHOUT: [(&str, &str); 7] = [
    (
        "bitcoin_fee_estimate_sat_per_vbyte",
        "a node estimates fee rates only after dozens of blocks with transactions that waited in the mempool",
    ),
    ("bitcoin_background_validation_progress", "no node in this test has loaded an assumeutxo snapshot"),
    ("bitcoin_mempool_depth_feerate_sat_per_vbyte", "the mempool has too few transactions for a full block"),
    ("bitcoin_exporter_certificate_expiry_timestamp_seconds", "no exporter in this test serves TLS"),
    (
        "[3d] offset 1d",
        "this test has no samples of the previous day; contrib/prometheus/tests has such samples",
    ),
    ("3d_before", "as above"),
    ("fall_in_standard_errors", "as above"),
];

/// Nodes and exporters that together have all metrics: two real nodes that relay blocks to each other, a real node that
/// exits, a fake node with notifications, a fake node that has shut down, and a program with FIBRE's tracepoints.
struct Stack {
    nodes: [Node; 2],
    /// A node that the test stops. The metrics about UTXO cache flushes need this node, because a node flushes its UTXO
    /// cache during shutdown.
    ends: Node,
    fake: FakeNode,
    fixture: Fixture,
    ipc: Vec<Exporter>,
    usdt: Vec<Exporter>,
    spendable: Vec<String>,
    _dir: TempDir,
}

impl Stack {
    fn start() -> Self {
        let first = Node::start(&["-txindex", "-maxuploadtarget=1000"]);
        let peer = format!("-addnode=127.0.0.1:{}", first.p2p_port);
        let second = Node::start(&[&peer, "-prune=1", "-privatebroadcast", "-onion=127.0.0.1:1"]);
        eventually("the nodes are connected", || (first.cli(&["getconnectioncount"]) == "1").then_some(()));
        let spendable = first.mine(150)[..20].to_vec();
        let everything = Offers {
            mining: true,
            chain: true,
            node: true,
            tracing: true,
            fibre: true,
            ..Default::default()
        };
        let (fake, gone) = (FakeNode::start(everything), FakeNode::start(everything));
        let ipc = [first.socket(), second.socket(), fake.socket(), gone.socket()];
        let ipc: Vec<_> =
            ipc.iter().map(|socket| Exporter::start(socket, &["--poll-interval", "1s"]).ready()).collect();
        gone.shut_down();
        let ends = Node::start(&[]);
        let dir = TempDir::new().unwrap();
        let fixture = Fixture::start(&compile(dir.path(), &["-DDETAIL"]));
        let usdt = vec![
            usdt_exporter(first.pid(), &["--node-name", "first"]),
            usdt_exporter(fixture.pid(), &["--node-name", "relay"]),
            usdt_exporter(ends.pid(), &["--node-name", "ends"]),
            usdt_exporter(second.pid(), &["--node-name", "second"]),
        ];
        Stack { nodes: [first, second], ends, fake, fixture, ipc, usdt, spendable, _dir: dir }
    }

    fn prometheus(&self, store: &VictoriaMetrics) -> Prometheus {
        let targets = |exporters: &[Exporter], names: &[&str]| -> String {
            let target = |(exporter, name): (&Exporter, &&str)| {
                // The rules compare nodes on regtest with each other only if their targets have the same `chain_id`.
                format!("{{targets: ['{}'], labels: {{node: {name}, chain_id: ours}}}}", exporter.address())
            };
            exporters.iter().zip(names).map(target).collect::<Vec<_>>().join(", ")
        };
        let rules = crate::contrib().join("prometheus");
        let [ipc, usdt] = [
            targets(&self.ipc, &["first", "second", "fake", "gone"]),
            targets(&self.usdt, &["first", "relay", "ends", "second"]),
        ];
        Prometheus::start(&format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{0}/rules/*.yml', '{0}/old-names/*.yml']\n\
             scrape_configs:\n\
             - job_name: bitcoind-ipc\n  \
               static_configs: [{ipc}]\n  \
               # Change the chain of `second` to main, a chain with regular blocks.\n  \
               metric_relabel_configs: [{{source_labels: [node, chain], regex: 'second;regtest', \
               target_label: chain, replacement: main}}]\n\
             - job_name: bitcoind-usdt\n  \
               static_configs: [{usdt}]\n  \
               metric_relabel_configs: [{{action: labeldrop, regex: exported_node}}]\n\
             remote_write: {1}\n",
            rules.display(),
            remote_write(store)
        ))
    }

    /// Causes events of each kind that the exporters count.
    fn live(&mut self, round: u64) {
        let [first, second] = &self.nodes;
        // Send a transaction, a transaction that replaces it, and a transaction that the node rejects.
        if let Some(block) = self.spendable.pop() {
            first.spend_coinbase_of(&block, 5_000);
            if round.is_multiple_of(2) {
                first.spend_coinbase_of(&block, 50_000 + round);
            }
        }
        first.try_cli(&["sendrawtransaction", "0200000000010000000000000000"]).unwrap_err();
        let missing = "0200000001aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0000000000ffffffff\
                       02e8030000000000001976a914000000000000000000000000000000000000000088ac\
                       e8030000000000001976a914000000000000000000000000000000000000000088ac00000000";
        first.try_cli(&["sendrawtransaction", missing]).unwrap_err();
        if round.is_multiple_of(3) {
            first.mine(1);
        }
        if round == 4 {
            // Cause a reorg of one block, close a connection, and open a connection in each direction.
            let tip = first.cli(&["getbestblockhash"]);
            first.cli(&["invalidateblock", &tip]);
            first.mine(2);
            let address = |node: &Node| format!("127.0.0.1:{}", node.p2p_port);
            second.cli(&["disconnectnode", &address(first)]);
            first.cli(&["addnode", &address(second), "onetry"]);
            second.cli(&["addnode", &address(first), "onetry"]);
            self.ends.stop();
        }
        let block = serialize(&genesis_block(Network::Bitcoin));
        let height = i32::try_from(round).unwrap();
        self.fake.fire(vec![
            Event::Added,
            Event::Removed(0),
            Event::Connected { height, data: block },
            Event::Disconnected(height),
            Event::Tip,
            Event::Flushed,
            Event::Add(5),
            Event::Spend(5),
            Event::Uncache(5),
        ]);
        for line in [
            "reconstructed 10.0.0.1:8334 500 700 2 12000".to_string(),
            "send".into(),
            format!("winner {round} FIBRE/UDP 10.0.0.1:8334"),
            format!("winner {round} BIP152/CMPCTBLOCK 10.0.0.2:8333"),
            format!("time {round} 1000000 a 26000000 b"),
            format!("time {round} 26000000 a 1000000 b"),
            "detail 3 1234 2497 2500 0".into(),
            "detail 0 0 2500 2500 1".into(),
        ] {
            self.fixture.fire(&line);
        }
    }
}

/// All PromQL expressions of dashboards, rules and alerts, by the dashboard and panel or the file and rule that has
/// them.
fn expressions() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for dashboard in dashboards() {
        for panel in panels(&dashboard).filter(|panel| !is_of_loki(panel)) {
            for target in panel["targets"].as_array().unwrap() {
                let [uid, reference] =
                    [&dashboard["uid"], &target["refId"]].map(|text| text.as_str().unwrap());
                let place = format!("{uid}/{}/{}/{reference}", panel["id"], panel["title"].as_str().unwrap());
                let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m");
                let expression = expression.replace("$__range", "1h").replace("$__interval", "1m");
                let expression = ["$job", "$instance", "$node"]
                    .iter()
                    .fold(expression, |expression, variable| expression.replace(variable, ".*"));
                assert!(!expression.contains('$'), "{expression}");
                all.insert(place, expression);
            }
        }
    }
    for file in
        ["rules/recording.yml", "old-names/usdt-dash.yml", "old-names/bitcoin-prometheus-exporter.yml"]
    {
        all.extend(rules(file).into_iter().map(|(name, expression)| (format!("{file}/{name}"), expression)));
    }
    // The expression of an alert returns no data while the alert does not fire. The test therefore checks that each
    // series in the expression exists.
    for (alert, expression) in rules("rules/alerts.yml") {
        for series in series(&expression) {
            all.insert(format!("alert {alert}/{series}"), series);
        }
    }
    all
}

/// The names of the series in a PromQL expression.
pub fn series(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    let is_series = |word: &&str| {
        ["bitcoin_", "fibre_", "instance:", "chain:", "ALERTS"].iter().any(|start| word.starts_with(start))
            || *word == "up"
    };
    words.filter(is_series).map(str::to_string).collect()
}

fn has_data(answer: &Value) -> bool {
    let series = answer.as_array().unwrap();
    series.iter().any(|series| series["value"][1].as_str().is_some_and(|value| value != "NaN"))
}

pub fn every_expression_returns_data() {
    let mut stack = Stack::start();
    let store = VictoriaMetrics::start();
    let prometheus = stack.prometheus(&store);
    let scraped = format!("count(up == 1) == {}", stack.ipc.len() + stack.usdt.len());
    eventually("all exporters are scraped", || has_data(&prometheus.query(&scraped)).then_some(()));
    let mut missing = expressions();
    // VictoriaMetrics has its own implementation of PromQL, and must also return data for each expression.
    let mut missing_in_store = missing.clone();
    let count = missing.len();
    let end = Instant::now() + Duration::from_secs(180);
    for round in 0.. {
        stack.live(round);
        if round == 2 {
            // While the exporter is stopped, its guard responds to more notifications than it can queue, and drops
            // some.
            stack.ipc[2].signal(Signal::SIGSTOP);
            let block = vec![0; 3_900_000];
            stack.fake.fire((0..40).map(|height| Event::Connected { height, data: block.clone() }).collect());
            stack.ipc[2].signal(Signal::SIGCONT);
        }
        if round > 5 {
            missing.retain(|_, expression| !has_data(&prometheus.query(expression)));
            missing_in_store.retain(|_, expression| !has_data(&store.query(expression)));
            for missing in [&mut missing, &mut missing_in_store] {
                missing
                    .retain(|_, expression| !WITHOUT.iter().any(|(series, _)| expression.contains(series)));
            }
        }
        if (missing.is_empty() && missing_in_store.is_empty()) || Instant::now() > end {
            break;
        }
        std::thread::sleep(Duration::from_millis(700));
    }
    for (missing, of) in [(missing, "Prometheus"), (missing_in_store, "VictoriaMetrics")] {
        let list: String =
            missing.iter().map(|(place, expression)| format!("\n{place}: {expression}")).collect();
        assert!(
            missing.is_empty(),
            "{} of {count} expressions return nothing from {of}:{list}",
            missing.len()
        );
    }
    assert!(prometheus.log().is_empty(), "{}", prometheus.log());
    exporters_agree(&prometheus);
    rendering::draw(&prometheus);
}

/// Waits until both exporters of the first node have counted the same number of blocks, according to Prometheus.
fn exporters_agree(prometheus: &Prometheus) {
    let of =
        |job: &str| format!("sum by (node) (bitcoin_blocks_connected_total{{node=\"first\",job=\"{job}\"}})");
    let agree = format!("{} == {} > 0", of("bitcoind-ipc"), of("bitcoind-usdt"));
    eventually(&agree, || has_data(&prometheus.query(&agree)).then_some(()));
}
