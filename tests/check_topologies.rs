//! The findings of a check on a Redis Cluster and on servers behind Sentinels. Each finding is provoked on
//! real servers.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use support::servers::{RedisServer, redis_program};
use support::topologies::{MASTER, RedisCluster, SHARDS, SentinelSet, eventually, slots_at_first};
use unsticky::Sessions;
use unsticky::check::{Finding, Level, Report};
use unsticky::store::RedisStore;

/// The timeouts are longer than the defaults, so that a busy machine causes no findings.
const PATIENCE: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(3);

/// How much longer than twice its time limit a check may take on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

/// Like [`check_by`], but without credentials for Sentinels.
async fn check(url: &str) -> Report {
    check_by(RedisStore::builder(url).unwrap()).await
}

/// Runs a check as a process that has just started would. The report must arrive within the time limit.
async fn check_by(store: unsticky::store::RedisBuilder) -> Report {
    let store = store.connect_timeout(PATIENCE).response_timeout(PATIENCE).build().unwrap();
    let sessions = Sessions::builder(store).namespace("shop").timeout(TIMEOUT).build().unwrap();
    let begun = Instant::now();
    let report = sessions.check().await;
    let took = begun.elapsed();
    assert!(took <= 2 * TIMEOUT + SLACK, "it took {took:?}:\n{report}");
    report
}

/// Returns the findings with this code and this level.
fn found<'a>(report: &'a Report, level: Level, code: &str) -> Vec<&'a Finding> {
    let is = |finding: &&Finding| finding.level() == level && finding.code() == code;
    report.findings().iter().filter(is).collect()
}

/// Returns the only finding with this code, level and words.
#[track_caller]
fn the<'a>(report: &'a Report, level: Level, code: &str, words: &str) -> &'a Finding {
    let mut found = found(report, level, code);
    found.retain(|finding| finding.message().contains(words));
    assert_eq!(found.len(), 1, "{level} {code} {words}:\n{report}");
    found[0]
}

/// Asserts that a finding with this level, this code and these words is about this server.
#[track_caller]
fn about(report: &Report, level: Level, code: &str, server: &RedisServer, words: &str) {
    let subject = of(server);
    let is_there = found(report, level, code)
        .iter()
        .any(|finding| finding.subject().ends_with(&subject) && finding.message().contains(words));
    assert!(is_there, "{level} {code} {subject} {words}:\n{report}");
}

/// Returns the text with which the subject of a finding about this server ends.
fn of(server: &RedisServer) -> String {
    format!(" at 127.0.0.1:{}", server.port())
}

#[track_caller]
fn expect_no_trouble(report: &Report) {
    assert!(report.level() < Level::Warning, "{report}");
}

fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port()
}

/// Starts three masters without replicas. If a shard is down, the others continue.
fn loose_masters() -> RedisCluster {
    RedisCluster::masters(&redis_program(), &["--cluster-require-full-coverage", "no"])
}

#[tokio::test]
async fn healthy_cluster_is_fine_with_every_node_examined() {
    let cluster = RedisCluster::start();
    expect_no_trouble(&check(&cluster.url()).await);
    // The nodes announce a replica to clients only once it has received a write.
    assert!((0..SHARDS).all(|shard| cluster.takes_writes(shard, *slots_at_first(shard).start())));
    eventually("not every node names all replicas", || {
        cluster.nodes().iter().all(|node| {
            let slots = node.cli(&["CLUSTER", "SLOTS"]);
            let is_named = |node: &RedisServer| slots.contains(&node.port().to_string());
            cluster.nodes().iter().all(is_named)
        })
    });
    let report = check(&cluster.url()).await;
    expect_no_trouble(&report);
    the(&report, Level::Fine, "cluster", "All 16384 slots have a master (3 masters)");
    the(&report, Level::Fine, "seed", "6 of the 6 nodes");
    for shard in 0..SHARDS {
        let [master, replica] = [shard, shard + SHARDS].map(|node| &cluster.nodes()[node]);
        about(&report, Level::Fine, "shard", master, "and 1 replica");
        about(&report, Level::Fine, "commands", master, "");
        assert!(report.findings().iter().any(|finding| finding.subject().ends_with(&of(replica))));
    }
    assert_eq!(found(&report, Level::Fine, "commands").len(), SHARDS, "{report}");
}

