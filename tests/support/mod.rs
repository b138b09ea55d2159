//! Code that the integration tests share. Each test file uses part of it.

#![allow(dead_code, unreachable_pub, unused_imports, unused_macros, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

#[cfg(all(feature = "axum", feature = "actix"))]
pub mod app;
pub mod backend;
#[cfg(feature = "cli")]
pub mod command;
pub mod fake;
#[cfg(feature = "testing")]
pub mod faults;
#[cfg(feature = "testing")]
pub mod interceptor;
#[cfg(feature = "testing")]
pub mod late;
#[cfg(feature = "testing")]
pub mod load;
pub mod proxy;
pub mod servers;
#[cfg(feature = "testing")]
pub mod stand;
pub mod stopwatch;
#[cfg(feature = "cli")]
pub mod terminal;
pub mod topologies;
pub mod visit;

/// Returns how many times longer than usual the randomized tests run.
pub fn length() -> u8 {
    match std::env::var_os("UNSTICKY_LONG") {
        Some(value) if value != "0" => 10,
        _ => 1,
    }
}

/// Runs `at_once` histories at a time. Stops at the first violation. Returns the sum of the tallies, and the
/// violation if there was one.
pub async fn until_violation<T: Default>(
    histories: impl Iterator<Item = impl Future<Output = (T, Option<String>)>>,
    at_once: usize,
    add: impl Fn(&mut T, &T),
) -> (T, Option<String>) {
    use futures_util::StreamExt as _;

    let mut histories = futures_util::stream::iter(histories).buffer_unordered(at_once);
    let mut total = T::default();
    while let Some((tally, violation)) = histories.next().await {
        add(&mut total, &tally);
        if violation.is_some() {
            return (total, violation);
        }
    }
    (total, None)
}

/// Returns a runtime that runs only on the test's own thread.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Checks that while one runtime is blocked with this many loads in progress, another runtime can load from
/// the same store.
#[cfg(feature = "testing")]
pub fn blocked_runtime_delays_no_other_one(store: impl unsticky::Store + Clone, loads: usize) {
    use std::time::{Duration, Instant};

    use unsticky::testing::{random_key, random_record};

    const BLOCKED: Duration = Duration::from_secs(2);
    let key = random_key();
    let (say, blocked) = std::sync::mpsc::channel();
    let blocker = {
        let (store, key) = (store.clone(), key.clone());
        std::thread::spawn(move || {
            runtime().block_on(async {
                let created = store.create(&key, random_record(100), 300 * BLOCKED).await;
                assert!(matches!(created.unwrap(), unsticky::store::Created::Created(_)));
                let load = || {
                    let (store, key) = (store.clone(), key.clone());
                    tokio::spawn(async move { store.load(&key).await })
                };
                let loads: Vec<_> = (0..loads).map(|_| load()).collect();
                tokio::task::yield_now().await;
                say.send(()).unwrap();
                std::thread::sleep(BLOCKED);
                for load in loads {
                    // The load may have timed out.
                    let _ = load.await.unwrap();
                }
            });
        })
    };
    blocked.recv().unwrap();
    let begun = Instant::now();
    runtime().block_on(async {
        let mut loads = 0;
        while begun.elapsed() < BLOCKED * 3 / 4 {
            assert!(store.load(&key).await.unwrap().is_some());
            loads += 1;
        }
        assert!(loads > 10, "{loads}");
    });
    blocker.join().unwrap();
}
