//! What an edge believes: registry, policies, settings and containment, each entry signed by control and monotonic.
//! An entry that is badly signed, older than what is held, or unreadable changes nothing.

mod entries;
mod halves;
mod refused;
mod registry;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use aegis_keys::{KeyRing, Scope, verify_notice};
use aegis_model::{
    ActionRecord, Beat, ChannelRecord, ContainmentState, EntryKind, McpServerRecord, ResourceRecord, RunLabel, SourceTrust,
    TargetType, TenantId, TenantSettings, Timestamp, ToolCall, Verdict,
};
use aegis_policy::{PolicyBundle, PolicySource, default_pack, github_pack};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::registry::Registry;
use crate::digest::{Key, run_key};
use crate::told::Told;

pub(crate) use self::entries::is_registered;
pub use self::refused::{Applied, RefusedEntry};
pub(crate) use self::registry::unclassified_action;

/// How many applied revisions are remembered for those who wait for one.
const REMEMBERED_REVISIONS: usize = 8192;

/// A feed that is no older is no copy, seconds.
const FRESH_S: i64 = 30;

/// The prefix of a tool name that is an MCP server.
pub(crate) const MCP_PREFIX: &str = "mcp:";

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
#[derive(Debug, Default)]
struct TenantView {
    registry: Arc<Registry>,
    channels: HashMap<String, Arc<ChannelRecord>>,
    resources: HashMap<String, Arc<ResourceRecord>>,
    settings: Arc<TenantSettings>,
    containment: HashMap<(TargetType, String), ContainmentState>,
    revisions: HashMap<(EntryKind, String), Held>,
}

/// The same, as it is shared.
#[derive(Debug, Default)]
struct Tenant {
    /// Locked for as long as it takes to look something up or to put something in its place, and no longer: who answers waits for it.
    view: RwLock<TenantView>,
    /// Held by whoever compiles policies: one registry follows from the other. Nobody who answers, and nobody who applies anything else, waits for it.
    registering: Mutex<()>,
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
    tenants: RwLock<HashMap<TenantId, Arc<Tenant>>>,
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
        self.tenant(tenant).map(|t| t.view.read().settings.clone()).unwrap_or_default()
    }

    /// What containment says of a target at `now`.
    pub(crate) fn verdict(&self, tenant: &TenantId, target_type: TargetType, target_id: &str, now: Timestamp) -> Verdict {
        self.tenant(tenant).map_or(Verdict::Free, |tenant| verdict_of(&tenant.view.read(), target_type, target_id, now))
    }

    /// What is held at `now` of a call by an agent.
    pub(crate) fn facts(&self, whose: (&TenantId, &str), call: &ToolCall, channel: Option<&str>, now: Timestamp) -> CallFacts {
        let (ToolCall { tool, action, resource, .. }, (tenant, agent_id)) = (call, whose);
        // Of a tenant of whom nothing came, nothing is held.
        let tenant = self.tenant(tenant).unwrap_or_default();
        let view = tenant.view.read();
        CallFacts {
            action: view.registry.action(tool, action),
            mcp_server: view.registry.mcp_server(tool),
            resource: resource.as_deref().and_then(|name| find_resource(&view.resources, name)),
            channel: channel.and_then(|name| view.channels.get(name)).cloned(),
            bundle: view.registry.bundle().unwrap_or_else(|| self.base_bundle.clone()),
            settings: view.settings.clone(),
            verdict: verdict_of(&view, TargetType::Agent, agent_id, now),
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

    fn tenant(&self, tenant: &TenantId) -> Option<Arc<Tenant>> {
        self.tenants.read().get(tenant).cloned()
    }

    fn tenant_or_new(&self, tenant: &TenantId) -> Arc<Tenant> {
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
