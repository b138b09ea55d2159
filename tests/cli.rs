//! The `unsticky` command used alongside an application: what it lists, shows and revokes, and what it never
//! prints.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::json;
use sha2::Digest as _;
use support::backend::{Backend, on_each_server, on_servers};
use support::command::{Ran, Unsticky};
use support::proxy::{Mode, Proxy};
use support::servers::{MemcachedServer, RedisServer};
use support::visit::{sign_in, visit};
use time::OffsetDateTime;
use unsticky::{
    Builder, Clock, Cookie, DirectoryMode, ErrorKind, Key, Level, Session, SessionId, Sessions,
    SignIn,
};

const CART: Key<Vec<String>> = Key::new("cart");
const THEME: Key<String> = Key::new("theme").survives_sign_in();
const COOKIE: &str = "shop-id";
const UNKNOWN: &str = "AAECAwQFBgcICQoLDA0ODw";

/// An application, and the URL of its store.
struct Application {
    sessions: Sessions,
    url: String,
}

impl Application {
    fn new(url: String) -> Self {
        Self::with(url, |builder| builder)
    }

    fn with(url: String, configure: impl FnOnce(Builder) -> Builder) -> Self {
        let builder = Sessions::builder(unsticky::connect(&url).unwrap());
        let builder = builder.cookie(Cookie::new(COOKIE)).namespace("shop").epoch(7);
        // Other tests may keep the machine busy.
        let builder = builder.timeout(Duration::from_secs(10));
        Self { sessions: configure(builder).build().unwrap(), url }
    }

    /// Returns the command with these arguments and the application's configuration.
    fn command(&self, arguments: &[&str]) -> Unsticky {
        let configured = ["--namespace", "shop", "--cookie", COOKIE, "--epoch", "7"];
        let patient = ["--timeout", "10s"];
        let arguments = [&arguments[..1], &configured, &patient, &arguments[1..]].concat();
        Unsticky::new(arguments).env("SESSION_URL", &self.url)
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).run()
    }

    async fn sign_in(&self, sign_in: SignIn) -> String {
        let sign_in = async |session: Session| session.sign_in_with(sign_in);
        visit(&self.sessions, "", sign_in).await.cookie()
    }

    /// Creates an anonymous session.
    async fn arrive(&self) -> String {
        let fill = async |session: Session| session.insert(THEME, &"dark".to_owned());
        visit(&self.sessions, "", fill).await.cookie()
    }

    /// Returns the public id of a cookie's session, or `None` if there is no session.
    async fn id(&self, cookie: &str) -> Option<SessionId> {
        visit(&self.sessions, cookie, async |session: Session| Ok(session.id())).await.ok()
    }
}

/// Returns the event lines on standard error.
fn events(ran: &Ran) -> Vec<&str> {
    ran.stderr.lines().filter(|line| line.contains("event=")).collect()
}

/// Returns the digest that identifies a principal.
fn digest(principal: &[u8]) -> [u8; 32] {
    let length = u64::try_from(COOKIE.len()).unwrap().to_be_bytes();
    sha2::Sha256::new()
        .chain_update(length)
        .chain_update(COOKIE)
        .chain_update(principal)
        .finalize()
        .into()
}

