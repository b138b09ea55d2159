//! The conformance suite: how the clauses are listed and run.

/// Checks what can be checked from outside of the contract of [`Store`](crate::store::Store), each
/// clause in a test of its own.
///
/// The argument is an async function without arguments, or a path to one, that returns a
/// [`Subject`](crate::testing::Subject). It runs once for each clause, in the runtime of that clause, so each clause may
/// have a server of its own. A store over a shared server is fine too: the keys are random, and
/// nothing is deleted but what the suite has made.
///
/// Clauses that wait for a record to expire take some seconds, unless the store runs on a
/// [`ManualClock`](crate::testing::ManualClock). Several stores in one file go into modules of their own.
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
    ($setup:expr) => {
        $crate::conformance! { @tests $setup;
            a_missing_key_loads_as_none
            a_created_record_is_loaded_with_its_bytes_and_version
            creating_an_existing_key_changes_nothing
            of_many_concurrent_creates_exactly_one_wins
            a_replace_at_the_current_version_stores
            each_new_version_works_for_the_next_replace
            a_replace_at_an_old_version_changes_nothing
            replacing_a_missing_key_creates_nothing
            a_replace_after_a_delete_resurrects_nothing
            of_many_concurrent_replaces_exactly_one_wins
            a_chain_of_contended_replaces_loses_no_write
            concurrent_loads_see_whole_writes
            a_delete_at_any_version_deletes
            a_delete_at_the_current_version_deletes
            a_delete_at_an_old_version_changes_nothing
            deleting_a_missing_key_is_missing
            of_many_concurrent_deletes_exactly_one_wins
            of_a_concurrent_delete_and_replace_exactly_one_wins
            a_delete_at_any_version_beats_a_concurrent_replace
            a_version_is_not_used_again_after_a_delete
            a_record_is_there_until_its_time_is_over
            an_expired_key_is_gone_for_every_verb
            a_replace_shortens_the_time_to_live
            a_replace_extends_the_time_to_live
            a_millisecond_to_live_is_not_for_ever
            records_with_long_times_to_live_are_there
            bytes_are_binary
            every_length_up_to_64_kib_is_stored
            an_oversize_record_is_refused_and_the_old_one_stands
            kinds_have_keys_of_their_own
            keys_are_printable_ascii_of_up_to_200_bytes
            concurrent_calls_get_their_own_answers
            cancelled_calls_disturb_no_other_call
            pointers_to_a_store_forward_every_verb
        }
    };
}

pub use conformance;

