//! Random rows and queries, from a generator of its own, so that a failure can be had again by its seed.

use aegis_pattern::{Pattern, Quantifier};

use crate::harness::Row;
use crate::reference::{Condition, MEASURES, Query, Skip};

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

fn quantifier(rng: &mut Rng) -> Quantifier {
    let min = rng.below(3) as u32;
    let quantifier = match rng.below(6) {
        0 => Quantifier::ZERO_OR_MORE,
        1 => Quantifier::ONE_OR_MORE,
        2 => Quantifier::OPTIONAL,
        3 => Quantifier::exactly(min + 1),
        4 => Quantifier::at_least(min),
        _ => Quantifier::between(min, min + 1 + rng.below(2) as u32),
    };
    if rng.chance(40) { quantifier.reluctant() } else { quantifier }
}

fn pattern(rng: &mut Rng, depth: u32) -> Pattern {
    let parts = |rng: &mut Rng| (0..rng.below(3) + 1).map(|_| pattern(rng, depth - 1)).collect();
    match if depth == 0 { rng.below(12) } else { 8 + rng.below(24) } {
        0..=9 => Pattern::variable(rng.one(&["a", "b", "c"])),
        10 => Pattern::Empty,
        11 => {
            if rng.chance(50) {
                Pattern::Start
            } else {
                Pattern::End
            }
        }
        12..=17 => Pattern::Concat(parts(rng)),
        18..=22 => Pattern::Alternate(parts(rng)),
        _ => pattern(rng, depth - 1).times(quantifier(rng)),
    }
}

/// Rows in the order of their times, of up to three partitions.
pub(crate) fn rows(rng: &mut Rng, most: usize) -> Vec<Row> {
    let mut ts = 0;
    let count = rng.below(most + 1);
    let mut row = |place: usize| {
        ts += 1 + rng.below(2) as i64;
        let g = [Some("p"), Some("q"), None][rng.below(3)].map(str::to_owned);
        let k = "abc".chars().filter(|_| rng.chance(55)).collect();
        let x = (!rng.chance(15)).then(|| rng.below(4) as i64);
        Row { g, ts, x, k, id: format!("i{place}") }
    };
    (0..count).map(&mut row).collect()
}

/// A query whose pattern has at least the variables a and b, so that every condition and measure can name them.
pub(crate) fn query(rng: &mut Rng, with_span: bool) -> Query {
    let depth = 1 + rng.below(4) as u32;
    let mut pattern = pattern(rng, depth);
    let text = pattern.to_string();
    for variable in ["a", "b"] {
        if !text.contains(variable) {
            // Where it is never preferred, so that it changes little.
            let more = Pattern::concat([Pattern::variable(variable)]);
            pattern = Pattern::alternate([pattern, more]);
        }
    }
    let mut conditions = [(); 3].map(|()| if rng.chance(60) { vec![Condition::Letter] } else { Vec::new() });
    for of in &mut conditions {
        if rng.chance(60) {
            of.push(rng.one(&Condition::ALL));
        }
        if rng.chance(15) {
            of.push(rng.one(&Condition::ALL));
        }
    }
    let skip = match rng.below(6) {
        0..=1 => Skip::PastLast,
        2..=3 => Skip::Next,
        4 => Skip::First(rng.one(&['a', 'b'])),
        _ => Skip::Last(rng.one(&['a', 'b'])),
    };
    let span = (with_span && rng.chance(60)).then(|| rng.below(9) as i64);
    Query { pattern, conditions, skip, span }
}

impl Query {
    /// The relation, ordered by time. The span is not in it.
    pub(crate) fn relation(&self, partition: &str) -> String {
        let pattern = self.pattern.to_string();
        let mut defines = Vec::new();
        for (variable, conditions) in "abc".chars().zip(&self.conditions) {
            if pattern.contains(variable) && !conditions.is_empty() {
                let texts: Vec<String> = conditions.iter().map(|condition| format!("({})", condition.sql(variable))).collect();
                defines.push(format!("{variable} AS {}", texts.join(" AND ")));
            }
        }
        if defines.is_empty() {
            defines.push("a AS true".to_owned());
        }
        let skip = match self.skip {
            Skip::PastLast => "PAST LAST ROW".to_owned(),
            Skip::Next => "TO NEXT ROW".to_owned(),
            Skip::First(variable) => format!("TO FIRST {variable}"),
            Skip::Last(variable) => format!("TO LAST {variable}"),
        };
        format!(
            "t MATCH_RECOGNIZE ({partition} ORDER BY ts MEASURES {MEASURES} AFTER MATCH SKIP {skip} PATTERN ({pattern}) DEFINE {})",
            defines.join(", ")
        )
    }
}
