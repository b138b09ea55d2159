//! A constant load from visitors to several processes. It records the responses and checks them against the
//! sessions.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::iter::{once, successors};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use tokio::sync::RwLock;
use unsticky::store::StoreKey;
use unsticky::testing::Verb;
use unsticky::{ErrorKind, Key, Result, Session, Sessions};

use super::faults::TIMEOUT;
use super::interceptor::{Call, Intercepted, Interceptor};
use super::runtime;
use super::topologies::{eventually, slot_of};
use super::visit::{sign_out, visit};

const NUMBER: Key<u64> = Key::new("number");

/// The number of processes. Each has its own store and runtime.
const PROCESSES: usize = 3;

/// The number of users. Each user sends requests to all processes concurrently.
pub const USERS: usize = 12;

/// The number of increments that a user's first process makes between a sign-in and the sign-out.
const STAY: usize = 8;

/// A request that takes longer than this counts as hanging.
const HANG: Duration = Duration::from_millis(1500);

/// Users who sign in, concurrently increment a number in their sessions at several processes, read the
/// number, and sign out.
pub struct Load {
    url: String,
    users: Vec<Arc<User>>,
    journal: Arc<Journal>,
    is_over: Arc<AtomicBool>,
    processes: Vec<JoinHandle<()>>,
}

/// What happened during the load.
#[derive(Default)]
struct Journal {
    requests: Mutex<Vec<Request>>,
    commands: Mutex<Vec<Command>>,
    /// The distinct reasons why commands failed, and how many commands failed for each.
    reasons: Mutex<BTreeMap<String, usize>>,
    ended: Mutex<Vec<String>>,
    sign_ins: AtomicU64,
    lost_sessions: AtomicU64,
    lost_updates: AtomicU64,
    doubled_updates: AtomicU64,
    resurrected: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    took: Duration,
    failure: Option<ErrorKind>,
}

/// A store command and its result.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    pub slot: u16,
    pub is_write: bool,
    pub begun: Instant,
    pub ended: Instant,
    pub is_answered: bool,
}

struct User {
    name: String,
    /// A request that signs the user in or out holds this lock exclusively.
    cookie: RwLock<Option<String>>,
    /// The acknowledged increments of the session's number. `unknown` counts the in-doubt increments, which
    /// are not included here.
    counted: AtomicU64,
    unknown: AtomicU64,
    /// Whether the session was missing although no request had ended it.
    is_lost: AtomicBool,
}

impl Load {
    /// Starts the load. Returns when there have been twice as many sign-ins as users.
    pub fn start(url: &str) -> Self {
        let user = |number| User {
            name: format!("user-{number}"),
            cookie: RwLock::new(None),
            counted: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            is_lost: AtomicBool::new(false),
        };
        let users: Vec<_> = (0..USERS).map(|number| Arc::new(user(number))).collect();
        let (journal, is_over) = (Arc::<Journal>::default(), Arc::<AtomicBool>::default());
        let processes = (0..PROCESSES).map(|process| {
            let (url, users) = (url.to_owned(), users.clone());
            let (journal, is_over) = (journal.clone(), is_over.clone());
            thread::spawn(move || {
                runtime().block_on(async {
                    let sessions = sessions(&url, &journal);
                    let stays =
                        users.iter().enumerate().map(|(number, user)| {
                            let mut visitor = Visitor {
                                sessions: &sessions,
                                user,
                                journal: &journal,
                                is_over: &is_over,
                                rng: Rng::with_seed((process * USERS + number) as u64),
                            };
                            let is_first = number % PROCESSES == process;
                            async move {
                                if is_first { visitor.stay().await } else { visitor.call().await }
                            }
                        });
                    join_all(stays).await;
                });
            })
        });
        let processes = processes.collect();
        eventually("the load does not begin", || {
            journal.sign_ins.load(Ordering::Relaxed) >= 2 * USERS as u64
        });
        Self { url: url.to_owned(), users, journal, is_over, processes }
    }

