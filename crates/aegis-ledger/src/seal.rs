//! Sealing: drafts become receipts with a place in their lane, and a batch of them becomes one signed commit.
//! A batch works on copies of the lane heads; nothing here changes the sealer until the batch is known to be durable
//! (`Sealer::adopt`), so a failed transaction leaves no trace. No I/O.
//!
//! INVARIANT (L-LINK): in every lane seq is 1, 2, 3 … and each receipt carries the hash of the one before it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aegis_canon::Limits;
use aegis_keys::SigningKey;
use aegis_model::{EventId, EventKind, TenantId, Timestamp};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::LedgerError;
use crate::body::kept_text;
use crate::canonical::{Place, Seal, body_text, event_text};
use crate::commitment::{CommitmentKey, CommitmentKeys, Keyed};
use crate::config::MAX_RECEIPT_BYTES;
use crate::draft::Draft;
use crate::entropy::Entropy;
use crate::lane::{Identity, LaneHead, Predecessor};
use crate::loss::Loss;
use crate::merkle::{self, Hash};
use crate::recovery::UncleanLane;

/// Times outside 1970 … 9999 have no RFC 3339 text that every reader accepts, and would hold their lane's clock there for good.
const LAST_TS_MICROS: i64 = 253_402_300_799_999_999;

/// How deep a detail may be. It travels inside its receipt, inside its event, and some read only so deep.
const MOST_DETAIL_DEPTH: usize = aegis_canon::MAX_DEPTH / 2;

/// Bytes that hold most texts: one that grows is copied each time.
const TEXT_BYTES: usize = 4096;

/// One receipt, ready to be written.
#[derive(Debug)]
pub(crate) struct SealedRow {
    pub(crate) row: i64,
    pub(crate) tenant_id: TenantId,
    pub(crate) event_id: EventId,
    pub(crate) kind: EventKind,
    pub(crate) ts: Timestamp,
    pub(crate) lane_no: i64,
    pub(crate) lane: Arc<str>,
    pub(crate) seq: i64,
    pub(crate) receipt_hash: Hash,
    // Texts are shared with the lane's head and with the statement that writes them, which would copy them.
    pub(crate) receipt_hash_hex: Arc<str>,
    pub(crate) prev_receipt_hash: Arc<str>,
    /// The event's canonical columns.
    pub(crate) event: Arc<str>,
    /// The canonical body, as hashed.
    pub(crate) receipt: Arc<str>,
    /// What the row keeps of it, if not all.
    pub(crate) kept: Option<Arc<str>>,
    pub(crate) path: Vec<Hash>,
    pub(crate) frozen: Option<FrozenRow>,
}

impl SealedRow {
    /// What is written of the body.
    pub(crate) fn stored(&self) -> &Arc<str> {
        self.kept.as_ref().unwrap_or(&self.receipt)
    }
}

/// A frozen action, as it is written beside its receipt.
#[derive(Debug)]
pub(crate) struct FrozenRow {
    pub(crate) approval_id: String,
    pub(crate) expires_at: Timestamp,
    pub(crate) json: String,
}

/// What one signature covers.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) commit_id: i64,
    pub(crate) size: u64,
    pub(crate) root: Hash,
    pub(crate) key_id: String,
    /// Base64.
    pub(crate) signature: String,
}

/// A sealed batch: what one transaction writes, and what the sealer becomes when it is durable.
#[derive(Debug)]
pub(crate) struct SealedBatch {
    pub(crate) commit: Commit,
    pub(crate) rows: Vec<SealedRow>,
    pub(crate) opened: Vec<(TenantId, LaneHead)>,
    pub(crate) closed: Vec<(TenantId, LaneHead)>,
    /// Lanes of earlier starts that this batch gives a successor.
    pub(crate) abandoned: Vec<UncleanLane>,
    pub(crate) new_keys: Vec<(TenantId, CommitmentKey)>,
    heads: HashMap<TenantId, LaneHead>,
    next_lane_no: i64,
}

/// The state that outlives a batch.
#[derive(Debug)]
pub(crate) struct Sealer {
    pub(crate) identity: Identity,
    pub(crate) key: SigningKey,
    pub(crate) entropy: Entropy,
    /// The open lanes of this start.
    pub(crate) lanes: HashMap<TenantId, LaneHead>,
    /// The last lanes of earlier starts.
    pub(crate) predecessors: HashMap<TenantId, Predecessor>,
    pub(crate) commitment_keys: CommitmentKeys,
    pub(crate) next_row: i64,
    pub(crate) next_commit_id: i64,
    pub(crate) next_lane_no: i64,
    /// The latest time that the clock ever said.
    pub(crate) latest: Timestamp,
}

