//! The store check and the ping, on stores that have no server.

#![cfg(all(feature = "testing", feature = "memory"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, pending};
use support::visit::visit;
use tokio::time::Instant;
use unsticky::check::{Finding, Level, Report};
use unsticky::store::{
    Created, Deleted, Diagnose, MemoryStore, Probe, Replaced, StoreKey, Stored, Version,
};
use unsticky::testing::{FailingEntropy, Fault, FaultStore, SpyStore, Verb, random_record};
use unsticky::{Entropy, Error, ErrorKind, Key, Loss, Result, Session, Sessions, Store};

const SEED: Key<u32> = Key::new("seed");

fn sessions(store: impl Store) -> Sessions {
    Sessions::builder(store).namespace("shop").epoch(7).build().unwrap()
}

fn codes(report: &Report) -> Vec<&'static str> {
    report.findings().iter().map(Finding::code).collect()
}

fn first_error(report: &Report) -> &Finding {
    report.first_error().unwrap_or_else(|| panic!("no error: {report}"))
}

/// Runs the check, which must finish within twice the request timeout.
async fn bounded(sessions: &Sessions, timeout: Duration) -> Report {
    let begun = Instant::now();
    let report = sessions.check().await;
    let took = begun.elapsed();
    // The clock in these tests advances in whole milliseconds.
    assert!(took <= 2 * timeout + Duration::from_millis(2), "{took:?}: {report}");
    report
}

/// What an [`Examined`] store's own part of the check does with the probe.
type Part = Box<dyn for<'a> Fn(&'a Probe) -> BoxFuture<'a, ()> + Send + Sync>;

/// A store from a different crate. Its own part of the check examines its servers.
struct Examined {
    inner: SpyStore<MemoryStore>,
    part: Part,
}

impl Examined {
    fn new(
        part: impl for<'a> Fn(&'a Probe) -> BoxFuture<'a, ()> + Send + Sync + 'static,
    ) -> (Self, SpyStore<MemoryStore>) {
        let inner = SpyStore::new(MemoryStore::new());
        (Self { inner: inner.clone(), part: Box::new(part) }, inner)
    }
}

impl fmt::Debug for Examined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Examined").finish_non_exhaustive()
    }
}

#[async_trait]
impl Diagnose for Examined {
    async fn diagnose(&self, probe: &Probe) {
        (self.part)(probe).await;
    }
}

#[async_trait]
impl Store for Examined {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        self.inner.create(key, bytes, ttl).await
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        self.inner.load(key).await
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        self.inner.replace(key, bytes, ttl, expected).await
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        self.inner.delete(key, expected).await
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        Some(self)
    }
}

fn sluggish() -> Finding {
    Finding::warning("disk", "The disk is slow.", "Buy a faster one.").about("disk 1")
}

#[tokio::test]
async fn findings_of_stores_own_part_are_in_report() {
    let (store, spy) = Examined::new(|probe| {
        async {
            probe.report(sluggish());
            probe.report(Finding::fine("version", "It is version 3."));
        }
        .boxed()
    });
    let report = sessions(store).check().await;
    assert_eq!(codes(&report), ["version", "disk"], "the store as a whole comes first");
    assert_eq!(report.findings()[1], sluggish());
    assert_eq!(report.level(), Level::Warning);
    assert_eq!(report.first_error(), None);
    assert_eq!(spy.verbs(), [], "only the store's own part of the check sends commands");
}

/// A store's own part of the check can have the verbs tried, on the whole store or on a key that it chooses.
#[tokio::test]
async fn part_of_store_may_have_its_verbs_tried() {
    let inner = SpyStore::new(MemoryStore::new());
    let tried = inner.clone();
    let (store, _) = Examined::new(move |probe| {
        let tried = tried.clone();
        async move {
            probe.report(sluggish());
            probe.try_store(&tried).await;
            let key = probe.key(|key| key.as_str().ends_with('A')).unwrap().unwrap();
            assert!(key.as_str().ends_with('A'));
            probe.try_verbs(&tried, &key, "disk 2").await;
        }
        .boxed()
    });
    let report = sessions(store).check().await;
    assert_eq!(codes(&report), ["round_trip", "commands", "disk", "round_trip", "commands"]);
    let subjects: Vec<_> = report.findings().iter().map(Finding::subject).collect();
    assert_eq!(subjects, ["", "", "disk 1", "disk 2", "disk 2"]);
    assert_eq!(inner.verbs().len(), 2 * TRIAL.len());
}

