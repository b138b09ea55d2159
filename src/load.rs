//! A session's record, read from the store and decoded; one that cannot be decoded is reported.

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
    /// The same session from a newer read.
    pub(crate) fn newer(&self, stored: Stored) -> Result<Arc<Self>> {
        Ok(self.at(decode(&self.key, stored.bytes)?, stored.version))
    }

    /// The session as it stands in the store, whoever may use it.
    pub(crate) async fn reread(&self, commands: Commands<'_>) -> Result<Option<Arc<Self>>> {
        commands.load(&self.key).await?.map(|stored| self.newer(stored)).transpose()
    }
}

/// What the store holds under the id of a session.
pub(crate) enum Lookup {
    /// A session; it may have expired.
    Found(Arc<Loaded>),
    Missing,
    /// A record that cannot be decoded. It was reported, and stays as it is.
    Corrupt,
}

/// Looks a session up by its id. `is_presented`: the request has sent a secret for it.
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

/// Decodes a session's record and reports one that cannot be.
fn decode(key: &StoreKey, bytes: Bytes) -> Result<Record> {
    // It names nobody.
    decoded(RecordKey { audit: Audit::default(), key }, codec::decode(bytes))
}

/// What was decoded, or the error of what could not be, reported.
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
