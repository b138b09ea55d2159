//! The store for Redis and Valkey. Each record is stored as one string, whose first eight bytes are its
//! version.

mod address;
mod answer;
mod check;
mod cluster;
mod compare;
mod connection;
mod dialing;
mod greeting;
mod heartbeat;
mod native;
#[cfg(not(feature = "redis-tls"))]
mod no_tls;
mod place;
mod reply;
mod sanitize;
mod sentinel;
#[cfg(feature = "cli")]
mod survey;
#[cfg(feature = "redis-tls")]
mod tls;
mod topology;
mod waits;

use std::fmt;
use std::ops::RangeInclusive;
#[cfg(feature = "redis-tls")]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::ConnectionLike;
use ::redis::{Cmd, RedisConnectionInfo, RedisFuture, Value, cmd};
use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, Result};
use crate::store::address::ConnectError;
use crate::store::contract::{Created, Deleted, Replaced, Store, Stored};
use crate::store::diagnose::Diagnose;
use crate::store::key::{StoreKey, TAG_LEN};
use crate::store::per_runtime::PerRuntime;
use crate::store::redis::address::{Address, Servers};
use crate::store::redis::compare::{Change, CompareAndSet, version};
use crate::store::redis::connection::Failure;
use crate::store::redis::dialing::Settings;
#[cfg(not(feature = "redis-tls"))]
use crate::store::redis::no_tls as tls;
#[cfg(feature = "redis-tls")]
use crate::store::redis::tls::{Client, Pem, Tls};
use crate::store::redis::topology::Topology;

