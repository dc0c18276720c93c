-- The schema of the block store (--block-store), version 1. An exporter creates the schema if its user may create
-- schemas. If not, the owner of the database applies this file once:
--
--     psql --single-transaction --file propagation.sql 'postgres://owner@host/bitcoin'
--
-- and grants the exporters' user these rights:
--
--     GRANT USAGE ON SCHEMA propagation TO exporter;
--     GRANT SELECT ON ALL TABLES IN SCHEMA propagation TO exporter;
--     GRANT INSERT, UPDATE ON propagation.blocks TO exporter;
--     GRANT EXECUTE ON FUNCTION propagation.ensure_partition(integer) TO exporter;
--
-- Users that only read, for example the user of Grafana, need only USAGE on the schema and SELECT on its tables.

CREATE SCHEMA propagation;

CREATE TABLE propagation.version (version integer NOT NULL);
INSERT INTO propagation.version VALUES (1);

-- The table has a row for each block and node. Times are measured with the wall clock of the node's machine. The time
-- of a stage that did not occur, or that the exporter does not see, is NULL. docs/fleet.md describes the columns.
--
-- The partition key must be a part of the primary key. The height is suitable, because the hash of a block determines
-- its height. The time of the connection is not suitable: two exporters of one node measure different times, and a
-- reorganization can connect a block a second time, so a block could get a second row for the same node. A partition
-- has 4,320 heights, which is a month of blocks.
CREATE TABLE propagation.blocks (
    chain text NOT NULL,
    block_height integer NOT NULL,
    block_hash bytea NOT NULL CHECK (octet_length(block_hash) = 32),
    node text NOT NULL,
    source text NOT NULL,
    resolution_us integer NOT NULL,
    announced_at timestamptz,
    header_at timestamptz,
    compact_at timestamptz,
    fibre_at timestamptz,
    complete_at timestamptz,
    connected_at timestamptz NOT NULL,
    announced_by text,
    announced_connection text,
    announcements integer,
    arrival text,
    race_winner text,
    race_udp_ns bigint,
    race_compact_ns bigint,
    transactions integer,
    inputs integer,
    requested integer,
    requested_bytes bigint,
    duration_us bigint,
    clock_synchronized boolean,
    clock_max_error_us bigint,
    clock_estimated_error_us bigint,
    PRIMARY KEY (chain, block_height, block_hash, node)
) PARTITION BY RANGE (block_height);

CREATE INDEX blocks_by_time ON propagation.blocks (chain, connected_at);

