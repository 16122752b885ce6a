//! Piece by piece: a tenant's late events and what lies around them are asked of the lake, the rules are run over them on a thread of its own, and what
//! they find is told. Promises that no tick waits for any of it, and that one piece is read and run at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::Stream;
use aegis_model::SecurityEvent;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use super::{CatchUp, LateFound, LatePart, LateRule, Narrowed, Next, Piece, Reach, Whose, Work};
use crate::engine::{Engine, TickOutput};
use crate::error::DetectError;
use crate::evaluate::RunningRule;
use crate::follow::{MAX_BATCH, Running};
use crate::sieve::Sieve;
use crate::warm::{LOOK, MOST, Past, PastAsked, rests_until};
use crate::worker::{Shared, WorkerStats};

/// What fails is asked again after twice as long each time, so many times.
const MOST_DOUBLED: u32 = 6;
/// A tenant's next piece is looked at no earlier than so long after the one before: others come first.
const REST: Duration = Duration::from_secs(2);
/// How long the rules may take over one piece.
const MOST_TIME: Duration = Duration::from_secs(120);
/// An episode that began so long before a piece is known at least, microseconds.
const RUN_IN: i64 = 3_600_000_000;

#[derive(Debug)]
pub(super) enum Step {
    Asked(Work, Box<LatePart>, oneshot::Receiver<Past>),
    Runs(Work, oneshot::Receiver<Result<Option<LateFound>, String>>),
    Tells(Work, Box<LateFound>),
}

impl Step {
    pub(super) const fn work(&self) -> &Work {
        match self {
            Self::Asked(work, ..) | Self::Runs(work, _) | Self::Tells(work, _) => work,
        }
    }
}

impl Engine {
    /// The rules of a tenant that are run over its late events once more: neither those that read alerts, nor those that ask what was long before.
    pub(super) fn rules_over_late(&self, work: &Work) -> impl Iterator<Item = &RunningRule> {
        let Whose { tenant_id: tenant, waits, own } = &work.whose;
        self.rules.iter().filter(move |running| {
            let reads_events = running.plan.sources.is_none() && !running.plan.reads_sides;
            let runs = running.stats.quarantined.is_none() && !running.stats.set_aside.contains_key(tenant);
            let is_of_kind = running.is_deferred() == *waits && running.scope.owner().is_some() == *own;
            running.scope.covers(tenant) && reads_events && runs && is_of_kind
        })
    }

    /// How far frames of these rules reach behind their rows.
    fn reach_ahead(&self, work: &Work) -> i64 {
        self.rules_over_late(work).map(|running| running.plan.reach.ahead).max().unwrap_or(0)
    }

    /// What is to be done next of a tenant's, of whom no piece is known; and how many receipts need not be remembered any more.
    fn next_of(&self, work: &mut Work) -> (Next, usize) {
        let final_before = self.watermarks.final_before(&work.whose.tenant_id, self.lateness_micros());
        let Some(final_before) = final_before else { return (Next::Waits, 0) };
        let windows: Vec<i64> = self.rules_over_late(work).map(RunningRule::window_micros).collect();
        let asked = Reach { windows: &windows, ahead: self.reach_ahead(work), final_before };
        let forgotten = work.forget_done(&asked);
        (work.next(&asked), forgotten)
    }
}

impl CatchUp {
    /// Runs the rules over what was read.
    fn run(&mut self, work: Work, part: Box<LatePart>, events: Vec<SecurityEvent>) {
        self.failures = 0;
        let (answers, answer) = oneshot::channel();
        let compare = move || async move {
            let deadline = Instant::now() + MOST_TIME;
            let found = part.find(events, &|| !answers.is_closed() && Instant::now() < deadline);
            let _nobody_waits = answers.send(found);
        };
        match aegis_threads::spawn("aegis-catch-up", compare) {
            Ok(_it_answers) => self.step = Some(Step::Runs(work, answer)),
            Err(error) => self.try_again(work, &error.to_string()),
        }
    }

    fn try_again(&mut self, work: Work, reason: &str) {
        tracing::warn!(tenant = %work.whose.tenant_id, reason, "what came too late cannot be caught up now; it waits");
        self.rests_until = Some(rests_until(&mut self.failures, MOST_DOUBLED));
        self.works.push_back(work);
    }

