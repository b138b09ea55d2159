//! Every event in docs/observability.md occurs with the documented level and fields, and is counted. No
//! other event occurs.

#![cfg(all(feature = "tracing", feature = "metrics", feature = "memory", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use support::stand::{Backend, Stand};
use support::visit::{cookie_of, finish, visit};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use unsticky::exchange::{Exchange, RequestHead};
use unsticky::testing::{Fault, Verb};
use unsticky::{
    Audit, Clock as _, ConcurrentSessions, Cookie, DirectoryMode, ErrorKind, Guard, Key, Level,
    Lifetime, Session, SignIn, Store as _,
};

const COUNT: Key<u64> = Key::new("count");

/// `tracing` caches, for the whole process, which events have a subscriber. The tests therefore run one
/// after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The level and the fields of each event, keyed by the event's name.
type Events = BTreeMap<String, (String, BTreeSet<String>)>;

#[derive(Clone, Default)]
struct Captured {
    events: Arc<Mutex<Events>>,
    /// The values of all `error` fields, keyed by the event's name.
    errors: Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>,
}

#[derive(Default)]
struct Fields {
    name: String,
    others: BTreeSet<String>,
    error: Option<String>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "event" => self.name = format!("{value:?}").trim_matches('"').to_owned(),
            "message" => {}
            "error" => {
                self.error = Some(format!("{value:?}"));
                self.others.insert("error".to_owned());
            }
            other => drop(self.others.insert(other.to_owned())),
        }
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Captured {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "unsticky" {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let level = event.metadata().level().to_string().to_lowercase();
            if let Some(error) = fields.error {
                let mut errors = self.errors.lock().unwrap();
                errors.entry(fields.name.clone()).or_default().insert(error);
            }
            self.events.lock().unwrap().insert(fields.name, (level, fields.others));
        }
    }
}

/// Returns the rows of the table in the documentation.
fn documented() -> Events {
    let text = include_str!("../docs/observability.md");
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let rows = text.lines().filter(|line| line.starts_with("| `") && line.split('|').count() == 7);
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), names(cells[3])))
    })
    .collect()
}

/// The store uses the system's clock, so it keeps records that have expired by the manual clock.
fn stand() -> Stand {
    let lifetime = Lifetime::new(Duration::from_secs(600), Duration::from_secs(6000));
    Stand::over(Backend::memory().store(), |builder| builder.lifetime(lifetime))
}

async fn request(stand: &Stand, cookie: &str, handler: impl AsyncFnOnce(Session)) -> String {
    let exchange = Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
    if let Ok(session) = exchange.handle().session().await {
        handler(session).await;
    }
    finished(exchange).await
}

async fn arrive(stand: &Stand) -> String {
    request(stand, "", async |session| session.insert(COUNT, &1).unwrap()).await
}

async fn read(stand: &Stand, cookie: &str) {
    request(stand, cookie, async |_| ()).await;
}

async fn increment(stand: &Stand, cookie: &str) {
    let increment = async |session: Session| session.update(COUNT, |count| *count += 1).unwrap();
    request(stand, cookie, increment).await;
}

/// Replaces one byte of the session's record.
async fn damage(stand: &Stand, cookie: &str, place: usize, byte: u8) {
    let key = stand.key(cookie).await;
    let mut bytes = stand.stored(&key).await.to_vec();
    bytes[place] = byte;
    stand.put(&key, bytes).await;
}

/// Events about directories, in strict mode with a limit of one session.
async fn directories(stand: &Stand) {
    let sessions = stand.process(|builder| {
        let builder = builder.namespace("directories").directory(DirectoryMode::Strict);
        builder.concurrent_sessions(ConcurrentSessions::Reject(1))
    });
    let alice = sessions.of("alice");
    let sign_in = async |sign_in: SignIn| {
        let exchange = Exchange::begin(&sessions, [""], None);
        exchange.handle().session().await.unwrap().sign_in_with(sign_in).unwrap();
        finished(exchange).await
    };
    let early = alice.begin_sign_in().await.unwrap();
    let cookie = sign_in(SignIn::new("alice")).await;
    // The first use confirms the session, so the next sign-in is refused.
    let exchange = Exchange::begin(&sessions, [cookie.to_owned()], None);
    assert!(exchange.handle().session().await.unwrap().is_signed_in());
    finished(exchange).await;
    sign_in(SignIn::new("alice")).await;
    stand.spy.take();
    alice.list().await.unwrap();
    let directory = stand.spy.take()[0].key.clone();
    let stored = stand.stored(&directory).await;
    // Loses the directory record, as if it had been evicted, and later restores it.
    stand.spy.delete(&directory, None).await.unwrap();
    let exchange = Exchange::begin(&sessions, [cookie.to_owned()], None);
    assert!(!exchange.handle().session().await.unwrap().is_signed_in());
    drop(exchange);
    stand.put(&directory, stored).await;
    assert_eq!(alice.revoke_all().await.unwrap().count, 1);
    sign_in(early).await;
}

/// Finishes a request and returns the cookie that was set.
async fn finished(exchange: Exchange) -> String {
    cookie_of(&finish(exchange, 200).await).unwrap_or_default()
}

