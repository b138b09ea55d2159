//! Special cases of the connection through Redis Sentinel, on real servers, or with scripted Sentinels
//! where no real one behaves as needed.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::fake::{Fake, list};
use support::servers::RedisServer;
use support::topologies::{MASTER, SentinelSet, eventually};
use tokio::time::sleep;
use unsticky::store::{Created, RedisStore, Store};
use unsticky::testing::{random_key, random_record};
use unsticky::{Error, ErrorKind, Result};

const HOUR: Duration = Duration::from_secs(3600);

fn url(sentinels: &[u16]) -> String {
    let sentinels: Vec<_> = sentinels.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redis+sentinel://{}/{MASTER}", sentinels.join(","))
}

fn store(url: &str) -> RedisStore {
    RedisStore::connect(url).unwrap()
}

async fn create(store: &dyn Store) -> Result<()> {
    let created = store.create(&random_key(), random_record(100), HOUR).await?;
    assert!(matches!(created, Created::Created(_)), "{created:?}");
    Ok(())
}

/// Returns the error with its cause.
fn all(error: &Error) -> String {
    let source = std::error::Error::source(error).unwrap();
    format!("{error}: {source}")
}

/// Returns the error message of a write that was not made.
async fn said(store: &dyn Store) -> String {
    let error = create(store).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    all(&error)
}

/// Creates a record, with retries until it succeeds: after a connection has closed, one more command
/// may fail.
async fn creates(store: &dyn Store) {
    let begun = Instant::now();
    while create(store).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "nothing can be created");
        sleep(Duration::from_millis(1)).await;
    }
}

/// What a scripted Sentinel answers: the master's port, and the epoch in which it became the master.
type Says = Arc<Mutex<(u16, u64)>>;

async fn sentinel(says: &Says) -> Fake {
    let says = Arc::clone(says);
    Fake::start(move |command| {
        let (port, epoch) = *says.lock().unwrap();
        let (port, epoch) = (port.to_string(), epoch.to_string());
        match command.split(' ').collect::<Vec<_>>()[..] {
            ["SENTINEL", "MASTER", MASTER] => {
                let state = ["name", MASTER, "ip", "127.0.0.1", "port", &port];
                list(state.into_iter().chain(["flags", "master", "config-epoch", &epoch]))
            }
            ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER] => list(["127.0.0.1", &port]),
            ["SUBSCRIBE", ref channels @ ..] => channels
                .iter()
                .map(|channel| {
                    format!("*3\r\n$9\r\nsubscribe\r\n${}\r\n{channel}\r\n:1\r\n", channel.len())
                })
                .collect(),
            _ => "-ERR unknown command\r\n".to_owned(),
        }
    })
    .await
}

fn says(server: &RedisServer, epoch: u64) -> Says {
    Arc::new(Mutex::new((server.port(), epoch)))
}

#[tokio::test]
async fn errors_name_unknown_master_and_server_that_is_not_sentinel() {
    let (set, server) = (SentinelSet::single(&[]), RedisServer::start());
    let sentinel = set.sentinels()[0].port();
    let text = said(&store(&url(&[sentinel]).replace(MASTER, "another"))).await;
    let expected =
        "cannot connect to the redis master another: no Sentinel watches a master of this name";
    assert!(text.ends_with(expected), "{text}");
    let text = said(&store(&url(&[server.port()]))).await;
    let expected = format!(
        "no Sentinel answered: the Sentinel at 127.0.0.1:{} answered SENTINEL with ERR unknown command: \
         the server is not a Sentinel",
        server.port()
    );
    assert!(text.ends_with(&expected), "{text}");
    assert_eq!(server.calls("set"), 0);
    // One Sentinel that answers correctly is enough.
    create(&store(&url(&[server.port(), sentinel]))).await.unwrap();
}

#[tokio::test]
async fn sentinels_and_servers_use_separate_credentials() {
    let set = SentinelSet::single(&[]);
    let (sentinel, server) = (&set.sentinels()[0], &set.servers()[0]);
    server.cli(&["ACL", "SETUSER", "app", "on", ">sesame7", "~*", "+@all"]);
    sentinel.cli(&["ACL", "SETUSER", "watcher", "on", ">sesame8", "&*", "+@all"]);
    sentinel.cli(&["ACL", "SETUSER", "default", "resetpass", ">sesame9"]);
    let url = set.url().replace("://", "://app:sesame7@");
    let with = |user: Option<&str>, password: &str| {
        let builder = RedisStore::builder(&url).unwrap();
        builder.sentinel_credentials(user, password).build().unwrap()
    };
    create(&with(Some("watcher"), "sesame8")).await.unwrap();
    create(&with(None, "sesame9")).await.unwrap();

    let at = |server: &RedisServer| format!("127.0.0.1:{}", server.port());
    let sentinel = format!("the Sentinel at {}", at(sentinel));
    let wrong = "it answered AUTH with WRONGPASS invalid username-password pair or user is disabled: \
                 the user's name or the password is wrong: in the address, or for a Sentinel in \
                 sentinel_credentials";
    let denied = set.url().replace("://", "://app:wrong6@");
    let denied = RedisStore::builder(&denied).unwrap().sentinel_credentials(None, "sesame9");
    for (store, expected) in [
        (with(Some("watcher"), "wrong6"), format!("cannot connect to {sentinel}: {wrong}")),
        (with(None, "sesame8"), format!("cannot connect to {sentinel}: {wrong}")),
        (
            store(&url),
            format!(
                "{sentinel} answered SENTINEL with NOAUTH Authentication required: the server asks for \
                 a password, and none is given: write user:password@ before the host in the address, or \
                 for a Sentinel use sentinel_credentials"
            ),
        ),
        (
            denied.build().unwrap(),
            format!("the Sentinels name {} as the master: {wrong}", at(server)),
        ),
    ] {
        let text = said(&store).await;
        assert!(text.ends_with(&expected), "{text}");
        assert!(!text.contains("sesame") && !text.contains("wrong6"), "{text}");
    }
}

