//! What a query is shown of a bucket, however its events come and go, and whatever of them is put off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;
use crate::find::ShownEvents;
use crate::known::Split;
use crate::sliding::{Frame, Partition, Values};
use aegis_model::{EventKind, TenantId};

const FRAME: Frame = Frame { start: 4, end: 0, argument: None, sorted: false };
const LEAST: Least = Least { count: 3, span: FRAME.start };

/// What may come of a bucket, in any order.
#[derive(Clone, Debug)]
enum Step {
    Keep { after: i64, late: i64 },
    Look,
    Expire { back: i64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let late = prop_oneof![4 => Just(0i64), 1 => 0..9i64];
    prop_oneof![
        6 => (0..4i64, late).prop_map(|(after, late)| Step::Keep { after, late }),
        4 => Just(Step::Look),
        1 => (4..20i64).prop_map(|back| Step::Expire { back }),
    ]
}

fn event(at: i64) -> Arc<SecurityEvent> {
    let (tenant, ts) = (TenantId::new("t").unwrap(), Timestamp::from_micros(at));
    Arc::new(SecurityEvent::new(tenant, "e", "edge", EventKind::AuthorizeDecision, ts))
}

/// Looks at what is new of a bucket from a time on, as a rule does that counts in a frame; true if it was put off.
fn look(bucket: &mut Bucket, from: Timestamp) -> Result<bool, TestCaseError> {
    let times: Vec<i64> = bucket.events().iter().map(|event| event.ts.as_micros()).collect();
    let within = |ts: i64| times.iter().filter(|time| (ts - FRAME.start..=ts).contains(*time)).count();
    let asked: Vec<i64> = times.iter().copied().filter(|time| *time >= from.as_micros()).collect();
    let may_match = asked.iter().any(|ts| within(*ts) >= LEAST.count);
    if bucket.puts_off(LEAST, from) {
        prop_assert!(!may_match, "{asked:?} of {times:?}");
        return Ok(true);
    }
    prop_assert!(may_match, "{asked:?} of {times:?}");
    let (known, new) = bucket.follow(from, || Known::Windows(Box::new([Split::default()])));
    let (mut frames, mut shown) = (known.into_frames(), ShownEvents::new(1));
    shown.add(0, new);
    let (origins, _) = shown.next_part(usize::MAX).unwrap();
    let place = frames[0].place(None, || Partition::new(Arc::from([FRAME])));
    let partition = &mut frames[0].partitions[place];
    origins.iter().for_each(|origin| partition.push(origin.ts, origin.place, Values::new()));
    for ts in asked {
        partition.seek(ts);
        prop_assert_eq!(partition.count(0), within(ts) as i64, "at {} of {:?}", ts, times);
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
    ) {
        let quotas = Quotas { events_per_key, ..Quotas::default() };
        let (mut bucket, mut now, mut oldest) = (Bucket::default(), 100, None::<Timestamp>);
        for step in steps {
            match step {
                Step::Keep { after, late } => {
                    now += after;
                    let new = event(now - late);
                    if matches!(bucket.keep(&new, 1, quotas), Kept::Added | Kept::AddedOverQuota(_)) {
                        oldest = Some(oldest.map_or(new.ts, |oldest| oldest.min(new.ts)));
                    }
                }
                Step::Expire { back } => bucket.expire(Timestamp::from_micros(now - back)),
                Step::Look => {
                    if let Some(from) = oldest.take() {
                        look(&mut bucket, from)?;
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
        times.iter().for_each(|at| assert_eq!(bucket.keep(&event(*at), 1, Quotas::default()), Kept::Added));
        let from = Timestamp::from_micros(*times.iter().min().unwrap());
        let is_put_off = look(&mut bucket, from).unwrap();
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
