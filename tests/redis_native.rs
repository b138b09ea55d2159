//! The store uses the server's own compare-and-set if there is one, and the script otherwise.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use unsticky::store::{Created, Deleted, RedisStore, Replaced, Store, StoreKey, Stored};
use unsticky::testing::{random_key, random_record};

use self::support::proxy::Proxy;
use self::support::servers::RedisServer;

const HOUR: Duration = Duration::from_secs(3600);

async fn created(store: &RedisStore, key: &StoreKey, size: usize) -> Stored {
    let bytes = random_record(size);
    match store.create(key, bytes.clone(), HOUR).await.unwrap() {
        Created::Created(version) => Stored::new(bytes, version),
        Created::Occupied => panic!("{key} is occupied"),
    }
}

async fn replaced(store: &RedisStore, key: &StoreKey, expected: &Stored, size: usize) -> Stored {
    let bytes = random_record(size);
    match store.replace(key, bytes.clone(), HOUR, expected).await.unwrap() {
        Replaced::Replaced(version) => Stored::new(bytes, version),
        other => panic!("{other:?}"),
    }
}

/// Returns the number of scripts that the server has run.
fn scripts(server: &RedisServer) -> u64 {
    server.calls("evalsha") + server.calls("eval")
}

/// Waits until the store knows that the server supports compare-and-set.
async fn compares(server: &RedisServer, store: &RedisStore) {
    let (begun, key) = (Instant::now(), random_key());
    let mut stored = created(store, &key, 100).await;
    loop {
        let before = scripts(server);
        stored = replaced(store, &key, &stored, 100).await;
        if scripts(server) == before {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "the server does not compare");
    }
    assert_eq!(store.delete(&key, None).await.unwrap(), Deleted::Deleted);
}

/// Waits until this many connections have found that the server does not support compare-and-set.
async fn does_not_compare(server: &RedisServer, connections: u64) {
    let begun = Instant::now();
    while server.failures("set") < connections {
        assert!(begun.elapsed() < Duration::from_secs(5), "the server was not probed");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.failures("set"), connections);
}

/// Waits until the store has noticed that its connection is closed, and has opened a new one.
async fn is_connected(store: &RedisStore) {
    let begun = Instant::now();
    while store.load(&random_key()).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "there is no connection");
    }
}

async fn every_outcome_is_right(store: &RedisStore, size: usize) {
    let key = random_key();
    let first = created(store, &key, size).await;
    let second = replaced(store, &key, &first, size).await;
    assert_eq!(store.load(&key).await.unwrap().as_ref(), Some(&second));
    let conflict = store.replace(&key, random_record(size), HOUR, &first).await.unwrap();
    assert_eq!(conflict, Replaced::Conflict(Some(second.clone())));
    let conflict = store.delete(&key, Some(&first)).await.unwrap();
    assert_eq!(conflict, Deleted::Conflict(Some(second.clone())));
    assert_eq!(store.load(&key).await.unwrap().as_ref(), Some(&second));
    assert_eq!(store.delete(&key, Some(&second)).await.unwrap(), Deleted::Deleted);
    assert_eq!(store.delete(&key, Some(&second)).await.unwrap(), Deleted::Missing);
    let missing = store.replace(&key, random_record(size), HOUR, &second).await.unwrap();
    assert_eq!(missing, Replaced::Missing);
}

#[tokio::test]
async fn server_without_native_comparison_is_probed_once_per_connection() {
    let server = RedisServer::start();
    let store = RedisStore::connect(&server.url()).unwrap();
    let keys: Vec<_> = (0..64).map(|_| random_key()).collect();
    join_all(keys.iter().map(|key| created(&store, key, 100))).await;
    for connection in 1..4 {
        join_all(keys.iter().map(async |key| {
            let stored = store.load(key).await.unwrap().unwrap();
            replaced(&store, key, &stored, 100).await;
        }))
        .await;
        does_not_compare(&server, connection).await;
        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        is_connected(&store).await;
    }
    every_outcome_is_right(&store, 100).await;
    assert!(scripts(&server) > 64 * 3);
    // The probes left no keys behind.
    assert_eq!(server.cli(&["DBSIZE"]), "64");
}

