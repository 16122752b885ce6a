//! Rows that come in pieces: the same matches, each as soon as it is decided.

use aegis_pattern::{
    Answer, Attempt, Conditions, Finder, Found, Limits, Mapping, Matcher, Outcome, Pattern, Program, Rows, Skip, Variable,
};

use crate::parse;
use crate::random::{self, Rng, case, ending};
use crate::table::{Kind, Table, compile, rows, text};

/// What is decided after each row, the partition growing; the last entry is for its end. `-` stands for nothing.
fn row_by_row(pattern: &str, words: &str) -> Vec<String> {
    let program = compile(pattern);
    let matcher = Matcher::new(program.clone(), Skip::PastLastRow, Limits::default(), |_| false);
    let mut table = Table::new(&program, rows(words));
    let count = table.rows.len();
    let mut finder = Finder::default();
    let mut decided = Vec::new();
    for known in (1..=count).map(Rows::growing).chain([Rows::complete(count)]) {
        table.known = known;
        table.kept_from = finder.needed_from();
        let mut found = Vec::new();
        while let Found::Match(mapping) = finder.find(&matcher, known, &mut table).unwrap() {
            found.push(text(&program, &mapping));
        }
        decided.push(if found.is_empty() { "-".to_owned() } else { found.join(" ") });
    }
    decided
}

#[test]
fn a_match_is_told_when_no_row_to_come_can_change_it() {
    assert_eq!(row_by_row("a b", "a b a b"), ["-", "0:ab", "-", "2:ab", "-"]);
    // Reluctant: at once.
    assert_eq!(row_by_row("a+?", "a a"), ["0:a", "1:a", "-"]);
    // Greedy: the next row may belong to it.
    assert_eq!(row_by_row("a+", "a a . a"), ["-", "-", "0:aa", "-", "3:a"]);
    assert_eq!(row_by_row("a{2}", "a a"), ["-", "0:aa", "-"]);
    assert_eq!(row_by_row("a{1,2}", "a a"), ["-", "0:aa", "-"]);
    // An alternative that is preferred may still come; one that is not does not matter.
    assert_eq!(row_by_row("a b | a", "a c"), ["-", "0:a", "-"]);
    assert_eq!(row_by_row("a | a b", "a b"), ["0:a", "-", "-"]);
    assert_eq!(row_by_row("a c*? b", "a c c b"), ["-", "-", "-", "0:accb", "-"]);
}

#[test]
fn the_end_anchor_waits_for_the_end() {
    assert_eq!(row_by_row("a c* $", "a c c"), ["-", "-", "-", "0:acc"]);
    assert_eq!(row_by_row("^ a", ". a"), ["-", "-", "-"]);
    assert_eq!(row_by_row("()", "a a"), ["0:", "1:", "-"]);
}

/// A condition that looks at the next row: `a` holds where the next row is later by less than `gap`.
struct SoonFollowed {
    ts: Vec<i64>,
    known: Rows,
}

impl Conditions for SoonFollowed {
    type Error = String;

    fn holds(&mut self, _variable: Variable, row: usize, _so_far: &Mapping) -> Result<Answer, String> {
        match self.ts[..self.known.end].get(row + 1) {
            Some(next) => Ok(Answer::from(next - self.ts[row] < 10)),
            // Wrong where the partition is complete.
            None => Ok(Answer::NeedsMore),
        }
    }
}

#[test]
fn a_condition_may_wait_for_a_later_row_but_not_for_ever() {
    let matcher = Matcher::new(compile("a"), Skip::PastLastRow, Limits::default(), |_| false);
    let mut conditions = SoonFollowed { ts: vec![0, 5, 30], known: Rows::growing(1) };
    let mut attempt = Attempt::new(0, 1);
    assert_eq!(attempt.run(&matcher, Rows::growing(1), &mut conditions), Ok(Outcome::NeedsMore));
    conditions.known = Rows::growing(2);
    assert!(matches!(attempt.run(&matcher, Rows::growing(2), &mut conditions), Ok(Outcome::Match(_))));
    assert_eq!(attempt.run(&matcher, Rows::growing(2), &mut conditions), Ok(Outcome::NoMatch), "an attempt that is over");

    let mut finder = Finder::restore(aegis_pattern::Saved { position: 2, matches: 0 });
    conditions.known = Rows::complete(3);
    let error = finder.find(&matcher, Rows::complete(3), &mut conditions).unwrap_err().to_string();
    assert!(error.contains("waits at row 2 for rows of a partition that is complete"), "{error}");
}

