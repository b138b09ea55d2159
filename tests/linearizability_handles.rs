//! Several clients use one session through their handles, on every store. Each recorded history is
//! checked for linearizability against a model: a map of registers. Clients with a seeded fault verify
//! that the checker finds it.
//!
//! The guarantee depends on the age of a handle. A request may rely on what it has read, so each of its
//! operations takes effect at some moment between the request's load and the operation's answer. A
//! handle that outlives its response has no recent load: its operations take effect between call and
//! answer.
//!
//! In memory on one thread, a seed determines the schedule, so a run can be repeated. `UNSTICKY_LONG=1`
//! runs ten times as many histories.

#![cfg(all(
    feature = "testing",
    feature = "memory",
    feature = "redis",
    feature = "memcached",
    feature = "axum",
    feature = "actix"
))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]
#![allow(clippy::print_stdout, reason = "it prints what was checked")]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};
use support::interceptor::{Call, Intercepted, Interceptor};
use support::late::{Late, Postponed, faulty};
use support::stand::{A, B, Backend, SEED, Stand, on_every_store};
use support::visit::{Visit, finish, visit};
use tokio::task::yield_now;
use unsticky::exchange::Exchange;
use unsticky::store::{Store, StoreKey};
use unsticky::testing::{Fault, FaultStore, Verb};
use unsticky::{ErrorKind, Key, Result, Session, Sessions, Transaction};

/// The maximum number of clients in a history.
const CLIENTS: usize = 4;
/// The operations that each client makes in a history, sometimes one or two more. The checker's time
/// grows much faster than this number.
const CALLS: usize = 3;
/// Once this many results are unknown, no more faults are injected, because each of these operations
/// may take effect at any later time.
const MAX_UNKNOWN: usize = 3;
const KEYS: [Key<u32>; 3] = [SEED, A, B];
/// The number of values (0, 1 and 2). It is small, so that equal values are common.
const VALUES: u32 = 3;

/// How long a request may wait: long enough that a slow machine causes no errors.
const PATIENCE: Duration = Duration::from_secs(10);

/// The values of the session, in the order of [`KEYS`].
type Values = [Option<u32>; KEYS.len()];

/// One change that has been made and not yet committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Set(usize, u32),
    Remove(usize),
    Clear,
    /// Sets the value after the current one; the last is followed by the first.
    Next(usize),
    /// An update that often changes nothing.
    AtLeast(usize, u32),
    Take(usize),
}

/// What a `transact` does after it has read all the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Look,
    Next(usize),
    /// Sets a value if there is none.
    Claim(usize, u32),
    Take(usize),
    Copy(usize, usize),
}

fn next(value: u32) -> u32 {
    (value + 1) % VALUES
}

impl Step {
    fn any(rng: &mut Rng) -> Self {
        let (key, value) = (rng.usize(..KEYS.len()), rng.u32(..VALUES));
        match rng.u8(..20) {
            0..11 => Self::Set(key, value),
            11..14 => Self::Remove(key),
            14 => Self::Clear,
            15..18 => Self::Next(key),
            _ => Self::AtLeast(key, value),
        }
    }

    fn apply(self, values: &mut Values) {
        match self {
            Self::Set(key, value) => values[key] = Some(value),
            Self::Remove(key) | Self::Take(key) => values[key] = None,
            Self::Clear => *values = [None; KEYS.len()],
            Self::Next(key) => values[key] = Some(next(values[key].unwrap_or(0))),
            Self::AtLeast(key, least) => values[key] = Some(values[key].unwrap_or(0).max(least)),
        }
    }

    fn make(self, session: &Session) -> Result<()> {
        match self {
            Self::Set(key, value) => session.insert(KEYS[key], &value)?,
            Self::Remove(key) => session.remove(KEYS[key]),
            Self::Clear => session.clear(),
            Self::Next(key) => session.update(KEYS[key], |value| *value = next(*value))?,
            Self::AtLeast(key, least) => {
                session.update(KEYS[key], move |value| *value = (*value).max(least))?;
            }
            Self::Take(key) => drop(session.take(KEYS[key])?),
        }
        Ok(())
    }
}

impl Decision {
    fn any(rng: &mut Rng) -> Self {
        let (key, other) = (rng.usize(..KEYS.len()), rng.usize(..KEYS.len()));
        match rng.u8(..10) {
            0..2 => Self::Look,
            2..5 => Self::Next(key),
            5..7 => Self::Claim(key, rng.u32(..VALUES)),
            7 => Self::Take(key),
            _ => Self::Copy(key, other),
        }
    }

    fn apply(self, values: &mut Values) {
        match self {
            Self::Look => {}
            Self::Next(key) => values[key] = Some(next(values[key].unwrap_or(0))),
            Self::Claim(key, value) => values[key] = values[key].or(Some(value)),
            Self::Take(key) => values[key] = None,
            Self::Copy(from, to) => values[to] = values[from],
        }
    }

    /// Returns the values as they were before the decision.
    fn make(self, values: &mut Transaction<'_>) -> Result<Values> {
        let mut saw = Values::default();
        for (saw, key) in saw.iter_mut().zip(KEYS) {
            *saw = values.get(key)?;
        }
        match self {
            Self::Look => {}
            Self::Next(key) => values.update(KEYS[key], |value| *value = next(*value))?,
            Self::Claim(key, value) if !values.contains(KEYS[key]) => {
                values.insert(KEYS[key], &value)?;
            }
            Self::Claim(..) => {}
            Self::Take(key) => drop(values.take(KEYS[key])?),
            Self::Copy(from, to) => match values.get(KEYS[from])? {
                Some(value) => values.insert(KEYS[to], &value)?,
                None => values.remove(KEYS[to]),
            },
        }
        Ok(saw)
    }
}

