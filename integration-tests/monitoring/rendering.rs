//! Draws the dashboards as HTML pages without Grafana, with the layout of the panels and the results of their queries.
//! If SCREENSHOTS is set, pictures of the pages are written to this folder, in which a developer can check the layout,
//! the legends and the units.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::browser::Browser;
use crate::harness::prometheus::Prometheus;
use crate::status_page::keep;
use crate::{dashboards, is_of_loki};

/// Replaces Grafana's variables in a PromQL expression: every variable has all values selected.
fn chosen(expression: &str, job: &str) -> String {
    let expression = expression.replace("$__rate_interval", "1m").replace("$__range", "1h");
    let expression = expression.replace("$__interval", "1m");
    expression.replace("$job", job).replace("$instance", ".+").replace("$node", ".*")
}

fn named(legend: &str, labels: &Value) -> String {
    let labels = labels.as_object().unwrap();
    labels.iter().fold(legend.to_string(), |legend, (name, value)| {
        legend.replace(&format!("{{{{{name}}}}}"), value.as_str().unwrap())
    })
}

fn number(value: &Value) -> Option<f64> {
    value.as_str()?.parse().ok().filter(|value: &f64| value.is_finite())
}

/// The columns and rows that Grafana shows for a table panel. If the panel has one query, the columns are the labels of
/// the result. If the panel has several queries, the result of each query is a column.
fn table(panel: &Value, prometheus: &Prometheus, job: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let targets = panel["targets"].as_array().unwrap();
    let organized = panel["transformations"].as_array().unwrap().last().unwrap()["options"].clone();
    let renamed = organized["renameByName"].as_object();
    let mut fields: Vec<(u64, String)> = organized["indexByName"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, place)| (place.as_u64().unwrap(), name.clone()))
        .collect();
    fields.sort();
    let title = |name: String| {
        renamed.and_then(|names| names.get(&name)?.as_str()).map_or(name.clone(), str::to_string)
    };
    let mut fields: Vec<_> = fields.into_iter().map(|(_, name)| name).collect();
    let mut columns: Vec<_> = fields.iter().cloned().map(title).collect();
    if renamed.is_none() && organized["excludeByName"]["Value"] != true {
        fields.push("Value".into());
        columns.push("Value".into());
    }
    let mut rows: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for target in targets {
        let value = match renamed {
            Some(_) => title(format!("Value #{}", target["refId"].as_str().unwrap())),
            None => "Value".into(),
        };
        for sample in prometheus.query(&chosen(target["expr"].as_str().unwrap(), job)).as_array().unwrap() {
            let labels = sample["metric"].as_object().unwrap();
            let text =
                |name: &String| labels.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
            let key = match renamed {
                Some(_) => text(&fields[0]),
                None => sample["metric"].to_string(),
            };
            let row = rows.entry(key).or_default();
            for (field, column) in
                fields.iter().zip(&columns).filter(|(field, _)| labels.contains_key(*field))
            {
                row.insert(column.clone(), text(field));
            }
            row.insert(value.clone(), sample["value"][1].as_str().unwrap().to_string());
        }
    }
    let shown = |row: &BTreeMap<String, String>| {
        columns.iter().map(|column| row.get(column).cloned().unwrap_or_default()).collect()
    };
    let rows: Vec<Vec<_>> = rows.values().map(shown).collect();
    for (place, column) in columns.iter().enumerate() {
        assert!(rows.iter().any(|row| !row[place].is_empty()), "{}: nothing in {column}", panel["title"]);
    }
    (columns, rows)
}

