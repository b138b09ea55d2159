//! The clauses of the [`Store`] contract, that is, the rules that every store must follow. Each clause is a
//! function. [`conformance!`](crate::conformance) runs all of them.
//!
//! The list of clauses is not a stable part of the interface: a minor release may add clauses.

#![allow(clippy::expect_used, clippy::panic, reason = "a clause panics if the store violates it")]

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join, join_all, poll_immediate};
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::subject::Subject;
use crate::error::{ErrorKind, Result};
use crate::store::samples::{random_id, random_key, random_record};
use crate::store::{Created, Deleted, Kind, Replaced, Store, StoreKey, Stored, TAG_LEN, Version};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The shortest time to live that every backend can represent exactly.
const SECOND: Duration = Duration::from_secs(1);

/// How long a record may outlive its time to live: a few seconds, because a server's clock may be coarse.
const SLACK: Duration = Duration::from_secs(4);

/// How far a server's clock may lag, because the server updates it only now and then.
const TICK: Duration = Duration::from_millis(50);

/// The number of calls that race each other.
const RACERS: usize = 16;

/// The time limit for one clause. No clause comes close to it, so only a store that hangs exceeds it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs one clause against a new subject. The tests that `conformance!` generates call this function.
#[doc(hidden)]
pub fn run(setup: impl AsyncFnOnce() -> Subject, clause: impl AsyncFnOnce(&Subject)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the clause");
    runtime.block_on(async {
        let subject = setup().await;
        let done = tokio::time::timeout(PATIENCE, clause(&subject)).await;
        assert!(done.is_ok(), "a call ends in bounded time with an answer or an error");
    });
    // A call that blocks its thread must not prevent the test from failing.
    runtime.shutdown_background();
}

/// A key that does not exist is loaded as `None`.
pub async fn missing_key_loads_as_none(subject: &Subject) {
    let loaded = answer(subject.store.load(&random_key()).await);
    assert_eq!(loaded, None, "a key that does not exist is loaded as none");
}

/// A record that was created is loaded with the same bytes and the version that `create` returned.
pub async fn created_record_is_loaded_with_its_bytes_and_version(subject: &Subject) {
    let key = random_key();
    let stored = create(subject, &key, random_record(100), HOUR).await;
    assert_stands(subject, &key, &stored, "a created record is loaded as it was stored").await;
}

/// Creating a key that exists returns [`Created::Occupied`] and changes neither the bytes nor the version.
pub async fn create_of_existing_key_changes_nothing(subject: &Subject) {
    let key = random_key();
    let stored = create(subject, &key, random_record(100), HOUR).await;
    let again = answer(subject.store.create(&key, random_record(50), HOUR).await);
    assert_eq!(again, Created::Occupied, "creating a key that exists returns `Occupied`");
    assert_stands(subject, &key, &stored, "a create that returns `Occupied` changes nothing").await;
}

/// If many calls create the same key concurrently, exactly one of them succeeds, and the key holds that
/// call's record.
pub async fn concurrent_creates_have_exactly_one_winner(subject: &Subject) {
    let key = random_key();
    let records: Vec<_> = (0..RACERS).map(|_| random_record(64)).collect();
    let calls = records.iter().map(|bytes| {
        let (store, key, bytes) = (Arc::clone(&subject.store), key.clone(), bytes.clone());
        async move { store.create(&key, bytes, HOUR).await }
    });
    let answers = race(calls).await;
    let winners: Vec<_> = records
        .into_iter()
        .zip(answers)
        .filter_map(|(bytes, created)| match answer(created) {
            Created::Created(version) => Some(Stored::new(bytes, version)),
            Created::Occupied => None,
        })
        .collect();
    assert_eq!(winners.len(), 1, "of many concurrent creates exactly one create wins");
    assert_stands(subject, &key, &winners[0], "the key holds the record of the create that won")
        .await;
}

/// A `replace` call that expects the current version stores the bytes and gives the key a new version.
pub async fn replace_at_current_version_stores_record(subject: &Subject) {
    let key = random_key();
    let old = create(subject, &key, random_record(100), HOUR).await;
    let new = replace(subject, &key, random_record(200), HOUR, &old).await;
    assert_ne!(
        new.version, old.version,
        "a replace gives the key a version that it has not had before"
    );
    assert_stands(
        subject,
        &key,
        &new,
        "a replace that expects the current version stores its bytes",
    )
    .await;
}

