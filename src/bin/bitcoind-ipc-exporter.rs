//! Prometheus exporter for a Bitcoin node over its IPC socket: arguments, wiring, exit code.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bitcoind_exporter::cli::{self, Program, Shared};
use bitcoind_exporter::collect::{self, Collector, Config, Context, UtxoTrace};
use bitcoind_exporter::http::{Endpoint, Listener};
use bitcoind_exporter::ipc::guard;
use bitcoind_exporter::ipc::source::{CHAINS, Source};
use bitcoind_exporter::metrics::{Format, Metrics};
use bitcoind_exporter::service::Service;
use bitcoind_exporter::status::Status;
use bitcoind_exporter::{init, systemd};
use clap::Parser;
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tracing::info;

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
struct Arguments {
    /// The node's IPC socket
    #[arg(env = "BITCOIND_IPC_EXPORTER_SOCKET_PATH")]
    socket_path: Option<PathBuf>,

    /// An inherited file descriptor that is connected to the node (also -ipcfd N, as Bitcoin Core spells it)
    #[arg(long, value_name = "N", env = "BITCOIN_IPC_FD")]
    ipc_fd: Option<RawFd>,

    /// The node's data directory, when no socket path is given
    #[arg(long, value_name = "DIR", env = "BITCOIND_IPC_EXPORTER_DATADIR")]
    datadir: Option<PathBuf>,

    /// The node's chain, when no socket path is given
    #[arg(long, default_value = "main", env = "BITCOIND_IPC_EXPORTER_CHAIN", value_parser = CHAINS.map(|(name, _)| name))]
    chain: String,

    /// Time between polls; a new tip triggers one at once
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = cli::duration, env = "BITCOIND_IPC_EXPORTER_POLL_INTERVAL")]
    poll_interval: Duration,

    /// Time that the node has to answer a call
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = cli::duration, env = "BITCOIND_IPC_EXPORTER_CALL_TIMEOUT")]
    call_timeout: Duration,

    /// Trace the UTXO cache, where the node can. It makes the node connect blocks more slowly: auto does it out of
    /// initial block download and gives it up for good when it exceeds its budget; on does without a budget
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE")]
    utxo_trace: UtxoTrace,

    /// How long the node may wait for the UTXO cache trace in ten minutes, the time of a block
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = cli::duration, env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE_BUDGET")]
    utxo_trace_budget: Duration,

    /// End (exit 0) when the node shuts down, instead of waiting for the next one. Default when the connection was
    /// inherited and no socket path is given
    #[arg(long, env = "BITCOIND_IPC_EXPORTER_EXIT_WITH_NODE")]
    exit_with_node: bool,

    /// Connect, poll once, print the metrics, exit
    #[arg(long, conflicts_with = "check")]
    once: bool,

    /// Connect, say which node this is, what it offers and which metrics follow, exit
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    shared: Shared,
}

impl Program for Arguments {
    const ENVIRONMENT: &'static str = "BITCOIND_IPC_EXPORTER";
    const METRICS_ADDR: &'static str = "127.0.0.1:9332";

    fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// How long an exporter that systemd starts for a scrape goes on without a node.
const LINGER: Duration = Duration::from_secs(5);

/// Bitcoin Core gives its children `-ipcfd N`, which clap would read as five short options.
fn spelled_for_clap(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text == "-ipcfd" || text.starts_with("-ipcfd=") => {
            text.replacen("-ipcfd", "--ipc-fd", 1).into()
        }
        _ => argument,
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let result = if std::env::args_os().nth(1).is_some_and(|argument| argument == guard::ARGUMENT) {
        guard::main(arguments.by_ref().skip(2)).map(|()| ExitCode::SUCCESS)
    } else if init::is_needed() {
        init::run()
    } else {
        run(arguments)
    };
    result.unwrap_or_else(|error| {
        // Logging may not have started, or may go where nobody looks.
        eprintln!("bitcoind-ipc-exporter: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(arguments: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    init::start_child()?;
    let Some(arguments) = Arguments::read(arguments.map(spelled_for_clap))? else {
        return Ok(ExitCode::SUCCESS);
    };
    // Before anything else opens descriptors.
    let mut inherited = systemd::Inherited::take()?;
    let listener = inherited.http().map(Listener::inherited).transpose()?;
    let connection = match arguments.ipc_fd {
        Some(fd) => Some(systemd::take_over(fd).context("--ipc-fd or BITCOIN_IPC_FD")?),
        None => inherited.ipc(),
    };
    systemd::close_inherited();
    let _written_at_the_end = arguments.shared.start_logging()?;
    let started_by_scrape = listener.is_some();
    // systemd starts us for a scrape, and could not connect to the node. Only it can, at our next start.
    let without_node = started_by_scrape
        && connection.is_none()
        && arguments.socket_path.is_none()
        && arguments.datadir.is_none();
    let mut source =
        Source::of(connection, arguments.socket_path, arguments.datadir.as_deref(), &arguments.chain)?;

    let metrics = Metrics::new();
    let status = Arc::new(Status::new(metrics.clone()));
    let shutdown = CancellationToken::new();
    let config = Config {
        poll_interval: arguments.poll_interval,
        call_timeout: arguments.call_timeout,
        utxo_trace: arguments.utxo_trace,
        utxo_trace_budget: arguments.utxo_trace_budget,
        exit_with_node: arguments.exit_with_node,
    };
    let context = Context::new(config, metrics.clone(), status.clone(), shutdown.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if arguments.once {
        LocalSet::new().block_on(&runtime, collect::once(&mut source, context))?;
        print!("{}", metrics.render(Format::Text));
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.check {
        print!("{}", LocalSet::new().block_on(&runtime, collect::check(&mut source, context))?);
        return Ok(ExitCode::SUCCESS);
    }

    let endpoint = Endpoint::all(arguments.shared.web_config()?);
    let listener = listener.map_or_else(|| Listener::bind(&arguments.shared.metrics_addr), Ok)?;
    let service = Service::start(vec![(listener, endpoint)], status.clone())?;
    let collector = Collector::new(context);
    service.run(&runtime, &shutdown, async {
        spawn_local(async move { status.keep_history().await });
        if without_node {
            let why = "the node does not run: its socket could not be opened";
            info!("{why}; ending after {} s, to be started again by the next scrape", LINGER.as_secs());
            collector.wait_without_node(why, LINGER).await;
            return Ok(());
        }
        let ended = collector.run(source).await;
        if started_by_scrape {
            // A page that is open would start us again at once, and again, until systemd has enough of it.
            shutdown.run_until_cancelled(tokio::time::sleep(LINGER)).await;
        }
        ended
    })
}
