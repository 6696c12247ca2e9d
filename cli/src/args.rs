//! The command line. Each setting that one keeps for longer is also an environment variable.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args as ClapArgs, Parser, Subcommand};
use processor::inventory::Stock;
use program::config::parse_addr;
use proto::orders::v1::OrderStatus;
use routes::RoutesConfig;
use tonic::transport::Uri;

use crate::address::parse_address;
use crate::credential::Credential;
use crate::dead_letter::DeadLetterArgs;
use crate::health::HealthArgs;
use crate::provision::ProvisionArgs;
use crate::render;
use crate::stock::StockArgs;
use crate::tls::Tls;
use crate::usage::{CONNECTION, parse_timeout};

/// Order processing that loses nothing: run Waybill on this machine, place orders and watch them.
#[derive(Debug, Parser)]
#[command(name = "waybill", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run broker, gateway, processors and a payment sandbox on this machine, and place sample orders.
    ///
    /// The programs take other settings from the environment. This command sets NATS_URL, LOG_FORMAT, DRAIN_TIMEOUT
    /// and PAYMENT_SANDBOX_DATA. It unsets NATS_CREDS, NATS_TLS_CA, NATS_TLS_CERT, NATS_TLS_KEY, ORDERS_REPLICAS,
    /// TLS_CERT, TLS_KEY, TLS_CLIENT_CA, TLS_CLIENT_OPTIONAL and TLS_CLIENTS_FILE. The programs always log that they
    /// have started. --observe also sets OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL and
    /// OTEL_METRICS_EXPORTER, and as defaults OTEL_TRACES_SAMPLER and OTEL_BSP_SCHEDULE_DELAY. It unsets
    /// OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_TRACES_*. The
    /// OPS_ADDR of each processor is a free port of 127.0.0.1.
    Dev(DevArgs),
    /// Place, read, list, watch and cancel orders.
    Order(OrderArgs),
    /// List, show, redrive and discard dead letters: for operators.
    DeadLetter(DeadLetterArgs),
    /// List, add, remove and set stock, and release reservations of lost orders: for operators.
    Stock(StockArgs),
    /// Create the streams, the bucket and the consumers at the broker, so that the programs need no permission to create them.
    Provision(Box<ProvisionArgs>),
    /// Check a gateway, a processor or the payment sandbox. The exit code is 0 only if it is healthy.
    Health(HealthArgs),
    /// Become a program that dies with its parent.
    #[command(hide = true)]
    Tether(TetherArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DevArgs {
    /// Number of sample orders.
    #[arg(long, env = "WAYBILL_ORDERS", default_value = "10", value_name = "N",
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) orders: u32,
    /// Stop once the sample orders have finished. The exit code is 0 only if all of them have.
    #[arg(long)]
    pub(crate) exit: bool,
    /// Deadline of the sample orders, 1ms-1d.
    #[arg(long, env = "WAYBILL_TIMEOUT", default_value = "60s", value_parser = parse_timeout)]
    pub(crate) timeout: humantime::Duration,
    /// Folder of the broker's and payment sandbox's data and of all logs, kept between runs.
    #[arg(long, env = "WAYBILL_DATA_DIR", default_value = ".waybill")]
    pub(crate) data_dir: PathBuf,
    /// The nats-server to run, 2.12 or newer: a path, or a name on PATH.
    #[arg(long, env = "NATS_SERVER", default_value = "nats-server", value_name = "PATH")]
    pub(crate) nats_server: PathBuf,
    /// The broker's port on 127.0.0.1. 0 takes a free one.
    #[arg(long, env = "WAYBILL_NATS_PORT", default_value = "4222", value_name = "PORT")]
    pub(crate) nats_port: u16,
    /// Address of the gateway's gRPC port. Port 0 takes a free one.
    #[arg(long, env = "GRPC_ADDR", default_value = "127.0.0.1:50051", value_parser = parse_addr)]
    pub(crate) grpc_addr: SocketAddr,
    /// Address of the gateway's HTTP port. Port 0 takes a free one.
    #[arg(long, env = "OPS_ADDR", default_value = "127.0.0.1:9464", value_parser = parse_addr)]
    pub(crate) ops_addr: SocketAddr,
    /// Address of the gateway for operators. Port 0 takes a free one.
    #[arg(long, env = "OPERATIONS_ADDR", default_value = "127.0.0.1:50053", value_parser = parse_addr)]
    pub(crate) operations_addr: SocketAddr,
    /// Address of the payment sandbox. Port 0 takes a free one.
    #[arg(long, env = "PAYMENT_SANDBOX_ADDR", default_value = "127.0.0.1:50052", value_parser = parse_addr)]
    pub(crate) payment_sandbox_addr: SocketAddr,
    /// The payment service to use instead of a payment sandbox.
    #[arg(long, env = "PAYMENT_URL", value_name = "URL")]
    pub(crate) payment_url: Option<String>,
    /// Run Jaeger and Prometheus too, for all programs.
    #[arg(long)]
    pub(crate) observe: bool,
    /// The Jaeger 2 to run with --observe: a path, or a name on PATH or in .tools/bin.
    #[arg(long, env = "JAEGER", default_value = "jaeger", value_name = "PATH")]
    pub(crate) jaeger: PathBuf,
    /// The Prometheus to run with --observe: a path, or a name on PATH or in .tools/bin.
    #[arg(long, env = "PROMETHEUS", default_value = "prometheus", value_name = "PATH")]
    pub(crate) prometheus: PathBuf,
    /// The port of Jaeger's pages and API on 127.0.0.1. 0 takes a free one.
    #[arg(long, env = "WAYBILL_JAEGER_PORT", default_value = "16686", value_name = "PORT")]
    pub(crate) jaeger_port: u16,
    /// The port of Prometheus on 127.0.0.1. 0 takes a free one.
    #[arg(long, env = "WAYBILL_PROMETHEUS_PORT", default_value = "9090", value_name = "PORT")]
    pub(crate) prometheus_port: u16,
    /// Initial stock. Existing SKUs keep their count. Unset: that of the sample orders.
    #[arg(long, env = "STOCK", value_name = "SKU=COUNT,...", value_parser = parse_stock)]
    pub(crate) stock: Option<String>,
    #[command(flatten)]
    pub(crate) routes: RoutesConfig,
    /// A step of the route file and its steps.v1.StepService, such as fraud=http://127.0.0.1:7001; repeatable.
    #[arg(long = "step", value_name = "NAME=URL", value_parser = parse_step)]
    pub(crate) steps: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) credential: Credential,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OrderArgs {
    /// The gateway's address.
    #[arg(long, env = "WAYBILL_GATEWAY", default_value = "http://127.0.0.1:50051", global = true,
          value_name = "URL", value_parser = parse_address, help_heading = CONNECTION)]
    pub(crate) gateway: Uri,
    #[command(flatten)]
    pub(crate) tls: Tls,
    #[command(flatten)]
    pub(crate) credential: Credential,
    #[command(subcommand)]
    pub(crate) command: OrderCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OrderCommand {
    /// Place an order.
    Place(Box<PlaceArgs>),
    /// Read an order.
    Get {
        /// The order's id, as `place` shows it.
        order_id: String,
    },
    /// Watch an order until it is finished.
    Watch {
        /// The order's id, as `place` shows it.
        order_id: String,
        /// Show only events after this revision.
        #[arg(long, default_value = "0", value_name = "REVISION")]
        after_revision: u64,
    },
    /// Cancel an order that has not ended; its steps compensate what they did.
    Cancel {
        /// The order's id, as `place` shows it.
        order_id: String,
        /// The reason, for the record.
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        message: String,
    },
    /// List a customer's orders, newest first: creation time, id and status.
    List(ListArgs),
    /// List an order's events, oldest first.
    Events {
        /// The order's id, as `place` shows it.
        order_id: String,
    },
    /// Show an order's route, and its history as a timeline: how long each event took, and the trace that it belongs to.
    Trace {
        /// The order's id, as `place` shows it.
        order_id: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PlaceArgs {
    /// A file with the order instead of flags: an orders.v1.CreateOrderRequest in JSON. `-` reads stdin.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["OrderFields", "AddressFields"])]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fields: OrderFields,
    /// Watch the order until it is finished.
    #[arg(long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) address: AddressFields,
}

/// The fields of a CreateOrderRequest except the address. The gateway validates their values.
#[derive(Debug, ClapArgs)]
#[group(id = "OrderFields")]
pub(crate) struct OrderFields {
    /// The customer's id.
    #[arg(long, value_name = "ID", required_unless_present = "file")]
    pub(crate) customer: Option<String>,
    /// An item: SKU, quantity, the price of one unit in minor units (cents), and perhaps a name. Several are allowed. For metadata
    /// of items use --file.
    #[arg(long = "item", required_unless_present = "file", value_name = "SKU:QUANTITY:PRICE[:NAME]",
          value_parser = parse_item)]
    pub(crate) items: Vec<Item>,
    /// The currency of all prices.
    #[arg(long, default_value = "EUR")]
    pub(crate) currency: String,
    /// Identifies this request: a retry with the same id and content returns the same order.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
    pub(crate) request_id: String,
    /// The route that the order takes. Unset: the gateway's default.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    pub(crate) route: String,
    /// Your own data about the order. Several are allowed.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_entry)]
    pub(crate) metadata: Vec<(String, String)>,
    /// What the order is paid with: a token of the payment service. Other users of this machine can see a flag; --file hides it.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TOKEN")]
    pub(crate) payment_method: String,
    /// A text for people, such as a delivery instruction.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(crate) note: String,
    /// Your own order number.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(crate) reference: String,
}

