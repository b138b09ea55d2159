//! Behaviour that is specific to Redis, on real servers.

#![cfg(all(feature = "redis", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "these are tests")]

mod support;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use support::servers::RedisServer;
use support::{blocked_runtime_delays_no_other_one, runtime};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use unsticky::store::{Created, Deleted, RedisStore, Replaced, Store, StoreKey, Stored, Version};
use unsticky::testing::random_key;
use unsticky::{Error, ErrorKind};

const HOUR: Duration = Duration::from_secs(3600);

fn store(server: &RedisServer) -> RedisStore {
    RedisStore::connect(&server.url()).unwrap()
}

fn record(tag: u8, length: usize) -> Bytes {
    let mut bytes = vec![b'x'; length.max(8)];
    bytes[..8].fill(tag);
    Bytes::from(bytes)
}

async fn create(store: &dyn Store, key: &StoreKey, bytes: &Bytes) -> Stored {
    match store.create(key, bytes.clone(), HOUR).await.unwrap() {
        Created::Created(version) => Stored::new(bytes.clone(), version),
        Created::Occupied => panic!("occupied"),
    }
}

/// Replaces a record, which must succeed. Returns the new record.
async fn replace(store: &dyn Store, key: &StoreKey, bytes: &Bytes, expected: &Stored) -> Stored {
    match store.replace(key, bytes.clone(), HOUR, expected).await.unwrap() {
        Replaced::Replaced(version) => Stored::new(bytes.clone(), version),
        other => panic!("{other:?}"),
    }
}

fn never_stored() -> Stored {
    Stored::new(record(0, 8), Version::new(0))
}

async fn bytes_at(store: &RedisStore, key: &StoreKey) -> Option<Bytes> {
    store.load(key).await.unwrap().map(|stored| stored.bytes)
}

fn everything(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&format!(" {error} {error:?}"));
        source = error.source();
    }
    text
}

#[tokio::test]
async fn conflict_returns_current_record() {
    let server = RedisServer::start();
    let store = store(&server);
    let key = random_key();
    let (one, two, three) = (record(1, 100), record(2, 200), record(3, 300));

    let first = create(&store, &key, &one).await;
    assert_eq!(store.create(&key, two.clone(), HOUR).await.unwrap(), Created::Occupied);
    let second = replace(&store, &key, &two, &first).await;
    assert_eq!(store.load(&key).await.unwrap().as_ref(), Some(&second));

    let before = server.calls("get");
    let conflict = store.replace(&key, three.clone(), HOUR, &first).await.unwrap();
    assert_eq!(conflict, Replaced::Conflict(Some(second.clone())));
    // Only the script sends a GET.
    assert_eq!(server.calls("get"), before + 1);

    let conflict = store.delete(&key, Some(&first)).await.unwrap();
    assert_eq!(conflict, Deleted::Conflict(Some(second.clone())));
    assert_eq!(store.delete(&key, Some(&second)).await.unwrap(), Deleted::Deleted);
    assert_eq!(store.delete(&key, Some(&second)).await.unwrap(), Deleted::Missing);
    assert_eq!(store.delete(&key, None).await.unwrap(), Deleted::Missing);
    assert_eq!(store.replace(&key, three, HOUR, &second).await.unwrap(), Replaced::Missing);
    assert_eq!(server.cli(&["DBSIZE"]), "0");
}

#[tokio::test]
async fn foreign_bytes_are_read_and_never_overwritten() {
    let server = RedisServer::start();
    let store = store(&server);
    for garbage in ["", "ab", "ab\0\0\0\0\0\0"] {
        let key = random_key();
        server.cli(&["SET", key.as_str(), garbage]);
        let stored = store.load(&key).await.unwrap().unwrap();
        assert_eq!(stored.bytes, garbage);
        assert_eq!(store.create(&key, record(1, 8), HOUR).await.unwrap(), Created::Occupied);
        if garbage.len() < 8 {
            let outcome = store.replace(&key, record(1, 8), HOUR, &stored).await.unwrap();
            assert_eq!(outcome, Replaced::Conflict(Some(stored.clone())));
            let outcome = store.delete(&key, Some(&stored)).await.unwrap();
            assert_eq!(outcome, Deleted::Conflict(Some(stored)));
        }
        assert_eq!(bytes_at(&store, &key).await.unwrap(), garbage);
    }
    let list = random_key();
    server.cli(&["LPUSH", list.as_str(), "x"]);
    assert_eq!(store.load(&list).await.unwrap_err().kind(), ErrorKind::Refused);
    let outcome = store.replace(&list, record(1, 8), HOUR, &never_stored()).await;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(server.cli(&["TYPE", list.as_str()]), "list");
}

