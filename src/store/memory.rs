//! The store in the memory of this process.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dashmap::{DashMap, Entry};
use time::OffsetDateTime;

use crate::check::Finding;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::store::contract::{Created, Deleted, Replaced, Store, Stored, Version};
use crate::store::diagnose::{Diagnose, Probe};
use crate::store::key::StoreKey;

/// Keeps records in the memory of this process: for development, for tests, and for an application that runs
/// as a single process.
///
/// Processes do **not** share their records, and all sessions end when the process ends. An application with
/// several processes, or one whose users must stay signed in across a restart, needs Redis or Memcached.
///
/// Clones of a store share its records. The number of records is limited: see
/// [`with_capacity`](Self::with_capacity).
///
/// ```
/// use unsticky::store::MemoryStore;
///
/// let store = MemoryStore::new().with_capacity(10_000);
/// assert!(store.is_empty());
/// ```
#[doc(alias("InMemory", "SessionMemoryStore", "MemoryBackend"))]
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    capacity: usize,
}

struct Shared {
    records: DashMap<StoreKey, Record>,
    /// The number of records. It is increased before each insert, so that the capacity is exact.
    count: AtomicUsize,
    /// The last version assigned. All keys share the counter, so no key ever has the same version twice.
    version: AtomicU64,
    /// The number of creates since the last sweep.
    created: AtomicUsize,
    /// The number of records left after the last sweep.
    left: AtomicUsize,
    /// The second, according to the clock, in which a full store was last swept.
    swept: AtomicI64,
}

struct Record {
    bytes: Bytes,
    version: Version,
    expires: OffsetDateTime,
}

impl MemoryStore {
    /// The default for [`with_capacity`](Self::with_capacity): 100 000 records.
    pub const DEFAULT_CAPACITY: usize = 100_000;

    /// The minimum number of creates between two sweeps, so that a small store is not swept all the time.
    const SWEEP_AFTER: usize = 1024;

    /// Creates an empty store that uses the system's clock and holds up to 100 000 records.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(SystemClock)
    }

    /// Creates an empty store that uses this clock to expire records and holds up to 100 000 records.
    ///
    /// In tests, give the same
    /// [`ManualClock`](https://docs.rs/unsticky/latest/unsticky/testing/struct.ManualClock.html)
    /// to the store and to [`Builder::clock`](crate::Builder::clock).
    #[must_use]
    pub fn with_clock(clock: impl Clock) -> Self {
        Self {
            shared: Arc::new(Shared {
                records: DashMap::new(),
                count: AtomicUsize::new(0),
                version: AtomicU64::new(0),
                created: AtomicUsize::new(0),
                left: AtomicUsize::new(0),
                swept: AtomicI64::new(i64::MIN),
            }),
            clock: Arc::new(clock),
            capacity: Self::DEFAULT_CAPACITY,
        }
    }

    /// Sets the maximum number of records. Default: 100 000.
    ///
    /// While the store is full, it refuses new records with
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused), and removes expired records at most once a second.
    /// It never evicts a live session: if it did, a visitor without an account could sign other users out by
    /// creating sessions.
    #[must_use]
    pub fn with_capacity(mut self, max_entries: usize) -> Self {
        self.capacity = max_entries;
        self
    }

    /// Returns the number of records. Expired records count until they are removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// Returns whether the store has no records. Expired records count until they are removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn record(&self, bytes: Bytes, ttl: Duration, now: OffsetDateTime) -> Record {
        let ttl = time::Duration::try_from(ttl).unwrap_or(time::Duration::MAX);
        let version = self.shared.version.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Record { bytes, version: Version::new(version), expires: now.saturating_add(ttl) }
    }

    /// Creates the record, or returns the bytes if the store is full.
    fn try_create(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        now: OffsetDateTime,
    ) -> Result<Created, Bytes> {
        // The entry holds the key's lock until the end of this function.
        match self.shared.records.entry(key.clone()) {
            Entry::Occupied(entry) if entry.get().is_live(now) => Ok(Created::Occupied),
            Entry::Occupied(mut entry) => {
                let record = self.record(bytes, ttl, now);
                let version = record.version;
                entry.insert(record);
                Ok(Created::Created(version))
            }
            Entry::Vacant(_) if !self.reserve() => Err(bytes),
            Entry::Vacant(entry) => {
                let record = self.record(bytes, ttl, now);
                let version = record.version;
                entry.insert(record);
                Ok(Created::Created(version))
            }
        }
    }

    fn reserve(&self) -> bool {
        let room = |count| (count < self.capacity).then_some(count + 1);
        self.shared.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }

    /// Sweeps once the number of creates since the last sweep has reached the number of records that the
    /// sweep left, or `SWEEP_AFTER` if that is greater. A create therefore costs amortised O(1), and between two
    /// sweeps the store at most about doubles in size or grows by `SWEEP_AFTER` records.
    fn sweep_if_due(&self, now: OffsetDateTime) {
        let created = self.shared.created.fetch_add(1, Ordering::Relaxed);
        if created >= self.shared.left.load(Ordering::Relaxed).max(Self::SWEEP_AFTER) {
            self.sweep(now);
        }
    }

    /// Sweeps a full store, at most once a second. A sweep visits every record, which is too expensive to do
    /// for every create that is refused anyway.
    fn sweep_if_full(&self, now: OffsetDateTime) {
        let second = now.unix_timestamp();
        if self.shared.swept.swap(second, Ordering::Relaxed) != second {
            self.sweep(now);
        }
    }

    fn sweep(&self, now: OffsetDateTime) {
        self.shared.created.store(0, Ordering::Relaxed);
        self.shared.records.retain(|_, record| {
            let live = record.is_live(now);
            if !live {
                self.shared.count.fetch_sub(1, Ordering::Relaxed);
            }
            live
        });
        self.shared.left.store(self.len(), Ordering::Relaxed);
    }
}

