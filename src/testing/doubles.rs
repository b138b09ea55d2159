//! Test doubles: stores and a source of randomness that behave as a test requires.

#![allow(clippy::expect_used, reason = "a test without randomness can only stop")]

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::store::samples::random_record;
use crate::store::{Created, Deleted, Diagnose, Replaced, Store, StoreKey, Stored, Version};

/// A source of randomness that always fails with [`ErrorKind::Randomness`]. Set it with
/// [`Builder::entropy`](crate::Builder::entropy).
///
/// ```
/// use unsticky::testing::FailingEntropy;
/// use unsticky::{Entropy, ErrorKind};
///
/// let error = FailingEntropy.fill(&mut [0; 16]).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Randomness);
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct FailingEntropy;

impl Entropy for FailingEntropy {
    fn fill(&self, _: &mut [u8]) -> Result<()> {
        Err(Error::new(ErrorKind::Randomness, "injected by a test"))
    }
}

/// One of the four verbs of a [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums)]
pub enum Verb {
    /// [`Store::create`].
    Create,
    /// [`Store::load`].
    Load,
    /// [`Store::replace`].
    Replace,
    /// [`Store::delete`].
    Delete,
}

impl Verb {
    /// All four verbs.
    pub const ALL: [Self; 4] = [Self::Create, Self::Load, Self::Replace, Self::Delete];
}

/// A command that a [`SpyStore`] recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Command {
    /// The verb.
    pub verb: Verb,
    /// The key.
    pub key: StoreKey,
}

/// A decorator that records the commands that are sent to the store inside it. Clones share the list of
/// commands.
///
/// A command is recorded when its call begins, whatever its outcome.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> unsticky::Result<()> {
/// use unsticky::store::{MemoryStore, Store};
/// use unsticky::testing::{SpyStore, Verb, random_key};
///
/// let spy = SpyStore::new(MemoryStore::new());
/// spy.load(&random_key()).await?;
/// assert_eq!(spy.verbs(), [Verb::Load]);
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
pub struct SpyStore<S> {
    inner: Arc<S>,
    log: Arc<Mutex<Vec<Command>>>,
}

impl<S> SpyStore<S> {
    /// Wraps a store and starts with an empty list of commands.
    pub fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner), log: Arc::default() }
    }

    /// Returns the commands that were recorded since the last [`take`](Self::take), in the order in which
    /// they were sent.
    #[must_use]
    pub fn commands(&self) -> Vec<Command> {
        lock(&self.log).clone()
    }

    /// Returns the commands that were recorded since the last `take`, and clears the list.
    pub fn take(&self) -> Vec<Command> {
        std::mem::take(&mut lock(&self.log))
    }

    /// Returns the verbs of [`commands`](Self::commands).
    #[must_use]
    pub fn verbs(&self) -> Vec<Verb> {
        lock(&self.log).iter().map(|command| command.verb).collect()
    }

    fn saw(&self, verb: Verb, key: &StoreKey) {
        lock(&self.log).push(Command { verb, key: key.clone() });
    }
}

impl<S> Clone for SpyStore<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), log: Arc::clone(&self.log) }
    }
}

impl<S: fmt::Debug> fmt::Debug for SpyStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpyStore")
            .field("inner", &self.inner)
            .field("commands", &lock(&self.log).len())
            .finish()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for SpyStore<S> {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        self.saw(Verb::Create, key);
        self.inner.create(key, bytes, ttl).await
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        self.saw(Verb::Load, key);
        self.inner.load(key).await
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        self.saw(Verb::Replace, key);
        self.inner.replace(key, bytes, ttl, expected).await
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        self.saw(Verb::Delete, key);
        self.inner.delete(key, expected).await
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        None
    }
}

