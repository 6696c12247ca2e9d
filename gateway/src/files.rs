//! Files that may change while the gateway runs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

/// How often they are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Tells one state of a file from another. The inode, because a file that is moved into place may be as long
/// and as old as the one that it replaces.
type Stamp = (u64, u64, SystemTime);

/// Some files, and the state that they were in when they were last looked at.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
}

impl Watched {
    /// Begins to watch. Whoever reads the files after this misses no change.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let seen = stamps(&paths);
        Self { paths, seen }
    }

    /// Waits until one of them is not what it was.
    pub(crate) async fn changed(&mut self) {
        loop {
            sleep(LOOK_INTERVAL).await;
            let now = stamps(&self.paths);
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path)).collect()
}

/// `None` while there is no such file.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = path.metadata().ok()?;
    Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
}
