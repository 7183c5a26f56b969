//! What a client gets when something is not done: a status that fits and `{"fault_message": "..."}`.
//!
//! Promises: this is the only place where errors of the instance and the tiers become HTTP statuses. Must never: answer without a message.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use memtier::ControlError;
use memtier::swap::SwapError;
use memtier::tier::file_store::OpenError;
use memtier::track::idle::IdleError;
use memtier::track::scans::ScanError;
use serde::Serialize;
use utoipa::ToSchema;

use crate::cli::chain;
use crate::instance::InstanceError;

/// The body of every error, as Firecracker has it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Fault {
    /// What was not done and why.
    pub fault_message: String,
}

/// An error on its way to a client.
#[derive(Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The client's mistake.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Names something that isn't there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The server's mistake.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let fault = Fault { fault_message: self.message };
        let body = serde_json::to_string(&fault).unwrap_or_else(|_| r#"{"fault_message":"unknown"}"#.to_owned());
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<InstanceError> for ApiError {
    /// Firecracker answers 400 to all of these: the request does not fit the instance as it is.
    fn from(error: InstanceError) -> Self {
        Self::bad_request(chain(&error))
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        Self::new(status_of(&error), chain(&error))
    }
}

/// 400 for what the client said wrong, 404 for what isn't there, 409 for what can't be now, 416 past the end, 500 for what failed here.
fn status_of(error: &ControlError) -> StatusCode {
    match error {
        ControlError::Range(_)
        | ControlError::NotMemory { .. }
        | ControlError::NothingAsked
        | ControlError::Age(_)
        | ControlError::NoDirtyLog
        | ControlError::PageIdle(_)
        | ControlError::Idle(IdleError::Unaligned { .. })
        | ControlError::Scan(ScanError::Range { .. }) => StatusCode::BAD_REQUEST,
        ControlError::Idle(IdleError::BeyondEnd { .. }) => StatusCode::RANGE_NOT_SATISFIABLE,
        ControlError::Swap(error) => status_of_swap(error),
        ControlError::Closed
        | ControlError::Scan(ScanError::Busy(_) | ScanError::Closed)
        | ControlError::NotEmptied { .. }
        | ControlError::Lock(_) => StatusCode::CONFLICT,
        ControlError::Memory(_)
        | ControlError::Uffd(_)
        | ControlError::Tracker { .. }
        | ControlError::Threads(_)
        | ControlError::Look(_)
        | ControlError::Idle(IdleError::Tracker(_))
        | ControlError::Scan(ScanError::Thread(_))
        | ControlError::Pin(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn status_of_swap(error: &SwapError) -> StatusCode {
    match error {
        SwapError::Open(OpenError::InUse { .. })
        | SwapError::TooManyAreas
        | SwapError::OffBegun { .. }
        | SwapError::OffNotBegun { .. }
        | SwapError::InUse { .. } => StatusCode::CONFLICT,
        SwapError::NotOn { .. } => StatusCode::NOT_FOUND,
        SwapError::Priority { .. } | SwapError::Open(_) | SwapError::NoSlots { .. } => StatusCode::BAD_REQUEST,
        SwapError::Tables { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
