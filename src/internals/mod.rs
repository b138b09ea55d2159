//! What the fuzz targets, the benchmarks and the command reach of the parts that are not public. Nothing
//! here is part of the interface: it changes without notice.

#[cfg(feature = "testing")]
pub mod bench;
#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(feature = "cli")]
pub mod survey;
