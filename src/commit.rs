//! The end of a request at the store: the plan's commands, and what becomes of a commit that meets a
//! newer record.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::queue::Turn;
use crate::session::codec::{self, Undecodable};
use crate::session::delta::{Delta, View};
use crate::session::plan::{self, Merge, Plan, SignIn, Situation};
use crate::session::record::{Header, Record, Tags, Update, Values};
use crate::session::token::{Secret, Token};
use crate::session::{Lifetime, Millis, SessionId, Tag, Transaction};
use crate::settle::{Base, Caller, Write};
use crate::store::{Created, Deleted, Replaced, StoreKey, Stored, Version};

/// How often a commit is tried on ever newer records; the deadline bounds it as well.
const MAX_ATTEMPTS: u32 = 64;

/// How many attempts are made at once; between the later ones there are pauses.
const PATIENT_ATTEMPTS: u32 = 8;

/// How many ids are tried for a new session. One is enough unless the randomness is broken.
const MAX_IDS: u32 = 3;

/// A session as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) id: SessionId,
    pub(crate) key: StoreKey,
    pub(crate) record: Record,
    pub(crate) version: Version,
}

impl Loaded {
    fn base(&self) -> Base {
        Base { version: self.version, tag: self.record.header.tags.newest() }
    }

    /// The same session from a newer read.
    fn newer(&self, stored: Stored) -> Result<Self> {
        let record = decode(self.id, stored.bytes)?;
        Ok(Self { id: self.id, key: self.key.clone(), record, version: stored.version })
    }
}

/// Decodes a record and reports one that can not be.
pub(crate) fn decode(id: SessionId, bytes: bytes::Bytes) -> Result<Record> {
    codec::decode(bytes).map_err(|failure| match failure {
        Undecodable::Corrupt => {
            event::corrupt_record(id);
            Error::new(ErrorKind::Corrupt, "")
        }
        Undecodable::NewerFormat => {
            event::newer_format(id);
            Error::new(ErrorKind::NewerFormat, "")
        }
    })
}

/// What a request did to its session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    pub(crate) delta: Delta,
    /// The loaded session is to end; everything else belongs to the one after it.
    pub(crate) ended: bool,
    pub(crate) sign_in: Option<Arc<str>>,
    pub(crate) rotate: bool,
    pub(crate) lifetime: Option<Lifetime>,
}

impl Changes {
    /// The loaded session ends here, and what was done to it with it.
    pub(crate) fn end(&mut self) {
        self.delta.start_over();
        *self = Self { delta: std::mem::take(&mut self.delta), ended: true, ..Self::default() };
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.delta.is_empty()
            && !self.ended
            && self.sign_in.is_none()
            && !self.rotate
            && self.lifetime.is_none()
    }

    /// The loaded session as far as this request still goes on with it.
    pub(crate) fn base<'a>(&self, loaded: Option<&'a Loaded>) -> Option<&'a Loaded> {
        loaded.filter(|loaded| !self.ended && self.sign_in_on(loaded) != SignIn::Another)
    }

    fn sign_in_on(&self, loaded: &Loaded) -> SignIn {
        match (&self.sign_in, &loaded.record.header.principal) {
            (None, _) => SignIn::No,
            (Some(new), Some(old)) if new != old => SignIn::Another,
            (Some(_), _) => SignIn::Here,
        }
    }

    /// Whether a sign-in leaves only marked values of the record: it was anybody's before.
    pub(crate) fn only_surviving(&self, header: &Header) -> bool {
        self.sign_in.is_some() && header.principal.is_none()
    }

    /// The plan for what was done so far.
    pub(crate) fn plan(&self, standing: &Standing<'_>) -> Plan {
        let Standing { loaded, presented, now, configured, is_activity, failed, decides } =
            *standing;
        let sign_in = match loaded {
            Some(loaded) => self.sign_in_on(loaded),
            None if self.sign_in.is_some() => SignIn::Here,
            None => SignIn::No,
        };
        let nothing = Values::default();
        let values = self.base(loaded).map_or(&nothing, |base| &base.record.values);
        plan::decide(Situation {
            presented,
            known: loaded.is_some(),
            // What a decision will change is not known before it is made.
            changed: decides || (!self.delta.is_empty() && self.delta.view().differs_from(values)),
            ended: self.ended,
            sign_in,
            new_secret: self.rotate || self.lifetime.is_some(),
            refresh_due: is_activity
                && loaded.is_some_and(|loaded| {
                    let header = &loaded.record.header;
                    header.clocks.refresh_due(now, &header.lifetime(configured))
                }),
            failed,
        })
    }
}

