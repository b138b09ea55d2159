//! Connects to a server by its name, which may resolve to several addresses.

#[cfg(feature = "redis")]
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{ToSocketAddrs, lookup_host};
use tokio::time::{Instant, timeout};

/// Resolves the name, and returns the result of `open` for the first address on which it succeeds. If `open`
/// fails on all of them, the error gives the reason for each address.
///
/// Each address gets an equal share of the time that is left, so an address that drops packets does not
/// prevent the others from being tried.
pub(super) async fn dial_name<T, F>(
    name: impl ToSocketAddrs,
    limit: Duration,
    open: impl Fn(SocketAddr) -> F,
) -> Result<T, String>
where
    F: Future<Output = Result<T, String>>,
{
    let begun = Instant::now();
    let addresses: Vec<_> = match timeout(limit, lookup_host(name)).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(format!("its name was not resolved: {error}")),
        Err(_) => return Err(format!("its name was not resolved within {limit:?}")),
    };
    let mut failures = Failures::default();
    for (tried, address) in addresses.iter().enumerate() {
        let left = limit.saturating_sub(begun.elapsed());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match timeout(share, open(*address)).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(reason)) => failures.add(address.ip(), reason),
            Err(_) => failures.add(address.ip(), "it did not answer in time".to_owned()),
        }
    }
    Err(failures.text())
}

/// The distinct reasons, each with the addresses that failed for it.
#[derive(Default)]
struct Failures(Vec<(String, Vec<IpAddr>)>);

impl Failures {
    fn add(&mut self, address: IpAddr, reason: String) {
        match self.0.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, addresses)) => addresses.push(address),
            None => self.0.push((reason, vec![address])),
        }
    }

    fn text(mut self) -> String {
        match &mut *self.0 {
            [] => "its name has no address".to_owned(),
            // The caller's message already identifies the server.
            [(reason, addresses)] if addresses.len() == 1 => std::mem::take(reason),
            several => {
                let texts = several.iter().map(|(reason, addresses)| {
                    let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
                    format!("{}: {reason}", addresses.join(", "))
                });
                texts.collect::<Vec<_>>().join("; ")
            }
        }
    }
}

/// Returns whether the other side closed the connection.
#[cfg(feature = "redis")]
pub(super) fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};

    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::pending;
    use std::net::Ipv4Addr;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(400);

    const fn address(last: u8) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), 11211)
    }

    static ADDRESSES: [SocketAddr; 4] = [address(1), address(2), address(3), address(4)];

    #[tokio::test(start_paused = true)]
    async fn silent_address_takes_no_more_than_its_share() {
        let begun = Instant::now();
        let tried = RefCell::new(Vec::new());
        let opened = dial_name(&ADDRESSES[..], LIMIT, async |address: SocketAddr| {
            tried.borrow_mut().push(begun.elapsed().as_millis());
            match address.ip().to_string().as_str() {
                // This address leaves its share to the others.
                "10.0.0.2" => Err("refused".to_owned()),
                "10.0.0.4" => Ok(address),
                _ => pending().await,
            }
        });
        assert_eq!(opened.await.unwrap(), ADDRESSES[3]);
        let tried = tried.into_inner();
        for (at, expected) in tried.iter().zip([0, 100, 100, 250]) {
            assert!((expected..expected + 5).contains(at), "{tried:?}");
        }
        assert_eq!(tried.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn error_says_why_each_address_failed() {
        let begun = Instant::now();
        let failed = dial_name(&ADDRESSES[..], LIMIT, async |address: SocketAddr| {
            match address.ip().to_string().as_str() {
                "10.0.0.1" => Err::<(), _>("refused".to_owned()),
                "10.0.0.4" => Err("no route".to_owned()),
                _ => pending().await,
            }
        });
        assert_eq!(
            failed.await.unwrap_err(),
            "10.0.0.1: refused; 10.0.0.2, 10.0.0.3: it did not answer in time; 10.0.0.4: no route"
        );
        assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
        let failed = dial_name(&ADDRESSES[..2], LIMIT, async |_| Err::<(), _>("no".to_owned()));
        assert_eq!(failed.await.unwrap_err(), "10.0.0.1, 10.0.0.2: no");
    }

    #[tokio::test(start_paused = true)]
    async fn only_address_gets_all_the_time_and_is_not_repeated() {
        let begun = Instant::now();
        let failed = dial_name(&ADDRESSES[..1], LIMIT, async |_| pending::<Result<(), _>>().await);
        assert_eq!(failed.await.unwrap_err(), "it did not answer in time");
        assert!(begun.elapsed() >= LIMIT, "{:?}", begun.elapsed());
        let failed = dial_name(&ADDRESSES[..0], LIMIT, async |_| pending::<Result<(), _>>().await);
        assert_eq!(failed.await.unwrap_err(), "its name has no address");
    }

    #[tokio::test]
    async fn unknown_name_is_an_error_that_says_so() {
        let failed = dial_name("unsticky.invalid:1", LIMIT, async |_| Ok(()));
        let error = failed.await.unwrap_err();
        assert!(error.starts_with("its name was not resolved"), "{error}");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn ended_connection_is_told_from_other_failures() {
        use std::io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof,
        };

        for (kind, is_ended) in [
            (BrokenPipe, true),
            (ConnectionAborted, true),
            (ConnectionReset, true),
            (UnexpectedEof, true),
            (TimedOut, false),
        ] {
            assert_eq!(is_end(&kind.into()), is_ended, "{kind:?}");
        }
    }
}
