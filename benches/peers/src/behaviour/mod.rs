//! Compares what users see when requests of one session overlap, and when the store is down. Each library runs the
//! same small application. Requests are held between their reads and their writes, so the result does not depend
//! on timing. The comparison page of the documentation quotes these results.

mod apps;

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::Mode;
use crate::results::{date, server_version};
use crate::servers::ValkeyServer;
use apps::App;

/// How long a request waits for an answer if the server is down.
const PATIENCE: Duration = Duration::from_secs(8);

/// The last section. It depends on the time limits of the libraries, so it is not repeated by a check.
const SERVER_DOWN: &str = "== the server is killed, and a request reads its session\n";

static HELD: Semaphore = Semaphore::const_new(0);
static RELEASED: Semaphore = Semaphore::const_new(0);

/// Holds a request, after its read and before its write.
async fn hold() {
    HELD.add_permits(1);
    RELEASED.acquire().await.unwrap().forget();
}

/// Sends a request that will be held, and waits until it is.
async fn send_and_hold(app: &App, path: &'static str, cookie: &str) -> JoinHandle<Answer> {
    let (port, cookie) = (app.ports[0], cookie.to_owned());
    let task = tokio::spawn(async move { post(port, path, &cookie).await });
    let held = tokio::time::timeout(PATIENCE, HELD.acquire()).await;
    held.unwrap_or_else(|_| panic!("{}: POST {path} did not reach its hold", app.name))
        .unwrap()
        .forget();
    task
}

pub fn run(mode: Mode) {
    // ruts needs HEXPIRE.
    let version = server_version(&ValkeyServer::program());
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < 9) {
        eprintln!("behaviour: NOT RUN: set UNSTICKY_VALKEY_SERVER to the binary of Valkey 9");
        return;
    }
    let mut server = ValkeyServer::start();
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    let (text, apps) = runtime.block_on(async {
        let apps = apps::start(&server.url()).await;
        let mut text = String::new();
        for app in &apps {
            overlapping(app, &mut text).await;
        }
        (text, apps)
    });
    let file = mode.directory().join("behaviour.txt");
    if mode == Mode::Check {
        let committed =
            fs::read_to_string(&file).expect("benches/results/behaviour.txt is missing");
        let (_, committed) = committed.split_once("\n\n").unwrap();
        let (committed, _) = committed.split_once(SERVER_DOWN).unwrap();
        assert_eq!(text, committed, "a library behaves differently; run scripts/bench-peers");
        return;
    }
    let about = format!(
        "The same small application with each library, on Valkey {} ({}). A request that writes is held between\n\
         its read and its write, while another request signs out, rotates the session, or writes. \"-\" means\n\
         that no user is signed in, or that the value is missing.\n\n",
        version,
        date(),
    );
    let cookies = runtime.block_on(join_all(apps.iter().map(sign_in)));
    server.stop();
    let down = runtime.block_on(join_all(apps.iter().zip(&cookies).map(server_down)));
    fs::create_dir_all(mode.directory()).unwrap();
    fs::write(file, format!("{about}{text}{SERVER_DOWN}{}", down.concat())).unwrap();
}

