//! Commit proofs: from a receipt hash along its path to a root, and from the root to a pinned key. Checked roots are remembered in
//! a bounded cache, so that one signature check serves all receipts of a commit.

use std::collections::{HashMap, VecDeque};

use aegis_canon::Members;
use aegis_keys::KeyRing;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::wire::VerifiedReceipt;
use super::{FailureCode, VerifyFailure};
use crate::merkle::{self, Hash};

/// Commits that a verifier remembers. A commit's receipts stand close together in a log, so few are enough.
const CACHED_COMMITS: usize = 4096;

/// Commits whose proof was checked: what identifies the claim → the root it was made about.
#[derive(Debug, Default)]
pub(super) struct CommitCache {
    roots: HashMap<Hash, Hash>,
    order: VecDeque<Hash>,
    climb: merkle::Climb,
    /// The one that was asked for last: most receipts stand beside others of their commit.
    last: Option<Checked>,
}

/// A claim that was checked, and the root that it was made about.
#[derive(Debug)]
struct Checked {
    size: u64,
    signer: String,
    signature: Vec<u8>,
    root: Hash,
}

impl Checked {
    fn of(claim: &Claim<'_>, root: Hash) -> Self {
        Self { size: claim.size, signer: claim.signer.to_owned(), signature: claim.signature.clone(), root }
    }

    fn is_of(&self, claim: &Claim<'_>) -> bool {
        self.size == claim.size && self.signature == claim.signature && self.signer == claim.signer
    }
}

impl CommitCache {
    fn get(&self, claim: &Hash) -> Option<&Hash> {
        self.roots.get(claim)
    }

    fn insert(&mut self, claim: Hash, root: Hash) {
        if self.roots.insert(claim, root).is_none() {
            self.order.push_back(claim);
        }
        if self.order.len() > CACHED_COMMITS
            && let Some(oldest) = self.order.pop_front()
        {
            self.roots.remove(&oldest);
        }
    }
}

fn malformed(what: &str) -> VerifyFailure {
    VerifyFailure::new(FailureCode::Malformed, format!("proof.{what}"))
}

/// Reads 64 lower-case hex digits. Upper case is refused, and `0x`, which the decoder passes over: one hash has one text.
pub(super) fn hash_from_hex(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    if text.len() != 2 * hash.len() {
        return None;
    }
    // Without a way out of the loop the compiler looks at many together.
    let upper = text.bytes().fold(false, |upper, byte| upper | byte.is_ascii_uppercase());
    (!upper && hex::decode_to_slice(text, &mut hash).is_ok()).then_some(hash)
}

/// Hashes in a path of this text: each takes 64 digits, two quotes and a comma.
const fn usual_path(text: &str) -> usize {
    (text.len() + 1) / 67
}

/// What a proof says.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    size: u64,
    index: u64,
    signer: &'a str,
    signature: Vec<u8>,
    path: Vec<Hash>,
}

impl<'a> Claim<'a> {
    fn of(proof: &'a Map<String, Value>) -> Result<Self, VerifyFailure> {
        let text = |key: &'static str| {
            proof.get(key).and_then(Value::as_str).ok_or_else(|| malformed(&format!("{key} is not a string")))
        };
        let number = |key: &'static str| {
            proof.get(key).and_then(Value::as_u64).ok_or_else(|| malformed(&format!("{key} is not a number")))
        };
        let (size, index) = (number("size")?, number("index")?);
        let signer = text("key_id")?;
        let signature = STANDARD.decode(text("signature")?).map_err(|_| malformed("signature is not base64"))?;
        let path = proof.get("path").and_then(Value::as_array).ok_or_else(|| malformed("path is not an array"))?;
        if path.len() > merkle::MAX_PATH {
            return Err(VerifyFailure::new(FailureCode::InvalidProof, "its path is longer than any tree is high"));
        }
        let mut hashes = Vec::with_capacity(path.len());
        for sibling in path {
            let hash = sibling.as_str().and_then(hash_from_hex);
            hashes.push(hash.ok_or_else(|| malformed("path holds something that is not a hash in lower-case hex"))?);
        }
        Ok(Self { size, index, signer, signature, path: hashes })
    }

    /// The same from the members of `aegis_model::PROOF_KEYS`; None where they hold something else.
    pub(super) fn of_members(proof: Members<'a>) -> Option<Self> {
        let mut members = proof.iter();
        let [signer, size, index, path, signature] = std::array::from_fn(|_| members.next());
        let (signer, size, index, path, signature) = (signer?, size?, index?, path?, signature?);
        let path = path.value.strip_prefix('[')?.strip_suffix(']')?;
        let mut hashes = Vec::with_capacity(usual_path(path));
        for hash in path.split(',').filter(|_| !path.is_empty()) {
            hashes.push(hash_from_hex(hash.strip_prefix('"')?.strip_suffix('"')?)?);
        }
        Some(Self {
            size: size.value.parse().ok()?,
            index: index.value.parse().ok()?,
            signer: signer.as_plain_str()?,
            signature: STANDARD.decode(signature.as_plain_str()?).ok()?,
            path: (hashes.len() <= merkle::MAX_PATH).then_some(hashes)?,
        })
    }
}

