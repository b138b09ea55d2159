//! The findings of `Sessions::check` on Memcached servers. Each finding is provoked on a real server,
//! or on a scripted one if no real server behaves that way.

#![cfg(all(feature = "memcached", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::backend::accepted;
use support::servers::MemcachedServer;
use support::topologies::eventually;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use unsticky::check::{Finding, Level, Report};
use unsticky::store::MemcachedStore;
use unsticky::testing::ManualClock;
use unsticky::{Builder, Sessions};

/// A generous timeout, because a busy machine may be slow and these tests do not measure speed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Larger than the smallest limit on item sizes that a server accepts on every system.
const LARGE: usize = 600_000;

/// The arguments that limit items to 512 KiB. A lower limit would require additional settings.
const SMALL_ITEMS: [&str; 2] = ["-I", "512k"];

fn builder(url: &str, patience: Duration) -> Builder {
    let store = MemcachedStore::builder(url).unwrap();
    let store = store.connect_timeout(patience).response_timeout(patience).build();
    Sessions::builder(store).timeout(4 * patience)
}

async fn checked(builder: Builder) -> Report {
    builder.build().unwrap().check().await
}

async fn check(server: &MemcachedServer) -> Report {
    checked(builder(&server.url(), PATIENCE)).await
}

/// Returns one URL for all servers.
fn list<'a>(addresses: impl IntoIterator<Item = &'a str>) -> String {
    format!("memcached://{}", addresses.into_iter().collect::<Vec<_>>().join(","))
}

fn about<'a>(report: &'a Report, address: &str) -> Vec<&'a Finding> {
    let subject = format!("memcached at {address}");
    report.findings().iter().filter(|finding| finding.subject() == subject).collect()
}

/// Returns the only finding with this code.
#[track_caller]
fn found<'a>(report: &'a Report, code: &str) -> &'a Finding {
    let mut found = report.findings().iter().filter(|finding| finding.code() == code);
    match (found.next(), found.next()) {
        (Some(finding), None) => finding,
        _ => panic!("not one {code}:\n{report}"),
    }
}

#[track_caller]
fn assert_level(report: &Report, code: &str, level: Level) {
    assert_eq!(found(report, code).level(), level, "{report}");
}

/// Returns the codes of the findings at this level or a more severe one.
fn codes(report: &Report, level: Level) -> Vec<&'static str> {
    let findings = report.findings().iter().filter(|finding| finding.level() >= level);
    findings.map(Finding::code).collect()
}

/// Stores items of 10 KiB until the condition holds.
fn fill(server: &MemcachedServer, mut holds: impl FnMut() -> bool) {
    let value = "x".repeat(10 * 1024);
    for n in 0..100_000 {
        if n % 100 == 0 && holds() {
            return;
        }
        server.cli(&format!("ms filler-{n} {}\r\n{value}", value.len()));
    }
    panic!("the server is never full: {}", server.stats());
}

/// Returns whether the server's memory is nearly used up. A memory page holds items of one size class only,
/// so a very small server evicts items long before its memory is used up.
fn is_full(server: &MemcachedServer) -> bool {
    server.stat("bytes") > server.stat("limit_maxbytes") * 82 / 100
}

#[tokio::test]
async fn healthy_server_has_no_warning() {
    let server = MemcachedServer::start();
    let report = check(&server).await;
    // The only note is that the server has just been started.
    assert_eq!(codes(&report, Level::Note), ["uptime"], "{report}");
    for code in [
        "round_trip",
        "commands",
        "version",
        "cas",
        "item_size",
        "evictions",
        "memory",
        "connections",
        "clock",
    ] {
        assert_level(&report, code, Level::Fine);
    }
    assert_eq!(about(&report, &server.address()).len(), report.findings().len(), "{report}");
    let stats = server.stats();
    let version = stats.lines().find_map(|line| line.strip_prefix("STAT version ")).unwrap();
    let message = format!("It is Memcached {version}.");
    assert_eq!(found(&report, "version").message(), message);
}

/// With `-C`, items have no versions, so compare-and-set cannot work. The check tries no verbs on such a
/// server.
#[tokio::test]
async fn server_without_versions_is_one_error() {
    let server = MemcachedServer::start_with(&["-C"]);
    let report = check(&server).await;
    assert_eq!(codes(&report, Level::Warning), ["cas"], "{report}");
    assert!(found(&report, "cas").remedy().contains("without -C"), "{report}");
    assert!(report.findings().iter().all(|finding| finding.code() != "commands"), "{report}");
    assert_eq!(server.stat("cmd_set"), 0);
}

