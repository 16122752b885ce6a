//! What is registered comes back as it went in; facts are written with it or not at all; the feed holds the whole of it.

use aegis_model::{ContainmentKind, EntryKind, TargetType, TenantSettings};
use aegis_store::{AgentKey, RegisteredBy, Role, StoreError};

use crate::fixtures::*;

#[tokio::test]
async fn what_is_put_comes_back_whole() {
    let mut place = Place::new().await;
    let settings = TenantSettings { automatic_freezes_per_hour: 3, ..Default::default() };
    place.store.put_settings(&acme(), &settings, &[]).await.unwrap();
    place.store.put_tool(&acme(), &tool("GitHub"), &[]).await.unwrap();
    place.store.put_mcp_server(&acme(), &mcp_server("Files"), &[]).await.unwrap();
    place.store.put_channel(&acme(), &channel("key"), &[]).await.unwrap();
    place.store.put_resource(&acme(), &resource("acme"), &[]).await.unwrap();
    place.store.put_policies(&acme(), "permit(principal, action, resource);", &[]).await.unwrap();
    place.reopen().await;
    let store = &place.store;
    assert_eq!(store.settings(&acme()).await.unwrap(), settings);
    assert_eq!(store.tool(&acme(), "github").await.unwrap(), Some(tool("GitHub")));
    assert_eq!(store.list_tools(&acme()).await.unwrap(), [tool("GitHub")]);
    assert_eq!(store.mcp_server(&acme(), "files").await.unwrap(), Some(mcp_server("Files")));
    assert_eq!(store.list_mcp_servers(&acme(), 10, 0).await.unwrap(), [mcp_server("Files")]);
    assert_eq!(store.list_channels(&acme(), 10, 0).await.unwrap(), [channel("key")]);
    assert_eq!(store.resource(&acme(), "payments-service").await.unwrap(), Some(resource("acme")));
    assert_eq!(store.list_resources(&acme(), 10, 0).await.unwrap(), [resource("acme")]);
    assert_eq!(store.policies(&acme()).await.unwrap().as_deref(), Some("permit(principal, action, resource);"));
    assert_eq!(store.list_tenants().await.unwrap(), [acme()]);
}

#[tokio::test]
async fn an_action_left_out_of_a_tool_becomes_unknown() {
    let place = Place::new().await;
    place.store.put_tool(&acme(), &tool("GitHub"), &[]).await.unwrap();
    let mut fewer = tool("GitHub");
    fewer.actions.truncate(1);
    place.store.put_tool(&acme(), &fewer, &[]).await.unwrap();
    assert_eq!(place.store.tool(&acme(), "github").await.unwrap(), Some(fewer));
}

#[tokio::test]
async fn a_tool_with_one_action_twice_is_refused_and_leaves_the_old_one_and_no_fact() {
    let place = Place::new().await;
    place.store.put_tool(&acme(), &tool("GitHub"), &[]).await.unwrap();
    let revision = place.store.revision().await.unwrap();
    let mut twice = tool("changed");
    twice.actions.push(twice.actions[0].clone());
    let outcome = place.store.put_tool(&acme(), &twice, &[fact(&acme())]).await;
    assert!(matches!(outcome, Err(StoreError::Taken(_))), "{outcome:?}");
    assert_eq!(place.store.tool(&acme(), "github").await.unwrap(), Some(tool("GitHub")));
    assert!(place.store.pending_outbox(10).await.unwrap().is_empty());
    assert_eq!(place.store.revision().await.unwrap(), revision);
}

#[tokio::test]
async fn an_mcp_server_and_the_actions_of_its_tools_are_registered_together_or_not_at_all() {
    let place = Place::new().await;
    let (server, tool) = (mcp_server("Files"), tool("Files"));
    let facts = [fact(&acme()), fact(&acme())];
    let (of_server, of_tool) = place.store.put_mcp_tools(&acme(), &server, &tool, &facts).await.unwrap();
    assert_ne!(of_server, of_tool);
    assert_eq!(place.store.pending_outbox(10).await.unwrap(), facts);
    let revision = place.store.revision().await.unwrap();
    let (mut changed, mut broken) = (tool.clone(), server.clone());
    changed.actions.truncate(1);
    broken.tools.push(broken.tools[0].clone());
    let outcome = place.store.put_mcp_tools(&acme(), &broken, &changed, &[fact(&acme())]).await;
    assert!(matches!(outcome, Err(StoreError::Taken(_))), "{outcome:?}");
    assert_eq!(place.store.tool(&acme(), "github").await.unwrap(), Some(tool));
    assert_eq!(place.store.mcp_server(&acme(), "files").await.unwrap(), Some(server));
    assert_eq!(place.store.pending_outbox(10).await.unwrap(), facts);
    assert_eq!(place.store.revision().await.unwrap(), revision);
}

