//! Commands that reach the server after their sender has abandoned them.

use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use unsticky::store::{Store, StoreKey};
use unsticky::testing::{FaultStore, Verb};
use unsticky::{Error, Result};

use super::interceptor::{Call, Intercepted, Interceptor};

/// Returns a store with injected faults, and the handle that delays the store's commands.
pub fn faulty(inner: impl Store) -> (FaultStore<Arc<dyn Store>>, Late) {
    let late = Late::default();
    let store: Arc<dyn Store> = Arc::new(Intercepted::new(Arc::new(inner), late.clone()));
    (FaultStore::new(store), late)
}

/// Delays commands. Clones delay the commands of the same store.
#[derive(Clone, Default)]
pub struct Late(Arc<Mutex<Vec<(Verb, Postponed)>>>);

/// Holds a command that its sender has abandoned. Empty until such a command has been sent.
///
/// If this value is dropped, the command is lost.
#[derive(Clone, Default)]
#[must_use = "a command that is not delivered is lost"]
pub struct Postponed(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Late {
    /// Makes the next command with this verb fail like `Fault::LoseRequest`. The command is applied when the
    /// test [delivers](Postponed::deliver) it.
    pub fn postpone(&self, verb: Verb) -> Postponed {
        let postponed = Postponed::default();
        self.0.lock().unwrap().push((verb, postponed.clone()));
        postponed
    }

    fn next(&self, verb: Verb) -> Option<Postponed> {
        let mut asked_for = self.0.lock().unwrap();
        let place = asked_for.iter().position(|(of, _)| *of == verb)?;
        Some(asked_for.remove(place).1)
    }
}

impl Interceptor for Late {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        _: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        const REASON: &str = "the command is late";
        let Some(postponed) = self.next(verb) else { return call().await };
        // The sender does not wait for the answer.
        *postponed.0.lock().unwrap() = Some(call().map(drop).boxed());
        match verb {
            Verb::Load => Err(Error::unavailable(REASON)),
            _ => Err(Error::outcome_unknown(REASON)),
        }
    }
}

impl Postponed {
    /// Applies the command. Returns `false` if none was sent yet, or if it has already been delivered.
    pub async fn deliver(&self) -> bool {
        let command = self.0.lock().unwrap().take();
        match command {
            Some(command) => {
                command.await;
                true
            }
            None => false,
        }
    }
}
