//! What could be had for promises, or by scripts that know the record: the same change in two round trips
//! and in one, and a refresh as a bare PEXPIRE.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{IntoConnectionInfo as _, Script, cmd};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use unsticky::testing::random_record;

use crate::results::{Results, labels};
use crate::servers::RedisServer;
use crate::web::Effort;

pub const WAYS: [&str; 4] =
    ["read, then compare and set", "one script that knows the secret", "compare and set", "touch"];

/// A write of the whole record if its tag is the one that was read: what the store does.
const COMPARE_AND_SET: &str = "\
if redis.call('GETRANGE', KEYS[1], 0, 7) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
return 0";

/// A write that checks the secret's digest in the server and appends one value: no reading before.
const GUARDED: &str = "\
local record = redis.call('GET', KEYS[1])
if not record or string.sub(record, 13, 44) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2] .. string.sub(record, 9, 1016) .. ARGV[3], 'PX', ARGV[4])
return 1";

const BYTES: usize = 1024;
const TTL: u64 = 3_600_000;

pub fn run(effort: Effort, results: &mut Results) {
    let server = RedisServer::start();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let connection = runtime.block_on(connect(&server));
    for _ in 0..effort.rounds {
        for callers in [1, 64] {
            for way in WAYS {
                let done = Arc::new(AtomicU64::new(0));
                let start = Instant::now();
                runtime.block_on(async {
                    let mut tasks = JoinSet::new();
                    for caller in 0..callers {
                        let (connection, done) = (connection.clone(), done.clone());
                        tasks.spawn(async move {
                            let key = format!("record-{caller}");
                            let mut changer = Changer::new(connection, key).await;
                            while start.elapsed() < effort.duration {
                                changer.change(way).await;
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                    tasks.join_all().await;
                });
                let rate = done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
                let labels = labels([("way", way.to_owned()), ("callers", callers.to_string())]);
                results.push("trips", labels, "1/s", rate);
            }
        }
    }
    eprintln!("costs: round trips");
}

async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    let info = server.url().into_connection_info().unwrap().set_tcp_settings(tcp);
    redis::Client::open(info).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// One record, and who changes it.
struct Changer {
    connection: MultiplexedConnection,
    key: String,
    record: Bytes,
    scripts: [Script; 2],
}

impl Changer {
    async fn new(mut connection: MultiplexedConnection, key: String) -> Self {
        let record = random_record(BYTES);
        let mut put = cmd("SET");
        put.arg(&key).arg(&record[..]).arg("PX").arg(TTL);
        put.query_async::<()>(&mut connection).await.unwrap();
        Self { connection, key, record, scripts: [COMPARE_AND_SET, GUARDED].map(Script::new) }
    }

    async fn change(&mut self, way: &str) {
        let changed: u32 = match way {
            "touch" => {
                let mut touch = cmd("PEXPIRE");
                touch.arg(&self.key).arg(TTL).query_async(&mut self.connection).await.unwrap()
            }
            "one script that knows the secret" => {
                let mut call = self.scripts[1].key(&self.key);
                // The digest, which never changes, another tag, and a value of eight bytes.
                call.arg(&self.record[12..44]).arg(&random_record(8)[..]).arg("12345678").arg(TTL);
                call.invoke_async(&mut self.connection).await.unwrap()
            }
            way => {
                if way != "compare and set" {
                    let mut read = cmd("GET");
                    let read = read.arg(&self.key).query_async(&mut self.connection);
                    self.record = Bytes::from(read.await.map(|bytes: Vec<u8>| bytes).unwrap());
                }
                let record = random_record(BYTES);
                let mut call = self.scripts[0].key(&self.key);
                call.arg(&self.record[..8]).arg(&record[..]).arg(TTL);
                self.record = record;
                call.invoke_async(&mut self.connection).await.unwrap()
            }
        };
        assert_eq!(changed, 1, "{way}");
    }
}
