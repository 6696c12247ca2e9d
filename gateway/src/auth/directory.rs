//! A file of who may call: one credential a line, with its tenant and roles. Read again when it changes.
//!
//! API keys and client certificates have a file each. For a key it holds the hexadecimal SHA-256: a key is a
//! random text of 32 bytes or more, so a hash without salt tells nothing about it, and the key itself is
//! nowhere. For a certificate it holds one of its names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use tracing::{error, info};

use super::principal::{Principal, Role, is_tenant};
use crate::transport::files::{self, Current, WatchedFiles};

const HASH_BYTES: usize = 32;
/// The lookup of a hash in the table; the entry is then compared in constant time.
const SLOT_BYTES: usize = 8;

type Hash = [u8; HASH_BYTES];
type Slot = [u8; SLOT_BYTES];

/// The first field of the lines of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The hash of an API key.
    ApiKeys,
    /// A name in a client certificate.
    Clients,
}

/// The valid credentials of one file. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    kind: Kind,
    path: PathBuf,
    watched: WatchedFiles,
    table: Current<Table>,
}

/// Principals by the hash of their credential: of an API key, or of a certificate's name.
#[derive(Debug, Default)]
struct Table(HashMap<Slot, Vec<(Hash, Arc<Principal>)>>);

/// A file that cannot be used.
#[derive(Debug, Error)]
pub(crate) enum DirectoryError {
    #[error("{path} cannot be read: {1}", path = .0.display())]
    Unreadable(PathBuf, std::io::Error),
    #[error("{path}, line {line}: {problem}", path = .path.display())]
    Line { path: PathBuf, line: usize, problem: &'static str },
}

impl Directory {
    /// Reads the API keys of the file at `path`.
    pub(crate) fn of_api_keys(path: &str) -> Result<Self, DirectoryError> {
        Self::read(Kind::ApiKeys, path.into())
    }

    /// Reads the client certificates of the file at `path`.
    pub(crate) fn of_clients(path: &str) -> Result<Self, DirectoryError> {
        Self::read(Kind::Clients, path.into())
    }

    /// Reads the text of a file, or returns the first invalid line and its problem.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of(kind: Kind, text: &str) -> Result<Self, (usize, &'static str)> {
        let table = Current::new(Table::parse(kind, text)?);
        Ok(Self { kind, path: PathBuf::new(), watched: WatchedFiles::new(Vec::new()), table })
    }

    fn read(kind: Kind, path: PathBuf) -> Result<Self, DirectoryError> {
        let watched = WatchedFiles::new(vec![path.clone()]);
        let table = Current::new(Table::read(kind, &path)?);
        Ok(Self { kind, path, watched, table })
    }

    /// The principal of an API key or a certificate's name.
    pub(crate) fn find(&self, shown: &[u8]) -> Option<Arc<Principal>> {
        self.table.get().get(&Sha256::digest(shown).into()).cloned()
    }

    /// Reads the file again whenever it has changed. A file that cannot be used changes nothing. Runs for as
    /// long as the server does.
    pub(crate) async fn follow(self) {
        let (kind, path) = (self.kind, self.path.clone());
        let read = move || Table::read(kind, &path).map_err(|error| error.to_string());
        let take = |read| match read {
            Ok(table) => {
                info!(?kind, credentials = Table::len(&table), "credentials file reloaded");
                self.replace(table);
            }
            Err(error) => {
                error!(?kind, error, "credentials file not reloaded, previous credentials kept");
            }
        };
        self.watched.clone().follow(read, take).await;
    }

    /// An unchanged entry stays the same principal and keeps its streams; the others are revoked.
    fn replace(&self, mut table: Table) {
        let before = self.table.get();
        for (hash, principal) in table.0.values_mut().flatten() {
            if let Some(same) = before.get(hash).filter(|before| before.is_like(principal)) {
                *principal = same.clone();
            }
        }
        let table = self.table.set(table);
        for (hash, principal) in before.0.values().flatten() {
            if !table.get(hash).is_some_and(|now| Arc::ptr_eq(now, principal)) {
                principal.revoke();
            }
        }
    }
}

impl Table {
    fn read(kind: Kind, path: &Path) -> Result<Self, DirectoryError> {
        let text =
            files::read_text(path).map_err(|error| DirectoryError::Unreadable(path.to_owned(), error))?;
        Self::parse(kind, &text).map_err(|(line, problem)| DirectoryError::Line {
            path: path.to_owned(),
            line,
            problem,
        })
    }

