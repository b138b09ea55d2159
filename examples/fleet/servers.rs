//! Private store servers: on a free port of this machine, with nothing kept on disk, ended with the
//! value that started them.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::Result;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Program {
    Redis,
    Memcached,
}

impl Program {
    pub(crate) const ALL: [Self; 2] = [Self::Redis, Self::Memcached];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Memcached => "memcached",
        }
    }

    const fn scheme(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Memcached => "memcached",
        }
    }

    fn command(self, port: u16) -> Command {
        let port = port.to_string();
        let mut command = Command::new(self.name());
        match self {
            Self::Redis => command.args(["--bind", "127.0.0.1", "--port", &port]).args([
                "--appendonly",
                "no",
                "--save",
                "",
            ]),
            // The user counts for root only, whom memcached refuses to serve otherwise.
            Self::Memcached => command
                .args(["-l", "127.0.0.1", "-p", &port])
                .args(["-U", "0", "-m", "256", "-u", "nobody"]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// `None` if the program is not installed.
    pub(crate) async fn start(program: Program) -> Result<Option<Self>> {
        let name = program.name();
        // Others look for free ports too, so one may be gone before the server has it.
        for _ in 0..5 {
            let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            let child = match program.command(port).spawn() {
                Ok(child) => child,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(format!("{name} can not be started: {error}").into()),
            };
            let url = format!("{}://127.0.0.1:{port}", program.scheme());
            let mut server = Self { child, url };
            if server.answers(port).await? {
                return Ok(Some(server));
            }
        }
        Err(format!("{name} did not start").into())
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    async fn answers(&mut self, port: u16) -> Result<bool> {
        let deadline = Instant::now() + START;
        while self.child.try_wait()?.is_none() && Instant::now() < deadline {
            let is_there = TcpStream::connect(("127.0.0.1", port)).is_ok();
            sleep(Duration::from_millis(50)).await;
            if is_there {
                // Had it been somebody else's port, our server would have given up by now.
                return Ok(self.child.try_wait()?.is_none());
            }
        }
        Ok(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is gone already, or it goes now; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
