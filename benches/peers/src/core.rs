//! The crate's own work, without servers and frameworks: time, and instructions, which repeat exactly.

use std::collections::HashMap;
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use cookie::Cookie;
use serde_json::Value;
use tokio::runtime::Builder;
use unsticky::exchange::{Exchange, Finish};
use unsticky::internals::bench::{Decoded, record};
use unsticky::{DirectoryMode, Session};

use crate::canned::canned;
use crate::request::{COUNT, increment, read, request};
use crate::results::{Results, labels};
use crate::web::Effort;

pub const WORK: [&str; 11] = [
    "no cookie",
    "no cookie, with a handle",
    "cookie, unused",
    "cookie, found by the crate cookie",
    "decode ten values",
    "ten values by serde_json, as a map",
    "one value",
    "signed-in read",
    "increment",
    "re-sign-in",
    "a task for a commit",
];

/// Does it so many times.
pub fn work(name: &str, times: usize) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (sessions, cookie) = canned(DirectoryMode::Off).await;
        let other = Bytes::from_static(b"theme=dark; lang=en");
        let ten = record(10, 20);
        let as_map: HashMap<_, _> =
            (0..10).map(|number| (format!("key-{number:03}"), "x".repeat(18))).collect();
        let as_json = serde_json::to_vec(&as_map).unwrap();
        let handle = Exchange::begin(&sessions, [cookie.clone()], None).handle();
        let session: Session = handle.session().await.unwrap();
        for _ in 0..times {
            match name {
                "no cookie" => {
                    let exchange = Exchange::begin(&sessions, [black_box(&other).clone()], None);
                    assert!(matches!(exchange.finish(200), Finish::Ready(_)));
                }
                // What the layers do for each request.
                "no cookie, with a handle" | "cookie, unused" => {
                    let header = if name == "cookie, unused" { &cookie } else { &other };
                    let exchange = Exchange::begin(&sessions, [black_box(header).clone()], None);
                    black_box(exchange.handle());
                    assert!(matches!(exchange.finish(200), Finish::Ready(_)));
                }
                "cookie, found by the crate cookie" => {
                    let header = std::str::from_utf8(black_box(&cookie)).unwrap();
                    let mut cookies = Cookie::split_parse(header);
                    let name = |found: &Cookie| found.name() == "__Host-id";
                    assert!(cookies.any(|found| found.as_ref().is_ok_and(name)));
                }
                "ten values by serde_json, as a map" => {
                    let map: HashMap<String, Value> =
                        serde_json::from_slice(black_box(&as_json)).unwrap();
                    assert_eq!(map.len(), 10);
                }
                "decode ten values" => drop(Decoded::new(black_box(&ten).clone()).unwrap()),
                "one value" => drop(black_box(session.get(COUNT).unwrap())),
                "signed-in read" => read(&sessions, &cookie).await,
                "increment" => increment(&sessions, &cookie).await,
                "re-sign-in" => {
                    let sign_in = async |session: Session| session.sign_in("account-4711");
                    drop(request(&sessions, &cookie, sign_in).await);
                }
                "a task for a commit" => tokio::spawn(async {}).await.unwrap(),
                _ => panic!("there is no {name}"),
            }
        }
    });
}

pub fn run(effort: Effort) -> Results {
    let mut results = Results::new();
    // What a call of `work` costs once, and long enough to measure.
    let times = (effort.duration.as_micros() as usize).max(2_000);
    for _ in 0..effort.rounds {
        for name in WORK {
            let elapsed = |times| {
                let start = Instant::now();
                work(name, times);
                start.elapsed().as_nanos() as f64
            };
            let (few, many) = (elapsed(times / 10), elapsed(times));
            let nanos = (many - few) / (times - times / 10) as f64;
            results.push("time", labels([("work", name.to_owned())]), "ns", nanos);
        }
    }
    for name in WORK {
        match (instructions(name, 1_000), instructions(name, 3_000)) {
            (Some(few), Some(many)) => {
                let each = (many - few) / 2_000.0;
                results.push("instructions", labels([("work", name.to_owned())]), "count", each);
            }
            _ => {
                eprintln!("core: instructions are not counted; install valgrind for that");
                break;
            }
        }
    }
    results
}

/// How many instructions a process of its own needs, by callgrind's count.
fn instructions(name: &str, times: usize) -> Option<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["work", name, &times.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let count = text.lines().find_map(|line| line.split_once("Collected : "))?.1;
    count.trim().parse().ok()
}
