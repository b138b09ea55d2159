//! For tests: visitors with a session, the conformance suite that any store must pass, and doubles for
//! stores, the clock and the randomness.
//!
//! - [`signed_in`] is the cookie of somebody who is signed in, in one line; [`cookie`] is any other.
//! - [`conformance!`] runs the contract of [`Store`](crate::store::Store) against a store of yours.
//! - [`ManualClock`] stands still until it is told otherwise.
//! - [`SpyStore`] remembers which commands were sent.
//! - [`FaultStore`] fails, hangs and waits on demand.
//! - [`FailingEntropy`] has no randomness.
//!
//! Not for production; the feature `testing` belongs among the dev-dependencies.
//!
//! # Tests of an application
//!
//! Sessions over a store in memory, a clock that the test sets, and visitors who are signed in already. The
//! store and the sessions get the same clock:
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
//! // In place of a request through the application.
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
//! [`signed_in`] shows requests through axum and through actix-web. A unit test of a single handler needs no
//! store: [`Session::detached`](crate::Session::detached).

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
