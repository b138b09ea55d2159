//! Converts the head of a request to a [`RequestHead`].

use actix_web::HttpRequest;
use actix_web::http::header::{HeaderName, HeaderValue};

use crate::exchange::RequestHead;

pub(super) fn of(request: &HttpRequest) -> RequestHead<'_> {
    let uri = request.uri();
    let head = RequestHead {
        method: request.method().as_str(),
        target: uri.path_and_query().map_or("", |target| target.as_str()),
        authority: uri.authority().map(|authority| authority.as_str()),
        ..RequestHead::default()
    };
    head.with_fields(|name| {
        let name = HeaderName::from_static(name);
        request.headers().get_all(name).map(HeaderValue::as_bytes)
    })
}
