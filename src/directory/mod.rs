//! A principal's directory in the store.
//!
//! The directory record lists the principal's sessions. It is read, changed by compare-and-set, and then
//! its decisions are carried out on the sessions: a session that the record marks as revoked is deleted.
//!
//! | file | content |
//! |---|---|
//! | `record` | the directory record and the rules of an enrolment, without I/O |
//! | `codec` | the record as bytes |
//! | `enrol` | a session is added before its cookie is sent; its reservation is released if that fails |
//! | `revoke` | sessions are marked as revoked, deleted, and removed from the record |
//! | `list` | the sessions that are alive |
//! | `probe` | what the store holds under a listed id |

pub(crate) mod codec;
mod enrol;
mod list;
mod probe;
pub(crate) mod record;
pub(crate) mod revoke;

use std::sync::Arc;

use crate::commands::{Commands, Settled, Write, pause};
use crate::directory::record::{DirectoryRecord, Enrolment};
use crate::error::{ErrorKind, Result};
use crate::event::{self, RecordKey, Who};
use crate::key_lock::KeyGuard;
use crate::limits::PROMPT_ATTEMPTS;
use crate::load::decoded;
use crate::record::loaded::Loaded;
use crate::record::sign_in::{BegunDirectory, KEPT_BYTES, Mark, SignInStart};
use crate::record::tag::{Tag, Tags};
use crate::record::token::{SessionId, encoded_digest};
use crate::settings::{DirectoryMode, Settings};
use crate::store::{Created, Kind, StoreKey, Stored, TAG_LEN};

/// One principal's directory, with the store commands to use it and the time they have.
pub(crate) struct DirectoryHandle<'a> {
    settings: &'a Settings,
    commands: Commands<'a>,
    principal: &'a str,
    key: StoreKey,
    /// Who acts on behalf of the principal.
    actor: Option<&'a str>,
}

/// What a directory says of a session that it lists.
#[cfg(feature = "cli")]
pub(crate) struct Listing {
    /// What the application called it.
    pub(crate) label: Option<Arc<str>>,
}

/// The result of a write of a directory.
pub(crate) enum DirectoryWrite {
    Written(DirectorySnapshot),
    /// It was applied, and another write has followed it.
    Followed,
    /// Another write came first. If this one was applied all the same, the record has its tag.
    Overtaken(Tag),
}

/// A directory as it was read or written.
#[derive(Debug)]
pub(crate) struct DirectorySnapshot {
    /// The record; an empty one if the store has none.
    record: DirectoryRecord,
    stored: Option<Stored>,
}

impl DirectorySnapshot {
    pub(crate) fn mark(&self) -> Option<Mark> {
        self.record.generation.map(|generation| generation.mark)
    }
}

impl<'a> DirectoryHandle<'a> {
    pub(crate) fn new(settings: &'a Settings, commands: Commands<'a>, principal: &'a str) -> Self {
        Self::with_key(settings, commands, principal, directory_key(settings, principal))
    }

    /// As `new`, for a principal whose directory key is known already.
    pub(crate) fn with_key(
        settings: &'a Settings,
        commands: Commands<'a>,
        principal: &'a str,
        key: StoreKey,
    ) -> Self {
        Self { settings, commands, principal, key, actor: None }
    }

    /// Sets the person who acts on behalf of the principal.
    pub(crate) fn by(self, actor: Option<&'a str>) -> Self {
        Self { actor, ..self }
    }

