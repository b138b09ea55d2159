//! Runs the `unsticky` command in a separate process, as an operator does.

use std::ffi::OsStr;
use std::io::{Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::servers::send_signal;

/// A command that takes longer than this counts as failed.
const LONGEST: Duration = Duration::from_secs(20);

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    /// `None` if a signal killed the command.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Returns the standard output, after checking that the command exited with this status.
    pub fn with_status(&self, status: i32) -> &str {
        assert_eq!(self.status, Some(status), "{self:?}");
        &self.stdout
    }

    /// Returns the standard output as JSON, after the same check.
    pub fn json(&self, status: i32) -> serde_json::Value {
        serde_json::from_str(self.with_status(status)).unwrap()
    }

    /// Returns everything that the command printed.
    pub fn printed(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// A command that has not been started. Its environment contains only the variables set here.
pub struct Unsticky {
    command: Command,
    input: Vec<u8>,
}

impl Unsticky {
    pub fn new<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unsticky"));
        command.env_clear().args(arguments);
        Self { command, input: Vec::new() }
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the standard input, which is empty by default.
    pub fn input(self, input: impl Into<Vec<u8>>) -> Self {
        Self { input: input.into(), ..self }
    }

    /// Runs the command. If the command does not end, it is killed and the test fails.
    pub fn run(self) -> Ran {
        self.start().finish()
    }

    pub fn start(mut self) -> Running {
        let streams = self.command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = streams.stderr(Stdio::piped()).spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), self.input);
        // The command may exit without reading its input.
        thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = collected(child.stdout.take().unwrap());
        let stderr = collected(child.stderr.take().unwrap());
        Running { child, deadline: Instant::now() + LONGEST, streams: [stdout, stderr] }
    }
}

/// A command that has been started.
pub struct Running {
    child: Child,
    deadline: Instant,
    streams: [mpsc::Receiver<String>; 2],
}

impl Running {
    /// Interrupts the command, as Ctrl-C does.
    pub fn interrupt(&self) {
        send_signal("INT", self.child.id());
    }

    /// Waits until the command exits.
    pub fn finish(mut self) -> Ran {
        let [stdout, stderr] = self.streams.map(|stream| {
            let left = self.deadline.saturating_duration_since(Instant::now());
            stream.recv_timeout(left).unwrap_or_else(|_| end(&mut self.child))
        });
        let status = self.child.wait().unwrap().code();
        Ran { status, stdout, stderr }
    }
}

fn end(child: &mut Child) -> ! {
    let _ = child.kill();
    let _ = child.wait();
    panic!("the command did not end within {LONGEST:?}")
}

/// Collects everything that a stream contains, and sends it once the stream has ended.
fn collected(mut stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}
