//! Directories in the store: read, changed by compare-and-set, and what they say carried out.

pub(crate) mod codec;
pub(crate) mod record;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::{join, join_all, try_join_all};
use tokio::time::{sleep, timeout};

use crate::clock::Millis;
use crate::commands::{Base, Commands, Settled, Write, pause};
use crate::directory::record::{
    DirectoryRecord, Enrolment, EnrolmentOutcome, Entry, Generation, Purpose, Reservation, SKEW,
};
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::key_lock::KeyGuard;
use crate::limits::{PROMPT_ATTEMPTS, TOMBSTONE_TTL};
use crate::load::decoded;
use crate::record::authority::Authority;
use crate::record::codec as records;
use crate::record::header::{Header, Update};
use crate::record::lifetime::Lifetime;
use crate::record::loaded::Loaded;
use crate::record::sign_in::{Mark, SignInStart};
use crate::record::tag::{Tag, Tags};
use crate::record::token::digest_under;
use crate::record::token::{SecretDigest, SessionId};
use crate::settings::{DirectoryMode, Settings};
use crate::store::{Created, Deleted, Kind, StoreKey, TAG_LEN, Version};

/// How often sign-ins that are under way are looked for before they are taken for dead, and after
/// how long each time.
const PROBE_ATTEMPTS: usize = 3;

/// How many sessions are looked at together where a directory is at its limit.
const PROBE_BATCH: usize = 16;

const PROBE_INTERVAL: Duration = Duration::from_millis(10);

/// The deadline of the record that keeps others from being created: over by every clock.
const TOMBSTONE_DEADLINE: Millis = Millis(0);

/// One principal's directory, and the time that is left for it.
pub(crate) struct DirectoryHandle<'a> {
    settings: &'a Settings,
    commands: Commands<'a>,
    principal: &'a str,
    key: StoreKey,
}

/// A directory as it stands in the store.
struct StoredDirectory {
    record: DirectoryRecord,
    version: Version,
}

/// What a look at a listed session finds.
enum EntryState {
    /// The session, signed in as this principal.
    Owned(Arc<Loaded>),
    /// Nobody is signed in on it, or not yet.
    Anonymous(Arc<Loaded>),
    Missing,
    /// No session of this principal, and none that could become one.
    Foreign,
}

/// The listed sessions that a sign-in found alive, and as it found them where their cookie has never
/// come back.
type ProbedSessions = HashMap<SessionId, Option<Arc<Loaded>>>;

/// What a revocation did.
#[derive(Debug, Default)]
pub(crate) struct Revocation {
    /// Those that were alive.
    pub(crate) ids: HashSet<SessionId>,
    /// There was a directory to tell which sessions there are.
    pub(crate) were_listed: bool,
}

/// Which sessions are to end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RevocationTarget {
    One(SessionId),
    AllExcept(Option<SessionId>),
}

impl<'a> DirectoryHandle<'a> {
    pub(crate) fn new(settings: &'a Settings, commands: Commands<'a>, principal: &'a str) -> Self {
        let key = directory_key(settings, principal);
        Self { settings, commands, principal, key }
    }

    /// Whether a session is listed.
    pub(crate) async fn lists(&self, id: SessionId) -> Result<bool> {
        let stored = self.read().await?;
        Ok(stored.is_some_and(|stored| stored.record.lists(id)))
    }

    /// What a sign-in that begins now finds.
    pub(crate) async fn begun(&self) -> Result<SignInStart> {
        let stored = self.read().await?;
        let generation = stored.and_then(|stored| stored.record.generation);
        Ok(SignInStart {
            mark: generation.map(|generation| generation.mark),
            at: self.settings.now(),
        })
    }

