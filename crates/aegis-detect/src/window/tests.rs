//! What a full quota refuses and an agent's part of it, by what is kept; that what is gone takes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::name::Names;
use aegis_model::EventKind;
use proptest::prelude::*;

fn event(tenant: &str, second: i64) -> Arc<SecurityEvent> {
    let ts = Timestamp::from_micros(second * 1_000_000);
    Arc::new(SecurityEvent::new(TenantId::new(tenant).unwrap(), "e", "edge", EventKind::AuthorizeDecision, ts))
}

fn keep(state: &mut RuleState, event: &Arc<SecurityEvent>, bucket: &str, quotas: Quotas) -> Kept {
    let (name, one) = (BucketName::new(&event.tenant_id, bucket), Relevant::of(event, None));
    let mut kept = None;
    state.keep((&name, None), [&one], quotas, |_, came| kept = Some(came));
    kept.unwrap()
}

/// As it is when the rule is asked about a tenant.
fn expire(state: &mut RuleState, tenant: &TenantId, before: Timestamp, window_micros: i64) {
    if let Some(place) = state.tenants.get_index_of(tenant) {
        assert_eq!(state.expire(place, before, window_micros), state.tenants.contains_key(tenant));
    }
}

fn settled(state: &mut RuleState, tenant: &TenantId, number: usize, window_micros: i64) {
    state.settled(number, state.place_of(tenant, number), window_micros);
}

#[test]
fn a_full_quota_refuses_new_keys_and_leaves_other_tenants_alone() {
    let quotas = Quotas { events_per_tenant: 3, keys_per_tenant: 2, events_per_key: 2, ..Quotas::default() };
    let mut state = RuleState::default();
    assert_eq!(keep(&mut state, &event("a", 1), "k1", quotas), Kept::Added);
    assert_eq!(keep(&mut state, &event("a", 2), "k2", quotas), Kept::Added);
    assert_eq!(keep(&mut state, &event("a", 3), "k3", quotas), Kept::Refused);
    assert_eq!(keep(&mut state, &event("b", 3), "k3", quotas), Kept::Added);
    assert_eq!(keep(&mut state, &event("a", 3), "k1", quotas), Kept::Added, "a known key goes on");
    assert_eq!(keep(&mut state, &event("a", 4), "k1", quotas), Kept::AddedOverQuota(1));
    assert_eq!(keep(&mut state, &event("a", 2), "k1", quotas), Kept::GivenUp, "it would be the oldest");
    assert_eq!(state.event_count(), 4);
    expire(&mut state, &TenantId::new("a").unwrap(), Timestamp::from_micros(10_000_000), 0);
    assert_eq!(state.event_count(), 1, "only the other tenant's event is left");
    state.forget(&TenantId::new("b").unwrap());
    assert_eq!((state.event_count(), state.tenants.len()), (0, 0));
}

/// The attack: a tenant whose state comes and goes, under a rule of its own, which nobody asks whether it rests.
#[test]
fn of_a_tenants_own_rule_what_comes_and_goes_leaves_nothing_behind() {
    let (mut state, tenant) = (RuleState::default(), TenantId::new("a").unwrap());
    for second in 0..1000 {
        assert!(state.key_or_new(&tenant, "b", "key", None, Quotas::default()).is_some());
        expire(&mut state, &tenant, Timestamp::from_micros(1_000_000_000 * (second + 1)), 0);
        assert!(state.tenants.is_empty());
    }
    assert_eq!(state.due.noted(), 1);
}

