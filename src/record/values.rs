//! The values of a record.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

/// The values of a record: an index into its bytes, in key order. A value is parsed only when it is read.
/// When the record is written again, the value's bytes are copied.
#[derive(Clone, Default)]
pub(crate) struct Values {
    source: Bytes,
    entries: Vec<Entry>,
}

/// The position of a value in the record's bytes.
#[derive(Clone)]
pub(crate) struct Entry {
    key: Range<u32>,
    value: Range<u32>,
    flags: u8,
}

impl Entry {
    /// Returns `None` if the record is larger than any that this crate writes.
    pub(crate) fn new(key: Range<usize>, flags: u8, value: Range<usize>) -> Option<Self> {
        let narrow = |range: Range<usize>| {
            Some(u32::try_from(range.start).ok()?..u32::try_from(range.end).ok()?)
        };
        Some(Self { key: narrow(key)?, value: narrow(value)?, flags })
    }

    /// Returns the position of the key.
    pub(crate) fn key(&self) -> Range<usize> {
        self.key.start as usize..self.key.end as usize
    }

    fn value(&self) -> Range<usize> {
        self.value.start as usize..self.value.end as usize
    }
}

/// A borrowed value with its key. Keys are text, and are ordered by their bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) bytes: &'a [u8],
    pub(crate) flags: u8,
}

/// The values of a record, in ascending order of their keys.
pub(crate) type Items<'a> = SmallVec<[Item<'a>; 16]>;

impl<'a> Item<'a> {
    pub(crate) fn new(key: &'a str, value: &'a Value) -> Self {
        Self { key: key.as_bytes(), bytes: &value.bytes, flags: value.flags }
    }

    /// Returns whether the value is kept after a sign-in.
    pub(crate) const fn outlives(&self, sign_in: OnSignIn) -> bool {
        outlives(self.flags, sign_in)
    }
}

/// The kind of sign-in, which determines which of the session's values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum OnSignIn {
    /// No sign-in, or a step-up: all values are kept.
    #[default]
    Nobody,
    /// The sign-in of an anonymous user.
    First,
    /// A sign-in as the principal that is already signed in, or a `revoke_others` call that keeps this
    /// session.
    Again,
}

const fn outlives(flags: u8, sign_in: OnSignIn) -> bool {
    match sign_in {
        OnSignIn::Nobody => true,
        OnSignIn::First => flags & Value::SURVIVES_SIGN_IN != 0,
        OnSignIn::Again => flags & Value::ENDS_AT_SIGN_IN == 0,
    }
}

/// One value: its encoded bytes and its flags.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) bytes: Bytes,
    pub(crate) flags: u8,
}

impl Value {
    /// The value is kept when an anonymous user signs in.
    const SURVIVES_SIGN_IN: u8 = 1;
    /// The value is removed by every sign-in, even one as the same principal.
    const ENDS_AT_SIGN_IN: u8 = 2;

    pub(crate) fn new(bytes: Bytes, survives: bool) -> Self {
        Self { bytes, flags: if survives { Self::SURVIVES_SIGN_IN } else { 0 } }
    }

    /// Creates a value that every sign-in removes.
    pub(crate) fn until_sign_in(bytes: Bytes) -> Self {
        Self { bytes, flags: Self::ENDS_AT_SIGN_IN }
    }
}

/// The values of a session that is not stored.
pub(crate) static NO_VALUES: Values = Values { source: Bytes::new(), entries: Vec::new() };

impl Values {
    /// Creates the values. The entries must be inside `source`, and the keys must be UTF-8 and in ascending
    /// order.
    pub(crate) fn new(source: Bytes, entries: Vec<Entry>) -> Self {
        Self { source, entries }
    }

    /// Returns the bytes of the whole record.
    pub(crate) fn source(&self) -> &Bytes {
        &self.source
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn find(&self, key: &str) -> Option<&Entry> {
        let found =
            self.entries.binary_search_by(|entry| self.source[entry.key()].cmp(key.as_bytes()));
        found.ok().and_then(|index| self.entries.get(index))
    }

    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        let entry = self.find(key)?;
        Some(Value { bytes: self.source.slice(entry.value()), flags: entry.flags })
    }

    /// Returns whether a key has this value, or has no value if `value` is `None`.
    pub(crate) fn holds(&self, key: &str, value: Option<&Value>) -> bool {
        self.find(key).map(|entry| self.item(entry)) == value.map(|value| Item::new(key, value))
    }

    fn item(&self, entry: &Entry) -> Item<'_> {
        let (key, bytes) = (&self.source[entry.key()], &self.source[entry.value()]);
        Item { key, bytes, flags: entry.flags }
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = Item<'_>> {
        self.entries.iter().map(|entry| self.item(entry))
    }
}

impl Value {
    /// Returns whether the value is kept after a sign-in.
    pub(crate) const fn outlives(&self, sign_in: OnSignIn) -> bool {
        outlives(self.flags, sign_in)
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
