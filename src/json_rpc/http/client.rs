//! The client of a node's JSON-RPC over HTTP. A poll is the periodic series of calls from which the exporter updates
//! its metrics. The client makes the calls of a poll only after a check in `collect` has found that the expected node
//! responds over HTTP: the node behind the IPC socket, or without IPC a node on the configured chain.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tracing::{info, warn};

use super::connection::{PooledConnection, send_request};
use super::{Credentials, FailureCause, HttpFailure, HttpRpcConfig};
use crate::json_rpc::{self, CallError, Transport, parse, request, require_permitted, whitelist_line};
use crate::logging::RepeatLimiter;

/// A client of a node's JSON-RPC over HTTP. Clones share the connection and the state.
#[derive(Clone)]
pub struct HttpRpc(Rc<ClientState>);

/// The connection and the state that all clones of an [`HttpRpc`] share.
struct ClientState {
    config: HttpRpcConfig,
    /// The client's only connection, if it is open. With one connection the exporter occupies at most one of the node's
    /// RPC worker threads, so other RPC clients are not delayed.
    connection: Mutex<Option<PooledConnection>>,
    /// Timeout of one call, including retries.
    deadline: Duration,
    /// The reason why the client makes no calls of a poll: the check whether the expected node responds over HTTP has
    /// not been made yet or has failed, or a call after the check has failed. `None` if the check found that a node
    /// responds over HTTP and is the node behind the IPC socket (if there is an IPC socket).
    unusable: watch::Sender<Option<HttpFailure>>,
    /// Whether HTTP is used, according to the client's last log line: the reason why HTTP is not used, or an empty text
    /// if HTTP is used. `None` before the first log line.
    last_logged: RefCell<Option<String>>,
    repeats: RepeatLimiter,
    /// Whether the last attempt to read the credentials found a cookie or a password.
    has_credentials: Cell<bool>,
    /// Whether this client does not log failures, because the module `collect` logs the failures as the reason why the
    /// exporter has no connection to a node.
    quiet: Cell<bool>,
    /// Whether the user expects that HTTP is used: HTTP is required, or credentials were found at least once.
    wanted: Cell<bool>,
    /// Methods that the node rejected with HTTP status 403, each of which was logged once, and the method of
    /// [`check_privileges`](HttpRpc::check_privileges) after its first call.
    forbidden: RefCell<BTreeSet<String>>,
    /// Function that is called with the cause of each failed request, to count the failures by cause.
    on_failure: Box<dyn Fn(FailureCause)>,
}

