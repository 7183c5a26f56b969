//! Scans: started, watched, cancelled.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use memtier::status::{ScanPlan, ScanReport};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::answer::{Answer, json};
use super::super::error::{ApiError, Fault};
use super::super::extract::{JsonBody, UrlPath};
use super::super::state::ApiState;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(post_scan)).routes(routes!(get_scan, delete_scan))
}

/// A series of scans that was started.
#[derive(Debug, Serialize, ToSchema)]
struct ScanStarted {
    /// Its number.
    id: u64,
}

/// Start a series of scans in the background; one at a time
#[utoipa::path(post, path = "/memtier/scans", tag = "memtier", request_body = ScanPlan, responses(
    (status = 202, description = "Started", body = ScanStarted),
    (status = "default", description = "Any error", body = Fault)))]
async fn post_scan(State(state): State<Arc<ApiState>>, JsonBody(plan): JsonBody<ScanPlan>) -> Answer {
    let id = state.work(move |tiers| tiers.start_scan(plan)).await?;
    let mut answer = json(StatusCode::ACCEPTED, &ScanStarted { id })?;
    if let Ok(place) = HeaderValue::from_str(&format!("/memtier/scans/{id}")) {
        answer.headers_mut().insert(header::LOCATION, place);
    }
    Ok(answer)
}

/// How far a series is, and what it saw
#[utoipa::path(get, path = "/memtier/scans/{id}", tag = "memtier",
    params(("id" = u64, Path, description = "The series's number")), responses(
    (status = 200, description = "The series", body = ScanReport),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_scan(State(state): State<Arc<ApiState>>, UrlPath(id): UrlPath<u64>) -> Answer {
    found(id, state.ask(move |tiers| tiers.scan(id)).await?)
}

/// Cancel a series; a finished one stays as it is
#[utoipa::path(delete, path = "/memtier/scans/{id}", tag = "memtier",
    params(("id" = u64, Path, description = "The series's number")), responses(
    (status = 200, description = "The series as it is now", body = ScanReport),
    (status = "default", description = "Any error", body = Fault)))]
async fn delete_scan(State(state): State<Arc<ApiState>>, UrlPath(id): UrlPath<u64>) -> Answer {
    found(id, state.work(move |tiers| Ok(tiers.cancel_scan(id))).await?)
}

fn found(id: u64, report: Option<ScanReport>) -> Answer {
    match report {
        Some(report) => json(StatusCode::OK, &report),
        None => Err(ApiError::not_found(format!("there is no scan {id}"))),
    }
}
