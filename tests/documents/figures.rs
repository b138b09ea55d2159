//! The measured figures in the documents are those in the results.
//!
//! A comment before a paragraph, a list, a table or a block of text gives the sources of all numbers in
//! it, separated by semicolons; `CONTRIBUTING.md` has examples:
//!
//! - `web.json | throughput | contender=unsticky-axum/hand-axum`: the medians of these records in
//!   `benches/results/web.json`, and the numbers in their labels;
//! - `ratio web.json | cpu | workload=read`: the quotients of any two of these medians; before a `%`, also
//!   by how many percent they differ;
//! - `drills.txt`: the numbers in `benches/results/drills.txt`;
//! - `calc 46 = 10.0 + 33.9 + 1.8`: a number that is calculated from others;
//! - `given 64, 256`: numbers that were chosen, not measured;
//! - `once 7, 160`: numbers that were measured once, as the text describes, and that no command
//!   measures again.
//!
//! A number may be rounded to the digits that are shown. A number that looks measured but has no such
//! comment must be one of the [`SETTINGS`], or follow the comment `not measured: REASON`.

use std::collections::BTreeMap;
use std::fs;

use crate::markdown::{Block, Document, documents, root, without_code};
use crate::numbers::{Number, calculated, numbers};
use crate::tests_named::rows;

/// Numbers with units that the library's sources define. Each has the file that defines it, and the
/// definition.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("1024 bytes", "src/record/flash.rs", "TEXT_BYTES: usize = 1024"),
    ("128 bytes", "src/record/sign_in.rs", "LABEL_BYTES: usize = 128"),
    ("65,536 bytes", "src/limits.rs", "RECORD_BYTES: usize = 64 * 1024"),
    ("1,000,000 bytes", "src/sessions/builder.rs", "MAX_RECORD: usize = 1_000_000"),
    ("400 ms", "src/limits.rs", "CONNECT: Duration = Duration::from_millis(400)"),
    ("50 ms", "src/store/redis/heartbeat.rs", "BEAT: Duration = Duration::from_millis(50)"),
    ("100 ms", "src/store/redis/sentinel.rs", "GRACE: Duration = Duration::from_millis(100)"),
    ("80 %", "src/store/redis/check/findings.rs", "NEARLY_ALL: u64 = 80"),
];

/// Numbers with units that other software defines, and what they are.
const OF_OTHERS: &[(&str, &str)] =
    &[("50 bytes", "what Memcached adds to an item: its header, 48 bytes, and its version, 8")];

/// A different test checks the figures of the guarantees, and fixtures hold the sizes of the record
/// format.
const CHECKED_ELSEWHERE: [&str; 2] = ["docs/guarantees.md", "docs/stability.md"];

/// A measured value with its unit.
struct Value(f64, String);

/// The values that the numbers in a paragraph may show.
#[derive(Default)]
struct Sources {
    values: Vec<Value>,
    ratios: Vec<f64>,
}

impl Sources {
    fn of(comment: &str) -> Result<Self, String> {
        let mut sources = Self::default();
        for source in comment.split(';').map(str::trim) {
            let chosen = source.strip_prefix("given ").or_else(|| source.strip_prefix("once "));
            if let Some(chosen) = chosen {
                sources.add(numbers(chosen).into_iter().map(|number| number.value));
            } else if let Some(calculation) = source.strip_prefix("calc ") {
                sources.add([calculation_of(calculation)?]);
            } else if let Some(records) = source.strip_prefix("ratio ") {
                let medians: Vec<_> = selected(records)?.into_iter().map(|it| it.median).collect();
                let of = |one: f64| medians.iter().map(move |other| one / other);
                sources.ratios.extend(medians.iter().flat_map(|one| of(*one)));
            } else if source.contains(".json") {
                for record in selected(source)? {
                    sources.values.push(Value(record.median, record.unit));
                    sources.add(record.labels.values().flat_map(|label| values(label)));
                }
            } else {
                let text = read(source)?;
                sources.values.extend(numbers(&text).into_iter().map(|number| {
                    let unit = text[number.range.end..].split(|c: char| !c.is_alphabetic()).next();
                    Value(number.value, unit.unwrap_or_default().to_owned())
                }));
            }
        }
        Ok(sources)
    }

