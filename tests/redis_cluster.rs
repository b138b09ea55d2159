//! Special cases of the connection to a Redis Cluster, on real nodes, or on scripted nodes where no
//! real node behaves as needed.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::net::TcpListener;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use support::backend::patient;
use support::fake::Fake;
use support::servers::{RedisServer, ValkeyServer, redis_program};
use support::topologies::{RedisCluster, SHARDS, eventually, slot_of, slots_at_first};
use tokio::time::sleep;
use unsticky::store::{Created, Deleted, RedisStore, Replaced, Store, StoreKey, Stored};
use unsticky::testing::{random_key, random_record};
use unsticky::{Error, ErrorKind};

const HOUR: Duration = Duration::from_secs(3600);

/// Settings with which the nodes do not declare a master dead that is only slow on a busy machine.
const PATIENT_NODES: &[&str] = &["--cluster-node-timeout", "30000"];

/// The longest time that a call may take: the request's time limit.
const BOUND: Duration = Duration::from_secs(1);

fn url(ports: &[u16]) -> String {
    let nodes: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redis+cluster://{}", nodes.join(","))
}

fn store(url: &str) -> RedisStore {
    RedisStore::connect(url).unwrap()
}

/// Returns a cluster of three masters, shared by the tests that do not change it.
fn shared_masters() -> Arc<RedisCluster> {
    static SHARED: Mutex<Weak<RedisCluster>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let cluster = Arc::new(RedisCluster::masters(&redis_program(), PATIENT_NODES));
        *shared = Arc::downgrade(&cluster);
        cluster
    })
}

fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port()
}

/// Returns a key in the shard, provided that no slot has been moved.
fn key_of(shard: usize) -> StoreKey {
    loop {
        let key = random_key();
        if slots_at_first(shard).contains(&slot_of(key.as_str())) {
            return key;
        }
    }
}

/// Returns the error with its cause.
fn all(error: &Error) -> String {
    let source = std::error::Error::source(error).unwrap();
    format!("{error}: {source}")
}

async fn created(store: &dyn Store, key: &StoreKey) -> Stored {
    let bytes = random_record(100);
    match store.create(key, bytes.clone(), HOUR).await.unwrap() {
        Created::Created(version) => Stored::new(bytes, version),
        Created::Occupied => panic!("{key} is occupied"),
    }
}

async fn replaced(store: &dyn Store, key: &StoreKey, expected: &Stored) -> Stored {
    let bytes = random_record(100);
    match store.replace(key, bytes.clone(), HOUR, expected).await.unwrap() {
        Replaced::Replaced(version) => Stored::new(bytes, version),
        other => panic!("{other:?}"),
    }
}

/// Creates, reads, changes and deletes a record in each shard.
async fn every_shard_is_reached(store: &dyn Store) {
    for shard in 0..SHARDS {
        let key = key_of(shard);
        let stored = created(store, &key).await;
        let stored = replaced(store, &key, &stored).await;
        assert_eq!(store.load(&key).await.unwrap().as_ref(), Some(&stored));
        assert_eq!(store.delete(&key, Some(&stored)).await.unwrap(), Deleted::Deleted);
    }
}

/// Checks each outcome of each command, starting from an existing record.
async fn every_outcome_is_right(store: &dyn Store, key: &StoreKey, stored: &Stored) {
    let other = Stored::new(random_record(100), unsticky::store::Version::new(7));
    let conflict = Some(stored.clone());
    assert_eq!(store.load(key).await.unwrap(), conflict);
    assert_eq!(store.create(key, random_record(100), HOUR).await.unwrap(), Created::Occupied);
    let outcome = store.replace(key, random_record(100), HOUR, &other).await.unwrap();
    assert_eq!(outcome, Replaced::Conflict(conflict));
    let stored = replaced(store, key, stored).await;
    assert_eq!(store.load(key).await.unwrap().as_ref(), Some(&stored));
    let outcome = store.delete(key, Some(&other)).await.unwrap();
    assert_eq!(outcome, Deleted::Conflict(Some(stored.clone())));
    assert_eq!(store.delete(key, Some(&stored)).await.unwrap(), Deleted::Deleted);
    // Six more calls, on a key that has no record.
    assert_eq!(store.load(key).await.unwrap(), None);
    let outcome = store.replace(key, random_record(100), HOUR, &stored).await.unwrap();
    assert_eq!(outcome, Replaced::Missing);
    assert_eq!(store.delete(key, Some(&stored)).await.unwrap(), Deleted::Missing);
    assert_eq!(store.delete(key, None).await.unwrap(), Deleted::Missing);
    created(store, key).await;
    assert_eq!(store.delete(key, None).await.unwrap(), Deleted::Deleted);
}

