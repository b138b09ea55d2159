//! Writes the results as a page: first the most important figures, with charts, then the details.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Mode;
use crate::app::{AT_RATE, CONTENDERS, COUNTED, baseline};
use crate::chart::bars;
use crate::choices::{CHOICES, WORKLOADS};
use crate::core::WORK;
use crate::goals::goals;
use crate::load::Workload;
use crate::results::{Record, Results};
use crate::stores::{CALLERS, WAYS};

pub const FRAMEWORKS: [&str; 2] = ["axum", "actix"];
const LOST: &str = "lost updates of 200";
const BEFORE_FIGURES: &str = "<!-- figures -->\n";
const AFTER_FIGURES: &str = "<!-- end of figures -->\n";

/// Returns the workloads that are columns in the tables: all except the one outside the session layer.
pub fn routes() -> Vec<&'static str> {
    Workload::ALL[1..].iter().map(|it| it.name()).collect()
}

/// Writes the page and its charts. With `--check`, panics if a file differs from what the results would give.
pub fn report(directory: &Path, mode: Mode) {
    let load = |name: &str| {
        let missing = || panic!("{name}.json is missing: measure it first");
        Results::load(directory, name).unwrap_or_else(missing)
    };
    let [web, stores, costs, core, choices] =
        ["web", "stores", "costs", "core", "choices"].map(load);
    let is_of_run = |results: &Results| results.about["run"] == web.about["run"];
    assert!(
        [&stores, &costs, &core, &choices].into_iter().all(is_of_run),
        "the results are from several runs: scripts/bench-peers measures all of them"
    );
    let base = Results::load(&Mode::Full.directory(), "base").unwrap();
    let page = Page { web, stores, costs, core, choices, base };
    for (path, text) in page.files(directory, mode) {
        if mode == Mode::Check {
            let is_same = fs::read_to_string(&path).is_ok_and(|found| found == text);
            assert!(is_same, "{} does not match benches/results", path.display());
        } else {
            fs::write(path, text).unwrap();
        }
    }
}

pub struct Page {
    web: Results,
    stores: Results,
    costs: Results,
    core: Results,
    choices: Results,
    /// The counts before the rewrite.
    base: Results,
}

impl Page {
    fn files(&self, directory: &Path, mode: Mode) -> Vec<(PathBuf, String)> {
        let picture = |name: String| directory.join(name).with_extension("svg");
        let mut files = vec![
            (directory.join("../RESULTS.md"), self.text()),
            (picture("stores".to_owned()), self.stores_picture()),
        ];
        for framework in FRAMEWORKS {
            let name = long_name(framework);
            let title =
                format!("{name}: requests per second, relative to hand-written (higher is better)");
            let plain = |it: &&str| is_of(framework, it) && !it.contains(',');
            let shown = CONTENDERS.into_iter().filter(plain).collect();
            let svg = self.picture(&title, shown, |one, route| self.over_hand(one, route));
            files.push((picture(format!("throughput-{framework}")), svg));

            let title =
                format!("{name}: 99th percentile of latency at a fixed rate, µs (lower is better)");
            let shown = AT_RATE.into_iter().filter(plain).collect();
            let svg = self.picture(&title, shown, |one, route| self.web("p99", one, route).clone());
            files.push((picture(format!("latency-{framework}")), svg));
        }
        if mode != Mode::Quick {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/performance.md");
            let text = fs::read_to_string(&path).unwrap();
            let (before, rest) = text.split_once(BEFORE_FIGURES).unwrap();
            let (_, after) = rest.split_once(AFTER_FIGURES).unwrap();
            let figures = choices(&self.choices);
            files.push((path, [before, BEFORE_FIGURES, &figures, AFTER_FIGURES, after].concat()));
        }
        files
    }

    fn text(&self) -> String {
        let sections = [
            self.opening(),
            self.safety(),
            goals(self),
            self.latency(),
            self.stores(),
            self.counts(),
            self.costs(),
            format!(
                "## What the application can choose\n\n\
                 The first column has requests per second, and the others are relative to it.\n\
                 [docs/performance.md](../docs/performance.md) explains what follows from these figures.\n\n{}",
                choices(&self.choices)
            ),
            include_str!("notes.md").to_owned(),
        ];
        sections.map(|section| section.trim_end().to_owned()).join("\n\n") + "\n"
    }