/// Keeps sessions in Redis (6.2 or newer) or Valkey: on one server, in a Redis Cluster, or on a master that
/// Redis Sentinel monitors.
///
/// ```
/// use std::time::Duration;
///
/// use unsticky::store::RedisStore;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Nothing is sent yet: a connection is opened when a command first needs one.
/// let store = RedisStore::builder("redis://app:secret@localhost:6379")?
///     .response_timeout(Duration::from_millis(250))
///     .build()?;
/// // Debug output never contains the credentials.
/// assert!(!format!("{store:?}").contains("secret"));
/// # Ok(())
/// # }
/// ```
///
/// # Which constructor
///
/// - [`connect`](Self::connect) and [`builder`](Self::builder) open the crate's own connections. Use one of
///   these two; they are the **fast path**.
///   - Each runtime that uses the store has one connection to each server. (actix-web has one runtime per
///     worker.) A blocked runtime therefore does not delay commands from other runtimes.
///   - A connection is opened for the first command and then shared by all commands. Commands that are ready
///     at the same time are sent in one write.
///   - If the server has closed a connection, the next command opens a new one. A connection that has gone
///     silent is replaced after the first command that gets no answer. Host names are resolved for each new
///     connection.
///   - There is no back-off: the first command that is sent after the server is back succeeds. If a server
///     refuses a write because it has become a replica, the store sends the write once more, on a new
///     connection.
/// - [`from_connection`](Self::from_connection) uses a connection from the `redis` crate. Use this
///   constructor only for settings that neither an address nor the builder can express.
///
/// # Compare-and-set
///
/// For `replace` and the conditional `delete`, the server compares and writes in one atomic step. If the
/// server has its own command for this, the store uses that command: `SET … IFEQ` (Valkey 8.1, Redis 8.4),
/// `DELIFEQ` (Valkey 9) or `DELEX … IFEQ` (Redis 8.4). Each of these commands takes the server about half as
/// long as a script. The store runs a short Lua script, which compares the record's write tag, in the
/// remaining cases:
///
/// - the server has no such command, or the user may not run it;
/// - the record is longer than 4 KiB: with the command, the store would have to send the whole old record for
///   the comparison;
/// - the comparison failed, and the store needs to know whether the key holds a different record or is
///   missing;
/// - the connection comes from [`from_connection`](Self::from_connection).
///
/// You may flush the server's script cache at any time.
///
/// The store finds out which of these commands a server has when it first compares a record on a connection.
/// That operation still runs the script; in the background, the store tries the three commands on the key
/// `NAMESPACE:EPOCH:KIND:compare-and-set:{KEY}`, under which nothing is stored.
///
/// # Permissions
///
/// The store needs only the following permissions in the server's access control list (ACL). `NAMESPACE` is
/// the [namespace](crate::Builder::namespace) that you set on the builder.
///
/// ```text
/// # one server
/// ACL SETUSER app on >PASSWORD ~NAMESPACE:* resetchannels -@all +get +set +del +getrange +eval +evalsha
/// # each node of a cluster
/// ACL SETUSER app on >PASSWORD ~NAMESPACE:* resetchannels -@all +get +set +del +getrange +eval +evalsha +cluster|slots +asking
/// # each server that Sentinels watch
/// ACL SETUSER app on >PASSWORD ~NAMESPACE:* resetchannels -@all +get +set +del +getrange +eval +evalsha +role
/// # each Sentinel
/// ACL SETUSER watcher on >PASSWORD resetchannels &+switch-master &+selected-slave &+promoted-slave -@all +sentinel|master +sentinel|get-master-addr-by-name +sentinel|replicas +subscribe
/// ```
///
/// | command | effect if it is not permitted |
/// |---|---|
/// | `GET`, `SET`, `DEL`, `GETRANGE`, `EVAL`, `EVALSHA` | sessions do not work |
/// | `SELECT`, for a database other than 0 | the connection fails |
/// | `DELIFEQ` on Valkey 9, `DELEX` on Redis 8.4 | the store uses the script to delete, which costs the server more time |
/// | `CLUSTER SLOTS` | most commands are sent twice, and a server that is not a cluster node is not recognised as such |
/// | `ASKING` | while a slot is being moved, commands fail for those of its keys that have already moved |
/// | `ROLE` | connecting to a server that Sentinels watch fails |
/// | `SENTINEL MASTER`, `SENTINEL GET-MASTER-ADDR-BY-NAME` | this Sentinel's answer is ignored; if no Sentinel permits both commands, sessions do not work |
/// | `SENTINEL REPLICAS` | in a planned failover, the store writes to the old master for up to a second longer, and these writes are lost |
/// | `SUBSCRIBE`, with the three channels | the store can notice a failover up to a second later |
/// | `CLIENT SETINFO` | none, except that newer servers record the refusal in `ACL LOG` |
///
/// [`Sessions::check`](crate::Sessions::check) also uses the permissions `+info +config|get +time` on each
/// server, also `+cluster|info +cluster|nodes` on each node of a cluster, and only `+info +sentinel|ckquorum`
/// on each Sentinel. If a command is not permitted, a note in the report says what is unknown because of
/// that. Sessions are not affected.
///
/// # Redis Cluster
///
/// An address such as `redis+cluster://a:7000,b:7001` names some of the nodes, and the store learns about the
/// others from these. Every command has one key. The store computes the key's slot and sends the command to
/// the node that serves the slot.
///
/// - A node that does not have the key only answers `MOVED` or `ASK`, and changes nothing. The store then
///   sends the command to the node named in the answer. It follows at most four such redirects. **You can
///   move slots under load**: no request fails and nothing is lost.
/// - The store renews its map of slots in the background, at most once every 100 ms, from the first node that
///   answers. No command waits for this. An outdated map costs only an extra round trip.
/// - While a master is down, its keys are unavailable until the cluster has promoted a replica. The store
///   notices the promotion within about 100 ms. **By default, the whole cluster stops** while any slot has no
///   master. With `cluster-require-full-coverage no`, the other shards continue.
/// - A user's directory record and sessions can be on different shards. While the shard with the directory
///   record is down, the user cannot sign in, and the user's sessions cannot be listed or revoked together;
///   existing sessions continue, except in [strict mode](crate::DirectoryMode::Strict). While the shard with
///   a session is down, only that session is unavailable; the user can sign in again.
/// - Replication is asynchronous, so a failover can lose the last writes: see
///   [below](#what-a-failover-loses).
/// - Nodes must announce addresses that the application can reach. If a node announces no host, the store
///   uses the host of the node that answered.
/// - With TLS, a node's certificate must be valid for the host that the node announces; if the node announces
///   a host name in addition to an IP address (`cluster-announce-hostname`), the certificate must be valid
///   for that name. The certificate of a node in the address must also be valid for the host in the address.
///   Also set `cluster-preferred-endpoint-type hostname`: a redirect to a node that has no slots yet contains
///   only the node's preferred endpoint, and the store does not know the node's host name yet.
///   [`tls_server_name`](RedisBuilder::tls_server_name) replaces all of these names. Nodes pass these
///   announcements to each other over the cluster bus: protect the bus (`tls-cluster yes`), and trust only an
///   authority of your own.
///
/// # Redis Sentinel
///
/// An address such as `redis+sentinel://s1:26379,s2,s3/mymaster` names the Sentinels and the master that they
/// watch. The credentials in the address are for the master and its replicas. Set the Sentinels' credentials
/// with [`sentinel_credentials`](RedisBuilder::sentinel_credentials). With `rediss+sentinel://`, the
/// Sentinels must use TLS as well, and the TLS settings apply to them too. If certificates contain host
/// names, configure the Sentinels to announce host names (`sentinel resolve-hostnames yes` and
/// `sentinel announce-hostnames yes`).
///
/// - For each new connection, the store asks all Sentinels and uses the answer from the Sentinel that knows
///   of the newest failover (the greatest configuration epoch). One answer is enough: after it, the store
///   waits at most 0.1 s for the other Sentinels, so a Sentinel that is down or slow delays a new connection
///   by no more than that. The server named in the answer must then confirm with `ROLE` that it is a master.
/// - Each runtime subscribes to the Sentinels' events and also polls the Sentinels every second. When another
///   server has become the master, the next command goes to that server. During a failover, the store asks
///   the chosen replica itself whether it is already the master, because the Sentinels report a promotion up
///   to a second late.
/// - If a server answers `READONLY`, `MASTERDOWN` or `NOREPLICAS`, the store asks the Sentinels again.
///
/// # What a failover loses
///
/// Redis acknowledges a write before its replicas have received it. If the old master acknowledged a write
/// that its successor never received, the write is lost. The lost write can be a sign-in, a change, or **a
/// sign-out, in which case the session is valid again**. No client can prevent this. As the operator, you can
/// reduce the loss:
///
/// - Before a planned failover with Sentinel, pause writes: `CLIENT PAUSE 10000 WRITE` on the master.
/// - A planned failover in a cluster (`CLUSTER FAILOVER` without `FORCE` or `TAKEOVER`) pauses writes by
///   itself.
/// - With `min-replicas-to-write 1` and `min-replicas-max-lag 2`, a master that is cut off from its replicas
///   refuses writes within about three seconds (at most four). Writes that it acknowledged until then can
///   still be lost.
///
/// The [topologies](crate::guide::topologies) page of the guide has measured figures.
///
/// # TLS
///
/// With the `redis-tls` feature, an address that begins with `rediss://` or `valkeys://` uses TLS. The server
/// must present a certificate that is valid for the host in the address, issued by an authority that the
/// system trusts or, if the `SSL_CERT_FILE` environment variable is set, by one in the file that it names. To
/// change these settings for one store, use the builder or options in the address. The options have the same
/// names as in `redis-cli`.
///
/// | builder | address | meaning |
/// |---|---|---|
/// | `tls_ca_file`, `tls_ca_pem` | `cacert=/path` | the authority to trust **instead of** the system's |
/// | `tls_client_files`, `tls_client_pem` | `cert=/path&key=/path` | the client certificate to present, and its key |
/// | `tls_server_name` | `sni=name` | the name for which the server's certificate must be valid; also sent as SNI |
///
/// All certificates and keys are in PEM format. A builder setting overrides the option in the address.
///
/// `build` and `connect` read the files once and return an error if a file cannot be used. Each new
/// connection reads them again, so a renewed certificate takes effect with the next connection, without a
/// restart. If a file cannot be used at that moment, the connection fails with an error that names the file,
/// and the store recovers when the file can be used again. To replace a file, write the new one under another
/// name and rename it, so that no connection reads a partial file. To replace the authority without an
/// interruption, keep both the old and the new authority in the file for a while.
///
/// # Data of other programs
///
/// The store returns any string under a session's key unchanged, so that the core can report that the string
/// is not a record. A string that is shorter than a write tag never matches an expected record, so no session
/// operation overwrites it. If a key holds anything other than a string, the operation fails with an error.
///
/// Eviction (`maxmemory-policy`) removes sessions and directory records before they expire. Use a server with
/// `noeviction` for sessions.
#[doc(alias("RedisSessionStore", "RedisBackend", "ValkeyStore"))]
#[derive(Clone)]
pub struct RedisStore {
    route: Route,
}

