//! Random concurrent sign-ins, sign-outs, lists and revocations for one account from two processes. Commands
//! and answers are lost, commands arrive late, and some are never answered.
//!
//! `UNSTICKY_LONG=1` makes these tests ten times as long.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::HashSet;
use std::future::pending;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use support::backend::{Backend, on_each_server};
use support::interceptor::{Call, Intercepted, Interceptor};
use support::length;
use support::stand::SEED;
use support::visit::{Visit, sign_out, visit};
use tokio::time::{Instant, sleep, timeout};
use unsticky::store::{MemoryStore, StoreKey};
use unsticky::testing::Verb;
use unsticky::{
    Clock, ConcurrentSessions, DirectoryMode, Entropy, Error, Result, Revoked, Session, SessionId,
    Sessions, SignIn, Store,
};

const ALICE: &str = "alice";
const LIMIT: usize = 3;
const EXACT: ConcurrentSessions = ConcurrentSessions::Reject(LIMIT as u16);
const CLIENTS: usize = 5;
/// The number of operations per client.
const DEEDS: usize = 8;
/// The store timeout for a request.
const TIMEOUT: Duration = Duration::from_millis(200);
/// The longest delay for a command.
const LATEST: Duration = Duration::from_millis(600);

/// What happens to a command.
#[derive(Clone, Copy)]
enum Fate {
    Answered,
    Unavailable,
    RequestLost,
    AnswerLost,
    /// The sender abandons the command, which arrives later.
    Late,
    /// The command arrives later, and the sender waits for an answer until its timeout.
    Unanswered,
}

/// A faulty connection to the store.
struct Chaos {
    rng: Mutex<Rng>,
    is_over: AtomicBool,
}

impl Chaos {
    fn draw(&self) -> (Fate, [Duration; 3]) {
        let mut rng = self.rng.lock().unwrap();
        let fate = match rng.u8(..100) {
            0..3 => Fate::Unavailable,
            3..6 => Fate::RequestLost,
            6..12 => Fate::AnswerLost,
            12..18 => Fate::Late,
            18..20 => Fate::Unanswered,
            _ => Fate::Answered,
        };
        let mut within = |most: Duration| Duration::from_micros(rng.u64(..most.as_micros() as u64));
        (fate, [within(TIMEOUT / 40), within(TIMEOUT / 40), within(LATEST)])
    }
}

impl Interceptor for Chaos {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        _: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        if self.is_over.load(Ordering::SeqCst) {
            return call().await;
        }
        let lost = || match verb {
            Verb::Load => Error::unavailable("lost"),
            _ => Error::outcome_unknown("lost"),
        };
        let (fate, [there, back, late]) = self.draw();
        sleep(there).await;
        match fate {
            Fate::Answered => {
                let answer = call().await;
                sleep(back).await;
                answer
            }
            Fate::Unavailable => Err(Error::unavailable("down")),
            Fate::RequestLost => Err(lost()),
            Fate::AnswerLost => {
                call().await?;
                Err(lost())
            }
            Fate::Late | Fate::Unanswered => {
                let command = call();
                tokio::spawn(async move {
                    sleep(late).await;
                    drop(command.await);
                });
                match fate {
                    Fate::Late => Err(lost()),
                    _ => pending().await,
                }
            }
        }
    }
}

/// A source of randomness. The same seed gives the same ids, secrets and pauses.
#[derive(Debug, Clone)]
struct Seeded(Arc<Mutex<Rng>>);

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        self.0.lock().unwrap().fill(bytes);
        Ok(())
    }
}

/// The runtime's clock, which is paused if the store is in memory.
#[derive(Debug, Clone)]
struct RuntimeClock(time::OffsetDateTime, Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> time::OffsetDateTime {
        self.0 + self.1.elapsed()
    }
}

/// A cookie for one of Alice's sessions that reached a browser.
struct Sent {
    cookie: String,
    at: usize,
}

/// The number of events of each kind.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    sign_ins: usize,
    failed: usize,
    revocations: usize,
    alive: usize,
    /// The sign-ins that were checked because no other operation could have ended their session.
    checked: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.sign_ins += other.sign_ins;
        self.failed += other.failed;
        self.revocations += other.revocations;
        self.alive += other.alive;
        self.checked += other.checked;
    }
}

/// How many operations of one kind have begun, and how many are in progress.
#[derive(Debug, Default, Clone, Copy)]
struct Deeds {
    begun: usize,
    under_way: usize,
}

impl Deeds {
    fn begin(&mut self) {
        self.begun += 1;
        self.under_way += 1;
    }