#[tokio::test]
async fn item_too_small_for_largest_record_is_a_warning_that_says_what_fits() {
    let server = MemcachedServer::start_with(&SMALL_ITEMS);
    assert_level(&check(&server).await, "item_size", Level::Fine);
    let of = |record| checked(builder(&server.url(), PATIENCE).max_record_bytes(record));
    let report = of(LARGE).await;
    assert_eq!(codes(&report, Level::Warning), ["item_size"], "{report}");
    let remedy = found(&report, "item_size").remedy();
    assert!(remedy.contains("-I 1m"), "{remedy}");
    let most = remedy.rsplit_once(' ').unwrap().1.trim_end_matches('.');
    let most: usize = most.parse().unwrap();
    assert_level(&of(most).await, "item_size", Level::Fine);
    assert_level(&of(most + 1).await, "item_size", Level::Warning);
    // This key is as long as the check assumes a record's key to be.
    let key = "k".repeat(512 * 1024 - 64 - most);
    let write = |bytes: usize| server.cli(&format!("ms {key} {bytes}\r\n{}", "x".repeat(bytes)));
    assert!(write(most).starts_with("HD"));
    assert!(write(LARGE).starts_with("SERVER_ERROR"));
    assert!(server.cli(&format!("mg {key} v")).starts_with("EN"), "the refused write deletes");
    let report = check(&server).await;
    assert_eq!(codes(&report, Level::Warning), ["refused_writes"], "{report}");
    assert!(found(&report, "refused_writes").message().contains(" 1 write because of the size"));
}

#[tokio::test]
async fn server_that_evicts_is_a_warning() {
    let server = MemcachedServer::start_with(&["-m", "32", SMALL_ITEMS[0], SMALL_ITEMS[1]]);
    assert_level(&check(&server).await, "evictions", Level::Fine);
    fill(&server, || server.stat("evictions") > 0 && is_full(&server));
    let report = check(&server).await;
    assert_eq!(codes(&report, Level::Warning), ["evictions", "memory"], "{report}");
    let count = format!("{} items", server.stat("evictions"));
    assert!(found(&report, "evictions").message().contains(&count), "{report}");
}

#[tokio::test]
async fn server_that_refuses_writes_when_full_is_a_warning() {
    let server = MemcachedServer::start_with(&["-M", "-m", "32", SMALL_ITEMS[0], SMALL_ITEMS[1]]);
    let report = check(&server).await;
    assert_eq!(codes(&report, Level::Warning), ["evictions"], "{report}");
    assert_level(&report, "evictions", Level::Warning);
    assert!(found(&report, "evictions").remedy().contains("without -M"), "{report}");
    fill(&server, || server.stat("store_no_memory") > 0 && is_full(&server));
    let report = check(&server).await;
    assert_level(&report, "evictions", Level::Warning);
    assert_level(&report, "refused_writes", Level::Warning);
    assert_level(&report, "memory", Level::Warning);
}

#[tokio::test]
async fn clock_that_is_off_is_a_warning() {
    let server = MemcachedServer::start();
    for (off, way) in [(3600, "behind"), (-3600, "ahead")] {
        let now = OffsetDateTime::now_utc() + time::Duration::seconds(off);
        let report = checked(builder(&server.url(), PATIENCE).clock(ManualClock::at(now))).await;
        assert_eq!(codes(&report, Level::Warning), ["clock"], "{report}");
        let message = found(&report, "clock").message();
        assert!(message.contains(way), "{message}");
        let seconds: Option<i64> = message.split(' ').find_map(|word| word.parse().ok());
        assert!((3550..3650).contains(&seconds.unwrap()), "{message}");
    }
}