impl Sealer {
    /// Starts a batch at `now`.
    pub(crate) fn batch(&mut self, now: Timestamp) -> Batch<'_> {
        self.note_time(now);
        let next_lane_no = self.next_lane_no;
        Batch {
            sealer: self,
            now,
            rows: Vec::new(),
            heads: HashMap::new(),
            opened: Vec::new(),
            closed: Vec::new(),
            abandoned: Vec::new(),
            new_keys: HashMap::new(),
            ids: HashSet::new(),
            keyed: None,
            room: Vec::with_capacity(TEXT_BYTES),
            next_lane_no,
        }
    }

    /// Makes a durable batch the state that the next one starts from.
    pub(crate) fn adopt(&mut self, batch: &SealedBatch) {
        for (tenant, head) in &batch.heads {
            self.lanes.insert(tenant.clone(), head.clone());
        }
        for (tenant, ended) in &batch.closed {
            // One that was opened in its place stays.
            if self.lanes.get(tenant).is_some_and(|head| head.lane_no == ended.lane_no) {
                self.lanes.remove(tenant);
            }
        }
        for (tenant, key) in &batch.new_keys {
            self.commitment_keys.0.insert(tenant.clone(), key.clone());
        }
        self.next_row += batch.rows.len() as i64;
        self.next_commit_id = batch.commit.commit_id + 1;
        self.next_lane_no = batch.next_lane_no;
    }
}

/// A batch being sealed.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) sealer: &'a mut Sealer,
    pub(crate) now: Timestamp,
    pub(crate) rows: Vec<SealedRow>,
    pub(crate) heads: HashMap<TenantId, LaneHead>,
    opened: Vec<(TenantId, LaneHead)>,
    pub(crate) closed: Vec<(TenantId, LaneHead)>,
    abandoned: Vec<UncleanLane>,
    new_keys: HashMap<TenantId, CommitmentKey>,
    /// Of whichever tenant.
    ids: HashSet<EventId>,
    /// The commitment key that was used last, made ready.
    keyed: Option<(TenantId, Keyed)>,
    /// Where texts are written, one after the other.
    room: Vec<u8>,
    next_lane_no: i64,
}

