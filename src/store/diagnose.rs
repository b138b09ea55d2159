//! The interface through which a store examines its servers.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use crate::check::Finding;
#[cfg(feature = "redis")]
use crate::check::Level;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::error::Result;
use crate::store::key::{Kind, StoreKey, TAG_LEN};

/// A store that can examine its servers, for [`Sessions::check`](crate::Sessions::check).
///
/// A store returns its implementation from [`Store::diagnosis`](crate::Store::diagnosis).
///
/// ```
/// # #[cfg(feature = "memory")]
/// # mod example {
/// # use std::time::Duration;
/// # use unsticky::store::{Created, Deleted, MemoryStore, Replaced, StoreKey, Stored};
/// use async_trait::async_trait;
/// use unsticky::check::Finding;
/// use unsticky::store::{Diagnose, Probe, Store};
///
/// # #[derive(Debug)]
/// # pub struct DiskStore(pub MemoryStore);
/// # impl DiskStore {
/// #     fn free_percent(&self) -> u64 { 3 }
/// # }
/// #[async_trait]
/// impl Diagnose for DiskStore {
///     async fn diagnose(&self, probe: &Probe) {
///         let free = self.free_percent();
///         let message = format!("{free} percent of the disk is free.");
///         probe.report(match free {
///             0..10 => Finding::warning("disk", message, "Give the store a larger disk."),
///             _ => Finding::fine("disk", message),
///         });
///         probe.try_store(self).await; // tries the four verbs on one of the check's own keys
///     }
/// }
///
/// #[async_trait]
/// impl Store for DiskStore {
///     fn diagnosis(&self) -> Option<&dyn Diagnose> {
///         Some(self)
///     }
///     // and the four verbs
/// #     async fn create(&self, key: &StoreKey, bytes: bytes::Bytes, ttl: Duration) -> unsticky::Result<Created> {
/// #         self.0.create(key, bytes, ttl).await
/// #     }
/// #     async fn load(&self, key: &StoreKey) -> unsticky::Result<Option<Stored>> {
/// #         self.0.load(key).await
/// #     }
/// #     async fn replace(&self, key: &StoreKey, bytes: bytes::Bytes, ttl: Duration, expected: &Stored) -> unsticky::Result<Replaced> {
/// #         self.0.replace(key, bytes, ttl, expected).await
/// #     }
/// #     async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> unsticky::Result<Deleted> {
/// #         self.0.delete(key, expected).await
/// #     }
/// }
/// # }
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = example::DiskStore(unsticky::store::MemoryStore::new());
/// # let report = unsticky::Sessions::builder(store).build()?.check().await;
/// # let codes: Vec<_> = report.findings().iter().map(|finding| finding.code()).collect();
/// # assert_eq!(codes, ["disk", "round_trip", "commands"]);
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
#[async_trait]
pub trait Diagnose: Send + Sync {
    /// Examines the servers and reports the findings to `probe`.
    ///
    /// An implementation may read and write records only under keys from [`Probe::key`], and must write them
    /// with a time to live of [`Probe::TTL`]. Report a server that does not answer as a finding. When the
    /// check's time is up, the future is dropped, and the findings reported so far are kept. No finding may
    /// contain a secret.
    async fn diagnose(&self, probe: &Probe);
}

/// Gives a store the keys, records and settings with which it examines its servers, and collects the
/// findings.
pub struct Probe {
    /// The namespace and the epoch at the beginning of each key.
    prefix: String,
    /// The record of an expired session that no cookie can open.
    record: Bytes,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    timeout: Duration,
    deadline: Instant,
    max_record_bytes: usize,
    findings: Mutex<Vec<Finding>>,
}

/// The settings that a check takes from the configuration.
pub(crate) struct ProbeSettings {
    pub(crate) prefix: String,
    pub(crate) record: Bytes,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    /// How long a request may wait for the store.
    pub(crate) timeout: Duration,
    pub(crate) max_record_bytes: usize,
}

