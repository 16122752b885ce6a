//! What came too late for the windows, and is caught up over the lake: of whom it is, which times of events it touches, and in which pieces these are
//! looked at once more. Promises that each tenant has a bounded part of memory, that no tenant waits for another's backlog, and that what is not
//! caught up is still to be after a restart.

mod compare;
mod steps;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aegis_model::{SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::warm::PastEvents;
pub use compare::{LateFound, LatePart, LateRule};
use steps::Step;

/// Runs of receipts that are remembered of a tenant, and of all. Beyond them what lies between two runs of a lane counts as late too; of lanes beyond
/// them, the lake alone says what was late.
const MOST_RECEIPTS: usize = 256;
const MOST_RECEIPTS_OF_ALL: usize = 65_536;
/// Late events come together: those of so long are caught up at once.
const GATHER: Duration = Duration::from_secs(2);
/// Beside some that are under way for a while it is twice as long for each, this often.
const MOST_DOUBLED: usize = 15;
/// A late event touches the hour in which it is, and so many hours of a tenant are caught up together: of more, the oldest are given up.
const HOUR_MICROS: i64 = 3_600_000_000;
const MOST_HOURS: usize = 72;
/// A piece is of so much time at most, and of so much at least where there is more to come, microseconds.
const MOST_MICROS: i64 = HOUR_MICROS;
const LEAST_MICROS: i64 = 60_000_000;
/// Windows below this are not given up for what is too much to be read, microseconds.
const LEAST_WINDOW_MICROS: i64 = 1_000_000;

/// A proved event that came too late for any rule to look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateEvent {
    pub tenant_id: TenantId,
    pub lane: String,
    pub seq: Option<i64>,
    pub ts: Timestamp,
    pub bus_ts: Timestamp,
}

impl LateEvent {
    /// None: it did not prove itself, and anybody can have written it.
    pub(crate) fn of(event: &SecurityEvent) -> Option<Self> {
        let lane = event.lane.clone().filter(|_| event.verified)?;
        let bus_ts = event.bus_ts.unwrap_or(event.ts);
        Some(Self { tenant_id: event.tenant_id.clone(), lane, seq: event.seq, ts: event.ts, bus_ts })
    }
}

/// Of whom late events are, and for which rules: those that wait for what follows look at another time than the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Whose {
    tenant_id: TenantId,
    waits: bool,
    /// The tenant's own rules: what these take, and look back to, must not have the program's left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    own: bool,
}

/// Late events that are caught up together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Late {
    /// When the bus stored the first and the last of them.
    first_bus: Timestamp,
    last_bus: Timestamp,
    /// Hours of event time that have some: one of long ago must not have all the time since looked at.
    touched: BTreeMap<i64, Touched>,
    /// Which they are, by lane.
    receipts: BTreeMap<String, Runs>,
}

/// Places in a lane, as runs of them: of each the first and the last. A backlog is one, and so nobody hides what is late behind many others.
pub(crate) type Runs = BTreeMap<i64, i64>;

/// Adds a place. Where there is no room for another run, the one before it reaches as far.
fn add_to(runs: &mut Runs, seq: i64, has_room: bool) {
    let before = runs.range(..=seq).next_back().map(|(first, last)| (*first, *last));
    match before {
        Some((_, last)) if seq <= last => {}
        Some((first, last)) if seq.saturating_sub(last) == 1 || !has_room => {
            runs.insert(first, seq);
        }
        _ if has_room => {
            runs.insert(seq, seq);
        }
        _ => {}
    }
}

/// The same places as some runs, that may have places in common.
fn joined(mut runs: Vec<(i64, i64)>) -> Runs {
    runs.sort_unstable();
    let (mut all, mut open) = (Runs::new(), None);
    for (first, last) in runs {
        open = match open {
            Some((from, to)) if first.saturating_sub(1) <= to => Some((from, last.max(to))),
            before => {
                all.extend(before);
                Some((first, last))
            }
        };
    }
    all.extend(open);
    all
}

/// The late events of an hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Touched {
    oldest: Timestamp,
    newest: Timestamp,
    /// Instants before this one are caught up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    done_to: Option<Timestamp>,
    /// Longest window, microseconds: rules that look back further are left out, because more is there than can be read at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    longest_window: Option<i64>,
}

impl Late {
    fn new(event: &LateEvent) -> Self {
        let bus_ts = event.bus_ts;
        Self { first_bus: bus_ts, last_bus: bus_ts, touched: BTreeMap::new(), receipts: BTreeMap::new() }
    }

