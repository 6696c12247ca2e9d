//! Clients that break the rules of HTTP/2 and gRPC, or keep them in bad faith: whatever they do, the calls of
//! others succeed, and the gateway stays up and does not grow.

use std::cell::Cell;
use std::net::IpAddr;

use futures::{StreamExt, stream};
use harness::measure::resident_kib;
use harness::{Deployment, Options, PATIENCE, item, order_of};
use http_body_util::{BodyExt, Full};
use prost::Message;
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{GetOrderRequest, ListOrderEventsRequest, WatchOrderRequest};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use crate::http2::{
    ABUSER, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, KEPT, PING, PREFACE, PRIORITY,
    RST_STREAM, Raw, SETTINGS, UNKNOWN, WINDOW_UPDATE, call_headers, frame, frame_head, grpc_message, header,
    kept_header, stream_ids,
};

/// The largest request.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Calls that others make while the abuse goes on.
const CALLS: usize = 50;
/// What the gateway may grow by. The abuse sends, or asks for, many times as much.
const GROWTH_MAX_MIB: f64 = 32.0;
/// The same where a caller holds its whole share of calls, each with as much as it can.
const GROWTH_OF_CALLS_MAX_MIB: f64 = 128.0;
/// As many streams as the gateway grants to one connection.
const STREAMS: usize = 1_000;

/// The other callers of a gateway that is abused.
struct Others {
    waybill: Deployment,
    client: OrderServiceClient<Channel>,
    calls: Cell<usize>,
    before_kib: f64,
    highest_kib: Cell<f64>,
}

impl Others {
    async fn start() -> Self {
        Self::of(gateway_only().await).await
    }

    async fn of(waybill: Deployment) -> Self {
        let client = waybill.client().await;
        let others = Self {
            waybill,
            client,
            calls: Cell::default(),
            before_kib: f64::MAX,
            highest_kib: Cell::default(),
        };
        // What it needs for these calls it has had before.
        others.go_on().await;
        let before_kib = others.highest_kib.take();
        Self { before_kib, calls: Cell::default(), ..others }
    }

    fn addr(&self) -> &str {
        &self.waybill.gateway.grpc_addr
    }

    /// Calls beside `abuse`, which is repeated until it has been beside enough calls.
    async fn beside(&self, rounds: usize, abuse: impl AsyncFn()) {
        let over = Cell::new(false);
        let from = self.calls.get();
        let abusing = async {
            let mut round = 0;
            while round < rounds || self.calls.get() < from + CALLS {
                abuse().await;
                round += 1;
            }
            over.set(true);
        };
        let calling = async {
            while !over.get() {
                self.call().await;
            }
        };
        tokio::join!(abusing, calling);
    }

    /// Calls while all is as it is.
    async fn go_on(&self) {
        for _ in 0..CALLS {
            self.call().await;
        }
    }

    /// An order that is placed and read, over an old connection or a new one.
    async fn call(&self) {
        let call = self.calls.replace(self.calls.get() + 1);
        let mut client =
            if call.is_multiple_of(10) { self.waybill.client().await } else { self.client.clone() };
        let placed_and_read = async {
            let placed = client.create_order(order_of("other", "", vec![item("widget", 1)])).await?;
            let order_id = placed.into_inner().order.unwrap_or_default().order_id;
            client.get_order(GetOrderRequest { order_id }).await
        };
        let answer = timeout(PATIENCE, placed_and_read).await.expect("an answer in time");
        answer.expect("an answer as if there was no abuse");
        let resident_kib = resident_kib(self.waybill.gateway.process.pid());
        self.highest_kib.set(self.highest_kib.get().max(resident_kib));
    }

    /// The gateway is none the worse for it.
    async fn unharmed(self) {
        self.unharmed_within(GROWTH_MAX_MIB).await;
    }

    /// The same, after abuse that may cost it so much memory.
    async fn unharmed_within(self, growth_max_mib: f64) {
        self.go_on().await;
        assert_eq!(self.waybill.http("/livez").await.0, 200);
        let log = self.waybill.gateway.process.output();
        assert!(!log.contains("panic"), "{log}");
        let growth_mib = (self.highest_kib.get() - self.before_kib) / 1024.0;
        eprintln!("{:.0} MiB before, {growth_mib:.1} MiB more at the most", self.before_kib / 1024.0);
        assert!(growth_mib < growth_max_mib, "{growth_mib:.1} MiB more than before");
    }
}

