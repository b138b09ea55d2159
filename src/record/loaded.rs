//! A session as a request has read it.

use std::sync::Arc;

use crate::clock::Millis;
use crate::record::authority::{Authority, SecretStatus};
use crate::record::header::Header;
use crate::record::token::SessionId;
use crate::record::values::Values;
use crate::store::{StoreKey, Stored, Version};

/// A session as it was read from a store.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) header: Header,
    pub(crate) values: Values,
}

/// A session as it was read, and what the request may do to it.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) id: SessionId,
    pub(crate) key: StoreKey,
    pub(crate) record: Record,
    pub(crate) version: Version,
    pub(crate) authority: Authority,
}

impl Loaded {
    /// A session that a request holds the secret of, or that it only looks at. `is_presented`: the browser
    /// has sent the secret back.
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

    /// The same session as a later write left it.
    pub(crate) fn at(&self, record: Record, version: Version) -> Arc<Self> {
        Arc::new(Self {
            id: self.id,
            key: self.key.clone(),
            record,
            version,
            authority: self.authority.clone(),
        })
    }

    /// The same session after a write that gave it a secret of this request's own.
    pub(crate) fn renewed(&self, record: Record, version: Version) -> Arc<Self> {
        Arc::new(Self::new(self.id, self.key.clone(), record, version, false))
    }

    /// The same session for the application, which acts on it by no secret.
    pub(crate) fn opened(&self) -> Arc<Self> {
        Arc::new(Self { authority: Authority::over(&self.record.header), ..self.clone() })
    }

    /// The record as the store holds it.
    pub(crate) fn stored(&self) -> Stored {
        Stored::new(self.record.values.source().clone(), self.version)
    }

    /// What the request's secret is worth on the session as it was read.
    pub(crate) fn secret_status(&self) -> SecretStatus {
        self.authority.status_on(&self.record.header)
    }
}

/// A session that a request has lost: it is gone, was signed in anew, or has another secret.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    /// As it was read before: a sign-out still ends it where it may.
    pub(crate) session: Arc<Loaded>,
    /// It is no more.
    pub(crate) is_gone: bool,
}

impl Lost {
    /// Why it is lost, as far as this request can tell at this moment.
    pub(crate) fn loss(&self, now: Millis) -> Loss {
        match self.is_gone {
            false => Loss::Superseded,
            true if self.session.record.header.clocks.expired(now) => Loss::Expired,
            true => Loss::Ended,
        }
    }
}

/// Why a request has lost its session; see [`Session::loss`](crate::Session::loss).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// The session has a new secret: another request rotated it, gave it another lifetime, or signed in
    /// on it. The browser has the new cookie, so a client that connects again is let in.
    Superseded,
    /// The deadline that this handle knew has passed: nobody used the session for its idle timeout, or it
    /// reached its absolute timeout. The user must sign in again.
    Expired,
    /// The session was signed out or revoked, somebody else signed in in the same browser, or the store lost
    /// it. The user must sign in again.
    Ended,
}

/// A session as its request finds it when it looks again.
#[derive(Debug)]
pub(crate) enum Standing {
    Valid(Arc<Loaded>),
    Lost {
        /// It is no more.
        is_gone: bool,
    },
}

impl Standing {
    /// `found` is the session as the store has it.
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
