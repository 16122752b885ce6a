//! A survey: all start rows of a partition looked at together, row by row, to know of each whether it has a match, without finding it.
//!
//! Under a bound on the span of a match, start after start can go through the same rows and fail at a later one each. What an attempt learnt
//! does not serve the next, which may reach one row further; the survey costs the same for each row however many start rows are open.
//! Start rows whose searches stand alike (the same states, in the order of preferment) have the same future, and are one group. Only
//! where no condition depends on the mapping. It changes what is searched, never what is found (L-PATTERN-SURVEY).

use std::collections::VecDeque;

use crate::conditions::{Conditions, Rows};
use crate::front::{Front, Position, Stuck, Taker};
use crate::program::Program;

/// Most groups at a time. Searches of more kinds are not alike enough for a survey to pay.
const MAX_GROUPS: usize = 16;

/// What the survey knows of a start row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prospect {
    Match,
    NoMatch,
    NeedsMore,
    /// Only an attempt can tell.
    Unknown,
}

#[derive(Clone, Debug)]
pub(crate) struct Survey {
    /// Of the start rows from `first` on.
    starts: VecDeque<Standing>,
    first: usize,
    /// Rows before this one have been gone through.
    row: usize,
    /// Start rows before this one do not reach `row`, and are decided.
    reaching_from: usize,
    groups: Vec<Group>,
    next_id: u64,
    steps: u64,
    given_up: bool,
}

#[derive(Clone, Copy, Debug)]
enum Standing {
    /// In the group with this id.
    Open(u64),
    Decided {
        matches: bool,
    },
}

/// Start rows whose searches stand alike.
#[derive(Clone, Debug)]
struct Group {
    id: u64,
    front: Front,
    /// In no order. Some may be decided already.
    members: Vec<usize>,
    newest: usize,
}

impl Survey {
    /// A survey of the start rows from `first` on.
    pub(crate) fn new(first: usize) -> Self {
        let (starts, groups) = (VecDeque::new(), Vec::new());
        Self { starts, first, row: first, reaching_from: first, groups, next_id: 0, steps: 0, given_up: false }
    }

    /// What is known of `start`. Of earlier start rows it will not be asked again.
    pub(crate) fn prospect<C: Conditions>(
        &mut self,
        start: usize,
        program: &Program,
        rows: Rows,
        conditions: &mut C,
    ) -> Prospect {
        if start > self.row {
            *self = Self { steps: self.steps, given_up: self.given_up, ..Self::new(start) };
        }
        while self.first < start {
            self.starts.pop_front();
            self.first += 1;
        }
        while self.row < rows.end && !self.given_up {
            match self.go_through(program, conditions) {
                Ok(()) => {}
                Err(Stuck::NeedsMore) => break,
                Err(Stuck::GivenUp) => *self = Self { steps: self.steps, given_up: true, ..Self::new(start) },
            }
        }
        let id = match self.starts.front() {
            Some(Standing::Decided { matches }) => return Prospect::of(*matches),
            Some(Standing::Open(id)) if self.row == rows.end && !self.given_up => *id,
            _ => return Prospect::Unknown,
        };
        let Some(group) = self.groups.iter().find(|group| group.id == id) else { return Prospect::Unknown };
        if rows.complete {
            group.front.matches_at_end(program, rows.end, &mut self.steps).map_or(Prospect::Unknown, Prospect::of)
        } else if conditions.in_reach(start, rows.end) {
            Prospect::NeedsMore
        } else {
            Prospect::of(group.front.accepted)
        }
    }

    /// Operations carried out so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn cells(&self) -> usize {
        self.groups.iter().map(|group| group.front.states.len() + group.members.len()).sum::<usize>() + self.starts.len()
    }

    /// Takes in the next row: as a start row, and as a row of all open searches that reach it. Where it is stuck for want of a later row,
    /// it can be tried again.
    fn go_through<C: Conditions>(&mut self, program: &Program, conditions: &mut C) -> Result<(), Stuck> {
        let row = self.row;
        if self.first + self.starts.len() == row {
            self.add_start(program)?;
        }
        self.reaching_from = self.reaching_from.max(self.first);
        while self.reaching_from <= row && !conditions.in_reach(self.reaching_from, row) {
            self.decide_out_of_reach();
        }
        let mut taker = Taker::new(program, row, conditions);
        let mut fronts = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            fronts.push(group.front.take(program, &mut taker, &mut self.steps)?);
        }
        self.row += 1;
        for (group, front) in std::mem::take(&mut self.groups).into_iter().zip(fronts) {
            if group.newest >= self.reaching_from {
                self.place(Group { front, ..group })?;
            }
        }
        Ok(())
    }

    fn add_start(&mut self, program: &Program) -> Result<(), Stuck> {
        let mut front = Front::default();
        front.enter((0, 0), Position { row: self.row, at_end: false }, program, &mut Vec::new(), &mut self.steps)?;
        self.starts.push_back(Standing::Open(self.next_id));
        self.next_id += 1;
        self.place(Group { id: self.next_id - 1, front, members: vec![self.row], newest: self.row })
    }

    /// The search from `reaching_from` cannot go on: what it has is what there is.
    fn decide_out_of_reach(&mut self) {
        let index = self.reaching_from - self.first;
        if let Standing::Open(id) = self.starts[index] {
            let matches = self.groups.iter().any(|group| group.id == id && group.front.accepted);
            self.starts[index] = Standing::Decided { matches };
        }
        self.reaching_from += 1;
    }

    /// Puts a group beside the others: into one that stands alike, if there is one.
    fn place(&mut self, mut group: Group) -> Result<(), Stuck> {
        if group.front.states.is_empty() {
            let matches = group.front.accepted;
            self.restand(&group.members, Standing::Decided { matches });
            return Ok(());
        }
        let Some(alike) = self.groups.iter().position(|other| other.front == group.front) else {
            self.groups.push(group);
            return if self.groups.len() > MAX_GROUPS { Err(Stuck::GivenUp) } else { Ok(()) };
        };
        // The smaller one moves, so that a start row moves seldom.
        if group.members.len() > self.groups[alike].members.len() {
            std::mem::swap(&mut group, &mut self.groups[alike]);
        }
        self.restand(&group.members, Standing::Open(self.groups[alike].id));
        let reaching_from = self.reaching_from;
        let into = &mut self.groups[alike];
        into.members.append(&mut group.members);
        into.newest = into.newest.max(group.newest);
        // Decided ones are more than half: they go.
        if into.members.len() > 2 * (self.row + 1 - reaching_from) {
            into.members.retain(|start| *start >= reaching_from);
        }
        Ok(())
    }

    /// Sets the standing of those that are not decided.
    fn restand(&mut self, members: &[usize], standing: Standing) {
        let open_from = self.reaching_from.max(self.first);
        for start in members.iter().filter(|start| **start >= open_from) {
            self.starts[start - self.first] = standing;
        }
    }
}

impl Prospect {
    fn of(matches: bool) -> Self {
        if matches { Self::Match } else { Self::NoMatch }
    }
}
