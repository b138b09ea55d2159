//! The store that a test uses: in memory, or on a server that the test starts.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use unsticky::Store;

use super::servers::{MemcachedServer, RedisServer};
use super::topologies::{RedisCluster, SentinelSet};

/// A store under test, and the server on which it runs.
pub struct Backend {
    /// `None` for the in-memory store.
    server: Option<Server>,
}

impl Backend {
    pub fn memory() -> Self {
        Self { server: None }
    }

    pub fn redis() -> Self {
        Server::redis().into()
    }

    pub fn memcached() -> Self {
        Server::memcached().into()
    }

    pub fn every() -> [Self; 3] {
        [Self::memory(), Self::redis(), Self::memcached()]
    }

    pub fn name(&self) -> &'static str {
        match &self.server {
            None => "memory",
            Some(Server::Redis(_)) => "redis",
            Some(Server::Memcached(_)) => "memcached",
            Some(Server::Cluster(_)) => "cluster",
            Some(Server::Sentinel(_)) => "sentinel",
        }
    }

    pub fn url(&self) -> String {
        self.server.as_ref().map_or_else(|| "memory:".to_owned(), Server::url)
    }

    /// Connects to the same store as a separate process would. In memory, creates a new store.
    pub fn store(&self) -> Arc<dyn Store> {
        unsticky::connect(&self.url()).unwrap()
    }

    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }
}

impl From<Server> for Backend {
    fn from(server: Server) -> Self {
        Self { server: Some(server) }
    }
}

/// A server that the test starts.
pub enum Server {
    Redis(RedisServer),
    Memcached(MemcachedServer),
    /// A cluster with one node.
    Cluster(RedisCluster),
    /// One server with one Sentinel.
    Sentinel(SentinelSet),
}

impl Server {
    pub fn redis() -> Self {
        Self::redis_with(&[])
    }

    pub fn redis_with(arguments: &[&str]) -> Self {
        Self::Redis(RedisServer::start_with(arguments))
    }

    pub fn memcached() -> Self {
        Self::Memcached(MemcachedServer::start())
    }

    pub fn cluster() -> Self {
        Self::cluster_with(&[])
    }

    pub fn cluster_with(arguments: &[&str]) -> Self {
        Self::Cluster(RedisCluster::single(arguments))
    }

    pub fn sentinel() -> Self {
        Self::sentinel_with(&[])
    }

    pub fn sentinel_with(arguments: &[&str]) -> Self {
        Self::Sentinel(SentinelSet::single(arguments))
    }

    /// Returns the Redis server that holds the data.
    pub fn as_redis(&self) -> &RedisServer {
        match self {
            Self::Redis(server) => server,
            Self::Cluster(cluster) => &cluster.nodes()[0],
            Self::Sentinel(set) => &set.servers()[0],
            Self::Memcached(_) => panic!("it is no Redis server"),
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Memcached(server) => server.port(),
            _ => self.as_redis().port(),
        }
    }

    pub fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            Self::Memcached(server) => server.url(),
            Self::Cluster(cluster) => cluster.url(),
            Self::Sentinel(set) => set.url(),
        }
    }

    /// Returns the URL of the server itself, if no cluster or Sentinel announces the server.
    pub fn direct_url(&self) -> String {
        match self {
            Self::Memcached(server) => server.url(),
            _ => self.as_redis().url(),
        }
    }

    /// Returns the URL to use with a proxy in front of the server. From now on, the cluster or the Sentinel
    /// announces the proxy.
    pub fn url_at(&self, port: u16) -> String {
        match self {
            Self::Redis(_) => format!("redis://127.0.0.1:{port}/"),
            Self::Memcached(_) => format!("memcached://127.0.0.1:{port}"),
            Self::Cluster(cluster) => {
                cluster.announce(port);
                format!("redis+cluster://127.0.0.1:{port}")
            }
            Self::Sentinel(set) => {
                set.announce(port);
                set.url()
            }
        }
    }

    pub fn stop(&mut self) {
        match self {
            Self::Redis(server) => server.stop(),
            Self::Memcached(server) => server.stop(),
            Self::Cluster(cluster) => cluster.kill(0),
            Self::Sentinel(set) => set.server_mut(0).stop(),
        }
    }

    /// Restarts the server that holds the data. Returns when the server accepts commands.
    pub fn restart(&mut self) {
        match self {
            Self::Redis(server) => server.restart(),
            Self::Memcached(server) => server.restart(),
            Self::Cluster(cluster) => {
                cluster.restart(0);
                cluster.settle();
            }
            Self::Sentinel(set) => set.restart(0),
        }
    }

    /// Makes the server keep its connections but do nothing. Returns when all its threads have stopped.
    pub async fn pause(&self) {
        let pid = match self {
            Self::Memcached(server) => {
                server.pause();
                server.pid()
            }
            _ => {
                self.as_redis().pause();
                self.as_redis().pid()
            }
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !all_threads_are_stopped(pid) {
            assert!(Instant::now() < deadline, "the server was not stopped");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub fn resume(&self) {
        match self {
            Self::Memcached(server) => server.resume(),
            _ => self.as_redis().resume(),
        }
    }
}

fn all_threads_are_stopped(pid: u32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|thread| {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
        // The process name is in parentheses and can contain any character.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    })
}

/// Returns a store that waits this long for a connection, and again this long for an answer.
#[cfg(any(feature = "redis", feature = "memcached"))]
pub fn patient(url: &str, patience: Duration) -> Arc<dyn Store> {
    match url.split_once(':').unwrap().0 {
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "valkeys" | "redis+cluster" | "redis+sentinel" => {
            let builder = unsticky::store::RedisStore::builder(url).unwrap();
            Arc::new(builder.connect_timeout(patience).response_timeout(patience).build().unwrap())
        }
        #[cfg(feature = "memcached")]
        "memcached" => {
            let builder = unsticky::store::MemcachedStore::builder(url).unwrap();
            Arc::new(builder.connect_timeout(patience).response_timeout(patience).build())
        }
        scheme => panic!("{scheme} waits for nothing"),
    }
}

/// Connects to a Memcached server. Returns `None` if the server does not accept the connection.
pub async fn accepted(port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"mn\r\n").await.ok()?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.ok()?;
    (answer == *b"MN\r\n").then_some(stream)
}

/// Runs tests that take a [`Server`] or a [`Backend`] on each of these servers. A server is identified by the
/// function that starts it.
macro_rules! on_servers {
    ([$($server:ident),*]: $tests:tt) => {
        $(crate::support::backend::on_servers!(@on $server: $tests);)*
    };
    (@on $server:ident: { $($test:ident),* $(,)? }) => {
        mod $server {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(crate::support::backend::Server::$server().into()).await;
                }
            )*
        }
    };
}
pub(crate) use on_servers;

/// Runs tests on one server of each kind.
macro_rules! on_each_server {
    ($($test:ident),* $(,)?) => {
        crate::support::backend::on_servers!([redis, memcached]: { $($test),* });
    };
}
pub(crate) use on_each_server;
