//! Users and their passwords.
//!
//! bcrypt is slow on purpose. The result for a password is remembered, so that a scraper waits only the first time.
//! Checks wait in a short queue, and requests are answered 429 when it is full.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;

/// Passwords that may wait to be checked; with a check of a tenth of a second the last waits for some seconds.
const WAITING: usize = 64;
/// Of these, from one address, so that one client cannot fill the queue before a scraper's first request.
const WAITING_OF_ADDRESS: usize = 4;
/// Answers that are remembered.
const REMEMBERED: usize = 1000;

/// Whether a request is answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// From a user with their password.
    Permitted,
    /// Without a password, or with a wrong one.
    Refused,
    /// Too many passwords wait to be checked.
    Busy,
}

/// The users, by name, with the bcrypt hashes of their passwords.
pub struct Users {
    hashes: BTreeMap<String, String>,
    remembered: Arc<Remembered>,
    one_at_a_time: Arc<Semaphore>,
    queue: Queue,
}

impl Default for Users {
    fn default() -> Self {
        Users::new(BTreeMap::new())
    }
}

impl Users {
    /// Without users everyone is permitted.
    pub fn new(hashes: BTreeMap<String, String>) -> Self {
        Users {
            hashes,
            remembered: Arc::default(),
            one_at_a_time: Arc::new(Semaphore::new(1)),
            queue: Queue::default(),
        }
    }

    /// Whether there are no users.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether this request, from this address, comes from a user with their password.
    pub async fn permit(&self, headers: &HeaderMap, from: Option<IpAddr>) -> Verdict {
        if self.is_empty() {
            return Verdict::Permitted;
        }
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let encoded = given.and_then(|value| value.split_once(' '));
        let encoded = encoded.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
        let decoded = encoded.and_then(|(_, encoded)| BASE64_STANDARD.decode(encoded.trim()).ok());
        let decoded = decoded.and_then(|decoded| String::from_utf8(decoded).ok());
        match decoded.as_deref().and_then(|decoded| decoded.split_once(':')) {
            Some((user, password)) => self.check(user, password, from).await,
            None => Verdict::Refused,
        }
    }

    async fn check(&self, user: &str, password: &str, from: Option<IpAddr>) -> Verdict {
        let digest = self.remembered.digest(user, password);
        if let Some(verdict) = self.remembered.get(&digest) {
            return verdict;
        }
        let Some(_place) = self.queue.enter(from) else { return Verdict::Busy };
        let turn = self.one_at_a_time.clone().acquire_owned().await.expect("never closed");
        if let Some(verdict) = self.remembered.get(&digest) {
            return verdict;
        }
        let (hash, exists) = match self.hashes.get(user) {
            Some(hash) => (hash, true),
            None => (self.decoy(user), false),
        };
        let (password, hash, remembered) = (password.to_string(), hash.clone(), self.remembered.clone());
        // The check goes on when the client hangs up, so it owns its turn.
        let verify = move || {
            let _turn = turn;
            let verdict = match bcrypt::verify(password, &hash).is_ok_and(|same| same && exists) {
                true => Verdict::Permitted,
                false => Verdict::Refused,
            };
            remembered.set(digest, verdict);
            verdict
        };
        tokio::task::spawn_blocking(verify).await.unwrap_or(Verdict::Refused)
    }

    /// Another user's hash, for a name that does not exist: its check takes as long as that of one that does. Always the
    /// same for a name, because costs may differ.
    fn decoy(&self, user: &str) -> &String {
        let digest = self.remembered.digest(user, "");
        let number =
            digest.iter().fold(0, |number, &byte| (number * 256 + usize::from(byte)) % self.hashes.len());
        self.hashes.values().nth(number).expect("it is less than their number")
    }
}

/// Verdicts on names and passwords, which are kept only as digests with a key of this process, so that neither memory nor
/// the time of a lookup tells them.
struct Remembered {
    key: hmac::Key,
    verdicts: Mutex<HashMap<Vec<u8>, Verdict>>,
}

impl Default for Remembered {
    fn default() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .expect("the kernel's random numbers");
        Remembered { key, verdicts: Mutex::default() }
    }
}

impl Remembered {
    fn digest(&self, user: &str, password: &str) -> Vec<u8> {
        // No user's name holds a colon.
        hmac::sign(&self.key, format!("{user}:{password}").as_bytes()).as_ref().to_vec()
    }

    fn get(&self, digest: &[u8]) -> Option<Verdict> {
        self.verdicts.lock().expect("nobody panics holding it").get(digest).copied()
    }

    fn set(&self, digest: Vec<u8>, verdict: Verdict) {
        let mut verdicts = self.verdicts.lock().expect("nobody panics holding it");
        if verdicts.len() >= REMEMBERED {
            // Only wrong passwords are forgotten: those that are permitted need not wait again.
            verdicts.retain(|_, verdict| *verdict == Verdict::Permitted);
        }
        if verdicts.len() < REMEMBERED {
            verdicts.insert(digest, verdict);
        }
    }
}

/// How many checks wait, by address.
#[derive(Default)]
struct Queue(Mutex<HashMap<Option<IpAddr>, usize>>);

/// A place in the queue, until it is dropped.
struct Waiting<'a> {
    queue: &'a Queue,
    from: Option<IpAddr>,
}

