//! Tests that the block store, a database on a real PostgreSQL server, receives one row for each block from the
//! exporter of each real node. Rows must not be lost or stored twice when PostgreSQL stops, when an exporter is killed,
//! when a disk is full, or when settings are wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

use crate::block_log::{Disk, objects};
use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::fixture::command;
use crate::harness::node::Node;
use crate::harness::postgres::Postgres;

/// Starts an exporter that writes the node's blocks to a block log in `folder` and sends the rows to the block store at
/// `url`.
fn exporter(node: &Node, name: &str, folder: &Path, url: &str, more: &[&str]) -> Exporter {
    let file = folder.join(format!("{name}.sqlite"));
    let arguments = [
        "--node-name",
        name,
        "--chain",
        "regtest",
        "--block-log",
        file.to_str().unwrap(),
        "--block-store",
        url,
    ];
    crate::exporter(node.pid(), &[&arguments[..], more].concat())
}

fn password(postgres: &Postgres) -> [String; 2] {
    ["--block-store-password-file".into(), postgres.password_file().display().to_string()]
}

/// Waits until the exporter has logged this text.
fn logs(exporter: &Exporter, text: &str) {
    eventually(&format!("the exporter logs: {text}"), || exporter.log().contains(text).then_some(()));
}

/// Waits until the block store has this number of rows.
fn has_rows(postgres: &Postgres, number: usize) {
    let mut last = None;
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("the store has the rows", || {
            last = postgres.try_rows("SELECT count(*) FROM propagation.blocks");
            (last.as_ref()?[0][0] == number.to_string()).then_some(())
        });
    }));
    assert!(found.is_ok(), "{last:?} rows, expected {number}");
}

/// Waits until the block log in `folder` of the node with this name has this number of blocks.
fn is_logged(folder: &Path, name: &str, number: usize) {
    let file = folder.join(format!("{name}.sqlite"));
    eventually("the block log has the blocks", || {
        (file.exists() && objects(&file, &[]).len() == number).then_some(())
    });
}

/// The time of the first line in a node's debug.log that contains this text and the block's hash, in microseconds since
/// the Unix epoch.
fn logged_us(log: &str, text: &str, hash: &str) -> Option<i128> {
    let line = log.lines().find(|line| line.contains(text) && line.contains(hash))?;
    let time = humantime::parse_rfc3339(line.split(' ').next()?).unwrap();
    Some(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i128)
}

pub fn rows_of_two_nodes_arrive_once_through_outages() {
    let dir = TempDir::new().unwrap();
    let mut postgres = Postgres::start();
    let (url, password) = (postgres.url("sslmode=disable"), password(&postgres));
    let password = [password[0].as_str(), password[1].as_str()];
    let logging = ["-logtimemicros", "-debug=cmpctblock", "-debug=validation"];
    let (first, second) = (Node::start(&logging), Node::start(&logging));
    first.mine(1);
    second.cli(&["addnode", &format!("127.0.0.1:{}", first.p2p_port), "onetry"]);
    let height = |node: &Node| node.cli(&["getblockcount"]).parse::<usize>().unwrap();
    eventually("the second node follows", || (height(&second) == 1).then_some(()));
    let a = exporter(&first, "a", dir.path(), &url, &password);
    let mut b = exporter(&second, "b", dir.path(), &url, &password);
    logs(&a, "connected to the block store fleet on 127.0.0.1 (user exporter)");
    logs(&b, "connected to the block store");
    assert_eq!([&a, &b].iter().filter(|it| it.log().contains("created the schema")).count(), 1);
    let mut mined = Vec::new();
    let mut mine = |blocks: u32| {
        mined.extend((0..blocks).map(|_| {
            let block = first.mine(1).remove(0);
            eventually("the second node follows", || {
                (second.cli(&["getbestblockhash"]) == block).then_some(())
            });
            block
        }));
        mined.len()
    };
    has_rows(&postgres, 2 * { mine(3) });
    // PostgreSQL is stopped while the nodes connect blocks and while an exporter is killed.
    for _ in 0..2 {
        postgres.stop();
        let blocks = mine(2);
        is_logged(dir.path(), "a", blocks);
        is_logged(dir.path(), "b", blocks);
        logs(&a, "rows wait in the block log");
        b.signal(Signal::SIGKILL);
        b.ended();
        b = exporter(&second, "b", dir.path(), &url, &password);
        postgres.start_again();
        has_rows(&postgres, 2 * blocks);
    }
    logs(&a, "sending rows to the block store fleet on 127.0.0.1 (user exporter) again");
    let blocks = mined.len();
    a.wait_for("bitcoin_block_store_rows_sent_total{node=\"a\"}", blocks as f64);
    a.wait_for("bitcoin_block_store_rows_waiting{node=\"a\"}", 0.0);
    a.wait_for("bitcoin_block_store_up{node=\"a\"}", 1.0);
    assert_eq!(a.value("bitcoin_block_store_rows_dropped_total{node=\"a\"}"), Some(0.0));

    times_are_those_of_the_nodes_logs(&postgres, &mined, [("a", &first), ("b", &second)]);
    command_shows_offsets_and_names_excluded_nodes(&postgres, &url, &mined);
    page_shows_the_rank(&postgres, &a, &first);
}

