//! Broker, gateway and processors: started, stopped, started again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;

use crate::broker::{Broker, Users};
use crate::eventually;
use crate::http::http_get;
use crate::namespaces::{Host, Network, command_on};
use crate::payments::{PAYMENTS, PaymentSandbox};
use crate::process::{Process, binary};
use crate::test_steps::{TEST_STEP, TEST_STEP_PROGRAM, TEST_STEPS};
use crate::wire::Wire;

/// The steps that are built in.
const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];
/// The route file of a deployment, in its folder.
const ROUTES: &str = "routes.yaml";
const FREE_PORT: &str = "127.0.0.1:0";

/// What a deployment begins with.
#[derive(Clone, Debug)]
pub struct Options {
    /// SKUs and their units.
    pub stock: Vec<(&'static str, u64)>,
    /// Where the programs are, if not those of this workspace are meant.
    pub programs: Option<PathBuf>,
    /// The route file of the gateway, if it has one.
    pub routes: Option<String>,
    /// The steps that run.
    pub steps: Vec<&'static str>,
    /// Those of them that call a service, and where it is.
    pub services: Vec<(&'static str, String)>,
    /// Processes of each step.
    pub replicas: usize,
    /// Payments by a payment sandbox of its own; else by the one inside of each payment process.
    pub payment_sandbox: bool,
    /// The file that the payment sandbox begins with a copy of.
    pub payments: Option<PathBuf>,
    /// Servers of the broker. More than one are a [`Cluster`](crate::Cluster), which the test starts.
    pub servers: usize,
    /// Where everything runs, if not on the test's own network: servers and programs have hosts of their own there.
    pub network: Option<Arc<Network>>,
    /// The broker's authentication.
    pub password: Option<&'static str>,
    /// Whether each program is a user of its own at the broker, with the rights of deploy/nats and no others. With
    /// LEAST_PRIVILEGE=1 in the environment they always are.
    pub least_privilege: bool,
    /// Whether `waybill provision` makes what they need then.
    pub provisioned: bool,
    /// The beginning of subjects that none of them may publish on then.
    pub withheld: Option<&'static str>,
    /// The program whose wire can be tripped: a step, or "gateway".
    pub wired: Option<&'static str>,
    /// Further environment of every program of Waybill.
    pub environment: Vec<(&'static str, String)>,
    /// Further environment of the gateway.
    pub gateway: Vec<(&'static str, String)>,
    /// Further environment of the processors.
    pub processors: Vec<(&'static str, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stock: vec![("widget", 1_000_000), ("gadget", 1_000_000)],
            programs: None,
            routes: None,
            steps: STEPS.to_vec(),
            services: Vec::new(),
            replicas: 1,
            payment_sandbox: false,
            payments: None,
            servers: 1,
            network: None,
            password: None,
            least_privilege: std::env::var_os("LEAST_PRIVILEGE").is_some_and(|set| set == "1"),
            provisioned: true,
            withheld: None,
            wired: None,
            environment: Vec::new(),
            gateway: Vec::new(),
            // Otherwise redelivery after a kill takes the default of 10 s.
            processors: vec![("ACK_WAIT", "2s".to_owned())],
        }
    }
}

impl Options {
    /// The broker's users, if each program is one.
    fn users(&self, dir: &TempDir) -> Option<Users> {
        let mut environment = [&self.environment[..], &self.gateway, &self.processors].concat();
        environment.extend(self.routes_file(dir));
        let (provisioned, withheld) = (self.provisioned, self.withheld);
        self.least_privilege.then_some(Users { provisioned, withheld, environment })
    }

    fn broker(&self, dir: &TempDir) -> Broker {
        let broker = Broker::reserve(dir.path()).with_peers(self.servers);
        let broker = broker.on_network(self.network.as_deref());
        broker.with_password(self.password).with_users(self.users(dir))
    }

    /// The variable with the route file, if there is one.
    fn routes_file(&self, dir: &TempDir) -> Option<(&'static str, String)> {
        let file = dir.path().join(ROUTES);
        self.routes.as_ref().map(|_| ("ROUTES_FILE", file.to_str().expect("UTF-8").to_owned()))
    }

    /// Where programs run.
    fn host(&self) -> Option<&Host> {
        self.network.as_deref().map(Network::programs)
    }

    /// Where the service of a step is.
    fn service(&self, step: &str) -> Option<&str> {
        self.services.iter().find(|(name, _)| *name == step).map(|(_, url)| url.as_str())
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs.as_ref().map_or_else(|| binary(name), |folder| folder.join(name))
    }
}

/// A gateway process and where it listens.
#[derive(Debug)]
pub struct Gateway {
    /// The process.
    pub process: Process,
    /// Its gRPC address.
    pub grpc_addr: String,
    /// Its HTTP address.
    pub ops_addr: String,
    /// Its gRPC address for operators, which only its own host reaches.
    pub operations_addr: String,
}

/// A whole Waybill. Fields are dropped, and so stopped, in this order.
#[derive(Debug)]
pub struct Deployment {
    /// The edge.
    pub gateway: Gateway,
    /// The steps' processes by step.
    pub processors: HashMap<&'static str, Vec<Process>>,
    /// The payment service, if it is a process of its own.
    pub payment_sandbox: Option<PaymentSandbox>,
    /// The connection of one program, if it is intercepted.
    pub wire: Option<Wire>,
    /// The broker.
    pub broker: Broker,
    options: Options,
    dir: TempDir,
}

impl Deployment {
    /// Starts everything with the default options.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts everything and waits until the gateway is ready.
    pub async fn start_with(options: Options) -> Self {
        let dir = folder();
        write_routes(&dir, &options);
        let mut broker = options.broker(&dir);
        broker.start().await;
        let mut deployment = Self::start_around(broker, options, dir).await;
        deployment.ready().await;
        // Without a right, one may never be.
        if deployment.options.least_privilege && deployment.options.withheld.is_none() {
            deployment.steps_are_open().await;
        }
        deployment
    }

    /// Starts gateway and processors; the broker has a name and does not run.
    pub async fn start_without_broker(options: Options) -> Self {
        let dir = folder();
        Self::start_around(options.broker(&dir), options, dir).await
    }

    async fn start_around(broker: Broker, options: Options, dir: TempDir) -> Self {
        write_routes(&dir, &options);
        let payment_sandbox = if options.payment_sandbox {
            let program = options.program("waybill-payment-sandbox");
            if let Some(payments) = &options.payments {
                std::fs::copy(payments, dir.path().join(PAYMENTS)).expect("payments");
            }
            let address = options.network.as_deref().map(|network| format!("{}:0", network.test_address()));
            let address = address.as_deref().unwrap_or(FREE_PORT);
            Some(PaymentSandbox::start(program, dir.path(), address, &options.environment).await)
        } else {
            None
        };
        let wire = match options.wired {
            Some(_) => {
                let own = options
                    .service(options.wired.unwrap_or_default())
                    .map(|url| url.trim_start_matches("http://"));
                let payments = payment_sandbox.as_ref().map(|sandbox| sandbox.grpc_addr.as_str());
                let service = own.or(payments).map(str::parse).transpose().expect("address");
                Some(Wire::lay(broker.address(), service).await)
            }
            None => None,
        };
        let broker_url = broker_url("gateway", &options, wire.as_ref(), &broker);
        let at = any_port(options.host());
        let gateway = start_gateway(&dir, &broker_url, &options, options.host(), "gateway", &at).await;
        let mut deployment =
            Self { gateway, processors: HashMap::new(), payment_sandbox, wire, broker, options, dir };
        for step in deployment.options.steps.clone() {
            for _ in 0..deployment.options.replicas {
                deployment.start_processor(step);
            }
        }
        deployment
    }

    /// From now on, programs that are started are those of this folder, or else of this workspace.
    pub fn use_programs(&mut self, programs: Option<PathBuf>) {
        self.options.programs = programs;
        let program = self.options.program("waybill-payment-sandbox");
        if let Some(sandbox) = &mut self.payment_sandbox {
            sandbox.use_program(program);
        }
    }

    /// From now on, gateways that are started read this route file.
    pub fn define_routes(&mut self, routes: &str) {
        self.options.routes = Some(routes.to_owned());
        write_routes(&self.dir, &self.options);
    }

    /// Starts one more process of `step`.
    pub fn start_processor(&mut self, step: &'static str) {
        self.start_processor_by(step, self.broker_url(step));
    }

    /// Starts one more process of `step`, with further environment.
    pub fn start_processor_with(&mut self, step: &'static str, environment: &[(&'static str, &str)]) {
        let usual = self.options.processors.clone();
        let further = environment.iter().map(|(name, value)| (*name, (*value).to_owned()));
        self.options.processors.extend(further);
        self.start_processor(step);
        self.options.processors = usual;
    }

    /// Starts one more process of `step`, for which the broker is at an address of its own.
    pub fn start_processor_at(&mut self, step: &'static str, broker: SocketAddr) {
        self.start_processor_by(step, self.broker.url_at(broker, step));
    }

    fn start_processor_by(&mut self, step: &'static str, nats_url: String) {
        let place = self.processors.get(step).map_or(0, Vec::len);
        let process = self.processor_process(step, nats_url, &format!("{step}-{place}"));
        self.processors.entry(step).or_default().push(process);
    }

    /// One more process of `step`, which is its caller's.
    pub fn another_processor(&self, step: &'static str) -> Process {
        self.processor_process(step, self.broker_url(step), &format!("{step}-another"))
    }

    fn processor_process(&self, step: &'static str, nats_url: String, name: &str) -> Process {
        let wire = self.wire.as_ref().filter(|_| self.options.wired == Some(step));
        let host = self.options.host();
        let service = self.options.service(step);
        let program = match service {
            Some(_) => "waybill-step",
            None if TEST_STEPS.contains(&step) => TEST_STEP_PROGRAM,
            None => &format!("waybill-{step}"),
        };
        let mut command = command_on(host, &self.options.program(program));
        command
            .env_clear()
            .env(TEST_STEP, step)
            .env("NATS_URL", nats_url)
            .env("OPS_ADDR", any_port(host))
            .env("LOG_FORMAT", "json")
            .envs(self.options.environment.iter().cloned())
            .envs(self.options.processors.iter().cloned());
        if let Some(url) = service {
            let url = wire.and_then(Wire::service_url).unwrap_or_else(|| url.to_owned());
            command.env("STEP_NAME", step).env("STEP_URL", url);
        }
        if let Some(sandbox) = &self.payment_sandbox {
            command.env("PAYMENT_URL", wire.and_then(Wire::service_url).unwrap_or_else(|| sandbox.url()));
        }
        if step == "inventory" {
            let stock: Vec<_> =
                self.options.stock.iter().map(|(sku, units)| format!("{sku}={units}")).collect();
            command.env("STOCK", stock.join(","));
        }
        Process::start(name, command, self.dir.path())
    }

    /// Starts a process of `step` in the place of another, which is killed if it still runs.
    pub fn replace_processor(&mut self, step: &'static str, place: usize) {
        self.processors.get_mut(step).expect("step")[place].kill();
        self.start_processor(step);
        self.processors.get_mut(step).expect("step").swap_remove(place);
    }

    /// What any process has ever logged about something.
    pub fn logged_about(&self, what: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for entry in self.dir.path().read_dir().expect("directory") {
            let path = entry.expect("entry").path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                lines.extend(text.lines().filter(|line| line.contains(what)).map(str::to_owned));
            }
        }
        // Each line starts with its timestamp, so this sorts by time.
        lines.sort();
        lines
    }