#[tokio::test]
async fn server_expires_record_and_replace_resets_ttl() {
    let server = RedisServer::start();
    let store = store(&server);
    let (short, long) = (random_key(), random_key());
    let brief = Duration::from_millis(150);
    store.create(&short, record(1, 8), brief).await.unwrap();
    store.create(&long, record(1, 8), brief).await.unwrap();
    let stored = store.load(&long).await.unwrap().unwrap();
    replace(&store, &long, &record(2, 8), &stored).await;
    let left: u64 = server.cli(&["PTTL", long.as_str()]).parse().unwrap();
    assert!((3_590_000..=3_600_000).contains(&left), "{left}");

    let begun = Instant::now();
    while store.load(&short).await.unwrap().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert!(store.load(&long).await.unwrap().is_some());

    let capped = random_key();
    store.create(&capped, record(1, 8), Duration::MAX).await.unwrap();
    let left: u64 = server.cli(&["TTL", capped.as_str()]).parse().unwrap();
    assert!((315_359_990..=315_360_000).contains(&left), "{left}");
}

#[tokio::test]
async fn full_server_refuses_write_and_keeps_old_record() {
    let server = RedisServer::start();
    let store = store(&server);
    let key = random_key();
    let old = record(1, 100);
    let stored = create(&store, &key, &old).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);

    let refused = [
        store.create(&random_key(), record(2, 100), HOUR).await.unwrap_err(),
        store.replace(&key, record(2, 100), HOUR, &stored).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        assert!(everything(&error).contains("OOM"), "{error:?}");
    }
    assert_eq!(bytes_at(&store, &key).await.unwrap(), old);
    assert_eq!(server.cli(&["DBSIZE"]), "1");

    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let outcome = store.replace(&key, record(2, 100), HOUR, &stored).await.unwrap();
    assert!(matches!(outcome, Replaced::Replaced(_)), "{outcome:?}");
}

#[tokio::test]
async fn write_refused_by_replica_makes_store_reconnect() {
    let server = RedisServer::start();
    let store = store(&server);
    let key = random_key();
    let old = record(1, 100);
    let stored = create(&store, &key, &old).await;
    // No server listens on this master's port, so the data does not change.
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);

    let before = connections(&server);
    let refused = [
        store.create(&random_key(), record(2, 100), HOUR).await.unwrap_err(),
        store.replace(&key, record(2, 100), HOUR, &stored).await.unwrap_err(),
        store.delete(&key, Some(&stored)).await.unwrap_err(),
        store.delete(&key, None).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        assert!(everything(&error).contains("READONLY"), "{error:?}");
    }
    assert_eq!(bytes_at(&store, &key).await.unwrap(), old);
    // After each refusal, the next command opens a new connection. Each write is sent twice, because
    // the name may by now lead to a different server. The first write already had a connection, and the
    // load at the end opens its own.
    assert_eq!(connections(&server), before + 1 + 4 * 2);

    server.cli(&["REPLICAOF", "NO", "ONE"]);
    let outcome = store.replace(&key, record(2, 100), HOUR, &stored).await.unwrap();
    assert!(matches!(outcome, Replaced::Replaced(_)), "{outcome:?}");
}

#[tokio::test]
async fn flushed_script_cache_costs_one_extra_command() {
    let server = RedisServer::start();
    let store = store(&server);
    let key = random_key();
    let mut stored = create(&store, &key, &record(1, 100)).await;
    for round in 2..6 {
        server.cli(&["SCRIPT", "FLUSH"]);
        stored = replace(&store, &key, &record(round, 100), &stored).await;
    }
    assert_eq!(server.calls("eval"), 4);
    let last = replace(&store, &key, &record(9, 100), &stored).await;
    assert_eq!(server.calls("eval"), 4);
    server.cli(&["SCRIPT", "FLUSH"]);
    let conflict = store.delete(&key, Some(&stored)).await.unwrap();
    assert_eq!(conflict, Deleted::Conflict(Some(last)));
}

