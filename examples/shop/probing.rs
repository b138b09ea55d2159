//! Tests of `GET /ready` for both shops, on a real Redis.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use unsticky::Sessions;

use super::ready::Readiness;
use super::servers::RedisServer;
use super::settings;

/// The response to a probe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) cache_control: String,
    pub(crate) body: String,
}

impl Reply {
    fn of(status: u16, body: &str) -> Self {
        let content_type = "text/plain; charset=utf-8".to_owned();
        let cache_control = "no-store".to_owned();
        Self { status, content_type, cache_control, body: body.to_owned() }
    }

    fn is_ready(&self) -> bool {
        *self == Self::of(200, "ready")
    }
}

fn sessions(url: &str) -> Sessions {
    settings(unsticky::connect(url).unwrap()).build().unwrap()
}

/// Probes until the process is ready, or until it is not, depending on `is_ready`.
async fn until(
    readiness: &Readiness,
    ask: &impl AsyncFn(&Readiness) -> Reply,
    is_ready: bool,
) -> Reply {
    let begun = Instant::now();
    loop {
        let reply = ask(readiness).await;
        if reply.is_ready() == is_ready {
            return reply;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{reply:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn unready_while_redis_is_down(ask: impl AsyncFn(&Readiness) -> Reply) {
    let mut server = RedisServer::start();
    let (readiness, report) = Readiness::check(&sessions(&server.url())).await;
    assert_eq!(report.first_error(), None, "{report}");
    assert!(ask(&readiness).await.is_ready());
    server.stop();
    let reply = until(&readiness, &ask, false).await;
    assert!(reply.body.starts_with("the session store is unavailable"), "{reply:?}");
    assert_eq!(reply, Reply::of(503, &reply.body));
    server.restart();
    until(&readiness, &ask, true).await;
}

pub(crate) async fn unready_until_redis_is_up(ask: impl AsyncFn(&Readiness) -> Reply) {
    let mut server = RedisServer::start();
    server.stop();
    let (readiness, report) = Readiness::check(&sessions(&server.url())).await;
    let error = report.first_error().unwrap();
    let expected = Reply::of(503, &format!("{} {}", error.message(), error.remedy()));
    assert_eq!(ask(&readiness).await, expected);
    server.restart();
    until(&readiness, &ask, true).await;
}

/// The database user may read but not write, which a read alone would not detect.
pub(crate) async fn unready_until_permission_is_there(ask: impl AsyncFn(&Readiness) -> Reply) {
    let server = RedisServer::start();
    let permit = |words: &str| {
        let command: Vec<_> = "ACL SETUSER app".split(' ').chain(words.split(' ')).collect();
        server.cli(&command);
    };
    permit("on >sesame7 ~shop:* resetchannels -@all +get +del +getrange +eval +evalsha");
    let sessions = sessions(&server.url().replace("://", "://app:sesame7@"));
    let (readiness, report) = Readiness::check(&sessions).await;
    let error = report.first_error().unwrap();
    sessions.ping().await.unwrap();
    let reply = ask(&readiness).await;
    assert_eq!(reply, Reply::of(503, &format!("{} {}", error.message(), error.remedy())));
    assert!(!reply.body.contains("sesame7"), "{reply:?}");
    permit("+set");
    until(&readiness, &ask, true).await;
}

pub(crate) async fn probes_share_one_load_a_second(ask: impl AsyncFn(&Readiness) -> Reply) {
    let server = RedisServer::start();
    let (readiness, _) = Readiness::check(&sessions(&server.url())).await;
    let (before, begun) = (server.calls("get"), Instant::now());
    while begun.elapsed() < Duration::from_millis(2500) {
        let replies = join_all((0..200).map(|_| ask(&readiness))).await;
        assert!(replies.iter().all(Reply::is_ready));
    }
    // The first load happens one second after the check at the earliest.
    let seconds = begun.elapsed().as_secs();
    let loads = server.calls("get") - before;
    assert!((1..=seconds).contains(&loads), "{loads} loads in {seconds} seconds");
}
