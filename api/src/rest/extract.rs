//! Bodies, paths and queries taken apart, with refusals in our own words.
//!
//! Promises: a body larger than its limit is refused before it is in memory; unknown keys, wrong types and trailing text are refused with the
//! place. Must never: guess a content type.

use axum::body::{self, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::config::json;

/// The most bytes of a JSON body; Firecracker's limit.
pub const JSON_LIMIT: usize = 51_200;

/// The most bytes of an idle bitmap or of a list of addresses: the bitmap of 512 GiB, or about a million addresses.
pub const BULK_LIMIT: usize = 16 << 20;

/// The media type without parameters, in lower case; `None` when the request names none.
fn media_type(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(None) };
    let unreadable = |_| ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content type is not readable");
    let text = value.to_str().map_err(unreadable)?;
    let name = text.split(';').next().unwrap_or_default();
    Ok(Some(name.trim().to_ascii_lowercase()))
}

fn wrong_media_type(found: &str, wanted: &str) -> ApiError {
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("content type '{found}' given, {wanted} expected"))
}

async fn read(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes"));
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|n| usize::try_from(n).map_or(true, |n| n > limit)) {
        return Err(too_large());
    }
    body::to_bytes(request.into_body(), limit).await.map_err(|error| {
        if std::error::Error::source(&error).is_some_and(|e| e.is::<LengthLimitError>()) {
            return too_large();
        }
        ApiError::bad_request("the body ended early")
    })
}

/// Reads JSON, naming the place of what is wrong.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    json::parse(bytes).map_err(|error| {
        ApiError::bad_request(match error.place {
            Some(place) => format!("body: {place}: {}", error.source),
            None => format!("body: {}", error.source),
        })
    })
}

/// A JSON body. A request without a content type counts as JSON, and so does one with the form type that `curl -d` sends unasked; with
/// another one it is refused.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        match media_type(request.headers())?.as_deref() {
            None | Some("application/json" | "application/x-www-form-urlencoded") => {}
            Some(other) => return Err(wrong_media_type(other, "application/json")),
        }
        parse_json(&read(request, JSON_LIMIT).await?).map(Self)
    }
}

/// A short text, one word. Also taken under the form type that `curl -d` sends unasked.
#[derive(Debug)]
pub struct WordBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for WordBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        match media_type(request.headers())?.as_deref() {
            None | Some("text/plain" | "application/x-www-form-urlencoded") => {}
            Some(other) => return Err(wrong_media_type(other, "text/plain")),
        }
        read(request, JSON_LIMIT).await.map(Self)
    }
}

/// Bytes as they are.
#[derive(Debug)]
pub struct BinaryBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for BinaryBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        match media_type(request.headers())?.as_deref() {
            None | Some("application/octet-stream") => {}
            Some(other) => return Err(wrong_media_type(other, "application/octet-stream")),
        }
        read(request, BULK_LIMIT).await.map(Self)
    }
}

/// JSON, or a long text.
#[derive(Debug)]
pub enum JsonOrText<T> {
    /// A JSON body, within [`JSON_LIMIT`]; see [`JsonBody`] for its content types.
    Json(T),
    /// A text/plain body, within [`BULK_LIMIT`].
    Text(Bytes),
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonOrText<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        match media_type(request.headers())?.as_deref() {
            None | Some("application/json" | "application/x-www-form-urlencoded") => {
                parse_json(&read(request, JSON_LIMIT).await?).map(Self::Json)
            }
            Some("text/plain") => read(request, BULK_LIMIT).await.map(Self::Text),
            Some(other) => Err(wrong_media_type(other, "application/json or text/plain")),
        }
    }
}

/// The variable parts of a path.
#[derive(Debug)]
pub struct UrlPath<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for UrlPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(value)| Self(value)).map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// What follows the `?`.
#[derive(Debug)]
pub struct UrlQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for UrlQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(value)| Self(value)).map_err(|error| ApiError::bad_request(error.body_text()))
    }
}
