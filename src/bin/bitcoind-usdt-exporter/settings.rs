//! Settings of `fibre_exporter.py`, the Python exporter that this exporter replaces: its configuration file, and its
//! environment variables, which override the file.
//!
//! Each setting corresponds to an argument of this exporter. A setting is used only if neither the command line nor
//! this exporter's own environment variables set the argument.

use std::collections::BTreeMap;
use std::path::Path;

use bitcoind_exporter::files;
use bitcoind_exporter::logging::LogLevel;
use clap::builder::{EnumValueParser, PathBufValueParser, StringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_yaml_ng::Value;

use super::arguments::{Arguments, DEFAULT_PORT};

/// The keys of the configuration file of `fibre_exporter.py`, some of which have two names. The name of a setting's
/// environment variable is `FIBRE_` followed by the key in capitals; for a setting with two keys, the key is
/// `bitcoind_path` or `metrics_port`.
const KEYS: &str = "bitcoind_path, bitcoind, pid, node_name, metrics_port, port, health_port, verbose, log_level, log_file, \
                    metrics_auth_username, metrics_auth_password, tls_cert, tls_key";

/// Sets the arguments that the user did not give, from the environment variables and the configuration file of
/// `fibre_exporter.py`.
///
/// # Errors
/// The file cannot be read, or a setting is invalid; the error names the key or the variable.
pub fn overlay(
    arguments: &mut Arguments,
    command: &mut Command,
    given: &ArgMatches,
) -> Result<(), clap::Error> {
    let path = arguments.config.clone();
    let file = path.as_deref().map(read).transpose();
    let applied = file.and_then(|file| {
        Overlay { command, given, path: path.as_deref(), file: file.unwrap_or_default() }.apply(arguments)
    });
    applied.map_err(|why| command.error(ErrorKind::ValueValidation, why))
}

/// The settings of `fibre_exporter.py` that replace the defaults of this exporter's arguments. An argument that the
/// user gave is not replaced by a setting.
struct Overlay<'a> {
    command: &'a Command,
    given: &'a ArgMatches,
    path: Option<&'a Path>,
    file: BTreeMap<String, String>,
}

