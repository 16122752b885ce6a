//! What an edge believes: registry, policies, settings and containment, each entry signed by control and monotonic.
//! An entry that is badly signed, older than what is held, or unreadable changes nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use aegis_keys::{KeyRing, Scope, verify_entry, verify_notice};
use aegis_model::{
    ActionRecord, Beat, ChannelRecord, ContainmentState, DataAccess, DefaultDecision, Destination, EntryKind, McpServerRecord,
    ResourceRecord, RiskLevel, RunLabel, SignedEntry, SourceTrust, TargetType, TenantId, TenantSettings, Timestamp, ToolCall,
    ToolRecord, Verdict,
};
use aegis_policy::{PolicyBundle, PolicySource, default_pack, github_pack};
use parking_lot::{Mutex, RwLock, RwLockUpgradableReadGuard};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::digest::{Key, run_key};
use crate::told::Told;

/// How many applied revisions are remembered for those who wait for one.
const REMEMBERED_REVISIONS: usize = 8192;

/// A feed that is no older is no copy, seconds.
const FRESH_S: i64 = 30;

/// The prefix of a tool name that is an MCP server.
pub(crate) const MCP_PREFIX: &str = "mcp:";

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It holds now.
    New,
    /// This very revision held already.
    Known,
}

/// Why an entry was refused.
#[derive(Debug, thiserror::Error)]
pub enum RefusedEntry {
    /// Not signed by a pinned control key.
    #[error("signature: {0}")]
    Signature(#[from] aegis_keys::KeyError),
    /// Older than what is held, and has been for so long.
    #[error("revision {offered} of {kind} `{name}` is older than {held}, which is held")]
    Older { kind: EntryKind, name: String, offered: i64, held: i64, held_for: Duration },
    /// Not what its kind says.
    #[error("body of {kind} `{name}`: {reason}")]
    Body { kind: EntryKind, name: String, reason: String },
    /// The tenant's policies do not validate; the running ones stay.
    #[error("policies: {0}")]
    Policies(String),
}

/// A label of a run that was taken.
#[derive(Debug)]
pub(crate) struct TakenLabel {
    pub(crate) tenant: TenantId,
    pub(crate) run: Key,
    pub(crate) trust: SourceTrust,
    pub(crate) ends: Timestamp,
}

/// Which revision of an entry holds, and since when here.
#[derive(Clone, Copy, Debug)]
struct Held {
    revision: i64,
    since: Instant,
}

/// One tenant's part of the view.
#[derive(Clone, Debug, Default)]
struct TenantView {
    tools: HashMap<String, ToolRecord>,
    actions: HashMap<String, HashMap<String, Arc<ActionRecord>>>,
    mcp_servers: HashMap<String, Arc<McpServerRecord>>,
    channels: HashMap<String, Arc<ChannelRecord>>,
    resources: HashMap<String, Arc<ResourceRecord>>,
    settings: Arc<TenantSettings>,
    policy_text: Option<String>,
    bundle: Option<Arc<PolicyBundle>>,
    containment: HashMap<(TargetType, String), ContainmentState>,
    revisions: HashMap<(EntryKind, String), Held>,
}

/// The facts of one call, looked up at once so that they belong together.
#[derive(Clone, Debug)]
pub(crate) struct CallFacts {
    pub(crate) action: Option<Arc<ActionRecord>>,
    pub(crate) mcp_server: Option<Arc<McpServerRecord>>,
    pub(crate) resource: Option<Arc<ResourceRecord>>,
    pub(crate) channel: Option<Arc<ChannelRecord>>,
    pub(crate) bundle: Arc<PolicyBundle>,
    pub(crate) settings: Arc<TenantSettings>,
    /// What containment says of the agent.
    pub(crate) verdict: Verdict,
}

/// The whole view of one edge.
#[derive(Debug)]
pub struct EdgeView {
    ring: KeyRing,
    base_bundle: Arc<PolicyBundle>,
    packs: Vec<PolicySource>,
    tenants: RwLock<HashMap<TenantId, Arc<RwLock<TenantView>>>>,
    applied: Mutex<(HashSet<i64>, VecDeque<i64>)>,
    changed: Notify,
    /// When the feed was last read whole, microseconds; `i64::MIN` before.
    confirmed_us: AtomicI64,
    /// Control's newest sign of life.
    beat: Mutex<Option<Beat>>,
    /// When it was, microseconds; `i64::MIN` before.
    beat_us: AtomicI64,
    /// Whether the feed is only as young as that.
    needs_beat: bool,
    /// What control says that other edges made of runs.
    pub(crate) told: Told,
    /// Until the feed was read once: what is held is an earlier start's copy.
    is_copy: AtomicBool,
}

impl EdgeView {
    /// An empty view that believes keys of `ring`, with the shipped policy packs.
    pub fn new(ring: KeyRing) -> Result<Self, aegis_policy::PolicyError> {
        Self::with_packs(ring, vec![default_pack(), github_pack()])
    }