#[tokio::test]
async fn slots_without_node_are_an_error_whether_or_not_the_cluster_stops() {
    for (coverage, consequence) in [
        ("yes", "cluster-require-full-coverage is yes, so the cluster refuses all commands"),
        ("no", "cluster-require-full-coverage is no, so only the sessions in these slots"),
    ] {
        let arguments = ["--cluster-require-full-coverage", coverage];
        let cluster = RedisCluster::masters(&redis_program(), &arguments);
        for node in cluster.nodes() {
            node.cli(&["CLUSTER", "DELSLOTSRANGE", "100", "199"]);
        }
        if coverage == "yes" {
            eventually("the cluster keeps serving requests without these slots", || {
                let states = cluster.nodes().iter().map(|node| node.cli(&["CLUSTER", "INFO"]));
                states.into_iter().all(|state| state.contains("cluster_state:fail"))
            });
        }
        let report = check(&cluster.url()).await;
        let hole = "100 of 16384 slots have no master (the first is 100);";
        let finding = the(&report, Level::Error, "cluster", hole);
        assert!(finding.message().contains(consequence), "{finding}");
        let level = if coverage == "yes" { Level::Error } else { Level::Fine };
        assert_eq!(found(&report, level, "commands").len(), SHARDS, "{report}");
    }
}

#[tokio::test]
async fn master_that_is_down_without_replica_is_an_error_about_its_slots() {
    let mut cluster = loose_masters();
    let masters = check(&cluster.url()).await;
    assert_eq!(found(&masters, Level::Warning, "shard").len(), SHARDS, "{masters}");
    about(&masters, Level::Warning, "shard", &cluster.nodes()[1], "and no replica");

    cluster.kill(1);
    let report = check(&cluster.url()).await;
    about(&report, Level::Error, "shard", &cluster.nodes()[1], "the master of 5461 slots");
    about(&report, Level::Error, "unreachable", &cluster.nodes()[1], "");
    about(&report, Level::Warning, "seed", &cluster.nodes()[1], "cannot be used");
    for node in [0, 2] {
        about(&report, Level::Fine, "commands", &cluster.nodes()[node], "");
    }

    eventually("the other masters do not notice", || {
        [0, 2].iter().all(|&node| {
            let state = cluster.nodes()[node].cli(&["CLUSTER", "INFO"]);
            state.contains("cluster_slots_fail:5461")
        })
    });
    let report = check(&cluster.url()).await;
    let down =
        "5461 of 16384 slots have a master that is down; cluster-require-full-coverage is no";
    the(&report, Level::Error, "cluster", down);
}

#[tokio::test]
async fn replica_that_is_down_is_a_warning_about_its_shard() {
    let mut cluster = RedisCluster::start();
    cluster.kill(SHARDS);
    let report = check(&cluster.url()).await;
    assert_eq!(report.level(), Level::Warning, "{report}");
    about(&report, Level::Warning, "seed", &cluster.nodes()[SHARDS], "cannot be used");

    let port = cluster.nodes()[SHARDS].port().to_string();
    // The check may ask any of the nodes for the slots first.
    eventually("not every node has heard of it", || {
        cluster.nodes().iter().filter(|node| node.is_running()).all(|node| {
            let nodes = node.cli(&["CLUSTER", "NODES"]);
            nodes.lines().any(|line| line.contains(&port) && line.contains("slave,fail "))
        })
    });
    let report = check(&cluster.url()).await;
    assert_eq!(report.level(), Level::Warning, "{report}");
    let failed = format!("CLUSTER NODES has 127.0.0.1:{port} as failed");
    about(&report, Level::Warning, "shard", &cluster.nodes()[0], "its only replica is down");
    about(&report, Level::Warning, "shard", &cluster.nodes()[0], &failed);
    about(&report, Level::Fine, "shard", &cluster.nodes()[1], "and 1 replica");
}