#[tokio::test]
async fn limit_of_connections_is_a_warning_when_near_and_an_error_when_reached() {
    // The server reserves some of these connections for itself.
    let server = MemcachedServer::start_with(&["-c", "100", "-t", "4"]);
    let mut held = Vec::new();
    while server.stat("curr_connections") < 68 {
        held.push(accepted(server.port()).await.unwrap());
    }
    let report = check(&server).await;
    assert_eq!(codes(&report, Level::Warning), ["connections"], "{report}");
    assert_level(&report, "connections", Level::Warning);
    while let Some(connection) = accepted(server.port()).await {
        held.push(connection);
    }
    let report = check(&server).await;
    assert_eq!(codes(&report, Level::Fine), ["connections"], "{report}");
    assert_level(&report, "connections", Level::Error);
    drop(held);
    eventually("the connections do not end", || server_is_idle(&server));
    let report = check(&server).await;
    assert_eq!(codes(&report, Level::Warning), ["connections"], "{report}");
    assert!(found(&report, "connections").message().contains("rejected_connections"), "{report}");
}

/// Returns whether the connections have been closed. A full server refuses to answer.
fn server_is_idle(server: &MemcachedServer) -> bool {
    let open = server.stat("curr_connections");
    (1..20).contains(&open)
}

#[tokio::test]
async fn every_server_of_a_list_is_tried_on_a_key_of_its_own() {
    let servers = [(); 3].map(|()| MemcachedServer::start());
    let addresses = servers.each_ref().map(MemcachedServer::address);
    let url = list(addresses.iter().map(String::as_str));
    let report = checked(builder(&url, PATIENCE)).await;
    assert_eq!(report.level(), Level::Note, "{report}");
    let mut subjects: Vec<_> = report.findings().iter().map(Finding::subject).collect();
    subjects.dedup();
    assert_eq!(subjects.len(), 3, "the findings about a server stand together:\n{report}");
    for (server, address) in servers.iter().zip(&addresses) {
        let findings = about(&report, address);
        assert!(findings.iter().any(|finding| finding.code() == "commands"), "{report}");
        assert!(server.stat("cmd_set") > 0, "{address}");
        assert_eq!(server.stat("curr_items"), 0, "{address}");
    }
}

#[tokio::test]
async fn server_that_is_down_is_an_error_and_others_are_reported() {
    let mut servers = [(); 3].map(|()| MemcachedServer::start());
    let addresses = servers.each_ref().map(MemcachedServer::address);
    servers[1].stop();
    let report = checked(builder(&list(addresses.iter().map(String::as_str)), PATIENCE)).await;
    assert_eq!(codes(&report, Level::Warning), ["unreachable"], "{report}");
    let down = about(&report, &addresses[1]);
    assert_eq!(down.len(), 1, "{report}");
    assert!(down[0].message().contains("refused"), "{report}");
    for address in [&addresses[0], &addresses[2]] {
        assert_eq!(about(&report, address).len(), 10, "{report}");
    }
}

#[tokio::test]
async fn paused_server_is_an_error_within_the_time_and_others_are_reported() {
    let servers = [(); 2].map(|()| MemcachedServer::start());
    let addresses = servers.each_ref().map(MemcachedServer::address);
    let url = list(addresses.iter().map(String::as_str));
    servers[0].pause();
    // The first store's connection attempt times out before the check's time limit, and the second's after
    // it.
    for (connect, code) in [(1, "unreachable"), (60, "unanswered")] {
        let store = MemcachedStore::builder(&url).unwrap();
        let store = store.connect_timeout(Duration::from_secs(connect)).response_timeout(PATIENCE);
        let timeout = Duration::from_secs(2);
        let begun = Instant::now();
        let report = checked(Sessions::builder(store.build()).timeout(timeout)).await;
        assert!(
            begun.elapsed() < 2 * timeout + Duration::from_millis(500),
            "{:?}",
            begun.elapsed()
        );
        let paused = about(&report, &addresses[0]);
        assert_eq!(paused.len(), 1, "{report}");
        assert_eq!((paused[0].code(), paused[0].level()), (code, Level::Error), "{report}");
        assert!(about(&report, &addresses[1]).len() >= 10, "{report}");
    }
    servers[0].resume();
}

