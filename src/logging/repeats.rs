//! Rate limit for repeated log lines: each text is logged at most once a minute, with the number of repetitions.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// Minimum time between two log lines with the same text.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of remembered texts. This maximum also limits the number of log lines within one [`REPEAT_INTERVAL`],
/// because a new text is logged only if it can be remembered.
const MAX_TEXTS: usize = 16;

/// Decides whether to log a text or to suppress it as a repetition. The value contains the texts that were logged last.
#[derive(Default)]
pub struct RepeatLimiter(RefCell<Vec<LoggedText>>);

/// A text that was logged, the time of its last log line, and the number of times that the text was suppressed since
/// that time.
struct LoggedText {
    text: String,
    logged: Instant,
    suppressed: u64,
}

impl RepeatLimiter {
    /// Decides whether to log this text now. Returns `None` to suppress the text, if the text was logged less than a
    /// minute ago, or if [`MAX_TEXTS`] other texts were logged in the last minute. Otherwise returns the text to append
    /// to the log line: the number of suppressed repetitions, or an empty text if no repetition was suppressed.
    pub fn admit(&self, text: &str) -> Option<String> {
        self.admit_at(text, Instant::now())
    }

    fn admit_at(&self, text: &str, now: Instant) -> Option<String> {
        let mut texts = self.0.borrow_mut();
        let is_recent = |it: &LoggedText| now.saturating_duration_since(it.logged) < REPEAT_INTERVAL;
        if let Some(entry) = texts.iter_mut().find(|it| it.text == text) {
            if is_recent(entry) {
                entry.suppressed += 1;
                return None;
            }
            entry.logged = now;
            return Some(match std::mem::take(&mut entry.suppressed) {
                0 => String::new(),
                times => format!(" ({times} more times since the last log line)"),
            });
        }
        if texts.len() == MAX_TEXTS {
            let oldest = texts.iter().position(|it| !is_recent(it))?;
            texts.remove(oldest);
        }
        texts.push(LoggedText { text: text.into(), logged: now, suppressed: 0 });
        Some(String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_is_logged_once_a_minute_with_its_count() {
        let (repeats, start) = (RepeatLimiter::default(), Instant::now());
        let at = |second, text: &str| repeats.admit_at(text, start + Duration::from_secs(second));
        assert_eq!(at(0, "refused"), Some(String::new()));
        assert_eq!((1..40).filter_map(|second| at(second, "refused")).count(), 0);
        assert_eq!(at(1, "timeout"), Some(String::new()), "another state");
        assert_eq!(at(60, "refused").as_deref(), Some(" (39 more times since the last log line)"));
        assert_eq!((at(61, "refused"), at(200, "timeout")), (None, Some(String::new())));
    }

    #[test]
    fn many_texts_are_limited_too() {
        let (repeats, start) = (RepeatLimiter::default(), Instant::now());
        let lines = |from: u64| {
            let admitted = |n: &u64| repeats.admit_at(&n.to_string(), start + Duration::from_secs(from));
            (from..from + 1000).filter(|n| admitted(n).is_some()).count()
        };
        assert_eq!(lines(0), MAX_TEXTS);
        assert_eq!(lines(10_000), MAX_TEXTS);
    }
}
