//! Drills (fault injection tests of the alerts) with exporters that exit, do not respond or have no node, and with
//! failures of the monitoring programs.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::fleet::{Fleet, Kind, Plan, critical, warning};
use crate::gate;
use crate::harness::exporter::Exporter;
use crate::harness::node::rpcauth;
use crate::harness::{eventually, fixture};
use crate::stack::Target;

/// Drill 18 in docs/alerts.md: Prometheus cannot scrape the exporters of four nodes. The exporters of the first node
/// are killed, the exporter of the second node is stopped, the third exporter requires a password, and the fourth
/// exporter has an expired certificate.
pub fn exporter_that_does_not_answer_is_down() {
    let authority = Authority::new();
    let web = |text: String| {
        let file = authority.dir.path().join(format!("{}.yml", rand::random::<u32>()));
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let secured = web("tls_server_config: {cert_file: cert.pem, key_file: key.pem}".into());
    let plans = vec![
        Plan::new(Kind::Rpc).named("killed"),
        Plan::new(Kind::Rpc).named("frozen").without_usdt(),
        Plan::new(Kind::HttpOnly).named("password"),
        Plan::new(Kind::RpcOverHttp)
            .named("certificate")
            .exporter(&["--web.config.file", &secured])
            .over_tls(&authority.dir.path().join("ca.pem")),
    ];
    let mut fleet = Fleet::start("18 exporter down", plans);
    fleet.quiet(2.0);
    let since = Instant::now();
    let killed = fleet.member("killed");
    killed.ipc.as_ref().unwrap().signal(Signal::SIGKILL);
    if let Some(usdt) = &killed.usdt {
        usdt.signal(Signal::SIGKILL);
    }
    fleet.member("frozen").exporter().signal(Signal::SIGSTOP);
    // The exporter of this node requires a password, which Prometheus does not send. The hash can therefore be that of
    // any password.
    let hash = "$2y$04$wqjcFCU6tDD60nk7jEOvcOdrZkmoRwCkqAAdUHV2vDKaTBFMBTIZO";
    let password = web(format!("basic_auth_users: {{prometheus: '{hash}'}}"));
    let member = fleet.member("password");
    member.plan = member.plan.clone().exporter(&["--web.config.file", &password]);
    member.restart_exporter();
    // The test restarts the exporter, which closes its connections: Prometheus checks the new certificate only when it
    // opens a new TLS connection.
    authority.write_certificate(true);
    fleet.member("certificate").restart_exporter();
    fleet.expect(since, &fleet.names(), &[critical("BitcoinExporterDown")], 8.0);
    fleet.member("frozen").exporter().signal(Signal::SIGCONT);
}

/// A certificate authority, with a directory for its certificate and for the exporter's certificate and key.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("ca.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
        let authority = Authority { dir, issuer: Issuer::new(parameters, key) };
        authority.write_certificate(false);
        authority
    }

    /// Writes a new certificate for the exporter. If `expired` is true, the certificate is no longer valid.
    fn write_certificate(&self, expired: bool) {
        let mut parameters = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        if expired {
            parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(self.dir.path().join("cert.pem"), certificate.pem()).unwrap();
    }
}

/// Drill 5 in docs/alerts.md: JSON-RPC over HTTP fails while IPC works.
pub fn json_rpc_lost_beside_ipc_is_an_alert() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "old").unwrap();
    let [old, new] = ["old", "new"].map(|password| rpcauth("exporter", password));
    let plan = |name: &str| Plan::new(Kind::RpcOverHttp).named(name);
    let password = plan("password").node(&[&old]).exporter(&[
        "--rpc-user",
        "exporter",
        "--rpc-password-file",
        secret.path().to_str().unwrap(),
    ]);
    let mut fleet = Fleet::start("5 JSON-RPC lost", vec![plan("gone"), plan("busy"), password]);
    fleet.quiet(2.0);
    let since = Instant::now();
    fleet.member("gone").gate.as_ref().unwrap().set(gate::Mode::Closed);
    fleet.member("busy").gate.as_ref().unwrap().set(gate::Mode::Status("503 Service Unavailable"));
    let password = fleet.member("password");
    password.stop();
    password.real_mut().remove_argument(&old);
    password.real_mut().add_argument(&new);
    password.start_again();
    fleet.expect(since, &fleet.names(), &[warning("BitcoinRpcLost")], 12.0);
}

