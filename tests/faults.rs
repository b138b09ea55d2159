//! What visitors see while a store or the network fails, and afterwards. The tests provoke, on real servers,
//! the faults that each of them can have.

#![cfg(all(feature = "testing", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]
#![allow(clippy::print_stdout, reason = "prints the outcomes of the random faults")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::future::join_all;
use support::backend::{self, Server, on_servers};
use support::faults::{
    Deed, NUMBER, TIMEOUT, UNREAD, UNWRITTEN, Visitors, bounded, first, request, sessions,
};
use support::proxy::{Mode, Proxy};
use support::visit::visit;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use unsticky::{ErrorKind, Key, Session, Sessions};

/// Starts a proxy in front of the server, and creates sessions that use the proxy.
async fn linked(server: &Server) -> (Proxy, Sessions) {
    let proxy = Proxy::start(server.port()).await;
    let sessions = sessions(&server.url_at(proxy.port()));
    (proxy, sessions)
}

/// Returns sessions whose store connects through the proxy and waits this long for a connection and for an
/// answer.
fn patient(server: &Server, proxy: &Proxy, store: Duration, request: Duration) -> Sessions {
    let store = backend::patient(&server.url_at(proxy.port()), store);
    Sessions::builder(store).timeout(request).build().unwrap()
}

async fn requests_recover_after_server_restart(mut server: Server) {
    let sessions = sessions(&server.url());
    let mut visitors = Visitors::arrive(&sessions).await;
    visitors.begin().await;
    server.stop();
    visitors.are_told().await;
    server.restart();
    visitors.begin_anew().await;
    // This time, no request is sent while the server is down.
    server.restart();
    visitors.begin_anew().await;
}

async fn requests_recover_after_server_pause(server: Server) {
    let sessions = sessions(&server.url());
    let mut visitors = Visitors::arrive(&sessions).await;
    visitors.begin().await;
    server.pause().await;
    visitors.are_told().await;
    server.resume();
    visitors.go_on().await;
}

async fn requests_recover_when_server_starts_after_application(mut server: Server) {
    let mut visitors = Visitors::arrive(&sessions(&server.url())).await;
    server.stop();
    visitors.sessions = sessions(&server.url());
    visitors.are_told().await;
    server.restart();
    visitors.begin_anew().await;
}

/// The connection is closed before each of 200 requests, and every request succeeds.
async fn requests_succeed_after_idle_connection_is_closed(server: Server) {
    let (proxy, sessions) = linked(&server).await;
    let mut visitors = Visitors::arrive(&sessions).await;
    for round in 0..200 {
        let before = proxy.accepted();
        proxy.cut();
        // The close arrives before the request, or during it.
        if round % 2 == 0 {
            proxy.all_closed().await;
        }
        if round % 4 < 2 {
            visitors.increment().await;
        } else {
            assert_eq!(first(&sessions, &visitors.alice).await.as_deref(), Some("alice"));
        }
        assert!(round % 2 == 1 || proxy.accepted() > before, "the connection was not closed");
    }
    visitors.number_is_right().await;
}

/// A middlebox has dropped its state: the connections pass no data and report no error.
async fn requests_succeed_on_half_open_connections(server: Server) {
    let (proxy, sessions) = linked(&server).await;
    let mut visitors = Visitors::arrive(&sessions).await;
    for _ in 0..3 {
        visitors.crowd().await;
        proxy.forget();
        assert_eq!(first(&sessions, &visitors.alice).await.as_deref(), Some("alice"));
    }
    // A write can also be the first command that uses the lost connections.
    visitors.crowd().await;
    visitors.begin().await;
    proxy.forget();
    visitors.succeed().await;
}

/// Nothing passes for a while, and the old connections never recover.
async fn requests_recover_after_network_blackhole(server: Server) {
    let (proxy, sessions) = linked(&server).await;
    let mut visitors = Visitors::arrive(&sessions).await;
    visitors.begin().await;
    let before = proxy.accepted();
    proxy.set(Mode::Blackhole);
    visitors.are_told().await;
    // The waiting requests share connections instead of each opening its own.
    assert!(proxy.accepted() - before < 50, "{} connections", proxy.accepted() - before);
    proxy.forget();
    proxy.set(Mode::Pass);
    visitors.go_on().await;
}