    fn add(&mut self, values: impl IntoIterator<Item = f64>) {
        self.values.extend(values.into_iter().map(|value| Value(value, String::new())));
    }

    fn have(&self, number: &Number, behind: &str) -> bool {
        let unit = behind.trim_start();
        let in_unit = |Value(value, stored): &Value| match seconds(stored) {
            _ if unit.starts_with("million") => vec![value / 1e6],
            _ if unit.starts_with("thousand") => vec![value / 1e3],
            _ if unit.starts_with("KiB") => vec![value / 1024.0],
            // The unit may follow a second number.
            Some(second) => [1.0, 1e-3, 1e-6].map(|shown| value * second / shown).to_vec(),
            None => vec![*value],
        };
        let percent = unit.starts_with('%') || unit.starts_with("percent");
        let mut ratios = self.ratios.iter().flat_map(|ratio| {
            let differences = [100.0 * ratio, 100.0 * (ratio - 1.0), 100.0 * (1.0 - ratio)];
            if percent { differences.to_vec() } else { vec![*ratio] }
        });
        // A count of bytes may also be shown in full, or may already be in KiB.
        let is_shown = |value: &Value| {
            number.shows(value.0) || in_unit(value).iter().any(|it| number.shows(*it))
        };
        self.values.iter().any(is_shown) || ratios.any(|ratio| number.shows(ratio))
    }
}

/// Returns the length of a unit of time.
fn seconds(unit: &str) -> Option<f64> {
    match unit {
        "s" => Some(1.0),
        "ms" => Some(1e-3),
        "µs" => Some(1e-6),
        "ns" => Some(1e-9),
        _ => unit.starts_with("us").then_some(1e-6),
    }
}

fn values(text: &str) -> Vec<f64> {
    numbers(text).into_iter().map(|number| number.value).collect()
}

fn read(name: &str) -> Result<String, String> {
    let path = if name.contains('/') { name.to_owned() } else { format!("benches/results/{name}") };
    fs::read_to_string(root().join(&path)).map_err(|error| format!("{path}: {error}"))
}

/// Returns the result of a calculation such as `46 = 10.0 + 33.9`. The left side must show what the
/// right side yields.
fn calculation_of(text: &str) -> Result<f64, String> {
    let (result, expression) = text.split_once('=').ok_or(format!("{text}: no ="))?;
    let [shown] = &numbers(result)[..] else { return Err(format!("{text}: no result")) };
    let value = calculated(expression).ok_or(format!("{text}: it cannot be calculated"))?;
    shown.shows(value).then_some(shown.value).ok_or(format!("{text}: it is {value}"))
}

/// One record in a file of results.
struct Measured {
    labels: BTreeMap<String, String>,
    unit: String,
    median: f64,
}