/// On a server with native compare-and-set, successful writes use it. `delete` is the server's command
/// for a conditional delete.
async fn server_with_native_comparison_is_sent_no_script(server: &RedisServer, delete: &str) {
    let store = RedisStore::connect(&server.url()).unwrap();
    compares(server, &store).await;
    let counts = || (scripts(server), server.calls("set"), server.calls(delete));
    let (ran, set, deleted) = counts();
    let key = random_key();
    let stored = created(&store, &key, 1000).await;
    let stored = replaced(&store, &key, &stored, 1000).await;
    let left: u64 = server.cli(&["PTTL", key.as_str()]).parse().unwrap();
    assert!((3_590_000..=3_600_000).contains(&left), "{left}");
    assert_eq!(store.delete(&key, Some(&stored)).await.unwrap(), Deleted::Deleted);
    assert_eq!(counts(), (ran, set + 2, deleted + 1));
    every_outcome_is_right(&store, 1000).await;
    // For every outcome other than success, the script decides: twice for a replace and twice for a
    // delete. The script for deletes is sent once more, because the server does not know it at first.
    assert_eq!(scripts(server) - ran, 2 + 2 + 1);
    // A decorator may pass on bytes other than those that are stored, so the version decides.
    let stored = created(&store, &key, 1000).await;
    let mut other = stored.bytes.to_vec();
    other.truncate(500);
    let expected = Stored::new(other.into(), stored.version);
    let stored = replaced(&store, &key, &expected, 1000).await;
    let expected = Stored::new(random_record(1000), stored.version);
    assert_eq!(store.delete(&key, Some(&expected)).await.unwrap(), Deleted::Deleted);
    assert_eq!(server.cli(&["DBSIZE"]), "0");

    server.cli(&["SET", key.as_str(), "foreign"]);
    let foreign = store.load(&key).await.unwrap().unwrap();
    let outcome = store.replace(&key, random_record(8), HOUR, &foreign).await.unwrap();
    assert_eq!(outcome, Replaced::Conflict(Some(foreign.clone())));
    let outcome = store.delete(&key, Some(&foreign)).await.unwrap();
    assert_eq!(outcome, Deleted::Conflict(Some(foreign)));
}

/// Comparing a long record would cost more than running the script.
async fn long_records_are_changed_by_script(server: &RedisServer) {
    let store = RedisStore::connect(&server.url()).unwrap();
    compares(server, &store).await;
    let (ran, set) = (scripts(server), server.calls("set"));
    every_outcome_is_right(&store, 50_000).await;
    assert_eq!(server.calls("set"), set + 1 + 1, "one SET by the create, one by the script");
    assert!(scripts(server) > ran + 6);
}

/// The user may be restricted to keys with one prefix, and to some commands.
async fn permissions_decide_between_comparison_and_script(server: &RedisServer, delete: &str) {
    let user = |commands: &str| {
        let commands: Vec<_> = commands.split(' ').collect();
        let user = ["ACL", "SETUSER", "app", "reset", "on", ">pass", "~conformance:*", "-@all"];
        server.cli(&[&user[..], &commands].concat());
        let store = RedisStore::connect(&format!("redis://app:pass@127.0.0.1:{}/", server.port()));
        store.unwrap()
    };
    let needed = "+get +set +del +getrange +eval +evalsha";
    let store = user(&format!("{needed} +{delete}"));
    compares(server, &store).await;
    let (ran, deleted) = (scripts(server), server.calls(delete));
    let key = random_key();
    let stored = created(&store, &key, 100).await;
    assert_eq!(store.delete(&key, Some(&stored)).await.unwrap(), Deleted::Deleted);
    assert_eq!((scripts(server), server.calls(delete)), (ran, deleted + 1));
    every_outcome_is_right(&store, 100).await;

    // The user loses the permission for the command, on a connection that has used it.
    server.cli(&["ACL", "SETUSER", "app", &format!("-{delete}")]);
    let refused = server.failures(delete);
    every_outcome_is_right(&store, 100).await;
    every_outcome_is_right(&store, 100).await;
    assert_eq!(server.failures(delete), refused + 1, "it is forgotten on this connection");
    let store = user(needed);
    every_outcome_is_right(&store, 100).await;
}