/// What is new of one tenant is looked at, whoever else was there in between.
#[test]
fn who_has_something_new_does_not_rest() {
    let (mut state, mut numbers) = (RuleState::default(), Numbers::default());
    let [a, b] = ["a", "b"].map(|name| TenantId::new(name).unwrap());
    let [of_a, of_b] = [&a, &b].map(|tenant| numbers.of(tenant));
    let now = Timestamp::from_micros(1);
    for (tenant, number) in [(&a, of_a), (&b, of_b)] {
        settled(&mut state, tenant, number, 0);
        assert!(state.rests(number, now), "there is nothing of it");
    }
    for tenant in [&a, &b, &a] {
        assert!(state.key_or_new(tenant, "b", "key", None, Quotas::default()).is_some());
    }
    state.ask_noted(&mut numbers);
    assert!(!state.rests(of_a, now) && !state.rests(of_b, now));
    settled(&mut state, &a, of_a, 0);
    assert!(!state.rests(of_a, now), "its key can still change");
    state.forget(&a);
    settled(&mut state, &a, of_a, 0);
    assert!(state.rests(of_a, now));
    keep(&mut state, &event("a", 1), "k", Quotas::default());
    state.ask_noted(&mut numbers);
    assert!(!state.rests(of_a, now), "it is there again");
}

#[test]
fn nothing_is_settled_before_the_oldest_event_leaves_the_window() {
    let (mut state, mut numbers) = (RuleState::default(), Numbers::default());
    let (a, window) = (TenantId::new("a").unwrap(), 60_000_000);
    let number = numbers.of(&a);
    let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
    let settle = |state: &mut RuleState, to: i64| {
        expire(state, &a, at(to - 60), window);
        settled(state, &a, number, window);
    };
    keep(&mut state, &event("a", 100), "k", Quotas::default());
    assert!(!state.rests(number, at(100)), "it is new");
    settle(&mut state, 100);
    keep(&mut state, &event("a", 150), "other", Quotas::default());
    assert!(state.rests(number, at(160)), "what is newer leaves later");
    assert!(!state.rests(number, at(161)));
    keep(&mut state, &event("a", 90), "k", Quotas::default());
    assert!(state.rests(number, at(150)) && !state.rests(number, at(151)), "what comes late leaves before the rest");
    settle(&mut state, 120);
    assert!(state.rests(number, at(150)) && !state.rests(number, at(151)));
    settle(&mut state, 161);
    assert_eq!(state.event_count(), 1, "of 150");
    assert!(state.rests(number, at(210)) && !state.rests(number, at(211)));
}

/// There are as many as rules have tenants.
#[test]
fn a_tenants_state_with_its_first_bucket_is_little_memory() {
    let bytes = size_of::<TenantState>();
    assert!(bytes <= 280, "a tenant's state has {bytes} bytes");
}

