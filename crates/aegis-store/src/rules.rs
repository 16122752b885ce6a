//! A tenant's own detection rules: each change is a version with its text, and the highest version of a rule is the one that stands.
//! Promises that a version is never changed, that a rule comes to act one step at a time, and that what a tenant may keep is bounded.

use aegis_model::{RuleMode, TenantId, Timestamp};
use serde::Serialize;
use serde_json::Value;
use sqlx::any::AnyRow;

use crate::error::on_insert;
use crate::pool::Transaction;
use crate::tenants::{check_len, check_name};
use crate::{OutboxRow, Store, StoreError, next_revision, outbox, page, row};

/// Rules of one tenant at most: each costs detection state.
const MAX_RULES: i64 = 50;
/// Versions of all rules of one tenant at most.
const MAX_VERSIONS: i64 = 5_000;
/// Changes of a tenant's rules within an hour at most.
const MAX_AN_HOUR: i64 = 60;
/// Longest text of a tenant's own rule, bytes: it travels in one message.
pub const MAX_RULE_TEXT: usize = 64 * 1024;
/// Longest line of its changelog, bytes.
pub const MAX_RULE_NOTE: usize = 4096;
/// Longest record of a backtest, bytes.
pub(crate) const MAX_BACKTEST: usize = 64 * 1024;

/// A version that is to stand.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRuleVersion {
    pub rule_id: String,
    pub name: String,
    pub version: i64,
    pub mode: RuleMode,
    /// Hex SHA-256 of the text.
    pub hash: String,
    pub text: String,
    /// The changelog's line for this version.
    pub note: String,
    /// What the rule would have told; none for a version that runs nothing.
    pub backtest: Option<Value>,
    /// Version and mode of the rule of this id that every tenant has, if there is one.
    pub common: Option<(i64, RuleMode)>,
}

/// A version as it was made, without its text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleVersion {
    pub tenant_id: TenantId,
    pub rule_id: String,
    pub version: i64,
    pub name: String,
    pub mode: RuleMode,
    pub hash: String,
    pub note: String,
    pub backtest: Option<Value>,
    pub changed_by: String,
    pub changed_at: Timestamp,
    pub revision: i64,
}

/// The version of a rule that stands, with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingRule {
    pub tenant_id: TenantId,
    pub rule_id: String,
    pub text: String,
    pub hash: String,
    pub revision: i64,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleChange {
    Made { revision: i64 },
    Refused(RuleRefusal),
}

/// Why a version may not stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleRefusal {
    #[error(
        "version {version} is not higher than {standing}, which stands; write the next version, with a line in the changelog"
    )]
    VersionNotHigher { version: i64, standing: i64 },
    #[error("a rule goes disabled, log_only, active, one step at a time; this one is {from}, and may not become {to}")]
    StepTooLong { from: RuleMode, to: RuleMode },
    #[error("the name is that of rule {0}, too; take another")]
    NameTaken(String),
    #[error("this tenant has {MAX_RULES} rules of its own, the most that it may have")]
    TooManyRules,
    #[error("this tenant has made {MAX_VERSIONS} versions of rules, the most that are kept")]
    TooManyVersions,
    #[error("this tenant has changed its rules {MAX_AN_HOUR} times within an hour; wait")]
    TooOften,
    #[error("there is no tenant yet, in whose lane the change would have its receipt; `aegis keys create` makes one")]
    NoTenant,
    #[error("the rule is as the program has it: no change of an operator stands")]
    NothingToTakeBack,
    #[error("operators have changed {0} rules that every tenant has, or made them, the most that may be")]
    TooManyCommonRules(i64),
    #[error("{0} versions of rules that every tenant has were made, the most that are kept")]
    TooManyCommonVersions(i64),
}

/// How far a mode is on the way to act.
const fn step_of(mode: RuleMode) -> u8 {
    match mode {
        RuleMode::Disabled => 0,
        RuleMode::LogOnly => 1,
        RuleMode::Active => 2,
    }
}

/// Whether a version may follow what stands; nothing that stands is a rule that is disabled.
pub(crate) fn may_follow(new: &NewRuleVersion, standing: Option<(i64, RuleMode)>) -> Result<(), RuleRefusal> {
    let (highest, from) = standing.unwrap_or((0, RuleMode::Disabled));
    if new.version <= highest {
        return Err(RuleRefusal::VersionNotHigher { version: new.version, standing: highest });
    }
    may_step(from, new.mode)
}

/// Whether a rule may come from one mode to another.
pub(crate) fn may_step(from: RuleMode, to: RuleMode) -> Result<(), RuleRefusal> {
    if step_of(to) > step_of(from) + 1 { Err(RuleRefusal::StepTooLong { from, to }) } else { Ok(()) }
}

