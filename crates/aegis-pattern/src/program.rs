//! The compiled pattern: a program for a backtracking machine whose state is (operation, row, registers).
//! The registers, one word, hold for each open repetition its count and whether its iteration took a row yet. Outside of a
//! repetition its fields are 0, so equal futures are equal states.

/// Most states of a program: operations, each times the counts it can be reached with.
pub const MAX_STATES: u64 = 16_384;

/// Deepest nesting of a pattern.
pub const MAX_DEPTH: usize = 64;

/// A primary variable of a pattern, by its place in [`Program::variables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variable(pub(crate) u16);

impl Variable {
    /// Its place in [`Program::variables`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A compiled pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub(crate) ops: Vec<Op>,
    pub(crate) repetitions: Vec<Repetition>,
    /// The register bits that a mapped row clears: of each repetition, "this iteration took no row yet".
    pub(crate) empty_bits: u64,
    pub(crate) names: Vec<String>,
    pub(crate) states: u64,
}

/// Places in `Program::ops`.
pub(crate) type Pc = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Maps the row and goes to the next.
    Take(Variable),
    /// `^`
    AtStart,
    /// `$`
    AtEnd,
    /// Goes on at `first`; if that fails, at `second`.
    Fork {
        first: Pc,
        second: Pc,
    },
    Jump(Pc),
    /// The head of a repetition with registers: come to before the first iteration and after each.
    Repeat(usize),
    Accept,
}

/// A repetition that needs registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Repetition {
    pub(crate) min: u64,
    pub(crate) max: Option<u64>,
    pub(crate) greedy: bool,
    pub(crate) body: Pc,
    pub(crate) exit: Pc,
    /// Iterations begun; stays at its highest value.
    pub(crate) count: Field,
    /// Set while the iteration has taken no row. Absent where every iteration takes one.
    pub(crate) empty_bit: u64,
}

/// Some bits of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) shift: u32,
    /// Highest value.
    pub(crate) cap: u64,
    /// Its bits, in place.
    pub(crate) mask: u64,
}

impl Field {
    pub(crate) fn get(self, registers: u64) -> u64 {
        (registers & self.mask) >> self.shift
    }

    pub(crate) fn increment(self, registers: u64) -> u64 {
        if self.get(registers) < self.cap { registers + (1 << self.shift) } else { registers }
    }
}

impl Repetition {
    /// The registers with which another iteration begins, if one may.
    ///
    /// L-PATTERN-EMPTY-ITERATION: an iteration that took no row, once the lower bound is met, is the last.
    fn iterate(&self, registers: u64) -> Option<u64> {
        let count = self.count.get(registers);
        let full = self.max.is_some_and(|max| count >= max);
        let ended_empty = registers & self.empty_bit != 0 && count >= self.min;
        if full || ended_empty { None } else { Some(self.count.increment(registers) | self.empty_bit) }
    }

    /// Where the head leads, in the order of preferment.
    pub(crate) fn choices(&self, registers: u64) -> impl DoubleEndedIterator<Item = (Pc, u64)> + use<> {
        let again = self.iterate(registers).map(|registers| (self.body, registers));
        let leave = self.leave(registers).map(|registers| (self.exit, registers));
        let choices = if self.greedy { [again, leave] } else { [leave, again] };
        choices.into_iter().flatten()
    }

    /// The registers with which the repetition is left, if it may be.
    fn leave(&self, registers: u64) -> Option<u64> {
        if self.count.get(registers) >= self.min { Some(registers & !self.count.mask & !self.empty_bit) } else { None }
    }
}

impl Program {
    /// Names of the primary variables, in the order in which the pattern first names them.
    #[must_use]
    pub fn variables(&self) -> &[String] {
        &self.names
    }

    /// The variable of this name, if the pattern has it.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<Variable> {
        let index = self.names.iter().position(|known| known == name)?;
        u16::try_from(index).ok().map(Variable)
    }

    /// Number of states, counted repetitions multiplied out. Where failures are remembered, an attempt takes at most twice as many
    /// steps for each row.
    #[must_use]
    pub fn states(&self) -> u64 {
        self.states
    }

    /// The variables of its operations.
    pub(crate) fn takes(&self) -> impl Iterator<Item = Variable> + '_ {
        self.ops.iter().filter_map(|op| if let Op::Take(variable) = op { Some(*variable) } else { None })
    }

    /// The operations at which failures are remembered: those that can be come to from several places, and from which no condition
    /// can be reached that looks at the mapping.
    pub(crate) fn remembered(&self, depends_on_mapping: impl Fn(Variable) -> bool) -> Vec<bool> {
        let mut dependent: Vec<bool> = self.ops.iter().map(|op| matches!(op, Op::Take(v) if depends_on_mapping(*v))).collect();
        // Backwards along the edges until nothing changes.
        let mut changed = true;
        while changed {
            changed = false;
            for pc in (0..self.ops.len()).rev() {
                if !dependent[pc] && self.successors(pc).any(|next| dependent[next]) {
                    dependent[pc] = true;
                    changed = true;
                }
            }
        }
        self.joins().zip(dependent).map(|(join, dependent)| join && !dependent).collect()
    }

    /// By operation: whether several states can lead to one of its own.
    pub(crate) fn joins(&self) -> impl Iterator<Item = bool> + use<> {
        let mut arrivals = vec![0_u32; self.ops.len()];
        // Each start row comes in at the first operation.
        arrivals[0] = 1;
        for next in (0..self.ops.len()).flat_map(|pc| self.successors(pc)) {
            arrivals[next] += 1;
        }
        for repetition in self.repetitions.iter().filter(|repetition| repetition.count.cap > 0) {
            // A head that counts is come to from outside with count 0, and from its body with another.
            arrivals[repetition.body as usize - 1] -= 1;
        }
        let mut joins: Vec<bool> = arrivals.into_iter().map(|arrivals| arrivals > 1).collect();
        for repetition in &self.repetitions {
            let nullable = repetition.empty_bit != 0;
            // The count stops at its highest value, and is forgotten on leaving.
            joins[repetition.body as usize] |= nullable || repetition.max.is_none();
            joins[repetition.exit as usize] |= nullable || repetition.max != Some(repetition.min);
        }
        joins.into_iter()
    }

    fn successors(&self, pc: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, second) = match self.ops[pc] {
            Op::Take(_) | Op::AtStart | Op::AtEnd => (Some(pc + 1), None),
            Op::Fork { first, second } => (Some(first as usize), Some(second as usize)),
            Op::Jump(to) => (Some(to as usize), None),
            Op::Repeat(index) => {
                let repetition = &self.repetitions[index];
                (Some(repetition.body as usize), Some(repetition.exit as usize))
            }
            Op::Accept => (None, None),
        };
        first.into_iter().chain(second)
    }
}
