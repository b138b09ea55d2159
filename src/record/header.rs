//! What is stored of a session: header and values.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Millis;
use crate::record::lifetime::{Chosen, Clocks, Lifetime};
use crate::record::tag::{Tag, Tags};
use crate::record::token::SecretDigest;

/// Everything about a session but its values.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tags: Tags,
    pub(crate) digest: SecretDigest,
    pub(crate) clocks: Clocks,
    /// The limits this session chose for itself, where it did.
    pub(crate) chosen: Option<Chosen>,
    /// The moment that no deadline goes beyond.
    pub(crate) end_by: Option<Millis>,
    pub(crate) principal: Option<Arc<str>>,
    /// How often somebody signed in on this session, or revoked the others from it: tells a
    /// rotation, after which changes made with the old secret are merged, from a sign-in, after which
    /// they are not.
    pub(crate) sign_ins: u32,
    /// The cookie of the last sign-in has not come back yet; kept where new sign-ins are refused.
    pub(crate) is_unconfirmed: bool,
    /// Fields of later releases, kept as they are.
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

    /// The lifetime that holds: the session's own, or the configured one.
    pub(crate) fn effective_lifetime(&self, configured: &Lifetime) -> Lifetime {
        self.chosen.map_or(*configured, |chosen| configured.with_limits_of(chosen))
    }

    /// Whether this lifetime would be another than the one the session has chosen.
    pub(crate) fn differs_in_lifetime(&self, lifetime: Option<Lifetime>) -> bool {
        lifetime.is_some_and(|lifetime| self.chosen != Some(lifetime.into()))
    }

    /// Whether this end would be another than the one the session has.
    pub(crate) fn differs_in_end(&self, end_by: Option<Millis>) -> bool {
        end_by.is_some_and(|end_by| self.end_by != Some(end_by))
    }

    /// The header after a write that does this.
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
            // It starts from the configuration, unless this very request chooses.
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

/// What a write does to a header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update<'a> {
    pub(crate) now: Millis,
    pub(crate) tag: Tag,
    pub(crate) configured: &'a Lifetime,
    /// A new secret's digest.
    pub(crate) digest: Option<SecretDigest>,
    pub(crate) lifetime: Option<Lifetime>,
    /// The moment that no deadline may go beyond.
    pub(crate) end_by: Option<Millis>,
    pub(crate) proof: Authentication<'a>,
    /// Whether everything under way with an older secret is to find the session signed in anew.
    pub(crate) supersedes: bool,
    /// What becomes of the mark of a cookie that has not come back; `None` leaves it.
    pub(crate) is_unconfirmed: Option<bool>,
    /// Whether the request counts as use of the session.
    pub(crate) is_activity: bool,
}

impl<'a> Update<'a> {
    /// A write that changes nothing of the header.
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

/// Whether somebody proves who they are with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authentication<'a> {
    None,
    SignIn(&'a Arc<str>),
    /// The one who is signed in already.
    StepUp,
}
