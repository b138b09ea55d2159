//! Write tags: random numbers that each identify a write.

use crate::store::TAG_LEN;

/// The random number that a write puts at the beginning of the record.
///
/// The tag identifies the write. As long as the record remembers the tag, reading the record shows whether an
/// in-doubt write was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(pub(crate) [u8; TAG_LEN]);

/// The tags of the most recent writes, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tags {
    newest: Tag,
    older: [Tag; Self::REMEMBERED - 1],
    /// The number of tags in `older`.
    count: usize,
}

impl Tags {
    /// The number of writes that a record remembers.
    pub(crate) const REMEMBERED: usize = 8;

    pub(crate) fn first(tag: Tag) -> Self {
        Self::new(tag, &[])
    }

    /// Creates the list from the newest tag and the earlier ones, newest first. Tags beyond [`Self::REMEMBERED`] are
    /// dropped.
    pub(crate) fn new(newest: Tag, before: &[[u8; TAG_LEN]]) -> Self {
        let mut older = [Tag([0; TAG_LEN]); Self::REMEMBERED - 1];
        let count = before.len().min(older.len());
        for (slot, tag) in older.iter_mut().zip(before) {
            *slot = Tag(*tag);
        }
        Self { newest, older, count }
    }

    /// Returns the tags after another write.
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
