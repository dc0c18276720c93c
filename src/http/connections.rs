//! Limits the number of concurrent connections to a listener of the exporter's HTTP server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::task::AbortHandle;
use tracing::debug;

/// Flag of an HTTP connection: true after a request on the connection had the correct password of a configured user.
pub type Authenticated = Arc<AtomicBool>;

/// The open connections of a listener, up to a maximum number. A new connection is always accepted. If the maximum is
/// reached, the oldest open connection whose [`Authenticated`] flag is false is closed first, or the oldest open
/// connection if all flags are true. A flood of connections without a password therefore replaces only connections
/// without a password, unless all open connections are authenticated.
pub struct Connections {
    limit: usize,
    /// The task that serves each open connection, and the connection's flag, oldest connection first.
    open: VecDeque<(AbortHandle, Authenticated)>,
}

impl Connections {
    /// Creates an empty set of at most `limit` concurrent connections.
    pub fn new(limit: usize) -> Self {
        Connections { limit, open: VecDeque::new() }
    }

    /// Serves a new connection in a new task, after closing an old connection if the maximum is reached.
    pub fn spawn<F>(&mut self, serve: impl FnOnce(Authenticated) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.open.retain(|(task, _)| !task.is_finished());
        if self.open.len() >= self.limit {
            let without_password =
                self.open.iter().position(|(_, authenticated)| !authenticated.load(Relaxed));
            if let Some((task, _)) = self.open.remove(without_password.unwrap_or(0)) {
                debug!("closed an HTTP connection in favour of a new one");
                task.abort();
            }
        }
        let authenticated = Authenticated::default();
        let task = tokio::spawn(serve(authenticated.clone())).abort_handle();
        self.open.push_back((task, authenticated));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    async fn others_end() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn flood_closes_its_own_connections() {
        let connections = RefCell::new(Connections::new(4));
        let open = |has_password| {
            let mut connections = connections.borrow_mut();
            connections.spawn(|authenticated| {
                authenticated.store(has_password, Relaxed);
                std::future::pending()
            });
            connections.open.back().unwrap().0.clone()
        };
        let [scraper, first] = [open(true), open(false)];
        let flood: Vec<_> = (0..100).map(|_| open(false)).collect();
        others_end().await;
        assert!(!scraper.is_finished() && first.is_finished());
        assert_eq!(flood.iter().filter(|task| !task.is_finished()).count(), 3);
        assert!(flood[97..].iter().all(|task| !task.is_finished()), "the latest");
        let scrapers: Vec<_> = (0..4).map(|_| open(true)).collect();
        others_end().await;
        assert!(scraper.is_finished(), "among those with a password the oldest");
        assert!(scrapers.iter().all(|task| !task.is_finished()));
    }
}