#[test]
fn credentials_for_sentinels_without_sentinels_are_refused_at_build() {
    for url in ["redis://localhost/", "redis+cluster://localhost", "unix:///r.sock"] {
        let builder = RedisStore::builder(url).unwrap().sentinel_credentials(Some("u"), "hunter2");
        let error = builder.build().unwrap_err();
        assert!(error.to_string().contains("the address names no Sentinels"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn replica_named_by_sentinels_receives_no_writes() {
    let master = RedisServer::start();
    let port = master.port().to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
    let says = says(&replica, 1);
    let sentinel = sentinel(&says).await;
    let store = store(&url(&[sentinel.port()]));
    let text = said(&store).await;
    let expected = format!(
        "the Sentinels name 127.0.0.1:{} as the master: it says that it is a replica",
        replica.port()
    );
    assert!(text.ends_with(&expected), "{text}");
    assert_eq!(replica.calls("set"), 0);
    *says.lock().unwrap() = (master.port(), 2);
    creates(&store).await;
}

#[tokio::test]
async fn one_sentinel_that_answers_is_enough() {
    let (set, mut stopped) = (SentinelSet::single(&[]), RedisServer::sentinel());
    stopped.stop();
    // This port accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    for first in [stopped.port(), silent_port] {
        let begun = Instant::now();
        create(&store(&url(&[first, set.sentinels()[0].port()]))).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
    }
}

/// A Sentinel that was disconnected during a failover keeps reporting the old master.
#[tokio::test]
async fn older_sentinel_view_is_ignored_even_if_newer_one_is_unreachable() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let behind = sentinel(&says(&old, 1)).await;
    let ahead = sentinel(&says(&new, 2)).await;
    let store = store(&url(&[behind.port(), ahead.port()]));
    let goes_on = async || {
        // Longer than the interval at which the Sentinels are asked routinely.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(1300) {
            new.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
            creates(&store).await;
        }
        assert_eq!(old.calls("set"), 0);
    };
    goes_on().await;
    drop(ahead);
    goes_on().await;
}

#[tokio::test]
async fn sentinel_that_reports_no_epoch_is_ignored() {
    let set = SentinelSet::single(&[]);
    let user = ["ACL", "SETUSER", "watcher", "on", ">sesame7", "&*", "+@all", "-sentinel|master"];
    set.sentinels()[0].cli(&user);
    let builder = RedisStore::builder(&set.url()).unwrap();
    let store = builder.sentinel_credentials(Some("watcher"), "sesame7").build().unwrap();
    let text = said(&store).await;
    assert!(text.contains("answered SENTINEL with NOPERM"), "{text}");
}

/// A master that has lost its replicas may no longer be the master.
#[tokio::test]
async fn write_refused_for_missing_replicas_queries_sentinels_at_once() {
    let old = RedisServer::start_with(&["--min-replicas-to-write", "1"]);
    let new = RedisServer::start();
    let says = says(&old, 1);
    let sentinel = sentinel(&says).await;
    let store = store(&url(&[sentinel.port()]));
    let refused = async || {
        let error = create(&store).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(all(&error).contains("with NOREPLICAS"), "{error:?}");
    };
    refused().await;
    // The Sentinel is asked before the connection is opened, after it was opened, and after the write.
    let begun = Instant::now();
    while sentinel.heard("SENTINEL MASTER") < 3 {
        assert!(begun.elapsed() < Duration::from_secs(5), "the Sentinel is not asked");
        sleep(Duration::from_millis(1)).await;
    }
    *says.lock().unwrap() = (new.port(), 2);
    let begun = Instant::now();
    refused().await;
    creates(&store).await;
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(old.cli(&["DBSIZE"]), "0");
}

#[tokio::test]
async fn database_and_protocol_of_address_are_used() {
    let set = SentinelSet::single(&[]);
    let url = format!("{}/3?protocol=resp3", set.url());
    let store = store(&url);
    create(&store).await.unwrap();
    assert!(set.servers()[0].cli(&["INFO", "keyspace"]).contains("db3:keys=1"));
    let clients = set.servers()[0].cli(&["CLIENT", "LIST", "TYPE", "normal"]);
    assert!(clients.lines().any(|client| client.contains("resp=3") && client.contains("db=3")));
    eventually("the Sentinel's events are not subscribed to", || {
        let clients = set.sentinels()[0].cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        clients.lines().any(|client| client.contains("sub=3") && client.contains("resp=3"))
    });
}

#[test]
fn dropped_store_leaves_no_task_and_no_connection() {
    let set = SentinelSet::single(&[]);
    let (server, sentinel) = (&set.servers()[0], &set.sentinels()[0]);
    let connections = || [server, sentinel].map(|it| it.cli(&["CLIENT", "LIST"]).lines().count());
    let before = connections();
    let runtime = support::runtime();
    runtime.block_on(async {
        let store = store(&set.url());
        create(&store).await.unwrap();
        drop(store);
        let begun = Instant::now();
        while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "tasks are left");
            sleep(Duration::from_millis(5)).await;
        }
    });
    eventually("connections are left", || connections() == before);
}