/// An operation that takes effect at one moment, or not at all.
#[derive(Debug, Clone)]
struct Op {
    number: usize,
    /// The previous operation by the same handle. The two may overlap, because both may count from
    /// their request's load, but they cannot be reordered.
    after: Option<usize>,
    steps: Arc<[Step]>,
    /// What is read and decided after the steps.
    decision: Option<Decision>,
}

impl Op {
    fn is_look(&self) -> bool {
        self.steps.is_empty() && self.decision == Some(Decision::Look)
    }
}

/// The result of an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ret {
    /// The value that `take` returned when the operation started.
    taken: Option<u32>,
    saw: Option<Values>,
    /// No answer arrived. If the operation took effect, its result is unknown.
    is_unknown: bool,
}

/// The reference model: a map of registers.
#[derive(Debug, Clone, Default)]
struct Registers {
    values: Values,
    /// The operations that have taken effect, one bit each.
    done: u64,
    tried: Rc<RefCell<Tried>>,
}

/// The states that the checker has visited. A state is the values and the operations that have taken
/// effect; whether the rest can be explained depends on nothing else.
#[derive(Debug, Default)]
struct Tried {
    /// The states from which the checker has already failed to continue.
    been: HashSet<(Values, u64)>,
    /// The states from which the checker has continued with a read. A read changes nothing, so if the
    /// rest can be explained at all, it can be explained with the read first.
    looked: HashSet<(Values, u64)>,
}

impl SequentialSpec for Registers {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        self.done |= 1 << op.number;
        let taken = match op.steps.first() {
            Some(Step::Take(key)) => self.values[*key],
            _ => None,
        };
        op.steps.iter().for_each(|step| step.apply(&mut self.values));
        let saw = op.decision.map(|decision| {
            let saw = self.values;
            decision.apply(&mut self.values);
            saw
        });
        Ret { taken, saw, is_unknown: false }
    }

    fn is_valid_step(&mut self, op: &Op, ret: &Ret) -> bool {
        let from = (self.values, self.done);
        if op.after.is_some_and(|number| self.done >> number & 1 == 0)
            || self.tried.borrow().looked.contains(&from)
            || (self.invoke(op) != *ret && !ret.is_unknown)
        {
            return false;
        }
        let tried = &mut *self.tried.borrow_mut();
        if op.is_look() {
            tried.looked.insert(from);
        }
        tried.been.insert((self.values, self.done))
    }
}

/// How an operation was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// Changes that were committed at the end of their request.
    Request,
    EarlySave,
    /// A read of what the request has loaded, or has saved since then.
    Get,
    /// A save by a handle that has outlived its response.
    LateSave,
    /// During a request or after it.
    Transact,
    ReloadAndGet,
}

/// An operation with its start and end. The end is missing if it is unknown whether the operation took
/// effect.
#[derive(Clone)]
struct Called {
    client: usize,
    how: How,
    begun: usize,
    ended: Option<usize>,
    op: Op,
    ret: Ret,
}

impl fmt::Debug for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, how, begun, ended, op: Op { number, after, steps, decision }, ret } =
            self;
        let ended = ended.map_or("..".to_owned(), |ended| ended.to_string());
        write!(f, "#{number} client {client}, {begun} to {ended}: {how:?} {steps:?}")?;
        if let Some(decision) = decision {
            write!(f, ", {decision:?}")?;
        }
        if let Some(after) = after {
            write!(f, ", after #{after}")?;
        }
        match (ret.taken, ret.saw) {
            (None, None) => Ok(()),
            (taken, saw) => write!(f, ": taken {taken:?}, saw {saw:?}"),
        }
    }
}

/// Returns whether some order of the operations explains all results. An operation with an unknown
/// result may take effect after the end of the history, where its effect is invisible.
fn is_linearizable(before: Values, called: &[Called]) -> bool {
    // Each operation gets a thread of its own, because those of one client may overlap. The checker
    // tries the threads in this order: first the reads, then the others by the end of the operation,
    // since they most often took effect in that order.
    let ended = |called: &Called| called.ended.unwrap_or(usize::MAX);
    let thread = |called: &Called| (!called.op.is_look(), ended(called), called.op.number);
    let begins = called.iter().map(|called| (called.begun, called, true));
    let ends = called.iter().map(|called| (ended(called), called, false));
    let mut events: Vec<_> = begins.chain(ends).collect();
    events.sort_by_key(|(at, ..)| *at);
    let mut tester =
        LinearizabilityTester::new(Registers { values: before, ..Registers::default() });
    for (_, called, begins) in events {
        if begins {
            tester.on_invoke(thread(called), called.op.clone()).unwrap();
        } else {
            let ret = Ret { is_unknown: called.ended.is_none(), ..called.ret };
            tester.on_return(thread(called), ret).unwrap();
        }
    }
    tester.is_consistent()
}

/// What the clients did with one session.
struct History {
    seed: u64,
    before: Values,
    /// A logical clock that only orders events.
    now: AtomicUsize,
    called: Mutex<Vec<Called>>,
    /// Results that no order of operations can explain.
    nonsense: Mutex<Vec<String>>,
    tally: Mutex<Tally>,
}

impl History {
    fn now(&self) -> usize {
        self.now.fetch_add(1, Ordering::SeqCst)
    }

