//! `aegis rules activate|history`: a rule comes to stand, and what stood before it. Through the control plane, or on its data folder.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use aegis_control::{RuleTest, RuleTrialError, RuleTrials, rule_change_by_operator};
use aegis_detect::{CommonRules, RuleSet};
use aegis_model::{Clock, SystemClock, TenantId};
use aegis_store::{OutboxRow, RuleChange, Store};
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::keys::ADMIN_KEY;
use super::{SAID_NO, backtest};
use crate::arguments::rules::{RuleHistoryArgs, RulePlace, RulesActivateArgs};
use crate::client::{Client, Reply};
use crate::rule_trial::{By, RuleTrial};

/// Versions that are shown.
pub(super) const MOST_SHOWN: u32 = 500;
/// The edge id of control's own events.
pub(super) const CONTROL: &str = "control";
pub(super) const OPERATOR: &str = "operator";

/// What came of it.
pub(super) enum Outcome {
    Stands(Value),
    Refused(String),
}

pub(crate) fn activate(args: &RulesActivateArgs) -> anyhow::Result<ExitCode> {
    let files = super::rules::rule_files(&args.path)?;
    let [file] = files.as_slice() else { bail!("{} holds {} rules; name one of them", args.path.display(), files.len()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let tests = tests_beside(file)?;
    let outcome = super::runtime()?.block_on(async {
        match &args.place.url {
            Some(url) => through_control(url, &text, &tests).await,
            None if args.every_tenant => super::every_tenant::activate(args, file, &text, &tests).await,
            None => on_folder(args, &text, &tests).await,
        }
    })?;
    Ok(say(&outcome, &format!("{} was not activated", file.display()), args.place.json))
}

/// Says what came of it.
pub(super) fn say(outcome: &Outcome, refused: &str, json: bool) -> ExitCode {
    match outcome {
        Outcome::Stands(stands) if json => println!("{stands}"),
        Outcome::Stands(stands) => {
            println!("{}", line_of(stands));
            eprintln!("it stands; detection takes it within seconds, or when the control plane starts");
        }
        Outcome::Refused(why) => {
            eprintln!("{refused}: {why}");
            return ExitCode::from(SAID_NO);
        }
    }
    ExitCode::SUCCESS
}

/// The tests beside a rule, as `aegis rules test` finds them.
fn tests_beside(file: &Path) -> anyhow::Result<Vec<RuleTest>> {
    let folder = file.parent().map(|folder| folder.join("tests")).unwrap_or_default();
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "yaml" || end == "yml"));
    files.sort();
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        anyhow::Ok(RuleTest { name, text })
    };
    files.into_iter().map(read).collect()
}

async fn through_control(url: &str, text: &str, tests: &[RuleTest]) -> anyhow::Result<Outcome> {
    let reply = Client::new(url).post("/v1/rules", &admin_key()?, &json!({"text": text, "tests": tests})).await?;
    match reply.status {
        201 => Ok(Outcome::Stands(reply.json())),
        409 | 422 => Ok(Outcome::Refused(said(&reply))),
        status => bail!("{url} answered {status}: {}", said(&reply)),
    }
}

pub(super) fn admin_key() -> anyhow::Result<String> {
    std::env::var(ADMIN_KEY).ok().with_context(|| format!("--url needs the admin key in the variable {ADMIN_KEY}"))
}

pub(super) fn said(reply: &Reply) -> String {
    reply.json()["error"]["message"].as_str().unwrap_or("no reason given").to_owned()
}

/// The rules that every tenant has where nobody changed them.
pub(super) fn program_rules(folder: Option<&Path>) -> anyhow::Result<CommonRules> {
    let rules = match folder {
        Some(folder) => RuleSet::load_dir(folder).with_context(|| format!("the rules in {}", folder.display()))?,
        None => RuleSet::shipped().context("the shipped rules")?,
    };
    Ok(rules.common())
}

async fn on_folder(args: &RulesActivateArgs, text: &str, tests: &[RuleTest]) -> anyhow::Result<Outcome> {
    let common = program_rules(args.rules.as_deref())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let data = args.place.folder();
    let store = backtest::open(&data, clock.clone()).await?;
    let tenant = one_tenant(&store, &args.place).await?;
    let trial = RuleTrial::new(store.clone(), &data, common, By::Operator, clock.clone());
    let outcome = change(&store, &tenant, &trial, text, tests, clock.as_ref()).await;
    store.close().await;
    outcome
}

