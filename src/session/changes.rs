//! What a request does to its session, and the plan it leads to.

use std::sync::Arc;

use super::SessionId;
use super::delta::Delta;
use super::lifetime::{Lifetime, Millis};
use super::plan::{self, Plan, Situation};
use super::record::{Header, Record, Values};
use crate::directory::SignIn;
use crate::error::Result;
use crate::store::{StoreKey, Version};

/// A session as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) id: SessionId,
    pub(crate) key: StoreKey,
    pub(crate) record: Record,
    pub(crate) version: Version,
}

impl Loaded {
    /// The same session as a later write left it.
    pub(crate) fn at(&self, record: Record, version: Version) -> Arc<Self> {
        Arc::new(Self { id: self.id, key: self.key.clone(), record, version })
    }
}

/// Something that the handler asked for, and when: the number of the change.
#[derive(Debug, Clone)]
struct Intent<T> {
    value: T,
    at: u64,
}

/// What a request does to its session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    pub(crate) delta: Delta,
    /// The loaded session is to end; everything else belongs to the one after it.
    ended: Option<Intent<()>>,
    sign_in: Option<Intent<SignIn>>,
    rotate: Option<Intent<()>>,
    lifetime: Option<Intent<Lifetime>>,
    end_by: Option<Intent<Millis>>,
}

impl Changes {
    /// The loaded session ends here, and what was done to it with it.
    pub(crate) fn end(&mut self) {
        self.delta.start_over();
        let ended = Some(Intent { value: (), at: self.delta.mark() });
        *self = Self { delta: std::mem::take(&mut self.delta), ended, ..Self::default() };
    }

    /// Somebody is signed in. What was done for somebody else before is dropped.
    pub(crate) fn sign_in(&mut self, sign_in: &SignIn, loaded: Option<&Loaded>) {
        let signed_in = self.signed_in(loaded);
        if signed_in.is_some_and(|signed_in| *signed_in != sign_in.principal) {
            self.delta.start_over();
        }
        self.sign_in = Some(Intent { value: sign_in.clone(), at: self.delta.mark() });
    }

    pub(crate) fn rotate(&mut self) {
        self.rotate = Some(Intent { value: (), at: self.delta.mark() });
    }

    pub(crate) fn set_lifetime(&mut self, lifetime: Lifetime) {
        self.lifetime = Some(Intent { value: lifetime, at: self.delta.mark() });
    }

    pub(crate) fn set_end(&mut self, end_by: Millis) {
        self.end_by = Some(Intent { value: end_by, at: self.delta.mark() });
    }

    /// Drops everything.
    pub(crate) fn discard(&mut self) {
        self.delta.discard();
        *self = Self { delta: std::mem::take(&mut self.delta), ..Self::default() };
    }

    /// Drops everything but an end.
    pub(crate) fn keep_end(&mut self) {
        let ended = self.ended.take();
        self.discard();
        self.ended = ended;
    }

