"""Functions that build the panels and dashboards of this project, with the typed builders of Grafana's SDK."""

import itertools
import json

from grafana_foundation_sdk.builders import (
    bargauge, common, dashboard, heatmap as heatmap_panel, logs as logs_panel, loki, prometheus, stat, table, timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
LOGS = model.DataSourceRef(type_val="loki", uid="${logs}")
# Selects the alerts of this project's rules. Other alerts in the same Prometheus may lack the label `node`.
OUR_ALERTS = 'alertstate="firing",alertname=~"Bitcoin.+|Fibre.+",severity=~"critical|warning|info",node=~"$node"'
# Annotations on each graph: (name, colour, expression, text, whether the value of the expression is the time of the
# annotation). The annotation `Alerts` is off by default.
ANNOTATIONS = [
    ("Alerts", "red", f"ALERTS{{{OUR_ALERTS}}}", "{{node}}: {{alertname}}", False),
    ("Restarts", "blue", 'bitcoin_node_start_time_seconds{node=~"$node"} * 1000', "{{node}} started", True),
    ("Versions", "purple", "count by (node) (count by (node, version) (last_over_time(bitcoin_node_info{node=~\"$node\"}[10m]))) > 1",
     "{{node}}: version changed", False),
    ("Reorganizations", "orange", 'instance:bitcoin_blocks_disconnected:increase10m{node=~"$node"} > 0',
     "{{node}}: blocks disconnected", False),
]


def _selected(expression):
    """Replaces `{*` in an expression with a selector for the job, exporter and node that are chosen on the dashboard, and `{@` with a
    selector for the node only."""
    return expression.replace("{*", '{job=~"$job",instance=~"$instance",node=~"$node"').replace("{@", '{node=~"$node"')


def _queries(panel, queries, instant):
    for reference, (legend, expression) in zip("ABCDEFGH", queries.items()):
        query = prometheus.Dataquery().expr(_selected(expression)).legend_format(legend).ref_id(reference)
        if not instant and "_bucket" in expression:
            query.exemplar(True)
        panel.with_target((query.instant() if instant else query.range()).datasource(DATASOURCE))
    return panel


def _finish(panel, title, unit, description, queries, instant, span, height):
    panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(span).height(height)
    return _queries(panel, queries, instant)


def graph(title, unit, description, queries, span=12, stacked=False, least=0, colours=None):
    """A graph of values over time; `queries` maps a legend to its expression, `colours` a legend to its colour."""
    panel = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .show_points(common_model.VisibilityMode.AUTO)
        .legend(common.VizLegendOptions().show_legend(True).placement(common_model.LegendPlacement.BOTTOM)
                .display_mode(common_model.LegendDisplayMode.LIST).calcs([]))
        .tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI)
                 .sort(common_model.SortOrder.DESCENDING))
    )
    if least is not None:
        panel.axis_soft_min(least)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL).group("A"))
    for legend, colour in (colours or {}).items():
        panel.override_by_name(legend, [
            model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour}),
            model.DynamicConfigValue(id_val="custom.fillOpacity", value=80),
        ])
    return _finish(panel, title, unit, description, queries, False, span, 8)


