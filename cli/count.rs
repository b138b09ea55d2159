//! `unsticky count`: counts sessions and directories, and adds up their sizes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use unsticky::internals::survey::{Keys, Met, Outcome, Owner, Walk};

use crate::arguments::CountArguments;
use crate::failure::Failure;
use crate::output::{Format, one_line, print, print_json};

pub(crate) async fn run(arguments: &CountArguments, format: Format) -> Result<ExitCode, Failure> {
    let keys = Keys::of(&arguments.store.sessions()?);
    let survey = arguments.store.survey()?;
    let begun = Instant::now();
    let mut tallies = BTreeMap::<String, Tally>::new();
    let mut progress = Progress::new();
    let each = |met: Met<'_>| match met {
        Met::Key { server, key, bytes } => {
            if !tallies.contains_key(server) {
                tallies.insert(server.to_owned(), Tally::default());
            }
            if let Some(tally) = tallies.get_mut(server) {
                tally.add(keys.owner(key), bytes);
            }
        }
        Met::Walked { server, keys } => progress.show(server, keys),
    };
    let walks = survey.scan(keys.namespace(), arguments.rate, each).await;
    drop(progress);
    let walks = walks.map_err(|error| Failure::store(&error))?;
    let servers = walks.into_iter().map(|walk| {
        let tally = tallies.remove(&walk.server).unwrap_or_default();
        Server::new(walk, tally)
    });
    let count = Count { keys, servers: servers.collect(), took: begun.elapsed() };
    match format {
        Format::Text => print(&count.text())?,
        Format::Json => print_json(&count.json())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The result of counting.
struct Count {
    keys: Keys,
    servers: Vec<Server>,
    took: Duration,
}

/// The result of counting on one server.
struct Server {
    name: String,
    found: Found,
    notes: Vec<String>,
}

enum Found {
    Records(Tally),
    /// All items on a server that does not list its keys.
    Items {
        count: u64,
        bytes: u64,
    },
}

/// The keys under the namespace.
#[derive(Debug, Default, Clone)]
struct Tally {
    sessions: Records,
    directories: Records,
    other_epochs: u64,
    other_keys: u64,
}

/// Records of one kind.
#[derive(Debug, Default, Clone)]
struct Records {
    /// The number of records of each length. Memory use depends only on how many different lengths there are.
    lengths: BTreeMap<u64, u64>,
    without_length: u64,
}

impl Server {
    fn new(walk: Walk, mut tally: Tally) -> Self {
        let mut notes = Vec::new();
        let found = match walk.outcome {
            Outcome::Totals { reason, items, bytes } => {
                notes.push(format!(
                    "The server does not show its keys: {reason}. The numbers are those of all its items, not \
                     only sessions and directories."
                ));
                Found::Items { count: items, bytes }
            }
            Outcome::Complete { no_lengths, may_repeat } => {
                match no_lengths {
                    Some(reason) => {
                        tally.forget_lengths();
                        notes.push(format!("The lengths of the records are unknown: {reason}."));
                    }
                    None => tally.set_strange_aside(),
                }
                if may_repeat {
                    notes.push(
                        "The server has more keys than this command can remember, so some may have been \
                         counted twice."
                            .to_owned(),
                    );
                }
                Found::Records(tally)
            }
            Outcome::Ended => Found::Records(tally),
        };
        Self { name: walk.server, found, notes }
    }
}

impl Tally {
    fn add(&mut self, owner: Owner, bytes: Option<u64>) {
        match owner {
            Owner::Session => self.sessions.add(bytes),
            Owner::Directory => self.directories.add(bytes),
            Owner::OtherEpoch => self.other_epochs += 1,
            Owner::Foreign => self.other_keys += 1,
        }
    }

    fn add_all(&mut self, other: &Self) {
        self.sessions.add_all(&other.sessions);
        self.directories.add_all(&other.directories);
        self.other_epochs += other.other_epochs;
        self.other_keys += other.other_keys;
    }

    /// Discards the lengths that were read before the server refused to return any more.
    fn forget_lengths(&mut self) {
        for records in [&mut self.sessions, &mut self.directories] {
            records.without_length = records.count();
            records.lengths.clear();
        }
    }

    /// Counts keys without a length as other keys. Used only if the server returns lengths, in which case a
    /// key without one does not hold a string and so cannot be a record.
    fn set_strange_aside(&mut self) {
        for records in [&mut self.sessions, &mut self.directories] {
            self.other_keys += std::mem::take(&mut records.without_length);
        }
    }

    fn json(&self) -> Value {
        json!({
            "sessions": self.sessions.json(),
            "directories": self.directories.json(),
            "other_epochs": self.other_epochs,
            "other_keys": self.other_keys,
        })
    }
}

impl Records {
    fn add(&mut self, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => *self.lengths.entry(bytes).or_default() += 1,
            None => self.without_length += 1,
        }
    }

    fn add_all(&mut self, other: &Self) {
        for (length, count) in &other.lengths {
            *self.lengths.entry(*length).or_default() += count;
        }
        self.without_length += other.without_length;
    }

    fn count(&self) -> u64 {
        self.lengths.values().sum::<u64>() + self.without_length
    }

    /// Returns `None` if the length of at least one record is not known.
    fn sizes(&self) -> Option<Sizes> {
        let count: u64 = self.lengths.values().sum();
        if self.without_length > 0 {
            return None;
        }
        let sum = self.lengths.iter().map(|(length, count)| length.saturating_mul(*count));
        let sum = sum.fold(0, u64::saturating_add);
        Some(Sizes {
            sum,
            average: sum.checked_div(count).unwrap_or(0),
            p50: self.percentile(count, 50),
            p99: self.percentile(count, 99),
            largest: self.lengths.keys().next_back().copied().unwrap_or(0),
        })
    }

    /// Returns the length that `percent` of the records do not exceed (nearest-rank method).
    fn percentile(&self, count: u64, percent: u64) -> u64 {
        let rank = count.saturating_mul(percent).div_ceil(100);
        let mut below = 0;
        let length = self.lengths.iter().find(|(_, count)| {
            below += *count;
            below >= rank
        });
        length.map_or(0, |(length, _)| *length)
    }

    fn json(&self) -> Value {
        let bytes = self.sizes().map(|sizes| {
            json!({
                "sum": sizes.sum,
                "average": sizes.average,
                "p50": sizes.p50,
                "p99": sizes.p99,
                "largest": sizes.largest,
            })
        });
        json!({ "count": self.count(), "bytes": bytes })
    }
}

