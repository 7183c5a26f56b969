//! Describing the machine before it is started, in Firecracker's words.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use memtier::status::HugePages;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, done, json};
use super::error::{ApiError, Fault};
use super::extract::{JsonBody, UrlPath};
use super::state::ApiState;
use crate::config::Draft;
use crate::config::bodies::{BootSource, Drive, Entropy, MachineConfiguration, MachineConfigurationUpdate};
use crate::config::spec::huge_pages_name;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new()
        .routes(routes!(put_boot_source))
        .routes(routes!(get_machine_config, put_machine_config, patch_machine_config))
        .routes(routes!(put_drive))
        .routes(routes!(put_entropy))
}

/// The draft's processors and memory; memory set by a flag is shown in whole MiB.
pub(super) fn machine_configuration(draft: &Draft) -> MachineConfiguration {
    MachineConfiguration {
        vcpu_count: draft.cpus,
        mem_size_mib: draft.memory >> 20,
        smt: false,
        track_dirty_pages: false,
        cpu_template: None,
        huge_pages: (draft.huge_pages != HugePages::Off).then(|| huge_pages_name(draft.huge_pages).to_owned()),
    }
}

/// Say what to boot; before the start only
#[utoipa::path(put, path = "/boot-source", tag = "machine", request_body = BootSource, responses(
    (status = 204, description = "Taken"),
    (status = "default", description = "Any error", body = Fault)))]
async fn put_boot_source(State(state): State<Arc<ApiState>>, JsonBody(body): JsonBody<BootSource>) -> Answer {
    state.instance.describe(|draft| {
        draft.boot = Some(body);
        Ok(())
    })?;
    done()
}

/// Processors and memory
#[utoipa::path(get, path = "/machine-config", tag = "machine", responses(
    (status = 200, description = "Processors and memory", body = MachineConfiguration),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_machine_config(State(state): State<Arc<ApiState>>) -> Answer {
    json(StatusCode::OK, &machine_configuration(&state.instance.draft()))
}

/// Set processors and memory; before the start only
#[utoipa::path(put, path = "/machine-config", tag = "machine", request_body = MachineConfiguration, responses(
    (status = 204, description = "Taken"),
    (status = "default", description = "Any error", body = Fault)))]
async fn put_machine_config(
    State(state): State<Arc<ApiState>>,
    JsonBody(body): JsonBody<MachineConfiguration>,
) -> Answer {
    state.instance.describe(|draft| draft.set_machine(&body))?;
    done()
}

/// Change processors or memory; before the start only
#[utoipa::path(patch, path = "/machine-config", tag = "machine", request_body = MachineConfigurationUpdate, responses(
    (status = 204, description = "Taken"),
    (status = "default", description = "Any error", body = Fault)))]
async fn patch_machine_config(
    State(state): State<Arc<ApiState>>,
    JsonBody(body): JsonBody<MachineConfigurationUpdate>,
) -> Answer {
    state.instance.describe(|draft| draft.update_machine(&body))?;
    done()
}

/// Add a drive, or replace the one of that name; before the start only
#[utoipa::path(put, path = "/drives/{drive_id}", tag = "machine", request_body = Drive,
    params(("drive_id" = String, Path, description = "The drive's name, the same as in the body")), responses(
    (status = 204, description = "Taken"),
    (status = "default", description = "Any error", body = Fault)))]
async fn put_drive(
    State(state): State<Arc<ApiState>>,
    UrlPath(id): UrlPath<String>,
    JsonBody(body): JsonBody<Drive>,
) -> Answer {
    if id != body.drive_id {
        let message = format!("the path names drive '{id}', the body '{}'", body.drive_id);
        return Err(ApiError::bad_request(message));
    }
    state.instance.describe(|draft| draft.set_drive(body))?;
    done()
}

/// Add the random number device; before the start only
#[utoipa::path(put, path = "/entropy", tag = "machine", request_body = Entropy, responses(
    (status = 204, description = "Taken"),
    (status = "default", description = "Any error", body = Fault)))]
async fn put_entropy(State(state): State<Arc<ApiState>>, JsonBody(body): JsonBody<Entropy>) -> Answer {
    state.instance.describe(|draft| draft.set_entropy(&body))?;
    done()
}
