//! JSON or bytes, as the client likes.
//!
//! Promises: `?format=` decides; without it, whichever of the two the Accept header names first; without that, JSON. Must never: answer bytes
//! to somebody who has not asked for them.

use axum::http::{HeaderMap, header};
use serde::Deserialize;
use utoipa::ToSchema;

/// What an answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Form {
    /// application/json
    Json,
    /// application/octet-stream
    Binary,
}

impl Form {
    /// The form that is wanted.
    pub(super) fn wanted(named: Option<Self>, headers: &HeaderMap) -> Self {
        let listed = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let types =
            listed.flat_map(|value| value.split(',')).map(|entry| entry.split(';').next().unwrap_or(entry).trim());
        let accepted = types.filter_map(|name| match name.to_ascii_lowercase().as_str() {
            "application/octet-stream" => Some(Self::Binary),
            "application/json" | "application/*" | "*/*" => Some(Self::Json),
            _ => None,
        });
        named.or_else(|| accepted.take(1).last()).unwrap_or(Self::Json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_decides_before_the_header_and_json_without_both() {
        for (accept, form) in [
            ("application/octet-stream", Form::Binary),
            ("Application/Octet-Stream;q=0.9, application/json", Form::Binary),
            ("application/json, application/octet-stream", Form::Json),
            ("*/*", Form::Json),
            ("text/html", Form::Json),
            ("text/html, application/octet-stream", Form::Binary),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(Form::wanted(None, &headers), form, "{accept}");
            assert_eq!(Form::wanted(Some(Form::Binary), &headers), Form::Binary);
            assert_eq!(Form::wanted(Some(Form::Json), &headers), Form::Json);
        }
        assert_eq!(Form::wanted(None, &HeaderMap::new()), Form::Json);
    }
}
