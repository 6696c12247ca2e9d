//! The rules of every field of the operators' requests. All that a request breaks is reported at once.

use std::num::NonZeroU32;
use std::time::Duration;

use backbone::dead_letters::LetterId;
use backbone::log::ids::Revision;
use backbone::log::subjects::is_step_name;
use proto::operations::v1::{
    DeadLetterFilter, DiscardDeadLetterRequest, ListDeadLettersRequest, RedriveDeadLettersRequest,
};
use tonic::Status;

use super::filter::Filter;
use super::page::EXAMINED_MAX;
use crate::errors;
use crate::validation::Violations;

const PAGE_SIZE_DEFAULT: usize = 50;
const PAGE_SIZE_MAX: usize = 500;
/// Maximum number of dead letters that a redrive names.
const IDS_MAX: usize = 1000;
const RATE_DEFAULT: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);
const RATE_MAX: u32 = 1000;
/// Longest reason of a discard, in characters.
const REASON_CHARS_MAX: usize = 512;
const FINGERPRINT_CHARS: usize = 12;

/// A page that may be read.
#[derive(Debug)]
pub(super) struct PageRequest {
    pub(super) filter: Filter,
    pub(super) size: usize,
    pub(super) from: Option<Revision>,
}

/// The dead letters to redrive.
#[derive(Debug)]
pub(super) enum Selection {
    Ids(Vec<LetterId>),
    Filter(Filter),
}

/// A redrive that may begin.
#[derive(Debug)]
pub(super) struct RedriveRequest {
    pub(super) selection: Selection,
    pub(super) dry_run: bool,
    pub(super) rate_per_second: NonZeroU32,
    pub(super) limit: usize,
    pub(super) canary: bool,
}

/// Checks the id of a dead letter.
pub(super) fn letter_id(text: &str) -> Result<LetterId, Status> {
    let mut violations = Violations::default();
    let id = check_id(&mut violations, "dead_letter_id", text);
    violations.into_result()?;
    // Unreachable: a missing id is a violation.
    id.ok_or_else(errors::internal)
}

/// Checks a ListDeadLettersRequest.
pub(super) fn page(request: ListDeadLettersRequest) -> Result<PageRequest, Status> {
    let mut violations = Violations::default();
    let filter = check_filter(&mut violations, request.filter.unwrap_or_default());
    let size = violations.page_size(request.page_size, PAGE_SIZE_MAX, PAGE_SIZE_DEFAULT);
    let mut from = None;
    if !request.page_token.is_empty() {
        from = filter.parse(&request.page_token);
        if from.is_none() {
            let rule = "must be the next_page_token of an answer for the same filter, or empty";
            violations.add("page_token", rule);
        }
    }
    violations.into_result()?;
    Ok(PageRequest { filter, size, from })
}

