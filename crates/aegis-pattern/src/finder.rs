//! The walk over one partition: match after match, start row after start row, in as many pieces as the rows come in.

use crate::attempt::{Attempt, Bound, Outcome};
use crate::conditions::{Conditions, Rows};
use crate::error::MatchError;
use crate::failures::Failures;
use crate::mapping::Mapping;
use crate::matcher::Matcher;
use crate::survey::{Prospect, Survey};

/// What a call of [`Finder::find`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The next match. It may be empty. Its rows may lie before [`Finder::needed_from`] now: measures come before rows are dropped.
    Match(Mapping),
    /// The attempt from this row was given up: whether a match starts there stays unknown, and the search goes on at the next row as if
    /// none did. To be reported against the query.
    Exhausted { start: usize, bound: Bound },
    /// Rows to come decide what is next.
    NeedsMore,
    /// The partition is complete and has no further match.
    Done,
}

/// A partition's matches, found one by one. Belongs to one [`Matcher`].
#[derive(Clone, Debug, Default)]
pub struct Finder {
    /// The start row that is looked at next, or now.
    position: usize,
    matches: u64,
    /// The attempt from `position` that waits for rows.
    pending: Option<Box<Attempt>>,
    /// Failures of earlier attempts. They hold for later ones as long as those cannot reach `cut` either.
    failures: Failures,
    cut: Option<usize>,
    /// Made when an attempt spent much on running out of reach.
    survey: Option<Box<Survey>>,
    /// The start row at `position` is open.
    waiting: bool,
    steps: u64,
}

/// Where a [`Finder`] stands. With the rows from `position` on, and those before that conditions and measures look back on, it is all
/// that is needed to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The start row that is looked at next.
    pub position: u64,
    /// Matches found so far.
    pub matches: u64,
}

impl Finder {
    /// L-PATTERN-RESTORE: goes on from where a finder of the same matcher stood. An attempt that waited for rows is made again.
    #[must_use]
    pub fn restore(saved: Saved) -> Self {
        let position = usize::try_from(saved.position).unwrap_or(usize::MAX);
        Self { position, matches: saved.matches, ..Self::default() }
    }

    #[must_use]
    pub fn save(&self) -> Saved {
        Saved { position: self.position as u64, matches: self.matches }
    }

    /// The first row that a later match can have, and so the first that has to be kept. Conditions and measures with `PREV` look back
    /// further.
    #[must_use]
    pub fn needed_from(&self) -> usize {
        self.position
    }

    /// Whether the start row [`Finder::needed_from`] has begun to match and waits for rows.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Operations carried out so far, by all attempts and surveys: what the partition cost.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Cells of memory held now (see [`Limits`](crate::Limits)), for quotas over many partitions.
    #[must_use]
    pub fn cells(&self) -> usize {
        let pending = self.pending.as_ref().map_or(0, |attempt| attempt.cells());
        let survey = self.survey.as_ref().map_or(0, |survey| survey.cells());
        self.failures.len() + pending + survey
    }

    /// Finds the next match. Between calls rows may be added, never changed, and the partition may become complete.
    ///
    /// # Errors
    /// See [`MatchError`]. The finder stands at the start row at which the error came up, and comes to it again.
    pub fn find<C: Conditions>(
        &mut self,
        matcher: &Matcher,
        rows: Rows,
        conditions: &mut C,
    ) -> Result<Found, MatchError<C::Error>> {
        // Nobody counts so far.
        Ok(self.find_within(matcher, rows, conditions, u64::MAX)?.unwrap_or(Found::NeedsMore))
    }

    /// As [`Finder::find`], but begins no further start row once the call has carried out so many operations: None. It can be called again,
    /// and goes on. What is begun is bounded by its own limits.
    ///
    /// # Errors
    /// As [`Finder::find`].
    pub fn find_within<C: Conditions>(
        &mut self,
        matcher: &Matcher,
        rows: Rows,
        conditions: &mut C,
        most_steps: u64,
    ) -> Result<Option<Found>, MatchError<C::Error>> {
        let mut spent: Option<Box<Attempt>> = None;
        let before = self.steps;
        self.waiting = false;
        loop {
            let mut attempt = match self.pending.take() {
                Some(waiting) => waiting,
                None if self.position < rows.end && self.steps - before >= most_steps => return Ok(None),
                None if self.position < rows.end => match self.prospect(matcher, rows, conditions) {
                    Prospect::Match | Prospect::Unknown => self.begin(spent.take(), conditions),
                    Prospect::NoMatch => {
                        self.position += 1;
                        continue;
                    }
                    Prospect::NeedsMore => {
                        self.waiting = true;
                        return Ok(Some(Found::NeedsMore));
                    }
                },
                None => {
                    // Nothing is under way, and it may be long until there is.
                    self.failures.forget_before(self.position);
                    self.survey = None;
                    return Ok(Some(if rows.complete { Found::Done } else { Found::NeedsMore }));
                }
            };
            let steps_before = attempt.steps();
            let outcome = attempt.run_knowing(matcher, &self.failures, rows, conditions);
            self.steps += attempt.steps() - steps_before;
            let start = self.position;
            match outcome? {
                Outcome::NeedsMore => {
                    self.waiting = true;
                    self.pending = Some(attempt);
                    return Ok(Some(Found::NeedsMore));
                }
                Outcome::NoMatch => {
                    self.go_to(start + 1, &mut attempt, matcher);
                    let costly = attempt.was_cut() && attempt.steps() >= matcher.limits.survey_after;
                    if costly && matcher.independent && self.survey.is_none() {
                        self.survey = Some(Box::new(Survey::new(start + 1)));
                    }
                    spent = Some(attempt);
                }
                Outcome::Exhausted(bound) => {
                    self.go_to(start + 1, &mut attempt, matcher);
                    return Ok(Some(Found::Exhausted { start, bound }));
                }
                Outcome::Match(mapping) => {
                    let next = matcher.next_start(&mapping)?;
                    self.matches += 1;
                    self.go_to(next, &mut attempt, matcher);
                    return Ok(Some(Found::Match(mapping)));
                }
            }
        }
    }

    /// What the survey, if there is one, knows of `position`.
    fn prospect<C: Conditions>(&mut self, matcher: &Matcher, rows: Rows, conditions: &mut C) -> Prospect {
        let Some(survey) = &mut self.survey else { return Prospect::Unknown };
        let steps_before = survey.steps();
        let prospect = survey.prospect(self.position, &matcher.program, rows, conditions);
        self.steps += survey.steps() - steps_before;
        prospect
    }

    /// The attempt from `position`, in the memory of a spent one if there is one.
    fn begin<C: Conditions>(&mut self, spent: Option<Box<Attempt>>, conditions: &mut C) -> Box<Attempt> {
        if let Some(cut) = self.cut
            && (cut < self.position || conditions.in_reach(self.position, cut))
        {
            self.failures.clear();
            self.cut = None;
        }
        let number = self.matches + 1;
        match spent {
            Some(mut attempt) => {
                attempt.restart(self.position, number);
                attempt
            }
            None => Box::new(Attempt::new(self.position, number)),
        }
    }

    fn go_to(&mut self, position: usize, attempt: &mut Attempt, matcher: &Matcher) {
        let (cut, failures) = attempt.lessons();
        self.position = position;
        self.cut = self.cut.into_iter().chain(cut).min();
        self.failures.absorb(failures, position, matcher.limits.cells / 2);
    }
}
