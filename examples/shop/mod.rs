//! The parts of the shop that do not depend on the framework: its settings, its session value, its forms and
//! its pages.

#[cfg(all(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "it is for tests")]
pub(crate) mod probing;
pub(crate) mod ready;
#[cfg(all(test, feature = "testing"))]
#[path = "../../tests/support/servers.rs"]
mod servers;

use std::env;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use unsticky::{
    Builder, Cookie, CsrfToken, Error, ErrorResponse, Flash, Key, Lifetime, ListedSession, Next,
    Result, Session, SessionId, Sessions, SignedIn, Store, Wants,
};

/// Visitors fill the cart before they sign in, so the cart survives the sign-in.
pub(crate) const CART: Key<Vec<String>> = Key::new("cart").survives_sign_in();

/// How long users stay signed in if they choose "Remember me".
pub(crate) const REMEMBERED: Lifetime = {
    let month = Duration::from_secs(30 * 24 * 60 * 60);
    Lifetime::new(month, month)
};

/// The time within which a user must have authenticated to change the password.
pub(crate) const RECENTLY: Duration = Duration::from_secs(10 * 60);

/// A header field for the response to a sign-out. Without it, the browser keeps the user's pages, and its
/// "back" button shows them to the next person.
pub(crate) const FORGET_PAGES: (&str, &str) = ("clear-site-data", "\"cache\"");

/// Returns the shop's sessions. The environment variable `SESSION_URL` selects their store.
pub(crate) fn sessions() -> Result<Sessions, Box<dyn std::error::Error>> {
    let url = env::var("SESSION_URL").unwrap_or_else(|_| "memory:".to_owned());
    Ok(settings(unsticky::connect(&url)?).build()?)
}

pub(crate) fn settings(store: impl Store) -> Builder {
    Sessions::builder(store)
        // All processes that share sessions need the same namespace.
        .namespace("shop")
        // For http://localhost only: the default cookie needs https. Browsers keep one set of cookies for all
        // ports on a host, so every application needs its own cookie name.
        .cookie(Cookie::new("shop").insecure())
        // The pages to which users are sent if a page requires a sign-in, or a recent authentication.
        .sign_in_page("/sign-in")
        .step_up_page("/confirm")
        .on_error(error_page)
}

/// Returns the address to listen on: the port `PORT`, on this machine only.
pub(crate) fn address() -> Result<(&'static str, u16), Box<dyn std::error::Error>> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse());
    Ok(("127.0.0.1", port.map_err(|_| "PORT must be the number of a port, such as 3000")?))
}

/// The form of `POST /sign-in`. The shop does not read the password, because it stores none.
#[derive(Deserialize)]
pub(crate) struct SignIn {
    pub(crate) name: Text,
    /// Browsers send this field only if the box is ticked.
    pub(crate) remember: Option<Text>,
}

/// The form of `POST /cart`.
#[derive(Deserialize)]
pub(crate) struct Add {
    pub(crate) item: Text,
}

/// The form of `POST /sessions/end`.
#[derive(Deserialize)]
pub(crate) struct End {
    pub(crate) id: SessionId,
}

/// The form of `POST /confirm`.
#[derive(Deserialize)]
pub(crate) struct Confirm {
    pub(crate) password: Text,
}

/// The form of `POST /password`.
#[derive(Deserialize)]
pub(crate) struct Password {
    pub(crate) old: Text,
    pub(crate) new: Text,
}

/// Text that a visitor typed, 1 to 200 bytes long. Any other length is a bad request.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Text(pub(crate) String);

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let text = text.trim();
        match text.len() {
            1..=200 => Ok(Self(text.to_owned())),
            _ => Err("the text must have 1 to 200 bytes"),
        }
    }
}

/// The response to `GET /cart.json`.
#[derive(Serialize)]
pub(crate) struct Cart {
    signed_in: Option<Arc<str>>,
    items: Vec<String>,
    served_by: u32,
    framework: &'static str,
}

impl Cart {
    pub(crate) fn of(session: &Session, framework: &'static str) -> Result<Self> {
        Ok(Self {
            signed_in: session.principal(),
            items: session.get(CART)?.unwrap_or_default(),
            served_by: std::process::id(),
            framework,
        })
    }
}

/// The response to `GET /`.
pub(crate) async fn front_page(session: &Session, framework: &'static str) -> Result<String> {
    let Cart { items, served_by, .. } = Cart::of(session, framework)?;
    let items = items.iter().fold(String::new(), |mut list, item| {
        // Writing to a string cannot fail.
        let _ = write!(list, "<li>{}</li>", escaped(item));
        list
    });
    let cart = match &*items {
        "" => "<p>Your cart is empty.</p>".to_owned(),
        items => format!("<ul>{items}</ul>"),
    };
    let body = format!(
        "<h2>Cart</h2>{cart}\
         <form method=post action=/cart>\
         <label>Article <input name=item required maxlength=50></label>\
         <button>Add to cart</button></form>\
         <p><small>Served by process {served_by} ({framework})</small></p>"
    );
    page(session, "Shop", &body).await
}

/// The response to `GET /sign-in`. The form remembers the page that the visitor wanted to see.
pub(crate) async fn sign_in_page(session: &Session, next: &Next) -> Result<String> {
    let body = format!(
        "<form method=post action=\"{}\">\
         <label>Name <input name=name required maxlength=50 autocomplete=username></label>\
         <label>Password <input type=password name=password required maxlength=50 \
         autocomplete=current-password></label>\
         <label><input type=checkbox name=remember value=yes>Remember me for 30 days</label>\
         <button>Sign in</button></form>\
         <p><small>This is a demonstration: any name and any password are accepted.</small></p>",
        next.page("/sign-in")
    );
    page(session, "Sign in", &body).await
}

