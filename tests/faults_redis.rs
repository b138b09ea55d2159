//! What visitors see when faults occur that only Redis has.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]
#![allow(clippy::print_stdout, reason = "prints the outcomes of the random faults")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use support::backend::Server;
use support::faults::{Deed, TIMEOUT, Visitors, bounded, first, request, sessions};
use support::proxy::Proxy;
use support::servers::RedisServer;
use support::topologies::wait_for_replicas;
use support::visit::{sign_out, visit};
use tokio::task::JoinSet;
use unsticky::ErrorKind;
use unsticky::redis::aio::MultiplexedConnection;
use unsticky::redis::{Client, cmd};

/// Starts a server with these arguments.
type Start = fn(&[&str]) -> Server;

/// Makes the server write each change to the disk before it answers.
const KEPT: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

/// Returns all records, as exactly as text can represent them.
fn records(server: &RedisServer) -> Vec<(String, String)> {
    let keys = server.cli(&["KEYS", "*"]);
    let mut keys: Vec<_> = keys.lines().map(str::to_owned).collect();
    keys.sort();
    keys.into_iter()
        .map(|key| {
            let record = server.cli(&["GET", &key]);
            (key, record)
        })
        .collect()
}

/// Checks that the server refuses each of these writes, that no record changes, and that every response
/// reports the failure.
async fn are_refused(server: &RedisServer, visitors: &Visitors, deeds: &[(&str, Deed)]) {
    let before = records(server);
    for (cookie, deed) in deeds {
        let answer = bounded(request(&visitors.sessions, cookie, *deed)).await;
        answer.is_failure(&[ErrorKind::Refused], TIMEOUT);
        assert_eq!(records(server), before, "{deed:?}");
    }
    assert_eq!(first(&visitors.sessions, &visitors.alice).await.as_deref(), Some("alice"));
    assert_eq!(first(&visitors.sessions, &visitors.anonymous.cookie).await, None);
}

/// Returns requests that need a new record or a longer one.
fn writes(visitors: &Visitors) -> Vec<(&str, Deed)> {
    let (alice, anonymous) = (&*visitors.alice, &*visitors.anonymous.cookie);
    vec![
        (alice, Deed::Increment),
        (alice, Deed::Transact),
        (alice, Deed::Rotate),
        (alice, Deed::SignIn("alice")),
        (alice, Deed::SignIn("mallory")),
        (anonymous, Deed::SignIn("dave")),
        (anonymous, Deed::Rotate),
        ("", Deed::SignIn("erin")),
        ("", Deed::Insert),
    ]
}

async fn full_server_refuses_writes_and_keeps_other_sessions(start: Start) {
    let route = start(&[]);
    let server = route.as_redis();
    let mut visitors = Visitors::arrive(&sessions(&route.url())).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    are_refused(server, &visitors, &writes(&visitors)).await;
    // Operations that need no memory succeed, so users can still sign out.
    let carol = visitors.carol.cookie.clone();
    let sign_out = visit(&visitors.sessions, &carol, sign_out);
    assert!(sign_out.await.removes_cookie());
    assert_eq!(first(&visitors.sessions, &carol).await, None);
    visitors.carol.is_certain = false;
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    visitors.go_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_server_refuses_writes_and_keeps_sessions() {
    let server = RedisServer::start();
    let mut visitors = Visitors::arrive(&sessions(&server.url())).await;
    // No server listens on this master's port, so the data does not change.
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let mut deeds = writes(&visitors);
    deeds.push((&visitors.alice, Deed::SignOut));
    deeds.push((&visitors.bob.cookie, Deed::SignOut));
    are_refused(&server, &visitors, &deeds).await;
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    visitors.go_on().await;
}

async fn sessions_survive_restart_of_server_with_persistence(start: Start) {
    let mut server = start(KEPT);
    let mut visitors = Visitors::arrive(&sessions(&server.url())).await;
    visitors.increment().await;
    visitors.begin().await;
    server.stop();
    visitors.are_told().await;
    server.restart();
    visitors.go_on().await;
    // This time, no request is sent while the server is down.
    server.restart();
    visitors.go_on().await;
}

/// Eight tasks write concurrently while the server is killed repeatedly.
async fn acknowledged_writes_survive_repeated_server_kills(start: Start) {
    let mut server = start(KEPT);
    let sessions = sessions(&server.url());
    let mut visitors = Visitors::arrive(&sessions).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for _ in 0..8 {
        let (sessions, alice, done) = (sessions.clone(), visitors.alice.clone(), done.clone());
        writers.spawn(async move {
            let (mut applied, mut unknown) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let answer = request(&sessions, &alice, Deed::Increment).await;
                assert_eq!(answer.set_cookie, None);
                match answer.failure {
                    None => applied += 1,
                    Some(ErrorKind::OutcomeUnknown) => unknown += 1,
                    Some(ErrorKind::Unavailable | ErrorKind::Contended) => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Some(_) => panic!("{answer:?}"),
                }
            }
            (applied, unknown)
        });
    }
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.restart();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    done.store(true, Ordering::Relaxed);
    for (applied, unknown) in bounded(writers.join_all()).await {
        visitors.counted += applied;
        visitors.unknown += unknown;
    }
    println!("{} applied, {} unknown", visitors.counted, visitors.unknown);
    assert!(visitors.counted > 50);
    visitors.go_on().await;
}

