//! Random visits of two browsers against a reference: who is signed in, every value, every cookie
//! that was ever sent, through restarts, lost answers and requests that overtake each other.
//!
//! `UNSTICKY_LONG=1` makes it ten times as long.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use support::servers::{MemcachedServer, RedisServer};
use time::OffsetDateTime;
use unsticky::exchange::{Exchange, Finish};
use unsticky::store::{Deleted, MemcachedStore, MemoryStore, RedisStore, Store};
use unsticky::testing::{Fault, FaultStore, ManualClock, Verb};
use unsticky::{
    Clock as _, DirectoryMode, Error, ErrorKind, Key, Lifetime, Persistence, Result, RuntimeKey,
    Session, Sessions,
};

const NAMES: [&str; 3] = ["a", "b", "c"];
const PEOPLE: [&str; 2] = ["alice", "bob"];
const BROWSERS: usize = 2;

const fn minutes(number: u64) -> Duration {
    Duration::from_secs(60 * number)
}

/// What sessions get that do not choose.
const CONFIGURED: Lifetime = Lifetime::new(minutes(10), minutes(20));
const CHOICES: [Lifetime; 3] = [
    Lifetime::new(minutes(5), minutes(12)),
    Lifetime::new(minutes(20), minutes(60)),
    Lifetime::new(minutes(15), minutes(30)).browser_session(),
];

/// What happens.
#[derive(Debug, Clone)]
enum Step {
    Visit(Request),
    /// The second request comes to its end between two acts of the first one.
    Overtaken {
        first: Request,
        second: Request,
        /// How many acts of the first one come before.
        after: usize,
        /// The second one has read its session before those.
        early: bool,
        /// What the first one waits besides.
        pause: Duration,
    },
    Advance(Duration),
    /// Another process over the same store.
    Restart,
}

#[derive(Debug, Clone)]
struct Request {
    browser: usize,
    presents: Presents,
    acts: Vec<Act>,
    /// The handler returns the first error it gets.
    careful: bool,
    status: u16,
    trouble: Trouble,
    /// The browser never gets the response.
    is_lost: bool,
}

#[derive(Debug, Clone)]
enum Presents {
    /// The browser's own cookie.
    Own,
    Nothing,
    /// Any cookie that was ever sent.
    Any(Index),
    /// The browser's own, and any.
    Both(Index),
}

/// What a handler does.
#[derive(Debug, Clone)]
enum Act {
    Edit(Edit),
    SignIn(usize),
    SignOut,
    Rotate,
    SetLifetime(usize),
    Passive,
    Save,
    Reload,
    Transact { edits: Vec<Edit>, fails: bool },
}

#[derive(Debug, Clone)]
enum Edit {
    Insert { key: usize, value: u64, survives: bool },
    Remove(usize),
    Take(usize),
    Increment { key: usize, survives: bool },
    Clear,
}

/// What goes wrong with the store's commands of one request.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    None,
    Once(Verb, Fault),
    Always(Verb, Fault),
}

