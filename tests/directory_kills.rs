//! Processes that are killed between any two commands of a sign-in or a revocation, and several processes
//! that sign in at once. Every session whose cookie was sent is listed, every revoked session is invalid, and
//! no operation hangs.

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

/// Kills a process at one of its commands, either before the command is sent or after it was applied.
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

/// The operation during which the process is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    SignIn,
    /// A sign-in with the session of an anonymous visitor.
    SignInHere,
    /// A sign-in that starts with `begin_sign_in`.
    BegunSignIn,
    BegunSignInHere,
    /// A sign-in that exceeds the limit by one session.
    Evict,
    StepUp,
    LongerLife,
    /// A switch to another principal and back.
    Switch,
    /// A sign-out and a sign-in in one request.
    StartOver,
    RevokeOne,
    RevokeOthers,
    RevokeAll,
    List,
}

impl Deed {
    /// Returns whether the operation creates a new session for Alice.
    fn makes_new_session(self) -> bool {
        use Deed::{BegunSignIn, Evict, SignIn, StartOver, Switch};
        matches!(self, SignIn | BegunSignIn | Evict | Switch | StartOver)
    }
}

const DEEDS: [Deed; 13] = [
    Deed::SignIn,
    Deed::SignInHere,
    Deed::BegunSignIn,
    Deed::BegunSignInHere,
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
    // No operation of a process may take this long.
    let builder = builder.timeout(Duration::from_secs(5));
    builder.concurrent_sessions(ConcurrentSessions::EvictOldest(LIMIT)).build().unwrap()
}

async fn arrives(sessions: &Sessions) -> String {
    visit(sessions, "", async |session: Session| session.sign_in(ALICE)).await.cookie()
}

/// Returns this cookie's session, if Alice is signed in with it.
async fn alices(sessions: &Sessions, cookie: &str) -> Option<SessionId> {
    let who = async |session: Session| {
        Ok(session.id().filter(|_| session.principal().as_deref() == Some(ALICE)))
    };
    visit(sessions, cookie, who).await.ok()
}

async fn is_alice(sessions: &Sessions, cookie: &str) -> bool {
    alices(sessions, cookie).await.is_some()
}

async fn begun_sign_in(sessions: &Sessions, cookie: &str) {
    let begun = sessions.of(ALICE).begin_sign_in().await.unwrap();
    drop(visit(sessions, cookie, async |session: Session| session.sign_in_with(begun)).await);
}

