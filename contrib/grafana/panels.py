"""The shape of our panels and dashboards, over Grafana's own typed builders."""

import itertools

from grafana_foundation_sdk.builders import bargauge, common, dashboard, logs as logs_panel, loki, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
LOGS = model.DataSourceRef(type_val="loki", uid="${logs}")


def _selected(expression):
    """With the choice of job, exporter and node in place of `*`, of node alone in place of `@`."""
    return expression.replace("{*", '{job=~"$job",instance=~"$instance",node=~"$node"').replace("{@", '{node=~"$node"')


def _queries(panel, queries, instant):
    for reference, (legend, expression) in zip("ABCDEFGH", queries.items()):
        query = prometheus.Dataquery().expr(_selected(expression)).legend_format(legend).ref_id(reference)
        panel.with_target((query.instant() if instant else query.range()).datasource(DATASOURCE))
    return panel


def _finish(panel, title, unit, description, queries, instant, span, height):
    panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(span).height(height)
    return _queries(panel, queries, instant)


def graph(title, unit, description, queries, span=12, stacked=False, least=0, colours=None):
    """Values over time; `queries` maps a legend to its expression, `colours` a legend to its colour."""
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


def number(title, unit, description, queries, span=4, steps=None, words=None):
    """The present value. `steps` colours it from a value on (green before the first, unless that is of None), `words` says it
    otherwise: {1: ("up", "green")}."""
    panel = stat.Panel().graph_mode(common_model.BigValueGraphMode.NONE).reduce_options(
        common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    base = [] if steps and steps[0][0] is None else [(None, "green" if steps else "text")]
    thresholds = [*base, *(steps or [])]
    panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(
        [model.Threshold(value=value, color=colour) for value, colour in thresholds]))
    if words:
        panel.mappings([_mapping(words)])
    return _finish(panel, title, unit, description, queries, True, span, 4)


def _mapping(words):
    return model.ValueMap(options={str(value): model.ValueMappingResult(text=text, color=colour)
                                   for value, (text, colour) in words.items()})


def text_of_label(title, description, label, expression, span=4):
    """A label's value as text, for each node."""
    panel = number(title, "string", description, {"{{node}}: {{%s}}" % label: expression}, span)
    return panel.text_mode(common_model.BigValueTextMode.NAME)


def bars(title, unit, description, queries, span=12):
    """The present values side by side."""
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
    """A table of the present values by labels, largest first."""
    excluded = {name: True for name in ["Time", "__name__", "job", *hidden]}
    panel = (
        table.Panel().with_target(_table_query(expression, "A"))
        .with_transformation(model.DataTransformerConfig(id_val="organize", options={
            "excludeByName": excluded, "indexByName": {label: place for place, label in enumerate(labels)}}))
        .sort_by([common.TableSortByFieldState().display_name(sort).desc(sort == "Value")])
    )
    return panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(span).height(8)


def columns(title, description, columns, by):
    """A table with a row for each value of a label, and a column for each {name: (expression, unit, words)}."""
    panel = table.Panel()
    names = {}
    for reference, (name, (expression, unit, words)) in zip("ABCDEFGH", columns.items()):
        panel.with_target(_table_query(f"max by ({by}) ({expression})", reference))
        names[f"Value #{reference}"] = name
        properties = [model.DynamicConfigValue(id_val="unit", value=unit)]
        if words:
            properties += [
                model.DynamicConfigValue(id_val="mappings", value=[_mapping(words)]),
                model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
            ]
        panel.override_by_name(name, properties)
    (panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
     .with_transformation(model.DataTransformerConfig(id_val="organize", options={
         "excludeByName": {"Time": True}, "renameByName": names,
         "indexByName": {name: place for place, name in enumerate([by, *names])}}))
     .sort_by([common.TableSortByFieldState().display_name(by)]))
    return panel.title(title).description(description).unit("none").datasource(DATASOURCE).span(24).height(12)


def logs(title, description, expression):
    """Lines of Loki."""
    query = loki.Dataquery().expr(expression).ref_id("A").datasource(LOGS)
    panel = (logs_panel.Panel().with_target(query).show_time(True).wrap_log_message(True).enable_log_details(True)
             .dedup_strategy(common_model.LogsDedupStrategy.NONE).sort_order(common_model.LogsSortOrder.DESCENDING))
    return panel.title(title).description(description).unit("none").datasource(LOGS).span(24).height(10)


def _place(panels, top):
    """Side by side from the row `top` on, as wide and high as they are; returns the row below them."""
    left = height = 0
    for panel in panels:
        position = panel.build().grid_pos
        if left + position.w > 24:
            left, top, height = 0, top + height, 0
        position.x, position.y = left, top
        left, height = left + position.w, max(height, position.h)
    return top + height


def build(uid, title, description, jobs, parts):
    """A dashboard of {row: panels}, all rows but the first two collapsed. `jobs` selects a series of each exporter in question."""
    board = (
        dashboard.Dashboard(title).uid(uid).description(description).tags(["bitcoin"]).refresh("30s")
        .time("now-6h", "now").timezone("browser").tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Bitcoin").type(model.DashboardLinkType.DASHBOARDS).tags(["bitcoin"])
              .as_dropdown(True).include_vars(True).keep_time(True))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    if "Logs" in parts:
        board.with_variable(dashboard.DatasourceVariable("logs").label("Logs").type("loki"))
    chosen = []
    for name, label in [("job", "Job"), ("instance", "Exporter"), ("node", "Node")]:
        query = f"label_values({{{','.join([jobs, *chosen])}}}, {name})"
        variable = (
            dashboard.QueryVariable(name).label(label).datasource(DATASOURCE)
            .query({"query": query, "refId": name}).refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC).multi(True).include_all(True)
            .current(model.VariableOption(selected=True, text="All", value="$__all")))
        # Without a value of its own, All is the list of what the query gives. Not every target has a label `node`.
        board.with_variable(variable.all_value(".*") if name == "node" else variable)
        chosen.append(f'{name}=~"${name}"')
    number_of = itertools.count(1)
    top = 0
    for place, (name, panels) in enumerate(parts.items()):
        row = dashboard.Row(name).id(next(number_of)).grid_pos(model.GridPos(x=0, y=top, w=24, h=1))
        for panel in panels:
            panel.id(next(number_of))
        below = _place(panels, top + 1)
        if place < 2:
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