/// `Arc` and `Box` forward a store's own part of the check.
#[tokio::test]
async fn decorators_forward_part_of_store() {
    let store = || Examined::new(|probe| async { probe.report(sluggish()) }.boxed()).0;
    let arc: Arc<dyn Store> = Arc::new(store());
    let boxed: Box<dyn Store> = Box::new(store());
    let nested: Arc<Box<dyn Store>> = Arc::new(Box::new(store()));
    for sessions in [sessions(arc), sessions(boxed), sessions(nested)] {
        assert_eq!(codes(&sessions.check().await), ["disk"]);
    }
}

/// The application sees a probe's record as an expired session: no cookie opens it, and no request writes to
/// it.
#[tokio::test]
async fn record_of_probe_is_expired_session_that_nobody_can_open() {
    let written = Arc::new(Mutex::new(Vec::new()));
    let keys = written.clone();
    let inner = SpyStore::new(MemoryStore::new());
    let shelf = inner.clone();
    let (store, _) = Examined::new(move |probe| {
        let (keys, shelf) = (keys.clone(), shelf.clone());
        async move {
            for _ in 0..2 {
                let key = probe.key(|_| true).unwrap().unwrap();
                let record = probe.record().unwrap();
                let created = shelf.create(&key, record.clone(), Probe::TTL).await.unwrap();
                assert!(matches!(created, Created::Created(_)));
                keys.lock().unwrap().push((key, record));
            }
        }
        .boxed()
    });
    assert_eq!(sessions(store).check().await.findings(), []);
    let written = std::mem::take(&mut *written.lock().unwrap());
    let [(first, record), (second, other)] = &written[..] else { panic!("{written:?}") };
    assert_ne!(first, second);
    assert_ne!(record[..8], other[..8], "each record has its own write tag");
    assert_eq!(record[8..], other[8..]);

    // This application has the same namespace and epoch.
    let sessions = sessions(inner.clone());
    inner.take();
    for secret in [[0; 16], [0xff; 16]] {
        let id = first.as_str().strip_prefix("shop:7:s:").expect("namespace, epoch, kind");
        let token = [&URL_SAFE_NO_PAD.decode(id).unwrap()[..], &secret].concat();
        let cookie = format!("__Host-id={}", URL_SAFE_NO_PAD.encode(token));
        let looks = async |session: Session| {
            assert_eq!(session.id(), None);
            assert!(!session.is_signed_in());
            session.get(SEED)
        };
        let looked = visit(&sessions, &cookie, looks).await;
        assert_eq!(looked.ok(), None);
        assert_eq!(inner.take().iter().map(|it| it.verb).collect::<Vec<_>>(), [Verb::Load]);
        // A request that stores a value gets a new session.
        let wrote = visit(&sessions, &cookie, async |session| session.insert(SEED, &1)).await;
        let [load, create] = &inner.take()[..] else { panic!("a load and a create") };
        assert_eq!((load.verb, &load.key), (Verb::Load, first));
        assert!(create.verb == Verb::Create && create.key != *first);
        assert!(!wrote.cookie().contains(id));
    }
    assert_eq!(inner.load(first).await.unwrap().unwrap().bytes, *record);

    // The record can be decoded, so it is not reported as corrupt. A request that is using the session finds
    // that the session has ended.
    let cookie = visit(&sessions, "", async |session| session.insert(SEED, &1)).await.cookie();
    let key = inner.take().pop().unwrap().key;
    let reloads = async |session: Session| {
        assert_eq!(session.get(SEED)?, Some(1));
        inner.delete(&key, None).await?;
        inner.create(&key, record.clone(), Probe::TTL).await?;
        let error = session.reload().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Gone, "{error:?}");
        assert_eq!(session.loss(), Some(Loss::Ended));
        Ok(())
    };
    visit(&sessions, &cookie, reloads).await.ok();
}