impl Overlay<'_> {
    /// Sets all arguments for which `fibre_exporter.py` has a setting and that the user did not give.
    fn apply(&self, to: &mut Arguments) -> Result<(), String> {
        self.set(&mut to.node.bitcoind, "bitcoind", PathBufValueParser::new())?;
        self.set(&mut to.node.pid, "pid", value_parser!(i32).range(1..))?;
        self.set(&mut to.node_name, "node_name", StringValueParser::new())?;
        self.set(&mut to.port, "port", value_parser!(u16))?;
        self.set(&mut to.health_port, "health_port", value_parser!(u16))?;
        self.set_verbose(&mut to.verbose)?;
        self.set(&mut to.log_level, "log_level", EnumValueParser::<LogLevel>::new())?;
        self.set(&mut to.log_file, "log_file", PathBufValueParser::new())?;
        self.set(&mut to.metrics_auth_username, "metrics_auth_username", StringValueParser::new())?;
        self.set(&mut to.metrics_auth_password, "metrics_auth_password", StringValueParser::new())?;
        self.set(&mut to.tls_cert, "tls_cert", PathBufValueParser::new())?;
        self.set(&mut to.tls_key, "tls_key", PathBufValueParser::new())?;
        self.check_conflicts()?;
        // If settings of fibre_exporter.py are used, Prometheus probably scrapes the port of fibre_exporter.py. The
        // port of fibre_exporter.py is therefore the default.
        let as_theirs = self.path.is_some() || variable("bitcoind_path").is_some();
        if self.is_given("metrics_addr") {
            to.port = None;
        } else if as_theirs && to.port.is_none() {
            to.port = Some(DEFAULT_PORT);
        }
        Ok(())
    }

    /// The setting of `fibre_exporter.py` for an argument. Returns the setting's source (a key of the file or the name
    /// of an environment variable) and its value.
    fn setting(&self, id: &str) -> Option<(String, String)> {
        let key = match id {
            "bitcoind" => "bitcoind_path",
            "port" => "metrics_port",
            id => id,
        };
        let of_file = || {
            let (key, value) = [key, id].iter().find_map(|key| self.file.get_key_value(*key))?;
            Some((format!("{}: {key}", self.path?.display()), value.clone()))
        };
        variable(key).or_else(of_file)
    }

    /// Sets an argument if the user did not give it. An invalid setting is an error even if the user gave the argument.
    fn set<P: TypedValueParser>(
        &self,
        to: &mut impl From<P::Value>,
        id: &str,
        parser: P,
    ) -> Result<(), String> {
        let Some((what, value)) = self.setting(id) else { return Ok(()) };
        let value =
            parser.parse_ref(self.command, Some(self.argument(id)), value.as_ref()).map_err(|error| {
                let text = error.to_string();
                format!("{what}: {}", text.lines().next().unwrap_or_default().trim_start_matches("error: "))
            })?;
        if !self.is_given(id) {
            *to = value.into();
        }
        Ok(())
    }

    /// Sets `verbose`. Accepts the words that YAML 1.1, which Python's YAML parser implements, defines for true and
    /// false.
    fn set_verbose(&self, to: &mut bool) -> Result<(), String> {
        let Some((what, value)) = self.setting("verbose") else { return Ok(()) };
        match value.to_lowercase().as_str() {
            "true" | "yes" | "on" => *to = true,
            "false" | "no" | "off" => {}
            value => return Err(format!("{what}: {value:?} is neither true nor false")),
        }
        Ok(())
    }

    /// Returns an error if `--web.config.file` is given together with settings for TLS or authentication.
    fn check_conflicts(&self) -> Result<(), String> {
        let ids = ["metrics_auth_username", "metrics_auth_password", "tls_cert", "tls_key"];
        let set = ids.iter().filter(|id| self.setting(id).is_some());
        let set: Vec<_> = set.map(|id| format!("'{}'", self.argument(id))).collect();
        if set.is_empty() || !self.is_given("web_config_file") {
            return Ok(());
        }
        Err(format!("the argument '--web.config.file <PATH>' cannot be used with {}", set.join(", ")))
    }

    /// The declaration in clap of the argument whose identifier is `id`.
    fn argument(&self, id: &str) -> &Arg {
        self.command.get_arguments().find(|argument| argument.get_id() == id).expect("it is declared")
    }

    /// Whether the command line or this exporter's own environment sets an argument.
    fn is_given(&self, id: &str) -> bool {
        matches!(self.given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    }
}

/// Name and value of the environment variable of `fibre_exporter.py` for a key of its configuration file. `None` if the
/// variable is not set or empty: fibre_exporter.py also ignores empty variables.
fn variable(key: &str) -> Option<(String, String)> {
    let variable = format!("FIBRE_{}", key.to_uppercase());
    let value = std::env::var(&variable).ok()?;
    (!value.is_empty()).then_some((variable, value))
}

/// Reads the keys and values of the configuration file of `fibre_exporter.py`. Keys without a value are omitted.
fn read(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let at = path.display();
    let text = files::read_text(path).map_err(|error| format!("--config {at}: {error}"))?;
    parse(&text).map_err(|why| format!("{at}: {why}"))
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let file: Option<BTreeMap<String, Value>> =
        serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    let mut values = BTreeMap::new();
    for (key, value) in file.unwrap_or_default() {
        if KEYS.split(", ").all(|known| known != key) {
            return Err(format!("unknown key {key}; the keys are {KEYS}"));
        }
        let value = match value {
            Value::Null => continue,
            Value::Bool(value) => value.to_string(),
            Value::Number(value) => value.to_string(),
            Value::String(value) => value,
            _ => return Err(format!("{key}: expected a string, a number, true or false")),
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
    fn file_is_parsed_as_python_does() {
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
    fn invalid_value_is_reported_with_its_key() {
        let why = |text: &str| parse(text).unwrap_err();
        assert!(why("metrics-port: 1").starts_with("unknown key metrics-port; the keys are bitcoind_path,"));
        assert!(
            why("health_port: [1]").starts_with("health_port: expected a string"),
            "{}",
            why("health_port: [1]")
        );
        assert!(why("just a text").contains("expected a map"), "{}", why("just a text"));
        assert!(why("a: [").contains("line "));
    }
}
