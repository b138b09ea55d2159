//! The store's own connection: opened when the first command needs it, shared by all commands, and replaced
//! when it is broken.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, Pipeline, RedisError, Value, cmd};
use async_trait::async_trait;
use futures_util::future::{Either, join3, select};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::task::coop::has_budget_remaining;
use tokio::time::timeout;

use crate::limits;
use crate::store::key::StoreKey;
use crate::store::redis::answer::{Answer, explained, reason};
use crate::store::redis::dialing::{Batching, Server, Settings, Step, multiplex, open};
use crate::store::redis::native::{Native, Trial};
#[cfg(feature = "cli")]
use crate::store::redis::place::Place;
use crate::store::redis::reply::role;
use crate::store::redis::waits::Waits;

/// The server that a connection leads to.
#[derive(Clone)]
pub(super) enum Target {
    Server(Server),
    /// A server that must be a cluster node.
    Node(Server),
    /// A Sentinel, which is asked for the master.
    Sentinel(Server),
    /// The server that is the master at the time of connecting.
    Master(Arc<dyn FindMaster>),
}

impl Target {
    /// Returns the name by which errors refer to the target.
    fn name(&self) -> String {
        match self {
            Self::Server(server) | Self::Node(server) => format!("redis at {}", server.place),
            Self::Sentinel(server) => format!("the Sentinel at {}", server.place),
            Self::Master(master) => format!("the redis master {}", master.name()),
        }
    }
}

/// Finds the server that is currently the master.
#[async_trait]
pub(super) trait FindMaster: Send + Sync {
    /// Returns the name of the master, which stays the same when another server becomes the master.
    fn name(&self) -> &str;

    /// Returns the server that is the master now, or the reason why the master is not known.
    async fn find(&self) -> Result<Server, String>;

    /// Reports that the server found last may no longer be the master.
    fn suspect(&self);
}

/// The reason why a command returned no value.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command was not sent.
    NotSent(String),
    /// The command was not sent, because too many other commands are waiting.
    Full(String),
    /// The command may have been sent, and its outcome is unknown.
    Lost(String),
    /// The server answered with an error.
    Answered(Answer),
}

impl Failure {
    /// Interprets an error from a connection that the application made. Whatever the error says, such a
    /// connection may have sent the command, even several times. Only an answer from the server is
    /// conclusive.
    pub(super) fn of_foreign(command: &Cmd, error: &RedisError) -> Self {
        match Answer::of(None, command, error) {
            Some(answer) => Self::Answered(answer),
            None => Self::Lost(format!("redis: {}", reason(error))),
        }
    }
}

/// Describes what happened, without any text that the server may have echoed.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(reason) | Self::Full(reason) | Self::Lost(reason) => f.write_str(reason),
            Self::Answered(answer) => answer.fmt(f),
        }
    }
}

/// A connection to one server that all commands in a runtime share, and that is replaced when necessary.
pub(super) struct SharedConnection {
    settings: Settings,
    target: Target,
    /// The name by which errors refer to the target.
    name: String,
    /// The number of commands that are waiting for a connection or for their answer.
    waiting: AtomicUsize,
    /// How many connections in a row have broken while the store was trying out the server's commands.
    lost_trials: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    /// The number of attempts to connect. It identifies a connection, so that the end of an old one does not
    /// discard a newer one.
    generation: u64,
    phase: Phase,
}

enum Phase {
    Idle,
    Connecting(watch::Receiver<Attempt>),
    Connected(Arc<Connection>),
}

/// The progress of an attempt to connect, for all commands that wait for it.
enum Attempt {
    Underway(Step),
    Over(Result<Arc<Connection>, String>),
}

impl Attempt {
    fn is_over(&self) -> bool {
        matches!(self, Self::Over(_))
    }
}

impl SharedConnection {
    pub(super) fn new(settings: Settings, target: Target) -> Self {
        Self {
            settings,
            name: target.name(),
            target,
            waiting: AtomicUsize::new(0),
            lost_trials: AtomicUsize::new(0),
            state: Mutex::new(State { generation: 0, phase: Phase::Idle }),
        }
    }

    /// Sends a command once and waits for its answer.
    pub(super) async fn send(self: &Arc<Self>, command: &Cmd) -> Result<Value, Failure> {
        self.lease().await?.send(command).await
    }

