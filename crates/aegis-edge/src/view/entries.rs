//! How an entry of the control feed comes to hold. Registry and policies change together, aside; everything else, containment first of all, at once,
//! whatever is being compiled meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aegis_keys::verify_entry;
use aegis_model::{ContainmentState, EntryKind, SignedEntry, TenantId};
use parking_lot::RwLockUpgradableReadGuard;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::halves::by_halves;
use super::refused::{Applied, RefusedEntry};
use super::registry::Change;
use super::{EdgeView, Held, Tenant, TenantView};

/// Whether policies are compiled anew where such an entry changes: it takes a thread that answers nobody.
pub(crate) const fn is_registered(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::Tool | EntryKind::McpServer | EntryKind::Policies)
}

/// An entry of a registry that is news: which one it is, and what it changes.
#[derive(Debug)]
struct News<'a> {
    index: usize,
    entry: &'a SignedEntry,
    change: Change,
}

impl EdgeView {
    /// Checks an entry and makes it hold. One of a registry has policies compiled.
    pub fn apply(&self, entry: &SignedEntry) -> Result<Applied, RefusedEntry> {
        let mut outcome = Ok(Applied::Known);
        self.apply_all(std::slice::from_ref(entry), Instant::now(), &mut |_, applied| outcome = applied);
        outcome
    }

    /// Checks entries that were read or heard at `came`, and makes them hold, those of a registry in one go: a tenant's policies are compiled once, for
    /// all of them. `done` is told what became of each, by its place among `entries`.
    pub(crate) fn apply_all(
        &self,
        entries: &[SignedEntry],
        came: Instant,
        done: &mut dyn FnMut(usize, Result<Applied, RefusedEntry>),
    ) {
        let mut registered: BTreeMap<&TenantId, Vec<(usize, &SignedEntry)>> = BTreeMap::new();
        for (index, entry) in entries.iter().enumerate() {
            if let Err(error) = verify_entry(&self.ring, entry) {
                done(index, Err(error.into()));
            } else if is_registered(entry.kind) {
                registered.entry(&entry.tenant_id).or_default().push((index, entry));
            } else {
                done(index, self.apply_at_once(entry, came));
            }
        }
        for (tenant, mut entries) in registered {
            // Where not all can be taken, policies come behind the actions that they name.
            entries.sort_by_key(|(_, entry)| entry.kind == EntryKind::Policies);
            self.register(&self.tenant_or_new(tenant), &entries, came, done);
        }
    }

    fn apply_at_once(&self, entry: &SignedEntry, came: Instant) -> Result<Applied, RefusedEntry> {
        let tenant = self.tenant_or_new(&entry.tenant_id);
        let key = (entry.kind, entry.name.clone());
        // Whoever answers reads on.
        let view = tenant.view.upgradable_read();
        let applied = compared(entry, view.revisions.get(&key), came)?;
        if applied == Applied::New {
            let mut view = RwLockUpgradableReadGuard::upgrade(view);
            apply_body(&mut view, entry)?;
            view.revisions.insert(key, Held { revision: entry.revision, since: Instant::now() });
        }
        self.note_applied(entry.revision);
        Ok(applied)
    }

    /// Makes entries of one tenant's registry hold.
    fn register(
        &self,
        tenant: &Tenant,
        entries: &[(usize, &SignedEntry)],
        came: Instant,
        done: &mut dyn FnMut(usize, Result<Applied, RefusedEntry>),
    ) {
        let _registering = tenant.registering.lock();
        let mut news: Vec<News<'_>> = Vec::new();
        let mut newest: HashMap<(EntryKind, &str), Held> = HashMap::new();
        for &(index, entry) in entries {
            let key = (entry.kind, entry.name.as_str());
            let pending = newest.get(&key).copied();
            match compared(entry, pending.or_else(|| tenant.held(entry)).as_ref(), came) {
                // One that comes again beside its first copy is taken again, which changes nothing: whether that one can hold is not known yet.
                Ok(applied) if applied == Applied::New || pending.is_some() => match Change::of(entry) {
                    Some(Ok(change)) => {
                        newest.insert(key, Held { revision: entry.revision, since: Instant::now() });
                        news.push(News { index, entry, change });
                    }
                    Some(Err(refused)) => done(index, Err(refused)),
                    // INVARIANT: every kind that `is_registered` changes a registry.
                    None => done(index, Err(RefusedEntry::body(entry, "it is not of a registry"))),
                },
                known => {
                    if known.is_ok() {
                        self.note_applied(entry.revision);
                    }
                    done(index, known);
                }
            }
        }
        by_halves::<News<'_>, RefusedEntry>(&news, &mut |some| self.put(tenant, some), &mut |some, outcome| match outcome {
            Ok(()) => {
                for one in some {
                    self.note_applied(one.entry.revision);
                    done(one.index, Ok(Applied::New));
                }
            }
            Err(refused) => {
                if let [one] = some {
                    done(one.index, Err(refused));
                }
            }
        });
    }

    /// Puts a tenant's registry with all of `news` in the place of what holds.
    fn put(&self, tenant: &Tenant, news: &[News<'_>]) -> Result<(), RefusedEntry> {
        // INVARIANT: registry and bundle change together or not at all: no call sees an action without its policy schema,
        // and an entry whose bundle does not validate leaves everything as it was. No call waits while it is made, or taken apart.
        let before = Arc::clone(&tenant.view.read().registry);
        let changed = Arc::new(before.with(news.iter().map(|one| &one.change), &self.packs)?);
        let since = Instant::now();
        let mut view = tenant.view.write();
        view.registry = changed;
        for one in news {
            let held = Held { revision: one.entry.revision, since };
            view.revisions.insert((one.entry.kind, one.entry.name.clone()), held);
        }
        drop(view);
        Ok(())
    }
}