/// The report has a warning about a node in the URL that has left the cluster or belongs to a different one.
#[tokio::test]
async fn node_of_the_address_that_left_or_belongs_elsewhere_is_a_warning() {
    let (cluster, other) = (RedisCluster::start(), RedisCluster::single(&[]));
    cluster.remove(SHARDS);
    let report = check(&cluster.url()).await;
    let left = "belongs to no cluster that has slots";
    about(&report, Level::Warning, "seed", &cluster.nodes()[SHARDS], left);
    about(&report, Level::Warning, "shard", &cluster.nodes()[0], "and no replica");
    the(&report, Level::Fine, "seed", "5 of the 6 nodes");

    let [first, second] = [&cluster.nodes()[0], &other.nodes()[0]].map(RedisServer::port);
    let report = check(&format!("redis+cluster://127.0.0.1:{first},127.0.0.1:{second}")).await;
    the(&report, Level::Warning, "seed", "belongs to a different cluster");
}

/// The report has a note if the URL lists only one node, and a note about a slot that is being moved.
#[tokio::test]
async fn single_node_of_an_address_is_a_note_and_a_slot_on_the_move_as_well() {
    let cluster = loose_masters();
    let port = cluster.nodes()[0].port();
    cluster.open_slot(7, 0, 1);
    let report = check(&format!("redis+cluster://127.0.0.1:{port}")).await;
    the(&report, Level::Note, "seed", "names one node");
    the(&report, Level::Note, "moving", "Slot 7 is being moved");
    assert_eq!(found(&report, Level::Fine, "commands").len(), SHARDS, "{report}");
}

/// If the ACL hides something from the check, the report has a note. If it forbids a command that sessions
/// need on one node, the report has an error about that node.
#[tokio::test]
async fn what_the_acl_of_a_cluster_hides_is_a_note_and_what_it_forbids_an_error_there() {
    let cluster = loose_masters();
    let permitted = "+get +set +del +getrange +eval +evalsha +cluster|slots +asking";
    let permit = |server: &RedisServer, words: &str| {
        let user = "ACL SETUSER app reset on >sesame7 ~shop:* resetchannels -@all";
        let words: Vec<_> = user.split(' ').chain(words.split(' ')).collect();
        server.cli(&words);
    };
    let url = cluster.url().replace("://", "://app:sesame7@");
    for node in cluster.nodes() {
        permit(node, permitted);
    }
    let report = check(&url).await;
    assert_eq!(report.first_error(), None, "{report}");
    the(&report, Level::Note, "hidden", "CLUSTER INFO and CLUSTER NODES");
    the(&report, Level::Fine, "cluster", "All 16384 slots have a master");

    permit(&cluster.nodes()[1], &permitted.replace(" +asking", ""));
    let report = check(&url).await;
    about(&report, Level::Warning, "permission", &cluster.nodes()[1], "may not run ASKING");
    assert_eq!(found(&report, Level::Warning, "permission").len(), 1, "{report}");
    permit(&cluster.nodes()[1], permitted);

    permit(&cluster.nodes()[2], &permitted.replace("+set ", ""));
    let report = check(&url).await;
    about(&report, Level::Error, "commands", &cluster.nodes()[2], "cannot be created");
    about(&report, Level::Fine, "commands", &cluster.nodes()[0], "");
    about(&report, Level::Fine, "commands", &cluster.nodes()[1], "");

    for node in cluster.nodes() {
        permit(node, &permitted.replace("+cluster|slots ", ""));
    }
    let report = check(&url).await;
    assert_eq!(report.first_error(), None, "{report}");
    the(&report, Level::Warning, "cluster", "may not run CLUSTER SLOTS");
    assert!(!report.to_string().contains("sesame7"), "{report}");
}

