//! Where randomness comes from.

use std::fmt;

use rand::TryRng as _;

use crate::error::{Error, Result};

/// Where ids and secrets come from.
///
/// The operating system by default; replaceable so that a failing source can be tested.
pub trait Entropy: fmt::Debug + Send + Sync + 'static {
    /// Fills `buffer` with unpredictable bytes.
    ///
    /// # Errors
    ///
    /// [`Error::randomness`] where none can be had; `buffer` is not used then.
    fn fill(&self, buffer: &mut [u8]) -> Result<()>;
}

/// The operating system's generator.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        rand::rngs::SysRng.try_fill_bytes(buffer).map_err(Error::randomness)
    }
}
