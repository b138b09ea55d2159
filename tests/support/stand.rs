//! A store with injected faults, and requests from visitors.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::poll;
use tokio::task::JoinHandle;
use unsticky::exchange::Exchange;
use unsticky::store::{Created, Replaced, StoreKey, Stored};
use unsticky::testing::{Command, FaultStore, Gate, ManualClock, SpyStore, Verb};
use unsticky::{Builder, Key, Result, Session, Sessions, Store};

pub use super::backend::Backend;
use super::late::{Late, faulty};
use super::visit::{Visit, sign_in, sign_out, visit};

pub const SEED: Key<u32> = Key::new("seed");
pub const A: Key<u32> = Key::new("a");
pub const B: Key<u32> = Key::new("b");
pub const C: Key<u32> = Key::new("c");

impl Backend {
    pub fn stand(&self) -> Stand {
        self.stand_with(|builder| builder)
    }

    pub fn stand_with(&self, configure: impl FnOnce(Builder) -> Builder) -> Stand {
        let clock = ManualClock::new();
        let store = match self.server() {
            #[cfg(feature = "memory")]
            None => Arc::new(unsticky::store::MemoryStore::with_clock(clock.clone())),
            _ => self.store(),
        };
        Stand::new(store, clock, configure)
    }
}

/// Sessions on a store that records commands and injects faults.
pub struct Stand {
    pub store: FaultStore<Arc<dyn Store>>,
    pub late: Late,
    /// Sits closest to the store, so it records the commands that reach the store.
    pub spy: SpyStore<Arc<dyn Store>>,
    pub clock: ManualClock,
    pub sessions: Sessions,
}

impl Stand {
    fn new(
        store: Arc<dyn Store>,
        clock: ManualClock,
        configure: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let spy = SpyStore::new(store);
        let (store, late) = faulty(spy.clone());
        let sessions = process(&store, &clock, configure);
        Self { store, late, spy, clock, sessions }
    }

    /// Uses a store that does not share the stand's clock, so the store still holds records whose content
    /// shows that they have expired.
    pub fn over(store: Arc<dyn Store>, configure: impl FnOnce(Builder) -> Builder) -> Self {
        Self::new(store, ManualClock::new(), configure)
    }

    /// Returns the sessions of another process that uses the same store.
    pub fn process(&self, configure: impl FnOnce(Builder) -> Builder) -> Sessions {
        process(&self.store, &self.clock, configure)
    }

    /// Creates an anonymous session and returns its cookie.
    pub async fn seeded(&self) -> String {
        self.visit("", async |session: Session| session.insert(SEED, &1)).await.cookie()
    }

    pub async fn signed_in(&self, principal: &str) -> String {
        let sign_in = async |session: Session| {
            session.sign_in(principal)?;
            session.insert(SEED, &1)
        };
        self.visit("", sign_in).await.cookie()
    }

    pub async fn visit<T>(
        &self,
        cookie: &str,
        handler: impl AsyncFnOnce(Session) -> Result<T>,
    ) -> Visit<T> {
        visit(&self.sessions, cookie, handler).await
    }

    /// Makes a request that loads its session before `other` runs and continues afterwards.
    pub async fn overtaken<T>(
        &self,
        cookie: &str,
        handler: impl AsyncFnOnce(Session) -> Result<T>,
        other: impl AsyncFnOnce(),
    ) -> Visit<T> {
        self.visit(cookie, async |session: Session| {
            other().await;
            handler(session).await
        })
        .await
    }

    pub async fn read(&self, cookie: &str, key: Key<u32>) -> Option<u32> {
        self.visit(cookie, async |session: Session| session.get(key)).await.ok()
    }

    pub async fn who(&self, cookie: &str) -> Option<Arc<str>> {
        self.visit(cookie, async |session: Session| Ok(session.principal())).await.ok()
    }

    pub async fn write(&self, cookie: &str, key: Key<u32>, value: u32) {
        self.visit(cookie, async |session: Session| session.insert(key, &value)).await.ok();
    }

