//! The names of things in the order log. Each is parsed once, at the edge, and then always valid.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BitOrder, Encoding, Specification};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;
use thiserror::Error;
use uuid::Uuid;

const CUSTOMER_KEY_BYTES: usize = 10;
const ORDER_KEY_BYTES: usize = 16;
/// Characters of a customer key: 80 bits in base32.
const CUSTOMER_KEY_CHARS: usize = 16;
/// Characters of an order key: 128 bits in base32.
const ORDER_KEY_CHARS: usize = 26;

/// Number of partitions of the order log. Never changes: it is part of every subject.
pub const PARTITIONS: u8 = 64;

/// Lower-case base32 (RFC 4648 alphabet, no padding): safe in a NATS subject, easy to read aloud.
#[allow(clippy::expect_used, reason = "a constant specification; a unit test builds it")]
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.bit_order = BitOrder::MostSignificantFirst;
    specification.encoding().expect("base32 is a valid encoding")
});

/// Stands for one customer of one tenant in subjects and order ids, without naming them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CustomerKey([u8; CUSTOMER_KEY_BYTES]);

impl CustomerKey {
    /// The key of `customer_id` within `tenant`: 80 bits of a SHA-256.
    pub fn of(tenant: &str, customer_id: &str) -> Self {
        Self(truncated_hash("waybill.customer", &[tenant, customer_id]))
    }

    /// Where in the order log this customer's orders live.
    pub fn partition(self) -> Partition {
        Partition(self.0[0] % PARTITIONS)
    }
}

impl fmt::Display for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        BASE32.encode_display(&self.0).fmt(f)
    }
}

/// Names one order among its customer's orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrderKey([u8; ORDER_KEY_BYTES]);

impl OrderKey {
    /// The key that every retry of one request derives: 128 bits of a SHA-256.
    pub fn of_request(tenant: &str, customer_id: &str, request_id: &str) -> Self {
        Self(truncated_hash("waybill.request", &[tenant, customer_id, request_id]))
    }

    /// A key that no other order has: a UUIDv7.
    pub fn unique() -> Self {
        Self(Uuid::now_v7().into_bytes())
    }
}

impl fmt::Display for OrderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        BASE32.encode_display(&self.0).fmt(f)
    }
}

/// One of the [`PARTITIONS`] parts of the order log; a customer's orders are all in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Partition(u8);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}", self.0)
    }
}

/// Names an order: `<customer_key>-<order_key>`. Enough to find the order, so there is no index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrderId {
    /// Whose order it is.
    pub customer: CustomerKey,
    /// Which of the customer's orders.
    pub order: OrderKey,
}

/// A text that is not an order id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "an order_id is {CUSTOMER_KEY_CHARS} characters, '-', {ORDER_KEY_CHARS} characters, all of a-z and 2-7"
)]
pub struct MalformedOrderId;

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.customer, self.order)
    }
}

impl FromStr for OrderId {
    type Err = MalformedOrderId;

    fn from_str(text: &str) -> Result<Self, MalformedOrderId> {
        let (customer, order) = text.split_once('-').ok_or(MalformedOrderId)?;
        Self::from_keys(customer, order)
    }
}

impl OrderId {
    /// Puts together the id whose two keys stand apart, as they do in a subject.
    pub fn from_keys(customer_key: &str, order_key: &str) -> Result<Self, MalformedOrderId> {
        Ok(Self { customer: CustomerKey(decode(customer_key)?), order: OrderKey(decode(order_key)?) })
    }
}

/// Position in the order log: the stream sequence of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first event.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The first `N` bytes of a hash over `parts`, each preceded by its length so that no two lists collide.
fn truncated_hash<const N: usize>(domain: &str, parts: &[&str]) -> [u8; N] {
    let mut hash = Sha256::new();
    hash.update(domain);
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    std::array::from_fn(|i| digest[i])
}

fn decode<const N: usize>(text: &str) -> Result<[u8; N], MalformedOrderId> {
    BASE32.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(MalformedOrderId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_order_id() -> impl Strategy<Value = OrderId> {
        any::<([u8; 10], [u8; 16])>()
            .prop_map(|(customer, order)| OrderId { customer: CustomerKey(customer), order: OrderKey(order) })
    }

    proptest! {
        #[test]
        fn an_order_id_reads_back_as_itself(id in any_order_id()) {
            let text = id.to_string();
            prop_assert_eq!(text.len(), CUSTOMER_KEY_CHARS + 1 + ORDER_KEY_CHARS);
            prop_assert_eq!(text.parse(), Ok(id));
        }

        #[test]
        fn only_the_canonical_text_is_an_order_id(text in "\\PC{0,60}") {
            if let Ok(id) = text.parse::<OrderId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn one_changed_character_is_another_order_or_none(id in any_order_id(), at in 0usize..43, to in "[a-zA-Z0-9=-]") {
            let mut text = id.to_string();
            text.replace_range(at..=at, &to);
            prop_assert!(text == id.to_string() || text.parse() != Ok(id));
        }

        #[test]
        fn a_request_always_leads_to_the_same_order(tenant in ".{0,20}", customer in ".{1,20}", request in ".{1,20}") {
            let key = || (CustomerKey::of(&tenant, &customer), OrderKey::of_request(&tenant, &customer, &request));
            prop_assert_eq!(key(), key());
        }

        #[test]
        fn a_partition_is_two_digits_below_64(id in any_order_id()) {
            let text = id.customer.partition().to_string();
            prop_assert_eq!(text.len(), 2);
            prop_assert!(text.parse::<u8>().unwrap() < PARTITIONS);
        }
    }

    #[test]
    fn moving_a_character_between_parts_changes_the_key() {
        assert_ne!(CustomerKey::of("ab", "c"), CustomerKey::of("a", "bc"));
        assert_ne!(OrderKey::of_request("", "a", "bc"), OrderKey::of_request("", "ab", "c"));
    }

    #[test]
    fn keys_never_change_between_versions() {
        // Stored orders are found by these keys: a change here would lose them.
        let id = OrderId {
            customer: CustomerKey::of("", "customer-1"),
            order: OrderKey::of_request("", "customer-1", "request-1"),
        };
        assert_eq!(id.to_string(), "vmsiot3cpmafjant-3isgv5ekudwcflhkyy2v6cpqsu");
    }
}
