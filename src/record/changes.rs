//! The changes that a request makes to its session, and the plan that follows from them.

use std::sync::Arc;

use crate::clock::Millis;
use crate::error::Result;
use crate::record::delta::Delta;
use crate::record::header::{Authentication, Header};
use crate::record::lifetime::Lifetime;
use crate::record::loaded::Loaded;
use crate::record::plan;
use crate::record::plan::{KnownSession, Plan, Refresh, Requested, SignInTarget, Situation};
use crate::record::sign_in::SignIn;
use crate::record::values::{NO_VALUES, OnSignIn, Values};

/// A change that the handler asked for, with its sequence number.
#[derive(Debug, Clone)]
struct Intent<T> {
    value: T,
    at: u64,
}

/// The kinds of rotation without a sign-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// Requests under way with an older secret may still save values.
    Plain,
    /// Requests under way with an older secret lose the session, as after a sign-in.
    Superseding,
}

/// The changes that a request makes to its session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    pub(crate) delta: Delta,
    /// Set if the handler destroyed the loaded session. All other changes then belong to the session that
    /// follows.
    ended: Option<Intent<()>>,
    sign_in: Option<Intent<SignIn>>,
    rotate: Option<Intent<Rotation>>,
    lifetime: Option<Intent<Lifetime>>,
    end_by: Option<Intent<Millis>>,
    /// The lifetime and the time limit that this request has already committed. A later sign-in in the same
    /// request keeps them.
    chosen: (Option<Lifetime>, Option<Millis>),
}

impl Changes {
    /// Records that the loaded session ends, and drops the changes made to it, except those that
    /// [`Delta::start_over`] keeps.
    pub(crate) fn end(&mut self) {
        self.delta.start_over();
        let ended = Some(Intent { value: (), at: self.delta.mark() });
        *self = Self { delta: std::mem::take(&mut self.delta), ended, ..Self::default() };
    }

    /// Records a sign-in. If a different principal was signed in, first drops the changes to values made so
    /// far, except those that [`Delta::start_over`] keeps.
    pub(crate) fn sign_in(&mut self, sign_in: &SignIn, loaded: Option<&Loaded>) {
        let signed_in = self.signed_in(loaded);
        if signed_in.is_some_and(|signed_in| *signed_in != sign_in.principal) {
            self.delta.start_over();
        }
        self.sign_in = Some(Intent { value: sign_in.clone(), at: self.delta.mark() });
    }

    pub(crate) fn rotate(&mut self, rotation: Rotation) {
        let earlier = self.rotate.as_ref().map(|intent| intent.value);
        let value =
            if earlier == Some(Rotation::Superseding) { Rotation::Superseding } else { rotation };
        self.rotate = Some(Intent { value, at: self.delta.mark() });
    }

    pub(crate) fn set_lifetime(&mut self, lifetime: Lifetime) {
        self.lifetime = Some(Intent { value: lifetime, at: self.delta.mark() });
    }

    pub(crate) fn set_end(&mut self, end_by: Millis) {
        self.end_by = Some(Intent { value: end_by, at: self.delta.mark() });
    }

    /// Drops all changes.
    pub(crate) fn discard(&mut self) {
        self.delta.discard();
        *self = Self { delta: std::mem::take(&mut self.delta), ..Self::default() };
    }

    /// Drops the changes up to a bookmark, because their commit failed. If `keeps_end` is set, a requested
    /// end of the session stays pending.
    pub(crate) fn drop_until(&mut self, bookmark: u64, keeps_end: bool) {
        let ended = self.ended.take_if(|ended| keeps_end || ended.at > bookmark);
        let chosen = self.chosen;
        self.forget(bookmark);
        (self.ended, self.chosen) = (ended, chosen);
        // The view was computed with the dropped changes, so it is no longer valid.
        self.delta.hide();
    }

    /// Drops the changes that require a new cookie. Drops all changes if they belong to a new session,
    /// because that session could not be used without a cookie.
    pub(crate) fn drop_what_needs_a_cookie(&mut self) {
        if self.sign_in.is_some() || self.ended.is_some() {
            self.discard();
        }
        (self.rotate, self.lifetime, self.end_by) = (None, None, None);
    }

    /// Drops a superseding rotation.
    pub(crate) fn forget_superseding(&mut self) {
        self.rotate.take_if(|rotate| rotate.value == Rotation::Superseding);
    }

    /// Drops the request to end the session if it was made up to this bookmark, because it has been carried
    /// out.
    pub(crate) fn forget_end(&mut self, bookmark: u64) {
        taken(&mut self.ended, bookmark);
    }

    /// Drops the changes up to a bookmark, because they were committed or because their commit failed.
    pub(crate) fn forget(&mut self, bookmark: u64) {
        if taken(&mut self.ended, bookmark).is_some() {
            self.chosen = (None, None);
        }
        taken(&mut self.sign_in, bookmark);
        taken(&mut self.rotate, bookmark);
        self.chosen.0 = taken(&mut self.lifetime, bookmark).or(self.chosen.0);
        self.chosen.1 = taken(&mut self.end_by, bookmark).or(self.chosen.1);
        self.delta.forget(bookmark);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.delta.is_empty() && self.intents().all(|at| at.is_none())
    }