-- Creates the partition for a height, if it does not exist. The function runs with the rights of the schema's owner,
-- because exporters may not create tables. pg_temp must be the last entry of search_path. Without this entry,
-- PostgreSQL would use a temporary type `text` that the caller has created, and run the code of this type's constraint.
CREATE FUNCTION propagation.ensure_partition(height integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    number integer := height / 4320;
    name text := 'blocks_' || lpad(number::text, 4, '0');
BEGIN
    IF height >= 0 AND to_regclass('propagation.' || name) IS NULL THEN
        PERFORM pg_advisory_xact_lock(hashtext('propagation'));
        EXECUTE format('CREATE TABLE IF NOT EXISTS propagation.%I PARTITION OF propagation.blocks FOR VALUES FROM (%s) TO (%s)',
                       name, number * 4320, (number + 1)::bigint * 4320);
    END IF;
END $$;
-- Without this statement, every user that can read the schema could create partitions with the rights of the schema's
-- owner.
REVOKE EXECUTE ON FUNCTION propagation.ensure_partition(integer) FROM PUBLIC;

-- The height of the first block that a node connected at the time `at` or later. A query of the views below should
-- limit the height with this function: the query then reads only the blocks of its time range. With a condition on a
-- time column, the query would read all blocks.
CREATE FUNCTION propagation.height_at(of_chain text, at timestamptz) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT block_height FROM propagation.blocks WHERE chain = of_chain AND connected_at >= at ORDER BY connected_at LIMIT 1
$$;

-- The lateness of each node for each block. offset_us is the time from the moment when the first node reached a stage
-- of the block to the moment when this node reached the same stage, in microseconds. error_us is the bound on the error
-- of offset_us: the sum of the error bounds of the two clocks and of the two resolutions. The order of two nodes is
-- certain only if offset_us is greater than error_us. `stage` is the compared stage of the block: `connected`, which
-- all exporters report, or `complete`, which only tracepoints show. The view excludes nodes whose clock was not
-- synchronized (see the view unsynchronized), and nodes that connected the block more than an hour after the first
-- node, because they were catching up.
CREATE VIEW propagation.lateness AS
SELECT *, count(*) OVER (PARTITION BY stage, chain, block_height, block_hash) AS nodes FROM (
    SELECT stage, chain, block_height, block_hash, node, source, at,
        first_value(at) OVER first AS first_at,
        first_value(node) OVER first AS first_node,
        (extract(epoch FROM at - first_value(at) OVER first) * 1000000)::bigint AS offset_us,
        CASE WHEN node = first_value(node) OVER first THEN 0
             ELSE clock_us + first_value(clock_us) OVER first END AS error_us,
        rank() OVER first AS rank,
        arrival, announced_by, announced_connection, race_winner
    FROM (
        SELECT 'connected' AS stage, connected_at AS at, clock_max_error_us + resolution_us AS clock_us, *
        FROM propagation.blocks WHERE clock_synchronized
        UNION ALL
        SELECT 'complete', complete_at, clock_max_error_us + resolution_us, *
        FROM propagation.blocks WHERE clock_synchronized AND complete_at IS NOT NULL
    ) AS times
    WINDOW first AS (PARTITION BY stage, chain, block_height, block_hash ORDER BY at)
) AS offsets
WHERE offset_us < 3600000000;

-- The nodes whose clock was not synchronized, with the blocks for which the other views therefore exclude these nodes.
CREATE VIEW propagation.unsynchronized AS
SELECT chain, node, source, block_height, block_hash, connected_at, clock_max_error_us
FROM propagation.blocks WHERE clock_synchronized IS NOT TRUE;

-- The spread of each block over the nodes: the time from the first node to the median node and to the last node, the
-- greatest bound on the error of these times, and the nodes that are excluded because their clock was not synchronized.
CREATE VIEW propagation.spread AS
SELECT stage, chain, block_height, block_hash, min(first_at) AS first_at, min(first_node) AS first_node, count(*) AS nodes,
    (percentile_cont(0.5) WITHIN GROUP (ORDER BY offset_us))::bigint AS median_us,
    max(offset_us) AS last_us,
    max(error_us) AS error_us,
    (array_agg(node ORDER BY offset_us DESC))[1] AS last_node,
    (SELECT array_agg(node ORDER BY node) FROM propagation.unsynchronized AS excluded
     WHERE excluded.chain = lateness.chain AND excluded.block_height = lateness.block_height
       AND excluded.block_hash = lateness.block_hash) AS excluded
FROM propagation.lateness GROUP BY stage, chain, block_height, block_hash;

-- For each block and stage, the node that reached the stage first, the relay mechanism that delivered the block to this
-- node, and the node's lead over the second node. The first place of the node is certain if lead_us is greater than
-- lead_error_us.
CREATE VIEW propagation.wins AS
SELECT stage, chain, block_height, block_hash, at, node, arrival, announced_by, announced_connection, race_winner, nodes,
    lead_us, lead_error_us, lead_us > lead_error_us AS is_certain
FROM (
    SELECT *, lead(offset_us) OVER one AS lead_us, lead(error_us) OVER one AS lead_error_us, row_number() OVER one AS number
    FROM propagation.lateness WINDOW one AS (PARTITION BY stage, chain, block_height, block_hash ORDER BY at, node)
) AS ordered
WHERE number = 1;