async fn everything_happens() {
    let stand = stand();
    let cookie = arrive(&stand).await;
    let cookie = request(&stand, &cookie, async |session| session.sign_in("alice").unwrap()).await;
    let cookie = request(&stand, &cookie, async |session| session.rotate()).await;
    directories(&stand).await;

    let wrong = if cookie.ends_with('A') { "E" } else { "A" };
    read(&stand, &format!("{}{wrong}", &cookie[..cookie.len() - 1])).await;
    read(&stand, &format!("__Host-id={}", "A".repeat(43))).await;
    let other = arrive(&stand).await;
    read(&stand, &format!("{cookie}; {other}")).await;

    // Two overtaken requests: another request writes during the first, and ends the session during the
    // second.
    for overtaking in [false, true] {
        let exchange = Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
        let session = exchange.handle().session().await.unwrap();
        session.update(COUNT, |count| *count += 1).unwrap();
        match overtaking {
            false => increment(&stand, &cookie).await,
            true => drop(request(&stand, &cookie, async |session| session.sign_out()).await),
        }
        finished(exchange).await;
    }

    // Two lost answers. The first is settled; the second cannot be, because reading the record back
    // fails.
    let cookie = arrive(&stand).await;
    for failed_loads in [0, 3] {
        let exchange = Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
        let session = exchange.handle().session().await.unwrap();
        session.update(COUNT, |count| *count += 1).unwrap();
        stand.store.inject(Verb::Replace, Fault::LoseAnswer);
        for _ in 0..failed_loads {
            stand.store.inject(Verb::Load, Fault::Unavailable);
        }
        finished(exchange).await;
    }

    stand.store.inject(Verb::Load, Fault::Hang);
    read(&stand, &cookie).await;

    stand.clock.advance(Duration::from_secs(100));
    for _ in 0..3 {
        stand.store.inject(Verb::Replace, Fault::Unavailable);
    }
    read(&stand, &cookie).await;

    let exchange = Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
    let session = exchange.handle().session().await.unwrap();
    session.insert(COUNT, &7).unwrap();
    drop(exchange);

    damage(&stand, &cookie, 8, 2).await;
    read(&stand, &cookie).await;
    let cookie = arrive(&stand).await;
    damage(&stand, &cookie, 8, 0).await;
    read(&stand, &cookie).await;
    let cookie = arrive(&stand).await;
    stand.clock.advance(Duration::from_secs(600));
    read(&stand, &cookie).await;
    let _ = unsticky::exchange::missing_layer("add the layer");
    let mut head = RequestHead::default();
    (head.method, head.origin) = ("POST", Some(&b"https://evil.example"[..]));
    Guard::same_origin().check_head(&head).unwrap_err();

    // A handler that fails, and two layers that share a cookie.
    let exchange = Exchange::begin(&stand.sessions, [""], None);
    exchange.handle().session().await.unwrap().insert(COUNT, &7).unwrap();
    drop(exchange.finish(500));
    let outer = Exchange::begin(&stand.sessions, [""], None);
    let others = stand.process(|builder| builder);
    let inner = Exchange::begin(&others, [""], Some(outer.handle()));
    drop((inner.finish(200), outer.finish(200)));

    // A sign-in from a page that was loaded over plain HTTP.
    let mut exchange = Exchange::begin(&stand.sessions, [""], None);
    let mut head = RequestHead::default();
    head.host = Some(b"shop.test");
    exchange.note_origin(Some(b"http://shop.test"), || head);
    exchange.handle().session().await.unwrap().sign_in("alice").unwrap();
    finished(exchange).await;

    request(&stand, "", async |session| session.sign_in("alice").unwrap()).await;
    let alice = stand.sessions.of("alice");
    let listed = alice.list().await.unwrap();
    assert!(alice.open(listed[0].id).await.unwrap().is_some());

    // A flash message in a request whose cookie is stale.
    let stale = arrive(&stand).await;
    request(&stand, &stale, async |session| session.rotate()).await;
    request(&stand, &stale, async |session| session.flash(Level::Info, "hello").unwrap()).await;

    // A guard that admits no request.
    request(&stand, "", async |session| {
        session.sign_in("bob").unwrap();
        let guard = Guard::signed_in().permit(|_| Ok(false));
        guard.check(session, &RequestHead::default()).unwrap_err();
    })
    .await;

    // A form with a token from a different session.
    request(&stand, "", async |session| drop(session.verify_csrf_token("forged").unwrap_err()))
        .await;
}

/// Returns a runtime on one thread, with a clock that skips to the next timer.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

/// Returns the counters at the end of a scenario.
fn counted(scenario: impl Future<Output = ()>) -> BTreeMap<String, u64> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || runtime().block_on(scenario));
    let counters = snapshotter.snapshot().into_vec().into_iter();
    counters
        .filter_map(|(key, _, _, value)| match value {
            DebugValue::Counter(count) => Some((key.key().name().to_owned(), count)),
            _ => None,
        })
        .collect()
}

