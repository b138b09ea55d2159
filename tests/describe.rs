//! The description of a configuration.

#![cfg(all(feature = "memory", feature = "testing"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

use unsticky::store::MemoryStore;
use unsticky::{
    Audit, Builder, ConcurrentSessions, Cookie, DirectoryMode, Lifetime, OnFailedResponse,
    SameSite, Sessions,
};

fn builder() -> Builder {
    Sessions::builder(MemoryStore::new())
}

#[test]
fn describe_reports_configuration() {
    let other = builder()
        .cookie(Cookie::new("__Secure-id").domain("example.com").same_site(SameSite::Strict))
        .lifetime(
            Lifetime::nist_aal3().browser_session().refresh_after(Duration::from_millis(90_500)),
        )
        .namespace("shop")
        .epoch(7)
        .timeout(Duration::from_millis(750))
        .max_record_bytes(100_000)
        .directory(DirectoryMode::Strict)
        .concurrent_sessions(ConcurrentSessions::Reject(3))
        .commit_attempts(5)
        .command_retries(0)
        .on_failed_response(OnFailedResponse::Commit)
        .gone_status(440)
        .sign_in_page("/sign-in")
        .audit(Audit::Principal);
    let reports = [builder(), other].map(|builder| builder.build().unwrap().describe().to_string());
    let reports = reports.join("\n");
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "describe.txt"].iter().collect();
    if env::var_os("UNSTICKY_WRITE_FIXTURES").is_some() {
        fs::write(&path, &reports).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert_eq!(
        reports, expected,
        "UNSTICKY_WRITE_FIXTURES=1 writes tests/fixtures/describe.txt anew"
    );
}
