//! The events of a log: ordinary calls that no shipped rule tells of, and stories, of which is known beforehand what is told.
//! The same numbers give the same log, but for the ids of its events.

use aegis_model::{DataAccess, EventId, SecurityEvent, SourceTrust, TenantId};
use serde::{Deserialize, Serialize};

use super::calls::{call, changed, denied, junk, junk_agent, ordinary, sensitive, sent, tool, tool_of_call};

/// Time zero of every log, microseconds: 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000_000;
const SECOND: i64 = 1_000_000;
/// Event time over which the calls of a log are spread, in seconds: longer than most windows and the lateness together, so that state comes and goes.
pub(crate) const SPAN_S: i64 = 900;
/// Ordinary calls a second of one agent, about: many below what rules count up to.
const CALLS_OF_AN_AGENT: f64 = 0.4;
/// Kinds of stories.
const STORIES: usize = 10;
/// Ordinary calls for each story.
const CALLS_OF_A_STORY: usize = 250;
/// The tenant that calls as often as all the others together.
pub(crate) const HOT: &str = "hot";
/// The tenant in which junk keys are made, and one that they must not touch.
const FLOODED: &str = "flooded";
const OTHER: &str = "other";
/// Event time of a flood, in seconds: all of it within the five minutes that a slow sequence may take.
const FLOOD_S: i64 = 290;
/// As many as together have all of a tenant's keys in a rule: none has more than a quarter.
const JUNK_AGENTS: usize = 4;
/// Slow sequences in either tenant of a flood.
const SLOW: usize = 10;
const EXFIL: &str = "read-sensitive-then-exfil";

/// What a log is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Calls of so many tenants, of one tool.
    Even(usize),
    /// The same, of so many tools. A story is of one of them.
    Tools { tenants: usize, tools: usize },
    /// The same, and as many calls again of one more tenant.
    Hot(usize),
    /// Calls whose keys are junk, in one tenant, and slow sequences beside them.
    Flood,
}

/// What a shipped rule must tell: at which event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Expected {
    /// The shipped rule's name.
    pub(crate) rule: String,
    pub(crate) tenant: String,
    /// The tool of all of the evidence.
    pub(crate) tool: Option<String>,
    /// The last of the evidence.
    pub(crate) event_id: EventId,
}

/// Events in the order of their time, and what must be told of them.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) events: Vec<SecurityEvent>,
    pub(crate) expected: Vec<Expected>,
}

impl Traffic {
    /// About `count` events; with a hot tenant, or as a flood, twice as many.
    pub(crate) fn events(self, count: usize) -> anyhow::Result<Events> {
        let mut events = Events::default();
        match self {
            Self::Even(tenants) => events.add_even(&named(tenants)?, 1, count, 0),
            Self::Tools { tenants, tools } => events.add_even(&named(tenants)?, tools, count, 0),
            Self::Hot(tenants) => {
                events.add_even(&named(tenants)?, 1, count, 0);
                events.add_even(&[TenantId::new(HOT)?], 1, count, 1);
            }
            Self::Flood => events.add_flood(&TenantId::new(FLOODED)?, &TenantId::new(OTHER)?, 2 * count),
        }
        events.events.sort_by_key(|event| event.ts);
        Ok(events)
    }

    /// True if nothing may be told but what is expected.
    pub(crate) const fn is_known_whole(self) -> bool {
        !matches!(self, Self::Flood)
    }
}

fn named(tenants: usize) -> anyhow::Result<Vec<TenantId>> {
    (0..tenants).map(|n| Ok(TenantId::new(&format!("tenant-{n}"))?)).collect()
}

/// Numbers that look like chance and are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }
}

impl Events {
    /// Adds an event at which these rules tell.
    fn add(&mut self, event: SecurityEvent, told_by: &[&str]) {
        self.expected.extend(told_by.iter().map(|rule| Expected {
            rule: (*rule).to_owned(),
            tenant: event.tenant_id.to_string(),
            tool: event.tool.clone(),
            event_id: event.event_id,
        }));
        self.events.push(event);
    }

    /// Calls of these tenants in random order, and their stories. `shift` microseconds keep two such logs apart.
    fn add_even(&mut self, tenants: &[TenantId], tools: usize, count: usize, shift: i64) {
        let mut dice = Dice(7);
        let agents_in_all = (count as f64 / SPAN_S as f64 / CALLS_OF_AN_AGENT).ceil() as usize;
        // An even one and an odd one at least: they differ in what they do.
        let agents = agents_in_all.div_ceil(tenants.len().max(1)).max(2);
        let mut calls = vec![0_usize; tenants.len() * agents];
        for n in 0..count {
            let ts = START + SPAN_S * SECOND * n as i64 / count.max(1) as i64 + shift;
            let (tenant, agent) = (dice.below(tenants.len()), dice.below(agents));
            let nth = &mut calls[tenant * agents + agent];
            // Not all begin at the same place of the round.
            let place = *nth + 13 * agent + 7 * tenant;
            let mut event = ordinary(&tenants[tenant], agent, place, ts);
            event.tool = Some(tool_of_call(agent, place, tools));
            self.add(event, &[]);
            *nth += 1;
            if n % CALLS_OF_A_STORY == 0 {
                self.add_story(n / CALLS_OF_A_STORY, &tenants[dice.below(tenants.len())], tools, ts);
            }
        }
    }