/// What a receipt's body says of who made it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maker<'a> {
    pub(super) tenant_id: &'a str,
    pub(super) lane: &'a str,
    pub(super) key_id: &'a str,
}

impl<'a> Maker<'a> {
    pub(super) fn of(receipt: &'a VerifiedReceipt) -> Self {
        Self { tenant_id: &receipt.tenant_id, lane: &receipt.lane, key_id: &receipt.key_id }
    }
}

/// Checks `proof` for a receipt of this hash. With a ring the signature must be by a key that is pinned for the receipt's tenant and lane;
/// without one, all paths under one signature must lead to one root.
pub(super) fn check(
    proof: &Map<String, Value>,
    receipt_hash: &Hash,
    maker: Maker<'_>,
    ring: Option<&KeyRing>,
    cache: &mut CommitCache,
) -> Result<(), VerifyFailure> {
    check_claim(&Claim::of(proof)?, receipt_hash, maker, ring, cache)
}

pub(super) fn check_claim(
    claim: &Claim<'_>,
    receipt_hash: &Hash,
    Maker { tenant_id, lane, key_id }: Maker<'_>,
    ring: Option<&KeyRing>,
    cache: &mut CommitCache,
) -> Result<(), VerifyFailure> {
    let Claim { size, index, signer, signature, path } = claim;
    if *signer != key_id {
        let message = format!("its body names key {}, its proof key {}", brief(key_id), brief(signer));
        return Err(VerifyFailure::new(FailureCode::InvalidProof, message));
    }
    let Some(root) = cache.climb.root_of(receipt_hash, *index, *size, path) else {
        let message = format!("its path cannot lead from receipt {index} to the root of a commit of {size}");
        return Err(VerifyFailure::new(FailureCode::InvalidProof, message));
    };

    // Of each receipt, not of each commit: a key that may sign some of a commit's receipts may not sign all.
    let key = ring.map(|ring| ring.get(signer));
    if let Some(key) = &key
        && !key.as_ref().is_some_and(|key| key.speaks_for(tenant_id, lane))
    {
        let message = match key {
            Some(_) => format!("it is signed by key {}, which is not pinned for its tenant and lane", brief(signer)),
            None => format!("it is signed by key {}, which is not pinned", brief(signer)),
        };
        return Err(VerifyFailure::new(FailureCode::UnknownKey, message));
    }

    let is_about = |known: Hash| if known == root { Ok(()) } else { Err(wrong_root(ring.is_some())) };
    if let Some(last) = cache.last.as_ref().filter(|last| last.is_of(claim)) {
        return is_about(last.root);
    }
    let claimed = claim_of(*size, signer, signature);
    if let Some(known) = cache.get(&claimed).copied() {
        cache.last = Some(Checked::of(claim, known));
        return is_about(known);
    }
    if let Some(key) = key.flatten()
        && !key.key.verify(&merkle::commit_statement(*size, &root), signature)
    {
        return Err(wrong_root(true));
    }
    cache.insert(claimed, root);
    cache.last = Some(Checked::of(claim, root));
    Ok(())
}

fn wrong_root(signature_checked: bool) -> VerifyFailure {
    if signature_checked {
        VerifyFailure::new(FailureCode::BadSignature, "the commit's signature is not over the root that its path leads to")
    } else {
        VerifyFailure::new(FailureCode::InvalidProof, "its path leads to another root than its commit's other receipts")
    }
}

/// What identifies a commit's claim. The signature is part of it: a known root under another signature is not a known claim.
fn claim_of(size: u64, signer: &str, signature: &[u8]) -> Hash {
    Sha256::new()
        .chain_update(size.to_be_bytes())
        .chain_update((signature.len() as u64).to_be_bytes())
        .chain_update(signature)
        .chain_update(signer.as_bytes())
        .finalize()
        .into()
}

/// A key id as a message may show it.
fn brief(key_id: &str) -> String {
    key_id.chars().take(32).collect()
}