    /// The piece was too much: the next one is less, as long as that helps.
    fn read_less(&mut self, mut work: Work, reason: &str, shared: &Shared) {
        match work.narrow() {
            Narrowed::Less => {}
            Narrowed::Shorter(longest) => {
                tracing::warn!(
                    tenant = %work.whose.tenant_id,
                    reason,
                    longest_s = longest / 1_000_000,
                    "what came too late in an hour is caught up for rules with shorter windows alone"
                );
                shared.stats.lock().late_given_up += 1;
            }
            Narrowed::No => return self.give_up(work, reason, shared),
        }
        self.works.push_back(work);
    }

    /// Of this piece nothing is told.
    fn give_up(&mut self, mut work: Work, reason: &str, shared: &Shared) {
        if let Some((Piece { from, to, .. }, _)) = work.ready {
            tracing::error!(
                tenant = %work.whose.tenant_id,
                %from,
                %to,
                reason,
                "what came too late is not caught up there; `aegis rules backtest` over that time tells what rules would have said"
            );
        }
        shared.stats.lock().late_given_up += 1;
        work.pass();
        self.works.push_back(work);
    }
}

impl Running {
    /// One step on the way to late events that are caught up; waits for nobody but the bus.
    pub(crate) async fn catch_up_late(&mut self, shared: &Shared) -> Result<(), DetectError> {
        let rests = self.late.rests_until.is_some_and(|until| Instant::now() < until);
        match self.late.step.take() {
            Some(Step::Asked(work, part, mut answer)) => match answer.try_recv() {
                Err(TryRecvError::Empty) => self.late.step = Some(Step::Asked(work, part, answer)),
                Ok(Ok(Some(events))) => self.late.run(work, part, events),
                Ok(Ok(None)) => self.late.read_less(work, "more is there than is read at once", shared),
                Ok(Err(reason)) => self.late.try_again(work, &reason),
                Err(TryRecvError::Closed) => self.late.try_again(work, "nobody answered"),
            },
            Some(Step::Runs(work, mut answer)) => match answer.try_recv() {
                Err(TryRecvError::Empty) => self.late.step = Some(Step::Runs(work, answer)),
                Ok(Ok(Some(found))) => self.tell_late(work, Box::new(found), shared).await?,
                Ok(Ok(None)) => self.late.read_less(work, "it takes too long", shared),
                Ok(Err(reason)) => self.late.give_up(work, &reason, shared),
                Err(TryRecvError::Closed) => self.late.give_up(work, "it failed, and the log says where", shared),
            },
            Some(Step::Tells(work, found)) => self.tell_late(work, found, shared).await?,
            None if rests => {}
            None => {
                self.late.rests_until = Some(Instant::now() + LOOK);
                self.begin_next(shared).await?;
            }
        }
        Ok(())
    }

    /// Asks for the next piece of which all is there.
    async fn begin_next(&mut self, shared: &Shared) -> Result<(), DetectError> {
        let Some(past) = self.late.past.clone() else { return Ok(()) };
        self.late.begin_gathered(Instant::now());
        if !self.late.works.is_empty() {
            let passed = self.bus.consumer_position(Stream::Ase, past.consumer()).await?;
            for _ in 0..self.late.works.len() {
                let Some(mut work) = self.late.works.pop_front() else { break };
                if work.rests_until.is_some_and(|until| Instant::now() < until) {
                    self.late.works.push_back(work);
                    continue;
                }
                if work.ready.is_none() {
                    match self.next_late(&mut work) {
                        Next::Piece(piece) => work.ready = Some((piece, self.warm.last_event)),
                        Next::Waits => {}
                        Next::Done => continue,
                    }
                }
                match work.ready {
                    Some((piece, behind)) if behind <= passed => {
                        let (part, asked) = self.part_of(&mut work, piece);
                        let answer = past.ask(asked);
                        self.late.step = Some(Step::Asked(work, Box::new(part), answer));
                        break;
                    }
                    _ => self.late.works.push_back(work),
                }
            }
        }
        let (waiting, given_up) = (self.late.waiting(), std::mem::take(&mut self.late.given_up));
        if given_up > 0 {
            tracing::warn!(given_up, "late events of too many hours came together: the oldest hours are not caught up");
        }
        let mut stats = shared.stats.lock();
        stats.late_waiting = waiting;
        stats.late_given_up += given_up;
        Ok(())
    }

    fn next_late(&mut self, work: &mut Work) -> Next {
        let (next, forgotten) = self.engine.next_of(work);
        self.late.receipts = self.late.receipts.saturating_sub(forgotten);
        next
    }

