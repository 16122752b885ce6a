//! Which events of a batch pass a filter, found out once for all rules that have the very same one: rules that differ in what they make of it.
//! Promises that two filters are one only where they are the same conditions in the same order.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use aegis_sql::tree;
use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::DFSchema;
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::physical_expr::PhysicalExpr;

use crate::schema::{EventBatch, column_index, schema_of};

/// What tells a filter from others: the conditions that AND joins.
#[derive(Clone, PartialEq)]
pub(crate) struct FilterName {
    hash: u64,
    conditions: Arc<[Expr]>,
}

impl FilterName {
    pub(crate) fn of(conditions: Arc<[Expr]>) -> Self {
        let mut hasher = DefaultHasher::new();
        tree::hash_exprs(&conditions, &mut hasher);
        Self { hash: hasher.finish(), conditions }
    }

    pub(crate) fn conditions(&self) -> &[Expr] {
        &self.conditions
    }
}

impl fmt::Debug for FilterName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FilterName").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// A filter, and the places of the events that passed it.
type Asked = (FilterName, Arc<[usize]>);

/// The places of the events that passed, of each filter that was asked for: by its hash.
#[derive(Debug, Default)]
pub(crate) struct Passed(BTreeMap<u64, Vec<Asked>>);

impl Passed {
    pub(crate) fn get(&self, filter: &FilterName) -> Option<Arc<[usize]>> {
        let of_hash = self.0.get(&filter.hash)?;
        of_hash.iter().find(|(known, _)| known == filter).map(|(_, places)| Arc::clone(places))
    }

    pub(crate) fn put(&mut self, filter: &FilterName, places: &Arc<[usize]>) {
        self.0.entry(filter.hash).or_default().push((filter.clone(), Arc::clone(places)));
    }
}

/// A filter of events, ready to be asked.
#[derive(Debug)]
pub(crate) struct EventFilter {
    pub(crate) name: FilterName,
    pub(crate) expr: Arc<dyn PhysicalExpr>,
    pub(crate) columns: Vec<usize>,
    pub(crate) schema: SchemaRef,
}

impl EventFilter {
    /// A condition over the columns of events, by their names alone.
    pub(crate) fn new(state: &SessionState, expr: Expr) -> Result<Self> {
        let name = FilterName::of(split_conjunction(&expr).into_iter().cloned().collect());
        let mut columns: Vec<usize> = expr.column_refs().iter().filter_map(|c| column_index(&c.name)).collect();
        columns.sort_unstable();
        let schema = schema_of(&columns);
        let expr = aegis_sql::physical_expr(state, expr, &DFSchema::try_from(Arc::clone(&schema))?)?;
        Ok(Self { name, expr, columns, schema })
    }

    /// The places of the events of a batch that pass.
    pub(crate) fn places(&self, batch: &EventBatch) -> Result<Arc<[usize]>> {
        let known = batch.passed.lock().get(&self.name);
        if let Some(places) = known {
            return Ok(places);
        }
        let input = batch.select(&self.columns, Arc::clone(&self.schema))?;
        let mask = self.expr.evaluate(&input)?.into_array(input.num_rows())?;
        let mask = mask.as_boolean();
        let places: Arc<[usize]> = (0..mask.len()).filter(|index| mask.is_valid(*index) && mask.value(*index)).collect();
        batch.passed.lock().put(&self.name, &places);
        Ok(places)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use datafusion::prelude::{col, lit};

    #[test]
    fn a_filter_is_told_from_others_also_where_their_hashes_are_one() {
        let name = |conditions: Vec<Expr>| FilterName::of(conditions.into());
        let (kind, tool) = (col("kind").eq(lit("a")), col("tool").eq(lit("b")));
        let both = name(vec![kind.clone(), tool.clone()]);
        assert_eq!(both, name(vec![kind.clone(), tool.clone()]));
        let mut passed = Passed::default();
        passed.put(&both, &Arc::from([1, 2]));
        // What would be one by its hash alone.
        let like_both = FilterName { hash: both.hash, ..name(vec![kind.clone()]) };
        assert_eq!(passed.get(&like_both), None);
        passed.put(&like_both, &Arc::from([3]));
        assert_eq!(passed.get(&both).unwrap()[..], [1, 2]);
        assert_eq!(passed.get(&like_both).unwrap()[..], [3]);
        for other in [vec![], vec![tool, kind.clone()], vec![kind, col("tool").eq(lit("c"))]] {
            assert_eq!(passed.get(&name(other)), None);
        }
    }
}
