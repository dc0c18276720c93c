//! The command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bitcoind_exporter::cli::{Cli, CommonArgs};
use bitcoind_exporter::http::{Address, WebConfig};
use bitcoind_exporter::logging::{self, LogLevel, Logging};
use bitcoind_exporter::usdt::TracepointGroup;
use bitcoind_exporter::usdt::block_log::DEFAULT_KEEP;
use bitcoind_exporter::usdt::target::NodeSelector;
use clap::builder::{NonEmptyStringValueParser, RangedI64ValueParser};
use clap::{ArgMatches, Parser, Subcommand};
use tracing::info;

use crate::blocks_command::BlocksCommand;
use crate::settings;

/// Where `fibre_exporter.py` serves metrics, and this exporter.
pub const DEFAULT_PORT: u16 = 9435;

/// Prometheus metrics from a running Bitcoin node's tracepoints (USDT), counted in the kernel with eBPF.
///
/// The node must be built with tracepoints (-DWITH_USDT=ON). FIBRE's are traced where the node has them.
#[derive(Parser, Debug)]
#[command(
    name = "bitcoind-usdt-exporter",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Every option with a value can also be set by the environment variable named \
behind it.\n\nWhat fibre_exporter.py reads from the environment and from its file (--config) is read from there, too: \
FIBRE_BITCOIND_PATH, FIBRE_PID, FIBRE_NODE_NAME, FIBRE_METRICS_PORT, FIBRE_HEALTH_PORT, FIBRE_VERBOSE, FIBRE_LOG_LEVEL, \
FIBRE_LOG_FILE, FIBRE_METRICS_AUTH_USERNAME, FIBRE_METRICS_AUTH_PASSWORD, FIBRE_TLS_CERT, FIBRE_TLS_KEY; in the file \
without FIBRE_ and in small letters. The command line comes first, then the environment, then the file.\n\nExample: bitcoind-usdt-exporter --bitcoind /usr/bin/bitcoin-node --node-name mynode\nThen:    curl \
http://127.0.0.1:9435/metrics"
)]
pub struct Arguments {
    /// The binary with the tracepoints; default: that of the process found
    #[arg(short, long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_BITCOIND")]
    pub bitcoind: Option<PathBuf>,

    /// The node's process; default: the one that runs the binary. When it has ended, the next process with its data directory is traced
    #[arg(short, long, env = "BITCOIND_USDT_EXPORTER_PID", value_parser = process_id())]
    pub pid: Option<i32>,

    /// The node's data directory, or a network's folder in it. Names the node where several run. Found by the lock that the node holds
    /// there; if the exporter cannot look into it, by -datadir on the node's command line
    #[arg(long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_DATADIR")]
    pub datadir: Option<PathBuf>,

    /// The node's systemd unit, found by its control group: bitcoind.service. Names the node where several run
    #[arg(
        long,
        value_name = "NAME",
        env = "BITCOIND_USDT_EXPORTER_UNIT",
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub unit: Option<String>,

    /// The label `node` of each metric
    #[arg(
        short,
        long,
        value_name = "NAME",
        default_value = "localhost",
        env = "BITCOIND_USDT_EXPORTER_NODE_NAME"
    )]
    pub node_name: String,

    /// Serve metrics on this port of every address; anyone who reaches it can read them
    #[arg(long, value_name = "N", env = "BITCOIND_USDT_EXPORTER_PORT", conflicts_with = "metrics_addr")]
    pub port: Option<u16>,

    /// The configuration of fibre_exporter.py, YAML
    #[arg(short, long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_CONFIG")]
    pub config: Option<PathBuf>,

    /// Ask for this user with --metrics-auth-password; as fibre_exporter.py has it, --web.config.file can do more
    #[arg(long, value_name = "NAME", conflicts_with = "web_config_file")]
    pub metrics_auth_username: Option<String>,

    /// Their password; better by the environment: other users see command lines
    #[arg(long, value_name = "PASSWORD", conflicts_with = "web_config_file")]
    pub metrics_auth_password: Option<String>,

    /// Serve HTTPS with this certificate, PEM; as fibre_exporter.py has it
    #[arg(long, value_name = "PATH", conflicts_with = "web_config_file")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, PEM
    #[arg(long, value_name = "PATH", conflicts_with = "web_config_file")]
    pub tls_key: Option<PathBuf>,

    /// Serve /health and /ready on this port besides, without a password; on the same host as the metrics. 0: nowhere else
    #[arg(long, value_name = "N", default_value_t = 9436, env = "BITCOIND_USDT_EXPORTER_HEALTH_PORT")]
    pub health_port: u16,

    /// Groups of tracepoints to trace; default: all that the binary has
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_enum,
        env = "BITCOIND_USDT_EXPORTER_TRACEPOINTS"
    )]
    pub tracepoints: Vec<TracepointGroup>,

    /// Keep a row for each connected block, with its way to the node, in this SQLite file; `blocks` reads it
    #[arg(long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_BLOCK_LOG")]
    pub block_log: Option<PathBuf>,

    /// How many of the last blocks are kept in it
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_KEEP,
        env = "BITCOIND_USDT_EXPORTER_BLOCK_LOG_KEEP",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub block_log_keep: u32,

    /// Log nothing less important
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        default_value = "info",
        env = "BITCOIND_USDT_EXPORTER_LOG_LEVEL"
    )]
    pub log_level: LogLevel,

    /// Log to this file, too; lines are appended. It is opened again when it was renamed or removed, as by logrotate
    #[arg(long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_LOG_FILE")]
    pub log_file: Option<PathBuf>,

    /// Accepted as fibre_exporter.py has it: events are always logged
    #[arg(short, long)]
    pub verbose: bool,

    /// Show each tracepoint: whether the binary has it, its arguments as compiled, whether it can be attached, and the
    /// metrics it feeds; exit
    #[arg(long)]
    pub list_probes: bool,

    /// Attach, print the metrics, exit
    #[arg(long, conflicts_with = "list_probes")]
    pub once: bool,

    /// Print METRICS.md, exit
    #[arg(long, hide = true)]
    pub print_metrics_reference: bool,

    #[command(flatten)]
    pub common: CommonArgs,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What it does besides being an exporter.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the blocks of a block log (--block-log), oldest first; also while the exporter writes it
    Blocks(BlocksCommand),
}