/// How a command fails in a [`FaultStore`].
///
/// "Applied" means that the inner store carries out the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The server cannot be reached. The command is not applied and fails with [`ErrorKind::Unavailable`].
    Unavailable,
    /// The server refuses the command. The command is not applied and fails with [`ErrorKind::Refused`].
    Refused,
    /// The record exceeds the server's limit. The command is not applied and fails with
    /// [`ErrorKind::TooLarge`].
    TooLarge,
    /// The command is lost on its way to the server. It is not applied and fails with
    /// [`ErrorKind::OutcomeUnknown`]. A load, which writes nothing, fails with [`ErrorKind::Unavailable`].
    LoseRequest,
    /// The answer is lost on its way back. The command is applied and fails with
    /// [`ErrorKind::OutcomeUnknown`]. A load, which writes nothing, fails with [`ErrorKind::Unavailable`].
    LoseAnswer,
    /// The command hangs. It is not applied and never answered.
    Hang,
    /// The answer never arrives. The command is applied but never answered.
    HangAfter,
    /// The answer is garbage. A load returns 64 random bytes, with the record's version if the record exists.
    /// Commands with the other verbs are applied and fail with [`ErrorKind::OutcomeUnknown`].
    Garbage,
}

/// A decorator that makes commands fail, hang or wait on demand. Clones share the instructions.
///
/// Each call to [`inject`](Self::inject), [`hold`](Self::hold) and [`hold_answer`](Self::hold_answer) affects
/// one later command with the same verb, in the order of the calls. A command that has no such instruction
/// fails as set with [`fail_always`](Self::fail_always), or otherwise goes to the inner store.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> unsticky::Result<()> {
/// use unsticky::ErrorKind;
/// use unsticky::store::{MemoryStore, Store};
/// use unsticky::testing::{Fault, FaultStore, Verb, random_key};
///
/// let store = FaultStore::new(MemoryStore::new());
/// store.inject(Verb::Load, Fault::Unavailable);
/// let error = store.load(&random_key()).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Unavailable);
/// assert_eq!(store.load(&random_key()).await?, None);
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
pub struct FaultStore<S> {
    inner: Arc<S>,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    next: [VecDeque<Step>; Verb::ALL.len()],
    always: [Option<Fault>; Verb::ALL.len()],
}

/// What happens to one command.
enum Step {
    Fault(Fault),
    Hold(Arc<Passage>),
    HoldAnswer(Arc<Passage>),
}

impl<S> FaultStore<S> {
    /// Wraps a store. Until there are instructions, all commands go to this store.
    pub fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner), script: Arc::default() }
    }

    /// Makes the next command with this verb fail with `fault`.
    pub fn inject(&self, verb: Verb, fault: Fault) {
        self.push(verb, Step::Fault(fault));
    }

    /// Makes every command with this verb fail with `fault`, until [`heal`](Self::heal) is called.
    pub fn fail_always(&self, verb: Verb, fault: Fault) {
        lock(&self.script).always[verb as usize] = Some(fault);
    }

    /// Removes all instructions, including those that no command has reached yet.
    ///
    /// Commands that are already held or hanging stay as they are.
    pub fn heal(&self) {
        *lock(&self.script) = Script::default();
    }

    /// Makes the next command with this verb wait **before** it is applied, until the gate is released or
    /// dropped.
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// use unsticky::store::{MemoryStore, Store};
    /// use unsticky::testing::{FaultStore, Verb, random_key};
    ///
    /// let store = FaultStore::new(MemoryStore::new());
    /// let gate = store.hold(Verb::Load);
    /// let held = tokio::spawn({
    ///     let store = store.clone();
    ///     async move { store.load(&random_key()).await }
    /// });
    /// gate.reached().await;
    /// assert!(!held.is_finished());
    /// gate.release();
    /// assert_eq!(held.await.unwrap()?, None);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "memory"))]
    /// # fn main() {}
    /// ```
    pub fn hold(&self, verb: Verb) -> Gate {
        let passage = Arc::new(Passage::new());
        self.push(verb, Step::Hold(Arc::clone(&passage)));
        Gate(passage)
    }

    /// Holds back the answer to the next command with this verb: the command **is applied**, but does not return
    /// until the gate is released or dropped.
    pub fn hold_answer(&self, verb: Verb) -> Gate {
        let passage = Arc::new(Passage::new());
        self.push(verb, Step::HoldAnswer(Arc::clone(&passage)));
        Gate(passage)
    }

    fn push(&self, verb: Verb, step: Step) {
        lock(&self.script).next[verb as usize].push_back(step);
    }

    fn step(&self, verb: Verb) -> Option<Step> {
        let mut script = lock(&self.script);
        let always = script.always[verb as usize];
        script.next[verb as usize].pop_front().or_else(|| always.map(Step::Fault))
    }

    /// Applies `command`, or makes it fail. `garble` produces the answer for [`Fault::Garbage`].
    async fn run<T: Send>(
        &self,
        verb: Verb,
        command: impl Future<Output = Result<T>> + Send,
        garble: fn(T) -> Result<T>,
    ) -> Result<T> {
        match self.step(verb) {
            None => command.await,
            Some(Step::Fault(fault)) => match fault {
                Fault::Unavailable => Err(Error::unavailable(INJECTED)),
                Fault::Refused => Err(Error::refused(INJECTED)),
                Fault::TooLarge => Err(Error::too_large(INJECTED)),
                Fault::LoseRequest => Err(lost(verb)),
                Fault::LoseAnswer => {
                    command.await?;
                    Err(lost(verb))
                }
                Fault::Hang => pending().await,
                Fault::HangAfter => {
                    command.await?;
                    pending().await
                }
                Fault::Garbage => garble(command.await?),
            },
            Some(Step::Hold(passage)) => {
                passage.pass().await;
                command.await
            }
            Some(Step::HoldAnswer(passage)) => {
                let answer = command.await;
                passage.pass().await;
                answer
            }
        }
    }
}