    /// Returns the number of operations that have been in progress since `before`, including those that the
    /// caller has begun since.
    fn since(self, before: Self) -> usize {
        before.under_way + self.begun - before.begun
    }
}

/// What has happened so far. Each event gets the next `number`.
#[derive(Default)]
struct Log {
    number: usize,
    sent: Vec<Sent>,
    /// The number at the beginning of each revocation of all sessions, or of all other sessions.
    revocations: Vec<usize>,
    /// The sessions that `revoke` has ended.
    ended: HashSet<SessionId>,
    /// The sign-ins, and the operations that can end sessions.
    sign_ins: Deeds,
    ends: Deeds,
    tally: Tally,
}

struct History {
    place: String,
    policy: ConcurrentSessions,
    is_paused: bool,
    /// The sessions of two processes with faulty connections.
    processes: [Sessions; 2],
    /// The sessions of a process with a reliable connection.
    quiet: Sessions,
    log: Mutex<Log>,
}

impl History {
    fn number(&self) -> usize {
        let mut log = self.log.lock().unwrap();
        log.number += 1;
        log.number
    }

    /// Returns this cookie's session, if Alice is signed in with it.
    async fn alices(&self, cookie: &str) -> Option<SessionId> {
        let who = async |session: Session| {
            Ok(session.id().filter(|_| session.principal().as_deref() == Some(ALICE)))
        };
        visit(&self.quiet, cookie, who).await.ok()
    }

    /// Returns the sessions that are alive and whose cookie was sent before `before`.
    async fn alive(&self, before: usize) -> HashSet<SessionId> {
        let cookies: Vec<_> = {
            let log = self.log.lock().unwrap();
            let sent = log.sent.iter().filter(|sent| sent.at < before);
            sent.map(|sent| sent.cookie.clone()).collect()
        };
        let mut alive = HashSet::new();
        for cookie in cookies {
            alive.extend(self.alices(&cookie).await);
        }
        alive
    }

    /// Makes one request. The browser keeps the cookie, unless it has disconnected.
    async fn request<T>(
        &self,
        rng: &mut Rng,
        cookie: &str,
        handler: impl AsyncFnOnce(Session) -> Result<T>,
    ) -> Option<Visit<T>> {
        let sessions = &self.processes[rng.usize(..2)];
        let patience = match rng.u8(..10) {
            0 => TIMEOUT.mul_f64(rng.f64() / 5.0),
            _ => 100 * TIMEOUT,
        };
        let Ok(visit) = timeout(patience, visit(sessions, cookie, handler)).await else {
            // After this time, all of the request's work has completed.
            sleep(3 * TIMEOUT).await;
            return None;
        };
        let at = self.number();
        if visit.set_cookie.is_some() && !visit.removes_cookie() {
            self.log.lock().unwrap().sent.push(Sent { cookie: visit.cookie(), at });
        }
        Some(visit)
    }

    /// Signs in. If that fails, tries once more with the same session.
    async fn signs_in(&self, rng: &mut Rng, cookie: &str, is_begun: bool) {
        for _ in 0..2 {
            let before = {
                let mut log = self.log.lock().unwrap();
                let before = (log.sign_ins, log.ends);
                log.sign_ins.begin();
                before
            };
            let has_failed = self.tries_to_sign_in(rng, cookie, is_begun, before).await;
            self.log.lock().unwrap().sign_ins.under_way -= 1;
            if !has_failed {
                return;
            }
        }
    }

    /// Tries to sign in. Returns whether the sign-in failed.
    async fn tries_to_sign_in(
        &self,
        rng: &mut Rng,
        cookie: &str,
        is_begun: bool,
        before: (Deeds, Deeds),
    ) -> bool {
        let directory = self.processes[rng.usize(..2)].of(ALICE);
        let sign_in = match is_begun {
            false => SignIn::new(ALICE),
            true => {
                let Ok(sign_in) = directory.begin_sign_in().await else { return true };
                sign_in
            }
        };
        let begun = self.number();
        if is_begun {
            sleep(TIMEOUT.mul_f64(rng.f64() / 5.0)).await;
        }
        let handler = async |session: Session| session.sign_in_with(sign_in);
        // A disconnected browser does not know the result.
        let Some(visit) = self.request(rng, cookie, handler).await else { return false };
        let has_failed = visit.failure().is_some();
        let is_overtaken = {
            let mut log = self.log.lock().unwrap();
            match has_failed {
                true => log.tally.failed += 1,
                false => log.tally.sign_ins += 1,
            }
            is_begun && log.revocations.iter().any(|revocation| *revocation > begun)
        };
        if is_overtaken && !has_failed {
            let alive = self.alices(&visit.cookie()).await;
            assert_eq!(alive, None, "{}: a sign-in of before a revocation", self.place);
        }
        if !has_failed && cookie.is_empty() && self.is_paused {
            self.is_usable(&visit.cookie(), before).await;
        }
        has_failed
    }

