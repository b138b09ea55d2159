//! Tests the API from its clients' point of view. Each scenario runs with both frameworks, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use unsticky::store::MemoryStore;
use unsticky::testing::{self, Fault, FaultStore, ManualClock, Verb};
use unsticky::{SessionId, Sessions};

#[allow(dead_code, reason = "main is not called")]
#[path = "../src/bin/api_actix.rs"]
mod api_actix;
#[allow(dead_code, reason = "main is not called")]
#[path = "../src/bin/api_axum.rs"]
mod api_axum;

const MINUTE: Duration = Duration::from_secs(60);
/// The check interval in scenarios that wait for a check.
const OFTEN: Duration = Duration::from_millis(5);
/// The check interval in scenarios in which only messages cause a check.
const NEVER: Duration = Duration::from_secs(3600);

/// Defines a test for each scenario in both frameworks.
macro_rules! scenarios {
    ($($scenario:ident: $check_every:ident),* $(,)?) => {
        mod axum {
            $(#[tokio::test]
            async fn $scenario() {
                let (stand, listener) = super::Stand::new();
                let app = super::api_axum::app(stand.sessions.clone(), super::$check_every);
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
                super::in_time(super::$scenario(stand)).await;
            })*
        }

        mod actix {
            use actix_web::{App, HttpServer};

            $(#[tokio::test]
            async fn $scenario() {
                let (stand, listener) = super::Stand::new();
                let sessions = stand.sessions.clone();
                let app = move || App::new().configure(|config| {
                    super::api_actix::routes(config, &sessions, super::$check_every);
                });
                let server = HttpServer::new(app).workers(1).disable_signals();
                let server = server.listen(listener).unwrap().run();
                let handle = server.handle();
                tokio::spawn(server);
                super::in_time(super::$scenario(stand)).await;
                handle.stop(false).await;
            })*
        }
    };
}

scenarios! {
    not_signed_in_is_401_in_json: NEVER,
    client_signs_in_and_out: NEVER,
    bad_input_is_400_in_json: NEVER,
    notes_need_csrf_token: NEVER,
    requests_of_other_origins_are_refused: NEVER,
    revoked_session_is_signed_out: NEVER,
    own_session_is_signed_out: NEVER,
    export_is_written_by_job: OFTEN,
    job_of_ended_session_writes_nothing: NEVER,
    outage_is_503_in_json: NEVER,
    socket_closes_after_sign_out: OFTEN,
    socket_closes_after_revocation: OFTEN,
    socket_closes_after_new_sign_in: OFTEN,
    unused_socket_closes_after_idle_timeout: OFTEN,
    socket_in_use_keeps_session_alive: NEVER,
    message_after_sign_out_is_not_answered: NEVER,
    socket_outlives_outage: NEVER,
    long_message_is_not_answered: NEVER,
}

/// Limits the duration of a scenario, because a socket that does not close would block it forever.
async fn in_time(scenario: impl Future<Output = ()>) {
    tokio::time::timeout(MINUTE / 4, scenario).await.expect("the scenario took too long");
}

/// A server with its store and clock, and a client.
struct Stand {
    address: SocketAddr,
    sessions: Sessions,
    store: FaultStore<MemoryStore>,
    clock: ManualClock,
    http: reqwest::Client,
}

impl Stand {
    fn new() -> (Self, TcpListener) {
        let clock = ManualClock::new();
        let store = FaultStore::new(MemoryStore::with_clock(clock.clone()));
        let sessions = api::builder(store.clone()).clock(clock.clone()).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (Self { address, sessions, store, clock, http: reqwest::Client::new() }, listener)
    }

    /// Signs Alice in on another device, and returns the cookie.
    async fn alice(&self) -> String {
        testing::signed_in(&self.sessions, "alice", |_| Ok(())).await.unwrap()
    }

