//! Turns a server's statistics into findings. These functions are pure: they send nothing.

use std::collections::HashMap;
use std::fmt;

use time::OffsetDateTime;

use crate::check::{Finding, counted};

/// The first release whose meta commands have the behaviour that the store needs.
const MIN_RELEASE: Release = Release([1, 6, 13]);

/// The size of an item without its key and its value: the header, the version, the flags, and the terminators
/// of the key and the value. 59 bytes were measured without flags; other builds may need a few more.
const ITEM_OVERHEAD: u64 = 64;

/// The minimum that [`Builder::max_record_bytes`](crate::Builder::max_record_bytes) accepts.
const MIN_RECORD: u64 = 2048;

/// At this percentage or more, memory and connections count as scarce.
const SCARCE: u64 = 80;

/// The tolerated clock difference, in whole seconds. The server's clock advances once a second, and its
/// answer takes time to arrive.
const CLOCK_TOLERANCE: i64 = 2;

/// If the server started less than this many seconds ago, the report has a note about it.
const RECENT: u64 = 5 * 60;

/// A line in the answer to `stats`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A name and its value.
    Stat(&'a str, &'a str),
    End,
    /// An error instead of an answer.
    Refusal,
    /// A line that does not come from Memcached.
    Strange,
}

impl<'a> Line<'a> {
    /// Parses a complete line with its line break. An incomplete line is rejected, because a truncated number
    /// is a different number.
    pub(super) fn parse(bytes: &'a [u8]) -> Self {
        let Some(text) = whole(bytes) else { return Self::Strange };
        if text == "END" {
            return Self::End;
        }
        if ["ERROR", "CLIENT_ERROR", "SERVER_ERROR"].contains(&first_word(text)) {
            return Self::Refusal;
        }
        let Some(stat) = text.strip_prefix("STAT ") else { return Self::Strange };
        let (name, value) = stat.split_once(' ').unwrap_or((stat, ""));
        Self::Stat(name, value)
    }
}

/// Returns the release in an answer to `version`.
pub(super) fn release(line: &[u8]) -> Option<Release> {
    let text = whole(line)?.strip_prefix("VERSION ")?;
    let mut parts = first_word(text).split('.').map(|part| {
        // A build may add a suffix to the last number, as in 1.6.18_2.
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse().ok()
    });
    let (major, minor) = (parts.next()??, parts.next()??);
    Some(Release([major, minor, parts.next().flatten().unwrap_or(0)]))
}

fn whole(line: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    Some(text.strip_suffix('\r').unwrap_or(text))
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or(text)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release([u32; 3]);

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([major, minor, patch]) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// The names and values in one answer to `stats`.
pub(super) type Table = HashMap<String, String>;

/// The data that a server reported about itself. It is incomplete if the server stopped answering.
#[derive(Debug)]
pub(super) struct Told {
    /// Whether the server knows the meta commands at all.
    pub(super) is_meta: bool,
    pub(super) release: Option<Release>,
    pub(super) stats: Table,
    pub(super) settings: Table,
    /// The time at which the answer to `stats` arrived, according to the clock that the sessions use.
    pub(super) heard: OffsetDateTime,
}

/// What sessions need from a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needs {
    /// The maximum size of a record in bytes.
    pub(super) record: usize,
    /// The length of a record's key in bytes.
    pub(super) key: usize,
}

impl Told {
    /// Returns whether it is worth trying commands. If not, a finding gives the reason.
    pub(super) fn is_fit(&self) -> bool {
        self.is_meta && !self.is_old() && !self.has_no_versions()
    }

    fn is_old(&self) -> bool {
        self.release.is_some_and(|release| release < MIN_RELEASE)
    }

    fn has_no_versions(&self) -> bool {
        self.settings.get("cas_enabled").is_some_and(|value| value == "no")
    }

    /// Returns all findings that follow from this data.
    pub(super) fn findings(&self, needs: Needs) -> Vec<Finding> {
        let mut hidden = Hidden::default();
        let mut findings = vec![
            self.version(&mut hidden),
            self.cas(&mut hidden),
            self.item_size(needs, &mut hidden),
            self.evictions(&mut hidden),
            self.refused_writes(),
            self.memory(&mut hidden),
            self.connections(&mut hidden),
            self.clock(&mut hidden),
            self.uptime(&mut hidden),
        ];
        findings.push(hidden.finding());
        findings.into_iter().flatten().collect()
    }

