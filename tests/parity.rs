//! The same scenarios through tower and through actix-web: one table, two frameworks.

#![cfg(all(feature = "testing", feature = "memory", feature = "axum", feature = "actix"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::pin::pin;
use std::time::Duration;

use support::app::{App, Ask, Gates, Reply, both, both_with, on_actix, on_axum};
use support::stand::{Backend, Stand};
use unsticky::store::{Kind, MemoryStore};
use unsticky::testing::{Fault, Verb};
use unsticky::{Cookie, Lifetime, OnFailedResponse, SameSite, Sessions};

use Verb::{Create, Delete, Load, Replace};

/// Returns the response to a script, and the store commands that were sent for it.
async fn step(stand: &Stand, app: &App, script: &str, cookie: &str) -> (Reply, Vec<Verb>) {
    stand.spy.take();
    let reply = app.run(script, cookie).await;
    // The number of directory commands for a sign-in depends on earlier sign-ins, so it is not
    // compared.
    let commands = stand.spy.take();
    let commands = commands.iter().filter(|command| command.key.kind() == Kind::Session);
    (reply, commands.map(|command| command.verb).collect())
}

const SET: &str = "; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=86400";
const REMOVAL: &str = "__Host-id=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0";

/// What a response does with the session cookie.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sent {
    Nothing,
    Token,
    Removal,
}

fn sent(reply: &Reply) -> Sent {
    match reply.cookies()[..] {
        [] => Sent::Nothing,
        [REMOVAL] => Sent::Removal,
        [cookie] => {
            let rest = cookie.strip_prefix("__Host-id=").unwrap();
            let (token, attributes) = rest.split_at(43);
            assert!(
                token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            );
            assert_eq!(attributes, SET);
            Sent::Token
        }
        _ => panic!("several session cookies: {reply:?}"),
    }
}

/// The cookie that a request carries.
#[derive(Debug, Clone, Copy)]
enum Visitor {
    New,
    /// Has a session that holds `seed=1`.
    Known,
    /// Signed in as alice, who wrote `seed=1` after the sign-in.
    Alice,
    /// Has a well-formed token that the store does not know.
    Stranger,
    /// Has a cookie with the right name whose value is not a token.
    Garbage,
}

