//! Compares the formulas in docs/scaling.md with the library. Requests arrive at random, the clock is a
//! test double, and the test counts the commands that reach the store.

#![cfg(all(feature = "memory", feature = "testing"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use support::stand::Backend;
use unsticky::testing::{Verb, random_key};
use unsticky::{Key, Lifetime, Session};

const IDLE: Duration = Duration::from_secs(30 * 60);
const COUNT: Key<u64> = Key::new("count");

/// Returns the number of writes per second for one active session. Its requests arrive at random at
/// this average rate, and this share of them changes a value.
async fn writes(threshold: Duration, rate: f64, share: f64) -> f64 {
    const REQUESTS: usize = 20_000;
    let lifetime = Lifetime::new(IDLE, Duration::from_secs(10 * 365 * 24 * 3600));
    let lifetime = lifetime.refresh_after(threshold);
    let stand = Backend::memory().stand_with(|builder| builder.lifetime(lifetime));
    let arrive = async |session: Session| session.sign_in("account-4711");
    let cookie = stand.visit("", arrive).await.cookie();
    assert!(!cookie.is_empty());
    let mut random = fastrand::Rng::with_seed(4711);
    let mut elapsed = 0.0;
    for _ in 0..REQUESTS {
        let pause = -(1.0 - random.f64()).ln() / rate;
        elapsed += pause;
        stand.clock.advance(Duration::from_secs_f64(pause));
        let changes = random.f64() < share;
        let handler = async |session: Session| {
            if changes { session.update(COUNT, |count| *count += 1) } else { Ok(()) }
        };
        stand.visit(&cookie, handler).await.ok();
    }
    let replaces =
        stand.spy.commands().iter().filter(|command| command.verb == Verb::Replace).count();
    replaces as f64 / elapsed
}

#[tokio::test]
async fn refresh_rate_matches_documented_formula() {
    for (threshold, every) in [(10, 30.0), (60, 30.0), (60, 1.0), (300, 30.0), (900, 20.0)] {
        let measured = writes(Duration::from_secs(threshold), 1.0 / every, 0.0).await;
        let formula = 1.0 / (threshold as f64 + every);
        let ratio = measured / formula;
        assert!((0.93..1.07).contains(&ratio), "{threshold} s, 1 in {every} s: {ratio:.3}");
    }
}

#[tokio::test]
async fn writing_request_counts_as_refresh() {
    let (every, share) = (30.0, 0.07);
    let measured = writes(Duration::from_secs(60), 1.0 / every, share).await;
    let bound = share / every + 1.0 / (60.0 + every);
    assert!(measured < bound, "{measured} is over {bound}");
    assert!(measured > bound / 1.5, "{measured} is far below {bound}");
}

/// Returns how far the fullest server is above the average, in standard deviations of a random
/// distribution.
fn unevenness(servers: &[u64]) -> f64 {
    let average = servers.iter().sum::<u64>() as f64 / servers.len() as f64;
    let fullest = servers.iter().copied().max().unwrap() as f64;
    (fullest - average) / average.sqrt()
}

/// Returns the Redis Cluster slot of a key: the CRC-16/XMODEM of the whole key, because it has no
/// braces.
fn slot(key: &str) -> u16 {
    assert!(!key.contains('{'));
    let crc = key.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
        })
    });
    crc % 16_384
}

#[test]
fn keys_spread_evenly_over_cluster_masters() {
    // The check value for this algorithm in the cluster specification.
    assert_eq!(slot("123456789"), 0x31c3);
    let mut masters = [0; 64];
    for _ in 0..200_000 {
        masters[usize::from(slot(random_key().as_str())) / 256] += 1;
    }
    assert!(unevenness(&masters) < 5.0, "{}", unevenness(&masters));
}
