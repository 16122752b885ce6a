//! Records of rules in the log that detection refused: each tenant whom one could have changed something for has an event of it, with a receipt. Promises that
//! one is sealed once for its partition, fault and hour, however often it is asked, and that nothing of it is what the record's writer wrote.

use aegis_ledger::Draft;
use aegis_model::{EventKind, Phase, TenantId, Timestamp, partition_of};
use serde_json::{Value, json};

use crate::control::{Control, ControlError};
use crate::record::derived_event_id;

/// A record that was refused.
#[derive(Clone, Debug)]
pub struct RefusedRuleRecord {
    /// Under whose subject it stands.
    pub partition: u32,
    /// Of whom it is, where control signed that; None: of anybody in the partition, or all.
    pub tenant_id: Option<TenantId>,
    /// A word of detection's.
    pub fault: &'static str,
    /// Where it stands in the stream ASE, and since when.
    pub seq: u64,
    pub bus_ts: Timestamp,
    /// The hour of that, in which the same is sealed once.
    pub hour: i64,
}

impl Control {
    /// Seals for each tenant concerned that a record of rules was refused; of one for whom that fails, the others are told all the same. An error: not for all;
    /// to be asked again.
    pub async fn tell_refused_rule_record(&self, refused: &RefusedRuleRecord) -> Result<(), ControlError> {
        let is_concerned = |tenant: &TenantId| match &refused.tenant_id {
            Some(named) => named == tenant,
            None => partition_of(tenant) == refused.partition,
        };
        let tenants = self.store.list_tenants().await?;
        let concerned = tenants.iter().filter(|tenant| is_concerned(tenant));
        let drafts: Vec<Draft> = concerned.map(|tenant| self.refused_record_draft(tenant, refused)).collect();
        all_of(drafts.into_iter().map(|draft| self.record_once(draft))).await?;
        Ok(())
    }

    fn refused_record_draft(&self, tenant: &TenantId, refused: &RefusedRuleRecord) -> Draft {
        let RefusedRuleRecord { partition, fault, seq, bus_ts, hour, tenant_id } = refused;
        let of = if tenant_id.is_some() { "own" } else { "all" };
        let mut event = self.event(tenant, EventKind::RuleRecordRefused);
        event.event_id = derived_event_id(EventKind::RuleRecordRefused, tenant, &format!("{partition}/{of}/{fault}/{hour}"));
        event.resource = Some(format!("ruleset.{partition:02}"));
        event.reason = Some((*fault).to_owned());
        let facts = json!({"stream_seq": seq, "stored_at": bus_ts});
        event.attributes = Some(facts.to_string());
        let mut draft = Draft::new(event, Phase::Attempt);
        draft.detail = Some(detail_of(facts, fault));
        draft
    }
}

/// Awaits all, one after the other, also behind one that fails. The last error.
async fn all_of<T, E>(each: impl Iterator<Item = impl Future<Output = Result<T, E>>>) -> Result<(), E> {
    let mut outcome = Ok(());
    for one in each {
        if let Err(error) = one.await {
            outcome = Err(error);
        }
    }
    outcome
}

fn detail_of(mut facts: Value, fault: &str) -> Value {
    facts["change"] = json!(EventKind::RuleRecordRefused.as_str());
    facts["fault"] = json!(fault);
    facts["by"] = json!({"type": "detection"});
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_fails_keeps_no_other_waiting_and_is_told_of() {
        let mut told = Vec::new();
        let outcome = all_of([Ok("a"), Err("b"), Ok("c")].into_iter().map(|one| {
            told.push(one);
            std::future::ready(one)
        }));
        assert_eq!(outcome.await, Err("b"));
        assert_eq!(told, [Ok("a"), Err("b"), Ok("c")]);
        assert_eq!(all_of([Ok::<_, &str>(1)].into_iter().map(std::future::ready)).await, Ok(()));
    }
}
