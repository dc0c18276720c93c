//! Divides all durations in Prometheus rules and in Alertmanager routes by a factor. With a factor of 60, ten minutes
//! become ten seconds.
//!
//! The durations in `for`, `keep_firing_for`, a group's `interval`, ranges, subqueries, offsets and the second argument
//! of `predict_linear` are always divided. A number that is compared with a value in seconds is divided if the value is
//! simulated time (for example an uptime), and is not divided if the value is real time (for example a latency).
//! [`SECONDS`] lists both kinds of values. A comparison with a value in seconds that is not in [`SECONDS`] is an error.

use serde_json::Value;

/// Whether a number that is compared with a value in seconds is divided by the factor.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Unit {
    /// The number is simulated time and is divided.
    Scaled,
    /// The number is real time or a count, and is not divided.
    Real,
}

/// Values in seconds that rules compare with numbers: a part of the value's expression without spaces, and the unit of
/// the number. The first entry whose part occurs in the expression applies.
const SECONDS: [(&str, Unit); 15] = [
    // The values of these expressions are counts, not seconds.
    ("changes(", Unit::Real),
    ("_seconds_count", Unit::Real),
    // Latencies of the node and of the exporter are real time, because the drills do not make the programs faster.
    ("histogram_quantile(", Unit::Real),
    ("_seconds_sum", Unit::Real),
    ("_seconds_bucket", Unit::Real),
    // The drills set the timestamps of headers in real time.
    ("tip_timestamp_seconds", Unit::Real),
    ("tip_age_seconds", Unit::Real),
    ("certificate_expiry", Unit::Real),
    // Differences between clocks (`offset_seconds`) are real time. FIBRE peers send a packet every ten seconds of real
    // time (`silence_seconds`).
    ("offset_seconds", Unit::Real),
    ("silence_seconds", Unit::Real),
    ("cpu_seconds_total", Unit::Real),
    // The rules compare the ages of processes and of samples with numbers of simulated seconds.
    ("node_uptime_seconds", Unit::Scaled),
    ("node_start_time_seconds", Unit::Scaled),
    ("process_start_time_seconds", Unit::Scaled),
    ("time()-timestamp(", Unit::Scaled),
];

/// The number of milliseconds in a PromQL duration such as `1d12h` or `250ms`.
pub fn milliseconds(duration: &str) -> Result<u64, String> {
    let (mut rest, mut total) = (duration, 0);
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit()).ok_or(format!("{duration}: no unit"))?;
        let number: u64 = rest[..digits].parse().map_err(|_| format!("{duration}: no number"))?;
        let (unit, length) = match &rest[digits..] {
            unit if unit.starts_with("ms") => (1, 2),
            unit if unit.starts_with('s') => (1_000, 1),
            unit if unit.starts_with('m') => (60_000, 1),
            unit if unit.starts_with('h') => (3_600_000, 1),
            unit if unit.starts_with('d') => (86_400_000, 1),
            unit if unit.starts_with('w') => (604_800_000, 1),
            unit if unit.starts_with('y') => (31_536_000_000, 1),
            _ => return Err(format!("{duration}: no unit of time")),
        };
        total += number * unit;
        rest = &rest[digits + length..];
    }
    Ok(total)
}

/// A PromQL duration divided by the factor, in milliseconds, the shortest unit of PromQL.
pub fn duration(duration: &str, factor: u32) -> Result<String, String> {
    let scaled = milliseconds(duration)? as f64 / f64::from(factor);
    Ok(format!("{}ms", (scaled.round() as u64).max(u64::from(scaled > 0.0))))
}

/// A token of a PromQL expression.
#[derive(Clone, PartialEq, Debug)]
enum Token {
    Space(String),
    Text(String),
    /// A name, a keyword, a number or a duration.
    Word(String),
    /// The text between the square brackets of a range selector or of a subquery.
    Range(String),
    Operator(String),
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Space(text)
            | Token::Text(text)
            | Token::Word(text)
            | Token::Range(text)
            | Token::Operator(text) => text,
        }
    }
}

fn tokens(expression: &str) -> Vec<Token> {
    let mut all = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let until = |end: &dyn Fn(char) -> bool| rest.find(end).unwrap_or(rest.len());
        let is_word = |it: char| it.is_ascii_alphanumeric() || "_:.".contains(it);
        let (length, kind): (usize, fn(String) -> Token) = match first {
            ' ' | '\n' | '\t' => (until(&|it| !it.is_whitespace()), Token::Space),
            '#' => (until(&|it| it == '\n'), Token::Space),
            '"' | '\'' => (end_of_text(rest, first), Token::Text),
            '[' => (until(&|it| it == ']') + 1, Token::Range),
            _ if is_word(first) => (until(&|it| !is_word(it)), Token::Word),
            '>' | '<' | '=' | '!' => (until(&|it| !"<>=!~".contains(it)), Token::Operator),
            _ => (first.len_utf8(), Token::Operator),
        };
        all.push(kind(rest[..length].to_string()));
        rest = &rest[length..];
    }
    all
}