fn edit() -> impl Strategy<Value = Edit> {
    let key = 0..NAMES.len();
    prop_oneof![
        4 => (key.clone(), 0_u64..3, any::<bool>())
            .prop_map(|(key, value, survives)| Edit::Insert { key, value, survives }),
        1 => key.clone().prop_map(Edit::Remove),
        2 => key.clone().prop_map(Edit::Take),
        2 => (key, any::<bool>()).prop_map(|(key, survives)| Edit::Increment { key, survives }),
        1 => Just(Edit::Clear),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => edit().prop_map(Act::Edit),
        3 => (0..PEOPLE.len()).prop_map(Act::SignIn),
        2 => Just(Act::SignOut),
        2 => Just(Act::Rotate),
        2 => (0..CHOICES.len()).prop_map(Act::SetLifetime),
        1 => Just(Act::Passive),
        2 => Just(Act::Save),
        1 => Just(Act::Reload),
        2 => (prop::collection::vec(edit(), 0..3), prop::bool::weighted(0.2))
            .prop_map(|(edits, fails)| Act::Transact { edits, fails }),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let verb = select(&Verb::ALL[..]);
    let fault =
        select(vec![Fault::LoseAnswer, Fault::LoseRequest, Fault::Unavailable, Fault::Refused]);
    prop_oneof![
        8 => Just(Trouble::None),
        2 => (verb.clone(), fault.clone()).prop_map(|(verb, fault)| Trouble::Once(verb, fault)),
        1 => (verb, fault).prop_map(|(verb, fault)| Trouble::Always(verb, fault)),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let presents = prop_oneof![
        8 => Just(Presents::Own),
        1 => Just(Presents::Nothing),
        2 => any::<Index>().prop_map(Presents::Any),
        1 => any::<Index>().prop_map(Presents::Both),
    ];
    let status = prop_oneof![8 => Just(200), 1 => Just(404), 1 => Just(500)];
    let acts = prop::collection::vec(act(), 0..7);
    let is_lost = prop::bool::weighted(0.1);
    (0..BROWSERS, presents, acts, any::<bool>(), status, trouble(), is_lost).prop_map(
        |(browser, presents, acts, careful, status, trouble, is_lost)| Request {
            browser,
            presents,
            acts,
            careful,
            status,
            trouble,
            is_lost,
        },
    )
}

/// Where the store's own clock is the real one, a deadline must not come too near to it.
fn step(to_the_millisecond: bool) -> impl Strategy<Value = Step> {
    let odd = if to_the_millisecond { -1_i64..=1 } else { 0..=0 };
    let seconds = select(vec![30_u64, 60, 150, 270, 300, 600, 900, 1200, 1800]);
    let advance = (seconds, odd).prop_map(|(seconds, odd)| {
        Duration::from_millis((seconds * 1000).saturating_add_signed(odd))
    });
    // A store with another clock still holds what is over, which takes and ends can tell.
    let pause = match to_the_millisecond {
        true => prop_oneof![4 => Just(Duration::ZERO), 1 => advance.clone()].boxed(),
        false => Just(Duration::ZERO).boxed(),
    };
    prop_oneof![
        10 => request().prop_map(Step::Visit),
        6 => (request(), request(), 0_usize..6, any::<bool>(), pause).prop_map(
            |(first, second, after, early, pause)| {
                let after = after.min(first.acts.len());
                Step::Overtaken { first, second, after, early, pause }
            }
        ),
        4 => advance.prop_map(Step::Advance),
        1 => Just(Step::Restart),
    ]
}

/// What is seen of a session from outside: nothing where it is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sight {
    principal: Option<String>,
    values: Vec<Option<u64>>,
    is_stored: bool,
    /// Milliseconds since the beginning.
    expires_at: Option<u64>,
}

/// What one act came to, and what the handler sees after it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Done {
    result: Result<Option<u64>, ErrorKind>,
    /// What a transaction decided on.
    decided: Vec<Option<u64>>,
    sight: Sight,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SetCookie {
    Nothing,
    Removal,
    Token { max_age: Option<u64> },
}

/// How far a handler has come.
#[derive(Debug)]
struct Progress {
    acts: Vec<Done>,
    status: u16,
    is_over: bool,
}

impl Progress {
    fn new(request: &Request) -> Self {
        Self { acts: Vec::new(), status: request.status, is_over: false }
    }

    /// Notes an act; its error may be the handler's.
    fn note(&mut self, request: &Request, act: &Act, done: Done) {
        if let Err(kind) = done.result
            && (request.careful || matches!(act, Act::Reload))
        {
            self.status = status_of(kind);
            self.is_over = true;
        }
        self.acts.push(done);
    }
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    acts: Vec<Done>,
    set_cookie: SetCookie,
    error: Option<ErrorKind>,
}

type Values = BTreeMap<usize, (u64, bool)>;

/// A session of the reference.
#[derive(Debug, Clone)]
struct Record {
    id: usize,
    version: usize,
    secret: usize,
    principal: Option<usize>,
    sign_ins: usize,
    values: Values,
    began: u64,
    last_seen: u64,
    idle_deadline: u64,
    absolute_deadline: u64,
    chosen: Option<usize>,
}

impl Record {
    fn lifetime(&self) -> Lifetime {
        self.chosen.map_or(CONFIGURED, |choice| CHOICES[choice])
    }

    fn deadline(&self) -> u64 {
        self.idle_deadline.min(self.absolute_deadline)
    }

    fn is_refresh_due(&self, now: u64) -> bool {
        let idle = millis(self.lifetime().idle());
        now - self.last_seen >= (idle / 10).min(60_000)
            && self.idle_deadline < self.absolute_deadline
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

/// A cookie that was sent: which secret of which session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    id: usize,
    secret: usize,
}

/// The reference of store and clock.
#[derive(Debug, Default)]
struct World {
    now: u64,
    records: BTreeMap<usize, Record>,
    /// Ids, secrets and versions that were given.
    given: usize,
    trouble: Option<Trouble>,
}

impl World {
    fn fresh(&mut self) -> usize {
        self.given += 1;
        self.given
    }

    fn living(&self, id: usize) -> Option<&Record> {
        self.records.get(&id).filter(|record| self.now < record.deadline())
    }

    fn sees(&self, token: Token) -> Option<&Record> {
        self.living(token.id).filter(|record| record.secret == token.secret)
    }

    /// Whether a command fails in spite of all repetitions, and whether it is applied all the same.
    fn fails(&mut self, verb: Verb) -> Option<(ErrorKind, bool)> {
        match self.trouble {
            Some(Trouble::Once(which, Fault::Refused)) if which == verb => {
                self.trouble = None;
                Some((ErrorKind::Refused, false))
            }
            Some(Trouble::Always(which, fault)) if which == verb => Some(match fault {
                Fault::Refused => (ErrorKind::Refused, false),
                Fault::LoseAnswer if verb != Verb::Load => (ErrorKind::OutcomeUnknown, true),
                Fault::LoseRequest if verb != Verb::Load => (ErrorKind::OutcomeUnknown, false),
                _ => (ErrorKind::Unavailable, false),
            }),
            _ => None,
        }
    }

    fn load(&mut self, id: usize) -> Result<Option<Record>, ErrorKind> {
        match self.fails(Verb::Load) {
            Some((kind, _)) => Err(kind),
            None => Ok(self.living(id).cloned()),
        }
    }

    fn create(&mut self, record: &Record) -> Result<(), ErrorKind> {
        match self.fails(Verb::Create) {
            // Another id is tried each time; what was stored is nobody's.
            Some((ErrorKind::OutcomeUnknown, _)) => Err(ErrorKind::Unavailable),
            Some((kind, _)) => Err(kind),
            None => {
                self.records.insert(record.id, record.clone());
                Ok(())
            }
        }
    }

    /// The record that stands there instead, if there is one.
    fn replace(
        &mut self,
        base: usize,
        record: &Record,
    ) -> Result<Result<(), Option<Record>>, ErrorKind> {
        let current = self.living(record.id).cloned();
        let fits = current.as_ref().is_some_and(|current| current.version == base);
        match self.fails(Verb::Replace) {
            // What stands there settles it, unless nothing tells a lost request from a late one.
            None | Some((ErrorKind::OutcomeUnknown, true)) => {}
            Some((ErrorKind::OutcomeUnknown, false)) if !fits => {}
            Some((kind, _)) => return Err(kind),
        }
        if !fits {
            return Ok(Err(current));
        }
        self.records.insert(record.id, record.clone());
        Ok(Ok(()))
    }

    /// What it did, and whether an answer was lost: what is missing then was perhaps deleted here.
    fn delete(&mut self, id: usize, version: usize) -> Result<(Deleted, bool), ErrorKind> {
        let lost = match self.trouble {
            Some(Trouble::Once(Verb::Delete, fault)) => Some(fault),
            _ => None,
        };
        let failure = self.fails(Verb::Delete);
        let mut deleted = match self.living(id).map(|record| record.version == version) {
            Some(true) => Deleted::Deleted,
            Some(false) => Deleted::Conflict,
            None => Deleted::Missing,
        };
        if deleted == Deleted::Deleted && failure.is_none_or(|(_, applied)| applied) {
            self.records.remove(&id);
            if lost == Some(Fault::LoseAnswer) {
                deleted = Deleted::Missing;
            }
        }
        if let Some((kind, _)) = failure {
            return Err(kind);
        }
        self.trouble = self.trouble.filter(|_| lost.is_none());
        Ok((deleted, matches!(lost, Some(Fault::LoseAnswer | Fault::LoseRequest))))
    }
}

/// A change of values that can be made again on another record.
#[derive(Debug, Clone)]
enum Change {
    Edit(Edit),
    /// A value of the record was handed out.
    Taken {
        key: usize,
        seen: u64,
    },
}

/// What the handler of a request of the reference did.
#[derive(Debug, Default, Clone)]
struct Changes {
    values: Vec<Change>,
    ended: bool,
    sign_in: Option<usize>,
    rotate: bool,
    choice: Option<usize>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.values.is_empty()
            && !self.ended
            && self.sign_in.is_none()
            && !self.rotate
            && self.choice.is_none()
    }

    /// Begins anew; what was handed out stays handed out.
    fn start_over(&mut self) {
        self.values.retain(|change| matches!(change, Change::Taken { .. }));
    }

    /// Whether what was handed out stands there as it was.
    fn check_taken(&self, values: &Values) -> Result<(), ErrorKind> {
        let is_there = |change: &Change| match change {
            Change::Edit(_) => true,
            Change::Taken { key, seen } => values.get(key).is_some_and(|(value, _)| value == seen),
        };
        self.values.iter().all(is_there).then_some(()).ok_or(ErrorKind::ValueChanged)
    }

    /// The values that the changes lead to on those of a record.
    fn on(&self, record: Option<&Record>) -> Values {
        let mut values = record.map(|record| record.values.clone()).unwrap_or_default();
        if self.sign_in.is_some() && record.is_some_and(|record| record.principal.is_none()) {
            values.retain(|_, (_, survives)| *survives);
        }
        for change in &self.values {
            match change {
                Change::Edit(edit) => {
                    apply(edit, &mut values);
                }
                Change::Taken { key, .. } => {
                    values.remove(key);
                }
            }
        }
        values
    }
}

/// Makes an edit and says what was taken.
fn apply(edit: &Edit, values: &mut Values) -> Option<u64> {
    match *edit {
        Edit::Insert { key, value, survives } => {
            values.insert(key, (value, survives));
        }
        Edit::Remove(key) => {
            values.remove(&key);
        }
        Edit::Take(key) => return values.remove(&key).map(|(value, _)| value),
        Edit::Increment { key, survives } => {
            let value = values.get(&key).map_or(0, |(value, _)| *value);
            values.insert(key, (value + 1, survives));
        }
        Edit::Clear => values.clear(),
    }
    None
}

fn shown(values: &Values) -> Vec<Option<u64>> {
    (0..NAMES.len()).map(|key| values.get(&key).map(|(value, _)| *value)).collect()
}

/// A transaction, and what it decided on at last.
struct Decide<'a> {
    edits: &'a [Edit],
    fails: bool,
    decided: Vec<Option<u64>>,
}

