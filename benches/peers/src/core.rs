//! Counts the instructions and allocations per request, which are repeatable, unlike times. Counts them for
//! the crate's own work, on a store that answers at once, and for whole applications.

use std::hint::black_box;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};
use std::thread;

use bytes::Bytes;
use tokio::runtime::Builder;
use unsticky::exchange::{Exchange, Finish};
use unsticky::internals::bench::{Decoded, record};
use unsticky::{DirectoryMode, Session};

use crate::Mode;
use crate::app::COUNTED;
use crate::canned::canned;
use crate::load::{Workload, requests};
use crate::request::{arrive, increment, read, request, sign_out};
use crate::results::{Results, labels};

pub const WORK: [&str; 10] = [
    "no cookie",
    "no cookie, with a handle",
    "cookie, unused",
    "decode ten values",
    "signed-in read",
    "increment",
    "sign-in",
    "re-sign-in",
    "re-sign-in, directory on",
    "sign-out",
];

/// Does the work with this name `times` times.
pub fn work(name: &str, times: usize) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let in_directory = matches!(name, "sign-in" | "re-sign-in, directory on" | "sign-out");
        let mode = if in_directory { DirectoryMode::Listed } else { DirectoryMode::Off };
        let (sessions, cookie) = canned(mode).await;
        let other = Bytes::from_static(b"theme=dark; lang=en");
        let ten = record(10, 20);
        for _ in 0..times {
            match name {
                "no cookie" => {
                    let exchange = Exchange::begin(&sessions, [black_box(&other).clone()], None);
                    assert!(matches!(exchange.finish(200), Finish::Ready(_)));
                }
                // The work that a layer does for each request.
                "no cookie, with a handle" | "cookie, unused" => {
                    let header = if name == "cookie, unused" { &cookie } else { &other };
                    let exchange = Exchange::begin(&sessions, [black_box(header).clone()], None);
                    black_box(exchange.handle());
                    assert!(matches!(exchange.finish(200), Finish::Ready(_)));
                }
                "decode ten values" => drop(Decoded::new(black_box(&ten).clone()).unwrap()),
                "signed-in read" => read(&sessions, &cookie).await,
                "increment" => increment(&sessions, &cookie).await,
                "sign-in" => drop(arrive(&sessions, 100).await),
                "re-sign-in" | "re-sign-in, directory on" => {
                    let sign_in = async |session: Session| session.sign_in("account-4711");
                    drop(request(&sessions, &cookie, sign_in).await);
                }
                "sign-out" => sign_out(&sessions, &cookie).await,
                _ => panic!("there is no {name}"),
            }
        }
    });
}

pub fn run(mode: Mode) -> Results {
    let mut results = Results::new();
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("core: valgrind is not installed, so nothing is counted");
        return results;
    }
    let of_work = WORK.map(|name| (name, None)).to_vec();
    let routes = || Workload::ALL.into_iter().skip(1).map(Some);
    let of_apps: Vec<_> =
        COUNTED.into_iter().flat_map(|name| routes().map(move |route| (name, route))).collect();
    let jobs = match mode {
        Mode::Full => [of_work, of_apps].concat(),
        Mode::Quick => of_work,
        Mode::Check => vec![of_work[0], of_apps[0]],
    };
    let times = if mode == Mode::Check { [8, 16] } else { [400, 1_200] };
    // Other processes do not affect a count, so all cores count at the same time.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let counted: Vec<_> = thread::scope(|scope| {
        let shares: Vec<_> = (0..cores)
            .map(|core| {
                let share = jobs.iter().skip(core).step_by(cores);
                scope.spawn(move || {
                    share.map(|job| (*job, count(job.0, job.1, times))).collect::<Vec<_>>()
                })
            })
            .collect();
        shares.into_iter().flat_map(|share| share.join().unwrap()).collect()
    });
    for ((name, workload), counts) in counted {
        let labels = match workload {
            None => labels([("work", name.to_owned())]),
            Some(workload) => {
                labels([("contender", name.to_owned()), ("workload", workload.name().to_owned())])
            }
        };
        for (figure, value) in TOOLS.iter().map(|tool| tool.figure).zip(counts) {
            results.push(figure, labels.clone(), "count", value);
        }
    }
    results
}

/// A valgrind tool, and the text that precedes the count in its output.
struct Tool {
    figure: &'static str,
    arguments: [&'static str; 2],
    before: &'static str,
}

const TOOLS: [Tool; 2] = [
    Tool {
        figure: "instructions",
        arguments: ["--tool=callgrind", "--callgrind-out-file=/dev/null"],
        before: "Collected : ",
    },
    Tool {
        figure: "allocations",
        arguments: ["--tool=memcheck", "--leak-check=no"],
        before: "total heap usage: ",
    },
];

/// Returns both counts per request: the difference between many and few requests, divided by the difference
/// in their number.
fn count(name: &str, workload: Option<Workload>, [few, many]: [usize; 2]) -> [f64; 2] {
    TOOLS.map(|tool| {
        let once = |times: usize| {
            let mut command = Command::new("valgrind");
            command.args(tool.arguments).arg(std::env::current_exe().unwrap());
            let output = match workload {
                None => command.args(["work", name, &times.to_string()]).output().unwrap(),
                Some(workload) => serve(command, name, workload, times, many),
            };
            let text = String::from_utf8_lossy(&output.stderr);
            let (_, line) = text.lines().find_map(|line| line.split_once(tool.before))?;
            let number = line.split(' ').next()?.replace(',', "");
            output.status.success().then(|| number.parse::<f64>().unwrap())
        };
        // On a busy machine, a request may exceed its time limit. The whole count is then repeated.
        let total = |times| (0..10).find_map(|_| once(times)).expect("it fails every time");
        (total(many) - total(few)) / (many - few) as f64
    })
}

/// Runs an application under the command until the application has answered this number of requests.
fn serve(
    mut command: Command,
    name: &str,
    workload: Workload,
    times: usize,
    most: usize,
) -> Output {
    let redis = crate::servers::RedisServer::start();
    command.args(["serve", name, &redis.url()]).env("TOKIO_WORKER_THREADS", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = line.trim().parse().unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(requests(port, workload, times, most));
    // The application exits when its standard input closes.
    process.wait_with_output().unwrap()
}
