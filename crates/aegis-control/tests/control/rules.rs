//! A tenant's own rules: each change with its receipt and its record in the log, one trial at a time, and nothing without a receipt.

use std::time::Duration;

use crate::house::{House, rule_version};
use aegis_bus::{Bus, Message, Stream, subject};
use aegis_control::{RefusedRuleRecord, common_rule_change_by_operator, rule_change_by_operator};
use aegis_keys::{KeyRing, verify_notice};
use aegis_model::{CommonRuleRecord, EventKind, PARTITIONS, RuleInSet, RuleMode, RuleRecord, TenantId, partition_of};
use aegis_store::{NewRuleVersion, OutboxRow, RuleChange};
use serde_json::{Value, json};

/// Tenant and text of the records in the log, in its order, each signed by control.
async fn records(house: &House) -> Vec<(String, String)> {
    let mut subscription = house.bus.subscribe(Stream::Ase, "ruleset.*", 0).await.unwrap();
    let delivered = subscription.next_batch(100, Duration::from_millis(50)).await.unwrap();
    let ring = KeyRing::new([house.control_key.verifying_key()]);
    let read = |payload: &[u8]| verify_notice::<RuleRecord>(&ring, payload).unwrap().0;
    delivered.iter().map(|d| read(&d.payload[..])).map(|record| (record.tenant_id.to_string(), record.text)).collect()
}

async fn until_told(house: &House, texts: &[&str]) {
    let expected: Vec<_> = texts.iter().map(|text| ("acme".to_owned(), (*text).to_owned())).collect();
    house.until("the log is told", async || records(house).await == expected).await;
}

