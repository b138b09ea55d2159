//! What the documents say of the tests is true.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

use std::fs;
use std::path::Path;

/// Every test that the guarantees name is there.
#[test]
fn the_tests_that_guarantees_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guarantees = fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let rows = guarantees.lines().filter(|line| line.starts_with("| "));
    let mut checked = 0;
    for row in rows.filter(|row| !row.starts_with("| promise") && !row.starts_with("| fault")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 4, "{row}");
        for name in cells[1].split('`').skip(1).step_by(2).filter(|name| !name.starts_with('…')) {
            let name = name.trim_end_matches('*');
            if name.contains('/') {
                assert!(root.join(name).exists(), "{name}");
                continue;
            }
            let (path, test) = match name.rsplit_once("::") {
                Some((module, "tests")) => (format!("src/{}.rs", module.replace("::", "/")), ""),
                Some((file, test)) => (format!("tests/{file}.rs"), test),
                None if name.ends_with('_') => (format!("tests/{name}memory.rs"), ""),
                None => (format!("tests/{name}.rs"), ""),
            };
            let text = fs::read_to_string(root.join(&path)).unwrap_or_default();
            let nested = fs::read_to_string(root.join(path.replace(".rs", "/mod.rs")));
            let text = if text.is_empty() { nested.unwrap_or_default() } else { text };
            assert!(!text.is_empty() && text.contains(&format!("fn {test}")), "{name} in {path}");
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} tests");
}
