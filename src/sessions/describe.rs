//! Describes the session policy of a configuration.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::event::Audit;
use crate::record::lifetime::{Lifetime, Persistence};
use crate::settings::{
    CAPACITY, ConcurrentSessions, DirectoryMode, OnFailedResponse, Pages, Sessions, Settings,
};

/// The session policy of a configuration. Its `Display` text has one rule per line; see [`Sessions::describe`].
#[derive(Debug, Clone)]
pub struct Policy {
    sessions: Sessions,
}

impl Sessions {
    /// Returns the session policy that this configuration implements.
    ///
    /// Print the policy for the documentation that ASVS 5.0 7.1.1 requires, or log it when the application
    /// starts. The policy contains no server names and no secrets.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::Sessions;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
    /// println!("{}", sessions.describe());
    /// assert!(sessions.describe().to_string().contains("__Host-id"));
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

impl Policy {
    fn settings(&self) -> &Settings {
        self.sessions.settings()
    }

    fn describe_cookie(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "cookie", &self.settings().cookie.description())?;
        line(
            f,
            "cookie's age",
            &match self.settings().options.lifetime.persistence() {
                Persistence::Persistent => "to the absolute timeout, at most 400 days",
                Persistence::BrowserSession => "until the browser closes",
            },
        )?;
        line(
            f,
            "token",
            &"id of 128 bits and secret of 128 bits; the store holds SHA-256 of the secret",
        )
    }

    fn describe_lifetime(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lifetime = &self.settings().options.lifetime;
        line(f, "idle timeout", &Span(lifetime.idle()))?;
        line(f, "extended after", &Span(lifetime.refresh_threshold()))?;
        line(f, "absolute timeout", &Span(lifetime.absolute()))?;
        line(f, "new secret", &"at every sign-in, step-up, rotation and change of lifetime")
    }

    fn describe_directory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.settings().options;
        line(
            f,
            "directory",
            &match options.directory {
                DirectoryMode::Off => "off: sessions are not listed, limited or revoked",
                DirectoryMode::Listed => "sessions of each principal are listed",
                DirectoryMode::Strict => "signed-in sessions are valid only while they are listed",
            },
        )?;
        if options.directory == DirectoryMode::Off {
            return Ok(());
        }
        let limit = match options.concurrent() {
            ConcurrentSessions::Allow => format!("{CAPACITY}; above that, a sign-in is refused"),
            ConcurrentSessions::EvictOldest(most) => {
                format!("{most}; above that, the oldest is revoked")
            }
            ConcurrentSessions::Reject(most) => format!("{most}; above that, a sign-in is refused"),
        };
        line(f, "sessions at once", &limit)
    }

    fn describe_store(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.settings().options;
        line(f, "keys begin with", &self.settings().key_prefix)?;
        line(f, "record", &format_args!("at most {} bytes", options.max_record))?;
        line(f, "wait for the store", &Span(options.timeout))?;
        line(f, "commit attempts", &options.commit_attempts)?;
        line(f, "retries per command", &options.command_retries)
    }

    fn describe_responses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.settings().options;
        line(
            f,
            "after a 5xx or 408",
            &match options.on_failed_response {
                OnFailedResponse::Discard => {
                    "changes are discarded, but a sign-out or destroy is kept"
                }
                OnFailedResponse::Commit => "changes are kept",
            },
        )?;
        line(f, "a session that is gone", &format_args!("status {}", options.gone_status))?;
        let Pages { sign_in, step_up } = &options.pages;
        let answer = |page: Option<&Cow<'_, str>>| match page {
            Some(page) => format!("navigations: 303 to {page}; others: status 401"),
            None => "status 401".to_owned(),
        };
        line(f, "not signed in", &answer(sign_in.as_ref()))?;
        line(f, "sign-in too long ago", &answer(step_up.as_ref().or(sign_in.as_ref())))
    }

    fn describe_events(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(
            f,
            "accounts in events",
            &match self.settings().options.audit {
                Audit::Digest => "by the digest of the principal",
                Audit::Principal => "by the principal",
                Audit::Nothing => "not at all",
            },
        )
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe_cookie(f)?;
        self.describe_lifetime(f)?;
        self.describe_directory(f)?;
        self.describe_store(f)?;
        self.describe_responses(f)?;
        self.describe_events(f)?;
        let lifetime = &self.settings().options.lifetime;
        STANDARDS
            .into_iter()
            .try_for_each(|(name, preset)| line(f, name, &Comparison { lifetime, preset }))
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, value: &dyn fmt::Display) -> fmt::Result {
    writeln!(f, "{name:<24}{value}")
}

/// The standards whose limits the lifetime is compared with.
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

/// A duration, shown in the largest units that fit, such as `1 h 30 min`.
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
