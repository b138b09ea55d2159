#![no_main]

use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;
use unsticky::{LocalPath, Next};
use url::Url;

/// Returns the URL to which a browser on this site resolves a text.
fn followed(text: &str) -> Url {
    let site = Url::parse("https://shop.example/sign-in?next=x").unwrap();
    let address = site.join(text).unwrap();
    assert_eq!(address.origin(), site.origin(), "{text}");
    address
}

/// Asserts that a local path leads to exactly that path on this site, even if a proxy or a router decodes it
/// on the way, and that a page receives it unchanged in the `next` parameter.
fn stays_here(path: &LocalPath) {
    let text = path.as_str();
    let (plain, query) =
        text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    let address = followed(text);
    assert!(percent_decode_str(address.path()).eq(percent_decode_str(plain)), "{text}");
    assert_eq!(address.query().is_some(), query.is_some(), "{text}");
    let mut decoded = plain.to_owned();
    for _ in 0..3 {
        decoded = percent_decode_str(&decoded).decode_utf8_lossy().into_owned();
        followed(&decoded);
    }
    for page in ["/sign-in", "/sign-in?a=b"] {
        let page = followed(&path.after(page));
        let next: Vec<_> = page.query_pairs().filter(|(name, _)| name == "next").collect();
        assert!(matches!(&next[..], [(_, value)] if value == text), "{text}");
        assert_eq!(Next::of_query(page.query().unwrap()).path(), Some(path));
    }
}

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Some(path) = LocalPath::parse(&text) {
        assert_eq!(path.as_str(), text);
        stays_here(&path);
    }
    for query in [&*text, &format!("next={text}")] {
        if let Some(path) = Next::of_query(query).path() {
            stays_here(path);
        }
    }
});