/// While a slot is being moved, some of its keys are on one node and some on the other. Every command
/// works in either case.
async fn half_moved_slots_take_every_verb(cluster: &RedisCluster) {
    let (source, target) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    let store = patient(&cluster.url(), Duration::from_secs(5));
    // Makes sure that both nodes are known and connected.
    every_shard_is_reached(&*store).await;
    let (moved, kept) = (key_of(0), key_of(0));
    let at_source = [created(&*store, &moved).await, created(&*store, &kept).await];
    for key in [&moved, &kept] {
        cluster.open_slot(slot_of(key.as_str()), 0, 1);
    }
    cluster.move_key(moved.as_str(), 0, 1);
    target.cli(&["SCRIPT", "FLUSH"]);
    for node in [source, target] {
        node.cli(&["CONFIG", "RESETSTAT"]);
    }
    every_outcome_is_right(&*store, &moved, &at_source[0]).await;
    // Thirteen calls, plus the two scripts that the target did not have and that were therefore sent
    // twice.
    assert_eq!((target.calls("asking"), target.calls("eval")), (13 + 2, 2));
    every_outcome_is_right(&*store, &kept, &at_source[1]).await;
    assert_eq!(target.calls("asking"), 13 + 2 + 6, "the last six find nothing at the source");
    // Without `ASKING`, the target redirects the command back to the source.
    let user = ["ACL", "SETUSER", "app", "on", ">sesame7", "~*", "+@all", "-asking"];
    for node in cluster.nodes() {
        node.cli(&user);
    }
    let denied = cluster.url().replace("://", "://app:sesame7@");
    let error = RedisStore::connect(&denied).unwrap().load(&moved).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(all(&error).contains("answered ASKING with NOPERM"), "{error:?}");
}

#[tokio::test]
async fn migrating_slots_accept_every_command_by_script() {
    half_moved_slots_take_every_verb(&RedisCluster::masters(&redis_program(), PATIENT_NODES)).await;
}

mod valkey {
    use super::*;

    fn scripts(node: &RedisServer) -> u64 {
        node.calls("evalsha") + node.calls("eval")
    }

    #[tokio::test]
    async fn nodes_use_native_compare_and_set_while_slots_move() {
        let cluster = RedisCluster::masters(&ValkeyServer::program(), PATIENT_NODES);
        let store = patient(&cluster.url(), Duration::from_secs(5));
        for (shard, node) in cluster.nodes().iter().enumerate() {
            let (begun, key) = (Instant::now(), key_of(shard));
            let mut stored = created(&*store, &key).await;
            loop {
                let before = scripts(node);
                stored = replaced(&*store, &key, &stored).await;
                if scripts(node) == before {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(5), "the node does not compare");
            }
            // The probe used a key that belongs to this node.
            assert_eq!(node.failures("set"), 0);
            let before = (scripts(node), node.calls("set"), node.calls("delifeq"));
            let stored = replaced(&*store, &key, &stored).await;
            assert_eq!(store.delete(&key, Some(&stored)).await.unwrap(), Deleted::Deleted);
            let after = (scripts(node), node.calls("set"), node.calls("delifeq"));
            assert_eq!(after, (before.0, before.1 + 1, before.2 + 1));
        }
        drop(store);
        half_moved_slots_take_every_verb(&cluster).await;
    }
}

