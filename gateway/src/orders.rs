//! The OrderService: each call becomes one append to, or one read of, the order log.

use std::pin::Pin;
use std::time::Duration;

use backbone::ids::Revision;
use backbone::log::{Appended, OrderLog, Watch};
use backbone::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use futures::Stream;
use futures::stream::unfold;
use proto::orders::v1::order_service_server::OrderService;
use proto::orders::v1::{
    CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse, GetOrderRequest,
    GetOrderResponse, ListOrderEventsRequest, ListOrderEventsResponse, ListOrdersRequest, ListOrdersResponse,
    WatchOrderRequest, WatchOrderResponse, WatchOrdersRequest, WatchOrdersResponse,
};
use tokio::select;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::debug;

use crate::{errors, validation};

/// Whose customers these are, for as long as callers are not told apart.
const TENANT: &str = "";

/// The service over one order log.
#[derive(Debug)]
pub(crate) struct Orders {
    log: OrderLog,
    request_timeout: Duration,
    draining: CancellationToken,
}

impl Orders {
    pub(crate) fn new(log: OrderLog, request_timeout: Duration, draining: CancellationToken) -> Self {
        Self { log, request_timeout, draining }
    }
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl OrderService for Orders {
    async fn create_order(
        &self,
        request: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let deadline = Instant::now() + self.request_timeout;
        let trace = trace_of(request.metadata());
        let new = validation::new_order(TENANT, request.into_inner())?;
        let items = new.created.items.clone();

        let appended = self.log.create(new.id, new.created, &trace, deadline).await;
        let order = match appended.map_err(|error| errors::append(&new.id, &error))? {
            Appended::Stored(created) => created.order,
            // A repeat: the id says that customer and request_id are the same, so the items decide.
            Appended::Overtaken(existing) if existing.order.items == items => existing.order,
            Appended::Overtaken(_) => return Err(errors::request_id_reused(&new.id)),
        };
        debug!(order_id = %new.id, trace_id = trace.trace_id(), revision = order.revision, "order accepted");
        Ok(Response::new(CreateOrderResponse { order: Some(order) }))
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let id = validation::order_id(&request.get_ref().order_id)?;
        let current = self.log.load(&id).await.map_err(|error| errors::read(&id, &error))?;
        let current = current.ok_or_else(|| errors::not_found(&id))?;
        Ok(Response::new(GetOrderResponse { order: Some(current.order) }))
    }

    type WatchOrderStream = ResponseStream<WatchOrderResponse>;

    async fn watch_order(
        &self,
        request: Request<WatchOrderRequest>,
    ) -> Result<Response<Self::WatchOrderStream>, Status> {
        let request = request.into_inner();
        let id = validation::order_id(&request.order_id)?;
        let watch = self.log.watch(id, Revision(request.after_revision)).await;
        let watch = watch.map_err(|error| errors::watch(&id, &error))?;
        Ok(Response::new(Box::pin(updates(watch, self.draining.clone()))))
    }

    async fn list_orders(
        &self,
        _: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        Err(Status::unimplemented("ListOrders is not available yet"))
    }

    async fn cancel_order(
        &self,
        _: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        Err(Status::unimplemented("CancelOrder is not available yet"))
    }

    async fn list_order_events(
        &self,
        _: Request<ListOrderEventsRequest>,
    ) -> Result<Response<ListOrderEventsResponse>, Status> {
        Err(Status::unimplemented("ListOrderEvents is not available yet"))
    }

    type WatchOrdersStream = ResponseStream<WatchOrdersResponse>;

    async fn watch_orders(
        &self,
        _: Request<WatchOrdersRequest>,
    ) -> Result<Response<Self::WatchOrdersStream>, Status> {
        Err(Status::unimplemented("WatchOrders is not available yet"))
    }
}

/// The watch as a response. It is polled only when the client can take more, so a slow reader holds back
/// nothing but itself; when it is dropped, the watch ends.
fn updates(
    watch: Watch,
    draining: CancellationToken,
) -> impl Stream<Item = Result<WatchOrderResponse, Status>> + Send {
    unfold(Some((watch, draining)), async |open| {
        let (mut watch, draining) = open?;
        select! {
            biased;
            () = draining.cancelled() => Some((Err(errors::draining()), None)),
            event = watch.next() => {
                let response = WatchOrderResponse { event: Some(event?.into_proto()) };
                Some((Ok(response), Some((watch, draining))))
            }
        }
    })
}

/// The caller's trace, or a new one.
fn trace_of(metadata: &MetadataMap) -> TraceContext {
    let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
    text(TRACEPARENT)
        .and_then(|traceparent| TraceContext::parse(traceparent, text(TRACESTATE)))
        .map_or_else(TraceContext::root, |caller| caller.child())
}