async fn carry_out(sessions: &Sessions, deed: Deed, cookies: &[String], anonymous: &str) {
    let directory = sessions.of(ALICE);
    let sign_in = async |session: Session| session.sign_in(ALICE);
    match deed {
        Deed::SignIn | Deed::Evict => drop(visit(sessions, "", sign_in).await),
        Deed::SignInHere => drop(visit(sessions, anonymous, sign_in).await),
        Deed::BegunSignIn => begun_sign_in(sessions, "").await,
        Deed::BegunSignInHere => begun_sign_in(sessions, anonymous).await,
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

/// Returns Alice's sessions that the store holds, whichever process created them.
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

/// Kills a process at each command of each operation. `open` connects a process to the store.
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
        // This drops the runtime and all work in progress.
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
        assert!(listed.is_subset(&alive), "{place}: {listed:?} of {alive:?}");
        // A sign-in that was killed before it was listed leaves a record of a session whose secret was
        // never sent.
        let orphans: HashSet<_> = alive.difference(&listed).copied().collect();
        let most = usize::from(deed.makes_new_session() && !survived);
        assert!(orphans.len() <= most, "{place}: {orphans:?}");
        // A sign-out and a sign-in in one request leave two sessions for a moment, because a refused write
        // must change nothing.
        let spare = usize::from(deed == Deed::StartOver && !survived);
        assert!(listed.len() <= usize::from(LIMIT) + spare, "{place}");
        let mut usable = 0;
        for cookie in &cookies {
            if let Some(id) = timeout(bounded, alices(&own, cookie)).await.expect(place) {
                assert!(listed.contains(&id), "{place}: {id:?}");
                usable += 1;
            }
        }
        match deed {
            // Either all sessions are alive or none is.
            Deed::RevokeAll => assert!(alive.is_empty() || usable == 2, "{place}: {usable}"),
            // A killed sign-in ends no session, unless one had to be evicted.
            Deed::SignIn
            | Deed::SignInHere
            | Deed::BegunSignIn
            | Deed::BegunSignInHere
            | Deed::List => assert_eq!(usable, 2, "{place}"),
            Deed::Evict => assert!(usable >= usize::from(LIMIT) - 1, "{place}"),
            Deed::StepUp | Deed::LongerLife | Deed::Switch | Deed::StartOver => {
                assert!(usable >= 1, "{place}")
            }
            Deed::RevokeOne => {
                assert!(usable == 1 || (!survived && usable == 2), "{place}: {usable}")
            }
            // The kept session's cookie may have been replaced before the response arrived, so the records
            // are counted instead.
            Deed::RevokeOthers if survived => assert_eq!(alive.len(), 1, "{place}"),
            Deed::RevokeOthers => assert!(!alive.is_empty(), "{place}"),
        }
        // The account works as if nothing had happened.
        let newest = timeout(bounded, arrives(&own)).await.expect(place);
        assert!(is_alice(&own, &newest).await, "{place}");
        timeout(bounded, directory.revoke_all()).await.expect(place).expect(place);
        let keys_seen = keys.lock().unwrap().clone();
        assert_eq!(stored(&survivor, &keys_seen).await, orphans, "{place}");
        assert!(!is_alice(&own, &newest).await, "{place}");
    });
    survived
}

/// How far a command had progressed when its process was killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Progress {
    NotSent,
    /// Applied, but not answered.
    Applied,
    Answered,
}

/// How far each command of a sign-in with a new session had progressed when the process was killed. The
/// session is created while the directory is loaded, and the directory is written afterwards.
#[derive(Debug, Clone, Copy)]
struct Point {
    is_begun: bool,
    create: Progress,
    load: Progress,
    write: Progress,
}

impl Point {
    fn every() -> Vec<Self> {
        use Progress::{Answered, Applied, NotSent};
        let mut points = Vec::new();
        for create in [NotSent, Applied, Answered] {
            for load in [NotSent, Applied, Answered] {
                points.push(Self { is_begun: false, create, load, write: NotSent });
            }
            // A sign-in from `begin_sign_in` has already read the directory.
            points.push(Self { is_begun: true, create, load: Answered, write: NotSent });
        }
        for is_begun in [false, true] {
            points.push(Self { is_begun, create: Answered, load: Answered, write: Applied });
        }
        points
    }
}

/// A process that is killed at a certain point of its sign-in.
struct Doomed {
    point: Point,
    /// The number of commands that have not yet progressed this far.
    left: AtomicUsize,
    died: Notify,
    keys: Arc<Mutex<HashSet<StoreKey>>>,
}

impl Interceptor for Doomed {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        key: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        self.keys.lock().unwrap().insert(key.clone());
        let progress = match (verb, key.kind()) {
            (Verb::Create, Kind::Session) => self.point.create,
            (Verb::Load, Kind::Directory) => self.point.load,
            (Verb::Create | Verb::Replace, Kind::Directory) => self.point.write,
            _ => panic!("{verb:?} of {key:?}"),
        };
        let answer = match progress {
            Progress::NotSent => None,
            Progress::Applied => {
                call().await?;
                None
            }
            Progress::Answered => Some(call().await),
        };
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.died.notify_one();
        }
        match answer {
            Some(answer) => answer,
            None => pending().await,
        }
    }
}

