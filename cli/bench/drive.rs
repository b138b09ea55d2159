//! Sends requests from a fixed number of concurrent callers, either as fast as possible or at a fixed rate.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bench::tally::Tally;
use crate::bench::visitor::{Application, Deed, Visitor};

/// How long a caller waits after an error, so that a server that refuses requests is not flooded.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// How long a load at a fixed rate may take to notice that it should stop.
const NOTICE: Duration = Duration::from_millis(50);

/// A flag that prevents further requests from being sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As soon as the caller has received the answer to its previous request.
    Most,
    /// At this number of requests per second, whether or not answers arrive. The latency of a request is
    /// counted from the moment when the request is due, so it includes the wait for a free caller.
    Rate(u32),
}

/// The requests to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) deed: Deed,
    pub(crate) pace: Pace,
    pub(crate) callers: u32,
    /// The maximum number of requests.
    pub(crate) most: u64,
    /// No request is sent after this time.
    pub(crate) time: Duration,
}

/// Visitors without a request in progress.
#[derive(Debug, Clone, Default)]
pub(crate) struct Visitors(Arc<Mutex<VecDeque<Visitor>>>);

impl Visitors {
    /// Returns `count` visitors without a session.
    pub(crate) fn new(count: u32) -> Self {
        Self(Arc::new(Mutex::new((0..count).map(Visitor::new).collect())))
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Visitor>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue().is_empty()
    }
}

/// The state that all callers of a load share.
struct Shared {
    load: Load,
    application: Arc<Application>,
    from: Visitors,
    to: Visitors,
    stop: Stop,
    began: Instant,
    /// The number of the next request, counted from 0. Requests numbered `load.most` or higher are not sent.
    sent: AtomicU64,
    /// A permit for each request that is due.
    due: Semaphore,
    tally: Mutex<Tally>,
}

/// Sends the load. Takes visitors from one queue and, after their requests, puts them into the other; both
/// may be the same queue. Returns when all requests have been answered.
pub(crate) async fn drive(
    application: &Arc<Application>,
    from: &Visitors,
    to: &Visitors,
    load: Load,
    stop: &Stop,
) -> Tally {
    let shared = Arc::new(Shared {
        load,
        application: Arc::clone(application),
        from: from.clone(),
        to: to.clone(),
        stop: stop.clone(),
        began: Instant::now(),
        sent: AtomicU64::new(0),
        due: Semaphore::new(0),
        tally: Mutex::default(),
    });
    let mut callers = JoinSet::new();
    for _ in 0..load.callers {
        callers.spawn(call(Arc::clone(&shared)));
    }
    if let Pace::Rate(rate) = load.pace {
        let shared = Arc::clone(&shared);
        // A thread sleeps more precisely than one of the runtime's timers, which have a resolution of one
        // millisecond.
        callers.spawn_blocking(move || release(&shared, rate));
    }
    while callers.join_next().await.is_some() {}
    let mut tally = std::mem::take(&mut *shared.tally());
    tally.elapsed = shared.began.elapsed();
    tally
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.stop.is_set() || self.began.elapsed() >= self.load.time
    }
}

/// Runs one caller.
async fn call(shared: Arc<Shared>) {
    let Shared { load, application, from, to, .. } = &*shared;
    loop {
        if let Pace::Rate(_) = load.pace {
            match shared.due.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return,
            }
        }
        if shared.is_over() {
            return;
        }
        let Some(mut visitor) = from.queue().pop_front() else { return };
        let number = shared.sent.fetch_add(1, Ordering::Relaxed);
        if number >= load.most {
            from.queue().push_front(visitor);
            return;
        }
        let due = match load.pace {
            Pace::Most => Instant::now(),
            Pace::Rate(rate) => shared.began + due_after(number, rate),
        };
        let outcome = application.visit(&mut visitor, load.deed).await;
        let latency = due.elapsed();
        let has_failed = outcome.is_err();
        // After an error, it is not known whether the visitor has a session, unless the request would have
        // kept it anyway.
        if !has_failed || load.deed.keeps_session() {
            to.queue().push_back(visitor);
        }
        shared.tally().add(outcome, latency);
        if has_failed {
            tokio::time::sleep(AFTER_ERROR).await;
        }
    }
}

/// Adds a permit for each request when the request is due, and finally one per caller, so that the callers
/// stop.
fn release(shared: &Shared, rate: u32) {
    let Load { most, callers, .. } = shared.load;
    let mut released = 0;
    while released < most && !shared.is_over() {
        let due = due_until(shared.began.elapsed(), rate).min(most);
        shared.due.add_permits(usize::try_from(due - released).unwrap_or(0));
        released = due;
        let next = shared.began + due_after(released, rate);
        thread::sleep(next.saturating_duration_since(Instant::now()).min(NOTICE));
    }
    shared.due.add_permits(usize::try_from(callers).unwrap_or(0));
}

const NANOS: u128 = 1_000_000_000;

/// Returns how long after the start the request with this number is due. Numbers start at 0.
fn due_after(number: u64, rate: u32) -> Duration {
    let nanos = (u128::from(number) * NANOS).div_ceil(rate.into());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Returns how many requests are due after this time.
fn due_until(elapsed: Duration, rate: u32) -> u64 {
    let due = elapsed.as_nanos() * u128::from(rate) / NANOS + 1;
    u64::try_from(due).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_equal_intervals() {
        assert_eq!(due_after(0, 3), Duration::ZERO);
        assert_eq!(due_after(3, 3), Duration::from_secs(1));
        assert_eq!(due_after(1500, 1000), Duration::from_millis(1500));
        for rate in [1, 3, 7, 999, 1_000_000] {
            for number in [0, 1, 2, 3, 1000, 1_000_000] {
                let due = due_after(number, rate);
                assert_eq!(due_until(due, rate), number + 1, "{number} at {rate}");
                let before = due.saturating_sub(Duration::from_nanos(1));
                assert_eq!(due_until(before, rate), number.max(1), "{number} at {rate}");
            }
        }
    }
}
