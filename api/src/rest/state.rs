//! What all routes share: the instance, and how calls that block are made.
//!
//! Promises: the API thread itself never waits for the guest or its tiers, so that cheap requests are answered while long ones run. Must
//! never: hold a lock across an await.

use std::sync::{Arc, OnceLock};

use memtier::{ControlError, Memtier};
use tokio::sync::Semaphore;

use super::error::ApiError;
use crate::guest::Guest;
use crate::instance::Instance;

/// Long calls at once; fewer than the worker threads, so that short calls always find one.
const LONG_CALLS: usize = 8;

/// What all routes share.
#[derive(Debug)]
pub struct ApiState {
    /// The instance that is served.
    pub instance: Arc<Instance>,
    /// The description of all routes, as JSON.
    pub openapi: OnceLock<String>,
    long_calls: Arc<Semaphore>,
}

impl ApiState {
    /// The state of a server for `instance`.
    pub fn new(instance: Arc<Instance>) -> Self {
        Self { instance, openapi: OnceLock::new(), long_calls: Arc::new(Semaphore::new(LONG_CALLS)) }
    }

    /// Makes a short call that may block, on a worker thread.
    pub async fn short<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        match tokio::task::spawn_blocking(call).await {
            Ok(answer) => answer,
            Err(error) => Err(ApiError::internal(format!("the request was given up: {error}"))),
        }
    }

    /// Makes a call that may take long, on a worker thread; waits while too many are under way.
    pub async fn long<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.long_calls).acquire_owned().await;
        let permit = permit.map_err(|error| ApiError::internal(error.to_string()))?;
        // The permit goes with the call: a client that hangs up ends the waiting, not the work.
        self.short(move || {
            let _permit = permit;
            call()
        })
        .await
    }

    /// The guest, once it is started.
    pub fn guest(&self) -> Result<Arc<dyn Guest>, ApiError> {
        Ok(self.instance.guest()?)
    }

    /// The guest's tiers.
    pub fn tiers(&self) -> Result<Arc<Memtier>, ApiError> {
        self.guest()?.memtier().ok_or_else(|| ApiError::bad_request("memory tiering is off for this guest"))
    }

    /// Makes a short call of the tiers.
    pub async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Memtier) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let tiers = self.tiers()?;
        self.short(move || Ok(call(&tiers))).await
    }

    /// Makes a call of the tiers that may take long.
    pub async fn work<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Memtier) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let tiers = self.tiers()?;
        self.long(move || Ok(call(&tiers)?)).await
    }
}