const INJECTED: &str = "injected by a test";

fn lost(verb: Verb) -> Error {
    match verb {
        Verb::Load => Error::unavailable(INJECTED),
        _ => Error::outcome_unknown(INJECTED),
    }
}

fn lost_in_garbage<T>(_: T) -> Result<T> {
    Err(Error::outcome_unknown(INJECTED))
}

impl<S> Clone for FaultStore<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), script: Arc::clone(&self.script) }
    }
}

impl<S: fmt::Debug> fmt::Debug for FaultStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for FaultStore<S> {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        self.run(Verb::Create, self.inner.create(key, bytes, ttl), lost_in_garbage).await
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        self.run(Verb::Load, self.inner.load(key), |stored| {
            let version = stored.map_or(Version::new(0), |stored| stored.version);
            Ok(Some(Stored::new(random_record(64), version)))
        })
        .await
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        let command = self.inner.replace(key, bytes, ttl, expected);
        self.run(Verb::Replace, command, lost_in_garbage).await
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        self.run(Verb::Delete, self.inner.delete(key, expected), lost_in_garbage).await
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        None
    }
}

/// Holds one command of a [`FaultStore`], so that a test can choose an interleaving without sleeping.
/// Returned by [`FaultStore::hold`] and [`FaultStore::hold_answer`].
///
/// Dropping the gate releases the command.
#[must_use = "a gate that is dropped does not hold its command"]
pub struct Gate(Arc<Passage>);

/// Each semaphore starts without permits. Its first permit is never used up, so it lets everything through
/// from then on.
struct Passage {
    reached: Semaphore,
    released: Semaphore,
}

impl Gate {
    /// Waits until the command has arrived at this gate. Returns at once if the command has already arrived.
    pub async fn reached(&self) {
        // The permit is returned when it is dropped. Neither semaphore is ever closed.
        let _ = self.0.reached.acquire().await;
    }

    /// Opens the gate: the command continues, or passes without waiting if it arrives later.
    pub fn release(&self) {
        self.0.released.add_permits(1);
    }
}

impl Passage {
    fn new() -> Self {
        Self { reached: Semaphore::new(0), released: Semaphore::new(0) }
    }