#[test]
fn every_documented_event_is_emitted_and_counted() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    let captured = Captured::default();
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let subscriber = tracing_subscriber::registry().with(captured.clone());
    let runtime = runtime();
    metrics::with_local_recorder(&recorder, || {
        tracing::subscriber::with_default(subscriber, || runtime.block_on(everything_happens()));
    });

    let documented = documented();
    assert_eq!(*captured.events.lock().unwrap(), documented);
    // Each `error` field states the cause once.
    let errors = captured.errors.lock().unwrap();
    let with_error = documented.iter().filter(|(_, (_, fields))| fields.contains("error"));
    assert_eq!(
        errors.keys().collect::<Vec<_>>(),
        with_error.map(|(name, _)| name).collect::<Vec<_>>()
    );
    for (name, texts) in &*errors {
        let told = texts.iter().filter(|text| text.matches("injected by a test").count() == 1);
        assert!(told.count() > 0, "{name}: {texts:?}");
    }

    let mut counted = BTreeSet::new();
    let mut verbs = BTreeSet::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let (name, labels) = (key.key().name().to_owned(), key.key().labels());
        match value {
            DebugValue::Counter(count) => {
                assert!(count > 0, "{name}");
                counted.insert(name);
            }
            DebugValue::Histogram(_) => {
                assert_eq!(name, "unsticky_store_seconds");
                verbs.extend(labels.map(|label| label.value().to_owned()));
            }
            DebugValue::Gauge(_) => panic!("{name}"),
        }
    }
    let expected = documented.keys().map(|name| format!("unsticky_{name}_total")).collect();
    assert_eq!(counted, expected);
    assert_eq!(verbs, ["create", "delete", "load", "replace"].map(str::to_owned).into());
}

/// An operation is counted even if its answer was lost.
#[test]
fn in_doubt_sign_in_rotation_and_sign_out_are_counted() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    let counted = counted(async {
        let stand = stand();
        let cookie = arrive(&stand).await;
        let sign_in = async |session: Session| session.sign_in("alice").unwrap();
        // The write to the directory is a create, so the fault does not affect it.
        stand.store.inject(Verb::Replace, Fault::LoseAnswer);
        let cookie = request(&stand, &cookie, sign_in).await;
        let rotate = async |session: Session| session.rotate();
        stand.store.inject(Verb::Replace, Fault::LoseAnswer);
        let cookie = request(&stand, &cookie, rotate).await;
        stand.store.inject(Verb::Delete, Fault::LoseAnswer);
        request(&stand, &cookie, async |session: Session| session.sign_out()).await;
    });
    for name in ["signed_in", "rotated", "signed_out"] {
        assert!(counted.contains_key(&format!("unsticky_{name}_total")), "{name}: {counted:?}");
    }
}

/// If the switch to another account is rolled back, no sign-in is counted.
#[test]
fn rolled_back_account_switch_is_not_counted() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    for fails in [false, true] {
        let counted = counted(async {
            let stand = stand();
            let cookie =
                request(&stand, "", async |session| session.sign_in("alice").unwrap()).await;
            if fails {
                stand.store.fail_always(Verb::Delete, Fault::Refused);
            }
            request(&stand, &cookie, async |session| session.sign_in("bob").unwrap()).await;
        });
        for name in ["signed_in", "created"] {
            let count = counted[&format!("unsticky_{name}_total")];
            assert_eq!(count, if fails { 1 } else { 2 }, "{name}");
        }
    }
}

/// Dropped changes are reported only if they would have had an effect.
#[test]
fn dropped_changes_are_reported_only_if_something_is_lost() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    type Deed = fn(&Session);
    const OTHER: Key<u64> = Key::new("other");
    let nothing: [(&str, Deed); 7] = [
        ("remove", |session| session.remove(OTHER)),
        ("clear", Session::clear),
        ("rotate", Session::rotate),
        ("set_lifetime", |session| session.set_lifetime(Lifetime::nist_aal1())),
        ("end_by", |session| session.end_by(time::OffsetDateTime::now_utc())),
        ("sign_out", Session::sign_out),
        ("insert and remove", |session| {
            session.insert(OTHER, &1).unwrap();
            session.remove(OTHER);
        }),
    ];
    let dropped = |counted: &BTreeMap<String, u64>| {
        let of = |name: &str| counted.get(&format!("unsticky_{name}_total")).copied();
        (of("changes_dropped"), of("changes_discarded"))
    };
    for (name, deed) in nothing {
        for status in [200, 500] {
            let counted = counted(async {
                let stand = stand();
                let exchange = Exchange::begin(&stand.sessions, [""], None);
                deed(&exchange.handle().session().await.unwrap());
                finish(exchange, status).await;
                let exchange = Exchange::begin(&stand.sessions, [""], None);
                deed(&exchange.handle().session().await.unwrap());
                drop(exchange);
            });
            assert_eq!(dropped(&counted), (None, None), "{name} {status}");
        }
    }
    // Inserts a value after the response: one that is already stored, and one that is lost.
    for (value, lost) in [(1, None), (2, Some(1))] {
        let counted = counted(async {
            let stand = stand();
            let cookie = arrive(&stand).await;
            let exchange = Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
            let session = exchange.handle().session().await.unwrap();
            finished(exchange).await;
            session.insert(COUNT, &value).unwrap();
            session.remove(OTHER);
        });
        assert_eq!(dropped(&counted), (lost, None), "{value}");
    }
    // The handle is first used after the response.
    let counted_late = counted(async {
        let stand = stand();
        let exchange = Exchange::begin(&stand.sessions, [arrive(&stand).await], None);
        let handle = exchange.handle();
        finished(exchange).await;
        handle.session().await.unwrap().insert(COUNT, &2).unwrap();
    });
    assert_eq!(dropped(&counted_late), (Some(1), None));
    // Changes dropped because the response is an error.
    for status in [500, 408] {
        let counted = counted(async {
            let stand = stand();
            let exchange = Exchange::begin(&stand.sessions, [""], None);
            exchange.handle().session().await.unwrap().insert(COUNT, &1).unwrap();
            drop(exchange.finish(status));
        });
        assert_eq!(dropped(&counted), (None, Some(1)), "{status}");
    }
    let counted = counted(async {
        let stand = stand();
        stand.store.fail_always(Verb::Create, Fault::Refused);
        request(&stand, "", async |session| session.insert(COUNT, &1).unwrap()).await;
    });
    assert_eq!(dropped(&counted), (None, Some(1)));
}

