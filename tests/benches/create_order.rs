//! CreateOrder at the gateway, side by side with the smallest handler that could do it: decode, publish to
//! JetStream, await the acknowledgement, answer. Same machine, same broker, same client, turn by turn.
//!
//! A second bare handler publishes a message as the order log needs it: a subject for each order, headers, the
//! expectation, republishing. It shows how much of the difference is the log's and how much the gateway's. Both exist
//! in Go too, with grpc-go and nats.go, if Go is installed.
//!
//! Throughput is that of all processes together, on the same cores. So CPU time is measured too: how many calls a core
//! would carry if it had nothing else to do.
//!
//! `cargo bench --workspace --bench create_order`

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark prints what it measured, or fails"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream;
use backbone::log::ids::OrderKey;
use harness::measure::{Measured, closed_loop, cpu_time, spread};
use harness::{Deployment, Options, Process, item, languages, order_of};
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
        Some(mode @ ("bare" | "bare-event")) => {
            bare::serve(&std::env::args().nth(2).expect("NATS URL"), mode == "bare-event").await;
        }
        Some(_) | None => compare().await,
    }
}

async fn compare() {
    let unlimited = "1000000".to_owned();
    let gateway = vec![("RATE_LIMIT", unlimited.clone()), ("RATE_BURST", unlimited)];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let url = waybill.broker.url();
    let own = std::env::current_exe().expect("own path");
    let mut handlers = vec![
        bare::start("bare handler", &own, "bare", &url).await,
        bare::start("bare, whole event", &own, "bare-event", &url).await,
    ];
    if let Some(go) = languages::go("benches/go") {
        handlers.push(bare::start("Go", &go, "bare", &url).await);
        handlers.push(bare::start("Go, whole event", &go, "bare-event", &url).await);
    }
    let gateway = Handler {
        name: "gateway",
        addr: waybill.gateway.grpc_addr.clone(),
        pid: waybill.gateway.process.pid(),
        _process: None,
    };
    handlers.push(gateway);

    for in_flight in [64, 1] {
        for handler in &handlers {
            turn(handler, in_flight, WARM_UP).await;
        }
        let mut turns: Vec<_> = handlers.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for (handler, turns) in handlers.iter().zip(&mut turns) {
                turns.push(turn(handler, in_flight, TURN).await);
            }
        }
        println!(
            "\nCreateOrder, {in_flight} in flight, {ROUNDS} turns of {TURN:?} each: median [lowest-highest]"
        );
        for (handler, turns) in handlers.iter().zip(&turns) {
            print(handler.name, turns);
        }
        let Some((gateway, yardsticks)) = turns.split_last() else { return };
        for (yardstick, turns) in handlers.iter().zip(yardsticks) {
            let ratio = |of: fn(&Turn) -> f64| {
                let ratios: Vec<_> =
                    gateway.iter().zip(turns).map(|(gateway, other)| of(gateway) / of(other)).collect();
                let (median, lowest, highest) = spread(&ratios);
                format!("{median:.2} [{lowest:.2}-{highest:.2}]")
            };
            println!(
                "  gateway / {}: throughput {}, p50 {}, calls per core {}",
                yardstick.name,
                ratio(|turn| turn.load.rate()),
                ratio(|turn| turn.load.percentile_ms(50.0)),
                ratio(|turn| 1.0 / turn.cpu_us),
            );
        }
    }
}

/// A process that answers CreateOrder.
struct Handler {
    name: &'static str,
    addr: String,
    pid: u32,
    /// Values that must live as long as the server.
    _process: Option<Process>,
}

/// The measurements of one turn.
struct Turn {
    load: Measured,
    /// CPU time of the handler's process for a call.
    cpu_us: f64,
}

fn print(name: &str, turns: &[Turn]) {
    let of = |value: fn(&Turn) -> f64| spread(&turns.iter().map(value).collect::<Vec<_>>());
    let (rate, slowest, fastest) = of(|turn| turn.load.rate());
    let ms = |value| {
        let (median, lowest, highest) = of(value);
        format!("{median:.2} [{lowest:.2}-{highest:.2}] ms")
    };
    let (cpu, least, most) = of(|turn| turn.cpu_us);
    println!(
        "  {name:<17} {rate:>6.0} [{slowest:.0}-{fastest:.0}] calls/s   p50 {}   p99 {}   CPU {cpu:.0} [{least:.0}-{most:.0}] us a call",
        ms(|turn| turn.load.percentile_ms(50.0)),
        ms(|turn| turn.load.percentile_ms(99.0)),
    );
}

