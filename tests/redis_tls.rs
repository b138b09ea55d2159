//! Redis over TLS: which certificates are trusted, and for which names.

#![cfg(all(feature = "redis-tls", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::servers::{RedisServer, redis_program};
use support::topologies::{RedisCluster, SHARDS, eventually};
use tokio::io::AsyncWriteExt as _;
use unsticky::store::{
    ConnectError, Created, Deleted, RedisBuilder, RedisStore, Replaced, Store, Stored,
};
use unsticky::testing::random_key;
use unsticky::{Error, ErrorKind};

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(5);

/// The environment variable with the URL for [`tls_client_process`].
const URL: &str = "UNSTICKY_TEST_URL";

#[test]
fn certificate_trusted_by_system_is_accepted() {
    let files = Files::new("good");
    let (authority, certificate) = (Authority::new(&files, "authority"), "localhost");
    let (server, port) = server(&files, &authority, certificate);
    let said = in_another_process(&authority.file, &format!("rediss://localhost:{port}/"));
    assert_eq!(said, WELL);
    assert_eq!(
        server.calls("set") - server.failures("set"),
        2,
        "a create, and the one of a script"
    );
}

#[test]
fn certificate_for_another_name_is_refused() {
    let files = Files::new("name");
    let authority = Authority::new(&files, "authority");
    let (server, port) = server(&files, &authority, "redis.example");
    let said = in_another_process(&authority.file, &format!("rediss://localhost:{port}/"));
    assert!(said.contains("certificate not valid for name"), "{said}");
    assert_eq!(server.calls("set") + server.calls("get"), 0);
}

#[test]
fn certificate_from_unknown_issuer_is_refused() {
    let files = Files::new("issuer");
    let authority = Authority::new(&files, "authority");
    let stranger = Authority::new(&files, "stranger");
    let (server, port) = server(&files, &authority, "localhost");
    let said = in_another_process(&stranger.file, &format!("rediss://localhost:{port}/"));
    assert!(said.contains("UnknownIssuer"), "{said}");
    assert_eq!(server.calls("set") + server.calls("get"), 0);
}

#[test]
fn expired_certificate_is_refused() {
    let files = Files::new("expired");
    let authority = Authority::new(&files, "authority");
    let end = rcgen::date_time_ymd(2020, 1, 1);
    let arguments = certificate(&files, &authority, "localhost", |params| params.not_after = end);
    let (server, port) = tls_server(&arguments, "no");
    let said = in_another_process(&authority.file, &format!("rediss://localhost:{port}/"));
    assert!(said.contains("the TLS handshake failed: "), "{said}");
    assert!(said.contains("expired"), "{said}");
    assert_eq!(server.calls("set") + server.calls("get"), 0);
}

#[test]
fn error_names_server_that_requires_client_certificate() {
    let files = Files::new("mutual");
    let authority = Authority::new(&files, "authority");
    let arguments = certificate(&files, &authority, "localhost", |_| ());
    let (_server, port) = tls_server(&arguments, "yes");
    let said = in_another_process(&authority.file, &format!("valkeys://localhost:{port}/"));
    assert!(said.contains("CertificateRequired"), "{said}");
}

#[tokio::test]
async fn private_authority_is_trusted_for_one_store() {
    let files = Files::new("private");
    let authority = Authority::new(&files, "authority");
    let (_server, port) = server(&files, &authority, "localhost");
    let (url, file) = (format!("rediss://localhost:{port}/"), authority.file.display());
    let pem = fs::read_to_string(&authority.file).unwrap();
    let together = Authority::new(&files, "stranger").issuer.pem() + &pem;
    let named = format!("{url}?protocol=3&cacert={file}");
    for store in [
        store(&url, |builder| builder.tls_ca_file(&authority.file)),
        store(&url, |builder| builder.tls_ca_pem(&pem)),
        store(&url, |builder| builder.tls_ca_pem(&together)),
        store(&named, |builder| builder),
    ] {
        assert_eq!(outcome(&store.unwrap()).await, WELL);
    }
    let said = outcome(&store(&url, |builder| builder).unwrap()).await;
    assert!(
        said.contains("UnknownIssuer; if the server's certificate is right, name its CA"),
        "{said}"
    );
}

