//! The source of randomness.

use std::fmt;

use rand::TryRng as _;

use crate::error::{Error, Result};

/// A source of randomness for session ids, secrets and other random values.
///
/// Default: the operating system's random number generator. You can set a different source with
/// [`Builder::entropy`](crate::Builder::entropy), for example one that fails, to test how your application
/// handles the failure.
pub trait Entropy: fmt::Debug + Send + Sync + 'static {
    /// Fills `buffer` with unpredictable bytes.
    ///
    /// # Errors
    ///
    /// Return [`Error::randomness`] if the source failed. The contents of `buffer` are then not used.
    fn fill(&self, buffer: &mut [u8]) -> Result<()>;
}

/// The operating system's random number generator.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        rand::rngs::SysRng.try_fill_bytes(buffer).map_err(Error::randomness)
    }
}
