//! Compares random visits by two browsers with a reference model: who is signed in, every value, and
//! every cookie that was ever sent. The visits include restarts, lost answers, requests that overtake
//! each other, and handles that outlive their response.
//!
//! `UNSTICKY_LONG=1` runs ten times as many cases.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use support::runtime;
use support::stand::{Backend, Stand};
use support::visit::finish;
use time::OffsetDateTime;
use unsticky::exchange::{Exchange, Reply};
use unsticky::store::Deleted;
use unsticky::testing::{Fault, Verb};
use unsticky::{
    Builder, Clock as _, DirectoryMode, Error, ErrorKind, Key, Level, Lifetime, Persistence,
    Result, RuntimeKey, Session,
};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// The index of the list of messages among the values. The model stores the list as a number: four
/// times the number before, plus the new message, which is 1, 2 or 3.
const MESSAGES: usize = NAMES.len();
const LIST: Key<Vec<(String, String)>> = Key::new("unsticky.flash");
const PEOPLE: [&str; 2] = ["alice", "bob"];
const BROWSERS: usize = 2;

const fn minutes(number: u64) -> Duration {
    Duration::from_secs(60 * number)
}

/// The lifetime of a session for which no request has chosen one.
const CONFIGURED: Lifetime = Lifetime::new(minutes(10), minutes(20));
const CHOICES: [Lifetime; 3] = [
    Lifetime::new(minutes(5), minutes(12)),
    Lifetime::new(minutes(20), minutes(60)),
    Lifetime::new(minutes(15), minutes(30)).browser_session(),
];

/// One step of a case.
#[derive(Debug, Clone)]
enum Step {
    Visit(Request),
    /// The second request finishes between two acts of the first one.
    Overtaken {
        first: Request,
        second: Request,
        /// The number of acts of the first request that run before the second one.
        after: usize,
        /// Whether the second request has read its session before those acts.
        early: bool,
        /// The pause between the two parts of the first request.
        pause: Duration,
    },
    /// The handler keeps its handle after the response and uses it later, between other requests.
    Outlives {
        first: Request,
        rounds: Vec<Round>,
    },
    Advance(Duration),
    /// Another process opens the same store.
    Restart,
}

/// What happens between two uses of a handle that outlives its response.
#[derive(Debug, Clone)]
struct Round {
    other: Option<Request>,
    /// Whether the other request has read its session before the first one acts.
    early: bool,
    pause: Duration,
    /// The acts on the kept handle after the pause.
    acts: Vec<Act>,
}

#[derive(Debug, Clone)]
struct Request {
    browser: usize,
    presents: Presents,
    acts: Vec<Act>,
    /// Whether the handler stops at its first error and returns it.
    careful: bool,
    status: u16,
    trouble: Trouble,
    /// Whether the response fails to reach the browser.
    is_lost: bool,
}

#[derive(Debug, Clone)]
enum Presents {
    /// The browser's own cookie.
    Own,
    Nothing,
    /// Any cookie that was ever sent, to either browser.
    Any(usize),
    /// The browser's own cookie and any other cookie.
    Both(usize),
}

/// One act of a handler.
#[derive(Debug, Clone)]
enum Act {
    Edit(Edit),
    SignIn(usize),
    SignOut,
    Rotate,
    SetLifetime(usize),
    StepUp,
    Passive,
    Save,
    Reload,
    Say(u64),
    Flashes,
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

/// A fault that affects the store's commands during one request.
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
        2 => Just(Act::StepUp),
        1 => Just(Act::Passive),
        2 => Just(Act::Save),
        1 => Just(Act::Reload),
        3 => (1_u64..=3).prop_map(Act::Say),
        3 => Just(Act::Flashes),
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
    let sent = 0_usize..32;
    let presents = prop_oneof![
        8 => Just(Presents::Own),
        1 => Just(Presents::Nothing),
        2 => sent.clone().prop_map(Presents::Any),
        1 => sent.prop_map(Presents::Both),
    ];
    let status = prop_oneof![16 => Just(200), 2 => Just(404), 2 => Just(500), 1 => Just(408)];
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

/// A request that is certain to compete with others for the same session.
fn rival() -> impl Strategy<Value = Request> {
    request().prop_map(|request| Request { browser: 0, presents: Presents::Own, ..request })
}

/// An act that commits at once.
fn commit() -> impl Strategy<Value = Act> {
    let edits = prop::collection::vec(edit(), 0..3);
    prop_oneof![
        3 => Just(Act::Save),
        1 => edits.prop_map(|edits| Act::Transact { edits, fails: false }),
    ]
}

/// A request that commits while another request writes first, and that may reload before it commits
/// again.
fn contest(to_the_millisecond: bool) -> impl Strategy<Value = Step> {
    let acts = || prop::collection::vec(act(), 0..4);
    let rereads = prop::option::weighted(0.2, Just(Act::Reload));
    let all = (acts(), prop::option::weighted(0.8, commit()), rereads, acts(), commit(), acts());
    (rival(), rival(), all, any::<bool>(), pause(to_the_millisecond)).prop_map(
        |(first, second, all, early, pause)| {
            let (mut acts, once, rereads, then, again, at_last) = all;
            acts.extend(once);
            let after = acts.len();
            acts.extend(rereads);
            acts.extend(then);
            acts.push(again);
            acts.extend(at_last);
            Step::Overtaken { first: Request { acts, ..first }, second, after, early, pause }
        },
    )
}

fn round(to_the_millisecond: bool) -> impl Strategy<Value = Round> {
    let other = prop::option::weighted(0.8, prop_oneof![3 => rival(), 1 => request()]);
    let acts = prop::collection::vec(prop_oneof![3 => act(), 1 => commit()], 1..5);
    (other, prop::bool::weighted(0.3), pause(to_the_millisecond), acts)
        .prop_map(|(other, early, pause, acts)| Round { other, early, pause, acts })
}

/// If the store uses the real clock, time advances without odd milliseconds, which would come too close
/// to a deadline.
fn advance(to_the_millisecond: bool) -> BoxedStrategy<Duration> {
    let odd = if to_the_millisecond { -1_i64..=1 } else { 0..=0 };
    let seconds = select(vec![30_u64, 60, 150, 270, 300, 600, 900, 1200, 1800]);
    let advance = (seconds, odd).prop_map(|(seconds, odd)| {
        Duration::from_millis((seconds * 1000).saturating_add_signed(odd))
    });
    advance.boxed()
}

/// How long a request pauses between two acts, if at all.
fn pause(to_the_millisecond: bool) -> BoxedStrategy<Duration> {
    prop_oneof![4 => Just(Duration::ZERO), 1 => advance(to_the_millisecond)].boxed()
}

fn step(to_the_millisecond: bool) -> impl Strategy<Value = Step> {
    let overtaken = (request(), request(), 0_usize..6, any::<bool>(), pause(to_the_millisecond))
        .prop_map(|(first, second, after, early, pause)| {
            let after = after.min(first.acts.len());
            Step::Overtaken { first, second, after, early, pause }
        });
    let outlives = (
        prop_oneof![3 => rival(), 1 => request()],
        prop::collection::vec(round(to_the_millisecond), 1..4),
    )
        .prop_map(|(first, rounds)| Step::Outlives { first, rounds });
    prop_oneof![
        10 => request().prop_map(Step::Visit),
        4 => overtaken,
        3 => contest(to_the_millisecond),
        3 => outlives,
        4 => advance(to_the_millisecond).prop_map(Step::Advance),
        1 => Just(Step::Restart),
    ]
}

/// The public state of a session; everything is empty if there is no session.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sight {
    principal: Option<String>,
    values: Vec<Option<u64>>,
    is_stored: bool,
    /// In milliseconds since the start of the case.
    expires_at: Option<u64>,
}

