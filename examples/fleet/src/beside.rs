//! Runs an operator's command repeatedly while the users shop.

use std::convert::Infallible;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::time::sleep;

use crate::Result;
use crate::tally::Tally;

/// The pause between two runs.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the command until the test ends. The command may fail only if the store is disturbed.
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
            // The URL may contain a password, and every user on the machine can read a process's arguments.
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
            return Err(format!("the command of --beside failed ({status}): {said}").into());
        }
        sleep(PAUSE).await;
    }
}
