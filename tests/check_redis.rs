//! The findings of `Sessions::check` on one Redis or Valkey server. Each finding is provoked on a real
//! server.

#![cfg(all(feature = "redis-tls", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::fake::{Fake, list};
use support::servers::{Redis84Server, RedisServer, ValkeyServer};
use support::topologies::{RedisCluster, eventually};
use time::OffsetDateTime;
use unsticky::check::{Finding, Level, Report};
use unsticky::store::RedisStore;
use unsticky::testing::ManualClock;
use unsticky::{Builder, Sessions};

/// The maximum duration of a check, with a margin for a busy machine.
const BOUND: Duration = Duration::from_secs(3);

fn builder(url: &str) -> Builder {
    Sessions::builder(RedisStore::connect(url).unwrap()).namespace("shop")
}

async fn check(url: &str) -> Report {
    builder(url).build().unwrap().check().await
}

/// Returns the findings with this code.
fn all<'a>(report: &'a Report, code: &str) -> Vec<&'a Finding> {
    report.findings().iter().filter(|finding| finding.code() == code).collect()
}

/// Asserts that exactly one finding has this code, and that the finding has this level and these words in its
/// message.
#[track_caller]
fn found(report: &Report, code: &str, level: Level, words: &str) {
    let mut all = all(report, code);
    // On newer servers, notes list the optional commands that the user is not permitted to run.
    all.retain(|finding| code != "permission" || finding.level() != Level::Note);
    match all[..] {
        [finding] => {
            assert_eq!(finding.level(), level, "{report}");
            assert!(finding.message().contains(words), "{words}: {report}");
            let is_remedied = level < Level::Warning || !finding.remedy().is_empty();
            assert!(is_remedied, "{finding}");
        }
        _ => panic!("{code}: {report}"),
    }
}

#[tokio::test]
async fn new_server_has_no_warning() {
    let server = RedisServer::start();
    let report = check(&server.url()).await;
    assert_eq!(report.level(), Level::Note, "{report}");
    found(&report, "version", Level::Fine, "It is ");
    found(&report, "role", Level::Fine, "It is a master.");
    found(&report, "clock", Level::Fine, "This process's clock is ");
    found(&report, "eviction", Level::Fine, "noeviction");
    found(&report, "memory", Level::Note, "maxmemory is 0");
    found(&report, "connections", Level::Fine, "of at most 10000 connections (maxclients)");
    found(&report, "persistence", Level::Note, "The server keeps nothing on its disk");
    found(&report, "replicas", Level::Note, "The server has no replica");
    found(&report, "permission", Level::Fine, "every command");
    found(&report, "compare_and_set", Level::Fine, "");
    found(&report, "commands", Level::Fine, "");
    found(&report, "round_trip", Level::Fine, "");
    for code in ["hidden", "plain", "certificate", "evicted", "unreachable", "loading"] {
        assert!(all(&report, code).is_empty(), "{report}");
    }
    let subject = format!("redis at 127.0.0.1:{}", server.port());
    assert!(report.findings().iter().all(|finding| finding.subject() == subject), "{report}");
}

/// The findings are the same with RESP2 and with RESP3.
#[tokio::test]
async fn newer_protocol_makes_no_difference() {
    let server = RedisServer::start();
    let url = server.url();
    let codes = |report: &Report| -> Vec<_> {
        let mut codes: Vec<_> =
            report.findings().iter().map(|found| (found.code(), found.level())).collect();
        codes.sort_unstable();
        codes
    };
    let (second, third) = (check(&url).await, check(&format!("{url}?protocol=resp3")).await);
    assert_eq!(codes(&second), codes(&third), "{third}");
}

#[tokio::test]
async fn eviction_is_warned_of() {
    let server = RedisServer::start();
    for policy in ["allkeys-lru", "volatile-ttl"] {
        server.cli(&["CONFIG", "SET", "maxmemory-policy", policy]);
        server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
        let words = format!("maxmemory-policy is {policy}");
        found(&check(&server.url()).await, "eviction", Level::Note, &words);
        server.cli(&["CONFIG", "SET", "maxmemory", "100mb"]);
        found(&check(&server.url()).await, "eviction", Level::Warning, &words);
    }
}

fn info(server: &RedisServer, name: &str) -> u64 {
    let info = server.cli(&["INFO"]);
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().parse().unwrap()
}

