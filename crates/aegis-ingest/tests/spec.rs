//! `docs/specs/event.md` says what the code does: its columns, its kinds, its vector.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use aegis_ingest::github;
use aegis_model::{EventKind, Sealer, SecurityEvent, SystemClock, TenantId, external_event_id};
use serde_json::{Value, json};

const SPEC: &str = include_str!("../../../docs/specs/event.md");

/// The rows of the tables of a section, each as its cells.
fn rows(section: &str) -> Vec<Vec<String>> {
    let start = SPEC.find(&format!("\n## {section}")).expect("the section is there");
    let body = &SPEC[start + 1..];
    let body = &body[..body.find("\n## ").unwrap_or(body.len())];
    let rows = body.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The names in backquotes of a cell.
fn names(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_column_of_the_type_is_in_the_table_and_every_row_is_a_column() {
    let event = SecurityEvent::new(
        TenantId::new("t").unwrap(),
        "e",
        "edge",
        EventKind::AuthorizeDecision,
        aegis_model::Clock::now(&SystemClock),
    );
    let mut documented = BTreeSet::new();
    for row in &rows("1. Columns")[1..] {
        for name in names(&row[0]) {
            assert!(documented.insert(name.clone()), "{name} stands twice");
            let mut wire = serde_json::to_value(&event).unwrap();
            let candidates = [
                json!("0193a5c2-7b1e-7d3a-9c41-2f6d0c9b8e11"),
                json!("2026-11-22T10:00:00.000000Z"),
                json!("authorize_decision"),
                json!("deny"),
                json!("low"),
                json!("internal"),
                json!("unknown"),
                json!(7),
                json!(true),
                json!(["p"]),
                json!("text"),
            ];
            let taken = candidates.into_iter().any(|value| {
                wire[&name] = value.clone();
                let parsed = serde_json::from_value::<SecurityEvent>(wire.clone());
                parsed.is_ok_and(|parsed| serde_json::to_value(parsed).unwrap().get(&name) == Some(&value))
            });
            assert!(taken, "{name} is not a column of the type");
        }
    }
    // The type's own list of its fields, from its Debug form: `name: value` at the first level.
    let debug = format!("{event:#?}");
    let fields: BTreeSet<String> = debug
        .lines()
        .filter(|l| l.starts_with("    ") && !l.starts_with("     "))
        .filter_map(|l| Some(l.trim().split_once(':')?.0.to_owned()))
        .collect();
    assert_eq!(fields, documented);
}

#[test]
fn every_row_of_the_kinds_is_a_kind() {
    let kinds: Vec<String> = rows("2. Kinds")[1..].iter().flat_map(|row| names(&row[0])).collect();
    for kind in &kinds {
        assert_eq!(kind.parse::<EventKind>().unwrap().as_str(), kind);
    }
    // A word that is none names all that are.
    let all = "none of these".parse::<EventKind>().unwrap_err().to_string();
    assert_eq!(all.matches('"').count() / 2, kinds.len(), "{all}");
}

#[test]
fn each_kind_is_named_once_with_those_who_seal_it() {
    let start = SPEC.find("**Who seals which kind.**").expect("it is there");
    let list = &SPEC[start..];
    let list = &list[list.find("\n- ").unwrap() + 1..list.find("\n\nAn event in another's lane").unwrap()];
    let mut named = BTreeSet::new();
    for item in list.split("\n- ") {
        let (who, kinds) = item.trim_start_matches("- ").split_once(": ").unwrap();
        let sealer = match who.split([' ', ',']).nth(1).unwrap() {
            "edges" => Sealer::Edges,
            "control" => Sealer::Control,
            "both" => Sealer::Both,
            "nobody" => Sealer::Nobody,
            other => panic!("nobody is called {other}"),
        };
        for kind in names(kinds) {
            assert_eq!(kind.parse::<EventKind>().unwrap().sealer(), sealer, "{kind}");
            assert!(named.insert(kind.clone()), "{kind} stands twice");
        }
    }
    assert_eq!(named.len(), EventKind::WORDS.len());
}

#[test]
fn the_vector_of_derived_ids_holds() {
    let row = rows("6. Ids").pop().unwrap();
    let given = names(&row[0]);
    let tenant = TenantId::new(&given[0]).unwrap();
    assert_eq!(given[1], github::ADAPTER);
    assert_eq!(names(&row[1]), [external_event_id(&tenant, &given[1], &given[2]).to_string()]);
}

#[test]
fn the_attributes_are_the_documented_ones() {
    let tenant = TenantId::new("t").unwrap();
    let delivery = github::Delivery {
        tenant_id: &tenant,
        ingest_id: "i",
        event: "issues",
        delivery_id: "d",
        received_at: aegis_model::Clock::now(&SystemClock),
    };
    let payload = json!({
        "action": "opened", "ref": "refs/heads/main",
        "issue": {"number": 1, "title": "t", "author_association": "NONE"},
        "repository": {"full_name": "o/r", "private": false, "default_branch": "main"}
    });
    let attributes: Value = serde_json::from_str(&github::map(&delivery, &payload).attributes.unwrap()).unwrap();
    let row = rows("9. GitHub").into_iter().find(|row| row[0] == "`attributes`").unwrap();
    let documented: BTreeSet<String> = names(&row[1]).into_iter().collect();
    assert_eq!(attributes.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>(), documented);
}
