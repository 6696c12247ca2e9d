//! The file that the ledger is read from at start: one record a line, JSON, only ever appended to.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::ledger::{Ledger, Record};

/// What every record begins with.
const RECORD_STARTS: [&[u8]; 3] = [br#"{"captured":{"#, br#"{"declined":{"#, br#"{"refunded":{"#];

/// An open journal, locked against other processes.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

/// Why a journal cannot be used.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    /// An error of the file system.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// Two processes would charge twice.
    #[error("{0} is used by another payment sandbox")]
    InUse(PathBuf),
    /// The end of it would be cut off.
    #[error("{0} is not a journal of the payment sandbox; use another file")]
    Foreign(PathBuf),
    /// An unreadable record may have been a charge.
    #[error("{path}, line {line}: not a payment record ({reason}); fix the file, or use another")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The error.
        reason: serde_json::Error,
    },
}

impl Journal {
    /// Opens the file, makes it, and the folder that it is in, if need be, and reads what it says.
    ///
    /// The text after the last complete line was being written when its process died. It had no answer, so it is cut
    /// off.
    pub(super) fn open(path: &Path) -> Result<(Self, Ledger), OpenError> {
        let failed = |error| OpenError::Io(path.to_owned(), error);
        // Only the last folder: with all parents, a mistyped path would silently start an empty file.
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        {
            fs::create_dir(folder).map_err(failed)?;
        }
        let file = File::options().create(true).read(true).append(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }

        if !file.metadata().map_err(failed)?.is_file() {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        let mut ledger = Ledger::default();
        let (mut reader, mut text) = (BufReader::new(file), Vec::new());
        let mut whole_bytes = 0;
        for line in 1.. {
            text.clear();
            let bytes = reader.read_until(b'\n', &mut text).map_err(failed)?;
            if text.pop() != Some(b'\n') {
                break;
            }
            let record: Record = serde_json::from_slice(&text).map_err(|reason| OpenError::Damaged {
                path: path.to_owned(),
                line,
                reason,
            })?;
            ledger.apply(record);
            whole_bytes += bytes as u64;
        }

        let mut file = reader.into_inner();
        let torn_bytes = file.seek(SeekFrom::End(0)).map_err(failed)? - whole_bytes;
        if torn_bytes > 0 {
            // Never truncate a file that is not a journal.
            let begins_as = |start: &&[u8]| text.starts_with(start) || start.starts_with(&text);
            if !RECORD_STARTS.iter().any(begins_as) {
                return Err(OpenError::Foreign(path.to_owned()));
            }
            tracing::warn!(path = %path.display(), torn_bytes, "incomplete last record truncated");
            file.set_len(whole_bytes).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        sync_folder_of(path).map_err(failed)?;
        Ok((Self { file }, ledger))
    }

    /// Appends records. They are on disk when this returns; after an error that is unknown.
    pub(super) fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record)?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines)?;
        self.file.sync_data()
    }
}

/// A new file is safe once its folder knows of it.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Charge;
    use proto::payments::v1::PaymentState;
    use std::fs;

    fn captured(key: &str) -> Record {
        let charge = Charge {
            order_id: format!("order-of-{key}"),
            customer_id: "ada\n\"\u{e9}".to_owned(),
            currency_code: "EUR".to_owned(),
            minor_units: 350,
            payment_method: String::new(),
        };
        Record::Captured { idempotency_key: key.to_owned(), charge }
    }

    fn refunded(key: &str) -> Record {
        Record::Refunded { idempotency_key: key.to_owned() }
    }

    fn states(ledger: &Ledger) -> Vec<PaymentState> {
        ledger.of_order("").payments.iter().map(|payment| payment.state()).collect()
    }

    #[test]
    fn appended_records_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, ledger) = Journal::open(&path).unwrap();
        assert!(states(&ledger).is_empty());
        let Record::Captured { idempotency_key, charge } = captured("b") else { panic!() };
        let declined = Record::Declined { idempotency_key, charge };
        journal.append(&[captured("a"), declined, refunded("c")]).unwrap();
        journal.append(&[refunded("a")]).unwrap();
        drop(journal);
        let (_, ledger) = Journal::open(&path).unwrap();
        use PaymentState::{Declined, Forbidden, Refunded};
        assert_eq!(states(&ledger), [Refunded, Declined, Forbidden]);
        assert_eq!(ledger.customer_of("a"), Some("ada\n\"\u{e9}"));
    }

    #[test]
    fn a_last_record_torn_at_any_byte_is_cut_off_and_may_be_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(&[captured("a")]).unwrap();
        let before = fs::metadata(&path).unwrap().len() as usize;
        journal.append(&[captured("b")]).unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for torn in before..whole.len() {
            fs::write(&path, &whole[..torn]).unwrap();
            let (mut journal, ledger) = Journal::open(&path).unwrap();
            assert_eq!(states(&ledger), [PaymentState::Captured], "torn at {torn}");
            journal.append(&[captured("b")]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole, "torn at {torn}");
        }
    }

    #[test]
    fn a_foreign_file_is_rejected_and_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        for foreign in [r#"{"apiKey":"precious"}"#, "one line", "{\"captured\""] {
            fs::write(&path, foreign).unwrap();
            let refused = Journal::open(&path);
            assert_eq!(refused.is_err(), !foreign.contains("captured"), "{foreign}");
            assert_eq!(fs::read_to_string(&path).unwrap().is_empty(), refused.is_ok(), "{foreign}");
        }
        assert!(matches!(Journal::open(Path::new("/dev/zero")), Err(OpenError::Foreign(_))));
    }

    #[test]
    fn a_damaged_record_before_the_last_is_refused_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(&[captured("a"), captured("b"), captured("c")]).unwrap();
        drop(journal);
        let damaged = fs::read_to_string(&path).unwrap().replace("order-of-b\"", "order-of-b");
        fs::write(&path, &damaged).unwrap();
        let refused = Journal::open(&path).unwrap_err();
        assert!(matches!(refused, OpenError::Damaged { line: 2, .. }), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged, "left as it was found");
    }

    #[test]
    fn a_journal_has_one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let first = Journal::open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(OpenError::InUse(_))));
        drop(first);
        Journal::open(&path).unwrap();
    }
}