    fn web(&self, figure: &str, contender: &str, workload: &str) -> &Record {
        self.web.get(figure, &[("contender", contender), ("workload", workload)])
    }

    /// Returns the throughput relative to the hand-written application, in each round.
    pub fn over_hand(&self, contender: &str, workload: &str) -> Record {
        let own = self.web("throughput", contender, workload);
        own.over(self.web("throughput", baseline(contender), workload))
    }

    /// Returns the throughput relative to the best peer for the same framework, in each round.
    pub fn over_best_peer(&self, framework: &str, workload: &str) -> Record {
        let own = self.web("throughput", &format!("unsticky-{framework}"), workload);
        let is_peer = |it: &&str| {
            // axum_session answers from the memory of one process, to which a user's requests must always go.
            let is_other =
                it.starts_with("unsticky") || it.starts_with("hand") || *it == "axum_session";
            is_of(framework, it) && !is_other
        };
        let over = |peer| own.over(self.web("throughput", peer, workload));
        let by_median = |one: &Record, other: &Record| one.median().total_cmp(&other.median());
        CONTENDERS.into_iter().filter(is_peer).map(over).min_by(by_median).unwrap()
    }

    pub fn p99_over_hand(&self, framework: &str, workload: &str) -> Record {
        let own = self.web("p99", &format!("unsticky-{framework}"), workload);
        own.over(self.web("p99", &format!("hand-{framework}"), workload))
    }

    fn label(&self, contender: &str) -> String {
        let (name, variant) = contender.split_once(',').unwrap_or((contender, ""));
        let name = match name.split('-').next() {
            Some("unsticky") => "unsticky".to_owned(),
            Some("hand") => "hand-written, no safeguards".to_owned(),
            _ => format!("{name} {}", self.web.about[name]),
        };
        if variant.is_empty() { name } else { format!("{name},{variant}") }
    }

    fn opening(&self) -> String {
        let shown = CONTENDERS.iter().filter(|name| !name.ends_with("nodelay"));
        let rows = shown.map(|it| (format!("{} | {}", framework(it), self.label(it)), *it));
        let columns: Vec<_> = routes().into_iter().chain([LOST]).map(|it| (it, it)).collect();
        let table = table(" | ", &columns, rows, |contender, column| match *column {
            LOST => digits(self.web.get("lost updates", &[("contender", contender)]).median()),
            route => spread(&self.over_hand(contender, route)),
        });
        let about = &self.web.about;
        let machine = about.iter().filter(|(name, value)| *name != "run" && !value.is_empty());
        let machine: Vec<_> = machine
            .map(|(name, value)| {
                format!("{name} {}", value.trim_start_matches(&format!("{name} ")))
            })
            .collect();
        format!(
            "# Results\n\n\
             The first table shows throughput relative to a hand-written application in the same framework that has no safety at\n\
             all: 1.00 means equally fast, and higher is better. All applications use default settings, except in the rows that\n\
             name a setting: unsticky keeps its directory of sessions, the other libraries (the peers) are set up as their READMEs\n\
             show, and the hand-written code uses the `redis` crate without options.\n\n\
             Each column is a kind of request. *No cookie* and *unused* do not touch the session; only *unused* sends a session\n\
             cookie. *Read* returns one value from a session that also holds 100 bytes of text, and *read 1 KiB* from a session that\n\
             also holds 1 KiB. *Increment* changes one value. *Sign-in* starts a session for a browser that has none, *re-sign-in*\n\
             signs in again with a new secret, and *sign-out* ends the session.\n\n{table}\n\
             ![Throughput in axum](results/throughput-axum.svg)\n\n\
             ![Throughput in actix-web](results/throughput-actix.svg)\n\n\
             Each figure is the median of the rounds. In every round, the applications are measured in turn. The small range\n\
             below a figure, and the line on a bar, show the middle half of the rounds; the table shows the range only if it is\n\
             wider than 0.05. *Lost updates*: 40 browsers increment a value of the same session concurrently, 200 times in total,\n\
             and the column shows how many increments are missing afterwards. axum_session also keeps every session in the memory\n\
             of its process and reads it from there, so a user's requests must always reach the same process; with \"memory off\",\n\
             axum_session reads from Redis.\n\n\
             The application is pinned to one core, and the load generator, which simulates 32 browsers, to the other; Redis may run on\n\
             either. `scripts/bench-peers` writes this page from `benches/results/*.json`. Run it to measure on your machine, with\n\
             `--quick` for a first impression. Measured with: {}.\n",
            machine.join("; "),
        )
    }