    /// Sends a command to the cluster node to which a slot is being moved. The node accepts the command only
    /// right after `ASKING`.
    pub(super) async fn send_asking(self: &Arc<Self>, command: &Cmd) -> Result<Value, Failure> {
        self.lease().await?.send_asking(command).await
    }

    /// Returns the current connection, or a new one, for several commands that must go to the same server.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease<'_>, Failure> {
        let permit = self
            .permit()
            .ok_or_else(|| Failure::Full(format!("too many commands wait for {}", self.name)))?;
        let link = match self.connected() {
            Some(link) => link,
            None => Box::pin(self.connect_or_join()).await.map_err(Failure::NotSent)?,
        };
        Ok(Lease { shared: self, link, _permit: permit })
    }

    /// Sends a command on this connection. Returns `None` if no answer arrives within the limit.
    async fn exchange(
        &self,
        link: &Connection,
        command: &Cmd,
        limit: Duration,
    ) -> Option<Result<Value, RedisError>> {
        let mut connection = link.connection.clone();
        let answer = pin!(connection.send_packed_command(command));
        let answer = self.in_time(link, limit, answer).await?;
        Some(answer.and_then(Value::extract_error))
    }

    /// Waits for the answer to a command on this connection. Returns `None` if no answer arrives within the
    /// limit, or if none can arrive any more. A command that is sent while the connection is ending may stay
    /// in the driver's queue, and its sender is then never notified.
    fn in_time<'a, T>(
        &'a self,
        link: &'a Connection,
        limit: Duration,
        mut answer: Pin<&'a mut impl Future<Output = T>>,
    ) -> impl Future<Output = Option<T>> {
        let mut waiting: Option<Waiting<'_>> = None;
        poll_fn(move |cx| {
            let may_answer = has_budget_remaining();
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                if let Some(mut waiting) = waiting.take() {
                    waiting.answered();
                }
                return Poll::Ready(Some(answer));
            }
            let is_over = match &waiting {
                // If `may_answer` is false, the runtime may be withholding the answer, and will wake the task
                // again.
                Some(waiting) => may_answer && waiting.is_over(cx.waker()),
                None => {
                    waiting = Waiting::begin(self, link, limit, cx.waker());
                    waiting.is_none()
                }
            };
            if is_over { Poll::Ready(None) } else { Poll::Pending }
        })
    }

    /// Returns the failure of a command that got no answer on this connection.
    fn unanswered(&self, link: &Connection, limit: Duration) -> Failure {
        self.suspect();
        let Connection { name, waits, .. } = link;
        Failure::Lost(if waits.is_closed() {
            // Discarded now rather than when its task ends, because the caller may retry at once.
            self.discard(link.generation);
            format!("{name} hung up")
        } else {
            format!("{name} did not answer in {limit:?}")
        })
    }

    /// Counts one more waiting command, unless there are too many already.
    fn permit(&self) -> Option<WaitingPermit<'_>> {
        // Incremented first, so that two commands cannot both take the last permit.
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = WaitingPermit(&self.waiting);
        (before < self.settings.max_waiting).then_some(place)
    }

    fn failed(&self, link: &Connection, command: &Cmd, error: &RedisError) -> Failure {
        let Some(answer) = Answer::of(Some(link.name.clone()), command, error) else {
            self.discard(link.generation);
            return Failure::Lost(format!("{}: {}", link.name, reason(error)));
        };
        if answer.is_of_the_wrong_server() {
            self.discard(link.generation);
        } else if answer.is_of_perhaps_the_wrong_server() {
            self.suspect();
        }
        Failure::Answered(match &self.target {
            Target::Server(_) | Target::Sentinel(_) => answer,
            Target::Node(_) => answer.of_cluster_node(),
            Target::Master(_) => answer.of_master(),
        })
    }

    /// Returns the current connection, if there is one.
    fn connected(&self) -> Option<Arc<Connection>> {
        match &self.state().phase {
            Phase::Connected(link) => Some(Arc::clone(link)),
            _ => None,
        }
    }

    /// Returns the current connection, waits for one that is being opened, or opens one.
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
            // Runs in a separate task, so that a command that stops waiting does not stop the attempt for the
            // others.
            let (settings, target) = (self.settings.clone(), self.target.clone());
            tokio::spawn(connect(settings, target, release, sender));
        }
        let limit = self.settings.connect_timeout;
        let waited =
            timeout(limit, attempt.wait_for(Attempt::is_over)).await.map(|over| over.map(drop));
        let reason = match (waited, &*attempt.borrow()) {
            (_, Attempt::Over(Ok(link))) => return Ok(Arc::clone(link)),
            (_, Attempt::Over(Err(reason))) => reason.clone(),
            // The runtime on which the attempt ran was shut down.
            (Ok(_), _) => "the attempt was abandoned".to_owned(),
            (Err(_), Attempt::Underway(step)) => {
                // An attempt on a runtime that is no longer driven would never end.
                self.discard(generation);
                step.timed_out(limit)
            }
        };
        Err(format!("cannot connect to {}: {reason}", self.name))
    }

    /// Makes `link` the current connection, unless the attempt that opened it has been abandoned in the
    /// meantime.
    fn install(&self, link: &Arc<Connection>) {
        let mut state = self.state();
        if state.generation == link.generation && matches!(state.phase, Phase::Connecting(_)) {
            state.phase = Phase::Connected(Arc::clone(link));
        }
    }

    /// Discards the connection of this generation, so that the next command opens a new one.
    ///
    /// Commands that are waiting on the old connection keep it alive until they have their answers.
    fn discard(&self, generation: u64) {
        let mut state = self.state();
        if state.generation == generation {
            let old = std::mem::replace(&mut state.phase, Phase::Idle);
            drop(state);
            // Dropped without holding the lock, because dropping a connection calls this function.
            drop(old);
        }
    }

    /// Discards the current connection if it leads to a server other than this one. Commands that are waiting
    /// on the connection keep it alive until they have their answers.
    pub(super) fn leave_unless_at(&self, server: &Server) {
        if let Some(link) = self.connected()
            && link.server != *server
        {
            self.discard(link.generation);
        }
    }

    /// Returns the server of this connection, if the server never changes.
    pub(super) fn fixed_server(&self) -> Option<&Server> {
        match &self.target {
            Target::Server(server) | Target::Node(server) | Target::Sentinel(server) => {
                Some(server)
            }
            Target::Master(_) => None,
        }
    }

    /// Returns the name by which errors refer to the server.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected().is_some()
    }

    fn suspect(&self) {
        if let Target::Master(master) = &self.target {
            master.suspect();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, and the permit of the caller that uses it.
pub(super) struct Lease<'a> {
    shared: &'a Arc<SharedConnection>,
    link: Arc<Connection>,
    _permit: WaitingPermit<'a>,
}

impl Lease<'_> {
    /// Returns the server to which the connection leads.
    pub(super) fn server(&self) -> &Server {
        &self.link.server
    }

    /// Sends a command once and waits for its answer.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, Failure> {
        match self.try_to(command).await {
            Err(Failure::Answered(answer)) if answer.is_unknown_command() => {
                let is_sentinel = Box::pin(self.is_sentinel()).await;
                Err(Failure::Answered(if is_sentinel { answer.of_sentinel() } else { answer }))
            }
            outcome => outcome,
        }
    }

    /// Sends a command that the server may not support.
    pub(super) async fn try_to(&self, command: &Cmd) -> Result<Value, Failure> {
        let Self { shared, link, .. } = self;
        let limit = shared.settings.response_timeout;
        match shared.exchange(link, command, limit).await {
            Some(answer) => answer.map_err(|error| shared.failed(link, command, &error)),
            None => Err(shared.unanswered(link, limit)),
        }
    }

    /// Returns the address of the server to which this connection leads.
    #[cfg(feature = "cli")]
    pub(super) fn place(&self) -> &Place {
        &self.link.server.place
    }

    async fn send_asking(&self, command: &Cmd) -> Result<Value, Failure> {
        let Self { shared, link, .. } = self;
        let asking = cmd("ASKING");
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.add_command(asking.clone()).add_command(command.clone());
        let mut connection = link.connection.clone();
        let limit = shared.settings.response_timeout;
        let answers = pin!(connection.send_packed_commands(&pipeline, 0, 2));
        let Some(answers) = shared.in_time(link, limit, answers).await else {
            return Err(shared.unanswered(link, limit));
        };
        let failed = |command, error| shared.failed(link, command, &error);
        let answers = answers.map_err(|error| failed(command, error))?;
        let mut answers = answers.into_iter().map(Value::extract_error);
        let (Some(asked), Some(answer)) = (answers.next(), answers.next()) else {
            return Err(Failure::Lost(format!(
                "{} answered fewer commands than it was sent",
                link.name
            )));
        };
        match (asked, answer.map_err(|error| failed(command, error))) {
            // The command was not executed, because the server refused the `ASKING` before it.
            (Err(error), Err(Failure::Answered(answer))) if answer.is_redirect() => {
                Err(failed(&asking, error))
            }
            (_, outcome) => outcome,
        }
    }

    /// Returns whether the server is a Sentinel, which supports none of the store's commands.
    async fn is_sentinel(&self) -> bool {
        if let Some(is_sentinel) = self.link.is_sentinel.get() {
            return *is_sentinel;
        }
        let answer = self.try_to(&cmd("ROLE")).await;
        let is_sentinel = answer.is_ok_and(|answer| role(&answer) == Some("sentinel"));
        *self.link.is_sentinel.get_or_init(|| is_sentinel)
    }

    /// Returns which compare-and-set commands the server has, if that is known. A separate task tries them,
    /// so no command waits for the trial.
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

