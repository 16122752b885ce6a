//! Which event times a query can want: read from its conditions on `ts`, to leave out files without opening them.
//! Promises to leave out nothing that a condition could pass: what is not understood bounds nothing.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::{Between, BinaryExpr, Cast};
use datafusion::logical_expr::{Expr, Operator};

/// Event times from `from` to `to`, both included, in microseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from: i64,
    pub to: i64,
}

impl Span {
    /// All of time.
    pub const ALL: Self = Self { from: i64::MIN, to: i64::MAX };

    /// True if some time of `first` to `last` is in the span.
    #[must_use]
    pub const fn meets(self, first: i64, last: i64) -> bool {
        self.from <= last && self.to >= first
    }

    const fn and(self, other: Self) -> Self {
        Self {
            from: if self.from > other.from { self.from } else { other.from },
            to: if self.to < other.to { self.to } else { other.to },
        }
    }
}

/// The times that pass all of these conditions, or more.
pub(crate) fn span_of<'a>(conditions: impl IntoIterator<Item = &'a Expr>) -> Span {
    conditions.into_iter().fold(Span::ALL, |span, condition| span.and(span_of_one(condition)))
}

fn span_of_one(condition: &Expr) -> Span {
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => span_of_one(left).and(span_of_one(right)),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            if is_ts(left)
                && let Some(time) = time_of(right)
            {
                return compared(*op, time);
            }
            match (time_of(left), op.swap()) {
                (Some(time), Some(swapped)) if is_ts(right) => compared(swapped, time),
                _ => Span::ALL,
            }
        }
        Expr::Between(Between { expr, negated: false, low, high }) if is_ts(expr) => {
            let low = time_of(low).map_or(Span::ALL, |time| compared(Operator::GtEq, time));
            low.and(time_of(high).map_or(Span::ALL, |time| compared(Operator::LtEq, time)))
        }
        _ => Span::ALL,
    }
}

/// A time of a condition: the microsecond at or before it, and the one at or after it.
#[derive(Clone, Copy)]
struct Time {
    floor: i64,
    ceiling: i64,
}

fn compared(op: Operator, time: Time) -> Span {
    match op {
        Operator::Eq => Span { from: time.floor, to: time.ceiling },
        // A microsecond more than is needed where the limit itself is left out: the condition is checked again row by row.
        Operator::Gt | Operator::GtEq => Span { from: time.floor, to: i64::MAX },
        Operator::Lt | Operator::LtEq => Span { from: i64::MIN, to: time.ceiling },
        _ => Span::ALL,
    }
}

/// The column `ts`, also as another kind of time that is as exact.
fn is_ts(expr: &Expr) -> bool {
    match expr {
        Expr::Column(column) => column.name == "ts",
        Expr::Cast(Cast { expr, field }) => {
            let is_exact = matches!(field.data_type(), DataType::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, _));
            is_exact && is_ts(expr)
        }
        _ => false,
    }
}

fn time_of(expr: &Expr) -> Option<Time> {
    let Expr::Literal(value, _) = expr else { return None };
    let exact = |micros: i64| Time { floor: micros, ceiling: micros };
    match value {
        ScalarValue::TimestampSecond(Some(value), _) => value.checked_mul(1_000_000).map(exact),
        ScalarValue::TimestampMillisecond(Some(value), _) => value.checked_mul(1_000).map(exact),
        ScalarValue::TimestampMicrosecond(Some(value), _) => Some(exact(*value)),
        ScalarValue::TimestampNanosecond(Some(value), _) => {
            let floor = value.div_euclid(1_000);
            Some(Time { floor, ceiling: if value.rem_euclid(1_000) == 0 { floor } else { floor + 1 } })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::{col, lit};

    fn micros(value: i64) -> Expr {
        lit(ScalarValue::TimestampMicrosecond(Some(value), Some("UTC".into())))
    }

    #[test]
    fn conditions_on_ts_bound_the_times_and_others_do_not() {
        let of = |condition: Expr| {
            let span = span_of([&condition]);
            (span.from, span.to)
        };
        let all = (i64::MIN, i64::MAX);
        assert_eq!(of(col("ts").gt_eq(micros(5)).and(col("ts").lt(micros(9)))), (5, 9));
        assert_eq!(of(micros(5).lt(col("ts"))), (5, i64::MAX));
        assert_eq!(of(col("ts").eq(micros(7))), (7, 7));
        assert_eq!(of(col("ts").between(micros(1), micros(2))), (1, 2));
        assert_eq!(of(col("ts").not_between(micros(1), micros(2))), all);
        assert_eq!(of(col("ts").gt(micros(1)).or(col("agent_id").eq(lit("a")))), all);
        assert_eq!(of(col("bus_ts").gt(micros(1))), all);
        assert_eq!(of(col("ts").not_eq(micros(1))), all);
        let nanos = |value: i64| lit(ScalarValue::TimestampNanosecond(Some(value), None));
        assert_eq!(of(col("ts").gt_eq(nanos(-1)).and(col("ts").lt_eq(nanos(1_001)))), (-1, 2));
    }
}
