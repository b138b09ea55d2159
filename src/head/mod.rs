//! Decisions that depend only on the head of a request: pure functions of borrowed text and bytes.

pub(crate) mod local_path;
pub(crate) mod origin;
pub(crate) mod query;
pub(crate) mod request;
