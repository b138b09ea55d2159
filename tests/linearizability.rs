//! Several concurrent clients send the four store commands to every store. Each recorded history is
//! checked for linearizability against a model of one key. Stores with a seeded fault verify that the
//! checker finds it.
//!
//! `UNSTICKY_LONG=1` runs ten times as many histories.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]
#![allow(clippy::print_stdout, reason = "it prints what was checked")]

mod support;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use fastrand::Rng;
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};
use support::backend::{Backend, Server, patient};
use support::late::{Late, Postponed, faulty};
use support::proxy::{Mode, Proxy};
use support::topologies::{RedisCluster, SHARDS, slot_of};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use unsticky::store::{Created, Deleted, Diagnose, Replaced, Store, StoreKey, Stored, Version};
use unsticky::testing::{Fault, FaultStore, Verb, random_key};
use unsticky::{ErrorKind, Result};

const CLIENTS: usize = 4;
/// The rounds of one history. After each round, the clients wait for each other and one of them loads
/// the record. This limits the checker's search and shows the state in which the next round starts.
const ROUNDS: usize = 3;
/// The calls that each client makes in one round. The checker's time grows much faster than this
/// number.
const CALLS: usize = 3;
const CALLS_IN_ALL: usize = ROUNDS * (CLIENTS * CALLS + 1);
/// Once this many calls have no answer, no more calls are made: for each of them, the checker must try
/// both outcomes, that it took effect and that it did not.
const MAX_UNKNOWN: usize = 4;
/// Calls left over from earlier rounds are numbered from here. A round makes fewer calls than this.
const LATE: usize = 1000;
const HOUR: Duration = Duration::from_secs(3600);

/// Identifies the write that stored a record; it is in the record's first eight bytes. No two writes
/// share a tag, so the model uses it in place of the store's version.
type Tag = u64;

/// The reference model: one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct OneKey(Option<Tag>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Create(Tag),
    Load,
    Replace { expected: Tag, new: Tag },
    Delete(Option<Tag>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ret {
    Created,
    Occupied,
    Loaded(Option<Tag>),
    Replaced,
    /// Contains the stored record's tag if the answer includes the record.
    Conflict(Option<Tag>),
    Missing,
    Deleted,
    /// The call took effect, but its answer was lost.
    Applied,
}

impl SequentialSpec for OneKey {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        match (*op, self.0) {
            (Op::Create(_), Some(_)) => Ret::Occupied,
            (Op::Create(new), None) => {
                self.0 = Some(new);
                Ret::Created
            }
            (Op::Load, current) => Ret::Loaded(current),
            (Op::Replace { .. } | Op::Delete(_), None) => Ret::Missing,
            (Op::Replace { expected, new }, Some(current)) if current == expected => {
                self.0 = Some(new);
                Ret::Replaced
            }
            (Op::Delete(expected), Some(current)) if expected.is_none_or(|tag| tag == current) => {
                self.0 = None;
                Ret::Deleted
            }
            (_, current) => Ret::Conflict(current),
        }
    }

    fn is_valid_step(&mut self, op: &Op, ret: &Ret) -> bool {
        match (self.invoke(op), ret) {
            (Ret::Conflict(_), Ret::Conflict(None))
            | (Ret::Created | Ret::Replaced | Ret::Deleted, Ret::Applied) => true,
            (does, said) => does == *said,
        }
    }
}

/// What the clients did with one key.
struct History {
    key: StoreKey,
    /// The part of each tag that is the same throughout the history.
    number: u64,
    writes: AtomicU64,
    /// The write for which each version was reported.
    versions: Mutex<Vec<(Version, Tag)>>,
    /// Answers that are wrong whatever happened before.
    nonsense: Mutex<Vec<String>>,
    round: Mutex<Round>,
}

/// What the clients did in one round, in real-time order: a call is recorded before it is made, and its
/// answer after it has arrived.
#[derive(Debug, Clone, Default)]
struct Round {
    /// The record that was stored before the round.
    before: OneKey,
    /// Calls from earlier rounds that have no answer and can still take effect.
    pending: Vec<Op>,
    /// The number of calls without an answer, including those from earlier rounds.
    unknown: usize,
    events: Vec<Event>,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Call {
        call: usize,
        client: usize,
        op: Op,
    },
    Answer {
        call: usize,
        ret: Ret,
    },
    /// The call is known to have had no effect.
    Nothing {
        call: usize,
    },
}