    fn safety(&self) -> String {
        let mut text = String::from(
            "## What safety costs\n\n\
             The hand-written application parses the cookie and sends GET, SET and DEL for a JSON blob. It overwrites concurrent\n\
             changes, a slow request restores a session that was signed out, and a copy of its Redis data is a list of valid\n\
             cookies. The application has no time limits, and cannot list or revoke a user's sessions. unsticky checks the\n\
             secret, makes every change by compare-and-set (a script in Redis 7), reads a session before ending it, and records\n\
             every sign-in in the account's directory record.\n\n\
             These checks cost processor time and commands. Each cell reads: hand-written → unsticky. The rates are medians over all\n\
             rounds. The first table on this page has the medians of the ratios within each round, so dividing two of these rates\n\
             can give a different number. If one says that unsticky is faster and the other that it is slower, the rounds differ too\n\
             much for a conclusion.\n\n",
        );
        let columns = [
            ("requests per second", "throughput"),
            ("CPU of the application per request, µs", "cpu"),
            ("commands per request", "commands"),
            ("round trips per request", "round trips"),
        ];
        for framework in FRAMEWORKS {
            text += &table(framework, &columns, rows(routes()), |route, figure| {
                let median = |who| self.web(figure, &format!("{who}-{framework}"), route).median();
                format!("{} → {}", digits(median("hand")), digits(median("unsticky")))
            });
            text.push('\n');
        }
        let nodelay = |framework: &str, route| {
            ratio(&self.over_hand(&format!("hand-{framework}, nodelay"), route))
        };
        text + &format!(
            "By default, the `redis` crate leaves Nagle's algorithm on. On the loopback interface, the algorithm happens to batch\n\
             commands; over a network, it can make a command wait for an acknowledgement. unsticky turns the algorithm off. With it\n\
             turned off, the hand-written application reaches {} (read) and {} (increment) of its throughput above in axum, and\n\
             {} and {} in actix-web.\n",
            nodelay("axum", "read"),
            nodelay("axum", "increment"),
            nodelay("actix", "read"),
            nodelay("actix", "increment"),
        )
    }

    fn latency(&self) -> String {
        const RATE: &str = "requests per second";
        const OVER: &str = "p99, relative to hand-written";
        let mut text = String::from(
            "## Latency at a fixed rate\n\n\
             Requests are due at fixed times, at 0.3 of the hand-written application's throughput. The latency of a request is\n\
             measured from the time at which the request was due, so it includes the wait for earlier requests. The rate is the same\n\
             for all applications in a framework, so the slower applications are closer to their limits. axum_session is left out\n\
             because it answers reads from its own memory. Each cell has three latencies in microseconds: p50, p99 and p99.9.\n\n\
             ![Latency in axum](results/latency-axum.svg)\n\n![Latency in actix-web](results/latency-actix.svg)\n\n",
        );
        for framework in FRAMEWORKS {
            let shown = AT_RATE.into_iter().filter(|it| is_of(framework, it));
            let shown = shown.map(|it| (self.label(it), it));
            let others = |name: &'static str| [(name.to_owned(), name)];
            let columns: Vec<_> =
                others(RATE).into_iter().chain(shown).chain(others(OVER)).collect();
            text += &table(framework, &columns, rows(routes()), |route, column| match *column {
                RATE => digits(self.web("rate", baseline(framework), route).median()),
                OVER => spread(&self.p99_over_hand(framework, route)),
                contender => ["p50", "p99", "p99.9"]
                    .map(|figure| digits(self.web(figure, contender, route).median()))
                    .join(", "),
            });
            text.push('\n');
        }
        text
    }

