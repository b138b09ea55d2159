//! Requests without a framework.

use bytes::Bytes;
use unsticky::exchange::{Exchange, Finish};
use unsticky::{Key, Result, Session, Sessions};

pub const COUNT: Key<u64> = Key::new("count");
pub const TEXT: Key<String> = Key::new("text");

/// Runs one request. Returns the cookie that was set, as a browser sends it back.
pub async fn request(
    sessions: &Sessions,
    cookie: &Bytes,
    handler: impl AsyncFnOnce(Session) -> Result<()>,
) -> Option<Bytes> {
    let exchange = Exchange::begin(sessions, [cookie.clone()], None);
    let session = exchange.handle().session().await.unwrap();
    handler(session).await.unwrap();
    let reply = match exchange.finish(200) {
        Finish::Ready(reply) => reply,
        Finish::Pending(reply) => reply.await,
    };
    assert!(reply.error.is_none(), "{:?}", reply.error);
    reply.set_cookie.map(|mut cookie| {
        cookie.truncate(cookie.find(';').unwrap());
        cookie.into()
    })
}

/// Creates a session with a signed-in user and a text of this many bytes. Returns its cookie.
pub async fn arrive(sessions: &Sessions, bytes: usize) -> Bytes {
    let sign_in = async |session: Session| {
        session.insert(TEXT, &"x".repeat(bytes))?;
        session.insert(COUNT, &0)?;
        session.sign_in("account-4711")
    };
    request(sessions, &Bytes::new(), sign_in).await.unwrap()
}

pub async fn read(sessions: &Sessions, cookie: &Bytes) {
    let read = async |session: Session| session.get(COUNT).map(drop);
    request(sessions, cookie, read).await;
}

pub async fn increment(sessions: &Sessions, cookie: &Bytes) {
    let update = async |session: Session| session.update(COUNT, |count| *count += 1);
    request(sessions, cookie, update).await;
}

pub async fn sign_out(sessions: &Sessions, cookie: &Bytes) {
    let sign_out = async |session: Session| {
        session.sign_out();
        Ok(())
    };
    request(sessions, cookie, sign_out).await;
}