fn base64_of(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

on_each_server!(
    sessions_are_listed_as_application_lists_them,
    principal_is_read_from_standard_input,
    session_is_shown_with_its_times_and_keys,
    anonymous_session_is_shown_and_revoked,
    revoked_session_is_dead_in_application,
    revocation_of_all_ends_sign_ins_under_way,
    expired_session_is_shown_and_removed,
);

on_servers!([cluster, sentinel]: {
    revoked_session_is_dead_in_application,
    revocation_of_all_ends_sign_ins_under_way,
});

async fn sessions_are_listed_as_application_lists_them(on: Backend) {
    let application = Application::new(on.url());
    application.sign_in(SignIn::new("alice")).await;
    let label = "Firefox\n\u{1b}[31m on\u{202e} Linux";
    application.sign_in(SignIn::new("alice").label(label)).await;
    application.sign_in(SignIn::new("bob")).await;

    let listed = application.sessions.of("alice").list().await.unwrap();
    let ran = application.run(&["sessions", "alice", "--json"]);
    assert_eq!(ran.json(0), serde_json::to_value(&listed).unwrap());
    assert_eq!(ran.stderr, "");

    let ran = application.run(&["sessions", "alice"]);
    let lines: Vec<_> = ran.with_status(0).lines().collect();
    let columns: Vec<_> = lines[0].split("  ").filter(|cell| !cell.is_empty()).collect();
    let columns: Vec<_> = columns.into_iter().map(str::trim).collect();
    assert_eq!(columns, ["ID", "SIGNED IN", "LAST SEEN", "EXPIRES", "LABEL"]);
    assert_eq!(lines.len(), 3);
    for (line, session) in lines[1..].iter().zip(&listed) {
        assert!(line.starts_with(&format!("{}  20", session.id)), "{line}");
        assert_eq!(line.matches('Z').count() - session.id.to_string().matches('Z').count(), 3);
    }
    assert!(lines[1].ends_with("  Firefox  [31m on  Linux"), "{}", lines[1]);

    let nobody = application.run(&["sessions", "carol"]);
    assert_eq!(nobody.with_status(1), "The principal has no sessions.\n");
    assert_eq!(application.run(&["sessions", "carol", "--json"]).json(1), json!([]));
    for other in [["--namespace", "other"], ["--cookie", "other-id"], ["--epoch", "8"]] {
        let configured = ["--namespace", "shop", "--cookie", COOKIE, "--epoch", "7"];
        let configured = configured.chunks(2).filter(|pair| pair[0] != other[0]).flatten();
        let arguments = ["sessions", "alice"].iter().chain(configured).chain(&other);
        let ran = Unsticky::new(arguments).env("SESSION_URL", &application.url).run();
        assert_eq!(ran.with_status(1), "The principal has no sessions.\n", "{other:?}");
    }
}

async fn principal_is_read_from_standard_input(on: Backend) {
    let application = Application::new(on.url());
    application.sign_in(SignIn::new("alice und bob")).await;
    for arguments in [&["sessions", "--json"][..], &["sessions", "-", "--json"]] {
        for line in ["alice und bob", "alice und bob\n", "alice und bob\r\n"] {
            let ran = application.command(arguments).input(line).run();
            assert_eq!(ran.json(0).as_array().unwrap().len(), 1, "{arguments:?} {line:?}");
        }
    }
    for arguments in [&["revoke", "--json", "--all"][..], &["revoke", "--json", "--all", "-"]] {
        let ran = application.command(arguments).input("alice und bob\n").run();
        assert_eq!(ran.json(0)["count"], json!(1), "{arguments:?}");
        application.sign_in(SignIn::new("alice und bob")).await;
    }
}

async fn session_is_shown_with_its_times_and_keys(on: Backend) {
    let application = Application::new(on.url());
    let cookie = application.sign_in(SignIn::new("alice").label("Firefox")).await;
    let fill = async |session: Session| {
        session.insert(CART, &vec!["tea\n".to_owned()])?;
        session.insert(THEME, &"dark".to_owned())?;
        session.flash(Level::Info, "saved")
    };
    visit(&application.sessions, &cookie, fill).await.ok();
    let id = application.id(&cookie).await.unwrap().to_string();
    let alice = application.sessions.of("alice");
    let listed = &serde_json::to_value(alice.list().await.unwrap()).unwrap()[0];

    let shown = application.run(&["show", &id, "--json"]).json(0);
    for field in ["id", "created", "signed_in_at", "last_seen", "expires_at", "label"] {
        assert_eq!(shown[field], listed[field], "{field}");
    }
    assert_eq!(shown["idle_deadline"], shown["expires_at"]);
    assert!(shown["absolute_deadline"].as_str() > shown["idle_deadline"].as_str(), "{shown}");
    let told = [&shown["principal"], &shown["listed"], &shown["expired"]];
    assert_eq!(told, [&json!("alice"), &json!(true), &json!(false)]);
    let value = |key: &str, bytes: usize, survives: bool| json!({ "key": key, "bytes": bytes, "survives_sign_in": survives });
    assert_eq!(
        shown["values"],
        json!([
            value("cart", 9, false),
            value("theme", 6, true),
            value("unsticky.flash", 18, true)
        ])
    );
    let with_values = application.run(&["show", &id, "--json", "--values"]).json(0);
    let values = with_values["values"].as_array().unwrap().iter();
    let values: Vec<_> = values.map(|value| value["json"].as_str().unwrap()).collect();
    assert_eq!(values, [r#"["tea\n"]"#, r#""dark""#, r#"[["info","saved"]]"#]);

    let ran = application.run(&["show", &id, "--actor", "carol"]);
    let text = ran.with_status(0);
    for line in [
        format!("id                 {id}"),
        "principal          alice".to_owned(),
        "directory          lists it".to_owned(),
        "label              Firefox".to_owned(),
        format!("expires            {}", shown["expires_at"].as_str().unwrap()),
        "values             3".to_owned(),
        "  cart                  9 bytes".to_owned(),
        "  theme                 6 bytes  kept at sign-in".to_owned(),
    ] {
        assert!(text.lines().any(|printed| printed == line), "{line}\n{text}");
    }
    assert!(!text.contains("dark"), "{text}");
    let [event] = events(&ran)[..] else { panic!("{ran:?}") };
    let who = base64_of(&digest(b"alice"));
    let expected = format!(r#"event="opened" id={id} principal="{who}" actor="carol""#);
    assert!(event.ends_with(&expected) && event.contains(" INFO unsticky: "), "{event}");
    let text = application.run(&["show", &id, "--values"]);
    assert!(text.with_status(0).contains("\n    \"dark\"\n"), "{text:?}");

    let unknown = application.run(&["show", UNKNOWN]);
    assert_eq!(unknown.with_status(1), "No session has this id.\n");
    assert_eq!(unknown.stderr, "");
    assert_eq!(application.run(&["show", UNKNOWN, "--json"]).json(1), json!(null));
}

async fn anonymous_session_is_shown_and_revoked(on: Backend) {
    let application = Application::new(on.url());
    let cookie = application.arrive().await;
    let id = application.id(&cookie).await.unwrap().to_string();
    let shown = application.run(&["show", &id, "--json"]).json(0);
    let nothing = json!(null);
    for field in ["principal", "listed", "label", "signed_in_at"] {
        assert_eq!(shown[field], nothing, "{field}");
    }
    let ran = application.run(&["show", &id]);
    assert!(
        ran.with_status(0).contains("\nprincipal          none (no user is signed in)\n"),
        "{ran:?}"
    );
    let ran = application.run(&["revoke", &id, "--actor", "carol"]);
    assert_eq!(ran.with_status(0), format!("{id}  revoked\n"));
    let [event] = events(&ran)[..] else { panic!("{ran:?}") };
    let expected =
        format!(r#"event="revoked" id={id} principal="-" label="-" actor="carol" reason=revoked"#);
    assert!(event.ends_with(&expected), "{event}");
    assert_eq!(application.id(&cookie).await, None);
    assert_eq!(application.run(&["revoke", &id]).with_status(1), format!("{id}  not found\n"));
}

async fn revoked_session_is_dead_in_application(on: Backend) {
    let application = Application::new(on.url());
    let mut cookies = Vec::new();
    for principal in ["alice", "alice", "bob"] {
        cookies.push(application.sign_in(SignIn::new(principal).label("Fire\tfox")).await);
    }
    let mut ids = Vec::new();
    for cookie in &cookies {
        ids.push(application.id(cookie).await.unwrap().to_string());
    }
    let ran = application
        .command(&["revoke", &ids[0], UNKNOWN, &ids[2], &ids[0], "--audit", "principal"])
        .env("USER", "dave")
        .run();
    // Each session is revoked once, even if its id is given several times.
    let expected = [(&*ids[0], "revoked"), (UNKNOWN, "not found"), (&*ids[2], "revoked")];
    let expected = expected.map(|(id, outcome)| format!("{id}  {outcome}\n")).concat();
    assert_eq!(ran.with_status(1), expected);
    let lines = [("alice", &ids[0]), ("bob", &ids[2])].map(|(principal, id)| {
        format!(r#"event="revoked" id={id} principal="{principal}" label="Fire fox" actor="dave" reason=revoked"#)
    });
    let events = events(&ran);
    assert_eq!(events.len(), 2, "{ran:?}");
    assert!(events.iter().zip(&lines).all(|(event, line)| event.ends_with(line)), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 2);
    for (cookie, is_alive) in cookies.iter().zip([false, true, false]) {
        let who = async |session: Session| Ok(session.principal());
        let who = visit(&application.sessions, cookie, who).await.ok();
        assert_eq!(who.is_some(), is_alive);
    }
    let ran = application.run(&["revoke", &ids[1], &ids[2], "--json"]);
    assert_eq!(
        ran.json(1),
        json!([
            { "id": ids[1], "outcome": "revoked", "error": null },
            { "id": ids[2], "outcome": "not_found", "error": null },
        ])
    );
    assert_eq!(application.id(&cookies[1]).await, None);
}

async fn revocation_of_all_ends_sign_ins_under_way(on: Backend) {
    let application = Application::new(on.url());
    // The principal has never signed in, or the operator has misspelt the name.
    let ran = application.run(&["revoke", "--all", "alice"]);
    let text = ran.with_status(1);
    assert!(text.starts_with("This principal has no directory"), "{text}");
    assert!(text.contains("--namespace") && !text.contains("complete"), "{text}");
    assert!(events(&ran).len() == 1 && ran.stderr.contains("event=\"all_revoked\""), "{ran:?}");

    application.sign_in(SignIn::new("bob")).await;
    let mut cookies = Vec::new();
    for _ in 0..2 {
        cookies.push(application.sign_in(SignIn::new("bob")).await);
    }
    let begun = application.sessions.of("bob").begin_sign_in().await.unwrap();
    let ran = application.run(&["revoke", "--all", "bob", "--actor", "carol"]);
    let text = ran.with_status(0);
    assert!(text.starts_with("3 sessions were revoked, and sign-ins"), "{text}");
    assert!(text.contains("The directory is known to be complete"), "{text}");
    let events = events(&ran);
    let is_told = |event: &&str| event.ends_with(r#"label="-" actor="carol" reason=all"#);
    assert!(events.len() == 4 && events[..3].iter().all(is_told), "{ran:?}");
    assert!(events[3].contains("all_revoked"), "{ran:?}");
    assert!(events[3].ends_with(r#"actor="carol" count=3 found=true reason=all"#), "{ran:?}");
    for cookie in cookies {
        assert_eq!(application.id(&cookie).await, None);
    }
    let sign_in = async |session: Session| session.sign_in_with(begun);
    let late = visit(&application.sessions, "", sign_in).await;
    assert_eq!(late.failure(), Some(ErrorKind::Revoked));
    let ran = application.run(&["revoke", "--all", "bob", "--json"]);
    assert_eq!(ran.json(0), json!({ "count": 0, "complete": true, "found": true }));
}

/// A clock that is several hours behind. Records that are dated by this clock have already expired, but the
/// store still has them.
#[derive(Debug)]
struct HoursAgo(u32);

impl Clock for HoursAgo {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() - Duration::from_secs(3600) * self.0
    }
}

async fn expired_session_is_shown_and_removed(on: Backend) {
    let application = Application::with(on.url(), |builder| builder.clock(HoursAgo(2)));
    for cookie in [application.sign_in(SignIn::new("alice")).await, application.arrive().await] {
        let id = application.id(&cookie).await.unwrap().to_string();
        let ran = application.run(&["show", &id]);
        assert!(ran.with_status(0).contains("Z; the store still has the record\n"), "{ran:?}");
        assert_eq!(application.run(&["show", &id, "--json"]).json(0)["expired"], json!(true));
        assert_eq!(application.run(&["revoke", &id]).with_status(0), format!("{id}  expired\n"));
        assert_eq!(application.run(&["show", &id]).status, Some(1));
    }
}

#[tokio::test]
async fn session_that_directory_has_lost_is_revoked_by_its_id() {
    let server = RedisServer::start();
    let application = Application::new(server.url());
    for (strict, standing) in [
        (&[][..], "directory          does not list it\n"),
        (
            &["--strict"],
            "directory          does not list it, so the session is invalid in strict mode\n",
        ),
    ] {
        let cookie = application.sign_in(SignIn::new("alice")).await;
        let id = application.id(&cookie).await.unwrap().to_string();
        let directory = format!("shop:7:d:{}", base64_of(&digest(b"alice")));
        assert_eq!(server.cli(&["DEL", &directory]), "1");
        let ran = application.run(&[&["show", &id], strict].concat());
        assert!(ran.with_status(0).contains(standing), "{ran:?}");
        assert_eq!(application.run(&["sessions", "alice"]).status, Some(1));
        let ran = application.run(&[&["revoke", &id], strict].concat());
        assert_eq!(ran.with_status(0), format!("{id}  revoked\n"));
        assert_eq!(events(&ran).len(), 1, "{ran:?}");
        assert_eq!(application.id(&cookie).await, None);
    }
}

#[tokio::test]
async fn sessions_on_each_server_of_pool_are_listed_and_revoked() {
    let servers = [(); 3].map(|()| MemcachedServer::start());
    let addresses = servers.each_ref().map(MemcachedServer::address).join(",");
    let application = Application::new(format!("memcached://{addresses}"));
    for _ in 0..20 {
        application.sign_in(SignIn::new("alice")).await;
    }
    let in_use = servers.iter().filter(|server| server.stat("curr_items") > 0);
    assert!(in_use.count() > 1, "a single server has all sessions");
    let ran = application.run(&["sessions", "alice", "--json"]);
    assert_eq!(ran.json(0).as_array().unwrap().len(), 20);
    let ran = application.run(&["revoke", "--all", "alice", "--json"]);
    assert_eq!(ran.json(0), json!({ "count": 20, "complete": true, "found": true }));
    assert_eq!(application.sessions.of("alice").count().await.unwrap(), 0);
}

/// With `--strict`, the command treats sessions as an application in strict mode does.
#[tokio::test]
async fn strict_mode_is_that_of_application() {
    let server = RedisServer::start();
    let application =
        Application::with(server.url(), |builder| builder.directory(DirectoryMode::Strict));
    let cookie = application.sign_in(SignIn::new("alice")).await;
    // If the directory does not exist, the command does not claim that the revocation is complete.
    let ran = application.run(&["revoke", "--all", "bob", "--strict", "--json"]);
    assert_eq!(ran.json(1), json!({ "count": 0, "complete": false, "found": false }));
    let id = application.id(&cookie).await.unwrap().to_string();
    assert_eq!(
        application.run(&["show", &id, "--strict", "--json"]).json(0)["listed"],
        json!(true)
    );
    assert_eq!(application.run(&["revoke", &id, "--strict"]).status, Some(0));
    assert_eq!(application.id(&cookie).await, None);
}

#[tokio::test]
async fn what_cannot_be_decoded_is_an_error_and_stops_no_other_revocation() {
    let server = RedisServer::start();
    let application = Application::new(server.url());
    for (record, kind, reason) in [
        ("garbage", "corrupt", "the session record could not be decoded"),
        ("tag-tag-\u{2}s", "newer_format", "the session was written by a newer release"),
    ] {
        let mut ids = Vec::new();
        for _ in 0..3 {
            let cookie = application.sign_in(SignIn::new("alice")).await;
            ids.push(application.id(&cookie).await.unwrap().to_string());
        }
        server.cli(&["SET", &format!("shop:7:s:{}", ids[1]), record]);
        let ran = application.run(&["show", &ids[1]]);
        assert_eq!(ran.with_status(3), "");
        assert!(ran.stderr.ends_with(&format!("unsticky: {reason}\n")), "{ran:?}");
        let all = ["revoke", &ids[0], &ids[1], &ids[2], "--json"];
        let ran = application.run(&all);
        assert_eq!(
            ran.json(3),
            json!([
                { "id": ids[0], "outcome": "revoked", "error": null },
                { "id": ids[1], "outcome": "failed", "error": kind },
                { "id": ids[2], "outcome": "revoked", "error": null },
            ])
        );
        let line = format!("unsticky: 1 of 3 sessions could not be revoked: {reason}\n");
        assert!(ran.stderr.ends_with(&line), "{ran:?}");
        let ran = application.run(&all[..4]);
        let outcomes = ["not found", "failed", "not found"];
        let lines = ids.iter().zip(outcomes).map(|(id, outcome)| format!("{id}  {outcome}\n"));
        assert_eq!(ran.with_status(3), lines.collect::<String>());
        assert_eq!(server.cli(&["GET", &format!("shop:7:s:{}", ids[1])]), record);
        server.cli(&["FLUSHALL"]);
    }
    // A directory that cannot be decoded does not hide a session.
    let cookie = application.sign_in(SignIn::new("alice")).await;
    let id = application.id(&cookie).await.unwrap().to_string();
    server.cli(&["SET", &format!("shop:7:d:{}", base64_of(&digest(b"alice"))), "garbage"]);
    let ran = application.run(&["show", &id]);
    assert!(ran.with_status(0).contains("directory          cannot be decoded\n"), "{ran:?}");
    assert_eq!(application.run(&["sessions", "alice"]).with_status(3), "");
    // Such a session can also be revoked.
    assert_eq!(application.run(&["revoke", &id]).with_status(0), format!("{id}  revoked\n"));
    assert_eq!(application.id(&cookie).await, None);
}

/// The time limit also applies to connections. On this slow line, one round trip takes longer than the
/// library's default timeout for connecting.
#[tokio::test(flavor = "multi_thread")]
async fn time_limit_is_that_of_connections_as_well() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    proxy.set(Mode::Delay(Duration::from_millis(300)));
    let url = format!("redis://127.0.0.1:{}/", proxy.port());
    let list = |limit| ["sessions", "alice", "--timeout", limit];
    let patient = Unsticky::new(list("10s")).env("SESSION_URL", &url).run();
    assert_eq!(patient.with_status(1), "The principal has no sessions.\n");
    let hasty = Unsticky::new(list("1s")).env("SESSION_URL", &url).run();
    assert_eq!(hasty.status, Some(3), "{hasty:?}");
}

#[tokio::test]
async fn ids_are_validated_before_any_is_revoked() {
    let server = RedisServer::start();
    let application = Application::new(server.url());
    let cookie = application.sign_in(SignIn::new("alice")).await;
    let id = application.id(&cookie).await.unwrap().to_string();
    let ran = application.run(&["revoke", &id, "no-id"]);
    assert_eq!(ran.with_status(2), "");
    assert_eq!(application.id(&cookie).await.map(|id| id.to_string()), Some(id));
    // An id may begin with a hyphen, like an option.
    for id in ["-AECAwQFBgcICQoLDA0ODw", "--ECAwQFBgcICQoLDA0ODw", "-hECAwQFBgcICQoLDA0ODw"] {
        assert_eq!(application.run(&["revoke", id]).with_status(1), format!("{id}  not found\n"));
        assert_eq!(application.run(&["show", id, "--json"]).json(1), json!(null));
    }
}

/// Events show the principal in the form that `--audit` selects, and take the actor from `--actor`, `USER` or
/// `LOGNAME`.
#[tokio::test]
async fn actor_and_principal_are_told_as_asked_for() {
    let server = RedisServer::start();
    let application = Application::new(server.url());
    let cookie = application.sign_in(SignIn::new("al\u{1b}ice")).await;
    let id = application.id(&cookie).await.unwrap().to_string();
    let digest = base64_of(&digest("al\u{1b}ice".as_bytes()));
    for (audit, principal) in [
        (None, &*digest),
        (Some("digest"), &*digest),
        (Some("principal"), "al ice"),
        (Some("nothing"), "-"),
    ] {
        for (arguments, environment, actor) in [
            (&["--actor", "carol"][..], &[("USER", "dave")][..], "carol"),
            (&[], &[("USER", "dave"), ("LOGNAME", "erin")], "dave"),
            (&[], &[("LOGNAME", "erin")], "erin"),
            (&[], &[("USER", ""), ("LOGNAME", "erin")], "erin"),
            (&[], &[("USER", "da\nve"), ("LOGNAME", "erin")], "erin"),
            (&[], &[], "unsticky"),
        ] {
            let audit: Vec<_> = audit.iter().flat_map(|how| ["--audit", *how]).collect();
            let mut command =
                application.command(&[&["show", &id], &audit[..], arguments].concat());
            for (name, value) in environment {
                command = command.env(name, value);
            }
            let ran = command.run();
            let expected = format!(r#"principal="{principal}" actor="{actor}""#);
            let is_told = |event: &&str| event.ends_with(&expected);
            assert!(events(&ran).iter().all(is_told) && events(&ran).len() == 1, "{ran:?}");
            assert!(ran.with_status(0).contains("principal          al ice\n"), "{ran:?}");
        }
    }
}

/// No output contains a password, a session's secret or its digest, or the value behind the CSRF tokens.
#[tokio::test]
async fn nothing_secret_is_printed() {
    let server = RedisServer::start_with(&["--requirepass", "sesame-open-7"]);
    let application = Application::new(server.url());
    let mut secrets = vec!["sesame-open-7".to_owned()];
    let mut ids = Vec::new();
    for _ in 0..2 {
        let csrf = std::cell::RefCell::new(String::new());
        let fill = async |session: Session| {
            session.sign_in("alice")?;
            session.save().await?;
            session.csrf_token().await?;
            session.save().await?;
            *csrf.borrow_mut() = session.get(Key::<String>::new("unsticky.csrf"))?.unwrap();
            Ok(())
        };
        let cookie = visit(&application.sessions, "", fill).await.cookie();
        let token = cookie.split_once('=').unwrap().1;
        let secret = &base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).unwrap()[16..];
        let digest = digest(secret);
        assert_eq!(csrf.borrow().len(), 43);
        secrets.extend([token[22..].to_owned(), base64_of(secret), csrf.into_inner()]);
        secrets.extend([base64_of(&digest), format!("{digest:?}"), format!("{secret:?}")]);
        for bytes in [&digest[..], secret] {
            secrets.push(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        ids.push(application.id(&cookie).await.unwrap().to_string());
    }
    let mut printed = String::new();
    for arguments in [
        &["sessions", "alice"][..],
        &["sessions", "alice", "--json"],
        &["show", &ids[0]],
        &["show", &ids[0], "--values"],
        &["show", &ids[0], "--values", "--json"],
        &["revoke", &ids[0]],
        &["revoke", "--all", "alice", "--json"],
    ] {
        let ran = application.run(arguments);
        assert_eq!(ran.status, Some(0), "{ran:?}");
        printed.push_str(&ran.printed());
    }
    assert!(printed.contains("unsticky.csrf"), "{printed}");
    assert!(printed.contains("    a secret, which is never printed\n"), "{printed}");
    // The server refuses a wrong password, and a command for which the user has no permission.
    server.cli(&["ACL", "SETUSER", "poor", "on", ">sesame-shut-8", "~*", "+hello", "+client"]);
    for user in [":sesame-shut-8", "poor:sesame-shut-8"] {
        let url = server.url().replace(":sesame-open-7", user);
        assert!(url.contains(user));
        for arguments in [&["sessions", "alice"][..], &["show", UNKNOWN], &["revoke", UNKNOWN]] {
            let ran = Unsticky::new(arguments).env("SESSION_URL", &url).run();
            assert_eq!(ran.status, Some(3), "{ran:?}");
            assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
            printed.push_str(&ran.printed());
        }
    }
    secrets.push("sesame-shut-8".to_owned());
    for secret in secrets {
        assert!(!printed.contains(&secret), "{secret} was printed:\n{printed}");
    }
}

#[tokio::test]
async fn store_that_is_down_is_one_line_and_status_3() {
    let mut server = RedisServer::start();
    let application = Application::new(server.url());
    server.stop();
    for arguments in [&["sessions", "alice"][..], &["show", UNKNOWN], &["revoke", "--all", "alice"]]
    {
        let ran = application.run(arguments);
        assert_eq!(ran.with_status(3), "");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        assert!(ran.stderr.starts_with("unsticky: the session store is unavailable: "), "{ran:?}");
    }
    let ran = application.run(&["revoke", UNKNOWN]);
    assert_eq!(ran.with_status(3), format!("{UNKNOWN}  failed\n"));
    assert!(ran.stderr.starts_with("unsticky: 1 of 1 sessions could not be revoked: "), "{ran:?}");
    // The server accepts connections but does not answer.
    server.restart();
    server.pause();
    let ran = Unsticky::new(["show", UNKNOWN, "--timeout", "300ms"])
        .env("SESSION_URL", &application.url)
        .run();
    server.resume();
    assert_eq!(ran.with_status(3), "");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
}

/// With the default settings, the command finds the sessions of an application with the default
/// settings.
#[tokio::test]
async fn defaults_are_those_of_library() {
    let server = RedisServer::start();
    let sessions = Sessions::builder(unsticky::connect(&server.url()).unwrap()).build().unwrap();
    let cookie = visit(&sessions, "", sign_in).await.cookie();
    assert!(!cookie.is_empty());
    let ran = Unsticky::new(["sessions", "alice", "--url", &server.url()]).run();
    assert_eq!(ran.with_status(0).lines().count(), 2);
    let ran = Unsticky::new(["revoke", "--all", "alice", "--url", &server.url()]).run();
    assert!(ran.with_status(0).starts_with("1 session was revoked"), "{ran:?}");
    let who: Option<Arc<str>> =
        visit(&sessions, &cookie, async |session: Session| Ok(session.principal())).await.ok();
    assert_eq!(who, None);
}

/// An interrupt ends the command at once, although its time limit is 60 seconds.
#[test]
fn interrupted_command_waits_for_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    let command = Unsticky::new(["show", UNKNOWN, "--timeout", "60s"]).env("SESSION_URL", url);
    let running = command.start();
    let (mut stream, _) = listener.accept().unwrap();
    // The command has sent its greeting, so its signal handler is installed.
    stream.read_exact(&mut [0; 4]).unwrap();
    running.interrupt();
    let ran = running.finish();
    assert_eq!(ran.with_status(130), "");
    assert_eq!(ran.stderr, "unsticky: interrupted\n");
}