    /// Kills every process of `step`.
    pub fn kill_processors(&mut self, step: &str) {
        for process in self.processors.get_mut(step).into_iter().flatten() {
            process.kill();
        }
    }

    /// Starts a process of `step` in the place of all that there were.
    pub fn restart_processor(&mut self, step: &'static str) {
        self.kill_processors(step);
        self.processors.remove(step);
        self.start_processor(step);
    }

    /// The process of `step` that was started last.
    pub fn processor(&mut self, step: &str) -> &mut Process {
        self.processors.get_mut(step).and_then(|processes| processes.last_mut()).expect("processor")
    }

    /// The wire of a deployment that has one.
    pub fn wire(&self) -> &Wire {
        self.wire.as_ref().expect("a wire")
    }

    /// The payment sandbox of a deployment that has one.
    pub fn sandbox(&mut self) -> &mut PaymentSandbox {
        self.payment_sandbox.as_mut().expect("a payment sandbox")
    }

    /// Restarts the gateway at the same address; the old process is killed if it still runs.
    pub async fn restart_gateway(&mut self) {
        self.replace_gateway().await;
        self.ready().await;
    }

    /// The same without waiting until it is ready.
    pub async fn replace_gateway(&mut self) {
        self.gateway.process.kill();
        let grpc_addr = self.gateway.grpc_addr.clone();
        let broker_url = self.broker_url("gateway");
        let (dir, options) = (&self.dir, &self.options);
        let gateway = start_gateway(dir, &broker_url, options, options.host(), "gateway", &grpc_addr);
        self.gateway = gateway.await;
    }

