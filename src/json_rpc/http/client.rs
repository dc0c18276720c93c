//! Calls over HTTP: with the credentials that are good now, if the node can be asked.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tracing::{info, warn};

use super::connection::{Answer, Kept, exchange};
use super::{Cause, Credentials, Failure, Settings};
use crate::json_rpc::{CallError, Method, Response, Transport, parse, request, whitelist_of};
use crate::logging::Repeats;

/// A node's JSON-RPC over HTTP.
#[derive(Clone)]
pub struct HttpRpc(Rc<Shared>);

struct Shared {
    settings: Settings,
    /// One connection: the node never has more than one request of ours to work on, so that others find a worker free.
    connection: Mutex<Option<Kept>>,
    /// For one call, all in all.
    deadline: Duration,
    state: watch::Sender<State>,
    /// The state as it was logged: why it is not used, empty while it is used. `None` before the first line.
    last_logged: RefCell<Option<String>>,
    repeats: Repeats,
    /// There were a cookie or a password when they were read last.
    has_credentials: Cell<bool>,
    /// The collector logs why there is no node.
    quiet: Cell<bool>,
    /// There were credentials once, or it is required: it should be used.
    wanted: Cell<bool>,
    /// Methods that were refused, which was logged.
    forbidden: RefCell<BTreeSet<String>>,
    /// It was looked at whether the credentials permit more than reading.
    privileges_checked: Cell<bool>,
    on_failure: Box<dyn Fn(Cause)>,
}

/// Whether calls are made.
enum State {
    /// It answered, and it is the node that IPC leads to.
    Used,
    /// A call failed and the next one would fail as well, or none was made yet.
    Unused(Failure),
}

impl HttpRpc {
    /// Connects at the first call. Each call is given `deadline`, all in all. Failures are counted by `on_failure`.
    pub fn new(settings: Settings, deadline: Duration, on_failure: impl Fn(Cause) + 'static) -> Self {
        if !settings.url.tls && !settings.url.is_local() {
            warn!(
                "{} is on another machine: requests, including the password, are not encrypted; use https through a TLS proxy",
                settings.url
            );
        }
        HttpRpc(Rc::new(Shared {
            wanted: Cell::new(settings.required),
            settings,
            connection: Mutex::default(),
            deadline,
            state: watch::Sender::new(State::Unused(not_checked())),
            last_logged: RefCell::default(),
            repeats: Repeats::default(),
            has_credentials: Cell::new(false),
            quiet: Cell::new(false),
            forbidden: RefCell::default(),
            privileges_checked: Cell::new(false),
            on_failure: Box::new(on_failure),
        }))
    }

    /// Where it is, and how to be let in.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Whether it can be asked: it answered, and it is the right node.
    pub fn is_used(&self) -> bool {
        matches!(*self.0.state.borrow(), State::Used)
    }

    /// Whether it should be used: it is required, or there are credentials for it.
    pub fn is_wanted(&self) -> bool {
        self.0.wanted.get()
    }

    /// It answers, and it is the right node.
    pub fn use_it(&self) {
        self.0.wanted.set(true);
        if !self.is_used() {
            self.0.state.send_replace(State::Used);
            let before = self.0.last_logged.replace(Some(String::new()));
            if before.is_none_or(|failure| !failure.is_empty()) {
                let Settings { url, credentials, .. } = self.settings();
                info!("using JSON-RPC over HTTP: {url}, {}", credentials.describe());
            }
        }
    }

    /// Logs, once, how to restrict credentials that permit more than the exporter's methods. `help` changes nothing, and is not on
    /// the exporter's whitelist.
    pub async fn check_privileges(&self) {
        const BEYOND_READING: &str = "help";
        if self.0.privileges_checked.replace(true) {
            return;
        }
        self.0.forbidden.borrow_mut().insert(BEYOND_READING.into()); // a refusal is no fault
        // An error in the answer is an error here.
        if self.request(BEYOND_READING, &Value::from([BEYOND_READING].as_slice())).await.is_ok() {
            let credentials = &self.settings().credentials;
            info!(
                "{} may call methods that change the node; to restrict the exporter to reading, {}",
                credentials.describe(),
                match credentials {
                    Credentials::User { name, .. } => format!("add to bitcoin.conf: {}", whitelist_of(name)),
                    Credentials::Cookie(_) => format!(
                        "use --rpc-user with a user of its own, and add to bitcoin.conf: {}",
                        whitelist_of("exporter")
                    ),
                }
            );
        }
    }

