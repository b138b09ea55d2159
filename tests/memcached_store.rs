//! The Memcached store when servers refuse writes, stop, restart, hang or send invalid answers.

#![cfg(all(feature = "memcached", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "they are tests")]

mod support;

use std::error::Error as _;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use unsticky::store::{
    Created, Deleted, MemcachedStore, Replaced, Store, StoreKey, Stored, Version,
};
use unsticky::testing::{random_key, random_record as record};
use unsticky::{Error, ErrorKind};

use self::support::backend::{accepted, patient};
use self::support::servers::MemcachedServer;
use self::support::{blocked_runtime_delays_no_other_one, runtime};

const TTL: Duration = Duration::from_secs(600);

fn store(server: &MemcachedServer) -> MemcachedStore {
    MemcachedStore::connect(&server.url()).unwrap()
}

async fn created(store: &MemcachedStore, key: &StoreKey, bytes: Bytes) -> Stored {
    match store.create(key, bytes.clone(), TTL).await.unwrap() {
        Created::Created(version) => Stored::new(bytes, version),
        Created::Occupied => panic!("{key} is occupied"),
    }
}

async fn bytes(store: &MemcachedStore, key: &StoreKey) -> Option<Bytes> {
    store.load(key).await.unwrap().map(|stored| stored.bytes)
}

/// Stops the server's process, and waits until the signal has reached each of its threads.
fn pause(server: &MemcachedServer) {
    server.pause();
    std::thread::sleep(Duration::from_millis(50));
}

/// Measures how long the future takes, and fails if it hangs.
async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    let output = tokio::time::timeout(Duration::from_secs(10), future).await.expect("hangs");
    (output, start.elapsed())
}

#[tokio::test]
async fn batched_operations_get_their_own_answers() {
    let server = MemcachedServer::start();
    // The long timeout allows for a busy machine, whose speed is not the subject of this test.
    let store = MemcachedStore::builder(&server.url()).unwrap();
    let store = store.response_timeout(Duration::from_secs(10)).build();
    let records: Vec<_> = (0..2000).map(|n| (random_key(), record(8 + n))).collect();
    let created =
        join_all(records.iter().map(|(key, record)| created(&store, key, record.clone()))).await;
    let read = join_all(records.iter().map(|(key, _)| store.load(key))).await;
    for (((key, _), expected), read) in records.iter().zip(created).zip(read) {
        assert_eq!(read.unwrap(), Some(expected), "{key}");
    }
    let absent = join_all((0..300).map(|_| async { store.load(&random_key()).await })).await;
    assert!(absent.into_iter().all(|read| read.unwrap().is_none()));
    let verbs = records.iter().take(300).map(|(key, _)| async {
        let first = store.load(key).await.unwrap().unwrap();
        let new = record(16);
        let replaced = store.replace(key, new.clone(), TTL, &first).await.unwrap();
        let Replaced::Replaced(next) = replaced else { panic!("{replaced:?}") };
        let next = Stored::new(new.clone(), next);
        let stale = store.replace(key, new.clone(), TTL, &first).await.unwrap();
        assert_eq!(stale, Replaced::Conflict(None));
        assert_eq!(store.create(key, new.clone(), TTL).await.unwrap(), Created::Occupied);
        assert_eq!(store.delete(key, Some(&first)).await.unwrap(), Deleted::Conflict(None));
        assert_eq!(bytes(&store, key).await, Some(new.clone()));
        assert_eq!(store.delete(key, Some(&next)).await.unwrap(), Deleted::Deleted);
        assert_eq!(store.delete(key, None).await.unwrap(), Deleted::Missing);
        assert_eq!(store.replace(key, new, TTL, &next).await.unwrap(), Replaced::Missing);
    });
    join_all(verbs).await;
}

#[tokio::test]
async fn oversize_write_is_refused_without_refusing_its_batch() {
    let server = MemcachedServer::start_with(&["-I", "512k", "-m", "64"]);
    let store = store(&server);
    let mut unknown = 0;
    for large in 0..16 {
        let size = |n| if n == large { 600_000 } else { 1000 };
        let records: Vec<_> = (0..16).map(|n| (random_key(), record(size(n)))).collect();
        let writes = records.iter().map(|(key, record)| store.create(key, record.clone(), TTL));
        for (n, result) in join_all(writes).await.into_iter().enumerate() {
            let (key, record) = &records[n];
            if n == large {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::TooLarge);
                assert_eq!(bytes(&store, key).await, None);
            } else {
                unknown += usize::from(is_true_of_a_neighbour(&store, key, record, result).await);
            }
        }
    }
    assert!(unknown > 0, "the writes were not batched");
}

