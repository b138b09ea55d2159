//! Programs that are killed when the value that started them is dropped.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The time that a program may take to start.
const START: Duration = Duration::from_secs(20);

pub(crate) struct Program {
    child: Child,
    name: String,
    lines: Receiver<String>,
}

impl Program {
    /// Starts a program. `otherwise` says what to do if the program cannot be run.
    pub(crate) fn start(command: &mut Command, otherwise: &str) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let spawned =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => panic!("cannot run {name}: {error}; {otherwise}"),
        };
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        // The thread also reads lines that no test needs, so that the program never blocks on a full pipe.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, name, lines }
    }

    /// Waits for a line that begins with `start`, and returns the rest of that line.
    pub(crate) fn announces(&self, start: &str) -> String {
        let deadline = Instant::now() + START;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(start) {
                        return rest.to_owned();
                    }
                }
                Err(error) => panic!("{} did not print '{start}': {error}", self.name),
            }
        }
    }

    /// Waits until the program exits on its own, or until the time is up.
    pub(crate) fn wait(&mut self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
