//! The store for Memcached, over its meta protocol.

mod address;
mod answer;
mod check;
mod lane;
mod node;
mod route;
mod stats;
#[cfg(feature = "cli")]
mod survey;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use memcache::exp::{
    Delete, Get, GetResult, GetStatus, LeaseState, Meta, MutationResult, MutationStatus, Op,
    OpResult, Set, Ttl, ValueState,
};

use self::answer::Effect;
use self::lane::Lane;
use self::node::{Limits, Node};
use crate::error::{Error, Result};
use crate::store::address::ConnectError;
use crate::store::contract::{Created, Deleted, Replaced, Store, Stored, Version};
use crate::store::diagnose::Diagnose;
use crate::store::key::StoreKey;
use crate::store::per_runtime::PerRuntime;

/// Keeps sessions in Memcached, on one server or several.
///
/// ```
/// use unsticky::store::MemcachedStore;
///
/// # fn main() -> Result<(), unsticky::ConnectError> {
/// // Nothing is sent yet: a connection is opened when an operation first needs one.
/// let store = MemcachedStore::connect("memcached://a,b:11212")?;
/// assert_eq!(format!("{store:?}"), r#"MemcachedStore["a:11211", "b:11212"]"#);
/// # Ok(())
/// # }
/// ```
///
/// Operations that are ready at the same moment share a round trip. Each runtime that uses the store has its
/// own queues and its own connections, at most six to each server, so a blocked runtime does not delay calls
/// on other runtimes. (actix-web has one runtime per worker.) Clones of a store share the queues and
/// connections.
///
/// The server must be Memcached 1.6.13 or newer. Do not start it with `-C`, which turns off the versions that
/// this store compares. [`Sessions::check`](crate::Sessions::check) reports a server that is too old or was
/// started with `-C`, and checks the server settings `-I` and `-M`, described under [*Limits*](#limits).
///
/// # Several servers
///
/// Every key is stored on one server: the server with the highest score for that key (rendezvous hashing).
/// The score is the first 8 bytes, as a big-endian number, of `SHA-256(server || 0x00 || key)`, where
/// `server` is `host:port` as configured, with the host in lower case. The order of the servers in the
/// address does not matter. Give every process the same names: `localhost:11211` and `127.0.0.1:11211` count
/// as two different servers.
///
/// Servers have no weights. On a larger machine, run several servers, each on its own port.
///
/// If a server is down, its records are unavailable until it is back, and lost if it was restarted; they do
/// not move to other servers. The records on the other servers are not affected. A user's directory record
/// and sessions can be on different servers. If the server with the directory record is down, the user cannot
/// sign in, and the user's sessions cannot be listed or revoked together. The sessions on other servers
/// continue, and the user can sign out of them. In strict mode
/// ([`DirectoryMode::Strict`](crate::DirectoryMode::Strict)), these sessions are unavailable as well.
///
/// # Changing the list of servers
///
/// **If you add, remove or rename a server, change [`Builder::epoch`](crate::Builder::epoch) in the same
/// release**, to a number that you have never used before. Do the same when you roll back such a release.
/// Every user then has to sign in again.
///
/// ```
/// use unsticky::Sessions;
/// use unsticky::store::MemcachedStore;
///
/// // The previous release had epoch 1 and the servers a, b and c. A release that rolls this one back must
/// // have epoch 3.
/// const EPOCH: u32 = 2;
/// const SERVERS: &str = "memcached://a:11211,b:11211,c:11211,d:11211";
///
/// let sessions = Sessions::builder(MemcachedStore::connect(SERVERS)?).epoch(EPOCH).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// If you kept the epoch, a server that joins *n* others would take over 1/(*n* + 1) of the keys, for example
/// a quarter if *n* is three. Processes with the old list and processes with the new list would look for
/// these records on different servers, and no error or event would report it:
///
/// - Users whose session moved are signed out on the new processes. If they sign out there, or if their
///   session is revoked there, the session remains signed in on the old processes.
/// - A user whose directory record moved can end up with two directory records. `revoke_all` through one
///   record misses the sessions listed in the other, even after the last old process has stopped.
/// - After a rollback, sessions that ended on the new processes can be valid again.
///
/// With a new epoch, a process uses only records that were written under its own list of servers. The old
/// processes continue to serve the sessions of the old epoch until they stop, and the new processes cannot
/// revoke those sessions. If that is not acceptable, stop the old processes before you start the new ones.
///
/// The `memcached_rollout` example performs such a rollout on real servers, once with the old epoch and once
/// with a new one, and counts the effects.
///
/// # Limits
///
/// - The store does not support TLS, authentication or Unix sockets. The network between the application and
///   the servers must be trusted. A port that expects TLS either closes the connection, or waits and so looks
///   like a server that does not answer.
/// - Memcached keeps everything in memory. When the memory is full, it evicts the least recently used
///   records. A restart or an eviction ends sessions. Monitor `evictions` in the server's statistics.
///   [`Sessions::check`](crate::Sessions::check) warns about evictions and about memory that is nearly full.
/// - **If the server refuses a write, the session is lost.** Memcached deletes the old value of a key when it
///   has no room for the new one. Therefore keep the server's maximum item size (`-I`, 1 MB by default) above
///   the size of your largest record, and do not start the server with `-M`.
///   [`Sessions::check`](crate::Sessions::check) warns if either setting is wrong. The store itself refuses
///   records of more than 1,000,000 bytes before sending them; such a refusal changes nothing on the server.
/// - Memcached counts time to live in whole seconds and may expire a key up to a second early. The store
///   therefore rounds up and adds a second. A time to live that would end after January 2038 is shortened to
///   end then.
/// - [`response_timeout`](MemcachedBuilder::response_timeout) covers a whole batch of up to 256 operations.
///   Increase it if your records are far larger than 64 KiB.
/// - Versions are the server's CAS ids, which start over when the server restarts. A restart deletes all
///   records, but a version from before the restart can equal the version of a record that is stored under
///   the same key afterwards.
#[doc(alias("MemcacheStore", "MemcachedSessionStore"))]
#[derive(Clone)]
pub struct MemcachedStore {
    servers: Arc<[Server]>,
}

