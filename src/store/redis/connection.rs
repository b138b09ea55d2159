//! The connection of our own: made when it is needed, shared by all, replaced when it is broken.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, RedisError, Value};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::limits;
use crate::store::dial::dial_name;
use crate::store::heartbeat::Heartbeat;

/// Where to connect to, and how long to wait.
#[derive(Clone)]
pub(super) struct Settings {
    info: ConnectionInfo,
    #[cfg_attr(not(feature = "redis-tls"), allow(dead_code, reason = "there is none"))]
    tls: bool,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) max_waiting: usize,
}

impl Settings {
    pub(super) fn new(info: ConnectionInfo, tls: bool) -> Self {
        let named =
            info.redis_settings().clone().set_lib_name("unsticky", env!("CARGO_PKG_VERSION"));
        Self {
            info: info.set_redis_settings(named),
            tls,
            connect_timeout: limits::CONNECT,
            response_timeout: limits::RESPONSE,
            max_waiting: limits::WAITING,
        }
    }

    /// Host and port or the socket's path: no name, no password.
    pub(super) fn server(&self) -> String {
        self.info.addr().to_string()
    }
}

/// Why a command has no answer that is a value.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was not sent.
    NotSent(String),
    /// It may have been sent, and what became of it is unknown.
    Lost(String),
    /// The server answered with an error.
    Answered(Answer),
}

impl Failure {
    /// What a connection that is not ours says. It may have sent the command, and more than once,
    /// whatever it says in the end: only an answer of the server is certain.
    pub(super) fn of_foreign(error: &RedisError) -> Self {
        match Answer::of(error) {
            Some(answer) => Self::Answered(answer),
            None => Self::Lost(format!("redis: {}", reason(error))),
        }
    }
}

/// An error that the server answered with.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: String,
    detail: String,
}

impl Answer {
    fn of(error: &RedisError) -> Option<Self> {
        let mut code = error.code()?;
        let mut detail = error.detail().unwrap_or_default();
        // Redis before 7 wraps what a command inside a script answered.
        if code == "ERR"
            && let Some((_, inner)) = detail.split_once(": -")
        {
            (code, detail) = inner.split_once(' ').unwrap_or((inner, ""));
        }
        // What follows would repeat the command, which holds a record.
        let detail = detail.split(", with args beginning with").next().unwrap_or_default();
        Some(Self { code: code.to_owned(), detail: detail.to_owned() })
    }

    /// Whether the server will do the same thing later.
    pub(super) fn is_passing(&self) -> bool {
        matches!(
            self.code.as_str(),
            "NOAUTH" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "BUSY" | "TRYAGAIN"
        )
    }

    /// Whether it says for certain that nothing was written. A proxy answers with codes of its own,
    /// also where it has sent the command on.
    pub(super) fn is_of_nothing_written(&self) -> bool {
        match self.code.as_str() {
            "OOM" | "READONLY" | "MISCONF" | "NOREPLICAS" | "WRONGTYPE" | "NOPERM" | "NOAUTH"
            | "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK"
            | "CROSSSLOT" | "NOSCRIPT" => true,
            "ERR" => ["unknown command", "wrong number"]
                .into_iter()
                .any(|beginning| self.detail.starts_with(beginning)),
            _ => false,
        }
    }

    /// Whether another server may stand behind the same name by now.
    fn is_of_the_wrong_server(&self) -> bool {
        matches!(self.code.as_str(), "NOAUTH" | "LOADING" | "MASTERDOWN" | "READONLY")
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis answered {} {}", self.code, self.detail)
    }
}

/// The place of the current connection.
pub(super) struct SharedConnection {
    settings: Settings,
    /// How many commands wait, for a connection or for their answer.
    waiting: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    /// Counts the attempts to connect, so that an old connection's end leaves a newer one alone.
    generation: u64,
    phase: Phase,
}

enum Phase {
    Idle,
    Connecting(Outcome),
    Connected(Arc<Connection>),
}

/// What an attempt came to, for everybody who waits for it.
type Outcome = watch::Receiver<Option<Result<Arc<Connection>, String>>>;

impl SharedConnection {
    pub(super) fn new(settings: Settings) -> Self {
        let state = Mutex::new(State { generation: 0, phase: Phase::Idle });
        Self { settings, waiting: AtomicUsize::new(0), state }
    }

