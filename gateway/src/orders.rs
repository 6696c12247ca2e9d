//! The OrderService: each call becomes one append to, or one read of, the order log.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backbone::broker::direct_get::ReadError;
use backbone::log::event::Recorded;
use backbone::log::ids::{CustomerKey, OrderId, Revision};
use backbone::log::payment_method::removed_from_order;
use backbone::log::{AppendError, Appended, LossCounts, OrderLog, Update, WatchError};
use futures::stream::unfold;
use futures::{Stream, StreamExt};
use program::trace::{self, KeyValue, attribute};
use prost::Message;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::order_service_server::OrderService;
use proto::orders::v1::{
    CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse, GetOrderRequest,
    GetOrderResponse, ListOrderEventsRequest, ListOrderEventsResponse, ListOrdersRequest, ListOrdersResponse,
    Order, OrderCreated, OrderStatus, WatchOrderRequest, WatchOrderResponse, WatchOrdersRequest,
    WatchOrdersResponse,
};
use routes::Routes;
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::debug;

use crate::admission::{Caller, ConcurrencyLimit, Permit};
use crate::auth::Principal;
use crate::idempotency::is_retry;
use crate::metrics::{OpenStream, WATCH_ORDER, WATCH_ORDERS};
use crate::page_token::History;
use crate::readiness::Readiness;
use crate::spans;
use crate::validation::EventsRequest;
use crate::{broker_errors, deadline, errors, metrics, validation};

/// Maximum encoded size of a page of events; the event that exceeds it is the last one. Clients accept messages of 4
/// MiB by default.
const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// The service over one order log.
#[derive(Debug)]
pub(crate) struct Orders {
    log: OrderLog,
    routes: Arc<Routes>,
    request_timeout: Duration,
    readiness: Readiness,
    streams: ConcurrencyLimit,
}

impl Orders {
    pub(crate) fn new(
        log: OrderLog,
        routes: Arc<Routes>,
        request_timeout: Duration,
        readiness: Readiness,
        streams: ConcurrencyLimit,
    ) -> Self {
        Self { log, routes, request_timeout, readiness, streams }
    }

    fn deadline<T>(&self, request: &Request<T>) -> Instant {
        deadline::of(request.metadata(), self.request_timeout)
    }

