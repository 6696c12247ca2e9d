//! The ledger task: decides on payments, and writes each decision to disk before it answers.
//!
//! Natural batching: calls that arrive while one batch is written form the next one, and each batch takes one fsync.

use std::io;
use std::path::Path;

use proto::payments::v1::{GetLedgerResponse, capture_response, refund_response};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::journal::{Journal, OpenError};
use crate::ledger::{Charge, Ledger, Record, Refusal};

/// Calls that wait for the next batch; further ones wait for a place.
const QUEUE_MAX: usize = 1024;
const BATCH_MAX: usize = 1024;

/// Asks the task. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LedgerHandle {
    requests: mpsc::Sender<Request>,
}

/// Owns the ledger and its journal.
#[derive(Debug)]
pub(super) struct LedgerTask {
    journal: Journal,
    ledger: Ledger,
    requests: mpsc::Receiver<Request>,
}

/// Why a call was not answered from the record.
#[derive(Debug, Error)]
pub(super) enum RecordError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The journal could not be written; whether this call is in it shows after a restart.
    #[error("the journal cannot be written")]
    Gone,
}

#[derive(Debug)]
enum Request {
    Capture {
        key: String,
        charge: Charge,
        decline: bool,
        answer: oneshot::Sender<Result<capture_response::Outcome, Refusal>>,
    },
    Refund {
        key: String,
        answer: oneshot::Sender<Result<refund_response::Outcome, Refusal>>,
    },
    CustomerOf {
        key: String,
        answer: oneshot::Sender<Option<String>>,
    },
    OfOrder {
        order_id: String,
        answer: oneshot::Sender<GetLedgerResponse>,
    },
}

/// An answer that is given once the batch is on disk.
type Answer = Box<dyn FnOnce()>;

/// Opens the journal at `path`.
pub(super) fn open(path: &Path) -> Result<(LedgerHandle, LedgerTask), OpenError> {
    let (journal, ledger) = Journal::open(path)?;
    let (sender, requests) = mpsc::channel(QUEUE_MAX);
    Ok((LedgerHandle { requests: sender }, LedgerTask { journal, ledger, requests }))
}

impl LedgerHandle {
    /// Captures, or declines, unless something is on record under the key.
    pub(super) async fn capture(
        &self,
        key: String,
        charge: Charge,
        decline: bool,
    ) -> Result<capture_response::Outcome, RecordError> {
        Ok(self.ask(|answer| Request::Capture { key, charge, decline, answer }).await??)
    }

    /// Refunds, or forbids the capture.
    pub(super) async fn refund(&self, key: String) -> Result<refund_response::Outcome, RecordError> {
        Ok(self.ask(|answer| Request::Refund { key, answer }).await??)
    }

    /// Whose payment it is, if that is known.
    pub(super) async fn customer_of(&self, key: &str) -> Result<Option<String>, RecordError> {
        self.ask(|answer| Request::CustomerOf { key: key.to_owned(), answer }).await
    }

    /// The payments of one order, or of all if it is empty: only what is on disk.
    pub(super) async fn of_order(&self, order_id: String) -> Result<GetLedgerResponse, RecordError> {
        self.ask(|answer| Request::OfOrder { order_id, answer }).await
    }

    /// A call whose future is dropped may still be carried out, as one whose caller has gone away.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, RecordError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| RecordError::Gone)?;
        answered.await.map_err(|_| RecordError::Gone)
    }
}

impl LedgerTask {
    /// Answers until all callers are gone. Blocks its thread. After an error the state of the disk is unknown until it
    /// is read again.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.requests.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            let mut records = Vec::new();
            let answers: Vec<_> = batch.drain(..).map(|request| self.decide(request, &mut records)).collect();
            if !records.is_empty() {
                self.journal.append(&records)?;
            }
            for answer in answers {
                answer();
            }
        }
        Ok(())
    }

    fn decide(&mut self, request: Request, records: &mut Vec<Record>) -> Answer {
        match request {
            Request::Capture { key, charge, decline, answer } => {
                let decided = self.ledger.capture(&key, charge, decline);
                deferred(answer, decided.map(|decided| recorded(decided, records)))
            }
            Request::Refund { key, answer } => {
                let decided = self.ledger.refund(&key);
                deferred(answer, decided.map(|decided| recorded(decided, records)))
            }
            Request::CustomerOf { key, answer } => {
                deferred(answer, self.ledger.customer_of(&key).map(str::to_owned))
            }
            Request::OfOrder { order_id, answer } => deferred(answer, self.ledger.of_order(&order_id)),
        }
    }
}

/// The outcome, whose record goes to the others.
fn recorded<T>((outcome, record): (T, Option<Record>), records: &mut Vec<Record>) -> T {
    records.extend(record);
    outcome
}

fn deferred<T: 'static>(answer: oneshot::Sender<T>, outcome: T) -> Answer {
    // The caller may have cancelled.
    Box::new(move || drop(answer.send(outcome)))
}
