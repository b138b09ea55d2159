//! What visitors see while a store does not answer, and after it recovers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Mutex, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use unsticky::exchange::{Exchange, Finish};
use unsticky::{ErrorKind, Key, Result, Session, Sessions};

use super::stopwatch::Stopwatch;
use super::visit::{Visit, rotate, sent_back, sign_out, visit};

pub const SEED: Key<u64> = Key::new("seed").survives_sign_in();
pub const NUMBER: Key<u64> = Key::new("number");

/// The default store timeout for a request.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// The time limit for the first request after a fault: half a second, plus the delay that a busy machine can
/// add.
pub const BACK: Duration = Duration::from_millis(500 + 150);

/// The kinds of error that a read can return while the store does not answer.
pub const UNREAD: &[ErrorKind] = &[ErrorKind::Unavailable];

/// The kinds of error that a write can return while the store does not answer.
pub const UNWRITTEN: &[ErrorKind] = &[ErrorKind::Unavailable, ErrorKind::OutcomeUnknown];

/// Returns sessions with the default settings. To the store, they look like a separate process.
pub fn sessions(url: &str) -> Sessions {
    Sessions::builder(unsticky::connect(url).unwrap()).timeout(TIMEOUT).build().unwrap()
}

/// The outcome of a request.
#[derive(Debug)]
pub struct Answer {
    pub failure: Option<ErrorKind>,
    /// The response's status if the handler failed, otherwise 200.
    pub status: u16,
    pub set_cookie: Option<String>,
    pub took: Duration,
}

impl Answer {
    fn new<T>(visit: &Visit<T>, took: Duration) -> Self {
        Self {
            failure: visit.failure(),
            status: visit.output.as_ref().err().map_or(200, unsticky::Error::status),
            set_cookie: visit.set_cookie.clone(),
            took,
        }
    }

    /// Checks that the request failed with one of these kinds of error, that the response came in time, and
    /// that it neither set nor removed a cookie.
    #[track_caller]
    pub fn is_failure(&self, kinds: &[ErrorKind], within: Duration) {
        assert!(self.failure.is_some_and(|kind| kinds.contains(&kind)), "{self:?}");
        assert_eq!(self.set_cookie, None, "{self:?}");
        assert!(self.took < within, "{self:?}");
    }
}

/// What a request does to its session.
#[derive(Debug, Clone, Copy)]
pub enum Deed {
    Read,
    Increment,
    Insert,
    Transact,
    Rotate,
    SignIn(&'static str),
    SignOut,
}

impl Deed {
    pub async fn done_to(self, session: Session) -> Result<()> {
        match self {
            Self::Read => session.get(NUMBER).map(drop),
            Self::Increment => session.update(NUMBER, |number| *number += 1),
            Self::Insert => session.insert(SEED, &1),
            Self::Transact => session.transact(|values| values.insert(SEED, &2)).await,
            Self::Rotate => rotate(session).await,
            Self::SignIn(principal) => session.sign_in(principal),
            Self::SignOut => sign_out(session).await,
        }
    }
}

/// Sends a request and returns its outcome.
pub async fn request(sessions: &Sessions, cookie: &str, deed: Deed) -> Answer {
    let begun = Stopwatch::start();
    let visit = visit(sessions, cookie, async |session: Session| deed.done_to(session).await).await;
    Answer::new(&visit, begun.elapsed())
}

/// A request that has loaded its session and is about to change it.
#[derive(Debug)]
pub struct Held {
    release: oneshot::Sender<()>,
    visit: JoinHandle<Visit<()>>,
}

impl Held {
    pub async fn new(sessions: &Sessions, cookie: &str, deed: Deed) -> Self {
        let (loaded, is_loaded) = oneshot::channel();
        let (release, is_released) = oneshot::channel();
        let (sessions, cookie) = (sessions.clone(), cookie.to_owned());
        let visit = tokio::spawn(async move {
            let handler = async move |session: Session| {
                loaded.send(()).unwrap();
                is_released.await.unwrap();
                deed.done_to(session).await
            };
            visit(&sessions, &cookie, handler).await
        });
        is_loaded.await.unwrap();
        Self { release, visit }
    }