/// The result of one act, and the state that the handler sees after it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Done {
    result: Result<Option<u64>, ErrorKind>,
    /// The values that the transaction returned.
    decided: Vec<Option<u64>>,
    sight: Sight,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SetCookie {
    Nothing,
    Removal,
    Token { max_age: Option<u64> },
}

/// The progress of a handler.
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

    /// Records an act. The handler may return the act's error.
    fn note(&mut self, request: &Request, done: Done) {
        if let Err(kind) = done.result
            && request.careful
        {
            self.status = status_of(kind);
            self.is_over = true;
        }
        self.acts.push(done);
    }
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    acts: Vec<Done>,
    set_cookie: SetCookie,
    error: Option<ErrorKind>,
}

type Values = BTreeMap<usize, (u64, bool)>;

/// A session in the reference.
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

/// A cookie that was sent: its session, and one of the secrets that the session has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    id: usize,
    secret: usize,
}

/// The reference's store and clock.
#[derive(Debug, Default)]
struct World {
    now: u64,
    records: BTreeMap<usize, Record>,
    /// The number of ids, secrets and versions that have been issued so far.
    given: usize,
    trouble: Option<Trouble>,
    /// Whether the store has a clock of its own. The model assumes that nothing expires by that clock.
    has_own_clock: bool,
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

    /// Returns the error with which a command fails despite all retries, and whether the store applies
    /// the command nevertheless.
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
            // Each attempt uses a new id. A record that an earlier attempt stored belongs to nobody.
            Some((ErrorKind::OutcomeUnknown, _)) => Err(ErrorKind::Unavailable),
            Some((kind, _)) => Err(kind),
            None => {
                self.records.insert(record.id, record.clone());
                Ok(())
            }
        }
    }

    /// On a conflict, returns the record that is stored instead, if there is one.
    fn replace(
        &mut self,
        base: usize,
        record: &Record,
    ) -> Result<Result<(), Option<Record>>, ErrorKind> {
        let current = self.living(record.id).cloned();
        let fits = current.as_ref().is_some_and(|current| current.version == base);
        match self.fails(Verb::Replace) {
            // Reading the record back settles the result, unless a lost request looks the same as a
            // late one.
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

    /// Returns the result, and whether an answer was lost. If so, this request itself may have deleted
    /// a record that is now missing.
    fn delete(&mut self, id: usize, version: usize) -> Result<(Deleted, bool), ErrorKind> {
        let lost = match self.trouble {
            Some(Trouble::Once(Verb::Delete, fault)) => Some(fault),
            _ => None,
        };
        let failure = self.fails(Verb::Delete);
        let stands = match self.has_own_clock {
            true => self.records.get(&id),
            false => self.living(id),
        };
        let mut deleted = match stands.map(|record| record.version == version) {
            Some(true) => Deleted::Deleted,
            Some(false) => Deleted::Conflict(None),
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

/// A session as a request has read it, and the request's authority to act on it.
#[derive(Debug, Clone)]
struct Held {
    record: Record,
    authority: Authority,
}

/// The secret in the request's cookie, or the newest secret that the request itself has created, and
/// the session's principal at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Authority {
    secret: usize,
    sign_ins: usize,
    principal: Option<usize>,
}

/// The state in which a request finds its session when it acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Own,
    /// Another request rotated the session's secret.
    Rotated,
    /// Another request signed in on the session.
    SignedInAnew,
    Gone,
}

impl Held {
    fn new(record: Record) -> Self {
        let Record { secret, sign_ins, principal, .. } = record;
        Self { record, authority: Authority { secret, sign_ins, principal } }
    }

    /// Returns the same session and authority, with a newer record.
    fn at(&self, record: Record) -> Self {
        Self { record, authority: self.authority }
    }

    fn is(&self, other: &Self) -> bool {
        self.record.id == other.record.id
    }

    fn finds(&self, now: Option<&Record>) -> Found {
        let Authority { secret, sign_ins, principal } = self.authority;
        match now {
            None => Found::Gone,
            Some(now) if now.sign_ins != sign_ins || now.principal != principal => {
                Found::SignedInAnew
            }
            Some(now) if now.secret != secret => Found::Rotated,
            Some(_) => Found::Own,
        }
    }

    /// Returns whether the request may end the session in the session's current state.
    fn may_end(&self, why: Why, now: &Record) -> bool {
        match (why, self.finds(Some(now))) {
            (_, Found::Own) => true,
            (Why::SignOut, _) => now.principal == self.authority.principal,
            (Why::SignIn, _) => false,
        }
    }
}

/// Why a request ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    SignOut,
    /// Another session replaces it.
    SignIn,
}

/// What happened to a session that a request was to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Ended,
    Missing,
    /// The session continues. It belongs to this principal.
    Spared(Option<usize>),
}

/// A change to the values, which can be applied again to a newer record.
#[derive(Debug, Clone)]
enum Change {
    Edit(Edit),
    /// A flash message for the next page.
    Said(u64),
    /// A value from the record was handed to the handler.
    Taken {
        key: usize,
        seen: u64,
    },
}

/// An authentication of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Proof {
    who: usize,
    is_step_up: bool,
}

/// What a request's handler has changed, in the reference.
#[derive(Debug, Default, Clone)]
struct Changes {
    values: Vec<Change>,
    ended: bool,
    proof: Option<Proof>,
    rotate: bool,
    choice: Option<usize>,
    /// The lifetime that an earlier commit in the same request chose.
    chose: Option<usize>,
}

/// What a request changes in addition to the session's values.
#[derive(Debug, Clone, Copy)]
struct Wishes {
    signs_in: bool,
    /// Whether a change requires that the request has the session's current secret.
    needs_own: bool,
    needs_secret: bool,
    steps_up: bool,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.values.is_empty()
            && !self.ended
            && self.proof.is_none()
            && !self.rotate
            && self.choice.is_none()
    }

    /// Resets the changes, but keeps the taken values and the messages for the next page.
    fn start_over(&mut self) {
        self.values.retain(|change| matches!(change, Change::Taken { .. } | Change::Said(_)));
    }

    fn are_more_than_messages(&self) -> bool {
        let mut others = self.clone();
        others.unsay();
        !others.is_empty()
    }

    fn unsay(&mut self) {
        self.values.retain(|change| !matches!(change, Change::Said(_)));
    }

    fn signs_in(&self) -> bool {
        self.proof.is_some_and(|proof| !proof.is_step_up)
    }

    /// Returns whether the request chooses a lifetime other than the one that already applies.
    fn ages(&self, record: &Record) -> bool {
        self.choice.is_some() && self.choice != record.chosen
    }

    fn wishes(&self, record: &Record) -> Wishes {
        let signs_in = self.signs_in();
        let steps_up = self.proof.is_some() && !signs_in;
        let needs_own = steps_up || self.ages(record);
        let needs_secret = signs_in || needs_own || self.rotate;
        Wishes { signs_in, needs_own, needs_secret, steps_up }
    }

    /// Drops all changes, but keeps the lifetime that an earlier commit chose.
    fn drop_all(&mut self) {
        *self = Self { chose: self.chose, ..Self::default() };
    }

    /// Drops the changes that need a new cookie. After a sign-in or sign-out, also drops all values,
    /// because no browser can have the cookie of the session that they were meant for.
    fn drop_what_needs_a_cookie(&mut self) {
        if self.proof.is_some() || self.ended {
            *self = Self::default();
        }
        (self.rotate, self.choice) = (false, None);
    }

    fn has_taken(&self, key: usize) -> bool {
        self.values
            .iter()
            .any(|change| matches!(change, Change::Taken { key: taken, .. } if *taken == key))
    }

    /// Checks that the values that the handler took are unchanged in the record.
    fn check_taken(&self, values: &Values) -> Result<(), ErrorKind> {
        let is_there = |change: &Change| match change {
            Change::Edit(_) | Change::Said(_) => true,
            Change::Taken { key, seen } => values.get(key).is_some_and(|(value, _)| value == seen),
        };
        self.values.iter().all(is_there).then_some(()).ok_or(ErrorKind::ValueChanged)
    }

    /// Returns the values after the changes are applied to a record.
    fn on(&self, record: Option<&Record>) -> Values {
        let mut values = record.map(|record| record.values.clone()).unwrap_or_default();
        if self.proof.is_some() && record.is_some_and(|record| record.principal.is_none()) {
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
                Change::Said(message) => {
                    let list = values.get(&MESSAGES).map_or(0, |(list, _)| *list);
                    // The list keeps the last sixteen messages.
                    values.insert(MESSAGES, ((list * 4 + message) % (1 << 32), true));
                }
            }
        }
        values
    }
}