/// After this many trials in a row have got no answer, usually because the connection broke, the store stops
/// trying. Some proxies close a connection on which they receive a command that they do not know.
const MAX_LOST_TRIALS: usize = 2;

/// Determines which compare-and-set commands the server has.
async fn try_out(shared: Arc<SharedConnection>, link: Arc<Connection>, trials: [Cmd; 3]) {
    // An application may set a very long response timeout. The trial must not keep a connection for that
    // long.
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
    // All three are sent together, in one round trip.
    let (set, delifeq, delex) = join3(try_to(set), try_to(delifeq), try_to(delex)).await;
    let trials = [set, delifeq, delex];
    if trials.contains(&Trial::Lost) {
        shared.lost_trials.fetch_add(1, Ordering::Relaxed);
        return;
    }
    shared.lost_trials.store(0, Ordering::Relaxed);
    if trials.contains(&Trial::Refused) {
        // The server may be out of memory, for example. That says nothing about which commands it has.
        link.is_tried.store(false, Ordering::Relaxed);
        return;
    }
    // This cannot fail: only one trial runs at a time, and none starts once the value is set.
    let _ = link.native.set(Native::judged(trials));
}

/// Counts a waiting command until it is dropped.
struct WaitingPermit<'a>(&'a AtomicUsize);