/// A request of the reference.
#[derive(Debug)]
struct Visit {
    loaded: Option<Record>,
    /// Several valid tokens came along.
    others: Vec<Record>,
    /// The session ended or became somebody else's while this request ran.
    lost: bool,
    presented: bool,
    changes: Changes,
    passive: bool,
    set_cookie: SetCookie,
    token: Option<Token>,
    failed: Option<ErrorKind>,
}

impl Visit {
    fn open(world: &mut World, tokens: &[Token]) -> Result<Self, ErrorKind> {
        let mut found = Vec::new();
        for token in tokens {
            world.load(token.id)?;
            found.extend(world.sees(*token).cloned());
        }
        let is_one = found.len() == 1;
        let loaded = found.pop_if(|_| is_one);
        Ok(Self {
            loaded,
            others: found,
            lost: false,
            presented: !tokens.is_empty(),
            changes: Changes::default(),
            passive: false,
            set_cookie: SetCookie::Nothing,
            token: None,
            failed: None,
        })
    }

    /// The session that this request goes on with.
    fn base(&self) -> Option<&Record> {
        let goes_on = |record: &&Record| !self.changes.ended && !self.is_another(record);
        self.loaded.as_ref().filter(goes_on)
    }

    fn is_another(&self, record: &Record) -> bool {
        let new = self.changes.sign_in;
        new.is_some() && record.principal.is_some() && new != record.principal
    }

    fn principal(&self) -> Option<usize> {
        self.changes.sign_in.or_else(|| self.base()?.principal)
    }

    fn values(&self) -> Values {
        self.changes.on(self.base())
    }

    fn sight(&self) -> Sight {
        let base = self.base();
        Sight {
            principal: self.principal().map(|who| PEOPLE[who].to_owned()),
            values: shown(&self.values()),
            is_stored: base.is_some(),
            expires_at: base.map(Record::deadline),
        }
    }