    /// Lets the request continue; its response time is measured from here.
    pub async fn release(self) -> Answer {
        let begun = Stopwatch::start();
        self.release.send(()).unwrap();
        let visit = self.visit.await.unwrap();
        Answer::new(&visit, begun.elapsed())
    }
}

/// Four browsers that have had sessions since before the fault: three are signed in, and one is anonymous.
#[derive(Debug)]
pub struct Visitors {
    pub sessions: Sessions,
    pub alice: String,
    pub bob: Browser,
    pub carol: Browser,
    pub anonymous: Browser,
    held: Vec<Held>,
    /// The number of acknowledged increments of Alice's number.
    pub counted: u64,
    /// The number of in-doubt increments.
    pub unknown: u64,
}

#[derive(Debug)]
pub struct Browser {
    pub cookie: String,
    /// Whether the change that this browser requested was certainly not made.
    pub is_certain: bool,
}

impl Browser {
    fn new(cookie: String) -> Self {
        Self { cookie, is_certain: true }
    }
}

/// The principals of the concurrent sign-ins. Several sign-ins use the same principal.
const CROWD: [&str; 5] = ["erin", "frank", "grace", "heidi", "ivan"];

impl Visitors {
    pub async fn arrive(sessions: &Sessions) -> Self {
        let sign_in = async |principal: &str| {
            let handler = async |session: Session| {
                session.sign_in(principal)?;
                session.insert(NUMBER, &0)
            };
            visit(sessions, "", handler).await.cookie()
        };
        let anonymous = async |session: Session| session.insert(SEED, &7);
        Self {
            sessions: sessions.clone(),
            alice: sign_in("alice").await,
            bob: Browser::new(sign_in("bob").await),
            carol: Browser::new(sign_in("carol").await),
            anonymous: Browser::new(visit(sessions, "", anonymous).await.cookie()),
            held: Vec::new(),
            counted: 0,
            unknown: 0,
        }
    }

    /// Makes many requests at once, so that the store opens as many connections as it ever will.
    pub async fn crowd(&self) {
        let mut requests = JoinSet::new();
        for number in 0..100 {
            let (cookie, deed) = match number % 2 {
                0 => (self.alice.clone(), Deed::Read),
                _ => (String::new(), Deed::SignIn(CROWD[number / 2 % CROWD.len()])),
            };
            let sessions = self.sessions.clone();
            requests.spawn(async move { request(&sessions, &cookie, deed).await });
        }
        for answer in bounded(requests.join_all()).await {
            assert_eq!(answer.failure, None);
        }
    }

    /// Starts requests that load their sessions now and change them later.
    pub async fn begin(&mut self) {
        assert!(self.held.is_empty());
        let deeds = [
            (&self.alice, Deed::Increment),
            (&self.bob.cookie, Deed::SignOut),
            (&self.carol.cookie, Deed::Rotate),
            (&self.anonymous.cookie, Deed::SignIn("dave")),
        ];
        for (cookie, deed) in deeds {
            self.held.push(Held::new(&self.sessions, cookie, deed).await);
        }
    }

    /// Changes Alice's session, which must succeed.
    pub async fn increment(&mut self) {
        let answer = request(&self.sessions, &self.alice, Deed::Increment).await;
        assert_eq!((answer.failure, &answer.set_cookie), (None, &None), "{answer:?}");
        self.counted += 1;
    }

    /// Checks that the requests already in progress succeed and that their changes are made.
    pub async fn succeed(&mut self) {
        let held = std::mem::take(&mut self.held);
        assert_eq!(held.len(), 4);
        let within = TIMEOUT + Duration::from_millis(100);
        let answers = bounded(join_all(held.into_iter().map(Held::release))).await;
        for answer in &answers {
            assert!(answer.failure.is_none() && answer.took < within, "{answer:?}");
        }
        self.counted += 1;
        self.number_is_right().await;
        for (place, old, principal) in [
            (1, &self.bob, None),
            (2, &self.carol, Some("carol")),
            (3, &self.anonymous, Some("dave")),
        ] {
            let set_cookie = answers[place].set_cookie.as_deref().unwrap();
            assert_eq!(set_cookie.contains("Max-Age=0"), principal.is_none());
            let new = sent_back(set_cookie);
            assert_eq!(first(&self.sessions, &new).await.as_deref(), principal);
            assert_eq!(first(&self.sessions, &old.cookie).await, None);
        }
    }

    /// Checks that, while the store does not answer, the requests in progress and new requests fail in time,
    /// with the right kind of error and without a cookie. New requests are tried one at a time and a
    /// thousand at once.
    pub async fn are_told(&mut self) {
        self.are_told_alone(UNREAD, UNWRITTEN).await;
        self.are_told_a_thousand_at_once().await;
    }

    pub async fn are_told_alone(&mut self, unread: &[ErrorKind], unwritten: &[ErrorKind]) {
        let within = TIMEOUT + Duration::from_millis(100);
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let answers = bounded(join_all(held.into_iter().map(Held::release))).await;
            for answer in &answers {
                answer.is_failure(unwritten, within);
            }
            let is_certain =
                |place: usize| answers[place].failure != Some(ErrorKind::OutcomeUnknown);
            self.unknown += u64::from(!is_certain(0));
            self.bob.is_certain &= is_certain(1);
            self.carol.is_certain &= is_certain(2);
            self.anonymous.is_certain &= is_certain(3);
        }
        does_without(&self.sessions, &self.alice);
        let read = bounded(request(&self.sessions, &self.alice, Deed::Read)).await;
        read.is_failure(unread, within);
        let sign_in = bounded(request(&self.sessions, "", Deed::SignIn("erin"))).await;
        sign_in.is_failure(unwritten, within);
        does_without(&self.sessions, &self.alice);
    }