    /// Records the final values, as a read that follows all other operations.
    fn ends_with(&self, begun: usize, saw: Values) {
        let decision = Some(Decision::Look);
        let op = Op { number: 0, after: None, steps: Arc::default(), decision };
        let ended = Some(self.now());
        let ret = Ret { saw: Some(saw), ..Ret::default() };
        self.note(Called { client: CLIENTS, how: How::Get, begun, ended, op, ret });
    }

    fn note(&self, called: Called) -> usize {
        let mut list = self.called.lock().unwrap();
        let number = list.len();
        assert!(number < 64, "a bit for each");
        list.push(Called { op: Op { number, ..called.op }, ..called });
        number
    }

    fn unknown(&self) -> usize {
        self.called.lock().unwrap().iter().filter(|called| called.ended.is_none()).count()
    }

    fn nonsense(&self, what: impl Into<String>) {
        self.nonsense.lock().unwrap().push(what.into());
    }

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.tally.lock().unwrap());
    }

    fn violation(&self) -> Option<String> {
        let nonsense = self.nonsense.lock().unwrap();
        let mut called = self.called.lock().unwrap().clone();
        let what = match nonsense.first() {
            Some(nonsense) => nonsense.as_str(),
            None if !is_linearizable(self.before, &called) => "not linearizable",
            None => return None,
        };
        called.sort_by_key(|called| called.begun);
        let Self { seed, before, .. } = self;
        Some(format!("seed {seed}: {what}: {before:?} at first, then {called:#?}"))
    }

    fn tally(&self) -> Tally {
        let mut tally = self.tally.lock().unwrap().clone();
        let called = self.called.lock().unwrap();
        tally.histories = 1;
        for one in &*called {
            *tally.made.entry(one.how).or_default() += 1;
            tally.taken += usize::from(one.ret.taken.is_some());
            tally.unknown += usize::from(one.ended.is_none());
            let overlaps = |other: &&Called| {
                let (ends, ended) = (one.ended.unwrap_or(usize::MAX), other.ended);
                other.client != one.client
                    && other.begun < ends
                    && ended.is_none_or(|at| at > one.begun)
            };
            tally.overlapping += usize::from(called.iter().any(|other| overlaps(&other)));
        }
        tally
    }
}

/// Counts what was checked.
#[derive(Debug, Clone, Default)]
struct Tally {
    histories: usize,
    made: BTreeMap<How, usize>,
    /// Operations that overlap an operation by another client.
    overlapping: usize,
    taken: usize,
    /// Inserts of the value that the handle already sees: during a request, and after it.
    equal: [usize; 2],
    /// Operations that failed and had no effect.
    nothing: usize,
    /// Takes that failed because the value had changed.
    changed: usize,
    unknown: usize,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        for (how, count) in &other.made {
            *self.made.entry(*how).or_default() += count;
        }
        self.overlapping += other.overlapping;
        self.taken += other.taken;
        self.equal.iter_mut().zip(other.equal).for_each(|(sum, count)| *sum += count);
        self.nothing += other.nothing;
        self.changed += other.changed;
        self.unknown += other.unknown;
    }

    fn made(&self) -> usize {
        self.made.values().sum()
    }
}

/// The fault that the clients have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seeded {
    /// A request does not write a value that equals the loaded one, even if the stored value has
    /// changed since the load.
    EqualIsDropped,
    /// The same fault in a handle that outlives its response.
    EqualIsDroppedLate,
    /// An update inserts a result that it computed from the handle's own copy.
    UpdatesWhatItSees,
    /// A transaction decides from the handle's own copy.
    DecidesOnWhatItSees,
    /// A reload reads nothing.
    NeverReloads,
    /// One early save in eight reports success without saving anything.
    Forgets,
}

/// The handle of a request, and what the test knows about it.
struct Visitor {
    client: usize,
    history: Arc<History>,
    seeded: Option<Seeded>,
    session: Session,
    /// The time at which its request started to read the session.
    loaded: usize,
    /// The response has been sent.
    is_late: bool,
    /// Changes that are not committed yet.
    pending: Vec<Step>,
    taken: Option<u32>,
    /// The handle's last operation.
    last: Option<usize>,
    rng: Rng,
}

impl Visitor {
    /// Returns a copy of the handle for another task, with a random sequence of its own.
    fn fork(&mut self) -> Self {
        assert!(self.pending.is_empty());
        Self {
            history: self.history.clone(),
            session: self.session.clone(),
            pending: Vec::new(),
            rng: self.rng.fork(),
            ..*self
        }
    }

    /// Returns the earliest time at which an operation that starts now can take effect.
    fn begins(&self) -> usize {
        let now = self.history.now();
        if self.is_late { now } else { self.loaded }
    }

    fn look(&self) -> Values {
        let mut saw = Values::default();
        for (saw, key) in saw.iter_mut().zip(KEYS) {
            match self.session.get(key) {
                Ok(value) => *saw = value,
                Err(error) => self.history.nonsense(format!("get: {error}")),
            }
        }
        saw
    }

