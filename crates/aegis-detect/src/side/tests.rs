//! Uses, quotas, usual hours and what is forgotten, asked of the tables.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use aegis_model::{Decision, EventKind};

use super::*;
use crate::baseline::begin_of;

fn used(tenant: &str, agent: &str, action: &str, at: i64) -> SecurityEvent {
    let ts = Timestamp::from_micros(at);
    let mut event = SecurityEvent::new(TenantId::new(tenant).unwrap(), "e", "edge", EventKind::AuthorizeDecision, ts);
    (event.verified, event.decision) = (true, Some(Decision::Allow));
    (event.agent_id, event.tool, event.action) = (Some(agent.into()), Some("tool".into()), Some(action.into()));
    event
}

fn take(tables: &mut SideTables, event: &SecurityEvent, quotas: Quotas) -> Changes {
    let mut changes = Changes::default();
    tables.take(event, quotas, &mut changes);
    changes
}

#[test]
fn only_a_proved_call_that_may_run_is_a_use_and_of_its_own_tenant_and_agent() {
    let mut tables = SideTables::default();
    let call = used("t", "a", "read", 1000);
    let no_uses = [
        SecurityEvent { verified: false, ..call.clone() },
        SecurityEvent { decision: Some(Decision::Deny), ..call.clone() },
        SecurityEvent { decision: None, ..call.clone() },
        SecurityEvent { kind: EventKind::ToolOutcome, ..call.clone() },
        SecurityEvent { tool: None, ..call.clone() },
        SecurityEvent { action: None, ..call.clone() },
        SecurityEvent { agent_id: None, ..call.clone() },
    ];
    for event in &no_uses {
        take(&mut tables, event, Quotas::default());
        assert_eq!(tables.first_seen_agent(&call), None, "{event:?}");
    }
    take(&mut tables, &used("t", "a", "read", 500), Quotas::default());
    take(&mut tables, &SecurityEvent { decision: Some(Decision::RequireApproval), ..call.clone() }, Quotas::default());
    let seen = |event: &SecurityEvent| {
        let micros = |seen: Option<Timestamp>| seen.map(Timestamp::as_micros);
        (micros(tables.first_seen_agent(event)), micros(tables.first_seen_agent_tool_action(event)))
    };
    assert_eq!(seen(&call), (Some(500), Some(500)));
    assert_eq!(seen(&used("t", "a", "write", 1000)), (Some(500), None));
    assert_eq!(seen(&used("t", "a", "read", 499)), (None, None), "as of the event");
    assert_eq!(seen(&used("t", "b", "read", 1000)), (None, None));
    assert_eq!(seen(&used("other", "a", "read", 1000)), (None, None));
    assert_eq!(seen(&no_uses[1]), (Some(500), Some(500)), "of what is no use it is known too");
}

#[test]
fn an_agent_fills_a_quarter_at_most_and_what_is_over_makes_room() {
    let quotas = Quotas { seen_bytes_per_tenant: 4000, ..Quotas::default() };
    let mut tables = SideTables::default();
    let refused = |tables: &mut SideTables, agent: &str, n: i64, at: i64| {
        !take(tables, &used("t", agent, &format!("action-{n:02}"), at), quotas).refused().is_empty()
    };
    // About a hundred bytes each.
    let of_loud: Vec<bool> = (0..20).map(|n| refused(&mut tables, "loud", n, n)).collect();
    let taken = of_loud.iter().filter(|refused| !**refused).count();
    assert!((5..10).contains(&taken) && of_loud[taken..].iter().all(|refused| *refused), "{of_loud:?}");
    assert!(!refused(&mut tables, "loud", 0, 100), "what is known goes on");
    assert!(!refused(&mut tables, "quiet", 0, 100));
    let unknown = used("t", "loud", "action-19", 200);
    assert_eq!(tables.first_seen_agent_tool_action(&unknown), None, "of what was refused nothing is said");
    for n in 0..40 {
        refused(&mut tables, &format!("agent-{n:02}"), 0, 100);
    }
    assert!(refused(&mut tables, "new", 0, 100), "the tenant has as much as it may have");
    let most = |tables: &SideTables| tables.bytes().map(|(_, bytes)| bytes).max().unwrap_or(0);
    assert!(most(&tables) <= 4000);
    let tenant = TenantId::new("t").unwrap();
    tables.forget(&tenant, Timestamp::from_micros(PAUSE));
    let known = tables.first_seen_agent(&used("t", "quiet", "action-00", PAUSE));
    assert_eq!(known, Some(Timestamp::from_micros(100)), "a pause is not over before it is");
    tables.forget(&tenant, Timestamp::from_micros(101 + PAUSE + LINGERS));
    assert_eq!((most(&tables), tables.knows(&tenant)), (0, false), "all of it is given back");
    assert!(!refused(&mut tables, "new", 0, 2 * PAUSE));
}

