"""The dashboard *Propagation*: how blocks spread over the nodes of a block store. Its data source is PostgreSQL.

In a query, `{blocks}` is the condition that selects the blocks of the dashboard's time range, chain and stage. It is a condition on the
height, because the database views read all rows for a condition on the time.
"""

import itertools

from grafana_foundation_sdk.builders import barchart, dashboard, table, timeseries
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model

from panels import _links, _place

UID = "bitcoin-propagation"
DATASOURCE = model.DataSourceRef(type_val="grafana-postgresql-datasource", uid="${store}")
SINCE = "block_height >= (SELECT propagation.height_at('$chain', $__timeFrom()))"
BLOCKS = f"stage = '$stage' AND chain = '$chain' AND {SINCE} AND first_at <= $__timeTo()"
# In the view `wins`, the column with the time is `at` instead of `first_at`.
WON = BLOCKS.replace("first_at", "at")
ROWS = f"chain = '$chain' AND {SINCE} AND connected_at <= $__timeTo()"
# The link to the log lines about a block in Loki. The hash of the block is a column of the panel's table.
LOG_LINK = (
    '/explore?schemaVersion=1&orgId=1&panes={"a":{"datasource":"loki","queries":[{"refId":"A","expr":"{job=~\\"bitcoin-core|'
    'bitcoind-exporter\\"} |= `${__value.raw}`"}],"range":{"from":"now-7d","to":"now"}}}'
)


class Query(variants.Dataquery):
    """A query of Grafana's data source for PostgreSQL, for which the SDK has no builder."""

    def __init__(self, sql, is_time_series):
        self.sql = sql.format(blocks=BLOCKS, won=WON, rows=ROWS)
        self.format = "time_series" if is_time_series else "table"

    def build(self):
        return self

    def to_json(self):
        return {"refId": "A", "rawQuery": True, "editorMode": "code", "format": self.format, "rawSql": self.sql,
                "datasource": DATASOURCE}


def _finish(panel, title, unit, description, sql, span, height, is_time_series=False):
    return (panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(span).height(height)
            .with_target(Query(" ".join(sql.split()), is_time_series)))


def _graph(title, unit, description, sql, span=12):
    panel = timeseries.Panel().show_points(common_model.VisibilityMode.ALWAYS).line_width(1).axis_soft_min(0)
    return _finish(panel, title, unit, description, sql, span, 8, True)


def _bars(title, unit, description, sql, span=8):
    panel = barchart.Panel().stacking(common_model.StackingMode.NORMAL) if unit == "none" else barchart.Panel()
    return _finish(panel, title, unit, description, sql, span, 9)


def _table(title, description, sql, units, span=24, links=()):
    panel = table.Panel()
    for column, unit in units.items():
        panel.override_by_name(column, [model.DynamicConfigValue(id_val="unit", value=unit)])
    for column, url in dict(links).items():
        panel.override_by_name(column, [model.DynamicConfigValue(id_val="links", value=[{"title": "Lines about this block", "url": url}])])
    return _finish(panel, title, "none", description, sql, span, 9)


MICROS = {"median": "µs", "last": "µs", "±": "µs"}
# The query of the two tables that show how long each block took to reach the median node and the last node.
SPREAD = """
    SELECT first_at AS time, block_height AS height, first_node AS "first node", nodes, median_us AS median, last_us AS last,
        error_us AS "±", last_node AS "last node", array_to_string(excluded, ', ') AS "excluded nodes",
        encode(block_hash, 'hex') AS hash
    FROM propagation.spread WHERE {blocks}"""

