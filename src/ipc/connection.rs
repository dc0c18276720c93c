//! A connection to a node: the Cap'n Proto handshake, the node's threads for the exporter's calls, and the deadline of
//! each call. The connection passes through the guard, a process that relays messages between the exporter and the
//! node.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp::capability::Promise;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp, twoparty};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, oneshot, watch};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::task::AbortOnDropHandle;

use super::CallError;
use crate::schema::init_capnp::init;
use crate::schema::proxy_capnp::{thread, thread_map};

/// Handle to a thread of the node that runs the exporter's calls one at a time, with the deadline of each call.
///
/// The exporter sends the next call on the thread only after the node's response to the previous call, even if that
/// response arrives after the deadline. Bitcoin Core 30 aborts when it has to queue a second call on a thread
/// (`Waiter::post`: `Assertion '!m_fn'`). Later versions reject the second call with the error `thread busy`. A call
/// that may block for long (a long poll) needs its own thread, because no other call can run on its thread until the
/// node has responded.
#[derive(Clone)]
pub struct NodeThread {
    pub(super) client: thread::Client,
    deadline: Duration,
    /// A lock that the exporter holds from before it sends a call until the response to the call arrives. All clones of
    /// this value share the lock.
    slot: Arc<Mutex<()>>,
    /// The task that waits for the response to the last call on the thread. The task is aborted when the last clone of
    /// this value is dropped, because a task that still waits would keep the connection open.
    last: Rc<RefCell<Option<AbortOnDropHandle<()>>>>,
}

impl NodeThread {
    /// Sends a call when the node has responded to the last call on this thread, and waits for the response. Waits for
    /// each of the two responses for at most the deadline. The node continues to run a call that timed out, and the
    /// guard does not close the connection before the node has responded to this call.
    pub(super) async fn call<T: 'static>(
        &self,
        send: impl FnOnce() -> Promise<T, capnp::Error>,
    ) -> Result<T, CallError> {
        let slot = tokio::time::timeout(self.deadline, self.slot.clone().lock_owned()).await;
        let slot = slot.map_err(|_| CallError::TimedOut(self.deadline))?;
        let answer = send();
        let (sender, receiver) = oneshot::channel();
        let wait = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
            let answer = answer.await;
            drop(slot);
            let _ = sender.send(answer); // fails if the caller has already timed out
        }));
        self.last.replace(Some(wait));
        match tokio::time::timeout(self.deadline, receiver).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(CallError::Disconnected("the connection is closed".into())),
            Err(_) => Err(CallError::TimedOut(self.deadline)),
        }
    }

    /// Combines `client`, a capability of the node, with this thread, which then runs the exporter's calls on the
    /// capability.
    pub(super) fn bind<C>(&self, client: C) -> BoundCapability<C> {
        BoundCapability { client, thread: self.clone() }
    }

    /// Returns a handle to the same thread whose deadline is longer by `extra`.
    pub fn with_extra_timeout(&self, extra: Duration) -> NodeThread {
        NodeThread { deadline: self.deadline.saturating_add(extra), ..self.clone() }
    }

    /// Returns a handle to the same thread whose calls have no deadline.
    pub fn without_deadline(&self) -> NodeThread {
        self.with_extra_timeout(Duration::MAX)
    }
}

async fn wait_for_answer<T>(deadline: Duration, answer: Promise<T, capnp::Error>) -> Result<T, CallError> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::TimedOut(deadline)),
    }
}

/// A capability of the node, and the node's thread that runs the exporter's calls on the capability.
#[derive(Clone)]
pub struct BoundCapability<C> {
    pub(super) client: C,
    pub(super) thread: NodeThread,
}

impl<C: Clone> BoundCapability<C> {
    /// Returns the same capability with calls that run on `thread`.
    pub fn on_thread(&self, thread: &NodeThread) -> Self {
        thread.bind(self.client.clone())
    }
}