    async fn ask(&self, method: Method, path: &str, cookie: &str) -> Answer {
        self.send(method, path, &[("cookie", cookie)], None).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = self.http.request(method, format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let cookie = response
            .headers()
            .get("set-cookie")
            .map(|cookie| cookie.to_str().unwrap().split(';').next().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = response.text().await.unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() };
        Answer { status, body, cookie }
    }

    async fn get(&self, path: &str, cookie: &str) -> Value {
        let answer = self.ask(Method::GET, path, cookie).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    async fn is_signed_in(&self, cookie: &str) -> bool {
        self.get("/me", cookie).await["principal"] == "alice"
    }

    async fn connect(&self, cookie: &str, origin: &str) -> Result<Socket, Answer> {
        let mut request = format!("ws://{}/live", self.address).into_client_request().unwrap();
        request.headers_mut().insert("cookie", HeaderValue::from_str(cookie).unwrap());
        request.headers_mut().insert("origin", HeaderValue::from_str(origin).unwrap());
        match connect_async(request).await {
            Ok((socket, _)) => Ok(Socket(socket)),
            Err(tungstenite::Error::Http(response)) => {
                let status = response.status().as_u16();
                let body = serde_json::from_slice(response.body().as_deref().unwrap()).unwrap();
                Err(Answer { status, body, cookie: None })
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Opens a socket with this cookie, which must be valid, and reads the first message.
    async fn live(&self, cookie: &str) -> Socket {
        let mut socket = self.connect(cookie, &self.origin()).await.unwrap();
        assert_eq!(socket.next_json().await["principal"], "alice");
        socket
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: Value,
    /// The cookie that the response sets, as a browser sends it back.
    cookie: Option<String>,
}

impl Answer {
    /// Returns the status and the error's name.
    fn error(&self) -> (u16, &str) {
        assert!(self.body["message"].is_string(), "{self:?}");
        (self.status, self.body["error"].as_str().unwrap())
    }
}

/// A client's WebSocket.
struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    async fn next(&mut self) -> Message {
        self.0.next().await.expect("the socket ended without a close frame").unwrap()
    }

    async fn next_json(&mut self) -> Value {
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            message => panic!("{message:?}"),
        }
    }

    /// Sends a message and returns the answer.
    async fn use_it(&mut self) -> Value {
        self.0.send(Message::text("in use")).await.unwrap();
        self.next_json().await
    }

    /// Skips text messages until the socket closes, and returns the close code.
    async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await {
                Message::Text(_) => {}
                Message::Close(frame) => return frame.unwrap().code.into(),
                message => panic!("{message:?}"),
            }
        }
    }
}

async fn not_signed_in_is_401_in_json(stand: Stand) {
    let id = "AAECAwQFBgcICQoLDA0ODw";
    for (method, path) in [
        (Method::GET, "/sessions"),
        (Method::DELETE, &format!("/sessions/{id}")),
        (Method::GET, "/csrf"),
        (Method::PUT, "/notes"),
        (Method::GET, "/export"),
        (Method::POST, "/export"),
        (Method::GET, "/live"),
    ] {
        let answer = stand.ask(method, path, "").await;
        assert_eq!(answer.error(), (401, "not_signed_in"), "{path}");
    }
    let refused = stand.connect("", &stand.origin()).await.err().unwrap();
    assert_eq!(refused.error(), (401, "not_signed_in"));
    assert_eq!(stand.get("/me", "").await, Value::Null);
}

async fn client_signs_in_and_out(stand: Stand) {
    let form = json!({"name": "alice", "device": "phone"});
    let answer = stand.send(Method::POST, "/sign-in", &[], Some(form)).await;
    assert_eq!(answer.status, 204);
    let cookie = answer.cookie.unwrap();
    assert!(cookie.starts_with("api="), "{cookie}");
    let me = json!({"principal": "alice", "notes": "", "export": {"state": "none"}});
    assert_eq!(stand.get("/me", &cookie).await, me);
    let sessions = stand.get("/sessions", &cookie).await;
    assert_eq!(sessions.as_array().unwrap().len(), 1);
    assert_eq!(
        (&sessions[0]["label"], &sessions[0]["is_current"]),
        (&json!("phone"), &json!(true))
    );
    let answer = stand.ask(Method::POST, "/sign-out", &cookie).await;
    assert_eq!((answer.status, answer.cookie.as_deref()), (204, Some("api=")));
    assert!(!stand.is_signed_in(&cookie).await);
}

async fn bad_input_is_400_in_json(stand: Stand) {
    let cookie = stand.alice().await;
    let cookie = [("cookie", &*cookie)];
    let long = "a".repeat(1001);
    for (method, path, body) in [
        (Method::POST, "/sign-in", None),
        (Method::POST, "/sign-in", Some(json!({}))),
        (Method::POST, "/sign-in", Some(json!({"name": ""}))),
        (Method::POST, "/sign-in", Some(json!({"name": long}))),
        (Method::POST, "/sign-in", Some(json!({"name": "bob", "device": 7}))),
        (Method::DELETE, "/sessions/7", None),
        (Method::DELETE, "/sessions/AAECAwQFBgcICQoLDA0OD!", None),
        (Method::DELETE, "/sessions/%ff", None),
        (Method::GET, "/live", None),
    ] {
        let answer = stand.send(method, path, &cookie, body).await;
        assert_eq!(answer.error(), (400, "bad_request"), "{path}");
    }
}

async fn notes_need_csrf_token(stand: Stand) {
    let cookie = stand.alice().await;
    let token = stand.get("/csrf", &cookie).await;
    let of_other_session = stand.get("/csrf", &stand.alice().await).await;
    let put = async |token: &[&str], notes: Value| {
        let tokens = token.iter().map(|token| ("x-csrf-token", *token));
        let headers: Vec<_> = [("cookie", &*cookie)].into_iter().chain(tokens).collect();
        stand.send(Method::PUT, "/notes", &headers, Some(notes)).await
    };
    let token = token.as_str().unwrap();
    let notes = json!({"text": "milk"});
    for tokens in [&[][..], &["forged"], &[of_other_session.as_str().unwrap()], &[token, token]] {
        assert_eq!(
            put(tokens, notes.clone()).await.error(),
            (403, "invalid_csrf_token"),
            "{tokens:?}"
        );
    }
    assert_eq!(put(&[token], json!({"text": 7})).await.error(), (400, "bad_request"));
    assert_eq!(stand.get("/me", &cookie).await["notes"], "");
    assert_eq!(put(&[token], notes).await.status, 204);
    assert_eq!(stand.get("/me", &cookie).await["notes"], "milk");
}

async fn requests_of_other_origins_are_refused(stand: Stand) {
    let cookie = stand.alice().await;
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        let refused = stand.connect(&cookie, origin).await.err().unwrap();
        assert_eq!(refused.error(), (403, "cross_origin"), "{origin}");
        let headers = [("cookie", &*cookie), ("origin", origin)];
        let refused = stand.send(Method::POST, "/sign-out", &headers, None).await;
        assert_eq!(refused.error(), (403, "cross_origin"), "{origin}");
    }
    assert!(stand.is_signed_in(&cookie).await);
}

async fn revoked_session_is_signed_out(stand: Stand) {
    let (phone, laptop) = (stand.alice().await, stand.alice().await);
    let bob = testing::signed_in(&stand.sessions, "bob", |_| Ok(())).await.unwrap();
    let id = id_of(&stand, &phone).await;
    let end =
        async |cookie: &str| stand.ask(Method::DELETE, &format!("/sessions/{id}"), cookie).await;
    assert_eq!(end(&bob).await.error(), (404, "not_found"));
    assert!(stand.is_signed_in(&phone).await);
    assert_eq!(end(&laptop).await.status, 204);
    assert!(!stand.is_signed_in(&phone).await && stand.is_signed_in(&laptop).await);
    assert_eq!(end(&laptop).await.error(), (404, "not_found"));
    let refused = stand.connect(&phone, &stand.origin()).await.err().unwrap();
    assert_eq!(refused.error(), (401, "not_signed_in"));
}

async fn own_session_is_signed_out(stand: Stand) {
    let cookie = stand.alice().await;
    let id = id_of(&stand, &cookie).await;
    let answer = stand.ask(Method::DELETE, &format!("/sessions/{id}"), &cookie).await;
    assert_eq!((answer.status, answer.cookie.as_deref()), (204, Some("api=")));
    assert!(!stand.is_signed_in(&cookie).await);
}

/// Returns the id of the session that belongs to a cookie.
async fn id_of(stand: &Stand, cookie: &str) -> SessionId {
    let sessions = stand.get("/sessions", cookie).await;
    let mut sessions = sessions.as_array().unwrap().iter();
    let current = sessions.find(|session| session["is_current"] == true).unwrap();
    current["id"].as_str().unwrap().parse().unwrap()
}

async fn export_is_written_by_job(stand: Stand) {
    let cookie = testing::signed_in(&stand.sessions, "alice", |it| it.insert(api::NOTES, "milk"));
    let cookie = cookie.await.unwrap();
    assert_eq!(stand.get("/export", &cookie).await, json!({"state": "none"}));
    let mut socket = stand.live(&cookie).await;
    assert_eq!(stand.ask(Method::POST, "/export", &cookie).await.status, 202);
    let done = json!({"state": "done", "text": "alice noted: milk"});
    while socket.next_json().await["export"] != done {}
    assert_eq!(stand.get("/export", &cookie).await, done);
}

async fn job_of_ended_session_writes_nothing(stand: Stand) {
    let cookie = stand.alice().await;
    let id = id_of(&stand, &cookie).await;
    assert!(api::export(&stand.sessions, "alice", id).await.unwrap());
    assert!(!api::export(&stand.sessions, "bob", id).await.unwrap());
    stand.ask(Method::POST, "/sign-out", &cookie).await;
    assert!(!api::export(&stand.sessions, "alice", id).await.unwrap());
}

async fn outage_is_503_in_json(stand: Stand) {
    let cookie = stand.alice().await;
    stand.store.fail_always(Verb::Load, Fault::Unavailable);
    for path in ["/me", "/sessions", "/live"] {
        let answer = stand.ask(Method::GET, path, &cookie).await;
        assert_eq!(answer.error(), (503, "unavailable"), "{path}");
    }
    stand.store.heal();
    assert!(stand.is_signed_in(&cookie).await);
}

async fn socket_closes_after_sign_out(stand: Stand) {
    let cookie = stand.alice().await;
    let mut socket = stand.live(&cookie).await;
    stand.ask(Method::POST, "/sign-out", &cookie).await;
    assert_eq!(socket.closed().await, 4003);
}

async fn socket_closes_after_revocation(stand: Stand) {
    let (phone, laptop) = (stand.alice().await, stand.alice().await);
    let mut socket = stand.live(&phone).await;
    let path = format!("/sessions/{}", id_of(&stand, &phone).await);
    assert_eq!(stand.ask(Method::DELETE, &path, &laptop).await.status, 204);
    assert_eq!(socket.closed().await, 4003);
    stand.live(&laptop).await;
}

async fn socket_closes_after_new_sign_in(stand: Stand) {
    // A sign-in by another user ends the session, and the browser gets a new one.
    for (name, code) in [("alice", 4001), ("bob", 4003)] {
        let cookie = stand.alice().await;
        let mut socket = stand.live(&cookie).await;
        let headers = [("cookie", &*cookie)];
        let form = Some(json!({ "name": name }));
        let newer = stand.send(Method::POST, "/sign-in", &headers, form).await.cookie.unwrap();
        assert_eq!(socket.closed().await, code);
        let mut socket = stand.connect(&newer, &stand.origin()).await.unwrap();
        assert_eq!(socket.next_json().await["principal"], name);
    }
}

async fn unused_socket_closes_after_idle_timeout(stand: Stand) {
    let cookie = stand.alice().await;
    stand.clock.advance(10 * MINUTE);
    // Neither the handshake nor the checks extend the idle timeout.
    let mut socket = stand.live(&cookie).await;
    stand.clock.advance(10 * MINUTE);
    for _ in 0..2 {
        // The second check starts only after the first has finished.
        let check = stand.store.hold(Verb::Load);
        check.reached().await;
        check.release();
    }
    stand.clock.advance(10 * MINUTE);
    assert_eq!(socket.closed().await, 4002);
    assert!(!stand.is_signed_in(&cookie).await);
}

async fn socket_in_use_keeps_session_alive(stand: Stand) {
    let cookie = stand.alice().await;
    let mut socket = stand.live(&cookie).await;
    for _ in 0..3 {
        stand.clock.advance(20 * MINUTE);
        assert_eq!(socket.use_it().await["principal"], "alice");
    }
    stand.clock.advance(20 * MINUTE);
    assert!(stand.is_signed_in(&cookie).await);
}

async fn message_after_sign_out_is_not_answered(stand: Stand) {
    let cookie = stand.alice().await;
    let mut socket = stand.live(&cookie).await;
    stand.ask(Method::POST, "/sign-out", &cookie).await;
    socket.0.send(Message::text("in use")).await.unwrap();
    assert!(
        matches!(socket.next().await, Message::Close(Some(frame)) if frame.code == 4003.into())
    );
}

async fn socket_outlives_outage(stand: Stand) {
    let cookie = stand.alice().await;
    let mut socket = stand.live(&cookie).await;
    stand.store.fail_always(Verb::Load, Fault::Unavailable);
    assert_eq!(socket.use_it().await["error"], "unavailable");
    stand.store.heal();
    assert_eq!(socket.use_it().await["principal"], "alice");
}

async fn long_message_is_not_answered(stand: Stand) {
    let mut socket = stand.live(&stand.alice().await).await;
    // The server may close the socket before it has read the whole message.
    let _ = socket.0.send(Message::text("a".repeat(100_000))).await;
    assert!(!matches!(socket.0.next().await, Some(Ok(Message::Text(_)))));
}
