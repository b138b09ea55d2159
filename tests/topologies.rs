//! Checks that the clusters and Sentinels that the tests use behave as they should.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::path::Path;

use support::servers::RedisServer;
use support::topologies::{
    RedisCluster, SHARDS, SLOTS, SentinelSet, eventually, key_in, slot_of, wait_for_replicas,
};

/// Stores a key in each slot, and returns the keys.
fn fill(server: &RedisServer, slots: impl Iterator<Item = u16>) -> Vec<String> {
    let keys: Vec<_> = slots.map(key_in).collect();
    for key in &keys {
        server.cli(&["SET", key, key]);
    }
    keys
}

#[test]
fn key_slots_match_servers() {
    let cluster = RedisCluster::single(&[]);
    for key in
        ["", "123456789", "unsticky:0:s:abc", "{tag}rest", "a{tag}b{other}", "{}rest", "{open"]
    {
        let slot = cluster.nodes()[0].cli(&["CLUSTER", "KEYSLOT", key]);
        assert_eq!(slot_of(key).to_string(), slot, "{key}");
    }
    assert_eq!(slot_of(&key_in(7)), 7);
}

#[test]
fn cluster_has_three_masters_with_a_replica_each() {
    let cluster = RedisCluster::start();
    for shard in 0..SHARDS {
        assert_eq!((cluster.master_of(shard), cluster.replica_of(shard)), (shard, shard + SHARDS));
    }
    let mut counts = [0; SHARDS];
    for slot in (0..SLOTS).step_by(1000) {
        let server = cluster.server_of(slot);
        counts[server] += 1;
        let key = fill(&cluster.nodes()[server], [slot].into_iter()).remove(0);
        assert_eq!(cluster.keys_in(slot), [&*key]);
        assert!(cluster.keys_of(server).contains(&key));
        assert!(cluster.takes_writes(server, slot));
        assert!(!cluster.takes_writes((server + 1) % SHARDS, slot));
        assert!(!cluster.takes_writes(server + SHARDS, slot));
    }
    assert_eq!(counts, [6, 5, 6]);
    assert_eq!(cluster.url().matches("127.0.0.1:").count(), 2 * SHARDS);
}

#[test]
fn moving_slots_moves_their_keys() {
    let cluster = RedisCluster::start();
    let keys = fill(&cluster.nodes()[0], 0..40);
    // Adds more keys than fit in one batch.
    for number in 0..25 {
        cluster.nodes()[0].cli(&["SET", &format!("{{{}}}{number}", keys[0]), "x"]);
    }
    assert_eq!(cluster.keys_in(0).len(), 26);
    cluster.move_slots(0..40, 0, 1);
    assert_eq!((cluster.server_of(0), cluster.server_of(39), cluster.server_of(40)), (1, 1, 0));
    assert_eq!(cluster.keys_in(0).len(), 26);
    let port = cluster.nodes()[1].port();
    for key in &keys {
        assert_eq!(cluster.nodes()[1].cli(&["GET", key]), *key);
        // The third node knows about the move too.
        for other in [0, 2] {
            let moved = cluster.nodes()[other].ask(&["GET", key]).unwrap_err();
            assert_eq!(moved, format!("MOVED {} 127.0.0.1:{port}", slot_of(key)));
        }
    }
    cluster.settle();
}

#[test]
fn killed_master_is_replaced_and_rejoins_as_replica() {
    let mut cluster = RedisCluster::start_with(&["--cluster-require-full-coverage", "no"]);
    let keys = fill(&cluster.nodes()[0], 0..5);
    wait_for_replicas(&cluster.nodes()[0], &key_in(0), 1);
    cluster.kill(0);
    assert!(!cluster.takes_writes(0, 0));
    eventually("the replica stays a replica", || cluster.takes_writes(3, 0));
    // With the additional arguments, the other shards stay available.
    assert!(cluster.takes_writes(1, 6000));
    assert_eq!(cluster.nodes()[3].cli(&["GET", &keys[4]]), keys[4]);
    cluster.restart(0);
    cluster.settle();
    assert_eq!((cluster.master_of(0), cluster.replica_of(0)), (3, 0));
}

#[test]
fn planned_failover_makes_replica_master() {
    let cluster = RedisCluster::start();
    let keys = fill(&cluster.nodes()[1], 6000..6005);
    cluster.fail_over(1);
    assert_eq!((cluster.master_of(1), cluster.replica_of(1)), (4, 1));
    assert_eq!(cluster.nodes()[4].cli(&["GET", &keys[0]]), keys[0]);
    cluster.settle();
    assert_eq!(cluster.server_of(6000), 4);
    cluster.fail_over(1);
    assert_eq!(cluster.master_of(1), 1);
}

#[test]
fn single_node_serves_all_slots_and_announces_another_port() {
    let cluster = RedisCluster::single(&[]);
    cluster.announce(7);
    let announced = || cluster.nodes()[0].cli(&["CLUSTER", "SLOTS"]);
    assert!(announced().starts_with("0\n16383\n\n7\n"), "{}", announced());
    cluster.announce(8);
    assert!(announced().starts_with("0\n16383\n\n8\n"), "{}", announced());
    assert!(cluster.takes_writes(0, 0) && cluster.takes_writes(0, SLOTS - 1));
}

#[test]
fn sentinels_replace_killed_master_which_rejoins_as_replica() {
    let mut set = SentinelSet::start();
    set.hasten();
    assert_eq!(set.master(), 0);
    assert!(set.takes_writes(0) && !set.takes_writes(1) && !set.takes_writes(2));
    set.servers()[0].cli(&["SET", "kept", "yes"]);
    wait_for_replicas(&set.servers()[0], "key", 2);
    assert_eq!(set.kill_master(), 0);
    let new = set.succeeded(0);
    assert_ne!(new, 0);
    assert_eq!(set.servers()[new].cli(&["GET", "kept"]), "yes");
    set.restart(0);
    set.settle();
    // On a very busy machine, the Sentinels may replace the second server too.
    assert_ne!(set.master(), 0);
    assert_eq!(set.servers()[0].cli(&["GET", "kept"]), "yes");
}

#[test]
fn planned_failover_succeeds_with_one_sentinel_stopped() {
    let mut set = SentinelSet::start();
    set.hasten();
    set.kill_sentinel(0);
    assert_ne!(set.fail_over(), 0);
    set.restart_sentinel(0);
    set.hasten();
    set.settle();
    assert_ne!(set.master(), 0);
}

#[test]
fn single_sentinel_names_another_port() {
    let set = SentinelSet::single(&[]);
    assert_eq!(set.master(), 0);
    assert!(set.takes_writes(0));
    let sentinel = set.sentinels()[0].port();
    assert_eq!(set.url(), format!("redis+sentinel://127.0.0.1:{sentinel}/mymaster"));
    let named = || set.sentinels()[0].cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
    set.announce(7);
    assert_eq!(named(), "127.0.0.1\n7");
    set.announce(8);
    assert_eq!(named(), "127.0.0.1\n8");
}

#[test]
fn dropping_cluster_stops_its_processes() {
    let cluster = RedisCluster::single(&[]);
    let pid = cluster.nodes()[0].pid();
    let exists = || Path::new(&format!("/proc/{pid}")).exists();
    assert!(exists());
    drop(cluster);
    assert!(!exists());
}
