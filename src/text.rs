//! Limits the length of untrusted text from a node, a server or a client. Each text is truncated once, in the code that
//! receives it.

use std::fmt::{self, Display, Write};

/// Maximum size of the value of a metric's label, in bytes.
pub const LABEL_BYTES: usize = 256;
/// Maximum size in bytes of a field in a log line, and of a message on a status page.
pub const MESSAGE_BYTES: usize = 1024;

/// The last character of a truncated text.
const CUT: char = '…';

/// Formats the text in one line of at most `limit` bytes. Control characters become spaces, and a truncated text ends
/// with `…`. Formatting stops at the limit, and a large value therefore takes no additional memory.
pub fn bounded(text: impl Display, limit: usize) -> String {
    let mut bounded = BoundedText { text: String::new(), limit };
    // The returned error is ignored: it means that `bounded` has reached its limit.
    let _ = write!(bounded, "{text}");
    bounded.text
}

/// The text for a log line or a status page, truncated to [`MESSAGE_BYTES`] by [`bounded`].
pub fn message(text: impl Display) -> String {
    bounded(text, MESSAGE_BYTES)
}

/// The text as the value of a metric's label, truncated to [`LABEL_BYTES`] by [`bounded`].
pub fn label(text: impl Display) -> String {
    bounded(text, LABEL_BYTES)
}

/// A writer that truncates text at a limit and then returns an error.
struct BoundedText {
    text: String,
    limit: usize,
}

impl Write for BoundedText {
    fn write_str(&mut self, text_part: &str) -> fmt::Result {
        for character in text_part.chars() {
            let character = if character.is_control() { ' ' } else { character };
            if self.text.len() + character.len_utf8() > self.limit {
                while self.text.len() + CUT.len_utf8() > self.limit && self.text.pop().is_some() {}
                if CUT.len_utf8() <= self.limit {
                    self.text.push(CUT);
                }
                return Err(fmt::Error);
            }
            self.text.push(character);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_up_to_the_limit_is_unchanged() {
        assert_eq!(bounded("", 0), "");
        assert_eq!(bounded("12345", 5), "12345");
        assert_eq!(bounded(format_args!("{}-{}", "ab", 7), 4), "ab-7");
    }

    #[test]
    fn longer_text_is_cut_between_characters() {
        assert_eq!(bounded("123456789", 5), "12…");
        assert_eq!(bounded("äöüäöü", 7), "äö…");
        assert_eq!(bounded("123", 2), "", "no room for the sign of the cut");
        for limit in 0..20 {
            let text = bounded("1ä→😀".repeat(9), limit);
            assert!(text.len() <= limit, "{limit}: {text}");
        }
    }

    #[test]
    fn control_characters_become_spaces() {
        assert_eq!(bounded("a\nERROR \u{1b}[31mb\r\0\u{9b}", 100), "a ERROR  [31mb   ");
    }

    #[test]
    fn formatting_stops_at_the_limit() {
        /// A text whose formatting never ends.
        struct EndlessText;
        impl Display for EndlessText {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("without end ")?;
                }
            }
        }
        assert_eq!(message(EndlessText).len(), MESSAGE_BYTES);
        assert!(label(EndlessText).ends_with(CUT));
    }
}
