//! Text from others, bounded where it comes in: a server can send any amount of it, and more than one line.

/// Limit on text that becomes a label.
const LABEL_BYTES: usize = 256;
/// Limit on text that becomes part of a log line or of a page.
const LOG_BYTES: usize = 1024;

/// Text that becomes a label: one line of at most 256 bytes.
pub fn label(text: &str) -> String {
    one_line(text, LABEL_BYTES)
}

/// Text that becomes part of a log line or of a page: one line of at most 1 kB.
pub fn log_text(text: &str) -> String {
    one_line(text, LOG_BYTES)
}

/// The start of a text, cut between characters, with a space in place of each control character.
pub fn one_line(text: &str, max_bytes: usize) -> String {
    let start = &text[..text.floor_char_boundary(max_bytes)];
    start.replace(char::is_control, " ")
}

#[cfg(test)]
#[test]
fn text_is_one_bounded_line() {
    let long = "é".repeat(1 << 20);
    assert_eq!(label(&long), "é".repeat(128));
    assert_eq!(log_text(&format!("x{long}")).len(), 1023);
    assert_eq!(log_text("a\nb\u{1b}[31m\r"), "a b [31m ");
    assert_eq!((label(""), one_line("é", 1)), (String::new(), String::new()));
}
