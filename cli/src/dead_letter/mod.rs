//! `waybill dead-letter`: the messages that the steps have given up, and how to resolve them.

mod args;
mod render;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use proto::operations::v1::{
    DeadLetter, DeadLetterFilter, DiscardDeadLetterRequest, GetDeadLetterRequest, ListDeadLettersRequest,
    RedriveDeadLettersRequest, RedriveOutcome,
};

pub(crate) use args::DeadLetterArgs;
use args::{DeadLetterCommand, FilterArgs, RedriveArgs};

use crate::client::{self, DeadLetters};
use crate::console;

/// Dead letters requested at once.
const PAGE_SIZE_MAX: u32 = 500;

/// Runs one of the commands until it ends or its output is closed.
pub(crate) async fn run(args: DeadLetterArgs) -> anyhow::Result<()> {
    match execute(args).await {
        Err(error) if console::reader_is_gone(&error) => Ok(()),
        ended => ended,
    }
}

async fn execute(args: DeadLetterArgs) -> anyhow::Result<()> {
    if let DeadLetterCommand::Redrive(redrive_args) = &args.command {
        redrive_args.check()?;
    }
    let letters = client::connect_operations(args.gateway).await?;
    match args.command {
        DeadLetterCommand::List { filter, limit } => list(letters, &filter, limit).await,
        DeadLetterCommand::Get { dead_letter_id, payload } => {
            let letter = get(letters, dead_letter_id).await?;
            console::answer(&render::letter(&letter))?;
            if let Some(path) = payload {
                if letter.content_omitted {
                    bail!(
                        "the payload was too large for the dead letter; read it from stream ORDERS at sequence {}",
                        letter.sequence
                    );
                }
                std::fs::write(&path, &letter.payload)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
            Ok(())
        }
        DeadLetterCommand::Redrive(redrive_args) => redrive(letters, redrive_args).await,
        DeadLetterCommand::Discard { dead_letter_id, reason } => {
            discard(letters, dead_letter_id, reason).await
        }
    }
}

async fn list(mut letters: DeadLetters, filter: &FilterArgs, limit: u32) -> anyhow::Result<()> {
    let (mut page_token, mut wanted) = (String::new(), limit);
    loop {
        let request = ListDeadLettersRequest {
            filter: Some(filter_of(filter)?),
            page_size: wanted.min(PAGE_SIZE_MAX).try_into()?,
            page_token,
        };
        let answer = client::answer(letters.list_dead_letters(request)).await?;
        if wanted == limit && !answer.groups.is_empty() {
            let incomplete = if answer.groups_incomplete { ", and more that were not counted" } else { "" };
            let groups: Vec<_> = answer.groups.iter().map(render::group).collect();
            console::answer(&format!("{}{incomplete}\n", groups.join("\n")))?;
        }
        for letter in &answer.dead_letters {
            console::answer(&render::letter_line(letter))?;
        }
        wanted = wanted.saturating_sub(answer.dead_letters.len().try_into()?);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            if wanted == limit {
                console::warn("no dead letters found");
            }
            return Ok(());
        }
        if wanted == 0 {
            console::warn(&format!("these are the oldest {limit}; there are more, see --limit"));
            return Ok(());
        }
    }
}

async fn get(mut letters: DeadLetters, dead_letter_id: String) -> anyhow::Result<DeadLetter> {
    let answer = client::answer(letters.get_dead_letter(GetDeadLetterRequest { dead_letter_id })).await?;
    answer.dead_letter.context("the gateway answered without a dead letter")
}

async fn redrive(mut letters: DeadLetters, args: RedriveArgs) -> anyhow::Result<()> {
    let filter = if args.dead_letter_ids.is_empty() { Some(filter_of(&args.filter)?) } else { None };
    let request = RedriveDeadLettersRequest {
        dead_letter_ids: args.dead_letter_ids,
        filter,
        dry_run: args.dry_run,
        rate_per_second: args.rate,
        limit: args.limit,
        canary: args.canary,
    };
    let mut answers = client::answer(letters.redrive_dead_letters(request)).await?;
    let mut counts = BTreeMap::<_, usize>::new();
    let mut canary_failed = false;
    while let Some(answer) = answers.message().await? {
        console::answer(&render::answer(&answer))?;
        canary_failed |= answer.outcome() == RedriveOutcome::CanaryFailed;
        *counts.entry(render::outcome(answer.outcome())).or_default() += 1;
    }
    let counts: Vec<_> = counts.into_iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    console::warn(&if counts.is_empty() {
        "no open dead letter matches".to_owned()
    } else {
        counts.join(", ")
    });
    if canary_failed {
        bail!("the canary did not finish; nothing else was redriven");
    }
    Ok(())
}

async fn discard(mut letters: DeadLetters, dead_letter_id: String, reason: String) -> anyhow::Result<()> {
    let request = DiscardDeadLetterRequest { dead_letter_id, reason };
    let answer = client::answer(letters.discard_dead_letter(request)).await?;
    let letter = answer.dead_letter.context("the gateway answered without a dead letter")?;
    console::answer(&render::letter_line(&letter))?;
    Ok(())
}

fn filter_of(args: &FilterArgs) -> anyhow::Result<DeadLetterFilter> {
    let older_than = args.older_than.map(|time| Duration::from(time).try_into()).transpose();
    Ok(DeadLetterFilter {
        step: args.step.clone(),
        fingerprint: args.fingerprint.clone(),
        older_than: older_than.context("--older-than is too long")?,
    })
}