impl RedisStore {
    /// Creates a store from an address, with the default settings of [`RedisBuilder`]. The address has one of
    /// these forms:
    ///
    /// | address | servers |
    /// |---|---|
    /// | `redis://[user:password@]host[:port][/database]` | one server, by default on port 6379 |
    /// | `redis+cluster://[user:password@]host[:port][,host[:port]…]` | the [cluster](Self#redis-cluster) to which these nodes belong; their default port is 6379 |
    /// | `redis+sentinel://[user:password@]host[:port][,host[:port]…]/master[/database]` | the master that these [Sentinels](Self#redis-sentinel) watch under this name; their default port is 26379 |
    /// | `redis+unix:///path?db=0&user=…&pass=…`, `unix://…` | one server, through a Unix socket |
    ///
    /// Except for a Unix socket, write `rediss` in place of `redis`, as in `rediss+cluster://`, for
    /// [TLS](Self#tls), which requires the `redis-tls` feature, and you can write `valkey` and `valkeys` for
    /// `redis` and `rediss`.
    ///
    /// Each form accepts the `?protocol=resp3` option. With TLS, it also accepts the options in the
    /// [table above](Self#tls), as in `rediss://host/?cacert=/etc/redis/ca.pem`. Other options and fragments
    /// are refused. Percent-encode spaces and the characters `#`, `?`, `/`, `@` and `%` in a user name or
    /// password, `:` in a user name, and spaces, `%`, `&`, `+`, `@` and `#` in the value of an option.
    ///
    /// An address that begins with `redis://` must lead to a master. If it leads to a cluster node, a
    /// Sentinel or a replica, the error from the first command that fails says so.
    ///
    /// This function sends nothing and resolves no host name. Commands must run inside a Tokio runtime that
    /// has I/O and time enabled.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] if the address has none of these forms, if a feature that it needs is not enabled, or
    /// if a TLS file cannot be used.
    pub fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::builder(url)?.build()
    }

    /// Returns a builder, with which you can change the settings before you create the store. The address has
    /// one of the forms that [`connect`](Self::connect) lists.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] if the address has none of these forms, or if a feature that it needs is not enabled.
    pub fn builder(url: &str) -> Result<RedisBuilder, ConnectError> {
        let Address { servers, login, tls } = address::parse(url)?;
        let sentinel_login = RedisConnectionInfo::default().set_protocol(login.protocol());
        let settings = Settings::new(login, tls);
        Ok(RedisBuilder { servers, settings, sentinel_login, has_tls_in_vain: false })
    }

    /// Creates a store that uses a connection made by the application: a `MultiplexedConnection`, a
    /// `ConnectionManager`, a `ClusterConnection`, or another type that implements `ConnectionLike`.
    ///
    /// Such a store is slower than one from [`connect`](Self::connect), and reconnecting and time limits are
    /// left to the connection:
    ///
    /// - A `MultiplexedConnection` never reconnects. Use it in tests only.
    /// - Configure a `ConnectionManager` with few retries and short delays: by default, one command can wait
    ///   for more than nine seconds while Redis is down. A `ConnectionManager` does not replace a connection
    ///   that has gone silent.
    /// - **A `ClusterConnection` can hang for good.** In tests with `redis` 1.8.1, a cluster of three masters
    ///   and 64 concurrent callers, it stopped answering, for all shards, in three of three runs in which
    ///   slots were moved, and in three of three runs in which a master was killed. It also retries commands
    ///   by itself. If a retried write is answered with an error, the store reports it as not written, even
    ///   though an earlier attempt may have been carried out. Use a `redis+cluster://` address instead.
    ///
    /// A server that does not know a command echoes the command's arguments, and thus the record, in its
    /// error. The `redis` crate cannot read such an error and treats it as the end of the connection. So if
    /// `SET`, `EVALSHA` or `EVAL` is renamed or disabled, other commands on the same connection fail as well,
    /// and the write is in doubt. The connections that [`connect`](Self::connect) opens do not have this
    /// problem.
    ///
    /// Set `TCP_NODELAY` on the connection; the `redis` crate does not set it by default.
    pub fn from_connection<C>(connection: C) -> Self
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        Self { route: Route::Foreign(Arc::new(connection)) }
    }

    /// Runs a command that reads.
    async fn read(&self, key: &StoreKey, command: &Cmd) -> Result<Value> {
        self.send(key, command).await.map_err(|failure| failure.into_error(Access::Read))
    }

    /// Runs a command that writes. The command is run at most once.
    async fn write(&self, key: &StoreKey, command: &Cmd) -> Result<Value> {
        self.send(key, command).await.map_err(|failure| failure.into_error(Access::Write))
    }

    /// Makes the change, at most once. Returns what the script returns: 1 if the change was made, `Nil` if
    /// the key is missing, or otherwise the record that the key holds.
    async fn compare_and_set(&self, operation: &CompareAndSet<'_>) -> Result<Value> {
        if self.is_done_natively(operation).await? {
            return Ok(Value::Int(1));
        }
        match self.send(operation.key, &operation.by_hash()).await {
            // The server has run no script. `EVAL` runs the script and makes the server cache it.
            Err(Failure::Answered(answer)) if answer.code == "NOSCRIPT" => {
                Box::pin(self.write(operation.key, &operation.by_source())).await
            }
            outcome => outcome.map_err(|failure| failure.into_error(Access::Write)),
        }
    }

    /// Returns whether the server made the change with its own compare-and-set command. If it did not,
    /// nothing was written; the caller then runs the script, which makes the change or shows why it cannot be
    /// made.
    async fn is_done_natively(&self, operation: &CompareAndSet<'_>) -> Result<bool> {
        // A connection made by the application may lead to several servers, some of which may be older.
        let Route::Own(own) = &self.route else { return Ok(false) };
        if !COMPARED.contains(&operation.expected.bytes.len()) {
            return Ok(false);
        }
        let outcome = async {
            let topology = own.topology()?;
            let connection = topology.connection(operation.key.as_str());
            let Some(connection) = connection else { return Ok(Value::Nil) };
            let lease = connection.lease().await.inspect_err(|_| topology.suspect())?;
            let Some(native) = lease.native(operation.key) else { return Ok(Value::Nil) };
            let Some(command) = native.command(operation) else { return Ok(Value::Nil) };
            let outcome = lease.try_to(&command).await;
            match &outcome {
                Err(Failure::Answered(answer)) if answer.is_of_no_such_command() => {
                    native.forget(&operation.change);
                }
                Err(Failure::NotSent(_) | Failure::Lost(_)) => topology.suspect(),
                _ => {}
            }
            outcome
        };
        match outcome.await {
            Ok(Value::Okay | Value::Int(1)) => Ok(true),
            Ok(Value::Nil | Value::Int(0)) => Ok(false),
            Ok(_) => Err(Error::outcome_unknown(
                "redis gave an unexpected answer to a compare-and-set command",
            )),
            Err(Failure::Answered(answer)) if answer.is_of_nothing_written() => Ok(false),
            Err(failure) => Err(failure.into_error(Access::Write)),
        }
    }

    async fn send(&self, key: &StoreKey, command: &Cmd) -> Result<Value, Failure> {
        match &self.route {
            Route::Own(own) => own.topology()?.send(key.as_str(), command).await,
            Route::Foreign(connection) => {
                let answer = connection.send(command).await.and_then(Value::extract_error);
                answer.map_err(|error| Failure::of_foreign(command, &error))
            }
        }
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        let mut command = Cmd::with_capacity(6, key.as_str().len() + bytes.len() + 40);
        command.arg("SET").arg(key.as_str()).arg(&bytes[..]);
        command.arg("PX").arg(milliseconds(ttl)).arg("NX");
        match self.write(key, &command).await? {
            Value::Okay => Ok(Created::Created(version(&bytes))),
            Value::Nil => Ok(Created::Occupied),
            _ => Err(Error::outcome_unknown("redis gave an unexpected answer to SET")),
        }
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        let mut command = Cmd::with_capacity(2, key.as_str().len() + 3);
        command.arg("GET").arg(key.as_str());
        match self.read(key, &command).await? {
            Value::BulkString(bytes) => Ok(Some(stored(bytes))),
            Value::Nil => Ok(None),
            _ => Err(Error::corrupt("redis gave an unexpected answer to GET")),
        }
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        let change = Change::Replace { bytes: &bytes, ttl: milliseconds(ttl) };
        match self.compare_and_set(&CompareAndSet { key, expected, change }).await? {
            Value::Int(1) => Ok(Replaced::Replaced(version(&bytes))),
            Value::BulkString(current) => Ok(Replaced::Conflict(Some(stored(current)))),
            Value::Nil => Ok(Replaced::Missing),
            _ => Err(Error::outcome_unknown(
                "redis gave an unexpected answer to the script that replaces a record",
            )),
        }
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        let answer = match expected {
            Some(expected) => {
                let change = Change::Delete;
                self.compare_and_set(&CompareAndSet { key, expected, change }).await?
            }
            None => self.write(key, cmd("DEL").arg(key.as_str())).await?,
        };
        match answer {
            Value::Int(1) => Ok(Deleted::Deleted),
            Value::BulkString(current) => Ok(Deleted::Conflict(Some(stored(current)))),
            Value::Int(0) | Value::Nil => Ok(Deleted::Missing),
            _ => Err(Error::outcome_unknown("redis gave an unexpected answer to a deletion")),
        }
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        Some(self)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RedisStore");
        if let Route::Own(own) = &self.route {
            own.servers.describe(&mut debug);
        }
        debug.finish_non_exhaustive()
    }
}

