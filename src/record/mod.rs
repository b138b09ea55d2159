//! The data that is stored for a session, and the decisions based on it. The code is pure: it reads no clock,
//! does no I/O and is not async.

pub(crate) mod authority;
pub(crate) mod changes;
pub(crate) mod codec;
pub(crate) mod delta;
pub(crate) mod envelope;
pub(crate) mod flash;
pub(crate) mod header;
pub(crate) mod json;
pub(crate) mod key;
pub(crate) mod lifetime;
pub(crate) mod loaded;
pub(crate) mod plan;
pub(crate) mod sign_in;
pub(crate) mod small_map;
pub(crate) mod tag;
pub(crate) mod token;
pub(crate) mod transaction;
pub(crate) mod values;
