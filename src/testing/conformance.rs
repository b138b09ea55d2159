//! The conformance suite: lists the clauses and runs each as a test.

/// Checks an implementation of [`Store`](crate::store::Store) against its contract, as far as the contract
/// can be observed from outside. Expands to one test function for each clause, that is, for each rule of the
/// contract.
///
/// Pass an async closure, or the path of an async function, that takes no arguments and returns a
/// [`Subject`](crate::testing::Subject). The function runs once per clause, in that clause's runtime, so each
/// clause can have its own server. A shared server works, too: the keys are random, and the suite deletes
/// only keys that it has created.
///
/// The clauses that wait for a record to expire take a few seconds, unless the store uses a
/// [`ManualClock`](crate::testing::ManualClock). To check several stores in one file, put each into its own
/// module.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # mod example {
/// use unsticky::store::MemoryStore;
/// use unsticky::testing::{ManualClock, Subject};
///
/// async fn my_store() -> Subject {
///     let clock = ManualClock::new();
///     Subject::new(MemoryStore::with_clock(clock.clone())).with_clock(clock)
/// }
///
/// unsticky::conformance!(my_store);
/// # pub async fn used() -> Subject { my_store().await }
/// # }
/// ```
#[macro_export]
macro_rules! conformance {
    (@tests $setup:expr; $($clause:ident)*) => {$(
        #[test]
        fn $clause() {
            $crate::testing::clauses::run($setup, $crate::testing::clauses::$clause);
        }
    )*};
    // The clauses that hold for a store without expiry and without a size limit as well.
    (@unlimited $setup:expr) => {
        $crate::conformance! { @tests $setup;
            missing_key_loads_as_none
            created_record_is_loaded_with_its_bytes_and_version
            create_of_existing_key_changes_nothing
            concurrent_creates_have_exactly_one_winner
            replace_at_current_version_stores_record
            each_new_version_works_for_next_replace
            replace_at_old_version_changes_nothing
            replace_of_missing_key_creates_nothing
            replace_after_delete_resurrects_nothing
            concurrent_replaces_have_exactly_one_winner
            contended_replaces_lose_no_write
            concurrent_loads_see_whole_writes
            unconditional_delete_deletes_record
            delete_at_current_version_deletes_record
            delete_at_old_version_changes_nothing
            delete_of_missing_key_returns_missing
            concurrent_deletes_have_exactly_one_winner
            concurrent_delete_and_replace_have_exactly_one_winner
            unconditional_delete_beats_concurrent_replace
            version_is_not_reused_after_delete
            records_with_long_ttl_are_readable
            record_bytes_are_stored_unchanged
            every_length_up_to_64_kib_is_stored
            record_kinds_have_separate_keys
            printable_ascii_keys_of_up_to_200_bytes_are_accepted
            concurrent_calls_get_their_own_answers
            cancelled_calls_do_not_disturb_other_calls
            store_pointers_forward_every_verb
        }
    };
    ($setup:expr) => {
        $crate::conformance! { @unlimited $setup }
        $crate::conformance! { @tests $setup;
            record_is_readable_until_its_ttl_ends
            expired_key_is_missing_for_every_verb
            replace_shortens_ttl
            replace_extends_ttl
            ttl_of_one_millisecond_expires
            oversize_record_is_refused_and_old_record_stays
        }
    };
}

pub use conformance;

