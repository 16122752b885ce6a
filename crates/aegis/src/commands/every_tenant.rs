//! `aegis rules activate --every-tenant`, `aegis rules switch` and `aegis rules history --every-tenant`: what an operator makes, on the control plane's data
//! folder, of the rules that every tenant has. Promises that none stands that was not tried, and that each change is receipted in every tenant's lane.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use aegis_control::{RuleTest, common_rule_change_by_operator};
use aegis_detect::{CommonRules, Rule, switched};
use aegis_model::{Clock, RuleMode, SystemClock, TenantId};
use aegis_store::{NewRuleVersion, OutboxRow, RuleChange, Store, StoreError};
use anyhow::Context;
use serde_json::{Value, json};

use super::activate::{CONTROL, MOST_SHOWN, OPERATOR, Outcome, program_rules, refused, say};
use super::backtest;
use crate::arguments::rules::{RuleSwitchArgs, RulesActivateArgs};
use crate::rule_trial::{By, RuleTrial};

/// The word for what the program has.
const PROGRAM: &str = "program";
/// The characters of a date.
const DATE: usize = 10;

/// What a change is made on.
struct Place {
    store: Store,
    common: CommonRules,
    trial: RuleTrial,
    clock: Arc<dyn Clock>,
}

impl Place {
    async fn open(data: &Path, rules: Option<&Path>) -> anyhow::Result<Self> {
        let common = program_rules(rules)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = backtest::open(data, clock.clone()).await?;
        let trial = RuleTrial::new(store.clone(), data, common.clone(), By::Operator, clock.clone());
        Ok(Self { store, common, trial, clock })
    }

    /// Tries a version, and makes it the one that stands. Without tests it is a query of which it is known that they are green.
    async fn change(&self, version: NewRuleVersion, file: &Path, tests: Option<&[RuleTest]>) -> anyhow::Result<Outcome> {
        if let Some(refusal) = self.store.may_change_common_rule(&version).await? {
            return Ok(Outcome::Refused(refusal.to_string()));
        }
        match self.trial.try_common(version, file, tests).await {
            Ok(version) => self.put(version).await,
            Err(error) => refused(error),
        }
    }

    async fn put(&self, version: NewRuleVersion) -> anyhow::Result<Outcome> {
        let of_program = self.common.text(&version.rule_id).map(|(_, hash)| hash);
        let now = self.clock.now();
        let fact = |tenant: &TenantId| -> Result<OutboxRow, StoreError> {
            let draft = common_rule_change_by_operator(tenant, &version, CONTROL, now);
            let payload = serde_json::to_string(&draft)
                .map_err(|_| StoreError::Invalid { what: "the draft of a receipt", why: "cannot be written" })?;
            Ok(OutboxRow { event_id: draft.event.event_id, tenant_id: tenant.clone(), payload })
        };
        match self.store.put_common_rule_version(&version, of_program, OPERATOR, fact).await? {
            RuleChange::Made { revision } => Ok(Outcome::Stands(json!({
                "rule_id": version.rule_id, "name": version.name, "version": version.version, "mode": version.mode, "hash": version.hash,
                "note": version.note, "backtest": version.backtest, "revision": revision, "of_program": version.text.is_empty(),
                "tenants_with_own": self.store.tenants_with_own_rule(&version.rule_id).await?,
            }))),
            RuleChange::Refused(refusal) => Ok(Outcome::Refused(refusal.to_string())),
        }
    }

    /// The rule as it stands, with another mode.
    async fn switch(&self, args: &RuleSwitchArgs) -> anyhow::Result<Outcome> {
        let id = args.rule.as_str();
        if args.note.trim().is_empty() || args.note.chars().any(char::is_control) {
            return Ok(Outcome::Refused("--note is one line that says something".to_owned()));
        }
        let changed = self.store.standing_common_rules().await?;
        let changed = changed.into_iter().find(|rule| rule.rule_id == id && !rule.is_of_program());
        let of_program = self.common.text(id).map(|(text, _)| text);
        if args.mode == PROGRAM {
            let Some(text) = of_program else { return Ok(Outcome::Refused(format!("the program has no rule {id}"))) };
            return self.give_back(text, &args.note).await;
        }
        let Some(text) = changed.as_ref().map(|rule| rule.text.as_str()).or(of_program) else {
            return Ok(Outcome::Refused(format!(
                "there is no rule {id} that every tenant has; rules are named by their id here"
            )));
        };
        let file = Path::new("rule.sql");
        let mode: RuleMode = args.mode.parse().map_err(|_| anyhow::anyhow!("--mode {}: not a mode", args.mode))?;
        let rule = Rule::parse(text, file)?;
        if rule.header.mode == mode {
            return Ok(Outcome::Refused(format!("the rule is {mode} already")));
        }
        let versions = self.store.list_common_rule_versions(Some(id), MOST_SHOWN, 0).await?;
        let highest = versions.iter().map(|known| known.version).chain([i64::from(rule.header.version)]);
        let highest = highest.chain(self.common.standing(id).map(|(version, _)| i64::from(version))).max().unwrap_or(0);
        let next = u32::try_from(highest.saturating_add(1)).context("the version's number is as high as it can be")?;
        let date: String = self.clock.now().to_string().chars().take(DATE).collect();
        let text = match switched(text, next, mode, &date, &args.note) {
            Ok(text) => text,
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        match self.trial.read_common(&text, file) {
            Ok(version) => self.change(version, file, None).await,
            Err(error) => refused(error),
        }
    }

    /// The rule again as the program has it.
    async fn give_back(&self, text: &str, note: &str) -> anyhow::Result<Outcome> {
        let header = Rule::parse(text, Path::new("rule.sql"))?.header;
        let version = NewRuleVersion {
            common: Some((i64::from(header.version), header.mode)),
            rule_id: header.id,
            name: header.name,
            version: i64::from(header.version),
            mode: header.mode,
            hash: aegis_canon::sha256_hex(b""),
            text: String::new(),
            note: note.to_owned(),
            backtest: None,
        };
        self.put(version).await
    }
}

pub(super) async fn activate(args: &RulesActivateArgs, file: &Path, text: &str, tests: &[RuleTest]) -> anyhow::Result<Outcome> {
    let place = Place::open(&args.place.folder(), args.rules.as_deref()).await?;
    let outcome = match place.trial.read_common(text, file) {
        Ok(version) => place.change(version, file, Some(tests)).await,
        Err(error) => refused(error),
    };
    place.store.close().await;
    outcome
}

pub(crate) fn switch(args: &RuleSwitchArgs) -> anyhow::Result<ExitCode> {
    let outcome = super::runtime()?.block_on(async {
        let place = Place::open(&args.data, args.rules.as_deref()).await?;
        let outcome = place.switch(args).await;
        place.store.close().await;
        outcome
    })?;
    Ok(say(&outcome, &format!("{} is as it was", args.rule), args.json))
}

pub(super) async fn history(data: &Path, rule: Option<&str>) -> anyhow::Result<Vec<Value>> {
    let store = backtest::open(data, Arc::new(SystemClock)).await?;
    let versions = store.list_common_rule_versions(rule, MOST_SHOWN, 0).await?;
    store.close().await;
    versions.into_iter().map(|version| serde_json::to_value(version).map_err(Into::into)).collect()
}