#[tokio::test]
async fn nodes_are_found_by_every_kind_of_announced_address() {
    let cluster = RedisCluster::masters(&redis_program(), PATIENT_NODES);
    let seed = [cluster.nodes()[0].port()];
    let configure = |name: &str, value: &str| {
        for node in cluster.nodes() {
            node.cli(&["CONFIG", "SET", name, value]);
        }
    };
    let named = || cluster.nodes()[0].cli(&["CLUSTER", "SLOTS"]);
    configure("cluster-preferred-endpoint-type", "unknown-endpoint");
    every_shard_is_reached(&store(&url(&seed))).await;
    // A node whose hostname is not known is announced as `?`.
    configure("cluster-preferred-endpoint-type", "hostname");
    assert!(named().contains('?'), "{}", named());
    every_shard_is_reached(&store(&url(&seed))).await;
    configure("cluster-announce-hostname", "localhost");
    eventually("the nodes do not hear of their names", || {
        named().matches("\nlocalhost\n").count() == SHARDS
    });
    every_shard_is_reached(&store(&url(&seed))).await;

    // If a node cannot be reached at its announced address, only its keys are unavailable.
    let closed = closed_port();
    cluster.nodes()[1].cli(&["CONFIG", "SET", "cluster-announce-port", &closed.to_string()]);
    eventually("the nodes do not hear of the port", || named().contains(&closed.to_string()));
    let store = store(&url(&seed));
    for _ in 0..3 {
        let begun = Instant::now();
        let error = store.create(&key_of(1), random_record(100), HOUR).await.unwrap_err();
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let text = format!("cannot connect to redis at localhost:{closed}: Connection refused");
        assert!(all(&error).contains(&text), "{error:?}");
        created(&store, &key_of(0)).await;
        created(&store, &key_of(2)).await;
    }
}

#[tokio::test]
async fn redirect_loop_between_nodes_returns_error() {
    for (redirect, tries) in [("MOVED", 5), ("ASK", 5)] {
        let ports: Arc<OnceLock<[u16; 2]>> = Arc::default();
        let fake = async |other: usize| {
            let ports = Arc::clone(&ports);
            Fake::start(move |command| match command {
                "ASKING" => "+OK\r\n".to_owned(),
                "CLUSTER SLOTS" => "-NOPERM no\r\n".to_owned(),
                _ => format!("-{redirect} 1 127.0.0.1:{}\r\n", ports.get().unwrap()[other]),
            })
            .await
        };
        let nodes = [fake(1).await, fake(0).await];
        ports.set([nodes[0].port(), nodes[1].port()]).unwrap();
        let begun = Instant::now();
        let store = store(&url(&[nodes[0].port()]));
        let error = store.create(&random_key(), random_record(100), HOUR).await.unwrap_err();
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(
            all(&error).contains("the nodes of the cluster redirect to each other"),
            "{error:?}"
        );
        assert_eq!(nodes[0].heard("SET") + nodes[1].heard("SET"), tries);
    }
}

#[tokio::test]
async fn redirect_to_nowhere_is_not_followed() {
    let stranger = Fake::start(|_| "+OK\r\n".to_owned()).await;
    let port = stranger.port();
    for redirect in [
        "MOVED".to_owned(),
        "MOVED 1".to_owned(),
        "MOVED 1 127.0.0.1".to_owned(),
        "MOVED 1 127.0.0.1:".to_owned(),
        "MOVED 1 127.0.0.1:0".to_owned(),
        "MOVED 1 127.0.0.1:65536".to_owned(),
        format!("MOVED 16384 127.0.0.1:{port}"),
        format!("MOVED -1 127.0.0.1:{port}"),
        format!("MOVED x 127.0.0.1:{port}"),
        format!("MOVED 1 hunter2@127.0.0.1:{port}"),
        format!("MOVED 1 127.0.0.1%00hunter2:{port}"),
        format!("ASK 1 127.0.0.1/hunter2:{port}"),
        format!("ASK 1 h\u{e9}:{port}"),
    ] {
        let answer = format!("-{redirect}\r\n");
        let node = Fake::start(move |command| match command {
            "CLUSTER SLOTS" => "-NOPERM no\r\n".to_owned(),
            _ => answer.clone(),
        })
        .await;
        let store = store(&url(&[node.port()]));
        let error = store.create(&random_key(), random_record(100), HOUR).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{redirect}: {error:?}");
        assert!(all(&error).contains("address that cannot be used"), "{redirect}: {error:?}");
        assert!(!all(&error).contains("hunter2"), "{redirect}: {error:?}");
        assert_eq!(node.heard("SET"), 1, "{redirect}");
    }
    assert_eq!(stranger.heard(""), 0);
}

#[tokio::test]
async fn any_reachable_node_discovers_the_others() {
    let cluster = shared_masters();
    let ports: Vec<_> = cluster.nodes().iter().map(RedisServer::port).collect();
    // This port accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().map(|address| (silent, address.port())).unwrap();
    for first in [closed_port(), silent.1] {
        let begun = Instant::now();
        let store = store(&url(&[first, ports[2]]));
        created(&store, &key_of(0)).await;
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        every_shard_is_reached(&store).await;
    }
}

