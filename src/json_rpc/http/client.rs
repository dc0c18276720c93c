//! Calls over HTTP: with the present credentials, if the node is usable.

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

use super::connection::{HttpResponse, PooledConnection, send_request};
use super::{Credentials, FailureCause, HttpFailure, HttpRpcConfig};
use crate::json_rpc::{CallError, Method, Response, Transport, parse, request, whitelist_line};
use crate::logging::RepeatLimiter;

/// A node's JSON-RPC over HTTP.
#[derive(Clone)]
pub struct HttpRpc(Rc<ClientState>);

struct ClientState {
    config: HttpRpcConfig,
    /// One connection: the node never has more than one request of ours to work on, and other clients find a free worker.
    connection: Mutex<Option<PooledConnection>>,
    /// For one call, all in all.
    deadline: Duration,
    state: watch::Sender<Usability>,
    /// The state as it was logged: why it is not used, empty while it is used. `None` before the first line.
    last_logged: RefCell<Option<String>>,
    repeats: RepeatLimiter,
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
    on_failure: Box<dyn Fn(FailureCause)>,
}

/// Whether calls are made.
enum Usability {
    /// It answered, and it is the node that IPC leads to.
    Usable,
    /// A call failed and the next one would fail as well, or none was made yet.
    Unusable(HttpFailure),
}

impl HttpRpc {
    /// Connects at the first call. Each call is given `deadline`, all in all. Failures are counted by `on_failure`.
    pub fn new(
        config: HttpRpcConfig,
        deadline: Duration,
        on_failure: impl Fn(FailureCause) + 'static,
    ) -> Self {
        if !config.url.tls && !config.url.is_local() {
            warn!(
                "{} is on another machine: requests, including the password, are not encrypted; use https through a TLS proxy",
                config.url
            );
        }
        HttpRpc(Rc::new(ClientState {
            wanted: Cell::new(config.required),
            config,
            connection: Mutex::default(),
            deadline,
            state: watch::Sender::new(Usability::Unusable(not_checked_yet())),
            last_logged: RefCell::default(),
            repeats: RepeatLimiter::default(),
            has_credentials: Cell::new(false),
            quiet: Cell::new(false),
            forbidden: RefCell::default(),
            privileges_checked: Cell::new(false),
            on_failure: Box::new(on_failure),
        }))
    }

    /// Its address and credentials.
    pub fn config(&self) -> &HttpRpcConfig {
        &self.0.config
    }

    /// Whether it is usable: it answered, and it is the right node.
    pub fn is_usable(&self) -> bool {
        matches!(*self.0.state.borrow(), Usability::Usable)
    }

    /// Whether it should be used: it is required, or there are credentials for it.
    pub fn is_expected(&self) -> bool {
        self.0.wanted.get()
    }

