//! `aegis rules history --sets`: which rules programs, and the folders that they were given, had for every tenant, and what each start that brought others changed.
//! On the data folder, or through the control plane.

use std::process::ExitCode;
use std::sync::Arc;

use aegis_model::{RuleInSet, SystemClock};
use aegis_store::RuleSetChange;
use anyhow::{Context, bail};
use serde_json::Value;

use super::activate::{MOST_SHOWN, admin_key, said};
use super::backtest;
use crate::arguments::rules::RulePlace;
use crate::client::Client;

fn line_of(change: &RuleSetChange) -> String {
    let RuleSetChange { revision, digest, rules, recorded_at, .. } = change;
    let mut line = format!("set {revision}  {rules} rules, since {recorded_at}  {digest}");
    for (sign, of) in [("+", &change.added), ("-", &change.removed), ("~", &change.changed)] {
        for RuleInSet { rule_id, name, version, mode, hash } in of {
            line.push_str(&format!("\n  {sign} {rule_id} {name} v{version} {mode}  {hash}"));
        }
    }
    line
}

pub(super) fn history(place: &RulePlace, rule: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut changes = super::runtime()?.block_on(async {
        match &place.url {
            Some(url) => of_control(url).await,
            None => {
                let store = backtest::open(&place.folder(), Arc::new(SystemClock)).await?;
                let changes = store.list_rule_set_changes(MOST_SHOWN, 0).await?;
                store.close().await;
                anyhow::Ok(changes)
            }
        }
    })?;
    changes.retain(|change| rule.is_none_or(|rule| change.is_about(rule)));
    if place.json {
        println!("{}", serde_json::to_string(&changes)?);
    } else {
        changes.iter().for_each(|change| println!("{}", line_of(change)));
    }
    Ok(ExitCode::SUCCESS)
}

async fn of_control(url: &str) -> anyhow::Result<Vec<RuleSetChange>> {
    let reply = Client::new(url).get(&format!("/v1/rules/sets?limit={MOST_SHOWN}"), &admin_key()?).await?;
    match reply.json() {
        sets @ Value::Array(_) if reply.status == 200 => {
            serde_json::from_value(sets).with_context(|| format!("the sets of {url} cannot be read"))
        }
        _ => bail!("{url} answered {}: {}", reply.status, said(&reply)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_model::{RuleMode, Timestamp};

    #[test]
    fn each_rule_of_a_change_has_a_line() {
        let rule = |rule_id: &str| RuleInSet {
            rule_id: rule_id.to_owned(),
            name: rule_id.to_lowercase(),
            version: 1,
            mode: RuleMode::Active,
            hash: "hash".to_owned(),
        };
        let change = RuleSetChange {
            revision: 3,
            digest: "digest".to_owned(),
            rules: 7,
            recorded_at: Timestamp::from_micros(0),
            added: vec![rule("A")],
            removed: vec![rule("C")],
            changed: vec![rule("B"), rule("D")],
        };
        let line = line_of(&change);
        let signs: Vec<&str> = line.lines().skip(1).map(|line| &line[..5]).collect();
        assert_eq!(signs, ["  + A", "  - C", "  ~ B", "  ~ D"]);
        assert!(line.starts_with("set 3  7 rules") && line.contains("- C c v1 active"), "{line}");
    }
}
