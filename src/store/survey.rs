//! Scans all keys on a store's servers at a limited rate, for the `unsticky` command.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The maximum number of keys to scan on a server per second, so that the scan does not slow down the
/// server's sessions. All keys on the server count, including those of other applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(NonZeroU32);

impl Rate {
    /// 100,000 keys per second, which takes a few percent of a server's time.
    pub(crate) const FAST: Self = match Self::per_second(100_000) {
        Some(rate) => rate,
        None => Self(NonZeroU32::MIN),
    };

    /// Returns a rate of this many keys per second, or `None` for 0.
    #[must_use]
    pub const fn per_second(keys: u32) -> Option<Self> {
        match NonZeroU32::new(keys) {
            Some(keys) => Some(Self(keys)),
            None => None,
        }
    }

    /// Returns how many keys one command scans: the number due in a twentieth of a second, but no more than a
    /// server can scan in a fraction of a millisecond.
    pub(super) fn batch(self) -> u64 {
        u64::from(self.0.get() / 20).clamp(1, 500)
    }
}

/// Which keys to scan, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// The prefix of the keys that are reported.
    pub(crate) prefix: &'a str,
    pub(crate) rate: Rate,
    /// Whether to request the lengths of the values, if that takes a separate command.
    pub(crate) wants_lengths: bool,
}

/// A report from a scan.
#[derive(Debug, Clone, Copy)]
pub enum Met<'a> {
    /// A key under the prefix. Each key is reported once, unless `Outcome::Complete::may_repeat` is `true`.
    Key {
        /// The server that holds the key, as `host:port`.
        server: &'a str,
        /// The whole key.
        key: &'a str,
        /// The length of the value; on Memcached, the size of the whole item. `None` if the server does not
        /// permit the command that returns the length, or if the key does not hold a string.
        bytes: Option<u64>,
    },
    /// How many keys on the server have been scanned so far, including those of other applications. On Redis
    /// this is an estimate.
    Walked {
        /// The server, as `host:port`.
        server: &'a str,
        /// The number of keys scanned so far.
        keys: u64,
    },
}

/// Receives the reports from a scan, and can end the scan.
pub(crate) type Visitor<'a> = dyn FnMut(Met<'_>) -> ControlFlow<()> + Send + 'a;

/// The result of scanning one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// The server, as `host:port`.
    pub server: String,
    /// How the scan ended.
    pub outcome: Outcome,
}

/// How the scan of one server ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The scan found every key that existed during the whole scan.
    Complete {
        /// The reason why the lengths of some values are not known, if the server refused to return them.
        no_lengths: Option<String>,
        /// `true` if there were so many keys that some may have been reported more than once.
        may_repeat: bool,
    },
    /// The visitor ended the scan.
    Ended,
    /// The server does not list its keys, but reports the totals for all its items.
    Totals {
        /// The reason why the server does not list its keys.
        reason: String,
        /// The number of all items, including those of other applications.
        items: u64,
        /// The size of all items in bytes.
        bytes: u64,
    },
}

/// Keeps a scan at its rate. A scan that falls behind does not try to catch up.
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

    /// Waits until more keys may be scanned.
    pub(super) async fn turn(&mut self) {
        sleep_until(self.next).await;
        self.begun = Instant::now();
        self.next = self.begun;
    }

    /// Records that this many keys were scanned since the last wait.
    pub(super) fn spend(&mut self, keys: u64) {
        let nanos = u128::from(keys) * 1_000_000_000 / u128::from(self.rate.0.get());
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.next = self.begun.checked_add(pause).unwrap_or(self.begun);
    }
}

/// The keys found on a server, each as a 64-bit hash. A server may return a key more than once while its hash
/// table grows or shrinks. With ten million keys, one scan in about 400,000 has two keys with the same hash,
/// and reports only one of them.
#[derive(Default)]
pub(super) struct Seen {
    hashes: HashSet<u64>,
    hasher: RandomState,
    is_full: bool,
}

impl Seen {
    /// The maximum number of hashes. They take about 150 MB, including the spare capacity of the hash set.
    const MOST: usize = 1 << 23;

    /// Returns whether the key has not been found before. After the first `MOST` keys, no more are
    /// remembered.
    pub(super) fn is_new(&mut self, key: &str) -> bool {
        let hash = self.hasher.hash_one(key);
        if self.hashes.len() < Self::MOST {
            return self.hashes.insert(hash);
        }
        self.is_full = true;
        !self.hashes.contains(&hash)
    }

    /// Returns whether there were more keys than can be remembered.
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
