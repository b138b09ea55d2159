//! The results as a page: tables, plots, and the goals with what was measured beside them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use plotters::coord::ranged1d::{IntoSegmentedCoord as _, SegmentValue};
use plotters::prelude::*;

use crate::app::{CONTENDERS, baseline};
use crate::core::WORK;
use crate::load::Workload;
use crate::results::{Record, Results};
use crate::trips::WAYS;

const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 90, 181),
    RGBColor(220, 50, 32),
    RGBColor(120, 120, 120),
    RGBColor(230, 150, 0),
    RGBColor(90, 170, 90),
    RGBColor(150, 90, 170),
    RGBColor(0, 0, 0),
];

/// Writes the page beside the directory of the results, or says that the one there is another.
pub fn report(directory: &Path, only_check: bool) {
    let load = |name: &str| {
        let missing = || panic!("{name}.json is missing: measure it first");
        Results::load(directory, name).unwrap_or_else(missing)
    };
    let (web, stores, costs, core) = (load("web"), load("stores"), load("costs"), load("core"));
    let page = Page { web, stores, costs, core };
    let path = directory.join("../RESULTS.md");
    if only_check {
        let is_up_to_date = fs::read_to_string(path).is_ok_and(|text| text == page.text());
        assert!(
            is_up_to_date,
            "benches/RESULTS.md does not follow from benches/results: write it anew"
        );
    } else {
        page.plots(directory);
        fs::write(path, page.text()).unwrap();
    }
}

struct Page {
    web: Results,
    stores: Results,
    costs: Results,
    core: Results,
}

/// What a goal says, what was measured, and whether that is enough.
struct Goal {
    what: String,
    wanted: String,
    measured: f64,
    /// The same against a hand-written application with `nodelay`.
    nodelay: Option<f64>,
    met: bool,
}

impl Goal {
    fn at_least(what: String, wanted: f64, measured: f64) -> Self {
        let met = measured >= wanted - 0.005;
        Self { what, wanted: format!("≥ {wanted}"), measured, nodelay: None, met }
    }

    fn at_most(what: String, wanted: f64, unit: &str, measured: f64) -> Self {
        let met = measured <= wanted * 1.005;
        let wanted = format!("≤ {} {unit}", digits(wanted));
        Self { what, wanted, measured, nodelay: None, met }
    }
}

impl Page {
    fn text(&self) -> String {
        let mut page = String::from(
            "# Results\n\n\
             Written by `scripts/bench-peers` from `benches/results/*.json`; do not edit. Run that command to\n\
             measure on your machine, with `--quick` for a first impression. Ratios are medians over rounds in\n\
             which all contenders took turns; absolute figures are of one small machine, shared with others.\n\n",
        );
        self.machine(&mut page);
        self.goals(&mut page);
        self.web(&mut page);
        self.stores(&mut page);
        self.costs(&mut page);
        self.core(&mut page);
        page.push_str(include_str!("notes.md"));
        page
    }

    fn machine(&self, page: &mut String) {
        let about = &self.web.about;
        let line: Vec<_> = about.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let _ = writeln!(page, "Measured with: {}.\n", line.join("; "));
    }

    fn web_figure(&self, figure: &str, contender: &str, workload: &str) -> &Record {
        let wanted = [("contender", contender), ("workload", workload)];
        self.web
            .one(figure, &wanted)
            .unwrap_or_else(|| panic!("{figure} of {contender} is missing"))
    }

    /// Throughput, as a ratio to the hand-written application's of the same rounds.
    fn ratio(&self, contender: &str, baseline: &str, workload: &str) -> f64 {
        let own = self.web_figure("throughput", contender, workload);
        own.over(self.web_figure("throughput", baseline, workload))
    }

    /// Processor time over that of the framework's empty route, in microseconds.
    fn extra_cpu(&self, contender: &str, workload: &str) -> f64 {
        let empty = self.web_figure("cpu", baseline(contender), "empty route").median();
        self.web_figure("cpu", contender, workload).median() - empty
    }

