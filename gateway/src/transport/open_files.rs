//! The limit of open files (RLIMIT_NOFILE): each connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Files that the gateway needs besides its callers' connections, with a margin.
const OWN_FILES: u64 = 128;

/// Raises the soft limit to the hard limit, since shells and supervisors set a lower one; warns if that is too little for
/// `connections_max`.
pub(crate) fn allow(connections_max: usize) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).map(|(allowed, most)| {
        let raised = allowed < most && setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok();
        if raised { most } else { allowed }
    });
    match raised {
        Ok(open_files_max) if open_files_max < connections_max as u64 + OWN_FILES => warn!(
            open_files_max,
            connections_max,
            "MAX_CONNECTIONS exceeds the limit of open files, connections beyond that limit wait"
        ),
        Ok(_) => {}
        Err(error) => warn!(%error, "limit of open files not read"),
    }
}
