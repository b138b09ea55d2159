//! The lifetime of a session. Pure arithmetic: the current time is always passed as an argument.

use std::time::Duration;

use crate::clock::{Millis, millis};

/// Determines how long the browser keeps the cookie.
#[doc(alias = "SessionLifecycle")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Persistence {
    /// The cookie's `Max-Age` is the time until the absolute timeout, up to [`Lifetime::MAX_COOKIE_AGE`], so
    /// the session survives a browser restart. This is the default.
    #[default]
    Persistent,
    /// The cookie has no `Max-Age`, so it is deleted when the browser is closed. The server still applies
    /// both timeouts.
    BrowserSession,
}

/// The idle timeout and the absolute timeout of a session.
///
/// Both timeouts apply. The server enforces them using the stored record, not the cookie (ASVS 5.0 7.3.1 and
/// 7.3.2):
///
/// - **idle timeout**: the session expires if no request uses it for this long;
/// - **absolute timeout**: the session expires this long after the sign-in, or after its creation if no user has
///   signed in, even if it is in use.
///
/// Signing in again restarts both timeouts, and so does a [step-up](crate::Session::step_up).
///
/// Extending the idle timeout costs a write, so not every use extends it. A request that only reads extends
/// the idle timeout if at least [`refresh_after`](Self::refresh_after) has passed since the last extension. A
/// session that is only read therefore expires between `idle - refresh_after` and `idle` after its last use.
///
/// The process that reads a session uses its own clock to determine whether the session has expired. If
/// clocks differ, a session expires early or late by at most the difference, so keep the clocks synchronised.
/// A difference of up to five minutes has no other effect. If the difference is larger,
/// [`Revoked::complete`](crate::Revoked) may be wrong for a directory that was missing. The list of sessions
/// in a [directory](crate::Directory) does not depend on clocks.
///
/// ```
/// use std::time::Duration;
/// use unsticky::Lifetime;
///
/// const HOUR: Duration = Duration::from_secs(60 * 60);
/// /// For users who ticked "remember me".
/// const REMEMBER_ME: Lifetime = Lifetime::new(HOUR.saturating_mul(24 * 14), HOUR.saturating_mul(24 * 90));
/// /// For a shop's till.
/// const TILL: Lifetime = Lifetime::new(Duration::from_secs(300), HOUR.saturating_mul(8)).browser_session();
/// assert_eq!(REMEMBER_ME.absolute(), HOUR * 24 * 90);
/// # let _ = TILL;
/// ```
#[doc(alias("Expiry", "SessionLifecycle"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    idle: Duration,
    absolute: Duration,
    persistence: Persistence,
    refresh_after: Option<Duration>,
}

impl Lifetime {
    /// The longest possible timeout: ten years. Longer durations are reduced to this value.
    pub const MAX: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

    /// The longest `Max-Age` that browsers accept: 400 days (RFC 6265bis).
    pub const MAX_COOKIE_AGE: Duration = Duration::from_secs(400 * 24 * 60 * 60);

    /// Creates a lifetime with these timeouts and a persistent cookie.
    ///
    /// Durations outside the range from one millisecond to [`MAX`](Self::MAX) are replaced by the nearer limit.
    #[must_use]
    pub const fn new(idle: Duration, absolute: Duration) -> Self {
        Self {
            idle: within_bounds(idle),
            absolute: within_bounds(absolute),
            persistence: Persistence::Persistent,
            refresh_after: None,
        }
    }

    /// Returns the timeouts for low-risk applications: idle 30 minutes, absolute 8 hours.
    ///
    /// These are the upper limits that the OWASP Session Management Cheat Sheet gives for the idle timeout of
    /// low-risk applications and for an absolute timeout that spans a working day.
    #[must_use]
    pub const fn owasp_low_risk() -> Self {
        Self::new(minutes(30), hours(8))
    }

    /// Returns the timeouts for high-risk applications: idle 5 minutes, absolute 4 hours.
    ///
    /// In the OWASP Session Management Cheat Sheet, these are the upper limit for the idle timeout of
    /// high-value applications and the lower limit for an absolute timeout that spans a working day.
    #[must_use]
    pub const fn owasp_high_risk() -> Self {
        Self::new(minutes(5), hours(4))
    }

    /// Returns the timeouts of NIST SP 800-63B-4 (second public draft) for authentication assurance level 1:
    /// absolute 30 days. The standard makes an idle timeout optional; here, it is as long as the absolute
    /// timeout.
    #[must_use]
    pub const fn nist_aal1() -> Self {
        Self::new(hours(30 * 24), hours(30 * 24))
    }

