//! Runs an exporter process from startup to shutdown: notifies the service manager that the process is ready and does
//! not hang, and handles signals.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use tokio::signal::unix::{self as signal, SignalKind};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::http::{self, Endpoint, HttpServerHandle, Listener, Pages};
use crate::systemd::{self, Heartbeat};

/// A second signal of the same kind within this time is ignored as a duplicate. If a service manager sends a signal to
/// all processes of a unit, the exporter process of bitcoind-ipc-exporter receives the signal twice: directly, and from
/// the supervisor, its parent process, which forwards the signal.
const SAME_SIGNAL_INTERVAL: Duration = Duration::from_millis(500);

/// A running exporter process: its HTTP server, and its signal handlers.
pub struct Service {
    listeners: Vec<Arc<Listener>>,
    serving: HttpServerHandle,
    heartbeat: Heartbeat,
    terminate: signal::Signal,
    interrupt: signal::Signal,
}

impl Service {
    /// Starts the HTTP server, and notifies the service manager. [`run`](Self::run) handles signals and drives
    /// `runtime`. `confine` applies the system call filter: it is called when all sockets are open, and before the
    /// server accepts the first connection.
    ///
    /// # Errors
    /// The server cannot be started.
    pub fn start(
        runtime: &Runtime,
        listeners: impl IntoIterator<Item = (Listener, Endpoint)>,
        pages: Arc<impl Pages>,
        confine: impl FnOnce(),
    ) -> Result<Self> {
        let listeners = listeners.into_iter().map(|(listener, endpoint)| (Arc::new(listener), endpoint));
        let listeners: Vec<_> = listeners.collect();
        let kept = listeners.iter().map(|(listener, _)| listener.clone()).collect();
        let heartbeat = Heartbeat::default();
        // Register the signal handlers before the server creates a second tokio runtime. Once any runtime receives
        // signals, it receives them for all runtimes, and a signal without a registered handler is lost.
        let (terminate, interrupt) = {
            let _entered = runtime.enter();
            (signal::signal(SignalKind::terminate())?, signal::signal(SignalKind::interrupt())?)
        };
        systemd::connect_to_manager();
        confine();
        let serving = http::serve_on_thread(http::max_connections(), listeners, pages, heartbeat.clone())?;
        systemd::notify(systemd::Notification::Ready);
        Ok(Service { listeners: kept, serving, heartbeat, terminate, interrupt })
    }

    /// Runs `work` on this thread until it finishes. SIGTERM or SIGINT cancels `shutdown`, after which `work` must
    /// finish. After a second signal, this function returns without waiting for `work`.
    ///
    /// # Errors
    /// The error of `work`.
    pub fn run(
        mut self,
        runtime: &Runtime,
        shutdown: &CancellationToken,
        work: impl Future<Output = Result<()>>,
    ) -> Result<ExitCode> {
        let done = LocalSet::new().block_on(runtime, async {
            let mut signaled = async || {
                tokio::select! {
                    _ = self.terminate.recv() => Signal::SIGTERM,
                    _ = self.interrupt.recv() => Signal::SIGINT,
                }
            };
            tokio::task::spawn_local(systemd::watchdog(self.heartbeat));
            let second_signal = async {
                let (first, since) = (signaled().await, Instant::now());
                info!("received {first}, exiting");
                systemd::notify(systemd::Notification::Stopping);
                shutdown.cancel();
                loop {
                    let signal = signaled().await;
                    if signal != first || since.elapsed() > SAME_SIGNAL_INTERVAL {
                        return signal;
                    }
                }
            };
            tokio::select! {
                done = work => done.map(|()| None),
                signal = second_signal => Ok(Some(signal)),
            }
        });
        if !matches!(done, Ok(Some(_))) {
            self.serving.finish();
        }
        self.listeners.iter().for_each(|listener| listener.remove_file());
        Ok(done?.map_or(ExitCode::SUCCESS, |signal| ExitCode::from(128 + signal as u8)))
    }
}
