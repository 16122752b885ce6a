//! Remembering changes no answer (L-MEMO): a bundle that has answered many calls answers the next as one that has answered none.
//! In test builds `evaluate` also asks Cedar again whenever it remembers, so every test of this crate checks it.

use aegis_model::{Decision, RiskLevel, SourceTrust, Visibility};
use proptest::prelude::*;
use serde_json::json;

use super::{With, bank, call, decide, load, source};
use crate::{PolicyBundle, PolicyOutcome, RecordedCall, default_pack, github_pack, github_tool};

/// Every kind of thing that a policy can read, scopes included.
const OWN: &str = r#"
@id("own-agent") permit (principal == Agent::"acme/bot1", action == Action::"bank/pay", resource);
@id("own-resource") forbid (principal, action, resource == Resource::"acme/r2") when { context.mutates_state };
@id("own-amount") forbid (principal, action == Action::"bank/pay", resource) when { context.parameters has amount && context.parameters.amount > 10 };
@id("own-user") @decision("require_approval") permit (principal, action == Action::"bank/balance", resource) when { context.user has role && context.user.role == "u1" };
@id("own-owner") forbid (principal, action == Action::"bank/balance", resource) when { resource has owner && resource.owner == "o1" && resource.visibility == "public" };
@id("own-blind") forbid (principal, action == Action::"bank/balance", resource) when { !context.unrepresentable.isEmpty() };
"#;

fn bundle() -> PolicyBundle {
    PolicyBundle::load(&[default_pack(), github_pack(), source("own", OWN)], &[bank(), github_tool()]).unwrap()
}

fn calls() -> impl Strategy<Value = RecordedCall> {
    let names = (0usize..3, 0u8..3, 0u8..3, 0usize..6, 0u8..4, any::<bool>());
    let arguments = prop_oneof![
        Just(json!({})),
        (0i64..20).prop_map(|amount| json!({"amount": amount})),
        Just(json!({"amount": 1.5})),
        Just(json!({"base_branch": "main", "source_repository": "r1"})),
        Just(json!({"source_repository": "r2", "other": [1]})),
    ];
    (names, arguments, 0u8..3, any::<bool>()).prop_map(
        |((what, agent, resource, trust, user, mutates), arguments, shown, risky)| {
            let (tool, action) = [("bank", "pay"), ("bank", "balance"), ("github", "merge_pull_request")][what];
            let visibility = [Visibility::Public, Visibility::Private, Visibility::Unknown][usize::from(shown)];
            let mut call = call(tool, action, SourceTrust::ALL[trust]).on(&format!("r{resource}"), visibility).with(arguments);
            call.agent_id = format!("bot{agent}");
            call.mutates_state = mutates;
            call.agent_risk_tier = if risky { RiskLevel::High } else { RiskLevel::Low };
            call.user_role = (user < 3).then(|| format!("u{user}"));
            if let Some(record) = &mut call.resource_record {
                record.owner = (user < 2).then(|| format!("o{user}"));
            }
            call
        },
    )
}

/// Emptied before it answers, and so one that has answered none: making a bundle anew for each call takes minutes.
fn decide_anew(bundle: &PolicyBundle, call: &RecordedCall) -> PolicyOutcome {
    bundle.actions.values().flat_map(|actions| actions.values()).for_each(|action| action.memo.forget());
    decide(bundle, call)
}

proptest! {
    // What is left out of a key shows in two calls of one case that differ in nothing else that is read: a case has many calls, and there are few cases.
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_bundle_that_remembers_answers_as_one_that_does_not(calls in prop::collection::vec(calls(), 1..96)) {
        let (remembering, forgetting) = (bundle(), bundle());
        let first = &calls[0];
        prop_assert_eq!(decide_anew(&forgetting, first), decide(&bundle(), first));
        for call in calls.iter().chain(&calls) {
            prop_assert_eq!(decide(&remembering, call), decide_anew(&forgetting, call));
        }
    }
}

#[test]
fn what_was_allowed_once_is_judged_by_its_own_values_the_next_time() {
    let bundle = bundle();
    let mut pay = call("bank", "pay", SourceTrust::TrustedInternalSigned).on("r1", Visibility::Public);
    pay.agent_id = "bot1".to_owned();
    assert_eq!(decide(&bundle, &pay.clone().with(json!({"amount": 10}))).decision, Decision::Allow);
    assert_eq!(decide(&bundle, &pay.clone().with(json!({"amount": 11}))).decision, Decision::Deny);
    assert_eq!(decide(&bundle, &pay.clone().with(json!({"amount": 10.5}))).decision, Decision::Deny);
    assert_eq!(decide(&bundle, &pay.clone().on("r2", Visibility::Public)).decision, Decision::Deny);
    pay.trust_level = SourceTrust::UntrustedExternal;
    assert_eq!(decide(&bundle, &pay).decision, Decision::Deny);
}

#[test]
fn a_policy_that_cannot_be_followed_turns_remembering_off_and_still_decides() {
    let bundle = load(
        r#"@id("a") permit (principal, action, resource);
           @id("b") forbid (principal, action == Action::"bank/pay", resource) when { {c: context}.c.risk_level == "low" };"#,
    )
    .unwrap();
    let mut pay = call("bank", "pay", SourceTrust::TrustedInternalSigned);
    assert_eq!(decide(&bundle, &pay).decision, Decision::Deny);
    pay.risk_level = RiskLevel::High;
    assert_eq!(decide(&bundle, &pay).decision, Decision::Allow);
}
