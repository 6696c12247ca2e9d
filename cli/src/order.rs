//! `waybill order`: place, read, list, watch and cancel orders through a gateway.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, GetOrderRequest, ListOrderEventsRequest, ListOrdersRequest,
    Money, Order, OrderItem, PostalAddress,
};

use crate::args::{AddressFields, ListArgs, OrderArgs, OrderCommand, OrderFields, PlaceArgs};
use crate::client::{self, Orders};
use crate::timeline::timeline;
use crate::watch::{Update, Watch};
use crate::{console, order_file, render};

/// Orders asked for at once. The gateway ends a page of large ones at about 1 MiB.
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
        OrderCommand::Place(place_args) => place(orders, *place_args).await,
        OrderCommand::Get { order_id } => get(orders, order_id).await,
        OrderCommand::Watch { order_id, after_revision } => watch(orders, order_id, after_revision).await,
        OrderCommand::Cancel { order_id, message } => cancel(orders, order_id, message).await,
        OrderCommand::List(list_args) => list(orders, list_args).await,
        OrderCommand::Events { order_id } => events(orders, order_id).await,
        OrderCommand::Trace { order_id } => trace(orders, order_id).await,
    }
}

async fn place(mut orders: Orders, args: PlaceArgs) -> anyhow::Result<()> {
    let request = match &args.file {
        Some(path) => order_file::read(path)?,
        None => request_of(args.fields, args.address)?,
    };
    let answer = client::answer(orders.create_order(request)).await?;
    let order = present(answer.order)?;
    console::answer(&render::order(&order))?;
    if args.watch {
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

fn request_of(fields: OrderFields, address: AddressFields) -> anyhow::Result<CreateOrderRequest> {
    let items = fields.items.into_iter().map(|item| OrderItem {
        sku: item.sku,
        quantity: item.quantity,
        unit_price: Some(Money { currency_code: fields.currency.clone(), minor_units: item.price_minor }),
        name: item.name,
        metadata: BTreeMap::new(),
    });
    let mut metadata = BTreeMap::new();
    for (key, value) in fields.metadata {
        ensure!(!metadata.contains_key(&key), "--metadata has the key {key} twice");
        metadata.insert(key, value);
    }
    let shipping_address = address_of(address);
    Ok(CreateOrderRequest {
        request_id: fields.request_id,
        customer_id: fields.customer.unwrap_or_default(),
        items: items.collect(),
        route: fields.route,
        metadata,
        shipping_address: (shipping_address != PostalAddress::default()).then_some(shipping_address),
        payment_method: fields.payment_method,
        note: fields.note,
        reference: fields.reference,
    })
}

fn address_of(fields: AddressFields) -> PostalAddress {
    PostalAddress {
        region_code: fields.region_code.unwrap_or_default(),
        language_code: fields.language_code.unwrap_or_default(),
        postal_code: fields.postal_code.unwrap_or_default(),
        sorting_code: fields.sorting_code.unwrap_or_default(),
        administrative_area: fields.administrative_area.unwrap_or_default(),
        locality: fields.locality.unwrap_or_default(),
        sublocality: fields.sublocality.unwrap_or_default(),
        address_lines: fields.address_lines,
        recipients: fields.recipients,
        organization: fields.organization.unwrap_or_default(),
    }
}

fn present(order: Option<Order>) -> anyhow::Result<Order> {
    order.context("the gateway answered without an order")
}
