//! The rules of an order's items: of each, and of all together.

use backbone::log::lifecycle::{self, TotalError};
use proto::orders::v1::{Money, OrderItem};

use super::currency::is_currency;
use super::violations::Violations;

/// Longest sku, in characters.
const SKU_CHARS_MAX: usize = 64;
/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 200;
/// Most entries in the metadata of one item.
const METADATA_ENTRIES_MAX: usize = 10;
/// Most items of one order.
const ITEMS_MAX: usize = 100;
/// Most units of one item.
const QUANTITY_MAX: i32 = 1_000_000;

impl Violations {
    pub(super) fn check_items(&mut self, items: &[OrderItem]) {
        if items.is_empty() || items.len() > ITEMS_MAX {
            self.add("items", format_args!("must be 1-{ITEMS_MAX} items, not {}", items.len()));
        }
        for (i, item) in items.iter().enumerate().take(ITEMS_MAX) {
            self.check_text(format_args!("items[{i}].sku"), &item.sku, SKU_CHARS_MAX, "-_");
            if !(1..=QUANTITY_MAX).contains(&item.quantity) {
                self.add(
                    format_args!("items[{i}].quantity"),
                    format_args!("must be 1-{QUANTITY_MAX}, not {}", item.quantity),
                );
            }
            match &item.unit_price {
                Some(price) => self.check_price(i, price),
                None => self.add(format_args!("items[{i}].unit_price"), "is required"),
            }
            self.check_short_text(format_args!("items[{i}].name"), &item.name, NAME_CHARS_MAX);
            self.check_metadata(&format!("items[{i}].metadata"), &item.metadata, METADATA_ENTRIES_MAX);
        }
        self.check_currencies(items);
        self.check_total(items);
    }

    fn check_price(&mut self, i: usize, price: &Money) {
        if !is_currency(&price.currency_code) {
            self.add(
                format_args!("items[{i}].unit_price.currency_code"),
                "must be the ISO 4217 code of a currency in use, such as EUR",
            );
        }
        if price.minor_units < 0 {
            self.add(
                format_args!("items[{i}].unit_price.minor_units"),
                format_args!("must be 0 or more, not {}", price.minor_units),
            );
        }
    }

    /// The first valid currency is the order's.
    fn check_currencies(&mut self, items: &[OrderItem]) {
        let Some((first, of_order)) =
            items.iter().enumerate().find_map(|(i, item)| Some((i, currency(item)?)))
        else {
            return;
        };
        for (i, item) in items.iter().enumerate().take(ITEMS_MAX) {
            if let Some(own) = currency(item).filter(|own| *own != of_order) {
                self.add(
                    format_args!("items[{i}].unit_price.currency_code"),
                    format_args!("must be {of_order} like that of items[{first}], not {own}"),
                );
            }
        }
    }

    /// For an order that breaks a rule, the total counts valid items only: it is a lower bound.
    fn check_total(&mut self, items: &[OrderItem]) {
        let total = if self.is_empty() {
            lifecycle::total(items)
        } else {
            let of_order = items.iter().find_map(currency);
            let countable = |item: &&OrderItem| {
                item.quantity > 0
                    && currency(item) == of_order
                    && item.unit_price.as_ref().is_some_and(|price| price.minor_units >= 0)
            };
            lifecycle::total(&items.iter().take(ITEMS_MAX).filter(countable).cloned().collect::<Vec<_>>())
        };
        match total {
            Err(error @ TotalError::Overflow) => self.add("items", error),
            // Reported for each item.
            Ok(_) | Err(TotalError::MixedCurrencies | TotalError::Unpriced) => {}
        }
    }
}

/// The item's currency, if it is valid.
fn currency(item: &OrderItem) -> Option<&str> {
    let code = item.unit_price.as_ref()?.currency_code.as_str();
    is_currency(code).then_some(code)
}
