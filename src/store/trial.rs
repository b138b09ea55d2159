//! Tries the four verbs of a store on one of the check's own keys.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::check::Finding;
use crate::error::{Error, ErrorKind, Result, causes};
use crate::store::contract::{Created, Deleted, Replaced, Store, Stored};
use crate::store::diagnose::Probe;
use crate::store::key::StoreKey;

/// The problem to report if a record disappears.
const GONE: &str = "a record that was written is gone";

/// The reason why a trial failed.
enum Failure {
    /// No record could be made.
    NoRecord(Error),
    /// The store returned this error for the verb.
    Refused(&'static str, Error),
    /// The store did not answer the verb.
    Unanswered(&'static str),
    /// The store broke its contract in this way.
    Wrong(&'static str),
}

/// Returns the remedy for a refused command, chosen by the words in its error message.
fn refusal_remedy(kind: ErrorKind, reason: &str) -> &'static str {
    let says = |word: &str| reason.contains(word);
    if says("NOPERM") || says("ACL") {
        "Permit the command or the keys with ACL SETUSER; the documentation of RedisStore shows the \
         complete command."
    } else if says("OOM") {
        "Raise maxmemory on the server, or remove what fills its memory."
    } else if says("MISCONF") {
        "Free space on the server's disk, or repair the permissions of its data directory. The server's \
         log says what failed."
    } else if says("NOREPLICAS") {
        "Start the replicas that are down, or lower min-replicas-to-write on the server."
    } else if says("READONLY") {
        "Write the master's host into the address."
    } else if says("disabled or renamed") {
        "Remove the rename-command line from redis.conf and restart the server."
    } else if kind == ErrorKind::Refused {
        "Correct the problem that the error reports, on the server or in the address."
    } else {
        "Check whether the server is running and can be reached from here."
    }
}

impl Probe {
    /// Tries, on this key, everything that sessions need from a store: all four verbs, with comparisons that
    /// succeed and comparisons that fail. Reports whether the verbs follow the contract of [`Store`] and how
    /// long a read takes. If the store does not answer a verb before the check's time is up, reports that
    /// verb. `subject` is the name of the server that holds the key, and may be empty if there is only one
    /// server.
    pub async fn try_verbs(&self, store: &dyn Store, key: &StoreKey, subject: &str) {
        let finding = match self.trial(store, key).await {
            Ok(round_trip) => {
                self.report(self.judged(round_trip).about(subject.to_owned()));
                Finding::fine("commands", "Records can be read, created, replaced and deleted.")
            }
            Err(Failure::NoRecord(error)) => return self.report_without_key(&error, subject),
            Err(Failure::Unanswered(verb)) => Finding::error(
                "unanswered",
                format!(
                    "A record was not {verb} within the check's time limit, so requests would fail."
                ),
                "Check whether the store is running, whether it is overloaded, and whether it can be \
                 reached from here.",
            ),
            Err(Failure::Refused(verb, error)) => Finding::error(
                "commands",
                format!("A record cannot be {verb}, so sessions do not work: {}.", causes(&error)),
                refusal_remedy(error.kind(), &causes(&error)),
            ),
            Err(Failure::Wrong(what)) => Finding::error(
                "compare",
                format!("The store breaks its contract: {what}."),
                "Updates would be lost. Use a store that supports compare-and-set.",
            ),
        };
        self.report(finding.about(subject.to_owned()));
    }

    /// Like [`try_verbs`](Self::try_verbs), but chooses one of the check's own keys. Use this method for a
    /// store that has only one server or reports nothing else about itself.
    pub async fn try_store(&self, store: &dyn Store) {
        match self.key(|_| true) {
            Ok(Some(key)) => {
                self.part("", self.try_verbs(store, &key, "")).await;
            }
            Ok(None) => {}
            Err(error) => self.report_without_key(&error, ""),
        }
    }

    /// Reports that no key could be made.
    pub(crate) fn report_without_key(&self, error: &Error, subject: &str) {
        let message = format!("Nothing could be tried: {}.", causes(error));
        let remedy = "Find out why the operating system's random number generator failed.";
        self.report(Finding::error("commands", message, remedy).about(subject.to_owned()));
    }

    /// Tries the verbs, and returns how long a read took.
    async fn trial(&self, store: &dyn Store, key: &StoreKey) -> Result<Duration, Failure> {
        let record = || self.record().map_err(Failure::NoRecord);
        let (first, second, third) = (record()?, record()?, record()?);

        if self.answer("read", store.load(key)).await?.is_some() {
            return Err(Failure::Wrong("a key that was never used holds a record"));
        }
        let created = store.create(key, first.clone(), Self::TTL);
        let Created::Created(version) = self.answer("created", created).await? else {
            return Err(Failure::Wrong("a key that holds nothing is occupied"));
        };
        let old = Stored::new(first, version);
        let again = store.create(key, second.clone(), Self::TTL);
        if self.answer("created", again).await? != Created::Occupied {
            return Err(Failure::Wrong("a record that exists was created again"));
        }
        let replaced = store.replace(key, second.clone(), Self::TTL, &old);
        let Replaced::Replaced(version) = self.answer("replaced", replaced).await? else {
            return Err(Failure::Wrong("an unchanged record was not replaced"));
        };
        let new = Stored::new(second, version);
        match self.answer("replaced", store.replace(key, third.clone(), Self::TTL, &old)).await? {
            Replaced::Conflict(_) => {}
            Replaced::Missing => return Err(Failure::Wrong(GONE)),
            Replaced::Replaced(_) => {
                let what = "a record that had changed since it was read was replaced";
                return Err(Failure::Wrong(what));
            }
        }
        match self.answer("deleted", store.delete(key, Some(&old))).await? {
            Deleted::Conflict(_) => {}
            Deleted::Missing => return Err(Failure::Wrong(GONE)),
            Deleted::Deleted => {
                let what = "a record that had changed since it was read was deleted";
                return Err(Failure::Wrong(what));
            }
        }
        // The first read is not measured, because it may have waited for a connection.
        let begun = Instant::now();
        let read = self.answer("read", store.load(key)).await?;
        let round_trip = begun.elapsed();
        if read.as_ref() != Some(&new) {
            return Err(Failure::Wrong(
                "a record was read back with a different content or version",
            ));
        }
        if self.answer("deleted", store.delete(key, Some(&new))).await? != Deleted::Deleted {
            return Err(Failure::Wrong("an unchanged record was not deleted"));
        }
        let replaced = store.replace(key, third, Self::TTL, &new);
        if self.answer("replaced", replaced).await? != Replaced::Missing {
            return Err(Failure::Wrong("a record that was deleted was replaced"));
        }
        if self.answer("deleted", store.delete(key, None)).await? != Deleted::Missing {
            return Err(Failure::Wrong("a record that was deleted is still there"));
        }
        Ok(round_trip)
    }

    /// Returns the store's answer to one command, if it arrives before the check's time is up.
    async fn answer<T>(
        &self,
        verb: &'static str,
        command: impl Future<Output = Result<T>>,
    ) -> Result<T, Failure> {
        match timeout_at(self.deadline(), command).await {
            Ok(answer) => answer.map_err(|error| Failure::Refused(verb, error)),
            Err(_) => Err(Failure::Unanswered(verb)),
        }
    }

    /// Judges how long a read took. A request needs one or a few reads, so each should take at most a tenth
    /// of its time limit.
    fn judged(&self, round_trip: Duration) -> Finding {
        let took = format!("A read took {:.1} ms", round_trip.as_secs_f64() * 1e3);
        let limit = self.timeout() / 10;
        if round_trip <= limit {
            return Finding::fine("round_trip", format!("{took}."));
        }
        Finding::warning(
            "round_trip",
            format!(
                "{took}, which is more than a tenth of the time that a request may wait for the store \
                 (Builder::timeout)."
            ),
            "Run the application near its store, check whether either is overloaded, or raise \
             Builder::timeout.",
        )
    }
}
