//! What is stored of a principal's sessions, and who is let onto it: pure, the time is always an
//! argument.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Millis;
use crate::limits::FENCE;
use crate::record::sign_in::{Mark, SIGN_IN_LIFE};
use crate::record::tag::{Tag, Tags};
use crate::record::token::SessionId;
use crate::settings::{CAPACITY, ParallelSessions};

/// How many entries there are at most, with those whose end could not be carried out so far.
const MOST_ENTRIES: usize = 2 * CAPACITY as usize;

/// How much the clocks of processes may differ. It decides how long the memory of a revocation lasts
/// and how soon a missing session is looked into; entries go by what the store says.
pub(crate) const SKEW: Duration = Duration::from_secs(300);

/// What revoking everything leaves: a sign-in that was begun before it finds another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) mark: Mark,
    pub(crate) since: Millis,
}

/// One session on the roll.
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
        now.since(self.signed_in) > FENCE + SKEW
    }
}

/// A session that is to be on the roll before it is written.
#[derive(Debug, Clone)]
pub(crate) struct Application {
    pub(crate) id: SessionId,
    pub(crate) signed_in: Millis,
    /// How long the session may live from its sign-in.
    pub(crate) life: Duration,
    pub(crate) purpose: Purpose,
    /// `None` leaves the one that stands there.
    pub(crate) label: Option<Arc<str>>,
    /// Sessions that end with the same request, so they do not count.
    pub(crate) instead_of: Vec<SessionId>,
    /// The session has to be listed already: in strict mode, where it is no new sign-in.
    pub(crate) must_be_listed: bool,
}

/// A place that a sign-in has taken on the roll, and the write that is to fill it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) id: SessionId,
    pub(crate) signed_in: Millis,
    pub(crate) tag: Tag,
}

/// What became of an application.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It stands there already.
    Standing,
    /// The roll has it now; these have to go.
    Admitted { evicted: Vec<SessionId> },
    /// There are too many: look which of them still live, or give up.
    Full,
    /// Its end was decided and could not be carried out so far.
    Ending,
    /// It must be listed already, and is not.
    Unlisted,
}

/// What a session is to be on the roll for.
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
pub(crate) struct Roll {
    pub(crate) tags: Tags,
    /// `None` where nothing was revoked since the roll was begun.
    pub(crate) generation: Option<Generation>,
    /// Something was revoked while there was no roll: sessions that it cannot tell of may live until
    /// then.
    pub(crate) blind_until: Option<Millis>,
    pub(crate) entries: Vec<Entry>,
    /// Fields of later releases, kept as they are.
    pub(crate) unknown: Vec<(u8, Bytes)>,
}

