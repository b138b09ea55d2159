//! Probing: what the store holds under the id of a listed session.

use std::sync::Arc;

use crate::clock::Millis;
use crate::directory::DirectoryHandle;
use crate::error::{ErrorKind, Result};
use crate::load::decoded;
use crate::record::authority::Authority;
use crate::record::codec as session_codec;
use crate::record::loaded::Loaded;
use crate::record::token::SessionId;

/// The deadline of a tombstone: it has expired by every clock.
pub(super) const TOMBSTONE_DEADLINE: Millis = Millis(0);

/// What the store holds under the id of a listed session.
pub(super) enum EntryState {
    /// The session, signed in as this principal.
    Owned(Arc<Loaded>),
    /// A session with nobody signed in, or not yet.
    Anonymous(Arc<Loaded>),
    Missing,
    /// A session of another principal, a tombstone or a corrupt record: it cannot become this principal's.
    Foreign,
}

impl DirectoryHandle<'_> {
    pub(super) async fn probe(&self, id: SessionId) -> Result<EntryState> {
        let key = self.settings.key(id);
        let Some(stored) = self.commands.load(&key).await? else { return Ok(EntryState::Missing) };
        let record = match decoded(&key, session_codec::decode(stored.bytes)) {
            Ok(record) => record,
            // A corrupt record is nobody's session. It stays as it is.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(EntryState::Foreign),
            Err(error) => return Err(error),
        };
        let principal = record.header.principal.clone();
        let is_tombstone = record.header.clocks.deadline() == TOMBSTONE_DEADLINE;
        let authority = Authority::of(&record.header, false);
        let loaded = Arc::new(Loaded { id, key, record, version: stored.version, authority });
        Ok(match principal {
            Some(principal) if *principal == *self.principal => EntryState::Owned(loaded),
            None if !is_tombstone => EntryState::Anonymous(loaded),
            _ => EntryState::Foreign,
        })
    }

    /// Loads the session if the store has it and it is this principal's.
    pub(super) async fn load_owned(&self, id: SessionId) -> Result<Option<Arc<Loaded>>> {
        Ok(match self.probe(id).await? {
            EntryState::Owned(loaded) => Some(loaded),
            _ => None,
        })
    }
}
