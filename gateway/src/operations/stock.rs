//! The StockService: lists the stock, changes it, and releases what lost orders hold.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backbone::broker::direct_get::ReadError;
use backbone::broker::streams::ORDERS;
use backbone::log::OrderLog;
use futures::stream::unfold;
use futures::{Stream, StreamExt};
use program::trace::{Context, FutureExt};
use proto::inventory::v1::reconcile_stock_response::Answer;
use proto::inventory::v1::stock_service_server::StockService;
use proto::inventory::v1::{
    AddStockRequest, AddStockResponse, GetStockRequest, GetStockResponse, ListStockRequest,
    ListStockResponse, OrphanedReservation, ReconcileStockRequest, ReconcileStockResponse, ReconcileSummary,
    RemoveStockRequest, RemoveStockResponse, ReservedUnits, SetStockRequest, SetStockResponse, Stock,
};
use stock::{
    ChangeRequest, Orphan, OrphanQuery, ReleaseError, ReservedStock, StockEntry, Store, reservation_ttl,
};
use tokio::select;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::service::operator;
use super::stock_requests::{self, Reconcile};
use crate::auth::Principal;
use crate::orders::{principal_of, read_by};
use crate::readiness::Readiness;
use crate::{broker_errors, deadline, errors};

/// Reserved between the deadline of a change and that of its call, so that the outcome is known in time.
const ANSWER_TIME: Duration = Duration::from_millis(100);
/// Answers of a reconciliation ahead of its reader.
const ANSWERS_MAX: usize = 16;

/// The service over one bucket.
#[derive(Clone, Debug)]
pub(crate) struct StockKeeping {
    log: OrderLog,
    request_timeout: Duration,
    readiness: Readiness,
    /// Operators who change stock at the same time need not compete with each other, but only with orders.
    changing: Arc<Mutex<()>>,
}

impl StockKeeping {
    pub(crate) fn new(log: OrderLog, request_timeout: Duration, readiness: Readiness) -> Self {
        Self { log, request_timeout, readiness, changing: Arc::default() }
    }

    fn by<T>(&self, request: &Request<T>) -> Instant {
        deadline::of(request.metadata(), self.request_timeout)
    }

    /// The bucket, and how long the events of orders are kept.
    async fn store(&self) -> Result<(Store, Duration), ReadError> {
        let connection = self.log.connection();
        let orders = connection.jetstream().get_stream(ORDERS).await;
        let orders = orders.map_err(|error| ReadError::NoAnswer(error.to_string()))?;
        let retention = orders.cached_info().config.max_age;
        Ok((Store::new(connection.clone(), reservation_ttl(retention)), retention))
    }