async fn gateway_only() -> Deployment {
    Deployment::start_with(Options { replicas: 0, ..Options::default() }).await
}

/// A whole call in frames.
fn call(method: &str, stream_id: u32, message: &impl Message) -> Vec<u8> {
    let mut call = frame(HEADERS, END_HEADERS, stream_id, &call_headers(method));
    call.extend(frame(DATA, END_STREAM, stream_id, &grpc_message(&message.encode_to_vec())));
    call
}

/// The same call on so many streams.
fn calls(method: &str, message: &impl Message, count: usize) -> Vec<u8> {
    stream_ids().take(count).flat_map(|stream_id| call(method, stream_id, message)).collect()
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once() {
    const RESETS: usize = 5_000;
    let others = Others::start().await;
    let reset = |stream_id| frame(RST_STREAM, 0, stream_id, &8_u32.to_be_bytes());
    let opened = |stream_id| frame(HEADERS, END_HEADERS, stream_id, &call_headers("GetOrder"));
    let order = order_of("abuser", "", vec![item("widget", 1)]);
    let called = |stream_id| call("CreateOrder", stream_id, &order);
    // Before the gateway knows what is called, and when it has begun to work on it.
    let begun: Vec<u8> = stream_ids().take(RESETS).flat_map(|id| [opened(id), reset(id)].concat()).collect();
    let whole: Vec<u8> = stream_ids().take(RESETS).flat_map(|id| [called(id), reset(id)].concat()).collect();
    others
        .beside(2, async || {
            for resets in [&begun, &whole] {
                let mut raw = Raw::greet(others.addr()).await;
                raw.flood(resets).await;
                raw.finish().await;
            }
        })
        .await;
    others.unharmed().await;
}

#[tokio::test]
async fn headers_without_end() {
    const FRAMES: usize = 4_000;
    let others = Others::start().await;
    let some: Vec<u8> = (0..15).flat_map(|i| header(&format!("x-{i}"), &"h".repeat(1_000))).collect();
    let endless = |headers: &[u8]| {
        let mut frames = frame(HEADERS, 0, 1, &call_headers("GetOrder"));
        frames.extend(frame(CONTINUATION, 0, 1, headers).repeat(FRAMES));
        frames
    };
    for frames in [endless(&some), endless(&header("x", "")), endless(&[])] {
        others
            .beside(3, async || {
                let mut raw = Raw::greet(others.addr()).await;
                // The first megabyte or so is too much, and the connection with it.
                while raw.flood(&frames).await {}
                raw.ended().await;
            })
            .await;
    }
    others.unharmed().await;
}

#[tokio::test]
async fn header_lists_beyond_the_limit() {
    let others = Others::start().await;
    let large = header("x-large", &"h".repeat(10_000)).repeat(3);
    // A few kilobytes that stand for many megabytes.
    let mut bomb = kept_header("x-bomb", &"h".repeat(3_900));
    bomb.extend([KEPT; 12_000]);
    for headers in [large, bomb] {
        let mut block = call_headers("GetOrder");
        block.extend(headers);
        others
            .beside(20, async || {
                let mut raw = Raw::greet(others.addr()).await;
                for stream_id in stream_ids().take(100) {
                    let (first, rest) = block.split_at(16_000.min(block.len()));
                    let mut frames = frame(HEADERS, END_STREAM, stream_id, first);
                    frames.extend(frame(CONTINUATION, END_HEADERS, stream_id, rest));
                    if !raw.flood(&frames).await {
                        break;
                    }
                }
                raw.finish().await;
            })
            .await;
    }
    others.unharmed().await;
}

#[tokio::test]
async fn answers_that_nobody_takes() {
    const AT_ONCE: usize = 50;
    let waybill = gateway_only().await;
    let items = (0..100).map(|i| item(&format!("{:s<64}", format!("sku-{i}-")), 1)).collect();
    let order = waybill.place(order_of("abuser", "r-1", items)).await.unwrap();
    let others = Others::of(waybill).await;

    let events = ListOrderEventsRequest { order_id: order.order_id.clone(), ..Default::default() };
    let watch = WatchOrderRequest { order_id: order.order_id, after_revision: 0 };
    let events = calls("ListOrderEvents", &events, STREAMS);
    let watches = calls("WatchOrder", &watch, STREAMS);
    let mut held = Vec::new();
    // Far more lists than a caller's share; streams have shares of their own.
    for calls in [&events; 8].into_iter().chain([&watches]) {
        // Nothing at all, or hardly anything, may be sent to it.
        let window = u32::try_from(held.len() % 2).unwrap();
        let mut raw = Raw::greet_with_window(others.addr(), window).await;
        let opening = async {
            // A few at a time: what is tried is how much is held, not how fast it is made.
            for some in calls.chunks(calls.len() / STREAMS * AT_ONCE) {
                assert!(raw.write(some).await);
                raw.answers(AT_ONCE).await;
            }
        };
        tokio::join!(opening, others.go_on());
        held.push(raw);
    }
    others.go_on().await;
    others.unharmed_within(GROWTH_OF_CALLS_MAX_MIB).await;
}

#[tokio::test]
async fn messages_that_never_come_whole() {
    // More streams in all than calls may be under way.
    const CONNECTIONS: usize = 5;
    // A gateway that waits longer for a message than this takes on a busy machine: it hangs up on a client that goes on
    // sending afterwards, and what is tried is how it fares with all of them held.
    let gateway = vec![("REQUEST_TIMEOUT", "10m".to_owned())];
    let options = Options { replicas: 0, gateway, ..Options::default() };
    let others = Others::of(Deployment::start_with(options).await).await;
    // A byte at a time of one that says that it is as large as they may be.
    let mut begun = vec![0];
    begun.extend(u32::try_from(MESSAGE_BYTES_MAX).unwrap().to_be_bytes());
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut raw = Raw::greet(others.addr()).await;
        let headers = call_headers("CreateOrder");
        let opened: Vec<u8> =
            stream_ids().take(STREAMS).flat_map(|id| frame(HEADERS, END_HEADERS, id, &headers)).collect();
        assert!(raw.write(&opened).await);
        raw.all_read().await;
        held.push(raw);
    }
    for byte in begun {
        let step: Vec<u8> = stream_ids().take(STREAMS).flat_map(|id| frame(DATA, 0, id, &[byte])).collect();
        for raw in &mut held {
            // Most of these calls are refused, and the gateway hangs up on a client that goes on sending for them for more
            // than a second, as this one does on a busy machine.
            raw.flood(&step).await;
        }
        for _ in 0..CALLS / 5 {
            others.call().await;
        }
    }
    others.go_on().await;
    others.unharmed_within(GROWTH_OF_CALLS_MAX_MIB).await;
}

