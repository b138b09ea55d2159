//! A command that is run again and again beside the users, as the people on call would run it.

use std::convert::Infallible;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::time::sleep;

use crate::Result;
use crate::tally::Tally;

/// Between two runs.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the command until the end. It may fail only on a store that is disturbed.
pub(crate) async fn run(
    command: &str,
    url: &str,
    until: Instant,
    is_disturbed: bool,
    tally: &Tally,
) -> Result<Infallible> {
    loop {
        if Instant::now() >= until {
            return Ok(std::future::pending().await);
        }
        let output = Command::new("sh")
            .args(["-c", command])
            // Not an argument, which everybody on the machine can read: it may hold a password.
            .env("SESSION_URL", url)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        tally.ran_beside(output.status.success());
        if !output.status.success() && !is_disturbed {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).replace('\n', " ");
            let status = output.status;
            return Err(format!("the command beside the users failed ({status}): {said}").into());
        }
        sleep(PAUSE).await;
    }
}