struct Server {
    address: String,
    limits: Limits,
    lanes: PerRuntime<Lanes>,
}

/// One runtime's queues and connections for a server.
struct Lanes {
    reads: Arc<Lane<Get>>,
    writes: Arc<Lane<Op>>,
}

impl Server {
    fn lanes(&self) -> Result<Arc<Lanes>> {
        let lanes = || {
            let node = Arc::new(Node::new(self.address.clone(), self.limits));
            Lanes {
                reads: Arc::new(Lane::new(Arc::clone(&node), Effect::Read, READ_BATCH)),
                writes: Arc::new(Lane::new(node, Effect::Write, WRITE_BATCH)),
            }
        };
        self.lanes
            .get(lanes)
            .ok_or_else(|| Error::unavailable("the call runs outside a Tokio runtime"))
    }
}

/// Configures the limits of a [`MemcachedStore`]. Returned by [`MemcachedStore::builder`].
///
/// ```
/// use std::time::Duration;
///
/// use unsticky::store::MemcachedStore;
///
/// # fn main() -> Result<(), unsticky::ConnectError> {
/// let store = MemcachedStore::builder("memcached://localhost")?
///     .connect_timeout(Duration::from_millis(200))
///     .response_timeout(Duration::from_millis(200))
///     .max_waiting(1024)
///     .build();
/// assert_eq!(format!("{store:?}"), r#"MemcachedStore["localhost:11211"]"#);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MemcachedBuilder {
    addresses: Vec<String>,
    limits: Limits,
}

impl MemcachedBuilder {
    /// Sets how long name resolution, connecting and the server's first answer may take together. Default:
    /// 400 ms. If the name has several addresses, each gets an equal share of the time that is left.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.limits.connect = timeout;
        self
    }

    /// Sets how long an operation may wait for its answer after it was sent. Default: 400 ms. Keep this
    /// timeout below half of [`Builder::timeout`](crate::Builder::timeout).
    ///
    /// An operation fails without being sent if it has waited in the queue for longer than both this time and
    /// [`connect_timeout`](Self::connect_timeout). An operation that its caller has abandoned in the meantime
    /// is not sent either. When an operation leaves the queue, it may still have to wait for a new
    /// connection.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.limits.response = timeout;
        self
    }

    /// Sets how many reads, and how many writes, may wait for one server in one runtime. Default: 8192 of
    /// each. The minimum is 1.
    ///
    /// Further operations fail at once with [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    #[must_use]
    pub fn max_waiting(mut self, operations: usize) -> Self {
        self.limits.waiting = operations.max(1);
        self
    }

    /// Creates the store. Sends nothing.
    #[must_use]
    pub fn build(self) -> MemcachedStore {
        let limits = self.limits;
        let server = |address| Server { address, limits, lanes: PerRuntime::new() };
        MemcachedStore { servers: self.addresses.into_iter().map(server).collect() }
    }
}

/// A failed read does not affect the other reads in its batch, so only the time that a batch takes limits its
/// size.
const READ_BATCH: usize = 256;

/// If a write is refused, the writes after it in the batch must be read back, so batches are small.
const WRITE_BATCH: usize = 16;

