//! `unsticky check`: examines the servers behind the store.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::process::ExitCode;

use unsticky::check::{Finding, Level, Report};

use crate::arguments::StoreArguments;
use crate::failure::{FOUND_WRONG, Failure};
use crate::output::{Format, one_line, print, print_json};

pub(crate) async fn run(store: &StoreArguments, format: Format) -> Result<ExitCode, Failure> {
    let report = store.sessions()?.check().await;
    match format {
        Format::Text => print(&text(&report))?,
        Format::Json => print_json(&report)?,
    }
    let is_wrong = report.level() >= Level::Error;
    Ok(if is_wrong { ExitCode::from(FOUND_WRONG) } else { ExitCode::SUCCESS })
}

/// Groups the findings by server. The server with the worst finding comes first, and each server's findings
/// begin with the worst. The last line is a summary.
fn text(report: &Report) -> String {
    // A report is sorted by subject.
    let groups = report.findings().chunk_by(|one, next| one.subject() == next.subject());
    let mut groups: Vec<Vec<&Finding>> = groups.map(|group| group.iter().collect()).collect();
    for group in &mut groups {
        group.sort_by_key(|finding| (Reverse(finding.level()), finding.code()));
    }
    groups.sort_by_key(|group| Reverse(group[0].level()));
    let mut text = String::new();
    for group in groups {
        let subject = match group[0].subject() {
            "" => "the store",
            subject => subject,
        };
        let _ = writeln!(text, "{}", one_line(subject));
        for finding in group {
            let (level, code) = (finding.level(), finding.code());
            let _ = writeln!(text, "  {level:7}  {code:15}  {}", one_line(finding.message()));
            if !finding.remedy().is_empty() {
                let _ = writeln!(text, "  {:7}  {:15}  {}", "", "", one_line(finding.remedy()));
            }
        }
    }
    let _ = writeln!(text, "{}", summary(report));
    text
}

fn summary(report: &Report) -> String {
    let count = |level| report.findings().iter().filter(|it| it.level() == level).count();
    let levels = [(Level::Error, "error"), (Level::Warning, "warning"), (Level::Note, "note")];
    let counted: Vec<_> = levels
        .into_iter()
        .map(|(level, name)| (count(level), name))
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}{}", if count == 1 { "" } else { "s" }))
        .collect();
    match counted.is_empty() {
        true => "no errors, no warnings".to_owned(),
        false => counted.join(", "),
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use unsticky::Sessions;
    use unsticky::store::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn worst_finding_comes_first_and_last_line_sums_up() {
        let report = Sessions::builder(MemoryStore::new()).build().unwrap().check().await;
        let text = text(&report);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "the store");
        assert!(lines[1].starts_with("  warning  memory_store "), "{text}");
        assert_eq!(lines.last(), Some(&"1 warning"), "{text}");
    }
}
