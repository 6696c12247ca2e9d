//! Reading the route file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::check;
use crate::config::RoutesConfig;
use crate::faults::Faults;
use crate::routes::Routes;
use crate::yaml::Node;

/// Largest route file.
const FILE_BYTES_MAX: usize = 64 * 1024;

/// Why a route file cannot be used. The text names the setting, the file and every fault.
#[derive(Debug, Error)]
pub enum RoutesError {
    /// The file cannot be read.
    #[error("ROUTES_FILE: {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file does not define routes.
    #[error("ROUTES_FILE: {}:\n{faults}", path.display())]
    Faulty {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it.
        faults: Faults,
    },
}

impl Routes {
    /// Reads the route file, or takes the built-in route if there is none.
    pub fn read(config: &RoutesConfig) -> Result<Self, RoutesError> {
        let Some(path) = &config.routes_file else { return Ok(Self::default()) };
        let content =
            read_file(path).map_err(|error| RoutesError::Unreadable { path: path.clone(), error })?;
        Self::parse(&content).map_err(|faults| RoutesError::Faulty { path: path.clone(), faults })
    }

    /// Reads the content of a route file, and reports everything that is wrong with it.
    pub fn parse(content: &[u8]) -> Result<Self, Faults> {
        if content.len() > FILE_BYTES_MAX {
            return Err(Faults::one("larger than 64 KiB; define fewer routes or shorten the comments"));
        }
        let text = str::from_utf8(content).map_err(|error| {
            let before = content.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            Faults::one(format!("line {line}: not UTF-8; save the file as UTF-8"))
        })?;
        check::routes(&Node::parse(text)?)
    }
}

/// Reads a file up to one byte more than it may have.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut content)?;
    Ok(content)
}