impl Cli for Arguments {
    const ENVIRONMENT: &'static str = "BITCOIND_USDT_EXPORTER";
    const METRICS_ADDR: &'static str = "127.0.0.1:9435";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn overlay(&mut self, command: &mut clap::Command, given: &ArgMatches) -> Result<(), clap::Error> {
        if self.command.is_none() { settings::overlay(self, command, given) } else { Ok(()) }
    }
}

impl Arguments {
    pub fn groups(&self) -> &[TracepointGroup] {
        if self.tracepoints.is_empty() { TracepointGroup::all() } else { &self.tracepoints }
    }

    pub fn target(&self) -> NodeSelector {
        NodeSelector {
            binary: self.bitcoind.clone(),
            pid: self.pid,
            datadir: self.datadir.clone(),
            unit: self.unit.clone(),
        }
    }

    /// Starts logging; dropping what is returned writes the last lines.
    pub fn start_logging(&self) -> Result<Logging> {
        let level = if self.common.debug { LogLevel::Debug } else { self.log_level };
        let logging = logging::start(self.common.log, level, self.log_file.as_deref())?;
        if self.verbose {
            info!("verbose changes nothing: events are logged without it (--log-level warning hides them)");
        }
        Ok(logging)
    }

    /// How the metrics are served.
    pub fn web_config(&self) -> Result<WebConfig> {
        let user = require_both(
            ("metrics_auth_username", self.metrics_auth_username.as_deref()),
            ("metrics_auth_password", self.metrics_auth_password.as_deref()),
        )?;
        match (user, self.certificate()?) {
            (None, None) => self.common.web_config(),
            (user, certificate) => WebConfig::from_parts(user, certificate).context("--tls-cert, --tls-key"),
        }
    }

    /// How health checks are answered: as `fibre_exporter.py` does, with its certificate and without a password.
    pub fn health_web_config(&self) -> Result<WebConfig> {
        WebConfig::from_parts(None, self.certificate()?).context("--tls-cert, --tls-key")
    }

    fn certificate(&self) -> Result<Option<(&Path, &Path)>> {
        require_both(("tls_cert", self.tls_cert.as_deref()), ("tls_key", self.tls_key.as_deref()))
    }

    /// Where to listen, if systemd passes no socket.
    pub fn address(&self) -> Address {
        match self.port {
            Some(port) => Address::Tcp(format!("0.0.0.0:{port}")),
            None => self.common.metrics_addr.clone(),
        }
    }

    /// Where to listen for health checks besides.
    pub fn health_address(&self) -> Option<Address> {
        match (self.address(), self.health_port) {
            (Address::Tcp(address), port @ 1..) => {
                let (host, _) = address.rsplit_once(':').expect("checked when it was read");
                Some(Address::Tcp(format!("{host}:{port}")))
            }
            _ => None,
        }
    }
}

/// A process id as users write it.
pub fn process_id() -> RangedI64ValueParser<i32> {
    clap::value_parser!(i32).range(1..)
}

/// Two settings that need each other.
fn require_both<T>(
    (one, first): (&str, Option<T>),
    (other, second): (&str, Option<T>),
) -> Result<Option<(T, T)>> {
    let flag = |name: &str| name.replace('_', "-");
    match (first, second) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        (Some(_), None) => bail!("{one} without {other}: give --{}, too", flag(other)),
        (None, Some(_)) => bail!("{other} without {one}: give --{}, too", flag(one)),
    }
}
