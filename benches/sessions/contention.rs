//! Concurrent requests that write to one session: either all to the same value, or each to a value of its
//! own.

use criterion::{Criterion, Throughput};
use unsticky::{Key, Session};

use crate::backend::{Backend, group, runtime, timed};
use crate::request::{arrive, increment, request};

pub fn contention(criterion: &mut Criterion) {
    let runtime = runtime();
    for backend in Backend::all() {
        let sessions = backend.sessions();
        let mut group = group(criterion, &format!("contention/{}", backend.name));
        for callers in [1, 8, 32] {
            let cookie = runtime.block_on(arrive(&sessions, 256));
            group.throughput(Throughput::Elements(callers));
            group.bench_function(format!("one value/{callers} callers"), |bencher| {
                bencher.iter_custom(|rounds| {
                    timed(&runtime, callers, rounds, |_, rounds| {
                        let (sessions, cookie) = (sessions.clone(), cookie.clone());
                        async move {
                            for _ in 0..rounds {
                                increment(&sessions, &cookie).await;
                            }
                        }
                    })
                });
            });
            group.bench_function(format!("a value each/{callers} callers"), |bencher| {
                bencher.iter_custom(|rounds| {
                    timed(&runtime, callers, rounds, |caller, rounds| {
                        let (sessions, cookie) = (sessions.clone(), cookie.clone());
                        let key: unsticky::RuntimeKey<u64> = Key::runtime(caller.to_string());
                        async move {
                            for _ in 0..rounds {
                                let write = async |session: Session| {
                                    session.update(&key, |count| *count += 1)
                                };
                                request(&sessions, &cookie, write).await;
                            }
                        }
                    })
                });
            });
        }
        group.finish();
    }
}
