//! Measures what sessions cost the servers: the memory per session and the time per command, with a thousand
//! to a million sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use unsticky::store::{Created, Replaced, Store, StoreKey, Stored};
use unsticky::testing::{random_key, random_record};
use unsticky::{DirectoryMode, Session, Sessions, SignIn};

use crate::load::cpu_time;
use crate::request::{COUNT, TEXT, arrive, increment, read, request};
use crate::results::{Results, labels, valkey};
use crate::servers::{MemcachedServer, RedisServer};
use crate::web::Effort;

const TTL: Duration = Duration::from_secs(3600);
pub const CALLERS: usize = 64;

pub fn run(effort: Effort, most_sessions: usize) -> Results {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut results = Results::new();
    memory(&runtime, &mut results);
    for _ in 0..effort.rounds {
        server_time(&runtime, effort.duration, &mut results);
    }
    eprintln!("costs: servers");
    scale(&runtime, effort, most_sessions, &mut results);
    directories(&runtime, effort, &mut results);
    results
}

fn sessions(url: &str, directory: DirectoryMode) -> Sessions {
    let builder = Sessions::builder(unsticky::connect(url).unwrap()).directory(directory);
    builder.timeout(Duration::from_secs(30)).build().unwrap()
}

/// Measures the bytes per session, for a session with a signed-in user and one value.
fn memory(runtime: &Runtime, results: &mut Results) {
    const COUNT: u64 = 200;
    let (redis, memcached) = (RedisServer::start(), MemcachedServer::start());
    for payload in [200, 1024, 8192] {
        for written in ["once", "ten times"] {
            let fill = async |url: String, count: u64| {
                let sessions = sessions(&url, DirectoryMode::Off);
                for _ in 0..count {
                    // The quotes of the JSON string take up two bytes.
                    let text = "x".repeat(payload - 2);
                    let sign_in = async |session: Session| {
                        session.insert(TEXT, &text)?;
                        session.sign_in("account-4711")
                    };
                    let cookie = request(&sessions, &Bytes::new(), sign_in).await.unwrap();
                    let rewrites = if written == "once" { 0 } else { 9 };
                    for rewrite in 0..rewrites {
                        let text = format!("{rewrite}{}", &text[1..]);
                        let write = async |session: Session| session.insert(TEXT, &text);
                        request(&sessions, &cookie, write).await;
                    }
                }
            };
            let mut push = |backend: &str, bytes: f64| {
                let labels = labels([
                    ("backend", backend.to_owned()),
                    ("payload", payload.to_string()),
                    ("written", written.to_owned()),
                ]);
                results.push("memory", labels, "bytes/session", bytes);
            };
            redis.cli(&["FLUSHALL"]);
            runtime.block_on(fill(redis.url(), 1));
            let key = redis.cli(&["KEYS", "*"]);
            let usage = redis.cli(&["MEMORY", "USAGE", key.trim(), "SAMPLES", "0"]);
            push("redis", usage.trim().parse().unwrap());
            let before = memcached.stat("bytes");
            runtime.block_on(fill(memcached.url(), COUNT));
            push("memcached", (memcached.stat("bytes") - before) as f64 / COUNT as f64);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verb {
    Load,
    Replace,
    Create,
    Delete,
}

/// Measures the server's processor time per command, with so many callers that the server works in batches.
fn server_time(runtime: &Runtime, duration: Duration, results: &mut Results) {
    let (redis, memcached) = (RedisServer::start(), MemcachedServer::start_with(&["-m", "512"]));
    let valkey = valkey();
    let mut servers =
        vec![("redis", redis.url(), redis.pid()), ("memcached", memcached.url(), memcached.pid())];
    servers.extend(valkey.as_ref().map(|valkey| ("valkey", valkey.url(), valkey.pid())));
    for (backend, url, pid) in servers {
        let store = unsticky::connect(&url).unwrap();
        for bytes in [256, 1024, 8192] {
            for verb in [Verb::Load, Verb::Replace, Verb::Create, Verb::Delete] {
                let (count, cpu) = runtime.block_on(drive(&store, verb, bytes, duration, pid));
                let labels = labels([
                    ("backend", backend.to_owned()),
                    ("bytes", bytes.to_string()),
                    ("verb", format!("{verb:?}").to_lowercase()),
                ]);
                results.push("server time", labels, "us/command", cpu.as_secs_f64() * 1e6 / count);
            }
        }
    }
}

async fn create(store: &Arc<dyn Store>, bytes: usize) -> (StoreKey, Stored) {
    let (key, record) = (random_key(), random_record(bytes));
    match store.create(&key, record.clone(), TTL).await.unwrap() {
        Created::Created(version) => (key, Stored::new(record, version)),
        Created::Occupied => panic!("a random key is occupied"),
    }
}

/// Sends commands. Returns their number, and the processor time that the server used.
async fn drive(
    store: &Arc<dyn Store>,
    verb: Verb,
    bytes: usize,
    duration: Duration,
    pid: u32,
) -> (f64, Duration) {
    // Deletes need records, which are created beforehand. All callers begin when all of them are ready.
    let prepared = if verb == Verb::Delete { (duration.as_millis() as usize).max(2) } else { 1 };
    let barrier = Arc::new(tokio::sync::Barrier::new(CALLERS + 1));
    let mut tasks = JoinSet::new();
    for _ in 0..CALLERS {
        let (store, barrier) = (store.clone(), barrier.clone());
        tasks.spawn(async move {
            let mut records = Vec::new();
            for _ in 0..prepared {
                records.push(create(&store, bytes).await);
            }
            barrier.wait().await;
            barrier.wait().await;
            let start = Instant::now();
            let mut count = 0;
            while start.elapsed() < duration {
                let Some((key, stored)) = records.last_mut() else { break };
                match verb {
                    Verb::Load => drop(store.load(key).await.unwrap().unwrap()),
                    Verb::Replace => {
                        let record = random_record(bytes);
                        match store.replace(key, record.clone(), TTL, stored).await.unwrap() {
                            Replaced::Replaced(version) => *stored = Stored::new(record, version),
                            other => panic!("{other:?}"),
                        }
                    }
                    Verb::Create => drop(create(&store, bytes).await),
                    Verb::Delete => {
                        store.delete(key, Some(stored)).await.unwrap();
                        records.pop();
                    }
                }
                count += 1;
            }
            count
        });
    }
    barrier.wait().await;
    let before = cpu_time(pid);
    barrier.wait().await;
    let count: usize = tasks.join_all().await.into_iter().sum();
    (count as f64, cpu_time(pid) - before)
}

/// Measures whole requests without a framework, for an increasing number of live sessions.
fn scale(runtime: &Runtime, effort: Effort, most: usize, results: &mut Results) {
    let redis = RedisServer::start();
    let memcached = MemcachedServer::start_with(&["-m", "2048"]);
    for (backend, url) in [("redis", redis.url()), ("memcached", memcached.url())] {
        let sessions = sessions(&url, DirectoryMode::Off);
        let mut cookies: Vec<Bytes> = Vec::new();
        for count in [1_000, 10_000, 100_000, 1_000_000] {
            if count > most {
                continue;
            }
            runtime.block_on(async {
                while cookies.len() < count {
                    let arrivals = (0..200).map(|_| arrive(&sessions, 200));
                    cookies.extend(futures_util::future::join_all(arrivals).await);
                }
            });
            let live: Arc<[Bytes]> = cookies.clone().into();
            for _ in 0..effort.rounds {
                for workload in ["read", "increment"] {
                    let rate = requests(runtime, &sessions, &live, workload, effort.duration);
                    let labels = labels([
                        ("backend", backend.to_owned()),
                        ("sessions", count.to_string()),
                        ("workload", workload.to_owned()),
                    ]);
                    results.push("requests", labels, "1/s", rate);
                }
            }
            eprintln!("costs: {count} sessions in {backend}");
        }
    }
}

/// Measures the cost of the directory in sign-ins, reads and bytes.
fn directories(runtime: &Runtime, effort: Effort, results: &mut Results) {
    let redis = RedisServer::start();
    let memcached = MemcachedServer::start_with(&["-m", "2048"]);
    for (backend, url) in [("redis", redis.url()), ("memcached", memcached.url())] {
        let modes = [DirectoryMode::Off, DirectoryMode::Listed, DirectoryMode::Strict];
        let stands = modes.map(|mode| {
            let sessions = sessions(&url, mode);
            let cookies: Arc<[Bytes]> = runtime.block_on(async {
                let names = (0..1000).map(|number| format!("account-{number}"));
                let arrivals = names.map(async |name| sign_in(&sessions, &name).await);
                futures_util::future::join_all(arrivals).await.into()
            });
            (mode, sessions, cookies)
        });
        for _ in 0..effort.rounds {
            for (mode, sessions, cookies) in &stands {
                for workload in ["read", "sign-in"] {
                    let rate = requests(runtime, sessions, cookies, workload, effort.duration);
                    let labels = labels([
                        ("backend", backend.to_owned()),
                        ("mode", format!("{mode:?}").to_lowercase()),
                        ("workload", workload.to_owned()),
                    ]);
                    results.push("directory", labels, "1/s", rate);
                }
            }
        }
    }
    redis.cli(&["FLUSHALL"]);
    let sessions = sessions(&redis.url(), DirectoryMode::Listed);
    let mut count = 0;
    for most in [1, 10, 100] {
        runtime.block_on(async {
            while count < most {
                sign_in(&sessions, "account-4711").await;
                count += 1;
            }
        });
        let key = redis.cli(&["KEYS", "*:d:*"]);
        let usage = redis.cli(&["MEMORY", "USAGE", key.trim(), "SAMPLES", "0"]);
        let labels = labels([("sessions", most.to_string())]);
        results.push("directory memory", labels, "bytes", usage.trim().parse().unwrap());
    }
    eprintln!("costs: directories");
}

async fn sign_in(sessions: &Sessions, principal: &str) -> Bytes {
    let sign_in = async |session: Session| {
        session.insert(COUNT, &0)?;
        session.sign_in_with(SignIn::new(principal).label("Firefox on Linux"))
    };
    request(sessions, &Bytes::new(), sign_in).await.unwrap()
}

fn requests(
    runtime: &Runtime,
    sessions: &Sessions,
    cookies: &Arc<[Bytes]>,
    workload: &'static str,
    duration: Duration,
) -> f64 {
    let done = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for seed in 0..CALLERS as u64 {
            let (sessions, cookies, done) = (sessions.clone(), cookies.clone(), done.clone());
            tasks.spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed);
                let mut count = 0;
                while start.elapsed() < duration {
                    let cookie = &cookies[random.usize(..cookies.len())];
                    match workload {
                        "read" => read(&sessions, cookie).await,
                        "increment" => increment(&sessions, cookie).await,
                        _ => drop(sign_in(&sessions, &format!("account-{}", random.u64(..))).await),
                    }
                    count += 1;
                }
                done.fetch_add(count, Ordering::Relaxed);
            });
        }
        tasks.join_all().await;
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}