#[tokio::test]
async fn large_messages_of_which_the_last_byte_never_comes() {
    const CONNECTIONS: usize = 5;
    let others = Others::start().await;
    let endpoint = Channel::from_shared(format!("http://{}", others.addr())).unwrap();
    let endpoint = endpoint.local_address(Some(IpAddr::V4(ABUSER)));
    let mut message = vec![0];
    message.extend(u32::try_from(MESSAGE_BYTES_MAX).unwrap().to_be_bytes());
    message.resize(MESSAGE_BYTES_MAX, b'm');
    let message = bytes::Bytes::from(message);
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let channel = endpoint.connect().await.unwrap();
        for _ in 0..STREAMS {
            let frames = stream::iter([Ok::<_, Status>(http_body::Frame::data(message.clone()))]);
            let body = Body::new(http_body_util::StreamBody::new(frames.chain(stream::pending())));
            let mut channel = channel.clone();
            held.push(tokio::spawn(async move {
                let ready = channel.ready().await.unwrap();
                ready.call(request("application/grpc", body)).await
            }));
        }
    }
    others.go_on().await;
    others.go_on().await;
    others.unharmed_within(GROWTH_OF_CALLS_MAX_MIB).await;
    for call in held {
        call.abort();
    }
}

#[tokio::test]
async fn frames_larger_than_any_may_be() {
    let others = Others::start().await;
    let largest = 0xff_ffff;
    for kind in [DATA, HEADERS, SETTINGS, PING, UNKNOWN] {
        let mut frame = frame_head(largest, kind, 0, u32::from(kind <= HEADERS));
        frame.resize(largest, 0);
        others
            .beside(4, async || {
                let mut raw = Raw::greet(others.addr()).await;
                raw.flood(&frame).await;
                raw.ended().await;
            })
            .await;
    }
    others.unharmed().await;
}

