//! API keys of people and programs. Only the SHA-256 of a key is stored; a presented key is found by its hash, so that no
//! comparison runs over the secret itself. Keys are 256 random bits, or a given text of at least 32 characters.

use std::collections::HashMap;

use aegis_model::{TenantId, Timestamp};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use sqlx::any::AnyRow;

use crate::error::on_insert;
use crate::person::names_somebody;
use crate::tenants::{MAX_SECRET, check_len, check_name};
use crate::{OutboxRow, Secret, Store, StoreError, outbox, row};

/// Shortest key value a caller may give, in characters.
const MIN_GIVEN: usize = 32;
/// Most groups of one key.
const MAX_GROUPS: usize = 64;
/// How long a verified key is believed without asking the database: another process may have revoked it.
const BELIEVE_S: i64 = 5;
/// Verified keys kept in memory; past it all are forgotten and asked for again.
const MAX_CACHED: usize = 10_000;

/// What a key may be used for; who may do what is control's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Admin,
    Registrar,
    Approver,
    Analyst,
    Auditor,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::Admin, Self::Registrar, Self::Approver, Self::Analyst, Self::Auditor];

    /// The word in key texts, tables and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Registrar => "registrar",
            Self::Approver => "approver",
            Self::Analyst => "analyst",
            Self::Auditor => "auditor",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = StoreError;
    fn from_str(word: &str) -> Result<Self, StoreError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == word)
            .ok_or(StoreError::Invalid { what: "role", why: "is none of admin, registrar, approver, analyst, auditor" })
    }
}

/// Who presented a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub tenant_id: TenantId,
    pub key_id: String,
    pub role: Role,
    pub name: String,
    pub groups: Vec<String>,
}

/// A key that is made and not yet kept: nobody can use it.
#[derive(Debug)]
pub struct NewKey {
    principal: Principal,
    secret: Secret,
}

impl NewKey {
    /// Makes a key: a fresh random one, or of the given `value`.
    ///
    /// # Errors
    /// `Invalid` for a value under 32 characters, or for a name or group that is none: votes and self-approval go by names.
    pub fn make(tenant: &TenantId, role: Role, name: &str, groups: &[String], value: Option<&str>) -> Result<Self, StoreError> {
        check_name("key name", name)?;
        if !names_somebody(name) {
            return Err(StoreError::Invalid { what: "key name", why: "has no letter or digit" });
        }
        if groups.len() > MAX_GROUPS {
            return Err(StoreError::Invalid { what: "key", why: "has too many groups" });
        }
        for group in groups {
            check_name("group name", group)?;
        }
        let text = match value {
            Some(given) if given.chars().count() < MIN_GIVEN => {
                return Err(StoreError::Invalid { what: "key value", why: "has fewer than 32 characters" });
            }
            Some(given) => {
                check_len("key value", given, MAX_SECRET)?;
                given.to_owned()
            }
            None => format!("aegis_{role}_{}", URL_SAFE_NO_PAD.encode(random::<32>()?)),
        };
        let principal = Principal {
            tenant_id: tenant.clone(),
            key_id: format!("key_{}", hex::encode(random::<8>()?)),
            role,
            name: name.to_owned(),
            groups: groups.to_vec(),
        };
        Ok(Self { principal, secret: Secret::new(text) })
    }

    /// Who will present it.
    #[must_use]
    pub const fn principal(&self) -> &Principal {
        &self.principal
    }
}

/// Keys verified a moment ago. A revocation in this process clears it, and `epoch` keeps a verification that was under way
/// meanwhile from putting the revoked key back.
#[derive(Default)]
pub(crate) struct KeyCache(Mutex<Cached>);

#[derive(Default)]
struct Cached {
    epoch: u64,
    known: HashMap<[u8; 32], (Principal, Timestamp)>,
}

impl KeyCache {
    fn get(&self, hash: &[u8; 32], now: Timestamp) -> (Option<Principal>, u64) {
        let cached = self.0.lock();
        let fresh = cached.known.get(hash).filter(|(_, at)| *at <= now && now < at.plus_seconds(BELIEVE_S));
        (fresh.map(|(principal, _)| principal.clone()), cached.epoch)
    }

    fn put(&self, hash: [u8; 32], principal: &Principal, now: Timestamp, epoch: u64) {
        let mut cached = self.0.lock();
        if cached.epoch != epoch {
            return;
        }
        if cached.known.len() >= MAX_CACHED {
            cached.known.clear();
        }
        cached.known.insert(hash, (principal.clone(), now));
    }

    fn forget_all(&self) {
        let mut cached = self.0.lock();
        cached.epoch += 1;
        cached.known.clear();
    }
}

