//! Measures how long the code under test takes, excluding the moments in which the machine ran no task.

use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The length of one of the watcher's sleeps.
const NAP: Duration = Duration::from_millis(5);

/// Sleeps that took far longer than `NAP`: when each ended, and how much too long it was. A shared machine
/// occasionally stops for half a second, and no deadline can be met during that time.
static STALLS: Mutex<Vec<(Instant, Duration)>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        static WATCHER: Once = Once::new();
        WATCHER.call_once(|| {
            thread::spawn(|| {
                loop {
                    let begun = Instant::now();
                    thread::sleep(NAP);
                    let stall = begun.elapsed().saturating_sub(2 * NAP);
                    if stall > 4 * NAP {
                        let mut stalls = STALLS.lock().unwrap_or_else(PoisonError::into_inner);
                        stalls.push((Instant::now(), stall));
                    }
                }
            });
        });
        Self(Instant::now())
    }

    pub fn elapsed(self) -> Duration {
        self.0.elapsed().saturating_sub(self.stalled())
    }

    /// Returns for how long in total the machine has been stopped since the stopwatch was started.
    pub fn stalled(self) -> Duration {
        let stalls = STALLS.lock().unwrap_or_else(PoisonError::into_inner);
        stalls.iter().filter(|(end, _)| *end > self.0).map(|(_, stall)| *stall).sum()
    }
}