/// Drill 19 in docs/alerts.md: one USDT exporter never finds a node, and the node of a second USDT exporter is killed.
/// The IPC exporter of the killed node is not a target of this Prometheus.
pub fn usdt_exporter_without_tracepoints_is_an_alert() {
    // The second node keeps its target in the scrape job of the IPC exporters, because a scrape job without targets
    // would cause another alert (BitcoinNothingScraped).
    let plans = vec![Plan::new(Kind::Rpc).named("lost"), Plan::new(Kind::HttpOnly).named("other")];
    let mut fleet = Fleet::start("19 no tracepoints", plans);
    let mut command = fixture::command();
    command.args(["--bitcoind", "/bin/cat", "--node-name", "never", "--health-port", "0"]);
    let never = Exporter::spawn(&mut command);
    let member = fleet.member("lost");
    member.kill();
    let usdt = member.usdt.as_ref().unwrap();
    let mut targets = vec![
        Target::new("bitcoind-usdt", usdt.address(), "lost"),
        Target::new("bitcoind-usdt", never.address(), "never"),
    ];
    targets.extend(fleet.members[1].targets());
    let since = Instant::now();
    // The new targets do not include the IPC exporter of the killed node, as if another Prometheus server scraped this
    // exporter.
    fleet.stack.set_targets(&targets);
    fleet.expect(since, &["lost".into(), "never".into()], &[warning("BitcoinNoProbes")], 60.0);
}

/// Drill 22 in docs/alerts.md: all targets of one scrape job vanish.
pub fn job_without_targets_is_an_alert() {
    let fleet = Fleet::start("22 targets vanish", vec![Plan::new(Kind::Rpc)]);
    // The alert BitcoinNothingScraped needs a target that existed within the last day, and reads the targets of this
    // day in steps of 10 minutes. The target must therefore exist for more than 10 minutes.
    fleet.quiet(12.0);
    let since = Instant::now();
    let targets: Vec<_> =
        fleet.members[0].targets().into_iter().filter(|it| it.job == "bitcoind-ipc").collect();
    fleet.stack.set_targets(&targets);
    fleet.expect(since, &[String::new()], &[critical("BitcoinNothingScraped")], 15.0);
}

/// Drill 22 in docs/alerts.md: a rule of Prometheus fails to evaluate, then Alertmanager is stopped, and then
/// Prometheus is stopped.
pub fn monitoring_watches_itself() {
    let mut fleet = Fleet::start("22 monitoring", vec![Plan::new(Kind::Rpc), Plan::new(Kind::HttpOnly)]);
    fleet.quiet(2.0);
    let came = |fleet: &Fleet| fleet.stack.watchdog_arrived().then_some(());
    eventually("the watchdog's message arrives", || came(&fleet));
    let since = Instant::now();
    fleet.stack.add_rules("groups: [{name: broken, rules: [{record: x, expr: up * on () up}]}]");
    fleet.expect(since, &[String::new()], &[warning("BitcoinRuleFailures")], 15.0);
    // Checks that no message about the watchdog alert arrives. A dead man's switch would detect the missing messages.
    let silent = |fleet: &Fleet| {
        fleet.stack.watchdog_arrived();
        std::thread::sleep(fleet.stack.minutes(12.0).max(Duration::from_secs(3)));
        assert!(!fleet.stack.watchdog_arrived());
    };
    fleet.stack.alertmanager.stop();
    silent(&fleet);
    fleet.stack.alertmanager.start_again();
    eventually("the watchdog's message arrives", || came(&fleet));
    fleet.stack.prometheus.stop();
    // After the exit of Prometheus, Alertmanager repeats its current alerts, including the watchdog alert, until they
    // expire.
    std::thread::sleep(fleet.stack.minutes(6.0));
    silent(&fleet);
    fleet.stack.prometheus.start_again();
    eventually("the watchdog's message arrives", || came(&fleet));
}

/// Drill 28 in docs/alerts.md: a planned upgrade of the exporters, which restarts the exporters, must cause no alert.
pub fn upgrade_of_the_exporters_is_no_alert() {
    let mut fleet = Fleet::start("28 upgrade of exporter", Kind::REAL.map(Plan::new).into());
    fleet.quiet(2.0);
    let since = Instant::now();
    for member in &mut fleet.members {
        member.restart_exporter();
        if member.usdt.take().is_some() {
            member.start_usdt();
        }
    }
    std::thread::sleep(fleet.stack.minutes(20.0));
    fleet.expect(since, &[], &[], 20.0);
}
