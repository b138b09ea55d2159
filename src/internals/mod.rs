//! The private parts that the `unsticky` command, the fuzz targets and the benchmarks use. Nothing here is
//! part of the public interface, and anything may change without notice.

#[cfg(feature = "testing")]
pub mod bench;
#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(feature = "cli")]
pub mod operate;
#[cfg(feature = "cli")]
pub mod survey;
