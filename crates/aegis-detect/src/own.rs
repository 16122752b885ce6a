//! What tenants have of their own: rules that come and change while detection runs, each by a record in the log that control signed, from its place
//! on. What operators make of those that every tenant has is in `common`. Promises that other rules keep their state, that a rule finds its window filled
//! before it acts, that nothing of before its record raises an alert, and that a record which is not control's changes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aegis_bus::{BusError, Delivered, Stream, subject};
use aegis_keys::{KeyError, KeyRing, Scope as KeyScope, verify_notice};
use aegis_model::{
    CommonRuleRecord, CommonRuleWarmRecord, Notice, PARTITIONS, Retraction, RuleMode, RuleRecord, RuleWarmRecord, SecurityEvent,
    TenantId, Timestamp, partition_of,
};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::Wanted;
use crate::common::{CommonKnown, KnownCommon};
use crate::distrust::{RecordFault, Refusal, RefusedRecord};
use crate::engine::{Engine, TickOutput, guarded, key_rules};
use crate::error::{DetectError, RuleError};
use crate::evaluate::RunningRule;
use crate::finished::END_OF_TIME;
use crate::follow::{MAX_BATCH, READ_WAIT, Running};
use crate::plan::RulePlan;
use crate::rule::Rule;
use crate::ruleset::CommonRules;
use crate::schema::EventBatch;
use crate::scope::{Partitions, Scope, Since};
use crate::shape::Shape;
use crate::verify::chain_broken_event;
use crate::wire::{dead_letter, read};
use crate::worker::{Shared, WorkerStats};

/// Why a record without a signature is none.
const UNSIGNED: &str = "it is not signed: a control plane of before records were signed wrote it, or somebody else did; what stands is told \
                        again, signed, at each start of the control plane";

/// What a message under `ruleset.<pp>` is.
enum Record {
    Own(RuleRecord),
    Common(CommonRuleRecord),
    /// A tenant's own rule knows its window.
    Warm(RuleWarmRecord),
    /// One that every tenant has knows it of one of them.
    CommonWarm(RuleWarmRecord),
}

/// A tenant's own rule, checked and planned.
#[derive(Debug)]
pub struct OwnRule {
    pub(crate) tenant: TenantId,
    pub(crate) rule: Rule,
    pub(crate) plan: RulePlan,
}

/// Where every version is kept of tenants' own rules, and of what operators make of those that every tenant has.
#[async_trait]
pub trait RuleTexts: Send + Sync + fmt::Debug {
    /// The text of a tenant's own version by its hash; None if there is no such version, an error if that cannot be told now.
    async fn text(&self, tenant: &TenantId, rule_id: &str, hash: &str) -> Result<Option<String>, String>;

    /// The same of an operator's version of a rule that every tenant has.
    async fn common_text(&self, rule_id: &str, hash: &str) -> Result<Option<String>, String>;
}

/// A version of a tenant's own rule, as a checkpoint knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownRule {
    pub(crate) tenant_id: TenantId,
    pub(crate) rule_id: String,
    pub(crate) revision: i64,
    pub(crate) hash: String,
    /// Matches of before are none.
    pub(crate) since: Timestamp,
    /// From when on it would have known its window by itself, where it was filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) whole: Option<Timestamp>,
    /// When it came, all of the tenant's events from here on were kept, microseconds; a checkpoint of before does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) held: Option<i64>,
    /// True once it was filled with what lies before.
    #[serde(default)]
    pub(crate) is_filled: bool,
    /// False of one that was taken before records were signed: its revision is nobody's word.
    #[serde(default)]
    is_signed: bool,
}

/// Which versions stand, by tenant and rule id; and what operators changed of the program's.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) common: CommonRules,
    pub(crate) texts: Option<Arc<dyn RuleTexts>>,
    /// Whose records are taken.
    control: KeyRing,
    pub(crate) known: BTreeMap<(TenantId, String), KnownRule>,
    pub(crate) changed: CommonKnown,
}

impl Own {
    pub(crate) fn new(common: CommonRules, texts: Option<Arc<dyn RuleTexts>>, control: KeyRing) -> Self {
        Self { common, texts, control, known: BTreeMap::new(), changed: CommonKnown::default() }
    }

    /// A text as a tenant's own rule.
    pub(crate) fn read(&self, tenant: &TenantId, text: &str) -> Result<OwnRule, RuleError> {
        self.common.own(tenant, text)
    }

    pub(crate) fn known(&self) -> Vec<KnownRule> {
        self.known.values().cloned().collect()
    }

