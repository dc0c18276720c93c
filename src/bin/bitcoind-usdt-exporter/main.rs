//! Prometheus exporter for a Bitcoin node's tracepoints: wiring and exit code.

mod arguments;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use bitcoind_exporter::http::{self, Endpoint, Listener, Pages};
use bitcoind_exporter::metrics::{Format, Snapshots};
use bitcoind_exporter::usdt::{self, Programs, probes, report, watch};
use bitcoind_exporter::{generate, logging, systemd};
use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as channel;
use tracing::info;

use arguments::{Arguments, VERSION};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    if let Some(what) = arguments.generate {
        return Ok(generate::print(what, Arguments::command())?);
    }
    if arguments.print_metrics_reference {
        print!("{}", bitcoind_exporter::metrics_reference());
        return Ok(());
    }
    let mut inherited = systemd::Inherited::take()?;
    systemd::close_inherited();
    let _written_at_the_end = logging::start(arguments.log, arguments.debug)?;
    let target = arguments.target();
    let node = target.find()?;
    if arguments.list_probes {
        return probes::print_table(arguments.subjects(), &target, node);
    }
    usdt::check_kernel()?;
    let mut programs = Programs::load(arguments.subjects()).context("cannot load the BPF programs")?;
    let metrics = Snapshots::new(&[("node", &arguments.node_name)], programs.collectors()?);
    if arguments.once {
        let node = node.context("no node runs; start it, or name it with --bitcoind or --pid")?;
        watch::attach(&mut programs, &node)?;
        print!("{}", metrics.render(Format::Text));
        return Ok(());
    }

    let web_config = arguments.web_config()?;
    let listener = Arc::new(match inherited.http() {
        Some(fd) => Listener::inherited(fd)?,
        None => Listener::bind(&arguments.address())?,
    });
    let health_listener = arguments
        .health_address()
        .map(|address| Listener::bind(&address).map(Arc::new).context("choose another with --health-port"));
    let health_listener = health_listener.transpose()?;

    report::print_start(&target, node.as_ref(), &listener.describe(), &arguments.node_name);
    if let Some(node) = &node {
        report::print_attached(node, &watch::attach(&mut programs, node)?);
    }
    let health_at = health_listener.as_ref().unwrap_or(&listener).describe();
    report::print_started(node.as_ref(), &listener.describe(), &health_at);

    let (health, ready) = channel::channel(Err("no node was found yet".to_string()));
    let pulse = systemd::Heartbeat::default();
    let serving = http::serve_on_thread(
        std::iter::once((listener.clone(), Endpoint::all(web_config)))
            .chain(health_listener.map(|listener| (listener, Endpoint::health()))),
        Arc::new(Status { metrics, ready }),
        pulse.clone(),
    )?;
    systemd::notify(sd_notify::NotifyState::Ready);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::task::spawn_local(systemd::watchdog(pulse));
        tokio::select! {
            ended = watch::follow(programs, target, node, health) => return ended,
            _ = terminate.recv() => info!("SIGTERM: ending"),
            _ = interrupt.recv() => info!("SIGINT: ending"),
        }
        systemd::notify(sd_notify::NotifyState::Stopping);
        Ok(())
    });
    serving.finish();
    listener.remove_file();
    ended
}

struct Status {
    metrics: Snapshots,
    ready: channel::Receiver<Result<(), String>>,
}

impl Pages for Status {
    fn metrics(&self, format: Format) -> String {
        self.metrics.render(format)
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.borrow().clone()
    }

    fn index(&self) -> String {
        let node = match self.ready() {
            Ok(()) => "attached".to_string(),
            Err(why) => why,
        };
        http::page("bitcoind-usdt-exporter", &[("Version", VERSION), ("Node", &node)])
    }
}
