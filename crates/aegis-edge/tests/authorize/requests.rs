//! A request as it was sent: once, dry, or wrong.

use crate::house::*;

#[tokio::test]
async fn the_same_request_is_one_request_and_another_under_its_id_is_refused() {
    let house = House::new().await;
    let token = house.token("a", SourceTrust::TrustedInternalSigned);
    let mut refund = call("crm", "refund", true, "trusted_internal_unsigned");
    refund["request_id"] = json!("req-1");
    refund["nonce"] = json!("n-1");
    let (_, first) = house.send(&token, refund.to_string()).await;
    let (_, again) = house.send(&token, refund.to_string()).await;
    assert_eq!(first["approval"]["approval_id"], again["approval"]["approval_id"]);
    let house = house.restarted().await;
    let (_, restarted) = house.send(&token, refund.to_string()).await;
    assert_eq!(first["approval"]["approval_id"], restarted["approval"]["approval_id"], "{restarted}");
    let mut other = refund.clone();
    other["tool_call"]["parameters"] = json!({"amount": 9});
    let (status, answer) = house.send(&token, other.to_string()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("idempotency_payload_mismatch")));
    other["request_id"] = json!("req-2");
    let (status, answer) = house.send(&token, other.to_string()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("replay_nonce_reused")));
    other["nonce"] = json!("n-2");
    other["timestamp"] = json!(house.clock.now().plus_seconds(-301).to_rfc3339());
    let (status, answer) = house.send(&token, other.to_string()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("replay_timestamp_expired")));
    house.ledger.close().await.unwrap();
    assert_eq!(house.kinds().await.iter().filter(|kind| **kind == EventKind::ReplayAttempt).count(), 3);
}

#[tokio::test]
async fn the_edge_answers_alike_with_routes_before_it_and_without() {
    let house = House::new().await;
    let token = house.token("a", SourceTrust::TrustedInternalSigned);
    let mut dry = call("crm", "update_note", true, "trusted_internal_unsigned");
    dry["dry_run"] = json!(true);
    let (json, dry) = ("application/json", dry.to_string());
    let cases = [
        (token.as_str(), json, dry.clone(), 200),
        (token.as_str(), "Application/Problem+JSON; charset=utf-8", dry.clone(), 200),
        (token.as_str(), "text/plain", dry.clone(), 415),
        (token.as_str(), "application/x-json", dry.clone(), 415),
        ("nobody's", json, dry, 401),
        (token.as_str(), json, "{".to_owned(), 400),
        (token.as_str(), json, "x".repeat((1 << 20) + 1), 413),
    ];
    for (token, kind, body, status) in cases {
        let request = || {
            let request = Request::post(aegis_edge::PATH).header("authorization", format!("Bearer {token}"));
            request.header("content-type", kind).header("x-own", "said").body(Body::from(body.clone())).unwrap()
        };
        let direct = aegis_edge::answer(house.edge.clone(), request(), Alarm::default()).await.map(Body::new);
        let routed = house.router.clone().oneshot(request()).await.unwrap();
        let mut shown = Vec::new();
        for response in [direct, routed] {
            assert_eq!(response.status().as_u16(), status, "{kind}");
            // Of what the request's said, nothing.
            let mut names = response.headers().keys();
            assert!(names.all(|name| ["content-type", "content-length"].contains(&name.as_str())), "{:?}", response.headers());
            let kind = response.headers()["content-type"].clone();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
            // Each decision has its own id.
            if status == 200 {
                answer["decision_id"] = Value::Null;
                answer["receipt"]["receipt_id"] = Value::Null;
            }
            shown.push((kind, answer));
        }
        assert_eq!(shown[0], shown[1]);
    }
}

#[tokio::test]
async fn a_body_that_is_no_object_is_refused_though_it_has_every_field_in_its_place() {
    let house = House::new().await;
    let token = house.token("a", SourceTrust::TrustedInternalSigned);
    let body = call("crm", "update_note", true, "trusted_internal_unsigned");
    let (agent, tool_call, context) = (&body["agent"], &body["tool_call"], &body["context"]);
    let array = json!(["req-1", agent, null, tool_call, context, null, null, "n-1", null, null, false]);
    for body in [array, json!("x"), json!(1), Value::Null] {
        let (status, answer) = house.send(&token, body.to_string()).await;
        assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("malformed_request")), "{body}");
    }
}

#[tokio::test]
async fn an_empty_request_id_is_refused_and_null_is_none() {
    let house = House::new().await;
    let token = house.token("a", SourceTrust::TrustedInternalSigned);
    let mut body = call("crm", "update_note", true, "trusted_internal_unsigned");
    body["request_id"] = json!("");
    for dry_run in [false, true] {
        body["dry_run"] = json!(dry_run);
        let (status, answer) = house.send(&token, body.to_string()).await;
        assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("malformed_request")));
        assert!(answer["error"]["message"].as_str().unwrap().contains("`request_id`"), "{answer}");
    }
    body["dry_run"] = json!(false);
    for request_id in [Value::Null, json!(" ")] {
        body["request_id"] = request_id;
        assert_eq!(house.send(&token, body.to_string()).await.0, 200);
    }
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let house = House::new().await;
    let before = house
        .ask(|b| {
            b["dry_run"] = json!(true);
            b["context"]["source_trust"] = json!("untrusted_external");
            b["nonce"] = json!("n");
            b["request_id"] = json!("q");
        })
        .await;
    assert_eq!((before["decision"].as_str(), before["receipt"]["receipt_hash"].is_null()), (Some("deny"), true));
    assert_eq!(
        house
            .ask(|b| {
                b["nonce"] = json!("n");
                b["request_id"] = json!("q");
            })
            .await["decision"],
        "allow"
    );
    house.ledger.close().await.unwrap();
    let decisions = house.kinds().await.iter().filter(|kind| **kind == EventKind::AuthorizeDecision).count();
    assert_eq!(decisions, 1);
}

