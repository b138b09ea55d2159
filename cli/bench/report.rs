//! The results, as text and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use unsticky::check::Report;

use crate::bench::arguments::{BenchArguments, Operation};
use crate::bench::measure::{Latency, Results};
use crate::bench::picture::{Bar, Ink, bars};
use crate::bench::plan::{KEY_LIFE, Plan};
use crate::bench::tally::{QUANTILES, Tally};
use crate::output::one_line;

/// The store and the settings of the measurement.
pub(crate) struct Head<'a> {
    pub(crate) arguments: &'a BenchArguments,
    pub(crate) plan: &'a Plan,
    pub(crate) check: &'a Report,
    pub(crate) began: OffsetDateTime,
}

impl Head<'_> {
    /// Returns each server with what the check reported about its version.
    fn servers(&self) -> impl Iterator<Item = (&str, &str)> {
        let versions = self.check.findings().iter().filter(|finding| finding.code() == "version");
        versions.map(|finding| (finding.subject(), finding.message()))
    }

    /// Returns the text that is printed before the measurements start.
    pub(crate) fn text(&self) -> String {
        let Self { arguments, plan, .. } = self;
        let mut text = String::new();
        for (server, version) in self.servers() {
            let _ = writeln!(text, "{}: {}", one_line(server), one_line(version));
        }
        let takes = plan.takes().as_secs();
        let (count, seconds) = (plan.measurements(), plan.seconds);
        let each = if seconds == 1 { "one second" } else { &*format!("{seconds} seconds") };
        let _ = writeln!(text, "{count} measurements of {each} each take about {takes} s.");
        let _ = writeln!(text, "The keys of the measurement begin with {}:", arguments.namespace);
        let (minutes, memory) = (KEY_LIFE.as_secs() / 60, plan.bytes().div_ceil(1 << 20) << 20);
        let _ = writeln!(
            text,
            "They expire within {minutes} minutes, and take at most {}.\n",
            bytes(memory)
        );
        for operation in &plan.operations {
            let (name, meaning) = (operation.as_str(), operation.meaning());
            let _ = writeln!(text, "{name:8}  a request that {meaning}");
        }
        text.push_str("value     the size of the value in the session\n");
        text.push_str("callers   the number of concurrent requests\n\n");
        text
    }

    pub(crate) fn json(&self, results: &Results, ended: OffsetDateTime) -> Value {
        let Self { arguments, plan, began, .. } = self;
        let names = |operation: &Operation| operation.as_str();
        let servers =
            self.servers().map(|(server, version)| json!({"server": server, "version": version}));
        let timeout = u64::try_from(arguments.timeout.as_millis()).unwrap_or(u64::MAX);
        json!({
            "unsticky": env!("CARGO_PKG_VERSION"),
            "began": timestamp(*began),
            "ended": timestamp(ended),
            "servers": servers.collect::<Vec<_>>(),
            "parameters": {
                "namespace": arguments.namespace,
                "operations": plan.operations.iter().map(names).collect::<Vec<_>>(),
                "callers": plan.callers,
                "payload_bytes": plan.payloads,
                "seconds": plan.seconds,
                "rate": plan.rate,
                "timeout_ms": timeout,
            },
            "throughput": results.throughput.iter().map(|it| {
                let mut row = row(it.operation, it.payload, &it.tally);
                row["callers"] = json!(it.callers);
                row["requests_per_second"] = json!(it.tally.throughput());
                row
            }).collect::<Vec<_>>(),
            "latency": results.latency.iter().map(|it| {
                let mut row = row(it.operation, it.payload, &it.tally);
                row["callers_at_most"] = json!(plan.most_callers());
                row["rate"] = json!(it.rate);
                row["due"] = json!(it.due);
                row["unsent"] = json!(it.unsent());
                let quantiles = QUANTILES.iter().zip(it.tally.latencies.quantiles());
                row["latency_ms"] = quantiles
                    .map(|((name, _), latency)| ((*name).to_owned(), json!(millis(latency))))
                    .collect();
                row
            }).collect::<Vec<_>>(),
            "preparation_errors": results.preparation.json(),
            "errors": results.errors().json(),
            "cut_short": results.is_cut_short,
            "keys_left": results.keys_left,
        })
    }
}

fn row(operation: Operation, payload: u32, tally: &Tally) -> Value {
    json!({
        "operation": operation.as_str(),
        "payload_bytes": payload,
        "requests": tally.requests(),
        "succeeded": tally.succeeded,
        "errors": tally.errors.json(),
        "seconds": tally.elapsed.as_secs_f64(),
    })
}