proptest! {
    /// L-PLACES: what is known of a tenant is the same whether it is found by its place, and asked for where it does not rest, or by its name and each time;
    /// and of who fell silent nothing is left.
    #[test]
    fn l_places_who_is_found_by_a_number_is_who_has_the_name(
        steps in prop::collection::vec((0..6usize, 0..6u8, 0..40i64, 0..50i64, any::<bool>()), 1..120),
    ) {
        const WINDOW: i64 = 60;
        let (quotas, window) = (Quotas::default(), WINDOW * 1_000_000);
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        let tenants: Vec<TenantId> = (0..6).map(|n| TenantId::new(&format!("t-{n}")).unwrap()).collect();
        let (mut names, mut by_place, mut by_name) = (Names::default(), RuleState::default(), RuleState::default());
        let (mut newest, mut last, mut now) = ([0_i64; 6], None, 1_000_i64);
        for (whose, bucket, forward, back, has_key) in steps {
            now += forward;
            let (tenant, bucket) = (&tenants[whose], bucket.to_string());
            let one = Relevant::of(&event(tenant.as_str(), now - back), None);
            let mut kept = Vec::new();
            let name = names.of(tenant, &bucket);
            // Where it stands, and where another does.
            let place = by_place.places([(&name, whose)].into_iter()).pop().flatten().or(last);
            last = by_place.keep((&name, place), [&one], quotas, |_, came| kept.push(came));
            by_name.keep((&BucketName::new(tenant, &bucket), None), [&one], quotas, |_, came| kept.push(came));
            prop_assert_eq!(kept, [Kept::Added, Kept::Added]);
            if has_key {
                for state in [&mut by_place, &mut by_name] {
                    prop_assert!(state.key_or_new(tenant, &bucket, "key", None, quotas).is_some());
                }
            }
            newest[whose] = newest[whose].max(if has_key { now } else { now - back });
            by_place.ask_noted(names.numbers());
            for (tenant, newest) in tenants.iter().zip(newest) {
                let number = names.numbers().of(tenant);
                expire(&mut by_name, tenant, at(now - WINDOW), window);
                if !by_place.rests(number, at(now)) {
                    expire(&mut by_place, tenant, at(now - WINDOW), window);
                    settled(&mut by_place, tenant, number, window);
                }
                let place = by_place.tenants.get_index_of(tenant);
                prop_assert_eq!(by_place.place_of(tenant, number), place);
                if newest < now - WINDOW - expire_step(window) / 1_000_000 {
                    prop_assert!(place.is_none() && by_name.tenants.get(tenant).is_none(), "{tenant} is silent");
                }
                for bucket in 0..6u8 {
                    let ids = |state: &RuleState| {
                        let events = state.events(tenant, &bucket.to_string(), at(now - WINDOW), at(now));
                        events.iter().map(|event| event.event_id).collect::<Vec<_>>()
                    };
                    prop_assert_eq!(ids(&by_place), ids(&by_name));
                }
            }
        }
    }

    /// Whose buckets are whose is counted where it can come to an agent's part, and not before: it is as if it had always been.
    #[test]
    fn an_agents_part_is_the_same_whenever_it_is_counted(steps in prop::collection::vec((0..4u8, 0..12u8, 0..8i64), 1..120)) {
        let quotas = Quotas { keys_per_tenant: 8, ..Quotas::default() };
        let (mut state, tenant) = (RuleState::default(), TenantId::new("a").unwrap());
        // Of each bucket who made it, and of when its newest event is.
        let mut there: std::collections::BTreeMap<u8, (u8, i64)> = std::collections::BTreeMap::new();
        let mut now = 100;
        for (agent, bucket, forward) in steps {
            if forward >= 5 {
                now += forward;
                expire(&mut state, &tenant, Timestamp::from_micros((now - 20) * 1_000_000), 0);
                there.retain(|_, (_, newest)| *newest >= now - 20);
                continue;
            }
            let mut own = (*event("a", now)).clone();
            own.agent_id = Some(format!("agent-{agent}"));
            let made = there.values().filter(|(maker, _)| *maker == agent).count();
            let has_room = there.contains_key(&bucket) || (there.len() < 8 && made < 2);
            let kept = keep(&mut state, &Arc::new(own), &bucket.to_string(), quotas);
            prop_assert_eq!(kept != Kept::Refused, has_room);
            if has_room {
                there.entry(bucket).or_insert((agent, now)).1 = now;
            }
        }
    }
}