    fn change(&mut self, step: Step) {
        self.pending.push(step);
        let made = match (step, self.seeded) {
            (Step::Set(key, value), seeded) if self.look()[key] == Some(value) => {
                self.history.count(|tally| tally.equal[usize::from(self.is_late)] += 1);
                match seeded {
                    Some(Seeded::EqualIsDropped) if !self.is_late => Ok(()),
                    Some(Seeded::EqualIsDroppedLate) if self.is_late => Ok(()),
                    _ => step.make(&self.session),
                }
            }
            (Step::Next(key) | Step::AtLeast(key, _), Some(Seeded::UpdatesWhatItSees)) => {
                let mut values = self.look();
                step.apply(&mut values);
                self.session.insert(KEYS[key], &values[key].unwrap())
            }
            _ => step.make(&self.session),
        };
        if let Err(error) = made {
            self.history.nonsense(format!("{step:?}: {error}"));
        }
    }

    fn changes(&mut self) {
        for _ in 0..self.rng.u8(1..3) {
            let step = Step::any(&mut self.rng);
            self.change(step);
        }
    }

    /// Takes a value, or finds that there is none.
    fn take(&mut self) {
        let (key, saw) = (self.rng.usize(..KEYS.len()), self.look());
        match self.session.take(KEYS[key]) {
            Ok(taken) if taken != saw[key] => self.history.nonsense("another value was taken"),
            Ok(Some(_)) => {
                self.pending.push(Step::Take(key));
                self.taken = saw[key];
            }
            // After the response, the values that the handle has read are too old to check.
            Ok(None) if self.is_late => {}
            Ok(None) => self.get(),
            Err(error) => self.history.nonsense(format!("take: {error}")),
        }
    }

    /// Records what the request reads.
    fn get(&mut self) {
        let saw = self.look();
        self.note(How::Get, self.loaded, Some(Decision::Look), Some(saw), true);
    }

    fn note(
        &mut self,
        how: How,
        begun: usize,
        decision: Option<Decision>,
        saw: Option<Values>,
        has_ended: bool,
    ) {
        let ended = has_ended.then(|| self.history.now());
        let steps = self.pending.drain(..).collect();
        let op = Op { number: 0, after: self.last, steps, decision };
        let ret = Ret { taken: self.taken.take(), saw, ..Ret::default() };
        let number = self.history.note(Called { client: self.client, how, begun, ended, op, ret });
        if has_ended {
            self.last = Some(number);
        }
    }

    /// Records an operation and its result. Returns `false` if the handle can no longer be used.
    fn noted(
        &mut self,
        how: How,
        begun: usize,
        decision: Option<Decision>,
        outcome: Result<Option<Values>, ErrorKind>,
    ) -> bool {
        match outcome {
            Ok(saw) => {
                // A save without changes does not count as an operation.
                if decision.is_some() || !self.pending.is_empty() {
                    self.note(how, begun, decision, saw, true);
                }
                true
            }
            // The changes are still pending and will be part of the next commit.
            Err(ErrorKind::Unavailable | ErrorKind::Refused | ErrorKind::Contended) => {
                self.history.count(|tally| tally.nothing += 1);
                true
            }
            Err(ErrorKind::ValueChanged) if self.taken.is_some() => {
                self.history.count(|tally| tally.changed += 1);
                false
            }
            Err(ErrorKind::OutcomeUnknown) => {
                self.note(how, begun, decision, None, false);
                false
            }
            Err(kind) => {
                self.history.nonsense(format!("{how:?}: {kind:?}"));
                false
            }
        }
    }

    /// Returns the kind of save that this handle makes.
    fn how(&self) -> How {
        if self.is_late { How::LateSave } else { How::EarlySave }
    }

    async fn save(&mut self, begun: usize, give_up: bool) -> bool {
        let how = self.how();
        if self.seeded == Some(Seeded::Forgets) && !self.is_late && self.rng.u8(..8) == 0 {
            return self.noted(how, begun, None, Ok(None));
        }
        let patience = self.rng.u8(..3);
        let saved = tokio::select! {
            biased;
            saved = self.session.save() => saved.map_err(|error| error.kind()),
            // A write that has started continues even if the caller stops waiting.
            () = yields(patience), if give_up => Err(ErrorKind::OutcomeUnknown),
        };
        self.noted(how, begun, None, saved.map(|()| None))
    }

    async fn transact(&mut self, decision: Decision) -> bool {
        // A transaction always decides from the stored record, during a request and afterwards.
        let begun = self.history.now();
        let decided = if self.seeded == Some(Seeded::DecidesOnWhatItSees) {
            let saw = self.look();
            let mut values = saw;
            decision.apply(&mut values);
            for (key, value) in KEYS.into_iter().zip(values) {
                match value {
                    Some(value) => self.session.insert(key, &value).unwrap(),
                    None => self.session.remove(key),
                }
            }
            self.session.save().await.map(|()| saw)
        } else {
            self.session.transact(move |values| decision.make(values)).await
        };
        let decided = decided.map(Some).map_err(|error| error.kind());
        self.noted(How::Transact, begun, Some(decision), decided)
    }

    async fn reload_and_get(&mut self) -> bool {
        let begun = self.history.now();
        if self.seeded != Some(Seeded::NeverReloads)
            && let Err(error) = self.session.reload().await
        {
            self.history.count(|tally| tally.nothing += 1);
            if error.kind() != ErrorKind::Unavailable {
                self.history.nonsense(format!("reload: {error}"));
            }
            return true;
        }
        // A read also returns pending changes, which do not count until they are committed.
        if self.pending.is_empty() {
            let saw = Some(self.look());
            self.note(How::ReloadAndGet, begun, Some(Decision::Look), saw, true);
        }
        true
    }

