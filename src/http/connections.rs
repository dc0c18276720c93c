//! A limit on connections, under which clients without a password cannot push out those with one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

/// A limited number of connections. A new one is always accepted: at the limit another is closed for it.
pub struct Connections {
    limit: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// The oldest first.
    by_age: BTreeMap<u64, Entry>,
}

struct Entry {
    from: Option<IpAddr>,
    /// A request on it had a correct password.
    authenticated: bool,
    closing: Arc<Notify>,
}

impl Connections {
    /// Accepts at most this many at once.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Connections { limit, open: Mutex::default() })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("nobody panics holding it")
    }

    /// A connection from this address; `None` for a Unix socket.
    pub fn enter(self: &Arc<Self>, from: Option<IpAddr>) -> Place {
        let mut open = self.open();
        if open.by_age.len() >= self.limit
            && let Some(entry) = open.victim().and_then(|id| open.by_age.remove(&id))
        {
            entry.closing.notify_one();
        }
        let id = open.next;
        open.next += 1;
        let closing = Arc::new(Notify::new());
        open.by_age.insert(id, Entry { from, authenticated: false, closing: closing.clone() });
        Place { connections: self.clone(), id, from, closing }
    }
}

impl Open {
    /// The connection to close: the oldest of the address that has the most, unauthenticated ones first. So a client that
    /// opens many connections closes its own.
    fn victim(&self) -> Option<u64> {
        let oldest = |authenticated: bool| {
            let candidates =
                || self.by_age.iter().filter(move |(_, entry)| entry.authenticated == authenticated);
            let mut by_address: HashMap<_, usize> = HashMap::new();
            candidates().for_each(|(_, entry)| *by_address.entry(entry.from).or_default() += 1);
            let most = by_address.values().max()?;
            candidates().find(|(_, entry)| by_address[&entry.from] == *most).map(|(&id, _)| id)
        };
        oldest(false).or_else(|| oldest(true))
    }
}

/// A connection's place under the limit, until it is dropped.
pub struct Place {
    connections: Arc<Connections>,
    id: u64,
    from: Option<IpAddr>,
    closing: Arc<Notify>,
}

impl Place {
    /// The address that it comes from.
    pub fn from(&self) -> Option<IpAddr> {
        self.from
    }

    /// A request on it had a correct password.
    pub fn set_authenticated(&self) {
        if let Some(entry) = self.connections.open().by_age.get_mut(&self.id) {
            entry.authenticated = true;
        }
    }

    /// Resolves when a new connection needs the place.
    pub async fn taken(&self) {
        self.closing.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().by_age.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn whoever_opens_many_connections_closes_their_own() {
        let address = |last| Some(IpAddr::from([192, 0, 2, last]));
        let connections = Connections::new(4);
        let stays = |place: &Place| place.taken().now_or_never().is_none();
        let known = connections.enter(address(1));
        known.set_authenticated();
        let slow = connections.enter(address(2));
        let flood: Vec<_> = (0..100).map(|_| connections.enter(address(1))).collect();
        assert!(stays(&known) && stays(&slow));
        assert_eq!(flood.iter().filter(|place| stays(place)).count(), 2);
        assert!(flood[98..].iter().all(stays), "the latest");
        drop((flood, slow));
        let others: Vec<_> = (2..6).map(|last| connections.enter(address(last))).collect();
        assert!(stays(&known) && !stays(&others[0]), "the oldest stranger");
        others.iter().for_each(Place::set_authenticated);
        let last = connections.enter(address(9));
        assert!(!stays(&known) && stays(&last), "among those that are known the oldest");
    }
}
