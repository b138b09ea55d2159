//! Operations that are ready at the same moment share one round trip.
//!
//! Callers queue their operations and wait. At most [`DRAINERS`] tasks, the drainers, take the queued
//! operations and send them in batches. A drainer ends when the queue is empty. If a caller is dropped, the
//! drainer continues, so the other callers still receive their answers.
//!
//! In a quiet lane, a caller sends its operation directly, without a task. No other operation waits for it:
//! operations that arrive in the meantime get a drainer. In a measurement over loopback with 1 KiB records, a
//! single caller then received its answer after 9.7 µs instead of 15.2 µs on a runtime with two threads, and
//! after 9.6 µs instead of 11.0 µs on a runtime with a single thread. With 64 callers there was no
//! difference.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memcache::exp::Operation;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::answer::Effect;
use super::node::{Client, DRAINERS, Limits, Node};
use crate::error::{Error, Result};

/// After a pause of this length, the server may have closed the connection unnoticed.
const PAUSE: Duration = Duration::from_millis(1);

/// The operations of one kind (reads or writes) for one server.
pub(super) struct Lane<O: Operation> {
    node: Arc<Node>,
    effect: Effect,
    max_batch: usize,
    state: Mutex<State<O>>,
}

struct State<O: Operation> {
    waiting: VecDeque<Waiting<O>>,
    /// The number of drainers.
    drainers: usize,
    /// Whether a drainer has yet to take its batch. Operations that are queued before it does can join the
    /// batch.
    gathering: bool,
    /// Whether the last batch had several operations.
    crowded: bool,
    /// Whether a caller is sending its operation itself.
    solo: bool,
    last_solo: Option<Instant>,
}

struct Waiting<O: Operation> {
    operation: O,
    since: Instant,
    reply: oneshot::Sender<Result<O::Output>>,
}

impl<O> Lane<O>
where
    O: Operation<Output: Send> + Send + Sync + 'static,
{
    pub(super) fn new(node: Arc<Node>, effect: Effect, max_batch: usize) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            drainers: 0,
            gathering: false,
            crowded: false,
            solo: false,
            last_solo: None,
        };
        Self { node, effect, max_batch, state: Mutex::new(state) }
    }

    /// Sends the operation, alone or with the next batch, and waits for its answer.
    pub(super) async fn submit(self: &Arc<Self>, operation: O) -> Result<O::Output> {
        if let Some(solo) = self.solo() {
            // Boxed, because this future is much larger than those of the other branches.
            return Box::pin(self.send_alone(solo, operation)).await;
        }
        let (reply, answer) = oneshot::channel();
        self.push(Waiting { operation, since: Instant::now(), reply })?;
        answer.await.unwrap_or_else(|_| Err(self.effect.lost()))
    }

    async fn send_alone(&self, solo: Solo<'_, O>, operation: O) -> Result<O::Output> {
        if solo.is_first {
            // Gives the runtime a chance to notice if the server has closed the idle connection.
            tokio::task::yield_now().await;
        }
        let client = self.node.client().await?;
        let answers = self.node.exchange(&client, self.effect, vec![operation]).await;
        answers.into_iter().next().unwrap_or_else(|| Err(self.effect.lost()))
    }

    fn push(self: &Arc<Self>, waiting: Waiting<O>) -> Result<()> {
        let mut state = self.state();
        if state.waiting.len() >= self.node.limits().waiting {
            return Err(Error::unavailable(
                "too many operations wait for the memcached server; it is too slow for this load, or max_waiting is too small",
            ));
        }
        state.waiting.push_back(waiting);
        let enlisted = state.enlist();
        drop(state);
        if enlisted {
            Drainer { lane: Arc::clone(self), stage: Stage::Gathering }.spawn();
        }
        Ok(())
    }
}

impl<O: Operation> Lane<O> {
    fn solo(&self) -> Option<Solo<'_, O>> {
        let mut state = self.state();
        let quiet = state.waiting.is_empty() && state.drainers == 0 && !state.crowded;
        if !quiet || state.solo {
            return None;
        }
        state.solo = true;
        let is_first = state.last_solo.is_none_or(|last| last.elapsed() > PAUSE);
        Some(Solo { lane: self, is_first })
    }

    fn state(&self) -> MutexGuard<'_, State<O>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O: Operation> State<O> {
    /// Registers a drainer if one is needed. The caller must then spawn it.
    fn enlist(&mut self) -> bool {
        let needed = !self.waiting.is_empty() && !self.gathering && self.drainers < DRAINERS;
        if needed {
            self.drainers += 1;
            self.gathering = true;
        }
        needed
    }
}

/// Held by the one caller that currently sends its operation directly.
struct Solo<'a, O: Operation> {
    lane: &'a Lane<O>,
    /// Whether the lane was idle before this operation.
    is_first: bool,
}