    /// False: an hour is given up for it, its own or an older one.
    fn take(&mut self, event: &LateEvent, most_receipts: usize) -> bool {
        let ts = event.ts;
        let hour = self.touched.entry(ts.as_micros().div_euclid(HOUR_MICROS));
        let touched = hour.or_insert(Touched { oldest: ts, newest: ts, done_to: None, longest_window: None });
        (touched.oldest, touched.newest) = (touched.oldest.min(ts), touched.newest.max(ts));
        self.first_bus = self.first_bus.min(event.bus_ts);
        self.last_bus = self.last_bus.max(event.bus_ts);
        let has_room = self.count() < most_receipts;
        if let Some(seq) = event.seq.filter(|_| has_room || self.receipts.contains_key(&event.lane)) {
            add_to(self.receipts.entry(event.lane.clone()).or_default(), seq, has_room);
        }
        self.touched.len() <= MOST_HOURS || self.touched.pop_first().is_none()
    }

    fn count(&self) -> usize {
        self.receipts.values().map(Runs::len).sum()
    }

    /// The next piece: of the newest hour of which one is known.
    fn next(&self, batch: usize, asked: &Reach<'_>, most_micros: i64) -> Next {
        let mut next = Next::Done;
        // From there on the hours behind have the rest.
        let mut covered_from = None;
        for (hour, touched) in self.touched.iter().rev() {
            match touched.next(asked, covered_from, most_micros) {
                Ok((from, to)) => {
                    let (final_before, hour, newest, first_bus) = (asked.final_before, *hour, touched.newest, self.first_bus);
                    let longest_window = touched.longest_window;
                    return Next::Piece(Piece { from, to, final_before, batch, hour, newest, longest_window, first_bus });
                }
                Err(Next::Waits) => next = Next::Waits,
                Err(_) => {}
            }
            covered_from = Some(touched.oldest.plus_micros(-asked.ahead));
        }
        next
    }
}

impl Touched {
    /// From when to when the next piece is, of this many microseconds at most; or that it waits, or is done. A late event touches no instant that is
    /// further behind it than a rule's window.
    fn next(&self, asked: &Reach<'_>, covered_from: Option<Timestamp>, most_micros: i64) -> Result<(Timestamp, Timestamp), Next> {
        let first = self.oldest.plus_micros(-asked.ahead);
        let from = self.done_to.unwrap_or(first);
        let windows = asked.windows.iter().filter(|window| self.longest_window.is_none_or(|longest| **window <= longest));
        let ends = windows.map(|window| self.newest.plus_micros(window.saturating_add(1)));
        let ends = ends.map(|end| covered_from.map_or(end, |covered_from| end.min(covered_from)));
        let Some(end) = ends.filter(|end| *end > from).max() else { return Err(Next::Done) };
        let between = |from: Timestamp, to: Timestamp| to.as_micros().saturating_sub(from.as_micros());
        // Twice as much each time: so that what is read for each piece is not read over and over while time goes on.
        let least = between(from, end).min(between(first, from).max(LEAST_MICROS)).min(most_micros);
        let to = end.min(from.plus_micros(most_micros)).min(asked.final_before.plus_micros(-asked.ahead));
        if between(from, to) < least { Err(Next::Waits) } else { Ok((from, to)) }
    }
}

/// What is asked of late events.
#[derive(Clone, Copy, Debug)]
struct Reach<'a> {
    /// The rules' windows, and how far their frames reach behind a row, microseconds.
    windows: &'a [i64],
    ahead: i64,
    /// Before this time of the tenant's nothing changes any more.
    final_before: Timestamp,
}

/// Instants that are looked at together: `from <= t < to`, all of which are before the time before which nothing changes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    from: Timestamp,
    to: Timestamp,
    final_before: Timestamp,
    /// Of which batch's late events it is, and of which hour of theirs; the last of those; and when the bus stored the first of the batch.
    batch: usize,
    hour: i64,
    newest: Timestamp,
    first_bus: Timestamp,
    /// Longest window of the rules that it is for, if there is one.
    longest_window: Option<i64>,
}

/// What is to be done of a tenant's late events next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Piece(Piece),
    /// What follows can still change.
    Waits,
    Done,
}

/// How less is read for a piece that was too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Narrowed {
    Less,
    /// For rules with windows of so many microseconds at most.
    Shorter(i64),
    No,
}