/// The version that a `replace` call returns is the version that the next `replace` call must expect.
pub async fn each_new_version_works_for_next_replace(subject: &Subject) {
    let key = random_key();
    let mut stored = create(subject, &key, random_record(20), HOUR).await;
    let mut seen = HashSet::from([stored.version]);
    for _ in 0..10 {
        stored = replace(subject, &key, random_record(20), HOUR, &stored).await;
        let new = seen.insert(stored.version);
        assert!(new, "every replace gives the key a version that it has not had before");
    }
    assert_stands(
        subject,
        &key,
        &stored,
        "the key holds the record of the last of several replaces",
    )
    .await;
}

/// A `replace` call that expects an old version returns [`Replaced::Conflict`] and changes nothing. If the
/// conflict contains a record, it is the one that the key holds.
pub async fn replace_at_old_version_changes_nothing(subject: &Subject) {
    let key = random_key();
    let old = create(subject, &key, random_record(100), HOUR).await;
    let new = replace(subject, &key, random_record(100), HOUR, &old).await;
    for _ in 0..2 {
        let replaced = subject.store.replace(&key, random_record(100), HOUR, &old).await;
        let Replaced::Conflict(brought) = answer(replaced) else {
            panic!("a replace that expects an old version is a conflict");
        };
        assert_brought(brought.as_ref(), &new);
        assert_stands(subject, &key, &new, "a conflicting replace changes nothing").await;
    }
}

/// Replacing a key that does not exist returns [`Replaced::Missing`] and creates nothing.
pub async fn replace_of_missing_key_creates_nothing(subject: &Subject) {
    let other = create(subject, &random_key(), random_record(20), HOUR).await;
    let key = random_key();
    for expected in [other, never_stored(0), never_stored(1), never_stored(u64::MAX)] {
        let replaced = subject.store.replace(&key, random_record(100), HOUR, &expected).await;
        assert_eq!(answer(replaced), Replaced::Missing, "a replace never creates");
        assert_missing(subject, &key, "a replace never creates").await;
    }
}

/// A `replace` call after the key was deleted returns [`Replaced::Missing`] and does not restore the key.
pub async fn replace_after_delete_resurrects_nothing(subject: &Subject) {
    let key = random_key();
    let stored = create(subject, &key, random_record(100), HOUR).await;
    delete(subject, &key, None).await;
    let replaced = subject.store.replace(&key, random_record(100), HOUR, &stored).await;
    assert_eq!(answer(replaced), Replaced::Missing, "a replace never resurrects a deleted key");
    assert_missing(subject, &key, "a replace never resurrects a deleted key").await;
}

/// If many calls replace the same version concurrently, exactly one of them succeeds. The others return
/// [`Replaced::Conflict`].
pub async fn concurrent_replaces_have_exactly_one_winner(subject: &Subject) {
    let key = random_key();
    let mut stored = create(subject, &key, random_record(64), HOUR).await;
    for _ in 0..5 {
        let records: Vec<_> = (0..RACERS).map(|_| random_record(64)).collect();
        let calls = records.iter().map(|bytes| {
            let (store, key, bytes) = (Arc::clone(&subject.store), key.clone(), bytes.clone());
            let expected = stored.clone();
            async move { store.replace(&key, bytes, HOUR, &expected).await }
        });
        let answers = race(calls).await;
        let mut winners = Vec::new();
        for (bytes, replaced) in records.into_iter().zip(answers) {
            match answer(replaced) {
                Replaced::Replaced(version) => winners.push(Stored::new(bytes, version)),
                Replaced::Conflict(_) => {}
                Replaced::Missing => {
                    panic!("a replace that another replace preceded is a conflict")
                }
            }
        }
        assert_eq!(winners.len(), 1, "of many concurrent replaces exactly one replace wins");
        stored = winners.remove(0);
        assert_stands(subject, &key, &stored, "the key holds the record of the replace that won")
            .await;
    }
}

/// If several writers read, change and replace a record until they succeed, no change is lost.
pub async fn contended_replaces_lose_no_write(subject: &Subject) {
    const WRITERS: usize = 4;
    const WRITES: usize = 10;
    let key = random_key();
    create(subject, &key, counting(0), HOUR).await;
    let calls = (0..WRITERS).map(|_| {
        let (store, key) = (Arc::clone(&subject.store), key.clone());
        async move {
            for _ in 0..WRITES {
                loop {
                    let stored = answer(store.load(&key).await).expect("the record is there");
                    let next = counting(count(&stored.bytes) + 1);
                    match answer(store.replace(&key, next, HOUR, &stored).await) {
                        Replaced::Replaced(_) => break,
                        Replaced::Conflict(_) => {}
                        Replaced::Missing => {
                            panic!("a replace that another replace preceded is a conflict")
                        }
                    }
                }
            }
        }
    });
    race(calls).await;
    let stored = answer(subject.store.load(&key).await).expect("the record is there");
    let total = (WRITERS * WRITES) as u64;
    assert_eq!(count(&stored.bytes), total, "a write that was acknowledged is not lost");
}

