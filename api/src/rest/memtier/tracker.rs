//! How accesses are seen.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use memtier::status::{TrackerChoice, TrackerInfo};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, json};
use super::super::error::Fault;
use super::super::extract::JsonBody;
use super::super::state::ApiState;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(get_tracker, put_tracker))
}

/// The tracker to go on with.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TrackerWish {
    /// Which, or `auto` for the best one of this host.
    tracker: TrackerChoice,
}

/// The tracker in use, why it is in use, and what else this host has
#[utoipa::path(get, path = "/memtier/tracker", tag = "memtier", responses(
    (status = 200, description = "The trackers", body = TrackerInfo),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_tracker(State(state): State<Arc<ApiState>>) -> Answer {
    let info = state.ask(|tiers| tiers.tracker_info()).await?;
    json(StatusCode::OK, &info)
}

/// Go on with another tracker; ages, idle bits and a scan under way stay
#[utoipa::path(put, path = "/memtier/tracker", tag = "memtier", request_body = TrackerWish, responses(
    (status = 200, description = "The trackers as they are now", body = TrackerInfo),
    (status = "default", description = "Any error", body = Fault)))]
async fn put_tracker(State(state): State<Arc<ApiState>>, JsonBody(wish): JsonBody<TrackerWish>) -> Answer {
    let info = state.work(move |tiers| tiers.set_tracker(wish.tracker)).await?;
    json(StatusCode::OK, &info)
}
