//! What is decided, and what proves it.

use aegis_bus::MAX_FROZEN_ACTION;

use crate::house::*;

#[tokio::test]
async fn an_answer_that_matters_carries_a_durable_receipt() {
    let house = House::new().await;
    let answer = house.ask(|_| ()).await;
    assert_eq!(answer["decision"], "allow");
    let hash = answer["receipt"]["receipt_hash"].as_str().unwrap();
    let event_id = answer["decision_id"].as_str().unwrap().parse().unwrap();
    let sealed = house.ledger.receipt(&house.tenant, event_id).await.unwrap().unwrap();
    assert_eq!(sealed.receipt_hash, hash);
    let wire: Value = serde_json::from_str(&sealed.wire).unwrap();
    assert_eq!(wire["action_hash"], answer["action_hash"]);
    assert!(!sealed.wire.contains("\"note\""), "no raw parameter in an event: {}", sealed.wire);
    let read = house
        .ask(|b| b["tool_call"] = json!({"tool": "crm", "action": "read_note", "mutates_state": false, "parameters": {}}))
        .await;
    assert_eq!((read["decision"].as_str(), read["receipt"]["receipt_hash"].is_null()), (Some("allow"), true));
}

#[tokio::test]
async fn the_action_hash_is_over_what_the_caller_sent() {
    let house = House::new().await;
    let answer = house.ask(|b| b["tool_call"]["parameters"] = json!({"a": 1.0, "é": "x"})).await;
    let expected = aegis_canon::action_hash("crm", "update_note", Some("r-1"), true, &json!({"é": "x", "a": 1})).unwrap();
    assert_eq!(answer["action_hash"], json!(expected));
}

#[tokio::test]
async fn a_caller_may_only_tighten_what_is_registered() {
    let house = House::new().await;
    let lied = house
        .ask(|b| {
            b["tool_call"]["mutates_state"] = json!(false);
            b["context"]["source_trust"] = json!("untrusted_external");
        })
        .await;
    assert_eq!(lied["decision"], "deny");
    let tightened = house
        .ask(|b| {
            b["tool_call"] = json!({"tool": "crm", "action": "read_note", "mutates_state": true, "parameters": {}});
            b["context"]["source_trust"] = json!("untrusted_external");
        })
        .await;
    assert_eq!(tightened["decision"], "deny");
}

#[tokio::test]
async fn unknown_is_deny() {
    let house = House::new().await;
    for (tool, action) in [("crm", "nope"), ("nope", "read_note"), ("mcp:nope", "x")] {
        let answer = house
            .ask(|b| {
                b["tool_call"]["tool"] = json!(tool);
                b["tool_call"]["action"] = json!(action);
            })
            .await;
        assert_eq!(decided(&answer), ("deny", "unknown_action"), "{tool}/{action}");
    }
}

#[tokio::test]
async fn overrides_only_tighten() {
    let house = House::new().await;
    let with_action = async |action: &str, trust: &str| {
        house
            .ask(|b| {
                b["tool_call"]["action"] = json!(action);
                b["context"]["source_trust"] = json!(trust);
                b["trace"]["run_id"] = json!(format!("{action}-{trust}"));
            })
            .await
    };
    assert_eq!(with_action("refund", "trusted_internal_unsigned").await["decision"], "require_approval");
    assert_eq!(with_action("erase", "trusted_internal_unsigned").await["decision"], "require_approval");
    assert_eq!(with_action("refund", "untrusted_external").await["decision"], "deny");
    assert_eq!(decided(&with_action("forbidden", "trusted_internal_unsigned").await), ("deny", "registered_deny"));
    let settings = TenantSettings { force_approval_agents: vec!["a".into()], ..TenantSettings::default() };
    house.put(EntryKind::Settings, "settings", &serde_json::to_value(settings).unwrap());
    assert_eq!(decided(&with_action("update_note", "trusted_internal_unsigned").await), ("require_approval", "force_approval"));
}

