//! Operations that are ready at the same moment share one round trip.
//!
//! Callers queue their operation and wait. Tasks, at most [`DRAINERS`] of them, take what is queued
//! and send it as one batch; a task ends when the queue is empty, so nothing outlives its work. A
//! caller that goes away leaves its task, and so the answers of the others, undisturbed.
//!
//! In a quiet lane a caller sends its operation itself, which spares it the task. Nobody waits for
//! it: those who come meanwhile have a task of their own. Measured over loopback with records of
//! 1 KiB, a lone caller has its answer after 9.7 µs and not 15.2 on a runtime of two threads, after
//! 9.6 µs and not 11.0 on one of a single thread; among 64 callers there is no difference.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memcache::exp::Operation;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::answer::Effect;
use super::node::{Client, DRAINERS, Limits, Node};
use crate::error::{Error, Result};

/// After this long without an operation a connection may have been closed unnoticed.
const PAUSE: Duration = Duration::from_millis(1);

/// The operations of one kind on one server.
pub(super) struct Lane<O: Operation> {
    node: Arc<Node>,
    effect: Effect,
    max_batch: usize,
    state: Mutex<State<O>>,
}

struct State<O: Operation> {
    waiting: VecDeque<Waiting<O>>,
    /// How many drainers there are.
    drainers: usize,
    /// Whether one of them has yet to take its batch; it will take what is queued until then.
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
            if solo.is_first {
                // Has the runtime look whether the server has closed the idle connection.
                tokio::task::yield_now().await;
            }
            let client = self.node.client().await?;
            let answers = self.node.exchange(&client, self.effect, vec![operation]).await;
            return answers.into_iter().next().unwrap_or_else(|| Err(self.effect.lost()));
        }
        let (reply, answer) = oneshot::channel();
        self.push(Waiting { operation, since: Instant::now(), reply })?;
        answer.await.unwrap_or_else(|_| Err(self.effect.lost()))
    }

    fn push(self: &Arc<Self>, waiting: Waiting<O>) -> Result<()> {
        let mut state = self.state();
        if state.waiting.len() >= self.node.limits().waiting {
            return Err(Error::unavailable("too many operations wait for the memcached server"));
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
    /// Makes room for a drainer where one is needed; the caller then spawns it.
    fn enlist(&mut self) -> bool {
        let needed = !self.waiting.is_empty() && !self.gathering && self.drainers < DRAINERS;
        if needed {
            self.drainers += 1;
            self.gathering = true;
        }
        needed
    }
}

/// The place of the one caller that sends its operation itself.
struct Solo<'a, O: Operation> {
    lane: &'a Lane<O>,
    /// Whether it comes after a pause.
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

/// What of a drainer the lane's state counts.
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
        // Outside a runtime the drainer is dropped, which answers those who wait.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.run());
        }
    }

    async fn run(mut self) {
        while self.stage == Stage::Gathering {
            // Lets everybody who is ready now add an operation to the batch.
            tokio::task::yield_now().await;
            // Before the batch is taken: what is taken is sent at once, or not at all.
            match self.lane.node.client().await {
                Ok(client) => {
                    let batch = self.take(self.lane.max_batch);
                    self.send(&client, batch).await;
                }
                // All of them have waited for this connection.
                Err(error) => {
                    for waiting in self.take(usize::MAX) {
                        // The caller may have gone.
                        let _ = waiting.reply.send(Err(error.clone()));
                    }
                }
            }
            // In the same poll as the answers: a runtime that is driven no further once they are
            // there must not keep a drainer's place.
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
        // Waiting for a connection is not what is meant.
        let patience = connect.max(response);
        let mut operations = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        for Waiting { operation, since, reply } in batch {
            // What waited behind a server that hangs is not made to wait for it once more.
            if now.duration_since(since) > patience {
                let _ = reply.send(Err(Error::unavailable("memcached does not keep up")));
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

/// For a runtime that shuts down, and for a panic: the place is given back, and if nobody is left
/// to send what is queued, those who wait are told that it was not sent.
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
    use memcache::exp::{Get, GetStatus};
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;
    use crate::error::ErrorKind;

    type Answer = oneshot::Receiver<Result<<Get as Operation>::Output>>;

    /// A lane to a server that has no record, and the keys that the server is asked for.
    async fn lane(limits: Limits) -> (Arc<Lane<Get>>, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut lines = BufReader::new(stream).lines();
                    while let Ok(Some(line)) = lines.next_line().await {
                        let words: Vec<_> = line.split(' ').collect();
                        let answer = match *words {
                            ["mg", key, .., opaque] => {
                                sender.send(key.to_owned()).unwrap();
                                format!("EN {opaque}\r\n")
                            }
                            _ => "MN\r\n".to_owned(),
                        };
                        lines.get_mut().write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        let node = Arc::new(Node::new(address, limits));
        (Arc::new(Lane::new(node, Effect::Read, 256)), asked)
    }

    fn queue(lane: &Arc<Lane<Get>>, key: &str, since: Instant) -> Answer {
        let (reply, answer) = oneshot::channel();
        lane.push(Waiting { operation: Get::new(key), since, reply }).unwrap();
        answer
    }

    fn refused(answer: Result<<Get as Operation>::Output>) -> String {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        std::error::Error::source(&error).unwrap().to_string()
    }

    /// Nobody is counted who is not there.
    fn is_idle(lane: &Lane<Get>) -> bool {
        let state = lane.state();
        state.waiting.is_empty() && state.drainers == 0 && !state.gathering && !state.solo
    }

    #[tokio::test]
    async fn operation_of_caller_who_has_left_is_not_sent() {
        let (lane, mut asked) = lane(Limits::default()).await;
        let left = queue(&lane, "left", Instant::now());
        let stayed = queue(&lane, "stayed", Instant::now());
        drop(left);
        assert_eq!(stayed.await.unwrap().unwrap().status, GetStatus::Miss);
        assert_eq!(asked.recv().await.unwrap(), "stayed");
        assert!(asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn operation_that_waited_too_long_is_given_up_unsent() {
        let limits = Limits {
            connect: Duration::from_secs(2),
            response: Duration::from_secs(3),
            ..Limits::default()
        };
        let (lane, mut asked) = lane(limits).await;
        let since = |ago| Instant::now().checked_sub(Duration::from_millis(ago)).unwrap();
        let late = queue(&lane, "late", since(3001));
        let in_time = queue(&lane, "in-time", since(2500));
        assert!(refused(late.await.unwrap()).contains("does not keep up"));
        assert_eq!(in_time.await.unwrap().unwrap().status, GetStatus::Miss);
        // A batch of which nothing is left is not sent either.
        let late = queue(&lane, "late", since(3001));
        assert!(refused(late.await.unwrap()).contains("does not keep up"));
        let last = queue(&lane, "last", Instant::now());
        assert_eq!(last.await.unwrap().unwrap().status, GetStatus::Miss);
        assert_eq!(asked.recv().await.unwrap(), "in-time");
        assert_eq!(asked.recv().await.unwrap(), "last");
        assert!(asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn callers_are_told_when_runtime_shuts_down() {
        let (lane, mut asked) = lane(Limits::default()).await;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut answers = {
            let _inside = runtime.enter();
            [(); 3].map(|()| queue(&lane, "key", Instant::now()))
        };
        runtime.shutdown_background();
        for answer in &mut answers {
            assert!(refused(answer.try_recv().unwrap()).contains("shutting down"));
        }
        assert!(is_idle(&lane));
        // The lane goes on elsewhere.
        let next = queue(&lane, "next", Instant::now());
        assert_eq!(next.await.unwrap().unwrap().status, GetStatus::Miss);
        assert_eq!(asked.recv().await.unwrap(), "next");
        tokio::task::yield_now().await;
        assert!(is_idle(&lane));
    }
}
