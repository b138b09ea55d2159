//! The `unsticky` command on every kind of server that can store sessions.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::time::Duration;

use support::command::{Ran, Unsticky};
use support::servers::{MemcachedServer, RedisServer};
use support::topologies::{RedisCluster, SentinelSet};
use support::visit::visit;
use unsticky::{Cookie, Session, SessionId, Sessions};

/// Enough users to reach every server of a cluster and of a pool.
const USERS: usize = 24;

struct Application {
    sessions: Sessions,
    url: String,
    /// Each user's cookie and public session id.
    users: Vec<(String, SessionId)>,
}

impl Application {
    async fn new(url: String) -> Self {
        let builder = Sessions::builder(unsticky::connect(&url).unwrap());
        let builder = builder.cookie(Cookie::new("shop")).timeout(Duration::from_secs(10));
        let mut application = Self { sessions: builder.build().unwrap(), url, users: Vec::new() };
        for user in 0..USERS {
            let name = format!("user-{user}");
            let sign_in = async |session: Session| {
                session.sign_in(name)?;
                session.save().await?;
                Ok(session.id().unwrap())
            };
            let visited = visit(&application.sessions, "", sign_in).await;
            let cookie = visited.cookie();
            application.users.push((cookie, visited.ok()));
        }
        application
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let configured = ["--cookie", "shop", "--timeout", "10s"];
        let arguments = [&arguments[..1], &configured, &arguments[1..]].concat();
        Unsticky::new(arguments).env("SESSION_URL", &self.url).run()
    }

    /// Returns the numbers of the users whose sessions are alive.
    async fn alive(&self) -> Vec<usize> {
        let mut alive = Vec::new();
        for (user, (cookie, _)) in self.users.iter().enumerate() {
            let principal = async |session: Session| Ok(session.principal());
            if visit(&self.sessions, cookie, principal).await.ok().is_some() {
                alive.push(user);
            }
        }
        alive
    }

    /// Runs every subcommand that uses the store, and asserts that the sessions change only as requested.
    async fn is_operated(&self, servers: usize) {
        let report = self.run(&["check", "--json"]).json(0);
        assert_ne!(report["level"], "error", "{report:#}");
        let findings = report["findings"].as_array().unwrap();
        let tried = |code: &str| findings.iter().filter(|one| one["code"] == code).count();
        assert_eq!((tried("commands"), tried("round_trip")), (servers, servers), "{report:#}");

        let count = self.run(&["count", "--json"]).json(0);
        assert_eq!(count["total"]["sessions"]["count"], USERS, "{count:#}");
        assert_eq!(count["total"]["directories"]["count"], USERS, "{count:#}");
        assert_eq!(self.alive().await.len(), USERS);

        for (user, (_, id)) in self.users.iter().enumerate() {
            let id = id.to_string();
            let name = format!("user-{user}");
            let listed = self.run(&["sessions", &name, "--json"]).json(0);
            assert_eq!(listed[0]["id"], id, "{listed:#}");
            let shown = self.run(&["show", "--json", "--", &id]).json(0);
            assert_eq!(shown["principal"], name, "{shown:#}");
            match user % 3 {
                0 => drop(self.run(&["revoke", "--", &id]).with_status(0)),
                1 => {
                    let revoked = self.run(&["revoke", "--json", "--all", &name]).json(0);
                    assert_eq!(revoked["count"], 1, "{revoked:#}");
                    assert_eq!(revoked["complete"], true, "{revoked:#}");
                }
                _ => {}
            }
        }
        let left: Vec<_> = (0..USERS).filter(|user| user % 3 == 2).collect();
        assert_eq!(self.alive().await, left);

        let quick = ["bench", "--callers", "4", "--payload", "100", "--json", "--timeout", "10s"];
        let bench = Unsticky::new(quick).env("SESSION_URL", &self.url).run();
        assert_eq!(bench.status, Some(0), "{bench:?}");
        assert_eq!(self.alive().await, left);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_redis_server_is_operated() {
    let server = RedisServer::start();
    Application::new(server.url()).await.is_operated(1).await;
}

mod valkey {
    use super::*;
    use crate::support::servers::ValkeyServer;

    #[tokio::test(flavor = "multi_thread")]
    async fn one_server_is_operated() {
        let server = ValkeyServer::start();
        Application::new(server.url()).await.is_operated(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_is_operated() {
    let cluster = RedisCluster::start();
    Application::new(cluster.url()).await.is_operated(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn master_behind_sentinels_is_operated() {
    let set = SentinelSet::start();
    Application::new(set.url()).await.is_operated(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_of_memcached_servers_is_operated() {
    let servers: Vec<_> = (0..3).map(|_| MemcachedServer::start()).collect();
    let addresses: Vec<_> = servers.iter().map(MemcachedServer::address).collect();
    let url = format!("memcached://{}", addresses.join(","));
    Application::new(url).await.is_operated(3).await;
}