fn end_of_text(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, it) in text.char_indices().skip(1) {
        match it {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if it == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Whether the word is a PromQL duration. A number without a unit is not a duration.
fn is_duration(word: &str) -> bool {
    word.starts_with(|it: char| it.is_ascii_digit()) && milliseconds(word).is_ok()
}

fn number(word: &str) -> Option<f64> {
    word.starts_with(|it: char| it.is_ascii_digit() || it == '.').then(|| word.parse().ok())?
}

fn divided(word: &str, factor: u32) -> Result<String, String> {
    match number(word) {
        Some(number) => Ok((number / f64::from(factor)).to_string()),
        None => duration(word, factor),
    }
}

/// The operand to the left of the operator with the index `at`, without spaces. The operand begins after the enclosing
/// parenthesis or after `and`, `or` or `unless`.
fn left_operand(tokens: &[Token], at: usize) -> String {
    let (mut depth, mut start) = (0, at);
    while start > 0 {
        match tokens[start - 1].text() {
            ")" => depth += 1,
            "(" if depth == 0 => break,
            "(" => depth -= 1,
            "and" | "or" | "unless" if depth == 0 => break,
            _ => {}
        }
        start -= 1;
    }
    tokens[start..at].iter().filter(|it| !matches!(it, Token::Space(_))).map(Token::text).collect()
}

/// Whether a number that a rule compares with this operand is simulated time, which must be divided by the factor.
fn is_scaled(operand: &str) -> Result<bool, String> {
    if !operand.contains("_seconds") && !operand.contains("time()") {
        return Ok(false);
    }
    let known = SECONDS.iter().find(|(part, _)| operand.contains(part));
    let (_, unit) =
        known.ok_or(format!("{operand}: add to SECONDS whether this passes as fast as the drill's time"))?;
    Ok(*unit == Unit::Scaled)
}

/// The PromQL expression with all durations in simulated time divided by the factor.
pub fn expression(expression: &str, factor: u32) -> Result<String, String> {
    let tokens = tokens(expression);
    let mut scaled = String::new();
    let mut horizons = Horizons::default();
    for (at, token) in tokens.iter().enumerate() {
        let text = token.text();
        scaled += &match token {
            Token::Range(_) => {
                let parts = text.trim_matches(['[', ']']).split(':').map(|part| match part.trim() {
                    "" => Ok(String::new()),
                    part => duration(part, factor),
                });
                format!("[{}]", parts.collect::<Result<Vec<_>, _>>()?.join(":"))
            }
            Token::Word(word) if (number(word).is_some() || is_duration(word)) && is_span(&tokens, at)? => {
                divided(word, factor)?
            }
            _ => horizons.divided(text, before(&tokens, at).map(|it| &tokens[it]), factor),
        };
    }
    Ok(scaled)
}

/// Index of the last token before the index `at` that is neither a space nor a minus sign.
fn before(tokens: &[Token], at: usize) -> Option<usize> {
    tokens[..at].iter().rposition(|it| !matches!(it, Token::Space(_)) && it.text() != "-")
}

/// Whether the number or duration with the index `at`, which is not in square brackets, is simulated time.
fn is_span(tokens: &[Token], at: usize) -> Result<bool, String> {
    let Some(before) = before(tokens, at) else { return Ok(false) };
    match &tokens[before] {
        Token::Word(word) => Ok(word == "offset"),
        Token::Operator(it) if it.contains(['<', '>']) || it == "==" => {
            is_scaled(&left_operand(tokens, before))
        }
        _ => Ok(false),
    }
}

/// The calls of `predict_linear` that contain the current token. Their second arguments are numbers of seconds, which
/// must be divided by the factor.
#[derive(Default)]
struct Horizons {
    depth: u32,
    /// For each call of `predict_linear` that contains the current token: the depth of its parentheses, and whether the
    /// current token is in its second argument.
    open: Vec<(u32, bool)>,
}

impl Horizons {
    /// Returns the text of a token. Around the second argument of `predict_linear`, the text gets parentheses and a
    /// division by the factor.
    fn divided(&mut self, text: &str, before: Option<&Token>, factor: u32) -> String {
        match text {
            "(" => {
                self.depth += 1;
                if before.is_some_and(|it| it.text() == "predict_linear") {
                    self.open.push((self.depth, false));
                }
            }
            ")" => {
                let ends = self.open.pop_if(|(depth, _)| *depth == self.depth);
                self.depth -= 1;
                if let Some((_, true)) = ends {
                    return format!(") / {factor})");
                }
            }
            "," => {
                if let Some((_, begun @ false)) =
                    self.open.last_mut().filter(|(depth, _)| *depth == self.depth)
                {
                    *begun = true;
                    return ", (".into();
                }
            }
            _ => {}
        }
        text.into()
    }
}

/// Divides all durations in a file of Prometheus rules by the factor.
pub fn rules(mut file: Value, factor: u32) -> Result<Value, String> {
    for group in file["groups"].as_array_mut().ok_or("no groups")? {
        scale_key(group, "interval", factor)?;
        scale_key(group, "query_offset", factor)?;
        for rule in group["rules"].as_array_mut().ok_or("no rules")? {
            scale_key(rule, "for", factor)?;
            scale_key(rule, "keep_firing_for", factor)?;
            let text = rule["expr"].as_str().ok_or("no expression")?;
            rule["expr"] = expression(text, factor)?.into();
        }
    }
    Ok(file)
}

fn scale_key(object: &mut Value, key: &str, factor: u32) -> Result<(), String> {
    if let Some(text) = object.get(key).and_then(Value::as_str) {
        object[key] = duration(text, factor)?.into();
    }
    Ok(())
}

/// Divides the intervals of all routes and the resolve timeout in a configuration of Alertmanager by the factor.
pub fn routes(mut config: Value, factor: u32) -> Result<Value, String> {
    scale_route(&mut config["route"], factor)?;
    let default = "5m"; // Alertmanager's default of `resolve_timeout`
    let timeout = config["global"]["resolve_timeout"].as_str().unwrap_or(default);
    config["global"]["resolve_timeout"] = duration(timeout, factor)?.into();
    Ok(config)
}

fn scale_route(route: &mut Value, factor: u32) -> Result<(), String> {
    for key in ["group_wait", "group_interval", "repeat_interval"] {
        scale_key(route, key, factor)?;
    }
    let below = route.get_mut("routes").and_then(Value::as_array_mut).into_iter().flatten();
    below.into_iter().try_for_each(|it| scale_route(it, factor))
}

pub fn durations_of_all_places_are_scaled() {
    let scaled = |text: &str| expression(text, 60).unwrap();
    assert_eq!(scaled("increase(a[6h])"), "increase(a[360000ms])");
    assert_eq!(
        scaled("max_over_time(rate(a[5m])[1d:1m])"),
        "max_over_time(rate(a[5000ms])[1440000ms:1000ms])"
    );
    assert_eq!(scaled("max_over_time(a[1h30m:])"), "max_over_time(a[90000ms:])");
    assert_eq!(scaled("a offset 2h + b offset -1d"), "a offset 120000ms + b offset -1440000ms");
    assert_eq!(
        scaled("predict_linear(a{b=\"[1h]\"}[1h], 86400) < 0"),
        "predict_linear(a{b=\"[1h]\"}[60000ms], ( 86400) / 60) < 0"
    );
    assert_eq!(
        scaled("predict_linear(max(a, b)[1h:], 24 * 3600)"),
        "predict_linear(max(a, b)[60000ms:], ( 24 * 3600) / 60)"
    );
    assert_eq!(duration("10ms", 60).unwrap(), "1ms");
    assert_eq!(duration("0s", 60).unwrap(), "0ms");
}

pub fn only_spans_of_the_drills_time_are_scaled() {
    let scaled = |text: &str| expression(text, 60).unwrap();
    for same in [
        "increase(bitcoin_connections_opened_total) > 200",
        "(time() - bitcoin_tip_timestamp_seconds > 7200) and on (job) (bitcoin_ibd == 0)",
        "changes(bitcoin_node_start_time_seconds) > 3",
        "histogram_quantile(0.5, bitcoin_block_arrival_seconds_bucket) > 5",
        "a{le=\"0.1\"} / 24 > 0.5",
    ] {
        assert_eq!(scaled(same), same);
    }
    assert_eq!(
        scaled("a > 5 and on (job, instance) (bitcoin_node_uptime_seconds > 21600)"),
        "a > 5 and on (job, instance) (bitcoin_node_uptime_seconds > 360)"
    );
    assert_eq!(
        scaled("time() - bitcoin_node_start_time_seconds < 1h"),
        "time() - bitcoin_node_start_time_seconds < 60000ms"
    );
    // A rule with a new metric in seconds is an error until the metric is in SECONDS.
    assert!(expression("bitcoin_new_thing_seconds > 60", 60).unwrap_err().contains("SECONDS"));
}
