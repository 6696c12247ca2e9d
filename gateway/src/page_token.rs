//! Where the next page of an answer begins. Opaque to clients; the gateway keeps no state for it.

use backbone::log::ids::{CustomerKey, OrderId, Revision};
use data_encoding::BASE64URL_NOPAD;
use proto::orders::v1::OrderStatus;

/// Format version of tokens, so that a later one can differ.
const VERSION: u8 = 1;
const REVISION_BYTES: usize = 8;

/// The list that a token belongs to. A token of another list would skip or duplicate orders.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List<'a> {
    pub(crate) customer: CustomerKey,
    /// In ascending order, each once.
    pub(crate) statuses: &'a [OrderStatus],
}

impl List<'_> {
    /// The token of the page that lists what was created before `before`.
    pub(crate) fn token(&self, before: Revision) -> String {
        encode(before, &self.name())
    }

    /// Reads a token of this list.
    pub(crate) fn parse(&self, token: &str) -> Option<Revision> {
        decode(token, &self.name())
    }

    fn name(&self) -> Vec<u8> {
        let statuses = self.statuses.iter().filter_map(|status| u8::try_from(i32::from(*status)).ok());
        self.customer.to_string().into_bytes().into_iter().chain(statuses).collect()
    }
}

/// The history of an order, as the answer that a token belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History(pub(crate) OrderId);

impl History {
    /// The token of the page that begins behind the event at `after`.
    pub(crate) fn token(&self, after: Revision) -> String {
        encode(after, self.0.to_string().as_bytes())
    }

    /// Reads a token of this history.
    pub(crate) fn parse(&self, token: &str) -> Option<Revision> {
        decode(token, self.0.to_string().as_bytes())
    }
}

/// The token of a position in the answer of this name.
pub(crate) fn encode(revision: Revision, name: &[u8]) -> String {
    encode_bytes(&[&revision.0.to_be_bytes()[..], name].concat())
}

/// Reads a token of the answer of this name.
pub(crate) fn decode(token: &str, name: &[u8]) -> Option<Revision> {
    let bytes = decode_bytes(token)?;
    let (revision, named) = bytes.split_first_chunk::<REVISION_BYTES>()?;
    let revision = Revision(u64::from_be_bytes(*revision));
    (named == name && revision > Revision::NONE).then_some(revision)
}

/// A token with only these bytes.
pub(crate) fn encode_bytes(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(&[&[VERSION], bytes].concat())
}

/// The bytes in a token.
pub(crate) fn decode_bytes(token: &str) -> Option<Vec<u8>> {
    let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
    bytes.strip_prefix(&[VERSION]).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backbone::log::ids::OrderKey;
    use proptest::prelude::*;

    fn list<'a>(customer_id: &str, statuses: &'a [OrderStatus]) -> List<'a> {
        List { customer: CustomerKey::of("", customer_id), statuses }
    }

    fn history(customer_id: &str) -> History {
        let order = OrderKey::of_request("", customer_id, "r-1");
        History(OrderId { customer: CustomerKey::of("", customer_id), order })
    }

    proptest! {
        #[test]
        fn a_token_leads_back_to_its_place(revision in 1u64.., customer_id in ".{1,20}") {
            let list = list(&customer_id, &[OrderStatus::Paid, OrderStatus::Failed]);
            prop_assert_eq!(list.parse(&list.token(Revision(revision))), Some(Revision(revision)));
            let history = history(&customer_id);
            prop_assert_eq!(history.parse(&history.token(Revision(revision))), Some(Revision(revision)));
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            prop_assert_eq!(list("c", &[]).parse(&text), None);
            prop_assert_eq!(history("c").parse(&text), None);
        }
    }

    #[test]
    fn a_token_of_another_answer_is_none() {
        let token = list("c", &[OrderStatus::Paid]).token(Revision(7));
        assert_eq!(list("d", &[OrderStatus::Paid]).parse(&token), None);
        assert_eq!(list("c", &[]).parse(&token), None);
        assert_eq!(list("c", &[OrderStatus::Failed]).parse(&token), None);
        assert_eq!(history("c").parse(&token), None);
        assert_eq!(history("d").parse(&history("c").token(Revision(7))), None);
    }
}
