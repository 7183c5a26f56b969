//! The guest's memory tiers.
//!
//! Promises: numbers from a client are checked for overflow here, for meaning in the tiers. Must never: keep state of its own.

mod ages;
mod areas;
mod evict;
mod form;
mod heat;
mod idle;
mod idle_pages;
mod insight;
mod locks;
mod overview;
mod scans;
mod tracker;

use std::sync::Arc;

use memtier::status::GuestRange;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use super::error::ApiError;
use super::state::ApiState;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new()
        .merge(overview::routes())
        .merge(scans::routes())
        .merge(idle::routes())
        .merge(evict::routes())
        .merge(areas::routes())
        .merge(locks::routes())
        .merge(insight::routes())
        .merge(heat::routes())
        .merge(ages::routes())
        .merge(idle_pages::routes())
        .merge(tracker::routes())
}

/// Guest physical ranges.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Ranges {
    ranges: Vec<GuestRange>,
}

impl Ranges {
    /// The ranges, if each of them ends within 64 bits.
    fn checked(self) -> Result<Vec<GuestRange>, ApiError> {
        let beyond = |range: &GuestRange| range.start.checked_add(range.len).is_none();
        match self.ranges.iter().position(beyond) {
            Some(place) => Err(ApiError::bad_request(format!("ranges[{place}]: start + len is beyond 64 bits"))),
            None => Ok(self.ranges),
        }
    }
}
