//! What an edge believes of what control sends it.

use crate::house::*;

#[tokio::test]
async fn a_frozen_agent_never_gets_an_old_allow() {
    let house = House::new().await;
    let body = |b: &mut Value| b["request_id"] = json!("r1");
    assert_eq!(house.ask(body).await["decision"], "allow");
    let until = house.clock.now().plus_seconds(60);
    house.contain(
        TargetType::Agent,
        "a",
        vec![hold(ContainmentKind::Freeze, Some(until)), hold(ContainmentKind::Quarantine, None)],
        false,
    );
    assert_eq!(decided(&house.ask(body).await), ("deny", "agent_frozen"));
    house.clock.advance_seconds(60);
    assert_eq!(decided(&house.ask(|b| b["request_id"] = json!("r2")).await), ("deny", "agent_quarantined"));
    house.contain(TargetType::Agent, "a", vec![], true);
    assert_eq!(decided(&house.ask(|_| ()).await), ("deny", "agent_revoked"));
    let (_, other) = house
        .send(
            &house.token("b", SourceTrust::TrustedInternalSigned),
            call("crm", "update_note", true, "trusted_internal_unsigned").to_string(),
        )
        .await;
    assert_eq!(other["decision"], "allow", "another agent is not touched");
}

#[tokio::test]
async fn an_edge_believes_only_control_and_never_an_older_revision() {
    let house = House::new().await;
    house.contain(TargetType::Agent, "a", vec![hold(ContainmentKind::Freeze, None)], false);
    let state = |revision| ContainmentState {
        tenant_id: house.tenant.clone(),
        target_type: TargetType::Agent,
        target_id: "a".into(),
        holds: vec![],
        revoked: false,
        revision,
        issued_at: house.clock.now(),
    };
    let entry = |key: &SigningKey, name: &str, revision: i64, of: i64| {
        sign_entry(
            key,
            &house.tenant,
            EntryKind::Containment,
            name,
            revision,
            house.clock.now(),
            Some(serde_json::to_value(state(of)).unwrap()),
        )
        .unwrap()
    };
    let forged = entry(&SigningKey::from_seed(&[66; 32]), "agent/a", 99, 99);
    assert!(matches!(house.view.apply(&forged), Err(RefusedEntry::Signature(_))));
    let older = entry(&house.control, "agent/a", 1, 1);
    assert!(matches!(house.view.apply(&older), Err(RefusedEntry::Older { .. })));
    let renamed = entry(&house.control, "agent/other-name", 2, 2);
    assert!(
        matches!(house.view.apply(&renamed), Err(RefusedEntry::Older { .. })),
        "a name that lies about its target releases nobody"
    );
    let mismatched = entry(&house.control, "agent/a", 99, 98);
    assert!(matches!(house.view.apply(&mismatched), Err(RefusedEntry::Body { .. })));
    assert_eq!(decided(&house.ask(|_| ()).await), ("deny", "agent_frozen"));
}

#[tokio::test]
async fn a_bad_policy_entry_leaves_the_running_bundle() {
    let house = House::new().await;
    let bad = json!({"policies": "permit(principal, action, resource) when { context.nonsense };"});
    let entry =
        sign_entry(&house.control, &house.tenant, EntryKind::Policies, "policies", 500, house.clock.now(), Some(bad)).unwrap();
    assert!(matches!(house.view.apply(&entry), Err(RefusedEntry::Policies(_))));
    assert_eq!(house.ask(|_| ()).await["decision"], "allow");
    house.put(EntryKind::Tool, "late", &json!({"tool": "late", "name": "Late", "actions": []}));
}
