//! A connection's heartbeat: ends commands that have waited too long, and keeps the runtime's timers cheap.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::store::redis::waits::Waits;

/// The interval: much shorter than the time limits of a request.
const BEAT: Duration = Duration::from_millis(50);

/// Beats while a connection is in use or a command is waiting on it.
///
/// If a new timer is due before all the others, Tokio wakes its runtime with a system call. Every request has
/// a time limit, so each command on an otherwise idle runtime would cost such a system call. Unless a limit
/// is shorter than the interval, the heartbeat's timer is due before it, so one system call per interval is
/// enough.
pub(super) struct Heartbeat {
    waits: Arc<Waits>,
    length: Duration,
    timer: Pin<Box<Sleep>>,
    is_beating: bool,
    was_used: bool,
}

impl Heartbeat {
    /// If the response timeout is shorter than `BEAT`, it is used as the interval.
    pub(super) fn new(waits: Arc<Waits>, response_timeout: Duration) -> Self {
        let length = response_timeout.clamp(Duration::from_millis(1), BEAT);
        Self { waits, length, timer: Box::pin(sleep(length)), is_beating: true, was_used: false }
    }

    pub(super) fn waits(&self) -> &Arc<Waits> {
        &self.waits
    }

    /// Returns whether a beat is due, and wakes the task after each interval, except while the heartbeat
    /// rests because the connection is not in use. Whenever the connection's task is polled, it must call
    /// this method first, because its other work may use up the budget that the runtime grants a task.
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
    /// Ends the commands that are still waiting. Nothing else would end them.
    fn drop(&mut self) {
        self.waits.close();
    }
}