impl Batch<'_> {
    /// Makes room for so many receipts.
    pub(crate) fn make_room(&mut self, receipts: usize) {
        self.rows.reserve(receipts);
        self.ids.reserve(receipts);
    }

    /// Seals a caller's draft and returns its place in the batch. On an error the batch is as if the draft had not come,
    /// except that the tenant's lane may have been opened.
    pub(crate) fn seal(&mut self, draft: &Draft) -> Result<usize, LedgerError> {
        if !(0..=LAST_TS_MICROS).contains(&draft.event.ts.as_micros()) {
            return Err(LedgerError::Rejected(format!("its ts {} is not between 1970 and 9999", draft.event.ts.as_micros())));
        }
        let tenant = &draft.event.tenant_id;
        if draft.frozen.as_ref().is_some_and(|frozen| frozen.tenant_id != *tenant) {
            return Err(LedgerError::Rejected("its frozen action belongs to another tenant".to_owned()));
        }
        if self.is_there(tenant, draft.event.event_id) {
            return Err(LedgerError::Duplicate { event_id: draft.event.event_id });
        }
        // The lane opens no later than its first event happened, so that opening does not move that event's time.
        self.ensure_open(tenant, draft.event.ts.min(self.now))?;
        self.push(draft)
    }

    /// Seals a `gap` that tells a loss.
    pub(crate) fn gap_after_loss(&mut self, tenant: &TenantId, loss: &Loss) -> Result<(), LedgerError> {
        let gap = self.sealer.identity.gap_after_loss(tenant, loss, self.now, &mut self.sealer.entropy)?;
        self.ensure_open(tenant, loss.since.min(self.now))?;
        self.push(&gap).map(drop)
    }

    /// Opens a new lane after one that ended without a `close`, and seals the `gap` that says so.
    pub(crate) fn succeed(&mut self, unclean: UncleanLane) -> Result<(), LedgerError> {
        let tenant = &unclean.tenant_id;
        self.ensure_open(tenant, self.now)?;
        let sealer = &mut *self.sealer;
        let predecessor = sealer.predecessors.get(tenant);
        let gap = sealer.identity.gap_after_unclean_stop(tenant, predecessor, &unclean.damage, self.now, &mut sealer.entropy)?;
        self.push(&gap)?;
        self.abandoned.push(unclean);
        Ok(())
    }

    /// Where the tenant's open lane stands.
    pub(crate) fn head(&self, tenant: &TenantId) -> Option<&LaneHead> {
        self.heads.get(tenant).or_else(|| self.sealer.lanes.get(tenant))
    }

    /// Opens the tenant's lane if it is not open, and another in the place of one whose time is ahead of a clock that was set back.
    pub(crate) fn ensure_open(&mut self, tenant: &TenantId, ts: Timestamp) -> Result<(), LedgerError> {
        if let Some(last_ts) = self.head(tenant).map(|head| head.ts) {
            return if self.is_ahead(last_ts) { self.open_anew(tenant, ts) } else { Ok(()) };
        }
        let sealer = &mut *self.sealer;
        let lane = sealer.identity.lane_id(tenant, &sealer.identity.epoch);
        let predecessor = sealer.predecessors.get(tenant);
        let open = sealer.identity.open(tenant, sealer.key.key_id(), predecessor, ts, &mut sealer.entropy)?;
        self.open_lane(tenant, lane, ts, &open)
    }

    /// Makes a new lane the tenant's, and seals its first receipt.
    pub(crate) fn open_lane(
        &mut self,
        tenant: &TenantId,
        lane: Arc<str>,
        ts: Timestamp,
        open: &Draft,
    ) -> Result<(), LedgerError> {
        let head = LaneHead { lane_no: self.next_lane_no, lane, seq: 0, hash: Arc::default(), ts };
        let before = self.heads.insert(tenant.clone(), head.clone());
        if let Err(error) = self.push(open) {
            self.put_back(tenant, before);
            return Err(error);
        }
        self.opened.push((tenant.clone(), head));
        self.next_lane_no += 1;
        Ok(())
    }

    /// The tenant's head in this batch is what it was.
    pub(crate) fn put_back(&mut self, tenant: &TenantId, before: Option<LaneHead>) {
        match before {
            Some(head) => drop(self.heads.insert(tenant.clone(), head)),
            None => drop(self.heads.remove(tenant)),
        }
    }

    /// Seals `close` in the tenant's lane.
    pub(crate) fn close_lane(&mut self, tenant: &TenantId) -> Result<(), LedgerError> {
        let close = self.sealer.identity.close(tenant, self.now, &mut self.sealer.entropy)?;
        self.push(&close)?;
        if let Some(head) = self.heads.get(tenant) {
            self.closed.push((tenant.clone(), head.clone()));
        }
        Ok(())
    }

    /// Seals a draft at the head of its tenant's open lane.
    pub(crate) fn push(&mut self, draft: &Draft) -> Result<usize, LedgerError> {
        let event = &draft.event;
        let tenant = &event.tenant_id;
        let Some(head) = self.head(tenant) else {
            return Err(LedgerError::Rejected(format!("tenant {tenant} has no open lane")));
        };
        // `ts` never decreases within a lane.
        let ts = self.corrected(event.ts).max(head.ts);
        let ts_text = ts.to_rfc3339();
        let lane = Arc::clone(&head.lane);
        let (lane_no, seq) = (head.lane_no, head.seq + 1);
        let prev_receipt_hash = Arc::clone(&head.hash);
        let place = Place { lane: &lane, seq, ts: &ts_text };

        let detail = draft.detail.as_ref().map(canonical_detail).transpose()?;
        let frozen = draft.frozen.as_deref().map(frozen_row).transpose()?;
        let event_columns = event_text(event, place, &mut self.room);
        check_size(&event_columns)?;
        let input_hash = draft.input.as_deref().map(|bytes| self.commitment(tenant, bytes)).transpose()?;
        let output_hash = draft.output.as_deref().map(|bytes| self.commitment(tenant, bytes)).transpose()?;
        let mut digest: hex::Buffer<32> = hex::Buffer::new();
        let seal = Seal {
            event_digest: digest.format(&Sha256::digest(event_columns.as_bytes()).into()),
            detail: detail.as_deref(),
            input_hash: input_hash.as_deref(),
            output_hash: output_hash.as_deref(),
            key_id: self.sealer.key.key_id(),
            prev_receipt_hash: &prev_receipt_hash,
        };
        let receipt = body_text(draft, place, seal, &mut self.room);
        check_size(&receipt)?;
        let kept = kept_text(draft, seal, &mut self.room);
        let receipt_hash: Hash = Sha256::digest(receipt.as_bytes()).into();
        let mut hex_hash: hex::Buffer<32> = hex::Buffer::new();
        let receipt_hash_hex: Arc<str> = Arc::from(&*hex_hash.format(&receipt_hash));

        let hash = Arc::clone(&receipt_hash_hex);
        match self.heads.get_mut(tenant) {
            Some(head) => (head.seq, head.hash, head.ts) = (seq, hash, ts),
            None => {
                self.heads.insert(tenant.clone(), LaneHead { lane_no, lane: Arc::clone(&lane), seq, hash, ts });
            }
        }
        self.ids.insert(event.event_id);
        let index = self.rows.len();
        self.rows.push(SealedRow {
            row: self.sealer.next_row + index as i64,
            tenant_id: tenant.clone(),
            event_id: event.event_id,
            kind: event.kind,
            ts,
            lane_no,
            lane,
            seq,
            receipt_hash,
            receipt_hash_hex,
            prev_receipt_hash,
            event: event_columns,
            receipt,
            kept,
            path: Vec::new(),
            frozen,
        });
        Ok(index)
    }

    /// Whether an event of the tenant with this id is in the batch.
    fn is_there(&self, tenant: &TenantId, event_id: EventId) -> bool {
        let is_it = |row: &SealedRow| row.event_id == event_id && row.tenant_id == *tenant;
        self.ids.contains(&event_id) && self.rows.iter().any(is_it)
    }

    fn commitment(&mut self, tenant: &TenantId, bytes: &[u8]) -> Result<String, LedgerError> {
        if let Some((of, keyed)) = &self.keyed
            && of == tenant
        {
            return Ok(keyed.commit_to(bytes));
        }
        let keyed = match self.sealer.commitment_keys.0.get(tenant).or_else(|| self.new_keys.get(tenant)) {
            Some(key) => Keyed::with(key),
            None => {
                let key = CommitmentKey::new(self.sealer.entropy.bytes::<32>()?);
                let keyed = Keyed::with(&key);
                self.new_keys.insert(tenant.clone(), key);
                keyed
            }
        };
        let commitment = keyed.commit_to(bytes);
        self.keyed = Some((tenant.clone(), keyed));
        Ok(commitment)
    }

    /// The tree over the batch and its signature. None if nothing was sealed.
    pub(crate) fn finish(self) -> Option<SealedBatch> {
        if self.rows.is_empty() {
            return None;
        }
        let mut rows = self.rows;
        let hashes: Vec<Hash> = rows.iter().map(|row| row.receipt_hash).collect();
        let (root, paths) = merkle::tree(&hashes);
        for (row, path) in rows.iter_mut().zip(paths) {
            row.path = path;
        }
        let size = rows.len() as u64;
        let key = &self.sealer.key;
        let commit = Commit {
            commit_id: self.sealer.next_commit_id,
            size,
            root,
            key_id: key.key_id().to_owned(),
            signature: STANDARD.encode(key.sign(&merkle::commit_statement(size, &root))),
        };
        Some(SealedBatch {
            commit,
            rows,
            opened: self.opened,
            closed: self.closed,
            abandoned: self.abandoned,
            new_keys: self.new_keys.into_iter().collect(),
            heads: self.heads,
            next_lane_no: self.next_lane_no,
        })
    }
}

