//! The shipped packs hold what CONTRACTS §2 says, label by label.

use std::sync::LazyLock;

use aegis_model::Decision::{Allow, Deny, RequireApproval};
use aegis_model::SourceTrust::{
    self, MaliciousSuspected, SemiTrustedCustomer, TrustedInternalSigned, TrustedInternalUnsigned, Unknown, UntrustedExternal,
};
use aegis_model::{RiskLevel, Visibility};
use proptest::prelude::*;
use serde_json::json;

use super::{With, bank, call, decide, expect};
use crate::{PolicyBundle, RecordedCall, default_pack, github_pack, github_tool};

static DEFAULT_ONLY: LazyLock<PolicyBundle> =
    LazyLock::new(|| PolicyBundle::load(&[default_pack()], &[bank(), github_tool()]).unwrap());
static BOTH: LazyLock<PolicyBundle> =
    LazyLock::new(|| PolicyBundle::load(&[default_pack(), github_pack()], &[bank(), github_tool()]).unwrap());

#[test]
fn the_default_pack_reads_at_every_label_and_writes_by_label() {
    let bundle = &*DEFAULT_ONLY;
    let writes = [
        (TrustedInternalSigned, Allow, "default-allow-trusted-write"),
        (TrustedInternalUnsigned, Allow, "default-allow-trusted-write"),
        (SemiTrustedCustomer, RequireApproval, "default-approve-uncertain-write"),
        (Unknown, RequireApproval, "default-approve-uncertain-write"),
        (UntrustedExternal, Deny, "default-deny-untrusted-write"),
        (MaliciousSuspected, Deny, "default-deny-untrusted-write"),
    ];
    for (trust, decision, policy) in writes {
        expect(bundle, &call("bank", "balance", trust), Allow, &["default-allow-read"]);
        let outcome = expect(bundle, &call("bank", "pay", trust), decision, &[policy]);
        assert_eq!((outcome.approver_group, outcome.approvals, outcome.code), (None, 1, None));
        // The caller's word is enough to make a read a write, not the other way round.
        let mut claimed = call("bank", "balance", trust);
        claimed.mutates_state = true;
        expect(bundle, &claimed, decision, &[policy]);
    }
}

#[test]
fn a_risky_agent_needs_approval_for_every_change() {
    let bundle = &*DEFAULT_ONLY;
    for tier in [RiskLevel::High, RiskLevel::Critical] {
        let mut write = call("bank", "pay", TrustedInternalSigned);
        write.agent_risk_tier = tier;
        let outcome =
            expect(bundle, &write, RequireApproval, &["default-allow-trusted-write", "default-approve-risky-agent-write"]);
        assert_eq!(outcome.reason, "every change by an agent of risk tier high or critical needs a person's approval");
        write.trust_level = UntrustedExternal;
        expect(bundle, &write, Deny, &["default-deny-untrusted-write"]);
        let mut read = call("bank", "balance", UntrustedExternal);
        read.agent_risk_tier = tier;
        expect(bundle, &read, Allow, &["default-allow-read"]);
    }
}

#[test]
fn an_untrusted_context_cannot_read_a_private_repository() {
    let bundle = &*BOTH;
    for trust in [UntrustedExternal, MaliciousSuspected] {
        let read = call("github", "get_file_contents", trust);
        expect(bundle, &read.clone().on("acme/secrets", Visibility::Private), Deny, &["github-deny-untrusted-private-read"]);
        expect(bundle, &read.clone().on("acme/mystery", Visibility::Unknown), Deny, &["github-deny-untrusted-private-read"]);
        expect(bundle, &read, Deny, &["github-deny-untrusted-private-read"]);
        expect(bundle, &read.on("acme/website", Visibility::Public), Allow, &["default-allow-read"]);
    }
    expect(
        bundle,
        &call("github", "get_file_contents", Unknown).on("acme/secrets", Visibility::Private),
        Allow,
        &["default-allow-read"],
    );
}

#[test]
fn an_untrusted_context_cannot_write_to_a_public_or_another_repository() {
    let bundle = &*BOTH;
    let foreign = "github-deny-untrusted-foreign-write";
    let public = "github-deny-untrusted-public-write";
    let write = call("github", "create_pull_request", UntrustedExternal);
    expect(
        bundle,
        &write.clone().on("acme/website", Visibility::Public),
        Deny,
        &["default-deny-untrusted-write", foreign, public],
    );
    // An unknown visibility counts as public when written.
    expect(
        bundle,
        &write.clone().on("acme/mystery", Visibility::Unknown),
        Deny,
        &["default-deny-untrusted-write", foreign, public],
    );
    expect(bundle, &write.clone().on("acme/secrets", Visibility::Private), Deny, &["default-deny-untrusted-write", foreign]);

    // Without the default pack's own forbid the GitHub pack still holds.
    let open = super::source("open.cedar", "@id(\"open\") permit (principal, action, resource);");
    let github_only = PolicyBundle::load(&[open, github_pack()], &[github_tool()]).unwrap();
    let own = json!({"source_repository": "acme/secrets"});
    let other = json!({"source_repository": "evil/issues"});
    expect(&github_only, &write.clone().on("acme/secrets#7", Visibility::Private).with(own.clone()), Allow, &["open"]);
    expect(&github_only, &write.clone().on("acme/secrets#7", Visibility::Private).with(other), Deny, &[foreign]);
    expect(&github_only, &write.clone().on("acme/secrets", Visibility::Private), Deny, &[foreign]);
    expect(&github_only, &write.on("acme/secrets", Visibility::Public).with(own), Deny, &[public]);
}

