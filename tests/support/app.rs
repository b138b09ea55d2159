//! The same application in both frameworks, controlled by scripts in its paths.
//!
//! In a handler, `/do/sign-in:alice,set:a=1` runs these two actions one after the other.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use unsticky::exchange::SessionHandle;
use unsticky::{Error, ErrorKind, Key, Level, Lifetime, Result, Session, Sessions, SignedIn};

use super::visit::sent_back;

pub const CART: Key<Vec<String>> = Key::new("cart").survives_sign_in();
pub const REMEMBERED: Lifetime =
    Lifetime::new(Duration::from_secs(7 * 86_400), Duration::from_secs(30 * 86_400));

/// A response from either framework.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(header, _)| header == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// Returns the session cookies that were set or removed.
    pub fn cookies(&self) -> Vec<&str> {
        let ours = |cookie: &&str| !cookie.starts_with("own=");
        self.all("set-cookie").into_iter().filter(ours).collect()
    }

    /// Returns the only session cookie that was set, in the form in which the browser sends it back.
    pub fn cookie(&self) -> String {
        let cookies = self.cookies();
        assert_eq!(cookies.len(), 1, "{self:?}");
        sent_back(cookies[0])
    }
}

#[derive(Debug, Clone)]
pub struct Ask {
    method: String,
    /// The request target: a path with its query, or an absolute URL as in HTTP/2.
    path: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Ask {
    pub fn new(method: &str, path: &str) -> Self {
        let (method, path) = (method.to_owned(), path.to_owned());
        Self { method, path, headers: Vec::new(), body: Vec::new() }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str) -> Self {
        Self::new("POST", path)
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Adds a `Cookie` header, unless `cookie` is empty.
    pub fn cookie(self, cookie: &str) -> Self {
        if cookie.is_empty() { self } else { self.header("cookie", cookie) }
    }

    pub fn body(self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self.header("content-type", content_type) }
    }

    /// Adds a form body that is already URL-encoded.
    pub fn form(self, form: &str) -> Self {
        self.body("application/x-www-form-urlencoded", form)
    }
}

type Answer = Pin<Box<dyn Future<Output = Reply>>>;

/// The application in one of the frameworks.
#[derive(Clone)]
pub struct App {
    pub framework: &'static str,
    call: Rc<dyn Fn(Ask) -> Answer>,
}

impl App {
    pub async fn ask(&self, ask: Ask) -> Reply {
        (self.call)(ask).await
    }

    /// Sends a GET request with these `Cookie` headers.
    pub async fn send(&self, path: &str, cookies: &[&[u8]]) -> Reply {
        let with = |ask: Ask, cookie: &&[u8]| ask.header("cookie", cookie);
        self.ask(cookies.iter().fold(Ask::get(path), with)).await
    }

    pub async fn get(&self, path: &str, cookie: &str) -> Reply {
        self.ask(Ask::get(path).cookie(cookie)).await
    }

    pub async fn run(&self, script: &str, cookie: &str) -> Reply {
        self.get(&format!("/do/{script}"), cookie).await
    }

    pub async fn sign_in(&self, principal: &str) -> String {
        self.run(&format!("sign-in:{principal}"), "").await.cookie()
    }

    pub async fn anonymous(&self) -> String {
        self.run("set:seed=1", "").await.cookie()
    }
}

/// Points at which a script waits until the test lets it continue.
#[derive(Clone, Default)]
pub struct Gates(Arc<Mutex<HashMap<String, Arc<GateState>>>>);

#[derive(Default)]
pub struct GateState {
    reached: tokio::sync::Notify,
    opened: tokio::sync::Notify,
}

impl Gates {
    fn gate(&self, name: &str) -> Arc<GateState> {
        self.0.lock().unwrap().entry(name.to_owned()).or_default().clone()
    }

    pub async fn reached(&self, name: &str) {
        self.gate(name).reached.notified().await;
    }

    pub fn open(&self, name: &str) {
        self.gate(name).opened.notify_one();
    }

