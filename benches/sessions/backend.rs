//! The stores that are measured, and measurements with several concurrent callers.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use unsticky::store::MemoryStore;
use unsticky::{DirectoryMode, Sessions, Store};

use crate::servers::{MemcachedServer, RedisServer};
use crate::topologies::RedisCluster;

pub struct Backend {
    pub name: &'static str,
    url: String,
    _server: Box<dyn Any>,
}

impl Backend {
    /// Returns the stores to measure.
    pub fn all() -> Vec<Self> {
        if let Ok(url) = std::env::var("SESSION_URL") {
            return vec![Self { name: "SESSION_URL", url, _server: Box::new(()) }];
        }
        let (redis, memcached) =
            (RedisServer::start(), MemcachedServer::start_with(&["-m", "1024"]));
        vec![
            Self { name: "memory", url: "memory:".to_owned(), _server: Box::new(()) },
            Self { name: "redis", url: redis.url(), _server: Box::new(redis) },
            Self { name: "memcached", url: memcached.url(), _server: Box::new(memcached) },
        ]
    }

    /// Returns the stores whose verbs are measured. A cluster with one node shows the cost of finding the
    /// right node.
    pub fn of_verbs() -> Vec<Self> {
        let mut backends = Self::all();
        if std::env::var_os("SESSION_URL").is_none() {
            let cluster = RedisCluster::single(&[]);
            let url = cluster.url();
            backends.push(Self { name: "redis cluster", url, _server: Box::new(cluster) });
        }
        backends
    }

    pub fn store(&self) -> Arc<dyn Store> {
        match &*self.url {
            // The capacity is above the default, because the benchmarks end before any records expire.
            "memory:" => Arc::new(MemoryStore::new().with_capacity(10_000_000)),
            url => unsticky::connect(url).unwrap(),
        }
    }

    pub fn sessions(&self) -> Sessions {
        let timeout = Duration::from_secs(30);
        let builder = Sessions::builder(self.store()).namespace("unsticky-bench");
        // All sessions have the same principal, and a directory would limit their number.
        builder.directory(DirectoryMode::Off).timeout(timeout).build().unwrap()
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Returns whether each benchmark runs only once, as a test.
pub fn is_test() -> bool {
    let mut arguments = std::env::args();
    arguments.all(|argument| argument != "--bench") || std::env::args().any(|it| it == "--test")
}

/// Returns a group whose measurement times are so short that all benchmarks together take a few minutes.
pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    group
}

/// Returns the time that all callers together take if they concurrently do their work `rounds` times each.
pub fn timed<F>(
    runtime: &Runtime,
    callers: u64,
    rounds: u64,
    work: impl Fn(u64, u64) -> F,
) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let begun = Instant::now();
        for caller in 0..callers {
            tasks.spawn(work(caller, rounds));
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        begun.elapsed()
    })
}