    /// An empty view with `packs` as the policies every tenant has. Packs that do not validate are an error: no start without policy.
    pub fn with_packs(ring: KeyRing, packs: Vec<PolicySource>) -> Result<Self, aegis_policy::PolicyError> {
        let base_bundle = Arc::new(PolicyBundle::load(&packs, &[])?);
        Ok(Self {
            ring,
            base_bundle,
            packs,
            tenants: RwLock::default(),
            applied: Mutex::default(),
            changed: Notify::new(),
            confirmed_us: AtomicI64::new(i64::MIN),
            beat: Mutex::default(),
            beat_us: AtomicI64::new(i64::MIN),
            needs_beat: false,
            told: Told::default(),
            is_copy: AtomicBool::new(false),
        })
    }

    /// The same for a control plane in another process: the feed is only as young as its last sign of life.
    #[must_use]
    pub fn far_from_control(mut self) -> Self {
        self.needs_beat = true;
        self
    }

    /// Takes a sign of life of control; false if it is no newer than what is known.
    pub(crate) fn take_beat(&self, bytes: &[u8]) -> Result<Option<Timestamp>, RefusedEntry> {
        let (beat, signer) = verify_notice::<Beat>(&self.ring, bytes)?;
        if signer.scope != Scope::Any {
            return Err(aegis_keys::KeyError::UnknownKey(signer.key.key_id().to_owned()).into());
        }
        let mut known = self.beat.lock();
        let is_old = match &*known {
            Some(known) => !beat.is_after(known),
            // After a start from the copy: what was said before it was written is no news.
            None => beat.at.as_micros() < self.beat_us.load(Ordering::Acquire),
        };
        if is_old {
            return Ok(None);
        }
        *known = Some(beat);
        self.beat_us.store(beat.at.as_micros(), Ordering::Release);
        Ok(Some(beat.at))
    }

    /// Takes the label of a run, which only tightens what is known of it here. None if it says nothing new.
    pub(crate) fn take_run_label(&self, bytes: &[u8]) -> Result<Option<TakenLabel>, RefusedEntry> {
        let not_one = |_: serde_json::Error| aegis_keys::KeyError::Malformed("no label of a run");
        let said: RunLabel = serde_json::from_slice(bytes).map_err(not_one)?;
        // What changes nothing needs no proof.
        if !self.is_news(&said) {
            return Ok(None);
        }
        let (label, signer) = verify_notice::<RunLabel>(&self.ring, bytes)?;
        if signer.scope != Scope::Any {
            return Err(aegis_keys::KeyError::UnknownKey(signer.key.key_id().to_owned()).into());
        }
        let (run, ends) = (run_key(&label.run), self.run_ends(&label));
        self.told.runs.take(&label.tenant_id, run, label.source_trust, ends, label.at);
        Ok(Some(TakenLabel { tenant: label.tenant_id, run, trust: label.source_trust, ends }))
    }

    fn is_news(&self, label: &RunLabel) -> bool {
        self.told.runs.is_news(&label.tenant_id, &run_key(&label.run), label.source_trust, self.run_ends(label))
    }

    fn run_ends(&self, label: &RunLabel) -> Timestamp {
        let settings = self.settings(&label.tenant_id);
        label.at.plus_seconds(if label.run.starts_with("run:") { settings.run_idle_s } else { settings.implicit_run_idle_s })
    }