    fn counts(&self) -> String {
        let both = [("instructions", "instructions"), ("allocations", "allocations")];
        let change = |figure: &str, labels: &[(&str, &str)]| {
            let [before, now] =
                [&self.base, &self.core].map(|it| digits(it.median(figure, labels).round()));
            format!("{before} → {now}")
        };
        let work = table("", &both, rows(WORK), |work, figure| change(figure, &[("work", work)]));
        let mut text = format!(
            "## Instructions and allocations\n\n\
             Valgrind counts instructions and allocations, so these figures are repeatable, unlike times. Each cell reads: before →\n\
             after the middleware and the commit were rewritten. The rewrite mostly saves allocations. Some paths in the crate itself\n\
             take slightly more instructions, but every whole application takes fewer. The first table shows the crate's own work,\n\
             with a store that answers at once:\n\n{work}\n\
             The next tables show whole applications, per request, with eight browsers. Valgrind's processor has no SHA-256\n\
             instructions, so every count with a session includes about 3,400 instructions that a real processor does not need:\n\n",
        );
        let columns = ["instructions", "allocations"].into_iter().flat_map(|figure| {
            ["hand-written", "unsticky"].map(|who| (format!("{figure}, {who}"), (figure, who)))
        });
        let columns: Vec<_> = columns.collect();
        for framework in FRAMEWORKS {
            text += &table(framework, &columns, rows(routes()), |route, (figure, who)| {
                let own = format!("unsticky-{framework}");
                let labels = |contender| [("contender", contender), ("workload", *route)];
                match *who {
                    "hand-written" => {
                        digits(self.core.median(figure, &labels(baseline(framework))).round())
                    }
                    _ => change(figure, &labels(&own)),
                }
            });
            text.push('\n');
        }
        text
    }

    /// Returns the rates that a client reached.
    fn loads(&self, backend: &str, client: &str, callers: usize, way: (u64, usize)) -> &Record {
        let (callers, delay, workers) = (callers.to_string(), way.0.to_string(), way.1.to_string());
        let labels = [("delay", &*delay), ("workers", &*workers), ("callers", &*callers)];
        let who = [("backend", backend), ("client", client)];
        self.stores.get("load", &[&who[..], &labels].concat())
    }

    /// Returns the rates relative to the hand-written client, with one worker and no delay.
    pub fn loads_over_hand(&self, backend: &str, callers: usize) -> Record {
        let own = self.loads(backend, "unsticky", callers, WAYS[0]);
        own.over(self.loads(backend, "by hand", callers, WAYS[0]))
    }

    /// Returns the servers that were measured, each with its name and version.
    fn backends(&self) -> Vec<(String, &'static str)> {
        let about = |name: &str| self.stores.about[name].clone();
        let servers = [
            (format!("Redis {}", about("redis-server")), "redis"),
            (format!("Valkey {}", about("valkey-server")), "valkey"),
            (about("memcached").replacen('m', "M", 1), "memcached"),
        ];
        let is_there = |name| self.stores.all("load", &[("backend", name)]).next().is_some();
        servers.into_iter().filter(|(_, name)| is_there(name)).collect()
    }

    fn stores(&self) -> String {
        let columns = CALLERS.map(|callers| (format!("{callers} at once"), callers));
        let ways = self.backends().into_iter().flat_map(|(name, backend)| {
            WAYS.map(|way| (format!("{name} | {} | {}", way.1, way.0), (backend, way)))
        });
        let loads = table(" | workers | delay, ms", &columns, ways, |(backend, way), callers| {
            let load = |client| self.loads(backend, client, *callers, *way);
            let own = load("unsticky");
            let [by_hand, library] =
                ["by hand", "library"].map(|other| ratio(&own.over(load(other))));
            format!("{} ({by_hand}, {library})", digits(own.median()))
        });
        let backends = self.backends().into_iter();
        let changes = table("", &columns, backends, |backend, callers| {
            let labels = [("backend", *backend), ("callers", &*callers.to_string())];
            digits(self.stores.median("change", &labels))
        });
        let has_valkey = self.backends().iter().any(|(_, name)| *name == "valkey");
        let without = "\nValkey was not measured: its program was found neither in `UNSTICKY_VALKEY_SERVER` nor as\n\
                       `valkey-server`.\n";
        format!(
            "## The stores alone\n\n\
             The table shows how many records of 1 KiB are loaded per second, without a framework. The brackets have the ratios to\n\
             two other clients: a\n\
             hand-written pipelined client, and the client of the library that unsticky uses (redis with `nodelay`, memcache's\n\
             `AsyncMetaClient`), used directly. The hand-written client implements one command, does not reconnect and has no time\n\
             limits. It shows the upper limit and is not suitable for production. A proxy adds the delay in each direction.\n\n\
             ![Loads of 1 KiB](results/stores.svg)\n\n{loads}\n\
             The next table shows changes per second. Each change is a load and a compare-and-set, which is a script in Redis 7 and\n\
             a single command in Valkey 9:\n\n{changes}{}",
            if has_valkey { "" } else { without },
        )
    }