/// The server closes its sending side and continues to read.
async fn requests_succeed_after_server_half_closes_connection(server: Server) {
    let (proxy, sessions) = linked(&server).await;
    let mut visitors = Visitors::arrive(&sessions).await;
    for _ in 0..20 {
        proxy.half_close();
        visitors.increment().await;
        proxy.half_close();
        assert_eq!(first(&sessions, &visitors.alice).await.as_deref(), Some("alice"));
    }
    visitors.begin().await;
    proxy.half_close();
    visitors.succeed().await;
}

async fn requests_recover_after_late_answers(server: Server) {
    let (proxy, sessions) = linked(&server).await;
    let mut visitors = Visitors::arrive(&sessions).await;
    visitors.begin().await;
    proxy.set(Mode::Delay(Duration::from_millis(750)));
    visitors.are_told().await;
    proxy.set(Mode::Pass);
    visitors.go_on().await;
    // After this time, the delayed writes have arrived and found a newer record.
    tokio::time::sleep(Duration::from_millis(800)).await;
    visitors.go_on().await;
}

async fn requests_recover_after_refused_connections(server: Server) {
    let (proxy, sessions) = linked(&server).await;
    let mut visitors = Visitors::arrive(&sessions).await;
    visitors.begin().await;
    proxy.set(Mode::Refuse);
    proxy.cut();
    visitors.are_told().await;
    proxy.set(Mode::Pass);
    visitors.go_on().await;
}

async fn requests_succeed_when_bytes_arrive_one_at_a_time(server: Server) {
    let (proxy, sessions) = linked(&server).await;
    proxy.set(Mode::Trickle);
    let mut visitors = Visitors::arrive(&sessions).await;
    for _ in 0..10 {
        visitors.increment().await;
    }
    let at_once = (0..10).map(|_| request(&sessions, &visitors.alice, Deed::Increment));
    for answer in join_all(at_once).await {
        assert_eq!(answer.failure, None);
    }
    visitors.counted += 10;
    visitors.number_is_right().await;
    visitors.begin().await;
    visitors.succeed().await;
}

/// The server's answers are replaced by invalid ones.
async fn requests_recover_after_garbage_answers(server: Server) {
    let garbage: &[&[u8]] = match server {
        Server::Redis(_) | Server::Cluster(_) | Server::Sentinel(_) => &[
            b"\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"\0\xff\xfe\r\n",
            b"$4096\r\nabc",
            b":7\r\n",
        ],
        Server::Memcached(_) => &[
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"\0\xff\xfe\r\n",
            b"VA 4096 c1 f0 O0\r\nabc",
            b"VA 99999999999999999999999 c1 O0\r\n",
            b"HD c-1 O0\r\n",
        ],
    };
    let (proxy, sessions) = linked(&server).await;
    for &bytes in garbage {
        for mode in [Mode::Answer(bytes), Mode::AnswerAfterGreeting(bytes)] {
            println!("{mode:?}");
            let mut visitors = Visitors::arrive(&sessions).await;
            // The connection is known to work, so the first command uses it.
            proxy.set(mode);
            let read = bounded(request(&sessions, &visitors.alice, Deed::Read)).await;
            read.is_failure(UNREAD, TIMEOUT);
            proxy.set(Mode::Pass);
            assert_eq!(first(&sessions, &visitors.alice).await.as_deref(), Some("alice"));
            visitors.begin().await;
            proxy.set(mode);
            visitors.are_told_alone(UNREAD, UNWRITTEN).await;
            proxy.set(Mode::Pass);
            visitors.go_on().await;
        }
    }
}

