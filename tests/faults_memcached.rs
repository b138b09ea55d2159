//! What visitors see when faults occur that only Memcached has.

#![cfg(all(feature = "testing", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use support::backend::{Server, accepted};
use support::faults::{
    BACK, Deed, NUMBER, TIMEOUT, UNREAD, UNWRITTEN, Visitors, bounded, first, request, sessions,
};
use support::servers::MemcachedServer;
use support::visit::{Visit, sign_out, visit};
use unsticky::{DirectoryMode, ErrorKind, Key, Session, Sessions};

const TEXT: Key<String> = Key::new("text");

/// Signs a visitor in and stores this much text.
async fn arrives(sessions: &Sessions, principal: &str, length: usize) -> Visit<()> {
    let sign_in = async |session: Session| {
        session.sign_in(principal)?;
        session.insert(TEXT, &"x".repeat(length))
    };
    visit(sessions, "", sign_in).await
}

async fn keeps(sessions: &Sessions, cookie: &str, text: &str) -> Visit<()> {
    visit(sessions, cookie, async |session: Session| session.insert(TEXT, &text.to_owned())).await
}

/// Returns the signed-in principal and the length of the stored text.
async fn finds(sessions: &Sessions, cookie: &str) -> (Option<String>, usize) {
    let read = async |session: Session| Ok((session.principal(), session.get(TEXT)?));
    let visit = visit(sessions, cookie, read).await;
    assert_eq!(visit.set_cookie, None);
    let (principal, text) = visit.ok();
    (principal.as_deref().map(str::to_owned), text.map_or(0, |text| text.len()))
}

/// A server that has no free memory and does not evict refuses writes. Existing sessions are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_server_refuses_writes_and_keeps_other_sessions() {
    let server = MemcachedServer::start_with(&["-M", "-m", "2"]);
    let sessions = sessions(&server.url());
    let mut cookies = Vec::new();
    let refused = loop {
        let name = format!("visitor-{}", cookies.len());
        let visit = arrives(&sessions, &name, 8000).await;
        match visit.failure() {
            None => cookies.push((visit.cookie(), name)),
            Some(kind) => {
                assert_eq!(visit.set_cookie, None);
                break kind;
            }
        }
        assert!(cookies.len() < 2000, "the server was not filled");
    };
    assert_eq!(refused, ErrorKind::Refused);
    for (cookie, name) in &cookies {
        assert_eq!(finds(&sessions, cookie).await, (Some(name.clone()), 8000));
    }
    // If the server has no room for a record's new version, it deletes that record and no other. The record's
    // owner gets an error, and never another user's session.
    let ((unlucky, name), others) = cookies.split_first().unwrap();
    let write = keeps(&sessions, unlucky, &"y".repeat(8001)).await;
    if let Some(kind) = write.failure() {
        assert_eq!(kind, ErrorKind::Refused);
        let found = finds(&sessions, unlucky).await;
        assert!(found == (None, 0) || found == (Some(name.clone()), 8000), "{found:?}");
    }
    assert_eq!(write.set_cookie, None);
    for (cookie, name) in others {
        assert_eq!(finds(&sessions, cookie).await, (Some(name.clone()), 8000));
    }
    // Signing out frees memory.
    for (cookie, _) in &others[..others.len() / 2] {
        let answer = request(&sessions, cookie, Deed::SignOut).await;
        assert_eq!(answer.failure, None);
    }
    let back = arrives(&sessions, "erin", 8000).await;
    assert_eq!(first(&sessions, &back.cookie()).await.as_deref(), Some("erin"));
}