#[test]
fn a_match_reaches_no_further_than_it_may_and_a_watermark_decides_without_a_row() {
    let program = compile("a c* b");
    let matcher = Matcher::new(program.clone(), Skip::PastLastRow, Limits::default(), |_| false);
    let mut table = Table::new(&program, rows("a c c b a c b"));
    table.span = Some(2);
    let mut finder = Finder::default();
    let mut found = Vec::new();
    while let Found::Match(mapping) = finder.find(&matcher, table.known, &mut table.clone()).unwrap() {
        found.push(text(&program, &mapping));
    }
    assert_eq!(found, ["4:acb"]);

    // Rows 0..2 are known; that the next one is out of reach is known before it comes.
    struct Watermark(bool);
    impl Conditions for Watermark {
        type Error = String;
        fn holds(&mut self, variable: Variable, row: usize, _so_far: &Mapping) -> Result<Answer, String> {
            Ok(Answer::from("acb".as_bytes()[variable.index()] == b"acc"[row]))
        }
        fn in_reach(&mut self, start: usize, row: usize) -> bool {
            !(self.0 && start == 0 && row >= 2)
        }
    }
    let mut finder = Finder::default();
    assert_eq!(finder.find(&matcher, Rows::growing(2), &mut Watermark(false)), Ok(Found::NeedsMore));
    assert!(finder.is_waiting() && finder.needed_from() == 0);
    assert_eq!(finder.find(&matcher, Rows::growing(2), &mut Watermark(true)), Ok(Found::NeedsMore));
    assert!(!finder.is_waiting() && finder.needed_from() == 2, "no row is needed any more");
}

