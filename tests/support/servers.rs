//! Real servers for tests, examples and benchmarks. Each server uses a free port on the loopback interface,
//! keeps nothing on disk by default, and stops when its value is dropped.
//!
//! The functions here block, and they panic on failure, so a test fails if its server cannot be started.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "it is for tests")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to start.
const START: Duration = Duration::from_secs(20);

/// A Redis server for one test. The program is the one that `UNSTICKY_REDIS_SERVER` names, or else
/// `redis-server` from the path. The variable may name a different server that speaks the same protocol.
pub struct RedisServer {
    process: Process,
    password: Option<String>,
}

impl RedisServer {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with additional arguments, for example `["--maxmemory", "2mb"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::of(&redis_program(), "apt-get install redis-server", arguments)
    }

    fn of(program: &str, install: &'static str, arguments: &[&str]) -> Self {
        let password = arguments
            .windows(2)
            .find_map(|pair| (pair[0] == "--requirepass").then(|| pair[1].to_owned()));
        let process = Process::new(program, install, arguments);
        Self { process, password }.started(data_server)
    }

    /// Starts a cluster node that knows no other node and serves no slots. The node keeps its identity when
    /// it is restarted.
    pub(super) fn cluster_node(program: &str, arguments: &[&str]) -> Self {
        let install = "a cluster needs Redis 7.0 or newer: apt-get install redis-server, or name one \
                       in UNSTICKY_REDIS_SERVER";
        let process = Process::new(program, install, arguments);
        // The nodes communicate on a second port, which must stay the same for as long as the first one does.
        let buses = Mutex::new(HashMap::new());
        Self { process, password: None }.started(move |port, dir| {
            let mut buses = buses.lock().unwrap();
            let bus = *buses.entry(port.to_owned()).or_insert_with(free_port);
            let mut arguments = data_server(port, dir);
            let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()];
            arguments.extend(cluster.map(str::to_owned));
            arguments
        })
    }

    /// Starts a Sentinel that watches no server.
    pub fn sentinel() -> Self {
        Self::sentinel_with(&[])
    }

    /// Starts a Sentinel that watches no server, with additional arguments, for example
    /// `["--tls-port", "26380"]`.
    pub fn sentinel_with(arguments: &[&str]) -> Self {
        let process = Process::new(&redis_program(), "apt-get install redis-server", arguments);
        // The Sentinel stores its state in its configuration file.
        let file = process.dir.join("sentinel.conf");
        fs::write(&file, "").unwrap();
        Self { process, password: None }.started(move |port, dir| {
            [file.to_str().unwrap(), "--sentinel", "--port", port, "--bind", "127.0.0.1"]
                .into_iter()
                .chain(["--dir", dir, "--daemonize", "no"])
                .map(str::to_owned)
                .collect()
        })
    }

    fn started(
        mut self,
        arguments: impl Fn(&str, &str) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        let password = self.password.clone();
        self.process.start(arguments, move |port| {
            let info = redis(port, password.as_deref(), &["INFO", "server"]).ok()?;
            field(&info, "process_id:")
        });
        self
    }

    pub fn port(&self) -> u16 {
        self.process.port
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn url(&self) -> String {
        let password = self.password.as_ref().map(|password| format!(":{password}@"));
        format!("redis://{}127.0.0.1:{}/", password.unwrap_or_default(), self.port())
    }

    /// Runs an administrator's command on a new connection. Returns the answer as text, with one line per
    /// array element.
    pub fn cli(&self, command: &[&str]) -> String {
        self.ask(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Runs an administrator's command, like [`cli`](Self::cli), on a server that may be down or may refuse
    /// the command.
    pub fn ask(&self, command: &[&str]) -> Result<String, String> {
        redis(self.port(), self.password.as_deref(), command)
    }

    /// Opens a connection on which to send many commands.
    pub(super) fn dial(&self) -> Link {
        Link(dial(self.port()).unwrap_or_else(|error| panic!("port {}: {error}", self.port())))
    }

    pub fn is_running(&self) -> bool {
        self.process.child.is_some()
    }

    /// Returns how often the server received the command, according to the server's statistics.
    pub fn calls(&self, command: &str) -> u64 {
        self.command_stat(command, "calls")
    }

    /// Returns how often the server answered the command with an error or rejected it.
    pub fn failures(&self, command: &str) -> u64 {
        self.command_stat(command, "failed_calls") + self.command_stat(command, "rejected_calls")
    }

    fn command_stat(&self, command: &str, name: &str) -> u64 {
        let stats = self.cli(&["INFO", "commandstats"]);
        let stats = field(&stats, &format!("cmdstat_{}:", command.to_lowercase()));
        let stats = stats.unwrap_or_default();
        let stat = stats.split(',').find_map(|stat| stat.strip_prefix(name)?.strip_prefix('='));
        stat.and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Kills the server immediately. Its port is free until [`restart`](Self::restart).
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Restarts the server on the same port as soon as the port is free. The data is lost unless an argument
    /// made the server store it on disk.
    pub fn restart(&mut self) {
        self.process.restart();
    }

    /// Makes the server keep its connections but do nothing.
    pub fn pause(&self) {
        self.process.signal("STOP");
    }

    pub fn resume(&self) {
        self.process.signal("CONT");
    }
}

/// A connection on which to send an administrator's commands.
pub(super) struct Link(BufReader<TcpStream>);

impl Link {
    pub(super) fn cli(&mut self, command: &[&str]) -> String {
        request(&mut self.0, command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }
}

/// Returns the program for Redis servers and Sentinels.
pub fn redis_program() -> String {
    std::env::var("UNSTICKY_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// Returns the arguments for a server that keeps nothing on disk.
fn data_server(port: &str, dir: &str) -> Vec<String> {
    ["--port", port, "--bind", "127.0.0.1", "--dir", dir]
        .into_iter()
        .chain(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .map(str::to_owned)
        .collect()
}

/// Defines a server that speaks the Redis protocol. The program is the one that `$variable` names, or
/// else `$program` from the path.
macro_rules! other_server {
    ($(#[$doc:meta])* $name:ident: $variable:literal, $program:literal, $install:literal) => {
        $(#[$doc])*
        pub struct $name(RedisServer);

        impl $name {
            pub fn start() -> Self {
                Self::start_with(&[])
            }

            pub fn start_with(arguments: &[&str]) -> Self {
                let install = concat!($install, ", or name one in ", $variable);
                Self(RedisServer::of(&Self::program(), install, arguments))
            }

            pub fn program() -> String {
                std::env::var($variable).unwrap_or_else(|_| $program.to_owned())
            }
        }

        impl Deref for $name {
            type Target = RedisServer;

            fn deref(&self) -> &RedisServer {
                &self.0
            }
        }

        impl DerefMut for $name {
            fn deref_mut(&mut self) -> &mut RedisServer {
                &mut self.0
            }
        }
    };
}

other_server! {
    /// A Valkey 9 server for one test.
    ValkeyServer: "UNSTICKY_VALKEY_SERVER", "valkey-server", "apt-get install valkey-server"
}

other_server! {
    /// A Redis server for one test, version 8.4 or later.
    Redis84Server: "UNSTICKY_REDIS84_SERVER", "redis-server-8.4", "install Redis 8.4 or later"
}

/// A Memcached server for one test.
pub struct MemcachedServer {
    process: Process,
}

impl MemcachedServer {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with additional arguments, for example `["-m", "2"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        let mut process = Process::new("memcached", "apt-get install memcached", arguments);
        process.start(
            // Memcached refuses to run as root, so it gets this user. The argument has no effect for other
            // users.
            |port, _| {
                ["-l", "127.0.0.1", "-p", port, "-U", "0", "-u", "nobody"]
                    .map(str::to_owned)
                    .to_vec()
            },
            |port| {
                let stats = memcached(port, "stats").ok()?;
                field(&stats, "STAT pid ")
            },
        );
        Self { process }
    }