/// A tenant's late events on their way through the instants that they touch.
#[derive(Debug)]
struct Work {
    whose: Whose,
    /// In the order in which they came: each is caught up over those before. What waits for time to pass must not keep others waiting.
    batches: Vec<Late>,
    /// The next piece, once the lake has passed this place of the stream.
    ready: Option<(Piece, u64)>,
    /// Longest piece. Less, where more is there than can be read at once.
    most_micros: i64,
    /// True: what lies beside the piece is read too.
    reads_beside: bool,
    /// The longest window of the rules that were asked last.
    asked_window: i64,
    rests_until: Option<Instant>,
}

impl Work {
    fn new(whose: Whose, batches: Vec<Late>) -> Self {
        Self { whose, batches, ready: None, most_micros: MOST_MICROS, reads_beside: true, asked_window: 0, rests_until: None }
    }

    /// The next piece: of the newest hour of which one is known.
    fn next(&self, asked: &Reach<'_>) -> Next {
        let mut next = Next::Done;
        for (batch, late) in self.batches.iter().enumerate() {
            match (late.next(batch, asked, self.most_micros), next) {
                (Next::Piece(other), Next::Piece(known)) if known.hour >= other.hour => {}
                (piece @ Next::Piece(_), _) => next = piece,
                (Next::Waits, Next::Done) => next = Next::Waits,
                (Next::Waits | Next::Done, _) => {}
            }
        }
        next
    }

    /// Forgets what is done, while no piece is known. Answers how many runs of receipts are forgotten with it.
    fn forget_done(&mut self, asked: &Reach<'_>) -> usize {
        let before = self.count();
        let most_micros = self.most_micros;
        self.batches.retain(|late| late.next(0, asked, most_micros) != Next::Done);
        before - self.count()
    }

    fn count(&self) -> usize {
        self.batches.iter().map(Late::count).sum()
    }

    /// More came late meanwhile, which counts from now on.
    fn join(&mut self, late: Late) {
        self.batches.push(late);
        // Until the lake has that too.
        self.ready = None;
    }

    /// When the bus stored the last of all.
    fn last_bus(&self) -> Timestamp {
        self.batches.iter().map(|late| late.last_bus).max().unwrap_or_default()
    }

    /// Which of all are remembered.
    fn receipts(&self) -> BTreeMap<String, Runs> {
        let mut of_lanes: BTreeMap<&String, Vec<(i64, i64)>> = BTreeMap::new();
        for (lane, runs) in self.batches.iter().flat_map(|late| &late.receipts) {
            of_lanes.entry(lane).or_default().extend(runs.iter().map(|(first, last)| (*first, *last)));
        }
        of_lanes.into_iter().map(|(lane, runs)| (lane.clone(), joined(runs))).collect()
    }

    /// Less is read for the next piece. Of the piece's hour alone, rules may be left out: who fills one hour must not have them left out of the others.
    fn narrow(&mut self) -> Narrowed {
        let Some((piece, _)) = self.ready.take() else { return Narrowed::Less };
        let half = piece.to.as_micros().saturating_sub(piece.from.as_micros()) / 2;
        let longest = self.asked_window / 2;
        if self.reads_beside {
            self.reads_beside = false;
        } else if half >= LEAST_MICROS {
            self.most_micros = half;
        } else if longest >= LEAST_WINDOW_MICROS
            && let Some(touched) = self.touched_by(&piece)
        {
            touched.longest_window = Some(longest);
            return Narrowed::Shorter(longest);
        } else {
            self.ready = Some((piece, 0));
            return Narrowed::No;
        }
        Narrowed::Less
    }

    fn touched_by(&mut self, piece: &Piece) -> Option<&mut Touched> {
        self.batches.get_mut(piece.batch)?.touched.get_mut(&piece.hour)
    }

    /// The piece is caught up, or given up.
    fn pass(&mut self) {
        if let Some((piece, _)) = self.ready.take()
            && let Some(touched) = self.touched_by(&piece)
        {
            touched.done_to = Some(piece.to);
        }
    }
}

/// Late events of all tenants: one piece of one tenant's is looked at at a time.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    past: Option<Arc<dyn PastEvents>>,
    /// What comes now, and since when.
    gathering: BTreeMap<Whose, (Late, Instant)>,
    receipts: usize,
    /// At most one of each tenant and kind of rule; they take turns.
    works: VecDeque<Work>,
    /// Hours that are given up, and that nobody was told of.
    given_up: u64,
    step: Option<Step>,
    rests_until: Option<Instant>,
    /// How often in a row nothing could be read.
    failures: u32,
    is_missed: bool,
}