/// What is known of a request besides its changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    pub(crate) loaded: Option<&'a Loaded>,
    pub(crate) presented: bool,
    pub(crate) now: Millis,
    pub(crate) configured: &'a Lifetime,
    pub(crate) is_activity: bool,
    pub(crate) failed: bool,
    /// A `transact` is to decide.
    pub(crate) decides: bool,
}

/// The function of a `transact`, with its result kept by the caller.
pub(crate) type Decide<'a> = dyn FnMut(&mut Transaction<'_>) -> Result<()> + Send + 'a;

/// What a commit led to.
#[derive(Debug)]
pub(crate) struct Committed {
    /// The session as it stands now.
    pub(crate) loaded: Option<Loaded>,
    /// A Set-Cookie header for it.
    pub(crate) cookie: Option<String>,
    /// The changes were not kept, or not all of them.
    pub(crate) failure: Option<Error>,
}

impl Committed {
    fn unchanged(loaded: Option<Loaded>) -> Self {
        Self { loaded, cookie: None, failure: None }
    }
}

/// One commit.
pub(crate) struct Commit<'a, 'd> {
    pub(crate) settings: &'a Settings,
    pub(crate) caller: Caller<'a>,
    pub(crate) loaded: Option<Loaded>,
    /// Other sessions whose valid tokens came with the same request.
    pub(crate) others: Vec<Loaded>,
    pub(crate) changes: Changes,
    pub(crate) is_activity: bool,
    pub(crate) decide: Option<&'d mut Decide<'d>>,
}

impl Commit<'_, '_> {
    /// Carries out a plan. An error means that everything is as it was before.
    pub(crate) async fn run(mut self, plan: Plan) -> Result<Committed> {
        let loaded = self.loaded.take();
        match (plan, loaded) {
            (Plan::Nothing, loaded) => Ok(Committed::unchanged(loaded)),
            (Plan::Forget, _) => {
                for other in std::mem::take(&mut self.others) {
                    self.caller.delete(&other.key, None).await?;
                }
                Ok(self.removed())
            }
            (Plan::Refresh, Some(loaded)) => {
                Ok(Committed::unchanged(Some(self.refresh(loaded).await)))
            }
            (Plan::Save { new_secret }, Some(loaded)) => self.save(loaded, new_secret).await,
            (Plan::Delete, Some(loaded)) => Ok(match self.end(&loaded).await? {
                true => self.removed(),
                // Somebody else signed in on it: their session, and their cookie.
                false => Committed::unchanged(None),
            }),
            (Plan::DeleteThenCreate, Some(loaded)) => {
                if !self.end(&loaded).await? {
                    // A cookie from here could overwrite the one of whoever signed in on it.
                    return Ok(self.gone(&loaded));
                }
                // From here on the old session is no more, whatever becomes of the new one.
                match self.create().await {
                    Ok(Committed { loaded: None, .. }) => Ok(self.removed()),
                    Ok(created) => Ok(created),
                    Err(error) => Ok(Committed { failure: Some(error), ..self.removed() }),
                }
            }
            (Plan::CreateThenDelete, Some(loaded)) => {
                let created = self.create().await?;
                if let Err(error) = self.end(&loaded).await {
                    // Better nobody than two: without its cookie the new session is nobody's.
                    if let Some(created) = &created.loaded {
                        let _ = self.caller.delete(&created.key, None).await;
                    }
                    return Err(error);
                }
                Ok(created)
            }
            (_, _) => self.create().await,
        }
    }

    fn removed(&self) -> Committed {
        Committed { loaded: None, cookie: Some(self.settings.cookie.removal()), failure: None }
    }

    async fn create(&mut self) -> Result<Committed> {
        let nothing = Values::default();
        for _ in 0..MAX_IDS {
            let mut view = self.changes.delta.replay(&nothing, false)?;
            self.decide(&nothing, &mut view)?;
            if self.changes.sign_in.is_none() && !view.differs_from(&nothing) {
                return Ok(Committed::unchanged(None));
            }
            let entropy = &*self.settings.entropy;
            let token = Token { id: SessionId::random(entropy)?, secret: Secret::random(entropy)? };
            let digest = token.secret.digest();
            let now = self.settings.now();
            let tag = self.tag()?;
            let header = Header::new(digest, now, &self.settings.lifetime, tag);
            // Nothing came before the first write.
            let header =
                Header { tags: Tags::first(tag), ..header.updated(&self.update(now, tag, None)) };
            let (record, write) = self.encode(&header, &view, &nothing, now)?;
            let key = self.settings.key(token.id);
            match self.caller.create(&key, &write).await? {
                Created::Created(version) => {
                    let cookie = self.cookie(&header, &token, now);
                    let loaded = Loaded { id: token.id, key, record, version };
                    return Ok(Committed {
                        loaded: Some(loaded),
                        cookie: Some(cookie),
                        failure: None,
                    });
                }
                Created::Occupied => {}
            }
        }
        Err(Error::new(ErrorKind::Randomness, "every new session id is taken"))
    }