/// Asserts that each time in the block store is between the times of two lines in the node's debug.log: the line that
/// the node logs before the event, and the line after the event.
fn times_are_those_of_the_nodes_logs(postgres: &Postgres, mined: &[String], nodes: [(&str, &Node); 2]) {
    /// Tolerance in microseconds when a time in the block store is compared with a time in debug.log. The exporter
    /// converts times to the wall clock when it processes an event, and the node reads the wall clock at another
    /// moment.
    const TOLERANCE_US: i128 = 1000;
    let logs: BTreeMap<_, _> = nodes
        .iter()
        .map(|(name, node)| (*name, std::fs::read_to_string(node.dir().join("regtest/debug.log")).unwrap()))
        .collect();
    let micros = |column: &str| format!("round(extract(epoch FROM {column}) * 1000000)::bigint");
    let rows = postgres.rows(&format!(
        "SELECT encode(block_hash, 'hex'), node, {}, {}, {}, source, arrival, chain FROM propagation.blocks",
        micros("announced_at"),
        micros("complete_at"),
        micros("connected_at")
    ));
    assert_eq!(rows.len(), 2 * mined.len());
    let mut announced = 0;
    for row in rows {
        let [hash, node, first, complete, connected, source, arrival, chain] = &row[..] else {
            panic!("{row:?}")
        };
        assert!(mined.contains(hash), "{row:?}");
        assert_eq!((source.as_str(), chain.as_str()), ("usdt", "regtest"));
        let logged = |text| logged_us(&logs[node.as_str()], text, hash);
        let [complete, connected] = [complete, connected].map(|time| time.parse::<i128>().unwrap());
        let tip = logged("UpdateTip: new best=").expect("a line about the tip");
        assert!(complete <= connected && connected <= tip + TOLERANCE_US, "{row:?}: tip at {tip}");
        if node == "a" {
            assert_eq!((first.as_str(), arrival.as_str()), ("", "other"));
            continue;
        }
        let first: i128 = first.parse().unwrap();
        assert!(first <= complete, "{row:?}");
        if let Some(saw) = logged("Saw new cmpctblock header").or(logged("Saw new header")) {
            assert!(
                first <= saw + TOLERANCE_US && saw <= complete + TOLERANCE_US,
                "{row:?}: header at {saw}"
            );
            announced += 1;
        }
        if let Some(reconstructed) = logged("Successfully reconstructed block") {
            assert!(reconstructed <= complete + TOLERANCE_US, "{row:?}: reconstructed at {reconstructed}");
            assert!(arrival.starts_with("compact"), "{row:?}");
        }
    }
    assert_eq!(announced, mined.len(), "the second node logs the header of each block");
}

fn propagation(url: &str, postgres: &Postgres, arguments: &[&str]) -> Output {
    let mut command = command();
    command.args(["blocks", "--propagation", "--store", url, "--store-password-file"]);
    command.arg(postgres.password_file()).args(arguments).stdout(Stdio::piped()).output().unwrap()
}

