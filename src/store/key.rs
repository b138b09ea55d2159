//! The keys of records, and what every record begins with.

use std::fmt;

/// How many bytes at the beginning of a record are its write tag.
pub const TAG_LEN: usize = 8;

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A session.
    Session,
    /// The directory of a principal's sessions.
    Directory,
}

impl Kind {
    pub(crate) const fn letter(self) -> char {
        match self {
            Self::Session => 's',
            Self::Directory => 'd',
        }
    }
}

/// The key of a record: `namespace:epoch:kind:id`, printable ASCII of at most 200 bytes.
///
/// It is no credential and may be logged.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StoreKey {
    kind: Kind,
    text: Box<str>,
}

impl StoreKey {
    pub(crate) fn new(prefix: &str, kind: Kind, id: &str) -> Self {
        let mut text = String::with_capacity(prefix.len() + 2 + id.len());
        text.push_str(prefix);
        text.push(kind.letter());
        text.push(':');
        text.push_str(id);
        Self { kind, text: text.into() }
    }

    /// The whole key, ready for the backend.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What the key holds.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoreKey").field(&self.text).finish()
    }
}

impl fmt::Display for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