/// Returns the tables, a picture and the problems.
pub(crate) fn text(plan: &Plan, results: &Results, ink: Ink) -> String {
    let mut text = String::new();
    if !results.throughput.is_empty() {
        text.push_str(
            "Throughput, in requests per second: each caller sends its\n\
             next request as soon as it has the answer to the last one.\n\n",
        );
        text.push_str(&throughput_table(plan, results));
        text.push('\n');
        text.push_str(&throughput_picture(plan, results, ink));
    }
    if !results.latency.is_empty() {
        let _ = write!(
            text,
            "Latency, in milliseconds: requests are sent at a fixed rate\n\
             ({}) by up to {} callers.\n\
             Of 100 requests, 99 took at most p99; max is the longest.\n\
             A time counts from the moment at which the request is due,\n\
             and includes the wait for a free caller.\n\n",
            match plan.rate {
                Some(_) => "the rate given with --rate",
                None => "half of the highest throughput above",
            },
            plan.most_callers(),
        );
        text.push_str(&latency_table(results));
        text.push('\n');
        for latency in results.latency.iter().filter(|latency| latency.unsent() > 0) {
            let Latency { operation, payload, due, .. } = latency;
            let _ = write!(
                text,
                "{}, {}: {} of {} requests were never sent, since the\n\
                 store did not keep up. The latencies do not show them.\n\n",
                operation.as_str(),
                bytes((*payload).into()),
                grouped(latency.unsent()),
                grouped(*due),
            );
        }
    }
    text.push_str(&complaints(results));
    // Each part except the last ends with an empty line.
    if text.ends_with("\n\n") {
        text.pop();
    }
    text
}

fn throughput_table(plan: &Plan, results: &Results) -> String {
    let mut rows = vec![["operation", "value"].map(str::to_owned).to_vec()];
    rows[0].extend(plan.callers.iter().map(|callers| match callers {
        1 => "1 caller".to_owned(),
        _ => format!("{} callers", grouped((*callers).into())),
    }));
    for operation in &plan.operations {
        for payload in &plan.payloads {
            let mut row = vec![operation.as_str().to_owned(), bytes((*payload).into())];
            row.extend(plan.callers.iter().map(|callers| {
                let wanted = (*operation, *payload, *callers);
                let found = results
                    .throughput
                    .iter()
                    .find(|it| (it.operation, it.payload, it.callers) == wanted);
                found.map_or_else(|| "-".to_owned(), |it| whole(it.tally.throughput()))
            }));
            rows.push(row);
        }
    }
    table(&rows)
}

/// Draws the first payload only, to keep the picture small.
fn throughput_picture(plan: &Plan, results: &Results, ink: Ink) -> String {
    let Some(payload) = plan.payloads.first() else { return String::new() };
    let digits = plan.most_callers().to_string().len();
    let measured = results.throughput.iter().filter(|it| it.payload == *payload);
    let mut measured: Vec<_> = measured.collect();
    // Sorted in the same order as the table.
    measured.sort_by_key(|it| it.operation);
    let mut last = None;
    let drawn: Vec<_> = measured
        .into_iter()
        .map(|it| {
            let operation = if last == Some(it.operation) { "" } else { it.operation.as_str() };
            last = Some(it.operation);
            let value = it.tally.throughput();
            let name = format!("{operation:8}  {:>digits$}", it.callers);
            Bar { name, value, number: whole(value) }
        })
        .collect();
    let size = bytes((*payload).into());
    format!("Requests per second by callers, with values of {size}:\n\n{}\n", bars(&drawn, ink))
}

fn latency_table(results: &Results) -> String {
    let mut rows = vec![["operation", "value", "rate/s"].map(str::to_owned).to_vec()];
    rows[0].extend(QUANTILES.map(|(name, _)| name.to_owned()));
    let mut measured: Vec<_> = results.latency.iter().collect();
    measured.sort_by_key(|it| it.operation);
    for it in measured {
        let mut row = vec![
            it.operation.as_str().to_owned(),
            bytes(it.payload.into()),
            grouped(it.rate.into()),
        ];
        row.extend(it.tally.latencies.quantiles().map(|latency| match it.tally.succeeded {
            0 => "-".to_owned(),
            _ => three_digits(millis(latency)),
        }));
        rows.push(row);
    }
    table(&rows)
}

/// Returns the problems, if there were any.
fn complaints(results: &Results) -> String {
    let mut text = String::new();
    let errors = results.errors();
    if errors.count() > 0 {
        let _ = writeln!(
            text,
            "{} requests failed, so the numbers above are not those of a\nhealthy store:\n",
            grouped(errors.count()),
        );
        let kinds = errors.iter().map(|(kind, count, _)| vec![kind.to_owned(), grouped(count)]);
        let lines = table(&kinds.collect::<Vec<_>>());
        for (line, (_, _, message)) in lines.lines().zip(errors.iter()) {
            let _ = writeln!(text, "{line}  {}", one_line(message));
        }
        text.push('\n');
    }
    if results.is_cut_short {
        text.push_str("The measurements ended early, because no request succeeded.\n\n");
    }
    if results.keys_left > 0 {
        let minutes = KEY_LIFE.as_secs() / 60;
        let _ = writeln!(
            text,
            "{} keys could not be removed. They expire within {minutes} minutes.\n",
            grouped(u64::try_from(results.keys_left).unwrap_or(u64::MAX)),
        );
    }
    text
}