    /// Starts one more gateway.
    pub async fn another_gateway(&self) -> Gateway {
        self.gateway_at("gateway-2", &any_port(self.options.host())).await
    }

    /// Starts one more gateway at an address.
    pub async fn gateway_at(&self, name: &str, grpc_addr: &str) -> Gateway {
        let (options, url) = (&self.options, self.broker.url_for("gateway"));
        let gateway = start_gateway(&self.dir, &url, options, options.host(), name, grpc_addr).await;
        gateway.ready().await;
        gateway
    }

    /// Starts one more gateway, with an environment of its own beside that of all.
    pub async fn gateway_with(&self, name: &str, environment: Vec<(&'static str, String)>) -> Gateway {
        let gateway = [self.options.gateway.clone(), environment].concat();
        let options = Options { gateway, ..self.options.clone() };
        let (host, url) = (options.host(), self.broker.url_for("gateway"));
        let gateway = start_gateway(&self.dir, &url, &options, host, name, &any_port(host)).await;
        gateway.ready().await;
        gateway
    }

    /// Starts one more gateway on a host of its own, which may not get ready, with these servers in its NATS_URL.
    pub async fn gateway_on(&self, host: &Host, name: &str, servers: &[&Broker]) -> Gateway {
        let urls: Vec<_> = servers.iter().map(|server| server.single_url_for("gateway")).collect();
        let at = any_port(Some(host));
        start_gateway(&self.dir, &urls.join(","), &self.options, Some(host), name, &at).await
    }

    /// Where it runs, if that is a network of its own.
    pub(crate) fn network(&self) -> Option<Arc<Network>> {
        self.options.network.clone()
    }

    /// Waits until each step has opened its consumer. Elsewhere that there is one says so.
    pub async fn steps_are_open(&mut self) {
        for process in self.processors.values_mut().flatten() {
            let addr = process.ops_addr().await;
            eventually("a step that is ready", async || {
                (http_get(&addr, "/readyz").await?.0 == 200).then_some(())
            })
            .await;
        }
    }

    /// Has an operator acknowledge that events are lost.
    pub async fn acknowledge_loss(&self) {
        self.broker.provision_with(&["--acknowledge-loss"]).await;
    }

    /// Waits until the gateway says that it is ready.
    pub async fn ready(&self) {
        self.gateway.ready().await;
    }

    fn broker_url(&self, program: &str) -> String {
        broker_url(program, &self.options, self.wire.as_ref(), &self.broker)
    }
}

/// Where a deployment keeps its logs and the broker its data, until it ends. With KEEP in the environment they stay.
pub(crate) fn folder() -> TempDir {
    let mut folder = tempfile::tempdir().expect("directory");
    folder.disable_cleanup(std::env::var_os("KEEP").is_some());
    folder
}

fn write_routes(dir: &TempDir, options: &Options) {
    if let Some(routes) = &options.routes {
        std::fs::write(dir.path().join(ROUTES), routes).expect("route file");
    }
}

/// An address on the host with a port that the system chooses.
fn any_port(host: Option<&Host>) -> String {
    host.map_or_else(|| FREE_PORT.to_owned(), |host| SocketAddr::new(host.address(), 0).to_string())
}

/// Where a program finds the broker.
fn broker_url(program: &str, options: &Options, wire: Option<&Wire>, broker: &Broker) -> String {
    let wire = wire.filter(|_| options.wired == Some(program));
    broker.url_at(wire.map_or_else(|| broker.address(), Wire::broker), program)
}

async fn start_gateway(
    dir: &TempDir,
    broker_url: &str,
    options: &Options,
    host: Option<&Host>,
    name: &str,
    grpc_addr: &str,
) -> Gateway {
    let mut command = command_on(host, &options.program("waybill-gateway"));
    command
        .env_clear()
        .env("NATS_URL", broker_url)
        .env("GRPC_ADDR", grpc_addr)
        .env("OPS_ADDR", any_port(host))
        .env("OPERATIONS_ADDR", FREE_PORT)
        .env("LOG_FORMAT", "json")
        // An address that other hosts can reach requires disabling authentication explicitly.
        .envs(host.map(|_| ("ALLOW_ANONYMOUS", "true")))
        .envs(options.routes_file(dir))
        .envs(options.environment.iter().cloned())
        .envs(options.gateway.iter().cloned());
    let mut process = Process::start(name, command, dir.path());
    // An earlier gateway of this test wrote to the same file: skip its addresses.
    let pid = process.pid();
    let listening = |fields: &Value| {
        let text = |field: &str| Some(fields[field].as_str()?.to_owned());
        (fields["pid"] == pid).then_some(())?;
        Some((text("grpc_addr")?, text("ops_addr")?, text("operations_addr")?))
    };
    let (grpc_addr, ops_addr, operations_addr) = process.logged("the gateway's addresses", listening).await;
    Gateway { process, grpc_addr, ops_addr, operations_addr }
}
