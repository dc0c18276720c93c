//! Queries of the block store, the PostgreSQL database that collects the rows of many exporters, for the times at which
//! each node received and connected a block. The rank of a node for a block is its position in the order in which the
//! nodes connected the block.

use anyhow::{Result, bail};
use tokio_postgres::types::Type;

use super::Rank;
use super::connection::StoreConnection;
use super::settings::StoreSettings;
use crate::block_log::read::{Rows, Value};
use crate::text;

/// Number of most recent block heights for which the exporter reads the rank of its node. The number is small, because
/// the query reads the rows of all nodes for each of these heights.
const RANKED_BLOCKS: i32 = 5;

/// Reads the ranks of a node for its blocks at the last [`RANKED_BLOCKS`] heights up to `height`, newest block first.
pub(super) async fn ranks(
    connection: &StoreConnection,
    chain: &str,
    node: &str,
    height: i32,
) -> Result<Vec<Rank>> {
    const QUERY: &str = "
        SELECT encode(own.block_hash, 'hex'), own.block_height::int4, late.rank, late.nodes, late.offset_us, late.error_us
        FROM propagation.blocks AS own LEFT JOIN (
            SELECT * FROM propagation.lateness WHERE stage = 'connected' AND chain = $1 AND block_height BETWEEN $3 AND $4
        ) AS late USING (chain, block_height, block_hash, node)
        WHERE chain = $1 AND node = $2 AND block_height BETWEEN $3 AND $4
        ORDER BY own.connected_at DESC";
    let lowest = height.saturating_sub(RANKED_BLOCKS - 1);
    let rows = connection
        .query(
            QUERY,
            &[(&chain, Type::TEXT), (&node, Type::TEXT), (&lowest, Type::INT4), (&height, Type::INT4)],
        )
        .await?;
    let rank = |row: &tokio_postgres::Row| Rank {
        block_hash: row.get(0),
        block_height: row.get(1),
        rank: row.get(2),
        nodes: row.get(3),
        offset_us: row.get(4),
        error_us: row.get(5),
    };
    Ok(rows.iter().map(rank).collect())
}

/// Queries the rows of one block height. The rows of each block at this height are sorted in the order in which the
/// nodes connected the block. The rows of nodes whose clock was not synchronized, and of nodes that connected the block
/// more than an hour after the first node, come last, without rank and times relative to the first node.
///
/// # Errors
/// The store cannot be queried, or it has several chains and none was selected.
pub async fn at_height(settings: &StoreSettings, chain: Option<&str>, height: i32) -> Result<Rows> {
    const QUERY: &str = "
        SELECT encode(b.block_hash, 'hex'), b.node, b.source, extract(epoch FROM b.connected_at)::float8, late.rank,
            late.offset_us, late.error_us, complete.offset_us, complete.error_us, b.arrival, b.announced_by,
            b.announced_connection, b.race_winner, coalesce(b.clock_synchronized, false), b.clock_max_error_us
        FROM propagation.blocks AS b
        LEFT JOIN (
            SELECT * FROM propagation.lateness WHERE stage = 'connected' AND chain = $1 AND block_height = $2
        ) AS late USING (chain, block_height, block_hash, node)
        LEFT JOIN (
            SELECT * FROM propagation.lateness WHERE stage = 'complete' AND chain = $1 AND block_height = $2
        ) AS complete USING (chain, block_height, block_hash, node)
        WHERE b.chain = $1 AND b.block_height = $2
        ORDER BY b.block_hash, late.offset_us NULLS LAST, b.node";
    let connection = StoreConnection::open_to_read(settings, "blocks --propagation").await?;
    let chain = match chain {
        Some(chain) => chain.to_string(),
        None => only_chain(&connection).await?,
    };
    let rows = connection.query(QUERY, &[(&chain, Type::TEXT), (&height, Type::INT4)]).await?;
    Ok(Rows { names: NAMES.to_vec(), rows: rows.iter().map(values).collect() })
}

/// Names of the columns in the result of [`at_height`].
const NAMES: [&str; 15] = [
    "block_hash",
    "node",
    "source",
    "connected_at",
    "rank",
    "connected_offset_us",
    "connected_error_us",
    "complete_offset_us",
    "complete_error_us",
    "arrival",
    "announced_by",
    "announced_connection",
    "race_winner",
    "clock_synchronized",
    "clock_max_error_us",
];

fn values(row: &tokio_postgres::Row) -> Vec<Value> {
    // Control characters in texts are replaced, because a terminal would execute them. The texts are not trusted,
    // because any exporter with write access to the block store can choose them.
    let text =
        |column| row.get::<_, Option<&str>>(column).map_or(Value::Null, |it| Value::Text(text::label(it)));
    let number = |column| row.get::<_, Option<i64>>(column).map_or(Value::Null, Value::Integer);
    (0..NAMES.len())
        .map(|column| match NAMES[column] {
            "connected_at" => Value::Real(row.get(column)),
            "clock_synchronized" => Value::Integer(row.get::<_, bool>(column).into()),
            name if name == "rank" || name.ends_with("_us") => number(column),
            _ => text(column),
        })
        .collect()
}

/// The names of the nodes in the rows of [`at_height`] that have no rank because their clock was not synchronized.
pub fn excluded(rows: &Rows) -> Vec<String> {
    let column = |name| NAMES.iter().position(|column| *column == name).unwrap_or_default();
    let (node, synchronized) = (column("node"), column("clock_synchronized"));
    let excluded = rows.rows.iter().filter(|row| row[synchronized] == Value::Integer(0));
    let name = |row: &Vec<Value>| match &row[node] {
        Value::Text(name) => Some(name.clone()),
        _ => None,
    };
    excluded.filter_map(name).collect()
}

/// The only chain of which the block store has rows. Returns an error if there are several chains, or no rows.
async fn only_chain(connection: &StoreConnection) -> Result<String> {
    // The query finds each chain with one lookup in the index of the primary key, instead of reading all rows.
    const QUERY: &str = "
        WITH RECURSIVE chains AS (
            SELECT min(chain) AS chain FROM propagation.blocks
            UNION ALL
            SELECT (SELECT min(chain) FROM propagation.blocks WHERE chain > chains.chain) FROM chains WHERE chain IS NOT NULL
        ) SELECT chain FROM chains WHERE chain IS NOT NULL";
    let rows = connection.query(QUERY, &[]).await?;
    let chains: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    match &chains[..] {
        [chain] => Ok(chain.clone()),
        [] => bail!("the block store has no rows yet"),
        _ => bail!(
            "the block store has blocks of several chains: {}; select one with --chain",
            text::message(chains.join(", "))
        ),
    }
}
