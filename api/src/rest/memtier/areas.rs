//! Swap areas: switched on, listed, switched off.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use memtier::status::{AreaInfo, AreaSpec};
use memtier::units::{AreaId, MAX_AREAS};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, done, json};
use super::super::error::{ApiError, Fault};
use super::super::extract::{JsonBody, UrlPath};
use super::super::state::ApiState;
use crate::config::DraftError;
use crate::instance::InstanceError;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(get_areas, put_area)).routes(routes!(get_area, delete_area))
}

/// The swap areas, as rows of /proc/swaps
#[utoipa::path(get, path = "/memtier/swap_areas", tag = "memtier", responses(
    (status = 200, description = "The areas that are on", body = [AreaInfo]),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_areas(State(state): State<Arc<ApiState>>) -> Answer {
    let areas = state.ask(|tiers| tiers.swap_areas()).await?;
    json(StatusCode::OK, &areas)
}

/// A swap area that was taken.
#[derive(Debug, Serialize, ToSchema)]
struct AreaTaken {
    /// Its number; before the start, its place in the order in which areas will be switched on.
    id: usize,
}

/// Switch a swap area on; before the start it is noted and switched on then
#[utoipa::path(put, path = "/memtier/swap_areas", tag = "memtier", request_body = AreaSpec, responses(
    (status = 200, description = "Noted for the start", body = AreaTaken),
    (status = 201, description = "Switched on", body = AreaTaken),
    (status = "default", description = "Any error", body = Fault)))]
async fn put_area(State(state): State<Arc<ApiState>>, JsonBody(spec): JsonBody<AreaSpec>) -> Answer {
    let noted = state.instance.describe(|draft| {
        if draft.tracker.0.is_none() {
            return Err(DraftError::SwapWithoutTracker);
        }
        draft.set_area(spec.clone())
    });
    match noted {
        Ok(id) => json(StatusCode::OK, &AreaTaken { id }),
        Err(InstanceError::AlreadyStarted) => {
            let id = state.work(move |tiers| tiers.swapon(&spec)).await?;
            json(StatusCode::CREATED, &AreaTaken { id: id.0.into() })
        }
        Err(error) => Err(error.into()),
    }
}

/// One swap area
#[utoipa::path(get, path = "/memtier/swap_areas/{id}", tag = "memtier",
    params(("id" = u64, Path, description = "The area's number")), responses(
    (status = 200, description = "The area", body = AreaInfo),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_area(State(state): State<Arc<ApiState>>, UrlPath(id): UrlPath<u64>) -> Answer {
    let areas = state.ask(|tiers| tiers.swap_areas()).await?;
    match areas.iter().find(|area| u64::from(area.id) == id) {
        Some(area) => json(StatusCode::OK, area),
        None => Err(no_area(id)),
    }
}

/// Bring everything back from a swap area and switch it off
#[utoipa::path(delete, path = "/memtier/swap_areas/{id}", tag = "memtier",
    params(("id" = u64, Path, description = "The area's number")), responses(
    (status = 204, description = "Switched off"),
    (status = "default", description = "Any error", body = Fault)))]
async fn delete_area(State(state): State<Arc<ApiState>>, UrlPath(id): UrlPath<u64>) -> Answer {
    // The tiers are asked for first: before the start, that is what's wrong.
    state.tiers()?;
    let area = u8::try_from(id).ok().filter(|id| usize::from(*id) < MAX_AREAS).ok_or_else(|| no_area(id))?;
    state.work(move |tiers| tiers.swapoff(AreaId(area))).await?;
    done()
}

fn no_area(id: u64) -> ApiError {
    ApiError::not_found(format!("there is no swap area {id}"))
}
