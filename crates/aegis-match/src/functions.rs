//! The functions of row patterns by their names, and their arguments as written.

use aegis_sql::tree;
use datafusion::error::Result;
use datafusion::logical_expr::planner::ContextProvider;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart, Spanned, Value,
};
use datafusion::sql::sqlparser::tokenizer::Location;

use crate::refusal::Refusal;
use crate::resolve::Clause;

/// A function of row patterns, or an aggregate with `FINAL` or `RUNNING`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Called {
    /// In lower case.
    pub(crate) name: String,
    pub(crate) semantics: Option<Semantics>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Semantics {
    Final,
    Running,
}

const NAMES: [&str; 6] = ["first", "last", "prev", "next", "classifier", "match_number"];

impl Called {
    /// Goes over the rows of the match.
    pub(crate) fn is_logical(&self) -> bool {
        ["first", "last"].contains(&self.name.as_str())
    }

    /// Goes over the rows of the partition.
    pub(crate) fn is_physical(&self) -> bool {
        ["prev", "next"].contains(&self.name.as_str())
    }
}

/// The function if it is one of row patterns, or has `FINAL` or `RUNNING` before it.
pub(crate) fn called(function: &Function) -> Option<Called> {
    let [ObjectNamePart::Identifier(ident)] = function.name.0.as_slice() else { return None };
    if ident.quote_style.is_some() {
        return None;
    }
    let name = ident.value.to_lowercase();
    let (semantics, name) = match name.split_once(' ') {
        Some(("final", name)) => (Some(Semantics::Final), name.to_owned()),
        Some(("running", name)) => (Some(Semantics::Running), name.to_owned()),
        _ => (None, name),
    };
    (semantics.is_some() || NAMES.contains(&name.as_str())).then_some(Called { name, semantics })
}

/// In a condition everything is running.
pub(crate) fn check_semantics(called: &Called, clause: Clause<'_>, at: Location) -> Result<(), Refusal> {
    if called.semantics == Some(Semantics::Final) && clause != Clause::Measures {
        let refusal = Refusal::invalid("FINAL has no meaning in DEFINE: the match is not known yet");
        return Err(refusal.at(at).hint("leave it off"));
    }
    Ok(())
}

/// Whether it is an aggregate, `FINAL` or `RUNNING` aside.
pub(crate) fn is_aggregate(function: &Function, provider: &dyn ContextProvider) -> bool {
    let mut plain = tree::copied_call(function);
    leave_out_semantics(&mut plain);
    let [ObjectNamePart::Identifier(ident)] = plain.name.0.as_slice() else { return false };
    let name = if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() };
    !NAMES.contains(&name.as_str()) && provider.get_aggregate_meta(&name).is_some() && provider.get_function_meta(&name).is_none()
}

/// The function without the `FINAL` or `RUNNING` before its name.
pub(crate) fn leave_out_semantics(function: &mut Function) {
    if let Some(called) = called(function).filter(|called| called.semantics.is_some()) {
        let span = function.span();
        function.name = ObjectName::from(vec![Ident::with_span(span, called.name)]);
    }
}

/// The operand of a navigation, and its offset if there is one.
pub(crate) fn navigation_arguments(function: &Function, called: &Called) -> Result<(SqlExpr, Option<u32>), Refusal> {
    let name = called.name.to_uppercase();
    let wrong = || {
        let message = format!("`{function}` is not {name}(value) or {name}(value, number of rows)");
        Refusal::invalid(message).at(function.span().start)
    };
    let mut values = Vec::new();
    for argument in arguments(function) {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) = argument else { return Err(wrong()) };
        values.push(value);
    }
    if function.filter.is_some() || !function.within_group.is_empty() {
        return Err(wrong());
    }
    let mut values = values.into_iter();
    match (values.next(), values.next(), values.next()) {
        (Some(value), None, _) => Ok((value, None)),
        (Some(value), Some(offset), None) => {
            let SqlExpr::Value(literal) = &offset else { return Err(wrong()) };
            let Value::Number(digits, _) = &literal.value else { return Err(wrong()) };
            let offset: u32 = digits.parse().map_err(|_| wrong())?;
            Ok((value, Some(offset)))
        }
        _ => Err(wrong()),
    }
}

/// The arguments as written.
pub(crate) fn arguments(function: &Function) -> Vec<FunctionArg> {
    match &function.args {
        FunctionArguments::List(list) => tree::copied_arguments(&list.args),
        FunctionArguments::None | FunctionArguments::Subquery(_) => Vec::new(),
    }
}

/// `count(v.*)` as `count(*)`, and `v`.
pub(crate) fn without_counted_wildcard(mut function: Function) -> (Function, Option<Ident>) {
    let mut variable = None;
    if let FunctionArguments::List(list) = &mut function.args
        && let [FunctionArg::Unnamed(argument)] = list.args.as_mut_slice()
        && let FunctionArgExpr::QualifiedWildcard(name) = argument
        && let [ObjectNamePart::Identifier(ident)] = name.0.as_slice()
        && function.name.to_string().eq_ignore_ascii_case("count")
    {
        variable = Some(ident.clone());
        *argument = FunctionArgExpr::Wildcard;
    }
    (function, variable)
}

/// Whether it is `count(*)` and nothing else.
pub(crate) fn only_counts_rows(function: &Function) -> bool {
    let FunctionArguments::List(list) = &function.args else { return false };
    let star = matches!(list.args.as_slice(), [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)]);
    let plain = list.duplicate_treatment.is_none() && list.clauses.is_empty();
    star && plain && function.filter.is_none() && function.name.to_string().eq_ignore_ascii_case("count")
}
