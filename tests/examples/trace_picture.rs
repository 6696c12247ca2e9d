//! Draws the trace of one order, as a collector gets it from the real programs: docs/trace.svg.
//!
//! `cargo run --release --locked -p waybill-tests --example trace_picture > docs/trace.svg`

#![allow(clippy::print_stdout, clippy::expect_used, missing_docs, reason = "draws a picture, or fails")]

use std::fmt::Write;

use harness::collector::{Collector, Span};
use harness::{Deployment, Options, item, order_of};

const ROW_HEIGHT: f64 = 20.0;
const NAMES_WIDTH: f64 = 430.0;
const BARS_WIDTH: f64 = 520.0;
/// Right of the bars, for the last one's duration.
const MARGIN: f64 = 70.0;
const HEAD_HEIGHT: f64 = 44.0;
const INDENT: f64 = 14.0;
/// A bar that would be too thin to see.
const BAR_WIDTH_MIN: f64 = 1.5;
const COLOURS: [(&str, &str); 5] = [
    ("waybill-gateway", "#3567b7"),
    ("waybill-inventory", "#2f8f5b"),
    ("waybill-payment", "#b7622f"),
    ("waybill-payment-sandbox", "#8a6d1f"),
    ("waybill-fulfilment", "#7a4fa3"),
];

#[tokio::main]
async fn main() {
    let collector = Collector::start().await;
    let environment = collector.environment();
    let waybill =
        Deployment::start_with(Options { payment_sandbox: true, environment, ..Options::default() }).await;
    let mut client = waybill.client().await;
    // The first order finds connections and caches cold.
    for customer in ["first", "ada"] {
        let request = order_of(customer, "", vec![item("widget", 2)]);
        let order = client.create_order(request).await.expect("order accepted").into_inner().order;
        let order_id = order.expect("order").order_id;
        waybill.finished(&order_id).await;
        let is_last = |span: &Span| {
            span.name == "process ORDER.*.*.*.paid.*" && span.attribute("waybill.order.id") == order_id
        };
        let last = collector.span("the last span", is_last).await;
        // Each process sends its own, in any order.
        let is_sandboxs =
            |span: &Span| span.service == "waybill-payment-sandbox" && span.trace_id == last.trace_id;
        collector.span("the payment sandbox's span", is_sandboxs).await;
        if customer == "ada" {
            println!("{}", draw(&collector.spans(), &last.trace_id));
        }
    }
}

fn draw(spans: &[Span], trace_id: &str) -> String {
    let spans: Vec<&Span> = spans.iter().filter(|span| span.trace_id == trace_id).collect();
    let root = spans.iter().find(|span| span.parent.is_empty()).expect("the call that began it");
    let mut rows = Vec::new();
    below(root, 0, &spans, &mut rows);
    let begin = root.times.0;
    let end = spans.iter().map(|span| span.times.1).max().expect("spans");
    let x_of = |nanos: u64| NAMES_WIDTH + BARS_WIDTH * (nanos - begin) as f64 / (end - begin) as f64;
    let height = HEAD_HEIGHT + ROW_HEIGHT * (rows.len() as f64 + 0.5);
    let width = NAMES_WIDTH + BARS_WIDTH + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<title>The trace of one order, from the call to its last status</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let mut add = |line: String| writeln!(svg, "{line}").expect("memory");
    for (n, (service, colour)) in COLOURS.iter().enumerate() {
        let x = 10.0 + 165.0 * n as f64;
        add(format!("<rect x=\"{x}\" y=\"9\" width=\"10\" height=\"10\" fill=\"{colour}\"/>"));
        add(format!("<text x=\"{}\" y=\"18\" fill=\"#222\">{service}</text>", x + 14.0));
    }
    let total_ms = (end - begin) as f64 / 1e6;
    let step_ms = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0].into_iter().find(|step| total_ms / step <= 8.0);
    let step_ms = step_ms.expect("an order does not take that long");
    for tick in 0..=(total_ms / step_ms) as u64 {
        let ms = tick as f64 * step_ms;
        let x = x_of(begin + (ms * 1e6) as u64);
        add(format!("<line x1=\"{x:.1}\" y1=\"38\" x2=\"{x:.1}\" y2=\"{height}\" stroke=\"#e3e3e3\"/>"));
        add(format!("<text x=\"{x:.1}\" y=\"34\" fill=\"#777\" text-anchor=\"middle\">{ms} ms</text>"));
    }
    for (row, (span, depth)) in rows.iter().enumerate() {
        let y = HEAD_HEIGHT + ROW_HEIGHT * row as f64;
        let colour =
            COLOURS.iter().find(|(service, _)| *service == span.service).map_or("#999", |found| found.1);
        let (from, to) = (x_of(span.times.0), x_of(span.times.1));
        let bar = (to - from).max(BAR_WIDTH_MIN);
        let name = span.name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let name_x = 10.0 + INDENT * *depth as f64;
        add(format!("<text x=\"{name_x}\" y=\"{}\" fill=\"#222\">{name}</text>", y + 13.0));
        add(format!(
            "<rect x=\"{from:.1}\" y=\"{}\" width=\"{bar:.1}\" height=\"12\" rx=\"2\" fill=\"{colour}\"/>",
            y + 3.0
        ));
        let took_ms = (span.times.1 - span.times.0) as f64 / 1e6;
        add(format!(
            "<text x=\"{:.1}\" y=\"{}\" fill=\"#555\">{took_ms:.2} ms</text>",
            from + bar + 4.0,
            y + 13.0
        ));
    }
    svg + "</svg>"
}

/// A span and what is below it, in the order in which it began.
fn below<'a>(span: &'a Span, depth: usize, spans: &[&'a Span], rows: &mut Vec<(&'a Span, usize)>) {
    rows.push((span, depth));
    let mut children: Vec<_> = spans.iter().filter(|child| child.parent == span.span_id).collect();
    children.sort_by_key(|child| child.times);
    for child in children {
        below(child, depth + 1, spans, rows);
    }
}