    fn costs(&self) -> String {
        let cost =
            |figure: &str, labels: &[(&str, &str)]| digits(self.costs.median(figure, labels));
        let all = self.backends();
        let both = all.iter().filter(|(_, name)| *name != "valkey").cloned().collect::<Vec<_>>();
        let same = |names: &[&'static str]| names.iter().map(|it| (*it, *it)).collect::<Vec<_>>();

        let columns = [("written once", "once"), ("ten times", "ten times")];
        let rows = cross(&both, &["200", "1024", "8192"]);
        let memory = table(" | payload", &columns, rows, |(backend, payload), written| {
            let labels = [("backend", *backend), ("payload", *payload), ("written", *written)];
            cost("memory", &labels)
        });
        let columns = same(&["load", "replace", "create", "delete"]);
        let rows = cross(&all, &["256", "1024", "8192"]);
        let time = table(" | bytes", &columns, rows, |(backend, bytes), verb| {
            cost("server time", &[("backend", *backend), ("bytes", *bytes), ("verb", *verb)])
        });
        let columns = same(&["1000", "10000", "100000", "1000000"]);
        let rows = cross(&both, &["read", "increment"]);
        let scale = table(" | ", &columns, rows, |(backend, workload), count| {
            cost(
                "requests",
                &[("backend", *backend), ("workload", *workload), ("sessions", *count)],
            )
        });
        let columns = same(&["off", "listed", "strict"]);
        let rows = cross(&both, &["read", "sign-in"]);
        let directory = table(" | ", &columns, rows, |(backend, workload), mode| {
            cost("directory", &[("backend", *backend), ("workload", *workload), ("mode", *mode)])
        });
        let sizes =
            ["1", "10", "100"].map(|count| cost("directory memory", &[("sessions", count)]));
        format!(
            "## What sessions cost the servers\n\n\
             The first table shows the bytes per session of a signed-in user, with one value (`MEMORY USAGE` in Redis, `bytes` in\n\
             Memcached). A session that was written several times contains the tags of up to eight writes. Redis rounds sizes up, so\n\
             the tags are visible there only in the small session. Valkey was not measured here.\n\n{memory}\n\
             The next table shows the server's own processor time per command, in microseconds, with 64 callers. \"Replace\" and\n\
             \"delete\" act only if the session is unchanged; in Redis 7, each of them is a script.\n\n{time}\n\
             The next table shows requests per second, without a framework, by the number of live sessions. Rounds differ by a factor\n\
             of up to three, so differences of less than a third have no meaning:\n\n{scale}\n\
             The next table shows requests per second, without a framework, by the mode of the directory. \"listed\" is the default:\n\n\
             {directory}\n\
             Bytes per directory record in Redis with 1, 10 and 100 sessions, each with a label of 16 bytes: {}.\n",
            sizes.join(", "),
        )
    }

    fn picture(
        &self,
        title: &str,
        shown: Vec<&str>,
        value: impl Fn(&str, &str) -> Record,
    ) -> String {
        let groups: Vec<_> = routes().into_iter().map(str::to_owned).collect();
        let labels: Vec<_> = shown.iter().map(|contender| self.label(contender)).collect();
        bars(title, &groups, &labels, |group, one| value(shown[one], &groups[group]))
    }

    fn stores_picture(&self) -> String {
        let stands = self.backends().into_iter();
        let stands: Vec<_> = stands.flat_map(|one| [64, 256].map(|it| (one.clone(), it))).collect();
        let groups = stands.iter().map(|((name, _), callers)| {
            // Leaves out the last part of the version.
            let name = name.rsplit_once('.').map_or(&**name, |(short, _)| short);
            format!("{name}\n{callers} callers")
        });
        let groups: Vec<_> = groups.collect();
        let series = ["unsticky", "the library's own client", "hand-written, one command only"];
        let title =
            "Stores alone: thousands of 1 KiB loads per second, one worker (higher is better)";
        bars(title, &groups, &series.map(String::from), |group, one| {
            let ((_, backend), callers) = &stands[group];
            let client = ["unsticky", "library", "by hand"][one];
            let record = self.loads(backend, client, *callers, WAYS[0]);
            let values = record.values.iter().map(|value| value / 1000.0).collect();
            Record { values, ..record.clone() }
        })
    }
}

/// Returns the table of throughputs with each choice.
pub fn choices(results: &Results) -> String {
    let shown = |choice: &&str| results.all("throughput", &[("choice", choice)]).count() > 0;
    let columns: Vec<_> = CHOICES.into_iter().filter(shown).map(|it| (it, it)).collect();
    let rows = COUNTED.into_iter().flat_map(|who| {
        let name = if who.starts_with("hand") { "hand-written" } else { "unsticky" };
        let name = format!("{name}, {}", framework(who));
        WORKLOADS.map(|it| (format!("{name} | {}", it.name()), (who, it.name())))
    });
    table(" | ", &columns, rows, |(who, workload), choice| {
        let rate = |choice| {
            let labels = [("contender", *who), ("workload", *workload), ("choice", choice)];
            results.get("throughput", &labels)
        };
        let as_is = rate(CHOICES[0]);
        if *choice == CHOICES[0] {
            digits(as_is.median())
        } else {
            spread(&rate(choice).over(as_is))
        }
    })
}

fn framework(contender: &str) -> &str {
    baseline(contender).trim_start_matches("hand-")
}

fn is_of(wanted: &str, contender: &str) -> bool {
    framework(contender) == wanted
}

pub fn long_name(framework: &str) -> &str {
    if framework == "actix" { "actix-web" } else { framework }
}

/// Returns rows whose titles are their own names.
fn rows<'a>(names: impl IntoIterator<Item = &'a str>) -> impl Iterator<Item = (String, &'a str)> {
    names.into_iter().map(|name| (name.to_owned(), name))
}