/// The commands that a check sends to a store without faults.
const TRIAL: [Verb; 10] = [
    Verb::Load,
    Verb::Create,
    Verb::Create,
    Verb::Replace,
    Verb::Replace,
    Verb::Delete,
    Verb::Load,
    Verb::Delete,
    Verb::Replace,
    Verb::Delete,
];

#[tokio::test]
async fn store_without_its_own_part_has_its_verbs_tried() {
    let memory = MemoryStore::new();
    let spy = SpyStore::new(memory.clone());
    let sessions = sessions(spy.clone());
    let report = sessions.check().await;
    assert_eq!(codes(&report), ["round_trip", "commands"]);
    assert_eq!(report.level(), Level::Fine);
    assert_eq!(spy.verbs(), TRIAL);
    assert!(memory.is_empty(), "nothing is left");
    let first = spy.take();
    assert!(first[0].key.as_str().starts_with("shop:7:s:"));
    assert!(first.iter().all(|command| command.key == first[0].key));
    let _ = sessions.check().await;
    assert_ne!(spy.take()[0].key, first[0].key, "each check uses a new key");
}

#[tokio::test]
async fn memory_store_says_that_it_is_not_for_production() {
    let report = sessions(MemoryStore::new()).check().await;
    assert_eq!(report.level(), Level::Warning);
    assert!(codes(&report).contains(&"memory_store") && codes(&report).contains(&"commands"));
}

/// Returns the word that the report uses when a command with this verb fails.
fn participle(verb: Verb) -> &'static str {
    match verb {
        Verb::Load => "read",
        Verb::Create => "created",
        Verb::Replace => "replaced",
        Verb::Delete => "deleted",
    }
}

const FAULTS: [Fault; 8] = [
    Fault::Unavailable,
    Fault::Refused,
    Fault::TooLarge,
    Fault::LoseRequest,
    Fault::LoseAnswer,
    Fault::Hang,
    Fault::HangAfter,
    Fault::Garbage,
];