#[test]
fn private_authority_replaces_trust_of_system() {
    let files = Files::new("replaced");
    let (authority, stranger) =
        (Authority::new(&files, "authority"), Authority::new(&files, "stranger"));
    let (server, port) = server(&files, &authority, "localhost");
    let url = format!("rediss://localhost:{port}/?cacert={}", stranger.file.display());
    let said = in_another_process(&authority.file, &url);
    assert!(said.contains("UnknownIssuer"), "{said}");
    assert_eq!(server.calls("set") + server.calls("get"), 0);
}

#[test]
fn system_without_certificates_is_refused_at_build() {
    let files = Files::new("system");
    let garbage = files.write("garbage", "no certificate");
    for (trusted, reason) in [(files.0.join("missing"), "No such file"), (garbage, "trusts")] {
        let said = in_another_process(&trusted, "rediss://localhost/");
        assert!(said.contains("the system trusts no certificates"), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

#[tokio::test]
async fn client_certificate_is_presented() {
    let files = Files::new("client");
    let authority = Authority::new(&files, "authority");
    let arguments = certificate(&files, &authority, "localhost", |_| ());
    let (server, port) = tls_server(&arguments, "yes");
    let (certificate, key) = authority.client(&files);
    let url = format!("valkeys://localhost:{port}/?cacert={}", authority.file.display());
    let pem = [&certificate, &key].map(|file| fs::read(file).unwrap());
    let named = format!("{url}&cert={}&key={}", certificate.display(), key.display());
    for store in [
        store(&url, |builder| builder.tls_client_files(&certificate, &key)),
        store(&url, |builder| builder.tls_client_pem(&pem[0], &pem[1])),
        store(&named, |builder| builder),
    ] {
        assert_eq!(outcome(&store.unwrap()).await, WELL);
    }
    let sent = server.calls("set");
    let none = outcome(&store(&url, |builder| builder).unwrap()).await;
    assert!(none.ends_with("or cert and key in the address)"), "{none}");
    let (certificate, key) = Authority::new(&files, "stranger").client(&files);
    let strange = store(&url, |builder| builder.tls_client_files(certificate, key)).unwrap();
    let said = outcome(&strange).await;
    assert!(said.ends_with("; the server does not accept the client certificate"), "{said}");
    assert_eq!(server.calls("set"), sent);
}

#[tokio::test]
async fn certificate_for_configured_name_is_accepted() {
    let files = Files::new("sni");
    let authority = Authority::new(&files, "authority");
    let (_server, port) = server(&files, &authority, "redis.example");
    let url = format!("rediss://127.0.0.1:{port}/?cacert={}", authority.file.display());
    let named = format!("{url}&sni=redis.example");
    for store in [
        store(&url, |builder| builder.tls_server_name("redis.example")),
        store(&named, |builder| builder),
    ] {
        assert_eq!(outcome(&store.unwrap()).await, WELL);
    }
    for said in [
        outcome(&store(&url, |builder| builder).unwrap()).await,
        outcome(&store(&named, |builder| builder.tls_server_name("localhost")).unwrap()).await,
    ] {
        assert!(said.contains("certificate not valid for name"), "{said}");
        assert!(said.contains("tls_server_name"), "{said}");
        assert!(said.contains("cluster-announce-hostname"), "{said}");
    }
}

/// The nodes announce IP addresses, but their certificates contain names.
#[tokio::test]
async fn nodes_of_cluster_are_verified_by_their_names() {
    let files = Files::new("cluster");
    let authority = Authority::new(&files, "authority");
    let arguments = certificate(&files, &authority, "localhost", |_| ());
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let tls = ["--tls-cluster", "yes", "--tls-auth-clients", "no"];
    let cluster = RedisCluster::masters(&redis_program(), &[&arguments[..], &tls].concat());
    let ports: Vec<u16> = cluster.nodes().iter().map(|_| free_port()).collect();
    for (node, port) in cluster.nodes().iter().zip(&ports) {
        for name in ["tls-port", "cluster-announce-tls-port"] {
            node.cli(&["CONFIG", "SET", name, &port.to_string()]);
        }
    }
    let configure = |name: &str, value: &str| {
        for node in cluster.nodes() {
            node.cli(&["CONFIG", "SET", name, value]);
        }
    };
    let knows = |word: &str| {
        cluster
            .nodes()
            .iter()
            .all(|node| node.cli(&["CLUSTER", "NODES"]).matches(word).count() == SHARDS)
    };
    let url =
        format!("rediss+cluster://localhost:{}/?cacert={}", ports[0], authority.file.display());
    eventually("the nodes do not hear of their ports", || {
        cluster.nodes().iter().all(|node| {
            let nodes = node.cli(&["CLUSTER", "NODES"]);
            ports.iter().all(|port| nodes.contains(&format!(":{port}@")))
        })
    });
    let named = store(&url, |builder| builder.tls_server_name("localhost")).unwrap();
    for _ in 0..20 {
        assert_eq!(outcome(&named).await, WELL);
    }
    let unnamed = store(&url, |builder| builder).unwrap();
    loads_until(&unnamed, |loaded| {
        loaded.as_ref().is_err_and(|said| {
            said.contains("redis at 127.0.0.1:")
                && said.contains("certificate not valid for name")
                && said.contains("cluster-announce-hostname")
                && said.contains("tls_server_name")
        })
    })
    .await;
    configure("cluster-announce-hostname", "localhost");
    eventually("the nodes do not hear of their names", || knows(",localhost"));
    // Even the first command reaches the nodes by their names.
    for _ in 0..20 {
        assert_eq!(outcome(&store(&url, |builder| builder).unwrap()).await, WELL);
    }
}

#[tokio::test]
async fn sentinel_and_its_master_are_reached_over_tls() {
    let files = Files::new("sentinel");
    let authority = Authority::new(&files, "authority");
    let arguments = certificate(&files, &authority, "127.0.0.1", |_| ());
    let (server, port) = tls_server(&arguments, "no");
    let sentinel_port = free_port().to_string();
    let mut all = vec!["--tls-port", &sentinel_port, "--tls-auth-clients", "no"];
    all.extend(["--tls-replication", "yes"]);
    all.extend(arguments.iter().map(String::as_str));
    let sentinel = RedisServer::sentinel_with(&all);
    sentinel.cli(&["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", &port.to_string(), "1"]);
    let url = format!(
        "rediss+sentinel://127.0.0.1:{sentinel_port}/mymaster?cacert={}",
        authority.file.display()
    );
    assert_eq!(outcome(&store(&url, |builder| builder).unwrap()).await, WELL);
    assert!(server.calls("set") > 0);
    let wrong = store(&url, |builder| builder.tls_server_name("redis.example")).unwrap();
    let said = outcome(&wrong).await;
    assert!(said.contains("cannot connect to the Sentinel at 127.0.0.1:"), "{said}");
    assert!(said.contains("certificate not valid for name"), "{said}");
}

#[tokio::test]
async fn renewed_authority_is_used_by_next_connection() {
    let files = Files::new("renewed-ca");
    let old = Authority::new(&files, "authority");
    let (mut server, port) = server(&files, &old, "localhost");
    let trusted = files.copy(&old.file, "trusted.crt");
    let url = format!("rediss://localhost:{port}/");
    let store = store(&url, |builder| builder.tls_ca_file(&trusted)).unwrap();
    assert_eq!(outcome(&store).await, WELL);

    let new = Authority::new(&files, "authority");
    certificate(&files, &new, "localhost", |_| ());
    server.restart();
    loads_until(&store, |loaded| loaded.as_ref().is_err_and(|it| it.contains("name its CA"))).await;
    files.copy(&new.file, "trusted.crt");
    loads_until(&store, Result::is_ok).await;
    assert_eq!(outcome(&store).await, WELL);
}

#[tokio::test]
async fn renewed_client_certificate_is_used_by_next_connection() {
    let files = Files::new("renewed-client");
    let (authority, old) = (Authority::new(&files, "authority"), Authority::new(&files, "clients"));
    let mut arguments = certificate(&files, &authority, "localhost", |_| ());
    arguments.extend(["--tls-ca-cert-file".to_owned(), old.file.display().to_string()]);
    let (mut server, port) = tls_server(&arguments, "yes");
    let (certificate, key) = old.client(&files);
    let url = format!("rediss://localhost:{port}/?cacert={}", authority.file.display());
    let store = store(&url, |builder| builder.tls_client_files(certificate, key)).unwrap();
    assert_eq!(outcome(&store).await, WELL);

    let new = Authority::new(&files, "clients");
    server.restart();
    loads_until(&store, |loaded| loaded.as_ref().is_err_and(|it| it.contains("not accept"))).await;
    new.client(&files);
    loads_until(&store, Result::is_ok).await;
    assert_eq!(outcome(&store).await, WELL);
}

#[tokio::test]
async fn error_names_missing_file_until_it_is_restored() {
    let files = Files::new("missing");
    let authority = Authority::new(&files, "authority");
    let arguments = certificate(&files, &authority, "localhost", |_| ());
    let (server, port) = tls_server(&arguments, "yes");
    let trusted = files.copy(&authority.file, "trusted.crt");
    let (certificate, key) = authority.client(&files);
    let url = format!("rediss://localhost:{port}/");
    let store =
        store(&url, |builder| builder.tls_ca_file(&trusted).tls_client_files(&certificate, &key));
    let store = store.unwrap();
    for file in [trusted, certificate, key] {
        loads_until(&store, Result::is_ok).await;
        let away = file.with_extension("away");
        fs::rename(&file, &away).unwrap();
        // Existing connections continue to work.
        assert_eq!(outcome(&store).await, WELL);
        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        let expected = format!("{} cannot be read: No such file", file.display());
        loads_until(&store, |loaded| loaded.as_ref().is_err_and(|it| it.contains(&expected))).await;
        fs::rename(&away, &file).unwrap();
    }
    loads_until(&store, Result::is_ok).await;
}

#[test]
fn unusable_file_is_named_by_build_error() {
    let files = Files::new("unusable");
    let authority = Authority::new(&files, "authority");
    let ca = &authority.file;
    let (certificate, key) = &authority.client(&files);
    let (_, other_key) = &authority.sign(&files, "other", "other", |_| ());
    let pem = fs::read_to_string(key).unwrap();
    let secret = pem.lines().nth(1).unwrap();
    let missing = &files.0.join("missing");
    let garbage = &files.write("garbage", secret);
    let cut = &files.write("cut", &pem[..pem.len() - 40]);
    let text = |what| format!("-----BEGIN {what}-----\naGk=\n-----END {what}-----\n");
    let no_der = &files.write("no-der", &text("CERTIFICATE"));
    let no_key = &files.write("no-key", &text("PRIVATE KEY"));
    let encrypted = &files.write("encrypted", &pem.replace("PRIVATE", "ENCRYPTED PRIVATE"));
    let pem_path = &PathBuf::from(&pem);
    for (ca, client, named, reason) in [
        (missing, None, missing, "cannot be read: No such file"),
        (&files.0, None, &files.0, "cannot be read: Is a directory"),
        (garbage, None, garbage, "no certificate"),
        (key, None, key, "no certificate"),
        (cut, None, cut, "is not valid PEM"),
        (no_der, None, no_der, "BadEncoding"),
        (ca, Some((missing, key)), missing, "the client's certificate: "),
        (ca, Some((garbage, key)), garbage, "no certificate"),
        (ca, Some((no_der, key)), no_der, "BadEncoding"),
        (ca, Some((certificate, missing)), missing, "the client's key: "),
        (ca, Some((certificate, garbage)), garbage, "no unencrypted private key"),
        (ca, Some((certificate, encrypted)), encrypted, "no unencrypted private key"),
        (ca, Some((certificate, cut)), cut, "is not valid PEM"),
        (ca, Some((certificate, no_key)), no_key, "private key"),
        (ca, Some((certificate, other_key)), other_key, "does not belong to the certificate"),
        (ca, Some((certificate, pem_path)), &PathBuf::from("PEM text"), "cannot be read"),
    ] {
        let built = store("rediss://localhost/", |builder| match client {
            None => builder.tls_ca_file(ca),
            Some((certificate, key)) => builder.tls_ca_file(ca).tls_client_files(certificate, key),
        });
        let mut url = format!("rediss://localhost/?cacert={}", encoded(ca));
        if let Some((certificate, key)) = client {
            url = format!("{url}&cert={}&key={}", encoded(certificate), encoded(key));
        }
        for error in [built.unwrap_err(), unsticky::connect(&url).unwrap_err()] {
            assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
            let said = format!("{error} {error:?}");
            assert!(said.contains(named.to_str().unwrap()), "{said}");
            assert!(said.contains(reason), "{said}");
            assert!(!said.contains(secret), "{said}");
        }
    }
}

/// Returns the path with every byte percent-encoded.
fn encoded(path: &Path) -> String {
    path.to_str().unwrap().bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn unusable_bytes_and_names_are_refused_at_build() {
    let files = Files::new("bytes");
    let authority = Authority::new(&files, "authority");
    let (certificate, key) = authority.client(&files);
    let [certificate, key] = [certificate, key].map(|file| fs::read_to_string(file).unwrap());
    let settings: [(&str, &dyn Fn(RedisBuilder) -> RedisBuilder); 4] = [
        ("the given text has no certificate", &|builder| builder.tls_ca_pem("")),
        ("the given text has no certificate", &|builder| builder.tls_client_pem(&key, &key)),
        ("the given text has no unencrypted", &|builder| {
            builder.tls_client_pem(&certificate, &certificate)
        }),
        ("neither a host name", &|builder| builder.tls_server_name("a b")),
    ];
    for (reason, configure) in settings {
        let error = store("rediss://localhost/", configure).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    let error = unsticky::connect("rediss://localhost/?sni=a%20b").unwrap_err();
    assert!(error.to_string().contains("neither a host name"), "{error}");
}

#[test]
fn tls_settings_without_tls_are_refused_at_build() {
    let settings: [&dyn Fn(RedisBuilder) -> RedisBuilder; 5] = [
        &|builder| builder.tls_ca_file("/ca.pem"),
        &|builder| builder.tls_ca_pem("ca"),
        &|builder| builder.tls_client_files("/certificate.pem", "/key.pem"),
        &|builder| builder.tls_client_pem("certificate", "key"),
        &|builder| builder.tls_server_name("redis.example"),
    ];
    for url in ["redis://localhost", "valkey://localhost", "unix:///r.sock"] {
        assert!(store(url, |builder| builder).is_ok());
        for configure in settings {
            let error = store(url, configure).unwrap_err();
            assert!(error.to_string().contains("write rediss://"), "{error}");
        }
    }
}

#[test]
fn debug_prints_no_keys() {
    let files = Files::new("debug");
    let authority = Authority::new(&files, "authority");
    let (certificate, key) = authority.client(&files);
    let [certificate_pem, key_pem] =
        [&certificate, &key].map(|file| fs::read_to_string(file).unwrap());
    let builder =
        || RedisStore::builder("rediss://localhost").unwrap().tls_ca_file(&authority.file);
    let by_bytes = builder().tls_client_pem(&certificate_pem, &key_pem);
    let by_path = builder().tls_client_files(&certificate, &key_pem);
    let store = by_bytes.clone().build().unwrap();
    let printed = format!("{by_bytes:?} {by_path:?} {store:?}");
    assert!(printed.contains(authority.file.to_str().unwrap()), "{printed}");
    for secret in key_pem.lines().chain(certificate_pem.lines()) {
        assert!(!printed.contains(secret), "{printed}");
    }
    let bytes = format!("{:?}", &key_pem.as_bytes()[40..60]);
    assert!(!printed.contains(bytes.trim_matches(['[', ']'])), "{printed}");
}

/// Returns the error message of a load that fails.
async fn said(url: &str) -> String {
    let error = unsticky::connect(url).unwrap().load(&random_key()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    std::error::Error::source(&error).unwrap().to_string()
}

#[tokio::test]
async fn error_names_plain_address_of_tls_port() {
    let files = Files::new("plain");
    let authority = Authority::new(&files, "authority");
    let (_server, port) = server(&files, &authority, "localhost");
    for url in
        [format!("redis://localhost:{port}/"), format!("redis://:sesame7@localhost:{port}/1")]
    {
        let said = said(&url).await;
        let expected = format!(
            "cannot connect to redis at localhost:{port}: the server hung up during the handshake; a \
             TLS port needs rediss:// in the address"
        );
        assert_eq!(said, expected);
    }
}

#[tokio::test]
async fn error_names_tls_address_of_plain_port() {
    let server = RedisServer::start();
    let said = said(&format!("rediss://localhost:{}/", server.port())).await;
    let expected = "no answer to the TLS handshake in 400ms; if the server does not speak TLS, write \
                    redis:// in place of rediss:// in the address";
    assert!(said.ends_with(expected), "{said}");
}

/// Starts a server that sends these bytes to every client and reads nothing.
async fn talker(says: &'static [u8]) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(says).await.unwrap();
            open.push(stream);
        }
    });
    port
}

#[tokio::test]
async fn error_names_answer_in_wrong_protocol() {
    // A TLS server answers a client without TLS with a fatal alert.
    let port = talker(b"\x15\x03\x01\x00\x02\x02\x46\n").await;
    let of = async |url: String| outcome(&store(&url, |builder| builder).unwrap()).await;
    let plain = of(format!("redis://localhost:{port}/")).await;
    assert!(plain.ends_with("the server speaks TLS there: use rediss://"), "{plain}");
    let port = talker(b"-ERR Protocol error: unbalanced quotes in request\r\n").await;
    let tls = of(format!("rediss://localhost:{port}/")).await;
    assert!(tls.ends_with("the server does not speak TLS there: use redis://"), "{tls}");
}

/// Uses the store in a separate process and returns that process's output. The environment determines
/// where the trusted certificates are, and a process should not change its environment while it runs.
fn in_another_process(trusted: &Path, url: &str) -> String {
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .args(["--exact", "tls_client_process", "--nocapture"])
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .env(URL, url)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let said = text.lines().find_map(|line| line.split_once("said: "));
    said.unwrap_or_else(|| panic!("{text}\n{errors}")).1.to_owned()
}

/// Not a test in itself: other tests run it as a process with its own environment.
#[tokio::test]
#[allow(clippy::print_stdout, reason = "the other tests read it")]
async fn tls_client_process() {
    let Ok(url) = std::env::var(URL) else { return };
    match store(&url, |builder| builder) {
        Ok(store) => println!("said: {}", outcome(&store).await),
        Err(error) => println!("said: {error}"),
    }
}

/// Opens a store with long time limits.
fn store(
    url: &str,
    configure: impl FnOnce(RedisBuilder) -> RedisBuilder,
) -> Result<RedisStore, ConnectError> {
    let builder = configure(RedisStore::builder(url)?);
    builder.connect_timeout(PATIENCE).response_timeout(PATIENCE).build()
}

/// Uses all verbs of the store. Returns the result as text.
async fn outcome(store: &dyn Store) -> String {
    match verbs(store).await {
        Ok(()) => WELL.to_owned(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            std::error::Error::source(&error).unwrap().to_string()
        }
    }
}

const WELL: &str = "all is well";

/// Repeats a load until its result is as wanted: after a connection has closed, one more command may
/// fail.
async fn loads_until(store: &dyn Store, wanted: impl Fn(&Result<(), String>) -> bool) {
    let begun = Instant::now();
    loop {
        let loaded = store.load(&random_key()).await.map(drop).map_err(|error| {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            std::error::Error::source(&error).unwrap().to_string()
        });
        if wanted(&loaded) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{loaded:?}");
    }
}

async fn verbs(store: &dyn Store) -> Result<(), Error> {
    let key = random_key();
    let (old, new) = (Bytes::from_static(b"11111111old"), Bytes::from_static(b"22222222new"));
    let created = store.create(&key, old.clone(), HOUR).await?;
    let Created::Created(version) = created else { panic!("{created:?}") };
    let replaced = store.replace(&key, new.clone(), HOUR, &Stored::new(old, version)).await?;
    let Replaced::Replaced(version) = replaced else { panic!("{replaced:?}") };
    let stored = Stored::new(new, version);
    assert_eq!(store.load(&key).await?.as_ref(), Some(&stored));
    assert_eq!(store.delete(&key, Some(&stored)).await?, Deleted::Deleted);
    Ok(())
}

/// Starts a server whose certificate from this authority is for `name`. Also returns its port for TLS.
fn server(files: &Files, authority: &Authority, name: &str) -> (RedisServer, u16) {
    tls_server(&certificate(files, authority, name, |_| ()), "no")
}

/// Returns the arguments that give a server this authority's certificate for `name`.
fn certificate(
    files: &Files,
    authority: &Authority,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> Vec<String> {
    let (certificate, key) = authority.sign(files, "server", name, change);
    let files = [
        ("--tls-cert-file", &certificate),
        ("--tls-key-file", &key),
        ("--tls-ca-cert-file", &authority.file),
    ];
    let words = files.map(|(name, file)| [name.to_owned(), file.to_str().unwrap().to_owned()]);
    words.concat()
}

/// Starts a server with TLS and these additional arguments. Also returns its port for TLS.
fn tls_server(arguments: &[String], asks_for_certificates: &str) -> (RedisServer, u16) {
    let port = free_port();
    let port_text = port.to_string();
    let mut all = vec!["--tls-port", &port_text, "--tls-auth-clients", asks_for_certificates];
    all.extend(arguments.iter().map(String::as_str));
    (RedisServer::start_with(&all), port)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port()
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(files: &Files, name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = files.write(&format!("{name}.crt"), &issuer.pem());
        Self { issuer, file }
    }

    /// Writes a certificate for `name`, and its key.
    fn sign(
        &self,
        files: &Files,
        file: &str,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let certificate = files.write(&format!("{file}.crt"), &certificate.pem());
        (certificate, files.write(&format!("{file}.key"), &key.serialize_pem()))
    }

    /// Writes a client certificate and its key.
    fn client(&self, files: &Files) -> (PathBuf, PathBuf) {
        self.sign(files, "client", "shop", |_| ())
    }
}

/// A temporary directory, which is removed when dropped.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let name = format!("unsticky-tls-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.0.join(name);
        fs::write(&file, text).unwrap();
        file
    }

    fn copy(&self, from: &Path, name: &str) -> PathBuf {
        self.write(name, &fs::read_to_string(from).unwrap())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
