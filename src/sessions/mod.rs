//! What an application configures and administers.

pub(crate) mod builder;
mod check;
pub(crate) mod describe;
pub(crate) mod detached;
pub(crate) mod directory;
pub(crate) mod listed;
pub(crate) mod open;
