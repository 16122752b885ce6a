//! How a session of DataFusion comes to know `MATCH_RECOGNIZE`.

use std::sync::Arc;

use aegis_sql::Refused;
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::error::Result;
use datafusion::execution::context::QueryPlanner;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use crate::exec::MatchExec;
use crate::limits::{Limits, Report};
use crate::node::MatchRecognize;
use crate::planner::MatchPlanner;
use crate::recognizer::Recognizer;
use crate::tokens::prepare;

/// The session plans and runs `MATCH_RECOGNIZE` within these limits, and says in the report where it ran into one.
#[must_use]
pub fn install(session: SessionStateBuilder, limits: Limits, report: Report) -> SessionStateBuilder {
    let planner = MatchQueryPlanner { limits, report };
    session.with_relation_planners(vec![Arc::new(MatchPlanner)]).with_query_planner(Arc::new(planner))
}

/// The logical plan of a text that is one query, `MATCH_RECOGNIZE` in it as the standard writes it.
///
/// # Errors
/// See [`Refused`]. A [`crate::Refusal`] is the root of an engine's error.
pub fn plan_query(state: &SessionState, text: &str) -> std::result::Result<LogicalPlan, Refused> {
    let tokens = aegis_sql::tokens(text)?;
    let prepared = prepare(tokens).map_err(|refusal| Refused::Engine(refusal.into()))?;
    aegis_sql::plan_tokens(state, prepared)
}

/// Plans queries as DataFusion does, and the nodes of this crate.
#[derive(Debug)]
struct MatchQueryPlanner {
    limits: Limits,
    report: Report,
}

#[async_trait]
impl QueryPlanner for MatchQueryPlanner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        let extension = MatchExtension { limits: self.limits, report: self.report.clone() };
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(extension)]);
        planner.create_physical_plan(plan, session).await
    }
}

/// From the logical node to the operator.
#[derive(Clone, Debug)]
pub struct MatchExtension {
    pub limits: Limits,
    pub report: Report,
}

#[async_trait]
impl ExtensionPlanner for MatchExtension {
    async fn plan_extension(
        &self,
        _planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        planning: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(node) = node.as_any().downcast_ref::<MatchRecognize>() else { return Ok(None) };
        let ([logical], [physical]) = (logical_inputs, physical_inputs) else { return Ok(None) };
        let recognizer = Recognizer::compile(node, logical.schema(), session, planning, self.limits)?;
        Ok(Some(Arc::new(MatchExec::new(Arc::clone(physical), Arc::new(recognizer), self.report.clone()))))
    }
}
