//! Opens a connection to one server: connects, performs the TLS handshake and authenticates.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, RedisConnectionInfo, cmd};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::limits;
use crate::store::dial::{dial_name, is_end};
use crate::store::redis::answer::explained;
use crate::store::redis::greeting::{Refusal, greet};
use crate::store::redis::heartbeat::Heartbeat;
use crate::store::redis::place::Place;
use crate::store::redis::sanitize::Sanitized;
use crate::store::redis::tls::{self, Tls};
use crate::store::redis::waits::Waits;

/// How to connect, and the time limits.
#[derive(Clone)]
pub(super) struct Settings {
    /// The credentials, the database and the protocol version.
    pub(super) login: RedisConnectionInfo,
    pub(super) tls: Option<Tls>,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) max_waiting: usize,
}

impl Settings {
    pub(super) fn new(login: RedisConnectionInfo, tls: Option<Tls>) -> Self {
        Self {
            login,
            tls,
            connect_timeout: limits::CONNECT,
            response_timeout: limits::RESPONSE,
            max_waiting: limits::WAITING,
        }
    }
}

/// One server to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Server {
    pub(super) place: Place,
    /// The name for which the certificate must be valid, if that is not the host.
    pub(super) tls_name: Option<String>,
}

impl From<Place> for Server {
    fn from(place: Place) -> Self {
        Self { place, tls_name: None }
    }
}

/// The step that an attempt to connect is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Asking the Sentinels which server is the master.
    Sentinels,
    Connection,
    Encryption,
    Greeting,
}

impl Step {
    /// Returns the reason to report for an attempt that timed out in this step.
    pub(super) fn timed_out(self, limit: Duration) -> String {
        match self {
            Self::Sentinels => format!("no answer from a Sentinel in {limit:?}"),
            Self::Connection => format!("no connection in {limit:?}"),
            Self::Encryption => format!(
                "no answer to the TLS handshake in {limit:?}; if the server does not speak TLS, write \
                 redis:// in place of rediss:// in the address"
            ),
            Self::Greeting => format!("no answer to the greeting in {limit:?}"),
        }
    }
}

/// A connection on which the greeting has succeeded.
pub(super) type Stream = Sanitized<Transport>;

type Transport = Box<dyn Duplex>;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for S {}

/// Connects and authenticates. The error gives the reason, and contains no secret.
pub(super) async fn open(
    settings: &Settings,
    server: &Server,
    at: impl Fn(Step),
) -> Result<Stream, String> {
    at(Step::Connection);
    let (mut stream, hint): (Transport, _) = match &server.place {
        Place::Tcp { host, port } => {
            let stream = dial_tcp(host, *port, settings.connect_timeout).await;
            let stream = stream.map_err(|error| error.to_string())?;
            if let Some(tls) = &settings.tls {
                at(Step::Encryption);
                let name = server.tls_name.as_ref().unwrap_or(host);
                (Box::new(tls.encrypt(name, stream).await?), "")
            } else {
                (Box::new(stream), TLS_HINT)
            }
        }
        #[cfg(unix)]
        Place::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path).await;
            (Box::new(stream.map_err(|error| error.to_string())?), "")
        }
        #[cfg(not(unix))]
        Place::Unix(_) => return Err(io::Error::from(io::ErrorKind::Unsupported).to_string()),
    };
    at(Step::Greeting);
    greet(&mut stream, &settings.login).await.map_err(|refusal| match refusal {
        Refusal::Answered(reason) => reason,
        Refusal::Broken(error) if is_end(&error) => {
            format!("the server hung up during the handshake{hint}")
        }
        Refusal::Broken(error) => tls::reason(&error),
    })?;
    Ok(Sanitized::new(stream))
}

/// Opens a connection and returns the certificate that the server presents, in DER format, or `None` if TLS
/// is not used. If the connection fails, the error gives the reason.
pub(super) async fn certificate(
    settings: &Settings,
    server: &Server,
) -> Result<Option<Vec<u8>>, String> {
    let (Some(tls), Place::Tcp { host, port }) = (&settings.tls, &server.place) else {
        return Ok(None);
    };
    let limit = settings.connect_timeout;
    let handshake = async {
        let stream = dial_tcp(host, *port, limit).await.map_err(|error| error.to_string())?;
        tls.encrypt(server.tls_name.as_ref().unwrap_or(host), stream).await
    };
    let stream =
        timeout(limit, handshake).await.map_err(|_| Step::Encryption.timed_out(limit))??;
    Ok(tls::certificate(&stream))
}

