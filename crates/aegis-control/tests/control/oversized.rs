//! What is too large for edges to be told of: it is refused, and holds up nobody else's.

use std::sync::Arc;

use aegis_bus::feed::{self, FeedRequest};
use aegis_bus::{Bucket, Bus, MAX_PAYLOAD};
use aegis_control::{Control, ControlConfig, NoLocalEdge};
use aegis_model::{ContainmentKind, Hold, TargetType, ToolRecord};
use serde_json::{Value, json};

use crate::feed::entries;
use crate::house::House;

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_bus_refuses_holds_up_none_behind_it() {
    let house = House::build().await;
    let (agent, _) = house.agent(&house.acme, "bot").await;
    house.control.stop().await;
    // As an earlier program took it, of another tenant; the freeze behind it was never published.
    let tool: ToolRecord = serde_json::from_value(json!({
        "tool": "huge", "name": "Huge",
        "actions": [{"action": "x", "risk": "low", "mutates_state": false, "parameters": {"description": "x".repeat(MAX_PAYLOAD)}}],
    }))
    .unwrap();
    house.store.put_tool(&house.other.id, &tool, &[]).await.unwrap();
    let hold = Hold {
        hold_id: "hold-1".to_owned(),
        kind: ContainmentKind::Freeze,
        reason: "in the outage".to_owned(),
        by: "an analyst".to_owned(),
        since: house.now(),
        until: None,
    };
    house.store.add_hold(&house.acme.id, TargetType::Agent, &agent, &hold, &[]).await.unwrap();
    assert!(entries(&house, Bucket::Containment).await.is_empty());

    let bus: Arc<dyn Bus> = house.bus.clone();
    let again = Control::start(
        ControlConfig::default(),
        house.store.clone(),
        house.control_ledger.clone(),
        bus,
        house.control_key.clone(),
        house.ring.clone(),
        house.clock.clone(),
        Arc::new(NoLocalEdge),
    )
    .await
    .unwrap();
    let held = entries(&house, Bucket::Containment).await;
    assert_eq!(held.len(), 1, "the freeze waits for another tenant's tool");
    assert_eq!((&held[0].body["target_id"], &held[0].body["holds"][0]["hold_id"]), (&json!(agent), &json!("hold-1")));
    assert!(entries(&house, Bucket::Control).await.iter().all(|entry| entry.name != "huge"));
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_edge_could_be_told_of_is_refused_and_what_it_can_reaches_the_page() {
    let house = House::build().await;
    let (admin, registrar) = (&house.acme.admin, &house.acme.registrar);
    let page = async |after: &str| {
        let request =
            FeedRequest { bucket: "control".to_owned(), filter: format!("{}.>", house.acme.id), after: after.to_owned() };
        feed::page(&*house.bus, &request).await.unwrap()
    };
    let tool = |parameters: Value| {
        json!({"tool": "large", "name": "Large",
               "actions": [{"action": "x", "risk": "low", "mutates_state": false, "parameters": parameters}]})
    };
    // The bodies are all below the limit of a body.
    let large = |bytes: usize| json!({"description": "x".repeat(bytes)});
    let nested =
        |levels: usize| serde_json::from_str::<Value>(&format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels))).unwrap();
    let urls: Vec<String> = (0..1000).map(|n| format!("https://example.com/{n:04}{}", "a".repeat(1017))).collect();
    let before = page("").await;
    let refused = [
        ("POST", "/v1/tools", registrar, tool(large(1_044_000))),
        ("POST", "/v1/tools", registrar, tool(nested(125))),
        ("POST", "/v1/tools", registrar, tool(nested(124))),
        (
            "POST",
            "/v1/mcp/servers",
            registrar,
            json!({"key": "large", "name": "L", "tools": [{"name": "x", "inputSchema": large(1_044_000)}]}),
        ),
        ("PUT", "/v1/policies", admin, json!({"policies": format!("// {}", "x".repeat(1_044_000))})),
        ("PUT", "/v1/settings", admin, json!({"callback_allow_list": urls})),
    ];
    for (method, path, key, body) in refused {
        let reply = if method == "PUT" { house.put(path, key, body).await } else { house.post(path, key, body).await };
        reply.refused(422, "record_too_large");
    }
    house.get("/v1/tools/large", admin).await.refused(404, "not_found");
    house.get("/v1/mcp/servers/large", admin).await.refused(404, "not_found");
    assert_eq!(page("").await, before);
    // A revision has few digits yet: what is taken now is far enough below the bound to be told later too.
    house.post("/v1/tools", registrar, tool(large(1_042_000))).await.expect(201);
    let mut pages = vec![page("").await];
    while pages[pages.len() - 1].more {
        let after = pages[pages.len() - 1].entries.last().unwrap().0.clone();
        pages.push(page(&after).await);
    }
    for page in &pages {
        assert_eq!(page.refused, None);
        page.write().unwrap();
    }
    let is_there = pages.iter().flat_map(|page| &page.entries).any(|(key, ..)| key.contains(".tool."));
    assert!(is_there, "the tool is in no page");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_holds_are_taken_as_edges_can_be_told_of() {
    let house = House::build().await;
    let (agent, _) = house.agent(&house.acme, "bot").await;
    let freeze = format!("/v1/agents/{agent}/freeze");
    // The longest reason, of the longest characters.
    let reason = "\u{1f600}".repeat(2048);
    let mut taken = 0;
    loop {
        let reply = house.post(&freeze, &house.acme.analyst, json!({"reason": reason})).await;
        if reply.status != 200 {
            reply.refused(409, "limit_reached");
            break;
        }
        taken += 1;
    }
    let held = entries(&house, Bucket::Containment).await;
    assert!(taken > 50, "{taken}");
    assert_eq!(held[0].body["holds"].as_array().unwrap().len(), taken, "the last freeze reached no edge");
    let request = FeedRequest { bucket: "containment".to_owned(), filter: format!("{}.>", house.acme.id), after: String::new() };
    assert_eq!(feed::page(&*house.bus, &request).await.unwrap().refused, None);
}
