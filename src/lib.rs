//! Server-side sessions for stateless processes.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "actix")]
pub mod actix;
mod clock;
mod commit;
mod config;
mod cookie;
mod error;
mod event;
pub mod exchange;
mod queue;
mod session;
mod settle;
mod signed_in;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "tower")]
pub mod tower;

pub use crate::clock::{Clock, SystemClock};
pub use crate::config::{Builder, ConfigError, OnServerError, Sessions};
pub use crate::cookie::{Cookie, SameSite};
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::session::{
    AsKey, Entropy, Key, Lifetime, ParseIdError, Persistence, RuntimeKey, Session, SessionId,
    Transaction,
};
pub use crate::signed_in::{SignInRejection, SignedIn};
pub use crate::store::{ConnectError, Store, connect};
#[cfg(feature = "redis")]
pub use redis;