impl History {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        Self {
            key: random_key(),
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            writes: AtomicU64::new(0),
            versions: Mutex::default(),
            nonsense: Mutex::default(),
            round: Mutex::default(),
        }
    }

    fn tag(&self) -> Tag {
        self.number << 16 | self.writes.fetch_add(1, Ordering::Relaxed)
    }

    fn call(&self, client: usize, op: Op) -> usize {
        let events = &mut self.round.lock().unwrap().events;
        let call = events.len();
        events.push(Event::Call { call, client, op });
        call
    }

    fn note(&self, event: Event) {
        self.round.lock().unwrap().events.push(event);
    }

    fn version(&self, version: Version, tag: Tag) -> Known {
        self.versions.lock().unwrap().push((version, tag));
        Known { version, tag }
    }

    fn stored(&self, stored: &Stored) -> Known {
        let tag = stored.bytes.first_chunk().map_or(0, |bytes| Tag::from_be_bytes(*bytes));
        if stored.bytes != record(tag) || tag >> 16 != self.number {
            self.nonsense.lock().unwrap().push(format!("{stored:?} is no record of this key"));
        }
        self.version(stored.version, tag)
    }

    /// Returns a description of how the store broke its contract, or `None`.
    fn violation(&self) -> Option<String> {
        if let Some(nonsense) = self.nonsense.lock().unwrap().first() {
            return Some(nonsense.clone());
        }
        let (mut tags, mut versions) = (HashMap::new(), HashMap::new());
        for &(version, tag) in &*self.versions.lock().unwrap() {
            if *tags.entry(version).or_insert(tag) != tag
                || *versions.entry(tag).or_insert(version) != version
            {
                return Some(format!("{version:?} is not the version of one write, {tag:x}"));
            }
        }
        let round = self.round.lock().unwrap();
        let seen = versions.keys().copied().collect();
        (!round.is_linearizable(&seen)).then(|| format!("not linearizable: {round:#x?}"))
    }

    /// Starts the next round. Returns `false` if there must not be another.
    fn goes_on(&self) -> bool {
        let round = &mut *self.round.lock().unwrap();
        let Some(current) = round.left() else { return false };
        round.pending.extend(round.unanswered());
        let seen = self.versions.lock().unwrap();
        // A write takes effect only once, and no version is used twice. The checker may assume that a
        // deletion takes effect a second time; this only makes the check more lenient.
        round.pending.retain(|op| match *op {
            Op::Load => false,
            Op::Create(tag) => !seen.iter().any(|(_, seen)| *seen == tag),
            Op::Replace { expected, .. } => current == Some(expected),
            Op::Delete(expected) => expected.is_none() || expected == current,
        });
        round.before = OneKey(current);
        round.events.clear();
        round.unknown = round.pending.len();
        round.unknown < MAX_UNKNOWN
    }
}

impl Round {
    fn calls(&self) -> impl Iterator<Item = (usize, Op)> {
        self.events.iter().filter_map(|event| match *event {
            Event::Call { call, op, .. } => Some((call, op)),
            _ => None,
        })
    }

    fn unanswered(&self) -> Vec<Op> {
        let ended = self.ended();
        self.calls().filter(|(call, _)| !ended.contains_key(call)).map(|(_, op)| op).collect()
    }

    /// Returns the finished calls, each with its answer, or `None` if it is known to have had no
    /// effect.
    fn ended(&self) -> HashMap<usize, Option<Ret>> {
        let ended = self.events.iter().filter_map(|event| match *event {
            Event::Call { .. } => None,
            Event::Answer { call, ret } => Some((call, Some(ret))),
            Event::Nothing { call } => Some((call, None)),
        });
        ended.collect()
    }

    /// Returns what the final load of the round returned.
    fn left(&self) -> Option<Option<Tag>> {
        match self.events.last()? {
            Event::Answer { ret: Ret::Loaded(left), .. } => Some(*left),
            _ => None,
        }
    }