#[tokio::test]
async fn first_command_after_server_restart_succeeds() {
    let mut server = RedisServer::start();
    let store = store(&server);
    let key = random_key();
    create(&store, &key, &record(1, 100)).await;

    server.stop();
    for _ in 0..100 {
        let begun = Instant::now();
        let error = store.load(&key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(begun.elapsed() < Duration::from_millis(300));
    }
    // No part of the write can have been sent, so its outcome is not in doubt.
    let error = store.create(&random_key(), record(2, 8), HOUR).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    server.restart();
    assert_eq!(bytes_at(&store, &key).await, None);
    create(&store, &key, &record(3, 100)).await;
}

#[tokio::test]
async fn server_started_after_application_is_found() {
    let mut server = RedisServer::start();
    server.stop();
    let store = store(&server);
    let key = random_key();
    let error = store.load(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(everything(&error).contains(&server.port().to_string()), "{error:?}");
    server.restart();
    create(&store, &key, &record(1, 100)).await;
}

#[tokio::test]
async fn connection_closed_while_idle_causes_no_failure() {
    let server = RedisServer::start();
    let store = store(&server);
    let key = random_key();
    let mut stored = create(&store, &key, &record(0, 100)).await;
    for round in 1..50 {
        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        // The store has not yet been notified that the connection is closed.
        tokio::time::sleep(Duration::from_millis(20)).await;
        store.load(&key).await.unwrap().unwrap();
        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        tokio::time::sleep(Duration::from_millis(20)).await;
        stored = replace(&store, &key, &record(round, 100), &stored).await;
    }
}

#[tokio::test]
async fn applied_write_on_broken_connection_is_not_reported_unavailable() {
    let server = RedisServer::start();
    let store = Arc::new(store(&server));
    let mut unknown = 0;
    // Whether a write is in progress when its connection breaks is a matter of chance, so the rounds
    // continue until one was.
    for round in 0..500 {
        if round >= 20 && unknown > 0 {
            break;
        }
        let writes = (0..50u8).map(|_| {
            let (store, key) = (Arc::clone(&store), random_key());
            tokio::spawn(async move {
                let outcome = store.create(&key, record(7, 20_000), HOUR).await;
                (key, outcome)
            })
        });
        let writes: Vec<_> = writes.collect();
        tokio::task::yield_now().await;
        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        for write in writes {
            let (key, outcome) = write.await.unwrap();
            let there = server.cli(&["EXISTS", key.as_str()]) == "1";
            match outcome {
                Ok(_) => assert!(there),
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => unknown += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                    assert!(!there, "{error:?}");
                }
            }
        }
        // The store may not yet have been notified that the connection is closed.
        while store.load(&random_key()).await.is_err() {}
    }
    assert!(unknown > 0, "no write was on its way when its connection broke");
}

#[tokio::test]
async fn hanging_server_returns_errors_in_time_and_recovers() {
    let server = RedisServer::start();
    let store = store(&server);
    let key = random_key();
    let stored = create(&store, &key, &record(1, 100)).await;

    server.pause();
    let begun = Instant::now();
    let error = store.replace(&key, record(2, 100), HOUR, &stored).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}");
    assert!(begun.elapsed() < Duration::from_millis(800), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let loads: Vec<_> = (0..1000)
        .map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { store.load(&key).await })
        })
        .collect();
    for load in loads {
        assert_eq!(load.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    }
    // The commands waited at the same time, not one after the other.
    assert!(begun.elapsed() < Duration::from_millis(1200), "{:?}", begun.elapsed());

    server.resume();
    let begun = Instant::now();
    while store.load(&key).await.is_err() {}
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn slow_answer_is_waited_for_as_long_as_configured() {
    let server = RedisServer::start();
    let builder = RedisStore::builder(&server.url()).unwrap();
    let store = builder.response_timeout(Duration::from_secs(5)).build().unwrap();
    let key = random_key();
    create(&store, &key, &record(1, 100)).await;
    let before = connections(&server);
    server.cli(&["CLIENT", "PAUSE", "700"]);
    assert!(store.load(&key).await.unwrap().is_some());
    // One connection for each of the two administrative commands, and no other: the late answer causes
    // none.
    assert_eq!(connections(&server), before + 2);
}

#[tokio::test]
async fn commands_over_waiting_limit_are_refused_at_once() {
    let server = RedisServer::start();
    let store = RedisStore::builder(&server.url()).unwrap().max_waiting(4).build().unwrap();
    let key = random_key();
    assert!(store.load(&key).await.unwrap().is_none());
    server.pause();
    let begun = Instant::now();
    let loads = (0..20).map(|_| async {
        let error = store.load(&key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        (begun.elapsed() < Duration::from_millis(100)).then(|| format!("{error:?}"))
    });
    let refused: Vec<_> = join_all(loads).await.into_iter().flatten().collect();
    assert_eq!(refused.len(), 16, "{refused:?}");
    assert!(refused.iter().all(|error| error.contains("too many")), "{refused:?}");
    server.resume();
    assert!(store.load(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn early_cancelled_call_still_replaces_silent_connection() {
    let server = RedisServer::start();
    let store = store(&server);
    let key = random_key();
    create(&store, &key, &record(1, 100)).await;
    let before = connections(&server);
    server.pause();
    let waited = tokio::time::timeout(Duration::from_millis(150), store.load(&key)).await;
    assert!(waited.is_err());
    server.resume();
    store.load(&key).await.unwrap().unwrap();
    // One connection for this query, and one to replace the silent connection.
    assert_eq!(connections(&server), before + 1 + 1);

    // A caller that gives up immediately does not cause a new connection.
    for _ in 0..100 {
        let _ = tokio::time::timeout(Duration::from_micros(1), store.load(&key)).await;
    }
    store.load(&key).await.unwrap().unwrap();
    // Allows a few connections, because the silent periods may add up on a slow machine.
    assert!(connections(&server) <= before + 8);
}

#[tokio::test]
async fn repeated_early_cancellations_replace_silent_connection() {
    let accepted = Arc::new(AtomicUsize::new(0));
    let port = fake(&accepted, |connection, verb| match (connection, verb) {
        // The first connection falls silent once it is established.
        (0, "GET") => None,
        _ => Some("$-1\r\n"),
    })
    .await;
    let store = RedisStore::connect(&format!("redis://127.0.0.1:{port}/")).unwrap();
    let patience = Duration::from_millis(45);
    let mut failed = 0;
    while tokio::time::timeout(patience, store.load(&random_key())).await.is_err() {
        failed += 1;
        assert!(failed < 10, "the connection is not replaced");
    }
    assert!(failed >= 2, "a connection was replaced that had been silent for {patience:?} only");
    assert_eq!(accepted.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn cancelled_command_is_not_sent_completely() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = RedisStore::connect(&format!("redis://{}/", listener.local_addr().unwrap()));
    let (store, key, length) = (store.unwrap(), random_key(), 32 << 20);
    // The server reads nothing until the store has given up.
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"+OK\r\n+OK\r\n").await.unwrap();
        stream
    };
    let (create, mut stream) = join(store.create(&key, record(1, length), HOUR), server).await;
    assert_eq!(create.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    let mut sent = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut sent)).await;
    assert!(ended.is_ok() && sent.len() < length, "{ended:?} after {}", sent.len());
}

#[tokio::test]
async fn closing_silent_connection_leaves_newer_connection_open() {
    let accepted = Arc::new(AtomicUsize::new(0));
    let port = fake(&accepted, |connection, _| (connection > 0).then_some("$-1\r\n")).await;
    let store = RedisStore::connect(&format!("redis://127.0.0.1:{port}/")).unwrap();
    let key = random_key();
    // The first caller abandons the connection on which the second is still waiting.
    let first = async {
        assert!(store.load(&key).await.is_err());
        store.load(&key).await.unwrap();
    };
    let second = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        store.load(&key).await
    };
    let ((), second) = join(first, second).await;
    assert_eq!(second.unwrap_err().kind(), ErrorKind::Unavailable);
    tokio::task::yield_now().await;
    store.load(&key).await.unwrap();
    assert_eq!(accepted.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn error_names_server_that_never_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    let patience = Duration::from_millis(60);
    let store = RedisStore::builder(&url).unwrap().connect_timeout(patience).build().unwrap();
    let error = store.load(&random_key()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let text = everything(&error);
    assert!(text.contains("no answer to the greeting in 60ms"), "{text}");
}

#[tokio::test]
async fn first_write_after_failover_succeeds() {
    const SCRIPT_ANSWER: &str = ":1\r\n";
    for verb in ["SET", "EVALSHA", "DEL"] {
        let accepted = Arc::new(AtomicUsize::new(0));
        let port = fake(&accepted, move |connection, said| match (connection, said) {
            (0, said) if said == verb => Some("-READONLY You can't write against a replica\r\n"),
            (1, "SET") => Some("+OK\r\n"),
            (1, _) => Some(SCRIPT_ANSWER),
            _ => Some("-ERR unexpected\r\n"),
        })
        .await;
        let store = RedisStore::connect(&format!("redis://127.0.0.1:{port}/")).unwrap();
        let key = random_key();
        let done = match verb {
            "SET" => store.create(&key, record(1, 8), HOUR).await.map(drop),
            "DEL" => store.delete(&key, None).await.map(drop),
            _ => store.replace(&key, record(1, 8), HOUR, &never_stored()).await.map(drop),
        };
        assert!(done.is_ok(), "{verb}: {done:?}");
        assert_eq!(accepted.load(Ordering::Relaxed), 2, "{verb}");
    }
}

/// Starts a server without keys, which answers each verb with the next of the answers for that verb, or
/// with the last one. Also returns the verbs that it receives.
async fn scripted(answers: &'static [(&str, &[&str])]) -> (RedisStore, Arc<Mutex<Vec<String>>>) {
    let sent: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = sent.clone();
    let port = fake(&Arc::default(), move |_, verb| {
        if verb == "GET" {
            return Some("$-1\r\n");
        }
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|sent| *sent == verb).count();
        log.push(verb.to_owned());
        let (_, answers) = answers.iter().find(|(of, _)| *of == verb)?;
        answers.get(before).or(answers.last()).copied()
    })
    .await;
    (RedisStore::connect(&format!("redis://127.0.0.1:{port}/")).unwrap(), sent)
}

/// Waits until the store knows what the server supports. Returns the number of verbs that were sent by
/// then.
async fn tried_out(store: &RedisStore, sent: &Mutex<Vec<String>>) -> usize {
    let key = random_key();
    let begun = Instant::now();
    let is_sent = |verb: &str| sent.lock().unwrap().iter().any(|sent| sent == verb);
    let _ = store.replace(&key, record(1, 8), HOUR, &never_stored()).await;
    while !(is_sent("DELEX") && is_sent("EVALSHA")) {
        assert!(begun.elapsed() < Duration::from_secs(5), "the server was not probed");
        store.load(&key).await.unwrap();
    }
    // Answers arrive in the order of the commands, so the answers to the probes have arrived too.
    store.load(&key).await.unwrap();
    sent.lock().unwrap().len()
}

const UNKNOWN: &str = "-ERR unknown command, with args beginning with: 'x'\r\n";
const FULL: &str = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";

#[tokio::test]
async fn server_that_ignores_native_comparison_is_sent_script() {
    let (store, sent) = scripted(&[
        ("SET", &["+OK\r\n"]),
        ("DELIFEQ", &[":1\r\n"]),
        ("DELEX", &[":1\r\n"]),
        ("EVALSHA", &[":1\r\n"]),
    ])
    .await;
    let trial = tried_out(&store, &sent).await;
    let key = random_key();
    replace(&store, &key, &record(1, 8), &never_stored()).await;
    let deleted = store.delete(&key, Some(&never_stored())).await.unwrap();
    assert_eq!(deleted, Deleted::Deleted);
    assert_eq!(sent.lock().unwrap()[trial..], ["EVALSHA", "EVALSHA"]);
}

/// A proxy may switch to an older server on the same connection.
#[tokio::test]
async fn server_replaced_by_older_version_is_sent_script() {
    let (store, sent) = scripted(&[
        ("SET", &["$-1\r\n", "+OK\r\n", "-ERR syntax error\r\n"]),
        ("DELIFEQ", &[":0\r\n", ":1\r\n", UNKNOWN]),
        ("DELEX", &[UNKNOWN]),
        ("EVALSHA", &[":1\r\n"]),
    ])
    .await;
    let trial = tried_out(&store, &sent).await;
    let key = random_key();
    for _ in 0..3 {
        replace(&store, &key, &record(1, 8), &never_stored()).await;
        let deleted = store.delete(&key, Some(&never_stored())).await.unwrap();
        assert_eq!(deleted, Deleted::Deleted);
    }
    let native = ["SET", "DELIFEQ"];
    let refused = ["SET", "EVALSHA", "DELIFEQ", "EVALSHA"];
    let script = ["EVALSHA", "EVALSHA"];
    assert_eq!(sent.lock().unwrap()[trial..], [&native[..], &refused, &script].concat());
}

#[tokio::test]
async fn full_server_is_sent_native_comparison_again_later() {
    let (store, sent) = scripted(&[
        ("SET", &["$-1\r\n", FULL, "+OK\r\n"]),
        ("DELIFEQ", &[":0\r\n"]),
        ("DELEX", &[UNKNOWN]),
        ("EVALSHA", &[":1\r\n"]),
    ])
    .await;
    let trial = tried_out(&store, &sent).await;
    let key = random_key();
    for _ in 0..2 {
        replace(&store, &key, &record(1, 8), &never_stored()).await;
    }
    assert_eq!(sent.lock().unwrap()[trial..], ["SET", "EVALSHA", "SET"]);
}

#[tokio::test]
async fn server_that_is_full_when_probed_is_probed_again() {
    let (store, sent) = scripted(&[
        ("SET", &[FULL, "$-1\r\n", "+OK\r\n"]),
        ("DELIFEQ", &[":0\r\n"]),
        ("DELEX", &[UNKNOWN]),
        ("EVALSHA", &[":1\r\n"]),
    ])
    .await;
    tried_out(&store, &sent).await;
    let again = tried_out(&store, &sent).await;
    replace(&store, &random_key(), &record(1, 8), &never_stored()).await;
    assert_eq!(sent.lock().unwrap()[again..], ["SET"]);
    assert_eq!(sent.lock().unwrap().iter().filter(|verb| *verb == "DELEX").count(), 2);
}

/// Some proxies close the connection on an unknown command.
#[tokio::test]
async fn server_that_closes_connection_when_probed_is_sent_script() {
    let accepted = Arc::default();
    let port = fake(&accepted, |_, verb| match verb {
        "EVALSHA" => Some(":1\r\n"),
        "GET" => Some("$-1\r\n"),
        _ => Some(HANG_UP),
    })
    .await;
    let store = RedisStore::connect(&format!("redis://127.0.0.1:{port}/")).unwrap();
    let key = random_key();
    for _ in 0..20 {
        // A command sent together with the probe is lost when the connection closes.
        let _ = store.replace(&key, record(1, 8), HOUR, &never_stored()).await;
        while store.load(&key).await.is_err() {}
    }
    for _ in 0..20 {
        replace(&store, &key, &record(1, 8), &never_stored()).await;
    }
    assert!(accepted.load(Ordering::Relaxed) <= 3, "{accepted:?}");
}

/// A caller may hold its future without polling it while the server is probed.
#[tokio::test]
async fn no_command_waits_for_probe() {
    let (store, sent) = scripted(&[
        ("SET", &["$-1\r\n"]),
        ("DELIFEQ", &[":0\r\n"]),
        ("DELEX", &[UNKNOWN]),
        ("EVALSHA", &[":1\r\n"]),
    ])
    .await;
    let (key, expected) = (random_key(), never_stored());
    let mut kept = Box::pin(store.replace(&key, record(1, 8), HOUR, &expected));
    while sent.lock().unwrap().is_empty() {
        let _ = futures_util::poll!(&mut kept);
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        let (key, record) = (random_key(), record(1, 8));
        let replaced = replace(&store, &key, &record, &expected);
        tokio::time::timeout(Duration::from_secs(5), replaced).await.unwrap();
    }
    kept.await.unwrap();
}

#[tokio::test]
async fn any_time_limit_is_accepted() {
    let server = RedisServer::start();
    for limit in [Duration::MAX, Duration::from_secs(u64::MAX / 2)] {
        let store = RedisStore::builder(&server.url()).unwrap();
        let store = store.connect_timeout(limit).response_timeout(limit).build().unwrap();
        let key = random_key();
        let stored = create(&store, &key, &record(1, 8)).await;
        replace(&store, &key, &record(2, 8), &stored).await;
        assert!(store.load(&key).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn in_doubt_write_is_sent_once() {
    let (store, sent) = scripted(&[
        ("SET", &["-UPSTREAM failure\r\n"]),
        ("DEL", &["-UPSTREAM failure\r\n"]),
        ("DELIFEQ", &[UNKNOWN]),
        ("DELEX", &[UNKNOWN]),
        ("EVALSHA", &[":1\r\n", "-UPSTREAM failure\r\n"]),
    ])
    .await;
    let trial = tried_out(&store, &sent).await;
    let key = random_key();
    for error in [
        store.create(&key, record(1, 8), HOUR).await.unwrap_err(),
        store.delete(&key, None).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}");
    }
    assert_eq!(sent.lock().unwrap()[trial..], ["SET", "DEL"]);
    let error = store.replace(&key, record(1, 8), HOUR, &never_stored()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}");
    let scripts = sent.lock().unwrap().iter().filter(|verb| *verb == "EVALSHA").count();
    assert_eq!(scripts, 2);
}

#[tokio::test]
async fn lost_answer_to_native_comparison_is_in_doubt_and_not_repeated() {
    let (store, sent) = scripted(&[
        ("SET", &["$-1\r\n", "-UPSTREAM failure\r\n"]),
        ("DELIFEQ", &[":0\r\n", "-UPSTREAM failure\r\n"]),
        ("DELEX", &[UNKNOWN]),
        ("EVALSHA", &[":1\r\n"]),
    ])
    .await;
    let trial = tried_out(&store, &sent).await;
    let key = random_key();
    for error in [
        store.replace(&key, record(1, 8), HOUR, &never_stored()).await.unwrap_err(),
        store.delete(&key, Some(&never_stored())).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}");
    }
    assert_eq!(sent.lock().unwrap()[trial..], ["SET", "DELIFEQ"]);
}

#[tokio::test]
async fn unrecognized_error_answer_leaves_write_in_doubt() {
    for (answer, read, written) in [
        (
            "-ERR upstream connection lost after the request was sent\r\n",
            ErrorKind::Refused,
            ErrorKind::OutcomeUnknown,
        ),
        ("-UPSTREAM failure\r\n", ErrorKind::Refused, ErrorKind::OutcomeUnknown),
        ("-MISCONF no disk\r\n", ErrorKind::Refused, ErrorKind::Refused),
        ("-NOREPLICAS Not enough\r\n", ErrorKind::Refused, ErrorKind::Refused),
        ("-CLUSTERDOWN The cluster\r\n", ErrorKind::Unavailable, ErrorKind::Unavailable),
    ] {
        let port = fake(&Arc::default(), move |_, _| Some(answer)).await;
        let store = RedisStore::connect(&format!("redis://127.0.0.1:{port}/")).unwrap();
        let key = random_key();
        assert_eq!(store.load(&key).await.unwrap_err().kind(), read, "{answer}");
        for error in [
            store.create(&key, record(1, 8), HOUR).await.unwrap_err(),
            store.replace(&key, record(1, 8), HOUR, &never_stored()).await.unwrap_err(),
            store.delete(&key, None).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), written, "{answer}");
        }
    }
}

/// Stands for closing the connection instead of answering.
const HANG_UP: &str = "hang up";

/// Starts a server that accepts every greeting, and then answers each verb on each connection as
/// `answer` decides. Connections are numbered from 0.
async fn fake(
    accepted: &Arc<AtomicUsize>,
    answer: impl Fn(usize, &str) -> Option<&'static str> + Clone + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::clone(accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = accepted.fetch_add(1, Ordering::Relaxed);
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                while let Ok(verb) = command(&mut stream).await {
                    let answer = match verb.as_str() {
                        "CLIENT" => Some("+OK\r\n"),
                        verb => answer(connection, verb),
                    };
                    if answer == Some(HANG_UP) {
                        return;
                    }
                    stream.write_all(answer.unwrap_or_default().as_bytes()).await.unwrap();
                }
            });
        }
    });
    port
}