/// Lengths in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Sizes {
    sum: u64,
    average: u64,
    p50: u64,
    p99: u64,
    largest: u64,
}

impl Count {
    /// Returns `None` if a server does not list its keys, because the total would be too low.
    fn total(&self) -> Option<Tally> {
        let mut total = Tally::default();
        for server in &self.servers {
            let Found::Records(tally) = &server.found else { return None };
            total.add_all(tally);
        }
        Some(total)
    }

    fn text(&self) -> String {
        let mut table = Table::default();
        for server in &self.servers {
            match &server.found {
                Found::Records(tally) => table.add_tally(&server.name, tally),
                Found::Items { count, bytes } => {
                    table.0.push(row(&server.name, "all items", &[Some(*count), Some(*bytes)]));
                }
            }
        }
        let total = self.total();
        if let (Some(total), [_, _, ..]) = (&total, &self.servers[..]) {
            table.add_tally("total", total);
        }
        let mut text = table.text();
        text.push('\n');
        if let Some(total) = &total {
            let _ = writeln!(text, "records of other epochs: {}", total.other_epochs);
            let _ = writeln!(text, "other keys under the namespace: {}", total.other_keys);
        } else {
            let _ = writeln!(text, "There is no total, because not every server shows its keys.");
        }
        for (server, note) in self.notes() {
            let _ = writeln!(text, "{}: {}", one_line(server), one_line(note));
        }
        let seconds = self.took.as_secs_f64();
        let _ = writeln!(
            text,
            "keys that begin with {}, counted in {seconds:.1} s",
            self.keys.prefix()
        );
        text
    }

    fn json(&self) -> Value {
        let servers = self.servers.iter().map(|server| {
            let (records, items) = match &server.found {
                Found::Records(tally) => (Some(tally.json()), None),
                Found::Items { count, bytes } => {
                    (None, Some(json!({ "count": count, "bytes": bytes })))
                }
            };
            json!({
                "server": server.name,
                "records": records,
                "all_items": items,
                "notes": server.notes,
            })
        });
        json!({
            "prefix": self.keys.prefix(),
            "servers": servers.collect::<Vec<_>>(),
            "total": self.total().map(|total| total.json()),
            "seconds": self.took.as_secs_f64(),
        })
    }

