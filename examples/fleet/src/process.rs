//! The processes of the shop, as the one who starts and kills them sees them.

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

/// How many ports a process listens on, with which framework.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Plan {
    pub(crate) axum: usize,
    pub(crate) actix: usize,
}

impl Plan {
    /// As many processes with one port each.
    pub(crate) fn one_each(processes: usize) -> Vec<Self> {
        let kinds = [Self { axum: 1, actix: 0 }, Self { axum: 0, actix: 1 }];
        kinds.into_iter().cycle().take(processes).collect()
    }

    /// One process with as many ports.
    pub(crate) fn half_and_half(ports: usize) -> Self {
        Self { axum: ports.div_ceil(2), actix: ports / 2 }
    }
}

/// Whether the store can be reached; asks it for a session that nobody has.
pub(crate) async fn reach(url: &str) -> Result<()> {
    let cookie = Cookie::for_plain_http();
    let presented = format!("{}={}", cookie.name(), "A".repeat(43));
    let sessions = Sessions::builder(unsticky::connect(url)?).cookie(cookie).build()?;
    let exchange = Exchange::begin(&sessions, [presented.as_bytes()], None);
    exchange.handle().session().await.map_err(|error| {
        let reasons = std::iter::successors(std::error::Error::source(&error), |e| e.source());
        reasons.fold(error.to_string(), |all, reason| format!("{all}: {reason}"))
    })?;
    Ok(())
}

/// All processes that run, and those that ran.
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
        plans: Vec<Plan>,
        balancer: Arc<Balancer>,
    ) -> Result<Self> {
        let mut fleet =
            Self { url: url.to_owned(), processes: Vec::new(), balancer, past: Vec::new() };
        for plan in plans {
            let process = Process::start(url, plan).await?;
            fleet.balancer.add(&process.instances);
            fleet.processes.push(process);
        }
        Ok(fleet)
    }

    /// Kills a process every one or two seconds and starts another in its place.
    pub(crate) async fn harass(
        &mut self,
        until: Instant,
        tally: &Tally,
        kills: bool,
    ) -> Result<Infallible> {
        loop {
            sleep(Duration::from_millis(fastrand::u64(1000..2000))).await;
            for process in &mut self.processes {
                if let Some(status) = process.child.try_wait()? {
                    return Err(format!("a process of the shop ended by itself: {status}").into());
                }
            }
            if !kills || Instant::now() >= until {
                continue;
            }
            let Some(process) = fastrand::choice(&mut self.processes) else { continue };
            process.kill().await?;
            tally.killed();
            self.balancer.remove(process.id);
            let other = Process::start(&self.url, process.plan).await?;
            self.balancer.add(&other.instances);
            self.past.append(&mut std::mem::replace(process, other).instances);
        }
    }

    /// Ends all of them, and tells what each was asked.
    pub(crate) async fn stop(mut self) -> Result<Vec<Arc<Instance>>> {
        for process in &mut self.processes {
            // One may just have been killed, and not been replaced any more.
            if process.child.id().is_some() {
                process.child.kill().await?;
            }
            self.past.append(&mut process.instances);
        }
        Ok(self.past)
    }
}

#[derive(Debug)]
struct Process {
    id: u32,
    plan: Plan,
    /// Its standard input ends with this process, however that ends, and the child with it.
    child: Child,
    instances: Vec<Arc<Instance>>,
}

impl Process {
    async fn start(url: &str, plan: Plan) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--axum", &plan.axum.to_string(), "--actix", &plan.actix.to_string()])
            // Not an argument, which everybody on the machine can read: it may hold a password.
            .env("SESSION_URL", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take();
        let id = child.id().unwrap_or_default();
        let instances = async {
            let mut instances = Vec::new();
            let mut lines = BufReader::new(output.ok_or(io::ErrorKind::BrokenPipe)?).lines();
            while instances.len() < plan.axum + plan.actix {
                let line = lines.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                let Some(address) = line.strip_prefix("listening on http://") else { continue };
                let address = address.parse().map_err(io::Error::other)?;
                let is_axum = instances.len() < plan.axum;
                let framework = if is_axum { Framework::Axum } else { Framework::Actix };
                instances.push(Arc::new(Instance::new(id, framework, address)));
            }
            Ok(instances)
        };
        let instances = timeout(START, instances)
            .await
            .unwrap_or_else(|elapsed| Err(elapsed.into()))
            .map_err(|error: io::Error| format!("a process of the shop did not start: {error}"))?;
        Ok(Self { id, plan, child, instances })
    }

    /// SIGKILL: the process is gone between two instructions.
    async fn kill(&mut self) -> io::Result<()> {
        for instance in &self.instances {
            instance.about_to_be_killed();
        }
        self.child.kill().await
    }
}
