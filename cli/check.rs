//! `unsticky check`: what stands behind the store.

use std::fmt::Write as _;
use std::process::ExitCode;

use unsticky::check::{Level, Report};

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

/// The findings under the server that they are about.
fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut subject = None;
    for finding in report.findings() {
        if subject != Some(finding.subject()) {
            if !finding.subject().is_empty() {
                let _ = writeln!(text, "{}", one_line(finding.subject()));
            }
            subject = Some(finding.subject());
        }
        let (level, code) = (finding.level(), finding.code());
        let _ = writeln!(text, "  {level:7}  {code:15}  {}", one_line(finding.sentence()));
        if !finding.remedy().is_empty() {
            let _ = writeln!(text, "  {:7}  {:15}  {}", "", "", one_line(finding.remedy()));
        }
    }
    text
}
