//! The directory record as bytes. It has the same envelope and field format as a session's record, but a
//! different kind.
//!
//! | type | content |
//! |---|---|
//! | 1 | the generation: its mark (8 bytes), then the time at which it began (LEB128, milliseconds since 1970) |
//! | 2 | a session: id (16 bytes), flags (1 byte), the time of its sign-in (as above), the longest time that it may live after that (LEB128, milliseconds), the length of the label (LEB128), the label (UTF-8) |
//! | 3 | the time until which unlisted sessions may be alive (LEB128, milliseconds since 1970) |
//! | 7 | the tags of up to seven earlier writes, the newest first |
//!
//! A new generation begins each time all sessions, or all but one, are revoked. The lowest bit of the flags
//! marks a revoked session. Sessions are in the order of their sign-ins. Unknown fields, and bytes after a
//! label, are kept unchanged.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::clock::millis;
use crate::directory::record::{DirectoryRecord, Entry, Generation};
use crate::error::Result;
use crate::record::envelope::{
    EARLIER_TAGS, Reader, Undecodable, begin, earlier_tags, fields, once, put_field, put_number,
    put_tags,
};
use crate::record::tag::{Tag, Tags};
use crate::record::token::SessionId;
use crate::store::Kind;

const GENERATION: u8 = 1;
const SESSION: u8 = 2;
const INCOMPLETE_UNTIL: u8 = 3;

pub(crate) fn decode(bytes: &Bytes) -> Result<DirectoryRecord, Undecodable> {
    let (tag, reader) = fields(bytes, Kind::Directory)?;
    decode_fields(tag, reader, bytes).ok_or(Undecodable::Corrupt)
}

fn decode_fields(tag: Tag, mut reader: Reader<'_>, bytes: &Bytes) -> Option<DirectoryRecord> {
    let mut generation = None;
    let mut incomplete_until = None;
    let mut earlier = None;
    let mut entries = Vec::new();
    let mut unknown = Vec::new();
    while !reader.is_at_end() {
        let field = reader.byte()?;
        let mut content = reader.sized()?;
        match field {
            GENERATION => {
                let mark = *content.array()?;
                once(&mut generation, Generation { mark, since: content.whole(Reader::time)? })?;
            }
            SESSION => entries.push(entry(content, bytes)?),
            INCOMPLETE_UNTIL => once(&mut incomplete_until, content.whole(Reader::time)?)?,
            EARLIER_TAGS => once(&mut earlier, earlier_tags(&mut content)?)?,
            _ => unknown.push((field, bytes.slice(content.range()))),
        }
    }
    let tags = Tags::new(tag, earlier.unwrap_or_default());
    Some(DirectoryRecord { tags, generation, incomplete_until, entries, unknown })
}

fn entry(mut content: Reader<'_>, bytes: &Bytes) -> Option<Entry> {
    let id = SessionId::from_bytes(*content.array()?);
    let flags = content.byte()?;
    let (signed_in, life) = (content.time()?, Duration::from_millis(content.time()?.0));
    let label = std::str::from_utf8(content.sized()?.rest()).ok()?;
    Some(Entry {
        id,
        flags,
        signed_in,
        life,
        label: (!label.is_empty()).then(|| Arc::from(label)),
        unknown: bytes.slice(content.range()),
    })
}