    fn version(&self, hidden: &mut Hidden) -> Option<Finding> {
        match self.release {
            Some(release) if self.is_old() => Some(Finding::error(
                "version",
                format!("It is Memcached {release}, but sessions need {MIN_RELEASE} or newer."),
                "Upgrade the server to Memcached 1.6.13 or newer.",
            )),
            _ if !self.is_meta => Some(Finding::error(
                "version",
                format!(
                    "The server does not know the meta commands, which sessions need: Memcached has them \
                     since {MIN_RELEASE}."
                ),
                "Upgrade the server. If this is a proxy, list the servers behind it in the address.",
            )),
            Some(release) => Some(Finding::fine("version", format!("It is Memcached {release}."))),
            None => hidden.note("version"),
        }
    }

    fn cas(&self, hidden: &mut Hidden) -> Option<Finding> {
        match self.settings.get("cas_enabled").map(String::as_str) {
            Some("no") => Some(Finding::error(
                "cas",
                "The server keeps no versions of its items (cas_enabled is no), so no session can be \
                 saved.",
                "Restart it without -C (--disable-cas).",
            )),
            Some("yes") => Some(Finding::fine(
                "cas",
                "The server keeps versions of its items (cas_enabled is yes), as the store needs.",
            )),
            _ => hidden.note("cas_enabled"),
        }
    }

    fn item_size(&self, needs: Needs, hidden: &mut Hidden) -> Option<Finding> {
        let largest = hidden.number(&self.settings, "item_size_max")?;
        let overhead = needs.key as u64 + ITEM_OVERHEAD;
        let record = needs.record as u64;
        if record.saturating_add(overhead) <= largest {
            let fits = format!(
                "A record of {record} bytes (Builder::max_record_bytes) fits into the largest item \
                 (item_size_max is {largest})."
            );
            return Some(Finding::fine("item_size", fits));
        }
        let message = format!(
            "A record may have {record} bytes (Builder::max_record_bytes), which do not fit into the \
             largest item (item_size_max is {largest}). Writing such a record deletes the session."
        );
        let mut remedy = "Restart it with -I 1m, which is the default".to_owned();
        match largest.saturating_sub(overhead) {
            room @ MIN_RECORD.. => {
                remedy += &format!(", or set Builder::max_record_bytes to at most {room}.");
            }
            _ => remedy.push('.'),
        }
        Some(Finding::warning("item_size", message, remedy))
    }

    fn evictions(&self, hidden: &mut Hidden) -> Option<Finding> {
        match self.settings.get("evictions").map(String::as_str) {
            Some("off") => {
                return Some(Finding::warning(
                    "evictions",
                    "The server refuses writes when its memory is full (evictions is off), and a refused \
                     write deletes the session.",
                    "Restart it without -M (--disable-evictions), and with enough memory (-m MEGABYTES).",
                ));
            }
            Some("on") => {}
            _ => hidden.add("evictions"),
        }
        Some(match hidden.number(&self.stats, "evictions")? {
            0 => Finding::fine("evictions", "The server has evicted nothing (evictions is 0)."),
            count => Finding::warning(
                "evictions",
                format!(
                    "The server has evicted {} because its memory was full (evictions), so users may have \
                     been signed out.",
                    counted(count, "item")
                ),
                "Restart it with more memory (-m MEGABYTES), or add servers. The command `stats reset` \
                 resets the \
                 counter.",
            ),
        })
    }

    /// Reports refused writes. Returns no finding if there were none, because `item_size` and `evictions`
    /// show whether the server may refuse writes.
    fn refused_writes(&self) -> Option<Finding> {
        let count = |name| number(&self.stats, name).unwrap_or(0);
        let (large, memory) = (count("store_too_large"), count("store_no_memory"));
        if large == 0 && memory == 0 {
            return None;
        }
        Some(Finding::warning(
            "refused_writes",
            format!(
                "The server has refused {} because of the size (store_too_large) and {memory} because \
                 its memory \
                 was full (store_no_memory). Each refused write deleted the item under its key, perhaps a session.",
                counted(large, "write")
            ),
            "Follow the findings item_size, evictions and memory. The `stats reset` command resets the \
             counters.",
        ))
    }

