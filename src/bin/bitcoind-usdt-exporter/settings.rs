//! The settings of `fibre_exporter.py`: its file, and its environment variables.
//!
//! Each is an argument under another name, so what they say is added to the command line unless that, or the environment
//! of this exporter, says it already. The variables come before the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitcoind_exporter::files;
use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use serde_yaml_ng::Value;

/// A key of the file, which in capitals and behind `FIBRE_` is the variable's name, and the argument that it is. The file
/// has some keys under two names; the first is taken.
const SETTINGS: [(&[&str], &str); 12] = [
    (&["bitcoind_path", "bitcoind"], "bitcoind"),
    (&["pid"], "pid"),
    (&["node_name"], "node_name"),
    (&["metrics_port", "port"], "port"),
    (&["health_port"], "health_port"),
    (&["verbose"], "verbose"),
    (&["log_level"], "log_level"),
    (&["log_file"], "log_file"),
    (&["metrics_auth_username"], "metrics_auth_username"),
    (&["metrics_auth_password"], "metrics_auth_password"),
    (&["tls_cert"], "tls_cert"),
    (&["tls_key"], "tls_key"),
];

/// What they add to the arguments that were given. Errors name the key, or the variable.
pub fn arguments(command: &mut Command, given: &ArgMatches) -> Result<Vec<String>, clap::Error> {
    let path = given.get_one::<PathBuf>("config");
    let file = path.map(|path| read(path)).transpose().map_err(|why| error(command, why))?;
    let is_given = |id: &str| {
        matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    let mut arguments = Vec::new();
    let mut has_port = is_given("port") || is_given("metrics_addr");
    let mut has_binary_of_theirs = false;
    for (keys, id) in SETTINGS {
        let variable = format!("FIBRE_{}", keys[0].to_uppercase());
        // Empty ones are none, as in Python.
        let of_environment = std::env::var(&variable).ok().filter(|value| !value.is_empty());
        has_binary_of_theirs |= id == "bitcoind" && of_environment.is_some();
        let of_file = || {
            let file = file.as_ref()?;
            let (key, value) = keys.iter().find_map(|key| Some((key, file.get(*key)?)))?;
            Some((format!("{}: {key}", path?.display()), value.clone()))
        };
        let Some((what, value)) = of_environment.map(|value| (variable, value)).or_else(of_file) else {
            continue;
        };
        let argument = match (id, value.to_lowercase().as_str()) {
            // YAML's words before 1.2, which Python reads.
            ("verbose", "true" | "yes" | "on") => "--verbose".to_string(),
            ("verbose", "false" | "no" | "off") => continue,
            ("verbose", _) => return Err(error(command, format!("{what}: {value:?} is not true or false"))),
            _ => format!("--{}={value}", id.replace('_', "-")),
        };
        if let Some(why) = wrong(command, id, &argument) {
            return Err(error(command, format!("{what}: {why}")));
        }
        if is_given(id) || (id == "port" && has_port) {
            continue;
        }
        has_port |= id == "port";
        arguments.push(argument);
    }
    // Who configures it as they did fibre_exporter.py has Prometheus look for it where that one listened.
    if (path.is_some() || has_binary_of_theirs) && !has_port {
        let (_, port) = super::arguments::METRICS_ADDR.rsplit_once(':').expect("it has a port");
        arguments.push(format!("--port={port}"));
    }
    Ok(arguments)
}

/// What is wrong with the value of an argument.
fn wrong(command: &Command, id: &str, argument: &str) -> Option<String> {
    let declared = command.get_arguments().find(|declared| declared.get_id() == id).expect("it is declared");
    // Alone, whatever else is given.
    let alone = declared.clone().env(Resettable::Reset).conflicts_with(Resettable::Reset);
    let parsed = Command::new("alone").no_binary_name(true).arg(alone).try_get_matches_from([argument]);
    let said = parsed.err()?.to_string();
    Some(said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string())
}

fn error(command: &mut Command, why: String) -> clap::Error {
    command.error(ErrorKind::ValueValidation, why)
}

/// The file's keys and values; those without a value are left out.
fn read(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let at = path.display();
    let text = files::read_text(path).map_err(|error| format!("--config {at}: {error}"))?;
    parse(&text).map_err(|why| format!("{at}: {why}"))
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let file: Option<BTreeMap<String, Value>> =
        serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    let known = || SETTINGS.iter().flat_map(|(keys, _)| keys.iter().copied());
    let mut values = BTreeMap::new();
    for (key, value) in file.unwrap_or_default() {
        if !known().any(|known| known == key) {
            let known: Vec<_> = known().collect();
            return Err(format!("unknown key {key}; there are {}", known.join(", ")));
        }
        let value = match value {
            Value::Null => continue,
            Value::Bool(value) => value.to_string(),
            Value::Number(value) => value.to_string(),
            Value::String(value) => value,
            _ => return Err(format!("{key}: expected a text, a number, true or false")),
        };
        if !value.is_empty() {
            values.insert(key, value);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_file_is_read_as_python_reads_it() {
        let values = parse(
            "# comment\nbitcoind_path: /usr/bin/bitcoind\npid:\nnode_name: 7\nport: 9435\nverbose: true\nlog_file: ''\n",
        )
        .unwrap();
        let expected = [
            ("bitcoind_path", "/usr/bin/bitcoind"),
            ("node_name", "7"),
            ("port", "9435"),
            ("verbose", "true"),
        ];
        assert_eq!(values, expected.map(|(key, value)| (key.to_string(), value.to_string())).into());
        assert!(parse("").unwrap().is_empty() && parse("# nothing\n").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_key() {
        let why = |text: &str| parse(text).unwrap_err();
        assert!(why("metrics-port: 1").starts_with("unknown key metrics-port; there are bitcoind_path,"));
        assert!(
            why("health_port: [1]").starts_with("health_port: expected a text"),
            "{}",
            why("health_port: [1]")
        );
        assert!(why("just a text").contains("expected a map"), "{}", why("just a text"));
        assert!(why("a: [").contains("line "));
    }
}
