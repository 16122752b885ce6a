//! Which check answers a call that fails two of them: the earlier one, in the order of CONTRACTS §3 and of docs/adr/0004.

use crate::house::*;

/// A check that a call fails, in the order in which they answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Token,
    Tenant,
    Rate,
    Kind,
    BadBody,
    CanonVersion,
    Callback,
    Contained,
    BadTimestamp,
    RequestId,
    Nonce,
    Stale,
    Unregistered,
    McpGate,
    Policy,
}

use Fault::{
    BadBody, BadTimestamp, Callback, CanonVersion, Contained, Kind, McpGate, Nonce, Policy, Rate, RequestId, Stale, Tenant,
    Token, Unregistered,
};

/// Those that stand before the registry, with what each answers: a refusal's code, or a deny's reason.
const BEFORE_THE_REGISTRY: [(Fault, u16, &str); 12] = [
    (Token, 401, "invalid_token"),
    (Tenant, 401, "tenant_mismatch"),
    (Rate, 429, "rate_limited"),
    (Kind, 415, "unsupported_media_type"),
    (BadBody, 400, "malformed_request"),
    (CanonVersion, 400, "canonicalization_skew"),
    (Callback, 400, "callback_not_allowed"),
    (Contained, 200, "agent_frozen"),
    (BadTimestamp, 409, "replay_timestamp_expired"),
    (RequestId, 409, "idempotency_payload_mismatch"),
    (Nonce, 409, "replay_nonce_reused"),
    (Stale, 200, "control_stale"),
];

/// Calls a second of one agent; its bucket holds two seconds' worth.
const AGENT_RATE: u32 = 2;

