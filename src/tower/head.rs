//! Converts the head of a request to a [`RequestHead`].

use http::header::HeaderName;
#[cfg(feature = "axum")]
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Uri};

use crate::exchange::RequestHead;

pub(super) fn of<B>(request: &Request<B>) -> RequestHead<'_> {
    head(request.method(), request.uri(), request.headers(), request.extensions())
}

#[cfg(feature = "axum")]
pub(super) fn of_parts(parts: &Parts) -> RequestHead<'_> {
    head(&parts.method, &parts.uri, &parts.headers, &parts.extensions)
}

fn head<'a>(
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
) -> RequestHead<'a> {
    // A nested router removes its prefix from the path, so the original URI is used.
    #[cfg(feature = "axum")]
    let uri = extensions.get::<axum::extract::OriginalUri>().map_or(uri, |original| &original.0);
    #[cfg(not(feature = "axum"))]
    let _ = extensions;
    let head = RequestHead {
        method: method.as_str(),
        target: uri.path_and_query().map_or("", |target| target.as_str()),
        authority: uri.authority().map(|authority| authority.as_str()),
        ..RequestHead::default()
    };
    head.with_fields(|name| {
        let name = HeaderName::from_static(name);
        headers.get_all(name).into_iter().map(HeaderValue::as_bytes)
    })
}