/// Writes until the server refuses a write or evicts a key.
fn fill(server: &RedisServer) {
    let value = "v".repeat(200_000);
    for number in 0..1000 {
        let is_refused = server.ask(&["SET", &format!("filling:{number}"), &value]).is_err();
        if is_refused || info(server, "evicted_keys") > 0 {
            return;
        }
    }
    panic!("the server does not become full");
}

#[tokio::test]
async fn evicted_keys_are_warned_of() {
    let server =
        RedisServer::start_with(&["--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru"]);
    fill(&server);
    found(&check(&server.url()).await, "evicted", Level::Warning, "evicted_keys");
}

#[tokio::test]
async fn full_memory_is_an_error() {
    let server = RedisServer::start();
    let maxmemory = |limit: u64| {
        server.cli(&["CONFIG", "SET", "maxmemory", &limit.to_string()]);
    };
    maxmemory(info(&server, "used_memory") * 2);
    found(&check(&server.url()).await, "memory", Level::Fine, "% of its memory (maxmemory is ");
    maxmemory(info(&server, "used_memory") * 100 / 88);
    found(&check(&server.url()).await, "memory", Level::Warning, "% of its memory (maxmemory is ");
    maxmemory(info(&server, "used_memory") + 1_000_000);
    fill(&server);
    // If a little memory were left, the server would refuse only large records.
    maxmemory(info(&server, "used_memory") - 500_000);
    let report = check(&server.url()).await;
    found(&report, "memory", Level::Error, "so it refuses writes");
    found(&report, "commands", Level::Error, "OOM");
}

#[tokio::test]
async fn many_connections_are_a_warning() {
    let server = RedisServer::start_with(&["--maxclients", "20"]);
    let _others: Vec<_> =
        (0..16).map(|_| TcpStream::connect(("127.0.0.1", server.port())).unwrap()).collect();
    eventually("they are not counted", || info(&server, "connected_clients") >= 17);
    let report = check(&server.url()).await;
    found(&report, "connections", Level::Warning, "of at most 20 connections (maxclients)");
}

/// The permissions that `RedisStore`'s documentation lists.
const NEEDED: [&str; 6] = ["get", "set", "del", "getrange", "eval", "evalsha"];

/// Recreates the user with these permissions.
fn permit<'a>(server: &RedisServer, keys: &str, commands: impl IntoIterator<Item = &'a str>) {
    let _ = server.ask(&["ACL", "DELUSER", "app"]);
    let commands: Vec<_> = commands.into_iter().map(|command| format!("+{command}")).collect();
    let words = ["ACL", "SETUSER", "app", "on", ">sesame7", keys, "resetchannels", "-@all"];
    let words: Vec<_> = words.into_iter().chain(commands.iter().map(String::as_str)).collect();
    server.cli(&words);
}

fn user_url(server: &RedisServer) -> String {
    server.url().replace("://", "://app:sesame7@")
}

#[tokio::test]
async fn every_missing_permission_is_named() {
    let server = RedisServer::start();
    for missing in NEEDED {
        permit(&server, "~shop:*", NEEDED.into_iter().filter(|command| *command != missing));
        let report = check(&user_url(&server)).await;
        let message = format!("The user may not run {},", missing.to_uppercase());
        found(&report, "permission", Level::Error, &message);
        assert!(all(&report, "permission")[0].remedy().contains(&format!("+{missing} ")));
    }
    permit(&server, "~shop:*", ["get", "eval"]);
    let report = check(&user_url(&server)).await;
    let mut named = all(&report, "permission");
    named.retain(|finding| finding.level() == Level::Error);
    for missing in ["SET", "DEL", "GETRANGE", "EVALSHA"] {
        let is_named = |finding: &&Finding| finding.message().contains(&format!("run {missing},"));
        assert_eq!(named.iter().filter(|finding| is_named(finding)).count(), 1, "{report}");
    }
    assert_eq!(named.len(), 4, "{report}");
}

#[tokio::test]
async fn keys_that_may_not_be_used_are_named_once() {
    let server = RedisServer::start();
    permit(&server, "~other:*", NEEDED);
    let report = check(&user_url(&server)).await;
    let words = "keys of the namespace shop with GET, SET, GETRANGE, EVALSHA, EVAL, DEL,";
    found(&report, "permission", Level::Error, words);
    let remedy = all(&report, "permission")[0].remedy();
    assert!(remedy.contains("ACL SETUSER USER ~shop:* "), "{remedy}");
}

#[tokio::test]
async fn disabled_command_is_named() {
    let server = RedisServer::start_with(&["--rename-command", "GETRANGE", ""]);
    let report = check(&server.url()).await;
    found(&report, "permission", Level::Error, "GETRANGE is disabled or renamed on the server");
}