/// Kills a process at each point of a sign-in. Existing sessions stay valid and listed. The new session is
/// listed if the directory was written; otherwise, no directory ever lists it.
fn dies_at_every_point(open: &dyn Fn() -> Arc<dyn Store>, mode: DirectoryMode) {
    for (number, point) in Point::every().into_iter().enumerate() {
        for has_directory in [false, true] {
            let namespace = format!("{mode:?}-{number}-{has_directory}");
            dies_at_point(open, mode, point, has_directory, &namespace);
        }
    }
}

fn dies_at_point(
    open: &dyn Fn() -> Arc<dyn Store>,
    mode: DirectoryMode,
    point: Point,
    has_directory: bool,
    namespace: &str,
) {
    let Point { is_begun, create, load, write } = point;
    let place = &format!("{mode:?} {point:?}, directory: {has_directory}");
    let (survivor, keys) = (open(), Arc::new(Mutex::new(HashSet::new())));
    let own = sessions(survivor.clone(), mode, namespace);
    let here = runtime();
    let mut cookies = Vec::new();
    if has_directory {
        cookies.push(here.block_on(arrives(&own)));
    }
    let there = runtime();
    there.block_on(async {
        let is_listing = create == Progress::Answered && load == Progress::Answered;
        let doomed = Doomed {
            point,
            left: AtomicUsize::new(2 + usize::from(is_listing)),
            died: Notify::new(),
            keys: keys.clone(),
        };
        let doomed = Intercepted::new(open(), doomed);
        let others = sessions(doomed.clone(), mode, namespace);
        let sign_in = async {
            match is_begun {
                true => begun_sign_in(&others, "").await,
                false => drop(arrives(&others).await),
            }
        };
        let dies = async {
            tokio::select! {
                () = sign_in => panic!("{place}: it survived"),
                () = doomed.interceptor.died.notified() => {}
            }
        };
        timeout(Duration::from_secs(4), dies).await.expect(place);
    });
    // This drops the runtime and all work in progress.
    there.shutdown_background();
    here.block_on(async {
        let keys = keys.lock().unwrap().clone();
        let is_created = create != Progress::NotSent;
        let is_listed = write == Progress::Applied;
        let new = stored(&survivor, &keys).await;
        assert_eq!(new.len(), usize::from(is_created), "{place}");
        let list = own.of(ALICE).list().await.expect(place);
        let mut listed: HashSet<_> = list.iter().map(|listed| listed.id).collect();
        assert_eq!(new.is_subset(&listed), is_listed || !is_created, "{place}");
        for cookie in &cookies {
            let id = alices(&own, cookie).await.expect(place);
            assert!(listed.remove(&id), "{place}");
        }
        assert_eq!(listed.len(), usize::from(is_listed), "{place}");
        let newest = arrives(&own).await;
        assert!(is_alice(&own, &newest).await, "{place}");
        let revoked = own.of(ALICE).revoke_all().await.expect(place);
        let count = cookies.len() + usize::from(is_listed) + 1;
        assert_eq!((revoked.count, revoked.complete), (count, true), "{place}");
        for cookie in cookies.iter().chain([&newest]) {
            assert!(!is_alice(&own, cookie).await, "{place}");
        }
        let left = stored(&survivor, &keys).await.len();
        assert_eq!(left, usize::from(is_created && !is_listed), "{place}");
    });
}

fn everywhere(open: &dyn Fn() -> Arc<dyn Store>) {
    for mode in [DirectoryMode::Listed, DirectoryMode::Strict] {
        dies_everywhere(open, mode);
        dies_at_every_point(open, mode);
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

/// The environment variable that makes a test process a worker.
const WORKER: &str = "UNSTICKY_DIRECTORY_WORKER";

const SIGN_INS: usize = 25;

/// This is not a test, but the code that each of four processes runs.
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

/// Four processes sign in at once. The limit of three sessions holds whichever process enforces it, and every
/// listed session is alive.
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
