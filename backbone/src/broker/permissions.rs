//! Permission errors that the broker reported recently for this user. It reports them beside the request, which then
//! times out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::log::subjects;

/// Subjects remembered; a program has far fewer.
const SUBJECTS_MAX: usize = 64;
/// How long a forbidden publish subject is remembered. Permissions can be granted while the connection is open.
const REMEMBERED_FOR: Duration = Duration::from_secs(30);
/// The broker's error texts, in lower case; the subject follows in quotes.
const MAY_NOT_PUBLISH: &str = "permissions violation for publish to \"";
const MAY_NOT_SUBSCRIBE: &str = "permissions violation for subscription to \"";
/// Subject prefixes of requests that name no order and no message.
const REQUESTS: [&str; 2] = ["$JS.API.STREAM.", "$JS.API.CONSUMER."];
/// Requests for a change. Programs work without them, and report the missing permission themselves.
const CHANGES: [&str; 5] = [
    "$JS.API.STREAM.CREATE.",
    "$JS.API.STREAM.UPDATE.",
    "$JS.API.CONSUMER.CREATE.",
    "$JS.API.CONSUMER.DELETE.",
    "$JS.API.CONSUMER.LEADER.STEPDOWN.",
];

/// The permissions that this user lacks on this connection.
#[derive(Debug, Default)]
pub(crate) struct DeniedPermissions {
    /// The subjects that it may not publish to, and when the broker last reported that.
    publishing: BTreeMap<String, Instant>,
    /// The subjects that it may not subscribe to. The broker reports each once; only another connection restores the
    /// subscription.
    subscribing: BTreeSet<String>,
}

impl DeniedPermissions {
    /// Records a permission error of the broker. Returns whether it forbids this user's inbox.
    pub(crate) fn record(&mut self, complaint: &str) -> bool {
        if let Some(subject) = subject_after(MAY_NOT_PUBLISH, complaint) {
            self.publishing.retain(|_, at| at.elapsed() < REMEMBERED_FOR);
            if self.publishing.len() < SUBJECTS_MAX {
                self.publishing.insert(kind_of(subject), Instant::now());
            }
        }
        let Some(subject) = subject_after(MAY_NOT_SUBSCRIBE, complaint) else { return false };
        if self.subscribing.len() < SUBJECTS_MAX {
            self.subscribing.insert(kind_of(subject));
        }
        is_inbox(subject)
    }

    /// Forgets permission errors of an earlier connection.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether nothing may be published on the subject of a request.
    pub(crate) fn is_refused(&self, request: &str) -> bool {
        self.publishing.get(request).is_some_and(|at| at.elapsed() < REMEMBERED_FOR)
    }

    /// Whether this user's inbox is forbidden.
    pub(crate) fn inbox_is_denied(&self) -> bool {
        self.subscribing.iter().any(|subject| is_inbox(subject))
    }

    /// All permission errors as text, with or without those of requested changes; `None` without any.
    pub(crate) fn summary(&self, with_changes: bool) -> Option<String> {
        let is_change = |subject: &str| CHANGES.iter().any(|change| subject.starts_with(change));
        let publishing = self.publishing.iter().filter(|(_, at)| at.elapsed() < REMEMBERED_FOR);
        let publishing = publishing
            .map(|(subject, _)| subject)
            .filter(|subject| with_changes || !is_change(subject))
            .map(|subject| format!("publish to {subject}"));
        let subscribing = self.subscribing.iter().map(|subject| format!("subscribe to {subject}"));
        let refused: Vec<_> = publishing.chain(subscribing).collect();
        (!refused.is_empty()).then(|| {
            format!("this user (NATS_URL, NATS_CREDS) has no permission to {}", refused.join(", or "))
        })
    }
}

fn subject_after<'a>(words: &str, complaint: &'a str) -> Option<&'a str> {
    // ASCII lower-casing keeps the length, so an index into one text fits the other.
    let begins = complaint.to_ascii_lowercase().find(words)? + words.len();
    complaint.get(begins..)?.split('"').next()
}

fn is_inbox(subject: &str) -> bool {
    subject.starts_with("_INBOX")
}

/// A subject without the tokens of one order, message or answer.
fn kind_of(subject: &str) -> String {
    if let Some(event) = subjects::parse(subject) {
        return subjects::kind(event.kind);
    }
    let tokens_max = match subject {
        request if REQUESTS.iter().any(|begins| request.starts_with(begins)) => return request.to_owned(),
        direct_get if direct_get.starts_with("$JS.API.") => 5,
        ack if ack.starts_with("$JS.ACK.") => 4,
        inbox if is_inbox(inbox) => 1,
        _ => 2,
    };
    let tokens: Vec<_> = subject.split('.').collect();
    match tokens.get(..tokens_max) {
        Some(first) if first.len() < tokens.len() => format!("{}.>", first.join(".")),
        Some(_) | None => subject.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::ids::{CustomerKey, OrderId, OrderKey};
    use crate::log::subjects::EventKind;

    fn publishing_to(subject: &str) -> String {
        format!(r#"Permissions Violation for Publish to "{subject}""#)
    }

    #[test]
    fn denials_are_listed_until_the_next_connection() {
        let mut refusals = DeniedPermissions::default();
        assert_eq!(refusals.summary(true), None);
        assert!(!refusals.record("authorization violation"));
        assert!(!refusals.record(&publishing_to("$JS.API.STREAM.INFO.ORDERS")));
        assert!(!refusals.record(r#"Permissions Violation for Subscription to "live.ORDER.>""#));
        let inbox = r#"Permissions Violation for Subscription to "_INBOX_payment.x1y2.*""#;
        assert!(refusals.record(inbox));
        assert!(refusals.is_refused("$JS.API.STREAM.INFO.ORDERS"));
        let said = refusals.summary(false).unwrap();
        assert!(said.ends_with(
            "publish to $JS.API.STREAM.INFO.ORDERS, or subscribe to _INBOX_payment.>, or subscribe to live.ORDER.>"
        ), "{said}");
        refusals.forget();
        assert_eq!(
            (refusals.summary(true), refusals.is_refused("$JS.API.STREAM.INFO.ORDERS")),
            (None, false)
        );
    }

    #[test]
    fn denials_for_many_orders_share_one_entry() {
        let mut refusals = DeniedPermissions::default();
        for order in 0..2 * SUBJECTS_MAX {
            let id = OrderId { customer: CustomerKey::of("", "c"), order: OrderKey::unique() };
            refusals.record(&publishing_to(&subjects::event(EventKind::Paid, &id, "fulfilment")));
            refusals.record(&publishing_to(&format!("$JS.API.DIRECT.GET.ORDERS.ORDER.07.c.o{order}.>")));
            refusals.record(&publishing_to(&format!("$JS.ACK.ORDERS.payment.1.{order}.1.1.0")));
        }
        let named: Vec<_> = refusals.publishing.keys().map(String::as_str).collect();
        assert_eq!(named, ["$JS.ACK.ORDERS.payment.>", "$JS.API.DIRECT.GET.ORDERS.>", "ORDER.*.*.*.paid.*"]);
    }

    #[test]
    fn a_denied_change_is_reported_only_to_its_caller() {
        let mut refusals = DeniedPermissions::default();
        refusals.record(&publishing_to("$JS.API.CONSUMER.CREATE.ORDERS.payment"));
        assert_eq!(refusals.summary(false), None);
        assert!(refusals.summary(true).is_some());
    }
}