/// Configures how a [`RedisStore`] connects. Returned by [`RedisStore::builder`].
///
/// ```
/// use std::time::Duration;
///
/// use unsticky::store::RedisStore;
///
/// # fn main() -> Result<(), unsticky::ConnectError> {
/// let store = RedisStore::builder("redis://localhost")?
///     .connect_timeout(Duration::from_millis(200))
///     .response_timeout(Duration::from_millis(200))
///     .max_waiting(1024)
///     .build()?;
/// # let _ = store;
///
/// // Sentinel credentials are refused unless the address names Sentinels.
/// let builder = RedisStore::builder("redis://localhost")?;
/// assert!(builder.sentinel_credentials(None, "secret").build().is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "call `build` to make the store"]
pub struct RedisBuilder {
    servers: Servers,
    settings: Settings,
    sentinel_login: RedisConnectionInfo,
    /// Whether there are TLS settings although the address does not use TLS.
    has_tls_in_vain: bool,
}

impl RedisBuilder {
    /// Sets how long connecting may take, including name resolution, TLS and authentication. Default: 400 ms.
    ///
    /// If connecting takes longer, the commands that wait for the connection fail with
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// Sets how long a command may wait for its answer. Default: 400 ms. Keep this timeout at least 50 ms
    /// below half of [`Builder::timeout`](crate::Builder::timeout).
    ///
    /// The store looks for overdue commands every 50 ms, or at intervals of this timeout if the timeout is
    /// shorter. A command can therefore fail up to one interval late, and later still if the runtime is
    /// blocked. For a write that gets no answer, the store returns
    /// [`ErrorKind::OutcomeUnknown`](crate::ErrorKind::OutcomeUnknown). The crate then tries to find out
    /// whether the write was applied, and the request gets this error only if that fails.
    ///
    /// When a command is abandoned, its connection is replaced if no command on it has been answered for 100
    /// ms, or for the length of this timeout if that is shorter.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.settings.response_timeout = timeout;
        self
    }

    /// Sets the user and the password for the Sentinels. The credentials in the address are for the servers
    /// that the Sentinels watch. Default: none.
    ///
    /// If the address names no Sentinels, [`build`](Self::build) returns an error.
    pub fn sentinel_credentials(mut self, user: Option<&str>, password: &str) -> Self {
        let mut login = self.sentinel_login.set_password(password);
        if let Some(user) = user {
            login = login.set_username(user);
        }
        self.sentinel_login = login;
        self
    }

    /// Sets how many commands in one runtime may wait for one server, either for a connection or for an
    /// answer. Default: 8192. The minimum is 1.
    ///
    /// Further commands fail at once with [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    pub fn max_waiting(mut self, commands: usize) -> Self {
        self.settings.max_waiting = commands.max(1);
        self
    }

    /// Creates the store. Reads the TLS files, but sends nothing to the servers.
    ///
    /// # Errors
    ///
    /// - [`ConnectError::Tls`] if a certificate, a key or the server name for TLS cannot be used; if the key
    ///   does not belong to the certificate; if the system trusts no certificates and no other authority is
    ///   set; or if there are TLS settings but the address does not use TLS.
    /// - [`ConnectError::Address`] if there are credentials for Sentinels but the address names no Sentinels.
    pub fn build(self) -> Result<RedisStore, ConnectError> {
        if self.has_tls_in_vain {
            return Err(ConnectError::tls(
                "the address does not use TLS; write rediss:// or valkeys:// in place of redis:// or \
                 valkey://",
            ));
        }
        if self.sentinel_login.password().is_some()
            && !matches!(self.servers, Servers::Sentinel { .. })
        {
            return Err(ConnectError::address(
                "sentinel_credentials is set, but the address names no Sentinels; write \
                 redis+sentinel://HOST,HOST/MASTER, or remove sentinel_credentials",
            ));
        }
        if let Some(tls) = &self.settings.tls {
            tls.check()?;
        }
        let Self { servers, settings, sentinel_login, .. } = self;
        let own = Own { servers, settings, sentinel_login, topologies: PerRuntime::new() };
        Ok(RedisStore { route: Route::Own(Arc::new(own)) })
    }
}