    async fn change(&self, change: ChangeRequest, by: Instant) -> Result<(Stock, bool), Status> {
        self.readiness.check_durability()?;
        self.readiness.check_stock().await?;
        // No reservation is written, so no TTL is needed.
        let store = Store::new(self.log.connection().clone(), None);
        let deadline = by.checked_sub(ANSWER_TIME).unwrap_or(by);
        let _turn = timeout_at(by, self.changing.lock()).await.map_err(|_| errors::timed_out())?;
        let changed = timeout_at(by, store.change(&change, deadline)).await;
        let changed = changed.map_err(|_| errors::stock_unknown())?;
        let changed = changed.map_err(|error| broker_errors::stock(&change.sku, &error))?;
        let ChangeRequest { sku, change, operator, request_id } = change;
        let (available, repeated) = (changed.available, changed.is_repeat);
        info!(sku, ?change, available, operator, request_id, repeated, "stock changed");
        let stock = Stock {
            sku,
            available_units: units(available),
            revision: changed.revision.0,
            ..Stock::default()
        };
        Ok((stock, repeated))
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<ReconcileStockResponse, Status>> + Send>>;

#[tonic::async_trait]
impl StockService for StockKeeping {
    async fn list_stock(
        &self,
        request: Request<ListStockRequest>,
    ) -> Result<Response<ListStockResponse>, Status> {
        let by = self.by(&request);
        let page = stock_requests::page(request.get_ref())?;
        self.readiness.check_stock().await?;
        let reading = async {
            let (store, retention) = self.store().await?;
            let listed = store.list().await?;
            Ok((listed, store.reserved(retention).await?))
        };
        let (listed, reserved) = read_by(by, reading).await?;
        let mut behind = listed.into_iter().filter(|listed| listed.sku > page.after);
        let stock: Vec<_> =
            behind.by_ref().take(page.size).map(|listed| stock_of(listed, &reserved)).collect();
        let next = stock.last().filter(|_| behind.next().is_some());
        let next_page_token = next.map(|last| stock_requests::token(&last.sku)).unwrap_or_default();
        let reserved_incomplete = reserved.is_incomplete;
        Ok(Response::new(ListStockResponse { stock, next_page_token, reserved_incomplete }))
    }

    async fn get_stock(
        &self,
        request: Request<GetStockRequest>,
    ) -> Result<Response<GetStockResponse>, Status> {
        let by = self.by(&request);
        let sku = stock_requests::sku(request.into_inner())?;
        self.readiness.check_stock().await?;
        let reading = async {
            let (store, retention) = self.store().await?;
            let Some(listed) = store.get(&sku).await? else { return Ok(None) };
            Ok(Some((listed, store.reserved(retention).await?)))
        };
        let found = read_by(by, reading).await?;
        let (listed, reserved) = found.ok_or_else(|| errors::sku_not_found(&sku))?;
        let (stock, reserved_incomplete) = (Some(stock_of(listed, &reserved)), reserved.is_incomplete);
        Ok(Response::new(GetStockResponse { stock, reserved_incomplete }))
    }

    async fn add_stock(
        &self,
        request: Request<AddStockRequest>,
    ) -> Result<Response<AddStockResponse>, Status> {
        let (by, operator) = (self.by(&request), operator(principal_of(&request)?));
        let change = stock_requests::add(request.into_inner(), operator)?;
        let (stock, repeated) = self.change(change, by).await?;
        Ok(Response::new(AddStockResponse { stock: Some(stock), repeated }))
    }

    async fn remove_stock(
        &self,
        request: Request<RemoveStockRequest>,
    ) -> Result<Response<RemoveStockResponse>, Status> {
        let (by, operator) = (self.by(&request), operator(principal_of(&request)?));
        let change = stock_requests::remove(request.into_inner(), operator)?;
        let (stock, repeated) = self.change(change, by).await?;
        Ok(Response::new(RemoveStockResponse { stock: Some(stock), repeated }))
    }

    async fn set_stock(
        &self,
        request: Request<SetStockRequest>,
    ) -> Result<Response<SetStockResponse>, Status> {
        let (by, operator) = (self.by(&request), operator(principal_of(&request)?));
        let change = stock_requests::set(request.into_inner(), operator)?;
        let (stock, repeated) = self.change(change, by).await?;
        Ok(Response::new(SetStockResponse { stock: Some(stock), repeated }))
    }

    type ReconcileStockStream = Answers;

    async fn reconcile_stock(
        &self,
        request: Request<ReconcileStockRequest>,
    ) -> Result<Response<Self::ReconcileStockStream>, Status> {
        let caller_gone = deadline::of_stream(request.metadata());
        let principal = principal_of(&request)?.clone();
        let wanted = stock_requests::reconcile(request.into_inner())?;
        self.readiness.check_stock().await?;
        if !wanted.dry_run {
            self.readiness.check_durability()?;
        }
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        let (keeping, dry_run) = (self.clone(), wanted.dry_run);
        info!(operator = operator(&principal), dry_run, "stock reconciliation started");
        // Aborted when the response stream is dropped.
        let working = async move {
            let reconciling = keeping.reconcile(wanted, &answers);
            let ended = select! {
                ended = reconciling => ended,
                status = until_ended(&keeping.readiness, &principal, caller_gone) => Err(status),
            };
            if let Err(status) = ended {
                // The reader may be gone.
                answers.send(Err(status)).await.ok();
            }
        };
        let working = AbortOnDropHandle::new(tokio::spawn(working.with_context(Context::current())));
        let answers = unfold((answered, working), async |(mut answered, working)| {
            let answer = answered.recv().await?;
            Some((answer, (answered, working)))
        });
        Ok(Response::new(answers.boxed()))
    }
}

impl StockKeeping {
    async fn reconcile(
        &self,
        wanted: Reconcile,
        answers: &mpsc::Sender<Result<ReconcileStockResponse, Status>>,
    ) -> Result<(), Status> {
        let read = |error: ReadError| broker_errors::read(&error);
        let (store, retention) = self.store().await.map_err(read)?;
        let query = OrphanQuery { retention, older_than: wanted.older_than };
        let mut orphans = store.orphans(&self.log, query).await.map_err(read)?;
        let mut summary = ReconcileSummary::default();
        while let Some(orphan) = orphans.next().await.map_err(read)? {
            if !wanted.orders.is_empty() && !wanted.orders.contains(&orphan.order_id) {
                continue;
            }
            let released = !wanted.dry_run && self.release(&store, &orphan).await?;
            summary.orphaned += 1;
            summary.released += i64::from(released);
            let answer = Answer::Orphan(orphaned(orphan, released));
            if answers.send(Ok(ReconcileStockResponse { answer: Some(answer) })).await.is_err() {
                return Ok(());
            }
        }
        summary.examined = i64::try_from(orphans.examined).unwrap_or(i64::MAX);
        answers.send(Ok(ReconcileStockResponse { answer: Some(Answer::Summary(summary)) })).await.ok();
        Ok(())
    }

    async fn release(&self, store: &Store, orphan: &Orphan) -> Result<bool, Status> {
        let released = store.release_orphan(&self.log, orphan).await;
        let order_id = orphan.order_id;
        match released {
            Ok(released) => {
                info!(%order_id, released, "reservation of a lost order examined");
                Ok(released)
            }
            Err(error @ ReleaseError::Unreadable(_)) => {
                warn!(%order_id, %error, "reservation of a lost order not released");
                Ok(false)
            }
            Err(ReleaseError::Read(error)) => Err(broker_errors::read(&error)),
            Err(error @ ReleaseError::Commit(_)) => {
                warn!(%order_id, %error, "reservation of a lost order not released");
                Err(errors::stock_unknown())
            }
        }
    }
}

/// Waits until the drain begins, or the caller's time or credential is over.
async fn until_ended(
    readiness: &Readiness,
    principal: &Arc<Principal>,
    caller_gone: Option<Instant>,
) -> Status {
    let time_out = async {
        match caller_gone {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    select! {
        () = readiness.draining().cancelled_owned() => errors::draining(),
        status = principal.ended() => status,
        () = time_out => errors::stock_unknown(),
    }
}

fn stock_of(listed: StockEntry, reserved: &ReservedStock) -> Stock {
    Stock {
        reserved_units: units(reserved.units.get(&listed.sku).copied().unwrap_or_default()),
        unreadable: listed.available.is_none(),
        available_units: units(listed.available.unwrap_or_default()),
        revision: listed.revision.0,
        update_time: listed.changed.map(Into::into),
        sku: listed.sku,
    }
}

fn orphaned(orphan: Orphan, released: bool) -> OrphanedReservation {
    let held = orphan.units.into_iter().map(|(sku, held)| ReservedUnits { sku, units: units(held) });
    OrphanedReservation {
        order_id: orphan.order_id.to_string(),
        units: held.collect(),
        order_create_time: Some(orphan.created.into()),
        reserve_time: Some(orphan.reserved.into()),
        released,
    }
}

fn units(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}
