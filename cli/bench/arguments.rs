//! The arguments of `unsticky bench`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::arguments::{Address, duration};

/// The maximum number of values in a list. A terminal has no room for more columns.
const LONGEST_LIST: usize = 5;
const MOST_CALLERS: u32 = 500;
/// With a value of this size, the whole record stays below the library's maximum record size.
const MOST_BYTES: u32 = 990_000;
const MOST_SECONDS: u32 = 60;
const HIGHEST_RATE: u32 = 1_000_000;

/// What is measured, and where.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArguments {
    /// Address of the store, as the application uses it. Prefer the environment variable: other users of this
    /// machine can read the command line, including the password.
    #[arg(long, env = "SESSION_URL", hide_env_values = true, value_name = "ADDRESS")]
    pub(crate) url: Option<Address>,
    /// Namespace for the measurement's keys. Do not use the application's namespace.
    #[arg(long, default_value = "unsticky-bench", value_name = "NAME")]
    pub(crate) namespace: String,
    /// Measure even if the server does not reveal whether other keys exist under the namespace.
    #[arg(long)]
    pub(crate) allow_unseen_keys: bool,
    /// The operations to measure, separated by commas.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "read,write,sign-in,sign-out"
    )]
    pub(crate) operations: Vec<Operation>,
    /// The numbers of concurrent requests to measure with, separated by commas.
    #[arg(long, default_value = "1,16,64", value_name = "LIST", value_parser = callers)]
    pub(crate) callers: Numbers,
    /// The sizes of a session's value in bytes, separated by commas.
    #[arg(long, default_value = "100,1024,16384", value_name = "LIST", value_parser = payloads)]
    pub(crate) payload: Numbers,
    /// The duration of each measurement in seconds.
    #[arg(long, default_value = "1", value_name = "NUMBER", value_parser = seconds)]
    pub(crate) seconds: u32,
    /// The number of requests per second when latency is measured. Default: half of the highest throughput
    /// measured for the same operation and payload.
    #[arg(long, value_name = "NUMBER", value_parser = rate)]
    pub(crate) rate: Option<u32>,
    /// How long one operation may wait for the store, such as 500ms or 2s; from 10ms to 60s.
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Measure even if the store has little memory left. The store may then evict or refuse other
    /// applications' sessions.
    #[arg(long)]
    pub(crate) allow_scarce_memory: bool,
    /// Draw with ASCII characters only.
    #[arg(long)]
    pub(crate) ascii: bool,
}

/// What is measured: one complete request from a visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Operation {
    /// A request that reads a session's value.
    Read,
    /// A request that changes a session's value.
    Write,
    /// A request that creates a session and signs a user in, with the directory enabled.
    SignIn,
    /// A request that signs the user out.
    SignOut,
}

impl Operation {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::SignIn => "sign-in",
            Self::SignOut => "sign-out",
        }
    }

    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Read => "reads the value of a session",
            Self::Write => "changes a value of a session",
            Self::SignIn => "creates a session and signs in",
            Self::SignOut => "signs out, which ends a session",
        }
    }
}

/// Numbers without duplicates, in the order of the argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Numbers(pub(crate) Vec<u32>);

fn callers(text: &str) -> Result<Numbers, String> {
    numbers(text, MOST_CALLERS)
}

fn payloads(text: &str) -> Result<Numbers, String> {
    numbers(text, MOST_BYTES)
}

fn seconds(text: &str) -> Result<u32, String> {
    number(text, MOST_SECONDS)
        .ok_or_else(|| format!("write a whole number from 1 to {MOST_SECONDS}"))
}

fn rate(text: &str) -> Result<u32, String> {
    number(text, HIGHEST_RATE)
        .ok_or_else(|| format!("write a whole number from 1 to {HIGHEST_RATE}"))
}

/// The error does not quote the text.
fn numbers(text: &str, most: u32) -> Result<Numbers, String> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let number = number(part, most)
            .ok_or_else(|| format!("write whole numbers from 1 to {most}, separated by commas"))?;
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    match numbers.len() {
        1..=LONGEST_LIST => Ok(Numbers(numbers)),
        _ => Err(format!("write at most {LONGEST_LIST} numbers")),
    }
}

fn number(text: &str, most: u32) -> Option<u32> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && (1..=most).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_numbers_within_the_range() {
        assert_eq!(numbers("1", 5), Ok(Numbers(vec![1])));
        assert_eq!(numbers("5,1,5,3", 5), Ok(Numbers(vec![5, 1, 3])));
        for text in ["", "0", "6", "1,", ",1", "1, 2", "+1", "-1", "1.0", "x", "99999999999"] {
            assert!(numbers(text, 5).is_err(), "{text}");
        }
        assert!(numbers("1,2,3,4,5", 9).is_ok());
        assert!(numbers("1,2,3,4,5,6", 9).is_err());
    }
}