/// Reads a command and returns its verb.
async fn command(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    async fn number(stream: &mut BufReader<TcpStream>) -> io::Result<usize> {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let number = line.get(1..).and_then(|number| number.trim_end().parse().ok());
        number.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
    let mut words = Vec::new();
    for _ in 0..number(stream).await? {
        let mut word = vec![0; number(stream).await? + 2];
        stream.read_exact(&mut word).await?;
        words.push(word);
    }
    let verb = words.first().map(|verb| String::from_utf8_lossy(verb).trim_end().to_owned());
    Ok(verb.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_load_never_returns_record_of_another_key() {
    let server = RedisServer::start();
    let store = store(&server);
    let mut keys = Vec::new();
    for tag in 0..16u8 {
        let key = random_key();
        create(&store, &key, &record(tag, 100 + usize::from(tag) * 1000)).await;
        keys.push(key);
    }
    let keys = Arc::new(keys);
    let tasks: Vec<_> = (0..32usize)
        .map(|task| {
            let (store, keys) = (store.clone(), Arc::clone(&keys));
            tokio::spawn(async move {
                let mut answered = 0;
                for round in 0..500usize {
                    let at = (task * 7 + round) % keys.len();
                    let limit = Duration::from_micros((round % 40) as u64 * 50);
                    let load = tokio::time::timeout(limit, store.load(&keys[at])).await;
                    if let Ok(stored) = load {
                        let stored = stored.unwrap().unwrap();
                        assert_eq!(usize::from(stored.bytes[0]), at);
                        assert_eq!(stored.bytes.len(), 100 + at * 1000);
                        answered += 1;
                    }
                }
                answered
            })
        })
        .collect();
    let mut answered = 0;
    for task in tasks {
        answered += task.await.unwrap();
    }
    assert!(answered > 0);
    println!("{answered} of 16000 loads were answered");
}

#[test]
fn store_outlives_runtime_it_was_used_on() {
    let server = RedisServer::start();
    let store = store(&server);
    let key = random_key();
    for round in 0..5 {
        let runtime = runtime();
        runtime.block_on(async {
            if round == 0 {
                create(&store, &key, &record(1, 100)).await;
            }
            store.load(&key).await.unwrap().unwrap();
        });
    }
    // This runtime still exists, but no thread is running it.
    let idle = runtime();
    idle.block_on(async { store.load(&key).await.unwrap().unwrap() });
    let other = runtime();
    other.block_on(async { store.load(&key).await.unwrap().unwrap() });
}

#[test]
fn blocked_runtime_does_not_delay_another_runtime() {
    let server = RedisServer::start();
    blocked_runtime_delays_no_other_one(store(&server), 1);
}

#[tokio::test]
async fn wrong_password_error_shows_no_credentials() {
    let server = RedisServer::start_with(&["--requirepass", "hunter2"]);
    let key = random_key();
    create(&store(&server), &key, &record(1, 100)).await;

    let port = server.port();
    for url in [
        format!("redis://:sesame7@127.0.0.1:{port}/"),
        format!("redis://somebody9:sesame7@127.0.0.1:{port}/"),
        format!("redis://somebody9:sesame7@127.0.0.1:{port}/?protocol=resp3"),
        format!("redis://127.0.0.1:{port}/"),
    ] {
        let store = RedisStore::connect(&url).unwrap();
        for error in [
            store.load(&key).await.unwrap_err(),
            store.create(&key, record(2, 8), HOUR).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            let text = format!("{} {store:?}", everything(&error));
            for secret in ["sesame7", "somebody9", "hunter2"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
    }
    assert_eq!(bytes_at(&store(&server), &key).await.unwrap(), record(1, 100));
}

#[tokio::test]
async fn store_works_over_unix_socket_and_resp3() {
    let socket = std::env::temp_dir().join(format!("unsticky-{}.sock", std::process::id()));
    let socket = socket.to_str().unwrap();
    let server = RedisServer::start_with(&["--unixsocket", socket]);
    for url in [
        format!("redis+unix://{socket}"),
        format!("unix://{socket}?db=3"),
        format!("{}?protocol=resp3", server.url()),
    ] {
        let store = unsticky::store::connect(&url).unwrap();
        let key = random_key();
        let stored = create(&store, &key, &record(1, 8)).await;
        let conflict = store.replace(&key, record(2, 8), HOUR, &never_stored()).await.unwrap();
        assert_eq!(conflict, Replaced::Conflict(Some(stored.clone())));
        assert_eq!(store.delete(&key, Some(&stored)).await.unwrap(), Deleted::Deleted);
        assert_eq!(store.delete(&key, Some(&stored)).await.unwrap(), Deleted::Missing);
        let missing = store.replace(&key, record(2, 8), HOUR, &stored).await.unwrap();
        assert_eq!(missing, Replaced::Missing);
        assert!(store.load(&key).await.unwrap().is_none());
    }
    let _ = std::fs::remove_file(socket);
}

#[tokio::test]
async fn store_works_on_connection_of_application() {
    let mut server = RedisServer::start();
    let client = unsticky::redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let store = RedisStore::from_connection(connection);
    let key = random_key();
    let stored = create(&store, &key, &record(1, 100)).await;
    let replaced = store.replace(&key, record(2, 100), HOUR, &stored).await.unwrap();
    assert!(matches!(replaced, Replaced::Replaced(_)));
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = store.create(&random_key(), record(2, 100), HOUR).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");

    server.stop();
    assert_eq!(store.load(&key).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let error = store.delete(&key, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}");
}

/// Returns the number of connections that the server has ever accepted. Each call adds one.
fn connections(server: &RedisServer) -> u64 {
    let stats = server.cli(&["INFO", "stats"]);
    let total = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    total.unwrap().trim().parse().unwrap()
}
