//! How far a call may be trusted: runs, channels, tokens, signatures.

use crate::house::*;

#[tokio::test]
async fn a_run_s_label_only_tightens_and_survives_a_restart() {
    let house = House::new().await;
    assert_eq!(house.ask(|_| ()).await["decision"], "allow");
    let tainted = house.ask(|b| b["context"]["source_trust"] = json!("untrusted_external")).await;
    assert_eq!(tainted["decision"], "deny");
    assert_eq!(house.ask(|_| ()).await["decision"], "deny");
    let house = house.restarted().await;
    let after = house.ask(|_| ()).await;
    assert_eq!((after["decision"].as_str(), after["root_trust_level"].as_str()), (Some("deny"), Some("untrusted_external")));
    // Another edge knows nothing of the run, but the token that the SDK echoes does.
    let elsewhere = House::new().await;
    let token = after["trust_token"].clone();
    assert_eq!(elsewhere.ask(|b| b["trace"]["trust_token"] = token).await["decision"], "deny");
    // A child inherits its parent's label.
    let child = house.ask(|b| b["trace"] = json!({"run_id": "child", "parent_run_id": "run-1"})).await;
    assert_eq!(child["decision"], "deny");
    house.clock.advance_seconds(24 * 3600 + 1);
    assert_eq!(house.ask(|_| ()).await["decision"], "allow");
}

#[tokio::test]
async fn a_start_whose_clock_is_days_ahead_forgets_nothing_that_lasts() {
    let house = House::new().await;
    let nonced = |b: &mut Value| {
        b["nonce"] = json!("n");
        b["trace"] = json!({"run_id": "other"});
    };
    house.ask(|b| b["context"]["source_trust"] = json!("untrusted_external")).await;
    house.ask(nonced).await;
    house.clock.advance_seconds(3 * 86_400);
    let house = house.restarted().await;
    // Control is heard, and the clock follows it.
    house.clock.advance_seconds(-3 * 86_400 + 60);
    assert_eq!(house.ask(|_| ()).await["root_trust_level"], "untrusted_external");
    let mut body = call("crm", "update_note", true, "trusted_internal_unsigned");
    nonced(&mut body);
    body["tool_call"]["parameters"]["note"] = json!("another");
    let (status, answer) = house.send(&house.token("a", SourceTrust::TrustedInternalSigned), body.to_string()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("replay_nonce_reused")));
}

#[tokio::test]
async fn a_read_that_taints_its_run_is_answered_when_the_taint_is_on_the_disk() {
    for label in ["semi_trusted_customer", "unknown", "untrusted_external"] {
        let house = House::new().await;
        let read = async || {
            house
                .ask(|b| {
                    b["tool_call"] = json!({"tool": "crm", "action": "read_note", "mutates_state": false, "parameters": {}});
                    b["context"]["source_trust"] = json!(label);
                })
                .await
        };
        let (first, second) = (read().await, read().await);
        assert_eq!((first["decision"].as_str(), first["receipt"]["receipt_hash"].is_string()), (Some("allow"), true), "{label}");
        assert!(second["receipt"]["receipt_hash"].is_null(), "{label}: it says nothing new");
    }
}

#[tokio::test]
async fn calls_without_a_run_share_their_agent_s() {
    let house = House::new().await;
    house
        .ask(|b| {
            b["trace"] = Value::Null;
            b["context"]["source_trust"] = json!("malicious_suspected");
        })
        .await;
    assert_eq!(house.ask(|b| b["trace"] = Value::Null).await["decision"], "deny");
    assert_eq!(house.ask(|_| ()).await["decision"], "allow", "a named run is another one");
}

#[tokio::test]
async fn no_caller_claims_more_than_channel_token_and_signature_allow() {
    let house = House::new().await;
    house.put(EntryKind::Channel, "issues", &json!({"channel": "issues", "source_trust": "untrusted_external"}));
    let channel = house
        .ask(|b| {
            b["context"]["channel"] = json!("issues");
            b["trace"]["run_id"] = json!("c1");
        })
        .await;
    assert_eq!(channel["decision"], "deny");
    let unregistered = house
        .ask(|b| {
            b["context"]["channel"] = json!("elsewhere");
            b["trace"]["run_id"] = json!("c2");
        })
        .await;
    assert_eq!(unregistered["decision"], "require_approval");
    let signed = house
        .ask(|b| {
            b["context"]["source_trust"] = json!("trusted_internal_signed");
            b["trace"]["run_id"] = json!("c3");
        })
        .await;
    assert_eq!(signed["root_trust_level"], "trusted_internal_unsigned");
    let capped = house.token("b", SourceTrust::SemiTrustedCustomer);
    let (_, answer) = house.send(&capped, call("crm", "update_note", true, "trusted_internal_unsigned").to_string()).await;
    assert_eq!(answer["decision"], "require_approval");

    let source = SigningKey::from_seed(&[9; 32]);
    let record =
        json!({"channel": "jobs", "source_trust": "trusted_internal_signed", "public_key": source.verifying_key().to_base64()});
    house.put(EntryKind::Channel, "jobs", &record);
    let statement =
        aegis_canon::canonicalize_value(&json!({"run_id": "c4", "source": "jobs", "source_trust": "trusted_internal_signed"}))
            .unwrap();
    let signature = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(source.sign(&statement))
    };
    let context = json!({"source_trust": "trusted_internal_signed", "channel": "jobs", "source_signature": signature});
    let proven = house
        .ask(|b| {
            b["context"] = context.clone();
            b["trace"]["run_id"] = json!("c4");
        })
        .await;
    assert_eq!(proven["root_trust_level"], "trusted_internal_signed");
    let replayed = house
        .ask(|b| {
            b["context"] = context;
            b["trace"]["run_id"] = json!("c5");
        })
        .await;
    assert_eq!(replayed["root_trust_level"], "trusted_internal_unsigned", "a signature is for one run");
}