def heatmap(title, unit, description, metric, span=12):
    """A heatmap of a histogram's values over time, summed over all selected nodes. Each point is an exemplar."""
    panel = (
        heatmap_panel.Panel().calculate(False)
        .color(heatmap_panel.HeatmapColorOptions().mode(heatmap_model.HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
        .cell_values(heatmap_panel.CellValues().unit("short").decimals(0))
        .y_axis(heatmap_panel.YAxisConfig().unit(unit))
        .show_legend()
        .exemplars_color("rgba(255,120,10,0.9)")
    )
    query = (prometheus.Dataquery().expr(_selected(f"sum by (le) (increase({metric}_bucket{{*}}[$__interval]))"))
             .format(PromQueryFormat.HEATMAP).legend_format("{{le}}").ref_id("A").interval("10m").range().exemplar(True))
    panel.with_target(query.datasource(DATASOURCE))
    return panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(span).height(8)


def number(title, unit, description, queries, span=4, steps=None, words=None, history=False):
    """A panel with the current value. `steps` are pairs of a value and the colour from that value on. Below the first value the colour is
    green, unless the first value is None. `words` maps a value to a text and a colour, for example {1: ("up", "green")}. `history` draws
    a graph of earlier values behind the value."""
    panel = stat.Panel().graph_mode(
        common_model.BigValueGraphMode.AREA if history else common_model.BigValueGraphMode.NONE).reduce_options(
        common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    base = [] if steps and steps[0][0] is None else [(None, "green" if steps else "text")]
    thresholds = [*base, *(steps or [])]
    panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(
        [model.Threshold(value=value, color=colour) for value, colour in thresholds]))
    if words:
        panel.mappings([_mapping(words)])
    return _finish(panel, title, unit, description, queries, not history, span, 4)


def _mapping(words):
    return model.ValueMap(options={str(value): model.ValueMappingResult(text=text, color=colour)
                                   for value, (text, colour) in words.items()})


def text_of_label(title, description, label, expression, span=4):
    """A panel with the value of a label as text, for each node."""
    panel = number(title, "string", description, {"{{node}}: {{%s}}" % label: expression}, span)
    return panel.text_mode(common_model.BigValueTextMode.NAME)


def bars(title, unit, description, queries, span=12):
    """A panel with bars of the current values."""
    panel = (
        bargauge.Panel().orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )
    return _finish(panel, title, unit, description, queries, True, span, 8)


def _table_query(expression, reference):
    return (prometheus.Dataquery().expr(_selected(expression)).instant().ref_id(reference)
            .format(PromQueryFormat.TABLE).datasource(DATASOURCE))


def rows(title, unit, description, expression, labels, span=12, hidden=(), sort="Value"):
    """A table of the current values by labels, largest first."""
    excluded = {name: True for name in ["Time", "__name__", "job", *hidden]}
    panel = (
        table.Panel().with_target(_table_query(expression, "A"))
        .with_transformation(model.DataTransformerConfig(id_val="organize", options={
            "excludeByName": excluded, "indexByName": {label: place for place, label in enumerate(labels)}}))
        .sort_by([common.TableSortByFieldState().display_name(sort).desc(sort == "Value")])
    )
    return panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(span).height(8)


def _thresholds(steps):
    """Properties that colour the text of a table column by pairs of a value and the colour from that value on. Below the first value, the
    text has the default colour."""
    steps = [{"value": None, "color": "text"}, *({"value": value, "color": colour} for value, colour in steps)]
    return [model.DynamicConfigValue(id_val="thresholds", value={"mode": "absolute", "steps": steps}),
            model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"})]


def columns(title, description, columns, by, texts, link):
    """A table with a row for each value of a label, and a column for each {name: (expression, unit, words or steps)}. `texts` maps labels
    of the first expression to the names of additional columns, which show the values of these labels. The label of the row links to the
    dashboard `link`."""
    panel = table.Panel()
    names = {label: name for label, name in texts.items()}
    for reference, (name, (expression, unit, look)) in zip("ABCDEFGHIJKL", columns.items()):
        labels = ", ".join([by, *texts]) if reference == "A" else by
        panel.with_target(_table_query(f"max by ({labels}) ({expression})", reference))
        names[f"Value #{reference}"] = name
        properties = [model.DynamicConfigValue(id_val="unit", value=unit)]
        if isinstance(look, dict):
            properties += [
                model.DynamicConfigValue(id_val="mappings", value=[_mapping(look)]),
                model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
            ]
        elif look:
            properties += _thresholds(look)
        panel.override_by_name(name, properties)
    panel.override_by_name(by, [model.DynamicConfigValue(id_val="links", value=[
        {"title": "This node", "url": f"/d/{link}?var-node=${{__value.text}}&${{__url_time_range}}"}])])
    (panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
     .with_transformation(model.DataTransformerConfig(id_val="organize", options={
         "excludeByName": {"Time": True}, "renameByName": names,
         "indexByName": {name: place for place, name in enumerate([by, *names])}}))
     .sort_by([common.TableSortByFieldState().display_name(by)]))
    return panel.title(title).description(description).unit("none").datasource(DATASOURCE).span(24).height(12)


def logs(title, description, expression):
    """A panel with log lines from Loki."""
    query = loki.Dataquery().expr(expression).ref_id("A").datasource(LOGS)
    panel = (logs_panel.Panel().with_target(query).show_time(True).wrap_log_message(True).enable_log_details(True)
             .dedup_strategy(common_model.LogsDedupStrategy.NONE).sort_order(common_model.LogsSortOrder.DESCENDING))
    return panel.title(title).description(description).unit("none").datasource(LOGS).span(24).height(10)


def _place(panels, top):
    """Places panels side by side from the row `top` on; returns the row below them."""
    left = height = 0
    for panel in panels:
        position = panel.build().grid_pos
        if left + position.w > 24:
            left, top, height = 0, top + height, 0
        position.x, position.y = left, top
        left, height = left + position.w, max(height, position.h)
    return top + height


def _links():
    """Links to all dashboards. A link keeps the selected node and time range, but not the selected exporter, because the dashboards
    show different exporters."""
    boards = {"bitcoin-fleet": "Fleet", "bitcoin-node": "Node", "bitcoin-relay": "Block relay", "bitcoin-mining": "Mining",
              "bitcoin-internals": "Internals", "bitcoin-fibre": "FIBRE", "bitcoin-propagation": "Propagation"}
    return [dashboard.DashboardLink(title).type(model.DashboardLinkType.LINK).keep_time(True)
            .url(f"/d/{uid}?${{node:queryparam}}") for uid, title in boards.items()]


def build(uid, title, description, job, parts, unfolded=2, one_node=False):
    """A dashboard of {row: panels}; rows from index `unfolded` on are collapsed. `job` is a pattern of the jobs. The dashboard shows all
    nodes by default, or with `one_node` always a single node."""
    board = (
        dashboard.Dashboard(title).uid(uid).description(description).tags(["bitcoin"]).refresh("30s")
        .time("now-6h", "now").timezone("browser").tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for link in _links():
        board.link(link)
    if "Logs" in parts:
        board.with_variable(dashboard.DatasourceVariable("logs").label("Logs").type("loki"))
    # The values of the dashboard's variables come from the series `up`, because `up` also exists while an exporter is
    # down.
    chosen = [f'job=~"{job}"']
    for name, label, every in [("job", "Job", job), ("instance", "Exporter", ".*"), ("node", "Node", ".*")]:
        query = f"label_values(up{{{','.join(chosen)}}}, {name})"
        variable = (
            dashboard.QueryVariable(name).label(label).datasource(DATASOURCE)
            .query({"query": query, "refId": name}).refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC))
        if name == "node" and one_node:
            # Without a default value, Grafana selects the first node. Targets without the label `node` cannot be selected.
            board.with_variable(variable)
        else:
            board.with_variable(
                variable.multi(True).include_all(True).all_value(every)
                .current(model.VariableOption(selected=True, text="All", value="$__all")))
        chosen.append(f'{name}=~"${name}"')
    number_of = itertools.count(1)
    top = 0
    # Rows without data stay visible, collapsed. Version 1 of Grafana's dashboard schema cannot hide a row without data:
    # its rows have only `collapsed` and `repeat`, and Grafana shows a row that repeats for a variable without values once
    # (RowRepeaterBehavior.ts: `values.length ? values : emptyVariablePlaceholderOption.values`). Version 2 of the schema
    # can hide such rows (conditionalRendering), but Grafana 12 rejects dashboard files of version 2, and Grafana 13.0
    # rejects them unless they are whole resources (grafana issues 126641, 127928).
    for place, (name, panels) in enumerate(parts.items()):
        row = dashboard.Row(name).id(next(number_of)).grid_pos(model.GridPos(x=0, y=top, w=24, h=1))
        for panel in panels:
            panel.id(next(number_of))
        below = _place(panels, top + 1)
        if place < unfolded:
            board.with_row(row)
            for panel in panels:
                board.with_panel(panel)
            top = below
        else:
            for panel in panels:
                row.with_panel(panel)
            board.with_row(row)
            top += 1
    return board.build()


def encoded(board):
    """The dashboard as JSON. Adds the annotations, which the builders of the SDK do not support."""
    made = json.loads(json.dumps(board, cls=JSONEncoder))
    if board.uid == "bitcoin-propagation":  # its data source, PostgreSQL, has no series for the annotations
        return json.dumps(made, indent=1, sort_keys=True) + "\n"
    made["annotations"] = {"list": [
        {"name": name, "enable": name != "Alerts", "iconColor": colour, "expr": expression, "titleFormat": text,
         "useValueForTime": "on" if is_time else False, "step": "60s", "tagKeys": "",
         "datasource": {"type": "prometheus", "uid": "${datasource}"}}
        for name, colour, expression, text, is_time in ANNOTATIONS]}
    return json.dumps(made, indent=1, sort_keys=True) + "\n"
