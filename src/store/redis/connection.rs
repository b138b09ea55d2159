//! The connection of our own: made when it is needed, shared by all, replaced when it is broken.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, RedisConnectionInfo, RedisError,
    Value, cmd,
};
use futures_util::future::join3;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::limits;
use crate::store::contract::StoreKey;
use crate::store::dial::{dial_name, is_end};
use crate::store::heartbeat::Heartbeat;
use crate::store::redis::address::Address;
use crate::store::redis::answer::Answer;
use crate::store::redis::greeting::{Refusal, greet};
use crate::store::redis::native::{Native, Trial};
use crate::store::redis::sanitize::Sanitized;
use crate::store::redis::tls::{self, Tls};

/// Where to connect to, and how long to wait.
#[derive(Clone)]
pub(super) struct Settings {
    info: ConnectionInfo,
    pub(super) tls: Option<Tls>,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) max_waiting: usize,
}

impl Settings {
    pub(super) fn new(address: Address) -> Self {
        Self {
            info: address.info,
            tls: address.tls,
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
    pub(super) fn of_foreign(command: &Cmd, error: &RedisError) -> Self {
        match Answer::of(None, command, error) {
            Some(answer) => Self::Answered(answer),
            None => Self::Lost(format!("redis: {}", reason(error))),
        }
    }
}

/// The place of the current connection.
pub(super) struct SharedConnection {
    settings: Settings,
    /// How many commands wait, for a connection or for their answer.
    waiting: AtomicUsize,
    /// How many connections in a row have broken while the server was tried out.
    lost_trials: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    /// Counts the attempts to connect, so that an old connection's end leaves a newer one alone.
    generation: u64,
    phase: Phase,
}

enum Phase {
    Idle,
    Connecting(watch::Receiver<Attempt>),
    Connected(Arc<Connection>),
}

/// How far an attempt to connect has come, for everybody who waits for it.
enum Attempt {
    Underway(Step),
    Over(Result<Arc<Connection>, String>),
}

impl Attempt {
    fn is_over(&self) -> bool {
        matches!(self, Self::Over(_))
    }
}

/// What an attempt to connect waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Connection,
    Encryption,
    Greeting,
}

impl Step {
    /// Why an attempt failed that waited for this until its time was used up.
    fn timed_out(self, limit: Duration) -> String {
        match self {
            Self::Connection => format!("no connection in {limit:?}"),
            Self::Encryption => format!(
                "no answer to the TLS handshake in {limit:?}; if the server does not speak TLS, the \
                 address needs redis://"
            ),
            Self::Greeting => format!("no answer to the greeting in {limit:?}"),
        }
    }
}

impl SharedConnection {
    pub(super) fn new(settings: Settings) -> Self {
        let state = Mutex::new(State { generation: 0, phase: Phase::Idle });
        Self { settings, waiting: AtomicUsize::new(0), lost_trials: AtomicUsize::new(0), state }
    }

    /// Sends a command, once, and waits for its answer.
    pub(super) async fn send(self: &Arc<Self>, command: &Cmd) -> Result<Value, Failure> {
        self.lease().await?.send(command).await
    }

    /// The current connection, or a new one, for commands that one server must answer.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease<'_>, Failure> {
        let permit = self.permit().ok_or_else(|| {
            Failure::NotSent(format!("too many commands wait for redis at {}", self.at()))
        })?;
        let link = match self.connected() {
            Some(link) => link,
            None => Box::pin(self.connect_or_join()).await.map_err(Failure::NotSent)?,
        };
        Ok(Lease { shared: self, link, _permit: permit })
    }

    /// Sends a command on this connection; `None` where no answer comes within the time.
    async fn exchange(
        &self,
        link: &Connection,
        command: &Cmd,
        limit: Duration,
    ) -> Option<Result<Value, RedisError>> {
        let mut connection = link.connection.clone();
        let waiting = Waiting::new(self, link);
        let answer = timeout(limit, connection.send_packed_command(command)).await.ok()?;
        waiting.answered();
        Some(answer.and_then(Value::extract_error))
    }

