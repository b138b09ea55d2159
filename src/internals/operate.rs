//! Operations for the `unsticky` command that applications do not need. They find a session by its public id
//! alone, whether or not a user is signed in. Nothing here is part of the public interface.

#![allow(missing_docs, clippy::missing_errors_doc, reason = "not a public interface")]

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::budget::Budget;
use crate::commands::{Commands, pause};
use crate::directory::DirectoryHandle;
use crate::error::{self, Error, ErrorKind, Result};
use crate::event::{self, Actor, Label};
use crate::limits::{self, PROMPT_ATTEMPTS};
use crate::load::{self, Lookup};
use crate::record::codec::TOMBSTONE_DEADLINE;
use crate::record::flash;
use crate::record::loaded::{Loaded, Record};
use crate::record::token::SessionId;
use crate::record::values::{Item, OnSignIn};
use crate::sessions::listed::Rfc3339;
use crate::settings::{DirectoryMode, Sessions, Settings};
use crate::store::{self, ConnectError, Deleted, MemcachedStore, RedisStore, Store};

/// The prefix of the keys that this crate uses for its own values.
const RESERVED: &str = "unsticky.";

/// A session as it is stored, without the digest of its secret and without its write tags.
#[allow(missing_debug_implementations, reason = "it holds values")]
pub struct Examined {
    pub id: SessionId,
    pub principal: Option<Arc<str>>,
    pub created: OffsetDateTime,
    /// `None` if no user is signed in.
    pub signed_in_at: Option<OffsetDateTime>,
    pub last_seen: OffsetDateTime,
    pub idle_deadline: OffsetDateTime,
    pub absolute_deadline: OffsetDateTime,
    /// The earlier of the two deadlines.
    pub expires_at: OffsetDateTime,
    pub is_expired: bool,
    pub standing: Standing,
    /// Whether strict mode is on: a signed-in session is then valid only while its directory lists it.
    pub is_strict: bool,
    pub values: Vec<Examination>,
}

/// The state of a session in its principal's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// No user is signed in, so there is no directory.
    Anonymous,
    Listed {
        label: Option<Arc<str>>,
    },
    Unlisted,
    /// The directory cannot be decoded.
    Unknown,
}

/// A value in a session.
#[allow(missing_debug_implementations, reason = "it holds the value")]
pub struct Examination {
    pub key: String,
    pub bytes: usize,
    pub survives_sign_in: bool,
    pub content: Content,
}

/// The part of a value that may be shown.
#[allow(missing_debug_implementations, reason = "it holds the value")]
pub enum Content {
    /// The JSON as it is stored.
    Json(String),
    /// The value is not text.
    Binary,
    /// The value is a secret of this crate.
    Secret,
}

/// The result of revoking a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Revoked,
    /// The session had expired, but the store still had its record. The record is now deleted.
    Expired,
    NotFound,
}

/// Reads a session. Returns `None` if the store has no session with this id. Emits the `opened` event.
pub async fn examine(sessions: &Sessions, id: SessionId, actor: &str) -> Result<Option<Examined>> {
    let settings = sessions.settings();
    let budget = Budget::new(settings.options.timeout);
    let commands = Commands::new(settings, &budget);
    let Some(loaded) = look_up(settings, commands, id).await? else { return Ok(None) };
    event::opened(id, settings.who_of(&loaded), Actor(Some(actor)));
    let standing = standing(settings, commands, &loaded).await?;
    Ok(Some(examined(settings, &loaded, standing)))
}

/// Revokes a session through its principal's directory. If no user is signed in, deletes the session
/// directly.
pub async fn revoke(sessions: &Sessions, id: SessionId, actor: &str) -> Result<Outcome> {
    let settings = sessions.settings();
    let budget = Budget::new(settings.options.timeout);
    let commands = Commands::new(settings, &budget);
    for attempt in 0..settings.options.commit_attempts {
        let Some(loaded) = look_up(settings, commands, id).await? else {
            return Ok(Outcome::NotFound);
        };
        let header = &loaded.record.header;
        let was_stored = match &header.principal {
            Some(principal) => match sessions.of(principal).by(actor).revoke_owned(id).await {
                // The corrupt directory record stays unchanged, but the session must still be revoked.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    delete(settings, commands, &loaded, actor).await?
                }
                outcome => Some(outcome?),
            },
            None => delete(settings, commands, &loaded, actor).await?,
        };
        match was_stored {
            Some(true) if header.clocks.expired(settings.now()) => return Ok(Outcome::Expired),
            Some(true) => return Ok(Outcome::Revoked),
            Some(false) => return Ok(Outcome::NotFound),
            None if attempt >= PROMPT_ATTEMPTS => {
                pause(&commands, &*settings.entropy, attempt).await?;
            }
            None => {}
        }
    }
    Err(Error::new(ErrorKind::Contended, ""))
}