/// The event occurs once per request and contains the number of messages.
#[test]
fn dropped_message_is_reported_once() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    type Deed = fn(&Session);
    let nothing: Deed = |_| ();
    let says: Deed = |session| {
        session.flash(Level::Info, "one").unwrap();
        session.flash(Level::Info, "two").unwrap();
    };
    let says_and_clears: Deed = |session| {
        session.flash(Level::Info, "one").unwrap();
        session.clear();
    };
    let signs_out: Deed = |session| {
        session.sign_out();
        session.flash(Level::Info, "one").unwrap();
    };
    let with_value: Deed = |session| {
        session.flash(Level::Info, "one").unwrap();
        session.insert(COUNT, &7).unwrap();
    };
    let count = |handler: Deed, overtaking: Deed, saves: bool, status: u16| {
        let counted = counted(async {
            let stand = stand();
            let cookie = arrive(&stand).await;
            let exchange = Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
            let session = exchange.handle().session().await.unwrap();
            request(&stand, &cookie, async |session| overtaking(&session)).await;
            handler(&session);
            if saves {
                let _ = session.save().await;
                let _ = session.save().await;
            }
            finish(exchange, status).await;
        });
        let of = |name: &str| counted.get(&format!("unsticky_{name}_total")).copied();
        (of("flash_dropped"), of("gone"), of("changes_discarded"))
    };
    let signs_in: Deed = |session| session.sign_in("alice").unwrap();
    for saves in [false, true] {
        for overtaking in [Session::sign_out, signs_in] {
            assert_eq!(count(nothing, overtaking, saves, 200), (None, None, None));
            assert_eq!(count(says, overtaking, saves, 200), (Some(1), None, None));
            assert_eq!(count(says_and_clears, overtaking, saves, 200), (None, Some(1), None));
            assert_eq!(count(signs_out, overtaking, saves, 200), (Some(1), None, None));
            assert_eq!(count(with_value, overtaking, saves, 200), (None, Some(1), None));
        }
        assert_eq!(count(says, nothing, saves, 200), (None, None, None));
        assert_eq!(count(signs_out, nothing, saves, 200), (None, None, None));
    }
    assert_eq!(count(says, nothing, false, 500), (None, None, Some(1)));
}

/// Returns how often an event occurs in a scenario.
fn count_of(name: &str, scenario: impl Future<Output = ()>) -> u64 {
    counted(scenario).get(&format!("unsticky_{name}_total")).copied().unwrap_or(0)
}

/// The event occurs once, however often the write is attempted, and not at all if nothing is written.
#[test]
fn message_that_does_not_fit_is_reported_once_when_dropped() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    const TEXT: Key<String> = Key::new("text");
    let says = async |session: Session| session.flash(Level::Info, "x".repeat(490)).unwrap();
    for (overtaken, fault, expected) in
        [(false, None, 1), (true, None, 1), (true, Some(Fault::Refused), 0)]
    {
        let scenario = async {
            let stand =
                Stand::over(Backend::memory().store(), |builder| builder.max_record_bytes(2048));
            let fills = async |session: Session| session.insert(TEXT, &"y".repeat(1600)).unwrap();
            let cookie = request(&stand, "", fills).await;
            let handler = async |session: Session| {
                if overtaken {
                    let other = async |session: Session| session.insert(COUNT, &2).unwrap();
                    request(&stand, &cookie, other).await;
                }
                if let Some(fault) = fault {
                    stand.store.fail_always(Verb::Replace, fault);
                }
                says(session).await;
            };
            request(&stand, &cookie, handler).await;
        };
        assert_eq!(count_of("flash_dropped", scenario), expected, "{overtaken} {fault:?}");
    }
}

#[test]
fn touch_of_unknown_outcome_is_reported() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    let scenario = async {
        let stand = stand();
        let cookie = arrive(&stand).await;
        stand.clock.advance(Duration::from_secs(300));
        let handler = async |session: Session| {
            stand.store.inject(Verb::Replace, Fault::LoseAnswer);
            stand.store.fail_always(Verb::Load, Fault::Unavailable);
            let error = session.touch().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
            stand.store.heal();
        };
        request(&stand, &cookie, handler).await;
    };
    assert_eq!(count_of("outcome_unknown", scenario), 1);
}

