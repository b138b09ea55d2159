//! A hand-written application. It scans the cookie header and keeps a JSON blob under a random key, over one
//! multiplexed connection. It is not safe at all: concurrent changes overwrite each other, and a slow request
//! restores a session that was signed out.

use std::net::TcpListener;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use axum::Router;
use axum::extract::State;
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rand::RngExt as _;
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};

use super::{LONG, SHORT, USER, serve_actix, text};

const TTL: u64 = 1800;

#[derive(Serialize, Deserialize)]
struct Blob {
    user: String,
    count: u64,
    text: String,
}

#[derive(Clone)]
struct Hand(MultiplexedConnection);

impl Hand {
    async fn connect(url: &str, nodelay: bool) -> Self {
        use redis::IntoConnectionInfo as _;
        let mut info = url.into_connection_info().unwrap();
        if nodelay {
            let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
            info = info.set_tcp_settings(tcp);
        }
        let client = redis::Client::open(info).unwrap();
        Self(client.get_multiplexed_async_connection().await.unwrap())
    }

    async fn load(&self, id: Option<&str>) -> Option<Blob> {
        let blob: Option<Vec<u8>> = self.0.clone().get(key(id?)).await.unwrap();
        Some(serde_json::from_slice(&blob?).unwrap())
    }

    async fn read(&self, id: Option<&str>) -> Option<String> {
        Some(self.load(id).await?.count.to_string())
    }

    async fn increment(&self, id: Option<&str>) -> Option<String> {
        let mut blob = self.load(id).await?;
        blob.count += 1;
        let bytes = serde_json::to_vec(&blob).unwrap();
        let () = self.0.clone().set_ex(key(id?), bytes, TTL).await.unwrap();
        Some(blob.count.to_string())
    }

    /// Signs in, and returns the `Set-Cookie` header.
    async fn sign_in(&self, old: Option<&str>, size: usize) -> String {
        let known = self.load(old).await;
        let count = known.as_ref().map_or(0, |blob| blob.count);
        let blob = Blob { user: USER.to_owned(), count, text: text(size) };
        let bytes = serde_json::to_vec(&blob).unwrap();
        let id = format!("{:032x}", rand::rng().random::<u128>());
        let mut commands = redis::pipe();
        commands.set_ex(key(&id), bytes, TTL).ignore();
        if let Some(old) = old.filter(|_| known.is_some()) {
            commands.del(key(old)).ignore();
        }
        let () = commands.query_async(&mut self.0.clone()).await.unwrap();
        format!("id={id}; Path=/; HttpOnly; Secure; SameSite=Lax")
    }

    async fn sign_out(&self, id: Option<&str>) -> &'static str {
        if let Some(id) = id {
            let () = self.0.clone().del(key(id)).await.unwrap();
        }
        "id=; Path=/; Max-Age=0"
    }
}

fn key(id: &str) -> String {
    format!("session:{id}")
}

fn id(cookies: &str) -> Option<&str> {
    cookies.split("; ").find_map(|cookie| cookie.strip_prefix("id="))
}

fn axum_id(headers: &HeaderMap) -> Option<&str> {
    id(headers.get(COOKIE)?.to_str().ok()?)
}

fn axum_answer(body: Option<String>) -> Response {
    body.map_or(StatusCode::UNAUTHORIZED.into_response(), IntoResponse::into_response)
}

pub async fn axum(url: &str, nodelay: bool) -> Router {
    Router::new()
        .route("/plain", get(async || "plain"))
        .route(
            "/read",
            get(async |State(hand): State<Hand>, headers: HeaderMap| {
                axum_answer(hand.read(axum_id(&headers)).await)
            }),
        )
        .route(
            "/increment",
            post(async |State(hand): State<Hand>, headers: HeaderMap| {
                axum_answer(hand.increment(axum_id(&headers)).await)
            }),
        )
        .route(
            "/sign-in",
            post(async |State(hand): State<Hand>, headers: HeaderMap| {
                ([(SET_COOKIE, hand.sign_in(axum_id(&headers), SHORT).await)], "welcome")
            }),
        )
        .route(
            "/sign-in-1k",
            post(async |State(hand): State<Hand>, headers: HeaderMap| {
                ([(SET_COOKIE, hand.sign_in(axum_id(&headers), LONG).await)], "welcome")
            }),
        )
        .route(
            "/sign-out",
            post(async |State(hand): State<Hand>, headers: HeaderMap| {
                ([(SET_COOKIE, hand.sign_out(axum_id(&headers)).await)], "goodbye")
            }),
        )
        .with_state(Hand::connect(url, nodelay).await)
}

fn actix_id(request: &HttpRequest) -> Option<&str> {
    id(request.headers().get("cookie")?.to_str().ok()?)
}

fn actix_answer(body: Option<String>) -> HttpResponse {
    body.map_or_else(|| HttpResponse::Unauthorized().finish(), |body| HttpResponse::Ok().body(body))
}

fn with_cookie(cookie: &str, body: &'static str) -> HttpResponse {
    HttpResponse::Ok().insert_header(("set-cookie", cookie)).body(body)
}

pub fn actix(listener: TcpListener, url: &str, nodelay: bool) {
    actix_web::rt::System::new().block_on(async {
        // The connection is opened on the worker's runtime.
        let url = url.to_owned();
        let hand = std::sync::Arc::new(tokio::sync::OnceCell::new());
        let app = move || {
            let hand = web::Data::new(Lazy { url: url.clone(), nodelay, hand: hand.clone() });
            App::new()
                .app_data(hand)
                .route("/empty", web::get().to(async || "empty"))
                .route("/plain", web::get().to(async || "plain"))
                .route(
                    "/read",
                    web::get().to(async |hand: web::Data<Lazy>, request: HttpRequest| {
                        actix_answer(hand.get().await.read(actix_id(&request)).await)
                    }),
                )
                .route(
                    "/increment",
                    web::post().to(async |hand: web::Data<Lazy>, request: HttpRequest| {
                        actix_answer(hand.get().await.increment(actix_id(&request)).await)
                    }),
                )
                .route(
                    "/sign-in",
                    web::post().to(async |hand: web::Data<Lazy>, request: HttpRequest| {
                        let id = actix_id(&request);
                        with_cookie(&hand.get().await.sign_in(id, SHORT).await, "welcome")
                    }),
                )
                .route(
                    "/sign-in-1k",
                    web::post().to(async |hand: web::Data<Lazy>, request: HttpRequest| {
                        let id = actix_id(&request);
                        with_cookie(&hand.get().await.sign_in(id, LONG).await, "welcome")
                    }),
                )
                .route(
                    "/sign-out",
                    web::post().to(async |hand: web::Data<Lazy>, request: HttpRequest| {
                        let id = actix_id(&request);
                        with_cookie(hand.get().await.sign_out(id).await, "goodbye")
                    }),
                )
        };
        serve_actix!(listener, app);
    });
}

/// The connection, which is opened by the first worker that needs it.
struct Lazy {
    url: String,
    nodelay: bool,
    hand: std::sync::Arc<tokio::sync::OnceCell<Hand>>,
}

impl Lazy {
    async fn get(&self) -> &Hand {
        self.hand.get_or_init(|| Hand::connect(&self.url, self.nodelay)).await
    }
}
