//! `unsticky count`, on real servers.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::runtime;
use support::servers::{MemcachedServer, RedisServer, redis_program, send_signal};
use support::topologies::{RedisCluster, SHARDS, SentinelSet, eventually, slot_of};
use support::visit::{sign_in, sign_out, visit};
use unsticky::Sessions;
use unsticky::internals::survey::{Met, Outcome, Rate, Survey};

/// A command that takes longer than this is killed.
const LONGEST: Duration = Duration::from_secs(60);

fn begin(url: &str, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_unsticky"))
        // On a busy machine, a server may take longer than the default timeout.
        .args(["count", "--timeout", "10s"])
        .args(arguments)
        .env_clear()
        .env("SESSION_URL", url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the command to exit and returns its output. The output fits into a pipe's buffer, so it can be
/// read afterwards.
fn end(mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > LONGEST {
            child.kill().unwrap();
            panic!("unsticky count did not end: {:?}", child.wait_with_output().unwrap());
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn count(url: &str, arguments: &[&str]) -> Output {
    end(begin(url, arguments))
}

/// Returns the report from a command that must succeed and print nothing else.
#[track_caller]
fn report(url: &str, arguments: &[&str]) -> Value {
    let output = count(url, &[arguments, &["--json"]].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &*error), (Some(0), ""));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the one-line error from a command that must fail with this status.
#[track_caller]
fn failure(output: &Output, status: i32) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{error}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn session(prefix: &str, number: usize) -> String {
    format!("{prefix}s:{number:021}A")
}

fn directory(prefix: &str, number: usize) -> String {
    format!("{prefix}d:{number:042}A")
}

fn set(server: &RedisServer, key: &str, bytes: usize) {
    server.cli(&["SET", key, &"x".repeat(bytes)]);
}

/// Sets many keys with one command. Each key consists of the prefix, 21 digits and an `A`.
fn set_many(server: &RedisServer, prefix: &str, numbers: std::ops::Range<usize>) {
    const SCRIPT: &str = "for n = ARGV[1], ARGV[2] do \
                          redis.call('SET', KEYS[1] .. string.format('%021d', n) .. 'A', 'xxxxxxxx') end";
    let (first, last) = (numbers.start.to_string(), (numbers.end - 1).to_string());
    server.cli(&["EVAL", SCRIPT, "1", prefix, &first, &last]);
}

fn store(server: &MemcachedServer, key: &str, bytes: usize) {
    let answer = server.cli(&format!("ms {key} {bytes} T100\r\n{}", "x".repeat(bytes)));
    assert_eq!(answer, "HD\n");
}

/// Returns the number of sessions and the number of directories.
fn counts(tally: &Value) -> (u64, u64) {
    let count = |records: &str| tally[records]["count"].as_u64().unwrap();
    (count("sessions"), count("directories"))
}

fn others(tally: &Value) -> (u64, u64) {
    (tally["other_epochs"].as_u64().unwrap(), tally["other_keys"].as_u64().unwrap())
}

#[test]
fn numbers_are_exact_whatever_else_is_on_the_server() {
    let server = RedisServer::start();
    for number in 0..100 {
        set(&server, &session("shop:3:", number), number + 1);
    }
    set(&server, &directory("shop:3:", 0), 10);
    set(&server, &directory("shop:3:", 1), 30);
    // Records in other epochs of the namespace.
    set(&server, &session("shop:2:", 0), 1);
    set(&server, &session("shop:33:", 0), 1);
    set(&server, &directory("shop:0:", 0), 1);
    // Keys in the namespace that are not records.
    for key in ["shop:", "shop:3", "shop:3:s:short", "shop:eu:3:s:000000000000000000000A"] {
        set(&server, key, 1);
    }
    server.cli(&["HSET", &session("shop:3:", 500), "field", "value"]);
    // Records in other namespaces.
    for namespace in ["shop2", "sho", "Shop", "*", "sho?", "sho[p]", r"sho\p", "sh*"] {
        set(&server, &session(&format!("{namespace}:3:"), 0), 1);
    }
    let report = report(&server.url(), &["--namespace", "shop", "--epoch", "3"]);
    assert_eq!(report["prefix"], "shop:3:");
    let total = &report["total"];
    assert_eq!((counts(total), others(total)), ((100, 2), (3, 5)));
    let sizes = &total["sessions"]["bytes"];
    let size = |name: &str| sizes[name].as_u64().unwrap();
    assert_eq!((size("sum"), size("average"), size("largest")), (5050, 50, 100));
    assert_eq!((size("p50"), size("p99")), (50, 99));
    assert_eq!(total["directories"]["bytes"]["sum"], 40);
    let servers = report["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 1);
    assert_eq!(servers[0]["server"], format!("127.0.0.1:{}", server.port()));
    assert_eq!(servers[0]["records"], *total);
}

#[test]
fn sessions_of_the_library_are_counted_under_its_default_namespace() {
    let server = RedisServer::start();
    runtime().block_on(async {
        let sessions =
            Sessions::builder(unsticky::connect(&server.url()).unwrap()).build().unwrap();
        for _ in 0..7 {
            assert_eq!(visit(&sessions, "", sign_in).await.failure(), None);
        }
    });
    let report = report(&server.url(), &[]);
    assert_eq!(report["prefix"], "__Host-id:0:");
    assert_eq!((counts(&report["total"]), others(&report["total"])), ((7, 1), (0, 0)));
}

#[test]
fn text_is_a_table() {
    let server = RedisServer::start();
    let place = format!("127.0.0.1:{}", server.port());
    for number in 0..3 {
        set(&server, &session("shop:0:", number), 100);
    }
    let output = count(&server.url(), &["--namespace", "shop"]);
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<_>> =
        text.lines().map(|line| line.split_whitespace().collect()).take(3).collect();
    let titles = ["server", "records", "count", "bytes", "average", "p50", "p99", "largest"];
    assert_eq!(rows[0], titles, "{text}");
    assert_eq!(rows[1], [&place, "sessions", "3", "300", "100", "100", "100", "100"], "{text}");
    assert_eq!(rows[2], [&place, "directories", "0", "0", "0", "0", "0", "0"], "{text}");
    assert!(text.contains("records of other epochs: 0\n"), "{text}");
}

#[test]
fn server_without_sessions_is_counted() {
    let server = RedisServer::start();
    let total = &report(&server.url(), &[])["total"];
    assert_eq!((counts(total), others(total)), ((0, 0), (0, 0)));
}

/// The report has one row per master. While a slot is being moved, the command fails rather than report a
/// number that may be too low.
#[test]
fn each_master_of_a_cluster_is_counted_unless_slots_are_moved() {
    let cluster = RedisCluster::masters(&redis_program(), &[]);
    let mut expected = [(0, 0); SHARDS];
    for number in 0..90 {
        let (session, directory) = (session("shop:0:", number), directory("shop:0:", number));
        let node = cluster.server_of(slot_of(&session));
        set(&cluster.nodes()[node], &session, 10);
        expected[node].0 += 1;
        if number < 30 {
            let node = cluster.server_of(slot_of(&directory));
            set(&cluster.nodes()[node], &directory, 10);
            expected[node].1 += 1;
        }
    }
    let report = report(&cluster.url(), &["--namespace", "shop"]);
    assert_eq!(counts(&report["total"]), (90, 30));
    for server in report["servers"].as_array().unwrap() {
        let place = |node: &RedisServer| format!("127.0.0.1:{}", node.port());
        let node = cluster.nodes().iter().position(|node| server["server"] == place(node));
        let expected = std::mem::take(&mut expected[node.unwrap()]);
        assert_eq!(counts(&server["records"]), expected);
    }
    assert_eq!(expected, [(0, 0); SHARDS]);

    // A node has only some of the keys, so the command refuses to present their number as the total.
    let error = failure(&count(&cluster.nodes()[0].url(), &[]), 3);
    assert!(error.contains("redis+cluster://"), "{error}");

    cluster.open_slot(0, cluster.server_of(0), (cluster.server_of(0) + 1) % SHARDS);
    let error = failure(&count(&cluster.url(), &["--namespace", "shop"]), 3);
    assert!(error.contains("count again"), "{error}");
}

/// The keys in a slot move to a master that may already have been scanned, so the count could miss them.
#[test]
fn cluster_that_moves_slots_during_the_walk_is_an_error() {
    let cluster = RedisCluster::masters(&redis_program(), &[]);
    let slot = cluster.slot_of_master(2);
    // There are enough keys for the scan of each master to take a while.
    for number in 0..120 {
        let key = session("shop:0:", number);
        set(&cluster.nodes()[cluster.server_of(slot_of(&key))], &key, 10);
    }
    let scans = |node: usize| cluster.nodes()[node].calls("scan");
    let command = begin(&cluster.url(), &["--namespace", "shop", "--rate", "40"]);
    eventually("the walk does not begin", || (0..SHARDS).any(|node| scans(node) > 0));
    cluster.move_slots([slot], 2, 0);
    let error = failure(&end(command), 3);
    assert!(error.contains("count again"), "{error}");
}

#[test]
fn master_behind_sentinels_is_counted_unless_it_is_replaced() {
    let set_of_servers = SentinelSet::single(&[]);
    let master = &set_of_servers.servers()[0];
    for number in 0..50 {
        set(master, &session("shop:0:", number), 10);
    }
    let url = set_of_servers.url();
    let report = report(&url, &["--namespace", "shop"]);
    assert_eq!(counts(&report["total"]), (50, 0));
    assert_eq!(report["servers"][0]["server"], format!("127.0.0.1:{}", master.port()));

    let before = master.calls("scan");
    let command = begin(&url, &["--namespace", "shop", "--rate", "40"]);
    eventually("the walk does not begin", || master.calls("scan") > before);
    master.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = failure(&end(command), 3);
    assert!(error.contains("count again"), "{error}");
}

#[test]
fn each_memcached_server_is_counted() {
    let servers = [(); 3].map(|()| MemcachedServer::start());
    let url = format!("memcached://{}", servers.each_ref().map(MemcachedServer::address).join(","));
    for (place, server) in servers.iter().enumerate() {
        for number in 0..10 * (place + 1) {
            store(server, &session("shop:0:", number), 100);
        }
        store(server, &directory("shop:0:", place), 100);
        store(server, &session("shop:1:", 0), 1);
        store(server, "shop:0:s:short", 1);
        store(server, &session("shop%3A0:", 0), 1);
        store(server, &session("sho*:0:", 0), 1);
    }
    let report = report(&url, &["--namespace", "shop"]);
    let total = &report["total"];
    assert_eq!((counts(total), others(total)), ((60, 3), (3, 3)));
    for (place, server) in servers.iter().enumerate() {
        let counted = &report["servers"][place];
        assert_eq!(counted["server"], server.address());
        let expected = 10 * (u64::try_from(place).unwrap() + 1);
        assert_eq!(counts(&counted["records"]), (expected, 1));
        // The size is that of the whole item, including its key.
        let average = counted["records"]["sessions"]["bytes"]["average"].as_u64().unwrap();
        assert!((131..250).contains(&average), "{average}");
    }

    runtime().block_on(async {
        let builder = Sessions::builder(unsticky::connect(&url).unwrap()).namespace("real");
        let sessions = builder.build().unwrap();
        for _ in 0..12 {
            assert_eq!(visit(&sessions, "", sign_in).await.failure(), None);
        }
    });
    assert_eq!(counts(&self::report(&url, &["--namespace", "real"])["total"]), (12, 1));
}

/// If a server does not list its keys, the report gives the numbers for all its items instead, and no total.
#[test]
fn memcached_server_that_shows_no_keys_says_what_it_has_of_everything() {
    let [open, closed] = [&[][..], &["-o", "no_lru_crawler"]].map(MemcachedServer::start_with);
    let url = format!("memcached://{},{}", open.address(), closed.address());
    for number in 0..5 {
        store(&open, &session("shop:0:", number), 10);
        store(&closed, &session("shop:0:", number), 10);
        store(&closed, &session("other:0:", number), 10);
    }
    let report = report(&url, &["--namespace", "shop"]);
    assert_eq!(report["total"], Value::Null);
    let [shown, hidden] = &report["servers"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!(counts(&shown["records"]), (5, 0));
    assert_eq!(hidden["records"], Value::Null);
    assert_eq!(hidden["all_items"]["count"], 10);
    assert!(hidden["all_items"]["bytes"].as_u64().unwrap() > 10 * 40);
    let note = hidden["notes"][0].as_str().unwrap();
    assert!(note.contains("crawler is disabled") && note.contains("not only sessions"), "{note}");

    let output = count(&url, &["--namespace", "shop"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("all items") && text.contains("There is no total"), "{text}");
    assert_eq!(holds_any(&url, "nothing:"), Ok(None));
    assert_eq!(holds_any(&url, "shop:"), Ok(Some(true)));
}

/// Returns the words of the line that follows this title in the documentation, with the placeholders filled
/// in.
fn documented(title: &str) -> Vec<String> {
    let text = include_str!("../docs/operating.md");
    let line = text.lines().skip_while(|line| *line != title).nth(1).unwrap();
    let line = line.replace("PASSWORD", "sesame7").replace("NAMESPACE", "shop");
    line.split(' ').map(str::to_owned).collect()
}

/// Recreates the user with these words, but leaves out one of them.
fn permit(server: &RedisServer, words: &[String], without: &str) {
    let _ = server.ask(&["ACL", "DELUSER", &words[2]]);
    let words = words.iter().map(String::as_str).filter(|word| *word != without);
    server.cli(&words.collect::<Vec<_>>());
}

/// The ACL in the documentation is enough for a count. Without `STRLEN`, the report has no sizes; without
/// `SCAN`, the count fails.
#[test]
fn documented_permissions_are_enough_and_needed() {
    let server = RedisServer::start();
    set(&server, &session("shop:0:", 0), 100);
    set(&server, &session("shop:0:", 1), 100);
    let url = server.url().replace("redis://", "redis://counter:sesame7@");
    let words = documented("# one server");
    permit(&server, &words, "");
    let report = report(&url, &["--namespace", "shop"]);
    assert_eq!(report["total"]["sessions"]["bytes"]["sum"], 200);

    permit(&server, &words, "+strlen");
    let report = self::report(&url, &["--namespace", "shop"]);
    assert_eq!(counts(&report["total"]), (2, 0));
    assert_eq!(report["total"]["sessions"]["bytes"], Value::Null);
    let note = report["servers"][0]["notes"][0].as_str().unwrap();
    assert!(note.contains("STRLEN") && note.contains("NOPERM"), "{note}");

    permit(&server, &words, "+scan");
    let error = failure(&count(&url, &["--namespace", "shop"]), 3);
    assert!(error.contains("SCAN") && error.contains("ACL"), "{error}");
    assert!(!error.contains("sesame7") && !error.contains("counter"), "{error}");
    assert_eq!(holds_any(&url, "shop:"), Ok(None));
}

/// The ACLs in the documentation are enough for a count. It fails without any one of the commands that only
/// these servers need.
#[test]
fn documented_permissions_are_enough_and_needed_in_a_cluster_and_behind_sentinels() {
    let cluster = RedisCluster::single(&[]);
    let sentinels = SentinelSet::single(&[]);
    for (title, server, url, needed) in [
        (
            "# each node of a cluster",
            &cluster.nodes()[0],
            cluster.url(),
            &["+cluster|slots", "+cluster|nodes"][..],
        ),
        (
            "# each server that Sentinels watch",
            &sentinels.servers()[0],
            sentinels.url(),
            &["+role"],
        ),
    ] {
        let url = url.replace("://", "://counter:sesame7@");
        let words = documented(title);
        set(server, &session("shop:0:", 0), 100);
        permit(server, &words, "");
        let total = &report(&url, &["--namespace", "shop"])["total"];
        assert_eq!(total["sessions"]["bytes"]["sum"], 100);
        for command in needed {
            permit(server, &words, command);
            failure(&count(&url, &["--namespace", "shop"]), 3);
        }
    }
}

#[test]
fn rate_bounds_how_fast_keys_are_walked_through() {
    let server = RedisServer::start();
    set_many(&server, "other:", 0..200);
    let begun = Instant::now();
    report(&server.url(), &["--rate", "100"]);
    let (took, scans) = (begun.elapsed(), server.calls("scan"));
    // The scan fetches five keys at a time and pauses in between.
    assert!(took > Duration::from_millis(1500), "{took:?}");
    assert!((35..=100).contains(&scans), "{scans}");
    server.cli(&["CONFIG", "RESETSTAT"]);
    report(&server.url(), &[]);
    assert_eq!(server.calls("scan"), 1);

    let memcached = MemcachedServer::start();
    for number in 0..30 {
        store(&memcached, &session("other:0:", number), 1);
    }
    let begun = Instant::now();
    report(&memcached.url(), &["--rate", "20"]);
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn nothing_is_written_and_nothing_read_but_lengths() {
    let server = RedisServer::start();
    set_many(&server, "shop:0:s:", 0..100);
    server.cli(&["CONFIG", "RESETSTAT"]);
    report(&server.url(), &["--namespace", "shop"]);
    let stats = server.cli(&["INFO", "commandstats"]);
    let mut commands: Vec<_> = stats
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next())
        .filter(|command| {
            // Excludes the commands that open a connection and those that this test sends.
            !["hello", "client|setinfo", "config|resetstat", "info", "select"].contains(command)
        })
        .collect();
    commands.sort_unstable();
    assert_eq!(commands, ["cluster|slots", "scan", "strlen"]);
    assert_eq!(server.calls("strlen"), 100);

    let memcached = MemcachedServer::start();
    store(&memcached, &session("shop:0:", 0), 1);
    let sets = memcached.stat("cmd_set");
    report(&memcached.url(), &["--namespace", "shop"]);
    assert_eq!((memcached.stat("cmd_set"), memcached.stat("cmd_get")), (sets, 0));
    assert_eq!(memcached.stat("cmd_touch"), 0);
}

/// While the server's hash table shrinks, a scan may return the same key twice. The key must be counted once.
#[test]
fn session_that_lives_throughout_is_counted_once_whatever_the_others_do() {
    const STABLE: usize = 2000;
    let server = RedisServer::start();
    set_many(&server, "shop:0:s:", 0..STABLE);
    let is_over = AtomicBool::new(false);
    let (counted, met) = thread::scope(|scope| {
        let over = EndOnDrop(&is_over);
        // Makes the hash table grow and shrink.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                set_many(&server, "noise:", 0..30_000);
                const REMOVE: &str = "for n = 0, 29999 do \
                                      redis.call('DEL', 'noise:' .. string.format('%021d', n) .. 'A') end";
                server.cli(&["EVAL", REMOVE, "0"]);
                // The table starts to shrink within a tenth of a second.
                thread::sleep(Duration::from_millis(150));
            }
        });
        let visitors = scope.spawn(|| {
            runtime().block_on(async {
                let store = unsticky::connect(&server.url()).unwrap();
                let sessions = Sessions::builder(store).namespace("shop").build().unwrap();
                let mut made = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let cookie = visit(&sessions, "", sign_in).await.cookie();
                    visit(&sessions, &cookie, sign_out).await;
                    made += 1;
                }
                made
            })
        });
        let report = report(&server.url(), &["--namespace", "shop", "--rate", "20000"]);
        let met = [(); 3].map(|()| met(&server.url(), "shop:0:s:", 20_000));
        drop(over);
        assert!(visitors.join().unwrap() > 0);
        (counts(&report["total"]).0, met)
    });
    assert!(counted >= STABLE as u64, "{counted}");
    for mut keys in met {
        keys.sort_unstable();
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all, "keys were returned twice");
        let is_stable = |key: &&String| key.starts_with("shop:0:s:00000000000000000");
        assert_eq!(keys.iter().filter(is_stable).count(), STABLE);
    }
}

/// Stops the other threads even if the test fails, because the test waits for them.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns the keys with this prefix that a scan finds.
fn met(url: &str, prefix: &str, rate: u32) -> Vec<String> {
    let mut keys = Vec::new();
    let survey = patient(url);
    let walks = survey.scan(prefix, Rate::per_second(rate).unwrap(), |met| {
        if let Met::Key { key, .. } = met {
            keys.push(key.to_owned());
        }
    });
    runtime().block_on(walks).unwrap();
    keys
}

#[test]
fn server_that_is_down_is_one_line() {
    let mut redis = RedisServer::start();
    let url = redis.url().replace("redis://", "redis://user:hunter2@");
    redis.stop();
    let error = failure(&count(&url, &["--namespace", "secret"]), 3);
    assert!(error.contains(&format!("127.0.0.1:{}", redis.port())), "{error}");
    assert!(!error.contains("hunter2") && !error.contains("secret"), "{error}");

    let (up, mut down) = (MemcachedServer::start(), MemcachedServer::start());
    let url = format!("memcached://{},{}", up.address(), down.address());
    down.stop();
    let error = failure(&count(&url, &[]), 3);
    assert!(error.contains(&down.address()), "{error}");
}

#[test]
fn server_that_ends_the_connection_during_the_walk_is_an_error() {
    let server = RedisServer::start();
    set_many(&server, "shop:0:s:", 0..100);
    let command = begin(&server.url(), &["--namespace", "shop", "--rate", "40"]);
    eventually("the walk does not begin", || server.calls("scan") > 0);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    failure(&end(command), 3);
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let error = failure(&count("redis://h", &["--rate", "0"]), 2);
    assert!(error.contains("--rate"), "{error}");
    let error = failure(&count("memory:", &[]), 2);
    assert!(error.contains("SESSION_URL"), "{error}");
}

#[test]
fn interrupted_count_ends_at_once() {
    let server = RedisServer::start();
    set_many(&server, "shop:0:s:", 0..1000);
    let command = begin(&server.url(), &["--rate", "1"]);
    eventually("the walk does not begin", || server.calls("scan") > 0);
    send_signal("INT", command.id());
    failure(&end(command), 130);
}

fn patient(url: &str) -> Survey {
    Survey::open_within(url, Duration::from_secs(10)).unwrap()
}

fn holds_any(url: &str, prefix: &str) -> Result<Option<bool>, String> {
    let survey = patient(url);
    let held = survey.holds_any(prefix, Duration::from_secs(10));
    runtime().block_on(held).map_err(|error| error.to_string())
}

#[test]
fn prefix_is_taken_literally() {
    let server = RedisServer::start();
    let memcached = MemcachedServer::start();
    for key in ["a*b:1", "axb:1", "a[x]b:1", r"a\xb:1"] {
        set(&server, key, 1);
        store(&memcached, key, 1);
    }
    for url in [server.url(), memcached.url()] {
        for prefix in ["a*b:", "a[x]b:", r"a\xb:", "a*", r"a\"] {
            assert_eq!(holds_any(&url, prefix), Ok(Some(true)), "{prefix}");
        }
        for prefix in ["a?b:", "*", "a[x]:", r"a\\", "b", "a[^y]b:"] {
            assert_eq!(holds_any(&url, prefix), Ok(Some(false)), "{prefix}");
        }
    }
}

/// If the keys cannot all be listed in time, it is unknown whether the store holds any with the prefix.
#[test]
fn nothing_is_known_where_the_walk_does_not_end_in_time() {
    let server = RedisServer::start();
    set_many(&server, "other:", 0..20_000);
    let survey = patient(&server.url());
    let held = survey.holds_any("shop:", Duration::from_millis(50));
    assert_eq!(runtime().block_on(held).unwrap(), None);
    let survey = patient(&server.url());
    let held = survey.holds_any("shop:", Duration::from_secs(30));
    assert_eq!(runtime().block_on(held).unwrap(), Some(false));
}

#[test]
fn walk_tells_its_progress() {
    let server = RedisServer::start();
    set_many(&server, "other:", 0..300);
    let survey = patient(&server.url());
    let mut walked = Vec::new();
    let rate = Rate::per_second(2000).unwrap();
    let walks = survey.scan("shop:", rate, |met| match met {
        Met::Walked { keys, .. } => walked.push(keys),
        Met::Key { key, .. } => panic!("{key}"),
    });
    let walks = runtime().block_on(walks).unwrap();
    assert_eq!(walks[0].outcome, Outcome::Complete { no_lengths: None, may_repeat: false });
    assert!(walked.len() > 1 && walked.is_sorted(), "{walked:?}");
}