#[test]
fn pieces_of_any_size_saved_and_restored_at_any_point_give_the_same_matches() {
    // L-PATTERN-CHUNKS, L-PATTERN-RESTORE. Rows that the finder does not need are gone, and reading one fails the test.
    let (mut matches, mut pieces, mut restored) = (0, 0, 0);
    for seed in 0..40_000 {
        let mut rng = Rng(2_000_000 + seed);
        let case = case(&mut rng, 16);
        let Some(expected) = case.whole() else { continue };
        let mut table = case.table.clone();
        let count = table.rows.len();
        let (mut finder, mut found, mut end) = (Finder::default(), Vec::new(), 0);
        let finding = loop {
            end = count.min(end + rng.below(5) as usize);
            table.known = Rows { end, complete: end == count && rng.below(2) == 0 };
            pieces += 1;
            let outcome = loop {
                table.kept_from = finder.needed_from();
                if rng.below(4) == 0 {
                    finder = Finder::restore(finder.save());
                    restored += 1;
                }
                match if end == 0 { Ok(Found::NeedsMore) } else { finder.find(&case.matcher, table.known, &mut table) } {
                    Ok(Found::Match(mapping)) => found.push(text(case.matcher.program(), &mapping)),
                    other => break other,
                }
            };
            match outcome {
                Ok(Found::NeedsMore) if table.known.complete && end > 0 => panic!("seed {seed}: a complete partition is decided"),
                Ok(Found::NeedsMore) if table.known.complete => break Ok(()),
                Ok(Found::NeedsMore) => {}
                Ok(Found::Done) => break Ok(()),
                Ok(other) => panic!("seed {seed}: {other:?}"),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = finding {
            found.push(ending(&error));
        }
        assert_eq!(found, expected, "seed {seed}: {} over {:?}", case.pattern, case.table);
        matches += found.len();
    }
    assert!(
        matches > 100_000 && pieces > 100_000 && restored > 50_000,
        "{matches} matches, {pieces} pieces, {restored} restored"
    );
}

#[test]
fn pieces_cost_what_the_whole_costs() {
    // The search goes on where it stopped: the same steps, to one, however the rows come, as long as nothing is out of reach.
    for seed in 0..10_000 {
        let mut rng = Rng(3_000_000 + seed);
        let mut case = case(&mut rng, 16);
        case.table.span = None;
        let count = case.table.rows.len();
        let mut steps = Vec::new();
        for piece in [count.max(1), 1 + rng.below(4) as usize] {
            let (mut finder, mut table) = (Finder::default(), case.table.clone());
            let pieces = (piece..count).step_by(piece).map(Rows::growing).chain([Rows::complete(count)]);
            'pieces: for known in pieces {
                table.known = known;
                loop {
                    match finder.find(&case.matcher, known, &mut table) {
                        Ok(Found::Match(_)) => {}
                        Ok(_) => break,
                        Err(_) => break 'pieces,
                    }
                }
            }
            steps.push(finder.steps());
        }
        assert_eq!(steps[0], steps[1], "seed {seed}: {} over {:?}", case.pattern, case.table);
    }
}

#[test]
fn a_survey_of_the_start_rows_changes_no_match_and_no_waiting() {
    // L-PATTERN-SURVEY: after each piece, the same matches are told and the same start row is open.
    let (mut matches, mut surveyed) = (0, 0);
    for seed in 0..40_000 {
        // What comes last is rare, so that searches run out of reach.
        let mut rng = Rng(8_000_000 + seed);
        let last = parse::pattern(["c", "c", "c $", "b? $ ($ | c)"][rng.below(4) as usize]);
        let pattern = Pattern::concat([random::pattern(&mut rng, 3), last]);
        let program = Program::compile(&pattern).unwrap();
        let skip = if rng.below(2) == 0 { Skip::PastLastRow } else { Skip::ToNextRow };
        let mut table = Table::new(&program, random::rows(&mut rng, 24));
        table.rows.iter_mut().filter(|row| row.ts % 3 > 0).for_each(|row| row.letters = row.letters.replace('c', "a"));
        let physical = [Kind::Letter, Kind::Letter, Kind::Letter, Kind::AbovePrevious, Kind::BelowNext];
        table.kinds = [(); 3].map(|()| physical[rng.below(5) as usize]);
        table.span = Some(rng.below(12) as i64);
        let count = table.rows.len();
        let ends: Vec<usize> = (1..=count).filter(|_| rng.below(3) > 0).collect();
        let run = |survey_after| {
            let limits = Limits { survey_after, steps: 1_000_000, cells: 1_000_000 };
            let matcher = Matcher::new(program.clone(), skip.clone(), limits, |_| false);
            let (mut finder, mut table, mut told) = (Finder::default(), table.clone(), Vec::new());
            for known in ends.iter().map(|end| Rows::growing(*end)).chain([Rows::complete(count)]) {
                table.known = known;
                loop {
                    table.kept_from = finder.needed_from();
                    match finder.find(&matcher, known, &mut table) {
                        Ok(Found::Match(mapping)) => told.push(text(matcher.program(), &mapping)),
                        Ok(Found::NeedsMore) => break,
                        Ok(Found::Done) => return (told, finder.steps()),
                        other => {
                            told.push(format!("{other:?}"));
                            return (told, finder.steps());
                        }
                    }
                }
                told.push(format!("{} {}", finder.needed_from(), finder.is_waiting()));
            }
            (told, finder.steps())
        };
        let ((with, steps_with), (without, steps_without)) = (run(0), run(u64::MAX));
        assert_eq!(with, without, "seed {seed}: {pattern} over {table:?}");
        matches += with.iter().filter(|told| told.contains(':')).count();
        surveyed += usize::from(steps_with != steps_without);
    }
    assert!(matches > 20_000 && surveyed > 4_000, "{matches} matches, {surveyed} cases with a survey");
}
