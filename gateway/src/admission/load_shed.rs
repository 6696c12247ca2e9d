//! How many calls may be under way at once. One more would only make all of them slower.

use std::sync::Arc;

use http::Request;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;

use super::Admit;
use crate::errors;

/// A bound on the calls of all callers. An open stream counts only until it has begun.
#[derive(Clone, Debug)]
pub(crate) struct LoadShed(Arc<Semaphore>);

impl LoadShed {
    pub(crate) fn new(requests_max: usize) -> Self {
        Self(Arc::new(Semaphore::new(requests_max)))
    }
}

impl Admit for LoadShed {
    type Pass = OwnedSemaphorePermit;

    fn admit(&self, _: &mut Request<Body>) -> Result<OwnedSemaphorePermit, Status> {
        self.0.clone().try_acquire_owned().map_err(|_| errors::overloaded())
    }
}
