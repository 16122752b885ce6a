//! No pattern hangs or swells the engine. Costs are counted in steps, never in time.

use aegis_pattern::{Attempt, Bound, Finder, Found, Limits, Matcher, Outcome, Pattern, Program, Rows, Skip};

use crate::random::{self, Rng, case};
use crate::table::{Table, compile, rows, text};

/// A finder's end over `count` rows of `a`, and its steps. With `dependent`, the condition of `a` is declared to look at the mapping.
fn cost(pattern: &str, count: usize, dependent: bool, limits: Limits) -> (Found, u64) {
    let program = compile(pattern);
    let mut table = Table::new(&program, rows(&"a ".repeat(count)));
    let matcher = Matcher::new(program, Skip::PastLastRow, limits, |_| dependent);
    let mut finder = Finder::default();
    loop {
        match finder.find(&matcher, table.known, &mut table.clone()).unwrap() {
            Found::Match(_) => table.kept_from = finder.needed_from(),
            other => return (other, finder.steps()),
        }
    }
}

const HOSTILE: [&str; 10] = [
    "(a | a)* b",
    "(a*)* b",
    "(a+)+ b",
    "(a* a*)* b",
    "((a | a | a)+ (a | a))* b",
    "(a?){20} b",
    "a* a* a* a* b",
    "((a*)*)* b",
    "(a | a a | a a a)+ b",
    "(a{1,3}){1,4} b",
];

#[test]
fn patterns_that_explode_elsewhere_take_linear_steps_where_failures_are_remembered() {
    // L-PATTERN-LINEAR: over the whole partition, every row of which is a start row that fails.
    for pattern in HOSTILE {
        let matcher = Matcher::new(compile(pattern), Skip::PastLastRow, Limits::default(), |_| false);
        assert!(matcher.is_linear());
        let (end, steps) = cost(pattern, 500, false, Limits::default());
        let (_, twice) = cost(pattern, 1_000, false, Limits::default());
        assert_eq!(end, Found::Done, "{pattern}");
        let bound = 2 * matcher.program().states() * 501;
        assert!(steps <= bound, "{pattern}: {steps} steps, bound {bound}");
        assert!(twice <= 2 * steps + steps / 10, "{pattern}: {steps} steps over 500 rows, {twice} over 1000");
    }
}

#[test]
fn where_conditions_look_at_the_mapping_the_budget_of_steps_ends_an_attempt() {
    // L-PATTERN-BOUNDS
    let limits = Limits { steps: 10_000, cells: 10_000, ..Limits::default() };
    for pattern in ["(a | a)* b", "(a* a*)* b", "((a | a | a)+ (a | a))* b"] {
        let (end, steps) = cost(pattern, 40, true, limits);
        assert_eq!(end, Found::Exhausted { start: 0, bound: Bound::Steps }, "{pattern}");
        assert_eq!(steps, limits.steps, "{pattern}");
    }
}

#[test]
fn an_attempt_that_needs_too_much_memory_ends() {
    // Alternatives, remembered failures and mapped rows all count.
    for pattern in ["a* b", "a+?", "a{1000}"] {
        let limits = Limits { steps: u64::MAX, cells: 100, ..Limits::default() };
        let (end, _) = cost(pattern, 200, false, limits);
        if pattern == "a+?" {
            assert_eq!(end, Found::Done, "one row at a time needs next to nothing");
        } else {
            assert_eq!(end, Found::Exhausted { start: 0, bound: Bound::Memory }, "{pattern}");
        }
    }
}

#[test]
fn an_exhausted_start_row_is_told_once_and_does_not_blind_the_rest() {
    // The rows of `a` are too many for one attempt, and the match after them is found all the same.
    let program = compile("a* b");
    let mut table = Table::new(&program, rows(&format!("{} c a b", "a ".repeat(60))));
    let matcher = Matcher::new(program, Skip::PastLastRow, Limits { steps: 150, cells: 10_000, ..Limits::default() }, |_| false);
    let (mut finder, mut exhausted, mut found) = (Finder::default(), Vec::new(), Vec::new());
    loop {
        match finder.find(&matcher, table.known, &mut table).unwrap() {
            Found::Exhausted { start, .. } => exhausted.push(start),
            Found::Match(mapping) => found.push((mapping.start(), mapping.match_number())),
            _ => break,
        }
    }
    assert!(exhausted.starts_with(&[0, 1, 2]) && exhausted.len() < 60, "{exhausted:?}");
    assert_eq!(found, [(61, 1)]);
}

#[test]
fn a_burst_of_start_rows_under_a_bound_on_the_span_is_linear() {
    // All within the span of each other, and then nothing for a long time: what one start row learnt, the next ones know.
    let steps = |count: usize| {
        let program = compile("a+ b");
        let mut table = Table::new(&program, rows(&format!("{}a", "a ".repeat(count))));
        table.rows.iter_mut().for_each(|row| row.ts /= 1_000_000);
        table.rows[count].ts = 1_000_000;
        table.span = Some(300);
        let matcher = Matcher::new(program, Skip::PastLastRow, Limits::default(), |_| false);
        let mut finder = Finder::default();
        assert_eq!(finder.find(&matcher, Rows::growing(count + 1), &mut table), Ok(Found::NeedsMore));
        assert_eq!(finder.needed_from(), count);
        finder.steps()
    };
    let (once, twice) = (steps(2_000), steps(4_000));
    assert!(once < 20 * 2_000 && twice <= 2 * once + once / 10, "{once}, {twice}");
}