    /// A piece with the rules that it can matter to, and what is to be read for them.
    fn part_of(&self, work: &mut Work, piece: Piece) -> (LatePart, PastAsked) {
        let tenant = work.whose.tenant_id.clone();
        let sees_late = |running: &&RunningRule| {
            let window = running.window_micros();
            piece.longest_window.is_none_or(|longest| window <= longest) && piece.newest.plus_micros(window) >= piece.from
        };
        let rules: Vec<&RunningRule> = self.engine.rules_over_late(work).filter(sees_late).collect();
        let ahead = self.engine.reach_ahead(work);
        let window = rules.iter().map(|running| running.window_micros()).max().unwrap_or(0);
        let suppress_s = rules.iter().filter_map(|running| running.rule.header.suppress_s).max().unwrap_or(0);
        let (beside, run_in) =
            if work.reads_beside { (window, window.max(suppress_s.saturating_mul(1_000_000).min(RUN_IN))) } else { (0, 0) };
        let asked = PastAsked {
            tenant: tenant.clone(),
            from: piece.from.plus_micros(-(window + run_in + self.engine.lateness_micros())),
            to: piece.to.plus_micros(beside + ahead + 1),
            most: MOST,
            with_late: true,
            sieve: Some(Arc::new(Sieve::of_plans(rules.iter().map(|running| &running.plan)))),
        };
        let rule = |running: &&RunningRule| LateRule { text: running.rule.text.clone(), since: running.since.of(&tenant) };
        let part = LatePart {
            from: piece.from,
            to: piece.to,
            beside,
            final_before: piece.final_before,
            first_bus: piece.first_bus,
            last_bus: work.last_bus(),
            receipts: work.receipts(),
            rules: rules.iter().map(rule).collect(),
            clock: Arc::clone(&self.clock),
            tenant,
        };
        work.asked_window = window;
        (part, asked)
    }

    /// Tells what a piece came to, or some of it, where it is much. Where that fails it is looked at again.
    async fn tell_late(&mut self, mut work: Work, mut found: Box<LateFound>, shared: &Shared) -> Result<(), DetectError> {
        let (tenant, started) = (work.whose.tenant_id.clone(), self.clock.now());
        let mut alerts = some_of(&mut found.alerts, MAX_BATCH);
        // A rule that was changed since says nothing of the time before.
        let standing = self.engine.rules.iter().filter(|running| running.scope.covers(&tenant));
        let texts: BTreeSet<&str> = standing.map(|running| running.rule.hash.as_str()).collect();
        alerts.retain(|alert| texts.contains(alert.rule_hash.as_str()));
        let by: Vec<String> = alerts.iter().map(|alert| alert.rule_id.clone()).collect();
        // What is there already the stream does not take.
        alerts.append(&mut some_of(&mut found.again, MAX_BATCH - alerts.len()));
        let retractions = some_of(&mut found.retractions, MAX_BATCH - alerts.len());
        let output = TickOutput { alerts, retractions, ..TickOutput::default() };
        if let Err(error) = self.tell(WorkerStats::default(), output, Vec::new(), started, shared).await {
            self.late.works.push_front(work);
            return Err(error);
        }
        for rule_id in &by {
            let its_own = |running: &&mut RunningRule| running.rule.header.id == *rule_id && running.scope.covers(&tenant);
            if let Some(running) = self.engine.rules.iter_mut().find(its_own) {
                running.stats.alerts += 1;
            }
        }
        shared.stats.lock().late_alerts += by.len() as u64;
        if !by.is_empty() {
            tracing::info!(%tenant, alerts = by.len(), "what came too late was caught up, and rules found something");
        }
        if !(found.alerts.is_empty() && found.again.is_empty() && found.retractions.is_empty()) {
            self.late.step = Some(Step::Tells(work, found));
            return Ok(());
        }
        if !found.failed.is_empty() {
            tracing::warn!(%tenant, failed = ?found.failed, "rules failed over what came too late, and tell nothing of it");
            shared.stats.lock().late_given_up += found.failed.len() as u64;
        }
        work.pass();
        work.rests_until = Some(Instant::now() + REST);
        if self.next_late(&mut work) != Next::Done {
            self.late.works.push_back(work);
        }
        self.late.rests_until = None;
        Ok(())
    }
}

/// So many of them at most, which are not there any more then.
fn some_of<T>(all: &mut Vec<T>, most: usize) -> Vec<T> {
    all.split_off(all.len().saturating_sub(most))
}
