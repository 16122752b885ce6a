//! What an operator makes of the rules that every tenant has: each change is a row with its text, and the newest of a rule is the one that stands, in
//! place of the program's.
//! Promises that a row is never changed, that a rule comes to act one step at a time, and that no change is without a receipt in each tenant's lane.

use aegis_model::{RuleMode, TenantId, Timestamp};
use serde::Serialize;
use serde_json::Value;
use sqlx::any::AnyRow;

use crate::pool::Transaction;
use crate::rules::{MAX_BACKTEST, may_follow, may_step};
use crate::tenants::{check_len, check_name};
use crate::{
    MAX_RULE_NOTE, MAX_RULE_TEXT, NewRuleVersion, OutboxRow, RuleChange, RuleRefusal, Store, StoreError, next_revision, outbox,
    page, row,
};

/// Rules that operators change or make at most: each may cost all tenants detection state.
const MAX_RULES: i64 = 200;
/// Changes that are kept at most.
const MAX_VERSIONS: i64 = 5_000;

/// A change as it was made, without its text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CommonRuleVersion {
    pub rule_id: String,
    pub version: i64,
    pub name: String,
    pub mode: RuleMode,
    pub hash: String,
    pub note: String,
    /// True where the rule is again as the program has it; version and mode are those of the program's rule then.
    pub of_program: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backtest: Option<Value>,
    pub changed_by: String,
    pub changed_at: Timestamp,
    pub revision: i64,
}

/// The change of a rule that stands, with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingCommonRule {
    pub rule_id: String,
    pub name: String,
    pub version: i64,
    pub mode: RuleMode,
    /// Empty: the rule is again as the program has it.
    pub text: String,
    pub hash: String,
    /// The text that the program had of it when it was changed, by its hash; None: it had none.
    pub program_hash: Option<String>,
    pub changed_at: Timestamp,
    pub revision: i64,
}

impl StandingCommonRule {
    /// True where the rule is again as the program has it.
    #[must_use]
    pub fn is_of_program(&self) -> bool {
        self.text.is_empty()
    }
}

fn common_rule_version(r: &AnyRow) -> Result<CommonRuleVersion, StoreError> {
    Ok(CommonRuleVersion {
        rule_id: row::get(r, "rule_id")?,
        version: row::get(r, "version")?,
        name: row::get(r, "name")?,
        mode: row::word(r, "mode")?,
        hash: row::get(r, "hash")?,
        note: row::get(r, "note")?,
        of_program: row::get::<String>(r, "text")?.is_empty(),
        backtest: row::optional_json(r, "backtest")?,
        changed_by: row::get(r, "changed_by")?,
        changed_at: row::time(r, "changed_at")?,
        revision: row::get(r, "revision")?,
    })
}

fn standing_common_rule(r: &AnyRow) -> Result<StandingCommonRule, StoreError> {
    Ok(StandingCommonRule {
        rule_id: row::get(r, "rule_id")?,
        name: row::get(r, "name")?,
        version: row::get(r, "version")?,
        mode: row::word(r, "mode")?,
        text: row::get(r, "text")?,
        hash: row::get(r, "hash")?,
        program_hash: row::get(r, "program_hash")?,
        changed_at: row::time(r, "changed_at")?,
        revision: row::get(r, "revision")?,
    })
}

impl Store {
    /// Says whether a change could stand now; what is asked of it otherwise takes long. `new.common` is what the program has of the rule; without a text
    /// the change makes the rule again as the program has it.
    pub async fn may_change_common_rule(&self, new: &NewRuleVersion) -> Result<Option<RuleRefusal>, StoreError> {
        let mut tx = self.begin_read().await?;
        common_refusal(&mut tx, new).await
    }

    /// Makes a change the one that stands, if it may be. `program_hash` is that of the text that the program has of the rule; `fact` makes the draft of the
    /// receipt of each tenant there is.
    pub async fn put_common_rule_version(
        &self,
        new: &NewRuleVersion,
        program_hash: Option<&str>,
        by: &str,
        fact: impl Fn(&TenantId) -> Result<OutboxRow, StoreError> + Send + Sync,
    ) -> Result<RuleChange, StoreError> {
        check_name("rule id", &new.rule_id)?;
        check_name("rule name", &new.name)?;
        check_len("changelog line", &new.note, MAX_RULE_NOTE)?;
        if !new.text.is_empty() {
            check_len("rule", &new.text, MAX_RULE_TEXT)?;
        }
        let backtest = new.backtest.as_ref().map(|told| row::to_json(told, "backtest")).transpose()?;
        if let Some(told) = &backtest {
            check_len("backtest", told, MAX_BACKTEST)?;
        }
        let mut tx = self.begin_write().await?;
        if let Some(refusal) = common_refusal(&mut tx, new).await? {
            return Ok(RuleChange::Refused(refusal));
        }
        let tenants = sqlx::query("SELECT tenant_id FROM tenants ORDER BY tenant_id").fetch_all(&mut *tx).await?;
        let tenants: Vec<TenantId> = tenants.iter().map(row::tenant).collect::<Result<_, _>>()?;
        let revision = next_revision(&mut tx).await?;
        sqlx::query(
            "INSERT INTO common_rule_versions (rule_id, version, name, mode, hash, text, note, backtest, program_hash, changed_by, changed_at,
                                               revision)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(new.rule_id.as_str())
        .bind(new.version)
        .bind(new.name.as_str())
        .bind(new.mode.as_str())
        .bind(new.hash.as_str())
        .bind(new.text.as_str())
        .bind(new.note.as_str())
        .bind(backtest)
        .bind(program_hash.map(str::to_owned))
        .bind(by)
        .bind(self.now().as_micros())
        .bind(revision)
        .execute(&mut *tx)
        .await?;
        for tenant in &tenants {
            outbox::write(&mut tx, tenant, std::slice::from_ref(&fact(tenant)?)).await?;
        }
        tx.commit().await?;
        Ok(RuleChange::Made { revision })
    }