impl HttpRpc {
    /// Creates a client that connects at the first call. `deadline` is the timeout of one call, including retries.
    /// `on_failure` is called with the cause of each failed request.
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
            unusable: watch::Sender::new(Some(not_checked_yet())),
            last_logged: RefCell::default(),
            repeats: RepeatLimiter::default(),
            has_credentials: Cell::new(false),
            quiet: Cell::new(false),
            forbidden: RefCell::default(),
            on_failure: Box::new(on_failure),
        }))
    }

    /// The client's settings: the node's URL, the credentials, and when to use HTTP.
    pub fn config(&self) -> &HttpRpcConfig {
        &self.0.config
    }

    /// Whether HTTP is usable: the last check found that the expected node responds, and since then no call has failed
    /// because of HTTP or because the node is starting.
    pub fn is_usable(&self) -> bool {
        self.0.unusable.borrow().is_none()
    }

    /// Whether the user expects that HTTP is used: HTTP is required, or credentials were found at least once.
    pub fn is_expected(&self) -> bool {
        self.0.wanted.get()
    }

    /// Records that a check found that the expected node responds over HTTP.
    pub fn mark_usable(&self) {
        self.0.wanted.set(true);
        if !self.is_usable() {
            self.0.unusable.send_replace(None);
            let before = self.0.last_logged.replace(Some(String::new()));
            if before.is_none_or(|failure| !failure.is_empty()) {
                let HttpRpcConfig { url, credentials, .. } = self.config();
                info!("using JSON-RPC over HTTP: {url}, {}", credentials.describe());
            }
        }
    }

    /// Checks, at the first call only, whether the credentials allow methods that the exporter does not need, and logs
    /// how to restrict the credentials. The check calls `help`, which changes nothing and is not on the whitelist that
    /// the exporter recommends.
    pub async fn check_privileges(&self) {
        /// A method that the recommended whitelist (`-rpcwhitelist`) does not contain. If the node executes this
        /// method, the credentials are not restricted by the whitelist.
        const BEYOND_READING: &str = "help";
        // The entry also prevents that `request` logs a warning if the node rejects the method, because the rejection
        // is the recommended configuration.
        if !self.0.forbidden.borrow_mut().insert(BEYOND_READING.into()) {
            return;
        }
        // `request` returns `Ok` only if the node has executed the method, because a JSON-RPC error in the response is
        // also returned as an error.
        if self.request(BEYOND_READING, &Value::from([BEYOND_READING].as_slice())).await.is_ok() {
            let credentials = &self.config().credentials;
            info!(
                "{} may call methods that change the node; to restrict the exporter to reading, {}",
                credentials.describe(),
                match credentials {
                    Credentials::PasswordFile(user, _) | Credentials::PasswordVariable(user) =>
                        format!("add to bitcoin.conf: {}", whitelist_line(user)),
                    Credentials::Cookie(_) => format!(
                        "use --rpc-user with a user of its own, and add to bitcoin.conf: {}",
                        whitelist_line("exporter")
                    ),
                }
            );
        }
    }

    /// Records that HTTP is unusable until a check finds HTTP usable again. Logs the reason when the reason changes,
    /// but each reason at most once a minute, to limit the number of lines if two reasons alternate.
    pub fn mark_unusable(&self, failure: HttpFailure) {
        let ClientState { wanted, config, quiet, last_logged, has_credentials, repeats, .. } = &*self.0;
        wanted.set(wanted.get() || has_credentials.get());
        let is_logged = last_logged.borrow().as_ref() == Some(&failure.text);
        if !is_logged && let Some(suppressed) = repeats.admit(&failure.text) {
            let text = format!("JSON-RPC over HTTP is not used: {failure}{suppressed}");
            if quiet.get() {
                // Nothing is logged here, because the module `collect` logs the reason.
            } else if config.required || has_credentials.get() {
                warn!("{text}; retrying until it succeeds");
            } else {
                info!("{text}");
            }
            last_logged.replace(Some(failure.text.clone()));
        }
        self.0.unusable.send_replace(Some(failure));
    }

    /// Records that HTTP is unusable, because a call failed with this error.
    pub fn on_call_failed(&self, error: &CallError) {
        self.mark_unusable(match error {
            // The node's error message changes with each step of the node's startup, so a constant text is logged
            // instead.
            error if error.is_warmup() => {
                HttpFailure::new(FailureCause::Warmup, format!("{}: the node is starting", self.config().url))
            }
            CallError::Http(failure) => failure.clone(),
            error => HttpFailure::new(cause(error).unwrap_or(FailureCause::Other), error.to_string()),
        });
    }

    /// Records that HTTP is unusable, because another node than the expected node responds.
    pub fn mark_different_node(&self, text: String) {
        (self.0.on_failure)(FailureCause::DifferentNode);
        self.mark_unusable(HttpFailure::new(FailureCause::DifferentNode, text));
    }

    /// The reason why HTTP is not used.
    pub fn unusable_reason(&self) -> HttpFailure {
        self.0.unusable.borrow().clone().unwrap_or_else(not_checked_yet)
    }

    /// Marks HTTP as not checked yet, because a different node may respond from now on. `alone` is true if there is no
    /// connection over IPC; `collect` then logs failures instead of this client.
    pub fn reset_node(&self, alone: bool) {
        self.0.unusable.send_replace(Some(not_checked_yet()));
        self.0.quiet.set(alone);
    }

    /// Waits until HTTP is unusable.
    pub async fn became_unusable(&self) {
        // `wait_for` returns an error only if the sender is dropped, and `self` owns the sender.
        let _ = self.0.unusable.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until a failure shows that the node that responded before no longer runs. Returns that failure.
    pub async fn node_gone(&self) -> HttpFailure {
        let is_gone = |failure: &Option<HttpFailure>| {
            failure.as_ref().is_some_and(|failure| failure.cause.is_node_gone())
        };
        let _ = self.0.unusable.subscribe().wait_for(is_gone).await;
        self.unusable_reason()
    }

    /// Makes a call even if HTTP is marked as unusable. The check whether HTTP is usable makes its calls with this
    /// function.
    ///
    /// # Errors
    /// The node does not respond in time, or responds with an error or with invalid JSON.
    pub async fn query(&self, method: &'static str, params: Value) -> Result<Value, CallError> {
        require_permitted(method, &params)?;
        parse(&self.call_and_count(method, &params).await?)
    }

    /// Makes a call if HTTP is marked as usable. Marks HTTP as unusable if the call fails because of HTTP, or because
    /// the node is starting.
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
        // The timeout of this call starts after the wait for earlier calls on the connection. This wait is limited,
        // because each earlier call has a timeout, too.
        let mut slot = connection.lock().await;
        let answer = tokio::time::timeout(*deadline, self.send_with_busy_retry(&mut slot, body)).await;
        drop(slot);
        let answer = answer.unwrap_or_else(|_| {
            let text = format!("no response within {}", humantime::format_duration(*deadline));
            Err(HttpFailure::new(FailureCause::Timeout, text))
        });
        if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::FORBIDDEN)
            && forbidden.borrow_mut().insert(method.into())
        {
            warn!(
                "the node rejects {method} over HTTP (403): allow it in -rpcwhitelist or -rpcallowip of the node"
            );
        }
        answer.and_then(read).unwrap_or_else(|failure| {
            let failure = failure.at(&config.url);
            Err(match failure.cause {
                FailureCause::TooLarge => CallError::TooLarge(failure.text),
                _ => CallError::Http(failure),
            })
        })
    }

    /// Sends a request. If the node's work queue is full, sends the request a second time after `BUSY_RETRY_INTERVAL`.
    async fn send_with_busy_retry(
        &self,
        slot: &mut Option<PooledConnection>,
        body: Bytes,
    ) -> Result<Response<Bytes>, HttpFailure> {
        /// Time between the two attempts to send the request.
        const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(250);
        let answer = self.send_authorized(slot, body.clone()).await?;
        if answer.status() != StatusCode::SERVICE_UNAVAILABLE {
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

    /// Sends a request with the credentials that the node accepted last. If the node rejects these credentials, reads
    /// the credentials again, and repeats the request if the credentials have changed.
    async fn send_authorized(
        &self,
        slot: &mut Option<PooledConnection>,
        body: Bytes,
    ) -> Result<Response<Bytes>, HttpFailure> {
        let credentials = &self.config().credentials;
        // The connection is put back into the slot only after the response. If this call is cancelled, the connection
        // is closed, because the late response could be mistaken for the response to a later call.
        let pooled = slot.take();
        let first = match &pooled {
            Some(pooled) => pooled.authorization.clone(),
            None => self.read_credentials().await?,
        };
        let (mut pooled, mut answer) = match send_request(self.config(), pooled, &first, &body).await {
            Ok(answered) => answered,
            Err(why) => {
                // Read the credentials again to update `has_credentials`: if the request failed because the node has
                // exited, the node has also deleted its cookie file.
                let _ = self.read_credentials().await;
                return Err(why);
            }
        };
        if answer.status() == StatusCode::UNAUTHORIZED {
            let second = self.read_credentials().await?;
            if second != first {
                (pooled, answer) = send_request(self.config(), Some(pooled), &second, &body).await?;
            }
        }
        if answer.status() == StatusCode::UNAUTHORIZED {
            let text = format!("the node rejects {} (401); {}", credentials.describe(), credentials.advice());
            return Err(HttpFailure::new(FailureCause::Unauthorized, text));
        }
        *slot = Some(pooled);
        Ok(answer)
    }
}

impl Transport for HttpRpc {
    fn call<'a>(
        &'a self,
        method: &'static str,
        params: &'a Value,
    ) -> LocalBoxFuture<'a, Result<String, CallError>> {
        Box::pin(self.call_if_usable(method, params))
    }

    fn unavailable(&self) -> Option<CallError> {
        (!self.is_usable()).then(|| CallError::Http(self.unusable_reason()))
    }
}

