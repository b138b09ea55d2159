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
#[doc(hidden)]
pub mod internals;

pub use self::conformance::Subject;
#[doc(hidden)]
pub use self::conformance::run_clause;
pub use self::doubles::{
    Command, FailingEntropy, Fault, FaultStore, Gate, ManualClock, SpyStore, Verb, random_key,
    random_record,
};
pub use crate::conformance;
