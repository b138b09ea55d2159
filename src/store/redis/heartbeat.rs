//! The beat of a connection: ends what waits for too long, and keeps the runtime's timers cheap.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::store::redis::waits::Waits;

/// Much less than the time limits of a request.
const BEAT: Duration = Duration::from_millis(50);

/// Beats while a connection is in use, and while a command waits on it.
///
/// Tokio wakes its runtime, with a system call, for a timer that is due before all others. Every
/// request has a time limit, so without another timer that is due earlier each command of a quiet
/// moment would cost that call. The one here is always due earlier, and costs it once.
pub(super) struct Heartbeat {
    waits: Arc<Waits>,
    length: Duration,
    timer: Pin<Box<Sleep>>,
    is_beating: bool,
    was_used: bool,
}

impl Heartbeat {
    /// A limit that is shorter than a beat makes the beats as short.
    pub(super) fn new(waits: Arc<Waits>, response_timeout: Duration) -> Self {
        let length = response_timeout.clamp(Duration::from_millis(1), BEAT);
        Self { waits, length, timer: Box::pin(sleep(length)), is_beating: true, was_used: false }
    }

    pub(super) fn waits(&self) -> &Arc<Waits> {
        &self.waits
    }

    /// To be called whenever the connection's task is polled, before all else there, for that may use up
    /// what the runtime lets a task do at once. Wakes the task again after each beat, and says that one is
    /// due.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let is_due = self.is_beating && self.timer.as_mut().poll(cx).is_ready();
        if self.is_beating && !is_due {
            self.was_used = true;
        } else if is_due && !self.was_used && self.waits.rest(cx.waker()) {
            self.is_beating = false;
        } else {
            self.timer.as_mut().reset(Instant::now() + self.length);
            (self.is_beating, self.was_used) = (true, false);
            if self.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        is_due
    }
}

impl Drop for Heartbeat {
    /// Nobody else would end what still waits.
    fn drop(&mut self) {
        self.waits.close();
    }
}