    /// The rules of a checkpoint, for an engine that is to be restored from it. One whose text is gone is not known any more: the control plane
    /// tells of what stands at each of its starts.
    pub(crate) async fn know_again(
        &mut self,
        engine: &mut Engine,
        known: Vec<KnownRule>,
        changed: Vec<KnownCommon>,
    ) -> Result<(), DetectError> {
        self.know_changed_again(engine, changed).await?;
        for rule in known {
            let text = match &self.texts {
                Some(texts) => texts.text(&rule.tenant_id, &rule.rule_id, &rule.hash).await,
                None => Ok(None),
            };
            let text = text.map_err(|reason| BusError::Unavailable { reason })?;
            let Some(text) = text.filter(|text| aegis_canon::sha256_hex(text.as_bytes()) == rule.hash) else {
                tracing::error!(tenant = %rule.tenant_id, rule = rule.rule_id, "the text of a tenant's own rule is gone");
                continue;
            };
            match self.common.own(&rule.tenant_id, &text) {
                Ok(own) => {
                    let _of_an_engine_without_state = engine.set_own(own, rule.since, Vec::new());
                    engine.set_since(&rule.tenant_id, &rule.rule_id, rule.since, rule.whole);
                }
                Err(error) => {
                    tracing::error!(tenant = %rule.tenant_id, rule = rule.rule_id, %error, "a tenant's own rule does not load, and does not run");
                }
            }
            self.known.insert((rule.tenant_id.clone(), rule.rule_id.clone()), rule);
        }
        Ok(())
    }

    /// The record in a message, if control signed it, it stands under its own subject, and is what its hash says.
    fn record_of(&self, delivered: &Delivered) -> Result<Record, Refusal> {
        let value = aegis_canon::parse_strict(&delivered.payload)
            .map_err(|error| Refusal::new(RecordFault::Malformed, error.to_string()))?;
        if value.get("signature").is_none() {
            return Err(Refusal::new(RecordFault::Unsigned, UNSIGNED));
        }
        let schema = value.get("schema").and_then(Value::as_str);
        let record = if schema == Some(CommonRuleRecord::SCHEMA) {
            Record::Common(self.signed::<CommonRuleRecord>(delivered)?)
        } else if schema == Some(RuleWarmRecord::SCHEMA) {
            Record::Warm(self.signed::<RuleWarmRecord>(delivered)?)
        } else if schema == Some(CommonRuleWarmRecord::SCHEMA) {
            Record::CommonWarm(self.signed::<CommonRuleWarmRecord>(delivered)?.0)
        } else {
            Record::Own(self.signed::<RuleRecord>(delivered)?)
        };
        let (partition, version) = match &record {
            Record::Own(own) => (partition_of(&own.tenant_id), Some((&own.hash, &own.text))),
            Record::Common(common) => (common.partition, Some((&common.hash, &common.text))),
            Record::Warm(warm) | Record::CommonWarm(warm) => (partition_of(&warm.tenant_id), None),
        };
        if partition >= PARTITIONS || subject::ruleset(partition) != delivered.subject {
            let message = format!("what it is of does not belong under the subject {}", delivered.subject);
            return Err(Refusal::new(RecordFault::Misplaced, message));
        }
        if version.is_some_and(|(hash, text)| aegis_canon::sha256_hex(text.as_bytes()) != *hash) {
            return Err(Refusal::new(RecordFault::Altered, "its text is not what its hash says"));
        }
        Ok(record)
    }

    /// A notice that control signed, and nobody else.
    fn signed<T: Notice + DeserializeOwned>(&self, delivered: &Delivered) -> Result<T, Refusal> {
        let (record, signer) = verify_notice::<T>(&self.control, &delivered.payload)?;
        if signer.scope != KeyScope::Any {
            return Err(KeyError::UnknownKey(signer.key.key_id().to_owned()).into());
        }
        Ok(record)
    }

    /// The revision that control signed of a rule, if it is a newer one.
    fn newer_than(&self, place: &(TenantId, String), revision: i64) -> Option<i64> {
        self.known.get(place).filter(|known| known.is_signed && known.revision > revision).map(|known| known.revision)
    }

    /// True if a record says nothing new. A version that was taken before records were signed is what control says of it, whatever revision the one who
    /// wrote it chose.
    fn is_known(&mut self, place: &(TenantId, String), revision: i64, hash: &str) -> bool {
        let Some(known) = self.known.get_mut(place) else { return false };
        if known.is_signed {
            return known.revision >= revision;
        }
        let is_the_same = known.hash == hash;
        if is_the_same {
            (known.revision, known.is_signed) = (revision, true);
        }
        is_the_same
    }
}