/// A record that exceeds the server's own limit affects only its own session, and the write certainly fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_over_server_limit_fails_only_its_own_session() {
    const LARGE: usize = 600_000;
    let server = MemcachedServer::start_with(&["-I", "512k", "-m", "64"]);
    let store = unsticky::connect(&server.url()).unwrap();
    let sessions = Sessions::builder(store).max_record_bytes(1_000_000).build().unwrap();
    let mut cookies = Vec::new();
    for number in 0..16 {
        cookies.push(arrives(&sessions, &format!("visitor-{number}"), 100).await.cookie());
    }
    for round in 0..10 {
        let large = round % cookies.len();
        let (small_text, large_text) = ("y".repeat(200 + round), "y".repeat(LARGE));
        let writes = cookies.iter().enumerate().map(|(number, cookie)| {
            let text = if number == large { &large_text } else { &small_text };
            keeps(&sessions, cookie, text)
        });
        let newcomer = arrives(&sessions, "newcomer", LARGE);
        let (visits, newcomer) = tokio::join!(join_all(writes), newcomer);
        assert_eq!(newcomer.failure(), Some(ErrorKind::TooLarge));
        assert_eq!(newcomer.set_cookie, None);
        for (number, visit) in visits.into_iter().enumerate() {
            assert_eq!(visit.set_cookie, None);
            let found = finds(&sessions, &cookies[number]).await;
            if number == large {
                assert_eq!(visit.failure(), Some(ErrorKind::TooLarge));
                assert_ne!(found.1, LARGE);
                assert!(found.0.is_none_or(|who| who == format!("visitor-{number}")));
            } else {
                assert_eq!(visit.failure(), None, "round {round}");
                assert_eq!(found, (Some(format!("visitor-{number}")), 200 + round));
            }
        }
        let name = format!("visitor-{large}");
        cookies[large] = arrives(&sessions, &name, 100).await.cookie();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_recover_after_connection_limit_is_reached() {
    let server = MemcachedServer::start_with(&["-c", "30", "-t", "1"]);
    let mut visitors = Visitors::arrive(&sessions(&server.url())).await;
    visitors.sessions = sessions(&server.url());
    let mut others = Vec::new();
    while let Some(other) = accepted(server.port()).await {
        others.push(other);
    }
    visitors.are_told().await;
    drop(others);
    let begun = Instant::now();
    while accepted(server.port()).await.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the server still refuses connections");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    visitors.go_on().await;
}

/// Two servers, and the cookies of the sessions that are stored on each.
struct Pool {
    first: MemcachedServer,
    second: Server,
    sessions: Sessions,
    here: Vec<String>,
    there: Vec<String>,
}

impl Pool {
    async fn filled() -> Self {
        let (first, second) = (MemcachedServer::start(), MemcachedServer::start());
        let url = format!("memcached://{},{}", first.address(), second.address());
        // A session's key determines its server. A directory would add a further record on one of the
        // servers.
        let builder = Sessions::builder(unsticky::connect(&url).unwrap()).timeout(TIMEOUT);
        let sessions = builder.directory(DirectoryMode::Off).build().unwrap();
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            let before = second.stat("total_items");
            let cookie = arrives(&sessions, "alice", 100).await.cookie();
            let is_there = second.stat("total_items") > before;
            if is_there { &mut there } else { &mut here }.push(cookie);
        }
        assert!(here.len() > 10 && there.len() > 10, "{} {}", here.len(), there.len());
        Self { first, second: Server::Memcached(second), sessions, here, there }
    }

    /// Checks that while the second server does not answer, requests in its sessions fail within the time
    /// limit, and requests in the first server's sessions are served as usual.
    async fn is_half_down(&self) {
        let failing = self.there.iter().enumerate().map(|(number, cookie)| {
            let deed = if number % 2 == 0 { Deed::Read } else { Deed::Increment };
            request(&self.sessions, cookie, deed)
        });
        let working = async {
            for cookie in &self.here {
                let answer = request(&self.sessions, cookie, Deed::Increment).await;
                assert_eq!((answer.failure, &answer.set_cookie), (None, &None));
                assert!(answer.took < Duration::from_millis(200), "{answer:?}");
            }
        };
        let (failed, ()) = bounded(async { tokio::join!(join_all(failing), working) }).await;
        for answer in failed {
            answer.is_failure(UNREAD, TIMEOUT + Duration::from_millis(100));
        }
        // A new session that is acknowledged is on the server where it will be looked up.
        let items = self.first.stat("curr_items");
        let arrivals = join_all((0..40).map(|_| request(&self.sessions, "", Deed::SignIn("bob"))));
        let mut arrived = 0;
        for answer in bounded(arrivals).await {
            match answer.failure {
                None => arrived += 1,
                Some(_) => {
                    answer.is_failure(UNWRITTEN, TIMEOUT + Duration::from_millis(100));
                }
            }
        }
        assert!(arrived >= 5, "{arrived}");
        assert_eq!(self.first.stat("curr_items"), items + arrived);
    }

    async fn is_whole(&self, there: Option<&str>) {
        for cookie in &self.there {
            assert_eq!(first(&self.sessions, cookie).await.as_deref(), there);
        }
        let number = async |session: Session| Ok((session.principal(), session.get(NUMBER)?));
        for cookie in &self.here {
            let (principal, number) = visit(&self.sessions, cookie, number).await.ok();
            assert_eq!((principal.as_deref(), number), (Some("alice"), Some(1)));
        }
        let arrivals = join_all((0..40).map(|_| request(&self.sessions, "", Deed::SignIn("bob"))));
        for answer in arrivals.await {
            assert!(answer.failure.is_none() && answer.took < BACK, "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_pool_server_affects_only_its_own_sessions() {
    let mut pool = Pool::filled().await;
    pool.second.stop();
    pool.is_half_down().await;
    pool.second.restart();
    pool.is_whole(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_pool_server_affects_only_its_own_sessions() {
    let pool = Pool::filled().await;
    pool.second.pause().await;
    pool.is_half_down().await;
    pool.second.resume();
    pool.is_whole(Some("alice")).await;
}

/// A directory is a record like any other, so the server that stores it does not depend on the servers that
/// store the sessions that it lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_with_directory_on_killed_pool_server_keep_sessions_but_cannot_sign_in() {
    let (first, mut second) = (MemcachedServer::start(), MemcachedServer::start());
    let url = format!("memcached://{},{}", first.address(), second.address());
    let of_mode = |mode| {
        let builder = Sessions::builder(unsticky::connect(&url).unwrap()).timeout(TIMEOUT);
        builder.directory(mode).build().unwrap()
    };
    let (sessions, strict) = (of_mode(DirectoryMode::default()), of_mode(DirectoryMode::Strict));
    let mut people = Vec::new();
    for number in 0..60 {
        let person = format!("person {number}");
        let cookie = arrives(&sessions, &person, 100).await.cookie();
        people.push((person, cookie));
    }
    second.stop();
    let (mut without_directory, mut with_session) = (0, 0);
    for (person, cookie) in &people {
        if sessions.of(person).begin_sign_in().await.is_ok() {
            continue;
        }
        without_directory += 1;
        let sign_ins = (0..8).map(|_| arrives(&sessions, person, 100));
        for sign_in in bounded(join_all(sign_ins)).await {
            assert!(UNWRITTEN.contains(&sign_in.failure().unwrap()), "{sign_in:?}");
            assert_eq!(sign_in.set_cookie, None);
        }
        assert!(sessions.of(person).list().await.is_err());
        assert!(sessions.of(person).revoke_all().await.is_err());
        if request(&sessions, cookie, Deed::Increment).await.failure.is_none() {
            with_session += 1;
            assert_eq!(finds(&sessions, cookie).await, (Some(person.clone()), 100));
            let read = visit(&strict, cookie, async |session: Session| session.get(TEXT)).await;
            assert_eq!(read.failure(), Some(ErrorKind::Unavailable), "its directory must list it");
            assert!(visit(&sessions, cookie, sign_out).await.removes_cookie());
            assert_eq!(finds(&sessions, cookie).await, (None, 0));
        }
    }
    assert!((10..50).contains(&without_directory), "{without_directory}");
    assert!((1..without_directory).contains(&with_session), "{with_session}");
    // The server restarts without data, and then all users can sign in.
    second.restart();
    for (person, _) in &people {
        assert_eq!(arrives(&sessions, person, 100).await.failure(), None, "{person}");
    }
}
