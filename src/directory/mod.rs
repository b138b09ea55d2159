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
use crate::commands::{Base, Caller, Settled, Write, pause};
use crate::directory::record::{
    Admission, Application, Entry, Generation, Place, Purpose, Roll, SKEW,
};
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::key_lock::Turn;
use crate::limits::{FENCE, PROMPT_ATTEMPTS};
use crate::load::decoded;
use crate::record::authority::Authority;
use crate::record::codec as records;
use crate::record::header::{Header, Update};
use crate::record::lifetime::Lifetime;
use crate::record::loaded::Loaded;
use crate::record::sign_in::{Begun, Mark};
use crate::record::tag::{Tag, Tags};
use crate::record::token::digest_under;
use crate::record::token::{SecretDigest, SessionId};
use crate::settings::{DirectoryMode, Settings};
use crate::store::{Created, Deleted, Kind, StoreKey, TAG_LEN, Version};

/// How often sign-ins that are under way are looked for before they are taken for dead, and after
/// how long each time.
const LOOKS: usize = 3;

/// How many sessions are looked at together where a directory is at its limit.
const LOOKED_AT: usize = 16;

const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// The deadline of the record that keeps others from being created: over by every clock.
const FENCED: Millis = Millis(0);

/// One principal's directory, and the time that is left for it.
pub(crate) struct Keeper<'a> {
    settings: &'a Settings,
    caller: Caller<'a>,
    principal: &'a str,
    key: StoreKey,
}

/// A directory as it stands in the store.
struct Standing {
    roll: Roll,
    version: Version,
}

/// What a look at a listed session finds.
enum Found {
    /// The session, signed in as this principal.
    Ours(Arc<Loaded>),
    /// Nobody is signed in on it, or not yet.
    Anonymous(Arc<Loaded>),
    Nothing,
    /// No session of this principal, and none that could become one.
    Void,
}

/// The listed sessions that a sign-in found alive, and as it found them where their cookie has never
/// come back.
type Seen = HashMap<SessionId, Option<Arc<Loaded>>>;

/// What a revocation did.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// Those that were alive.
    pub(crate) ids: HashSet<SessionId>,
    /// There was a directory to tell which sessions there are.
    pub(crate) were_listed: bool,
}

/// Which sessions are to end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose {
    Only(SessionId),
    AllBut(Option<SessionId>),
}

impl<'a> Keeper<'a> {
    pub(crate) fn new(settings: &'a Settings, caller: Caller<'a>, principal: &'a str) -> Self {
        let key = directory_key(settings, principal);
        Self { settings, caller, principal, key }
    }

    /// Whether a session is listed.
    pub(crate) async fn lists(&self, id: SessionId) -> Result<bool> {
        let standing = self.read().await?;
        Ok(standing.is_some_and(|standing| standing.roll.lists(id)))
    }

    /// What a sign-in that begins now finds.
    pub(crate) async fn begun(&self) -> Result<Begun> {
        let standing = self.read().await?;
        let generation = standing.and_then(|standing| standing.roll.generation);
        Ok(Begun { mark: generation.map(|generation| generation.mark), at: self.settings.now() })
    }

