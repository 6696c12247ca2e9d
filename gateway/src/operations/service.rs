//! The DeadLetterService: lists, shows, redrives and discards the messages that the steps have given up.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backbone::dead_letters::{DeadLetters, LetterId, PutError, StoredDeadLetter};
use backbone::log::OrderLog;
use futures::Stream;
use futures::stream::unfold;
use proto::operations::v1::dead_letter_service_server::DeadLetterService;
use proto::operations::v1::{
    DeadLetterReason, DeadLetterState, DiscardDeadLetterRequest, DiscardDeadLetterResponse,
    GetDeadLetterRequest, GetDeadLetterResponse, ListDeadLettersRequest, ListDeadLettersResponse,
    RedriveDeadLettersRequest, RedriveDeadLettersResponse,
};
use tokio::select;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tonic::{Request, Response, Status};
use tracing::info;

use super::page::{self, Walk, in_list};
use super::redrive::{Canary, Redrive};
use super::requests::{self, Selection};
use crate::auth::Principal;
use crate::orders::{principal_of, read_by};
use crate::readiness::Readiness;
use crate::{broker_errors, deadline, errors};

/// The name of an unauthenticated operator in records.
const ANONYMOUS: &str = "anonymous";

/// The service over one order log and its dead letters.
#[derive(Debug)]
pub(crate) struct Operations {
    log: OrderLog,
    letters: DeadLetters,
    request_timeout: Duration,
    readiness: Readiness,
}

impl Operations {
    pub(crate) fn new(
        log: OrderLog,
        letters: DeadLetters,
        request_timeout: Duration,
        readiness: Readiness,
    ) -> Self {
        Self { log, letters, request_timeout, readiness }
    }

    async fn find(&self, id: &LetterId, by: Instant) -> Result<StoredDeadLetter, Status> {
        let found = read_by(by, self.letters.find_proven(id)).await?;
        let is_letter = |kept: &StoredDeadLetter| kept.letter.state() != DeadLetterState::Unspecified;
        found.filter(is_letter).ok_or_else(|| errors::letter_not_found(id))
    }

    /// The dead letters of a redrive, in their present state.
    async fn chosen(
        &self,
        selection: Selection,
        limit: usize,
        by: Instant,
    ) -> Result<VecDeque<LetterId>, Status> {
        let mut chosen = VecDeque::new();
        match selection {
            Selection::Ids(ids) => {
                let mut undecodable = Vec::new();
                for id in ids.into_iter().take(limit) {
                    let kept = self.find(&id, by).await?;
                    if kept.letter.reason() == DeadLetterReason::Undecodable {
                        undecodable.push(id.clone());
                    }
                    chosen.push_back(id);
                }
                if !undecodable.is_empty() {
                    return Err(errors::undecodable(&undecodable));
                }
            }
            Selection::Filter(filter) => {
                let mut walk = Walk::new(&self.letters, &filter, None);
                while chosen.len() < limit
                    && let Some(kept) = read_by(by, walk.next()).await?
                {
                    chosen.push_back(kept.id);
                }
            }
        }
        Ok(chosen)
    }

    /// The answers, until the drain begins, or the caller's time or credential is over.
    fn until_ended<T>(
        &self,
        request: &Request<T>,
        principal: Arc<Principal>,
        redrive: Redrive,
    ) -> impl Stream<Item = Result<RedriveDeadLettersResponse, Status>> + Send + use<T> {
        let (draining, caller_gone) = (self.readiness.draining(), deadline::of_stream(request.metadata()));
        unfold(Some(redrive), move |redrive| {
            let (draining, principal) = (draining.clone(), principal.clone());
            async move {
                let mut redrive = redrive?;
                let caller_gone = async {
                    match caller_gone {
                        Some(at) => sleep_until(at).await,
                        None => pending().await,
                    }
                };
                select! {
                    biased;
                    () = draining.cancelled() => Some((Err(errors::draining()), None)),
                    status = principal.ended() => Some((Err(status), None)),
                    () = caller_gone => Some((Err(errors::redrive_timed_out()), None)),
                    answer = redrive.next() => Some((answer?, Some(redrive))),
                }
            }
        })
    }
}