#[test]
fn an_agent_makes_a_quarter_of_the_buckets_at_most_until_its_own_expire() {
    let quotas = Quotas { keys_per_tenant: 8, ..Quotas::default() };
    let (mut state, tenant) = (RuleState::default(), TenantId::new("a").unwrap());
    let of = |agent: Option<&str>, second: i64| {
        let mut event = (*event("a", second)).clone();
        event.agent_id = agent.map(str::to_owned);
        Arc::new(event)
    };
    let own =
        |state: &mut RuleState, agent: Option<&str>, second: i64| keep(state, &of(agent, second), &second.to_string(), quotas);
    let kept = [1, 2, 3].map(|second| own(&mut state, Some("loud"), second));
    assert_eq!(kept, [Kept::Added, Kept::Added, Kept::Refused]);
    assert_eq!(own(&mut state, Some("quiet"), 4), Kept::Added, "another agent has its own part");
    let known = keep(&mut state, &of(Some("loud"), 5), "4", quotas);
    assert_eq!(known, Kept::Added, "a bucket that is there takes anybody's");
    let kept = [6, 7].map(|second| own(&mut state, None, second));
    assert_eq!(kept, [Kept::Added, Kept::Added], "nobody's have no bound but the tenant's");
    // A match is as good as an event.
    assert!(state.key_or_new(&tenant, "9", "key", Some("loud"), quotas).is_none());
    assert!(state.key_or_new(&tenant, "9", "key", Some("quiet"), quotas).is_some());
    assert!(state.key_or_new(&tenant, "10", "key", Some("quiet"), quotas).is_none());
    // Of events that come together, the first one that may makes the bucket.
    let together = ["loud", "third", "loud"].map(|agent| Relevant::of(&of(Some(agent), 8), None));
    let mut kept = Vec::new();
    state.keep((&BucketName::new(&tenant, "8"), None), &together, quotas, |_, came| kept.push(came));
    assert_eq!(kept, [Kept::Refused, Kept::Added, Kept::Added]);
    // The first bucket goes, and with it what it was of the part.
    expire(&mut state, &tenant, Timestamp::from_micros(2_000_000), 0);
    let kept = [11, 12].map(|second| own(&mut state, Some("loud"), second));
    assert_eq!(kept, [Kept::Added, Kept::Refused]);
    expire(&mut state, &tenant, Timestamp::from_micros(100_000_000), 0);
    let kept = [111, 112, 113].map(|second| own(&mut state, Some("loud"), second));
    assert_eq!(kept, [Kept::Added, Kept::Added, Kept::Refused], "all of it is given back");
}

#[test]
fn a_key_over_its_quota_keeps_its_newest_events_wherever_they_come() {
    let quotas = Quotas { events_per_key: 10, ..Quotas::default() };
    let mut state = RuleState::default();
    let tenant = TenantId::new("a").unwrap();
    let kept = |state: &RuleState| {
        let all = state.events(&tenant, "k", Timestamp::from_micros(0), Timestamp::from_micros(i64::MAX));
        all.iter().map(|e| e.ts.as_micros() / 1_000_000).collect::<Vec<_>>()
    };
    // What a list that is sorted and cut each time would keep.
    let mut expected = Vec::new();
    for second in (1..=100).map(|n| if n % 3 == 0 { n - 2 } else { n }) {
        keep(&mut state, &event("a", second), "k", quotas);
        expected.push(second);
        expected.sort_unstable();
        expected = expected.split_off(expected.len().saturating_sub(10));
        assert_eq!(kept(&state), expected);
    }
    expire(&mut state, &tenant, Timestamp::from_micros(98_000_000), 0);
    assert!(kept(&state).iter().all(|second| *second >= 98));
}

#[test]
fn long_texts_are_bounded_as_many_events_are() {
    let quotas = Quotas { bytes_per_key: 3_500, bytes_per_tenant: 6_000, ..Quotas::default() };
    let mut state = RuleState::default();
    let long = |second: i64| {
        let mut event = (*event("a", second)).clone();
        event.resource = Some("x".repeat(1_000));
        Arc::new(event)
    };
    let kept: Vec<Kept> = (1..=5).map(|second| keep(&mut state, &long(second), "k1", quotas)).collect();
    assert_eq!(kept, [Kept::Added, Kept::Added, Kept::Added, Kept::AddedOverQuota(1), Kept::AddedOverQuota(1)]);
    assert_eq!((1..=3).map(|second| keep(&mut state, &long(second), "k2", quotas)).collect::<Vec<_>>(), [Kept::Added; 3]);
    assert_eq!(keep(&mut state, &long(9), "k3", quotas), Kept::Refused, "the tenant has as much as it may have");
    expire(&mut state, &TenantId::new("a").unwrap(), Timestamp::from_micros(100_000_000), 0);
    assert_eq!(keep(&mut state, &long(9), "k3", quotas), Kept::Added, "what is gone takes nothing");
}