impl Drop for WaitingPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection.
struct Connection {
    connection: MultiplexedConnection,
    server: Server,
    /// The name by which errors refer to the server.
    name: String,
    generation: u64,
    /// The commands that are waiting for their answers.
    waits: Arc<Waits>,
    /// Which compare-and-set commands the server has, once that is known.
    native: OnceLock<Native>,
    /// Whether a trial of the compare-and-set commands is running or has finished.
    is_tried: AtomicBool,
    is_sentinel: OnceLock<bool>,
    /// Aborted when the last user drops the connection. Otherwise the driver would go on writing commands for
    /// which no caller is waiting.
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// When a command is abandoned, its connection is discarded if it has been silent for at least this long. A
/// client that disconnects early must not cost a connection each time.
const LONG: Duration = Duration::from_millis(100);

/// A command that is waiting for its answer. If the command is abandoned, because its time limit has passed
/// or its caller was dropped, the connection is considered dead if it has been silent for too long.
struct Waiting<'a> {
    shared: &'a SharedConnection,
    link: &'a Connection,
    /// The index among the waiting commands, until the answer has arrived.
    place: Option<usize>,
}

impl<'a> Waiting<'a> {
    /// Returns `None` if the connection has ended.
    fn begin(
        shared: &'a SharedConnection,
        link: &'a Connection,
        limit: Duration,
        waker: &Waker,
    ) -> Option<Self> {
        let place = link.waits.begin(limit, waker)?;
        Some(Self { shared, link, place: Some(place) })
    }

