//! Runs the exporter process of either exporter from startup to shutdown: notifies the service manager that the process
//! is ready and does not hang, and handles signals.

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

use crate::http::{self, Endpoint, Listener, Pages};
use crate::systemd::{self, Heartbeat};

/// A second SIGTERM or SIGINT, if it is the same signal as the first and follows within this time, is ignored as a
/// duplicate. If a service manager sends a signal to all processes of a unit, the exporter process of
/// bitcoind-ipc-exporter receives the signal twice: directly, and from the supervisor, its parent process, which
/// forwards the signal.
const SAME_SIGNAL_INTERVAL: Duration = Duration::from_millis(500);

/// Starts the HTTP server, notifies the service manager, and runs `work` on this thread until it finishes. SIGTERM or
/// SIGINT cancels `shutdown`, after which `work` must finish. After a second signal, this function returns without
/// waiting for `work`. `confine` applies the system call filter: it is called when all sockets are open, and before the
/// server accepts the first connection.
///
/// # Errors
/// The server cannot be started, or the error of `work`.
pub fn run(
    runtime: &Runtime,
    listeners: impl IntoIterator<Item = (Listener, Endpoint)>,
    pages: Arc<impl Pages>,
    confine: impl FnOnce(),
    shutdown: &CancellationToken,
    work: impl Future<Output = Result<()>>,
) -> Result<ExitCode> {
    let listeners = listeners.into_iter().map(|(listener, endpoint)| (Arc::new(listener), endpoint));
    let listeners: Vec<_> = listeners.collect();
    let kept: Vec<_> = listeners.iter().map(|(listener, _)| listener.clone()).collect();
    let heartbeat = Heartbeat::default();
    // Register the signal handlers before the server creates a second tokio runtime. Once any tokio runtime of the
    // process receives signals, this runtime receives the signals for all runtimes, and a signal without a registered
    // handler is lost.
    let signals = {
        let _entered = runtime.enter();
        [signal::signal(SignalKind::terminate())?, signal::signal(SignalKind::interrupt())?]
    };
    systemd::connect_to_manager();
    confine();
    let serving = http::serve_on_thread(http::max_connections(), listeners, pages, heartbeat.clone())?;
    systemd::notify(systemd::Notification::Ready);
    let done = LocalSet::new().block_on(runtime, async {
        tokio::task::spawn_local(systemd::watchdog(heartbeat));
        tokio::select! {
            done = work => done.map(|()| None),
            signal = second_signal(signals, shutdown) => Ok(Some(signal)),
        }
    });
    if !matches!(done, Ok(Some(_))) {
        serving.finish();
    }
    kept.iter().for_each(|listener| listener.remove_file());
    Ok(done?.map_or(ExitCode::SUCCESS, |signal| ExitCode::from(128 + signal as u8)))
}

/// Cancels `shutdown` at the first signal, and returns the second signal.
async fn second_signal(
    [mut terminate, mut interrupt]: [signal::Signal; 2],
    shutdown: &CancellationToken,
) -> Signal {
    let mut signaled = async || {
        tokio::select! {
            _ = terminate.recv() => Signal::SIGTERM,
            _ = interrupt.recv() => Signal::SIGINT,
        }
    };
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
}
