//! Numbers in prose, and how they are rounded.

/// A number as a document shows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Number {
    pub(crate) value: f64,
    /// Half of the last digit shown.
    pub(crate) tolerance: f64,
    /// The position of the number in the text.
    pub(crate) range: std::ops::Range<usize>,
}

impl Number {
    /// Returns whether this number is the value, rounded to the digits shown.
    pub(crate) fn shows(&self, value: f64) -> bool {
        (self.value - value).abs() <= self.tolerance * (1.0 + 1e-9)
    }
}

/// Returns the numbers in a text, but not versions such as `7.0.15` or numbers in names such as
/// `SHA-256`.
pub(crate) fn numbers(text: &str) -> Vec<Number> {
    let mut all = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find(|c: char| c.is_ascii_digit()) {
        let start = from + at;
        let end = end_of_number(&text[start..]) + start;
        from = end;
        let before = text[..start].chars().rev();
        let is_in_name = match before.clone().next() {
            Some('-') => before.clone().nth(1).is_some_and(char::is_alphanumeric),
            // Part of a date, a time or another number's decimals.
            Some(c) => c.is_alphabetic() || "_.:/#".contains(c),
            None => false,
        };
        let after = text[end..].chars().next();
        let is_version = text[start..end].matches('.').count() > 1;
        let goes_on = after.is_some_and(|c| ":_/-".contains(c))
            && text[end + 1..].starts_with(|c: char| c.is_ascii_digit());
        if is_in_name || is_version || goes_on {
            from += text[end..].find(char::is_whitespace).unwrap_or(text.len() - end);
        } else if let Some(number) = number(&text[start..end], start) {
            all.push(number);
        }
    }
    all
}

/// Returns where the number at the start of the text ends: after groups of three digits, separated by a
/// space or a comma, and after any decimals.
fn end_of_number(text: &str) -> usize {
    let digits = |from: usize| {
        text[from..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |at| from + at)
    };
    let mut end = digits(0);
    loop {
        let rest = &text[end..];
        let separator = rest.chars().next().filter(|c| " ,.\u{a0}\u{202f}".contains(*c));
        let Some(separator) = separator else { return end };
        let next = end + separator.len_utf8();
        let after = digits(next);
        let is_group = after - next == 3 && (end <= 3 || separator != '.');
        if after > next && (separator == '.' || is_group && text[..end].len() < 16) {
            end = after;
        } else {
            return end;
        }
    }
}

fn number(text: &str, start: usize) -> Option<Number> {
    let digits: String = text.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
    let value: f64 = digits.parse().ok()?;
    let tolerance = if let Some((_, decimals)) = digits.split_once('.') {
        0.5 * 10_f64.powi(-i32::try_from(decimals.len()).ok()?)
    } else {
        // In a number that ends in zeros, at least two digits are significant.
        let zeros = digits.len() - digits.trim_end_matches('0').len();
        let rounded = zeros.min(digits.len().saturating_sub(2));
        0.5 * 10_f64.powi(i32::try_from(rounded).ok()?)
    };
    Some(Number { value, tolerance, range: start..start + text.len() })
}

/// Returns the value of an expression with sums, differences, products and quotients.
pub(crate) fn calculated(expression: &str) -> Option<f64> {
    let text: String = expression.chars().filter(|c| !c.is_whitespace()).collect();
    let mut rest = text.as_str();
    let value = sum(&mut rest)?;
    rest.is_empty().then_some(value)
}

fn sum(rest: &mut &str) -> Option<f64> {
    let mut value = product(rest)?;
    while let Some(sign) = rest.chars().next().filter(|c| "+-".contains(*c)) {
        *rest = &rest[1..];
        let next = product(rest)?;
        value += if sign == '+' { next } else { -next };
    }
    Some(value)
}

fn product(rest: &mut &str) -> Option<f64> {
    let mut value = factor(rest)?;
    while let Some(sign) = rest.chars().next().filter(|c| "*/".contains(*c)) {
        *rest = &rest[1..];
        let next = factor(rest)?;
        value = if sign == '*' { value * next } else { value / next };
    }
    Some(value)
}

fn factor(rest: &mut &str) -> Option<f64> {
    if let Some(inner) = rest.strip_prefix('(') {
        *rest = inner;
        let value = sum(rest)?;
        *rest = rest.strip_prefix(')')?;
        return Some(value);
    }
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let value = rest[..end].parse().ok()?;
    *rest = &rest[end..];
    Some(value)
}

#[test]
fn numbers_are_found_with_their_rounding() {
    let found = |text: &str| -> Vec<(f64, f64)> {
        numbers(text).iter().map(|number| (number.value, number.tolerance)).collect()
    };
    assert_eq!(found("Redis 7.0.15, SHA-256, v2 and 2026-11-28 at 10:30"), []);
    assert_eq!(found("0 of 16230 items"), [(0.0, 0.5), (16230.0, 5.0)]);
    assert_eq!(found("8 448 or 8,448 or 1.15."), [(8448.0, 0.5), (8448.0, 0.5), (1.15, 0.005)]);
    assert_eq!(found("7, 160"), [(7.0, 0.5), (160.0, 5.0)]);
    assert_eq!(found("0.02 to 0.3 s, 90 000"), [(0.02, 0.005), (0.3, 0.05), (90_000.0, 500.0)]);
    assert_eq!(found("1–2"), [(1.0, 0.5), (2.0, 0.5)]);
}

#[test]
fn sums_are_calculated() {
    assert_eq!(calculated("10 + 2 * (3 - 1) / 4"), Some(11.0));
    assert_eq!(calculated("10 +"), None);
}
