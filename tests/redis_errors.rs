//! What the log tells an operator when Redis fails, checked on real servers.

#![cfg(all(feature = "redis", feature = "testing", feature = "tracing"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use support::faults::{Deed, request, sessions};
use support::proxy::Proxy;
use support::servers::{MemcachedServer, RedisServer};
use support::visit::{sign_in, visit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use unsticky::store::{Created, Deleted, RedisStore, Replaced, Store, StoreKey, Stored, Version};
use unsticky::testing::random_key;
use unsticky::{Error, ErrorKind};

const HOUR: Duration = Duration::from_secs(3600);

thread_local! {
    /// The log of this thread, which runs one test.
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Logged;

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| logged.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a request. Returns its failure, and what was logged in the meantime.
async fn logged(url: &str, cookie: &str, deed: Deed) -> (Option<ErrorKind>, String) {
    static SUBSCRIBER: Once = Once::new();
    SUBSCRIBER.call_once(|| {
        tracing_subscriber::fmt().with_ansi(false).with_writer(|| Logged).init();
    });
    LOGGED.take();
    let sessions = sessions(url);
    let answer = request(&sessions, cookie, deed).await;
    (answer.failure, String::from_utf8(LOGGED.take()).unwrap())
}

/// Asserts that a reading and a writing request fail with these kinds of error, and that the log
/// contains each of these texts once.
async fn says(url: &str, read: ErrorKind, written: ErrorKind, texts: &[&str]) {
    let token = format!("__Host-id={}", "A".repeat(43));
    for (cookie, deed, kind) in [(&*token, Deed::Read, read), ("", Deed::Insert, written)] {
        let (failure, log) = logged(url, cookie, deed).await;
        assert_eq!(failure, Some(kind), "{log}");
        let line = log.lines().find(|line| line.contains("store_failed"));
        let line = line.unwrap_or_else(|| panic!("{log}"));
        for text in texts {
            assert_eq!(line.matches(text).count(), 1, "{text}: {line}");
        }
    }
}

/// Creates a user with exactly these permissions. Returns the URL for that user.
fn user(server: &RedisServer, rules: &[&str]) -> String {
    let user = ["ACL", "SETUSER", "app", "on", ">sesame7", "~*", "resetchannels", "-@all"];
    server.cli(&[&user[..], rules].concat());
    format!("redis://app:sesame7@127.0.0.1:{}/", server.port())
}

const COMMANDS: &[&str] = &["+get", "+set", "+del", "+getrange", "+eval", "+evalsha"];

/// A record whose bytes are not valid UTF-8.
fn record(tag: u8) -> Bytes {
    Bytes::from([[tag; 8], [0xfe; 8]].concat())
}

/// Returns the error with its cause.
fn all(error: &Error) -> String {
    let source = std::error::Error::source(error).unwrap();
    format!("{error}: {source}")
}

/// Stores a record and returns its key and content.
async fn stored(server: &RedisServer, store: &RedisStore) -> (StoreKey, Stored) {
    let key = random_key();
    server.cli(&["SETEX", key.as_str(), "3600", "12345678"]);
    let stored = store.load(&key).await.unwrap().unwrap();
    (key, stored)
}

async fn created(store: &dyn Store, key: &StoreKey) -> Stored {
    match store.create(key, record(1), HOUR).await.unwrap() {
        Created::Created(version) => Stored::new(record(1), version),
        Created::Occupied => panic!("{key} is occupied"),
    }
}

fn never_stored() -> Stored {
    Stored::new(record(0xff), Version::new(u64::from_be_bytes([0xff; 8])))
}

#[tokio::test]
async fn command_denied_inside_script_is_refused_and_not_repeated() {
    let server = RedisServer::start();
    for (denied, deed) in [("-set", Deed::Increment), ("-del", Deed::SignOut)] {
        let cookie = visit(&sessions(&server.url()), "", sign_in).await.cookie();
        let url = user(&server, &[COMMANDS, &[denied]].concat());
        server.cli(&["SCRIPT", "FLUSH"]);
        server.cli(&["CONFIG", "RESETSTAT"]);
        let (failure, log) = logged(&url, &cookie, deed).await;
        assert_eq!(failure, Some(ErrorKind::Refused), "{log}");
        let text = "does not permit the user to run a command that the script runs";
        assert_eq!(log.matches("store_failed").count(), 1, "{log}");
        assert!(log.contains("answered EVAL with ERR ") && log.contains(text), "{log}");
        assert!(!log.contains("in_doubt"), "{log}");
        // The script was sent once by its hash, which the server no longer knew, and once as source.
        assert_eq!((server.calls("evalsha"), server.calls("eval")), (1, 1), "{denied}");
        let (failure, _) = logged(&server.url(), &cookie, Deed::Read).await;
        assert_eq!(failure, None);
    }
}

#[tokio::test]
async fn command_renamed_inside_script_is_refused() {
    for (renamed, is_replace) in [("SET", true), ("GETRANGE", true), ("DEL", false)] {
        let server = RedisServer::start_with(&["--rename-command", renamed, ""]);
        let store = RedisStore::connect(&server.url()).unwrap();
        let (key, stored) = stored(&server, &store).await;
        let error = match is_replace {
            true => store.replace(&key, record(1), HOUR, &stored).await.unwrap_err(),
            false => store.delete(&key, Some(&stored)).await.unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        assert!(
            all(&error).contains("a command that the script runs is disabled or renamed"),
            "{error:?}"
        );
        assert_eq!(server.cli(&["GET", key.as_str()]), "12345678");
    }
}

/// For an unknown command, the server echoes the arguments in its answer, and the `redis` crate cannot
/// read an answer that is not UTF-8.
#[tokio::test]
async fn unknown_command_with_binary_arguments_leaves_link_to_others() {
    for (renamed, protocol) in [("EVALSHA", "resp2"), ("SET", "resp2"), ("EVALSHA", "resp3")] {
        let server = RedisServer::start_with(&["--rename-command", renamed, ""]);
        let proxy = Proxy::start(server.port()).await;
        let url = format!("redis://127.0.0.1:{}/?protocol={protocol}", proxy.port());
        let store = Arc::new(RedisStore::connect(&url).unwrap());
        let (key, _) = stored(&server, &store).await;
        // The version and the record contain bytes that are not valid UTF-8.
        for _ in 0..8 {
            let work = (0..64).map(|task| {
                let (store, key) = (Arc::clone(&store), key.clone());
                tokio::spawn(async move {
                    if task % 2 == 0 {
                        assert_eq!(store.load(&key).await.unwrap().unwrap().bytes, "12345678");
                        return;
                    }
                    let error = match renamed {
                        "SET" => store.create(&key, record(0xff), HOUR).await.unwrap_err(),
                        _ => {
                            let other = never_stored();
                            store.replace(&key, record(0xff), HOUR, &other).await.unwrap_err()
                        }
                    };
                    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
                    let text = format!("answered {renamed} with ERR unknown command: ");
                    assert!(all(&error).contains(&text), "{error:?}");
                })
            });
            for done in join_all(work).await {
                done.unwrap();
            }
        }
        assert_eq!(proxy.accepted(), 1, "{renamed} {protocol}");
    }
}

/// The error message contains the command that the server's access control list denies.
#[tokio::test]
async fn error_names_denied_command() {
    use ErrorKind::Refused;

    let server = RedisServer::start();
    let url = user(&server, &["+del"]);
    let permission = "access control list (ACL) does not permit";
    let (token, nobody) = (format!("__Host-id={}", "A".repeat(43)), String::new());
    for (cookie, deed, command) in [(&token, Deed::Read, "GET"), (&nobody, Deed::Insert, "SET")] {
        let (failure, log) = logged(&url, cookie, deed).await;
        assert_eq!(failure, Some(Refused), "{log}");
        let text = format!("answered {command} with NOPERM no permissions to run: ");
        assert!(log.contains(&text) && log.contains(permission), "{log}");
        assert!(!log.contains("refused the write"), "{log}");
    }
    let store = RedisStore::connect(&url).unwrap();
    let replaced = store.replace(&random_key(), record(1), HOUR, &never_stored()).await;
    let error = replaced.unwrap_err();
    assert_eq!(error.kind(), Refused, "{error:?}");
    assert!(
        all(&error).contains("answered EVALSHA with NOPERM no permissions to run"),
        "{error:?}"
    );
    // The user has no permission for the key.
    server.cli(&["ACL", "SETUSER", "app", "resetkeys", "~elsewhere:*", "+get", "+set"]);
    says(&url, Refused, Refused, &["ermissions to access", permission]).await;
}

#[tokio::test]
async fn error_names_denied_database() {
    use ErrorKind::Unavailable;

    let server = RedisServer::start();
    let url = user(&server, COMMANDS);
    let text = format!(
        "unavailable: cannot connect to redis at 127.0.0.1:{}: it answered SELECT with NOPERM no \
         permissions to run: the server's access control list",
        server.port()
    );
    says(&format!("{url}3"), Unavailable, Unavailable, &[&text]).await;
    let text = "it answered SELECT with ERR DB index is out of range: the server has no database";
    says(&format!("{}77", server.url()), Unavailable, Unavailable, &[text]).await;
}

#[tokio::test]
async fn errors_distinguish_wrong_missing_and_unneeded_passwords() {
    use ErrorKind::Unavailable;

    let server = RedisServer::start_with(&["--requirepass", "hunter2"]);
    let at = format!("127.0.0.1:{}", server.port());
    let wrong = [
        "it answered AUTH with WRONGPASS invalid username-password pair or user is disabled: ",
        "the user's name or the password is wrong",
    ];
    says(&format!("redis://:sesame7@{at}/"), Unavailable, Unavailable, &wrong).await;
    says(&format!("redis://app:sesame7@{at}/?protocol=resp3"), Unavailable, Unavailable, &wrong)
        .await;
    let missing =
        ["with NOAUTH Authentication required: the server asks for a password, and none is given"];
    says(&format!("redis://{at}/"), Unavailable, Unavailable, &missing).await;
    let server = RedisServer::start();
    let needless = [
        "it answered AUTH with ERR",
        "the server has no password for its default user, and one is given",
    ];
    let url = format!("redis://:sesame7@127.0.0.1:{}/", server.port());
    says(&url, Unavailable, Unavailable, &needless).await;
}

#[tokio::test]
async fn error_names_server_with_too_many_clients() {
    let server = RedisServer::start_with(&["--maxclients", "1"]);
    // A connection from the start of the server may still be open.
    let _only = loop {
        let mut only = tokio::net::TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
        only.write_all(b"PING\r\n").await.unwrap();
        let mut answer = [0; 7];
        if only.read_exact(&mut answer).await.is_ok() && answer == *b"+PONG\r\n" {
            break only;
        }
    };
    let text = "with ERR max number of clients: raise maxclients there";
    for login in ["", ":sesame7@"] {
        let url = format!("redis://{login}127.0.0.1:{}/", server.port());
        for _ in 0..5 {
            says(&url, ErrorKind::Unavailable, ErrorKind::Unavailable, &[text]).await;
        }
    }
}

#[tokio::test]
async fn error_names_protected_mode() {
    let server = RedisServer::start_with(&["--protected-mode", "yes", "--bind", "*"]);
    // An address of this machine that is not loopback.
    let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let Ok(IpAddr::V4(own)) = own.map(|own| own.ip()) else { return };
    let url = format!("redis://{own}:{}/", server.port());
    let text =
        "with DENIED protected mode: the server accepts connections from its own machine only";
    says(&url, ErrorKind::Unavailable, ErrorKind::Unavailable, &[text]).await;
}

#[tokio::test]
async fn error_names_server_that_is_still_loading() {
    let mut server = RedisServer::start_with(&[
        "--key-load-delay",
        "1000",
        "--loading-process-events-interval-bytes",
        "1024",
        "--rdbcompression",
        "no",
    ]);
    let fill = "for i = 1, 3000 do redis.call('SET', 'filler' .. i, string.rep('x', 500)) end";
    server.cli(&["EVAL", fill, "0"]);
    server.cli(&["SAVE"]);
    server.restart();
    let text =
        "with LOADING loading the dataset in memory: the server is starting and reads its data";
    says(&server.url(), ErrorKind::Unavailable, ErrorKind::Unavailable, &[text]).await;
}

#[tokio::test]
async fn errors_distinguish_refused_connection_and_unknown_host() {
    use ErrorKind::Unavailable;

    let mut server = RedisServer::start();
    server.stop();
    let text =
        format!("cannot connect to redis at 127.0.0.1:{}: Connection refused", server.port());
    says(&server.url(), Unavailable, Unavailable, &[&text]).await;
    let texts = [
        "cannot connect to redis at no-such-host.invalid:6379: its name was not resolved: ",
        "failed to lookup address",
    ];
    says("redis://no-such-host.invalid/", Unavailable, Unavailable, &texts).await;
}

#[tokio::test]
async fn error_names_server_of_another_protocol() {
    let server = MemcachedServer::start();
    let url = format!("redis://127.0.0.1:{}/", server.port());
    let text = "the server does not speak the protocol of Redis";
    says(&url, ErrorKind::Unavailable, ErrorKind::Unavailable, &[text]).await;
}

/// A node of a Redis Cluster is used as if it were a single server. The error message says what it is.
#[tokio::test]
async fn error_names_cluster_node() {
    const CLUSTER: &str = "the server is a node of a Redis Cluster";
    let start = || RedisServer::start_with(&["--cluster-enabled", "yes"]);
    let (one, two) = (start(), start());
    let down = ["with CLUSTERDOWN Hash slot not served: ", CLUSTER];
    says(&one.url(), ErrorKind::Unavailable, ErrorKind::Unavailable, &down).await;
    let database = ["it answered SELECT with ERR SELECT is not allowed in cluster mode: ", CLUSTER];
    let url = format!("{}1", one.url());
    says(&url, ErrorKind::Unavailable, ErrorKind::Unavailable, &database).await;

    one.cli(&["CLUSTER", "MEET", "127.0.0.1", &two.port().to_string()]);
    two.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let begun = Instant::now();
    while !one.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
        assert!(begun.elapsed() < Duration::from_secs(20), "the servers did not find each other");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let moved = ["with MOVED: ", CLUSTER];
    says(&one.url(), ErrorKind::Refused, ErrorKind::Refused, &moved).await;
    let store = RedisStore::connect(&one.url()).unwrap();
    let error = store.delete(&random_key(), Some(&never_stored())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(all(&error).contains(CLUSTER), "{error:?}");
}

/// A Sentinel is used as if it were a server with data. The error message says that it is a Sentinel.
#[tokio::test]
async fn error_names_sentinel() {
    use ErrorKind::{Refused, Unavailable};

    let sentinel = RedisServer::sentinel();
    let text = "with ERR unknown command: the server is a Sentinel, which keeps no data; the address of what it watches";
    says(&sentinel.url(), Refused, Refused, &[text]).await;
    let text = format!("it answered SELECT {text}");
    says(&format!("{}1", sentinel.url()), Unavailable, Unavailable, &[&text]).await;
    // A server that lacks this command is not mistaken for a Sentinel.
    let server = RedisServer::start_with(&["--rename-command", "GET", ""]);
    let error = RedisStore::connect(&server.url()).unwrap().load(&random_key()).await.unwrap_err();
    assert!(all(&error).contains("with ERR unknown command: the command is disabled"), "{error:?}");
    let server = RedisServer::start_with(&["--rename-command", "SELECT", ""]);
    let error =
        RedisStore::connect(&format!("{}1", server.url())).unwrap().load(&random_key()).await;
    let text = all(&error.unwrap_err());
    assert!(text.contains("SELECT with ERR unknown command: the command is disabled"), "{text}");
}

#[tokio::test]
async fn write_error_names_replica_and_reads_succeed() {
    let master = RedisServer::start();
    let store = RedisStore::connect(&master.url()).unwrap();
    let key = random_key();
    let stored = created(&store, &key).await;
    let port = master.port().to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
    let store = RedisStore::connect(&replica.url()).unwrap();
    let begun = Instant::now();
    while !matches!(store.load(&key).await, Ok(Some(_))) {
        assert!(begun.elapsed() < Duration::from_secs(10), "the servers did not find each other");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for error in [
        store.create(&random_key(), record(1), HOUR).await.unwrap_err(),
        store.replace(&key, record(2), HOUR, &stored).await.unwrap_err(),
        store.delete(&key, Some(&stored)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        let text =
            "with READONLY You can't write against a read only replica: the server is a replica";
        assert!(all(&error).contains(text), "{error:?}");
    }
    let (failure, log) = logged(&replica.url(), "", Deed::Insert).await;
    assert_eq!(failure, Some(ErrorKind::Refused));
    assert!(log.contains("the server is a replica, which takes no writes"), "{log}");
    let orphan = RedisServer::start_with(&[
        "--replicaof",
        "127.0.0.1",
        "1",
        "--replica-serve-stale-data",
        "no",
    ]);
    let text =
        "MASTERDOWN Link with MASTER is down: the server is a replica that has lost its master";
    let error = RedisStore::connect(&orphan.url()).unwrap().load(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(all(&error).contains(text), "{error:?}");
}

#[tokio::test]
async fn valkey_and_redis_addresses_connect_to_same_store() {
    let server = RedisServer::start();
    let url = server.url().replacen("redis:", "valkey:", 1);
    let store = unsticky::connect(&url).unwrap();
    let key = random_key();
    let stored = created(&*store, &key).await;
    let replaced = store.replace(&key, record(2), HOUR, &stored).await.unwrap();
    let Replaced::Replaced(version) = replaced else { panic!("{replaced:?}") };
    let stored = Stored::new(record(2), version);
    assert_eq!(store.delete(&key, Some(&stored)).await.unwrap(), Deleted::Deleted);
    assert!(RedisStore::connect(&url).is_ok());
}
