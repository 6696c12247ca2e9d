//! `waybill stock`: lists the stock, and lets operators change it.

mod args;

use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use proto::inventory::v1::reconcile_stock_response::Answer;
use proto::inventory::v1::{
    AddStockRequest, GetStockRequest, ListStockRequest, OrphanedReservation, ReconcileStockRequest,
    RemoveStockRequest, SetStockRequest, Stock,
};
use tonic::{Code, Status};
use uuid::Uuid;

pub(crate) use args::StockArgs;
use args::{RequestArgs, StockCommand};

use crate::client;
use crate::console::{self, plain};
use crate::render::time_text;
use crate::usage::UsageError;

/// SKUs asked for at once.
const PAGE_SIZE_MAX: i32 = 1000;
const INCOMPLETE: &str = "older reservations were not read; more units may be reserved";

/// Runs one of the commands until it ends or its output is closed.
pub(crate) async fn run(args: StockArgs) -> anyhow::Result<()> {
    match execute(args).await {
        Err(error) if console::reader_is_gone(&error) => Ok(()),
        ended => ended,
    }
}

async fn execute(args: StockArgs) -> anyhow::Result<()> {
    if let StockCommand::Reconcile { dry_run: false, orders, all: false, .. } = &args.command
        && orders.is_empty()
    {
        let advice = "name reservations with --order ORDER_ID, or use --all; --dry-run lists them";
        return Err(UsageError(advice.to_owned()).into());
    }
    let mut stock = client::connect_stock(args.gateway).await?;
    match args.command {
        StockCommand::List => list(stock).await,
        StockCommand::Get { sku } => {
            let answer = client::answer(stock.get_stock(GetStockRequest { sku })).await?;
            show(answer.stock, false)?;
            if answer.reserved_incomplete {
                console::warn(INCOMPLETE);
            }
            Ok(())
        }
        StockCommand::Add { sku, units, request } => {
            let request_id = request.name();
            let call = stock.add_stock(AddStockRequest { request_id: request_id.clone(), sku, units });
            let answer = client::answer(call).await.map_err(|status| repeatable(status, &request_id))?;
            show(answer.stock, answer.repeated)
        }
        StockCommand::Remove { sku, units, request } => {
            let request_id = request.name();
            let call = stock.remove_stock(RemoveStockRequest { request_id: request_id.clone(), sku, units });
            let answer = client::answer(call).await.map_err(|status| repeatable(status, &request_id))?;
            show(answer.stock, answer.repeated)
        }
        StockCommand::Set { sku, units, revision, request } => {
            let request_id = request.name();
            let call = stock.set_stock(SetStockRequest {
                request_id: request_id.clone(),
                sku,
                available_units: units,
                expected_revision: revision,
            });
            let answer = client::answer(call).await.map_err(|status| repeatable(status, &request_id))?;
            show(answer.stock, answer.repeated)
        }
        StockCommand::Reconcile { dry_run, older_than, orders, all: _ } => {
            reconcile(stock, dry_run, older_than.into(), orders).await
        }
    }
}

impl RequestArgs {
    fn name(&self) -> String {
        self.request_id.clone().unwrap_or_else(|| Uuid::now_v7().to_string())
    }
}

/// If the outcome of the change is unknown, the user needs its request id.
fn repeatable(status: Status, request_id: &str) -> anyhow::Error {
    let is_unknown = match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Internal | Code::Cancelled => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    };
    if is_unknown {
        console::warn(&format!("retry with --request-id {request_id}; the change is then made once"));
    }
    status.into()
}

async fn list(mut stock: client::Stock) -> anyhow::Result<()> {
    let (mut page_token, mut count, mut incomplete) = (String::new(), 0, false);
    loop {
        let request = ListStockRequest { page_size: PAGE_SIZE_MAX, page_token };
        let answer = client::answer(stock.list_stock(request)).await?;
        for stock in &answer.stock {
            console::answer(&line(stock))?;
        }
        count += answer.stock.len();
        incomplete |= answer.reserved_incomplete;
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if count == 0 {
        console::warn("no stock found");
    }
    if incomplete {
        console::warn(INCOMPLETE);
    }
    Ok(())
}

fn show(stock: Option<Stock>, is_repeat: bool) -> anyhow::Result<()> {
    let stock = stock.ok_or_else(|| anyhow!("the gateway answered without stock"))?;
    console::answer(&line(&stock))?;
    if is_repeat {
        console::warn("already done by an earlier request with this request_id; nothing changed");
    }
    Ok(())
}

fn line(stock: &Stock) -> String {
    let Stock { sku, available_units, reserved_units, revision, unreadable, .. } = stock;
    let available =
        if *unreadable { "unreadable".to_owned() } else { format!("{available_units} available") };
    let reserved = if *reserved_units > 0 { format!("  {reserved_units} reserved") } else { String::new() };
    plain(&format!("{sku}  {available}{reserved}  revision {revision}"))
}

async fn reconcile(
    mut stock: client::Stock,
    dry_run: bool,
    older_than: Duration,
    order_ids: Vec<String>,
) -> anyhow::Result<()> {
    let older_than = Some(older_than.try_into().context("--older-than is too long")?);
    let request = ReconcileStockRequest { dry_run, older_than, order_ids };
    let mut answers = client::answer(stock.reconcile_stock(request)).await?;
    while let Some(answer) = answers.message().await? {
        match answer.answer {
            Some(Answer::Orphan(orphan)) => console::answer(&orphan_line(&orphan, dry_run))?,
            Some(Answer::Summary(summary)) => console::warn(&format!(
                "{} reservations in force, {} orphaned, {} released",
                summary.examined, summary.orphaned, summary.released
            )),
            None => {}
        }
    }
    Ok(())
}

fn orphan_line(orphan: &OrphanedReservation, dry_run: bool) -> String {
    let units: Vec<_> = orphan.units.iter().map(|held| format!("{} {}", held.units, held.sku)).collect();
    let reserved = orphan.reserve_time.and_then(|time| SystemTime::try_from(time).ok());
    let what = match (orphan.released, dry_run) {
        (true, _) => "released",
        (false, true) => "would be released",
        (false, false) => "not released",
    };
    plain(&format!("{}  {}  reserved {}  {what}", orphan.order_id, units.join(", "), time_text(reserved)))
}
