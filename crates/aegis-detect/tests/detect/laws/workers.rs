//! L-REPLAY over numbers of workers: the partitions of one log, shared out among some engines and handed over between them while it grows, lead to
//! what one engine tells of all of it. It stands on this: of a checkpoint a partition's part can be taken out, and put beside what another has.

use std::collections::{BTreeMap, BTreeSet};

use aegis_detect::{Engine, EpisodeUpdate, TickOutput};
use aegis_model::{Alert, SecurityEvent, TenantId, partition_of};
use proptest::prelude::*;
use serde_json::Value;

use super::logs::{RULES, SILENT_THERE, Step, TENANTS, any_step_of, engine, log_of};

/// Most workers.
const WORKERS: usize = 8;

/// All that was told of a log, as the streams have it.
#[derive(Debug, Default, PartialEq)]
struct Told {
    /// Each once, as it was told first.
    alerts: BTreeMap<String, Alert>,
    retracted: BTreeSet<String>,
    /// Each as it was told last.
    episodes: BTreeMap<String, EpisodeUpdate>,
}

impl Told {
    fn take(&mut self, output: TickOutput) {
        assert!(output.quarantined.is_empty(), "{:?}", output.quarantined);
        for alert in output.alerts {
            self.alerts.entry(alert.alert_id.clone()).or_insert(alert);
        }
        for retraction in output.retractions {
            assert!(self.alerts.contains_key(&retraction.alert_id), "retracted, but never told");
            assert!(self.retracted.insert(retraction.alert_id), "retracted twice");
        }
        for episode in output.episodes {
            self.episodes.insert(episode.alert_id.clone(), episode);
        }
    }

    /// Which rules told something that stands.
    fn standing_rules(&self) -> BTreeSet<&str> {
        let stands = |alert: &&Alert| !self.retracted.contains(&alert.alert_id);
        self.alerts.values().filter(stands).map(|alert| alert.rule_name.as_str()).collect()
    }
}

/// From this place of the log on, a tenant's partition is another worker's.
#[derive(Clone, Copy, Debug)]
struct Move {
    place: usize,
    tenant: usize,
    to: usize,
}

fn any_move() -> impl Strategy<Value = Move> {
    (0..80usize, 0..TENANTS.len(), 0..WORKERS).prop_map(|(place, tenant, to)| Move { place, tenant, to })
}

fn partition(tenant: &str) -> u32 {
    partition_of(&TenantId::new(tenant).unwrap())
}

/// Workers that share a log.
struct Fleet {
    workers: Vec<Engine>,
    /// Of each partition, whose it is.
    homes: BTreeMap<u32, usize>,
    /// What came in time, of all partitions.
    taken: Vec<SecurityEvent>,
}

impl Fleet {
    /// So many workers, and of each of the tenants, where its partition is at first.
    fn new(workers: usize, homes: &[usize]) -> Self {
        let homes = TENANTS.iter().zip(homes).map(|(tenant, home)| (partition(tenant), home % workers)).collect();
        Self { workers: (0..workers).map(|_| engine()).collect(), homes, taken: Vec::new() }
    }

    /// Each takes what is its own of the next events.
    fn tick(&mut self, events: &[SecurityEvent], told: &mut Told) {
        let Self { workers, homes, taken } = self;
        for (worker, engine) in workers.iter_mut().enumerate() {
            let is_own = |event: &&SecurityEvent| homes[&partition_of(&event.tenant_id)] == worker;
            let own: Vec<SecurityEvent> = events.iter().filter(is_own).cloned().collect();
            let output = engine.tick(own.clone());
            taken.extend(own.into_iter().filter(|event| !output.late.contains(&event.event_id)));
            told.take(output);
        }
    }

    /// A partition goes from whoever has it to another, by way of the checkpoints of both, and the events that windows still need.
    fn hand_over(&mut self, handed: u32, to: usize) {
        let from = self.homes[&handed];
        if from == to {
            return;
        }
        let is_handed = |tenant: &str| partition(tenant) == handed;
        let (mut moved, mut rest, mut joined) = (self.checkpoint(from), self.checkpoint(from), self.checkpoint(to));
        keep(&mut moved, &is_handed);
        keep(&mut rest, &|tenant: &str| !is_handed(tenant));
        join(&mut joined, moved);
        let needed: Vec<SecurityEvent> = self.taken.iter().filter(|event| self.is_needed(event)).cloned().collect();
        self.homes.insert(handed, to);
        for (worker, checkpoint) in [(from, rest), (to, joined)] {
            let is_own = |event: &&SecurityEvent| self.homes[&partition_of(&event.tenant_id)] == worker;
            let own: Vec<SecurityEvent> = needed.iter().filter(is_own).cloned().collect();
            let mut next = engine();
            next.restore(serde_json::from_value(checkpoint).unwrap(), own, true);
            self.workers[worker] = next;
        }
    }

    fn checkpoint(&self, worker: usize) -> Value {
        serde_json::to_value(self.workers[worker].checkpoint()).unwrap()
    }

    fn is_needed(&self, event: &SecurityEvent) -> bool {
        let worker = &self.workers[self.homes[&partition_of(&event.tenant_id)]];
        worker.horizon(&event.tenant_id).is_none_or(|horizon| event.ts >= horizon)
    }
}

