//! Several Redis servers that form one store: a cluster, or a master with replicas and Sentinels. The
//! library's tests use the same servers. They are disturbed throughout the test.

use std::any::Any;
use std::convert::Infallible;
use std::io;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::Result;
use crate::chaos::milliseconds;
use crate::support::servers::redis_program;
use crate::support::topologies::{
    RedisCluster, SHARDS, SentinelSet, hold_writes, key_in, release_writes, slot_of,
};
use crate::tally::{Disturbance, Tally};

/// The number of slots that are moved at a time. Each of them holds a session.
const SLOTS_MOVED: usize = 40;

/// How long clients have to leave a master that has been replaced by a replica.
const TIME_TO_LEAVE: Duration = Duration::from_secs(1);

/// How long the servers may take until they agree again.
const AGREEMENT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topology {
    Cluster,
    Sentinel,
}

impl Topology {
    pub(crate) const ALL: [Self; 2] = [Self::Cluster, Self::Sentinel];

    /// Returns the value of `--store` that selects these private servers.
    pub(crate) const fn address(self) -> &'static str {
        match self {
            Self::Cluster => "redis+cluster://auto",
            Self::Sentinel => "redis+sentinel://auto",
        }
    }

    /// Returns the name as it is used in sentences.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Cluster => "Redis Cluster",
            Self::Sentinel => "Redis Sentinel",
        }
    }

    pub(crate) const fn disturbances(self) -> &'static [Disturbance] {
        match self {
            Self::Cluster => {
                &[Disturbance::SlotMoved, Disturbance::PlannedFailover, Disturbance::MasterKilled]
            }
            Self::Sentinel => &[
                Disturbance::PlannedFailover,
                Disturbance::MasterKilled,
                Disturbance::SentinelKilled,
            ],
        }
    }

    pub(crate) const fn announcement(self) -> &'static str {
        match self {
            Self::Cluster => {
                "slots are moved, replicas take over from their masters, and masters are killed and \
                 restarted"
            }
            Self::Sentinel => {
                "replicas take over from the master, and the master and the Sentinels are killed and \
                 restarted"
            }
        }
    }
}

/// The servers, which end when this value is dropped.
pub(crate) enum Group {
    Cluster(Aside<RedisCluster>),
    Sentinel(Aside<SentinelSet>),
}

impl Group {
    /// Starts the servers; returns `None` if `redis-server` is not installed.
    pub(crate) async fn start(topology: Topology) -> Result<Option<Self>> {
        let version = Command::new(redis_program())
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if version.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        Ok(Some(match topology {
            Topology::Cluster => Self::Cluster(Aside::start(RedisCluster::start).await?),
            Topology::Sentinel => Self::Sentinel(Aside::start(start_sentinels).await?),
        }))
    }

    pub(crate) const fn topology(&self) -> Topology {
        match self {
            Self::Cluster(_) => Topology::Cluster,
            Self::Sentinel(_) => Topology::Sentinel,
        }
    }

    pub(crate) async fn url(&self) -> Result<String> {
        match self {
            Self::Cluster(cluster) => cluster.with(|cluster| cluster.url()).await,
            Self::Sentinel(set) => set.with(|set| set.url()).await,
        }
    }

    /// Causes one disturbance after another. Each begins as soon as the servers have recovered from the one
    /// before.
    pub(crate) async fn disturb(&self, until: Instant, tally: &Tally) -> Result<Infallible> {
        let mut masters = self.masters().await?;
        let mut kinds = self.topology().disturbances().to_vec();
        loop {
            fastrand::shuffle(&mut kinds);
            for kind in &kinds {
                sleep(milliseconds(500..1000)).await;
                if Instant::now() >= until {
                    return Ok(std::future::pending().await);
                }
                self.settle(&masters).await?;
                match self {
                    Self::Cluster(cluster) => {
                        disturb_cluster(cluster, *kind, &mut masters, tally).await?;
                    }
                    Self::Sentinel(set) => {
                        disturb_sentinel(set, *kind, &mut masters, tally).await?;
                    }
                }
                self.settle(&masters).await?;
            }
        }
    }

    /// Returns the master of each shard.
    async fn masters(&self) -> Result<Vec<usize>> {
        match self {
            Self::Cluster(cluster) => {
                cluster
                    .with(|cluster| (0..SHARDS).map(|shard| cluster.master_of(shard)).collect())
                    .await
            }
            Self::Sentinel(set) => set.with(|set| vec![set.master()]).await,
        }
    }

    /// Waits until the servers agree. Fails if they replaced a master that was not disturbed: writes to it
    /// that were not yet replicated would be lost, and no client can prevent that.
    async fn settle(&self, masters: &[usize]) -> Result<()> {
        match self {
            Self::Cluster(cluster) => {
                cluster.until("the nodes do not agree", |cluster| cluster.is_settled()).await?;
            }
            Self::Sentinel(set) => {
                set.until("the Sentinels do not agree", |set| set.is_settled()).await?;
            }
        }
        if self.masters().await? == masters {
            Ok(())
        } else {
            Err("a master that was only slow was replaced; this machine is too busy".into())
        }
    }
}