    /// It cannot be used until it was found usable again. Logs why when that changes, each reason at most once a minute: one that
    /// comes and goes fills no log.
    pub fn give_up(&self, failure: Failure) {
        let Shared { wanted, settings, quiet, last_logged, has_credentials, repeats, .. } = &*self.0;
        wanted.set(wanted.get() || has_credentials.get());
        let is_logged = last_logged.borrow().as_ref() == Some(&failure.text);
        if !is_logged && let Some(suppressed) = repeats.admit(&failure.text) {
            let text = format!("JSON-RPC over HTTP is not used: {failure}{suppressed}");
            if quiet.get() {
                // The collector logs it.
            } else if settings.required || has_credentials.get() {
                warn!("{text}; retrying until it succeeds");
            } else {
                info!("{text}");
            }
            last_logged.replace(Some(failure.text.clone()));
        }
        self.0.state.send_replace(State::Unused(failure));
    }

    /// It cannot be used, because a call failed.
    pub fn failed(&self, error: &CallError) {
        self.give_up(match error {
            // Its message changes with each step.
            error if error.is_warmup() => {
                Failure::new(Cause::Warmup, format!("{}: the node is starting", self.settings().url))
            }
            CallError::Http(failure) => failure.clone(),
            error => Failure::new(cause(error).unwrap_or(Cause::Other), error.to_string()),
        });
    }

    /// It is not the node that it should be.
    pub fn differs(&self, text: String) {
        (self.0.on_failure)(Cause::DifferentNode);
        self.give_up(Failure::new(Cause::DifferentNode, text));
    }

    /// Why it is not used.
    pub fn why_not(&self) -> Failure {
        match &*self.0.state.borrow() {
            State::Used => not_checked(),
            State::Unused(failure) => failure.clone(),
        }
    }

    /// It may be another node than before. Without IPC (`alone`) whoever asks says what is wrong.
    pub fn forget_node(&self, alone: bool) {
        self.0.state.send_replace(State::Unused(not_checked()));
        self.0.quiet.set(alone);
    }

    /// Resolves when it is not used any more.
    pub async fn given_up(&self) {
        // Never closed: we have the sender.
        let _ = self.0.state.subscribe().wait_for(|state| matches!(state, State::Unused(_))).await;
    }

    /// Resolves when the node that answered before is gone.
    pub async fn node_gone(&self) -> Failure {
        let is_gone = |state: &State| matches!(state, State::Unused(failure) if failure.cause.is_node_gone());
        let _ = self.0.state.subscribe().wait_for(is_gone).await;
        self.why_not()
    }

    /// A call, whether or not HTTP was found usable.
    pub async fn ask(&self, method: Method, params: Value) -> Result<Value, CallError> {
        parse(&self.counted(method.name(), &params).await?)
    }

    /// A call if HTTP was found usable, which it no longer is when the call fails.
    async fn usable(&self, method: &str, params: &Value) -> Result<String, CallError> {
        if let Some(error) = self.unavailable() {
            return Err(error);
        }
        let answer = self.counted(method, params).await;
        if let Err(error) = &answer
            && self.is_used()
            && (error.is_warmup() || matches!(error, CallError::Http(_)))
        {
            self.failed(error);
        }
        answer
    }

    async fn counted(&self, method: &str, params: &Value) -> Result<String, CallError> {
        let answer = self.request(method, params).await;
        if let Some(cause) = answer.as_ref().err().and_then(cause) {
            (self.0.on_failure)(cause);
        }
        answer
    }

    async fn request(&self, method: &str, params: &Value) -> Result<String, CallError> {
        let Shared { settings, connection, deadline, forbidden, .. } = &*self.0;
        let body = Bytes::from(request(method, params));
        // What others take of the connection's time is no failure of this call. Each has a deadline.
        let mut slot = connection.lock().await;
        let answer = match tokio::time::timeout(*deadline, self.patiently(&mut slot, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::new(
                Cause::Timeout,
                format!("no response within {}", humantime::format_duration(*deadline)),
            )),
        };
        drop(slot);
        let answer = answer.map_err(|failure| error_of(failure.at(&settings.url)))?;
        if answer.status == StatusCode::FORBIDDEN && forbidden.borrow_mut().insert(method.into()) {
            warn!(
                "the node rejects {method} over HTTP (403): allow it in -rpcwhitelist or -rpcallowip of the node"
            );
        }
        read(answer).map_err(|error| match error {
            CallError::Http(failure) => CallError::Http(failure.at(&settings.url)),
            error => error,
        })
    }