impl Roll {
    pub(crate) fn new(tags: Tags) -> Self {
        Self { tags, generation: None, blind_until: None, entries: Vec::new(), unknown: Vec::new() }
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
    pub(crate) fn counted(&self, application: &Application) -> impl Iterator<Item = &Entry> {
        self.listed().filter(|entry| !application.instead_of.contains(&entry.id))
    }

    /// How many of them have to go for one more.
    pub(crate) fn over(&self, application: &Application, policy: ParallelSessions) -> usize {
        (self.counted(application).count() + 1).saturating_sub(usize::from(policy.most()))
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

    /// Lets a session onto the roll. `is_last_word`: there are no others to be found gone, so the policy decides.
    pub(crate) fn admit(
        &mut self,
        application: &Application,
        policy: ParallelSessions,
        is_last_word: bool,
    ) -> Admission {
        let Application { id, signed_in, life, purpose, label, must_be_listed, .. } = application;
        if *must_be_listed && !self.lists(*id) {
            return Admission::Unlisted;
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
                return Admission::Ending;
            }
            // A step-up is written all the same: the store keeps the roll from its last write on.
            if matches!(purpose, Purpose::Again | Purpose::LongerLife) && standing.life >= *life {
                return Admission::Standing;
            }
            standing.life = standing.life.max(*life);
            if is_sign_in {
                standing.signed_in = entry.signed_in;
                standing.label = entry.label.or(standing.label.take());
                self.entries[place..].rotate_left(1);
            }
            return Admission::Admitted { evicted: Vec::new() };
        }
        if self.entries.len() >= MOST_ENTRIES {
            return Admission::Full;
        }
        let over = self.over(application, policy);
        let mut evicted = Vec::new();
        // One that lives already is listed in any case: it takes nobody's place.
        if over > 0 && purpose.adds_one() {
            if !is_last_word || !policy.evicts() {
                return Admission::Full;
            }
            let oldest: Vec<_> =
                self.counted(application).take(over).map(|entry| entry.id).collect();
            evicted = self.revoke(|id| oldest.contains(&id));
        }
        let is_later = |other: &Entry| other.signed_in > entry.signed_in;
        let place = match purpose {
            Purpose::StepUp | Purpose::LongerLife => self.entries.iter().position(is_later),
            Purpose::SignIn | Purpose::Again => None,
        };
        self.entries.insert(place.unwrap_or(self.entries.len()), entry);
        Admission::Admitted { evicted }
    }

    /// How long the store is to keep the roll from this write on: as long as any session on it may live
    /// from its sign-in, or the configured absolute timeout, or a sign-in may take. A duration, so it does not
    /// depend on the clock of whoever writes.
    pub(crate) fn ttl(&self, configured: Duration) -> Duration {
        let longest = self.entries.iter().map(|entry| entry.life).max();
        longest.unwrap_or_default().max(configured).max(SIGN_IN_LIFE) + SKEW
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Millis;
    use crate::entropy::OsEntropy;

    use crate::record::sign_in::SIGN_IN_LIFE;
    use crate::record::tag::{Tag, Tags};
    use crate::record::token::SessionId;
    use crate::settings::ParallelSessions;

    const NOW: Millis = Millis(1_800_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn roll() -> Roll {
        Roll::new(Tags::first(Tag([1; 8])))
    }

    fn application() -> Application {
        Application {
            id: SessionId::random(&OsEntropy).unwrap(),
            signed_in: NOW,
            life: HOUR,
            purpose: Purpose::SignIn,
            label: None,
            instead_of: Vec::new(),
            must_be_listed: false,
        }
    }

    fn again_of(roll: &Roll, place: usize) -> Application {
        Application { id: roll.entries[place].id, signed_in: NOW.plus(3 * HOUR), ..application() }
    }

    fn admitted(roll: &mut Roll, policy: ParallelSessions) -> SessionId {
        let application = application();
        let evicted = Vec::new();
        assert_eq!(roll.admit(&application, policy, false), Admission::Admitted { evicted });
        application.id
    }

    fn ids(roll: &Roll) -> Vec<SessionId> {
        roll.listed().map(|entry| entry.id).collect()
    }

    #[test]
    fn the_oldest_goes_only_when_nobody_is_gone() {
        let policy = ParallelSessions::EvictOldest(2);
        let mut roll = roll();
        let (first, second) = (admitted(&mut roll, policy), admitted(&mut roll, policy));
        let third = application();
        assert_eq!(roll.admit(&third, policy, false), Admission::Full);
        assert_eq!(ids(&roll), [first, second]);
        assert_eq!(roll.admit(&third, policy, true), Admission::Admitted { evicted: vec![first] });
        assert_eq!((ids(&roll), roll.revoked()), (vec![second, third.id], vec![first]));
        // A lower limit after a change of the configuration.
        let policy = ParallelSessions::EvictOldest(1);
        let fourth = application();
        let evicted = vec![second, third.id];
        assert_eq!(roll.admit(&fourth, policy, true), Admission::Admitted { evicted });
        assert_eq!(ids(&roll), [fourth.id]);
    }

    #[test]
    fn a_limit_that_rejects_changes_nothing() {
        for (policy, most) in [(ParallelSessions::Reject(3), 3), (ParallelSessions::Allow, 1000)] {
            let mut roll = roll();
            for _ in 0..most {
                admitted(&mut roll, policy);
            }
            let before = roll.clone();
            for is_last_word in [false, true] {
                assert_eq!(roll.admit(&application(), policy, is_last_word), Admission::Full);
                assert_eq!(roll, before);
            }
        }
    }

    #[test]
    fn those_that_can_not_be_ended_are_not_any_number() {
        let policy = ParallelSessions::Reject(1);
        let mut roll = roll();
        for _ in 0..MOST_ENTRIES {
            let id = admitted(&mut roll, policy);
            roll.revoke(|revoked| revoked == id);
        }
        assert_eq!(roll.admit(&application(), policy, true), Admission::Full);
    }

    #[test]
    fn one_that_ends_with_the_same_request_does_not_count() {
        let policy = ParallelSessions::Reject(1);
        let mut roll = roll();
        let first = admitted(&mut roll, policy);
        let second = Application { instead_of: vec![first], ..application() };
        let evicted = Vec::new();
        assert_eq!(roll.admit(&second, policy, true), Admission::Admitted { evicted });
        // It is listed until it has ended.
        assert_eq!(ids(&roll), [first, second.id]);
    }

    #[test]
    fn who_stands_there_is_brought_up_to_date_and_becomes_the_newest() {
        let policy = ParallelSessions::EvictOldest(2);
        let mut roll = roll();
        let first = Application { label: Some("phone".into()), ..application() };
        roll.admit(&first, policy, false);
        let second = admitted(&mut roll, policy);
        let retried = Application { purpose: Purpose::Again, ..first.clone() };
        assert_eq!(roll.admit(&retried, policy, false), Admission::Standing);
        assert_eq!(ids(&roll), [first.id, second]);
        let again = Application { signed_in: NOW.plus(HOUR), label: None, ..first };
        let evicted = Vec::new();
        assert_eq!(roll.admit(&again, policy, false), Admission::Admitted { evicted });
        assert_eq!(ids(&roll), [second, again.id]);
        assert_eq!(roll.entries[1].label.as_deref(), Some("phone"), "the label stays");
        let longer = Application { life: 2 * HOUR, purpose: Purpose::Again, ..again.clone() };
        assert_ne!(roll.admit(&longer, policy, false), Admission::Standing);
        let shorter = Application { signed_in: NOW, ..again };
        roll.admit(&shorter, policy, false);
        assert_eq!(roll.entries[1].life, 2 * HOUR, "never shorter");
        // A longer life of one that is not listed any more takes nobody's place.
        let signed_in = Millis(NOW.0 - 1);
        let unlisted = Application { purpose: Purpose::LongerLife, signed_in, ..application() };
        let evicted = Vec::new();
        assert_eq!(roll.admit(&unlisted, policy, true), Admission::Admitted { evicted });
        assert_eq!(ids(&roll), [unlisted.id, second, longer.id], "in the order of the sign-ins");
        // So does a step-up, which only restarts the time for which the roll is kept.
        let stepped_up = Application { purpose: Purpose::StepUp, ..again_of(&roll, 1) };
        let before = ids(&roll);
        let evicted = Vec::new();
        assert_eq!(roll.admit(&stepped_up, policy, true), Admission::Admitted { evicted });
        assert_eq!(ids(&roll), before);
        // Where it must be listed, that is its end; and no place is given to one that is being ended.
        let stranger = application();
        let unlisted = Application { must_be_listed: true, ..stranger };
        assert_eq!(roll.admit(&unlisted, policy, true), Admission::Unlisted);
        roll.revoke(|id| id == second);
        let ending = Application { id: second, ..application() };
        assert_eq!(roll.admit(&ending, policy, true), Admission::Ending);
    }

    #[test]
    fn directory_is_kept_longer_than_any_session_on_it() {
        let mut roll = roll();
        assert_eq!(roll.ttl(Duration::ZERO), SIGN_IN_LIFE + SKEW);
        assert_eq!(roll.ttl(24 * HOUR), 24 * HOUR + SKEW);
        let longer = Application { life: 48 * HOUR, ..application() };
        roll.admit(&longer, ParallelSessions::Allow, false);
        assert_eq!(roll.ttl(24 * HOUR), 48 * HOUR + SKEW);
    }
}