impl Tenant {
    fn held(&self, entry: &SignedEntry) -> Option<Held> {
        self.view.read().revisions.get(&(entry.kind, entry.name.clone())).copied()
    }
}

/// Whether an entry that came at `came` is news beside what is held of it. How long it has waited since says nothing.
fn compared(entry: &SignedEntry, held: Option<&Held>, came: Instant) -> Result<Applied, RefusedEntry> {
    let revision = held.map_or(0, |held| held.revision);
    if entry.revision < revision {
        let held_for = held.map_or(Duration::MAX, |held| came.saturating_duration_since(held.since));
        return Err(RefusedEntry::older(entry, revision, held_for));
    }
    Ok(if entry.revision == revision { Applied::Known } else { Applied::New })
}

fn apply_body(view: &mut TenantView, entry: &SignedEntry) -> Result<(), RefusedEntry> {
    match entry.kind {
        // The token says who an agent is; an edge has no use for the record.
        EntryKind::Agent => {}
        // INVARIANT: these are a registry's.
        EntryKind::Tool | EntryKind::McpServer | EntryKind::Policies => {}
        EntryKind::Channel => put(&mut view.channels, entry)?,
        EntryKind::Resource => put(&mut view.resources, entry)?,
        EntryKind::Settings => view.settings = Arc::new(read_body(entry)?.unwrap_or_default()),
        EntryKind::Containment => {
            let Some(state) = read_body::<ContainmentState>(entry)? else {
                return Err(RefusedEntry::body(entry, "a containment state is released, never deleted"));
            };
            if state.tenant_id != entry.tenant_id || state.revision != entry.revision {
                return Err(RefusedEntry::body(entry, "state and envelope disagree"));
            }
            let key = (state.target_type, state.target_id.clone());
            // The key is what the state says, so a name that lies about its target cannot release another.
            let held = view.containment.get(&key).map_or(0, |s| s.revision);
            if held > state.revision {
                // Control names a target's states alike: none of its own comes so.
                return Err(RefusedEntry::older(entry, held, Duration::MAX));
            }
            view.containment.insert(key, state);
        }
    }
    Ok(())
}

fn put<T: DeserializeOwned>(map: &mut HashMap<String, Arc<T>>, entry: &SignedEntry) -> Result<(), RefusedEntry> {
    match read_body(entry)? {
        Some(record) => map.insert(entry.name.clone(), Arc::new(record)),
        None => map.remove(&entry.name),
    };
    Ok(())
}