#[test]
fn event_is_emitted_only_for_its_documented_reason() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    let several_tokens = async {
        let stand = stand();
        let (one, two) = (arrive(&stand).await, arrive(&stand).await);
        read(&stand, &one).await;
        read(&stand, &format!("{one}; {two}")).await;
    };
    assert_eq!(count_of("several_valid_tokens", several_tokens), 1);
    for (fault, count) in [(Fault::LoseAnswer, 1), (Fault::Refused, 0), (Fault::TooLarge, 0)] {
        let created = async {
            let stand = stand();
            stand.store.inject(Verb::Create, fault);
            arrive(&stand).await;
        };
        assert_eq!(count_of("outcome_in_doubt", created), count, "{fault:?}");
    }
    for (name, count) in [("__Host-id", 1), ("__Host-admin", 0)] {
        let nested = async {
            let stand = stand();
            let outer = Exchange::begin(&stand.sessions, [""], None);
            let inner = stand.process(|builder| builder.cookie(Cookie::new(name)));
            let inner = Exchange::begin(&inner, [""], Some(outer.handle()));
            drop((inner.finish(200), outer.finish(200)));
        };
        assert_eq!(count_of("cookie_name_shared", nested), count, "{name}");
    }
    let listed = async {
        let stand = stand();
        let strict = stand.process(|builder| builder.directory(DirectoryMode::Strict));
        let sign_in = async |session: Session| session.sign_in("alice");
        let cookie = visit(&strict, "", sign_in).await.cookie();
        let read = async |session: Session| Ok(session.is_signed_in());
        assert!(visit(&strict, &cookie, read).await.ok());
    };
    assert_eq!(count_of("unlisted", listed), 0);
    let saved = async {
        let stand = stand();
        increment(&stand, &arrive(&stand).await).await;
    };
    assert_eq!(count_of("rotated", saved), 0);
    for (fault, count) in [(Fault::LoseAnswer, 1), (Fault::Refused, 0)] {
        let unsettled = async {
            let stand = stand();
            let cookie = arrive(&stand).await;
            drop(stand.store.hold(Verb::Load));
            stand.store.inject(Verb::Replace, fault);
            stand.store.fail_always(Verb::Load, Fault::Unavailable);
            increment(&stand, &cookie).await;
        };
        assert_eq!(count_of("outcome_unknown", unsettled), count, "{fault:?}");
    }
    // A reload that finds that the session is gone, with and without changes to lose.
    for (changes, count) in [(true, 1), (false, 0)] {
        let gone = async {
            let stand = stand();
            let cookie = arrive(&stand).await;
            let exchange = Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
            let session = exchange.handle().session().await.unwrap();
            request(&stand, &cookie, async |session| session.sign_out()).await;
            if changes {
                session.insert(COUNT, &2).unwrap();
            }
            assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Gone);
            finished(exchange).await;
        };
        assert_eq!(count_of("gone", gone), count, "{changes}");
    }
}

/// Changes that a failed commit drops are reported when the response is sent, unless they were already
/// reported as gone.
#[test]
fn changes_dropped_by_failed_commit_are_reported_with_response() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    let unknown = async {
        let stand = stand();
        let cookie = arrive(&stand).await;
        request(&stand, &cookie, async |session| {
            session.insert(COUNT, &2).unwrap();
            stand.store.inject(Verb::Replace, Fault::LoseAnswer);
            stand.store.fail_always(Verb::Load, Fault::Unavailable);
            assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        })
        .await;
    };
    assert_eq!(count_of("changes_discarded", unknown), 1);
    let gone = async {
        let stand = stand();
        let cookie = arrive(&stand).await;
        request(&stand, &cookie, async |session| {
            session.insert(COUNT, &2).unwrap();
            request(&stand, &cookie, async |session| session.sign_out()).await;
            assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Gone);
        })
        .await;
    };
    assert_eq!(count_of("changes_discarded", gone), 0);
    // The sign-in is refused, and the handler returns an error of its own.
    let refused = async {
        let stand = Stand::over(Backend::memory().store(), |builder| {
            builder.concurrent_sessions(ConcurrentSessions::Reject(1))
        });
        let sign_in = async |session: Session| session.sign_in("alice").unwrap();
        let first = request(&stand, "", sign_in).await;
        read(&stand, &first).await;
        let exchange = Exchange::begin(&stand.sessions, [""], None);
        let session = exchange.handle().session().await.unwrap();
        session.sign_in("alice").unwrap();
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::TooManySessions);
        finish(exchange, 500).await;
    };
    assert_eq!(count_of("changes_discarded", refused), 1);
    // A detached session belongs to no request, so no change is lost.
    let detached = async { Session::detached().insert(COUNT, &1).unwrap() };
    assert_eq!(count_of("changes_dropped", detached), 0);
}