    /// Returns the sequence numbers of all changes other than those to values.
    fn intents(&self) -> impl Iterator<Item = Option<u64>> {
        fn at<T>(intent: &Option<Intent<T>>) -> Option<u64> {
            intent.as_ref().map(|intent| intent.at)
        }
        let (ended, sign_in, rotate) = (at(&self.ended), at(&self.sign_in), at(&self.rotate));
        [ended, sign_in, rotate, at(&self.lifetime), at(&self.end_by)].into_iter()
    }

    /// Returns the number of pending changes.
    pub(crate) fn pending(&self) -> usize {
        self.pending_after(0)
    }

    /// Returns the number of pending changes after a bookmark.
    pub(crate) fn pending_after(&self, bookmark: u64) -> usize {
        let later = self.intents().flatten().filter(|at| *at > bookmark);
        self.delta.pending_after(bookmark) + later.count()
    }

    /// Returns whether a new session must be created after the loaded one ends.
    pub(crate) fn begins_a_session(&self) -> bool {
        self.sign_in.is_some() || self.delta.view().differs_from(&NO_VALUES)
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Returns the principal that this request signs in or steps up.
    pub(crate) fn principal(&self) -> Option<&Arc<str>> {
        self.signing_in().map(|sign_in| &sign_in.principal)
    }

    /// Returns the sign-in or step-up of this request.
    pub(crate) fn signing_in(&self) -> Option<&SignIn> {
        self.sign_in.as_ref().map(|intent| &intent.value)
    }

    /// Returns how this request authenticates the user: by a sign-in, by a step-up, or not at all.
    pub(crate) fn proof(&self) -> Authentication<'_> {
        match self.signing_in() {
            None => Authentication::None,
            Some(sign_in) if sign_in.is_step_up => Authentication::StepUp,
            Some(sign_in) => Authentication::SignIn(&sign_in.principal),
        }
    }

    pub(crate) fn lifetime(&self) -> Option<Lifetime> {
        let own = self.lifetime.as_ref().map(|intent| intent.value);
        own.or(self.chosen.0.filter(|_| matches!(self.proof(), Authentication::SignIn(_))))
    }

    pub(crate) fn end_by(&self) -> Option<Millis> {
        let own = self.end_by.as_ref().map(|intent| intent.value);
        own.or(self.chosen.1.filter(|_| matches!(self.proof(), Authentication::SignIn(_))))
    }

    /// Returns whether this request makes a superseding rotation.
    pub(crate) fn supersedes(&self) -> bool {
        self.rotate.as_ref().is_some_and(|intent| intent.value == Rotation::Superseding)
    }

