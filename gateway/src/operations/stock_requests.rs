//! The rules of every field of the requests about stock. All that a request breaks is reported at once.

use std::time::Duration;

use backbone::log::ids::OrderId;
use proto::inventory::v1::{
    AddStockRequest, GetStockRequest, ListStockRequest, ReconcileStockRequest, RemoveStockRequest,
    SetStockRequest,
};
use stock::{Change, ChangeRequest, SKU_RULE, UNITS_MAX, is_sku};
use tonic::Status;

use crate::page_token;
use crate::validation::Violations;

const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1000;
const REQUEST_ID_CHARS_MAX: usize = 128;
const ORDERS_MAX: usize = 1000;
/// A younger reservation may be of an order in progress.
const OLDER_THAN_DEFAULT: Duration = Duration::from_secs(600);

/// A page of the stock.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) size: usize,
    /// The last SKU of the page before; empty for the first page.
    pub(super) after: String,
}

/// The reservations to reconcile.
#[derive(Debug)]
pub(super) struct Reconcile {
    pub(super) dry_run: bool,
    pub(super) older_than: Duration,
    /// Empty: all orders.
    pub(super) orders: Vec<OrderId>,
}

/// The token of the page behind this SKU.
pub(super) fn token(after: &str) -> String {
    page_token::encode_bytes(after.as_bytes())
}

fn parse_token(token: &str) -> Option<String> {
    let after = String::from_utf8(page_token::decode_bytes(token)?).ok()?;
    is_sku(&after).then_some(after)
}

/// Checks a ListStockRequest.
pub(super) fn page(request: &ListStockRequest) -> Result<Page, Status> {
    let mut violations = Violations::default();
    let size = violations.page_size(request.page_size, PAGE_SIZE_MAX, PAGE_SIZE_DEFAULT);
    let after =
        if request.page_token.is_empty() { Some(String::new()) } else { parse_token(&request.page_token) };
    if after.is_none() {
        violations.add("page_token", "must be the next_page_token of an answer, or empty");
    }
    violations.into_result()?;
    Ok(Page { size, after: after.unwrap_or_default() })
}

/// Checks a GetStockRequest.
pub(super) fn sku(request: GetStockRequest) -> Result<String, Status> {
    let mut violations = Violations::default();
    check_sku(&mut violations, &request.sku);
    violations.into_result()?;
    Ok(request.sku)
}

/// Checks an AddStockRequest.
pub(super) fn add(request: AddStockRequest, operator: String) -> Result<ChangeRequest, Status> {
    let AddStockRequest { request_id, sku, units } = request;
    change(request_id, sku, operator, |violations| Change::Add(check_units(violations, "units", units, 1)))
}

/// Checks a RemoveStockRequest.
pub(super) fn remove(request: RemoveStockRequest, operator: String) -> Result<ChangeRequest, Status> {
    let RemoveStockRequest { request_id, sku, units } = request;
    change(request_id, sku, operator, |violations| Change::Remove(check_units(violations, "units", units, 1)))
}

/// Checks a SetStockRequest.
pub(super) fn set(request: SetStockRequest, operator: String) -> Result<ChangeRequest, Status> {
    let SetStockRequest { request_id, sku, available_units, expected_revision: expected } = request;
    change(request_id, sku, operator, |violations| Change::Set {
        units: check_units(violations, "available_units", available_units, 0),
        expected,
    })
}

fn change(
    request_id: String,
    sku: String,
    operator: String,
    check: impl FnOnce(&mut Violations) -> Change,
) -> Result<ChangeRequest, Status> {
    let mut violations = Violations::default();
    if request_id.is_empty() {
        violations.add("request_id", "is required: it makes a retry safe");
    } else if request_id.chars().count() > REQUEST_ID_CHARS_MAX || request_id.chars().any(char::is_control) {
        let rule = format!("must be 1-{REQUEST_ID_CHARS_MAX} characters, none of them a control character");
        violations.add("request_id", rule);
    }
    check_sku(&mut violations, &sku);
    let change = check(&mut violations);
    violations.into_result()?;
    Ok(ChangeRequest { request_id, sku, change, operator })
}

/// Checks a ReconcileStockRequest.
pub(super) fn reconcile(request: ReconcileStockRequest) -> Result<Reconcile, Status> {
    let mut violations = Violations::default();
    let ReconcileStockRequest { dry_run, older_than, order_ids } = request;
    let older_than = older_than.map_or(Ok(OLDER_THAN_DEFAULT), Duration::try_from).unwrap_or_else(|_| {
        violations.add("older_than", "must be 0 or more");
        OLDER_THAN_DEFAULT
    });
    if order_ids.len() > ORDERS_MAX {
        violations.add("order_ids", format!("must be at most {ORDERS_MAX}, not {}", order_ids.len()));
    }
    let mut orders = Vec::new();
    for (i, text) in order_ids.iter().take(ORDERS_MAX).enumerate() {
        match text.parse() {
            Ok(id) => orders.push(id),
            Err(error) => violations.add(format!("order_ids[{i}]"), format!("is malformed: {error}")),
        }
    }
    violations.into_result()?;
    Ok(Reconcile { dry_run, older_than, orders })
}

fn check_sku(violations: &mut Violations, sku: &str) {
    if sku.is_empty() {
        violations.add("sku", "is required");
    } else if !is_sku(sku) {
        violations.add("sku", format!("must be {SKU_RULE}"));
    }
}

fn check_units(violations: &mut Violations, field: &str, units: i64, least: u64) -> u64 {
    match u64::try_from(units) {
        Ok(checked) if (least..=UNITS_MAX).contains(&checked) => checked,
        Ok(_) | Err(_) => {
            violations.add(field, format!("must be {least}-{UNITS_MAX}, not {units}"));
            least
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt;

    fn fields(status: &Status) -> Vec<String> {
        let violations = status.get_details_bad_request().unwrap().field_violations;
        violations.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn every_violation_is_reported_at_once() {
        let operator = String::new;
        let all = ["request_id", "sku", "units"];
        let request = AddStockRequest { sku: "a.b".to_owned(), units: -1, ..AddStockRequest::default() };
        assert_eq!(fields(&add(request, operator()).unwrap_err()), all);
        assert_eq!(fields(&remove(RemoveStockRequest::default(), operator()).unwrap_err()), all);
        let request = SetStockRequest { available_units: i64::MAX, ..SetStockRequest::default() };
        let named = fields(&set(request, operator()).unwrap_err());
        assert_eq!(named, ["request_id", "sku", "available_units"]);
        let request = ListStockRequest { page_size: 1001, page_token: "?".to_owned() };
        assert_eq!(fields(&page(&request).unwrap_err()), ["page_size", "page_token"]);
        let request = ReconcileStockRequest {
            older_than: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            order_ids: vec!["?".to_owned()],
            ..ReconcileStockRequest::default()
        };
        assert_eq!(fields(&reconcile(request).unwrap_err()), ["older_than", "order_ids[0]"]);
    }

    #[test]
    fn a_page_goes_on_behind_the_last_sku() {
        let request = ListStockRequest { page_size: 0, page_token: token("widget") };
        let page = page(&request).unwrap();
        assert_eq!((page.size, page.after.as_str()), (PAGE_SIZE_DEFAULT, "widget"));
    }
}
