//! A walk through all keys of a store's servers, at a bounded rate: what the command `unsticky` counts with.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The largest number of keys to scan on a server in a second, so that the scan does not slow down its sessions.
/// All keys of the server count, including those of other applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(NonZeroU32);

impl Rate {
    /// 100,000 keys per second: some percent of a server's time.
    pub(crate) const FAST: Self = match Self::per_second(100_000) {
        Some(rate) => rate,
        None => Self(NonZeroU32::MIN),
    };

    /// So many keys in a second; 0 is none.
    #[must_use]
    pub const fn per_second(keys: u32) -> Option<Self> {
        match NonZeroU32::new(keys) {
            Some(keys) => Some(Self(keys)),
            None => None,
        }
    }

    /// How many keys are asked for at once: a twentieth of a second's, and no more than a server answers with
    /// in a fraction of a millisecond.
    pub(super) fn batch(self) -> u64 {
        u64::from(self.0.get() / 20).clamp(1, 500)
    }
}

/// What is walked through, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// With what the keys begin that are reported.
    pub(crate) prefix: &'a str,
    pub(crate) rate: Rate,
    /// Whether it is asked how long their values are, where that takes a command.
    pub(crate) wants_lengths: bool,
}

/// What is met on the way.
#[derive(Debug, Clone, Copy)]
pub enum Met<'a> {
    /// A key under the prefix, once.
    Key {
        /// The server that has it, as `host:port`.
        server: &'a str,
        /// The whole key.
        key: &'a str,
        /// How long the value is; on Memcached, how much the whole item takes. `None` where the server does
        /// not permit to ask, or keeps no string under the key.
        bytes: Option<u64>,
    },
    /// How many keys of the server have been scanned so far, including those of other applications. On Redis
    /// this is an estimate.
    Walked {
        /// As `host:port`.
        server: &'a str,
        /// How many so far.
        keys: u64,
    },
}

/// Is told what is met, and may end the walk.
pub(crate) type Visitor<'a> = dyn FnMut(Met<'_>) -> ControlFlow<()> + Send + 'a;

/// What a walk has come to at one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// As `host:port`.
    pub server: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a walk ended at one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every key was met that was there all the time.
    Complete {
        /// Why the lengths of some values are not known, if the server refused to tell them.
        no_lengths: Option<String>,
        /// There were so many keys that some may have been reported twice.
        may_repeat: bool,
    },
    /// The visitor ended it.
    Ended,
    /// The server does not show its keys, and says only how much it has of everything.
    Totals {
        /// Why it does not.
        reason: String,
        /// The number of all items, including those of other applications.
        items: u64,
        /// What they take, in bytes.
        bytes: u64,
    },
}

/// Keeps a walk at its rate. Time that was lost is not made up for.
pub(super) struct Pace {
    rate: Rate,
    begun: Instant,
    next: Instant,
}

impl Pace {
    pub(super) fn new(rate: Rate) -> Self {
        let now = Instant::now();
        Self { rate, begun: now, next: now }
    }

    /// Waits until more keys may be asked for.
    pub(super) async fn turn(&mut self) {
        sleep_until(self.next).await;
        self.begun = Instant::now();
        self.next = self.begun;
    }

    /// So many keys were walked through since the turn.
    pub(super) fn spend(&mut self, keys: u64) {
        let nanos = u128::from(keys) * 1_000_000_000 / u128::from(self.rate.0.get());
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.next = self.begun.checked_add(pause).unwrap_or(self.begun);
    }
}

/// The keys of a server that were met, each by a hash of 64 bits: a server may name a key more than once
/// while its table grows or shrinks. Of ten million keys, two have the same hash once in some 400,000 walks.
#[derive(Default)]
pub(super) struct Seen {
    hashes: HashSet<u64>,
    hasher: RandomState,
    is_full: bool,
}

impl Seen {
    /// About 150 MB, with the reserve of the table.
    const MOST: usize = 1 << 23;

    /// Whether the key was not met before, as far as there is room to remember that.
    pub(super) fn is_new(&mut self, key: &str) -> bool {
        let hash = self.hasher.hash_one(key);
        if self.hashes.len() < Self::MOST {
            return self.hashes.insert(hash);
        }
        self.is_full = true;
        !self.hashes.contains(&hash)
    }

    /// Whether there were more keys than it remembers.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(keys: u32) -> Rate {
        Rate::per_second(keys).unwrap()
    }

    #[test]
    fn batch_is_twentieth_of_second_within_bounds() {
        for (keys, expected) in [(1, 1), (39, 1), (40, 2), (10_000, 500), (u32::MAX, 500)] {
            assert_eq!(rate(keys).batch(), expected, "{keys}");
        }
        assert_eq!(Rate::per_second(0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn lost_time_is_not_made_up_for() {
        let begun = Instant::now();
        let mut pace = Pace::new(rate(100));
        let mut at = Vec::new();
        for lost in [0, 700, 0, 0] {
            pace.turn().await;
            at.push(begun.elapsed().as_millis());
            tokio::time::advance(Duration::from_millis(lost)).await;
            pace.spend(50);
        }
        pace.turn().await;
        at.push(begun.elapsed().as_millis());
        for (at, expected) in at.iter().zip([0, 500, 1200, 1700, 2200]) {
            assert!((expected..expected + 10).contains(at), "{at} for {expected}");
        }
    }

    #[test]
    fn key_is_new_once() {
        let mut seen = Seen::default();
        assert!(seen.is_new("a"));
        assert!(seen.is_new("b"));
        assert!(!seen.is_new("a"));
        assert!(!seen.is_full());
    }
}