    /// Returns the reason that events give for a new secret without a sign-in. `before` is the session's
    /// header before this commit.
    pub(crate) fn rotation_reason(&self, before: &Header) -> &'static str {
        if self.supersedes() {
            "others_revoked"
        } else if before.differs_in_lifetime(self.lifetime()) {
            "lifetime"
        } else if before.differs_in_end(self.end_by()) {
            "end"
        } else {
            "rotation"
        }
    }

    /// Returns what this request asks of a session with this header, apart from changes to values.
    pub(crate) fn requested(&self, header: &Header) -> Requested {
        let proof = self.proof();
        Requested {
            signs_in: matches!(proof, Authentication::SignIn(_)),
            steps_up: proof == Authentication::StepUp,
            rotates: self.rotate.is_some(),
            supersedes: self.supersedes(),
            // A lifetime or a time limit that the session already has is not a change.
            changes_lifetime: header.differs_in_lifetime(self.lifetime())
                || header.differs_in_end(self.end_by()),
        }
    }

    /// Returns the signed-in principal, as far as this request knows.
    pub(crate) fn signed_in<'a>(&'a self, loaded: Option<&'a Loaded>) -> Option<&'a Arc<str>> {
        let stored = || self.base(loaded).and_then(|base| base.record.header.principal.as_ref());
        self.principal().or_else(stored)
    }

    /// Returns the loaded session, unless this request ends or replaces it.
    pub(crate) fn base<'a>(&self, loaded: Option<&'a Loaded>) -> Option<&'a Loaded> {
        loaded.filter(|loaded| !self.is_ended() && self.proves_on(loaded) != SignInTarget::Other)
    }

    /// Returns the values to which the delta is applied.
    pub(crate) fn base_values<'a>(&self, loaded: Option<&'a Loaded>) -> &'a Values {
        self.base(loaded).map_or(&NO_VALUES, |base| &base.record.values)
    }

    /// Returns how the sign-in of this request affects the values of a session with this header.
    pub(crate) fn on_sign_in(&self, header: &Header) -> OnSignIn {
        match self.proof() {
            // An attacker whose session is revoked may know this session's CSRF token, so the token is
            // dropped, as it is when the user signs in again.
            Authentication::None if self.supersedes() => OnSignIn::Again,
            Authentication::None => OnSignIn::Nobody,
            _ if header.principal.is_none() => OnSignIn::First,
            Authentication::StepUp => OnSignIn::Nobody,
            Authentication::SignIn(_) => OnSignIn::Again,
        }
    }

    /// Recomputes the view, because the values to which the changes apply have changed.
    ///
    /// Calls the application's update functions, so the caller must not hold a lock.
    pub(crate) fn rebase(&mut self, loaded: Option<&Loaded>) -> Result<()> {
        let values = self.base_values(loaded);
        let base = self.base(loaded);
        let sign_in = base.map(|base| self.on_sign_in(&base.record.header)).unwrap_or_default();
        let view = self.delta.replay(values, sign_in)?;
        self.delta.show(view);
        Ok(())
    }

    fn proves_on(&self, loaded: &Loaded) -> SignInTarget {
        match (self.proof(), &loaded.record.header.principal) {
            (Authentication::None, _) => SignInTarget::None,
            (Authentication::StepUp, _) => SignInTarget::StepUp,
            (Authentication::SignIn(new), Some(old)) if new != old => SignInTarget::Other,
            (Authentication::SignIn(_), _) => SignInTarget::Same,
        }
    }

    /// Returns the plan for the changes made so far.
    pub(crate) fn plan(&self, facts: &RequestFacts<'_>) -> Plan {
        let RequestFacts {
            loaded,
            session,
            several,
            wants,
            decides,
            outlived,
            is_stale,
            refresh,
            failed,
        } = *facts;
        let proof = match (loaded, self.proof()) {
            (Some(loaded), _) => self.proves_on(loaded),
            (None, Authentication::None) => SignInTarget::None,
            (None, Authentication::StepUp) => SignInTarget::StepUp,
            (None, Authentication::SignIn(_)) => SignInTarget::Same,
        };
        let outlived =
            outlived && !self.is_ended() && !matches!(session, KnownSession::Nothing { .. });
        let (view, values) = (self.delta.view(), self.base_values(loaded));
        let is_lost = session == KnownSession::Lost && !self.is_ended();
        // If the session is lost, its flash messages are dropped. That is not an error for the request.
        let differs = || if is_lost { view.matters_to(values) } else { view.differs_from(values) };
        plan::decide(Situation {
            session,
            // The function passed to `transact` may change anything. After the response has been sent, the
            // record that the handle has read is too old for a comparison.
            changed: decides
                || (outlived
                    && loaded.is_some()
                    && (self.lifetime.is_some() || self.end_by.is_some()))
                || (!self.delta.is_empty() && (outlived || is_stale || differs())),
            ended: self.is_ended(),
            proof,
            several,
            new_secret: wants.new_secret(),
            needs_current_secret: wants.need_current_secret(),
            refresh,
            failed,
        })
    }
}

/// Takes the intent if it was made at or before the bookmark.
fn taken<T>(intent: &mut Option<Intent<T>>, bookmark: u64) -> Option<T> {
    intent.take_if(|intent| intent.at <= bookmark).map(|intent| intent.value)
}

/// What is known about a request apart from its changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestFacts<'a> {
    pub(crate) loaded: Option<&'a Loaded>,
    pub(crate) session: KnownSession,
    /// Whether the request presented several valid tokens.
    pub(crate) several: bool,
    /// What the request asks for, apart from changes to values.
    pub(crate) wants: Requested,
    /// Whether the commit runs a decision, such as the function passed to `transact`.
    pub(crate) decides: bool,
    /// Whether the response has been sent.
    pub(crate) outlived: bool,
    /// Whether the view could not be recomputed from the newest record that was read.
    pub(crate) is_stale: bool,
    pub(crate) refresh: Refresh,
    pub(crate) failed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::lifetime::Lifetime;
    use crate::record::sign_in::SignIn;

    /// A change made while a commit is under way is kept for the next commit.
    #[test]
    fn committed_changes_are_forgotten_and_later_changes_are_kept() {
        let mut changes = Changes::default();
        assert!(changes.is_empty());
        changes.sign_in(&SignIn::new("alice"), None);
        changes.rotate(Rotation::Plain);
        let bookmark = changes.delta.made();
        changes.set_lifetime(Lifetime::default());
        changes.forget(bookmark);
        assert!(changes.sign_in.is_none() && changes.rotate.is_none());
        assert!(changes.lifetime().is_some() && !changes.is_empty());
        changes.end();
        assert!(changes.is_ended() && changes.lifetime().is_none());
        changes.forget(changes.delta.made());
        assert!(changes.is_empty());
    }

    #[test]
    fn sign_in_keeps_lifetime_committed_earlier_in_request() {
        let mut changes = Changes::default();
        changes.set_lifetime(Lifetime::default());
        changes.forget(changes.delta.made());
        assert_eq!(changes.lifetime(), None);
        changes.sign_in(&SignIn::new("alice"), None);
        assert_eq!(changes.lifetime(), Some(Lifetime::default()));
        changes.end();
        assert_eq!(changes.lifetime(), None);
    }

    #[test]
    fn plain_rotation_does_not_weaken_superseding_rotation() {
        let mut changes = Changes::default();
        changes.rotate(Rotation::Superseding);
        changes.rotate(Rotation::Plain);
        assert!(changes.supersedes());
    }
}