    pub fn port(&self) -> u16 {
        self.process.port
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns `127.0.0.1:port`, for a URL that lists several servers.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    pub fn url(&self) -> String {
        format!("memcached://{}", self.address())
    }

    /// Runs a command whose answer ends with `END`, `OK`, the status of a meta command, or an error. Returns
    /// the answer.
    pub fn cli(&self, command: &str) -> String {
        match memcached(self.port(), command) {
            Ok(answer) => answer,
            Err(error) => panic!("{command}: {error}"),
        }
    }

    pub fn stats(&self) -> String {
        self.cli("stats")
    }

    /// Returns a number from the server's statistics, for example `stat("cmd_get")`.
    pub fn stat(&self, name: &str) -> u64 {
        let value = field(&self.stats(), &format!("STAT {name} "));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// Kills the server immediately. Its port is free until [`restart`](Self::restart).
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Restarts the server on the same port, without its data, as soon as the port is free.
    pub fn restart(&mut self) {
        self.process.restart();
    }

    /// Makes the server keep its connections but do nothing.
    pub fn pause(&self) {
        self.process.signal("STOP");
    }

    pub fn resume(&self) {
        self.process.signal("CONT");
    }
}

type Arguments = Box<dyn Fn(&str, &str) -> Vec<String> + Send + Sync>;
type AskPid = Box<dyn Fn(u16) -> Option<String> + Send + Sync>;

struct Process {
    program: String,
    install: &'static str,
    further: Vec<String>,
    arguments: Arguments,
    ask_pid: AskPid,
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Process {
    fn new(program: &str, install: &'static str, further: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = format!("unsticky-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        fs::create_dir_all(&dir).unwrap();
        Self {
            program: program.to_owned(),
            install,
            further: further.iter().map(|&argument| argument.to_owned()).collect(),
            arguments: Box::new(|_, _| Vec::new()),
            ask_pid: Box::new(|_| None),
            dir,
            port: 0,
            child: None,
        }
    }

    /// Starts the server on a free port, in up to ten attempts. Other tests look for free ports too, so
    /// another server may take the port first.
    fn start(
        &mut self,
        arguments: impl Fn(&str, &str) -> Vec<String> + Send + Sync + 'static,
        ask_pid: impl Fn(u16) -> Option<String> + Send + Sync + 'static,
    ) {
        self.arguments = Box::new(arguments);
        self.ask_pid = Box::new(ask_pid);
        for _ in 0..10 {
            self.port = free_port();
            if self.spawn() {
                return;
            }
        }
        panic!("{} did not start on any of ten ports; {}", self.program, self.install);
    }

    fn restart(&mut self) {
        self.stop();
        let deadline = Instant::now() + START;
        while !self.spawn() {
            assert!(Instant::now() < deadline, "{} did not start again", self.program);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the process. Returns whether this process, rather than a different one, answers on the port.
    fn spawn(&mut self) -> bool {
        let dir = self.dir.to_str().unwrap();
        let child = Command::new(&self.program)
            .args((self.arguments)(&self.port.to_string(), dir))
            .args(&self.further)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => self.child.insert(child),
            Err(error) => panic!("cannot run {}: {error}; {}", self.program, self.install),
        };
        let pid = child.id().to_string();
        let deadline = Instant::now() + START;
        while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
            match (self.ask_pid)(self.port) {
                Some(answer) if answer == pid => return true,
                Some(_) => break,
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
        self.stop();
        false
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map(Child::id).unwrap()
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: &str) {
        send_signal(signal, self.pid());
    }
}

/// Sends a signal to a process.
pub fn send_signal(signal: &str, pid: u32) {
    // This is the shell's built-in `kill`, because not every system has the program.
    let kill = format!("kill -{signal} {pid}");
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port()
}

fn dial(port: u16) -> Result<BufReader<TcpStream>, String> {
    let dial = || {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(BufReader::new(stream))
    };
    dial().map_err(|error: std::io::Error| error.to_string())
}

fn redis(port: u16, password: Option<&str>, command: &[&str]) -> Result<String, String> {
    let mut stream = dial(port)?;
    if let Some(password) = password {
        request(&mut stream, &["AUTH", password])?;
    }
    request(&mut stream, command)
}

fn request(stream: &mut BufReader<TcpStream>, command: &[&str]) -> Result<String, String> {
    let mut bytes = format!("*{}\r\n", command.len());
    for word in command {
        bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.get_mut().write_all(bytes.as_bytes()).map_err(|error| error.to_string())?;
    reply(stream)
}

fn reply(stream: &mut BufReader<TcpStream>) -> Result<String, String> {
    let line = line(stream)?;
    let Some((kind, rest)) = line.split_at_checked(1) else {
        return Err("an empty line".to_owned());
    };
    let count = rest.parse::<usize>().unwrap_or(0);
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "$" if rest == "-1" => Ok(String::new()),
        "$" => {
            let mut bytes = vec![0; count + 2];
            stream.read_exact(&mut bytes).map_err(|error| error.to_string())?;
            bytes.truncate(count);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "*" => {
            let elements: Result<Vec<_>, _> = (0..count).map(|_| reply(stream)).collect();
            Ok(elements?.join("\n"))
        }
        _ => Err(rest.to_owned()),
    }
}

fn memcached(port: u16, command: &str) -> Result<String, String> {
    let mut stream = dial(port)?;
    let bytes = format!("{command}\r\n");
    stream.get_mut().write_all(bytes.as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    loop {
        let line = line(&mut stream)?;
        let last = matches!(line.as_str(), "END" | "OK" | "RESET" | "ERROR" | "EN" | "HD" | "NF")
            || line.starts_with("HD ")
            || line.starts_with("CLIENT_ERROR")
            || line.starts_with("SERVER_ERROR");
        answer.push_str(&line);
        answer.push('\n');
        if last {
            return Ok(answer);
        }
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> Result<String, String> {
    let mut line = Vec::new();
    match stream.read_until(b'\n', &mut line) {
        Ok(0) => Err("the server closed the connection".to_owned()),
        Ok(_) => Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns the text that follows `name` at the start of a line.
pub(super) fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}