    async fn pass(&self, name: &str) {
        let gate = self.gate(name);
        gate.reached.notify_one();
        gate.opened.notified().await;
    }
}

/// The result of a script: the response's status and the output of the actions.
pub type Outcome = Result<(u16, String)>;

/// Runs a script. Both frameworks use this function.
pub async fn perform(session: Session, script: String, gates: Gates) -> Outcome {
    let mut output = String::new();
    let mut status = 200;
    for action in script.split(',') {
        let (verb, argument) = action.split_once(':').unwrap_or((action, ""));
        let mut print = |text: &str| write!(output, "{text} ").unwrap();
        let key = Key::<String>::runtime(argument);
        match verb {
            "set" | "keep" => {
                let (name, value) = argument.split_once('=').unwrap();
                let key = Key::<String>::runtime(name);
                let key = if verb == "keep" { key.survives_sign_in() } else { key };
                session.insert(&key, &value.to_owned())?;
            }
            "big" => session.insert(&key, &"x".repeat(70_000))?,
            "get" => print(session.get(&key)?.as_deref().unwrap_or("-")),
            "get-number" => {
                let number = session.get(&Key::<u64>::runtime(argument))?;
                print(&number.unwrap_or(0).to_string());
            }
            "remove" => session.remove(&key),
            "take" => print(session.take(&key)?.as_deref().unwrap_or("-")),
            "inc" => session.update(Key::<u64>::runtime(argument), |number| *number += 1)?,
            "add" => {
                let item = argument.to_owned();
                session.update(CART, move |cart| cart.push(item.clone()))?;
            }
            "cart" => print(&session.get(CART)?.unwrap_or_default().join("+")),
            "once" => {
                let key = Key::<String>::runtime(argument);
                let taken = session.transact(move |values| values.take(&key)).await?;
                print(taken.as_deref().unwrap_or("-"));
            }
            "clear" => session.clear(),
            "keys" => print(&session.keys().join("+")),
            "json" => print(session.json(argument)?.as_deref().unwrap_or("-")),
            "empty" => print(&session.is_empty().to_string()),
            "flash" => session.flash(Level::Info, argument)?,
            "flashes" => session.flashes().await?.iter().for_each(|flash| print(&flash.text)),
            "rotate" => session.rotate(),
            "sign-in" => session.sign_in(argument)?,
            "sign-out" => session.sign_out(),
            "destroy" => session.destroy(),
            "remember" => session.set_lifetime(REMEMBERED),
            "browser" => session.set_lifetime(REMEMBERED.browser_session()),
            "passive" => session.mark_passive(),
            "save" => session.save().await?,
            "reload" => session.reload().await?,
            "is-lost" => {
                let has_failed = session.reload().await.is_err();
                print(&(has_failed && session.loss().is_some()).to_string());
            }
            "who" => print(session.principal().as_deref().unwrap_or("-")),
            "id" => print(&session.id().map_or("-".to_owned(), |id| id.to_string())),
            "gate" => gates.pass(argument).await,
            "status" => status = argument.parse().unwrap(),
            "panic" => panic!("as the script says"),
            other => panic!("no such action: {other}"),
        }
    }
    Ok((status, output.trim_end().to_owned()))
}

/// `/maybe`: a page that also works if the session cannot be loaded.
fn degraded(session: &Result<Session>) -> String {
    match session {
        Ok(session) => format!("signed in: {}", session.is_signed_in()),
        Err(error) => format!("without a session: {:?}", error.kind()),
    }
}

/// `/maybe-profile`: the application renders the rejection itself.
fn rendered(signed_in: Result<SignedIn>) -> (u16, String) {
    match signed_in {
        Ok(signed_in) => (200, format!("profile of {}", signed_in.principal)),
        Err(error) if error.kind() == ErrorKind::NotSignedIn => (200, "please sign in".to_owned()),
        Err(error) => (500, error.to_string()),
    }
}

#[derive(Clone, Debug)]
pub struct Admins(pub Option<Sessions>);

/// Signs the administrator in with the session of the administrators' layer, which can be any of several
/// layers.
async fn admin(handle: SessionHandle, admins: &Admins) -> Result<String, Error> {
    let handle = admins.0.as_ref().and_then(|admins| handle.of(admins));
    let session = handle.expect("the layer of the administrators").session().await?;
    session.sign_in("root")?;
    Ok("administrator".to_owned())
}

pub mod on_axum {
    use axum::extract::{Path, State};
    use axum::http::{HeaderValue, Request, StatusCode, header};
    use axum::response::{IntoResponse, Response};
    use axum::routing::get;
    use axum::{Extension, Router};
    use tower::ServiceExt as _;
    use unsticky::tower::SessionLayer;

    use super::*;

