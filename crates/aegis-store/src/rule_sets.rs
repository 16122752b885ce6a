//! The sets of rules that programs ran for every tenant, and of which of them each tenant has its last receipt.
//! Promises that a set that follows itself is one, and that a tenant is told once of what it is told of.

use std::collections::BTreeMap;

use aegis_model::{RuleInSet, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;

use crate::error::on_insert;
use crate::tenants::check_len;
use crate::{MAX_PAGE, OutboxRow, Store, StoreError, outbox, page, row};

/// Sets that are kept, the newest. A tenant whose receipt is of an older one is told of all rules anew.
const MOST_SETS: i64 = 1_000;
/// Longest set, as text.
const MAX_SET: usize = 4 << 20;

/// A set, as it came.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleSetRow {
    pub revision: i64,
    pub digest: String,
    pub rules: Vec<RuleInSet>,
    pub recorded_at: Timestamp,
}

/// A set, and in what it is another one than that before it; the oldest that is known is compared with none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleSetChange {
    pub revision: i64,
    pub digest: String,
    /// How many there are.
    pub rules: usize,
    pub recorded_at: Timestamp,
    pub added: Vec<RuleInSet>,
    pub removed: Vec<RuleInSet>,
    /// As they are in this set.
    pub changed: Vec<RuleInSet>,
}

impl RuleSetChange {
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

    /// Whether the set brought a rule, changed it or took it.
    #[must_use]
    pub fn is_about(&self, rule: &str) -> bool {
        [&self.added, &self.removed, &self.changed].into_iter().flatten().any(|one| one.rule_id == rule)
    }
}

/// A tenant without a receipt of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct UntoldTenant {
    pub tenant_id: TenantId,
    /// The rules of the set that its last receipt is of; None: it has none, or that set is not kept any more.
    pub before: Option<Vec<RuleInSet>>,
}

fn rule_set(r: &AnyRow) -> Result<RuleSetRow, StoreError> {
    Ok(RuleSetRow {
        revision: row::get(r, "revision")?,
        digest: row::get(r, "digest")?,
        rules: row::json(r, "rules")?,
        recorded_at: row::time(r, "recorded_at")?,
    })
}

impl Store {
    /// Says that this set runs. Answers its revision: a new one, unless the newest is the same set.
    pub async fn put_rule_set(&self, digest: &str, rules: &[RuleInSet]) -> Result<i64, StoreError> {
        let text = row::to_json(&rules, "rules")?;
        check_len("set of rules", &text, MAX_SET)?;
        let mut tx = self.begin_write().await?;
        let newest =
            sqlx::query("SELECT revision, digest FROM rule_sets ORDER BY revision DESC LIMIT 1").fetch_optional(&mut *tx).await?;
        let mut revision = 1;
        if let Some(newest) = &newest {
            let known: i64 = row::get(newest, "revision")?;
            if row::get::<&str>(newest, "digest")? == digest {
                return Ok(known);
            }
            revision = known + 1;
        }
        sqlx::query("INSERT INTO rule_sets (revision, digest, rules, recorded_at) VALUES ($1, $2, $3, $4)")
            .bind(revision)
            .bind(digest)
            .bind(text)
            .bind(self.now().as_micros())
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM rule_sets WHERE revision <= $1").bind(revision - MOST_SETS).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(revision)
    }

    /// The sets that ran, the newest first.
    pub async fn list_rule_sets(&self, limit: u32, offset: u32) -> Result<Vec<RuleSetRow>, StoreError> {
        let (limit, offset) = page(limit, offset);
        self.rule_sets(limit, offset).await
    }

    /// What each of them changed, the newest first.
    pub async fn list_rule_set_changes(&self, limit: u32, offset: u32) -> Result<Vec<RuleSetChange>, StoreError> {
        let (limit, offset) = page(limit, offset);
        // One more: that before the last.
        let sets = self.rule_sets(limit + 1, offset).await?;
        let none: &[RuleInSet] = &[];
        let before = sets.iter().skip(1).map(|set| set.rules.as_slice()).chain([none]);
        let changes = sets.iter().zip(before).map(|(set, before)| RuleSetChange::of(set, before));
        Ok(changes.take(usize::try_from(limit).unwrap_or(0)).collect())
    }

    async fn rule_sets(&self, limit: i64, offset: i64) -> Result<Vec<RuleSetRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM rule_sets ORDER BY revision DESC LIMIT $1 OFFSET $2")
            .bind(limit)
            .bind(offset)
            .fetch_all(&self.inner.readers)
            .await?;
        rows.iter().map(rule_set).collect()
    }

    /// Tenants without a receipt of this set, or of a later one.
    pub async fn tenants_untold_of_rule_set(&self, revision: i64, limit: u32) -> Result<Vec<UntoldTenant>, StoreError> {
        let rows = sqlx::query(
            "SELECT t.tenant_id, s.rules FROM tenants t LEFT JOIN tenant_rule_sets r ON r.tenant_id = t.tenant_id
                 LEFT JOIN rule_sets s ON s.revision = r.revision
             WHERE r.revision IS NULL OR r.revision < $1 ORDER BY t.tenant_id LIMIT $2",
        )
        .bind(revision)
        .bind(i64::from(limit.min(MAX_PAGE)))
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(|r| Ok(UntoldTenant { tenant_id: row::tenant(r)?, before: row::optional_json(r, "rules")? })).collect()
    }

    /// A tenant is told of a set, with the draft of its receipt. False if it was told of this one, or of a later one, already.
    pub async fn tell_rule_set(&self, tenant: &TenantId, revision: i64, facts: &[OutboxRow]) -> Result<bool, StoreError> {
        let mut tx = self.begin_write().await?;
        let told = sqlx::query(
            "INSERT INTO tenant_rule_sets (tenant_id, revision) VALUES ($1, $2)
             ON CONFLICT (tenant_id) DO UPDATE SET revision = excluded.revision WHERE tenant_rule_sets.revision < excluded.revision",
        )
        .bind(tenant.as_str())
        .bind(revision)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(tenant, "receipt of a set of rules"))?;
        if told.rows_affected() == 0 {
            return Ok(false);
        }
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(true)
    }
}
