//! Decodes, reads and encodes records.

use std::hint::black_box;

use criterion::Criterion;
use unsticky::internals::bench::{Decoded, record};

pub fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for (values, bytes) in [(1, 1024), (10, 20), (10, 100), (100, 80)] {
        let stored = record(values, bytes);
        let name = format!("{values} values of {bytes} bytes");
        group.bench_function(format!("decode/{name}"), |bencher| {
            bencher.iter(|| Decoded::new(black_box(&stored).clone()).unwrap());
        });
        let decoded = Decoded::new(stored).unwrap();
        group.bench_function(format!("find/{name}"), |bencher| {
            bencher.iter(|| decoded.get(black_box("key-000")));
        });
        group.bench_function(format!("encode/{name}"), |bencher| {
            bencher.iter(|| black_box(&decoded).encode());
        });
    }
    group.finish();
}