    /// Stops the load, reads every session that was signed out, and returns the report.
    pub fn end(mut self) -> Report {
        self.is_over.store(true, Ordering::Relaxed);
        for process in self.processes.drain(..) {
            process.join().unwrap();
        }
        let journal = &*self.journal;
        let ended = std::mem::take(&mut *journal.ended.lock().unwrap());
        let requests = std::mem::take(&mut *journal.requests.lock().unwrap());
        let commands = std::mem::take(&mut *journal.commands.lock().unwrap());
        runtime().block_on(async {
            let sessions = sessions(&self.url, &self.journal);
            let looks = ended.iter().map(|cookie| async {
                let look = async |session: Session| Ok(session.principal().is_some());
                u64::from(visit(&sessions, cookie, look).await.ok())
            });
            let looks = futures_util::stream::iter(looks).buffer_unordered(20);
            let resurrected = looks.fold(0, async |sum, one| sum + one).await;
            journal.resurrected.fetch_add(resurrected, Ordering::Relaxed);
        });
        let mut failures = BTreeMap::new();
        for failure in requests.iter().filter_map(|request| request.failure) {
            *failures.entry(format!("{failure:?}")).or_insert(0) += 1;
        }
        let reasons = std::mem::take(&mut *journal.reasons.lock().unwrap());
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            requests: requests.len(),
            failures,
            hangs: requests.iter().filter(|request| request.took > HANG).count(),
            longest: requests.iter().map(|request| request.took).max().unwrap_or_default(),
            commands,
            reasons,
            sign_outs: ended.len(),
            lost_sessions: number(&journal.lost_sessions),
            lost_updates: number(&journal.lost_updates),
            doubled_updates: number(&journal.doubled_updates),
            resurrected: number(&journal.resurrected),
        }
    }
}

/// If a test fails, its load must not continue during the next test.
impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// The results of a load.
pub struct Report {
    pub requests: usize,
    /// The number of failed requests per kind of error.
    pub failures: BTreeMap<String, usize>,
    pub hangs: usize,
    pub longest: Duration,
    pub commands: Vec<Command>,
    /// The reasons why commands failed, and how many commands failed for each.
    pub reasons: BTreeMap<String, usize>,
    pub sign_outs: usize,
    /// The number of sessions that were missing although no request had ended them.
    pub lost_sessions: u64,
    /// The number of acknowledged increments that were missing.
    pub lost_updates: u64,
    /// The number of increments that were present although they had not been requested.
    pub doubled_updates: u64,
    /// The number of sessions that were present although they had been signed out.
    pub resurrected: u64,
}

impl Report {
    /// Returns the number of acknowledged changes that were undone.
    pub fn lost(&self) -> u64 {
        self.lost_sessions + self.lost_updates + self.resurrected
    }

    /// Returns the number of writes that were acknowledged in this period.
    pub fn written_between(&self, begin: Instant, end: Instant) -> usize {
        let is_one = |command: &&Command| {
            command.is_write && command.is_answered && (begin..end).contains(&command.ended)
        };
        self.commands.iter().filter(is_one).count()
    }

    /// Returns whether all failures were of kinds for which another attempt may succeed.
    pub fn is_told_to_come_again(&self) -> bool {
        let kinds = ["Unavailable", "OutcomeUnknown", "Contended"];
        self.failures.keys().all(|kind| kinds.contains(&&**kind))
    }

    /// Returns the failed commands whose keys are in these slots.
    pub fn failed(&self, mut slots: impl FnMut(u16) -> bool) -> Vec<Command> {
        let failed = self.commands.iter().filter(|command| !command.is_answered);
        failed.filter(|command| slots(command.slot)).copied().collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, failures, longest, commands, sign_outs, .. } = self;
        write!(
            f,
            "{requests} requests, {} commands, failures {failures:?}, longest {longest:.1?}, \
             {sign_outs} sign-outs; lost: {} sessions, {} updates, {} sign-outs; commands failed: {:?}",
            commands.len(),
            self.lost_sessions,
            self.lost_updates,
            self.resurrected,
            self.reasons,
        )
    }
}

/// Returns the sessions of one process, whose store commands are recorded.
fn sessions(url: &str, journal: &Arc<Journal>) -> Sessions {
    let store = unsticky::connect(url).unwrap();
    let store = Intercepted::new(store, Observer(journal.clone()));
    Sessions::builder(store).timeout(TIMEOUT).build().unwrap()
}

struct Observer(Arc<Journal>);

/// A command in progress, which counts as failed if its caller abandons it.
struct Underway<'a> {
    journal: &'a Journal,
    command: Command,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.command.ended = Instant::now();
        self.journal.commands.lock().unwrap().push(self.command);
    }
}

impl Interceptor for Observer {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        key: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let (slot, is_write) = (slot_of(key.as_str()), verb != Verb::Load);
        let command = Command { slot, is_write, begun, ended: begun, is_answered: false };
        let mut underway = Underway { journal: &self.0, command };
        let answer = call().await;
        underway.command.is_answered = answer.is_ok();
        if let Err(error) = &answer {
            *self.0.reasons.lock().unwrap().entry(reason(error)).or_insert(0) += 1;
        }
        answer
    }
}

