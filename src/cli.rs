//! The command line arguments that both binaries (bitcoind-ipc-exporter and bitcoind-usdt-exporter) share, and
//! functions that print to standard output and error. The block store is a PostgreSQL database to which exporters
//! forward a row for each connected block; the sandbox limits a process to the system calls, files and ports that the
//! process needs.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{ArgMatches, Args, Command, Parser};

use crate::block_store::StoreArgs;
use crate::generate::{self, PackageFile};
use crate::http::{self, Address, Endpoint, EndpointScope, WebConfig};
use crate::logging::{self, LogTarget};
use crate::sandbox::{AllowedFiles, SandboxMode};

/// The version of the package, with the git revision and the compiler version of the build.
pub const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_REVISION"), ", ", env!("BUILD_RUSTC"), ")");

/// The command line arguments that both binaries share. The names of the environment variables in the attributes lack
/// the prefix of the binary, which [`Cli`] adds.
#[derive(Args, Debug)]
pub struct CommonArgs {
    /// Address of the metrics endpoint: HOST:PORT (IPv6 in brackets) or unix:/path. A socket that systemd passes takes precedence
    #[arg(long, value_name = "ADDRESS", env = "METRICS_ADDR")]
    pub metrics_addr: Address,

    /// File with TLS and basic-auth settings for the endpoint, in the web configuration format of Prometheus exporters [default:
    /// plain HTTP without a password]
    #[arg(long = "web.config.file", value_name = "PATH", env = "WEB_CONFIG_FILE")]
    pub web_config_file: Option<PathBuf>,

    /// Additional host name to accept in requests while listening on loopback, e.g. the name of a reverse proxy. Can
    /// be repeated; separate several names with commas. On loopback, only localhost, 127.0.0.0/8 and ::1 are accepted
    /// by default, which prevents DNS rebinding; on other addresses, all names are accepted
    #[arg(long = "web.allowed-host", value_name = "NAME", value_delimiter = ',', value_parser = http::host_name, env = "WEB_ALLOWED_HOST")]
    pub web_allowed_host: Vec<String>,

    /// Settings of the block store.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Log at level debug, including each event. The environment variable RUST_LOG takes precedence
    #[arg(long, env = "DEBUG")]
    pub debug: bool,

    /// Restrict the process to the system calls, files and ports that it needs. off: for debugging
    #[arg(long, value_enum, default_value = "on", env = "SANDBOX")]
    pub sandbox: SandboxMode,

    /// Print the manual page or the completions for a shell, and exit
    #[arg(long, value_enum, value_name = "WHAT")]
    pub generate: Option<PackageFile>,

    /// Log target and format
    #[arg(long, value_enum, default_value = "auto", env = "LOG")]
    pub log: LogTarget,
}

impl CommonArgs {
    /// Starts logging. When the returned value is dropped, the queued log lines are written.
    ///
    /// # Errors
    /// A log target cannot be opened, or RUST_LOG is invalid.
    pub fn start_logging(&self) -> Result<logging::Logging> {
        let level = if self.debug { logging::LogLevel::Debug } else { logging::LogLevel::Info };
        logging::start(self.log, level, None)
    }

    /// Reads the configuration in `--web.config.file`; the default configuration without that argument.
    ///
    /// # Errors
    /// The web configuration file cannot be read or is invalid.
    pub fn web_config(&self) -> Result<WebConfig> {
        self.web_config_file.as_deref().map_or_else(|| Ok(WebConfig::default()), WebConfig::read)
    }

    /// The files that the sandbox has to allow because of these arguments: the web configuration file
    /// (`--web.config.file`), and the certificate and key files that the web configuration file names.
    pub fn files(&self) -> AllowedFiles {
        let read = self.web_config_file.as_deref().map(WebConfig::reloaded_files).unwrap_or_default();
        let read_once = self.web_config_file.iter().cloned().collect();
        AllowedFiles { read, read_once, ..AllowedFiles::default() }
    }

    /// An HTTP endpoint that serves all paths, configured by `--web.config.file` and `--web.allowed-host`.
    ///
    /// # Errors
    /// The errors of [`Self::web_config`].
    pub fn endpoint(&self) -> Result<Endpoint> {
        Ok(Endpoint::new(EndpointScope::Everything, self.web_config()?, &self.web_allowed_host))
    }
}

/// Parses a duration like `15s`. Accepts one millisecond to a hundred years. Longer durations could overflow when they
/// are added to a time.
///
/// # Errors
/// The reason why the text is invalid.
pub fn duration(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than zero".into()),
        Ok(duration) if duration < SHORTEST => Err("must be at least 1ms".into()),
        Ok(duration) if duration > LONGEST => Err("must be at most 100 years".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; use a format like 15s, 500ms or 1m")),
    }
}

/// Writes a line to standard error. If standard error is closed or its file system is full, the line is lost.
/// `eprintln!` would panic.
pub fn print_error(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints `text` to standard output, for options and subcommands that print and exit.
///
/// # Errors
/// Standard output cannot be written. A reader that closes the pipe early is not an error.
pub fn print(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    ignore_broken_pipe(output.write_all(text.as_bytes()).and_then(|()| output.flush()))
}

/// Converts the result of printing to standard output. The error of a closed pipe becomes `Ok`, because a reader may
/// close the pipe early (`| head`).
///
/// # Errors
/// The error in `written`, with context.
pub fn ignore_broken_pipe(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// The command line arguments of one of the two binaries, which include [`CommonArgs`].
pub trait Cli: Parser {
    /// Prefix of the names of the binary's environment variables, for example `BITCOIND_IPC_EXPORTER`.
    const ENVIRONMENT: &'static str;
    /// Default of `--metrics-addr`.
    const METRICS_ADDR: &'static str;

    /// Sets options that the command line (`given`) does not set, from other sources, for example a configuration file.
    ///
    /// # Errors
    /// A source cannot be read, or has an invalid value.
    fn overlay(&mut self, _command: &mut Command, _given: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }

    /// The clap command with all options that `--help` and the manual page list.
    fn full_command() -> Command {
        let mut command = Self::command().version(VERSION);
        for argument in CommonArgs::augment_args(Command::new("shared")).get_arguments() {
            if let Some(name) = argument.get_env().and_then(|name| name.to_str()) {
                let name = format!("{}_{name}", Self::ENVIRONMENT);
                command = command.mut_arg(argument.get_id(), |argument| argument.env(name));
            }
        }
        command.mut_arg("metrics_addr", |argument| argument.required(false).default_value(Self::METRICS_ADDR))
    }

    /// Parses the command line arguments of the process. clap also returns a request for help or for the version as an
    /// error.
    ///
    /// # Errors
    /// An invalid argument, or a request for help or for the version.
    fn read(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::full_command();
        let given = command.try_get_matches_from_mut(arguments)?;
        let mut program = Self::from_arg_matches(&given).map_err(|error| error.format(&mut command))?;
        program.overlay(&mut command, &given)?;
        Ok(program)
    }

    /// Prints a file that packages ship with the binary: the manual page, or completions for a shell.
    ///
    /// # Errors
    /// Standard output cannot be written.
    fn generate(file: PackageFile) -> Result<()> {
        print(&String::from_utf8_lossy(&generate::contents(file, Self::full_command())?))
    }
}

#[cfg(test)]
#[test]
fn durations_are_between_a_millisecond_and_a_century() {
    assert_eq!(duration("1ms"), Ok(Duration::from_millis(1)));
    for (text, why) in [("0s", "zero"), ("1ns", "at least 1ms"), ("101y", "at most 100 years"), ("1", "15s")]
    {
        let error = duration(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}
