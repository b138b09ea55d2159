//! The parts that all records have in common: the write tags, the format, the kind, and length-prefixed
//! fields.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::clock::Millis;
use crate::record::tag::{Tag, Tags};
use crate::store::{Kind, TAG_LEN};

pub(crate) const FORMAT: u8 = 1;
pub(crate) const FIELDS_START: usize = TAG_LEN + 2;

pub(crate) const EARLIER_TAGS: u8 = 7;

/// Why bytes cannot be decoded as a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undecodable {
    /// The bytes are damaged, or are not a record of the expected kind.
    Corrupt,
    /// A newer release wrote the bytes in a format that this release does not know.
    NewerFormat,
}

/// Returns the tag of the newest write, or `None` if the bytes are too short.
pub(crate) fn newest_tag(bytes: &[u8]) -> Option<Tag> {
    bytes.first_chunk().copied().map(Tag)
}

/// Returns the write tags of a record of any kind.
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

/// Returns the newest write tag of a record of this kind, and a reader of its fields.
pub(crate) fn fields(bytes: &Bytes, kind: Kind) -> Result<(Tag, Reader<'_>), Undecodable> {
    let tag = newest_tag(bytes).ok_or(Undecodable::Corrupt)?;
    match bytes.get(TAG_LEN..FIELDS_START) {
        // A later format may store the kind elsewhere, so the format is checked first.
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

/// Sets a field that may occur only once. Returns `None` if it was already set.
pub(crate) fn once<T>(field: &mut Option<T>, value: T) -> Option<()> {
    field.replace(value).is_none().then_some(())
}

/// A reader for a part of the record. Its methods return `None` if that part ends too early.
pub(crate) struct Reader<'a> {
    /// The record up to the end of the part.
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

    /// Returns the position of the unread bytes in the record.
    pub(crate) fn range(&self) -> Range<usize> {
        self.position..self.bytes.len()
    }

    /// Reads a LEB128 number. Returns `None` if it is incomplete, has more than 64 bits or is not in its
    /// shortest form.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let rest = self.bytes.get(self.position..)?;
        // Most numbers are one byte long.
        if let Some(&byte @ ..0x80) = rest.first() {
            self.position += 1;
            return Some(u64::from(byte));
        }
        let mut number = 0;
        for (place, &byte) in rest.iter().take(10).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                // A number that ends in a zero byte is not in its shortest form, and a 64-bit number uses
                // only one bit of the tenth byte.
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

    /// Returns the result of `read` if that function reads all remaining bytes.
    pub(crate) fn whole<T>(&mut self, read: impl Fn(&mut Self) -> Option<T>) -> Option<T> {
        let value = read(self)?;
        self.is_at_end().then_some(value)
    }
}

/// Writes the beginning of a record.
pub(crate) fn begin(out: &mut BytesMut, tag: Tag, kind: Kind) {
    out.put_slice(&tag.0);
    out.put_u8(FORMAT);
    out.put_u8(kind.letter() as u8);
}

/// Writes the remembered write tags, except the newest one.
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