impl Queue {
    /// `None` if it is full.
    fn enter(&self, from: Option<IpAddr>) -> Option<Waiting<'_>> {
        let from = from.map(network);
        let mut waiting = self.0.lock().expect("nobody panics holding it");
        if waiting.values().sum::<usize>() >= WAITING {
            return None;
        }
        let of_address = waiting.entry(from).or_default();
        if *of_address >= WAITING_OF_ADDRESS {
            return None;
        }
        *of_address += 1;
        Some(Waiting { queue: self, from })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.0.lock().expect("nobody panics holding it");
        if let Some(of_address) = waiting.get_mut(&self.from) {
            *of_address -= 1;
            if *of_address == 0 {
                waiting.remove(&self.from);
            }
        }
    }
}

/// The address, or for IPv6 its /64 network: one client usually has all of those addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn users(users: &[(&str, &str, u32)]) -> Users {
        let hashes = users.iter().map(|(user, password, cost)| {
            (user.to_string(), bcrypt::hash(password, *cost).expect("a good cost"))
        });
        Users::new(hashes.collect())
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(text))
    }

    async fn asks(users: &Users, header: &str, from: Option<IpAddr>) -> Verdict {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, header.parse().unwrap());
        users.permit(&headers, from).await
    }

    /// Lets the other tasks come as far as they can.
    async fn others_run() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn only_a_user_with_their_password_is_permitted() {
        let users = users(&[("prom", "secret", 4)]);
        for _ in 0..2 {
            for right in [basic("prom:secret"), basic("prom:secret").replace("Basic", "basic")] {
                assert_eq!(asks(&users, &right, None).await, Verdict::Permitted);
            }
            for wrong in ["prom:wrong", "prom:", "prom", ":secret", "other:secret", "prom:secret:"] {
                assert_eq!(asks(&users, &basic(wrong), None).await, Verdict::Refused, "{wrong}");
            }
            for wrong in ["", "Basic", "Basic !!!", "Bearer x"] {
                assert_eq!(asks(&users, wrong, None).await, Verdict::Refused, "{wrong}");
            }
        }
        assert_eq!(users.permit(&HeaderMap::new(), None).await, Verdict::Refused);
    }

    #[tokio::test]
    async fn one_address_does_not_fill_the_queue_and_who_is_known_does_not_wait() {
        let users = Arc::new(users(&[("prom", "secret", 8)]));
        let address = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
        assert_eq!(asks(&users, &basic("prom:secret"), address(1)).await, Verdict::Permitted);
        let turn = users.one_at_a_time.clone().acquire_owned().await.unwrap(); // no check can begin
        let guess = |number: usize, from| {
            let users = users.clone();
            let header = basic(&format!("prom:{number}"));
            tokio::spawn(async move { asks(&users, &header, from).await })
        };
        let mut waiting = Vec::new();
        for number in 0..100 {
            waiting.push(guess(number, address(1)));
        }
        others_run().await;
        let answered =
            |waiting: &[tokio::task::JoinHandle<_>]| waiting.iter().filter(|task| task.is_finished()).count();
        assert_eq!(answered(&waiting), 96, "the others are told to come again");
        let newcomer = guess(1000, address(2));
        others_run().await;
        assert!(!newcomer.is_finished(), "it waits");
        assert_eq!(asks(&users, &basic("prom:secret"), address(1)).await, Verdict::Permitted);
        for number in 0..100 {
            waiting.push(guess(2000 + number, address(10 + number as u8)));
        }
        others_run().await;
        assert_eq!(waiting.len() - answered(&waiting) + 1, WAITING);
        drop(turn);
        assert_eq!(newcomer.await.unwrap(), Verdict::Refused);
        for (number, task) in waiting.into_iter().enumerate() {
            let verdict = task.await.unwrap();
            assert!(matches!(verdict, Verdict::Refused | Verdict::Busy), "{number}: {verdict:?}");
        }
        assert!(users.queue.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_check_goes_on_when_the_one_who_asked_hangs_up_and_no_other_begins_meanwhile() {
        let users = users(&[("prom", "secret", 13)]);
        let asked = tokio::time::timeout(Duration::ZERO, asks(&users, &basic("prom:guess"), None)).await;
        assert!(asked.is_err(), "bcrypt takes longer");
        assert_eq!(users.one_at_a_time.available_permits(), 0, "its check is under way");
    }

    /// Costs far enough apart that a busy machine does not matter: 2^8 times.
    #[tokio::test]
    async fn a_name_that_does_not_exist_takes_as_long_as_one_that_does() {
        let users = users(&[("prom", "secret", 4)]);
        let mut fastest = Duration::MAX;
        for number in 0..5 {
            let since = Instant::now();
            asks(&users, &basic(&format!("nobody-{number}:guess")), None).await;
            fastest = fastest.min(since.elapsed());
        }
        let since = Instant::now();
        bcrypt::hash("secret", 10).unwrap();
        assert!(fastest < since.elapsed(), "{fastest:?}");
    }

    #[test]
    fn a_name_that_does_not_exist_always_takes_the_same_time() {
        let users = users(&[("a", "secret", 4), ("b", "secret", 5), ("c", "secret", 6)]);
        for name in ["x", "y", "z"] {
            let first = users.decoy(name);
            assert!((0..10).all(|_| users.decoy(name) == first));
        }
        let decoys: std::collections::BTreeSet<_> =
            (0..100).map(|number| users.decoy(&format!("nobody-{number}"))).collect();
        assert_eq!(decoys.len(), 3, "each cost is one that a name which does not exist may have");
    }

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let network = |address: &str| network(address.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