PARTS = {
    "Blocks": [
        _graph("Spread of the last blocks", "µs", "Time from the first node to the median node and to the last one, for each block, and "
               "the greatest bound on the error of these times. A time below the bound can be an error of the clocks.",
               "SELECT first_at AS time, median_us AS median, last_us AS last, error_us AS \"bound on the error\" FROM propagation.spread "
               "WHERE {blocks} ORDER BY 1", span=24),
        _table("Last blocks", "Spread of each block over the nodes, newest first. Nodes whose clock was not synchronized are excluded.",
               f"{SPREAD} ORDER BY first_at DESC LIMIT 50", MICROS),
        _table("Slowest blocks", "The blocks with the greatest time from the first node to the last one. The hash links to the log lines "
               "about the block.", f"{SPREAD} ORDER BY last_us DESC LIMIT 20", MICROS, links=[("hash", LOG_LINK)]),
    ],
    "Nodes": [
        _bars("Lateness by node", "µs", "Lateness of each node over the blocks: time from the first node to this one, as percentiles.", """
              SELECT node, percentile_cont(0.5) WITHIN GROUP (ORDER BY offset_us) AS "p50",
                  percentile_cont(0.9) WITHIN GROUP (ORDER BY offset_us) AS "p90",
                  percentile_cont(0.99) WITHIN GROUP (ORDER BY offset_us) AS "p99", max(error_us) AS "bound on the error"
              FROM propagation.lateness WHERE {blocks} GROUP BY node ORDER BY 2 DESC LIMIT 40""", span=12),
        _bars("Distribution of the lateness", "none", "Number of blocks by the lateness of a node, over all nodes, without the first one. "
              "Each bar is twice as wide as the previous bar; `uncertain` blocks have a lateness below the bound on its error.", """
              SELECT '≤ ' || CASE WHEN bound < 1000 THEN bound || ' µs' WHEN bound < 1000000 THEN round(bound / 1000.0, 1) || ' ms'
                  ELSE round(bound / 1000000.0, 1) || ' s' END AS lateness, certain, uncertain
              FROM (SELECT power(2, ceil(ln(greatest(offset_us, 1)::float8) / ln(2::float8)))::bigint AS bound,
                      count(*) FILTER (WHERE offset_us > error_us) AS certain,
                      count(*) FILTER (WHERE offset_us <= error_us) AS uncertain
                  FROM propagation.lateness WHERE {blocks} AND rank > 1 GROUP BY 1) AS bounds
              ORDER BY bound""", span=12),
        _bars("First node", "none", "Number of blocks that each node had first. A win is certain if the lead over the second node is "
              "greater than the bound on its error.", """
              SELECT node, count(*) FILTER (WHERE is_certain) AS certain, count(*) FILTER (WHERE is_certain IS NOT TRUE) AS uncertain
              FROM propagation.wins WHERE {won} GROUP BY node ORDER BY count(*) DESC LIMIT 40"""),
        _bars("First by mechanism", "none", "Number of blocks by the mechanism that completed them at the first node.", """
              SELECT coalesce(arrival, 'unknown') AS mechanism, count(*) FILTER (WHERE is_certain) AS certain,
                  count(*) FILTER (WHERE is_certain IS NOT TRUE) AS uncertain
              FROM propagation.wins WHERE {won} GROUP BY 1 ORDER BY count(*) DESC, 1"""),
        _bars("First by connection type", "none", "Number of blocks by the connection type of the peer that announced them first to the first "
              "node.", """
              SELECT coalesce(announced_connection, 'not announced') AS connection, count(*) FILTER (WHERE is_certain) AS certain,
                  count(*) FILTER (WHERE is_certain IS NOT TRUE) AS uncertain
              FROM propagation.wins WHERE {won} GROUP BY 1 ORDER BY count(*) DESC, 1"""),
        _table("Excluded nodes", "Nodes whose clock was not synchronized when they connected blocks. All other panels exclude these "
               "nodes for these blocks.", """
               SELECT node, count(*) AS blocks, max(connected_at) AS "last time", max(clock_max_error_us) AS "±"
               FROM propagation.unsynchronized WHERE {rows} GROUP BY node ORDER BY 1""", {"±": "µs"}),
    ],
    "FIBRE": [
        _graph("FIBRE against compact blocks", "percentunit", "Share of races that FIBRE/UDP won against compact blocks, for each node and hour. "
               "Both times are of one clock, so no error of a clock applies.", """
               SELECT date_trunc('hour', connected_at) AS time, node AS metric,
                   avg(CASE WHEN race_winner = 'fibre_udp' THEN 1.0 ELSE 0.0 END)::float8 AS value
               FROM propagation.blocks WHERE {rows} AND race_winner IN ('fibre_udp', 'bip152_cmpct')
               GROUP BY 1, 2 ORDER BY 1""", span=24),
    ],
}


def propagation():
    """Builds the dashboard *Propagation*."""
    board = (
        dashboard.Dashboard("Propagation").uid(UID).tags(["bitcoin"]).refresh("1m").time("now-24h", "now").timezone("browser")
        .description("How blocks spread over the nodes of a block store (--block-store), with the bounds on the errors of the clocks.")
        .with_variable(dashboard.DatasourceVariable("store").label("Block store").type("grafana-postgresql-datasource"))
        .with_variable(
            dashboard.QueryVariable("chain").label("Chain").datasource(DATASOURCE).refresh(model.VariableRefresh.ON_DASHBOARD_LOAD)
            .query("WITH RECURSIVE chains AS (SELECT min(chain) AS chain FROM propagation.blocks UNION ALL SELECT (SELECT min(chain) "
                   "FROM propagation.blocks WHERE chain > chains.chain) FROM chains WHERE chain IS NOT NULL) "
                   "SELECT chain FROM chains WHERE chain IS NOT NULL"))
        .with_variable(dashboard.CustomVariable("stage").label("Stage").values("connected,complete"))
    )
    for link in _links():
        board.link(link)
    number_of = itertools.count(1)
    top = 0
    for name, panels in PARTS.items():
        board.with_row(dashboard.Row(name).id(next(number_of)).grid_pos(model.GridPos(x=0, y=top, w=24, h=1)))
        for panel in panels:
            panel.id(next(number_of))
        top = _place(panels, top + 1)
        for panel in panels:
            board.with_panel(panel)
    return board.build()