type Row = (Visitor, &'static str, u16, &'static str, &'static [Verb], Sent);

/// Columns: visitor, script, status, body, store commands, cookie.
const TABLE: &[Row] = &[
    // Reading.
    (Visitor::New, "get:seed", 200, "-", &[], Sent::Nothing),
    (Visitor::Known, "get:seed", 200, "1", &[Load], Sent::Nothing),
    (Visitor::Known, "get:seed,get:seed,get:x,empty", 200, "1 1 - false", &[Load], Sent::Nothing),
    (Visitor::Stranger, "get:seed", 200, "-", &[Load], Sent::Nothing),
    (Visitor::Garbage, "get:seed", 200, "-", &[], Sent::Nothing),
    (Visitor::Alice, "who", 200, "alice", &[Load], Sent::Nothing),
    (Visitor::Known, "who,id", 200, "", &[Load], Sent::Nothing),
    // Writing.
    (Visitor::New, "set:a=1", 200, "", &[Create], Sent::Token),
    (Visitor::New, "set:a=1,remove:a", 200, "", &[], Sent::Nothing),
    (Visitor::New, "set:a=1,get:a,empty", 200, "1 false", &[Create], Sent::Token),
    (Visitor::Known, "set:a=1", 200, "", &[Load, Replace], Sent::Nothing),
    (Visitor::Known, "set:seed=1", 200, "", &[Load], Sent::Nothing),
    (Visitor::Known, "remove:seed,get:seed", 200, "-", &[Load, Replace], Sent::Nothing),
    (Visitor::Known, "remove:other", 200, "", &[Load], Sent::Nothing),
    (Visitor::Known, "take:seed,get:seed", 200, "1 -", &[Load, Replace], Sent::Nothing),
    (Visitor::Known, "take:other", 200, "-", &[Load], Sent::Nothing),
    (Visitor::Known, "inc:n,inc:n,get-number:n", 200, "2", &[Load, Replace], Sent::Nothing),
    (Visitor::Known, "set:a=1,clear,get:a,empty", 200, "- true", &[Load, Replace], Sent::Nothing),
    (Visitor::Alice, "clear,who", 200, "alice", &[Load, Replace], Sent::Nothing),
    (Visitor::Stranger, "set:a=1", 200, "", &[Load, Create], Sent::Token),
    (Visitor::Garbage, "set:a=1", 200, "", &[Create], Sent::Token),
    (
        Visitor::Known,
        "set:a=1,inc:n,keys,json:a,json:n,json:seed,json:x",
        200,
        "a+n+seed \"1\" 1 \"1\" -",
        &[Load, Replace],
        Sent::Nothing,
    ),
    (Visitor::New, "keys,json:a", 200, " -", &[], Sent::Nothing),
    // Rotating the secret.
    (Visitor::New, "rotate", 200, "", &[], Sent::Nothing),
    (Visitor::Known, "rotate", 200, "", &[Load, Replace], Sent::Token),
    (Visitor::Known, "rotate,set:a=1", 200, "", &[Load, Replace], Sent::Token),
    (Visitor::New, "remember", 200, "", &[], Sent::Nothing),
    // Signing in.
    (Visitor::New, "sign-in:alice,who", 200, "alice", &[Create], Sent::Token),
    (Visitor::Known, "sign-in:alice,who,get:seed", 200, "alice -", &[Load, Replace], Sent::Token),
    (Visitor::Known, "set:a=1,sign-in:alice,get:a", 200, "1", &[Load, Replace], Sent::Token),
    (Visitor::Alice, "sign-in:alice,get:seed", 200, "1", &[Load, Replace], Sent::Token),
    (
        Visitor::Alice,
        "sign-in:bob,who,get:seed",
        200,
        "bob -",
        &[Load, Create, Delete],
        Sent::Token,
    ),
    (Visitor::Stranger, "sign-in:alice", 200, "", &[Load, Create], Sent::Token),
    // Signing out.
    (Visitor::New, "sign-out", 200, "", &[], Sent::Nothing),
    (Visitor::Alice, "sign-out,who", 200, "-", &[Load, Delete], Sent::Removal),
    (Visitor::Known, "destroy,get:seed", 200, "-", &[Load, Delete], Sent::Removal),
    (Visitor::Stranger, "sign-out", 200, "", &[Load], Sent::Removal),
    (Visitor::Garbage, "sign-out", 200, "", &[], Sent::Removal),
    (
        Visitor::Alice,
        "sign-out,set:a=1,who,get:seed,get:a",
        200,
        "- - 1",
        &[Load, Delete, Create],
        Sent::Token,
    ),
    (Visitor::Alice, "set:a=1,sign-out,get:a", 200, "-", &[Load, Delete], Sent::Removal),
    (
        Visitor::Alice,
        "sign-out,sign-in:alice,get:seed",
        200,
        "-",
        &[Load, Create, Delete],
        Sent::Token,
    ),
    // A failed response saves only a sign-out.
    (Visitor::Known, "set:a=1,status:500", 500, "", &[Load], Sent::Nothing),
    (Visitor::New, "set:a=1,status:503", 503, "", &[], Sent::Nothing),
    (Visitor::Known, "sign-in:alice,status:500", 500, "", &[Load], Sent::Nothing),
    (Visitor::Alice, "sign-in:bob,status:500", 500, "", &[Load], Sent::Nothing),
    (Visitor::Alice, "sign-out,status:500", 500, "", &[Load, Delete], Sent::Removal),
    (Visitor::Alice, "sign-out,set:a=1,status:500", 500, "", &[Load, Delete], Sent::Removal),
    (Visitor::Known, "set:a=1,status:404", 404, "", &[Load, Replace], Sent::Nothing),
    // Early saves.
    (Visitor::New, "set:a=1,save,set:b=1", 200, "", &[Create, Replace], Sent::Token),
    (Visitor::New, "set:a=1,save,status:500", 500, "", &[Create], Sent::Token),
    (Visitor::Known, "set:a=1,save", 200, "", &[Load, Replace], Sent::Nothing),
    (Visitor::Known, "reload,get:seed", 200, "1", &[Load, Load], Sent::Nothing),
    (Visitor::Known, "once:seed,get:seed", 200, "1 -", &[Load, Replace], Sent::Nothing),
    (Visitor::Known, "once:other", 200, "-", &[Load, Load], Sent::Nothing),
    (Visitor::New, "once:other", 200, "-", &[], Sent::Nothing),
    // Changes that cannot be saved.
    (Visitor::New, "big:a", 500, "Something went wrong on our side.", &[], Sent::Nothing),
    (
        Visitor::Known,
        "set:a=1,get-number:a",
        500,
        "Something went wrong on our side.",
        &[Load],
        Sent::Nothing,
    ),
];

#[tokio::test]
async fn both_frameworks_match_scenario_table() {
    for (visitor, script, status, body, commands, cookie) in TABLE.iter().copied() {
        let stand = Backend::memory().stand();
        for app in both(&stand.sessions).await {
            let sent_along = match visitor {
                Visitor::New => String::new(),
                Visitor::Known => app.anonymous().await,
                Visitor::Alice => app.run("sign-in:alice,set:seed=1", "").await.cookie(),
                Visitor::Stranger => format!("__Host-id={}", "A".repeat(43)),
                Visitor::Garbage => "__Host-id=garbage".to_owned(),
            };
            let (reply, issued) = step(&stand, &app, script, &sent_along).await;
            let row = format!("{} {visitor:?} {script}: {reply:?}", app.framework);
            assert_eq!(reply.status, status, "{row}");
            if !body.is_empty() {
                assert_eq!(reply.body, body, "{row}");
            }
            assert_eq!(issued, commands, "{row}");
            assert_eq!(sent(&reply), cookie, "{row}");
            assert_eq!(reply.all("vary"), ["cookie"], "{row}");
            let no_store = cookie != Sent::Nothing || (status >= 500 && !reply.body.is_empty());
            assert_eq!(reply.all("cache-control") == ["no-store"], no_store, "{row}");
        }
    }
}

#[tokio::test]
async fn unused_session_costs_no_command_and_adds_no_header() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let cookie = app.anonymous().await;
        stand.spy.take();
        for cookie in ["", &cookie, "__Host-id=garbage"] {
            let reply = app.get("/unused", cookie).await;
            assert_eq!((reply.status, reply.body.as_str()), (200, "unused"));
            for header in ["set-cookie", "vary", "cache-control"] {
                assert!(reply.all(header).is_empty(), "{reply:?}");
            }
        }
        assert_eq!(stand.spy.take(), []);
    }
}