/// The report has an error if a cluster's URL leads to a server that is not a cluster node, to no server that
/// answers, or to a node that belongs to no cluster with slots.
#[tokio::test]
async fn server_without_cluster_and_address_without_server_are_errors_with_the_remedy() {
    let server = RedisServer::start();
    let report = check(&format!("redis+cluster://127.0.0.1:{}", server.port())).await;
    let finding = the(&report, Level::Error, "cluster", "is not a node of a cluster");
    assert!(finding.remedy().contains("begins with redis://"), "{finding}");
    assert_eq!(server.calls("set"), 0);

    let [first, second] = [closed_port(), closed_port()];
    let report = check(&format!("redis+cluster://127.0.0.1:{first},127.0.0.1:{second}")).await;
    the(&report, Level::Error, "cluster", "None of the 2 nodes");
    assert_eq!(found(&report, Level::Warning, "seed").len(), 2, "{report}");
    // This node knows no other node and serves no slots.
    let cluster = loose_masters();
    cluster.remove(2);
    let alone = format!("redis+cluster://127.0.0.1:{}", cluster.nodes()[2].port());
    let report = check(&alone).await;
    the(&report, Level::Error, "cluster", "belongs to no cluster that has slots");
}

#[tokio::test]
async fn stopped_master_does_not_hold_up_the_check_of_the_others() {
    let cluster = loose_masters();
    let stopped = &cluster.nodes()[0];
    stopped.pause();
    let report = check(&cluster.url()).await;
    stopped.resume();
    about(&report, Level::Error, "shard", stopped, "the master of 5461 slots");
    for node in [1, 2] {
        about(&report, Level::Fine, "commands", &cluster.nodes()[node], "");
        about(&report, Level::Warning, "shard", &cluster.nodes()[node], "and no replica");
    }
}

/// Records every command that the server receives from now on.
struct Monitor(BufReader<TcpStream>);

impl Monitor {
    fn of(server: &RedisServer) -> Self {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", server.port())).unwrap());
        stream.get_mut().write_all(b"MONITOR\r\n").unwrap();
        let mut monitor = Self(stream);
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the server hung up");
        line.trim_end().to_owned()
    }

    fn until(mut self, last: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if line.contains(last) {
                return lines;
            }
            lines.push(line);
        }
    }
}

#[tokio::test]
async fn check_touches_no_key_of_others_and_what_it_writes_expires() {
    let (cluster, set) = (RedisCluster::single(&[]), SentinelSet::single(&[]));
    for (server, url) in [(&cluster.nodes()[0], cluster.url()), (&set.servers()[0], set.url())] {
        for key in ["shop:0:s:theirs", "theirs"] {
            server.cli(&["SET", key, "theirs"]);
        }
        let monitor = Monitor::of(server);
        let report = check(&url).await;
        the(&report, Level::Fine, "commands", "");
        server.cli(&["ECHO", "the last one"]);
        let commands = monitor.until("the last one");
        let is_of = |line: &&String, name: &str| line.contains(&format!("\"{name}\""));
        assert!(commands.iter().any(|line| is_of(&line, "SET")), "{commands:?}");
        for line in &commands {
            assert!(!line.contains("theirs"), "{line}");
            for name in ["KEYS", "SCAN", "FLUSHALL", "FLUSHDB", "RANDOMKEY"] {
                assert!(!is_of(&line, name), "{line}");
            }
        }
        let keys = server.cli(&["KEYS", "*"]);
        for key in keys.lines().filter(|key| !key.ends_with("theirs")) {
            let left: i64 = server.cli(&["PTTL", key]).parse().unwrap();
            assert!((-2..=10_000).contains(&left) && left != -1, "{key} lives for {left} ms");
        }
        for key in ["shop:0:s:theirs", "theirs"] {
            assert_eq!(server.cli(&["GET", key]), "theirs");
        }
    }
}

