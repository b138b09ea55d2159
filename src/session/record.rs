//! What is stored of a session: header and values.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::lifetime::{Chosen, Clocks, Lifetime, Millis};
use super::token::SecretDigest;
use crate::store::TAG_LEN;

/// The random number that a write puts at the beginning of the record.
///
/// It tells a record from every other one, so a lost answer can be settled by reading back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(pub(crate) [u8; TAG_LEN]);

/// The tags of the last writes, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tags {
    newest: Tag,
    older: [Tag; Self::REMEMBERED - 1],
    /// How many of the older ones there are.
    count: usize,
}

impl Tags {
    /// How many writes a record remembers.
    pub(crate) const REMEMBERED: usize = 8;

    pub(crate) fn first(tag: Tag) -> Self {
        Self::new(tag, &[])
    }

    /// The newest, and the ones before it from the newest on; what is older still is forgotten.
    pub(crate) fn new(newest: Tag, before: &[[u8; TAG_LEN]]) -> Self {
        let mut older = [Tag([0; TAG_LEN]); Self::REMEMBERED - 1];
        let count = before.len().min(older.len());
        for (slot, tag) in older.iter_mut().zip(before) {
            *slot = Tag(*tag);
        }
        Self { newest, older, count }
    }

    /// The tags after one more write.
    pub(crate) fn followed_by(&self, tag: Tag) -> Self {
        let mut older = self.older;
        older.rotate_right(1);
        older[0] = self.newest;
        Self { newest: tag, older, count: (self.count + 1).min(older.len()) }
    }

    pub(crate) fn newest(&self) -> Tag {
        self.newest
    }

    pub(crate) fn older(&self) -> &[Tag] {
        self.older.get(..self.count).unwrap_or_default()
    }

    pub(crate) fn contains(&self, tag: Tag) -> bool {
        self.newest == tag || self.older().contains(&tag)
    }
}

/// Everything about a session but its values.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tags: Tags,
    pub(crate) digest: SecretDigest,
    pub(crate) clocks: Clocks,
    /// The limits this session chose for itself, where it did.
    pub(crate) chosen: Option<Chosen>,
    /// The moment that no deadline goes beyond.
    pub(crate) end_by: Option<Millis>,
    pub(crate) principal: Option<Arc<str>>,
    /// How often somebody signed in on this session: tells a rotation, after which writes of the
    /// same person are merged, from a sign-in, after which they are not.
    pub(crate) sign_ins: u32,
    /// Fields of later releases, kept as they are.
    pub(crate) unknown: Vec<(u8, Bytes)>,
}

impl Header {
    pub(crate) fn new(digest: SecretDigest, now: Millis, lifetime: &Lifetime, tag: Tag) -> Self {
        Self {
            tags: Tags::first(tag),
            digest,
            clocks: Clocks::start(now, lifetime),
            chosen: None,
            end_by: None,
            principal: None,
            sign_ins: 0,
            unknown: Vec::new(),
        }
    }

    /// The lifetime that holds: the session's own, or the configured one.
    pub(crate) fn lifetime(&self, configured: &Lifetime) -> Lifetime {
        self.chosen.map_or(*configured, |chosen| configured.with_limits_of(chosen))
    }

    /// The header after a write that does this.
    pub(crate) fn updated(&self, update: &Update<'_>) -> Self {
        let mut header = self.clone();
        header.tags = self.tags.followed_by(update.tag);
        if let Some(digest) = update.digest {
            header.digest = digest;
        }
        if let Some(chosen) = update.lifetime {
            header.chosen = Some(chosen.into());
        }
        header.end_by = update.end_by.or(header.end_by);
        let lifetime = header.lifetime(update.configured);
        if let Some(principal) = update.sign_in {
            header.principal = Some(principal.clone());
            header.sign_ins = header.sign_ins.saturating_add(1);
            header.clocks.authenticated(update.now, &lifetime);
        } else if update.lifetime.is_some() || update.end_by.is_some() {
            header.clocks.limits_changed(update.now, &lifetime);
        } else if update.is_activity {
            header.clocks.used(update.now, &lifetime);
        }
        if let Some(end_by) = header.end_by {
            header.clocks.end_by(end_by);
        }
        header
    }

    /// Whether the same person, by the same sign-in, stands in both.
    pub(crate) fn same_sign_in(&self, other: &Self) -> bool {
        self.sign_ins == other.sign_ins && self.principal == other.principal
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("clocks", &self.clocks)
            .field("signed_in", &self.principal.is_some())
            .finish_non_exhaustive()
    }
}

/// What a write does to a header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update<'a> {
    pub(crate) now: Millis,
    pub(crate) tag: Tag,
    pub(crate) configured: &'a Lifetime,
    /// A new secret's digest.
    pub(crate) digest: Option<SecretDigest>,
    pub(crate) lifetime: Option<Lifetime>,
    /// The moment that no deadline may go beyond.
    pub(crate) end_by: Option<Millis>,
    pub(crate) sign_in: Option<&'a Arc<str>>,
    /// Whether the request counts as use of the session.
    pub(crate) is_activity: bool,
}

/// The values of a record: an index into its bytes, in the order of the keys. A value is parsed only
/// when it is read, and copied as bytes when the record is written again.
#[derive(Clone, Default)]
pub(crate) struct Values {
    source: Bytes,
    entries: Vec<Entry>,
}

/// Where a value lies in the record's bytes.
#[derive(Clone)]
pub(crate) struct Entry {
    key: Range<u32>,
    value: Range<u32>,
    flags: u8,
}

impl Entry {
    /// `None` where the record is larger than any that is ever written.
    pub(crate) fn new(key: Range<usize>, flags: u8, value: Range<usize>) -> Option<Self> {
        let narrow = |range: Range<usize>| {
            Some(u32::try_from(range.start).ok()?..u32::try_from(range.end).ok()?)
        };
        Some(Self { key: narrow(key)?, value: narrow(value)?, flags })
    }

    /// Where the key lies.
    pub(crate) fn key(&self) -> Range<usize> {
        self.key.start as usize..self.key.end as usize
    }

    fn value(&self) -> Range<usize> {
        self.value.start as usize..self.value.end as usize
    }
}

/// One value: its encoded bytes and its flags.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) bytes: Bytes,
    pub(crate) flags: u8,
}

impl Value {
    const SURVIVES_SIGN_IN: u8 = 1;

    pub(crate) fn new(bytes: Bytes, survives: bool) -> Self {
        Self { bytes, flags: if survives { Self::SURVIVES_SIGN_IN } else { 0 } }
    }
}

impl Values {
    /// The entries must lie inside `source`, the keys must be text and in ascending order.
    pub(crate) fn new(source: Bytes, entries: Vec<Entry>) -> Self {
        Self { source, entries }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn key(&self, entry: &Entry) -> &str {
        self.source
            .get(entry.key())
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }

    fn value(&self, entry: &Entry) -> Value {
        Value { bytes: self.source.slice(entry.value()), flags: entry.flags }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        // The order of UTF-8 text is the order of its bytes.
        let found =
            self.entries.binary_search_by(|entry| self.source[entry.key()].cmp(key.as_bytes()));
        found.ok().and_then(|index| self.entries.get(index)).map(|entry| self.value(entry))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Value)> {
        self.entries.iter().map(|entry| (self.key(entry), self.value(entry)))
    }
}

impl Value {
    pub(crate) const fn survives_sign_in(&self) -> bool {
        self.flags & Self::SURVIVES_SIGN_IN != 0
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} values>", self.len())
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.bytes.len())
    }
}

/// A session as it was read from a store.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) header: Header,
    pub(crate) values: Values,
}