    /// It answers, and it is the right node.
    pub fn mark_usable(&self) {
        self.0.wanted.set(true);
        if !self.is_usable() {
            self.0.state.send_replace(Usability::Usable);
            let before = self.0.last_logged.replace(Some(String::new()));
            if before.is_none_or(|failure| !failure.is_empty()) {
                let HttpRpcConfig { url, credentials, .. } = self.config();
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
            let credentials = &self.config().credentials;
            info!(
                "{} may call methods that change the node; to restrict the exporter to reading, {}",
                credentials.describe(),
                match credentials {
                    Credentials::User { name, .. } =>
                        format!("add to bitcoin.conf: {}", whitelist_line(name)),
                    Credentials::Cookie(_) => format!(
                        "use --rpc-user with a user of its own, and add to bitcoin.conf: {}",
                        whitelist_line("exporter")
                    ),
                }
            );
        }
    }

    /// It cannot be used until it was found usable again. Logs why when that changes, each reason at most once a minute: one that
    /// comes and goes fills no log.
    pub fn mark_unusable(&self, failure: HttpFailure) {
        let ClientState { wanted, config, quiet, last_logged, has_credentials, repeats, .. } = &*self.0;
        wanted.set(wanted.get() || has_credentials.get());
        let is_logged = last_logged.borrow().as_ref() == Some(&failure.text);
        if !is_logged && let Some(suppressed) = repeats.admit(&failure.text) {
            let text = format!("JSON-RPC over HTTP is not used: {failure}{suppressed}");
            if quiet.get() {
                // The collector logs it.
            } else if config.required || has_credentials.get() {
                warn!("{text}; retrying until it succeeds");
            } else {
                info!("{text}");
            }
            last_logged.replace(Some(failure.text.clone()));
        }
        self.0.state.send_replace(Usability::Unusable(failure));
    }

    /// It cannot be used, because a call failed.
    pub fn on_call_failed(&self, error: &CallError) {
        self.mark_unusable(match error {
            // Its message changes with each step.
            error if error.is_warmup() => {
                HttpFailure::new(FailureCause::Warmup, format!("{}: the node is starting", self.config().url))
            }
            CallError::Http(failure) => failure.clone(),
            error => HttpFailure::new(cause(error).unwrap_or(FailureCause::Other), error.to_string()),
        });
    }

    /// It is not the node that it should be.
    pub fn mark_different_node(&self, text: String) {
        (self.0.on_failure)(FailureCause::DifferentNode);
        self.mark_unusable(HttpFailure::new(FailureCause::DifferentNode, text));
    }

    /// Why it is not used.
    pub fn unusable_reason(&self) -> HttpFailure {
        match &*self.0.state.borrow() {
            Usability::Usable => not_checked_yet(),
            Usability::Unusable(failure) => failure.clone(),
        }
    }

    /// It may be another node than before. Without IPC (`alone`) the collector logs the reason.
    pub fn reset_node(&self, alone: bool) {
        self.0.state.send_replace(Usability::Unusable(not_checked_yet()));
        self.0.quiet.set(alone);
    }

    /// Resolves when it is not used any more.
    pub async fn became_unusable(&self) {
        // Never closed: we have the sender.
        let _ = self.0.state.subscribe().wait_for(|state| matches!(state, Usability::Unusable(_))).await;
    }

    /// Resolves when the node that answered before is gone.
    pub async fn node_gone(&self) -> HttpFailure {
        let is_gone =
            |state: &Usability| matches!(state, Usability::Unusable(failure) if failure.cause.is_node_gone());
        let _ = self.0.state.subscribe().wait_for(is_gone).await;
        self.unusable_reason()
    }

    /// A call, whether or not HTTP was found usable.
    pub async fn query(&self, method: Method, params: Value) -> Result<Value, CallError> {
        parse(&self.call_and_count(method.name(), &params).await?)
    }

    /// A call if HTTP was found usable, which it no longer is when the call fails.
    async fn call_if_usable(&self, method: &str, params: &Value) -> Result<String, CallError> {
        if let Some(error) = self.unavailable() {
            return Err(error);
        }
        let answer = self.call_and_count(method, params).await;
        if let Err(error) = &answer
            && self.is_usable()
            && (error.is_warmup() || matches!(error, CallError::Http(_)))
        {
            self.on_call_failed(error);
        }
        answer
    }

    async fn call_and_count(&self, method: &str, params: &Value) -> Result<String, CallError> {
        let answer = self.request(method, params).await;
        if let Some(cause) = answer.as_ref().err().and_then(cause) {
            (self.0.on_failure)(cause);
        }
        answer
    }

    async fn request(&self, method: &str, params: &Value) -> Result<String, CallError> {
        let ClientState { config, connection, deadline, forbidden, .. } = &*self.0;
        let body = Bytes::from(request(method, params));
        // Waiting for the calls of others on this connection is no failure of this call. Each has a deadline.
        let mut slot = connection.lock().await;
        let answer = match tokio::time::timeout(*deadline, self.send_with_busy_retry(&mut slot, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpFailure::new(
                FailureCause::Timeout,
                format!("no response within {}", humantime::format_duration(*deadline)),
            )),
        };
        drop(slot);
        let answer = answer.map_err(|failure| call_error(failure.at(&config.url)))?;
        if answer.status == StatusCode::FORBIDDEN && forbidden.borrow_mut().insert(method.into()) {
            warn!(
                "the node rejects {method} over HTTP (403): allow it in -rpcwhitelist or -rpcallowip of the node"
            );
        }
        read(answer).map_err(|error| match error {
            CallError::Http(failure) => CallError::Http(failure.at(&config.url)),
            error => error,
        })
    }

    /// A node whose work queue is full is asked once more, after a moment.
    async fn send_with_busy_retry(
        &self,
        slot: &mut Option<PooledConnection>,
        body: Bytes,
    ) -> Result<HttpResponse, HttpFailure> {
        const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(250);
        let answer = self.send_authorized(slot, body.clone()).await?;
        if answer.status != StatusCode::SERVICE_UNAVAILABLE {
            return Ok(answer);
        }
        tokio::time::sleep(BUSY_RETRY_INTERVAL).await;
        self.send_authorized(slot, body).await
    }

    async fn read_credentials(&self) -> Result<HeaderValue, HttpFailure> {
        let read = self.config().credentials.read().await;
        self.0.has_credentials.set(read.is_ok());
        read.map_err(|why| HttpFailure::new(FailureCause::Unauthorized, why))
    }

    /// The answer to a request with the credentials that were good last time, or with those that are there now.
    async fn send_authorized(
        &self,
        slot: &mut Option<PooledConnection>,
        body: Bytes,
    ) -> Result<HttpResponse, HttpFailure> {
        let credentials = &self.config().credentials;
        // Taken out: a cancelled call closes the connection, because its answer may still come.
        let pooled = slot.take();
        let first = match &pooled {
            Some(pooled) => pooled.authorization.clone(),
            None => self.read_credentials().await?,
        };
        let (mut pooled, answer) = match send_request(self.config(), pooled, &first, &body).await {
            Ok(answered) => answered,
            Err(why) => {
                // A node that has ended has removed its cookie.
                let _ = self.read_credentials().await;
                return Err(why);
            }
        };
        if answer.status != StatusCode::UNAUTHORIZED {
            *slot = Some(pooled);
            return Ok(answer);
        }
        let refused = || {
            let (describe, advice) = (credentials.describe(), credentials.advice());
            let text = format!("the node rejects {describe} (401); {advice}");
            Err(HttpFailure::new(FailureCause::Unauthorized, text))
        };
        let second = self.read_credentials().await?;
        if second == first {
            return refused();
        }
        let answer;
        (pooled, answer) = send_request(self.config(), Some(pooled), &second, &body).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            return refused();
        }
        *slot = Some(pooled);
        Ok(answer)
    }
}

