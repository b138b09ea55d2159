//! Looks up what the store holds under the id of a listed session.

use std::sync::Arc;

use crate::directory::DirectoryHandle;
use crate::error::Result;
use crate::load::{self, Lookup};
use crate::record::codec::TOMBSTONE_DEADLINE;
use crate::record::loaded::Loaded;
use crate::record::token::SessionId;
use crate::settings::DirectoryMode;

/// What the store holds for a listed session.
pub(super) enum EntryState {
    /// The session, signed in as this principal.
    Owned(Arc<Loaded>),
    /// An anonymous session. A sign-in that uses it may be in progress.
    Anonymous(Arc<Loaded>),
    Missing,
    /// A session of another principal, a tombstone or a corrupt record. No sign-in can turn it into a session
    /// of this principal.
    Foreign,
}

impl DirectoryHandle<'_> {
    pub(super) async fn probe(&self, id: SessionId) -> Result<EntryState> {
        let loaded = match load::look_up(self.settings, self.commands, id, false).await? {
            Lookup::Found(loaded) => loaded,
            Lookup::Missing => return Ok(EntryState::Missing),
            Lookup::Corrupt => return Ok(EntryState::Foreign),
        };
        let header = &loaded.record.header;
        let is_tombstone = header.clocks.deadline() == TOMBSTONE_DEADLINE;
        Ok(match &header.principal {
            Some(principal) if **principal == *self.principal => EntryState::Owned(loaded),
            None if !is_tombstone => EntryState::Anonymous(loaded),
            _ => EntryState::Foreign,
        })
    }

    /// Loads the session, if the store has it and it belongs to this principal.
    pub(super) async fn load_owned(&self, id: SessionId) -> Result<Option<Arc<Loaded>>> {
        Ok(match self.probe(id).await? {
            EntryState::Owned(loaded) => Some(loaded),
            _ => None,
        })
    }

    /// Returns the session for the application to act on, if it is alive and belongs to this principal. In
    /// strict mode, it must also be listed.
    pub(crate) async fn open(&self, id: SessionId) -> Result<Option<Arc<Loaded>>> {
        let Some(loaded) = self.load_owned(id).await? else { return Ok(None) };
        if loaded.record.header.clocks.expired(self.settings.now()) {
            return Ok(None);
        }
        let is_strict = self.settings.options.directory == DirectoryMode::Strict;
        if is_strict && !self.lists(id).await? {
            return Ok(None);
        }
        Ok(Some(loaded.opened()))
    }
}
