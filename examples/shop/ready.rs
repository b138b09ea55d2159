//! Readiness: whether this process should get traffic. Produces the response to `GET /ready` in both
//! frameworks.
//!
//! The store is checked when the process starts. If the check finds an error, the process still starts,
//! because exiting would not help and the store may work again a moment later. But the process is not ready
//! until a check finds no error: a store that answers a read may still refuse writes, or evict sessions.
//! During a rolling deployment, the old processes continue in the meantime. Once a check has found no error,
//! a read shows whether the store still answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use unsticky::Sessions;
use unsticky::check::Report;

/// How long the answer to a read is valid. All probes of this process together cause at most one read per
/// second.
const LOAD_AFTER: Duration = Duration::from_secs(1);

/// How long the result of a check with an error is valid. A check sends a few dozen commands to each server.
const CHECK_AFTER: Duration = Duration::from_secs(5);

/// How long a probe waits for earlier probes. This is longer than a check takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// `Ok` if the process is ready, or the reason why it is not.
type Answer = Result<(), String>;

/// Determines readiness. Clones share their state.
#[derive(Clone)]
pub(crate) struct Readiness {
    sessions: Sessions,
    last: Arc<Mutex<Last>>,
}

/// The latest result.
struct Last {
    answer: Answer,
    counts_until: Instant,
    /// Whether a check has found no error.
    is_checked: bool,
}

impl Readiness {
    /// Checks the store. Also returns the report, for the log.
    pub(crate) async fn check(sessions: &Sessions) -> (Self, Report) {
        let report = sessions.check().await;
        let last = Arc::new(Mutex::new(Last::of(&report)));
        (Self { sessions: sessions.clone(), last }, report)
    }

    /// Returns `Ok` if this process should get traffic. Otherwise, returns the reason, which is meant for
    /// people and contains no secret.
    pub(crate) async fn answer(&self) -> Answer {
        // Probes that arrive while the store is being asked wait here, and then use the same answer.
        let last = timeout(PATIENCE, Arc::clone(&self.last).lock_owned()).await;
        let Ok(mut last) = last else {
            return Err("An earlier request to the store has not been answered yet.".to_owned());
        };
        if Instant::now() < last.counts_until {
            return last.answer.clone();
        }
        let sessions = self.sessions.clone();
        // Runs in a task that continues if its probe is abandoned. Otherwise, the next probe would ask the
        // store again.
        let asked = tokio::spawn(async move {
            *last = last.next(&sessions).await;
            last.answer.clone()
        });
        asked.await.unwrap_or_else(|_| Err("The request to the store was aborted.".to_owned()))
    }
}

impl Last {
    fn of(report: &Report) -> Self {
        let (answer, counts_for) = match report.first_error() {
            None => (Ok(()), LOAD_AFTER),
            Some(error) => (Err(format!("{} {}", error.message(), error.remedy())), CHECK_AFTER),
        };
        let is_checked = answer.is_ok();
        Self { answer, counts_until: Instant::now() + counts_for, is_checked }
    }

    async fn next(&self, sessions: &Sessions) -> Self {
        if !self.is_checked {
            return Self::of(&sessions.check().await);
        }
        let answer = sessions.ping().await.map_err(|error| error.to_string());
        Self { answer, counts_until: Instant::now() + LOAD_AFTER, is_checked: true }
    }
}

#[cfg(all(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
mod tests {
    use futures_util::future::join_all;
    use tokio::time::{advance, timeout};
    use unsticky::store::MemoryStore;
    use unsticky::testing::{Fault, FaultStore, SpyStore, Verb};

    use super::*;

    type Spied = SpyStore<FaultStore<MemoryStore>>;

    fn sessions() -> (Sessions, FaultStore<MemoryStore>, Spied) {
        let store = FaultStore::new(MemoryStore::new());
        let spy = SpyStore::new(store.clone());
        (crate::shop::settings(spy.clone()).build().unwrap(), store, spy)
    }

    async fn two_hundred(readiness: &Readiness) -> Answer {
        let answers = join_all((0..200).map(|_| readiness.answer())).await;
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        answers[0].clone()
    }

    #[tokio::test(start_paused = true)]
    async fn probes_share_one_load_a_second() {
        let (sessions, store, spy) = sessions();
        let (readiness, report) = Readiness::check(&sessions).await;
        assert_eq!(report.first_error(), None);
        spy.take();
        assert_eq!(two_hundred(&readiness).await, Ok(()));
        assert_eq!(spy.verbs(), [], "the check is the first answer");
        for _ in 0..3 {
            advance(LOAD_AFTER).await;
            for _ in 0..3 {
                assert_eq!(two_hundred(&readiness).await, Ok(()));
                advance(LOAD_AFTER / 4).await;
            }
            assert_eq!(spy.take().len(), 1);
        }

        store.fail_always(Verb::Load, Fault::Refused);
        advance(LOAD_AFTER).await;
        let refused = two_hundred(&readiness).await.unwrap_err();
        assert!(refused.starts_with("the session store refused the command"), "{refused}");
        assert_eq!(spy.take().len(), 1);
        store.heal();
        assert_eq!(two_hundred(&readiness).await, Err(refused), "for the rest of the second");
        advance(LOAD_AFTER).await;
        assert_eq!(two_hundred(&readiness).await, Ok(()));
        assert_eq!(spy.verbs(), [Verb::Load], "it is not checked again");
    }

    /// While a store hangs, it gets only one read, even if many probes are abandoned.
    #[tokio::test(start_paused = true)]
    async fn load_goes_on_when_its_probe_is_given_up() {
        let (sessions, store, spy) = sessions();
        let (readiness, _) = Readiness::check(&sessions).await;
        advance(LOAD_AFTER).await;
        spy.take();
        let gate = store.hold(Verb::Load);
        for _ in 0..5 {
            timeout(Duration::from_millis(50), readiness.answer()).await.unwrap_err();
        }
        gate.release();
        assert_eq!(two_hundred(&readiness).await, Ok(()));
        assert_eq!(spy.verbs(), [Verb::Load]);
    }

    /// A load alone does not show what the check has found.
    #[tokio::test(start_paused = true)]
    async fn process_is_not_ready_until_check_has_no_error() {
        let (sessions, store, spy) = sessions();
        store.fail_always(Verb::Replace, Fault::Refused);
        let (readiness, report) = Readiness::check(&sessions).await;
        let error = report.first_error().unwrap();
        let expected = Err(format!("{} {}", error.message(), error.remedy()));
        for _ in 0..3 {
            assert_eq!(two_hundred(&readiness).await, expected);
            sessions.ping().await.unwrap();
            let commands = spy.take();
            assert!(commands.len() < 10, "at most one check and the ping: {commands:?}");
            advance(CHECK_AFTER).await;
        }
        store.heal();
        assert_eq!(two_hundred(&readiness).await, Ok(()));
    }
}