    /// Returns the timeouts of NIST SP 800-63B-4 (second public draft) for authentication assurance level 2: idle
    /// 1 hour, absolute 24 hours.
    #[must_use]
    pub const fn nist_aal2() -> Self {
        Self::new(hours(1), hours(24))
    }

    /// Returns the timeouts of NIST SP 800-63B-4 (second public draft) for authentication assurance level 3: idle
    /// 15 minutes, absolute 12 hours.
    #[must_use]
    pub const fn nist_aal3() -> Self {
        Self::new(minutes(15), hours(12))
    }

    /// Returns `true` if neither timeout is longer than the corresponding timeout of `other`.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.idle <= other.idle && self.absolute <= other.absolute
    }

    /// Makes the cookie last only until the browser is closed; see [`Persistence::BrowserSession`].
    #[doc(alias("OnSessionEnd", "BrowserSession", "expire_at_browser_close"))]
    #[must_use]
    pub const fn browser_session(self) -> Self {
        Self { persistence: Persistence::BrowserSession, ..self }
    }

    /// Sets how much time must have passed since the last extension before a read extends the idle timeout again.
    ///
    /// Default: one minute or a tenth of the idle timeout, whichever is shorter. A duration longer than half
    /// the idle timeout is reduced to half the idle timeout. With the default and an idle timeout of at least
    /// ten minutes, a session that is read constantly costs at most one write per minute.
    #[doc(alias("TtlExtensionPolicy", "touch"))]
    #[must_use]
    pub const fn refresh_after(self, duration: Duration) -> Self {
        Self { refresh_after: Some(duration), ..self }
    }

    /// Returns the idle timeout.
    #[doc(alias("max_inactive_interval", "OnInactivity"))]
    #[must_use]
    pub const fn idle(&self) -> Duration {
        self.idle
    }

    /// Returns the absolute timeout.
    #[doc(alias("max_age", "AtDateTime"))]
    #[must_use]
    pub const fn absolute(&self) -> Duration {
        self.absolute
    }

    /// Returns the setting that determines how long the browser keeps the cookie.
    #[must_use]
    pub const fn persistence(&self) -> Persistence {
        self.persistence
    }

    pub(crate) fn refresh_threshold(&self) -> Duration {
        self.refresh_after
            .unwrap_or_else(|| (self.idle / 10).min(Duration::from_secs(60)))
            .min(self.idle / 2)
    }

    /// Returns this lifetime with the timeouts and the persistence that were set for one session. The refresh
    /// policy stays the same.
    pub(crate) fn with_limits_of(self, chosen: Chosen) -> Self {
        Self {
            idle: within_bounds(Duration::from_millis(chosen.idle)),
            absolute: within_bounds(Duration::from_millis(chosen.absolute)),
            persistence: chosen.persistence,
            refresh_after: self.refresh_after,
        }
    }
}

impl Default for Lifetime {
    /// Returns the default timeouts: idle 30 minutes, the upper limit that the OWASP Session Management Cheat
    /// Sheet gives for low-risk applications; absolute 24 hours, the limit that NIST SP 800-63B-4 sets for
    /// AAL2.
    fn default() -> Self {
        Self::new(Duration::from_secs(30 * 60), Duration::from_secs(24 * 60 * 60))
    }
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

const fn hours(hours: u64) -> Duration {
    minutes(60 * hours)
}

const fn within_bounds(duration: Duration) -> Duration {
    if duration.as_millis() == 0 {
        Duration::from_millis(1)
    } else if duration.as_millis() > Lifetime::MAX.as_millis() {
        Lifetime::MAX
    } else {
        duration
    }
}

/// The timeouts and the persistence that were set for one session, as stored. Timeouts are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) idle: u64,
    pub(crate) absolute: u64,
    pub(crate) persistence: Persistence,
}

impl From<Lifetime> for Chosen {
    fn from(lifetime: Lifetime) -> Self {
        Self {
            idle: millis(lifetime.idle),
            absolute: millis(lifetime.absolute),
            persistence: lifetime.persistence,
        }
    }
}

/// The times and deadlines of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clocks {
    pub(crate) created: Millis,
    /// When the user last authenticated; `None` while the session is anonymous.
    pub(crate) authenticated: Option<Millis>,
    pub(crate) last_seen: Millis,
    pub(crate) idle_deadline: Millis,
    pub(crate) absolute_deadline: Millis,
}