impl MemcachedStore {
    /// Creates a store from an address of the form `memcached://host[:port][,host[:port]…]`, with the default
    /// settings of [`MemcachedBuilder`].
    ///
    /// The default port is 11211. Write an IPv6 address in brackets. This function sends nothing and resolves
    /// no host name.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] if the address does not have that form, lists a server twice, or contains a user, a
    /// password, a weight or a path.
    pub fn connect(url: &str) -> Result<Self, ConnectError> {
        Ok(Self::builder(url)?.build())
    }

    /// Returns a builder that lets you change the limits of the store at this address.
    ///
    /// # Errors
    ///
    /// The same errors as for [`connect`](Self::connect).
    pub fn builder(url: &str) -> Result<MemcachedBuilder, ConnectError> {
        Ok(MemcachedBuilder { addresses: address::parse(url)?, limits: Limits::default() })
    }

    fn server(&self, key: &StoreKey) -> &Server {
        match &*self.servers {
            [only] => only,
            several => {
                &several[route::owner(several.iter().map(|server| &*server.address), key.as_str())]
            }
        }
    }

    async fn set(&self, set: Set, key: &StoreKey) -> Result<MutationResult> {
        self.mutate(Op::Set(set), key).await
    }

    async fn mutate(&self, operation: Op, key: &StoreKey) -> Result<MutationResult> {
        match self.server(key).lanes()?.writes.submit(operation).await? {
            OpResult::Mutation(result) => Ok(result),
            _ => Err(Error::outcome_unknown("memcached answered a write as if it were a read")),
        }
    }
}

impl fmt::Debug for MemcachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.servers.iter().map(|server| &server.address);
        f.write_str("MemcachedStore")?;
        f.debug_list().entries(addresses).finish()
    }
}

#[async_trait]
impl Store for MemcachedStore {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        let set = checked_set(key, &bytes, ttl)?.add();
        let result = self.set(set, key).await?;
        match (result.status, result.cas) {
            (MutationStatus::AlreadyExists, _) => Ok(Created::Occupied),
            (MutationStatus::Applied, Some(cas @ 1..)) => Ok(Created::Created(Version::new(cas))),
            (MutationStatus::Applied, _) => {
                // `Refused` states that nothing was written, so the write is undone.
                match self.mutate(Op::Delete(Delete::new(key.as_str())), key).await {
                    Ok(_) => Err(Error::refused(NO_VERSIONS)),
                    Err(_) => Err(Error::outcome_unknown(NO_VERSIONS)),
                }
            }
            (status, _) => Err(unexpected(status)),
        }
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        check_key(key)?;
        let get = Get::new(key.as_str()).meta(Meta::NONE.cas());
        stored(self.server(key).lanes()?.reads.submit(get).await?)
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        let set = checked_set(key, &bytes, ttl)?.compare_cas(expected.version.get());
        let result = self.set(set, key).await?;
        match (result.status, result.cas) {
            (MutationStatus::CasMismatch, _) => Ok(Replaced::Conflict(None)),
            (MutationStatus::NotFound, _) => Ok(Replaced::Missing),
            (MutationStatus::Applied, Some(cas @ 1..)) => Ok(Replaced::Replaced(Version::new(cas))),
            (MutationStatus::Applied, _) => Err(Error::outcome_unknown(NO_VERSIONS)),
            (status, _) => Err(unexpected(status)),
        }
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        check_key(key)?;
        let mut delete = Delete::new(key.as_str());
        delete.compare_cas = expected.map(|expected| expected.version.get());
        match self.mutate(Op::Delete(delete), key).await?.status {
            MutationStatus::Applied => Ok(Deleted::Deleted),
            MutationStatus::CasMismatch => Ok(Deleted::Conflict(None)),
            MutationStatus::NotFound => Ok(Deleted::Missing),
            status => Err(unexpected(status)),
        }
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        Some(self)
    }
}

const NO_VERSIONS: &str =
    "the memcached server keeps no versions; start it without -C (--disable-cas)";

fn unexpected(status: MutationStatus) -> Error {
    Error::outcome_unknown(format!("memcached gave an unexpected answer to a write: {status:?}"))
}

fn stored(result: GetResult) -> Result<Option<Stored>> {
    // Leases and stale items can only come from another program that uses the same keys.
    let plain = result.lease_state == LeaseState::None && result.value_state != ValueState::Stale;
    match (result.status, result.value, result.item.cas) {
        (GetStatus::Miss, None, _) => Ok(None),
        (GetStatus::Hit, Some(_), None | Some(0)) => Err(Error::refused(NO_VERSIONS)),
        (GetStatus::Hit, Some(bytes), Some(cas)) if plain => {
            Ok(Some(Stored { bytes: Bytes::from(bytes), version: Version::new(cas) }))
        }
        (status, _, _) => Err(Error::corrupt(format!(
            "memcached gave an unexpected answer to a read: {status:?}"
        ))),
    }
}