impl<O: Operation> Drop for Solo<'_, O> {
    fn drop(&mut self) {
        let mut state = self.lane.state();
        state.solo = false;
        state.last_solo = Some(Instant::now());
    }
}

struct Drainer<O: Operation> {
    lane: Arc<Lane<O>>,
    stage: Stage,
}

/// The state of a drainer that the lane has registered.
#[derive(PartialEq)]
enum Stage {
    Gathering,
    Sending,
    Gone,
}

impl<O> Drainer<O>
where
    O: Operation<Output: Send> + Send + Sync + 'static,
{
    fn spawn(self) {
        // Outside a runtime, the drainer is dropped, which makes the waiting operations fail.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.run());
        }
    }

    async fn run(mut self) {
        while self.stage == Stage::Gathering {
            // Lets all tasks that are ready now add their operations to the batch.
            tokio::task::yield_now().await;
            // Connects before taking the batch: an operation that was taken is either sent at once or not at
            // all.
            match self.lane.node.client().await {
                Ok(client) => {
                    let batch = self.take(self.lane.max_batch);
                    self.send(&client, batch).await;
                }
                // All queued operations waited for this connection.
                Err(error) => {
                    for waiting in self.take(usize::MAX) {
                        // The caller may have been dropped.
                        let _ = waiting.reply.send(Err(error.clone()));
                    }
                }
            }
            // Runs in the same poll as the arrival of the answers. The runtime may stop polling after that,
            // and the drainer must not stay registered.
            self.gather_or_leave();
        }
    }

    fn take(&mut self, max_batch: usize) -> Vec<Waiting<O>> {
        let mut state = self.lane.state();
        state.gathering = false;
        self.stage = Stage::Sending;
        let mut batch = Vec::with_capacity(state.waiting.len().min(max_batch));
        while batch.len() < max_batch
            && let Some(waiting) = state.waiting.pop_front()
        {
            if !waiting.reply.is_closed() {
                batch.push(waiting);
            }
        }
        state.crowded = batch.len() > 1;
        let enlisted = state.enlist();
        drop(state);
        if enlisted {
            Self { lane: Arc::clone(&self.lane), stage: Stage::Gathering }.spawn();
        }
        batch
    }

    async fn send(&self, client: &Client, batch: Vec<Waiting<O>>) {
        let (lane, now) = (&self.lane, Instant::now());
        let Limits { connect, response, .. } = lane.node.limits();
        // The time taken to connect does not count as a delay by the server.
        let patience = connect.max(response);
        let mut operations = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        for Waiting { operation, since, reply } in batch {
            // An operation that has already waited for a server that hangs must not wait for it again.
            if now.duration_since(since) > patience {
                let _ = reply.send(Err(Error::unavailable(
                    "the memcached server does not keep up with the load",
                )));
            } else {
                operations.push(operation);
                replies.push(reply);
            }
        }
        if operations.is_empty() {
            return;
        }
        let answers = lane.node.exchange(client, lane.effect, operations).await;
        for (reply, answer) in replies.into_iter().zip(answers) {
            let _ = reply.send(answer);
        }
    }

    fn gather_or_leave(&mut self) {
        let mut state = self.lane.state();
        if state.waiting.is_empty() || state.gathering {
            state.drainers -= 1;
            self.stage = Stage::Gone;
        } else {
            state.gathering = true;
            self.stage = Stage::Gathering;
        }
    }
}