/// Causes a disturbance, waits until the cluster serves all slots again, and updates `masters`.
async fn disturb_cluster(
    cluster: &Aside<RedisCluster>,
    kind: Disturbance,
    masters: &mut [usize],
    tally: &Tally,
) -> Result<()> {
    let shard = fastrand::usize(..SHARDS);
    match kind {
        Disturbance::SlotMoved => {
            let to = (shard + fastrand::usize(1..SHARDS)) % SHARDS;
            let moved = cluster.with(move |cluster| move_slots(cluster, shard, to)).await?;
            tally.disturbed(kind, moved as u64);
        }
        Disturbance::PlannedFailover => {
            tally.disturbed(kind, 1);
            let since = Instant::now();
            masters[shard] = cluster
                .with(move |cluster| {
                    cluster.fail_over(shard);
                    cluster.master_of(shard)
                })
                .await?;
            tally.store_was_away(since.elapsed());
        }
        Disturbance::MasterKilled => {
            let since = Instant::now();
            let (master, replica, slot) = cluster
                .with(move |cluster| {
                    let (master, replica) = (cluster.master_of(shard), cluster.replica_of(shard));
                    let slot = cluster.slot_of_master(master);
                    hold_writes(&cluster.nodes()[master], &key_in(slot), 1);
                    cluster.kill(master);
                    (master, replica, slot)
                })
                .await?;
            tally.disturbed(kind, 1);
            cluster
                .until("no replica takes the master's place", move |cluster| {
                    cluster.takes_writes(replica, slot)
                })
                .await?;
            tally.store_was_away(since.elapsed());
            masters[shard] = replica;
            // The killed master restarts empty, so it must not restart before its replica has been promoted.
            sleep(milliseconds(0..1000)).await;
            cluster.with(move |cluster| cluster.restart(master)).await?;
        }
        _ => {}
    }
    Ok(())
}

/// Moves slots that hold sessions. Returns the number of slots that were moved.
fn move_slots(cluster: &RedisCluster, from: usize, to: usize) -> usize {
    let mut slots: Vec<_> = cluster.keys_of(from).iter().map(|key| slot_of(key)).collect();
    slots.sort_unstable();
    slots.dedup();
    fastrand::shuffle(&mut slots);
    slots.truncate(SLOTS_MOVED);
    let count = slots.len();
    cluster.move_slots(slots, cluster.master_of(from), cluster.master_of(to));
    count
}

fn start_sentinels() -> SentinelSet {
    let set = SentinelSet::start();
    // With these settings, the Sentinels agree within two seconds instead of twenty, so there are more
    // disturbances.
    set.hasten();
    set
}

/// Pauses writes on the master, and waits until its replicas have all earlier writes. Returns the master.
fn hold_writes_of_master(set: &SentinelSet) -> usize {
    let master = set.master();
    hold_writes(&set.servers()[master], "key", set.servers().len() - 1);
    master
}

/// Causes a disturbance, waits until there is a master again, and updates `masters`.
async fn disturb_sentinel(
    set: &Aside<SentinelSet>,
    kind: Disturbance,
    masters: &mut [usize],
    tally: &Tally,
) -> Result<()> {
    let since = Instant::now();
    match kind {
        Disturbance::PlannedFailover => {
            tally.disturbed(kind, 1);
            let old = set
                .with(|set| {
                    let old = hold_writes_of_master(set);
                    // Reads from the old master would be out of date as soon as a client writes to the new
                    // one.
                    set.servers()[old].pause();
                    old
                })
                .await?;
            masters[0] = set.with(|set| set.fail_over()).await?;
            tally.store_was_away(since.elapsed());
            // The old master continues as a master for some time, and the writes that it accepts are lost.
            sleep(TIME_TO_LEAVE).await;
            set.with(move |set| {
                set.servers()[old].resume();
                release_writes(&set.servers()[old]);
            })
            .await?;
        }
        Disturbance::MasterKilled => {
            let master = set
                .with(|set| {
                    hold_writes_of_master(set);
                    set.kill_master()
                })
                .await?;
            tally.disturbed(kind, 1);
            masters[0] = set.with(move |set| set.succeeded(master)).await?;
            tally.store_was_away(since.elapsed());
            // The killed master restarts empty, so it must not restart before its replica has been promoted.
            sleep(milliseconds(0..1000)).await;
            set.with(move |set| set.restart(master)).await?;
        }
        Disturbance::SentinelKilled => {
            let sentinel = set
                .with(|set| {
                    let sentinel = fastrand::usize(..set.sentinels().len());
                    set.kill_sentinel(sentinel);
                    sentinel
                })
                .await?;
            tally.disturbed(kind, 1);
            sleep(milliseconds(500..1500)).await;
            set.with(move |set| {
                set.restart_sentinel(sentinel);
                set.hasten();
            })
            .await?;
        }
        _ => {}
    }
    Ok(())
}

/// Calls the methods of a value, which may block or panic, outside the threads of the runtime.
pub(crate) struct Aside<S>(Arc<Mutex<S>>);

impl<S: Send + 'static> Aside<S> {
    async fn start(start: fn() -> S) -> Result<Self> {
        Ok(Self(Arc::new(Mutex::new(aside(start).await?))))
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.0);
        aside(move || work(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))).await
    }

    /// Repeats the check until it succeeds. Fails with the message `otherwise` after [`AGREEMENT`].
    async fn until(
        &self,
        otherwise: &str,
        holds: impl Fn(&mut S) -> bool + Copy + Send + 'static,
    ) -> Result<()> {
        let deadline = Instant::now() + AGREEMENT;
        while !self.with(holds).await? {
            if Instant::now() >= deadline {
                return Err(otherwise.into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// Runs the work on a blocking thread. Turns a panic into an error.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let failed = match tokio::task::spawn_blocking(work).await {
        Ok(done) => return Ok(done),
        Err(failed) => failed,
    };
    match failed.try_into_panic() {
        Ok(panic) => Err(message(&*panic).into()),
        Err(failed) => Err(failed.into()),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic").to_owned()
}
