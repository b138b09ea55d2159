//! The results as they are stored: one JSON file per kind of measurement.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::servers::{ValkeyServer, redis_program};

/// One figure, measured once per round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The name of the figure.
    pub figure: String,
    /// The conditions of the measurement.
    pub labels: BTreeMap<String, String>,
    pub unit: String,
    pub values: Vec<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// The machine, the versions and the date.
    pub about: BTreeMap<String, String>,
    pub records: Vec<Record>,
}

pub fn labels<const N: usize>(labels: [(&str, String); N]) -> BTreeMap<String, String> {
    labels.into_iter().map(|(label, value)| (label.to_owned(), value)).collect()
}

impl Results {
    pub fn new() -> Self {
        Self { about: about(), records: Vec::new() }
    }

    /// Adds the value from one more round.
    pub fn push(&mut self, figure: &str, labels: BTreeMap<String, String>, unit: &str, value: f64) {
        // The measurements are not accurate to more than four digits.
        let value = format!("{value:.3e}").parse().unwrap_or(value);
        match self.records.iter_mut().find(|it| it.figure == figure && it.labels == labels) {
            Some(record) => record.values.push(value),
            None => self.records.push(Record {
                figure: figure.to_owned(),
                labels,
                unit: unit.to_owned(),
                values: vec![value],
            }),
        }
    }

    pub fn load(directory: &Path, name: &str) -> Option<Self> {
        let text = fs::read_to_string(directory.join(name).with_extension("json")).ok()?;
        Some(serde_json::from_str(&text).expect("the results are in a different format"))
    }

    /// Writes each record on one line, so that the diff of a new measurement is readable.
    pub fn save(&self, directory: &Path, name: &str) {
        let about = serde_json::to_string_pretty(&self.about).unwrap();
        let records: Vec<_> =
            self.records.iter().map(|record| serde_json::to_string(record).unwrap()).collect();
        let text =
            format!("{{\n\"about\": {about},\n\"records\": [\n{}\n]\n}}\n", records.join(",\n"));
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(name).with_extension("json"), text).unwrap();
    }

    /// Returns the records for this figure that have all these labels.
    pub fn all(&self, figure: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Record> {
        let has = move |record: &&Record| {
            let is = |(label, value): &(&str, &str)| {
                record.labels.get(*label).is_some_and(|it| it == value)
            };
            record.figure == figure && labels.iter().all(is)
        };
        self.records.iter().filter(has)
    }

    pub fn one(&self, figure: &str, labels: &[(&str, &str)]) -> Option<&Record> {
        self.all(figure, labels).next()
    }

    /// Returns the record, which must exist.
    pub fn get(&self, figure: &str, labels: &[(&str, &str)]) -> &Record {
        self.one(figure, labels).unwrap_or_else(|| panic!("{figure} of {labels:?} is missing"))
    }

    /// Returns the median of the record, or NaN if it does not exist.
    pub fn median(&self, figure: &str, labels: &[(&str, &str)]) -> f64 {
        self.one(figure, labels).map_or(f64::NAN, Record::median)
    }
}

impl Record {
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Returns the ratio for each round. The two measurements in a round ran at nearly the same time.
    pub fn over(&self, other: &Self) -> Self {
        let ratios = self.values.iter().zip(&other.values).map(|(one, other)| one / other);
        Self { values: ratios.collect(), ..self.clone() }
    }

    /// Returns the value below which this share of the rounds lies.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let place = part * last as f64;
        let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        low + (high - low) * place.fract()
    }
}

/// Returns the version of a server, which is empty if the program is missing.
pub fn server_version(program: &str) -> String {
    let text = run(program, &["--version"]);
    let version = text.split(' ').find_map(|word| word.strip_prefix("v="));
    version.unwrap_or_default().to_owned()
}

/// Starts a Valkey server if the program is found.
pub fn valkey() -> Option<ValkeyServer> {
    (!server_version(&ValkeyServer::program()).is_empty()).then(ValkeyServer::start)
}

/// Runs a program and returns its output, which is empty if the program is missing.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    output.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned()).unwrap_or_default()
}

/// Returns today's date, in UTC.
pub fn date() -> String {
    run("date", &["-u", "+%Y-%m-%d"])
}

fn about() -> BTreeMap<String, String> {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names = processors.lines().filter_map(|line| line.strip_prefix("model name"));
    let cpu = names.next().unwrap_or("unknown");
    let locked = include_str!("../Cargo.lock");
    let version = |name: &str| {
        let found = locked.split("[[package]]").filter_map(|package| {
            let mut lines = package.lines().skip(1);
            (lines.next()? == format!("name = \"{name}\"")).then_some(())?;
            lines.next()?.strip_prefix("version = ")
        });
        found.map(|version| version.trim_matches('"').to_owned()).collect::<Vec<_>>().join(", ")
    };
    let mut about = labels([
        // Counts all cores, even if this process was pinned to one.
        (
            "cores",
            processors.lines().filter(|line| line.starts_with("processor")).count().to_string(),
        ),
        ("cpu", cpu.trim_start_matches(['\t', ' ', ':']).to_owned()),
        ("date", date()),
        // The script sets the time of its run, so that results from two runs cannot be mixed.
        ("run", std::env::var("PEERS_RUN").unwrap_or_default()),
        ("rustc", run("rustc", &["--version"])),
        ("redis-server", server_version(&redis_program())),
        ("valkey-server", server_version(&ValkeyServer::program())),
        ("memcached", run("memcached", &["--version"])),
    ]);
    for name in [
        "actix-session",
        "actix-web",
        "axum",
        "axum_session",
        "memcache",
        "redis",
        "tokio",
        "tower-sessions",
        "tower-sessions-redis-store",
        "unsticky",
    ] {
        about.insert(name.to_owned(), version(name));
    }
    about
}
