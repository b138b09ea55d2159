//! Sends store commands within a deadline and settles in-doubt writes. Only this module retries store
//! commands.

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

/// A record to write to the store.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) bytes: Bytes,
    pub(crate) ttl: Duration,
    /// The write tag with which `bytes` begins.
    pub(crate) tag: Tag,
}

/// A store, and the remaining time for its commands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commands<'a> {
    store: &'a dyn Store,
    budget: &'a Budget,
    /// Moves the work that sends these commands to a task of its own before it waits for another commit in
    /// [`key_guard`](Self::key_guard), so that it blocks no other work if its caller stops polling it.
    driver: Option<&'a Driver>,
    /// The maximum number of retries per command. The deadline limits them as well.
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

    /// Waits for the commits in this process that had an earlier conflict on the same record, but for at most
    /// half of the time left: those commits may be on a runtime that is not running, and correctness does not
    /// depend on the wait.
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

    /// Returns the time for one command: half of what is left, so that time remains to settle an in-doubt
    /// write.
    fn share(&self, now: Instant) -> Option<Duration> {
        let left = self.budget.time_left(now);
        (left >= Duration::from_millis(2)).then_some(left / 2)
    }

    /// Runs one command, and abandons it when its share of the time is used up. The store may still apply an
    /// abandoned write.
    async fn once<T>(
        &self,
        verb: &'static str,
        is_write: bool,
        command: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let Some(share) = self.share(begun) else {
            return Err(Error::new(ErrorKind::Unavailable, "no time was left for a store command"));
        };
        let lost = if is_write { ErrorKind::OutcomeUnknown } else { ErrorKind::Unavailable };
        let answer = self.budget.limited(begun + share, command).await;
        event::store_answered(verb, begun);
        let answer = match answer {
            // An invalid answer does not show whether the write was applied.
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

    /// Reads a record. Retries if the store was unavailable.
    pub(crate) async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        let mut retries = self.retries();
        loop {
            match self.once("load", false, self.store.load(key)).await {
                Err(error) if may_retry(&error) && retries.take_one() => {}
                // A read changes nothing, so its outcome cannot be in doubt. A server that sends invalid
                // answers counts as unavailable.
                Err(error)
                    if matches!(error.kind(), ErrorKind::OutcomeUnknown | ErrorKind::Corrupt) =>
                {
                    return Err(Error::with_source(ErrorKind::Unavailable, "", error));
                }
                answer => return answer,
            }
        }
    }

    /// Creates a record.
    ///
    /// An in-doubt `create` is not settled. The caller must use a new id, because a late copy of this write
    /// could restore the session after it has ended. An answer after the deadline also counts as lost,
    /// because the tombstones and the directory marks that stop late sign-ins are kept only for a limited
    /// time.
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
                    return Err(Error::new(
                        ErrorKind::OutcomeUnknown,
                        "the store answered after the deadline",
                    ));
                }
                answer => return answer,
            }
        }
    }

    /// Replaces a record if it has not changed since it was read. Settles an in-doubt write.
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
                // If the connection retries commands on its own, the second copy conflicts with the first.
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
                        // The write has not been applied so far. Sending it again is safe: once one copy is
                        // applied, the other copy can only conflict.
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

    /// Deletes a record. Sends the command again if its answer is lost or the store was unavailable.
    ///
    /// The flag in the result is `true` if an answer was lost. In that case, `Missing` may be the effect of
    /// this command.
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

    /// Reads the record after an answer was lost. If the read fails as well, the outcome stays unknown.
    async fn read_back(&self, key: &StoreKey) -> Result<Option<Stored>> {
        self.load(key)
            .await
            .map_err(|error| Error::with_source(ErrorKind::OutcomeUnknown, "", error))
    }
}

/// Pauses for a random time so that writers in other processes can finish. Later attempts pause longer.
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

/// The number of retries left for a command.
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

/// Returns whether the command certainly had no effect and a retry may succeed, for example because a dead
/// connection has been replaced.
fn may_retry(error: &Error) -> bool {
    error.kind() == ErrorKind::Unavailable
}

/// Turns an error into [`ErrorKind::OutcomeUnknown`] if an earlier answer to the same command was lost.
fn doubted(error: Error, in_doubt: bool) -> Error {
    if in_doubt && error.kind() != ErrorKind::OutcomeUnknown {
        return Error::with_source(ErrorKind::OutcomeUnknown, "", error);
    }
    error
}

fn holds(stored: &Stored, tag: Tag) -> bool {
    envelope::tags(&stored.bytes).is_some_and(|tags| tags.contains(tag))
}

/// The result of a `replace` call.
#[derive(Debug)]
pub(crate) enum Settled {
    /// The record was written.
    Applied(Version),
    /// The record was written. Holds the current record, which may include later writes by other requests.
    Followed(Stored),
    /// Another request wrote first, so the record was not written. `None` if the current record was not read.
    Conflict(Option<Stored>),
    /// The record no longer exists.
    Missing,
}

/// Determines from the write tags of the current record whether an in-doubt `replace` was applied.
fn settled(current: Option<Stored>, tag: Tag, expected: &Stored) -> Result<Settled> {
    let Some(current) = current else {
        return Ok(Settled::Missing);
    };
    let tags = envelope::tags(&current.bytes);
    if tags.as_ref().is_some_and(|tags| tags.contains(tag)) {
        return Ok(Settled::Followed(current));
    }
    // The record remembers only the newest tags. If it still remembers the write before ours but not ours,
    // our write was not applied and never will be, because the version that it expects is gone.
    let before = envelope::newest_tag(&expected.bytes);
    if tags.zip(before).is_some_and(|(tags, before)| tags.contains(before)) {
        return Ok(Settled::Conflict(Some(current)));
    }
    Err(Error::new(
        ErrorKind::OutcomeUnknown,
        "the record no longer shows whether the write was applied: too many other writes followed",
    ))
}
