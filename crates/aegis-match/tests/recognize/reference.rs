//! The slow matcher: goes through the parses of a pattern in the order of preferment by plain recursion over its tree, and evaluates conditions
//! and measures from what they mean, row by row. It shares nothing with the crate.

use aegis_pattern::{Pattern, Quantifier};

use crate::harness::Row;

/// A mapping: each row with its variable.
pub(crate) type Mapped = Vec<(usize, char)>;

/// A condition, as SQL and as what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Anything,
    Letter,
    AboveOne,
    AbovePrevious,
    AboveTwoBefore,
    BelowNext,
    NotBelowFirst,
    NotBelowA,
    OddCount,
    SmallSum,
    SmallRange,
    OddMatch,
    FewB,
    NotBelowOwnPrevious,
    NotAfterB,
    AboveAverageOfA,
    DistinctSoFar,
}

impl Condition {
    pub(crate) const ALL: [Self; 17] = [
        Self::Anything,
        Self::Letter,
        Self::AboveOne,
        Self::AbovePrevious,
        Self::AboveTwoBefore,
        Self::BelowNext,
        Self::NotBelowFirst,
        Self::NotBelowA,
        Self::OddCount,
        Self::SmallSum,
        Self::SmallRange,
        Self::OddMatch,
        Self::FewB,
        Self::NotBelowOwnPrevious,
        Self::NotAfterB,
        Self::AboveAverageOfA,
        Self::DistinctSoFar,
    ];

    /// For variable `v`, in a pattern that has the variables a and b.
    pub(crate) fn sql(self, v: char) -> String {
        match self {
            Self::Anything => "true".to_owned(),
            Self::Letter => format!("strpos({v}.k, '{v}') > 0"),
            Self::AboveOne => format!("{v}.x > 1"),
            Self::AbovePrevious => format!("{v}.x > PREV({v}.x)"),
            Self::AboveTwoBefore => "x > PREV(x, 2) OR PREV(x) IS NULL".to_owned(),
            Self::BelowNext => format!("{v}.x < NEXT({v}.x)"),
            Self::NotBelowFirst => format!("{v}.x >= FIRST(x)"),
            Self::NotBelowA => format!("a.x IS NULL OR {v}.x >= a.x"),
            Self::OddCount => "count(*) % 2 = 1".to_owned(),
            Self::SmallSum => format!("coalesce(sum({v}.x), 0) < 5"),
            Self::SmallRange => "max(x) - min(x) <= 2".to_owned(),
            Self::OddMatch => "MATCH_NUMBER() % 2 = 1".to_owned(),
            Self::FewB => "count(b.*) <= 2".to_owned(),
            Self::NotBelowOwnPrevious => format!("LAST({v}.x, 1) IS NULL OR LAST({v}.x, 1) <= {v}.x"),
            Self::NotAfterB => "coalesce(PREV(CLASSIFIER()), 'none') <> 'b'".to_owned(),
            Self::AboveAverageOfA => format!("{v}.x * count(a.x) >= sum(a.x)"),
            Self::DistinctSoFar => "count(DISTINCT x) = count(x)".to_owned(),
        }
    }

