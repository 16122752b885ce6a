//! What people write MATCH_RECOGNIZE for, from the conditions to the measures, as an operator would run it.

use aegis_pattern::{
    Answer, Conditions, Finder, Found, Limits, Mapping, Matcher, Navigation, Program, Rows, Scope, Skip, Target, Variable,
};

use crate::table::{compile, text};

/// A condition of DEFINE, and whether it looks at the mapping.
type Define<R> = (&'static str, bool, fn(&Seen<'_, R>) -> bool);

/// The time of a row, and the longest span of a match.
type Within<R> = Option<(fn(&R) -> i64, i64)>;

/// What a condition sees.
struct Seen<'a, R> {
    rows: &'a [R],
    program: &'a Program,
    so_far: &'a Mapping,
    /// The current row.
    row: &'a R,
}

impl<R> Seen<'_, R> {
    fn of(&self, variable: &str) -> Scope<'static> {
        Scope::One(self.program.variable(variable).unwrap())
    }

    fn at(&self, navigation: Navigation<'_>) -> Option<&R> {
        match navigation.locate(self.so_far.whole(), Rows::growing(self.rows.len())) {
            Target::Row(row) => Some(&self.rows[row]),
            _ => None,
        }
    }

    /// `PREV(column)`
    fn previous(&self) -> Option<&R> {
        self.at(Navigation::last(Scope::All).prev(1))
    }

    /// `variable.column`
    fn last(&self, variable: &str) -> Option<&R> {
        self.at(Navigation::last(self.of(variable)))
    }
}

struct Partition<'a, R> {
    rows: &'a [R],
    program: Program,
    define: &'a [Define<R>],
    within: Within<R>,
}

impl<R> Conditions for Partition<'_, R> {
    type Error = String;

    fn holds(&mut self, variable: Variable, row: usize, so_far: &Mapping) -> Result<Answer, String> {
        let name = &self.program.variables()[variable.index()];
        let seen = Seen { rows: self.rows, program: &self.program, so_far, row: &self.rows[row] };
        // A variable without a condition takes every row.
        let holds = self.define.iter().find(|(defined, ..)| defined == name).is_none_or(|(_, _, condition)| condition(&seen));
        Ok(Answer::from(holds))
    }

    fn in_reach(&mut self, start: usize, row: usize) -> bool {
        let Some((time, span)) = self.within else { return true };
        self.rows.get(row).is_none_or(|later| time(later) - time(&self.rows[start]) <= span)
    }
}

/// Every match of a partition; the rows come one by one, and the partition then ends if `complete`.
fn recognize<R>(
    pattern: &str,
    skip: fn(&Program) -> Skip,
    define: &[Define<R>],
    within: Within<R>,
    rows: &[R],
    complete: bool,
) -> (Program, Vec<Mapping>) {
    let program = compile(pattern);
    let depends =
        |variable: Variable| define.iter().any(|(name, depends, _)| *depends && program.variables()[variable.index()] == *name);
    let matcher = Matcher::new(program.clone(), skip(&program), Limits::default(), depends);
    let (mut finder, mut found) = (Finder::default(), Vec::new());
    let end = complete.then(|| Rows::complete(rows.len()));
    for known in (1..=rows.len()).map(Rows::growing).chain(end) {
        let mut partition = Partition { rows: &rows[..known.end], program: program.clone(), define, within };
        while let Found::Match(mapping) = finder.find(&matcher, known, &mut partition).unwrap() {
            found.push(mapping);
        }
    }
    (program, found)
}

fn past_last_row(_program: &Program) -> Skip {
    Skip::PastLastRow
}

fn to_next_row(_program: &Program) -> Skip {
    Skip::ToNextRow
}

fn texts((program, found): (Program, Vec<Mapping>)) -> Vec<String> {
    found.iter().map(|mapping| text(&program, mapping)).collect()
}

#[test]
fn a_v_shape_is_found_with_its_start_its_bottom_and_its_top() {
    let define: [Define<i64>; 2] = [
        ("d", false, |seen| seen.previous().is_some_and(|previous| seen.row < previous)),
        ("u", false, |seen| seen.previous().is_some_and(|previous| seen.row > previous)),
    ];
    let to_last_up = |program: &Program| Skip::ToLast(vec![program.variable("u").unwrap()]);
    let prices = [10, 9, 7, 8, 11, 12, 12, 10, 6, 9, 5];
    let (program, found) = recognize("s d+ u+", to_last_up, &define, None, &prices, true);
    let measure =
        |found: &Mapping, navigation: Navigation<'_>| match navigation.locate(found.whole(), Rows::complete(prices.len())) {
            Target::Row(row) => Some(prices[row]),
            _ => None,
        };
    let one = |name| Scope::One(program.variable(name).unwrap());
    let shapes: Vec<_> = found
        .iter()
        .map(|m| {
            (
                measure(m, Navigation::last(one("s"))),
                measure(m, Navigation::last(one("d"))),
                measure(m, Navigation::last(one("u"))),
            )
        })
        .collect();
    assert_eq!(shapes, [(Some(10), Some(7), Some(12)), (Some(12), Some(6), Some(9))]);
    assert_eq!(texts((program, found)), ["0:sdduuu", "6:sddu"], "the second starts at the later of the two tops");
}

/// An event of an agent.
#[derive(Clone, Copy)]
struct Event {
    ts: i64,
    decision: &'static str,
    tool: &'static str,
}