    /// Sends a command, once, and waits for its answer.
    pub(super) async fn send(self: &Arc<Self>, command: &Cmd) -> Result<Value, Failure> {
        let _permit = self.permit().ok_or_else(|| {
            Failure::NotSent(format!("too many commands wait for redis at {}", self.at()))
        })?;
        let link = match self.connected() {
            Some(link) => link,
            None => Box::pin(self.connect_or_join()).await.map_err(Failure::NotSent)?,
        };
        let mut connection = link.connection.clone();
        let waiting = Waiting::new(self, &link);
        let limit = self.settings.response_timeout;
        match timeout(limit, connection.send_packed_command(command)).await {
            Ok(answer) => {
                waiting.answered();
                answer.and_then(Value::extract_error).map_err(|error| self.failed(&link, &error))
            }
            Err(_) => {
                Err(Failure::Lost(format!("redis at {} did not answer in {limit:?}", self.at())))
            }
        }
    }

    /// One more command that waits, unless there are too many.
    fn permit(&self) -> Option<WaitingPermit<'_>> {
        // It is counted first, so that two at once do not both take the last place.
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = WaitingPermit(&self.waiting);
        (before < self.settings.max_waiting).then_some(place)
    }

    fn failed(&self, link: &Connection, error: &RedisError) -> Failure {
        let Some(answer) = Answer::of(error) else {
            self.discard(link.generation);
            return Failure::Lost(format!("redis at {}: {}", self.at(), reason(error)));
        };
        if answer.is_of_the_wrong_server() {
            self.discard(link.generation);
        }
        Failure::Answered(answer)
    }

    /// The current connection, if there is one.
    fn connected(&self) -> Option<Arc<Connection>> {
        match &self.state().phase {
            Phase::Connected(link) => Some(Arc::clone(link)),
            _ => None,
        }
    }

    /// The current connection, or the one that is being made.
    async fn connect_or_join(self: &Arc<Self>) -> Result<Arc<Connection>, String> {
        let (generation, mut outcome, begun) = {
            let mut state = self.state();
            match &state.phase {
                Phase::Connected(link) => return Ok(Arc::clone(link)),
                Phase::Connecting(outcome) => (state.generation, outcome.clone(), None),
                Phase::Idle => {
                    let (sender, outcome) = watch::channel(None);
                    state.generation += 1;
                    state.phase = Phase::Connecting(outcome.clone());
                    (state.generation, outcome, Some(sender))
                }
            }
        };
        if let Some(sender) = begun {
            let release = ReleaseOnDrop { shared: Arc::downgrade(self), generation };
            // In a task of its own: whoever gave up waiting has not stopped the others' attempt.
            tokio::spawn(connect(self.settings.clone(), release, sender));
        }
        let limit = self.settings.connect_timeout;
        let reason = match timeout(limit, outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => match outcome.as_ref() {
                Some(Ok(link)) => return Ok(Arc::clone(link)),
                Some(Err(reason)) => reason.clone(),
                None => "no outcome".to_owned(),
            },
            // The runtime that the attempt ran on was shut down.
            Ok(Err(_)) => "the attempt was abandoned".to_owned(),
            Err(_) => {
                // An attempt on a runtime that nobody drives any more would stand here for ever.
                self.discard(generation);
                format!("no connection in {limit:?}")
            }
        };
        Err(format!("cannot connect to redis at {}: {reason}", self.at()))
    }

    /// Makes `link` the current connection, unless its attempt was given up meanwhile.
    fn install(&self, link: &Arc<Connection>) {
        let mut state = self.state();
        if state.generation == link.generation && matches!(state.phase, Phase::Connecting(_)) {
            state.phase = Phase::Connected(Arc::clone(link));
        }
    }

    /// Has the next command connect anew, unless that has happened since.
    ///
    /// Commands that wait on the old connection keep it until they have their answer.
    fn discard(&self, generation: u64) {
        let mut state = self.state();
        if state.generation == generation {
            let old = std::mem::replace(&mut state.phase, Phase::Idle);
            drop(state);
            // Not under the lock, since a connection that goes away comes here.
            drop(old);
        }
    }

    fn at(&self) -> &ConnectionAddr {
        self.settings.info.addr()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a command that waits.
struct WaitingPermit<'a>(&'a AtomicUsize);

