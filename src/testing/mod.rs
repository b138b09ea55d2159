//! For tests: the conformance suite that any store must pass, and doubles for stores, the clock
//! and the randomness.
//!
//! - [`conformance!`] runs the contract of [`Store`](crate::store::Store) against a store of yours.
//! - [`ManualClock`] stands still until it is told otherwise.
//! - [`SpyStore`] remembers which commands were sent.
//! - [`FaultStore`] fails, hangs and waits on demand.
//! - [`FailingEntropy`] has no randomness.
//!
//! Not for production; the feature `testing` belongs among the dev-dependencies.

pub mod clauses;
mod conformance;
mod doubles;
mod subject;

pub use self::conformance::conformance;
pub use self::doubles::{Command, FailingEntropy, Fault, FaultStore, Gate, SpyStore, Verb};
pub use self::subject::Subject;
pub use crate::clock::manual::ManualClock;
pub use crate::store::samples::{random_key, random_record};
