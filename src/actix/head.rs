//! A request's head, as its rules read it.

use actix_web::HttpRequest;
use actix_web::http::header::{ACCEPT, HOST, HeaderName, HeaderValue, ORIGIN, UPGRADE};

use crate::exchange::RequestHead;

pub(super) fn of(request: &HttpRequest) -> RequestHead<'_> {
    let uri = request.uri();
    let field = |name: HeaderName| {
        RequestHead::field(request.headers().get_all(name).map(HeaderValue::as_bytes))
    };
    RequestHead {
        method: request.method().as_str(),
        target: uri.path_and_query().map_or("", |target| target.as_str()),
        authority: uri.authority().map(|authority| authority.as_str()),
        // Not `ConnectionInfo`, which believes what a client writes into `Forwarded`.
        host: field(HOST),
        origin: field(ORIGIN),
        sec_fetch_site: field(HeaderName::from_static("sec-fetch-site")),
        sec_fetch_mode: field(HeaderName::from_static("sec-fetch-mode")),
        accept: field(ACCEPT),
        upgrade: field(UPGRADE),
    }
}
