//! The permissions that the documentation of `RedisStore` lists are sufficient, and each is necessary.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use support::servers::{Redis84Server, RedisServer, ValkeyServer};
use support::topologies::{RedisCluster, SentinelSet, eventually};
use support::visit::{Visit, rotate, sign_in, sign_out, visit};
use unsticky::store::RedisStore;
use unsticky::{Key, Session, Sessions};

const NUMBER: Key<u64> = Key::new("number");

/// Returns the words of the line below this title in the documentation, with the placeholders filled
/// in.
fn documented(title: &str) -> Vec<String> {
    let text = include_str!("../src/store/redis/mod.rs");
    let mut lines = text.lines().skip_while(|line| line.trim_start_matches("/// ") != title);
    let line = lines.nth(1).unwrap().trim_start_matches("/// ");
    let line = line.replace("PASSWORD", "sesame7").replace("NAMESPACE", "shop");
    line.split(' ').map(str::to_owned).collect()
}

/// Returns the commands among these words.
fn commands(words: &[String]) -> Vec<&String> {
    words.iter().filter(|word| word.starts_with('+')).collect()
}

/// Recreates the user without one of the words and with an additional one.
fn permit(server: &RedisServer, words: &[String], without: &str, with: &str) {
    let _ = server.ask(&["ACL", "DELUSER", &words[2]]);
    let words = words.iter().map(String::as_str).filter(|word| *word != without);
    let words: Vec<_> = words.chain([with]).filter(|word| !word.is_empty()).collect();
    server.cli(&words);
}

/// Does everything that an application does with its sessions, as a new process on a new server would.
/// Returns the first failure.
async fn is_in_order(server: &RedisServer, store: RedisStore) -> Result<(), String> {
    fn answered<T>(visit: Visit<T>) -> Result<Visit<T>, String> {
        match visit.failure() {
            None => Ok(visit),
            Some(kind) => Err(format!("{kind:?}")),
        }
    }
    let told = |error: unsticky::Error| error.to_string();
    server.cli(&["SCRIPT", "FLUSH"]);
    server.cli(&["FLUSHALL"]);
    let sessions = Sessions::builder(store).namespace("shop").build().unwrap();
    let count = async |session: Session| session.update(NUMBER, |number| *number += 1);
    let counted = async |session: Session| session.get(NUMBER);

    let first = answered(visit(&sessions, "", sign_in).await)?.cookie();
    answered(visit(&sessions, &first, count).await)?;
    let first = answered(visit(&sessions, &first, rotate).await)?.cookie();
    let second = answered(visit(&sessions, "", sign_in).await)?.cookie();
    let alice = sessions.of("alice");
    assert_eq!(alice.list().await.map_err(told)?.len(), 2);
    assert!(answered(visit(&sessions, &second, sign_out).await)?.removes_cookie());
    assert_eq!(answered(visit(&sessions, &first, counted).await)?.ok(), Some(1));
    assert_eq!(alice.revoke_all().await.map_err(told)?.count, 1);
    assert_eq!(answered(visit(&sessions, &first, counted).await)?.ok(), None);
    Ok(())
}

/// Asserts that everything works with these permissions, and that it fails if any one of them is
/// missing, except the optional ones.
async fn is_exact(
    server: &RedisServer,
    words: &[String],
    optional: &[&str],
    connect: impl Fn() -> RedisStore,
) {
    permit(server, words, "", "");
    assert_eq!(is_in_order(server, connect()).await, Ok(()));
    for command in commands(words) {
        permit(server, words, command, "");
        let outcome = is_in_order(server, connect()).await;
        assert_eq!(outcome.is_ok(), optional.contains(&&command[..]), "{command}: {outcome:?}");
    }
    permit(server, words, "", "");
}

fn with_user(url: &str) -> RedisStore {
    RedisStore::connect(&url.replace("://", "://app:sesame7@")).unwrap()
}