    /// Returns whether some order explains the answers. For each call without an answer, the checker
    /// guesses whether and when it took effect. `seen` contains the writes that a client has observed.
    fn is_linearizable(&self, seen: &HashSet<Tag>) -> bool {
        let ended = self.ended();
        let open = self.calls().filter(|(call, _)| !ended.contains_key(call));
        let late = self.pending.iter().enumerate().map(|(number, op)| (LATE + number, *op));
        // A call whose effect was observed needs no guess: it took effect.
        let (mut applied, mut guesses) = (HashSet::new(), Vec::new());
        for (call, op) in open.chain(late) {
            match op {
                Op::Create(new) | Op::Replace { new, .. } if seen.contains(&new) => {
                    applied.insert(call);
                }
                _ => guesses.push(call),
            }
        }
        (0..1_u32 << guesses.len()).any(|guess| {
            let guessed = guesses.iter().enumerate().filter(|(bit, _)| guess >> bit & 1 == 1);
            let mut applied = applied.clone();
            applied.extend(guessed.map(|(_, call)| *call));
            self.is_linearizable_with(&ended, &applied)
        })
    }

    fn is_linearizable_with(
        &self,
        ended: &HashMap<usize, Option<Ret>>,
        applied: &HashSet<usize>,
    ) -> bool {
        let mut tester = LinearizabilityTester::new(self.before);
        // A call without an answer stays open until the end, so it gets a thread to itself.
        let alone = |call| CLIENTS + call;
        for (number, op) in self.pending.iter().enumerate() {
            if applied.contains(&(LATE + number)) {
                tester.on_invoke(alone(LATE + number), *op).unwrap();
            }
        }
        let mut threads = HashMap::new();
        for event in &self.events {
            match *event {
                Event::Call { call, client, op } => {
                    let thread = match ended.get(&call) {
                        Some(Some(_)) => client,
                        None if applied.contains(&call) => alone(call),
                        _ => continue,
                    };
                    threads.insert(call, thread);
                    tester.on_invoke(thread, op).unwrap();
                }
                Event::Answer { call, ret } => {
                    tester.on_return(threads[&call], ret).unwrap();
                }
                Event::Nothing { .. } => {}
            }
        }
        for call in applied {
            tester.on_return(alone(*call), Ret::Applied).unwrap();
        }
        tester.is_consistent()
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        let mut open = 0;
        for event in &self.events {
            match event {
                Event::Call { .. } => {
                    tally.calls += 1;
                    tally.overlapping += usize::from(open > 0);
                    open += 1;
                }
                Event::Nothing { .. } => {
                    tally.nothing += 1;
                    open -= 1;
                }
                Event::Answer { ret, .. } => {
                    open -= 1;
                    tally.answers[match ret {
                        Ret::Created => 0,
                        Ret::Occupied => 1,
                        Ret::Loaded(None) => 2,
                        Ret::Loaded(Some(_)) => 3,
                        Ret::Replaced => 4,
                        Ret::Conflict(_) => 5,
                        Ret::Missing => 6,
                        Ret::Deleted => 7,
                        Ret::Applied => panic!("no store answers this"),
                    }] += 1;
                }
            }
        }
        tally.unknown = open;
        tally
    }
}

/// Counts what was checked.
#[derive(Debug, Clone, Default)]
struct Tally {
    histories: usize,
    calls: usize,
    /// Calls that started while another call was open.
    overlapping: usize,
    unknown: usize,
    nothing: usize,
    answers: [usize; 8],
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.calls += other.calls;
        self.overlapping += other.overlapping;
        self.unknown += other.unknown;
        self.nothing += other.nothing;
        self.answers.iter_mut().zip(other.answers).for_each(|(sum, count)| *sum += count);
    }
}

/// A version that a client has seen, and the write that it identifies.
#[derive(Debug, Clone, Copy)]
struct Known {
    version: Version,
    tag: Tag,
}

impl Known {
    fn stored(self) -> Stored {
        Stored::new(record(self.tag), self.version)
    }
}

/// Returns the record that a write stores. The lengths vary, and every byte depends on the tag.
fn record(tag: Tag) -> Bytes {
    let body = (0..tag % 251).map(|at| (tag.wrapping_mul(31) >> (at % 8)) as u8);
    tag.to_be_bytes().into_iter().chain(body).collect()
}