#[tokio::test]
async fn no_other_key_is_read_or_written() {
    let server = MemcachedServer::start();
    for n in 0..100 {
        server.cli(&format!("ms other-{n} 5 T600\r\nvalue"));
    }
    let dump = || {
        let mut dump = String::new();
        eventually("the server lists no keys", || {
            dump = server.cli("lru_crawler metadump all");
            dump.lines().count() == 101
        });
        // The lines include the time of each key's last access.
        let mut lines: Vec<_> = dump.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = dump();
    assert!(before.iter().any(|line| line.contains("fetch=no")), "{before:?}");
    let report = check(&server).await;
    assert_level(&report, "commands", Level::Fine);
    assert_eq!(dump(), before);
}

/// Starts a server that answers each chunk of input with the result of `answer`, and closes the connection if
/// the result is `None`.
async fn fake<F>(answer: F) -> SocketAddr
where
    F: Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut bytes = vec![0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                    let Some(answer) = answer(&String::from_utf8_lossy(&bytes[..read])) else {
                        return;
                    };
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn at(address: SocketAddr) -> String {
    format!("memcached://{address}")
}

#[tokio::test]
async fn old_release_is_one_error() {
    for (greeting, version, said) in [
        ("ERROR\r\n", "VERSION 1.5.22\r\n", "Memcached 1.5.22"),
        ("MN\r\n", "VERSION 1.6.12\r\n", "Memcached 1.6.12"),
        ("ERROR\r\n", "VERSION 1.6.18\r\n", "meta commands"),
        ("ERROR\r\n", "ERROR\r\n", "meta commands"),
    ] {
        let address = fake(move |command| {
            let answer = match command {
                "mn\r\n" => greeting,
                "version\r\n" => version,
                _ => "ERROR\r\n",
            };
            Some(answer.into())
        });
        let report = checked(builder(&at(address.await), PATIENCE)).await;
        assert_eq!(codes(&report, Level::Warning), ["version"], "{report}");
        assert!(found(&report, "version").message().contains(said), "{report}");
        assert_level(&report, "hidden", Level::Note);
    }
}

/// Something other than Memcached answers on the port, such as a TLS or an HTTP server. The error describes
/// the answer without repeating unknown text.
#[tokio::test]
async fn port_of_something_else_is_an_error_that_says_so() {
    const ALERT: &[u8] = b"\x15\x03\x03\x00\x02\x02\x0a";
    for (greeting, said) in [
        (Some(ALERT), "answered in TLS"),
        (None, "if the port expects TLS"),
        (Some(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]), "not a Memcached answer"),
        (Some(b"-ERR unknown command 'hunter2'\r\n"), "not a Memcached answer"),
        (Some(b"CLIENT_ERROR no mn hunter2\r\n"), "it rejected the command: no …"),
        (Some(b"SERVER_ERROR busy \x1b[31mhunter2\r\n"), "answered with an error: busy …"),
        (Some(&[b'x'; 10_000]), "not a Memcached answer"),
    ] {
        let is_alert = greeting == Some(ALERT);
        let address = fake(move |_| greeting.map(<[u8]>::to_vec)).await;
        // A TLS server closes the connection after its alert.
        let address = if is_alert { closing_after(ALERT).await } else { address };
        let report = checked(builder(&at(address), PATIENCE)).await;
        assert_eq!(codes(&report, Level::Fine), ["unreachable"], "{report}");
        assert_level(&report, "unreachable", Level::Error);
        let text = report.to_string();
        assert!(text.contains(said), "{said}: {text}");
        assert!(!text.contains("hunter2") && !text.contains('\x1b'), "{text}");
    }
}

/// Starts a server that sends these bytes to every client and then closes the connection.
async fn closing_after(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // If the input were not read first, the connection would be reset.
            let _ = stream.read(&mut [0; 64]).await;
            let _ = stream.write_all(bytes).await;
        }
    });
    address
}

#[tokio::test]
async fn server_that_wants_authentication_is_an_error() {
    let address = fake(|_| Some(b"CLIENT_ERROR unauthenticated\r\n".to_vec())).await;
    let report = checked(builder(&at(address), PATIENCE)).await;
    assert_eq!(codes(&report, Level::Fine), ["unreachable"], "{report}");
    assert!(found(&report, "unreachable").message().contains("unauthenticated"), "{report}");
    assert!(found(&report, "unreachable").remedy().contains("authentication"), "{report}");
}

