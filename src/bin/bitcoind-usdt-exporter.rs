//! Prometheus exporter for a Bitcoin node's tracepoints: arguments, wiring, exit code.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use bitcoind_exporter::generate::{self, Generated};
use bitcoind_exporter::http::{self, Address, Endpoint, Listener, Pages, WebConfig};
use bitcoind_exporter::logging::{self, Log};
use bitcoind_exporter::metrics::{Format, Snapshots};
use bitcoind_exporter::systemd;
use bitcoind_exporter::usdt::watch::{self, Target};
use bitcoind_exporter::usdt::{self, Programs, Subject, probes, report};
use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as channel;
use tracing::info;

const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_REVISION"), ", ", env!("BUILD_RUSTC"), ")");

/// Prometheus metrics from a running Bitcoin node's tracepoints (USDT), counted in the kernel with eBPF.
///
/// The node must be built with tracepoints (-DWITH_USDT=ON). FIBRE's are traced where the node has them.
#[derive(Parser, Debug)]
#[command(name = "bitcoind-usdt-exporter", version = VERSION, after_help = "Every option with a value can also be set by the environment variable named \
behind it.\n\nExample: bitcoind-usdt-exporter --bitcoind /usr/bin/bitcoin-node --node-name mynode\nThen:    curl \
http://127.0.0.1:9435/metrics")]
struct Arguments {
    /// The binary with the tracepoints; default: that of the process found
    #[arg(short, long, value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_BITCOIND")]
    bitcoind: Option<PathBuf>,

    /// The node's process; default: the one that runs the binary
    #[arg(short, long, env = "BITCOIND_USDT_EXPORTER_PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,

    /// The label `node` of each metric
    #[arg(
        short,
        long,
        value_name = "NAME",
        default_value = "localhost",
        env = "BITCOIND_USDT_EXPORTER_NODE_NAME"
    )]
    node_name: String,

    /// Serve metrics on this port of every address; anyone who reaches it can read them
    #[arg(long, value_name = "N", env = "BITCOIND_USDT_EXPORTER_PORT", conflicts_with = "metrics_addr")]
    port: Option<u16>,

    /// Where to serve metrics: HOST:PORT (IPv6 in brackets) or unix:/path. A socket that systemd passes comes first
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9435",
        env = "BITCOIND_USDT_EXPORTER_METRICS_ADDR"
    )]
    metrics_addr: Address,

    /// TLS and basic authentication for the endpoint, in the format that the Prometheus exporters share
    #[arg(long = "web.config.file", value_name = "PATH", env = "BITCOIND_USDT_EXPORTER_WEB_CONFIG_FILE")]
    web_config_file: Option<PathBuf>,

    /// Ask for this user with --metrics-auth-password; as fibre_exporter.py has it, --web.config.file can do more
    #[arg(
        long,
        value_name = "NAME",
        env = "FIBRE_METRICS_AUTH_USERNAME",
        requires = "metrics_auth_password",
        conflicts_with = "web_config_file"
    )]
    metrics_auth_username: Option<String>,

    /// Their password; better by the environment: other users see command lines
    #[arg(
        long,
        value_name = "PASSWORD",
        env = "FIBRE_METRICS_AUTH_PASSWORD",
        hide_env_values = true,
        requires = "metrics_auth_username"
    )]
    metrics_auth_password: Option<String>,

    /// Serve HTTPS with this certificate, PEM; as fibre_exporter.py has it
    #[arg(
        long,
        value_name = "PATH",
        env = "FIBRE_TLS_CERT",
        requires = "tls_key",
        conflicts_with = "web_config_file"
    )]
    tls_cert: Option<PathBuf>,

    /// The certificate's private key, PEM
    #[arg(long, value_name = "PATH", env = "FIBRE_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Serve /health and /ready on this port besides, without a password; on the same host as the metrics. 0: nowhere else
    #[arg(long, value_name = "N", default_value_t = 9436, env = "BITCOIND_USDT_EXPORTER_HEALTH_PORT")]
    health_port: u16,

    /// Groups of tracepoints to trace; default: all that the binary has
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_enum,
        env = "BITCOIND_USDT_EXPORTER_TRACEPOINTS"
    )]
    tracepoints: Vec<Subject>,

    /// Show each tracepoint: whether the binary has it, its arguments as compiled, whether it can be attached, and the
    /// metrics it feeds; exit
    #[arg(long)]
    list_probes: bool,

    /// Attach, print the metrics, exit
    #[arg(long, conflicts_with = "list_probes")]
    once: bool,

    /// Log more; RUST_LOG overrides
    #[arg(long, env = "BITCOIND_USDT_EXPORTER_DEBUG")]
    debug: bool,

    /// Print the manual page or a shell's completions, exit
    #[arg(long, value_enum, value_name = "WHAT")]
    generate: Option<Generated>,

    /// Where to log; auto is the journal when stderr is connected to it, else text on stderr
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_USDT_EXPORTER_LOG")]
    log: Log,

    /// Print METRICS.md, exit
    #[arg(long, hide = true)]
    print_metrics_reference: bool,
}

