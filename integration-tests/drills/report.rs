//! The tables of the results of all drills (fault injection tests of the alerts), which are written to the file in
//! DRILLS_REPORT.

use std::sync::Mutex;
use std::time::Duration;

/// A row in the table of alerts: the time from the fault in a drill to an alert about a node.
pub struct Line {
    pub drill: &'static str,
    pub node: String,
    pub kind: String,
    pub alert: String,
    /// Real time from the fault to the webhook's receipt of the alert. `None` if the webhook did not receive the alert.
    pub after: Option<Duration>,
    /// The duration `after` in simulated minutes.
    pub minutes: Option<f64>,
    /// Time limit for the alert in simulated minutes, which the report shows beside `minutes`.
    pub within: f64,
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// A row in the table of drill 30 (the quiet day): a situation in which no alert fired.
pub struct QuietDay {
    pub situation: &'static str,
    /// Duration of the situation in simulated minutes.
    pub minutes: f64,
    /// Number of exporters that Prometheus scraped.
    pub targets: f64,
    pub series: f64,
    pub samples: f64,
    /// Number of rule evaluations by Prometheus since its start.
    pub evaluations: f64,
}

static QUIET_DAYS: Mutex<Vec<QuietDay>> = Mutex::new(Vec::new());

pub fn add_quiet_day(day: QuietDay) {
    QUIET_DAYS.lock().unwrap().push(day);
}

pub fn add(line: Line) {
    LINES.lock().unwrap().push(line);
}

/// The tables of the results of all drills that have run, in Markdown. The text is empty if no drill has run.
pub fn tables() -> String {
    let tables = [table(), quiet_table()];
    tables.into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join("\n")
}

fn quiet_table() -> String {
    let mut days = std::mem::take(&mut *QUIET_DAYS.lock().unwrap());
    if days.is_empty() {
        return String::new();
    }
    days.sort_by_key(|it| it.situation);
    let head = "| situation | minutes | exporters | series | samples | rule evaluations | alerts |\n|---|---|---|---|---|---|---|\n";
    let line = |it: &QuietDay| {
        let QuietDay { situation, minutes, targets, series, samples, evaluations } = it;
        format!("| {situation} | {minutes:.0} | {targets} | {series} | {samples} | {evaluations} | 0 |\n")
    };
    head.to_string() + &days.iter().map(line).collect::<String>()
}

fn table() -> String {
    let mut lines = std::mem::take(&mut *LINES.lock().unwrap());
    if lines.is_empty() {
        return String::new();
    }
    lines.sort_by(|a, b| (a.drill, &a.node, &a.alert).cmp(&(b.drill, &b.node, &b.alert)));
    let mut table = String::from(
        "| drill | node | kind | alert | scaled | alerted after | within |\n|---|---|---|---|---|---|---|\n",
    );
    for line in lines {
        let after = line.after.map_or("never".into(), |it| format!("{:.1} s", it.as_secs_f64()));
        let minutes = line.minutes.map_or("never".into(), |it| format!("{it:.1} min"));
        table += &format!(
            "| {} | {} | {} | {} | {after} | {minutes} | {} min |\n",
            line.drill, line.node, line.kind, line.alert, line.within
        );
    }
    table
}