impl Engine {
    /// Makes a rule one of its tenant's own, in place of what the tenant has under its id; all other rules keep what they have. `events` are those of
    /// its window, as they were taken: it knows them, and a match of before `since` is none. The very same text changes nothing. Answers what there is
    /// to say of the rule of before, which sees nothing more of the tenant.
    pub fn set_own(&mut self, own: OwnRule, since: Timestamp, events: Vec<SecurityEvent>) -> TickOutput {
        let OwnRule { tenant, rule, plan } = own;
        let id = rule.header.id.clone();
        if self.rules.iter().any(|running| running.is_own(&tenant, &id) && running.rule.hash == rule.hash) {
            return TickOutput::default();
        }
        let output = self.end_for(&tenant, &id);
        self.remove_own(&tenant, &id);
        self.rules.iter_mut().filter(|running| running.rule.header.id == id).for_each(|common| common.leave_out(&tenant));
        self.own_of.entry(id).or_default().insert(tenant.clone());
        if rule.header.mode == RuleMode::Disabled {
            return output;
        }
        let plan = if self.config.incremental { plan } else { plan.unfollowed() };
        let mut running =
            RunningRule::new(rule, plan, Scope::Only(tenant.clone()), Arc::clone(&self.sides), Arc::clone(&self.names));
        running.since = Since::of_owner(&tenant, since);
        if running.plan.sources.is_none() {
            self.windows.add_own(tenant, &running);
        }
        // One that reads alerts has no rows of before.
        let events = if running.plan.sources.is_none() { events } else { Vec::new() };
        let batch = Arc::new(EventBatch::new(events.into_iter().map(Arc::new).collect()));
        let (settled, quotas) = (&self.settled, self.config.quotas);
        if let Err(error) = guarded(&mut running, |running| running.keep_only(&batch, settled, quotas)) {
            running.quarantine(&error);
        }
        // Behind all that it may read.
        self.rules.push(running);
        self.know_readers();
        self.know_told_of(self.rules.len() - 1, Partitions::ALL);
        output
    }

    /// A rule that waited begins anew with all of its window, and acts from then on. It has told nothing that could be taken back.
    pub(crate) fn fill_own(&mut self, own: OwnRule, since: Timestamp, events: Vec<SecurityEvent>) -> TickOutput {
        let (tenant, id) = (own.tenant.clone(), own.rule.header.id.clone());
        // Before it is gone: how far the tenant's rules look back says what is still known of the tenant.
        let mut output = self.end_for(&tenant, &id);
        self.remove_own(&tenant, &id);
        output.append(self.set_own(own, since, events));
        output
    }

    /// What stands under this id sees nothing more of the tenant: what it told and has no match for now never will have one, and is taken back. So what
    /// stands of it is decided by the log before this place, and not by how that was cut.
    pub(crate) fn end_for(&mut self, tenant: &TenantId, id: &str) -> TickOutput {
        let mut output = TickOutput::default();
        let final_before = self.settle_now(tenant, &mut output);
        let (now, seen_to) = (self.config.clock.now(), self.watermarks.log_time().unwrap_or(END_OF_TIME));
        for running in self.rules.iter_mut().filter(|running| running.rule.header.id == id && running.scope.covers(tenant)) {
            running.end_for(tenant, final_before, seen_to, now, &mut output);
        }
        output
    }

    fn remove_own(&mut self, tenant: &TenantId, id: &str) {
        self.rules.retain(|running| !running.is_own(tenant, id));
        self.know_readers();
        self.windows.set_own(tenant, &self.rules);
    }

    /// Since when all of a tenant's events are kept, at this time.
    pub(crate) fn kept_from(&self, tenant: &TenantId, now: Timestamp) -> Timestamp {
        let needs_events = |running: &&RunningRule| running.scope.owner() == Some(tenant) && running.plan.sources.is_none();
        let own = self.rules.iter().filter(needs_events);
        let of_own = own.map(|running| running.kept_from(running.whole_for(tenant), now)).min();
        let of_common = self.common_kept_from(partition_of(tenant), now);
        of_own.map_or(of_common, |of_own| of_own.min(of_common))
    }