#[test]
fn a_steady_flood_of_start_rows_under_a_bound_on_the_span_is_linear() {
    // L-PATTERN-SURVEY. Each start row reaches one row further than the one before it, and none has a match. The cost of a row does not
    // depend on how many rows the bound spans.
    for pattern in ["a+ b", "a c*? b", "a (a | c)* b a", "(a+)+ b"] {
        let steps = |span: i64| {
            let program = compile(pattern);
            let mut table = Table::new(&program, rows(&"ac ".repeat(4_000)));
            table.span = Some(span);
            let matcher = Matcher::new(program, Skip::PastLastRow, Limits::default(), |_| false);
            let mut finder = Finder::default();
            for known in (1..=4_000).map(Rows::growing) {
                table.known = known;
                table.kept_from = finder.needed_from();
                assert_eq!(finder.find(&matcher, known, &mut table), Ok(Found::NeedsMore), "{pattern}");
            }
            assert_eq!(finder.needed_from(), 4_000 - 1 - span as usize, "{pattern}: start rows that reach the next row are open");
            assert!(finder.is_waiting() && finder.cells() < 4 * 4_000);
            finder.steps()
        };
        let (near, far) = (steps(200), steps(2_000));
        assert!(far <= near + near / 2 && far < 20 * 4_000, "{pattern}: {near} steps, {far} steps");
    }
}

#[test]
fn long_matches_need_no_stack_of_the_thread() {
    let run = || {
        let limits = Limits { steps: u64::MAX, cells: usize::MAX, ..Limits::default() };
        let (end, steps) = cost("(a | a b)* b | (a*)* b", 100_000, false, limits);
        assert_eq!(end, Found::Done);
        steps
    };
    // 64 KiB: a recursion that grows with the rows would overflow.
    let steps = std::thread::Builder::new().stack_size(64 << 10).spawn(run).unwrap().join().unwrap();
    assert!(steps < 3_000_000, "{steps}");
}

#[test]
fn no_random_pattern_takes_more_steps_than_its_states_allow() {
    // L-PATTERN-LINEAR, of each attempt: here the first start row's.
    let mut long = 0;
    for seed in 0..20_000 {
        // Every row may be anything, and the end never fits: all there is to try is tried.
        let fails = Pattern::concat([random::pattern(&mut Rng(4_000_000 + seed), 4), Pattern::End, Pattern::variable("a")]);
        let program = Program::compile(&fails).unwrap();
        let mut table = Table::new(&program, rows(&"abc ".repeat(20)));
        let bound = 2 * program.states() * 21;
        let matcher =
            Matcher::new(program, Skip::ToNextRow, Limits { steps: u64::MAX, cells: usize::MAX, ..Limits::default() }, |_| false);
        assert!(matcher.is_linear());
        let mut attempt = Attempt::new(0, 1);
        assert_eq!(attempt.run(&matcher, table.known, &mut table), Ok(Outcome::NoMatch));
        assert!(attempt.steps() <= bound, "seed {seed}: {fails} took {} steps, bound {bound}", attempt.steps());
        long += usize::from(attempt.steps() > 100);
    }
    assert!(long > 5_000, "{long} long ones");
}

#[test]
fn exhaustion_does_not_depend_on_how_the_rows_came() {
    // As long as nothing is out of reach and nothing was restored: see docs/specs/row-patterns.md, Bounds.
    let mut exhausted = 0;
    for seed in 0..20_000 {
        let mut rng = Rng(5_000_000 + seed);
        let mut case = case(&mut rng, 16);
        case.table.span = None;
        let limits = Limits { steps: 5 + rng.below(60), cells: 5 + rng.below(50) as usize, ..Limits::default() };
        let program = case.matcher.program().clone();
        let matcher = Matcher::new(program, case.skip.clone(), limits, |v| case.table.depends_on_mapping(v));
        let count = case.table.rows.len();
        let run = |piece: usize| {
            let (mut finder, mut table, mut events) = (Finder::default(), case.table.clone(), Vec::new());
            for known in (piece..count).step_by(piece).map(Rows::growing).chain([Rows::complete(count)]) {
                table.known = known;
                loop {
                    match finder.find(&matcher, known, &mut table) {
                        Ok(Found::NeedsMore) => break,
                        Ok(Found::Done) => return events,
                        Ok(Found::Match(mapping)) => events.push(text(matcher.program(), &mapping)),
                        Ok(other) => events.push(format!("{other:?}")),
                        Err(error) => {
                            events.push(error.to_string());
                            return events;
                        }
                    }
                }
            }
            events
        };
        let whole = run(count.max(1));
        exhausted += whole.iter().filter(|event| event.starts_with("Exhausted")).count();
        assert_eq!(run(1 + rng.below(4) as usize), whole, "seed {seed}: {} over {:?}", case.pattern, case.table);
    }
    assert!(exhausted > 5_000, "{exhausted}");
}
