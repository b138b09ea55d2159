//! Assertions about private parts, for the fuzz targets. Nothing here is part of the public interface.

#![allow(missing_docs, clippy::unwrap_used, clippy::missing_panics_doc, reason = "they are tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Millis;
use crate::cookie::parse::Presented;
use crate::head::query;
use crate::record::codec;
use crate::record::delta::{Change, Delta, View};
use crate::record::envelope::Undecodable;
use crate::record::flash;
use crate::record::header::Header;
use crate::record::lifetime::Lifetime;
use crate::record::loaded::Record;
use crate::record::tag::Tag;
use crate::record::token::{SecretDigest, Token};
use crate::record::values::{Item, OnSignIn, Value, Values};

/// Checks that any header fields yield at most three tokens, each of which occurs in the fields. Also checks
/// that a well-formed token at the end is found whatever precedes it, unless three others were found first.
pub fn cookie_header(data: &[u8]) {
    const OURS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789-_ABCDE";
    let fields: Vec<_> = data.split(|byte| *byte == b'\n').collect();
    let texts = |presented: &Presented| -> Vec<String> {
        let text = |token: Token| {
            let mut text = String::new();
            token.encode_into(&mut text);
            text
        };
        presented.tokens().map(text).collect()
    };
    let presented = Presented::parse(fields.iter().copied(), b"id=");
    let found = texts(&presented);
    assert!(found.len() <= 3 && presented.has_tokens() != found.is_empty());
    assert!(presented.is_named() || found.is_empty());
    for (place, text) in found.iter().enumerate() {
        let is_there =
            |field: &&[u8]| field.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(fields.iter().any(is_there) && !found[..place].contains(text));
    }
    assert_eq!(data.windows(3).any(|part| part == b"id=") || !presented.is_named(), true);
    let last = fields.last().copied().unwrap_or_default();
    let last = [last, b"; id=", OURS].concat();
    let more = fields[..fields.len() - 1].iter().copied().chain([&last[..]]);
    let with_ours = texts(&Presented::parse(more, b"id="));
    let is_found = with_ours.iter().any(|text| text.as_bytes() == OURS);
    assert!(is_found || found.len() == 3, "{found:?} {with_ours:?}");
}

/// Checks that a decoded record can be encoded and decoded again to the same record, including all unknown
/// parts.
pub fn record_decode(data: &[u8]) {
    let valid = codec::encode(&header(), &[]);
    for bytes in [data.to_vec(), [&valid[..], data].concat()] {
        let record = match codec::decode(Bytes::from(bytes.clone())) {
            Ok(record) => record,
            Err(Undecodable::NewerFormat) => {
                assert!(bytes[8] > 1);
                continue;
            }
            Err(Undecodable::Corrupt) => continue,
        };
        let encoded = encoded(&record);
        let again = codec::decode(encoded.clone()).unwrap();
        assert_eq!(again.header, record.header);
        assert!(again.values.items().eq(record.values.items()));
        assert_eq!(self::encoded(&again), encoded);
        // The encoding is the shortest possible, so nothing was added.
        assert!(encoded.len() <= bytes.len());
        for item in record.values.items() {
            let key = std::str::from_utf8(item.key).unwrap();
            let value = record.values.get(key).unwrap();
            assert!(Item::new(key, &value) == item);
        }
    }
}

fn encoded(record: &Record) -> Bytes {
    codec::encode_indexed(&record.header, &record.values.items().collect::<Vec<_>>()).0
}

fn header() -> Header {
    let digest = SecretDigest::from_bytes([7; 32]);
    Header::new(digest, Millis(1_800_000_000_000), &Lifetime::default(), Tag(*b"tag-tag-"))
}

type Model = BTreeMap<String, (Vec<u8>, bool)>;

