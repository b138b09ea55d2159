//! Store commands under a deadline, with lost answers settled: the one place that repeats anything.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use crate::budget::Budget;
use crate::completion::Driver;
use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{self, Audit, RecordKey};
use crate::key_lock::KeyGuard;
use crate::limits::PROMPT_ATTEMPTS;
use crate::record::envelope;
use crate::record::tag::Tag;
use crate::settings::Settings;
use crate::store::{Created, Deleted, Replaced, Store, StoreKey, Stored, Version};

/// A record on its way to the store.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) bytes: Bytes,
    pub(crate) ttl: Duration,
    /// The write tag that `bytes` begin with.
    pub(crate) tag: Tag,
}

/// A store with the time that is left for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commands<'a> {
    store: &'a dyn Store,
    budget: &'a Budget,
    /// Of the work that calls, where it may have to wait for other work or be waited for.
    driver: Option<&'a Driver>,
    /// How often one command is repeated; the deadline bounds it as well.
    max_retries: u32,
    audit: Audit,
}

impl<'a> Commands<'a> {
    pub(crate) fn new(settings: &'a Settings, budget: &'a Budget) -> Self {
        let Settings { store, options, .. } = settings;
        let (max_retries, audit) = (options.command_retries, options.audit);
        Self { store: &**store, budget, driver: None, max_retries, audit }
    }

    pub(crate) fn driven_by(self, driver: &'a Driver) -> Self {
        Self { driver: Some(driver), ..self }
    }

    /// Waits for the commits of this process that met a conflict on the same record before; for half of
    /// the time at most, for they may be on a runtime that stands still, and nothing depends on it.
    pub(crate) async fn key_guard<'q>(
        &self,
        settings: &'q Settings,
        key: &StoreKey,
    ) -> KeyGuard<'q> {
        if let Some(driver) = self.driver {
            driver.drive();
        }
        let patience = self.time_left() / 2;
        match timeout(patience, settings.key_locks.lock(key)).await {
            Ok(key_guard) => key_guard,
            Err(_) => settings.key_locks.without_lock(key),
        }
    }

    fn retries(&self) -> Retries {
        Retries { left: self.max_retries }
    }

    pub(crate) fn time_left(&self) -> Duration {
        self.budget.time_left(Instant::now())
    }

    /// Half of what is left, so that something always remains for settling a lost answer.
    fn share(&self, now: Instant) -> Option<Duration> {
        let left = self.budget.time_left(now);
        (left >= Duration::from_millis(2)).then_some(left / 2)
    }

    /// One command, cut off at its share of the time. A read that was cut off did nothing; a write
    /// may have been applied.
    async fn once<T>(
        &self,
        verb: &'static str,
        is_write: bool,
        command: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let Some(share) = self.share(begun) else {
            return Err(Error::new(ErrorKind::Unavailable, "no time is left for the store"));
        };
        let lost = if is_write { ErrorKind::OutcomeUnknown } else { ErrorKind::Unavailable };
        let answer = self.budget.limited(begun + share, command).await;
        event::store_answered(verb, begun);
        let answer = match answer {
            // An answer that makes no sense says nothing of what was done.
            Some(Err(error)) if is_write && error.kind() == ErrorKind::Corrupt => {
                Err(Error::with_source(lost, "", error))
            }
            Some(answer) => answer,
            None => Err(Error::new(lost, "the store did not answer in time")),
        };
        if let Err(error) = &answer
            && error.kind() != ErrorKind::TooLarge
        {
            event::store_failed(verb, error);
        }
        answer
    }

    fn report_in_doubt(&self, key: &StoreKey) {
        event::outcome_in_doubt(RecordKey { audit: self.audit, key });
    }

    /// Reads a record; asks twice if need be.
    pub(crate) async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        let mut retries = self.retries();
        loop {
            match self.once("load", false, self.store.load(key)).await {
                Err(error) if may_retry(&error) && retries.take_one() => {}
                // Reading changes nothing, so there is nothing to be unsure about; and a server that
                // answers with nonsense is no better than one that is down.
                Err(error)
                    if matches!(error.kind(), ErrorKind::OutcomeUnknown | ErrorKind::Corrupt) =>
                {
                    return Err(Error::with_source(ErrorKind::Unavailable, "", error));
                }
                answer => return answer,
            }
        }
    }

    /// Creates a record. A lost answer is not settled: the caller takes another id, for a late copy
    /// of this write could bring the session back after its end. An answer that comes after the
    /// deadline is a lost one: what keeps sign-ins from coming late stands only so long.
    pub(crate) async fn create(&self, key: &StoreKey, write: &Write) -> Result<Created> {
        let mut retries = self.retries();
        loop {
            let command = self.store.create(key, write.bytes.clone(), write.ttl);
            match self.once("create", true, command).await {
                Err(error) if may_retry(&error) && retries.take_one() => {}
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    self.report_in_doubt(key);
                    return Err(error);
                }
                Ok(Created::Created(_)) if Instant::now() >= self.budget.fixed_deadline => {
                    self.report_in_doubt(key);
                    return Err(Error::new(ErrorKind::OutcomeUnknown, "the answer came too late"));
                }
                answer => return answer,
            }
        }
    }

    pub(crate) async fn replace(
        &self,
        key: &StoreKey,
        write: &Write,
        expected: &Stored,
    ) -> Result<Settled> {
        let mut retries = self.retries();
        let mut in_doubt = false;
        loop {
            let command = self.store.replace(key, write.bytes.clone(), write.ttl, expected);
            match self.once("replace", true, command).await {
                Ok(Replaced::Replaced(version)) => return Ok(Settled::Applied(version)),
                Ok(Replaced::Missing) => return Ok(Settled::Missing),
                // A connection that repeats commands by itself conflicts with its own first copy.
                Ok(Replaced::Conflict(Some(current))) if holds(&current, write.tag) => {
                    return settled(Some(current), write.tag, expected);
                }
                Ok(Replaced::Conflict(current)) if in_doubt => {
                    let current = match current {
                        Some(current) => Some(current),
                        None => Box::pin(self.read_back(key)).await?,
                    };
                    return settled(current, write.tag, expected);
                }
                Ok(Replaced::Conflict(current)) => return Ok(Settled::Conflict(current)),
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    in_doubt = true;
                    self.report_in_doubt(key);
                    match Box::pin(self.read_back(key)).await? {
                        // Not applied so far. The same write again is harmless, and once one of the
                        // two is applied the other one never can be.
                        Some(current) if current.version == expected.version => {
                            if !retries.take_one() {
                                return Err(error);
                            }
                        }
                        current => return settled(current, write.tag, expected),
                    }
                }
                Err(error) if may_retry(&error) && retries.take_one() => {}
                Err(error) => return Err(doubted(error, in_doubt)),
            }
        }
    }

    /// Deletes a record. A lost answer is not settled, the command is just sent again; the flag says
    /// whether one was lost, so that "missing" may be this command's own doing.
    pub(crate) async fn delete(
        &self,
        key: &StoreKey,
        expected: Option<&Stored>,
    ) -> Result<(Deleted, bool)> {
        let mut retries = self.retries();
        let mut in_doubt = false;
        loop {
            match self.once("delete", true, self.store.delete(key, expected)).await {
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown || may_retry(&error) => {
                    in_doubt |= error.kind() == ErrorKind::OutcomeUnknown;
                    if !retries.take_one() {
                        return Err(doubted(error, in_doubt));
                    }
                }
                Err(error) => return Err(doubted(error, in_doubt)),
                Ok(deleted) => return Ok((deleted, in_doubt)),
            }
        }
    }

    /// Reads after a lost answer; where that fails too, the outcome stays unknown.
    async fn read_back(&self, key: &StoreKey) -> Result<Option<Stored>> {
        self.load(key)
            .await
            .map_err(|error| Error::with_source(ErrorKind::OutcomeUnknown, "", error))
    }
}

