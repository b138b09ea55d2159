//! What became of requests: how many, how fast, and which errors.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::bench::visitor::Trouble;

/// Errors by their kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Errors(BTreeMap<&'static str, Error>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Error {
    count: u64,
    /// What the first one said.
    sentence: String,
}

impl Errors {
    pub(crate) fn add(&mut self, trouble: Trouble) {
        let Trouble { kind, sentence } = trouble;
        self.0.entry(kind).or_insert(Error { count: 0, sentence }).count += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (kind, error) in &other.0 {
            let zero = || Error { count: 0, sentence: error.sentence.clone() };
            self.0.entry(kind).or_insert_with(zero).count += error.count;
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.values().map(|error| error.count).sum()
    }

    /// Kind, count and sentence of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64, &str)> {
        self.0.iter().map(|(kind, error)| (*kind, error.count, &*error.sentence))
    }

    pub(crate) fn json(&self) -> Value {
        self.iter().map(|(kind, count, _)| (kind.to_owned(), json!(count))).collect()
    }
}

/// How long requests took.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    /// Nanoseconds with three significant digits.
    histogram: Option<Histogram<u64>>,
    /// The longest one, exactly.
    longest: Duration,
}

/// The quantiles that are reported, with their names; the last one is the longest of all.
pub(crate) const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

impl Default for Latencies {
    fn default() -> Self {
        // It fails for more than five digits only.
        Self { histogram: Histogram::new(3).ok(), longest: Duration::ZERO }
    }
}

impl Latencies {
    fn add(&mut self, latency: Duration) {
        self.longest = self.longest.max(latency);
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(histogram) = &mut self.histogram {
            // It grows as it has to, so what fails is a time of centuries.
            let _ = histogram.record(nanos);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.longest = self.longest.max(other.longest);
        if let (Some(histogram), Some(other)) = (&mut self.histogram, &other.histogram) {
            let _ = histogram.add(other);
        }
    }

    /// The latencies of [`QUANTILES`]; the longest one is exact.
    pub(crate) fn quantiles(&self) -> [Duration; QUANTILES.len()] {
        QUANTILES.map(|(_, quantile)| {
            let histogram = self.histogram.as_ref();
            let nanos = histogram.map_or(0, |histogram| histogram.value_at_quantile(quantile));
            // The end of the interval that holds it may be beyond the longest one.
            Duration::from_nanos(nanos).min(self.longest)
        })
    }
}

/// What became of the requests of a measurement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) succeeded: u64,
    pub(crate) errors: Errors,
    /// From the first request until the last answer.
    pub(crate) elapsed: Duration,
    /// Of those that succeeded.
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

    /// How many requests there were.
    pub(crate) fn requests(&self) -> u64 {
        self.succeeded + self.errors.count()
    }

    /// How many succeeded in a second.
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
        Trouble { kind, sentence: format!("it is {kind}") }
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
        // Those that failed have no latency.
        assert_eq!(one.latencies.quantiles()[4], millis(9));
        assert_eq!(Tally::default().throughput(), 0.0);
    }
}
