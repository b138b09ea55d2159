//! Doubles: a clock, a randomness and stores that do what a test says.

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

/// A source of randomness that always fails, with [`ErrorKind::Randomness`].
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
    /// All verbs.
    pub const ALL: [Self; 4] = [Self::Create, Self::Load, Self::Replace, Self::Delete];
}

/// A command that a [`SpyStore`] saw.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Command {
    /// What was to be done.
    pub verb: Verb,
    /// The key it was to be done on.
    pub key: StoreKey,
}

/// A store that remembers which commands were sent to another one; clones share what they saw.
///
/// A command is remembered when its call begins, whatever becomes of it.
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
    /// A spy on this store that has seen nothing.
    pub fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner), log: Arc::default() }
    }

    /// The commands since the last [`take`](Self::take), in the order in which they were sent.
    #[must_use]
    pub fn commands(&self) -> Vec<Command> {
        lock(&self.log).clone()
    }

    /// The commands since the last time, which are then forgotten.
    pub fn take(&self) -> Vec<Command> {
        std::mem::take(&mut lock(&self.log))
    }

    /// The verbs of [`commands`](Self::commands).
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

/// What goes wrong with a command that is sent to a [`FaultStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The server cannot be reached: not applied, [`ErrorKind::Unavailable`].
    Unavailable,
    /// The server will not do it: not applied, [`ErrorKind::Refused`].
    Refused,
    /// The record is over the server's limit: not applied, [`ErrorKind::TooLarge`].
    TooLarge,
    /// The command is lost on its way: not applied, [`ErrorKind::OutcomeUnknown`]. A load, which
    /// has no outcome to know, is [`ErrorKind::Unavailable`].
    LoseRequest,
    /// The answer is lost on its way: applied, [`ErrorKind::OutcomeUnknown`]. A load, which has no
    /// outcome to know, is [`ErrorKind::Unavailable`].
    LoseAnswer,
    /// Not applied, and never answered.
    Hang,
    /// Applied, and never answered.
    HangAfter,
    /// The answer makes no sense: a load brings 64 random bytes, at the record's version where
    /// there is a record. The other verbs are applied, [`ErrorKind::OutcomeUnknown`].
    Garbage,
}

/// A store in which things go wrong on demand; clones share what is to go wrong.
///
/// What was asked for with [`inject`](Self::inject), [`hold`](Self::hold) and
/// [`hold_answer`](Self::hold_answer) happens to one command each, for each verb in the order in
/// which it was asked for. After that comes what [`fail_always`](Self::fail_always) said, and
/// otherwise nothing goes wrong.
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
    /// A store in which nothing goes wrong so far.
    pub fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner), script: Arc::default() }
    }

    /// The next command of this verb fails like this.
    pub fn inject(&self, verb: Verb, fault: Fault) {
        self.push(verb, Step::Fault(fault));
    }

    /// Every command of this verb fails like this, until [`heal`](Self::heal).
    pub fn fail_always(&self, verb: Verb, fault: Fault) {
        lock(&self.script).always[verb as usize] = Some(fault);
    }

    /// Nothing goes wrong any more; what was asked for and did not happen yet is forgotten.
    ///
    /// Commands that are held or hang stay as they are.
    pub fn heal(&self) {
        *lock(&self.script) = Script::default();
    }

    /// The next command of this verb waits **before** it is applied, until the gate is released.
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

    /// The next command of this verb waits **after** it was applied, until the gate is released.
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

    /// Applies `command`, or lets it go wrong; `garble` is what [`Fault::Garbage`] makes of it.
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

/// Where one command of a [`FaultStore`] waits, for interleavings without a sleep.
///
/// Dropping the gate releases the command.
#[must_use = "a gate that is dropped holds nobody"]
pub struct Gate(Arc<Passage>);

/// A semaphore without permits is a door that is shut; its first permit opens it for good.
struct Passage {
    reached: Semaphore,
    released: Semaphore,
}

impl Gate {
    /// Waits until a command waits here; returns at once where one did so already.
    pub async fn reached(&self) {
        // The permit goes back when it is dropped. Neither semaphore is ever closed.
        let _ = self.0.reached.acquire().await;
    }

    /// Lets the command go on, also one that has not come yet.
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

/// A test that panicked with the lock held is no reason for another panic.
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
