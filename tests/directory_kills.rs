//! Processes that die between any two commands of a sign-in or of an end of sessions, and several
//! processes at once: every live session is listed, every revoked one is dead, and nothing hangs.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::HashSet;
use std::future::pending;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::backend::Backend;
use support::interceptor::{Call, Intercepted, Interceptor};
use support::runtime;
use support::visit::visit;
use tokio::sync::Notify;
use tokio::time::timeout;
use unsticky::store::{Kind, StoreKey};
use unsticky::testing::Verb;
use unsticky::{
    ConcurrentSessions, DirectoryMode, ErrorKind, Lifetime, Result, Session, SessionId, Sessions,
    SignIn, Store,
};

const ALICE: &str = "alice";
const LIMIT: u16 = 3;

/// Of a process that dies at one of its commands: before it is sent, or after it was applied.
struct Fate {
    commands_left: AtomicUsize,
    dies_after: bool,
    died: Notify,
    keys: Arc<Mutex<HashSet<StoreKey>>>,
}

impl Interceptor for Fate {
    async fn intercept<T: Send + 'static>(
        &self,
        _: Verb,
        key: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        self.keys.lock().unwrap().insert(key.clone());
        let left = self.commands_left.load(Ordering::SeqCst);
        self.commands_left.store(left.saturating_sub(1), Ordering::SeqCst);
        if left == 0 {
            if self.dies_after {
                call().await?;
            }
            self.died.notify_one();
            return pending().await;
        }
        call().await
    }
}

/// What the process does that dies.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    SignIn,
    /// On the session of an anonymous visitor.
    SignInHere,
    /// One more than are allowed.
    Evict,
    StepUp,
    LongerLife,
    /// To another person and back.
    Switch,
    /// A sign-out and a sign-in in one request.
    StartOver,
    RevokeOne,
    RevokeOthers,
    RevokeAll,
    List,
}

const DEEDS: [Deed; 11] = [
    Deed::SignIn,
    Deed::SignInHere,
    Deed::Evict,
    Deed::StepUp,
    Deed::LongerLife,
    Deed::Switch,
    Deed::StartOver,
    Deed::RevokeOne,
    Deed::RevokeOthers,
    Deed::RevokeAll,
    Deed::List,
];

fn sessions(store: impl Store, mode: DirectoryMode, namespace: &str) -> Sessions {
    let builder = Sessions::builder(store).namespace(namespace.to_owned()).directory(mode);
    // Nothing that a process does may take as long as this.
    let builder = builder.timeout(Duration::from_secs(5));
    builder.concurrent_sessions(ConcurrentSessions::EvictOldest(LIMIT)).build().unwrap()
}

async fn arrives(sessions: &Sessions) -> String {
    visit(sessions, "", async |session: Session| session.sign_in(ALICE)).await.cookie()
}

async fn is_alice(sessions: &Sessions, cookie: &str) -> bool {
    let who = async |session: Session| Ok(session.principal().as_deref() == Some(ALICE));
    visit(sessions, cookie, who).await.ok()
}

async fn carry_out(sessions: &Sessions, deed: Deed, cookies: &[String], anonymous: &str) {
    let directory = sessions.of(ALICE);
    let sign_in = async |session: Session| session.sign_in(ALICE);
    match deed {
        Deed::SignIn | Deed::Evict => drop(visit(sessions, "", sign_in).await),
        Deed::SignInHere => drop(visit(sessions, anonymous, sign_in).await),
        Deed::StepUp => {
            drop(visit(sessions, &cookies[0], async |session: Session| session.step_up()).await);
        }
        Deed::LongerLife => {
            let longer = async |session: Session| {
                session.set_lifetime(Lifetime::nist_aal1());
                Ok(())
            };
            drop(visit(sessions, &cookies[0], longer).await);
        }
        Deed::Switch => {
            let as_bob = async |session: Session| session.sign_in("bob");
            let bob = visit(sessions, &cookies[0], as_bob).await.cookie();
            drop(visit(sessions, &bob, sign_in).await);
        }
        Deed::StartOver => {
            let start_over = async |session: Session| {
                session.sign_out();
                session.sign_in(ALICE)
            };
            drop(visit(sessions, &cookies[0], start_over).await);
        }
        Deed::RevokeOne => {
            let oldest = directory.list().await.unwrap().pop().unwrap();
            directory.revoke(oldest.id).await.unwrap();
        }
        Deed::RevokeOthers => {
            let others =
                async |session: Session| session.directory()?.revoke_others(&session).await;
            drop(visit(sessions, &cookies[0], others).await);
        }
        Deed::RevokeAll => drop(directory.revoke_all().await.unwrap()),
        Deed::List => drop(directory.list().await.unwrap()),
    }
}

