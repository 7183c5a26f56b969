//! What ages tell: the cold-memory curve, the working set, refaults.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use memtier::insight::working_set::{DEFAULT_WINDOW, MAX_WINDOW};
use memtier::insight::{ColdCurve, RefaultReport, WorkingSet};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, json};
use super::super::error::{ApiError, Fault};
use super::super::extract::UrlQuery;
use super::super::state::ApiState;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(get_cold_curve)).routes(routes!(get_working_set)).routes(routes!(get_refaults))
}

/// Bytes idle for at least n scans, by n: of all guest memory and of each region
#[utoipa::path(get, path = "/memtier/cold_curve", tag = "memtier", responses(
    (status = 200, description = "The curve now", body = ColdCurve),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_cold_curve(State(state): State<Arc<ApiState>>) -> Answer {
    let curve = state.ask(|tiers| tiers.cold_curve()).await?;
    json(StatusCode::OK, &curve)
}

/// Which scans count.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Window {
    /// The last so many scans, 1 to 64; 8 when not given.
    #[serde(default)]
    scans: Option<u32>,
}

/// How much memory the guest uses, by its last scans, and how sure that is
#[utoipa::path(get, path = "/memtier/working_set", tag = "memtier", params(Window), responses(
    (status = 200, description = "The estimate", body = WorkingSet),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_working_set(State(state): State<Arc<ApiState>>, UrlQuery(window): UrlQuery<Window>) -> Answer {
    let scans = window.scans.unwrap_or(DEFAULT_WINDOW);
    if !(1..=MAX_WINDOW).contains(&scans) {
        return Err(ApiError::bad_request(format!("scans {scans} is not in 1..={MAX_WINDOW}")));
    }
    let set = state.ask(move |tiers| tiers.working_set(scans)).await?;
    json(StatusCode::OK, &set)
}

/// How soon pages that had left were wanted back, and by which vCPU
#[utoipa::path(get, path = "/memtier/refaults", tag = "memtier", responses(
    (status = 200, description = "Refaults by distance and by vCPU", body = RefaultReport),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_refaults(State(state): State<Arc<ApiState>>) -> Answer {
    let report = state.ask(|tiers| tiers.refault_report()).await?;
    json(StatusCode::OK, &report)
}
