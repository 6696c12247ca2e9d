//! `waybill order`: place, read and watch orders through a gateway.

use anyhow::Context;
use proto::orders::v1::{CreateOrderRequest, GetOrderRequest, Money, Order, OrderItem};

use crate::args::{OrderArgs, OrderCommand, PlaceArgs};
use crate::client::{self, Orders};
use crate::watch::Watch;
use crate::{console, render};

/// Runs one of the order commands.
pub(crate) async fn run(args: OrderArgs) -> anyhow::Result<()> {
    let orders = client::connect(args.gateway).await?;
    match args.command {
        OrderCommand::Place(place_args) => place(orders, place_args).await,
        OrderCommand::Get { order_id } => get(orders, order_id).await,
        OrderCommand::Watch { order_id, after_revision } => watch(orders, order_id, after_revision).await,
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

fn request_of(args: PlaceArgs) -> CreateOrderRequest {
    let items = args.items.into_iter().map(|item| OrderItem {
        sku: item.sku,
        quantity: item.quantity,
        unit_price: Some(Money { currency_code: args.currency.clone(), minor_units: item.price_minor }),
    });
    CreateOrderRequest { request_id: args.request_id, customer_id: args.customer, items: items.collect() }
}

fn present(order: Option<Order>) -> anyhow::Result<Order> {
    order.context("the gateway answered without an order")
}