    /// Puts a session on the record, before it is written, and returns the mark that the directory has and
    /// whether the reservation is a new one. `expected` is the mark that its sign-in found at first, `abandoned` a
    /// session that the same sign-in could not be sure of.
    pub(crate) async fn enrol(
        &self,
        enrolment: &Enrolment,
        expected: Option<Option<Mark>>,
        abandoned: Option<SessionId>,
    ) -> Result<(Option<Mark>, bool)> {
        let policy = self.settings.options.concurrent();
        let mut probed = HashMap::new();
        let mut tried = false;
        let mut guard = None;
        for attempt in 0..self.settings.options.commit_attempts {
            let stored = self.read().await?;
            let mut record = self.roll_of(stored.as_ref());
            let mark = record.generation.map(|generation| generation.mark);
            // A directory that is not there remembers no revocation, neither an old nor a new one.
            if stored.is_some() && expected.is_some_and(|expected| expected != mark) {
                return Err(self.overtaken());
            }
            // It must not count, whether its end can be carried out now or not.
            record.revoke(|listed| Some(listed) == abandoned);
            let unfinished: HashSet<_> = record.revoked().into_iter().chain(abandoned).collect();
            record.remove(&self.finished(&unfinished, 4).await);
            // It may stand there by a write of this sign-in's own target answer was lost.
            let is_new = !record.lists(enrolment.id)
                || (tried && record.has(enrolment.id, enrolment.signed_in));
            let mut outcome = record.enrol(enrolment, policy, false);
            if outcome == EnrolmentOutcome::Full {
                self.make_room(&mut record, enrolment, &mut probed).await;
                outcome = record.enrol(enrolment, policy, true);
            }
            let evicted = match outcome {
                EnrolmentOutcome::Enrolled { evicted } => evicted.into_iter().collect(),
                // Who met another version writes the record again in any case: it may have been somebody who
                // made sure that the session is nobody's, and is about to give its reservation away.
                EnrolmentOutcome::AlreadyListed
                    if unfinished.is_empty() && enrolment.purpose != Purpose::Again =>
                {
                    return Ok((mark, is_new));
                }
                EnrolmentOutcome::AlreadyListed => HashSet::new(),
                EnrolmentOutcome::BeingRevoked => {
                    return Err(Error::new(ErrorKind::Unavailable, "this session is being ended"));
                }
                EnrolmentOutcome::NotListed => return Err(self.settings.gone("")),
                EnrolmentOutcome::Full => {
                    event::sign_in_refused(&self.key);
                    return Err(Error::new(ErrorKind::TooManySessions, ""));
                }
            };
            if let Some(written) = self.write(stored.as_ref(), record).await? {
                if !evicted.is_empty() {
                    let over = self.finished(&evicted, 2).await;
                    self.take_off(&written, &over).await;
                }
                return Ok((mark, is_new));
            }
            tried = is_new;
            self.wait_for_others(&mut guard, attempt).await?;
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Gives back the reservation of a sign-in that failed, unless somebody has signed in on its session since.
    pub(crate) async fn release(&self, reservation: Reservation) -> Result<()> {
        let mut guard = None;
        for attempt in 0..self.settings.options.commit_attempts {
            let Some(stored) = self.read().await? else { return Ok(()) };
            if !stored.record.has(reservation.id, reservation.signed_in) {
                return Ok(());
            }
            let mut record = stored.record.clone();
            let left = self.commands.time_left();
            // If it was written after all, nobody knows its secret.
            let is_others = |loaded: &Loaded| loaded.record.header.tags.newest() != reservation.tag;
            match timeout(left / 2, self.is_over(reservation.id, is_others)).await {
                Ok(Ok(true)) => record.remove(&HashSet::from([reservation.id])),
                Ok(Ok(false)) => return Ok(()),
                // Its end is left to whoever comes next. Until then it does not count.
                Ok(Err(_)) | Err(_) => drop(record.revoke(|listed| listed == reservation.id)),
            }
            if self.write(Some(&stored), record).await?.is_some() {
                return Ok(());
            }
            self.wait_for_others(&mut guard, attempt).await?;
        }
        Ok(())
    }

    /// Ends sessions. With [`RevocationTarget::AllExcept`], no sign-in that has begun before succeeds any more.
    pub(crate) async fn revoke(&self, target: RevocationTarget) -> Result<Revocation> {
        let mut guard = None;
        for attempt in 0..self.settings.options.commit_attempts {
            let stored = self.read().await?;
            let mut record = self.roll_of(stored.as_ref());
            let now = self.settings.now();
            match target {
                RevocationTarget::One(id) => {
                    if record.revoke(|listed| listed == id).is_empty() {
                        return Ok(Revocation::default());
                    }
                }
                RevocationTarget::AllExcept(kept) => {
                    if let Some(kept) = kept {
                        self.is_kept(kept, &record).await?;
                    }
                    record.revoke(|listed| Some(listed) != kept);
                    let mut mark = Mark::default();
                    self.settings.entropy.fill(&mut mark)?;
                    record.generation = Some(Generation { mark, since: now });
                    if stored.is_none() {
                        record.incomplete_until =
                            Some(now.plus(self.settings.options.lifetime.absolute() + SKEW));
                    }
                }
            }
            let were_listed = record.incomplete_until.is_none_or(|until| until <= now);
            let revoked: HashSet<_> = record.revoked().into_iter().collect();
            if let Some(written) = self.write(stored.as_ref(), record).await? {
                let ids = self.finish(&written, &revoked, target).await?;
                return Ok(Revocation { ids, were_listed });
            }
            self.wait_for_others(&mut guard, attempt).await?;
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Whether the session that is to be kept lives: who was ended meanwhile ends nobody else.
    async fn is_kept(&self, kept: SessionId, record: &DirectoryRecord) -> Result<()> {
        // One that is neither listed nor revoked was on a directory that is lost, or is no more.
        let lives = record.lists(kept)
            || (self.settings.options.directory != DirectoryMode::Strict
                && !record.revoked().contains(&kept)
                && self.stored(kept).await?.is_some());
        if lives { Ok(()) } else { Err(self.settings.gone("")) }
    }

    /// The sessions that live, the newest sign-in first, with their labels.
    pub(crate) async fn living(&self) -> Result<Vec<(Arc<Loaded>, Option<Arc<str>>)>> {
        let Some(stored) = self.read().await? else { return Ok(Vec::new()) };
        let now = self.settings.now();
        let looks = stored.record.listed().rev().map(async |entry| {
            let found = self.look(entry.id).await?;
            Ok((entry, found))
        });
        let mut living = Vec::new();
        let mut missing = Vec::new();
        for (entry, found) in try_join_all(looks).await? {
            match found {
                EntryState::Owned(loaded) if !loaded.record.header.clocks.expired(now) => {
                    living.push((loaded, entry.label.clone()));
                }
                EntryState::Missing | EntryState::Foreign if entry.is_settled(now) => {
                    missing.push(entry.id)
                }
                _ => {}
            }
        }
        let mut over = self.over(&missing).await;
        over.extend(self.finished(&stored.record.revoked().into_iter().collect(), 4).await);
        self.take_off(&stored, &over).await;
        Ok(living)
    }

    async fn read(&self) -> Result<Option<StoredDirectory>> {
        let Some(stored) = self.commands.load(&self.key).await? else { return Ok(None) };
        let record = decoded(&self.key, codec::decode(&stored.bytes))?;
        Ok(Some(StoredDirectory { record, version: stored.version }))
    }

    fn roll_of(&self, stored: Option<&StoredDirectory>) -> DirectoryRecord {
        match stored {
            Some(stored) => stored.record.clone(),
            None => DirectoryRecord::new(Tags::first(Tag([0; TAG_LEN]))),
        }
    }

    /// Stores the record in reservation of what was read; `None` where others came first, or may have.
    async fn write(
        &self,
        stored: Option<&StoredDirectory>,
        mut record: DirectoryRecord,
    ) -> Result<Option<StoredDirectory>> {
        let tag = self.settings.tag()?;
        record.tags = match stored {
            Some(stored) => stored.record.tags.followed_by(tag),
            None => Tags::first(tag),
        };
        let ttl = record.ttl(self.settings.options.lifetime.absolute());
        let write = Write { bytes: codec::encode(&record), ttl, tag };
        let version = match stored {
            Some(StoredDirectory { record, version }) => {
                let base = Base { version: *version, tag: record.tags.newest() };
                match self.commands.replace(&self.key, &write, base).await? {
                    Settled::Applied(version) => version,
                    // Applied, perhaps, but not what stands there now.
                    Settled::Followed(_) | Settled::Conflict(_) | Settled::Missing => {
                        return Ok(None);
                    }
                }
            }
            None => match self.commands.create(&self.key, &write).await {
                Ok(Created::Created(version)) => version,
                Ok(Created::Occupied) => return Ok(None),
                // Whatever was decided is decided again on what stands there, to the same end.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        Ok(Some(StoredDirectory { record, version }))
    }

    /// Carries out what was decided, and takes off the record what has ended; those that were alive. An error
    /// where one target end was asked for could not be ended: the others are somebody else's unfinished work.
    async fn finish(
        &self,
        stored: &StoredDirectory,
        revoked: &HashSet<SessionId>,
        target: RevocationTarget,
    ) -> Result<HashSet<SessionId>> {
        let (asked, others): (HashSet<SessionId>, _) = revoked
            .iter()
            .partition(|id| !matches!(target, RevocationTarget::One(only) if only != **id));
        // All of them are tried, whatever becomes of one.
        let ends = join_all(asked.iter().map(async |id| (*id, self.end(*id).await)));
        let (ends, mut over) = join(ends, self.finished(&others, 4)).await;
        let (mut were_alive, mut failure) = (HashSet::new(), None);
        for (id, end) in ends {
            match end {
                Ok(was_alive) => {
                    over.insert(id);
                    were_alive.extend(was_alive.then_some(id));
                }
                Err(error) => failure = Some(error),
            }
        }
        self.take_off(stored, &over).await;
        failure.map_or(Ok(were_alive), Err)
    }

    /// Those of the revoked sessions that are certainly no more. The others stay revoked: a server that
    /// is down must keep nobody from signing in on another one, so there is only this part of the time for it.
    async fn finished(&self, revoked: &HashSet<SessionId>, part: u32) -> HashSet<SessionId> {
        let left = self.commands.time_left();
        let ends = revoked.iter().map(async |id| {
            timeout(left / part, self.end(*id)).await.is_ok_and(|end| end.is_ok()).then_some(*id)
        });
        join_all(ends).await.into_iter().flatten().collect()
    }

    /// Takes off the record what is no more. What stays there is found ended by whoever comes next.
    async fn take_off(&self, stored: &StoredDirectory, over: &HashSet<SessionId>) {
        if !over.is_empty() {
            let mut record = stored.record.clone();
            record.remove(over);
            let _ = self.write(Some(stored), record).await;
        }
    }

    async fn end(&self, id: SessionId) -> Result<bool> {
        let Some(loaded) = self.shut(id).await? else { return Ok(false) };
        // At whatever version: its id is this principal's for ever, whoever writes to it.
        let (deleted, in_doubt) = self.commands.delete(&loaded.key, None).await?;
        let was_alive = deleted == Deleted::Deleted || in_doubt;
        if was_alive {
            event::revoked(id);
        }
        Ok(was_alive)
    }

    /// Makes sure that no sign-in that is under way makes this session one of the principal's any
    /// more; the session, if it is one already.
    async fn shut(&self, id: SessionId) -> Result<Option<Arc<Loaded>>> {
        for attempt in 0..self.settings.options.commit_attempts {
            match self.look(id).await? {
                EntryState::Owned(loaded) => return Ok(Some(loaded)),
                EntryState::Foreign => return Ok(None),
                EntryState::Missing => {
                    // Nobody creates a session where this stands.
                    let write = self.tombstone()?;
                    match self.commands.create(&self.settings.key(id), &write).await {
                        Ok(Created::Created(_)) => return Ok(None),
                        Ok(Created::Occupied) => {}
                        Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {}
                        Err(error) => return Err(error),
                    }
                }
                EntryState::Anonymous(loaded) => {
                    // Whoever goes on from the version before meets a conflict, and asks again.
                    let write = self.rewritten(&loaded)?;
                    match self.commands.replace(&loaded.key, &write, loaded.base()).await? {
                        Settled::Applied(_) | Settled::Followed(_) => return Ok(None),
                        Settled::Conflict(_) | Settled::Missing => {}
                    }
                }
            }
            if attempt >= PROMPT_ATTEMPTS {
                pause(&self.commands, &*self.settings.entropy, attempt).await?;
            }
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    async fn look(&self, id: SessionId) -> Result<EntryState> {
        let key = self.settings.key(id);
        let Some(stored) = self.commands.load(&key).await? else { return Ok(EntryState::Missing) };
        let record = match decoded(&key, records::decode(stored.bytes)) {
            Ok(record) => record,
            // Nobody's session; it stays as it is.
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

    /// The session, if the store has it and it is this principal's.
    async fn stored(&self, id: SessionId) -> Result<Option<Arc<Loaded>>> {
        Ok(match self.look(id).await? {
            EntryState::Owned(loaded) => Some(loaded),
            _ => None,
        })
    }

    /// Takes off the record what does not count any more, until there is room for one more session. Where
    /// the oldest may be evicted, only so many are looked at; where a new sign-in is to be refused, all may have
    /// to be.
    async fn make_room(
        &self,
        record: &mut DirectoryRecord,
        enrolment: &Enrolment,
        probed: &mut ProbedSessions,
    ) {
        let policy = self.settings.options.concurrent();
        let mut unseen: Vec<_> = record.counted(enrolment).cloned().collect();
        // Any of them may have ended, so that the same ones are not looked at each time.
        let start = usize::from(enrolment.id.as_bytes()[0]) % unseen.len().max(1);
        unseen.rotate_left(start);
        for entries in unseen.chunks(PROBE_BATCH) {
            record.remove(&self.gone(entries, probed).await);
            if record.over(enrolment, policy) == 0 || policy.evicts() {
                return;
            }
        }
        if policy.rejects() {
            let over = record.over(enrolment, policy);
            let unconfirmed =
                record.counted(enrolment).filter_map(|entry| probed.get(&entry.id)?.clone());
            let unconfirmed: Vec<_> = unconfirmed.collect();
            if unconfirmed.len() >= over {
                record.remove(&self.revoke_unconfirmed(&unconfirmed, over).await);
            }
        }
    }

    /// Which of the listed sessions are no more, made sure of. What cannot be told counts as alive, and
    /// so does what was `probed` before.
    async fn gone(&self, entries: &[Entry], probed: &mut ProbedSessions) -> HashSet<SessionId> {
        let now = self.settings.now();
        let mut missing: Vec<_> =
            entries.iter().filter(|entry| !probed.contains_key(&entry.id)).collect();
        for look in 1..=PROBE_ATTEMPTS {
            let found = join_all(missing.iter().map(|entry| self.stored(entry.id))).await;
            let mut found = found.into_iter();
            missing.retain(|entry| match found.next() {
                Some(Ok(None)) => true,
                Some(Ok(Some(loaded))) => {
                    let is_unconfirmed = loaded.record.header.is_unconfirmed;
                    probed.insert(entry.id, is_unconfirmed.then_some(loaded));
                    false
                }
                Some(Err(_)) | None => {
                    probed.insert(entry.id, None);
                    false
                }
            });
            // A sign-in enrols first and writes then: where one may be under way, it gets a moment.
            let is_fresh =
                |signed_in: Millis| now.since(signed_in) < 2 * self.settings.options.timeout;
            if look == PROBE_ATTEMPTS
                || !missing.iter().any(|entry| is_fresh(entry.signed_in))
                || PROBE_INTERVAL >= self.commands.time_left()
            {
                break;
            }
            sleep(PROBE_INTERVAL).await;
        }
        self.over(&missing.into_iter().map(|entry| entry.id).collect::<Vec<_>>()).await
    }

    /// Those of the missing sessions that are no more and never will be.
    async fn over(&self, missing: &[SessionId]) -> HashSet<SessionId> {
        let over = missing
            .iter()
            .map(async |id| self.is_over(*id, |_| true).await.unwrap_or(false).then_some(*id));
        join_all(over).await.into_iter().flatten().collect()
    }

    /// Ends so many of the sessions target cookie never came back, the oldest first: those that it has not
    /// come back for since they were looked at.
    async fn revoke_unconfirmed(
        &self,
        unconfirmed: &[Arc<Loaded>],
        over: usize,
    ) -> HashSet<SessionId> {
        let mut ended = HashSet::new();
        for session in unconfirmed {
            if ended.len() == over {
                break;
            }
            match self.commands.delete(&session.key, Some(session.version)).await {
                Ok((Deleted::Deleted, _)) => {
                    event::revoked(session.id);
                    ended.insert(session.id);
                }
                Ok((Deleted::Missing, _)) => drop(ended.insert(session.id)),
                Ok((Deleted::Conflict, _)) | Err(_) => {}
            }
        }
        ended
    }

    /// Makes sure that a session is no more and never will be, unless it turns out that it `stays`.
    async fn is_over(&self, id: SessionId, stays: impl Fn(&Loaded) -> bool) -> Result<bool> {
        let Some(loaded) = self.shut(id).await? else { return Ok(true) };
        if stays(&loaded) {
            return Ok(false);
        }
        let (deleted, _) = self.commands.delete(&loaded.key, Some(loaded.version)).await?;
        Ok(deleted != Deleted::Conflict)
    }

    /// A record that is over, of nobody, for a while.
    fn tombstone(&self) -> Result<Write> {
        let (tag, now) = (self.settings.tag()?, self.settings.now());
        // No secret is known to have this digest, and the record is over anyway.
        let digest = SecretDigest::from_bytes([0; SecretDigest::LEN]);
        let mut header = Header::new(digest, now, &Lifetime::default(), tag);
        header.clocks.end_by(TOMBSTONE_DEADLINE);
        Ok(Write { bytes: records::encode_indexed(&header, &[]).0, ttl: TOMBSTONE_TTL, tag })
    }

    /// The same session as another version.
    fn rewritten(&self, loaded: &Loaded) -> Result<Write> {
        let (tag, now) = (self.settings.tag()?, self.settings.now());
        let update = Update::plain(now, tag, &self.settings.options.lifetime);
        let header = loaded.record.header.updated(&update);
        let values: Vec<_> = loaded.record.values.iter().collect();
        let bytes = records::encode_indexed(&header, &values).0;
        Ok(Write { bytes, ttl: header.clocks.ttl(now), tag })
    }

    fn overtaken(&self) -> Error {
        event::sign_in_overtaken(&self.key);
        Error::new(ErrorKind::Revoked, "")
    }

    /// Lets those of this process who met a conflict before go first, and then those of others.
    async fn wait_for_others(&self, guard: &mut Option<KeyGuard<'a>>, attempt: u32) -> Result<()> {
        if guard.is_none() {
            *guard = Some(self.commands.key_guard(self.settings, &self.key).await);
        } else if attempt >= PROMPT_ATTEMPTS {
            pause(&self.commands, &*self.settings.entropy, attempt).await?;
        }
        Ok(())
    }
}

/// The directory of a principal's sessions under a cookie's name. By a digest, so that every principal
/// is a key, and none is another one's.
pub(crate) fn directory_key(settings: &Settings, principal: &str) -> StoreKey {
    let digest = digest_under(settings.cookie.name(), principal.as_bytes());
    StoreKey::new(&settings.key_prefix, Kind::Directory, &URL_SAFE_NO_PAD.encode(digest))
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
            event::unlisted(loaded.id);
        }
        Ok(is_listed)
    }
}