    /// Runs one operation. Returns `false` if the handle can no longer be used.
    async fn act(&mut self, is_rough: bool) -> bool {
        match self.rng.u8(..12) {
            0..6 => {
                let begun = self.begins();
                self.changes();
                self.dawdle().await;
                let give_up = is_rough && self.rng.u8(..10) == 0;
                self.save(begun, give_up).await
            }
            6..9 => {
                let decision = Decision::any(&mut self.rng);
                self.transact(decision).await
            }
            9 => self.reload_and_get().await,
            10 if self.pending.is_empty() => {
                let begun = self.begins();
                self.take();
                self.dawdle().await;
                self.save(begun, false).await
            }
            _ if self.pending.is_empty() && !self.is_late => {
                self.get();
                true
            }
            _ => self.reload_and_get().await,
        }
    }

    /// Runs some operations in one of two tasks that share a handle. Each operation has only one step,
    /// which the other task may commit.
    async fn share(mut self) -> bool {
        for _ in 0..self.rng.u8(1..3) {
            self.dawdle().await;
            if self.rng.u8(..3) == 0 {
                let decision = Decision::any(&mut self.rng);
                if !self.transact(decision).await {
                    return false;
                }
                continue;
            }
            let begun = self.begins();
            let step = Step::any(&mut self.rng);
            self.change(step);
            self.dawdle().await;
            let goes_on = self.save(begun, false).await;
            if !self.pending.is_empty() {
                // The change is still pending, and the other task may commit it at any time.
                self.note(self.how(), begun, None, None, false);
            }
            if !goes_on {
                return false;
            }
        }
        true
    }

    async fn dawdle(&mut self) {
        yields(self.rng.u8(..3)).await;
    }
}

async fn yields(count: u8) {
    for _ in 0..count {
        yield_now().await;
    }
}

/// Runs two tasks on one handle. Returns `false` if it is unknown which changes are still pending.
async fn shared(visitor: &mut Visitor) -> bool {
    let nothing = |visitor: &Visitor| visitor.history.tally.lock().unwrap().nothing;
    let before = nothing(visitor);
    let tasks = [visitor.fork(), visitor.fork()].map(|task| tokio::spawn(task.share()));
    let mut goes_on = true;
    for task in tasks {
        goes_on &= task.await.unwrap();
    }
    goes_on && nothing(visitor) == before
}

struct Client {
    number: usize,
    bench: Arc<Bench>,
    history: Arc<History>,
    cookie: String,
    rng: Rng,
}

impl Client {
    async fn run(mut self) {
        // A failed attempt does not count as an operation, so the number of attempts is limited too.
        for _ in 0..2 * CALLS {
            if self.has_done_enough() {
                break;
            }
            yields(self.rng.u8(..4)).await;
            self.visit().await;
        }
    }

    fn has_done_enough(&self) -> bool {
        let called = self.history.called.lock().unwrap();
        called.iter().filter(|called| called.client == self.number).count() >= CALLS
    }

    async fn visit(&mut self) {
        let (bench, history) = (self.bench.clone(), self.history.clone());
        bench.make_trouble(&self.history, &mut self.rng).await;
        let loaded = history.now();
        let sessions = &bench.sessions[self.number % bench.sessions.len()];
        let exchange = Exchange::begin(sessions, [self.cookie.to_owned()], None);
        let session = match exchange.handle().session().await {
            Ok(session) if session.id().is_some() => session,
            Ok(_) => return history.nonsense("the session is gone"),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                return history.count(|tally| tally.nothing += 1);
            }
            Err(error) => return history.nonsense(format!("load: {error}")),
        };
        let mut visitor = Visitor {
            client: self.number,
            history,
            seeded: bench.seeded(),
            session,
            loaded,
            is_late: false,
            pending: Vec::new(),
            taken: None,
            last: None,
            rng: self.rng.fork(),
        };
        // A client that fails part-way does not finish its request.
        let _ = self.use_up(exchange, &mut visitor).await;
    }

    async fn use_up(&mut self, exchange: Exchange, visitor: &mut Visitor) -> Option<()> {
        let bench = self.bench.clone();
        let goes_on = |goes_on: bool| goes_on.then_some(());
        visitor.dawdle().await;
        let (early, late) = match self.rng.u8(..10) {
            0..4 => (0, 0),
            4..6 => (self.rng.u8(1..4), 0),
            6..9 => (0, self.rng.u8(1..4)),
            _ => (1, 1),
        };
        for _ in 0..early {
            if self.has_done_enough() {
                break;
            }
            bench.make_trouble(&self.history, &mut self.rng).await;
            if visitor.pending.is_empty() && self.rng.u8(..6) == 0 {
                goes_on(shared(visitor).await)?;
            } else {
                goes_on(visitor.act(bench.is_rough()).await)?;
            }
            visitor.dawdle().await;
        }
        match self.rng.u8(..8) {
            0..3 => visitor.changes(),
            3 if visitor.pending.is_empty() => visitor.take(),
            4 if visitor.pending.is_empty() => visitor.get(),
            _ if early + late == 0 => visitor.changes(),
            _ => {}
        }
        visitor.dawdle().await;
        bench.make_trouble(&self.history, &mut self.rng).await;
        let ended = match self.rng.u8(..10) {
            0 => {
                drop(exchange);
                None
            }
            1 => {
                finish(exchange, 500).await;
                None
            }
            _ => Some(finish(exchange, 200).await.error.map(|error| error.kind())),
        };
        if let Some(error) = ended {
            let outcome = error.map_or(Ok(None), Err);
            goes_on(visitor.noted(How::Request, visitor.loaded, None, outcome))?;
        }
        // Changes that have not been committed by now are dropped.
        visitor.pending.clear();
        (visitor.taken, visitor.is_late) = (None, true);
        if late > 0 && self.rng.u8(..4) == 0 {
            goes_on(shared(visitor).await)?;
            return Some(());
        }
        for _ in 0..late {
            if self.has_done_enough() {
                break;
            }
            visitor.dawdle().await;
            bench.make_trouble(&self.history, &mut self.rng).await;
            goes_on(visitor.act(bench.is_rough()).await)?;
        }
        Some(())
    }
}

