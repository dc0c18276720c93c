//! Calls over HTTP: with the credentials that are good now, if the node can be asked.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};
use tracing::{info, warn};

use super::Settings;
use super::connection::{Answer, Kept, exchange};
use crate::ipc::{CallError, JsonRpcAnswer};
use crate::text;

/// A node's JSON-RPC over HTTP.
#[derive(Clone)]
pub struct HttpRpc {
    shared: Rc<Shared>,
    connection: Rc<Mutex<Option<Kept>>>,
    deadline: Duration,
}

/// What the connections to one node have in common.
struct Shared {
    settings: Settings,
    /// It answered, and it is the node that IPC leads to.
    used: Cell<bool>,
    /// A call failed in a way that says that the next one fails, too.
    failed: Notify,
    /// Why it is not used, as it was logged; empty while it is used.
    said: RefCell<String>,
    /// There were a cookie or a password when they were read last.
    has_credentials: Cell<bool>,
    /// Whoever asks says what is wrong.
    quiet: Cell<bool>,
    /// Methods that were refused, which was logged.
    forbidden: RefCell<BTreeSet<String>>,
}

impl HttpRpc {
    /// Connects at the first call. Each call is given `deadline`, all in all.
    pub fn new(settings: Settings, deadline: Duration) -> Self {
        if !settings.url.tls && !settings.url.is_local() {
            warn!(
                "{} is on another machine: what is sent there, the password too, is not encrypted",
                settings.url
            );
        }
        let shared = Rc::new(Shared {
            settings,
            used: Cell::new(false),
            failed: Notify::new(),
            said: RefCell::default(),
            has_credentials: Cell::new(false),
            quiet: Cell::new(false),
            forbidden: RefCell::default(),
        });
        HttpRpc { shared, connection: Rc::default(), deadline }
    }

    /// For calls that the node answers only after a while: others do not wait for them.
    pub fn on_connection_of_its_own(&self, longer: Duration) -> Self {
        HttpRpc {
            shared: self.shared.clone(),
            connection: Rc::default(),
            deadline: self.deadline.saturating_add(longer),
        }
    }

    /// Where it is, and how to be let in.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Whether it can be asked: it answered, and it is the right node.
    pub fn is_used(&self) -> bool {
        self.shared.used.get()
    }

    /// It answers, and it is the right node.
    pub fn use_it(&self) {
        if !self.shared.used.replace(true) {
            self.shared.said.take();
            let Settings { url, credentials, .. } = self.settings();
            info!("JSON-RPC over HTTP is used: {url}, {}", credentials.describe());
        }
    }

    /// It cannot be used until it was found usable again. Says why when that changes; the text may be the server's.
    pub fn give_up(&self, why: &str) {
        let why = text::message(why);
        self.shared.used.set(false);
        if *self.shared.said.borrow() != why {
            let line = format!("JSON-RPC over HTTP is not used: {why}");
            match self.settings().required || self.shared.has_credentials.get() {
                _ if self.shared.quiet.get() => {}
                true => warn!("{line}; trying again until it works"),
                false => info!("{line}"),
            }
            *self.shared.said.borrow_mut() = why;
        }
    }

    /// It cannot be used, because a call failed.
    pub fn failed(&self, error: &CallError) {
        match error.is_warmup() {
            // Its message changes with each step.
            true => self.give_up(&format!("{}: the node is starting", self.settings().url)),
            false => self.give_up(&error.to_string()),
        }
    }

    /// Why it is not used.
    pub fn why_not(&self) -> String {
        self.shared.said.borrow().clone()
    }

    /// It may be another node than before. Without IPC (`alone`) whoever asks says what is wrong.
    pub fn forget_node(&self, alone: bool) {
        self.shared.used.set(false);
        self.shared.quiet.set(alone);
    }

    /// Resolves when it is not used any more.
    pub async fn given_up(&self) {
        while self.is_used() {
            self.shared.failed.notified().await;
        }
    }

    /// A call, if it can be asked.
    pub async fn call<T: DeserializeOwned + Default>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, CallError> {
        if !self.is_used() {
            return Err(CallError::Http(self.why_not()));
        }
        let answer = self.ask_as(method, params).await;
        if let Err(error) = &answer
            && self.is_used()
            && (error.is_warmup() || matches!(error, CallError::Http(_)))
        {
            self.failed(error);
            self.shared.failed.notify_one();
        }
        answer
    }

    /// A call, whether or not it was found usable.
    pub async fn ask(&self, method: &str, params: Value) -> Result<Value, CallError> {
        self.ask_as(method, params).await
    }

    async fn ask_as<T: DeserializeOwned + Default>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, CallError> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let body = Bytes::from(request.to_string());
        let answer = match tokio::time::timeout(self.deadline, self.authorized(body)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {}", humantime::format_duration(self.deadline))),
        };
        let answer = answer.map_err(|why| CallError::Http(format!("{}: {why}", self.settings().url)))?;
        if answer.status == StatusCode::FORBIDDEN && self.shared.forbidden.borrow_mut().insert(method.into())
        {
            warn!(
                "the node refuses {method} over HTTP (403): its -rpcwhitelist or -rpcallowip does not permit it"
            );
        }
        read(answer).map_err(|error| match error {
            CallError::Http(why) => CallError::Http(format!("{}: {why}", self.settings().url)),
            error => error,
        })
    }

    async fn read_credentials(&self) -> Result<HeaderValue, String> {
        let read = self.settings().credentials.read().await;
        self.shared.has_credentials.set(read.is_ok());
        read
    }

    /// The answer to a request with the credentials that were good last time, or with those that are there now.
    async fn authorized(&self, body: Bytes) -> Result<Answer, String> {
        let credentials = &self.settings().credentials;
        // Taken out, so that a call that is given up closes it: its answer may still come.
        let mut slot = self.connection.lock().await;
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
            Err(format!("the node refuses {describe} (401); {advice}"))
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

/// Before 2.0, errors of a call have status codes of their own, and bodies like all others.
fn read<T: DeserializeOwned + Default>(answer: Answer) -> Result<T, CallError> {
    let status = answer.status.as_u16();
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        return Err(CallError::Http(
            "the node's work queue is full (503): other clients ask too much of it, or -rpcworkqueue is too small".into(),
        ));
    }
    if answer.status == StatusCode::FORBIDDEN {
        return Err(CallError::Failed("403, not permitted by -rpcwhitelist or -rpcallowip".into()));
    }
    if answer.status.is_redirection() {
        return Err(CallError::Http(format!(
            "it redirects elsewhere ({status}), which is not followed; name the node itself with --rpc-url"
        )));
    }
    match serde_json::from_slice::<JsonRpcAnswer>(&answer.body) {
        Ok(answer) => answer.result(),
        Err(_) => {
            let kind = answer.content_type.as_deref().unwrap_or("no content type");
            Err(CallError::Http(format!(
                "the answer is no JSON-RPC ({status}, {kind:.40}); is it a proxy or another server? (--rpc-url)"
            )))
        }
    }
}