/// Returns a row for each combination of a backend and one of `others`.
fn cross(
    backends: &[(String, &'static str)],
    others: &[&'static str],
) -> impl Iterator<Item = (String, (&'static str, &'static str))> {
    backends.iter().flat_map(move |(name, backend)| {
        others.iter().map(move |other| (format!("{name} | {other}"), (*backend, *other)))
    })
}

/// Returns a table. If the names of the rows contain a `|`, they take up two columns, and the corner must
/// contain one too.
pub fn table<R, C>(
    corner: &str,
    columns: &[(impl AsRef<str>, C)],
    rows: impl Iterator<Item = (String, R)>,
    cell: impl Fn(&R, &C) -> String,
) -> String {
    let names: Vec<_> = columns.iter().map(|(name, _)| name.as_ref()).collect();
    let first = corner.matches('|').count() + 1;
    let mut text = format!("| {corner} | {} |\n", names.join(" | "));
    text += &format!("|{}\n", "---|".repeat(first + columns.len()));
    for (name, row) in rows {
        let cells: Vec<_> = columns.iter().map(|(_, column)| cell(&row, column)).collect();
        text += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    text
}

fn ratio(ratio: &Record) -> String {
    format!("{:.2}", ratio.median())
}

/// Returns the median, followed by the middle half of the rounds if it is wider than 0.05.
fn spread(rounds: &Record) -> String {
    let [low, high] = [0.25, 0.75].map(|part| rounds.quantile(part));
    let range = format!("<br><sub>{low:.2}–{high:.2}</sub>");
    ratio(rounds) + if high - low > 0.05 { &range } else { "" }
}

/// Formats a figure with about three significant digits.
fn digits(value: f64) -> String {
    match value {
        none if none.is_nan() => "–".to_owned(),
        whole if whole.fract() == 0.0 && whole < 1000.0 => format!("{whole}"),
        large if large >= 1000.0 => format!("{:.0}", (value / 10.0).round() * 10.0),
        middle if middle >= 100.0 => format!("{value:.0}"),
        small if small >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