fn check_size(text: &str) -> Result<(), LedgerError> {
    if text.len() > MAX_RECEIPT_BYTES {
        return Err(LedgerError::TooLarge { bytes: text.len(), limit: MAX_RECEIPT_BYTES });
    }
    Ok(())
}

fn canonical_detail(detail: &serde_json::Value) -> Result<String, LedgerError> {
    let rejected = |reason: String| LedgerError::Rejected(format!("its detail has no canonical form: {reason}"));
    let bytes = aegis_canon::canonicalize_value(detail).map_err(|e| rejected(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|e| rejected(e.to_string()))?;
    // Most have fewer brackets than that.
    if text.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count() > MOST_DETAIL_DEPTH {
        let limits = Limits { max_depth: MOST_DETAIL_DEPTH, ..Limits::default() };
        aegis_canon::parse_strict_with(text.as_bytes(), limits).map_err(|e| rejected(e.to_string()))?;
    }
    Ok(text)
}

fn frozen_row(frozen: &aegis_model::FrozenAction) -> Result<FrozenRow, LedgerError> {
    let json = serde_json::to_string(frozen).map_err(|e| LedgerError::Rejected(format!("its frozen action: {e}")))?;
    Ok(FrozenRow { approval_id: frozen.approval_id.clone(), expires_at: frozen.expires_at, json })
}