/// Returns the store at an address. An operation takes at most `timeout`. Connecting and waiting for the
/// answer get the same shares of this time as they get of the default timeout.
pub fn connect(url: &str, timeout: Duration) -> Result<Arc<dyn Store>, ConnectError> {
    let part = limits::CONNECT.as_secs_f64() / limits::TIMEOUT.as_secs_f64();
    let part = timeout.mul_f64(part);
    match url.split([':', '+']).next().unwrap_or_default() {
        "memcached" => {
            let builder = MemcachedStore::builder(url)?;
            Ok(Arc::new(builder.connect_timeout(part).response_timeout(part).build()))
        }
        "redis" | "rediss" | "valkey" | "valkeys" | "unix" => {
            let builder = RedisStore::builder(url)?;
            Ok(Arc::new(builder.connect_timeout(part).response_timeout(part).build()?))
        }
        _ => store::connect(url),
    }
}

/// Returns an error with its causes in one line, without secrets.
#[must_use]
pub fn causes(error: &Error) -> String {
    error::causes(error)
}

/// Returns whether a character can neither end a line nor control a terminal.
#[must_use]
pub fn is_plain(char: char) -> bool {
    error::is_plain(char)
}

/// Formats a time according to RFC 3339, in UTC and whole seconds.
#[must_use]
pub fn rfc3339(time: OffsetDateTime) -> String {
    Rfc3339(time).to_string()
}

/// Returns the session with this id. A tombstone is not a session.
async fn look_up(
    settings: &Settings,
    commands: Commands<'_>,
    id: SessionId,
) -> Result<Option<Arc<Loaded>>> {
    match load::look_up(settings, commands, id, false).await? {
        Lookup::Found(loaded) => {
            let header = &loaded.record.header;
            let is_tombstone =
                header.principal.is_none() && header.clocks.deadline() == TOMBSTONE_DEADLINE;
            Ok((!is_tombstone).then_some(loaded))
        }
        Lookup::Missing => Ok(None),
        Lookup::Corrupt => Err(Error::new(ErrorKind::Corrupt, "")),
    }
}

/// Deletes a session, unless it has been written since it was read, in which case a user may have signed in.
/// Returns whether the session existed, or `None` if it must be read again.
async fn delete(
    settings: &Settings,
    commands: Commands<'_>,
    loaded: &Loaded,
    actor: &str,
) -> Result<Option<bool>> {
    Ok(match commands.delete(&loaded.key, Some(&loaded.stored())).await? {
        // The answer to an earlier attempt at this command may have been lost.
        (Deleted::Deleted, _) | (Deleted::Missing, true) => {
            let who = settings.who_of(loaded);
            event::revoked(loaded.id, who, Label(None), Actor(Some(actor)), "revoked");
            Some(true)
        }
        (Deleted::Missing, false) => Some(false),
        (Deleted::Conflict(_), _) => None,
    })
}

async fn standing(
    settings: &Settings,
    commands: Commands<'_>,
    loaded: &Loaded,
) -> Result<Standing> {
    let Some(principal) = &loaded.record.header.principal else { return Ok(Standing::Anonymous) };
    match DirectoryHandle::new(settings, commands, principal).listing(loaded.id).await {
        Ok(Some(listing)) => Ok(Standing::Listed { label: listing.label }),
        Ok(None) => Ok(Standing::Unlisted),
        // An event has already reported this.
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NewerFormat) => {
            Ok(Standing::Unknown)
        }
        Err(error) => Err(error),
    }
}

fn examined(settings: &Settings, loaded: &Loaded, standing: Standing) -> Examined {
    let Record { header, values } = &loaded.record;
    let clocks = &header.clocks;
    let signed_in_at = header.principal.as_ref().and(clocks.authenticated);
    Examined {
        id: loaded.id,
        principal: header.principal.clone(),
        created: clocks.created.to_time_or_last(),
        signed_in_at: signed_in_at.map(|moment| moment.to_time_or_last()),
        last_seen: clocks.last_seen.to_time_or_last(),
        idle_deadline: clocks.idle_deadline.to_time_or_last(),
        absolute_deadline: clocks.absolute_deadline.to_time_or_last(),
        expires_at: clocks.deadline().to_time_or_last(),
        is_expired: clocks.expired(settings.now()),
        standing,
        is_strict: settings.options.directory == DirectoryMode::Strict,
        values: values.items().map(|item| examination(&item)).collect(),
    }
}

fn examination(item: &Item<'_>) -> Examination {
    let key = String::from_utf8_lossy(item.key).into_owned();
    // Flash messages are the only values written by this crate that are not secret.
    let is_secret = key.starts_with(RESERVED) && key != flash::KEY;
    let content = match std::str::from_utf8(item.bytes) {
        _ if is_secret => Content::Secret,
        Ok(text) => Content::Json(text.to_owned()),
        Err(_) => Content::Binary,
    };
    Examination {
        key,
        bytes: item.bytes.len(),
        survives_sign_in: item.outlives(OnSignIn::First),
        content,
    }
}