/// Checks that a list of changes has the same effect on a record as on a plain map, both on the record for
/// which it was made and on a different record.
pub fn delta_replay(data: &[u8]) {
    let mut data = data.iter().copied();
    let mut bases: [Model; 2] = Default::default();
    for base in &mut bases {
        for _ in 0..data.next().unwrap_or(0) % 6 {
            let letter = data.next().unwrap_or(0);
            base.insert(key(letter), (vec![b'0' + letter % 10], letter & 0x80 != 0));
        }
    }
    let sign_in = match data.next().unwrap_or(0) & 1 {
        1 => OnSignIn::First,
        _ => OnSignIn::Nobody,
    };
    let [here, there] = bases.each_ref().map(values);
    let mut delta = Delta::default();
    // `None` clears the values.
    let mut changes: Vec<Option<(Arc<str>, Change)>> = Vec::new();
    while let (Some(deed), Some(letter)) = (data.next(), data.next()) {
        let key: Arc<str> = key(letter).into();
        let survives = letter & 0x80 != 0;
        let (change, value) = match deed % 6 {
            0 => {
                changes.push(None);
                delta.clear();
                continue;
            }
            1 => {
                let value = Value::new(Bytes::from(vec![deed]), survives);
                (Change::Set(value.clone()), Some(value))
            }
            2 => (Change::Remove, None),
            3 => {
                let seen = here.get(&key).map(|value| value.bytes).unwrap_or_default();
                (Change::Take { seen }, None)
            }
            4 => {
                let message = Bytes::from(format!("[\"info\",\"{deed}\"]"));
                let change = Change::Append { message, most: 100 };
                let value = delta.view().changed(&here, &key, &change).unwrap();
                (change, value)
            }
            _ => {
                let function = Arc::new(|current: Option<&[u8]>| Ok(grown(current)));
                let current = delta.view().get(&here, &key).map(|value| value.bytes);
                let value = Value::new(grown(current.as_deref()), survives);
                (Change::Update { survives, function }, Some(value))
            }
        };
        changes.push(Some((key.clone(), change.clone())));
        delta.push((&*key).into(), change, value);
    }
    let model = |base: &Model, sign_in: OnSignIn| {
        let mut model = base.clone();
        model.retain(|_, (_, survives)| *survives || sign_in == OnSignIn::Nobody);
        for change in &changes {
            let Some((key, change)) = change else {
                model.clear();
                continue;
            };
            match change {
                Change::Set(value) => {
                    let slot = (value.bytes.to_vec(), value.outlives(OnSignIn::First));
                    model.insert(key.to_string(), slot);
                }
                Change::Remove | Change::Take { .. } => {
                    model.remove(&**key);
                }
                Change::Update { survives, .. } => {
                    let current = model.get(&**key).map(|(bytes, _)| &bytes[..]);
                    let bytes = grown(current).to_vec();
                    model.insert(key.to_string(), (bytes, *survives));
                }
                Change::Append { message, most } => {
                    let current = model.get(&**key).map(|(bytes, _)| &bytes[..]);
                    let bytes = flash::appended(current, message, *most).to_vec();
                    model.insert(key.to_string(), (bytes, true));
                }
            }
        }
        model
    };
    agrees(delta.view(), &here, &bases[0], &model(&bases[0], OnSignIn::Nobody));
    let replayed = delta.replay(&there, sign_in).unwrap();
    agrees(&replayed, &there, &bases[1], &model(&bases[1], sign_in));
    let is_untouched = changes.iter().flatten().all(|(key, change)| match change {
        Change::Take { seen } => there.get(key).is_some_and(|value| value.bytes == *seen),
        _ => true,
    });
    assert_eq!(delta.check_taken(&there).is_ok(), is_untouched);
}

fn agrees(view: &View, base: &Values, before: &Model, model: &Model) {
    let values: Model = view
        .items(base)
        .into_iter()
        .map(|item| {
            let key = String::from_utf8(item.key.to_vec()).unwrap();
            (key, (item.bytes.to_vec(), item.outlives(OnSignIn::First)))
        })
        .collect();
    assert_eq!(values, *model);
    assert_eq!(view.differs_from(base), before != model);
    assert_eq!(view.is_empty(base), model.is_empty());
    for letter in 0..8 {
        let value = view.get(base, &key(letter)).map(|value| value.bytes.to_vec());
        assert_eq!(value.as_ref(), model.get(&key(letter)).map(|(bytes, _)| bytes));
    }
}

fn key(letter: u8) -> String {
    char::from(b'a' + letter % 8).to_string()
}

fn grown(current: Option<&[u8]>) -> Bytes {
    [current.unwrap_or_default(), b"+"].concat().into()
}

fn values(model: &Model) -> Values {
    let values: Vec<_> = model
        .iter()
        .map(|(key, (bytes, survives))| (&**key, Value::new(bytes.clone().into(), *survives)))
        .collect();
    codec::decode(codec::encode(&header(), &values)).unwrap().values
}

/// Returns the value of a field in a query or form.
pub fn field_decoded(text: &[u8], name: &str) -> Option<String> {
    query::field(text, name)
}

/// Returns a query with one field.
pub fn field_encoded(name: &str, value: &str) -> String {
    let mut text = format!("{name}=");
    query::encode_value(value, &mut text);
    text
}