/// Returns the reason why HTTP is not used before the first check.
fn not_checked_yet() -> HttpFailure {
    HttpFailure::new(FailureCause::Other, "the node has not been checked yet")
}

/// Returns the cause under which a failed call is counted. `None` for JSON-RPC errors other than RPC_IN_WARMUP (the
/// node is starting), because a JSON-RPC error shows that HTTP works.
fn cause(error: &CallError) -> Option<FailureCause> {
    match error {
        CallError::Http(failure) => Some(failure.cause),
        CallError::TooLarge(_) => Some(FailureCause::TooLarge),
        CallError::Failed(_) => Some(FailureCause::Forbidden),
        error if error.is_warmup() => Some(FailureCause::Warmup),
        _ => None,
    }
}

/// Reads the JSON-RPC response in an HTTP response: its result, or its error. Nodes without JSON-RPC 2.0 return
/// JSON-RPC errors with an HTTP error status. The body is therefore parsed for every status except 503, 403 and
/// redirects.
fn read(answer: Response<Bytes>) -> Result<Result<String, CallError>, HttpFailure> {
    let status = answer.status().as_u16();
    if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
        return Err(HttpFailure::new(
            FailureCause::Busy,
            "the node's work queue is full (503): reduce the requests of other clients, or increase -rpcworkqueue",
        ));
    }
    if answer.status() == StatusCode::FORBIDDEN {
        return Ok(Err(CallError::Failed("403, not allowed by -rpcwhitelist or -rpcallowip".into())));
    }
    if answer.status().is_redirection() {
        let text = format!(
            "the server sends a redirect ({status}), which is not followed; set --rpc-url to the node itself"
        );
        return Err(text.into());
    }
    match serde_json::from_slice::<json_rpc::Response>(answer.body()) {
        Ok(response) => Ok(response.result()),
        Err(_) => {
            let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            let kind = kind.unwrap_or("no content type");
            let text = format!(
                "the response is not JSON-RPC ({status}, {kind:.40}); check that --rpc-url is not a proxy or another server"
            );
            Err(text.into())
        }
    }
}