    fn is_over(&self, waker: &Waker) -> bool {
        self.place.is_some_and(|place| self.link.waits.is_over(place, waker))
    }

    fn answered(&mut self) {
        if let Some(place) = self.place.take() {
            self.link.waits.answered(place);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(place) = self.place else { return };
        let silence = self.link.waits.given_up(place);
        if silence >= LONG.min(self.shared.settings.response_timeout) {
            self.shared.discard(self.link.generation);
        }
    }
}

/// Makes room for a new connection when the attempt or the driver ends, for whatever reason.
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
    target: Target,
    release: ReleaseOnDrop,
    attempt: watch::Sender<Attempt>,
) {
    let limit = settings.connect_timeout;
    let (shared, generation) = (release.shared.clone(), release.generation);
    let at = |step| drop(attempt.send_replace(Attempt::Underway(step)));
    let (server, connection, driver) = match timeout(limit, reach(&settings, &target, at)).await {
        Ok(Ok(reached)) => reached,
        failed => {
            // Dropped first, so that a caller can retry as soon as it learns of the failure.
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
    let waits = driver.waits();
    let task = tokio::spawn(async move {
        let _release = release;
        driver.await;
    });
    let name = match &target {
        Target::Master(_) => format!("{} at {}", target.name(), server.place),
        _ => target.name(),
    };
    let link = Arc::new(Connection {
        connection,
        server,
        name,
        generation,
        waits,
        native: OnceLock::new(),
        is_tried: AtomicBool::new(false),
        is_sentinel: OnceLock::new(),
        driver: task.abort_handle(),
    });
    if let Some(shared) = shared.upgrade() {
        shared.install(&link);
        // Another server may have become the master in the meantime.
        shared.suspect();
    }
    attempt.send_replace(Attempt::Over(Ok(link)));
}

/// Connects to the target. The error gives the reason, and contains no secret.
async fn reach(
    settings: &Settings,
    target: &Target,
    at: impl Fn(Step),
) -> Result<(Server, MultiplexedConnection, Batching), String> {
    let server = match target {
        Target::Server(server) | Target::Node(server) | Target::Sentinel(server) => server.clone(),
        Target::Master(master) => {
            at(Step::Sentinels);
            master.find().await?
        }
    };
    let named = |reason| match target {
        Target::Master(_) => format!("the Sentinels name {} as the master: {reason}", server.place),
        _ => reason,
    };
    let stream = open(settings, &server, at).await.map_err(named)?;
    let (connection, mut driver) = multiplex(settings, stream).await.map_err(named)?;
    let is_right = pin!(must_be(target, connection.clone()));
    match select(is_right, &mut driver).await {
        Either::Left((is_right, _)) => is_right.map_err(named)?,
        Either::Right(_) => return Err(named("it hung up".to_owned())),
    }
    Ok((server, connection, driver))
}

/// Checks that the server has the role that the target requires.
async fn must_be(target: &Target, connection: MultiplexedConnection) -> Result<(), String> {
    match target {
        Target::Server(_) | Target::Sentinel(_) => Ok(()),
        Target::Node(_) => must_be_node(connection).await,
        Target::Master(_) => must_be_master(connection).await,
    }
}

/// Checks that the server is a cluster node. A server outside a cluster would accept every command, even for
/// a key that belongs to a different node.
async fn must_be_node(mut connection: MultiplexedConnection) -> Result<(), String> {
    let command = cmd("CLUSTER").arg("SLOTS").take();
    let slots = connection.send_packed_command(&command).await.and_then(Value::extract_error);
    match slots.as_ref().map_err(|error| Answer::of(Some("it".to_owned()), &command, error)) {
        Err(Some(answer)) if answer.is_of_no_cluster() => Err(answer.to_string()),
        // The store's first command reports any other problem.
        _ => Ok(()),
    }
}

/// Checks that the server is a master. The server knows better than the Sentinels whether it accepts writes.
async fn must_be_master(mut connection: MultiplexedConnection) -> Result<(), String> {
    let command = cmd("ROLE");
    let answer = connection.send_packed_command(&command).await.and_then(Value::extract_error);
    match answer {
        Ok(answer) => match role(&answer) {
            Some("master") => Ok(()),
            Some(_) => Err("it says that it is a replica".to_owned()),
            None => Err("it does not say whether it is a master".to_owned()),
        },
        Err(error) => Err(explained(&command, &error)),
    }
}

#[cfg(test)]
mod tests {
    use ::redis::{AsyncConnectionConfig, RedisConnectionInfo};
    use futures_util::future::{join_all, pending};
    use futures_util::poll;
    use futures_util::task::noop_waker_ref;
    use tokio::io::{AsyncWriteExt as _, DuplexStream};
    use tokio::task::coop::consume_budget;
    use tokio::task::yield_now;
    use tokio::time::{Instant, advance, sleep};

    use super::*;
    use crate::store::redis::dialing::Duplex;
    use crate::store::redis::place::Place;
    use crate::store::redis::sanitize::Sanitized;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Returns a shared connection that has made two attempts to connect.
    fn shared(phase: Phase) -> SharedConnection {
        let settings = Settings::new(RedisConnectionInfo::default(), None);
        let target = Target::Server(Place::tcp("h", 6379).into());
        let shared = SharedConnection::new(settings, target);
        *shared.state() = State { generation: 2, phase };
        shared
    }

    fn connecting() -> Phase {
        Phase::Connecting(watch::channel(Attempt::Underway(Step::Connection)).1)
    }

    /// Returns a connection whose driver does not run.
    async fn link(generation: u64) -> Arc<Connection> {
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let (stream, _) = tokio::io::duplex(1);
        let connected =
            MultiplexedConnection::new_with_config(&info, stream, AsyncConnectionConfig::new());
        Arc::new(Connection {
            connection: connected.await.unwrap().0,
            server: Place::tcp("h", 6379).into(),
            name: "redis at h:6379".to_owned(),
            generation,
            waits: Arc::new(Waits::new()),
            native: OnceLock::new(),
            is_tried: AtomicBool::new(false),
            is_sentinel: OnceLock::new(),
            driver: tokio::spawn(async {}).abort_handle(),
        })
    }

    /// Returns the attempt that made the current connection.
    fn current(shared: &SharedConnection) -> Option<u64> {
        shared.connected().map(|link| link.generation)
    }

    #[tokio::test]
    async fn connection_of_attempt_that_was_given_up_is_not_used() {
        for (phase, made, used) in [
            (connecting(), 2, Some(2)),
            // Another attempt has started, or has already succeeded.
            (connecting(), 1, None),
            (Phase::Connected(link(2).await), 1, Some(2)),
            // The connection has ended in the meantime.
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
    async fn only_long_silence_costs_the_connection() {
        for (response_timeout, waited, is_answered, kept) in [
            (400, 99, false, true),
            (400, 100, false, false),
            (20, 19, false, true),
            (20, 20, false, false),
            // The answer was slow, but the connection was not silent.
            (400, 399, true, true),
        ] {
            let link = link(2).await;
            let mut shared = shared(Phase::Connected(Arc::clone(&link)));
            shared.settings.response_timeout = ms(response_timeout);
            let limit = ms(response_timeout);
            let mut waiting = Waiting::begin(&shared, &link, limit, noop_waker_ref()).unwrap();
            advance(ms(waited)).await;
            if is_answered {
                waiting.answered();
            }
            drop(waiting);
            assert_eq!(current(&shared).is_some(), kept, "{waited} of {response_timeout}");
        }
    }

    /// Returns a connection to a server that sends nothing unless the test tells it to.
    async fn silent(
        response_timeout: Duration,
    ) -> (SharedConnection, Arc<Connection>, DuplexStream) {
        let mut link = link(2).await;
        let mut shared = shared(Phase::Connected(Arc::clone(&link)));
        shared.settings.response_timeout = response_timeout;
        *shared.state() = State { generation: 2, phase: Phase::Idle };
        let (stream, server) = tokio::io::duplex(64);
        let stream = Sanitized::new(Box::new(stream) as Box<dyn Duplex>);
        let (connection, driver) = multiplex(&shared.settings, stream).await.unwrap();
        let own = Arc::get_mut(&mut link).unwrap();
        (own.connection, own.waits) = (connection, driver.waits());
        own.driver = tokio::spawn(driver).abort_handle();
        (shared, link, server)
    }

    #[tokio::test(start_paused = true)]
    async fn command_without_answer_fails_one_beat_after_its_limit_at_latest() {
        for (limit, beat) in [(400, 50), (120, 50), (20, 20), (0, 1)] {
            let (shared, link, _server) = silent(ms(limit)).await;
            let ping = cmd("PING");
            // Some commands start while the heartbeat runs and some while it rests, some together and some
            // one after another.
            let starts = [0, 7, 31, 49, 50, 75, 99, 1_000, 1_030, 1_999];
            let commands = starts.map(async |start| {
                sleep(ms(start)).await;
                let begun = Instant::now();
                assert!(shared.exchange(&link, &ping, ms(limit)).await.is_none());
                let late = begun.elapsed().checked_sub(ms(limit)).expect("it fails too early");
                assert!(late <= ms(beat + 1), "{late:?} after {limit}, begun at {start}");
            });
            join_all(commands).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answer_that_has_arrived_counts_after_a_standstill() {
        let (shared, link, mut server) = silent(ms(400)).await;
        // Runs in a separate task, which would be woken at the end of its time limit.
        let answer =
            tokio::spawn(async move { shared.exchange(&link, &cmd("PING"), ms(400)).await });
        sleep(ms(10)).await;
        server.write_all(b"+PONG\r\n").await.unwrap();
        advance(ms(1_000)).await;
        assert!(answer.await.unwrap().unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn answer_that_has_arrived_counts_when_task_has_used_up_its_budget() {
        let (shared, link, mut server) = silent(ms(400)).await;
        let task = tokio::spawn(async move {
            let ping = cmd("PING");
            let mut exchange = Box::pin(shared.exchange(&link, &ping, ms(400)));
            assert!(poll!(&mut exchange).is_pending());
            sleep(ms(1_000)).await;
            while has_budget_remaining() {
                assert!(poll!(Box::pin(consume_budget())).is_ready());
            }
            assert!(poll!(&mut exchange).is_pending());
            exchange.await
        });
        sleep(ms(10)).await;
        server.write_all(b"+PONG\r\n").await.unwrap();
        assert!(task.await.unwrap().unwrap().is_ok());
    }

    /// A command that is sent while the connection ends may stay in the driver's queue.
    #[tokio::test(start_paused = true)]
    async fn end_of_connection_ends_wait_for_answer_that_never_comes() {
        let (shared, link, _server) = silent(ms(400)).await;
        shared.state().phase = Phase::Connected(Arc::clone(&link));
        let never = || Box::pin(pending::<()>());
        let (mut first, mut second) = (never(), never());
        let mut waits = pin!(shared.in_time(&link, Duration::MAX, first.as_mut()));
        assert!(poll!(&mut waits).is_pending());
        link.driver.abort();
        assert_eq!(timeout(ms(60_000), waits).await, Ok(None));
        let begun_later = shared.in_time(&link, Duration::MAX, second.as_mut());
        assert_eq!(timeout(ms(60_000), begun_later).await, Ok(None));
        let failure = shared.unanswered(&link, ms(400));
        assert!(matches!(failure, Failure::Lost(reason) if reason == "redis at h:6379 hung up"));
        assert_eq!(current(&shared), None);
    }

    /// The driver cannot finish writing a large command, and its queue is full, so the last command is not
    /// even queued.
    #[tokio::test(start_paused = true)]
    async fn time_limit_holds_where_no_command_can_be_written() {
        let (shared, link, _server) = silent(ms(400)).await;
        let (large, ping) = (cmd("PING").arg(vec![0; 2 << 20]).take(), cmd("PING"));
        let mut first = Box::pin(shared.exchange(&link, &large, ms(400)));
        assert!(poll!(&mut first).is_pending());
        sleep(ms(10)).await;
        drop(first);
        for _ in 0..2_000 {
            assert!(poll!(Box::pin(shared.exchange(&link, &ping, ms(400)))).is_pending());
            yield_now().await;
        }
        sleep(ms(1_000)).await;
        let begun = Instant::now();
        assert!(shared.exchange(&link, &ping, ms(400)).await.is_none());
        assert!(begun.elapsed() <= ms(451), "{:?}", begun.elapsed());
    }
}
