//! Dead letters as lines of text.

use proto::operations::v1::{
    DeadLetter, DeadLetterGroup, DeadLetterReason, DeadLetterState, RedriveDeadLettersResponse,
    RedriveOutcome,
};

use crate::console::plain;
use crate::render::time_text;

/// A dead letter, one field a line.
pub(super) fn letter(letter: &DeadLetter) -> String {
    let time = |time: Option<_>| time_text(time.and_then(|time| std::time::SystemTime::try_from(time).ok()));
    let mut lines = vec![
        format!("letter       {}", letter.dead_letter_id),
        format!("state        {}", state(letter.state())),
        format!("reason       {}", reason(letter.reason())),
        format!("fingerprint  {}", letter.fingerprint),
        format!("order        {}", or_none(&letter.order_id)),
        format!(
            "message      {} at {}, stored {}",
            letter.subject,
            letter.sequence,
            time(letter.publish_time)
        ),
        format!("trace        {}", or_none(&letter.trace_id)),
        format!("created      {}", time(letter.create_time)),
    ];
    if !letter.previous_dead_letter_id.is_empty() {
        lines.push(format!("redriven from {}", letter.previous_dead_letter_id));
    }
    lines.extend(
        letter.headers.iter().map(|header| format!("header       {}: {}", header.name, header.value)),
    );
    lines.push(if letter.content_omitted {
        "payload      too large for the dead letter".to_owned()
    } else {
        format!("payload      {} bytes, see --payload", letter.payload.len())
    });
    lines.extend(
        letter
            .attempts
            .iter()
            .map(|attempt| format!("attempt      {}  {}", time(attempt.time), attempt.error)),
    );
    if let Some(resolution) = &letter.resolution {
        let (by, at) = (&resolution.operator, time(resolution.time));
        lines.push(format!("resolved     {at}  by {by}: {}", resolution.reason));
    }
    lines.iter().map(|line| plain(line)).collect::<Vec<_>>().join("\n")
}

/// A dead letter, on one line.
pub(super) fn letter_line(letter: &DeadLetter) -> String {
    let created = letter.create_time.and_then(|time| std::time::SystemTime::try_from(time).ok());
    let what = match &letter.resolution {
        Some(resolution) => format!("{}: {}", state(letter.state()), resolution.reason),
        None => letter.attempts.last().map(|attempt| attempt.error.clone()).unwrap_or_default(),
    };
    plain(&format!(
        "{}  {}  order {}  {}  {what}",
        time_text(created),
        letter.dead_letter_id,
        or_none(&letter.order_id),
        letter.fingerprint
    ))
}

/// The number of dead letters with one cause, on one line.
pub(super) fn group(group: &DeadLetterGroup) -> String {
    let DeadLetterGroup { count, step, fingerprint, sample_error, .. } = group;
    plain(&format!("{count:>7}  {step}  {}  {fingerprint}  {sample_error}", reason(group.reason())))
}

/// The outcome for a dead letter, on one line.
pub(super) fn answer(answer: &RedriveDeadLettersResponse) -> String {
    let what = outcome(answer.outcome());
    plain(&format!(
        "{}  order {}  {what}: {}",
        answer.dead_letter_id,
        or_none(&answer.order_id),
        answer.message
    ))
}

/// The outcome as people say it.
pub(super) fn outcome(outcome: RedriveOutcome) -> &'static str {
    match outcome {
        RedriveOutcome::Unspecified => "unknown",
        RedriveOutcome::Redriven => "redriven",
        RedriveOutcome::WouldRedrive => "would be redriven",
        RedriveOutcome::AlreadyResolved => "already resolved",
        RedriveOutcome::OrderWentOn => "order went on",
        RedriveOutcome::NotRedrivable => "not redrivable",
        RedriveOutcome::CanaryPassed => "canary passed",
        RedriveOutcome::CanaryFailed => "canary failed",
    }
}

fn state(state: DeadLetterState) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("DEAD_LETTER_STATE_").unwrap_or(name)
}

fn reason(reason: DeadLetterReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("DEAD_LETTER_REASON_").unwrap_or(name)
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}
