//! The number of store commands for each kind of request, as counted by the servers.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::servers::{MemcachedServer, RedisServer};
use support::stand::{Backend, SEED, Stand, eventually};
use support::visit::{rotate, sign_in, sign_out, visit};
use tokio::time::timeout;
use unsticky::testing::Verb;
use unsticky::{ConcurrentSessions, DirectoryMode, Key, Level, Result, Session, Store};

const OTHER: Key<u32> = Key::new("other");

/// The number of commands of each kind: create, load, replace and delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Count {
    create: i64,
    load: i64,
    replace: i64,
    delete: i64,
}

impl Count {
    fn total(self) -> i64 {
        self.create + self.load + self.replace + self.delete
    }
}

async fn used(session: Session) -> Result<()> {
    session.get(SEED).map(|_| ())
}

async fn writes(session: Session) -> Result<()> {
    session.insert(OTHER, &1)
}

/// Runs each scenario on the store and compares the spy's count and the server's count with the budget.
/// `server` returns the number of commands that have reached the server.
async fn budget(store: Arc<dyn Store>, server: impl Fn() -> Count) {
    let stand = Stand::over(store, |builder| builder);
    strict_budget(&stand).await;
    confirming_budget(&stand).await;
    let Stand { spy, sessions, .. } = &stand;
    let unknown = format!("__Host-id={}", "A".repeat(43));
    let garbage = "__Host-id=garbage; other=1";
    macro_rules! costs {
        ($name:literal, $cookie:expr, $handler:expr, $expected:expr) => {{
            let cookie: String = $cookie;
            let before = server();
            spy.take();
            let visit = stand.visit(&cookie, $handler).await;
            assert_eq!(visit.failure(), None, "{}", $name);
            let after = server();
            let seen = Count {
                create: after.create - before.create,
                load: after.load - before.load,
                replace: after.replace - before.replace,
                delete: after.delete - before.delete,
            };
            let mut issued = Count::default();
            for command in spy.take() {
                match command.verb {
                    Verb::Create => issued.create += 1,
                    Verb::Load => issued.load += 1,
                    Verb::Replace => issued.replace += 1,
                    Verb::Delete => issued.delete += 1,
                }
            }
            let expected: Count = $expected;
            assert_eq!(issued, expected, "{}: issued", $name);
            assert_eq!(seen, expected, "{}: seen by the server", $name);
        }};
    }
    let nothing = Count::default();
    let read = Count { load: 1, ..nothing };
    // The first commands open the connection and load the scripts into the server's cache.
    stand.visit(&stand.seeded().await, writes).await;
    stand.visit(&stand.seeded().await, sign_out).await;
    costs!("no cookie", String::new(), used, nothing);
    costs!("garbage cookie", garbage.to_owned(), used, nothing);
    costs!("unknown token", unknown.clone(), used, read);
    costs!("read", stand.seeded().await, used, read);
    costs!("write", stand.seeded().await, writes, Count { load: 1, replace: 1, ..nothing });
    costs!("new session", String::new(), writes, Count { create: 1, ..nothing });
    // A sign-in takes two commands for the session and two for the directory. This first sign-in creates the
    // directory record.
    stand.visit("", sign_in).await.ok();
    costs!("sign-in", stand.seeded().await, sign_in, Count { load: 2, replace: 2, ..nothing });
    costs!(
        "sign-in of a visitor",
        String::new(),
        sign_in,
        Count { create: 1, load: 1, replace: 1, ..nothing }
    );
    let begin = async || sessions.of("bob").begin_sign_in().await.unwrap();
    let begun = begin().await;
    stand.visit("", async |session: Session| session.sign_in_with(begun)).await.ok();
    let begun = begin().await;
    costs!(
        "sign-in of a visitor that was begun",
        String::new(),
        async |session: Session| session.sign_in_with(begun),
        Count { create: 1, replace: 1, ..nothing }
    );
    let begun = begin().await;
    costs!(
        "sign-in that was begun",
        stand.seeded().await,
        async |session: Session| session.sign_in_with(begun),
        Count { load: 1, replace: 2, ..nothing }
    );
    let signed_in = async || stand.visit("", sign_in).await.cookie();
    costs!("signed-in read", signed_in().await, used, read);
    costs!(
        "signed-in sign-out",
        signed_in().await,
        sign_out,
        Count { load: 1, delete: 1, ..nothing }
    );
    // This request loads its own session, the directory record, and the listed sessions. One of the sessions
    // that signed in above has signed out.
    let lists = async |session: Session| {
        let listed = session.directory()?.list().await?.len();
        assert_eq!(listed, 5);
        Ok(())
    };
    costs!("list", signed_in().await, lists, Count { load: 1 + 1 + 6, ..nothing });
    costs!("sign-out", stand.seeded().await, sign_out, Count { load: 1, delete: 1, ..nothing });
    let stale = {
        let old = stand.seeded().await;
        stand.visit(&old, rotate).await;
        old
    };
    costs!("void secret", stale, used, read);

    let page = async |session: Session| session.flashes().await.map(|_| ());
    let says = async |session: Session| session.flash(Level::Info, "saved");
    let told = async || stand.visit("", says).await.cookie();
    costs!("page without a message", stand.seeded().await, page, read);
    costs!("page with a message", told().await, page, Count { load: 1, replace: 1, ..nothing });
    costs!("page of a visitor", String::new(), page, nothing);
    costs!("message", stand.seeded().await, says, Count { load: 1, replace: 1, ..nothing });

    let form = async |session: Session| session.csrf_token().await.map(|_| ());
    let with_token = async || stand.visit("", form).await.cookie();
    costs!("first form of a visitor", String::new(), form, Count { create: 1, ..nothing });
    costs!("first form", stand.seeded().await, form, Count { load: 1, replace: 1, ..nothing });
    costs!("form", with_token().await, form, read);

    // The command that a readiness probe sends.
    let before = server();
    spy.take();
    sessions.ping().await.unwrap();
    assert_eq!(spy.verbs(), [Verb::Load], "ping");
    let after = server();
    assert_eq!((after.load - before.load, after.total() - before.total()), (1, 1), "ping");

    // An unused cookie, and a request without a cookie, send no commands.
    let cookie = stand.seeded().await;
    let before = server();
    for cookie in [cookie.as_str(), "", garbage, &unknown] {
        let exchange = unsticky::exchange::Exchange::begin(sessions, [cookie.to_owned()], None);
        assert!(matches!(exchange.finish(200), unsticky::exchange::Finish::Ready(_)));
    }
    for _ in 0..10_000 {
        assert_eq!(stand.visit("", used).await.set_cookie, None);
    }
    assert_eq!(server().total(), before.total());

    // Ten thousand invented tokens cost one read each and leave nothing in the store.
    let before = server();
    for number in 0..10_000_u32 {
        let cookie = format!("__Host-id={number:A>42}A");
        assert_eq!(stand.visit(&cookie, used).await.set_cookie, None);
    }
    let after = server();
    assert_eq!(after.load - before.load, 10_000);
    assert_eq!(after.total() - before.total(), 10_000);
}

