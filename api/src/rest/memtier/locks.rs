//! Guest ranges that must stay resident.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, done, json};
use super::super::error::Fault;
use super::super::extract::JsonBody;
use super::super::state::ApiState;
use super::Ranges;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(get_locks, post_locks, delete_locks))
}

/// The locked ranges
#[utoipa::path(get, path = "/memtier/locks", tag = "memtier", responses(
    (status = 200, description = "The locked ranges", body = Ranges),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_locks(State(state): State<Arc<ApiState>>) -> Answer {
    let ranges = state.ask(|tiers| tiers.locks()).await?;
    json(StatusCode::OK, &Ranges { ranges })
}

/// Lock ranges: bring them back, and keep them
#[utoipa::path(post, path = "/memtier/locks", tag = "memtier", request_body = Ranges, responses(
    (status = 204, description = "Locked"),
    (status = "default", description = "Any error", body = Fault)))]
async fn post_locks(State(state): State<Arc<ApiState>>, JsonBody(body): JsonBody<Ranges>) -> Answer {
    let ranges = body.checked()?;
    state.work(move |tiers| tiers.lock(&ranges)).await?;
    done()
}

/// Unlock ranges
#[utoipa::path(delete, path = "/memtier/locks", tag = "memtier", request_body = Ranges, responses(
    (status = 204, description = "Unlocked"),
    (status = "default", description = "Any error", body = Fault)))]
async fn delete_locks(State(state): State<Arc<ApiState>>, JsonBody(body): JsonBody<Ranges>) -> Answer {
    let ranges = body.checked()?;
    state.work(move |tiers| tiers.unlock(&ranges)).await?;
    done()
}