#[test]
fn data_moving_between_repositories_needs_approval() {
    let bundle = &*BOTH;
    let write = call("github", "create_pull_request", TrustedInternalSigned).on("acme/website#3", Visibility::Public);
    for parameter in ["source_repository", "head_repository", "target_repository"] {
        expect(bundle, &write.clone().with(json!({parameter: "acme/website"})), Allow, &["default-allow-trusted-write"]);
        let moved = write.clone().with(json!({parameter: "acme/secrets"}));
        let outcome =
            expect(bundle, &moved, RequireApproval, &["default-allow-trusted-write", "github-approve-cross-repository"]);
        assert_eq!(outcome.reason, "data moving between repositories needs a person's approval");
    }
}

#[test]
fn an_unsigned_merge_to_main_waits_for_the_release_group() {
    let bundle = &*BOTH;
    let merge = |trust, branch: &str| {
        call("github", "merge_pull_request", trust)
            .on("payments-service#482", Visibility::Private)
            .with(json!({"base_branch": branch}))
    };
    for branch in ["main", "master"] {
        let outcome = expect(
            bundle,
            &merge(TrustedInternalUnsigned, branch),
            RequireApproval,
            &["default-allow-trusted-write", "github-approve-merge-to-main"],
        );
        assert_eq!((outcome.approver_group.as_deref(), outcome.approvals), (Some("release"), 1));
        let outcome = expect(
            bundle,
            &merge(Unknown, branch),
            RequireApproval,
            &["default-approve-uncertain-write", "github-approve-merge-to-main"],
        );
        assert_eq!(outcome.approver_group.as_deref(), Some("release"));
        expect(bundle, &merge(TrustedInternalSigned, branch), Allow, &["default-allow-trusted-write"]);
        assert_eq!(decide(bundle, &merge(UntrustedExternal, branch)).decision, Deny);
    }
    expect(bundle, &merge(TrustedInternalUnsigned, "dev"), Allow, &["default-allow-trusted-write"]);
    // A base branch that policies cannot see is not taken for a harmless one.
    let hidden = merge(TrustedInternalUnsigned, "dev").with(json!({"base_branch": ["main"]}));
    let outcome = expect(bundle, &hidden, Deny, &["github-approve-merge-to-main"]);
    assert_eq!(outcome.code, Some(crate::UNREPRESENTABLE_PARAMETER));
}

#[test]
fn the_packs_load_without_any_tool_and_hold_for_a_tool_registered_without_schemas() {
    PolicyBundle::load(&[default_pack(), github_pack()], &[]).unwrap();
    let bare = super::tool(
        "mcp:github",
        vec![super::action("merge_pull_request", true, None), super::action("push_anything", true, None)],
    );
    let bundle = &PolicyBundle::load(&[default_pack(), github_pack()], &[bare]).unwrap();
    assert!(bundle.warnings().is_empty(), "{:?}", bundle.warnings());
    let merge = call("mcp:github", "merge_pull_request", TrustedInternalUnsigned).with(json!({"base_branch": "main"}));
    assert_eq!(decide(bundle, &merge).approver_group.as_deref(), Some("release"));
    let push = call("mcp:github", "push_anything", TrustedInternalSigned)
        .on("acme/website", Visibility::Public)
        .with(json!({"source_repository": "acme/secrets", "files": ["x"]}));
    assert_eq!(decide(bundle, &push).decision, RequireApproval);
    // Declared for the pack is not registered.
    assert_eq!(decide(bundle, &call("github", "merge_pull_request", TrustedInternalSigned)).code, Some(crate::UNKNOWN_ACTION));
}

fn any_call() -> impl Strategy<Value = RecordedCall> {
    let github = github_tool().actions.into_iter().map(|action| ("github", action.action));
    let actions: Vec<(&str, String)> = github.chain([("bank", "pay".to_owned()), ("bank", "balance".to_owned())]).collect();
    let resource = prop_oneof![Just("acme/a"), Just("acme/b#1"), Just("")];
    let repository = prop_oneof![
        Just(json!({})),
        Just(json!({"source_repository": "acme/a"})),
        Just(json!({"head_repository": "acme/b"})),
        Just(json!({"base_branch": "main"})),
        Just(json!({"base_branch": 1.5}))
    ];
    let visibility = prop_oneof![Just(Visibility::Public), Just(Visibility::Private), Just(Visibility::Unknown)];
    let tier = prop_oneof![Just(RiskLevel::Low), Just(RiskLevel::Critical)];
    (prop::sample::select(actions), resource, repository, visibility, tier, any::<bool>()).prop_map(
        |((tool, action), resource, parameters, visibility, tier, claimed)| {
            let mut call = call(tool, &action, Unknown).on(resource, visibility).with(parameters);
            call.agent_risk_tier = tier;
            call.mutates_state = claimed;
            call
        },
    )
}

proptest! {
    #[test]
    fn a_stricter_label_never_loosens_a_decision(call in any_call()) {
        for bundle in [&*DEFAULT_ONLY, &*BOTH] {
            let mut last = Allow;
            for trust in SourceTrust::ALL {
                let decision = decide(bundle, &RecordedCall { trust_level: trust, root_trust: trust, ..call.clone() }).decision;
                prop_assert!(decision >= last, "{trust}: {decision} after {last}");
                last = decision;
            }
        }
    }

    #[test]
    fn a_claim_that_a_call_mutates_never_loosens_a_decision(call in any_call(), trust in 0..6usize) {
        let bundle = &*BOTH;
        let read = RecordedCall { trust_level: SourceTrust::ALL[trust], mutates_state: false, ..call };
        let write = RecordedCall { mutates_state: true, ..read.clone() };
        prop_assert!(decide(bundle, &write).decision >= decide(bundle, &read).decision);
    }
}
