//! Draws charts with groups of bars, as SVG that is readable on both light and dark pages.

use std::fmt::Write as _;

use crate::results::Record;

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 390.0;
/// The area for the bars: left, right, top and bottom.
const PLOT: [f64; 4] = [52.0, 864.0, 84.0, 344.0];

/// The CSS classes of the bars in each group, in order. The last one is the baseline.
const KINDS: [&str; 4] = ["own", "peer", "peer2", "hand"];

const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}\
.title{font-size:16px;font-weight:600}.small{font-size:11px}.end{text-anchor:end}.mid{text-anchor:middle}\
.page{fill:#fff;stroke:#d0d7de}.grid{stroke:#d8dee4}.range{stroke:#1f2328;stroke-width:1.2}\
.own{fill:#0969da}.peer{fill:#d4772b}.peer2{fill:#a371c7}.hand{fill:#9aa4ae}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.page{fill:#0d1117;stroke:#30363d}.grid{stroke:#30363d}\
.range{stroke:#e6edf3}.own{fill:#4493f8}.peer{fill:#e3893d}.peer2{fill:#b083d6}.hand{fill:#6e7681}}";

/// Draws one group per name, with a bar for each of `series`. A name may have two lines. The height of a bar
/// is the median of the rounds. A line over the bar shows the middle half of the rounds, with an arrowhead if
/// the line continues beyond the chart.
pub fn bars(
    title: &str,
    groups: &[String],
    series: &[String],
    value: impl Fn(usize, usize) -> Record,
) -> String {
    let [left, right, top, bottom] = PLOT;
    let all: Vec<Vec<Record>> = (0..groups.len())
        .map(|group| (0..series.len()).map(|one| value(group, one)).collect())
        .collect();
    let reach = |record: &Record| record.quantile(0.75).min(1.5 * record.median());
    let most = all.iter().flatten().map(reach).fold(0.0, f64::max) * 1.04;
    let height = |value: f64| (value.min(most) / most) * (bottom - top);
    let step = step(most);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"16\" y=\"28\">{title}</text>\n",
        WIDTH - 1.0,
        HEIGHT - 1.0,
    );
    let mut x = 16.0;
    for (one, name) in series.iter().enumerate() {
        let kind = kind(one, series.len());
        let _ =
            writeln!(svg, "<rect class=\"{kind}\" x=\"{x}\" y=\"46\" width=\"12\" height=\"12\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"57\">{name}</text>", x + 18.0);
        x += 44.0 + 6.6 * name.len() as f64;
    }
    let _ = writeln!(
        svg,
        "<text class=\"small end\" x=\"{right}\" y=\"57\">line: middle half of the rounds</text>"
    );
    for line in 0..=(most / step) as usize {
        let (value, y) = (line as f64 * step, bottom - height(line as f64 * step));
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/>");
        let value = if step < 1.0 { format!("{value:.2}") } else { format!("{value}") };
        let _ = writeln!(
            svg,
            "<text class=\"small end\" x=\"{}\" y=\"{:.1}\">{value}</text>",
            left - 6.0,
            y + 4.0
        );
    }
    let group_width = (right - left) / groups.len() as f64;
    let bar_width = (group_width * 0.82 / series.len() as f64).min(30.0);
    for (group, (name, records)) in groups.iter().zip(&all).enumerate() {
        let middle = left + group_width * (group as f64 + 0.5);
        for (line, text) in name.lines().enumerate() {
            let y = bottom + 20.0 + 16.0 * line as f64;
            let _ = writeln!(svg, "<text class=\"mid\" x=\"{middle:.1}\" y=\"{y}\">{text}</text>");
        }
        for (one, record) in records.iter().enumerate() {
            let x = middle + bar_width * (one as f64 - series.len() as f64 / 2.0);
            let [low, median, high] = [0.25, 0.5, 0.75].map(|part| height(record.quantile(part)));
            let _ = writeln!(
                svg,
                "<rect class=\"{}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{median:.1}\"/>",
                kind(one, series.len()),
                bottom - median,
                bar_width - 2.0,
            );
            // A shorter line would not be visible.
            if high - low > 2.0 {
                let centre = x + bar_width / 2.0 - 1.0;
                let _ = writeln!(
                    svg,
                    "<path class=\"range\" d=\"M{centre:.1} {:.1}V{:.1}\"/>",
                    bottom - low,
                    bottom - high
                );
                if record.quantile(0.75) > most {
                    // The line continues beyond the chart.
                    let _ = writeln!(
                        svg,
                        "<path class=\"range\" d=\"M{:.1} {:.1}h6l-3 -6z\"/>",
                        centre - 3.0,
                        bottom - high
                    );
                }
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn kind(one: usize, series: usize) -> &'static str {
    if one + 1 == series { KINDS[KINDS.len() - 1] } else { KINDS[one] }
}

/// Returns the distance between grid lines, so that there are at most eight across the chart.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 8.0).log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| most / step <= 8.0)
        .unwrap_or(most)
}