#[tokio::test]
async fn session_created_in_one_framework_is_read_in_the_other() {
    let stand = Backend::memory().stand();
    let [axum, actix] = both(&stand.sessions).await;
    for (one, other) in [(&axum, &actix), (&actix, &axum)] {
        let cookie = one.run("add:book,sign-in:alice", "").await.cookie();
        assert_eq!(other.run("who,cart", &cookie).await.body, "alice book");
        let renewed = other.run("rotate,add:pen", &cookie).await.cookie();
        assert_eq!(one.run("who,cart", &renewed).await.body, "alice book+pen");
        assert_eq!(one.run("who,cart", &cookie).await.body, "-");
        one.run("sign-out", &renewed).await;
        assert_eq!(other.run("who,cart", &renewed).await.body, "-");
    }
}

#[tokio::test]
async fn rotation_invalidates_old_secret_and_keeps_id() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let old = app.anonymous().await;
        let id = app.run("id", &old).await.body;
        let new = app.run("rotate", &old).await.cookie();
        assert_ne!(old, new);
        assert_eq!(app.run("id,get:seed", &new).await.body, format!("{id} 1"));
        let (reply, commands) = step(&stand, &app, "id,get:seed", &old).await;
        assert_eq!(reply.body, "- -");
        assert_eq!(commands, [Load]);
        assert_eq!(sent(&reply), Sent::Nothing, "a stale cookie must not remove a newer one");
    }
}

#[tokio::test]
async fn handler_cookies_and_vary_are_kept_and_cache_control_is_replaced() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let reply = app.get("/own-cookie", "").await;
        assert!(reply.all("set-cookie").contains(&"own=1"), "{reply:?}");
        assert_eq!(sent(&reply), Sent::Token);
        assert_eq!(reply.all("vary"), ["accept, Cookie"]);
        assert_eq!(reply.all("cache-control"), ["no-store"]);
        let reply = app.get("/own-cookie", &reply.cookie()).await;
        assert_eq!(reply.all("set-cookie"), ["own=1"]);
        assert_eq!(reply.all("cache-control"), ["public"]);
    }
}