/// The shipping address, if any of it is given.
#[derive(Debug, ClapArgs)]
#[group(id = "AddressFields")]
#[command(next_help_heading = "Shipping address")]
pub(crate) struct AddressFields {
    /// A recipient. Several are allowed.
    #[arg(long = "recipient", value_name = "TEXT")]
    pub(crate) recipients: Vec<String>,
    /// The organization.
    #[arg(long, value_name = "TEXT")]
    pub(crate) organization: Option<String>,
    /// A line of the address: street, building. Several are allowed.
    #[arg(long = "address-line", value_name = "TEXT")]
    pub(crate) address_lines: Vec<String>,
    /// Part of the city.
    #[arg(long, value_name = "TEXT")]
    pub(crate) sublocality: Option<String>,
    /// City or town.
    #[arg(long, value_name = "TEXT")]
    pub(crate) locality: Option<String>,
    /// State, prefecture or the like.
    #[arg(long, value_name = "TEXT")]
    pub(crate) administrative_area: Option<String>,
    /// Postal code.
    #[arg(long, value_name = "CODE")]
    pub(crate) postal_code: Option<String>,
    /// Additional code for sorting, such as CEDEX 7.
    #[arg(long, value_name = "CODE")]
    pub(crate) sorting_code: Option<String>,
    /// Country or region as a CLDR code, such as CH. Every address needs it.
    #[arg(long, value_name = "CODE")]
    pub(crate) region_code: Option<String>,
    /// Language of the address as a BCP 47 tag, such as ja-Latn.
    #[arg(long, value_name = "TAG")]
    pub(crate) language_code: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ListArgs {
    /// The customer's id.
    pub(crate) customer_id: String,
    /// Only orders with this status. Several are allowed.
    #[arg(long = "status", value_name = "STATUS", ignore_case = true, value_parser = status_parser())]
    pub(crate) statuses: Vec<OrderStatus>,
    /// Maximum number of orders.
    #[arg(long, default_value = "50", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
}

/// One `--item`. Whether the values make sense is for the gateway to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) sku: String,
    pub(crate) quantity: i32,
    pub(crate) price_minor: i64,
    pub(crate) name: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TetherArgs {
    /// The process to die with.
    pub(crate) parent_pid: i32,
    /// What to become: a program and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) program: Vec<OsString>,
}

fn parse_step(text: &str) -> Result<(String, String), String> {
    let (name, url) =
        text.split_once('=').ok_or("write it as NAME=URL, such as fraud=http://127.0.0.1:7001")?;
    Ok((name.to_owned(), url.to_owned()))
}

/// Stock as inventory reads it; none if it is empty.
fn parse_stock(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        text.parse::<Stock>()?;
    }
    Ok(text.to_owned())
}