/// A `load` that runs concurrently with `replace` calls returns all the bytes of one write, with its version.
pub async fn concurrent_loads_see_whole_writes(subject: &Subject) {
    const READERS: usize = 3;
    let key = random_key();
    let first = create(subject, &key, uniform(0), HOUR).await;
    let writer: BoxFuture<'static, Vec<Stored>> = Box::pin({
        let (store, key, first) = (Arc::clone(&subject.store), key.clone(), first.clone());
        async move {
            let mut written = vec![first];
            for round in 1..=50 {
                let bytes = uniform(round);
                let expected = &written[written.len() - 1];
                match answer(store.replace(&key, bytes.clone(), HOUR, expected).await) {
                    Replaced::Replaced(version) => written.push(Stored::new(bytes, version)),
                    _ => panic!("a replace that expects the current version succeeds"),
                }
            }
            written
        }
    });
    let readers = (0..READERS).map(|_| -> BoxFuture<'static, Vec<Stored>> {
        let (store, key) = (Arc::clone(&subject.store), key.clone());
        Box::pin(async move {
            let mut seen = Vec::new();
            for _ in 0..50 {
                seen.push(answer(store.load(&key).await).expect("the record is there"));
            }
            seen
        })
    });
    let mut all = race(std::iter::once(writer).chain(readers)).await;
    let written = all.remove(0);
    let written: HashMap<_, _> =
        written.into_iter().map(|stored| (stored.version, stored.bytes)).collect();
    for stored in all.into_iter().flatten() {
        let bytes = written.get(&stored.version);
        assert!(bytes == Some(&stored.bytes), "a load returns the complete bytes of its version");
    }
}

/// A `delete` call without an expected record deletes the key, whatever its version.
pub async fn unconditional_delete_deletes_record(subject: &Subject) {
    let key = random_key();
    let stored = create(subject, &key, random_record(100), HOUR).await;
    replace(subject, &key, random_record(100), HOUR, &stored).await;
    delete(subject, &key, None).await;
    assert_missing(subject, &key, "a deleted key is gone").await;
}

/// A `delete` call that expects the current version deletes the key.
pub async fn delete_at_current_version_deletes_record(subject: &Subject) {
    let key = random_key();
    let stored = create(subject, &key, random_record(100), HOUR).await;
    let stored = replace(subject, &key, random_record(100), HOUR, &stored).await;
    delete(subject, &key, Some(&stored)).await;
    assert_missing(subject, &key, "a deleted key is gone").await;
}

/// A `delete` call that expects an old version returns [`Deleted::Conflict`] and changes nothing.
pub async fn delete_at_old_version_changes_nothing(subject: &Subject) {
    let key = random_key();
    let old = create(subject, &key, random_record(100), HOUR).await;
    let new = replace(subject, &key, random_record(100), HOUR, &old).await;
    let Deleted::Conflict(brought) = answer(subject.store.delete(&key, Some(&old)).await) else {
        panic!("a delete that expects an old version is a conflict");
    };
    assert_brought(brought.as_ref(), &new);
    assert_stands(subject, &key, &new, "a conflicting delete changes nothing").await;
}

/// Deleting a key that does not exist returns [`Deleted::Missing`], with and without an expected record.
pub async fn delete_of_missing_key_returns_missing(subject: &Subject) {
    let key = random_key();
    for round in ["never was", "was deleted"] {
        for expected in [None, Some(never_stored(1)), Some(never_stored(u64::MAX))] {
            let deleted = answer(subject.store.delete(&key, expected.as_ref()).await);
            assert_eq!(deleted, Deleted::Missing, "deleting a key that {round} returns `Missing`");
        }
        create(subject, &key, random_record(100), HOUR).await;
        delete(subject, &key, None).await;
    }
}