#[tokio::test]
async fn floods_of_frames_that_mean_nothing() {
    const FRAMES: usize = 10_000;
    let others = Others::start().await;
    let opened = frame(HEADERS, END_HEADERS, 1, &call_headers("GetOrder"));
    for one in [
        frame(PING, 0, 0, &[0; 8]),
        frame(PING, ACK, 0, &[0; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff].repeat(10)),
        frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 0]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(DATA, 0, 1, &[]),
        frame(UNKNOWN, 0, 0, &[0; 100]),
    ] {
        let flood = [opened.clone(), one.repeat(FRAMES)].concat();
        others
            .beside(1, async || {
                let mut raw = Raw::greet(others.addr()).await;
                raw.flood(&flood).await;
                raw.finish().await;
            })
            .await;
    }
    others.unharmed().await;
}

#[tokio::test]
async fn floods_whose_answers_are_not_read() {
    const FRAMES: usize = 2_000_000;
    let others = Others::start().await;
    let answered = [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])];
    let floods = answered.map(|one| one.repeat(FRAMES));
    let connections = stream::iter(&floods).then(async |_| Raw::greet(others.addr()).await);
    let mut connections: Vec<_> = connections.collect().await;
    // The gateway reads no further when its own buffers are full, so this may never end.
    let flooding = connections.iter_mut().zip(&floods).map(|(raw, flood)| raw.write(flood));
    let flooding = futures::future::join_all(flooding);
    tokio::select! {
        _ = flooding => {}
        () = async { for _ in 0..5 { others.go_on().await } } => {}
    }
    others.unharmed().await;
}

#[tokio::test]
async fn thousands_of_connections_that_lead_nowhere() {
    const CONNECTIONS: usize = 2_000;
    let others = Others::start().await;
    let mut held = Vec::new();
    for i in 0..CONNECTIONS {
        let raw = match i % 3 {
            0 => Raw::connect(others.addr()).await,
            1 => {
                let mut raw = Raw::connect(others.addr()).await;
                assert!(raw.write(&PREFACE[..i % PREFACE.len()]).await);
                raw
            }
            _ => Raw::greet(others.addr()).await,
        };
        held.push(raw);
    }
    others.go_on().await;
    drop(held);
    others.unharmed().await;
}

#[tokio::test]
async fn garbage_instead_of_the_preface() {
    let others = Others::start().await;
    let mut tls = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    tls.resize(500, 0x5a);
    let mut settings_first = frame(SETTINGS, 0, 0, &[]);
    settings_first.extend(PREFACE);
    for garbage in [
        tls,
        settings_first,
        vec![0; 100_000],
        vec![0xff; 100_000],
        [PREFACE, &[0xff; 10_000]].concat(),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".repeat(100),
        b"GET / HTTP/9.9\r\n\r\n".repeat(100),
    ] {
        others
            .beside(10, async || {
                let mut raw = Raw::connect(others.addr()).await;
                raw.flood(&garbage).await;
                raw.finish().await;
            })
            .await;
    }
    others.unharmed().await;
}

