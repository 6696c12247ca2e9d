//! A CreateOrderRequest in a file, in protobuf's JSON mapping (<https://protobuf.dev/programming-guides/json/>).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, ensure};
use prost_reflect::{DescriptorPool, DynamicMessage};
use proto::orders::v1::CreateOrderRequest;

/// Largest file. The gateway takes much smaller requests, but JSON is longer.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// The path that stands for stdin.
const STDIN: &str = "-";

/// Reads the request in a file, or in stdin if its path is `-`.
pub(crate) fn read(path: &Path) -> anyhow::Result<CreateOrderRequest> {
    let from_stdin = path.as_os_str() == STDIN;
    let name = if from_stdin { "stdin".to_owned() } else { path.display().to_string() };
    let text = if from_stdin { read_bounded(io::stdin()) } else { File::open(path).and_then(read_bounded) };
    let text = text.with_context(|| format!("{name} cannot be read"))?;
    ensure!(text.len() as u64 <= FILE_BYTES_MAX, "{name} is larger than {FILE_BYTES_MAX} bytes");
    parse(&text).with_context(|| format!("{name} is not a CreateOrderRequest in JSON"))
}

fn read_bounded(input: impl Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    input.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// Field names may be written as in the proto file or in camel case.
fn parse(text: &[u8]) -> anyhow::Result<CreateOrderRequest> {
    let contract = DescriptorPool::decode(proto::DESCRIPTOR_SET)?;
    let request =
        contract.get_message_by_name("orders.v1.CreateOrderRequest").context("not in the contract")?;
    let mut json = serde_json::Deserializer::from_slice(text);
    let mut place = serde_path_to_error::Track::new();
    let message =
        DynamicMessage::deserialize(request, serde_path_to_error::Deserializer::new(&mut json, &mut place));
    let message = message.map_err(|error| {
        let path = place.path().to_string();
        // The message itself.
        if path == "." { anyhow::Error::from(error) } else { anyhow::anyhow!("{path}: {error}") }
    })?;
    json.end()?;
    Ok(message.transcode_to()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::orders::v1::PostalAddress;

    fn wrong(text: &str) -> String {
        format!("{:#}", parse(text.as_bytes()).unwrap_err())
    }

    #[test]
    fn both_spellings_of_a_field_count() {
        let text = r#"{"customer_id": "ada", "requestId": "r-1", "payment_method": "tok_1", "note": "ring twice",
            "metadata": {"channel": "web"}, "shippingAddress": {"region_code": "CH", "addressLines": ["Street 1"]},
            "items": [{"sku": "widget", "quantity": 2, "unit_price": {"currency_code": "EUR", "minor_units": "350"},
                "name": "Widget", "metadata": {"color": "blue"}}]}"#;
        let request = parse(text.as_bytes()).unwrap();
        assert_eq!((request.customer_id.as_str(), request.request_id.as_str()), ("ada", "r-1"));
        assert_eq!((request.payment_method.as_str(), request.note.as_str()), ("tok_1", "ring twice"));
        assert_eq!(request.metadata["channel"], "web");
        let address = PostalAddress {
            region_code: "CH".to_owned(),
            address_lines: vec!["Street 1".to_owned()],
            ..PostalAddress::default()
        };
        assert_eq!(request.shipping_address, Some(address));
        let item = &request.items[0];
        assert_eq!((item.quantity, item.name.as_str()), (2, "Widget"));
        assert_eq!(item.unit_price.as_ref().unwrap().minor_units, 350);
        assert_eq!(item.metadata["color"], "blue");
    }

    #[test]
    fn an_error_names_the_field() {
        let quantity = wrong(r#"{"items": [{"sku": "a", "quantity": "two"}]}"#);
        assert!(quantity.starts_with("items[0].quantity: "), "{quantity}");
        let metadata = wrong(r#"{"metadata": {"size": 3}}"#);
        assert!(metadata.starts_with("metadata.size: "), "{metadata}");
        let unknown = wrong(r#"{"customer": "ada"}"#);
        assert!(unknown.contains("'customer'"), "{unknown}");
        for (text, place) in
            [("[]", "line 1"), ("{\"note\": \"a\"", "line 1"), ("", "line 1"), ("{} {}", "line 1")]
        {
            assert!(wrong(text).contains(place), "{}", wrong(text));
        }
    }
}