#[tokio::test]
async fn several_cookie_fields_and_session_cookies_are_resolved() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let valid = app.anonymous().await;
        let other = app.run("set:seed=2", "").await.cookie();
        let unknown = |letter: &str| format!("__Host-id={}A", letter.repeat(42));
        let read = async |fields: &[String]| {
            stand.spy.take();
            let fields: Vec<&[u8]> = fields.iter().map(String::as_bytes).collect();
            let reply = app.send("/do/get:seed", &fields).await;
            (reply.body, stand.spy.take().len())
        };
        // HTTP/2 may split the header.
        assert_eq!(read(&["a=b".to_owned(), valid.clone()]).await, ("1".to_owned(), 1));
        assert_eq!(read(&[format!("a=b; {valid}; c=d")]).await, ("1".to_owned(), 1));
        assert_eq!(read(&[format!("{valid}; {valid}")]).await, ("1".to_owned(), 1));
        assert_eq!(read(&[format!("{}; {valid}", unknown("x"))]).await, ("1".to_owned(), 2));
        assert_eq!(read(&[format!("__Host-id=garbage; {valid}")]).await, ("1".to_owned(), 1));
        let four = ["x", "y", "z"].map(unknown).join("; ");
        assert_eq!(read(&[format!("{four}; {valid}")]).await, ("-".to_owned(), 3));
        // Several valid tokens make the request anonymous.
        assert_eq!(read(&[format!("{valid}; {other}")]).await, ("-".to_owned(), 2));
        // A sign-out then ends the sessions of all these tokens.
        let both = format!("{valid}; {other}");
        let (reply, commands) = step(&stand, &app, "sign-out", &both).await;
        assert_eq!((sent(&reply), commands), (Sent::Removal, vec![Load, Load, Delete, Delete]));
        assert_eq!(read(&[valid]).await.0, "-");
        assert_eq!(read(&[other]).await.0, "-");
    }
}

#[tokio::test]
async fn cookie_settings_apply_to_set_and_removal_cookies() {
    for (cookie, start, attributes) in [
        (Cookie::new("id").insecure(), "id=", "; Path=/; HttpOnly; SameSite=Lax"),
        (
            Cookie::new("__Secure-s").domain("example.com").same_site(SameSite::Strict),
            "__Secure-s=",
            "; Path=/; Domain=example.com; Secure; HttpOnly; SameSite=Strict",
        ),
        (
            Cookie::new("__Host-p").same_site(SameSite::None).partitioned(),
            "__Host-p=",
            "; Path=/; Secure; HttpOnly; SameSite=None; Partitioned",
        ),
    ] {
        let sessions = Sessions::builder(MemoryStore::new()).cookie(cookie).build().unwrap();
        for app in both(&sessions).await {
            let reply = app.run("set:a=1", "").await;
            let set = reply.cookies()[0].to_owned();
            let token = set.strip_prefix(start).unwrap().split(';').next().unwrap();
            assert_eq!(set, format!("{start}{token}{attributes}; Max-Age=86400"));
            let reply = app.run("sign-out", &reply.cookie()).await;
            assert_eq!(reply.cookies(), [format!("{start}{attributes}; Max-Age=0")]);
        }
    }
}

#[tokio::test]
async fn remember_me_and_browser_mode_are_chosen_per_session() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let cookie = app.anonymous().await;
        let reply = app.run("remember", &cookie).await;
        assert!(reply.cookies()[0].ends_with("; Max-Age=2592000"), "{reply:?}");
        let cookie = reply.cookie();
        // The lifetime is stored in the session, so a later rotation uses it.
        stand.clock.advance(Duration::from_secs(86_400));
        let reply = app.run("rotate,get:seed", &cookie).await;
        assert_eq!(reply.body, "1");
        assert!(reply.cookies()[0].ends_with("; Max-Age=2505600"), "{reply:?}");
        let reply = app.run("browser", &reply.cookie()).await;
        assert!(reply.cookies()[0].ends_with("; SameSite=Lax"), "{reply:?}");
        // A sign-in starts from the configured lifetime, unless the same request sets a different one.
        let browser = app.run("sign-in:alice,browser", &reply.cookie()).await;
        assert!(browser.cookies()[0].ends_with("; SameSite=Lax"), "{browser:?}");
        let reply = app.run("sign-in:alice", &browser.cookie()).await;
        assert!(reply.cookies()[0].ends_with("; Max-Age=86400"), "{reply:?}");
    }
}

