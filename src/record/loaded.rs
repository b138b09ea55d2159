//! A session that a request has read.

use std::sync::Arc;

use crate::clock::Millis;
use crate::record::authority::{Authority, SecretStatus};
use crate::record::header::Header;
use crate::record::token::SessionId;
use crate::record::values::Values;
use crate::store::{StoreKey, Stored, Version};

/// The decoded record of a session.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) header: Header,
    pub(crate) values: Values,
}

/// A session that was read, and the request's authority to act on it.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) id: SessionId,
    pub(crate) key: StoreKey,
    pub(crate) record: Record,
    pub(crate) version: Version,
    pub(crate) authority: Authority,
}

impl Loaded {
    /// Creates a loaded session whose authority comes from the record's current secret. To act for the
    /// application, which has no secret, use [`opened`](Self::opened). `is_presented` means that the browser
    /// has sent a secret for this session.
    pub(crate) fn new(
        id: SessionId,
        key: StoreKey,
        record: Record,
        version: Version,
        is_presented: bool,
    ) -> Self {
        let authority = Authority::of(&record.header, is_presented);
        Self { id, key, record, version, authority }
    }

    /// Returns the same session after a later write.
    pub(crate) fn at(&self, record: Record, version: Version) -> Arc<Self> {
        Arc::new(Self {
            id: self.id,
            key: self.key.clone(),
            record,
            version,
            authority: self.authority.clone(),
        })
    }

    /// Returns the same session after a write in which this request set a new secret.
    pub(crate) fn renewed(&self, record: Record, version: Version) -> Arc<Self> {
        Arc::new(Self::new(self.id, self.key.clone(), record, version, false))
    }

    /// Returns the same session for the application, which acts on it without a secret.
    pub(crate) fn opened(&self) -> Arc<Self> {
        Arc::new(Self { authority: Authority::over(&self.record.header), ..self.clone() })
    }

    /// Returns the record in its stored form.
    pub(crate) fn stored(&self) -> Stored {
        Stored::new(self.record.values.source().clone(), self.version)
    }

    /// Returns the status that the request's secret had when the session was read.
    pub(crate) fn secret_status(&self) -> SecretStatus {
        self.authority.status_on(&self.record.header)
    }
}

/// A session that a request has lost, because the session ended or another request replaced its secret.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    /// The session as it was last read. A sign-out can still end it.
    pub(crate) session: Arc<Loaded>,
    /// The session has ended.
    pub(crate) is_gone: bool,
}

impl Lost {
    /// Returns the reason for the loss, as far as this request can tell at the time `now`.
    pub(crate) fn loss(&self, now: Millis) -> Loss {
        match self.is_gone {
            false => Loss::Superseded,
            true if self.session.record.header.clocks.expired(now) => Loss::Expired,
            true => Loss::Ended,
        }
    }
}

/// The reason why a request lost its session; see [`Session::loss`](crate::Session::loss).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Another request replaced the secret, for example by rotating it, by changing the lifetime or by
    /// signing in. The browser has the new cookie, so the client can connect again.
    Superseded,
    /// The session has expired, according to the deadline that this handle knew: it reached its idle timeout,
    /// its absolute timeout, or the time set with [`Session::end_by`](crate::Session::end_by). The user must
    /// sign in again.
    Expired,
    /// The user signed out, the session was revoked, another user signed in using the same browser, or the
    /// store lost the record. The user must sign in again.
    Ended,
}

/// The state of a session when the request reads it again.
#[derive(Debug)]
pub(crate) enum Standing {
    Valid(Arc<Loaded>),
    Lost {
        /// The session has ended.
        is_gone: bool,
    },
}

impl Standing {
    /// Determines the state from the session that was read again, or from its absence in the store.
    pub(crate) fn of(found: Option<Arc<Loaded>>, now: Millis) -> Self {
        match found.filter(|session| !session.record.header.clocks.expired(now)) {
            None => Self::Lost { is_gone: true },
            Some(session) if session.secret_status() == SecretStatus::Current => {
                Self::Valid(session)
            }
            Some(_) => Self::Lost { is_gone: false },
        }
    }
}