/// If many calls delete the same key concurrently, exactly one of them succeeds. The others return
/// [`Deleted::Missing`].
pub async fn concurrent_deletes_have_exactly_one_winner(subject: &Subject) {
    for by_version in [true, false] {
        let key = random_key();
        let stored = create(subject, &key, random_record(64), HOUR).await;
        let expected = by_version.then_some(stored);
        let calls = (0..RACERS).map(|_| {
            let (store, key) = (Arc::clone(&subject.store), key.clone());
            let expected = expected.clone();
            async move { store.delete(&key, expected.as_ref()).await }
        });
        let answers: Vec<_> = race(calls).await.into_iter().map(answer).collect();
        let winners = answers.iter().filter(|&deleted| *deleted == Deleted::Deleted).count();
        assert_eq!(winners, 1, "of many concurrent deletes exactly one delete wins");
        let conflicts = answers.iter().any(|deleted| matches!(deleted, Deleted::Conflict(_)));
        assert!(!conflicts, "a delete after another delete returns `Missing`");
        assert_missing(subject, &key, "a deleted key is gone").await;
    }
}

/// If a `delete` call and a `replace` call that expect the same version run concurrently, exactly one of them
/// succeeds, and the key shows the effect of that call.
pub async fn concurrent_delete_and_replace_have_exactly_one_winner(subject: &Subject) {
    for _ in 0..20 {
        let key = random_key();
        let old = create(subject, &key, random_record(64), HOUR).await;
        let bytes = random_record(64);
        let (deleted, replaced) =
            race_delete_and_replace(subject, &key, Some(&old), &bytes, &old).await;
        match (deleted, replaced) {
            (Deleted::Deleted, Replaced::Missing) => {
                assert_missing(subject, &key, "the delete won, so the key is gone").await;
            }
            (Deleted::Conflict(_), Replaced::Replaced(version)) => {
                let new = Stored::new(bytes, version);
                assert_stands(subject, &key, &new, "the replace won, so the key holds its bytes")
                    .await;
            }
            both => {
                panic!("exactly one of a delete and a replace wins, but the results are {both:?}")
            }
        }
    }
}

/// A `delete` call without an expected record succeeds during a concurrent `replace` call, whichever comes
/// first.
pub async fn unconditional_delete_beats_concurrent_replace(subject: &Subject) {
    for _ in 0..20 {
        let key = random_key();
        let old = create(subject, &key, random_record(64), HOUR).await;
        let (deleted, replaced) =
            race_delete_and_replace(subject, &key, None, &random_record(64), &old).await;
        assert_eq!(deleted, Deleted::Deleted, "a delete without a version deletes the key");
        assert!(
            matches!(replaced, Replaced::Replaced(_) | Replaced::Missing),
            "a replace that races a delete comes before it or finds nothing, but the result is {replaced:?}"
        );
        assert_missing(subject, &key, "a replace never resurrects a deleted key").await;
    }
}

/// A key that was deleted and created again has a new version, so an operation on the old record does not affect
/// the new one.
pub async fn version_is_not_reused_after_delete(subject: &Subject) {
    let key = random_key();
    let mut old = Vec::new();
    for _ in 0..3 {
        let first = create(subject, &key, random_record(100), HOUR).await;
        let second = replace(subject, &key, random_record(100), HOUR, &first).await;
        delete(subject, &key, Some(&second)).await;
        old.extend([first, second]);
    }
    let stored = create(subject, &key, random_record(100), HOUR).await;
    for old in old {
        assert_ne!(
            old.version, stored.version,
            "a created key has a version it has not had before"
        );
        let replaced = subject.store.replace(&key, random_record(100), HOUR, &old).await;
        let conflict = matches!(answer(replaced), Replaced::Conflict(_));
        assert!(conflict, "a replace that expects a version from before a delete is a conflict");
        let deleted = answer(subject.store.delete(&key, Some(&old)).await);
        assert!(
            matches!(deleted, Deleted::Conflict(_)),
            "a delete that expects a version from before a delete is a conflict"
        );
    }
    assert_stands(subject, &key, &stored, "conflicts change nothing").await;
}

/// A record is readable until its time to live has passed, but not afterwards.
pub async fn record_is_readable_until_its_ttl_ends(subject: &Subject) {
    let key = random_key();
    let begin = Instant::now();
    create(subject, &key, random_record(100), SECOND).await;
    if let Some(clock) = &subject.clock {
        clock.advance(SECOND - Duration::from_millis(1));
        let there = answer(subject.store.load(&key).await).is_some();
        assert!(there, "a store may keep a key a little longer, but never shorter");
        clock.advance(Duration::from_millis(1));
        assert_missing(subject, &key, "a key is not readable after its time to live").await;
    } else {
        wait_until_gone(subject, &key, SECOND).await;
        let lived = begin.elapsed();
        assert!(
            lived + TICK >= SECOND,
            "a store may keep a key a little longer, but never shorter: it was gone after {lived:?}"
        );
    }
}