/// Unregisters the drainer when the runtime shuts down or the drainer panics. If no drainer is left to send
/// the queued operations, those operations fail, with an error that states that they were not sent.
impl<O: Operation> Drop for Drainer<O> {
    fn drop(&mut self) {
        if self.stage == Stage::Gone {
            return;
        }
        let mut state = self.lane.state();
        state.drainers -= 1;
        if self.stage == Stage::Gathering {
            state.gathering = false;
        }
        if state.drainers > 0 {
            return;
        }
        let stranded = std::mem::take(&mut state.waiting);
        drop(state);
        for waiting in stranded {
            let _ = waiting.reply.send(Err(Error::unavailable("the runtime is shutting down")));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use memcache::exp::{Get, GetResult, GetStatus};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::error::ErrorKind;

    type Answer = oneshot::Receiver<Result<GetResult>>;

    /// A lane with batches of at most three operations, to a server that has no records.
    struct Subject {
        lane: Arc<Lane<Get>>,
        /// The keys that the server was asked for, each with its position in its batch.
        asked: mpsc::UnboundedReceiver<String>,
        /// Whether the server answers.
        answers: watch::Sender<bool>,
    }

    impl Subject {
        async fn new(limits: Limits) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let (sender, asked) = mpsc::unbounded_channel();
            let (answers, may_answer) = watch::channel(true);
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let (sender, mut may_answer) = (sender.clone(), may_answer.clone());
                    tokio::spawn(async move {
                        let mut buffer = [0; 4096];
                        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                            // A batch is small enough to arrive in one piece.
                            let batch = str::from_utf8(&buffer[..length]).unwrap();
                            let mut answers = String::new();
                            for line in batch.lines() {
                                let words: Vec<_> = line.split(' ').collect();
                                if let ["mg", key, .., place] = *words {
                                    sender.send(format!("{key} {place}")).unwrap();
                                    answers += &format!("EN {place}\r\n");
                                } else {
                                    answers += "MN\r\n";
                                }
                            }
                            if batch.starts_with("mg") {
                                may_answer.wait_for(|may| *may).await.unwrap();
                            }
                            stream.write_all(answers.as_bytes()).await.unwrap();
                        }
                    });
                }
            });
            let node = Arc::new(Node::new(address, limits));
            // Connects first, so that no test measures the time taken to connect.
            node.client().await.unwrap();
            Self { lane: Arc::new(Lane::new(node, Effect::Read, 3)), asked, answers }
        }

        /// Returns a lane to a server that does not answer until the test permits it.
        async fn silent() -> Self {
            let patient = Limits { response: Duration::from_secs(60), ..Limits::default() };
            let subject = Self::new(patient).await;
            subject.answers.send_replace(false);
            subject
        }

        fn queue_since(&self, key: &str, since: Instant) -> Answer {
            let (reply, answer) = oneshot::channel();
            self.lane.push(Waiting { operation: Get::new(key), since, reply }).unwrap();
            answer
        }

        fn queue(&self, key: &str) -> Answer {
            self.queue_since(key, Instant::now())
        }

        async fn is_asked(&mut self, expected: &[&str]) {
            for expected in expected {
                assert_eq!(bounded(self.asked.recv()).await.unwrap(), *expected);
            }
            self.asked.try_recv().unwrap_err();
        }

        /// Returns the number of drainers, and the number of operations in the queue.
        fn counts(&self) -> (usize, usize) {
            let state = self.lane.state();
            (state.drainers, state.waiting.len())
        }

        fn is_idle(&self) {
            let state = self.lane.state();
            assert_eq!((state.drainers, state.waiting.len()), (0, 0));
            assert!(!state.gathering && !state.solo);
        }
    }

    /// Fails if the future takes too long.
    async fn bounded<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(5), future).await.expect("it hangs")
    }

    async fn succeeds(answer: Answer) {
        let answer = bounded(answer).await;
        assert_eq!(answer.unwrap().unwrap().status, GetStatus::Miss);
    }

    fn unsent(answer: Result<GetResult>) -> String {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        std::error::Error::source(&error).unwrap().to_string()
    }

    #[tokio::test]
    async fn operation_of_caller_who_has_left_is_not_sent() {
        let mut subject = Subject::new(Limits::default()).await;
        let left = subject.queue("left");
        let stayed = subject.queue("stayed");
        drop(left);
        succeeds(stayed).await;
        subject.is_asked(&["stayed O0"]).await;
    }

    #[tokio::test]
    async fn operation_that_waited_too_long_is_given_up_unsent() {
        let limits = Limits {
            connect: Duration::from_secs(2),
            response: Duration::from_secs(30),
            ..Limits::default()
        };
        let mut subject = Subject::new(limits).await;
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        let late = subject.queue_since("late", ago(31));
        let in_time = subject.queue_since("in-time", ago(20));
        assert!(unsent(bounded(late).await.unwrap()).contains("does not keep up"));
        succeeds(in_time).await;
        // A batch without remaining operations is not sent either.
        let late = subject.queue_since("late", ago(31));
        assert!(unsent(bounded(late).await.unwrap()).contains("does not keep up"));
        succeeds(subject.queue("last")).await;
        subject.is_asked(&["in-time O0", "last O0"]).await;
        subject.is_idle();
    }

    #[tokio::test]
    async fn operations_over_limit_are_refused() {
        let subject = Subject::new(Limits { waiting: 2, ..Limits::default() }).await;
        let queued = [subject.queue("one"), subject.queue("two")];
        let refused = subject.lane.submit(Get::new("three")).now_or_never();
        // Without the queued operations, the caller would send this one directly.
        assert!(unsent(refused.unwrap()).contains("too many"));
        for answer in queued {
            succeeds(answer).await;
        }
    }

    #[tokio::test]
    async fn callers_are_told_when_runtime_shuts_down() {
        let mut subject = Subject::new(Limits::default()).await;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut answers = {
            let _inside = runtime.enter();
            ["a", "b", "c", "d"].map(|key| subject.queue(key))
        };
        runtime.shutdown_background();
        for answer in &mut answers {
            assert!(unsent(answer.try_recv().unwrap()).contains("shutting down"));
        }
        subject.is_idle();
        // The lane continues to work on a different runtime.
        succeeds(subject.queue("next")).await;
        subject.is_asked(&["next O0"]).await;
        subject.is_idle();
    }

    #[tokio::test]
    async fn another_drainer_serves_those_whose_drainer_was_dropped() {
        let mut subject = Subject::silent().await;
        let first = subject.queue("first");
        subject.is_asked(&["first O0"]).await;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let others = {
            let _inside = runtime.enter();
            [subject.queue("second"), subject.queue("third")]
        };
        assert_eq!(subject.counts(), (2, 2));
        runtime.shutdown_background();
        assert_eq!(subject.counts(), (1, 2));
        subject.answers.send_replace(true);
        succeeds(first).await;
        for answer in others {
            succeeds(answer).await;
        }
        subject.is_asked(&["second O0", "third O1"]).await;
        subject.is_idle();
    }

    #[tokio::test]
    async fn drainer_dropped_while_sending_gives_its_place_back() {
        let subject = Subject::silent().await;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = {
            let _inside = runtime.enter();
            subject.queue("first")
        };
        let lane = Arc::clone(&subject.lane);
        let until_sent = move || {
            let mut polls = 0..1000;
            while !lane.state().waiting.is_empty() && polls.next().is_some() {
                runtime.block_on(tokio::task::yield_now());
            }
            runtime
        };
        let runtime = std::thread::spawn(until_sent).join().unwrap();
        assert_eq!(subject.counts(), (1, 0), "it is sending");
        let next = subject.queue("next");
        assert_eq!(subject.counts(), (2, 1));
        runtime.shutdown_background();
        bounded(answer).await.unwrap_err();
        assert_eq!(subject.counts(), (1, 1));
        assert!(subject.lane.state().gathering, "the other drainer's");
        subject.answers.send_replace(true);
        succeeds(next).await;
        subject.is_idle();
    }

    #[tokio::test]
    async fn batches_are_bounded_and_at_most_two_are_on_their_way() {
        let mut subject = Subject::silent().await;
        let mut answers: Vec<_> = ["a", "b", "c", "d"].map(|key| subject.queue(key)).into();
        assert_eq!(subject.counts(), (1, 4), "one drainer gathers");
        subject.is_asked(&["a O0", "b O1", "c O2", "d O0"]).await;
        assert_eq!(subject.counts(), (2, 0));
        answers.extend(["e", "f"].map(|key| subject.queue(key)));
        assert_eq!(subject.counts(), (2, 2), "no third drainer");
        subject.answers.send_replace(true);
        for answer in answers {
            succeeds(answer).await;
        }
        subject.is_asked(&["e O0", "f O1"]).await;
        subject.is_idle();
    }

    #[tokio::test]
    async fn lone_caller_sends_its_operation_itself() {
        let mut subject = Subject::silent().await;
        let lane = Arc::clone(&subject.lane);
        let mut first = Box::pin(lane.submit(Get::new("first")));
        assert!((&mut first).now_or_never().is_none());
        assert!(lane.state().solo);
        assert_eq!(subject.counts(), (0, 0));
        let mut second = Box::pin(lane.submit(Get::new("second")));
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(subject.counts(), (1, 1), "only one is on its own");
        subject.answers.send_replace(true);
        let (first, second) = bounded(async { tokio::join!(first, second) }).await;
        assert_eq!(
            (first.unwrap().status, second.unwrap().status),
            (GetStatus::Miss, GetStatus::Miss)
        );
        subject.is_idle();
        let asked = [subject.asked.recv().await.unwrap(), subject.asked.recv().await.unwrap()];
        assert!(asked.contains(&"first O0".to_owned()), "{asked:?}");

        // After several operations have arrived together, the lane expects the next ones to do the same.
        let pair = [subject.queue("a"), subject.queue("b")];
        for answer in pair {
            succeeds(answer).await;
        }
        for goes_alone in [false, true] {
            let mut next = Box::pin(lane.submit(Get::new("next")));
            assert!((&mut next).now_or_never().is_none());
            assert_eq!(lane.state().solo, goes_alone);
            assert_eq!(subject.counts(), if goes_alone { (0, 0) } else { (1, 1) });
            bounded(next).await.unwrap();
            subject.is_idle();
        }
    }

    #[tokio::test]
    async fn connection_is_looked_after_following_a_pause() {
        let subject = Subject::new(Limits::default()).await;
        let is_first = |last| {
            subject.lane.state().last_solo = last;
            subject.lane.solo().unwrap().is_first
        };
        let now = Instant::now();
        assert!(is_first(None));
        assert!(is_first(now.checked_sub(PAUSE * 2)));
        assert!(!is_first(Some(now + PAUSE * 1000)));
        assert!(subject.lane.state().last_solo.unwrap() < now + PAUSE * 1000);
    }
}