/// In strict mode, loading a session with a signed-in user costs one more command. Other sessions cost no
/// more.
async fn strict_budget(stand: &Stand) {
    let sessions =
        stand.process(|builder| builder.namespace("strict").directory(DirectoryMode::Strict));
    let anonymous =
        visit(&sessions, "", async |session: Session| session.insert(SEED, &1)).await.cookie();
    let signed_in = visit(&sessions, "", sign_in).await.cookie();
    for (cookie, loads) in [(anonymous, 1), (signed_in, 2)] {
        stand.spy.take();
        visit(&sessions, &cookie, used).await.ok();
        assert_eq!(stand.spy.verbs(), vec![Verb::Load; loads]);
    }
}

/// If new sign-ins are refused at the limit, the first use of a new cookie costs one more command.
async fn confirming_budget(stand: &Stand) {
    let sessions = stand.process(|builder| {
        builder.namespace("confirming").concurrent_sessions(ConcurrentSessions::Reject(3))
    });
    let cookie = visit(&sessions, "", sign_in).await.cookie();
    for expected in [vec![Verb::Load, Verb::Replace], vec![Verb::Load], vec![Verb::Load]] {
        stand.spy.take();
        visit(&sessions, &cookie, used).await.ok();
        assert_eq!(stand.spy.verbs(), expected);
    }
}