#[tokio::test]
async fn commands_without_permission_are_notes() {
    let server = RedisServer::start();
    permit(&server, "~shop:*", NEEDED);
    let report = check(&user_url(&server)).await;
    assert_eq!(report.level(), Level::Note, "{report}");
    let hidden = all(&report, "hidden");
    for (permission, words) in
        [("+info", "Its version"), ("+config|get", "snapshots"), ("+time", "Its time")]
    {
        let is_it = |finding: &&&Finding| {
            finding.remedy().contains(permission) && finding.message().contains(words)
        };
        assert_eq!(hidden.iter().filter(is_it).count(), 1, "{permission}: {report}");
    }
    assert_eq!(hidden.len(), 3, "{report}");
    found(&report, "permission", Level::Fine, "every command");
    found(&report, "commands", Level::Fine, "");

    permit(&server, "~shop:*", NEEDED.into_iter().chain(["info", "config|get", "time"]));
    let report = check(&user_url(&server)).await;
    assert!(all(&report, "hidden").is_empty(), "{report}");
    found(&report, "version", Level::Fine, "It is ");
}

#[tokio::test]
async fn disabled_config_command_is_a_note() {
    let server = RedisServer::start_with(&["--rename-command", "CONFIG", ""]);
    let report = check(&server.url()).await;
    assert_eq!(report.level(), Level::Note, "{report}");
    found(&report, "hidden", Level::Note, "answered CONFIG with ERR unknown command");
    found(&report, "persistence", Level::Note, "unknown whether it makes snapshots");
}

#[tokio::test]
async fn clock_that_is_off_is_warned_of() {
    let server = RedisServer::start();
    for (seconds, words) in [(7_200, "min ahead of the server's"), (-90, "s behind the server's")] {
        let now = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        let sessions = builder(&server.url()).clock(ManualClock::at(now)).build().unwrap();
        let report = sessions.check().await;
        found(&report, "clock", Level::Warning, words);
        let remedy = all(&report, "clock")[0].remedy();
        assert!(remedy.contains(if seconds > 0 { "too early" } else { "too late" }), "{remedy}");
    }
}

fn follow(replica: &RedisServer, master: &RedisServer) {
    replica.cli(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    eventually("the replica does not follow", || {
        master.cli(&["INFO", "replication"]).contains("state=online")
    });
}

#[tokio::test]
async fn replica_in_place_of_master_is_an_error() {
    let (master, replica) = (RedisServer::start(), RedisServer::start());
    follow(&replica, &master);
    let report = check(&replica.url()).await;
    found(&report, "role", Level::Error, "It is a replica, but a master was expected here.");
    // There is no other error.
    assert_eq!(report.findings().iter().filter(|found| found.level() == Level::Error).count(), 1);
}

#[tokio::test]
async fn other_kinds_of_servers_are_named() {
    let cluster = RedisCluster::single(&[]);
    let report = check(&cluster.nodes()[0].url()).await;
    found(&report, "role", Level::Error, "It is a node of a cluster, and a master, but ");
    let report = check(&RedisServer::sentinel().url()).await;
    found(&report, "role", Level::Error, "It is a Sentinel, but ");
}

#[tokio::test]
async fn replicas_that_lag_or_are_too_few_are_named() {
    let (master, replica) = (RedisServer::start(), RedisServer::start());
    master.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let report = check(&master.url()).await;
    let words = "0 replicas confirmed data within 10 s (min-replicas-max-lag), but min-replicas-to-write is 1";
    found(&report, "replicas", Level::Error, words);
    found(&report, "commands", Level::Error, "NOREPLICAS");

    follow(&replica, &master);
    let report = check(&master.url()).await;
    found(&report, "replicas", Level::Fine, "The server has 1 connected replica, all online;");
    replica.pause();
    let lags = || {
        let replication = master.cli(&["INFO", "replication"]);
        ["lag=0", "lag=1", "lag=2", "lag=3"].iter().all(|lag| !replication.contains(lag))
    };
    eventually("the replica confirms something", lags);
    found(
        &check(&master.url()).await,
        "replicas",
        Level::Warning,
        "The server has 1 connected replica,",
    );
    replica.resume();
}

#[tokio::test]
async fn disk_that_cannot_be_written_is_an_error() {
    let server = RedisServer::start_with(&["--enable-protected-configs", "yes"]);
    let gone = Files::new("gone");
    server.cli(&["CONFIG", "SET", "dir", gone.0.to_str().unwrap()]);
    drop(gone);
    server.cli(&["CONFIG", "SET", "save", "3600 1"]);
    found(
        &check(&server.url()).await,
        "persistence",
        Level::Note,
        "The server only makes snapshots",
    );
    server.cli(&["BGSAVE"]);
    let has_failed = || server.cli(&["INFO"]).contains("rdb_last_bgsave_status:err");
    eventually("the snapshot is made", has_failed);
    let report = check(&server.url()).await;
    found(&report, "persistence", Level::Error, "(stop-writes-on-bgsave-error is yes)");
    found(&report, "commands", Level::Error, "MISCONF");
    server.cli(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]);
    let report = check(&server.url()).await;
    found(&report, "persistence", Level::Warning, "rdb_last_bgsave_status is err");
    found(&report, "commands", Level::Fine, "");
}

