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
    assert_eq!(server.calls("set"), 2, "a create, and the one of a script");
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
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let certificate = files.write("server.crt", &certificate.pem());
    let key = files.write("server.key", &key.serialize_pem());
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
    let server = RedisServer::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        certificate.to_str().unwrap(),
        "--tls-key-file",
        key.to_str().unwrap(),
        "--tls-ca-cert-file",
        authority.file.to_str().unwrap(),
        "--tls-auth-clients",
        "no",
    ]);
    (server, port)
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