fn event(ts: i64, decision: &'static str, tool: &'static str) -> Event {
    Event { ts, decision, tool }
}

#[test]
fn a_denied_call_that_is_allowed_within_a_minute_is_found_for_the_same_tool_only() {
    let define: [Define<Event>; 2] = [
        ("d", false, |seen| seen.row.decision == "deny"),
        ("w", true, |seen| {
            let denied = seen.last("d").unwrap();
            seen.row.decision == "allow" && seen.row.tool == denied.tool && seen.row.ts <= denied.ts + 60
        }),
    ];
    let events = [
        event(0, "deny", "push"),
        event(10, "allow", "read"),
        event(20, "deny", "mail"),
        event(50, "allow", "push"),
        event(90, "allow", "mail"),
        event(95, "deny", "mail"),
        event(99, "allow", "mail"),
    ];
    let within: Within<Event> = Some((|event| event.ts, 60));
    let found = recognize("d x*? w", to_next_row, &define, within, &events, false);
    assert_eq!(texts(found), ["0:dxxw", "5:dw"], "the second deny's tool is allowed after 70 s");
}

#[test]
fn repetitions_are_counted_within_the_span_of_a_match() {
    let define: [Define<Event>; 1] = [("d", false, |seen| seen.row.decision == "deny")];
    let within: Within<Event> = Some((|event| event.ts, 60));
    let denies = |times: &[i64]| times.iter().map(|ts| event(*ts, "deny", "push")).collect::<Vec<_>>();
    let found = |times: &[i64]| texts(recognize("d{5}", past_last_row, &define, within, &denies(times), false));
    assert_eq!(found(&[0, 10, 20, 30, 60]), ["0:ddddd"]);
    assert_eq!(found(&[0, 10, 20, 30, 61]), [""; 0]);
    assert_eq!(found(&[0, 30, 40, 50, 60, 61, 90, 91]), ["0:ddddd"]);
    assert_eq!(found(&[0, 30, 40, 50, 61, 62, 90, 91]), ["1:ddddd"]);
}

#[test]
fn absence_is_found_by_anchors_when_the_partition_ends_and_no_sooner() {
    let define: [Define<Event>; 2] =
        [("a", false, |seen| seen.row.decision == "approve"), ("n", false, |seen| seen.row.decision != "execute")];
    let idle = [event(0, "open", ""), event(5, "approve", "push"), event(9, "close", "")];
    let used = [event(0, "open", ""), event(5, "approve", "push"), event(9, "execute", "push")];
    let not_executed = |events: &[Event], complete| texts(recognize("a n* $", past_last_row, &define, None, events, complete));
    assert_eq!(not_executed(&idle, true), ["1:an"]);
    assert_eq!(not_executed(&idle, false), [""; 0]);
    assert_eq!(not_executed(&used, true), [""; 0]);
    assert_eq!(texts(recognize("^ n* $", past_last_row, &define, None, &idle, true)), ["0:nnn"]);
    // A later row that says that time has passed, a tick, decides it in a partition that goes on.
    let define: [Define<Event>; 3] = [
        define[0],
        ("n", true, |seen| seen.row.decision != "execute" && seen.row.ts <= seen.last("a").unwrap().ts + 600),
        ("t", true, |seen| seen.row.ts > seen.last("a").unwrap().ts + 600),
    ];
    let later = [idle[0], idle[1], idle[2], event(700, "tick", "")];
    assert_eq!(texts(recognize("a n*? t", past_last_row, &define, None, &later, false)), ["1:ant"]);
}

#[test]
fn an_aggregate_in_a_condition_runs_over_the_rows_so_far() {
    // a AS value >= AVG(a.value), the current row included.
    let define: [Define<i64>; 1] = [("a", true, |seen| {
        let rows: Vec<usize> = seen.so_far.whole().rows(seen.of("a")).collect();
        let sum: i64 = rows.iter().map(|row| seen.rows[*row]).sum();
        *seen.row * rows.len() as i64 >= sum
    })];
    let found = recognize("a+", past_last_row, &define, None, &[4, 8, 7, 6, 9, 1, 2], true);
    assert_eq!(texts(found), ["0:aaa", "3:aa", "5:aa"], "6 is below the average of 4, 8, 7 and 6");
}

#[test]
fn measures_run_as_of_a_row_or_are_final() {
    let define: [Define<i64>; 2] = [("b", false, |seen| *seen.row > 5), ("c", false, |seen| *seen.row <= 5)];
    let values = [3, 7, 9, 2, 8, 1];
    let (program, found) = recognize("c (b | c)+ c", past_last_row, &define, None, &values, true);
    assert_eq!(texts((program.clone(), found.clone())), ["0:cbbcbc"]);
    let (found, b) = (&found[0], Scope::One(program.variable("b").unwrap()));
    let sum = |view: aegis_pattern::View<'_>| view.rows(b).map(|row| values[row]).sum::<i64>();
    let running: Vec<i64> = found.iter().map(|(row, _)| sum(found.running(row))).collect();
    assert_eq!(running, [0, 7, 16, 16, 24, 24]);
    assert_eq!(sum(found.whole()), 24);
    let classifiers: String = found.iter().map(|(_, variable)| program.variables()[variable.index()].as_str()).collect();
    assert_eq!((classifiers.as_str(), found.match_number()), ("cbbcbc", 1));
}