/// How calls fail.
#[derive(Clone)]
enum Trouble {
    None,
    /// In a store in this process: requests and answers are lost or delayed.
    Lost(FaultStore<Arc<dyn Store>>, Late, Arc<Mutex<Vec<Postponed>>>),
    /// Some calls are abandoned by their client; all other faults come from the network.
    GivenUp,
}

struct Client {
    number: usize,
    store: Arc<dyn Store>,
    history: Arc<History>,
    trouble: Trouble,
    rng: Rng,
    known: Vec<Known>,
}

impl Client {
    /// Runs one round.
    async fn run(mut self) -> Self {
        for _ in 0..CALLS {
            if self.history.round.lock().unwrap().unknown >= MAX_UNKNOWN {
                break;
            }
            for _ in 0..self.rng.u8(..3) {
                yield_now().await;
            }
            let op = self.choose();
            self.make_trouble(op.0).await;
            self.step(op).await;
        }
        self
    }

    /// Chooses a call, and the record that the call expects.
    fn choose(&mut self) -> (Op, Option<Known>) {
        // Mostly the latest record that the client has seen, sometimes one that may be out of date.
        let known = match self.known.len() {
            0 => None,
            count if self.rng.u8(..10) == 0 => Some(self.known[self.rng.usize(..count)]),
            count => Some(self.known[count - 1]),
        };
        let tag = self.history.tag();
        match (self.rng.u8(..100), known) {
            (0..55, Some(known)) => (Op::Replace { expected: known.tag, new: tag }, Some(known)),
            (55..65, Some(known)) => (Op::Delete(Some(known.tag)), Some(known)),
            (65..70, _) => (Op::Delete(None), None),
            (70..85, _) => (Op::Load, None),
            _ => (Op::Create(tag), None),
        }
    }

    async fn make_trouble(&mut self, op: Op) {
        let Trouble::Lost(store, late, postponed) = &self.trouble else { return };
        let verb = match op {
            Op::Create(_) => Verb::Create,
            Op::Load => Verb::Load,
            Op::Replace { .. } => Verb::Replace,
            Op::Delete(_) => Verb::Delete,
        };
        match self.rng.u8(..50) {
            0 => store.inject(verb, Fault::LoseAnswer),
            1 => store.inject(verb, Fault::LoseRequest),
            2 => store.inject(verb, Fault::Unavailable),
            3 | 4 => postponed.lock().unwrap().push(late.postpone(verb)),
            5..10 => {
                let command = postponed.lock().unwrap().pop();
                if let Some(command) = command {
                    command.deliver().await;
                }
            }
            _ => {}
        }
    }

    async fn step(&mut self, (op, expected): (Op, Option<Known>)) {
        let history = self.history.clone();
        let call = history.call(self.number, op);
        // Without this pause, calls to a store that answers without waiting would hardly ever overlap.
        if self.rng.bool() {
            yield_now().await;
        }
        let answer = match self.trouble {
            Trouble::GivenUp if self.rng.u8(..20) == 0 => {
                let patience = Duration::from_micros(self.rng.u64(..1000));
                timeout(patience, self.send(op, expected)).await.ok()
            }
            _ => Some(self.send(op, expected).await),
        };
        let error = match answer {
            Some(Ok(ret)) => return history.note(Event::Answer { call, ret }),
            Some(Err(error)) => error.kind(),
            None => ErrorKind::OutcomeUnknown,
        };
        match error {
            ErrorKind::Unavailable | ErrorKind::Refused => history.note(Event::Nothing { call }),
            ErrorKind::OutcomeUnknown if op == Op::Load => history.note(Event::Nothing { call }),
            ErrorKind::OutcomeUnknown => history.round.lock().unwrap().unknown += 1,
            kind => history.nonsense.lock().unwrap().push(format!("{op:?}: {kind:?}")),
        }
    }