#[tokio::test]
async fn signed_in_extractor_rejects_anonymous_request() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let reply = app.get("/profile", "").await;
        assert_eq!((reply.status, reply.body.as_str()), (401, "Please sign in."));
        assert_eq!(reply.all("vary"), ["cookie"]);
        let cookie = app.sign_in("alice").await;
        assert_eq!(app.get("/profile", &cookie).await.body, "profile of alice");
        assert_eq!(app.get("/maybe-profile", "").await.body, "please sign in");
        assert_eq!(app.get("/maybe-profile", &cookie).await.body, "profile of alice");
    }
    let sessions =
        Sessions::builder(MemoryStore::new()).sign_in_page("/sign-in?next=%2F").build().unwrap();
    for app in both(&sessions).await {
        let reply = app.ask(Ask::get("/profile").header("accept", "text/html")).await;
        assert_eq!((reply.status, reply.all("location")), (303, vec!["/sign-in?next=%2F"]));
    }
}

#[tokio::test]
async fn unavailable_store_returns_error_and_never_empty_session() {
    let Stand { store, sessions, .. } = Backend::memory().stand();
    for app in both(&sessions).await {
        let cookie = app.sign_in("alice").await;
        for verb in Verb::ALL {
            store.fail_always(verb, Fault::Unavailable);
        }
        for script in ["who", "set:a=1", "sign-out", "sign-in:bob"] {
            let reply = app.run(script, &cookie).await;
            assert_eq!(reply.status, 503, "{} {script}", app.framework);
            assert_eq!(reply.body, "This is temporarily unavailable. Please try again.");
            assert_eq!(reply.all("retry-after"), ["1"]);
            assert_eq!(sent(&reply), Sent::Nothing, "an outage must not remove cookies");
        }
        let reply = app.run("set:a=1", "").await;
        assert_eq!((reply.status, sent(&reply)), (503, Sent::Nothing));
        assert_eq!(app.get("/profile", &cookie).await.status, 503);
        assert_eq!(app.get("/unused", &cookie).await.status, 200);
        let reply = app.get("/maybe", &cookie).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "without a session: Unavailable"));
        assert_eq!(app.get("/maybe-profile", &cookie).await.status, 500);
        store.heal();
        assert_eq!(app.run("who", &cookie).await.body, "alice");
    }
}

#[tokio::test]
async fn missing_layer_error_names_the_fix() {
    let apps = [on_axum::app(&[], Gates::default()), on_actix::app(&[], Gates::default()).await];
    for app in apps {
        let reply = app.run("who", "").await;
        assert_eq!(reply.status, 500);
        assert_eq!(reply.body, "Something went wrong on our side.", "the fix is for the log");
        assert_eq!(app.get("/sessions", "").await.status, 500);
        assert_eq!(app.get("/profile", "").await.status, 500);
        assert_eq!(app.get("/maybe", "").await.body, "without a session: MissingLayer");
        assert_eq!(app.get("/unused", "").await.status, 200);
    }
    use axum::extract::FromRequestParts as _;
    let (mut parts, ()) = axum::http::Request::new(()).into_parts();
    let error = unsticky::Session::from_request_parts(&mut parts, &()).await.unwrap_err();
    assert!(error.to_string().contains("SessionLayer::new(sessions)"), "{error}");
    let request = actix_web::test::TestRequest::default().to_http_request();
    let error = request.extract_session().await.unwrap_err();
    assert!(error.to_string().contains("SessionMiddleware::new(sessions)"), "{error}");
}

trait ExtractSession {
    async fn extract_session(&self) -> unsticky::Result<unsticky::Session>;
}

impl ExtractSession for actix_web::HttpRequest {
    async fn extract_session(&self) -> unsticky::Result<unsticky::Session> {
        use actix_web::FromRequest as _;
        unsticky::Session::extract(self).await
    }
}

#[tokio::test]
async fn handler_can_extract_sessions_configuration() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        assert_eq!(app.get("/sessions", "").await.status, 200);
    }
    assert_eq!(stand.spy.take(), []);
}

