//! How often one peer may call.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use tonic::{Request, Status};

use crate::errors;

/// How often peers that have their whole burst again are forgotten, so that memory stays bounded.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// A token bucket for each peer address.
#[derive(Clone, Debug)]
pub(crate) struct RateLimit {
    peers: Arc<DefaultKeyedRateLimiter<IpAddr>>,
    clock: DefaultClock,
}

impl RateLimit {
    pub(crate) fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Self { peers: Arc::new(DefaultKeyedRateLimiter::keyed(quota)), clock: DefaultClock::default() }
    }

    /// Lets a call in, or says how long to wait.
    pub(crate) fn admit(&self, request: Request<()>) -> Result<Request<()>, Status> {
        // A connection without a peer address is gone already.
        let Some(peer) = request.remote_addr() else {
            return Ok(request);
        };
        match self.peers.check_key(&peer.ip()) {
            Ok(()) => Ok(request),
            Err(not_until) => Err(errors::rate_limited(not_until.wait_time_from(self.clock.now()))),
        }
    }

    /// Runs for as long as the server does.
    pub(crate) async fn forget_idle_peers(self) {
        loop {
            tokio::time::sleep(FORGET_INTERVAL).await;
            self.peers.retain_recent();
            self.peers.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tonic::Code;
    use tonic::transport::server::TcpConnectInfo;
    use tonic_types::StatusExt;

    fn call_from(peer: &str) -> Request<()> {
        let mut request = Request::new(());
        let remote_addr: Option<SocketAddr> = Some(peer.parse().unwrap());
        request.extensions_mut().insert(TcpConnectInfo { local_addr: None, remote_addr });
        request
    }

    #[test]
    fn a_peer_over_its_rate_is_told_when_to_come_back_and_others_are_let_in() {
        let limit = RateLimit::new(NonZeroU32::new(1).unwrap(), NonZeroU32::new(2).unwrap());
        for port in [1, 2] {
            limit.admit(call_from(&format!("10.0.0.1:{port}"))).unwrap();
        }
        let refusal = limit.admit(call_from("10.0.0.1:3")).unwrap_err();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        let wait = refusal.get_details_retry_info().unwrap().retry_delay.unwrap();
        assert!(wait <= Duration::from_secs(1) && wait > Duration::from_millis(500), "{wait:?}");
        limit.admit(call_from("10.0.0.2:1")).unwrap();
    }
}
