//! A store in which things go wrong on demand, and visitors.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::poll;
use tokio::task::JoinHandle;
use unsticky::exchange::{Exchange, Finish, Reply};
use unsticky::store::MemoryStore;
use unsticky::testing::{FaultStore, Gate, ManualClock, SpyStore, Verb};
use unsticky::{Builder, Key, Result, Session, Sessions, Store};

use super::servers::{MemcachedServer, RedisServer};
use super::visit::{Visit, visit};

pub const SEED: Key<u32> = Key::new("seed");
pub const A: Key<u32> = Key::new("a");
pub const B: Key<u32> = Key::new("b");
pub const C: Key<u32> = Key::new("c");

type Open = dyn Fn(&ManualClock) -> Arc<dyn Store> + Send + Sync;

/// Where the sessions of a test are kept.
pub struct Backend {
    open: Box<Open>,
    _server: Box<dyn Any + Send + Sync>,
}

impl Backend {
    pub fn memory() -> Self {
        Self {
            open: Box::new(|clock| Arc::new(MemoryStore::with_clock(clock.clone()))),
            _server: Box::new(()),
        }
    }

    pub fn redis() -> Self {
        let server = RedisServer::start();
        Self::at(server.url(), server)
    }

    pub fn memcached() -> Self {
        let server = MemcachedServer::start();
        Self::at(server.url(), server)
    }

    fn at(url: String, server: impl Any + Send + Sync) -> Self {
        let open = move |_: &ManualClock| unsticky::connect(&url).unwrap();
        Self { open: Box::new(open), _server: Box::new(server) }
    }

    pub fn stand(&self) -> Stand {
        self.stand_with(|builder| builder)
    }

    pub fn stand_with(&self, configure: impl FnOnce(Builder) -> Builder) -> Stand {
        let clock = ManualClock::new();
        let spy = SpyStore::new((self.open)(&clock));
        let store = FaultStore::new(spy.clone());
        let builder = Sessions::builder(store.clone()).clock(clock.clone());
        let sessions = configure(builder).build().unwrap();
        Stand { store, spy, clock, sessions }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

pub struct Stand {
    pub store: FaultStore<SpyStore<Arc<dyn Store>>>,
    pub spy: SpyStore<Arc<dyn Store>>,
    pub clock: ManualClock,
    pub sessions: Sessions,
}

impl Stand {
    /// The cookie of an anonymous session.
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

    /// A request that has loaded its session before `other` runs, and goes on after it.
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

    /// Alice signs in on the session of this cookie.
    pub async fn sign_in(&self, cookie: &str) -> String {
        self.visit(cookie, async |session: Session| session.sign_in("alice")).await.cookie()
    }

    pub async fn sign_out(&self, cookie: &str) {
        let sign_out = async |session: Session| {
            session.sign_out();
            Ok(())
        };
        assert!(self.visit(cookie, sign_out).await.removes_cookie());
    }

    /// A request that goes on by hand.
    pub async fn begin(&self, cookie: &str) -> (Exchange, Session) {
        let exchange = Exchange::begin(&self.sessions, [cookie.as_bytes()], None);
        let session = exchange.handle().session().await.unwrap();
        (exchange, session)
    }

    /// Work that stands still at its next command of this kind, and that nobody polls any more.
    pub async fn held<F: Future>(&self, verb: Verb, work: F) -> (Gate, Pin<Box<F>>) {
        let gate = self.store.hold(verb);
        let mut work = Box::pin(work);
        assert!(poll!(&mut work).is_pending());
        gate.reached().await;
        (gate, work)
    }
}

pub fn save_in_a_task(session: &Session) -> JoinHandle<Result<()>> {
    let session = session.clone();
    tokio::spawn(async move { session.save().await })
}

/// The end of a request with a response of this status.
pub async fn finish(exchange: Exchange, status: u16) -> Reply {
    match exchange.finish(status) {
        Finish::Ready(reply) => reply,
        Finish::Pending(reply) => reply.await,
    }
}

/// The cookie of a reply as the browser sends it back.
pub fn cookie_of(reply: &Reply) -> Option<String> {
    reply.set_cookie.as_ref().map(|cookie| cookie.split(';').next().unwrap().to_owned())
}

/// Waits for what a task of its own does.
pub async fn eventually(mut holds: impl AsyncFnMut() -> bool, otherwise: &str) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(5), "{otherwise}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs tests that take a [`Backend`] on each of the three; on memory with the clock paused.
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(
                #[tokio::test(start_paused = true)]
                async fn $test() {
                    super::$test(crate::support::stand::Backend::memory()).await;
                }
            )*
        }

        crate::support::stand::on_every_store!(@server redis $($test)*);
        crate::support::stand::on_every_store!(@server memcached $($test)*);
    };
    (@server $backend:ident $($test:ident)*) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(crate::support::stand::Backend::$backend()).await;
                }
            )*
        }
    };
}
pub(crate) use on_every_store;