/// Returns the records that a source selects by figure and labels, for example `web.json | cpu |
/// workload=read/sign-in`.
fn selected(source: &str) -> Result<Vec<Measured>, String> {
    let mut parts = source.split('|').map(str::trim);
    let text = read(parts.next().unwrap())?;
    let mut figure = None;
    let mut wanted = Vec::new();
    for part in parts {
        match part.split_once('=') {
            Some((label, values)) => wanted.push((label, values.split('/').collect::<Vec<_>>())),
            None => figure = Some(part),
        }
    }
    let file: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for record in file["records"].as_array().ok_or("no records")? {
        let label = |name: &str| record["labels"][name].as_str();
        let is_wanted = figure.is_none_or(|figure| record["figure"] == figure)
            && wanted
                .iter()
                .all(|(name, values)| label(name).is_some_and(|it| values.contains(&it)));
        if is_wanted {
            let labels = serde_json::from_value(record["labels"].clone());
            let values = serde_json::from_value(record["values"].clone());
            all.push(Measured {
                labels: labels.map_err(|error| error.to_string())?,
                unit: record["unit"].as_str().unwrap_or_default().to_owned(),
                median: median(values.map_err(|error| error.to_string())?),
            });
        }
    }
    if all.is_empty() { Err(format!("no record is {source}")) } else { Ok(all) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Returns the prose in a text, without code and link targets.
fn prose(text: &str) -> String {
    let mut result = String::new();
    let text = without_code(text);
    let mut rest = text.as_str();
    while let Some(at) = rest.find("](").or_else(|| rest.find("]: http")) {
        result += &rest[..at];
        let end = rest[at..].find([')', '\n']).unwrap_or(rest.len() - at);
        rest = &rest[at + end..];
    }
    result + rest
}

/// Returns the numbers in a text that look measured, with their units.
fn suspects(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let found = numbers(text);
    for number in &found {
        let shown = &text[number.range.clone()];
        let behind = &text[number.range.end..];
        let words: Vec<_> = behind.split_whitespace().take(3).collect();
        let is_adjacent = !behind.starts_with(['-', '.', ',', ';', ':', ')', '|', '*']);
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        let first = word(0).trim_end_matches(|c: char| !c.is_alphanumeric() && c != '%');
        let of_number = first == "of" && word(1).starts_with(|c: char| c.is_ascii_digit());
        let unit = match first {
            "%" | "percent" => "%",
            "µs" | "ms" | "times" | "bytes" => first,
            "a" if word(1).starts_with("second") => "a second",
            "requests" if word(1) == "a" || word(1) == "per" => "requests a second",
            "of" if of_number => "of",
            _ => continue,
        };
        if is_adjacent {
            all.push(format!("{shown} {unit}"));
        }
    }
    all
}

/// Returns what is wrong with the figures in a document.
fn faults(document: &Document) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut comment, mut is_generated) = (None, false);
    for block in document.blocks() {
        let (line, text) = match block {
            // `scripts/bench-peers` writes and checks these.
            Block::Comment("figures") => {
                is_generated = true;
                continue;
            }
            Block::Comment("end of figures") => {
                is_generated = false;
                continue;
            }
            Block::Comment(text) => {
                comment = Some(text);
                continue;
            }
            Block::Heading(_) => {
                comment = None;
                continue;
            }
            Block::Code { line, info: "text", text } => (line, text),
            Block::Code { .. } => continue,
            Block::Text { line, text } => (line, prose(&text)),
        };
        let place = format!("{}, line {line}", document.path);
        let before = comment.take().unwrap_or_default();
        if is_generated {
            continue;
        } else if let Some(reason) = before.strip_prefix("not measured:") {
            if reason.split_whitespace().count() < 2 {
                faults.push(format!("{place}: why is it not measured?"));
            }
        } else if let Some(sources) = before.strip_prefix("figures:") {
            match Sources::of(sources) {
                Err(error) => faults.push(format!("{place}: {error}")),
                Ok(sources) => faults.extend(numbers(&text).iter().filter_map(|number| {
                    let is_there = sources.have(number, &text[number.range.end..]);
                    let shown = &text[number.range.clone()];
                    (!is_there).then(|| format!("{place}: {shown} is in none of its sources"))
                })),
            }
        } else {
            let is_setting = |it: &String| {
                SETTINGS.iter().any(|(setting, ..)| setting == it)
                    || OF_OTHERS.iter().any(|(setting, _)| setting == it)
            };
            faults.extend(suspects(&text).into_iter().filter(|it| !is_setting(it)).map(|it| {
                format!("{place}: \"{it}\" is measured, or a setting that this test does not know")
            }));
        }
    }
    faults
}