#[test]
fn a_usual_hour_is_that_of_the_agents_own_uses_before_the_events_hour() {
    let mut tables = SideTables::default();
    let hour = |hour: i64| begin_of(hour);
    for (at, uses) in [(hour(1), 3), (hour(2), 5), (hour(3) - 1, 1), (hour(3), 7)] {
        for event in [used("t", "a", "read", at), used("t", "a", "write", at)] {
            (0..uses).for_each(|_| drop(take(&mut tables, &event, Quotas::default())));
        }
    }
    // None of these is a use of the agent.
    let call = used("t", "a", "read", hour(2));
    let denied = SecurityEvent { decision: Some(Decision::Deny), ..call.clone() };
    for event in [
        denied,
        SecurityEvent { verified: false, ..call.clone() },
        used("t", "b", "read", hour(2)),
        used("o", "a", "read", hour(2)),
    ] {
        take(&mut tables, &event, Quotas::default());
    }
    let usual = |at: i64| tables.baseline(&used("t", "a", "other", at));
    let both = |uses: i64, hours: i64| Some(Baseline { uses, hours });
    assert_eq!([hour(1), hour(2), hour(3) - 1].map(usual), [None, both(6, 1), both(6, 1)]);
    // Two hours, of 6 and 12: the least that half of them do not exceed.
    assert_eq!([hour(3), hour(4) - 1].map(usual), [both(6, 2), both(6, 2)]);
    assert_eq!(usual(hour(4)), both(12, 3));
    let late = take(&mut tables, &used("t", "a", "read", hour(2) + 1), Quotas::default());
    let changed: Vec<_> = late.agents().flat_map(|(_, agents)| agents.values().copied()).collect();
    assert!(changed.is_empty(), "no hour's usual is another for it: {changed:?}");
    let late = take(&mut tables, &used("t", "a", "read", hour(0)), Quotas::default());
    let changed: Vec<_> = late.agents().flat_map(|(_, agents)| agents.values().copied()).collect();
    assert_eq!(changed, [Timestamp::from_micros(hour(0))], "since when it is used is another");
    let (bytes, tenant) = (tables.tenants[&call.tenant_id].bytes, call.tenant_id);
    tables.forget(&tenant, Timestamp::from_micros(hour(4 + 168) + LINGERS));
    assert_eq!(
        tables.tenants[&tenant].bytes,
        bytes - 5 * BYTES_OF_HOUR,
        "hours that are over are given back: four of one agent, one of another"
    );
}

#[test]
fn forgetting_changes_nothing_that_can_be_asked_for() {
    let mut tables = SideTables::default();
    for at in [0, PAUSE, 3 * PAUSE] {
        take(&mut tables, &used("t", "a", "read", at), Quotas::default());
    }
    let asked = |tables: &SideTables, at: i64| tables.first_seen_agent_tool_action(&used("t", "a", "read", at));
    let (now, oldest) = (2 * PAUSE + LINGERS, 2 * PAUSE + LINGERS - DAY);
    let before: Vec<_> = [oldest, now, 3 * PAUSE, 4 * PAUSE].map(|at| asked(&tables, at)).into();
    tables.forget(&TenantId::new("t").unwrap(), Timestamp::from_micros(now + 1));
    assert_eq!([oldest, now, 3 * PAUSE, 4 * PAUSE].map(|at| asked(&tables, at)).to_vec(), before);
    assert_eq!(asked(&tables, PAUSE), None, "what is over is gone");
}

fn for_user(user: &str, agent: &str, action: &str, at: i64) -> SecurityEvent {
    SecurityEvent { user_id: Some(user.into()), ..used("t", agent, action, at) }
}

#[test]
fn a_user_and_the_tenant_are_told_from_the_uses_of_all_agents() {
    let mut tables = SideTables::default();
    for event in [for_user("u", "a", "read", 100), for_user("u", "b", "write", 200), used("t", "c", "read", 50)] {
        take(&mut tables, &event, Quotas::default());
    }
    take(&mut tables, &SecurityEvent { decision: Some(Decision::Deny), ..for_user("u", "a", "pay", 10) }, Quotas::default());
    let seen = |event: &SecurityEvent| {
        let asked =
            [tables.first_seen_user(event), tables.first_seen_user_tool_action(event), tables.first_seen_tool_action(event)];
        asked.map(|seen| seen.map(Timestamp::as_micros))
    };
    assert_eq!(seen(&for_user("u", "d", "read", 300)), [Some(100), Some(100), Some(50)], "whatever the agent");
    assert_eq!(seen(&for_user("u", "d", "write", 150)), [Some(100), None, None], "as of the event");
    assert_eq!(seen(&for_user("u", "d", "pay", 300)), [Some(100), None, None], "what is denied is no use");
    assert_eq!(seen(&for_user("v", "a", "read", 300)), [None, None, Some(50)]);
    assert_eq!(seen(&used("t", "a", "read", 300)), [None, None, Some(50)], "nobody was named");
    let elsewhere = SecurityEvent { tenant_id: TenantId::new("o").unwrap(), ..for_user("u", "a", "read", 300) };
    assert_eq!(seen(&elsewhere), [None, None, None]);
}

