//! Heat over time, as JSON or as bytes.
//!
//! The bytes, all numbers little-endian:
//!
//! | at | what |
//! |---|---|
//! | 0 | `EBBHEAT1` |
//! | 8 | u32: columns C |
//! | 12 | u32: rows R |
//! | 16 | u64: bytes of a bucket |
//! | 24 | u64: when times count from, milliseconds since 1970 |
//! | 32 | u32: scans of each row but the last |
//! | 36 | u32: bytes of a cell, 2 |
//! | 40 | C times: u64 first address, u64 length, u32 region, u32 zero |
//! | 40 + 24 C | R times: u64 began, u64 ended (milliseconds), u32 scans, u32 zero |
//! | 40 + 24 (C + R) | R times C u16: shares, 65535 is all |

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use memtier::insight::HeatMap;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, json, typed};
use super::super::error::Fault;
use super::super::extract::UrlQuery;
use super::super::state::ApiState;
use super::form::Form;

const MAGIC: &[u8; 8] = b"EBBHEAT1";
const CELL_BYTES: u32 = 2;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(get_heat))
}

/// How the map shall be told.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct HeatQuery {
    /// `json` or `binary`; when not given, as the Accept header says.
    #[serde(default)]
    #[param(inline)]
    format: Option<Form>,
}

/// A heat map as bytes, only for the API's description.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "bodies are bytes; this only says so")]
struct HeatBytes(Vec<u8>);

/// Which part of guest memory was used when: rows of time, columns of address buckets
///
/// As bytes, little-endian: `EBBHEAT1`, u32 columns, u32 rows, u64 bytes of a bucket, u64 milliseconds since 1970 from which times count, u32 scans
/// of a row, u32 bytes of a cell (2); for each column u64 first address, u64 length, u32 region, u32 zero; for each row u64 began, u64 ended,
/// u32 scans, u32 zero; then the shares row after row as u16, 65535 being all.
#[utoipa::path(get, path = "/memtier/heat", tag = "memtier", params(HeatQuery), responses(
    (status = 200, description = "The map", content((HeatMap = "application/json"), (HeatBytes = "application/octet-stream"))),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_heat(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    UrlQuery(query): UrlQuery<HeatQuery>,
) -> Answer {
    let map = state.ask(|tiers| tiers.heat()).await?;
    match Form::wanted(query.format, &headers) {
        Form::Json => json(StatusCode::OK, &map),
        Form::Binary => Ok(typed(StatusCode::OK, "application/octet-stream", encode(&map))),
    }
}

fn encode(map: &HeatMap) -> Vec<u8> {
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(count(map.columns.len()).to_le_bytes());
    bytes.extend(count(map.rows.len()).to_le_bytes());
    bytes.extend(map.bucket_bytes.to_le_bytes());
    bytes.extend(map.began_unix_ms.to_le_bytes());
    bytes.extend(map.scans_per_row.to_le_bytes());
    bytes.extend(CELL_BYTES.to_le_bytes());
    let mut entry = |first: u64, second: u64, third: u32| {
        bytes.extend(first.to_le_bytes());
        bytes.extend(second.to_le_bytes());
        bytes.extend(third.to_le_bytes());
        bytes.extend([0; 4]);
    };
    map.columns.iter().for_each(|column| entry(column.start, column.len, count(column.region)));
    map.rows.iter().for_each(|row| entry(row.began_ms, row.ended_ms, row.scans));
    for row in &map.rows {
        bytes.extend(row.shares.iter().flat_map(|share| share.to_le_bytes()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use memtier::insight::{HeatColumn, HeatRow};

    use super::*;

    #[test]
    fn the_bytes_are_where_the_description_says() {
        let column = |region, start| HeatColumn { region, start, len: 1 << 20 };
        let row = |began_ms| HeatRow { began_ms, ended_ms: began_ms + 1, scans: 2, shares: vec![1, 0x203, u16::MAX] };
        let map = HeatMap {
            began_unix_ms: 77,
            bucket_bytes: 1 << 20,
            scans_per_row: 2,
            columns: vec![column(0, 0), column(0, 1 << 20), column(1, 1 << 32)],
            rows: vec![row(5), row(6)],
        };
        let bytes = encode(&map);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(&bytes[..8], b"EBBHEAT1");
        assert_eq!((u32_at(8), u32_at(12), u64_at(16), u64_at(24)), (3, 2, 1 << 20, 77));
        assert_eq!((u32_at(32), u32_at(36)), (2, 2));
        assert_eq!((u64_at(40 + 48), u64_at(40 + 56), u32_at(40 + 64)), (1 << 32, 1 << 20, 1));
        let rows = 40 + 24 * 3;
        assert_eq!((u64_at(rows + 24), u64_at(rows + 32), u32_at(rows + 40)), (6, 7, 2));
        let cells = 40 + 24 * (3 + 2);
        assert_eq!(bytes[cells..cells + 6], [1, 0, 3, 2, 0xff, 0xff]);
        assert_eq!(bytes.len(), cells + 2 * 2 * 3);
    }
}