    fn goals(&self, page: &mut String) {
        page.push_str(
            "## Goals\n\nBy hand means the hand-written application with the crate redis' default connection, and it decides; what the same\n\
             figure is against the one with `nodelay` stands beside it.\n\n\
             | goal | wanted | measured | against `nodelay` | |\n|---|---|---|---|---|\n",
        );
        for Goal { what, wanted, measured, nodelay, met } in self.list_goals() {
            let verdict = if met { "met" } else { "**missed**" };
            let (measured, nodelay) = (digits(measured), nodelay.map_or(String::new(), digits));
            let _ = writeln!(page, "| {what} | {wanted} | {measured} | {nodelay} | {verdict} |");
        }
        page.push('\n');
    }

    fn list_goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for framework in ["axum", "actix"] {
            self.list_web_goals(framework, &mut goals);
        }
        for (workers, wanted) in [("1", 0.6), ("2", 0.75)] {
            for callers in ["64", "256"] {
                let ratio = self.load_ratio("redis", "by hand", "1024", callers, workers, "0");
                let what = format!(
                    "Redis load, {callers} callers, {workers} worker(s): over the limit by hand"
                );
                goals.push(Goal::at_least(what, wanted, ratio));
            }
        }
        for callers in ["64", "256"] {
            let ratio = self.load_ratio("redis", REDIS, "1024", callers, "1", "0");
            let what =
                format!("Redis load, {callers} callers, 1 worker: over the crate redis, nodelay");
            goals.push(Goal::at_least(what, 2.0, ratio));
        }
        for (callers, wanted) in [("64", 3.0), ("256", 4.0)] {
            for workers in ["1", "2"] {
                let ratio = self.load_ratio("memcached", MEMCACHE, "1024", callers, workers, "0");
                let what = format!(
                    "Memcached load, {callers} callers, {workers} worker(s): over AsyncMetaClient"
                );
                goals.push(Goal::at_least(what, wanted, ratio));
            }
        }
        for (backend, other) in [("redis", REDIS), ("memcached", MEMCACHE)] {
            for workers in ["1", "2"] {
                let ratio = self.load_ratio(backend, other, "1024", "1", workers, "0");
                let what = format!("{backend} load, 1 caller, {workers} worker(s): over {other}");
                goals.push(Goal::at_least(what, 0.95, ratio));
            }
        }
        for (work, wanted) in [
            ("no cookie, with a handle", 150.0),
            ("decode ten values", 120.0),
            ("one value", 250.0),
            ("signed-in read", 1000.0),
        ] {
            let time = self.core.one("time", &[("work", work)]).map_or(f64::NAN, Record::median);
            goals.push(Goal::at_most(format!("core: {work}"), wanted, "ns", time));
        }
        for payload in ["200", "1024", "8192"] {
            let wanted = [("backend", "redis"), ("payload", payload), ("written", "once")];
            let bytes = self.costs.one("memory", &wanted).map_or(f64::NAN, Record::median);
            let over = bytes - payload.parse::<f64>().unwrap_or(0.0);
            let what = format!("Redis, a session of {payload} B: bytes over its payload");
            goals.push(Goal::at_most(what, 200.0, "B", over));
        }
        for backend in ["redis", "memcached"] {
            for workload in ["read", "increment"] {
                let rate = |sessions| {
                    let wanted =
                        [("backend", backend), ("sessions", sessions), ("workload", workload)];
                    self.costs.one("requests", &wanted).map_or(f64::NAN, Record::median)
                };
                let what = format!("{backend}, {workload}: a million sessions over a thousand");
                goals.push(Goal::at_least(what, 0.9, rate("1000000") / rate("1000")));
            }
        }
        goals
    }

    fn list_web_goals(&self, framework: &str, goals: &mut Vec<Goal>) {
        let own = format!("unsticky-{framework}");
        let (hand, nodelay) = (format!("hand-{framework}"), format!("hand-{framework}-nodelay"));
        let wanted = [
            ("no cookie", 0.99),
            ("cookie, unused", 0.99),
            ("read", 1.15),
            ("read 1 KiB", 1.15),
            ("increment", 1.0),
            ("sign-in", 0.9),
            ("re-sign-in", 0.9),
            ("sign-out", 0.9),
        ];
        for (workload, wanted) in wanted {
            let what = format!("{framework}, {workload}: throughput over by hand");
            goals.push(Goal {
                nodelay: Some(self.ratio(&own, &nodelay, workload)),
                ..Goal::at_least(what, wanted, self.ratio(&own, &hand, workload))
            });
        }
        for (workload, _) in wanted {
            let p99 = self.web_figure("p99", &own, workload);
            let over = |hand| p99.over(self.web_figure("p99", hand, workload));
            let what = format!("{framework}, {workload}: p99 over by hand");
            goals.push(Goal {
                nodelay: Some(over(&nodelay)),
                ..Goal::at_most(what, 1.0, "", over(&hand))
            });
        }
        let over = |hand| self.extra_cpu(&own, "read") / self.extra_cpu(hand, "read");
        let what = format!("{framework}, read: CPU over the empty route, over by hand");
        goals.push(Goal {
            nodelay: Some(over(&nodelay)),
            ..Goal::at_most(what, 1.0, "", over(&hand))
        });
        let what = format!("{framework}, cookie, unused: CPU over the empty route");
        goals.push(Goal::at_most(what, 1.0, "µs", self.extra_cpu(&own, "cookie, unused")));
    }

    fn web(&self, page: &mut String) {
        page.push_str(
            "## Whole applications\n\nThe application has one core, the load generator the other one, Redis runs where there is time left;\n\
             32 browsers with one request at a time. `hand-…` is what an engineer writes without any safety: a cookie\n\
             scan, the crate redis' multiplexed connection, GET and SET of a JSON blob, with that crate's default\n\
             (Nagle's algorithm on) and with `nodelay`, which a network with a real round trip needs. unsticky runs\n\
             without its directory of sessions, which the others do not have; what that costs is measured further down.\n\n\
             Throughput over the hand-written application of the same framework (default connection):\n\n",
        );
        let header: Vec<_> = Workload::ALL.iter().skip(1).map(|it| it.name()).collect();
        let _ = writeln!(page, "| | {} | lost updates of 200 |", header.join(" | "));
        let _ = writeln!(page, "|---{}|---|", "|---".repeat(header.len()));
        for contender in CONTENDERS {
            let _ = write!(page, "| {contender}");
            for workload in &header {
                let _ =
                    write!(page, " | {:.2}", self.ratio(contender, baseline(contender), workload));
            }
            let lost = self.web.one("lost updates", &[("contender", contender)]);
            let _ = writeln!(page, " | {} |", lost.map_or(f64::NAN, Record::median));
        }
        page.push_str(
            "\n![CPU of a request](results/cpu.svg)\n\n![Latency](results/latency.svg)\n\n",
        );
        let tables = [
            ("Requests a second:", "throughput"),
            ("Latency, median, µs:", "p50"),
            ("Latency, 99th percentile, µs:", "p99"),
            ("CPU of the application for each request, µs:", "cpu"),
            ("Commands to Redis for each request:", "commands"),
            ("Round trips to Redis for each request:", "round trips"),
        ];
        for (title, figure) in tables {
            let names: Vec<_> = Workload::ALL.iter().map(|it| it.name()).collect();
            let _ = writeln!(page, "{title}\n\n| | {} |", names.join(" | "));
            let _ = writeln!(page, "|---{}|", "|---".repeat(names.len()));
            for contender in CONTENDERS {
                let _ = write!(page, "| {contender}");
                for workload in &names {
                    let value = self.web_figure(figure, contender, workload).median();
                    let _ = write!(page, " | {}", digits(value));
                }
                page.push_str(" |\n");
            }
            page.push('\n');
        }
    }

    fn load_record(
        &self,
        backend: &str,
        client: &str,
        bytes: &str,
        callers: &str,
        workers: &str,
        delay: &str,
    ) -> &Record {
        let wanted = [
            ("backend", backend),
            ("client", client),
            ("bytes", bytes),
            ("callers", callers),
            ("workers", workers),
            ("delay", delay),
        ];
        self.stores.one("load", &wanted).unwrap_or_else(|| panic!("{wanted:?} is missing"))
    }

    fn load_ratio(
        &self,
        backend: &str,
        other: &str,
        bytes: &str,
        callers: &str,
        workers: &str,
        delay: &str,
    ) -> f64 {
        let own = self.load_record(backend, "unsticky", bytes, callers, workers, delay);
        own.over(self.load_record(backend, other, bytes, callers, workers, delay))
    }

    fn stores(&self, page: &mut String) {
        page.push_str(
            "## The stores alone\n\nLoads a second. \"By hand\" is a pipelined client for this one command, without reconnecting, time limits\n\
             or errors: the limit. A delay is that of each direction, added by a proxy.\n\n\
             ![Loads against callers](results/throughput.svg)\n\n\
             | backend | bytes | delay, ms | workers | callers | unsticky, 1/s | over by hand | over the library's client |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for (backend, library) in [("redis", REDIS), ("memcached", MEMCACHE)] {
            for bytes in ["1024", "8192"] {
                for delay in ["0", "1"] {
                    for workers in ["1", "2"] {
                        for callers in ["1", "64", "256"] {
                            let own = self
                                .load_record(backend, "unsticky", bytes, callers, workers, delay);
                            let by_hand =
                                self.load_ratio(backend, "by hand", bytes, callers, workers, delay);
                            let other =
                                self.load_ratio(backend, library, bytes, callers, workers, delay);
                            let _ = writeln!(
                                page,
                                "| {backend} | {bytes} | {delay} | {workers} | {callers} | {} | {by_hand:.2} | {other:.2} |",
                                digits(own.median())
                            );
                        }
                    }
                }
            }
        }
        page.push('\n');
    }

    fn costs(&self, page: &mut String) {
        page.push_str(
            "## What sessions cost the servers\n\nBytes for each session of somebody who is signed in, with one value (`MEMORY USAGE`; Memcached's `bytes`). A\n\
             session that was written more often remembers the tags of its last eight writes.\n\n\
             | backend | payload | written once | written ten times |\n|---|---|---|---|\n",
        );
        for backend in ["redis", "memcached"] {
            for payload in ["200", "1024", "8192"] {
                let bytes = |written| {
                    let wanted = [("backend", backend), ("payload", payload), ("written", written)];
                    self.costs.one("memory", &wanted).map_or(f64::NAN, Record::median)
                };
                let (once, often) = (bytes("once"), bytes("ten times"));
                let _ = writeln!(page, "| {backend} | {payload} | {once} | {often} |");
            }
        }
        page.push_str(
            "\nThe server's own processor time for a command, in microseconds, with 64 callers:\n\n\
             | backend | bytes | load | replace | create | delete |\n|---|---|---|---|---|---|\n",
        );
        for backend in ["redis", "memcached"] {
            for bytes in ["256", "1024", "8192"] {
                let _ = write!(page, "| {backend} | {bytes}");
                for verb in ["load", "replace", "create", "delete"] {
                    let wanted = [("backend", backend), ("bytes", bytes), ("verb", verb)];
                    let time =
                        self.costs.one("server time", &wanted).map_or(f64::NAN, Record::median);
                    let _ = write!(page, " | {}", digits(time));
                }
                page.push_str(" |\n");
            }
        }
        page.push_str("\nRequests a second, outside of a framework, with so many sessions alive:\n\n![Requests against sessions](results/scale.svg)\n\n| backend | workload |");
        let counts = ["1000", "10000", "100000", "1000000"];
        let _ =
            writeln!(page, " {} |\n|---|---{}|", counts.join(" | "), "|---".repeat(counts.len()));
        for backend in ["redis", "memcached"] {
            for workload in ["read", "increment"] {
                let _ = write!(page, "| {backend} | {workload}");
                for sessions in counts {
                    let wanted =
                        [("backend", backend), ("sessions", sessions), ("workload", workload)];
                    let rate = self.costs.one("requests", &wanted).map(Record::median);
                    let _ = write!(page, " | {}", rate.map_or("–".to_owned(), digits));
                }
                page.push_str(" |\n");
            }
        }
        page.push_str(
            "\nThe directory of an account's sessions, requests a second outside of a framework with 64 callers: a\n\
             sign-in is one command without it and three with it; a read in strict mode is two, one after the other.\n\n\
             | backend | workload | off | listed | strict | listed over off | strict over off |\n|---|---|---|---|---|---|---|\n",
        );
        for backend in ["redis", "memcached"] {
            for workload in ["read", "sign-in"] {
                let rate = |mode| {
                    let wanted = [("backend", backend), ("mode", mode), ("workload", workload)];
                    self.costs.one("directory", &wanted).map_or(f64::NAN, Record::median)
                };
                let [off, listed, strict] = ["off", "listed", "strict"].map(rate);
                let _ = writeln!(
                    page,
                    "| {backend} | {workload} | {} | {} | {} | {:.2} | {:.2} |",
                    digits(off),
                    digits(listed),
                    digits(strict),
                    listed / off,
                    strict / off
                );
            }
        }
        let bytes = ["1", "10", "100"].map(|sessions| {
            let usage = self.costs.one("directory memory", &[("sessions", sessions)]);
            digits(usage.map_or(f64::NAN, Record::median))
        });
        let _ = writeln!(
            page,
            "\nA directory in Redis with 1, 10 and 100 sessions, each with a label of 16 bytes: {} bytes.\n",
            bytes.join(", ")
        );
        page.push_str(
            "The same change of a record of 1 KiB, by the crate redis' own connection, changes a second: as it is made here,\n\
             and as it could be made by a script that knows where a record keeps its secret. A refresh is a compare and set;\n\
             a bare `PEXPIRE` is what it would be without its promises.\n\n\
             | | 1 caller | 64 callers |\n|---|---|---|\n",
        );
        for way in WAYS {
            let rate = |callers| {
                let trips = self.costs.one("trips", &[("way", way), ("callers", callers)]);
                digits(trips.map_or(f64::NAN, Record::median))
            };
            let _ = writeln!(page, "| {way} | {} | {} |", rate("1"), rate("64"));
        }
        page.push('\n');
    }

    fn core(&self, page: &mut String) {
        page.push_str("## The crate's own work\n\nWithout a server and a framework; the store answers at once.\n\n| | ns | instructions |\n|---|---|---|\n");
        for work in WORK {
            let figure = |figure| self.core.one(figure, &[("work", work)]).map(Record::median);
            let time = figure("time").map_or("–".to_owned(), digits);
            let count = figure("instructions").map_or("–".to_owned(), digits);
            let _ = writeln!(page, "| {work} | {time} | {count} |");
        }
        page.push('\n');
    }

    fn plots(&self, directory: &Path) {
        let mut series = Vec::new();
        for (backend, library) in [("redis", REDIS), ("memcached", MEMCACHE)] {
            for client in ["unsticky", "by hand", library] {
                let points = [1.0, 64.0, 256.0].map(|callers: f64| {
                    let record =
                        self.load_record(backend, client, "1024", &callers.to_string(), "1", "0");
                    (callers, record.median() / 1000.0)
                });
                series.push((format!("{backend}: {client}"), points.to_vec()));
            }
        }
        let path = directory.join("throughput.svg");
        lines(&path, "Loads of 1 KiB, one worker", "callers", "thousand loads a second", &series);

        let mut series = Vec::new();
        for backend in ["redis", "memcached"] {
            for workload in ["read", "increment"] {
                let mut points: Vec<_> = self
                    .costs
                    .all("requests", &[("backend", backend), ("workload", workload)])
                    .into_iter()
                    .map(|record| {
                        let sessions: f64 = record.labels["sessions"].parse().unwrap_or(1.0);
                        (sessions, 1e6 / record.median())
                    })
                    .collect();
                points.sort_by(|one, other| one.0.total_cmp(&other.0));
                series.push((format!("{backend}: {workload}"), points));
            }
        }
        let path = directory.join("scale.svg");
        lines(&path, "Cost of a request", "live sessions", "microseconds", &series);

        let shown: Vec<_> =
            CONTENDERS.iter().filter(|name| **name != "axum_session").copied().collect();
        let bars_of =
            |value: &dyn Fn(&str, &str) -> f64, workloads: [&str; 3]| -> Vec<(String, Vec<f64>)> {
                shown
                    .iter()
                    .map(|name| {
                        (name.to_string(), workloads.map(|workload| value(name, workload)).to_vec())
                    })
                    .collect()
            };
        let cpu = bars_of(
            &|name, workload| self.extra_cpu(name, workload),
            ["read", "increment", "re-sign-in"],
        );
        let path = directory.join("cpu.svg");
        bars(
            &path,
            "CPU of a request over the empty route, µs (axum_session: over 50)",
            &["read", "increment", "re-sign-in"],
            &cpu,
        );
        let latency = bars_of(
            &|name, which| {
                let (figure, workload) = which.split_once(' ').unwrap_or_default();
                self.web_figure(figure, name, workload).median()
            },
            ["p50 read", "p99 read", "p99 increment"],
        );
        let path = directory.join("latency.svg");
        bars(
            &path,
            "Latency with 32 browsers, µs (axum_session: over 3000)",
            &["read, p50", "read, p99", "increment, p99"],
            &latency,
        );
    }
}