/// That the suite can fail: each flaw is found by the clause that is there for it.
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
        Created, Deleted, Kind, MemoryStore, Replaced, Store, StoreKey, Stored, TAG_LEN, Version,
    };
    use crate::testing::clauses;
    use crate::testing::subject::Subject;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Flaw {
        None,
        AnswersGoToWhoeverComesNext,
        BytesEndAtNul,
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

    /// A store with one flaw.
    #[derive(Debug)]
    struct Flawed {
        flaw: Flaw,
        inner: MemoryStore,
        /// For answers that are not matched to their calls.
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

        /// Lets the others do what only a store that is not atomic lets them do.
        fn pause() {
            std::thread::sleep(Duration::from_millis(5));
        }

        /// The version that is the record's own, whatever the caller said.
        async fn current(&self, key: &StoreKey) -> Result<Option<Version>> {
            Ok(self.inner.load(key).await?.map(|stored| stored.version))
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
            version: Version,
        ) -> Result<Replaced> {
            self.check_size(key, &bytes).await?;
            let (key, bytes, ttl) = (&self.key(key), self.bytes(bytes), self.ttl(ttl));
            let version = match (self.flaw, self.current(key).await?) {
                (Flaw::ReplaceCreates, None) => {
                    return self.put(key, bytes, ttl).await.map(Replaced::Replaced);
                }
                (Flaw::ReplaceChecksThenWrites, Some(current)) if current == version => {
                    Self::pause();
                    return self.put(key, bytes, ttl).await.map(Replaced::Replaced);
                }
                (Flaw::ReplaceIgnoresVersion | Flaw::VersionsAreCounts, Some(current)) => current,
                _ => version,
            };
            let replaced = self.inner.replace(key, bytes.clone(), ttl, version).await?;
            match (self.flaw, replaced) {
                (Flaw::ConflictBringsWhatWasSent, Replaced::Conflict(_)) => {
                    Ok(Replaced::Conflict(Some(Stored { bytes, version })))
                }
                (_, replaced) => Ok(replaced),
            }
        }

        async fn delete(&self, key: &StoreKey, version: Option<Version>) -> Result<Deleted> {
            let key = &self.key(key);
            match self.flaw {
                Flaw::DeleteIgnoresVersion => self.inner.delete(key, None).await,
                Flaw::DeleteAlwaysSaysDeleted => {
                    self.inner.delete(key, version).await?;
                    Ok(Deleted::Deleted)
                }
                _ => self.inner.delete(key, version).await,
            }
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

    /// Without a flaw the wrapper passes, so it is the flaw that the tests below find.
    mod without_a_flaw {
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
            by cancelled_calls_disturb_no_other_call, "no later call ever receives its answer";
        cut_bytes_are_found: BytesEndAtNul by bytes_are_binary, "bytes are opaque and binary";
        a_wrong_conflict_is_found: ConflictBringsWhatWasSent
            by a_replace_at_an_old_version_changes_nothing, "brings the record that stands there";
        a_racy_create_is_found: CreateChecksThenWrites
            by of_many_concurrent_creates_exactly_one_wins, "exactly one create wins";
        an_overwriting_create_is_found: CreateOverwrites
            by creating_an_existing_key_changes_nothing, "is occupied";
        a_delete_that_lies_is_found: DeleteAlwaysSaysDeleted
            by deleting_a_missing_key_is_missing, "is missing";
        a_delete_that_lies_on_conflict_is_found: DeleteAlwaysSaysDeleted
            by a_delete_at_an_old_version_changes_nothing, "is a conflict";
        a_blind_delete_is_found: DeleteIgnoresVersion
            by a_delete_at_an_old_version_changes_nothing, "is a conflict";
        mixed_kinds_are_found: KindsShareKeys
            by kinds_have_keys_of_their_own, "are different keys";
        a_lost_old_record_is_found: OversizeDeletes
            by an_oversize_record_is_refused_and_the_old_one_stands, "leaves the old bytes";
        a_racy_replace_is_found: ReplaceChecksThenWrites
            by of_many_concurrent_replaces_exactly_one_wins, "exactly one replace";
        a_creating_replace_is_found: ReplaceCreates
            by replacing_a_missing_key_creates_nothing, "never creates";
        a_resurrecting_replace_is_found: ReplaceCreates
            by a_replace_after_a_delete_resurrects_nothing, "never resurrects";
        a_blind_replace_is_found: ReplaceIgnoresVersion
            by a_replace_at_an_old_version_changes_nothing, "is a conflict";
        a_ttl_that_is_not_shortened_is_found: ReplaceKeepsTtl
            by a_replace_shortens_the_time_to_live, "not readable after its time to live";
        a_ttl_that_is_not_extended_is_found: ReplaceKeepsTtl
            by a_replace_extends_the_time_to_live, "sets the time to live anew";
        an_endless_short_ttl_is_found: ShortTtlIsForEver
            by a_millisecond_to_live_is_not_for_ever, "not readable after its time to live";
        an_ignored_ttl_is_found: TtlIgnored
            by an_expired_key_is_gone_for_every_verb, "not readable after its time to live";
        a_ttl_that_is_rounded_down_is_found: TtlRoundsDown
            by a_record_is_there_until_its_time_is_over, "never shorter";
        versions_that_repeat_are_found: VersionsAreCounts
            by a_version_is_not_used_again_after_a_delete, "has not had before";
    }

    #[test]
    fn every_clause_is_listed() {
        let list = include_str!("conformance.rs").split_once("/// How long").unwrap().0;
        for line in include_str!("clauses.rs").lines() {
            let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
            let name = rest.split('(').next().unwrap();
            assert!(list.lines().any(|line| line.trim() == name), "{name} is not listed");
        }
    }
}