pub(super) fn read_body<T: DeserializeOwned>(entry: &SignedEntry) -> Result<Option<T>, RefusedEntry> {
    if entry.deleted {
        return Ok(None);
    }
    serde_json::from_value(entry.body.clone()).map(Some).map_err(|error| RefusedEntry::body(entry, &error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_keys::{KeyRing, SigningKey, sign_entry};
    use aegis_model::{ContainmentKind, Hold, TargetType, Timestamp, Verdict};
    use serde_json::{Value, json};

    /// How long a test waits for what must come.
    const DEADLINE: Duration = Duration::from_secs(30);
    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    fn control() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    fn acme() -> TenantId {
        TenantId::new("acme").unwrap()
    }

    fn view() -> Arc<EdgeView> {
        Arc::new(EdgeView::new(KeyRing::new([control().verifying_key()])).unwrap())
    }

    fn signed(kind: EntryKind, name: &str, revision: i64, body: Value) -> SignedEntry {
        sign_entry(&control(), &acme(), kind, name, revision, NOW, Some(body)).unwrap()
    }

    fn tool(name: &str, revision: i64) -> SignedEntry {
        let parameters = json!({"type": "object", "properties": {"amount": {"type": "integer"}}});
        let pay = json!({"action": "pay", "risk": "medium", "mutates_state": true, "approval_required": false,
            "default_decision": "policy", "parameters": parameters});
        signed(EntryKind::Tool, name, revision, json!({"tool": name, "name": name, "actions": [pay]}))
    }

    fn policies(revision: i64, tool: &str) -> SignedEntry {
        let text = format!(
            "@id(\"large\") forbid (principal, action == Action::\"{tool}/pay\", resource) when {{ context.parameters has amount && context.parameters.amount > 10 }};"
        );
        signed(EntryKind::Policies, "policies", revision, json!({"policies": text}))
    }

    fn freeze(revision: i64) -> SignedEntry {
        let hold = Hold {
            hold_id: "h".into(),
            kind: ContainmentKind::Freeze,
            reason: "r".into(),
            by: "ada".into(),
            since: NOW,
            until: None,
        };
        let state = ContainmentState {
            tenant_id: acme(),
            target_type: TargetType::Agent,
            target_id: "a".into(),
            holds: vec![hold],
            revoked: false,
            revision,
            issued_at: NOW,
        };
        signed(EntryKind::Containment, "agent/a", revision, serde_json::to_value(state).unwrap())
    }

    fn has(view: &EdgeView, tool: &str) -> bool {
        view.tenant_or_new(&acme()).view.read().registry.action(tool, "pay").is_some()
    }

    /// What became of each, in their order: taken or not.
    fn applied(view: &EdgeView, entries: &[SignedEntry]) -> Vec<bool> {
        let mut outcomes = vec![None; entries.len()];
        view.apply_all(entries, Instant::now(), &mut |index, outcome| {
            assert!(outcomes[index].replace(outcome.is_ok()).is_none(), "told once");
        });
        outcomes.into_iter().map(Option::unwrap).collect()
    }

    #[test]
    fn a_freeze_holds_at_once_while_policies_are_compiled() {
        let view = view();
        view.apply(&tool("bank", 1)).unwrap();
        let tenant = view.tenant_or_new(&acme());
        // As whoever compiles has it.
        let compiling = tenant.registering.lock();
        let (say, hear) = std::sync::mpsc::channel();
        let freezing = (Arc::clone(&view), say.clone());
        std::thread::spawn(move || freezing.1.send(freezing.0.apply(&freeze(2)).is_ok()));
        assert!(hear.recv_timeout(DEADLINE).unwrap());
        assert_eq!(view.verdict(&acme(), TargetType::Agent, "a", NOW), Verdict::Frozen);
        let registering = (Arc::clone(&view), say);
        std::thread::spawn(move || registering.1.send(registering.0.apply(&tool("desk", 3)).is_ok()));
        assert!(has(&view, "bank") && !has(&view, "desk"), "who answers has what held before");
        drop(compiling);
        assert!(hear.recv_timeout(DEADLINE).unwrap());
        assert!(has(&view, "bank") && has(&view, "desk"));
    }

    #[test]
    fn what_is_registered_together_holds_together_whatever_comes_first() {
        let view = view();
        assert_eq!(applied(&view, &[policies(3, "desk"), tool("bank", 1), tool("desk", 2)]), [true; 3]);
        assert!(has(&view, "bank") && has(&view, "desk"));
        assert_eq!(applied(&view, &[policies(3, "desk"), tool("bank", 1)]), [true; 2], "known");
        // Two states of one tool: the newer holds, in whichever order they come.
        let gone = sign_entry(&control(), &acme(), EntryKind::Tool, "bank", 5, NOW, None).unwrap();
        assert_eq!(applied(&view, &[tool("bank", 4), gone.clone(), tool("bank", 4)]), [true, true, false]);
        assert!(!has(&view, "bank"));
        assert_eq!(applied(&view, &[tool("bank", 4)]), [false]);
    }

    #[test]
    fn an_older_entry_is_as_late_as_it_came_and_not_as_it_was_proved() {
        let view = view();
        let settings = |revision: i64| signed(EntryKind::Settings, "settings", revision, json!({}));
        let came = Instant::now();
        assert_eq!(applied(&view, &[tool("bank", 7), settings(8)]), [true; 2]);
        let held_for = |came: Instant| {
            let mut all = Vec::new();
            view.apply_all(&[tool("bank", 5), settings(6)], came, &mut |_, outcome| match outcome {
                Err(RefusedEntry::Older { held_for, .. }) => all.push(held_for),
                other => assert!(other.is_err(), "it is older: {other:?}"),
            });
            all
        };
        assert_eq!(held_for(came), [Duration::ZERO; 2]);
        let late = held_for(came + DEADLINE * 2);
        assert!(late.len() == 2 && late.iter().all(|held_for| *held_for > DEADLINE), "{late:?}");
    }

    #[test]
    fn one_that_cannot_hold_keeps_none_of_the_others_from_it() {
        let view = view();
        let mut entries: Vec<SignedEntry> = (1..=20).map(|n| tool(&format!("tool-{n}"), n)).collect();
        entries.push(policies(21, "nowhere"));
        entries.push(signed(EntryKind::Tool, "spoiled", 22, json!({"tool": 1})));
        entries.push(SignedEntry { revision: 99, ..tool("forged", 23) });
        entries.push(freeze(24));
        let mut expected = vec![true; 20];
        expected.extend([false, false, false, true]);
        assert_eq!(applied(&view, &entries), expected);
        assert!((1..=20).all(|n| has(&view, &format!("tool-{n}"))) && !has(&view, "spoiled") && !has(&view, "forged"));
        assert_eq!(applied(&view, &[policies(21, "nowhere"), policies(21, "nowhere")]), [false; 2], "neither copy holds");
        // Whose action comes later holds with it, though the same was refused before.
        assert_eq!(applied(&view, &[policies(21, "nowhere"), tool("nowhere", 25), policies(21, "nowhere")]), [true; 3]);
    }
}