    /// A story of an agent of its own, so that no episode swallows another. Each kind is of each tool in turn.
    fn add_story(&mut self, n: usize, tenant: &TenantId, tools: usize, start: i64) {
        let (agent, used) = (format!("story-{n}"), tool(n / STORIES % tools.max(1)));
        let at = |micros: i64| {
            let mut event = call(tenant, &agent, start + micros);
            event.tool = Some(used.clone());
            event
        };
        // From soon after to slowly, within the rule's five minutes.
        let pause = (2 + 11 * ((n / STORIES) as i64 % 20)) * SECOND;
        match n % STORIES {
            0 => {
                for nth in 0..5 {
                    let event = denied(at(nth * SECOND), &format!("wipe-{n}"), "policy_denied");
                    self.add(event, if nth == 4 { &["deny-storm"] } else { &[] });
                }
            }
            1 => {
                self.add(sensitive(at(0)), &[]);
                self.add(sent(at(pause), "drop@example.net"), &[EXFIL]);
            }
            2 => {
                let mut refused = denied(at(0), &format!("refund-{n}"), "policy_denied");
                refused.source_trust = Some(SourceTrust::UntrustedExternal);
                refused.root_trust = refused.source_trust;
                self.add(refused, &["confused-deputy"]);
                self.add(changed(at(pause), &format!("refund-{n}")), &["trust-escalation"]);
            }
            3 => {
                for nth in 0..20 {
                    self.add(changed(at(nth * SECOND / 10), "update_note"), if nth == 19 { &["runaway"] } else { &[] });
                }
            }
            4 => {
                for nth in 0..5 {
                    let event = sent(at(nth * pause / 4), &format!("guest-{nth}@example.net"));
                    self.add(event, if nth == 4 { &["mass-external-send"] } else { &[] });
                }
            }
            5 => {
                // An action of its own: denied to many agents, it would be another story.
                let mut refused = denied(at(0), &format!("list-{n}"), "policy_denied");
                refused.mutates_state = Some(false);
                refused.source_trust = Some(SourceTrust::UntrustedExternal);
                // The rule looks back two minutes.
                let mut again = at(pause / 2);
                again.run_id = Some(format!("run-{agent}-again"));
                again.action.clone_from(&refused.action);
                again.action_hash.clone_from(&refused.action_hash);
                self.add(refused, &[]);
                self.add(again, &["run-rotation"]);
            }
            6 => {
                let (mut read, mut written) = (at(0), sent(at(pause), "acme/website"));
                read.resource = Some("acme/plans#1".to_owned());
                read.data_access = Some(DataAccess::Internal);
                written.resource = Some("acme/website#2".to_owned());
                self.add(read, &[]);
                self.add(written, &["cross-repository"]);
            }
            7 => {
                for nth in 0..120 {
                    self.add(at(nth * SECOND / 4), if nth == 119 { &["denial-of-wallet"] } else { &[] });
                }
            }
            8 => {
                for nth in 0..4 {
                    let mut event = at(nth * 5 * SECOND);
                    event.environment = Some(["production", "staging"][nth as usize % 2].to_owned());
                    self.add(event, if nth == 3 { &["agent-in-two-environments"] } else { &[] });
                }
            }
            _ => {
                // One less than a storm of denies.
                for nth in 0..4 {
                    self.add(denied(at(nth * pause / 4), &format!("grant-{n}-{nth}"), "policy_denied"), &[]);
                }
                self.add(changed(at(pause), &format!("grant-{n}")), &["denied-until-allowed"]);
            }
        }
    }

