//! How many streams may be open at once: each costs memory for as long as its client wants.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

use crate::errors;

/// Bounds on open streams, of one peer and of all.
#[derive(Clone, Debug)]
pub(crate) struct StreamPlaces {
    open: Arc<Mutex<Open>>,
    per_peer_max: usize,
    total_max: usize,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    of_peer: HashMap<IpAddr, usize>,
}

/// One open stream.
#[derive(Debug)]
pub(crate) struct StreamPlace {
    places: StreamPlaces,
    peer: Option<IpAddr>,
}

impl StreamPlaces {
    pub(crate) fn new(total_max: usize, per_peer_max: usize) -> Self {
        Self { open: Arc::default(), per_peer_max, total_max }
    }

    /// Takes a place for a stream of `peer`, or says why there is none.
    pub(crate) fn take(&self, peer: Option<IpAddr>) -> Result<StreamPlace, Status> {
        let mut open = self.lock();
        if open.total >= self.total_max {
            return Err(errors::overloaded());
        }
        if let Some(peer) = peer {
            let of_peer = open.of_peer.entry(peer).or_default();
            if *of_peer >= self.per_peer_max {
                return Err(errors::too_many_streams(self.per_peer_max));
            }
            *of_peer += 1;
        }
        open.total += 1;
        drop(open);
        Ok(StreamPlace { places: self.clone(), peer })
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
        if let Some(peer) = self.peer
            && let Some(of_peer) = open.of_peer.get_mut(&peer)
        {
            *of_peer -= 1;
            if *of_peer == 0 {
                open.of_peer.remove(&peer);
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
        let peer = |last| Some(IpAddr::from([10, 0, 0, last]));
        let held = [places.take(peer(1)).unwrap(), places.take(peer(1)).unwrap()];
        assert_eq!(places.take(peer(1)).unwrap_err().code(), Code::ResourceExhausted);
        let other = places.take(peer(2)).unwrap();
        assert_eq!(places.take(peer(2)).unwrap_err().code(), Code::Unavailable);
        drop(held);
        places.take(peer(1)).unwrap();
        drop(other);
        assert!(places.lock().of_peer.is_empty());
    }
}
