//! Prometheus exporter for a Bitcoin node over its IPC socket: arguments, wiring, exit code.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bitcoind_exporter::collect::{self, Collector, Config, Context as CollectContext, State, UtxoTrace};
use bitcoind_exporter::generate::{self, Generated};
use bitcoind_exporter::http::{self, Address, Endpoint, History, Listener, Pages, WebConfig};
use bitcoind_exporter::init;
use bitcoind_exporter::ipc::guard;
use bitcoind_exporter::ipc::source::{CHAINS, Source, default_socket};
use bitcoind_exporter::logging::{self, Log};
use bitcoind_exporter::metrics::{Format, Metrics, now};
use bitcoind_exporter::systemd;
use clap::{CommandFactory, Parser};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_REVISION"), ", ", env!("BUILD_RUSTC"), ")");

/// Prometheus metrics of a running Bitcoin node, over its IPC socket, without hurting it.
///
/// The node must be a bitcoin-node (Bitcoin Core 30 or later) started with -ipcbind=unix. What can be seen depends on
/// the interfaces that it offers; --check tells. Without a socket path, an inherited connection or --datadir, the
/// socket of a mainnet node in ~/.bitcoin is used.
#[derive(Parser, Debug)]
#[command(name = "bitcoind-ipc-exporter", version = VERSION, after_help = "Every option with a value can also be set by the environment variable named \
behind it.\n\nExample: bitcoind-ipc-exporter --metrics-addr 127.0.0.1:9332 /var/lib/bitcoind/node.sock\nThen:    curl \
http://127.0.0.1:9332/metrics")]
struct Arguments {
    /// The node's IPC socket
    #[arg(env = "BITCOIND_IPC_EXPORTER_SOCKET_PATH")]
    socket_path: Option<PathBuf>,

    /// Where to serve metrics: HOST:PORT (IPv6 in brackets) or unix:/path. A socket that systemd passes comes first
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9332",
        env = "BITCOIND_IPC_EXPORTER_METRICS_ADDR"
    )]
    metrics_addr: Address,

    /// TLS and basic authentication for the endpoint, in the format that the Prometheus exporters share
    #[arg(long = "web.config.file", value_name = "PATH", env = "BITCOIND_IPC_EXPORTER_WEB_CONFIG_FILE")]
    web_config_file: Option<PathBuf>,

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
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = positive, env = "BITCOIND_IPC_EXPORTER_POLL_INTERVAL")]
    poll_interval: Duration,

    /// Time that the node has to answer a call
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive, env = "BITCOIND_IPC_EXPORTER_CALL_TIMEOUT")]
    call_timeout: Duration,

    /// Trace the UTXO cache, where the node can. It makes the node connect blocks more slowly: auto does it out of
    /// initial block download and gives it up for good when it exceeds its budget; on does without a budget
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE")]
    utxo_trace: UtxoTrace,

    /// How long the node may wait for the UTXO cache trace in ten minutes, the time of a block
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = positive, env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE_BUDGET")]
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

    /// Log a line for each event and each poll; RUST_LOG overrides
    #[arg(long, env = "BITCOIND_IPC_EXPORTER_DEBUG")]
    debug: bool,

    /// Print the manual page or a shell's completions, exit
    #[arg(long, value_enum, value_name = "WHAT")]
    generate: Option<Generated>,

    /// Where to log; auto is the journal when stderr is connected to it, else text on stderr
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_LOG")]
    log: Log,
}

impl Arguments {
    /// Whether they do not say where the node is.
    fn names_no_node(&self) -> bool {
        self.socket_path.is_none() && self.datadir.is_none()
    }
}

/// How long an exporter that systemd starts for a scrape goes on without a node.
const LINGER: Duration = Duration::from_secs(5);

fn positive(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than zero".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like 15s, 500ms or 1m")),
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

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == guard::ARGUMENT) {
        return report(guard::main(std::env::args_os().skip(2)));
    }
    if init::is_needed() {
        return init::run().unwrap_or_else(|error| report(Err(error)));
    }
    if let Err(error) = init::start_child() {
        return report(Err(error));
    }
    let arguments = Arguments::parse_from(std::env::args_os().map(spelled_for_clap));
    report(run(arguments))
}