    async fn send(&mut self, op: Op, expected: Option<Known>) -> Result<Ret> {
        let Self { store, history, known, .. } = self;
        let expected = expected.map(Known::stored);
        let key = &history.key;
        Ok(match op {
            Op::Create(tag) => match store.create(key, record(tag), HOUR).await? {
                Created::Created(version) => {
                    known.push(history.version(version, tag));
                    Ret::Created
                }
                Created::Occupied => Ret::Occupied,
            },
            Op::Load => match store.load(key).await? {
                Some(stored) => {
                    known.push(history.stored(&stored));
                    Ret::Loaded(known.last().map(|known| known.tag))
                }
                None => Ret::Loaded(None),
            },
            Op::Replace { new, .. } => {
                let expected = expected.unwrap();
                match store.replace(key, record(new), HOUR, &expected).await? {
                    Replaced::Replaced(version) => {
                        known.push(history.version(version, new));
                        Ret::Replaced
                    }
                    Replaced::Conflict(Some(stored)) => {
                        known.push(history.stored(&stored));
                        Ret::Conflict(known.last().map(|known| known.tag))
                    }
                    Replaced::Conflict(None) => Ret::Conflict(None),
                    Replaced::Missing => Ret::Missing,
                }
            }
            Op::Delete(_) => match store.delete(key, expected.as_ref()).await? {
                Deleted::Deleted => Ret::Deleted,
                Deleted::Conflict(Some(stored)) => {
                    known.push(history.stored(&stored));
                    Ret::Conflict(known.last().map(|known| known.tag))
                }
                Deleted::Conflict(None) => Ret::Conflict(None),
                Deleted::Missing => Ret::Missing,
            },
        })
    }
}

/// The stores that the clients use.
#[derive(Clone)]
struct Bench {
    /// The clients are spread over several connections, like those of several processes.
    stores: Vec<Arc<dyn Store>>,
    /// Answers are lost inside this process.
    lossy: bool,
    /// Clients abandon calls.
    impatient: bool,
}

impl Bench {
    fn calm(stores: impl IntoIterator<Item = Arc<dyn Store>>) -> Self {
        Self { stores: stores.into_iter().collect(), lossy: false, impatient: false }
    }

    /// Runs one history and checks it.
    async fn history(self, seed: u64) -> (Tally, Option<String>) {
        let mut rng = Rng::with_seed(seed);
        let history = Arc::new(History::new());
        let (mut stores, mut trouble) = (self.stores, Trouble::None);
        if self.lossy {
            let (store, late) = faulty(stores[0].clone());
            trouble = Trouble::Lost(store.clone(), late, Arc::default());
            stores = vec![Arc::new(store)];
        } else if self.impatient {
            trouble = Trouble::GivenUp;
        }
        let client = |number: usize, rng: Rng| Client {
            number,
            store: stores[number % stores.len()].clone(),
            history: history.clone(),
            trouble: trouble.clone(),
            rng,
            known: Vec::new(),
        };
        let mut clients: Vec<_> = (0..CLIENTS).map(|number| client(number, rng.fork())).collect();
        let mut total = Tally { histories: 1, ..Tally::default() };
        for _ in 0..ROUNDS {
            let running: Vec<_> =
                clients.drain(..).map(|client| tokio::spawn(client.run())).collect();
            for client in running {
                clients.push(client.await.unwrap());
            }
            for _ in 0..5 {
                clients[0].step((Op::Load, None)).await;
                if history.round.lock().unwrap().left().is_some() {
                    break;
                }
            }
            // The checker occupies a processor, so it runs on a thread of its own.
            let judged = history.clone();
            let judge = move || {
                let tally = judged.round.lock().unwrap().tally();
                (tally, judged.violation())
            };
            let (tally, violation) = tokio::task::spawn_blocking(judge).await.unwrap();
            total.add(&tally);
            if violation.is_some() {
                return (total, violation);
            }
            if !history.goes_on() {
                break;
            }
        }
        // Only unfinished histories keep their key, so the slots that move are in use.
        let _ = stores[0].delete(&history.key, None).await;
        (total, None)
    }

    /// Runs `count` histories, several at a time, and stops at the first violation.
    async fn run(&self, count: usize, at_once: usize) -> (Tally, Option<String>) {
        let histories = (0..count).map(|seed| self.clone().history(seed as u64));
        support::until_violation(histories, at_once, Tally::add).await
    }
}

/// Returns the number of histories that make this many calls; ten times as many with `UNSTICKY_LONG=1`.
fn histories(calls: usize) -> usize {
    calls.div_ceil(CALLS_IN_ALL) * usize::from(support::length())
}