    async fn script(
        session: Session,
        State(gates): State<Gates>,
        Path(script): Path<String>,
    ) -> Result<Response> {
        let (status, body) = perform(session, script, gates).await?;
        Ok((StatusCode::from_u16(status).unwrap(), body).into_response())
    }

    async fn own_cookie(session: Session) -> Result<impl IntoResponse> {
        session.update(CART, |cart| cart.push("x".to_owned()))?;
        let headers = [
            (header::SET_COOKIE, "own=1"),
            (header::VARY, "accept, Cookie"),
            (header::CACHE_CONTROL, "public"),
        ];
        Ok((headers, "ok"))
    }

    pub fn router(gates: Gates) -> Router {
        Router::new()
            .route("/do/{script}", get(script))
            .route("/unused", get(async || "unused"))
            .route("/own-cookie", get(own_cookie))
            .route("/maybe", get(async |session: Result<Session>| degraded(&session)))
            .route("/profile", get(async |user: SignedIn| format!("profile of {}", user.principal)))
            .route(
                "/maybe-profile",
                get(async |user: Result<SignedIn>| {
                    let (status, body) = rendered(user);
                    (StatusCode::from_u16(status).unwrap(), body)
                }),
            )
            .route(
                "/admin",
                get(async |handle: SessionHandle, Extension(admins): Extension<Admins>| {
                    admin(handle, &admins).await
                }),
            )
            .route(
                "/both",
                get(
                    async |session: Session,
                           handle: SessionHandle,
                           Extension(admins): Extension<Admins>| {
                        session.sign_in("alice")?;
                        admin(handle, &admins).await
                    },
                ),
            )
            .route(
                "/sessions",
                get(async |sessions: Sessions| format!("{sessions:?}").len().to_string()),
            )
            .with_state(gates)
    }

    pub fn app(layers: &[Sessions], gates: Gates) -> App {
        let admins = Admins(layers.get(1).cloned());
        app_of(router(gates).layer(Extension(admins)), layers)
    }

    /// Returns an application with these routes and these session layers, which are listed from the innermost
    /// to the outermost.
    pub fn app_of(router: Router, layers: &[Sessions]) -> App {
        let router = layers
            .iter()
            .fold(router, |router, sessions| router.layer(SessionLayer::new(sessions.clone())));
        App {
            framework: "axum",
            call: Rc::new(move |ask| {
                let router = router.clone();
                Box::pin(async move {
                    let mut request = Request::builder().method(&*ask.method).uri(ask.path);
                    for (name, value) in ask.headers {
                        request = request.header(name, HeaderValue::from_bytes(&value).unwrap());
                    }
                    let request = request.body(axum::body::Body::from(ask.body)).unwrap();
                    let response = router.oneshot(request).await.unwrap();
                    let (parts, body) = response.into_parts();
                    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                    let headers = parts.headers.iter().map(|(name, value)| {
                        (name.to_string(), value.to_str().unwrap().to_owned())
                    });
                    Reply {
                        status: parts.status.as_u16(),
                        headers: headers.collect(),
                        body: String::from_utf8(body.to_vec()).unwrap(),
                    }
                })
            }),
        }
    }
}

pub mod on_actix {
    use actix_web::body::{BoxBody, MessageBody as _};
    use actix_web::http::{Method, StatusCode, header};
    use actix_web::middleware::Condition;
    use actix_web::{App as ActixApp, HttpResponse, test, web};
    use unsticky::actix::SessionMiddleware;

    use super::*;

    async fn script(
        session: Session,
        gates: web::Data<Gates>,
        script: web::Path<String>,
    ) -> Result<HttpResponse> {
        let (status, body) = perform(session, script.into_inner(), gates.get_ref().clone()).await?;
        Ok(HttpResponse::build(StatusCode::from_u16(status).unwrap()).body(body))
    }

    async fn own_cookie(session: Session) -> Result<HttpResponse> {
        session.update(CART, |cart| cart.push("x".to_owned()))?;
        Ok(HttpResponse::Ok()
            .insert_header((header::SET_COOKIE, "own=1"))
            .insert_header((header::VARY, "accept, Cookie"))
            .insert_header((header::CACHE_CONTROL, "public"))
            .body("ok"))
    }

    async fn maybe(session: Result<Session>) -> String {
        degraded(&session)
    }

    async fn profile(user: SignedIn) -> String {
        format!("profile of {}", user.principal)
    }