pub(crate) fn encode(record: &DirectoryRecord) -> Bytes {
    let mut out = BytesMut::with_capacity(64 + 64 * record.entries.len());
    begin(&mut out, record.tags.newest(), Kind::Directory);
    let mut content = BytesMut::new();
    if let Some(Generation { mark, since }) = &record.generation {
        content.put_slice(mark);
        put_number(&mut content, since.0);
        put_field(&mut out, GENERATION, &content);
    }
    if let Some(incomplete_until) = record.incomplete_until {
        content.clear();
        put_number(&mut content, incomplete_until.0);
        put_field(&mut out, INCOMPLETE_UNTIL, &content);
    }
    put_tags(&mut out, &record.tags);
    for entry in &record.entries {
        content.clear();
        content.put_slice(entry.id.as_bytes());
        content.put_u8(entry.flags);
        put_number(&mut content, entry.signed_in.0);
        put_number(&mut content, millis(entry.life));
        let label = entry.label.as_deref().unwrap_or_default();
        put_number(&mut content, label.len() as u64);
        content.put_slice(label.as_bytes());
        content.put_slice(&entry.unknown);
        put_field(&mut out, SESSION, &content);
    }
    for (field, content) in &record.unknown {
        put_field(&mut out, *field, content);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Millis;
    use crate::directory::record::{DirectoryRecord, Entry, Generation};
    use crate::record::codec as sessions;
    use crate::record::envelope;
    use crate::record::envelope::Undecodable;
    use crate::record::sign_in::LABEL_BYTES;
    use crate::record::tag::{Tag, Tags};
    use crate::record::token::SessionId;

    fn entry(number: u8, label: &str) -> Entry {
        Entry {
            id: SessionId::from_bytes([number; 16]),
            flags: number,
            signed_in: Millis(1_800_000_000_000 + u64::from(number)),
            life: Duration::from_millis(86_400_000),
            label: (!label.is_empty()).then(|| label.into()),
            unknown: Bytes::new(),
        }
    }

    fn record() -> DirectoryRecord {
        let mut record =
            DirectoryRecord::new(Tags::first(Tag(*b"tag-tag-")).followed_by(Tag(*b"new-tag-")));
        record.generation = Some(Generation { mark: [9; 8], since: Millis(1_800_000_000_000) });
        record.entries = vec![entry(1, "Firefox on Linux"), entry(2, ""), entry(3, "téléphone")];
        record
    }

    #[test]
    fn directory_is_decoded_as_it_was_encoded() {
        let mut with_more = record();
        with_more.incomplete_until = Some(Millis(1_800_000_000_001));
        with_more.unknown.push((200, Bytes::from_static(b"later")));
        with_more.entries[1].unknown = Bytes::from_static(b"later");
        for record in [record(), with_more, DirectoryRecord::new(Tags::first(Tag([0; 8])))] {
            let bytes = encode(&record);
            assert_eq!(decode(&bytes).unwrap(), record);
            assert_eq!(envelope::tags(&bytes), Some(record.tags));
        }
    }

    #[test]
    fn layout_matches_the_documentation() {
        let bytes = encode(&record());
        assert_eq!(&bytes[..11], b"new-tag-\x01d\x01");
        assert_eq!(bytes[11], 8 + 6);
    }

    /// A session is not decoded as a directory, nor a directory as a session, and a newer format is not
    /// reported as corrupt.
    #[test]
    fn other_records_are_not_decoded_as_directories() {
        let bytes = encode(&record());
        assert_eq!(sessions::decode(bytes.clone()).unwrap_err(), Undecodable::Corrupt);
        let with = |index: usize, byte: u8| {
            let mut bytes = bytes.to_vec();
            bytes[index] = byte;
            decode(&bytes.into())
        };
        assert_eq!(with(9, b's').unwrap_err(), Undecodable::Corrupt);
        assert_eq!(with(8, 2).unwrap_err(), Undecodable::NewerFormat);
        assert_eq!(with(8, 0).unwrap_err(), Undecodable::Corrupt);
        for length in 0..bytes.len() {
            let cut = bytes.slice(..length);
            // If the cut falls between two fields, the result is a shorter directory.
            if let Ok(shorter) = decode(&cut) {
                assert!(shorter.entries.len() < 3);
            }
        }
    }

    #[test]
    fn largest_directory_fits_in_every_store() {
        let mut record = record();
        let label = "x".repeat(LABEL_BYTES);
        // More than can be listed, because some may be revoked but not yet removed.
        record.entries = (0..2000_u16).map(|number| entry(number as u8, &label)).collect();
        assert!(encode(&record).len() < 1_000_000 / 2);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_decoded_or_refused(head in any::<bool>(), bytes: Vec<u8>) {
            let bytes = match head {
                true => [&b"tag-tag-\x01d"[..], &bytes].concat(),
                false => bytes,
            };
            if let Ok(record) = decode(&bytes.into()) {
                prop_assert_eq!(decode(&encode(&record)).unwrap(), record);
            }
        }
    }
}
