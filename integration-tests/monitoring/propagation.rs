//! Tests of the dashboard *Propagation*, whose queries run on a block store in a real PostgreSQL server.

use serde_json::Value;

use crate::contrib;
use crate::harness::postgres::Postgres;
use crate::{all_dashboards, panels};

pub const UID: &str = "bitcoin-propagation";

/// A block store (a PostgreSQL database) with `blocks` blocks, ten minutes apart, and a row for each block and each of
/// `nodes` nodes. The last block is a minute old. Node `n1` is the first node that gets each block. Node `n2` gets the
/// block one millisecond after `n1`, and node `n3` two milliseconds after `n1`. The clock of the last node is not
/// synchronized.
fn store(nodes: u32, blocks: u32) -> Postgres {
    let postgres = Postgres::start();
    let schema = std::fs::read_to_string(contrib().join("postgresql/propagation.sql")).unwrap();
    postgres.rows(&schema);
    postgres.rows(&format!(
        "SELECT propagation.ensure_partition(height) FROM generate_series(0, {blocks}, 4320) AS height"
    ));
    postgres.rows(&format!(
        "INSERT INTO propagation.blocks SELECT 'main', block, sha256(block::text::bytea), 'n' || node, 'usdt', 1, \
             at, at, at, at, at + interval '1 ms', at + interval '2 ms', 'cmpctblock', 'block-relay-only', 3, \
             CASE WHEN block % 2 = 0 THEN 'fibre' ELSE 'compact_complete' END, 'fibre_udp', 1000 * block, \
             2000000, 2000, 4000, 3, 900, 1000, node < {nodes}, 400, 100 \
         FROM (SELECT block, node, now() - interval '1 minute' - ({blocks} - block) * interval '10 minutes' \
                 + node * interval '1 ms' AS at \
             FROM generate_series(1, {blocks}) AS block, generate_series(1, {nodes}) AS node) AS rows"
    ));
    postgres
}

/// The SQL query of a panel, with Grafana's variables and macros replaced.
fn query(panel: &Value, stage: &str, hours: u32) -> String {
    let sql = panel["targets"][0]["rawSql"].as_str().unwrap();
    let sql = sql.replace("$stage", stage).replace("$chain", "main");
    let sql = sql.replace("$__timeFrom()", &format!("(now() - interval '{hours} hours')"));
    let sql = sql.replace("$__timeTo()", "now()");
    assert!(!sql.contains('$'), "an unknown variable or macro: {sql}");
    sql
}

fn board() -> Value {
    all_dashboards().into_iter().find(|board| board["uid"] == UID).expect("the dashboard")
}

/// The rows that the query of the panel with this title returns.
fn shown(postgres: &Postgres, title: &str, stage: &str) -> Vec<Vec<String>> {
    let board = board();
    let panel = panels(&board).find(|panel| panel["title"] == title).unwrap_or_else(|| panic!("{title}"));
    postgres.rows(&query(panel, stage, 24))
}

pub fn every_query_returns_data() {
    let postgres = store(4, 200);
    let board = board();
    let source = &board["templating"]["list"][0];
    assert_eq!(
        (&source["name"], &source["query"]),
        (&"store".into(), &"grafana-postgresql-datasource".into())
    );
    let chains = &board["templating"]["list"][1]["query"];
    assert_eq!(postgres.rows(chains.as_str().unwrap()), [["main"]]);
    for panel in panels(&board) {
        let title = panel["title"].as_str().unwrap();
        let description = panel["description"].as_str().unwrap();
        assert!(description.len() > 20, "{title}: no description");
        for stage in ["connected", "complete"] {
            assert!(!postgres.rows(&query(panel, stage, 24)).is_empty(), "{title}: {stage}");
        }
    }
    // The queries read the last 24 hours, which contain 144 blocks. Node n1 is certainly the first node, because its
    // lead of 1 ms is longer than 802 µs, the maximum error of the lead. The node with the unsynchronized clock is
    // excluded.
    assert_eq!(shown(&postgres, "First node", "connected"), [["n1", "144", "0"]]);
    assert_eq!(
        shown(&postgres, "First by mechanism", "connected"),
        [["compact_complete", "72", "0"], ["fibre", "72", "0"]]
    );
    assert_eq!(shown(&postgres, "First by connection type", "complete"), [["block-relay-only", "144", "0"]]);
    let excluded = shown(&postgres, "Excluded nodes", "connected");
    assert_eq!((excluded.len(), excluded[0][0].as_str(), excluded[0][1].as_str()), (1, "n4", "144"));
    let last = &shown(&postgres, "Last blocks", "connected")[0];
    assert_eq!(last[1..9], ["200", "n1", "3", "1000", "2000", "802", "n3", "n4"].map(String::from));
    let lateness = shown(&postgres, "Lateness by node", "connected");
    assert_eq!(
        lateness,
        [
            ["n3", "2000", "2000", "2000", "802"],
            ["n2", "1000", "1000", "1000", "802"],
            ["n1", "0", "0", "0", "0"]
        ]
    );
    let distribution = shown(&postgres, "Distribution of the lateness", "connected");
    assert_eq!(distribution, [["≤ 1.0 ms", "144", "0"], ["≤ 2.0 ms", "144", "0"]]);
    // The dashboard must take the winner of a race from the column `race_winner`, and not from the shorter of the two
    // times: each time begins with the first data of a mechanism and ends with the connection of the block, and the
    // mechanism that began first therefore has the longer time.
    postgres.rows("UPDATE propagation.blocks SET race_winner = 'bip152_cmpct' WHERE node = 'n1'");
    for hour in shown(&postgres, "FIBRE against compact blocks", "connected") {
        assert_eq!(hour[2], if hour[1] == "n1" { "0" } else { "1" }, "{hour:?}");
    }
    // If the clock of each node can be wrong by 600 µs, the maximum error of the lead is longer than the lead of 1 ms,
    // and the first node is uncertain.
    postgres.rows("UPDATE propagation.blocks SET clock_max_error_us = 600");
    assert_eq!(shown(&postgres, "First node", "connected"), [["n1", "0", "144"]]);
    // A node that connects a block two hours late was not running when the block was mined, and the dashboard must
    // ignore it for this block.
    postgres.rows(
        "UPDATE propagation.blocks SET connected_at = connected_at + interval '2 hours' WHERE node = 'n3'",
    );
    assert_eq!(shown(&postgres, "Last blocks", "connected")[0][3], "2");
}

/// Each view of the schema must have a column with the maximum error beside each column with a difference of times.
pub fn views_show_no_difference_without_its_error() {
    let postgres = store(2, 1);
    let columns = postgres.rows(
        "SELECT table_name, column_name FROM information_schema.columns JOIN information_schema.views \
         USING (table_schema, table_name) WHERE table_schema = 'propagation'",
    );
    let has = |view: &str, column: &str| columns.iter().any(|it| it[0] == view && it[1] == column);
    for (view, difference, error) in [
        ("lateness", "offset_us", "error_us"),
        ("spread", "median_us", "error_us"),
        ("spread", "last_us", "error_us"),
        ("wins", "lead_us", "lead_error_us"),
    ] {
        assert!(has(view, difference) && has(view, error), "{view}: {difference}");
    }
    let differences = columns.iter().filter(|it| it[1].ends_with("_us") && !it[1].contains("error")).count();
    assert_eq!(differences, 4, "{columns:?}");
}