    async fn maybe_profile(user: Result<SignedIn>) -> HttpResponse {
        let (status, body) = rendered(user);
        HttpResponse::build(StatusCode::from_u16(status).unwrap()).body(body)
    }

    async fn both_pages(
        session: Session,
        handle: SessionHandle,
        admins: web::Data<Admins>,
    ) -> Result<String> {
        session.sign_in("alice")?;
        admin(handle, &admins).await
    }

    async fn admin_page(handle: SessionHandle, admins: web::Data<Admins>) -> Result<String> {
        admin(handle, &admins).await
    }

    pub fn routes(config: &mut web::ServiceConfig) {
        config
            .route("/do/{script}", web::get().to(script))
            .route("/unused", web::get().to(async || "unused"))
            .route("/own-cookie", web::get().to(own_cookie))
            .route("/maybe", web::get().to(maybe))
            .route("/profile", web::get().to(profile))
            .route("/maybe-profile", web::get().to(maybe_profile))
            .route("/admin", web::get().to(admin_page))
            .route("/both", web::get().to(both_pages))
            .route(
                "/sessions",
                web::get().to(async |sessions: Sessions| format!("{sessions:?}").len().to_string()),
            );
    }

    pub async fn app(layers: &[Sessions], gates: Gates) -> App {
        let admins = web::Data::new(Admins(layers.get(1).cloned()));
        let routes = |config: &mut web::ServiceConfig| {
            routes(config.app_data(web::Data::new(gates)).app_data(admins));
        };
        app_of(routes, layers).await
    }

    /// Returns an application with these routes and these session middlewares, which are listed from the
    /// innermost to the outermost.
    pub async fn app_of(routes: impl FnOnce(&mut web::ServiceConfig), layers: &[Sessions]) -> App {
        // An actix-web application's type contains its middlewares, so this function always applies two.
        assert!(layers.len() <= 2);
        let middleware = |index: usize| {
            let sessions = layers.get(index).or(layers.first()).cloned();
            let spare = || Session::detached().sessions().clone();
            let middleware = SessionMiddleware::new(sessions.unwrap_or_else(spare));
            Condition::new(index < layers.len(), middleware)
        };
        let app = ActixApp::new().configure(routes).wrap(middleware(0)).wrap(middleware(1));
        let service = Rc::new(test::init_service(app).await);
        App {
            framework: "actix",
            call: Rc::new(move |ask| {
                let service = service.clone();
                Box::pin(async move {
                    let mut request = test::TestRequest::with_uri(&ask.path)
                        .method(Method::from_bytes(ask.method.as_bytes()).unwrap());
                    for (name, value) in ask.headers {
                        let value = header::HeaderValue::from_bytes(&value).unwrap();
                        request = request.append_header((name, value));
                    }
                    if !ask.body.is_empty() {
                        request = request.set_payload(ask.body);
                    }
                    let response =
                        match test::try_call_service(&*service, request.to_request()).await {
                            Ok(response) => response.into_parts().1.map_into_boxed_body(),
                            Err(error) => error.error_response(),
                        };
                    let status = response.status().as_u16();
                    let headers = response.headers().iter().map(|(name, value)| {
                        (name.to_string(), value.to_str().unwrap().to_owned())
                    });
                    let headers = headers.collect();
                    let body: BoxBody = response.into_body();
                    let body = body.try_into_bytes().unwrap();
                    Reply { status, headers, body: String::from_utf8(body.to_vec()).unwrap() }
                })
            }),
        }
    }
}

/// Returns the application in both frameworks, both with these sessions.
pub async fn both(sessions: &Sessions) -> [App; 2] {
    both_with(std::slice::from_ref(sessions), Gates::default()).await
}

/// Returns the application in both frameworks, with these session layers, listed from the innermost to the
/// outermost.
pub async fn both_with(layers: &[Sessions], gates: Gates) -> [App; 2] {
    [on_axum::app(layers, gates.clone()), on_actix::app(layers, gates).await]
}

/// Returns an application with a test's own routes in both frameworks, with session layers listed from the
/// innermost to the outermost.
pub async fn both_of(
    router: axum::Router,
    routes: impl FnOnce(&mut actix_web::web::ServiceConfig),
    layers: &[Sessions],
) -> [App; 2] {
    [on_axum::app_of(router, layers), on_actix::app_of(routes, layers).await]
}
