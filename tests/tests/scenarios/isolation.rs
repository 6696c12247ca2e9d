//! Two tenants side by side: whatever one of them asks for, it gets nothing of the other.

use std::collections::{BTreeMap, BTreeSet};

use backbone::log::ids::OrderId;
use futures::{StreamExt, stream};
use harness::{Deployment, PATIENCE, item, order_of, randomness};
use prost::Message;
use proto::orders::v1::{
    CancelOrderRequest, GetOrderRequest, ListOrderEventsRequest, ListOrdersRequest, Order, OrderEvent,
    WatchOrderRequest, WatchOrdersRequest,
};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::{Code, Response, Status, Streaming};

use crate::events::after;
use crate::tenants::{BOTH, Client, client, with_keys, write_keys};

/// Ids that are guessed, each at every method that takes one.
const ORDER_IDS_GUESSED: usize = 1_000;
const CUSTOMERS_GUESSED: usize = 100;
/// Lists that are guessed at.
const LISTS_GUESSED: usize = 1_000;
const CALLS_AT_ONCE: usize = 32;
/// A customer_id that both tenants know.
const SHARED_CUSTOMER: &str = "ada";
const ORDERS_OF_CUSTOMER: usize = 3;

/// A tenant with orders, all of which bear its mark.
struct Tenant {
    client: Client,
    /// In each SKU and message of a cancel, and in the customer_id that the other tenant does not use.
    mark: &'static str,
    /// By id. Half of them are cancelled.
    orders: BTreeMap<String, Order>,
}

impl Tenant {
    async fn new(waybill: &Deployment, key: &'static str, mark: &'static str) -> Self {
        let mut tenant = Self { client: client(waybill, Some(key)), mark, orders: BTreeMap::new() };
        for customer_id in tenant.customers() {
            for i in 0..ORDERS_OF_CUSTOMER {
                tenant.place(&customer_id, &format!("r-{i}")).await;
            }
        }
        let ids: Vec<_> = tenant.orders.keys().step_by(2).cloned().collect();
        for order_id in ids {
            let request = CancelOrderRequest { order_id: order_id.clone(), message: mark.to_owned() };
            let cancelled = tenant.client.cancel_order(request).await.unwrap().into_inner().order.unwrap();
            tenant.orders.insert(order_id, cancelled);
        }
        tenant
    }

    fn own_customer(&self) -> String {
        format!("bob@{}", self.mark)
    }

    fn customers(&self) -> [String; 2] {
        [SHARED_CUSTOMER.to_owned(), self.own_customer()]
    }

    async fn place(&mut self, customer_id: &str, request_id: &str) -> Order {
        let request = order_of(customer_id, request_id, vec![item(self.mark, 1)]);
        let order = self.client.create_order(request).await.unwrap().into_inner().order.unwrap();
        self.orders.insert(order.order_id.clone(), order.clone());
        order
    }

    async fn histories(&self) -> Vec<OrderEvent> {
        let mut all = Vec::new();
        for order_id in self.orders.keys() {
            let request = ListOrderEventsRequest { order_id: order_id.clone(), ..Default::default() };
            all.extend(self.client.clone().list_order_events(request).await.unwrap().into_inner().events);
        }
        all
    }

    /// Fails if the answer to a question about `asked` shows anything of this tenant.
    fn is_not_in(&self, answer: &Answer, asked: &str) {
        let others = self.orders.keys().map(String::as_str).filter(|order_id| *order_id != asked);
        for mark in others.chain([self.mark]) {
            assert!(!answer.shows(mark), "{mark} after {asked:?}: {:?} {:?}", answer.code, answer.status);
        }
    }
}

/// Two tenants with the same customers and requests, as far as names go.
async fn two_tenants() -> (Deployment, Tenant, Tenant, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    write_keys(&path, &[("key-1", "shop-1", BOTH), ("key-2", "shop-2", BOTH)]);
    let waybill = with_keys(&path).await;
    let one = Tenant::new(&waybill, "key-1", "of-shop-one").await;
    let two = Tenant::new(&waybill, "key-2", "of-shop-two").await;
    assert!(one.orders.keys().all(|order_id| !two.orders.contains_key(order_id)));
    (waybill, one, two, dir)
}

/// What came back: of a stream that began, its first message.
#[derive(Debug)]
struct Answer {
    code: Code,
    /// The message, if there is one.
    message: Vec<u8>,
    status: Option<Status>,
}