fn rule_version(r: &AnyRow) -> Result<RuleVersion, StoreError> {
    Ok(RuleVersion {
        tenant_id: row::tenant(r)?,
        rule_id: row::get(r, "rule_id")?,
        version: row::get(r, "version")?,
        name: row::get(r, "name")?,
        mode: row::word(r, "mode")?,
        hash: row::get(r, "hash")?,
        note: row::get(r, "note")?,
        backtest: row::optional_json(r, "backtest")?,
        changed_by: row::get(r, "changed_by")?,
        changed_at: row::time(r, "changed_at")?,
        revision: row::get(r, "revision")?,
    })
}

fn standing_rule(r: &AnyRow) -> Result<StandingRule, StoreError> {
    Ok(StandingRule {
        tenant_id: row::tenant(r)?,
        rule_id: row::get(r, "rule_id")?,
        text: row::get(r, "text")?,
        hash: row::get(r, "hash")?,
        revision: row::get(r, "revision")?,
    })
}

impl Store {
    /// Says whether a version could stand now; what is asked of it otherwise takes long.
    pub async fn may_change_rule(&self, tenant: &TenantId, new: &NewRuleVersion) -> Result<Option<RuleRefusal>, StoreError> {
        let mut tx = self.begin_read().await?;
        self.refusal(&mut tx, tenant, new).await
    }

