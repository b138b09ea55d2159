//! The memory that a thousand requests use while they wait for a store that does not answer.

#![cfg(all(feature = "testing", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "these are tests")]

mod support;

use std::fs;
use std::time::Duration;

use support::backend::Server;
use support::faults::{TIMEOUT, sessions};
use support::visit::visit;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use unsticky::{Key, Session, Sessions};

const TEXT: Key<String> = Key::new("text");

const REQUESTS: usize = 1000;

/// Returns the resident memory of this process, in KiB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs concurrent requests that write one KiB. Half of them have a cookie, so they must first read the
/// session. Returns the maximum resident memory until the last request has failed.
async fn crowd(sessions: &Sessions, cookie: &str) -> usize {
    let mut requests = JoinSet::new();
    for number in 0..REQUESTS {
        let sessions = sessions.clone();
        let cookie = if number % 2 == 0 { cookie.to_owned() } else { String::new() };
        requests.spawn(async move {
            let write = async |session: Session| session.insert(TEXT, &"x".repeat(1024));
            assert!(visit(&sessions, &cookie, write).await.failure().is_some());
        });
    }
    let mut most = 0;
    let mut watch = tokio::time::interval(Duration::from_millis(10));
    while !requests.is_empty() {
        tokio::select! {
            answered = requests.join_next() => answered.unwrap().unwrap(),
            _ = watch.tick() => most = most.max(resident()),
        }
    }
    most.max(resident())
}

/// Checks that requests use bounded memory while they wait for a server that does not answer, and that
/// further crowds use hardly more.
async fn is_bounded(server: Server) {
    // Concurrent runs would measure one another's memory.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let sessions = sessions(&server.url());
    let write = async |session: Session| session.insert(TEXT, &"x".repeat(1024));
    let cookie = visit(&sessions, "", write).await.cookie();
    server.pause().await;
    let before = resident();
    let first = crowd(&sessions, &cookie).await;
    let mut later = 0;
    for _ in 0..4 {
        later = later.max(crowd(&sessions, &cookie).await);
    }
    server.resume();
    println!(
        "{REQUESTS} requests wait for up to {TIMEOUT:?}: {:.1} KiB each; after four more crowds {} KiB more",
        first.saturating_sub(before) as f64 / REQUESTS as f64,
        later.saturating_sub(first),
    );
    assert!(first.saturating_sub(before) < 32 * REQUESTS, "{before} KiB, then {first}");
    // The memory that the allocator retains varies, but a leak grows with each round.
    assert!(later.saturating_sub(first) < 4 * REQUESTS, "{first} KiB, then {later}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_requests_use_bounded_memory_on_redis() {
    is_bounded(Server::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_requests_use_bounded_memory_on_memcached() {
    is_bounded(Server::memcached()).await;
}
