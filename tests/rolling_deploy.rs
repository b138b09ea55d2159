//! Records written by a different version: an earlier one, or a later one that runs at the same time.
//!
//! `tests/fixtures/records` and `tests/fixtures/directories` hold what each released version writes. A
//! change to what is written needs a new version: run the test once with `UNSTICKY_WRITE_FIXTURES` set,
//! and commit the new files in addition to the old ones.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use support::stand::{Backend, Stand, on_every_store};
use unsticky::store::{Store as _, StoreKey};
use unsticky::testing::Verb;
use unsticky::{
    Clock as _, ConcurrentSessions, DirectoryMode, Entropy, ErrorKind, Key, Level, Lifetime,
    Persistence, Result, Session, SignIn,
};

const CART: Key<Vec<u32>> = Key::new("cart").survives_sign_in();
const NAME: Key<String> = Key::new("name");

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A time limit for `end_by` that is before the idle timeout.
const END: Duration = Duration::from_secs(20 * 60);

const KINDS: [&str; 9] = [
    "anonymous",
    "signed in",
    "many writes",
    "remembered",
    "browser session",
    "end by",
    "flash messages",
    "csrf token",
    "first cookie not seen yet",
];

/// A record as it is kept in a file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Fixture {
    name: String,
    cookie: String,
    record: String,
    /// A CSRF token for the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
}

impl Fixture {
    fn bytes(&self) -> Vec<u8> {
        STANDARD.decode(&self.record).unwrap()
    }
}

/// Entropy that counts instead of drawing random bytes, so that the same records are written each time.
#[derive(Debug, Default)]
struct Counted(AtomicU64);

impl Entropy for Counted {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        for chunk in bytes.chunks_mut(8) {
            let number = self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
        Ok(())
    }
}

/// A directory, and the session that it lists.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Listed {
    name: String,
    cookie: String,
    session: String,
    directory: String,
}

fn fixtures(kind: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", kind].iter().collect()
}

/// Returns the fixtures of every version, each with the name of its file.
fn of_all_versions<T: DeserializeOwned>(kind: &str) -> Vec<(String, T)> {
    let files = fs::read_dir(fixtures(kind)).unwrap().map(|file| file.unwrap().path());
    let fixtures: Vec<_> = files
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.display().to_string(), serde_json::from_str(&text).unwrap())
        })
        .collect();
    assert!(!fixtures.is_empty());
    fixtures
}

/// Returns one session of each kind, as this version writes it.
async fn of_this_version() -> Vec<Fixture> {
    // A directory would use some of the counted entropy.
    let plain = Backend::memory()
        .stand_with(|builder| builder.entropy(Counted::default()).directory(DirectoryMode::Off));
    let rejecting = Backend::memory().stand_with(|builder| {
        let policy = ConcurrentSessions::Reject(2);
        builder.entropy(Counted::default()).concurrent_sessions(policy)
    });
    let end = plain.clock.now() + END;
    let mut fixtures = Vec::new();
    for name in KINDS {
        // Whether a sign-in's cookie has been used is recorded only if a limit refuses sign-ins.
        let stand = if name == "first cookie not seen yet" { &rejecting } else { &plain };
        let arrive = async |session: Session| {
            session.insert(CART, &vec![1, 2, 3])?;
            session.insert(NAME, &"Ünïcode \"quoted\"".to_owned())?;
            match name {
                "anonymous" => {}
                "remembered" => {
                    session.sign_in("alice")?;
                    session.set_lifetime(Lifetime::new(100 * HOUR, 1000 * HOUR));
                }
                "browser session" => {
                    session.sign_in("alice")?;
                    session.set_lifetime(Lifetime::default().browser_session());
                }
                "end by" => {
                    session.sign_in("alice")?;
                    session.end_by(end);
                }
                "flash messages" => {
                    session.sign_in("alice")?;
                    session.flash(Level::Success, "Ünïcode \"quoted\"")?;
                    session.flash(Level::Error, "second")?;
                }
                _ => session.sign_in("alice")?,
            }
            Ok(())
        };
        let mut cookie = stand.visit("", arrive).await.cookie();
        let mut csrf_token = None;
        if name == "csrf token" {
            let page = async |session: Session| session.csrf_token().await;
            csrf_token = Some(stand.visit(&cookie, page).await.ok().to_string());
        }
        if name == "many writes" {
            for number in 0..20 {
                stand.clock.advance(Duration::from_secs(1));
                let write = async |session: Session| {
                    session.rotate();
                    session.insert(CART, &vec![1, 2, 3, number])
                };
                cookie = stand.visit(&cookie, write).await.cookie();
            }
            let write = async |session: Session| session.insert(CART, &vec![1, 2, 3]);
            stand.visit(&cookie, write).await.ok();
        }
        let mut stored = Bytes::new();
        for command in stand.spy.commands() {
            let bytes = stand.stored(&command.key).await;
            // Skips the directory record.
            if bytes[9] == b's' {
                stored = bytes;
            }
        }
        let record = STANDARD.encode(stored);
        fixtures.push(Fixture { name: name.to_owned(), cookie, record, csrf_token });
    }
    fixtures
}