    /// A node whose work queue is full is asked once more, after a moment.
    async fn patiently(&self, slot: &mut Option<Kept>, body: Bytes) -> Result<Answer, Failure> {
        const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(250);
        let answer = self.authorized(slot, body.clone()).await?;
        if answer.status != StatusCode::SERVICE_UNAVAILABLE {
            return Ok(answer);
        }
        tokio::time::sleep(BUSY_RETRY_INTERVAL).await;
        self.authorized(slot, body).await
    }

    async fn read_credentials(&self) -> Result<HeaderValue, Failure> {
        let read = self.settings().credentials.read().await;
        self.0.has_credentials.set(read.is_ok());
        read.map_err(|why| Failure::new(Cause::Unauthorized, why))
    }

    /// The answer to a request with the credentials that were good last time, or with those that are there now.
    async fn authorized(&self, slot: &mut Option<Kept>, body: Bytes) -> Result<Answer, Failure> {
        let credentials = &self.settings().credentials;
        // Taken out, so that a call that is given up closes it: its answer may still come.
        let kept = slot.take();
        let first = match &kept {
            Some(kept) => kept.authorization.clone(),
            None => self.read_credentials().await?,
        };
        let (mut kept, answer) = match exchange(self.settings(), kept, &first, &body).await {
            Ok(answered) => answered,
            Err(why) => {
                // A node that has ended has removed its cookie.
                let _ = self.read_credentials().await;
                return Err(why);
            }
        };
        if answer.status != StatusCode::UNAUTHORIZED {
            *slot = Some(kept);
            return Ok(answer);
        }
        let refused = || {
            let (describe, advice) = (credentials.describe(), credentials.advice());
            let text = format!("the node rejects {describe} (401); {advice}");
            Err(Failure::new(Cause::Unauthorized, text))
        };
        let second = self.read_credentials().await?;
        if second == first {
            return refused();
        }
        let answer;
        (kept, answer) = exchange(self.settings(), Some(kept), &second, &body).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            return refused();
        }
        *slot = Some(kept);
        Ok(answer)
    }
}

impl Transport for HttpRpc {
    fn call<'a>(
        &'a self,
        method: Method,
        params: &'a Value,
    ) -> LocalBoxFuture<'a, Result<String, CallError>> {
        Box::pin(self.usable(method.name(), params))
    }

    fn unavailable(&self) -> Option<CallError> {
        (!self.is_used()).then(|| CallError::Http(self.why_not()))
    }
}

/// Nothing was asked yet.
fn not_checked() -> Failure {
    Failure::new(Cause::Other, "the node has not been checked yet")
}

fn error_of(failure: Failure) -> CallError {
    match failure.cause {
        Cause::TooLarge => CallError::TooLarge(failure.text),
        _ => CallError::Http(failure),
    }
}

/// What a failed call is counted as; JSON-RPC errors, which do not concern HTTP, are not counted.
fn cause(error: &CallError) -> Option<Cause> {
    match error {
        CallError::Http(failure) => Some(failure.cause),
        CallError::TooLarge(_) => Some(Cause::TooLarge),
        CallError::Failed(_) => Some(Cause::Forbidden),
        error if error.is_warmup() => Some(Cause::Warmup),
        _ => None,
    }
}

/// Before 2.0, errors of a call have status codes of their own, and bodies like all others.
fn read(answer: Answer) -> Result<String, CallError> {
    let status = answer.status.as_u16();
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        return Err(CallError::Http(Failure::new(
            Cause::Busy,
            "the node's work queue is full (503): reduce the requests of other clients, or increase -rpcworkqueue",
        )));
    }
    if answer.status == StatusCode::FORBIDDEN {
        return Err(CallError::Failed("403, not allowed by -rpcwhitelist or -rpcallowip".into()));
    }
    if answer.status.is_redirection() {
        let text = format!(
            "the server sends a redirect ({status}), which is not followed; set --rpc-url to the node itself"
        );
        return Err(CallError::Http(text.into()));
    }
    match serde_json::from_slice::<Response>(&answer.body) {
        Ok(response) => response.result(),
        Err(_) => {
            let kind = answer.content_type.as_deref().unwrap_or("no content type");
            let text = format!(
                "the response is not JSON-RPC ({status}, {kind:.40}); check that --rpc-url is not a proxy or another server"
            );
            Err(CallError::Http(text.into()))
        }
    }
}