    /// Checks that the cookie from a sign-in without an earlier session works, unless other operations since
    /// `before` may have ended the session.
    async fn is_usable(&self, cookie: &str, before: (Deeds, Deeds)) {
        let alive = self.alices(cookie).await;
        let mut log = self.log.lock().unwrap();
        // Each sign-in replaces at most one session, and under a rejecting policy only an unconfirmed one.
        let sign_ins = log.sign_ins.since(before.0) - 1;
        let most = if self.policy == EXACT { 0 } else { LIMIT - 1 };
        if sign_ins <= most && log.ends.since(before.1) == 0 {
            log.tally.checked += 1;
            assert!(alive.is_some(), "{}: a cookie that does not work", self.place);
        }
    }

    /// Runs an operation that may end any session.
    async fn end<T>(&self, deed: impl Future<Output = T>) -> T {
        self.log.lock().unwrap().ends.begin();
        let output = deed.await;
        self.log.lock().unwrap().ends.under_way -= 1;
        output
    }

    /// Checks that, after a revocation, no session is alive whose cookie was sent before the revocation
    /// began.
    async fn was_revoked(&self, begun: usize, revoked: Revoked) {
        assert!(revoked.complete, "{}", self.place);
        let alive = self.alive(begun).await;
        assert!(alive.is_empty(), "{}: revoked and alive: {alive:?}", self.place);
        let mut log = self.log.lock().unwrap();
        log.revocations.push(begun);
        log.tally.revocations += 1;
    }

    async fn acts(&self, rng: &mut Rng) {
        let directory = self.processes[rng.usize(..2)].of(ALICE);
        let known = {
            let log = self.log.lock().unwrap();
            match log.sent.len() {
                0 => String::new(),
                // Picks one of the last four cookies.
                count => log.sent[count - 1 - rng.usize(..count.min(4))].cookie.clone(),
            }
        };
        match rng.u8(..100) {
            0..25 => self.signs_in(rng, "", false).await,
            25..40 => self.signs_in(rng, "", true).await,
            40..48 => {
                let seed = async |session: Session| session.insert(SEED, &1);
                let anonymous = visit(&self.quiet, "", seed).await.cookie();
                let is_begun = rng.bool();
                self.signs_in(rng, &anonymous, is_begun).await;
            }
            48..58 => {
                let is_begun = rng.bool();
                self.end(self.signs_in(rng, &known, is_begun)).await;
            }
            58..66 => drop(self.end(self.request(rng, &known, sign_out)).await),
            66..76 => drop(directory.list().await),
            76..84 => {
                let Ok(list) = directory.list().await else { return };
                let Some(one) = rng.choice(list) else { return };
                if self.end(directory.revoke(one.id)).await.is_ok_and(|was_alive| was_alive) {
                    self.log.lock().unwrap().ended.insert(one.id);
                }
            }
            84..92 => {
                let begun = self.number();
                let others =
                    async |session: Session| session.directory()?.revoke_others(&session).await;
                let Some(visit) = self.end(self.request(rng, &known, others)).await else { return };
                if let Ok(revoked) = visit.output {
                    // The session that is kept has a new secret.
                    self.was_revoked(begun, revoked).await;
                }
            }
            _ => {
                let begun = self.number();
                if let Ok(revoked) = self.end(directory.revoke_all()).await {
                    self.was_revoked(begun, revoked).await;
                }
            }
        }
        if self.policy == EXACT && self.is_paused {
            // This holds at every moment: with the clock paused, no other task runs while the sessions are
            // counted.
            let alive = self.alive(usize::MAX).await;
            assert!(alive.len() <= LIMIT, "{}: {alive:?}", self.place);
        }
    }