const LABEL: &str = "téléphone";

/// Returns Alice's directories, each of which lists one session.
async fn listed_by_this_version() -> Vec<Listed> {
    let mut all = Vec::new();
    for name in ["after all were revoked", "incomplete", "with a revoked session"] {
        let stand = Backend::memory().stand_with(|builder| builder.entropy(Counted::default()));
        // If the directory was missing, there may be live sessions that it does not list.
        let first = if name == "incomplete" { String::new() } else { stand.sign_in("").await };
        if name != "with a revoked session" {
            stand.sessions.of("alice").revoke_all().await.unwrap();
        }
        let arrive =
            async |session: Session| session.sign_in_with(SignIn::new("alice").label(LABEL));
        let cookie = stand.visit("", arrive).await.cookie();
        let key = key(&stand, &cookie).await;
        let directory_key = stand.directory_key("alice").await;
        let alice = stand.sessions.of("alice");
        let mut interrupted = None;
        if name == "with a revoked session" {
            let id = async |session: Session| Ok(session.id().unwrap());
            let id = stand.visit(&first, id).await.ok();
            let (gate, revocation) = stand.held(Verb::Delete, alice.revoke(id)).await;
            interrupted = Some((gate, revocation));
        }
        let [session, directory] = [&key, &directory_key].map(|key| stand.stored(key));
        let [session, directory] = [session.await, directory.await].map(|it| STANDARD.encode(it));
        all.push(Listed { name: name.to_owned(), cookie, session, directory });
        drop(interrupted);
    }
    all
}

#[tokio::test]
async fn current_version_writes_records_equal_to_fixtures() {
    kept("records", of_this_version().await);
    kept("directories", listed_by_this_version().await);
}

fn kept<T: PartialEq + std::fmt::Debug + Serialize + DeserializeOwned>(kind: &str, written: T) {
    let version = env!("CARGO_PKG_VERSION");
    let path = fixtures(kind).join(format!("{version}.json"));
    if std::env::var_os("UNSTICKY_WRITE_FIXTURES").is_some() {
        let text = serde_json::to_string_pretty(&written).unwrap();
        fs::write(&path, text + "\n").unwrap();
    }
    let text = fs::read_to_string(&path).expect("records of this version");
    let kept: T = serde_json::from_str(&text).unwrap();
    assert_eq!(written, kept, "{kind} of version {version} have changed without a new version");
}

/// Returns the key of this session's record. The load must be the request's last command.
async fn key(stand: &Stand, cookie: &str) -> StoreKey {
    let command = stand.commands_of_a_load(cookie).await.pop().unwrap();
    assert_eq!(command.verb, Verb::Load);
    command.key
}

async fn put(stand: &Stand, cookie: &str, bytes: Vec<u8>) -> StoreKey {
    let key = key(stand, cookie).await;
    assert_eq!(stand.spy.load(&key).await.unwrap(), None);
    stand.put(&key, bytes).await;
    key
}

async fn records_of_every_version_are_read_and_changed(on: Backend) {
    for (file, fixtures) in of_all_versions::<Vec<Fixture>>("records") {
        for fixture in fixtures {
            let name = &fixture.name;
            let namespace = namespace(&format!("{file}{name}"));
            let stand = on.stand_with(|builder| builder.namespace(namespace));
            put(&stand, &fixture.cookie, fixture.bytes()).await;
            let read = async |session: Session| {
                let who = session.principal().map(|who| who.to_string());
                let is_since = session.authenticated_at().is_some();
                let end = session.expires_at();
                if let Some(token) = &fixture.csrf_token {
                    session.verify_csrf_token(token)?;
                }
                let values = (session.get(CART)?, session.get(NAME)?);
                Ok((who, is_since, values, session.flashes().await?, end))
            };
            let (who, is_since, found, flashes, end) =
                stand.visit(&fixture.cookie, read).await.ok();
            let expected = (name != "anonymous").then(|| "alice".to_owned());
            assert_eq!((&who, is_since), (&expected, expected.is_some()), "{file}: {name}");
            let values = (Some(vec![1, 2, 3]), Some("Ünïcode \"quoted\"".to_owned()));
            assert_eq!(found, values, "{file}: {name}");
            let mut messages = Vec::new();
            if name == "flash messages" {
                messages = vec![(Level::Success, "Ünïcode \"quoted\""), (Level::Error, "second")];
            }
            let flashes = flashes.iter().map(|flash| (flash.level, &*flash.text));
            assert!(flashes.eq(messages), "{file}: {name}");
            let is_at_end = end == Some(stand.clock.now() + END);
            assert_eq!(is_at_end, name == "end by", "{file}: {name}");

            let change = async |session: Session| {
                session.update(CART, |cart| cart.push(4))?;
                session.rotate();
                Ok(())
            };
            let changed = stand.visit(&fixture.cookie, change).await;
            assert_eq!(changed.failure(), None, "{file}: {name}");
            let has_max_age = changed.set_cookie.as_deref().unwrap().contains("Max-Age");
            let persistence = match name.as_str() {
                "browser session" => Persistence::BrowserSession,
                _ => Persistence::Persistent,
            };
            assert_eq!(has_max_age, persistence == Persistence::Persistent, "{file}: {name}");
            let cart = async |session: Session| session.get(CART);
            let cart = stand.visit(&changed.cookie(), cart).await.ok();
            assert_eq!(cart, Some(vec![1, 2, 3, 4]), "{file}: {name}");
        }
    }
}

