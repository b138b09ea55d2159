//! Chooses the server for a key: rendezvous hashing with a hash that never changes.

use sha2::{Digest as _, Sha256};

/// Returns the index of the server with the highest score. If two scores are equal, the greater address wins.
pub(super) fn owner<'a>(servers: impl Iterator<Item = &'a str>, key: &str) -> usize {
    servers
        .enumerate()
        .max_by_key(|(_, server)| (score(server, key), *server))
        .map_or(0, |(place, _)| place)
}

fn score(server: &str, key: &str) -> u64 {
    let digest = Sha256::new().chain_update(server).chain_update([0]).chain_update(key).finalize();
    digest.iter().take(8).fold(0, |score, byte| score << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: [&str; 3] = ["a:11211", "b:11211", "[::1]:11212"];

    // All processes in a deployment must send a key to the same server, so these values never change.
    #[test]
    fn routing_hash_matches_documentation() {
        let golden: &[(&str, &str, u64)] = &[
            ("a:11211", "app:0:s:0", 0x45c436bbee28bdb9),
            ("b:11211", "app:0:s:0", 0xbc6635a8b750d426),
            ("[::1]:11212", "app:0:s:1", 0x1bc9bd5c149547c5),
            ("cache-1.internal:11211", "app:0:d:AAAAAAAAAAAAAAAAAAAAAA", 0xff1dd21221502e37),
        ];
        for (server, key, expected) in golden {
            assert_eq!(score(server, key), *expected, "{server} {key}");
        }
        let owners: Vec<usize> =
            (0..12).map(|n| owner(SERVERS.into_iter(), &format!("app:0:s:{n}"))).collect();
        assert_eq!(owners, [1, 1, 0, 1, 1, 1, 2, 2, 2, 2, 0, 0]);
    }

    #[test]
    fn server_order_does_not_affect_routing() {
        for n in 0..1000 {
            let key = format!("key-{n}");
            let forth = SERVERS[owner(SERVERS.into_iter(), &key)];
            let back = SERVERS[2 - owner(SERVERS.into_iter().rev(), &key)];
            assert_eq!(forth, back);
        }
    }

    #[test]
    fn keys_spread_evenly_and_removed_server_moves_only_its_own() {
        let mut counts = [0; 3];
        for n in 0..30_000 {
            let key = format!("key-{n}");
            let before = owner(SERVERS.into_iter(), &key);
            counts[before] += 1;
            let after = owner(SERVERS.into_iter().take(2), &key);
            assert!(before == 2 || before == after);
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }
}