/// The response to `GET /sessions`.
pub(crate) async fn sessions_page(user: &SignedIn, token: &CsrfToken) -> Result<String> {
    let sessions = user.session.directory()?.list().await?;
    let rows: String = sessions.iter().map(|session| row(session, token)).collect();
    let end_others = match sessions.iter().any(|session| !session.is_current) {
        true => format!(
            "<form method=post action=/sessions/end-others>{}\
             <button>End all other sessions</button></form>",
            token.field()
        ),
        false => String::new(),
    };
    let body = format!(
        "<table><tr><th>Browser<th>Signed in<th>Last seen<th>Action</tr>{rows}</table>{end_others}\
         <p><a href=/password>Change your password</a></p>"
    );
    page(&user.session, "Your sessions", &body).await
}

fn row(session: &ListedSession, token: &CsrfToken) -> String {
    let ListedSession { id, signed_in_at, last_seen, label, is_current, .. } = session;
    let label = escaped(label.as_deref().unwrap_or("Unknown browser"));
    let action = match is_current {
        true => "this device".to_owned(),
        false => format!(
            "<form method=post action=/sessions/end>{}\
             <input type=hidden name=id value='{id}'>\
             <button aria-label='End the session in {label}'>End</button></form>",
            token.field()
        ),
    };
    format!(
        "<tr><td>{label}<td>{}<td>{}<td>{action}</tr>",
        minute(*signed_in_at),
        minute(*last_seen)
    )
}

/// The response to `GET /password`.
pub(crate) async fn password_page(user: &SignedIn, token: &CsrfToken) -> Result<String> {
    let body = format!(
        "<form method=post action=/password>{}\
         <label>Old password <input type=password name=old required maxlength=50 \
         autocomplete=current-password></label>\
         <label>New password <input type=password name=new required maxlength=50 \
         autocomplete=new-password></label>\
         <button>Change password</button></form>\
         <p><small>This ends your sessions in all other browsers.</small></p>",
        token.field()
    );
    page(&user.session, "Change your password", &body).await
}

/// The response to `GET /confirm`. Users are sent here if an action requires a recent authentication.
pub(crate) async fn confirm_page(
    user: &SignedIn,
    next: &Next,
    token: &CsrfToken,
) -> Result<String> {
    let body = format!(
        "<p>For your security, please enter your password again.</p>\
         <form method=post action=\"{}\">{}\
         <label>Password <input type=password name=password required maxlength=50 \
         autocomplete=current-password></label>\
         <button>Continue</button></form>",
        next.page("/confirm"),
        token.field()
    );
    page(&user.session, "Confirm your password", &body).await
}

fn minute(time: OffsetDateTime) -> String {
    format!("<time>{}</time> {:02}:{:02} UTC", time.date(), time.hour(), time.minute())
}

/// Returns a text by which users can recognise their browser, such as "Firefox on Linux". A `User-Agent`
/// header may contain any text, so it is only searched for known names, and no part of it is stored.
pub(crate) fn label(user_agent: Option<&str>) -> String {
    let find = |names: &[(&str, &'static str)]| {
        let agent = user_agent.unwrap_or_default();
        names.iter().find(|(part, _)| agent.contains(part)).map(|(_, name)| *name)
    };
    // Most browsers also claim to be those further down in this list.
    let browser = find(&[
        ("Edg", "Edge"),
        ("OPR/", "Opera"),
        ("Firefox/", "Firefox"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
    ]);
    let system = find(&[
        ("Android", "Android"),
        ("iPhone", "iOS"),
        ("iPad", "iOS"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("Linux", "Linux"),
    ]);
    let browser = browser.unwrap_or("Unknown browser");
    system.map_or(browser.to_owned(), |system| format!("{browser} on {system}"))
}

/// Returns a page with the navigation and the session's flash messages.
async fn page(session: &Session, title: &str, body: &str) -> Result<String> {
    let who = match session.principal() {
        Some(name) => format!(
            "<a href=/sessions>Your sessions</a><span>Signed in as <b>{}</b></span>\
             <form method=post action=/sign-out><button>Sign out</button></form>",
            escaped(&name)
        ),
        None => "<a href=/sign-in>Sign in</a>".to_owned(),
    };
    let messages = session.flashes().await?;
    let messages: String = messages.iter().map(message).collect();
    Ok(document(
        title,
        &format!("<nav><a href=/>Shop</a>{who}</nav>{messages}<main><h1>{title}</h1>{body}</main>"),
    ))
}

fn message(Flash { level, text, .. }: &Flash) -> String {
    format!("<p role=status class={level}>{}</p>", escaped(text))
}

/// Renders an error: as a page for browsers, or as JSON for programs.
fn error_page(response: ErrorResponse, error: &Error, wants: Wants) -> ErrorResponse {
    let kind = error.kind();
    match wants {
        Wants::Page => response.html(document(
            "Sorry",
            &format!(
                "<main><h1>Sorry</h1><p class=reason>{}</p><p><a href=/>Back to the shop</a></p></main>",
                kind.message()
            ),
        )),
        Wants::Data => {
            let status = response.status;
            response.json(format!(r#"{{"status":{status},"error":"{}"}}"#, kind.as_str()))
        }
    }
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content='width=device-width, initial-scale=1'>\
         <title>{title}</title><style>{}</style>{body}</html>",
        include_str!("style.css")
    )
}

/// Escapes text that visitors typed, so that it is never interpreted as markup.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character => escaped.push(character),
        }
    }
    escaped
}