#[tokio::test]
async fn a_dry_run_is_a_call_to_the_rate_limit() {
    let house = House::new().await;
    let settings = TenantSettings { agent_rate_per_s: 1, ..TenantSettings::default() };
    house.put(EntryKind::Settings, "settings", &serde_json::to_value(settings).unwrap());
    // Two seconds' worth at once; the clock stands still.
    for _ in 0..2 {
        house.ask(|b| b["dry_run"] = json!(true)).await;
    }
    let token = house.token("a", SourceTrust::TrustedInternalSigned);
    let mut body = call("crm", "update_note", true, "trusted_internal_unsigned");
    for dry_run in [true, false] {
        body["dry_run"] = json!(dry_run);
        assert_eq!(house.send(&token, body.to_string()).await.0, 429);
    }
}

#[tokio::test]
async fn an_environment_that_is_claimed_changes_nothing_and_is_noted_where_it_is_not_the_token_s() {
    let house = House::new().await;
    for claimed in [Value::Null, json!("production"), json!("staging")] {
        assert_eq!(house.ask(|b| b["agent"]["environment"] = claimed).await["decision"], "allow");
    }
    house.ledger.close().await.unwrap();
    let items = house.ledger.recent(Timestamp::from_micros(0), &[], 0, 1000).await.unwrap();
    let decisions = items.iter().filter(|item| item.sealed.kind == EventKind::AuthorizeDecision);
    let noted: Vec<(Value, Value)> = decisions
        .map(|item| {
            let wire: Value = serde_json::from_str(&item.sealed.wire).unwrap();
            (wire["environment"].clone(), wire["attributes"].clone())
        })
        .collect();
    let noted_as = |attributes: Value| (json!("production"), attributes);
    let staging = json!({"claimed_environment": "staging"}).to_string();
    assert_eq!(noted, [noted_as(Value::Null), noted_as(Value::Null), noted_as(json!(staging))]);
}

#[tokio::test]
async fn bad_input_is_a_clear_4xx_and_leaves_no_trace() {
    let house = House::new().await;
    let token = house.token("a", SourceTrust::TrustedInternalSigned);
    let valid = call("crm", "update_note", true, "trusted_internal_unsigned");
    let with = |pointer: &str, value: Value| {
        let mut body = valid.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        body.to_string()
    };
    let nested = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    let bodies = [
        (String::new(), 400),
        ("[]".to_owned(), 400),
        ("{\"a\":1,\"a\":2}".to_owned(), 400),
        (nested, 400),
        (format!("{}{}", "[".repeat(100_000), "]"), 400),
        (with("/tool_call/parameters", json!([1])), 400),
        (with("/tool_call/mutates_state", json!("yes")), 400),
        (with("/context/source_trust", json!(7)), 400),
        (with("/tool_call/tool", json!("")), 400),
        (with("/tool_call/tool", json!("a\u{0}b")), 400),
        (with("/trace/run_id", json!("x".repeat(257))), 400),
        (valid.to_string().replace("\"n\"", "9007199254740993"), 400),
        (valid.to_string().replace("\"n\"", "\"\\ud800\""), 400),
        (format!("{}{}", valid, " ".repeat(1 << 20)), 413),
    ];
    for (body, expected) in bodies {
        let shown: String = body.chars().take(60).collect();
        let (status, answer) = house.send(&token, body).await;
        assert_eq!(status, expected, "{shown}: {answer}");
        assert!(answer["error"]["code"].is_string() && answer["error"]["message"].is_string(), "{shown}: {answer}");
    }
    for bad_token in ["", "x", "a.b.c", &token[..token.len() - 4]] {
        assert_eq!(house.send(bad_token, valid.to_string()).await.0, 401);
    }
    let (status, answer) = house
        .send(&token, {
            let mut b = valid.clone();
            b["canon_version"] = json!("aegis-jcs-9");
            b.to_string()
        })
        .await;
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("canonicalization_skew")));
    let (status, _) = house
        .send(&token, {
            let mut b = valid.clone();
            b["callback"] = json!({"url": "http://169.254.169.254/"});
            b.to_string()
        })
        .await;
    assert_eq!(status, 400);
    house.ledger.close().await.unwrap();
    let kinds = house.kinds().await;
    assert_eq!(kinds.iter().filter(|kind| **kind == EventKind::AuthorizeDecision).count(), 0);
    assert_eq!(kinds.iter().filter(|kind| **kind == EventKind::CanonicalizationSkew).count(), 1);
}

#[tokio::test]
async fn names_are_bounded_in_characters_and_a_resource_in_bytes_too() {
    let house = House::new().await;
    let token = house.token("a", SourceTrust::TrustedInternalSigned);
    for (pointer, text, expected) in [
        ("/tool_call/resource", String::new(), 200),
        ("/tool_call/resource", "x".repeat(1024), 200),
        ("/tool_call/resource", "é".repeat(1024), 200),
        ("/tool_call/resource", "x".repeat(1025), 400),
        ("/tool_call/resource", "\u{1f600}".repeat(513), 400),
        ("/trace/run_id", "é".repeat(256), 200),
        ("/trace/run_id", "é".repeat(257), 400),
        ("/tool_call/action", "é".repeat(256), 200),
        ("/tool_call/action", "é".repeat(257), 400),
    ] {
        let mut body = call("crm", "update_note", true, "trusted_internal_unsigned");
        *body.pointer_mut(pointer).unwrap() = json!(text);
        let (status, answer) = house.send(&token, body.to_string()).await;
        assert_eq!(status, expected, "{pointer} of {} characters: {answer}", text.chars().count());
    }
}
