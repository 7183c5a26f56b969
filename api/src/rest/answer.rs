//! Answers: JSON, text, nothing.
//!
//! Promises: a value that can't be shown as JSON is an error with a `fault_message`. Must never: answer half a body.

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::error::ApiError;

/// What every route answers.
pub type Answer = Result<Response, ApiError>;

/// A JSON body.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let body = serde_json::to_string(value)
        .map_err(|error| ApiError::internal(format!("the answer can't be shown as JSON: {error}")))?;
    Ok(typed(status, "application/json", body))
}

/// A body of the given type.
pub fn typed(status: StatusCode, content_type: &'static str, body: impl IntoResponse) -> Response {
    let header: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, content_type)];
    (status, header, body).into_response()
}

/// Success without content.
pub fn done() -> Answer {
    Ok(StatusCode::NO_CONTENT.into_response())
}
