//! `unsticky bench`, run as it would be from a shell.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::servers::{MemcachedServer, RedisServer, send_signal};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// A run that takes longer than this is killed.
const LONGEST: Duration = Duration::from_secs(60);

const OPERATIONS: [&str; 4] = ["read", "write", "sign-in", "sign-out"];

/// Starts the command.
fn start(url: &str, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_unsticky"))
        .arg("bench")
        .args(arguments)
        .env("SESSION_URL", url)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn end(child: Child) -> Output {
    timeout(LONGEST, child.wait_with_output()).await.expect("it does not end").unwrap()
}

async fn run(url: &str, arguments: &[&str]) -> Output {
    end(start(url, arguments)).await
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Returns the one-line error from a run that measured nothing.
fn refusal(output: &Output, status: i32) -> &str {
    let line = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{line}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// Waits until the running command has had an effect.
async fn eventually(mut holds: impl FnMut() -> bool, otherwise: &str) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{otherwise}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn measures_everything_and_leaves_nothing(url: &str, keys: impl Fn() -> String) {
    let arguments = ["--json", "--callers", "1,3", "--payload", "10", "--rate", "150"];
    let output = run(url, &arguments).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(keys(), "0");
    assert_eq!(stderr(&output), "");
    let report = json(&output);
    let throughput = report["throughput"].as_array().unwrap();
    let latency = report["latency"].as_array().unwrap();
    assert_eq!((throughput.len(), latency.len()), (8, 4));
    for operation in OPERATIONS {
        for callers in [1, 3] {
            let is_this = |row: &&Value| row["operation"] == operation && row["callers"] == callers;
            let row = throughput.iter().find(is_this).unwrap();
            let per_second = row["requests_per_second"].as_f64().unwrap();
            let counted = row["succeeded"].as_f64().unwrap() / row["seconds"].as_f64().unwrap();
            assert!(per_second > 10.0 && (per_second / counted - 1.0).abs() < 0.01, "{row}");
            assert_eq!((&row["requests"], &row["payload_bytes"]), (&row["succeeded"], &10.into()));
        }
        let row = latency.iter().find(|row| row["operation"] == operation).unwrap();
        let number = |name: &str| row[name].as_u64().unwrap();
        assert_eq!((number("rate"), number("due"), number("callers_at_most")), (150, 150, 3));
        assert_eq!((number("requests"), number("unsent")), (150, 0), "{row}");
        let seconds = row["seconds"].as_f64().unwrap();
        assert!((0.9..2.0).contains(&seconds), "{row}");
        let quantiles = ["p50", "p90", "p99", "p99.9", "max"]
            .map(|name| row["latency_ms"][name].as_f64().unwrap());
        assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{quantiles:?}");
    }
    assert_eq!(report["errors"], Value::Object(serde_json::Map::new()));
    assert_eq!((&report["keys_left"], &report["cut_short"]), (&0.into(), &false.into()));
    let parameters = &report["parameters"];
    assert_eq!(parameters["operations"], Value::from(OPERATIONS.to_vec()));
    assert_eq!(parameters["callers"], Value::from(vec![1, 3]));
    assert_eq!((&parameters["rate"], &parameters["seconds"]), (&150.into(), &1.into()));
    assert_eq!(report["unsticky"], env!("CARGO_PKG_VERSION"));
    assert!(report["began"].as_str() < report["ended"].as_str(), "{report}");
}

#[tokio::test]
async fn redis_is_measured_and_left_empty() {
    let server = RedisServer::start();
    measures_everything_and_leaves_nothing(&server.url(), || server.cli(&["DBSIZE"])).await;
}

#[tokio::test]
async fn memcached_is_measured_and_left_empty() {
    let server = MemcachedServer::start();
    measures_everything_and_leaves_nothing(&server.url(), || server.stat("curr_items").to_string())
        .await;
}

/// Without `--rate`, latency is measured at about half the highest throughput.
#[tokio::test]
async fn rate_is_half_of_the_highest_throughput() {
    let server = RedisServer::start();
    let arguments = ["--json", "--callers", "1,2", "--payload", "10", "--operations", "read"];
    let report = json(&run(&server.url(), &arguments).await);
    let throughput = report["throughput"].as_array().unwrap().iter();
    let highest =
        throughput.map(|row| row["requests_per_second"].as_f64().unwrap()).fold(0.0, f64::max);
    let row = &report["latency"][0];
    let rate = row["rate"].as_f64().unwrap();
    assert!(rate <= highest / 2.0 && rate > highest / 2.0 * 0.89, "{rate} of {highest}");
    // Every request that was due was either sent, or is counted as unsent because the server was too slow.
    let number = |name: &str| row[name].as_u64().unwrap();
    assert_eq!(number("requests") + number("unsent"), number("due"), "{row}");
    assert_eq!(row["due"], row["rate"]);
    assert_eq!(report["parameters"]["rate"], Value::Null);
}

/// The server is paused during the latency measurement. The latencies include the time for which due requests
/// had to wait.
#[tokio::test]
async fn latency_counts_from_when_a_request_is_due() {
    let server = RedisServer::start();
    let arguments = ["--json", "--callers", "1", "--payload", "10", "--operations", "read"];
    let arguments = [&arguments[..], &["--rate", "100", "--seconds", "3"]].concat();
    let child = start(&server.url(), &arguments);
    // The first measurement creates its sessions and removes them. Then the second measurement creates its
    // own.
    let sessions = || server.cli(&["DBSIZE"]).parse::<u32>().unwrap();
    eventually(|| sessions() == 100, "no throughput").await;
    eventually(|| sessions() < 100, "no end of it").await;
    eventually(|| sessions() == 100, "no latency").await;
    // The pause is shorter than the time limit of a request.
    server.pause();
    sleep(Duration::from_millis(300)).await;
    server.resume();
    let output = end(child).await;
    let row = &json(&output)["latency"][0];
    // One request was in progress. The thirty requests that became due during the pause waited for the only
    // caller.
    let quantile = |name: &str| row["latency_ms"][name].as_f64().unwrap();
    assert!(quantile("max") > 250.0 && quantile("p99") > 150.0, "{row}");
    assert!(quantile("p50") < 100.0, "{row}");
}

/// If the namespace contains keys that the benchmark did not write, nothing is measured or written.
#[tokio::test]
async fn keys_of_others_are_neither_measured_with_nor_touched() {
    let server = RedisServer::start();
    server.cli(&["SET", "unsticky-bench:key", "of somebody else"]);
    let output = run(&server.url(), &[]).await;
    let line = refusal(&output, 2);
    assert!(line.contains("--namespace") && line.contains("within 5 minutes"), "{line}");
    assert_eq!(server.cli(&["GET", "unsticky-bench:key"]), "of somebody else");
    let writes = ["set", "del", "eval", "evalsha", "script|load", "expire", "unlink"];
    let writes: Vec<_> = writes.iter().map(|command| server.calls(command)).collect();
    assert_eq!(writes, [1, 0, 0, 0, 0, 0, 0]);
    // Keys in a different namespace do not prevent a run.
    let arguments = ["--namespace", "other-bench", "--operations", "read", "--callers", "1"];
    let arguments = [&arguments[..], &["--payload", "10", "--json"]].concat();
    let output = run(&server.url(), &arguments).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.cli(&["KEYS", "*"]), "unsticky-bench:key");
}

#[tokio::test]
async fn store_with_little_memory_left_is_measured_only_if_allowed() {
    let server = RedisServer::start_with(&["--maxmemory", "35mb"]);
    server.cli(&["SETRANGE", "of somebody else", "27000000", "x"]);
    let arguments = ["--operations", "read", "--callers", "1", "--payload", "10"];
    let output = run(&server.url(), &arguments).await;
    let line = refusal(&output, 2);
    assert!(line.contains("--allow-scarce-memory") && line.contains("maxmemory is"), "{line}");
    assert_eq!(server.cli(&["KEYS", "unsticky-bench*"]), "");
    let output = run(&server.url(), &[&arguments[..], &["--allow-scarce-memory"]].concat()).await;
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn keys_of_others_on_memcached_are_refused() {
    let server = MemcachedServer::start();
    server.cli("ms unsticky-bench:key 4\r\nelse");
    let output = run(&server.url(), &[]).await;
    let line = refusal(&output, 2);
    assert!(line.contains("--namespace") && line.contains("within 5 minutes"), "{line}");
    assert_eq!((server.stat("cmd_set"), server.stat("curr_items")), (1, 1));
}

#[tokio::test]
async fn server_that_hides_its_keys_is_measured_only_if_allowed() {
    let server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "bench", "on", ">hunter2", "~*", "+@all", "-scan"]);
    let url = format!("redis://bench:hunter2@127.0.0.1:{}/", server.port());
    let arguments = ["--operations", "read", "--callers", "1", "--payload", "10"];
    let output = run(&url, &arguments).await;
    let line = refusal(&output, 2);
    assert!(line.contains("--allow-unseen-keys") && !line.contains("hunter2"), "{line}");
    let output = run(&url, &[&arguments[..], &["--allow-unseen-keys"]].concat()).await;
    assert!(output.status.success(), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("hunter2"));
}

#[tokio::test]
async fn server_that_dies_ends_the_run_with_its_errors() {
    let mut server = RedisServer::start();
    let arguments = ["--json", "--callers", "4", "--payload", "10", "--seconds", "3"];
    let child = start(&server.url(), &arguments);
    // The check that precedes the measurements writes fewer keys than this.
    let keys = || server.cli(&["DBSIZE"]).parse::<u32>().unwrap();
    eventually(|| keys() > 50, "no session").await;
    server.stop();
    let died = Instant::now();
    let output = end(child).await;
    // This time covers the measurement in progress, one request's wait for the store, and the attempt to
    // remove the keys.
    assert!(died.elapsed() < Duration::from_secs(20), "{:?}", died.elapsed());
    assert_eq!((output.status.code(), stderr(&output)), (Some(3), ""));
    let report = json(&output);
    assert!(report["errors"]["unavailable"].as_u64() > Some(0), "{report}");
    assert_eq!(report["cut_short"], true, "{report}");
    assert!(report["keys_left"].as_u64() > Some(0), "{report}");
}

#[tokio::test]
async fn sessions_that_the_store_has_lost_are_errors() {
    let server = RedisServer::start();
    let arguments = ["--callers", "2", "--payload", "10", "--operations", "write"];
    let child = start(&server.url(), &arguments);
    eventually(|| server.cli(&["DBSIZE"]) == "100", "no sessions").await;
    server.cli(&["FLUSHALL"]);
    let output = end(child).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!((output.status.code(), stderr(&output)), (Some(3), ""));
    assert!(text.contains("requests failed"), "{text}");
    assert!(text.contains("the session was no longer in the store"), "{text}");
    assert_eq!(server.cli(&["DBSIZE"]), "0");
}

#[tokio::test]
async fn interrupted_run_removes_its_keys() {
    let server = RedisServer::start();
    let arguments = ["--callers", "4", "--payload", "10", "--seconds", "20"];
    let child = start(&server.url(), &arguments);
    eventually(|| server.cli(&["DBSIZE"]) == "100", "no sessions").await;
    send_signal("INT", child.id().unwrap());
    let interrupted = Instant::now();
    let output = end(child).await;
    assert!(interrupted.elapsed() < Duration::from_secs(10));
    assert_eq!((output.status.code(), stderr(&output)), (Some(130), "unsticky: interrupted\n"));
    assert_eq!(server.cli(&["DBSIZE"]), "0");
}

#[tokio::test]
async fn keys_expire_soon_whatever_happens() {
    let server = RedisServer::start();
    let arguments = ["--callers", "4", "--payload", "10", "--operations", "sign-in,sign-out"];
    let mut child = start(&server.url(), &arguments);
    // The first sign-ins have been made. In an application, a directory record would live for an hour.
    eventually(|| !server.cli(&["KEYS", "unsticky-bench:0:d:*"]).is_empty(), "no directory").await;
    child.kill().await.unwrap();
    let keys = server.cli(&["KEYS", "*"]);
    assert!(!keys.is_empty());
    for key in keys.lines() {
        let lives: i64 = server.cli(&["TTL", key]).parse().unwrap();
        assert!((0..=300).contains(&lives), "{key}: {lives}");
    }
    assert!(keys.lines().count() <= 2000, "{}", keys.lines().count());
}

#[tokio::test]
async fn report_is_readable_in_a_pipe() {
    let server = RedisServer::start();
    let arguments = ["--callers", "1,2", "--payload", "10", "--operations", "read"];
    let output = run(&server.url(), &arguments).await;
    assert!(output.status.success(), "{output:?}");
    // Progress is shown only in a terminal.
    assert_eq!(stderr(&output), "");
    let text = std::str::from_utf8(&output.stdout).unwrap();
    // The locale supports only ASCII.
    assert!(text.is_ascii() && !text.contains('\u{1b}'), "{text}");
    // The output fits into a small terminal.
    assert!(text.lines().all(|line| line.len() <= 60), "{text}");
    for part in ["take about 3 s.", "Throughput, in", "Latency, in", "2 callers", "p99.9", "####"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[tokio::test]
async fn unusable_values_are_refused_in_one_line() {
    // No server listens on this port, so nothing is sent.
    let url = "redis://:hunter2@127.0.0.1:1/";
    for (argument, value) in [
        ("--callers", "0"),
        ("--callers", "501"),
        ("--callers", "many"),
        ("--callers", "7,7,"),
        ("--callers", "11,12,13,14,15,16"),
        ("--payload", "0"),
        ("--payload", "990001"),
        ("--payload", "-4711"),
        ("--rate", "0"),
        ("--rate", "4711.5"),
        ("--rate", "1000001"),
        ("--seconds", "0"),
        ("--seconds", "61"),
        ("--operations", "fly"),
        ("--operations", ""),
        ("--namespace", "what ever"),
        ("--namespace", "__Host-id"),
        ("--timeout", "4711"),
        ("--timeout", "9ms"),
        ("--url", "postgres://hunter2"),
    ] {
        let output = run(url, &[&format!("{argument}={value}")]).await;
        let line = refusal(&output, 2);
        let repeats = value.len() > 1 && line.contains(value);
        assert!(!repeats && !line.contains("hunter2"), "{argument} {value}: {line}");
        assert!(line.contains(argument.trim_start_matches('-')), "{argument} {value}: {line}");
    }
}

#[tokio::test]
async fn store_that_cannot_be_reached_is_not_measured() {
    let output = run("redis://:hunter2@127.0.0.1:1/", &["--json"]).await;
    let line = refusal(&output, 3);
    assert!(line.contains("unavailable") && !line.contains("hunter2"), "{line}");
}
