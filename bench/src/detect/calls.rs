//! Single calls: what a story, an ordinary agent or a maker of junk does once.

use aegis_model::{CONTROL, DataAccess, Decision, Destination, EventKind, SecurityEvent, SourceTrust, TenantId, Timestamp};

/// Who produced all of it but outcomes.
pub(crate) const EDGE: &str = "edge-bench";
/// An agent's calls repeat what they are after so many.
const ROUND: usize = 50;
/// The first tool.
const TOOL: &str = "crm";

/// The nth tool.
pub(crate) fn tool(nth: usize) -> String {
    if nth == 0 { TOOL.to_owned() } else { format!("{TOOL}-{nth}") }
}

/// Which of so many tools an agent's nth call is of: round by round, each kind of call is of each tool in turn.
pub(crate) fn tool_of_call(agent: usize, nth: usize, tools: usize) -> String {
    tool((agent + nth % ROUND + nth / ROUND) % tools.max(1))
}

/// An allowed read.
pub(crate) fn call(tenant: &TenantId, agent: &str, ts: i64) -> SecurityEvent {
    let at = Timestamp::from_micros(ts);
    let mut event = SecurityEvent::new(tenant.clone(), EDGE, "edge", EventKind::AuthorizeDecision, at);
    let id = event.event_id.to_string();
    event.agent_id = Some(agent.to_owned());
    event.token_id = Some(format!("token-{agent}"));
    event.user_id = Some("u-4711".to_owned());
    event.run_id = Some(format!("run-{agent}"));
    event.environment = Some("production".to_owned());
    event.tool = Some(tool(0));
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

pub(crate) fn denied(mut event: SecurityEvent, action: &str, reason: &str) -> SecurityEvent {
    event.action = Some(action.to_owned());
    event.mutates_state = Some(true);
    event.decision = Some(Decision::Deny);
    event.reason = Some(reason.to_owned());
    event
}

pub(crate) fn changed(mut event: SecurityEvent, action: &str) -> SecurityEvent {
    event.action = Some(action.to_owned());
    event.mutates_state = Some(true);
    event
}

pub(crate) fn sensitive(mut event: SecurityEvent) -> SecurityEvent {
    event.action = Some("read_customer".to_owned());
    event.data_access = Some(DataAccess::Sensitive);
    event.contains_sensitive_data = Some(true);
    event
}

pub(crate) fn sent(event: SecurityEvent, target: &str) -> SecurityEvent {
    let mut event = changed(event, "send_mail");
    event.destination = Some(Destination::External);
    event.target = Some(target.to_owned());
    event
}

/// An agent's nth call. Even agents read what is sensitive, odd ones send to one partner outside; each keeps to a repository and an action to be
/// denied of its own.
pub(crate) fn ordinary(tenant: &TenantId, agent: usize, nth: usize, ts: i64) -> SecurityEvent {
    let name = format!("agent-{agent}");
    let mut event = call(tenant, &name, ts);
    event.resource = Some(format!("acme/{name}#{}", nth % 10));
    match nth % ROUND {
        0 => denied(event, &format!("delete_{name}"), "policy_denied"),
        1 | 2 if agent.is_multiple_of(2) => sensitive(event),
        1 | 2 => sent(event, &format!("partner-{agent}@example.com")),
        3..=12 => changed(event, "update_note"),
        13..=15 => {
            // Agents report to control, and it seals what they say.
            (event.edge_id, event.source) = (CONTROL.to_owned(), CONTROL.to_owned());
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

pub(crate) fn junk_agent(agent: usize) -> String {
    format!("junk-{agent}")
}

/// A call whose keys nobody saw before. The first agent neither reads what is sensitive nor sends: it has something to hide.
pub(crate) fn junk(tenant: &TenantId, agent: usize, kind: usize, n: usize, ts: i64) -> SecurityEvent {
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
        2 if agent.is_multiple_of(2) => sensitive(event),
        2 => sent(event, &format!("junk-{n}@example.net")),
        _ => event,
    }
}