#[tokio::test]
async fn healthy_sentinels_are_fine_and_one_that_is_down_is_a_warning() {
    let mut set = SentinelSet::start();
    let report = check(&set.url()).await;
    expect_no_trouble(&report);
    the(&report, Level::Fine, "sentinel", "3 of the 3 Sentinels");
    the(&report, Level::Fine, "quorum", "A failover needs 2 of 3 Sentinels (quorum is 2)");
    the(&report, Level::Fine, "replica", "2 of 2 replicas can replace the master");
    about(&report, Level::Fine, "master", &set.servers()[0], "");
    about(&report, Level::Fine, "commands", &set.servers()[0], "");
    for server in &set.servers()[1..] {
        assert!(report.findings().iter().any(|finding| finding.subject().ends_with(&of(server))));
    }

    let url = set.url();
    let report = check(&format!("{}/{MASTER}", url.split(',').next().unwrap())).await;
    the(&report, Level::Note, "sentinel", "names 1 of the 3 Sentinels");

    set.kill_sentinel(2);
    let report = check(&set.url()).await;
    assert_eq!(report.level(), Level::Warning, "{report}");
    about(&report, Level::Warning, "sentinel", &set.sentinels()[2], "cannot be asked");
    the(&report, Level::Fine, "sentinel", "2 of the 3 Sentinels");

    set.kill_sentinel(1);
    eventually("the last Sentinel does not notice", || {
        set.sentinels()[0].ask(&["SENTINEL", "CKQUORUM", MASTER]).is_err()
    });
    let report = check(&set.url()).await;
    the(&report, Level::Warning, "quorum", "A failover needs 2 of 3 Sentinels");
    about(&report, Level::Fine, "commands", &set.servers()[0], "");

    set.kill_sentinel(0);
    let report = check(&set.url()).await;
    the(&report, Level::Error, "sentinel", "None of the 3 Sentinels");
    the(&report, Level::Error, "master", "cannot be used");
}

#[tokio::test]
async fn master_and_replica_that_are_down_are_found_behind_sentinels() {
    let mut set = SentinelSet::start();
    set.server_mut(2).stop();
    let report = check(&set.url()).await;
    assert_eq!(report.level(), Level::Warning, "{report}");
    about(&report, Level::Warning, "replica", &set.servers()[2], "cannot be used");

    // The Sentinels must not replace the master during the test.
    for sentinel in set.sentinels() {
        sentinel.cli(&["SENTINEL", "SET", MASTER, "failover-timeout", "600000"]);
        sentinel.cli(&["SENTINEL", "SET", MASTER, "quorum", "4"]);
    }
    let report = check(&set.url()).await;
    the(&report, Level::Warning, "quorum", "A failover needs 4 of 3 Sentinels (quorum is 4)");
    set.kill_master();
    let report = check(&set.url()).await;
    the(&report, Level::Error, "master", "cannot be used");
    eventually("the Sentinels do not notice", || {
        set.sentinels()
            .iter()
            .all(|sentinel| sentinel.cli(&["SENTINEL", "MASTER", MASTER]).contains("s_down"))
    });
    let report = check(&set.url()).await;
    the(&report, Level::Warning, "master", "3 of 3 Sentinels cannot reach the master");
    about(&report, Level::Warning, "replica", &set.servers()[2], "report");

    // Without a replica, the Sentinels cannot replace the master either.
    set.server_mut(1).stop();
    for sentinel in set.sentinels() {
        sentinel.cli(&["SENTINEL", "SET", MASTER, "quorum", "2"]);
    }
    eventually("the Sentinels do not agree", || {
        set.sentinels().iter().all(|sentinel| {
            let replicas = sentinel.cli(&["SENTINEL", "REPLICAS", MASTER]);
            sentinel.cli(&["SENTINEL", "MASTER", MASTER]).contains("o_down")
                && replicas.matches("s_down").count() == 2
        })
    });
    let report = check(&set.url()).await;
    the(&report, Level::Error, "master", "The Sentinels agree that the master is down");
    the(&report, Level::Warning, "replica", "None of the 2 replicas");
}