#[tokio::test]
async fn requests_of_http_1_that_are_none() {
    let others = Others::start().await;
    let post = "POST /orders.v1.OrderService/CreateOrder HTTP/1.1\r\nhost: gateway\r\n";
    for junk in [
        // Headers and lines without end.
        format!("{post}{}", "x: h\r\n".repeat(1_000_000)),
        format!("{post}x: {}", "h".repeat(4_000_000)),
        format!("GET /{} HTTP/1.1\r\n\r\n", "p".repeat(4_000_000)),
        // Two lengths, a length that is none, a chunk that is none.
        format!("{post}content-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
        format!("{post}content-length: -1\r\n\r\n"),
        format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n"),
        "\r\n".repeat(1_000_000),
    ] {
        others
            .beside(3, async || {
                let mut raw = Raw::connect(others.addr()).await;
                raw.flood(junk.as_bytes()).await;
                raw.finish().await;
            })
            .await;
    }
    others.unharmed().await;
}

#[tokio::test]
async fn frames_that_break_off() {
    let others = Others::start().await;
    let order = order_of("abuser", "", vec![item("widget", 1)]);
    let whole = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &call("CreateOrder", 1, &order)].concat();
    others
        .beside(1, async || {
            for end in 0..whole.len() {
                let mut raw = Raw::connect(others.addr()).await;
                raw.write(&whole[..end]).await;
                raw.finish().await;
            }
        })
        .await;
    others.unharmed().await;
}

fn request(content_type: &str, body: Body) -> http::Request<Body> {
    http::Request::post("http://gateway/orders.v1.OrderService/CreateOrder")
        .header("content-type", content_type)
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// HTTP's status of the answer to one request with these bytes, and gRPC's if there is one.
async fn answer(channel: &mut Channel, content_type: &str, body: &[u8]) -> (u16, Option<Code>) {
    let body = Body::new(Full::from(body.to_vec()));
    let ready = channel.ready().await.unwrap();
    let response = ready.call(request(content_type, body)).await.unwrap();
    let (head, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let status = Status::from_header_map(&head.headers).or_else(|| Status::from_header_map(&trailers));
    (head.status.as_u16(), status.map(|status| status.code()))
}

#[tokio::test]
async fn messages_that_are_none() {
    let others = Others::start().await;
    let endpoint = Channel::from_shared(format!("http://{}", others.addr())).unwrap();
    let channel = endpoint.local_address(Some(IpAddr::V4(ABUSER))).connect().await.unwrap();
    let order = grpc_message(&order_of("abuser", "", vec![item("widget", 1)]).encode_to_vec());
    let with_head = |flag: u8, length: u32| {
        let mut message = order.clone();
        message[0] = flag;
        message[1..5].copy_from_slice(&length.to_be_bytes());
        message
    };
    let length = u32::try_from(order.len() - 5).unwrap();
    for (what, message, code) in [
        ("nothing", Vec::new(), Code::InvalidArgument),
        ("half a length", order[..3].to_vec(), Code::InvalidArgument),
        ("more announced than comes", with_head(0, length + 1), Code::InvalidArgument),
        ("more announced than may be", with_head(0, u32::MAX), Code::OutOfRange),
        ("compressed by nothing", with_head(1, length), Code::InvalidArgument),
        ("a flag that is none", with_head(7, length), Code::InvalidArgument),
        ("no protobuf", grpc_message(&[0xff; 100]), Code::InvalidArgument),
        ("less announced than comes", with_head(0, length - 3), Code::InvalidArgument),
    ] {
        let mut channel = channel.clone();
        let answer = answer(&mut channel, "application/grpc", &message).await;
        assert_eq!(answer, (200, Some(code)), "{what}");
        let again = async || {
            assert_eq!(self::answer(&mut channel.clone(), "application/grpc", &message).await, answer)
        };
        others.beside(1, again).await;
    }
    others.unharmed().await;
}

#[tokio::test]
async fn content_types_that_are_not_grpc() {
    let others = Others::start().await;
    let endpoint = Channel::from_shared(format!("http://{}", others.addr())).unwrap();
    let channel = endpoint.local_address(Some(IpAddr::V4(ABUSER))).connect().await.unwrap();
    let order = grpc_message(&order_of("abuser", "", vec![item("widget", 1)]).encode_to_vec());
    for content_type in ["application/json", "text/html", "application/grpcx", "*/*", ""] {
        let answer = answer(&mut channel.clone(), content_type, &order).await;
        assert_eq!(answer, (415, None), "{content_type}");
        // A proxy may have good callers on the same connection: it is not closed, however many there are.
        for _ in 0..STREAMS / 10 {
            assert_eq!(self::answer(&mut channel.clone(), content_type, &order).await, answer);
        }
        let again =
            async || assert_eq!(self::answer(&mut channel.clone(), content_type, &order).await, answer);
        others.beside(1, again).await;
    }
    others.unharmed().await;
}
