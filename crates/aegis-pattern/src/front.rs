//! Where the search from a start row stands between two rows: the states of all its parses that are still possible, in the order of
//! preferment, without the rows that led there. Where no condition depends on the mapping, that is all its future depends on.

use crate::conditions::{Answer, Conditions};
use crate::mapping::Mapping;
use crate::program::{Op, Pc, Program, Variable};

/// Most states that a front is made of. With more it costs as much as a search.
const MAX_STATES: usize = 64;

/// Where a search stands before a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Front {
    /// The states that want the row, or the end of the partition, in the order of preferment.
    pub(crate) states: Vec<State>,
    /// There is a candidate if they all fail.
    pub(crate) accepted: bool,
}

type State = (Pc, u64);

/// Why a row cannot be gone through.
pub(crate) enum Stuck {
    NeedsMore,
    GivenUp,
}

/// Asks each condition once for a row.
pub(crate) struct Taker<'a, C> {
    conditions: &'a mut C,
    row: usize,
    answers: Vec<Option<bool>>,
}

impl<'a, C: Conditions> Taker<'a, C> {
    pub(crate) fn new(program: &Program, row: usize, conditions: &'a mut C) -> Self {
        Self { conditions, row, answers: vec![None; program.variables().len()] }
    }

    fn takes(&mut self, variable: Variable) -> Result<bool, Stuck> {
        if let Some(known) = self.answers[variable.index()] {
            return Ok(known);
        }
        // The condition does not look at the mapping but for its current row.
        let mut mapping = Mapping::new(self.row, 1);
        mapping.push(variable);
        let takes = match self.conditions.holds(variable, self.row, &mapping) {
            Ok(Answer::Holds) => true,
            Ok(Answer::Fails) => false,
            Ok(Answer::NeedsMore) => return Err(Stuck::NeedsMore),
            // Whether an attempt comes to this error is not known.
            Err(_) => return Err(Stuck::GivenUp),
        };
        self.answers[variable.index()] = Some(takes);
        Ok(takes)
    }
}

/// Before which row a state is entered.
#[derive(Clone, Copy)]
pub(crate) struct Position {
    pub(crate) row: usize,
    /// There is no such row: the partition ends.
    pub(crate) at_end: bool,
}

impl Front {
    /// Where the search stands after a row.
    pub(crate) fn take<C: Conditions>(
        &self,
        program: &Program,
        taker: &mut Taker<'_, C>,
        steps: &mut u64,
    ) -> Result<Self, Stuck> {
        let position = Position { row: taker.row + 1, at_end: false };
        let mut next = Self { states: Vec::with_capacity(self.states.len()), accepted: self.accepted };
        let mut seen = Vec::new();
        for (pc, registers) in &self.states {
            // `$` fails before a row.
            let Op::Take(variable) = program.ops[*pc as usize] else { continue };
            if taker.takes(variable)?
                && next.enter((pc + 1, registers & !program.empty_bits), position, program, &mut seen, steps)?
            {
                break;
            }
        }
        Ok(next)
    }

    /// Whether there is a match if the partition ends here. None if that would take too many states.
    pub(crate) fn matches_at_end(&self, program: &Program, end: usize, steps: &mut u64) -> Option<bool> {
        let mut seen = Vec::new();
        let position = Position { row: end, at_end: true };
        for (pc, registers) in &self.states {
            let after_anchor = (pc + 1, *registers);
            if program.ops[*pc as usize] == Op::AtEnd
                && Self::default().enter(after_anchor, position, program, &mut seen, steps).ok()?
            {
                return Some(true);
            }
        }
        Some(self.accepted)
    }

    /// Adds what a state comes to before it wants a row. True if it is a candidate: what is preferred less does not matter then.
    pub(crate) fn enter(
        &mut self,
        state: State,
        position: Position,
        program: &Program,
        seen: &mut Vec<State>,
        steps: &mut u64,
    ) -> Result<bool, Stuck> {
        let mut stack = vec![state];
        while let Some((pc, registers)) = stack.pop() {
            *steps += 1;
            if seen.contains(&(pc, registers)) {
                continue;
            }
            if seen.len() == MAX_STATES {
                return Err(Stuck::GivenUp);
            }
            seen.push((pc, registers));
            match program.ops[pc as usize] {
                Op::Take(_) if position.at_end => {}
                Op::AtEnd if position.at_end => stack.push((pc + 1, registers)),
                Op::Take(_) | Op::AtEnd => self.states.push((pc, registers)),
                Op::AtStart if position.row > 0 => {}
                Op::AtStart => stack.push((pc + 1, registers)),
                Op::Fork { first, second } => stack.extend([(second, registers), (first, registers)]),
                Op::Jump(to) => stack.push((to, registers)),
                Op::Repeat(index) => {
                    // The preferred one is taken first, so it goes on last.
                    stack.extend(program.repetitions[index].choices(registers).rev());
                }
                Op::Accept => {
                    self.accepted = true;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
