//! What is stored of a principal's sessions, and who is let onto it: pure, the time is always an
//! argument.

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

/// How many entries there are at most, with those whose end could not be carried out so far.
const MAX_ENTRIES: usize = 2 * CAPACITY as usize;

/// How much the clocks of processes may differ. It decides how long the memory of a revocation lasts
/// and how soon a missing session is looked into; entries go by what the store says.
pub(crate) const SKEW: Duration = Duration::from_secs(300);

/// What revoking everything leaves: a sign-in that was begun before it finds another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) mark: Mark,
    pub(crate) since: Millis,
}

/// One session on the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: SessionId,
    pub(crate) flags: u8,
    /// When it was signed in.
    pub(crate) signed_in: Millis,
    /// How long the session may live from its sign-in.
    pub(crate) life: Duration,
    pub(crate) label: Option<Arc<str>>,
    /// What a later release keeps there.
    pub(crate) unknown: Bytes,
}

impl Entry {
    const REVOKED: u8 = 1;

    /// Whether the session is to end, or has ended: it counts no more.
    fn is_revoked(&self) -> bool {
        self.flags & Self::REVOKED != 0
    }

    /// Whether the sign-in is so long ago that it can hardly be under way: worth to be made sure of.
    pub(crate) fn is_settled(&self, now: Millis) -> bool {
        now.since(self.signed_in) > TOMBSTONE_TTL + SKEW
    }
}

/// A session that is to be on the record before it is written.
#[derive(Debug, Clone)]
pub(crate) struct Enrolment {
    pub(crate) id: SessionId,
    pub(crate) signed_in: Millis,
    /// How long the session may live from its sign-in.
    pub(crate) life: Duration,
    pub(crate) purpose: Purpose,
    /// `None` leaves the one that stands there.
    pub(crate) label: Option<Arc<str>>,
    /// Sessions that end with the same request, so they do not count.
    pub(crate) replacing: Vec<SessionId>,
    /// The session has to be listed already: in strict mode, where it is no new sign-in.
    pub(crate) must_be_listed: bool,
}

/// A place that a sign-in has taken on the record, and the write that is to fill it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reservation {
    pub(crate) id: SessionId,
    pub(crate) signed_in: Millis,
    pub(crate) tag: Tag,
}

/// What became of an enrolment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EnrolmentOutcome {
    /// It stands there already.
    AlreadyListed,
    /// The record has it now; these have to go.
    Enrolled { evicted: Vec<SessionId> },
    /// There are too many: look which of them still live, or give up.
    Full,
    /// Its end was decided and could not be carried out so far.
    BeingRevoked,
    /// It must be listed already, and is not.
    NotListed,
}

/// What a session is to be on the record for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A sign-in that was not entered yet.
    SignIn,
    /// The same sign-in once more, as its session met a newer record.
    Again,
    /// A session that is signed in already, and restarts its clocks.
    StepUp,
    /// A session that is signed in already and will live longer.
    LongerLife,
}

impl Purpose {
    /// Whether it may take the place of another session.
    fn adds_one(self) -> bool {
        matches!(self, Self::SignIn | Self::Again)
    }
}