/// Describes what happens if requests of one session overlap.
async fn overlapping(app: &App, text: &mut String) {
    let _ = writeln!(text, "== {}", app.name);
    let port = app.ports[0];

    let cookie = sign_in(app).await;
    let one = send_and_hold(app, "/increment", &cookie).await;
    let two = send_and_hold(app, "/increment", &cookie).await;
    RELEASED.add_permits(2);
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    let count = get(port, "/count", &cookie).await.body;
    let _ = writeln!(
        text,
        "two increments at once: {} and {}; the count is {count}",
        one.status, two.status
    );

    for (name, path) in [("sign-out", "/sign-out"), ("rotation", "/rotate")] {
        let cookie = sign_in(app).await;
        let slow = send_and_hold(app, "/write", &cookie).await;
        let other = post(port, path, &cookie).await;
        RELEASED.add_permits(1);
        let slow = slow.await.unwrap();
        let _ = writeln!(
            text,
            "{name} during a slow write: {}; the write is answered with {slow}",
            other.status
        );
        let _ = writeln!(text, "  with the old cookie: {}", seen(port, &cookie).await);
        if let Some(new) = other.cookie() {
            let _ =
                writeln!(text, "  with the cookie that the {name} set: {}", seen(port, &new).await);
        }
        match slow.cookie() {
            Some(set) if set == cookie => {
                text.push_str("  the slow response sets the old cookie again\n")
            }
            Some(set) => {
                let _ = writeln!(
                    text,
                    "  with the cookie that the slow response set: {}",
                    seen(port, &set).await
                );
            }
            None => {}
        }
    }

    let claim = post(port, "/claim", app.unknown).await;
    let new = match claim.cookie() {
        Some(cookie) if cookie != app.unknown => "the response sets a new one",
        Some(_) => "the response sets it again",
        None => "the response sets none",
    };
    let _ = writeln!(
        text,
        "an unknown id from the browser: {}; {new}; with the unknown id: {}",
        claim.status,
        seen(port, app.unknown).await
    );

    if let [first, second] = app.ports[..] {
        let cookie = sign_in(app).await;
        get(second, "/user", &cookie).await;
        post(first, "/sign-out", &cookie).await;
        let user = get(second, "/user", &cookie).await.body;
        let write = post(second, "/write-at-once", &cookie).await.status;
        let _ = writeln!(
            text,
            "two processes, a sign-out in the first: in the second the user is {user}, and a write is answered with \
             {write}"
        );
    }
}

/// Describes the answers while the server is down.
async fn server_down((app, cookie): (&App, &String)) -> String {
    let start = Instant::now();
    let read = get(app.ports[0], "/user", cookie).await;
    let elapsed = start.elapsed();
    let read = match read.status {
        0 => format!("no answer within {} s", PATIENCE.as_secs()),
        _ => format!("answered with {read} after {} ms", elapsed.as_millis()),
    };
    let plain = match get(app.ports[0], "/plain", cookie).await.status {
        0 => format!("no answer within {} s", PATIENCE.as_secs()),
        status => format!("answered with {status}"),
    };
    format!("{}: {read}; a route that does not use the session: {plain}\n", app.name)
}

/// Signs in without a cookie, and returns the new one.
async fn sign_in(app: &App) -> String {
    let answer = post(app.ports[0], "/sign-in", "").await;
    answer.cookie().unwrap_or_else(|| panic!("{}: no cookie, {answer}", app.name))
}

/// Returns what the pages show with this cookie.
async fn seen(port: u16, cookie: &str) -> String {
    let user = get(port, "/user", cookie).await.body;
    format!("the user is {user}, the note is {}", get(port, "/note", cookie).await.body)
}

struct Answer {
    /// 0 if there was no answer.
    status: u16,
    set_cookies: Vec<String>,
    body: String,
}

impl Answer {
    /// Returns the cookies that the response sets, as a request sends them back. `None` if it only removes cookies.
    fn cookie(&self) -> Option<String> {
        let pairs = self.set_cookies.iter().filter_map(|cookie| cookie.split(';').next());
        let set: Vec<_> = pairs.filter(|pair| !pair.ends_with('=')).collect();
        (!set.is_empty()).then(|| set.join("; "))
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.status, self.body)
    }
}

async fn get(port: u16, path: &str, cookie: &str) -> Answer {
    request("GET", port, path, cookie).await
}

async fn post(port: u16, path: &str, cookie: &str) -> Answer {
    request("POST", port, path, cookie).await
}

async fn request(method: &str, port: u16, path: &str, cookie: &str) -> Answer {
    let cookie = if cookie.is_empty() { String::new() } else { format!("cookie: {cookie}\r\n") };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n{cookie}\r\n"
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    let cookies = fields.filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    let set_cookies = cookies.map(|(_, value)| value.to_owned()).collect();
    Answer { status, set_cookies, body: body.trim().to_owned() }
}
