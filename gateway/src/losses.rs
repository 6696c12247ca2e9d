//! Detects events that were lost while no gateway ran: the stream of dead letters records how far the log reached.

use std::convert::Infallible;
use std::future::pending;
use std::time::{Duration, SystemTime};

use backbone::broker::direct_get::ReadError;
use backbone::consumer::AckFloor;
use backbone::dead_letters::DeadLetters;
use backbone::log::OrderLog;
use backbone::log::ids::Revision;
use tokio::time::sleep;
use tracing::debug;

/// Reads of open dead letters, of some dozens each. The latest ones name the highest sequences, and a lost log starts
/// with 1: the first dead letters are enough.
const READS_MAX: usize = 16;
const RETRY: Duration = Duration::from_secs(5);

/// Compares the log, once, with open dead letters and the steps' recorded floors.
pub(crate) async fn compare(log: &OrderLog, letters: &DeadLetters) -> Infallible {
    while let Err(error) = compare_once(log, letters).await {
        debug!(%error, "log not compared with dead letters, retrying");
        sleep(RETRY).await;
    }
    pending().await
}

async fn compare_once(log: &OrderLog, letters: &DeadLetters) -> Result<(), ReadError> {
    let mut farthest = (0, SystemTime::UNIX_EPOCH);
    let mut see = |sequence: u64, at: SystemTime| farthest = farthest.max((sequence, at));
    for (sequence, at) in AckFloor::all_recorded(log.connection()).await? {
        see(sequence, at);
    }
    let mut from = Some(Revision::NONE);
    for _ in 0..READS_MAX {
        let Some(next) = from else { break };
        let found = letters.open_from(None, next).await?;
        for kept in found.letters {
            let at = kept.letter.create_time.and_then(|time| time.try_into().ok());
            see(kept.id.sequence().0, at.unwrap_or(SystemTime::UNIX_EPOCH));
        }
        from = found.next;
    }
    let (sequence, at) = farthest;
    log.compare_with(sequence, at).await.map(drop)
}
