//! `waybill order`: place, read, list, watch and cancel orders through a gateway.

use anyhow::Context;
use proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, GetOrderRequest, ListOrderEventsRequest, ListOrdersRequest,
    Money, Order, OrderItem,
};

use crate::args::{ListArgs, OrderArgs, OrderCommand, PlaceArgs};
use crate::client::{self, Orders};
use crate::timeline::timeline;
use crate::watch::{Update, Watch};
use crate::{console, render};

/// Orders asked for at once, so few that even of the largest orders they fit in one message (4 MiB).
const PAGE_SIZE_MAX: u32 = 100;

/// Runs one of the order commands until it ends or its output is closed.
pub(crate) async fn run(args: OrderArgs) -> anyhow::Result<()> {
    match execute(args).await {
        Err(error) if console::reader_is_gone(&error) => Ok(()),
        ended => ended,
    }
}

async fn execute(args: OrderArgs) -> anyhow::Result<()> {
    let orders = client::connect(args.gateway, &args.tls, args.credential).await?;
    match args.command {
        OrderCommand::Place(place_args) => place(orders, place_args).await,
        OrderCommand::Get { order_id } => get(orders, order_id).await,
        OrderCommand::Watch { order_id, after_revision } => watch(orders, order_id, after_revision).await,
        OrderCommand::Cancel { order_id, message } => cancel(orders, order_id, message).await,
        OrderCommand::List(list_args) => list(orders, list_args).await,
        OrderCommand::Events { order_id } => events(orders, order_id).await,
        OrderCommand::Trace { order_id } => trace(orders, order_id).await,
    }
}

async fn place(mut orders: Orders, args: PlaceArgs) -> anyhow::Result<()> {
    let follow = args.watch;
    let answer = client::answer(orders.create_order(request_of(args))).await?;
    let order = present(answer.order)?;
    console::answer(&render::order(&order))?;
    if follow {
        watch(orders, order.order_id, 0).await?;
    }
    Ok(())
}

async fn get(mut orders: Orders, order_id: String) -> anyhow::Result<()> {
    let answer = client::answer(orders.get_order(GetOrderRequest { order_id })).await?;
    console::answer(&render::order(&present(answer.order)?))?;
    Ok(())
}

async fn watch(orders: Orders, order_id: String, after_revision: u64) -> anyhow::Result<()> {
    let mut watch = Watch::new(orders, order_id, after_revision);
    while let Some(update) = watch.next().await? {
        console::answer(&render::update(&update))?;
    }
    Ok(())
}

async fn cancel(mut orders: Orders, order_id: String, message: String) -> anyhow::Result<()> {
    let answer = client::answer(orders.cancel_order(CancelOrderRequest { order_id, message })).await?;
    console::answer(&render::order(&present(answer.order)?))?;
    Ok(())
}

/// Shows each page as it comes. An empty page need not be the last: only a missing token says so.
async fn list(mut orders: Orders, args: ListArgs) -> anyhow::Result<()> {
    let statuses: Vec<i32> = args.statuses.into_iter().map(Into::into).collect();
    let mut page_token = String::new();
    let mut wanted = args.limit;
    while wanted > 0 {
        let request = ListOrdersRequest {
            customer_id: args.customer_id.clone(),
            page_size: wanted.min(PAGE_SIZE_MAX).try_into()?,
            page_token,
            statuses: statuses.clone(),
        };
        let answer = client::answer(orders.list_orders(request)).await?;
        if wanted == args.limit && !answer.orders.is_empty() {
            console::heading(&render::order_heading())?;
        }
        for order in &answer.orders {
            console::answer(&render::order_line(order))?;
        }
        wanted = wanted.saturating_sub(answer.orders.len().try_into()?);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            if wanted == args.limit {
                console::warn("no orders found");
            }
            return Ok(());
        }
    }
    console::warn(&format!("these are the newest {}; there may be more, see --limit", args.limit));
    Ok(())
}

async fn events(orders: Orders, order_id: String) -> anyhow::Result<()> {
    for event in history(orders, order_id).await? {
        console::answer(&render::update(&event))?;
    }
    Ok(())
}

async fn trace(orders: Orders, order_id: String) -> anyhow::Result<()> {
    console::answer(&timeline(&history(orders, order_id).await?))?;
    Ok(())
}

async fn history(mut orders: Orders, order_id: String) -> anyhow::Result<Vec<Update>> {
    let (mut updates, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListOrderEventsRequest { order_id: order_id.clone(), page_token, ..Default::default() };
        let answer = client::answer(orders.list_order_events(request)).await?;
        for event in answer.events {
            updates.push(Update::of(event)?);
        }
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(updates);
        }
    }
}

fn request_of(args: PlaceArgs) -> CreateOrderRequest {
    let items = args.items.into_iter().map(|item| OrderItem {
        sku: item.sku,
        quantity: item.quantity,
        unit_price: Some(Money { currency_code: args.currency.clone(), minor_units: item.price_minor }),
        ..OrderItem::default()
    });
    CreateOrderRequest {
        request_id: args.request_id,
        customer_id: args.customer,
        items: items.collect(),
        route: args.route,
        ..CreateOrderRequest::default()
    }
}

fn present(order: Option<Order>) -> anyhow::Result<Order> {
    order.context("the gateway answered without an order")
}
