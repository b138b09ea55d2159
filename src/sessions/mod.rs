//! The configuration of an application, and the administration of its sessions.

pub(crate) mod builder;
mod check;
pub(crate) mod describe;
pub(crate) mod detached;
pub(crate) mod directory;
pub(crate) mod listed;
pub(crate) mod open;