#[tokio::test]
async fn replica_discovers_the_masters() {
    let cluster = RedisCluster::start_with(PATIENT_NODES);
    every_shard_is_reached(&store(&url(&[cluster.nodes()[SHARDS].port()]))).await;
}

/// A server outside the cluster would accept keys and keep them, so it must be refused.
#[tokio::test]
async fn server_without_cluster_is_refused_as_node() {
    let (server, cluster) = (RedisServer::start(), shared_masters());
    let alone = store(&url(&[server.port()]));
    for error in [
        alone.load(&random_key()).await.unwrap_err(),
        alone.create(&random_key(), random_record(100), HOUR).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let text =
            "the server is not a node of a cluster; the address of one server begins with redis://";
        assert!(all(&error).contains(text), "{error:?}");
    }
    for shard in 0..SHARDS {
        let store = store(&url(&[server.port(), cluster.nodes()[shard].port()]));
        every_shard_is_reached(&store).await;
    }
    assert_eq!((server.calls("set"), server.calls("get")), (0, 0));
    // The reverse: a cluster node, used as a single server.
    let node = RedisStore::connect(&cluster.nodes()[0].url()).unwrap();
    let error = node.load(&key_of(1)).await.unwrap_err();
    assert!(all(&error).contains("begins with redis+cluster://"), "{error:?}");
}

#[tokio::test]
async fn client_without_permission_for_slots_command_follows_redirects() {
    let cluster = shared_masters();
    let user = ["ACL", "SETUSER", "app", "on", ">sesame7", "~*", "-@all"];
    let commands = ["+get", "+set", "+del", "+getrange", "+eval", "+evalsha"];
    for node in cluster.nodes() {
        node.cli(&[&user[..], &commands].concat());
    }
    let store = store(&cluster.url().replace("://", "://app:sesame7@"));
    for _ in 0..3 {
        every_shard_is_reached(&store).await;
    }
}