/// Formats columns with two spaces between them. The first column is left-aligned, and the others are
/// right-aligned.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "{cell:width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Formats a number of bytes with its unit.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0 => "0 B".to_owned(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", grouped(bytes >> 20)),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", grouped(bytes >> 10)),
        _ => format!("{} B", grouped(bytes)),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}

fn whole(number: f64) -> String {
    // The cast limits the value to the range of the integer.
    grouped(number.round() as u64)
}

/// Formats a number with commas between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a number with at most three significant digits, and at most three after the decimal point.
fn three_digits(number: f64) -> String {
    match number {
        _ if number < 0.9995 => format!("{number:.3}"),
        _ if number < 9.995 => format!("{number:.2}"),
        _ if number < 99.95 => format!("{number:.1}"),
        _ => whole(number),
    }
}

/// Formats a time according to RFC 3339, in UTC.
fn timestamp(time: OffsetDateTime) -> String {
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::Throughput;
    use crate::bench::plan::tests::plan;
    use crate::bench::visitor::Trouble;

    fn tally(succeeded: u64, failed: u64) -> Tally {
        let mut tally = Tally { elapsed: Duration::from_secs(1), ..Tally::default() };
        for _ in 0..succeeded {
            tally.add(Ok(()), Duration::from_micros(1500));
        }
        for _ in 0..failed {
            let trouble = Trouble { kind: "unavailable", message: "it is down".to_owned() };
            tally.add(Err(trouble), Duration::ZERO);
        }
        tally
    }

    fn results(failed: u64) -> Results {
        let mut results = Results::default();
        for payload in plan().payloads {
            for callers in plan().callers {
                for operation in plan().operations {
                    let tally = tally(u64::from(callers) * 100, failed);
                    results.throughput.push(Throughput { operation, payload, callers, tally });
                }
            }
            for operation in plan().operations {
                let tally = tally(1000, failed);
                results.latency.push(Latency { operation, payload, rate: 1000, due: 1000, tally });
            }
        }
        results
    }

    #[test]
    fn report_fits_into_a_small_terminal() {
        for ink in [Ink::Blocks, Ink::Ascii] {
            let text = text(&plan(), &results(0), ink);
            for line in text.lines() {
                assert!(line.chars().count() <= 60, "{line}");
            }
            assert_eq!(text.is_ascii(), ink == Ink::Ascii);
            assert!(
                text.contains("\nread       16 KiB       100       1,600       6,400\n"),
                "{text}"
            );
            let latency = "\nsign-out   16 KiB   1,000  1.50  1.50  1.50   1.50  1.50\n";
            assert!(text.contains(latency), "{text}");
            assert!(!text.contains("failed"), "{text}");
        }
    }

    #[test]
    fn report_says_what_went_wrong() {
        let mut results = results(2);
        results.latency[0].due = 5000;
        results.is_cut_short = true;
        results.keys_left = 7;
        let text = text(&plan(), &results, Ink::Ascii);
        for part in [
            "\n96 requests failed",
            "\nunavailable  96  it is down\n",
            "\nread, 100 B: 3,998 of 5,000 requests were never sent",
            "\nThe measurements ended early",
            "\n7 keys could not be removed. They expire within 5 minutes.\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn part_that_was_not_measured_is_left_out() {
        let none = text(&plan(), &Results::default(), Ink::Ascii);
        assert_eq!(none, "");
        let mut results = results(0);
        results.throughput.truncate(1);
        results.latency.clear();
        let text = text(&plan(), &results, Ink::Ascii);
        assert!(text.contains("\nread        1 KiB         -           -           -\n"), "{text}");
        assert!(!text.contains("Latency"), "{text}");
    }

    #[test]
    fn numbers_are_readable() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        for (number, text) in [
            (0.0, "0.000"),
            (0.0784, "0.078"),
            (0.9996, "1.00"),
            (9.996, "10.0"),
            (12.34, "12.3"),
            (99.96, "100"),
            (1234.5, "1,235"),
        ] {
            assert_eq!(three_digits(number), text);
        }
        for (number, text) in [(0, "0 B"), (1000, "1,000 B"), (1024, "1 KiB"), (5 << 20, "5 MiB")] {
            assert_eq!(bytes(number), text);
        }
        let time = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        assert_eq!(timestamp(time), "2027-01-15T08:00:00Z");
    }
}
