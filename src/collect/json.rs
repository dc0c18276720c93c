//! Functions that read fields of the node's JSON responses. The functions for one field return `None` if the field is
//! missing, null, of another type or out of range.

use serde_json::Value;

use crate::text;

/// Reads a field that contains a finite number.
pub fn number(value: &Value, field: &str) -> Option<f64> {
    value.get(field)?.as_f64().filter(|number| number.is_finite())
}

/// Reads a field that contains a non-negative integer.
pub fn count(value: &Value, field: &str) -> Option<u64> {
    value.get(field)?.as_u64()
}

/// Reads a boolean field, and converts it to 0 or 1.
pub fn flag(value: &Value, field: &str) -> Option<f64> {
    value.get(field)?.as_bool().map(f64::from)
}

/// Reads a text field, and converts it to a safe label value.
pub fn label(value: &Value, field: &str) -> Option<String> {
    value.get(field)?.as_str().map(text::label)
}

/// Returns the entries of an object whose keys become label values. To limit the cardinality, returns at most 16
/// entries, and only entries whose keys have at most 32 characters from `A-Z a-z 0-9 _ -` and space.
pub fn entries(value: &Value) -> Vec<(&str, &Value)> {
    const MAX_ENTRIES: usize = 16;
    const MAX_LENGTH: usize = 32;
    let plain = |name: &str| {
        let mut bytes = name.bytes();
        name.len() <= MAX_LENGTH && bytes.all(|byte| byte.is_ascii_alphanumeric() || b" _-".contains(&byte))
    };
    let entries = value.as_object().into_iter().flatten().filter(|(name, _)| plain(name));
    entries.map(|(name, value)| (name.as_str(), value)).take(MAX_ENTRIES).collect()
}

/// Number of elements of a JSON array; `None` if the value is not an array.
pub fn length(value: &Value) -> Option<f64> {
    value.as_array().map(|list| list.len() as f64)
}

/// Reads a field that contains an amount in BTC, and converts it to satoshis.
pub fn satoshis(value: &Value, field: &str) -> Option<f64> {
    number(value, field).map(|btc| (btc * 1e8).round())
}

/// Reads a field that contains a fee rate in BTC/kvB, and converts it to sat/vB.
pub fn sat_per_vbyte(value: &Value, field: &str) -> Option<f64> {
    satoshis(value, field).map(|per_kvb| per_kvb / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn amounts_are_exact_to_the_satoshi() {
        let value = json!({"total_fee": 0.29999999, "mempoolminfee": 0.00001234});
        assert_eq!(satoshis(&value, "total_fee"), Some(29_999_999.0));
        assert_eq!(sat_per_vbyte(&value, "mempoolminfee"), Some(1.234));
    }

    #[test]
    fn labels_from_the_node_are_few_and_plain() {
        let value = json!({"basic block filter index": 1, "quoted\"": 2, "l".repeat(33): 3});
        assert_eq!(entries(&value), [("basic block filter index", &json!(1))]);
        let many: serde_json::Map<_, _> = (0..1000).map(|n| (format!("index{n}"), json!(n))).collect();
        assert_eq!(entries(&Value::Object(many)).len(), 16);
        assert!(entries(&json!([1])).is_empty());
    }

    #[test]
    fn non_numbers_are_absent() {
        let value =
            json!({"null": null, "text": "7", "list": [7], "negative": -7, "huge": 1e300, "bool": true});
        for field in ["null", "text", "list", "missing", "bool"] {
            assert_eq!((number(&value, field), count(&value, field)), (None, None), "{field}");
        }
        assert_eq!((count(&value, "negative"), count(&value, "huge")), (None, None));
        assert_eq!(number(&json!("no object"), "size"), None);
        assert_eq!((flag(&value, "bool"), flag(&value, "text")), (Some(1.0), None));
    }
}
