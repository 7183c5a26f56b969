//! The idle bitmap, with the contract of the kernel's page_idle bitmap over guest frame numbers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use memtier::{ControlError, Memtier};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, json, typed};
use super::super::error::{ApiError, Fault};
use super::super::extract::{BULK_LIMIT, BinaryBody, UrlQuery};
use super::super::state::ApiState;

/// Bytes asked of the tiers at once, so that a huge `len` costs nothing beyond the bitmap's end.
const CHUNK: usize = 64 << 10;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(get_idle_bitmap, put_idle_bitmap))
}

/// A piece of the bitmap. Bit i of the bitmap is guest frame i, in chunks of 64 bits.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Piece {
    /// First byte, a multiple of 8; 0 when not given.
    #[serde(default)]
    offset: u64,
    /// Bytes, a multiple of 8. When not given: the rest of the bitmap when reading, the body's length when writing.
    #[serde(default)]
    len: Option<u64>,
}

impl Piece {
    fn check(self) -> Result<(), ApiError> {
        let len = self.len.unwrap_or(0);
        for (name, value) in [("offset", self.offset), ("len", len)] {
            if value % 8 != 0 {
                return Err(ApiError::bad_request(format!("{name} {value} is not a multiple of 8 bytes")));
            }
        }
        match self.offset.checked_add(len) {
            Some(_) => Ok(()),
            None => Err(ApiError::bad_request("offset + len is beyond 64 bits")),
        }
    }
}

/// Read idle bits: 1 for frames not accessed since they were marked; past the last frame there are no bytes
#[utoipa::path(get, path = "/memtier/idle_bitmap", tag = "memtier", params(Piece), responses(
    (status = 200, description = "The bits, at most 16 MiB of them", body = IdleBits, content_type = "application/octet-stream"),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_idle_bitmap(State(state): State<Arc<ApiState>>, UrlQuery(piece): UrlQuery<Piece>) -> Answer {
    piece.check()?;
    let bits = state.work(move |tiers| read_bits(tiers, piece)).await?;
    Ok(typed(StatusCode::OK, "application/octet-stream", bits))
}

fn read_bits(tiers: &Memtier, piece: Piece) -> Result<Vec<u8>, ControlError> {
    let wanted = piece.len.and_then(|len| usize::try_from(len).ok()).unwrap_or(BULK_LIMIT).min(BULK_LIMIT);
    let mut bits = Vec::new();
    let mut offset = piece.offset;
    while bits.len() < wanted {
        let mut chunk = vec![0; CHUNK.min(wanted - bits.len())];
        let count = tiers.read_idle(offset, &mut chunk)?;
        let short = count < chunk.len();
        bits.extend_from_slice(&chunk[..count]);
        offset = offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if short {
            break;
        }
    }
    Ok(bits)
}

/// A piece of the bitmap as it is sent, only for the API's description.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "bodies are bytes; this only says so")]
struct IdleBits(Vec<u8>);

/// How much of a write was taken.
#[derive(Debug, Serialize, ToSchema)]
struct Written {
    /// Bytes of bitmap, fewer than sent when the bitmap ends before.
    written: usize,
}

/// Mark frames idle: 1 marks, 0 does nothing
#[utoipa::path(put, path = "/memtier/idle_bitmap", tag = "memtier", params(Piece),
    request_body(content = IdleBits, content_type = "application/octet-stream"), responses(
    (status = 200, description = "Done", body = Written),
    (status = 416, description = "Begins past the last frame", body = Fault),
    (status = "default", description = "Any error", body = Fault)))]
async fn put_idle_bitmap(
    State(state): State<Arc<ApiState>>,
    UrlQuery(piece): UrlQuery<Piece>,
    BinaryBody(bits): BinaryBody,
) -> Answer {
    let sent = u64::try_from(bits.len()).unwrap_or(u64::MAX);
    if let Some(len) = piece.len
        && len != sent
    {
        return Err(ApiError::bad_request(format!("len is {len}, the body has {sent} bytes")));
    }
    let piece = Piece { len: Some(sent), ..piece };
    piece.check()?;
    let written = state.work(move |tiers| tiers.write_idle(piece.offset, &bits)).await?;
    json(StatusCode::OK, &Written { written })
}
