//! Suggests a remedy for a server that cannot be used, based on the error message. These functions are pure.

use crate::store::redis::check::role::Role;

/// Returns the remedy for this reason. The phrases that it searches for come from `answer`, `dialing`, `dial`
/// and rustls.
pub(super) fn remedy(reason: &str, role: Role) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if says(&["NOAUTH", "WRONGPASS", "default user"]) {
        return match role {
            Role::Sentinel => {
                "Set the Sentinels' user and password with RedisBuilder::sentinel_credentials; those in the \
                 address are for the servers that the Sentinels watch."
            }
            _ => {
                "Write the right user and password into the address, as in \
                 redis://USER:PASSWORD@HOST:6379, with special characters percent-encoded. Leave both out if \
                 the server has no password."
            }
        };
    }
    if says(&["SELECT with NOPERM"]) {
        return "Permit SELECT with ACL SETUSER USER +select, or leave the number of the database out of the \
                address to use database 0.";
    }
    if says(&["NOPERM"]) {
        return "Permit the command that the error names with ACL SETUSER; the documentation of RedisStore \
                lists all permissions that sessions need.";
    }
    if says(&["has no database with that number", "a cluster has one database"]) {
        return "Leave the number of the database out of the address, or raise databases in redis.conf.";
    }
    if says(&["client certificate"]) {
        return "Name a client certificate and its key that the server accepts: cert and key in the address, \
                or RedisBuilder::tls_client_files.";
    }
    if says(&["certificate expired", "CertificateExpired"]) {
        return "Renew the server's certificate, and check the clock of this machine.";
    }
    if says(&["not valid for name"]) {
        return "Write a host name that the certificate contains into the address, or set sni in the address.";
    }
    if says(&["name its CA", "UnknownIssuer"]) {
        return "Name the certificate of the authority that issued the server's: append ?cacert=FILE to the \
                address.";
    }
    if says(&["max number of clients", "maxclients"]) {
        return "Raise maxclients on the server (CONFIG SET maxclients NUMBER), or let fewer processes \
                connect.";
    }
    if says(&["protected mode"]) {
        return "Set a password on the server (requirepass) and write it into the address.";
    }
    if says(&["refused"]) {
        return "Start the server, or correct the host and the port in the address.";
    }
    if says(&["name was not resolved"]) {
        return "Correct the host in the address, or check the name service (DNS) of this machine.";
    }
    if says(&["in time", "no connection in", "no answer", "did not answer in"]) {
        return "Check whether the server is overloaded or stopped, and whether a firewall drops the \
                connection.";
    }
    "Check whether the server is running and can be reached from here, and whether the host, the port, the \
     user and the password in the address are right."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedy_depends_on_the_error() {
        for (reason, expected) in [
            (
                "it answered AUTH with WRONGPASS invalid username-password pair",
                "redis://USER:PASSWORD@",
            ),
            ("it answered SELECT with NOPERM no permissions to run", "+select"),
            ("it answered ROLE with NOPERM no permissions to run", "Permit the command"),
            ("invalid peer certificate: certificate expired: verification time", "Renew"),
            ("invalid peer certificate: UnknownIssuer; name its CA", "?cacert=FILE"),
            ("it answered HELLO with ERR max number of clients", "Raise maxclients"),
            ("Connection refused (os error 111)", "Start the server"),
            ("no connection in 500ms", "firewall"),
            ("the network is gone", "Check whether the server is running"),
        ] {
            assert!(remedy(reason, Role::Master).contains(expected), "{reason}");
        }
        let of_sentinel = remedy("NOAUTH Authentication required", Role::Sentinel);
        assert!(of_sentinel.contains("sentinel_credentials"));
    }
}
