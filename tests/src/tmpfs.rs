//! A disk that a test can fill: a tmpfs of its own.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skip;

/// A mounted tmpfs. Unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts a file system of this many MiB. `None`, with a message, where the test may not mount; with CI=true it
    /// must be able to.
    pub fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        if !is_root {
            skip("only root can mount a tmpfs");
            return None;
        }
        std::fs::create_dir_all(path).expect("directory");
        let size = format!("size={mebibytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "waybill-test"]).arg(path));
        Some(Self(path.to_owned()))
    }

    /// Fills what is left of it.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("file");
        for bytes in [64 * 1024, 4 * 1024, 1] {
            while filler.write_all(&vec![0; bytes]).is_ok() {}
        }
    }

    /// Frees what was filled.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("file");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazy unmount, because a server that is still exiting may have files open.
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("program");
    assert!(status.success(), "{command:?}: {status}");
}
