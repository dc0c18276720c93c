//! The command line.

use std::path::PathBuf;

use anyhow::{Context, Result};
use bitcoind_exporter::cli::{Program, Shared};
use bitcoind_exporter::http::{Address, WebConfig};
use bitcoind_exporter::usdt::Subject;
use bitcoind_exporter::usdt::record::DEFAULT_KEEP;
use bitcoind_exporter::usdt::target::Target;
use clap::{Parser, Subcommand};

use crate::blocks::Blocks;

/// Prometheus metrics from a running Bitcoin node's tracepoints (USDT), counted in the kernel with eBPF.
///
/// The node must be built with tracepoints (-DWITH_USDT=ON). FIBRE's are traced where the node has them.
#[derive(Parser, Debug)]
#[command(
    name = "bitcoind-usdt-exporter",
    args_conflicts_with_subcommands = true,
    after_help = "Every option with a value can also be set by the environment variable named \
behind it.\n\nExample: bitcoind-usdt-exporter --bitcoind /usr/bin/bitcoin-node --node-name mynode\nThen:    curl \
http://127.0.0.1:9435/metrics"
)]
pub struct Arguments {
    /// The binary with the tracepoints; default: that of the process found
    #[arg(short, long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_BITCOIND")]
    pub bitcoind: Option<PathBuf>,

    /// The node's process; default: the one that runs the binary
    #[arg(short, long, env = "BITCOIND_USDT_EXPORTER_PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,

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

    /// Ask for this user with --metrics-auth-password; as fibre_exporter.py has it, --web.config.file can do more
    #[arg(
        long,
        value_name = "NAME",
        env = "FIBRE_METRICS_AUTH_USERNAME",
        requires = "metrics_auth_password",
        conflicts_with = "web_config_file"
    )]
    pub metrics_auth_username: Option<String>,

    /// Their password; better by the environment: other users see command lines
    #[arg(
        long,
        value_name = "PASSWORD",
        env = "FIBRE_METRICS_AUTH_PASSWORD",
        hide_env_values = true,
        requires = "metrics_auth_username"
    )]
    pub metrics_auth_password: Option<String>,

    /// Serve HTTPS with this certificate, PEM; as fibre_exporter.py has it
    #[arg(
        long,
        value_name = "PATH",
        env = "FIBRE_TLS_CERT",
        requires = "tls_key",
        conflicts_with = "web_config_file"
    )]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, PEM
    #[arg(long, value_name = "PATH", env = "FIBRE_TLS_KEY", requires = "tls_cert")]
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
    pub tracepoints: Vec<Subject>,

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
    pub shared: Shared,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What it does besides being an exporter.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the blocks of a block log (--block-log), oldest first; also while the exporter writes it
    Blocks(Blocks),
}

impl Program for Arguments {
    const ENVIRONMENT: &'static str = "BITCOIND_USDT_EXPORTER";
    const METRICS_ADDR: &'static str = "127.0.0.1:9435";

    fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Arguments {
    pub fn subjects(&self) -> &[Subject] {
        if self.tracepoints.is_empty() { Subject::ALL } else { &self.tracepoints }
    }

    pub fn target(&self) -> Target {
        Target { binary: self.bitcoind.clone(), pid: self.pid }
    }

    pub fn web_config(&self) -> Result<WebConfig> {
        let user = self.metrics_auth_username.as_deref().zip(self.metrics_auth_password.as_deref());
        let certificate = self.tls_cert.as_deref().zip(self.tls_key.as_deref());
        match (user, certificate) {
            (None, None) => self.shared.web_config(),
            _ => WebConfig::of(user, certificate).context("--tls-cert, --tls-key"),
        }
    }

    /// Where to listen, if systemd passes no socket.
    pub fn address(&self) -> Address {
        match self.port {
            Some(port) => Address::Tcp(format!("0.0.0.0:{port}")),
            None => self.shared.metrics_addr.clone(),
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