/// Store failures of every kind are counted. A record that is too large is not a store failure.
#[test]
fn every_store_failure_is_counted() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    for (verb, fault, count) in [
        (Verb::Load, Fault::Unavailable, 1),
        (Verb::Load, Fault::Refused, 1),
        (Verb::Load, Fault::Hang, 1),
        (Verb::Replace, Fault::Unavailable, 1),
        (Verb::Replace, Fault::Refused, 1),
        (Verb::Replace, Fault::LoseAnswer, 1),
        (Verb::Replace, Fault::Garbage, 1),
        (Verb::Replace, Fault::Hang, 1),
        (Verb::Replace, Fault::TooLarge, 0),
    ] {
        let counted = counted(async {
            let stand = stand();
            let cookie = arrive(&stand).await;
            stand.store.inject(verb, fault);
            increment(&stand, &cookie).await;
        });
        let failed = counted.get("unsticky_store_failed_total").copied().unwrap_or(0);
        assert_eq!(failed, count, "{verb:?} {fault:?}");
    }
}

#[test]
fn every_documented_alert_uses_existing_counter() {
    let text = include_str!("../docs/observability.md");
    let documented = documented();
    let names = text.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
    let mut counters = 0;
    for name in names.filter_map(|name| name.strip_prefix("unsticky_")?.strip_suffix("_total")) {
        assert!(documented.contains_key(name), "{name}");
        counters += 1;
    }
    assert!(counters >= 7, "no alerts were found");
}

/// The fields of each event, in the order in which the events occurred.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<BTreeMap<&'static str, String>>>>);

impl Told {
    /// Returns the events of a scenario.
    fn of(scenario: impl Future<Output = ()>) -> Vec<BTreeMap<&'static str, String>> {
        let told = Self::default();
        let subscriber = tracing_subscriber::registry().with(told.clone());
        tracing::subscriber::with_default(subscriber, || runtime().block_on(scenario));
        std::mem::take(&mut *told.0.lock().unwrap())
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Told {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Texts<'a>(&'a mut BTreeMap<&'static str, String>);
        impl Visit for Texts<'_> {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                // Logs quote only strings. An unquoted value could imitate another field.
                assert!(!["principal", "label", "actor"].contains(&field.name()), "{value:?}");
                self.0.insert(field.name(), format!("{value:?}"));
            }

            fn record_str(&mut self, field: &Field, value: &str) {
                self.0.insert(field.name(), value.to_owned());
            }
        }
        if event.metadata().target() == "unsticky" {
            let mut fields = BTreeMap::new();
            event.record(&mut Texts(&mut fields));
            self.0.lock().unwrap().push(fields);
        }
    }
}

/// Returns the digest that stands for a principal: the last part of the key of the principal's
/// directory.
async fn digest(stand: &Stand, principal: &str) -> String {
    let key = stand.directory_key(principal).await;
    key.as_str().rsplit(':').next().unwrap().to_owned()
}

#[test]
fn principal_is_reported_as_configured() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    let long = "é".repeat(300);
    for (audit, principal, name) in [
        (None, "alice", None),
        (Some(Audit::Digest), "alice", None),
        (Some(Audit::Principal), "alice", Some("alice")),
        (Some(Audit::Principal), "alice\r\nevent=\u{1b}", Some("alice  event= ")),
        (Some(Audit::Principal), "a\u{2028}b\u{202e}c\u{2066}", Some("a b c ")),
        (Some(Audit::Principal), &*long, Some(&*"é".repeat(200))),
        (Some(Audit::Nothing), "alice", Some("-")),
    ] {
        let expected = Mutex::new(String::new());
        let told = Told::of(async {
            let stand = Stand::over(Backend::memory().store(), |builder| match audit {
                Some(audit) => builder.audit(audit),
                None => builder,
            });
            let digest = digest(&stand, principal).await;
            *expected.lock().unwrap() = name.map_or(digest, str::to_owned);
            let label = SignIn::new(principal).label("Firefox\non Linux");
            let sign_in = async |session: Session| session.sign_in_with(label).unwrap();
            let cookie = request(&stand, "", sign_in).await;
            let cookie = request(&stand, &cookie, async |session| session.rotate()).await;
            let id = stand.visit(&cookie, async |session: Session| Ok(session.id())).await.ok();
            assert!(stand.sessions.of(principal).open(id.unwrap()).await.unwrap().is_some());
            request(&stand, &cookie, async |session| session.sign_out()).await;
            request(&stand, "", async |session| session.sign_in(principal).unwrap()).await;
            stand.sessions.of(principal).revoke_all().await.unwrap();
            // No user is signed in on this session.
            let anonymous = arrive(&stand).await;
            request(&stand, &anonymous, async |session| session.sign_out()).await;
        });
        let expected = expected.into_inner().unwrap();
        let named = |fields: &&BTreeMap<&str, String>| fields.contains_key("principal");
        let of = |fields: &BTreeMap<&str, String>| {
            (fields["event"].clone(), fields["principal"].clone(), fields.get("label").cloned())
        };
        let row = |event: &str, principal: &str, label: Option<&str>| {
            (event.to_owned(), principal.to_owned(), label.map(str::to_owned))
        };
        assert_eq!(
            told.iter().filter(named).map(of).collect::<Vec<_>>(),
            [
                row("signed_in", &expected, Some("Firefox on Linux")),
                row("rotated", &expected, None),
                row("opened", &expected, None),
                row("signed_out", &expected, None),
                row("signed_in", &expected, Some("-")),
                row("revoked", &expected, Some("-")),
                row("all_revoked", &expected, None),
                row("signed_out", "-", None),
            ],
            "{audit:?}"
        );
    }
}

