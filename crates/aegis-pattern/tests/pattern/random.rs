//! Random patterns, rows and conditions, from a generator of its own, so that a failure can be had again by its seed.

use aegis_pattern::{
    Attempt, Finder, Found, Limits, MatchError, Matcher, Outcome, Pattern, Program, Quantifier, Rows, Scope, Skip, Variable,
};

use crate::parse;
use crate::reference::{self, Stop};
use crate::table::{Kind, Row, Table, text};

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
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

pub(crate) fn pattern(rng: &mut Rng, depth: u32) -> Pattern {
    let parts = |rng: &mut Rng| (0..rng.below(3) + 1).map(|_| pattern(rng, depth - 1)).collect();
    match if depth == 0 { rng.below(12) } else { 8 + rng.below(24) } {
        0..=9 => Pattern::variable(["a", "b", "c"][rng.below(3) as usize]),
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

pub(crate) fn rows(rng: &mut Rng, most: u64) -> Vec<Row> {
    let mut ts = 0;
    let count = rng.below(most + 1);
    let row = |_| {
        ts += rng.below(3) as i64;
        let letters = "abc".chars().filter(|_| rng.chance(55)).collect();
        Row { letters, value: rng.below(4) as i64, ts }
    };
    (0..count).map(row).collect()
}

/// A pattern, its matcher, and a complete partition.
pub(crate) struct Case {
    pub(crate) pattern: Pattern,
    pub(crate) matcher: Matcher,
    pub(crate) table: Table,
    pub(crate) skip: Skip,
}

pub(crate) fn case(rng: &mut Rng, most_rows: u64) -> Case {
    let depth = 1 + rng.below(4) as u32;
    let pattern = pattern(rng, depth);
    let program = Program::compile(&pattern).unwrap();
    let mut table = Table::new(&program, rows(rng, most_rows));
    if rng.chance(50) {
        table.kinds = [(); 3].map(|()| Kind::ALL[rng.below(Kind::ALL.len() as u64) as usize]);
    }
    if rng.chance(30) {
        table.span = Some(rng.below(8) as i64);
    }
    let variables =
        |rng: &mut Rng| ["a", "b"].iter().filter(|_| rng.chance(60)).filter_map(|name| program.variable(name)).collect();
    let skip = match rng.below(4) {
        0 => Skip::PastLastRow,
        1 => Skip::ToNextRow,
        2 => Skip::ToFirst(variables(rng)),
        _ => Skip::ToLast(variables(rng)),
    };
    let limits = Limits { survey_after: [0, 20, 256][rng.below(3) as usize], ..limits() };
    let matcher = Matcher::new(program, skip.clone(), limits, |variable| table.depends_on_mapping(variable));
    Case { pattern, matcher, table, skip }
}

/// So much that small cases are hardly ever exhausted.
fn limits() -> Limits {
    Limits { steps: 5_000_000, cells: 5_000_000, ..Limits::default() }
}

impl Case {
    /// What the finder finds in the complete partition, and how it ends. None where that takes too much: an attempt is exhausted.
    pub(crate) fn whole(&self) -> Option<Vec<String>> {
        let mut table = self.table.clone();
        let mut finder = Finder::default();
        let mut found = Vec::new();
        loop {
            match finder.find(&self.matcher, self.table.known, &mut table) {
                Ok(Found::Match(mapping)) => found.push(text(self.matcher.program(), &mapping)),
                Ok(Found::Done) => return Some(found),
                Ok(Found::Exhausted { .. }) => return None,
                Ok(Found::NeedsMore) => panic!("a complete partition is decided"),
                Err(error) => {
                    found.push(ending(&error));
                    return Some(found);
                }
            }
        }
    }

    /// The same by the reference. None if that takes too long.
    fn whole_by_reference(&self) -> Option<Vec<String>> {
        let mut found = Vec::new();
        let mut start = 0;
        while start < self.table.rows.len() {
            start = match reference::attempt(&self.pattern, &self.table, start, found.len() as u64 + 1) {
                None => start + 1,
                Some(Stop::TooMany) => return None,
                Some(Stop::NeedsMore) => panic!("a complete partition is decided"),
                Some(Stop::Match(rows)) => {
                    let next = self.next_start(start, &rows);
                    match next {
                        Ok(next) => {
                            found.push(reference_text(start, &rows));
                            next
                        }
                        Err(error) => {
                            found.push(ending(&error));
                            return Some(found);
                        }
                    }
                }
            }
        }
        Some(found)
    }

    fn next_start(&self, start: usize, rows: &[(usize, char)]) -> Result<usize, MatchError<String>> {
        let Some((last, _)) = rows.last() else { return Ok(start + 1) };
        let named = |variables: &[Variable], letter: char| {
            variables.iter().any(|v| self.matcher.program().variables()[v.index()] == letter.to_string())
        };
        let row = match &self.skip {
            Skip::PastLastRow => return Ok(last + 1),
            Skip::ToNextRow => return Ok(start + 1),
            Skip::ToFirst(variables) => rows.iter().find(|(_, letter)| named(variables, *letter)),
            Skip::ToLast(variables) => rows.iter().rev().find(|(_, letter)| named(variables, *letter)),
        };
        match row {
            None => Err(MatchError::SkipToUnmapped { start }),
            Some((row, _)) if *row == start => Err(MatchError::SkipToFirstRow { start }),
            Some((row, _)) => Ok(*row),
        }
    }
}

pub(crate) fn ending(error: &MatchError<String>) -> String {
    error.to_string()
}

fn reference_text(start: usize, rows: &[(usize, char)]) -> String {
    format!("{start}:{}", rows.iter().map(|(_, letter)| *letter).collect::<String>())
}

#[test]
fn the_matches_are_those_of_the_reference() {
    // L-PATTERN-PREFERMENT, L-PATTERN-EMPTY-ITERATION, L-PATTERN-SKIP
    let (mut compared, mut matches, mut empty, mut errors, mut dependent, mut bounded) = (0, 0, 0, 0, 0, 0);
    for seed in 0..60_000 {
        let case = case(&mut Rng(seed), 9);
        let Some(expected) = case.whole_by_reference() else { continue };
        assert_eq!(case.whole(), Some(expected.clone()), "seed {seed}: {} over {:?}", case.pattern, case.table);
        compared += 1;
        matches += expected.len();
        empty += expected.iter().filter(|found| found.ends_with(':')).count();
        errors += expected.iter().filter(|found| found.starts_with("AFTER")).count();
        dependent += usize::from(case.table.kinds.iter().any(|kind| kind.depends_on_mapping()));
        bounded += usize::from(case.table.span.is_some());
    }
    // The cases are worth something.
    assert!(compared > 55_000, "{compared} compared");
    assert!(matches > 100_000 && empty > 10_000 && errors > 1_000, "{matches} matches, {empty} empty, {errors} errors");
    assert!(
        dependent > 15_000 && bounded > 10_000,
        "{dependent} with conditions on the mapping, {bounded} with a bound on the span"
    );
}

#[test]
fn a_start_row_waits_exactly_when_the_search_comes_to_what_is_not_known() {
    // L-PATTERN-PREFERMENT: of the known rows alone, neither too early nor too late.
    let mut counts = [0; 3];
    for seed in 0..30_000 {
        let mut rng = Rng(1_000_000 + seed);
        let Case { pattern, matcher, mut table, .. } = case(&mut rng, 9);
        if table.rows.is_empty() {
            continue;
        }
        let end = 1 + rng.below(table.rows.len() as u64) as usize;
        table.known = Rows::growing(end);
        let start = rng.below(end as u64) as usize;
        let expected = match reference::attempt(&pattern, &table, start, 1) {
            Some(Stop::TooMany) => continue,
            Some(Stop::NeedsMore) => "waits".to_owned(),
            Some(Stop::Match(rows)) => reference_text(start, &rows),
            None => "none".to_owned(),
        };
        let outcome = Attempt::new(start, 1).run(&matcher, table.known, &mut table).unwrap();
        let (kind, outcome) = match outcome {
            Outcome::Match(mapping) => (0, text(matcher.program(), &mapping)),
            Outcome::NoMatch => (1, "none".to_owned()),
            Outcome::NeedsMore => (2, "waits".to_owned()),
            Outcome::Exhausted(bound) => panic!("seed {seed}: {bound:?}"),
        };
        assert_eq!(outcome, expected, "seed {seed}: {pattern} at {start} over {table:?}");
        counts[kind] += 1;
    }
    assert!(counts.iter().all(|count| *count > 1_000), "match, none, waits: {counts:?}");
}

#[test]
fn a_pattern_that_is_written_and_read_back_means_the_same() {
    for seed in 0..20_000 {
        let pattern = pattern(&mut Rng(6_000_000 + seed), 4);
        let read = parse::pattern(&pattern.to_string());
        assert_eq!(Program::compile(&read), Program::compile(&pattern), "seed {seed}: {pattern}");
    }
}

#[test]
fn every_view_of_a_mapping_is_what_a_scan_of_its_rows_finds() {
    let mut views = 0;
    for seed in 0..10_000 {
        let Case { matcher, mut table, .. } = case(&mut Rng(7_000_000 + seed), 12);
        let known = table.known;
        let Ok(Found::Match(mapping)) = Finder::default().find(&matcher, known, &mut table) else { continue };
        let variables: Vec<Variable> = mapping.iter().map(|(_, variable)| variable).collect();
        for as_of in mapping.start()..mapping.end() {
            let scopes =
                variables.iter().map(|v| Scope::One(*v)).chain([Scope::All, Scope::Union(&variables[..variables.len().min(2)])]);
            for scope in scopes {
                let in_scope = |variable: Variable| match scope {
                    Scope::All => true,
                    Scope::One(one) => one == variable,
                    Scope::Union(any) => any.contains(&variable),
                };
                let scan: Vec<usize> =
                    mapping.iter().filter(|(row, variable)| *row <= as_of && in_scope(*variable)).map(|(row, _)| row).collect();
                let view = mapping.running(as_of);
                assert_eq!(view.rows(scope).collect::<Vec<_>>(), scan);
                assert_eq!(view.count(scope), scan.len());
                for n in 0..=scan.len() {
                    assert_eq!(view.first(scope, n), scan.get(n).copied());
                    assert_eq!(view.last(scope, n), scan.iter().rev().nth(n).copied());
                }
                assert_eq!(view.classifier(scope), scan.last().and_then(|row| mapping.classifier(*row)));
                views += 1;
            }
        }
    }
    assert!(views > 5_000, "{views} views");
}
