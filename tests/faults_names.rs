//! A server's host name resolves to a different address than before, or also to an address that does not
//! answer.
//!
//! Each test runs in its own process, in which `libnss_wrapper.so` makes the resolver read the names
//! from a file.

#![cfg(all(feature = "testing", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::error::Error as _;
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::future::join_all;
use support::backend::Server;
use support::faults::{BACK, Deed, first, request, sessions};
use support::stopwatch::Stopwatch;
use support::visit::sent_back;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use unsticky::testing::random_key;
use unsticky::{ErrorKind, Sessions};

/// The environment variable with the path of the file of host names, in a process that runs one of the tests.
const HOSTS: &str = "NSS_WRAPPER_HOSTS";

/// Runs `scenario` in a process in which the scenario controls the addresses of `store.test`.
fn with_names(test: &str, scenario: impl AsyncFnOnce(&Hosts)) {
    if let Some(path) = std::env::var_os(HOSTS) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let hosts = Hosts { path: path.into() };
        return runtime.unwrap().block_on(scenario(&hosts));
    }
    let library = Path::new("/usr/lib")
        .read_dir()
        .unwrap()
        .filter_map(Result::ok)
        .map(|dir| dir.path().join("libnss_wrapper.so"))
        .find(|library| library.exists())
        .expect("libnss_wrapper.so is needed: apt-get install libnss-wrapper");
    let name = format!("unsticky-hosts-{}-{test}", std::process::id());
    let hosts = std::env::temp_dir().join(name);
    fs::write(&hosts, "").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env("LD_PRELOAD", library)
        .env(HOSTS, &hosts)
        .output()
        .unwrap();
    fs::remove_file(&hosts).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

struct Hosts {
    path: PathBuf,
}

impl Hosts {
    /// Makes the name resolve to these addresses, in this order.
    fn lead_to(&self, addresses: &[&str]) {
        let changed = fs::metadata(&self.path).unwrap().modified().unwrap();
        let lines: String =
            addresses.iter().map(|address| format!("{address} store.test\n")).collect();
        fs::write(&self.path, lines).unwrap();
        // The library detects changes by the modification time, in seconds.
        let file = fs::File::options().write(true).open(&self.path).unwrap();
        file.set_modified(changed + Duration::from_secs(2)).unwrap();
        // The next lookup reads the file again. The library aborts the process if two threads do this at
        // once, as a concurrent read and write would.
        assert!(("store.test", 0).to_socket_addrs().is_ok());
    }
}

/// Forwards connections from an address and port to a server, until this value is dropped.
struct Place {
    port: u16,
    tasks: JoinSet<()>,
}

