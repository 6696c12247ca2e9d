//! CreateOrder at the gateway, side by side with the smallest handler that could do it: decode, publish to
//! JetStream, await the acknowledgement, answer. Same machine, same broker, same client, turn by turn.
//!
//! `cargo bench --workspace --bench create_order`

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark prints what it measured, or fails"
)]

use std::process::Command;
use std::time::Duration;

use async_nats::jetstream;
use harness::measure::{Measured, closed_loop, spread};
use harness::{Deployment, Options, Process, item, order_of};
use prost::Message;
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::order_service_server::{OrderService, OrderServiceServer};
use proto::orders::v1::{
    CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse, GetOrderRequest,
    GetOrderResponse, ListOrderEventsRequest, ListOrderEventsResponse, ListOrdersRequest, ListOrdersResponse,
    Order, WatchOrderRequest, WatchOrderResponse, WatchOrdersRequest, WatchOrdersResponse,
};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

const ROUNDS: usize = 7;
const WARM_UP: Duration = Duration::from_secs(2);
const TURN: Duration = Duration::from_secs(3);
const CONNECTIONS: usize = 4;

#[tokio::main]
async fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("bare") => bare::serve(&std::env::args().nth(2).expect("NATS URL")).await,
        Some(_) | None => compare().await,
    }
}

async fn compare() {
    let unlimited = "1000000".to_owned();
    let gateway = vec![("RATE_LIMIT", unlimited.clone()), ("RATE_BURST", unlimited)];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let (_bare, bare_addr) = bare::start(&waybill.broker.url()).await;

    for in_flight in [64, 1] {
        for addr in [&bare_addr, &waybill.gateway.grpc_addr] {
            turn(addr, in_flight, WARM_UP).await;
        }
        let (mut bare, mut gateway) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare.push(turn(&bare_addr, in_flight, TURN).await);
            gateway.push(turn(&waybill.gateway.grpc_addr, in_flight, TURN).await);
        }
        println!(
            "\nCreateOrder, {in_flight} in flight, {ROUNDS} turns of {TURN:?} each: median [lowest-highest]"
        );
        print("bare handler", &bare);
        print("gateway", &gateway);
        let ratio = |of: fn(&Measured) -> f64| {
            let ratios: Vec<_> =
                gateway.iter().zip(&bare).map(|(gateway, bare)| of(gateway) / of(bare)).collect();
            let (median, lowest, highest) = spread(&ratios);
            format!("{median:.2} [{lowest:.2}-{highest:.2}]")
        };
        println!(
            "  gateway / bare: throughput {}, p50 {}",
            ratio(Measured::rate),
            ratio(|m| m.percentile_ms(50.0))
        );
    }
}

fn print(name: &str, turns: &[Measured]) {
    let of = |value: fn(&Measured) -> f64| {
        let (median, lowest, highest) = spread(&turns.iter().map(value).collect::<Vec<_>>());
        (median, lowest, highest)
    };
    let (rate, slowest, fastest) = of(Measured::rate);
    let ms = |value| {
        let (median, lowest, highest) = of(value);
        format!("{median:.2} [{lowest:.2}-{highest:.2}] ms")
    };
    println!(
        "  {name:<13} {rate:>6.0} [{slowest:.0}-{fastest:.0}] calls/s   p50 {}   p99 {}",
        ms(|m| m.percentile_ms(50.0)),
        ms(|m| m.percentile_ms(99.0)),
    );
}

/// One turn of load on the gateway or the bare handler at `addr`.
async fn turn(addr: &str, in_flight: usize, duration: Duration) -> Measured {
    let connect = || Channel::from_shared(format!("http://{addr}")).expect("address").connect_lazy();
    let clients: Vec<_> =
        (0..CONNECTIONS.min(in_flight)).map(|_| OrderServiceClient::new(connect())).collect();
    closed_loop(in_flight, duration, move |caller, call| {
        let mut client = clients[caller % clients.len()].clone();
        async move {
            let request = order_of(
                &format!("customer-{}", call % 1000),
                "",
                vec![item("widget", 2), item("gadget", 1)],
            );
            client.create_order(request).await.expect("order accepted");
        }
    })
    .await
}

/// The yardstick.
mod bare {
    use super::*;

    const STREAM: &str = "BARE";

    struct Bare(jetstream::Context);

    /// Starts the handler as a process of its own, like the gateway.
    pub(super) async fn start(nats_url: &str) -> (Process, String) {
        let dir = tempfile::tempdir().expect("directory");
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args(["bare", nats_url]);
        let mut process = Process::start("bare", command, dir.path());
        let addr = process
            .line("the bare handler's address", |line| Some(line.strip_prefix("listening on ")?.to_owned()));
        let addr = addr.await;
        (process, addr)
    }

    pub(super) async fn serve(nats_url: &str) {
        let client = async_nats::connect(nats_url).await.expect("broker");
        let jetstream = jetstream::context::ContextBuilder::new()
            .max_ack_inflight(4096)
            .backpressure_on_inflight(true)
            .build(client);
        let stream = jetstream::stream::Config {
            name: STREAM.to_owned(),
            subjects: vec![format!("{STREAM}.>")],
            ..Default::default()
        };
        jetstream.create_stream(stream).await.expect("stream");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        println!("listening on {}", listener.local_addr().expect("address"));
        Server::builder()
            .add_service(OrderServiceServer::new(Bare(jetstream)))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
            .await
            .expect("server");
    }

    #[tonic::async_trait]
    impl OrderService for Bare {
        async fn create_order(
            &self,
            request: Request<CreateOrderRequest>,
        ) -> Result<Response<CreateOrderResponse>, Status> {
            let payload = request.into_inner().encode_to_vec();
            let ack = async { self.0.publish(format!("{STREAM}.created"), payload.into()).await?.await };
            let ack = ack.await.map_err(|error| Status::unavailable(error.to_string()))?;
            Ok(Response::new(CreateOrderResponse {
                order: Some(Order { revision: ack.sequence, ..Order::default() }),
            }))
        }

        async fn get_order(&self, _: Request<GetOrderRequest>) -> Result<Response<GetOrderResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn list_orders(
            &self,
            _: Request<ListOrdersRequest>,
        ) -> Result<Response<ListOrdersResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn cancel_order(
            &self,
            _: Request<CancelOrderRequest>,
        ) -> Result<Response<CancelOrderResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn list_order_events(
            &self,
            _: Request<ListOrderEventsRequest>,
        ) -> Result<Response<ListOrderEventsResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        type WatchOrderStream = futures::stream::Empty<Result<WatchOrderResponse, Status>>;

        async fn watch_order(
            &self,
            _: Request<WatchOrderRequest>,
        ) -> Result<Response<Self::WatchOrderStream>, Status> {
            Err(Status::unimplemented(""))
        }

        type WatchOrdersStream = futures::stream::Empty<Result<WatchOrdersResponse, Status>>;

        async fn watch_orders(
            &self,
            _: Request<WatchOrdersRequest>,
        ) -> Result<Response<Self::WatchOrdersStream>, Status> {
            Err(Status::unimplemented(""))
        }
    }
}
