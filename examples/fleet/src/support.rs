//! Servers that the library's tests also start.

#[path = "../../../tests/support/servers.rs"]
pub(crate) mod servers;
#[path = "../../../tests/support/topologies.rs"]
pub(crate) mod topologies;
