//! The main program of bitcoind-usdt-exporter: parses the arguments, starts the tracing of the node and the HTTP
//! server, and sets the exit code.

mod arguments;
mod blocks_command;
mod settings;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use bitcoind_exporter::block_log::BlockLogThread;
use bitcoind_exporter::cli::{self, Cli};
use bitcoind_exporter::http::{Address, Endpoint, EndpointScope, Listener, Pages};
use bitcoind_exporter::metrics::{self, Format};
use bitcoind_exporter::sandbox::{self, Confinement, UsdtNeeds};
use bitcoind_exporter::systemd::{self, InheritedFds};
use bitcoind_exporter::usdt::attach_loop::{self, Tracer};
use bitcoind_exporter::usdt::target::NodeSearch;
use bitcoind_exporter::usdt::{self, MetricsReader, Programs, page, probes, startup_banner};
use bitcoind_exporter::{logging, service};
use serde_json::Value;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        // Ignore the result, because stderr may be closed.
        let _ = writeln!(io::stderr(), "ERROR: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let arguments = Arguments::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    if let Some(printed) = print(&arguments) {
        return printed.map(|()| ExitCode::SUCCESS);
    }
    let mut inherited = InheritedFds::take()?;
    systemd::close_inherited();
    let _written_at_the_end = arguments.start_logging()?;
    let (web_config, health_web_config) = (arguments.web_config()?, arguments.health_web_config()?);
    let mut search = NodeSearch::new(arguments.node.clone());
    if arguments.list_probes {
        cli::print(&probes::table(arguments.groups(), &mut search)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    usdt::check_kernel()?;
    let programs = Programs::load(arguments.groups()).context("cannot load the BPF programs")?;
    let (health, ready) = channel::channel(Err("no node found yet".to_string()));
    let pages = StatusPages { reader: programs.reader(), node_name: arguments.node_name.clone(), ready };
    if arguments.once {
        Tracer::new(programs, search).attach_now()?;
        cli::print(&pages.metrics(Format::Text))?;
        return Ok(ExitCode::SUCCESS);
    }
    let forwarding = arguments.forwarding()?;
    let has_store = forwarding.is_some();
    let start = |file| BlockLogThread::start(file, arguments.block_log_keep, forwarding);
    let (block_log, reports) = arguments.block_log.as_deref().map(start).transpose()?.unzip();
    reports.into_iter().for_each(|reports| programs.set_block_log(reports));
    let mut tracer = Tracer::new(programs, search);
    let (listener, health_listener) = listen(&arguments, &mut inherited)?;
    let metrics_at = listener.describe_with(&web_config);
    let health_at = health_listener.as_ref().map(|listener| listener.describe_with(&health_web_config));
    let traced = tracer.start()?;
    let (binary, health_at) = (arguments.node.bitcoind.as_ref(), health_at.as_ref().unwrap_or(&metrics_at));
    let banner = startup_banner::text(binary, traced.as_ref(), &arguments.node_name, &metrics_at, health_at);
    let _printed_at_the_end = logging::print_in_background(banner.into_bytes())?;

    let endpoint = |access, config| Endpoint::new(access, config, &arguments.common.web_allowed_host);
    let mut listeners = vec![(listener, endpoint(EndpointScope::Everything, web_config))];
    if let Some(listener) = health_listener {
        listeners.push((listener, endpoint(EndpointScope::Health, health_web_config)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let removes_socket = matches!(arguments.address(), Address::Unix(_));
    let needs = UsdtNeeds { writes_block_log: block_log.is_some(), has_store, removes_socket };
    let confine = || Confinement::new(arguments.common.sandbox).filter(sandbox::usdt_exporter(needs));
    let pages = Arc::new(pages);
    let shutdown = CancellationToken::new();
    let ended = service::run(&runtime, listeners, pages, confine, &shutdown, async {
        let followed = shutdown.run_until_cancelled(attach_loop::follow(tracer, traced, health));
        followed.await.unwrap_or(Ok(()))
    });
    if let Some(block_log) = block_log {
        block_log.finish();
    }
    ended
}

/// Runs the options and subcommands that print something and exit, without a node to trace; `None` if none of them was
/// requested.
fn print(arguments: &Arguments) -> Option<Result<()>> {
    if let Some(Command::Blocks(blocks)) = &arguments.command {
        return Some(blocks.show());
    }
    if arguments.print_metrics_reference {
        return Some(cli::print(&bitcoind_exporter::metrics_reference()));
    }
    arguments.common.generate.map(Arguments::generate)
}

/// The listener for the metrics, and the additional listener for health checks if that is enabled.
fn listen(arguments: &Arguments, inherited: &mut InheritedFds) -> Result<(Listener, Option<Listener>)> {
    let listener = match inherited.http() {
        Some(fd) => {
            let inherited = Listener::inherited(fd)?;
            if let Some(why) = inherited.unused_address(&arguments.address(), Arguments::METRICS_ADDR) {
                tracing::warn!("{why}");
            }
            inherited
        }
        None => Listener::bind(&arguments.address())?,
    };
    let health = arguments.health_address();
    let health =
        health.map(|address| Listener::bind(&address).context("choose another port with --health-port"));
    Ok((listener, health.transpose()?))
}

/// The contents of the pages that the exporter serves over HTTP: metrics, readiness, the page of recent blocks, and the
/// data of that page.
struct StatusPages {
    reader: Arc<MetricsReader>,
    /// Value of the label `node` of each sample.
    node_name: String,
    ready: channel::Receiver<Result<(), String>>,
}

impl Pages for StatusPages {
    fn metrics(&self, format: Format) -> String {
        metrics::render(&self.reader.families(), &[("node", &self.node_name)], format)
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.borrow().clone()
    }

    fn index(&self) -> String {
        page::html()
    }

    fn status(&self) -> Value {
        self.reader.status(&self.node_name, &self.ready())
    }
}
