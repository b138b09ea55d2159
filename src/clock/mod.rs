//! The source of the current time.

#[cfg(any(test, feature = "testing"))]
pub(crate) mod manual;

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use time::{OffsetDateTime, PrimitiveDateTime};

/// A source of the current time; set with [`Builder::clock`](crate::Builder::clock).
///
/// The default is [`SystemClock`]. Tests can use `testing::ManualClock` from the `testing` feature.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Returns the current time, in UTC.
    fn now(&self) -> OffsetDateTime;

    /// Returns the current time in milliseconds since the beginning of 1970, as records store it; 0 for times
    /// before 1970.
    ///
    /// The default implementation computes this from [`now`](Self::now). Override it if your clock already
    /// counts milliseconds.
    fn unix_millis(&self) -> u64 {
        Millis::of(self.now()).0
    }
}

/// The clock of the operating system. This is the default.
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

/// A point in time as stored: milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Millis(pub(crate) u64);

impl Millis {
    pub(crate) fn of(time: OffsetDateTime) -> Self {
        // Seconds and milliseconds avoid the 128-bit division that nanoseconds would need.
        let millis = time.unix_timestamp() * 1_000 + i64::from(time.millisecond());
        Self(u64::try_from(millis).unwrap_or(0))
    }

    /// Converts to a calendar time. Returns `None` if `OffsetDateTime` cannot represent the year.
    pub(crate) fn to_time(self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000).ok()
    }

    /// Converts to a calendar time. Returns the latest possible time if `OffsetDateTime` cannot represent the
    /// year.
    pub(crate) fn to_time_or_last(self) -> OffsetDateTime {
        self.to_time().unwrap_or(PrimitiveDateTime::MAX.assume_utc())
    }

    pub(crate) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// Returns the time from `earlier` to this time, or zero if `earlier` is later than this time.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_kept_to_the_millisecond() {
        let time = OffsetDateTime::UNIX_EPOCH + Duration::from_micros(1_767_225_600_123_456);
        assert_eq!(Millis::of(time), Millis(1_767_225_600_123));
        let kept = OffsetDateTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_123);
        assert_eq!(Millis::of(time).to_time(), Some(kept));
        assert_eq!(Millis::of(OffsetDateTime::UNIX_EPOCH - Duration::from_secs(1)), Millis(0));
        assert_eq!(Millis(u64::MAX).to_time(), None);
    }

    #[test]
    fn system_clock_returns_same_time_in_both_forms() {
        let clock = std::sync::Arc::new(SystemClock);
        let before = Millis::of(clock.now());
        let between = Millis(clock.unix_millis());
        let after = Millis::of(clock.now());
        assert!(before <= between && between <= after, "{before:?} {between:?} {after:?}");
    }
}