    fn notes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.servers.iter().flat_map(|server| {
            server.notes.iter().map(|note| (server.name.as_str(), note.as_str()))
        })
    }
}

const COLUMNS: usize = 8;

/// Rows of cells. The first two cells in a row are text, and the others are numbers.
#[derive(Default)]
struct Table(Vec<[String; COLUMNS]>);

fn row(server: &str, records: &str, numbers: &[Option<u64>]) -> [String; COLUMNS] {
    let mut row = [const { String::new() }; COLUMNS];
    let words = [one_line(server), records.to_owned()];
    let numbers = numbers
        .iter()
        .map(|number| number.map_or_else(|| "-".to_owned(), |number| number.to_string()));
    for (cell, text) in row.iter_mut().zip(words.into_iter().chain(numbers)) {
        *cell = text;
    }
    row
}

impl Table {
    const TITLES: [&str; COLUMNS] =
        ["server", "records", "count", "bytes", "average", "p50", "p99", "largest"];

    fn add_tally(&mut self, server: &str, tally: &Tally) {
        for (name, records) in [("sessions", &tally.sessions), ("directories", &tally.directories)]
        {
            let sizes = records.sizes();
            let of = |size: fn(&Sizes) -> u64| sizes.as_ref().map(size);
            let numbers = [
                Some(records.count()),
                of(|sizes| sizes.sum),
                of(|sizes| sizes.average),
                of(|sizes| sizes.p50),
                of(|sizes| sizes.p99),
                of(|sizes| sizes.largest),
            ];
            self.0.push(row(server, name, &numbers));
        }
    }

    fn text(&self) -> String {
        let titles = Self::TITLES.map(str::to_owned);
        let rows: Vec<_> = std::iter::once(&titles).chain(&self.0).collect();
        let mut widths = [0; COLUMNS];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row.iter()) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for row in rows {
            let mut line = String::new();
            for (place, (cell, width)) in row.iter().zip(widths).enumerate() {
                let _ = match place {
                    0 | 1 => write!(line, "{cell:width$}  "),
                    _ => write!(line, "{cell:>width$}  "),
                };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

/// Shows the number of scanned keys in a line on the terminal, and erases the line at the end. Shows nothing
/// if standard error is not a terminal.
struct Progress {
    is_shown: bool,
    last: Option<Instant>,
}

impl Progress {
    /// The display is updated at most five times a second.
    const INTERVAL: Duration = Duration::from_millis(200);

    fn new() -> Self {
        Self { is_shown: io::stderr().is_terminal(), last: None }
    }

    fn show(&mut self, server: &str, keys: u64) {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= Self::INTERVAL);
        if self.is_shown && is_due {
            self.last = Some(Instant::now());
            // The command continues even if the terminal was closed.
            let _ = write!(io::stderr(), "\r{}: {keys} keys\x1b[K", one_line(server));
        }
    }
}

/// Erases the line, even if the command is interrupted.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.last.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(lengths: impl IntoIterator<Item = u64>) -> Records {
        let mut records = Records::default();
        for length in lengths {
            records.add(Some(length));
        }
        records
    }

    #[test]
    fn sizes_are_exact() {
        let sizes = records(1..=200).sizes().unwrap();
        assert_eq!(sizes, Sizes { sum: 20_100, average: 100, p50: 100, p99: 198, largest: 200 });
        let sizes = records([7]).sizes().unwrap();
        assert_eq!(sizes, Sizes { sum: 7, average: 7, p50: 7, p99: 7, largest: 7 });
        let sizes = records([]).sizes().unwrap();
        assert_eq!(sizes, Sizes { sum: 0, average: 0, p50: 0, p99: 0, largest: 0 });
    }

    #[test]
    fn sizes_of_some_records_are_none() {
        let mut tally = Tally { sessions: records([1, 2]), ..Tally::default() };
        tally.add(Owner::Session, None);
        assert_eq!(tally.sessions.sizes(), None);
        let mut strange = tally.clone();
        strange.set_strange_aside();
        assert_eq!((strange.sessions.count(), strange.other_keys), (2, 1));
        tally.forget_lengths();
        assert_eq!((tally.sessions.count(), tally.sessions.sizes()), (3, None));
    }
}
