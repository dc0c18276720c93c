//! HTTP basic authentication: verifies the user name and the password of each request to the exporter.
//!
//! A bcrypt check is slow by design. The digest of a verified password is kept in memory, so only the first request
//! with this password waits for the bcrypt check. Password checks run one at a time, and requests wait for their check
//! in a short queue. When the queue is full, requests with an unverified password get status 429.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use ring::digest::{SHA256, digest};
use tokio::sync::Semaphore;

/// Maximum number of requests in the queue for a password check. If each check takes a tenth of a second, the last
/// request of a full queue waits for about six seconds.
const MAX_WAITING: usize = 64;

/// The result of authenticating a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AuthResult {
    /// The request has the correct password of a user.
    Permitted,
    /// The request has no password, a wrong password, or the name of an unknown user.
    Rejected,
    /// The queue of password checks is full.
    Busy,
}

/// The configured users, with the bcrypt hash of each user's password. Verifies the credentials of requests.
pub struct Users {
    hashes: BTreeMap<String, String>,
    /// SHA-256 digests of `user:password` for all passwords that were verified.
    correct: Arc<Mutex<HashSet<Vec<u8>>>>,
    one_at_a_time: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Users {
    /// Creates the users from a map of names to bcrypt hashes; `None` if the map is empty.
    pub fn new(hashes: BTreeMap<String, String>) -> Option<Self> {
        (!hashes.is_empty()).then(|| Users {
            hashes,
            correct: Arc::default(),
            one_at_a_time: Arc::new(Semaphore::new(1)),
            waiting: Semaphore::new(MAX_WAITING),
        })
    }

    /// Checks whether the headers of a request contain the correct password of a user.
    pub async fn permit(&self, headers: &HeaderMap) -> AuthResult {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let encoded = given.and_then(|value| value.split_once(' '));
        let encoded = encoded.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
        let decoded = encoded.and_then(|(_, encoded)| BASE64_STANDARD.decode(encoded.trim()).ok());
        let decoded = decoded.and_then(|decoded| String::from_utf8(decoded).ok());
        match decoded.as_deref().and_then(|decoded| decoded.split_once(':')) {
            Some((user, password)) => self.check(user, password).await,
            None => AuthResult::Rejected,
        }
    }

    async fn check(&self, user: &str, password: &str) -> AuthResult {
        // The text `user:password` is unambiguous, because a user name cannot contain a colon.
        let digest = digest(&SHA256, format!("{user}:{password}").as_bytes()).as_ref().to_vec();
        let is_remembered = || self.correct.lock().expect("nobody panics holding it").contains(&digest);
        if is_remembered() {
            return AuthResult::Permitted;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return AuthResult::Busy };
        let turn = self.one_at_a_time.clone().acquire_owned().await.expect("never closed");
        if is_remembered() {
            return AuthResult::Permitted;
        }
        // The password of an unknown user is checked against another user's hash. The check takes the same time for
        // unknown and for known users, so the response time does not reveal whether a user name exists.
        let decoy = || self.hashes.values().next().expect("there are users");
        let (hash, exists) = self.hashes.get(user).map_or_else(|| (decoy(), false), |hash| (hash, true));
        let (password, hash, correct) = (password.to_string(), hash.clone(), self.correct.clone());
        // The closure owns the permit of `one_at_a_time`, because the bcrypt check continues if the client disconnects,
        // and no other check may start before it ends.
        let verify = move || {
            let _turn = turn;
            if !bcrypt::verify(password, &hash).is_ok_and(|same| same && exists) {
                return AuthResult::Rejected;
            }
            correct.lock().expect("nobody panics holding it").insert(digest);
            AuthResult::Permitted
        };
        tokio::task::spawn_blocking(verify).await.unwrap_or(AuthResult::Rejected)
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
        Users::new(hashes.collect()).unwrap()
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(text))
    }

    async fn asks(users: &Users, header: &str) -> AuthResult {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, header.parse().unwrap());
        users.permit(&headers).await
    }

    /// Lets all other tasks run until they wait.
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
                assert_eq!(asks(&users, &right).await, AuthResult::Permitted);
            }
            for wrong in ["prom:wrong", "prom:", "prom", ":secret", "other:secret", "prom:secret:"] {
                assert_eq!(asks(&users, &basic(wrong)).await, AuthResult::Rejected, "{wrong}");
            }
            for wrong in ["", "Basic", "Basic !!!", "Bearer x"] {
                assert_eq!(asks(&users, wrong).await, AuthResult::Rejected, "{wrong}");
            }
        }
        assert_eq!(users.permit(&HeaderMap::new()).await, AuthResult::Rejected);
    }

    #[tokio::test]
    async fn verified_password_does_not_wait_behind_guesses() {
        let users = Arc::new(users(&[("prom", "secret", 8)]));
        assert_eq!(asks(&users, &basic("prom:secret")).await, AuthResult::Permitted);
        // While the test has this permit, no password check can start.
        let turn = users.one_at_a_time.clone().acquire_owned().await.unwrap();
        let guess = |number: usize| {
            let users = users.clone();
            let header = basic(&format!("prom:{number}"));
            tokio::spawn(async move { asks(&users, &header).await })
        };
        let guesses: Vec<_> = (0..100).map(guess).collect();
        others_run().await;
        let answered = guesses.iter().filter(|task| task.is_finished()).count();
        assert_eq!(answered, 100 - MAX_WAITING, "the other requests get status 429");
        assert_eq!(asks(&users, &basic("prom:secret")).await, AuthResult::Permitted);
        assert_eq!(asks(&users, &basic("prom:guess")).await, AuthResult::Busy);
        drop(turn);
        for (number, task) in guesses.into_iter().enumerate() {
            let expected = if number < MAX_WAITING { AuthResult::Rejected } else { AuthResult::Busy };
            assert_eq!(task.await.unwrap(), expected, "{number}");
        }
        assert_eq!(users.waiting.available_permits(), MAX_WAITING);
    }

    #[tokio::test]
    async fn password_check_survives_hangup_and_stays_exclusive() {
        let users = users(&[("prom", "secret", 13)]);
        let asked = tokio::time::timeout(Duration::ZERO, asks(&users, &basic("prom:guess"))).await;
        assert!(asked.is_err(), "bcrypt takes longer");
        assert_eq!(users.one_at_a_time.available_permits(), 0, "its check is under way");
    }

    /// The check for an unknown user must use a hash of the known user's bcrypt cost, which is 4. A check with cost 10
    /// would take 2^6 times as long as a check with cost 4, and the load of a busy machine cannot hide this factor.
    #[tokio::test]
    async fn unknown_user_takes_as_long_as_a_known_one() {
        let users = users(&[("prom", "secret", 4)]);
        let mut fastest = Duration::MAX;
        for number in 0..5 {
            let since = Instant::now();
            asks(&users, &basic(&format!("nobody-{number}:guess"))).await;
            fastest = fastest.min(since.elapsed());
        }
        let since = Instant::now();
        bcrypt::hash("secret", 10).unwrap();
        assert!(fastest < since.elapsed(), "{fastest:?}");
    }
}
