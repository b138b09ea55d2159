//! Commands that reach the server after their sender has given up.

use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use unsticky::store::{Store, StoreKey};
use unsticky::testing::{FaultStore, Verb};
use unsticky::{Error, Result};

use super::interceptor::{Call, Intercepted, Interceptor};

/// A store with injected faults, and the handle that delays its commands.
pub fn faulty(inner: impl Store) -> (FaultStore<Arc<dyn Store>>, Late) {
    let late = Late::default();
    let store: Arc<dyn Store> = Arc::new(Intercepted::new(Arc::new(inner), late.clone()));
    (FaultStore::new(store), late)
}

/// Delays commands; clones share the same commands.
#[derive(Clone, Default)]
pub struct Late(Arc<Mutex<Vec<(Verb, Postponed)>>>);

/// A command whose sender has given up, once one was sent.
///
/// Dropping it loses the command.
#[derive(Clone, Default)]
#[must_use = "a command that is not delivered is lost"]
pub struct Postponed(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Late {
    /// The next command of this verb fails like `Fault::LoseRequest`, and is applied when it is
    /// [delivered](Postponed::deliver).
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
        // The sender no longer waits for the answer.
        *postponed.0.lock().unwrap() = Some(call().map(drop).boxed());
        match verb {
            Verb::Load => Err(Error::unavailable(REASON)),
            _ => Err(Error::outcome_unknown(REASON)),
        }
    }
}

impl Postponed {
    /// Applies the command; `false` if none was sent yet, or if it was delivered before.
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
