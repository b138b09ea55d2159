//! The stores alone, against clients that are written by hand and against the libraries' own.

mod pipelined;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memcache::exp::{AsyncMetaClient, Get, Meta};
use redis::IntoConnectionInfo as _;
use redis::aio::MultiplexedConnection;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use unsticky::store::{Store, StoreKey};
use unsticky::testing::{random_key, random_record};

use crate::proxy::{Mode, Proxy};
use crate::results::{Results, labels};
use crate::servers::{MemcachedServer, RedisServer};
use crate::web::Effort;
use pipelined::{Pipelined, Protocol};

const TTL: Duration = Duration::from_secs(3600);
/// How many records there are; every load takes the next one.
const RECORDS: usize = 256;

/// Who loads.
#[derive(Clone)]
enum Client {
    Unsticky(Arc<dyn Store>),
    ByHand(Pipelined),
    Redis(MultiplexedConnection),
    Memcache(AsyncMetaClient),
}

impl Client {
    async fn load(&self, key: &StoreKey, bytes: usize) {
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
        assert_eq!(found, bytes);
    }
}

const REDIS: [&str; 3] = ["unsticky", "by hand", "redis, multiplexed, nodelay"];
const MEMCACHED: [&str; 3] = ["unsticky", "by hand", "memcache, AsyncMetaClient"];

async fn client(backend: &str, name: &str, port: u16) -> Client {
    match (backend, name) {
        (_, "unsticky") => {
            let scheme = if backend == "redis" { "redis" } else { "memcached" };
            Client::Unsticky(unsticky::connect(&format!("{scheme}://127.0.0.1:{port}")).unwrap())
        }
        ("redis", "by hand") => Client::ByHand(Pipelined::connect(port, Protocol::Redis).await),
        (_, "by hand") => Client::ByHand(Pipelined::connect(port, Protocol::Memcached).await),
        ("redis", _) => {
            let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
            let info = ("127.0.0.1", port).into_connection_info().unwrap().set_tcp_settings(tcp);
            let client = redis::Client::open(info).unwrap();
            Client::Redis(client.get_multiplexed_async_connection().await.unwrap())
        }
        _ => {
            let patience = Duration::from_secs(10);
            let builder = AsyncMetaClient::builder()
                .connect_timeout(Some(patience))
                .io_timeout(Some(patience));
            Client::Memcache(builder.connect_async(("127.0.0.1", port)).await.unwrap())
        }
    }
}

pub fn run(effort: Effort) -> Results {
    let (redis, memcached) = (RedisServer::start(), MemcachedServer::start());
    // Where the way to the server is longer, it leads through a proxy in a runtime of its own.
    let distance = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut results = Results::new();
    let backends = [("redis", redis.port(), REDIS), ("memcached", memcached.port(), MEMCACHED)];
    for (backend, port, names) in backends {
        let far = distance.block_on(Proxy::start(port));
        far.set(Mode::Delay(Duration::from_millis(1)));
        for bytes in [1024, 8192] {
            let keys = store_records(backend, port, bytes);
            for (delay, port) in [(0, port), (1, far.port())] {
                for workers in [1, 2] {
                    let runtimes: Vec<_> = names
                        .iter()
                        .map(|name| {
                            let runtime = runtime(workers);
                            let client = runtime.block_on(client(backend, name, port));
                            (*name, runtime, client)
                        })
                        .collect();
                    for callers in [1, 64, 256] {
                        for number in 0..effort.rounds {
                            let first = number % runtimes.len();
                            for (name, runtime, client) in
                                runtimes[first..].iter().chain(&runtimes[..first])
                            {
                                let rate =
                                    rate(runtime, client, &keys, bytes, callers, effort.duration);
                                let labels = labels([
                                    ("backend", backend.to_owned()),
                                    ("client", (*name).to_owned()),
                                    ("bytes", bytes.to_string()),
                                    ("callers", callers.to_string()),
                                    ("workers", workers.to_string()),
                                    ("delay", delay.to_string()),
                                ]);
                                results.push("load", labels, "1/s", rate);
                            }
                        }
                    }
                }
            }
            eprintln!("stores: {backend}, {bytes} bytes");
        }
    }
    results
}

fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

fn store_records(backend: &str, port: u16, bytes: usize) -> Arc<[StoreKey]> {
    runtime(1).block_on(async {
        let store = unsticky::connect(&format!("{backend}://127.0.0.1:{port}")).unwrap();
        let mut keys = Vec::new();
        for _ in 0..RECORDS {
            let key = random_key();
            store.create(&key, random_record(bytes), TTL).await.unwrap();
            keys.push(key);
        }
        keys.into()
    })
}

/// Loads in a second, by so many callers at once.
fn rate(
    runtime: &Runtime,
    client: &Client,
    keys: &Arc<[StoreKey]>,
    bytes: usize,
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
                    client.load(key, bytes).await;
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