fn command_shows_offsets_and_names_excluded_nodes(postgres: &Postgres, url: &str, mined: &[String]) {
    let hash = mined.last().unwrap();
    let height = &postgres.rows("SELECT max(block_height) FROM propagation.blocks")[0][0];
    let show = |arguments: &[&str]| {
        let output = propagation(url, postgres, &[&["--height", height.as_str()], arguments].concat());
        let (text, errors) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{errors}");
        (text, errors)
    };
    postgres.rows("UPDATE propagation.blocks SET clock_synchronized = false WHERE node = 'a'");
    let (_, errors) = show(&[]);
    assert!(errors.contains("a is excluded: its clock was not synchronized"), "{errors}");
    let excluded = "SELECT count(*) FROM propagation.lateness WHERE node = 'a'";
    assert_eq!(postgres.rows(excluded)[0][0], "0");
    let spread =
        format!("SELECT excluded FROM propagation.spread WHERE encode(block_hash, 'hex') = '{hash}'");
    postgres.rows(
        "UPDATE propagation.blocks SET clock_synchronized = true, clock_max_error_us = 100 WHERE node = 'b'",
    );
    assert_eq!(postgres.rows(&spread)[0][0], "{a}");

    postgres.rows("UPDATE propagation.blocks SET clock_synchronized = true, clock_max_error_us = 400");
    let (json, errors) = show(&["--format", "json"]);
    assert_eq!(errors, "");
    let rows: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = postgres.rows(&format!(
        "SELECT abs(round(extract(epoch FROM b.connected_at - a.connected_at) * 1000000)::bigint) FROM propagation.blocks a, \
         propagation.blocks b WHERE a.node = 'a' AND b.node = 'b' AND a.block_hash = b.block_hash \
         AND encode(a.block_hash, 'hex') = '{hash}'"
    ));
    let [first, second] = &rows[..] else { panic!("{json}") };
    // Either node can be the first to connect a block, because a node relays a block before it connects the block.
    let mut nodes = [&first["node"], &second["node"]].map(|node| node.as_str().unwrap());
    assert_eq!((&first["connected_offset_us"], &first["rank"]), (&0.into(), &1.into()));
    assert_eq!((&second["rank"], &second["connected_error_us"]), (&2.into(), &802.into()));
    assert_eq!(second["connected_offset_us"].to_string(), expected[0][0]);
    let (table, _) = show(&["--chain", "regtest"]);
    let last = format!("2     {}     ", nodes[1]);
    assert!(table.lines().nth(2).unwrap().starts_with(&last), "{table}");
    nodes.sort();
    assert_eq!(nodes, ["a", "b"]);
    let missing = propagation(url, postgres, &["--height", "7000"]);
    assert!(missing.status.success(), "{missing:?}");

    // A node name with escape sequences, which a terminal would execute: ESC, and the C1 control character CSI.
    postgres.rows("UPDATE propagation.blocks SET node = E'\\x1b[2J\\xc2\\x9b2Jx', clock_synchronized = false WHERE node = 'b'");
    for format in ["table", "csv", "json"] {
        let (text, errors) = show(&["--format", format]);
        assert!(text.contains("[2J 2Jx") && errors.contains("[2J 2Jx is excluded"), "{text}{errors}");
        assert!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
        assert!(!errors.replace('\n', "").contains(char::is_control), "{errors:?}");
    }
    postgres.rows("UPDATE propagation.blocks SET node = 'b', clock_synchronized = true WHERE node <> 'a'");
}

