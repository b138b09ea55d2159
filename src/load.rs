//! Reads a session's record from the store and decodes it. Emits an event if the record cannot be decoded.

use std::sync::Arc;

use bytes::Bytes;

use crate::commands::Commands;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{self, Audit, RecordKey};
use crate::record::codec;
use crate::record::envelope::Undecodable;
use crate::record::loaded::{Loaded, Record};
use crate::record::token::SessionId;
use crate::settings::Settings;
use crate::store::{StoreKey, Stored};

impl Loaded {
    /// Returns the same session with a record that was read later.
    pub(crate) fn newer(&self, stored: Stored) -> Result<Arc<Self>> {
        Ok(self.at(decode(&self.key, stored.bytes)?, stored.version))
    }

    /// Reads the session again from the store, even if this request may no longer use it.
    pub(crate) async fn reread(&self, commands: Commands<'_>) -> Result<Option<Arc<Self>>> {
        commands.load(&self.key).await?.map(|stored| self.newer(stored)).transpose()
    }
}

/// The result of looking up a session id in the store.
pub(crate) enum Lookup {
    /// The session. It may have expired.
    Found(Arc<Loaded>),
    Missing,
    /// A record that cannot be decoded. An event was emitted, and the record is left unchanged.
    Corrupt,
}

/// Looks up a session by its id. `is_presented` says whether the request presented a secret for it.
pub(crate) async fn look_up(
    settings: &Settings,
    commands: Commands<'_>,
    id: SessionId,
    is_presented: bool,
) -> Result<Lookup> {
    let key = settings.key(id);
    let Some(Stored { bytes, version }) = commands.load(&key).await? else {
        return Ok(Lookup::Missing);
    };
    match decode(&key, bytes) {
        Ok(record) => {
            Ok(Lookup::Found(Arc::new(Loaded::new(id, key, record, version, is_presented))))
        }
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Lookup::Corrupt),
        Err(error) => Err(error),
    }
}

/// Decodes a session's record. Emits an event if that fails.
fn decode(key: &StoreKey, bytes: Bytes) -> Result<Record> {
    // A session's key contains no principal, so the event may show it under every audit setting.
    decoded(RecordKey { audit: Audit::default(), key }, codec::decode(bytes))
}

/// Emits an event if decoding failed, and converts the failure to an error.
pub(crate) fn decoded<T>(key: RecordKey<'_>, decoded: Result<T, Undecodable>) -> Result<T> {
    decoded.map_err(|failure| match failure {
        Undecodable::Corrupt => {
            event::corrupt_record(key);
            Error::new(ErrorKind::Corrupt, "")
        }
        Undecodable::NewerFormat => {
            event::newer_format(key);
            Error::new(ErrorKind::NewerFormat, "")
        }
    })
}