/// A server that has just started answers every command with an error until it has loaded its data.
async fn requests_recover_after_server_finishes_loading(start: Start) {
    let mut server = start(&[
        "--key-load-delay",
        "1000",
        "--loading-process-events-interval-bytes",
        "1024",
        "--rdbcompression",
        "no",
    ]);
    let mut visitors = Visitors::arrive(&sessions(&server.url())).await;
    visitors.increment().await;
    let fill = "for i = 1, 3000 do redis.call('SET', 'filler' .. i, string.rep('x', 500)) end";
    server.as_redis().cli(&["EVAL", fill, "0"]);
    server.as_redis().cli(&["SAVE"]);
    visitors.begin().await;
    server.restart();
    let is_loading = || {
        let info = server.as_redis().cli(&["INFO", "persistence"]);
        info.contains("\nloading:1")
    };
    visitors.are_told().await;
    assert!(is_loading(), "it was ready too early");
    let begun = Instant::now();
    while is_loading() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    visitors.go_on().await;
}

/// Opens an administrator's connection, which stays authenticated.
async fn admin(server: &RedisServer) -> MultiplexedConnection {
    Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_recover_after_password_requirement_is_lifted() {
    let server = RedisServer::start();
    let mut visitors = Visitors::arrive(&sessions(&server.url())).await;
    visitors.begin().await;
    let mut admin = admin(&server).await;
    let mut administer = async |words: &[&str]| {
        let mut command = cmd(words[0]);
        command.arg(&words[1..]).exec_async(&mut admin).await.unwrap();
    };
    administer(&["CONFIG", "SET", "requirepass", "hunter2"]).await;
    administer(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    visitors.are_told().await;
    administer(&["CONFIG", "SET", "requirepass", ""]).await;
    visitors.go_on().await;
}

async fn requests_succeed_after_script_cache_flush(start: Start) {
    let route = start(&[]);
    let server = route.as_redis();
    let mut visitors = Visitors::arrive(&sessions(&route.url())).await;
    for _ in 0..20 {
        server.cli(&["SCRIPT", "FLUSH"]);
        visitors.increment().await;
    }
    for _ in 0..10 {
        let at_once =
            (0..10).map(|_| request(&visitors.sessions, &visitors.alice, Deed::Increment));
        let (answers, _) = tokio::join!(join_all(at_once), async {
            server.cli(&["SCRIPT", "FLUSH"]);
        });
        for answer in answers {
            assert_eq!((answer.failure, answer.set_cookie), (None, None));
            visitors.counted += 1;
        }
    }
    // A server with its own compare-and-set receives a script only after a failed comparison.
    if server.calls("delifeq") + server.calls("delex") == 0 {
        assert!(server.calls("eval") > 20);
    }
    visitors.number_is_right().await;
    visitors.begin().await;
    server.cli(&["SCRIPT", "FLUSH"]);
    visitors.succeed().await;
}

/// Starts a master and a replica that has all of the master's data.
async fn pair() -> (RedisServer, RedisServer) {
    let (master, replica) = (RedisServer::start(), RedisServer::start());
    replica.cli(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    let begun = Instant::now();
    while !replica.cli(&["INFO", "replication"]).contains("master_link_status:up") {
        assert!(begun.elapsed() < Duration::from_secs(10), "the servers did not find each other");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (master, replica)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_survive_failover_to_promoted_replica() {
    let (mut master, replica) = pair().await;
    let proxy = Proxy::start(master.port()).await;
    let mut visitors =
        Visitors::arrive(&sessions(&format!("redis://127.0.0.1:{}/", proxy.port()))).await;
    visitors.increment().await;
    visitors.begin().await;
    wait_for_replicas(&master, "key", 1);
    master.stop();
    visitors.are_told().await;
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    proxy.lead_to(replica.port());
    visitors.go_on().await;
}

/// The old master becomes a replica and keeps its connections, and new connections lead to the new master.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_succeed_after_server_is_demoted_to_replica() {
    let (master, replica) = pair().await;
    let proxy = Proxy::start(master.port()).await;
    let mut visitors =
        Visitors::arrive(&sessions(&format!("redis://127.0.0.1:{}/", proxy.port()))).await;
    visitors.increment().await;
    visitors.begin().await;
    wait_for_replicas(&master, "key", 1);
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    master.cli(&["REPLICAOF", "127.0.0.1", &replica.port().to_string()]);
    proxy.lead_to(replica.port());
    visitors.succeed().await;
    visitors.alice_goes_on().await;
}

/// Runs tests on a server that is reached directly, in a cluster of one node, and through a Sentinel.
macro_rules! on_each_route {
    ($($test:ident),* $(,)?) => {
        on_each_route!(@ redis, redis_with: $($test)*);
        on_each_route!(@ cluster, cluster_with: $($test)*);
        on_each_route!(@ sentinel, sentinel_with: $($test)*);
    };
    (@ $route:ident, $start:ident: $($test:ident)*) => {
        mod $route {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(super::Server::$start).await;
                }
            )*
        }
    };
}

on_each_route! {
    full_server_refuses_writes_and_keeps_other_sessions,
    sessions_survive_restart_of_server_with_persistence,
    acknowledged_writes_survive_repeated_server_kills,
    requests_succeed_after_script_cache_flush,
}

/// A cluster is left out, because a cluster node does not report its state until it has loaded its data.
mod while_loading {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_recover_after_server_finishes_loading() {
        super::requests_recover_after_server_finishes_loading(super::Server::redis_with).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_recover_after_named_master_finishes_loading() {
        super::requests_recover_after_server_finishes_loading(super::Server::sentinel_with).await;
    }
}