/// Lets other tasks run before a command reaches the store.
struct Detour(Mutex<Rng>);

impl Detour {
    async fn dawdle(&self, verb: Verb) {
        if matches!(verb, Verb::Load | Verb::Replace) {
            let count = self.0.lock().unwrap().u8(..3);
            yields(count).await;
        }
    }
}

impl Interceptor for Detour {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        _: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        self.dawdle(verb).await;
        let answer = call().await;
        self.dawdle(verb).await;
        answer
    }
}

/// The faults of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// Requests and answers are lost, refused or delayed.
    InTheStore,
    InTheClients(Seeded),
}

/// The setup of one history.
struct Bench {
    store: FaultStore<Arc<dyn Store>>,
    late: Late,
    /// The sessions as two processes hold them.
    sessions: [Sessions; 2],
    trouble: Trouble,
    postponed: Mutex<Vec<Postponed>>,
}

impl Bench {
    fn new(stand: &Stand, trouble: Trouble, rng: &mut Rng) -> Self {
        let (store, late) = faulty(stand.spy.clone());
        let mut process = |command_retries| {
            let detour = Detour(Mutex::new(rng.fork()));
            let detour = Intercepted::new(Arc::new(store.clone()), detour);
            let builder = Sessions::builder(detour).clock(stand.clock.clone());
            builder.timeout(PATIENCE).command_retries(command_retries).build().unwrap()
        };
        let sessions = [process(2), process(if trouble == Trouble::InTheStore { 0 } else { 2 })];
        Self { store, late, sessions, trouble, postponed: Mutex::default() }
    }

    fn is_rough(&self) -> bool {
        self.trouble == Trouble::InTheStore
    }

    fn seeded(&self) -> Option<Seeded> {
        match self.trouble {
            Trouble::InTheClients(seeded) => Some(seeded),
            _ => None,
        }
    }

    async fn make_trouble(&self, history: &History, rng: &mut Rng) {
        if !self.is_rough() || history.unknown() >= MAX_UNKNOWN {
            return;
        }
        let store = &self.store;
        match rng.u8(..30) {
            0..2 => store.inject(Verb::Replace, Fault::LoseAnswer),
            2 => store.inject(Verb::Replace, Fault::LoseRequest),
            3 => store.inject(Verb::Replace, Fault::Unavailable),
            4 => store.inject(Verb::Replace, Fault::Refused),
            5 => store.inject(Verb::Load, Fault::Unavailable),
            6 => self.postponed.lock().unwrap().push(self.late.postpone(Verb::Replace)),
            7 => {
                store.inject(Verb::Replace, Fault::LoseAnswer);
                (0..3).for_each(|_| store.inject(Verb::Load, Fault::Unavailable));
            }
            8..11 => {
                let late = self.postponed.lock().unwrap().pop();
                if let Some(late) = late {
                    late.deliver().await;
                }
            }
            _ => {}
        }
    }
}

async fn history(stand: &Stand, trouble: Trouble, seed: u64) -> Arc<History> {
    let mut rng = Rng::with_seed(seed);
    let bench = Arc::new(Bench::new(stand, trouble, &mut rng));
    // Bypasses the injected faults.
    let sessions = Sessions::builder(stand.spy.clone()).clock(stand.clock.clone());
    let sessions = sessions.timeout(PATIENCE).build().unwrap();
    let mut before = Values::default();
    before.iter_mut().for_each(|value| *value = rng.bool().then(|| rng.u32(..VALUES)));
    before[0] = Some(1);
    let begin = async |session: Session| {
        let values = KEYS.into_iter().zip(before);
        values.flat_map(|(key, value)| value.map(|value| session.insert(key, &value))).collect()
    };
    let begun: Visit<()> = visit(&sessions, "", begin).await;
    let cookie = begun.cookie();
    begun.ok();
    let history = Arc::new(History {
        seed,
        before,
        now: AtomicUsize::new(0),
        called: Mutex::default(),
        nonsense: Mutex::default(),
        tally: Mutex::default(),
    });
    let clients: Vec<_> = (0..rng.usize(2..=CLIENTS))
        .map(|number| Client {
            number,
            bench: bench.clone(),
            history: history.clone(),
            cookie: cookie.clone(),
            rng: rng.fork(),
        })
        .map(|client| tokio::spawn(client.run()))
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let read = async |session: Session| {
        let mut saw = Values::default();
        for (saw, key) in saw.iter_mut().zip(KEYS) {
            *saw = session.get(key)?;
        }
        Ok(saw)
    };
    let begun = history.now();
    let left = visit(&sessions, &cookie, read).await.ok();
    history.ends_with(begun, left);
    stand.spy.take();
    history
}

/// Runs `count` histories in memory, one after the other, and stops at the first violation. Each has a
/// runtime of its own, so that its seed alone determines its schedule.
fn in_memory(count: usize, trouble: Trouble) -> (Tally, Option<String>) {
    let mut total = Tally::default();
    for seed in 0..count as u64 {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        let stand = Backend::memory().stand();
        let history = runtime.block_on(history(&stand, trouble, seed));
        total.add(&history.tally());
        if let Some(violation) = history.violation() {
            return (total, Some(violation));
        }
    }
    (total, None)
}