#[test]
fn figures_are_those_of_results() {
    let mut all = Vec::new();
    for document in documents() {
        let is_page = document.path.starts_with("docs/") || document.path == "README.md";
        let is_elsewhere = CHECKED_ELSEWHERE.contains(&document.path.as_str());
        if is_page && !is_elsewhere {
            all.extend(faults(&document));
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn settings_are_those_of_sources() {
    for (setting, file, definition) in SETTINGS {
        let text = fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains(definition), "{setting}: {definition} is not in {file}");
    }
}

/// The figures for a guarantee occur in its tests, or in the results of the drills.
#[test]
fn results_of_guarantees_are_those_of_tests() {
    let text = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    // The sum of the requests in the drills in which no request may fail.
    const DRILLS: &str = "drills.txt; calc 12148 = 8726 + 3422";
    let (mut faults, mut checked) = (Vec::new(), 0);
    for row in rows(&text) {
        let (promise, tests, result) = (row[0], row[1], row[3]);
        let mut known = Sources::default();
        known.add(values(promise));
        known.add(tests.split('`').flat_map(|name| {
            let file = name.split("::").next().unwrap().trim_end_matches('*');
            let file =
                if file.contains('/') { file.to_owned() } else { format!("tests/{file}.rs") };
            let text = fs::read_to_string(root().join(file));
            values(&text.unwrap_or_default().replace('_', ""))
        }));
        if tests.contains("drills") {
            known.values.extend(Sources::of(DRILLS).unwrap().values);
        }
        for number in numbers(result) {
            let is_known = known.have(&number, &result[number.range.end..]);
            if !is_known {
                faults.push(format!("{}, of \"{result}\": {promise}", number.value));
            }
            checked += 1;
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(checked > 10);
}

#[test]
fn figure_that_no_source_has_is_a_fault() {
    let faults = |text: &str| {
        let (path, text) = ("docs/a.md".to_owned(), text.to_owned());
        faults(&Document { path, text })
    };
    let of_text = |comment: &str, text: &str| faults(&format!("<!-- {comment} -->\n{text}\n"));
    let memory = "figures: costs.json | memory | backend=redis | payload=1024 | written=once";
    assert_eq!(of_text(memory, "A session of 1024 bytes takes 1 370 bytes."), [""; 0]);
    assert_eq!(of_text(memory, "A session of 1 KiB takes 1368 bytes."), [""; 0]);
    assert_eq!(of_text(memory, "A session of 1024 bytes takes 1 380 bytes.").len(), 1);
    let ratio = "figures: ratio costs.json | memory | backend=redis | payload=200";
    assert_eq!(of_text(ratio, "That is 1.16 times as much, or 16 % more."), [""; 0]);
    assert_eq!(of_text(ratio, "That is 1.17 times as much.").len(), 1);
    assert_eq!(of_text("figures: calc 0.7 = 1000000 * 710 / 1000000000", "It is 0.7 GB."), [""; 0]);
    assert_eq!(of_text("figures: calc 0.8 = 1000000 * 710 / 1000000000", "It is 0.8 GB.").len(), 1);
    assert_eq!(of_text("figures: given 64, 256", "It is 64 or 256 callers."), [""; 0]);
    assert_eq!(of_text("figures: given 64", "It is 63 callers.").len(), 1);
    assert_eq!(of_text("figures: no-such.json", "None.").len(), 1);
    assert_eq!(of_text("figures: costs.json | memory | backend=none", "None.").len(), 1);
    for measured in ["It lost 0 of 200.", "It takes 12 µs.", "5 % more", "900 requests a second"] {
        assert_eq!(faults(measured).len(), 1, "{measured}");
        assert_eq!(of_text("not measured: an example of output", measured), [""; 0]);
    }
    assert_eq!(faults("A text has at most 1024 bytes, in 3 parts; `12 ms` is code."), [""; 0]);
}
