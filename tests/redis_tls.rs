//! Redis over TLS: whose certificates are trusted, and for which names.

#![cfg(all(feature = "redis-tls", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::backend::patient;
use support::servers::RedisServer;
use tokio::io::AsyncWriteExt as _;
use unsticky::store::{Created, Deleted, Replaced, Store, Stored};
use unsticky::testing::random_key;
use unsticky::{Error, ErrorKind};

const HOUR: Duration = Duration::from_secs(3600);

/// Names the address to [`tls_client_process`].
const URL: &str = "UNSTICKY_TEST_URL";

#[test]
fn certificate_trusted_by_system_is_accepted() {
    let files = Files::new("good");
    let (authority, certificate) = (Authority::new(&files, "authority"), "localhost");
    let (server, port) = server(&files, &authority, certificate);
    let said = in_another_process(&authority.file, &format!("rediss://localhost:{port}/"));
    assert_eq!(said, "all is well");
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
fn server_that_wants_certificate_of_client_is_named() {
    let files = Files::new("mutual");
    let authority = Authority::new(&files, "authority");
    let arguments = certificate(&files, &authority, "localhost", |_| ());
    let (_server, port) = tls_server(&arguments, "yes");
    let said = in_another_process(&authority.file, &format!("valkeys://localhost:{port}/"));
    assert!(said.contains("CertificateRequired"), "{said}");
}

/// What the error of a load says.
async fn said(url: &str) -> String {
    let error = unsticky::connect(url).unwrap().load(&random_key()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    std::error::Error::source(&error).unwrap().to_string()
}

#[tokio::test]
async fn plain_address_of_tls_port_is_named() {
    let files = Files::new("plain");
    let authority = Authority::new(&files, "authority");
    let (_server, port) = server(&files, &authority, "localhost");
    for url in
        [format!("redis://localhost:{port}/"), format!("redis://:sesame7@localhost:{port}/1")]
    {
        let said = said(&url).await;
        let expected = format!(
            "cannot connect to redis at localhost:{port}: the server hung up during the handshake; a \
             port that speaks TLS needs rediss://"
        );
        assert_eq!(said, expected);
    }
}

#[tokio::test]
async fn tls_address_of_plain_port_is_named() {
    let server = RedisServer::start();
    let said = said(&format!("rediss://localhost:{}/", server.port())).await;
    let expected = "no answer to the TLS handshake in 400ms; if the server does not speak TLS, the \
                    address needs redis://";
    assert!(said.ends_with(expected), "{said}");
}

/// A server that says this to everybody, and hears nothing.
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
async fn answer_in_wrong_protocol_is_named() {
    // What TLS says to what is none of it: a fatal alert.
    let port = talker(b"\x15\x03\x01\x00\x02\x02\x46\n").await;
    let plain = said(&format!("redis://localhost:{port}/")).await;
    assert!(plain.ends_with("the server speaks TLS there: use rediss://"), "{plain}");
    let port = talker(b"-ERR Protocol error: unbalanced quotes in request\r\n").await;
    let tls = said(&format!("rediss://localhost:{port}/")).await;
    assert!(tls.ends_with("the server does not speak TLS there: use redis://"), "{tls}");
}

/// Where the certificates are looked for is told by the environment, which a process should not
/// change while it runs; so the store is used in a process of its own. What that said.
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

/// Not a test of its own: what the other tests run, with an environment of its own.
#[tokio::test]
#[allow(clippy::print_stdout, reason = "the other tests read it")]
async fn tls_client_process() {
    let Ok(url) = std::env::var(URL) else { return };
    let patience = Duration::from_secs(5);
    match verbs(&patient(&url, patience)).await {
        Ok(()) => println!("said: all is well"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            println!("said: {}", std::error::Error::source(&error).unwrap());
        }
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

/// A server with a certificate of the authority for the name, and its port for TLS.
fn server(files: &Files, authority: &Authority, name: &str) -> (RedisServer, u16) {
    tls_server(&certificate(files, authority, name, |_| ()), "no")
}

/// The arguments that give a server a certificate of the authority for the name.
fn certificate(
    files: &Files,
    authority: &Authority,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> Vec<String> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let certificate = files.write("server.crt", &certificate.pem());
    let key = files.write("server.key", &key.serialize_pem());
    let files = [
        ("--tls-cert-file", &certificate),
        ("--tls-key-file", &key),
        ("--tls-ca-cert-file", &authority.file),
    ];
    let words = files.map(|(name, file)| [name.to_owned(), file.to_str().unwrap().to_owned()]);
    words.concat()
}

/// A server with these further arguments, and its port for TLS.
fn tls_server(arguments: &[String], asks_for_certificates: &str) -> (RedisServer, u16) {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
    let port_text = port.to_string();
    let mut all = vec!["--tls-port", &port_text, "--tls-auth-clients", asks_for_certificates];
    all.extend(arguments.iter().map(String::as_str));
    (RedisServer::start_with(&all), port)
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
}

/// A directory that is removed at the end.
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
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
