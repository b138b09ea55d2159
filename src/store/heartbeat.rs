//! A timer that keeps the other timers cheap.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Much less than any time limit of a command.
const BEAT: Duration = Duration::from_millis(50);

/// Beats while a connection is in use.
///
/// Tokio wakes its runtime, with a system call, for a timer that is due before all others. Every
/// command has time limits, so without another timer that is due earlier each command of a quiet
/// moment would cost that call, twice. The one here is always due earlier, and costs it once.
pub(super) struct Heartbeat {
    timer: Pin<Box<Sleep>>,
    is_beating: bool,
    was_used: bool,
}

impl Heartbeat {
    pub(super) fn new() -> Self {
        Self { timer: Box::pin(sleep(BEAT)), is_beating: true, was_used: false }
    }

    /// To be called whenever the connection's task is polled; wakes it again after each beat.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        if !self.is_beating {
            self.beat(cx);
        } else if self.timer.as_mut().poll(cx).is_pending() {
            self.was_used = true;
        } else if self.was_used {
            self.beat(cx);
        } else {
            self.is_beating = false;
        }
    }

    fn beat(&mut self, cx: &mut Context<'_>) {
        self.timer.as_mut().reset(Instant::now() + BEAT);
        let due: Poll<()> = self.timer.as_mut().poll(cx);
        (self.is_beating, self.was_used) = (due.is_pending(), false);
    }
}
