//! Adds a Memcached server while the application runs. Shows what goes wrong if a release changes only the list of
//! servers, and how a new epoch avoids that.
//!
//! `MEMCACHED_SERVERS` lists at least two servers. The new release adds the last of them.
//!
//! ```sh
//! export MEMCACHED_SERVERS=127.0.0.1:11211,127.0.0.1:11212,127.0.0.1:11213,127.0.0.1:11214
//! cargo run --features memcached --example memcached_rollout
//! cargo test --features memcached --example memcached_rollout
//! ```

#![allow(clippy::print_stdout, reason = "it prints what it does")]

use std::env;
use std::error::Error;

use unsticky::exchange::{Exchange, Finish};
use unsticky::{Session, Sessions};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The number of users who sign out, and of users whose account is closed.
const USERS: usize = 200;

/// Returns the sessions of a process in one release. The list of servers and the epoch belong together: if
/// you change the list, also change the epoch, to a number that you have never used before.
fn process(servers: &[&str], epoch: u32) -> Result<Sessions> {
    let store = unsticky::connect(&format!("memcached://{}", servers.join(",")))?;
    Ok(Sessions::builder(store).namespace("rollout").epoch(epoch).build()?)
}

/// The number of users to whom each of these things happened.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// The new release did not find the user's session.
    unknown: usize,
    /// The new release revoked all sessions of the user, but the user's old session is still valid there.
    not_revoked: usize,
    /// The user signed out on the new release, but the old release still serves the session.
    served_by_old: usize,
    /// The user signed out on the new release, and was signed in again after the rollback.
    revived: usize,
}

/// Runs processes of the old and the new release at the same time, and then rolls the new release back.
async fn roll_out(old: &Sessions, new: &Sessions, back: &Sessions) -> Result<Outcome> {
    let mut outcome = Outcome { unknown: 0, not_revoked: 0, served_by_old: 0, revived: 0 };
    for number in 0..USERS {
        // An administrator uses the new release to close this user's account.
        let user = format!("closed account {number}");
        let cookie = sign_in(old, &user).await?;
        outcome.unknown += usize::from(!is_signed_in(new, &cookie).await?);
        new.of(&user).revoke_all().await?;
        outcome.not_revoked += usize::from(is_signed_in(new, &cookie).await?);
        // This user signs out on the new release.
        let cookie = sign_in(old, &format!("user {number}")).await?;
        request(new, &cookie, async |session: Session| {
            session.sign_out();
            Ok(())
        })
        .await?;
        outcome.served_by_old += usize::from(is_signed_in(old, &cookie).await?);
        outcome.revived += usize::from(is_signed_in(back, &cookie).await?);
    }
    Ok(outcome)
}

/// Signs a user in, and returns the cookie.
async fn sign_in(process: &Sessions, user: &str) -> Result<String> {
    let (_, cookie) = request(process, "", async |session: Session| session.sign_in(user)).await?;
    cookie.ok_or_else(|| "a sign-in sets a cookie".into())
}

async fn is_signed_in(process: &Sessions, cookie: &str) -> Result<bool> {
    let ask = async |session: Session| Ok(session.is_signed_in());
    Ok(request(process, cookie, ask).await?.0)
}

/// Runs a request with this cookie. Returns what the handler returns, and the new cookie if one was set.
async fn request<T>(
    process: &Sessions,
    cookie: &str,
    handler: impl AsyncFnOnce(Session) -> unsticky::Result<T>,
) -> Result<(T, Option<String>)> {
    let exchange = Exchange::begin(process, [cookie.to_owned()], None);
    let output = handler(exchange.handle().session().await?).await?;
    let reply = match exchange.finish(200) {
        Finish::Ready(reply) => reply,
        Finish::Pending(reply) => reply.await,
    };
    if let Some(error) = reply.error {
        return Err(error.into());
    }
    let cookie = reply.set_cookie.map(|cookie| cookie.split(';').next().unwrap_or("").to_owned());
    Ok((output, cookie))
}

/// Returns the outcome of a rollout that keeps the epoch, and of a rollout that changes it.
async fn both(servers: &[&str]) -> Result<[Outcome; 2]> {
    let Some((_, before @ [_, ..])) = servers.split_last() else {
        return Err(
            "MEMCACHED_SERVERS must name at least two servers, as in a:11211,b:11211".into()
        );
    };
    // Runs may follow each other within minutes, so each run also starts with a different epoch.
    let first = std::process::id();
    let old = process(before, first)?;
    let kept = roll_out(&old, &process(servers, first)?, &old).await?;
    let changed =
        roll_out(&old, &process(servers, first + 1)?, &process(before, first + 2)?).await?;
    Ok([kept, changed])
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let servers = env::var("MEMCACHED_SERVERS")
        .map_err(|_| "set MEMCACHED_SERVERS to at least two servers, as in a:11211,b:11211")?;
    let servers: Vec<_> = servers.split(',').collect();
    let [kept, changed] = both(&servers).await?;
    println!("{:47}  {:>10}  {:>13}", format!("of {USERS} users"), "same epoch", "new epoch");
    for (what, kept, changed) in [
        ("not found by the new release: sign in again", kept.unknown, changed.unknown),
        ("revoked on the new release, still valid there", kept.not_revoked, changed.not_revoked),
        (
            "signed out there, still served by old processes",
            kept.served_by_old,
            changed.served_by_old,
        ),
        ("signed out there, signed in after a rollback", kept.revived, changed.revived),
    ] {
        println!("{what:47}  {kept:10}  {changed:13}");
    }
    Ok(())
}

#[cfg(test)]
#[path = "../tests/support/servers.rs"]
mod servers;

#[cfg(test)]
mod tests {
    use super::servers::MemcachedServer;
    use super::{USERS, both};

    #[tokio::test]
    async fn another_epoch_keeps_sign_outs_and_revocations() {
        let servers: Vec<_> = (0..4).map(|_| MemcachedServer::start()).collect();
        let addresses: Vec<_> = servers.iter().map(|server| server.address()).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        let [kept, changed] = both(&addresses).await.unwrap();
        // A quarter of the sessions and of the directory records move. The bounds allow five standard
        // deviations.
        assert!((20..=80).contains(&kept.unknown), "{kept:?}");
        assert!((10..=65).contains(&kept.not_revoked), "{kept:?}");
        assert!((20..=80).contains(&kept.revived), "{kept:?}");
        assert_eq!(kept.served_by_old, kept.revived);
        // With a new epoch, all users must sign in again, but nothing goes wrong after that.
        assert_eq!(changed.unknown, USERS);
        assert_eq!((changed.not_revoked, changed.revived), (0, 0));
        // The sessions under the old epoch end with its last process.
        assert_eq!(changed.served_by_old, USERS);
    }
}
