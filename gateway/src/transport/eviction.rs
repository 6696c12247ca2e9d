//! Eviction of connections: the oldest one without an authenticated call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How old an unauthenticated connection has to be before it is evicted for another one.
const UNAUTHENTICATED_AGE_MIN: Duration = Duration::from_secs(10);

/// Connections without an authenticated call yet, and the others, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct UnauthenticatedConnections(Arc<Mutex<Vec<Weak<AuthenticationState>>>>);

/// Whether a connection has had an authenticated call.
#[derive(Debug)]
pub(super) struct AuthenticationState {
    since: Instant,
    is_authenticated: AtomicBool,
    evicted: CancellationToken,
}

impl AuthenticationState {
    /// A call was authenticated: the connection keeps its slot.
    pub(super) fn keep(&self) {
        self.is_authenticated.store(true, Ordering::Relaxed);
    }

    /// Cancelled when the connection is evicted.
    pub(super) fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }
}

impl UnauthenticatedConnections {
    pub(super) fn add(&self) -> Arc<AuthenticationState> {
        let (is_authenticated, evicted) = (AtomicBool::new(false), CancellationToken::new());
        let authentication =
            Arc::new(AuthenticationState { since: Instant::now(), is_authenticated, evicted });
        // No holder panics, so a poisoned lock is used as it is.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The remaining entries are bounded by the connection limit.
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&authentication));
        authentication
    }

    pub(super) fn evict_one(&self) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = all.iter().filter_map(Weak::upgrade).find(|other| {
            let is_authenticated =
                other.is_authenticated.load(Ordering::Relaxed) || other.evicted.is_cancelled();
            !is_authenticated && other.since.elapsed() >= UNAUTHENTICATED_AGE_MIN
        });
        if let Some(oldest) = oldest {
            oldest.evicted.cancel();
        }
    }
}