/// The likely reason why a server has closed a connection that does not use TLS.
const TLS_HINT: &str = "; a TLS port needs rediss:// in the address";

/// Turns a stream into a connection that many commands can share.
pub(super) async fn multiplex(
    settings: &Settings,
    stream: Stream,
) -> Result<(MultiplexedConnection, Batching), String> {
    let info = unspoken(settings);
    let connected = MultiplexedConnection::new_with_config(&info, stream, configuration()).await;
    let (connection, driver) = connected.map_err(|error| explained(&cmd("HELLO"), &error))?;
    let heartbeat = Heartbeat::new(Arc::new(Waits::new()), settings.response_timeout);
    Ok((connection, Batching { driver: Box::pin(driver), yielded: false, heartbeat }))
}

/// Returns the part of the login that the greeting has not sent, which is only the protocol version.
pub(super) fn unspoken(settings: &Settings) -> RedisConnectionInfo {
    RedisConnectionInfo::default().set_skip_set_lib_name().set_protocol(settings.login.protocol())
}

async fn dial_tcp(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    // The rest of the time is left for the TLS handshake, or for reporting why no address answered.
    let limit = limit / 4 * 3;
    let connected = dial_name((host, port), limit, |address| async move {
        TcpStream::connect(address).await.map_err(|error| error.to_string())
    });
    let stream = connected.await.map_err(io::Error::other)?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive())?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(stream)
}

/// How long sent bytes may remain unacknowledged before the connection is considered dead.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// TCP keepalive keeps middleboxes from dropping an idle connection, and detects a connection that was
/// dropped.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5))
}

/// Disables the time limits of the `redis` crate: the store has its own, so that it can recognise a timeout
/// as such. The buffers are large enough to send many commands, or a few large ones, in one write.
fn configuration() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(1024)
        .set_write_backpressure_boundary(1024 * 1024)
}

/// Drives a connection that many commands share. Yields once before each poll of the driver.
///
/// The runtime tends to run the driver right after the task that woke it, so that each command would be sent
/// in a separate write. Yielding lets other tasks that are ready add their commands first. A processor then
/// handles several times as many commands per second.
pub(super) struct Batching {
    driver: Pin<Box<dyn Future<Output = ()> + Send>>,
    yielded: bool,
    /// Dropped after the driver, so that commands learn from the driver first how the connection ended.
    heartbeat: Heartbeat,
}

impl Batching {
    /// Returns the commands that are waiting on the connection.
    pub(super) fn waits(&self) -> Arc<Waits> {
        Arc::clone(self.heartbeat.waits())
    }
}

impl Future for Batching {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.yielded = !self.yielded;
        if self.yielded {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // The heartbeat is polled only after yielding. If it were polled earlier, a beat that fell due in
        // between would wake no task.
        let is_due = self.heartbeat.poll(cx);
        let driven = self.driver.as_mut().poll(cx);
        if is_due {
            // Ends overdue commands only after the driver has run, so that an answer that has arrived counts
            // even if the runtime reads it late.
            self.heartbeat.waits().end_overdue();
        }
        driven
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::Instant;

    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[tokio::test]
    async fn silent_address_leaves_time_to_say_so() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // The operating system drops connection attempts when the listener's queue is full.
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(stream) = timeout(ms(100), TcpStream::connect(address)).await {
            filling.push(stream.unwrap());
        }
        tokio::time::pause();
        let begun = Instant::now();
        let error = dial_tcp("127.0.0.1", address.port(), ms(400)).await.unwrap_err();
        assert_eq!(error.to_string(), "it did not answer in time");
        assert!((ms(300)..ms(310)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn idle_connection_is_kept_alive() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = dial_tcp("127.0.0.1", port, ms(400)).await.unwrap();
        assert!(stream.nodelay().unwrap());
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), ms(15_000));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), ms(5_000));
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(ms(5_000)));
    }
}