#[tokio::test]
async fn error_names_wrong_password() {
    let cluster = shared_masters();
    let store = store(&cluster.url().replace("://", "://app:wrong8@"));
    let error = store.load(&random_key()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let text = all(&error);
    assert!(text.contains("it answered AUTH with WRONGPASS"), "{text}");
    assert!(!text.contains("wrong8"), "{text}");
}

#[test]
fn each_runtime_has_its_own_connections_and_dropped_store_leaves_no_task() {
    // This test needs a cluster of its own, because other tests use the shared one at the same time.
    let cluster = RedisCluster::masters(&redis_program(), PATIENT_NODES);
    let connections = || -> Vec<usize> {
        // Leaves out the connection that runs `CLIENT LIST`.
        let clients = |node: &RedisServer| node.cli(&["CLIENT", "LIST"]).lines().count() - 1;
        cluster.nodes().iter().map(clients).collect()
    };
    let runtimes = [support::runtime(), support::runtime()];
    let store = store(&cluster.url());
    for (count, runtime) in (1..).zip(&runtimes) {
        runtime.block_on(async {
            every_shard_is_reached(&store).await;
            assert_eq!(connections(), [count; SHARDS]);
        });
    }
    drop(store);
    for runtime in &runtimes {
        runtime.block_on(async {
            let begun = Instant::now();
            while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
                assert!(begun.elapsed() < Duration::from_secs(5), "tasks are left");
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
    eventually("connections are left", || connections() == [0; SHARDS]);
}

#[tokio::test]
async fn connection_to_removed_node_is_closed() {
    let cluster = RedisCluster::masters(&redis_program(), PATIENT_NODES);
    let store = store(&cluster.url());
    every_shard_is_reached(&store).await;
    cluster.hand_over(slots_at_first(2), 0);
    eventually("the slots are not handed over", || {
        cluster.nodes()[..2].iter().all(|node| {
            let slots = node.cli(&["CLUSTER", "SLOTS"]);
            !slots.contains(&cluster.nodes()[2].port().to_string())
                && node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
        })
    });
    cluster.remove(2);
    let begun = Instant::now();
    while store.load(&key_of(2)).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the store still uses the removed node");
        sleep(Duration::from_millis(10)).await;
    }
    every_shard_is_reached(&store).await;
    let removed = &cluster.nodes()[2];
    eventually("the connection is not closed", || {
        removed.cli(&["CLIENT", "LIST"]).lines().count() == 1
    });
    // The removed node is not asked for the slots again, although the store's URL lists it.
    let asked = |nodes: &[RedisServer]| -> u64 {
        nodes.iter().map(|node| node.calls("cluster|slots")).sum()
    };
    let (others, before) = (&cluster.nodes()[..2], removed.calls("cluster|slots"));
    let others_before = asked(others);
    let key = key_of(1);
    let slot = slot_of(key.as_str());
    cluster.hand_over(slot..=slot, 0);
    let begun = Instant::now();
    while store.load(&key).await.is_err() || asked(others) == others_before {
        assert!(begun.elapsed() < Duration::from_secs(5), "the others are not asked");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(removed.calls("cluster|slots"), before);
}

/// The probe for native compare-and-set goes only to the node that the slot map lists.
#[tokio::test]
async fn writes_alone_discover_new_node() {
    let mut cluster = RedisCluster::masters(&redis_program(), PATIENT_NODES);
    let store = store(&cluster.url());
    let key = key_of(2);
    let stored = created(&store, &key).await;
    let stored = replaced(&store, &key, &stored).await;
    // By now, the writes above no longer cause a refresh of the slot map.
    sleep(Duration::from_millis(300)).await;
    cluster.hand_over(slots_at_first(2), 0);
    cluster.kill(2);
    // The store notices that the connection is closed before it sends anything on it.
    sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    let outcome = loop {
        match store.replace(&key, random_record(100), HOUR, &stored).await {
            Ok(outcome) => break outcome,
            Err(_) => assert!(begun.elapsed() < Duration::from_secs(5), "the node is not found"),
        }
        sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(outcome, Replaced::Missing);
}

#[tokio::test]
async fn keys_of_unassigned_slots_are_unavailable_and_not_written() {
    let mut cluster = RedisCluster::masters(&redis_program(), &[]);
    let store = patient(&cluster.url(), Duration::from_secs(2));
    every_shard_is_reached(&*store).await;
    for shard in 1..SHARDS {
        created(&*store, &key_of(shard)).await;
    }

    // By default, one missing shard makes the whole cluster unavailable.
    cluster.kill(0);
    for node in &cluster.nodes()[1..] {
        eventually("the cluster does not notice", || {
            node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:fail")
        });
    }
    for shard in 1..SHARDS {
        let key = key_of(shard);
        let error = store.create(&key, random_record(100), HOUR).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let text = "CLUSTERDOWN The cluster is down: the cluster does not serve the key now";
        assert!(all(&error).contains(text), "{error:?}");
        assert_eq!(cluster.nodes()[shard].cli(&["DBSIZE"]), "1");
    }
    // With this setting, only the missing shard is unavailable.
    for node in &cluster.nodes()[1..] {
        node.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    eventually("the cluster does not go on", || {
        cluster.nodes()[1..]
            .iter()
            .all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
    });
    for shard in 1..SHARDS {
        created(&*store, &key_of(shard)).await;
    }
    let error = store.create(&key_of(0), random_record(100), HOUR).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let text = format!("redis at 127.0.0.1:{}", cluster.nodes()[0].port());
    assert!(all(&error).contains(&text), "{error:?}");

    // A slot that no node serves: the error says so.
    let key = key_of(1);
    let slot = slot_of(key.as_str()).to_string();
    for node in &cluster.nodes()[1..] {
        let _ = node.ask(&["CLUSTER", "DELSLOTS", &slot]);
    }
    let begun = Instant::now();
    let error = store.create(&key, random_record(100), HOUR).await.unwrap_err();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let text = "CLUSTERDOWN Hash slot not served: the cluster does not serve the key now";
    assert!(all(&error).contains(text), "{error:?}");

    // All nodes are down when the application starts, and come up later.
    cluster.kill(1);
    cluster.kill(2);
    let store = patient(&cluster.url(), Duration::from_secs(2));
    let error = store.load(&key_of(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    for node in 0..SHARDS {
        cluster.restart(node);
        let full_coverage = "cluster-require-full-coverage";
        cluster.nodes()[node].cli(&["CONFIG", "SET", full_coverage, "no"]);
    }
    let begun = Instant::now();
    while store.load(&key_of(2)).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not come back");
        sleep(Duration::from_millis(20)).await;
    }
}
