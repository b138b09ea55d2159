//! The decision at the end of a request.

use criterion::Criterion;
use unsticky::internals::bench::decide_all;

pub fn plan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    group.bench_function("256 decisions", |bencher| bencher.iter(decide_all));
    group.finish();
}