const REDIS: &str = "redis, multiplexed, nodelay";
const MEMCACHE: &str = "memcache, AsyncMetaClient";

/// Three digits that mean something.
fn digits(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{:.0}", (value / 10.0).round() * 10.0),
        middle if middle >= 100.0 => format!("{value:.0}"),
        small if small >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn lines(path: &Path, title: &str, x: &str, y: &str, series: &[(String, Vec<(f64, f64)>)]) {
    let all = || series.iter().flat_map(|(_, points)| points.iter().copied());
    let most = all().map(|point| point.1).fold(0.0, f64::max);
    let (first, last) =
        all().fold((f64::MAX, 1.0_f64), |(low, high), (x, _)| (low.min(x), high.max(x)));
    let root = SVGBackend::new(path, (860, 460)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((first..last).log_scale(), 0.0..most * 1.45)
        .unwrap();
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .label_style(("sans-serif", 14))
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()
        .unwrap();
    for (number, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.clone(), style).point_size(4))
            .unwrap()
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()
        .unwrap();
    root.present().unwrap();
}

/// A group of horizontal bars for each name.
fn bars(path: &Path, title: &str, kinds: &[&str], rows: &[(String, Vec<f64>)]) {
    let most = rows.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max);
    let height = 110 + 52 * rows.len() as u32;
    let root = SVGBackend::new(path, (860, height)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let names: Vec<_> = rows.iter().map(|(name, _)| name.clone()).collect();
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(190)
        .build_cartesian_2d(0.0..most * 1.08, (0..rows.len()).into_segmented())
        .unwrap();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_labels(rows.len())
        .label_style(("sans-serif", 14))
        .y_label_formatter(&|row| match row {
            SegmentValue::CenterOf(row) => names.get(*row).cloned().unwrap_or_default(),
            _ => String::new(),
        })
        .draw()
        .unwrap();
    let area = chart.plotting_area();
    for (kind, name) in kinds.iter().enumerate() {
        let colour = COLOURS[kind];
        for (row, (_, values)) in rows.iter().enumerate() {
            let (left, centre) = area.map_coordinate(&(0.0, SegmentValue::CenterOf(row)));
            let (right, _) =
                area.map_coordinate(&(values[kind].max(0.0), SegmentValue::CenterOf(row)));
            let top = centre + (kind as i32 - 1) * 14 - 6;
            root.draw(&Rectangle::new([(left, top), (right, top + 12)], colour.filled())).unwrap();
            let text = Text::new(digits(values[kind]), (right + 4, top), ("sans-serif", 11));
            root.draw(&text).unwrap();
        }
        let x = 240 + kind as i32 * 160;
        let y = height as i32 - 22;
        root.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour.filled())).unwrap();
        root.draw(&Text::new(*name, (x + 18, y), ("sans-serif", 13))).unwrap();
    }
    root.present().unwrap();
}
