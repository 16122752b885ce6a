//! What a query is shown of a bucket, however its events come and go, and whatever of them is put off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;
use crate::find::ShownEvents;
use crate::known::Split;
use crate::sliding::{Frame, Partition, Values};
use aegis_model::{EventKind, TenantId};

const FRAME: Frame = Frame { start: 4, end: 0, argument: None, sorted: false };
const LEAST: Takes = Takes { least: Some(Least { count: 3, span: FRAME.start }), seed_span: None, differing_span: None };

/// What may come of a bucket, in any order.
#[derive(Clone, Debug)]
enum Step {
    Keep { after: i64, late: i64, is_seed: bool },
    Look,
    Expire { back: i64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let late = prop_oneof![4 => Just(0i64), 1 => 0..9i64];
    let keep = (0..4i64, late, prop::bool::weighted(0.1));
    prop_oneof![
        6 => keep.prop_map(|(after, late, is_seed)| Step::Keep { after, late, is_seed }),
        4 => Just(Step::Look),
        1 => (4..20i64).prop_map(|back| Step::Expire { back }),
    ]
}

fn any_takes() -> impl Strategy<Value = Takes> {
    prop_oneof![
        Just(LEAST),
        Just(Takes { seed_span: Some(3), ..Takes::default() }),
        Just(Takes { differing_span: Some(5), ..Takes::default() }),
        Just(Takes { seed_span: Some(6), differing_span: Some(3), ..LEAST }),
    ]
}

/// A seed is one that changes something; and whether one does so is the value that may differ.
fn event(at: i64, is_seed: bool) -> Arc<SecurityEvent> {
    let (tenant, ts) = (TenantId::new("t").unwrap(), Timestamp::from_micros(at));
    let mut event = SecurityEvent::new(tenant, "e", "edge", EventKind::AuthorizeDecision, ts);
    event.mutates_state = Some(is_seed);
    Arc::new(event)
}

/// Looks at what is new of a bucket from a time on, as a rule does that counts in a frame; true if it was put off.
fn look(bucket: &mut Bucket, takes: Takes, from: Timestamp) -> Result<bool, TestCaseError> {
    let there: Vec<(i64, bool)> =
        bucket.events().iter().map(|event| (event.ts.as_micros(), event.mutates_state == Some(true))).collect();
    let within = |ts: i64, span: i64| there.iter().filter(move |(time, _)| (ts - span..=ts).contains(time));
    let has_seed = |ts: i64, span: i64| within(ts, span).any(|(_, is_seed)| *is_seed);
    let may_match = |ts: &i64| {
        let has_enough = takes.least.is_none_or(|least| within(*ts, least.span).count() >= least.count);
        let differs = |span: i64| has_seed(*ts, span) && within(*ts, span).any(|(_, is_seed)| !*is_seed);
        has_enough && takes.seed_span.is_none_or(|span| has_seed(*ts, span)) && takes.differing_span.is_none_or(differs)
    };
    let asked: Vec<i64> = there.iter().map(|(time, _)| *time).filter(|time| *time >= from.as_micros()).collect();
    if bucket.puts_off(takes, from) {
        prop_assert!(!asked.iter().any(may_match), "{:?} of {:?}", asked, there);
        return Ok(true);
    }
    // Of seeds, and of values, it is known when they were there last.
    prop_assert!(takes != LEAST || asked.iter().any(may_match), "{:?} of {:?}", asked, there);
    let (known, new) = bucket.follow(from, || Known::Windows(Box::new([Split::default()])));
    let (mut frames, mut shown) = (known.into_frames(), ShownEvents::new(1));
    shown.add(0, new);
    let (origins, _) = shown.next_part(usize::MAX).unwrap_or_default();
    let place = frames[0].place(None, || Partition::new(Arc::from([FRAME])));
    let partition = &mut frames[0].partitions[place];
    origins.iter().for_each(|origin| partition.push(origin.ts, origin.place, Values::new()));
    for ts in asked {
        partition.seek(ts);
        prop_assert_eq!(partition.count(0), within(ts, FRAME.start).count() as i64, "at {} of {:?}", ts, there);
    }
    bucket.followed(Some(Known::Windows(frames)));
    Ok(false)
}

proptest! {
    /// L-LEAST: what is put off can be no match, and what is shown is seen beside all that is there of the time that it looks back to, shown before, put off, come
    /// late, or with some of it taken by a quota.
    #[test]
    fn l_least_what_is_put_off_can_be_no_match_and_is_there_when_it_is_needed(
        steps in prop::collection::vec(any_step(), 1..120),
        events_per_key in 2..12usize,
        takes in any_takes(),
    ) {
        let quotas = Quotas { events_per_key, ..Quotas::default() };
        let (mut bucket, mut now, mut oldest) = (Bucket::default(), 100, None::<Timestamp>);
        for step in steps {
            match step {
                Step::Keep { after, late, is_seed } => {
                    now += after;
                    let new = event(now - late, is_seed);
                    if matches!(bucket.keep(&new, 1, quotas), Kept::Added | Kept::AddedOverQuota(_)) {
                        oldest = Some(oldest.map_or(new.ts, |oldest| oldest.min(new.ts)));
                    }
                    if is_seed {
                        bucket.sow(new.ts);
                    }
                    bucket.see(if is_seed { "changes" } else { "reads" }, false);
                }
                Step::Expire { back } => bucket.expire(Timestamp::from_micros(now - back)),
                Step::Look => {
                    if let Some(from) = oldest.take() {
                        look(&mut bucket, takes, from)?;
                    }
                }
            }
        }
    }
}

#[test]
fn of_a_key_that_never_has_enough_nothing_is_known_and_of_one_that_had_nothing_is_shown_in_vain() {
    let mut bucket = Bucket::default();
    let mut looks = |times: &[i64]| {
        times.iter().for_each(|at| assert_eq!(bucket.keep(&event(*at, false), 1, Quotas::default()), Kept::Added));
        let from = Timestamp::from_micros(*times.iter().min().unwrap());
        let is_put_off = look(&mut bucket, LEAST, from).unwrap();
        (is_put_off, bucket.following.as_ref().and_then(|following| following.shown).map(Timestamp::as_micros))
    };
    assert_eq!(looks(&[0, 10]), (true, None));
    assert_eq!(looks(&[20]), (true, None), "three, but far from one another");
    assert_eq!(looks(&[21, 22]), (false, Some(22)), "from the first of all on");
    assert_eq!(looks(&[40]), (true, Some(22)), "what is known stays");
    assert_eq!(looks(&[15]), (false, Some(40)), "it comes late, and before three that are near");
    assert_eq!(looks(&[30]), (true, Some(22)), "it comes late: of what is later nothing is known any more");
    assert_eq!(looks(&[41, 42]), (false, Some(42)));
}

#[test]
fn a_value_that_is_too_long_to_be_kept_is_another_than_what_comes_then() {
    let (mut bucket, takes) = (Bucket::default(), Takes { differing_span: Some(5), ..Takes::default() });
    let mut is_put_off = |at: i64, value: &str| {
        assert_eq!(bucket.keep(&event(at, false), 1, Quotas::default()), Kept::Added);
        bucket.see(value, false);
        // What there is nothing of goes.
        bucket.retain_keys(|_, _| true);
        bucket.puts_off(takes, Timestamp::from_micros(at))
    };
    assert!(!is_put_off(1, &"x".repeat(1000)), "nothing is known of it");
    assert!(!is_put_off(6, "a"));
    assert!(is_put_off(7, "a"), "by then there is one value");
    assert!(!is_put_off(8, "b"));
}