/// Applies an edit and returns the value that was taken.
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
    (0..=MESSAGES).map(|key| values.get(&key).map(|(value, _)| *value)).collect()
}

/// A transaction and what it decided last.
#[derive(Default)]
struct Decide<'a> {
    edits: &'a [Edit],
    fails: bool,
    decided: Vec<Option<u64>>,
    /// Whether the transaction only takes messages. Without a session, it then does nothing and
    /// succeeds.
    shows: bool,
    messages: u64,
}

/// A request in the reference.
#[derive(Debug)]
struct Visit {
    loaded: Option<Held>,
    /// The session that this request can no longer use, and whether that session no longer exists.
    lost: Option<(Held, bool)>,
    /// The other sessions, if the request carried several valid tokens.
    others: Vec<Held>,
    presented: bool,
    /// Whether one of the tokens has a secret that has since been replaced.
    stale: bool,
    changes: Changes,
    passive: bool,
    set_cookie: SetCookie,
    token: Option<Token>,
    failed: Option<ErrorKind>,
    /// Whether the response has been sent.
    outlived: bool,
}

impl Visit {
    fn open(world: &mut World, tokens: &[Token]) -> Result<Self, ErrorKind> {
        let mut found = Vec::new();
        let mut stale = false;
        for token in tokens {
            if let Some(record) = world.load(token.id)? {
                match record.secret == token.secret {
                    true => found.push(Held::new(record)),
                    false => stale = true,
                }
            }
        }
        let is_one = found.len() == 1;
        let loaded = found.pop_if(|_| is_one);
        Ok(Self {
            loaded,
            lost: None,
            others: found,
            presented: !tokens.is_empty(),
            stale,
            changes: Changes::default(),
            passive: false,
            set_cookie: SetCookie::Nothing,
            token: None,
            failed: None,
            outlived: false,
        })
    }

    /// Returns the record of the session that this request continues, if any.
    fn base(&self) -> Option<&Record> {
        let goes_on = |record: &&Record| !self.changes.ended && !self.is_another(record);
        self.loaded.as_ref().map(|held| &held.record).filter(goes_on)
    }

    fn is_another(&self, record: &Record) -> bool {
        let new = self.changes.proof.map(|proof| proof.who);
        new.is_some() && record.principal.is_some() && new != record.principal
    }

    fn principal(&self) -> Option<usize> {
        self.changes.proof.map(|proof| proof.who).or_else(|| self.base()?.principal)
    }

    fn values(&self) -> Values {
        self.changes.on(self.base())
    }

    fn changes_values(&self) -> bool {
        self.values() != self.base().map(|base| base.values.clone()).unwrap_or_default()
    }

    /// Returns whether there are changes other than messages. Losing only messages is not an error.
    fn matters(&self) -> bool {
        let without_messages = |mut values: Values| {
            values.remove(&MESSAGES);
            values
        };
        let base = self.base().map(|base| base.values.clone()).unwrap_or_default();
        without_messages(self.values()) != without_messages(base)
    }

    /// Returns whether the session is lost, so that the response must not set the cookie of a different
    /// one.
    fn is_lost(&self) -> bool {
        self.loaded.is_none()
            && (self.lost.is_some() || (self.stale && self.others.is_empty()))
            && !self.changes.ended
    }

