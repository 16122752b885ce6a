//! From a pattern to its program. Counted repetitions become counters, never copies, so a program is as long as its pattern; its
//! states are counted all the same, and bounded.

use crate::error::CompileError;
use crate::pattern::{Pattern, Quantifier};
use crate::program::{Field, MAX_DEPTH, MAX_STATES, Op, Pc, Program, Repetition, Variable};

impl Program {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// A pattern that is malformed, too large or too deep.
    pub fn compile(pattern: &Pattern) -> Result<Self, CompileError> {
        if !pattern.is_within_depth(MAX_DEPTH) {
            return Err(CompileError::TooDeep);
        }
        let mut compiler = Compiler::default();
        compiler.pattern(pattern, Place { free_bit: 0, counts: 1, nullable: 0 })?;
        compiler.emit(Op::Accept, 1)?;
        Ok(compiler.program)
    }
}

/// Register bits below this one count; those from it on note empty iterations, so that a mapped row can clear all of them at once.
/// The bounds on states leave counts less than 32 bits.
const EMPTY_BITS_FROM: u32 = 32;

/// Most repetitions within each other of which each notes empty iterations.
const MAX_NULLABLE: u32 = u64::BITS - EMPTY_BITS_FROM;

/// Where in the pattern the compiler is.
#[derive(Clone, Copy)]
struct Place {
    /// The first register bit that no enclosing repetition counts in.
    free_bit: u32,
    /// How many counts the enclosing repetitions can have together.
    counts: u64,
    /// How many enclosing repetitions note whether an iteration is empty. If one's is, so is that of those within it.
    nullable: u32,
}

impl Place {
    /// In how many states an operation can be here.
    fn states(self) -> u64 {
        self.counts.saturating_mul(u64::from(self.nullable) + 1)
    }
}

struct Compiler {
    program: Program,
}

impl Default for Compiler {
    fn default() -> Self {
        let program = Program { ops: Vec::new(), repetitions: Vec::new(), empty_bits: 0, names: Vec::new(), states: 0 };
        Self { program }
    }
}

impl Compiler {
    fn emit(&mut self, op: Op, states: u64) -> Result<usize, CompileError> {
        self.program.states = self.program.states.saturating_add(states);
        if self.program.states > MAX_STATES {
            return Err(CompileError::TooLarge);
        }
        self.program.ops.push(op);
        Ok(self.program.ops.len() - 1)
    }

    /// The place of the operation that is emitted next. INVARIANT: there are at most MAX_STATES.
    fn here(&self) -> Pc {
        self.program.ops.len() as Pc
    }

    fn pattern(&mut self, pattern: &Pattern, place: Place) -> Result<(), CompileError> {
        match pattern {
            Pattern::Variable(name) => {
                let variable = self.variable(name)?;
                self.emit(Op::Take(variable), place.states())?;
            }
            Pattern::Empty => {}
            Pattern::Start => {
                self.emit(Op::AtStart, place.states())?;
            }
            Pattern::End => {
                self.emit(Op::AtEnd, place.states())?;
            }
            Pattern::Concat(parts) => {
                for part in parts {
                    self.pattern(part, place)?;
                }
            }
            Pattern::Alternate(parts) => self.alternate(parts, place)?,
            Pattern::Quantified(part, quantifier) => self.quantified(part, *quantifier, place)?,
        }
        Ok(())
    }

    fn variable(&mut self, name: &str) -> Result<Variable, CompileError> {
        if let Some(known) = self.program.variable(name) {
            return Ok(known);
        }
        let index = u16::try_from(self.program.names.len()).map_err(|_| CompileError::TooLarge)?;
        self.program.names.push(name.to_owned());
        Ok(Variable(index))
    }

    fn alternate(&mut self, parts: &[Pattern], place: Place) -> Result<(), CompileError> {
        let Some((last, before)) = parts.split_last() else { return Err(CompileError::NoAlternative) };
        let mut ends = Vec::with_capacity(before.len());
        for part in before {
            let fork = self.emit(Op::Jump(0), place.states())?;
            self.pattern(part, place)?;
            ends.push(self.emit(Op::Jump(0), place.states())?);
            self.program.ops[fork] = Op::Fork { first: fork as Pc + 1, second: self.here() };
        }
        self.pattern(last, place)?;
        for end in ends {
            self.program.ops[end] = Op::Jump(self.here());
        }
        Ok(())
    }

    fn quantified(&mut self, part: &Pattern, quantifier: Quantifier, place: Place) -> Result<(), CompileError> {
        let Quantifier { min, max, greedy } = quantifier;
        if let Some(max) = max
            && (max == 0 || max < min)
        {
            return Err(CompileError::Quantifier { min, max });
        }
        match (min, max) {
            (1, Some(1)) => self.pattern(part, place),
            (0, Some(1)) => {
                let fork = self.emit(Op::Jump(0), place.states())?;
                self.pattern(part, place)?;
                self.program.ops[fork] = fork_of(greedy, fork as Pc + 1, self.here());
                Ok(())
            }
            (0, None) if !part.nullable() => {
                let fork = self.emit(Op::Jump(0), place.states())?;
                self.pattern(part, place)?;
                self.emit(Op::Jump(fork as Pc), place.states())?;
                self.program.ops[fork] = fork_of(greedy, fork as Pc + 1, self.here());
                Ok(())
            }
            (1, None) if !part.nullable() => {
                let body = self.here();
                self.pattern(part, place)?;
                let exit = self.here() + 1;
                self.emit(fork_of(greedy, body, exit), place.states())?;
                Ok(())
            }
            _ => self.repetition(part, quantifier, place),
        }
    }