    /// Makes a version the one that stands, if it may be.
    pub async fn put_rule_version(
        &self,
        tenant: &TenantId,
        new: &NewRuleVersion,
        by: &str,
        facts: &[OutboxRow],
    ) -> Result<RuleChange, StoreError> {
        check_name("rule id", &new.rule_id)?;
        check_name("rule name", &new.name)?;
        check_len("rule", &new.text, MAX_RULE_TEXT)?;
        check_len("changelog line", &new.note, MAX_RULE_NOTE)?;
        let backtest = new.backtest.as_ref().map(|told| row::to_json(told, "backtest")).transpose()?;
        if let Some(told) = &backtest {
            check_len("backtest", told, MAX_BACKTEST)?;
        }
        let mut tx = self.begin_write().await?;
        if let Some(refusal) = self.refusal(&mut tx, tenant, new).await? {
            return Ok(RuleChange::Refused(refusal));
        }
        let revision = next_revision(&mut tx).await?;
        sqlx::query(
            "INSERT INTO rule_versions (tenant_id, rule_id, version, name, mode, hash, text, note, backtest, changed_by, changed_at,
                                        event_id, revision)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        )
        .bind(tenant.as_str())
        .bind(new.rule_id.as_str())
        .bind(new.version)
        .bind(new.name.as_str())
        .bind(new.mode.as_str())
        .bind(new.hash.as_str())
        .bind(new.text.as_str())
        .bind(new.note.as_str())
        .bind(backtest)
        .bind(by)
        .bind(self.now().as_micros())
        .bind(facts.first().map(|fact| fact.event_id.to_string()))
        .bind(revision)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(tenant, "rule version"))?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(RuleChange::Made { revision })
    }

    async fn refusal(
        &self,
        tx: &mut Transaction,
        tenant: &TenantId,
        new: &NewRuleVersion,
    ) -> Result<Option<RuleRefusal>, StoreError> {
        let own = sqlx::query(
            "SELECT version, mode FROM rule_versions WHERE tenant_id = $1 AND rule_id = $2 ORDER BY version DESC LIMIT 1",
        )
        .bind(tenant.as_str())
        .bind(new.rule_id.as_str())
        .fetch_optional(&mut **tx)
        .await?;
        let own: Option<(i64, RuleMode)> = match own {
            Some(r) => Some((row::get(&r, "version")?, row::word(&r, "mode")?)),
            None => None,
        };
        let standing = own.or(new.common);
        if let Err(refusal) = may_follow(new, standing) {
            return Ok(Some(refusal));
        }
        // What stops a rule that runs is never too much.
        let stops = new.mode == RuleMode::Disabled && standing.is_some_and(|(_, mode)| mode != RuleMode::Disabled);
        let taken: Option<String> = sqlx::query_scalar(
            "SELECT rule_id FROM rule_versions WHERE tenant_id = $1 AND name = $2 AND rule_id <> $3 ORDER BY rule_id LIMIT 1",
        )
        .bind(tenant.as_str())
        .bind(new.name.as_str())
        .bind(new.rule_id.as_str())
        .fetch_optional(&mut **tx)
        .await?;
        if let Some(other) = taken {
            return Ok(Some(RuleRefusal::NameTaken(other)));
        }
        let rules: i64 = sqlx::query_scalar("SELECT COUNT(DISTINCT rule_id) FROM rule_versions WHERE tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_one(&mut **tx)
            .await?;
        if own.is_none() && rules >= MAX_RULES && !stops {
            return Ok(Some(RuleRefusal::TooManyRules));
        }
        let versions: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM rule_versions WHERE tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_one(&mut **tx)
            .await?;
        if versions >= MAX_VERSIONS && !stops {
            return Ok(Some(RuleRefusal::TooManyVersions));
        }
        let lately: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM rule_versions WHERE tenant_id = $1 AND changed_at > $2")
            .bind(tenant.as_str())
            .bind(self.now().plus_seconds(-3600).as_micros())
            .fetch_one(&mut **tx)
            .await?;
        Ok((lately >= MAX_AN_HOUR && !stops).then_some(RuleRefusal::TooOften))
    }

    /// The tenant's versions, of one rule or of all, the newest change first.
    pub async fn list_rule_versions(
        &self,
        tenant: &TenantId,
        rule_id: Option<&str>,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<RuleVersion>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let rows =
            match rule_id {
                Some(rule_id) => sqlx::query(
                    "SELECT * FROM rule_versions WHERE tenant_id = $1 AND rule_id = $2 ORDER BY revision DESC LIMIT $3 OFFSET $4",
                )
                .bind(tenant.as_str())
                .bind(rule_id)
                .bind(limit)
                .bind(offset)
                .fetch_all(&self.inner.readers)
                .await?,
                None => {
                    sqlx::query("SELECT * FROM rule_versions WHERE tenant_id = $1 ORDER BY revision DESC LIMIT $2 OFFSET $3")
                        .bind(tenant.as_str())
                        .bind(limit)
                        .bind(offset)
                        .fetch_all(&self.inner.readers)
                        .await?
                }
            };
        rows.iter().map(rule_version).collect()
    }

    /// The text of a version by its hash.
    pub async fn rule_text(&self, tenant: &TenantId, rule_id: &str, hash: &str) -> Result<Option<String>, StoreError> {
        let found = sqlx::query_scalar(
            "SELECT text FROM rule_versions WHERE tenant_id = $1 AND rule_id = $2 AND hash = $3 ORDER BY version DESC LIMIT 1",
        )
        .bind(tenant.as_str())
        .bind(rule_id)
        .bind(hash)
        .fetch_optional(&self.inner.readers)
        .await?;
        Ok(found)
    }

    /// What stands of the tenant's rules, disabled ones included.
    pub async fn standing_rules(&self, tenant: &TenantId) -> Result<Vec<StandingRule>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM rule_versions WHERE tenant_id = $1 AND version = (
                 SELECT MAX(v.version) FROM rule_versions v WHERE v.tenant_id = $1 AND v.rule_id = rule_versions.rule_id)
             ORDER BY rule_id",
        )
        .bind(tenant.as_str())
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(standing_rule).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn version(version: i64, mode: RuleMode) -> NewRuleVersion {
        let (rule_id, name, text) = ("T-1".to_owned(), "t".to_owned(), "x".to_owned());
        NewRuleVersion {
            rule_id,
            name,
            version,
            mode,
            hash: String::new(),
            text,
            note: String::new(),
            backtest: None,
            common: None,
        }
    }

    #[test]
    fn a_rule_comes_to_act_one_step_at_a_time_and_goes_back_at_any() {
        use RuleMode::{Active, Disabled, LogOnly};
        let may = |from: Option<RuleMode>, to| may_follow(&version(2, to), from.map(|from| (1, from))).is_ok();
        for from in [None, Some(Disabled)] {
            assert!(may(from, Disabled) && may(from, LogOnly) && !may(from, Active), "{from:?}");
        }
        for from in [LogOnly, Active] {
            assert!([Disabled, LogOnly, Active].into_iter().all(|to| may(Some(from), to)), "{from:?}");
        }
    }

    #[test]
    fn a_version_is_higher_than_what_stands() {
        assert!(may_follow(&version(0, RuleMode::LogOnly), None).is_err(), "versions begin with 1");
        for (next, is_higher) in [(1, false), (2, false), (3, true), (9, true)] {
            let refused = may_follow(&version(next, RuleMode::LogOnly), Some((2, RuleMode::LogOnly))).err();
            let expected = (!is_higher).then_some(RuleRefusal::VersionNotHigher { version: next, standing: 2 });
            assert_eq!(refused, expected);
        }
    }
}
