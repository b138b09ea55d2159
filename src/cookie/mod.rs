//! The session cookie: what we send, and how we find ours.

pub(crate) mod parse;
pub(crate) mod plain_http;
pub(crate) mod template;