/// Enough calls to find rare faults.
const MANY: usize = 100_000;

/// Checks a store without faults.
async fn calm(name: &str, bench: Bench, calls: usize) {
    let started = Instant::now();
    let count = histories(calls);
    let (tally, violation) = bench.run(count, 8).await;
    println!("{name}, calm: {tally:?} in {:?}", started.elapsed());
    assert_eq!(violation, None);
    assert!(tally.calls >= count * CALLS_IN_ALL);
    assert_eq!((tally.unknown, tally.nothing), (0, 0));
    // The histories must contain enough to check: every kind of answer was common, and many calls
    // overlapped. How many overlap depends on the scheduler; with a store in memory, a third do on a
    // busy machine.
    assert!(tally.answers.iter().all(|count| count * 100 >= tally.calls), "{tally:?}");
    assert!(tally.overlapping * 10 >= tally.calls, "{tally:?}");
}

/// Checks a store whose answers are lost.
async fn rough(name: &str, bench: Bench) {
    let started = Instant::now();
    let (tally, violation) = bench.run(histories(20_000), 8).await;
    println!("{name}, rough: {tally:?} in {:?}", started.elapsed());
    assert_eq!(violation, None);
    assert!(tally.unknown * 100 >= tally.calls, "{tally:?}");
    assert!(tally.answers.iter().all(|count| count * 100 >= tally.calls), "{tally:?}");
}

/// Disturbs the connections as a bad network does, until the future is dropped.
async fn weather(proxy: &Proxy) {
    let mut rng = Rng::with_seed(7);
    loop {
        sleep(Duration::from_millis(rng.u64(5..30))).await;
        let (mode, least) = match rng.u8(..8) {
            0..4 => (Mode::Pass, 0),
            4 => (Mode::Delay(Duration::from_millis(rng.u64(1..4))), 5),
            5 => (Mode::Trickle, 5),
            6 => (Mode::Blackhole, 5),
            // Long enough for the store to abandon the connection. Commands that it has already sent
            // arrive late.
            _ => (Mode::Stall, 30),
        };
        proxy.set(mode);
        sleep(Duration::from_millis(rng.u64(least..least + 20))).await;
        if matches!(mode, Mode::Pass | Mode::Blackhole) {
            proxy.cut();
        }
        proxy.set(Mode::Pass);
    }
}

/// How long a store waits for an answer on a bad network.
const PATIENCE: Duration = Duration::from_millis(40);

async fn calm_on(on: Backend) {
    calm(on.name(), Bench::calm([on.store(), on.store()]), MANY).await;
}

