//! The session cookie: its attributes, and how it is found in requests.

pub(crate) mod parse;
pub(crate) mod plain_http;
pub(crate) mod template;
