//! Private store servers. Each server listens on a free port on this machine and keeps nothing on disk unless
//! it will be restarted. It ends when the value that started it is dropped.

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

    /// Returns the name as it is used in sentences.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Redis => "Redis",
            Self::Memcached => "Memcached",
        }
    }

    /// Returns whether the server can keep its data across a restart.
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
                    // Every acknowledged write is on disk. The file is never rewritten, because the child
                    // process that rewrites it would outlive a killed server.
                    Some(directory) => command
                        .args(["--appendonly", "yes", "--appendfsync", "always"])
                        .args(["--auto-aof-rewrite-percentage", "0", "--dir"])
                        .arg(directory),
                    None => command.args(["--appendonly", "no"]),
                }
            }
            // The `-u` option has an effect only for root; without it, memcached refuses to run as root.
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
    /// Starts the server; returns `None` if the program is not installed. With `keeps_data`, the server keeps
    /// its data across a restart, if the program can do that.
    pub(crate) async fn start(program: Program, keeps_data: bool) -> Result<Option<Self>> {
        let name = program.name();
        // Another program may take the free port before the server binds to it.
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

    /// Returns whether the server can be restarted without losing data.
    pub(crate) fn keeps_data(&self) -> bool {
        self.kept_in.is_some()
    }

    /// Sends SIGSTOP. The server stops answering, but its connections stay open, and clients can still connect.
    pub(crate) async fn pause(&mut self) -> Result<()> {
        self.signal("STOP").await
    }

    /// Sends SIGCONT. The server then processes everything that was sent to it while it was paused.
    pub(crate) async fn resume(&mut self) -> Result<()> {
        self.signal("CONT").await
    }

    /// Sends SIGKILL, whether the server is paused or not.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.must_run()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Restarts a killed server at the same address, with its data.
    pub(crate) async fn start_again(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            let path = self.kept_in.as_ref().map(Directory::path);
            self.child = self.program.command(self.port, path).spawn()?;
            if self.answers().await? {
                return Ok(());
            }
            // Another program may use the port for a moment, because outgoing connections are also given such
            // ports.
        }
        Err(format!("{} did not start again", self.program.name()).into())
    }

    async fn signal(&mut self, signal: &str) -> Result<()> {
        self.must_run()?;
        // The process has not been waited for, so the system has not reused its id.
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
                // If another program had taken the port, our server would have ended by now.
                return Ok(self.child.try_wait()?.is_none());
            }
        }
        Ok(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL also ends a paused server. An error means that the server has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A private directory, which is removed with its contents when the value is dropped.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new() -> io::Result<Self> {
        let name = format!("unsticky-fleet-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        let mut builder = fs::DirBuilder::new();
        // Other users on the machine must not be able to read the sessions.
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
        // If the directory cannot be removed, it stays in the system's temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}
