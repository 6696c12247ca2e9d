//! The payment sandbox as a process of its own, told what to do and asked what it has on record.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use proto::payments::v1::payment_service_client::PaymentServiceClient;
use proto::payments::v1::sandbox_control_service_client::SandboxControlServiceClient;
use proto::payments::v1::{
    Behaviour, Fault, GetLedgerRequest, GetLedgerResponse, ResetBehaviourRequest, SetBehaviourRequest,
};
use serde_json::Value;
use tonic::transport::Channel;

use crate::process::Process;

/// The file of its record.
pub(crate) const PAYMENTS: &str = "payments.jsonl";

/// The captures, refunds and declines of one order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// How often money was taken.
    pub captures: usize,
    /// Number of refunds.
    pub refunds: usize,
    /// How often it was not taken.
    pub declines: usize,
    /// The amount captured and not refunded, in minor units.
    pub balance: i64,
}

/// A running payment sandbox.
#[derive(Debug)]
pub struct PaymentSandbox {
    /// The process.
    pub process: Process,
    /// Its gRPC address.
    pub grpc_addr: String,
    program: PathBuf,
    dir: PathBuf,
    environment: Environment,
}

type Environment = Vec<(&'static str, String)>;

impl PaymentSandbox {
    /// Starts one, whose record is kept in `dir`, at an address and with further environment.
    pub async fn start(
        program: PathBuf,
        dir: &Path,
        grpc_addr: &str,
        environment: &[(&'static str, String)],
    ) -> Self {
        let mut command = Command::new(&program);
        command
            .env_clear()
            .env("PAYMENT_SANDBOX_ADDR", grpc_addr)
            .env("PAYMENT_SANDBOX_DATA", dir.join(PAYMENTS))
            .env("LOG_FORMAT", "json")
            .envs(environment.iter().cloned());
        let mut process = Process::start("payment-sandbox", command, dir);
        // An earlier sandbox of this test wrote to the same file: skip its address.
        let pid = process.pid();
        let listening = |fields: &Value| {
            (fields["pid"] == pid).then(|| fields["grpc_addr"].as_str().map(str::to_owned))?
        };
        let grpc_addr = process.logged("the payment sandbox's address", listening).await;
        Self { process, grpc_addr, program, dir: dir.to_owned(), environment: environment.to_vec() }
    }

    /// Restarts it at the same address; the old process is killed if it still runs.
    pub async fn restart(&mut self) {
        self.process.kill();
        let Self { grpc_addr, program, dir, environment, .. } = &*self;
        *self = Self::start(program.clone(), dir, grpc_addr, environment).await;
    }

    /// The program of the next start.
    pub(crate) fn use_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// What PAYMENT_URL has to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.grpc_addr)
    }

    /// A client such as the payment step is one.
    pub fn client(&self) -> PaymentServiceClient<Channel> {
        PaymentServiceClient::new(self.channel())
    }

    /// Lets so many calls for a customer go wrong; 0 for all of them, and the empty id for all customers.
    pub async fn fail(&self, customer_id: &str, fault: Fault, calls: i32) {
        let behaviour = Behaviour { fault: fault.into(), calls, latency: None };
        let request = SetBehaviourRequest { customer_id: customer_id.to_owned(), behaviour: Some(behaviour) };
        self.control().set_behaviour(request).await.expect("behaviour");
    }

    /// From now on nothing goes wrong.
    pub async fn recover(&self) {
        self.control().reset_behaviour(ResetBehaviourRequest {}).await.expect("behaviour");
    }

    /// What it has on record for an order, or for all if it is empty.
    pub async fn ledger(&self, order_id: &str) -> GetLedgerResponse {
        let request = GetLedgerRequest { order_id: order_id.to_owned() };
        self.control().get_ledger(request).await.expect("ledger").into_inner()
    }

    /// The lines of its file: every decision of any process.
    pub fn records(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join(PAYMENTS)).expect("records");
        text.lines().map(str::to_owned).collect()
    }

    /// The sums of each order's payments, from its file.
    pub fn accounts(&self) -> HashMap<String, Account> {
        let mut captured = HashMap::new();
        let mut accounts = HashMap::<_, Account>::new();
        for line in self.records() {
            let line: Value = serde_json::from_str(&line).expect("a record");
            let (kind, record) = line.as_object().and_then(|line| line.iter().next()).expect("a record");
            let key = record["idempotency_key"].as_str().expect("key").to_owned();
            // <order_id>-<creation time>
            let (order_id, _) = key.rsplit_once('-').expect("the key of an order");
            let account = accounts.entry(order_id.to_owned()).or_default();
            match kind.as_str() {
                "captured" => {
                    let minor_units = record["minor_units"].as_i64().expect("amount");
                    account.captures += 1;
                    account.balance += minor_units;
                    captured.insert(key, minor_units);
                }
                "declined" => account.declines += 1,
                // Without a capture before it, it only forbids one.
                "refunded" => {
                    if let Some(minor_units) = captured.remove(&key) {
                        account.refunds += 1;
                        account.balance -= minor_units;
                    }
                }
                other => panic!("a record of a new kind: {other}"),
            }
        }
        accounts
    }

    /// A client of its control.
    pub fn control(&self) -> SandboxControlServiceClient<Channel> {
        SandboxControlServiceClient::new(self.channel())
    }

    fn channel(&self) -> Channel {
        Channel::from_shared(self.url()).expect("address").connect_lazy()
    }
}
