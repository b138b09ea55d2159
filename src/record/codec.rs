//! The encoding of session records.
//!
//! ```text
//! record = tag[8] format[1] kind[1] field*
//! field  = type[1] length[LEB128] content[length]
//! ```
//!
//! | type | content |
//! |---|---|
//! | 1 | the secret's digest, 32 bytes |
//! | 2 | when the session was created and last used, and its idle and absolute deadlines: four LEB128 numbers, milliseconds since 1970 |
//! | 3 | when the user last authenticated: LEB128, milliseconds since 1970 |
//! | 4 | the lifetime set for this session: idle and absolute timeout as LEB128 in milliseconds, persistence as one byte |
//! | 5 | principal, UTF-8 |
//! | 6 | the number of sign-ins, step-ups and `revoke_others` calls: LEB128 |
//! | 7 | the tags of up to seven earlier writes, newest first |
//! | 8 | the time limit set with `Session::end_by`: LEB128, milliseconds since 1970 |
//! | 9 | empty; present if new sign-ins are rejected at the limit on concurrent sessions, and the browser has not yet sent back the cookie from the last sign-in |
//! | 32 | a value: flags (1 byte), length of the key (LEB128), key (UTF-8), the value as JSON |
//!
//! Values come last and in ascending order of their keys. Fields of unknown types are kept unchanged, so an
//! older release preserves data that a newer release has written. A change that older releases must not
//! ignore raises the format number instead.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::clock::Millis;
use crate::error::Result;
use crate::record::envelope::{
    EARLIER_TAGS, FIELDS_START, Reader, Undecodable, begin, earlier_tags, fields, number_length,
    once, put_field, put_number, put_numbers, put_tags,
};
use crate::record::header::Header;
use crate::record::lifetime::{Chosen, Clocks, Lifetime, Persistence};
use crate::record::loaded::Record;
use crate::record::tag::{Tag, Tags};
use crate::record::token::SecretDigest;
use crate::record::values::{Entry, Item, Values};
#[cfg(any(test, fuzzing, feature = "testing"))]
use crate::record::values::{Items, Value};
use crate::store::{Kind, TAG_LEN};

/// A size in bytes that the header of a signed-in session rarely exceeds.
const HEADER_SIZE: usize = 256;

const DIGEST: u8 = 1;
const CLOCKS: u8 = 2;
const AUTHENTICATED: u8 = 3;
const CHOSEN: u8 = 4;
const PRINCIPAL: u8 = 5;
const SIGN_INS: u8 = 6;
const END_BY: u8 = 8;
const UNCONFIRMED: u8 = 9;
const VALUE: u8 = 32;

/// The deadline of a tombstone. It is in the past for every clock.
pub(crate) const TOMBSTONE_DEADLINE: Millis = Millis(0);

/// Returns a tombstone: an expired record without a principal, which occupies a session id. Its digest
/// matches no known secret.
pub(crate) fn tombstone(tag: Tag, now: Millis) -> Bytes {
    let digest = SecretDigest::from_bytes([0; SecretDigest::LEN]);
    let mut header = Header::new(digest, now, &Lifetime::default(), tag);
    header.clocks.end_by(TOMBSTONE_DEADLINE);
    encode_indexed(&header, &[]).0
}

pub(crate) fn decode(bytes: Bytes) -> Result<Record, Undecodable> {
    let (tag, _) = fields(&bytes, Kind::Session)?;
    decode_fields(tag, bytes).ok_or(Undecodable::Corrupt)
}

/// The fields of a record that have been read so far.
#[derive(Default)]
struct Fields<'a> {
    digest: Option<[u8; SecretDigest::LEN]>,
    /// Created, last seen, idle deadline, absolute deadline.
    clocks: Option<[Millis; 4]>,
    authenticated: Option<Millis>,
    chosen: Option<Chosen>,
    principal: Option<Arc<str>>,
    end_by: Option<Millis>,
    sign_ins: Option<u32>,
    earlier: Option<&'a [[u8; TAG_LEN]]>,
    unconfirmed: Option<()>,
    unknown: Vec<(u8, Bytes)>,
    entries: Vec<Entry>,
}

