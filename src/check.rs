//! The report that [`Sessions::check`](crate::Sessions::check) returns.
//!
//! A [`Report`] is a list of [`Finding`]s. It can be printed and serialised as JSON. The [operating
//! page](crate::guide::operating) lists every finding that this crate's stores can report, with its remedy.

use std::borrow::Cow;
use std::fmt;

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use crate::error::one_line;

/// How serious a [`Finding`] is, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Everything is in order.
    Fine,
    /// Something could not be examined, or is worth knowing. You need not do anything.
    Note,
    /// Sessions work now, but under some circumstances they can be lost, or requests can fail.
    Warning,
    /// Sessions do not work, or will be lost.
    Error,
}

impl Level {
    /// Returns the level in lower case, as it is printed and serialised.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Returns a number with its noun in the singular or the plural.
#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) fn counted<N: fmt::Display + PartialEq + From<u8>>(count: N, thing: &str) -> String {
    let ending = if count == N::from(1) { "" } else { "s" };
    format!("{count} {thing}{ending}")
}

/// One result of a check. It contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    level: Level,
    code: &'static str,
    subject: Cow<'static, str>,
    message: Cow<'static, str>,
    remedy: Cow<'static, str>,
}

impl Finding {
    /// Creates a finding for something that is in order. `code` identifies the kind of finding to programs,
    /// in lower case with underscores; `message` describes the finding to people.
    #[must_use]
    pub fn fine(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Level::Fine, code, message.into(), Cow::Borrowed(""))
    }

    /// Creates a finding for something that could not be examined, or is worth knowing. `remedy` says what to
    /// do about it, and may be empty.
    #[must_use]
    pub fn note(
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(Level::Note, code, message.into(), remedy.into())
    }

    /// Creates a finding for a problem that, under some circumstances, can lose sessions or make requests
    /// fail. `remedy` says what to do about it.
    #[must_use]
    pub fn warning(
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(Level::Warning, code, message.into(), remedy.into())
    }

    /// Creates a finding for a problem that stops sessions from working, or that will lose them. `remedy`
    /// says what to do about it.
    #[must_use]
    pub fn error(
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(Level::Error, code, message.into(), remedy.into())
    }

    fn new(
        level: Level,
        code: &'static str,
        message: Cow<'static, str>,
        remedy: Cow<'static, str>,
    ) -> Self {
        let (message, remedy) = (printable(message), printable(remedy));
        Self { level, code, subject: Cow::Borrowed(""), message, remedy }
    }

    /// Sets the server that the finding is about, by a name that people recognise, such as
    /// `redis at cache:6379`.
    #[must_use]
    pub fn about(self, subject: impl Into<Cow<'static, str>>) -> Self {
        Self { subject: printable(subject.into()), ..self }
    }

    /// Lowers the level of the finding to `level` if it is higher.
    #[cfg(feature = "redis")]
    pub(crate) fn at_most(self, level: Level) -> Self {
        Self { level: self.level.min(level), ..self }
    }

    /// Returns how serious the finding is.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Returns a machine-readable code for the kind of finding. A code does not depend on the finding's level,
    /// and does not change between releases.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Returns the server that the finding is about, or an empty string if it is about the store as a whole.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Returns what was found, as one line of text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns what to do about the finding, or an empty string if there is nothing to do.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

/// Puts the text on one line. Borrowed text is the crate's own and needs no change; only owned text can come from a
/// server.
fn printable(text: Cow<'static, str>) -> Cow<'static, str> {
    match text {
        Cow::Borrowed(_) => text,
        Cow::Owned(text) => Cow::Owned(one_line(&text, usize::MAX)),
    }
}

/// Writes the level, the code, the server, the message and the remedy on one line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.level, self.code)?;
        if !self.subject.is_empty() {
            write!(f, " {}", self.subject)?;
        }
        write!(f, ": {}", self.message)?;
        if !self.remedy.is_empty() {
            write!(f, " {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Serialises the fields `level`, `code`, `subject`, `message` and `remedy`.
impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Finding", 5)?;
        fields.serialize_field("level", &self.level)?;
        fields.serialize_field("code", self.code)?;
        fields.serialize_field("subject", &*self.subject)?;
        fields.serialize_field("message", &*self.message)?;
        fields.serialize_field("remedy", &*self.remedy)?;
        fields.end()
    }
}

/// The findings that [`Sessions::check`](crate::Sessions::check) returns.
///
/// Its [`Display`](fmt::Display) output has one line per finding. Print it to the log at start-up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "print the report or act on it"]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Groups the findings by server, and sorts the servers. Servers are examined concurrently, so findings
    /// arrive in any order.
    pub(crate) fn new(findings: Vec<Finding>) -> Self {
        let mut findings = findings;
        findings.sort_by(|one, other| one.subject.cmp(&other.subject));
        Self { findings }
    }

    /// Returns all findings, grouped by server. The servers are in alphabetical order.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Returns the highest level of all findings. If it is [`Level::Error`], the process should not receive
    /// traffic.
    #[must_use]
    pub fn level(&self) -> Level {
        self.findings.iter().map(Finding::level).max().unwrap_or(Level::Fine)
    }

    /// Returns the first finding with [`Level::Error`], if there is one.
    #[must_use]
    pub fn first_error(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.level == Level::Error)
    }
}

/// Writes one line per finding.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for finding in &self.findings {
            write!(f, "{separator}{finding}")?;
            separator = "\n";
        }
        Ok(())
    }
}

/// Serialises the fields `level`, which is the highest level of all findings, and `findings`.
impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Report", 2)?;
        fields.serialize_field("level", &self.level())?;
        fields.serialize_field("findings", &self.findings)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_as_bad_as_its_worst_finding() {
        let findings = vec![
            Finding::fine("version", "It is Redis 7.0.15."),
            Finding::warning("eviction", "It evicts.", "Do not.").about("redis at h:1"),
            Finding::error("memory", "It is full.", "Give it more."),
            Finding::error("clock", "It is off.", "Set it."),
        ];
        let report = Report::new(findings);
        assert_eq!(report.level(), Level::Error);
        assert_eq!(report.first_error().map(Finding::code), Some("memory"));
        let text = report.to_string();
        // Findings about one server are grouped.
        assert_eq!(
            text.lines().nth(3),
            Some("warning [eviction] redis at h:1: It evicts. Do not.")
        );
        assert_eq!(text.lines().count(), 4);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["level"], "error");
        assert_eq!(json["findings"][3]["subject"], "redis at h:1");
        assert_eq!(json["findings"][0]["remedy"], "");
        assert_eq!(Report::new(Vec::new()).level(), Level::Fine);
    }
}
