//! The instance as a whole: what it is, starting it, pausing it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, done, json};
use super::error::{ApiError, Fault};
use super::extract::JsonBody;
use super::machine::machine_configuration;
use super::state::ApiState;
use crate::config::bodies::{BootSource, Drive, Entropy, MachineConfiguration, Tiering};
use crate::config::spec::Console;
use crate::guest::GuestState;
use crate::instance::InstanceError;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new()
        .routes(routes!(describe_instance))
        .routes(routes!(get_version))
        .routes(routes!(create_action))
        .routes(routes!(patch_vm))
        .routes(routes!(get_vm_config))
}

/// What the instance is.
#[derive(Debug, Serialize, ToSchema)]
struct InstanceInfo {
    app_name: &'static str,
    id: String,
    /// `Not started`, `Running` or `Paused`; `Exited` in the moment between the guest's end and the process's.
    state: &'static str,
    vmm_version: &'static str,
}

/// What the instance is
#[utoipa::path(get, path = "/", tag = "instance", responses(
    (status = 200, description = "The instance", body = InstanceInfo),
    (status = "default", description = "Any error", body = Fault)))]
async fn describe_instance(State(state): State<Arc<ApiState>>) -> Answer {
    let now = match state.instance.guest() {
        Ok(guest) => state.short(move || Ok(guest.state())).await?,
        Err(_) => GuestState::NotStarted,
    };
    let info = InstanceInfo {
        app_name: "ebb",
        id: state.instance.draft().id,
        state: match now {
            GuestState::NotStarted => "Not started",
            GuestState::Running => "Running",
            GuestState::Paused => "Paused",
            GuestState::Exited => "Exited",
        },
        vmm_version: env!("CARGO_PKG_VERSION"),
    };
    json(StatusCode::OK, &info)
}

/// The version, under the key that Firecracker's clients look for.
#[derive(Debug, Serialize, ToSchema)]
struct Version {
    /// Ebb's version.
    firecracker_version: &'static str,
}

/// Ebb's version
#[utoipa::path(get, path = "/version", tag = "instance", responses(
    (status = 200, description = "The version", body = Version),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_version() -> Answer {
    json(StatusCode::OK, &Version { firecracker_version: env!("CARGO_PKG_VERSION") })
}

/// An action to carry out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: ActionType,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
enum ActionType {
    /// Start the guest as described.
    InstanceStart,
    /// Press Ctrl+Alt+Del in the guest.
    SendCtrlAltDel,
    /// Firecracker's; refused.
    FlushMetrics,
}

/// Start the guest, or press Ctrl+Alt+Del in it
#[utoipa::path(put, path = "/actions", tag = "instance", request_body = Action, responses(
    (status = 204, description = "Done"),
    (status = "default", description = "Any error", body = Fault)))]
async fn create_action(State(state): State<Arc<ApiState>>, JsonBody(action): JsonBody<Action>) -> Answer {
    match action.action_type {
        ActionType::InstanceStart => {
            let instance = Arc::clone(&state.instance);
            state.long(move || Ok(instance.start()?)).await?;
        }
        ActionType::SendCtrlAltDel => {
            let guest = state.guest()?;
            state.long(move || Ok(guest.send_ctrl_alt_del().map_err(InstanceError::from)?)).await?;
        }
        ActionType::FlushMetrics => return Err(ApiError::bad_request("FlushMetrics is not supported")),
    }
    done()
}

/// The state to bring the guest to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Vm {
    state: VmState,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
enum VmState {
    /// Hold all vCPUs.
    Paused,
    /// Let them run on.
    Resumed,
}

/// Pause or resume the guest
#[utoipa::path(patch, path = "/vm", tag = "instance", request_body = Vm, responses(
    (status = 204, description = "Done, or was so already"),
    (status = "default", description = "Any error", body = Fault)))]
async fn patch_vm(State(state): State<Arc<ApiState>>, JsonBody(vm): JsonBody<Vm>) -> Answer {
    let guest = state.guest()?;
    state
        .long(move || {
            let result = match (vm.state, guest.state()) {
                (VmState::Paused, GuestState::Paused) | (VmState::Resumed, GuestState::Running) => Ok(()),
                (VmState::Paused, _) => guest.pause(),
                (VmState::Resumed, _) => guest.resume(),
            };
            Ok(result.map_err(InstanceError::from)?)
        })
        .await?;
    done()
}

/// The whole description of the machine, in the shape of the configuration file.
#[derive(Debug, Serialize, ToSchema)]
struct FullConfiguration {
    id: String,
    #[serde(rename = "boot-source", skip_serializing_if = "Option::is_none")]
    boot_source: Option<BootSource>,
    #[serde(rename = "machine-config")]
    machine_config: MachineConfiguration,
    drives: Vec<Drive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entropy: Option<Entropy>,
    memtier: Tiering,
    console: String,
}

/// The whole description of the machine
#[utoipa::path(get, path = "/vm/config", tag = "instance", responses(
    (status = 200, description = "The description, as a configuration file would have it", body = FullConfiguration),
    (status = "default", description = "Any error", body = Fault)))]
async fn get_vm_config(State(state): State<Arc<ApiState>>) -> Answer {
    let draft = state.instance.draft();
    let tiering = Tiering {
        tracker: Some(draft.tracker.name().to_owned()),
        dirty_ring: draft.dirty_ring,
        swap_areas: draft.areas().to_vec(),
    };
    let full = FullConfiguration {
        machine_config: machine_configuration(&draft),
        drives: draft.drives().to_vec(),
        entropy: draft.entropy.then(Entropy::default),
        memtier: tiering,
        console: match draft.console {
            Console::Stdio => "stdio".to_owned(),
            Console::Off => "off".to_owned(),
            Console::File(path) => path.display().to_string(),
        },
        id: draft.id,
        boot_source: draft.boot,
    };
    json(StatusCode::OK, &full)
}