fn decode_fields(tag: Tag, bytes: Bytes) -> Option<Record> {
    let mut fields = Fields::default();
    let mut reader = Reader::new(&bytes, FIELDS_START);
    while !reader.is_at_end() {
        let field = reader.byte()?;
        fields.read(field, reader.sized()?, &bytes)?;
    }
    let (header, entries) = fields.into_header(tag)?;
    Some(Record { header, values: Values::new(bytes, entries) })
}

impl<'a> Fields<'a> {
    /// Reads one field. Returns `None` if the field is damaged or occurs twice.
    fn read(&mut self, field: u8, mut content: Reader<'a>, bytes: &'a Bytes) -> Option<()> {
        match field {
            DIGEST => once(&mut self.digest, content.rest().try_into().ok()?),
            CLOCKS => {
                let times = [content.time()?, content.time()?, content.time()?, content.time()?];
                content.is_at_end().then_some(())?;
                once(&mut self.clocks, times)
            }
            AUTHENTICATED => once(&mut self.authenticated, content.whole(Reader::time)?),
            CHOSEN => once(&mut self.chosen, content.whole(read_chosen)?),
            END_BY => once(&mut self.end_by, content.whole(Reader::time)?),
            PRINCIPAL => {
                once(&mut self.principal, std::str::from_utf8(content.rest()).ok()?.into())
            }
            SIGN_INS => {
                once(&mut self.sign_ins, u32::try_from(content.whole(Reader::number)?).ok()?)
            }
            EARLIER_TAGS => once(&mut self.earlier, earlier_tags(&mut content)?),
            UNCONFIRMED => once(&mut self.unconfirmed, content.is_at_end().then_some(())?),
            VALUE => self.push(read_entry(content, bytes)?, bytes),
            _ => {
                self.unknown.push((field, bytes.slice(content.range())));
                Some(())
            }
        }
    }

    /// Adds a value. Returns `None` if its key does not come after the previous key.
    fn push(&mut self, entry: Entry, bytes: &[u8]) -> Option<()> {
        if let Some(previous) = self.entries.last() {
            (bytes[previous.key()] < bytes[entry.key()]).then_some(())?;
        } else {
            // Enough for most records, so the list need not grow again.
            self.entries.reserve(16);
        }
        self.entries.push(entry);
        Some(())
    }

    /// Returns the header and the positions of the values. Returns `None` if a required field is missing.
    fn into_header(self, tag: Tag) -> Option<(Header, Vec<Entry>)> {
        let [created, last_seen, idle_deadline, absolute_deadline] = self.clocks?;
        let authenticated = self.authenticated;
        let header = Header {
            tags: Tags::new(tag, self.earlier.unwrap_or_default()),
            digest: SecretDigest::from_bytes(self.digest?),
            clocks: Clocks { created, authenticated, last_seen, idle_deadline, absolute_deadline },
            chosen: self.chosen,
            end_by: self.end_by,
            principal: self.principal,
            sign_ins: self.sign_ins.unwrap_or(0),
            is_unconfirmed: self.unconfirmed.is_some(),
            unknown: self.unknown,
        };
        Some((header, self.entries))
    }
}

fn read_chosen(content: &mut Reader<'_>) -> Option<Chosen> {
    let (idle, absolute) = (content.number()?, content.number()?);
    let persistence = match content.byte()? {
        0 => Persistence::Persistent,
        1 => Persistence::BrowserSession,
        _ => return None,
    };
    Some(Chosen { idle, absolute, persistence })
}

