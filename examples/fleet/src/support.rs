//! Servers that the tests of the library start too.

#[path = "../../../tests/support/servers.rs"]
pub(crate) mod servers;
#[path = "../../../tests/support/topologies.rs"]
pub(crate) mod topologies;
