//! The load generator: browsers on connections of their own, each with one request at a time, and the
//! exact time that each answer took.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use std::sync::Arc;

pub type Jar = Vec<(String, String)>;

pub struct Browser {
    stream: TcpStream,
    pub jar: Jar,
    request: Vec<u8>,
    received: BytesMut,
}

pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Browser {
    pub async fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, jar: Jar::new(), request: Vec::new(), received: BytesMut::new() })
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path).await
    }

    pub async fn post(&mut self, path: &str) -> Answer {
        self.send("POST", path).await
    }

    async fn send(&mut self, method: &str, path: &str) -> Answer {
        self.request.clear();
        for part in [method, " ", path, " HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n"] {
            self.request.extend_from_slice(part.as_bytes());
        }
        if method == "POST" {
            self.request.extend_from_slice(b"content-length: 0\r\n");
        }
        for (number, (name, value)) in self.jar.iter().enumerate() {
            let before: &[u8] = if number == 0 { b"cookie: theme=dark; " } else { b"; " };
            self.request.extend_from_slice(before);
            for part in [name, "=", value] {
                self.request.extend_from_slice(part.as_bytes());
            }
        }
        if !self.jar.is_empty() {
            self.request.extend_from_slice(b"\r\n");
        }
        self.request.extend_from_slice(b"\r\n");
        self.stream.write_all(&self.request).await.unwrap();
        loop {
            if let Some(answer) = self.answer() {
                return answer;
            }
            let read = self.stream.read_buf(&mut self.received).await.unwrap();
            assert!(read > 0, "{method} {path}: the server closed the connection");
        }
    }

    /// The next answer, if all of it is there.
    fn answer(&mut self) -> Option<Answer> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = head.parse(&self.received).unwrap() else {
            return None;
        };
        let status = head.code.unwrap();
        let mut body = 0;
        let mut cookies = Vec::new();
        for header in head.headers.iter() {
            if header.name.eq_ignore_ascii_case("content-length") {
                body = std::str::from_utf8(header.value).unwrap().parse().unwrap();
            } else if header.name.eq_ignore_ascii_case("set-cookie") {
                cookies.push(std::str::from_utf8(header.value).unwrap().to_owned());
            }
        }
        if self.received.len() < length + body {
            return None;
        }
        self.received.advance(length);
        let body = self.received.split_to(body).to_vec();
        for cookie in cookies {
            let pair = cookie.split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            self.jar.retain(|(known, _)| known != name);
            if !value.is_empty() && !cookie.contains("Max-Age=0") {
                self.jar.push((name.to_owned(), value.to_owned()));
            }
        }
        Some(Answer { status, body })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    Empty,
    NoCookie,
    Unused,
    Read,
    ReadLong,
    Increment,
    SignIn,
    SignInAgain,
    SignOut,
}

impl Workload {
    pub const ALL: [Self; 9] = [
        Self::Empty,
        Self::NoCookie,
        Self::Unused,
        Self::Read,
        Self::ReadLong,
        Self::Increment,
        Self::SignIn,
        Self::SignInAgain,
        Self::SignOut,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty route",
            Self::NoCookie => "no cookie",
            Self::Unused => "cookie, unused",
            Self::Read => "read",
            Self::ReadLong => "read 1 KiB",
            Self::Increment => "increment",
            Self::SignIn => "sign-in",
            Self::SignInAgain => "re-sign-in",
            Self::SignOut => "sign-out",
        }
    }

    /// What a browser does beforehand; the sessions that it has then.
    pub async fn prepare(self, browser: &mut Browser, sign_outs: usize) -> Vec<Jar> {
        let path = if self == Self::ReadLong { "/sign-in-1k" } else { "/sign-in" };
        let sessions = match self {
            Self::Empty | Self::NoCookie | Self::SignIn => 0,
            Self::SignOut => sign_outs,
            _ => 1,
        };
        let mut jars = Vec::new();
        for _ in 0..sessions {
            browser.jar.clear();
            assert_eq!(browser.post(path).await.status, 200, "{path}");
            jars.push(browser.jar.clone());
        }
        jars
    }

    /// One request; `None` where there is nothing left to do.
    pub async fn request(self, browser: &mut Browser, jars: &mut Vec<Jar>) -> Option<Answer> {
        Some(match self {
            Self::Empty => browser.get("/empty").await,
            Self::NoCookie | Self::Unused => browser.get("/plain").await,
            Self::Read | Self::ReadLong => browser.get("/read").await,
            Self::Increment => browser.post("/increment").await,
            Self::SignIn => {
                browser.jar.clear();
                browser.post("/sign-in").await
            }
            Self::SignInAgain => browser.post("/sign-in").await,
            Self::SignOut => {
                browser.jar = jars.pop()?;
                browser.post("/sign-out").await
            }
        })
    }
}

/// What one round has shown.
pub struct Round {
    pub requests: usize,
    pub elapsed: Duration,
    /// In microseconds, ascending.
    pub latencies: Vec<f64>,
    /// The processor time of the application.
    pub cpu: Duration,
}

impl Round {
    pub fn quantile(&self, quantile: f64) -> f64 {
        let last = self.latencies.len() - 1;
        self.latencies[(last as f64 * quantile).round() as usize]
    }
}

/// Puts so many browsers to work for so long.
pub async fn round(
    port: u16,
    pid: u32,
    workload: Workload,
    browsers: usize,
    duration: Duration,
) -> Round {
    // Every browser begins when all are ready.
    let (ready, begun) =
        (Arc::new(Barrier::new(browsers + 1)), Arc::new(Barrier::new(browsers + 1)));
    let mut tasks = JoinSet::new();
    for _ in 0..browsers {
        let (ready, begun) = (ready.clone(), begun.clone());
        tasks.spawn(async move {
            let mut browser = Browser::open(port).await.unwrap();
            // A quarter of a second of them at a rate that no contender reaches.
            let sign_outs = (duration.as_millis() as usize * 12 / browsers).max(2);
            let mut jars = workload.prepare(&mut browser, sign_outs).await;
            ready.wait().await;
            begun.wait().await;
            let start = Instant::now();
            let mut latencies = Vec::with_capacity(16_384);
            let mut now = start;
            while now.duration_since(start) < duration {
                let Some(answer) = workload.request(&mut browser, &mut jars).await else { break };
                assert_eq!(answer.status, 200, "{workload:?}");
                let then = now;
                now = Instant::now();
                latencies.push(now.duration_since(then).as_nanos() as f64 / 1000.0);
            }
            latencies
        });
    }
    ready.wait().await;
    let cpu = cpu_time(pid);
    let start = Instant::now();
    begun.wait().await;
    let mut latencies = Vec::new();
    while let Some(task) = tasks.join_next().await {
        latencies.extend(task.unwrap());
    }
    let elapsed = start.elapsed();
    latencies.sort_by(f64::total_cmp);
    Round { requests: latencies.len(), elapsed, latencies, cpu: cpu_time(pid) - cpu }
}

/// The time that a process has spent on a processor, by the kernel's account in nanoseconds.
pub fn cpu_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanos = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}