fn drawn(panel: &Value, prometheus: &Prometheus, job: &str) -> Value {
    let side = |name: &str| panel["gridPos"][name].as_u64().unwrap_or(0);
    let mut drawn = json!({
        "type": panel["type"], "title": panel["title"], "unit": panel["fieldConfig"]["defaults"]["unit"],
        "x": side("x"), "y": side("y"), "w": side("w"), "h": side("h"), "words": {}, "series": [],
    });
    if is_of_loki(panel) {
        drawn["expression"] = panel["targets"][0]["expr"].clone();
        return drawn;
    }
    if panel["type"] == "table" {
        let (columns, rows) = table(panel, prometheus, job);
        assert!(!rows.is_empty(), "{}: no rows", panel["title"]);
        (drawn["columns"], drawn["rows"]) = (json!(columns), json!(rows));
        return drawn;
    }
    for (value, word) in
        panel["fieldConfig"]["defaults"]["mappings"][0]["options"].as_object().into_iter().flatten()
    {
        drawn["words"][value] = word["text"].clone();
    }
    for target in panel["targets"].as_array().unwrap() {
        let expression = chosen(target["expr"].as_str().unwrap(), job);
        for series in prometheus.query_range(&expression, 60, 1).as_array().unwrap() {
            let points = series["values"].as_array().unwrap().iter();
            let points: Vec<_> =
                points.filter_map(|sample| Some(json!([sample[0].as_f64()?, number(&sample[1])?]))).collect();
            let name = named(target["legendFormat"].as_str().unwrap(), &series["metric"]);
            assert!(!name.contains("127.0.0.1") && !name.contains("{{"), "{}: {name}", panel["title"]);
            if !points.is_empty() {
                drawn["series"].as_array_mut().unwrap().push(json!({"name": name, "points": points}));
            }
        }
    }
    drawn
}

/// The rows of a dashboard, each with its panels and the results of their queries.
fn groups(board: &Value, prometheus: &Prometheus) -> Vec<Value> {
    let job = match board["uid"].as_str().unwrap() {
        "bitcoin-node" | "bitcoin-fleet" | "bitcoin-mining" => "bitcoind-ipc",
        _ => "bitcoind-usdt",
    };
    let mut groups: Vec<Value> = Vec::new();
    for panel in board["panels"].as_array().unwrap() {
        if panel["type"] == "row" {
            let inner = panel["panels"].as_array().into_iter().flatten();
            let inner: Vec<_> = inner.map(|panel| drawn(panel, prometheus, job)).collect();
            groups.push(json!({
                "title": panel["title"], "collapsed": panel["collapsed"], "panels": inner,
                "y": panel["gridPos"]["y"].as_u64().unwrap_or(0) + 1,
            }));
        } else {
            let group = groups.last_mut().expect("a row comes first");
            group["panels"].as_array_mut().unwrap().push(drawn(panel, prometheus, job));
        }
    }
    groups
}

/// Draws every dashboard twice: 1,280 pixels wide with all rows open, and 420 pixels wide with the initial state of the
/// rows, as on a phone.
pub fn draw(prometheus: &Prometheus) {
    let dir = TempDir::new().unwrap();
    for board in dashboards() {
        let uid = board["uid"].as_str().unwrap();
        let groups = groups(&board, prometheus);
        for (width, expanded) in [(1280, true), (420, false)] {
            let data = json!({"title": board["title"], "expanded": expanded, "groups": groups});
            let page = include_str!("rendering.html")
                .replace("/*BOARD*/null", &data.to_string().replace("</", "<\\/"));
            let file = dir.path().join(format!("{uid}-{width}.html"));
            std::fs::write(&file, page).unwrap();
            let browser = Browser::start(width, if expanded { 7000 } else { 9000 }, false);
            browser.open(&format!("file://{}", file.display()));
            assert_eq!(browser.console(), Vec::<String>::new(), "{uid}");
            let fits = "return document.documentElement.scrollWidth <= innerWidth";
            assert_eq!(browser.run(fits), true, "{uid} at {width}");
            if !expanded {
                let screens = "return document.documentElement.scrollHeight / 900";
                let screens = browser.run(screens).as_f64().unwrap();
                assert!(screens < 12.0, "{uid} is {screens} screens of a phone long");
            }
            keep(&browser, &format!("{uid}-{width}.png"));
        }
    }
}
