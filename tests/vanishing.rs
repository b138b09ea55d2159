//! A client that goes away at any point of its request.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use support::servers::{MemcachedServer, RedisServer};
use support::visit::{Visit, visit};
use tokio::sync::oneshot;
use tokio::time::timeout;
use unsticky::store::{
    Created, Deleted, MemoryStore, Replaced, Store, StoreKey, Stored, Version,
};
use unsticky::testing::{Fault, FaultStore, Verb};
use unsticky::{Key, Result, Session, Sessions};

const SEED: Key<u32> = Key::new("seed").survives_sign_in();
const NUMBER: Key<u32> = Key::new("number");

/// A store that lets others run before and after each command, so that even one that never waits has
/// points at which a caller can go away.
#[derive(Debug, Clone)]
struct Yielding(Arc<dyn Store>);

#[async_trait]
impl Store for Yielding {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        tokio::task::yield_now().await;
        let answer = self.0.create(key, bytes, ttl).await;
        tokio::task::yield_now().await;
        answer
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        tokio::task::yield_now().await;
        let answer = self.0.load(key).await;
        tokio::task::yield_now().await;
        answer
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        version: Version,
    ) -> Result<Replaced> {
        tokio::task::yield_now().await;
        let answer = self.0.replace(key, bytes, ttl, version).await;
        tokio::task::yield_now().await;
        answer
    }

    async fn delete(&self, key: &StoreKey, version: Option<Version>) -> Result<Deleted> {
        tokio::task::yield_now().await;
        let answer = self.0.delete(key, version).await;
        tokio::task::yield_now().await;
        answer
    }
}

/// What the request does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    Increment,
    /// Saved before the handler has answered, and once more after it.
    SaveTwice,
    Transact,
    Rotate,
    SignIn,
    Switch,
    SignOut,
    StartOver,
}

const DEEDS: [Deed; 8] = [
    Deed::Increment,
    Deed::SaveTwice,
    Deed::Transact,
    Deed::Rotate,
    Deed::SignIn,
    Deed::Switch,
    Deed::SignOut,
    Deed::StartOver,
];

impl Deed {
    async fn done_to(self, session: &Session) -> Result<()> {
        match self {
            Self::Increment => session.update(NUMBER, |number| *number += 1)?,
            Self::SaveTwice => {
                session.update(NUMBER, |number| *number += 1)?;
                session.save().await?;
                session.update(NUMBER, |number| *number += 1)?;
            }
            Self::Transact => {
                let decide = |values: &mut unsticky::Transaction<'_>| {
                    let number = values.get(NUMBER)?.unwrap_or(0);
                    values.insert(NUMBER, &(number + 1))
                };
                session.transact(decide).await?;
            }
            Self::Rotate => session.rotate(),
            Self::SignIn => session.sign_in("alice")?,
            Self::Switch => session.sign_in("bob")?,
            Self::SignOut => session.sign_out(),
            Self::StartOver => {
                session.sign_out();
                session.insert(NUMBER, &9)?;
            }
        }
        Ok(())
    }
}

/// What makes the request longer on its way through the store.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    None,
    /// Another request writes between reading and writing.
    Conflict,
    /// The answer to the first write is lost.
    LostAnswer,
}

struct Case<'a> {
    sessions: &'a Sessions,
    faults: &'a FaultStore<Arc<dyn Store>>,
    deed: Deed,
    trouble: Trouble,
}

/// What a visitor finds.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    principal: Option<String>,
    seed: Option<u32>,
    number: Option<u32>,
}

impl Case<'_> {
    async fn cookie(&self) -> String {
        let arrive = async |session: Session| {
            if self.deed != Deed::SignIn {
                session.sign_in("alice")?;
            }
            session.insert(SEED, &1)?;
            session.insert(NUMBER, &0)
        };
        visit(self.sessions, "", arrive).await.cookie()
    }

    async fn finds(&self, cookie: &str) -> Found {
        let look = async |session: Session| {
            Ok(Found {
                principal: session.principal().map(|name| name.to_string()),
                seed: session.get(SEED)?,
                number: session.get(NUMBER)?,
            })
        };
        visit(self.sessions, cookie, look).await.ok()
    }

    /// The request, whose client goes away when it has waited `patience` times. What is returned is
    /// whether the handler had answered by then, and the reply if there was time for one.
    async fn request(&self, cookie: &str, patience: usize) -> (bool, Option<Visit<()>>) {
        let mut answered = false;
        // Gone when the request and everything that it has left behind are over.
        let (over, is_over) = oneshot::channel::<()>();
        let reply = {
            let handler = async |session: Session| {
                session.get(NUMBER)?;
                if self.trouble == Trouble::Conflict {
                    let other = async |session: Session| session.insert(SEED, &2);
                    // To its end, also where the client goes away meanwhile.
                    let (sessions, cookie) = (self.sessions.clone(), cookie.to_owned());
                    let other = async move { visit(&sessions, &cookie, other).await.failure() };
                    assert_eq!(tokio::spawn(other).await.unwrap(), None);
                }
                if self.trouble == Trouble::LostAnswer {
                    for verb in [Verb::Replace, Verb::Create, Verb::Delete] {
                        self.faults.inject(verb, Fault::LoseAnswer);
                    }
                }
                self.deed.done_to(&session).await?;
                answered = true;
                Ok(())
            };
            let mut request = pin!(visit(self.sessions, cookie, handler));
            let mut polls = 0;
            poll_fn(|context| {
                if polls > patience {
                    return Poll::Ready(None);
                }
                polls += 1;
                request.as_mut().poll(context).map(Some)
            })
            .await
        };
        drop(over);
        let _ = is_over.await;
        (answered, reply)
    }

    /// With every patience there is, until a client sees the end of its request.
    async fn goes_away_everywhere(&self) {
        let mut points = 0;
        loop {
            let cookie = self.cookie().await;
            let before = self.finds(&cookie).await;
            let (answered, reply) = self.request(&cookie, points).await;
            self.comes_to_rest().await;
            self.faults.heal();
            self.is_one_or_the_other(&cookie, &before, answered, reply.as_ref()).await;
            if reply.is_some() {
                break;
            }
            points += 1;
        }
        assert!(points >= 3, "{:?} {:?}: {points} points", self.deed, self.trouble);
    }

    /// Waits until no command is under way.
    async fn comes_to_rest(&self) {
        let metrics = tokio::runtime::Handle::current().metrics();
        let rest = async {
            while metrics.num_alive_tasks() > self.tasks() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(5), rest).await.expect("something goes on");
    }
}
