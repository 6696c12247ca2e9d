//! The sample orders: placed a few at a time, each followed until it is finished.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use futures::stream;
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus};
use tokio::select;
use tokio::time::{self, sleep, timeout_at};
use tonic::Status;

use super::board::ProgressBoard;
use super::catalogue;
use super::summary::{Outcome, Summary};
use crate::args::DevArgs;
use crate::client::{self, Orders};
use crate::console::plain;
use crate::error_report;
use crate::watch::Watch;

/// How many sample orders are on their way at once.
const IN_FLIGHT_MAX: usize = 64;

/// Places all sample orders and follows them to their end, or until time is up. `None` if there are none.
pub(super) async fn run(args: &DevArgs, orders: Orders) -> anyhow::Result<Option<Summary>> {
    if args.orders == 0 {
        return Ok(None);
    }
    let started = Instant::now();
    let deadline = time::Instant::now() + *args.timeout;
    let run_name = run_name();
    let board = ProgressBoard::new(args.orders);
    let outcomes = stream::iter(0..args.orders as usize)
        .map(|index| {
            let request = catalogue::sample_order(&run_name, index);
            run_order(orders.clone(), request, deadline, &board)
        })
        .buffer_unordered(IN_FLIGHT_MAX)
        .collect::<Vec<_>>();
    let outcomes = select! {
        outcomes = outcomes => outcomes,
        never = board.report_progress() => match never {},
    };
    Ok(Some(Summary::of(outcomes, started.elapsed())?))
}

async fn run_order(
    orders: Orders,
    request: CreateOrderRequest,
    deadline: time::Instant,
    board: &ProgressBoard,
) -> Outcome {
    let started = Instant::now();
    let request_id = request.request_id.clone();
    let mut order = match timeout_at(deadline, place(orders.clone(), request)).await {
        Ok(Ok(order)) => order,
        Ok(Err(status)) => {
            let why = error_report::headline(&status);
            return Outcome::Refused { request_id, why };
        }
        Err(_) => {
            let why = "not accepted in time".to_owned();
            return Outcome::Refused { request_id, why };
        }
    };
    board.placed(&order);
    let followed = timeout_at(deadline, follow(orders, &mut order, board)).await;
    let why = match followed {
        Ok(Ok(())) if is_finished(&order) => {
            board.finished();
            let took = started.elapsed();
            return Outcome::Finished { order, took };
        }
        Ok(Ok(())) => "parked until an operator acts".to_owned(),
        Ok(Err(status)) => error_report::headline(&status),
        Err(_) if order.current_step.is_empty() => "not finished in time".to_owned(),
        Err(_) => format!("waits at step {}, not finished in time", plain(&order.current_step)),
    };
    Outcome::Unfinished { order, why }
}

/// Places the order, with retries: its request_id makes them safe. The caller bounds the time.
async fn place(mut orders: Orders, request: CreateOrderRequest) -> Result<Order, Status> {
    let mut failed_attempts = 0;
    loop {
        let status = match client::answer(orders.create_order(request.clone())).await {
            Ok(answer) => return answer.order.ok_or_else(|| Status::data_loss("no order in the answer")),
            Err(status) => status,
        };
        let Some(pause) = client::pause_before_retry(&status, failed_attempts) else {
            return Err(status);
        };
        failed_attempts += 1;
        sleep(pause).await;
    }
}

/// Keeps `order` as it stands, until it is finished or parked. Dropping the future loses nothing of what was seen.
async fn follow(orders: Orders, order: &mut Order, board: &ProgressBoard) -> Result<(), Status> {
    let mut watch = Watch::new(orders, order.order_id.clone(), order.revision);
    while let Some(update) = watch.next().await? {
        board.changed(order, &update);
        *order = update.order;
        // A parked order waits for an operator, so it does not finish here.
        if order.status() == OrderStatus::Failed {
            break;
        }
    }
    Ok(())
}

fn is_finished(order: &Order) -> bool {
    let is_terminal =
        matches!(order.status(), OrderStatus::Fulfilled | OrderStatus::Rejected | OrderStatus::Cancelled);
    is_terminal && order.compensation_pending.is_empty()
}

/// Distinguishes the requests of this run from those of earlier runs, which the order log still contains.
fn run_name() -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("sample-{}", since_epoch.as_millis())
}
