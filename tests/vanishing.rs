//! The client disconnects at any point during its request.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use support::backend::Backend;
use support::interceptor::{Call, Intercepted, Interceptor};
use support::visit::{Visit, visit};
use tokio::task::yield_now;
use tokio::time::timeout;
use unsticky::store::{Store, StoreKey};
use unsticky::testing::{Fault, FaultStore, Verb};
use unsticky::{Key, Result, Session, Sessions};

const SEED: Key<u32> = Key::new("seed").survives_sign_in();
const NUMBER: Key<u32> = Key::new("number");

/// Yields before and after each command, so that a caller can be dropped there even if the store never
/// waits.
struct Yielding;

impl Interceptor for Yielding {
    async fn intercept<T: Send + 'static>(
        &self,
        _: Verb,
        _: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        yield_now().await;
        let answer = call().await;
        yield_now().await;
        answer
    }
}

/// What the request does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    Increment,
    /// Saves in the handler, and once more at the end of the request.
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
    /// Performs the operation. Sets `begun` once the operation has started to run to completion without
    /// its client.
    async fn done_to(self, session: &Session, begun: &mut bool) -> Result<()> {
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
                *begun = true;
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

/// A fault that makes the request send more commands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    None,
    /// Another request writes between this request's load and its write.
    Conflict,
    /// The answer to the first write is lost.
    LostAnswer,
}

struct Case<'a> {
    sessions: &'a Sessions,
    faults: &'a FaultStore<Arc<dyn Store>>,
    deed: Deed,
    trouble: Trouble,
    /// The number of tasks that remain when no request is running: those for the connections.
    tasks_at_rest: usize,
}

/// How far a request has come.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Whether the handler has started a transaction.
    begun: bool,
    /// Whether the handler has returned.
    answered: bool,
}

