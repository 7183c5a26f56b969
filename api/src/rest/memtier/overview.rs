//! The tiers at a glance, and the switch that lets pages leave on their own.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use memtier::status::{Report, Status};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, done, json, typed};
use super::super::error::{ApiError, Fault};
use super::super::extract::WordBody;
use super::super::state::ApiState;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new()
        .routes(routes!(get_memtier))
        .routes(routes!(get_report))
        .routes(routes!(get_swap_enable, put_swap_enable))
}

/// Where the guest's pages are, and what has happened to them
#[utoipa::path(get, path = "/memtier", tag = "memtier", responses(
    (status = 200, description = "The tiers now", body = Status),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_memtier(State(state): State<Arc<ApiState>>) -> Answer {
    let status = state.ask(|tiers| tiers.status()).await?;
    json(StatusCode::OK, &status)
}

/// Sizes by state, for people who bill or balance memory
#[utoipa::path(get, path = "/memtier/report", tag = "memtier", responses(
    (status = 200, description = "Bytes by state", body = Report),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_report(State(state): State<Arc<ApiState>>) -> Answer {
    let report = state.ask(|tiers| Report::from(&tiers.status())).await?;
    json(StatusCode::OK, &report)
}

/// Whether pages may leave on their own
#[utoipa::path(get, path = "/memtier/swap_enable", tag = "memtier", responses(
    (status = 200, description = "`true` or `false`", body = String, content_type = "text/plain"),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_swap_enable(State(state): State<Arc<ApiState>>) -> Answer {
    let on = state.ask(|tiers| tiers.swap_enable()).await?;
    Ok(typed(StatusCode::OK, "text/plain", if on { "true" } else { "false" }))
}

/// Let pages leave on their own, or not; explicit requests work either way
#[utoipa::path(put, path = "/memtier/swap_enable", tag = "memtier",
    request_body(content = String, content_type = "text/plain", description = "`true`, `1`, `false` or `0`"), responses(
    (status = 204, description = "Done"),
    (status = "default", description = "Any error", body = Fault)))]
async fn put_swap_enable(State(state): State<Arc<ApiState>>, WordBody(word): WordBody) -> Answer {
    let on = parse_switch(&word)?;
    state.ask(move |tiers| tiers.set_swap_enable(on)).await?;
    done()
}

/// etmem's words and no others. One newline at the end is what `echo` adds.
fn parse_switch(word: &[u8]) -> Result<bool, ApiError> {
    match word.strip_suffix(b"\n").unwrap_or(word) {
        b"true" | b"1" => Ok(true),
        b"false" | b"0" => Ok(false),
        _ => Err(ApiError::bad_request("swap_enable takes true, 1, false or 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_takes_etmems_four_words_and_one_newline() {
        for (word, on) in
            [("true", true), ("1", true), ("false", false), ("0", false), ("true\n", true), ("0\n", false)]
        {
            assert_eq!(parse_switch(word.as_bytes()), Ok(on), "{word:?}");
        }
        for word in
            ["", "\n", "True", "TRUE", "yes", "on", "2", "00", "01", " 1", "1 ", "true\n\n", "true\r\n", "\"true\""]
        {
            assert!(parse_switch(word.as_bytes()).is_err(), "{word:?}");
        }
        assert!(parse_switch(&[0xff, 0xfe]).is_err());
    }
}
