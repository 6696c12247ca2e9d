//! Files that may change while the gateway runs.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::sync::mpsc;
use tracing::error;

/// How often they are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Largest file.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Distinguishes states of a file. The inode, because a file that is moved into place may have the length and age of
/// the old one. The time of the last status change, because a change of permissions changes nothing else.
type Stamp = (u64, u64, Time, Time);
/// Seconds and nanoseconds.
type Time = (i64, i64);

/// Some files, and their state at the last successful read.
#[derive(Clone, Debug)]
pub(crate) struct WatchedFiles {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
}

impl WatchedFiles {
    /// Starts to watch. A reader that reads the files after this misses no change.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let seen = stamps(&paths);
        Self { paths, seen }
    }

    /// Reads the files again when one of them has changed, and every second until that succeeds: the cause of a
    /// failure, such as too many open files, may pass without a change of the file. `take` receives the contents, and
    /// each error once. Runs as long as the server.
    pub(crate) async fn follow<T: Send + 'static>(
        self,
        read: impl Fn() -> Result<T, String> + Send + 'static,
        mut take: impl FnMut(Result<T, String>),
    ) {
        let (found, mut news) = mpsc::channel(1);
        // A thread of its own: a read of a network file may never return, and the runtime would wait for it at the end
        // of the program.
        let watcher = thread::Builder::new().name("files".to_owned());
        let watcher = watcher.spawn(move || self.watch(&read, &found));
        while let Some(outcome) = news.recv().await {
            take(outcome);
        }
        error!(?watcher, "file watcher stopped, changes are no longer detected");
    }

    /// Ends when the receiver is gone.
    fn watch<T>(mut self, read: &impl Fn() -> Result<T, String>, found: &mpsc::Sender<Result<T, String>>) {
        let mut failure = None;
        while !found.is_closed() {
            thread::sleep(CHECK_INTERVAL);
            let now = stamps(&self.paths);
            if now == self.seen {
                failure = None;
                continue;
            }
            let outcome = read();
            match &outcome {
                Ok(_) => {
                    self.seen = now;
                    failure = None;
                }
                Err(error) if failure.as_ref() == Some(error) => continue,
                Err(error) => failure = Some(error.clone()),
            }
            if found.blocking_send(outcome).is_err() {
                return;
            }
        }
    }
}

/// The latest contents, shared by all clones. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Current<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Current<T> {
    pub(crate) fn new(read: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(read))))
    }

    /// The current contents.
    pub(crate) fn get(&self) -> Arc<T> {
        // No holder panics, so a poisoned lock is used as it is.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the contents, and returns the new ones.
    pub(crate) fn set(&self, read: T) -> Arc<T> {
        let read = Arc::new(read);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = read.clone();
        read
    }
}

/// Reads a regular file. A pipe would wait for a writer, and a device may have no end.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // With O_NONBLOCK, opening a pipe does not wait; regular files ignore it.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// The same for a file of text.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path)).collect()
}

/// `None` while the file does not exist.
fn stamp(path: &Path) -> Option<Stamp> {
    let file = path.metadata().ok()?;
    let [modified, changed] = [(file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec())];
    Some((file.ino(), file.len(), modified, changed))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    async fn a_failed_read_is_retried_although_the_file_stays_unchanged() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "before").unwrap();
        let watched = WatchedFiles::new(vec![path.clone()]);
        std::fs::write(&path, "after").unwrap();
        let in_the_way = Mutex::new(vec!["another", "the same", "the same"]);
        let read = move || match in_the_way.lock().unwrap().pop() {
            Some(error) => Err(error.to_owned()),
            None => read_text(&path).map_err(|error| error.to_string()),
        };
        let (news, mut outcomes) = mpsc::unbounded_channel();
        let following = watched.follow(read, move |outcome| news.send(outcome).unwrap());
        let following = tokio::spawn(following);
        assert_eq!(outcomes.recv().await.unwrap(), Err("the same".to_owned()));
        assert_eq!(outcomes.recv().await.unwrap(), Err("another".to_owned()), "each error is reported once");
        assert_eq!(outcomes.recv().await.unwrap(), Ok("after".to_owned()));
        following.abort();
    }

    #[test]
    fn the_permissions_of_a_file_are_part_of_its_state() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "same").unwrap();
        let before = stamp(&path);
        // Until the file system's clock advances.
        while stamp(&path) == before {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        }
    }

    #[test]
    fn only_a_regular_file_of_a_bounded_size_is_read() {
        let dir = TempDir::new().unwrap();
        let large = dir.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(FILE_BYTES_MAX).unwrap();
        assert_eq!(read(&large).unwrap().len() as u64, FILE_BYTES_MAX);
        std::fs::File::options().write(true).open(&large).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(read(&large).unwrap_err().to_string().contains("larger"));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for other in [pipe.as_path(), Path::new("/dev/zero"), dir.path()] {
            assert!(read(other).unwrap_err().to_string().contains("regular"), "{}", other.display());
        }
    }
}
