//! Draws bars in a terminal.

/// The maximum width of a picture, in columns. It fits a small terminal.
pub(crate) const WIDTH: usize = 60;

/// The characters with which bars are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Block characters. The last character of a bar is drawn in steps of one eighth.
    Blocks,
    Ascii,
}

impl Ink {
    /// Chooses ASCII if the user asked for it or if the terminal's locale is not UTF-8.
    pub(crate) fn new(ascii: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        // As in POSIX, the first variable that is set determines the locale.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .filter_map(variable)
            .find(|value| !value.is_empty());
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        let is_utf8 = locale.contains("utf-8") || locale.contains("utf8");
        if is_utf8 && !ascii { Self::Blocks } else { Self::Ascii }
    }

    /// Returns a bar that fills `part` of the width, from 0 to 1. A part above zero is always visible.
    fn bar(self, part: f64, width: usize) -> String {
        const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
        let steps = match self {
            Self::Blocks => 8,
            Self::Ascii => 1,
        };
        let part = if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
        let mut length = (part * (width * steps) as f64).round() as usize;
        if part > 0.0 {
            length = length.max(1);
        }
        match self {
            Self::Blocks => "█".repeat(length / 8) + EIGHTHS[length % 8],
            Self::Ascii => "#".repeat(length),
        }
    }
}

/// A bar with its name on the left and its number on the right.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) number: String,
}

/// Draws bars to a common scale, one per line. The longest bar takes up the full width.
pub(crate) fn bars(bars: &[Bar], ink: Ink) -> String {
    let longest = |text: fn(&Bar) -> &String| {
        bars.iter().map(|bar| text(bar).chars().count()).max().unwrap_or(0)
    };
    let (names, numbers) = (longest(|bar| &bar.name), longest(|bar| &bar.number));
    let width = WIDTH.saturating_sub(names + numbers + 4).max(1);
    let highest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let mut text = String::new();
    for bar in bars {
        let drawn = ink.bar(bar.value / highest, width);
        let line = format!(
            "{:names$}  {drawn}{:width$}  {:>numbers$}",
            bar.name,
            "",
            bar.number,
            width = width - drawn.chars().count(),
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, value: f64) -> Bar {
        Bar { name: name.to_owned(), value, number: format!("{value}/s") }
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let drawn =
            bars(&[bar("a", 100.0), bar("bc", 50.0), bar("d", 0.0), bar("e", 0.01)], Ink::Ascii);
        let lines: Vec<_> = drawn.lines().collect();
        let length = |line: &str| line.matches('#').count();
        let width = WIDTH - 2 - 6 - 4;
        assert_eq!(
            lines.iter().map(|line| length(line)).collect::<Vec<_>>(),
            [width, width / 2, 0, 1]
        );
        assert!(lines.iter().all(|line| line.chars().count() == WIDTH), "{drawn}");
        assert!(lines[1].starts_with("bc  ##") && lines[1].ends_with("   50/s"), "{drawn}");
        assert!(drawn.is_ascii());
    }

    #[test]
    fn blocks_have_eighths() {
        for (part, expected) in [
            (0.0, ""),
            (1.0, "██"),
            (0.5, "█"),
            (0.75, "█▌"),
            (0.0001, "▏"),
            (7.0 / 16.0, "▉"),
            (f64::NAN, ""),
            (2.0, "██"),
        ] {
            assert_eq!(Ink::Blocks.bar(part, 2), expected, "{part}");
        }
        // If no value is above zero, no division by zero occurs.
        assert!(!bars(&[bar("a", 0.0)], Ink::Blocks).contains('█'));
        assert_eq!(bars(&[], Ink::Blocks), "");
    }

    #[test]
    fn locale_decides_whether_there_are_blocks() {
        let ink = |ascii, set: &[(&str, &str)]| {
            Ink::new(ascii, |name| {
                set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(ink(false, &[("LANG", "de_DE.UTF-8")]), Ink::Blocks);
        assert_eq!(ink(false, &[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]), Ink::Blocks);
        assert_eq!(ink(true, &[("LANG", "de_DE.UTF-8")]), Ink::Ascii);
        assert_eq!(ink(false, &[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]), Ink::Ascii);
        assert_eq!(ink(false, &[]), Ink::Ascii);
    }
}
