//! The header of a session's record: everything except the values.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Millis;
use crate::record::lifetime::{Chosen, Clocks, Lifetime};
use crate::record::tag::{Tag, Tags};
use crate::record::token::SecretDigest;

/// The header of a session's record.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tags: Tags,
    pub(crate) digest: SecretDigest,
    pub(crate) clocks: Clocks,
    /// The lifetime set with `Session::set_lifetime`, if any.
    pub(crate) chosen: Option<Chosen>,
    /// The time limit set with `Session::end_by`, if any.
    pub(crate) end_by: Option<Millis>,
    pub(crate) principal: Option<Arc<str>>,
    /// The number of sign-ins, step-ups and `revoke_others` calls in this session. While this number is
    /// unchanged, the secret has at most been rotated: a request with the old secret can still save values
    /// until its response has been sent. Once the number has changed, it cannot.
    pub(crate) sign_ins: u32,
    /// Whether the browser has not yet sent back the cookie from the last sign-in. Recorded only if the limit
    /// on concurrent sessions rejects new sign-ins.
    pub(crate) is_unconfirmed: bool,
    /// Fields that a later release wrote, kept unchanged.
    pub(crate) unknown: Vec<(u8, Bytes)>,
}

impl Header {
    pub(crate) fn new(digest: SecretDigest, now: Millis, lifetime: &Lifetime, tag: Tag) -> Self {
        Self {
            tags: Tags::first(tag),
            digest,
            clocks: Clocks::start(now, lifetime),
            chosen: None,
            end_by: None,
            principal: None,
            sign_ins: 0,
            is_unconfirmed: false,
            unknown: Vec::new(),
        }
    }

    /// Returns the lifetime that applies: the session's own, or the configured one.
    pub(crate) fn effective_lifetime(&self, configured: &Lifetime) -> Lifetime {
        self.chosen.map_or(*configured, |chosen| configured.with_limits_of(chosen))
    }

    /// Returns whether this lifetime, if there is one, differs from the session's own.
    pub(crate) fn differs_in_lifetime(&self, lifetime: Option<Lifetime>) -> bool {
        lifetime.is_some_and(|lifetime| self.chosen != Some(lifetime.into()))
    }

    /// Returns whether this time limit, if there is one, differs from the one that was set for the session.
    pub(crate) fn differs_in_end(&self, end_by: Option<Millis>) -> bool {
        end_by.is_some_and(|end_by| self.end_by != Some(end_by))
    }

    /// Returns the header after a write with this update.
    pub(crate) fn updated(&self, update: &Update<'_>) -> Self {
        let mut header = self.clone();
        header.tags = self.tags.followed_by(update.tag);
        if let Some(digest) = update.digest {
            header.digest = digest;
        }
        let is_other = self.differs_in_lifetime(update.lifetime);
        let has_other_limits = is_other || self.differs_in_end(update.end_by);
        let chosen = update.lifetime.map(Into::into);
        if matches!(update.proof, Authentication::SignIn(_)) {
            // A sign-in starts with the configured lifetime and without a time limit, unless this request
            // sets its own.
            (header.chosen, header.end_by) = (chosen, update.end_by);
        } else {
            (header.chosen, header.end_by) =
                (chosen.or(self.chosen), update.end_by.or(self.end_by));
        }
        if let Some(is_unconfirmed) = update.is_unconfirmed {
            header.is_unconfirmed = is_unconfirmed;
        }
        let lifetime = header.effective_lifetime(update.configured);
        if update.proof != Authentication::None || update.supersedes {
            header.sign_ins = self.sign_ins.saturating_add(1);
        }
        match update.proof {
            Authentication::SignIn(principal) => {
                header.principal = Some(principal.clone());
                header.clocks.authenticated(update.now, &lifetime);
            }
            Authentication::StepUp => header.clocks.authenticated(update.now, &lifetime),
            Authentication::None if has_other_limits => {
                header.clocks.limits_changed(update.now, &lifetime)
            }
            Authentication::None if update.is_activity => header.clocks.used(update.now, &lifetime),
            Authentication::None => {}
        }
        if let Some(end_by) = header.end_by {
            header.clocks.end_by(end_by);
        }
        header
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("clocks", &self.clocks)
            .field("signed_in", &self.principal.is_some())
            .finish_non_exhaustive()
    }
}

/// The changes that a write makes to a header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update<'a> {
    pub(crate) now: Millis,
    pub(crate) tag: Tag,
    pub(crate) configured: &'a Lifetime,
    /// The digest of the new secret, if there is one.
    pub(crate) digest: Option<SecretDigest>,
    pub(crate) lifetime: Option<Lifetime>,
    /// The time limit that the request sets with `Session::end_by`, if any.
    pub(crate) end_by: Option<Millis>,
    pub(crate) proof: Authentication<'a>,
    /// Whether the new secret comes from a superseding rotation, so that requests under way with an older
    /// secret lose the session.
    pub(crate) supersedes: bool,
    /// The new value of [`Header::is_unconfirmed`]. `None` leaves it unchanged.
    pub(crate) is_unconfirmed: Option<bool>,
    /// Whether the request counts as use of the session.
    pub(crate) is_activity: bool,
}

impl<'a> Update<'a> {
    /// Returns an update that changes only the header's tags.
    pub(crate) fn plain(now: Millis, tag: Tag, configured: &'a Lifetime) -> Self {
        Self {
            now,
            tag,
            configured,
            digest: None,
            lifetime: None,
            end_by: None,
            proof: Authentication::None,
            supersedes: false,
            is_unconfirmed: None,
            is_activity: false,
        }
    }
}

/// Whether a write is a sign-in, a step-up, or neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authentication<'a> {
    None,
    SignIn(&'a Arc<str>),
    /// The signed-in principal has authenticated again.
    StepUp,
}