async fn rough_on(server: Server) {
    let proxy = Proxy::start(server.port()).await;
    let store = || patient(&server.url_at(proxy.port()), PATIENCE);
    let bench = Bench { impatient: true, ..Bench::calm([store(), store()]) };
    let on = Backend::from(server);
    tokio::select! {
        () = rough(on.name(), bench) => {}
        () = weather(&proxy) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_linearizable() {
    calm("memory", Bench::calm([Backend::memory().store()]), MANY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_linearizable_when_answers_are_lost() {
    let bench = Bench::calm([Backend::memory().store()]);
    rough("memory", Bench { lossy: true, ..bench }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_linearizable() {
    calm_on(Backend::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_linearizable_when_answers_are_lost() {
    rough_on(Server::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_linearizable_when_answers_of_cluster_node_are_lost() {
    rough_on(Server::cluster()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_linearizable_when_answers_of_named_master_are_lost() {
    rough_on(Server::sentinel()).await;
}

/// The maximum number of moves of one slot, so that no node receives a slot twice. If one did, it could
/// not tell whether a command that another node redirected to it belongs to the first move or the second,
/// and might create a record again before the record itself arrives.
const MOVES: usize = SHARDS;

/// Moves the slots that hold keys from one master to the next until `done` is set. Returns the number
/// of moves.
fn move_slots(cluster: &RedisCluster, done: &AtomicBool) -> usize {
    let mut moves = HashMap::new();
    for from in (0..SHARDS).cycle() {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let slots = cluster.keys_of(from).into_iter().map(|key| slot_of(&key));
        let mut slots = slots.filter(|slot| moves.get(slot).is_none_or(|count| *count < MOVES));
        let slot = slots.next();
        if let Some(slot) = slot {
            let to = (from + 1) % SHARDS;
            cluster.move_slots_in_steps(slot..slot + 1, from, to, Duration::from_millis(1));
            *moves.entry(slot).or_insert(0) += 1;
        }
    }
    moves.values().sum()
}

/// Also shows that no call fails during the moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cluster_is_linearizable_while_slots_move() {
    // A replica that is promoted to master may lack the latest writes, so the timeout is long enough to
    // rule out a promotion.
    let cluster = RedisCluster::start_with(&["--cluster-node-timeout", "60000"]);
    let (cluster, done) = (Arc::new(cluster), Arc::new(AtomicBool::new(false)));
    let mover = tokio::task::spawn_blocking({
        let (cluster, done) = (cluster.clone(), done.clone());
        move || move_slots(&cluster, &done)
    });
    let store = || patient(&cluster.url(), Duration::from_secs(5));
    let bench = Bench::calm([store(), store()]);
    // Runs in a task of its own, so that the mover is stopped even if the check fails.
    let judged = tokio::spawn(async { calm("cluster", bench, 20_000).await }).await;
    done.store(true, Ordering::Relaxed);
    let moved = mover.await.unwrap();
    judged.unwrap();
    let asked: u64 = cluster.nodes().iter().map(|node| node.calls("asking")).sum();
    println!("{moved} slots were moved, and {asked} commands met one on its way");
    assert!(moved > 100 && asked > 20, "{moved}, {asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memcached_is_linearizable() {
    calm_on(Backend::memcached()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memcached_is_linearizable_when_answers_are_lost() {
    rough_on(Server::memcached()).await;
}

/// The fault that a store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seeded {
    Nothing,
    /// `replace` compares, and then overwrites any record that has been stored since the comparison.
    GetThenSet,
    /// `create` checks that there is no record, and then overwrites any record that has been stored
    /// since the check.
    LookThenSet,
    /// `replace` stores the record again after it was deleted.
    Resurrects,
    /// `delete` always reports a deletion, even if it deleted nothing.
    DeletedAlways,
    /// `delete` ignores the version.
    DeletesAnything,
    /// Every eighth `replace` is acknowledged but not applied.
    Forgets,
    /// `load` returns what the previous load should have returned, like a replica that lags behind.
    Behind,
    /// Versions are reused.
    FewVersions,
}

/// A store with a fault, built on a correct store.
struct Faulty {
    inner: Arc<dyn Store>,
    seeded: Seeded,
    calls: AtomicU64,
    loaded: Mutex<HashMap<StoreKey, Option<Stored>>>,
}

impl Faulty {
    fn new(inner: Arc<dyn Store>, seeded: Seeded) -> Self {
        Self { inner, seeded, calls: AtomicU64::new(0), loaded: Mutex::default() }
    }

    /// Writes unconditionally.
    async fn set(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Version> {
        loop {
            let bytes = bytes.clone();
            match self.inner.load(key).await? {
                Some(stored) => {
                    let replaced = self.inner.replace(key, bytes, ttl, &stored).await?;
                    if let Replaced::Replaced(version) = replaced {
                        return Ok(version);
                    }
                }
                None => {
                    if let Created::Created(version) = self.inner.create(key, bytes, ttl).await? {
                        return Ok(version);
                    }
                }
            }
        }
    }

    /// Returns the version that the store reports.
    fn called(&self, bytes: &Bytes, version: Version) -> Version {
        match self.seeded {
            Seeded::FewVersions => Version::new(u64::from(bytes[7] % 2)),
            _ => version,
        }
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.seeded.fmt(f)
    }
}

#[async_trait]
impl Store for Faulty {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        if self.seeded == Seeded::LookThenSet {
            if self.inner.load(key).await?.is_some() {
                return Ok(Created::Occupied);
            }
            yield_now().await;
            return Ok(Created::Created(self.set(key, bytes, ttl).await?));
        }
        Ok(match self.inner.create(key, bytes.clone(), ttl).await? {
            Created::Created(version) => Created::Created(self.called(&bytes, version)),
            Created::Occupied => Created::Occupied,
        })
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        let fresh = self.inner.load(key).await?;
        if self.seeded == Seeded::Behind {
            let mut loaded = self.loaded.lock().unwrap();
            return Ok(loaded.insert(key.clone(), fresh.clone()).unwrap_or(fresh));
        }
        Ok(fresh.map(|Stored { bytes, version, .. }| {
            let version = self.called(&bytes, version);
            Stored::new(bytes, version)
        }))
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        match self.seeded {
            Seeded::GetThenSet => match self.inner.load(key).await? {
                None => return Ok(Replaced::Missing),
                Some(stored) if stored.version != expected.version => {
                    return Ok(Replaced::Conflict(Some(stored)));
                }
                Some(_) => {
                    yield_now().await;
                    return Ok(Replaced::Replaced(self.set(key, bytes, ttl).await?));
                }
            },
            Seeded::FewVersions => {
                let Some(stored) = self.inner.load(key).await? else {
                    return Ok(Replaced::Missing);
                };
                if self.called(&stored.bytes, stored.version) != expected.version {
                    return Ok(Replaced::Conflict(None));
                }
                return Ok(match self.inner.replace(key, bytes.clone(), ttl, &stored).await? {
                    Replaced::Replaced(made) => Replaced::Replaced(self.called(&bytes, made)),
                    Replaced::Conflict(_) => Replaced::Conflict(None),
                    Replaced::Missing => Replaced::Missing,
                });
            }
            Seeded::Forgets => {
                let call = self.calls.fetch_add(1, Ordering::Relaxed);
                let stored = self.inner.load(key).await?;
                if call % 8 == 7 && stored.is_some_and(|stored| stored.version == expected.version)
                {
                    return Ok(Replaced::Replaced(Version::new(u64::MAX - call)));
                }
            }
            _ => {}
        }
        match self.inner.replace(key, bytes.clone(), ttl, expected).await? {
            Replaced::Missing if self.seeded == Seeded::Resurrects => {
                Ok(Replaced::Replaced(self.set(key, bytes, ttl).await?))
            }
            outcome => Ok(outcome),
        }
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        let mut standing = None;
        let expected = match self.seeded {
            Seeded::DeletesAnything => None,
            Seeded::FewVersions => match (self.inner.load(key).await?, expected) {
                (Some(stored), Some(expected)) => {
                    if self.called(&stored.bytes, stored.version) != expected.version {
                        return Ok(Deleted::Conflict(None));
                    }
                    Some(&*standing.insert(stored))
                }
                _ => expected,
            },
            _ => expected,
        };
        let outcome = self.inner.delete(key, expected).await?;
        Ok(if self.seeded == Seeded::DeletedAlways { Deleted::Deleted } else { outcome })
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        None
    }
}

/// Each fault is found within 200 histories, even if answers are lost, and a correct store passes.
async fn seeded_faults_are_found(on: Backend) {
    const WITHIN: usize = 200;
    let (name, inner) = (on.name(), on.store());
    for lossy in [false, true] {
        let bench = |seeded| Bench {
            lossy,
            ..Bench::calm([Arc::new(Faulty::new(inner.clone(), seeded)) as _])
        };
        let (_, violation) = bench(Seeded::Nothing).run(WITHIN, 1).await;
        assert_eq!(violation, None);
        for seeded in [
            Seeded::GetThenSet,
            Seeded::LookThenSet,
            Seeded::Resurrects,
            Seeded::DeletedAlways,
            Seeded::DeletesAnything,
            Seeded::Forgets,
            Seeded::Behind,
            Seeded::FewVersions,
        ] {
            let (tally, violation) = bench(seeded).run(WITHIN, 1).await;
            let found = tally.histories;
            println!("{name}, lossy {lossy}: {seeded:?} was found in history {found}");
            let violation = violation.unwrap_or_else(|| panic!("{name}: {seeded:?}: {tally:?}"));
            // Reused versions are detected directly; all other faults are found only by the checker.
            let by_checker = seeded != Seeded::FewVersions;
            assert_eq!(violation.starts_with("not linearizable"), by_checker, "{violation}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeded_faults_are_found_in_memory() {
    seeded_faults_are_found(Backend::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeded_faults_are_found_on_redis() {
    seeded_faults_are_found(Backend::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeded_faults_are_found_on_memcached() {
    seeded_faults_are_found(Backend::memcached()).await;
}
