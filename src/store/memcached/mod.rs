//! Sessions on Memcached, over its meta protocol.

mod address;
mod answer;
mod check;
mod lane;
mod node;
mod route;
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

/// Sessions on one Memcached server or on several.
///
/// Nothing is sent and no name is resolved before the first call. Operations that are ready at the
/// same moment share a round trip. Each runtime that uses the store has queues and connections of
/// its own, at most six to each server, so a runtime that is blocked delays no other one's calls.
/// A clone shares them.
///
/// The server must be 1.6.13 or later and must not be started with `-C`, which turns the versions off
/// that this store compares.
///
/// # Several servers
///
/// Every key lives on one server, the one with the highest score: the first 8 bytes, as a
/// big-endian number, of `SHA-256(server || 0x00 || key)`, where `server` is `host:port` as
/// configured, the host in lower case. The order in the address does not matter. Give every process
/// the same names: `localhost:11211` and `127.0.0.1:11211` are two servers here.
///
/// Servers have no weights. Let a larger machine run several servers, each on a port of its own.
///
/// A server that is down is not taken out: its records are unavailable until it is back, and the others
/// are not affected. The directory of an account is a record of its own. If it is on a server that is
/// down, the user cannot sign in, and the account's sessions cannot be listed or revoked. The user's
/// sessions on other servers go on, and the user can sign out of them. In strict mode
/// ([`DirectoryMode::Strict`](crate::DirectoryMode::Strict)) they are unavailable, too.
///
/// # Changing the list of servers
///
/// **If you add, remove or rename a server, change [`Builder::epoch`](crate::Builder::epoch) in the same
/// release**, to a number that was never used before. The same holds when you roll such a release back.
/// Every user then has to sign in once more.
///
/// ```
/// use unsticky::Sessions;
/// use unsticky::store::MemcachedStore;
///
/// // The release before had epoch 1 and the servers a, b and c. If this one is rolled back, the next
/// // release has epoch 3.
/// const EPOCH: u32 = 2;
/// const SERVERS: &str = "memcached://a:11211,b:11211,c:11211,d:11211";
///
/// let sessions = Sessions::builder(MemcachedStore::connect(SERVERS)?).epoch(EPOCH).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// With the same epoch, a server that joins *n* others takes over 1/(*n* + 1) of the keys, a quarter if
/// there were three. Processes with the old list and processes with the new list look for these records
/// on different servers, and neither an error nor an event reports it:
///
/// - Users whose session moved are signed out at the new processes. If they sign out there, or if their
///   session is revoked there, it stays signed in at the old processes.
/// - Accounts whose directory moved have two of them. `revoke_all` through one of them misses the
///   sessions in the other, even after the last old process has stopped.
/// - A roll-back makes sessions valid again that had ended.
///
/// With another epoch, every record that a process knows was written under its own list. Until they stop,
/// the old processes go on to serve the sessions of the old epoch, which the new processes cannot end.
/// If that must not be, stop the old processes before you start the new ones.
///
/// The example `memcached_rollout` runs both kinds of rollout on servers of yours, and counts.
///
/// # Limits
///
/// - No TLS, no authentication, no unix socket: the network between must be trusted. A port for TLS
///   closes the connection, or waits and looks like a server that does not answer.
/// - Memcached keeps everything in memory and evicts what was used least when that is full. A
///   restart, or an eviction, ends sessions; watch `evictions` in the server's statistics.
/// - **A write that the server itself refuses loses the session.** Memcached deletes what stands
///   under a key when it has no room for the new value, so keep its largest item (`-I`, 1 MB by
///   default) above the largest record, and do not start it with `-M`. Records of more than
///   1,000,000 bytes are refused before they are sent and change nothing.
/// - Time to live counts in whole seconds and may end a second early on the server, so it is
///   rounded up and a second is added. A time to live beyond January 2038 ends there.
/// - Records share a connection, and
///   [`response_timeout`](MemcachedBuilder::response_timeout) covers a whole batch of up to 256:
///   raise it where records are far larger than 64 KiB.
/// - Versions are the server's CAS ids, which begin anew when it restarts. All records are gone then,
///   but a version from before may name what was stored under the same key since.
#[derive(Clone)]
pub struct MemcachedStore {
    servers: Arc<[Server]>,
}