fn read_entry(mut content: Reader<'_>, bytes: &[u8]) -> Option<Entry> {
    let flags = content.byte()?;
    let key = content.sized()?.range();
    let text = &bytes[key.clone()];
    // Nearly every key is ASCII, and checking for ASCII is faster than checking for UTF-8.
    (text.is_ascii() || std::str::from_utf8(text).is_ok()).then_some(())?;
    Entry::new(key, flags, content.range())
}

/// Encodes a record. `values` must be in ascending order of their keys.
#[cfg(any(test, fuzzing, feature = "testing"))]
pub(crate) fn encode(header: &Header, values: &[(&str, Value)]) -> Bytes {
    let items: Items<'_> = values.iter().map(|(key, value)| Item::new(key, value)).collect();
    encode_indexed(header, &items).0
}

/// Encodes a record and returns its bytes with the positions of the values, as decoding would find them. `values` must
/// be in ascending order of their keys.
pub(crate) fn encode_indexed(header: &Header, values: &[Item<'_>]) -> (Bytes, Option<Vec<Entry>>) {
    let sizes = values.iter().map(|value| value.key.len() + value.bytes.len() + 16);
    let mut out = BytesMut::with_capacity(HEADER_SIZE + sizes.sum::<usize>());
    let mut index = Vec::with_capacity(values.len());
    put_header(&mut out, header);
    for value in values {
        let key_length = number_length(value.key.len() as u64) + value.key.len();
        out.put_u8(VALUE);
        put_number(&mut out, (1 + key_length + value.bytes.len()) as u64);
        out.put_u8(value.flags);
        put_number(&mut out, value.key.len() as u64);
        let key_start = out.len();
        out.put_slice(value.key);
        let value_start = out.len();
        out.put_slice(value.bytes);
        index.extend(Entry::new(key_start..value_start, value.flags, value_start..out.len()));
    }
    let is_whole = index.len() == values.len();
    (out.freeze(), is_whole.then_some(index))
}

fn put_header(out: &mut BytesMut, header: &Header) {
    begin(out, header.tags.newest(), Kind::Session);
    put_field(out, DIGEST, header.digest.as_bytes());
    let clocks = &header.clocks;
    let times = [clocks.created, clocks.last_seen, clocks.idle_deadline, clocks.absolute_deadline];
    put_numbers(out, CLOCKS, &times.map(|time| time.0), &[]);
    if let Some(authenticated) = clocks.authenticated {
        put_numbers(out, AUTHENTICATED, &[authenticated.0], &[]);
    }
    if let Some(chosen) = header.chosen {
        let persistence = u8::from(chosen.persistence == Persistence::BrowserSession);
        put_numbers(out, CHOSEN, &[chosen.idle, chosen.absolute], &[persistence]);
    }
    if let Some(end_by) = header.end_by {
        put_numbers(out, END_BY, &[end_by.0], &[]);
    }
    if let Some(principal) = &header.principal {
        put_field(out, PRINCIPAL, principal.as_bytes());
    }
    if header.sign_ins > 0 {
        put_numbers(out, SIGN_INS, &[u64::from(header.sign_ins)], &[]);
    }
    put_tags(out, &header.tags);
    if header.is_unconfirmed {
        put_field(out, UNCONFIRMED, &[]);
    }
    for (field, content) in &header.unknown {
        put_field(out, *field, content);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Millis;
    use crate::record::envelope::{self, FORMAT};
    use crate::record::envelope::{
        EARLIER_TAGS, Reader, Undecodable, number_length, put_field, put_number,
    };
    use crate::record::header::Header;
    use crate::record::lifetime::Lifetime;
    use crate::record::tag::Tag;
    use crate::record::token::SecretDigest;
    use crate::record::values::{Value, Values};

    use crate::store::{Kind, TAG_LEN};

    fn header() -> Header {
        let digest = SecretDigest::from_bytes([7; 32]);
        let now = Millis(1_800_000_000_000);
        Header::new(digest, now, &Lifetime::default(), Tag(*b"tag-tag-"))
    }

    fn full_header() -> Header {
        let mut header = header();
        header.clocks.authenticated = Some(Millis(1_800_000_000_001));
        header.chosen = Some(Lifetime::default().browser_session().into());
        header.principal = Some("alice".into());
        header.end_by = Some(Millis(1_800_000_000_002));
        header.sign_ins = 300;
        header.is_unconfirmed = true;
        for write in 0..20 {
            header.tags = header.tags.followed_by(Tag([write; 8]));
        }
        header
    }

    fn value(json: &'static str) -> Value {
        Value::new(Bytes::from_static(json.as_bytes()), json.len().is_multiple_of(2))
    }

    fn encoded(header: &Header, values: &[(&'static str, &'static str)]) -> Bytes {
        let values: Vec<_> = values.iter().map(|(key, json)| (*key, value(json))).collect();
        encode(header, &values)
    }

    fn with_field(field: u8, content: &[u8]) -> Bytes {
        let mut bytes = BytesMut::from(&encoded(&header(), &[])[..]);
        put_field(&mut bytes, field, content);
        bytes.freeze()
    }

    #[test]
    fn encoded_record_decodes_to_same_record() {
        for header in [header(), full_header()] {
            let record =
                decode(encoded(&header, &[("a", "1"), ("b", "[2]"), ("bb", "\"x\"")])).unwrap();
            assert_eq!(record.header, header);
            let (bytes, index) =
                encode_indexed(&header, &record.values.items().collect::<Vec<_>>());
            let indexed = Values::new(bytes, index.unwrap());
            assert!(
                indexed.items().eq(record.values.items()),
                "the index differs from the decoded one"
            );
            assert_eq!(record.values.len(), 3);
            assert_eq!(record.values.get("a"), Some(value("1")));
            assert_eq!(record.values.get("bb"), Some(value("\"x\"")));
            assert_eq!(record.values.get("c"), None);
        }
    }

    #[test]
    fn record_layout_matches_documentation() {
        let bytes = encoded(&header(), &[("k", "1")]);
        assert_eq!(&bytes[..12], b"tag-tag-\x01s\x01\x20");
        assert_eq!(&bytes[44..46], [CLOCKS, 24]);
        assert_eq!(&bytes[70..], b"\x20\x04\x00\x01k1");
    }

    #[test]
    fn record_remembers_last_eight_write_tags() {
        let tags = full_header().tags;
        assert_eq!(tags.older().len(), 7);
        assert!(tags.contains(Tag([19; 8])) && tags.contains(Tag([12; 8])));
        assert!(!tags.contains(Tag([11; 8])));
        assert_eq!(envelope::tags(&encoded(&full_header(), &[])), Some(tags));
    }

    #[test]
    fn unknown_fields_and_flags_survive_round_trip() {
        let mut bytes = BytesMut::from(&encoded(&header(), &[])[..]);
        put_field(&mut bytes, 200, b"later");
        put_field(&mut bytes, VALUE, b"\xf0\x01k1");
        let record = decode(bytes.clone().freeze()).unwrap();
        assert_eq!(record.header.unknown, [(200, Bytes::from_static(b"later"))]);
        assert_eq!(
            encode_indexed(&record.header, &record.values.items().collect::<Vec<_>>()).0,
            bytes
        );
    }

    #[test]
    fn chosen_lifetime_survives_round_trip() {
        for lifetime in [Lifetime::default(), Lifetime::default().browser_session()] {
            let header = Header { chosen: Some(lifetime.into()), ..header() };
            assert_eq!(decode(encoded(&header, &[])).unwrap().header, header);
        }
    }

    #[test]
    fn newer_format_is_distinguished_from_damage() {
        let mut bytes = BytesMut::from(&encoded(&header(), &[])[..]);
        bytes[TAG_LEN] = FORMAT + 1;
        assert_eq!(decode(bytes.clone().freeze()).unwrap_err(), Undecodable::NewerFormat);
        bytes[TAG_LEN] = 0;
        assert_eq!(decode(bytes.freeze()).unwrap_err(), Undecodable::Corrupt);
    }

    #[test]
    fn directory_record_is_not_decoded_as_session() {
        let mut bytes = BytesMut::from(&encoded(&header(), &[])[..]);
        bytes[TAG_LEN + 1] = Kind::Directory.letter() as u8;
        assert_eq!(decode(bytes.freeze()).unwrap_err(), Undecodable::Corrupt);
    }

    #[test]
    fn damaged_record_is_rejected() {
        let damaged = [
            with_field(DIGEST, &[7; 32]),
            with_field(AUTHENTICATED, &[]),
            with_field(AUTHENTICATED, &[1, 1]),
            with_field(AUTHENTICATED, &[0x80, 0]),
            with_field(AUTHENTICATED, &[0xff; 11]),
            with_field(UNCONFIRMED, &[0]),
            with_field(CHOSEN, &[1, 1, 2]),
            with_field(PRINCIPAL, &[0xff]),
            with_field(SIGN_INS, &[0xff, 0xff, 0xff, 0xff, 0x7f]),
            with_field(EARLIER_TAGS, &[0; 7]),
            with_field(EARLIER_TAGS, &[0; 64]),
            with_field(VALUE, &[0, 2, b'k']),
            with_field(VALUE, &[0, 1, 0xff]),
            encoded(&header(), &[("b", "1"), ("a", "1")]),
            encoded(&header(), &[("a", "1"), ("a", "1")]),
            Bytes::from_static(b"tag-tag-\x01s"),
            Bytes::from_static(b"tag"),
            Bytes::new(),
        ];
        for bytes in damaged {
            assert_eq!(decode(bytes.clone()).unwrap_err(), Undecodable::Corrupt, "{bytes:?}");
        }
        let whole = encoded(&full_header(), &[("a", "1")]);
        let cuts = (0..whole.len()).filter(|end| decode(whole.slice(..*end)).is_ok()).count();
        // A record that is truncated between two fields may still be valid. A record that is truncated inside
        // a field never is.
        assert!(cuts <= 8, "{cuts}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_decoded_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(Bytes::from(bytes));
        }

        #[test]
        fn damaged_record_is_decoded_losslessly_or_rejected(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
        ) {
            let mut bytes = encoded(&full_header(), &[("a", "1"), ("b", "2")]).to_vec();
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            if let Ok(record) = decode(Bytes::from(bytes.clone())) {
                // A record that can be decoded is written back without loss.
                let again = encode_indexed(&record.header, &record.values.items().collect::<Vec<_>>()).0;
                prop_assert_eq!(decode(again).unwrap().header, record.header);
            }
        }

        #[test]
        fn every_number_survives_round_trip(number in any::<u64>()) {
            let mut bytes = BytesMut::new();
            put_number(&mut bytes, number);
            prop_assert_eq!(bytes.len(), number_length(number));
            let mut reader = Reader::new(&bytes, 0);
            prop_assert_eq!(reader.whole(Reader::number), Some(number));
        }

        #[test]
        fn arbitrary_keys_and_values_survive_round_trip(
            pairs in prop::collection::btree_map(".{0,300}", prop::collection::vec(any::<u8>(), 0..300), 0..8)
        ) {
            let values: Vec<_> = pairs.iter().map(|(key, bytes)| {
                (key.as_str(), Value::new(Bytes::copy_from_slice(bytes), true))
            }).collect();
            let record = decode(encode(&header(), &values)).unwrap();
            prop_assert_eq!(record.values.len(), pairs.len());
            for (key, bytes) in &pairs {
                prop_assert_eq!(&record.values.get(key).unwrap().bytes[..], &bytes[..]);
            }
        }
    }
}