#[test]
fn a_use_that_comes_behind_others_says_something_else_of_its_user_and_of_the_tenant_alone_where_it_does() {
    let mut tables = SideTables::default();
    take(&mut tables, &for_user("u", "a", "read", 1000), Quotas::default());
    let at = |micros: i64| Timestamp::from_micros(micros);
    let users = |changes: &Changes| -> Vec<(String, Timestamp)> {
        changes.users().flat_map(|(_, users)| users.iter().map(|(user, from)| (user.clone(), *from))).collect()
    };
    let newer = take(&mut tables, &for_user("u", "a", "read", 1100), Quotas::default());
    assert!(users(&newer).is_empty() && newer.all().next().is_none() && newer.agents().next().is_none(), "{newer:?}");
    let earlier = take(&mut tables, &for_user("u", "b", "read", 900), Quotas::default());
    assert_eq!(users(&earlier), [("u".to_owned(), at(900))]);
    assert_eq!(earlier.all().map(|(_, from)| from).collect::<Vec<_>>(), [at(900)]);
    let between = take(&mut tables, &for_user("v", "a", "read", 950), Quotas::default());
    assert_eq!(users(&between), [("v".to_owned(), at(950))]);
    assert!(between.all().next().is_none(), "somebody read before: {between:?}");
}

#[test]
fn an_agent_brings_in_users_up_to_its_part_and_what_is_over_is_given_back_to_it() {
    let quotas = Quotas { seen_bytes_per_tenant: 8000, ..Quotas::default() };
    let mut tables = SideTables::default();
    let refused = |tables: &mut SideTables, user: &str, agent: &str, at: i64| {
        !take(tables, &for_user(user, agent, "read", at), quotas).refused().is_empty()
    };
    let of_loud: Vec<bool> = (0..20).map(|n| refused(&mut tables, &format!("made-up-{n:02}"), "loud", n)).collect();
    let taken = of_loud.iter().filter(|refused| !**refused).count();
    assert!((5..10).contains(&taken) && of_loud[taken..].iter().all(|refused| *refused), "{of_loud:?}");
    assert_eq!(tables.first_seen_user(&for_user("made-up-19", "loud", "read", 100)), None);
    assert!(!refused(&mut tables, "made-up-00", "loud", 100), "who is known goes on");
    assert!(!refused(&mut tables, "honest", "quiet", 100), "another agent has its own part");
    let tenant = TenantId::new("t").unwrap();
    tables.forget(&tenant, Timestamp::from_micros(101 + PAUSE + LINGERS));
    assert_eq!((tables.tenants[&tenant].users.bytes(), tables.first_seen_user(&for_user("honest", "x", "read", 100))), (0, None));
    assert!(!refused(&mut tables, "made-up-19", "loud", 2 * PAUSE), "there is room again");
}

#[test]
fn a_checkpoint_of_before_says_of_the_tenant_what_its_agents_parts_say_and_nothing_of_users() {
    let mut tables = SideTables::default();
    for (agent, action, at) in [("a", "read", 100), ("b", "read", 50), ("a", "read", 100 + PAUSE), ("b", "write", 7)] {
        take(&mut tables, &for_user("u", agent, action, at), Quotas::default());
    }
    let mut older = serde_json::to_value(&tables).unwrap();
    let of_tenant = older["tenants"]["t"].as_object_mut().unwrap();
    assert!(of_tenant.remove("all").is_some() && of_tenant.remove("users").is_some(), "{of_tenant:?}");
    let bytes_of_all: usize = ["read", "write"].iter().map(|action| uses::bytes_of_action("tool", action)).sum();
    let bytes = of_tenant["bytes"].as_u64().unwrap() - bytes_of_all as u64;
    of_tenant.insert("bytes".to_owned(), bytes.into());
    let read: SideTables = serde_json::from_value(older).unwrap();
    let read = read.completed();
    for (action, at) in [("read", 60), ("read", 100 + PAUSE), ("write", 10), ("other", 10)] {
        let event = for_user("u", "c", action, at);
        assert_eq!(read.first_seen_tool_action(&event), tables.first_seen_tool_action(&event), "{action} at {at}");
        assert_eq!(read.first_seen_user(&event), None);
    }
    let tenant = TenantId::new("t").unwrap();
    assert_eq!(read.tenants[&tenant].bytes, tables.tenants[&tenant].bytes);
    // A whole one stays what it is.
    let whole: SideTables = serde_json::from_value(serde_json::to_value(&tables).unwrap()).unwrap();
    let event = for_user("u", "c", "read", 100 + PAUSE);
    assert_eq!(whole.completed().first_seen_user_tool_action(&event), Some(Timestamp::from_micros(50)));
}
