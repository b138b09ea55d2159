//! Finds the tokens in the `Cookie` headers of a request.

use crate::record::token::{Token, digest_under};

/// The distinct well-formed tokens of a request.
///
/// A browser sends several cookies with one name if they were set with different domains or paths. At most three
/// tokens are kept: a larger number indicates an attack or a defect, and each token costs a store command.
#[derive(Debug, Default)]
pub(crate) struct Presented {
    tokens: [Option<Token>; Self::MAX],
    named: bool,
}

impl Presented {
    const MAX: usize = 3;

    /// Parses the `Cookie` header fields of a request. There may be several (RFC 9113 8.2.3).
    ///
    /// `name_and_equals` is `name=`. Names are compared exactly.
    pub(crate) fn parse<'a>(
        headers: impl IntoIterator<Item = &'a [u8]>,
        name_and_equals: &[u8],
    ) -> Self {
        let mut presented = Self::default();
        for header in headers {
            for pair in header.split(|byte| *byte == b';') {
                if let Some(value) = pair.trim_ascii().strip_prefix(name_and_equals) {
                    presented.named = true;
                    presented.add(unquoted(value));
                }
            }
        }
        presented
    }

    fn add(&mut self, value: &[u8]) {
        let Some(token) = Token::parse(value) else { return };
        for slot in &mut self.tokens {
            match slot {
                Some(known) if *known == token => return,
                Some(_) => {}
                None => {
                    *slot = Some(token);
                    return;
                }
            }
        }
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.tokens.iter().flatten().copied()
    }

    /// Returns a digest of all these tokens, or `None` if there are none. The digest does not depend on the
    /// order of the tokens, because browsers may send them in any order. The tokens cannot be computed from it.
    pub(crate) fn digest(&self, cookie_name: &str, purpose: &str) -> Option<[u8; 32]> {
        let encoded = |token: Token| {
            let mut text = String::new();
            token.encode_into(&mut text);
            text
        };
        let mut texts: Vec<_> = self.tokens().map(encoded).collect();
        texts.sort_unstable();
        let content = format!("{purpose}:{}", texts.concat());
        (!texts.is_empty()).then(|| digest_under(cookie_name, content.as_bytes()))
    }

    /// Returns whether the request has a cookie with the session cookie's name, well-formed or not.
    pub(crate) fn is_named(&self) -> bool {
        self.named
    }

    pub(crate) fn has_tokens(&self) -> bool {
        self.tokens[0].is_some()
    }
}

/// Removes the double quotes that RFC 6265 allows around a value.
fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(letter: char) -> String {
        format!("{}A", String::from(letter).repeat(42))
    }

    fn found(headers: &[&str]) -> String {
        let headers = headers.iter().map(|header| header.as_bytes());
        let presented = Presented::parse(headers, b"id=");
        let letters = presented.tokens().map(|token| {
            let mut text = String::new();
            token.encode_into(&mut text);
            text.remove(0)
        });
        letters.collect()
    }

    #[test]
    fn session_cookie_is_found_among_others() {
        let (a, b) = (text('a'), text('b'));
        for (header, expected) in [
            (format!("id={a}"), "a"),
            (format!("x=1; id={a}; y=2"), "a"),
            (format!("x=1;id={a};y=2"), "a"),
            (format!("\t id={a} \t"), "a"),
            (format!("id=\"{a}\""), "a"),
            (format!("id={a}; id={a}"), "a"),
            (format!("id={a}; id={b}"), "ab"),
            (format!("id=garbage; id={b}; id="), "b"),
            (format!("ID={a}"), ""),
            (format!("xid={a}"), ""),
            (format!("__Host-id={a}"), ""),
            (format!("id ={a}"), ""),
            (format!("id=\"{a}"), ""),
            (format!("id={a}x"), ""),
            ("id".to_owned(), ""),
            (String::new(), ""),
            (";;=;".to_owned(), ""),
        ] {
            assert_eq!(found(&[&header]), expected, "{header}");
        }
    }

    #[test]
    fn digest_covers_all_tokens_in_any_order() {
        let (a, b) = (text('a'), text('b'));
        let digest = |header: &str, name: &str, purpose: &str| {
            Presented::parse([header.as_bytes()], b"id=").digest(name, purpose)
        };
        let of_a = digest(&format!("id={a}"), "id", "p");
        let of_both = digest(&format!("id={a}; id={b}"), "id", "p");
        assert_eq!(of_both, digest(&format!("id={b}; x=1; id={a}"), "id", "p"));
        let others = [
            digest(&format!("id={b}"), "id", "p"),
            digest(&format!("id={a}"), "other", "p"),
            digest(&format!("id={a}"), "id", "q"),
            of_both,
        ];
        assert!(of_a.is_some() && others.iter().all(|other| other.is_some() && *other != of_a));
        assert_eq!((digest("", "id", "p"), digest("id=x", "id", "p")), (None, None));
    }

    #[test]
    fn several_header_fields_are_read() {
        let (a, b) = (text('a'), text('b'));
        assert_eq!(found(&["x=1", &format!("id={a}"), &format!("id={b}")]), "ab");
        assert_eq!(found(&[]), "");
    }

    #[test]
    fn at_most_three_distinct_tokens_are_tried() {
        let cookies = ['a', 'a', 'b', 'c', 'd', 'e'].map(|letter| format!("id={}", text(letter)));
        assert_eq!(found(&[&cookies.join("; ")]), "abc");
    }

    #[test]
    fn malformed_session_cookie_is_named_but_has_no_token() {
        let presented = Presented::parse([&b"id=garbage"[..]], b"id=");
        assert!(presented.is_named() && !presented.has_tokens());
        let presented = Presented::parse([&b"x=1"[..]], b"id=");
        assert!(!presented.is_named());
    }

    proptest! {
        #[test]
        fn arbitrary_headers_yield_at_most_three_tokens(
            headers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4)
        ) {
            let presented = Presented::parse(headers.iter().map(Vec::as_slice), b"id=");
            prop_assert!(presented.tokens().count() <= 3);
        }

        #[test]
        fn session_cookie_is_found_between_arbitrary_text(
            before in "[^;]{0,80}", after in "[^;]{0,80}"
        ) {
            prop_assume!(!before.trim().starts_with("id=") && !after.trim().starts_with("id="));
            let header = format!("{before};id={};{after}", text('a'));
            prop_assert_eq!(found(&[&header]), "a");
        }
    }
}
