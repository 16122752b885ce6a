//! Tenants' own rules that read alerts: they stand on top of the program's, and rows are made for those tenants alone. Promises that whoever reads whom is no
//! circle, whatever tenants and operators make of rules, and that who reads begins at its record with what is final from there on.

use aegis_model::TenantId;

use crate::alerts::{Sources, level_above, place_of_source};
use crate::engine::Engine;
use crate::error::{RuleCode, RuleError};
use crate::evaluate::RunningRule;
use crate::plan::RulePlan;
use crate::rule::{Header, Rule};
use crate::ruleset::CommonRule;
use crate::shape::Shape;

/// Puts a tenant's own rule on top of the program's: it reads alerts of these alone, and nobody reads its own.
pub(crate) fn put_on_top(rule: &Rule, plan: &mut RulePlan, program: &[CommonRule]) -> Result<(), RuleError> {
    let Header { id, name, .. } = &rule.header;
    if plan.sources.as_ref().is_some_and(|sources| sources.has(id, name)) {
        let message = "a tenant's own rule cannot read the alerts of the rule in whose place it stands: they would be its own";
        return Err(RuleError::new(RuleCode::RuleUnsupported, message).at(place_of_source(rule, id, name)).in_file(&rule.file));
    }
    plan.level = level_above(rule, plan, program)?;
    Ok(())
}

impl Engine {
    /// Rules that every tenant has know again which tenants' own rules read their alerts: rows are made for these alone. An operator's version that waits for
    /// what follows is not read: its alerts would come too late.
    pub(crate) fn know_readers(&mut self) {
        let reader = |running: &RunningRule| Some((running.scope.owner()?.clone(), running.plan.sources.clone()?));
        let readers: Vec<(TenantId, Sources)> = self.rules.iter().filter_map(reader).collect();
        let may_be_read = |running: &&mut RunningRule| running.scope.owner().is_none() && running.plan.shape != Shape::Deferred;
        for running in self.rules.iter_mut().filter(may_be_read) {
            let Header { id, name, .. } = &running.rule.header;
            let of_it = readers.iter().filter(|(_, sources)| sources.has(id, name));
            running.read_by = of_it.map(|(tenant, _)| tenant.clone()).collect();
        }
    }
}

impl RunningRule {
    /// True if somebody reads its alerts of the tenant.
    pub(crate) fn is_read_for(&self, tenant: &TenantId) -> bool {
        self.plan.is_read || self.read_by.contains(tenant)
    }
}
