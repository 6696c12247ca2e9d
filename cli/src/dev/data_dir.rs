//! The folder that is kept between runs, and that belongs to one `dev` at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

/// The data folder, locked for as long as this lives. The kernel lifts the lock however the process ends.
#[derive(Debug)]
pub(super) struct DataDir {
    root: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the folder if need be, and takes it for this process alone.
    pub(super) fn lock(root: &Path) -> anyhow::Result<Self> {
        let cannot_use = || format!("cannot use the data directory {}", root.display());
        fs::create_dir_all(root).with_context(cannot_use)?;
        let lock = File::create(root.join("lock")).with_context(cannot_use)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(anyhow!(
                    "another `waybill dev` runs on {}: stop it, or choose another folder with --data-dir",
                    root.display()
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot_use),
        }
        let data = Self { root: root.to_owned(), _lock: lock };
        for folder in [data.jetstream(), data.logs(), data.ports()] {
            fs::create_dir_all(folder).with_context(cannot_use)?;
        }
        Ok(data)
    }

    /// Where the broker keeps its streams.
    pub(super) fn jetstream(&self) -> PathBuf {
        self.root.join("jetstream")
    }

    /// Where the payment sandbox keeps what it captured.
    pub(super) fn payments(&self) -> PathBuf {
        self.root.join("payments.jsonl")
    }

    /// Where each child writes its log.
    pub(super) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Where the configuration of Jaeger and Prometheus is, and what they keep; made if need be.
    pub(super) fn observe(&self) -> anyhow::Result<PathBuf> {
        let folder = self.root.join("observe");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// Where the broker says which port it has got.
    pub(super) fn ports(&self) -> PathBuf {
        self.root.join("ports")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_once_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("data");
        let first = DataDir::lock(&root).unwrap();
        let refused = DataDir::lock(&root).unwrap_err().to_string();
        assert!(refused.contains("another `waybill dev`") && refused.contains("--data-dir"));
        drop(first);
        DataDir::lock(&root).unwrap();
    }
}