/// Slightly less than the largest item that a server with the default settings accepts.
///
/// A server that refuses a new value because of its length deletes the old one, so longer records are not
/// sent.
const MAX_BYTES: usize = 1_000_000;

fn checked_set(key: &StoreKey, bytes: &Bytes, ttl: Duration) -> Result<Set> {
    check_key(key)?;
    if bytes.len() > MAX_BYTES {
        return Err(Error::too_large(format!(
            "the record has {} bytes, and the store sends at most {MAX_BYTES} to memcached",
            bytes.len()
        )));
    }
    Ok(Set::new(key.as_str(), bytes).ttl(expiry(ttl, SystemTime::now())).return_cas())
}

/// Refuses keys that Memcached would not accept. If a key were too long, the server would read the record
/// that follows it as commands. One bad key would also make its whole batch fail.
fn check_key(key: &StoreKey) -> Result<()> {
    let key = key.as_str();
    if key.len() > memcache::exp::MAX_KEY_LENGTH {
        return Err(Error::too_large("the key is longer than 250 bytes"));
    }
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::refused("the key is empty, or not printable ASCII without spaces"));
    }
    Ok(())
}

/// The largest number that the server reads as a duration. It reads larger numbers as timestamps.
const MAX_RELATIVE: u64 = 30 * 24 * 60 * 60;

/// The latest timestamp that the server can represent. A key with a later timestamp expires at once, or
/// never.
const LAST_MOMENT: u64 = i32::MAX as u64;

fn expiry(ttl: Duration, now: SystemTime) -> Ttl {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    let seconds = seconds.saturating_add(1);
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let moment = now.saturating_add(seconds).min(LAST_MOMENT);
    if moment > now.saturating_add(MAX_RELATIVE) {
        Ttl::at(UNIX_EPOCH + Duration::from_secs(moment))
    } else {
        Ttl::secs(seconds.min(MAX_RELATIVE) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_epoch(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn ttl_is_rounded_up_plus_one_second() {
        let now = after_epoch(1_800_000_000);
        assert_eq!(expiry(Duration::from_millis(1), now), Ttl::secs(2));
        assert_eq!(expiry(Duration::from_secs(1), now), Ttl::secs(2));
        assert_eq!(expiry(Duration::from_millis(1001), now), Ttl::secs(3));
        assert_eq!(expiry(Duration::from_secs(MAX_RELATIVE - 1), now), Ttl::secs(2_592_000));
    }

    #[test]
    fn ttl_over_thirty_days_becomes_timestamp_before_2038() {
        let now = after_epoch(1_800_000_000);
        let month = Duration::from_secs(MAX_RELATIVE);
        assert_eq!(expiry(month, now), Ttl::at(after_epoch(1_800_000_000 + MAX_RELATIVE + 1)));
        assert_eq!(expiry(Duration::MAX, now), Ttl::at(after_epoch(LAST_MOMENT)));
        // After that moment, the store can only send a relative time.
        let late = after_epoch(LAST_MOMENT);
        assert_eq!(expiry(Duration::MAX, late), Ttl::secs(MAX_RELATIVE as u32));
    }

    #[test]
    fn ttl_that_ends_in_2038_is_relative_once_that_is_near() {
        let month_before = after_epoch(LAST_MOMENT - MAX_RELATIVE);
        let month = Duration::from_secs(MAX_RELATIVE);
        assert_eq!(expiry(month, month_before), Ttl::secs(MAX_RELATIVE as u32));
    }

    #[test]
    fn key_that_server_would_misread_is_refused() {
        use crate::error::ErrorKind;
        use crate::store::key::Kind;
        let key = |length: usize, end: &str| {
            let prefix = StoreKey::new("", Kind::Session, "").as_str().len();
            let id = format!("{}{end}", "x".repeat(length - prefix - end.len()));
            StoreKey::new("", Kind::Session, &id)
        };
        assert_eq!(key(250, "").as_str().len(), 250);
        check_key(&key(250, "")).unwrap();
        assert_eq!(check_key(&key(251, "")).unwrap_err().kind(), ErrorKind::TooLarge);
        for end in [" ", "\r\n", "\0", "é", "\u{7f}"] {
            let error = check_key(&key(100, end)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{end:?}");
        }
    }

    #[test]
    fn debug_prints_server_addresses() {
        let store = MemcachedStore::connect("memcached://A,[::1]:2").unwrap();
        assert_eq!(format!("{store:?}"), r#"MemcachedStore["a:11211", "[::1]:2"]"#);
    }
}
