//! Private store servers: on a free port of this machine, with nothing kept on disk unless they are
//! to be restarted, ended with the value that started them.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::Result;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// What it is called in sentences.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Redis => "Redis",
            Self::Memcached => "Memcached",
        }
    }

    /// Whether a restarted server can have what it had before.
    pub(crate) const fn can_keep_data(self) -> bool {
        matches!(self, Self::Redis)
    }

    const fn scheme(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Memcached => "memcached",
        }
    }

    fn command(self, port: u16, kept_in: Option<&Path>) -> Command {
        let port = port.to_string();
        let mut command = Command::new(self.name());
        match self {
            Self::Redis => {
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", ""]);
                match kept_in {
                    // What was answered is on disk. Never rewritten, which a child would do that
                    // outlives its parent.
                    Some(directory) => command
                        .args(["--appendonly", "yes", "--appendfsync", "always"])
                        .args(["--auto-aof-rewrite-percentage", "0", "--dir"])
                        .arg(directory),
                    None => command.args(["--appendonly", "no"]),
                }
            }
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
    program: Program,
    port: u16,
    child: Child,
    url: String,
    /// Dropped after the server has ended.
    kept_in: Option<Directory>,
}

impl Server {
    /// `None` if the program is not installed. `keeps_data` makes it one that can be restarted, where
    /// there is such a thing.
    pub(crate) async fn start(program: Program, keeps_data: bool) -> Result<Option<Self>> {
        let name = program.name();
        // Others look for free ports too, so one may be gone before the server has it.
        for _ in 0..5 {
            let kept_in =
                (keeps_data && program.can_keep_data()).then(Directory::new).transpose()?;
            let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            let path = kept_in.as_ref().map(Directory::path);
            let child = match program.command(port, path).spawn() {
                Ok(child) => child,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(format!("{name} cannot be started: {error}").into()),
            };
            let url = format!("{}://127.0.0.1:{port}", program.scheme());
            let mut server = Self { program, port, child, url, kept_in };
            if server.answers().await? {
                return Ok(Some(server));
            }
        }
        Err(format!("{name} did not start").into())
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Whether it can be restarted without losing anything.
    pub(crate) fn keeps_data(&self) -> bool {
        self.kept_in.is_some()
    }

    /// SIGSTOP: it answers nobody, and connections to it stay open, and can even be made.
    pub(crate) async fn pause(&mut self) -> Result<()> {
        self.signal("STOP").await
    }

    /// SIGCONT: it goes on with all that was sent to it meanwhile.
    pub(crate) async fn resume(&mut self) -> Result<()> {
        self.signal("CONT").await
    }

    /// SIGKILL, paused or not.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.must_run()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again after it was killed: at the same address, with its data.
    pub(crate) async fn start_again(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            let path = self.kept_in.as_ref().map(Directory::path);
            self.child = self.program.command(self.port, path).spawn()?;
            if self.answers().await? {
                return Ok(());
            }
            // Somebody may have the port for a moment; it is among those that connections get.
        }
        Err(format!("{} did not start again", self.program.name()).into())
    }

    async fn signal(&mut self, signal: &str) -> Result<()> {
        self.must_run()?;
        // It has not been waited for, so the number is still its own.
        let kill = format!("kill -{signal} {}", self.child.id());
        let status = tokio::process::Command::new("sh").args(["-c", &kill]).status().await?;
        if status.success() { Ok(()) } else { Err(format!("{kill}: {status}").into()) }
    }

    fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                Err(format!("{} ended by itself: {status}", self.program.name()).into())
            }
        }
    }

    async fn answers(&mut self) -> Result<bool> {
        let deadline = Instant::now() + START;
        while self.child.try_wait()?.is_none() && Instant::now() < deadline {
            let is_there = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
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
        // It is gone already, or it goes now, also if it is paused; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory of our own, removed with everything in it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new() -> io::Result<Self> {
        let name = format!("unsticky-fleet-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        let mut builder = fs::DirBuilder::new();
        // Sessions are nobody else's business.
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is left to the system, which tidies up here.
        let _ = fs::remove_dir_all(&self.0);
    }
}
