//! How a bundle decides: arguments, failures, approvals, explanations, names.

use aegis_model::Decision::{Allow, Deny, RequireApproval};
use aegis_model::SourceTrust::{SemiTrustedCustomer, TrustedInternalSigned, UntrustedExternal};
use aegis_model::Visibility;
use serde_json::json;

use super::{With, call, decide, expect, load};
use crate::{POLICY_ERROR, PolicyBundle, UNKNOWN_ACTION, UNREPRESENTABLE_PARAMETER, compare, default_pack, simulate};

const OPEN: &str = "@id(\"open\") permit (principal, action, resource);\n";

fn open_and(policies: &str) -> PolicyBundle {
    load(&format!("{OPEN}{policies}")).unwrap()
}

#[test]
fn a_policy_decides_on_a_registered_argument() {
    let bundle = open_and(
        "@id(\"large\") @decision(\"require_approval\") @approver_group(\"finance\") @approvals(\"2\") @reason(\"large payment\")
         permit (principal, action == Action::\"bank/pay\", resource) when { context.parameters has amount && context.parameters.amount > 1000 };
         @id(\"sanctioned\") forbid (principal, action == Action::\"bank/pay\", resource)
         when { context.parameters has to.country && context.parameters.to.country == \"XX\" };
         @id(\"tagged\") forbid (principal, action, resource) when { context.parameters has tags && context.parameters.tags.contains(\"frozen\") };",
    );
    let pay = call("bank", "pay", TrustedInternalSigned);
    expect(&bundle, &pay.clone().with(json!({"amount": 1000})), Allow, &["open"]);
    let outcome = expect(&bundle, &pay.clone().with(json!({"amount": 1001})), RequireApproval, &["large", "open"]);
    assert_eq!(
        (outcome.reason.as_str(), outcome.approver_group.as_deref(), outcome.approvals),
        ("large payment", Some("finance"), 2)
    );
    expect(&bundle, &pay.clone().with(json!({"amount": 1e6})), RequireApproval, &["large", "open"]);
    let outcome = expect(
        &bundle,
        &pay.clone().with(json!({"to": {"country": "XX"}, "tags": ["a", "frozen"]})),
        Deny,
        &["sanctioned", "tagged"],
    );
    assert_eq!(outcome.reason, "denied by policy `sanctioned`; denied by policy `tagged`");
}

#[test]
fn a_mutating_call_with_a_value_that_a_policy_cannot_see_is_denied() {
    let bundle = open_and(
        "@id(\"large\") forbid (principal, action, resource) when { context.parameters has amount && context.parameters.amount > 1000 };",
    );
    let pay = call("bank", "pay", TrustedInternalSigned);
    for hidden in [
        json!({"amount": 1000.5}),
        json!({"amount": "5000"}),
        json!({"amount": u64::MAX}),
        json!({"amount": null}),
        json!({"amount": [1]}),
    ] {
        let outcome = expect(&bundle, &pay.clone().with(hidden), Deny, &["large"]);
        assert_eq!(outcome.code, Some(UNREPRESENTABLE_PARAMETER));
        assert!(
            outcome.reason.contains("`amount`") && outcome.reason.contains("`large`") && !outcome.reason.contains("5000"),
            "{}",
            outcome.reason
        );
    }
    // Nobody reads the currency.
    expect(&bundle, &pay.clone().with(json!({"amount": 1, "currency": 7})), Allow, &["open"]);
    // A read goes on, unless the caller says that it mutates.
    let read = call("bank", "balance", TrustedInternalSigned).with(json!({"amount": 0.5}));
    expect(&bundle, &read, Allow, &["open"]);
    let mut claimed = read;
    claimed.mutates_state = true;
    expect(&bundle, &claimed, Deny, &["large"]);
}

#[test]
fn a_policy_that_uses_the_parameters_as_a_whole_reads_every_one() {
    let bundle = open_and(
        "@id(\"whole\") forbid (principal, action == Action::\"bank/balance\", resource) when { [context.parameters].isEmpty() };",
    );
    let mut read = call("bank", "balance", TrustedInternalSigned).with(json!({"whatever\n": 0.5}));
    read.mutates_state = true;
    let outcome = expect(&bundle, &read, Deny, &["whole"]);
    assert!(!outcome.reason.contains('\n'), "{}", outcome.reason);
}

#[test]
fn policies_can_ask_what_they_cannot_see() {
    let bundle =
        open_and("@id(\"blind\") forbid (principal, action, resource) when { context.unrepresentable.contains(\"to.city\") };");
    let pay = call("bank", "pay", TrustedInternalSigned);
    expect(&bundle, &pay.clone().with(json!({"to": {"country": "XX"}})), Allow, &["open"]);
    expect(&bundle, &pay.with(json!({"to": {"city": "Y"}})), Deny, &["blind"]);
}

#[test]
fn a_policy_that_fails_denies_and_does_not_tell_values() {
    let overflow = "permit (principal, action == Action::\"bank/pay\", resource) when { context.parameters has amount && context.parameters.amount * 2 > 0 };";
    for effect in ["permit", "forbid"] {
        let bundle = open_and(&format!("@id(\"broken\") {}", overflow.replace("permit", effect)));
        let mut pay = call("bank", "pay", TrustedInternalSigned).with(json!({"amount": i64::MAX}));
        let outcome = expect(&bundle, &pay, Deny, &["broken"]);
        assert_eq!(outcome.code, Some(POLICY_ERROR));
        assert!(!outcome.reason.contains(&i64::MAX.to_string()), "{}", outcome.reason);
        pay = pay.with(json!({"amount": -1}));
        assert_eq!(decide(&bundle, &pay).decision, Allow);
    }
}

#[test]
fn an_unknown_action_is_denied_whatever_the_policies_say() {
    let bundle = open_and("");
    for (tool, action) in [("bank", "steal"), ("nothing", "pay"), ("", ""), ("bank/pay", ""), ("read", "read")] {
        let outcome = expect(&bundle, &call(tool, action, TrustedInternalSigned), Deny, &[]);
        assert_eq!(outcome.code, Some(UNKNOWN_ACTION));
    }
}

#[test]
fn no_matching_permit_is_a_deny_without_policies() {
    let bundle = load("@id(\"read\") permit (principal, action in Action::\"read\", resource);").unwrap();
    let outcome = expect(&bundle, &call("bank", "pay", TrustedInternalSigned), Deny, &[]);
    assert_eq!((outcome.reason.as_str(), outcome.code), ("no policy permits this action", None));
    let outcome = expect(&bundle, &call("bank", "balance", TrustedInternalSigned), Allow, &["read"]);
    assert_eq!(outcome.reason, "permitted by policy `read`");
}

#[test]
fn of_several_approvals_the_largest_count_and_the_first_group_win() {
    let bundle = open_and(
        "@id(\"a\") @decision(\"require_approval\") permit (principal, action, resource);
         @id(\"c\") @decision(\"require_approval\") @approver_group(\"zulu\") @approvals(\"3\") permit (principal, action, resource);
         @id(\"b\") @decision(\"require_approval\") @approver_group(\"alpha\") permit (principal, action, resource);
         @id(\"d\") @decision(\"require_approval\") permit (principal, action, resource);",
    );
    let outcome = expect(&bundle, &call("bank", "pay", TrustedInternalSigned), RequireApproval, &["a", "b", "c", "d", "open"]);
    assert_eq!((outcome.approver_group.as_deref(), outcome.approvals), (Some("alpha"), 3));
    assert!(outcome.reason.ends_with("policy `c`; and 1 more"), "{}", outcome.reason);
}

#[test]
fn agents_of_other_tenants_and_with_slashes_are_other_agents() {
    let text = "@id(\"one\") permit (principal == Agent::\"acme/team%2Fbot\", action, resource);
                @id(\"two\") permit (principal, action, resource == Resource::\"acme/repo%231\");";
    let bundle = load(text).unwrap();
    let mut by = call("bank", "pay", TrustedInternalSigned);
    for (agent, decision) in [("team/bot", Allow), ("team%2Fbot", Deny), ("team", Deny), ("acme/team/bot", Deny)] {
        by.agent_id = agent.to_owned();
        assert_eq!(decide(&bundle, &by).decision, decision, "{agent}");
    }
    by.agent_id = "team/bot".to_owned();
    by.tenant_id = aegis_model::TenantId::new("other").unwrap();
    expect(&bundle, &by, Deny, &[]);
    by.tenant_id = aegis_model::TenantId::new("acme").unwrap();
    by.agent_id = "nobody".to_owned();
    expect(&bundle, &by.clone().on("repo#1", Visibility::Public), Allow, &["two"]);
    expect(&bundle, &by.on("repo%231", Visibility::Public), Deny, &[]);
}

#[test]
fn the_whole_context_reaches_the_policies() {
    let condition = [
        "principal == Agent::\"acme/bot\"",
        "context.trust_level == \"semi_trusted_customer\"",
        "context.root_trust_level == \"untrusted_external\"",
        "context.mutates_state",
        "context.contains_sensitive_data",
        "context.environment == \"production\"",
        "context.risk_level == \"high\"",
        "context.data_access == \"sensitive\"",
        "context.destination == \"external\"",
        "context.agent_risk_tier == \"medium\"",
        "context.user has id && context.user.id == \"u1\"",
        "context.user has role && context.user.role == \"admin\"",
        "resource.tool == \"bank\"",
        "resource.name == \"ledger#9\"",
        "resource.container == \"ledger\"",
        "resource.visibility == \"private\"",
        "resource has owner && resource.owner == \"team-a\"",
        "action in Action::\"write\" && action in Action::\"tool:bank\" && action in Action::\"tool_call\"",
    ];
    let bundle =
        load(&format!("@id(\"all\") permit (principal, action, resource) when {{ {} }};", condition.join(" && "))).unwrap();
    let mut full = call("bank", "pay", SemiTrustedCustomer).on("ledger#9", Visibility::Private);
    full.root_trust = UntrustedExternal;
    full.contains_sensitive_data = true;
    full.risk_level = aegis_model::RiskLevel::High;
    full.data_access = aegis_model::DataAccess::Sensitive;
    full.destination = aegis_model::Destination::External;
    full.agent_risk_tier = aegis_model::RiskLevel::Medium;
    full.user_id = Some("u1".to_owned());
    full.user_role = Some("admin".to_owned());
    expect(&bundle, &full, Allow, &["all"]);
    // A record that was registered for another tool says nothing about this call.
    full.resource_record.as_mut().unwrap().tool = Some("github".to_owned());
    expect(&bundle, &full, Deny, &[]);
}

#[test]
fn simulation_tells_what_a_new_bundle_would_change() {
    let running = PolicyBundle::load(&[default_pack()], &[super::bank()]).unwrap();
    let candidate = open_and("");
    let calls = [call("bank", "balance", UntrustedExternal), call("bank", "pay", UntrustedExternal)];
    let recorded: Vec<crate::RecordedCall> = serde_json::from_str(&serde_json::to_string(&calls).unwrap()).unwrap();
    assert_eq!(simulate(&running, &recorded).iter().map(|outcome| outcome.decision).collect::<Vec<_>>(), [Allow, Deny]);
    let changes = compare(&running, &candidate, &recorded);
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].call, changes[0].before.decision, changes[0].after.decision), (1, Deny, Allow));
}