async fn activate(house: &House, text: &str) -> crate::house::Reply {
    house.post("/v1/rules", &house.acme.admin, json!({"text": text})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_has_its_receipt_and_its_record_in_the_log() {
    let house = House::build().await;
    activate(&house, "OWN-1 1 active").await.refused(409, "step_too_long");
    activate(&house, "no rule").await.refused(422, "invalid_rule");
    let stands = activate(&house, "OWN-1 1 log_only").await.expect(201).body;
    assert_eq!((&stands["version"], &stands["mode"], &stands["backtest"]["alerts"]), (&json!(1), &json!("log_only"), &json!(3)));
    activate(&house, "OWN-1 1 active").await.refused(409, "version_not_higher");
    until_told(&house, &["OWN-1 1 log_only"]).await;
    activate(&house, "OWN-1 2 active").await.expect(201);
    until_told(&house, &["OWN-1 1 log_only", "OWN-1 2 active"]).await;

    let event = house.event(&house.acme.id, EventKind::ConfigChanged, "rule_changed").await;
    let detail = &event["receipt"]["detail"];
    assert_eq!(
        (&detail["rule_id"], &detail["alerts_per_day"], &detail["by"]["role"]),
        (&json!("OWN-1"), &json!(1.5), &json!("admin"))
    );
    let listed = house.get("/v1/rules?rule_id=OWN-1", &house.acme.auditor).await.expect(200).body;
    let versions: Vec<&Value> = listed.as_array().unwrap().iter().map(|version| &version["version"]).collect();
    assert_eq!(versions, [&json!(2), &json!(1)]);
    assert_eq!(house.get("/v1/rules", &house.other.admin).await.expect(200).body, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_edge_can_be_there_before_a_record() {
    let house = House::build().await;
    // What an edge of any tenant may publish: its own subject, and an id of its choice. These follow from names and from the start that beats tell.
    let subject = subject::ase(&house.other.id, EventKind::AuthorizeDecision);
    let ids = (0..4).flat_map(|revision| (0..4).map(move |start| format!("ruleset-acme-OWN-1-{revision}-{start}")));
    let named = ids.map(|id| Message::new(subject.clone(), "{}").with_id(id)).collect();
    for taken in house.bus.publish(Stream::Ase, named).await {
        assert!(!taken.unwrap().duplicate);
    }
    activate(&house, "OWN-1 1 log_only").await.expect(201);
    until_told(&house, &["OWN-1 1 log_only"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_rule_is_tried_at_a_time() {
    let house = House::build().await;
    let held = json!({"text": "OWN-1 1 log_only", "tests": [{"name": "fires.yaml", "text": "events"}]});
    let of_other = async || house.post("/v1/rules", &house.other.admin, json!({"text": "OWN-2 1 log_only"})).await;
    let (first, other) = tokio::join!(house.post("/v1/rules", &house.acme.admin, held), async {
        house.trials.began.notified().await;
        let refused = of_other().await;
        house.trials.let_go.notify_one();
        refused
    });
    first.expect(201);
    other.refused(409, "rule_trial_under_way");
    of_other().await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_receipted_is_not_changed() {
    let house = House::build().await;
    house.fill_control_ledger().await;
    let reply = activate(&house, "OWN-1 1 log_only").await;
    assert_eq!(reply.status.as_u16(), 503, "{}", reply.text);
    assert_eq!(house.get("/v1/rules", &house.acme.admin).await.expect(200).body, json!([]));
    assert!(records(&house).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_changes_beside_the_program_is_sealed_and_told_by_it() {
    let house = House::build().await;
    let version = rule_version("OWN-1 1 log_only").unwrap();
    let draft = rule_change_by_operator(&house.acme.id, &version, "control", house.now());
    let payload = serde_json::to_string(&draft).unwrap();
    let fact = OutboxRow { event_id: draft.event.event_id, tenant_id: house.acme.id.clone(), payload };
    let made = house.store.put_rule_version(&house.acme.id, &version, "operator", &[fact]).await.unwrap();
    assert!(matches!(made, RuleChange::Made { .. }));
    until_told(&house, &["OWN-1 1 log_only"]).await;
    let event = house.event(&house.acme.id, EventKind::ConfigChanged, "rule_changed").await;
    assert_eq!(event["receipt"]["detail"]["by"], json!({"type": "operator"}));
}

/// Partition, rule and text of the records in the log of what every tenant has.
async fn common_records(house: &House) -> Vec<(u32, String, String)> {
    let mut subscription = house.bus.subscribe(Stream::Ase, "ruleset.*", 0).await.unwrap();
    let delivered = subscription.next_batch(1000, Duration::from_millis(50)).await.unwrap();
    let control = KeyRing::new([house.control_key.verifying_key()]);
    let read = delivered.iter().filter_map(|d| {
        let (record, _) = verify_notice::<CommonRuleRecord>(&control, &d.payload).ok()?;
        assert_eq!(d.subject, subject::ruleset(record.partition));
        assert_eq!(record.hash, aegis_canon::sha256_hex(record.text.as_bytes()));
        Some((record.partition, record.rule_id, record.text))
    });
    read.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_makes_of_every_tenant_s_rule_is_told_to_each_partition_and_receipted_in_each_tenant_s_lane() {
    let house = House::build().await;
    let quiet = "AEG-1 2 log_only";
    let program_s = NewRuleVersion {
        text: String::new(),
        hash: aegis_canon::sha256_hex(b""),
        common: Some((1, RuleMode::Active)),
        ..rule_version("AEG-1 1 active").unwrap()
    };
    let tried = NewRuleVersion {
        backtest: Some(json!({"events": 7, "alerts": 3, "alerts_per_day": 1.5})),
        common: Some((1, RuleMode::Active)),
        ..rule_version(quiet).unwrap()
    };
    let put = async |version: &NewRuleVersion| {
        let now = house.now();
        let fact = |tenant: &TenantId| {
            let draft = common_rule_change_by_operator(tenant, version, "control", now);
            let payload = serde_json::to_string(&draft).unwrap();
            Ok(OutboxRow { event_id: draft.event.event_id, tenant_id: tenant.clone(), payload })
        };
        let made = house.store.put_common_rule_version(version, None, "operator", fact).await.unwrap();
        assert!(matches!(made, RuleChange::Made { .. }), "{made:?}");
    };
    let all_of = |text: &str| (0..PARTITIONS).map(|pp| (pp, "AEG-1".to_owned(), text.to_owned())).collect::<Vec<_>>();
    put(&tried).await;
    house.until("each partition is told", async || common_records(&house).await == all_of(quiet)).await;
    for tenant in [&house.acme.id, &house.other.id] {
        let event = house.event(tenant, EventKind::ConfigChanged, "rule_changed").await;
        let detail = &event["receipt"]["detail"];
        assert_eq!(
            (&detail["by"], &detail["every_tenant"], &detail["of_program"]),
            (&json!({"type": "operator"}), &json!(true), &json!(false))
        );
        assert_eq!((&detail["rule_id"], &detail["mode"]), (&json!("AEG-1"), &json!("log_only")));
        assert!(["events", "alerts", "alerts_per_day"].iter().all(|of_all| detail.get(of_all).is_none()), "{detail}");
    }
    // No tenant's admin has changed a thing, and none has a rule of its own by it.
    assert_eq!(house.get("/v1/rules", &house.acme.admin).await.expect(200).body, json!([]));
    for tenant in [&house.acme, &house.other] {
        let listed = house.get("/v1/rules/common?rule_id=AEG-1", &tenant.auditor).await.expect(200).body;
        assert_eq!(
            (&listed[0]["version"], &listed[0]["mode"], &listed[0]["of_program"]),
            (&json!(2), &json!("log_only"), &json!(false))
        );
        assert!(listed[0].get("backtest").is_none() && listed[0].get("tenant_id").is_none(), "{listed}");
    }
    assert_eq!(house.get("/v1/rules/common?rule_id=AEG-2", &house.acme.analyst).await.expect(200).body, json!([]));
    put(&program_s).await;
    let both = [all_of(quiet), all_of("")].concat();
    house.until("each partition is told again", async || common_records(&house).await == both).await;
}

/// Asked again for what is sealed, also after a restart, control seals nothing more; and nothing at all for those whom it does not concern.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_of_rules_is_sealed_once_for_each_tenant_of_its_partition_or_for_the_one_that_it_is_of() {
    let mut house = House::build().await;
    let (acme, other) = (house.acme.id.clone(), house.other.id.clone());
    let refused = |tenant_id: Option<&TenantId>, partition: u32, fault: &'static str, hour: i64| RefusedRuleRecord {
        partition,
        tenant_id: tenant_id.cloned(),
        fault,
        seq: 7,
        bus_ts: house.now(),
        hour,
    };
    let told = [
        refused(None, partition_of(&acme), "bad_signature", 1),
        refused(None, partition_of(&acme), "bad_signature", 2),
        refused(None, partition_of(&other), "unsigned", 1),
        refused(Some(&acme), partition_of(&acme), "older", 1),
    ];
    for _ in 0..2 {
        for refused in &told {
            house.control.tell_refused_rule_record(refused).await.unwrap();
        }
        house.restart_control().await;
    }
    assert_ne!(partition_of(&acme), partition_of(&other), "the house has them apart");
    house.event(&acme, EventKind::RuleRecordRefused, "older").await;
    house.event(&other, EventKind::RuleRecordRefused, "unsigned").await;
    let reasons = async |tenant: &TenantId| {
        let rows = house.events(tenant, EventKind::RuleRecordRefused).await;
        let wires = rows.iter().map(|row| serde_json::from_str::<Value>(row.wire.text().unwrap()).unwrap());
        let mut reasons: Vec<String> = wires.map(|wire| wire["reason"].as_str().unwrap().to_owned()).collect();
        reasons.sort();
        reasons
    };
    assert_eq!(reasons(&acme).await, ["bad_signature", "bad_signature", "older"]);
    assert_eq!(reasons(&other).await, ["unsigned"]);
    // The history has one event of an id; the lanes have one receipt of it too.
    let sealed = house.control_ledger.read_outbox(0, 1000).await.unwrap();
    assert_eq!(sealed.iter().filter(|item| item.sealed.kind == EventKind::RuleRecordRefused).count(), 4);
    let wire = house.event(&acme, EventKind::RuleRecordRefused, "older").await;
    aegis_ledger::verify::verify_wire(&wire, Some(&house.ring)).unwrap();
    assert_eq!(wire["resource"], json!(subject::ruleset(partition_of(&acme))));
    assert_eq!((&wire["source"], &wire["receipt"]["phase"]), (&json!("control"), &json!("attempt")));
    assert_eq!(wire["receipt"]["detail"]["by"], json!({"type": "detection"}));
}

/// A ledger that cannot be written for a while: whoever asks again has all of them told, each once.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_that_could_not_be_sealed_is_sealed_for_all_when_it_is_asked_again() {
    let house = House::build().await;
    let acme = house.acme.id.clone();
    let names = (0..).map(|n| TenantId::new(&format!("neighbour-{n}")).unwrap());
    let neighbours: Vec<TenantId> = names.filter(|tenant| partition_of(tenant) == partition_of(&acme)).take(2).collect();
    for tenant in &neighbours {
        house.store.create_tenant(tenant, tenant.as_str()).await.unwrap();
    }
    let (partition, bus_ts) = (partition_of(&acme), house.now());
    let refused = RefusedRuleRecord { partition, tenant_id: None, fault: "unsigned", seq: 7, bus_ts, hour: 1 };
    house.fill_control_ledger().await;
    house.control.tell_refused_rule_record(&refused).await.unwrap_err();
    house.ledger_pages.store(0, std::sync::atomic::Ordering::SeqCst);
    house.until("all are told", async || house.control.tell_refused_rule_record(&refused).await.is_ok()).await;
    house.control.tell_refused_rule_record(&refused).await.unwrap();
    for tenant in neighbours.iter().chain([&acme]) {
        house.event(tenant, EventKind::RuleRecordRefused, "unsigned").await;
        assert_eq!(house.events(tenant, EventKind::RuleRecordRefused).await.len(), 1, "{tenant}");
    }
    assert!(house.events(&house.other.id, EventKind::RuleRecordRefused).await.is_empty());
}

/// The receipts of sets of rules that a tenant has, in the order of its lanes: what was changed, and the ids of what is added, removed and changed.
async fn told_sets(house: &House, tenant: &TenantId) -> Vec<(String, Value)> {
    let mut told = Vec::new();
    for item in house.control_ledger.read_outbox(0, 1000).await.unwrap() {
        let wire: Value = serde_json::from_str(&item.sealed.wire).unwrap();
        let reason = wire["reason"].as_str().unwrap_or_default();
        if wire["tenant_id"] == tenant.as_str() && reason.starts_with("rule_set_") {
            aegis_ledger::verify::verify_wire(&wire, Some(&house.ring)).unwrap();
            let detail = &wire["receipt"]["detail"];
            let ids =
                |list: &str| detail[list].as_array().unwrap().iter().map(|rule| rule["rule_id"].clone()).collect::<Vec<_>>();
            told.push((reason.to_owned(), json!([ids("added"), ids("removed"), ids("changed"), ids("operators")])));
        }
    }
    told
}

async fn until_told_of(house: &House, tenant: &TenantId, expected: &[(&str, Value)]) {
    let expected: Vec<(String, Value)> = expected.iter().map(|(change, ids)| ((*change).to_owned(), ids.clone())).collect();
    house.until("the tenant has its receipts", async || told_sets(house, tenant).await == expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tenant_has_one_receipt_of_each_set_of_rules_that_a_start_brings_and_a_later_one_of_what_it_starts_with() {
    let mut house = House::build().await;
    let (acme, other) = (house.acme.id.clone(), house.other.id.clone());
    let rule = |id: &str, version: u32| {
        let (rule_id, name, hash) =
            (id.to_owned(), id.to_lowercase(), aegis_canon::sha256_hex(format!("{id} {version}").as_bytes()));
        RuleInSet { rule_id, name, version, mode: RuleMode::Active, hash }
    };
    let first = vec![rule("A", 1), rule("B", 1)];
    let second = vec![rule("A", 2), rule("C", 1)];
    let at_first = ("rule_set_recorded", json!([["A", "B"], [], [], []]));
    for _ in 0..2 {
        house.restart_with_rules(first.clone()).await;
        for tenant in [&acme, &other] {
            until_told_of(&house, tenant, std::slice::from_ref(&at_first)).await;
        }
    }
    // An update, and a tenant that comes behind a change of an operator's.
    house.restart_with_rules(second.clone()).await;
    let changed = ("rule_set_changed", json!([["C"], ["B"], ["A"], []]));
    for tenant in [&acme, &other] {
        until_told_of(&house, tenant, &[at_first.clone(), changed.clone()]).await;
    }
    let version = NewRuleVersion { common: Some((2, RuleMode::Active)), ..rule_version("A 3 log_only").unwrap() };
    let now = house.now();
    let fact = |tenant: &TenantId| {
        let draft = common_rule_change_by_operator(tenant, &version, "control", now);
        let payload = serde_json::to_string(&draft).unwrap();
        Ok(OutboxRow { event_id: draft.event.event_id, tenant_id: tenant.clone(), payload })
    };
    let made = house.store.put_common_rule_version(&version, None, "operator", fact).await.unwrap();
    assert!(matches!(made, RuleChange::Made { .. }), "{made:?}");
    let later = TenantId::new("later").unwrap();
    house.store.create_tenant(&later, "Later").await.unwrap();
    let of_later = ("rule_set_recorded", json!([["A", "C"], [], [], ["A"]]));
    until_told_of(&house, &later, std::slice::from_ref(&of_later)).await;
    // What was before comes back, and is a change too.
    house.restart_with_rules(first).await;
    let back = ("rule_set_changed", json!([["B"], ["C"], ["A"], ["A"]]));
    until_told_of(&house, &later, &[of_later, back.clone()]).await;
    until_told_of(&house, &acme, &[at_first, changed, back]).await;
    let event = house.event(&acme, EventKind::ConfigChanged, "rule_set_changed").await;
    let attributes: Value = serde_json::from_str(event["attributes"].as_str().unwrap()).unwrap();
    assert_eq!((&event["approver"], &attributes["rule_set"]["rules"]), (&json!("program"), &json!(2)));
    let sets = house.store.list_rule_sets(10, 0).await.unwrap();
    assert_eq!(sets.iter().map(|set| (set.revision, set.rules.len())).collect::<Vec<_>>(), [(3, 2), (2, 2), (1, 2)]);
    assert_eq!(sets[0].digest, sets[2].digest);
    for tenant in [&house.acme, &house.other] {
        let listed = house.get("/v1/rules/sets?limit=2", &tenant.auditor).await.expect(200).body;
        let ids = |of: &Value| of.as_array().unwrap().iter().map(|rule| rule["rule_id"].clone()).collect::<Vec<_>>();
        let told: Vec<Value> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|set| json!([set["revision"], ids(&set["added"]), ids(&set["removed"])]))
            .collect();
        assert_eq!(told, [json!([3, ["B"], ["C"]]), json!([2, ["C"], ["B"]])]);
        assert_eq!((&listed[0]["digest"], &listed[0]["rules"]), (&json!(sets[0].digest), &json!(2)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_rules_is_receipted_once_the_ledger_can_be_written_again() {
    let mut house = House::build().await;
    let rule = RuleInSet { rule_id: "A".into(), name: "a".into(), version: 1, mode: RuleMode::Active, hash: "h".into() };
    let recorded = ("rule_set_recorded", json!([["A"], [], [], []]));
    house.restart_with_rules(vec![rule]).await;
    until_told_of(&house, &house.acme.id, std::slice::from_ref(&recorded)).await;
    house.fill_control_ledger().await;
    let later = TenantId::new("later").unwrap();
    house.store.create_tenant(&later, "Later").await.unwrap();
    // Several looks long.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(told_sets(&house, &later).await.is_empty());
    house.ledger_pages.store(0, std::sync::atomic::Ordering::SeqCst);
    until_told_of(&house, &later, &[recorded]).await;
}
