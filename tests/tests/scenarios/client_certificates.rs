//! Clients that show a certificate: who gets in, and as whom.

use std::path::Path;

use harness::certificates::{Authority, Certified, replace};
use harness::{Deployment, Options, PATIENCE, Shows, binary, eventually, health, item, order_of};
use proto::orders::v1::WatchOrdersRequest;
use proto::orders::v1::order_service_client::OrderServiceClient;
use tokio::process::Command;
use tokio::time::timeout;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

const SHOP: &str = "spiffe://example.org/shop-1";
const CLIENTS: &str = "\
    spiffe://example.org/shop-1 shop-1 orders:write,orders:read\n\
    reader.example.org shop-1 orders:read\n";

struct Setup {
    waybill: Deployment,
    authority: Authority,
    dir: tempfile::TempDir,
}

async fn setup(more: &[(&'static str, &str)]) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let mut gateway = authority.gateway().settings(dir.path());
    let file = |name: &str, text: &str| path(&replace(dir.path(), name, text));
    gateway.push(("TLS_CLIENT_CA", file("ca.crt", &authority.pem())));
    gateway.push(("TLS_CLIENTS_FILE", file("clients", CLIENTS)));
    gateway.extend(more.iter().map(|&(name, value)| (name, value.to_owned())));
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    Setup { waybill, authority, dir }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

impl Setup {
    fn channel(&self, shown: Option<&Certified>) -> Channel {
        let tls = self.authority.trusting();
        let with = |tls: ClientTlsConfig, shown: &Certified| tls.identity(shown.identity());
        self.waybill.gateway.secure_channel(shown.map_or(tls.clone(), |shown| with(tls, shown)))
    }

    fn client(&self, shown: Option<&Certified>) -> Client {
        Shows::default().on(self.channel(shown))
    }

    async fn health(&self, shown: Option<&Certified>) -> Option<ServingStatus> {
        health(self.channel(shown), "").await
    }
}

type Client = OrderServiceClient<InterceptedService<Channel, Shows>>;

async fn place(mut client: Client) -> Result<(), Status> {
    client.create_order(order_of("ada", "r-1", vec![item("widget", 1)])).await.map(drop)
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

#[tokio::test]
async fn only_who_has_a_certificate_of_the_authority_gets_in() {
    let setup = setup(&[]).await;
    let right = setup.authority.client(SHOP);
    let foreign = Authority::new().client(SHOP);
    assert_eq!(setup.health(Some(&right)).await, Some(ServingStatus::Serving));
    place(setup.client(Some(&right))).await.unwrap();
    for shown in [None, Some(&foreign)] {
        assert_eq!(setup.health(shown).await, None, "{shown:?}");
        let refused = place(setup.client(shown)).await.unwrap_err();
        assert_eq!(reason(&refused), "", "no call came about: {refused:?}");
    }
}

#[tokio::test]
async fn the_name_in_a_certificate_gives_tenant_and_roles() {
    let setup = setup(&[]).await;
    let client = |name: &str| setup.client(Some(&setup.authority.client(name)));
    place(client(SHOP)).await.unwrap();
    let unknown = place(client("spiffe://example.org/shop-2")).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::Unauthenticated, "CREDENTIAL_INVALID"));
    let reader = place(client("reader.example.org")).await.unwrap_err();
    assert_eq!((reader.code(), reason(&reader).as_str()), (Code::PermissionDenied, "ROLE_MISSING"));

    // The same tenant: both see the order.
    let watch = WatchOrdersRequest { customer_id: "ada".to_owned(), after_revision: 0 };
    let mut watch = client("reader.example.org").watch_orders(watch).await.unwrap().into_inner();
    assert!(timeout(PATIENCE, watch.message()).await.expect("an event").unwrap().is_some());
}

#[tokio::test]
async fn a_client_that_is_taken_off_the_list_loses_its_calls_and_streams() {
    let setup = setup(&[]).await;
    let right = setup.authority.client(SHOP);
    let watch = WatchOrdersRequest { customer_id: "ada".to_owned(), after_revision: 0 };
    let mut client = setup.client(Some(&right));
    let mut watch = client.watch_orders(watch).await.unwrap().into_inner();
    replace(setup.dir.path(), "clients", "");
    let end = timeout(PATIENCE, watch.message()).await.expect("an end").unwrap_err();
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unauthenticated, "CREDENTIAL_INVALID"));
    assert_eq!(place(client).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn another_authority_takes_over_without_a_restart() {
    let setup = setup(&[]).await;
    let right = setup.authority.client(SHOP);
    place(setup.client(Some(&right))).await.unwrap();
    let new = Authority::new();
    let of_new = new.client(SHOP);
    replace(setup.dir.path(), "ca.crt", &new.pem());
    eventually("the new authority", async || place(setup.client(Some(&of_new))).await.ok()).await;
    place(setup.client(Some(&right))).await.unwrap_err();
}

#[tokio::test]
async fn where_certificates_are_optional_other_credentials_do() {
    // The SHA-256 of "key".
    let hash = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";
    let keys = tempfile::tempdir().unwrap();
    let keys = replace(keys.path(), "keys", &format!("{hash} shop-2 orders:read\n"));
    let setup = setup(&[("TLS_CLIENT_OPTIONAL", "true"), ("API_KEYS_FILE", &path(&keys))]).await;
    assert_eq!(setup.health(None).await, Some(ServingStatus::Serving));
    let missing = place(setup.client(None)).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::Unauthenticated, "CREDENTIAL_MISSING"));
    assert!(missing.message().contains("x-api-key") && missing.message().contains("certificate"));
    place(setup.client(Some(&setup.authority.client(SHOP)))).await.unwrap();
    // A certificate of somebody else is refused all the same.
    assert_eq!(setup.health(Some(&Authority::new().client(SHOP))).await, None);

    // A key says more than the connection that it comes by.
    let channel = setup.channel(Some(&setup.authority.client(SHOP)));
    let reader = place(Shows::key("key").on(channel)).await.unwrap_err();
    assert_eq!(reader.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn people_get_in_with_the_command_line() {
    let setup = setup(&[]).await;
    let shown = setup.authority.client(SHOP);
    let file = |name: &str, text: &str| path(&replace(setup.dir.path(), name, text));
    let (cert, key) = (file("client.crt", &shown.cert), file("client.key", &shown.key));
    let ca = file("authority.crt", &setup.authority.pem());
    let gateway = format!("https://{}", setup.waybill.gateway.grpc_addr);
    let place = ["place", "--customer", "ada", "--item", "widget:1:350"];
    let waybill = |more: &[&str]| {
        let mut command = Command::new(binary("waybill"));
        command.env_clear().args(["order", "--gateway", &gateway]).args(place).args(more).kill_on_drop(true);
        timeout(PATIENCE, async move { command.output().await.unwrap().status.success() })
    };
    assert_eq!(waybill(&["--ca", &ca, "--cert", &cert, "--key", &key]).await, Ok(true));
    assert_eq!(waybill(&["--ca", &ca]).await, Ok(false), "without a certificate");
    assert_eq!(
        waybill(&["--cert", &cert, "--key", &key]).await,
        Ok(false),
        "an authority unknown to the system"
    );
}
