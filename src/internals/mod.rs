//! What the command, the fuzz targets and the benchmarks reach of the parts that are not public. Nothing here is
//! part of the interface: it changes without notice.

#[cfg(feature = "testing")]
pub mod bench;
#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(feature = "cli")]
pub mod operate;
#[cfg(feature = "cli")]
pub mod survey;
