//! What a server is, and what it is to be.

/// The part of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Master,
    Replica,
    /// A node of a cluster, whichever of the two it is at the moment.
    Node,
    Sentinel,
}

/// What a server that takes commands says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Never [`Role::Node`]; `None` if that is hidden.
    pub(super) role: Option<Role>,
    /// How many bytes of the stream of writes it has made or received; `None` if that is hidden.
    pub(super) offset: Option<u64>,
}
