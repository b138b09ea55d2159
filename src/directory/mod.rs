//! A principal's directory in the store.
//!
//! The directory record lists the principal's sessions. The record is changed by compare-and-set, and the
//! decisions in it are then carried out on the sessions: a session that the record marks as revoked is
//! deleted.
//!
//! | file | content |
//! |---|---|
//! | `record` | the directory record and the rules for enrolment, without I/O |
//! | `codec` | the record as bytes |
//! | `enrol` | adds a session before its cookie is sent; releases its reservation if the sign-in fails |
//! | `revoke` | marks sessions as revoked, deletes them, and removes them from the record |
//! | `list` | lists the live sessions |
//! | `probe` | looks up what the store holds under a listed id |

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

/// One principal's directory, with the store commands to use for it and their time limit.
pub(crate) struct DirectoryHandle<'a> {
    settings: &'a Settings,
    commands: Commands<'a>,
    principal: &'a str,
    key: StoreKey,
    /// Who uses the directory, if it is not the principal: an administrator or a job, for example; see
    /// [`Directory::by`](crate::Directory::by).
    actor: Option<&'a str>,
}

/// What a directory records about a listed session.
#[cfg(feature = "cli")]
pub(crate) struct Listing {
    /// The label that the application gave the session.
    pub(crate) label: Option<Arc<str>>,
}

/// The result of writing a directory.
pub(crate) enum DirectoryWrite {
    Written(DirectorySnapshot),
    /// The write was applied, and another write has followed it.
    Followed,
    /// Another write came first, or the outcome of this write is unknown. If this write was applied all the
    /// same, the record contains this tag, as long as it remembers the write.
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

    /// Like `new`, but for a principal whose directory key is already known.
    pub(crate) fn with_key(
        settings: &'a Settings,
        commands: Commands<'a>,
        principal: &'a str,
        key: StoreKey,
    ) -> Self {
        Self { settings, commands, principal, key, actor: None }
    }

    /// Sets the person or program that acts on behalf of the principal.
    pub(crate) fn by(self, actor: Option<&'a str>) -> Self {
        Self { actor, ..self }
    }

    /// Returns the directory's key, for events.
    fn record_key(&self) -> RecordKey<'_> {
        self.settings.record_key(&self.key)
    }

    /// Returns the principal, for events.
    fn who(&self) -> Who<'_> {
        self.settings.who(Some(self.principal))
    }

    /// Returns whether a session is listed.
    pub(crate) async fn lists(&self, id: SessionId) -> Result<bool> {
        Ok(self.read().await?.record.lists(id))
    }

    /// Returns the entry of a session, or `None` if the directory does not list it.
    #[cfg(feature = "cli")]
    pub(crate) async fn listing(&self, id: SessionId) -> Result<Option<Listing>> {
        let record = self.read().await?.record;
        Ok(record.lists(id).then(|| Listing { label: record.label(id).map(Into::into) }))
    }

    /// Returns what a sign-in that begins now must remember about the directory.
    pub(crate) async fn sign_in_start(self) -> Result<SignInStart> {
        // Taken before the read, so that the record that is read is never older than this time.
        let at = self.settings.now();
        let snapshot = self.read().await?;
        let (mark, stored) = (snapshot.mark(), snapshot.stored);
        let size = stored.as_ref().map_or(0, |stored| stored.bytes.len());
        let (store, key) = (Arc::downgrade(&self.settings.store), self.key);
        let directory = (size <= KEPT_BYTES).then_some(BegunDirectory { store, key, stored });
        Ok(SignInStart { mark, at, directory })
    }

    /// Returns the directory as `begin_sign_in` read it, if that was only a moment ago and the enrolment does
    /// not require a session to be revoked. The copy may be out of date, and no live session may be revoked
    /// because of an outdated copy.
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

    /// Decodes the directory from what the store holds.
    fn snapshot(&self, stored: Option<Stored>) -> Result<DirectorySnapshot> {
        let record = match &stored {
            Some(stored) => decoded(self.record_key(), codec::decode(&stored.bytes))?,
            // `write` sets the tags.
            None => DirectoryRecord::new(Tags::first(Tag([0; TAG_LEN]))),
        };
        Ok(DirectorySnapshot { record, stored })
    }

    /// Writes `record` by compare-and-set, if the store still holds `stored`. `record` must have the tags
    /// that were read.
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
                // The next attempt reads the record and decides again, whether or not this write was applied.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    return Ok(DirectoryWrite::Overtaken(tag));
                }
                Err(error) => return Err(error),
            },
        };
        let stored = Some(Stored::new(write.bytes, version));
        Ok(DirectoryWrite::Written(DirectorySnapshot { record, stored }))
    }

    /// Waits after a conflict. After the first conflict, waits for the commits in this process that had an
    /// earlier conflict on the record. After several conflicts, pauses so that commits in other processes can
    /// finish.
    async fn back_off(&self, guard: &mut Option<KeyGuard<'a>>, attempt: u32) -> Result<()> {
        if guard.is_none() {
            *guard = Some(self.commands.key_guard(self.settings, &self.key).await);
        } else if attempt >= PROMPT_ATTEMPTS {
            pause(&self.commands, &*self.settings.entropy, attempt).await?;
        }
        Ok(())
    }
}

/// Returns the key of a principal's directory under the configured cookie name. The principal is hashed, so
/// that any principal makes a valid key and no two principals share a key.
pub(crate) fn directory_key(settings: &Settings, principal: &str) -> StoreKey {
    let digest = encoded_digest(settings.cookie.name(), principal.as_bytes());
    StoreKey::new(&settings.key_prefix, Kind::Directory, &digest)
}

impl Settings {
    /// Returns whether a session is valid according to its directory: always `true`, except in strict mode
    /// for a signed-in session that is not listed.
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
