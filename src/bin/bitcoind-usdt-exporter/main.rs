//! Prometheus exporter for a Bitcoin node's tracepoints: wiring and exit code.

mod arguments;
mod blocks;
mod settings;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use bitcoind_exporter::cli::{self, Program};
use bitcoind_exporter::http::{Endpoint, Listener, Pages};
use bitcoind_exporter::metrics::{Format, Snapshots};
use bitcoind_exporter::service::Service;
use bitcoind_exporter::systemd;
use bitcoind_exporter::usdt::page::Page;
use bitcoind_exporter::usdt::{self, Programs, probes, report, watch};
use serde_json::Value;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("ERROR: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let arguments = Arguments::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    if let Some(printed) = arguments.generate() {
        return printed.map(|()| ExitCode::SUCCESS);
    }
    if let Some(Command::Blocks(blocks)) = &arguments.command {
        blocks.show()?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.print_metrics_reference {
        cli::print(&bitcoind_exporter::metrics_reference())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut inherited = systemd::Inherited::take()?;
    systemd::close_inherited();
    let _written_at_the_end = arguments.start_logging()?;
    let (web_config, health_web_config) = (arguments.web_config()?, arguments.health_web_config()?);
    let target = arguments.target();
    let node = target.find()?;
    if arguments.list_probes {
        cli::print(&probes::table(arguments.subjects(), &target, node)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    usdt::check_kernel()?;
    let mut programs = Programs::load(arguments.subjects()).context("cannot load the BPF programs")?;
    let metrics = Snapshots::new(&[("node", &arguments.node_name)], programs.collectors()?)
        .with_exemplars(programs.exemplars());
    if arguments.once {
        let node = node.context("no node runs; start it, or name it with --bitcoind or --pid")?;
        watch::attach(&mut programs, &node)?;
        cli::print(&metrics.render(Format::Text))?;
        return Ok(ExitCode::SUCCESS);
    }

    let record = arguments.block_log.as_deref();
    let record = record.map(|file| programs.record(file, arguments.block_log_keep)).transpose()?;
    let listener = match inherited.http() {
        Some(fd) => Listener::inherited(fd)?,
        None => Listener::bind(&arguments.address())?,
    };
    let health_listener = arguments
        .health_address()
        .map(|address| Listener::bind(&address).context("choose another with --health-port"))
        .transpose()?;

    let metrics_at = listener.describe_with(&web_config);
    let health_at = match &health_listener {
        Some(listener) => listener.describe_with(&health_web_config),
        None => metrics_at.clone(),
    };
    // Where nobody reads it, or the disk is full, it goes on without.
    let mut output = std::io::stdout();
    let _ = report::print_start(&mut output, &target, node.as_ref(), &metrics_at, &arguments.node_name);
    if let Some(node) = &node {
        let _ = report::print_attached(&mut output, node, &watch::attach(&mut programs, node)?);
    }
    let _ = report::print_started(&mut output, node.as_ref(), &metrics_at, &health_at);

    let page = programs.page(&arguments.node_name);
    let (health, ready) = channel::channel(Err("no node was found yet".to_string()));
    let listeners = std::iter::once((listener, Endpoint::all(web_config)))
        .chain(health_listener.map(|listener| (listener, Endpoint::health(health_web_config))))
        .map(|(listener, endpoint)| {
            (listener, endpoint.with_allowed_hosts(&arguments.shared.web_allowed_host))
        });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let service = Service::start(&runtime, listeners, Arc::new(Status { metrics, ready, page }))?;
    let shutdown = CancellationToken::new();
    let ended = service.run(&runtime, &shutdown, async {
        let followed = shutdown.run_until_cancelled(watch::follow(programs, target, node, health));
        followed.await.unwrap_or(Ok(()))
    });
    if let Some(record) = record {
        record.finish();
    }
    ended
}

struct Status {
    metrics: Snapshots,
    ready: channel::Receiver<Result<(), String>>,
    page: Page,
}

impl Pages for Status {
    fn metrics(&self, format: Format) -> String {
        self.metrics.render(format)
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.borrow().clone()
    }

    fn index(&self) -> String {
        self.page.html()
    }

    fn status(&self) -> Option<Value> {
        Some(self.page.json(&self.ready()))
    }
}
