//! Work that runs to completion. The work runs inside the task that awaits it, and moves to a task of its own
//! when the awaiting task drops it or when other work must wait for it.

use std::fmt;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

/// A future that runs to completion.
///
/// The future moves to a task of its own when it is dropped unfinished, or when its [`Driver`] reports that
/// other work is waiting for it. A future that is kept but not polled therefore cannot block other work.
/// Almost all futures are awaited until they finish, so very few commits need their own task.
///
/// The output is `None` if the task's runtime shuts down before the work is finished.
pub(crate) struct RunToCompletion<T: Send + 'static>(Arc<Work<T>>);

/// Moves work to its own task. Has no effect after the work has finished.
#[derive(Clone)]
pub(crate) struct Driver(Weak<dyn Drive + Send + Sync>);

trait Drive {
    fn drive(&self);
}

struct Work<T> {
    stage: Mutex<Stage<T>>,
    runtime: Handle,
}

enum Stage<T> {
    /// Not being polled. Holds the waker of the task that awaits the work.
    Idle(BoxFuture<'static, T>, Option<Waker>),
    /// Being polled. `is_wanted` means that the work must move to its own task afterwards.
    Polled { is_wanted: bool },
    /// Moved to its own task.
    Task(JoinHandle<T>),
    /// Finished, or panicked while it was polled.
    Finished,
}

impl<T: Send + 'static> RunToCompletion<T> {
    /// Creates the work. The future that `work` returns may pass on its own driver.
    pub(crate) fn new<F>(runtime: Handle, work: impl FnOnce(Driver) -> F) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let shared = Arc::new(Work { stage: Mutex::new(Stage::Finished), runtime });
        let weak: Weak<Work<T>> = Arc::downgrade(&shared);
        let future = Box::pin(work(Driver(weak)));
        *shared.stage() = Stage::Idle(future, None);
        Self(shared)
    }
}

impl<T: Send + 'static> Work<T> {
    fn stage(&self) -> MutexGuard<'_, Stage<T>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Stage<T> {
        std::mem::replace(&mut *self.stage(), Stage::Finished)
    }
}

impl<T: Send + 'static> Drive for Work<T> {
    fn drive(&self) {
        let mut stage = self.stage();
        match std::mem::replace(&mut *stage, Stage::Finished) {
            Stage::Idle(future, waker) => {
                *stage = Stage::Task(self.runtime.spawn(future));
                drop(stage);
                // The awaiting task must poll again in order to wait for the new task.
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Stage::Polled { .. } => *stage = Stage::Polled { is_wanted: true },
            other => *stage = other,
        }
    }
}

impl Driver {
    /// Makes sure that the work continues even if its future is not polled.
    pub(crate) fn drive(&self) {
        if let Some(work) = self.0.upgrade() {
            work.drive();
        }
    }
}

impl<T: Send + 'static> Future for RunToCompletion<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let work = &self.0;
        let mut future = {
            let mut stage = work.stage();
            match std::mem::replace(&mut *stage, Stage::Polled { is_wanted: false }) {
                Stage::Idle(future, _) => future,
                Stage::Task(task) => {
                    *stage = Stage::Task(task);
                    return poll_task(&mut stage, cx);
                }
                other => {
                    *stage = other;
                    return Poll::Pending;
                }
            }
        };
        // Polled without the lock, because the work may call its own driver.
        let outcome = future.as_mut().poll(cx);
        let mut stage = work.stage();
        if outcome.is_ready() {
            *stage = Stage::Finished;
            return outcome.map(Some);
        }
        if matches!(*stage, Stage::Polled { is_wanted: true }) {
            *stage = Stage::Task(work.runtime.spawn(future));
            return poll_task(&mut stage, cx);
        }
        *stage = Stage::Idle(future, Some(cx.waker().clone()));
        Poll::Pending
    }
}

fn poll_task<T>(stage: &mut Stage<T>, cx: &mut Context<'_>) -> Poll<Option<T>> {
    let Stage::Task(task) = stage else { return Poll::Pending };
    let joined = ready!(Pin::new(task).poll(cx));
    *stage = Stage::Finished;
    match joined.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(outcome) => Poll::Ready(Some(outcome)),
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_)) => Poll::Ready(None),
    }
}

