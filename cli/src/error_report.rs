//! Errors as people read them: the gRPC code, the message, and what the google.rpc details add.

use std::collections::BTreeMap;
use std::error::Error;
use std::iter;
use std::time::Duration;

use proto::code_name;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::console::plain;

/// The whole error: one line, and below it one line for each detail.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Status>() {
        Some(status) => {
            let mut details = detail_lines(&status.get_error_details());
            details.extend(advice(status).map(str::to_owned));
            let lines = details.iter().map(|line| format!("\n  {}", plain(line)));
            headline(status) + &lines.collect::<String>()
        }
        None => format!("{error:#}"),
    }
}

/// What to do about it at the command line, where the gateway cannot know it.
fn advice(status: &Status) -> Option<&'static str> {
    // The connection was opened, and closed before a response.
    if matches!(status.code(), Code::Unknown | Code::Internal) && status.source().is_some() {
        return Some(
            "use https:// if the gateway has a certificate (TLS_CERT); OPS_ADDR does not serve gRPC",
        );
    }
    // Errors that the gateway makes itself have a message.
    if status.code() == Code::Unimplemented && status.message().is_empty() {
        return Some("not served at this address; --gateway is for clients, --operations for operators");
    }
    let reason = status.get_details_error_info().map(|info| info.reason);
    (reason.as_deref() == Some("CREDENTIAL_MISSING")).then_some(
        "pass --api-key or --token (WAYBILL_API_KEY, WAYBILL_TOKEN), or --cert and --key for a certificate",
    )
}

/// Code and message; for a broken connection also the root cause, from a chain that duplicates messages.
pub(crate) fn headline(status: &Status) -> String {
    let code = code_name(status.code());
    let text = match status.message() {
        "" => code.to_owned(),
        message => format!("{code}: {}", plain(message)),
    };
    let root = iter::successors(status.source(), |&error| error.source()).last();
    match root.map(ToString::to_string) {
        Some(cause) if !text.ends_with(&cause) => format!("{text}: {cause}"),
        Some(_) | None => text,
    }
}

fn detail_lines(details: &ErrorDetails) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(bad_request) = details.bad_request() {
        for violation in &bad_request.field_violations {
            lines.push(format!("{}: {}", violation.field, violation.description));
        }
    }
    if let Some(failure) = details.precondition_failure() {
        for violation in &failure.violations {
            lines.push(format!("{} {}: {}", violation.r#type, violation.subject, violation.description));
        }
    }
    if let Some(failure) = details.quota_failure() {
        for violation in &failure.violations {
            lines.push(format!("quota of {}: {}", violation.subject, violation.description));
        }
    }
    if let Some(resource) = details.resource_info() {
        lines.push(format!("{}: {}", resource.resource_type, resource.resource_name));
    }
    if let Some(info) = details.error_info() {
        // A map has no order, and the same error must always read the same.
        let metadata: BTreeMap<_, _> = info.metadata.iter().collect();
        let metadata = metadata.iter().map(|(key, value)| format!(", {key}: {value}"));
        lines.push(format!("reason: {}{}", info.reason, metadata.collect::<String>()));
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        lines.push(format!("retry in {}", humantime::format_duration(rounded_up(delay))));
    }
    lines
}

/// Rounded to milliseconds.
fn rounded_up(delay: Duration) -> Duration {
    let millis = delay.as_nanos().div_ceil(1_000_000);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_detail_gets_its_line() {
        let mut details = ErrorDetails::new();
        details
            .add_bad_request_violation("items[0].sku", "must not be empty")
            .add_bad_request_violation("customer_id", "is required")
            .set_error_info("REQUEST_ID_REUSED", "waybill", HashMap::new())
            .set_retry_info(Some(Duration::from_nanos(1_499_000_001)));
        let status = Status::with_error_details(Code::InvalidArgument, "2 invalid fields", details);
        assert_eq!(
            explain(&status.into()),
            "INVALID_ARGUMENT: 2 invalid fields\n  items[0].sku: must not be empty\n  customer_id: is required\
             \n  reason: REQUEST_ID_REUSED\n  retry in 1s 500ms"
        );
    }

    #[test]
    fn advice_for_the_command_line_is_added() {
        let elsewhere = explain(&Status::unimplemented("").into());
        assert!(
            elsewhere.starts_with("UNIMPLEMENTED\n  not served at this address; --gateway"),
            "{elsewhere}"
        );
        let missing = ErrorDetails::with_error_info("CREDENTIAL_MISSING", "waybill", HashMap::new());
        let missing = Status::with_error_details(Code::Unauthenticated, "asks for a credential", missing);
        assert!(explain(&missing.into()).ends_with("--cert and --key for a certificate"));
    }

    #[test]
    fn a_local_error_shows_its_causes() {
        let error = anyhow::anyhow!("no such file").context("cannot lock");
        assert_eq!(explain(&error), "cannot lock: no such file");
    }
}