/// Leaves of a checkpoint what is of these tenants, and of none.
fn keep(part: &mut Value, keeps: &dyn Fn(&str) -> bool) {
    match part {
        Value::Object(map) => {
            map.retain(|name, _| !TENANTS.contains(&name.as_str()) || keeps(name));
            map.values_mut().for_each(|inner| keep(inner, keeps));
        }
        Value::Array(list) => {
            list.retain(|inner| inner.get("tenant_id").and_then(Value::as_str).is_none_or(keeps));
            list.iter_mut().for_each(|inner| keep(inner, keeps));
        }
        _ => {}
    }
}

/// Puts what is of other tenants into a checkpoint. What is of no tenant is the same in both.
fn join(into: &mut Value, other: Value) {
    match (into, other) {
        (Value::Object(known), Value::Object(more)) => {
            for (name, value) in more {
                match known.get_mut(&name) {
                    Some(inner) => join(inner, value),
                    None => {
                        known.insert(name, value);
                    }
                }
            }
        }
        // A rule's hash, and what it told.
        (Value::Array(known), Value::Array(more)) if known.first().is_some_and(Value::is_string) => {
            known.iter_mut().zip(more).for_each(|(inner, value)| join(inner, value));
        }
        (Value::Array(known), Value::Array(more)) => known.extend(more),
        (known, more) => assert_eq!(*known, more, "of no tenant, and not the same"),
    }
}

/// What is told of a log, cut at some places, by one worker, and by several.
fn both(log: &[SecurityEvent], cuts: &[usize], workers: usize, homes: &[usize], moves: &[Move]) -> (Told, Told) {
    let places = cuts.iter().copied().chain(moves.iter().map(|change| change.place));
    let ends: BTreeSet<usize> = places.filter(|place| *place < log.len()).chain([log.len()]).collect();
    let (mut one, mut fleet) = (engine(), Fleet::new(workers, homes));
    let (mut together, mut apart) = (Told::default(), Told::default());
    let mut from = 0;
    for end in ends {
        together.take(one.tick(log[from..end].to_vec()));
        fleet.tick(&log[from..end], &mut apart);
        for change in moves.iter().filter(|change| change.place == end) {
            fleet.hand_over(partition(TENANTS[change.tenant]), change.to % workers);
        }
        from = end;
    }
    together.take(one.finish());
    for worker in &mut fleet.workers {
        apart.take(worker.finish());
    }
    (together, apart)
}

/// A log of several tenants, in which each is as busy as one alone would be.
fn log_of_many(steps: &[Step]) -> Vec<SecurityEvent> {
    let dense = |(n, step): (usize, &Step)| Step { forward: if n % 3 == 0 { step.forward } else { 0 }, ..step.clone() };
    log_of(&steps.iter().enumerate().map(dense).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn l_replay_any_number_of_workers_between_which_partitions_go_tells_what_one_tells(
        steps in prop::collection::vec(any_step_of(6), 1..80),
        cuts in prop::collection::vec(0..80usize, 0..16),
        workers in 1..=WORKERS,
        homes in prop::collection::vec(0..WORKERS, TENANTS.len()),
        moves in prop::collection::vec(any_move(), 0..5),
    ) {
        let (together, apart) = both(&log_of_many(&steps), &cuts, workers, &homes, &moves);
        prop_assert_eq!(together, apart);
    }
}

#[test]
fn l_replay_over_numbers_of_workers_is_not_kept_by_silence() {
    let of = TENANTS.map(partition);
    let partitions = of.iter().collect::<BTreeSet<_>>().len();
    assert!(partitions == TENANTS.len() - 1 && of[0] == of[4], "two tenants go together, the others do not");
    // Each tenant tells in turn what one does in the test that the laws are not kept by silence.
    let step = |n: usize| {
        let (i, tenant) = (n / TENANTS.len(), n % TENANTS.len());
        let (forward, late) = (if tenant == 0 { 2 } else { 0 }, if i % 7 == 3 { 5 } else { 0 });
        Step { forward, late, tenant: u8::try_from(tenant).unwrap(), agent: 0, deny: i % 3 != 0, repeat: false }
    };
    let log = log_of(&(0..30 * TENANTS.len()).map(step).collect::<Vec<_>>());
    let each: Vec<usize> = (0..log.len()).collect();
    // Every few events one of them goes on to the next worker.
    let moves: Vec<Move> = (0..18).map(|n| Move { place: n * 9 + 5, tenant: n % TENANTS.len(), to: n % 3 }).collect();
    let (together, apart) = both(&log, &each, 3, &[0, 1, 2, 0, 0, 1], &moves);
    let rules: BTreeSet<&str> = RULES.iter().map(|rule| rule.0).filter(|name| !SILENT_THERE.contains(name)).collect();
    assert!(apart.standing_rules().is_superset(&rules), "{:?}", apart.standing_rules());
    assert!(!apart.episodes.is_empty() && !apart.retracted.is_empty(), "{apart:?}");
    let tenants: BTreeSet<&str> = apart.alerts.values().map(|alert| alert.tenant_id.as_str()).collect();
    assert_eq!(tenants.len(), TENANTS.len());
    assert_eq!(together, apart);
}