/// Every verb treats an expired key as missing, so the key can be created again.
pub async fn expired_key_is_missing_for_every_verb(subject: &Subject) {
    // One key per verb, so that no verb depends on what another verb removed.
    let keys: Vec<_> = (0..5).map(|_| random_key()).collect();
    let mut stored = Vec::new();
    for key in &keys {
        stored.push(create(subject, key, random_record(100), SECOND).await);
    }
    let_expire(subject, SECOND).await;
    let store = &subject.store;
    assert_missing(subject, &keys[0], "a key is not readable after its time to live").await;
    let replaced = store.replace(&keys[1], random_record(100), HOUR, &stored[1]).await;
    assert_eq!(answer(replaced), Replaced::Missing, "an expired key is missing for a replace");
    assert_missing(subject, &keys[1], "a replace never resurrects an expired key").await;
    let deleted = answer(store.delete(&keys[2], Some(&stored[2])).await);
    assert_eq!(
        deleted,
        Deleted::Missing,
        "an expired key is missing for a delete that expects its version"
    );
    let deleted = answer(store.delete(&keys[3], None).await);
    assert_eq!(deleted, Deleted::Missing, "an expired key is missing for a delete");
    let new = create(subject, &keys[4], random_record(100), HOUR).await;
    assert_ne!(new.version, stored[4].version, "a version is not used again after an expiry");
    assert_stands(subject, &keys[4], &new, "an expired key can be created again").await;
}

/// A `replace` call can shorten the time to live.
pub async fn replace_shortens_ttl(subject: &Subject) {
    let key = random_key();
    let stored = create(subject, &key, random_record(100), HOUR).await;
    replace(subject, &key, random_record(100), SECOND, &stored).await;
    let_expire(subject, SECOND).await;
    assert_missing(subject, &key, "a key is not readable after its time to live").await;
}

/// A `replace` call can extend the time to live.
pub async fn replace_extends_ttl(subject: &Subject) {
    let key = random_key();
    let short = SECOND * 2;
    let stored = create(subject, &key, random_record(100), short).await;
    let stored = replace(subject, &key, random_record(100), HOUR, &stored).await;
    let_expire(subject, short).await;
    assert_stands(subject, &key, &stored, "a replace sets the time to live again").await;
}

/// The shortest time to live, one millisecond, is accepted, and the record expires.
pub async fn ttl_of_one_millisecond_expires(subject: &Subject) {
    let ttl = Duration::from_millis(1);
    let (created, replaced) = (random_key(), random_key());
    create(subject, &created, random_record(100), ttl).await;
    let stored = create(subject, &replaced, random_record(100), HOUR).await;
    replace(subject, &replaced, random_record(100), ttl, &stored).await;
    if let Some(clock) = &subject.clock {
        clock.advance(SLACK);
    }
    for key in [&created, &replaced] {
        wait_until_gone(subject, key, ttl).await;
    }
}

/// Records with a time to live of up to 400 days are readable: the backend does not mistake the number for a
/// date. If the subject has a clock, the clause also checks that the time to live is not shortened.
pub async fn records_with_long_ttl_are_readable(subject: &Subject) {
    for days in [1, 29, 30, 31, 40, 365, 400] {
        let ttl = DAY * days;
        let key = random_key();
        let stored = create(subject, &key, random_record(100), ttl).await;
        assert_stands(subject, &key, &stored, "a store never keeps a key shorter").await;
        let stored = replace(subject, &key, random_record(100), ttl, &stored).await;
        if let Some(clock) = &subject.clock {
            clock.advance(ttl - SECOND);
        }
        assert_stands(subject, &key, &stored, "a store never keeps a key shorter").await;
    }
}

/// All byte values are stored unchanged, including line endings, zeros and text that looks like protocol
/// commands.
pub async fn record_bytes_are_stored_unchanged(subject: &Subject) {
    let every_value: Vec<u8> = (0..=255).collect();
    let contents: [&[u8]; 12] = [
        &every_value,
        b"\0",
        b"\r\n",
        b"\r\n\r\nEND\r\n",
        b"END\r\nEN\r\nHD\r\nMN\r\n",
        b"VA 2\r\nno\r\nSERVER_ERROR \r\n",
        b"mg key v\r\nflush_all\r\n",
        b"$-1\r\n-ERR no\r\n_\r\n",
        b"*1\r\n$8\r\nFLUSHALL\r\n",
        b"{\"json\": \"\\u0000\"}",
        &[0xff; 32],
        "snow \u{2603} and \u{1f980}".as_bytes(),
    ];
    for content in contents {
        let key = random_key();
        let stored = create(subject, &key, tagged(content), HOUR).await;
        assert_stands(subject, &key, &stored, "bytes are opaque and binary").await;
        let stored = replace(subject, &key, tagged(content), HOUR, &stored).await;
        assert_stands(subject, &key, &stored, "bytes are opaque and binary").await;
        delete(subject, &key, Some(&stored)).await;
    }
}