    fn repetition(&mut self, part: &Pattern, quantifier: Quantifier, place: Place) -> Result<(), CompileError> {
        let (min, max) = (u64::from(quantifier.min), quantifier.max.map(u64::from));
        let cap = max.unwrap_or(min);
        let width = u64::BITS - cap.leading_zeros();
        let nullable = part.nullable();
        let free_bit = place.free_bit + width;
        if free_bit > EMPTY_BITS_FROM {
            return Err(CompileError::TooLarge);
        }
        if place.nullable >= MAX_NULLABLE {
            return Err(CompileError::TooDeep);
        }
        let mask = ((1 << width) - 1) << place.free_bit;
        let empty_bit = if nullable { 1 << (EMPTY_BITS_FROM + place.nullable) } else { 0 };
        let counts = place.counts.saturating_mul(cap + 1);
        let within = Place { free_bit, counts, nullable: place.nullable + u32::from(nullable) };

        let index = self.program.repetitions.len();
        let head = self.emit(Op::Repeat(index), within.states())?;
        let count = Field { shift: place.free_bit, cap, mask };
        let (body, exit) = (head as Pc + 1, 0);
        let greedy = quantifier.greedy;
        self.program.repetitions.push(Repetition { min, max, greedy, body, exit, count, empty_bit });
        self.program.empty_bits |= empty_bit;
        self.pattern(part, within)?;
        self.emit(Op::Jump(head as Pc), within.states())?;
        self.program.repetitions[index].exit = self.here();
        Ok(())
    }
}

fn fork_of(greedy: bool, body: Pc, exit: Pc) -> Op {
    if greedy { Op::Fork { first: body, second: exit } } else { Op::Fork { first: exit, second: body } }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn a() -> Pattern {
        Pattern::variable("a")
    }

    #[test]
    fn counted_repetitions_are_counted_and_not_copied() {
        let program = Program::compile(&a().times(Quantifier::exactly(1000))).unwrap();
        assert_eq!(program.ops.len(), 4);
        assert!(program.states() > 1000);
        // Nested pluses do not double.
        let nested = (0..40).fold(a(), |pattern, _| pattern.times(Quantifier::ONE_OR_MORE));
        assert_eq!(Program::compile(&nested).unwrap().ops.len(), 42);
    }

    #[test]
    fn a_pattern_that_would_swell_the_engine_is_refused() {
        let nested = a().times(Quantifier::exactly(1000)).times(Quantifier::exactly(1000));
        let error = Program::compile(&nested).unwrap_err();
        assert_eq!(error, CompileError::TooLarge);
        assert!(error.to_string().contains("more than 16384 states"));
        assert_eq!(Program::compile(&a().times(Quantifier::at_least(u32::MAX))).unwrap_err(), CompileError::TooLarge);
        let deep = (0..MAX_DEPTH).fold(a(), |pattern, _| pattern.times(Quantifier::ONE_OR_MORE));
        assert_eq!(Program::compile(&deep).unwrap_err(), CompileError::TooDeep);
        let empties = (0..40).fold(a(), |pattern, _| pattern.times(Quantifier::ZERO_OR_MORE));
        assert_eq!(Program::compile(&empties).unwrap_err(), CompileError::TooDeep);
        let counts = (0..MAX_DEPTH - 1).fold(a(), |pattern, _| pattern.times(Quantifier::at_least(2)));
        assert_eq!(Program::compile(&counts).unwrap_err(), CompileError::TooLarge);
    }

    #[test]
    fn a_quantifier_that_repeats_nothing_is_refused() {
        for (min, max) in [(0, 0), (3, 2)] {
            let error = Program::compile(&a().times(Quantifier::between(min, max))).unwrap_err();
            assert_eq!(error, CompileError::Quantifier { min, max });
        }
        assert_eq!(Program::compile(&Pattern::alternate([])).unwrap_err(), CompileError::NoAlternative);
    }

    #[test]
    fn failures_are_remembered_only_where_no_condition_that_sees_the_mapping_can_follow() {
        // a* b* : the heads of both loops are come to from two places.
        let star = |name| Pattern::variable(name).times(Quantifier::ZERO_OR_MORE);
        let program = Program::compile(&Pattern::concat([star("a"), star("b")])).unwrap();
        assert_eq!(program.remembered(|_| false), [true, false, false, true, false, false, false]);
        let only_b = program.variable("b").unwrap();
        assert_eq!(program.remembered(|v| v == only_b), [false; 7]);
        let only_a = program.variable("a").unwrap();
        assert_eq!(program.remembered(|v| v == only_a), [false, false, false, true, false, false, false]);
    }
}
