//! A field in a query or a form has the value that an independent decoder returns. The field counts as
//! present only if it occurs exactly once and is valid UTF-8.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unsticky::internals::fuzz::{field_decoded, field_encoded};

fuzz_target!(|data: &[u8]| {
    for name in ["next", "csrf_token", "a"] {
        let mut values = url::form_urlencoded::parse(data).filter(|(this, _)| this == name);
        let (first, second) = (values.next(), values.next());
        match (field_decoded(data, name), first) {
            (Some(value), Some((_, other))) => {
                assert_eq!(value, other);
                assert_eq!(second, None);
            }
            (Some(value), None) => panic!("{name} is not {value:?}"),
            // The other decoder replaces invalid UTF-8 instead of refusing it.
            (None, Some((_, value))) => assert!(second.is_some() || value.contains('\u{fffd}')),
            (None, None) => {}
        }
    }
    let text = String::from_utf8_lossy(data);
    let encoded = field_encoded("next", &text);
    assert_eq!(field_decoded(encoded.as_bytes(), "next").as_deref(), Some(&*text));
    let pairs: Vec<_> = url::form_urlencoded::parse(encoded.as_bytes()).collect();
    assert_eq!(pairs, [("next".into(), text)]);
});