    /// Checks that each of a thousand concurrent requests fails in time, and that none panics.
    pub async fn are_told_a_thousand_at_once(&self) {
        // If two tests sent a thousand requests each at the same time, the result would depend on the
        // machine's speed.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
        let _turn = ONE_AT_A_TIME.lock().await;
        let begun = Stopwatch::start();
        let mut waiting = JoinSet::new();
        for number in 0..1000 {
            let (cookie, deed) = match number % 4 {
                0 => (self.alice.clone(), Deed::Increment),
                1 => (self.carol.cookie.clone(), Deed::Read),
                2 => (String::new(), Deed::SignIn("frank")),
                _ => (String::new(), Deed::Insert),
            };
            let sessions = self.sessions.clone();
            waiting.spawn(async move { request(&sessions, &cookie, deed).await });
        }
        does_without(&self.sessions, &self.alice);
        let answers = bounded(waiting.join_all()).await;
        let took = begun.elapsed();
        assert_eq!(answers.len(), 1000);
        for answer in answers {
            answer.is_failure(UNWRITTEN, TIMEOUT + Duration::from_millis(300));
        }
        // All requests wait at the same time, however long it takes to start them all.
        assert!(took < TIMEOUT * 2, "{took:?}");
    }

    /// Checks that once the store has recovered with all its data, the first request succeeds at once, every
    /// signed-in user is still signed in, and no change that was certainly refused has been made.
    pub async fn go_on(&mut self) {
        assert_eq!(first(&self.sessions, &self.alice).await.as_deref(), Some("alice"));
        self.number_is_right().await;
        let who = async |browser: &Browser| {
            let read = async |session: Session| Ok((session.principal(), session.get(SEED)?));
            let visit = visit(&self.sessions, &browser.cookie, read).await;
            assert_eq!(visit.set_cookie, None);
            let (principal, seed) = visit.ok();
            (principal.as_deref().map(str::to_owned), seed)
        };
        let as_before = |principal: Option<&str>, seed| (principal.map(str::to_owned), seed);
        let gone = (None, None);
        for (browser, before) in [
            (&self.bob, as_before(Some("bob"), None)),
            (&self.carol, as_before(Some("carol"), None)),
            (&self.anonymous, as_before(None, Some(7))),
        ] {
            let now = who(browser).await;
            assert!(now == before || (!browser.is_certain && now == gone), "{browser:?} {now:?}");
        }
        self.increment().await;
        self.number_is_right().await;
    }

    /// Checks that Alice's session continues. Its server has kept the record.
    pub async fn alice_goes_on(&mut self) {
        assert_eq!(first(&self.sessions, &self.alice).await.as_deref(), Some("alice"));
        self.increment().await;
        self.number_is_right().await;
    }

    /// Checks that no acknowledged increment was lost and that none was made twice.
    pub async fn number_is_right(&self) {
        let read = async |session: Session| session.get(NUMBER);
        let number = visit(&self.sessions, &self.alice, read).await.ok().unwrap_or(0);
        let possible = self.counted..=self.counted + self.unknown;
        assert!(possible.contains(&number), "{number} is not in {possible:?}");
    }

    /// Checks that once the store has recovered without its data, every visitor is anonymous, no cookie is
    /// removed, and users can sign in again.
    pub async fn begin_anew(&mut self) {
        assert_eq!(first(&self.sessions, &self.alice).await, None);
        for cookie in [&self.bob.cookie, &self.carol.cookie, &self.anonymous.cookie] {
            assert_eq!(first(&self.sessions, cookie).await, None);
        }
        let sessions = self.sessions.clone();
        let sign_in = async |session: Session| session.sign_in("alice");
        self.alice = visit(&sessions, &self.alice, sign_in).await.cookie();
        (self.counted, self.unknown) = (0, 0);
        assert_eq!(first(&sessions, &self.alice).await.as_deref(), Some("alice"));
        self.increment().await;
        self.number_is_right().await;
    }
}

/// Makes the first request after a fault. The request must succeed within the time limit. Returns who is
/// signed in.
pub async fn first(sessions: &Sessions, cookie: &str) -> Option<Arc<str>> {
    let begun = Stopwatch::start();
    let who = async |session: Session| Ok(session.principal());
    let visit = visit(sessions, cookie, who).await;
    let took = begun.elapsed();
    assert_eq!((visit.failure(), &visit.set_cookie), (None, &None), "after {took:?}");
    assert!(took < BACK, "{took:?}");
    visit.ok()
}

/// Checks that a route that does not use the session responds at once, without waiting for the store.
pub fn does_without(sessions: &Sessions, cookie: &str) {
    let exchange = Exchange::begin(sessions, [cookie.to_owned()], None);
    match exchange.finish(200) {
        Finish::Ready(reply) => {
            assert!(reply.error.is_none() && reply.set_cookie.is_none(), "{reply:?}");
        }
        Finish::Pending(_) => panic!("it waits for the store"),
    }
}

/// Awaits a future, which counts as hanging if it takes longer than ten seconds.
pub async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it hangs")
}
