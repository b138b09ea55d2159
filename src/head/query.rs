//! Reads and writes queries and URL-encoded forms.

use std::borrow::Cow;

/// Returns the value of a field in a query or in a URL-encoded form. Returns `None` if the field is missing,
/// is not UTF-8, or occurs more than once, in which case another parser might use a different value (ASVS 5.0
/// 15.3.7).
pub(crate) fn field(text: &[u8], name: &str) -> Option<String> {
    let mut values = text.split(|byte| *byte == b'&').filter_map(|pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let is_named = *form_decoded(halves.next()?) == *name.as_bytes();
        is_named.then(|| halves.next().unwrap_or_default())
    });
    let only = values.next()?;
    if values.next().is_some() {
        return None;
    }
    String::from_utf8(form_decoded(only)).ok()
}

fn form_decoded(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<_> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decoded(&spaced).into_owned()
}

/// Decodes each `%` that is followed by two hexadecimal digits, and leaves every other `%` as it is. Returns
/// the borrowed text if there is nothing to decode.
pub(crate) fn percent_decoded(text: &[u8]) -> Cow<'_, [u8]> {
    let digit = |place: usize| char::from(*text.get(place)?).to_digit(16);
    let mut decoded = Vec::new();
    let (mut place, mut copied) = (0, 0);
    while place < text.len() {
        let byte = (text[place] == b'%').then(|| digit(place + 1).zip(digit(place + 2))).flatten();
        match byte.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) => {
                decoded.extend_from_slice(&text[copied..place]);
                decoded.push(byte);
                place += 3;
                copied = place;
            }
            None => place += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    decoded.extend_from_slice(&text[copied..]);
    Cow::Owned(decoded)
}

/// Encodes a value for use in a query, and appends it to `into`. The encoded value contains no character that
/// has a special meaning in a query or in an HTML attribute.
pub(crate) fn encode_value(text: &str, into: &mut String) {
    const HEX: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];

    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.extend(['%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn field_is_found_once_and_decoded() {
        for (text, expected) in [
            ("next=/a", Some("/a")),
            ("a=1&next=%2Fa%3Fb%3D1&c", Some("/a?b=1")),
            ("next=a+b%2B", Some("a b+")),
            ("%6eext=x", Some("x")),
            ("next", Some("")),
            ("next=", Some("")),
            ("next=a=b", Some("a=b")),
            ("next=%zz%4", Some("%zz%4")),
            ("next=%FF", None),
            ("next=a&next=b", None),
            ("next=a&%6Eext=a", None),
            ("nexts=a&xnext=b&NEXT=c", None),
            ("", None),
            ("&&=&", None),
        ] {
            assert_eq!(field(text.as_bytes(), "next").as_deref(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn encoded_value_is_read_back(text in ".*") {
            let mut query = "a=b&next=".to_owned();
            encode_value(&text, &mut query);
            prop_assert!(query.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~/%&=".contains(&byte)));
            prop_assert_eq!(field(query.as_bytes(), "next"), Some(text));
        }
    }
}