impl Record {
    fn is_live(&self, now: OffsetDateTime) -> bool {
        now < self.expires
    }

    fn stored(&self) -> Stored {
        Stored { bytes: self.bytes.clone(), version: self.version }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("len", &self.len())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        let now = self.clock.now();
        self.sweep_if_due(now);
        self.try_create(key, bytes, ttl, now)
            .or_else(|bytes| {
                self.sweep_if_full(now);
                self.try_create(key, bytes, ttl, now)
            })
            .map_err(|_| {
                let capacity = self.capacity;
                Error::refused(format!(
                    "the memory store is full: its capacity is {capacity} records \
                     (MemoryStore::with_capacity)"
                ))
            })
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        let now = self.clock.now();
        let record = self.shared.records.get(key);
        Ok(record.filter(|record| record.is_live(now)).map(|record| record.stored()))
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        let now = self.clock.now();
        // The guard holds the key's lock until the end of this function.
        let Some(mut record) = self.shared.records.get_mut(key) else {
            return Ok(Replaced::Missing);
        };
        if !record.is_live(now) {
            return Ok(Replaced::Missing);
        }
        if record.version != expected.version {
            return Ok(Replaced::Conflict(Some(record.stored())));
        }
        *record = self.record(bytes, ttl, now);
        Ok(Replaced::Replaced(record.version))
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        let now = self.clock.now();
        let mut outcome = Deleted::Missing;
        let removed = self.shared.records.remove_if(key, |_, record| {
            outcome = if !record.is_live(now) {
                Deleted::Missing
            } else if expected.is_none_or(|expected| expected.version == record.version) {
                Deleted::Deleted
            } else {
                Deleted::Conflict(Some(record.stored()))
            };
            !matches!(outcome, Deleted::Conflict(_))
        });
        if removed.is_some() {
            self.shared.count.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(outcome)
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        Some(self)
    }
}

#[async_trait]
impl Diagnose for MemoryStore {
    async fn diagnose(&self, probe: &Probe) {
        probe.report(Finding::warning(
            "memory_store",
            "Sessions are kept in the memory of this process.",
            "Use Redis or Memcached in production: other processes cannot see these sessions, and they are \
             lost when this process ends.",
        ));
        probe.try_store(self).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::manual::ManualClock;
    use crate::error::ErrorKind;
    use crate::store::samples::{random_key, random_record};

    const HOUR: Duration = Duration::from_secs(3600);

    async fn create(store: &MemoryStore, ttl: Duration) -> Result<Created> {
        store.create(&random_key(), random_record(16), ttl).await
    }

    #[tokio::test]
    async fn full_store_refuses_new_records_and_keeps_existing_records() {
        let store = MemoryStore::with_clock(ManualClock::new()).with_capacity(2);
        let key = random_key();
        store.create(&key, random_record(16), HOUR).await.unwrap();
        create(&store, HOUR).await.unwrap();
        let error = create(&store, HOUR).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let again = store.create(&key, random_record(16), HOUR).await;
        assert_eq!(again.unwrap(), Created::Occupied);
        let stored = store.load(&key).await.unwrap().unwrap();
        let replaced = store.replace(&key, random_record(16), HOUR, &stored).await.unwrap();
        assert!(matches!(replaced, Replaced::Replaced(_)));
        store.delete(&key, None).await.unwrap();
        create(&store, HOUR).await.unwrap();
        assert_eq!(store.len(), 2);
    }

    #[tokio::test]
    async fn full_store_reuses_space_of_expired_records() {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone()).with_capacity(3);
        create(&store, HOUR).await.unwrap();
        create(&store, HOUR).await.unwrap();
        create(&store, HOUR * 2).await.unwrap();
        clock.advance(HOUR);
        create(&store, HOUR).await.unwrap();
        assert_eq!(store.len(), 2);
    }