    /// Makes the final checks, without faults and with no work in progress.
    async fn ends(&self) -> Tally {
        let directory = self.quiet.of(ALICE);
        let list = directory.list().await.unwrap();
        let listed: HashSet<_> = list.iter().map(|listed| listed.id).collect();
        let alive = self.alive(usize::MAX).await;
        let place = &self.place;
        assert!(alive.is_subset(&listed), "{place}: {listed:?} listed of {alive:?}");
        assert!(listed.len() <= LIMIT, "{place}: {listed:?}");
        assert!(alive.is_disjoint(&self.log.lock().unwrap().ended), "{place}");
        let revoked = directory.revoke_all().await.unwrap();
        assert_eq!((revoked.count, revoked.complete), (listed.len(), true), "{place}");
        assert!(self.alive(usize::MAX).await.is_empty(), "{place}");
        Tally { alive: alive.len(), ..self.log.lock().unwrap().tally }
    }
}

/// Runs one history per seed, policy and mode, `at_once` at a time.
async fn histories(on: &Backend, count: u64, at_once: usize) -> Tally {
    let is_paused = on.server().is_none();
    let mut histories = Vec::new();
    for seed in 0..count {
        for policy in [ConcurrentSessions::EvictOldest(LIMIT as u16), EXACT] {
            for mode in [DirectoryMode::Listed, DirectoryMode::Strict] {
                histories.push(history(on, is_paused, seed, policy, mode));
            }
        }
    }
    let mut histories = stream::iter(histories).buffer_unordered(at_once);
    let mut total = Tally::default();
    while let Some(tally) = histories.next().await {
        total += tally;
    }
    total
}

async fn history(
    on: &Backend,
    is_paused: bool,
    seed: u64,
    policy: ConcurrentSessions,
    mode: DirectoryMode,
) -> Tally {
    let mut rng = Rng::with_seed(seed);
    let clock = RuntimeClock(time::OffsetDateTime::now_utc(), Instant::now());
    let store: Arc<dyn Store> = match is_paused {
        true => Arc::new(MemoryStore::with_clock(clock.clone())),
        false => on.store(),
    };
    let chaos = Chaos { rng: Mutex::new(rng.fork()), is_over: AtomicBool::new(false) };
    let chaotic = Intercepted::new(store.clone(), chaos);
    let entropy = Seeded(Arc::new(Mutex::new(rng.fork())));
    let process = |store: Arc<dyn Store>, timeout| {
        let builder = Sessions::builder(store).clock(clock.clone()).entropy(entropy.clone());
        let namespace = format!("{seed}-{mode:?}-{}", policy == EXACT);
        let builder = builder.namespace(namespace).timeout(timeout);
        builder.concurrent_sessions(policy).directory(mode).build().unwrap()
    };
    let history = History {
        place: format!("seed {seed}, {policy:?}, {mode:?}"),
        policy,
        is_paused,
        processes: [(); 2].map(|()| process(Arc::new(chaotic.clone()), TIMEOUT)),
        quiet: process(store, 50 * TIMEOUT),
        log: Mutex::default(),
    };
    // Without a directory record, no revocation can report completeness.
    let first = visit(&history.quiet, "", async |session: Session| session.sign_in(ALICE)).await;
    let at = history.number();
    history.log.lock().unwrap().sent.push(Sent { cookie: first.cookie(), at });
    let clients: Vec<_> = (0..CLIENTS).map(|_| rng.fork()).collect();
    join_all(clients.into_iter().map(async |mut rng| {
        for _ in 0..DEEDS {
            sleep(TIMEOUT.mul_f64(rng.f64() / 10.0)).await;
            history.acts(&mut rng).await;
        }
    }))
    .await;
    chaotic.interceptor.is_over.store(true, Ordering::SeqCst);
    // After this time, abandoned work has completed and late commands have arrived.
    sleep(LATEST + 5 * TIMEOUT).await;
    history.ends().await
}

/// Whatever commands are lost or late, every session whose cookie was sent is listed while it is alive,
/// revoked sessions are invalid, and a sign-in that began before a revocation does not succeed. The session
/// limit also holds; under a rejecting policy, it holds at every moment.
#[tokio::test(start_paused = true)]
async fn directory_guarantees_hold_under_random_faults_in_memory() {
    let tally = histories(&Backend::memory(), 25 * u64::from(length()), 1).await;
    // The guarantees must not hold only because nothing happened.
    assert!(tally.sign_ins > 800 && tally.failed > 400, "{tally:?}");
    assert!(tally.revocations > 200 && tally.alive > 100 && tally.checked > 20, "{tally:?}");
}

/// The same guarantees hold on real servers, in real time.
async fn directory_keeps_its_promises_in_chaos(on: Backend) {
    let tally = histories(&on, 10 * u64::from(length()), 40).await;
    assert!(tally.sign_ins > 100 && tally.revocations > 20, "{tally:?}");
}

on_each_server!(directory_keeps_its_promises_in_chaos);
