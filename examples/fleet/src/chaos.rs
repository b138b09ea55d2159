//! Disturbs a single server every few seconds, in ways that also occur in production.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::time::{sleep, sleep_until};

use crate::Result;
use crate::servers::Server;
use crate::tally::{Disturbance, Tally};

/// Pauses the server every two or three seconds. A server that keeps its data is sometimes killed and
/// restarted instead, or killed while it is paused. In every case, the server soon runs again.
pub(crate) async fn disturb(
    server: &mut Server,
    until: Instant,
    tally: &Tally,
) -> Result<Infallible> {
    let mut next = Instant::now() + milliseconds(500..1000);
    loop {
        sleep_until(next.into()).await;
        if Instant::now() >= until {
            return Ok(std::future::pending().await);
        }
        next = Instant::now() + milliseconds(2000..3000);
        let (pauses, kills) = match fastrand::u8(..3) {
            0 if server.keeps_data() => (false, true),
            1 if server.keeps_data() => (true, true),
            _ => (true, false),
        };
        let away_since = Instant::now();
        if pauses {
            server.pause().await?;
            tally.disturbed(Disturbance::Pause, 1);
            sleep(milliseconds(300..1500)).await;
        }
        if kills {
            server.kill()?;
            tally.disturbed(Disturbance::Restart, 1);
            sleep(milliseconds(0..500)).await;
            server.start_again().await?;
        } else {
            server.resume().await?;
        }
        tally.store_was_away(away_since.elapsed());
    }
}

pub(crate) fn milliseconds(range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(fastrand::u64(range))
}
