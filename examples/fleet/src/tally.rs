//! The counts of a test.

use std::collections::{BTreeMap, HashSet};
use std::ops::AddAssign;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The number of losses whose descriptions are kept, which is enough to see a pattern.
const MAX_STORIES: usize = 10;

#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counts>);

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) kills: u64,
    /// How often the `--beside` command ran, and how often it failed.
    pub(crate) beside: (u64, u64),
    pub(crate) disturbances: Disturbances,
    /// The longest time between a disturbance of the store and its next answer.
    pub(crate) longest_store_outage: Duration,
    /// The longest time between a user's failed request and the user's next successful one.
    pub(crate) longest_outage: Duration,
    pub(crate) scenarios: u64,
    pub(crate) sign_ins: u64,
    pub(crate) sign_outs: u64,
    /// Items that were confirmed by the response to the request, or that were seen in the cart.
    pub(crate) items: u64,
    /// Items in a visitor's cart that a repeated sign-in could not take over. They are not counted in
    /// `items`.
    pub(crate) items_left_behind: u64,
    /// The users who signed in at least once, and those who were signed out, by number.
    pub(crate) signed_in: HashSet<usize>,
    pub(crate) signed_out: HashSet<usize>,
    pub(crate) losses: [u64; Loss::ALL.len()],
    pub(crate) stories: Vec<String>,
    /// Requests that got no answer because their process was killed.
    pub(crate) cut_off: u64,
    /// The number of 503 responses, by their message.
    pub(crate) later: BTreeMap<String, u64>,
    /// Sign-ins that had to be sent again, after which the user may have a different session.
    pub(crate) sign_ins_repeated: u64,
    /// Unexpected responses, by their status, and requests that got no response although no process was
    /// killed.
    pub(crate) errors: BTreeMap<String, u64>,
    /// In microseconds.
    pub(crate) latencies: Vec<u32>,
}

/// A kind of disturbance to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disturbance {
    Pause,
    Restart,
    SlotMoved,
    PlannedFailover,
    MasterKilled,
    SentinelKilled,
}

impl Disturbance {
    pub(crate) const ALL: [Self; 6] = [
        Self::Pause,
        Self::Restart,
        Self::SlotMoved,
        Self::PlannedFailover,
        Self::MasterKilled,
        Self::SentinelKilled,
    ];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Pause => "store pauses",
            Self::Restart => "store restarts",
            Self::SlotMoved => "slots moved",
            Self::PlannedFailover => "planned failovers",
            Self::MasterKilled => "masters killed",
            Self::SentinelKilled => "Sentinels killed",
        }
    }

    pub(crate) const fn json_name(self) -> &'static str {
        match self {
            Self::Pause => "store_pauses",
            Self::Restart => "store_restarts",
            Self::SlotMoved => "slots_moved",
            Self::PlannedFailover => "planned_failovers",
            Self::MasterKilled => "masters_killed",
            Self::SentinelKilled => "sentinels_killed",
        }
    }
}

/// How often each disturbance occurred.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disturbances(pub(crate) [u64; Disturbance::ALL.len()]);

impl Disturbances {
    pub(crate) fn of(&self, disturbance: Disturbance) -> u64 {
        self.0[disturbance as usize]
    }

    pub(crate) fn is_none(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }
}

impl AddAssign<&Self> for Disturbances {
    fn add_assign(&mut self, other: &Self) {
        for (count, other) in self.0.iter_mut().zip(other.0) {
            *count += other;
        }
    }
}

/// A kind of loss. None may occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    SignedOut,
    Item,
    AliveAfterSignOut,
    AliveAfterSignIn,
    Doubled,
    MixedUp,
    NoAnswer,
}

impl Loss {
    pub(crate) const ALL: [Self; 7] = [
        Self::SignedOut,
        Self::Item,
        Self::AliveAfterSignOut,
        Self::AliveAfterSignIn,
        Self::Doubled,
        Self::MixedUp,
        Self::NoAnswer,
    ];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::SignedOut => "users signed out",
            Self::Item => "cart items lost",
            Self::AliveAfterSignOut => "sessions alive after sign-out",
            Self::AliveAfterSignIn => "old cookies alive after sign-in",
            Self::Doubled => "cart items doubled",
            Self::MixedUp => "sessions mixed up",
            Self::NoAnswer => "users left without an answer",
        }
    }

    pub(crate) const fn json_name(self) -> &'static str {
        match self {
            Self::SignedOut => "signed_out_unexpectedly",
            Self::Item => "items_lost",
            Self::AliveAfterSignOut => "alive_after_sign_out",
            Self::AliveAfterSignIn => "alive_after_sign_in",
            Self::Doubled => "items_doubled",
            Self::MixedUp => "mixed_up",
            Self::NoAnswer => "left_without_answer",
        }
    }
}

impl Tally {
    pub(crate) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn killed(&self) {
        self.counts().kills += 1;
    }

    pub(crate) fn ran_beside(&self, is_success: bool) {
        let mut counts = self.counts();
        counts.beside.0 += 1;
        counts.beside.1 += u64::from(!is_success);
    }

    pub(crate) fn disturbed(&self, disturbance: Disturbance, count: u64) {
        self.counts().disturbances.0[disturbance as usize] += count;
    }

    pub(crate) fn store_was_away(&self, outage: Duration) {
        let mut counts = self.counts();
        counts.longest_store_outage = counts.longest_store_outage.max(outage);
    }

    pub(crate) fn user_was_without(&self, outage: Duration) {
        let mut counts = self.counts();
        counts.longest_outage = counts.longest_outage.max(outage);
    }

    pub(crate) fn later(&self, message: &[u8]) {
        let message = String::from_utf8_lossy(message).into_owned();
        *self.counts().later.entry(message).or_default() += 1;
    }

    pub(crate) fn answered(&self, latency: Duration) {
        let mut counts = self.counts();
        counts.requests += 1;
        counts.latencies.push(latency.as_micros().try_into().unwrap_or(u32::MAX));
    }

    pub(crate) fn unanswered(&self, was_killed: bool, reason: &str) {
        let mut counts = self.counts();
        counts.requests += 1;
        match was_killed {
            true => counts.cut_off += 1,
            false => *counts.errors.entry(format!("no answer ({reason})")).or_default() += 1,
        }
    }

    pub(crate) fn error(&self, what: impl Into<String>) {
        *self.counts().errors.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn lost(&self, loss: Loss, count: usize, story: impl FnOnce() -> String) {
        if count == 0 {
            return;
        }
        let mut counts = self.counts();
        counts.losses[loss as usize] += count as u64;
        if counts.stories.len() < MAX_STORIES {
            counts.stories.push(story());
        }
    }
}

impl Counts {
    pub(crate) fn of(&self, loss: Loss) -> u64 {
        self.losses[loss as usize]
    }

    pub(crate) fn answers_503(&self) -> u64 {
        self.later.values().sum()
    }
}