    fn end_of_stream<T>(
        &self,
        request: &Request<T>,
        method: &'static str,
        losses: Losses,
    ) -> Result<EndOfStream, Status> {
        let lost = self.log.losses();
        let before = *lost.borrow();
        Ok(EndOfStream {
            principal: principal_of(request)?.clone(),
            draining: self.readiness.draining(),
            losses: (lost, before, losses),
            caller_gone: deadline::of_stream(request.metadata()),
            _permit: self.streams.acquire(Caller::of(request.extensions()))?,
            _open: OpenStream::of(method),
        })
    }
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl OrderService for Orders {
    async fn create_order(
        &self,
        request: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let deadline = self.deadline(&request);
        let new = validation::new_order(&tenant_of(&request)?, &self.routes, request.into_inner())?;
        spans::record_order(&new.id);
        self.readiness.check_durability()?;
        let asked = new.created.clone();
        let Some(route) = new.route else {
            let order = self.retried(&new.id, &asked, deadline).await?;
            return Ok(Response::new(CreateOrderResponse { order: shown(order) }));
        };

        let appended = self.log.create(new.id, new.created, route, deadline).await;
        let appended =
            appended.and_then(|appended| self.readiness.check_durability_after_append().map(|()| appended));
        let order = match appended.map_err(|error| broker_errors::append(&new.id, &error))? {
            Appended::Stored(created) => created.order,
            // A retry: the equal id implies the same customer and request_id.
            Appended::Overtaken(existing) if is_retry(&asked, &existing.order) => existing.order,
            Appended::Overtaken(_) => return Err(errors::request_id_reused(&new.id)),
        };
        debug!(order_id = %new.id, revision = order.revision, "order accepted");
        Ok(Response::new(CreateOrderResponse { order: shown(order) }))
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let deadline = self.deadline(&request);
        let id = validation::order_id(&request.get_ref().order_id)?;
        spans::record_order(&id);
        let tenant = tenant_of(&request)?;
        let found = read_by(deadline, self.log.load(&id)).await?;
        let found = found.filter(|found| owns(&tenant, &found.order, &id));
        let found = found.ok_or_else(|| errors::not_found(&id))?;
        Ok(Response::new(GetOrderResponse { order: shown(found.order) }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let deadline = self.deadline(&request);
        let page = validation::page(&tenant_of(&request)?, request.get_ref())?;
        let wanted = |order: &Order| page.statuses.is_empty() || page.statuses.contains(&order.status());
        // After half of the deadline a shorter page is returned, rather than none.
        let until = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let listing = self.log.list(page.customer, page.before, page.size, until, wanted);
        let found = read_by(deadline, listing).await?;
        let next_page_token = found.next.map(|before| page.list().token(before)).unwrap_or_default();
        let orders = found.orders.into_iter().filter_map(shown).collect();
        Ok(Response::new(ListOrdersResponse { orders, next_page_token }))
    }

    async fn cancel_order(
        &self,
        request: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        let deadline = self.deadline(&request);
        let tenant = tenant_of(&request)?;
        let (id, cancelled) = validation::cancel(request.into_inner())?;
        spans::record_order(&id);
        self.readiness.check_durability()?;

        let found = read_by(deadline, self.log.load_latest(&id)).await?;
        let found = found.filter(|found| owns(&tenant, &found.order, &id));
        let mut current = found.ok_or_else(|| errors::not_found(&id))?;
        // Bounded: each lost race is an event of another writer, and an order has few.
        while !is_cancelled(&current.order) {
            let detail = Detail::Cancelled(cancelled.clone());
            match self.log.append(&current, detail, deadline).await {
                Ok(Appended::Stored(now) | Appended::Overtaken(now)) => current = now,
                Err(AppendError::Refused(_)) => {
                    return Err(errors::not_cancellable(&id, current.order.status()));
                }
                Err(error) => return Err(broker_errors::append(&id, &error)),
            }
        }
        self.readiness.check_durability_after_append().map_err(|error| broker_errors::append(&id, &error))?;
        debug!(order_id = %id, revision = current.order.revision, "order cancelled");
        Ok(Response::new(CancelOrderResponse { order: shown(current.order) }))
    }

    async fn list_order_events(
        &self,
        request: Request<ListOrderEventsRequest>,
    ) -> Result<Response<ListOrderEventsResponse>, Status> {
        let deadline = self.deadline(&request);
        let EventsRequest { id, after, size } = validation::events(request.get_ref())?;
        spans::record_order(&id);
        let tenant = tenant_of(&request)?;
        let history = read_by(deadline, self.log.history(&id, Revision::NONE)).await?;
        if !history.last().is_some_and(|last| owns(&tenant, &last.order, &id)) {
            return Err(errors::not_found(&id));
        }
        Ok(Response::new(page_of(id, history, after, size)))
    }

    type WatchOrderStream = ResponseStream<WatchOrderResponse>;

    async fn watch_order(
        &self,
        request: Request<WatchOrderRequest>,
    ) -> Result<Response<Self::WatchOrderStream>, Status> {
        // The watch itself detects a loss of its own order.
        let ending = self.end_of_stream(&request, WATCH_ORDER, Losses::Replaced)?;
        let opening = self.deadline(&request);
        let tenant = tenant_of(&request)?;
        let request = request.into_inner();
        let id = validation::order_id(&request.order_id)?;
        spans::record_order(&id);
        let found = read_by(opening, self.log.load(&id)).await?;
        let found = found.filter(|found| owns(&tenant, &found.order, &id));
        let found = found.ok_or_else(|| errors::not_found(&id))?;
        let watch = self.log.watch(found, Revision(request.after_revision));
        let events = watch_by(opening, watch).await?.into_stream();
        let updates = events.map(move |update| {
            let update = update.map_err(|_| errors::events_lost())?;
            delivered(WATCH_ORDER, &update);
            Ok(WatchOrderResponse { event: Some(update.event.into_proto()) })
        });
        Ok(Response::new(Box::pin(ending.of(updates))))
    }

    type WatchOrdersStream = ResponseStream<WatchOrdersResponse>;

    async fn watch_orders(
        &self,
        request: Request<WatchOrdersRequest>,
    ) -> Result<Response<Self::WatchOrdersStream>, Status> {
        let ending = self.end_of_stream(&request, WATCH_ORDERS, Losses::All)?;
        let opening = self.deadline(&request);
        let tenant = tenant_of(&request)?;
        let request = request.into_inner();
        let customer = validation::customer(&tenant, &request.customer_id)?;
        let watch = self.log.watch_customer(customer, Revision(request.after_revision));
        let events = watch_by(opening, watch).await?.into_stream();
        let updates = events.map(move |update| {
            delivered(WATCH_ORDERS, &update);
            Ok(WatchOrdersResponse { event: Some(update.event.into_proto()) })
        });
        Ok(Response::new(Box::pin(ending.of(updates))))
    }
}

impl Orders {
    /// The order that this request has created when its route existed.
    async fn retried(&self, id: &OrderId, asked: &OrderCreated, deadline: Instant) -> Result<Order, Status> {
        match read_by(deadline, self.log.load(id)).await? {
            Some(existing) if is_retry(asked, &existing.order) => Ok(existing.order),
            Some(_) => Err(errors::request_id_reused(id)),
            None => Err(validation::unknown_route(&self.routes)),
        }
    }
}

/// The order as clients see it. Events lose the payment method in [`Recorded::into_proto`].
fn shown(order: Order) -> Option<Order> {
    Some(removed_from_order(order))
}

/// The page of an order's history that begins behind `after`.
fn page_of(id: OrderId, history: Vec<Recorded>, after: Revision, size: usize) -> ListOrderEventsResponse {
    let mut rest = history.into_iter().filter(|event| event.revision > after).peekable();
    let (mut events, mut bytes, mut last) = (Vec::new(), 0, after);
    while events.len() < size
        && bytes < PAGE_BYTES_MAX
        && let Some(event) = rest.next()
    {
        last = event.revision;
        let event = event.into_proto();
        bytes += event.encoded_len();
        events.push(event);
    }
    let next_page_token = rest.peek().map(|_| History(id).token(last)).unwrap_or_default();
    ListOrderEventsResponse { events, next_page_token }
}

/// The principal that the layers before have authenticated.
pub(crate) fn principal_of<T>(request: &Request<T>) -> Result<&Arc<Principal>, Status> {
    request.extensions().get().ok_or_else(errors::internal)
}

fn tenant_of<T>(request: &Request<T>) -> Result<Arc<str>, Status> {
    Ok(principal_of(request)?.tenant.clone())
}

/// Whether the order was cancelled, even if a step gave up its compensation.
fn is_cancelled(order: &Order) -> bool {
    [order.status(), order.parked_status()].contains(&OrderStatus::Cancelled)
}

/// Whether the order belongs to `tenant`. The customer part of the id is derived from tenant and customer.
fn owns(tenant: &str, order: &Order, id: &OrderId) -> bool {
    CustomerKey::of(tenant, &order.customer_id) == id.customer
}

/// Reads the log with a deadline.
pub(crate) async fn read_by<T>(
    deadline: Instant,
    read: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, Status> {
    let read = timeout_at(deadline, read).await.map_err(|_| errors::timed_out())?;
    read.map_err(|error| broker_errors::read(&error))
}

/// Starts a watch with a deadline.
async fn watch_by<W>(
    deadline: Instant,
    watch: impl Future<Output = Result<W, WatchError>>,
) -> Result<W, Status> {
    let begun = timeout_at(deadline, watch).await.map_err(|_| errors::timed_out())?;
    begun.map_err(|error| match error {
        WatchError::Beyond { last } => errors::beyond(last),
        WatchError::Read(error) => broker_errors::read(&error),
    })
}

/// The losses of the log that end a stream.
#[derive(Clone, Copy)]
enum Losses {
    /// Only the replacement of the log.
    Replaced,
    /// Every loss: a missing event of another order is not visible in the stream.
    All,
}

/// The events that end a stream from outside.
struct EndOfStream {
    principal: Arc<Principal>,
    draining: CancellationToken,
    losses: (watch::Receiver<LossCounts>, LossCounts, Losses),
    caller_gone: Option<Instant>,
    _permit: Permit,
    _open: OpenStream,
}

impl EndOfStream {
    /// The updates up to the end. They are polled only when the client can take more, so a slow reader delays only
    /// itself; dropping them ends the watch.
    fn of<T>(
        self,
        updates: impl Stream<Item = Result<T, Status>> + Send,
    ) -> impl Stream<Item = Result<T, Status>> + Send {
        let ended = Box::pin(self.ended());
        unfold(Some((Box::pin(updates), ended)), async |open| {
            let (mut updates, mut ended) = open?;
            select! {
                biased;
                status = &mut ended => Some((Err(status), None)),
                update = updates.next() => Some((update?, Some((updates, ended)))),
            }
        })
    }

    async fn ended(mut self) -> Status {
        let time_out = async {
            match self.caller_gone {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        select! {
            () = self.draining.cancelled() => errors::draining(),
            status = lost(&mut self.losses) => status,
            status = self.principal.ended() => status,
            () = time_out => errors::stream_timed_out(),
        }
    }
}

/// Waits until the log has lost events of this kind, after the stream began.
async fn lost((losses, before, which): &mut (watch::Receiver<LossCounts>, LossCounts, Losses)) -> Status {
    loop {
        let now = *losses.borrow_and_update();
        match which {
            _ if now.replaced > before.replaced => return errors::log_replaced(),
            Losses::All if now.all > before.all => return errors::events_lost(),
            Losses::All | Losses::Replaced => {}
        }
        // Unreachable: the log outlives its streams.
        if losses.changed().await.is_err() {
            pending::<()>().await;
        }
    }
}

/// Records the delivery of an update: links the call to the append's trace, and records the lag.
fn delivered(method: &'static str, Update { event, lag }: &Update) {
    if let Some(lag) = lag {
        metrics::delivered(method, *lag);
    }
    let Some(appended) = &event.trace else { return };
    trace::with_current(|call| {
        let revision = i64::try_from(event.revision.0).unwrap_or(i64::MAX);
        let about = vec![
            KeyValue::new(attribute::ORDER_ID, event.id.to_string()),
            KeyValue::new(attribute::ORDER_REVISION, revision),
        ];
        call.add_link(appended.clone(), about);
    });
}