impl Answer {
    fn of<M: Message>(answer: Result<Response<M>, Status>) -> Self {
        match answer {
            Ok(response) => {
                Self { code: Code::Ok, message: response.into_inner().encode_to_vec(), status: None }
            }
            Err(status) => Self { code: status.code(), message: Vec::new(), status: Some(status) },
        }
    }

    async fn of_stream<M: Message>(answer: Result<Response<Streaming<M>>, Status>) -> Self {
        let mut stream = match answer {
            Ok(response) => response.into_inner(),
            Err(status) => return Self::of::<M>(Err(status)),
        };
        let message = timeout(PATIENCE, stream.message()).await.expect("a message");
        Self::of(message.map(|message| Response::new(message.unwrap())))
    }

    fn shows(&self, mark: &str) -> bool {
        let found = |bytes: &[u8]| bytes.windows(mark.len()).any(|part| part == mark.as_bytes());
        let in_status = |status: &Status| {
            let metadata = format!("{:?}", status.metadata());
            found(status.message().as_bytes()) || found(status.details()) || metadata.contains(mark)
        };
        found(&self.message) || self.status.as_ref().is_some_and(in_status)
    }

    /// Code, text and details, with the order_id that was asked for left out.
    fn without(&self, order_id: &str) -> (Code, String, Vec<u8>) {
        let status = self.status.as_ref().unwrap();
        let mut details = status.details().to_vec();
        if let Some(at) = details.windows(order_id.len()).position(|part| part == order_id.as_bytes()) {
            details.drain(at..at + order_id.len());
        }
        (self.code, status.message().to_owned(), details)
    }
}