/// Runs `count` histories on one store, several at a time, and stops at the first violation.
async fn several(on: &Backend, count: usize, trouble: Trouble) -> (Tally, Option<String>) {
    let stand = &on.stand();
    let histories = (0..count as u64).map(|seed| async move {
        let history = history(stand, trouble, seed).await;
        // The checker may keep the processor busy for a while.
        let judge = move || (history.tally(), history.violation());
        tokio::task::spawn_blocking(judge).await.unwrap()
    });
    support::until_violation(histories, 4, Tally::add).await
}

/// Returns `count`, or ten times as many histories with `UNSTICKY_LONG=1`.
fn histories(count: usize) -> usize {
    count * usize::from(support::length())
}

/// Asserts that there was no violation, and that the histories contained enough to check.
fn check(name: &str, trouble: Trouble, (tally, violation): (Tally, Option<String>)) {
    println!("{name}, trouble {trouble:?}: {tally:?}");
    assert!(violation.is_none(), "{}", violation.unwrap_or_default());
    let made = tally.made();
    if trouble == Trouble::None {
        // A few answers may be lost if the machine stalls for a while.
        assert!((tally.unknown + tally.nothing) * 100 <= made, "{tally:?}");
    } else {
        assert!(tally.unknown * 100 >= made && tally.nothing * 100 >= made, "{tally:?}");
    }
    // Every kind of operation was common, many operations overlapped, and many inserts were of the
    // value that their handle already saw.
    assert!(made >= tally.histories * 2 * CALLS, "{tally:?}");
    assert_eq!(tally.made.len(), 6, "{tally:?}");
    assert!(tally.made.values().all(|count| count * 50 >= made), "{tally:?}");
    assert!(tally.overlapping * 4 >= made, "{tally:?}");
    assert!(tally.equal.iter().all(|count| count * 100 >= made), "{tally:?}");
    assert!(tally.taken * 200 >= made && tally.changed > 0, "{tally:?}");
}

#[test]
fn handles_are_linearizable_in_memory() {
    check("memory", Trouble::None, in_memory(histories(2000), Trouble::None));
}

#[test]
fn handles_are_linearizable_in_memory_when_commands_fail() {
    let trouble = Trouble::InTheStore;
    check("memory", trouble, in_memory(histories(1000), trouble));
}

