//! Starts and kills the processes of the shop.

use std::convert::Infallible;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use unsticky::exchange::Exchange;
use unsticky::{Cookie, Sessions};

use crate::Result;
use crate::balancer::{Balancer, Framework, Instance};
use crate::tally::Tally;

/// How long a process may take to start.
const START: Duration = Duration::from_secs(20);

/// Checks that the store is reachable, by loading a session that does not exist.
pub(crate) async fn reach(url: &str) -> Result<()> {
    let cookie = Cookie::new("shop").insecure();
    let presented = format!("{}={}", cookie.name(), "A".repeat(43));
    let sessions = Sessions::builder(unsticky::connect(url)?).cookie(cookie).build()?;
    let exchange = Exchange::begin(&sessions, [presented], None);
    exchange.handle().session().await.map_err(|error| {
        let reasons = std::iter::successors(std::error::Error::source(&error), |e| e.source());
        reasons.fold(error.to_string(), |all, reason| format!("{all}: {reason}"))
    })?;
    Ok(())
}

/// The running processes, and those that were killed.
#[derive(Debug)]
pub(crate) struct Fleet {
    url: String,
    processes: Vec<Process>,
    balancer: Arc<Balancer>,
    past: Vec<Arc<Instance>>,
}

impl Fleet {
    pub(crate) async fn start(
        url: &str,
        processes: usize,
        balancer: Arc<Balancer>,
    ) -> Result<Self> {
        let mut fleet =
            Self { url: url.to_owned(), processes: Vec::new(), balancer, past: Vec::new() };
        for framework in Framework::ALL.into_iter().cycle().take(processes) {
            let process = Process::start(url, framework).await?;
            fleet.balancer.add(process.instance.clone());
            fleet.processes.push(process);
        }
        Ok(fleet)
    }

    /// Kills a process every one or two seconds and starts another in its place.
    pub(crate) async fn harass(&mut self, until: Instant, tally: &Tally) -> Result<Infallible> {
        loop {
            sleep(Duration::from_millis(fastrand::u64(1000..2000))).await;
            for process in &mut self.processes {
                if let Some(status) = process.child.try_wait()? {
                    return Err(format!("a process of the shop ended by itself: {status}").into());
                }
            }
            if Instant::now() >= until {
                continue;
            }
            let Some(process) = fastrand::choice(&mut self.processes) else { continue };
            process.kill().await?;
            tally.killed();
            self.balancer.remove(process.instance.process);
            let other = Process::start(&self.url, process.instance.framework).await?;
            self.balancer.add(other.instance.clone());
            self.past.push(std::mem::replace(process, other).instance);
        }
    }

    /// Ends all processes. Returns them, each with the number of its requests.
    pub(crate) async fn stop(mut self) -> Result<Vec<Arc<Instance>>> {
        for mut process in self.processes {
            // The process that was killed last may not have been replaced.
            if process.child.id().is_some() {
                process.child.kill().await?;
            }
            self.past.push(process.instance);
        }
        Ok(self.past)
    }
}

#[derive(Debug)]
struct Process {
    /// The child's standard input closes when this process ends in any way, and then the child ends too.
    child: Child,
    instance: Arc<Instance>,
}

impl Process {
    async fn start(url: &str, framework: Framework) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", framework.name()])
            // The URL may contain a password, and every user on the machine can read a process's arguments.
            .env("SESSION_URL", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take();
        let address = async {
            let mut lines = BufReader::new(output.ok_or(io::ErrorKind::BrokenPipe)?).lines();
            loop {
                let line = lines.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                if let Some(address) = line.strip_prefix("listening on http://") {
                    return address.parse().map_err(io::Error::other);
                }
            }
        };
        let address =
            timeout(START, address).await.unwrap_or_else(|elapsed| Err(elapsed.into())).map_err(
                |error: io::Error| format!("a process of the shop did not start: {error}"),
            )?;
        let id = child.id().unwrap_or_default();
        Ok(Self { child, instance: Arc::new(Instance::new(id, framework, address)) })
    }

    /// Sends SIGKILL, which ends the process at once, without any cleanup.
    async fn kill(&mut self) -> io::Result<()> {
        self.instance.about_to_be_killed();
        self.child.kill().await
    }
}
