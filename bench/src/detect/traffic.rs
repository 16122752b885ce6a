//! The events of a log: ordinary calls that no shipped rule tells of, and stories, of which is known beforehand what is told.
//! The same numbers give the same log, but for the ids of its events.

use aegis_model::{DataAccess, Decision, Destination, EventId, EventKind, SecurityEvent, SourceTrust, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

/// Time zero of every log, microseconds: 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000_000;
const SECOND: i64 = 1_000_000;
/// Event time over which the calls of a log are spread, in seconds: longer than most windows and the lateness together, so that state comes and goes.
pub(crate) const SPAN_S: i64 = 900;
/// Ordinary calls a second of one agent, about: many below what rules count up to.
const CALLS_OF_AN_AGENT: f64 = 0.4;
/// An agent's calls repeat what they are after so many.
const ROUND: usize = 50;
/// Ordinary calls for each story.
const CALLS_OF_A_STORY: usize = 250;
/// Who produced all of it.
pub(crate) const EDGE: &str = "edge-bench";
/// The tenant that calls as often as all the others together.
pub(crate) const HOT: &str = "hot";
/// The tenant in which junk keys are made, and one that they must not touch.
const FLOODED: &str = "flooded";
const OTHER: &str = "other";
/// Event time of a flood, in seconds: all of it within the five minutes that a slow sequence may take.
const FLOOD_S: i64 = 290;
const JUNK_AGENTS: usize = 8;
/// Slow sequences in either tenant of a flood.
const SLOW: usize = 10;
const EXFIL: &str = "read-sensitive-then-exfil";

/// What a log is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Calls of so many tenants.
    Even(usize),
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
    /// About `count` events, twice as many with a hot tenant.
    pub(crate) fn events(self, count: usize) -> anyhow::Result<Events> {
        let mut events = Events::default();
        match self {
            Self::Even(tenants) => events.add_even(&named(tenants)?, count, 0),
            Self::Hot(tenants) => {
                events.add_even(&named(tenants)?, count, 0);
                events.add_even(&[TenantId::new(HOT)?], count, 1);
            }
            Self::Flood => events.add_flood(&TenantId::new(FLOODED)?, &TenantId::new(OTHER)?, count),
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
            event_id: event.event_id,
        }));
        self.events.push(event);
    }

    /// Calls of these tenants in random order, and their stories. `shift` microseconds keep two such logs apart.
    fn add_even(&mut self, tenants: &[TenantId], count: usize, shift: i64) {
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
            self.add(ordinary(&tenants[tenant], agent, *nth + 13 * agent + 7 * tenant, ts), &[]);
            *nth += 1;
            if n % CALLS_OF_A_STORY == 0 {
                self.add_story(n / CALLS_OF_A_STORY, &tenants[dice.below(tenants.len())], ts);
            }
        }
    }

    /// A story of an agent of its own, so that no episode swallows another.
    fn add_story(&mut self, n: usize, tenant: &TenantId, start: i64) {
        let agent = format!("story-{n}");
        let at = |micros: i64| call(tenant, &agent, start + micros);
        // From soon after to slowly, within the rule's five minutes.
        let pause = (2 + 11 * (n as i64 / 5 % 20)) * SECOND;
        match n % 5 {
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
            _ => {
                for nth in 0..5 {
                    let event = sent(at(nth * pause / 4), &format!("guest-{nth}@example.net"));
                    self.add(event, if nth == 4 { &["mass-external-send"] } else { &[] });
                }
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

/// An allowed read.
fn call(tenant: &TenantId, agent: &str, ts: i64) -> SecurityEvent {
    let at = Timestamp::from_micros(ts);
    let mut event = SecurityEvent::new(tenant.clone(), EDGE, "edge", EventKind::AuthorizeDecision, at);
    let id = event.event_id.to_string();
    event.agent_id = Some(agent.to_owned());
    event.token_id = Some(format!("token-{agent}"));
    event.user_id = Some("u-4711".to_owned());
    event.run_id = Some(format!("run-{agent}"));
    event.environment = Some("production".to_owned());
    event.tool = Some("crm".to_owned());
    event.action = Some("read_note".to_owned());
    event.destination = Some(Destination::Internal);
    event.data_access = Some(DataAccess::None);
    event.mutates_state = Some(false);
    event.contains_sensitive_data = Some(false);
    event.source_trust = Some(SourceTrust::TrustedInternalUnsigned);
    event.root_trust = event.source_trust;
    event.decision = Some(Decision::Allow);
    event.reason = Some("policy_allowed".to_owned());
    event.matched_policies = vec!["crm-notes".to_owned()];
    event.policy_digest = Some("a".repeat(64));
    event.action_hash = Some(aegis_canon::sha256_hex(format!("action {id}").as_bytes()));
    event.nonce_hash = Some(aegis_canon::sha256_hex(format!("nonce {id}").as_bytes()));
    event
}

fn denied(mut event: SecurityEvent, action: &str, reason: &str) -> SecurityEvent {
    event.action = Some(action.to_owned());
    event.mutates_state = Some(true);
    event.decision = Some(Decision::Deny);
    event.reason = Some(reason.to_owned());
    event
}

fn changed(mut event: SecurityEvent, action: &str) -> SecurityEvent {
    event.action = Some(action.to_owned());
    event.mutates_state = Some(true);
    event
}

fn sensitive(mut event: SecurityEvent) -> SecurityEvent {
    event.action = Some("read_customer".to_owned());
    event.data_access = Some(DataAccess::Sensitive);
    event.contains_sensitive_data = Some(true);
    event
}

fn sent(event: SecurityEvent, target: &str) -> SecurityEvent {
    let mut event = changed(event, "send_mail");
    event.destination = Some(Destination::External);
    event.target = Some(target.to_owned());
    event
}

/// An agent's nth call. Even agents read what is sensitive, odd ones send to one partner outside; each keeps to a repository and an action to be
/// denied of its own.
fn ordinary(tenant: &TenantId, agent: usize, nth: usize, ts: i64) -> SecurityEvent {
    let name = format!("agent-{agent}");
    let mut event = call(tenant, &name, ts);
    event.resource = Some(format!("acme/{name}#{}", nth % 10));
    match nth % ROUND {
        0 => denied(event, &format!("delete_{name}"), "policy_denied"),
        1 | 2 if agent % 2 == 0 => sensitive(event),
        1 | 2 => sent(event, &format!("partner-{agent}@example.com")),
        3..=12 => changed(event, "update_note"),
        13..=15 => {
            event.kind = EventKind::ToolOutcome;
            event.decision = None;
            event.status = Some("ok".to_owned());
            event
        }
        16..=30 => {
            event.data_access = Some(DataAccess::Internal);
            event
        }
        _ => event,
    }
}

fn junk_agent(agent: usize) -> String {
    format!("junk-{agent}")
}

/// A call whose keys nobody saw before. The first agent neither reads what is sensitive nor sends: it has something to hide.
fn junk(tenant: &TenantId, agent: usize, kind: usize, n: usize, ts: i64) -> SecurityEvent {
    let mut event = call(tenant, &junk_agent(agent), ts);
    event.resource = Some(format!("junk-{n}/repository#{n}"));
    event.run_id = Some(format!("run-{n}"));
    match kind {
        0 => {
            event.tool = Some(format!("tool-{n}"));
            denied(event, &format!("action-{n}"), "unknown_action")
        }
        1 => changed(event, "update_note"),
        2 if agent == 0 => changed(event, "update_note"),
        2 if agent % 2 == 0 => sensitive(event),
        2 => sent(event, &format!("junk-{n}@example.net")),
        _ => event,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_log_is_in_order_and_what_it_expects_is_in_it() {
        for traffic in [Traffic::Even(3), Traffic::Hot(3), Traffic::Flood] {
            let Events { events, expected } = traffic.events(3_000).unwrap();
            assert!(events.is_sorted_by_key(|event| event.ts));
            let ids: BTreeSet<(String, EventId)> = events.iter().map(|e| (e.tenant_id.to_string(), e.event_id)).collect();
            assert_eq!(ids.len(), events.len());
            assert!(!expected.is_empty());
            assert!(expected.iter().all(|expected| ids.contains(&(expected.tenant.clone(), expected.event_id))));
        }
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
