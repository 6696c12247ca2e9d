//! The operator's commands, and the contents of the stream of dead letters.

use backbone::broker::direct_get;
use backbone::broker::streams::DEAD_LETTERS;
use backbone::dead_letters::{ALL_DEAD_LETTERS, DeadLetters};
use backbone::log::ids::Revision;
use prost::Message;
use proto::inventory::v1::reconcile_stock_response::Answer;
use proto::inventory::v1::stock_service_client::StockServiceClient;
use proto::inventory::v1::{
    AddStockRequest, AddStockResponse, OrphanedReservation, ReconcileStockRequest, ReconcileSummary,
};
use proto::operations::v1::dead_letter_service_client::DeadLetterServiceClient;
use proto::operations::v1::{
    DeadLetter, DeadLetterFilter, GetDeadLetterRequest, ListDeadLettersRequest, ListDeadLettersResponse,
    RedriveDeadLettersRequest, RedriveOutcome,
};
use tonic::Status;
use tonic::transport::Channel;

use crate::deployment::{Deployment, Gateway};

/// Where it is recorded how far carrying has come.
const CARRIER: &str = "DEAD_LETTER.carrier";

impl Gateway {
    /// An operator's client.
    pub fn operations(&self) -> DeadLetterServiceClient<Channel> {
        let uri = format!("http://{}", self.operations_addr);
        DeadLetterServiceClient::new(Channel::from_shared(uri).expect("address").connect_lazy())
    }
}

impl Deployment {
    /// An operator's client of the stock.
    pub fn stock(&self) -> StockServiceClient<Channel> {
        StockServiceClient::new(self.operations_channel())
    }

    /// Puts units in.
    pub async fn add_stock(
        &self,
        request_id: &str,
        sku: &str,
        units: i64,
    ) -> Result<AddStockResponse, Status> {
        let request = AddStockRequest { request_id: request_id.to_owned(), sku: sku.to_owned(), units };
        Ok(self.stock().add_stock(request).await?.into_inner())
    }

    /// What reservations without an order there are, and what a reconciliation has done about them.
    pub async fn reconcile(
        &self,
        request: ReconcileStockRequest,
    ) -> Result<(Vec<OrphanedReservation>, ReconcileSummary), Status> {
        let mut answers = self.stock().reconcile_stock(request).await?.into_inner();
        let mut orphans = Vec::new();
        loop {
            match answers.message().await?.and_then(|answer| answer.answer).expect("a summary at the end") {
                Answer::Orphan(orphan) => orphans.push(orphan),
                Answer::Summary(summary) => return Ok((orphans, summary)),
            }
        }
    }

    /// A channel to the address for operators, which connects when it is used.
    pub fn operations_channel(&self) -> Channel {
        let uri = format!("http://{}", self.gateway.operations_addr);
        Channel::from_shared(uri).expect("address").connect_lazy()
    }

    /// An operator's client.
    pub fn operations(&self) -> DeadLetterServiceClient<Channel> {
        self.gateway.operations()
    }

    /// A dead letter, by one call.
    pub async fn letter(&self, dead_letter_id: &str) -> Result<DeadLetter, Status> {
        let request = GetDeadLetterRequest { dead_letter_id: dead_letter_id.to_owned() };
        Ok(self.operations().get_dead_letter(request).await?.into_inner().dead_letter.unwrap_or_default())
    }

    /// The ids of all listed open dead letters.
    pub async fn open_letters(&self) -> Vec<String> {
        self.listed_letters().await.dead_letters.into_iter().map(|letter| letter.dead_letter_id).collect()
    }

    /// All open dead letters, of all pages, and their counts by cause.
    pub async fn listed_letters(&self) -> ListDeadLettersResponse {
        let mut request = ListDeadLettersRequest { page_size: 500, ..ListDeadLettersRequest::default() };
        let mut operations = self.operations();
        let first = operations.list_dead_letters(request.clone()).await.expect("list").into_inner();
        let (mut all, mut next) = (first.clone(), first.next_page_token);
        while !next.is_empty() {
            request.page_token = next;
            let page = operations.list_dead_letters(request.clone()).await.expect("list").into_inner();
            all.dead_letters.extend(page.dead_letters);
            next = page.next_page_token;
        }
        all
    }

    /// Every dead letter in the stream, with its subject.
    pub async fn letters_kept(&self) -> Vec<(String, DeadLetter)> {
        let client = self.jetstream().await.client();
        let stored = direct_get::all_from(&client, DEAD_LETTERS, ALL_DEAD_LETTERS, Revision::NONE).await;
        let letter = |stored: direct_get::Stored| {
            (stored.subject.to_string(), DeadLetter::decode(stored.payload).expect("letter"))
        };
        let stored = stored.expect("dead letters").into_iter();
        stored.filter(|stored| stored.subject.as_str() != CARRIER).map(letter).collect()
    }

    /// The dead letters as a step has them, for a test that plays one.
    pub async fn dead_letters(&self) -> DeadLetters {
        let connection = self.order_log().await.connection().clone();
        DeadLetters::new(connection).await.expect("dead letters")
    }

    /// Redrives, and returns the outcome for each dead letter.
    pub async fn redrive(
        &self,
        request: RedriveDeadLettersRequest,
    ) -> Result<Vec<(String, RedriveOutcome)>, Status> {
        let mut stream = self.operations().redrive_dead_letters(request).await?.into_inner();
        let mut answers = Vec::new();
        while let Some(answer) = stream.message().await? {
            answers.push((answer.dead_letter_id.clone(), answer.outcome()));
        }
        Ok(answers)
    }
}

/// A request for these dead letters, at the maximum rate.
pub fn these(ids: &[&str]) -> RedriveDeadLettersRequest {
    RedriveDeadLettersRequest {
        dead_letter_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        rate_per_second: 1000,
        ..RedriveDeadLettersRequest::default()
    }
}

/// A request for all open dead letters, at the maximum rate.
pub fn every_one() -> RedriveDeadLettersRequest {
    let filter = Some(DeadLetterFilter::default());
    RedriveDeadLettersRequest { filter, rate_per_second: 1000, ..RedriveDeadLettersRequest::default() }
}
