//! The stores alone, and a mix of requests.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use tokio::runtime::Runtime;
use unsticky::store::{Created, Replaced, Store, StoreKey, Stored};
use unsticky::testing::{random_key, random_record};

use crate::backend::{Backend, group, is_test, runtime, timed};
use crate::request::{arrive, increment, read, sign_out};

const PAYLOADS: [usize; 3] = [256, 1024, 8192];
const CALLERS: [u64; 3] = [1, 64, 256];

/// The time after which remaining records expire.
const TTL: Duration = Duration::from_secs(600);

pub fn verbs(criterion: &mut Criterion) {
    let runtime = runtime();
    for backend in Backend::of_verbs() {
        for bytes in PAYLOADS {
            let mut group = group(criterion, &format!("stores/{}/{bytes} B", backend.name));
            for callers in CALLERS {
                let records = Records::new(&runtime, backend.store(), bytes, callers);
                group.throughput(Throughput::Elements(callers));
                let id = |verb| BenchmarkId::new(verb, format!("{callers} callers"));
                group.bench_function(id("load"), |bencher| {
                    bencher.iter_custom(|rounds| {
                        timed(&runtime, callers, rounds, |caller, rounds| {
                            records.clone().load(caller, rounds)
                        })
                    });
                });
                group.bench_function(id("replace"), |bencher| {
                    bencher.iter_custom(|rounds| {
                        timed(&runtime, callers, rounds, |caller, rounds| {
                            records.clone().replace(caller, rounds)
                        })
                    });
                });
                group.bench_function(id("create and delete"), |bencher| {
                    bencher.iter_custom(|rounds| {
                        timed(&runtime, callers, rounds, |_, rounds| {
                            records.clone().create_and_delete(rounds)
                        })
                    });
                });
            }
            group.finish();
        }
    }
}

/// One record per caller.
#[derive(Clone)]
struct Records {
    store: Arc<dyn Store>,
    bytes: usize,
    keys: Arc<[(StoreKey, Mutex<Stored>)]>,
}

impl Records {
    fn new(runtime: &Runtime, store: Arc<dyn Store>, bytes: usize, callers: u64) -> Self {
        let keys = runtime.block_on(async {
            let mut keys = Vec::new();
            for _ in 0..callers {
                let key = random_key();
                let stored = create(&*store, &key, bytes).await;
                keys.push((key, Mutex::new(stored)));
            }
            keys.into()
        });
        Self { store, bytes, keys }
    }

    async fn load(self, caller: u64, rounds: u64) {
        for _ in 0..rounds {
            assert!(self.store.load(&self.keys[caller as usize].0).await.unwrap().is_some());
        }
    }

    async fn replace(self, caller: u64, rounds: u64) {
        let (key, stored) = &self.keys[caller as usize];
        let mut expected = stored.lock().unwrap().clone();
        for _ in 0..rounds {
            let record = random_record(self.bytes);
            match self.store.replace(key, record.clone(), TTL, &expected).await.unwrap() {
                Replaced::Replaced(version) => expected = Stored::new(record, version),
                other => panic!("{other:?}"),
            }
        }
        *stored.lock().unwrap() = expected;
    }

    async fn create_and_delete(self, rounds: u64) {
        for _ in 0..rounds {
            let key = random_key();
            let stored = create(&*self.store, &key, self.bytes).await;
            self.store.delete(&key, Some(&stored)).await.unwrap();
        }
    }
}

async fn create(store: &dyn Store, key: &StoreKey, bytes: usize) -> Stored {
    let record = random_record(bytes);
    match store.create(key, record.clone(), TTL).await.unwrap() {
        Created::Created(version) => Stored::new(record, version),
        Created::Occupied => panic!("a random key is occupied"),
    }
}

/// The number of sessions. Which session a request uses follows Zipf's law.
const SESSIONS: usize = 100_000;

pub fn mix(criterion: &mut Criterion) {
    let runtime = runtime();
    let count = if is_test() { 100 } else { SESSIONS };
    for backend in Backend::all() {
        let sessions = backend.sessions();
        let cookies: Arc<[Bytes]> = runtime.block_on(async {
            let mut cookies = Vec::with_capacity(count);
            while cookies.len() < count {
                let arrivals = (0..100).map(|_| arrive(&sessions, 512));
                cookies.extend(futures_util::future::join_all(arrivals).await);
            }
            cookies.into()
        });
        let mut group = group(criterion, &format!("mix/{}", backend.name));
        for callers in CALLERS {
            group.throughput(Throughput::Elements(callers));
            group.bench_function(format!("{callers} callers"), |bencher| {
                bencher.iter_custom(|rounds| {
                    timed(&runtime, callers, rounds, |caller, rounds| {
                        let (sessions, cookies) = (sessions.clone(), Arc::clone(&cookies));
                        async move {
                            let mut random = fastrand::Rng::with_seed(caller);
                            let mut mine: Vec<Bytes> = Vec::new();
                            for _ in 0..rounds {
                                let cookie = &cookies[zipf(&mut random, cookies.len())];
                                match (random.u8(..100), mine.pop()) {
                                    (0..90, arrived) => {
                                        mine.extend(arrived);
                                        read(&sessions, cookie).await;
                                    }
                                    (90..97, arrived) => {
                                        mine.extend(arrived);
                                        increment(&sessions, cookie).await;
                                    }
                                    (99.., Some(arrived)) => sign_out(&sessions, &arrived).await,
                                    (_, arrived) => {
                                        mine.extend(arrived);
                                        mine.push(arrive(&sessions, 512).await);
                                    }
                                }
                            }
                        }
                    })
                });
            });
        }
        group.finish();
    }
}

/// Returns a random index below `count` from a Zipf distribution with an exponent of one. Inverts the
/// continuous form of the distribution.
fn zipf(random: &mut fastrand::Rng, count: usize) -> usize {
    ((count as f64).powf(random.f64()) as usize).clamp(1, count) - 1
}