impl Arguments {
    fn web_config(&self) -> Result<WebConfig> {
        let user = self.metrics_auth_username.as_deref().zip(self.metrics_auth_password.as_deref());
        let certificate = self.tls_cert.as_deref().zip(self.tls_key.as_deref());
        match (user, certificate) {
            (None, None) => WebConfig::from_option(self.web_config_file.as_deref()),
            _ => WebConfig::of(user, certificate).context("--tls-cert, --tls-key"),
        }
    }
}

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
    let subjects = match &arguments.tracepoints[..] {
        [] => Subject::ALL.to_vec(),
        chosen => chosen.to_vec(),
    };
    let target = Target { binary: arguments.bitcoind.clone(), pid: arguments.pid };
    let node = target.find()?;
    if arguments.list_probes {
        return probes::print_table(&subjects, &target, node);
    }
    usdt::check_kernel()?;
    let mut programs = Programs::load(&subjects).context("cannot load the BPF programs")?;
    let metrics = Snapshots::new(&[("node", &arguments.node_name)], programs.collectors()?);
    if arguments.once {
        watch::attach(
            &mut programs,
            &node.context("no node runs; start it, or name it with --bitcoind or --pid")?,
        )?;
        print!("{}", metrics.render(Format::Text));
        return Ok(());
    }

    let address = match arguments.port {
        Some(port) => Address::Tcp(format!("0.0.0.0:{port}")),
        None => arguments.metrics_addr.clone(),
    };
    let web_config = arguments.web_config()?;
    let listener = Arc::new(match inherited.http() {
        Some(fd) => Listener::inherited(fd)?,
        None => Listener::bind(&address)?,
    });
    let health_listener = match (&address, arguments.health_port) {
        (Address::Tcp(address), port @ 1..) => {
            let (host, _) = address.rsplit_once(':').expect("checked when it was read");
            let listener = Listener::bind(&Address::Tcp(format!("{host}:{port}")));
            Some(Arc::new(listener.context("choose another with --health-port")?))
        }
        _ => None,
    };

    println!("FIBRE USDT Metrics Exporter");
    let shown = arguments.bitcoind.or(node.as_ref().map(|node| node.binary.clone()));
    println!(
        "  bitcoind: {}",
        shown.map_or("waiting for one to run".into(), |path| path.display().to_string())
    );
    println!("  metrics: {}", listener.describe());
    println!("  node: {}", arguments.node_name);
    if let Some(node) = &node {
        let attached = watch::attach(&mut programs, node)?;
        report::print_attached(node, &attached);
    }
    println!("\nPrometheus metrics available at {}/metrics", listener.describe());
    let health_at = health_listener.as_ref().unwrap_or(&listener).describe();
    println!("Health check available at {health_at}/health");
    match &node {
        Some(_) => println!("Waiting for FIBRE events..."),
        None => println!("Waiting for the node..."),
    }

    let (health, ready) = channel::channel(Err("no node was found yet".to_string()));
    let status = Arc::new(Status { metrics, ready });
    let pulse = systemd::Heartbeat::default();
    let serving = http::serve_on_thread(
        std::iter::once((listener.clone(), Endpoint::all(web_config)))
            .chain(health_listener.map(|listener| (listener, Endpoint::health()))),
        status,
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
