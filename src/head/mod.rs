//! Decisions that depend only on a request's head. All of them are pure functions of borrowed text and bytes.

pub(crate) mod local_path;
pub(crate) mod origin;
pub(crate) mod query;
pub(crate) mod request;
