//! How many streams may be open at once: each costs memory for as long as its client wants.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

use super::Caller;
use crate::errors;

/// Bounds on open streams, of one caller and of all.
#[derive(Clone, Debug)]
pub(crate) struct StreamPlaces {
    open: Arc<Mutex<Open>>,
    per_caller_max: usize,
    total_max: usize,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    of_caller: HashMap<Caller, usize>,
}

/// One open stream.
#[derive(Debug)]
pub(crate) struct StreamPlace {
    places: StreamPlaces,
    caller: Caller,
}

impl StreamPlaces {
    pub(crate) fn new(total_max: usize, per_caller_max: usize) -> Self {
        Self { open: Arc::default(), per_caller_max, total_max }
    }

    /// Takes a place for a stream of `caller`, or says why there is none.
    pub(crate) fn take(&self, caller: Caller) -> Result<StreamPlace, Status> {
        let mut open = self.lock();
        if open.total >= self.total_max {
            return Err(errors::overloaded());
        }
        let of_caller = open.of_caller.entry(caller.clone()).or_default();
        if *of_caller >= self.per_caller_max {
            return Err(errors::too_many_streams(caller.kind(), self.per_caller_max));
        }
        *of_caller += 1;
        open.total += 1;
        drop(open);
        Ok(StreamPlace { places: self.clone(), caller })
    }

    /// Nothing panics while it is held, so poison would mean nothing.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut open = self.places.lock();
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
    fn a_place_is_free_again_when_its_stream_has_ended() {
        let places = StreamPlaces::new(3, 2);
        let caller = |last| Caller::Peer(Some([10, 0, 0, last].into()));
        let held = [places.take(caller(1)).unwrap(), places.take(caller(1)).unwrap()];
        assert_eq!(places.take(caller(1)).unwrap_err().code(), Code::ResourceExhausted);
        let other = places.take(caller(2)).unwrap();
        assert_eq!(places.take(caller(2)).unwrap_err().code(), Code::Unavailable);
        drop(held);
        places.take(caller(1)).unwrap();
        drop(other);
        assert!(places.lock().of_caller.is_empty());
    }
}