/// Records with any length from [`TAG_LEN`] to 64 KiB are returned unchanged.
pub async fn every_length_up_to_64_kib_is_stored(subject: &Subject) {
    let around = |length: usize| [length - 1, length, length + 1];
    let mut lengths: Vec<_> = (TAG_LEN..TAG_LEN + 40).collect();
    lengths.extend([128, 256, 1024, 4096, 8192, 16_384, 32_768].into_iter().flat_map(around));
    lengths.extend([65_535, 65_536]);
    let key = random_key();
    let mut stored = create(subject, &key, random_record(TAG_LEN), HOUR).await;
    for length in lengths {
        stored = replace(subject, &key, random_record(length), HOUR, &stored).await;
        assert_stands(subject, &key, &stored, "every length up to 64 KiB is stored").await;
        let other = random_key();
        let created = create(subject, &other, random_record(length), HOUR).await;
        assert_stands(subject, &other, &created, "every length up to 64 KiB is stored").await;
        delete(subject, &other, None).await;
    }
}

/// A record over the limit is refused and leaves the old record unchanged. This is checked only if
/// [`Subject::max_record`] sets the limit.
pub async fn oversize_record_is_refused_and_old_record_stays(subject: &Subject) {
    let Some(limit) = subject.max_record else { return };
    let (key, fresh) = (random_key(), random_key());
    let stored = create(subject, &key, random_record(limit), HOUR).await;
    let oversize = random_record(limit + 1);
    let created = subject.store.create(&fresh, oversize.clone(), HOUR).await;
    let replaced = subject.store.replace(&key, oversize, HOUR, &stored).await;
    for error in [created.err(), replaced.err()] {
        let kind = error.map(|error| error.kind());
        assert!(
            matches!(kind, Some(ErrorKind::TooLarge | ErrorKind::Refused)),
            "a write over the limit is refused, but the error is {kind:?}"
        );
    }
    assert_missing(subject, &fresh, "a refused create stores nothing").await;
    assert_stands(subject, &key, &stored, "a refused replace keeps the old bytes").await;
    replace(subject, &key, random_record(100), HOUR, &stored).await;
}

/// A session record and a directory record with the same id have different keys.
pub async fn record_kinds_have_separate_keys(subject: &Subject) {
    let id = random_id();
    let [session, directory] =
        [Kind::Session, Kind::Directory].map(|kind| StoreKey::new("conformance:0:", kind, &id));
    let stored = create(subject, &session, random_record(100), HOUR).await;
    let message = "a session and a directory with the same id are different keys";
    assert_missing(subject, &directory, message).await;
    let other = create(subject, &directory, random_record(100), HOUR).await;
    assert_stands(subject, &session, &stored, message).await;
    delete(subject, &session, None).await;
    assert_stands(subject, &directory, &other, message).await;
}

/// Keys of up to 200 printable ASCII characters without spaces are accepted.
pub async fn printable_ascii_keys_of_up_to_200_bytes_are_accepted(subject: &Subject) {
    let printable: String = ('!'..='~').collect();
    let room = 200 - random_key().as_str().len() + "conformance:0:".len();
    for prefix in [printable, "n".repeat(room)] {
        let keys = [(); 2].map(|()| StoreKey::new(&prefix, Kind::Session, &random_id()));
        for key in &keys {
            let message = "keys are printable ASCII of at most 200 bytes";
            assert_missing(subject, key, message).await;
            let stored = create(subject, key, random_record(100), HOUR).await;
            let stored = replace(subject, key, random_record(100), HOUR, &stored).await;
            assert_stands(subject, key, &stored, message).await;
            delete(subject, key, Some(&stored)).await;
        }
    }
}

