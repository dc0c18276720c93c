//! The table of what was alerted when.

use std::sync::Mutex;
use std::time::Duration;

pub struct Line {
    pub drill: &'static str,
    pub node: String,
    pub kind: String,
    pub alert: String,
    /// From the fault until the operator was told.
    pub after: Option<Duration>,
    /// The same in the operator's time.
    pub minutes: Option<f64>,
    /// Minutes.
    pub within: f64,
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

pub fn add(line: Line) {
    LINES.lock().unwrap().push(line);
}

/// Empty without lines.
pub fn table() -> String {
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