    /// The changes of one rule that every tenant has, or of all, the newest first.
    pub async fn list_common_rule_versions(
        &self,
        rule_id: Option<&str>,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<CommonRuleVersion>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let rows = match rule_id {
            Some(rule_id) => {
                sqlx::query("SELECT * FROM common_rule_versions WHERE rule_id = $1 ORDER BY revision DESC LIMIT $2 OFFSET $3")
                    .bind(rule_id)
                    .bind(limit)
                    .bind(offset)
                    .fetch_all(&self.inner.readers)
                    .await?
            }
            None => {
                sqlx::query("SELECT * FROM common_rule_versions ORDER BY revision DESC LIMIT $1 OFFSET $2")
                    .bind(limit)
                    .bind(offset)
                    .fetch_all(&self.inner.readers)
                    .await?
            }
        };
        rows.iter().map(common_rule_version).collect()
    }

    /// The text of a change by its hash.
    pub async fn common_rule_text(&self, rule_id: &str, hash: &str) -> Result<Option<String>, StoreError> {
        let found = sqlx::query_scalar(
            "SELECT text FROM common_rule_versions WHERE rule_id = $1 AND hash = $2 ORDER BY revision DESC LIMIT 1",
        )
        .bind(rule_id)
        .bind(hash)
        .fetch_optional(&self.inner.readers)
        .await?;
        Ok(found)
    }

    /// What stands of operators' changes, by rule id; those too by which a rule is again as the program has it.
    pub async fn standing_common_rules(&self) -> Result<Vec<StandingCommonRule>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM common_rule_versions WHERE revision = (
                 SELECT MAX(v.revision) FROM common_rule_versions v WHERE v.rule_id = common_rule_versions.rule_id)
             ORDER BY rule_id",
        )
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(standing_common_rule).collect()
    }

    /// How many tenants have one of their own under this id, which stands there in place of what every tenant has.
    pub async fn tenants_with_own_rule(&self, rule_id: &str) -> Result<i64, StoreError> {
        let count = sqlx::query_scalar("SELECT COUNT(DISTINCT tenant_id) FROM rule_versions WHERE rule_id = $1")
            .bind(rule_id)
            .fetch_one(&self.inner.readers)
            .await?;
        Ok(count)
    }
}

async fn common_refusal(tx: &mut Transaction, new: &NewRuleVersion) -> Result<Option<RuleRefusal>, StoreError> {
    let tenants: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tenants").fetch_one(&mut **tx).await?;
    if tenants == 0 {
        return Ok(Some(RuleRefusal::NoTenant));
    }
    let newest = sqlx::query("SELECT mode, text FROM common_rule_versions WHERE rule_id = $1 ORDER BY revision DESC LIMIT 1")
        .bind(new.rule_id.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    let newest: Option<(RuleMode, String)> = match newest {
        Some(r) => Some((row::word(&r, "mode")?, row::get(&r, "text")?)),
        None => None,
    };
    let is_known = newest.is_some();
    let standing = newest.filter(|(_, text)| !text.is_empty()).map(|(mode, _)| mode);
    let (of_program, mode_of_program) = new.common.unwrap_or((0, RuleMode::Disabled));
    let from = standing.unwrap_or(mode_of_program);
    if new.text.is_empty() {
        if standing.is_none() {
            return Ok(Some(RuleRefusal::NothingToTakeBack));
        }
        if let Err(refusal) = may_step(from, new.mode) {
            return Ok(Some(refusal));
        }
    } else {
        // A number means one text, whatever stood in between.
        let highest: Option<i64> = sqlx::query_scalar(
            "SELECT version FROM common_rule_versions WHERE rule_id = $1 AND text <> '' ORDER BY version DESC LIMIT 1",
        )
        .bind(new.rule_id.as_str())
        .fetch_optional(&mut **tx)
        .await?;
        let highest = highest.unwrap_or(0).max(of_program);
        if let Err(refusal) = may_follow(new, Some((highest, from))) {
            return Ok(Some(refusal));
        }
    }
    let taken: Option<String> =
        sqlx::query_scalar("SELECT rule_id FROM common_rule_versions WHERE name = $1 AND rule_id <> $2 ORDER BY rule_id LIMIT 1")
            .bind(new.name.as_str())
            .bind(new.rule_id.as_str())
            .fetch_optional(&mut **tx)
            .await?;
    if let Some(other) = taken {
        return Ok(Some(RuleRefusal::NameTaken(other)));
    }
    // What stops a rule that runs is never too much, and neither is what makes it the program's again.
    if new.text.is_empty() || (new.mode == RuleMode::Disabled && from != RuleMode::Disabled) {
        return Ok(None);
    }
    let rules: i64 = sqlx::query_scalar("SELECT COUNT(DISTINCT rule_id) FROM common_rule_versions").fetch_one(&mut **tx).await?;
    if !is_known && rules >= MAX_RULES {
        return Ok(Some(RuleRefusal::TooManyCommonRules(MAX_RULES)));
    }
    let versions: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM common_rule_versions").fetch_one(&mut **tx).await?;
    Ok((versions >= MAX_VERSIONS).then_some(RuleRefusal::TooManyCommonVersions(MAX_VERSIONS)))
}
