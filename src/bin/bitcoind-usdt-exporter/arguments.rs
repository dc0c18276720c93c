//! The command line arguments of bitcoind-usdt-exporter. The block log is a SQLite file with a row for each connected
//! block, and the block store is a PostgreSQL database to which the exporter forwards these rows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bitcoind_exporter::bitcoin_core::CHAINS;
use bitcoind_exporter::block_log::outbox::RowOrigin;
use bitcoind_exporter::block_log::{DEFAULT_KEEP, Forwarding};
use bitcoind_exporter::block_store;
use bitcoind_exporter::cli::{Cli, CommonArgs};
use bitcoind_exporter::http::{Address, WebConfig};
use bitcoind_exporter::logging::{self, LogLevel, Logging};
use bitcoind_exporter::usdt::TracepointGroup;
use bitcoind_exporter::usdt::target::NodeSelector;
use clap::{ArgMatches, Parser, Subcommand};
use tracing::info;

use crate::blocks_command::BlocksCommand;
use crate::settings;

/// Default port of the metrics endpoint of `fibre_exporter.py`. This exporter uses the same default if the user passes
/// settings of `fibre_exporter.py`.
pub const DEFAULT_PORT: u16 = 9435;

/// Exports Prometheus metrics from a running Bitcoin node's tracepoints (USDT), counted in the kernel with eBPF.
///
/// The node must be built with tracepoints (-DWITH_USDT=ON). FIBRE's tracepoints are traced if the node has them.
#[derive(Parser, Debug)]
#[command(
    name = "bitcoind-usdt-exporter",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Every option with a value can also be set by the environment variable in its \
brackets.\n\nThe environment variables and the file (--config) of fibre_exporter.py are supported, too: \
FIBRE_BITCOIND_PATH, FIBRE_PID, FIBRE_NODE_NAME, FIBRE_METRICS_PORT, FIBRE_HEALTH_PORT, FIBRE_VERBOSE, FIBRE_LOG_LEVEL, \
FIBRE_LOG_FILE, FIBRE_METRICS_AUTH_USERNAME, FIBRE_METRICS_AUTH_PASSWORD, FIBRE_TLS_CERT, FIBRE_TLS_KEY; in the file \
without FIBRE_ and in lower case. The command line takes precedence over the environment, which takes precedence over the file.\n\nExample: bitcoind-usdt-exporter --bitcoind /usr/bin/bitcoin-node --node-name mynode\nThen:    curl \
http://127.0.0.1:9435/metrics"
)]
pub struct Arguments {
    /// The node to trace.
    #[command(flatten)]
    pub node: NodeSelector,

    /// Value of the label `node` of each metric
    #[arg(
        short,
        long,
        value_name = "NAME",
        default_value = "localhost",
        env = "BITCOIND_USDT_EXPORTER_NODE_NAME"
    )]
    pub node_name: String,

    /// Port of the metrics endpoint. Listens on all addresses and replaces --metrics-addr. Anyone who can reach the
    /// port can read the metrics
    #[arg(long, value_name = "N", env = "BITCOIND_USDT_EXPORTER_PORT", conflicts_with = "metrics_addr")]
    pub port: Option<u16>,

    /// Configuration file of fibre_exporter.py, in YAML
    #[arg(short, long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_CONFIG")]
    pub config: Option<PathBuf>,

    /// User for basic auth, with --metrics-auth-password. For compatibility with fibre_exporter.py; --web.config.file
    /// has more settings
    #[arg(long, value_name = "NAME", conflicts_with = "web_config_file")]
    pub metrics_auth_username: Option<String>,

    /// Password for basic auth. Prefer the environment variable FIBRE_METRICS_AUTH_PASSWORD: arguments are visible to
    /// other users
    #[arg(long, value_name = "PASSWORD", conflicts_with = "web_config_file")]
    pub metrics_auth_password: Option<String>,

    /// PEM file with the certificate for HTTPS. For compatibility with fibre_exporter.py
    #[arg(long, value_name = "PATH", conflicts_with = "web_config_file")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the certificate's private key
    #[arg(long, value_name = "PATH", conflicts_with = "web_config_file")]
    pub tls_key: Option<PathBuf>,

    /// Additional port for /health and /ready, on the host of the metrics endpoint and without a password. 0 disables it
    #[arg(long, value_name = "N", default_value_t = 9436, env = "BITCOIND_USDT_EXPORTER_HEALTH_PORT")]
    pub health_port: u16,

    /// Groups of tracepoints to trace, separated by commas [default: all groups of the binary]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_enum,
        env = "BITCOIND_USDT_EXPORTER_TRACEPOINTS"
    )]
    pub tracepoints: Vec<TracepointGroup>,

    /// SQLite file for the block log: one row per connected block, with the stages of its arrival. The subcommand
    /// `blocks` reads it [default: no block log]
    #[arg(long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_BLOCK_LOG")]
    pub block_log: Option<PathBuf>,

    /// Number of most recent blocks to keep in the block log
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_KEEP,
        env = "BITCOIND_USDT_EXPORTER_BLOCK_LOG_KEEP",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub block_log_keep: u32,

    /// Node's chain, for its rows in the block store
    #[arg(
        long,
        default_value = "main",
        env = "BITCOIND_USDT_EXPORTER_CHAIN",
        value_parser = CHAINS.each_ref().map(|chain| chain.name)
    )]
    pub chain: String,

    /// Minimum log level
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        default_value = "info",
        env = "BITCOIND_USDT_EXPORTER_LOG_LEVEL"
    )]
    pub log_level: LogLevel,

    /// Additional log file. Lines are appended. The file is reopened after it was renamed or removed, e.g. by
    /// logrotate
    #[arg(long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_LOG_FILE")]
    pub log_file: Option<PathBuf>,

    /// Ignored, for compatibility with fibre_exporter.py: events are always logged
    #[arg(short, long)]
    pub verbose: bool,

    /// Print a table of the tracepoints, and exit: whether the binary has the tracepoint, whether it can be attached,
    /// its compiled arguments, and its metrics
    #[arg(long)]
    pub list_probes: bool,

    /// Attach to the node, print the metrics, and exit
    #[arg(long, conflicts_with = "list_probes")]
    pub once: bool,

    /// Print METRICS.md, and exit
    #[arg(long, hide = true)]
    pub print_metrics_reference: bool,

    #[command(flatten)]
    pub common: CommonArgs,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A subcommand, which runs instead of the exporter.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print the blocks of a block log (--block-log), oldest first. Works even while the exporter writes the file
    Blocks(BlocksCommand),
}