/// TLS settings (`redis-tls` feature). See [`RedisStore`](RedisStore#tls).
#[cfg(feature = "redis-tls")]
impl RedisBuilder {
    /// Trusts the authorities whose certificates are in this file, in PEM format, **instead of** those that
    /// the system trusts. Same as `cacert` in the address.
    #[doc(alias = "cacert")]
    pub fn tls_ca_file(self, certificates: impl Into<PathBuf>) -> Self {
        self.with_tls(|tls| tls.authority = Some(Pem::File(certificates.into())))
    }

    /// Trusts the authorities with these certificates, in PEM format, **instead of** those that the system
    /// trusts.
    pub fn tls_ca_pem(self, certificates: impl AsRef<[u8]>) -> Self {
        self.with_tls(|tls| tls.authority = Some(Pem::Bytes(certificates.as_ref().into())))
    }

    /// Sets the client certificate to present if the server asks for one. The first file contains the
    /// certificate and its chain, if there is one; the second file contains the unencrypted private key. Both
    /// are in PEM format. Same as `cert` and `key` in the address. Default: none.
    #[doc(alias = "mtls")]
    pub fn tls_client_files(
        self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        let (certificate, key) = (Pem::File(certificate.into()), Pem::File(key.into()));
        self.with_tls(|tls| tls.client = Some(Client { certificate, key }))
    }