/// A record that exceeds the configured limit is not sent, so the session stays as it was.
async fn oversize_record_is_rejected_and_session_is_kept(server: Server) {
    const TEXT: Key<String> = Key::new("text").survives_sign_in();
    let store = unsticky::connect(&server.url()).unwrap();
    let sessions = Sessions::builder(store).max_record_bytes(2048).build().unwrap();
    let (text, more) = ("x".repeat(1200), Key::<String>::runtime("more"));
    let mut cookies = Vec::new();
    for principal in [None, Some("alice")] {
        let arrive = async |session: Session| {
            if let Some(principal) = principal {
                session.sign_in(principal)?;
            }
            session.insert(TEXT, &text)
        };
        cookies.push((visit(&sessions, "", arrive).await.cookie(), principal));
    }
    for (cookie, principal) in &cookies {
        for deed in [Deed::Insert, Deed::Rotate, Deed::SignIn("alice"), Deed::SignIn("bob")] {
            let handler = async |session: Session| {
                deed.done_to(session.clone()).await?;
                session.insert(TEXT, &text)?;
                session.insert(&more, &text)
            };
            let failed = visit(&sessions, cookie, handler).await;
            assert_eq!(failed.failure(), Some(ErrorKind::TooLarge), "{deed:?}");
            assert_eq!(failed.set_cookie, None);
            let read = async |session: Session| {
                Ok((session.principal(), session.get(TEXT)?, session.get(&more)?))
            };
            let (found, first, second) = visit(&sessions, cookie, read).await.ok();
            assert_eq!(found.as_deref(), *principal);
            assert_eq!((first.as_ref(), second), (Some(&text), None));
        }
    }
}

/// Loading, committing, resolving a conflict and settling an in-doubt write all stay within one deadline.
async fn load_commit_and_settlement_share_one_deadline(server: Server) {
    let (proxy, sessions) = linked(&server).await;
    let visitors = Visitors::arrive(&sessions).await;
    let mut over = 0;
    for (delay, lost) in [(60, false), (120, false), (180, false), (120, true)] {
        proxy.set(Mode::Delay(Duration::from_millis(delay)));
        let all = (0..10).map(async |number| {
            if lost && number == 9 {
                tokio::time::sleep(Duration::from_millis(300)).await;
                proxy.forget();
            }
            request(&sessions, &visitors.alice, Deed::Increment).await
        });
        for answer in bounded(join_all(all)).await {
            assert!(answer.took < TIMEOUT + Duration::from_millis(100), "{answer:?}");
            assert_eq!(answer.set_cookie, None);
            over += u32::from(answer.failure.is_some());
        }
        proxy.set(Mode::Pass);
    }
    assert!(over > 0, "no request ran out of time");
}

/// Increments a number, sequentially and concurrently, while connections are closed or silently dropped at
/// random times. Every acknowledged increment is kept, and none is applied twice.
async fn acknowledged_writes_survive_random_connection_faults(server: Server) {
    let direct = sessions(&server.direct_url());
    let (proxy, sessions) = linked(&server).await;
    let (proxy, done) = (Arc::new(proxy), Arc::new(AtomicBool::new(false)));
    let chaos = tokio::spawn({
        let (proxy, done, mut random) = (proxy.clone(), done.clone(), Rng::with_seed(7));
        async move {
            while !done.load(Ordering::Relaxed) {
                match random.u32(0..20) {
                    0 => proxy.forget(),
                    1 => proxy.half_close(),
                    2 => proxy.set(Mode::Delay(Duration::from_millis(random.u64(0..20)))),
                    _ => proxy.cut(),
                }
                tokio::time::sleep(Duration::from_micros(random.u64(0..20_000))).await;
                proxy.set(Mode::Pass);
            }
        }
    });
    let mut tallies = [[0_u64; 3]; 2];
    for (many, tally) in [1_usize, 20].into_iter().zip(&mut tallies) {
        let mut visitors = Visitors::arrive(&direct).await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            let at_once = (0..many).map(|_| request(&sessions, &visitors.alice, Deed::Increment));
            for answer in bounded(join_all(at_once)).await {
                assert_eq!(answer.set_cookie, None);
                match answer.failure {
                    None => tally[0] += 1,
                    Some(ErrorKind::OutcomeUnknown) => tally[1] += 1,
                    Some(ErrorKind::Unavailable | ErrorKind::Contended) => tally[2] += 1,
                    Some(_) => panic!("{answer:?}"),
                }
            }
        }
        (visitors.counted, visitors.unknown) = (tally[0], tally[1]);
        visitors.number_is_right().await;
        assert!(tally[0] > 100, "{tally:?}");
    }
    done.store(true, Ordering::Relaxed);
    chaos.await.unwrap();
    println!("applied, unknown, not applied: {tallies:?}");
}