    fn act(&mut self, world: &mut World, act: &Act) -> Done {
        let mut decided = Vec::new();
        let mut result = Ok(None);
        match act {
            Act::Edit(Edit::Take(key)) => {
                if let Some((value, _)) = self.values().get(key) {
                    result = Ok(Some(*value));
                    let seen = self.base().and_then(|base| base.values.get(key));
                    self.changes.values.push(match seen {
                        Some((seen, _)) => Change::Taken { key: *key, seen: *seen },
                        None => Change::Edit(Edit::Remove(*key)),
                    });
                }
            }
            Act::Edit(edit) => self.changes.values.push(Change::Edit(edit.clone())),
            Act::SignIn(who) => {
                if self.principal().is_some_and(|signed_in| signed_in != *who) {
                    self.changes.start_over();
                }
                self.changes.sign_in = Some(*who);
            }
            Act::SignOut => {
                self.changes.start_over();
                let values = std::mem::take(&mut self.changes.values);
                self.changes = Changes { values, ended: true, ..Changes::default() };
            }
            Act::Rotate => self.changes.rotate = true,
            Act::SetLifetime(choice) => self.changes.choice = Some(*choice),
            Act::Passive => self.passive = true,
            Act::Save => result = self.commit(world, false, None).map(|()| None),
            Act::Reload => result = self.reload(world).map(|()| None),
            Act::Transact { edits, fails } => {
                let mut decide = Decide { edits, fails: *fails, decided: Vec::new() };
                result = self.commit(world, false, Some(&mut decide)).map(|()| None);
                if result.is_ok() {
                    decided = decide.decided;
                }
            }
        }
        Done { result, decided, sight: self.sight() }
    }

    fn reload(&mut self, world: &mut World) -> Result<(), ErrorKind> {
        let Some(loaded) = &self.loaded else { return Ok(()) };
        let newer = world.load(loaded.id)?.filter(|newer| {
            newer.sign_ins == loaded.sign_ins
                && newer.principal == loaded.principal
                && world.now < newer.deadline()
        });
        match newer {
            Some(newer) => {
                self.loaded = Some(newer);
                Ok(())
            }
            None => {
                if !self.changes.is_empty() {
                    self.changes = Changes::default();
                    self.failed = Some(ErrorKind::Gone);
                }
                self.lose();
                Err(ErrorKind::Gone)
            }
        }
    }

    /// No cookie may leave that could overwrite somebody else's.
    fn lose(&mut self) {
        (self.set_cookie, self.token) = (SetCookie::Nothing, None);
        self.loaded = None;
        self.lost = true;
    }

    /// Commits what was changed; of a failed request only an end.
    fn commit(
        &mut self,
        world: &mut World,
        failed: bool,
        decide: Option<&mut Decide<'_>>,
    ) -> Result<(), ErrorKind> {
        let earlier = self.failed;
        let result = self.carry_out(world, failed || earlier.is_some(), decide);
        match result {
            Ok(()) => self.changes = Changes::default(),
            Err(kind) => {
                let is_final = matches!(kind, ErrorKind::OutcomeUnknown | ErrorKind::Gone);
                if is_final {
                    self.failed = Some(kind);
                }
                if is_final || self.failed != earlier {
                    self.changes = Changes::default();
                }
            }
        }
        earlier.map_or(result, Err)
    }

    fn carry_out(
        &mut self,
        world: &mut World,
        failed: bool,
        decide: Option<&mut Decide<'_>>,
    ) -> Result<(), ErrorKind> {
        let Changes { ended, sign_in, rotate, choice, .. } = self.changes;
        let before = self.base().map(|base| base.values.clone()).unwrap_or_default();
        let changed = !failed && (decide.is_some() || self.values() != before);
        if self.lost {
            return match sign_in {
                _ if failed => Ok(()),
                Some(_) => self.create_elsewhere(world, decide),
                None if changed => {
                    self.lose();
                    Err(ErrorKind::Gone)
                }
                None => Ok(()),
            };
        }
        // A sign-out ends whatever came along, and always removes the cookie.
        if ended {
            for other in self.others.clone() {
                self.end(world, &other)?;
            }
        }
        let Some(loaded) = self.loaded.clone() else {
            if !failed && (sign_in.is_some() || changed) && self.create(world, decide)? {
                return Ok(());
            }
            if ended && self.presented {
                self.remove_cookie();
            }
            return Ok(());
        };
        if failed {
            if ended {
                self.end_loaded(world, &loaded)?;
            }
            return Ok(());
        }
        if self.is_another(&loaded) || (ended && sign_in.is_some()) {
            let cookie = (self.set_cookie.clone(), self.token);
            self.create(world, decide)?;
            if let Err(kind) = self.end(world, &loaded) {
                (self.set_cookie, self.token) = cookie;
                self.loaded = Some(loaded);
                return Err(kind);
            }
            return Ok(());
        }
        if ended {
            if decide.as_ref().is_some_and(|decide| decide.fails) {
                return Err(ErrorKind::TooLarge);
            }
            if !self.end_loaded(world, &loaded)? {
                return if changed { Err(ErrorKind::Gone) } else { Ok(()) };
            }
            if changed {
                self.create(world, decide).inspect_err(|kind| self.failed = Some(*kind))?;
            }
            return Ok(());
        }
        if sign_in.is_some() || changed || rotate || choice.is_some() {
            return self.save(world, loaded, decide);
        }
        if !self.passive && loaded.is_refresh_due(world.now) && world.now < loaded.deadline() {
            let base = loaded.version;
            let mut refreshed = loaded;
            self.write(world, &mut refreshed);
            // Whatever becomes of it, the request goes on.
            if let Ok(Ok(())) = world.replace(base, &refreshed) {
                self.loaded = Some(refreshed);
            }
        }
        Ok(())
    }

    /// False where it has become somebody else's.
    fn end_loaded(&mut self, world: &mut World, loaded: &Record) -> Result<bool, ErrorKind> {
        let ends = self.end(world, loaded)?;
        if ends {
            self.remove_cookie();
        } else {
            self.lose();
        }
        Ok(ends)
    }