/// The sessions of Alice's that the store holds, whoever made them.
async fn stored(store: &dyn Store, keys: &HashSet<StoreKey>) -> HashSet<SessionId> {
    let mut found = HashSet::new();
    for key in keys.iter().filter(|key| key.kind() == Kind::Session) {
        let stored = store.load(key).await.unwrap();
        if stored.is_some_and(|stored| stored.bytes.windows(5).any(|part| part == b"alice")) {
            found.insert(key.as_str().rsplit(':').next().unwrap().parse().unwrap());
        }
    }
    found
}

/// `open` connects a process to the store.
fn dies_everywhere(open: &dyn Fn() -> Arc<dyn Store>, mode: DirectoryMode) {
    for deed in DEEDS {
        for dies_after in [false, true] {
            for commands in 0.. {
                let place = format!("{mode:?} {deed:?}, {commands} commands, after: {dies_after}");
                let survived = dies_at(open, mode, deed, commands, dies_after, &place);
                if survived {
                    assert!(commands > 1, "{place}: there are more commands than that");
                    break;
                }
            }
        }
    }
}

fn dies_at(
    open: &dyn Fn() -> Arc<dyn Store>,
    mode: DirectoryMode,
    deed: Deed,
    commands: usize,
    dies_after: bool,
    place: &str,
) -> bool {
    let namespace = format!("{mode:?}-{deed:?}-{commands}-{dies_after}");
    let keys = Arc::new(Mutex::new(HashSet::new()));
    let process = |commands_left: usize| {
        let fate = Fate {
            commands_left: AtomicUsize::new(commands_left),
            dies_after,
            died: Notify::new(),
            keys: keys.clone(),
        };
        Intercepted::new(open(), fate)
    };
    let here = runtime();
    let survivor = process(usize::MAX);
    let own = sessions(survivor.clone(), mode, &namespace);
    let (cookies, anonymous) = here.block_on(async {
        let count = if matches!(deed, Deed::Evict | Deed::StartOver) { LIMIT } else { 2 };
        let mut cookies = Vec::new();
        for _ in 0..count {
            cookies.push(arrives(&own).await);
        }
        let seed = async |session: Session| session.insert(support::stand::SEED, &1);
        (cookies, visit(&own, "", seed).await.cookie())
    });
    let survived = {
        let there = runtime();
        let survived = there.block_on(async {
            let doomed = process(commands);
            let others = sessions(doomed.clone(), mode, &namespace);
            tokio::select! {
                () = carry_out(&others, deed, &cookies, &anonymous) => true,
                () = doomed.interceptor.died.notified() => false,
            }
        });
        // With everything that was under way.
        there.shutdown_background();
        survived
    };
    here.block_on(async {
        let bounded = Duration::from_secs(10);
        let directory = own.of(ALICE);
        let list = timeout(bounded, directory.list()).await.expect(place).expect(place);
        let listed: HashSet<_> = list.iter().map(|listed| listed.id).collect();
        let keys_seen = keys.lock().unwrap().clone();
        let alive = stored(&survivor, &keys_seen).await;
        assert_eq!(listed, alive, "{place}: listed, and alive");
        // Whoever starts over has two for a moment, for a refused write must change nothing.
        let spare = usize::from(deed == Deed::StartOver && !survived);
        assert!(alive.len() <= usize::from(LIMIT) + spare, "{place}");
        let mut usable = 0;
        for cookie in &cookies {
            usable += usize::from(timeout(bounded, is_alice(&own, cookie)).await.expect(place));
        }
        match deed {
            // All of them, or none.
            Deed::RevokeAll => assert!(alive.is_empty() || usable == 2, "{place}: {usable}"),
            // A dead sign-in costs nobody a session, unless one had to go.
            Deed::SignIn | Deed::SignInHere | Deed::List => assert_eq!(usable, 2, "{place}"),
            Deed::Evict => assert!(usable >= usize::from(LIMIT) - 1, "{place}"),
            Deed::StepUp | Deed::LongerLife | Deed::Switch | Deed::StartOver => {
                assert!(usable >= 1, "{place}")
            }
            // The kept one's cookie may have been void before its answer came.
            Deed::RevokeOne => {
                assert!(usable == 1 || (!survived && usable == 2), "{place}: {usable}")
            }
            Deed::RevokeOthers if survived => assert_eq!(alive.len(), 1, "{place}"),
            Deed::RevokeOthers => assert!(!alive.is_empty(), "{place}"),
        }
        // Everything goes on as if nothing had been.
        let newest = timeout(bounded, arrives(&own)).await.expect(place);
        assert!(is_alice(&own, &newest).await, "{place}");
        timeout(bounded, directory.revoke_all()).await.expect(place).expect(place);
        let keys_seen = keys.lock().unwrap().clone();
        assert!(stored(&survivor, &keys_seen).await.is_empty(), "{place}");
        assert!(!is_alice(&own, &newest).await, "{place}");
    });
    survived
}