/// A sign-in sends three commands in two round trips. The session is created while the directory record is
/// loaded. The directory record is written once both commands have been answered, in either order.
#[tokio::test]
async fn new_session_is_created_while_directory_is_read() {
    for on in Backend::every() {
        let stand = on.stand();
        stand.visit("", sign_in).await.ok();
        for is_created_first in [true, false] {
            let (create, load) = (stand.store.hold(Verb::Create), stand.store.hold(Verb::Load));
            let write = stand.store.hold(Verb::Replace);
            stand.spy.take();
            let sessions = stand.sessions.clone();
            let visit = tokio::spawn(async move { visit(&sessions, "", sign_in).await });
            let both = async { futures_util::join!(create.reached(), load.reached()) };
            timeout(Duration::from_secs(10), both).await.expect("one after the other");
            let (first, second) = if is_created_first { (create, load) } else { (load, create) };
            first.release();
            eventually(async || stand.spy.verbs().len() == 1, "it is sent").await;
            let reached = timeout(Duration::from_millis(20), write.reached());
            reached.await.expect_err("the second answer is waited for");
            second.release();
            timeout(Duration::from_secs(10), write.reached()).await.expect("both are answered");
            assert!(!visit.is_finished(), "no cookie is sent before the session is listed");
            write.release();
            assert_eq!(stand.who(&visit.await.unwrap().cookie()).await.as_deref(), Some("alice"));
            let verbs = match is_created_first {
                true => [Verb::Create, Verb::Load, Verb::Replace],
                false => [Verb::Load, Verb::Create, Verb::Replace],
            };
            assert_eq!(stand.spy.verbs()[..3], verbs, "{}", on.name());
        }
    }
}

/// If the server's protocol allows it, the answer that reports a conflict contains the newer record.
#[tokio::test]
async fn sign_out_after_conflict_loads_record_only_if_store_did_not_return_it() {
    for on in Backend::every() {
        let stand = on.stand();
        let cookie = stand.seeded().await;
        let late = stand
            .overtaken(&cookie, sign_out, async || {
                stand.write(&cookie, OTHER, 1).await;
                stand.spy.take();
            })
            .await;
        assert!(late.removes_cookie());
        let verbs = match on.name() {
            "memcached" => vec![Verb::Delete, Verb::Load, Verb::Delete],
            _ => vec![Verb::Delete, Verb::Delete],
        };
        assert_eq!(stand.spy.verbs(), verbs, "{}", on.name());
    }
}

/// A check tries each verb on one key and sends no other command.
#[tokio::test]
async fn check_of_store_without_servers_costs_ten_commands() {
    let stand = Backend::memory().stand();
    let report = stand.sessions.check().await;
    assert_eq!(report.first_error(), None, "{report}");
    let commands = stand.spy.take();
    let count = |verb| commands.iter().filter(|command| command.verb == verb).count();
    assert_eq!(Verb::ALL.map(count), [2, 2, 3, 3], "create, load, replace, delete");
    assert!(commands.iter().all(|command| command.key == commands[0].key));
}

#[tokio::test]
async fn requests_match_command_budget_on_redis() {
    let server = RedisServer::start();
    let store = unsticky::connect(&server.url()).unwrap();
    budget(store, || {
        let calls = |command: &str| i64::try_from(server.calls(command)).unwrap();
        // A script's own commands are counted too: a replace calls SET, and a delete calls DEL.
        let scripts = calls("evalsha") + calls("eval");
        let deletes = calls("del");
        let refused = i64::try_from(server.failures("set")).unwrap();
        let replaces = scripts - deletes;
        Count {
            // The commands that probe a new connection are refused, so they create nothing.
            create: calls("set") - refused - replaces,
            load: calls("get"),
            replace: replaces,
            delete: deletes,
        }
    })
    .await;
    let keys: u64 = server.cli(&["DBSIZE"]).parse().unwrap();
    // The scenarios' sessions remain, but the 20,000 other requests have left nothing.
    assert!(keys < 30, "{keys} keys");
}

#[tokio::test]
async fn requests_match_command_budget_on_memcached() {
    let server = MemcachedServer::start();
    let store = unsticky::connect(&server.url()).unwrap();
    budget(store, || {
        let stat = |name: &str| i64::try_from(server.stat(name)).unwrap();
        let replace = stat("cas_hits") + stat("cas_misses") + stat("cas_badval");
        Count {
            create: stat("cmd_set") - replace,
            load: stat("cmd_get"),
            replace,
            delete: stat("delete_hits") + stat("delete_misses"),
        }
    })
    .await;
    let items = server.stat("curr_items");
    assert!(items < 30, "{items} items");
}
