//! The load generator. Each browser has its own connection and sends one request at a time. The response time
//! of each request is measured individually.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use futures_util::future::join_all;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

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

    /// Returns the next answer, if it has arrived completely.
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
            Self::Unused => "unused",
            Self::Read => "read",
            Self::ReadLong => "read 1 KiB",
            Self::Increment => "increment",
            Self::SignIn => "sign-in",
            Self::SignInAgain => "re-sign-in",
            Self::SignOut => "sign-out",
        }
    }

    /// Prepares a browser, and returns its sessions.
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
            let mut tries = 0;
            while browser.post(path).await.status != 200 {
                tries += 1;
                assert!(tries < 10, "{path} is never answered");
            }
            jars.push(browser.jar.clone());
        }
        jars
    }

    /// Sends one request. Returns `None` if no session is left to sign out.
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

/// The result of one round.
pub struct Round {
    pub requests: usize,
    pub elapsed: Duration,
    /// In microseconds, ascending.
    pub latencies: Vec<f64>,
    /// The application's processor time.
    pub cpu: Duration,
}

impl Round {
    pub fn quantile(&self, quantile: f64) -> f64 {
        let last = self.latencies.len() - 1;
        self.latencies[(last as f64 * quantile).round() as usize]
    }
}

/// A browser that is ready for its workload, with its sessions.
struct Visitor {
    browser: Browser,
    jars: Vec<Jar>,
    workload: Workload,
}

impl Visitor {
    async fn prepared(port: u16, workload: Workload, sign_outs: usize) -> Self {
        let mut browser = Browser::open(port).await.unwrap();
        let jars = workload.prepare(&mut browser, sign_outs).await;
        Self { browser, jars, workload }
    }

    /// Sends one request. Returns `false` if no session is left to sign out.
    async fn request(&mut self) -> bool {
        let Some(answer) = self.workload.request(&mut self.browser, &mut self.jars).await else {
            return false;
        };
        assert_eq!(answer.status, 200, "{:?}", self.workload);
        true
    }
}

/// Runs the browsers for the given time. Each sends its next request as soon as it has received an answer.
pub async fn round(
    port: u16,
    pid: u32,
    workload: Workload,
    browsers: usize,
    duration: Duration,
) -> Round {
    // There are enough sessions to sign out even at a rate that no contender reaches.
    let sign_outs = (duration.as_millis() as usize * 12 / browsers).max(2);
    together(port, pid, workload, browsers, sign_outs, |_, mut visitor, start| async move {
        let mut latencies = Vec::with_capacity(16_384);
        let mut now = start;
        while now.duration_since(start) < duration && visitor.request().await {
            let then = now;
            now = Instant::now();
            latencies.push(micros(now.duration_since(then)));
        }
        latencies
    })
    .await
}

/// Runs the browsers at a fixed rate. Each request is due at a fixed time, even if earlier requests are late,
/// and its latency is measured from the time at which it is due.
pub async fn at_rate(
    port: u16,
    pid: u32,
    workload: Workload,
    browsers: usize,
    rate: f64,
    duration: Duration,
) -> Round {
    let each = (rate * duration.as_secs_f64() / browsers as f64).ceil() as usize;
    together(port, pid, workload, browsers, each, |number, mut visitor, start| async move {
        let mut latencies = Vec::with_capacity(each);
        let mut alarm = Alarm::new();
        for turn in 0..each {
            let order = turn * browsers + number;
            let due = start + Duration::from_secs_f64(order as f64 / rate);
            alarm.wait_until(due).await;
            assert!(visitor.request().await);
            latencies.push(micros(due.elapsed()));
        }
        latencies
    })
    .await
}

/// Prepares the browsers, and starts them when all of them are ready.
async fn together<F: Future<Output = Vec<f64>> + Send + 'static>(
    port: u16,
    pid: u32,
    workload: Workload,
    browsers: usize,
    sign_outs: usize,
    work: impl Fn(usize, Visitor, Instant) -> F,
) -> Round {
    let ready = join_all((0..browsers).map(|_| Visitor::prepared(port, workload, sign_outs))).await;
    let cpu = cpu_time(pid);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (number, visitor) in ready.into_iter().enumerate() {
        tasks.spawn(work(number, visitor, start));
    }
    let mut latencies = tasks.join_all().await.concat();
    let elapsed = start.elapsed();
    latencies.sort_by(f64::total_cmp);
    Round { requests: latencies.len(), elapsed, latencies, cpu: cpu_time(pid) - cpu }
}

/// Sends `times` requests from eight browsers. The preparation is always the same as for `most` requests.
pub async fn requests(port: u16, workload: Workload, times: usize, most: usize) {
    const BROWSERS: usize = 8;
    // Under valgrind on a busy machine, a request may exceed its time limit, especially one of the first. The
    // request is then sent again.
    let request = async |browser: &mut Browser, jars: &mut Vec<Jar>| {
        for _ in 0..10 {
            if workload.request(browser, jars).await.unwrap().status == 200 {
                return;
            }
        }
        panic!("{workload:?} is never answered");
    };
    let mut first = Browser::open(port).await.unwrap();
    let mut jars = workload.prepare(&mut first, 10).await;
    request(&mut first, &mut jars).await;
    let work = async |_| {
        let mut browser = Browser::open(port).await.unwrap();
        let mut jars = workload.prepare(&mut browser, most / BROWSERS + 10).await;
        for _ in 0..times / BROWSERS {
            request(&mut browser, &mut jars).await;
        }
    };
    join_all((0..BROWSERS).map(work)).await;
}

/// A kernel timer with a resolution of one microsecond; tokio's own timers have a resolution of one
/// millisecond. tokio reads the timer like a pipe: each expiry is eight bytes.
struct Alarm(pipe::Receiver);

impl Alarm {
    fn new() -> Self {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).unwrap();
        Self(pipe::Receiver::from_owned_fd_unchecked(timer).unwrap())
    }

    async fn wait_until(&mut self, due: Instant) {
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return;
        }
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval: never, it_value: wait.try_into().unwrap() };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).unwrap();
        self.0.read_u64().await.unwrap();
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}

/// Returns the processor time that a process has used, which the kernel counts in nanoseconds.
pub fn cpu_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanos = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}