#[tokio::test]
async fn append_only_file_is_fine() {
    let server = RedisServer::start_with(&["--appendonly", "yes"]);
    found(&check(&server.url()).await, "persistence", Level::Fine, "appendonly is yes");
}

/// While a server is still loading its data, the report has one error, which says so.
#[tokio::test]
async fn server_that_reads_its_data_is_an_error() {
    let mut server = RedisServer::start_with(&[
        "--enable-debug-command",
        "yes",
        "--key-load-delay",
        "5000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    server.cli(&["DEBUG", "POPULATE", "2000", "key", "1000"]);
    server.cli(&["SAVE"]);
    server.restart();
    let report = check(&server.url()).await;
    found(&report, "loading", Level::Error, "loading is 1");
    assert_eq!(report.findings().iter().filter(|found| found.level() == Level::Error).count(), 1);
}

#[tokio::test]
async fn stopped_server_is_one_finding() {
    let mut server = RedisServer::start();
    server.stop();
    let report = check(&server.url()).await;
    found(&report, "unreachable", Level::Error, "The server cannot be reached: ");
    assert_eq!(report.findings().len(), 1, "{report}");
}

#[tokio::test]
async fn wrong_password_is_one_finding_and_not_repeated() {
    let server = RedisServer::start_with(&["--requirepass", "secret1"]);
    let report = check(&server.url().replace("secret1", "sesame7")).await;
    found(&report, "unreachable", Level::Error, "the user's name or the password is wrong");
    assert!(all(&report, "unreachable")[0].remedy().contains("redis://USER:PASSWORD@"), "{report}");
    assert_eq!(report.findings().len(), 1, "{report}");
    assert!(!report.to_string().contains("sesame7"), "{report}");
    let none = check(&format!("redis://127.0.0.1:{}/", server.port())).await;
    found(&none, "unreachable", Level::Error, "NOAUTH");
    assert_eq!(none.findings().len(), 1, "{none}");
}

#[tokio::test]
async fn paused_server_is_reported_in_time() {
    let server = RedisServer::start();
    let sessions = builder(&server.url()).build().unwrap();
    assert_eq!(sessions.check().await.level(), Level::Note);
    server.pause();
    // The first check has an open connection, and the second has none.
    for _ in 0..2 {
        let begun = Instant::now();
        let report = sessions.check().await;
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        found(&report, "unreachable", Level::Error, "answer");
        assert_eq!(report.findings().len(), 1, "{report}");
    }
    server.resume();
}

/// The server's `MONITOR` output shows that the check uses only keys of its own. Those that it leaves expire.
#[tokio::test]
async fn only_keys_of_its_own_are_touched() {
    let server = RedisServer::start();
    server.cli(&["SET", "shop:1:s:AAAAAAAAAAAAAAAAAAAAAA", "session"]);
    server.cli(&["SET", "other", "thing"]);
    let seen = Seen::begin(&server);
    let report = check(&server.url()).await;
    assert_eq!(report.level(), Level::Note, "{report}");
    let commands = seen.end(&server);
    let (mut of_keys, mut of_server) = (0, Vec::new());
    for command in &commands {
        let words: Vec<_> = command.split('"').skip(1).step_by(2).collect();
        let key = match words[0].to_uppercase().as_str() {
            "GET" | "SET" | "DEL" | "GETRANGE" | "DELIFEQ" | "DELEX" => words[1],
            "EVAL" | "EVALSHA" => words[3],
            name => {
                of_server.push(name.to_owned());
                continue;
            }
        };
        of_keys += 1;
        assert!(key.starts_with("shop:") && !key.contains("AAAAAAAAAAAAAAAAAAAAAA"), "{command}");
    }
    assert!(of_keys > 15, "{commands:?}");
    of_server.sort();
    of_server.dedup();
    let known = ["CLIENT", "CONFIG", "HELLO", "INFO", "TIME"];
    assert!(of_server.iter().all(|name| known.contains(&&**name)), "{of_server:?}");
    // The check leaves no key, or only keys that expire.
    for key in server.cli(&["KEYS", "*"]).lines() {
        let left: i64 = server.cli(&["PTTL", key]).parse().unwrap();
        let is_other = ["other", "shop:1:s:AAAAAAAAAAAAAAAAAAAAAA"].contains(&key);
        assert!(is_other || left <= 10_000, "{key}: {left}");
    }
    assert_eq!(server.cli(&["GET", "other"]), "thing");
    assert_eq!(server.cli(&["GET", "shop:1:s:AAAAAAAAAAAAAAAAAAAAAA"]), "session");
}

/// The commands that a server receives, as reported by the server.
struct Seen(BufReader<TcpStream>);

impl Seen {
    fn begin(server: &RedisServer) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut seen = Self(BufReader::new(stream));
        assert_eq!(seen.line(), "+OK");
        seen
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn end(mut self, server: &RedisServer) -> Vec<String> {
        server.cli(&["ECHO", "the end"]);
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if line.contains("\"the end\"") {
                return lines;
            }
            lines.push(line);
        }
    }
}

/// A password that is sent unencrypted causes a warning unless the server is on this machine. `127.1` is this
/// machine too, but does not look local.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn password_without_encryption_is_warned_of() {
    let server = RedisServer::start_with(&["--requirepass", "sesame7"]);
    assert!(all(&check(&server.url()).await, "plain").is_empty());
    let report = check(&server.url().replace("127.0.0.1", "127.1")).await;
    found(&report, "plain", Level::Warning, "without encryption");
}

