//! Tools for tests: cookies for signed-in users, a conformance suite for stores, and test doubles for stores,
//! clocks and randomness.
//!
//! - [`signed_in`] returns the cookie of a signed-in user. [`cookie`] returns the cookie of a session in any other
//!   state.
//! - [`ManualClock`] advances only when a test tells it to.
//! - [`SpyStore`] records the commands that are sent to a store.
//! - [`FaultStore`] makes commands fail, hang or wait on demand.
//! - [`FailingEntropy`] fails to provide random bytes.
//! - [`conformance!`] checks an implementation of [`Store`](crate::store::Store) against its contract.
//!
//! None of this is for production. Enable the `testing` feature in your dev-dependencies.
//!
//! # Testing an application
//!
//! Use a memory store, a clock that the test controls, and the cookie of a signed-in user. Give the store and the
//! sessions the same clock:
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use unsticky::Sessions;
//! use unsticky::exchange::Exchange;
//! use unsticky::store::MemoryStore;
//! use unsticky::testing::{self, ManualClock};
//!
//! let clock = ManualClock::new();
//! let store = MemoryStore::with_clock(clock.clone());
//! let sessions = Sessions::builder(store).clock(clock.clone()).build()?;
//!
//! let cookie = testing::signed_in(&sessions, "alice", |_| Ok(())).await?;
//!
//! // Simulates a request to the application.
//! let who = async || {
//!     let exchange = Exchange::begin(&sessions, [cookie.clone()], None);
//!     exchange.handle().session().await.map(|session| session.principal())
//! };
//! assert_eq!(who().await?.as_deref(), Some("alice"));
//!
//! // The default idle timeout is 30 minutes.
//! clock.advance(Duration::from_secs(30 * 60));
//! assert_eq!(who().await?, None);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "memory"))]
//! # fn main() {}
//! ```
//!
//! The documentation of [`signed_in`] shows tests with requests through axum and through actix-web. To test a
//! single handler without a server, use [`Session::detached`](crate::Session::detached).

pub mod clauses;
mod conformance;
mod doubles;
mod subject;
mod visitor;

pub use self::conformance::conformance;
pub use self::doubles::{Command, FailingEntropy, Fault, FaultStore, Gate, SpyStore, Verb};
pub use self::subject::Subject;
pub use self::visitor::{cookie, signed_in};
pub use crate::clock::manual::ManualClock;
pub use crate::store::samples::{random_key, random_record};
