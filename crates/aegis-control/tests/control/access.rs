//! Who may do what: every endpoint, every role, own and other tenant; and that a refusal changes nothing.

use crate::house::{self, House, Tenant};
use aegis_control::{Access, ROUTES, Route};
use aegis_model::{Alert, EventKind, RuleMode, Severity, new_event_id};
use aegis_store::Role;
use serde_json::{Value, json};

/// Ids of things that exist in one tenant.
#[derive(Debug)]
struct Ids {
    agent: String,
    approval: String,
    decision: String,
    key: String,
    alert: String,
    incident: String,
}

/// The path with the ids of `ids` in it.
fn path_of(route: &Route, ids: &Ids) -> String {
    let path = route.path;
    let id = if path.contains("/agents/") {
        &ids.agent
    } else if path.contains("/approvals/") {
        &ids.approval
    } else if path.contains("/decisions/") || path.contains("/receipts/") {
        &ids.decision
    } else if path.contains("/runs/") {
        "run-1"
    } else if path.contains("/keys/") {
        &ids.key
    } else if path.contains("/alerts/") {
        &ids.alert
    } else if path.contains("/incidents/") {
        &ids.incident
    } else {
        assert!(!path.contains("{id}"), "{path}: nothing is made whose id would stand there");
        ""
    };
    path.replace("{id}", id).replace("{tool}", "deploy").replace("{key}", "files")
}

/// A body the endpoint would take, so that only the credential can be what is wrong.
fn body_of(route: &Route) -> Option<Value> {
    let body = match route.path {
        "/v1/agents/register" => json!({"agent_key": "walker", "name": "w", "environment": "test", "risk_tier": "low"}),
        "/v1/tools" => json!({"tool": "walked", "name": "w", "actions": []}),
        "/v1/mcp/servers" => json!({"key": "walked", "name": "w"}),
        "/v1/mcp/servers/{key}/tools" | "/v1/mcp/servers/{key}/manifest" => json!({"tools": [{"name": "walked"}]}),
        "/v1/channels" => json!({"channel": "walked", "source_trust": "untrusted_external"}),
        "/v1/resources" => json!({"resource": "walked", "visibility": "public"}),
        "/v1/policies" => json!({"policies": ""}),
        "/v1/rules" => json!({"text": "walked"}),
        "/v1/settings" => json!({"approver_group": "walked"}),
        "/v1/webhooks/github/secret" | "/v1/callbacks/secret" => json!({"secret": "0123456789abcdef0123456789abcdef"}),
        "/v1/approvals/{id}/edit" => json!({"tool_call": house::tool_call(json!({"version": "9"}))}),
        "/v1/approvals/{id}/consume" => json!({"claimed_action_hash": "0".repeat(64)}),
        "/v1/decisions/{id}/outcome" => json!({"status": "ok"}),
        "/v1/edges/enroll" => json!({
            "token": "aegis_edge_none", "receipt_key": house::key_text(1), "nkey": format!("U{}", "A".repeat(55)),
        }),
        "/v1/keys" => json!({"role": "auditor", "name": "walked"}),
        _ => json!({"reason": "walked"}),
    };
    matches!(route.method.as_str(), "POST" | "PUT").then_some(body)
}

async fn make(house: &House, tenant: &Tenant) -> Ids {
    house.tool(tenant).await;
    house.post("/v1/mcp/servers", &tenant.registrar, json!({"key": "files", "name": "f"})).await.expect(201);
    let (agent, token) = house.agent(tenant, "bot").await;
    let answer = house.ask(&token, json!({"version": "1"})).await;
    let approval = answer["approval"]["approval_id"].as_str().unwrap().to_owned();
    let decision = answer["decision_id"].as_str().unwrap().to_owned();
    house
        .until("the approval is shown", async || {
            house.get(&format!("/v1/approvals/{approval}"), &tenant.approver).await.status.is_success()
        })
        .await;
    let key = house.get("/v1/keys", &tenant.admin).await.body[0]["key_id"].as_str().unwrap().to_owned();
    let alert = alert(house, tenant, &agent);
    let (incident, _) = house.store.open_or_join_incident(&alert, house.now()).await.unwrap();
    Ids { agent, approval, decision, key, alert: alert.alert_id, incident: incident.incident_id }
}

