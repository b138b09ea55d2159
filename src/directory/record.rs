//! A principal's directory record, and the rules for listing a session. This code is pure: the time is always
//! an argument.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Millis;
use crate::limits::TOMBSTONE_TTL;
use crate::record::sign_in::{Mark, SIGN_IN_WINDOW};
use crate::record::tag::{Tag, Tags};
use crate::record::token::SessionId;
use crate::settings::{CAPACITY, ConcurrentSessions};

/// The maximum number of entries in a record, including revoked sessions that could not be ended so far.
const MAX_ENTRIES: usize = 2 * CAPACITY as usize;

/// How much the clocks of different processes may differ. This determines how long a revocation is remembered
/// and how soon a missing session is removed. Whether a listed session still exists does not depend on
/// clocks: it is looked up in the store.
pub(crate) const SKEW: Duration = Duration::from_secs(300);

/// A new generation begins each time all sessions, or all but one, are revoked. A sign-in already under way
/// notices the new mark and fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) mark: Mark,
    pub(crate) since: Millis,
}

/// One session in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: SessionId,
    pub(crate) flags: u8,
    /// When the session was signed in.
    pub(crate) signed_in: Millis,
    /// The longest time that the session may live, counted from its sign-in.
    pub(crate) life: Duration,
    pub(crate) label: Option<Arc<str>>,
    /// Data from later releases, kept unchanged.
    pub(crate) unknown: Bytes,
}

impl Entry {
    const REVOKED: u8 = 1;

    /// Returns whether the session was revoked. A revoked session no longer counts, even if it could not be
    /// ended yet.
    fn is_revoked(&self) -> bool {
        self.flags & Self::REVOKED != 0
    }

    /// Returns whether the sign-in was so long ago that it can hardly still be under way. If such a session
    /// is missing, its entry can be removed.
    pub(crate) fn is_settled(&self, now: Millis) -> bool {
        now.since(self.signed_in) > TOMBSTONE_TTL + SKEW
    }
}

/// A request to list a session before its cookie is sent.
#[derive(Debug, Clone)]
pub(crate) struct Enrolment {
    pub(crate) id: SessionId,
    pub(crate) signed_in: Millis,
    /// When `begin_sign_in` was called for this sign-in, or `None` if it was not called.
    pub(crate) begun: Option<Millis>,
    /// The longest time that the session may live, counted from its sign-in.
    pub(crate) life: Duration,
    pub(crate) purpose: Purpose,
    /// `None` keeps the entry's current label.
    pub(crate) label: Option<Arc<str>>,
    /// The sessions that the same request ends. They do not count towards the limit.
    pub(crate) replacing: Vec<SessionId>,
    /// Whether the session must already be listed: true in strict mode, unless this is a new sign-in.
    pub(crate) must_be_listed: bool,
    /// Whether the session is new and has already been written.
    pub(crate) is_written: bool,
}

/// An entry that a sign-in under way has added. If the sign-in fails, the entry is removed or marked as
/// revoked, unless another sign-in uses the session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reservation {
    pub(crate) id: SessionId,
    pub(crate) signed_in: Millis,
    /// The tag of the sign-in's write to the session.
    pub(crate) tag: Tag,
}

/// The result of an enrolment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EnrolmentOutcome {
    /// The session is already listed, and the record is unchanged.
    AlreadyListed,
    /// The record now lists the session. The evicted sessions must be ended.
    Enrolled { evicted: Vec<SessionId> },
    /// There is no room. The caller must find sessions that have ended, or refuse the sign-in.
    Full,
    /// The session was revoked, but could not be ended so far.
    BeingRevoked,
    /// The session must already be listed, but is not.
    NotListed,
}

/// Why a session is enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A sign-in that has not yet listed this session.
    SignIn,
    /// Another attempt at the same sign-in, because another request wrote the session first.
    Again,
    /// A step-up: the session is already signed in, and its timeouts restart.
    StepUp,
    /// The session is already signed in and will live longer.
    LongerLife,
}

