//! Scans the keys on each server with a dump from its LRU crawler, if the server permits it.
//!
//! The crawler scans either the hash table or the lists of items. The server constantly moves items from one
//! list to another, so a scan of the lists misses some. The crawler cannot scan a hash table that is growing.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{MemcachedStore, Server, answer};
use crate::error::{Error, Result};
use crate::store::dial::dial_name;
use crate::store::survey::{Met, Outcome, Pace, Plan, Seen, Visitor, Walk};

/// How long the next line may take. The crawler pauses between items and yields to the server's other work.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longer than any valid line: a key has at most 250 bytes, each of which is encoded in at most three.
const LONGEST_LINE: usize = 4096;

impl MemcachedStore {
    /// Scans all keys, one server after another, until the visitor ends the scan. If a server does not list
    /// its keys, the outcome has the number and size of its items.
    ///
    /// # Errors
    ///
    /// The errors that any read can return, and an error if the scan of a server did not finish.
    pub(crate) async fn survey(
        &self,
        plan: &Plan<'_>,
        visitor: &mut Visitor<'_>,
    ) -> Result<Vec<Walk>> {
        let mut walks = Vec::new();
        for server in &*self.servers {
            let outcome = Link::open(server).await?.walk(plan, visitor).await?;
            let is_ended = outcome == Outcome::Ended;
            walks.push(Walk { server: server.address.clone(), outcome });
            if is_ended {
                break;
            }
        }
        Ok(walks)
    }
}

/// How a dump ended.
enum Dump {
    /// The dump ended after this number of items.
    Over(Outcome, u64),
    Refused(&'static str),
}

/// A separate connection for the scan, because the store's client does not support these commands.
struct Link<'a> {
    address: &'a str,
    stream: BufReader<TcpStream>,
}

impl<'a> Link<'a> {
    async fn open(server: &'a Server) -> Result<Self> {
        let Server { address, limits, .. } = server;
        let connect =
            |at| async move { TcpStream::connect(at).await.map_err(|error| error.to_string()) };
        let stream = dial_name(address.as_str(), limits.connect, connect).await;
        let stream = stream.map_err(|reason| answer::unreachable(address, &reason))?;
        Ok(Self { address, stream: BufReader::new(stream) })
    }

    async fn walk(&mut self, plan: &Plan<'_>, visitor: &mut Visitor<'_>) -> Result<Outcome> {
        let (before, _) = self.totals().await?;
        match self.dump("hash", plan, visitor).await? {
            Dump::Over(outcome, walked) if walked > 0 || before == 0 => Ok(outcome),
            // The hash table is growing, or the server is too old to scan it.
            Dump::Over(..) | Dump::Refused(_) => match self.dump("all", plan, visitor).await? {
                Dump::Over(outcome, _) => Ok(outcome),
                Dump::Refused(reason) => {
                    let (items, bytes) = self.totals().await?;
                    Ok(Outcome::Totals { reason: reason.to_owned(), items, bytes })
                }
            },
        }
    }

    async fn dump(
        &mut self,
        what: &str,
        plan: &Plan<'_>,
        visitor: &mut Visitor<'_>,
    ) -> Result<Dump> {
        self.send(&format!("lru_crawler metadump {what}")).await?;
        let mut pace = Pace::new(plan.rate);
        let mut seen = Seen::default();
        let mut walked = 0;
        loop {
            pace.turn().await;
            let mut batch = 0;
            while batch < plan.rate.batch() {
                let line = self.line().await?;
                if line == "END" {
                    let may_repeat = seen.is_full();
                    let outcome = Outcome::Complete { no_lengths: None, may_repeat };
                    return Ok(Dump::Over(outcome, walked + batch));
                }
                let Some((key, bytes)) = item(&line) else {
                    // Only a line before the first item can be a refusal.
                    return match refusal(&line) {
                        Some(reason) if walked == 0 && batch == 0 => Ok(Dump::Refused(reason)),
                        _ => Err(self.strange()),
                    };
                };
                batch += 1;
                if key.starts_with(plan.prefix) && seen.is_new(&key) {
                    let met = Met::Key { server: self.address, key: &key, bytes: Some(bytes) };
                    if visitor(met) == ControlFlow::Break(()) {
                        return Ok(Dump::Over(Outcome::Ended, walked + batch));
                    }
                }
            }
            pace.spend(batch);
            walked += batch;
            if visitor(Met::Walked { server: self.address, keys: walked }) == ControlFlow::Break(())
            {
                return Ok(Dump::Over(Outcome::Ended, walked + batch));
            }
        }
    }