/// An alert about an agent, as detection tells it.
fn alert(house: &House, tenant: &Tenant, agent: &str) -> Alert {
    Alert {
        alert_id: aegis_canon::sha256_hex(tenant.id.as_str().as_bytes()),
        tenant_id: tenant.id.clone(),
        rule_id: "AEG-1".to_owned(),
        rule_name: "walked".to_owned(),
        rule_version: 1,
        rule_hash: "0".repeat(64),
        severity: Severity::High,
        mode: RuleMode::Active,
        key: serde_json::Map::from_iter([("agent_id".to_owned(), json!(agent))]),
        first_ts: house.now(),
        last_ts: house.now(),
        event_ids: vec![new_event_id()],
        receipt_hashes: vec!["1".repeat(64)],
        fields: serde_json::Map::new(),
        respond: vec!["freeze_agent".to_owned()],
        atlas: vec![],
        owasp: vec![],
        runbook: None,
        detected_at: house.now(),
        found_late: false,
    }
}

/// Everything a stranger could have changed, as text.
async fn state(house: &House, tenant: &Tenant) -> String {
    let mut state = String::new();
    for path in [
        "/v1/agents",
        "/v1/tools",
        "/v1/mcp/servers",
        "/v1/channels",
        "/v1/resources",
        "/v1/policies",
        "/v1/rules",
        "/v1/rules/common",
        "/v1/rules/sets",
        "/v1/settings",
        "/v1/containment",
        "/v1/approvals",
        "/v1/keys",
        "/v1/alerts",
        "/v1/incidents",
    ] {
        state.push_str(&house.get(path, &tenant.admin).await.expect(200).text);
    }
    state
}

const ROLES: [Role; 5] = Role::ALL;

