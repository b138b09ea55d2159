//! A configuration as a report.

use std::fmt;
use std::time::Duration;

use crate::record::lifetime::{Lifetime, Persistence};
use crate::settings::{CAPACITY, ConcurrentSessions, DirectoryMode, OnFailedResponse, Sessions};

/// What a configuration amounts to; see [`Sessions::describe`]. Its [`Display`](fmt::Display) is the report,
/// a line for each rule.
#[derive(Debug, Clone)]
pub struct Policy {
    sessions: Sessions,
}

impl Sessions {
    /// The policy that this configuration makes, to be printed: for the documentation that ASVS 5.0
    /// 7.1.1 asks for, and for a log line at start-up. It names no server and holds no secret.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::Sessions;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
    /// println!("{}", sessions.describe());
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn describe(&self) -> Policy {
        Policy::new(self.clone())
    }
}

impl Policy {
    pub(crate) fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.sessions.settings();
        let lifetime = &settings.options.lifetime;
        let page = settings.options.sign_in_page.as_deref();
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<24}{value}");
        line("cookie", &settings.cookie.description())?;
        line(
            "cookie's age",
            &match lifetime.persistence() {
                Persistence::Persistent => "to the absolute timeout, at most 400 days",
                Persistence::BrowserSession => "until the browser ends",
            },
        )?;
        line(
            "token",
            &"id of 128 bits and secret of 128 bits; the store holds SHA-256 of the secret",
        )?;
        line("idle timeout", &Span(lifetime.idle()))?;
        line("extended after", &Span(lifetime.refresh_threshold()))?;
        line("absolute timeout", &Span(lifetime.absolute()))?;
        line("new secret", &"at every sign-in, step-up, rotation and change of lifetime")?;
        line(
            "directory",
            &match settings.options.directory {
                DirectoryMode::Off => "off: sessions are not listed, limited or revoked",
                DirectoryMode::Listed => "sessions of each principal are listed",
                DirectoryMode::Strict => "signed-in sessions are valid only while they are listed",
            },
        )?;
        if settings.options.directory != DirectoryMode::Off {
            line(
                "sessions at once",
                &match settings.options.concurrent() {
                    ConcurrentSessions::Allow => format!("{CAPACITY}, then a sign-in is refused"),
                    ConcurrentSessions::EvictOldest(most) => {
                        format!("{most}, then the oldest goes")
                    }
                    ConcurrentSessions::Reject(most) => {
                        format!("{most}, then a sign-in is refused")
                    }
                },
            )?;
        }
        line("keys begin with", &settings.key_prefix)?;
        line("record", &format_args!("at most {} bytes", settings.options.max_record))?;
        line("wait for the store", &Span(settings.options.timeout))?;
        line("attempts of a commit", &settings.options.commit_attempts)?;
        line("retries of a command", &settings.options.command_retries)?;
        line(
            "after a 5xx or 408",
            &match settings.options.on_failed_response {
                OnFailedResponse::Discard => "changes are discarded, an end of the session is kept",
                OnFailedResponse::Commit => "changes are kept",
            },
        )?;
        line("a session that is gone", &format_args!("status {}", settings.options.gone_status))?;
        line(
            "not signed in",
            &page.map_or("status 401".to_owned(), |page| format!("303 to {page}")),
        )?;
        for (name, preset) in STANDARDS {
            line(name, &Comparison { lifetime, preset })?;
        }
        Ok(())
    }
}

/// Whose limits the lifetime is compared with.
const STANDARDS: [(&str, Lifetime); 5] = [
    ("OWASP, low risk", Lifetime::owasp_low_risk()),
    ("OWASP, high risk", Lifetime::owasp_high_risk()),
    ("NIST 800-63B-4 AAL1", Lifetime::nist_aal1()),
    ("NIST 800-63B-4 AAL2", Lifetime::nist_aal2()),
    ("NIST 800-63B-4 AAL3", Lifetime::nist_aal3()),
];

struct Comparison<'a> {
    lifetime: &'a Lifetime,
    preset: Lifetime,
}

impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lifetime.is_within(&self.preset) {
            return f.write_str("within its limits");
        }
        let limits = [
            ("idle", self.lifetime.idle(), self.preset.idle()),
            ("absolute", self.lifetime.absolute(), self.preset.absolute()),
        ];
        let mut separator = "over: ";
        for (name, own, most) in limits.into_iter().filter(|(_, own, most)| own > most) {
            write!(f, "{separator}{name} {} > {}", Span(own), Span(most))?;
            separator = ", ";
        }
        Ok(())
    }
}

/// A duration in the largest units that fit: `1 h 30 min`.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_millis();
        let mut separator = "";
        for (unit, length) in
            [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)]
        {
            let count = left / length;
            left %= length;
            if count > 0 {
                write!(f, "{separator}{count} {unit}")?;
                separator = " ";
            }
        }
        if separator.is_empty() { f.write_str("0 ms") } else { Ok(()) }
    }
}
