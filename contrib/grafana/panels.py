"""The shape of our panels and dashboards, over Grafana's own typed builders."""

import itertools

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
# `{*}` in an expression.
SELECTOR = 'job=~"$job",instance=~"$instance",node=~"$node"'


def _queries(panel, queries, instant):
    for reference, (legend, expression) in zip("ABCDEFGH", queries.items()):
        query = (prometheus.Dataquery().expr(expression.replace("{*", "{" + SELECTOR)).legend_format(legend)
                 .ref_id(reference))
        panel.with_target((query.instant() if instant else query.range()).datasource(DATASOURCE))
    return panel


def _finish(panel, title, unit, description, queries, instant, span, height):
    panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(span).height(height)
    return _queries(panel, queries, instant)


def graph(title, unit, description, queries, span=12, stacked=False, least=0):
    """Values over time; `queries` maps a legend to its expression."""
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
    return _finish(panel, title, unit, description, queries, False, span, 8)


def number(title, unit, description, queries, span=4, steps=None, words=None):
    """The present value. `steps` colours it from a value on, `words` says it otherwise: {1: ("up", "green")}."""
    panel = stat.Panel().graph_mode(common_model.BigValueGraphMode.NONE).reduce_options(
        common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    thresholds = [(None, "green" if steps else "text"), *(steps or [])]
    panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(
        [model.Threshold(value=value, color=colour) for value, colour in thresholds]))
    if words:
        options = {str(value): model.ValueMappingResult(text=text, color=colour)
                   for value, (text, colour) in words.items()}
        panel.mappings([model.ValueMap(options=options)])
    return _finish(panel, title, unit, description, queries, True, span, 4)


def text_of_label(title, description, label, expression, span=4):
    """A label's value as text."""
    panel = number(title, "string", description, {"{{%s}}" % label: expression}, span)
    return panel.text_mode(common_model.BigValueTextMode.NAME)


def bars(title, unit, description, queries, span=12):
    """The present values side by side."""
    panel = (
        bargauge.Panel().orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )
    return _finish(panel, title, unit, description, queries, True, span, 8)


def rows(title, unit, description, expression, labels, span=12):
    """A table of the present values by labels, largest first."""
    query = (prometheus.Dataquery().expr(expression.replace("{*", "{" + SELECTOR)).instant().ref_id("A")
             .format(PromQueryFormat.TABLE).datasource(DATASOURCE))
    hidden = {"Time": True, "__name__": True, "job": True}
    panel = (
        table.Panel().with_target(query)
        .with_transformation(model.DataTransformerConfig(id_val="organize", options={
            "excludeByName": hidden, "indexByName": {label: place for place, label in enumerate(labels)}}))
        .sort_by([common.TableSortByFieldState().display_name("Value").desc(True)])
    )
    return panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(span).height(8)


def build(uid, title, description, jobs, parts):
    """A dashboard of {row: panels}. `jobs` selects a series of each exporter in question."""
    board = (
        dashboard.Dashboard(title).uid(uid).description(description).tags(["bitcoin"]).refresh("30s")
        .time("now-6h", "now").timezone("browser").tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Bitcoin").type(model.DashboardLinkType.DASHBOARDS).tags(["bitcoin"])
              .as_dropdown(True).include_vars(True).keep_time(True))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    chosen = []
    for name, label in [("job", "Job"), ("instance", "Exporter"), ("node", "Node")]:
        query = f"label_values({{{','.join([jobs, *chosen])}}}, {name})"
        board.with_variable(
            dashboard.QueryVariable(name).label(label).datasource(DATASOURCE)
            .query({"query": query, "refId": name}).refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC).multi(True).include_all(True).all_value(".*")
            .current(model.VariableOption(selected=True, text="All", value="$__all")))
        chosen.append(f'{name}=~"${name}"')
    number_of = itertools.count(1)
    for name, panels in parts.items():
        board.with_row(dashboard.Row(name).id(next(number_of)))
        for panel in panels:
            board.with_panel(panel.id(next(number_of)))
    return board.build()