    /// Puts a session on the roll, before it is written, and returns the mark that the directory has and
    /// whether the place is a new one. `expected` is the mark that its sign-in found at first, `abandoned` a
    /// session that the same sign-in could not be sure of.
    pub(crate) async fn enrol(
        &self,
        application: &Application,
        expected: Option<Option<Mark>>,
        abandoned: Option<SessionId>,
    ) -> Result<(Option<Mark>, bool)> {
        let policy = self.settings.parallel;
        let mut seen = HashMap::new();
        let mut tried = false;
        let mut turn = None;
        for attempt in 0..self.settings.commit_attempts {
            let standing = self.read().await?;
            let mut roll = self.roll_of(standing.as_ref());
            let mark = roll.generation.map(|generation| generation.mark);
            // A directory that is not there remembers no revocation, neither an old nor a new one.
            if standing.is_some() && expected.is_some_and(|expected| expected != mark) {
                return Err(self.overtaken());
            }
            // It must not count, whether its end can be carried out now or not.
            roll.revoke(|listed| Some(listed) == abandoned);
            let unfinished: HashSet<_> = roll.revoked().into_iter().chain(abandoned).collect();
            roll.remove(&self.finished(&unfinished, 4).await);
            // It may stand there by a write of this sign-in's own whose answer was lost.
            let is_new = !roll.lists(application.id)
                || (tried && roll.has(application.id, application.signed_in));
            let mut admission = roll.admit(application, policy, false);
            if admission == Admission::Full {
                self.make_room(&mut roll, application, &mut seen).await;
                admission = roll.admit(application, policy, true);
            }
            let evicted = match admission {
                Admission::Admitted { evicted } => evicted.into_iter().collect(),
                // Who met another version writes the roll again in any case: it may have been somebody who
                // made sure that the session is nobody's, and is about to give its place away.
                Admission::Standing
                    if unfinished.is_empty() && application.purpose != Purpose::Again =>
                {
                    return Ok((mark, is_new));
                }
                Admission::Standing => HashSet::new(),
                Admission::Ending => {
                    return Err(Error::new(ErrorKind::Unavailable, "this session is being ended"));
                }
                Admission::Unlisted => return Err(self.settings.gone("")),
                Admission::Full => {
                    event::sign_in_refused(&self.key);
                    return Err(Error::new(ErrorKind::TooManySessions, ""));
                }
            };
            if let Some(written) = self.write(standing.as_ref(), roll).await? {
                if !evicted.is_empty() {
                    let over = self.finished(&evicted, 2).await;
                    self.take_off(&written, &over).await;
                }
                return Ok((mark, is_new));
            }
            tried = is_new;
            self.wait_for_others(&mut turn, attempt).await?;
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Gives back the place of a sign-in that failed, unless somebody has signed in on its session since.
    pub(crate) async fn give_back(&self, place: Place) -> Result<()> {
        let mut turn = None;
        for attempt in 0..self.settings.commit_attempts {
            let Some(standing) = self.read().await? else { return Ok(()) };
            if !standing.roll.has(place.id, place.signed_in) {
                return Ok(());
            }
            let mut roll = standing.roll.clone();
            let left = self.caller.time_left();
            // If it was written after all, nobody knows its secret.
            let is_others = |loaded: &Loaded| loaded.record.header.tags.newest() != place.tag;
            match timeout(left / 2, self.is_over(place.id, is_others)).await {
                Ok(Ok(true)) => roll.remove(&HashSet::from([place.id])),
                Ok(Ok(false)) => return Ok(()),
                // Its end is left to whoever comes next. Until then it does not count.
                Ok(Err(_)) | Err(_) => drop(roll.revoke(|listed| listed == place.id)),
            }
            if self.write(Some(&standing), roll).await?.is_some() {
                return Ok(());
            }
            self.wait_for_others(&mut turn, attempt).await?;
        }
        Ok(())
    }

    /// Ends sessions. With [`Whose::AllBut`], no sign-in that has begun before succeeds any more.
    pub(crate) async fn revoke(&self, whose: Whose) -> Result<Ended> {
        let mut turn = None;
        for attempt in 0..self.settings.commit_attempts {
            let standing = self.read().await?;
            let mut roll = self.roll_of(standing.as_ref());
            let now = self.settings.now();
            match whose {
                Whose::Only(id) => {
                    if roll.revoke(|listed| listed == id).is_empty() {
                        return Ok(Ended::default());
                    }
                }
                Whose::AllBut(kept) => {
                    if let Some(kept) = kept {
                        self.is_kept(kept, &roll).await?;
                    }
                    roll.revoke(|listed| Some(listed) != kept);
                    let mut mark = Mark::default();
                    self.settings.entropy.fill(&mut mark)?;
                    roll.generation = Some(Generation { mark, since: now });
                    if standing.is_none() {
                        roll.blind_until = Some(now.plus(self.settings.lifetime.absolute() + SKEW));
                    }
                }
            }
            let were_listed = roll.blind_until.is_none_or(|until| until <= now);
            let revoked: HashSet<_> = roll.revoked().into_iter().collect();
            if let Some(written) = self.write(standing.as_ref(), roll).await? {
                let ids = self.finish(&written, &revoked, whose).await?;
                return Ok(Ended { ids, were_listed });
            }
            self.wait_for_others(&mut turn, attempt).await?;
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Whether the session that is to be kept lives: who was ended meanwhile ends nobody else.
    async fn is_kept(&self, kept: SessionId, roll: &Roll) -> Result<()> {
        // One that is neither listed nor revoked was on a directory that is lost, or is no more.
        let lives = roll.lists(kept)
            || (self.settings.directory != DirectoryMode::Strict
                && !roll.revoked().contains(&kept)
                && self.stored(kept).await?.is_some());
        if lives { Ok(()) } else { Err(self.settings.gone("")) }
    }

    /// The sessions that live, the newest sign-in first, with their labels.
    pub(crate) async fn living(&self) -> Result<Vec<(Arc<Loaded>, Option<Arc<str>>)>> {
        let Some(standing) = self.read().await? else { return Ok(Vec::new()) };
        let now = self.settings.now();
        let looks = standing.roll.listed().rev().map(async |entry| {
            let found = self.look(entry.id).await?;
            Ok((entry, found))
        });
        let mut living = Vec::new();
        let mut missing = Vec::new();
        for (entry, found) in try_join_all(looks).await? {
            match found {
                Found::Ours(loaded) if !loaded.record.header.clocks.expired(now) => {
                    living.push((loaded, entry.label.clone()));
                }
                Found::Nothing | Found::Void if entry.is_settled(now) => missing.push(entry.id),
                _ => {}
            }
        }
        let mut over = self.over(&missing).await;
        over.extend(self.finished(&standing.roll.revoked().into_iter().collect(), 4).await);
        self.take_off(&standing, &over).await;
        Ok(living)
    }

    async fn read(&self) -> Result<Option<Standing>> {
        let Some(stored) = self.caller.load(&self.key).await? else { return Ok(None) };
        let roll = decoded(&self.key, codec::decode(&stored.bytes))?;
        Ok(Some(Standing { roll, version: stored.version }))
    }

    fn roll_of(&self, standing: Option<&Standing>) -> Roll {
        match standing {
            Some(standing) => standing.roll.clone(),
            None => Roll::new(Tags::first(Tag([0; TAG_LEN]))),
        }
    }

    /// Stores the roll in place of what was read; `None` where others came first, or may have.
    async fn write(&self, standing: Option<&Standing>, mut roll: Roll) -> Result<Option<Standing>> {
        let tag = self.settings.tag()?;
        roll.tags = match standing {
            Some(standing) => standing.roll.tags.followed_by(tag),
            None => Tags::first(tag),
        };
        let ttl = roll.ttl(self.settings.lifetime.absolute());
        let write = Write { bytes: codec::encode(&roll), ttl, tag };
        let version = match standing {
            Some(Standing { roll, version }) => {
                let base = Base { version: *version, tag: roll.tags.newest() };
                match self.caller.replace(&self.key, &write, base).await? {
                    Settled::Applied(version) => version,
                    // Applied, perhaps, but not what stands there now.
                    Settled::Followed(_) | Settled::Conflict(_) | Settled::Missing => {
                        return Ok(None);
                    }
                }
            }
            None => match self.caller.create(&self.key, &write).await {
                Ok(Created::Created(version)) => version,
                Ok(Created::Occupied) => return Ok(None),
                // Whatever was decided is decided again on what stands there, to the same end.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        Ok(Some(Standing { roll, version }))
    }

    /// Carries out what was decided, and takes off the roll what has ended; those that were alive. An error
    /// where one whose end was asked for could not be ended: the others are somebody else's unfinished work.
    async fn finish(
        &self,
        standing: &Standing,
        revoked: &HashSet<SessionId>,
        whose: Whose,
    ) -> Result<HashSet<SessionId>> {
        let (asked, others): (HashSet<SessionId>, _) =
            revoked.iter().partition(|id| !matches!(whose, Whose::Only(only) if only != **id));
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
        self.take_off(standing, &over).await;
        failure.map_or(Ok(were_alive), Err)
    }

    /// Those of the revoked sessions that are certainly no more. The others stay revoked: a server that
    /// is down must keep nobody from signing in on another one, so there is only this part of the time for it.
    async fn finished(&self, revoked: &HashSet<SessionId>, part: u32) -> HashSet<SessionId> {
        let left = self.caller.time_left();
        let ends = revoked.iter().map(async |id| {
            timeout(left / part, self.end(*id)).await.is_ok_and(|end| end.is_ok()).then_some(*id)
        });
        join_all(ends).await.into_iter().flatten().collect()
    }

    /// Takes off the roll what is no more. What stays there is found ended by whoever comes next.
    async fn take_off(&self, standing: &Standing, over: &HashSet<SessionId>) {
        if !over.is_empty() {
            let mut roll = standing.roll.clone();
            roll.remove(over);
            let _ = self.write(Some(standing), roll).await;
        }
    }

    async fn end(&self, id: SessionId) -> Result<bool> {
        let Some(loaded) = self.shut(id).await? else { return Ok(false) };
        // At whatever version: its id is this principal's for ever, whoever writes to it.
        let (deleted, in_doubt) = self.caller.delete(&loaded.key, None).await?;
        let was_alive = deleted == Deleted::Deleted || in_doubt;
        if was_alive {
            event::revoked(id);
        }
        Ok(was_alive)
    }

    /// Makes sure that no sign-in that is under way makes this session one of the principal's any
    /// more; the session, if it is one already.
    async fn shut(&self, id: SessionId) -> Result<Option<Arc<Loaded>>> {
        for attempt in 0..self.settings.commit_attempts {
            match self.look(id).await? {
                Found::Ours(loaded) => return Ok(Some(loaded)),
                Found::Void => return Ok(None),
                Found::Nothing => {
                    // Nobody creates a session where this stands.
                    let write = self.fence()?;
                    match self.caller.create(&self.settings.key(id), &write).await {
                        Ok(Created::Created(_)) => return Ok(None),
                        Ok(Created::Occupied) => {}
                        Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {}
                        Err(error) => return Err(error),
                    }
                }
                Found::Anonymous(loaded) => {
                    // Whoever goes on from the version before meets a conflict, and asks again.
                    let write = self.rewritten(&loaded)?;
                    match self.caller.replace(&loaded.key, &write, loaded.base()).await? {
                        Settled::Applied(_) | Settled::Followed(_) => return Ok(None),
                        Settled::Conflict(_) | Settled::Missing => {}
                    }
                }
            }
            if attempt >= PROMPT_ATTEMPTS {
                pause(&self.caller, &*self.settings.entropy, attempt).await?;
            }
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    async fn look(&self, id: SessionId) -> Result<Found> {
        let key = self.settings.key(id);
        let Some(stored) = self.caller.load(&key).await? else { return Ok(Found::Nothing) };
        let record = match decoded(&key, records::decode(stored.bytes)) {
            Ok(record) => record,
            // Nobody's session; it stays as it is.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Found::Void),
            Err(error) => return Err(error),
        };
        let principal = record.header.principal.clone();
        let is_fence = record.header.clocks.deadline() == FENCED;
        let authority = Authority::of(&record.header, false);
        let loaded = Arc::new(Loaded { id, key, record, version: stored.version, authority });
        Ok(match principal {
            Some(principal) if *principal == *self.principal => Found::Ours(loaded),
            None if !is_fence => Found::Anonymous(loaded),
            _ => Found::Void,
        })
    }

    /// The session, if the store has it and it is this principal's.
    async fn stored(&self, id: SessionId) -> Result<Option<Arc<Loaded>>> {
        Ok(match self.look(id).await? {
            Found::Ours(loaded) => Some(loaded),
            _ => None,
        })
    }

    /// Takes off the roll what does not count any more, until there is room for one more session. Where
    /// the oldest may be evicted, only so many are looked at; where a new sign-in is to be refused, all may have
    /// to be.
    async fn make_room(&self, roll: &mut Roll, application: &Application, seen: &mut Seen) {
        let policy = self.settings.parallel;
        let mut unseen: Vec<_> = roll.counted(application).cloned().collect();
        // Any of them may have ended, so that the same ones are not looked at each time.
        let start = usize::from(application.id.as_bytes()[0]) % unseen.len().max(1);
        unseen.rotate_left(start);
        for entries in unseen.chunks(LOOKED_AT) {
            roll.remove(&self.gone(entries, seen).await);
            if roll.over(application, policy) == 0 || policy.evicts() {
                return;
            }
        }
        if policy.rejects() {
            let over = roll.over(application, policy);
            let unconfirmed =
                roll.counted(application).filter_map(|entry| seen.get(&entry.id)?.clone());
            let unconfirmed: Vec<_> = unconfirmed.collect();
            if unconfirmed.len() >= over {
                roll.remove(&self.revoke_unconfirmed(&unconfirmed, over).await);
            }
        }
    }

    /// Which of the listed sessions are no more, made sure of. What cannot be told counts as alive, and
    /// so does what was `seen` before.
    async fn gone(&self, entries: &[Entry], seen: &mut Seen) -> HashSet<SessionId> {
        let now = self.settings.now();
        let mut missing: Vec<_> =
            entries.iter().filter(|entry| !seen.contains_key(&entry.id)).collect();
        for look in 1..=LOOKS {
            let found = join_all(missing.iter().map(|entry| self.stored(entry.id))).await;
            let mut found = found.into_iter();
            missing.retain(|entry| match found.next() {
                Some(Ok(None)) => true,
                Some(Ok(Some(loaded))) => {
                    let is_unconfirmed = loaded.record.header.is_unconfirmed;
                    seen.insert(entry.id, is_unconfirmed.then_some(loaded));
                    false
                }
                Some(Err(_)) | None => {
                    seen.insert(entry.id, None);
                    false
                }
            });
            // A sign-in enrols first and writes then: where one may be under way, it gets a moment.
            let is_fresh = |signed_in: Millis| now.since(signed_in) < 2 * self.settings.timeout;
            if look == LOOKS
                || !missing.iter().any(|entry| is_fresh(entry.signed_in))
                || BETWEEN_LOOKS >= self.caller.time_left()
            {
                break;
            }
            sleep(BETWEEN_LOOKS).await;
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

    /// Ends so many of the sessions whose cookie never came back, the oldest first: those that it has not
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
            match self.caller.delete(&session.key, Some(session.version)).await {
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
        let (deleted, _) = self.caller.delete(&loaded.key, Some(loaded.version)).await?;
        Ok(deleted != Deleted::Conflict)
    }

    /// A record that is over, of nobody, for a while.
    fn fence(&self) -> Result<Write> {
        let (tag, now) = (self.settings.tag()?, self.settings.now());
        // No secret is known to have this digest, and the record is over anyway.
        let digest = SecretDigest::from_bytes([0; SecretDigest::LEN]);
        let mut header = Header::new(digest, now, &Lifetime::default(), tag);
        header.clocks.end_by(FENCED);
        Ok(Write { bytes: records::encode_indexed(&header, &[]).0, ttl: FENCE, tag })
    }

    /// The same session as another version.
    fn rewritten(&self, loaded: &Loaded) -> Result<Write> {
        let (tag, now) = (self.settings.tag()?, self.settings.now());
        let update = Update::plain(now, tag, &self.settings.lifetime);
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
    async fn wait_for_others(&self, turn: &mut Option<Turn<'a>>, attempt: u32) -> Result<()> {
        if turn.is_none() {
            *turn = Some(self.caller.turn(self.settings, &self.key).await);
        } else if attempt >= PROMPT_ATTEMPTS {
            pause(&self.caller, &*self.settings.entropy, attempt).await?;
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
    pub(crate) async fn is_listed(&self, caller: Caller<'_>, loaded: &Loaded) -> Result<bool> {
        let Some(principal) = &loaded.record.header.principal else { return Ok(true) };
        if self.directory != DirectoryMode::Strict {
            return Ok(true);
        }
        let is_listed = Keeper::new(self, caller, principal).lists(loaded.id).await?;
        if !is_listed {
            event::unlisted(loaded.id);
        }
        Ok(is_listed)
    }
}