    async fn save(&mut self, loaded: Loaded, new_secret: bool) -> Result<Committed> {
        let settings = self.settings;
        let signing_in = self.changes.sign_in.is_some();
        let mut secret = if new_secret { Some(Secret::random(&*settings.entropy)?) } else { None };
        let mut current = loaded.clone();
        let mut is_fresh = false;
        let mut turn = None;
        for attempt in 0..MAX_ATTEMPTS {
            let base = &current.record;
            let only_surviving = self.changes.only_surviving(&base.header);
            let mut view = self.changes.delta.replay(&base.values, only_surviving)?;
            self.decide(&base.values, &mut view)?;
            let stored = if secret.is_none() && !view.differs_from(&base.values) {
                if self.decide.is_none() || is_fresh {
                    return Ok(Committed::unchanged(Some(current)));
                }
                // No write will tell whether the decision was made on the newest record.
                match self.caller.load(&current.key).await? {
                    Some(stored) if stored.version == current.version => {
                        return Ok(Committed::unchanged(Some(current)));
                    }
                    stored => stored,
                }
            } else {
                let now = settings.now();
                let tag = self.tag()?;
                let digest = secret.map(|secret| secret.digest());
                let header = base.header.updated(&self.update(now, tag, digest));
                let (record, write) = self.encode(&header, &view, &base.values, now)?;
                match self.caller.replace(&current.key, &write, current.base()).await? {
                    Replaced::Replaced(version) => {
                        let cookie = secret.map(|secret| {
                            self.cookie(&header, &Token { id: current.id, secret }, now)
                        });
                        let loaded = Some(Loaded { record, version, ..current });
                        return Ok(Committed { loaded, cookie, failure: None });
                    }
                    Replaced::Missing => None,
                    Replaced::Conflict(stored) => {
                        event::conflict(current.id);
                        let is_stale = match turn {
                            None => {
                                let joined = turn_of(settings, self.caller, current.id).await?;
                                let waited = joined.waited();
                                turn = Some(joined);
                                waited
                            }
                            Some(_) if attempt < PATIENT_ATTEMPTS => false,
                            Some(_) => {
                                self.pause(attempt).await?;
                                true
                            }
                        };
                        match stored {
                            Some(stored) if !is_stale => Some(stored),
                            _ => self.caller.load(&current.key).await?,
                        }
                    }
                }
            };
            is_fresh = true;
            let newer = stored.map(|stored| current.newer(stored)).transpose()?;
            let newer = newer.filter(|newer| !newer.record.header.clocks.expired(settings.now()));
            let merge = match &newer {
                Some(newer) => plan::merge(&loaded.record.header, &newer.record.header, signing_in),
                None if signing_in => Merge::StartFresh,
                None => Merge::Gone,
            };
            match (merge, newer) {
                (Merge::Replay { keep_secret }, Some(newer)) => {
                    if keep_secret && self.changes.lifetime.is_some() {
                        // Its cookie would make the other request's void.
                        return Err(Error::new(ErrorKind::Contended, "the secret was changed"));
                    }
                    secret = secret.filter(|_| !keep_secret);
                    current = newer;
                }
                (Merge::StartFresh, _) => return self.create().await,
                (_, _) => return Ok(self.gone(&loaded)),
            }
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// The session is no more: it is not brought back, and no cookie of any kind is sent.
    fn gone(&self, loaded: &Loaded) -> Committed {
        event::gone(loaded.id);
        let nothing_lost =
            self.decide.is_none() && !self.changes.delta.view().differs_from(&loaded.record.values);
        let failure = (!nothing_lost)
            .then(|| Error::answered_with(ErrorKind::Gone, "", self.settings.gone_status));
        Committed { loaded: None, cookie: None, failure }
    }

    /// Extends the idle timeout. Whatever happens to it, the request goes on: somebody else has
    /// written, or the next request will try again.
    async fn refresh(&mut self, loaded: Loaded) -> Loaded {
        match self.try_refresh(&loaded).await {
            Ok(Some(refreshed)) => refreshed,
            Ok(None) => loaded,
            Err(error) => {
                event::refresh_failed(loaded.id, &error);
                loaded
            }
        }
    }

    async fn try_refresh(&mut self, loaded: &Loaded) -> Result<Option<Loaded>> {
        let now = self.settings.now();
        let tag = self.tag()?;
        let header = loaded.record.header.updated(&self.update(now, tag, None));
        let values = &loaded.record.values;
        let (record, write) = self.encode(&header, &View::default(), values, now)?;
        Ok(match self.caller.replace(&loaded.key, &write, loaded.base()).await? {
            Replaced::Replaced(version) => Some(Loaded { record, version, ..loaded.clone() }),
            Replaced::Conflict(_) | Replaced::Missing => None,
        })
    }

    /// Ends a session; false where it has become somebody else's.
    async fn end(&mut self, loaded: &Loaded) -> Result<bool> {
        let mut version = loaded.version;
        for attempt in 0..MAX_ATTEMPTS {
            match self.caller.delete(&loaded.key, Some(version)).await? {
                Deleted::Deleted | Deleted::Missing => return Ok(true),
                Deleted::Conflict => {}
            }
            event::conflict(loaded.id);
            let Some(stored) = self.caller.load(&loaded.key).await? else {
                return Ok(true);
            };
            let newer = loaded.newer(stored)?;
            if !plan::ends(&loaded.record.header, &newer.record.header) {
                return Ok(false);
            }
            version = newer.version;
            if attempt >= PATIENT_ATTEMPTS {
                self.pause(attempt).await?;
            }
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    fn decide(&mut self, base: &Values, view: &mut View) -> Result<()> {
        match &mut self.decide {
            Some(decide) => decide(&mut Transaction::new(base, view)),
            None => Ok(()),
        }
    }

    fn update<'b>(
        &'b self,
        now: Millis,
        tag: Tag,
        digest: Option<crate::session::token::SecretDigest>,
    ) -> Update<'b> {
        Update {
            now,
            tag,
            configured: &self.settings.lifetime,
            digest,
            lifetime: self.changes.lifetime,
            sign_in: self.changes.sign_in.as_ref(),
            is_activity: self.is_activity,
        }
    }

    fn tag(&self) -> Result<Tag> {
        let mut tag = [0; crate::store::TAG_LEN];
        self.settings.entropy.fill(&mut tag)?;
        Ok(Tag(tag))
    }

    /// The record as it will stand in the store, ready to be sent.
    fn encode(
        &self,
        header: &Header,
        view: &View,
        base: &Values,
        now: Millis,
    ) -> Result<(Record, Write)> {
        let values = view.values(base);
        let bytes = codec::encode(header, &values);
        if bytes.len() > self.settings.max_record {
            let context = format!(
                "{} bytes, and at most {} are allowed",
                bytes.len(),
                self.settings.max_record
            );
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        // What was just encoded is decoded again: only the index is wanted, and it is cheap.
        let record = codec::decode(bytes.clone())
            .map_err(|_| Error::new(ErrorKind::Encode, "the record can not be read back"))?;
        let tag = header.tags.newest().unwrap_or(Tag([0; crate::store::TAG_LEN]));
        Ok((record, Write { bytes, ttl: header.clocks.ttl(now), tag }))
    }

    fn cookie(&self, header: &Header, token: &Token, now: Millis) -> String {
        let persistence = header.lifetime(&self.settings.lifetime).persistence();
        self.settings.cookie.set(token, header.clocks.cookie_age(now), persistence)
    }

    /// Lets the writers of other processes pass: a random while, longer after each attempt.
    async fn pause(&mut self, attempt: u32) -> Result<()> {
        let mut random = [0; 2];
        self.settings.entropy.fill(&mut random)?;
        let most = 500u64 << (attempt / PATIENT_ATTEMPTS).min(5);
        let pause = Duration::from_micros((u64::from(u16::from_le_bytes(random)) * most) >> 16);
        if Instant::now() + pause >= self.caller.deadline() {
            return Err(Error::new(ErrorKind::Contended, ""));
        }
        sleep(pause).await;
        Ok(())
    }
}

/// Waits for the commits of the same session in this process that met a conflict before.
async fn turn_of<'a>(
    settings: &'a Settings,
    caller: Caller<'_>,
    id: SessionId,
) -> Result<Turn<'a>> {
    timeout_at(caller.deadline(), settings.queues.wait(id)).await.map_err(|_| {
        Error::new(ErrorKind::Contended, "too many requests change this session at once")
    })
}