    fn remove_cookie(&mut self) {
        (self.set_cookie, self.token) = (SetCookie::Removal, None);
        self.loaded = None;
    }

    fn send_cookie(&mut self, world: &World, record: &Record) {
        let age = record.absolute_deadline.saturating_sub(world.now).div_ceil(1000);
        let persists = record.lifetime().persistence() == Persistence::Persistent;
        self.set_cookie = SetCookie::Token { max_age: persists.then_some(age) };
        self.token = Some(Token { id: record.id, secret: record.secret });
    }

    /// What every write does to a record besides its values.
    fn write(&self, world: &mut World, record: &mut Record) {
        let now = world.now;
        record.version = world.fresh();
        record.chosen = self.changes.choice.or(record.chosen);
        let lifetime = record.lifetime();
        let (idle, absolute) = (millis(lifetime.idle()), millis(lifetime.absolute()));
        if let Some(who) = self.changes.sign_in {
            record.principal = Some(who);
            record.sign_ins += 1;
            (record.began, record.last_seen) = (now, now);
            record.idle_deadline = now + idle;
            record.absolute_deadline = now + absolute;
        } else if self.changes.choice.is_some() {
            record.last_seen = now;
            record.idle_deadline = now + idle;
            record.absolute_deadline = record.began + absolute;
        } else if !self.passive {
            record.last_seen = now;
            record.idle_deadline = record.idle_deadline.max(now + idle);
        }
    }

    fn decide(values: &mut Values, decide: Option<&mut Decide<'_>>) -> Result<(), ErrorKind> {
        if let Some(decide) = decide {
            decide.edits.iter().for_each(|edit| {
                apply(edit, values);
            });
            if decide.fails {
                return Err(ErrorKind::TooLarge);
            }
            decide.decided = shown(values);
        }
        Ok(())
    }

    /// A new session with what this request wrote; false where there is nothing to store.
    fn create(
        &mut self,
        world: &mut World,
        decide: Option<&mut Decide<'_>>,
    ) -> Result<bool, ErrorKind> {
        let mut values = self.changes.on(None);
        Self::decide(&mut values, decide)?;
        if self.changes.sign_in.is_none() && values.is_empty() {
            return Ok(false);
        }
        let now = world.now;
        let mut record = Record {
            id: world.fresh(),
            version: 0,
            secret: world.fresh(),
            principal: None,
            sign_ins: 0,
            values,
            began: now,
            last_seen: now,
            idle_deadline: now + millis(CONFIGURED.idle()),
            absolute_deadline: now + millis(CONFIGURED.absolute()),
            chosen: None,
        };
        self.write(world, &mut record);
        world.create(&record)?;
        self.send_cookie(world, &record);
        (self.loaded, self.lost) = (Some(record), false);
        Ok(true)
    }

    /// A session of its own for a sign-in whose session is lost: nothing can be taken from that one.
    fn create_elsewhere(
        &mut self,
        world: &mut World,
        decide: Option<&mut Decide<'_>>,
    ) -> Result<(), ErrorKind> {
        self.changes.check_taken(&Values::new())?;
        self.create(world, decide).map(|_| ())
    }

    fn save(
        &mut self,
        world: &mut World,
        loaded: Record,
        mut decide: Option<&mut Decide<'_>>,
    ) -> Result<(), ErrorKind> {
        let Changes { sign_in, rotate, choice, .. } = self.changes;
        let signs_in = sign_in.is_some();
        let mut new_secret = signs_in || rotate || choice.is_some();
        let mut current = loaded.clone();
        let mut is_fresh = false;
        loop {
            let newer = if world.now >= current.deadline() {
                None
            } else {
                self.changes.check_taken(&current.values)?;
                let mut values = self.changes.on(Some(&current));
                Self::decide(&mut values, decide.as_deref_mut())?;
                if new_secret || values != current.values {
                    let base = current.version;
                    let mut record = Record { values, ..current.clone() };
                    if new_secret {
                        record.secret = world.fresh();
                    }
                    self.write(world, &mut record);
                    match world.replace(base, &record)? {
                        Ok(()) => {
                            if new_secret {
                                self.send_cookie(world, &record);
                            }
                            self.loaded = Some(record);
                            return Ok(());
                        }
                        Err(newer) => newer,
                    }
                } else if decide.is_some() && !is_fresh {
                    world.load(current.id)?
                } else {
                    Some(current.clone())
                }
            };
            is_fresh = true;
            let newer = newer.filter(|newer| {
                newer.sign_ins == loaded.sign_ins && newer.principal == loaded.principal
            });
            match newer {
                Some(newer) if newer.version == current.version => {
                    self.loaded = Some(newer);
                    return Ok(());
                }
                Some(newer) => {
                    // Another request's new secret stands.
                    if newer.secret != loaded.secret && !signs_in {
                        if choice.is_some() {
                            return Err(ErrorKind::Contended);
                        }
                        new_secret = false;
                    }
                    current = newer;
                }
                None if signs_in => return self.create_elsewhere(world, decide),
                None => {
                    // Not brought back, and no cookie.
                    self.lose();
                    let lost = decide.is_some() || self.changes.on(Some(&loaded)) != loaded.values;
                    return if lost { Err(ErrorKind::Gone) } else { Ok(()) };
                }
            }
        }
    }

    /// Ends a session, unless it has become somebody else's.
    fn end(&self, world: &mut World, loaded: &Record) -> Result<bool, ErrorKind> {
        let mut version = loaded.version;
        loop {
            match world.delete(loaded.id, version)? {
                (Deleted::Deleted, _) => return Ok(true),
                (Deleted::Missing, in_doubt) => return self.already_ended(in_doubt),
                (Deleted::Conflict, _) => {}
            }
            let Some(newer) = world.load(loaded.id)? else { return self.already_ended(false) };
            if newer.principal != loaded.principal {
                return Ok(false);
            }
            self.changes.check_taken(&newer.values)?;
            version = newer.version;
        }
    }

