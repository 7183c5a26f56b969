//! The REST server over a Unix socket: Firecracker's paths and bodies for what Firecracker has, `/memtier/...` for the tiers.
//!
//! Promises: every error, also for paths and methods that don't exist, is JSON with a `fault_message`. Must never: let a client's input end
//! the process or the guest.

mod answer;
mod error;
mod extract;
mod instance;
mod machine;
mod memtier;
mod server;
mod socket;
mod state;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use answer::{Answer, typed};
use error::{ApiError, Fault};
pub use extract::{BULK_LIMIT, JSON_LIMIT};
pub use server::{LAST_ANSWERS, Server, ServerError};
pub use socket::SocketError;
use state::ApiState;

use crate::instance::Instance;

/// The head of the description of all routes; paths and schemas come from the routes themselves.
#[derive(OpenApi)]
#[openapi(info(
    title = "Ebb",
    description = "A guest and its memory tiers, over a Unix socket. Paths that Firecracker has take Firecracker's bodies.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Head;

/// All routes.
fn router(instance: Arc<Instance>) -> Router {
    let state = Arc::new(ApiState::new(instance));
    let (router, description) = OpenApiRouter::with_openapi(Head::openapi())
        .merge(instance::routes())
        .merge(machine::routes())
        .merge(memtier::routes())
        .routes(routes!(get_openapi))
        .split_for_parts();
    let text = serde_json::to_string(&description).unwrap_or_else(|error| {
        tracing::error!(%error, "the API's description can't be shown as JSON");
        "{}".to_owned()
    });
    // Set once here, before any request.
    let _ = state.openapi.set(text);
    router.fallback(no_such_path).method_not_allowed_fallback(no_such_method).with_state(state)
}

/// This description
#[utoipa::path(get, path = "/openapi.json", tag = "instance", responses(
    (status = 200, description = "All routes in OpenAPI's form", body = Object),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_openapi(State(state): State<Arc<ApiState>>) -> Answer {
    let text = state.openapi.get().cloned().ok_or_else(|| ApiError::internal("the description is not there"))?;
    Ok(typed(StatusCode::OK, "application/json", text))
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is no {method} {}", uri.path()))
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}
