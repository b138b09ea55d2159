//! What visitors see while the slots of a cluster are moved, and while servers in a cluster or behind
//! Sentinels are replaced or killed. The tests use real servers, under load from several processes' stores.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]
#![allow(clippy::print_stdout, reason = "the figures are for the documentation")]

mod support;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::faults::{BACK, Deed, TIMEOUT, UNWRITTEN, first, request, sessions};
use support::load::{Command, Load, Report, USERS};
use support::runtime;
use support::stopwatch::Stopwatch;
use support::topologies::{
    RedisCluster, SHARDS, SentinelSet, eventually, key_in, slot_of, slots_at_first,
    wait_for_replicas,
};
use support::visit::sent_back;

/// How long the load continues if the test waits for nothing else.
const WHILE: Duration = Duration::from_secs(1);

/// Prevents a failover when a busy machine pauses.
const STEADY: [&str; 2] = ["--cluster-node-timeout", "60000"];

/// Concurrent tests would distort one another's measurements.
fn turn() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asserts what must hold if the servers have kept their data.
#[track_caller]
fn is_kept(report: &Report) {
    assert_eq!(report.lost(), 0, "{report}");
    is_sound(report);
}

/// Asserts what must hold in every case.
#[track_caller]
fn is_sound(report: &Report) {
    assert_eq!((report.hangs, report.doubled_updates), (0, 0), "{report}");
    assert!(report.requests > 500 && report.sign_outs > 20, "{report}");
}

#[test]
fn no_request_fails_while_slots_move() {
    const AT_ONCE: u16 = 150;
    let _turn = turn();
    let cluster = RedisCluster::start_with(&STEADY);
    let load = Load::start(&cluster.url());
    // First, many slots are moved, most of them empty.
    for from in 0..SHARDS {
        let first = *slots_at_first(from).start();
        cluster.move_slots(first..first + AT_ONCE, from, (from + 1) % SHARDS);
    }
    // Then slots that are in use are moved, each to a node that has not had the slot before.
    let (begun, mut moves) = (Instant::now(), HashMap::new());
    for from in (0..SHARDS).cycle() {
        if begun.elapsed() > 4 * WHILE {
            break;
        }
        let slots = cluster.keys_of(from).into_iter().map(|key| slot_of(&key));
        let slots = slots.filter(|slot| moves.get(slot).is_none_or(|count| *count < SHARDS));
        if let Some(slot) = fastrand::choice(slots.collect::<Vec<_>>()) {
            let to = (from + 1) % SHARDS;
            cluster.move_slots_in_steps(slot..slot + 1, from, to, Duration::from_millis(1));
            *moves.entry(slot).or_insert(0) += 1;
        }
    }
    let moved: usize = moves.values().sum();
    let report = load.end();
    let asked: u64 = cluster.nodes().iter().map(|node| node.calls("asking")).sum();
    let many = usize::from(AT_ONCE) * SHARDS;
    println!("moved slots: {many} and {moved}, {asked} commands met one on its way: {report}");
    is_kept(&report);
    assert!(report.failures.is_empty(), "{report}");
    assert!(moved > 20 && asked > 0, "{moved} {asked}");
}

/// Waits until a different server accepts writes in place of one that is down. Returns a stopwatch that
/// starts then.
fn succeeded(mut takes_writes: impl FnMut() -> bool) -> Stopwatch {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !takes_writes() {
        assert!(Instant::now() < deadline, "no server takes the master's place");
        sleep(Duration::from_millis(2));
    }
    Stopwatch::start()
}

/// Returns when the last of the failed commands started, relative to `since`.
fn last_failure(failed: &[Command], since: Instant) -> Option<Duration> {
    failed.iter().map(|command| command.begun.saturating_duration_since(since)).max()
}