/// Asserts that the status page shows the node's rank for the next block: its place among all nodes by the time at
/// which they connected the block.
fn page_shows_the_rank(postgres: &Postgres, exporter: &Exporter, node: &Node) {
    postgres.rows(
        "CREATE FUNCTION propagation.synchronize() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN NEW.clock_synchronized = true; NEW.clock_max_error_us = 1; RETURN NEW; END $$",
    );
    postgres.rows(
        "CREATE TRIGGER synchronize BEFORE INSERT ON propagation.blocks FOR EACH ROW EXECUTE FUNCTION \
         propagation.synchronize()",
    );
    let block = node.mine(1).remove(0);
    eventually("the page has the rank", || {
        let status: Value = serde_json::from_str(&exporter.get("/status.json").1).unwrap();
        let newest = &status["ranks"][0];
        let (rank, nodes) = (newest["rank"].as_i64()?, newest["nodes"].as_i64()?);
        (newest["block_hash"] == block.as_str() && (1..=nodes).contains(&rank)).then_some(())
    });

    // The exporter reads the nodes' ranks (the order in which the nodes connected a block) from the block store. If
    // this query fails, the exporter must not report the block store as failed, because the block store still accepts
    // rows.
    postgres.rows("ALTER VIEW propagation.lateness RENAME TO other");
    let restored = exporter.log().matches("sending rows to the block store").count();
    node.mine(1);
    logs(exporter, "cannot read the ranks in the block store, the page shows none");
    let status: Value = serde_json::from_str(&exporter.get("/status.json").1).unwrap();
    assert_eq!(status["ranks"], serde_json::json!([]));
    let blocks: f64 =
        postgres.rows("SELECT count(*) FROM propagation.blocks WHERE node = 'a'")[0][0].parse().unwrap();
    node.mine(1);
    exporter.wait_for("bitcoin_block_store_rows_sent_total{node=\"a\"}", blocks + 1.0);
    assert_eq!(exporter.value("bitcoin_block_store_up{node=\"a\"}"), Some(1.0));
    assert_eq!(exporter.log().matches("sending rows to the block store").count(), restored);
}

pub fn wrong_settings_are_logged_and_lose_no_row() {
    let dir = TempDir::new().unwrap();
    let mut postgres = Postgres::start();
    let node = Node::start(&[]);
    let right = password(&postgres);
    let right = [right[0].as_str(), right[1].as_str()];
    let password_file = dir.path().join("password");
    std::fs::write(&password_file, "wrong\n").unwrap();
    let wrong = ["--block-store-password-file", password_file.to_str().unwrap()];
    let url = postgres.url("sslmode=disable");
    let mut blocks = 0;
    let mut mine = |name: &str| {
        blocks += 1;
        node.mine(1);
        is_logged(dir.path(), name, 1);
        blocks
    };

    let exporter_a = exporter(&node, "a", dir.path(), &url, &wrong);
    logs(
        &exporter_a,
        "password authentication failed for user \"exporter\"; check the password: --block-store-password-file",
    );
    mine("a");
    std::fs::copy(right[1], &password_file).unwrap();
    has_rows(&postgres, 1);
    drop(exporter_a);

    let exporter_b = exporter(&node, "b", dir.path(), &url.replace("/fleet", "/other"), &right);
    logs(&exporter_b, "database \"other\" does not exist; create the database first");
    mine("b");
    postgres.sql("postgres", "CREATE DATABASE other OWNER exporter");
    logs(&exporter_b, "sending rows to the block store other");
    eventually("the row arrives", || {
        (postgres.sql("other", "SELECT node FROM propagation.blocks") == "b\n").then_some(())
    });
    drop(exporter_b);

    postgres.rows("UPDATE propagation.version SET version = 2");
    let exporter_c = exporter(&node, "c", dir.path(), &url, &right);
    logs(&exporter_c, "its schema has version 2, but this exporter supports version 1; upgrade the exporter");
    mine("c");
    postgres.rows("UPDATE propagation.version SET version = 1");
    has_rows(&postgres, 2);
    drop(exporter_c);

    // The exporter's user may not create the schema in this database. The owner of the database then creates the
    // schema.
    postgres.sql("postgres", "CREATE DATABASE theirs");
    let exporter_d = exporter(&node, "d", dir.path(), &url.replace("/fleet", "/theirs"), &right);
    logs(
        &exporter_d,
        "apply contrib/postgresql/propagation.sql as the owner of the database: permission denied",
    );
    mine("d");
    let schema = include_str!("../../contrib/postgresql/propagation.sql");
    let grants =
        schema.lines().filter_map(|line| line.strip_prefix("--     GRANT ")).map(|it| format!("GRANT {it}"));
    postgres.sql("theirs", &format!("{schema}\n{}", grants.collect::<Vec<_>>().join("\n")));
    eventually("the row arrives", || {
        (postgres.sql("theirs", "SELECT node FROM propagation.blocks") == "d\n").then_some(())
    });
    drop(exporter_d);
    readers_create_no_partition(&postgres, "theirs");

    tls_is_verified_as_sslmode_requests(&mut postgres, &node, dir.path(), right);
}

