//! A clock that tests control.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;

use crate::clock::Clock;

/// A clock for tests: its time changes only when a test sets or advances it. Clones share the time.
///
/// ```
/// use std::time::Duration;
///
/// use unsticky::Clock;
/// use unsticky::testing::ManualClock;
///
/// let clock = ManualClock::new();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now() - before, Duration::from_secs(60));
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<OffsetDateTime>>);

impl ManualClock {
    /// Returns a clock that shows the beginning of 2026, in UTC.
    #[must_use]
    pub fn new() -> Self {
        Self::at(OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(1_767_225_600))
    }

    /// Returns a clock that shows this time.
    #[must_use]
    pub fn at(now: OffsetDateTime) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }

    /// Advances the clock, up to the latest time that `OffsetDateTime` can represent.
    pub fn advance(&self, by: Duration) {
        let by = time::Duration::try_from(by).unwrap_or(time::Duration::MAX);
        let mut now = self.time();
        *now = now.saturating_add(by);
    }

    /// Sets the clock to this time, which may be earlier than the current one.
    pub fn set(&self, now: OffsetDateTime) {
        *self.time() = now;
    }
}

impl ManualClock {
    fn time(&self) -> MutexGuard<'_, OffsetDateTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> OffsetDateTime {
        *self.time()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn manual_clock_is_shared_and_may_go_backwards() {
        let clock = ManualClock::new();
        let other = clock.clone();
        clock.advance(HOUR);
        assert_eq!(other.now(), ManualClock::new().now() + HOUR);
        other.set(OffsetDateTime::UNIX_EPOCH);
        assert_eq!(clock.now(), OffsetDateTime::UNIX_EPOCH);
        clock.advance(Duration::MAX);
        assert!(clock.now() > OffsetDateTime::UNIX_EPOCH);
    }
}
