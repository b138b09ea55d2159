//! What a server is to be.

/// The part of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Master,
    Replica,
    /// A node of a cluster, whichever of the two it is at the moment.
    Node,
    Sentinel,
}
