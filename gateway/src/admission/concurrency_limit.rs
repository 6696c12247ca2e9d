//! Limits on what is open at once: calls in flight, and streams. Each costs memory for as long as its client wants.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

use super::Caller;
use crate::errors;

/// A limit for each caller, and one for all callers together.
#[derive(Clone, Debug)]
pub(crate) struct ConcurrencyLimit {
    open: Arc<Mutex<Open>>,
    total_max: usize,
    per_caller_max: usize,
    refusal_of_caller: Refuse,
}

/// The answer to a caller at its limit: the kind of caller, and the limit.
type Refuse = fn(&str, usize) -> Status;

#[derive(Debug, Default)]
struct Open {
    total: usize,
    of_caller: HashMap<Caller, usize>,
}

/// A permit, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: ConcurrencyLimit,
    caller: Caller,
}

impl ConcurrencyLimit {
    pub(crate) fn new(total_max: usize, per_caller_max: usize, refusal_of_caller: Refuse) -> Self {
        Self { open: Arc::default(), total_max, per_caller_max, refusal_of_caller }
    }

    /// Takes a permit for `caller`, or returns the status that rejects it.
    pub(crate) fn acquire(&self, caller: Caller) -> Result<Permit, Status> {
        let mut open = self.lock();
        if open.total >= self.total_max {
            return Err(errors::overloaded());
        }
        let of_caller = open.of_caller.entry(caller.clone()).or_default();
        if *of_caller >= self.per_caller_max {
            return Err((self.refusal_of_caller)(caller.kind(), self.per_caller_max));
        }
        *of_caller += 1;
        open.total += 1;
        drop(open);
        Ok(Permit { limit: self.clone(), caller })
    }

    /// No holder panics, so a poisoned lock is used as it is.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.limit.lock();
        open.total -= 1;
        if let Some(of_caller) = open.of_caller.get_mut(&self.caller) {
            *of_caller -= 1;
            if *of_caller == 0 {
                open.of_caller.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn a_dropped_permit_is_available_again() {
        let limit = ConcurrencyLimit::new(3, 2, errors::too_many_streams);
        let caller = |last| Caller::Peer(Some([10, 0, 0, last].into()));
        let held = [limit.acquire(caller(1)).unwrap(), limit.acquire(caller(1)).unwrap()];
        assert_eq!(limit.acquire(caller(1)).unwrap_err().code(), Code::ResourceExhausted);
        let other = limit.acquire(caller(2)).unwrap();
        assert_eq!(limit.acquire(caller(2)).unwrap_err().code(), Code::Unavailable);
        drop(held);
        limit.acquire(caller(1)).unwrap();
        drop(other);
        assert!(limit.lock().of_caller.is_empty());
    }
}