/// Kills the master of the first shard, and restarts it after its replica has taken over. Only writes
/// that the replica had not confirmed may be lost.
fn master_is_killed(arguments: &[&str], disturbs_others: bool) {
    let _turn = turn();
    let mut cluster = RedisCluster::start_with(arguments);
    let load = Load::start(&cluster.url());
    sleep(WHILE);
    let confirmed = Instant::now();
    wait_for_replicas(&cluster.nodes()[0], &key_in(0), 1);
    cluster.kill(0);
    let killed = Instant::now();
    let replica = SHARDS;
    let back = succeeded(|| cluster.takes_writes(replica, 0));
    let back_at = Instant::now();
    sleep(WHILE);
    let stalled = back.stalled();
    cluster.restart(0);
    cluster.settle();
    assert_eq!(cluster.master_of(0), replica);
    sleep(WHILE);
    let report = load.end();
    let is_here = |slot| slots_at_first(0).contains(&slot);
    let last = last_failure(&report.failed(is_here), back_at).unwrap();
    let elsewhere = report.failed(|slot| !is_here(slot));
    let last_elsewhere = last_failure(&elsewhere, back_at);
    let unconfirmed = report.written_between(confirmed, killed);
    println!(
        "master killed, {arguments:?}: promoted after {:.1?}, the last command failed {last:.1?} after \
         that; {} failed elsewhere, the last {last_elsewhere:.1?} after; {unconfirmed} writes not \
         confirmed by the replica: {report}",
        back_at - killed,
        elsewhere.len(),
    );
    is_sound(&report);
    assert!(report.is_told_to_come_again(), "{report}");
    assert!(report.lost() <= unconfirmed as u64, "{report}");
    assert_eq!(last_elsewhere.is_some(), disturbs_others, "{elsewhere:?}");
    let last = last.max(last_elsewhere.unwrap_or_default());
    assert!(last < BACK + stalled, "{last:?}");
}

#[test]
fn killed_master_costs_its_own_shard_half_a_second_after_promotion() {
    master_is_killed(&["--cluster-require-full-coverage", "no"], false);
}

#[test]
fn killed_master_stops_whole_cluster_that_requires_full_coverage() {
    master_is_killed(&[], true);
}

#[test]
fn killed_master_with_persistence_restarts_without_data_loss() {
    let _turn = turn();
    let kept = [&STEADY[..], &["--appendonly", "yes", "--appendfsync", "always"]].concat();
    let mut cluster = RedisCluster::start_with(&kept);
    let load = Load::start(&cluster.url());
    sleep(WHILE / 2);
    cluster.kill(0);
    let killed_at = Instant::now();
    cluster.restart(0);
    let back = succeeded(|| cluster.takes_writes(0, 0));
    let back_at = Instant::now();
    sleep(WHILE);
    let stalled = back.stalled();
    let report = load.end();
    let last = last_failure(&report.failed(|_| true), back_at).unwrap();
    println!(
        "master killed and back after {:.1?}, the last command failed {last:.1?} after that: {report}",
        back_at - killed_at,
    );
    is_kept(&report);
    assert!(report.is_told_to_come_again(), "{report}");
    assert!(last < BACK + stalled, "{last:?}");
}

#[test]
fn planned_failover_of_cluster_loses_nothing() {
    let _turn = turn();
    let cluster = RedisCluster::start_with(&STEADY);
    let load = Load::start(&cluster.url());
    for shard in 0..SHARDS {
        sleep(WHILE / 2);
        cluster.fail_over(shard);
    }
    sleep(WHILE);
    let report = load.end();
    println!("planned failovers of all shards: {report}");
    is_kept(&report);
    assert!(report.failures.is_empty(), "{report}");
}

/// Starts a planned failover with Sentinels. The old master does not know that it has been replaced, and
/// accepts writes until the Sentinels reconfigure it after ten seconds. Any writes that it accepts before the
/// clients have left it are lost.
fn master_is_replaced_as_planned(arguments: &[&str]) -> Report {
    let _turn = turn();
    let set = SentinelSet::start_with(arguments);
    let old = set.master();
    let load = Load::start(&set.url());
    sleep(WHILE);
    let begun = Instant::now();
    set.begin_fail_over();
    let mut servers = (0..set.servers().len()).filter(|&server| server != old).cycle();
    let promoted = succeeded(|| set.takes_writes(servers.next().unwrap()));
    let promoted_at = Instant::now();
    sleep(BACK);
    let commands = || {
        let server = &set.servers()[old];
        server.calls("get") + server.calls("evalsha") + server.calls("del")
    };
    let before = commands();
    set.succeeded(old);
    let named_at = Instant::now();
    sleep(WHILE);
    let is_left = commands() == before;
    let report = load.end();
    let failed = report.failed(|_| true);
    let last = last_failure(&failed, promoted_at).unwrap_or_default();
    let limit = BACK + promoted.stalled();
    let at_risk = report.written_between(begun, promoted_at + limit);
    println!(
        "planned failover, {arguments:?}: another master after {:.1?}, named after {:.1?}; {} commands \
         failed, the last {last:.1?} after the other one took writes; {at_risk} writes might have been \
         undone, of {USERS} users at once: {report}",
        promoted_at - begun,
        named_at - begun,
        failed.len(),
    );
    is_sound(&report);
    assert!(is_left, "there are still commands for the old master");
    assert!(last < limit, "{last:?}");
    assert!(report.lost() <= at_risk as u64, "{report}");
    report
}