fn report(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not have started, or may go where nobody looks.
            eprintln!("bitcoind-ipc-exporter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    if let Some(what) = arguments.generate {
        return Ok(generate::print(what, Arguments::command())?);
    }
    let metrics = Metrics::new();
    // Before anything else opens descriptors.
    let mut inherited = systemd::Inherited::take()?;
    let listener = inherited.http().map(Listener::inherited).transpose()?;
    let connection = match arguments.ipc_fd {
        Some(fd) => Some(systemd::take_over(fd).context("--ipc-fd or BITCOIN_IPC_FD")?),
        None => inherited.ipc(),
    };
    systemd::close_inherited();
    // systemd starts us for a scrape, and could not connect to the node. Only it can, at our next start.
    let without_node = listener.is_some() && connection.is_none() && arguments.names_no_node();
    let started_by_scrape = listener.is_some();
    let mut source = source(&arguments, connection)?;
    let _written_at_the_end = logging::start(arguments.log, arguments.debug)?;
    let config = Config {
        poll_interval: arguments.poll_interval,
        call_timeout: arguments.call_timeout,
        utxo_trace: arguments.utxo_trace,
        utxo_trace_budget: arguments.utxo_trace_budget,
        exit_with_node: arguments.exit_with_node,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let (state, status) = watch::channel(State::Disconnected("connecting".into()));
    let shutdown = CancellationToken::new();
    let context = CollectContext::new(config, metrics.clone(), state, shutdown.clone());
    if arguments.once {
        local.block_on(&runtime, collect::once(&mut source, context))?;
        print!("{}", metrics.render(Format::Text));
        return Ok(());
    }
    if arguments.check {
        print!("{}", local.block_on(&runtime, collect::check(&mut source, context))?);
        return Ok(());
    }

    let web_config = WebConfig::from_option(arguments.web_config_file.as_deref())?;
    let listener = Arc::new(match listener {
        Some(listener) => listener,
        None => Listener::bind(&arguments.metrics_addr)?,
    });
    let status = Arc::new(Status { metrics: metrics.clone(), state: status, history: History::of(PLOTTED) });
    let pulse = systemd::Pulse::default();
    let serving =
        http::serve_on_thread([(listener.clone(), Endpoint::all(web_config))], status, pulse.clone())?;
    systemd::notify(sd_notify::NotifyState::Ready);

    let collector = Collector::new(context);
    let request = shutdown.clone();
    let ended = local.block_on(&runtime, async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::task::spawn_local(systemd::watchdog(pulse));
        tokio::task::spawn_local(async move {
            let mut signaled = async || {
                tokio::select! {
                    _ = terminate.recv() => Signal::SIGTERM,
                    _ = interrupt.recv() => Signal::SIGINT,
                }
            };
            info!("{}: ending", signaled().await);
            systemd::notify(sd_notify::NotifyState::Stopping);
            request.cancel();
            // Whatever we wait for can be left to the guard.
            let signal = signaled().await;
            std::process::exit(128 + signal as i32);
        });
        if without_node {
            let why = "the node does not run: its socket could not be opened";
            info!("{why}; ending after {} s, to be started again by the next scrape", LINGER.as_secs());
            collector.wait_without_node(why, LINGER).await;
            return Ok(());
        }
        let ended = collector.run(source).await;
        if started_by_scrape && !shutdown.is_cancelled() {
            // A page that is open would start us again at once, and again, until systemd has enough of it.
            let _ = tokio::time::timeout(LINGER, shutdown.cancelled()).await;
        }
        ended
    });
    serving.finish();
    listener.remove_file();
    ended
}

/// The connection that was handed to us, an argument or systemd's named descriptor, then a path.
fn source(arguments: &Arguments, connection: Option<OwnedFd>) -> Result<Source> {
    let path = match (&arguments.socket_path, &arguments.datadir) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(datadir)) => Some(default_socket(datadir, &arguments.chain)),
        (None, None) if connection.is_some() => None,
        (None, None) => {
            let home = std::env::home_dir().unwrap_or("/".into());
            Some(default_socket(&home.join(".bitcoin"), &arguments.chain))
        }
    };
    Source::new(connection, path)
}

/// What the status page plots.
const PLOTTED: &[&str] = &[
    "bitcoin_chain_height",
    "bitcoin_mempool_size",
    "bitcoin_mempool_bytes",
    "bitcoin_fee_estimate_sat_per_vbyte{blocks=\"1\"}",
    "bitcoin_peers",
    "bitcoin_bytes_recv_total",
    "bitcoin_bytes_sent_total",
];

struct Status {
    metrics: Arc<Metrics>,
    state: watch::Receiver<State>,
    history: History,
}

impl Pages for Status {
    fn metrics(&self, format: Format) -> String {
        self.metrics.render(format)
    }

    fn ready(&self) -> Result<(), String> {
        match &*self.state.borrow() {
            State::Polled { .. } => Ok(()),
            State::Disconnected(why) | State::Connected(why) => Err(why.clone()),
        }
    }

    fn index(&self) -> String {
        http::STATUS_PAGE.into()
    }

    fn status(&self) -> Option<Value> {
        let (ready, text, node) = match &*self.state.borrow() {
            State::Polled { interfaces, node } => {
                let node = node.clone().unwrap_or("it does not tell its name".into());
                (true, String::new(), format!("{node} · {}", interfaces.join(", ")))
            }
            State::Disconnected(why) | State::Connected(why) => (false, why.clone(), String::new()),
        };
        Some(json!({
            "now": now(),
            "version": format!("bitcoind-ipc-exporter {VERSION}"),
            "state": {"ready": ready, "text": text},
            "node": node,
            "blocks": self.metrics.last_blocks.all(),
            "history": self.history.json(),
        }))
    }

    fn keep(&self) {
        self.history.keep(&self.metrics.render(Format::Text));
    }
}
