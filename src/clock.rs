//! Where the time comes from.

use std::fmt::Debug;
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::session::Millis;

/// A source of the current time, so that tests can set it.
///
/// Only the shells around the core read a clock; every decision takes the time as an argument.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The current time, in UTC.
    fn now(&self) -> OffsetDateTime;

    /// The same as milliseconds since the beginning of 1970, 0 before; what the records count in. For
    /// clocks that have it without the calendar.
    fn unix_millis(&self) -> u64 {
        Millis::of(self.now()).0
    }
}

/// The clock of the operating system; the default everywhere.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn unix_millis(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        since.as_secs() * 1_000 + u64::from(since.subsec_millis())
    }
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn now(&self) -> OffsetDateTime {
        (**self).now()
    }

    fn unix_millis(&self) -> u64 {
        (**self).unix_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_tells_one_time_in_both_forms() {
        let clock = std::sync::Arc::new(SystemClock);
        let before = Millis::of(clock.now());
        let between = Millis(clock.unix_millis());
        let after = Millis::of(clock.now());
        assert!(before <= between && between <= after, "{before:?} {between:?} {after:?}");
    }
}