/// Returns the error and its causes.
fn reason(error: &unsticky::Error) -> String {
    let causes = successors(error.source(), |&cause| cause.source());
    once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

/// A user's requests to one of the processes.
struct Visitor<'a> {
    sessions: &'a Sessions,
    user: &'a User,
    journal: &'a Journal,
    is_over: &'a AtomicBool,
    rng: Rng,
}

impl Visitor<'_> {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// Repeatedly signs in, increments and reads the number, and signs out.
    async fn stay(&mut self) {
        while self.goes_on() {
            self.sign_in().await;
            for _ in 0..STAY {
                self.count().await;
            }
            self.look_and_sign_out().await;
        }
    }

    /// Increments the number whenever the user is signed in.
    async fn call(&mut self) {
        while self.goes_on() {
            self.count().await;
        }
    }

    async fn pause(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(8..24))).await;
    }

    async fn sign_in(&mut self) {
        let mut cookie = self.user.cookie.write().await;
        while cookie.is_none() && self.goes_on() {
            let name = self.user.name.clone();
            let (visit, failure) = self
                .ask("", async move |session: Session| {
                    session.sign_in(&name)?;
                    session.insert(NUMBER, &0)
                })
                .await;
            if failure.is_none() {
                self.user.counted.store(0, Ordering::Relaxed);
                self.user.unknown.store(0, Ordering::Relaxed);
                self.user.is_lost.store(false, Ordering::Relaxed);
                self.journal.sign_ins.fetch_add(1, Ordering::Relaxed);
                *cookie = Some(visit.1);
            } else {
                self.pause().await;
            }
        }
    }

    async fn count(&mut self) {
        self.pause().await;
        let user = self.user;
        let cookie = user.cookie.read().await;
        let Some(cookie) = &*cookie else { return };
        if user.is_lost.load(Ordering::Relaxed) {
            return;
        }
        let ((is_there, _), failure) = self
            .ask(cookie, async |session: Session| {
                let is_there = session.principal().is_some();
                if is_there {
                    session.update(NUMBER, |number| *number += 1)?;
                }
                Ok(is_there)
            })
            .await;
        match (failure, is_there) {
            (None, Some(true)) => {
                user.counted.fetch_add(1, Ordering::Relaxed);
            }
            (None | Some(ErrorKind::Gone), _) => self.is_lost(),
            (Some(ErrorKind::OutcomeUnknown), _) => {
                user.unknown.fetch_add(1, Ordering::Relaxed);
            }
            (Some(_), _) => {}
        }
    }

    fn is_lost(&self) {
        if !self.user.is_lost.swap(true, Ordering::Relaxed) {
            self.journal.lost_sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads the number, checks it, and signs out. Meanwhile no other request uses the session.
    async fn look_and_sign_out(&mut self) {
        let user = self.user;
        let mut cookie = user.cookie.write().await;
        let Some(signed_in) = cookie.take() else { return };
        let mut number = None;
        while number.is_none() && !user.is_lost.load(Ordering::Relaxed) {
            let look =
                async |session: Session| Ok((session.principal().is_some(), session.get(NUMBER)?));
            match self.ask(&signed_in, look).await {
                ((Some((true, found)), _), None) => number = Some(found.unwrap_or(0)),
                (_, None) => self.is_lost(),
                _ if self.goes_on() => self.pause().await,
                _ => return,
            }
        }
        let Some(number) = number else { return };
        let counted = user.counted.load(Ordering::Relaxed);
        let most = counted + user.unknown.load(Ordering::Relaxed);
        self.journal.lost_updates.fetch_add(counted.saturating_sub(number), Ordering::Relaxed);
        self.journal.doubled_updates.fetch_add(number.saturating_sub(most), Ordering::Relaxed);
        // If the sign-out is in doubt, the session is not checked later.
        if self.ask(&signed_in, sign_out).await.1.is_none() {
            self.journal.ended.lock().unwrap().push(signed_in);
        }
    }

    /// Sends a request. Returns the handler's result and the cookie, and the kind of error if the request
    /// failed.
    async fn ask<T>(
        &self,
        cookie: &str,
        handler: impl AsyncFnOnce(Session) -> Result<T>,
    ) -> ((Option<T>, String), Option<ErrorKind>) {
        let begun = Instant::now();
        let visit = visit(self.sessions, cookie, handler).await;
        let failure = visit.failure();
        let request = Request { took: begun.elapsed(), failure };
        self.journal.requests.lock().unwrap().push(request);
        let cookie = visit.cookie();
        ((visit.output.ok(), cookie), failure)
    }
}