async fn directories_of_every_version_are_read_and_changed(on: Backend) {
    for (file, all) in of_all_versions::<Vec<Listed>>("directories") {
        for listed in all {
            let stand = on.stand_with(|builder| {
                builder.namespace(namespace(&format!("{file}{}", listed.name)))
            });
            let name = &listed.name;
            put(&stand, &listed.cookie, STANDARD.decode(&listed.session).unwrap()).await;
            let bytes = Bytes::from(STANDARD.decode(&listed.directory).unwrap());
            stand.spy.create(&stand.directory_key("alice").await, bytes, HOUR).await.unwrap();
            let labels = async || {
                let list = stand.sessions.of("alice").list().await.unwrap();
                list.into_iter()
                    .map(|one| one.label.map(|label| label.to_string()))
                    .collect::<Vec<_>>()
            };
            let label = Some(LABEL.to_owned());
            assert_eq!(labels().await, std::slice::from_ref(&label), "{file}: {name}");
            stand.sign_in("").await;
            assert_eq!(labels().await, [None, label], "{file}: {name}");
            let revoked = stand.sessions.of("alice").revoke_all().await.unwrap();
            assert_eq!(
                (revoked.count, revoked.complete),
                (2, name != "incomplete"),
                "{file}: {name}"
            );
            assert_eq!(stand.who(&listed.cookie).await, None, "{file}: {name}");
        }
    }
}

fn namespace(file: &str) -> String {
    let letters = file.bytes().rev().take(60).map(char::from);
    letters.filter(|letter| letter.is_ascii_alphanumeric()).collect()
}

/// A later version runs at the same time and has written a field that this version does not know.
async fn unknown_fields_of_later_version_survive(on: Backend) {
    const UNKNOWN: &[u8] = &[90, 5, b'l', b'a', b't', b'e', b'r'];
    let later: Key<String> = Key::new("of-a-later-version");
    let stand = on.stand();
    let fixture = of_this_version().await.remove(1);
    let key = put(&stand, &fixture.cookie, [&fixture.bytes()[..], UNKNOWN].concat()).await;
    let holds_unknown = async |key: &StoreKey| {
        stand.stored(key).await.windows(UNKNOWN.len()).any(|field| field == UNKNOWN)
    };
    let insert = async |session: Session| session.insert(later, &"kept".to_owned());
    stand.visit(&fixture.cookie, insert).await.ok();
    assert!(holds_unknown(&key).await);
    let remove = async |session: Session| {
        session.remove(NAME);
        session.rotate();
        Ok(())
    };
    let rotated = stand.visit(&fixture.cookie, remove).await.cookie();
    assert!(holds_unknown(&key).await);
    // Extends the session, which writes the record again.
    stand.clock.advance(Duration::from_secs(10 * 60));
    let before = stand.stored(&key).await;
    stand.visit(&rotated, async |_| Ok(())).await.ok();
    assert_ne!(stand.stored(&key).await, before);
    assert!(holds_unknown(&key).await);
    let read = async |session: Session| session.get(later);
    assert_eq!(stand.visit(&rotated, read).await.ok().as_deref(), Some("kept"));
}

/// This version would misread such a record, so it leaves the record unchanged, whatever the request
/// does.
async fn record_in_newer_format_returns_error_and_is_kept(on: Backend) {
    let stand = on.stand();
    let fixture = of_this_version().await.remove(1);
    let mut bytes = fixture.bytes();
    bytes[8] += 1;
    let key = put(&stand, &fixture.cookie, bytes.clone()).await;
    let deeds: [fn(&Session) -> Result<()>; 4] = [
        |session| session.get(CART).map(drop),
        |session| session.insert(CART, &Vec::new()),
        |session| session.sign_in("bob"),
        |session| {
            session.sign_out();
            Ok(())
        },
    ];
    for deed in deeds {
        let visit = stand.visit(&fixture.cookie, async |session: Session| deed(&session)).await;
        assert_eq!((visit.failure(), visit.set_cookie), (Some(ErrorKind::NewerFormat), None));
        assert_eq!(visit.output.unwrap_err().status(), 503);
    }
    assert_eq!(stand.stored(&key).await, bytes);
}

on_every_store! {
    records_of_every_version_are_read_and_changed,
    directories_of_every_version_are_read_and_changed,
    unknown_fields_of_later_version_survive,
    record_in_newer_format_returns_error_and_is_kept,
}
