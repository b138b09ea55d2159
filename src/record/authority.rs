//! What a request may do with a session, given the secret that the request holds.

use std::sync::Arc;

use crate::record::header::Header;
use crate::record::token::SecretDigest;

/// The authority with which a session is used: the secret from the request's cookie, the newest secret that
/// the request's own handle created, or the application itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority {
    /// `None` if the application itself acts. It needs no secret, because the principal was checked when the
    /// session was opened.
    secret: Option<HeldSecret>,
    principal: Option<Arc<str>>,
    /// Whether the browser has sent this secret back.
    pub(crate) is_presented: bool,
}

/// A secret, and the value that [`Header::sign_ins`] had while the secret was the session's current one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HeldSecret {
    digest: SecretDigest,
    sign_ins: u32,
}

/// Whether the secret that a request holds is still the session's secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecretStatus {
    /// Either the request holds the session's current secret, or the application itself acts and the
    /// session's principal is unchanged.
    Current,
    /// Another request has rotated the secret.
    Rotated,
    /// A sign-in, a step-up or `revoke_others` in another request has replaced the secret.
    Superseded,
}

impl Authority {
    /// Returns the authority of a request that holds the secret whose digest is in this header.
    pub(crate) fn of(header: &Header, is_presented: bool) -> Self {
        let secret = Some(HeldSecret { digest: header.digest, sign_ins: header.sign_ins });
        Self { secret, principal: header.principal.clone(), is_presented }
    }

    /// Returns the application's authority over the session with this header. This authority lasts as long as
    /// the session's principal stays the same, and does not depend on the secret.
    pub(crate) fn over(header: &Header) -> Self {
        Self { secret: None, principal: header.principal.clone(), is_presented: false }
    }

    /// Compares this authority with the session's current header.
    pub(crate) fn status_on(&self, header: &Header) -> SecretStatus {
        if self.principal != header.principal {
            return SecretStatus::Superseded;
        }
        match &self.secret {
            Some(secret) if secret.sign_ins != header.sign_ins => SecretStatus::Superseded,
            Some(secret) if secret.digest != header.digest => SecretStatus::Rotated,
            _ => SecretStatus::Current,
        }
    }

    /// Returns whether the session still has the same principal, or still has none.
    pub(crate) fn is_of_the_same(&self, header: &Header) -> bool {
        self.principal == header.principal
    }
}