impl Cli for Arguments {
    const ENVIRONMENT: &'static str = "BITCOIND_USDT_EXPORTER";
    const METRICS_ADDR: &'static str = "127.0.0.1:9435";

    fn overlay(&mut self, command: &mut clap::Command, given: &ArgMatches) -> Result<(), clap::Error> {
        if self.command.is_none() { settings::overlay(self, command, given) } else { Ok(()) }
    }
}

impl Arguments {
    /// The selected groups of tracepoints; all groups if none was selected.
    pub fn groups(&self) -> &[TracepointGroup] {
        if self.tracepoints.is_empty() { TracepointGroup::all() } else { &self.tracepoints }
    }

    /// Starts the thread that forwards the rows of the block log to the block store, and returns the channel to this
    /// thread; `None` if no block store is configured.
    ///
    /// # Errors
    /// The settings of the block store are invalid or incomplete, or the thread that forwards rows cannot be started.
    pub fn forwarding(&self) -> Result<Option<Forwarding>> {
        let store = &self.common.store;
        let settings = store.settings(Self::ENVIRONMENT, self.block_log.as_deref(), &self.node_name)?;
        let Some(settings) = settings else { return Ok(None) };
        let origin = RowOrigin { chain: self.chain.clone(), node: self.node_name.clone(), source: "usdt" };
        block_store::start(settings, origin).map(Some)
    }

    /// Starts logging. When the returned value is dropped, the queued log lines are written.
    ///
    /// # Errors
    /// A log target cannot be opened, or RUST_LOG is invalid.
    pub fn start_logging(&self) -> Result<Logging> {
        let level = if self.common.debug { LogLevel::Debug } else { self.log_level };
        let logging = logging::start(self.common.log, level, self.log_file.as_deref())?;
        if self.verbose {
            info!("verbose has no effect: events are always logged (--log-level warning hides them)");
        }
        Ok(logging)
    }

    /// The web configuration (TLS and authentication) of the metrics endpoint.
    ///
    /// # Errors
    /// An argument is missing, or a file cannot be read or is invalid.
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

    /// The web configuration (TLS without authentication) of the endpoint for health checks. As in `fibre_exporter.py`,
    /// the health endpoint uses the certificate of the metrics endpoint and needs no password.
    ///
    /// # Errors
    /// An argument is missing, or a file cannot be read or is invalid.
    pub fn health_web_config(&self) -> Result<WebConfig> {
        WebConfig::from_parts(None, self.certificate()?).context("--tls-cert, --tls-key")
    }

    /// Paths of the certificate file (`--tls-cert`) and of the private key file (`--tls-key`); `None` if neither is
    /// set.
    fn certificate(&self) -> Result<Option<(&Path, &Path)>> {
        require_both(("tls_cert", self.tls_cert.as_deref()), ("tls_key", self.tls_key.as_deref()))
    }

    /// Address of the metrics endpoint. The address is not used if systemd passes a listening socket to the exporter.
    pub fn address(&self) -> Address {
        match self.port {
            Some(port) => Address::Tcp(format!("0.0.0.0:{port}")),
            None => self.common.metrics_addr.clone(),
        }
    }

    /// Address of the additional endpoint for health checks; `None` if it is disabled, or if the metrics endpoint is a
    /// Unix socket.
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

/// Combines two settings that require each other, for example a user name and a password. Returns an error if only one
/// of the two settings is set.
fn require_both<T>(
    (one, first): (&str, Option<T>),
    (other, second): (&str, Option<T>),
) -> Result<Option<(T, T)>> {
    let flag = |name: &str| name.replace('_', "-");
    match (first, second) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        (Some(_), None) => bail!("{one} is set without {other}: set --{}, too", flag(other)),
        (None, Some(_)) => bail!("{other} is set without {one}: set --{}, too", flag(one)),
    }
}