#[tokio::test]
async fn layers_with_different_cookie_names_keep_separate_sessions() {
    let stand = Backend::memory().stand();
    let cookie = Cookie::new("__Host-admin").same_site(SameSite::Strict);
    let admins = stand.process(|builder| builder.namespace("admin").cookie(cookie));
    for app in both_with(&[stand.sessions, admins], Gates::default()).await {
        let customer = app.run("sign-in:alice", "").await;
        assert!(customer.cookie().starts_with("__Host-id="), "{customer:?}");
        let admin = app.get("/admin", &customer.cookie()).await;
        assert_eq!(admin.body, "administrator");
        assert!(admin.cookie().starts_with("__Host-admin="), "{admin:?}");
        let all = format!("{}; {}", customer.cookie(), admin.cookie());
        assert_eq!(app.run("who", &all).await.body, "alice");
        // Each token is valid only under its own cookie name.
        let swapped = all.replace("__Host-id", "x").replace("__Host-admin", "__Host-id");
        assert_eq!(app.run("who", &swapped).await.body, "-");
    }
}

async fn tasks_go_on() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn panic_and_disconnect_keep_only_sign_out() {
    let stand = Backend::memory().stand();
    let gates = Gates::default();
    for app in both_with(std::slice::from_ref(&stand.sessions), gates.clone()).await {
        for ending in ["panic", "gate:stay"] {
            let cookie = app.sign_in("alice").await;
            for (script, survives) in [("set:a=1", true), ("sign-out", false)] {
                stand.spy.take();
                {
                    let script = format!("{script},{ending}");
                    let mut request = Box::pin(app.run(&script, &cookie));
                    let panics = std::panic::AssertUnwindSafe(async {
                        tokio::select! {
                            reply = &mut request => panic!("answered: {reply:?}"),
                            () = gates.reached("stay") => {}
                        }
                    });
                    let ended = futures_util::FutureExt::catch_unwind(panics).await;
                    assert_eq!(ended.is_err(), ending == "panic");
                }
                // The sign-out runs in a separate task.
                tasks_go_on().await;
                let verbs = stand.taken_verbs();
                let expected: &[Verb] = if survives { &[Load] } else { &[Load, Delete] };
                assert_eq!(verbs, expected, "{} {script} {ending}", app.framework);
                let who = if survives { "alice -" } else { "- -" };
                assert_eq!(app.run("who,get:a", &cookie).await.body, who);
            }
        }
    }
}

#[tokio::test]
async fn client_that_leaves_during_commit_keeps_its_changes() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        for (script, verb, who) in [
            ("set:a=1", Replace, "alice 1"),
            ("sign-out", Delete, "- -"),
            ("sign-in:bob,set:a=1", Create, "- -"),
        ] {
            let cookie = app.sign_in("alice").await;
            let gate = stand.store.hold(verb);
            {
                let mut request = pin!(app.run(script, &cookie));
                tokio::select! {
                    reply = &mut request => panic!("answered: {reply:?}"),
                    () = gate.reached() => {}
                }
            }
            gate.release();
            tasks_go_on().await;
            let left = app.run("who,get:a", &cookie).await.body;
            assert_eq!(left, who, "{} {script}", app.framework);
        }
    }
}

#[tokio::test]
async fn failed_response_and_gone_status_policies_apply() {
    let sessions = Sessions::builder(MemoryStore::new())
        .on_failed_response(OnFailedResponse::Commit)
        .gone_status(440)
        .build()
        .unwrap();
    let gates = Gates::default();
    for app in both_with(std::slice::from_ref(&sessions), gates.clone()).await {
        let cookie = app.anonymous().await;
        assert_eq!(app.run("set:a=1,status:500", &cookie).await.status, 500);
        assert_eq!(app.run("get:a", &cookie).await.body, "1");
        let late = app.run("gate:late,set:a=2", &cookie);
        let end = async {
            gates.reached("late").await;
            app.run("sign-out", &cookie).await;
            gates.open("late");
        };
        let (late, ()) = futures_util::join!(late, end);
        assert_eq!((late.status, sent(&late)), (440, Sent::Nothing));
        assert_eq!(late.body, unsticky::ErrorKind::Gone.message());
    }
}

#[tokio::test]
async fn passive_requests_do_not_extend_session() {
    let lifetime = Lifetime::new(Duration::from_secs(600), Duration::from_secs(6000));
    let Stand { clock, sessions, .. } =
        Backend::memory().stand_with(|builder| builder.lifetime(lifetime));
    for app in both(&sessions).await {
        let cookie = app.anonymous().await;
        for _ in 0..2 {
            clock.advance(Duration::from_secs(290));
            assert_eq!(app.run("passive,get:seed,inc:polls", &cookie).await.body, "1");
        }
        clock.advance(Duration::from_secs(30));
        assert_eq!(app.run("get:seed", &cookie).await.body, "-");
    }
}