/// A refund, which needs approval, with `note` as it is written.
async fn refund(house: &House, note: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut body = call("crm", "refund", true, "trusted_internal_unsigned");
    body["tool_call"]["parameters"] = json!({"note": "@"});
    change(&mut body);
    let body = body.to_string().replace("\"@\"", note);
    let (status, answer) = house.send(&house.token("a", SourceTrust::TrustedInternalSigned), body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

#[tokio::test]
async fn an_approval_that_could_not_reach_control_is_denied_and_not_promised() {
    let house = House::new().await;
    let promised = async || {
        let items = house.ledger.read_outbox(0, 100).await.unwrap();
        let last = items.into_iter().filter_map(|item| item.frozen).next_back();
        serde_json::to_vec(&last.unwrap()).unwrap().len()
    };
    refund(&house, "\"\"", |_| ()).await;
    let room = MAX_FROZEN_ACTION - promised().await;
    let largest = refund(&house, &format!("\"{}\"", "x".repeat(room)), |_| ()).await;
    assert_eq!(decided(&largest), ("require_approval", "registered_approval"));
    assert_eq!(promised().await, MAX_FROZEN_ACTION);

    let list = |number: &str, count: usize| format!("[{}{number}]", format!("{number},").repeat(count - 1));
    // What counts is what is sent to control: 1e15 is short here and long there, and 1e20 is long in the form that is hashed.
    let too_large = [format!("\"{}\"", "x".repeat(room + 1)), list("1e15", 60_000), list("1e20", 47_650)];
    for note in too_large {
        let shown: String = note.chars().take(10).collect();
        let dry = refund(&house, &note, |b| b["dry_run"] = json!(true)).await;
        assert_eq!(decided(&dry), ("deny", "approval_too_large"), "{shown}");
        let denied = refund(&house, &note, |_| ()).await;
        assert_eq!(decided(&denied), ("deny", "approval_too_large"), "{shown}");
        assert!(denied["approval"].is_null() && denied["receipt"]["receipt_hash"].is_string(), "{shown}: {denied}");
        let event_id = denied["decision_id"].as_str().unwrap().parse().unwrap();
        let sealed = house.ledger.receipt(&house.tenant, event_id).await.unwrap().unwrap();
        let wire: Value = serde_json::from_str(&sealed.wire).unwrap();
        assert_eq!((&wire["decision"], &wire["approval_id"]), (&json!("deny"), &Value::Null), "{shown}");
    }
    assert_eq!(promised().await, MAX_FROZEN_ACTION, "none of them is in the outbox");
}

#[tokio::test]
async fn a_request_that_was_too_large_to_approve_stays_denied() {
    let house = House::new().await;
    let note = format!("\"{}\"", "x".repeat(MAX_FROZEN_ACTION));
    let ask = async || refund(&house, &note, |b| b["request_id"] = json!("r-1")).await;
    assert_eq!(decided(&ask().await), ("deny", "approval_too_large"));
    let free = json!({"action": "refund", "risk": "low", "mutates_state": true, "approval_required": false, "default_decision": "policy"});
    house.put(EntryKind::Tool, "crm", &json!({"tool": "crm", "name": "CRM", "actions": [free]}));
    assert_eq!(ask().await["decision"], "deny");
    assert_eq!(refund(&house, &note, |b| b["request_id"] = json!("r-2")).await["decision"], "allow");
}

#[tokio::test]
async fn mcp_gates_stand_before_policy() {
    let house = House::new().await;
    let server = |drifted: bool| json!({"key": "files", "name": "Files", "tools": [{"name": "write", "manifest_hash": "00"}], "drifted": drifted});
    house.put(EntryKind::McpServer, "files", &server(false));
    let ask = async |action: &str| {
        house
            .ask(|b| {
                b["tool_call"]["tool"] = json!("mcp:files");
                b["tool_call"]["action"] = json!(action);
            })
            .await
    };
    assert_eq!(ask("write").await["decision"], "allow");
    assert_eq!(decided(&ask("other").await), ("deny", "mcp_unknown_tool"));
    house.put(EntryKind::McpServer, "files", &server(true));
    assert_eq!(decided(&ask("write").await), ("deny", "mcp_manifest_drift"));
    house.contain(TargetType::McpServer, "files", vec![hold(ContainmentKind::Quarantine, None)], false);
    assert_eq!(decided(&ask("write").await), ("deny", "mcp_server_quarantined"));
}

#[tokio::test]
async fn without_a_ledger_nothing_that_matters_is_allowed() {
    let house = House::new().await;
    house.ledger.close().await.unwrap();
    let answer = house.ask(|_| ()).await;
    assert_eq!(decided(&answer), ("deny", "receipt_unavailable"));
    let read = house
        .ask(|b| b["tool_call"] = json!({"tool": "crm", "action": "read_note", "mutates_state": false, "parameters": {}}))
        .await;
    assert_eq!(read["decision"], "allow", "a low-risk read is still answered");
}