    /// Checks an entry and makes it hold.
    pub fn apply(&self, entry: &SignedEntry) -> Result<Applied, RefusedEntry> {
        verify_entry(&self.ring, entry)?;
        let tenant = self.tenant_or_new(&entry.tenant_id);
        let key = (entry.kind, entry.name.clone());
        // Whoever answers reads on; whoever applies another of the tenant's entries waits.
        let view = tenant.upgradable_read();
        let known = view.revisions.get(&key).copied();
        let held = known.map_or(0, |known| known.revision);
        if entry.revision < held {
            let held_for = known.map_or(Duration::MAX, |known| known.since.elapsed());
            return Err(older(entry, held, held_for));
        }
        if entry.revision == held {
            drop(view);
            self.note_applied(entry.revision);
            return Ok(Applied::Known);
        }
        let now_held = Held { revision: entry.revision, since: Instant::now() };
        if matches!(entry.kind, EntryKind::Tool | EntryKind::McpServer | EntryKind::Policies) {
            // INVARIANT: registry and bundle change together or not at all: no call sees an action without its policy schema,
            // and an entry whose bundle does not validate leaves everything as it was. No call waits while it is made, or taken apart.
            let mut changed = view.clone();
            apply_body(&mut changed, entry)?;
            changed.bundle = Some(self.bundle_of(&changed)?);
            changed.revisions.insert(key, now_held);
            let mut view = RwLockUpgradableReadGuard::upgrade(view);
            let before = std::mem::replace(&mut *view, changed);
            drop(view);
            drop(before);
        } else {
            let mut view = RwLockUpgradableReadGuard::upgrade(view);
            apply_body(&mut view, entry)?;
            view.revisions.insert(key, now_held);
        }
        self.note_applied(entry.revision);
        Ok(Applied::New)
    }

    /// The whole feed was read at `now`.
    pub fn confirm(&self, now: Timestamp) {
        self.confirmed_us.store(now.as_micros(), Ordering::Release);
        if self.feed_age_s(now).is_some_and(|age| age <= FRESH_S) {
            self.is_copy.store(false, Ordering::Release);
        }
    }

    /// The feed was read at a start, at `now`. Without a living control behind it, it is worth no more than a copy.
    pub(crate) fn begin(&self, now: Timestamp) {
        self.is_copy.store(true, Ordering::Release);
        self.confirm(now);
    }

    /// What the feed is as old as: when it was read whole, or control's last sign of life if that is older.
    pub(crate) fn confirmed_at(&self) -> Option<Timestamp> {
        let mut confirmed = self.confirmed_us.load(Ordering::Acquire);
        if self.needs_beat {
            confirmed = confirmed.min(self.beat_us.load(Ordering::Acquire));
        }
        (confirmed != i64::MIN).then(|| Timestamp::from_micros(confirmed))
    }

    /// What is held is a copy of the feed as it was at `confirmed_at`. One from a time to come, of a clock that was set back since, is as old as it
    /// is ahead: else it would be young, and control's signs of life no news, until the clock has caught up.
    pub fn restored(&self, confirmed_at: Timestamp, now: Timestamp) {
        let ahead_us = confirmed_at.as_micros().saturating_sub(now.as_micros()).max(0);
        let confirmed_us = confirmed_at.as_micros().min(now.as_micros().saturating_sub(ahead_us));
        self.confirmed_us.store(confirmed_us, Ordering::Release);
        self.beat_us.fetch_max(confirmed_us, Ordering::AcqRel);
        self.is_copy.store(true, Ordering::Release);
    }

    /// Seconds since the feed was last read whole, and control lived; None if it never was.
    #[must_use]
    pub fn feed_age_s(&self, now: Timestamp) -> Option<i64> {
        self.confirmed_at().map(|at| now.as_micros().saturating_sub(at.as_micros()).max(0) / 1_000_000)
    }

    /// True if what is held is too old to let anything change: over `max_s` (0: never), or over `max_copy_s` for a copy.
    #[must_use]
    pub(crate) fn is_stale(&self, now: Timestamp, max_s: i64, max_copy_s: i64) -> bool {
        let is_copy = self.is_copy.load(Ordering::Acquire);
        if max_s == 0 && !is_copy {
            return false;
        }
        let age = self.feed_age_s(now).unwrap_or(i64::MAX);
        (is_copy && age > max_copy_s) || (max_s > 0 && age > max_s)
    }