    /// One more command that waits, unless there are too many.
    fn permit(&self) -> Option<WaitingPermit<'_>> {
        // It is counted first, so that two at once do not both take the last place.
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = WaitingPermit(&self.waiting);
        (before < self.settings.max_waiting).then_some(place)
    }

    fn failed(&self, link: &Connection, command: &Cmd, error: &RedisError) -> Failure {
        let server = Some(format!("redis at {}", self.at()));
        let Some(answer) = Answer::of(server, command, error) else {
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
        let (generation, mut attempt, begun) = {
            let mut state = self.state();
            match &state.phase {
                Phase::Connected(link) => return Ok(Arc::clone(link)),
                Phase::Connecting(attempt) => (state.generation, attempt.clone(), None),
                Phase::Idle => {
                    let (sender, attempt) = watch::channel(Attempt::Underway(Step::Connection));
                    state.generation += 1;
                    state.phase = Phase::Connecting(attempt.clone());
                    (state.generation, attempt, Some(sender))
                }
            }
        };
        if let Some(sender) = begun {
            let release = ReleaseOnDrop { shared: Arc::downgrade(self), generation };
            // In a task of its own: whoever gave up waiting has not stopped the others' attempt.
            tokio::spawn(connect(self.settings.clone(), release, sender));
        }
        let limit = self.settings.connect_timeout;
        let waited =
            timeout(limit, attempt.wait_for(Attempt::is_over)).await.map(|over| over.map(drop));
        let reason = match (waited, &*attempt.borrow()) {
            (_, Attempt::Over(Ok(link))) => return Ok(Arc::clone(link)),
            (_, Attempt::Over(Err(reason))) => reason.clone(),
            // The runtime that the attempt ran on was shut down.
            (Ok(_), _) => "the attempt was abandoned".to_owned(),
            (Err(_), Attempt::Underway(step)) => {
                // An attempt on a runtime that nobody drives any more would stand here for ever.
                self.discard(generation);
                step.timed_out(limit)
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

/// A connection, and the place of a command that waits on it.
pub(super) struct Lease<'a> {
    shared: &'a Arc<SharedConnection>,
    link: Arc<Connection>,
    _permit: WaitingPermit<'a>,
}

impl Lease<'_> {
    /// Sends a command, once, and waits for its answer.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, Failure> {
        match self.try_to(command).await {
            Err(Failure::Answered(answer)) if answer.is_unknown_command() => {
                let is_sentinel = Box::pin(self.is_sentinel()).await;
                Err(Failure::Answered(if is_sentinel { answer.of_sentinel() } else { answer }))
            }
            outcome => outcome,
        }
    }

    /// Sends a command that the server need not know.
    pub(super) async fn try_to(&self, command: &Cmd) -> Result<Value, Failure> {
        let Self { shared, link, .. } = self;
        let limit = shared.settings.response_timeout;
        match shared.exchange(link, command, limit).await {
            Some(answer) => answer.map_err(|error| shared.failed(link, command, &error)),
            None => {
                Err(Failure::Lost(format!("redis at {} did not answer in {limit:?}", shared.at())))
            }
        }
    }

    /// Whether the server is a Sentinel: none of them knows our commands.
    async fn is_sentinel(&self) -> bool {
        if let Some(is_sentinel) = self.link.is_sentinel.get() {
            return *is_sentinel;
        }
        let role = self.try_to(&cmd("ROLE")).await;
        let sentinel = Value::BulkString(b"sentinel".to_vec());
        let is_sentinel = matches!(role, Ok(Value::Array(role)) if role.first() == Some(&sentinel));
        *self.link.is_sentinel.get_or_init(|| is_sentinel)
    }

    /// What the server can compare by itself, if that is known. It is tried out by a task of its own, so no
    /// command waits for that.
    pub(super) fn native(&self, key: &StoreKey) -> Option<&Native> {
        let Self { shared, link, .. } = self;
        let native = link.native.get();
        if native.is_none()
            && shared.lost_trials.load(Ordering::Relaxed) < MAX_LOST_TRIALS
            && !link.is_tried.swap(true, Ordering::Relaxed)
        {
            let (shared, link) = (Arc::clone(shared), Arc::clone(link));
            tokio::spawn(try_out(shared, link, Native::trials(key)));
        }
        native
    }
}

/// After so many connections in a row that did not survive it, nothing is tried out any more: there are
/// proxies that end a connection at a command that they do not know.
const MAX_LOST_TRIALS: usize = 2;

/// Finds out what the server can compare by itself.
async fn try_out(shared: Arc<SharedConnection>, link: Arc<Connection>, trials: [Cmd; 3]) {
    // A connection must not be kept by this for as long as an application may wait.
    let limit = shared.settings.response_timeout.min(limits::RESPONSE);
    let [set, delifeq, delex] = &trials;
    let try_to = async |trial| match shared.exchange(&link, trial, limit).await {
        Some(Ok(answer)) => Trial::Answered(answer),
        Some(Err(error)) => match Answer::of(None, trial, &error) {
            Some(answer) if answer.is_of_no_such_command() => Trial::Unknown,
            Some(_) => Trial::Refused,
            None => Trial::Lost,
        },
        None => Trial::Lost,
    };
    // All of them at once, in one round trip.
    let (set, delifeq, delex) = join3(try_to(set), try_to(delifeq), try_to(delex)).await;
    let trials = [set, delifeq, delex];
    if trials.contains(&Trial::Lost) {
        shared.lost_trials.fetch_add(1, Ordering::Relaxed);
        return;
    }
    shared.lost_trials.store(0, Ordering::Relaxed);
    if trials.contains(&Trial::Refused) {
        // Its memory may be full, for example: that says nothing of what it can do.
        link.is_tried.store(false, Ordering::Relaxed);
        return;
    }
    // Nobody else has set it: one trial runs at a time, until one sets it.
    let _ = link.native.set(Native::judged(trials));
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
    /// What the server can compare by itself, once that is known.
    native: OnceLock<Native>,
    /// That is being tried out, or was.
    is_tried: AtomicBool,
    is_sentinel: OnceLock<bool>,
    /// Ended with the last user: it would go on to write what nobody waits for any more.
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

async fn connect(settings: Settings, release: ReleaseOnDrop, attempt: watch::Sender<Attempt>) {
    let limit = settings.connect_timeout;
    let (shared, generation) = (release.shared.clone(), release.generation);
    let (connection, driver) = match timeout(limit, dial(&settings, &attempt)).await {
        Ok(Ok(connected)) => connected,
        failed => {
            // First, so that whoever is told of the failure can try again at once.
            drop(release);
            attempt.send_modify(|attempt| {
                *attempt = Attempt::Over(Err(match (failed, &*attempt) {
                    (Ok(Err(reason)), _) => reason,
                    (_, Attempt::Underway(step)) => step.timed_out(limit),
                    (_, Attempt::Over(_)) => return,
                }));
            });
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
        native: OnceLock::new(),
        is_tried: AtomicBool::new(false),
        is_sentinel: OnceLock::new(),
        driver: task.abort_handle(),
    });
    if let Some(shared) = shared.upgrade() {
        shared.install(&link);
    }
    attempt.send_replace(Attempt::Over(Ok(link)));
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;
type Connected = (MultiplexedConnection, Driver);

/// Connects; the error says why not, without any secret.
async fn dial(settings: &Settings, attempt: &watch::Sender<Attempt>) -> Result<Connected, String> {
    match settings.info.addr() {
        ConnectionAddr::Tcp(host, port) => {
            let stream = dial_tcp(host, *port, settings.connect_timeout).await;
            let stream = stream.map_err(|error| error.to_string())?;
            if let Some(tls) = &settings.tls {
                attempt.send_replace(Attempt::Underway(Step::Encryption));
                let stream = tls.encrypt(host, stream).await?;
                return handshake(settings, stream, attempt, "").await;
            }
            handshake(settings, stream, attempt, "; a port that speaks TLS needs rediss://").await
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path).await;
            handshake(settings, stream.map_err(|error| error.to_string())?, attempt, "").await
        }
        _ => Err(io::Error::from(io::ErrorKind::Unsupported).to_string()),
    }
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

/// Greets the server; `hint` says what a server may want that hangs up.
async fn handshake<S>(
    settings: &Settings,
    mut stream: S,
    attempt: &watch::Sender<Attempt>,
    hint: &str,
) -> Result<Connected, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    attempt.send_replace(Attempt::Underway(Step::Greeting));
    let info = settings.info.redis_settings();
    greet(&mut stream, info).await.map_err(|refusal| match refusal {
        Refusal::Answered(reason) => reason,
        Refusal::Broken(error) if is_end(&error) => {
            format!("the server hung up during the handshake{hint}")
        }
        Refusal::Broken(error) => tls::reason(&error),
    })?;
    // The greeting has said all but the version of the protocol.
    let info = RedisConnectionInfo::default().set_skip_set_lib_name().set_protocol(info.protocol());
    let stream = Sanitized::new(stream);
    let (connection, driver) =
        MultiplexedConnection::new_with_config(&info, stream, configuration()).await.map_err(
            |error| match Answer::of(Some("it".to_owned()), &cmd("HELLO"), &error) {
                Some(answer) => answer.to_string(),
                None => reason(&error),
            },
        )?;
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

#[cfg(test)]
mod tests {
    use ::redis::ErrorKind as Said;
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::advance;

    use super::*;
    use crate::store::redis::address;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// After a second attempt to connect.
    fn shared(phase: Phase) -> SharedConnection {
        let shared = SharedConnection::new(Settings::new(address::parse("redis://h").unwrap()));
        *shared.state() = State { generation: 2, phase };
        shared
    }

    fn connecting() -> Phase {
        Phase::Connecting(watch::channel(Attempt::Underway(Step::Connection)).1)
    }

    /// A connection that nobody drives.
    async fn link(generation: u64) -> Arc<Connection> {
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let (stream, _) = tokio::io::duplex(1);
        let connected = MultiplexedConnection::new_with_config(&info, stream, configuration());
        Arc::new(Connection {
            connection: connected.await.unwrap().0,
            generation,
            silence: Mutex::new(Silence::new()),
            native: OnceLock::new(),
            is_tried: AtomicBool::new(false),
            is_sentinel: OnceLock::new(),
            driver: tokio::spawn(async {}).abort_handle(),
        })
    }

    /// The attempt that made the current connection.
    fn current(shared: &SharedConnection) -> Option<u64> {
        shared.connected().map(|link| link.generation)
    }

    #[tokio::test]
    async fn connection_of_attempt_that_was_given_up_is_not_used() {
        for (phase, made, used) in [
            (connecting(), 2, Some(2)),
            // Another attempt was begun meanwhile, or has been successful.
            (connecting(), 1, None),
            (Phase::Connected(link(2).await), 1, Some(2)),
            // It has ended by now.
            (Phase::Idle, 2, None),
        ] {
            let shared = shared(phase);
            shared.install(&link(made).await);
            assert_eq!(current(&shared), used);
        }
    }

    #[tokio::test]
    async fn end_of_older_connection_leaves_newer_one() {
        let shared = shared(Phase::Connected(link(2).await));
        shared.discard(1);
        assert_eq!(current(&shared), Some(2));
        shared.discard(2);
        assert_eq!(current(&shared), None);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_adds_up_until_an_answer_comes() {
        let mut silence = Silence::new();
        // Nobody waits at first, and in between.
        for (waits, length) in [(30, 30), (40, 70)] {
            advance(ms(1000)).await;
            silence.begin();
            advance(ms(waits)).await;
            assert_eq!(silence.given_up(), ms(length));
        }
        silence.begin();
        advance(ms(10)).await;
        silence.answered();
        advance(ms(1000)).await;
        silence.begin();
        advance(ms(20)).await;
        assert_eq!(silence.given_up(), ms(20));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_once_where_several_wait() {
        let mut silence = Silence::new();
        silence.begin();
        advance(ms(10)).await;
        silence.begin();
        advance(ms(10)).await;
        assert_eq!(silence.given_up(), ms(20));
        advance(ms(10)).await;
        silence.begin();
        assert_eq!(silence.given_up(), ms(30));
        // An answer to one of them ends the silence for all.
        silence.begin();
        silence.answered();
        advance(ms(5)).await;
        assert_eq!(silence.given_up(), ms(5));
    }

    #[tokio::test(start_paused = true)]
    async fn only_long_silence_costs_the_connection() {
        for (response_timeout, waited, is_answered, kept) in [
            (400, 99, false, true),
            (400, 100, false, false),
            (20, 19, false, true),
            (20, 20, false, false),
            // It was slow, and is not silent.
            (400, 399, true, true),
        ] {
            let link = link(2).await;
            let mut shared = shared(Phase::Connected(Arc::clone(&link)));
            shared.settings.response_timeout = ms(response_timeout);
            let waiting = Waiting::new(&shared, &link);
            advance(ms(waited)).await;
            if is_answered {
                waiting.answered();
            } else {
                drop(waiting);
            }
            assert_eq!(current(&shared).is_some(), kept, "{waited} of {response_timeout}");
        }
    }

    #[tokio::test]
    async fn silent_address_leaves_time_to_say_so() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // It swallows packets when it has no room for more.
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

    #[test]
    fn reason_repeats_nothing_of_the_server() {
        let error = io::Error::other("the network is gone");
        assert_eq!(reason(&error.into()), "the network is gone");
        let error = RedisError::from((Said::Parse, "no valid answer", "private".to_owned()));
        assert_eq!(reason(&error), error.category());
        assert!(!error.category().is_empty());
        assert!(error.to_string().contains("private"));
    }
}
