//! The keys of records, and the write tag at the beginning of every record.

use std::fmt;

/// The length of the write tag at the beginning of every record, in bytes.
///
/// The core changes these bytes in every write.
pub const TAG_LEN: usize = 8;

/// The kind of record under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The record of a session.
    Session,
    /// The directory record of a principal: the list of the principal's sessions.
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

/// The key of a record: `namespace:epoch:kind:id`, at most 200 bytes of printable ASCII.
///
/// A key is not a credential: it contains no secret. The key of a session's record contains the public
/// session id and may be logged. The key of a directory record contains a digest of the principal: anyone who
/// can guess the principal can recognise it in a log. The key of a directory record contains a hash of the
/// principal.
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

    /// Returns the whole key, in the form in which the backend stores it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the kind of record under this key.
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