#[test]
fn actor_is_reported_under_every_audit_setting() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    let long = "é".repeat(300);
    for audit in [Audit::Digest, Audit::Principal, Audit::Nothing] {
        for (actor, expected) in [
            (None, "-"),
            (Some("carol@support"), "carol@support"),
            (Some("carol\r\nevent=\u{1b}"), "carol  event= "),
            (Some(&*long), &*"é".repeat(200)),
        ] {
            let told = Told::of(async {
                let stand = Stand::over(Backend::memory().store(), |builder| builder.audit(audit));
                let sign_in = async |session: Session| session.sign_in("alice").unwrap();
                for _ in 0..3 {
                    request(&stand, "", sign_in).await;
                }
                let directory = stand.sessions.of("alice");
                let directory = match actor {
                    Some(actor) => directory.by(actor),
                    None => directory,
                };
                let listed = directory.list().await.unwrap();
                let open = async |place: usize| directory.open(listed[place].id).await.unwrap();
                assert!(open(0).await.unwrap().revoke().await.unwrap());
                assert!(directory.revoke(listed[1].id).await.unwrap());
                assert_eq!(directory.revoke_all().await.unwrap().count, 1);
                // In a request, users act on their own sessions, so no actor is reported.
                let own = async |session: Session| {
                    session.sign_in("alice").unwrap();
                    session.save().await.unwrap();
                    let directory = session.directory().unwrap();
                    assert!(directory.open(session.id().unwrap()).await.unwrap().is_some());
                };
                request(&stand, "", own).await;
            });
            let of = |fields: &BTreeMap<&str, String>| {
                Some((fields["event"].clone(), fields.get("actor")?.clone()))
            };
            let row = |event: &str, actor: &str| (event.to_owned(), actor.to_owned());
            assert_eq!(
                told.iter().filter_map(of).collect::<Vec<_>>(),
                [
                    row("opened", expected),
                    row("revoked", expected),
                    row("revoked", expected),
                    row("revoked", expected),
                    row("all_revoked", expected),
                    row("opened", "-"),
                ],
                "{audit:?} {actor:?}"
            );
        }
    }
}

/// The number includes sessions that could not be deleted, because they are marked as revoked.
#[test]
fn revoke_all_event_reports_number_of_revoked_sessions() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    let told = Told::of(async {
        let stand = stand();
        let alice = stand.sessions.of("alice");
        let revoked = alice.revoke_all().await.unwrap();
        assert_eq!((revoked.count, revoked.found), (0, false));
        for _ in 0..2 {
            request(&stand, "", async |session| session.sign_in("alice").unwrap()).await;
        }
        stand.store.fail_always(Verb::Delete, Fault::Unavailable);
        alice.revoke_all().await.unwrap_err();
        stand.store.heal();
        assert_eq!(alice.revoke_all().await.unwrap().count, 2);
    });
    let told = told.iter().filter(|fields| fields["event"] == "all_revoked");
    let told: Vec<_> = told.map(|fields| (&*fields["count"], &*fields["found"])).collect();
    assert_eq!(told, [("0", "false"), ("0", "true"), ("2", "true")]);
}

/// Every reason in the documentation is reported, each for the right sessions.
#[test]
fn every_documented_reason_is_emitted() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    let told = Told::of(every_reason_happens());
    let reasons: BTreeSet<_> = told
        .iter()
        .filter_map(|fields| Some((fields["event"].clone(), fields.get("reason")?.clone())))
        .collect();
    let text = include_str!("../docs/observability.md");
    let row = |name: &str| text.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
    for (name, expected) in [
        ("signed_in", &["sign_in", "step_up"][..]),
        ("rotated", &["rotation", "lifetime", "end", "others_revoked"]),
        ("signed_out", &["sign_out", "replaced"]),
        ("revoked", &["revoked", "all", "others", "limit", "unconfirmed", "unfinished"]),
        ("all_revoked", &["all", "others"]),
    ] {
        let happened =
            reasons.iter().filter(|(event, _)| event == name).map(|(_, reason)| &**reason);
        assert_eq!(happened.collect::<BTreeSet<_>>(), expected.iter().copied().collect(), "{name}");
        for reason in expected {
            assert!(row(name).unwrap().contains(&format!("`{reason}`")), "{name} {reason}");
        }
    }
    // Each session's label is the expected reason.
    for fields in told.iter().filter(|fields| fields["event"] == "revoked") {
        assert_eq!(fields["label"], format!("to be {}", fields["reason"]));
    }
}

