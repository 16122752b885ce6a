//! Takes what belongs to row patterns out of an expression's tree, and leaves slots and qualified columns to be planned by DataFusion.

use aegis_sql::tree::{self, Rewrite};
use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Function, Ident, Query, Spanned, Value};

use crate::definition::{CLASSIFIER, Read, Slot, slot_name};
use crate::functions;
use crate::refusal::Refusal;
use crate::resolve::{ALL_ROWS, Clause, Resolver, SLOTS, rows_of};

/// What is being read around the expression at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Within {
    Nothing,
    Navigation,
    Aggregate,
}

/// Puts slots in the place of what belongs to row patterns, and qualifies every column.
pub(crate) fn take_out(resolver: &mut Resolver<'_>, tree: &mut SqlExpr, clause: Clause<'_>, within: Within) -> Result<()> {
    let mut taker = Taker { resolver, clause, within, in_aggregate: false };
    tree::rewrite(tree, &mut taker)
}

/// Walks a tree from the top.
struct Taker<'r, 'a> {
    resolver: &'r mut Resolver<'a>,
    clause: Clause<'r>,
    within: Within,
    /// The aggregate whose arguments are read has been come to.
    in_aggregate: bool,
}

impl Rewrite for Taker<'_, '_> {
    fn query(&mut self, query: &mut Query) -> Result<()> {
        Err(Refusal::unsupported("a subquery in DEFINE or MEASURES").at(query.span().start).into())
    }

    fn expr(&mut self, expr: &mut SqlExpr) -> Result<()> {
        match expr {
            SqlExpr::Identifier(ident) => *expr = qualified(ALL_ROWS, &self.resolver.column(ident)?),
            SqlExpr::CompoundIdentifier(parts) => {
                if let [variable, column, rest @ ..] = parts.as_slice() {
                    let variable = self.resolver.variable(variable)?;
                    let column = self.resolver.column(column)?;
                    let named = [Ident::with_quote('"', variable), Ident::with_quote('"', column)];
                    *expr = SqlExpr::CompoundIdentifier(named.into_iter().chain(rest.iter().cloned()).collect());
                }
            }
            SqlExpr::Function(function) => {
                if let Some(replacement) = self.function(function)? {
                    *expr = replacement;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Taker<'_, '_> {
    /// What stands in the place of a function of row patterns; none for other functions.
    fn function(&mut self, function: &mut Function) -> Result<Option<SqlExpr>> {
        let at = function.span().start;
        if function.over.is_some() {
            return Err(Refusal::unsupported(format!("the window function `{function}`")).at(at).into());
        }
        let called = functions::called(function);
        let aggregates = functions::is_aggregate(function, self.resolver.context.context_provider());
        if let Some(called) = &called {
            functions::check_semantics(called, self.clause, at)?;
            if called.semantics.is_some() && !aggregates && !called.is_logical() {
                let message = format!("`{}` takes neither FINAL nor RUNNING", called.name);
                return Err(Refusal::invalid(message).at(at).into());
            }
        }
        let name = called.as_ref().map(|called| called.name.as_str());
        let (slot, data_type) = match (name, self.within) {
            (Some("classifier"), Within::Aggregate) => {
                return Ok(Some(qualified(&self.resolver.classified(function)?, CLASSIFIER)));
            }
            (Some("classifier"), Within::Navigation) => {
                let refusal = Refusal::unsupported("CLASSIFIER within a larger operand of FIRST, LAST, PREV or NEXT").at(at);
                return Err(refusal.hint("navigate to it alone: LAST(CLASSIFIER())").into());
            }
            (Some("classifier"), Within::Nothing) => {
                let qualifier = self.resolver.classified(function)?;
                if let Clause::Define(own) = self.clause
                    && [ALL_ROWS, own].contains(&qualifier.as_str())
                {
                    return Ok(Some(SqlExpr::Value(Value::SingleQuotedString(own.to_owned()).into())));
                }
                let rows = rows_of(&qualifier);
                (Slot::Navigated { read: Read::Classifier, rows, from_first: false, nth: 0, step: 0 }, DataType::Utf8)
            }
            (Some("match_number" | "first" | "last" | "prev" | "next"), Within::Navigation | Within::Aggregate) => {
                let message = format!("`{function}` cannot stand within another navigation or an aggregate");
                let hint = "PREV and NEXT may go around FIRST or LAST, nothing else is nested";
                return Err(Refusal::invalid(message).at(at).hint(hint).into());
            }
            (Some("match_number"), Within::Nothing) => (Slot::MatchNumber, DataType::Int64),
            (Some(_), Within::Nothing) if !aggregates => {
                let Some(called) = &called else { return Ok(None) };
                self.resolver.navigation(function, called, self.clause)?
            }
            _ if aggregates && self.within == Within::Nothing => {
                let mut plain = tree::copied_call(function);
                functions::leave_out_semantics(&mut plain);
                self.resolver.aggregate(plain, self.clause)?
            }
            _ if aggregates && (self.within == Within::Navigation || self.in_aggregate) => {
                let message = format!("the aggregate `{function}` cannot stand within a navigation or another aggregate");
                return Err(Refusal::invalid(message).at(at).into());
            }
            _ => {
                self.in_aggregate |= aggregates;
                return Ok(None);
            }
        };
        let index = self.resolver.slot(slot, data_type, self.clause);
        Ok(Some(qualified(SLOTS, &slot_name(index))))
    }
}

/// A column of the planning schema as a tree.
fn qualified(qualifier: &str, name: &str) -> SqlExpr {
    SqlExpr::CompoundIdentifier(vec![Ident::with_quote('"', qualifier), Ident::with_quote('"', name)])
}
