//! What the shop is, whichever framework serves it: its settings, its key and its page.

use std::env;
use std::error::Error;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use unsticky::{Cookie, Key, Session, Sessions};

/// A visitor fills the cart before they sign in, so it goes with them.
pub(crate) const CART: Key<Vec<String>> = Key::new("cart").survives_sign_in();

/// The sessions of the shop. Where they are kept is a setting of the deployment: `SESSION_URL`.
pub(crate) fn sessions() -> Result<Sessions, Box<dyn Error>> {
    let url = env::var("SESSION_URL").unwrap_or_else(|_| "memory:".to_owned());
    let sessions = Sessions::builder(unsticky::connect(&url)?)
        // The same in every process that is to know the same sessions.
        .namespace("shop")
        // For http://localhost only; the default is a cookie that needs https.
        .cookie(Cookie::for_plain_http())
        .build()?;
    Ok(sessions)
}

/// Where to listen: `PORT`, on this machine only.
pub(crate) fn address() -> Result<(&'static str, u16), Box<dyn Error>> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse());
    Ok(("127.0.0.1", port.map_err(|_| "PORT is not the number of a port")?))
}

/// The form of `POST /sign-in`.
#[derive(Deserialize)]
pub(crate) struct SignIn {
    pub(crate) name: Text,
}

/// The form of `POST /cart`.
#[derive(Deserialize)]
pub(crate) struct Add {
    pub(crate) item: Text,
}

/// What a visitor typed: something, and not too much of it. Anything else is a bad request.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Text(pub(crate) String);

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let text = text.trim();
        match text.len() {
            1..=200 => Ok(Self(text.to_owned())),
            _ => Err("one to 200 bytes"),
        }
    }
}

/// The answer to `GET /cart.json`.
#[derive(Serialize)]
pub(crate) struct Cart {
    signed_in: Option<String>,
    items: Vec<String>,
    served_by: u32,
    framework: &'static str,
}

impl Cart {
    pub(crate) fn of(session: &Session, framework: &'static str) -> unsticky::Result<Self> {
        Ok(Self {
            signed_in: session.principal().map(|name| name.to_string()),
            items: session.get(CART)?.unwrap_or_default(),
            served_by: std::process::id(),
            framework,
        })
    }
}

/// The answer to `GET /`.
pub(crate) fn page(session: &Session, framework: &'static str) -> unsticky::Result<String> {
    let Cart { signed_in, items, served_by, .. } = Cart::of(session, framework)?;
    let visitor = match signed_in {
        Some(name) => format!(
            "<p>Signed in as <b>{}</b></p>\
             <form method=post action=/sign-out><button>Sign out</button></form>",
            escaped(&name)
        ),
        None => "<p>Nobody is signed in</p>\
                 <form method=post action=/sign-in>\
                 <input name=name required maxlength=50 placeholder=Name>\
                 <button>Sign in</button></form>"
            .to_owned(),
    };
    let cart = items.iter().fold(String::new(), |mut list, item| {
        // Writing to a string cannot fail.
        let _ = write!(list, "<li>{}</li>", escaped(item));
        list
    });
    Ok(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Shop</title>\
         <h1>Shop</h1>{visitor}<h2>Cart</h2><ul>{cart}</ul>\
         <form method=post action=/cart>\
         <input name=item required maxlength=50 placeholder=Article>\
         <button>Add</button></form>\
         <p>Served by process {served_by} ({framework})</p></html>"
    ))
}

/// What visitors typed is text, never markup.
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