/// Starts a proxy in front of a real server. The proxy answers `stats` itself with these bytes, or closes the
/// connection if there are none.
async fn proxy(server: &MemcachedServer, stats: Option<&'static [u8]>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let port = server.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.into_split();
                let (mut answers, mut commands) = server.into_split();
                let (say, mut said) = tokio::sync::mpsc::channel(1);
                let asked = async {
                    let mut bytes = vec![0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut bytes).await {
                        if !bytes.starts_with(b"stats") {
                            commands.write_all(&bytes[..read]).await.unwrap();
                        } else if let Some(stats) = stats {
                            say.send(stats).await.unwrap();
                        } else {
                            return;
                        }
                    }
                };
                let answered = async {
                    let mut bytes = vec![0; 4096];
                    loop {
                        let written = tokio::select! {
                            Some(stats) = said.recv() => to.write_all(stats).await,
                            Ok(read @ 1..) = answers.read(&mut bytes) => {
                                to.write_all(&bytes[..read]).await
                            }
                            else => return,
                        };
                        if written.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! { () = asked => {}, () = answered => {} }
            });
        }
    });
    address
}

#[tokio::test]
async fn server_that_hides_its_statistics_is_a_note() {
    let server = MemcachedServer::start();
    for stats in [
        None,
        Some(&b"ERROR\r\n"[..]),
        Some(b"SERVER_ERROR hunter2\r\n"),
        Some(b"END\r\n"),
        Some(b"STAT hunter2 hunter2\r\nEND\r\n"),
        Some(b"STAT bytes 12\r\nhunter2\r\nEND\r\n"),
        Some(b"\xff\x00\n"),
    ] {
        let address = proxy(&server, stats).await;
        let report = checked(builder(&at(address), PATIENCE)).await;
        assert_eq!(codes(&report, Level::Note), ["hidden"], "{report}");
        assert_eq!(codes(&report, Level::Fine).len(), 4, "{report}");
        assert_level(&report, "commands", Level::Fine);
        assert_level(&report, "version", Level::Fine);
        assert!(!report.to_string().contains("hunter2"), "{report}");
    }
}

#[tokio::test]
async fn answer_that_does_not_end_is_a_note_within_the_time() {
    let server = MemcachedServer::start();
    // No answer, half a line, and half an answer.
    for stats in [&b""[..], b"STAT bytes 12", b"STAT bytes 12\r\n"] {
        let address = proxy(&server, Some(stats)).await;
        let store = MemcachedStore::builder(&at(address)).unwrap();
        let store = store.connect_timeout(PATIENCE).response_timeout(Duration::from_secs(1));
        let begun = Instant::now();
        let report = checked(Sessions::builder(store.build()).timeout(2 * PATIENCE)).await;
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        assert_eq!(codes(&report, Level::Note), ["hidden"], "{report}");
        assert_level(&report, "commands", Level::Fine);
    }
}

#[tokio::test]
async fn endless_answer_is_not_read_to_its_end() {
    let server = MemcachedServer::start();
    let lines = b"STAT name value\r\n".repeat(10_000).leak();
    let one_line = [b'x'; 170_000].to_vec().leak();
    for stats in [&*lines, &*one_line] {
        let address = proxy(&server, Some(stats)).await;
        let begun = Instant::now();
        let report = checked(builder(&at(address), PATIENCE)).await;
        // Reading stops at the length limit, not at the time limit.
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        assert_eq!(codes(&report, Level::Note), ["hidden"], "{report}");
        assert_level(&report, "commands", Level::Fine);
    }
}

#[tokio::test]
async fn arbitrary_answers_end_in_a_report() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut runs = Vec::new();
    for _ in 0..50 {
        let mut answers: Vec<Vec<u8>> = Vec::new();
        for _ in 0..4 {
            let length = random.usize(0..200);
            let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            bytes.extend(b"\r\nEND\r\n");
            answers.push(bytes);
        }
        let address = fake(move |command| {
            let place = match command {
                "mn\r\n" => return Some(b"MN\r\n".to_vec()),
                "version\r\n" => 0,
                "stats\r\n" => 1,
                "stats settings\r\n" => 2,
                _ => 3,
            };
            Some(answers[place].clone())
        });
        let url = at(address.await);
        runs.push(checked(builder(&url, Duration::from_secs(1))));
    }
    for report in futures_util::future::join_all(runs).await {
        assert_level(&report, "hidden", Level::Note);
        assert_eq!(report.level(), Level::Error, "{report}");
        assert!(!report.to_string().contains(|c: char| c.is_control() && c != '\n'), "{report:?}");
    }
}