#[tokio::test]
async fn expiry_of_certificate_is_reported() {
    let files = Files::new("ends");
    let authority = Authority::new(&files);
    for (days, level, words) in [
        (400, Level::Fine, "The server's certificate expires on "),
        (1, Level::Warning, "in 23 hours."),
    ] {
        let (certificate, key) = authority.certificate(&files, "server", days);
        let (_server, port) = tls_server(&authority, &certificate, &key, "no");
        let report = check(&tls_url(&authority, port)).await;
        found(&report, "certificate", level, words);
        found(&report, "commands", Level::Fine, "");
    }
}

#[tokio::test]
async fn expired_certificate_is_an_error() {
    let files = Files::new("ended");
    let authority = Authority::new(&files);
    let (certificate, key) = authority.certificate(&files, "server", 400);
    let (server, port) = tls_server(&authority, &certificate, &key, "no");
    let sessions = builder(&tls_url(&authority, port)).build().unwrap();
    assert_eq!(sessions.check().await.level(), Level::Note);
    // The existing connection continues to work.
    let (ended, its_key) = authority.certificate(&files, "ended", -1);
    let (file, key_file) = (ended.to_str().unwrap(), its_key.to_str().unwrap());
    server.cli(&["CONFIG", "SET", "tls-cert-file", file, "tls-key-file", key_file]);
    let report = sessions.check().await;
    found(&report, "certificate", Level::Error, "expired");
    found(&report, "commands", Level::Fine, "");
    let report = check(&tls_url(&authority, port)).await;
    found(&report, "unreachable", Level::Error, "expired");
    assert_eq!(report.findings().len(), 1, "{report}");
}

#[tokio::test]
async fn expiry_of_client_certificate_is_reported() {
    let files = Files::new("client");
    let authority = Authority::new(&files);
    let (certificate, key) = authority.certificate(&files, "server", 400);
    let (_server, port) = tls_server(&authority, &certificate, &key, "yes");
    for (days, level, words) in [
        (400, Level::Fine, "The client's certificate expires on "),
        (1, Level::Warning, "in 23 hours."),
        (-1, Level::Error, "The client's certificate expired on "),
    ] {
        let (certificate, key) = authority.certificate(&files, "client", days);
        let url = tls_url(&authority, port);
        let url = format!("{url}&cert={}&key={}", certificate.display(), key.display());
        let report = check(&url).await;
        let is_its = |finding: &&&Finding| finding.subject().is_empty();
        let its: Vec<_> = all(&report, "certificate");
        let its = its.iter().find(is_its).unwrap_or_else(|| panic!("{report}"));
        assert_eq!(its.level(), level, "{report}");
        assert!(its.message().contains(words), "{report}");
        let is_unreachable = !all(&report, "unreachable").is_empty();
        assert_eq!(is_unreachable, level == Level::Error, "{report}");
    }
}