    /// Sets the client certificate to present if the server asks for one: the certificate with its chain, if
    /// there is one, and the unencrypted private key, both in PEM format. Default: none.
    #[doc(alias = "mtls")]
    pub fn tls_client_pem(self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        let certificate = Pem::Bytes(certificate.as_ref().into());
        let key = Pem::Bytes(key.as_ref().into());
        self.with_tls(|tls| tls.client = Some(Client { certificate, key }))
    }

    /// Sets the host name or IP address for which the server's certificate must be valid. A host name is also
    /// sent as SNI. Same as `sni` in the address. Default: the host in the address.
    #[doc(alias = "sni")]
    pub fn tls_server_name(self, name: impl Into<String>) -> Self {
        self.with_tls(|tls| tls.server_name = Some(name.into()))
    }

    fn with_tls(mut self, set: impl FnOnce(&mut Tls)) -> Self {
        match &mut self.settings.tls {
            Some(tls) => set(tls),
            None => self.has_tls_in_vain = true,
        }
        self
    }
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RedisBuilder");
        self.servers.describe(&mut debug);
        debug
            .field("connect_timeout", &self.settings.connect_timeout)
            .field("response_timeout", &self.settings.response_timeout)
            .field("max_waiting", &self.settings.max_waiting)
            .field("tls", &self.settings.tls)
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Route {
    Own(Arc<Own>),
    Foreign(Arc<dyn Foreign>),
}

struct Own {
    servers: Servers,
    settings: Settings,
    sentinel_login: RedisConnectionInfo,
    topologies: PerRuntime<Topology>,
}

impl Own {
    /// Returns the topology of the current runtime.
    fn topology(&self) -> Result<Arc<Topology>, Failure> {
        let make = || Topology::new(&self.settings, &self.servers, &self.sentinel_login);
        let topology = self.topologies.get(make);
        topology.ok_or_else(|| Failure::NotSent("the call runs outside a Tokio runtime".to_owned()))
    }
}

/// A connection made by the application, as a trait object. The connection is cloned for each command.
trait Foreign: Send + Sync {
    fn send<'a>(&'a self, command: &'a Cmd) -> RedisFuture<'a, Value>;
}

impl<C: ConnectionLike + Clone + Send + Sync> Foreign for C {
    fn send<'a>(&'a self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let mut connection = self.clone();
        Box::pin(async move { connection.req_packed_command(command).await })
    }
}