/// The sessions of one principal, the longest signed in first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirectoryRecord {
    pub(crate) tags: Tags,
    /// `None` where nothing was revoked since the record was begun.
    pub(crate) generation: Option<Generation>,
    /// Something was revoked while there was no record: sessions that it cannot tell of may live until
    /// then.
    pub(crate) incomplete_until: Option<Millis>,
    pub(crate) entries: Vec<Entry>,
    /// Fields of later releases, kept as they are.
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

    /// The sessions that count.
    pub(crate) fn listed(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter().filter(|entry| !entry.is_revoked())
    }

    pub(crate) fn lists(&self, id: SessionId) -> bool {
        self.listed().any(|entry| entry.id == id)
    }

    /// Whether the place of this sign-in is still its own.
    pub(crate) fn has(&self, id: SessionId, signed_in: Millis) -> bool {
        self.listed().any(|entry| entry.id == id && entry.signed_in == signed_in)
    }

    /// The sessions whose end was decided and perhaps not carried out.
    pub(crate) fn revoked(&self) -> Vec<SessionId> {
        self.entries.iter().filter(|entry| entry.is_revoked()).map(|entry| entry.id).collect()
    }

    pub(crate) fn remove(&mut self, ids: &HashSet<SessionId>) {
        self.entries.retain(|entry| !ids.contains(&entry.id));
    }

    /// The sessions that count against the limit, the longest signed in first.
    pub(crate) fn counted(&self, enrolment: &Enrolment) -> impl Iterator<Item = &Entry> {
        self.listed().filter(|entry| !enrolment.replacing.contains(&entry.id))
    }

    /// How many of them have to go for one more.
    pub(crate) fn over(&self, enrolment: &Enrolment, policy: ConcurrentSessions) -> usize {
        (self.counted(enrolment).count() + 1).saturating_sub(usize::from(policy.most()))
    }

    /// Marks the sessions for which `chosen` holds, and says which ones.
    pub(crate) fn revoke(&mut self, chosen: impl Fn(SessionId) -> bool) -> Vec<SessionId> {
        let chosen = self.entries.iter_mut().filter(|entry| chosen(entry.id));
        chosen
            .map(|entry| {
                entry.flags |= Entry::REVOKED;
                entry.id
            })
            .collect()
    }

    /// Lets a session onto the record. `is_final`: there are no others to be found gone, so the policy decides.
    pub(crate) fn enrol(
        &mut self,
        enrolment: &Enrolment,
        policy: ConcurrentSessions,
        is_final: bool,
    ) -> EnrolmentOutcome {
        let Enrolment { id, signed_in, life, purpose, label, must_be_listed, .. } = enrolment;
        if *must_be_listed && !self.lists(*id) {
            return EnrolmentOutcome::NotListed;
        }
        let is_sign_in = *purpose == Purpose::SignIn;
        let entry = Entry {
            id: *id,
            flags: 0,
            signed_in: *signed_in,
            life: *life,
            label: label.clone(),
            unknown: Bytes::new(),
        };
        if let Some(place) = self.entries.iter().position(|entry| entry.id == *id) {
            let standing = &mut self.entries[place];
            if standing.is_revoked() {
                return EnrolmentOutcome::BeingRevoked;
            }
            // A step-up is written all the same: the store keeps the record from its last write on.
            if matches!(purpose, Purpose::Again | Purpose::LongerLife) && standing.life >= *life {
                return EnrolmentOutcome::AlreadyListed;
            }
            standing.life = standing.life.max(*life);
            if is_sign_in {
                standing.signed_in = entry.signed_in;
                standing.label = entry.label.or(standing.label.take());
                self.entries[place..].rotate_left(1);
            }
            return EnrolmentOutcome::Enrolled { evicted: Vec::new() };
        }
        if self.entries.len() >= MAX_ENTRIES {
            return EnrolmentOutcome::Full;
        }
        let over = self.over(enrolment, policy);
        let mut evicted = Vec::new();
        // One that lives already is listed in any case: it takes nobody's place.
        if over > 0 && purpose.adds_one() {
            if !is_final || !policy.evicts() {
                return EnrolmentOutcome::Full;
            }
            let oldest: Vec<_> = self.counted(enrolment).take(over).map(|entry| entry.id).collect();
            evicted = self.revoke(|id| oldest.contains(&id));
        }
        let is_later = |other: &Entry| other.signed_in > entry.signed_in;
        let place = match purpose {
            Purpose::StepUp | Purpose::LongerLife => self.entries.iter().position(is_later),
            Purpose::SignIn | Purpose::Again => None,
        };
        self.entries.insert(place.unwrap_or(self.entries.len()), entry);
        EnrolmentOutcome::Enrolled { evicted }
    }

    /// How long the store is to keep the record from this write on: as long as any session on it may live
    /// from its sign-in, or the configured absolute timeout, or a sign-in may take. A duration, so it does not
    /// depend on the clock of whoever writes.
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
            life: HOUR,
            purpose: Purpose::SignIn,
            label: None,
            replacing: Vec::new(),
            must_be_listed: false,
        }
    }

    fn again_of(record: &DirectoryRecord, place: usize) -> Enrolment {
        Enrolment { id: record.entries[place].id, signed_in: NOW.plus(3 * HOUR), ..enrolment() }
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
    fn the_oldest_goes_only_when_nobody_is_gone() {
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
        // A lower limit after a change of the configuration.
        let policy = ConcurrentSessions::EvictOldest(1);
        let fourth = enrolment();
        let evicted = vec![second, third.id];
        assert_eq!(record.enrol(&fourth, policy, true), EnrolmentOutcome::Enrolled { evicted });
        assert_eq!(ids(&record), [fourth.id]);
    }

    #[test]
    fn a_limit_that_rejects_changes_nothing() {
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
    fn those_that_can_not_be_ended_are_not_any_number() {
        let policy = ConcurrentSessions::Reject(1);
        let mut record = record();
        for _ in 0..MAX_ENTRIES {
            let id = enrolled(&mut record, policy);
            record.revoke(|revoked| revoked == id);
        }
        assert_eq!(record.enrol(&enrolment(), policy, true), EnrolmentOutcome::Full);
    }

    #[test]
    fn one_that_ends_with_the_same_request_does_not_count() {
        let policy = ConcurrentSessions::Reject(1);
        let mut record = record();
        let first = enrolled(&mut record, policy);
        let second = Enrolment { replacing: vec![first], ..enrolment() };
        let evicted = Vec::new();
        assert_eq!(record.enrol(&second, policy, true), EnrolmentOutcome::Enrolled { evicted });
        // It is listed until it has ended.
        assert_eq!(ids(&record), [first, second.id]);
    }

    #[test]
    fn who_stands_there_is_brought_up_to_date_and_becomes_the_newest() {
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
        // A longer life of one that is not listed any more takes nobody's place.
        let signed_in = Millis(NOW.0 - 1);
        let unlisted = Enrolment { purpose: Purpose::LongerLife, signed_in, ..enrolment() };
        let evicted = Vec::new();
        assert_eq!(record.enrol(&unlisted, policy, true), EnrolmentOutcome::Enrolled { evicted });
        assert_eq!(ids(&record), [unlisted.id, second, longer.id], "in the order of the sign-ins");
        // So does a step-up, which only restarts the time for which the record is kept.
        let stepped_up = Enrolment { purpose: Purpose::StepUp, ..again_of(&record, 1) };
        let before = ids(&record);
        let evicted = Vec::new();
        assert_eq!(record.enrol(&stepped_up, policy, true), EnrolmentOutcome::Enrolled { evicted });
        assert_eq!(ids(&record), before);
        // Where it must be listed, that is its end; and no place is given to one that is being ended.
        let stranger = enrolment();
        let unlisted = Enrolment { must_be_listed: true, ..stranger };
        assert_eq!(record.enrol(&unlisted, policy, true), EnrolmentOutcome::NotListed);
        record.revoke(|id| id == second);
        let ending = Enrolment { id: second, ..enrolment() };
        assert_eq!(record.enrol(&ending, policy, true), EnrolmentOutcome::BeingRevoked);
    }

    #[test]
    fn directory_is_kept_longer_than_any_session_on_it() {
        let mut record = record();
        assert_eq!(record.ttl(Duration::ZERO), SIGN_IN_WINDOW + SKEW);
        assert_eq!(record.ttl(24 * HOUR), 24 * HOUR + SKEW);
        let longer = Enrolment { life: 48 * HOUR, ..enrolment() };
        record.enrol(&longer, ConcurrentSessions::Allow, false);
        assert_eq!(record.ttl(24 * HOUR), 48 * HOUR + SKEW);
    }
}