#[tonic::async_trait]
impl DeadLetterService for Operations {
    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<ListDeadLettersResponse>, Status> {
        let by = deadline::of(request.metadata(), self.request_timeout);
        let wanted = requests::page(request.into_inner())?;
        let page = read_by(by, page::read(&self.letters, &wanted.filter, wanted.from, wanted.size)).await?;
        Ok(Response::new(ListDeadLettersResponse {
            dead_letters: page.letters,
            next_page_token: page.next.map(|next| wanted.filter.token(next)).unwrap_or_default(),
            groups: page.groups,
            groups_incomplete: page.groups_incomplete,
        }))
    }

    async fn get_dead_letter(
        &self,
        request: Request<GetDeadLetterRequest>,
    ) -> Result<Response<GetDeadLetterResponse>, Status> {
        let by = deadline::of(request.metadata(), self.request_timeout);
        let id = requests::letter_id(&request.get_ref().dead_letter_id)?;
        let kept = self.find(&id, by).await?;
        Ok(Response::new(GetDeadLetterResponse { dead_letter: Some(kept.letter) }))
    }

    type RedriveDeadLettersStream =
        Pin<Box<dyn Stream<Item = Result<RedriveDeadLettersResponse, Status>> + Send>>;

    async fn redrive_dead_letters(
        &self,
        request: Request<RedriveDeadLettersRequest>,
    ) -> Result<Response<Self::RedriveDeadLettersStream>, Status> {
        let by = deadline::of(request.metadata(), self.request_timeout);
        let wanted = requests::redrive(request.get_ref().clone())?;
        if !wanted.dry_run {
            self.readiness.check_durability()?;
        }
        let ids = self.chosen(wanted.selection, wanted.limit, by).await?;
        let principal = principal_of(&request)?.clone();
        let operator = operator(&principal);
        info!(letters = ids.len(), operator, dry_run = wanted.dry_run, "redrive started");

        let mut pace = interval(Duration::from_secs(1) / wanted.rate_per_second.get());
        // After a delay the rate is kept; there is no burst to catch up.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let redrive = Redrive {
            log: self.log.clone(),
            letters: self.letters.clone(),
            ids,
            pace,
            dry_run: wanted.dry_run,
            operator,
            timeout: self.request_timeout,
            canary: if wanted.canary && !wanted.dry_run { Canary::Next } else { Canary::Done },
        };
        Ok(Response::new(Box::pin(self.until_ended(&request, principal, redrive))))
    }

    async fn discard_dead_letter(
        &self,
        request: Request<DiscardDeadLetterRequest>,
    ) -> Result<Response<DiscardDeadLetterResponse>, Status> {
        let by = deadline::of(request.metadata(), self.request_timeout);
        let operator = operator(principal_of(&request)?);
        let (id, reason) = requests::discard(request.into_inner())?;
        self.readiness.check_durability()?;
        loop {
            let kept = self.find(&id, by).await?;
            let discarded = match kept.letter.state() {
                DeadLetterState::Redriven => return Err(errors::already_redriven(&id)),
                DeadLetterState::Unspecified | DeadLetterState::Discarded => {
                    read_by(by, self.letters.sweep(&kept)).await?;
                    kept
                }
                DeadLetterState::Open => {
                    let state = DeadLetterState::Discarded;
                    let resolve = self.letters.resolve(&kept, state, &operator, &reason);
                    match timeout_at(by, resolve).await.map_err(|_| errors::letter_unknown(&id))? {
                        Ok(discarded) => discarded,
                        // Another writer was first: read again.
                        Err(PutError::Conflict) => continue,
                        Err(error) => return Err(broker_errors::put(&id, &error)),
                    }
                }
            };
            info!(dead_letter_id = %id, operator, "dead letter discarded");
            return Ok(Response::new(DiscardDeadLetterResponse {
                dead_letter: Some(in_list(discarded.letter)),
            }));
        }
    }
}

/// The operator's name in records and logs: its tenant.
pub(super) fn operator(principal: &Principal) -> String {
    let tenant = &*principal.tenant;
    if tenant.is_empty() { ANONYMOUS } else { tenant }.to_owned()
}
