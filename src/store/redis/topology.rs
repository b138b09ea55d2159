//! The connections of one runtime to the servers behind an address.

use std::sync::Arc;

use ::redis::{Cmd, RedisConnectionInfo, Value};

use crate::store::redis::address::Servers;
use crate::store::redis::cluster::Cluster;
use crate::store::redis::connection::{Failure, SharedConnection, Target};
use crate::store::redis::dialing::Settings;
use crate::store::redis::sentinel::Master;

/// The servers behind an address.
pub(super) enum Topology {
    One(Arc<SharedConnection>),
    Master(Master),
    Cluster(Arc<Cluster>),
}

impl Topology {
    /// Must be called inside a runtime.
    pub(super) fn new(
        settings: &Settings,
        servers: &Servers,
        sentinel_login: &RedisConnectionInfo,
    ) -> Self {
        match servers.clone() {
            Servers::One(place) => {
                let target = Target::Server(place.into());
                Self::One(Arc::new(SharedConnection::new(settings.clone(), target)))
            }
            Servers::Cluster(seeds) => {
                Self::Cluster(Arc::new(Cluster::new(settings.clone(), seeds)))
            }
            Servers::Sentinel { sentinels, master } => {
                Self::Master(Master::new(settings, sentinels, sentinel_login.clone(), master))
            }
        }
    }

    /// Returns the connection to the server that has the key, if that server is known.
    pub(super) fn connection(&self, key: &str) -> Option<Arc<SharedConnection>> {
        match self {
            Self::One(connection) | Self::Master(Master { connection, .. }) => {
                Some(Arc::clone(connection))
            }
            Self::Cluster(cluster) => cluster.node(key),
        }
    }

    /// Reports that a command was not executed on the connection for its key.
    pub(super) fn suspect(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.renew();
        }
    }

    /// Sends a command to the server that has its key. The command is executed at most once.
    pub(super) async fn send(&self, key: &str, command: &Cmd) -> Result<Value, Failure> {
        let Some(connection) = self.connection(key) else {
            return Box::pin(self.search(key, command)).await;
        };
        match connection.send(command).await {
            Ok(value) => Ok(value),
            Err(failure) => Box::pin(self.go_on(key, command, connection, failure)).await,
        }
    }

    /// Sends a command for a key whose server is not known.
    async fn search(&self, key: &str, command: &Cmd) -> Result<Value, Failure> {
        match self {
            Self::Cluster(cluster) => cluster.send_to_any(key, command).await,
            Self::One(_) | Self::Master(_) => {
                Err(Failure::NotSent("there is no connection to redis".to_owned()))
            }
        }
    }

    /// Handles a failed command. Sends it again if it certainly had no effect and another server may accept
    /// it.
    async fn go_on(
        &self,
        key: &str,
        command: &Cmd,
        connection: Arc<SharedConnection>,
        failure: Failure,
    ) -> Result<Value, Failure> {
        match (self, failure) {
            (Self::Cluster(cluster), failure) => {
                cluster.go_on(key, command, connection, failure).await
            }
            // The old connection has been discarded: after a failover, the name leads to a different server.
            (_, Failure::Answered(answer)) if answer.code == "READONLY" => {
                connection.send(command).await
            }
            (_, failure) => Err(failure),
        }
    }
}
