//! What is being measured, for those who wait at a terminal.

use std::io::{self, IsTerminal as _, Write as _};

use crate::bench::report::bytes;

/// One line on the standard error stream, which is written anew each time.
#[derive(Debug)]
pub(crate) struct Progress {
    is_shown: bool,
    done: usize,
    of: usize,
    /// How long the line is that stands there.
    length: usize,
}

impl Progress {
    /// Shows nothing where the standard error stream is no terminal.
    pub(crate) fn new(of: usize) -> Self {
        Self { is_shown: io::stderr().is_terminal(), done: 0, of, length: 0 }
    }

    /// So many measurements begin.
    pub(crate) fn step(&mut self, what: &str, payload: u32, measurements: usize) {
        self.done += measurements;
        let (done, of) = (self.done, self.of);
        self.write(&format!("measuring {done} of {of}: {what}, {}", bytes(payload.into())));
    }

    pub(crate) fn clear(&mut self) {
        self.write("");
    }

    fn write(&mut self, line: &str) {
        if !self.is_shown {
            return;
        }
        let mut text = format!("\r{line:0$}", self.length);
        if line.is_empty() {
            text.push('\r');
        }
        // With what the terminal writes there for Ctrl-C.
        self.length = line.len() + "^C".len();
        // Nobody who cannot see it waits for it.
        let mut out = io::stderr().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}