/// What each method that takes an order_id answers.
async fn by_order_id(client: &Client, order_id: &str) -> [(&'static str, Answer); 4] {
    let mut client = client.clone();
    let order_id = || order_id.to_owned();
    let get = client.get_order(GetOrderRequest { order_id: order_id() }).await;
    let events =
        client.list_order_events(ListOrderEventsRequest { order_id: order_id(), ..Default::default() }).await;
    let watch = client.watch_order(WatchOrderRequest { order_id: order_id(), after_revision: 0 }).await;
    let watch = Answer::of_stream(watch).await;
    let cancel =
        client.cancel_order(CancelOrderRequest { order_id: order_id(), message: String::new() }).await;
    [
        ("GetOrder", Answer::of(get)),
        ("ListOrderEvents", Answer::of(events)),
        ("WatchOrder", watch),
        ("CancelOrder", Answer::of(cancel)),
    ]
}

async fn list(client: &Client, request: ListOrdersRequest) -> Result<(Vec<Order>, String), Status> {
    let page = client.clone().list_orders(request).await?.into_inner();
    Ok((page.orders, page.next_page_token))
}

#[tokio::test]
async fn no_method_shows_or_changes_an_order_of_another_tenant() {
    let (_waybill, one, two, _dir) = two_tenants().await;
    let before = (one.histories().await, two.histories().await);
    for (me, other) in [(&one, &two), (&two, &one)] {
        let unknown = format!("{}{}", "a".repeat(16), &other.orders.keys().next().unwrap()[16..]);
        let unknown = (by_order_id(&me.client, &unknown).await, unknown);
        for order_id in other.orders.keys() {
            let answers = by_order_id(&me.client, order_id).await;
            for ((method, answer), (_, of_unknown)) in answers.iter().zip(&unknown.0) {
                assert_eq!(answer.code, Code::NotFound, "{method} {answer:?}");
                assert_eq!(answer.without(order_id), of_unknown.without(&unknown.1), "{method}");
                other.is_not_in(answer, order_id);
            }
        }
    }
    assert_eq!((one.histories().await, two.histories().await), before, "nothing was changed");
    for me in [&one, &two] {
        // The marks are where they belong; else that they are nowhere else would prove nothing.
        for order_id in me.orders.keys() {
            for (method, answer) in by_order_id(&me.client, order_id).await {
                assert!(answer.code == Code::Ok && answer.shows(me.mark), "{method} {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_customer_of_another_tenant_is_another_customer() {
    let (_waybill, mut one, mut two, _dir) = two_tenants().await;
    let mut random = randomness();
    for _ in 0..2 {
        let (me, other) = (&mut two, &one);
        let mut customers = BTreeSet::from(me.customers());
        customers.extend((0..CUSTOMERS_GUESSED).map(|_| guess_customer(&mut random, other)));
        let mut refused = 0;
        for customer_id in customers {
            let request = WatchOrdersRequest { customer_id: customer_id.clone(), after_revision: 0 };
            let mut watch = match me.client.watch_orders(request).await {
                Ok(response) => response.into_inner(),
                Err(status) => {
                    assert_eq!(status.code(), Code::InvalidArgument, "{customer_id}: {status:?}");
                    refused += 1;
                    continue;
                }
            };
            let of_mine = |order: &&Order| order.customer_id == customer_id;
            let mine: BTreeSet<_> =
                me.orders.values().filter(of_mine).map(|order| order.order_id.clone()).collect();
            let request = ListOrdersRequest { customer_id: customer_id.clone(), ..Default::default() };
            let (listed, _) = list(&me.client, request).await.unwrap();
            let listed: BTreeSet<_> = listed.into_iter().map(|order| order.order_id).collect();
            assert_eq!(listed, mine, "{customer_id}");

            // Whatever is shown before this order is mine.
            let last = me.place(&customer_id, "last").await;
            let mut seen = BTreeSet::new();
            while !seen.contains(&last.order_id) {
                let message = timeout(PATIENCE, watch.message()).await.expect("my last order");
                let event = message.unwrap().unwrap().event.unwrap();
                seen.insert(after(&event).order_id.clone());
            }
            seen.remove(&last.order_id);
            assert_eq!(seen, mine, "{customer_id}");
        }
        assert!(refused > 0, "none of the guesses was malformed");
        std::mem::swap(&mut one, &mut two);
    }
}

#[tokio::test]
async fn no_guess_at_an_order_id_leads_to_another_tenant() {
    let (_waybill, one, two, _dir) = two_tenants().await;
    let before = one.histories().await;
    let (mine, others): (Vec<_>, Vec<_>) =
        (two.orders.keys().cloned().collect(), one.orders.keys().cloned().collect());
    let mut random = randomness();
    let guesses: Vec<_> = (0..ORDER_IDS_GUESSED).map(|_| guess(&mut random, &mine, &others)).collect();
    let answers = stream::iter(&guesses).map(async |guess| (guess, by_order_id(&two.client, guess).await));
    let mut answers = answers.buffer_unordered(CALLS_AT_ONCE);
    let mut codes = [0, 0];
    while let Some((guess, answers)) = answers.next().await {
        let is_order_id = guess.parse::<OrderId>().is_ok();
        let expected = if is_order_id { Code::NotFound } else { Code::InvalidArgument };
        codes[usize::from(is_order_id)] += 1;
        for (method, answer) in answers {
            assert_eq!(answer.code, expected, "{method} of {guess:?}: {answer:?}");
            one.is_not_in(&answer, guess);
        }
    }
    eprintln!("{codes:?} malformed and unknown ids");
    assert!(codes.iter().all(|count| *count >= ORDER_IDS_GUESSED / 10), "{codes:?}");
    assert_eq!(one.histories().await, before, "nothing was changed");
}

#[tokio::test]
async fn no_guess_at_a_list_leads_to_another_tenant() {
    let (_waybill, one, two, _dir) = two_tenants().await;
    let tokens = [first_tokens(&one).await, first_tokens(&two).await];
    let mut random = randomness();
    let [of_one, of_two] = &tokens;
    for (me, my_tokens, other, other_tokens) in [(&one, of_one, &two, of_two), (&two, of_two, &one, of_one)] {
        for (customer_id, token) in other.customers().into_iter().zip(other_tokens) {
            let page_token = token.clone();
            let request = ListOrdersRequest { customer_id, page_token, ..Default::default() };
            let status = list(&me.client, request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        }
        let guess = |_| ListOrdersRequest {
            customer_id: guess_customer(&mut random, other),
            page_token: guess_token(&mut random, my_tokens, other_tokens),
            page_size: random.random_range(0..5),
            statuses: Vec::new(),
        };
        let requests: Vec<_> = (0..LISTS_GUESSED).map(guess).collect();
        let answers = stream::iter(requests)
            .map(async |request| (request.clone(), Answer::of(me.client.clone().list_orders(request).await)));
        let mut answers = answers.buffer_unordered(CALLS_AT_ONCE);
        let mut codes = [0, 0];
        while let Some((request, answer)) = answers.next().await {
            assert!(matches!(answer.code, Code::Ok | Code::InvalidArgument), "{request:?}: {answer:?}");
            other.is_not_in(&answer, "");
            codes[usize::from(answer.code == Code::Ok)] += 1;
        }
        eprintln!("{codes:?} lists refused and answered");
        assert!(codes.iter().all(|count| *count >= LISTS_GUESSED / 10), "{codes:?}");
    }
}

/// The tokens that lead to the second orders of a tenant's customers.
async fn first_tokens(tenant: &Tenant) -> Vec<String> {
    let mut tokens = Vec::new();
    for customer_id in tenant.customers() {
        let first = ListOrdersRequest { customer_id, page_size: 1, ..Default::default() };
        tokens.push(list(&tenant.client, first).await.unwrap().1);
    }
    tokens
}

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz234567";
const LOOK_ALIKES: [(&str, &str); 6] = [
    ("a", "\u{430}"),
    ("o", "\u{43e}"),
    ("e", "\u{435}"),
    ("i", "\u{131}"),
    ("2", "\u{ff12}"),
    ("-", "\u{2010}"),
];

fn one_of<'a>(random: &mut StdRng, among: &[&'a str]) -> &'a str {
    among.choose(random).unwrap()
}

fn letter(random: &mut StdRng) -> char {
    char::from(*LETTERS.choose(random).unwrap())
}

/// An order_id that somebody might try who has seen those of `others`.
fn guess(random: &mut StdRng, mine: &[String], others: &[String]) -> String {
    let seen = others.choose(random).unwrap();
    let (customer_key, order_key) = seen.split_once('-').unwrap();
    let (my_customer_key, my_order_key) = mine.choose(random).unwrap().split_once('-').unwrap();
    let (_, sibling) = others.choose(random).unwrap().split_once('-').unwrap();
    let at = random.random_range(0..seen.len());
    match random.random_range(0..14) {
        0 => seen.clone(),
        1 => format!("{customer_key}-{my_order_key}"),
        2 => format!("{my_customer_key}-{order_key}"),
        3 => format!("{customer_key}-{sibling}"),
        4 => format!("{order_key}-{customer_key}"),
        5 | 6 => {
            let mut flipped = seen.clone();
            flipped.replace_range(at..=at, &letter(random).to_string());
            flipped
        }
        7 => seen.to_uppercase(),
        8 => seen[..at].to_owned(),
        9 => format!("{seen}{}", one_of(random, &["=", "a", " ", "\0", "\n", "-", ".>", "%00"])),
        10 => format!("{}{seen}", one_of(random, &["=", "a", " ", "\0", "\u{feff}", "-", "*.", "../"])),
        11 => {
            let (from, to) = LOOK_ALIKES.choose(random).unwrap();
            format!("{}{to}", seen.replace(from, to))
        }
        12 => seen.replace('-', one_of(random, &["", ".", "--", "_", ".*.", "-*-"])),
        _ => (0..seen.len()).map(|i| if i == customer_key.len() { '-' } else { letter(random) }).collect(),
    }
}

fn guess_customer(random: &mut StdRng, other: &Tenant) -> String {
    let seen = other.own_customer();
    let at = random.random_range(0..seen.len());
    match random.random_range(0..6) {
        0 | 1 => SHARED_CUSTOMER.to_owned(),
        2 => seen,
        3 => seen[..at].to_owned(),
        4 => other.orders.keys().next().unwrap()[..16].to_owned(),
        _ => one_of(random, &["shop-1", "shop-1:ada", "ada\0", "*", ">", "", "ADA", "\u{430}da"]).to_owned(),
    }
}

/// A page_token: a tenant's own, the other's, or something of both.
fn guess_token(random: &mut StdRng, mine: &[String], others: &[String]) -> String {
    /// Of a token, what says where the page begins.
    const PLACE_CHARS: usize = 12;
    let (own, other) = (mine.choose(random).unwrap(), others.choose(random).unwrap());
    match random.random_range(0..7) {
        0 | 1 => String::new(),
        6 => own.clone(),
        2 => other.clone(),
        3 => format!("{}{}", &other[..PLACE_CHARS], &own[PLACE_CHARS..]),
        4 => format!("{}{}", &own[..PLACE_CHARS], &other[PLACE_CHARS..]),
        _ => {
            let mut flipped = own.clone();
            let at = random.random_range(0..flipped.len());
            flipped.replace_range(at..=at, &letter(random).to_string());
            flipped
        }
    }
}
