//! The main program of bitcoind-ipc-exporter. The same binary runs as three kinds of process: as the supervisor, which
//! the user starts and which opens the connections to the node; as the exporter process, which polls the node and
//! serves the metrics; and as a guard, which relays the messages of one connection between the node and the exporter
//! process.
#![deny(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "they panic if the output is closed: use cli::print_error or cli::print"
)]

mod arguments;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bitcoind_exporter::block_log::BlockLogThread;
use bitcoind_exporter::cli::{self, Cli};
use bitcoind_exporter::endpoint::NodeEndpoint;
use bitcoind_exporter::http::{Address, Listener, Pages};
use bitcoind_exporter::metrics::{Format, Metrics};
use bitcoind_exporter::sandbox::{self, Confinement};
use bitcoind_exporter::status::Status;
use bitcoind_exporter::supervisor::{self, NodeSocket};
use bitcoind_exporter::{Collector, Context, GUARD_ARGUMENT, check, guard_main, once, service, systemd};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use arguments::{Arguments, Command};

/// Time for which an exporter that systemd started for a scrape (socket activation) continues to serve before it exits,
/// if it has no connection to a node, or if its collector (the code that polls the node) has ended.
const SCRAPE_LINGER_INTERVAL: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let part = arguments.next_if(|first| first == GUARD_ARGUMENT || first == supervisor::EXPORTER);
    let result = match part {
        Some(part) if part == GUARD_ARGUMENT => guard_main(arguments).map(|()| ExitCode::SUCCESS),
        Some(_) => export(arguments),
        None => supervise(arguments),
    };
    result.unwrap_or_else(|error| {
        // Print the error to stderr, because logging may not have started, or the log target may not be stderr.
        cli::print_error(format_args!("bitcoind-ipc-exporter: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Runs the supervisor, which is the process that the user starts. The supervisor starts the exporter process as its
/// child.
fn supervise(arguments: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let arguments = Arguments::parse_or_exit(arguments);
    if let Some(file) = arguments.common.generate {
        return Arguments::generate(file).map(|()| ExitCode::SUCCESS);
    }
    if let Some(Command::Setup(setup)) = &arguments.command {
        return setup.run();
    }
    // Take inherited descriptors before this process opens any descriptor, because the numbers could otherwise refer to
    // other files.
    let mut inherited = systemd::InheritedFds::take()?;
    let listener = inherited.http();
    let connection = match arguments.ipc_fd {
        Some(fd) => Some(systemd::take_over(fd).context("--ipc-fd or BITCOIN_IPC_FD")?),
        None => inherited.ipc(),
    };
    systemd::close_inherited();
    let path = arguments.node_socket(connection.is_some());
    let node = NodeSocket::new(connection, path)?;
    let socket_file = match (&listener, arguments.common.metrics_addr) {
        (None, Address::Unix(path)) if !arguments.once && !arguments.check => Some(path),
        _ => None,
    };
    supervisor::run(node, listener, socket_file)
}

/// Runs the exporter process, which polls the node through the guard and serves the metrics. The exporter process has
/// no descriptor of the node's socket.
fn export(mut arguments: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let start = supervisor::ExporterStart::take(&mut arguments)?;
    let arguments = Arguments::parse_or_exit(arguments);
    let started_by_scrape = start.listener.is_some();
    // True if systemd started this process for a scrape and could not connect to the node. This process has no path of
    // the node's socket; systemd connects to the node again when it starts the exporter again.
    let without_node = started_by_scrape && start.inherited.is_none() && arguments.has_no_node_argument();
    let path = arguments.node_socket(start.inherited.is_some());
    let mut source = NodeEndpoint::new(start.client, start.inherited, path);
    let serves = !arguments.once && !arguments.check;
    let listener = match start.listener {
        Some(fd) => Some(Listener::inherited(fd)?),
        None if serves => Some(Listener::bind(&arguments.common.metrics_addr)?),
        None => None,
    };
    let config = arguments.config(&source)?;
    let store = if serves { arguments.store()? } else { None };
    // Prepare the sandbox before threads are started, because earlier threads would not be restricted.
    let confined =
        Confinement::new(arguments.common.sandbox).files(&arguments.files(&config, store.as_ref()));
    let _written_at_the_end = arguments.common.start_logging()?;
    let inherited = listener.as_ref().filter(|_| started_by_scrape);
    let address = &arguments.common.metrics_addr;
    if let Some(why) = inherited.and_then(|it| it.unused_address(address, Arguments::METRICS_ADDR)) {
        warn!("{why}");
    }
    let (block_log, reports) = if serves { arguments.start_block_log(store)? } else { None }.unzip();

    let metrics = Metrics::polled_every(config.poll_interval);
    let status = Arc::new(Status::new(metrics.clone()));
    let shutdown = CancellationToken::new();
    let mut context = Context::new(config, metrics.clone(), status.clone(), shutdown.clone());
    context.block_log = reports;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Some(listener) = listener.filter(|_| serves) else {
        confined.filter(sandbox::ipc_exporter(false));
        let printed = poll_once(&arguments, &mut source, context, &status);
        cli::print(&LocalSet::new().block_on(&runtime, printed)?)?;
        return Ok(ExitCode::SUCCESS);
    };
    let listeners = [(listener, arguments.common.endpoint()?)];
    let confine = || confined.filter(sandbox::ipc_exporter(block_log.is_some()));
    let collector = Collector::new(context);
    let ended = service::run(&runtime, listeners, status.clone(), confine, &shutdown, async {
        spawn_local(async move { status.keep_history().await });
        if without_node {
            wait_for_next_scrape(collector).await;
            return Ok(());
        }
        let ended = collector.run(source).await;
        if started_by_scrape {
            // Wait before exiting. Without the wait, the requests of an open status page would start the exporter
            // repeatedly, until systemd's start limit is reached.
            shutdown.run_until_cancelled(tokio::time::sleep(SCRAPE_LINGER_INTERVAL)).await;
        }
        ended
    });
    block_log.into_iter().for_each(BlockLogThread::finish);
    ended
}

/// Connects to the node for `--once` or `--check`, and returns the text to print.
async fn poll_once(
    arguments: &Arguments,
    source: &mut NodeEndpoint,
    context: Context,
    status: &Status,
) -> Result<String> {
    if arguments.check {
        return check(source, context).await;
    }
    once(source, context).await?;
    Ok(status.metrics(Format::Text))
}

/// Serves the metrics without a node for [`SCRAPE_LINGER_INTERVAL`]. The exporter exits afterwards, and the next scrape
/// starts it again.
async fn wait_for_next_scrape(collector: Collector) {
    let why = "systemd passed no connection to the node: the node is not running, or systemd is older than 253 and \
               needs socket-path.conf";
    info!(
        "{why}; exiting after {} s, the next scrape starts the exporter again",
        SCRAPE_LINGER_INTERVAL.as_secs()
    );
    collector.wait_without_node(why, SCRAPE_LINGER_INTERVAL).await;
}
