//! The results of requests: counts, latencies and errors.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::bench::visitor::Trouble;

/// Errors by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Errors(BTreeMap<&'static str, Error>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Error {
    count: u64,
    /// The message of the first error of this kind.
    message: String,
}

impl Errors {
    pub(crate) fn add(&mut self, trouble: Trouble) {
        let Trouble { kind, message } = trouble;
        self.0.entry(kind).or_insert(Error { count: 0, message }).count += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (kind, error) in &other.0 {
            let zero = || Error { count: 0, message: error.message.clone() };
            self.0.entry(kind).or_insert_with(zero).count += error.count;
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.values().map(|error| error.count).sum()
    }

    /// Returns each kind of error, the number of errors, and the message of the first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64, &str)> {
        self.0.iter().map(|(kind, error)| (*kind, error.count, &*error.message))
    }

    pub(crate) fn json(&self) -> Value {
        self.iter().map(|(kind, count, _)| (kind.to_owned(), json!(count))).collect()
    }
}

/// The latencies of requests.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    /// Nanoseconds with three significant digits.
    histogram: Option<Histogram<u64>>,
    /// The longest latency, exactly.
    longest: Duration,
}

/// The quantiles that are reported, with their names. The last one is the maximum.
pub(crate) const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

impl Default for Latencies {
    fn default() -> Self {
        // This fails only if more than five digits are requested.
        Self { histogram: Histogram::new(3).ok(), longest: Duration::ZERO }
    }
}

impl Latencies {
    fn add(&mut self, latency: Duration) {
        self.longest = self.longest.max(latency);
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(histogram) = &mut self.histogram {
            // The histogram grows as necessary, so this fails only for latencies of centuries.
            let _ = histogram.record(nanos);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.longest = self.longest.max(other.longest);
        if let (Some(histogram), Some(other)) = (&mut self.histogram, &other.histogram) {
            let _ = histogram.add(other);
        }
    }

    /// Returns the latencies of [`QUANTILES`]. The maximum is exact.
    pub(crate) fn quantiles(&self) -> [Duration; QUANTILES.len()] {
        QUANTILES.map(|(_, quantile)| {
            let histogram = self.histogram.as_ref();
            let nanos = histogram.map_or(0, |histogram| histogram.value_at_quantile(quantile));
            // The upper end of the histogram's interval may be above the longest latency.
            Duration::from_nanos(nanos).min(self.longest)
        })
    }
}

/// The results of all requests in a measurement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) succeeded: u64,
    pub(crate) errors: Errors,
    /// The time from the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// The latencies of the successful requests.
    pub(crate) latencies: Latencies,
}

impl Tally {
    pub(crate) fn add(&mut self, outcome: Result<(), Trouble>, latency: Duration) {
        match outcome {
            Ok(()) => {
                self.succeeded += 1;
                self.latencies.add(latency);
            }
            Err(trouble) => self.errors.add(trouble),
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        self.errors.merge(&other.errors);
        self.elapsed += other.elapsed;
        self.latencies.merge(&other.latencies);
    }

    /// Returns the number of requests.
    pub(crate) fn requests(&self) -> u64 {
        self.succeeded + self.errors.count()
    }

    /// Returns the number of successful requests per second.
    pub(crate) fn throughput(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.succeeded as f64 / seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn trouble(kind: &'static str) -> Trouble {
        Trouble { kind, message: format!("it is {kind}") }
    }

    #[test]
    fn quantiles_are_within_a_thousandth() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantiles(), [Duration::ZERO; 5]);
        for millis in 1..=10_000 {
            latencies.add(Duration::from_millis(millis));
        }
        let expected = [5_000, 9_000, 9_900, 9_990, 10_000];
        for (found, expected) in latencies.quantiles().into_iter().zip(expected) {
            let off = found.as_secs_f64() / millis(expected).as_secs_f64() - 1.0;
            assert!(off.abs() < 0.001, "{found:?} in place of {expected} ms");
        }
        assert_eq!(latencies.quantiles()[4], millis(10_000));
    }

    #[test]
    fn merged_tallies_are_the_tally_of_all() {
        let mut one = Tally::default();
        one.add(Ok(()), millis(1));
        one.add(Err(trouble("refused")), millis(70));
        one.elapsed = millis(500);
        let mut other = Tally::default();
        other.add(Ok(()), millis(9));
        other.add(Err(trouble("refused")), millis(80));
        other.add(Err(trouble("lost")), millis(90));
        other.elapsed = millis(1500);
        one.merge(&other);
        assert_eq!((one.succeeded, one.requests(), one.throughput()), (2, 5, 1.0));
        let errors: Vec<_> = one.errors.iter().collect();
        assert_eq!(errors, [("lost", 1, "it is lost"), ("refused", 2, "it is refused")]);
        // Failed requests have no latency.
        assert_eq!(one.latencies.quantiles()[4], millis(9));
        assert_eq!(Tally::default().throughput(), 0.0);
    }
}