    fn memory(&self, hidden: &mut Hidden) -> Option<Finding> {
        let used = hidden.number(&self.stats, "bytes");
        let limit = hidden.number(&self.stats, "limit_maxbytes");
        let (used, limit) = (used?, limit.filter(|limit| *limit > 0)?);
        let message = format!(
            "The items take {} % of the server's memory (bytes is {used}, limit_maxbytes is {limit})",
            percent(used, limit)
        );
        if percent(used, limit) < SCARCE {
            return Some(Finding::fine("memory", format!("{message}.")));
        }
        Some(Finding::warning(
            "memory",
            format!("{message}. When it is full, sessions are lost."),
            "Restart it with more memory (-m MEGABYTES), add servers, or set a shorter idle timeout.",
        ))
    }

    fn connections(&self, hidden: &mut Hidden) -> Option<Finding> {
        let open = hidden.number(&self.stats, "curr_connections");
        let limit = hidden.number(&self.stats, "max_connections");
        let (open, limit) = (open?, limit?);
        let count = |name| number(&self.stats, name).unwrap_or(0);
        // The server reserves some descriptors for itself and accepts no clients on them.
        let accepted = limit.saturating_sub(count("reserved_fds")).max(1);
        let message = format!(
            "{open} of at most {} {} open (max_connections is {limit})",
            counted(accepted, "connection"),
            if open == 1 { "is" } else { "are" }
        );
        let remedy = "Restart it with a higher connection limit (-c NUMBER), or let fewer processes \
                      connect to it.";
        // The server refuses connections above the limit, or makes them wait.
        let excess = count("rejected_connections").saturating_add(count("listen_disabled_num"));
        if excess > 0 {
            let message = format!(
                "{message}, and the limit was reached before (rejected_connections and \
                 listen_disabled_num are \
                 {excess} together)."
            );
            return Some(Finding::warning("connections", message, remedy));
        }
        if percent(open, accepted) < SCARCE {
            return Some(Finding::fine("connections", format!("{message}.")));
        }
        let message = format!("{message}. At the limit, processes cannot connect.");
        Some(Finding::warning("connections", message, remedy))
    }

    fn clock(&self, hidden: &mut Hidden) -> Option<Finding> {
        let time = hidden.number(&self.stats, "time")?;
        let ahead = i64::try_from(time).ok()?.saturating_sub(self.heard.unix_timestamp());
        if ahead.saturating_abs() <= CLOCK_TOLERANCE {
            let fine = format!(
                "The server's clock differs from this process's by at most {CLOCK_TOLERANCE} seconds."
            );
            return Some(Finding::fine("clock", fine));
        }
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        Some(Finding::warning(
            "clock",
            format!("The server's clock is {} seconds {way} this process's.", ahead.unsigned_abs()),
            "Synchronise the clocks of all machines with NTP. The clocks of the processes decide when a \
             session \
             expires; the server's decides when a record with a lifetime of more than 30 days does.",
        ))
    }

    fn uptime(&self, hidden: &mut Hidden) -> Option<Finding> {
        let seconds = hidden.number(&self.stats, "uptime")?;
        if seconds >= RECENT {
            let fine = format!("The server has been running for {} (uptime).", rounded(seconds));
            return Some(Finding::fine("uptime", fine));
        }
        Some(Finding::note(
            "uptime",
            format!(
                "The server started {} ago (uptime), so all earlier sessions are gone.",
                rounded(seconds)
            ),
            "",
        ))
    }
}