/// Asserts that a create was not refused, and that the store agrees with the result. Returns whether
/// the outcome is unknown.
async fn is_true_of_a_neighbour(
    store: &MemcachedStore,
    key: &StoreKey,
    record: &Bytes,
    result: Result<Created, Error>,
) -> bool {
    let read = bytes(store, key).await;
    match result {
        Ok(created) => {
            assert!(matches!(created, Created::Created(_)));
            assert_eq!(read.as_ref(), Some(record));
            false
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}");
            assert!(read.is_none_or(|read| read == *record));
            true
        }
    }
}

#[tokio::test]
async fn out_of_memory_write_is_refused_without_refusing_its_batch() {
    let server = MemcachedServer::start_with(&["-M", "-m", "2"]);
    let store = store(&server);
    let mut refused = 0;
    for _ in 0..40 {
        let records: Vec<_> = (0..16).map(|_| (random_key(), record(8000))).collect();
        let writes = records.iter().map(|(key, record)| store.create(key, record.clone(), TTL));
        let results = join_all(writes).await;
        for ((key, record), result) in records.iter().zip(results) {
            match result {
                Err(error) if error.kind() == ErrorKind::Refused => {
                    assert!(format!("{error:?}").contains("out of memory"), "{error:?}");
                    assert_eq!(bytes(&store, key).await, None);
                    refused += 1;
                }
                result => {
                    is_true_of_a_neighbour(&store, key, record, result).await;
                }
            }
        }
    }
    assert!(refused > 0, "the server was not filled");
}

#[tokio::test]
async fn record_over_limit_is_not_sent_and_old_record_stays() {
    let server = MemcachedServer::start();
    let store = store(&server);
    let (key, old) = (random_key(), record(100));
    let stored = created(&store, &key, old.clone()).await;
    let large = record(1_000_001);
    let replaced = store.replace(&key, large.clone(), TTL, &stored).await;
    assert_eq!(replaced.unwrap_err().kind(), ErrorKind::TooLarge);
    let again = store.create(&key, large, TTL).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(bytes(&store, &key).await, Some(old));
    let most = record(1_000_000);
    let replaced = store.replace(&key, most.clone(), TTL, &stored).await.unwrap();
    assert!(matches!(replaced, Replaced::Replaced(_)));
    assert_eq!(bytes(&store, &key).await, Some(most));
}