    /// Reads the text of a file, or returns the first invalid line and its problem.
    fn parse(kind: Kind, text: &str) -> Result<Self, (usize, &'static str)> {
        let mut table = Self::default();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (hash, principal) = parse_line(kind, line).map_err(|problem| (i + 1, problem))?;
            if table.get(&hash).is_some() {
                return Err((i + 1, "an earlier line has the same credential"));
            }
            table.0.entry(slot(&hash)).or_default().push((hash, Arc::new(principal)));
        }
        Ok(table)
    }

    fn get(&self, hash: &Hash) -> Option<&Arc<Principal>> {
        let candidates = self.0.get(&slot(hash))?;
        candidates.iter().find(|(known, _)| known.ct_eq(hash).into()).map(|(_, principal)| principal)
    }

    fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

fn parse_line(kind: Kind, line: &str) -> Result<(Hash, Principal), &'static str> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [shown, tenant, roles] = fields[..] else {
        return Err(match kind {
            Kind::ApiKeys => "must be the SHA-256 of a key, a tenant, and roles separated by commas",
            Kind::Clients => "must be a certificate's name, a tenant, and roles separated by commas",
        });
    };
    let hash = match kind {
        Kind::ApiKeys => {
            let hash = HEXLOWER.decode(shown.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
            hash.ok_or("the SHA-256 must be 64 digits of 0-9 and a-f")?
        }
        Kind::Clients => Sha256::digest(shown).into(),
    };
    if !is_tenant(tenant) {
        return Err("the tenant must be 1-64 characters of A-Z, a-z, 0-9 and \"-_.\"");
    }
    let roles: Option<Vec<_>> = roles.split(',').map(Role::parse).collect();
    let roles = roles.ok_or("the roles must be of orders:write, orders:read, operations")?;
    Ok((hash, Principal::new(tenant, roles)))
}

fn slot(hash: &Hash) -> Slot {
    std::array::from_fn(|i| hash[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(key: &str, rest: &str) -> String {
        format!("{} {rest}", HEXLOWER.encode(&Sha256::digest(key)))
    }

    #[test]
    fn a_key_belongs_to_its_tenant_and_other_texts_are_not_keys() {
        let text = format!(
            "# shops\n\n{}\n{}\n",
            line("one", "shop-1 orders:write,orders:read"),
            line("two", "shop-2 orders:read")
        );
        let keys = Directory::of(Kind::ApiKeys, &text).unwrap();
        assert_eq!(&*keys.find(b"one").unwrap().tenant, "shop-1");
        assert_eq!(keys.find(b"two").unwrap().roles, [Role::Read]);
        for other in ["", "on", "one ", "One", &HEXLOWER.encode(&Sha256::digest("one"))] {
            assert!(keys.find(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn a_certificate_is_found_by_an_exact_name() {
        let text = "spiffe://example.org/shop shop-1 orders:read\nshop.example.org shop-2 orders:read";
        let clients = Directory::of(Kind::Clients, text).unwrap();
        assert_eq!(&*clients.find(b"spiffe://example.org/shop").unwrap().tenant, "shop-1");
        assert_eq!(&*clients.find(b"shop.example.org").unwrap().tenant, "shop-2");
        for other in ["spiffe://example.org/", "example.org", "a.shop.example.org", ""] {
            assert!(clients.find(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn an_invalid_line_is_named() {
        let good = line("one", "shop orders:read");
        let short = "abc shop orders:read".to_owned();
        let again = line("one", "other orders:read");
        let bad =
            [short, again, line("k", "shop"), line("k", "a/b orders:read"), line("k", "shop everything")];
        for bad in bad {
            assert_eq!(Table::parse(Kind::ApiKeys, &format!("{good}\n{bad}")).unwrap_err().0, 2, "{bad}");
        }
        assert_eq!(Table::parse(Kind::Clients, "a.b shop orders:read\na.b").unwrap_err().0, 2);
    }

    #[test]
    fn only_changed_entries_are_revoked() {
        let lines = |roles_of_two: &str| {
            let lines = [line("one", "shop orders:read"), line("two", &format!("shop {roles_of_two}"))];
            Table::parse(Kind::ApiKeys, &lines.join("\n")).unwrap()
        };
        let keys = Directory::of(Kind::ApiKeys, "").unwrap();
        keys.replace(lines("orders:read"));
        let [one, two] = [b"one", b"two"].map(|key| keys.find(key).unwrap());
        keys.replace(lines("orders:read"));
        assert!(!one.is_revoked() && !two.is_revoked());
        keys.replace(lines("orders:write"));
        assert!(!one.is_revoked() && two.is_revoked());
        assert!(!keys.find(b"two").unwrap().is_revoked());
        keys.replace(Table::default());
        assert!(one.is_revoked());
    }

    proptest! {
        #[test]
        fn no_file_panics(text in "(?s).{0,200}") {
            drop(Table::parse(Kind::ApiKeys, &text));
            drop(Table::parse(Kind::Clients, &text));
        }
    }
}