/// Lets the writers of other processes pass: a random while, longer after each attempt.
pub(crate) async fn pause(
    commands: &Commands<'_>,
    entropy: &dyn Entropy,
    attempt: u32,
) -> Result<()> {
    let mut random = [0; 2];
    entropy.fill(&mut random)?;
    let most = 500u64 << (attempt / PROMPT_ATTEMPTS).min(5);
    let pause = Duration::from_micros((u64::from(u16::from_le_bytes(random)) * most) >> 16);
    if pause >= commands.time_left() {
        return Err(Error::new(ErrorKind::Contended, ""));
    }
    sleep(pause).await;
    Ok(())
}

/// How often a command may be sent once more.
struct Retries {
    left: u32,
}

impl Retries {
    fn take_one(&mut self) -> bool {
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

/// Whether the command certainly did nothing and the next try may fare better: a connection that was
/// found dead is replaced by then. A store that is really down says so at once.
fn may_retry(error: &Error) -> bool {
    error.kind() == ErrorKind::Unavailable
}

/// A failure behind a lost answer leaves the outcome unknown.
fn doubted(error: Error, in_doubt: bool) -> Error {
    if in_doubt && error.kind() != ErrorKind::OutcomeUnknown {
        return Error::with_source(ErrorKind::OutcomeUnknown, "", error);
    }
    error
}

fn holds(stored: &Stored, tag: Tag) -> bool {
    envelope::tags(&stored.bytes).is_some_and(|tags| tags.contains(tag))
}

/// What a `replace` did, as far as it can be known.
#[derive(Debug)]
pub(crate) enum Settled {
    /// The record stands there as it was written.
    Applied(Version),
    /// It was written; this stands there now, perhaps with the writes of others on top.
    Followed(Stored),
    Conflict(Option<Stored>),
    Missing,
}

/// What a lost `replace` did, by the tags of what stands there now.
fn settled(current: Option<Stored>, tag: Tag, expected: &Stored) -> Result<Settled> {
    let Some(current) = current else {
        return Ok(Settled::Missing);
    };
    let tags = envelope::tags(&current.bytes);
    if tags.as_ref().is_some_and(|tags| tags.contains(tag)) {
        return Ok(Settled::Followed(current));
    }
    // Every write since ours is remembered if the one before ours still is: then ours is not among
    // them, and as its version has passed it never will be.
    let before = envelope::newest_tag(&expected.bytes);
    if tags.zip(before).is_some_and(|(tags, before)| tags.contains(before)) {
        return Ok(Settled::Conflict(Some(current)));
    }
    Err(Error::new(
        ErrorKind::OutcomeUnknown,
        "too many writes followed the one whose answer was lost",
    ))
}