/// The names of the values that the server did not show.
#[derive(Default)]
struct Hidden(Vec<&'static str>);

impl Hidden {
    fn add(&mut self, name: &'static str) {
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    /// Records a missing value. Returns `None` instead of a finding.
    fn note(&mut self, name: &'static str) -> Option<Finding> {
        self.add(name);
        None
    }

    fn number(&mut self, table: &Table, name: &'static str) -> Option<u64> {
        let number = number(table, name);
        if number.is_none() {
            self.add(name);
        }
        number
    }

    fn finding(&self) -> Option<Finding> {
        if self.0.is_empty() {
            return None;
        }
        Some(Finding::note(
            "hidden",
            format!("The server does not show {}, so this was not examined.", self.0.join(", ")),
            "If this is a proxy, check the servers behind it.",
        ))
    }
}

fn number(table: &Table, name: &str) -> Option<u64> {
    table.get(name)?.parse().ok()
}

fn percent(part: u64, whole: u64) -> u64 {
    let percent = u128::from(part) * 100 / u128::from(whole);
    u64::try_from(percent).unwrap_or(u64::MAX)
}

fn rounded(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        ..120 => counted(seconds, "second"),
        120..7200 => format!("{} minutes", seconds / MINUTE),
        7200..172_800 => format!("{} hours", seconds / HOUR),
        _ => format!("{} days", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::Level;

    const NEEDS: Needs = Needs { record: 65_536, key: 30 };

    fn table(entries: &[(&str, &str)]) -> Table {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Returns the data of a server without problems.
    fn healthy() -> Told {
        Told {
            is_meta: true,
            release: Some(Release([1, 6, 18])),
            stats: table(&[
                ("uptime", "400000"),
                ("time", "1800000000"),
                ("max_connections", "1024"),
                ("curr_connections", "3"),
                ("rejected_connections", "0"),
                ("reserved_fds", "20"),
                ("listen_disabled_num", "0"),
                ("bytes", "0"),
                ("limit_maxbytes", "67108864"),
                ("evictions", "0"),
                ("store_too_large", "0"),
                ("store_no_memory", "0"),
            ]),
            settings: table(&[
                ("cas_enabled", "yes"),
                ("evictions", "on"),
                ("item_size_max", "1048576"),
            ]),
            heard: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
        }
    }

    /// Returns the level of the only finding with this code.
    fn level(told: &Told, code: &str) -> Option<Level> {
        let findings = told.findings(NEEDS);
        let mut found = findings.iter().filter(|finding| finding.code() == code);
        let level = found.next().map(Finding::level);
        assert!(found.next().is_none(), "{findings:?}");
        level
    }

    /// Returns the data of a healthy server, with a different value for one entry.
    fn with(name: &str, value: &str) -> Told {
        let mut told = healthy();
        let is_setting = told.settings.contains_key(name) && !value.starts_with('#');
        let table = if is_setting { &mut told.settings } else { &mut told.stats };
        table.insert(name.to_owned(), value.trim_start_matches('#').to_owned());
        told
    }

    #[test]
    fn healthy_server_is_fine_in_every_respect() {
        let findings = healthy().findings(NEEDS);
        assert_eq!(findings.len(), 8, "{findings:?}");
        assert!(findings.iter().all(|finding| finding.level() == Level::Fine), "{findings:?}");
    }

    #[test]
    fn level_changes_at_its_threshold() {
        use Level::{Error, Fine, Note, Warning};
        for (name, value, code, expected) in [
            ("item_size_max", "65630", "item_size", Some(Fine)),
            ("item_size_max", "65629", "item_size", Some(Warning)),
            ("item_size_max", "0", "item_size", Some(Warning)),
            ("evictions", "#1", "evictions", Some(Warning)),
            ("evictions", "off", "evictions", Some(Warning)),
            ("store_too_large", "1", "refused_writes", Some(Warning)),
            ("store_no_memory", "1", "refused_writes", Some(Warning)),
            ("store_no_memory", "0", "refused_writes", None),
            ("bytes", "53687091", "memory", Some(Fine)),
            ("bytes", "53687092", "memory", Some(Warning)),
            ("bytes", "18446744073709551615", "memory", Some(Warning)),
            ("limit_maxbytes", "0", "memory", None),
            ("curr_connections", "803", "connections", Some(Fine)),
            ("curr_connections", "804", "connections", Some(Warning)),
            ("max_connections", "0", "connections", Some(Warning)),
            ("rejected_connections", "1", "connections", Some(Warning)),
            ("listen_disabled_num", "1", "connections", Some(Warning)),
            ("time", "1800000002", "clock", Some(Fine)),
            ("time", "1800000003", "clock", Some(Warning)),
            ("time", "1799999998", "clock", Some(Fine)),
            ("time", "1799999997", "clock", Some(Warning)),
            ("time", "9223372036854775807", "clock", Some(Warning)),
            ("time", "18446744073709551615", "clock", None),
            ("uptime", "300", "uptime", Some(Fine)),
            ("uptime", "299", "uptime", Some(Note)),
            ("cas_enabled", "no", "cas", Some(Error)),
        ] {
            assert_eq!(level(&with(name, value), code), expected, "{name} {value}");
        }
    }

    #[test]
    fn old_release_is_an_error_and_newer_ones_are_not() {
        for (release, expected) in [
            ([1, 4, 5], Level::Error),
            ([1, 6, 12], Level::Error),
            ([1, 6, 13], Level::Fine),
            ([1, 10, 0], Level::Fine),
            ([2, 0, 0], Level::Fine),
        ] {
            let told = Told { release: Some(Release(release)), ..healthy() };
            assert_eq!(level(&told, "version"), Some(expected), "{release:?}");
            assert_eq!(told.is_fit(), expected == Level::Fine, "{release:?}");
        }
        let told = Told { is_meta: false, ..healthy() };
        assert_eq!(level(&told, "version"), Some(Level::Error));
        assert!(!told.is_fit());
    }

    #[test]
    fn untold_values_are_one_note() {
        let silent =
            Told { release: None, stats: Table::new(), settings: Table::new(), ..healthy() };
        let findings = silent.findings(NEEDS);
        let [note] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((note.level(), note.code()), (Level::Note, "hidden"));
        for name in ["version", "cas_enabled", "item_size_max", "evictions", "bytes", "time"] {
            let words = note.message().split([' ', ',']);
            assert_eq!(words.filter(|word| *word == name).count(), 1, "{note}");
        }
        assert!(silent.is_fit(), "the commands are to be tried");
        assert_eq!(level(&with("bytes", "many"), "hidden"), Some(Level::Note));
    }

    #[test]
    fn line_of_an_answer_is_told_from_anything_else() {
        for (line, expected) in [
            (&b"STAT time 17\r\n"[..], Line::Stat("time", "17")),
            (b"STAT inter 127.0.0.1 ::1\n", Line::Stat("inter", "127.0.0.1 ::1")),
            (b"STAT empty\r\n", Line::Stat("empty", "")),
            (b"END\r\n", Line::End),
            (b"ERROR\r\n", Line::Refusal),
            (b"CLIENT_ERROR unauthenticated\r\n", Line::Refusal),
            (b"SERVER_ERROR\r\n", Line::Refusal),
            (b"STAT time 17", Line::Strange),
            (b"END", Line::Strange),
            (b"\xff\r\n", Line::Strange),
            (b"", Line::Strange),
        ] {
            assert_eq!(Line::parse(line), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn release_is_read_from_its_numbers_alone() {
        for (line, expected) in [
            (&b"VERSION 1.6.18\r\n"[..], Some("1.6.18")),
            (b"VERSION 1.6.18_2-ubuntu\r\n", Some("1.6.18")),
            (b"VERSION 1.6\n", Some("1.6.0")),
            (b"VERSION 40.0.0 mcrouter\r\n", Some("40.0.0")),
            (b"VERSION mcrouter 40.0.0\r\n", None),
            (b"VERSION 1.6.18", None),
            (b"VERSION 99999999999.6.18\r\n", None),
            (b"VERSION \r\n", None),
            (b"ERROR\r\n", None),
        ] {
            let text = release(line).map(|release| release.to_string());
            assert_eq!(text.as_deref(), expected, "{}", line.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_answers_are_judged_and_not_repeated(
            version in any::<Vec<u8>>(),
            lines in prop::collection::vec(any_line(), 0..20),
        ) {
            let mut told = Told { release: release(&version), ..healthy() };
            for (line, is_setting) in &lines {
                if let Line::Stat(name, value) = Line::parse(line) {
                    let table = if *is_setting { &mut told.settings } else { &mut told.stats };
                    table.insert(name.to_owned(), value.to_owned());
                }
            }
            for finding in told.findings(NEEDS) {
                let text = finding.to_string();
                prop_assert!(text.is_ascii() && !text.contains("hunter2"), "{text}");
                prop_assert!(!text.contains(char::is_control), "{text}");
            }
        }
    }

    /// Generates `STAT` lines, with a name from one of the tables and a number or other text as the value, and
    /// lines of arbitrary bytes.
    fn any_line() -> impl Strategy<Value = (Vec<u8>, bool)> {
        let names: Vec<_> = {
            let told = healthy();
            told.stats.keys().chain(told.settings.keys()).cloned().collect()
        };
        let value = prop_oneof![
            any::<u64>().prop_map(|number| number.to_string()),
            any::<String>(),
            Just("hunter2\u{1b}[31m".to_owned()),
        ];
        let line = (prop::sample::select(names), value)
            .prop_map(|(name, value)| format!("STAT {name} {value}\r\n").into_bytes());
        (prop_oneof![line, any::<Vec<u8>>()], any::<bool>())
    }
}
