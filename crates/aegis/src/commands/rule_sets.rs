//! `aegis rules history --sets`: which rules programs, and the folders that they were given, had for every tenant, and what each start that brought others changed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use aegis_model::{RuleInSet, SystemClock, Timestamp};
use aegis_store::RuleSetRow;
use serde::Serialize;

use super::activate::MOST_SHOWN;
use super::backtest;

/// A set, and in what it is another one than that before it.
#[derive(Debug, PartialEq, Serialize)]
struct Change {
    revision: i64,
    digest: String,
    rules: usize,
    recorded_at: Timestamp,
    added: Vec<RuleInSet>,
    removed: Vec<RuleInSet>,
    changed: Vec<RuleInSet>,
}

impl Change {
    fn of(set: &RuleSetRow, before: &[RuleInSet]) -> Self {
        let by_id = |rules: &[RuleInSet]| -> BTreeMap<String, RuleInSet> {
            rules.iter().map(|rule| (rule.rule_id.clone(), rule.clone())).collect()
        };
        let (known, now) = (by_id(before), by_id(&set.rules));
        let pick = |from: &BTreeMap<String, RuleInSet>, is_it: &dyn Fn(&RuleInSet) -> bool| -> Vec<RuleInSet> {
            from.values().filter(|rule| is_it(rule)).cloned().collect()
        };
        Self {
            revision: set.revision,
            digest: set.digest.clone(),
            rules: set.rules.len(),
            recorded_at: set.recorded_at,
            added: pick(&now, &|rule| !known.contains_key(&rule.rule_id)),
            removed: pick(&known, &|rule| !now.contains_key(&rule.rule_id)),
            changed: pick(&now, &|rule| known.get(&rule.rule_id).is_some_and(|before| before != rule)),
        }
    }

    fn is_about(&self, rule: &str) -> bool {
        [&self.added, &self.removed, &self.changed].into_iter().flatten().any(|one| one.rule_id == rule)
    }

    fn line(&self) -> String {
        let Self { revision, digest, rules, recorded_at, .. } = self;
        let mut line = format!("set {revision}  {rules} rules, since {recorded_at}  {digest}");
        for (sign, of) in [("+", &self.added), ("-", &self.removed), ("~", &self.changed)] {
            for RuleInSet { rule_id, name, version, mode, hash } in of {
                line.push_str(&format!("\n  {sign} {rule_id} {name} v{version} {mode}  {hash}"));
            }
        }
        line
    }
}

/// The newest first; the oldest that is known is compared with none.
fn changes(sets: &[RuleSetRow]) -> Vec<Change> {
    let none: &[RuleInSet] = &[];
    let before = sets.iter().skip(1).map(|set| set.rules.as_slice()).chain([none]);
    sets.iter().zip(before).map(|(set, before)| Change::of(set, before)).collect()
}

pub(super) fn history(data: &Path, rule: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let sets = super::runtime()?.block_on(async {
        let store = backtest::open(data, Arc::new(SystemClock)).await?;
        let sets = store.list_rule_sets(MOST_SHOWN, 0).await?;
        store.close().await;
        anyhow::Ok(sets)
    })?;
    let mut changes = changes(&sets);
    changes.retain(|change| rule.is_none_or(|rule| change.is_about(rule)));
    if json {
        println!("{}", serde_json::to_string(&changes)?);
    } else {
        changes.iter().for_each(|change| println!("{}", change.line()));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_model::RuleMode;

    fn rule(rule_id: &str, version: u32) -> RuleInSet {
        let name = rule_id.to_lowercase();
        RuleInSet { rule_id: rule_id.to_owned(), name, version, mode: RuleMode::Active, hash: format!("hash {version}") }
    }

    fn set(revision: i64, rules: Vec<RuleInSet>) -> RuleSetRow {
        RuleSetRow { revision, digest: format!("digest {revision}"), rules, recorded_at: Timestamp::from_micros(0) }
    }

    #[test]
    fn each_set_is_told_with_what_it_changed() {
        let sets =
            [set(3, vec![rule("A", 1)]), set(2, vec![rule("A", 2), rule("C", 1)]), set(1, vec![rule("A", 1), rule("B", 1)])];
        let told = changes(&sets);
        let ids = |rules: &[RuleInSet]| rules.iter().map(|rule| rule.rule_id.clone()).collect::<Vec<_>>().join(",");
        let of_each: Vec<_> = told.iter().map(|of| (of.revision, ids(&of.added), ids(&of.removed), ids(&of.changed))).collect();
        let expected = [(3, "", "C", "A"), (2, "C", "B", "A"), (1, "A,B", "", "")];
        assert_eq!(
            of_each,
            expected.map(|(n, added, removed, changed)| (n, added.to_owned(), removed.to_owned(), changed.to_owned()))
        );
        assert_eq!(told.iter().map(|of| of.is_about("B")).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(told[0].line().lines().count(), 3);
        assert!(told[0].line().contains("- C c v1 active"), "{}", told[0].line());
    }
}