    /// Signs Alice in with this cookie's session. Returns the new cookie.
    pub async fn sign_in(&self, cookie: &str) -> String {
        self.visit(cookie, sign_in).await.cookie()
    }

    pub async fn sign_out(&self, cookie: &str) {
        assert!(self.visit(cookie, sign_out).await.removes_cookie());
    }

    /// Returns the verbs of the commands that were sent to the store since the last call.
    pub fn taken_verbs(&self) -> Vec<Verb> {
        self.spy.take().iter().map(|command| command.verb).collect()
    }

    /// Returns the commands sent by a request that only loads its session. If more than one command was sent,
    /// the later ones refresh the session.
    pub async fn commands_of_a_load(&self, cookie: &str) -> Vec<Command> {
        self.spy.take();
        self.visit(cookie, async |_| Ok(())).await.ok();
        self.spy.take()
    }

    /// Returns the key of this session's record.
    pub async fn key(&self, cookie: &str) -> StoreKey {
        let command = self.commands_of_a_load(cookie).await.swap_remove(0);
        assert_eq!(command.verb, Verb::Load);
        command.key
    }

    /// Returns the key of this principal's directory record.
    pub async fn directory_key(&self, principal: &str) -> StoreKey {
        self.spy.take();
        self.sessions.of(principal).begin_sign_in().await.unwrap();
        self.spy.take().pop().unwrap().key
    }

    /// Returns the bytes that the store holds under this key.
    pub async fn stored(&self, key: &StoreKey) -> Bytes {
        self.spy.load(key).await.unwrap().unwrap().bytes
    }

    /// Stores these bytes under this key.
    pub async fn put(&self, key: &StoreKey, bytes: impl Into<Bytes>) {
        const TTL: Duration = Duration::from_secs(3600);
        let bytes = bytes.into();
        match self.spy.load(key).await.unwrap() {
            None => {
                let created = self.spy.create(key, bytes, TTL).await.unwrap();
                assert!(matches!(created, Created::Created(_)));
            }
            Some(stored) => {
                let replaced = self.spy.replace(key, bytes, TTL, &stored).await.unwrap();
                assert!(matches!(replaced, Replaced::Replaced(_)));
            }
        }
    }

    /// Starts a request that the test advances step by step.
    pub async fn begin(&self, cookie: &str) -> (Exchange, Session) {
        let exchange = Exchange::begin(&self.sessions, [cookie.to_owned()], None);
        let session = exchange.handle().session().await.unwrap();
        (exchange, session)
    }

    /// Polls this work until it waits at its next command of this kind, and then polls it no more. Returns
    /// the command's gate and the work.
    pub async fn held<F: Future>(&self, verb: Verb, work: F) -> (Gate, Pin<Box<F>>) {
        let gate = self.store.hold(verb);
        let mut work = Box::pin(work);
        assert!(poll!(&mut work).is_pending());
        gate.reached().await;
        (gate, work)
    }
}

fn process(
    store: &FaultStore<Arc<dyn Store>>,
    clock: &ManualClock,
    configure: impl FnOnce(Builder) -> Builder,
) -> Sessions {
    configure(Sessions::builder(store.clone()).clock(clock.clone())).build().unwrap()
}

pub fn save_in_a_task(session: &Session) -> JoinHandle<Result<()>> {
    let session = session.clone();
    tokio::spawn(async move { session.save().await })
}

/// Waits until another task has had an effect.
pub async fn eventually(mut holds: impl AsyncFnMut() -> bool, otherwise: &str) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(5), "{otherwise}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs tests that take a [`Backend`] on each of the three stores; in memory, they run with the clock paused.
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(
                #[tokio::test(start_paused = true)]
                async fn $test() {
                    super::$test(crate::support::backend::Backend::memory()).await;
                }
            )*
        }

        crate::support::backend::on_each_server!($($test),*);
    };
}
pub(crate) use on_every_store;