/// After a failover, the name may lead to an older server; after an upgrade, to a newer one.
async fn server_behind_sentinel_name_is_probed_again(newer: &RedisServer) {
    let older = RedisServer::start();
    let proxy = Proxy::start(older.port()).await;
    let store = RedisStore::connect(&format!("redis://127.0.0.1:{}/", proxy.port())).unwrap();
    every_outcome_is_right(&store, 100).await;
    does_not_compare(&older, 1).await;
    for server in [newer, &older, newer] {
        proxy.lead_to(server.port());
        proxy.cut();
        is_connected(&store).await;
        if server.port() == older.port() {
            every_outcome_is_right(&store, 100).await;
            does_not_compare(server, 2).await;
        } else {
            compares(server, &store).await;
        }
        let (before, key) = (scripts(server), random_key());
        let stored = created(&store, &key, 100).await;
        let stored = replaced(&store, &key, &stored, 100).await;
        assert_eq!(store.delete(&key, Some(&stored)).await.unwrap(), Deleted::Deleted);
        let by_script = if server.port() == older.port() { 2 } else { 0 };
        assert_eq!(scripts(server) - before, by_script);
        every_outcome_is_right(&store, 100).await;
    }
}

/// Two hundred concurrent changes to one record: each is applied exactly once.
async fn concurrent_changes_are_all_kept(server: &RedisServer) {
    let key = random_key();
    let store = RedisStore::connect(&server.url()).unwrap();
    store.create(&key, counting(0), HOUR).await.unwrap();
    let changes = (0..200).map(|_| {
        let (store, key) = (store.clone(), key.clone());
        tokio::spawn(async move {
            loop {
                let stored = store.load(&key).await.unwrap().unwrap();
                let next = counting(count(&stored.bytes) + 1);
                match store.replace(&key, next, HOUR, &stored).await.unwrap() {
                    Replaced::Replaced(_) => return,
                    Replaced::Conflict(_) => {}
                    Replaced::Missing => panic!("the record is gone"),
                }
            }
        })
    });
    for change in changes.collect::<Vec<_>>() {
        change.await.unwrap();
    }
    let stored = store.load(&key).await.unwrap().unwrap();
    assert_eq!(count(&stored.bytes), 200);
}

fn counting(count: u64) -> Bytes {
    [&random_record(8)[..], &count.to_be_bytes()].concat().into()
}

fn count(record: &[u8]) -> u64 {
    u64::from_be_bytes(record[8..].try_into().unwrap())
}

macro_rules! on_newer_server {
    ($name:ident: $server:ty, $delete:literal) => {
        mod $name {
            #[tokio::test]
            async fn server_with_native_comparison_is_sent_no_script() {
                super::server_with_native_comparison_is_sent_no_script(
                    &<$server>::start(),
                    $delete,
                )
                .await;
            }

            #[tokio::test]
            async fn long_records_are_changed_by_script() {
                super::long_records_are_changed_by_script(&<$server>::start()).await;
            }

            #[tokio::test]
            async fn permissions_decide_between_comparison_and_script() {
                let server = <$server>::start();
                super::permissions_decide_between_comparison_and_script(&server, $delete).await;
            }

            #[tokio::test]
            async fn server_behind_sentinel_name_is_probed_again() {
                super::server_behind_sentinel_name_is_probed_again(&<$server>::start()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn concurrent_changes_are_all_kept() {
                super::concurrent_changes_are_all_kept(&<$server>::start()).await;
            }
        }
    };
}

on_newer_server!(valkey: crate::support::servers::ValkeyServer, "delifeq");
on_newer_server!(redis84: crate::support::servers::Redis84Server, "delex");
