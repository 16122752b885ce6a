//! `aegis rules explain`: why a rule did or did not fire on an event of the history, or of the lake.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use aegis_detect::{Explain, Explanation};
use aegis_lake::{Replay, find_event, stored_to};
use aegis_model::{Clock, EventId, SecurityEvent, SystemClock, TenantId, Timestamp};
use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::backtest::{History, Progress, open, span_of, tenants, time};
use super::{BAD_INPUT, SAID_NO};
use crate::arguments::rules::ExplainArgs;

pub(crate) fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let event_id: EventId = args.event.parse().with_context(|| format!("{}: not an event's id", args.event))?;
    let files = super::rules::rule_files(&args.path)?;
    let [file] = files.as_slice() else { bail!("{} has {} rules; name one of them", args.path.display(), files.len()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let runtime = super::runtime()?;
    let explained = if args.lake {
        // It has its events itself, so that none is gone.
        runtime.block_on(run_over_lake(event_id, file, &text, args))?.map(|explanation| (explanation, 0))
    } else {
        runtime.block_on(run(event_id, file, &text, args))?
    };
    let Some((explanation, gone)) = explained else {
        if args.json {
            println!("{}", json!({"event_id": event_id, "exists": false, "fired": false}));
        } else {
            let place = if args.lake { "lake" } else { "history" };
            println!("event     {event_id}: not in the {place} of {}", args.tenant.as_deref().unwrap_or("any tenant"));
        }
        return Ok(ExitCode::from(BAD_INPUT));
    };
    if args.json {
        let mut fields = serde_json::to_value(&explanation)?;
        fields["exists"] = true.into();
        fields["gone"] = gone.into();
        println!("{fields}");
    } else {
        if gone > 0 {
            println!("gone      {gone} events around it, whose text is not there any more: the rule does not see them");
        }
        println!("{explanation}");
    }
    Ok(if explanation.fired { ExitCode::SUCCESS } else { ExitCode::from(SAID_NO) })
}

/// Also how many events around it are gone. None: no tenant has the event.
async fn run(event_id: EventId, file: &Path, text: &str, args: &ExplainArgs) -> anyhow::Result<Option<(Explanation, u64)>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = open(&args.data, Arc::clone(&clock)).await?;
    let mut found = Vec::new();
    for tenant in tenants(&store, args.tenant.as_deref()).await? {
        let mut all = store.history_events(&tenant, event_id, None).await?;
        if all.len() > 1 {
            eprintln!(
                "{} events of {tenant} have the id {event_id}; this is about the first, as `GET /v1/receipts/{event_id}` has it",
                all.len()
            );
        }
        all.truncate(1);
        found.extend(all);
    }
    let Some(row) = the_only(found, event_id)? else { return Ok(None) };
    let mut history = History::new(&store, &args.data);
    let event = history.events(std::slice::from_ref(&row)).await?.pop();
    let event = event.with_context(|| format!("event {event_id} is listed, and its text is gone"))?;

    let (mut explain, span) = begin(file, text, event, clock, args)?;
    let mut progress = Progress::new();
    let mut after = 0;
    while let Some(events) = history.page(&row.tenant_id, &mut after, span).await? {
        progress.passed(events.len());
        for next in events {
            explain.take(next)?;
        }
    }
    progress.done();
    store.close().await;
    Ok(Some((explain.finish()?, history.gone)))
}

/// The same over the lake.
async fn run_over_lake(event_id: EventId, file: &Path, text: &str, args: &ExplainArgs) -> anyhow::Result<Option<Explanation>> {
    let store = crate::lake::find(args.config.as_deref(), &args.data)?;
    let there = match &args.tenant {
        Some(tenant) => BTreeSet::from([TenantId::new(tenant).context("--tenant")?]),
        None => aegis_lake::tenants(&store).await?,
    };
    // Asked first: what is read after it has at least that.
    let known_to = stored_to(&store).await?;
    let mut found = Vec::new();
    for tenant in there {
        found.extend(find_event(&store, &tenant, event_id).await?);
    }
    let Some(event) = the_only(found, event_id)? else { return Ok(None) };
    let tenant = event.tenant_id.clone();
    let (explain, span) = begin(file, text, event, Arc::new(SystemClock), args)?;
    let mut explain = explain.in_order(known_to);
    let mut progress = Progress::new();
    let mut replay = Replay::open(Arc::clone(&store), &tenant, None, span_of(span)).await?;
    while let Some(events) = replay.next().await? {
        progress.passed(events.len());
        for next in events {
            explain.take_shared(next)?;
        }
    }
    progress.done();
    Ok(Some(explain.finish()?))
}

/// What one tenant has. None: no tenant has it.
fn the_only<T>(mut found: Vec<T>, event_id: EventId) -> anyhow::Result<Option<T>> {
    ensure!(found.len() <= 1, "{} tenants have an event {event_id}; name one with --tenant", found.len());
    Ok(found.pop())
}

/// A rule and an event, and of which time events are to be shown.
fn begin(
    file: &Path,
    text: &str,
    event: SecurityEvent,
    clock: Arc<dyn Clock>,
    args: &ExplainArgs,
) -> anyhow::Result<(Explain, (Timestamp, Timestamp))> {
    let (from, to) = (time(args.from.as_deref(), "--from")?, time(args.to.as_deref(), "--to")?);
    let at = event.ts;
    let mut explain = Explain::new(text, file, event, clock)?;
    let (first, last) = explain.span();
    let span = (from.unwrap_or(first), to.unwrap_or(last));
    ensure!(span.0 <= at && at < span.1, "the event is of {at}, which --from and --to leave out");
    if let Some(to) = to {
        explain.know_to(to);
    }
    Ok((explain, span))
}
