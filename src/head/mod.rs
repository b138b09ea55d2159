//! What is decided by a request's head alone: pure, over borrowed text and bytes.

pub(crate) mod local_path;
pub(crate) mod origin;
pub(crate) mod query;
pub(crate) mod request;