impl Drop for WaitingPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection.
struct Connection {
    connection: MultiplexedConnection,
    generation: u64,
    silence: Mutex<Silence>,
    /// Ended with the last user: it would wait for the answers on a silent connection for ever.
    driver: AbortHandle,
}

impl Connection {
    fn silence(&self) -> MutexGuard<'_, Silence> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// For how long a connection has owed an answer, without having given any.
///
/// Only the time in which somebody waited counts. It is the connection's and not a caller's, since
/// callers who all give up early would never wait for long enough to notice.
struct Silence {
    /// How many commands wait for their answer.
    waiting: usize,
    /// When the first of them began to wait, or when the last answer came.
    since: Instant,
    /// What had been waited in vain before that.
    before: Duration,
}

/// Clients that disconnect all the time must not cost a connection each.
const LONG: Duration = Duration::from_millis(100);

impl Silence {
    fn new() -> Self {
        Self { waiting: 0, since: Instant::now(), before: Duration::ZERO }
    }

    fn begin(&mut self) {
        if self.waiting == 0 {
            self.since = Instant::now();
        }
        self.waiting += 1;
    }

    fn answered(&mut self) {
        self.waiting -= 1;
        self.since = Instant::now();
        self.before = Duration::ZERO;
    }

    /// How long the silence is when somebody stops waiting.
    fn given_up(&mut self) -> Duration {
        self.waiting -= 1;
        let waited = self.before + self.since.elapsed();
        if self.waiting == 0 {
            self.before = waited;
        }
        waited
    }
}

/// A command that waits for its answer. When it is given up, at the end of the time limit or because
/// the caller goes away, a connection that has long been silent is taken for dead.
struct Waiting<'a> {
    shared: &'a SharedConnection,
    link: &'a Connection,
    done: bool,
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a SharedConnection, link: &'a Connection) -> Self {
        link.silence().begin();
        Self { shared, link, done: false }
    }

    fn answered(mut self) {
        self.done = true;
        self.link.silence().answered();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let silence = self.link.silence().given_up();
        if silence >= LONG.min(self.shared.settings.response_timeout) {
            self.shared.discard(self.link.generation);
        }
    }
}

/// Makes room for a new connection when the attempt or the driver ends, however it ends.
struct ReleaseOnDrop {
    shared: Weak<SharedConnection>,
    generation: u64,
}

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.discard(self.generation);
        }
    }
}

async fn connect(
    settings: Settings,
    release: ReleaseOnDrop,
    outcome: watch::Sender<Option<Result<Arc<Connection>, String>>>,
) {
    let limit = settings.connect_timeout;
    let (shared, generation) = (release.shared.clone(), release.generation);
    let (connection, driver) = match timeout(limit, dial(&settings)).await {
        Ok(Ok(connected)) => connected,
        failed => {
            // First, so that whoever is told of the failure can try again at once.
            drop(release);
            let reason = match failed {
                Ok(Err(error)) => handshake_reason(&error),
                _ => format!("no connection in {limit:?}"),
            };
            outcome.send_replace(Some(Err(reason)));
            return;
        }
    };
    let task = tokio::spawn(async move {
        let _release = release;
        Batching { driver, yielded: false, heartbeat: Heartbeat::new() }.await;
    });
    let link = Arc::new(Connection {
        connection,
        generation,
        silence: Mutex::new(Silence::new()),
        driver: task.abort_handle(),
    });
    if let Some(shared) = shared.upgrade() {
        shared.install(&link);
    }
    outcome.send_replace(Some(Ok(link)));
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;
type Connected = (MultiplexedConnection, Driver);

async fn dial(settings: &Settings) -> Result<Connected, RedisError> {
    match settings.info.addr() {
        ConnectionAddr::Tcp(host, port) => {
            let stream = dial_tcp(host, *port, settings.connect_timeout).await?;
            #[cfg(feature = "redis-tls")]
            if settings.tls {
                return handshake(settings, encrypt(host, stream).await?).await;
            }
            handshake(settings, stream).await
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => {
            handshake(settings, tokio::net::UnixStream::connect(path).await?).await
        }
        _ => Err(io::Error::from(io::ErrorKind::Unsupported).into()),
    }
}

/// TLS with a provider that we name: the process's default may be missing or ambiguous, which
/// rustls answers with a panic.
#[cfg(feature = "redis-tls")]
async fn encrypt(
    host: &str,
    stream: TcpStream,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    use tokio_rustls::rustls::crypto::ring::default_provider;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    // Reading the certificates takes a while. Anew each time, so that renewed ones are found.
    let roots = tokio::task::spawn_blocking(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    });
    let roots = roots.await.map_err(io::Error::other)?;
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn dial_tcp(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    // The rest is for the handshake, and for the error that says why no address answered.
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

/// For how long sent bytes may stay unacknowledged.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps middleboxes from forgetting an idle connection, and notices when one has.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5))
}

async fn handshake<S>(settings: &Settings, stream: S) -> Result<Connected, RedisError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let info = settings.info.redis_settings();
    let (connection, driver) =
        MultiplexedConnection::new_with_config(info, stream, configuration()).await?;
    Ok((connection, Box::pin(driver)))
}

/// We limit the time ourselves, to know that it was used up. The buffers let many commands, or a
/// few large ones, leave in one write.
fn configuration() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(1024)
        .set_write_backpressure_boundary(1024 * 1024)
}