impl CatchUp {
    pub(crate) fn new(past: Option<Arc<dyn PastEvents>>) -> Self {
        Self { past, ..Self::default() }
    }

    /// Takes note of events that came too late, also of tenants who have rules of their own.
    pub(crate) fn note(&mut self, late: &[LateEvent], has_own: &dyn Fn(&TenantId) -> bool) {
        if late.is_empty() {
            return;
        }
        if self.past.is_none() {
            if !self.is_missed {
                tracing::warn!(
                    "events came too late for any rule, and without a lake nobody catches them up: they are told of, and no more"
                );
            }
            self.is_missed = true;
            return;
        }
        for event in late {
            let kinds = [(false, false), (true, false), (false, true), (true, true)];
            let has_own = has_own(&event.tenant_id);
            for (waits, own) in kinds.into_iter().filter(|(_, own)| has_own || !own) {
                let whose = Whose { tenant_id: event.tenant_id.clone(), waits, own };
                let most = MOST_RECEIPTS.min(MOST_RECEIPTS_OF_ALL.saturating_sub(self.receipts));
                let (of_tenant, _) = self.gathering.entry(whose).or_insert_with(|| (Late::new(event), Instant::now()));
                let before = of_tenant.count();
                let is_whole = of_tenant.take(event, most.max(before));
                self.given_up += u64::from(!is_whole);
                self.receipts += of_tenant.count() - before;
            }
        }
    }

    /// The stream is another one: what it has, the lake is to pass once more.
    pub(crate) fn begin_again(&mut self) {
        for (_, behind) in self.works.iter_mut().filter_map(|work| work.ready.as_mut()) {
            *behind = 0;
        }
    }

    fn under_way(&self) -> impl Iterator<Item = &Work> {
        self.step.as_ref().map(Step::work).into_iter().chain(&self.works)
    }

    /// What is not caught up, for a checkpoint.
    pub(crate) fn saved(&self) -> Vec<(Whose, Late)> {
        let of_work = |work: &Work| work.batches.iter().map(|late| (work.whose.clone(), late.clone())).collect::<Vec<_>>();
        let works = self.under_way().flat_map(of_work);
        works.chain(self.gathering.iter().map(|(whose, (late, _))| (whose.clone(), late.clone()))).collect()
    }

    /// Goes on with what a checkpoint says.
    pub(crate) fn take_up(&mut self, saved: Vec<(Whose, Late)>) {
        *self = Self::new(self.past.take());
        if self.past.is_none() {
            return;
        }
        let mut batches: BTreeMap<Whose, Vec<Late>> = BTreeMap::new();
        for (whose, late) in saved {
            self.receipts += late.count();
            batches.entry(whose).or_default().push(late);
        }
        self.works.extend(batches.into_iter().map(|(whose, batches)| Work::new(whose, batches)));
    }

    /// What has gathered for long enough begins. Where some is under way, what comes joins it: the later the more there is, so that it does not become
    /// too many.
    fn begin_gathered(&mut self, now: Instant) {
        let runs = self.step.as_ref().map(|step| step.work().whose.clone());
        let places: BTreeMap<Whose, usize> =
            self.works.iter().enumerate().map(|(place, work)| (work.whose.clone(), place)).collect();
        for (whose, (late, since)) in std::mem::take(&mut self.gathering) {
            let work = places.get(&whose).and_then(|place| self.works.get_mut(*place));
            let batches = work.as_ref().map_or(0, |work| work.batches.len());
            let has_gathered = now.duration_since(since) >= GATHER * 2_u32.pow(batches.min(MOST_DOUBLED) as u32);
            match work {
                _ if !has_gathered || runs.as_ref() == Some(&whose) => {
                    self.gathering.insert(whose, (late, since));
                }
                Some(work) => work.join(late),
                None => self.works.push_back(Work::new(whose, vec![late])),
            }
        }
    }

    /// Tenants of whom something is not caught up.
    fn waiting(&self) -> u64 {
        let works = self.under_way().map(|work| &work.whose.tenant_id);
        let tenants: BTreeSet<&TenantId> = works.chain(self.gathering.keys().map(|whose| &whose.tenant_id)).collect();
        tenants.len() as u64
    }
}