impl Clocks {
    pub(crate) fn start(now: Millis, lifetime: &Lifetime) -> Self {
        Self {
            created: now,
            authenticated: None,
            last_seen: now,
            idle_deadline: now.plus(lifetime.idle),
            absolute_deadline: now.plus(lifetime.absolute),
        }
    }

    /// Returns the time at which the session expires if it is not used again.
    pub(crate) fn deadline(&self) -> Millis {
        self.idle_deadline.min(self.absolute_deadline)
    }

    pub(crate) fn expired(&self, now: Millis) -> bool {
        now >= self.deadline()
    }

    /// Returns how long the store keeps the record. Never zero, because zero would mean "forever".
    pub(crate) fn ttl(&self, now: Millis) -> Duration {
        self.deadline().since(now).max(Duration::from_millis(1))
    }

    /// Returns how long the browser keeps a persistent cookie.
    pub(crate) fn cookie_age(&self, now: Millis) -> Duration {
        self.absolute_deadline.since(now).min(Lifetime::MAX_COOKIE_AGE)
    }

    /// Returns whether a request that only reads must extend the idle timeout, which costs a write.
    pub(crate) fn refresh_due(&self, now: Millis, lifetime: &Lifetime) -> bool {
        now.since(self.last_seen) >= lifetime.refresh_threshold()
            // An extension has no effect if the absolute timeout already comes first.
            && self.idle_deadline < self.absolute_deadline
    }

    /// Records a use of the session. Never shortens the timeout, even if an earlier use was recorded by a
    /// process whose clock is ahead.
    pub(crate) fn used(&mut self, now: Millis, lifetime: &Lifetime) {
        self.last_seen = self.last_seen.max(now);
        self.idle_deadline = self.idle_deadline.max(now.plus(lifetime.idle));
    }

    /// Records an authentication, which restarts both timeouts (NIST SP 800-63B-4 5.2).
    pub(crate) fn authenticated(&mut self, now: Millis, lifetime: &Lifetime) {
        self.authenticated = Some(now);
        self.last_seen = now;
        self.idle_deadline = now.plus(lifetime.idle);
        self.absolute_deadline = now.plus(lifetime.absolute);
    }

    /// Limits the session so that it ends at this time at the latest.
    pub(crate) fn end_by(&mut self, end: Millis) {
        self.absolute_deadline = self.absolute_deadline.min(end);
    }

