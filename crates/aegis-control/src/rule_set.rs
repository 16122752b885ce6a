//! The set of rules that this program, or the folder that it was given, has for every tenant: each tenant has a receipt of it, and of what is another one than before.
//! Promises one receipt for each tenant and set, whatever dies in between and however often it starts; a tenant that is made later has one of what it starts with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aegis_ledger::Draft;
use aegis_model::{EventKind, Phase, RuleInSet, TenantId};
use aegis_store::StandingCommonRule;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::control::Control;
use crate::problem::Problem;

/// A tenant's first receipt of a set, and one of another set than before.
const RECORDED: &str = "rule_set_recorded";
const CHANGED: &str = "rule_set_changed";
/// Who did it: nobody that a key names.
const PROGRAM: &str = "program";
/// Tenants that are told in one pass.
const PASS: u32 = 200;
/// Rules of a kind that a receipt lists, which has its bound; the digest is of all.
const MOST_LISTED: usize = 48;

/// In what a set differs from the one before it.
#[derive(Debug, Default)]
struct Difference<'a> {
    added: Vec<&'a RuleInSet>,
    removed: Vec<&'a RuleInSet>,
    changed: Vec<&'a RuleInSet>,
}

impl<'a> Difference<'a> {
    fn of(before: &'a [RuleInSet], now: &'a [RuleInSet]) -> Self {
        let known: BTreeMap<&str, &RuleInSet> = before.iter().map(|rule| (rule.rule_id.as_str(), rule)).collect();
        let mut difference = Self::default();
        for rule in now {
            match known.get(rule.rule_id.as_str()) {
                None => difference.added.push(rule),
                Some(before) if *before != rule => difference.changed.push(rule),
                Some(_) => {}
            }
        }
        let stays = |gone: &&RuleInSet| now.iter().any(|rule| rule.rule_id == gone.rule_id);
        difference.removed = before.iter().filter(|rule| !stays(rule)).collect();
        difference
    }
}

fn listed(rules: &[&RuleInSet]) -> Vec<Value> {
    let of =
        |rule: &&RuleInSet| json!({"rule_id": rule.rule_id, "version": rule.version, "mode": rule.mode, "rule_hash": rule.hash});
    rules.iter().take(MOST_LISTED).map(of).collect()
}

impl Control {
    /// Tells some of the tenants that have no receipt of the set yet. `revision` is the set's, once the store has it. True if there may be more.
    async fn tell_rule_set(&self, set: &[RuleInSet], revision: &mut Option<i64>) -> Result<bool, Problem> {
        let value = serde_json::to_value(set).map_err(Problem::internal)?;
        let digest = aegis_canon::hash_value(&value).map_err(Problem::internal)?;
        let known = match *revision {
            Some(known) => known,
            None => self.store.put_rule_set(&digest, set).await?,
        };
        *revision = Some(known);
        let untold = self.store.tenants_untold_of_rule_set(known, PASS).await?;
        if untold.is_empty() {
            return Ok(false);
        }
        let operators = self.store.standing_common_rules().await?;
        for of in &untold {
            let draft = self.rule_set_draft(&of.tenant_id, &digest, set, of.before.as_deref(), &operators);
            let pending = self.prepare(draft)?;
            if self.store.tell_rule_set(&of.tenant_id, known, pending.rows()).await? {
                // What cannot be sealed now is in the outbox.
                self.seal(pending).await?;
            }
        }
        Ok(true)
    }

    fn rule_set_draft(
        &self,
        tenant: &TenantId,
        digest: &str,
        set: &[RuleInSet],
        before: Option<&[RuleInSet]>,
        operators: &[StandingCommonRule],
    ) -> Draft {
        let Difference { added, removed, changed } = Difference::of(before.unwrap_or_default(), set);
        let change = if before.is_some() { CHANGED } else { RECORDED };
        let mut event = self.event(tenant, EventKind::ConfigChanged);
        event.reason = Some(change.to_owned());
        event.approver = Some(PROGRAM.to_owned());
        let counts = json!({
            "digest": digest, "rules": set.len(), "added": added.len(), "removed": removed.len(), "changed": changed.len(),
        });
        event.attributes = Some(json!({"rule_set": counts}).to_string());
        // What stands in place of the program's, or beside it: a tenant that is made later has no receipt of those changes.
        let operators: Vec<Value> = operators
            .iter()
            .filter(|rule| !rule.is_of_program())
            .take(MOST_LISTED)
            .map(|rule| json!({"rule_id": rule.rule_id, "version": rule.version, "mode": rule.mode, "rule_hash": rule.hash}))
            .collect();
        let mut draft = Draft::new(event, Phase::Config);
        draft.detail = Some(json!({
            "change": change, "rule_set": counts, "added": listed(&added), "removed": listed(&removed), "changed": listed(&changed),
            "operators": operators, "by": {"type": PROGRAM, "version": env!("CARGO_PKG_VERSION")},
        }));
        draft
    }
}

/// Tells tenants of the set that runs until stopped: at once, and those that are made meanwhile.
pub(crate) async fn run(control: Arc<Control>, set: Vec<RuleInSet>, mut stop: watch::Receiver<bool>) {
    let mut revision = None;
    loop {
        let pause = match control.tell_rule_set(&set, &mut revision).await {
            Ok(true) => Duration::ZERO,
            Ok(false) => control.config.outbox_interval,
            Err(problem) => {
                tracing::warn!(code = problem.code, "not every tenant has a receipt of the rules that run yet");
                control.config.outbox_interval
            }
        };
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_model::RuleMode;

    fn rule(rule_id: &str, hash: &str, mode: RuleMode) -> RuleInSet {
        RuleInSet { rule_id: rule_id.to_owned(), name: rule_id.to_lowercase(), version: 1, mode, hash: hash.to_owned() }
    }

    #[test]
    fn a_rule_is_added_removed_or_changed_and_one_that_is_the_same_is_nothing() {
        let before = [rule("A", "1", RuleMode::Active), rule("B", "1", RuleMode::Active), rule("C", "1", RuleMode::Active)];
        let now = [rule("A", "1", RuleMode::Active), rule("C", "2", RuleMode::Active), rule("D", "1", RuleMode::LogOnly)];
        let ids = |rules: &[&RuleInSet]| rules.iter().map(|rule| rule.rule_id.clone()).collect::<Vec<_>>();
        let Difference { added, removed, changed } = Difference::of(&before, &now);
        assert_eq!((ids(&added), ids(&removed), ids(&changed)), (vec!["D".into()], vec!["B".into()], vec!["C".into()]));
        let nothing = Difference::of(&now, &now);
        assert!(nothing.added.is_empty() && nothing.removed.is_empty() && nothing.changed.is_empty());
    }

    #[test]
    fn what_a_receipt_lists_is_bounded() {
        let all: Vec<RuleInSet> = (0..500).map(|n| rule(&format!("{n:064}"), &"h".repeat(64), RuleMode::LogOnly)).collect();
        let listed = listed(&Difference::of(&[], &all).added);
        assert_eq!(listed.len(), MOST_LISTED);
        // Four such lists are far below what a receipt may have.
        assert!(4 * json!(listed).to_string().len() < 48 * 1024);
    }
}