    /// Junk in one tenant for as long as slow sequences take, some of them in another.
    fn add_flood(&mut self, flooded: &TenantId, other: &TenantId, count: usize) {
        let mut dice = Dice(11);
        for n in 0..count {
            let ts = START + FLOOD_S * SECOND * n as i64 / count.max(1) as i64;
            self.add(junk(flooded, dice.below(JUNK_AGENTS), dice.below(4), n, ts), &[]);
        }
        let slow = |tenant: &TenantId, agent: &str, second: i64| call(tenant, agent, START + second * SECOND + 1);
        for nth in 0..SLOW as i64 {
            for tenant in [flooded, other] {
                let agent = format!("slow-{nth}");
                self.add(sensitive(slow(tenant, &agent, 2 * nth)), &[]);
                self.add(sent(slow(tenant, &agent, 265 + 2 * nth), "drop@example.net"), &[EXFIL]);
            }
        }
        // Whoever makes the junk tries to hide a sequence of its own in it.
        let own = junk_agent(0);
        self.add(sensitive(slow(flooded, &own, 1)), &[]);
        self.add(sent(slow(flooded, &own, 280), "drop@example.net"), &[EXFIL]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use aegis_model::Decision;

    use super::*;
    use crate::detect::rules::FIRST;

    #[test]
    fn a_log_is_in_order_and_what_it_expects_is_in_it() {
        for traffic in [Traffic::Even(3), Traffic::Tools { tenants: 3, tools: 4 }, Traffic::Hot(3), Traffic::Flood] {
            let Events { events, expected } = traffic.events(3_000).unwrap();
            assert!(events.is_sorted_by_key(|event| event.ts));
            let ids: BTreeSet<(String, EventId)> = events.iter().map(|e| (e.tenant_id.to_string(), e.event_id)).collect();
            assert_eq!(ids.len(), events.len());
            assert!(!expected.is_empty());
            assert!(expected.iter().all(|expected| ids.contains(&(expected.tenant.clone(), expected.event_id))));
        }
    }

    #[test]
    fn each_of_the_first_rules_has_something_to_tell() {
        let expected = Traffic::Even(3).events(STORIES * CALLS_OF_A_STORY).unwrap().expected;
        let rules: BTreeSet<&str> = expected.iter().map(|expected| expected.rule.as_str()).collect();
        assert_eq!(rules, BTreeSet::from(FIRST));
    }

    #[test]
    fn every_tool_has_as_many_calls_and_each_kind_of_them_and_of_stories() {
        let tools = 4;
        let Events { events, expected } =
            Traffic::Tools { tenants: 3, tools }.events(STORIES * tools * CALLS_OF_A_STORY).unwrap();
        for used in (0..tools).map(tool) {
            let told = expected.iter().filter(|expected| expected.tool.as_ref() == Some(&used));
            assert_eq!(told.map(|expected| expected.rule.as_str()).collect::<BTreeSet<_>>(), BTreeSet::from(FIRST), "{used}");
            let is_ordinary = |event: &SecurityEvent| event.agent_id.as_deref().is_some_and(|agent| agent.starts_with("agent-"));
            let ordinary: Vec<&SecurityEvent> =
                events.iter().filter(|e| is_ordinary(e) && e.tool.as_ref() == Some(&used)).collect();
            let share = ordinary.len() * tools * 10 / events.len();
            assert!((7..=11).contains(&share), "{used}: {share} tenths of its share");
            for is_there in [
                ordinary.iter().any(|event| event.decision == Some(Decision::Deny)),
                ordinary.iter().any(|event| event.decision.is_none()),
                ordinary.iter().any(|event| event.contains_sensitive_data == Some(true)),
                ordinary.iter().any(|event| event.target.is_some()),
            ] {
                assert!(is_there, "{used}");
            }
        }
    }

    #[test]
    fn with_one_tool_a_log_is_what_it_is_without() {
        let told = |traffic: Traffic| {
            let events = traffic.events(3_000).unwrap().events;
            events.into_iter().map(|e| (e.ts, e.tenant_id, e.agent_id, e.tool, e.action, e.resource)).collect::<Vec<_>>()
        };
        let even = told(Traffic::Even(5));
        assert_eq!(even, told(Traffic::Tools { tenants: 5, tools: 1 }));
        assert!(even.iter().all(|(_, _, _, tool, ..)| tool.as_deref() == Some("crm")));
    }

    #[test]
    fn a_hot_tenant_changes_nothing_of_the_others() {
        let told = |events: &[SecurityEvent]| {
            let others = events.iter().filter(|event| event.tenant_id.as_str() != HOT);
            others.map(|e| (e.ts, e.tenant_id.clone(), e.agent_id.clone(), e.action.clone())).collect::<Vec<_>>()
        };
        let (without, with) = (Traffic::Even(5).events(2_000).unwrap().events, Traffic::Hot(5).events(2_000).unwrap().events);
        assert_eq!(told(&without), told(&with));
        assert_eq!(with.len(), 2 * without.len());
    }

    #[test]
    fn a_flood_has_sequences_in_both_tenants_and_one_of_its_own_maker() {
        let expected = Traffic::Flood.events(1_000).unwrap().expected;
        let of = |tenant: &str| expected.iter().filter(|expected| expected.tenant == tenant).count();
        assert_eq!((of(FLOODED), of(OTHER)), (SLOW + 1, SLOW));
    }
}