async fn change(
    store: &Store,
    tenant: &TenantId,
    trial: &RuleTrial,
    text: &str,
    tests: &[RuleTest],
    clock: &dyn Clock,
) -> anyhow::Result<Outcome> {
    let version = match trial.read(text).await {
        Ok(version) => version,
        Err(error) => return refused(error),
    };
    if let Some(refusal) = store.may_change_rule(tenant, &version).await? {
        return Ok(Outcome::Refused(refusal.to_string()));
    }
    let version = match trial.try_out(tenant, version, tests).await {
        Ok(version) => version,
        Err(error) => return refused(error),
    };
    let draft = rule_change_by_operator(tenant, &version, CONTROL, clock.now());
    let payload = serde_json::to_string(&draft)?;
    let fact = OutboxRow { event_id: draft.event.event_id, tenant_id: tenant.clone(), payload };
    match store.put_rule_version(tenant, &version, OPERATOR, &[fact]).await? {
        RuleChange::Made { revision } => Ok(Outcome::Stands(json!({
            "rule_id": version.rule_id, "name": version.name, "version": version.version, "mode": version.mode, "hash": version.hash,
            "note": version.note, "backtest": version.backtest, "revision": revision,
        }))),
        RuleChange::Refused(refusal) => Ok(Outcome::Refused(refusal.to_string())),
    }
}

pub(super) fn refused(error: RuleTrialError) -> anyhow::Result<Outcome> {
    match error {
        RuleTrialError::Refused { message, .. } => Ok(Outcome::Refused(message)),
        RuleTrialError::Failed(cause) => bail!(cause),
    }
}

/// The tenant that is named, or the only one there is.
async fn one_tenant(store: &Store, place: &RulePlace) -> anyhow::Result<TenantId> {
    let named = backtest::tenants(store, place.tenant.as_deref()).await?;
    match named.as_slice() {
        [tenant] => Ok(tenant.clone()),
        [] => bail!("there is no tenant yet; `aegis keys create` makes one"),
        _ => bail!("there are {} tenants; name one with --tenant", named.len()),
    }
}

pub(crate) fn history(args: &RuleHistoryArgs) -> anyhow::Result<ExitCode> {
    if let Some(rule) = &args.rule
        && !rule.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    {
        bail!("`{rule}` is no id of a rule");
    }
    if args.sets {
        return super::rule_sets::history(&args.place, args.rule.as_deref());
    }
    let versions = super::runtime()?.block_on(async {
        match &args.place.url {
            Some(url) => history_of_control(url, args.rule.as_deref(), args.every_tenant).await,
            None if args.every_tenant => super::every_tenant::history(&args.place.folder(), args.rule.as_deref()).await,
            None => history_of_folder(&args.place, args.rule.as_deref()).await,
        }
    })?;
    if args.place.json {
        println!("{}", Value::Array(versions));
    } else {
        versions.iter().for_each(|version| println!("{}", line_of(version)));
    }
    Ok(ExitCode::SUCCESS)
}

/// The versions, and of those that the key's tenant has to wait for, from when on they act at the latest.
async fn history_of_control(url: &str, rule: Option<&str>, every_tenant: bool) -> anyhow::Result<Vec<Value>> {
    let mut versions = versions_of_control(url, rule, every_tenant).await?;
    let waiting = Client::new(url).get("/v1/rules/waiting", &admin_key()?).await?;
    if waiting.status != 200 {
        eprintln!("{url} does not say which of them wait until they know their window: {}", said(&waiting));
        return Ok(versions);
    }
    note_waiting(&mut versions, &waiting.json(), every_tenant);
    Ok(versions)
}