    /// Returns the number of all items on the server, including those of other applications, and their size
    /// in bytes.
    async fn totals(&mut self) -> Result<(u64, u64)> {
        self.send("stats").await?;
        let (mut items, mut bytes) = (None, None);
        loop {
            let line = self.line().await?;
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("STAT"), Some("curr_items"), Some(value)) => items = value.parse().ok(),
                (Some("STAT"), Some("bytes"), Some(value)) => bytes = value.parse().ok(),
                (Some("STAT"), Some(_), _) => {}
                _ => break,
            }
        }
        items.zip(bytes).ok_or_else(|| {
            Error::refused(format!(
                "memcached at {}: it does not report how many items it holds",
                self.address
            ))
        })
    }

    async fn send(&mut self, command: &str) -> Result<()> {
        let command = format!("{command}\r\n");
        let sent = timeout(PATIENCE, self.stream.get_mut().write_all(command.as_bytes())).await;
        self.in_time(sent)
    }

    /// Returns the next line without its line break. The line may be `ERROR` or another refusal.
    async fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut stream = (&mut self.stream).take(LONGEST_LINE as u64);
        let read = timeout(PATIENCE, stream.read_until(b'\n', &mut line)).await;
        self.in_time(read)?;
        match line.pop() {
            Some(b'\n') => {}
            Some(_) if line.len() + 1 == LONGEST_LINE => return Err(self.strange()),
            _ => return Err(answer::unreachable(self.address, "it closed the connection")),
        }
        let line = String::from_utf8(line).map_err(|_| self.strange())?;
        Ok(line.trim_end_matches('\r').to_owned())
    }

    fn in_time<T, E>(&self, outcome: Result<std::io::Result<T>, E>) -> Result<T> {
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(answer::unreachable(self.address, &error.to_string())),
            Err(_) => Err(answer::unreachable(self.address, "it did not answer in time")),
        }
    }

    fn strange(&self) -> Error {
        Error::corrupt(format!(
            "memcached at {}: it gave an unexpected answer to lru_crawler metadump",
            self.address
        ))
    }
}

/// Returns the key and the size of an item: `key=shop%3A0 exp=-1 … size=77`.
fn item(line: &str) -> Option<(String, u64)> {
    let mut fields = line.split(' ').map(|field| field.split_once('='));
    let Some(Some(("key", key))) = fields.next() else { return None };
    let mut size = fields.flatten().filter(|(name, _)| *name == "size");
    let bytes = size.next()?.1.parse().ok()?;
    Some((decoded(key), bytes))
}

/// Returns the reason why a server does not list its keys. The reason contains none of the server's own text.
fn refusal(line: &str) -> Option<&'static str> {
    if line.contains("crawler disabled") {
        return Some("its LRU crawler is disabled");
    }
    match line.split(' ').next() {
        Some("BUSY") => Some("its LRU crawler is busy with another client's command"),
        Some("ERROR" | "CLIENT_ERROR" | "SERVER_ERROR" | "NOTSTARTED") => {
            Some("it does not know the lru_crawler metadump command, or does not permit it")
        }
        _ => None,
    }
}

/// Decodes a percent-encoded key. Replaces bytes that are not UTF-8; this crate does not write such keys.
fn decoded(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key;
    while let Some((plain, encoded)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let byte = encoded.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &encoded[2..];
            }
            None => {
                bytes.push(b'%');
                rest = encoded;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn item_of_dump_is_read() {
        let line = "key=shop%3A0%3As%3AAA%3d-_. exp=1795918496 la=1 cas=1 fetch=no cls=1 size=77";
        assert_eq!(item(line), Some(("shop:0:s:AA=-_.".to_owned(), 77)));
        assert_eq!(item("key=a%25b% size=1"), Some(("a%b%".to_owned(), 1)));
        assert_eq!(item("key=%ff%zz size=1"), Some(("\u{fffd}%zz".to_owned(), 1)));
        for line in [
            "END",
            "",
            "ERROR",
            "exp=1 key=a",
            "key=a exp=1",
            "key=a size=x",
            "BUSY currently processing crawler request",
        ] {
            assert_eq!(item(line), None, "{line}");
        }
    }

    #[test]
    fn refusal_repeats_nothing_of_the_server() {
        for line in ["CLIENT_ERROR lru crawler disabled", "ERROR", "BUSY hunter2", "ERROR hunter2"]
        {
            assert!(!refusal(line).unwrap().contains("hunter2"), "{line}");
        }
        assert_eq!(refusal("HTTP/1.1 400 Bad Request"), None);
        assert_eq!(refusal("VALUE a"), None);
    }
}