fn everywhere(open: &dyn Fn() -> Arc<dyn Store>) {
    for mode in [DirectoryMode::Listed, DirectoryMode::Strict] {
        dies_everywhere(open, mode);
    }
}

#[test]
fn process_killed_at_any_command_leaves_no_session_unlisted_in_memory() {
    let store = Backend::memory().store();
    everywhere(&|| store.clone());
}

#[test]
fn process_killed_at_any_command_leaves_no_session_unlisted_on_redis() {
    let on = Backend::redis();
    everywhere(&|| on.store());
}

#[test]
fn process_killed_at_any_command_leaves_no_session_unlisted_on_memcached() {
    let on = Backend::memcached();
    everywhere(&|| on.store());
}

/// The environment variable that makes a test process one of several workers.
const WORKER: &str = "UNSTICKY_DIRECTORY_WORKER";

const SIGN_INS: usize = 25;

/// Not a test of its own: what each of four processes runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker() {
    let Ok(url) = std::env::var(WORKER) else { return };
    let sessions = sessions(unsticky::connect(&url).unwrap(), DirectoryMode::Listed, "fleet");
    for _ in 0..SIGN_INS {
        let arrive = async |session: Session| {
            session.sign_in_with(SignIn::new(ALICE).label(std::process::id().to_string()))
        };
        let visit = visit(&sessions, "", arrive).await;
        match visit.failure() {
            None => println!("COOKIE {}", visit.cookie()),
            Some(failure) => assert_eq!(failure, ErrorKind::Contended),
        }
    }
}

/// A limit of three holds whoever decides, and what all of them have listed is alive.
async fn four_processes(on: Backend) {
    let url = on.url();
    let spawn = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker", "--nocapture", "--test-threads", "1"])
            .env(WORKER, &url)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let workers = [spawn(), spawn(), spawn(), spawn()];
    let mut cookies = Vec::new();
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter_map(|line| line.split_once("COOKIE "));
        cookies.extend(lines.map(|(_, cookie)| cookie.to_owned()));
    }
    assert!(cookies.len() >= 3 * SIGN_INS, "{} of {}", cookies.len(), 4 * SIGN_INS);
    let sessions = sessions(on.store(), DirectoryMode::Listed, "fleet");
    let mut usable = 0;
    for cookie in &cookies {
        usable += u16::from(is_alice(&sessions, cookie).await);
    }
    assert_eq!(usable, LIMIT);
    let directory = sessions.of(ALICE);
    assert_eq!(directory.count().await.unwrap(), usize::from(LIMIT));
    let revoked = directory.revoke_all().await.unwrap();
    assert_eq!((revoked.count, revoked.complete), (usize::from(LIMIT), true));
    for cookie in &cookies {
        assert!(!is_alice(&sessions, cookie).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_limit_holds_across_four_processes_on_redis() {
    four_processes(Backend::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_limit_holds_across_four_processes_on_memcached() {
    four_processes(Backend::memcached()).await;
}
