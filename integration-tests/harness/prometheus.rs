//! Runs Prometheus, promtool, Alertmanager and VictoriaMetrics.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::eventually;

/// Path of a program: the value of this environment variable, which `integration-tests/run` sets.
fn program(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: use integration-tests/run"))
        .into()
}

/// Path of the promtool that `integration-tests/promtool` provides.
pub fn promtool() -> PathBuf {
    program("PROMTOOL")
}

/// A process of Prometheus, Alertmanager or VictoriaMetrics on a free port with its own data directory. The process is
/// killed when this value is dropped.
struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    /// URL path whose status is 200 when the program is ready.
    ready: &'static str,
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Server {
    /// Writes `config` to the file `config.yml`, starts the program, and waits until the program responds. `{address}`
    /// in the configuration and in the arguments is replaced with the address that the program shall listen on.
    fn start(program: PathBuf, config: &str, arguments: &[&str], ready: &'static str) -> Self {
        let dir = TempDir::new().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        std::fs::write(dir.path().join("config.yml"), config.replace("{address}", &address)).unwrap();
        let arguments: Vec<_> =
            arguments.iter().map(|argument| argument.replace("{address}", &address)).collect();
        let child = Self::launch(&program, &arguments, &dir);
        let mut server = Server { program, arguments, ready, child, port, dir };
        server.until_it_answers();
        server
    }

    /// Starts the process, whose stderr is appended to the file `log`.
    fn launch(program: &PathBuf, arguments: &[String], dir: &TempDir) -> Child {
        Command::new(program)
            .current_dir(dir.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::options().append(true).create(true).open(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{program:?}: {error}"))
    }

    /// Waits until the program responds. Panics with the log if the program exits.
    fn until_it_answers(&mut self) {
        eventually("the server responds", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{:?}: {}", self.program, self.log());
            let probe = Command::new("curl")
                .args(["-sf", "--max-time", "20", "-o", "/dev/null"])
                .arg(self.url(self.ready))
                .status();
            probe.expect("curl").success().then_some(())
        });
    }

    /// The URL of this path on the program's HTTP server.
    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// The program's output on stderr so far.
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Runs curl with this URL path and these arguments, and parses the response as JSON.
    fn json(&self, path: &str, arguments: &[&str]) -> Result<Value, String> {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20"])
            .args(arguments)
            .arg(self.url(path))
            .output()
            .expect("curl");
        serde_json::from_slice(&output.stdout).map_err(|_| {
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        })
    }

    /// Sends a request to Prometheus' HTTP API with curl. Returns the field `data` of the response, or its error.
    fn api(&self, path: &str, arguments: &[&str]) -> Result<Value, String> {
        let answer = self.json(path, arguments)?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].clone()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// The result of a PromQL expression at the current time.
    fn query(&self, expression: &str) -> Value {
        let answer = self.api("api/v1/query", &["--data-urlencode", &format!("query={expression}")]);
        answer.unwrap_or_else(|error| panic!("{expression}: {error}"))["result"].take()
    }

    /// The results of a PromQL expression over the last `seconds`, at intervals of `step` seconds.
    fn query_range(&self, expression: &str, seconds: u64, step: u64) -> Value {
        let end = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let range = format!("start={}&end={end}&step={step}", end - seconds);
        let answer = self.api(
            "api/v1/query_range",
            &["--data", &range, "--data-urlencode", &format!("query={expression}")],
        );
        answer.unwrap_or_else(|error| panic!("{expression}: {error}"))["result"].take()
    }

    /// Stops the program with SIGTERM, and waits until it exits.
    fn stop(&mut self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("the program runs");
        self.child.wait().unwrap();
    }

    /// Starts the program again with the same data and port.
    fn start_again(&mut self) {
        self.child = Self::launch(&self.program, &self.arguments, &self.dir);
        self.until_it_answers();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running Prometheus server.
pub struct Prometheus(Server);

impl Prometheus {
    /// Starts Prometheus with this configuration and the exemplar storage, and waits until it responds.
    pub fn start(config: &str) -> Self {
        Self::start_with(config, &["--enable-feature=exemplar-storage"])
    }

    /// Starts Prometheus with this configuration and these additional arguments, and waits until it responds.
    pub fn start_with(config: &str, more: &[&str]) -> Self {
        let arguments = [
            "--config.file=config.yml",
            "--storage.tsdb.path=data",
            "--log.level=warn",
            "--web.listen-address={address}",
        ];
        let program = promtool().with_file_name("prometheus");
        Prometheus(Server::start(
            program,
            config,
            &[&arguments[..], more].concat(),
            "api/v1/status/buildinfo",
        ))
    }

    /// Stops the program with SIGTERM, and waits until it exits.
    pub fn stop(&mut self) {
        self.0.stop();
    }

    /// Starts the stopped program again with the same data and port, and waits until it responds.
    pub fn start_again(&mut self) {
        self.0.start_again();
    }

    /// PID of Prometheus' process.
    pub fn pid(&self) -> u32 {
        self.0.child.id()
    }

    /// Prometheus' log so far, which has only warnings and errors.
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// Requests `/api/v1/` with this path from Prometheus. Returns the field `data` of the response, or its error.
    pub fn api(&self, path: &str) -> Result<Value, String> {
        self.0.api(&format!("api/v1/{path}"), &[])
    }

    /// The result of a PromQL expression at the current time.
    pub fn query(&self, expression: &str) -> Value {
        self.0.query(expression)
    }

    /// The results of a PromQL expression over the last `seconds`, at intervals of `step` seconds.
    pub fn query_range(&self, expression: &str, seconds: u64, step: u64) -> Value {
        self.0.query_range(expression, seconds, step)
    }
}

/// A running Alertmanager server.
pub struct Alertmanager(Server);

impl Alertmanager {
    /// Starts Alertmanager with this configuration, and waits until it responds.
    pub fn start(config: &str) -> Self {
        let arguments = [
            "--config.file=config.yml",
            "--storage.path=data",
            "--cluster.listen-address=",
            "--web.listen-address={address}",
        ];
        Alertmanager(Server::start(program("ALERTMANAGER"), config, &arguments, "-/ready"))
    }

    /// The host and port on which Alertmanager listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    /// Stops the program with SIGTERM, and waits until it exits.
    pub fn stop(&mut self) {
        self.0.stop();
    }

    /// Starts the stopped program again with the same data and port, and waits until it responds.
    pub fn start_again(&mut self) {
        self.0.start_again();
    }

    /// Sends alerts to Alertmanager, as Prometheus does.
    pub fn send(&self, alerts: &Value) {
        let body = alerts.to_string();
        let message =
            self.0.json("api/v2/alerts", &["-H", "Content-Type: application/json", "--data", &body, "-f"]);
        // Alertmanager's response is empty and not JSON.
        assert_eq!(message.unwrap_err(), "");
    }

    /// The alerts that Alertmanager returns in its HTTP API.
    pub fn alerts(&self) -> Value {
        self.0.json("api/v2/alerts", &[]).unwrap()
    }
}

/// A running VictoriaMetrics server.
pub struct VictoriaMetrics(Server);

impl VictoriaMetrics {
    /// Starts VictoriaMetrics, and waits until it responds.
    pub fn start() -> Self {
        let arguments = [
            "-storageDataPath=data",
            "-httpListenAddr={address}",
            "-loggerLevel=WARN",
            // Without this option, the results of queries do not include samples of the last 30 seconds.
            "-search.latencyOffset=0s",
            "-search.disableCache",
        ];
        VictoriaMetrics(Server::start(program("VICTORIA_METRICS"), "", &arguments, "health"))
    }

    /// The host and port on which VictoriaMetrics listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    /// Stops the program with SIGTERM, and waits until it exits.
    pub fn stop(&mut self) {
        self.0.stop();
    }

    /// Starts the stopped program again with the same data and port, and waits until it responds.
    pub fn start_again(&mut self) {
        self.0.start_again();
    }

    /// The result of a MetricsQL expression at the current time.
    pub fn query(&self, expression: &str) -> Value {
        self.0.query(expression)
    }

    /// The field `data` of the response to a MetricsQL query, or the error in the response.
    pub fn try_query(&self, expression: &str) -> Result<Value, String> {
        self.0.api("api/v1/query", &["--data-urlencode", &format!("query={expression}")])
    }
}
