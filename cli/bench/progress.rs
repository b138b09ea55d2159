//! Shows in a terminal which measurement is running.

use std::io::{self, IsTerminal as _, Write as _};

use crate::bench::report::bytes;

/// One line on standard error, which is overwritten each time.
#[derive(Debug)]
pub(crate) struct Progress {
    is_shown: bool,
    done: usize,
    of: usize,
    /// The length of the text that is currently shown.
    length: usize,
}

impl Progress {
    /// Shows nothing if standard error is not a terminal.
    pub(crate) fn new(of: usize) -> Self {
        Self { is_shown: io::stderr().is_terminal(), done: 0, of, length: 0 }
    }

    /// Shows that this many further measurements are starting.
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
        // Includes the `^C` that the terminal may print.
        self.length = line.len() + "^C".len();
        // An error is ignored: the measurement must not fail because the line cannot be shown.
        let mut out = io::stderr().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}
