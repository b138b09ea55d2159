//! Reads values from an answer.

use ::redis::Value;

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// Returns the value of a field, from a list of names and values or from the map that RESP3 uses in its
/// place.
pub(super) fn field<'a>(fields: &'a Value, name: &str) -> Option<&'a Value> {
    let is_named = |field: &Value| text(field) == Some(name);
    match fields {
        Value::Array(list) => list.chunks_exact(2).find(|pair| is_named(&pair[0]))?.get(1),
        Value::Map(map) => map.iter().find(|(field, _)| is_named(field)).map(|(_, value)| value),
        _ => None,
    }
}

/// Returns a server's role from its answer to `ROLE`.
pub(super) fn role(answer: &Value) -> Option<&str> {
    match answer {
        Value::Array(role) => text(role.first()?),
        _ => None,
    }
}
