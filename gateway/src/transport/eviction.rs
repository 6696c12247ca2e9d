//! Which connections make way for others: the oldest on which nobody has shown a good credential.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a stranger keeps its place when others wait for one.
const STRANGER_PATIENCE: Duration = Duration::from_secs(10);

/// Connections on which nobody has shown a good credential yet, and others, the oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Strangers(Arc<Mutex<Vec<Weak<Standing>>>>);

/// Whether somebody has shown a good credential on a connection.
#[derive(Debug)]
pub(super) struct Standing {
    since: Instant,
    is_known: AtomicBool,
    leave: CancellationToken,
}

impl Standing {
    /// Somebody has shown a good credential: the connection keeps its place.
    pub(super) fn keep(&self) {
        self.is_known.store(true, Ordering::Relaxed);
    }

    /// Cancelled when the connection has to make way.
    pub(super) fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }
}

impl Strangers {
    pub(super) fn welcome(&self) -> Arc<Standing> {
        let (is_known, leave) = (AtomicBool::new(false), CancellationToken::new());
        let standing = Arc::new(Standing { since: Instant::now(), is_known, leave });
        // Nothing panics while it is held, so poison would mean nothing.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are left are as many as there are places.
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&standing));
        standing
    }

    pub(super) fn send_one_away(&self) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stranger = all.iter().filter_map(Weak::upgrade).find(|other| {
            let is_known = other.is_known.load(Ordering::Relaxed) || other.leave.is_cancelled();
            !is_known && other.since.elapsed() >= STRANGER_PATIENCE
        });
        if let Some(stranger) = stranger {
            stranger.leave.cancel();
        }
    }
}
