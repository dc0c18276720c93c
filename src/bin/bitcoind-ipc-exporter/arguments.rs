//! The command line.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use bitcoind_exporter::cli::{self, Program, Shared};
use bitcoind_exporter::collect::{Config, UtxoTrace};
use bitcoind_exporter::ipc::source::{CHAINS, Source};
use clap::Parser;

/// Prometheus metrics of a running Bitcoin node, over its IPC socket, without hurting it.
///
/// The node must be a bitcoin-node (Bitcoin Core 30 or later) started with -ipcbind=unix. What can be seen depends on
/// the interfaces that it offers; --check tells. Without a socket path, an inherited connection or --datadir, the
/// socket of a mainnet node in ~/.bitcoin is used.
#[derive(Parser, Debug)]
#[command(
    name = "bitcoind-ipc-exporter",
    after_help = "Every option with a value can also be set by the environment variable named \
behind it.\n\nExample: bitcoind-ipc-exporter --metrics-addr 127.0.0.1:9332 /var/lib/bitcoind/node.sock\nThen:    curl \
http://127.0.0.1:9332/metrics"
)]
pub struct Arguments {
    /// The node's IPC socket
    #[arg(env = "BITCOIND_IPC_EXPORTER_SOCKET_PATH")]
    pub socket_path: Option<PathBuf>,

    /// An inherited file descriptor that is connected to the node (also -ipcfd N, as Bitcoin Core spells it)
    #[arg(long, value_name = "N", env = "BITCOIN_IPC_FD")]
    pub ipc_fd: Option<RawFd>,

    /// The node's data directory, when no socket path is given
    #[arg(long, value_name = "DIR", env = "BITCOIND_IPC_EXPORTER_DATADIR")]
    pub datadir: Option<PathBuf>,

    /// The node's chain, when no socket path is given
    #[arg(long, default_value = "main", env = "BITCOIND_IPC_EXPORTER_CHAIN", value_parser = CHAINS.map(|(name, _)| name))]
    pub chain: String,

    /// Time between polls; a new tip triggers one at once
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = cli::duration, env = "BITCOIND_IPC_EXPORTER_POLL_INTERVAL")]
    pub poll_interval: Duration,

    /// Time that the node has to answer a call
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = cli::duration, env = "BITCOIND_IPC_EXPORTER_CALL_TIMEOUT")]
    pub call_timeout: Duration,

    /// Trace the UTXO cache, where the node can. It makes the node connect blocks more slowly: auto does it out of
    /// initial block download and gives it up for good when it exceeds its budget; on does without a budget
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE")]
    pub utxo_trace: UtxoTrace,

    /// How long the node may wait for the UTXO cache trace in ten minutes, the time of a block
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = cli::duration, env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE_BUDGET")]
    pub utxo_trace_budget: Duration,

    /// End (exit 0) when the node shuts down, instead of waiting for the next one. Default when the connection was
    /// inherited and no socket path is given
    #[arg(long, env = "BITCOIND_IPC_EXPORTER_EXIT_WITH_NODE")]
    pub exit_with_node: bool,

    /// Connect, poll once, print the metrics, exit
    #[arg(long, conflicts_with = "check")]
    pub once: bool,

    /// Connect, say which node this is, what it offers and which metrics follow, exit
    #[arg(long)]
    pub check: bool,

    #[command(flatten)]
    pub shared: Shared,
}

impl Program for Arguments {
    const ENVIRONMENT: &'static str = "BITCOIND_IPC_EXPORTER";
    const METRICS_ADDR: &'static str = "127.0.0.1:9332";

    fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Arguments {
    /// Reads this process's arguments; exits if they are wrong or ask for help.
    pub fn of_process() -> Self {
        Self::read(std::env::args_os().map(spelled_for_clap)).unwrap_or_else(|error| error.exit())
    }

    /// The collector's settings.
    pub fn config(&self) -> Config {
        Config {
            poll_interval: self.poll_interval,
            call_timeout: self.call_timeout,
            utxo_trace: self.utxo_trace,
            utxo_trace_budget: self.utxo_trace_budget,
            exit_with_node: self.exit_with_node,
        }
    }

    /// Where the node is: the connection that was inherited, then the path.
    pub fn source(&self, inherited: Option<OwnedFd>) -> Result<Source> {
        Source::of(inherited, self.socket_path.clone(), self.datadir.as_deref(), &self.chain)
    }

    /// Whether no argument says where the node is.
    pub fn name_no_node(&self) -> bool {
        self.socket_path.is_none() && self.datadir.is_none()
    }
}

/// Bitcoin Core gives its children `-ipcfd N`, which clap would read as five short options.
fn spelled_for_clap(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text == "-ipcfd" || text.starts_with("-ipcfd=") => {
            text.replacen("-ipcfd", "--ipc-fd", 1).into()
        }
        _ => argument,
    }
}
