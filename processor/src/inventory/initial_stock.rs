//! The initial stock: the setting STOCK.

use std::collections::BTreeMap;
use std::str::FromStr;

use stock::{SKU_RULE, is_sku};

/// Settings of the inventory.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct InventoryConfig {
    /// Initial stock, such as `widget=100,gadget=5`. Existing SKUs keep their count.
    #[arg(long, env = "STOCK")]
    pub stock: Option<Stock>,
}

/// Units by SKU, each SKU once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stock(pub(super) BTreeMap<String, u64>);

impl FromStr for Stock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut stock = BTreeMap::new();
        for line in text.split(',') {
            let (sku, units) = parse_stock_line(line)?;
            if stock.insert(sku.clone(), units).is_some() {
                return Err(format!("\"{sku}\" is listed twice"));
            }
        }
        Ok(Self(stock))
    }
}

fn parse_stock_line(text: &str) -> Result<(String, u64), String> {
    let (sku, units) = text.split_once('=').ok_or("write it as SKU=UNITS, such as widget=100")?;
    if !is_sku(sku) {
        return Err(format!("\"{sku}\" is not a SKU: {SKU_RULE}"));
    }
    let units = units.parse().map_err(|_| format!("\"{units}\" is not a number of units"))?;
    Ok((sku.to_owned(), units))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stock_is_given_as_sku_and_units() {
        let stock = BTreeMap::from([("widget".to_owned(), 100), ("gadget".to_owned(), 5)]);
        assert_eq!("widget=100,gadget=5".parse(), Ok(Stock(stock)));
        for bad in [
            "",
            "widget=1,",
            "widget=1,gadget=2,widget=1",
            "widget",
            "=1",
            "wid get=1",
            "widget=-1",
            "widget=many",
            "a.b=1",
        ] {
            assert!(bad.parse::<Stock>().is_err(), "{bad}");
        }
    }
}
