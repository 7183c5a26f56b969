//! Making pages leave: those that are named, or the coldest.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use memtier::status::{GuestRange, Outcomes, ReclaimRequest, Reclaimed};
use memtier::units::{Gfn, PAGE_SIZE};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, json};
use super::super::error::{ApiError, Fault};
use super::super::extract::{JsonBody, JsonOrText};
use super::super::state::ApiState;
use super::Ranges;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(post_swap_pages)).routes(routes!(post_reclaim))
}

/// Evict the pages that are named, whatever their age
///
/// As text, one guest physical address a line, hexadecimal with or without 0x; each names the page that holds it.
#[utoipa::path(post, path = "/memtier/swap_pages", tag = "memtier",
    request_body(content((Ranges = "application/json"), (String = "text/plain"))), responses(
    (status = 200, description = "Pages by outcome", body = Outcomes),
    (status = "default", description = "Any error", body = Fault)))]
async fn post_swap_pages(State(state): State<Arc<ApiState>>, body: JsonOrText<Ranges>) -> Answer {
    let tiers = state.tiers()?;
    let work = move || {
        let ranges = match body {
            JsonOrText::Json(ranges) => ranges.checked()?,
            JsonOrText::Text(text) => parse_addresses(&text)?,
        };
        Ok(tiers.evict(&ranges)?)
    };
    let outcomes = state.long(work).await?;
    json(StatusCode::OK, &outcomes)
}

/// Evict the coldest pages: so many bytes, or all that were idle for so many scans
#[utoipa::path(post, path = "/memtier/reclaim", tag = "memtier", request_body = ReclaimRequest, responses(
    (status = 200, description = "What left", body = Reclaimed),
    (status = "default", description = "Any error", body = Fault)))]
async fn post_reclaim(State(state): State<Arc<ApiState>>, JsonBody(request): JsonBody<ReclaimRequest>) -> Answer {
    if request.bytes.is_none() && request.min_idle_scans.is_none() {
        return Err(ApiError::bad_request("reclaim needs bytes, min_idle_scans or both"));
    }
    let reclaimed = state.work(move |tiers| tiers.reclaim(request)).await?;
    json(StatusCode::OK, &reclaimed)
}

/// Reads addresses, one a line, into ranges in the same order; neighbours become one range.
fn parse_addresses(text: &[u8]) -> Result<Vec<GuestRange>, ApiError> {
    let mut ranges: Vec<GuestRange> = Vec::new();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Ok(ranges);
    }
    for (number, line) in (1u64..).zip(text.split(|byte| *byte == b'\n')) {
        let page = parse_page(line).ok_or_else(|| {
            let shown: String = String::from_utf8_lossy(line).chars().take(40).collect();
            ApiError::bad_request(format!("line {number}: '{shown}' is not a hexadecimal address"))
        })?;
        match ranges.last_mut() {
            Some(last) if last.start + last.len == page.start => last.len += page.len,
            _ => ranges.push(page),
        }
    }
    Ok(ranges)
}

/// The page that holds the address; the last page of 64 bits is none, since no range can end behind it.
fn parse_page(line: &[u8]) -> Option<GuestRange> {
    let line = std::str::from_utf8(line).ok()?;
    let digits = line.strip_prefix("0x").or_else(|| line.strip_prefix("0X")).unwrap_or(line);
    // from_str_radix alone would take a sign.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let start = Gfn::containing(u64::from_str_radix(digits, 16).ok()?).gpa();
    let len = u64::try_from(PAGE_SIZE).ok()?;
    start.checked_add(len)?;
    Some(GuestRange { start, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Vec<(u64, u64)> {
        parse_addresses(text.as_bytes()).unwrap().iter().map(|r| (r.start, r.len)).collect()
    }

    #[test]
    fn each_line_names_the_page_that_holds_its_address() {
        assert_eq!(ranges("0x1000\n"), [(0x1000, 0x1000)]);
        assert_eq!(ranges("1fff"), [(0x1000, 0x1000)]);
        assert_eq!(ranges("0XABCDEF\n0\n"), [(0xabc000, 0x1000), (0, 0x1000)]);
        assert_eq!(ranges(""), []);
        assert_eq!(ranges("\n"), []);
    }

    #[test]
    fn neighbours_become_one_range_and_order_is_kept() {
        assert_eq!(ranges("1000\n2000\n3000\n0\n1000\n9000"), [(0x1000, 0x3000), (0, 0x2000), (0x9000, 0x1000)]);
        // The same page twice is asked for twice; the second time it is absent.
        assert_eq!(ranges("5000\n5000"), [(0x5000, 0x1000), (0x5000, 0x1000)]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_addresses_or_refused(text in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = parse_addresses(&text);
        }

        #[test]
        fn as_many_pages_as_lines_are_asked_for(addresses in proptest::collection::vec(0u64..1 << 48, 0..50)) {
            let text: String = addresses.iter().map(|address| format!("{address:#x}\n")).collect();
            let bytes: u64 = ranges(&text).iter().map(|(_, len)| len).sum();
            proptest::prop_assert_eq!(bytes, 4096 * addresses.len() as u64);
        }
    }

    #[test]
    fn a_line_that_is_no_address_is_named() {
        for (text, line) in [
            ("zz", "line 1: 'zz'"),
            ("1000\n\n2000", "line 2: ''"),
            ("1000\n2000\n-3000", "line 3: '-3000'"),
            ("+1", "line 1: '+1'"),
            ("0x", "line 1: '0x'"),
            ("1000 \n", "line 1: '1000 '"),
            ("1000\r\n", "line 1: '1000\r'"),
            ("10000000000000000", "line 1: '10000000000000000'"),
            ("ffffffffffffffff", "line 1: 'ffffffffffffffff'"),
            ("1000\n\n", "line 2: ''"),
        ] {
            let error = parse_addresses(text.as_bytes()).unwrap_err();
            assert_eq!(error, ApiError::bad_request(format!("{line} is not a hexadecimal address")));
        }
        assert!(parse_addresses(&[b'1', 0xff]).is_err());
    }
}
