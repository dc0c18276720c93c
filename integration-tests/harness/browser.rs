//! Runs a headless Chromium, which the test controls over WebDriver.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually;

/// A running headless Chromium with one page. Chromium is closed when this value is dropped.
pub struct Browser {
    driver: Child,
    session: String,
    profile: TempDir,
}

impl Browser {
    /// Starts Chromium with a page of this size in CSS pixels, with dark mode if `dark` is true.
    pub fn start(width: u32, height: u32, dark: bool) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver (Debian: chromium-driver)");
        let profile = TempDir::new().unwrap();
        let base = format!("http://127.0.0.1:{port}");
        let mut browser = Browser { driver, session: base.clone(), profile };
        eventually("chromedriver is ready", || {
            (send("GET", &format!("{base}/status"), None).ok()?["ready"] == true).then_some(())
        });
        let mut arguments = vec![
            "--headless".to_string(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-quic".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            format!("--window-size={width},{height}"),
            format!("--user-data-dir={}", browser.profile.path().display()),
        ];
        arguments.extend(dark.then(|| "--force-dark-mode".to_string()));
        let mut options = json!({"args": arguments});
        // A window of Chromium is at least 500 pixels wide. Narrower pages need the emulation of a mobile device.
        if width < 500 {
            let phone = json!({"width": width, "height": height, "pixelRatio": 1.0, "touch": false});
            options["mobileEmulation"] = json!({"deviceMetrics": phone});
        }
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let made = send("POST", &format!("{base}/session"), Some(wanted)).expect("Chromium starts");
        browser.session = format!("{base}/session/{}", made["sessionId"].as_str().unwrap());
        browser
    }

    /// Sends a WebDriver command of this session, and returns the `value` of the response.
    fn ask(&self, path: &str, body: Value) -> Value {
        send("POST", &format!("{}/{path}", self.session), Some(body))
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Opens a URL in the page.
    pub fn open(&self, url: &str) {
        self.ask("url", json!({"url": url}));
    }

    /// Runs JavaScript in the page as the body of a function, and returns the value that the function returns.
    pub fn run(&self, script: &str) -> Value {
        self.ask("execute/sync", json!({"script": script, "args": []}))
    }

    /// Presses and releases these keys on the keyboard, one after the other.
    pub fn press(&self, keys: &str) {
        let actions: Vec<_> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()})))
            .collect();
        self.ask("actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}));
    }

    /// Lines that the browser has logged for the page since the last call of this function, such as errors.
    pub fn console(&self) -> Vec<String> {
        let lines = self.ask("se/log", json!({"type": "browser"}));
        lines.as_array().unwrap().iter().map(|line| line["message"].to_string()).collect()
    }

    /// A screenshot of the page: a PNG file in Base64.
    pub fn screenshot(&self) -> String {
        let picture = send("GET", &format!("{}/screenshot", self.session), None).unwrap();
        picture.as_str().unwrap().to_string()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = send("DELETE", &self.session, None);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Sends a WebDriver request, and returns the `value` of the response.
fn send(method: &str, url: &str, body: Option<Value>) -> Result<Value, String> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "60", "-X", method, url, "-H", "Content-Type: application/json"]);
    if let Some(body) = body {
        curl.arg("--data").arg(body.to_string());
    }
    let output = curl.output().expect("curl");
    let answer: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
    match answer["value"]["error"].as_str() {
        Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
        None => Ok(answer["value"].clone()),
    }
}
