//! The plan: the order of the measurements, their duration, and the amount of data in the store.

use std::time::Duration;

use crate::bench::arguments::{BenchArguments, Operation};

/// A measurement's keys expire after this time if they are not removed. The time is longer than any
/// measurement.
pub(crate) const KEY_LIFE: Duration = Duration::from_secs(5 * 60);

/// The maximum number of sessions that exist at the same time.
const MOST_SESSIONS: u32 = 1000;
/// The maximum total size of these sessions, in bytes. It is exceeded only to give each caller a session.
const MOST_BYTES: u64 = 32 << 20;
/// The approximate size of a session without its value: its record's header, its key, and the server's
/// overhead.
const OVERHEAD: u64 = 500;
/// The number of sessions that are read and written. This is enough to spread them over several servers.
const FEWEST_SESSIONS: u32 = 100;

/// The measurements that the user asked for.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Without duplicates, in the order of the variants.
    pub(crate) operations: Vec<Operation>,
    pub(crate) payloads: Vec<u32>,
    pub(crate) callers: Vec<u32>,
    pub(crate) seconds: u32,
    /// `None` stands for half of the highest throughput that was measured.
    pub(crate) rate: Option<u32>,
}

impl Plan {
    pub(crate) fn new(arguments: &BenchArguments) -> Self {
        let mut operations = arguments.operations.clone();
        operations.sort_unstable();
        operations.dedup();
        Self {
            operations,
            payloads: arguments.payload.0.clone(),
            callers: arguments.callers.0.clone(),
            seconds: arguments.seconds,
            rate: arguments.rate,
        }
    }

    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    pub(crate) fn has(&self, operation: Operation) -> bool {
        self.operations.contains(&operation)
    }

    pub(crate) fn most_callers(&self) -> u32 {
        self.callers.iter().copied().max().unwrap_or(1)
    }

    /// Returns the number of measurements.
    pub(crate) fn measurements(&self) -> usize {
        self.operations.len() * self.payloads.len() * (self.callers.len() + 1)
    }

    /// Returns the approximate duration of all measurements. Each measured sign-in needs a sign-out, and vice
    /// versa.
    pub(crate) fn takes(&self) -> Duration {
        let (mut most, mut latency) = (0, 0);
        for operation in [Operation::Read, Operation::Write] {
            most += 2 * u64::from(self.has(operation));
            latency += 2 * u64::from(self.has(operation));
        }
        if self.has(Operation::SignIn) || self.has(Operation::SignOut) {
            most += 4;
            latency += 5;
        }
        let rounds = most * self.callers.len() as u64 + latency;
        let halves = rounds * self.payloads.len() as u64 * u64::from(self.seconds);
        Duration::from_secs(halves.div_ceil(2))
    }

    /// Returns the maximum number of sessions with this payload that exist at the same time.
    pub(crate) fn sessions(&self, payload: u32) -> u32 {
        let fit = MOST_BYTES / (u64::from(payload) + OVERHEAD);
        let fit = u32::try_from(fit).unwrap_or(MOST_SESSIONS);
        fit.min(MOST_SESSIONS).max(self.most_callers())
    }

    /// Returns how many sessions with this payload are read and written.
    pub(crate) fn steady_sessions(&self, payload: u32) -> u32 {
        FEWEST_SESSIONS.min(self.sessions(payload)).max(self.most_callers())
    }

    /// Returns an estimate of the most memory that the plan takes up in the store, in bytes. Each session may
    /// have a directory record.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |payload: &u32| {
            u64::from(self.sessions(*payload)) * (u64::from(*payload) + 2 * OVERHEAD)
        };
        self.payloads.iter().map(bytes).max().unwrap_or(0)
    }
}

/// Returns half of this throughput with two significant digits, so that a user can easily remember it and
/// pass it as an argument.
pub(crate) fn half(throughput: f64) -> u32 {
    // The cast truncates the value, and limits it to the range of the integer.
    let mut rate = (throughput / 2.0) as u32;
    let mut scale = 1;
    while rate >= 100 {
        rate /= 10;
        scale *= 10;
    }
    (rate * scale).max(1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the plan for the default arguments.
    pub(crate) fn plan() -> Plan {
        Plan {
            operations: vec![
                Operation::Read,
                Operation::Write,
                Operation::SignIn,
                Operation::SignOut,
            ],
            payloads: vec![100, 1024, 16384],
            callers: vec![1, 16, 64],
            seconds: 1,
            rate: None,
        }
    }

    #[test]
    fn default_run_takes_less_than_a_minute() {
        assert_eq!(plan().measurements(), 48);
        assert!(plan().takes() < Duration::from_secs(52), "{:?}", plan().takes());
        assert_eq!(Plan { seconds: 10, ..plan() }.takes(), Duration::from_secs(495));
        let one = Plan {
            operations: vec![Operation::Read],
            payloads: vec![1],
            callers: vec![1],
            ..plan()
        };
        assert_eq!((one.measurements(), one.takes()), (2, Duration::from_secs(2)));
    }

    #[test]
    fn memory_in_the_store_is_bounded() {
        assert_eq!(plan().sessions(100), 1000);
        assert_eq!(plan().sessions(100_000), 333);
        // There must be a session for each caller.
        assert_eq!(plan().sessions(990_000), 64);
        assert!(plan().bytes() < 20 << 20);
        let many = Plan { callers: vec![500], ..plan() };
        assert_eq!((many.steady_sessions(100), many.steady_sessions(990_000)), (500, 500));
        assert_eq!(plan().steady_sessions(100), 100);
    }

    #[test]
    fn rate_is_half_with_two_digits() {
        for (throughput, rate) in
            [(0.0, 1), (3.9, 1), (199.0, 99), (24_689.0, 12_000), (2e12, 4_200_000_000)]
        {
            assert_eq!(half(throughput), rate, "{throughput}");
        }
    }
}
