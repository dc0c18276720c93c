//! Counts by kind the warnings that the node returns in getnetworkinfo and getblockchaininfo, and logs warnings that
//! appear or disappear.

use serde_json::Value;
use tracing::{info, warn};

use crate::text;

/// Kinds of warnings: for each kind its label value, and texts of which each warning of this kind contains at least
/// one. The texts are from `node::Warnings` of Bitcoin Core 28 to 32, and from `GetWarnings` of earlier versions.
const KINDS: [(&str, &[&str]); 5] = [
    (
        "large_work_invalid_chain",
        &[
            "Found invalid chain more than 6 blocks longer than our best chain",
            "do not appear to fully agree with our peers",
        ],
    ),
    ("clock_out_of_sync", &["computer's date and time"]),
    ("unknown_new_rules_activated", &["nknown new rules activated"]),
    ("pre_release", &["This is a pre-release test build"]),
    // The errors that Bitcoin Core passes to `AbortNode`. Each of these errors is listed, because their texts have no
    // common part.
    (
        "fatal_internal_error",
        &[
            "Failed to ",
            "System error while ",
            "Flushing block file to disk failed",
            "Flushing undo file to disk failed",
            "Disk space is too low",
            "Corrupt block found",
            "Assumeutxo data not found",
            "failed to validate the -assumeutxo snapshot state",
            "First block (hash=",
            "First block connected is not the genesis block",
            "A fatal internal error occurred",
        ],
    ),
];

/// Label value for all warnings that contain none of the texts in `KINDS`.
const OTHER: &str = "other";

/// Maximum number of warnings that are read from a response. Bitcoin Core has fewer than 16 different warnings, so the
/// maximum removes no warning of a correct response.
const MAX_WARNINGS: usize = 16;

fn kind(text: &str) -> &'static str {
    let found = KINDS.iter().find(|(_, texts)| texts.iter().any(|part| text.contains(part)));
    found.map_or(OTHER, |(kind, _)| kind)
}

/// The texts of the node's warnings in its last response, which the exporter has logged. The texts are kept from one
/// connection to the next, so the exporter does not log the same warnings again after a reconnect.
#[derive(Default)]
pub struct Warnings(Vec<String>);

impl Warnings {
    /// Reads the field `warnings` of a response, and logs the warnings that appeared or disappeared since the last
    /// response. Returns the number of warnings of each kind, or an empty list if the response has no such field.
    ///
    /// The field `warnings` is an array of all warnings of the node. With `-deprecatedrpc=warnings`, and before Bitcoin
    /// Core 28, the field is a string with only one of the warnings, or an empty string. For a non-empty string, only
    /// the kind of that warning is returned, because the numbers of the other kinds are unknown.
    pub fn update(&mut self, warnings: &Value) -> Vec<(&'static str, f64)> {
        let (texts, complete) = match warnings {
            Value::Array(texts) => (texts.iter().filter_map(Value::as_str).collect(), true),
            Value::String(text) if text.is_empty() => (vec![], true),
            Value::String(text) => (vec![text.as_str()], false),
            _ => return vec![],
        };
        let texts: Vec<_> = texts.into_iter().take(MAX_WARNINGS).map(text::message).collect();
        for text in texts.iter().filter(|text| !self.0.contains(text)) {
            warn!(kind = kind(text), "the node reports a warning: {text}");
        }
        for text in self.0.iter().filter(|text| !texts.contains(text)) {
            info!(kind = kind(text), "the node no longer reports the warning: {text}");
        }
        self.0 = texts;
        let kinds = KINDS.iter().map(|(kind, _)| *kind).chain([OTHER]);
        let counted = kinds.map(|counted_kind| {
            (counted_kind, self.0.iter().filter(|text| kind(text) == counted_kind).count() as f64)
        });
        counted.filter(|(_, count)| complete || *count > 0.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_text_of_core_has_its_kind() {
        for (text, expected) in [
            (
                "This is a pre-release test build - use at your own risk - do not use for mining or merchant applications",
                "pre_release",
            ),
            (
                "Warning: We do not appear to fully agree with our peers! You may need to upgrade, or other nodes may need \
                 to upgrade.",
                "large_work_invalid_chain",
            ),
            (
                "Warning: Found invalid chain more than 6 blocks longer than our best chain. This could be due to database \
                 corruption or consensus incompatibility with peers.",
                "large_work_invalid_chain",
            ),
            (
                "Your computer's date and time appear to be more than 10 minutes out of sync with the network, this may \
                 lead to consensus failure.",
                "clock_out_of_sync",
            ),
            (
                "Please check that your computer's date and time are correct! If your clock is wrong, Bitcoin Core will not \
                 work properly.",
                "clock_out_of_sync",
            ),
            ("Unknown new rules activated (versionbit 27)", "unknown_new_rules_activated"),
            ("Warning: unknown new rules activated (versionbit 27)", "unknown_new_rules_activated"),
            ("Disk space is too low!", "fatal_internal_error"),
            ("Failed to write block.", "fatal_internal_error"),
            ("Rewind: Failed to rewind index txindex to a previous chain tip", "fatal_internal_error"),
            ("Failed to connect best block (bad-txns).", "fatal_internal_error"),
            ("System error while flushing: No space left on device", "fatal_internal_error"),
            ("a warning of a later version", "other"),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn absent_kinds_are_zero_only_if_all_warnings_are_known() {
        let kinds = |warnings| Warnings::default().update(&warnings);
        let all = kinds(json!(["Failed to read block.", "x", "y"]));
        assert_eq!(
            all,
            [
                ("large_work_invalid_chain", 0.0),
                ("clock_out_of_sync", 0.0),
                ("unknown_new_rules_activated", 0.0),
                ("pre_release", 0.0),
                ("fatal_internal_error", 1.0),
                ("other", 2.0)
            ]
        );
        assert!(kinds(json!("")).iter().all(|(_, count)| *count == 0.0) && kinds(json!("")).len() == 6);
        // The string format, as with `-deprecatedrpc=warnings`.
        assert_eq!(kinds(json!("This is a pre-release test build - ")), [("pre_release", 1.0)]);
        assert_eq!((kinds(Value::Null), kinds(json!({"0": "x"}))), (vec![], vec![]));
    }

    #[test]
    fn warnings_are_bounded_in_number_and_length() {
        let mut warnings = Warnings::default();
        let counted = warnings.update(&Value::Array(vec![json!("é".repeat(1 << 20)); 1000]));
        assert_eq!(counted.last(), Some(&("other", 16.0)));
        assert!(warnings.0.iter().all(|text| text.len() <= 1024));
    }
}