    #[tokio::test]
    async fn full_store_is_swept_at_most_once_per_second() {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone()).with_capacity(2);
        let ttl = Duration::from_millis(500);
        create(&store, ttl).await.unwrap();
        create(&store, ttl).await.unwrap();
        assert_eq!(create(&store, HOUR).await.unwrap_err().kind(), ErrorKind::Refused);
        clock.advance(ttl);
        assert_eq!(create(&store, HOUR).await.unwrap_err().kind(), ErrorKind::Refused);
        clock.advance(ttl);
        create(&store, HOUR).await.unwrap();
        assert_eq!(store.len(), 1);
    }

    #[tokio::test]
    async fn expired_records_do_not_accumulate() {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone());
        for _ in 0..20_000 {
            create(&store, Duration::from_secs(10)).await.unwrap();
            clock.advance(Duration::from_secs(1));
        }
        assert!(store.len() <= 2 * MemoryStore::SWEEP_AFTER, "{} are held", store.len());
    }

    #[tokio::test]
    async fn any_ttl_is_accepted() {
        let store = MemoryStore::new();
        for ttl in [Duration::from_nanos(1), Duration::MAX, Duration::from_secs(u64::MAX)] {
            assert!(matches!(create(&store, ttl).await.unwrap(), Created::Created(_)));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn record_count_stays_correct_under_concurrent_writes() {
        let store = MemoryStore::new().with_capacity(64);
        let keys: Arc<Vec<_>> = Arc::new((0..96).map(|_| random_key()).collect());
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let (store, keys) = (store.clone(), Arc::clone(&keys));
                tokio::spawn(async move {
                    for round in 0..2_000 {
                        let key = &keys[(task * 31 + round * 7) % keys.len()];
                        // A full store refuses the create. This test checks only the number of records.
                        let _ = store.create(key, random_record(16), HOUR).await;
                        assert!(store.len() <= 64);
                        if round % 3 != 0 {
                            store.delete(key, None).await.unwrap();
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(store.len(), store.shared.records.len());
    }

    #[test]
    fn debug_prints_no_record() {
        assert_eq!(
            format!("{:?}", MemoryStore::new()),
            "MemoryStore { len: 0, capacity: 100000, .. }"
        );
    }
}
