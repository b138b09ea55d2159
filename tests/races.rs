//! Many concurrent requests in one session on real servers, from one process and from four.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use support::backend::Backend;
use support::proxy::{Mode, Proxy};
use support::visit::visit;
use tokio::task::JoinSet;
use unsticky::{ErrorKind, Key, Session, Sessions};

const SEED: Key<u64> = Key::new("seed");
const NUMBER: Key<u64> = Key::new("number");

fn sessions(url: &str, timeout: Duration) -> Sessions {
    Sessions::builder(unsticky::connect(url).unwrap()).timeout(timeout).build().unwrap()
}

async fn seeded(sessions: &Sessions) -> String {
    visit(sessions, "", async |session: Session| session.insert(SEED, &1)).await.cookie()
}

async fn read(sessions: &Sessions, cookie: &str, key: &Key<u64>) -> u64 {
    visit(sessions, cookie, async |session: Session| session.get(key)).await.ok().unwrap_or(0)
}

/// The results of many requests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    ok: u64,
    unknown: u64,
    failed: u64,
}

/// Sends `count` requests at once. Each pauses between its read and its write.
async fn increments(sessions: &Sessions, cookie: &str, count: u64, think: Duration) -> Tally {
    let mut requests = JoinSet::new();
    for _ in 0..count {
        let (sessions, cookie) = (sessions.clone(), cookie.to_owned());
        requests.spawn(async move {
            let increment = async |session: Session| {
                session.get(NUMBER)?;
                tokio::time::sleep(think).await;
                session.update(NUMBER, |number| *number += 1)
            };
            visit(&sessions, &cookie, increment).await.failure()
        });
    }
    let mut tally = Tally::default();
    while let Some(failure) = requests.join_next().await {
        match failure.unwrap() {
            None => tally.ok += 1,
            Some(ErrorKind::OutcomeUnknown) => tally.unknown += 1,
            Some(ErrorKind::Contended | ErrorKind::Unavailable) => tally.failed += 1,
            Some(kind) => panic!("{kind:?}"),
        }
    }
    tally
}

async fn concurrent_writes_to_different_keys_all_survive(on: Backend) {
    let sessions = sessions(&on.url(), Duration::from_secs(5));
    for think in [Duration::ZERO, Duration::from_millis(20)] {
        let cookie = seeded(&sessions).await;
        let mut requests = JoinSet::new();
        for number in 0..200_u64 {
            let (sessions, cookie) = (sessions.clone(), cookie.clone());
            requests.spawn(async move {
                let key = Key::runtime(format!("key-{number}"));
                let write = async |session: Session| {
                    session.get(&key)?;
                    tokio::time::sleep(think).await;
                    session.insert(&key, &number)
                };
                visit(&sessions, &cookie, write).await.failure()
            });
        }
        while let Some(failure) = requests.join_next().await {
            assert_eq!(failure.unwrap(), None);
        }
        let survivors = async |session: Session| {
            let keys = (0..200_u64).map(|number| Key::<u64>::runtime(format!("key-{number}")));
            Ok(keys.filter(|key| session.contains(key)).count())
        };
        assert_eq!(visit(&sessions, &cookie, survivors).await.ok(), 200);
    }
}

async fn two_hundred_concurrent_increments_are_all_counted(on: Backend) {
    let sessions = sessions(&on.url(), Duration::from_secs(5));
    for think in [Duration::ZERO, Duration::from_millis(20)] {
        let cookie = seeded(&sessions).await;
        let tally = increments(&sessions, &cookie, 200, think).await;
        assert_eq!(tally, Tally { ok: 200, ..Tally::default() });
        assert_eq!(read(&sessions, &cookie, &NUMBER).await, 200);
    }
}

/// No increment is lost or counted twice, and the results reported to the requests match the total.
async fn hot_session(url: &str, timeout: Duration) {
    let sessions = sessions(url, timeout);
    let cookie = seeded(&sessions).await;
    let tally = increments(&sessions, &cookie, 500, Duration::ZERO).await;
    let total = read(&sessions, &cookie, &NUMBER).await;
    assert!(tally.ok <= total && total <= tally.ok + tally.unknown, "{tally:?}: {total}");
    assert!(tally.ok > 0, "{tally:?}");
}

/// The link delays each direction by five milliseconds.
async fn concurrent_increments_add_up_over_slow_link(on: Backend) {
    let server = on.server().unwrap();
    let proxy = Proxy::start(server.port()).await;
    let url = server.url_at(proxy.port());
    let sessions = sessions(&url, Duration::from_secs(20));
    let cookie = seeded(&sessions).await;
    proxy.set(Mode::Delay(Duration::from_millis(5)));
    let tally = increments(&sessions, &cookie, 200, Duration::from_millis(20)).await;
    assert_eq!(tally, Tally { ok: 200, ..Tally::default() });
    assert_eq!(read(&sessions, &cookie, &NUMBER).await, 200);
    hot_session(&url, Duration::from_secs(1)).await;
}

/// The environment variable that turns a test process into one of several workers.
const WORKER: &str = "UNSTICKY_RACES_WORKER";

/// Not a test in itself: the work of each of the four processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker() {
    let Ok(task) = std::env::var(WORKER) else { return };
    let (url, cookie) = task.split_once(' ').unwrap();
    let sessions = sessions(url, Duration::from_secs(10));
    let tally = increments(&sessions, cookie, 50, Duration::from_millis(5)).await;
    println!("TALLY {} {} {}", tally.ok, tally.unknown, tally.failed);
}

async fn increments_from_four_processes_add_up(on: Backend) {
    let url = on.url();
    let sessions = sessions(&url, Duration::from_secs(5));
    let cookie = seeded(&sessions).await;
    let workers: Vec<_> = (0..4)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "worker", "--nocapture", "--test-threads", "1"])
                .env(WORKER, format!("{url} {cookie}"))
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut ok = 0;
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let tally = text.lines().find_map(|line| line.split_once("TALLY ")).unwrap().1;
        let numbers: Vec<u64> = tally.split(' ').map(|number| number.parse().unwrap()).collect();
        assert_eq!(numbers[1..], [0, 0], "unknown and failed");
        ok += numbers[0];
    }
    assert_eq!(ok, 200);
    assert_eq!(read(&sessions, &cookie, &NUMBER).await, 200);
}

macro_rules! races {
    ($($backend:ident: $($race:ident),+;)*) => {$(
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $race() {
                    super::$race(super::Backend::$backend()).await;
                }
            )+

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn five_hundred_concurrent_writers_lose_no_update() {
                let on = super::Backend::$backend();
                super::hot_session(&on.url(), std::time::Duration::from_secs(1)).await;
            }
        }
    )*};
}

races! {
    memory: concurrent_writes_to_different_keys_all_survive, two_hundred_concurrent_increments_are_all_counted;
    redis: concurrent_writes_to_different_keys_all_survive, two_hundred_concurrent_increments_are_all_counted, concurrent_increments_add_up_over_slow_link, increments_from_four_processes_add_up;
    memcached: concurrent_writes_to_different_keys_all_survive, two_hundred_concurrent_increments_are_all_counted, concurrent_increments_add_up_over_slow_link, increments_from_four_processes_add_up;
}