    /// Waits until the entry with this revision holds here.
    pub async fn wait_applied(&self, revision: i64, timeout: std::time::Duration) -> bool {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if self.applied.lock().0.contains(&revision) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(timeout, wait).await.is_ok()
    }

    pub(crate) fn settings(&self, tenant: &TenantId) -> Arc<TenantSettings> {
        self.tenant(tenant).map(|t| t.read().settings.clone()).unwrap_or_default()
    }

    /// What containment says of a target at `now`.
    pub(crate) fn verdict(&self, tenant: &TenantId, target_type: TargetType, target_id: &str, now: Timestamp) -> Verdict {
        self.tenant(tenant).map_or(Verdict::Free, |tenant| verdict_of(&tenant.read(), target_type, target_id, now))
    }

    /// What is held at `now` of a call by an agent.
    pub(crate) fn facts(&self, whose: (&TenantId, &str), call: &ToolCall, channel: Option<&str>, now: Timestamp) -> CallFacts {
        let (ToolCall { tool, action, resource, .. }, (tenant, agent_id)) = (call, whose);
        // Of a tenant of whom nothing came, nothing is held.
        let tenant = self.tenant(tenant).unwrap_or_default();
        let view = tenant.read();
        let mcp_server = tool.strip_prefix(MCP_PREFIX).and_then(|key| view.mcp_servers.get(key)).cloned();
        CallFacts {
            action: view.actions.get(tool).and_then(|actions| actions.get(action)).cloned(),
            mcp_server,
            resource: resource.as_deref().and_then(|name| find_resource(&view.resources, name)),
            channel: channel.and_then(|name| view.channels.get(name)).cloned(),
            bundle: view.bundle.clone().unwrap_or_else(|| self.base_bundle.clone()),
            settings: view.settings.clone(),
            verdict: verdict_of(&view, TargetType::Agent, agent_id, now),
        }
    }

    fn bundle_of(&self, view: &TenantView) -> Result<Arc<PolicyBundle>, RefusedEntry> {
        let mut sources = self.packs.clone();
        if let Some(text) = view.policy_text.as_ref().filter(|text| !text.trim().is_empty()) {
            sources.push(PolicySource { name: "tenant".to_owned(), text: text.clone() });
        }
        let tools: Vec<ToolRecord> = tools_with_mcp(&view.tools, &view.mcp_servers);
        match PolicyBundle::load(&sources, &tools) {
            Ok(bundle) => Ok(Arc::new(bundle)),
            Err(error) => Err(RefusedEntry::Policies(error.to_string())),
        }
    }

    /// True if control has signed something of this tenant that came here.
    pub(crate) fn knows(&self, tenant: &TenantId) -> bool {
        self.tenants.read().contains_key(tenant)
    }

    /// The tenants of whom that is true.
    pub(crate) fn known_tenants(&self) -> Vec<TenantId> {
        self.tenants.read().keys().cloned().collect()
    }

    fn tenant(&self, tenant: &TenantId) -> Option<Arc<RwLock<TenantView>>> {
        self.tenants.read().get(tenant).cloned()
    }

    fn tenant_or_new(&self, tenant: &TenantId) -> Arc<RwLock<TenantView>> {
        self.tenant(tenant).unwrap_or_else(|| self.tenants.write().entry(tenant.clone()).or_default().clone())
    }