/// Shows that the suite detects faulty stores: for each flaw, the clause that checks for it fails.
#[cfg(test)]
#[cfg(feature = "memory")]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;

    use crate::clock::manual::ManualClock;
    use crate::error::{Error, Result};
    use crate::store::{
        Created, Deleted, Diagnose, Kind, MemoryStore, Replaced, Store, StoreKey, Stored, TAG_LEN,
        Version,
    };
    use crate::testing::clauses;
    use crate::testing::subject::Subject;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Flaw {
        None,
        AnswersGoToWhoeverComesNext,
        BytesEndAtNul,
        ConflictBringsWhatWasExpected,
        ConflictBringsWhatWasSent,
        CreateChecksThenWrites,
        CreateOverwrites,
        DeleteAlwaysSaysDeleted,
        DeleteIgnoresVersion,
        KindsShareKeys,
        OversizeDeletes,
        ReplaceChecksThenWrites,
        ReplaceCreates,
        ReplaceIgnoresVersion,
        ReplaceKeepsTtl,
        ShortTtlIsForEver,
        TtlIgnored,
        TtlRoundsDown,
        VersionsAreCounts,
    }

    /// A store with one deliberate flaw.
    #[derive(Debug)]
    struct Flawed {
        flaw: Flaw,
        inner: MemoryStore,
        /// Queues answers that are not matched to their calls.
        answers: Mutex<VecDeque<Option<Stored>>>,
        first_ttl: Mutex<Option<Duration>>,
    }

    const YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);
    const LIMIT: usize = 128 * 1024;

    impl Flawed {
        fn key(&self, key: &StoreKey) -> StoreKey {
            if self.flaw != Flaw::KindsShareKeys {
                return key.clone();
            }
            let id = key.as_str().rsplit(':').next().unwrap();
            StoreKey::new("shared:", Kind::Session, id)
        }

        fn bytes(&self, bytes: Bytes) -> Bytes {
            let nul = bytes[TAG_LEN..].iter().position(|&byte| byte == 0);
            match (self.flaw, nul) {
                (Flaw::BytesEndAtNul, Some(end)) => bytes.slice(..TAG_LEN + end),
                _ => bytes,
            }
        }

        fn ttl(&self, ttl: Duration) -> Duration {
            match self.flaw {
                Flaw::TtlIgnored => YEARS,
                Flaw::ShortTtlIsForEver if ttl < Duration::from_secs(1) => YEARS,
                Flaw::TtlRoundsDown => ttl.saturating_sub(Duration::from_millis(500)),
                Flaw::ReplaceKeepsTtl => *self.first_ttl.lock().unwrap().get_or_insert(ttl),
                _ => ttl,
            }
        }

        async fn check_size(&self, key: &StoreKey, bytes: &Bytes) -> Result<()> {
            if bytes.len() <= LIMIT {
                return Ok(());
            }
            if self.flaw == Flaw::OversizeDeletes {
                self.inner.delete(key, None).await?;
            }
            Err(Error::too_large("over the limit"))
        }

        async fn put(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Version> {
            self.inner.delete(key, None).await?;
            match self.inner.create(key, bytes, ttl).await? {
                Created::Created(version) => Ok(version),
                Created::Occupied => Ok(Version::new(u64::MAX)),
            }
        }

        /// Leaves a gap in which other calls can interfere. An atomic store has no such gap.
        fn pause() {
            std::thread::sleep(Duration::from_millis(5));
        }

        /// Returns what the key holds, whatever the caller expects.
        async fn current(&self, key: &StoreKey) -> Result<Option<Stored>> {
            self.inner.load(key).await
        }
    }

    #[async_trait]
    impl Store for Flawed {
        async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
            self.check_size(key, &bytes).await?;
            let (key, bytes, ttl) = (&self.key(key), self.bytes(bytes), self.ttl(ttl));
            match self.flaw {
                Flaw::CreateOverwrites => self.put(key, bytes, ttl).await.map(Created::Created),
                Flaw::CreateChecksThenWrites => {
                    if self.inner.load(key).await?.is_some() {
                        return Ok(Created::Occupied);
                    }
                    Self::pause();
                    self.put(key, bytes, ttl).await.map(Created::Created)
                }
                Flaw::VersionsAreCounts => match self.inner.create(key, bytes, ttl).await? {
                    Created::Created(_) => Ok(Created::Created(Version::new(1))),
                    Created::Occupied => Ok(Created::Occupied),
                },
                _ => self.inner.create(key, bytes, ttl).await,
            }
        }

        async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
            let stored = self.inner.load(&self.key(key)).await?;
            match self.flaw {
                Flaw::AnswersGoToWhoeverComesNext => {
                    self.answers.lock().unwrap().push_back(stored);
                    tokio::task::yield_now().await;
                    Ok(self.answers.lock().unwrap().pop_front().flatten())
                }
                Flaw::VersionsAreCounts => {
                    Ok(stored.map(|stored| Stored { version: Version::new(1), ..stored }))
                }
                _ => Ok(stored),
            }
        }

        async fn replace(
            &self,
            key: &StoreKey,
            bytes: Bytes,
            ttl: Duration,
            expected: &Stored,
        ) -> Result<Replaced> {
            self.check_size(key, &bytes).await?;
            let (key, bytes, ttl) = (&self.key(key), self.bytes(bytes), self.ttl(ttl));
            let expected = match (self.flaw, self.current(key).await?) {
                (Flaw::ReplaceCreates, None) => {
                    return self.put(key, bytes, ttl).await.map(Replaced::Replaced);
                }
                (Flaw::ReplaceChecksThenWrites, Some(current))
                    if current.version == expected.version =>
                {
                    Self::pause();
                    return self.put(key, bytes, ttl).await.map(Replaced::Replaced);
                }
                (Flaw::ReplaceIgnoresVersion | Flaw::VersionsAreCounts, Some(current)) => current,
                _ => expected.clone(),
            };
            let replaced = self.inner.replace(key, bytes.clone(), ttl, &expected).await?;
            match (self.flaw, replaced) {
                (Flaw::ConflictBringsWhatWasSent, Replaced::Conflict(_)) => {
                    Ok(Replaced::Conflict(Some(Stored { bytes, ..expected })))
                }
                (_, replaced) => Ok(replaced),
            }
        }

        async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
            let key = &self.key(key);
            match self.flaw {
                Flaw::DeleteIgnoresVersion => self.inner.delete(key, None).await,
                Flaw::DeleteAlwaysSaysDeleted => {
                    self.inner.delete(key, expected).await?;
                    Ok(Deleted::Deleted)
                }
                Flaw::ConflictBringsWhatWasExpected => {
                    match self.inner.delete(key, expected).await? {
                        Deleted::Conflict(_) => Ok(Deleted::Conflict(expected.cloned())),
                        deleted => Ok(deleted),
                    }
                }
                _ => self.inner.delete(key, expected).await,
            }
        }

        fn diagnosis(&self) -> Option<&dyn Diagnose> {
            None
        }
    }

    fn flawed(flaw: Flaw) -> impl AsyncFnOnce() -> Subject {
        async move || {
            let clock = ManualClock::new();
            Subject::new(Flawed {
                flaw,
                inner: MemoryStore::with_clock(clock.clone()),
                answers: Mutex::default(),
                first_ttl: Mutex::default(),
            })
            .with_clock(clock)
            .max_record(LIMIT)
        }
    }

    /// Without a flaw, the wrapper passes every clause, so the failures below are caused by the flaws.
    mod flawless_store {
        crate::conformance!(super::flawed(super::Flaw::None));
    }

    macro_rules! found {
        ($($test:ident: $flaw:ident by $clause:ident, $message:literal;)*) => {$(
            #[test]
            #[should_panic(expected = $message)]
            fn $test() {
                clauses::run(flawed(Flaw::$flaw), clauses::$clause);
            }
        )*};
    }

    found! {
        crossed_answers_are_found: AnswersGoToWhoeverComesNext
            by cancelled_calls_do_not_disturb_other_calls, "no later call ever receives its answer";
        truncated_bytes_are_found: BytesEndAtNul by record_bytes_are_stored_unchanged, "bytes are opaque and binary";
        wrong_conflict_record_is_found: ConflictBringsWhatWasSent
            by replace_at_old_version_changes_nothing, "returns the one that the key holds";
        wrong_conflict_record_of_delete_is_found: ConflictBringsWhatWasExpected
            by delete_at_old_version_changes_nothing, "returns the one that the key holds";
        racy_create_is_found: CreateChecksThenWrites
            by concurrent_creates_have_exactly_one_winner, "exactly one create wins";
        overwriting_create_is_found: CreateOverwrites
            by create_of_existing_key_changes_nothing, "returns `Occupied`";
        delete_that_always_reports_success_is_found: DeleteAlwaysSaysDeleted
            by delete_of_missing_key_returns_missing, "returns `Missing`";
        delete_that_hides_conflict_is_found: DeleteAlwaysSaysDeleted
            by delete_at_old_version_changes_nothing, "is a conflict";
        delete_that_ignores_version_is_found: DeleteIgnoresVersion
            by delete_at_old_version_changes_nothing, "is a conflict";
        kinds_that_share_keys_are_found: KindsShareKeys
            by record_kinds_have_separate_keys, "are different keys";
        oversize_write_that_deletes_record_is_found: OversizeDeletes
            by oversize_record_is_refused_and_old_record_stays, "keeps the old bytes";
        racy_replace_is_found: ReplaceChecksThenWrites
            by concurrent_replaces_have_exactly_one_winner, "exactly one replace";
        creating_replace_is_found: ReplaceCreates
            by replace_of_missing_key_creates_nothing, "never creates";
        resurrecting_replace_is_found: ReplaceCreates
            by replace_after_delete_resurrects_nothing, "never resurrects";
        replace_that_ignores_version_is_found: ReplaceIgnoresVersion
            by replace_at_old_version_changes_nothing, "is a conflict";
        ttl_that_is_not_shortened_is_found: ReplaceKeepsTtl
            by replace_shortens_ttl, "not readable after its time to live";
        ttl_that_is_not_extended_is_found: ReplaceKeepsTtl
            by replace_extends_ttl, "sets the time to live again";
        endless_short_ttl_is_found: ShortTtlIsForEver
            by ttl_of_one_millisecond_expires, "not readable after its time to live";
        ignored_ttl_is_found: TtlIgnored
            by expired_key_is_missing_for_every_verb, "not readable after its time to live";
        ttl_that_is_rounded_down_is_found: TtlRoundsDown
            by record_is_readable_until_its_ttl_ends, "never shorter";
        repeated_versions_are_found: VersionsAreCounts
            by version_is_not_reused_after_delete, "has not had before";
    }

    #[test]
    fn every_clause_is_listed() {
        let list = include_str!("conformance.rs").split_once("pub use conformance;").unwrap().0;
        for line in include_str!("clauses.rs").lines() {
            let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
            let name = rest.split('(').next().unwrap();
            assert!(list.lines().any(|line| line.trim() == name), "{name} is not listed");
        }
    }
}

/// The store of a detached session, whose records do not expire and have no size limit.
#[cfg(test)]
mod detached {
    use crate::sessions::detached::Detached;
    use crate::testing::subject::Subject;

    crate::conformance! { @unlimited async || Subject::new(Detached::default()) }
}