struct Server {
    address: String,
    limits: Limits,
    lanes: PerRuntime<Lanes>,
}

/// What one runtime has of a server.
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
        self.lanes.get(lanes).ok_or_else(|| Error::unavailable("there is no tokio runtime here"))
    }
}

/// Builds a [`MemcachedStore`] with other limits.
#[derive(Debug, Clone)]
pub struct MemcachedBuilder {
    addresses: Vec<String>,
    limits: Limits,
}

impl MemcachedBuilder {
    /// How long resolving the name, connecting and the server's first answer may take together;
    /// 400 ms by default. If the name has several addresses, each one gets an equal share of what is
    /// left.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.limits.connect = timeout;
        self
    }

    /// How long the answer to an operation may take once it is sent; 400 ms by default. Keep it under
    /// half of the sessions' own [`timeout`](crate::Builder::timeout).
    ///
    /// An operation that waited to be sent for longer than this and the
    /// [`connect_timeout`](Self::connect_timeout) each is given up; what its caller has given up by
    /// then is not sent either. Once it is to be sent, one more connection may have to be made.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.limits.response = timeout;
        self
    }

    /// How many reads, and how many writes, may wait for one server in one runtime; those beyond
    /// fail at once with [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable). 8192 by default;
    /// at least one always may.
    #[must_use]
    pub fn max_waiting(mut self, operations: usize) -> Self {
        self.limits.waiting = operations.max(1);
        self
    }

    /// The store; nothing is sent yet.
    #[must_use]
    pub fn build(self) -> MemcachedStore {
        let limits = self.limits;
        let server = |address| Server { address, limits, lanes: PerRuntime::new() };
        MemcachedStore { servers: self.addresses.into_iter().map(server).collect() }
    }
}

/// Reads never fail each other, so only the time that a batch takes bounds them.
const READ_BATCH: usize = 256;

/// A refused write costs the writes behind it in the batch a reading back, so batches are small.
const WRITE_BATCH: usize = 16;

impl MemcachedStore {
    /// The store of `memcached://host[:port][,host[:port]…]`, with the default timeouts.
    ///
    /// The port is 11211 by default; an IPv6 address stands in brackets.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] where the address is not of that form, names a server twice, or holds a
    /// user, a password, a weight or a path.
    pub fn connect(url: &str) -> Result<Self, ConnectError> {
        Ok(Self::builder(url)?.build())
    }

    /// Like [`connect`](Self::connect), with timeouts to be set.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
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
            _ => Err(Error::outcome_unknown("the answer to a write was not one to a write")),
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
                // A refusal says that nothing was written, so take back what was.
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
    "the memcached server keeps no versions: start it without -C (--disable-cas)";

fn unexpected(status: MutationStatus) -> Error {
    Error::outcome_unknown(format!("memcached gave an unexpected answer to a write: {status:?}"))
}

fn stored(result: GetResult) -> Result<Option<Stored>> {
    // Leases and stale items are the work of another program on the same keys.
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

/// A little under the largest item of a server with the default settings.
///
/// The server deletes the old value when it refuses a new one for its length.
const MAX_BYTES: usize = 1_000_000;

fn checked_set(key: &StoreKey, bytes: &Bytes, ttl: Duration) -> Result<Set> {
    check_key(key)?;
    if bytes.len() > MAX_BYTES {
        return Err(Error::too_large(format!(
            "{} bytes are over the {MAX_BYTES} that a memcached server is sent",
            bytes.len()
        )));
    }
    Ok(Set::new(key.as_str(), bytes).ttl(expiry(ttl, SystemTime::now())).return_cas())
}

/// A key that is too long makes the server read the record as commands, and one bad key fails its
/// whole batch; so no such key is queued.
fn check_key(key: &StoreKey) -> Result<()> {
    let key = key.as_str();
    if key.len() > memcache::exp::MAX_KEY_LENGTH {
        return Err(Error::too_large("the key is over 250 bytes"));
    }
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::refused("the key is empty or not printable ascii"));
    }
    Ok(())
}

/// What the server reads as a duration; anything larger is a moment to it.
const MAX_RELATIVE: u64 = 30 * 24 * 60 * 60;

/// The last moment that the server can count to; later ones are over at once, or never.
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
        // From then on there is nothing better than a relative time.
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