/// What a request with a cookie finds in its session.
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

    /// Runs a request whose client disconnects once the request has waited `patience` times. Returns
    /// its progress, and the reply if the request finished first.
    async fn request(&self, cookie: &str, patience: usize) -> (Progress, Option<Visit<()>>) {
        let mut progress = Progress::default();
        let handler = async |session: Session| {
            session.get(NUMBER)?;
            if self.trouble == Trouble::Conflict {
                // The other request completes even if this client disconnects in the meantime.
                let (sessions, cookie) = (self.sessions.clone(), cookie.to_owned());
                let insert = async |session: Session| session.insert(SEED, &2);
                let other = async move { visit(&sessions, &cookie, insert).await.failure() };
                assert_eq!(tokio::spawn(other).await.unwrap(), None);
            }
            if self.trouble == Trouble::LostAnswer {
                for verb in [Verb::Replace, Verb::Create, Verb::Delete] {
                    self.faults.inject(verb, Fault::LoseAnswer);
                }
            }
            self.deed.done_to(&session, &mut progress.begun).await?;
            progress.answered = true;
            Ok(())
        };
        let reply = {
            let mut request = pin!(visit(self.sessions, cookie, handler));
            let mut polls = 0;
            poll_fn(|context| match request.as_mut().poll(context) {
                Poll::Ready(visit) => Poll::Ready(Some(visit)),
                Poll::Pending if polls == patience => Poll::Ready(None),
                Poll::Pending => {
                    polls += 1;
                    Poll::Pending
                }
            })
            .await
        };
        (progress, reply)
    }

    /// Disconnects after every possible number of waits, until a request finishes first.
    async fn goes_away_everywhere(&self) {
        for patience in 0.. {
            let cookie = self.cookie().await;
            let (progress, reply) = self.request(&cookie, patience).await;
            self.comes_to_rest().await;
            self.faults.heal();
            let place = format!("{:?} {:?} at {patience}", self.deed, self.trouble);
            self.left_all_or_nothing(&cookie, progress, reply.as_ref(), &place).await;
            if reply.is_some() {
                assert!(patience >= 3, "{place}: the request did not wait that often");
                break;
            }
        }
    }

    /// Waits until only the tasks for the connections are left.
    async fn comes_to_rest(&self) {
        let metrics = tokio::runtime::Handle::current().metrics();
        let rest = async {
            while metrics.num_alive_tasks() > self.tasks_at_rest {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(5), rest).await.expect("a task is still running");
    }

    async fn left_all_or_nothing(
        &self,
        cookie: &str,
        progress: Progress,
        reply: Option<&Visit<()>>,
        place: &str,
    ) {
        let old = self.finds(cookie).await;
        let gone = Found { principal: None, seed: None, number: None };
        let is_signed_in = self.deed != Deed::SignIn;
        let as_before = |number| Found {
            principal: is_signed_in.then(|| "alice".to_owned()),
            // In the case of a conflict, the other request may have written this value.
            seed: old
                .seed
                .filter(|seed| self.trouble == Trouble::Conflict && *seed == 2)
                .or(Some(1)),
            number: Some(number),
        };
        // What a request with the old cookie may find. All changes must be there if the handler has
        // returned, and a transaction's changes if the transaction has started.
        let allowed = match self.deed {
            Deed::Increment | Deed::Transact => vec![as_before(0), as_before(1)],
            Deed::SaveTwice => vec![as_before(0), as_before(1), as_before(2)],
            _ => vec![as_before(0), gone.clone()],
        };
        let at_least = if progress.answered { allowed.len() - 1 } else { progress.begun.into() };
        let allowed = &allowed[at_least..];
        assert!(allowed.contains(&old), "{place}: {old:?} is none of {allowed:?}");
        let Some(reply) = reply else { return };
        assert_eq!(reply.failure(), None, "{place}");
        let new = match self.deed {
            Deed::Increment | Deed::Transact | Deed::SaveTwice => {
                assert_eq!(reply.set_cookie, None, "{place}");
                return;
            }
            Deed::SignOut => {
                assert!(reply.removes_cookie(), "{place}");
                return;
            }
            _ => self.finds(&reply.cookie()).await,
        };
        let found = |principal: Option<&str>, seed, number| Found {
            principal: principal.map(str::to_owned),
            seed,
            number,
        };
        let expected = match self.deed {
            Deed::Rotate => found(Some("alice"), new.seed.filter(|seed| *seed < 3), Some(0)),
            Deed::SignIn => found(Some("alice"), new.seed.filter(|seed| *seed < 3), None),
            Deed::Switch => found(Some("bob"), None, None),
            _ => found(None, None, Some(9)),
        };
        assert_eq!(new, expected, "{place}");
        assert_eq!(new.seed.is_some(), matches!(self.deed, Deed::Rotate | Deed::SignIn), "{place}");
    }
}

async fn all_or_nothing(on: Backend) {
    let store: Arc<dyn Store> = Arc::new(Intercepted::new(on.store(), Yielding));
    let faults = FaultStore::new(store);
    let sessions = Sessions::builder(faults.clone()).build().unwrap();
    let warm_up = async |session: Session| session.insert(SEED, &1);
    visit(&sessions, "", warm_up).await.ok();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let tasks_at_rest = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    for deed in DEEDS {
        for trouble in [Trouble::None, Trouble::Conflict, Trouble::LostAnswer] {
            let case = Case { sessions: &sessions, faults: &faults, deed, trouble, tasks_at_rest };
            case.goes_away_everywhere().await;
        }
    }
}

#[tokio::test]
async fn disconnect_at_any_point_leaves_all_or_nothing_in_memory() {
    all_or_nothing(Backend::memory()).await;
}

#[tokio::test]
async fn disconnect_at_any_point_leaves_all_or_nothing_on_redis() {
    all_or_nothing(Backend::redis()).await;
}

#[tokio::test]
async fn disconnect_at_any_point_leaves_all_or_nothing_on_memcached() {
    all_or_nothing(Backend::memcached()).await;
}