/// One turn of load on a handler.
async fn turn(handler: &Handler, in_flight: usize, duration: Duration) -> Turn {
    let addr = &handler.addr;
    let connect = || Channel::from_shared(format!("http://{addr}")).expect("address").connect_lazy();
    let clients: Vec<_> =
        (0..CONNECTIONS.min(in_flight)).map(|_| OrderServiceClient::new(connect())).collect();
    let before = cpu_time(handler.pid);
    let load = closed_loop(in_flight, duration, move |caller, call| {
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
    .await;
    let cpu = cpu_time(handler.pid) - before;
    Turn { cpu_us: cpu.as_secs_f64() * 1e6 / load.latencies_us.len() as f64, load }
}

/// The yardstick.
mod bare {
    use super::*;

    const CREATED: &str = "BARE.created";
    /// As many bytes as the gateway's event has more than the request.
    const EVENT_BYTES_MORE: usize = 330;

    struct Bare {
        jetstream: jetstream::Context,
        whole_event: bool,
    }

    /// Starts a handler as a process of its own, like the gateway.
    pub(super) async fn start(name: &'static str, program: &Path, mode: &str, nats_url: &str) -> Handler {
        let dir = tempfile::tempdir().expect("directory");
        let mut command = Command::new(program);
        command.args([mode, nats_url]);
        let mut process = Process::start(name, command, dir.path());
        let addr = process
            .line("the bare handler's address", |line| Some(line.strip_prefix("listening on ")?.to_owned()));
        Handler { name, addr: addr.await, pid: process.pid(), _process: Some(process) }
    }

    pub(super) async fn serve(nats_url: &str, whole_event: bool) {
        let client = async_nats::connect(nats_url).await.expect("broker");
        let jetstream = jetstream::context::ContextBuilder::new()
            .max_ack_inflight(4096)
            .backpressure_on_inflight(true)
            .build(client);
        let stream = if whole_event {
            jetstream::stream::Config {
                name: "BARE_EVENTS".to_owned(),
                subjects: vec!["BARE_EVENTS.>".to_owned()],
                allow_direct: true,
                republish: Some(jetstream::stream::Republish {
                    source: "BARE_EVENTS.>".to_owned(),
                    destination: "live.BARE_EVENTS.>".to_owned(),
                    headers_only: false,
                }),
                ..Default::default()
            }
        } else {
            jetstream::stream::Config {
                name: "BARE".to_owned(),
                subjects: vec![CREATED.to_owned()],
                ..Default::default()
            }
        };
        jetstream.create_stream(stream).await.expect("stream");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        println!("listening on {}", listener.local_addr().expect("address"));
        Server::builder()
            .add_service(OrderServiceServer::new(Bare { jetstream, whole_event }))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
            .await
            .expect("server");
    }

    /// Headers as the order log has them, and the publish that carries them.
    async fn publish_event(
        jetstream: &jetstream::Context,
        mut payload: Vec<u8>,
    ) -> Result<jetstream::publish::PublishAck, jetstream::context::PublishError> {
        let id = OrderKey::unique().to_string();
        let mut headers = async_nats::HeaderMap::new();
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-id", id.as_str()),
            ("ce-type", "orders.v1.OrderCreated"),
            ("ce-source", "waybill-gateway"),
            ("ce-time", "2026-01-01T00:00:00.000000000Z"),
            ("content-type", "application/protobuf"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("Nats-Expected-Last-Subject-Sequence", "0"),
        ] {
            headers.insert(name, value);
        }
        let order = format!("00.vmsiot3cpmafjant.{id}");
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", format!("BARE_EVENTS.*.{order}"));
        payload.resize(payload.len() + EVENT_BYTES_MORE, 0);
        let subject = format!("BARE_EVENTS.created.{order}");
        jetstream.publish_with_headers(subject, headers, payload.into()).await?.await
    }

    #[tonic::async_trait]
    impl OrderService for Bare {
        async fn create_order(
            &self,
            request: Request<CreateOrderRequest>,
        ) -> Result<Response<CreateOrderResponse>, Status> {
            let payload = request.into_inner().encode_to_vec();
            let ack = async {
                if self.whole_event {
                    publish_event(&self.jetstream, payload).await
                } else {
                    self.jetstream.publish(CREATED, payload.into()).await?.await
                }
            };
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
