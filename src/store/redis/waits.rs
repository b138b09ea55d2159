//! The commands that are waiting for answers on one connection, the time limit of each, and how long the
//! connection has been silent.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

/// The commands that are waiting for answers on a connection.
///
/// The commands have no timers of their own: the connection's task checks all of them at each beat.
pub(super) struct Waits(Mutex<State>);

struct State {
    silence: Silence,
    places: Vec<Place>,
    /// The indices of the unused entries in `places`.
    free: Vec<usize>,
    /// The waker of the connection's task while the heartbeat rests.
    resting: Option<Waker>,
    /// Whether the connection has ended.
    is_closed: bool,
}

struct Place {
    /// When the command's time limit expires. `None` if the limit is so long that this time cannot be
    /// represented.
    until: Option<Instant>,
    /// `None` after the time limit has passed or the connection has ended.
    waker: Option<Waker>,
}

impl Waits {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            silence: Silence::new(),
            places: Vec::new(),
            free: Vec::new(),
            resting: None,
            is_closed: false,
        }))
    }

    /// Adds a waiting command and returns its index. The waker is called when the time limit has passed or
    /// the connection ends. Returns `None` if the connection has ended.
    pub(super) fn begin(&self, limit: Duration, waker: &Waker) -> Option<usize> {
        let now = Instant::now();
        let place = Place { until: now.checked_add(limit), waker: Some(waker.clone()) };
        let mut state = self.state();
        if state.is_closed {
            return None;
        }
        state.silence.begin(now);
        let index = if let Some(index) = state.free.pop() {
            state.places[index] = place;
            index
        } else {
            state.places.push(place);
            state.places.len() - 1
        };
        let resting = state.resting.take();
        drop(state);
        if let Some(task) = resting {
            task.wake();
        }
        Some(index)
    }

    /// Returns whether a command's time limit has passed. If it has not, this waker is called when it does.
    pub(super) fn is_over(&self, index: usize, waker: &Waker) -> bool {
        let mut state = self.state();
        let place = &mut state.places[index];
        match &place.waker {
            None => true,
            Some(known) if known.will_wake(waker) => false,
            Some(_) => {
                let old = place.waker.replace(waker.clone());
                // Dropped without holding the lock, because dropping a waker may drop its task.
                drop(state);
                drop(old);
                false
            }
        }
    }

    /// Removes a command whose answer has arrived.
    pub(super) fn answered(&self, index: usize) {
        self.leave(index, |silence| silence.answered(Instant::now()));
    }

    /// Removes an abandoned command. Returns how long the connection has been silent.
    pub(super) fn given_up(&self, index: usize) -> Duration {
        self.leave(index, Silence::given_up)
    }

    fn leave<T>(&self, index: usize, note: impl FnOnce(&mut Silence) -> T) -> T {
        let mut state = self.state();
        let noted = note(&mut state.silence);
        state.free.push(index);
        let waker = state.places[index].waker.take();
        drop(state);
        drop(waker);
        noted
    }

    /// Wakes the commands whose time limit has passed.
    pub(super) fn end_overdue(&self) {
        let now = Instant::now();
        let mut state = self.state();
        let over = state.places.iter_mut().filter(|place| place.until.is_some_and(|at| at <= now));
        let over: Vec<_> = over.filter_map(|place| place.waker.take()).collect();
        drop(state);
        over.into_iter().for_each(Waker::wake);
    }

    /// Ends all waits. Called when the connection has ended, after which no beat would end them.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let left: Vec<_> = state.places.iter_mut().filter_map(|place| place.waker.take()).collect();
        let resting = state.resting.take();
        drop(state);
        drop(resting);
        left.into_iter().for_each(Waker::wake);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Returns whether the heartbeat may rest, because no waiting command has a time limit that has yet to
    /// expire. If so, `task` is woken when the next command starts to wait. An overdue command whose future
    /// is kept but not polled does not count.
    pub(super) fn rest(&self, task: &Waker) -> bool {
        let mut state = self.state();
        let may_rest =
            !state.places.iter().any(|place| place.until.is_some() && place.waker.is_some());
        if may_rest {
            state.resting = Some(task.clone());
        }
        may_rest
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Measures how long a connection has given no answer while one was expected.
///
/// Only the time during which at least one command is waiting counts. The silence is measured per connection
/// rather than per caller, because a caller that always gives up early would never wait long enough to notice
/// the silence.
struct Silence {
    /// The number of commands that are waiting for an answer.
    waiting: usize,
    /// When the first of these commands began to wait, or when the last answer arrived.
    since: Instant,
    /// How long earlier waits lasted without an answer.
    before: Duration,
}

impl Silence {
    fn new() -> Self {
        Self { waiting: 0, since: Instant::now(), before: Duration::ZERO }
    }

    fn begin(&mut self, now: Instant) {
        if self.waiting == 0 {
            self.since = now;
        }
        self.waiting += 1;
    }

    fn answered(&mut self, now: Instant) {
        self.waiting -= 1;
        self.since = now;
        self.before = Duration::ZERO;
    }

    /// Removes a waiting command and returns the length of the silence.
    fn given_up(&mut self) -> Duration {
        self.waiting -= 1;
        let waited = self.before + self.since.elapsed();
        if self.waiting == 0 {
            self.before = waited;
        }
        waited
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::task::{ArcWake, waker};
    use tokio::time::advance;

    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_adds_up_until_an_answer_comes() {
        let mut silence = Silence::new();
        // No command is waiting before the first wait or between the two.
        for (waits, length) in [(30, 30), (40, 70)] {
            advance(ms(1000)).await;
            silence.begin(Instant::now());
            advance(ms(waits)).await;
            assert_eq!(silence.given_up(), ms(length));
        }
        silence.begin(Instant::now());
        advance(ms(10)).await;
        silence.answered(Instant::now());
        advance(ms(1000)).await;
        silence.begin(Instant::now());
        advance(ms(20)).await;
        assert_eq!(silence.given_up(), ms(20));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_once_where_several_wait() {
        let mut silence = Silence::new();
        silence.begin(Instant::now());
        advance(ms(10)).await;
        silence.begin(Instant::now());
        advance(ms(10)).await;
        assert_eq!(silence.given_up(), ms(20));
        advance(ms(10)).await;
        silence.begin(Instant::now());
        assert_eq!(silence.given_up(), ms(30));
        // An answer to one command ends the silence for all of them.
        silence.begin(Instant::now());
        silence.answered(Instant::now());
        advance(ms(5)).await;
        assert_eq!(silence.given_up(), ms(5));
    }

    /// Counts how often the waker is called.
    #[derive(Default)]
    struct Woken(Mutex<usize>);

    impl ArcWake for Woken {
        fn wake_by_ref(woken: &Arc<Self>) {
            *woken.0.lock().unwrap() += 1;
        }
    }

    impl Woken {
        fn times(&self) -> usize {
            *self.0.lock().unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_overdue_commands_are_woken_and_only_once() {
        let waits = Waits::new();
        let [short, long, moved, endless] = [(); 4].map(|()| Arc::new(Woken::default()));
        let wakers = [&short, &long, &moved, &endless].map(|woken| waker(Arc::clone(woken)));
        let first = waits.begin(ms(100), &wakers[0]).unwrap();
        let second = waits.begin(ms(200), &wakers[1]).unwrap();
        waits.begin(Duration::MAX, &wakers[3]);
        advance(ms(99)).await;
        waits.end_overdue();
        assert!(!waits.is_over(first, &wakers[0]));
        advance(ms(1)).await;
        waits.end_overdue();
        waits.end_overdue();
        assert!(waits.is_over(first, &wakers[0]) && !waits.is_over(second, &wakers[2]));
        advance(ms(100)).await;
        waits.end_overdue();
        assert!(waits.is_over(second, &wakers[2]));
        let times = [short, long, moved, endless].map(|woken| woken.times());
        assert_eq!(times, [1, 0, 1, 0], "the second one is awaited by another task at last");
    }

    #[tokio::test(start_paused = true)]
    async fn place_of_command_that_has_left_is_used_again() {
        let waits = Waits::new();
        let woken = Arc::new(Woken::default());
        let waker = waker(Arc::clone(&woken));
        for _ in 0..10 {
            let [first, second] = [(); 2].map(|()| waits.begin(ms(10), &waker).unwrap());
            assert_ne!(first, second);
            waits.answered(first);
            waits.given_up(second);
        }
        advance(ms(10)).await;
        waits.end_overdue();
        assert_eq!((waits.state().places.len(), woken.times()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn resting_task_is_woken_by_next_command() {
        let waits = Waits::new();
        let (task, command) = (Arc::new(Woken::default()), waker(Arc::new(Woken::default())));
        assert!(waits.rest(&waker(Arc::clone(&task))));
        let place = waits.begin(ms(10), &command).unwrap();
        assert_eq!(task.times(), 1);
        assert!(!waits.rest(&waker(Arc::clone(&task))), "somebody waits");
        waits.begin(ms(10), &command);
        waits.answered(place);
        assert_eq!(task.times(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn connection_rests_while_overdue_commands_are_kept() {
        let waits = Waits::new();
        let (task, command) =
            (waker(Arc::new(Woken::default())), waker(Arc::new(Woken::default())));
        waits.begin(ms(10), &command);
        assert!(!waits.rest(&task));
        advance(ms(10)).await;
        waits.end_overdue();
        assert!(waits.rest(&task), "its future is kept and not polled");
    }
}
