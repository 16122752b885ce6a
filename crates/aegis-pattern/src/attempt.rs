//! The search from one start row: depth first in the order of preferment, on a stack of its own, never on the thread's.
//!
//! The search stops at the first thing that it cannot know yet and goes on from there when rows have come. All that is preferred to it
//! has failed for good, and nothing behind it is looked at before it is decided: so it never has to take anything back, and it does
//! the same work in one piece or in many (L-PATTERN-CHUNKS).

use crate::conditions::{Answer, Conditions, Rows};
use crate::error::MatchError;
use crate::failures::{Failure, Failures};
use crate::mapping::Mapping;
use crate::matcher::Matcher;
use crate::program::{Op, Pc, Repetition, Variable};

/// What is known of a start row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The preferred match, whatever rows follow.
    Match(Mapping),
    /// None, whatever rows follow.
    NoMatch,
    /// Rows to come decide whether there is a match, or which is preferred.
    NeedsMore,
    /// The attempt was given up.
    Exhausted(Bound),
}

/// Which bound an attempt ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Steps,
    Memory,
}

/// The search from one start row, as far as it has come.
#[derive(Clone, Debug)]
pub struct Attempt {
    state: State,
    mapping: Mapping,
    stack: Vec<Frame>,
    /// Failures of this attempt.
    failures: Failures,
    /// The row that is out of reach, if the search came to it.
    cut: Option<usize>,
    steps: u64,
    /// The operation has begun, and goes on when rows have come.
    begun: bool,
    over: bool,
}

#[derive(Clone, Copy, Debug)]
struct State {
    pc: Pc,
    row: usize,
    registers: u64,
}

#[derive(Clone, Copy, Debug)]
enum Frame {
    /// To try when everything above has failed.
    Alternative(State),
    /// Everything above belongs to this state: when it has failed, so has the state.
    Entered(State),
}

/// What an operation came to.
enum Step {
    GoOn,
    Fail,
    Wait,
    Accept,
}

impl Attempt {
    /// The search from `start`, for what would be the partition's match of this number.
    #[must_use]
    pub fn new(start: usize, match_number: u64) -> Self {
        Self {
            state: State { pc: 0, row: start, registers: 0 },
            mapping: Mapping::new(start, match_number),
            stack: Vec::new(),
            failures: Failures::default(),
            cut: None,
            steps: 0,
            begun: false,
            over: false,
        }
    }

    /// Searches on. Rows may only have been added since the last call. After any other outcome than [`Outcome::NeedsMore`] the attempt is
    /// over, and says [`Outcome::NoMatch`].
    ///
    /// # Errors
    /// A condition's own, or one that waits for rows of a complete partition. The attempt then stands where it stood.
    pub fn run<C: Conditions>(
        &mut self,
        matcher: &Matcher,
        rows: Rows,
        conditions: &mut C,
    ) -> Result<Outcome, MatchError<C::Error>> {
        self.run_knowing(matcher, &Failures::default(), rows, conditions)
    }

    /// The same, with failures that are known from elsewhere.
    pub(crate) fn run_knowing<C: Conditions>(
        &mut self,
        matcher: &Matcher,
        known: &Failures,
        rows: Rows,
        conditions: &mut C,
    ) -> Result<Outcome, MatchError<C::Error>> {
        if self.over {
            return Ok(Outcome::NoMatch);
        }
        let outcome = self.search(matcher, known, rows, conditions)?;
        self.over = outcome != Outcome::NeedsMore;
        Ok(outcome)
    }