impl Probe {
    /// The time to live of a check's records: ten seconds.
    pub const TTL: Duration = Duration::from_secs(10);

    /// The maximum number of keys to try until one fits. This is more than enough to find a key in one
    /// particular slot of a Redis Cluster.
    const MAX_KEYS: u32 = 1 << 20;

    pub(crate) fn new(settings: ProbeSettings, deadline: Instant) -> Self {
        let ProbeSettings { prefix, record, clock, entropy, timeout, max_record_bytes } = settings;
        let findings = Mutex::default();
        Self { prefix, record, clock, entropy, timeout, deadline, max_record_bytes, findings }
    }

    /// Returns the application's namespace, which is the beginning of each key.
    #[cfg(feature = "redis")]
    pub(crate) fn namespace(&self) -> &str {
        self.prefix.split(':').next().unwrap_or_default()
    }

    /// Adds a finding to the report.
    pub fn report(&self, finding: Finding) {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
    }

    /// Returns a key in the application's namespace that nothing else uses and for which `fits` returns
    /// `true`. If there are several servers, `fits` can select the keys on one of them. Returns `None` if
    /// none of a million keys fits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Randomness`](crate::ErrorKind::Randomness) if the random number generator failed.
    pub fn key(&self, fits: impl Fn(&StoreKey) -> bool) -> Result<Option<StoreKey>> {
        let mut id = [0; 16];
        self.entropy.fill(&mut id)?;
        let mut number = u128::from_be_bytes(id);
        for _ in 0..Self::MAX_KEYS {
            let id = URL_SAFE_NO_PAD.encode(number.to_be_bytes());
            let key = StoreKey::new(&self.prefix, Kind::Session, &id);
            if fits(&key) {
                return Ok(Some(key));
            }
            number = number.wrapping_add(1);
        }
        Ok(None)
    }

    /// Returns the bytes of a record to store under a key from [`key`](Self::key), with a new write tag. The
    /// record is that of an expired session that no cookie can open.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Randomness`](crate::ErrorKind::Randomness) if the random number generator failed.
    pub fn record(&self) -> Result<Bytes> {
        let mut record = self.record.to_vec();
        let tag = record.len().min(TAG_LEN);
        self.entropy.fill(&mut record[..tag])?;
        Ok(record.into())
    }

    /// Returns the current time from the clock that the sessions use.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// Returns how long a request may wait for the store in total; see
    /// [`Builder::timeout`](crate::Builder::timeout).
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the maximum size of a record in bytes; see
    /// [`Builder::max_record_bytes`](crate::Builder::max_record_bytes).
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        self.max_record_bytes
    }

    /// Runs a part of the examination that may take too long, such as the examination of one of several
    /// servers. If the part has not finished when the check's time is up, this method reports an error about
    /// `subject` and returns `None`.
    pub async fn part<T>(&self, subject: &str, part: impl Future<Output = T>) -> Option<T> {
        let answer = self.within_time(part).await;
        if answer.is_none() {
            self.report(unanswered().about(subject.to_owned()));
        }
        answer
    }

    /// Like [`part`](Self::part), but for a server that sessions can do without: reports a missing answer as
    /// a warning.
    #[cfg(feature = "redis")]
    pub(crate) async fn spare_part<T>(
        &self,
        subject: &str,
        part: impl Future<Output = T>,
    ) -> Option<T> {
        let answer = self.within_time(part).await;
        if answer.is_none() {
            self.report(unanswered().at_most(Level::Warning).about(subject.to_owned()));
        }
        answer
    }

    async fn within_time<T>(&self, part: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.deadline, part).await.ok()
    }

    /// Returns the time at which all parts must have finished.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) fn into_findings(self) -> Vec<Finding> {
        self.findings.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unanswered() -> Finding {
    Finding::error(
        "unanswered",
        "The server did not answer within the check's time limit.",
        "Check whether the server is running, whether it is overloaded, and whether it can be reached \
         from here.",
    )
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