    /// Whether it holds for the last mapped row: true, neither false nor null.
    fn holds(self, rows: &[Row], mapped: &Mapped, number: u64) -> bool {
        let (row, v) = *mapped.last().unwrap();
        let x = rows[row].x;
        let at = |offset: i64| usize::try_from(row as i64 + offset).ok().and_then(|row| rows.get(row)).and_then(|row| row.x);
        let of = |variable: char| -> Vec<Option<i64>> {
            mapped.iter().filter(|(_, m)| *m == variable).map(|(row, _)| rows[*row].x).collect()
        };
        let all: Vec<i64> = mapped.iter().filter_map(|(row, _)| rows[*row].x).collect();
        match self {
            Self::Anything => true,
            Self::Letter => rows[row].k.contains(v),
            Self::AboveOne => x.is_some_and(|x| x > 1),
            Self::AbovePrevious => matches!((x, at(-1)), (Some(x), Some(before)) if x > before),
            Self::AboveTwoBefore => matches!((x, at(-2)), (Some(x), Some(before)) if x > before) || at(-1).is_none(),
            Self::BelowNext => matches!((x, at(1)), (Some(x), Some(next)) if x < next),
            Self::NotBelowFirst => matches!((x, rows[mapped[0].0].x), (Some(x), Some(first)) if x >= first),
            Self::NotBelowA => match of('a').last().copied().flatten() {
                None => true,
                Some(a) => x.is_some_and(|x| x >= a),
            },
            Self::OddCount => mapped.len() % 2 == 1,
            Self::SmallSum => of(v).iter().flatten().sum::<i64>() < 5,
            Self::SmallRange => !all.is_empty() && all.iter().max().unwrap() - all.iter().min().unwrap() <= 2,
            Self::OddMatch => number % 2 == 1,
            Self::FewB => of('b').len() <= 2,
            Self::NotBelowOwnPrevious => {
                let own = of(v);
                match own.len().checked_sub(2).and_then(|index| own[index]) {
                    None => true,
                    Some(before) => x.is_some_and(|x| before <= x),
                }
            }
            Self::NotAfterB => mapped.len() < 2 || mapped[mapped.len() - 2].1 != 'b',
            Self::AboveAverageOfA => {
                let a: Vec<i64> = of('a').into_iter().flatten().collect();
                !a.is_empty() && x.is_some_and(|x| x * a.len() as i64 >= a.iter().sum())
            }
            Self::DistinctSoFar => {
                let mut distinct = all.clone();
                distinct.sort_unstable();
                distinct.dedup();
                distinct.len() == all.len()
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Skip {
    PastLast,
    Next,
    First(char),
    Last(char),
}

/// A query in parts.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) pattern: Pattern,
    /// Of a, b and c.
    pub(crate) conditions: [Vec<Condition>; 3],
    pub(crate) skip: Skip,
    /// The longest span of a match, in seconds.
    pub(crate) span: Option<i64>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Too long for a test.
    TooMany,
    /// A match that cannot be skipped from.
    Skip,
}

impl Query {
    /// The matches of one partition.
    pub(crate) fn matches(&self, rows: &[Row]) -> Result<Vec<Mapped>, Stop> {
        let mut found: Vec<Mapped> = Vec::new();
        let mut start = 0;
        while start < rows.len() {
            let number = found.len() as u64 + 1;
            let mut walk = Walk { query: self, rows, start, number, mapped: Vec::new(), steps: 0 };
            let result = walk.pattern(&self.pattern, &mut |walk| Some(Ok(walk.mapped.clone())));
            let Some(mapped) = result.transpose()? else {
                start += 1;
                continue;
            };
            let end = start + mapped.len();
            let target = |variable: char, first: bool| {
                let mut own = mapped.iter().filter(|(_, mapped)| *mapped == variable).map(|(row, _)| *row);
                let row = if first { own.next() } else { own.next_back() };
                row.filter(|row| *row != start).ok_or(Stop::Skip)
            };
            start = match self.skip {
                _ if mapped.is_empty() => start + 1,
                Skip::PastLast => end,
                Skip::Next => start + 1,
                Skip::First(variable) => target(variable, true)?,
                Skip::Last(variable) => target(variable, false)?,
            };
            found.push(mapped);
        }
        Ok(found)
    }
}

/// What comes after a part of the pattern. None: nothing came of it.
type Then<'a> = &'a mut dyn FnMut(&mut Walk<'_>) -> Option<Result<Mapped, Stop>>;

struct Walk<'a> {
    query: &'a Query,
    rows: &'a [Row],
    start: usize,
    number: u64,
    mapped: Mapped,
    steps: u64,
}

impl Walk<'_> {
    fn pattern(&mut self, pattern: &Pattern, then: Then<'_>) -> Option<Result<Mapped, Stop>> {
        self.steps += 1;
        if self.steps > 5_000 {
            return Some(Err(Stop::TooMany));
        }
        let row = self.start + self.mapped.len();
        match pattern {
            Pattern::Empty => then(self),
            Pattern::Start if row == 0 => then(self),
            Pattern::End if row == self.rows.len() => then(self),
            Pattern::Start | Pattern::End => None,
            Pattern::Variable(name) => self.variable(name.chars().next().unwrap(), then),
            Pattern::Concat(parts) => self.concat(parts, then),
            Pattern::Alternate(parts) => parts.iter().find_map(|part| self.pattern(part, then)),
            Pattern::Quantified(part, quantifier) => self.repeat(part, *quantifier, 0, false, then),
        }
    }

    fn concat(&mut self, parts: &[Pattern], then: Then<'_>) -> Option<Result<Mapped, Stop>> {
        match parts {
            [] => then(self),
            [first, rest @ ..] => self.pattern(first, &mut |walk| walk.concat(rest, then)),
        }
    }

    fn repeat(
        &mut self,
        part: &Pattern,
        quantifier: Quantifier,
        done: u32,
        ended_empty: bool,
        then: Then<'_>,
    ) -> Option<Result<Mapped, Stop>> {
        let enough = done >= quantifier.min;
        let more = quantifier.max != Some(done) && !(enough && ended_empty);
        for again in if quantifier.greedy { [true, false] } else { [false, true] } {
            let before = self.mapped.len();
            let result = match again {
                true if more => self.pattern(part, &mut |walk| {
                    let empty = walk.mapped.len() == before;
                    walk.repeat(part, quantifier, done + 1, empty, then)
                }),
                false if enough => then(self),
                _ => None,
            };
            if result.is_some() {
                return result;
            }
        }
        None
    }

    fn variable(&mut self, letter: char, then: Then<'_>) -> Option<Result<Mapped, Stop>> {
        let row = self.start + self.mapped.len();
        let taken = self.rows.get(row)?;
        if self.query.span.is_some_and(|span| taken.ts - self.rows[self.start].ts > span) {
            return None;
        }
        self.mapped.push((row, letter));
        let conditions = &self.query.conditions["abc".find(letter).unwrap()];
        let holds = conditions.iter().all(|condition| condition.holds(self.rows, &self.mapped, self.number));
        let result = if holds { then(self) } else { None };
        self.mapped.truncate(row - self.start);
        result
    }
}

/// The measures of every test query, as SQL.
pub(crate) const MEASURES: &str = "MATCH_NUMBER() AS n, count(*) AS c, array_agg(id) AS ids, array_agg(CLASSIFIER()) AS vs, \
     FIRST(id) AS f, LAST(id, 1) AS l, a.x AS ax, FIRST(b.x, 1) AS bx, PREV(FIRST(x)) AS p, NEXT(LAST(x), 2) AS nx, \
     sum(b.x) AS s, count(a.*) AS ca, CLASSIFIER(a) AS cl, coalesce(max(x), 0) + 1 AS m";

/// The row of a match, as the harness writes it.
pub(crate) fn measures(rows: &[Row], mapped: &Mapped, number: usize) -> String {
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let number_text = |value: Option<i64>| text(value.map(|value| value.to_string()));
    let list = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { format!("[{}]", items.join(", ")) };
    let x_at = |row: Option<usize>| row.and_then(|row| rows.get(row)).and_then(|row| row.x);
    let of = |variable: char| -> Vec<usize> { mapped.iter().filter(|(_, m)| *m == variable).map(|(row, _)| *row).collect() };
    let (a, b) = (of('a'), of('b'));
    let values: Vec<i64> = mapped.iter().filter_map(|(row, _)| rows[*row].x).collect();
    let sum: Vec<i64> = b.iter().filter_map(|row| rows[*row].x).collect();
    let first = mapped.first().map(|(row, _)| *row);
    let last = mapped.last().map(|(row, _)| *row);
    [
        number.to_string(),
        mapped.len().to_string(),
        list(mapped.iter().map(|(row, _)| rows[*row].id.clone()).collect()),
        list(mapped.iter().map(|(_, variable)| variable.to_string()).collect()),
        text(first.map(|row| rows[row].id.clone())),
        text(mapped.len().checked_sub(2).map(|index| rows[mapped[index].0].id.clone())),
        number_text(x_at(a.last().copied())),
        number_text(x_at(b.get(1).copied())),
        number_text(x_at(first.and_then(|row| row.checked_sub(1)))),
        number_text(x_at(last.map(|row| row + 2))),
        number_text((!sum.is_empty()).then(|| sum.iter().sum())),
        a.len().to_string(),
        text((!a.is_empty()).then(|| "a".to_owned())),
        (values.iter().max().copied().unwrap_or(0) + 1).to_string(),
    ]
    .join("|")
}
