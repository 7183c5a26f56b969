//! Pages as etmem's scan tells them, for its readers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use memtier::control::idle_pages::{AddressSpace, IdlePages, IdlePagesError};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, typed};
use super::super::error::{ApiError, Fault};
use super::super::extract::{BULK_LIMIT, UrlQuery};
use super::super::state::ApiState;

/// The buffer when none is given: half a GiB of guest memory.
const DEFAULT_BUFFER: u64 = 16 << 10;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(get_idle_pages))
}

/// Which addresses are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Addresses {
    /// Guest physical ones.
    #[default]
    Guest,
    /// Those of the guest mapping in ebb's process, as in `/proc/PID/maps`.
    Host,
}

/// What to tell.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct IdlePagesQuery {
    /// First address, as etmem's file position: a multiple of 4096; 0 when not given.
    #[serde(default)]
    offset: u64,
    /// Bytes of buffer, at least 19; each asks for eight pages. 16384 when not given, at most 16 MiB.
    #[serde(default)]
    len: Option<u64>,
    /// Which addresses are meant: `guest` (physical) or `host` (those of the mapping in ebb's process); `guest` when not given.
    #[serde(default)]
    #[param(inline)]
    addresses: Addresses,
    /// Whether references are cleared as etmem does it, so that the next reader sees what was accessed since; true when not given.
    #[serde(default)]
    clear: Option<bool>,
    /// Whether 2 MiB of small pages of which none was accessed are told as one; false when not given.
    #[serde(default)]
    huge: bool,
    /// Whether accesses known to be writes are told as such, which takes the dirty_log tracker; false when not given.
    #[serde(default)]
    dirty: bool,
}

/// Encoded pages, only for the API's description.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "bodies are bytes; this only says so")]
struct EncodedPages(Vec<u8>);

/// Pages accessed, idle or without memory, run-length encoded as by etmem's `/proc/PID/idle_pages`
///
/// A byte is type * 16 + count: 0 accessed, 1 accessed 2 MiB page, 3 written, 4 written 2 MiB page, 5 idle, 6 idle 2 MiB page, 7 2 MiB of idle small
/// pages, 8 hole, 9 2 MiB hole. 0xA0 and 8 bytes, the highest first, set the address. Reading goes on where decoding ends; past the last page
/// there are no bytes.
#[utoipa::path(get, path = "/memtier/idle_pages", tag = "memtier", params(IdlePagesQuery), responses(
    (status = 200, description = "The pages", body = EncodedPages, content_type = "application/octet-stream"),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_idle_pages(State(state): State<Arc<ApiState>>, UrlQuery(query): UrlQuery<IdlePagesQuery>) -> Answer {
    let tiers = state.tiers()?;
    let limit = u64::try_from(BULK_LIMIT).unwrap_or(u64::MAX);
    let request = IdlePages {
        start: query.offset,
        buffer: query.len.unwrap_or(DEFAULT_BUFFER).min(limit),
        space: match query.addresses {
            Addresses::Guest => AddressSpace::Guest,
            Addresses::Host => AddressSpace::Host,
        },
        clear: query.clear.unwrap_or(true),
        huge: query.huge,
        dirty: query.dirty,
    };
    let pages = state.long(move || tiers.idle_pages(request).map_err(refusal)).await?;
    Ok(typed(StatusCode::OK, "application/octet-stream", pages))
}

fn refusal(error: IdlePagesError) -> ApiError {
    match error {
        IdlePagesError::Unaligned(_) | IdlePagesError::Buffer(_) => ApiError::bad_request(error.to_string()),
        IdlePagesError::Control(error) => error.into(),
    }
}