/// Steps back once before each poll of the driver.
///
/// The runtime likes to run the driver right after the task that woke it, so each command would be
/// a write of its own. Stepping back lets the other tasks that are ready add theirs first, which
/// makes several times as many commands a second out of the same processor.
struct Batching {
    driver: Driver,
    yielded: bool,
    heartbeat: Heartbeat,
}

impl Future for Batching {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.yielded = !self.yielded;
        if self.yielded {
            self.heartbeat.poll(cx);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.driver.as_mut().poll(cx)
    }
}

/// What happened, without anything that the server may have repeated.
fn reason(error: &RedisError) -> String {
    if error.is_io_error() { error.to_string() } else { error.category().to_owned() }
}

/// Some servers repeat the sign-in that they do not understand, password and all.
fn handshake_reason(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("redis answered {code}"),
        None => reason(error),
    }
}

#[cfg(test)]
mod tests {
    use ::redis::parse_redis_value;

    use super::*;

    fn answer(line: &str) -> Answer {
        let value = parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        Answer::of(&value.extract_error().unwrap_err()).unwrap()
    }

    #[test]
    fn error_code_is_found_inside_script_error() {
        for (line, code) in [
            ("OOM command not allowed", "OOM"),
            ("OOM command not allowed script: 5f, on @user_script:2.", "OOM"),
            ("READONLY You can't write", "READONLY"),
            ("ERR Error running script (call to f_5f): @user_script:2: -READONLY You", "READONLY"),
            ("ERR Error running script (call to f_5f): @user_script:2: -OOM", "OOM"),
            ("LOADING Redis is loading", "LOADING"),
            ("ERR something else: no", "ERR"),
        ] {
            assert_eq!(answer(line).code, code, "{line}");
        }
    }

    #[test]
    fn only_known_errors_prove_that_nothing_was_written() {
        for (line, certain) in [
            ("OOM command not allowed", true),
            ("READONLY You can't write", true),
            ("MOVED 3999 127.0.0.1:6381", true),
            ("ERR Error running script (call to f_5f): @user_script:2: -OOM", true),
            ("ERR unknown command 'EVALSHA', with args beginning with: 'x'", true),
            ("ERR wrong number of arguments for 'set' command", true),
            ("ERR upstream connection lost after the request was sent", false),
            ("ERR", false),
            ("EXECABORT Transaction discarded", false),
            ("UPSTREAM failure", false),
        ] {
            assert_eq!(answer(line).is_of_nothing_written(), certain, "{line}");
        }
    }

    #[test]
    fn error_answer_does_not_repeat_command() {
        let printed = answer(
            "ERR unknown command 'EVALSHA', with args beginning with: '5f' '1' 'k' 'private'",
        );
        let printed = format!("{printed} {printed:?}");
        assert!(printed.contains("unknown command"), "{printed}");
        assert!(!printed.contains("private"), "{printed}");
        let error = parse_redis_value(
            b"-ERR unknown command `HELLO`, with args beginning with: `3`, `hunter2`\r\n",
        );
        let error = error.unwrap().extract_error().unwrap_err();
        assert!(!handshake_reason(&error).contains("hunter2"));
    }
}