    /// The directory's key, for events.
    fn record_key(&self) -> RecordKey<'_> {
        self.settings.record_key(&self.key)
    }

    /// The principal, for events.
    fn who(&self) -> Who<'_> {
        self.settings.who(Some(self.principal))
    }

    /// Whether a session is listed.
    pub(crate) async fn lists(&self, id: SessionId) -> Result<bool> {
        Ok(self.read().await?.record.lists(id))
    }

    /// Returns the entry of a session, or `None` if the directory does not list it.
    #[cfg(feature = "cli")]
    pub(crate) async fn listing(&self, id: SessionId) -> Result<Option<Listing>> {
        let record = self.read().await?.record;
        Ok(record.lists(id).then(|| Listing { label: record.label(id).map(Into::into) }))
    }

    /// What a sign-in that begins now has to remember of the directory.
    pub(crate) async fn sign_in_start(self) -> Result<SignInStart> {
        // Before the read, so that what is read is never older than that.
        let at = self.settings.now();
        let snapshot = self.read().await?;
        let (mark, stored) = (snapshot.mark(), snapshot.stored);
        let size = stored.as_ref().map_or(0, |stored| stored.bytes.len());
        let (store, key) = (Arc::downgrade(&self.settings.store), self.key);
        let directory = (size <= KEPT_BYTES).then_some(BegunDirectory { store, key, stored });
        Ok(SignInStart { mark, at, directory })
    }

    /// Returns the directory as `begin_sign_in` read it, if that was a moment ago and the enrolment needs no
    /// session to be revoked. An older copy could be out of date, and a live session must not be revoked
    /// because of it.
    pub(crate) fn begun_snapshot(
        &self,
        start: &SignInStart,
        enrolment: &Enrolment,
    ) -> Option<DirectorySnapshot> {
        let Settings { store, options, .. } = self.settings;
        let begun = start.young_directory(store, &self.key, self.settings.now())?;
        let snapshot = self.snapshot(begun.stored.clone()).ok()?;
        let has_room = snapshot.record.has_room(enrolment, options.concurrent());
        has_room.then_some(snapshot)
    }

    pub(crate) async fn read(&self) -> Result<DirectorySnapshot> {
        self.snapshot(self.commands.load(&self.key).await?)
    }

    /// The directory, if the store holds this as its record.
    fn snapshot(&self, stored: Option<Stored>) -> Result<DirectorySnapshot> {
        let record = match &stored {
            Some(stored) => decoded(self.record_key(), codec::decode(&stored.bytes))?,
            // `write` sets the tags.
            None => DirectoryRecord::new(Tags::first(Tag([0; TAG_LEN]))),
        };
        Ok(DirectorySnapshot { record, stored })
    }

    /// Writes `record`, which has the tags that were read, by compare-and-set over what was read.
    async fn write(
        &self,
        stored: Option<&Stored>,
        mut record: DirectoryRecord,
    ) -> Result<DirectoryWrite> {
        let tag = self.settings.tag()?;
        record.tags = match stored {
            Some(_) => record.tags.followed_by(tag),
            None => Tags::first(tag),
        };
        let ttl = record.ttl(self.settings.options.lifetime.absolute());
        let write = Write { bytes: codec::encode(&record), ttl, tag };
        let version = match stored {
            Some(stored) => match self.commands.replace(&self.key, &write, stored).await? {
                Settled::Applied(version) => version,
                Settled::Followed(_) => return Ok(DirectoryWrite::Followed),
                Settled::Conflict(_) | Settled::Missing => {
                    return Ok(DirectoryWrite::Overtaken(tag));
                }
            },
            None => match self.commands.create(&self.key, &write).await {
                Ok(Created::Created(version)) => version,
                Ok(Created::Occupied) => return Ok(DirectoryWrite::Overtaken(tag)),
                // The next attempt reads the record and decides again; the result is the same.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    return Ok(DirectoryWrite::Overtaken(tag));
                }
                Err(error) => return Err(error),
            },
        };
        let stored = Some(Stored::new(write.bytes, version));
        Ok(DirectoryWrite::Written(DirectorySnapshot { record, stored }))
    }

    /// Waits after a conflict. After the first one, other commits of this process that met a conflict on the
    /// record go first; after several, there is a pause for the commits of other processes.
    async fn back_off(&self, guard: &mut Option<KeyGuard<'a>>, attempt: u32) -> Result<()> {
        if guard.is_none() {
            *guard = Some(self.commands.key_guard(self.settings, &self.key).await);
        } else if attempt >= PROMPT_ATTEMPTS {
            pause(&self.commands, &*self.settings.entropy, attempt).await?;
        }
        Ok(())
    }
}

/// The key of a principal's directory under the configured cookie name. The principal is hashed, so that any
/// principal makes a valid key and no two principals share one.
pub(crate) fn directory_key(settings: &Settings, principal: &str) -> StoreKey {
    let digest = encoded_digest(settings.cookie.name(), principal.as_bytes());
    StoreKey::new(&settings.key_prefix, Kind::Directory, &digest)
}

impl Settings {
    /// Whether a signed-in session is valid: in strict mode, only while its directory lists it.
    pub(crate) async fn is_listed(&self, commands: Commands<'_>, loaded: &Loaded) -> Result<bool> {
        let Some(principal) = &loaded.record.header.principal else { return Ok(true) };
        if self.options.directory != DirectoryMode::Strict {
            return Ok(true);
        }
        let is_listed = DirectoryHandle::new(self, commands, principal).lists(loaded.id).await?;
        if !is_listed {
            event::unlisted(loaded.id, self.who(Some(principal)));
        }
        Ok(is_listed)
    }
}