impl<T: Send + 'static> Drop for RunToCompletion<T> {
    fn drop(&mut self) {
        if let Stage::Idle(future, _) = self.0.take() {
            self.0.runtime.spawn(future);
        }
    }
}

impl<T: Send + 'static> fmt::Debug for RunToCompletion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_finished = matches!(*self.0.stage(), Stage::Finished);
        f.debug_struct("RunToCompletion").field("finished", &is_finished).finish_non_exhaustive()
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver")
    }
}

/// Runs work to completion, even if the returned future is dropped.
pub(crate) async fn run_to_completion<T, F>(work: impl FnOnce(Driver) -> F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let runtime = Handle::try_current().map_err(Error::unavailable)?;
    let ended = || {
        Error::new(ErrorKind::OutcomeUnknown, "the Tokio runtime shut down during the operation")
    };
    RunToCompletion::new(runtime, work).await.unwrap_or_else(|| Err(ended()))
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use tokio::sync::oneshot;

    use super::*;
    use crate::error::Result;

    fn waits_for(receiver: oneshot::Receiver<u32>) -> RunToCompletion<u32> {
        RunToCompletion::new(Handle::current(), |_| async move { receiver.await.unwrap() })
    }

    #[tokio::test]
    async fn work_runs_in_task_that_awaits_it() {
        let (sender, receiver) = oneshot::channel();
        let mut work = waits_for(receiver);
        assert!(poll!(&mut work).is_pending());
        sender.send(7).unwrap();
        assert_eq!(work.await, Some(7));
    }

    #[tokio::test]
    async fn dropped_work_runs_to_completion() {
        let (done, is_done) = oneshot::channel();
        drop(RunToCompletion::new(Handle::current(), |_| async move { done.send(1).unwrap() }));
        assert_eq!(is_done.await, Ok(1));
    }

    #[tokio::test]
    async fn driven_work_continues_without_being_polled() {
        let (sender, receiver) = oneshot::channel::<u32>();
        let (done, is_done) = oneshot::channel();
        let mut driver = None;
        let mut work = RunToCompletion::new(Handle::current(), |own| {
            driver = Some(own);
            async move { done.send(receiver.await.unwrap()).unwrap() }
        });
        assert!(poll!(&mut work).is_pending());
        sender.send(7).unwrap();
        driver.unwrap().drive();
        assert_eq!(is_done.await, Ok(7));
        work.await;
    }

    #[tokio::test]
    async fn work_driven_while_awaited_wakes_its_awaiter() {
        let (sender, receiver) = oneshot::channel::<u32>();
        let mut driver = None;
        let work = RunToCompletion::new(Handle::current(), |own| {
            driver = Some(own);
            async move { receiver.await.unwrap() }
        });
        let awaited = tokio::spawn(work);
        tokio::task::yield_now().await;
        driver.unwrap().drive();
        sender.send(7).unwrap();
        assert_eq!(awaited.await.unwrap(), Some(7));
    }

    #[tokio::test]
    async fn work_can_move_itself_to_its_own_task() {
        let (sender, receiver) = oneshot::channel::<u32>();
        let (done, is_done) = oneshot::channel();
        let mut work = RunToCompletion::new(Handle::current(), |own| async move {
            own.drive();
            done.send(receiver.await.unwrap()).unwrap();
            9
        });
        assert!(poll!(&mut work).is_pending());
        sender.send(7).unwrap();
        assert_eq!(is_done.await, Ok(7));
        assert_eq!(work.await, Some(9));
    }

    #[tokio::test]
    async fn panic_in_task_reaches_awaiter() {
        let work = RunToCompletion::new(Handle::current(), |own| async move {
            own.drive();
            tokio::task::yield_now().await;
            panic!("as the test says");
        });
        let joined: Result<Option<()>, _> = tokio::spawn(work).await;
        assert!(joined.unwrap_err().is_panic());
    }

    #[test]
    fn work_returns_none_when_its_runtime_ends() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (one, two) = (runtime(), runtime());
        let mut driver = None;
        let mut work = RunToCompletion::new(one.handle().clone(), |own| {
            driver = Some(own);
            std::future::pending::<u32>()
        });
        two.block_on(async { assert!(poll!(&mut work).is_pending()) });
        driver.unwrap().drive();
        drop(one);
        assert_eq!(two.block_on(work), None);
    }
}
