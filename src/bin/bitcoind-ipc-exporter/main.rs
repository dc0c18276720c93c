//! Prometheus exporter for a Bitcoin node over its IPC socket: arguments, wiring, exit code.
#![deny(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "they panic when it is closed: cli::print_error, cli::print"
)]

mod arguments;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bitcoind_exporter::cli::{self, Program};
use bitcoind_exporter::http::Listener;
use bitcoind_exporter::metrics::{Format, Metrics};
use bitcoind_exporter::service::Service;
use bitcoind_exporter::status::Status;
use bitcoind_exporter::{Collector, Context, GUARD_ARGUMENT, check, guard_main, init, once, systemd};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tracing::info;

use arguments::Arguments;

/// How long an exporter that systemd starts for a scrape goes on without a node.
const LINGER: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let result = if std::env::args_os().nth(1).is_some_and(|argument| argument == GUARD_ARGUMENT) {
        guard_main(std::env::args_os().skip(2)).map(|()| ExitCode::SUCCESS)
    } else {
        init::is_needed().and_then(|needed| if needed { init::run() } else { run() })
    };
    result.unwrap_or_else(|error| {
        // Logging may not have started, or may go elsewhere.
        cli::print_error(format_args!("bitcoind-ipc-exporter: {error:#}"));
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    init::start_child()?;
    let arguments = Arguments::of_process();
    if let Some(printed) = arguments.generate() {
        return printed.map(|()| ExitCode::SUCCESS);
    }
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
    let without_node = started_by_scrape && connection.is_none() && arguments.name_no_node();
    let mut source = arguments.source(connection)?;

    let metrics = Metrics::new();
    let status = Arc::new(Status::new(metrics.clone()));
    let shutdown = CancellationToken::new();
    let context = Context::new(arguments.config(&source)?, metrics.clone(), status.clone(), shutdown.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if arguments.once {
        LocalSet::new().block_on(&runtime, once(&mut source, context))?;
        cli::print(&metrics.render(Format::Text))?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.check {
        cli::print(&LocalSet::new().block_on(&runtime, check(&mut source, context))?)?;
        return Ok(ExitCode::SUCCESS);
    }

    let endpoint = arguments.shared.endpoint()?;
    let listener = listener.map_or_else(|| Listener::bind(&arguments.shared.metrics_addr), Ok)?;
    let service = Service::start(&runtime, [(listener, endpoint)], status.clone())?;
    let collector = Collector::new(context);
    service.run(&runtime, &shutdown, async {
        spawn_local(async move { status.keep_history().await });
        if without_node {
            let why = "systemd passed no connection to the node: the node is not running, or systemd is older than 253 and \
                 needs socket-path.conf";
            info!("{why}; exiting after {} s, the next scrape starts the exporter again", LINGER.as_secs());
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