/// Starts a server with this certificate. Returns the server and its TLS port.
fn tls_server(
    authority: &Authority,
    certificate: &Path,
    key: &Path,
    asks_for_certificates: &str,
) -> (RedisServer, u16) {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
    let arguments = [
        ("--tls-port", port.to_string()),
        ("--tls-auth-clients", asks_for_certificates.to_owned()),
        ("--tls-cert-file", certificate.display().to_string()),
        ("--tls-key-file", key.display().to_string()),
        ("--tls-ca-cert-file", authority.file.display().to_string()),
    ];
    let arguments: Vec<_> =
        arguments.iter().flat_map(|(name, value)| [*name, value.as_str()]).collect();
    (RedisServer::start_with(&arguments), port)
}

fn tls_url(authority: &Authority, port: u16) -> String {
    format!("rediss://localhost:{port}/?cacert={}", authority.file.display())
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(files: &Files) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = files.write("authority.crt", &issuer.pem());
        Self { issuer, file }
    }

    /// Writes a certificate for this machine and the certificate's key. The certificate expires in this many
    /// days.
    fn certificate(&self, files: &Files, name: &str, days: i64) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = files.write(&format!("{name}{days}.crt"), &certificate.pem());
        (file, files.write(&format!("{name}{days}.key"), &key.serialize_pem()))
    }
}

/// A temporary directory for the test.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let name = format!("unsticky-check-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.0.join(name);
        fs::write(&file, text).unwrap();
        file
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Checks the findings about a server that has its own compare-and-set commands.
async fn server_that_compares(server: &RedisServer, name: &str, delete: &str) {
    let report = check(&server.url()).await;
    assert_eq!(report.level(), Level::Note, "{report}");
    found(&report, "version", Level::Fine, &format!("It is {name} "));
    found(
        &report,
        "compare_and_set",
        Level::Fine,
        &format!("own commands for compare-and-set (SET IFEQ and {delete})"),
    );
    permit(server, "~shop:*", NEEDED);
    let report = check(&user_url(server)).await;
    assert_eq!(report.level(), Level::Note, "{report}");
    let note = all(&report, "permission").into_iter().find(|note| note.level() == Level::Note);
    let note = note.unwrap_or_else(|| panic!("{report}"));
    assert!(note.message().contains(&format!("may not run {delete},")), "{report}");
    found(&report, "compare_and_set", Level::Fine, "(SET IFEQ) and deletes them with a script");
}

mod valkey {
    #[tokio::test]
    async fn server_that_compares() {
        super::server_that_compares(&super::ValkeyServer::start(), "Valkey", "DELIFEQ").await;
    }
}

mod redis84 {
    #[tokio::test]
    async fn server_that_compares() {
        super::server_that_compares(&super::Redis84Server::start(), "Redis", "DELEX").await;
    }
}

#[tokio::test]
async fn proxy_that_hides_the_server_does_not_end_the_check() {
    // The proxy answers like Envoy, which reports microseconds since 1970 instead of seconds.
    let proxy = Fake::start(|command| match command.split(' ').next() {
        Some("INFO") => "-invalid request\r\n".to_owned(),
        Some("TIME") => list(["1796000000000000", "17"]),
        _ => "-ERR unsupported command\r\n".to_owned(),
    })
    .await;
    let report = check(&format!("redis://127.0.0.1:{}/", proxy.port())).await;
    let hidden = all(&report, "hidden");
    for what in ["Its version", "Whether it makes snapshots", "Its time"] {
        let is_said = hidden.iter().filter(|finding| finding.message().starts_with(what));
        assert_eq!(is_said.count(), 1, "{what}: {report}");
    }
    assert!(hidden.iter().all(|finding| finding.level() == Level::Note), "{report}");
    assert!(all(&report, "permission").is_empty(), "nothing is known about permissions: {report}");
    assert!(report.findings().iter().all(|finding| finding.code() != "unreachable"), "{report}");
    // Only the store commands show whether sessions work.
    assert!(proxy.heard("GET ") > 0 && proxy.heard("SET ") > 0, "{report}");
    found(&report, "commands", Level::Error, "A record cannot be read");
}