impl Transport for HttpRpc {
    fn call<'a>(
        &'a self,
        method: Method,
        params: &'a Value,
    ) -> LocalBoxFuture<'a, Result<String, CallError>> {
        Box::pin(self.call_if_usable(method.name(), params))
    }

    fn unavailable(&self) -> Option<CallError> {
        (!self.is_usable()).then(|| CallError::Http(self.unusable_reason()))
    }
}

/// Nothing was asked yet.
fn not_checked_yet() -> HttpFailure {
    HttpFailure::new(FailureCause::Other, "the node has not been checked yet")
}

fn call_error(failure: HttpFailure) -> CallError {
    match failure.cause {
        FailureCause::TooLarge => CallError::TooLarge(failure.text),
        _ => CallError::Http(failure),
    }
}

/// The cause that a failed call is counted under; JSON-RPC errors, which do not concern HTTP, are not counted.
fn cause(error: &CallError) -> Option<FailureCause> {
    match error {
        CallError::Http(failure) => Some(failure.cause),
        CallError::TooLarge(_) => Some(FailureCause::TooLarge),
        CallError::Failed(_) => Some(FailureCause::Forbidden),
        error if error.is_warmup() => Some(FailureCause::Warmup),
        _ => None,
    }
}

/// Before 2.0, errors of a call have status codes of their own, and bodies like all others.
fn read(answer: HttpResponse) -> Result<String, CallError> {
    let status = answer.status.as_u16();
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        return Err(CallError::Http(HttpFailure::new(
            FailureCause::Busy,
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