    /// Returns every session that this request may end: the one that it uses or has lost, and those of
    /// its other tokens.
    fn came_along(&self) -> Vec<Held> {
        let lost = self.lost.as_ref().map(|(held, _)| held);
        self.loaded.iter().chain(lost).chain(&self.others).cloned().collect()
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
                        Some((seen, _)) if !self.changes.has_taken(*key) => {
                            Change::Taken { key: *key, seen: *seen }
                        }
                        _ => Change::Edit(Edit::Remove(*key)),
                    });
                }
            }
            Act::Edit(edit) => {
                if matches!(edit, Edit::Clear) {
                    self.changes.unsay();
                }
                self.changes.values.push(Change::Edit(edit.clone()));
            }
            Act::Say(message) => self.changes.values.push(Change::Said(*message)),
            Act::Flashes => {
                let list = self.values().get(&MESSAGES).map(|(list, _)| *list);
                let is_stored = self.base().is_some_and(|base| base.values.contains_key(&MESSAGES));
                result = match list {
                    Some(list) if !is_stored => {
                        self.changes.unsay();
                        Ok(Some(list))
                    }
                    Some(_) => {
                        let mut decide = Decide { shows: true, ..Decide::default() };
                        let committed = self.commit(world, false, Some(&mut decide));
                        committed.map(|()| Some(decide.messages))
                    }
                    None => Ok(Some(0)),
                };
            }
            Act::SignIn(who) => {
                if self.principal().is_some_and(|signed_in| signed_in != *who) {
                    self.changes.start_over();
                }
                self.changes.proof = Some(Proof { who: *who, is_step_up: false });
            }
            Act::SignOut => {
                self.changes.start_over();
                let values = std::mem::take(&mut self.changes.values);
                self.changes = Changes { values, ended: true, ..Changes::default() };
            }
            Act::Rotate => self.changes.rotate = true,
            Act::SetLifetime(choice) => self.changes.choice = Some(*choice),
            Act::StepUp => match self.principal() {
                Some(who) => {
                    let proof = Proof { who, is_step_up: true };
                    self.changes.proof.get_or_insert(proof);
                }
                None if self.lost.is_some() => result = Err(ErrorKind::Gone),
                None => result = Err(ErrorKind::NotSignedIn),
            },
            Act::Passive => self.passive = true,
            Act::Save => result = self.commit(world, false, None).map(|()| None),
            Act::Reload => result = self.reload(world).map(|()| None),
            Act::Transact { edits, fails } => {
                let mut decide = Decide { edits, fails: *fails, ..Decide::default() };
                result = self.commit(world, false, Some(&mut decide)).map(|()| None);
                if result.is_ok() {
                    decided = decide.decided;
                }
            }
        }
        Done { result, decided, sight: self.sight() }
    }

    fn reload(&mut self, world: &mut World) -> Result<(), ErrorKind> {
        if self.lost.is_some() {
            return Err(ErrorKind::Gone);
        }
        let Some(held) = self.loaded.clone() else { return Ok(()) };
        let newer = world.load(held.record.id)?;
        if let Some(newer) = &newer
            && held.finds(Some(newer)) == Found::Own
        {
            self.loaded = Some(held.at(newer.clone()));
            return Ok(());
        }
        // A request does not fail because it loses messages only.
        if self.changes.are_more_than_messages() || (self.outlived && !self.changes.is_empty()) {
            self.fail(ErrorKind::Gone);
        }
        self.lose(held, newer.is_none());
        Err(ErrorKind::Gone)
    }

    /// Drops all changes after a final error. If the response has not been sent, it fails too.
    fn fail(&mut self, kind: ErrorKind) {
        self.changes.drop_all();
        if !self.outlived {
            self.failed.get_or_insert(kind);
        }
    }

    /// Stops using a session, so that the response sets no cookie that could overwrite another
    /// session's.
    fn lose(&mut self, held: Held, is_gone: bool) {
        (self.set_cookie, self.token) = (SetCookie::Nothing, None);
        (self.loaded, self.lost) = (None, Some((held, is_gone)));
    }

    /// Commits the changes. If the request has failed, only a sign-out is committed.
    fn commit(
        &mut self,
        world: &mut World,
        failed: bool,
        decide: Option<&mut Decide<'_>>,
    ) -> Result<(), ErrorKind> {
        let earlier = self.failed;
        let failed = failed || earlier.is_some();
        let result = self.carry_out(world, failed, decide);
        match result {
            // Only the sign-out was committed.
            Ok(()) if failed => self.changes.ended = false,
            Ok(()) => {
                let chose = self.changes.choice.or(self.changes.chose);
                self.changes = Changes { chose, ..Changes::default() };
            }
            Err(ErrorKind::HeadSent) => self.changes.drop_what_needs_a_cookie(),
            Err(kind) => {
                if matches!(kind, ErrorKind::OutcomeUnknown | ErrorKind::Gone) {
                    self.fail(kind);
                }
                if self.failed != earlier {
                    self.changes.drop_all();
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
        let Changes { ended, .. } = self.changes;
        if failed {
            return if ended { self.sign_out(world) } else { Ok(()) };
        }
        let signs_in = self.changes.signs_in();
        // What a transaction changes is not known before it runs.
        let decides = |decide: &&mut Decide<'_>| !decide.shows || self.loaded.is_some();
        let changed = decide.as_ref().is_some_and(decides)
            || if self.is_lost() { self.matters() } else { self.changes_values() };
        if self.outlived && ended && (signs_in || changed) {
            // The session is ended; what the handle did after that is dropped.
            self.sign_out(world)?;
            return Err(ErrorKind::HeadSent);
        }
        if ended && (self.stale || !self.came_along().is_empty()) {
            return match (signs_in, changed) {
                (true, _) => self.begin_before_end(world, decide, Why::SignOut),
                (false, true) => self.begin_after_end(world, decide),
                (false, false) => self.sign_out(world),
            };
        }
        // After the response, the data that a handle has read is too old to compare with.
        let asks = !self.changes.values.is_empty() || self.changes.choice.is_some();
        let decides = changed || (self.outlived && asks);
        if signs_in && !self.others.is_empty() {
            return self.begin_before_end(world, decide, Why::SignIn);
        }
        if let Some((held, is_gone)) = self.lost.clone() {
            // A session that has ended needs no new lifetime.
            let asks = self.outlived && !self.changes.values.is_empty();
            let refused = changed || asks || (!is_gone && self.changes.ages(&held.record));
            return match refused {
                _ if signs_in => self.begin(world, decide),
                true => self.gone(held, is_gone, true),
                false => Ok(()),
            };
        }
        let Some(held) = self.loaded.clone() else {
            let asks = self.outlived && !self.changes.values.is_empty();
            if (changed || asks) && !signs_in && self.stale && self.others.is_empty() {
                // The browser may hold the newer token, which the token of a new session would
                // overwrite.
                return Err(ErrorKind::Gone);
            }
            if (signs_in || changed) && self.create(world, decide)? {
                return Ok(());
            }
            return if ended { self.sign_out(world) } else { Ok(()) };
        };
        let Wishes { needs_own, needs_secret, .. } = self.changes.wishes(&held.record);
        match held.finds(Some(&held.record)) {
            Found::Own if self.is_another(&held.record) => {
                self.begin_before_end(world, decide, Why::SignIn)
            }
            Found::Own if needs_secret || decides => self.save(world, held, decide),
            Found::Own => {
                self.refresh(world, held);
                Ok(())
            }
            _ if signs_in => self.begin(world, decide),
            _ if needs_own => self.gone(held, false, true),
            _ if decides => self.save(world, held, decide),
            _ => Ok(()),
        }
    }

    /// Extends the session if that is due. The request succeeds even if this fails.
    fn refresh(&mut self, world: &mut World, held: Held) {
        let is_due = !self.passive && held.record.is_refresh_due(world.now);
        if is_due && world.now < held.record.deadline() {
            let mut refreshed = held.record.clone();
            self.write(world, &mut refreshed, true);
            if let Ok(Ok(())) = world.replace(held.record.version, &refreshed) {
                self.loaded = Some(held.at(refreshed));
            }
        }
    }

    /// Ends all sessions that the request carried.
    fn sign_out(&mut self, world: &mut World) -> Result<(), ErrorKind> {
        let ending = self.came_along();
        let Some(first) = ending.first() else {
            if self.presented && !self.stale {
                self.remove_cookie();
            }
            return Ok(());
        };
        match self.end_all(world, &ending)? {
            Fate::Ended => self.remove_cookie(),
            ended => self.lose(first.clone(), ended == Fate::Missing),
        }
        Ok(())
    }

    fn remove_cookie(&mut self) {
        (self.set_cookie, self.token) = (SetCookie::Removal, None);
        (self.loaded, self.lost) = (None, None);
    }

    fn send_cookie(&mut self, world: &World, record: &Record) {
        let age = record.absolute_deadline.saturating_sub(world.now).div_ceil(1000);
        let persists = record.lifetime().persistence() == Persistence::Persistent;
        self.set_cookie = SetCookie::Token { max_age: persists.then_some(age) };
        self.token = Some(Token { id: record.id, secret: record.secret });
    }

    /// A cookie can be set only before the response is sent.
    fn check_head(&self) -> Result<(), ErrorKind> {
        if self.outlived { Err(ErrorKind::HeadSent) } else { Ok(()) }
    }

    /// Makes the changes that every write makes to a record, apart from its values.
    fn write(&self, world: &mut World, record: &mut Record, is_own: bool) {
        let now = world.now;
        record.version = world.fresh();
        let Changes { proof, choice, chose, .. } = self.changes;
        let ages = self.changes.ages(record);
        record.chosen = match proof {
            // A sign-in starts from the configured lifetime, unless the same request chooses one.
            Some(Proof { is_step_up: false, .. }) => choice.or(chose),
            _ => choice.or(record.chosen),
        };
        let lifetime = record.lifetime();
        let (idle, absolute) = (millis(lifetime.idle()), millis(lifetime.absolute()));
        if let Some(proof) = proof {
            record.principal = Some(proof.who);
            record.sign_ins += 1;
            (record.began, record.last_seen) = (now, now);
            record.idle_deadline = now + idle;
            record.absolute_deadline = now + absolute;
        } else if ages {
            record.last_seen = now;
            record.idle_deadline = now + idle;
            record.absolute_deadline = record.began + absolute;
        } else if !self.passive && is_own {
            // A request with a replaced secret does not count as a use of the session.
            record.last_seen = now;
            record.idle_deadline = record.idle_deadline.max(now + idle);
        }
    }

    fn decide(values: &mut Values, decide: Option<&mut Decide<'_>>) -> Result<(), ErrorKind> {
        if let Some(decide) = decide {
            if decide.shows {
                decide.messages = values.remove(&MESSAGES).map_or(0, |(list, _)| list);
                return Ok(());
            }
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

    /// Returns the first values of a new session, which continues a given session or starts empty.
    fn first_values(
        &self,
        from: Option<&Record>,
        decide: Option<&mut Decide<'_>>,
    ) -> Result<Values, ErrorKind> {
        self.check_head()?;
        let mut values = self.changes.on(from);
        Self::decide(&mut values, decide)?;
        Ok(values)
    }

    /// Stores a new session if there is anything to store.
    fn stored(&self, world: &mut World, values: Values) -> Result<Option<Record>, ErrorKind> {
        if !self.changes.signs_in() && values.is_empty() {
            return Ok(None);
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
        self.write(world, &mut record, true);
        world.create(&record)?;
        Ok(Some(record))
    }

    /// Continues with a new session.
    fn go_on_with(&mut self, world: &World, record: Record) {
        self.send_cookie(world, &record);
        (self.loaded, self.lost) = (Some(Held::new(record)), None);
    }

    /// Creates a session from what this request wrote. Returns `false` if there is nothing to store.
    fn create(
        &mut self,
        world: &mut World,
        decide: Option<&mut Decide<'_>>,
    ) -> Result<bool, ErrorKind> {
        let values = self.first_values(None, decide)?;
        let created = self.stored(world, values)?;
        let is_stored = created.is_some();
        if let Some(record) = created {
            self.go_on_with(world, record);
        }
        Ok(is_stored)
    }

    /// Creates a separate session for a sign-in that cannot use the existing session. Takes nothing
    /// from that session and does not end it.
    fn begin(
        &mut self,
        world: &mut World,
        decide: Option<&mut Decide<'_>>,
    ) -> Result<(), ErrorKind> {
        self.check_head()?;
        self.changes.check_taken(&Values::new())?;
        self.create(world, decide).map(|_| ())
    }

    /// Ends the sessions that the request carried, then creates a session for the values that were
    /// written after the sign-out.
    fn begin_after_end(
        &mut self,
        world: &mut World,
        decide: Option<&mut Decide<'_>>,
    ) -> Result<(), ErrorKind> {
        let decides = decide.as_ref().is_some_and(|decide| !decide.shows);
        // The transaction runs before anything ends.
        let values = self.first_values(None, decide)?;
        let ending = self.came_along();
        let ended = self.end_all(world, &ending)?;
        if ended != Fate::Ended {
            let fails = decides || values.keys().any(|key| *key != MESSAGES);
            return match ending.first() {
                Some(first) => self.gone(first.clone(), ended == Fate::Missing, fails),
                None if fails => Err(ErrorKind::Gone),
                None => Ok(()),
            };
        }
        self.remove_cookie();
        // The old session no longer exists, even if the new one cannot be created.
        let matters = decides || values.keys().any(|key| *key != MESSAGES);
        match self.stored(world, values) {
            Ok(Some(record)) => self.go_on_with(world, record),
            Ok(None) => {}
            // A message that cannot be stored is dropped without an error.
            Err(_) if !matters => {}
            Err(kind) => {
                self.failed = Some(kind);
                return Err(kind);
            }
        }
        Ok(())
    }

    /// Creates a session for a sign-in, then ends the sessions that the request carried. Withdraws the
    /// sign-in if the request may not end one of them, unless that is the only one and belongs to a
    /// different principal.
    fn begin_before_end(
        &mut self,
        world: &mut World,
        decide: Option<&mut Decide<'_>>,
        why: Why,
    ) -> Result<(), ErrorKind> {
        let who = self.changes.proof.map(|proof| proof.who);
        let several = !self.others.is_empty();
        let mut ending = self.came_along();
        // If this request had several tokens and created an anonymous session, that session continues
        // in the new one.
        let mut made = None;
        if why == Why::SignIn {
            // This request may not end a session that it has lost.
            ending.retain(|held| self.lost.as_ref().is_none_or(|(lost, _)| !lost.is(held)));
            let base = self.loaded.as_ref().map(|held| &held.record);
            made = base.filter(|record| record.principal.is_none());
        }
        let values = self.first_values(made, decide)?;
        let created = self.stored(world, values)?.unwrap();
        for held in ending {
            let ended = match self.end(world, &held, why) {
                // The next request would carry that session's token too, or the principal would have a
                // session that is not counted.
                Ok(Fate::Spared(_)) if several || held.record.principal == who => {
                    Err(ErrorKind::Contended)
                }
                ended => ended,
            };
            if let Err(kind) = ended {
                let _ = world.delete(created.id, created.version);
                return Err(kind);
            }
        }
        self.others.clear();
        self.go_on_with(world, created);
        Ok(())
    }

    /// Records that the session can no longer be used. The request does not restore the session and
    /// sends no cookie.
    fn gone(&mut self, held: Held, is_gone: bool, fails: bool) -> Result<(), ErrorKind> {
        let fails = fails || self.matters();
        self.lose(held, is_gone);
        if fails { Err(ErrorKind::Gone) } else { Ok(()) }
    }

    fn save(
        &mut self,
        world: &mut World,
        held: Held,
        mut decide: Option<&mut Decide<'_>>,
    ) -> Result<(), ErrorKind> {
        if self.changes.wishes(&held.record).needs_secret {
            self.check_head()?;
        }
        // Data that was read before the response is too old to decide on. A session that has expired by
        // now may have been used by other requests since it was read.
        let mut is_fresh = self.outlived || world.now >= held.record.deadline();
        let mut now = match is_fresh {
            true => world.load(held.record.id)?,
            false => Some(held.record.clone()),
        };
        let mut last = held.record.clone();
        loop {
            let living = now.filter(|record| world.now < record.deadline());
            last = living.clone().unwrap_or(last);
            let wishes = self.changes.wishes(&last);
            let fails = self.outlived || decide.as_ref().is_some_and(|decide| !decide.shows);
            if let Some(decide) = &mut decide {
                // The transaction runs again, so its earlier decision is void.
                decide.messages = 0;
            }
            let needs_secret = match held.finds(living.as_ref()) {
                Found::Own => wishes.needs_secret,
                _ if wishes.signs_in => return self.begin(world, decide),
                Found::Rotated if !wishes.needs_own && !self.outlived => false,
                Found::Gone => return self.gone(held, true, fails || wishes.steps_up),
                _ => return self.gone(held, false, fails || wishes.needs_own),
            };
            self.changes.check_taken(&last.values)?;
            let mut values = self.changes.on(Some(&last));
            Self::decide(&mut values, decide.as_deref_mut())?;
            if needs_secret || values != last.values {
                let mut record = Record { values, ..last.clone() };
                if needs_secret {
                    record.secret = world.fresh();
                }
                self.write(world, &mut record, held.finds(Some(&last)) == Found::Own);
                match world.replace(last.version, &record)? {
                    Ok(()) if needs_secret => {
                        self.go_on_with(world, record);
                        return Ok(());
                    }
                    Ok(()) => {
                        self.loaded = Some(held.at(record));
                        return Ok(());
                    }
                    Err(newer) => now = newer,
                }
            } else {
                // A decision that writes nothing must be based on the newest record too.
                now = match decide.is_some() && !is_fresh {
                    true => world.load(last.id)?,
                    false => Some(last.clone()),
                };
                if now.as_ref().is_some_and(|now| now.version == last.version) {
                    self.loaded = Some(held.at(last));
                    return Ok(());
                }
            }
            is_fresh = true;
        }
    }

    fn end_all(&mut self, world: &mut World, ending: &[Held]) -> Result<Fate, ErrorKind> {
        let mut all = Vec::new();
        for held in ending {
            all.push(self.end(world, held, Why::SignOut)?);
        }
        self.others.clear();
        let spared = all.iter().find(|ended| matches!(ended, Fate::Spared(_)));
        let ended = all.iter().find(|ended| **ended == Fate::Ended);
        Ok(*spared.or(ended).unwrap_or(&Fate::Missing))
    }

    /// Ends a session, if the request may do so.
    fn end(&self, world: &mut World, held: &Held, why: Why) -> Result<Fate, ErrorKind> {
        let mut now = held.record.clone();
        loop {
            if !held.may_end(why, &now) {
                // If the session continues, another request could take a value that this request has
                // taken.
                self.check_taken_from(held, &Values::new())?;
                return Ok(Fate::Spared(now.principal));
            }
            self.check_taken_from(held, &now.values)?;
            let in_doubt = match world.delete(now.id, now.version)? {
                (Deleted::Deleted, _) if world.now < now.deadline() => return Ok(Fate::Ended),
                // An expired session counts as missing, even if the store still holds it.
                (Deleted::Deleted, _) => Some(false),
                (Deleted::Missing, in_doubt) => Some(in_doubt),
                (Deleted::Conflict(_), _) => None,
            };
            let newer = if in_doubt.is_some() { None } else { world.load(now.id)? };
            match newer {
                Some(newer) => now = newer,
                None => return self.already_ended(held, in_doubt.unwrap_or(false)),
            }
        }
    }

    /// Checks the values that were taken. They were taken from the session that was read, never from
    /// the others.
    fn check_taken_from(&self, held: &Held, values: &Values) -> Result<(), ErrorKind> {
        match self.loaded.as_ref().is_some_and(|loaded| loaded.is(held)) {
            true => self.changes.check_taken(values),
            false => Ok(()),
        }
    }

    /// Returns the outcome of a deletion whose session no longer exists. This is an error only if the
    /// request took one of the session's values, because another request may have taken the value too.
    /// If it is in doubt who ended the session, the outcome is unknown.
    fn already_ended(&self, held: &Held, in_doubt: bool) -> Result<Fate, ErrorKind> {
        match self.check_taken_from(held, &Values::new()) {
            Err(_) if in_doubt => Err(ErrorKind::OutcomeUnknown),
            checked => checked.map(|()| if in_doubt { Fate::Ended } else { Fate::Missing }),
        }
    }

    fn perform(&mut self, world: &mut World, request: &Request, acts: &[Act], at: &mut Progress) {
        for act in acts {
            if !at.is_over {
                at.note(request, self.act(world, act));
            }
        }
    }

    /// Runs after the handler. Drops the changes that the response does not confirm.
    fn finish(&mut self, world: &mut World, at: Progress) -> (Outcome, Option<Token>) {
        let failed = at.status >= 500 || at.status == 408;
        let error = self.commit(world, failed, None).err().filter(|_| !failed);
        if failed || error.is_some() {
            self.changes = Changes::default();
        }
        self.outlived = true;
        // The response has reported the error.
        self.failed = None;
        let set_cookie = std::mem::replace(&mut self.set_cookie, SetCookie::Nothing);
        (Outcome { acts: at.acts, set_cookie, error }, self.token.take())
    }
}

fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Gone | ErrorKind::ValueChanged => 409,
        ErrorKind::NotSignedIn => 401,
        ErrorKind::TooLarge | ErrorKind::HeadSent => 500,
        _ => 503,
    }
}

fn key(index: usize) -> RuntimeKey<u64> {
    Key::runtime(NAMES[index])
}

/// Converts the list of messages to a number.
fn as_number(list: Vec<(String, String)>) -> u64 {
    list.iter().fold(0, |number, (level, text)| {
        assert_eq!(level, "info");
        number * 4 + text.parse::<u64>().unwrap()
    })
}

fn marked(index: usize, survives: bool) -> RuntimeKey<u64> {
    if survives { key(index).survives_sign_in() } else { key(index) }
}

/// What the test checks: the crate over a store.
struct Real {
    stand: Stand,
    began: OffsetDateTime,
}

fn configured(builder: Builder) -> Builder {
    // The reference predicts the result of each command. It does not model the commands for the
    // directory.
    let builder = builder.directory(DirectoryMode::Off);
    // The long timeout allows for a busy machine, whose speed is not the subject of this test.
    builder.lifetime(CONFIGURED).timeout(Duration::from_secs(30))
}

impl Real {
    fn new(stand: Stand) -> Self {
        Self { began: stand.clock.now(), stand }
    }

    fn sight(&self, session: &Session) -> Sight {
        let since = |time: OffsetDateTime| (time - self.began).whole_milliseconds() as u64;
        Sight {
            principal: session.principal().map(|who| who.to_string()),
            values: (0..NAMES.len())
                .map(|index| session.get(&key(index)).unwrap())
                .chain([session.get(LIST).unwrap().map(as_number)])
                .collect(),
            is_stored: session.id().is_some(),
            expires_at: session.expires_at().map(since),
        }
    }

    async fn act(&self, session: &Session, act: &Act) -> (Result<Option<u64>>, Vec<Option<u64>>) {
        let mut decided = Vec::new();
        let result = match act.clone() {
            Act::Edit(Edit::Insert { key, value, survives }) => {
                session.insert(marked(key, survives), &value).map(|()| None)
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
            Act::StepUp => session.step_up().map(|()| None),
            Act::Passive => {
                session.mark_passive();
                Ok(None)
            }
            Act::Save => session.save().await.map(|()| None),
            Act::Reload => session.reload().await.map(|()| None),
            Act::Say(message) => session.flash(Level::Info, message.to_string()).map(|()| None),
            Act::Flashes => session.flashes().await.map(|flashes| {
                let pairs = flashes.into_iter().map(|flash| (flash.level.to_string(), flash.text));
                Some(as_number(pairs.collect()))
            }),
            Act::Transact { edits, fails } => {
                let transaction = session.transact(move |values| {
                    for edit in &edits {
                        match *edit {
                            Edit::Insert { key, value, survives } => {
                                values.insert(marked(key, survives), &value)?;
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
                    let list = values.get(LIST)?.map(as_number);
                    let named = (0..NAMES.len()).map(|index| values.get(&key(index)));
                    named.chain([Ok(list)]).collect()
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
        Exchange::begin(&self.stand.sessions, (!cookies.is_empty()).then_some(header), None)
    }

    fn make(&self, trouble: Trouble) {
        match trouble {
            Trouble::None => {}
            Trouble::Once(verb, fault) => self.stand.store.inject(verb, fault),
            Trouble::Always(verb, fault) => self.stand.store.fail_always(verb, fault),
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
                at.note(request, Done { result, decided, sight });
            }
        }
    }
}

/// Ends the exchange after the handler. Also returns the cookie that was sent.
async fn concluded(exchange: Exchange, at: Progress) -> (Outcome, Option<String>) {
    let (header, error) = told(finish(exchange, at.status).await);
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

/// Returns the `Set-Cookie` header, and the error if it replaced the response.
fn told(reply: Reply) -> (Option<String>, Option<ErrorKind>) {
    (reply.set_cookie, reply.error.map(|error| error.kind()))
}

/// A request that has read its session, both in the crate and in the reference.
struct Open {
    exchange: Exchange,
    session: Session,
    at: Progress,
    visit: Visit,
    expected: Progress,
}

/// A handle whose response has been sent, both in the crate and in the reference.
struct Kept {
    session: Session,
    visit: Visit,
}

/// Returns the request's fault, unless it affects loads: the stores differ in how often they load
/// during a conflict.
fn late_trouble(request: &Request) -> Trouble {
    match request.trouble {
        Trouble::Once(Verb::Load, _) | Trouble::Always(Verb::Load, _) => Trouble::None,
        trouble => trouble,
    }
}

/// The crate, the reference and the browsers.
struct Case {
    real: Real,
    world: World,
    /// Every cookie that was ever sent, as the crate and as the reference identifies it.
    issued: Vec<(String, Token)>,
    jars: [Option<usize>; BROWSERS],
}

impl Case {
    /// Returns the cookies that a request carries.
    fn presented(&self, request: &Request) -> Vec<usize> {
        let any = |index: &usize| index.checked_rem(self.issued.len());
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
        prop_assert_eq!(&actual.0, &expected.0, "the reference is on the right");
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

    /// Reads the session. Returns `None` if that fails alike in the crate and in the reference.
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
                prop_assert_eq!(told(finish(exchange, status).await), (None, None));
                Ok(None)
            }
        }
    }

    fn make(&mut self, trouble: Trouble) {
        self.real.make(trouble);
        self.world.trouble = Some(trouble);
    }

    fn heal(&mut self) {
        self.real.stand.store.heal();
        self.world.trouble = None;
    }

    async fn perform(&mut self, open: &mut Open, request: &Request, acts: &[Act]) {
        self.real.perform(&open.session, request, acts, &mut open.at).await;
        open.visit.perform(&mut self.world, request, acts, &mut open.expected);
    }

    /// Runs the rest of a request, from this act on. Its handle outlives it.
    async fn go_on(
        &mut self,
        mut open: Open,
        request: &Request,
        from: usize,
    ) -> Result<Kept, TestCaseError> {
        self.perform(&mut open, request, &request.acts[from..]).await;
        let Open { exchange, session, at, mut visit, expected } = open;
        let actual = concluded(exchange, at).await;
        let expected = visit.finish(&mut self.world, expected);
        self.heal();
        self.answered(request, expected, actual)?;
        Ok(Kept { session, visit })
    }

    async fn visit(&mut self, request: &Request) -> Result<Option<Kept>, TestCaseError> {
        self.make(request.trouble);
        match self.open(request).await? {
            Some(open) => Ok(Some(self.go_on(open, request, 0).await?)),
            None => {
                self.heal();
                Ok(None)
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
        let mut overtaken = self.open(first).await?.unwrap();
        let overtaker = if early { self.open(second).await? } else { None };
        self.perform(&mut overtaken, first, &first.acts[..after]).await;
        self.overtake(second, overtaker).await?;
        self.advance(pause);
        self.make(late_trouble(first));
        self.go_on(overtaken, first, after).await?;
        Ok(())
    }

    /// Runs a whole request, or the rest of one that has already read its session.
    async fn overtake(
        &mut self,
        request: &Request,
        open: Option<Open>,
    ) -> Result<(), TestCaseError> {
        match open {
            Some(open) => {
                self.make(late_trouble(request));
                self.go_on(open, request, 0).await?;
            }
            None => {
                self.visit(request).await?;
            }
        }
        Ok(())
    }

    async fn outlives(&mut self, first: &Request, rounds: &[Round]) -> Result<(), TestCaseError> {
        let mut early = Vec::new();
        for round in rounds {
            early.push(match &round.other {
                Some(other) if round.early => self.open(other).await?,
                _ => None,
            });
        }
        let Some(mut kept) = self.visit(first).await? else { return Ok(()) };
        for (round, open) in rounds.iter().zip(early) {
            if let Some(other) = &round.other {
                self.overtake(other, open).await?;
            }
            self.advance(round.pause);
            for act in &round.acts {
                let (result, decided) = self.real.act(&kept.session, act).await;
                let result = result.map_err(|error| error.kind());
                let actual = Done { result, decided, sight: self.real.sight(&kept.session) };
                let expected = kept.visit.act(&mut self.world, act);
                prop_assert_eq!(actual, expected, "{:?}; the reference is on the right", act);
            }
        }
        Ok(())
    }

    fn advance(&mut self, by: Duration) {
        self.real.stand.clock.advance(by);
        self.world.now += millis(by);
    }

    /// Checks each cookie that was ever sent against the reference. At most one cookie per session is
    /// valid.
    async fn compare(&self) -> Result<(), TestCaseError> {
        for (cookie, token) in &self.issued {
            let exchange = self.real.begin(&[cookie]);
            let session = exchange.handle().session().await.unwrap();
            session.mark_passive();
            let seen = self.real.sight(&session);
            prop_assert_eq!(told(finish(exchange, 200).await), (None, None));
            let visit = Visit::open(&mut World::default(), &[]).unwrap();
            let loaded = self.world.sees(*token).cloned().map(Held::new);
            let expected = Visit { loaded, ..visit }.sight();
            prop_assert_eq!(seen, expected, "{:?}; the reference is on the right", token);
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
                Step::Visit(request) => {
                    self.visit(request).await?;
                }
                Step::Overtaken { first, second, after, early, pause } => {
                    self.overtaken(first, second, *after, *early, *pause).await?;
                }
                Step::Outlives { first, rounds } => self.outlives(first, rounds).await?,
                Step::Advance(by) => self.advance(*by),
                Step::Restart => {
                    self.real.stand.sessions = self.real.stand.process(configured);
                }
            }
            self.compare().await?;
        }
        Ok(())
    }
}

fn check(
    cases: u32,
    has_own_clock: bool,
    runtime: &tokio::runtime::Runtime,
    stand: impl Fn() -> Stand,
) {
    let cases = cases * u32::from(support::length());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let steps = prop::collection::vec(step(!has_own_clock), 1..16);
    let outcome = TestRunner::new(config).run(&steps, |steps| {
        let real = Real::new(stand());
        let world = World { has_own_clock, ..World::default() };
        let mut case = Case { real, world, issued: Vec::new(), jars: [None; BROWSERS] };
        runtime.block_on(case.run(&steps))
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn on_server(on: &Backend) {
    let (store, runtime) = (on.store(), runtime());
    check(1_000, true, &runtime, || Stand::over(store.clone(), configured));
}

#[test]
fn memory_store_matches_reference_model() {
    check(6_000, false, &runtime(), || Backend::memory().stand_with(configured));
}

#[test]
fn redis_store_matches_reference_model() {
    on_server(&Backend::redis());
}

#[test]
fn memcached_store_matches_reference_model() {
    on_server(&Backend::memcached());
}

/// A request without faults.
fn plain(acts: Vec<Act>) -> Request {
    Request {
        browser: 0,
        presents: Presents::Own,
        acts,
        careful: false,
        status: 200,
        trouble: Trouble::None,
        is_lost: false,
    }
}

fn insert(key: usize) -> Act {
    Act::Edit(Edit::Insert { key, value: 1, survives: false })
}

fn take(key: usize) -> Act {
    Act::Edit(Edit::Take(key))
}

fn overtaken(first: Request, second: Request, after: usize) -> Step {
    Step::Overtaken { first, second, after, early: false, pause: Duration::ZERO }
}

/// A handle that is used only after its response.
fn outlives(rounds: Vec<Round>) -> Step {
    Step::Outlives { first: plain(Vec::new()), rounds }
}

fn round_of(other: Option<Vec<Act>>, pause: Duration, acts: Vec<Act>) -> Round {
    Round { other: other.map(plain), early: false, pause, acts }
}

/// Runs a case that rarely arises by chance, both over a store with the same clock and over a store
/// that still holds expired records.
async fn as_the_reference_does(steps: &[Step]) {
    for has_own_clock in [false, true] {
        let on = Backend::memory();
        let real = Real::new(match has_own_clock {
            false => on.stand_with(configured),
            true => Stand::over(on.store(), configured),
        });
        let world = World { has_own_clock, ..World::default() };
        let mut case = Case { real, world, issued: Vec::new(), jars: [None; BROWSERS] };
        case.run(steps).await.unwrap_or_else(|failure| panic!("{has_own_clock}: {failure}"));
    }
}

#[tokio::test]
async fn value_taken_by_another_request_is_not_handed_out_after_reload() {
    for leaves in [Act::SignOut, Act::SignIn(1)] {
        as_the_reference_does(&[
            Step::Visit(plain(vec![Act::SignIn(0), insert(0)])),
            overtaken(plain(vec![take(0), Act::Reload, leaves]), plain(vec![take(0)]), 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn take_before_leaving_session_fails_if_session_continues() {
    let survives = Act::Edit(Edit::Insert { key: 0, value: 1, survives: true });
    for (signed_in, leaves, meanwhile) in [
        (vec![Act::SignIn(0)], vec![Act::SignIn(1)], Act::Rotate),
        (Vec::new(), vec![Act::SignOut], Act::SignIn(0)),
        (Vec::new(), vec![Act::SignOut, Act::SignIn(1)], Act::SignIn(0)),
    ] {
        as_the_reference_does(&[
            Step::Visit(plain([signed_in, vec![survives.clone()]].concat())),
            overtaken(plain([vec![take(0)], leaves].concat()), plain(vec![meanwhile]), 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn expired_session_counts_as_missing_and_not_as_taken_over() {
    let over = |acts, meanwhile| Step::Overtaken {
        first: plain(acts),
        second: plain(vec![meanwhile]),
        after: 1,
        early: false,
        pause: minutes(20),
    };
    as_the_reference_does(&[
        Step::Visit(plain(vec![insert(0)])),
        over(vec![Act::SignOut, Act::Save, Act::SetLifetime(1)], Act::SignIn(0)),
    ])
    .await;
    let first = plain(vec![Act::SignIn(0)]);
    as_the_reference_does(&[
        Step::Visit(plain(vec![insert(0)])),
        Step::Visit(Request { browser: 1, ..plain(vec![insert(0)]) }),
        Step::Overtaken {
            first: Request { presents: Presents::Both(1), ..first },
            second: Request { browser: 1, ..plain(vec![Act::Rotate]) },
            after: 0,
            early: false,
            pause: minutes(20),
        },
    ])
    .await;
}

#[tokio::test]
async fn take_applies_only_to_loaded_session_of_several_presented() {
    let first = plain(vec![insert(0), Act::Save, take(0), Act::SignOut]);
    as_the_reference_does(&[
        Step::Visit(plain(vec![insert(1)])),
        Step::Visit(Request { browser: 1, ..plain(vec![insert(2)]) }),
        overtaken(Request { presents: Presents::Both(1), ..first }, plain(vec![Act::SignOut]), 2),
    ])
    .await;
}

#[tokio::test]
async fn sign_in_after_early_save_ends_every_presented_session() {
    let acts = vec![insert(0), Act::Save, Act::SignIn(0)];
    as_the_reference_does(&[
        Step::Visit(plain(vec![Act::SignIn(0)])),
        Step::Visit(Request { browser: 1, ..plain(vec![Act::SignIn(0)]) }),
        Step::Visit(Request { presents: Presents::Both(1), ..plain(acts) }),
    ])
    .await;
}

#[tokio::test]
async fn sign_in_is_rolled_back_if_presented_session_continues() {
    for (before, meanwhile) in [
        (Act::SignIn(0), Act::Rotate),
        (Act::SignIn(0), Act::StepUp),
        (insert(0), Act::SignIn(0)),
        (insert(0), Act::SignIn(1)),
        (insert(0), Act::Rotate),
    ] {
        let second = |acts| Request { browser: 1, ..plain(acts) };
        as_the_reference_does(&[
            Step::Visit(plain(vec![insert(1)])),
            Step::Visit(second(vec![before])),
            overtaken(
                Request { presents: Presents::Both(1), ..plain(vec![Act::SignIn(0)]) },
                second(vec![meanwhile]),
                0,
            ),
        ])
        .await;
    }
}

#[tokio::test]
async fn change_without_effect_succeeds_after_response() {
    let clears = vec![Act::Edit(Edit::Clear), Act::Save];
    let leaves = vec![Act::SignOut, Act::Edit(Edit::Remove(0)), Act::Save];
    as_the_reference_does(&[
        outlives(vec![round_of(None, Duration::ZERO, clears)]),
        Step::Visit(plain(vec![insert(0)])),
        outlives(vec![round_of(None, Duration::ZERO, leaves)]),
    ])
    .await;
}

#[tokio::test]
async fn refresh_by_another_request_keeps_session_alive_for_older_view() {
    for acts in [
        vec![insert(1), Act::Save],
        vec![Act::Transact { edits: Vec::new(), fails: false }],
        vec![Act::SignOut, Act::Save],
    ] {
        as_the_reference_does(&[
            Step::Visit(plain(vec![insert(0)])),
            outlives(vec![
                round_of(None, minutes(5), Vec::new()),
                round_of(Some(Vec::new()), minutes(5), acts.clone()),
            ]),
        ])
        .await;
        as_the_reference_does(&[
            Step::Visit(plain(vec![insert(0)])),
            Step::Advance(minutes(8)),
            Step::Overtaken {
                first: plain(acts),
                second: plain(Vec::new()),
                after: 0,
                early: false,
                pause: minutes(5),
            },
        ])
        .await;
    }
}

#[tokio::test]
async fn long_lived_handle_never_decides_on_values_read_before_response() {
    let refuses = Act::Transact { edits: Vec::new(), fails: true };
    for meanwhile in [Act::Rotate, Act::SignIn(0), Act::SignOut] {
        for acts in [vec![refuses.clone()], vec![take(0), Act::Save], vec![insert(0), Act::Save]] {
            as_the_reference_does(&[
                Step::Visit(plain(vec![insert(0)])),
                outlives(vec![round_of(Some(vec![meanwhile.clone()]), Duration::ZERO, acts)]),
            ])
            .await;
        }
    }
}

#[tokio::test]
async fn sign_out_of_expired_session_sends_no_cookie() {
    for second in [Vec::new(), vec![insert(1)]] {
        as_the_reference_does(&[
            Step::Visit(plain(vec![insert(0)])),
            Step::Overtaken {
                first: plain(vec![Act::SignOut]),
                second: plain(second),
                after: 0,
                early: false,
                pause: minutes(20),
            },
        ])
        .await;
    }
}

/// Runs these acts in a request that carries a session's cookie.
async fn signed_out_with(acts: Vec<Act>, trouble: Trouble, late: Duration) -> Outcome {
    let real = Real::new(Backend::memory().stand_with(configured));
    let request = |acts, trouble| Request { careful: true, trouble, ..plain(acts) };
    let run = async |cookies: &[&str], request: Request| {
        let exchange = real.begin(cookies);
        let session = exchange.handle().session().await.unwrap();
        let mut at = Progress::new(&request);
        real.perform(&session, &request, &request.acts, &mut at).await;
        concluded(exchange, at).await
    };
    let (_, cookie) = run(&[], request(vec![insert(0)], Trouble::None)).await;
    real.stand.clock.advance(late);
    real.make(trouble);
    run(&[&cookie.unwrap()], request(acts, trouble)).await.0
}

#[tokio::test]
async fn sign_out_then_empty_transaction_removes_cookie_of_expired_session() {
    let nothing = Act::Transact { edits: Vec::new(), fails: false };
    let outcome = signed_out_with(vec![Act::SignOut, nothing], Trouble::None, minutes(60)).await;
    assert_eq!((outcome.error, outcome.set_cookie), (None, SetCookie::Removal));
}

#[tokio::test]
async fn take_before_in_doubt_sign_out_is_not_reported_as_value_changed() {
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