/// Checks a RedriveDeadLettersRequest.
pub(super) fn redrive(request: RedriveDeadLettersRequest) -> Result<RedriveRequest, Status> {
    let mut violations = Violations::default();
    let RedriveDeadLettersRequest { dead_letter_ids, filter, dry_run, rate_per_second, limit, canary } =
        request;
    if dead_letter_ids.is_empty() == filter.is_none() {
        violations.add(
            "dead_letter_ids",
            "either these or a filter is required; an empty filter means every dead letter",
        );
    }
    if dead_letter_ids.len() > IDS_MAX {
        violations
            .add("dead_letter_ids", format!("must be at most {IDS_MAX}, not {}", dead_letter_ids.len()));
    }
    let mut ids = Vec::new();
    for (i, text) in dead_letter_ids.iter().take(IDS_MAX).enumerate() {
        let id = check_id(&mut violations, &format!("dead_letter_ids[{i}]"), text);
        // Without duplicates.
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    let selection = match filter {
        Some(filter) => Selection::Filter(check_filter(&mut violations, filter)),
        None => Selection::Ids(ids),
    };
    let rate = u32::try_from(rate_per_second).ok().filter(|rate| *rate <= RATE_MAX);
    if rate.is_none() {
        let rule = format!("must be 1-{RATE_MAX}, or 0 for {RATE_DEFAULT}, not {rate_per_second}");
        violations.add("rate_per_second", rule);
    }
    let limit_checked = usize::try_from(limit).ok().filter(|limit| *limit <= EXAMINED_MAX);
    if limit_checked.is_none() {
        let rule = format!("must be 1-{EXAMINED_MAX}, or 0 for {EXAMINED_MAX}, not {limit}");
        violations.add("limit", rule);
    }
    violations.into_result()?;
    Ok(RedriveRequest {
        selection,
        dry_run,
        rate_per_second: rate.and_then(NonZeroU32::new).unwrap_or(RATE_DEFAULT),
        limit: limit_checked.filter(|limit| *limit > 0).unwrap_or(EXAMINED_MAX),
        canary,
    })
}

/// Checks a DiscardDeadLetterRequest.
pub(super) fn discard(request: DiscardDeadLetterRequest) -> Result<(LetterId, String), Status> {
    let mut violations = Violations::default();
    let id = check_id(&mut violations, "dead_letter_id", &request.dead_letter_id);
    let reason = request.reason;
    if reason.trim().is_empty() {
        violations.add("reason", "is required");
    } else if reason.chars().count() > REASON_CHARS_MAX || reason.chars().any(char::is_control) {
        let rule = format!("must be 1-{REASON_CHARS_MAX} characters, none of them a control character");
        violations.add("reason", rule);
    }
    violations.into_result()?;
    Ok((id.ok_or_else(errors::internal)?, reason))
}

fn check_id(violations: &mut Violations, field: &str, text: &str) -> Option<LetterId> {
    match text.parse() {
        Ok(id) => Some(id),
        Err(error) => {
            let problem = if text.is_empty() { "is required" } else { "is malformed" };
            violations.add(field, format!("{problem}: {error}"));
            None
        }
    }
}

fn check_filter(violations: &mut Violations, filter: DeadLetterFilter) -> Filter {
    let DeadLetterFilter { step, fingerprint, older_than } = filter;
    if !step.is_empty() && !is_step_name(&step) {
        violations.add("filter.step", "must be the name of a step, such as inventory, or empty");
    }
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    if !fingerprint.is_empty() && (fingerprint.len() != FINGERPRINT_CHARS || !fingerprint.chars().all(is_hex))
    {
        let rule = format!("must be {FINGERPRINT_CHARS} characters of 0-9 and a-f, or empty");
        violations.add("filter.fingerprint", rule);
    }
    let older_than = Duration::try_from(older_than.unwrap_or_default()).unwrap_or_else(|_| {
        violations.add("filter.older_than", "must be 0 or more");
        Duration::ZERO
    });
    Filter { step, fingerprint, older_than }
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
        let filter = DeadLetterFilter {
            step: "a.b".to_owned(),
            fingerprint: "nonsense".to_owned(),
            older_than: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        };
        let list = ListDeadLettersRequest {
            filter: Some(filter.clone()),
            page_size: 501,
            page_token: "?".to_owned(),
        };
        assert_eq!(
            fields(&page(list).unwrap_err()),
            ["filter.step", "filter.fingerprint", "filter.older_than", "page_size", "page_token"]
        );
        let request = RedriveDeadLettersRequest {
            dead_letter_ids: vec!["inventory-1".to_owned(), "inventory".to_owned()],
            rate_per_second: 1001,
            limit: -1,
            ..RedriveDeadLettersRequest::default()
        };
        assert_eq!(
            fields(&redrive(request).unwrap_err()),
            ["dead_letter_ids[1]", "rate_per_second", "limit"]
        );
        let discarded = discard(DiscardDeadLetterRequest::default());
        assert_eq!(fields(&discarded.unwrap_err()), ["dead_letter_id", "reason"]);
    }

    #[test]
    fn a_redrive_requires_ids_or_a_filter() {
        let refused = redrive(RedriveDeadLettersRequest::default()).unwrap_err();
        assert_eq!(fields(&refused), ["dead_letter_ids"]);
        let every = RedriveDeadLettersRequest {
            filter: Some(DeadLetterFilter::default()),
            ..RedriveDeadLettersRequest::default()
        };
        let request = redrive(every).unwrap();
        assert!(matches!(request.selection, Selection::Filter(_)));
        assert_eq!((request.rate_per_second.get(), request.limit), (10, EXAMINED_MAX));
    }

    #[test]
    fn a_page_token_belongs_to_its_filter() {
        let filter = Filter { step: "payment".to_owned(), ..Filter::default() };
        let token = filter.token(Revision(7));
        assert_eq!(filter.parse(&token), Some(Revision(7)));
        assert_eq!(Filter::default().parse(&token), None);
        assert_eq!(filter.parse("AQ"), None);
    }
}