    /// The tenant has nothing of its own under this id any more.
    fn drop_own(&mut self, tenant: &TenantId, id: &str) -> TickOutput {
        let output = self.end_for(tenant, id);
        self.remove_own(tenant, id);
        for running in self.rules.iter_mut().filter(|running| running.rule.header.id == id) {
            if let Scope::AllBut { others, .. } = &mut running.scope {
                others.remove(tenant);
            }
        }
        if let Some(others) = self.own_of.get_mut(id) {
            others.remove(tenant);
        }
        output
    }
}

impl RunningRule {
    /// Since when all events are kept for it, at this time: for one that has its whole window as long as the stream is held for it, for one that has not, and
    /// will at `whole`, since its beginning.
    pub(crate) fn kept_from(&self, whole: Timestamp, now: Timestamp) -> Timestamp {
        whole.plus_micros(-self.window_micros()).max(now.plus_micros(-self.held_micros()))
    }

    /// From when on it knows its window of a tenant by itself.
    pub(crate) fn whole_for(&self, tenant: &TenantId) -> Timestamp {
        self.whole.unwrap_or_else(|| self.since.of(tenant))
    }

    /// The rule sees nothing more of a tenant: takes back what it told and has no match for. What a deferred rule told by the log's time alone is not
    /// decided.
    pub(crate) fn end_for(
        &mut self,
        tenant: &TenantId,
        final_before: Option<Timestamp>,
        seen_to: Timestamp,
        now: Timestamp,
        output: &mut TickOutput,
    ) {
        let decided = final_before.map(|final_before| self.settled_to(final_before).plus_micros(-self.plan.reach.ahead));
        let (always, never) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        let is_read = self.is_read_for(tenant);
        let Self { rule, plan, state, stats, .. } = self;
        let Some(of_tenant) = state.tenants.get_mut(tenant) else { return };
        for (_, key) in of_tenant.buckets.values_mut().flat_map(|bucket| bucket.keys_mut()) {
            if plan.shape == Shape::Deferred {
                key.clear(decided.unwrap_or(always), never);
            }
            let Ok(retracted) = key.end(key_rules(rule, plan, tenant, is_read), seen_to) else { continue };
            stats.retractions += retracted.len() as u64;
            output.retractions.extend(retracted.into_iter().map(|alert_id| Retraction {
                alert_id,
                tenant_id: tenant.clone(),
                rule_id: rule.header.id.clone(),
                detected_at: now,
            }));
        }
    }
}

impl Running {
    /// Takes a record of a rule. Nothing has changed where it fails.
    pub(crate) async fn take_rule(&mut self, delivered: &Delivered, shared: &Shared) -> Result<(), DetectError> {
        let RuleRecord { tenant_id, rule_id, revision, hash, text } = match self.own.record_of(delivered) {
            Ok(Record::Own(record)) => record,
            Ok(Record::Common(record)) => return self.take_common_rule(record, delivered, shared).await,
            Ok(Record::Warm(record)) => return self.take_warm(&record, delivered.bus_ts, shared).await,
            Ok(Record::CommonWarm(record)) => return self.take_common_warm(&record, delivered.bus_ts, shared).await,
            Err(refusal) => return self.refuse_rule(delivered, &refusal, shared).await,
        };
        let place = (tenant_id.clone(), rule_id.clone());
        if let Some(held) = self.own.newer_than(&place, revision).filter(|_| self.is_read_first(delivered.seq)) {
            return self.refuse_rule(delivered, &Refusal::older(Some(tenant_id), revision, held), shared).await;
        }
        if self.own.is_known(&place, revision, &hash) {
            return Ok(());
        }
        // The very same text is another revision, and no more: since when the rule knows its window, and whether it was filled, stays.
        let runs = self.engine.rules.iter().any(|running| running.is_own(&tenant_id, &rule_id) && running.rule.hash == hash);
        let before = self.own.known.get(&place).filter(|before| runs && before.hash == hash).cloned();
        if let Some(before) = before {
            let known = KnownRule { revision, is_signed: true, ..before };
            self.want_past(&known, delivered.bus_ts);
            self.own.known.insert(place, known);
            return Ok(());
        }
        // What rules have put off is of the time before.
        self.catch_up(shared).await?;
        let started = self.clock.now();
        let (held, since) = (Some(self.held_from(&tenant_id)), delivered.bus_ts);
        let mut known =
            KnownRule { tenant_id, rule_id, revision, hash, since, whole: None, held, is_filled: false, is_signed: true };
        let output = match self.own.common.own(&known.tenant_id, &text) {
            Ok(own) if own.rule.header.id == known.rule_id => {
                known.since = self.knows_its_window_from(&own, delivered.bus_ts);
                let reads_events = own.plan.sources.is_none();
                let events = if reads_events { self.events_of(&known.tenant_id).await? } else { Vec::new() };
                tracing::info!(tenant = %known.tenant_id, rule = known.rule_id, since = %known.since, "a tenant's own rule changed");
                self.engine.set_own(own, known.since, events)
            }
            Ok(_) => {
                tracing::error!(tenant = %known.tenant_id, rule = known.rule_id, "a record names another rule than it holds");
                return Ok(());
            }
            Err(error) => {
                tracing::error!(tenant = %known.tenant_id, rule = known.rule_id, %error, "a tenant's own rule does not load, and does not run");
                self.engine.drop_own(&known.tenant_id, &known.rule_id)
            }
        };
        self.tell(WorkerStats::default(), output, Vec::new(), started, shared).await?;
        self.want_past(&known, delivered.bus_ts);
        self.own.known.insert(place, known);
        Ok(())
    }