    /// Drops what was done up to a bookmark: it was committed.
    pub(crate) fn forget(&mut self, bookmark: u64) {
        fn later<T>(intent: &mut Option<Intent<T>>, bookmark: u64) {
            *intent = intent.take().filter(|intent| intent.at > bookmark);
        }
        later(&mut self.ended, bookmark);
        later(&mut self.sign_in, bookmark);
        later(&mut self.rotate, bookmark);
        later(&mut self.lifetime, bookmark);
        later(&mut self.end_by, bookmark);
        self.delta.forget(bookmark);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.delta.is_empty()
            && self.ended.is_none()
            && self.sign_in.is_none()
            && self.rotate.is_none()
            && !self.changes_age()
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Who is to be signed in.
    pub(crate) fn principal(&self) -> Option<&Arc<str>> {
        self.signing_in().map(|sign_in| &sign_in.principal)
    }

    pub(crate) fn signing_in(&self) -> Option<&SignIn> {
        self.sign_in.as_ref().map(|intent| &intent.value)
    }

    pub(crate) fn lifetime(&self) -> Option<Lifetime> {
        self.lifetime.as_ref().map(|intent| intent.value)
    }

    pub(crate) fn end_by(&self) -> Option<Millis> {
        self.end_by.as_ref().map(|intent| intent.value)
    }

    /// Whether the browser is to be told of another age of its cookie, which takes a new secret.
    pub(crate) fn changes_age(&self) -> bool {
        self.lifetime.is_some() || self.end_by.is_some()
    }

    /// Who is signed in as far as this request can tell.
    pub(crate) fn signed_in<'a>(&'a self, loaded: Option<&'a Loaded>) -> Option<&'a Arc<str>> {
        let stored = || self.base(loaded).and_then(|base| base.record.header.principal.as_ref());
        self.principal().or_else(stored)
    }

    /// The loaded session, if this request still goes on with it.
    pub(crate) fn base<'a>(&self, loaded: Option<&'a Loaded>) -> Option<&'a Loaded> {
        loaded.filter(|loaded| !self.is_ended() && self.sign_in_on(loaded) != plan::SignIn::Another)
    }

    /// The values that the delta stands on.
    pub(crate) fn base_values(&self, loaded: Option<&Loaded>) -> Values {
        self.base(loaded).map(|base| base.record.values.clone()).unwrap_or_default()
    }

    /// Whether a sign-in leaves only marked values of the record: it was anybody's before.
    pub(crate) fn only_surviving(&self, header: &Header) -> bool {
        self.sign_in.is_some() && header.principal.is_none()
    }

    /// Computes the view anew: what it stands on has changed.
    ///
    /// Calls the functions of updates, so no lock may be held.
    pub(crate) fn rebase(&mut self, loaded: Option<&Loaded>) -> Result<()> {
        let values = self.base_values(loaded);
        let only_surviving =
            self.base(loaded).is_some_and(|base| self.only_surviving(&base.record.header));
        let view = self.delta.replay(&values, only_surviving)?;
        self.delta.show(view);
        Ok(())
    }

    fn sign_in_on(&self, loaded: &Loaded) -> plan::SignIn {
        match (self.principal(), &loaded.record.header.principal) {
            (None, _) => plan::SignIn::No,
            (Some(new), Some(old)) if new != old => plan::SignIn::Another,
            (Some(_), _) => plan::SignIn::Here,
        }
    }

    /// The plan for what was done so far.
    pub(crate) fn plan(&self, standing: &Standing<'_>) -> Plan {
        let Standing { loaded, presented, now, configured, is_activity, failed, decides, lost } =
            *standing;
        let sign_in = match loaded {
            Some(loaded) => self.sign_in_on(loaded),
            None if self.sign_in.is_some() => plan::SignIn::Here,
            None => plan::SignIn::No,
        };
        let changed = || self.delta.view().differs_from(&self.base_values(loaded));
        plan::decide(Situation {
            presented,
            known: loaded.is_some(),
            // What a decision will change is not known before it is made.
            changed: decides || (!self.delta.is_empty() && changed()),
            ended: self.is_ended(),
            sign_in,
            new_secret: self.rotate.is_some() || self.changes_age(),
            refresh_due: is_activity
                && loaded.is_some_and(|loaded| {
                    let header = &loaded.record.header;
                    header.clocks.refresh_due(now, &header.lifetime(configured))
                }),
            failed,
            lost,
        })
    }
}

/// What is known of a request besides its changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    pub(crate) loaded: Option<&'a Loaded>,
    pub(crate) presented: bool,
    pub(crate) now: Millis,
    pub(crate) configured: &'a Lifetime,
    pub(crate) is_activity: bool,
    pub(crate) failed: bool,
    /// A `transact` is to decide.
    pub(crate) decides: bool,
    pub(crate) lost: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked for while a commit is under way is left for the next one.
    #[test]
    fn what_was_committed_is_forgotten_and_what_came_later_is_not() {
        let mut changes = Changes::default();
        assert!(changes.is_empty());
        changes.sign_in(&SignIn::new("alice"), None);
        changes.rotate();
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
}