    /// Applies a different lifetime. The absolute timeout still counts from the sign-in, or from the
    /// session's creation if no user has signed in.
    pub(crate) fn limits_changed(&mut self, now: Millis, lifetime: &Lifetime) {
        let began = self.authenticated.unwrap_or(self.created).max(self.created);
        self.last_seen = self.last_seen.max(now);
        self.idle_deadline = now.plus(lifetime.idle);
        self.absolute_deadline = began.plus(lifetime.absolute);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Millis;

    #[test]
    fn lifetime_limits_match_documentation() {
        assert_eq!(Lifetime::MAX, Duration::from_secs(316_224_000));
        assert_eq!(Lifetime::MAX_COOKIE_AGE, Duration::from_secs(34_560_000));
    }

    #[test]
    fn lifetime_presets_match_standards() {
        for (preset, idle, absolute) in [
            (Lifetime::owasp_low_risk(), 30, 8 * 60),
            (Lifetime::owasp_high_risk(), 5, 4 * 60),
            (Lifetime::nist_aal1(), 30 * 24 * 60, 30 * 24 * 60),
            (Lifetime::nist_aal2(), 60, 24 * 60),
            (Lifetime::nist_aal3(), 15, 12 * 60),
        ] {
            assert_eq!((preset.idle(), preset.absolute()), (secs(60 * idle), secs(60 * absolute)));
            assert!(preset.is_within(&preset));
            let (longer_idle, longer) = (secs(60 * idle + 1), secs(60 * absolute + 1));
            assert!(!Lifetime::new(longer_idle, preset.absolute()).is_within(&preset));
            assert!(!Lifetime::new(preset.idle(), longer).is_within(&preset));
        }
    }

    const T0: Millis = Millis(1_800_000_000_000);

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn after(n: u64) -> Millis {
        T0.plus(secs(n))
    }

    #[test]
    fn each_deadline_ends_session_to_the_millisecond() {
        let clocks = Clocks::start(T0, &Lifetime::new(secs(60), secs(100)));
        assert!(!clocks.expired(Millis(after(60).0 - 1)));
        assert!(clocks.expired(after(60)));
        let mut used = clocks;
        used.used(after(59), &Lifetime::new(secs(60), secs(100)));
        assert!(!used.expired(Millis(after(100).0 - 1)));
        assert!(used.expired(after(100)));
    }

    #[test]
    fn ttl_is_nearer_deadline_and_never_zero() {
        let lifetime = Lifetime::new(secs(60), secs(100));
        let mut clocks = Clocks::start(T0, &lifetime);
        assert_eq!(clocks.ttl(T0), secs(60));
        clocks.used(after(59), &lifetime);
        assert_eq!(clocks.ttl(after(59)), secs(41));
        assert_eq!(clocks.ttl(after(1000)), Duration::from_millis(1));
    }

    #[test]
    fn refresh_is_due_at_threshold() {
        let lifetime = Lifetime::new(secs(600), secs(10_000));
        let clocks = Clocks::start(T0, &lifetime);
        assert!(!clocks.refresh_due(Millis(after(60).0 - 1), &lifetime));
        assert!(clocks.refresh_due(after(60), &lifetime));
        let short = Lifetime::new(secs(10), secs(10_000));
        assert_eq!(short.refresh_threshold(), secs(1));
        assert_eq!(short.refresh_after(secs(5)).refresh_threshold(), secs(5));
        assert_eq!(Lifetime::default().refresh_threshold(), secs(60));
    }

    #[test]
    fn refresh_is_not_due_when_it_cannot_extend_session() {
        let lifetime = Lifetime::new(secs(100), secs(100));
        assert!(!Clocks::start(T0, &lifetime).refresh_due(after(50), &lifetime));
    }

    #[test]
    fn use_never_shortens_session() {
        let lifetime = Lifetime::new(secs(60), secs(1000));
        let mut clocks = Clocks::start(T0, &lifetime);
        clocks.used(Millis(T0.0 - 30_000), &lifetime);
        assert_eq!(clocks, Clocks::start(T0, &lifetime));
    }

    #[test]
    fn sign_in_restarts_both_timeouts() {
        let lifetime = Lifetime::new(secs(60), secs(1000));
        let mut clocks = Clocks::start(T0, &lifetime);
        clocks.authenticated(after(30), &lifetime);
        assert_eq!(clocks.created, T0);
        assert_eq!(clocks.authenticated, Some(after(30)));
        assert_eq!(clocks.idle_deadline, after(90));
        assert_eq!(clocks.absolute_deadline, after(1030));
    }

    #[test]
    fn absolute_timeout_of_changed_lifetime_counts_from_sign_in() {
        let lifetime = Lifetime::new(secs(60), secs(1000));
        let mut clocks = Clocks::start(T0, &lifetime);
        clocks.limits_changed(after(10), &Lifetime::new(secs(20), secs(500)));
        assert_eq!(clocks.idle_deadline, after(30));
        assert_eq!(clocks.absolute_deadline, after(500));
        clocks.authenticated(after(20), &lifetime);
        clocks.limits_changed(after(30), &Lifetime::new(secs(20), secs(500)));
        assert_eq!(clocks.absolute_deadline, after(520));
    }

    #[test]
    fn cookie_age_is_capped_at_400_days() {
        let year = secs(366 * 24 * 60 * 60);
        let clocks = Clocks::start(T0, &Lifetime::new(year * 2, year * 2));
        assert_eq!(clocks.cookie_age(T0), Lifetime::MAX_COOKIE_AGE);
        let clocks = Clocks::start(T0, &Lifetime::new(secs(10), secs(20)));
        assert_eq!(clocks.cookie_age(after(5)), secs(15));
        assert_eq!(clocks.cookie_age(after(50)), Duration::ZERO);
    }

    #[test]
    fn no_duration_overflows() {
        let lifetime = Lifetime::new(Duration::MAX, Duration::MAX);
        assert_eq!(lifetime.absolute(), Lifetime::MAX);
        let clocks = Clocks::start(Millis(u64::MAX - 1), &lifetime);
        assert_eq!(clocks.absolute_deadline, Millis(u64::MAX));
        assert_eq!(Lifetime::new(Duration::ZERO, Duration::ZERO).idle(), Duration::from_millis(1));
        assert_eq!(Millis(u64::MAX).to_time(), None);
    }
}
