//! A pseudo-terminal, created with `script`, for programs that behave differently in a terminal.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// The time that a program may take to show something or to exit.
const LONGEST: Duration = Duration::from_secs(60);

/// A program that runs in a terminal.
pub struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    /// Everything that the program has printed.
    pub shown: String,
}

impl Terminal {
    /// Runs a shell command in a terminal with this many columns.
    pub fn start(columns: u16, command: &str, environment: &[(&str, &str)]) -> Self {
        let command = format!("stty cols {columns} rows 40; exec {command}");
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .envs(environment.iter().copied())
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("script: {error}; apt-get install bsdutils"));
        let keyboard = child.stdin.take().unwrap();
        let mut output = child.stdout.take().unwrap();
        let (sender, screen) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard, screen, shown: String::new() }
    }

    /// Waits until this text has been shown.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + LONGEST;
        while !self.shown.contains(text) {
            assert!(self.read(deadline), "{text:?} is not shown: {:?}", self.shown);
        }
    }

    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits until the program exits. Returns its exit status.
    pub fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + LONGEST;
        while self.read(deadline) {}
        assert!(Instant::now() < deadline, "it does not end: {:?}", self.shown);
        self.child.wait().unwrap().code()
    }

    /// Reads more output. Returns `false` once there is no more.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(bytes) = self.screen.recv_timeout(left) else { return false };
        self.shown += &String::from_utf8_lossy(&bytes);
        true
    }

    /// Returns the lines as they finally appear on the screen. Text that follows a carriage return overwrites
    /// the text before it.
    pub fn lines(&self) -> Vec<String> {
        self.shown.replace("\r\n", "\n").split('\n').map(overwritten).collect()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn overwritten(line: &str) -> String {
    let mut cells: Vec<char> = Vec::new();
    let mut column = 0;
    let mut chars = line.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\r' => column = 0,
            // The only control sequence that has an effect here is the one that erases to the end of the
            // line.
            '\u{1b}' => {
                let sequence: String =
                    std::iter::from_fn(|| chars.next_if(|char| !char.is_ascii_alphabetic()))
                        .collect();
                if chars.next() == Some('K') {
                    cells.truncate(if sequence == "[2" { 0 } else { column });
                }
            }
            char => {
                if column < cells.len() {
                    cells[column] = char;
                } else {
                    cells.push(char);
                }
                column += 1;
            }
        }
    }
    cells.into_iter().collect::<String>().trim_end().to_owned()
}
