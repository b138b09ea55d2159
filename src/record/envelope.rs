//! What all records have in common: the write tags, the format, the kind, and fields with a length.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::clock::Millis;
use crate::record::tag::{Tag, Tags};
use crate::store::{Kind, TAG_LEN};

pub(crate) const FORMAT: u8 = 1;
pub(crate) const FIELDS_START: usize = TAG_LEN + 2;

pub(crate) const EARLIER_TAGS: u8 = 7;

/// Why bytes are not a session's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undecodable {
    /// They are not a record at all, or a damaged one.
    Corrupt,
    /// A later release wrote them.
    NewerFormat,
}

/// The tag of the write that left these bytes; `None` if they are too short for one.
pub(crate) fn newest_tag(bytes: &[u8]) -> Option<Tag> {
    bytes.first_chunk().copied().map(Tag)
}

/// The tags of the writes that led to these bytes, if they are a record of whatever kind.
pub(crate) fn tags(bytes: &Bytes) -> Option<Tags> {
    let kinds = [Kind::Session, Kind::Directory];
    let (tag, mut reader) = kinds.into_iter().find_map(|kind| fields(bytes, kind).ok())?;
    while !reader.is_at_end() {
        let field = reader.byte()?;
        let mut content = reader.sized()?;
        if field == EARLIER_TAGS {
            return earlier_tags(&mut content).map(|earlier| Tags::new(tag, earlier));
        }
    }
    Some(Tags::first(tag))
}

/// The write tag and the fields of a record of this kind.
pub(crate) fn fields(bytes: &Bytes, kind: Kind) -> Result<(Tag, Reader<'_>), Undecodable> {
    let tag = newest_tag(bytes).ok_or(Undecodable::Corrupt)?;
    match bytes.get(TAG_LEN..FIELDS_START) {
        // The kind is part of format 1; a later format may put it elsewhere.
        Some(&[format, _]) if format > FORMAT => Err(Undecodable::NewerFormat),
        Some(&[FORMAT, letter]) if char::from(letter) == kind.letter() => {
            Ok((tag, Reader::new(bytes, FIELDS_START)))
        }
        _ => Err(Undecodable::Corrupt),
    }
}

pub(crate) fn earlier_tags<'a>(content: &mut Reader<'a>) -> Option<&'a [[u8; TAG_LEN]]> {
    let (tags, rest) = content.rest().as_chunks();
    (rest.is_empty() && tags.len() < Tags::REMEMBERED).then_some(tags)
}

/// A field that may occur once only.
pub(crate) fn once<T>(field: &mut Option<T>, value: T) -> Option<()> {
    field.replace(value).is_none().then_some(())
}

/// A window on the record's bytes. Every method is `None` where the window ends too early.
pub(crate) struct Reader<'a> {
    /// What came before the window, and the window.
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.position == self.bytes.len()
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.position)?;
        self.position += 1;
        Some(byte)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let array = self.bytes.get(self.position..)?.first_chunk()?;
        self.position += N;
        Some(array)
    }

    /// Where what is left lies in the record.
    pub(crate) fn range(&self) -> Range<usize> {
        self.position..self.bytes.len()
    }

    /// A LEB128 number in its shortest form.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let rest = self.bytes.get(self.position..)?;
        // Most are one byte long.
        if let Some(&byte @ ..0x80) = rest.first() {
            self.position += 1;
            return Some(u64::from(byte));
        }
        let mut number = 0;
        for (place, &byte) in rest.iter().take(10).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                // A zero at the end would be a longer form; only one bit of the tenth byte has room.
                let is_shortest = byte != 0 && (place < 9 || byte == 1);
                self.position += place + 1;
                return is_shortest.then_some(number);
            }
        }
        None
    }

    pub(crate) fn time(&mut self) -> Option<Millis> {
        self.number().map(Millis)
    }

    pub(crate) fn sized(&mut self) -> Option<Self> {
        let length = usize::try_from(self.number()?).ok()?;
        let start = self.position;
        let end = start.checked_add(length)?;
        let bytes = self.bytes.get(..end)?;
        self.position = end;
        Some(Self { bytes, position: start })
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.position..];
        self.position = self.bytes.len();
        rest
    }

    /// What `read` returns, if it leaves nothing over.
    pub(crate) fn whole<T>(&mut self, read: impl Fn(&mut Self) -> Option<T>) -> Option<T> {
        let value = read(self)?;
        self.is_at_end().then_some(value)
    }
}

/// What every record begins with.
pub(crate) fn begin(out: &mut BytesMut, tag: Tag, kind: Kind) {
    out.put_slice(&tag.0);
    out.put_u8(FORMAT);
    out.put_u8(kind.letter() as u8);
}

/// The tags of the writes before the newest one.
pub(crate) fn put_tags(out: &mut BytesMut, tags: &Tags) {
    let older = tags.older();
    if !older.is_empty() {
        out.put_u8(EARLIER_TAGS);
        put_number(out, (older.len() * TAG_LEN) as u64);
        older.iter().for_each(|tag| out.put_slice(&tag.0));
    }
}

pub(crate) fn put_field(out: &mut BytesMut, field: u8, content: &[u8]) {
    out.put_u8(field);
    put_number(out, content.len() as u64);
    out.put_slice(content);
}

pub(crate) fn put_numbers(out: &mut BytesMut, field: u8, numbers: &[u64], tail: &[u8]) {
    let length: usize = numbers.iter().map(|number| number_length(*number)).sum();
    out.put_u8(field);
    put_number(out, (length + tail.len()) as u64);
    numbers.iter().for_each(|number| put_number(out, *number));
    out.put_slice(tail);
}

pub(crate) fn put_number(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

pub(crate) fn number_length(number: u64) -> usize {
    (u64::BITS - number.leading_zeros()).div_ceil(7).max(1) as usize
}
