//! Examines the servers behind a Memcached store: reads their statistics and tries commands.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use futures_util::future::join_all;
use memcache::exp;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::check::Finding;
use crate::store::diagnose::{Diagnose, Probe};
use crate::store::dial::dial_name;
use crate::store::key::StoreKey;
use crate::store::memcached::answer::greeting_reason;
use crate::store::memcached::stats::{Line, Needs, Release, Table, Told, release};
use crate::store::memcached::{MemcachedStore, Server};

#[async_trait]
impl Diagnose for MemcachedStore {
    async fn diagnose(&self, probe: &Probe) {
        join_all(self.servers.iter().map(|server| self.examine(server, probe))).await;
    }
}

impl MemcachedStore {
    /// Examines one server. All findings are reported together at the end, so that they stay next to each
    /// other.
    async fn examine(&self, server: &Server, probe: &Probe) {
        let subject = format!("memcached at {}", server.address);
        let is_its_own = |key: &StoreKey| self.server(key).address == server.address;
        let key = match probe.key(is_its_own) {
            Ok(Some(key)) => key,
            Ok(None) => return,
            Err(error) => return probe.report_without_key(&error, &subject),
        };
        let findings = match probe.part(&subject, ask(server, probe)).await {
            None => return,
            Some(Err(finding)) => vec![finding],
            Some(Ok(told)) => {
                if told.is_fit() {
                    let trial = probe.try_verbs(self, &key, &subject);
                    probe.part(&subject, trial).await;
                }
                let key = key.as_str().len();
                told.findings(Needs { record: probe.max_record_bytes(), key })
            }
        };
        for finding in findings {
            probe.report(finding.about(subject.clone()));
        }
    }
}

/// Returns what the server reports about itself, or a finding if the server cannot be used.
async fn ask(server: &Server, probe: &Probe) -> Result<Told, Finding> {
    let limits = server.limits;
    let greeted = dial_name(server.address.as_str(), limits.connect, greet).await;
    let (mut conversation, is_meta) = match greeted {
        Ok(Greeting::Answered(conversation, is_meta)) => (conversation, is_meta),
        Ok(Greeting::Full) => {
            return Err(Finding::error(
                "connections",
                "The server has reached its limit of connections (max_connections) and accepts no more, \
                 so its \
                 sessions are unavailable.",
                "Start it with a higher connection limit (-c NUMBER), or let fewer processes connect to \
                 it.",
            ));
        }
        Err(reason) => {
            return Err(Finding::error(
                "unreachable",
                format!("The server cannot be used, so its sessions are unavailable: {reason}."),
                "Check whether a Memcached server is running at this address and can be reached from here, \
                 without TLS and without authentication.",
            ));
        }
    };
    let mut told = Told {
        is_meta,
        release: None,
        stats: Table::new(),
        settings: Table::new(),
        heard: OffsetDateTime::UNIX_EPOCH,
    };
    // A proxy may stop answering. The settings that it does not show are then reported as hidden.
    let _ = timeout(limits.response, conversation.ask_all(&mut told, probe)).await;
    Ok(told)
}

enum Greeting {
    /// The server answered. The flag says whether the server knows the meta commands.
    Answered(Conversation, bool),
    Full,
}

/// Opens a connection and sends the same first command as the store.
async fn greet(at: SocketAddr) -> Result<Greeting, String> {
    let greeted = async {
        let stream = TcpStream::connect(at).await?;
        let mut conversation = Conversation { stream, unread: Vec::new(), left: MAX_ANSWERS };
        conversation.send(b"mn\r\n").await?;
        let line = conversation.line().await?;
        Ok((conversation, line))
    };
    let (conversation, line) =
        greeted.await.map_err(|error| greeting_reason(&exp::Error::Io(error)))?;
    let text = String::from_utf8_lossy(&line);
    match text.trim_end() {
        "MN" => Ok(Greeting::Answered(conversation, true)),
        "ERROR" => Ok(Greeting::Answered(conversation, false)),
        text if text.starts_with("ERROR Too many open connections") => Ok(Greeting::Full),
        text => Err(greeting_reason(&refusal(text))),
    }
}

/// Returns the error that the store's client would return for this answer.
fn refusal(line: &str) -> exp::Error {
    let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
    match first {
        "CLIENT_ERROR" => exp::Error::Rejected(rest.to_owned()),
        "SERVER_ERROR" => exp::Error::Server(rest.to_owned()),
        _ => exp::Error::Protocol(format!("unknown return code {first:?}")),
    }
}

/// The maximum number of bytes that are read from one connection: ten times what a server usually sends.
const MAX_ANSWERS: usize = 64 * 1024;

/// The maximum length of a line in bytes.
const MAX_LINE: usize = 4096;

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its answer is not a Memcached answer")
}

/// A separate connection for the check, because the store's client does not support `stats`.
struct Conversation {
    stream: TcpStream,
    unread: Vec<u8>,
    /// The number of bytes that may still be read.
    left: usize,
}

impl Conversation {
    /// Sends one query after another and keeps the answers, until a query fails.
    async fn ask_all(&mut self, told: &mut Told, probe: &Probe) -> io::Result<()> {
        told.release = self.release().await?;
        told.stats = self.table(b"stats\r\n").await?;
        told.heard = probe.now();
        told.settings = self.table(b"stats settings\r\n").await?;
        Ok(())
    }

    async fn release(&mut self) -> io::Result<Option<Release>> {
        self.send(b"version\r\n").await?;
        Ok(release(&self.line().await?))
    }

    /// Returns an empty table if the server refused the command.
    async fn table(&mut self, command: &[u8]) -> io::Result<Table> {
        self.send(command).await?;
        let mut table = Table::new();
        loop {
            match Line::parse(&self.line().await?) {
                Line::Stat(name, value) => {
                    table.insert(name.to_owned(), value.to_owned());
                }
                Line::End => return Ok(table),
                Line::Refusal => return Ok(Table::new()),
                Line::Strange => return Err(strange()),
            }
        }
    }

    async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the next line with its line break, or the remaining data if the connection was closed before a
    /// line break.
    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                return Ok(self.unread.drain(..=end).collect());
            }
            let room = self.left.min(MAX_LINE.saturating_sub(self.unread.len()));
            if room == 0 {
                return Err(strange());
            }
            self.stream.readable().await?;
            let mut bytes = [0; 1024];
            let room = room.min(bytes.len());
            match self.stream.try_read(&mut bytes[..room]) {
                Ok(0) if self.unread.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => return Ok(std::mem::take(&mut self.unread)),
                Ok(read) => {
                    self.left -= read;
                    self.unread.extend_from_slice(&bytes[..read]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
