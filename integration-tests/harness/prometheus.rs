//! A real Prometheus, and promtool.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::eventually;
use super::temp_dir::TempDir;

/// The one that `integration-tests/promtool` yields.
pub fn promtool() -> PathBuf {
    std::env::var_os("PROMTOOL").expect("PROMTOOL is not set: use integration-tests/run").into()
}

/// A running Prometheus; ended with its test.
pub struct Prometheus {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Prometheus {
    /// With this configuration; waits until it answers.
    pub fn start(config: &str) -> Self {
        let dir = TempDir::new();
        std::fs::write(dir.0.join("prometheus.yml"), config).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(promtool().with_file_name("prometheus"))
            .current_dir(&dir.0)
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"])
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.0.join("log")).unwrap())
            .spawn()
            .expect("prometheus starts");
        let mut prometheus = Prometheus { child, port, dir };
        eventually("prometheus answers", || {
            let ended = prometheus.child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", prometheus.log());
            prometheus.api("status/buildinfo").ok()
        });
        prometheus
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.0.join("log")).unwrap()
    }

    /// The `data` of an answer of its API.
    pub fn api(&self, path: &str) -> Result<Value, String> {
        let url = format!("http://127.0.0.1:{}/api/v1/{path}", self.port);
        self.get(&[&url])
    }

    /// The present result of an expression.
    pub fn query(&self, expression: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/api/v1/query", self.port);
        let answer = self.get(&["--data-urlencode", &format!("query={expression}"), &url]);
        answer.unwrap_or_else(|error| panic!("{expression}: {error}"))["result"].take()
    }

    fn get(&self, arguments: &[&str]) -> Result<Value, String> {
        let output =
            Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).output().expect("curl");
        let answer: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].clone()),
            _ => Err(answer["error"].to_string()),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