    /// Operations carried out so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Cells of memory held now (see [`Limits`](crate::Limits)), for quotas over many attempts.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.stack.len() + self.failures.len() + 2 * self.mapping.len()
    }

    /// Whether the search came to a row that is out of reach.
    pub(crate) fn was_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// The row that is out of reach, if the search came to it, and what failed within reach; the latter may be taken away.
    pub(crate) fn lessons(&mut self) -> (Option<usize>, &mut Failures) {
        (self.cut, &mut self.failures)
    }

    /// As [`Attempt::new`], with the memory of this one.
    pub(crate) fn restart(&mut self, start: usize, match_number: u64) {
        self.state = State { pc: 0, row: start, registers: 0 };
        self.mapping.restart(start, match_number);
        self.stack.clear();
        self.failures.clear();
        self.cut = None;
        self.steps = 0;
        self.begun = false;
        self.over = false;
    }

    fn search<C: Conditions>(
        &mut self,
        matcher: &Matcher,
        known: &Failures,
        rows: Rows,
        conditions: &mut C,
    ) -> Result<Outcome, MatchError<C::Error>> {
        loop {
            if !self.begun
                && let Some(bound) = self.exceeded(matcher)
            {
                return Ok(Outcome::Exhausted(bound));
            }
            let remembered = matcher.remembered[self.state.pc as usize];
            let step = if remembered && !self.begun && !self.enter(known) {
                Step::Fail
            } else {
                self.begun = true;
                self.operate(matcher, rows, conditions)?
            };
            match step {
                Step::GoOn => {}
                Step::Fail if self.backtrack() => {}
                Step::Fail => return Ok(Outcome::NoMatch),
                Step::Wait => return Ok(Outcome::NeedsMore),
                Step::Accept => {
                    let spent = Mapping::new(self.mapping.start(), self.mapping.match_number());
                    return Ok(Outcome::Match(std::mem::replace(&mut self.mapping, spent)));
                }
            }
            self.begun = false;
            self.steps += 1;
        }
    }

    /// L-PATTERN-BOUNDS. Looked at before an operation begins, and not when one goes on, so that waiting changes nothing.
    fn exceeded(&self, matcher: &Matcher) -> Option<Bound> {
        if self.steps >= matcher.limits.steps {
            Some(Bound::Steps)
        } else if self.cells() > matcher.limits.cells {
            Some(Bound::Memory)
        } else {
            None
        }
    }

    /// L-PATTERN-LINEAR: notes that the state was entered. False if it is known to fail.
    fn enter(&mut self, known: &Failures) -> bool {
        let failure = self.state.failure();
        if self.failures.contains(&failure) || known.contains(&failure) {
            return false;
        }
        self.stack.push(Frame::Entered(self.state));
        true
    }

    /// Goes back to the nearest alternative, and remembers what has failed by that. False if there is none.
    fn backtrack(&mut self) -> bool {
        while let Some(frame) = self.stack.pop() {
            match frame {
                Frame::Entered(state) => self.failures.insert(state.failure()),
                Frame::Alternative(state) => {
                    self.state = state;
                    self.mapping.truncate(state.row);
                    return true;
                }
            }
        }
        false
    }

    fn operate<C: Conditions>(
        &mut self,
        matcher: &Matcher,
        rows: Rows,
        conditions: &mut C,
    ) -> Result<Step, MatchError<C::Error>> {
        let program = &matcher.program;
        let State { pc, row, .. } = self.state;
        let step = match program.ops[pc as usize] {
            Op::Take(variable) => return self.take(variable, program.empty_bits, rows, conditions),
            Op::AtStart => self.go_on_if(row == 0),
            Op::AtEnd if row < rows.end => Step::Fail,
            Op::AtEnd if rows.complete => self.go_on_if(true),
            Op::AtEnd => Step::Wait,
            Op::Fork { first, second } => {
                self.stack.push(Frame::Alternative(State { pc: second, ..self.state }));
                self.state.pc = first;
                Step::GoOn
            }
            Op::Jump(to) => {
                self.state.pc = to;
                Step::GoOn
            }
            Op::Repeat(index) => self.repeat(&program.repetitions[index]),
            Op::Accept => Step::Accept,
        };
        Ok(step)
    }

    fn go_on_if(&mut self, holds: bool) -> Step {
        if !holds {
            return Step::Fail;
        }
        self.state.pc += 1;
        Step::GoOn
    }

    fn take<C: Conditions>(
        &mut self,
        variable: Variable,
        empty_bits: u64,
        rows: Rows,
        conditions: &mut C,
    ) -> Result<Step, MatchError<C::Error>> {
        let row = self.state.row;
        let known = row < rows.end;
        if !known && rows.complete {
            return Ok(Step::Fail);
        }
        if !conditions.in_reach(self.mapping.start(), row) {
            self.cut.get_or_insert(row);
            return Ok(Step::Fail);
        }
        if !known {
            return Ok(Step::Wait);
        }
        self.mapping.push(variable);
        let answer = conditions.holds(variable, row, &self.mapping);
        if !matches!(answer, Ok(Answer::Holds)) {
            self.mapping.truncate(row);
        }
        match answer.map_err(MatchError::Condition)? {
            Answer::Holds => {
                self.state = State { pc: self.state.pc + 1, row: row + 1, registers: self.state.registers & !empty_bits };
                Ok(Step::GoOn)
            }
            Answer::Fails => Ok(Step::Fail),
            Answer::NeedsMore if rows.complete => Err(MatchError::NeverDecided { variable, row }),
            Answer::NeedsMore => Ok(Step::Wait),
        }
    }

    fn repeat(&mut self, repetition: &Repetition) -> Step {
        let row = self.state.row;
        let mut choices = repetition.choices(self.state.registers).map(|(pc, registers)| State { pc, row, registers });
        let Some(preferred) = choices.next() else { return Step::Fail };
        self.stack.extend(choices.next().map(Frame::Alternative));
        self.state = preferred;
        Step::GoOn
    }
}

impl State {
    fn failure(self) -> Failure {
        Failure { row: self.row, registers: self.registers, operation: self.pc }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_as_small_as_the_limits_say() {
        assert!(size_of::<Frame>() <= 32 && size_of::<Failure>() < 32);
    }
}