/// Runs on two threads, so the schedules are not repeatable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_are_linearizable_in_memory_on_two_threads() {
    let judged = several(&Backend::memory(), histories(500), Trouble::None).await;
    check("memory, two threads", Trouble::None, judged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_are_linearizable_on_redis() {
    let judged = several(&Backend::redis(), histories(300), Trouble::None).await;
    check("redis", Trouble::None, judged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_are_linearizable_on_redis_when_commands_fail() {
    let trouble = Trouble::InTheStore;
    check("redis", trouble, several(&Backend::redis(), histories(300), trouble).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_are_linearizable_on_memcached() {
    let judged = several(&Backend::memcached(), histories(300), Trouble::None).await;
    check("memcached", Trouble::None, judged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_are_linearizable_on_memcached_when_commands_fail() {
    let trouble = Trouble::InTheStore;
    check("memcached", trouble, several(&Backend::memcached(), histories(300), trouble).await);
}

/// Each fault is found within 1000 histories.
#[test]
fn seeded_faults_are_found() {
    const WITHIN: usize = 1000;
    for seeded in [
        Seeded::EqualIsDropped,
        Seeded::EqualIsDroppedLate,
        Seeded::UpdatesWhatItSees,
        Seeded::DecidesOnWhatItSees,
        Seeded::NeverReloads,
        Seeded::Forgets,
    ] {
        let (tally, violation) = in_memory(WITHIN, Trouble::InTheClients(seeded));
        println!("{seeded:?} was found in history {}", tally.histories);
        let violation = violation.unwrap_or_else(|| panic!("{seeded:?}: {tally:?}"));
        assert!(violation.contains("not linearizable"), "{violation}");
    }
}

/// Operations written by hand. Each has a client, a start, an end and its steps.
#[derive(Default)]
struct ByHand(Vec<Called>);

impl ByHand {
    fn op(&mut self, client: usize, time: (usize, usize), steps: &[Step]) -> &mut Called {
        let op = Op { number: self.0.len(), after: None, steps: steps.into(), decision: None };
        let (begun, ended) = (time.0, Some(time.1));
        let (how, ret) = (How::Request, Ret::default());
        self.0.push(Called { client, how, begun, ended, op, ret });
        self.0.last_mut().unwrap()
    }

    fn look(&mut self, client: usize, time: (usize, usize), saw: Values) {
        self.transact(client, time, Decision::Look, saw);
    }

    fn transact(&mut self, client: usize, time: (usize, usize), decision: Decision, saw: Values) {
        let called = self.op(client, time, &[]);
        called.op.decision = Some(decision);
        called.ret.saw = Some(saw);
    }

    fn is_linearizable(&self) -> bool {
        is_linearizable(ONE, &self.0)
    }
}

const ONE: Values = [Some(1), None, None];
const TWO: Values = [Some(2), None, None];

#[test]
fn checker_finds_lost_write() {
    // A late handle that has read 1 inserts 1 after another client has written 2. The final value must
    // not be 2.
    for (begun, saw, expected) in [
        (4, ONE, true),
        (4, TWO, false),
        // In a request that loaded earlier, the insert may have taken effect before the other write.
        (0, ONE, true),
        (0, TWO, true),
    ] {
        let mut ops = ByHand::default();
        ops.op(0, (1, 2), &[Step::Set(0, 2)]);
        ops.op(1, (begun, 5), &[Step::Set(0, 1)]);
        ops.look(2, (6, 7), saw);
        assert_eq!(ops.is_linearizable(), expected, "from {begun}, saw {saw:?}");
    }
}

#[test]
fn checker_finds_half_applied_commit() {
    // One request writes two keys. Another request overwrites the first key and then must not find the
    // second key missing.
    for (saw, expected) in [
        ([Some(2), Some(0), None], true),
        ([Some(1), Some(0), None], false),
        ([Some(1), None, None], false),
    ] {
        let mut ops = ByHand::default();
        ops.op(0, (0, 9), &[Step::Set(0, 2), Step::Set(1, 0)]);
        ops.op(1, (1, 2), &[Step::Set(0, 1)]);
        ops.look(1, (3, 4), ONE);
        ops.look(2, (10, 11), saw);
        assert_eq!(ops.is_linearizable(), expected, "{saw:?}");
    }
}

#[test]
fn checker_finds_value_taken_twice() {
    for (second, expected) in [(None, true), (Some(1), false)] {
        let mut ops = ByHand::default();
        ops.op(0, (0, 5), &[Step::Take(0)]).ret.taken = Some(1);
        ops.op(1, (1, 6), &[Step::Take(0)]).ret.taken = second;
        assert_eq!(ops.is_linearizable(), expected, "{second:?}");
    }
}

#[test]
fn checker_finds_two_decisions_on_same_values() {
    for (second, expected) in [(TWO, true), (ONE, false)] {
        let mut ops = ByHand::default();
        ops.transact(0, (0, 5), Decision::Next(0), ONE);
        ops.transact(1, (1, 6), Decision::Next(0), second);
        assert_eq!(ops.is_linearizable(), expected, "{second:?}");
    }
}

#[test]
fn checker_finds_reordered_operations_of_one_handle() {
    // Each of the two early saves may take effect any time after their request's load, but the saves
    // keep their order.
    for (saw, expected) in [(TWO, true), ([Some(0), None, None], false)] {
        let mut ops = ByHand::default();
        ops.op(0, (0, 2), &[Step::Set(0, 0)]);
        ops.op(0, (0, 4), &[Step::Set(0, 2)]).op.after = Some(0);
        ops.look(1, (5, 6), saw);
        assert_eq!(ops.is_linearizable(), expected, "{saw:?}");
    }
}

#[test]
fn checker_allows_in_doubt_write_to_apply_once_or_never() {
    let zero = [Some(0), None, None];
    for (saw, expected) in [
        ([ONE, TWO, TWO], true),
        ([ONE, ONE, ONE], true),
        ([TWO, zero, ONE], false),
        ([TWO, ONE, ONE], false),
    ] {
        let mut ops = ByHand::default();
        ops.op(0, (0, 1), &[Step::Next(0)]).ended = None;
        for (number, saw) in saw.into_iter().enumerate() {
            ops.look(1, (2 * number + 2, 2 * number + 3), saw);
        }
        assert_eq!(ops.is_linearizable(), expected, "{saw:?}");
    }
}

async fn long_lived_handle_writes_value_it_already_saw(on: Backend) {
    type Write = fn(&Session);
    let writes: [(Write, Option<u32>); 4] = [
        (|session| session.insert(SEED, &1).unwrap(), Some(1)),
        (|session| session.update(SEED, |value| *value = 1).unwrap(), Some(1)),
        (|session| session.remove(A), None),
        (Session::clear, None),
    ];
    for (number, (write, expected)) in writes.into_iter().enumerate() {
        for by_transact in [false, true] {
            let stand = on.stand();
            let cookie = stand.seeded().await;
            let (exchange, session) = stand.begin(&cookie).await;
            if number == 3 {
                session.clear();
            }
            assert!(finish(exchange, 200).await.error.is_none());
            let key = if number == 2 { A } else { SEED };
            assert_eq!(session.get(key).unwrap(), expected);
            stand.write(&cookie, key, 8).await;
            write(&session);
            if by_transact {
                // The transaction itself changes nothing, but it commits the earlier changes.
                session.transact(|_| Ok(())).await.unwrap();
            } else {
                session.save().await.unwrap();
            }
            assert_eq!(stand.read(&cookie, key).await, expected, "{number} {by_transact}");
        }
    }
}

async fn insert_of_loaded_value_overrides_concurrent_write_on_commit(on: Backend) {
    for early in [false, true] {
        let stand = on.stand();
        let cookie = stand.seeded().await;
        let (exchange, session) = stand.begin(&cookie).await;
        session.insert(SEED, &1).unwrap();
        stand.write(&cookie, SEED, 8).await;
        session.insert(A, &2).unwrap();
        if early {
            session.save().await.unwrap();
        }
        assert!(finish(exchange, 200).await.error.is_none());
        assert_eq!(stand.read(&cookie, SEED).await, Some(1), "{early}");
        assert_eq!(stand.read(&cookie, A).await, Some(2), "{early}");
    }
}

on_every_store! {
    long_lived_handle_writes_value_it_already_saw,
    insert_of_loaded_value_overrides_concurrent_write_on_commit,
}
