//! The role that a server is expected to have.

use crate::check::Level;

/// The expected role of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Master,
    Replica,
    /// A cluster node that serves slots.
    Node,
    /// A replica in a cluster. It may have become a master since `CLUSTER SLOTS` was read.
    SpareNode,
    Sentinel,
}

impl Role {
    /// Returns whether sessions work without this server as long as nothing else fails.
    pub(super) fn is_spare(self) -> bool {
        matches!(self, Self::Replica | Self::SpareNode | Self::Sentinel)
    }

    /// Returns the highest level of a finding about a server in this role.
    pub(super) fn highest_level(self) -> Level {
        if self.is_spare() { Level::Warning } else { Level::Error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;

    #[test]
    fn findings_about_a_spare_server_are_warnings_at_most() {
        for (role, expected) in [
            (Role::Master, Level::Error),
            (Role::Node, Level::Error),
            (Role::Replica, Level::Warning),
            (Role::SpareNode, Level::Warning),
            (Role::Sentinel, Level::Warning),
        ] {
            let of = |finding: Finding| finding.at_most(role.highest_level()).level();
            assert_eq!(of(Finding::error("unreachable", "", "")), expected, "{role:?}");
            assert_eq!(of(Finding::fine("version", "")), Level::Fine);
        }
    }
}
