//! Enrolment: lists a session in its principal's directory before its cookie is sent.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use crate::directory::record::{
    DirectoryRecord, Enrolment, EnrolmentOutcome, Entry, Purpose, Reservation,
};
use crate::directory::revoke::RevocationReason;
use crate::directory::{DirectoryHandle, DirectorySnapshot, DirectoryWrite};
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::record::loaded::Loaded;
use crate::record::sign_in::{Mark, SIGN_IN_WINDOW};
use crate::record::tag::Tag;
use crate::record::token::SessionId;
use crate::store::Deleted;

/// How many times a listed session whose record is missing is probed before it counts as ended. Its sign-in
/// may still be under way.
const PROBE_ATTEMPTS: usize = 3;

/// The pause between two of these attempts.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);

/// How many sessions are probed at once when the directory is at its limit.
const PROBE_BATCH: usize = 16;

/// The listed sessions that this enrolment counts as alive. If a session is unconfirmed (no request has used
/// its cookie yet), the value is the session as it was read; otherwise it is `None`.
type ProbedSessions = HashMap<SessionId, Option<Arc<Loaded>>>;

/// The state that one attempt to enrol passes to the next.
struct EnrolmentAttempt<'a> {
    enrolment: &'a Enrolment,
    /// The directory's mark when the sign-in first read it. `None` if the sign-in has not read it yet, or if
    /// this enrolment is not for a sign-in.
    expected: Option<Option<Mark>>,
    /// Whether the previous attempt sent a write with a new entry. That write may have been applied.
    may_have_added_entry: bool,
    /// The tags of this enrolment's writes that another write overtook, or whose outcome is unknown. A copy
    /// of such a write may still arrive.
    written: Vec<Tag>,
    /// Whether an earlier attempt listed the session.
    was_listed: bool,
    probed: ProbedSessions,
}

/// The outcome of an attempt to enrol. `is_new` says whether this enrolment added the entry or, if
/// it was `Overtaken`, may have added it.
enum AttemptOutcome {
    /// The stored record lists the session.
    Listed { mark: Option<Mark>, is_new: bool },
    /// The directory must be read again: another write came first or has followed, or the outcome is unknown.
    Overtaken { is_new: bool },
    /// The session was listed, and another request has since ended it.
    Ended,
}

/// The record that was read, without the revoked sessions that have ended.
struct PreparedRecord {
    record: DirectoryRecord,
    mark: Option<Mark>,
    is_new: bool,
    /// Whether the record had revoked sessions, so that it must be written in any case.
    had_revoked: bool,
}