impl Purpose {
    /// Returns whether another session may be evicted for this purpose.
    fn may_evict(self) -> bool {
        matches!(self, Self::SignIn | Self::Again)
    }
}

/// The sessions of one principal, the oldest sign-in first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirectoryRecord {
    pub(crate) tags: Tags,
    /// `None` if, since the record was created, nobody has revoked all sessions or all but one.
    pub(crate) generation: Option<Generation>,
    /// Set if sessions were revoked while there was no record. Until this time, sessions that the record does
    /// not list may be alive.
    pub(crate) incomplete_until: Option<Millis>,
    pub(crate) entries: Vec<Entry>,
    /// Fields from later releases, kept unchanged.
    pub(crate) unknown: Vec<(u8, Bytes)>,
}

impl DirectoryRecord {
    pub(crate) fn new(tags: Tags) -> Self {
        Self {
            tags,
            generation: None,
            incomplete_until: None,
            entries: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Returns the listed sessions: those that are not revoked.
    pub(crate) fn listed(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter().filter(|entry| !entry.is_revoked())
    }

    pub(crate) fn lists(&self, id: SessionId) -> bool {
        self.listed().any(|entry| entry.id == id)
    }

    /// Returns the label of a session, even if the session is marked as revoked.
    pub(crate) fn label(&self, id: SessionId) -> Option<&str> {
        self.entries.iter().find(|entry| entry.id == id)?.label.as_deref()
    }

    /// Returns whether this sign-in's entry is still there and no other sign-in has taken it over.
    pub(crate) fn has_reservation(&self, id: SessionId, signed_in: Millis) -> bool {
        self.listed().any(|entry| entry.id == id && entry.signed_in == signed_in)
    }

    /// Returns the sessions that were revoked and may not have been ended yet.
    pub(crate) fn revoked(&self) -> Vec<SessionId> {
        self.entries.iter().filter(|entry| entry.is_revoked()).map(|entry| entry.id).collect()
    }

    pub(crate) fn remove(&mut self, ids: &HashSet<SessionId>) {
        self.entries.retain(|entry| !ids.contains(&entry.id));
    }

    /// Returns the sessions that count towards the limit, the oldest sign-in first.
    pub(crate) fn counted(&self, enrolment: &Enrolment) -> impl Iterator<Item = &Entry> {
        self.listed().filter(|entry| !enrolment.replacing.contains(&entry.id))
    }

    /// Returns how many of the counted sessions must end to make room for one more.
    pub(crate) fn excess(&self, enrolment: &Enrolment, policy: ConcurrentSessions) -> usize {
        (self.counted(enrolment).count() + 1).saturating_sub(usize::from(policy.most()))
    }

    /// Returns whether a session can be listed without probing or ending other sessions.
    pub(crate) fn has_room(&self, enrolment: &Enrolment, policy: ConcurrentSessions) -> bool {
        !self.entries.iter().any(Entry::is_revoked) && self.excess(enrolment, policy) == 0
    }

    /// Marks as revoked the sessions that `is_chosen` selects, and returns them.
    pub(crate) fn mark_revoked(&mut self, is_chosen: impl Fn(SessionId) -> bool) -> Vec<SessionId> {
        let chosen = self.entries.iter_mut().filter(|entry| is_chosen(entry.id));
        chosen
            .map(|entry| {
                entry.flags |= Entry::REVOKED;
                entry.id
            })
            .collect()
    }

    /// Adds a session to the record, or updates its entry. `is_final` says that no more ended sessions can be
    /// found, so the policy applies.
    pub(crate) fn enrol(
        &mut self,
        enrolment: &Enrolment,
        policy: ConcurrentSessions,
        is_final: bool,
    ) -> EnrolmentOutcome {
        if enrolment.must_be_listed && !self.lists(enrolment.id) {
            return EnrolmentOutcome::NotListed;
        }
        if let Some(index) = self.entries.iter().position(|entry| entry.id == enrolment.id) {
            return self.update_entry(index, enrolment);
        }
        if self.entries.len() >= MAX_ENTRIES {
            return EnrolmentOutcome::Full;
        }
        let Some(evicted) = self.evict(enrolment, policy, is_final) else {
            return EnrolmentOutcome::Full;
        };
        self.insert_entry(enrolment);
        EnrolmentOutcome::Enrolled { evicted }
    }

    /// Updates the entry of a session that is already listed. A new sign-in becomes the newest entry.
    fn update_entry(&mut self, index: usize, enrolment: &Enrolment) -> EnrolmentOutcome {
        let Enrolment { signed_in, life, purpose, label, .. } = enrolment;
        let entry = &mut self.entries[index];
        if entry.is_revoked() {
            return EnrolmentOutcome::BeingRevoked;
        }
        // A step-up is always written, because the record's time to live counts from the last write.
        if matches!(purpose, Purpose::Again | Purpose::LongerLife) && entry.life >= *life {
            return EnrolmentOutcome::AlreadyListed;
        }
        entry.life = entry.life.max(*life);
        if *purpose == Purpose::SignIn {
            entry.signed_in = *signed_in;
            entry.label = label.clone().or(entry.label.take());
            self.entries[index..].rotate_left(1);
        }
        EnrolmentOutcome::Enrolled { evicted: Vec::new() }
    }

    /// Makes room for one more session by marking others as revoked, and returns those. Returns `None` if
    /// there is no room and no session may be evicted.
    fn evict(
        &mut self,
        enrolment: &Enrolment,
        policy: ConcurrentSessions,
        is_final: bool,
    ) -> Option<Vec<SessionId>> {
        let excess = self.excess(enrolment, policy);
        // A session that is already alive is listed even above the limit, and evicts no other session.
        if excess == 0 || !enrolment.purpose.may_evict() {
            return Some(Vec::new());
        }
        if !is_final || !policy.evicts() {
            return None;
        }
        let oldest: Vec<_> = self.counted(enrolment).take(excess).map(|entry| entry.id).collect();
        Some(self.mark_revoked(|id| oldest.contains(&id)))
    }

    /// Inserts an entry in the order of the sign-ins. A new sign-in goes last.
    fn insert_entry(&mut self, enrolment: &Enrolment) {
        let Enrolment { id, signed_in, life, purpose, label, .. } = enrolment;
        let is_later = |other: &Entry| other.signed_in > *signed_in;
        let index = match purpose {
            Purpose::StepUp | Purpose::LongerLife => self.entries.iter().position(is_later),
            Purpose::SignIn | Purpose::Again => None,
        };
        let entry = Entry {
            id: *id,
            flags: 0,
            signed_in: *signed_in,
            life: *life,
            label: label.clone(),
            unknown: Bytes::new(),
        };
        self.entries.insert(index.unwrap_or(self.entries.len()), entry);
    }

    /// Returns how long the store keeps the record after this write. This is the longest of three times, plus
    /// [`SKEW`]: the longest life of a session in the record, the configured absolute timeout, and the time
    /// that a sign-in may take. The result is a duration, so it does not depend on the clock of the process
    /// that writes.
    pub(crate) fn ttl(&self, configured: Duration) -> Duration {
        let longest = self.entries.iter().map(|entry| entry.life).max();
        longest.unwrap_or_default().max(configured).max(SIGN_IN_WINDOW) + SKEW
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Millis;
    use crate::entropy::OsEntropy;

    use crate::record::sign_in::SIGN_IN_WINDOW;
    use crate::record::tag::{Tag, Tags};
    use crate::record::token::SessionId;
    use crate::settings::ConcurrentSessions;

    const NOW: Millis = Millis(1_800_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn record() -> DirectoryRecord {
        DirectoryRecord::new(Tags::first(Tag([1; 8])))
    }

    fn enrolment() -> Enrolment {
        Enrolment {
            id: SessionId::random(&OsEntropy).unwrap(),
            signed_in: NOW,
            begun: None,
            life: HOUR,
            purpose: Purpose::SignIn,
            label: None,
            replacing: Vec::new(),
            must_be_listed: false,
            is_written: false,
        }
    }

    fn again_of(record: &DirectoryRecord, index: usize) -> Enrolment {
        Enrolment { id: record.entries[index].id, signed_in: NOW.plus(3 * HOUR), ..enrolment() }
    }

    fn enrolled(record: &mut DirectoryRecord, policy: ConcurrentSessions) -> SessionId {
        let enrolment = enrolment();
        let evicted = Vec::new();
        assert_eq!(record.enrol(&enrolment, policy, false), EnrolmentOutcome::Enrolled { evicted });
        enrolment.id
    }

    fn ids(record: &DirectoryRecord) -> Vec<SessionId> {
        record.listed().map(|entry| entry.id).collect()
    }

    #[test]
    fn oldest_session_is_evicted_only_in_the_final_attempt() {
        let policy = ConcurrentSessions::EvictOldest(2);
        let mut record = record();
        let (first, second) = (enrolled(&mut record, policy), enrolled(&mut record, policy));
        let third = enrolment();
        assert_eq!(record.enrol(&third, policy, false), EnrolmentOutcome::Full);
        assert_eq!(ids(&record), [first, second]);
        assert_eq!(
            record.enrol(&third, policy, true),
            EnrolmentOutcome::Enrolled { evicted: vec![first] }
        );
        assert_eq!((ids(&record), record.revoked()), (vec![second, third.id], vec![first]));
        // A lower limit after a configuration change.
        let policy = ConcurrentSessions::EvictOldest(1);
        let fourth = enrolment();
        let evicted = vec![second, third.id];
        assert_eq!(record.enrol(&fourth, policy, true), EnrolmentOutcome::Enrolled { evicted });
        assert_eq!(ids(&record), [fourth.id]);
    }

    #[test]
    fn refused_enrolment_changes_nothing() {
        for (policy, most) in
            [(ConcurrentSessions::Reject(3), 3), (ConcurrentSessions::Allow, 1000)]
        {
            let mut record = record();
            for _ in 0..most {
                enrolled(&mut record, policy);
            }
            let before = record.clone();
            for is_final in [false, true] {
                assert_eq!(record.enrol(&enrolment(), policy, is_final), EnrolmentOutcome::Full);
                assert_eq!(record, before);
            }
        }
    }

    #[test]
    fn revoked_entries_are_limited_too() {
        let policy = ConcurrentSessions::Reject(1);
        let mut record = record();
        for _ in 0..MAX_ENTRIES {
            let id = enrolled(&mut record, policy);
            record.mark_revoked(|revoked| revoked == id);
        }
        assert_eq!(record.enrol(&enrolment(), policy, true), EnrolmentOutcome::Full);
    }

    #[test]
    fn session_that_ends_with_the_same_request_does_not_count() {
        let policy = ConcurrentSessions::Reject(1);
        let mut record = record();
        let first = enrolled(&mut record, policy);
        let second = Enrolment { replacing: vec![first], ..enrolment() };
        let evicted = Vec::new();
        assert_eq!(record.enrol(&second, policy, true), EnrolmentOutcome::Enrolled { evicted });
        // The replaced session is listed until it has ended.
        assert_eq!(ids(&record), [first, second.id]);
    }

    #[test]
    fn listed_session_is_updated_and_a_new_sign_in_becomes_the_newest() {
        let policy = ConcurrentSessions::EvictOldest(2);
        let mut record = record();
        let first = Enrolment { label: Some("phone".into()), ..enrolment() };
        record.enrol(&first, policy, false);
        let second = enrolled(&mut record, policy);
        let retried = Enrolment { purpose: Purpose::Again, ..first.clone() };
        assert_eq!(record.enrol(&retried, policy, false), EnrolmentOutcome::AlreadyListed);
        assert_eq!(ids(&record), [first.id, second]);
        let again = Enrolment { signed_in: NOW.plus(HOUR), label: None, ..first };
        let evicted = Vec::new();
        assert_eq!(record.enrol(&again, policy, false), EnrolmentOutcome::Enrolled { evicted });
        assert_eq!(ids(&record), [second, again.id]);
        assert_eq!(record.entries[1].label.as_deref(), Some("phone"), "the label stays");
        let longer = Enrolment { life: 2 * HOUR, purpose: Purpose::Again, ..again.clone() };
        assert_ne!(record.enrol(&longer, policy, false), EnrolmentOutcome::AlreadyListed);
        let shorter = Enrolment { signed_in: NOW, ..again };
        record.enrol(&shorter, policy, false);
        assert_eq!(record.entries[1].life, 2 * HOUR, "never shorter");
        // Extending the life of a session that is no longer listed evicts no other session.
        let signed_in = Millis(NOW.0 - 1);
        let unlisted = Enrolment { purpose: Purpose::LongerLife, signed_in, ..enrolment() };
        let evicted = Vec::new();
        assert_eq!(record.enrol(&unlisted, policy, true), EnrolmentOutcome::Enrolled { evicted });
        assert_eq!(ids(&record), [unlisted.id, second, longer.id], "in the order of the sign-ins");
        // A step-up keeps the order. It only restarts the time for which the record is kept.
        let stepped_up = Enrolment { purpose: Purpose::StepUp, ..again_of(&record, 1) };
        let before = ids(&record);
        let evicted = Vec::new();
        assert_eq!(record.enrol(&stepped_up, policy, true), EnrolmentOutcome::Enrolled { evicted });
        assert_eq!(ids(&record), before);
        // A session that must be listed but is not, or that is being revoked, is refused.
        let stranger = enrolment();
        let unlisted = Enrolment { must_be_listed: true, ..stranger };
        assert_eq!(record.enrol(&unlisted, policy, true), EnrolmentOutcome::NotListed);
        record.mark_revoked(|id| id == second);
        let ending = Enrolment { id: second, ..enrolment() };
        assert_eq!(record.enrol(&ending, policy, true), EnrolmentOutcome::BeingRevoked);
    }

    #[test]
    fn record_has_room_below_limit_and_without_revoked_sessions() {
        let (mut record, listed, enrolment) = (record(), enrolment(), enrolment());
        record.enrol(&listed, ConcurrentSessions::Allow, false);
        let has_room = |record: &DirectoryRecord, enrolment: &Enrolment, most| {
            record.has_room(enrolment, ConcurrentSessions::EvictOldest(most))
        };
        assert!(has_room(&record, &enrolment, 2));
        assert!(!has_room(&record, &enrolment, 1));
        let replacing = Enrolment { replacing: vec![listed.id], ..enrolment.clone() };
        assert!(has_room(&record, &replacing, 1));
        record.mark_revoked(|id| id == listed.id);
        assert!(!has_room(&record, &enrolment, 2));
    }

    #[test]
    fn record_is_kept_longer_than_any_session_in_it() {
        let mut record = record();
        assert_eq!(record.ttl(Duration::ZERO), SIGN_IN_WINDOW + SKEW);
        assert_eq!(record.ttl(24 * HOUR), 24 * HOUR + SKEW);
        let longer = Enrolment { life: 48 * HOUR, ..enrolment() };
        record.enrol(&longer, ConcurrentSessions::Allow, false);
        assert_eq!(record.ttl(24 * HOUR), 48 * HOUR + SKEW);
    }
}
