//! The four verbs of a store, tried on a key of the check's own.

use std::time::Duration;

use tokio::time::Instant;

use crate::check::Finding;
use crate::error::{Error, Result, causes};
use crate::store::contract::{Created, Deleted, Replaced, Store, Stored};
use crate::store::diagnose::Probe;
use crate::store::key::StoreKey;

/// Why a trial ended before its end.
enum Failure {
    /// The verb, and what the store said.
    Refused(&'static str, Error),
    /// What the store did that its contract does not allow.
    Wrong(&'static str),
}

impl Probe {
    /// Tries what sessions need of a store, on this key: all four verbs, with comparisons that succeed and
    /// that fail. Reports whether they work as the contract of [`Store`] says, and how long a read takes.
    /// `subject` names the server that has the key, and is empty if there is only one.
    pub async fn try_verbs(&self, store: &dyn Store, key: &StoreKey, subject: &str) {
        let finding = match self.trial(store, key).await {
            Ok(round_trip) => {
                self.report(self.judged(round_trip).about(subject.to_owned()));
                Finding::fine("commands", "Records can be read, created, replaced and deleted.")
            }
            Err(Failure::Refused(verb, error)) => Finding::error(
                "commands",
                format!("A record cannot be {verb}: {}.", causes(&error)),
                "Give the user of the address the permissions that the documentation of the store lists, \
                 and see whether the server is well.",
            ),
            Err(Failure::Wrong(what)) => Finding::error(
                "compare",
                format!("The store breaks its contract: {what}."),
                "Updates would be lost: use a store that compares and sets.",
            ),
        };
        self.report(finding.about(subject.to_owned()));
    }

    /// Tries a store that has nothing to say of itself.
    pub(crate) async fn try_store(&self, store: &dyn Store) {
        match self.key(|_| true) {
            Ok(Some(key)) => {
                self.part("", self.try_verbs(store, &key, "")).await;
            }
            Ok(None) => {}
            Err(error) => self.report_without_key(&error, ""),
        }
    }

    /// No key could be made.
    pub(crate) fn report_without_key(&self, error: &Error, subject: &str) {
        let sentence = format!("Nothing could be tried: {}.", causes(error));
        let remedy = "See why the operating system has no random numbers.";
        self.report(Finding::error("commands", sentence, remedy).about(subject.to_owned()));
    }

    /// How long a read took.
    async fn trial(&self, store: &dyn Store, key: &StoreKey) -> Result<Duration, Failure> {
        let record = || self.record().map_err(|error| Failure::Refused("made", error));
        let (first, second, third) = (record()?, record()?, record()?);
        let refused = |verb| move |error| Failure::Refused(verb, error);

        let begun = Instant::now();
        let found = store.load(key).await.map_err(refused("read"))?;
        let round_trip = begun.elapsed();
        if found.is_some() {
            return Err(Failure::Wrong("a key that was never used holds a record"));
        }
        let created = store.create(key, first.clone(), Self::TTL).await;
        let Created::Created(version) = created.map_err(refused("created"))? else {
            return Err(Failure::Wrong("a key that holds nothing is occupied"));
        };
        let old = Stored::new(first, version);
        let again = store.create(key, second.clone(), Self::TTL).await;
        if again.map_err(refused("created"))? != Created::Occupied {
            return Err(Failure::Wrong("a record that exists was created again"));
        }
        let replaced = store.replace(key, second.clone(), Self::TTL, &old).await;
        let Replaced::Replaced(version) = replaced.map_err(refused("replaced"))? else {
            return Err(Failure::Wrong("a record that nobody else has changed was not replaced"));
        };
        let new = Stored::new(second, version);
        let replaced = store.replace(key, third, Self::TTL, &old).await;
        if !matches!(replaced.map_err(refused("replaced"))?, Replaced::Conflict(_)) {
            return Err(Failure::Wrong("a record was replaced that had changed since it was read"));
        }
        let deleted = store.delete(key, Some(&old)).await;
        if !matches!(deleted.map_err(refused("deleted"))?, Deleted::Conflict(_)) {
            return Err(Failure::Wrong("a record was deleted that had changed since it was read"));
        }
        if store.load(key).await.map_err(refused("read"))?.as_ref() != Some(&new) {
            return Err(Failure::Wrong("a record that was written is not what is read"));
        }
        let deleted = store.delete(key, Some(&new)).await;
        if deleted.map_err(refused("deleted"))? != Deleted::Deleted {
            return Err(Failure::Wrong("a record that nobody else has changed was not deleted"));
        }
        if store.delete(key, None).await.map_err(refused("deleted"))? != Deleted::Missing {
            return Err(Failure::Wrong("a record that was deleted is still there"));
        }
        Ok(round_trip)
    }

    /// What a read's time says, of which a request needs one or a few.
    fn judged(&self, round_trip: Duration) -> Finding {
        let took = format!("A read took {:.1} ms", round_trip.as_secs_f64() * 1e3);
        let limit = self.timeout() / 10;
        if round_trip <= limit {
            return Finding::fine("round_trip", format!("{took}."));
        }
        Finding::warning(
            "round_trip",
            format!("{took}, which is over a tenth of the time that a request has for the store."),
            "Run the application near its store, see whether either is overloaded, or raise \
             Builder::timeout.",
        )
    }
}
