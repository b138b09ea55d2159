//! The time limit for a piece of work that uses the store.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The time limit for a piece of work that uses the store. Time during which the work has been woken but not
/// polled does not count, because the owner of a future may keep the future without polling it.
#[derive(Debug)]
pub(crate) struct Budget {
    started: Instant,
    /// The deadline without any extension for time during which the work was not polled.
    pub(crate) fixed_deadline: Instant,
    /// The total time during which the work was not polled, and the end of the last period that was counted.
    /// Several of the work's commands may wait at the same time, and no period may count twice.
    unpolled: Mutex<(Duration, Instant)>,
}

/// Longer than a runtime usually takes to poll a woken task.
const PROMPT: Duration = Duration::from_millis(20);

impl Budget {
    pub(crate) fn new(time: Duration) -> Self {
        let started = Instant::now();
        let unpolled = Mutex::new((Duration::ZERO, started));
        Self { started, fixed_deadline: started + time, unpolled }
    }

    fn unpolled(&self) -> Duration {
        self.unpolled.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Records that the work was woken at `since` but is polled only now.
    fn add_unpolled(&self, since: Instant, now: Instant) {
        let (unpolled, until) = &mut *self.unpolled.lock().unwrap_or_else(PoisonError::into_inner);
        *unpolled += now.saturating_duration_since(since.max(*until));
        *until = now.max(*until);
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.fixed_deadline + self.unpolled()
    }

    pub(crate) fn time_left(&self, now: Instant) -> Duration {
        self.deadline().saturating_duration_since(now)
    }

    /// Returns how much time the work has used since `since`, or since its start if `since` is `None`.
    pub(crate) fn used(&self, since: Option<Instant>) -> Duration {
        let since = since.map_or(self.started, |since| since.max(self.started));
        since.elapsed().saturating_sub(self.unpolled())
    }

    /// Runs a future until `limit`, and returns its output, or `None` if it did not finish in time. The limit is
    /// extended by the time during which the future was not polled.
    pub(crate) async fn limited<T>(
        &self,
        mut limit: Instant,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let (mut future, mut sleep) = (pin!(future), pin!(sleep_until(limit)));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        poll_fn(|cx| {
            if let Some(since) = woken.polled(cx.waker()) {
                let now = Instant::now();
                if now.saturating_duration_since(since) > PROMPT {
                    self.add_unpolled(since, now);
                    limit += now - since;
                    sleep.as_mut().reset(limit);
                }
            }
            let mut cx = Context::from_waker(&waker);
            match future.as_mut().poll(&mut cx) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending => sleep.as_mut().poll(&mut cx).map(|()| None),
            }
        })
        .await
    }
}

/// The waker of the task that polls a future, and the time at which the future was first woken after its last
/// poll.
#[derive(Debug, Default)]
struct Woken(Mutex<(Option<Waker>, Option<Instant>)>);

impl Woken {
    /// Records that the future is now being polled with this waker. Returns the time at which the future was
    /// first woken after its last poll, if it was woken.
    fn polled(&self, waker: &Waker) -> Option<Instant> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.0 {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        state.1.take()
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waker = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.1.get_or_insert_with(Instant::now);
            state.0.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use tokio::sync::oneshot;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_is_polled_does_not_count() {
        let budget = Budget::new(SECOND);
        let (wake, woken) = oneshot::channel();
        let (_wake_later, woken_later) = oneshot::channel::<()>();
        let work = async { (woken.await, woken_later.await) };
        let mut work = pin!(budget.limited(Instant::now() + SECOND / 2, work));
        assert!(poll!(&mut work).is_pending());
        advance(SECOND / 10).await;
        wake.send(()).unwrap();
        // The future is woken but not polled.
        advance(9 * SECOND).await;
        assert!(poll!(&mut work).is_pending());
        assert_eq!(budget.deadline(), budget.fixed_deadline + 9 * SECOND);
        assert_eq!(budget.used(None), SECOND / 10);
        // The future may still use the rest of its time.
        advance(SECOND * 39 / 100).await;
        assert!(poll!(&mut work).is_pending());
        advance(SECOND / 50).await;
        assert!(poll!(&mut work).is_ready());
        assert_eq!(budget.deadline(), budget.fixed_deadline + 9 * SECOND);
    }
}