/// If many calls on many keys run concurrently, each call gets its own answer.
pub async fn concurrent_calls_get_their_own_answers(subject: &Subject) {
    let life = async |length: usize| {
        let key = random_key();
        let message = "every call receives its own answer";
        assert_missing(subject, &key, message).await;
        let stored = create(subject, &key, random_record(length), HOUR).await;
        assert_stands(subject, &key, &stored, message).await;
        let stored = replace(subject, &key, random_record(length), HOUR, &stored).await;
        assert_stands(subject, &key, &stored, message).await;
        delete(subject, &key, Some(&stored)).await;
        assert_missing(subject, &key, message).await;
    };
    join_all((0..200).map(|number| life(TAG_LEN + 37 * number))).await;
}

/// Dropping a call at any point does not affect other calls.
pub async fn cancelled_calls_do_not_disturb_other_calls(subject: &Subject) {
    let message =
        "a dropped call does not affect other calls: no later call ever receives its answer";
    let mut kept = Vec::new();
    for number in 0..4 {
        let key = random_key();
        let stored = create(subject, &key, random_record(50 + 1000 * number), HOUR).await;
        kept.push((key, stored));
    }
    let written = random_key();
    let first = create(subject, &written, random_record(300), HOUR).await;
    let mut attempts = vec![first.bytes];
    for round in 0..60 {
        let polls = round % 6;
        let (key, _) = &kept[round % kept.len()];
        let (fresh, bytes) = (random_key(), random_record(300));
        attempts.push(bytes.clone());
        let current = answer(subject.store.load(&written).await).expect("the record is there");
        let abandoned = async {
            abandon(subject.store.load(key), polls).await;
            abandon(subject.store.replace(&written, bytes, HOUR, &current), polls).await;
            abandon(subject.store.create(&fresh, random_record(300), HOUR), polls).await;
            abandon(subject.store.delete(&fresh, None), polls).await;
        };
        // Some calls run concurrently with the dropped calls, and some run after them.
        let beside = async {
            for (key, stored) in &kept {
                assert_stands(subject, key, stored, message).await;
            }
        };
        join(abandoned, beside).await;
        for (key, stored) in kept.iter().rev() {
            assert_stands(subject, key, stored, message).await;
        }
        let current = answer(subject.store.load(&written).await).expect("the record is there");
        assert!(
            attempts.contains(&current.bytes),
            "a dropped write is applied completely or not at all"
        );
    }
}

/// `Arc<dyn Store>` and `Box<dyn Store>` are stores that forward each verb.
pub async fn store_pointers_forward_every_verb(subject: &Subject) {
    let arc: Arc<dyn Store> = Arc::new(Arc::clone(&subject.store));
    let boxed: Box<dyn Store> = Box::new(Arc::clone(&subject.store));
    for store in [Subject::new(arc), Subject::new(boxed)] {
        let key = random_key();
        let stored = create(&store, &key, random_record(100), HOUR).await;
        let stored = replace(&store, &key, random_record(100), HOUR, &stored).await;
        assert_stands(subject, &key, &stored, "a pointer to a store forwards every verb").await;
        assert_stands(&store, &key, &stored, "a pointer to a store forwards every verb").await;
        delete(&store, &key, Some(&stored)).await;
        assert_missing(subject, &key, "a pointer to a store forwards every verb").await;
    }
}

#[track_caller]
fn answer<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("the store failed without a reason: {error:?}"))
}

