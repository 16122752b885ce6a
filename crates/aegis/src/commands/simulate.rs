//! `aegis policy simulate`: what policies would decide about calls on record, before they run.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;

use aegis_model::Decision;
use aegis_policy::{PolicyBundle, RecordedCall, UNKNOWN_ACTION, compare, simulate as decide};
use anyhow::Context;
use serde_json::json;

use super::SAID_NO;
use super::policy::{read_packs, read_sources, read_tools};
use crate::arguments::policy::SimulateArgs;

pub(crate) fn simulate(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    let tools = read_tools(args.tools.as_deref())?;
    let calls = read_calls(&args.calls)?;
    let packs = read_packs(args.packs.as_deref().unwrap_or(Path::new("")))?;
    let load = |files| anyhow::Ok(PolicyBundle::load(&[packs.clone(), read_sources(files)?].concat(), &tools));
    let (running, candidate) = match (load(&args.running)?, load(&args.files)?) {
        (Ok(running), Ok(candidate)) => (running, candidate),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("{error}");
            return Ok(ExitCode::from(SAID_NO));
        }
    };
    let outcomes = decide(&candidate, &calls);
    let changes = compare(&running, &candidate, &calls);
    if args.json {
        let mut changes = changes.iter().peekable();
        for (index, outcome) in outcomes.iter().enumerate() {
            let before = changes.next_if(|change| change.call == index).map(|change| &change.before);
            println!("{}", json!({"call": index + 1, "outcome": outcome, "changed_from": before}));
        }
        return Ok(ExitCode::SUCCESS);
    }
    for change in &changes {
        let call = &calls[change.call];
        println!(
            "call {}: {}/{} by {}: {} -> {} ({}; policies: {})",
            change.call + 1,
            call.tool.escape_debug(),
            call.action.escape_debug(),
            call.agent_id.escape_debug(),
            change.before.decision,
            change.after.decision,
            change.after.reason,
            change.after.matched_policies.join(", "),
        );
    }
    let count = |wanted: Decision| outcomes.iter().filter(|outcome| outcome.decision == wanted).count();
    println!(
        "{} calls: {} allow, {} deny, {} require_approval; {} would be decided otherwise than now",
        calls.len(),
        count(Decision::Allow),
        count(Decision::Deny),
        count(Decision::RequireApproval),
        changes.len()
    );
    let unknown = outcomes.iter().filter(|outcome| outcome.code == Some(UNKNOWN_ACTION)).count();
    if unknown > 0 {
        println!("{unknown} of them name an action that --tools does not register: they are denied before any policy is asked");
    }
    Ok(ExitCode::SUCCESS)
}

fn read_calls(file: &Path) -> anyhow::Result<Vec<RecordedCall>> {
    let input: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?))
    };
    let mut calls = Vec::new();
    for (line, text) in input.lines().enumerate() {
        let place = || format!("{}, line {}", file.display(), line + 1);
        let text = text.with_context(place)?;
        if !text.trim().is_empty() {
            let value = aegis_canon::parse_strict(text.as_bytes()).with_context(place)?;
            calls.push(serde_json::from_value(value).with_context(|| format!("{}: not a call on record", place()))?);
        }
    }
    Ok(calls)
}