    /// What is no record of control's, or one that it has said something newer than, changes nothing: what stood stands. It is counted, told in the log of this
    /// process, put aside with its reason, and told to the tenants whom it could have changed something for.
    pub(crate) async fn refuse_rule(
        &mut self,
        delivered: &Delivered,
        refusal: &Refusal,
        shared: &Shared,
    ) -> Result<(), DetectError> {
        let reason = refusal.message.as_str();
        tracing::error!(
            seq = delivered.seq,
            subject = %delivered.subject,
            reason,
            "a record of rules is refused, and what stood stands; who may publish there?"
        );
        if let Some(refused) = RefusedRecord::of(&delivered.subject, delivered.seq, delivered.bus_ts, refusal) {
            self.distrust.note(refused);
        }
        let dead = dead_letter(delivered, &format!("a record of rules is refused: {reason}"));
        let seen = WorkerStats { malformed: 1, rule_records_refused: 1, ..WorkerStats::default() };
        self.tell(seen, TickOutput::default(), vec![dead], self.clock.now(), shared).await
    }

    /// From when on a rule that comes at this time knows all of its window: at once, unless it is longer than what detection keeps of the tenant, or
    /// some of that was given up. One that reads alerts begins with none.
    fn knows_its_window_from(&self, own: &OwnRule, now: Timestamp) -> Timestamp {
        let window = own.rule.header.window_s * 1_000_000;
        let kept_from = if own.plan.sources.is_some() { now } else { self.engine.kept_from(&own.tenant, now) };
        let is_full = kept_from.plus_micros(window).max(now);
        let gone = self.tail.cut().get(&own.tenant).copied().max(self.engine.lost.to(&own.tenant));
        gone.map_or(is_full, |gone| is_full.max(gone.plus_micros(window)))
    }

    /// The tenant's events that its windows have, as rules were shown them.
    pub(crate) async fn events_of(&mut self, tenant: &TenantId) -> Result<Vec<SecurityEvent>, DetectError> {
        let wanted = self.tail.of_tenants(|of| of == tenant);
        self.events_again(&subject::ase_tenant(tenant), wanted).await
    }

    /// Reads messages of the stream again, those of a subject, as rules were shown them.
    pub(crate) async fn events_again(&mut self, subject: &str, taken: Wanted) -> Result<Vec<SecurityEvent>, DetectError> {
        let (Some(first), Some(last)) = (taken.keys().next().copied(), taken.keys().next_back().copied()) else {
            return Ok(Vec::new());
        };
        let mut events = Vec::new();
        let mut subscription = self.bus.subscribe(Stream::Ase, subject, first).await?;
        let mut next = first;
        while next <= last && self.bus.stream_state(Stream::Ase).await?.first_seq <= last {
            let batch = subscription.next_batch(MAX_BATCH, READ_WAIT).await?;
            if batch.is_empty() {
                return Err(BusError::Unavailable { reason: format!("message {next} of the stream does not come") }.into());
            }
            for delivered in batch {
                next = delivered.seq + 1;
                let Some((is_shown, broken)) = taken.get(&delivered.seq) else { continue };
                let Ok(read) = read(&delivered) else { continue };
                let is_verified = broken.is_none() && read.unmarked().lane().is_some();
                let event = read.into_marked(is_verified);
                let said = broken.as_ref().map(|broken| chain_broken_event(&event, broken));
                events.extend(is_shown.then(|| Arc::unwrap_or_clone(event)));
                events.extend(said);
            }
        }
        Ok(events)
    }
}