async fn create(subject: &Subject, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Stored {
    match answer(subject.store.create(key, bytes.clone(), ttl).await) {
        Created::Created(version) => Stored::new(bytes, version),
        Created::Occupied => panic!("a key that does not exist can be created"),
    }
}

async fn replace(
    subject: &Subject,
    key: &StoreKey,
    bytes: Bytes,
    ttl: Duration,
    expected: &Stored,
) -> Stored {
    match answer(subject.store.replace(key, bytes.clone(), ttl, expected).await) {
        Replaced::Replaced(version) => Stored::new(bytes, version),
        other => panic!(
            "a replace that expects the current version succeeds, but the result is {other:?}"
        ),
    }
}

async fn delete(subject: &Subject, key: &StoreKey, expected: Option<&Stored>) {
    let deleted = answer(subject.store.delete(key, expected).await);
    assert_eq!(
        deleted,
        Deleted::Deleted,
        "a delete that expects the current version, or none, deletes the key"
    );
}

async fn assert_stands(subject: &Subject, key: &StoreKey, stored: &Stored, message: &str) {
    let loaded = answer(subject.store.load(key).await);
    // The message contains only lengths and versions, because the bytes are random.
    assert!(loaded.as_ref() == Some(stored), "{message}: {loaded:?} is not {stored:?}");
}

/// A conflict need not contain a record. If it does, the record must be the one that the key holds.
#[track_caller]
fn assert_brought(brought: Option<&Stored>, standing: &Stored) {
    let is_right = brought.is_none_or(|brought| brought == standing);
    assert!(is_right, "a conflict that returns a record returns the one that the key holds");
}

async fn assert_missing(subject: &Subject, key: &StoreKey, message: &str) {
    let loaded = answer(subject.store.load(key).await);
    assert_eq!(loaded, None, "{message}");
}

/// Polls until the record is gone, and fails if the record outlives `ttl` by too much. The record must have
/// been stored before this call.
async fn wait_until_gone(subject: &Subject, key: &StoreKey, ttl: Duration) {
    let deadline = Instant::now() + ttl + SLACK;
    while answer(subject.store.load(key).await).is_some() {
        let late = subject.clock.is_some() || Instant::now() > deadline;
        assert!(!late, "a key is not readable after its time to live");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until every record that the caller has stored with this `ttl` has expired.
async fn let_expire(subject: &Subject, ttl: Duration) {
    match &subject.clock {
        Some(clock) => clock.advance(ttl),
        None => {
            // This record was stored last, so it is the last on its server to expire. On another server with
            // a coarse clock, the second may end later.
            let key = random_key();
            create(subject, &key, random_record(TAG_LEN), ttl).await;
            wait_until_gone(subject, &key, ttl).await;
            sleep(SECOND).await;
        }
    }
}

/// Starts all calls at once, each on its own thread, so that they overlap on the network and even in a store
/// that never waits.
async fn race<T, F>(calls: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let calls: Vec<_> = calls.into_iter().collect();
    let start = Arc::new(Barrier::new(calls.len()));
    let threads = calls.into_iter().map(|call| {
        let start = Arc::clone(&start);
        tokio::task::spawn_blocking(move || {
            start.wait();
            Handle::current().block_on(call)
        })
    });
    // All calls are started before the first one is awaited.
    let threads: Vec<_> = threads.collect();
    let answers = join_all(threads).await;
    answers.into_iter().map(|answer| answer.expect("a call does not panic")).collect()
}

async fn race_delete_and_replace(
    subject: &Subject,
    key: &StoreKey,
    delete_at: Option<&Stored>,
    bytes: &Bytes,
    replace_at: &Stored,
) -> (Deleted, Replaced) {
    enum Answer {
        Deleted(Deleted),
        Replaced(Replaced),
    }
    let (store, at, expected) = (Arc::clone(&subject.store), key.clone(), delete_at.cloned());
    let delete: BoxFuture<'static, _> =
        Box::pin(
            async move { Answer::Deleted(answer(store.delete(&at, expected.as_ref()).await)) },
        );
    let (store, at, bytes) = (Arc::clone(&subject.store), key.clone(), bytes.clone());
    let expected = replace_at.clone();
    let replace: BoxFuture<'static, _> = Box::pin(async move {
        Answer::Replaced(answer(store.replace(&at, bytes, HOUR, &expected).await))
    });
    match <[Answer; 2]>::try_from(race([delete, replace]).await) {
        Ok([Answer::Deleted(deleted), Answer::Replaced(replaced)]) => (deleted, replaced),
        _ => unreachable!("the answers arrive in the order of the calls"),
    }
}

/// Polls a call a few times, with time for I/O in between, and then drops it.
async fn abandon<F: Future>(call: F, polls: usize) {
    let mut call = pin!(call);
    for poll in 0..polls {
        if poll_immediate(call.as_mut()).await.is_some() {
            return;
        }
        if poll % 2 == 0 {
            tokio::task::yield_now().await;
        } else {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Returns a record with this content after the write tag.
fn tagged(content: &[u8]) -> Bytes {
    let mut bytes = random_record(TAG_LEN).to_vec();
    bytes.extend_from_slice(content);
    bytes.into()
}

/// Returns a record with this version that no store holds.
fn never_stored(version: u64) -> Stored {
    Stored::new(random_record(100), Version::new(version))
}

/// Returns a record that repeats one value, so that a torn record would be noticed.
fn uniform(value: u8) -> Bytes {
    tagged(&[value; 8192])
}

fn counting(count: u64) -> Bytes {
    tagged(&count.to_be_bytes())
}

fn count(record: &[u8]) -> u64 {
    let bytes = record[TAG_LEN..].try_into();
    u64::from_be_bytes(bytes.expect("a record of a count is eight bytes behind its tag"))
}