impl Place {
    async fn open(host: &str, port: u16, server_port: u16) -> Self {
        let listener = TcpListener::bind((host, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut links = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                links.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", server_port)).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { port, tasks }
    }

    async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

/// An address and port that drop packets, because the listener's queue is full.
struct Silent {
    port: u16,
    _listener: TcpListener,
    _filling: Vec<TcpStream>,
}

impl Silent {
    async fn open(host: &str, port: u16) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(SocketAddr::new(host.parse().unwrap(), port)).unwrap();
        let listener = socket.listen(0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut filling = Vec::new();
        let wait = Duration::from_millis(100);
        while let Ok(stream) = timeout(wait, TcpStream::connect((host, port))).await {
            filling.push(stream.unwrap());
        }
        Self { port, _listener: listener, _filling: filling }
    }
}

/// Sends one request, and then many concurrent ones, which need additional connections.
async fn is_served(visitors: &Sessions) {
    let answer = request(visitors, "", Deed::SignIn("alice")).await;
    assert!(answer.failure.is_none() && answer.took < BACK, "{answer:?}");
    let crowd = (0..100).map(|_| request(visitors, "", Deed::Insert));
    for answer in join_all(crowd).await {
        assert!(answer.failure.is_none() && answer.took < BACK, "{answer:?}");
    }
}

/// The name has two addresses, the first of which drops packets.
async fn has_silent_address(hosts: &Hosts, server: Server) {
    let place = Place::open("127.0.0.1", 0, server.port()).await;
    let port = place.port;
    let silent = Silent::open("127.0.0.2", port).await;
    hosts.lead_to(&["127.0.0.2", "127.0.0.1"]);
    let first = tokio::net::lookup_host(("store.test", port)).await.unwrap().next();
    assert_eq!(first.unwrap().ip().to_string(), "127.0.0.2", "the silent address must come first");
    let url = server.url_at(port).replace("127.0.0.1", "store.test");
    let visitors = sessions(&url);
    is_served(&visitors).await;
    // When the address that worked fails, the name is resolved again.
    drop(silent);
    place.close().await;
    let lost = request(&visitors, "", Deed::SignIn("alice")).await;
    assert!(lost.failure.is_some(), "{lost:?}");
    let silent = Silent::open("127.0.0.1", port).await;
    let place = Place::open("127.0.0.2", port, server.port()).await;
    hosts.lead_to(&["127.0.0.1", "127.0.0.2"]);
    is_served(&visitors).await;
    place.close().await;
    drop(silent);
}

/// No address answers. The error gives the reason for each address.
async fn has_no_working_address(hosts: &Hosts, server: Server) {
    let silent = Silent::open("127.0.0.2", 0).await;
    hosts.lead_to(&["127.0.0.2", "127.0.0.1"]);
    let url = server.url_at(silent.port).replace("127.0.0.1", "store.test");
    let store = unsticky::connect(&url).unwrap();
    let begun = Stopwatch::start();
    let error = store.load(&random_key()).await.unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(took < Duration::from_millis(600), "{took:?}");
    let text = error.source().unwrap().to_string();
    for part in [
        &format!("store.test:{}: ", silent.port),
        "127.0.0.2: it did not answer in time",
        "127.0.0.1: Connection refused",
    ] {
        assert_eq!(text.matches(part).count(), 1, "{text}");
    }
}

macro_rules! scenarios {
    ($($test:ident: $scenario:ident, $server:ident;)*) => {$(
        #[test]
        fn $test() {
            with_names(stringify!($test), async |hosts: &Hosts| {
                $scenario(hosts, Server::$server()).await;
            });
        }
    )*};
}

scenarios! {
    memcached_store_reaches_server_behind_silent_address: has_silent_address, memcached;
    redis_store_reaches_server_behind_silent_address: has_silent_address, redis;
    memcached_error_says_why_each_address_failed: has_no_working_address, memcached;
    redis_error_says_why_each_address_failed: has_no_working_address, redis;
}

/// The old server closes its connections, or keeps them and stops answering. The name then resolves to a new
/// server.
async fn moves(hosts: &Hosts, old: Server, new: Server, is_closed: bool) {
    let old_place = Place::open("127.0.0.1", 0, old.port()).await;
    let port = old_place.port;
    hosts.lead_to(&["127.0.0.1"]);
    let url = old.url_at(port).replace("127.0.0.1", "store.test");
    let visitors = sessions(&url);
    for _ in 0..20 {
        let answer = request(&visitors, "", Deed::SignIn("alice")).await;
        assert_eq!(answer.failure, None);
    }
    // From now on the old address refuses connections or does not answer.
    let old_place = if is_closed {
        old_place.close().await;
        None
    } else {
        old.pause().await;
        Some(old_place)
    };
    let lost = request(&visitors, "", Deed::SignIn("alice")).await;
    assert!(lost.failure.is_some(), "{lost:?}");
    let new_place = Place::open("127.0.0.2", port, new.port()).await;
    hosts.lead_to(&["127.0.0.2"]);
    let answer = request(&visitors, "", Deed::SignIn("alice")).await;
    assert!(answer.failure.is_none() && answer.took < BACK, "{answer:?}");
    // The new server has the session.
    let cookie = answer.set_cookie.unwrap();
    let cookie = sent_back(&cookie);
    assert_eq!(first(&sessions(&new.url()), &cookie).await.as_deref(), Some("alice"));
    new_place.close().await;
    drop(old_place);
}

macro_rules! moves {
    ($($test:ident: $server:ident, $is_closed:expr;)*) => {$(
        #[test]
        fn $test() {
            with_names(stringify!($test), async |hosts: &Hosts| {
                moves(hosts, Server::$server(), Server::$server(), $is_closed).await;
            });
        }
    )*};
}

moves! {
    redis_store_finds_moved_server_after_old_connections_close: redis, true;
    redis_store_finds_moved_server_while_old_connections_stay_open: redis, false;
    memcached_store_finds_moved_server_after_old_connections_close: memcached, true;
    memcached_store_finds_moved_server_while_old_connections_stay_open: memcached, false;
}