#[tokio::test(flavor = "multi_thread")]
async fn no_endpoint_answers_without_a_credential_or_to_another_role() {
    let house = House::build().await;
    let ids = make(&house, &house.acme).await;
    let (_, agent_token) = house.agent(&house.acme, "stranger").await;
    let before = state(&house, &house.acme).await;
    for route in ROUTES {
        let (path, method) = (path_of(route, &ids), route.method.as_str());
        let body = body_of(route).map(|body| body.to_string());
        let bytes = body.as_deref().map(str::as_bytes);
        let (roles, agents): (&[Role], bool) = match route.access {
            Access::Public => {
                assert_ne!(house.send(method, &path, None, bytes).await.status.as_u16(), 401, "{path}");
                continue;
            }
            Access::Invitation => {
                house.send(method, &path, None, bytes).await.refused(401, "invalid_credential");
                continue;
            }
            Access::Roles(roles) => (roles, false),
            Access::AgentOr(roles) => (roles, true),
        };
        let anonymous = house.send(method, &path, None, bytes).await.refused(401, "unauthenticated");
        assert_eq!(anonymous.headers["www-authenticate"], "Bearer");
        for bad in ["aegis_admin_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "a.b.c", "x"] {
            house.send(method, &path, Some(bad), bytes).await.refused(401, "invalid_credential");
        }
        for role in ROLES.into_iter().filter(|role| !roles.contains(role)) {
            house.send(method, &path, Some(house.acme.key(role)), bytes).await.refused(403, "wrong_role");
        }
        if !agents {
            house.send(method, &path, Some(&agent_token), bytes).await.refused(403, "wrong_role");
        }
    }
    // The edge's own endpoint takes agents alone.
    let call = json!({
        "agent": {"id": "bot"}, "tool_call": house::tool_call(json!({"version": "1"})), "context": {"source_trust": "trusted_internal_unsigned"},
    })
    .to_string();
    let authorize = async |token: Option<&str>| house.send("POST", aegis_edge::PATH, token, Some(call.as_bytes())).await;
    for token in [None, Some("a.b.c")].into_iter().chain(ROLES.map(|role| Some(house.acme.key(role)))) {
        authorize(token).await.refused(401, "invalid_token");
    }
    assert_eq!(state(&house, &house.acme).await, before, "a refused call changed something");
    assert_eq!(authorize(Some(&agent_token)).await.expect(200).body["decision"], "allow");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_an_endpoint_names_get_in() {
    let house = House::build().await;
    let ids = make(&house, &house.acme).await;
    for route in ROUTES {
        let (path, method) = (path_of(route, &ids), route.method.as_str());
        let body = body_of(route).map(|body| body.to_string());
        let roles = match route.access {
            Access::Public | Access::Invitation => continue,
            Access::Roles(roles) | Access::AgentOr(roles) => roles,
        };
        for role in roles {
            // A key of its own: the walk revokes one on its way.
            let (_, key) = house.store.create_key(&house.acme.id, *role, "walker", &["*".to_owned()], None).await.unwrap();
            let reply = house.send(method, &path, Some(key.expose()), body.as_deref().map(str::as_bytes)).await;
            assert_ne!(reply.status.as_u16(), 401, "{method} {path} as {role}: {}", reply.text);
            assert_ne!(reply.code(), "wrong_role", "{method} {path} as {role}");
            assert!(reply.status.as_u16() < 500, "{method} {path} as {role}: {}", reply.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_s_things_do_not_exist() {
    let house = House::build().await;
    let ids = make(&house, &house.acme).await;
    let (_, other_agent) = house.agent(&house.other, "bot").await;
    // To their own tenant they do, so that what a stranger is told says something.
    for route in ROUTES.iter().filter(|route| route.path.contains('{') && route.method.as_str() == "GET") {
        let path = path_of(route, &ids);
        let (Access::Roles(roles) | Access::AgentOr(roles)) = route.access else { panic!("{path} is for everybody") };
        let own = house.acme.key(roles[0]);
        house.until(&format!("{path} is there"), async || house.get(&path, own).await.status.is_success()).await;
    }
    // Old enough that nobody waits for the ids to arrive.
    house.clock.advance_seconds(60);
    let before = state(&house, &house.acme).await;
    for route in ROUTES.iter().filter(|route| route.path.contains('{')) {
        let (path, method) = (path_of(route, &ids), route.method.as_str());
        let body = body_of(route).map(|body| body.to_string());
        let bytes = body.as_deref().map(str::as_bytes);
        let (roles, agents): (&[Role], bool) = match route.access {
            Access::Public | Access::Invitation => continue,
            Access::Roles(roles) => (roles, false),
            Access::AgentOr(roles) => (roles, true),
        };
        for role in roles {
            let reply = house.send(method, &path, Some(house.other.key(*role)), bytes).await;
            assert_eq!(reply.status.as_u16(), 404, "{method} {path} as {role}: {}", reply.text);
        }
        if agents {
            let reply = house.send(method, &path, Some(&other_agent), bytes).await;
            assert_eq!(reply.status.as_u16(), 404, "{method} {path} as agent: {}", reply.text);
        }
    }
    assert_eq!(state(&house, &house.acme).await, before, "another tenant changed something");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_list_shows_a_row_of_another_tenant() {
    let house = House::build().await;
    let ids = make(&house, &house.acme).await;
    let registrar = house.acme.registrar.as_str();
    house.post("/v1/channels", registrar, json!({"channel": "inbox", "source_trust": "unknown"})).await.expect(201);
    house.post("/v1/resources", registrar, json!({"resource": "ledger-book", "visibility": "private"})).await.expect(201);
    house.post("/v1/rules", &house.acme.admin, json!({"text": "OWN-7 1 log_only"})).await.expect(201);
    house.put("/v1/policies", &house.acme.admin, json!({"policies": "// house rules"})).await.expect(200);
    house.put("/v1/settings", &house.acme.admin, json!({"approver_group": "treasury"})).await.expect(200);
    let freeze = format!("/v1/agents/{}/freeze", ids.agent);
    house.post(&freeze, &house.acme.analyst, json!({"reason": "walked"})).await.expect(200);
    let names = ["acme", "deploy", "\"files\"", "inbox", "ledger-book", "OWN-7", "house rules", "treasury"];
    let made: Vec<&str> = names
        .into_iter()
        .chain([&ids.agent, &ids.approval, &ids.decision, &ids.key, &ids.alert, &ids.incident].map(String::as_str))
        .collect();
    let shown = |text: &str| made.iter().copied().filter(|made| text.contains(made)).map(str::to_owned).collect::<Vec<String>>();
    // Of the program that runs here, of which each tenant sees the same; and counts.
    let of_no_tenant = ["/v1/edges", "/v1/rules/common", "/v1/rules/sets", "/v1/rules/waiting", "/v1/soc/summary"];
    for route in ROUTES.iter().filter(|route| !route.path.contains('{') && route.method.as_str() == "GET") {
        let Access::Roles(roles) = route.access else { continue };
        let path = route.path;
        if !of_no_tenant.contains(&path) {
            let own = house.acme.key(roles[0]);
            house
                .until(&format!("{path} shows its own"), async || !shown(&house.get(path, own).await.expect(200).text).is_empty())
                .await;
        }
        for role in roles {
            let text = house.get(path, house.other.key(*role)).await.expect(200).text;
            assert_eq!(shown(&text), Vec::<String>::new(), "{path} as {role} of another tenant");
        }
    }
    let summary = async |tenant: &Tenant| house.get("/v1/soc/summary", &tenant.auditor).await.expect(200).body;
    let count = |summary: &Value| {
        ["/incidents/open", "/alerts_24h", "/approvals_pending", "/contained/agents"].map(|count| summary.pointer(count).cloned())
    };
    assert_eq!(count(&summary(&house.acme).await), [1, 1, 1, 1].map(|count| Some(json!(count))));
    assert_eq!(count(&summary(&house.other).await), [0, 0, 0, 0].map(|count| Some(json!(count))));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tenant_header_must_be_the_credential_s() {
    let house = House::build().await;
    let ask = async |tenant: &str| {
        let request = axum::http::Request::get("/v1/agents")
            .header("authorization", format!("Bearer {}", house.acme.admin))
            .header("x-aegis-tenant-id", tenant)
            .body(axum::body::Body::empty())
            .unwrap();
        house.run(request).await
    };
    ask("acme").await.expect(200);
    ask("other").await.refused(401, "tenant_mismatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_routes_and_methods_answer_in_json() {
    let house = House::build().await;
    house.get("/v1/nothing", &house.acme.admin).await.refused(404, "unknown_route");
    house.send("DELETE", "/v1/agents", Some(&house.acme.admin), None).await.refused(405, "method_not_allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_clear_answer_and_changes_nothing() {
    let house = House::build().await;
    make(&house, &house.acme).await;
    let before = state(&house, &house.acme).await;
    let nested = format!(r#"{{"tool":"x","name":"x","actions":[],"deep":{}1{}}}"#, "[".repeat(129), "]".repeat(129));
    let oversized = format!(r#"{{"tool":"x","name":"{}","actions":[]}}"#, "a".repeat(1 << 20));
    let long = format!(r#"{{"tool":"{}","name":"x","actions":[]}}"#, "a".repeat(257));
    let table: [(&[u8], u16, &str); 13] = [
        (b"", 400, "syntax"),
        (b"{", 400, "syntax"),
        (b"{} {}", 400, "trailing_data"),
        (b"[]", 400, "invalid_body"),
        (b"null", 400, "invalid_body"),
        (nested.as_bytes(), 400, "depth_exceeded"),
        (oversized.as_bytes(), 413, "body_too_large"),
        (br#"{"tool":"x","tool":"y","name":"x","actions":[]}"#, 400, "duplicate_key"),
        (br#"{"tool":7,"name":"x","actions":[]}"#, 400, "invalid_body"),
        (br#"{"tool":"x","name":"x","actions":{}}"#, 400, "invalid_body"),
        (br#"{"tool":"x\u0000","name":"x","actions":[]}"#, 400, "invalid_field"),
        (long.as_bytes(), 400, "invalid_field"),
        (b"{\"tool\":\"\xff\",\"name\":\"x\",\"actions\":[]}", 400, "invalid_utf8"),
    ];
    for (body, status, code) in table {
        house.send("POST", "/v1/tools", Some(&house.acme.registrar), Some(body)).await.refused(status, code);
    }
    let form = axum::http::Request::post("/v1/tools")
        .header("authorization", format!("Bearer {}", house.acme.registrar))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(axum::body::Body::from("tool=x"))
        .unwrap();
    house.run(form).await.refused(415, "unsupported_media_type");
    for (path, code) in
        [("/v1/agents?limit=0", "invalid_query"), ("/v1/agents?offset=x", "invalid_query"), ("/v1/agents/a%00b", "invalid_field")]
    {
        house.get(path, &house.acme.admin).await.refused(400, code);
    }
    assert_eq!(state(&house, &house.acme).await, before, "bad input changed something");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_or_policy_that_does_not_load_changes_nothing_and_says_where() {
    let house = House::build().await;
    house.tool(&house.acme).await;
    let before = state(&house, &house.acme).await;
    let bad = "@id(\"broken\")\npermit (principal, action, resource) when { context.nothing_of_that_name };";
    let reply = house.put("/v1/policies", &house.acme.admin, json!({"policies": bad})).await.refused(422, "invalid_policy");
    assert!(reply.text.contains("tenant:2:"), "no line and column in {}", reply.text);
    assert_eq!(state(&house, &house.acme).await, before);

    let reads_version = "@id(\"no-beta\")\n@reason(\"no beta\")\nforbid (principal, action == Action::\"deploy/rollout\", resource)\n\
                         when { context.parameters has version && context.parameters.version == \"beta\" };";
    house.put("/v1/policies", &house.acme.admin, json!({"policies": reads_version})).await.expect(200);
    let loaded = state(&house, &house.acme).await;
    // The policy names an argument that the tool would no longer have.
    let without = json!({"tool": "deploy", "name": "Deployments", "actions": [{"action": "rollout", "risk": "low", "mutates_state": true}]});
    house.post("/v1/tools", &house.acme.registrar, without).await.refused(422, "invalid_policy");
    assert_eq!(state(&house, &house.acme).await, loaded);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_made_without_its_receipt_and_none_outlives_its_revocation() {
    let house = House::build().await;
    let body = |name: &str| json!({"role": "auditor", "name": name, "value": format!("{name}-0123456789abcdef0123456789abcdef")});
    let made = house.post("/v1/keys", &house.acme.admin, body("first")).await.expect(201).body;
    let receipt = house.event(&house.acme.id, EventKind::ConfigChanged, "key_created").await;
    assert_eq!(receipt["receipt"]["detail"]["key"]["key_id"], made["key_id"]);
    assert!(house.store.pending_outbox(10).await.unwrap().is_empty());
    house.post("/v1/keys", &house.acme.admin, body("first")).await.refused(409, "taken");

    house.fill_control_ledger().await;
    house.post("/v1/keys", &house.acme.admin, body("second")).await.refused(503, "receipt_unavailable");
    assert!(house.store.list_keys(&house.acme.id).await.unwrap().iter().all(|key| key.name != "second"));

    // Taking a key away does not wait for the ledger; what it was is kept until it can be sealed, also by another process.
    let id = made["key_id"].as_str().unwrap();
    let path = format!("/v1/keys/{id}");
    house.send("DELETE", &path, Some(&house.acme.admin), None).await.refused(503, "receipt_pending");
    house.get("/v1/receipts", made["key"].as_str().unwrap()).await.refused(401, "invalid_credential");
    let left = house.store.pending_outbox(100).await.unwrap();
    assert!(left.iter().any(|fact| fact.payload.contains("key_revoked") && fact.payload.contains(id)), "{left:?}");
    house.send("DELETE", &path, Some(&house.acme.admin), None).await.refused(404, "not_found");
    house.ledger_pages.store(0, std::sync::atomic::Ordering::SeqCst);
    house.event(&house.acme.id, EventKind::ConfigChanged, "key_revoked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_never_come_out_again() {
    let house = House::build().await;
    let secret = "hush-hush-0123456789abcdef0123456789";
    house.put("/v1/webhooks/github/secret", &house.acme.admin, json!({"secret": secret})).await.expect(200);
    for body in [json!({"secret": secret}), json!({"secret": "0".repeat(32)})] {
        let reply = house.put("/v1/callbacks/secret", &house.acme.admin, body).await.expect(200);
        assert!(!reply.text.contains(secret));
    }
    for bad in
        [json!({"secret": [secret]}), json!({"secret": secret, "overlap_s": secret}), json!({"secret": secret, "overlap_s": -1})]
    {
        let reply = house.put("/v1/callbacks/secret", &house.acme.admin, bad).await.expect(400);
        assert!(!reply.text.contains(secret));
    }
    house.put("/v1/callbacks/secret", &house.acme.admin, json!({"secret": "x".repeat(31)})).await.refused(400, "invalid_field");
    let made =
        house.post("/v1/keys", &house.acme.admin, json!({"role": "auditor", "name": "new", "groups": []})).await.expect(201);
    let key = made.body["key"].as_str().unwrap().to_owned();
    house.get("/v1/receipts", &key).await.expect(200);
    house.event(&house.acme.id, EventKind::ConfigChanged, "key_created").await;
    house.event(&house.acme.id, EventKind::ConfigChanged, "webhook_secret_changed").await;
    let changed = house.event(&house.acme.id, EventKind::ConfigChanged, "callback_secret_changed").await;
    assert_eq!(changed["receipt"]["phase"], json!("config"));
    let (_, token) = house.agent(&house.acme, "bot").await;
    let exported = house.get("/v1/receipts/export", &house.acme.auditor).await.expect(200).text;
    let listed = house.get("/v1/keys", &house.acme.admin).await.expect(200).text;
    for text in [exported, listed] {
        assert!(!text.is_empty() && !text.contains(secret) && !text.contains(&key) && !text.contains(&token));
    }
    let id = made.body["key_id"].as_str().unwrap();
    house.send("DELETE", &format!("/v1/keys/{id}"), Some(&house.acme.admin), None).await.expect(200);
    house.get("/v1/receipts", &key).await.refused(401, "invalid_credential");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_may_name_can_be_registered() {
    let house = House::build().await;
    let registrar = house.acme.registrar.as_str();
    let resource = |name: &str| json!({"resource": name, "visibility": "public"});
    for name in ["x".repeat(1024), "é".repeat(1024)] {
        house.post("/v1/resources", registrar, resource(&name)).await.expect(201);
    }
    for name in [String::new(), "x".repeat(1025), "\u{1f600}".repeat(513)] {
        house.post("/v1/resources", registrar, resource(&name)).await.refused(400, "invalid_field");
    }
    let tool = |name: &str| {
        let action = json!({"action": name, "risk": "low", "mutates_state": false});
        json!({"tool": name, "name": name, "default_risk": "low", "actions": [action]})
    };
    house.post("/v1/tools", registrar, tool(&"é".repeat(256))).await.expect(201);
    house.post("/v1/tools", registrar, tool(&"é".repeat(257))).await.refused(400, "invalid_field");
    house.agent(&house.acme, &"é".repeat(256)).await;
}