#[tokio::test]
async fn a_fact_that_cannot_be_written_takes_its_change_back() {
    let place = Place::new().await;
    let known = fact(&acme());
    let first = place.store.put_channel(&acme(), &channel("key"), std::slice::from_ref(&known)).await.unwrap();
    let outcome = place.store.put_channel(&acme(), &channel("another key"), std::slice::from_ref(&known)).await;
    assert!(matches!(outcome, Err(StoreError::Taken("outbox event id"))), "{outcome:?}");
    assert_eq!(place.store.list_channels(&acme(), 10, 0).await.unwrap(), [channel("key")]);
    assert_eq!(place.store.revision().await.unwrap(), first);
}

#[tokio::test]
async fn facts_wait_in_the_order_in_which_they_were_written() {
    let mut place = Place::new().await;
    let facts: Vec<_> = (0..5).map(|_| fact(&acme())).collect();
    for fact in facts.iter().rev() {
        place.store.put_policies(&acme(), "", std::slice::from_ref(fact)).await.unwrap();
    }
    place.reopen().await;
    let pending = place.store.pending_outbox(10).await.unwrap();
    assert_eq!(pending, facts.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(place.store.pending_outbox(2).await.unwrap(), pending[..2]);
    assert!(place.store.delete_outbox(pending[0].event_id).await.unwrap());
    assert!(!place.store.delete_outbox(pending[0].event_id).await.unwrap());
    assert_eq!(place.store.pending_outbox(10).await.unwrap(), pending[1..]);
}

#[tokio::test]
async fn an_agent_registered_again_keeps_its_id() {
    let place = Place::new().await;
    let (first, created, revision) =
        place.store.upsert_agent(&acme(), &agent("a1", "bot", "Bot"), registered_by("key_1"), &[]).await.unwrap();
    assert!(created);
    let mut again = agent("a2", "bot", "Bot 2");
    again.created_at = START.plus_seconds(5);
    let (second, created, later) = place.store.upsert_agent(&acme(), &again, registered_by("key_2"), &[]).await.unwrap();
    assert!(!created && later > revision);
    assert_eq!((second.id.as_str(), second.name.as_str(), second.created_at), ("a1", "Bot 2", first.created_at));
    assert_eq!(place.store.agent(&acme(), "a1").await.unwrap(), Some(second.clone()));
    assert_eq!(place.store.agent(&acme(), "a2").await.unwrap(), None);
    assert_eq!(place.store.agent_by_key(&acme(), "bot").await.unwrap(), Some(second));
    assert_eq!(place.store.agent_registrar(&acme(), "a1").await.unwrap().as_deref(), Some("key_2"));
    let taken = place.store.upsert_agent(&acme(), &agent("a1", "another bot", "x"), registered_by("key_1"), &[]).await;
    assert!(matches!(taken, Err(StoreError::Taken("agent id"))), "{taken:?}");
}

#[tokio::test]
async fn an_agent_s_keys_stay_known_when_they_are_revoked() {
    let place = Place::new().await;
    let store = &place.store;
    let key = async |role: Role, name: &str| store.create_key(&acme(), role, name, &[], None).await.unwrap().0.key_id;
    let (registrar, admin) = (key(Role::Registrar, "rita").await, key(Role::Admin, "ada").await);
    let (soon, late) = (START.plus_seconds(10), START.plus_seconds(3600));
    let put = async |issuer: &str, token_until| {
        let by = RegisteredBy { registrar: &registrar, issuer, token_until };
        store.upsert_agent(&acme(), &agent("a1", "bot", "Bot"), by, &[]).await.unwrap();
    };
    put(&registrar, soon).await;
    put(&admin, late).await;
    put(&admin, soon).await;
    put("key_of_nobody", soon).await;
    for id in [&registrar, &admin] {
        assert!(store.revoke_key(&acme(), id, &[]).await.unwrap());
    }
    let of = |key_id: &str, name: Option<&str>, tokens_until| AgentKey {
        key_id: key_id.to_owned(),
        name: name.map(str::to_owned),
        tokens_until,
    };
    let mut issuers = vec![
        of(&registrar, Some("rita"), Some(soon)),
        of(&admin, Some("ada"), Some(late)),
        of("key_of_nobody", None, Some(soon)),
    ];
    issuers.sort_by(|one, other| one.key_id.cmp(&other.key_id));
    let mut known = store.agent_keys(&acme(), "a1").await.unwrap();
    assert_eq!(known.remove(0), of(&registrar, Some("rita"), None), "the registrar's first");
    assert_eq!(known, issuers);
    assert!(store.agent_keys(&acme(), "none").await.unwrap().is_empty());
}

#[tokio::test]
async fn the_feed_holds_everything_with_the_revision_it_was_put_at() {
    let place = Place::new().await;
    let store = &place.store;
    store.upsert_agent(&acme(), &agent("a1", "bot", "Bot"), registered_by("key_1"), &[]).await.unwrap();
    store.put_tool(&acme(), &tool("GitHub"), &[]).await.unwrap();
    store.put_mcp_server(&acme(), &mcp_server("Files"), &[]).await.unwrap();
    store.put_channel(&acme(), &channel("key"), &[]).await.unwrap();
    store.put_resource(&acme(), &resource("acme"), &[]).await.unwrap();
    store.put_policies(&acme(), "// own", &[]).await.unwrap();
    let freeze = hold("1", ContainmentKind::Freeze, "ann", None);
    let state = store.add_hold(&acme(), TargetType::Agent, "a1", &freeze, &[]).await.unwrap();
    let feed = store.feed_entries().await.unwrap();
    let names: Vec<_> = feed.iter().map(|entry| (entry.kind, entry.name.as_str())).collect();
    assert_eq!(
        names,
        [
            (EntryKind::Settings, "settings"),
            (EntryKind::Agent, "a1"),
            (EntryKind::Tool, "github"),
            (EntryKind::McpServer, "files"),
            (EntryKind::Channel, "slack"),
            (EntryKind::Resource, "payments-service"),
            (EntryKind::Policies, "policies"),
            (EntryKind::Containment, "agent:a1"),
        ]
    );
    assert!(feed.windows(2).all(|pair| pair[0].revision < pair[1].revision));
    let last = feed.last().unwrap();
    assert_eq!(last.revision, state.revision);
    assert_eq!(serde_json::from_value::<aegis_model::ContainmentState>(last.body.clone()).unwrap(), state);
    assert_eq!(serde_json::from_value::<aegis_model::ToolRecord>(feed[2].body.clone()).unwrap(), tool("GitHub"));
    assert_eq!(serde_json::from_value::<TenantSettings>(feed[0].body.clone()).unwrap(), TenantSettings::default());
}

#[tokio::test]
async fn the_longest_names_are_kept_whatever_their_script() {
    let place = Place::new().await;
    let longest = "\u{1f600}".repeat(256);
    let mut record = tool("GitHub");
    record.tool = longest.clone();
    record.actions[0].action = longest.clone();
    place.store.put_tool(&acme(), &record, &[]).await.unwrap();
    assert_eq!(place.store.tool(&acme(), &longest).await.unwrap().as_ref(), Some(&record));
    record.tool.push('x');
    assert!(matches!(place.store.put_tool(&acme(), &record, &[]).await, Err(StoreError::Invalid { .. })));

    let mut named = resource("acme");
    named.resource = "é".repeat(1024);
    place.store.put_resource(&acme(), &named, &[]).await.unwrap();
    assert_eq!(place.store.resource(&acme(), &named.resource).await.unwrap().as_ref(), Some(&named));
    named.resource.push('x');
    assert!(matches!(place.store.put_resource(&acme(), &named, &[]).await, Err(StoreError::Invalid { .. })));
}