/// Whether a command reads or writes, which determines what a lost answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl Failure {
    fn into_error(self, access: Access) -> Error {
        match self {
            Self::NotSent(reason) | Self::Full(reason) => Error::unavailable(reason),
            Self::Lost(reason) if access == Access::Read => Error::unavailable(reason),
            Self::Lost(reason) => Error::outcome_unknown(reason),
            Self::Answered(answer)
                if access == Access::Write && !answer.is_of_nothing_written() =>
            {
                Error::outcome_unknown(answer.to_string())
            }
            // The server has written nothing: each command writes at most once, as its last step, so a
            // command that fails with an error of this kind did not write.
            Self::Answered(answer) if answer.is_passing() => Error::unavailable(answer.to_string()),
            Self::Answered(answer) => Error::refused(answer.to_string()),
        }
    }
}

/// The lengths, in bytes, of the records for which the server's own compare-and-set command is used. This
/// command needs the whole old record. For longer records the script is cheaper, because it compares only the
/// write tag. A record that is too short to contain a write tag was not written by this crate, and is not
/// changed.
///
/// Measured over loopback on Valkey 9.1 and Redis 8.6 with 64 callers: up to 4 KiB, replacing with the
/// command takes 0.25 to 0.45 of the server time that the script takes, and deleting 0.3 to 0.9. Above 4 KiB,
/// deleting with the command is slower: at 8 KiB it reaches half of the script's throughput. Replacing with
/// the command is faster up to at least 16 KiB if the network costs nothing.
const COMPARED: RangeInclusive<usize> = TAG_LEN..=4096;