#[tokio::test]
async fn server_without_cas_is_refused_with_remedy() {
    let server = MemcachedServer::start_with(&["-C"]);
    let store = store(&server);
    let key = random_key();
    let error = store.create(&key, record(100), TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(format!("{error:?}").contains("start it without -C"), "{error:?}");
    assert_eq!(bytes(&store, &key).await, None, "a refusal says that nothing was written");

    server.cli(&format!("ms {key} 8 T60\r\nabcdefgh"));
    let error = store.load(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(format!("{error:?}").contains("start it without -C"), "{error:?}");
}

#[tokio::test]
async fn item_that_another_program_has_marked_is_not_a_record() {
    let server = MemcachedServer::start();
    let store = store(&server);
    let [stale, renewed, leased, empty] = [(); 4].map(|()| random_key());
    for key in [&stale, &renewed] {
        created(&store, key, record(100)).await;
    }
    server.cli(&format!("md {stale} I T60"));
    // For a stale item, the server tells the first reader to renew it, and later readers that the first
    // one is doing so.
    for _ in 0..2 {
        assert_eq!(store.load(&stale).await.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    server.cli(&format!("mg {renewed} R9999"));
    assert_eq!(store.load(&renewed).await.unwrap_err().kind(), ErrorKind::Corrupt);
    server.cli(&format!("mg {leased} N60"));
    assert_eq!(store.load(&leased).await.unwrap_err().kind(), ErrorKind::Corrupt);
    server.cli(&format!("ms {empty} 0 T60\r\n"));
    assert_eq!(bytes(&store, &empty).await, Some(Bytes::new()));
}

#[tokio::test]
async fn ttl_over_thirty_days_is_honoured() {
    let server = MemcachedServer::start();
    let store = store(&server);
    let day = Duration::from_secs(24 * 60 * 60);
    for ttl in [day * 29, day * 30, day * 31, day * 400, day * 36_500, Duration::MAX] {
        let key = random_key();
        let created = store.create(&key, record(100), ttl).await.unwrap();
        assert!(matches!(created, Created::Created(_)));
        let stored = store.load(&key).await.unwrap().unwrap();
        assert!(bytes(&store, &key).await.is_some(), "{ttl:?}");
        has_its_ttl(&server, &key, ttl);
        store.replace(&key, record(100), ttl, &stored).await.unwrap();
        assert!(bytes(&store, &key).await.is_some(), "{ttl:?}");
        has_its_ttl(&server, &key, ttl);
    }
}

/// Asserts that the server will keep the key for as long as requested, but not beyond January 2038.
fn has_its_ttl(server: &MemcachedServer, key: &StoreKey, ttl: Duration) {
    let answer = server.cli(&format!("mg {key} t"));
    let left = answer.trim().strip_prefix("HD t").and_then(|left| left.parse::<u64>().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let asked = ttl.as_secs().min(i32::MAX as u64 - now);
    // The server's clock ticks once per second, and the store adds a second.
    let near = asked.saturating_sub(3)..=asked.saturating_add(3);
    assert!(left.is_some_and(|left| near.contains(&left)), "{ttl:?}: {answer}");
}

#[tokio::test]
async fn ttl_under_one_second_is_rounded_up_and_expires() {
    let server = MemcachedServer::start();
    let store = store(&server);
    let (short, shortened) = (random_key(), random_key());
    let start = Instant::now();
    store.create(&short, record(100), Duration::from_millis(200)).await.unwrap();
    let stored = created(&store, &shortened, record(100)).await;
    store.replace(&shortened, record(100), Duration::from_millis(1), &stored).await.unwrap();
    while start.elapsed() < Duration::from_millis(200) {
        assert!(bytes(&store, &short).await.is_some() || start.elapsed().as_millis() >= 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while bytes(&store, &short).await.is_some() || bytes(&store, &shortened).await.is_some() {
        assert!(start.elapsed() < Duration::from_secs(4), "still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn first_command_after_server_restart_succeeds() {
    let mut server = MemcachedServer::start();
    let store = store(&server);
    let key = random_key();
    created(&store, &key, record(100)).await;
    join_all((0..100).map(|_| bytes(&store, &key))).await;
    server.restart();
    assert_eq!(bytes(&store, &key).await, None);
    created(&store, &key, record(100)).await;
    server.restart();
    created(&store, &key, record(100)).await;
}

#[tokio::test]
async fn server_started_after_application_is_found() {
    let mut server = MemcachedServer::start();
    server.stop();
    let store = store(&server);
    let key = random_key();
    for _ in 0..3 {
        let (read, took) = timed(store.load(&key)).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(took < Duration::from_millis(450), "{took:?}");
        let written = store.create(&key, record(100), TTL).await;
        assert_eq!(written.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    server.restart();
    created(&store, &key, record(100)).await;
    assert!(bytes(&store, &key).await.is_some());
}

#[tokio::test]
async fn unavailable_node_affects_only_its_own_keys() {
    let (up, mut down) = (MemcachedServer::start(), MemcachedServer::start());
    down.stop();
    let connect = |one: &MemcachedServer, other: &MemcachedServer| {
        let url = format!("memcached://{},{}", one.address(), other.address());
        MemcachedStore::connect(&url).unwrap()
    };
    let (store, twin) = (connect(&up, &down), connect(&down, &up));
    let (mut working, mut failing) = (0, Vec::new());
    for _ in 0..64 {
        let key = random_key();
        let (result, took) = timed(store.create(&key, record(100), TTL)).await;
        assert!(took < Duration::from_millis(450), "{took:?}");
        match result {
            Ok(_) => {
                working += 1;
                assert!(bytes(&twin, &key).await.is_some(), "another process routes keys alike");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                let read = store.load(&key).await;
                assert_eq!(read.unwrap_err().kind(), ErrorKind::Unavailable, "the key was moved");
                failing.push(key);
            }
        }
    }
    assert!(working > 10 && failing.len() > 10, "{working} {}", failing.len());
    assert_eq!(up.stat("curr_items"), working);
    down.restart();
    for key in failing {
        created(&store, &key, record(100)).await;
        assert!(bytes(&twin, &key).await.is_some());
    }
    assert_eq!(up.stat("curr_items"), working);
}

#[tokio::test]
async fn hanging_server_returns_errors_in_time_and_recovers() {
    let server = MemcachedServer::start();
    let store = store(&server);
    let (key, old) = (random_key(), record(100));
    let stored = created(&store, &key, old.clone()).await;
    bytes(&store, &key).await;
    pause(&server);
    let replace = store.replace(&key, record(100), TTL, &stored);
    let ((read, written), took) = timed(async { tokio::join!(store.load(&key), replace) }).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(written.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert!(took < Duration::from_millis(900), "{took:?}");
    // The store now knows that the server does not answer, so it does not even send this write.
    let (written, took) = timed(store.replace(&key, record(100), TTL, &stored)).await;
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(took < Duration::from_millis(900), "{took:?}");
    let (reads, took) = timed(join_all((0..2000).map(|_| store.load(&key)))).await;
    assert!(reads.iter().all(Result::is_err));
    assert!(took < Duration::from_millis(2000), "{took:?}");
    server.resume();
    let resumed = Instant::now();
    while store.load(&key).await.is_err() {
        assert!(resumed.elapsed() < Duration::from_millis(500));
    }
    let replace = async || {
        let stored = store.load(&key).await.unwrap().unwrap();
        store.replace(&key, record(100), TTL, &stored).await.unwrap()
    };
    // The in-doubt write may arrive between the load and the replace, but only once.
    let mut replaced = replace().await;
    if replaced == Replaced::Conflict(None) {
        replaced = replace().await;
    }
    assert!(matches!(replaced, Replaced::Replaced(_)), "{replaced:?}");
}

#[tokio::test]
async fn commands_over_waiting_limit_are_refused_at_once() {
    let server = MemcachedServer::start();
    let store = MemcachedStore::builder(&server.url()).unwrap().max_waiting(4).build();
    let key = random_key();
    assert!(store.load(&key).await.unwrap().is_none());
    pause(&server);
    let begun = Instant::now();
    let loads = (0..20).map(|_| async {
        let error = store.load(&key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        (begun.elapsed() < Duration::from_millis(100)).then(|| format!("{error:?}"))
    });
    let refused: Vec<_> = join_all(loads).await.into_iter().flatten().collect();
    // One task sends its own command, and up to four more commands are in progress while another four
    // wait.
    assert!((11..=15).contains(&refused.len()), "{refused:?}");
    assert!(refused.iter().all(|error| error.contains("too many")), "{refused:?}");
    server.resume();
    assert!(store.load(&key).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_load_never_returns_record_of_another_key() {
    let server = MemcachedServer::start();
    let store = Arc::new(store(&server));
    let records = [(random_key(), record(40_000)), (random_key(), record(9_000))];
    for (key, record) in &records {
        created(&store, key, record.clone()).await;
    }
    for n in 0..600_u64 {
        let (key, record) = &records[n as usize % 2];
        let load = {
            let (store, key) = (Arc::clone(&store), key.clone());
            tokio::spawn(async move { store.load(&key).await })
        };
        tokio::time::sleep(Duration::from_micros(n * 7 % 400)).await;
        load.abort();
        if let Ok(read) = load.await {
            assert_eq!(read.unwrap().unwrap().bytes, *record);
        }
        let (key, record) = &records[(n as usize + 1) % 2];
        let loads = (0..n % 5 + 1).map(|_| bytes(&store, key));
        assert!(join_all(loads).await.iter().all(|read| read.as_ref() == Some(record)));
    }
}

/// Starts a server that sends `answer` in response to everything. If `polite`, the server first answers
/// the store's version query as a real Memcached server does.
async fn talks_nonsense(answer: &'static [u8], polite: bool) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    let greeting = polite && buffer.starts_with(b"mn");
                    let answer = if greeting { b"MN\r\n" } else { answer };
                    if answer.is_empty() || stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn malformed_answers_return_expected_error_kinds() {
    let stored = Stored::new(record(100), Version::new(1));
    for answer in [
        &b""[..],
        b"\r\n",
        b"\n\n\n\n\n\n",
        b"no line",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\xff\xfe\r\n",
        b"HD\r\n",
        b"HD O1\r\n",
        b"EN O7\r\n",
        b"ME O0\r\n",
        b"VA\r\n",
        b"VA -1 c1 O0\r\n\r\n",
        b"VA 18446744073709551615 c1 O0\r\n",
        b"VA 99999999999999999999999 c1 O0\r\n",
        b"VA 4096 c1 f0 O0\r\nabc",
        b"VA 3 c1 f0 O0\r\nabcdefgh",
        b"HD c-1 O0\r\n",
        b"ERROR\r\n",
        b"CLIENT_ERROR bad command line format\r\n",
        b"SERVER_ERROR out of memory storing object\r\n",
        b"SERVER_ERROR backend timed out\r\n",
    ] {
        for polite in [true, false] {
            let shown = format!("{:?} {polite}", String::from_utf8_lossy(answer));
            let address = talks_nonsense(answer, polite).await;
            let url = format!("memcached://{address}");
            let store = patient(&url, Duration::from_millis(150));
            let key = random_key();
            let (read, took) = timed(store.load(&key)).await;
            let kind = read.unwrap_err().kind();
            use ErrorKind::{Corrupt, OutcomeUnknown, Refused, Unavailable};
            assert!(matches!(kind, Unavailable | Corrupt | Refused), "{shown}: {kind:?}");
            assert!(took < Duration::from_millis(400), "{shown}: {took:?}");
            let writes = async {
                [
                    store.create(&key, record(100), TTL).await.map(drop),
                    store.replace(&key, record(100), TTL, &stored).await.map(drop),
                    store.delete(&key, None).await.map(drop),
                ]
            };
            for written in timed(writes).await.0 {
                let kind = written.unwrap_err().kind();
                assert!(
                    matches!(kind, Unavailable | OutcomeUnknown | Refused),
                    "{shown}: {kind:?}"
                );
                assert!(polite || kind != OutcomeUnknown, "{shown}: a record was sent");
            }
        }
    }
}

/// Returns everything that the error and its source print.
fn printed(error: &Error) -> String {
    let source = error.source().unwrap();
    format!("{error} {error:?} {source} {source:?}")
}

/// Starts a server that echoes everything it receives, on one line and in an error of this kind.
async fn repeats_commands(error: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 1024 * 1024];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    let mut answer = b"MN\r\n".to_vec();
                    if !buffer.starts_with(b"mn") {
                        let command = buffer[..length].iter().filter(|byte| **byte != b'\n');
                        answer = error.as_bytes().iter().chain(command).copied().collect();
                        answer.extend(b"\r\n");
                    }
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn error_does_not_repeat_what_server_repeats() {
    for error in [
        "CLIENT_ERROR bad command ",
        "CLIENT_ERROR bad command: '",
        "SERVER_ERROR bad command ",
        "SERVER_ERROR out of memory, bad command: ",
        "SERVER_ERROR object too large, bad command ",
        "bad command ",
        "VA bad command ",
    ] {
        let url = format!("memcached://{}", repeats_commands(error).await);
        let store = patient(&url, Duration::from_millis(150));
        let key = random_key();
        let long = [&record(8)[..], &b" my password is hunter2".repeat(1000)[..]].concat();
        for bytes in [&long[..100], &long[..]] {
            let bytes = Bytes::copy_from_slice(bytes);
            let expected = Stored::new(record(100), Version::new(77));
            for failed in [
                store.load(&key).await.map(drop),
                store.create(&key, bytes.clone(), TTL).await.map(drop),
                store.replace(&key, bytes, TTL, &expected).await.map(drop),
                store.delete(&key, None).await.map(drop),
            ] {
                let text = printed(&failed.unwrap_err());
                for repeated in ["password", "hunter2", key.as_str(), "mg", "ms ", "md"] {
                    assert!(!text.contains(repeated), "{error}: {text}");
                }
                assert!(text.len() < 1200, "{error}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn error_names_port_that_speaks_tls() {
    // A TLS server either answers a client without TLS with an alert, or just closes the connection.
    for (answer, reason) in [(&b"\x15\x03\x01\0\x02\x02\x0a"[..], "in TLS"), (b"", "expects TLS")] {
        let url = format!("memcached://{}", talks_nonsense(answer, false).await);
        let error = patient(&url, Duration::from_secs(1)).load(&random_key()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(printed(&error).contains(reason), "{error:?}");
    }
}

#[tokio::test]
async fn write_at_connection_limit_is_unavailable_and_not_in_doubt() {
    let server = MemcachedServer::start_with(&["-c", "30", "-t", "1"]);
    let store = store(&server);
    let key = random_key();
    let mut others = Vec::new();
    while let Some(other) = accepted(server.port()).await {
        others.push(other);
    }
    let error = store.create(&key, record(100), TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    drop(others);
    let start = Instant::now();
    while store.create(&key, record(100), TTL).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(5), "the server still refuses connections");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn any_timeout_is_accepted() {
    let server = MemcachedServer::start();
    for timeout in [Duration::ZERO, Duration::MAX] {
        let builder = MemcachedStore::builder(&server.url()).unwrap();
        let store = builder.connect_timeout(timeout).response_timeout(timeout).build();
        let loads = join_all((0..10).map(|_| async { store.load(&random_key()).await }));
        for read in timed(loads).await.0 {
            match read {
                Ok(read) => assert_eq!(read, None),
                Err(error) => {
                    assert_eq!((error.kind(), timeout), (ErrorKind::Unavailable, Duration::ZERO))
                }
            }
        }
    }
}

#[tokio::test]
async fn error_names_server_once_and_reason_once() {
    let mut server = MemcachedServer::start();
    let store = store(&server);
    bytes(&store, &random_key()).await;
    server.stop();
    // The first load uses the old connection, which can break in several ways.
    for (error, refused) in [
        (store.load(&random_key()).await.unwrap_err(), 0..=1),
        (store.load(&random_key()).await.unwrap_err(), 1..=1),
        (store.create(&random_key(), record(100), TTL).await.unwrap_err(), 1..=1),
    ] {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        assert_eq!(text.matches(&server.address()).count(), 1, "{text}");
        assert!(refused.contains(&text.matches("refused").count()), "{text}");
    }
}

#[test]
fn blocked_runtime_does_not_delay_another_runtime() {
    let server = MemcachedServer::start();
    blocked_runtime_delays_no_other_one(store(&server), 4);
}

#[tokio::test]
async fn cancelled_write_is_not_sent_after_server_recovers() {
    let server = MemcachedServer::start();
    let store = store(&server);
    created(&store, &random_key(), record(100)).await;
    pause(&server);
    let begun = Instant::now();
    let create = |key: StoreKey| {
        let store = store.clone();
        tokio::spawn(async move { store.create(&key, record(100), TTL).await })
    };
    // As many writes as can be in progress at once.
    let mut on_their_way = Vec::new();
    for _ in 0..3 {
        on_their_way.push(create(random_key()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let key = random_key();
    let queued = create(key.clone());
    for write in on_their_way {
        assert_eq!(write.await.unwrap().unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    }
    // The store is now waiting for a new connection.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!queued.is_finished(), "after {:?}", begun.elapsed());
    queued.abort();
    assert!(queued.await.unwrap_err().is_cancelled());
    server.resume();
    let resumed = Instant::now();
    while store.load(&key).await.is_err() {
        assert!(resumed.elapsed() < Duration::from_secs(5));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bytes(&store, &key).await, None);
}

#[test]
fn store_outlives_runtime_it_was_used_on() {
    let server = MemcachedServer::start();
    let store = Arc::new(store(&server));
    let (key, old) = (random_key(), record(100));

    let first = runtime();
    let stored = first.block_on(created(&store, &key, old.clone()));
    pause(&server);
    // More than one batch, so that some writes are in progress and some are queued.
    let on_their_way: Vec<_> = (0..40)
        .map(|_| {
            let (store, key, stored) = (Arc::clone(&store), key.clone(), stored.clone());
            first.spawn(async move { store.replace(&key, record(100), TTL, &stored).await })
        })
        .collect();
    first.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });

    let second = runtime();
    let waiting = {
        let (store, key, stored) = (Arc::clone(&store), key.clone(), stored.clone());
        second.spawn(async move { store.replace(&key, record(100), TTL, &stored).await })
    };
    second.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    drop(first);
    let (written, _) = second.block_on(timed(waiting));
    let kind = written.unwrap().unwrap_err().kind();
    assert_eq!(kind, ErrorKind::Unavailable, "it was never sent");
    for write in on_their_way {
        assert!(second.block_on(write).unwrap_err().is_cancelled());
    }

    server.resume();
    for _ in 0..3 {
        let next = runtime();
        next.block_on(async {
            assert!(bytes(&store, &key).await.is_some());
            created(&store, &random_key(), old.clone()).await;
        });
    }
}