    /// The session is no more: fine, unless this request handed out one of its values. Where it can
    /// not be known who ended it, it can not be known either whether somebody else took the value.
    fn already_ended(&self, in_doubt: bool) -> Result<bool, ErrorKind> {
        match self.changes.check_taken(&Values::new()) {
            Err(_) if in_doubt => Err(ErrorKind::OutcomeUnknown),
            checked => checked.map(|()| true),
        }
    }

    fn perform(&mut self, world: &mut World, request: &Request, acts: &[Act], at: &mut Progress) {
        for act in acts {
            if !at.is_over {
                at.note(request, act, self.act(world, act));
            }
        }
    }

    /// What comes after the handler.
    fn finish(mut self, world: &mut World, at: Progress) -> (Outcome, Option<Token>) {
        let failed = at.status >= 500;
        let error = self.commit(world, failed, None).err().filter(|_| !failed);
        let Self { set_cookie, token, .. } = self;
        (Outcome { acts: at.acts, set_cookie, error }, token)
    }
}

fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Gone | ErrorKind::ValueChanged => 409,
        ErrorKind::TooLarge => 500,
        _ => 503,
    }
}

fn key(index: usize) -> RuntimeKey<u64> {
    Key::runtime(NAMES[index])
}

fn marked(index: usize, survives: bool) -> RuntimeKey<u64> {
    if survives { key(index).survives_sign_in() } else { key(index) }
}

/// What is tested: the crate over a store.
struct Real {
    store: FaultStore<Arc<dyn Store>>,
    clock: ManualClock,
    began: OffsetDateTime,
    sessions: Sessions,
}

impl Real {
    fn new(store: Arc<dyn Store>, clock: ManualClock) -> Self {
        let store = FaultStore::new(store);
        let sessions = Self::process(&store, &clock);
        Self { store, began: clock.now(), clock, sessions }
    }

    fn process(store: &FaultStore<Arc<dyn Store>>, clock: &ManualClock) -> Sessions {
        let builder = Sessions::builder(store.clone()).clock(clock.clone());
        // The reference says what becomes of each command, and these are not its own.
        let builder = builder.directory(DirectoryMode::Off);
        // Servers of a busy machine may be slow, and that is not what is tested.
        builder.lifetime(CONFIGURED).timeout(Duration::from_secs(30)).build().unwrap()
    }

    fn sight(&self, session: &Session) -> Sight {
        let since = |time: OffsetDateTime| (time - self.began).whole_milliseconds() as u64;
        Sight {
            principal: session.principal().map(|who| who.to_string()),
            values: (0..NAMES.len()).map(|index| session.get(&key(index)).unwrap()).collect(),
            is_stored: session.id().is_some(),
            expires_at: session.expires_at().map(since),
        }
    }

    async fn act(&self, session: &Session, act: &Act) -> (Result<Option<u64>>, Vec<Option<u64>>) {
        let mut decided = Vec::new();
        let result = match act.clone() {
            Act::Edit(Edit::Insert { key, value, survives }) => {
                session.insert(&marked(key, survives), &value).map(|()| None)
            }
            Act::Edit(Edit::Remove(index)) => {
                session.remove(key(index));
                Ok(None)
            }
            Act::Edit(Edit::Take(index)) => session.take(&key(index)),
            Act::Edit(Edit::Increment { key, survives }) => {
                session.update(marked(key, survives), |number| *number += 1).map(|()| None)
            }
            Act::Edit(Edit::Clear) => {
                session.clear();
                Ok(None)
            }
            Act::SignIn(who) => session.sign_in(PEOPLE[who]).map(|()| None),
            Act::SignOut => {
                session.sign_out();
                Ok(None)
            }
            Act::Rotate => {
                session.rotate();
                Ok(None)
            }
            Act::SetLifetime(choice) => {
                session.set_lifetime(CHOICES[choice]);
                Ok(None)
            }
            Act::Passive => {
                session.mark_passive();
                Ok(None)
            }
            Act::Save => session.save().await.map(|()| None),
            Act::Reload => session.reload().await.map(|()| None),
            Act::Transact { edits, fails } => {
                let transaction = session.transact(move |values| {
                    for edit in &edits {
                        match *edit {
                            Edit::Insert { key, value, survives } => {
                                values.insert(&marked(key, survives), &value)?;
                            }
                            Edit::Remove(index) => values.remove(key(index)),
                            Edit::Take(index) => {
                                values.take(&key(index))?;
                            }
                            Edit::Increment { key, survives } => {
                                values.update(marked(key, survives), |number| *number += 1)?;
                            }
                            Edit::Clear => values.clear(),
                        }
                    }
                    if fails {
                        return Err(Error::too_large("as the test says"));
                    }
                    (0..NAMES.len()).map(|index| values.get(&key(index))).collect()
                });
                transaction.await.map(|all: Vec<_>| {
                    decided = all;
                    None
                })
            }
        };
        (result, decided)
    }

    fn begin(&self, cookies: &[&str]) -> Exchange {
        let header = cookies.join("; ");
        Exchange::begin(&self.sessions, (!cookies.is_empty()).then_some(header.as_bytes()), None)
    }

    fn make(&self, trouble: Trouble) {
        match trouble {
            Trouble::None => {}
            Trouble::Once(verb, fault) => self.store.inject(verb, fault),
            Trouble::Always(verb, fault) => self.store.fail_always(verb, fault),
        }
    }

    async fn perform(&self, session: &Session, request: &Request, acts: &[Act], at: &mut Progress) {
        for act in acts {
            if !at.is_over {
                let (result, decided) = self.act(session, act).await;
                if let Err(error) = &result {
                    assert_eq!(error.status(), status_of(error.kind()));
                }
                let result = result.map_err(|error| error.kind());
                let sight = self.sight(session);
                at.note(request, act, Done { result, decided, sight });
            }
        }
    }
}