async fn send(house: &House, token: &str, kind: &str, tenant: &str, body: &Value) -> (u16, Value) {
    let request = Request::post(aegis_edge::PATH)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", kind)
        .header("x-aegis-tenant-id", tenant)
        .body(Body::from(body.to_string()))
        .unwrap();
    let response = house.router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

/// What a call of an agent of its own is answered that fails these checks and no others.
async fn answer_to(house: &House, faults: &[Fault]) -> (u16, String) {
    let fails = |fault: Fault| faults.contains(&fault);
    let agent = format!("fails {}", faults.iter().map(|fault| format!("{fault:?}")).collect::<Vec<_>>().join(" and "));
    let token = house.token(&agent, SourceTrust::TrustedInternalSigned);
    let now = house.clock.now();
    let mut body = call("crm", "update_note", true, "trusted_internal_unsigned");
    body["trace"]["run_id"] = json!(agent);

    // What went before, while nothing was wrong yet.
    for (fault, field) in [(RequestId, "request_id"), (Nonce, "nonce")] {
        if fails(fault) {
            let mut earlier = body.clone();
            earlier["tool_call"]["parameters"] = json!({"note": "of an earlier call"});
            earlier[field] = json!("used");
            body[field] = json!("used");
            assert_eq!(house.send(&token, earlier.to_string()).await.0, 200);
        }
    }
    if fails(Rate) {
        let mut dry = body.clone();
        (dry["request_id"], dry["nonce"], dry["dry_run"]) = (Value::Null, Value::Null, json!(true));
        let mut admitted = 0;
        while house.send(&token, dry.to_string()).await.0 == 200 {
            admitted += 1;
            assert!(admitted <= 2 * AGENT_RATE, "no limit");
        }
    }

    if fails(Contained) {
        house.contain(TargetType::Agent, &agent, vec![hold(ContainmentKind::Freeze, None)], false);
    }
    if fails(BadBody) {
        body["trace"]["run_id"] = json!("x".repeat(257));
    }
    if fails(CanonVersion) {
        body["canon_version"] = json!("aegis-jcs-0");
    }
    if fails(Callback) {
        body["callback"] = json!({"url": "https://elsewhere.example/"});
    }
    if fails(BadTimestamp) {
        body["timestamp"] = json!(now.plus_seconds(-301).to_rfc3339());
    }
    if fails(Unregistered) {
        body["tool_call"]["action"] = json!("nope");
    }
    if fails(McpGate) {
        (body["tool_call"]["tool"], body["tool_call"]["action"]) = (json!("mcp:adrift"), json!("write"));
    }
    if fails(Policy) {
        body["context"]["source_trust"] = json!("untrusted_external");
    }
    house.view.restored(if fails(Stale) { now.plus_seconds(-3601) } else { now }, now);
    let token = if fails(Token) { "nobody's" } else { token.as_str() };
    let kind = if fails(Kind) { "text/plain" } else { "application/json" };
    let (status, answer) = send(house, token, kind, if fails(Tenant) { "other" } else { "acme" }, &body).await;
    house.view.restored(now, now);
    let said = answer["error"]["code"].as_str().or(answer["reason"].as_str());
    assert!(status != 200 || faults.is_empty() || answer["decision"] == "deny", "{faults:?}: {answer}");
    (status, said.unwrap_or_default().to_owned())
}

/// A house whose server `adrift` has drifted, and whose server `held` is quarantined and has drifted too.
async fn house_with_servers() -> House {
    let house = House::new().await;
    let server = |key: &str| {
        let tools = [json!({"name": "write", "manifest_hash": "00"}), json!({"name": "never", "manifest_hash": "00"})];
        json!({"key": key, "name": key, "tools": tools, "drifted": true})
    };
    for key in ["adrift", "held"] {
        house.put(EntryKind::McpServer, key, &server(key));
    }
    for key in ["held", "nope"] {
        house.contain(TargetType::McpServer, key, vec![hold(ContainmentKind::Quarantine, None)], false);
    }
    house
}

#[tokio::test]
async fn of_two_checks_that_a_call_fails_the_earlier_answers() {
    let house = house_with_servers().await;
    let settings = TenantSettings { agent_rate_per_s: AGENT_RATE, ..TenantSettings::default() };
    house.put(EntryKind::Settings, "settings", &serde_json::to_value(settings).unwrap());
    assert_eq!(answer_to(&house, &[]).await, (200, "a trusted internal source may change state".to_owned()));
    for (fault, status, said) in [
        (Unregistered, 200, "unknown_action"),
        (McpGate, 200, "mcp_manifest_drift"),
        (Policy, 200, "an untrusted source may not change state"),
    ] {
        assert_eq!(answer_to(&house, &[fault]).await, (status, said.to_owned()), "{fault:?} alone");
    }
    let earlier = BEFORE_THE_REGISTRY.map(|(fault, ..)| fault);
    for (fault, status, said) in BEFORE_THE_REGISTRY {
        assert_eq!(answer_to(&house, &[fault]).await, (status, said.to_owned()), "{fault:?} alone");
        for later in earlier.into_iter().chain([Unregistered, McpGate, Policy]).filter(|later| *later > fault) {
            assert_eq!(answer_to(&house, &[fault, later]).await, (status, said.to_owned()), "{fault:?} and {later:?}");
        }
    }
}

#[tokio::test]
async fn from_the_registry_on_the_earlier_check_gives_the_reason() {
    let house = house_with_servers().await;
    let action = |name: &str, risk: &str, approval: bool, default: &str| json!({"action": name, "risk": risk, "mutates_state": true, "approval_required": approval, "default_decision": default});
    let actions = [
        action("update", "medium", false, "policy"),
        action("refund", "medium", true, "policy"),
        action("erase", "critical", false, "policy"),
        action("erase_all", "critical", true, "policy"),
        action("forbidden", "medium", false, "deny"),
        action("forbidden_refund", "medium", true, "deny"),
    ];
    house.put(EntryKind::Tool, "shop", &json!({"tool": "shop", "name": "Shop", "actions": actions}));
    let never = [action("never", "medium", false, "deny")];
    house.put(EntryKind::Tool, "mcp:adrift", &json!({"tool": "mcp:adrift", "name": "Adrift", "actions": never}));
    // Its server is not registered.
    let write = [action("write", "medium", false, "policy")];
    house.put(EntryKind::Tool, "mcp:gone", &json!({"tool": "mcp:gone", "name": "Gone", "actions": write}));
    let settings = TenantSettings { force_approval_agents: vec!["a".into()], ..TenantSettings::default() };
    house.put(EntryKind::Settings, "settings", &serde_json::to_value(settings).unwrap());

    let (trusted, unlabelled, untrusted) = ("trusted_internal_unsigned", "unknown", "untrusted_external");
    let denied_by_policy = "an untrusted source may not change state";
    let asked_by_policy = "a change that a semi-trusted or unlabelled source asks for needs a person's approval";
    let table = [
        // Registry, before the gates and policy.
        ("mcp:nope", "x", trusted, "deny", "unknown_action"),
        ("shop", "nope", untrusted, "deny", "unknown_action"),
        // Gates among themselves: what nobody knows, what is contained, what has drifted.
        ("mcp:held", "other", trusted, "deny", "mcp_unknown_tool"),
        ("mcp:adrift", "other", trusted, "deny", "mcp_unknown_tool"),
        ("mcp:held", "write", trusted, "deny", "mcp_server_quarantined"),
        // Gates, before policy and what is registered.
        ("mcp:gone", "write", untrusted, "deny", "mcp_unknown_tool"),
        ("mcp:held", "write", untrusted, "deny", "mcp_server_quarantined"),
        ("mcp:adrift", "write", untrusted, "deny", "mcp_manifest_drift"),
        ("mcp:adrift", "never", trusted, "deny", "mcp_manifest_drift"),
        // Policy, before overrides.
        ("shop", "forbidden", untrusted, "deny", denied_by_policy),
        ("shop", "refund", untrusted, "deny", denied_by_policy),
        ("shop", "erase", untrusted, "deny", denied_by_policy),
        ("shop", "refund", unlabelled, "require_approval", asked_by_policy),
        ("shop", "erase", unlabelled, "require_approval", asked_by_policy),
        ("shop", "update", unlabelled, "require_approval", asked_by_policy),
        // Overrides only tighten: a deny stands above each approval, also where policy asks for one.
        ("shop", "forbidden", unlabelled, "deny", "registered_deny"),
        ("shop", "forbidden_refund", trusted, "deny", "registered_deny"),
        ("shop", "erase_all", trusted, "require_approval", "registered_approval"),
        ("shop", "refund", trusted, "require_approval", "registered_approval"),
        ("shop", "erase", trusted, "require_approval", "critical_risk"),
        ("shop", "update", trusted, "require_approval", "force_approval"),
    ];
    for (row, (tool, action, trust, decision, reason)) in table.into_iter().enumerate() {
        let answer = house
            .ask(|b| {
                (b["tool_call"]["tool"], b["tool_call"]["action"]) = (json!(tool), json!(action));
                b["context"]["source_trust"] = json!(trust);
                b["trace"]["run_id"] = json!(format!("row-{row}"));
            })
            .await;
        assert_eq!(decided(&answer), (decision, reason), "{tool}/{action} by a source that is {trust}");
    }
}