    async fn pass(&self) {
        self.reached.add_permits(1);
        let _ = self.released.acquire().await;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

/// Locks the mutex even if another test panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(feature = "memory")]
mod tests {
    use std::pin::pin;

    use futures_util::future::poll_immediate;

    use super::*;
    use crate::store::MemoryStore;
    use crate::store::samples::random_key;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn spy_store_records_every_verb_in_order() {
        let spy = SpyStore::new(MemoryStore::new());
        let (key, other) = (random_key(), Stored::new(random_record(8), Version::new(1)));
        spy.create(&key, random_record(8), HOUR).await.unwrap();
        spy.load(&key).await.unwrap();
        spy.replace(&key, random_record(8), HOUR, &other).await.unwrap();
        spy.clone().delete(&key, None).await.unwrap();
        assert_eq!(spy.verbs(), Verb::ALL);
        assert!(spy.take().iter().all(|command| command.key == key));
        assert_eq!(spy.commands(), []);
    }

    #[tokio::test]
    async fn each_fault_applies_its_command_or_not_as_documented() {
        use ErrorKind::{OutcomeUnknown, Refused, TooLarge, Unavailable};
        let store = FaultStore::new(MemoryStore::new());
        for (fault, kind, applied) in [
            (Fault::Unavailable, Unavailable, false),
            (Fault::Refused, Refused, false),
            (Fault::TooLarge, TooLarge, false),
            (Fault::LoseRequest, OutcomeUnknown, false),
            (Fault::LoseAnswer, OutcomeUnknown, true),
            (Fault::Garbage, OutcomeUnknown, true),
        ] {
            let key = random_key();
            store.inject(Verb::Create, fault);
            let error = store.create(&key, random_record(8), HOUR).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{fault:?}");
            assert_eq!(store.load(&key).await.unwrap().is_some(), applied, "{fault:?}");
        }
        for (fault, applied) in [(Fault::Hang, false), (Fault::HangAfter, true)] {
            let key = random_key();
            store.inject(Verb::Create, fault);
            let call = store.create(&key, random_record(8), HOUR);
            assert!(poll_immediate(pin!(call)).await.is_none(), "{fault:?}");
            assert_eq!(store.load(&key).await.unwrap().is_some(), applied, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn load_outcome_is_never_unknown_but_may_be_garbage() {
        let store = FaultStore::new(MemoryStore::new());
        let key = random_key();
        for fault in [Fault::LoseRequest, Fault::LoseAnswer] {
            store.inject(Verb::Load, fault);
            assert_eq!(store.load(&key).await.unwrap_err().kind(), ErrorKind::Unavailable);
        }
        store.inject(Verb::Load, Fault::Garbage);
        assert_eq!(store.load(&key).await.unwrap().unwrap().bytes.len(), 64);
    }

    #[tokio::test]
    async fn verb_fails_until_store_is_healed() {
        let store = FaultStore::new(MemoryStore::new());
        store.fail_always(Verb::Load, Fault::Refused);
        store.inject(Verb::Load, Fault::Unavailable);
        let kind = async || store.load(&random_key()).await.unwrap_err().kind();
        assert_eq!(kind().await, ErrorKind::Unavailable);
        assert_eq!(kind().await, ErrorKind::Refused);
        assert_eq!(kind().await, ErrorKind::Refused);
        assert_eq!(store.delete(&random_key(), None).await.unwrap(), Deleted::Missing);
        store.heal();
        assert_eq!(store.load(&random_key()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn gate_holds_one_command_before_or_after_it_is_applied() {
        let store = FaultStore::new(MemoryStore::new());
        for applied in [false, true] {
            let key = random_key();
            let gate =
                if applied { store.hold_answer(Verb::Create) } else { store.hold(Verb::Create) };
            let held = tokio::spawn({
                let (store, key) = (store.clone(), key.clone());
                async move { store.create(&key, random_record(8), HOUR).await }
            });
            gate.reached().await;
            gate.reached().await;
            assert_eq!(store.load(&key).await.unwrap().is_some(), applied);
            gate.release();
            assert!(matches!(held.await.unwrap().unwrap(), Created::Created(_)));
        }
        drop(store.hold(Verb::Load));
        assert_eq!(store.load(&random_key()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn debug_prints_no_record() {
        let store = SpyStore::new(FaultStore::new(MemoryStore::new()));
        store.create(&random_key(), Bytes::from_static(b"tagtagtagsecret"), HOUR).await.unwrap();
        assert!(!format!("{store:?} {:?}", store.commands()).contains("secret"));
    }
}