/// Makes each command of the trial fail in each way. The report must contain an error with the right code and
/// with a message that says what failed.
#[tokio::test(start_paused = true)]
async fn every_fault_of_every_verb_is_an_error_that_names_it() {
    for (place, verb) in TRIAL.into_iter().enumerate() {
        for fault in FAULTS {
            let store = FaultStore::new(SpyStore::new(MemoryStore::new()));
            for earlier in TRIAL[..place].iter().filter(|earlier| **earlier == verb) {
                // A gate that is dropped lets its command pass.
                drop(store.hold(*earlier));
            }
            store.inject(verb, fault);
            let report = bounded(&sessions(store), Duration::from_secs(1)).await;
            let error = first_error(&report);
            let expected = match (fault, verb) {
                (Fault::Hang | Fault::HangAfter, _) => "unanswered",
                (Fault::Garbage, Verb::Load) => "compare",
                _ => "commands",
            };
            let row = format!("{fault:?} at {place}: {report}");
            assert_eq!(error.code(), expected, "{row}");
            let names = match (expected, place) {
                ("compare", 0) => "holds a record",
                _ => participle(verb),
            };
            assert!(error.message().contains(names), "{row}");
            assert!(!error.remedy().is_empty(), "{row}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn store_that_never_answers_is_unanswered_within_twice_the_timeout() {
    for timeout in [Duration::from_millis(10), Duration::from_secs(1), Duration::from_secs(60)] {
        let store = FaultStore::new(MemoryStore::new());
        for verb in Verb::ALL {
            store.fail_always(verb, Fault::Hang);
        }
        let sessions = Sessions::builder(store).timeout(timeout).build().unwrap();
        let report = bounded(&sessions, timeout).await;
        assert_eq!(codes(&report), ["unanswered"]);
        assert_eq!(report.level(), Level::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_part_is_cut_off_and_its_findings_stay() {
    let (store, _) = Examined::new(|_| pending().boxed());
    let report = bounded(&sessions(store), Duration::from_secs(1)).await;
    assert_eq!(codes(&report), ["unanswered"]);

    let (store, _) = Examined::new(|probe| {
        async {
            probe.report(sluggish());
            pending().await
        }
        .boxed()
    });
    let report = bounded(&sessions(store), Duration::from_secs(1)).await;
    assert_eq!(codes(&report), ["unanswered", "disk"]);
    assert_eq!(first_error(&report).subject(), "");
}

/// One of two servers hangs. The report identifies that server and contains the findings about the other one.
#[tokio::test(start_paused = true)]
async fn hanging_part_of_one_server_is_reported_about_that_server() {
    let (store, _) = Examined::new(|probe| {
        async {
            let answers = futures_util::join!(
                probe.part("disk 1", pending::<()>()),
                probe.part("disk 2", async {
                    probe.report(sluggish().about("disk 2"));
                    2
                }),
            );
            assert_eq!(answers, (None, Some(2)));
            probe.report(Finding::fine("version", "It is version 3."));
        }
        .boxed()
    });
    let report = bounded(&sessions(store), Duration::from_secs(1)).await;
    assert_eq!(codes(&report), ["version", "unanswered", "disk"]);
    assert_eq!(first_error(&report).subject(), "disk 1");
}

/// How a [`Flawed`] store breaks its contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    InventsRecord,
    NeverCreates,
    CreatesAgain,
    NeverReplaces,
    ForgetsAfterReplace,
    ForgetsAfterRefusedReplace,
    ReplacesBlindly,
    DeletesBlindly,
    ReadsSomethingElse,
    NeverDeletes,
    OnlySaysThatItDeletes,
    ReplacesWhatIsGone,
    DeletesWhatIsGone,
}

use Flaw::*;

/// A store with at most one flaw, which records the time to live of every record that it is given.
#[derive(Debug, Clone)]
struct Flawed {
    inner: MemoryStore,
    flaw: Option<Flaw>,
    ttls: Arc<Mutex<Vec<Duration>>>,
}

impl Flawed {
    fn new(flaw: Option<Flaw>) -> Self {
        Self { inner: MemoryStore::new(), flaw, ttls: Arc::default() }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

#[async_trait]
impl Store for Flawed {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        self.ttls.lock().unwrap().push(ttl);
        if self.has(NeverCreates) {
            return Ok(Created::Occupied);
        }
        if self.has(CreatesAgain) {
            self.inner.delete(key, None).await?;
        }
        self.inner.create(key, bytes, ttl).await
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        let found = self.inner.load(key).await?;
        if self.has(InventsRecord) {
            return Ok(Some(Stored::new(random_record(64), Version::new(1))));
        }
        let other = |stored: Stored| Stored::new(random_record(64), stored.version);
        Ok(if self.has(ReadsSomethingElse) { found.map(other) } else { found })
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        self.ttls.lock().unwrap().push(ttl);
        if self.has(NeverReplaces) {
            return Ok(Replaced::Conflict(None));
        }
        let current = self.inner.load(key).await?;
        if self.has(ReplacesWhatIsGone) && current.is_none() {
            return Ok(match self.inner.create(key, bytes, ttl).await? {
                Created::Created(version) => Replaced::Replaced(version),
                Created::Occupied => Replaced::Conflict(None),
            });
        }
        let expected = match current {
            Some(current) if self.has(ReplacesBlindly) => current,
            _ => expected.clone(),
        };
        let replaced = self.inner.replace(key, bytes, ttl, &expected).await?;
        let forgets = match &replaced {
            Replaced::Replaced(_) => self.has(ForgetsAfterReplace),
            _ => self.has(ForgetsAfterRefusedReplace),
        };
        if forgets {
            self.inner.delete(key, None).await?;
        }
        Ok(replaced)
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        match self.inner.load(key).await? {
            Some(_) if self.has(NeverDeletes) => Ok(Deleted::Conflict(None)),
            Some(current)
                if self.has(OnlySaysThatItDeletes)
                    && expected.is_none_or(|it| it.version == current.version) =>
            {
                Ok(Deleted::Deleted)
            }
            None if self.has(DeletesWhatIsGone) => Ok(Deleted::Deleted),
            _ if self.has(DeletesBlindly) => self.inner.delete(key, None).await,
            _ => self.inner.delete(key, expected).await,
        }
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        None
    }
}

/// For each way to break the contract, the report says how the store breaks it.
#[tokio::test]
async fn store_that_breaks_compare_and_set_is_told_how() {
    let table = [
        (InventsRecord, "a key that was never used holds a record"),
        (NeverCreates, "a key that holds nothing is occupied"),
        (CreatesAgain, "a record that exists was created again"),
        (NeverReplaces, "an unchanged record was not replaced"),
        (ForgetsAfterReplace, "a record that was written is gone"),
        (ForgetsAfterRefusedReplace, "a record that was written is gone"),
        (ReplacesBlindly, "a record that had changed since it was read was replaced"),
        (DeletesBlindly, "a record that had changed since it was read was deleted"),
        (ReadsSomethingElse, "a record was read back with a different content or version"),
        (NeverDeletes, "an unchanged record was not deleted"),
        (OnlySaysThatItDeletes, "a record that was deleted was replaced"),
        (ReplacesWhatIsGone, "a record that was deleted was replaced"),
        (DeletesWhatIsGone, "a record that was deleted is still there"),
    ];
    for (flaw, what) in table {
        let store = Flawed::new(Some(flaw));
        let report = sessions(store.clone()).check().await;
        assert_eq!(codes(&report), ["compare"], "{flaw:?}: {report}");
        let error = first_error(&report);
        assert_eq!(error.message(), format!("The store breaks its contract: {what}."), "{flaw:?}");
        assert!(error.remedy().contains("compare-and-set"));
        assert_leaves_for_seconds(&store);
    }
    let store = Flawed::new(None);
    assert_eq!(sessions(store.clone()).check().await.level(), Level::Fine);
    assert_leaves_for_seconds(&store);
    assert!(store.inner.is_empty(), "a completed trial leaves nothing");
}

fn assert_leaves_for_seconds(store: &Flawed) {
    let ttls = store.ttls.lock().unwrap();
    let longest = Duration::from_secs(10);
    assert!(ttls.iter().all(|ttl| *ttl > Duration::ZERO && *ttl <= longest), "{ttls:?}");
}

/// A trial that fails halfway leaves a record that expires on its own.
#[tokio::test(start_paused = true)]
async fn what_failed_trial_leaves_expires_within_ten_seconds() {
    for (verb, fault) in [(Verb::Replace, Fault::Refused), (Verb::Delete, Fault::Hang)] {
        let inner = Flawed::new(None);
        let store = FaultStore::new(inner.clone());
        store.fail_always(verb, fault);
        assert_eq!(sessions(store).check().await.level(), Level::Error);
        assert_eq!(inner.inner.len(), 1);
        assert!(!inner.ttls.lock().unwrap().is_empty());
        assert_leaves_for_seconds(&inner);
    }
}

/// A source of randomness that fails after this many uses.
#[derive(Debug)]
struct Ending(AtomicU32);

impl Entropy for Ending {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        let left =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| it.checked_sub(1));
        let left = left.map_err(|_| Error::randomness("it has ended"))?;
        buffer.fill(u8::try_from(left).unwrap());
        Ok(())
    }
}

#[tokio::test]
async fn randomness_that_fails_is_finding() {
    // A trial needs randomness for one key and three records.
    for fills in 0..4 {
        let builder = Sessions::builder(MemoryStore::new()).entropy(Ending(fills.into()));
        let report = builder.build().unwrap().check().await;
        let error = first_error(&report);
        assert_eq!(error.code(), "commands", "{report}");
        assert!(
            error.message().starts_with("Nothing could be tried: the operating system's random"),
            "{report}"
        );
        assert!(error.remedy().contains("operating system"), "{report}");
    }
    let builder = Sessions::builder(SpyStore::new(MemoryStore::new())).entropy(Ending(4.into()));
    assert_eq!(builder.build().unwrap().check().await.level(), Level::Fine);

    let (store, _) = Examined::new(|probe| {
        async {
            let failures = (probe.key(|_| true).unwrap_err(), probe.record().unwrap_err());
            assert_eq!(failures.0.kind(), ErrorKind::Randomness);
            assert_eq!(failures.1.kind(), ErrorKind::Randomness);
            probe.report(sluggish());
        }
        .boxed()
    });
    let sessions = Sessions::builder(store).entropy(FailingEntropy).build().unwrap();
    assert_eq!(codes(&sessions.check().await), ["disk"]);
    assert_eq!(sessions.ping().await.unwrap_err().kind(), ErrorKind::Randomness);
}

#[tokio::test]
async fn report_is_one_line_for_each_finding_and_json() {
    let (store, _) = Examined::new(|probe| {
        async {
            let version = String::from("It is version 3\n\u{1b}[31m4.");
            probe.report(Finding::fine("version", version).about("disk\r1".to_owned()));
            probe.report(Finding::note("hidden", "It is not said.", String::new()));
            probe.report(sluggish());
            probe.report(Finding::error("full", "The disk is full.", "Buy a larger one."));
        }
        .boxed()
    });
    let report = sessions(store).check().await;
    // Findings about one subject are grouped, and the subjects are sorted.
    let expected = "note [hidden]: It is not said.\n\
                    error [full]: The disk is full. Buy a larger one.\n\
                    fine [version] disk 1: It is version 3  [31m4.\n\
                    warning [disk] disk 1: The disk is slow. Buy a faster one.";
    assert_eq!(report.to_string(), expected);
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.starts_with("{\"level\":\"error\",\"findings\":[{\"level\":\"note\","), "{json}");
    let warning = "{\"level\":\"warning\",\"code\":\"disk\",\"subject\":\"disk 1\",\
                   \"message\":\"The disk is slow.\",\"remedy\":\"Buy a faster one.\"}";
    assert!(json.contains(warning), "{json}");
}

#[tokio::test]
async fn ping_is_one_load_of_another_key_each_time() {
    let spy = SpyStore::new(MemoryStore::new());
    let sessions = sessions(spy.clone());
    for _ in 0..3 {
        sessions.ping().await.unwrap();
    }
    assert_eq!(spy.verbs(), [Verb::Load; 3]);
    let keys: Vec<_> = spy.take().into_iter().map(|command| command.key).collect();
    assert!(keys.iter().all(|key| key.as_str().starts_with("shop:7:s:")));
    assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
}

#[tokio::test(start_paused = true)]
async fn ping_fails_as_reads_do_within_timeout() {
    for (fault, kind) in [
        (Fault::Unavailable, ErrorKind::Unavailable),
        (Fault::LoseRequest, ErrorKind::Unavailable),
        (Fault::LoseAnswer, ErrorKind::Unavailable),
        (Fault::Hang, ErrorKind::Unavailable),
        (Fault::HangAfter, ErrorKind::Unavailable),
        (Fault::Refused, ErrorKind::Refused),
    ] {
        let store = FaultStore::new(MemoryStore::new());
        store.fail_always(Verb::Load, fault);
        let sessions = sessions(store.clone());
        let begun = Instant::now();
        let error = sessions.ping().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}");
        assert!(begun.elapsed() <= Duration::from_millis(1002), "{fault:?}");
        store.heal();
        sessions.ping().await.unwrap();
    }
}
