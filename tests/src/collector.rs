//! A collector of traces and metrics: a real OTLP receiver (gRPC or HTTP), which keeps what it is sent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{self as otlp};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::eventually;

/// A running collector; gone when it is dropped.
#[derive(Debug)]
pub struct Collector {
    url: String,
    protocol: &'static str,
    spans: Spans,
    points: Points,
    serving: JoinHandle<()>,
}

type Spans = Arc<Mutex<Vec<Span>>>;
type Points = Arc<Mutex<Vec<Point>>>;

/// A number that has been received, of a metric and for some attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// `service.name` of the program that it is from.
    pub service: String,
    /// `service.instance.id` of its process.
    pub instance: String,
    /// The metric's name.
    pub metric: String,
    /// Its unit.
    pub unit: String,
    /// What it is about.
    pub attributes: HashMap<String, String>,
    /// The number; of a histogram how many values it has.
    pub value: f64,
}

/// A span that has been received.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.name` of the program that it is from.
    pub service: String,
    /// `service.instance.id` of its process.
    pub instance: String,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: SpanKind,
    /// Hex, as the other ids.
    pub trace_id: String,
    /// Its own id.
    pub span_id: String,
    /// Empty if it has none.
    pub parent: String,
    /// Its attributes, as text.
    pub attributes: HashMap<String, String>,
    /// The names of its events, with their attributes.
    pub events: Vec<(String, HashMap<String, String>)>,
    /// Trace and span ids of what it links to.
    pub links: Vec<(String, String)>,
    /// Whether it failed.
    pub is_error: bool,
    /// When it began and ended, in nanoseconds.
    pub times: (u64, u64),
}

impl Span {
    /// An attribute; empty if there is none.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// What others link to.
    pub fn place(&self) -> (String, String) {
        (self.trace_id.clone(), self.span_id.clone())
    }
}

impl Collector {
    /// Starts one at a free port.
    pub async fn start() -> Self {
        Self::start_with(true).await
    }

    /// Starts one that takes OTLP over HTTP.
    pub async fn start_http() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let (spans, points) = (Spans::default(), Points::default());
        let (kept, kept_points) = (spans.clone(), points.clone());
        let measure = async move |body: Bytes| {
            keep_points(&kept_points, ExportMetricsServiceRequest::decode(body).expect("metrics"));
        };
        let receive = async move |headers: HeaderMap, body: Bytes| {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            keep(&kept, ExportTraceServiceRequest::decode(body).expect("spans"));
        };
        let paths = Router::new().route("/v1/traces", post(receive)).route("/v1/metrics", post(measure));
        let serving = tokio::spawn(async move { axum::serve(listener, paths).await.expect("collector") });
        Self { url, protocol: "http/protobuf", spans, points, serving }
    }

    /// Starts one that reads everything and keeps nothing.
    pub async fn start_forgetful() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(keeps: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let (spans, points) = (Spans::default(), Points::default());
        let receiver = Receiver { spans: spans.clone(), points: points.clone(), keeps };
        let server = Server::builder()
            .add_service(TraceServiceServer::new(receiver.clone()))
            .add_service(MetricsServiceServer::new(receiver))
            .serve_with_incoming(TcpIncoming::from(listener));
        let serving = tokio::spawn(async move { server.await.expect("collector") });
        Self { url, protocol: "grpc", spans, points, serving }
    }

    /// What OTEL_EXPORTER_OTLP_ENDPOINT has to be.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Environment of programs that send every span here soon, unsampled.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let of = |name, value: &str| (name, value.to_owned());
        vec![
            of("OTEL_EXPORTER_OTLP_ENDPOINT", &self.url),
            of("OTEL_EXPORTER_OTLP_PROTOCOL", self.protocol),
            of("OTEL_TRACES_SAMPLER", "parentbased_always_on"),
            of("OTEL_BSP_SCHEDULE_DELAY", "50"),
            of("OTEL_METRIC_EXPORT_INTERVAL", "500"),
        ]
    }

    /// All that has come.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("spans").clone()
    }

    /// The latest number of a metric of a program that has these attributes.
    pub fn latest(&self, service: &str, metric: &str, attributes: &[(&str, &str)]) -> Option<Point> {
        let is_it = |point: &&Point| {
            let has = |(key, value): &(&str, &str)| point.attributes.get(*key).is_some_and(|is| is == value);
            point.service == service && point.metric == metric && attributes.iter().all(has)
        };
        self.points.lock().expect("points").iter().rev().find(is_it).cloned()
    }

    /// Waits for a span.
    pub async fn span(&self, what: &str, is_it: impl Fn(&Span) -> bool) -> Span {
        eventually(what, async || self.spans().into_iter().find(&is_it)).await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone)]
struct Receiver {
    spans: Spans,
    points: Points,
    keeps: bool,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.keeps {
            keep(&self.spans, request.into_inner());
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        if self.keeps {
            keep_points(&self.points, request.into_inner());
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn keep_points(points: &Points, request: ExportMetricsServiceRequest) {
    let mut points = points.lock().expect("points");
    for of_resource in request.resource_metrics {
        let resource =
            attributes(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let of_resource_named = |name: &str| resource.get(name).cloned().unwrap_or_default();
        for metric in of_resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            let numbers: Vec<(Vec<KeyValue>, f64)> = match metric.data {
                Some(Data::Gauge(gauge)) => gauge.data_points.into_iter().map(number).collect(),
                Some(Data::Sum(sum)) => sum.data_points.into_iter().map(number).collect(),
                Some(Data::Histogram(histogram)) => {
                    let points = histogram.data_points.into_iter();
                    points.map(|point| (point.attributes, point.count as f64)).collect()
                }
                other => panic!("{other:?}"),
            };
            points.extend(numbers.into_iter().map(|(of_point, value)| Point {
                service: of_resource_named("service.name"),
                instance: of_resource_named("service.instance.id"),
                metric: metric.name.clone(),
                unit: metric.unit.clone(),
                attributes: attributes(of_point),
                value,
            }));
        }
    }
}

fn number(point: opentelemetry_proto::tonic::metrics::v1::NumberDataPoint) -> (Vec<KeyValue>, f64) {
    let value = match point.value {
        Some(Number::AsInt(number)) => number as f64,
        Some(Number::AsDouble(number)) => number,
        None => panic!("a point without a number"),
    };
    (point.attributes, value)
}

fn keep(spans: &Spans, request: ExportTraceServiceRequest) {
    for of_resource in request.resource_spans {
        let resource =
            attributes(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let received = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.lock().expect("spans").extend(received.map(|span| read(span, &resource)));
    }
}

fn read(span: otlp::Span, resource: &HashMap<String, String>) -> Span {
    let of_resource = |name: &str| resource.get(name).cloned().unwrap_or_default();
    Span {
        service: of_resource("service.name"),
        instance: of_resource("service.instance.id"),
        kind: span.kind(),
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        attributes: attributes(span.attributes),
        events: span.events.into_iter().map(|event| (event.name, attributes(event.attributes))).collect(),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        is_error: span.status.is_some_and(|status| status.code() == StatusCode::Error),
        times: (span.start_time_unix_nano, span.end_time_unix_nano),
    }
}

fn attributes(attributes: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
