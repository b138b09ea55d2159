//! What a request may do: the secret it acts by, and what has become of that secret.

use std::sync::Arc;

use crate::record::header::Header;
use crate::record::token::SecretDigest;

/// What a request acts by: the secret that its cookie brought, or the newest one that its own handle
/// has made. Or the application acts itself, on the session of a principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority {
    /// `None`: the application acts, by no secret. Whose session it is was checked when it was opened.
    secret: Option<HeldSecret>,
    principal: Option<Arc<str>>,
    /// The browser has sent this secret back.
    pub(crate) is_presented: bool,
}

/// A secret, and since which sign-in it is the session's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HeldSecret {
    digest: SecretDigest,
    sign_ins: u32,
}

/// What has become of the secret that a request acts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecretStatus {
    /// It is the session's. Or the application acts, and the session is still its principal's.
    Current,
    /// Another request gave the session a new one.
    Rotated,
    /// A sign-in, a step-up or `revoke_others` of another request has replaced it since.
    Superseded,
}

impl Authority {
    /// The authority of who holds this header's secret.
    pub(crate) fn of(header: &Header, is_presented: bool) -> Self {
        let secret = Some(HeldSecret { digest: header.digest, sign_ins: header.sign_ins });
        Self { secret, principal: header.principal.clone(), is_presented }
    }

    /// The authority of the application over the session of this header's principal: whatever secret the
    /// session has.
    pub(crate) fn over(header: &Header) -> Self {
        Self { secret: None, principal: header.principal.clone(), is_presented: false }
    }

    /// What it is worth on the session as it stands now.
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

    /// Whether the session still is of the one it was of, or of nobody as before.
    pub(crate) fn is_of_the_same(&self, header: &Header) -> bool {
        self.principal == header.principal
    }
}
