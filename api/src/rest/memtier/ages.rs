//! The idle age of every frame, as bytes, or how many frames have which, as JSON.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use memtier::insight::AgeReport;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, json, typed};
use super::super::error::{ApiError, Fault};
use super::super::extract::{BULK_LIMIT, UrlQuery};
use super::super::state::ApiState;
use super::form::Form;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(get_ages))
}

/// Which ages, and how.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AgesQuery {
    /// `json` or `binary`; when not given, as the Accept header says.
    #[serde(default)]
    #[param(inline)]
    format: Option<Form>,
    /// First byte, which is the guest frame number; 0 when not given. For bytes only.
    #[serde(default)]
    offset: Option<u64>,
    /// Bytes; when not given, the rest, at most 16 MiB. For bytes only.
    #[serde(default)]
    len: Option<u64>,
}

/// Ages as bytes, only for the API's description.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "bodies are bytes; this only says so")]
struct AgeBytes(Vec<u8>);

/// Idle ages: as JSON how many frames have which, as bytes one for each 4 KiB guest frame
///
/// A byte is the number of scans in a row that saw the frame idle, 0 to 253 (that old, or older); 254 is a frame that is not in memory (in a
/// tier, given back, lost), 255 one that was never touched, or that is no guest memory. Past the last frame there are no bytes.
#[utoipa::path(get, path = "/memtier/ages", tag = "memtier", params(AgesQuery), responses(
    (status = 200, description = "Ages", content((AgeReport = "application/json"), (AgeBytes = "application/octet-stream"))),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_ages(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    UrlQuery(query): UrlQuery<AgesQuery>,
) -> Answer {
    match Form::wanted(query.format, &headers) {
        Form::Json if query.offset.or(query.len).is_some() => {
            Err(ApiError::bad_request("offset and len are for bytes: ask with format=binary"))
        }
        Form::Json => json(StatusCode::OK, &state.ask(|tiers| tiers.age_report()).await?),
        Form::Binary => {
            let (first, len) = (query.offset.unwrap_or(0), query.len.unwrap_or(u64::MAX));
            let ages = state
                .ask(move |tiers| {
                    let end = tiers.idle_len().saturating_mul(8);
                    let count = len.min(end.saturating_sub(first));
                    let mut ages = vec![0; usize::try_from(count).unwrap_or(BULK_LIMIT).min(BULK_LIMIT)];
                    let count = tiers.read_ages(first, &mut ages);
                    ages.truncate(count);
                    ages
                })
                .await?;
            Ok(typed(StatusCode::OK, "application/octet-stream", ages))
        }
    }
}