#[test]
fn planned_failover_with_sentinels_fails_no_command_and_loses_no_write() {
    let report = master_is_replaced_as_planned(&[]);
    assert!(report.failed(|_| true).is_empty(), "{report}");
}

#[test]
fn planned_failover_of_master_that_requires_replicas_loses_no_write() {
    master_is_replaced_as_planned(&["--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"]);
}

/// The death of a Sentinel makes no request fail. After the master has been killed, commands fail for at most
/// half a second after a replica was promoted.
#[test]
fn stopped_sentinel_fails_no_request_and_killed_master_costs_half_a_second_after_promotion() {
    let _turn = turn();
    let mut set = SentinelSet::start();
    let load = Load::start(&set.url());
    // This Sentinel has told the clients who the master is, and will not announce the next one.
    set.kill_sentinel(0);
    sleep(WHILE);
    let confirmed = Instant::now();
    wait_for_replicas(&set.servers()[0], "key", 2);
    assert_eq!(set.kill_master(), 0);
    let killed = Instant::now();
    let back = succeeded(|| set.takes_writes(1) || set.takes_writes(2));
    let back_at = Instant::now();
    sleep(WHILE);
    let stalled = back.stalled();
    // The old master restarts as a master without data.
    set.restart_sentinel(0);
    set.restart(0);
    set.hasten();
    eventually("the old master does not become a replica", || {
        set.servers()[0].cli(&["ROLE"]).starts_with("slave")
    });
    sleep(WHILE);
    let report = load.end();
    let failed = report.failed(|_| true);
    let early = failed.iter().filter(|command| command.ended < confirmed).count();
    let last = last_failure(&failed, back_at).unwrap();
    let unconfirmed = report.written_between(confirmed, killed);
    println!(
        "master killed while a Sentinel is dead: promoted after {:.1?}, the last command failed \
         {last:.1?} after that; {unconfirmed} writes not confirmed by the replicas: {report}",
        back_at - killed,
    );
    is_sound(&report);
    assert!(report.is_told_to_come_again(), "{report}");
    assert_eq!(early, 0);
    assert!(last < BACK + stalled, "{last:?}");
    assert!(report.lost() <= unconfirmed as u64, "{report}");
}

/// Checks that an application that starts while no server answers fails within its time limit, and works once
/// the servers are up.
fn starts_first(url: &str, start_servers: impl FnOnce()) {
    runtime().block_on(async {
        let sessions = sessions(url);
        for _ in 0..3 {
            let answer = request(&sessions, "", Deed::SignIn("alice")).await;
            answer.is_failure(UNWRITTEN, TIMEOUT + Duration::from_millis(300));
        }
        start_servers();
        assert_eq!(first(&sessions, "").await, None);
        let answer = request(&sessions, "", Deed::SignIn("alice")).await;
        assert!(answer.failure.is_none() && answer.took < BACK, "{answer:?}");
        let cookie = answer.set_cookie.unwrap();
        assert_eq!(first(&sessions, &sent_back(&cookie)).await.as_deref(), Some("alice"));
    });
}

#[test]
fn application_starts_before_cluster() {
    let _turn = turn();
    let mut cluster = RedisCluster::start_with(&STEADY);
    let nodes = 0..cluster.nodes().len();
    nodes.clone().for_each(|node| cluster.kill(node));
    let url = cluster.url();
    starts_first(&url, || {
        nodes.for_each(|node| cluster.restart(node));
        cluster.settle();
    });
}

#[test]
fn application_starts_before_sentinels_and_their_master() {
    let _turn = turn();
    let mut set = SentinelSet::start();
    let url = set.url();
    (0..3).for_each(|sentinel| set.kill_sentinel(sentinel));
    (0..3).for_each(|server| set.server_mut(server).stop());
    starts_first(&url, || {
        // Only the master is restarted, because a restarted replica would not know its master.
        set.restart(0);
        (0..3).for_each(|sentinel| set.restart_sentinel(sentinel));
    });
}