/// Requests in two sessions read and write alternately while answers are late and requests are abandoned.
/// Each request finds only its own session's values.
async fn late_answer_never_reaches_another_request(server: Server) {
    const NAME: Key<String> = Key::new("name");
    let proxy = Proxy::start(server.port()).await;
    let (store, whole) = (Duration::from_millis(25), Duration::from_millis(100));
    let sessions = patient(&server, &proxy, store, whole);
    let names = ["x".repeat(3000), "y".repeat(500)];
    let mut cookies = Vec::new();
    for name in &names {
        let sign_in = async |session: Session| {
            session.sign_in(&name[..1])?;
            session.insert(NAME, name)
        };
        cookies.push(visit(&sessions, "", sign_in).await.cookie());
    }
    let (names, cookies) = (Arc::new(names), Arc::new(cookies));
    let mut random = Rng::with_seed(11);
    let (mut answered, mut failed, mut given_up) = (0, 0, 0);
    for _ in 0..120 {
        proxy.set(match random.u32(0..3) {
            0 => Mode::Delay(Duration::from_millis(20)),
            1 => Mode::Delay(Duration::from_millis(random.u64(0..10))),
            _ => Mode::Pass,
        });
        let mut requests = JoinSet::new();
        for turn in 0..8_usize {
            let (sessions, names, cookies) = (sessions.clone(), names.clone(), cookies.clone());
            let writes = random.u32(0..4) == 0;
            // Half of the requests are abandoned before their time limit.
            let limit = Duration::from_micros(random.u64(0..60_000) << (random.u32(0..2) * 6));
            requests.spawn(async move {
                let (name, cookie) = (&names[turn % 2], &cookies[turn % 2]);
                let handler = async |session: Session| {
                    if writes {
                        session.update(NUMBER, |number| *number += 1)?;
                    }
                    Ok((session.principal(), session.get(NAME)?))
                };
                let visit = tokio::time::timeout(limit, visit(&sessions, cookie, handler)).await;
                let Ok(visit) = visit else { return None };
                assert_eq!(visit.set_cookie, None);
                if let Ok((principal, found)) = &visit.output {
                    assert_eq!(principal.as_deref(), Some(&name[..1]));
                    assert_eq!(found.as_ref(), Some(name));
                }
                Some(visit.failure())
            });
        }
        while let Some(request) = requests.join_next().await {
            match request.unwrap() {
                Some(None) => answered += 1,
                Some(Some(_)) => failed += 1,
                None => given_up += 1,
            }
        }
    }
    println!("{answered} answered, {failed} failed, {given_up} given up");
    assert!(answered > 50 && failed > 0 && given_up > 50, "{answered} {failed} {given_up}");
}

/// Checks the proxy itself. A Sentinel may connect to its master through the proxy at any time, so cutting
/// must include connections that are just being made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_cuts_connections_that_are_being_made() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap().port()).await;
    for _ in 0..500 {
        let client = tokio::spawn(TcpStream::connect(("127.0.0.1", proxy.port())));
        let (accepted, _) = server.accept().await.unwrap();
        proxy.cut();
        let closed = tokio::time::timeout(Duration::from_secs(10), proxy.all_closed()).await;
        assert!(closed.is_ok(), "a connection that was cut stays open");
        drop((client.await.unwrap().unwrap(), accepted));
    }
}

on_servers! { [redis, memcached, cluster, sentinel]: {
    requests_recover_after_server_restart,
    requests_recover_after_server_pause,
    requests_recover_when_server_starts_after_application,
    requests_succeed_after_idle_connection_is_closed,
    requests_succeed_on_half_open_connections,
    requests_recover_after_network_blackhole,
    requests_succeed_after_server_half_closes_connection,
    requests_recover_after_late_answers,
    requests_recover_after_refused_connections,
    requests_succeed_when_bytes_arrive_one_at_a_time,
    requests_recover_after_garbage_answers,
    oversize_record_is_rejected_and_session_is_kept,
    load_commit_and_settlement_share_one_deadline,
    acknowledged_writes_survive_random_connection_faults,
    late_answer_never_reaches_another_request,
}}