#[tokio::test]
async fn replicas_that_may_not_become_master_are_a_warning() {
    let set = SentinelSet::start();
    set.hasten();
    for replica in &set.servers()[1..] {
        replica.cli(&["CONFIG", "SET", "replica-priority", "0"]);
    }
    eventually("the Sentinels do not notice", || {
        set.sentinels().iter().all(|sentinel| {
            let replicas = sentinel.cli(&["SENTINEL", "REPLICAS", MASTER]);
            replicas.matches("slave-priority\n0").count() == 2
        })
    });
    let report = check(&set.url()).await;
    the(&report, Level::Warning, "replica", "replica-priority is 0");
}

/// The report has warnings about a single Sentinel, a master without replicas, a server that is not a
/// Sentinel, and Sentinels that disagree. It has an error about a wrong master name.
#[tokio::test]
async fn single_sentinel_missing_replicas_and_wrong_name_are_found() {
    let (set, other) = (SentinelSet::single(&[]), SentinelSet::single(&[]));
    let report = check(&set.url()).await;
    the(&report, Level::Warning, "sentinel", "There is one Sentinel");
    the(&report, Level::Warning, "replica", "The master has no replica");
    the(&report, Level::Fine, "quorum", "A failover needs 1 of 1 Sentinel ");
    about(&report, Level::Fine, "commands", &set.servers()[0], "");
    assert_eq!(report.first_error(), None, "{report}");

    let report = check(&set.url().replace(MASTER, "another")).await;
    let wrong = "No Sentinel that answers watches a master named another";
    the(&report, Level::Error, "sentinel", wrong);

    let server = RedisServer::start();
    let with = |port: u16| {
        set.url().replace(&format!("/{MASTER}"), &format!(",127.0.0.1:{port}/{MASTER}"))
    };
    let report = check(&with(server.port())).await;
    about(&report, Level::Warning, "sentinel", &server, "is not a Sentinel");
    let report = check(&with(other.sentinels()[0].port())).await;
    the(&report, Level::Warning, "sentinel", "name different servers");
}

#[tokio::test]
async fn what_the_acl_of_a_sentinel_hides_is_a_note() {
    let set = SentinelSet::single(&[]);
    let words = "ACL SETUSER watcher on >sesame8 resetchannels &* -@all +sentinel|master \
                 +sentinel|get-master-addr-by-name +subscribe";
    set.sentinels()[0].cli(&words.split(' ').collect::<Vec<_>>());
    let store = RedisStore::builder(&set.url()).unwrap();
    let report = check_by(store.sentinel_credentials(Some("watcher"), "sesame8")).await;
    assert_eq!(report.first_error(), None, "{report}");
    the(&report, Level::Note, "hidden", "The user may not run SENTINEL REPLICAS");
    the(&report, Level::Fine, "quorum", "and 1 answers here");
    assert!(!report.to_string().contains("sesame8"), "{report}");
}

#[tokio::test]
async fn stopped_sentinel_and_replica_do_not_hold_up_the_check_of_the_master() {
    let set = SentinelSet::start();
    let (sentinel, replica) = (&set.sentinels()[1], &set.servers()[2]);
    for stopped in [sentinel, replica] {
        stopped.pause();
    }
    let report = check(&set.url()).await;
    for stopped in [sentinel, replica] {
        stopped.resume();
    }
    about(&report, Level::Warning, "sentinel", sentinel, "cannot be asked");
    about(&report, Level::Warning, "replica", replica, "cannot be used");
    the(&report, Level::Fine, "sentinel", "2 of the 3 Sentinels");
    about(&report, Level::Fine, "commands", &set.servers()[0], "");
}