/// Converts a time to live to milliseconds, the unit that Redis uses. The result is capped at ten years,
/// because a very large number would overflow the server's clock.
fn milliseconds(ttl: Duration) -> u64 {
    const TEN_YEARS: u128 = 10 * 365 * 24 * 60 * 60 * 1000;
    let rounded_up = ttl.as_nanos().div_ceil(1_000_000).clamp(1, TEN_YEARS);
    u64::try_from(rounded_up).unwrap_or(u64::MAX)
}

fn stored(bytes: Vec<u8>) -> Stored {
    Stored { version: version(&bytes), bytes: Bytes::from(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttl_is_rounded_up_and_bounded() {
        assert_eq!(milliseconds(Duration::ZERO), 1);
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_micros(1_001)), 2);
        assert_eq!(milliseconds(Duration::from_secs(1)), 1_000);
        assert_eq!(milliseconds(Duration::MAX), 315_360_000_000);
    }

    #[test]
    fn address_of_tls_needs_its_feature() {
        for url in ["rediss://h", "valkeys://h"] {
            assert_eq!(RedisStore::connect(url).is_ok(), cfg!(feature = "redis-tls"));
        }
        assert!(RedisStore::connect("redis://h").is_ok());
    }

    #[tokio::test]
    async fn failed_write_on_application_connection_is_always_in_doubt() {
        use std::io::ErrorKind::ConnectionRefused;

        use ::redis::{ErrorKind as Said, Pipeline, RedisError};

        use crate::error::ErrorKind;
        use crate::store::contract::Version;
        use crate::store::samples::{random_key, random_record};

        /// A connection on which every command fails with the given error.
        #[derive(Clone)]
        struct Failing(fn() -> RedisError);

        impl ConnectionLike for Failing {
            fn req_packed_command<'a>(&'a mut self, _: &'a Cmd) -> RedisFuture<'a, Value> {
                Box::pin(async { Err((self.0)()) })
            }

            fn req_packed_commands<'a>(
                &'a mut self,
                _: &'a Pipeline,
                _: usize,
                _: usize,
            ) -> RedisFuture<'a, Vec<Value>> {
                Box::pin(async { Err((self.0)()) })
            }

            fn get_db(&self) -> i64 {
                0
            }
        }

        let failures: [fn() -> RedisError; 4] = [
            || (Said::Client, "no connection is left").into(),
            || (Said::AuthenticationFailed, "it was made anew").into(),
            || std::io::Error::from(ConnectionRefused).into(),
            || std::io::Error::from(std::io::ErrorKind::BrokenPipe).into(),
        ];
        for failure in failures {
            let store = RedisStore::from_connection(Failing(failure));
            let (key, hour) = (random_key(), Duration::from_secs(3600));
            let expected = Stored::new(random_record(8), Version::new(1));
            let read = store.load(&key).await.unwrap_err();
            assert_eq!(read.kind(), ErrorKind::Unavailable, "{read:?}");
            for written in [
                store.create(&key, random_record(8), hour).await.unwrap_err(),
                store.replace(&key, random_record(8), hour, &expected).await.unwrap_err(),
                store.delete(&key, None).await.unwrap_err(),
            ] {
                assert_eq!(written.kind(), ErrorKind::OutcomeUnknown, "{written:?}");
            }
        }
    }

    #[test]
    fn debug_prints_no_credentials() {
        let builder = RedisStore::builder("redis://user:hunter2@h.example:7/1").unwrap();
        let store = builder.clone().build().unwrap();
        let printed = format!("{builder:?} {store:?}");
        assert!(printed.contains("h.example:7"), "{printed}");
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(!printed.contains("user"), "{printed}");
    }
}