fn parse_item(text: &str) -> Result<Item, String> {
    // A name may contain colons.
    let (sku, quantity, price, name) = match text.splitn(4, ':').collect::<Vec<_>>()[..] {
        [sku, quantity, price] => (sku, quantity, price, ""),
        [sku, quantity, price, name] => (sku, quantity, price, name),
        _ => return Err("write it as SKU:QUANTITY:PRICE, such as widget:2:1250".to_owned()),
    };
    Ok(Item {
        sku: sku.to_owned(),
        quantity: quantity.parse().map_err(|_| format!("quantity '{quantity}' is not a whole number"))?,
        price_minor: price.parse().map_err(|_| {
            format!("price '{price}' is not a whole number of minor units; write 3.50 as 350")
        })?,
        name: name.to_owned(),
    })
}

fn parse_entry(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE, such as channel=web")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Takes a status as [`render::status_name`] writes it, in any case.
fn status_parser() -> impl TypedValueParser<Value = OrderStatus> {
    let statuses = || (1..).map_while(|number| OrderStatus::try_from(number).ok());
    let named = move |name: String| {
        statuses()
            .find(|&status| render::status_name(status).eq_ignore_ascii_case(&name))
            .ok_or("unknown status")
    };
    PossibleValuesParser::new(statuses().map(render::status_name)).try_map(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn an_item_is_sku_quantity_and_price() {
        let item = |name: &str| Item {
            sku: "widget".to_owned(),
            quantity: 2,
            price_minor: 1250,
            name: name.to_owned(),
        };
        assert_eq!(parse_item("widget:2:1250").unwrap(), item(""));
        assert_eq!(parse_item("widget:2:1250:Widget: blue").unwrap(), item("Widget: blue"));
    }

    #[test]
    fn an_item_in_another_form_says_which_part_is_wrong() {
        assert!(parse_item("widget").unwrap_err().contains("SKU:QUANTITY:PRICE"));
        assert!(parse_item("widget:2").unwrap_err().contains("SKU:QUANTITY:PRICE"));
        assert!(parse_entry("channel").unwrap_err().contains("KEY=VALUE"));
        assert!(parse_item("widget:two:1250").unwrap_err().contains("quantity 'two'"));
        assert!(parse_item("widget:2:12.50").unwrap_err().contains("price '12.50'"));
    }

    #[test]
    fn a_status_is_any_that_an_order_can_have() {
        let statuses_of = |status| {
            let args = Args::try_parse_from(["waybill", "order", "list", "ada", "--status", status]).ok()?;
            let Command::Order(OrderArgs { command: OrderCommand::List(list), .. }) = args.command else {
                panic!("not the list command");
            };
            Some(list.statuses)
        };
        assert_eq!(statuses_of("ACCEPTED"), Some(vec![OrderStatus::Accepted]));
        assert_eq!(statuses_of("failed"), Some(vec![OrderStatus::Failed]));
        assert_eq!(statuses_of("UNSPECIFIED"), None);
        assert_eq!(statuses_of("LOST"), None);
    }

    #[test]
    fn the_program_behind_a_tether_keeps_its_flags() {
        let args = Args::try_parse_from(["waybill", "tether", "1", "--", "nats-server", "--port", "-1"]);
        let Command::Tether(tether) = args.unwrap().command else {
            panic!("not the tether command");
        };
        assert_eq!(tether.program, ["nats-server", "--port", "-1"]);
    }
}