/// Sends a request with a `context` parameter on a [`BoundCapability`], and waits for the response for at most the
/// deadline of the capability's thread. The `context` names the thread that runs the call.
macro_rules! call {
    ($capability:expr, $request:ident $(, |$params:ident| $set:expr)?) => {{
        let mut request = $capability.client.$request();
        request.get().init_context().set_thread($capability.thread.client.clone());
        $({ let mut $params = request.get(); $set; })?
        $capability.thread.call(|| request.send().promise).await
    }};
}
pub(super) use call;

/// Defines client methods for the methods of an interface that have no parameter except the context and that return one
/// primitive value.
macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident = $request:ident -> $type:ty;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
            pub async fn $name(&self) -> Result<$type, CallError> {
                Ok(call!(self, $request)?.get()?.get_result())
            }
        )*
    };
}
pub(super) use plain;

/// A connection to a node after the Cap'n Proto handshake. Dropping this value closes the socket without a Cap'n Proto
/// Abort message, because the node would log an Abort as an error.
pub struct IpcConnection {
    init: init::Client,
    threads: thread_map::Client,
    deadline: Duration,
    closed: watch::Receiver<Option<Rc<str>>>,
    _driver: AbortOnDropHandle<()>,
}

impl IpcConnection {
    /// Performs the Cap'n Proto handshake: requests the node's bootstrap capability and calls `construct`. This
    /// function must be called in a [`tokio::task::LocalSet`]. `deadline` is the timeout of each call to the node,
    /// including the calls of the handshake.
    ///
    /// # Errors
    /// The node does not respond within `deadline`, rejects the handshake, or closes the connection.
    pub async fn new(stream: UnixStream, deadline: Duration) -> Result<Self, CallError> {
        let (read, write) = stream.into_split();
        let network = twoparty::VatNetwork::new(
            read.compat(),
            write.compat_write(),
            rpc_twoparty_capnp::Side::Client,
            Default::default(),
        );
        let mut system = RpcSystem::new(Box::new(network), None);
        let init: init::Client = system.bootstrap(rpc_twoparty_capnp::Side::Server);
        let (close, closed) = watch::channel(None);
        let driver = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
            let reason = match system.await {
                Ok(()) => "the node closed the connection".to_string(),
                Err(error) => CallError::from(error).to_string(),
            };
            close.send_replace(Some(reason.into()));
        }));
        let threads = capnp_rpc::new_client(ExporterThreadMap);
        let mut connection = IpcConnection { init, threads, deadline, closed, _driver: driver };
        let mut construct = connection.init.construct_request();
        construct.get().set_thread_map(connection.threads.clone());
        let answer = tokio::select! {
            answer = wait_for_answer(deadline, construct.send().promise) => answer?,
            reason = connection.closed() => return Err(CallError::Disconnected(reason.to_string())),
        };
        connection.threads = answer.get()?.get_thread_map()?;
        Ok(connection)
    }

    /// Creates a thread in the node, on which the node runs calls of the exporter. `name` becomes part of the thread's
    /// name.
    ///
    /// # Errors
    /// The node does not respond within the deadline, or does not create the thread.
    pub async fn thread(&self, name: &str) -> Result<NodeThread, CallError> {
        let mut request = self.threads.make_thread_request();
        request.get().set_name(name);
        let answer = wait_for_answer(self.deadline, request.send().promise).await?;
        let client = answer.get()?.get_result()?;
        Ok(NodeThread { client, deadline: self.deadline, slot: Arc::default(), last: Rc::default() })
    }

    /// The node's Init capability, whose methods return the other interfaces.
    pub(super) fn init(&self, thread: &NodeThread) -> BoundCapability<init::Client> {
        thread.bind(self.init.clone())
    }

    /// Waits until the connection is closed, and returns the reason of the close.
    pub async fn closed(&self) -> Rc<str> {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().expect("waited for"),
            Err(_) => "closed".into(),
        }
    }
}

/// The exporter's thread map, a Cap'n Proto object that the exporter passes to the node in the handshake. The
/// implementation has no methods, because the guard responds to the node's calls to this object.
struct ExporterThreadMap;

impl thread_map::Server for ExporterThreadMap {}
