//! Compares the stores alone with hand-written clients and with the libraries' own clients.

mod pipelined;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memcache::exp::{AsyncMetaClient, Get, Meta};
use redis::IntoConnectionInfo as _;
use redis::aio::MultiplexedConnection;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use unsticky::store::{Replaced, Store, StoreKey};
use unsticky::testing::{random_key, random_record};

use crate::proxy::{Mode, Proxy};
use crate::results::{Results, labels, valkey};
use crate::servers::{MemcachedServer, RedisServer};
use crate::web::{Effort, turn};
use pipelined::{Pipelined, Protocol};

const TTL: Duration = Duration::from_secs(3600);
/// The number of records. The loads read them in turn.
const RECORDS: usize = 256;

/// A client that loads records.
#[derive(Clone)]
enum Client {
    Unsticky(Arc<dyn Store>),
    ByHand(Pipelined),
    Redis(MultiplexedConnection),
    Memcache(AsyncMetaClient),
}

impl Client {
    async fn load(&self, key: &StoreKey) {
        let found = match self {
            Self::Unsticky(store) => store.load(key).await.unwrap().unwrap().bytes.len(),
            Self::ByHand(client) => client.load(key.as_str()).await.unwrap().len(),
            Self::Redis(connection) => {
                let mut connection = connection.clone();
                let value: Vec<u8> =
                    redis::cmd("GET").arg(key.as_str()).query_async(&mut connection).await.unwrap();
                value.len()
            }
            Self::Memcache(client) => {
                let get = Get::new(key.as_str()).meta(Meta::NONE.cas());
                client.run(get).await.unwrap().value.unwrap().len()
            }
        };
        assert_eq!(found, BYTES);
    }

    /// Reads a record and replaces it.
    async fn change(&self, key: &StoreKey) {
        let Self::Unsticky(store) = self else { panic!("the others have no compare-and-set") };
        let found = store.load(key).await.unwrap().unwrap();
        let replaced = store.replace(key, random_record(BYTES), TTL, &found).await.unwrap();
        assert!(matches!(replaced, Replaced::Replaced(_)), "{replaced:?}");
    }
}

#[derive(Clone, Copy)]
enum Verb {
    Load,
    Change,
}

/// The clients that are measured. "library" is the client from the `redis` or `memcache` crate.
pub const CLIENTS: [&str; 3] = ["unsticky", "library", "by hand"];

async fn client(backend: &str, name: &str, port: u16) -> Client {
    match (backend, name) {
        (_, "unsticky") => {
            Client::Unsticky(unsticky::connect(&format!("{backend}://127.0.0.1:{port}")).unwrap())
        }
        ("memcached", "by hand") => {
            Client::ByHand(Pipelined::connect(port, Protocol::Memcached).await)
        }
        (_, "by hand") => Client::ByHand(Pipelined::connect(port, Protocol::Redis).await),
        ("memcached", _) => {
            let patience = Duration::from_secs(10);
            let builder = AsyncMetaClient::builder()
                .connect_timeout(Some(patience))
                .io_timeout(Some(patience));
            Client::Memcache(builder.connect_async(("127.0.0.1", port)).await.unwrap())
        }
        _ => {
            let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
            let info = ("127.0.0.1", port).into_connection_info().unwrap().set_tcp_settings(tcp);
            let client = redis::Client::open(info).unwrap();
            Client::Redis(client.get_multiplexed_async_connection().await.unwrap())
        }
    }
}

/// The delay in each direction, in milliseconds, and the number of workers.
pub const WAYS: [(u64, usize); 3] = [(0, 1), (0, 2), (1, 1)];
pub const CALLERS: [usize; 3] = [1, 64, 256];
const BYTES: usize = 1024;

pub fn run(effort: Effort) -> Results {
    let (redis, memcached, valkey) = (RedisServer::start(), MemcachedServer::start(), valkey());
    // The proxy that adds a delay has a runtime of its own.
    let distance = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut results = Results::new();
    let mut backends = vec![("redis", redis.port()), ("memcached", memcached.port())];
    backends.extend(valkey.as_ref().map(|valkey| ("valkey", valkey.port())));
    for (backend, port) in backends {
        let far = distance.block_on(Proxy::start(port));
        far.set(Mode::Delay(Duration::from_millis(1)));
        let keys = store_records(backend, port);
        for (delay, workers) in WAYS {
            let port = if delay == 0 { port } else { far.port() };
            let stands = CLIENTS.map(|name| {
                let runtime = runtime(workers);
                let client = runtime.block_on(client(backend, name, port));
                (name, runtime, client)
            });
            for callers in CALLERS {
                for number in 0..effort.rounds {
                    let mut push = |figure, client: &str, rate| {
                        let labels = labels([
                            ("backend", backend.to_owned()),
                            ("client", client.to_owned()),
                            ("callers", callers.to_string()),
                            ("workers", workers.to_string()),
                            ("delay", delay.to_string()),
                        ]);
                        results.push(figure, labels, "1/s", rate);
                    };
                    for (name, runtime, client) in turn(&stands, number) {
                        let measure =
                            |verb| rate(runtime, client, verb, &keys, callers, effort.duration);
                        push("load", name, measure(Verb::Load));
                        if *name == "unsticky" && (delay, workers) == (0, 1) {
                            push("change", name, measure(Verb::Change));
                        }
                    }
                }
            }
        }
        eprintln!("stores: {backend}");
    }
    results
}

fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

fn store_records(backend: &str, port: u16) -> Arc<[StoreKey]> {
    runtime(1).block_on(async {
        let store = unsticky::connect(&format!("{backend}://127.0.0.1:{port}")).unwrap();
        let mut keys = Vec::new();
        for _ in 0..RECORDS {
            let key = random_key();
            store.create(&key, random_record(BYTES), TTL).await.unwrap();
            keys.push(key);
        }
        keys.into()
    })
}

/// Returns the operations per second that this number of callers reach together.
fn rate(
    runtime: &Runtime,
    client: &Client,
    verb: Verb,
    keys: &Arc<[StoreKey]>,
    callers: usize,
    duration: Duration,
) -> f64 {
    let done = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let (client, keys, done) = (client.clone(), keys.clone(), done.clone());
            tasks.spawn(async move {
                let mut count = 0;
                for key in keys.iter().cycle().skip(caller) {
                    match verb {
                        Verb::Load => client.load(key).await,
                        // Each caller has a record of its own.
                        Verb::Change => client.change(&keys[caller]).await,
                    }
                    count += 1;
                    if start.elapsed() >= duration {
                        break;
                    }
                }
                done.fetch_add(count, Ordering::Relaxed);
            });
        }
        tasks.join_all().await;
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}