fn readers_create_no_partition(postgres: &Postgres, database: &str) {
    postgres.sql(
        database,
        "CREATE ROLE reader; GRANT USAGE ON SCHEMA propagation TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA propagation TO reader",
    );
    postgres.sql(database, "SET ROLE reader; SELECT count(*) FROM propagation.lateness");
    let create = "SET ROLE reader; SELECT propagation.ensure_partition(8640000)";
    let error = postgres.try_sql(database, create).unwrap_err();
    assert!(error.contains("permission denied for function ensure_partition"), "{error}");
}

pub fn command_changes_nothing_in_the_store() {
    let postgres = Postgres::start();
    let output = propagation(&postgres.url("sslmode=disable"), &postgres, &["--height", "1"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && message.contains("has no schema `propagation`"), "{message}");
    assert_eq!(postgres.rows("SELECT count(*) FROM pg_namespace WHERE nspname = 'propagation'")[0], ["0"]);
}

fn tls_is_verified_as_sslmode_requests(
    postgres: &mut Postgres,
    node: &Node,
    dir: &Path,
    password: [&str; 2],
) {
    let authority = || {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ours, others) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let server =
        CertificateParams::new(vec!["db.example".to_string()]).unwrap().signed_by(&key, &ours).unwrap();
    postgres.write("server.crt", &server.pem());
    postgres.write("server.key", &key.serialize_pem());
    postgres.configure("ssl = on");
    postgres.write("pg_hba.conf", "local all postgres trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n");
    postgres.stop();
    postgres.start_again();
    let file = |name: &str, pem: String| {
        let path = dir.join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (ours, others) = (file("ours.pem", ours.pem()), file("others.pem", others.pem()));
    for (name, options, error) in [
        ("e", format!("sslmode=verify-ca&sslrootcert={others}"), Some("certificate")),
        // The server's certificate is for another host name.
        ("f", format!("sslmode=verify-full&sslrootcert={ours}"), Some("not valid for name")),
        ("g", "sslmode=disable".into(), Some("no pg_hba.conf entry")),
        ("h", format!("sslmode=verify-ca&sslrootcert={ours}"), None),
        ("i", "sslmode=require".into(), None),
        ("j", "sslmode=allow".into(), None),
        ("k", String::new(), None),
    ] {
        let exporter = exporter(node, name, dir, &postgres.url(&options), &password);
        match error {
            Some(error) => {
                logs(&exporter, "rows wait in the block log");
                assert!(exporter.log().contains(error), "{options}: {}", exporter.log());
                node.mine(1);
                is_logged(dir, name, 1);
            }
            None => logs(&exporter, "connected to the block store"),
        }
    }
}

pub fn outbox_is_bounded_and_drops_are_counted() {
    let dir = TempDir::new().unwrap();
    let mut postgres = Postgres::start();
    let node = Node::start(&[]);
    let password = password(&postgres);
    postgres.stop();
    let url = postgres.url("sslmode=disable");
    let exporter =
        exporter(&node, "a", dir.path(), &url, &[&password[0], &password[1], "--block-log-keep", "5"]);
    // The exporter has the first row in memory to send it.
    node.mine(1);
    exporter.wait_for("bitcoin_block_store_rows_waiting{node=\"a\"}", 1.0);
    // The block log keeps the last five rows. Of the other rows, the exporter drops all except the first row, which it
    // has read from the block log already, and which it sends when PostgreSQL runs again.
    node.mine(11);
    let dropped = 12 - 5 - 1;
    exporter.wait_for("bitcoin_block_store_rows_dropped_total{node=\"a\"}", dropped as f64);
    exporter.wait_for("bitcoin_block_store_rows_waiting{node=\"a\"}", 5.0);
    exporter.wait_for("bitcoin_block_store_up{node=\"a\"}", 0.0);
    postgres.start_again();
    has_rows(&postgres, 12 - dropped);
    assert_eq!(postgres.rows("SELECT count(*) FROM propagation.blocks WHERE block_height >= 8")[0], ["5"]);
    exporter.wait_for("bitcoin_block_store_rows_waiting{node=\"a\"}", 0.0);
    // After a reorg to another branch and back, blocks that are connected again must keep their first rows.
    let connected = "SELECT connected_at FROM propagation.blocks WHERE block_height = 12";
    let before = postgres.rows(connected);
    let left = node.cli(&["getblockhash", "11"]);
    node.cli(&["invalidateblock", &left]);
    let other = node.json(&["getdescriptorinfo", "raw(53)"])["descriptor"].clone();
    node.cli(&["generatetodescriptor", "1", other.as_str().unwrap()]);
    node.cli(&["reconsiderblock", &left]);
    exporter.wait_for("bitcoin_block_store_rows_sent_total{node=\"a\"}", (12 - dropped + 3) as f64);
    has_rows(&postgres, 12 - dropped + 1);
    assert_eq!(postgres.rows(connected), before);
}

pub fn unsent_rows_of_a_moved_block_log_are_counted() {
    let dir = TempDir::new().unwrap();
    let mut postgres = Postgres::start();
    let node = Node::start(&[]);
    let password = password(&postgres);
    let url = postgres.url("sslmode=disable");
    let exporter = exporter(&node, "a", dir.path(), &url, &[&password[0], &password[1]]);
    node.mine(1);
    has_rows(&postgres, 1);
    postgres.stop();
    // The exporter has the first of six rows in memory to send it.
    node.mine(1);
    exporter.wait_for("bitcoin_block_store_rows_waiting{node=\"a\"}", 1.0);
    node.mine(5);
    exporter.wait_for("bitcoin_block_store_rows_waiting{node=\"a\"}", 6.0);
    std::fs::rename(dir.path().join("a.sqlite"), dir.path().join("moved.sqlite")).unwrap();
    node.mine(2);
    is_logged(dir.path(), "a", 2);
    postgres.start_again();
    exporter.wait_for("bitcoin_block_store_rows_waiting{node=\"a\"}", 0.0);
    // Only the other five waiting rows were lost with the moved file.
    exporter.wait_for("bitcoin_block_store_rows_dropped_total{node=\"a\"}", 5.0);
    has_rows(&postgres, 9 - 5);
}

/// The block log is on a file system of 1 MB, which only root can mount.
pub fn full_disk_of_the_outbox_costs_no_row() {
    let dir = TempDir::new().unwrap();
    let disk = Disk::mount(dir.path());
    let postgres = Postgres::start();
    let node = Node::start(&[]);
    let password = password(&postgres);
    let url = postgres.url("sslmode=disable");
    let exporter = exporter(&node, "a", dir.path(), &url, &[&password[0], &password[1]]);
    node.mine(2);
    has_rows(&postgres, 2);
    let filler = dir.path().join("filler");
    std::fs::write(&filler, vec![0; 2 << 20]).unwrap_err();
    node.mine(60);
    logs(&exporter, "database or disk is full");
    std::fs::remove_file(&filler).unwrap();
    has_rows(&postgres, 62);
    exporter.wait_for("bitcoin_block_store_rows_waiting{node=\"a\"}", 0.0);
    assert_eq!(exporter.value("bitcoin_block_store_rows_dropped_total{node=\"a\"}"), Some(0.0));
    drop(exporter);
    drop(disk);
}

pub fn block_store_needs_are_explained() {
    for (arguments, expected) in [
        (&["--block-store", "postgres://u@h/d", "--node-name", "a"][..], "--block-store needs --block-log"),
        (
            &["--block-store", "postgres://u@h/d", "--block-log", "/tmp/none"],
            "--block-store needs --node-name",
        ),
        (&["--block-store", "mysql://u:secret@h/d"], "--block-store: not a URL of PostgreSQL"),
        (
            &["--block-store", "postgres://u:secret@h/d?sslmode=yes"],
            "sslmode=yes: expected disable, allow, prefer",
        ),
    ] {
        let output = command().args(arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && message.contains(expected), "{arguments:?}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
}