/// The permissions for a single server, also with a database number in the URL.
#[tokio::test]
async fn one_server() {
    let (server, mut words) = (RedisServer::start(), documented("# one server"));
    is_exact(&server, &words, &[], || with_user(&server.url())).await;
    words.push("+select".to_owned());
    is_exact(&server, &words, &[], || with_user(&format!("{}3", server.url()))).await;
    // With a pattern for other keys, the user cannot access the application's keys.
    permit(&server, &words, "~shop:*", "~other:*");
    assert!(is_in_order(&server, with_user(&server.url())).await.is_err());
}

/// The permissions for each node of a cluster.
#[tokio::test]
async fn node_of_cluster() {
    let cluster = RedisCluster::single(&[]);
    let words = documented("# each node of a cluster");
    let optional = ["+cluster|slots", "+asking"];
    is_exact(&cluster.nodes()[0], &words, &optional, || with_user(&cluster.url())).await;
    // `ASKING` is needed only while slots are being moved.
    for command in [&["ASKING"][..], &["CLUSTER", "SLOTS"]] {
        let asked = [&["ACL", "DRYRUN", "app"], command].concat();
        assert_eq!(cluster.nodes()[0].cli(&asked), "OK");
    }
}

/// The permissions for the servers that Sentinels watch, and for the Sentinels themselves.
#[tokio::test]
async fn server_behind_sentinel_and_sentinel() {
    let set = SentinelSet::single(&[]);
    let (server, sentinel) = (&set.servers()[0], &set.sentinels()[0]);
    let connect = || {
        let url = set.url().replace("://", "://app:sesame7@");
        let builder = RedisStore::builder(&url).unwrap();
        builder.sentinel_credentials(Some("watcher"), "sesame7").build().unwrap()
    };
    let watcher = documented("# each Sentinel");
    permit(sentinel, &watcher, "", "");
    is_exact(server, &documented("# each server that Sentinels watch"), &[], connect).await;

    let optional = ["+sentinel|replicas", "+subscribe"];
    let channels = watcher.iter().filter(|word| word.starts_with('&'));
    for word in commands(&watcher).into_iter().chain(channels) {
        permit(sentinel, &watcher, word, "");
        let outcome = is_in_order(server, connect()).await;
        let is_optional = optional.contains(&&word[..]) || word.starts_with('&');
        assert_eq!(outcome.is_ok(), is_optional, "{word}: {outcome:?}");
    }
    // Checks what the optional permissions are for.
    let subscribed = || sentinel.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]).contains("sub=3");
    eventually("a subscription is left", || !subscribed());
    permit(sentinel, &watcher, "", "");
    let store = connect();
    assert_eq!(is_in_order(server, store.clone()).await, Ok(()));
    eventually("there is no subscription", subscribed);
    let asked = ["ACL", "DRYRUN", "watcher", "SENTINEL", "REPLICAS", "mymaster"];
    assert_eq!(sentinel.cli(&asked), "OK");
}

/// On a server with its own compare-and-set, the permission for its conditional delete is enough to use
/// it.
async fn server_that_compares(server: &RedisServer, delete: &str) {
    let words = documented("# one server");
    is_exact(server, &words, &[], || with_user(&server.url())).await;
    let deleted = server.calls(delete);
    permit(server, &words, "", &format!("+{delete}"));
    let store = with_user(&server.url());
    // In the second round, the store knows what the server supports.
    for _ in 0..2 {
        assert_eq!(is_in_order(server, store.clone()).await, Ok(()));
    }
    assert!(server.calls(delete) > deleted + 1, "it is probed and then used");
}

mod valkey {
    #[tokio::test]
    async fn server_that_compares() {
        super::server_that_compares(&super::ValkeyServer::start(), "delifeq").await;
    }
}

mod redis84 {
    #[tokio::test]
    async fn server_that_compares() {
        super::server_that_compares(&super::Redis84Server::start(), "delex").await;
    }
}