/// What comes after the handler; with the cookie that was sent.
async fn concluded(exchange: Exchange, at: Progress) -> (Outcome, Option<String>) {
    let (header, error) = finish(exchange, at.status).await;
    let pair = header.as_ref().and_then(|header| header.split(';').next());
    let max_age = header.as_ref().and_then(|header| header.split_once("Max-Age="));
    let max_age = max_age.map(|(_, age)| age.parse().unwrap());
    let (set_cookie, cookie) = match (pair, max_age) {
        (None, _) => (SetCookie::Nothing, None),
        (Some(pair), Some(0)) if pair.ends_with('=') => (SetCookie::Removal, None),
        (Some(pair), max_age) => (SetCookie::Token { max_age }, Some(pair.to_owned())),
    };
    (Outcome { acts: at.acts, set_cookie, error }, cookie)
}

async fn finish(exchange: Exchange, status: u16) -> (Option<String>, Option<ErrorKind>) {
    let reply = match exchange.finish(status) {
        Finish::Ready(reply) => reply,
        Finish::Pending(reply) => reply.await,
    };
    (reply.set_cookie, reply.error.map(|error| error.kind()))
}

/// A request that has read its session, in both worlds.
struct Open {
    exchange: Exchange,
    session: Session,
    at: Progress,
    visit: Visit,
    expected: Progress,
}

/// Both, and the browsers.
struct Case {
    real: Real,
    world: World,
    /// Every cookie that was ever sent, in both worlds.
    issued: Vec<(String, Token)>,
    jars: [Option<usize>; BROWSERS],
}

impl Case {
    /// The cookies that a request brings.
    fn presented(&self, request: &Request) -> Vec<usize> {
        let any = |index: &Index| (!self.issued.is_empty()).then(|| index.index(self.issued.len()));
        let own = self.jars[request.browser];
        let mut cookies: Vec<usize> = match &request.presents {
            Presents::Own => own.into_iter().collect(),
            Presents::Nothing => Vec::new(),
            Presents::Any(index) => any(index).into_iter().collect(),
            Presents::Both(index) => own.into_iter().chain(any(index)).collect(),
        };
        cookies.dedup();
        cookies
    }

    fn answered(
        &mut self,
        request: &Request,
        expected: (Outcome, Option<Token>),
        actual: (Outcome, Option<String>),
    ) -> Result<(), TestCaseError> {
        prop_assert_eq!(&actual.0, &expected.0, "the reference stands on the right");
        if let (Some(cookie), Some(token)) = (actual.1, expected.1) {
            self.issued.push((cookie, token));
        }
        if !request.is_lost {
            match actual.0.set_cookie {
                SetCookie::Nothing => {}
                SetCookie::Removal => self.jars[request.browser] = None,
                SetCookie::Token { .. } => {
                    self.jars[request.browser] = Some(self.issued.len() - 1);
                }
            }
        }
        Ok(())
    }

    fn cookies(&self, indices: &[usize]) -> (Vec<&str>, Vec<Token>) {
        indices.iter().map(|index| (self.issued[*index].0.as_str(), self.issued[*index].1)).unzip()
    }

    /// Reads the session; nothing to go on with where that fails in both worlds alike.
    async fn open(&mut self, request: &Request) -> Result<Option<Open>, TestCaseError> {
        let presented = self.presented(request);
        let (cookies, tokens) = self.cookies(&presented);
        let exchange = self.real.begin(&cookies);
        let session = exchange.handle().session().await;
        let visit = Visit::open(&mut self.world, &tokens);
        let (at, expected) = (Progress::new(request), Progress::new(request));
        match (session, visit) {
            (Ok(session), Ok(visit)) => Ok(Some(Open { exchange, session, at, visit, expected })),
            (session, visit) => {
                let kind = session.map(|_| ()).map_err(|error| error.kind());
                prop_assert_eq!(kind, visit.map(|_| ()));
                let status = kind.map_or_else(status_of, |()| 200);
                prop_assert_eq!(finish(exchange, status).await, (None, None));
                Ok(None)
            }
        }
    }

    fn make(&mut self, trouble: Trouble) {
        self.real.make(trouble);
        self.world.trouble = Some(trouble);
    }

    fn heal(&mut self) {
        self.real.store.heal();
        self.world.trouble = None;
    }

    async fn perform(&mut self, open: &mut Open, request: &Request, acts: &[Act]) {
        self.real.perform(&open.session, request, acts, &mut open.at).await;
        open.visit.perform(&mut self.world, request, acts, &mut open.expected);
    }

    /// What is left of a request, from this act on.
    async fn go_on(
        &mut self,
        mut open: Open,
        request: &Request,
        from: usize,
    ) -> Result<(), TestCaseError> {
        self.perform(&mut open, request, &request.acts[from..]).await;
        let actual = concluded(open.exchange, open.at).await;
        let expected = open.visit.finish(&mut self.world, open.expected);
        self.heal();
        self.answered(request, expected, actual)
    }

    async fn visit(&mut self, request: &Request) -> Result<(), TestCaseError> {
        self.make(request.trouble);
        match self.open(request).await? {
            Some(open) => self.go_on(open, request, 0).await,
            None => {
                self.heal();
                Ok(())
            }
        }
    }

