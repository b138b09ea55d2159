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
    /// How often somebody signed in on this session, or revoked the others from it: tells a
    /// rotation, after which changes made with the old secret are merged, from a sign-in, after which
    /// they are not.
    pub(crate) sign_ins: u32,
    /// The cookie of the last sign-in has not come back yet; kept where new sign-ins are refused.
    pub(crate) is_unconfirmed: bool,
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
            is_unconfirmed: false,
            unknown: Vec::new(),
        }
    }

    /// The lifetime that holds: the session's own, or the configured one.
    pub(crate) fn lifetime(&self, configured: &Lifetime) -> Lifetime {
        self.chosen.map_or(*configured, |chosen| configured.with_limits_of(chosen))
    }

    /// Whether this lifetime would be another than the one the session has chosen.
    pub(crate) fn differs_in_lifetime(&self, lifetime: Option<Lifetime>) -> bool {
        lifetime.is_some_and(|lifetime| self.chosen != Some(lifetime.into()))
    }

    /// Whether this end would be another than the one the session has.
    pub(crate) fn differs_in_end(&self, end_by: Option<Millis>) -> bool {
        end_by.is_some_and(|end_by| self.end_by != Some(end_by))
    }

    /// The header after a write that does this.
    pub(crate) fn updated(&self, update: &Update<'_>) -> Self {
        let mut header = self.clone();
        header.tags = self.tags.followed_by(update.tag);
        if let Some(digest) = update.digest {
            header.digest = digest;
        }
        let is_other = self.differs_in_lifetime(update.lifetime);
        let has_other_limits = is_other || self.differs_in_end(update.end_by);
        let chosen = update.lifetime.map(Into::into);
        if matches!(update.proof, Proof::SignIn(_)) {
            // It starts from the configuration, unless this very request chooses.
            (header.chosen, header.end_by) = (chosen, update.end_by);
        } else {
            (header.chosen, header.end_by) =
                (chosen.or(self.chosen), update.end_by.or(self.end_by));
        }
        if let Some(is_unconfirmed) = update.is_unconfirmed {
            header.is_unconfirmed = is_unconfirmed;
        }
        let lifetime = header.lifetime(update.configured);
        if update.proof != Proof::None || update.supersedes {
            header.sign_ins = self.sign_ins.saturating_add(1);
        }
        match update.proof {
            Proof::SignIn(principal) => {
                header.principal = Some(principal.clone());
                header.clocks.authenticated(update.now, &lifetime);
            }
            Proof::StepUp => header.clocks.authenticated(update.now, &lifetime),
            Proof::None if has_other_limits => header.clocks.limits_changed(update.now, &lifetime),
            Proof::None if update.is_activity => header.clocks.used(update.now, &lifetime),
            Proof::None => {}
        }
        if let Some(end_by) = header.end_by {
            header.clocks.end_by(end_by);
        }
        header
    }
}

/// What a request acts by: the secret that its cookie brought, or the newest one that its own handle
/// has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority {
    digest: SecretDigest,
    sign_ins: u32,
    principal: Option<Arc<str>>,
    /// The browser has sent this secret back.
    pub(crate) is_presented: bool,
}

/// What has become of the secret that a request acts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// It is the session's.
    Own,
    /// Another request gave the session a new one.
    Rotated,
    /// Somebody has signed in since.
    SignedInAnew,
}

impl Authority {
    /// The authority of who holds this header's secret.
    pub(crate) fn of(header: &Header, is_presented: bool) -> Self {
        Self {
            digest: header.digest,
            sign_ins: header.sign_ins,
            principal: header.principal.clone(),
            is_presented,
        }
    }

    /// What it is worth on the session as it stands now.
    pub(crate) fn over(&self, header: &Header) -> Secrecy {
        if self.sign_ins != header.sign_ins || self.principal != header.principal {
            Secrecy::SignedInAnew
        } else if self.digest != header.digest {
            Secrecy::Rotated
        } else {
            Secrecy::Own
        }
    }

    /// Whether the session still is of the one it was of, or of nobody as before.
    pub(crate) fn is_of_the_same(&self, header: &Header) -> bool {
        self.principal == header.principal
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
    pub(crate) proof: Proof<'a>,
    /// Whether everything under way with an older secret is to find the session signed in anew.
    pub(crate) supersedes: bool,
    /// What becomes of the mark of a cookie that has not come back; `None` leaves it.
    pub(crate) is_unconfirmed: Option<bool>,
    /// Whether the request counts as use of the session.
    pub(crate) is_activity: bool,
}

impl<'a> Update<'a> {
    /// A write that changes nothing of the header.
    pub(crate) fn plain(now: Millis, tag: Tag, configured: &'a Lifetime) -> Self {
        Self {
            now,
            tag,
            configured,
            digest: None,
            lifetime: None,
            end_by: None,
            proof: Proof::None,
            supersedes: false,
            is_unconfirmed: None,
            is_activity: false,
        }
    }
}

/// Whether somebody proves who they are with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof<'a> {
    None,
    SignIn(&'a Arc<str>),
    /// The one who is signed in already.
    StepUp,
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