async fn every_reason_happens() {
    let stand = stand();
    let labelled = |reason: &str| SignIn::new("alice").label(format!("to be {reason}"));
    let sign_in = async |stand: &Stand, reason: &str| {
        let sign_in = labelled(reason);
        request(stand, "", async |session| session.sign_in_with(sign_in).unwrap()).await
    };
    let id = async |cookie: &str| {
        stand.visit(cookie, async |session: Session| Ok(session.id().unwrap())).await.ok()
    };
    let alice = stand.sessions.of("alice");

    let cookie = sign_in(&stand, "all").await;
    let cookie = request(&stand, &cookie, async |session| session.step_up().unwrap()).await;
    let cookie = request(&stand, &cookie, async |session| session.rotate()).await;
    let remember = async |session: Session| session.set_lifetime(Lifetime::nist_aal1());
    let cookie = request(&stand, &cookie, remember).await;
    let end = stand.clock.now() + Duration::from_secs(3000);
    let cookie = request(&stand, &cookie, async |session| session.end_by(end)).await;
    sign_in(&stand, "others").await;
    request(&stand, &cookie, async |session| {
        let revoked = session.directory().unwrap().revoke_others(&session).await.unwrap();
        assert_eq!(revoked.count, 1);
    })
    .await;
    assert_eq!(alice.revoke_all().await.unwrap().count, 1);
    let cookie = sign_in(&stand, "revoked").await;
    assert!(alice.revoke(id(&cookie).await).await.unwrap());

    // The store fails during the revocation, and the session is removed later.
    let cookie = sign_in(&stand, "unfinished").await;
    stand.store.fail_always(Verb::Delete, Fault::Unavailable);
    assert!(alice.revoke(id(&cookie).await).await.is_err());
    stand.store.heal();
    assert!(alice.list().await.unwrap().is_empty());

    // Another principal signs in with the same browser, and then signs out.
    let cookie = request(&stand, "", async |session| session.sign_in("bob").unwrap()).await;
    let cookie = request(&stand, &cookie, async |session| session.sign_in("alice").unwrap()).await;
    request(&stand, &cookie, async |session| session.sign_out()).await;

    let store = Backend::memory().store();
    for (reason, policy) in [
        ("limit", ConcurrentSessions::EvictOldest(1)),
        ("unconfirmed", ConcurrentSessions::Reject(1)),
    ] {
        let stand = Stand::over(store.clone(), |builder| {
            builder.namespace(reason).concurrent_sessions(policy)
        });
        sign_in(&stand, reason).await;
        sign_in(&stand, "kept").await;
    }
}

/// This applies to events about a directory too, although its key contains the principal's digest.
#[test]
fn audit_setting_nothing_names_no_account() {
    let _one_at_a_time = ONE_AT_A_TIME.lock();
    const ABOUT_A_DIRECTORY: [&str; 5] = [
        "corrupt_record",
        "newer_format",
        "outcome_in_doubt",
        "sign_in_overtaken",
        "sign_in_refused",
    ];
    for audit in [Audit::Digest, Audit::Principal, Audit::Nothing] {
        let key = Mutex::new(String::new());
        let told = Told::of(async {
            let stand = Stand::over(Backend::memory().store(), |builder| {
                let builder = builder.audit(audit).directory(DirectoryMode::Strict);
                builder.concurrent_sessions(ConcurrentSessions::Reject(1))
            });
            let directory = stand.directory_key("alice").await;
            directory.as_str().clone_into(&mut key.lock().unwrap());
            let alice = stand.sessions.of("alice");
            let sign_in = async |session: Session| session.sign_in("alice").unwrap();
            let early = alice.begin_sign_in().await.unwrap();
            let cookie = request(&stand, "", sign_in).await;
            // The first use confirms the session, so the next sign-in is refused.
            read(&stand, &cookie).await;
            request(&stand, "", sign_in).await;
            stand.store.inject(Verb::Replace, Fault::LoseAnswer);
            assert_eq!(alice.revoke_all().await.unwrap().count, 1);
            request(&stand, "", async |session| session.sign_in_with(early).unwrap()).await;
            let cookie = request(&stand, "", sign_in).await;
            for (format, kind) in [(2, ErrorKind::NewerFormat), (0, ErrorKind::Corrupt)] {
                let mut bytes = stand.stored(&directory).await.to_vec();
                bytes[8] = format;
                stand.put(&directory, bytes).await;
                assert_eq!(alice.list().await.unwrap_err().kind(), kind);
            }
            stand.spy.delete(&directory, None).await.unwrap();
            read(&stand, &cookie).await;
        });
        let key = key.into_inner().unwrap();
        let (place, digest) = key.rsplit_once(':').unwrap();
        let keys =
            told.iter().filter_map(|fields| Some((&*fields["event"], &**fields.get("key")?)));
        let expected = match audit {
            Audit::Nothing => format!("{place}:-"),
            _ => key.clone(),
        };
        let expected = ABOUT_A_DIRECTORY.map(|event| (event, &*expected));
        assert_eq!(keys.collect::<BTreeSet<_>>(), expected.into(), "{audit:?}");
        let names = |fields: &&BTreeMap<&str, String>| {
            fields.values().any(|text| text.contains(digest) || text.contains("alice"))
        };
        assert_eq!(told.iter().any(|fields| names(&fields)), audit != Audit::Nothing, "{audit:?}");
        assert!(told.iter().any(|fields| fields["event"] == "unlisted"));
    }
}
