//! What a request may do: the secret it acts by, and what has become of that secret.

use std::sync::Arc;

use crate::record::header::Header;
use crate::record::token::SecretDigest;

/// What a request acts by: the secret that its cookie brought, or the newest one that its own handle
/// has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority {
    digest: SecretDigest,
    sign_ins: u32,
    principal: Option<Arc<str>>,
    /// The browser has sent this secret back.
    pub(crate) is_presented: bool,
}

/// What has become of the secret that a request acts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecretStatus {
    /// It is the session's.
    Current,
    /// Another request gave the session a new one.
    Rotated,
    /// A sign-in, a step-up or `revoke_others` of another request has replaced it since.
    Superseded,
}

impl Authority {
    /// The authority of who holds this header's secret.
    pub(crate) fn of(header: &Header, is_presented: bool) -> Self {
        Self {
            digest: header.digest,
            sign_ins: header.sign_ins,
            principal: header.principal.clone(),
            is_presented,
        }
    }

    /// What it is worth on the session as it stands now.
    pub(crate) fn status_on(&self, header: &Header) -> SecretStatus {
        if self.sign_ins != header.sign_ins || self.principal != header.principal {
            SecretStatus::Superseded
        } else if self.digest != header.digest {
            SecretStatus::Rotated
        } else {
            SecretStatus::Current
        }
    }

    /// Whether the session still is of the one it was of, or of nobody as before.
    pub(crate) fn is_of_the_same(&self, header: &Header) -> bool {
        self.principal == header.principal
    }
}