    async fn overtaken(
        &mut self,
        first: &Request,
        second: &Request,
        after: usize,
        early: bool,
        pause: Duration,
    ) -> Result<(), TestCaseError> {
        // How often a conflict reads differs between the stores.
        let late_trouble = |request: &Request| match request.trouble {
            Trouble::Once(Verb::Load, _) | Trouble::Always(Verb::Load, _) => Trouble::None,
            trouble => trouble,
        };
        let mut overtaken = self.open(first).await?.unwrap();
        let overtaker = if early { self.open(second).await? } else { None };
        self.perform(&mut overtaken, first, &first.acts[..after]).await;
        match overtaker {
            Some(open) => {
                self.make(late_trouble(second));
                self.go_on(open, second, 0).await?;
            }
            None => self.visit(second).await?,
        }
        self.advance(pause);
        self.make(late_trouble(first));
        self.go_on(overtaken, first, after).await
    }

    fn advance(&mut self, by: Duration) {
        self.real.clock.advance(by);
        self.world.now += millis(by);
    }

    /// Every cookie that was ever sent is worth what the reference says: of each session at most
    /// one.
    async fn compare(&self) -> Result<(), TestCaseError> {
        for (cookie, token) in &self.issued {
            let exchange = self.real.begin(&[cookie]);
            let session = exchange.handle().session().await.unwrap();
            session.mark_passive();
            let seen = self.real.sight(&session);
            prop_assert_eq!(finish(exchange, 200).await, (None, None));
            let visit = Visit::open(&mut World::default(), &[]).unwrap();
            let loaded = self.world.sees(*token).cloned();
            let expected = Visit { loaded, ..visit }.sight();
            prop_assert_eq!(seen, expected, "{:?}; the reference stands on the right", token);
        }
        let valid: Vec<usize> = self
            .issued
            .iter()
            .filter(|(_, token)| self.world.sees(*token).is_some())
            .map(|(_, token)| token.id)
            .collect();
        let mut sessions = valid.clone();
        sessions.sort_unstable();
        sessions.dedup();
        prop_assert_eq!(valid.len(), sessions.len());
        Ok(())
    }

    async fn run(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        for step in steps {
            match step {
                Step::Visit(request) => self.visit(request).await?,
                Step::Overtaken { first, second, after, early, pause } => {
                    self.overtaken(first, second, *after, *early, *pause).await?;
                }
                Step::Advance(by) => self.advance(*by),
                Step::Restart => {
                    self.real.sessions = Real::process(&self.real.store, &self.real.clock);
                }
            }
            self.compare().await?;
        }
        Ok(())
    }
}

fn check(
    cases: u32,
    to_the_millisecond: bool,
    runtime: &tokio::runtime::Runtime,
    store: impl Fn(&ManualClock) -> Arc<dyn Store>,
) {
    let long = std::env::var_os("UNSTICKY_LONG").is_some_and(|value| value != "0");
    let cases = cases * if long { 10 } else { 1 };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let steps = prop::collection::vec(step(to_the_millisecond), 1..16);
    let outcome = TestRunner::new(config).run(&steps, |steps| {
        let clock = ManualClock::new();
        let real = Real::new(store(&clock), clock);
        let world = World::default();
        let mut case = Case { real, world, issued: Vec::new(), jars: [None; BROWSERS] };
        runtime.block_on(case.run(&steps))
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn memory_does_what_the_reference_does() {
    check(6_000, true, &runtime(), |clock| Arc::new(MemoryStore::with_clock(clock.clone())));
}

#[test]
fn redis_does_what_the_reference_does() {
    let (server, runtime) = (RedisServer::start(), runtime());
    let store = Arc::new(RedisStore::connect(&server.url()).unwrap());
    check(1_000, false, &runtime, |_| store.clone());
}

#[test]
fn memcached_does_what_the_reference_does() {
    let (server, runtime) = (MemcachedServer::start(), runtime());
    let store = Arc::new(MemcachedStore::connect(&server.url()).unwrap());
    check(1_000, false, &runtime, |_| store.clone());
}

/// What the reference found, by itself.
async fn signed_out_with(acts: Vec<Act>, trouble: Trouble, late: Duration) -> Outcome {
    let clock = ManualClock::new();
    let store = Arc::new(MemoryStore::with_clock(clock.clone()));
    let real = Real::new(store, clock);
    let request = |acts, trouble| Request {
        browser: 0,
        presents: Presents::Own,
        acts,
        careful: true,
        status: 200,
        trouble,
        is_lost: false,
    };
    let insert = Act::Edit(Edit::Insert { key: 0, value: 1, survives: false });
    let run = async |cookies: &[&str], request: Request| {
        let exchange = real.begin(cookies);
        let session = exchange.handle().session().await.unwrap();
        let mut at = Progress::new(&request);
        real.perform(&session, &request, &request.acts, &mut at).await;
        concluded(exchange, at).await
    };
    let (_, cookie) = run(&[], request(vec![insert], Trouble::None)).await;
    real.clock.advance(late);
    real.make(trouble);
    run(&[&cookie.unwrap()], request(acts, trouble)).await.0
}

#[tokio::test]
async fn a_sign_out_removes_a_dead_cookie_also_where_a_transaction_follows_that_stores_nothing() {
    let nothing = Act::Transact { edits: Vec::new(), fails: false };
    let outcome = signed_out_with(vec![Act::SignOut, nothing], Trouble::None, minutes(60)).await;
    assert_eq!((outcome.error, outcome.set_cookie), (None, SetCookie::Removal));
}

#[tokio::test]
async fn a_take_before_a_sign_out_whose_answer_was_lost_is_unknown_and_not_changed_by_another() {
    let acts = || vec![Act::Edit(Edit::Take(0)), Act::SignOut];
    for (fault, error, set_cookie) in [
        (Fault::LoseAnswer, Some(ErrorKind::OutcomeUnknown), SetCookie::Nothing),
        (Fault::LoseRequest, None, SetCookie::Removal),
    ] {
        let trouble = Trouble::Once(Verb::Delete, fault);
        let outcome = signed_out_with(acts(), trouble, Duration::ZERO).await;
        assert_eq!((outcome.error, outcome.set_cookie), (error, set_cookie), "{fault:?}");
    }
}