impl DirectoryHandle<'_> {
    /// Lists a session in the directory. Returns the directory's mark and whether the entry is a new one, or
    /// `None` if the session was new and another request has ended it in the meantime.
    ///
    /// `expected` is the directory's mark when the sign-in first read it. `read` is the directory, if it was
    /// already read for this enrolment; an outdated copy only causes a conflict.
    pub(crate) async fn enrol(
        &self,
        enrolment: &Enrolment,
        expected: Option<Option<Mark>>,
        mut read: Option<DirectorySnapshot>,
    ) -> Result<Option<(Option<Mark>, bool)>> {
        let mut state = EnrolmentAttempt {
            enrolment,
            expected,
            may_have_added_entry: false,
            written: Vec::new(),
            was_listed: false,
            probed: HashMap::new(),
        };
        let mut guard = None;
        for attempt in 0..self.settings.options.commit_attempts {
            let snapshot = match read.take() {
                Some(snapshot) => snapshot,
                None => self.read().await?,
            };
            match self.try_enrol(&mut state, snapshot).await? {
                AttemptOutcome::Listed { mark, is_new } => return Ok(Some((mark, is_new))),
                AttemptOutcome::Overtaken { is_new } => state.may_have_added_entry = is_new,
                AttemptOutcome::Ended => return Ok(None),
            }
            self.back_off(&mut guard, attempt).await?;
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    async fn try_enrol(
        &self,
        attempt: &mut EnrolmentAttempt<'_>,
        snapshot: DirectorySnapshot,
    ) -> Result<AttemptOutcome> {
        let stored = snapshot.stored.clone();
        let Some(mut prepared) = self.prepare(attempt, snapshot).await? else {
            return Ok(AttemptOutcome::Ended);
        };
        let evicted = self.admit(attempt, &mut prepared).await?;
        let PreparedRecord { record, mark, is_new, .. } = prepared;
        let Some(evicted) = evicted else { return Ok(AttemptOutcome::Listed { mark, is_new }) };
        let written = match self.write(stored.as_ref(), record).await? {
            DirectoryWrite::Written(written) => written,
            DirectoryWrite::Followed => {
                attempt.was_listed = true;
                return Ok(AttemptOutcome::Overtaken { is_new });
            }
            DirectoryWrite::Overtaken(tag) => {
                attempt.written.push(tag);
                return Ok(AttemptOutcome::Overtaken { is_new });
            }
        };
        if !evicted.is_empty() {
            let reason = RevocationReason::Limit;
            let ended = self.end_within_part(&evicted, 2, reason, &written.record).await;
            self.remove_entries(written, &ended).await;
        }
        Ok(AttemptOutcome::Listed { mark, is_new })
    }

    /// Checks that no revocation has overtaken the sign-in. Ends the sessions that the record marks as
    /// revoked, and removes from the record those that have ended. Returns `None` if another request has
    /// ended the new session.
    async fn prepare(
        &self,
        attempt: &mut EnrolmentAttempt<'_>,
        snapshot: DirectorySnapshot,
    ) -> Result<Option<PreparedRecord>> {
        let EnrolmentAttempt { enrolment, expected, .. } = *attempt;
        let now = self.settings.now();
        // The directory is certain to remember a revocation only for this long.
        if enrolment.begun.is_some_and(|begun| now.since(begun) > SIGN_IN_WINDOW) {
            return Err(Error::new(
                ErrorKind::Revoked,
                "the sign-in took longer than the time limit",
            ));
        }
        let mark = snapshot.mark();
        let DirectorySnapshot { mut record, stored } = snapshot;
        // A missing directory remembers no revocation, so there is nothing to compare.
        if stored.is_some() && expected.is_some_and(|expected| expected != mark) {
            return Err(self.sign_in_overtaken());
        }
        if matches!(enrolment.purpose, Purpose::SignIn | Purpose::Again) {
            attempt.expected.get_or_insert(mark);
        }
        // A new session whose record was deleted must not be listed again, because that could evict another
        // session.
        let is_listed = record.lists(enrolment.id);
        attempt.was_listed |=
            is_listed || attempt.written.iter().any(|tag| record.tags.contains(*tag));
        if enrolment.is_written && attempt.was_listed && !is_listed {
            return Ok(None);
        }
        let revoked: HashSet<_> = record.revoked().into_iter().collect();
        let reason = RevocationReason::Unfinished;
        let ended = self.end_within_part(&revoked, 4, reason, &record).await;
        record.remove(&ended);
        // An earlier attempt may have added the entry without learning that its write was applied.
        let is_new = !is_listed
            || (attempt.may_have_added_entry
                && record.has_reservation(enrolment.id, enrolment.signed_in));
        Ok(Some(PreparedRecord { record, mark, is_new, had_revoked: !revoked.is_empty() }))
    }

    /// Adds the session to the prepared record, and returns the sessions to evict for it. Returns `None` if
    /// the stored record can stay as it is.
    async fn admit(
        &self,
        attempt: &mut EnrolmentAttempt<'_>,
        prepared: &mut PreparedRecord,
    ) -> Result<Option<HashSet<SessionId>>> {
        let EnrolmentAttempt { enrolment, probed, .. } = attempt;
        let policy = self.settings.options.concurrent();
        let mut outcome = prepared.record.enrol(enrolment, policy, false);
        if outcome == EnrolmentOutcome::Full {
            self.make_room(&mut prepared.record, enrolment, probed).await;
            outcome = prepared.record.enrol(enrolment, policy, true);
        }
        match outcome {
            EnrolmentOutcome::Enrolled { evicted } => Ok(Some(evicted.into_iter().collect())),
            // After a conflict on the session, the directory record is written again even if it would not
            // change: another request may have found the session anonymous and be about to remove the entry.
            EnrolmentOutcome::AlreadyListed
                if !prepared.had_revoked && enrolment.purpose != Purpose::Again =>
            {
                Ok(None)
            }
            EnrolmentOutcome::AlreadyListed => Ok(Some(HashSet::new())),
            EnrolmentOutcome::BeingRevoked => {
                Err(Error::new(ErrorKind::Unavailable, "this session is being revoked"))
            }
            EnrolmentOutcome::NotListed => Err(self.settings.gone("")),
            EnrolmentOutcome::Full => {
                event::sign_in_refused(self.record_key(), self.who());
                Err(Error::new(ErrorKind::TooManySessions, ""))
            }
        }
    }

    fn sign_in_overtaken(&self) -> Error {
        event::sign_in_overtaken(self.record_key(), self.who());
        Error::new(ErrorKind::Revoked, "")
    }

    /// Removes ended sessions from the record until there is room for one more. If the policy evicts, only
    /// one batch of sessions is probed. Under any other policy the sign-in would be refused, so all sessions
    /// may be probed; `Reject` then also revokes unconfirmed sessions.
    async fn make_room(
        &self,
        record: &mut DirectoryRecord,
        enrolment: &Enrolment,
        probed: &mut ProbedSessions,
    ) {
        let policy = self.settings.options.concurrent();
        let mut candidates: Vec<_> = record.counted(enrolment).cloned().collect();
        // Any session may have ended, so different sign-ins start with different sessions.
        let start = usize::from(enrolment.id.as_bytes()[0]) % candidates.len().max(1);
        candidates.rotate_left(start);
        for batch in candidates.chunks(PROBE_BATCH) {
            record.remove(&self.find_ended(batch, probed).await);
            if record.excess(enrolment, policy) == 0 || policy.evicts() {
                return;
            }
        }
        if policy.rejects() {
            let excess = record.excess(enrolment, policy);
            let unconfirmed =
                record.counted(enrolment).filter_map(|entry| probed.get(&entry.id)?.clone());
            let unconfirmed: Vec<_> = unconfirmed.collect();
            if unconfirmed.len() >= excess {
                let ended = self.revoke_unconfirmed(&unconfirmed, excess, record).await;
                record.remove(&ended);
            }
        }
    }

    /// Finds the listed sessions that have certainly ended. A session that cannot be read, or that was
    /// `probed` earlier, counts as alive.
    async fn find_ended(
        &self,
        entries: &[Entry],
        probed: &mut ProbedSessions,
    ) -> HashSet<SessionId> {
        let now = self.settings.now();
        // An existing session is listed before its sign-in is written. If that sign-in may still be under
        // way, it gets a moment to finish.
        let is_fresh =
            |entry: &&Entry| now.since(entry.signed_in) < 2 * self.settings.options.timeout;
        let mut missing: Vec<_> =
            entries.iter().filter(|entry| !probed.contains_key(&entry.id)).collect();
        for attempt in 1..=PROBE_ATTEMPTS {
            self.probe_missing(&mut missing, probed).await;
            if attempt == PROBE_ATTEMPTS
                || !missing.iter().any(is_fresh)
                || PROBE_INTERVAL >= self.commands.time_left()
            {
                break;
            }
            sleep(PROBE_INTERVAL).await;
        }
        let missing: Vec<_> = missing.into_iter().map(|entry| entry.id).collect();
        self.ensure_ended(&missing).await
    }

    /// Probes the `missing` sessions once. Moves those that are alive or cannot be read to `probed`.
    async fn probe_missing(&self, missing: &mut Vec<&Entry>, probed: &mut ProbedSessions) {
        let results = join_all(missing.iter().map(|entry| self.load_owned(entry.id))).await;
        let mut results = results.into_iter();
        missing.retain(|entry| {
            let unconfirmed = match results.next() {
                Some(Ok(None)) => return true,
                Some(Ok(Some(loaded))) => loaded.record.header.is_unconfirmed.then_some(loaded),
                Some(Err(_)) | None => None,
            };
            probed.insert(entry.id, unconfirmed);
            false
        });
    }

    /// Revokes up to `most` of the unconfirmed sessions, the oldest first. A session that has been written
    /// since it was probed is kept, because a request may have confirmed it.
    async fn revoke_unconfirmed(
        &self,
        unconfirmed: &[Arc<Loaded>],
        most: usize,
        record: &DirectoryRecord,
    ) -> HashSet<SessionId> {
        let mut ended = HashSet::new();
        for session in unconfirmed {
            if ended.len() == most {
                break;
            }
            match self.commands.delete(&session.key, Some(&session.stored())).await {
                Ok((Deleted::Deleted, _)) => {
                    let label = record.label(session.id);
                    self.report_revoked(session.id, label, RevocationReason::Unconfirmed);
                    ended.insert(session.id);
                }
                Ok((Deleted::Missing, _)) => drop(ended.insert(session.id)),
                Ok((Deleted::Conflict(_), _)) | Err(_) => {}
            }
        }
        ended
    }

    /// Releases the reservation of a sign-in that failed, unless another sign-in now uses its session.
    pub(crate) async fn release(&self, reservation: Reservation) -> Result<()> {
        let mut guard = None;
        for attempt in 0..self.settings.options.commit_attempts {
            let DirectorySnapshot { record, stored } = self.read().await?;
            if !record.has_reservation(reservation.id, reservation.signed_in) {
                return Ok(());
            }
            let Some(record) = self.without_reservation(record, reservation).await else {
                return Ok(());
            };
            let write = self.write(stored.as_ref(), record).await?;
            if matches!(write, DirectoryWrite::Written(_)) {
                return Ok(());
            }
            self.back_off(&mut guard, attempt).await?;
        }
        Ok(())
    }

    /// Ends the session if it exists, and returns the record without the reservation. If the session cannot
    /// be ended now, its entry is marked as revoked instead. Returns `None` if another sign-in uses the
    /// session.
    async fn without_reservation(
        &self,
        mut record: DirectoryRecord,
        reservation: Reservation,
    ) -> Option<DirectoryRecord> {
        let Reservation { id, tag, .. } = reservation;
        let left = self.commands.time_left();
        // If the newest write is the failed sign-in's own, no client has the secret.
        let is_of_another = |loaded: &Loaded| loaded.record.header.tags.newest() != tag;
        match timeout(left / 2, self.ensure_ended_unless(id, is_of_another)).await {
            Ok(Ok(true)) => record.remove(&HashSet::from([id])),
            Ok(Ok(false)) => return None,
            // The session is ended when the directory is next used. Until then, it is marked as revoked and
            // does not count.
            Ok(Err(_)) | Err(_) => drop(record.mark_revoked(|listed| listed == id)),
        }
        Some(record)
    }
}