/// Notes of the newest version of each rule that waits from when on it acts at the latest. A rule may be a tenant's own, and every tenant's.
fn note_waiting(versions: &mut [Value], waiting: &Value, every_tenant: bool) {
    for wait in waiting.as_array().into_iter().flatten().filter(|wait| wait["own"] == json!(!every_tenant)) {
        let is_it = |version: &&mut Value| version["rule_id"] == wait["rule_id"] && version["version"] == wait["version"];
        if let Some(version) = versions.iter_mut().find(is_it).and_then(Value::as_object_mut) {
            version.insert("knows_at".to_owned(), wait["knows_at"].clone());
        }
    }
}

async fn versions_of_control(url: &str, rule: Option<&str>, every_tenant: bool) -> anyhow::Result<Vec<Value>> {
    let filter = rule.map(|rule| format!("&rule_id={rule}")).unwrap_or_default();
    let path = if every_tenant { "/v1/rules/common" } else { "/v1/rules" };
    let reply = Client::new(url).get(&format!("{path}?limit={MOST_SHOWN}{filter}"), &admin_key()?).await?;
    match reply.json() {
        Value::Array(versions) if reply.status == 200 => Ok(versions),
        _ => bail!("{url} answered {}: {}", reply.status, said(&reply)),
    }
}

async fn history_of_folder(place: &RulePlace, rule: Option<&str>) -> anyhow::Result<Vec<Value>> {
    let store = backtest::open(&place.folder(), Arc::new(SystemClock)).await?;
    let mut versions = Vec::new();
    for tenant in backtest::tenants(&store, place.tenant.as_deref()).await? {
        for version in store.list_rule_versions(&tenant, rule, MOST_SHOWN, 0).await? {
            versions.push(serde_json::to_value(version)?);
        }
    }
    store.close().await;
    Ok(versions)
}

/// A version on a line: what, since when and by whom, and what it would have told.
fn line_of(version: &Value) -> String {
    let word = |name: &str| version[name].as_str().unwrap_or_default().to_owned();
    let mut line = format!("{} {} v{} {}  {}", word("rule_id"), word("name"), version["version"], word("mode"), word("hash"));
    if version["of_program"] == json!(true) {
        line.push_str("  as the program has it");
    }
    let whose = version["tenant_id"].as_str().map_or_else(|| "every tenant".to_owned(), |tenant| format!("tenant {tenant}"));
    if version["changed_at"].is_string() {
        line.push_str(&format!("  {whose}, {} by {}", word("changed_at"), word("changed_by")));
    }
    line.push_str(&format!("\n  {}", word("note")));
    if let Some(knows_at) = version["knows_at"].as_str() {
        line.push_str(&format!(
            "\n  tells nothing of the tenant yet: it knows all of its window from {knows_at} on, or once it is filled"
        ));
    }
    let told = &version["backtest"];
    if let Some(own) = version["tenants_with_own"].as_i64().filter(|own| *own > 0) {
        line.push_str(&format!("\n  {own} tenants have one of their own under this id, and keep it"));
    }
    if told.is_object() {
        let (alerts, a_day, days, events) = (&told["alerts"], &told["alerts_per_day"], &told["days"], &told["events"]);
        line.push_str(&format!("\n  backtest  {alerts} alerts, {a_day} a day; {events} events of {days} days"));
        if told["whole"] != json!(true) {
            line.push_str(", and no more of them: there are too many");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_rule_that_waits_its_newest_version_says_so_and_of_others_of_its_id_none() {
        let version = |rule_id: &str, version: u32| json!({"rule_id": rule_id, "version": version, "note": "n"});
        let wait = |rule_id: &str, version: u32, own: bool| json!({"rule_id": rule_id, "name": "n", "version": version, "own": own, "knows_at": "2026-11-27T10:00:00.000000Z"});
        let waiting = json!([wait("A", 2, true), wait("B", 1, false), wait("C", 1, true)]);
        let told = |every_tenant| {
            let mut versions = vec![version("A", 2), version("A", 1), version("B", 1)];
            note_waiting(&mut versions, &waiting, every_tenant);
            versions.iter().map(|version| line_of(version).contains("tells nothing of the tenant yet")).collect::<Vec<_>>()
        };
        assert_eq!((told(false), told(true)), (vec![true, false, false], vec![false, false, true]));
        let mut versions = vec![version("A", 2)];
        note_waiting(&mut versions, &Value::Null, false);
        assert_eq!(versions, [version("A", 2)]);
    }
}
