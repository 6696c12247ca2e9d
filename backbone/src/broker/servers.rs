//! Which server is tried next, how long the client waits before, and why the servers tried so far are unusable.

use std::time::Duration;

use async_nats::{Server, ServerAddr};
use program::backoff::Backoff;
use tokio::time::timeout;

const RECONNECT: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) };
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The switch from server to server while every server tried so far is unusable.
#[derive(Debug)]
pub(super) struct ServerSwitch {
    /// Where in the list the last attempt was.
    place: usize,
    pub(super) attempts: usize,
    /// How many there are to try.
    pub(super) servers: usize,
    /// The id of the server that was left last, and how often there had been a connection by then.
    pub(super) left: Option<(String, u64)>,
}

impl ServerSwitch {
    /// Starts at a random server, so that clients spread over the servers.
    pub(super) fn begin() -> Self {
        Self { place: usize::from(rand::random::<u8>()), attempts: 0, servers: 0, left: None }
    }

    /// The server to try now: each of them in turn.
    pub(super) fn next(&mut self, servers: &[Server]) -> Option<ServerAddr> {
        self.place = self.place.checked_add(1)?.checked_rem(servers.len())?;
        (self.attempts, self.servers) = (self.attempts + 1, servers.len());
        servers.get(self.place).map(|server| server.addr.clone())
    }
}

/// The delay before an attempt. The very first attempt has none. An attempt after a loss has one, so that clients do
/// not all reconnect at once.
pub(super) fn reconnect_delay(attempts: usize, connects: u64) -> Duration {
    if attempts <= 1 && connects == 0 { Duration::ZERO } else { RECONNECT.after(attempts as u64) }
}

/// Why each server is unusable.
pub(super) async fn reasons(servers: Vec<Server>) -> String {
    let mut reasons = Vec::with_capacity(servers.len());
    for Server { addr, last_error, .. } in &servers {
        // The client records no error for a name that it could not resolve.
        let resolved = timeout(RESOLVE_TIMEOUT, addr.socket_addrs()).await;
        let reason = match resolved {
            Ok(Ok(_)) => last_error.clone().unwrap_or_else(|| "no answer yet".to_owned()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its name is not resolved in time".to_owned(),
        };
        // Not the whole URL: it may contain a password.
        reasons.push(format!("{}:{}: {reason}", addr.host(), addr.port()));
    }
    reasons.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_attempt_has_no_delay() {
        assert_eq!(reconnect_delay(1, 0), Duration::ZERO);
        for (attempts, connects) in [(2, 0), (1, 1), (2, 1)] {
            assert!(reconnect_delay(attempts, connects) > Duration::ZERO);
        }
    }
}