pub(crate) fn hash_of(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Random(error.to_string()))?;
    Ok(bytes)
}

fn principal(r: &AnyRow) -> Result<Principal, StoreError> {
    Ok(Principal {
        tenant_id: row::tenant(r)?,
        key_id: row::get(r, "key_id")?,
        role: row::word(r, "role")?,
        name: row::get(r, "name")?,
        groups: row::json(r, "groups")?,
    })
}

impl Store {
    /// Keeps a key with its facts: from now on it is one. The secret is returned this once and never again.
    ///
    /// # Errors
    /// `Taken` for a value that is some key's already, `UnknownTenant`.
    pub async fn put_key(&self, key: NewKey, facts: &[OutboxRow]) -> Result<(Principal, Secret), StoreError> {
        let NewKey { principal, secret } = key;
        let tenant = &principal.tenant_id;
        let mut tx = self.begin_write().await?;
        sqlx::query(
            "INSERT INTO api_keys (tenant_id, key_id, key_hash, role, name, groups, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(tenant.as_str())
        .bind(principal.key_id.as_str())
        .bind(hash_of(secret.expose()).to_vec())
        .bind(principal.role.as_str())
        .bind(principal.name.as_str())
        .bind(row::to_json(&principal.groups, "groups")?)
        .bind(self.now().as_micros())
        .execute(&mut *tx)
        .await
        .map_err(on_insert(tenant, "key value"))?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok((principal, secret))
    }

    /// Makes a key and keeps it without a fact: for whoever sets a store up beside the running program.
    ///
    /// # Errors
    /// Those of [`NewKey::make`] and [`Store::put_key`].
    pub async fn create_key(
        &self,
        tenant: &TenantId,
        role: Role,
        name: &str,
        groups: &[String],
        value: Option<&str>,
    ) -> Result<(Principal, Secret), StoreError> {
        self.put_key(NewKey::make(tenant, role, name, groups, value)?, &[]).await
    }

    /// Who presents this key; none for an unknown or revoked one. The key names its tenant.
    pub async fn verify_key(&self, presented: &str) -> Result<Option<Principal>, StoreError> {
        if presented.len() > MAX_SECRET {
            return Ok(None);
        }
        let hash = hash_of(presented);
        let now = self.now();
        let (cached, epoch) = self.inner.key_cache.get(&hash, now);
        if cached.is_some() {
            return Ok(cached);
        }
        let found =
            sqlx::query("SELECT tenant_id, key_id, role, name, groups FROM api_keys WHERE key_hash = $1 AND revoked_at IS NULL")
                .bind(hash.to_vec())
                .fetch_optional(&self.inner.readers)
                .await?;
        let Some(found) = found else { return Ok(None) };
        let principal = principal(&found)?;
        self.inner.key_cache.put(hash, &principal, now, epoch);
        Ok(Some(principal))
    }

    /// Revokes a key for good, with its facts. False if the tenant has no such key in force; nothing is written then.
    pub async fn revoke_key(&self, tenant: &TenantId, key_id: &str, facts: &[OutboxRow]) -> Result<bool, StoreError> {
        let done = self.revoke_in_one(tenant, key_id, facts).await;
        // Also where no answer came: it may be revoked.
        self.inner.key_cache.forget_all();
        done
    }

    async fn revoke_in_one(&self, tenant: &TenantId, key_id: &str, facts: &[OutboxRow]) -> Result<bool, StoreError> {
        let mut tx = self.begin_write().await?;
        let done = sqlx::query("UPDATE api_keys SET revoked_at = $3 WHERE tenant_id = $1 AND key_id = $2 AND revoked_at IS NULL")
            .bind(tenant.as_str())
            .bind(key_id)
            .bind(self.now().as_micros())
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Whose key this is, also of one that is revoked; none if the tenant never had it.
    pub async fn key_name(&self, tenant: &TenantId, key_id: &str) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar("SELECT name FROM api_keys WHERE tenant_id = $1 AND key_id = $2")
            .bind(tenant.as_str())
            .bind(key_id)
            .fetch_optional(&self.inner.readers)
            .await?)
    }

    /// The tenant's keys in force, oldest first, without their secrets.
    pub async fn list_keys(&self, tenant: &TenantId) -> Result<Vec<Principal>, StoreError> {
        let rows = sqlx::query(
            "SELECT tenant_id, key_id, role, name, groups FROM api_keys
             WHERE tenant_id = $1 AND revoked_at IS NULL ORDER BY created_at, key_id",
        )
        .bind(tenant.as_str())
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(principal).collect()
    }
}