    pub(crate) fn note_applied(&self, revision: i64) {
        let mut applied = self.applied.lock();
        let (set, order) = &mut *applied;
        if set.insert(revision) {
            order.push_back(revision);
        }
        while order.len() > REMEMBERED_REVISIONS {
            if let Some(oldest) = order.pop_front() {
                set.remove(&oldest);
            }
        }
        drop(applied);
        self.changed.notify_waiters();
    }
}

/// What containment says of a target at `now`.
fn verdict_of(view: &TenantView, target_type: TargetType, target_id: &str, now: Timestamp) -> Verdict {
    let held = Some(&view.containment).filter(|held| !held.is_empty());
    let state = held.and_then(|held| held.get(&(target_type, target_id.to_owned())));
    state.map_or(Verdict::Free, |state| state.verdict_at(now))
}

/// The resource itself, or what stands before its `#` (the repository of an issue).
fn find_resource(resources: &HashMap<String, Arc<ResourceRecord>>, name: &str) -> Option<Arc<ResourceRecord>> {
    resources.get(name).or_else(|| name.split_once('#').and_then(|(whole, _)| resources.get(whole))).cloned()
}

/// The registered tools, and for each MCP server a tool whose unregistered actions are taken at their most harmful.
fn tools_with_mcp(tools: &HashMap<String, ToolRecord>, servers: &HashMap<String, Arc<McpServerRecord>>) -> Vec<ToolRecord> {
    let mut all: HashMap<String, ToolRecord> = tools.clone();
    for server in servers.values() {
        let name = format!("{MCP_PREFIX}{}", server.key);
        let tool = all.entry(name.clone()).or_insert_with(|| ToolRecord {
            tool: name,
            name: server.name.clone(),
            default_risk: RiskLevel::Medium,
            actions: Vec::new(),
        });
        for declared in &server.tools {
            if !tool.actions.iter().any(|a| a.action == declared.name) {
                tool.actions.push(unclassified_action(&declared.name));
            }
        }
    }
    let mut sorted: Vec<ToolRecord> = all.into_values().collect();
    sorted.sort_by(|a, b| a.tool.cmp(&b.tool));
    sorted
}

/// An MCP tool nobody has classified: it may change state and may send data outside.
pub(crate) fn unclassified_action(name: &str) -> ActionRecord {
    ActionRecord {
        action: name.to_owned(),
        description: None,
        risk: RiskLevel::Medium,
        mutates_state: true,
        data_access: DataAccess::Internal,
        destination: Destination::External,
        target_parameter: None,
        parameters: None,
        approval_required: false,
        default_decision: DefaultDecision::Policy,
    }
}

fn apply_body(view: &mut TenantView, entry: &SignedEntry) -> Result<(), RefusedEntry> {
    match entry.kind {
        // The token says who an agent is; an edge has no use for the record.
        EntryKind::Agent => {}
        EntryKind::Tool => match read_body::<ToolRecord>(entry)? {
            Some(tool) => {
                let actions = tool.actions.iter().map(|a| (a.action.clone(), Arc::new(a.clone()))).collect();
                view.actions.insert(entry.name.clone(), actions);
                view.tools.insert(entry.name.clone(), tool);
            }
            None => {
                view.actions.remove(&entry.name);
                view.tools.remove(&entry.name);
            }
        },
        EntryKind::McpServer => put(&mut view.mcp_servers, entry)?,
        EntryKind::Channel => put(&mut view.channels, entry)?,
        EntryKind::Resource => put(&mut view.resources, entry)?,
        EntryKind::Settings => view.settings = Arc::new(read_body(entry)?.unwrap_or_default()),
        EntryKind::Policies => {
            let text = entry.body.get("policies").and_then(|p| p.as_str()).map(str::to_owned);
            if !entry.deleted && text.is_none() {
                return Err(refused_body(entry, "`policies` is missing"));
            }
            view.policy_text = text;
        }
        EntryKind::Containment => {
            let Some(state) = read_body::<ContainmentState>(entry)? else {
                return Err(refused_body(entry, "a containment state is released, never deleted"));
            };
            if state.tenant_id != entry.tenant_id || state.revision != entry.revision {
                return Err(refused_body(entry, "state and envelope disagree"));
            }
            let key = (state.target_type, state.target_id.clone());
            // The key is what the state says, so a name that lies about its target cannot release another.
            let held = view.containment.get(&key).map_or(0, |s| s.revision);
            if held > state.revision {
                // Control names a target's states alike: none of its own comes so.
                return Err(older(entry, held, Duration::MAX));
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

fn read_body<T: DeserializeOwned>(entry: &SignedEntry) -> Result<Option<T>, RefusedEntry> {
    if entry.deleted {
        return Ok(None);
    }
    serde_json::from_value(entry.body.clone()).map(Some).map_err(|error| refused_body(entry, &error.to_string()))
}

fn older(entry: &SignedEntry, held: i64, held_for: Duration) -> RefusedEntry {
    RefusedEntry::Older { kind: entry.kind, name: entry.name.clone(), offered: entry.revision, held, held_for }
}

fn refused_body(entry: &SignedEntry, reason: &str) -> RefusedEntry {
    RefusedEntry::Body { kind: entry.kind, name: entry.name.clone(), reason: reason.to_owned() }
}
