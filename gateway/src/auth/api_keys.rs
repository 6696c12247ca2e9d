//! API keys: a file of hashes, read again when it changes. The keys themselves are nowhere.
//!
//! One key a line: the hexadecimal SHA-256 of the key, the tenant, and its roles separated by commas. A key is
//! a random text of 32 bytes or more, so a hash without salt tells nothing about it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use tracing::{error, info};

use super::{Principal, Role};

const DIGEST_BYTES: usize = 32;
/// Where in the table a digest is looked for; what lies there is then compared in constant time.
const SLOT_BYTES: usize = 8;
/// How often the file is looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);
/// Longest tenant name, in characters.
const TENANT_CHARS_MAX: usize = 64;

type Slot = [u8; SLOT_BYTES];
type Table = HashMap<Slot, Vec<([u8; DIGEST_BYTES], Principal)>>;

/// The keys that are good at the moment. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ApiKeys {
    path: PathBuf,
    table: Arc<RwLock<Arc<Table>>>,
}

/// A file of keys that cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ApiKeysError {
    #[error("{path} cannot be read: {1}", path = .0.display())]
    Unreadable(PathBuf, std::io::Error),
    #[error("{path}, line {line}: {problem}", path = .path.display())]
    Line { path: PathBuf, line: usize, problem: &'static str },
}

impl ApiKeys {
    /// Reads the keys of the file at `path`.
    pub(crate) fn read(path: &str) -> Result<Self, ApiKeysError> {
        let path = PathBuf::from(path);
        let table = Arc::new(RwLock::new(Arc::new(read(&path)?)));
        Ok(Self { path, table })
    }

    /// Whose key it is.
    pub(crate) fn find(&self, key: &[u8]) -> Option<Principal> {
        let digest: [u8; DIGEST_BYTES] = Sha256::digest(key).into();
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner).clone();
        let candidates = table.get(&slot(&digest))?;
        candidates
            .iter()
            .find(|(known, _)| known.ct_eq(&digest).into())
            .map(|(_, principal)| principal.clone())
    }

    /// Reads the file again whenever it has changed. A file that cannot be used changes nothing. Runs for as
    /// long as the server does.
    pub(crate) async fn follow(self) {
        let mut seen = stamp(&self.path);
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let now = stamp(&self.path);
            if now == seen {
                continue;
            }
            seen = now;
            match read(&self.path) {
                Ok(table) => {
                    info!(keys = table.values().map(Vec::len).sum::<usize>(), "API keys read again");
                    *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
                }
                Err(error) => error!(%error, "API keys not read again; those from before stay good"),
            }
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = path.metadata().ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> Result<Table, ApiKeysError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ApiKeysError::Unreadable(path.to_owned(), error))?;
    parse(&text).map_err(|(line, problem)| ApiKeysError::Line { path: path.to_owned(), line, problem })
}

/// Reads the text of a file, or says in which line something is wrong.
fn parse(text: &str) -> Result<Table, (usize, &'static str)> {
    let mut table = Table::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (digest, principal) = parse_line(line).map_err(|problem| (i + 1, problem))?;
        table.entry(slot(&digest)).or_default().push((digest, principal));
    }
    Ok(table)
}

fn parse_line(line: &str) -> Result<([u8; DIGEST_BYTES], Principal), &'static str> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [digest, tenant, roles] = fields[..] else {
        return Err("must be the SHA-256 of a key, a tenant, and roles separated by commas");
    };
    let digest = HEXLOWER.decode(digest.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    let digest = digest.ok_or("the SHA-256 must be 64 digits of 0-9 and a-f")?;
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if tenant.len() > TENANT_CHARS_MAX || !tenant.chars().all(good) {
        return Err("the tenant must be 1-64 characters of A-Z, a-z, 0-9 and \"-_.\"");
    }
    let roles: Option<Vec<_>> = roles.split(',').map(Role::parse).collect();
    let roles = roles.ok_or("the roles must be of orders:write, orders:read, operations")?;
    Ok((digest, Principal { tenant: tenant.into(), roles }))
}

fn slot(digest: &[u8; DIGEST_BYTES]) -> Slot {
    std::array::from_fn(|i| digest[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(key: &str, rest: &str) -> String {
        format!("{} {rest}", HEXLOWER.encode(&Sha256::digest(key)))
    }

    fn keys(text: &str) -> ApiKeys {
        let table = parse(text).unwrap();
        ApiKeys { path: PathBuf::new(), table: Arc::new(RwLock::new(Arc::new(table))) }
    }

    #[test]
    fn a_key_belongs_to_its_tenant_and_no_other_text_is_a_key() {
        let text = format!(
            "# shops\n\n{}\n{}\n",
            line("one", "shop-1 orders:write,orders:read"),
            line("two", "shop-2 orders:read")
        );
        let keys = keys(&text);
        assert_eq!(&*keys.find(b"one").unwrap().tenant, "shop-1");
        assert_eq!(keys.find(b"two").unwrap().roles, [Role::Read]);
        for other in ["", "on", "one ", "One", &HEXLOWER.encode(&Sha256::digest("one"))] {
            assert_eq!(keys.find(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_line_that_is_wrong_is_named() {
        let good = line("one", "shop orders:read");
        let short = "abc shop orders:read".to_owned();
        for bad in [short, line("k", "shop"), line("k", "a/b orders:read"), line("k", "shop everything")] {
            assert_eq!(parse(&format!("{good}\n{bad}")).unwrap_err().0, 2, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_file_panics(text in "(?s).{0,200}") {
            drop(parse(&text));
        }
    }
}