#[test]
fn long_keys_are_bounded_as_many_are() {
    let quotas = Quotas { key_bytes_per_tenant: 4_000, ..Quotas::default() };
    let (mut state, tenant) = (RuleState::default(), TenantId::new("a").unwrap());
    // Of about 400 bytes each.
    let key = |state: &mut RuleState, agent: &str, n: usize| {
        let text = format!("{n}{}", "x".repeat(199));
        state.key_or_new(&tenant, &n.to_string(), &text, Some(agent), quotas).is_some()
    };
    assert_eq!([0, 1, 2, 3].map(|n| key(&mut state, "loud", n)), [true, true, true, false], "an agent has a quarter");
    assert!(key(&mut state, "loud", 0), "what is known goes on");
    assert!([4, 5, 6].map(|n| key(&mut state, "second", n)).iter().all(|taken| *taken));
    assert!([7, 8, 9].map(|n| key(&mut state, "third", n)).iter().all(|taken| *taken));
    assert_eq!([10, 11].map(|n| key(&mut state, "fourth", n)), [true, false], "the tenant has as much as it may have");
    // A restart counts the same.
    let mut again = RuleState::default();
    let of = |state: &RuleState| state.tenants[&tenant].weight_of_keys();
    let told = |bucket: &Bucket| bucket.keys().map(|(text, key)| (text.clone(), key.clone())).collect::<BTreeMap<_, _>>();
    let saved = state.tenants[&tenant].buckets.iter().map(|(name, bucket)| (name.text().to_owned(), told(bucket))).collect();
    again.load_keys(SavedKeys::from([(tenant.clone(), saved)]));
    assert_eq!(of(&again), of(&state));
    // Keys of which nothing is remembered go, and with them what they took.
    expire(&mut state, &tenant, Timestamp::from_micros(1), 0);
    assert_eq!([0, 1, 2, 3].map(|n| key(&mut state, "loud", n)), [true, true, true, false]);
}

#[test]
fn a_redelivered_event_is_known() {
    let mut state = RuleState::default();
    let (first, second) = (event("a", 1), event("a", 2));
    assert_eq!(keep(&mut state, &second, "k", Quotas::default()), Kept::Added);
    assert_eq!(keep(&mut state, &first, "k", Quotas::default()), Kept::Added);
    assert_eq!(keep(&mut state, &second, "k", Quotas::default()), Kept::Known);
    let tenant = TenantId::new("a").unwrap();
    let all = state.events(&tenant, "k", Timestamp::from_micros(0), Timestamp::from_micros(i64::MAX));
    assert_eq!(all.iter().map(|e| e.event_id).collect::<Vec<_>>(), [first.event_id, second.event_id]);
}

#[test]
fn what_proved_itself_takes_the_place_of_what_did_not() {
    fn claims(text: &str, verified: bool, of: &SecurityEvent) -> Arc<SecurityEvent> {
        Arc::new(SecurityEvent { resource: Some(text.to_owned()), verified, ..of.clone() })
    }
    let mut state = RuleState::default();
    let (first, second) = (event("a", 1), event("a", 2));
    let (forged, proved) = (claims("a long name that nothing proves", false, &first), claims("real", true, &first));
    let tenant = TenantId::new("a").unwrap();
    let named = |state: &RuleState| {
        let all = state.events(&tenant, "k", Timestamp::from_micros(0), Timestamp::from_micros(i64::MAX));
        all.iter().map(|event| event.resource.clone()).collect::<Vec<_>>()
    };
    for event in [&forged, &second] {
        assert_eq!(keep(&mut state, event, "k", Quotas::default()), Kept::Added);
    }
    assert_eq!(keep(&mut state, &proved, "k", Quotas::default()), Kept::Added, "it is new, and what it changes is looked at");
    assert_eq!((named(&state), state.event_count()), (vec![Some("real".to_owned()), None], 2));
    assert_eq!(state.tenants[&tenant].bytes, "real".len(), "what is gone takes nothing");
    for late in [&forged, &proved, &claims("other", true, &first)] {
        assert_eq!(keep(&mut state, late, "k", Quotas::default()), Kept::Known);
    }
    assert_eq!(named(&state), [Some("real".to_owned()), None]);
}
